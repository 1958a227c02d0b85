/* SPDX-License-Identifier: MIT */
/* uffd-serve and those who run it: what it says, how it is started, whom it becomes. */
#include <fcntl.h>
#include <poll.h>
#include <pty.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>

#include "rig.h"

#define PAGES 64
#define NOBODY 65534

static struct vmm *with_a_machine(const char *option, const char *value)
{
	struct vmm *v;

	serve(memory_file("mem", PAGES), option, value);
	v = vmm("version=1.12");
	vmm_join(v);
	return v;
}

/* ---- Figures ------------------------------------------------------------------------------------------- */

static void figures_are_true(void **state)
{
	const char *text;
	struct vmm *v;

	(void)state;
	v = with_a_machine(NULL, NULL);
	for (size_t i = 0; i < 10; i++)
		expect_ok(v, "touch %zu 1 1", i * 6);
	wait_present(10);
	text = figures();
	assert_int_equal(figure_in(text, "format"), 1);
	assert_int_equal(figure_in(text, "ever"), 1);
	text = strstr(text, "\"total\"");
	assert_int_equal(figure_in(text, "pages"), PAGES);
	assert_int_equal(figure_in(text, "pages_present"), 10);
	/* Whoever is interrupted asks twice. */
	assert_true(figure_in(text, "faults") >= 10);
	assert_int_equal(figure_in(text, "installed"), 10);
	assert_int_equal(figure_in(text, "bytes"), 10 * page_size());
	assert_true(figure_in(text, "max") > 0);
	assert_true(figure_in(text, "p99") >= figure_in(text, "p50"));
	vmm_kill(v);
	expect_said("gone");
	/* What it did is remembered; its pages are nobody's. */
	text = figures();
	assert_int_equal(figure_in(text, "installed"), 10);
	assert_int_equal(figure_in(text, "pages"), 0);
	assert_int_equal(figure_in(text, "served"), 0);
}

/* The server forgets a region that is complete; the figures do not. */
static void what_is_complete_still_counts(void **state)
{
	struct vmm *v;

	(void)state;
	v = with_a_machine(NULL, NULL);
	expect_ok(v, "touch 0 %d 2", PAGES / 2);
	wait_present(PAGES / 2);
	assert_int_equal(figure_in(figures(), "pages"), PAGES);
	expect_ok(v, "touch 0 %d 2", PAGES);
	expect_said("complete");
	wait_present(PAGES);
	assert_int_equal(figure_in(figures(), "complete"), 1);
}

/* Until the file has these words; what it holds is complete at any time. */
static void wait_for_words(const char *path, const char *words, const char *end)
{
	static char text[1 << 16];

	for (int i = 0; i < 1200000; i++) {
		int fd = open(path, O_RDONLY | O_CLOEXEC);
		ssize_t n = fd < 0 ? 0 : read(fd, text, sizeof(text) - 1);

		if (fd >= 0)
			close(fd);
		text[n > 0 ? n : 0] = '\0';
		if (n > 0)
			assert_string_equal(text + n - strlen(end), end);
		if (strstr(text, words))
			return;
		sched_yield();
	}
	fail_msg("'%s' does not come to be in %s: %s", words, path, text);
}

static void a_file_has_the_figures(void **state)
{
	struct vmm *v;

	(void)state;
	v = with_a_machine("--stats", rig_path("stats.json"));
	expect_ok(v, "touch 0 5 1");
	wait_for_words(rig_path("stats.json"), "\"pages_present\":5", "}\n");
	vmm_kill(v);
	wait_for_words(rig_path("stats.json"), "\"served\":0", "}\n");
}

static void a_file_has_them_for_prometheus(void **state)
{
	struct vmm *v;

	(void)state;
	v = with_a_machine("--stats", rig_path("stats.prom"));
	expect_ok(v, "touch 0 5 1");
	wait_for_words(rig_path("stats.prom"), "uffd_serve_pages_present 5\n", "\n");
	wait_for_words(rig_path("stats.prom"),
		       "uffd_serve_fault_latency_seconds_bucket{le=\"+Inf\"}", "\n");
}

