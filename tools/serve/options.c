/* SPDX-License-Identifier: MIT */
#include "options.h"

#include <ctype.h>
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <uffd/server.h>

static const char usage[] =
	"usage: uffd-serve --socket PATH --memory FILE|URI [OPTION...]\n"
	"\n"
	"Serve the memory of virtual machines, page by page, as they ask for it. A monitor (Firecracker, or one\n"
	"that speaks like it) connects to the socket and hands over a userfaultfd and where its memory lies; each\n"
	"page then comes from the file when it is first touched.\n"
	"\n"
	"  --socket PATH           where monitors connect; under systemd its socket unit may name it instead\n"
	"  --socket-mode MODE      permissions of the socket, octal\n"
	"  --memory FILE           the guest's memory: a snapshot's file, or a block device; holes are zeros\n"
	"  --memory URI            the same, from an NBD server: nbd://HOST:PORT/EXPORT, or\n"
	"                          nbd+unix:///EXPORT?socket=PATH; encrypted,\n"
	"                          nbds://USER@HOST:PORT/EXPORT?tls-psk-file=FILE, and the same with +unix\n"
	"  --protocol firecracker  what monitors say (the only one, and the default)\n"
	"\n"
	"  --fill RATE             fetch the rest meanwhile: bytes a second, or 'max'\n"
	"  --prefetch SIZE         fetch up to so much ahead of accesses in sequence or in equal strides\n"
	"  --window SIZE           bytes around a fault that come with it, a power of two\n"
	"  --record FILE           write down in which order the first machine touches its pages\n"
	"  --replay FILE           fetch pages in the order of such a record, for each machine\n"
	"\n"
	"  --on-error POLICY       what becomes of a machine whose bytes cannot be had:\n"
	"                            poison  who touches the page gets SIGBUS (the default; kernel 6.6, else fail)\n"
	"                            kill    its process is killed\n"
	"                            fail    it is not served any more: who touches an absent page waits\n"
	"  --retries N             attempts after a first failure of the file or NBD server (default 3)\n"
	"  --handshake-timeout S   seconds within which a monitor must have said all (default 5)\n"
	"  --drain S               seconds that SIGTERM gives to fetch what running machines lack (default 60)\n"
	"\n"
	"  --engine ENGINE         auto, uring or poll\n"
	"  --threads N             threads that serve (default 1)\n"
	"  --max-inflight N        most reads in flight, per thread (default 64)\n"
	"\n"
	"  --nbd-connections N     most connections to an NBD server, if it takes several (default 4, at most 16)\n"
	"  --nbd-timeout S         seconds, whatever becomes of its connections, within which it must have\n"
	"                          answered; then that attempt has failed (default 10)\n"
	"\n"
	"  --user NAME --group NAME  become this user and group when all is open\n"
	"  --keepalive FD          hand machines to a supervisor on this socket, and go on with those that it has;\n"
	"                            SIGTERM then leaves them to the next server (--drain 0)\n"
	"  --keepalive systemd     the same with systemd's store for descriptors\n"
	"  --chroot DIR            see nothing but this directory from then on; it needs an empty DIR/proc\n"
	"\n"
	"  --stats FILE            keep statistics there: JSON, or Prometheus text if the name ends in .prom\n"
	"  --stats unix:PATH       or answer with them on a socket: JSON, or Prometheus text to GET /metrics\n"
	"  --json                  print what happens as JSON, an object a line\n"
	"  --quiet                 no progress line on a terminal\n"
	"  --help, --version\n"
	"\n"
	"SIZE and RATE take K, M and G. SIGTERM and SIGINT: accept nobody any more, fetch what running machines\n"
	"lack, and end; a second one ends at once, and --on-error says what becomes of machines that lack pages.\n"
	"SIGUSR1: print statistics.\n"
	"\n"
	"exit status:\n"
	"  0  ended by a signal, and no machine lacked a page\n"
	"  1  it could not start, or go on, or a machine was left without pages\n"
	"  2  wrong usage\n";

static const char *const policies[] = { "poison", "kill", "fail" };

const char *on_error_name(enum on_error policy)
{
	return policies[policy];
}

/* ---- Values --------------------------------------------------------------------------------- */

static int bad(const char *option, const char *value, const char *wants)
{
	fprintf(stderr, "uffd-serve: --%s %s: %s\n", option, value, wants);
	return -EINVAL;
}

/* Digits, and nothing before or behind them but what *@end is left at. */
static int digits(const char *text, int base, uint64_t *value, char **end)
{
	errno = 0;
	*value = strtoull(text, end, base);
	return !isdigit((unsigned char)*text) || errno ? -EINVAL : 0;
}

