/* SPDX-License-Identifier: MIT */
/*
 * uffd-serve with memory from an NBD server: a real one (nbdkit), well, slow, failing, stopped, killed and started
 * anew; and one that does what none should (nbd.c beside this). Whatever it does, no machine reads a zero that is not
 * the server's.
 */
#include <fcntl.h>
#include <netinet/in.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <uffd/server.h>

#include "nbd.h"
#include "rig.h"

#define PAGES 64 /* of two regions of 32 */
#define PATIENCE 120000

#ifndef HAVE_LIBNBD
#define HAVE_LIBNBD 1
#endif

/* ---- nbdkit ------------------------------------------------------------------------------------------ */

static pid_t kit;
static int kit_socket = -1; /* that it inherits, or -1: it has "nbd" in the directory */

/* What it says goes to a file: on a terminal it writes in colours, in the middle of lines of the tests. */
static void kit_run(const char **argv)
{
	int said = open(rig_path("nbd.said"), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
	char pid[16];

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	dup2(said, STDERR_FILENO);
	if (kit_socket >= 0) {
		snprintf(pid, sizeof(pid), "%d", (int)getpid());
		setenv("LISTEN_FDS", "1", 1);
		setenv("LISTEN_PID", pid, 1);
		/* Also where it is that number already, and is to be closed. */
		dup2(dup(kit_socket), 3);
	}
	execvp(argv[0], (char *const *)(uintptr_t)argv);
	_exit(127);
}

static const char *kit_said(void)
{
	static char text[4096];
	int fd = open(rig_path("nbd.said"), O_RDONLY | O_CLOEXEC);
	ssize_t n = read(fd, text, sizeof(text) - 1);

	close(fd);
	text[n > 0 ? n : 0] = '\0';
	return text;
}

/* Until it takes connections. */
static void kit_wait(void)
{
	const char *ready = rig_path("nbd.pid");
	int status;

	for (int i = 0; access(ready, F_OK) != 0; i++) {
		if (waitpid(kit, &status, WNOHANG) == kit) {
			kit = 0;
			if (WIFEXITED(status) && WEXITSTATUS(status) == 127)
				SKIP("nbdkit", "nbdkit is not installed (Debian: nbdkit)");
			fail_msg("nbdkit does not start: %s", kit_said());
		}
		if (i == PATIENCE)
			fail_msg("nbdkit is not ready");
		pause_ms();
	}
}

/* Its plugin, filters and their parameters, up to a NULL. */
static void kit_with(const char *first, ...)
{
	const char *argv[32] = { "nbdkit", "-f", "-r", "-P", rig_path("nbd.pid") };
	size_t n = 5;
	va_list args;

	if (!HAVE_LIBNBD)
		SKIP("libnbd", "built without libnbd (Debian: libnbd-dev)");
	unlink(rig_path("nbd.pid"));
	unlink(rig_path("nbd"));
	if (kit_socket < 0) {
		argv[n++] = "-U";
		argv[n++] = rig_path("nbd");
	}
	va_start(args, first);
	for (const char *a = first; a && n < 31; a = va_arg(args, const char *))
		argv[n++] = a;
	va_end(args);
	kit = fork();
	assert_true(kit >= 0);
	if (kit == 0)
		kit_run(argv);
	kit_wait();
}

#define nbdkit(...) kit_with(__VA_ARGS__, NULL)

static void kit_end(void)
{
	if (kit > 0) {
		kill(kit, SIGKILL);
		waitpid(kit, NULL, 0);
	}
	kit = 0;
}

/* Until it does nothing any more, or does again. */
static void kit_signal(int sig)
{
	assert_int_equal(kill(kit, sig), 0);
	if (sig == SIGSTOP)
		assert_int_equal(waitpid(kit, NULL, WUNTRACED), kit);
}

static int nbd_end(void **state)
{
	kit_end();
	strange_nbd_end();
	if (kit_socket >= 0)
		close(kit_socket);
	kit_socket = -1;
	return case_end(state);
}

#define NBD(test) cmocka_unit_test_setup_teardown(test, case_begin, nbd_end)

/* As --memory has it. */
static const char *uri(void)
{
	static char text[4200];

	snprintf(text, sizeof(text), "nbd+unix:///?socket=%s", rig_path("nbd"));
	return text;
}

static void verified(struct vmm *v)
{
	expect_ok(v, "touch 0 %d 2", PAGES);
}

/* Tell it, and hear the answer when there is one. */
static void tell_only(struct vmm *v, const char *what)
{
	fprintf(v->to, "%s\n", what);
	fflush(v->to);
}

static void expect_answer(struct vmm *v, const char *want)
{
	char line[256] = "it is dead";

	if (fgets(line, sizeof(line), v->from))
		line[strcspn(line, "\n")] = '\0';
	assert_string_equal(line, want);
}

/* Until so many of what the server asked for have not been answered. */
static void wait_in_flight(uint64_t n)
{
	wait_figure("in_flight", n);
}

/* ---- As it should be ---------------------------------------------------------------------------------- */

static void memory_comes_from_a_unix_socket(void **state)
{
	struct vmm *v;

	(void)state;
	nbdkit("file", memory_file("mem", PAGES));
	serve(uri());
	v = machine();
	verified(v);
	expect_said("complete");
	vmm_kill(v);
	assert_int_equal(serve_stop(SIGTERM), 0);
}

static int loopback(uint16_t *port)
{
	struct sockaddr_in addr = { .sin_family = AF_INET,
				    .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t len = sizeof(addr);
	int sock = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (sock < 0 || bind(sock, (void *)&addr, len) || listen(sock, 16) ||
	    getsockname(sock, (void *)&addr, &len)) {
		close(sock);
		return -1;
	}
	*port = ntohs(addr.sin_port);
	return sock;
}

static void memory_comes_over_the_network(void **state)
{
	uint16_t port = 0;
	char text[64];
	struct vmm *v;

	(void)state;
	kit_socket = loopback(&port);
	if (kit_socket < 0)
		SKIP("inet", "no loopback network here");
	nbdkit("file", memory_file("mem", PAGES));
	snprintf(text, sizeof(text), "nbd://127.0.0.1:%u", port);
	serve(text);
	v = machine();
	verified(v);
	expect_said("complete");
}

static void an_export_is_found_by_its_name(void **state)
{
	char dir[4200], text[4400];
	struct vmm *v;

	(void)state;
	memory_file("guest mem", PAGES);
	snprintf(dir, sizeof(dir), "dir=%s", rig_path("."));
	nbdkit("file", dir);
	snprintf(text, sizeof(text), "nbd+unix:///guest%%20mem?socket=%s", rig_path("nbd"));
	serve(text);
	v = machine();
	verified(v);
}

static size_t connections_in_log(const char *name)
{
	FILE *f = fopen(name, "r");
	char line[1024];
	size_t n = 0;

	assert_non_null(f);
	while (fgets(line, sizeof(line), f))
		n += strstr(line, " Connect ") != NULL;
	fclose(f);
	return n;
}

static void wait_connections(const char *log, size_t n)
{
	for (int i = 0; connections_in_log(log) < n; i++) {
		if (i == PATIENCE)
			fail_msg("%zu connections", connections_in_log(log));
		pause_ms();
	}
}

/* Stopped, it answers nothing; all that is asked then is asked at the same time. */
static void many_requests_fly_over_several_connections(void **state)
{
	const char *log = rig_path("log");
	char arg[4200];
	struct vmm *v;

	(void)state;
	snprintf(arg, sizeof(arg), "logfile=%s", log);
	/* Nothing is known to be zeros: all of it must be asked for. */
	nbdkit("--filter=log", "--filter=delay", "--filter=noextents", "file",
	       memory_file("mem", PAGES), arg, "rdelay=20ms");
	serve(uri(), "--nbd-connections", "3");
	wait_connections(log, 3);
	v = machine();
	kit_signal(SIGSTOP);
	tell_only(v, "touch 0 64 32");
	wait_in_flight(32);
	kit_signal(SIGCONT);
	expect_answer(v, "ok");
	assert_int_equal(connections_in_log(log), 3);
}

static void a_server_that_takes_one_connection_gets_one(void **state)
{
	const char *log = rig_path("log");
	char arg[4200];
	struct vmm *v;

	(void)state;
	snprintf(arg, sizeof(arg), "logfile=%s", log);
	nbdkit("--filter=log", "--filter=multi-conn", "file", memory_file("mem", PAGES), arg,
	       "multi-conn-mode=disable");
	serve(uri(), "--nbd-connections", "3");
	v = machine();
	expect_ok(v, "touch 0 %d 16", PAGES);
	assert_int_equal(connections_in_log(log), 1);
}

/* Two MiB are cut into pieces, which come over several connections. */
static void huge_pages_come_in_pieces(void **state)
{
	size_t huge = mem_page_size(MEM_HUGETLB_PRIVATE);
	struct vmm *v;

	(void)state;
	if (huge_reserve(10) < 0)
		SKIP("hugetlb", "huge pages cannot be reserved here");
	REQUIRES(LIBUFFD_FEATURE_MISSING_HUGETLBFS);
	nbdkit("file", memory_file("mem", 4 * huge / page_size()));
	serve(uri());
	v = vmm("version=1.12", "huge=1", "pages=2");
	vmm_join(v);
	expect_ok(v, "touch 0 4 2");
	expect_said("complete");
	vmm_kill(v);
	huge_restore();
}

static void the_rest_is_fetched_meanwhile(void **state)
{
	size_t pages = rig_often(2048, 512);
	char arg[32];
	struct vmm *v;

	(void)state;
	nbdkit("file", memory_file("mem", pages));
	serve(uri(), "--fill", "max");
	snprintf(arg, sizeof(arg), "pages=%zu", pages / 2);
	v = vmm("version=2.0", "regions=2", arg);
	vmm_join(v);
	expect_said("complete");
	expect_ok(v, "touch 0 %zu 4", pages);
}

/* ---- Holes -------------------------------------------------------------------------------------------- */

/* A server whose every read fails, as long as there is this file. */
static const char *trigger(void)
{
	const char *path = rig_path("trigger");
	int fd = open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0644);

	assert_true(fd >= 0);
	close(fd);
	return path;
}

static void unreadable_kit(const char *memory, bool single_pages)
{
	char file[4200];

	snprintf(file, sizeof(file), "error-pread-file=%s", trigger());
	nbdkit("--filter=error", "--filter=blocksize-policy", "file", memory, "error-pread=EIO",
	       "error-pread-rate=100%", file, single_pages ? "blocksize-minimum=1" : NULL,
	       "blocksize-preferred=4096", "blocksize-maximum=4096");
}

/* The server has said where they are, so that nothing is read. */
static void holes_are_not_read(void **state)
{
	struct vmm *v;

	(void)state;
	unreadable_kit(memory_file("mem", PAGES), false);
	serve(uri(), "--retries", "1000");
	v = machine();
	for (size_t page = 5; page < PAGES; page += 8)
		expect_ok(v, "zeros %zu 1", page);
	expect_ok(v, "stare 0");
	assert_string_equal(tell(v, "waits"), "yes");
	/* No page of memory holds them. What is counted is so when who waits has been woken already. */
	wait_figure("zeros", PAGES / 8);
	assert_int_equal(figure_in(figures(), "installed"), PAGES / 8);
}

/* Of what is fetched together some is read and some is not. Buffers have seen other bytes before. */
static void holes_between_bytes_are_zeros(void **state)
{
	struct vmm *v;

	(void)state;
	unreadable_kit(memory_file("mem", 16 * PAGES), true);
	serve(uri(), "--retries", "1000", "--window", "64K");
	v = vmm("version=1.12", "regions=2", "pages=512");
	vmm_join(v);
	/* All of the window waits for its bytes, which tells nothing; so does whoever comes later. */
	expect_ok(v, "stare 0");
	wait_figure("refetched", 2);
	unlink(rig_path("trigger"));
	assert_string_equal(tell(v, "seen"), "file");
	expect_ok(v, "touch 0 1024 2");
}

/* What begins with a hole is not one. The first region begins in the file where the second ends: at block 5. */
static void a_hole_and_bytes_are_read(void **state)
{
	struct vmm *v;

	(void)state;
	unreadable_kit(memory_file("mem", 10), false);
	serve(uri(), "--retries", "1000", "--window", "16K");
	v = vmm("version=1.12", "regions=2", "pages=5");
	vmm_join(v);
	expect_ok(v, "stare 1");
	wait_figure("refetched", 2);
	unlink(rig_path("trigger"));
	assert_string_equal(tell(v, "seen"), "file");
	expect_ok(v, "touch 0 10 1");
}

static const char *sparse_file(const char *name, uint64_t blocks)
{
	const char *path = rig_path(name);
	int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);

	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, (off_t)(blocks * page_size())), 0);
	close(fd);
	return path;
}

