/* SPDX-License-Identifier: MIT */
/* Sockets of a name, and those that systemd made for us. */
#include "serve.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "say.h"

#define SOCKETS 8
#define FIRST_PASSED 3 /* SD_LISTEN_FDS_START */
#define BACKLOG 1024

static struct {
	struct watch watch;
	bool asleep; /* there were no descriptors left */
} sockets[SOCKETS];
static size_t nsockets;
static struct serve *the_serve;

/* Names are in a directory that stays open: a jail has others. */
static struct {
	int sock, dir;
	dev_t dev; /* of what we made there, since it may be somebody else's by then */
	ino_t ino;
	char name[sizeof(((struct sockaddr_un *)0)->sun_path)];
} names[2];
static size_t nnames;

/* ---- A socket of a name --------------------------------------------------------------------- */

static bool somebody_listens(const struct sockaddr_un *address)
{
	int sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	bool yes = sock >= 0 &&
		   (connect(sock, (const struct sockaddr *)address, sizeof(*address)) == 0 ||
		    errno != ECONNREFUSED);

	if (sock >= 0)
		close(sock);
	return yes;
}

/* What an earlier server left when it was killed is taken away; nothing else is. */
static int bind_name(int sock, const struct sockaddr_un *address, struct why *why)
{
	const char *path = address->sun_path;
	struct stat st;

	if (bind(sock, (const struct sockaddr *)address, sizeof(*address)) == 0)
		return 0;
	if (errno != EADDRINUSE)
		return refuse(why, -errno, "%s: %s", path, strerror(errno));
	if (lstat(path, &st) < 0 || !S_ISSOCK(st.st_mode))
		return refuse(why, -EADDRINUSE, "%s is there already, and is no socket", path);
	if (somebody_listens(address))
		return refuse(why, -EADDRINUSE, "%s: somebody listens there already", path);
	if (unlink(path) < 0 || bind(sock, (const struct sockaddr *)address, sizeof(*address)) < 0)
		return refuse(why, -errno, "%s: %s", path, strerror(errno));
	return 0;
}

static void remember(int sock, const char *path)
{
	const char *slash = strrchr(path, '/');
	char *dir = slash ? strndup(path, (size_t)(slash - path + 1)) : strdup(".");
	struct stat st;

	if (!dir || nnames == sizeof(names) / sizeof(*names)) {
		free(dir);
		return;
	}
	names[nnames].sock = sock;
	names[nnames].dir = open(dir, O_PATH | O_DIRECTORY | O_CLOEXEC);
	snprintf(names[nnames].name, sizeof(names[nnames].name), "%s", slash ? slash + 1 : path);
	if (lstat(path, &st) == 0) {
		names[nnames].dev = st.st_dev;
		names[nnames].ino = st.st_ino;
	}
	nnames++;
	free(dir);
}

int listen_at(const char *path, mode_t mode, struct why *why)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int sock, ret;

	if (!*path || strlen(path) >= sizeof(address.sun_path))
		return refuse(why, -ENAMETOOLONG, "'%s' is no name for a socket: 1 to %zu bytes",
			      path, sizeof(address.sun_path) - 1);
	memcpy(address.sun_path, path, strlen(path));
	sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (sock < 0)
		return refuse(why, -errno, "socket: %s", strerror(errno));
	ret = bind_name(sock, &address, why);
	if (ret == 0) {
		remember(sock, path);
		/* Before it listens nobody can connect, whatever its mode was for a moment. */
		if ((mode != (mode_t)-1 && chmod(path, mode) < 0) || listen(sock, BACKLOG) < 0)
			ret = refuse(why, -errno, "%s: %s", path, strerror(errno));
	}
	if (ret) {
		listen_forget(sock);
		close(sock);
		return ret;
	}
	return sock;
}

void listen_forget(int sock)
{
	struct stat st;

	for (size_t i = 0; i < nnames; i++) {
		if (names[i].sock != sock)
			continue;
		if (fstatat(names[i].dir, names[i].name, &st, AT_SYMLINK_NOFOLLOW) == 0 &&
		    st.st_dev == names[i].dev && st.st_ino == names[i].ino)
			unlinkat(names[i].dir, names[i].name, 0);
		close(names[i].dir);
		names[i] = names[--nnames];
		return;
	}
}

/* ---- Those that monitors connect to --------------------------------------------------------- */

