/* SPDX-License-Identifier: MIT */
/* The command line. */
#ifndef SERVE_OPTIONS_H
#define SERVE_OPTIONS_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

enum on_error { ON_ERROR_POISON, ON_ERROR_KILL, ON_ERROR_FAIL };

enum { EXIT_SERVED, EXIT_TROUBLE, EXIT_USAGE };

struct options {
	const char *socket, *memory, *record, *replay, *stats, *user, *group, *chroot, *keepalive;
	mode_t socket_mode; /* (mode_t)-1: as the umask has it */
	enum on_error on_error;
	uint32_t engine, threads, depth, retries;
	uint64_t window, prefetch; /* bytes */
	bool fill;
	uint64_t fill_rate; /* bytes a second; 0: as fast as it goes */
	uint64_t handshake_ns, drain_ns;
	uint32_t nbd_connections;
	uint64_t nbd_timeout_ns;
	bool json, quiet;
};

const char *on_error_name(enum on_error policy);
/* 0: go on; or 1, with what to exit with in *@status. */
int options_parse(int argc, char **argv, struct options *o, int *status);

#endif