/* More than one question is about: it goes on until all is known. */
static void holes_are_known_to_the_end(void **state)
{
	const uint64_t pages = ((uint64_t)600 << 20) / page_size();
	char each[32];
	struct vmm *v;

	(void)state;
	unreadable_kit(sparse_file("mem", 2 * pages), false);
	serve(uri(), "--retries", "1000");
	snprintf(each, sizeof(each), "pages=%llu", (unsigned long long)pages);
	v = vmm("version=1.12", "regions=2", each);
	vmm_join(v);
	expect_ok(v, "zeros %llu 1", (unsigned long long)pages - 1);
	expect_ok(v, "zeros 0 1");
}

/* What comes after the last connection may be another's, who has bytes where there were none. */
static void holes_are_forgotten_with_the_server(void **state)
{
	struct vmm *v;

	(void)state;
	unreadable_kit(sparse_file("holes", PAGES), false);
	serve(uri(), "--retries", "1000", "--nbd-timeout", "100");
	v = machine();
	expect_ok(v, "zeros 0 1");
	kit_end();
	expect_said("source-lost");
	nbdkit("file", memory_file("mem", PAGES));
	expect_said("source-back");
	expect_ok(v, "touch 1 63 2");
}

/* ---- Encrypted -------------------------------------------------------------------------------------------- */