/* All that the socket answers to this. */
static const char *asked(const char *what)
{
	static char text[1 << 18];
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	size_t len = 0;
	ssize_t n;

	strcpy(address.sun_path, rig_path("stats"));
	assert_int_equal(connect(sock, (struct sockaddr *)&address, sizeof(address)), 0);
	assert_int_equal(send(sock, what, strlen(what), MSG_NOSIGNAL), strlen(what));
	shutdown(sock, SHUT_WR);
	while ((n = recv(sock, text + len, sizeof(text) - 1 - len, 0)) > 0)
		len += (size_t)n;
	text[len] = '\0';
	close(sock);
	return text;
}

static void a_socket_has_the_figures(void **state)
{
	char to[256];
	const char *text;
	struct vmm *v;

	(void)state;
	snprintf(to, sizeof(to), "unix:%s", rig_path("stats"));
	v = with_a_machine("--stats", to);
	expect_ok(v, "touch 0 5 1");
	wait_present(5);
	text = asked("");
	assert_int_equal(figure_in(text, "pages_present"), 5);
	assert_int_equal(*text, '{');
	assert_int_equal(figure_in(asked("json\n"), "pages_present"), 5);
	assert_non_null(strstr(asked("prometheus\n"), "\nuffd_serve_pages_present 5\n"));
	text = asked("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
	assert_int_equal(strncmp(text, "HTTP/1.0 200 OK\r\n", 17), 0);
	assert_non_null(strstr(text, "text/plain; version=0.0.4\r\n"));
	assert_non_null(strstr(text, "\nuffd_serve_pages_present 5\n"));
	text = asked("GET / HTTP/1.1\r\n\r\n");
	assert_non_null(strstr(text, "application/json\r\n"));
	assert_int_equal(figure_in(text, "pages_present"), 5);
}

/* One in a hundred, say, never asks anything. Nobody waits for that one. */
static void whoever_does_not_ask_is_in_nobodys_way(void **state)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	char to[256];
	int sock[100];
	struct vmm *v;

	(void)state;
	snprintf(to, sizeof(to), "unix:%s", rig_path("stats"));
	v = with_a_machine("--stats", to);
	strcpy(address.sun_path, rig_path("stats"));
	for (size_t i = 0; i < ARRAY_SIZE(sock); i++) {
		sock[i] = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
		assert_int_equal(connect(sock[i], (struct sockaddr *)&address, sizeof(address)), 0);
	}
	expect_ok(v, "touch 0 %d 2", PAGES);
	for (size_t i = 0; i < ARRAY_SIZE(sock); i++)
		close(sock[i]);
	/* As soon as they are gone. */
	while (strncmp(asked("GET / HTTP/1.0\n\n"), "HTTP/1.0 200", 12))
		sched_yield();
}

/* Its standard output is a pipe that is full for ever. */
static void nobody_waits_for_those_who_do_not_listen(void **state)
{
	size_t page = page_size();
	struct vmm *v;

	(void)state;
	serve(memory_file("mem", 2));
	/* A small one, so that it does not take thousands. A message has more than 80 bytes. */
	assert_true(fcntl(rig_server.out, F_SETPIPE_SZ, (int)(2 * page)) > 0);
	v = vmm("version=1.12", "pages=1", "regions=1");
	for (size_t i = 0; i < 3 * page / 80; i++) {
		expect_ok(v, "connect %s", rig_path("sock"));
		expect_ok(v, "say 0 [}");
		expect_ok(v, "closed");
		expect_ok(v, "hang-up");
	}
	v = vmm("version=1.12", "pages=1");
	expect_ok(v, "connect %s", rig_path("sock"));
	expect_ok(v, "hello");
	expect_ok(v, "touch 0 2 1");
	/* When somebody listens again he is told. */
	while (poll(&(struct pollfd){ .fd = rig_server.out, .events = POLLIN }, 1, 0) == 1)
		hear();
	vmm_kill(v);
	expect_words("lost", "are lost");
	expect_said("gone");
}