static int number(const char *option, const char *text, uint64_t least, uint64_t most,
		  uint64_t *value)
{
	char *end, wants[80];

	if (digits(text, 10, value, &end) == 0 && !*end && *value >= least && *value <= most)
		return 0;
	snprintf(wants, sizeof(wants), "a number from %llu to %llu is wanted",
		 (unsigned long long)least, (unsigned long long)most);
	return bad(option, text, wants);
}

static int number32(const char *option, const char *text, uint64_t least, uint64_t most,
		    uint32_t *value)
{
	uint64_t v;
	int ret = number(option, text, least, most, &v);

	if (ret == 0)
		*value = (uint32_t)v;
	return ret;
}

static int bytes(const char *option, const char *text, uint64_t most, uint64_t *value)
{
	unsigned int shift = 0;
	char *end;

	if (digits(text, 10, value, &end) == 0) {
		static const char units[] = "KMG";
		const char *unit = *end ? strchr(units, *end) : NULL;

		if (unit) {
			shift = 10 * ((unsigned int)(unit - units) + 1);
			end++;
		}
		if (!*end && *value <= most >> shift) {
			*value <<= shift;
			return 0;
		}
	}
	return bad(option, text,
		   "a number of bytes is wanted, with K, M or G perhaps, and no larger");
}

static int seconds(const char *option, const char *text, uint64_t *ns)
{
	char *end;
	double s;

	errno = 0;
	s = strtod(text, &end);
	if (!isdigit((unsigned char)*text) || *end || errno || s > 86400)
		return bad(option, text, "a number of seconds is wanted, at most a day");
	*ns = (uint64_t)(s * 1e9);
	return 0;
}

static int fill(struct options *o, const char *text)
{
	o->fill = true;
	o->fill_rate = 0;
	if (strcmp(text, "max") == 0)
		return 0;
	if (bytes("fill", text, UINT64_MAX, &o->fill_rate) < 0)
		return -EINVAL;
	return o->fill_rate ? 0 : bad("fill", text, "a rate is wanted, or 'max'");
}

static int window(struct options *o, const char *text)
{
	if (bytes("window", text, 32 << 20, &o->window) < 0)
		return -EINVAL;
	return o->window & (o->window - 1) ? bad("window", text, "a power of two is wanted") : 0;
}

static int mode(struct options *o, const char *text)
{
	uint64_t v;
	char *end;

	if (digits(text, 8, &v, &end) < 0 || *end || v > 0777)
		return bad("socket-mode", text, "permissions are wanted, octal");
	o->socket_mode = (mode_t)v;
	return 0;
}

static int policy(struct options *o, const char *text)
{
	for (unsigned int i = 0; i < sizeof(policies) / sizeof(*policies); i++)
		if (strcmp(text, policies[i]) == 0) {
			o->on_error = (enum on_error)i;
			return 0;
		}
	return bad("on-error", text, "poison, kill or fail is wanted");
}

static int engine(struct options *o, const char *text)
{
	o->engine = LIBUFFD_ENGINE_AUTO;
	if (strcmp(text, "auto") == 0)
		return 0;
	for (uint32_t e = LIBUFFD_ENGINE_AUTO + 1; libuffd_engine_name(e); e++)
		if (strcmp(text, libuffd_engine_name(e)) == 0) {
			o->engine = e;
			return 0;
		}
	return bad("engine", text, "auto, uring or poll is wanted");
}

/* ---- The line ------------------------------------------------------------------------------- */

enum {
	SOCKET = 256,
	SOCKET_MODE,
	MEMORY,
	PROTOCOL,
	FILL,
	PREFETCH,
	WINDOW,
	RECORD,
	REPLAY,
	ON_ERROR,
	RETRIES,
	HANDSHAKE_TIMEOUT,
	DRAIN,
	ENGINE,
	THREADS,
	MAX_INFLIGHT,
	USER,
	GROUP,
	CHROOT,
	KEEPALIVE,
	STATS,
	NBD_CONNECTIONS,
	NBD_TIMEOUT,
	JSON,
	QUIET,
	HELP,
	VERSION,
};