/* Of one user, whose key is this digit all over. */
static const char *keys_file(const char *name, char digit)
{
	const char *path = rig_path(name);
	char key[65] = "";
	FILE *f = fopen(path, "w");

	assert_non_null(f);
	memset(key, digit, 64);
	fprintf(f, "guest:%s\n", key);
	assert_int_equal(fclose(f), 0);
	assert_int_equal(chmod(path, 0600), 0);
	return path;
}

static void secret_kit(const char *memory)
{
	char keys[4200];

	snprintf(keys, sizeof(keys), "--tls-psk=%s", keys_file("keys", '3'));
	nbdkit("--tls=require", keys, "file", memory);
}

static const char *secret_uri(const char *keys)
{
	static char text[8500];

	snprintf(text, sizeof(text), "nbds+unix://guest@/?socket=%s&tls-psk-file=%s",
		 rig_path("nbd"), keys);
	return text;
}

static void refuses_to_start(const char *memory, const char *words)
{
	serve_forget();
	serve_raw("--json", "--socket", rig_path("sock"), "--memory", memory);
	expect_words("error", words);
	assert_int_equal(serve_ended(), 1);
}

static void memory_comes_encrypted(void **state)
{
	struct vmm *v;

	(void)state;
	secret_kit(memory_file("mem", PAGES));
	serve(secret_uri(rig_path("keys")));
	v = machine();
	verified(v);
	expect_said("complete");
	vmm_kill(v);
	assert_int_equal(serve_stop(SIGTERM), 0);
	/* This server speaks with nobody in the clear. */
	refuses_to_start(uri(), "TLS");
}