/* ---- A terminal ------------------------------------------------------------------------------------------ */

static int terminal[2];

static void on_a_terminal(void)
{
	dup2(terminal[1], STDERR_FILENO);
}

static void a_terminal_has_a_line_that_is_kept_up(void **state)
{
	struct winsize size = { .ws_row = 24, .ws_col = 100 };
	static char text[1 << 16];
	size_t len = 0;
	struct vmm *v;

	(void)state;
	if (openpty(&terminal[0], &terminal[1], NULL, NULL, &size) < 0)
		SKIP("pty", "there are no terminals here");
	fcntl(terminal[0], F_SETFD, FD_CLOEXEC);
	fcntl(terminal[1], F_SETFD, FD_CLOEXEC);
	rig_in_child = on_a_terminal;
	memory_file("mem", PAGES);
	serve_raw("--socket", rig_path("sock"), "--memory", rig_path("mem"));
	close(terminal[1]);
	while (!strstr(text, "serving"))
		len += (size_t)read(terminal[0], text + len, sizeof(text) - 1 - len);
	v = vmm("version=1.12");
	expect_ok(v, "connect %s", rig_path("sock"));
	expect_ok(v, "hello");
	expect_ok(v, "touch 0 16 1");
	while (!strstr(text, "1 VMs  16 of 64 pages  "))
		len += (size_t)read(terminal[0], text + len, sizeof(text) - 1 - len);
	assert_non_null(strstr(text, " faults/s  p99 "));
	close(terminal[0]);
}

/* ---- Being started ----------------------------------------------------------------------------------------- */

/* It does not start: with this status, and these words on standard output, where standard error goes too. */
static void both_in_one(void)
{
	dup2(STDOUT_FILENO, STDERR_FILENO);
}

static void expect_end(int status, const char *words)
{
	assert_int_equal(serve_ended(), status);
	if (!strstr(rig_server.said, words))
		fail_msg("'%s' is not in: %s", words, rig_server.said);
	serve_forget();
}

#define DOES_NOT_START(status, words, ...)  \
	do {                                \
		rig_in_child = both_in_one; \
		serve_raw(__VA_ARGS__);     \
		expect_end(status, words);  \
	} while (0)

static void help_and_version_are_told(void **state)
{
	(void)state;
	DOES_NOT_START(0, "usage: uffd-serve --socket PATH --memory FILE", "--help");
	DOES_NOT_START(0, LIBUFFD_VERSION, "--version");
}

static void wrong_usage_is_told(void **state)
{
	static const struct {
		const char *option, *value, *words;
	} bad[] = {
		{ "--nonsense", NULL, "try --help" },
		{ "--memory", NULL, "try --help" },
		{ "more", NULL, "no such argument" },
		{ "--protocol", "vhost", "firecracker is the only one" },
		{ "--fill", "0", "a rate is wanted" },
		{ "--fill", "-1", "number of bytes" },
		{ "--fill", "1T", "number of bytes" },
		{ "--fill", "99999999999G", "number of bytes" },
		{ "--prefetch", "1G", "number of bytes" },
		{ "--window", "12K", "power of two" },
		{ "--window", "64M", "number of bytes" },
		{ "--on-error", "panic", "poison, kill or fail" },
		{ "--engine", "steam", "auto, uring or poll" },
		{ "--threads", "0", "from 1 to 256" },
		{ "--max-inflight", "4097", "from 1 to 4096" },
		{ "--retries", "x", "from 0 to 1000" },
		{ "--handshake-timeout", "-1", "number of seconds" },
		{ "--drain", "1e99", "number of seconds" },
		{ "--socket-mode", "888", "permissions" },
	};
	size_t step = rig_often(1, 6);

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(bad); i += step)
		DOES_NOT_START(2, bad[i].words, "--socket", rig_path("sock"), "--memory",
			       "/dev/null", bad[i].option, bad[i].value);
	DOES_NOT_START(2, "--memory is wanted", "--socket", rig_path("sock"));
}