static const struct option longs[] = {
	{ "socket", required_argument, NULL, SOCKET },
	{ "socket-mode", required_argument, NULL, SOCKET_MODE },
	{ "memory", required_argument, NULL, MEMORY },
	{ "protocol", required_argument, NULL, PROTOCOL },
	{ "fill", required_argument, NULL, FILL },
	{ "prefetch", required_argument, NULL, PREFETCH },
	{ "window", required_argument, NULL, WINDOW },
	{ "record", required_argument, NULL, RECORD },
	{ "replay", required_argument, NULL, REPLAY },
	{ "on-error", required_argument, NULL, ON_ERROR },
	{ "retries", required_argument, NULL, RETRIES },
	{ "handshake-timeout", required_argument, NULL, HANDSHAKE_TIMEOUT },
	{ "drain", required_argument, NULL, DRAIN },
	{ "engine", required_argument, NULL, ENGINE },
	{ "threads", required_argument, NULL, THREADS },
	{ "max-inflight", required_argument, NULL, MAX_INFLIGHT },
	{ "user", required_argument, NULL, USER },
	{ "group", required_argument, NULL, GROUP },
	{ "chroot", required_argument, NULL, CHROOT },
	{ "keepalive", required_argument, NULL, KEEPALIVE },
	{ "stats", required_argument, NULL, STATS },
	{ "nbd-connections", required_argument, NULL, NBD_CONNECTIONS },
	{ "nbd-timeout", required_argument, NULL, NBD_TIMEOUT },
	{ "json", no_argument, NULL, JSON },
	{ "quiet", no_argument, NULL, QUIET },
	{ "help", no_argument, NULL, HELP },
	{ "version", no_argument, NULL, VERSION },
	{ NULL, 0, NULL, 0 },
};

static int take(struct options *o, int option, const char *value)
{
	switch (option) {
	case SOCKET:
		o->socket = value;
		return 0;
	case SOCKET_MODE:
		return mode(o, value);
	case MEMORY:
		o->memory = value;
		return 0;
	case PROTOCOL:
		if (strcmp(value, "firecracker") == 0)
			return 0;
		return bad("protocol", value, "firecracker is the only one");
	case FILL:
		return fill(o, value);
	case PREFETCH:
		return bytes("prefetch", value, 256 << 20, &o->prefetch);
	case WINDOW:
		return window(o, value);
	case RECORD:
		o->record = value;
		return 0;
	case REPLAY:
		o->replay = value;
		return 0;
	case ON_ERROR:
		return policy(o, value);
	case RETRIES:
		return number32("retries", value, 0, 1000, &o->retries);
	case HANDSHAKE_TIMEOUT:
		return seconds("handshake-timeout", value, &o->handshake_ns);
	case DRAIN:
		return seconds("drain", value, &o->drain_ns);
	case ENGINE:
		return engine(o, value);
	case THREADS:
		return number32("threads", value, 1, 256, &o->threads);
	case MAX_INFLIGHT:
		return number32("max-inflight", value, 1, 4096, &o->depth);
	case USER:
		o->user = value;
		return 0;
	case GROUP:
		o->group = value;
		return 0;
	case CHROOT:
		o->chroot = value;
		return 0;
	case KEEPALIVE:
		o->keepalive = value;
		return 0;
	case STATS:
		o->stats = value;
		return 0;
	case NBD_CONNECTIONS:
		return number32("nbd-connections", value, 1, 16, &o->nbd_connections);
	case NBD_TIMEOUT:
		return seconds("nbd-timeout", value, &o->nbd_timeout_ns);
	case JSON:
		o->json = true;
		return 0;
	case QUIET:
		o->quiet = true;
		return 0;
	default:
		return -EINVAL;
	}
}

static int end_with(int value, int *status)
{
	if (value == EXIT_USAGE)
		fputs("uffd-serve: try --help\n", stderr);
	*status = value;
	return 1;
}

int options_parse(int argc, char **argv, struct options *o, int *status)
{
	int option;

	memset(o, 0, sizeof(*o));
	o->socket_mode = (mode_t)-1;
	o->threads = 1;
	o->retries = 3;
	o->handshake_ns = UINT64_C(5000000000);
	o->nbd_connections = 4;
	o->nbd_timeout_ns = UINT64_C(10000000000);
	o->drain_ns = UINT64_MAX;
	while ((option = getopt_long(argc, argv, "", longs, NULL)) != -1) {
		if (option == HELP) {
			fputs(usage, stdout);
			return end_with(EXIT_SERVED, status);
		}
		if (option == VERSION) {
			printf("uffd-serve %s\n", libuffd_version());
			return end_with(EXIT_SERVED, status);
		}
		if (take(o, option, optarg) < 0)
			return end_with(EXIT_USAGE, status);
	}
	if (optind < argc) {
		fprintf(stderr, "uffd-serve: %s: no such argument\n", argv[optind]);
		return end_with(EXIT_USAGE, status);
	}
	if (o->drain_ns == UINT64_MAX)
		o->drain_ns = o->keepalive ? 0 : UINT64_C(60000000000);
	if (!o->memory) {
		fputs("uffd-serve: --memory is wanted\n", stderr);
		return end_with(EXIT_USAGE, status);
	}
	return 0;
}