/* As another user, who may not read the file of keys, and where its name leads nowhere. */
static void keys_are_at_hand_in_a_jail(void **state)
{
	uint16_t port = 0;
	char text[4400];
	struct vmm *v;

	(void)state;
	if (geteuid() != 0)
		SKIP("root", "only root can change its root directory");
	kit_socket = loopback(&port);
	if (kit_socket < 0)
		SKIP("inet", "no loopback network here");
	secret_kit(memory_file("mem", PAGES));
	assert_int_equal(mkdir(rig_path("jail"), 0755), 0);
	assert_int_equal(mkdir(rig_path("jail/proc"), 0755), 0);
	snprintf(text, sizeof(text), "nbds://guest@127.0.0.1:%u/?tls-psk-file=%s", port,
		 rig_path("keys"));
	serve(text, "--chroot", rig_path("jail"), "--user", "65534", "--retries", "0",
	      "--nbd-timeout", "100");
	v = machine();
	expect_ok(v, "touch 0 8 1");
	kit_end();
	expect_said("source-lost");
	secret_kit(rig_path("mem"));
	expect_said("source-back");
	verified(v);
}

/* Nothing is asked of who does not prove to have the key, be it in the clear. */
static void nobody_else_is_taken_for_the_server(void **state)
{
	(void)state;
	secret_kit(memory_file("mem", PAGES));
	refuses_to_start(secret_uri(keys_file("others", '4')), "gnutls");
	kit_end();
	nbdkit("file", rig_path("mem"));
	refuses_to_start(secret_uri(rig_path("keys")), "TLS");
}