static void what_cannot_be_served_is_told(void **state)
{
	(void)state;
	memory_file("mem", PAGES);
	close(open(rig_path("empty"), O_CREAT | O_WRONLY, 0600));
	assert_int_equal(mkfifo(rig_path("fifo"), 0600), 0);
	DOES_NOT_START(1, "No such file", "--socket", rig_path("sock"), "--memory", rig_path("no"));
	DOES_NOT_START(1, "is empty", "--socket", rig_path("sock"), "--memory", rig_path("empty"));
	DOES_NOT_START(1, "neither a file nor", "--socket", rig_path("sock"), "--memory",
		       rig_path("fifo"));
	DOES_NOT_START(1, "neither a file nor", "--socket", rig_path("sock"), "--memory", rig_dir);
	DOES_NOT_START(1, "--socket is wanted", "--memory", rig_path("mem"));
	DOES_NOT_START(1, "is no socket", "--socket", rig_path("empty"), "--memory",
		       rig_path("mem"));
	DOES_NOT_START(1, "No such file", "--socket", rig_path("no/sock"), "--memory",
		       rig_path("mem"));
	DOES_NOT_START(1, "is no record", "--socket", rig_path("sock"), "--memory", rig_path("mem"),
		       "--replay", rig_path("mem"));
	DOES_NOT_START(1, "is no record", "--socket", rig_path("sock"), "--memory", rig_path("mem"),
		       "--replay", rig_path("empty"));
	DOES_NOT_START(1, "No such file", "--socket", rig_path("sock"), "--memory", rig_path("mem"),
		       "--stats", rig_path("no/stats"));
	DOES_NOT_START(1, "no user", "--socket", rig_path("sock"), "--memory", rig_path("mem"),
		       "--user", "no-such-user");
	DOES_NOT_START(1, "no group", "--socket", rig_path("sock"), "--memory", rig_path("mem"),
		       "--group", "no-such-group");
}

static void a_name_that_somebody_listens_at_is_not_taken(void **state)
{
	struct served first;
	struct vmm *v;

	(void)state;
	serve(memory_file("mem", PAGES));
	first = rig_server;
	memset(&rig_server, 0, sizeof(rig_server));
	DOES_NOT_START(1, "somebody listens there", "--socket", rig_path("sock"), "--memory",
		       rig_path("mem"));
	rig_server = first;
	v = vmm("version=1.12");
	vmm_join(v);
	expect_ok(v, "touch 0 %d 2", PAGES);
}

static void a_socket_has_the_mode_that_is_wanted(void **state)
{
	struct stat st;

	(void)state;
	serve(memory_file("mem", PAGES), "--socket-mode", "620");
	assert_int_equal(stat(rig_path("sock"), &st), 0);
	assert_int_equal(st.st_mode & 0777, 0620);
}

/* ---- systemd --------------------------------------------------------------------------------------------- */

static struct {
	int listener, told;
	bool abstract;
	bool wrong_pid;
} passed;

static void as_systemd_does(void)
{
	char pid[32], name[256];

	snprintf(pid, sizeof(pid), "%d", passed.wrong_pid ? 1 : (int)getpid());
	setenv("LISTEN_PID", pid, 1);
	setenv("LISTEN_FDS", "1", 1);
	/* If it is there already it would be closed with the others. */
	if (dup2(passed.listener, 3) == passed.listener)
		fcntl(3, F_SETFD, 0);
	snprintf(name, sizeof(name), "%s%s", passed.abstract ? "@" : "", rig_path("notify"));
	setenv("NOTIFY_SOCKET", name, 1);
	setenv("WATCHDOG_USEC", "100000", 1);
	both_in_one();
}

static int bound(int type, const char *name, bool abstract)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int sock = socket(AF_UNIX, type | SOCK_CLOEXEC, 0);
	size_t len = strlen(rig_path(name)) + abstract;

	strcpy(address.sun_path + abstract, rig_path(name));
	assert_int_equal(
		bind(sock, (struct sockaddr *)&address,
		     (socklen_t)(offsetof(struct sockaddr_un, sun_path) + len + !abstract)),
		0);
	return sock;
}

