/* SPDX-License-Identifier: MIT */
#include "nbd.h"

#include <endian.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>

#include "rig.h"

#define MAGIC UINT64_C(0x4e42444d41474943)
#define OPTION UINT64_C(0x49484156454f5054)
#define OPTION_REPLY UINT64_C(0x3e889045565a9)
#define REQUEST 0x25609513u
#define CHUNK 0x668e33efu

enum { OPT_GO = 7, OPT_STRUCTURED = 8 };
enum { REP_ACK = 1, REP_INFO = 3 };
#define REP_UNSUP 0x80000001u
enum { CMD_READ = 0 };
enum { CHUNK_DATA = 1, CHUNK_HOLE = 2 };

static pid_t server;

/* ---- Numbers on the wire ------------------------------------------------------------------------------- */

static void put(int sock, const void *bytes, size_t len)
{
	const char *at = bytes;

	while (len) {
		ssize_t n = send(sock, at, len, MSG_NOSIGNAL);

		if (n <= 0)
			_exit(0);
		at += n;
		len -= (size_t)n;
	}
}

static void put16(int sock, uint16_t v)
{
	v = htobe16(v);
	put(sock, &v, sizeof(v));
}

static void put32(int sock, uint32_t v)
{
	v = htobe32(v);
	put(sock, &v, sizeof(v));
}

static void put64(int sock, uint64_t v)
{
	v = htobe64(v);
	put(sock, &v, sizeof(v));
}

static void get(int sock, void *bytes, size_t len)
{
	if (len && recv(sock, bytes, len, MSG_WAITALL) != (ssize_t)len)
		_exit(0);
}

static uint32_t get32(int sock)
{
	uint32_t v;

	get(sock, &v, sizeof(v));
	return be32toh(v);
}

static uint64_t get64(int sock)
{
	uint64_t v;

	get(sock, &v, sizeof(v));
	return be64toh(v);
}

/* ---- The conversation ----------------------------------------------------------------------------------- */

static void option_reply(int sock, uint32_t option, uint32_t type, uint32_t len)
{
	put64(sock, OPTION_REPLY);
	put32(sock, option);
	put32(sock, type);
	put32(sock, len);
}

/* True: the export was chosen. */
static bool answer_option(int sock, uint64_t len)
{
	char data[4096];
	uint32_t option, n;

	if (get64(sock) != OPTION)
		_exit(0);
	option = get32(sock);
	n = get32(sock);
	if (n > sizeof(data))
		_exit(0);
	get(sock, data, n);
	if (option == OPT_STRUCTURED) {
		option_reply(sock, option, REP_ACK, 0);
	} else if (option == OPT_GO) {
		option_reply(sock, option, REP_INFO, 12);
		put16(sock, 0);
		put64(sock, len);
		put16(sock, 1); /* it has flags, and none is set */
		option_reply(sock, option, REP_ACK, 0);
	} else {
		option_reply(sock, option, REP_UNSUP, 0);
	}
	return option == OPT_GO;
}

static void chunk(int sock, bool last, uint16_t type, uint64_t cookie, uint64_t offset,
		  uint32_t len)
{
	put32(sock, CHUNK);
	put16(sock, last);
	put16(sock, type);
	put64(sock, cookie);
	put32(sock, type == CHUNK_HOLE ? 12 : 8 + len);
	put64(sock, offset);
	if (type == CHUNK_HOLE)
		put32(sock, len);
}

static void answer_read(int sock, enum strange how, uint64_t cookie, uint64_t offset, uint32_t len)
{
	char *bytes = malloc(len);

	memset(bytes, 0x5a, len);
	if (how == STRANGE_HOLES) {
		chunk(sock, true, CHUNK_HOLE, cookie, offset, len);
	} else if (how == STRANGE_MIXED) {
		chunk(sock, false, CHUNK_HOLE, cookie, offset, len / 2);
		chunk(sock, true, CHUNK_DATA, cookie, offset + len / 2, len - len / 2);
		put(sock, bytes, len - len / 2);
	} else if (how == STRANGE_HALF) {
		chunk(sock, true, CHUNK_DATA, cookie, offset, len / 2);
		put(sock, bytes, len / 2);
	} else if (how == STRANGE_BREAKS_OFF) {
		chunk(sock, true, CHUNK_DATA, cookie, offset, len);
		put(sock, bytes, len / 2);
		_exit(0);
	} else {
		put64(sock, 0x1234567812345678);
		put64(sock, cookie);
	}
	free(bytes);
}

static void talk(int sock, enum strange how, uint64_t len)
{
	char byte;

	if (how == STRANGE_NO_NBD)
		put(sock, "220 mail.example.org ready\r\n", 28);
	if (how == STRANGE_NO_NBD || how == STRANGE_MUTE) {
		while (recv(sock, &byte, 1, 0) > 0)
			;
		return;
	}
	put64(sock, MAGIC);
	put64(sock, OPTION);
	put16(sock, 3);
	get32(sock);
	while (!answer_option(sock, how == STRANGE_EMPTY ? 0 : len))
		;
	for (;;) {
		uint32_t what[2];
		uint64_t cookie, offset;

		get(sock, what, sizeof(what));
		cookie = get64(sock);
		offset = get64(sock);
		if (be32toh(what[0]) != REQUEST || (be32toh(what[1]) & 0xffff) != CMD_READ)
			return;
		answer_read(sock, how, cookie, offset, get32(sock));
	}
}

/* A process for each connection, so that one may end as it likes. */
static void accept_all(int listener, enum strange how, uint64_t len)
{
	signal(SIGCHLD, SIG_IGN);
	for (;;) {
		int sock = accept(listener, NULL, NULL);

		if (sock < 0)
			_exit(1);
		if (fork() == 0) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			talk(sock, how, len);
			_exit(0);
		}
		close(sock);
	}
}

void strange_nbd(const char *path, enum strange how, uint64_t len)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	int sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	unlink(path);
	assert_true(strlen(path) < sizeof(addr.sun_path));
	memcpy(addr.sun_path, path, strlen(path));
	assert_int_equal(bind(sock, (void *)&addr, sizeof(addr)), 0);
	assert_int_equal(listen(sock, 16), 0);
	fflush(stdout);
	server = fork();
	assert_true(server >= 0);
	if (server == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		accept_all(sock, how, len);
	}
	close(sock);
}

void strange_nbd_end(void)
{
	if (server > 0) {
		kill(server, SIGKILL);
		waitpid(server, NULL, 0);
	}
	server = 0;
}