/* ---- Errors ------------------------------------------------------------------------------------------- */

static void failing_kit(const char *error)
{
	static char what[32], file[4200];

	snprintf(what, sizeof(what), "error-pread=%s", error);
	snprintf(file, sizeof(file), "error-pread-file=%s", rig_path("trigger"));
	nbdkit("--filter=error", "file", memory_file("mem", PAGES), what, "error-pread-rate=100%",
	       file);
}

/* Its own errno arrives, and the policy is followed. What is asked later is as good as ever. */
static void an_error_of_the_server_is_the_pages(void **state)
{
	struct vmm *v;

	(void)state;
	REQUIRES(LIBUFFD_FEATURE_POISON);
	failing_kit("EIO");
	serve(uri(), "--retries", "0");
	v = machine();
	assert_string_equal(tell(v, "peek 0"), "file");
	trigger();
	assert_string_equal(tell(v, "peek 1"), "sigbus");
	expect_words("error", "output error");
	unlink(rig_path("trigger"));
	assert_string_equal(tell(v, "peek 2"), "file");
	assert_string_equal(tell(v, "peek 1"), "sigbus");
}

static void an_error_that_passes_is_tried_away(void **state)
{
	struct vmm *v;

	(void)state;
	failing_kit("ENOMEM");
	trigger();
	serve(uri(), "--retries", "1000");
	v = machine();
	expect_ok(v, "stare 0");
	wait_figure("refetched", 2);
	assert_string_equal(tell(v, "waits"), "yes");
	unlink(rig_path("trigger"));
	assert_string_equal(tell(v, "seen"), "file");
}

/* It is about to go: that is the connection's end, and no page's. */
static void a_server_that_shuts_down_is_not_believed_for_long(void **state)
{
	struct vmm *v;

	(void)state;
	failing_kit("ESHUTDOWN");
	trigger();
	serve(uri(), "--retries", "0");
	v = machine();
	expect_ok(v, "stare 0");
	expect_words("source-lost", "shuts down");
	assert_string_equal(tell(v, "waits"), "yes");
	unlink(rig_path("trigger"));
	assert_string_equal(tell(v, "seen"), "file");
}

/* Neither is anything that fails without end an answer of zeros. */
static void errors_at_random_make_no_zeros(void **state)
{
	struct vmm *v;

	(void)state;
	nbdkit("--filter=error", "file", memory_file("mem", PAGES), "error-pread=EIO",
	       "error-pread-rate=50%");
	serve(uri(), "--retries", "1000");
	v = machine();
	verified(v);
	expect_said("complete");
}

/* ---- A server that goes, and comes again --------------------------------------------------------------- */