/* Until a datagram comes that begins so. */
static void expect_told(const char *what)
{
	struct pollfd p = { .fd = passed.told, .events = POLLIN };
	char text[1024];
	ssize_t n;

	do {
		if (poll(&p, 1, 60000) != 1)
			fail_msg("%s is not told", what);
		n = recv(passed.told, text, sizeof(text) - 1, 0);
		assert_true(n > 0);
		text[n] = '\0';
	} while (strncmp(text, what, strlen(what)));
}

static void under_systemd(bool abstract)
{
	struct stat st;
	struct vmm *v;

	passed.abstract = abstract;
	passed.wrong_pid = false;
	passed.listener = bound(SOCK_STREAM, "sock", false);
	assert_int_equal(listen(passed.listener, 5), 0);
	passed.told = bound(SOCK_DGRAM, "notify", abstract);
	rig_in_child = as_systemd_does;
	memory_file("mem", PAGES);
	serve_raw("--json", "--memory", rig_path("mem"));
	expect_told("READY=1");
	v = vmm("version=1.12");
	vmm_join(v);
	expect_ok(v, "touch 0 %d 2", PAGES);
	expect_told("WATCHDOG=1");
	assert_int_equal(kill(rig_server.pid, SIGTERM), 0);
	expect_told("STOPPING=1");
	assert_int_equal(serve_ended(), 0);
	/* It is not ours. */
	assert_int_equal(stat(rig_path("sock"), &st), 0);
	close(passed.listener);
	close(passed.told);
}

static void systemd_passes_a_socket_and_is_told(void **state)
{
	(void)state;
	under_systemd(false);
}

static void systemd_may_have_a_name_that_is_no_file(void **state)
{
	(void)state;
	under_systemd(true);
}

static void what_was_passed_to_another_is_not_taken(void **state)
{
	(void)state;
	passed.abstract = false;
	passed.wrong_pid = true;
	passed.listener = bound(SOCK_STREAM, "sock", false);
	passed.told = bound(SOCK_DGRAM, "notify", false);
	rig_in_child = as_systemd_does;
	memory_file("mem", PAGES);
	serve_raw("--memory", rig_path("mem"));
	expect_end(1, "--socket is wanted");
	passed.wrong_pid = false;
	/* It does not listen. */
	serve_raw("--memory", rig_path("mem"));
	expect_end(1, "is not a Unix stream socket that listens");
	close(passed.listener);
	close(passed.told);
}

/* ---- Rights ------------------------------------------------------------------------------------------------ */

static void needs_root(void)
{
	if (getuid() != 0)
		SKIP("root", "only root can become somebody else");
}

static const char *status_of(const char *key)
{
	static char line[256];
	char path[64];
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/status", (int)rig_server.pid);
	f = fopen(path, "r");
	assert_non_null(f);
	while (fgets(line, sizeof(line), f))
		if (strncmp(line, key, strlen(key)) == 0)
			break;
	fclose(f);
	return line + strlen(key);
}

static void it_becomes_another_user(void **state)
{
	struct vmm *v;

	(void)state;
	needs_root();
	memory_file("mem", PAGES);
	assert_int_equal(chmod(rig_path("mem"), 0600), 0);
	serve(rig_path("mem"), "--user", "65534", "--group", "65534");
	assert_string_equal(status_of("Uid:"), "\t65534\t65534\t65534\t65534\n");
	assert_string_equal(status_of("Gid:"), "\t65534\t65534\t65534\t65534\n");
	assert_string_equal(status_of("CapPrm:"), "\t0000000000000000\n");
	assert_string_equal(status_of("NoNewPrivs:"), "\t1\n");
	v = vmm("version=1.12");
	vmm_join(v);
	expect_ok(v, "touch 0 %d 2", PAGES);
	assert_int_equal(serve_stop(SIGTERM), 0);
}

