/* SPDX-License-Identifier: MIT */
/* Where figures are asked for: a file that is kept up to date, a socket that answers, a terminal's last line. */
#include "serve.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "say.h"

#define ASKERS_MOST 16
#define ASKED_MOST 4096 /* bytes of a request */
#define PATIENCE (5 * SECOND)

/* One who has connected. */
struct asker {
	struct asker *next;
	struct watch watch;
	uint64_t until;
	char asked[ASKED_MOST + 1];
	size_t len;
	char *answer; /* NULL: not asked yet */
	size_t left, done;
};

static struct {
	struct serve *serve;
	struct watch listener;
	struct asker *askers;
	size_t n;

	int dir; /* of the file */
	char name[256], fresh[264];
	enum stats_form form;
	bool complained;

	bool terminal;
	struct libuffd_stats before;
	uint64_t before_ns;
} report = { .listener.fd = -1, .dir = -1 };

/* ---- The socket ----------------------------------------------------------------------------- */

static void asker_end(struct asker *a)
{
	struct asker **at = &report.askers;

	while (*at != a)
		at = &(*at)->next;
	*at = a->next;
	report.n--;
	loop_unwatch(&a->watch);
	close(a->watch.fd);
	free(a->answer);
	free(a);
}

/* 1: it has been asked; 0: not yet. What is no HTTP is a line, which may be empty or cut off. */
static bool has_asked(const struct asker *a, bool end)
{
	if (end || a->len == ASKED_MOST)
		return true;
	if (strncmp(a->asked, "GET ", a->len < 4 ? a->len : 4) == 0)
		return strstr(a->asked, "\r\n\r\n") || strstr(a->asked, "\n\n");
	return strchr(a->asked, '\n');
}

static char *answer_to(const char *asked)
{
	bool http = strncmp(asked, "GET ", 4) == 0;
	size_t line = strcspn(asked, "\r\n");
	enum stats_form form = STATS_JSON;
	char *body, *all = NULL;

	if (http && strncmp(asked + 4, "/metrics", 8) == 0)
		form = STATS_PROMETHEUS;
	if (!http && line == strlen("prometheus") && strncmp(asked, "prometheus", line) == 0)
		form = STATS_PROMETHEUS;
	body = stats_text(report.serve, form);
	if (!http || !body)
		return body;
	if (asprintf(&all,
		     "HTTP/1.0 200 OK\r\nContent-Type: %s\r\nContent-Length: %zu\r\n"
		     "Connection: close\r\n\r\n%s",
		     form == STATS_JSON ? "application/json" : "text/plain; version=0.0.4",
		     strlen(body), body) < 0)
		all = NULL;
	free(body);
	return all;
}

/* As much as goes; the rest when there is room. */
static void answer_on(struct asker *a)
{
	ssize_t n = send(a->watch.fd, a->answer + a->done, a->left, MSG_NOSIGNAL | MSG_DONTWAIT);

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n < 0) {
		asker_end(a);
		return;
	}
	a->done += (size_t)n;
	a->left -= (size_t)n;
	if (!a->left)
		asker_end(a);
}

static void asker_ready(struct watch *w, uint32_t events)
{
	struct asker *a = container_of(w, struct asker, watch);
	ssize_t n;

	(void)events;
	if (a->answer) {
		answer_on(a);
		return;
	}
	n = recv(w->fd, a->asked + a->len, ASKED_MOST - a->len, MSG_DONTWAIT);
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n < 0) {
		asker_end(a);
		return;
	}
	a->len += (size_t)n;
	if (!has_asked(a, n == 0))
		return;
	a->answer = answer_to(a->asked);
	loop_unwatch(w);
	if (!a->answer || loop_watch(w, EPOLLOUT) < 0) {
		asker_end(a);
		return;
	}
	a->left = strlen(a->answer);
	answer_on(a);
}