static void a_server_killed_in_the_middle_and_started_anew(void **state)
{
	struct vmm *v;

	(void)state;
	nbdkit("--filter=noextents", "file", memory_file("mem", PAGES));
	serve(uri(), "--retries", "0", "--nbd-timeout", "100");
	v = machine();
	expect_ok(v, "touch 0 8 1");
	kit_signal(SIGSTOP);
	tell_only(v, "touch 8 56 16");
	wait_in_flight(16);
	kit_end();
	expect_said("source-lost");
	/* All of them wait. */
	assert_true(figure_in(figures(), "in_flight") >= 16);
	nbdkit("file", rig_path("mem"));
	expect_answer(v, "ok");
	expect_said("source-back");
}

static void a_server_that_stays_away_is_an_error(void **state)
{
	struct vmm *v;

	(void)state;
	REQUIRES(LIBUFFD_FEATURE_POISON);
	nbdkit("file", memory_file("mem", PAGES));
	serve(uri(), "--retries", "1", "--nbd-timeout", "0.2");
	v = machine();
	kit_end();
	unlink(rig_path("nbd"));
	assert_string_equal(tell(v, "peek 0"), "sigbus");
	expect_words("error", "No such file or directory");
	nbdkit("file", rig_path("mem"));
	/* It is found again, how long it may have been away. */
	for (size_t page = 1; strcmp(tell(v, "peek %zu", page), "file") != 0; page++)
		assert_true(page < PAGES);
}

static void a_server_that_does_not_answer_is_an_error(void **state)
{
	struct vmm *v;

	(void)state;
	REQUIRES(LIBUFFD_FEATURE_POISON);
	nbdkit("file", memory_file("mem", PAGES));
	serve(uri(), "--retries", "1", "--nbd-timeout", "0.2");
	v = machine();
	assert_string_equal(tell(v, "peek 0"), "file");
	kit_signal(SIGSTOP);
	assert_string_equal(tell(v, "peek 1"), "sigbus");
	expect_words("error", "Connection timed out");
	kit_signal(SIGCONT);
	for (size_t page = 2; strcmp(tell(v, "peek %zu", page), "file") != 0; page++)
		assert_true(page < PAGES);
}

/* Another memory in the same place: its bytes are not asked for. */
static void another_export_in_its_place_is_not_taken(void **state)
{
	struct vmm *v;
	size_t page = 0;

	(void)state;
	REQUIRES(LIBUFFD_FEATURE_POISON);
	nbdkit("file", memory_file("mem", PAGES));
	serve(uri(), "--retries", "0", "--nbd-timeout", "0.2");
	v = machine();
	kit_end();
	nbdkit("file", memory_file("other", 2 * PAGES));
	/* While it is not tried yet, the reason is that the first one is gone. */
	do
		assert_string_equal(tell(v, "peek %zu", page++), "sigbus");
	while (!strstr(expect_said("error"), "Stale file handle"));
	kit_end();
	nbdkit("file", rig_path("mem"));
	for (; strcmp(tell(v, "peek %zu", page), "file") != 0; page++)
		assert_true(page < PAGES);
}

/* The socket's name lies outside of the jail, and it is made anew there. */
static void a_server_is_found_again_from_within_a_jail(void **state)
{
	struct vmm *v;

	(void)state;
	if (geteuid() != 0)
		SKIP("root", "only root can change its root directory");
	nbdkit("file", memory_file("mem", PAGES));
	assert_int_equal(mkdir(rig_path("jail"), 0755), 0);
	assert_int_equal(mkdir(rig_path("jail/proc"), 0755), 0);
	serve(uri(), "--chroot", rig_path("jail"), "--retries", "0", "--nbd-timeout", "100");
	v = machine();
	expect_ok(v, "touch 0 8 1");
	kit_end();
	expect_said("source-lost");
	nbdkit("file", rig_path("mem"));
	expect_said("source-back");
	verified(v);
}

/* What hangs at the server does not keep us from ending; and who waited for it reads no zeros. */
static void the_end_does_not_wait_for_a_server(void **state)
{
	struct vmm *v;

	(void)state;
	REQUIRES(LIBUFFD_FEATURE_POISON);
	nbdkit("file", memory_file("mem", PAGES));
	serve(uri(), "--drain", "0", "--nbd-timeout", "1000");
	v = machine();
	kit_signal(SIGSTOP);
	expect_ok(v, "stare 3");
	wait_in_flight(1);
	assert_int_equal(serve_stop(SIGTERM), 1);
	assert_string_equal(tell(v, "seen"), "sigbus");
}

