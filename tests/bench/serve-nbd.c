/* SPDX-License-Identifier: MIT */
/* nbdkit, and a way to it that takes its time. */
#include "serve-bench.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* ---- nbdkit ------------------------------------------------------------------------------------ */

static void run_nbdkit(const char *delay)
{
	char rdelay[64];
	const char *argv[16] = {
		"nbdkit", "-f", "-r", "-U", scratch(FILE_NBD), "-P", scratch(FILE_NBD_READY)
	};
	size_t n = 7;

	if (delay)
		argv[n++] = "--filter=delay";
	argv[n++] = "file";
	argv[n++] = scratch(FILE_MEMORY);
	if (delay) {
		snprintf(rdelay, sizeof(rdelay), "rdelay=%s", delay);
		argv[n++] = rdelay;
	}
	execvp(argv[0], (char *const *)(uintptr_t)argv);
	_exit(127);
}

const char *nbdkit_begin(pid_t *kit, int cpu, const char *delay)
{
	struct timespec ms = { 0, 1000000 };
	int status;

	unlink(scratch(FILE_NBD));
	unlink(scratch(FILE_NBD_READY));
	*kit = child(cpu);
	if (*kit == 0)
		run_nbdkit(delay);
	while (access(scratch(FILE_NBD_READY), F_OK)) {
		if (waitpid(*kit, &status, WNOHANG) == *kit)
			return WIFEXITED(status) && WEXITSTATUS(status) == 127
				       ? "nbdkit is not installed"
				       : "nbdkit does not start";
		nanosleep(&ms, NULL);
	}
	return NULL;
}

/* ---- The way ----------------------------------------------------------------------------------- */

/*
 * Whatever a client sends arrives later by a fixed time, as over a network: many requests are on their way together.
 * Answers pass at once.
 */
#define CONNECTIONS 16
#define PIECES 1024 /* on their way at a time, of one connection */
#define PIECE 4096

struct piece {
	double due;
	size_t len;
	char bytes[PIECE];
};

struct connection {
	int client, server;
	unsigned int head, tail;
	struct piece piece[PIECES];
};

static struct connection connections[CONNECTIONS];
static size_t nconnections;

static struct sockaddr_un address(const char *path)
{
	struct sockaddr_un un = { .sun_family = AF_UNIX };

	if (strlen(path) >= sizeof(un.sun_path))
		die("%s is too long for a socket's name; --dir chooses another", path);
	memcpy(un.sun_path, path, strlen(path));
	return un;
}

static void accept_one(int listener)
{
	struct sockaddr_un to = address(scratch(FILE_NBD));
	struct connection *c = &connections[nconnections];
	int client = accept(listener, NULL, NULL);

	if (client < 0 || nconnections == CONNECTIONS)
		die("the way has too many connections");
	c->client = client;
	c->server = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (c->server < 0 || connect(c->server, (const struct sockaddr *)&to, sizeof(to)))
		die("nbdkit: %s", strerror(errno));
	c->head = c->tail = 0;
	nconnections++;
}

static void end_one(size_t i)
{
	close(connections[i].client);
	close(connections[i].server);
	connections[i] = connections[--nconnections];
}

/* False: it has ended. */
static bool send_all(int sock, const char *bytes, size_t len)
{
	while (len) {
		ssize_t n = send(sock, bytes, len, MSG_NOSIGNAL);

		if (n <= 0)
			return false;
		bytes += n;
		len -= (size_t)n;
	}
	return true;
}

static bool from_client(struct connection *c, int64_t ns)
{
	struct piece *p = &c->piece[c->tail % PIECES];
	ssize_t n = recv(c->client, p->bytes, PIECE, 0);

	if (n <= 0)
		return false;
	p->len = (size_t)n;
	p->due = now() + (double)ns;
	c->tail++;
	return true;
}

static bool from_server(struct connection *c)
{
	char bytes[65536];
	ssize_t n = recv(c->server, bytes, sizeof(bytes), 0);

	return n > 0 && send_all(c->client, bytes, (size_t)n);
}

/* What is due goes on. *@next: when more is. */
static bool deliver(struct connection *c, double *next)
{
	for (; c->head != c->tail; c->head++) {
		struct piece *p = &c->piece[c->head % PIECES];

		if (p->due > now()) {
			if (p->due < *next)
				*next = p->due;
			break;
		}
		if (!send_all(c->server, p->bytes, p->len))
			return false;
	}
	return true;
}

static void turn(int listener, int64_t ns)
{
	struct pollfd p[1 + 2 * CONNECTIONS] = { { .fd = listener, .events = POLLIN } };
	double next = now() + 9e8, wait;
	size_t n = nconnections;
	struct timespec ts;

	for (size_t i = 0; i < n; i++) {
		const struct connection *c = &connections[i];
		bool full = c->tail - c->head == PIECES;

		p[1 + 2 * i] = (struct pollfd){ c->client, full ? 0 : POLLIN, 0 };
		p[2 + 2 * i] = (struct pollfd){ c->server, POLLIN, 0 };
		if (c->head != c->tail && c->piece[c->head % PIECES].due < next)
			next = c->piece[c->head % PIECES].due;
	}
	wait = next - now();
	ts.tv_sec = 0;
	ts.tv_nsec = wait > 0 ? (long)wait : 0;
	if (ppoll(p, 1 + 2 * n, &ts, NULL) < 0)
		die("ppoll: %s", strerror(errno));
	for (size_t i = n; i-- > 0;) {
		struct connection *c = &connections[i];
		bool there = deliver(c, &next);

		if (there && p[1 + 2 * i].revents & (POLLIN | POLLHUP))
			there = from_client(c, ns);
		if (there && p[2 + 2 * i].revents)
			there = from_server(c);
		if (!there)
			end_one(i);
	}
	if (p[0].revents)
		accept_one(listener);
}

pid_t slow_way_begin(int cpu, int64_t ns)
{
	struct sockaddr_un at = address(scratch(FILE_SLOW));
	int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	pid_t pid;

	unlink(scratch(FILE_SLOW));
	if (listener < 0 || bind(listener, (const struct sockaddr *)&at, sizeof(at)) ||
	    listen(listener, CONNECTIONS))
		die("%s: %s", scratch(FILE_SLOW), strerror(errno));
	pid = child(cpu);
	if (pid == 0) {
		prctl(PR_SET_TIMERSLACK, 1UL);
		for (;;)
			turn(listener, ns);
	}
	close(listener);
	return pid;
}
