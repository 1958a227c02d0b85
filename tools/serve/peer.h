/* SPDX-License-Identifier: MIT */
/* Who is at the other end of a socket. A userfaultfd does not tell when its owner dies: a pidfd does. */
#ifndef SERVE_PEER_H
#define SERVE_PEER_H

#include <sys/types.h>

struct peer {
	pid_t pid; /* 0: in a pid namespace that we do not see into */
	uid_t uid;
	int pidfd;     /* readable when the process has exited; -1: there is none */
	char name[40]; /* "pid 123 (firecracker)" */
};

/* -ESRCH: it has exited already. Other errors leave a peer without a pidfd. */
int peer_of(int sock, struct peer *peer);
/* One that is known by its pidfd already, and who it was. */
void peer_named(struct peer *peer, pid_t pid, uid_t uid);
/* Another of the same. */
int peer_copy(const struct peer *from, struct peer *to);
void peer_close(struct peer *peer);

/* Whether two descriptors of ours are of one file: 1, 0, or a negative errno where the kernel does not tell. */
int same_file(int a, int b);

int peer_kill(const struct peer *peer);
/* Whether the peer itself has this file open: 1, 0, or a negative errno where that cannot be seen. */
int peer_holds(const struct peer *peer, int fd);

#endif