/* A machine that dies leaves nothing behind that the server's answer would meet. */
static void a_machine_dies_while_its_pages_are_on_the_way(void **state)
{
	struct vmm *v, *w;

	(void)state;
	nbdkit("--filter=noextents", "file", memory_file("mem", PAGES));
	serve(uri(), "--nbd-timeout", "1000");
	v = machine();
	w = machine();
	kit_signal(SIGSTOP);
	tell_only(w, "touch 0 64 16");
	wait_in_flight(16);
	vmm_kill(w);
	expect_said("gone");
	kit_signal(SIGCONT);
	verified(v);
}

/* ---- Servers that none should be ----------------------------------------------------------------------- */

static void strange_server(enum strange how)
{
	if (!HAVE_LIBNBD)
		SKIP("libnbd", "built without libnbd (Debian: libnbd-dev)");
	strange_nbd(rig_path("nbd"), how, (uint64_t)PAGES * page_size());
}

static void holes_of_the_server_are_zeros(void **state)
{
	struct vmm *v;

	(void)state;
	strange_server(STRANGE_HOLES);
	serve(uri());
	v = machine();
	expect_ok(v, "zeros 0 8");
}

/* A hole beside bytes makes no zeros of them. */
static void half_a_hole_is_no_hole(void **state)
{
	struct vmm *v;

	(void)state;
	strange_server(STRANGE_MIXED);
	serve(uri());
	v = machine();
	/* Neither what is elsewhere in the file nor zeros. */
	assert_string_equal(tell(v, "peek 0"), "other");
}

/* It says that it is done, and has sent half: the other half is no zeros. */
static void half_an_answer_is_none(void **state)
{
	struct vmm *v;

	(void)state;
	REQUIRES(LIBUFFD_FEATURE_POISON);
	strange_server(STRANGE_HALF);
	serve(uri(), "--retries", "0", "--nbd-timeout", "1");
	v = machine();
	assert_string_equal(tell(v, "peek 0"), "sigbus");
}

static void what_breaks_off_in_the_middle_is_asked_for_again(void **state)
{
	static const enum strange how[] = { STRANGE_BREAKS_OFF, STRANGE_BAD_MAGIC };

	(void)state;
	REQUIRES(LIBUFFD_FEATURE_POISON);
	for (size_t i = 0; i < ARRAY_SIZE(how); i++) {
		struct vmm *v;

		strange_server(how[i]);
		serve_again(uri(), "--retries", "0", "--nbd-timeout", "0.5");
		v = machine();
		assert_string_equal(tell(v, "peek 0"), "sigbus");
		expect_said("source-lost");
		strange_nbd_end();
	}
}

static void servers_that_are_none(void **state)
{
	(void)state;
	strange_server(STRANGE_NO_NBD);
	refuses_to_start(uri(), "NBD magic");
	strange_nbd_end();
	strange_server(STRANGE_MUTE);
	refuses_to_start(uri(), "does not answer");
	strange_nbd_end();
	strange_server(STRANGE_EMPTY);
	refuses_to_start(uri(), "empty");
}

