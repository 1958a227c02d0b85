/* SPDX-License-Identifier: MIT */
#include "nbd-uri.h"

#include <fcntl.h>
#include <netdb.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define EXPORT_MAX 4096 /* the protocol's */
#define PORT "10809"
#define KEYS_MOST 65536 /* bytes of a file of keys */

/* What the scheme says: whether the way is encrypted, and whether a socket of a name is at its end. */
static const struct scheme {
	const char *text;
	bool tls, named;
	const char *wanted;
} schemes[] = {
	{ "nbd://", false, false, "nbd://HOST:PORT/EXPORT is wanted" },
	{ "nbd+unix://", false, true, "nbd+unix:///EXPORT?socket=PATH is wanted" },
	{ "nbds://", true, false, "nbds://USER@HOST:PORT/EXPORT?tls-psk-file=FILE is wanted" },
	{ "nbds+unix://", true, true,
	  "nbds+unix://USER@/EXPORT?socket=PATH&tls-psk-file=FILE is wanted" },
};

static bool begins(const char *text, const char *with)
{
	return strncmp(text, with, strlen(with)) == 0;
}

static const struct scheme *scheme_of(const char *uri)
{
	for (size_t i = 0; i < sizeof(schemes) / sizeof(*schemes); i++)
		if (begins(uri, schemes[i].text))
			return &schemes[i];
	return NULL;
}

/* Any scheme of this protocol's, also those that are refused: no file is meant by them. */
bool nbd_is_uri(const char *name)
{
	return scheme_of(name) || begins(name, "nbd+vsock://") || begins(name, "nbds+vsock://");
}

/* ---- Text -------------------------------------------------------------------------------------- */

static int hex(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	if (c >= 'A' && c <= 'F')
		return c - 'A' + 10;
	return -1;
}

/* The text of @len bytes with its %XX undone; free() it. NULL: not well formed, or out of memory. */
static char *plain(const char *text, size_t len)
{
	char *out = malloc(len + 1);
	size_t n = 0;

	for (size_t i = 0; out && i < len; i++) {
		int high = -1, low = -1;

		if (text[i] != '%') {
			out[n++] = text[i];
			continue;
		}
		if (i + 2 < len) {
			high = hex(text[i + 1]);
			low = hex(text[i + 2]);
		}
		/* A byte of 0 would end it early, as another name. */
		if (high < 0 || low < 0 || !(high | low)) {
			free(out);
			return NULL;
		}
		out[n++] = (char)(high << 4 | low);
		i += 2;
	}
	if (out)
		out[n] = '\0';
	return out;
}

static int bad_uri(struct why *why, const char *uri, const char *what)
{
	return refuse(why, -EINVAL, "%s: %s", uri, what);
}

static int take_export(struct nbd_place *place, const char *path, size_t len, const char *uri,
		       struct why *why)
{
	/* The slash belongs to the URI. */
	place->export = plain(path + (len > 0), len - (len > 0));
	if (!place->export)
		return bad_uri(why, uri, "the export's name is not well formed");
	if (strlen(place->export) > EXPORT_MAX)
		return bad_uri(why, uri, "the export's name is too long");
	return 0;
}

/* ---- A socket of a name ------------------------------------------------------------------------- */

/*
 * By way of its directory: that can be opened now and be walked through later, from within a jail and as
 * often as the server is started anew, and no path is too long for a socket's address.
 */