static void another_user_may_still_kill(void **state)
{
	struct vmm *v;

	(void)state;
	needs_root();
	serve(memory_file("mem", PAGES), "--user", "65534", "--on-error", "kill");
	assert_string_equal(status_of("CapEff:"), "\t0000000000000020\n");
	v = vmm("version=1.12");
	vmm_join(v);
	assert_int_equal(truncate(rig_path("mem"), 0), 0);
	assert_string_equal(tell(v, "peek 0"), "it is dead");
	assert_int_equal(vmm_died(v), SIGKILL);
}

static void it_goes_to_jail(void **state)
{
	char root[64], link[256] = "";
	struct stat st;
	struct vmm *v;

	(void)state;
	needs_root();
	assert_int_equal(mkdir(rig_path("jail"), 0755), 0);
	assert_int_equal(mkdir(rig_path("jail/proc"), 0755), 0);
	assert_int_equal(mkdir(rig_path("out"), 0755), 0);
	assert_int_equal(chown(rig_path("out"), NOBODY, NOBODY), 0);
	serve(memory_file("mem", PAGES), "--user", "65534", "--chroot", rig_path("jail"), "--stats",
	      rig_path("out/stats.json"), "--record", rig_path("record"));
	snprintf(root, sizeof(root), "/proc/%d/root", (int)rig_server.pid);
	assert_true(readlink(root, link, sizeof(link) - 1) > 0);
	assert_string_equal(link, rig_path("jail"));
	v = vmm("version=1.12");
	vmm_join(v);
	expect_ok(v, "touch 0 10 2");
	vmm_kill(v);
	expect_said("gone");
	expect_said("recorded");
	wait_for_words(rig_path("out/stats.json"), "\"ever\":1", "}\n");
	assert_int_equal(serve_stop(SIGTERM), 0);
	assert_int_equal(stat(rig_path("record"), &st), 0);
	assert_true(st.st_size > 32);
	/* What was mounted there was its own. */
	assert_int_equal(rmdir(rig_path("jail/proc")), 0);
}

static void figures_that_could_not_be_kept_are_told(void **state)
{
	(void)state;
	needs_root();
	memory_file("mem", PAGES);
	DOES_NOT_START(1, "Permission denied", "--socket", rig_path("sock"), "--memory",
		       rig_path("mem"), "--user", "65534", "--stats", rig_path("stats.json"));
}

static void a_jail_without_proc_is_told(void **state)
{
	(void)state;
	needs_root();
	memory_file("mem", PAGES);
	assert_int_equal(mkdir(rig_path("jail"), 0755), 0);
	DOES_NOT_START(1, "no /proc can be mounted there", "--socket", rig_path("sock"), "--memory",
		       rig_path("mem"), "--chroot", rig_path("jail"));
}

static const struct CMUnitTest tests[] = {
	CASE(figures_are_true),
	CASE(what_is_complete_still_counts),
	CASE(a_file_has_the_figures),
	CASE(a_file_has_them_for_prometheus),
	CASE(a_socket_has_the_figures),
	CASE(whoever_does_not_ask_is_in_nobodys_way),
	CASE(nobody_waits_for_those_who_do_not_listen),
	CASE(a_terminal_has_a_line_that_is_kept_up),
	CASE(help_and_version_are_told),
	CASE(wrong_usage_is_told),
	CASE(what_cannot_be_served_is_told),
	CASE(a_name_that_somebody_listens_at_is_not_taken),
	CASE(a_socket_has_the_mode_that_is_wanted),
	CASE(systemd_passes_a_socket_and_is_told),
	CASE(systemd_may_have_a_name_that_is_no_file),
	CASE(what_was_passed_to_another_is_not_taken),
	CASE(it_becomes_another_user),
	CASE(another_user_may_still_kill),
	CASE(it_goes_to_jail),
	CASE(figures_that_could_not_be_kept_are_told),
	CASE(a_jail_without_proc_is_told),
};

int main(int argc, char **argv)
{
	return rig_main(argc, argv, "serve-report", tests, ARRAY_SIZE(tests));
}