static void names_of_no_server(void **state)
{
	static const struct {
		const char *uri, *words;
	} bad[] = {
		{ "nbd+unix:///?socket=/none/nbd", "No such file" },
		{ "nbd+unix:///", "is wanted" },
		{ "nbd+unix:///?socket=", "not well formed" },
		{ "nbd+unix:///?socket=a&b=c", "is wanted" },
		{ "nbd+unix:///%zz?socket=a", "not well formed" },
		{ "nbd+unix:///a%00b?socket=a", "not well formed" },
		{ "nbd+unix://host/?socket=a", "no host" },
		{ "nbd://[::1", "not well formed" },
		{ "nbd://[::1]x", "not well formed" },
		{ "nbd://127.0.0.1:0", "port" },
		{ "nbd://127.0.0.1:65536", "port" },
		{ "nbd://127.0.0.1:http", "port" },
		{ "nbd://%", "not well formed" },
		{ "nbd://me@127.0.0.1", "is wanted" },
		{ "nbd://127.0.0.1/?tls=1", "is wanted" },
		{ "nbd://127.0.0.1:1", "Connection refused" },
		{ "nbds://127.0.0.1", "is wanted" },
		{ "nbds://127.0.0.1/?tls-psk-file=/dev/zero", "is wanted" },
		{ "nbds://me@127.0.0.1/?tls-certificates=/etc", "tls-psk-file=FILE is wanted" },
		{ "nbds://me@127.0.0.1/?tls-psk-file=", "not well formed" },
		{ "nbds://me@127.0.0.1/?tls-psk-file=a&tls-psk-file=b", "is wanted" },
		{ "nbds://@127.0.0.1/?tls-psk-file=a", "not well formed" },
		{ "nbds://me@127.0.0.1/?tls-psk-file=/none", "/none: No such file" },
		{ "nbds://me@127.0.0.1/?tls-psk-file=/dev/null", "empty" },
		{ "nbds://me@127.0.0.1/?tls-psk-file=/dev/zero", "too long" },
		{ "nbds+unix://me@/?socket=a", "is wanted" },
		{ "nbds+unix:///?socket=a&tls-psk-file=a", "is wanted" },
		{ "nbds+unix://me@host/?socket=a&tls-psk-file=a", "no host" },
		{ "nbds+vsock://1", "only nbd:" },
		{ "nbd+vsock://1", "only nbd:" },
	};
	char path[256] = "nbd+unix:///?socket=";
	size_t step = rig_often(1, 5);

	(void)state;
	if (!HAVE_LIBNBD)
		SKIP("libnbd", "built without libnbd (Debian: libnbd-dev)");
	for (size_t i = 0; i < ARRAY_SIZE(bad); i += step)
		refuses_to_start(bad[i].uri, bad[i].words);
	memset(path + strlen(path), 'a', 150);
	refuses_to_start(path, "too long");
}

static const struct CMUnitTest tests[] = {
	NBD(memory_comes_from_a_unix_socket),
	NBD(memory_comes_over_the_network),
	NBD(an_export_is_found_by_its_name),
	NBD(many_requests_fly_over_several_connections),
	NBD(a_server_that_takes_one_connection_gets_one),
	NBD(huge_pages_come_in_pieces),
	NBD(the_rest_is_fetched_meanwhile),
	NBD(memory_comes_encrypted),
	NBD(keys_are_at_hand_in_a_jail),
	NBD(nobody_else_is_taken_for_the_server),
	NBD(holes_are_not_read),
	NBD(holes_between_bytes_are_zeros),
	NBD(a_hole_and_bytes_are_read),
	NBD(holes_are_known_to_the_end),
	NBD(holes_are_forgotten_with_the_server),
	NBD(an_error_of_the_server_is_the_pages),
	NBD(an_error_that_passes_is_tried_away),
	NBD(a_server_that_shuts_down_is_not_believed_for_long),
	NBD(errors_at_random_make_no_zeros),
	NBD(a_server_killed_in_the_middle_and_started_anew),
	NBD(a_server_that_stays_away_is_an_error),
	NBD(a_server_that_does_not_answer_is_an_error),
	NBD(another_export_in_its_place_is_not_taken),
	NBD(a_server_is_found_again_from_within_a_jail),
	NBD(the_end_does_not_wait_for_a_server),
	NBD(a_machine_dies_while_its_pages_are_on_the_way),
	NBD(holes_of_the_server_are_zeros),
	NBD(half_a_hole_is_no_hole),
	NBD(half_an_answer_is_none),
	NBD(what_breaks_off_in_the_middle_is_asked_for_again),
	NBD(servers_that_are_none),
	NBD(names_of_no_server),
};

int main(int argc, char **argv)
{
	return rig_main(argc, argv, "serve-nbd", tests, ARRAY_SIZE(tests));
}
