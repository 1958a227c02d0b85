/* SPDX-License-Identifier: MIT */
#include "peer.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/kcmp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77 /* 6.5 */
#endif

/* The socket knows the process itself (6.5). By number it may be another's by now, which none has noticed yet. */
static int open_pidfd(int sock, pid_t pid)
{
	int fd = -1;
	socklen_t len = sizeof(fd);

	if (getsockopt(sock, SOL_SOCKET, SO_PEERPIDFD, &fd, &len) == 0)
		return fd;
	if (errno == ESRCH)
		return -ESRCH;
	fd = (int)syscall(SYS_pidfd_open, pid, 0); /* 5.3 */
	return fd < 0 ? -errno : fd;
}

/* What the process calls itself, for people only: it may be anything, but is printed as one word. */
static void find_name(struct peer *peer)
{
	char path[64], comm[20] = "";
	ssize_t n = -1;
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/comm", (int)peer->pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd >= 0) {
		n = read(fd, comm, sizeof(comm) - 1);
		close(fd);
	}
	comm[n > 0 ? n : 0] = '\0';
	comm[strcspn(comm, "\n")] = '\0';
	for (char *c = comm; *c; c++)
		if (*c <= ' ' || *c > '~')
			*c = '?';
	if (*comm)
		snprintf(peer->name, sizeof(peer->name), "pid %d (%s)", (int)peer->pid, comm);
	else
		snprintf(peer->name, sizeof(peer->name), "pid %d", (int)peer->pid);
}

int peer_of(int sock, struct peer *peer)
{
	struct ucred cred = { 0 };
	socklen_t len = sizeof(cred);

	memset(peer, 0, sizeof(*peer));
	peer->pidfd = -1;
	if (getsockopt(sock, SOL_SOCKET, SO_PEERCRED, &cred, &len) < 0)
		return -errno;
	peer->pid = cred.pid;
	peer->uid = cred.uid;
	if (peer->pid <= 0) {
		peer->pid = 0;
		snprintf(peer->name, sizeof(peer->name), "a process that is not seen");
		return 0;
	}
	peer->pidfd = open_pidfd(sock, peer->pid);
	find_name(peer);
	return peer->pidfd == -ESRCH ? -ESRCH : 0;
}

void peer_named(struct peer *peer, pid_t pid, uid_t uid)
{
	peer->pid = pid;
	peer->uid = uid;
	if (pid > 0)
		find_name(peer);
}

int peer_copy(const struct peer *from, struct peer *to)
{
	*to = *from;
	if (from->pidfd < 0)
		return 0;
	to->pidfd = fcntl(from->pidfd, F_DUPFD_CLOEXEC, 0);
	return to->pidfd < 0 ? -errno : 0;
}

void peer_close(struct peer *peer)
{
	if (peer->pidfd >= 0)
		close(peer->pidfd);
	peer->pidfd = -1;
}

int peer_kill(const struct peer *peer)
{
	if (peer->pidfd < 0)
		return -ESRCH;
	return syscall(SYS_pidfd_send_signal, peer->pidfd, SIGKILL, NULL, 0) < 0 ? -errno : 0;
}

/* ---- What it has open ------------------------------------------------------------------------- */

static int is_theirs(pid_t pid, int theirs, int ours)
{
	long ret = syscall(SYS_kcmp, getpid(), pid, KCMP_FILE, ours, theirs);

	if (ret < 0)
		return errno == EBADF ? 0 : -errno; /* closed meanwhile */
	return ret == 0;
}

int same_file(int a, int b)
{
	return is_theirs(getpid(), a, b);
}

static bool is_userfaultfd(int dir, const char *name)
{
	char to[32];
	ssize_t n = readlinkat(dir, name, to, sizeof(to) - 1);

	to[n > 0 ? n : 0] = '\0';
	return strcmp(to, "anon_inode:[userfaultfd]") == 0;
}

int peer_holds(const struct peer *peer, int fd)
{
	char path[64];
	struct dirent *e;
	int ret = 0;
	DIR *dir;

	if (peer->pid <= 0)
		return -ESRCH;
	snprintf(path, sizeof(path), "/proc/%d/fd", (int)peer->pid);
	dir = opendir(path);
	if (!dir)
		return -errno;
	while (ret == 0 && (e = readdir(dir)))
		if (*e->d_name != '.' && is_userfaultfd(dirfd(dir), e->d_name))
			ret = is_theirs(peer->pid, (int)strtol(e->d_name, NULL, 10), fd);
	closedir(dir);
	return ret;
}