static void come(struct watch *w, uint32_t events)
{
	int sock = accept4(w->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

	(void)events;
	if (sock >= 0) {
		conn_new(the_serve, sock);
		return;
	}
	if (errno != EMFILE && errno != ENFILE && errno != ENOBUFS && errno != ENOMEM)
		return;
	/* Whoever waits there stays readable: until the next tick there is no use in looking. */
	for (size_t i = 0; i < nsockets; i++)
		if (&sockets[i].watch == w && !sockets[i].asleep) {
			say("error", NULL, 0, "cannot accept a connection: %s", strerror(errno));
			loop_unwatch(w);
			sockets[i].asleep = true;
		}
}

void listen_tick(void)
{
	for (size_t i = 0; i < nsockets; i++)
		if (sockets[i].asleep && loop_watch(&sockets[i].watch, EPOLLIN) == 0)
			sockets[i].asleep = false;
}

static int add(int sock, struct why *why)
{
	int ret;

	if (nsockets == SOCKETS)
		return refuse(why, -E2BIG, "more than %d sockets", SOCKETS);
	sockets[nsockets].watch.fd = sock;
	sockets[nsockets].watch.ready = come;
	ret = loop_watch(&sockets[nsockets].watch, EPOLLIN);
	if (ret)
		return refuse(why, ret, "socket: %s", strerror(-ret));
	nsockets++;
	return 0;
}

static int option_of(int sock, int option)
{
	int value = -1;
	socklen_t len = sizeof(value);

	return getsockopt(sock, SOL_SOCKET, option, &value, &len) < 0 ? -1 : value;
}

static int take_passed(int fd, struct why *why)
{
	if (option_of(fd, SO_DOMAIN) != AF_UNIX || option_of(fd, SO_TYPE) != SOCK_STREAM ||
	    option_of(fd, SO_ACCEPTCONN) != 1)
		return refuse(
			why, -EINVAL,
			"descriptor %d that was passed is not a Unix stream socket that listens",
			fd);
	if (fcntl(fd, F_SETFD, FD_CLOEXEC) < 0 || fcntl(fd, F_SETFL, O_NONBLOCK) < 0)
		return refuse(why, -errno, "descriptor %d: %s", fd, strerror(errno));
	return add(fd, why);
}

/* Whether the number that stands in the environment is one. */
static long number_of(const char *name)
{
	const char *text = getenv(name);
	char *end;
	long v;

	if (!text || !*text)
		return -1;
	v = strtol(text, &end, 10);
	return *end ? -1 : v;
}

/* A socket, or what systemd has kept for us. */
static int take_named(int fd, const char *name, struct why *why)
{
	if (!keep_is_name(name))
		return take_passed(fd, why);
	fcntl(fd, F_SETFD, FD_CLOEXEC);
	return keep_passed(name, fd);
}

/* They are not for children, of which there are none. */
static int take_all_passed(struct why *why)
{
	const char *named = getenv("LISTEN_FDNAMES");
	char *all = strdup(named ? named : ""), *rest = all;
	long n = number_of("LISTEN_FDS");
	int ret = all ? 0 : refuse(why, -ENOMEM, "out of memory");

	if (number_of("LISTEN_PID") != (long)getpid() || n < 0)
		n = 0;
	unsetenv("LISTEN_PID");
	unsetenv("LISTEN_FDS");
	unsetenv("LISTEN_FDNAMES");
	for (long i = 0; i < n && ret == 0; i++) {
		const char *name = strsep(&rest, ":");

		ret = take_named(FIRST_PASSED + (int)i, name ? name : "", why);
	}
	free(all);
	return ret;
}

int listen_open(struct serve *sv, struct why *why)
{
	int ret = take_all_passed(why), sock;

	the_serve = sv;
	if (ret == 0 && sv->o.socket) {
		sock = listen_at(sv->o.socket, sv->o.socket_mode, why);
		ret = sock < 0 ? sock : add(sock, why);
	}
	if (ret == 0 && !nsockets)
		ret = refuse(why, -EINVAL, "--socket is wanted, or a socket from systemd");
	return ret;
}

void listen_close(void)
{
	while (nsockets) {
		struct watch *w = &sockets[--nsockets].watch;

		if (!sockets[nsockets].asleep)
			loop_unwatch(w);
		listen_forget(w->fd);
		close(w->fd);
	}
}
