/* SPDX-License-Identifier: MIT */
/* Telling systemd, or whoever else set NOTIFY_SOCKET: a datagram of assignments, and no library for it. */
#include "serve.h"

#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static int sock = -1;
static uint64_t watchdog;

uint64_t notify_watchdog(void)
{
	return watchdog;
}

/* Half of what it allows. The variable may be meant for another process. */
static void find_watchdog(void)
{
	const char *usec = getenv("WATCHDOG_USEC"), *pid = getenv("WATCHDOG_PID");

	if (usec && (!pid || strtol(pid, NULL, 10) == (long)getpid()))
		watchdog = strtoull(usec, NULL, 10) * 1000 / 2;
	unsetenv("WATCHDOG_USEC");
	unsetenv("WATCHDOG_PID");
}

/* Connected now: from within a jail it is out of reach. */
int notify_open(struct why *why)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	const char *path = getenv("NOTIFY_SOCKET");
	size_t len = path ? strlen(path) : 0;

	if (!len)
		return 0;
	if ((*path != '/' && *path != '@') || len < 2 || len > sizeof(address.sun_path))
		return refuse(why, -EINVAL, "NOTIFY_SOCKET=%s is no address", path);
	memcpy(address.sun_path, path, len);
	if (*path == '@')
		address.sun_path[0] = '\0';
	sock = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (sock < 0 || connect(sock, (struct sockaddr *)&address,
				(socklen_t)(offsetof(struct sockaddr_un, sun_path) + len)) < 0)
		return refuse(why, -errno, "NOTIFY_SOCKET=%s: %s", path, strerror(errno));
	find_watchdog();
	unsetenv("NOTIFY_SOCKET");
	return 0;
}

void notify(const char *format, ...)
{
	char text[512];
	va_list args;

	if (sock < 0)
		return;
	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	/* It is told for its own sake: whether it hears is its own affair. */
	if (send(sock, text, strlen(text), MSG_NOSIGNAL | MSG_DONTWAIT) < 0)
		return;
}

bool notify_is_on(void)
{
	return sock >= 0;
}

int notify_fds(const char *text, const int *fds, size_t n)
{
	union {
		struct cmsghdr head;
		unsigned char space[CMSG_SPACE(8 * sizeof(int))];
	} control;
	struct iovec iov = { (void *)(uintptr_t)text, strlen(text) };
	struct msghdr msg = { .msg_iov = &iov,
			      .msg_iovlen = 1,
			      .msg_control = &control,
			      .msg_controllen = CMSG_SPACE(n * sizeof(int)) };

	memset(&control, 0, sizeof(control));
	control.head.cmsg_level = SOL_SOCKET;
	control.head.cmsg_type = SCM_RIGHTS;
	control.head.cmsg_len = CMSG_LEN(n * sizeof(int));
	memcpy(CMSG_DATA(&control.head), fds, n * sizeof(int));
	return sendmsg(sock, &msg, MSG_NOSIGNAL) < 0 ? -errno : 0;
}

void notify_close(void)
{
	if (sock >= 0)
		close(sock);
	sock = -1;
}