static int take_socket(struct nbd_place *place, char *path, const char *uri, struct why *why)
{
	struct sockaddr_un *un;
	char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;

	place->address = calloc(1, sizeof(*place->address));
	if (!place->address)
		return refuse(why, -ENOMEM, "out of memory");
	place->n = 1;
	if (slash == path)
		place->dir = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
	else if (slash)
		*slash = '\0', place->dir = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
	else
		place->dir = open(".", O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (place->dir < 0)
		return refuse(why, -errno, "%s: %s", uri, strerror(errno));
	un = (struct sockaddr_un *)(void *)&place->address->to;
	un->sun_family = AF_UNIX;
	if (snprintf(un->sun_path, sizeof(un->sun_path), "/proc/self/fd/%d/%s", place->dir, name) >=
	    (int)sizeof(un->sun_path))
		return bad_uri(why, uri, "the socket's name is too long");
	place->address->len = sizeof(*un);
	return 0;
}

/* ---- A host and a port -------------------------------------------------------------------------- */

static int look_up(struct nbd_place *place, const char *host, const char *port, const char *uri,
		   struct why *why)
{
	struct addrinfo hints = { .ai_socktype = SOCK_STREAM }, *found;
	size_t n = 0;
	int ret = getaddrinfo(*host ? host : "localhost", *port ? port : PORT, &hints, &found);

	if (ret)
		return refuse(why, -ENXIO, "%s: %s", uri,
			      ret == EAI_SYSTEM ? strerror(errno) : gai_strerror(ret));
	for (struct addrinfo *a = found; a; a = a->ai_next)
		n++;
	place->address = calloc(n, sizeof(*place->address));
	for (struct addrinfo *a = found; a && place->address; a = a->ai_next) {
		struct nbd_address *to = &place->address[place->n++];

		memcpy(&to->to, a->ai_addr, a->ai_addrlen);
		to->len = a->ai_addrlen;
	}
	freeaddrinfo(found);
	return place->address ? 0 : refuse(why, -ENOMEM, "out of memory");
}

/* getaddrinfo() takes any number for one, and cuts it off. */
static bool is_port(const char *text)
{
	size_t len = strspn(text, "0123456789");
	long n = len && len <= 5 ? strtol(text, NULL, 10) : 0;

	return !text[len] && n > 0 && n < 65536;
}

/* [HOST][:PORT]; it is cut into pieces. */
static int take_host(struct nbd_place *place, char *host, const char *uri, struct why *why)
{
	/* An address of IPv6 has colons of its own, and brackets around it. */
	char *close = *host == '[' ? strchr(host, ']') : NULL;
	char *port = strchr(close ? close : host, ':');

	if (*host == '[' && (!close || (close[1] && close[1] != ':')))
		return bad_uri(why, uri, "the address is not well formed");
	if (port)
		*port++ = '\0';
	if (close)
		*close = '\0';
	if (port && *port && !is_port(port))
		return bad_uri(why, uri, "the port is not well formed");
	return look_up(place, host + (close != NULL), port ? port : "", uri, why);
}

/* ---- Keys ---------------------------------------------------------------------------------------- */

/*
 * Read now, and held in memory: later on, as another user and in a jail, the file is out of reach, and libnbd wants a
 * name of it at each connection. Nobody but this process can follow the name that it gets.
 */
static int take_keys(struct nbd_place *place, const char *name, const char *uri, struct why *why)
{
	int fd = open(name, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	char keys[KEYS_MOST];
	ssize_t len = fd < 0 ? -1 : read(fd, keys, sizeof(keys));
	int ret = 0;

	if (len < 0)
		ret = refuse(why, -errno, "%s: %s: %s", uri, name, strerror(errno));
	else if (len == 0 || len == sizeof(keys))
		ret = bad_uri(why, uri, "the file of keys is empty, or too long to be one");
	if (fd >= 0)
		close(fd);
	if (ret)
		return ret;
	place->keys = memfd_create("uffd-serve-keys", MFD_CLOEXEC);
	if (place->keys < 0 || fchmod(place->keys, 0444) < 0 ||
	    write(place->keys, keys, (size_t)len) != len)
		ret = refuse(why, -errno, "%s: its keys cannot be kept: %s", uri, strerror(errno));
	explicit_bzero(keys, sizeof(keys));
	return ret;
}

/* ---- The parts of a URI -------------------------------------------------------------------------- */

/* Its parts, with their %XX undone; empty strings where there is nothing. */
struct parts {
	char *user, *host, *socket, *keys;
};

static void parts_free(struct parts *p)
{
	free(p->user);
	free(p->host);
	free(p->socket);
	free(p->keys);
}

/* KEY=VALUE, once, and each where it belongs. */
static int take_query(struct parts *p, const struct scheme *scheme, const char *query,
		      const char *uri, struct why *why)
{
	static const char socket[] = "socket=", keys[] = "tls-psk-file=";

	while (*query) {
		size_t len = strcspn(query, "&"), skip;
		char **to = NULL;

		if (scheme->named && begins(query, socket))
			skip = strlen(socket), to = &p->socket;
		else if (scheme->tls && begins(query, keys))
			skip = strlen(keys), to = &p->keys;
		if (!to || *to)
			return bad_uri(why, uri, scheme->wanted);
		*to = plain(query + skip, len - skip);
		if (!*to || !**to)
			return bad_uri(why, uri,
				       to == &p->socket
					       ? "the socket's name is not well formed"
					       : "the name of the keys is not well formed");
		query += len + (query[len] == '&');
	}
	return 0;
}

/* USER@HOST:PORT. */
static int take_authority(struct parts *p, const struct scheme *scheme, const char *text,
			  size_t len, const char *uri, struct why *why)
{
	const char *at = memchr(text, '@', len);
	size_t user = at ? (size_t)(at - text) : 0;

	/* Nobody is told a name in the clear. */
	if ((at != NULL) != scheme->tls)
		return bad_uri(why, uri, scheme->wanted);
	p->user = plain(text, user);
	text += at ? user + 1 : 0;
	len -= at ? user + 1 : 0;
	if (!p->user || (at && !*p->user))
		return bad_uri(why, uri, "the user's name is not well formed");
	if (scheme->named && len)
		return bad_uri(why, uri, "a socket has no host: nbd+unix:///EXPORT?socket=PATH");
	p->host = plain(text, len);
	return p->host ? 0 : bad_uri(why, uri, "the host's name is not well formed");
}

static int take_parts(struct nbd_place *place, struct parts *p, const char *uri, struct why *why)
{
	const struct scheme *scheme = scheme_of(uri);
	const char *start = uri + strlen(scheme->text), *path = start + strcspn(start, "/?#");
	size_t len = strcspn(path, "?#");
	int ret;

	if (path[len] == '#' || (path[len] && strchr(path + len, '#')) ||
	    (path[len] == '?') != (scheme->named || scheme->tls))
		return bad_uri(why, uri, scheme->wanted);
	ret = take_authority(p, scheme, start, (size_t)(path - start), uri, why);
	if (ret == 0)
		ret = take_export(place, path, len, uri, why);
	if (ret == 0)
		ret = take_query(p, scheme, path + len + (path[len] == '?'), uri, why);
	/* A key that both have, and no certificates: these would have to be held against a name, and an address has none. */
	if (ret == 0 && ((scheme->named && !p->socket) || (scheme->tls && !p->keys)))
		ret = bad_uri(why, uri, scheme->wanted);
	return ret;
}

/* ---- All of it ---------------------------------------------------------------------------------- */

int nbd_find(const char *uri, struct nbd_place *place, struct why *why)
{
	struct parts p = { NULL, NULL, NULL, NULL };
	int ret;

	*place = (struct nbd_place){ .dir = -1, .keys = -1 };
	if (!scheme_of(uri))
		return refuse(why, -EOPNOTSUPP,
			      "%s: only nbd:, nbds: and these with +unix can be served", uri);
	ret = take_parts(place, &p, uri, why);
	if (ret == 0 && p.keys)
		ret = take_keys(place, p.keys, uri, why);
	if (ret == 0)
		ret = p.socket ? take_socket(place, p.socket, uri, why)
			       : take_host(place, p.host, uri, why);
	if (ret == 0 && p.keys) {
		place->user = p.user;
		p.user = NULL;
	}
	parts_free(&p);
	if (ret)
		nbd_forget(place);
	return ret;
}

void nbd_forget(struct nbd_place *place)
{
	free(place->export);
	free(place->address);
	free(place->user);
	if (place->dir >= 0)
		close(place->dir);
	if (place->keys >= 0)
		close(place->keys);
	*place = (struct nbd_place){ .dir = -1, .keys = -1 };
}