static void somebody_asks(struct watch *w, uint32_t events)
{
	int sock = accept4(w->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	struct asker *a;

	(void)events;
	if (sock < 0)
		return;
	a = report.n < ASKERS_MOST ? calloc(1, sizeof(*a)) : NULL;
	if (!a) {
		close(sock);
		return;
	}
	a->watch.fd = sock;
	a->watch.ready = asker_ready;
	a->until = now_ns() + PATIENCE;
	a->next = report.askers;
	report.askers = a;
	report.n++;
	if (loop_watch(&a->watch, EPOLLIN) < 0)
		asker_end(a);
}

static int open_socket(const char *path, struct why *why)
{
	int ret;

	report.listener.fd = listen_at(path, report.serve->o.socket_mode, why);
	report.listener.ready = somebody_asks;
	if (report.listener.fd < 0)
		return report.listener.fd;
	ret = loop_watch(&report.listener, EPOLLIN);
	return ret ? refuse(why, ret, "%s: %s", path, strerror(-ret)) : 0;
}

/* ---- The file ------------------------------------------------------------------------------- */

/* Whoever reads it sees one moment's figures or another's, never a part. */
static int write_file(void)
{
	char *text = stats_text(report.serve, report.form);
	size_t len = text ? strlen(text) : 0;
	int fd, ret = 0;

	if (!text)
		return -ENOMEM;
	fd = openat(report.dir, report.fresh, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW,
		    0644);
	if (fd < 0 || write(fd, text, len) != (ssize_t)len)
		ret = fd < 0 || errno ? -errno : -ENOSPC;
	if (fd >= 0)
		close(fd);
	free(text);
	if (ret == 0 && renameat(report.dir, report.fresh, report.dir, report.name) < 0)
		ret = -errno;
	return ret;
}

static int open_file(const char *path, struct why *why)
{
	const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
	char *dir = slash ? strndup(path, (size_t)(slash - path + 1)) : strdup(".");
	size_t len = strlen(name);
	int ret = 0;

	if (!dir)
		return refuse(why, -ENOMEM, "out of memory");
	report.dir = open(dir, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (!len || len >= sizeof(report.name))
		ret = refuse(why, -EINVAL, "--stats %s: this is no name for a file", path);
	else if (report.dir < 0)
		ret = refuse(why, -errno, "%s: %s", path, strerror(errno));
	free(dir);
	if (ret)
		return ret;
	snprintf(report.name, sizeof(report.name), "%s", name);
	snprintf(report.fresh, sizeof(report.fresh), "%s.new", name);
	report.form = len > 5 && strcmp(name + len - 5, ".prom") == 0 ? STATS_PROMETHEUS
								      : STATS_JSON;
	return 0;
}

int report_start(struct serve *sv, struct why *why)
{
	int ret = report.dir >= 0 ? write_file() : 0;

	return ret ? refuse(why, ret, "--stats %s: %s", sv->o.stats, strerror(-ret)) : 0;
}

static void keep_file(void)
{
	int ret = write_file();

	if (ret && !report.complained)
		say("error", NULL, 0, "--stats %s: %s", report.serve->o.stats, strerror(-ret));
	report.complained = ret != 0;
}

/* ---- The terminal --------------------------------------------------------------------------- */

static void progress(void)
{
	const struct serve *sv = report.serve;
	struct libuffd_stats s = stats_all(sv);
	uint64_t now = now_ns(), since[LIBUFFD_LATENCY_BUCKETS], p99;
	double seconds = (double)(now - report.before_ns) / 1e9;
	struct winsize size = { .ws_col = 80 };
	char line[160], latency[40] = "-";

	for (size_t i = 0; i < LIBUFFD_LATENCY_BUCKETS; i++)
		since[i] = s.latency[i] - report.before.latency[i];
	p99 = stats_p99(since);
	if (p99)
		snprintf(latency, sizeof(latency), "< %.0f us", (double)p99 / 1e3);
	snprintf(line, sizeof(line),
		 "%zu VMs  %" PRIu64 " of %" PRIu64 " pages  %.1f MiB  %.0f faults/s  p99 %s",
		 vm_count(sv, VM_SERVED) + vm_count(sv, VM_COMPLETE), s.pages_present, s.pages,
		 (double)s.bytes / 1048576,
		 (double)(s.faults_missing - report.before.faults_missing) / seconds, latency);
	/* One that is wrapped could not be taken away again. */
	ioctl(STDERR_FILENO, TIOCGWINSZ, &size);
	if (size.ws_col > 1 && size.ws_col < sizeof(line))
		line[size.ws_col - 1] = '\0';
	say_progress(line);
	report.before = s;
	report.before_ns = now;
}

/* ---- All of it ------------------------------------------------------------------------------ */

int report_open(struct serve *sv, struct why *why)
{
	const char *to = sv->o.stats;

	report.serve = sv;
	report.before_ns = now_ns();
	report.terminal = !sv->o.json && !sv->o.quiet && isatty(STDERR_FILENO);
	if (!to)
		return 0;
	return strncmp(to, "unix:", 5) == 0 ? open_socket(to + 5, why) : open_file(to, why);
}

void report_tick(struct serve *sv)
{
	uint64_t now = now_ns();

	(void)sv;
	for (struct asker *a = report.askers, *next; a; a = next) {
		next = a->next;
		if (a->until <= now)
			asker_end(a);
	}
	if (report.dir >= 0)
		keep_file();
	if (report.terminal)
		progress();
}

void report_close(struct serve *sv)
{
	if (report.terminal)
		say_progress("");
	while (report.askers)
		asker_end(report.askers);
	if (report.listener.fd >= 0) {
		loop_unwatch(&report.listener);
		listen_forget(report.listener.fd);
		close(report.listener.fd);
	}
	if (report.dir >= 0) {
		if (sv->server)
			keep_file();
		close(report.dir);
	}
}
