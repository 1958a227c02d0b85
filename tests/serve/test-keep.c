/* SPDX-License-Identifier: MIT */
/* uffd-serve comes and goes, and machines stay: a supervisor keeps what they need, and the test is it. */
#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "rig.h"
#include "../kernel/calls.h"

#define PAGES 64 /* of two regions of 32 */
#define KEPT_MOST 16
#define SUPERVISOR 10 /* the number that the server has it under */

static struct {
	char name[64];
	int fd[4];
	size_t n;
} kept[KEPT_MOST];
static size_t nkept;
static int ours = -1, theirs = -1;

static void under_a_supervisor(void)
{
	dup2(theirs, SUPERVISOR);
}

/* A packet of its, and what came with it. */
static size_t packet(char *text, size_t len, int *fds)
{
	union {
		struct cmsghdr head;
		unsigned char space[CMSG_SPACE(8 * sizeof(int))];
	} control;
	struct iovec iov = { text, len - 1 };
	struct msghdr msg = { .msg_iov = &iov,
			      .msg_iovlen = 1,
			      .msg_control = &control,
			      .msg_controllen = sizeof(control.space) };
	struct pollfd p = { .fd = ours, .events = POLLIN };
	struct cmsghdr *c;
	size_t n = 0;
	ssize_t got;

	if (poll(&p, 1, 60000) != 1)
		fail_msg("uffd-serve does not tell its supervisor anything");
	got = recvmsg(ours, &msg, MSG_CMSG_CLOEXEC);
	assert_true(got > 0);
	text[got] = '\0';
	c = CMSG_FIRSTHDR(&msg);
	if (c) {
		n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		memcpy(fds, CMSG_DATA(c), n * sizeof(int));
	}
	return n;
}

static void give(const char *text, const int *fds, size_t n)
{
	union {
		struct cmsghdr head;
		unsigned char space[CMSG_SPACE(8 * sizeof(int))];
	} control;
	struct iovec iov = { (void *)(uintptr_t)text, strlen(text) };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };

	memset(&control, 0, sizeof(control));
	if (n) {
		msg.msg_control = &control;
		msg.msg_controllen = CMSG_SPACE(n * sizeof(int));
		control.head.cmsg_level = SOL_SOCKET;
		control.head.cmsg_type = SCM_RIGHTS;
		control.head.cmsg_len = CMSG_LEN(n * sizeof(int));
		memcpy(CMSG_DATA(&control.head), fds, n * sizeof(int));
	}
	assert_int_equal(sendmsg(ours, &msg, MSG_NOSIGNAL), strlen(text));
}

static void forget_kept(size_t i)
{
	while (kept[i].n)
		close(kept[i].fd[--kept[i].n]);
	kept[i] = kept[--nkept];
}

static void answer_hello(void)
{
	char text[128];

	for (size_t i = 0; i < nkept; i++) {
		snprintf(text, sizeof(text), "kept %.63s", kept[i].name);
		give(text, kept[i].fd, kept[i].n);
	}
	give("end", NULL, 0);
}

/* Do what the server says, until it says something of this kind. */
static void supervise(const char *until)
{
	char text[256];
	int fds[8];
	size_t n;

	do {
		n = packet(text, sizeof(text), fds);
		if (strcmp(text, "hello") == 0) {
			answer_hello();
		} else if (strncmp(text, "keep ", 5) == 0) {
			assert_true(nkept < KEPT_MOST && n <= ARRAY_SIZE(kept[0].fd));
			snprintf(kept[nkept].name, sizeof(kept[0].name), "%.60s", text + 5);
			memcpy(kept[nkept].fd, fds, n * sizeof(*fds));
			kept[nkept++].n = n;
		} else {
			assert_int_equal(strncmp(text, "drop ", 5), 0);
			for (size_t i = nkept; i-- > 0;)
				if (strcmp(kept[i].name, text + 5) == 0)
					forget_kept(i);
		}
	} while (strncmp(text, until, strlen(until)));
}

static void start_server(void)
{
	int both[2];
	char number[16];

	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, both), 0);
	ours = both[0];
	theirs = both[1];
	rig_in_child = under_a_supervisor;
	snprintf(number, sizeof(number), "%d", SUPERVISOR);
	serve_raw("--json", "--socket", rig_path("sock"), "--memory", rig_path("mem"),
		  "--keepalive", number, "--on-error", "fail");
	close(theirs);
	supervise("hello");
	expect_said("ready");
}

static void lose_server(int sig, int status)
{
	assert_int_equal(serve_stop(sig), status);
	serve_forget();
	close(ours);
	ours = -1;
}

static int end_keep(void **state)
{
	while (nkept)
		forget_kept(0);
	if (ours >= 0)
		close(ours);
	ours = -1;
	return case_end(state);
}

#define KEEP(test) cmocka_unit_test_setup_teardown(test, case_begin, end_keep)

/* A machine that has nothing but memory: its descriptors are the server's, and the supervisor's. */
static struct vmm *bare_machine(void)
{
	struct vmm *v = machine();

	supervise("keep");
	expect_ok(v, "hang-up");
	return v;
}

/* ---- What stays -------------------------------------------------------------------------------------- */

static void a_server_is_killed_and_the_next_goes_on(void **state)
{
	struct vmm *v;

	(void)state;
	memory_file("mem", PAGES);
	start_server();
	v = bare_machine();
	expect_ok(v, "touch 0 16 2");
	expect_ok(v, "drop 8 16"); /* half of them never came */
	expect_ok(v, "zeros 8 1"); /* so that the server has done with the event */
	lose_server(SIGKILL, 128 + SIGKILL);
	expect_ok(v, "stare 40");
	expect_ok(v, "forget");
	assert_string_equal(tell(v, "waits"), "yes");
	start_server();
	assert_string_equal(tell(v, "seen"), "file");
	expect_ok(v, "zeros 8 16");
	expect_ok(v, "touch 0 8 1");
	expect_ok(v, "touch 24 40 2");
	expect_said("complete");
	assert_int_equal(nkept, 1);
}

/* While there is no server a page that is given back waits for the next, which knows what that means. */
static void what_is_given_back_to_nobody_does_not_come_back(void **state)
{
	struct vmm *v;

	(void)state;
	memory_file("mem", PAGES);
	start_server();
	v = bare_machine();
	expect_ok(v, "touch 0 16 2");
	lose_server(SIGKILL, 128 + SIGKILL);
	fprintf(v->to, "drop 8 16\n");
	fflush(v->to);
	start_server();
	assert_string_equal(tell(v, "zeros 8 16"), "ok"); /* the answer to the first */
	expect_ok(v, "touch 0 8 1");
}

/* More than one of them, one after the other, and each is left as it is. */
static void servers_may_end_in_good_order(void **state)
{
	struct vmm *v[3];

	(void)state;
	memory_file("mem", PAGES);
	start_server();
	for (size_t i = 0; i < ARRAY_SIZE(v); i++)
		v[i] = bare_machine();
	for (size_t round = 0; round < 4; round++) {
		for (size_t i = 0; i < ARRAY_SIZE(v); i++)
			expect_ok(v[i], "touch %zu 8 2", round * 16 + i);
		lose_server(SIGTERM, 0);
		assert_int_equal(nkept, 3);
		start_server();
	}
	for (size_t i = 0; i < ARRAY_SIZE(v); i++) {
		expect_ok(v[i], "forget");
		expect_ok(v[i], "touch 0 %d 2", PAGES);
	}
}

/* It runs by itself then, and the next server has nothing to do for it. */
static void a_machine_that_is_complete_needs_no_server(void **state)
{
	struct vmm *v;

	(void)state;
	memory_file("mem", PAGES);
	start_server();
	v = bare_machine();
	expect_ok(v, "touch 0 32 1");
	wait_present(32);
	lose_server(SIGKILL, 128 + SIGKILL);
	/* One of its regions is. */
	start_server();
	expect_ok(v, "drop 0 8");
	expect_ok(v, "zeros 0 8");
	expect_ok(v, "touch 32 32 1");
	expect_said("complete");
	lose_server(SIGKILL, 128 + SIGKILL);
	expect_ok(v, "forget");
	start_server();
	assert_int_equal(figure_in(figures(), "complete"), 1);
	expect_ok(v, "drop 40 8");
	expect_ok(v, "zeros 40 8");
	expect_ok(v, "touch 48 16 1");
}

/* ---- What goes --------------------------------------------------------------------------------------- */

static void a_machine_that_ends_is_dropped(void **state)
{
	struct vmm *v;

	(void)state;
	memory_file("mem", PAGES);
	start_server();
	v = bare_machine();
	assert_int_equal(nkept, 1);
	vmm_kill(v);
	supervise("drop");
	assert_int_equal(nkept, 0);
}

static void a_machine_may_end_while_there_is_no_server(void **state)
{
	struct vmm *v;
	size_t fds;

	(void)state;
	memory_file("mem", PAGES);
	start_server();
	fds = server_fds();
	v = bare_machine();
	lose_server(SIGKILL, 128 + SIGKILL);
	vmm_kill(v);
	start_server();
	supervise("drop");
	assert_int_equal(nkept, 0);
	expect_fds(fds);
}

/* ---- At any point ------------------------------------------------------------------------------------ */

#define MANY 512 /* pages of each of two regions */
#define MACHINES 3

/* One of so many pages that there is time to die in. */
static struct vmm *large_machine(void)
{
	struct vmm *v = vmm("version=1.12", "pages=512");

	vmm_join(v);
	supervise("keep");
	expect_ok(v, "hang-up");
	return v;
}

/* It answers when it has done so. */
static void touch_all_later(struct vmm *v)
{
	fprintf(v->to, "touch 0 %d 2\n", 2 * MANY);
	assert_int_equal(fflush(v->to), 0);
}

static unsigned int point_seed(void)
{
	unsigned int seed = (unsigned int)getpid();

	printf("# seed: %u\n", seed);
	return seed;
}

/* Whether any has yet to answer. */
static bool any_at_work(struct vmm *const *v)
{
	for (size_t i = 0; i < MACHINES; i++) {
		struct pollfd p = { .fd = fileno(v[i]->from), .events = POLLIN };

		if (poll(&p, 1, 0) == 0)
			return true;
	}
	return false;
}

/*
 * Until it is somewhere in what is left to be done, or all is done: what a server that was killed had supplied, and
 * not written down yet, no other counts.
 */
static void wait_for_any_point(struct vmm *const *v, unsigned int *seed)
{
	uint64_t now = figure_in(figures(), "pages_present"), most = 2 * MANY * MACHINES;
	uint64_t point = now < most ? now + (uint64_t)rand_r(seed) % (most - now) : now;

	while (any_at_work(v) && figure_in(figures(), "pages_present") < point)
		pause_ms();
}

static void servers_are_killed_at_any_point_and_all_bytes_come(void **state)
{
	unsigned int seed = point_seed();
	struct vmm *v[MACHINES];

	(void)state;
	memory_file("mem", 2 * MANY);
	start_server();
	for (size_t i = 0; i < MACHINES; i++) {
		v[i] = large_machine();
		/* What is gone by then must not come back, however many servers there are. */
		expect_ok(v[i], "drop %zu 8", 64 + i);
		expect_ok(v[i], "zeros %zu 8", 64 + i);
		expect_ok(v[i], "forget");
		fprintf(v[i]->to, "touch 80 %d 2\n", 2 * MANY - 80);
		assert_int_equal(fflush(v[i]->to), 0);
	}
	for (size_t kills = rig_often(12, 3); kills; kills--) {
		wait_for_any_point(v, &seed);
		lose_server(SIGKILL, 128 + SIGKILL);
		start_server();
	}
	for (size_t i = 0; i < MACHINES; i++) {
		/* The answers to what it was told before, and then to these. */
		for (int k = 0; k < 3; k++)
			assert_string_equal(k ? tell(v[i], "zeros %zu 8", 64 + i)
					      : tell(v[i], "touch 0 64 2"),
					    "ok");
	}
	assert_int_equal(nkept, MACHINES);
}

static uint64_t server_rss(void)
{
	char path[64], line[256];
	uint64_t kib = 0;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/status", (int)rig_server.pid);
	f = fopen(path, "r");
	assert_non_null(f);
	while (fgets(line, sizeof(line), f))
		if (!strncmp(line, "RssAnon:", 8))
			kib = strtoull(line + 8, NULL, 10);
	fclose(f);
	return kib;
}

/* The last that was started is the first to go: there is room for any number, one after the other. */
static void machines_live_and_die(unsigned int *seed)
{
	struct vmm *v[MACHINES];
	size_t dies = 1 + (size_t)rand_r(seed) % (MACHINES - 1);

	for (size_t i = 0; i < MACHINES; i++)
		v[i] = large_machine();
	for (size_t i = 0; i < MACHINES; i++)
		touch_all_later(v[i]);
	wait_for_any_point(v, seed);
	for (size_t i = MACHINES - dies; i < MACHINES; i++)
		vmm_kill(v[i]);
	for (size_t i = 0; i < MACHINES - dies; i++) {
		assert_string_equal(tell(v[i], "touch 0 %d 1", 2 * MANY), "ok");
		vmm_kill(v[i]);
	}
	for (size_t i = MACHINES; i--;) {
		supervise("drop");
		vmm_gone(v[i]);
	}
	assert_int_equal(nkept, 0);
}

static void machines_are_killed_at_any_point_and_leave_nothing(void **state)
{
	unsigned int seed = point_seed();
	size_t fds, threads;
	uint64_t kib;

	(void)state;
	memory_file("mem", 2 * MANY);
	start_server();
	/* What it needs once is there then. */
	for (int i = 0; i < 2; i++)
		machines_live_and_die(&seed);
	fds = server_fds();
	threads = server_threads();
	kib = server_rss();
	for (size_t n = rig_often(10, 2); n; n--)
		machines_live_and_die(&seed);
	/* It may not have been done with the last of those. What each left would be more than that. */
	expect_no_more_fds(fds);
	assert_int_equal(server_threads(), threads);
	/* A machine has 4 MiB: half of one is less than what any of them would leave. */
	if (!UNDER_SANITIZER)
		assert_in_range(server_rss(), 0, kib + 2048);
}

/* ---- What should not come ------------------------------------------------------------------------------ */

/* Another file is not what the machine had; the right one will do. */
static void another_memory_is_not_taken_for_the_machines(void **state)
{
	struct vmm *v;

	(void)state;
	memory_file("mem", PAGES);
	start_server();
	v = bare_machine();
	lose_server(SIGTERM, 0);
	assert_int_equal(truncate(rig_path("mem"), (off_t)(PAGES / 2 * page_size())), 0);
	start_server();
	expect_ok(v, "stare 40");
	assert_string_equal(tell(v, "waits"), "yes");
	lose_server(SIGTERM, 0);
	assert_int_equal(nkept, 1);
	memory_file("mem", PAGES);
	start_server();
	assert_string_equal(tell(v, "seen"), "file");
	expect_ok(v, "touch 0 %d 2", PAGES);
}

static void rubbish_is_not_taken_for_machines(void **state)
{
	int null = open("/dev/null", O_RDWR | O_CLOEXEC), file;
	struct vmm *v;

	(void)state;
	memory_file("mem", PAGES);
	start_server();
	v = bare_machine();
	lose_server(SIGKILL, 128 + SIGKILL);
	/* Of the one its file is another's; of the other there is nothing but that. */
	for (size_t i = 1; i < 3; i++) {
		file = memfd_create("state", MFD_CLOEXEC | MFD_ALLOW_SEALING);
		assert_int_equal(ftruncate(file, 65536), 0);
		if (i == 2)
			fcntl(file, F_ADD_SEALS, F_SEAL_SHRINK);
		snprintf(kept[i].name, sizeof(kept[i].name), "vm-rubbish-%zu", i);
		kept[i].n = 1;
		kept[i].fd[0] = file;
	}
	snprintf(kept[3].name, sizeof(kept[3].name), "vm-nothing");
	kept[3].fd[0] = null;
	kept[3].n = 1;
	nkept = 4;
	start_server();
	expect_ok(v, "touch 0 %d 2", PAGES);
	for (int i = 0; i < 3; i++)
		supervise("drop");
	assert_int_equal(nkept, 1);
}

static void a_supervisor_may_go(void **state)
{
	struct vmm *v;

	(void)state;
	memory_file("mem", PAGES);
	start_server();
	v = bare_machine();
	close(ours);
	ours = -1;
	expect_words("error", "the supervisor has gone");
	expect_ok(v, "touch 0 8 2");
	expect_ok(v, "forget");
	/* Nobody but the server can let it wait. */
	assert_int_equal(serve_stop(SIGTERM), 1);
	assert_int_equal(vmm_died(v), SIGKILL);
}

/* ---- systemd ------------------------------------------------------------------------------------------- */

static int listener;

/* As it does it: the socket, and then what it has kept. */
static void as_systemd_does(void)
{
	char text[256] = "sock", number[16];
	int n = 3, fds[8], count = 0;

	fds[count++] = listener;
	for (size_t i = 0; nkept && i < kept[0].n; i++)
		fds[count++] = kept[0].fd[i];
	/* Out of the way first. */
	for (int i = 0; i < count; i++)
		fds[i] = fcntl(fds[i], F_DUPFD, 100);
	for (int i = 0; i < count; i++) {
		dup2(fds[i], n++);
		close(fds[i]);
		if (i) {
			strcat(text, ":");
			strcat(text, kept[0].name);
		}
	}
	setenv("LISTEN_FDNAMES", text, 1);
	snprintf(number, sizeof(number), "%d", count);
	setenv("LISTEN_FDS", number, 1);
	snprintf(number, sizeof(number), "%d", (int)getpid());
	setenv("LISTEN_PID", number, 1);
	setenv("NOTIFY_SOCKET", rig_path("notify"), 1);
}

static int bound(int type, const char *name)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int sock = socket(AF_UNIX, type | SOCK_CLOEXEC, 0);

	strcpy(address.sun_path, rig_path(name));
	assert_int_equal(bind(sock, (struct sockaddr *)&address, sizeof(address)), 0);
	return sock;
}

/* Its datagrams, until one begins so. */
static size_t wait_datagram(const char *what, char *text, size_t len, int *fds)
{
	size_t n;

	do
		n = packet(text, len, fds);
	while (strncmp(text, what, strlen(what)));
	return n;
}

static void systemd_keeps_machines(void **state)
{
	char text[512];
	struct vmm *v;
	int fds[8];

	(void)state;
	memory_file("mem", PAGES);
	listener = bound(SOCK_STREAM, "sock");
	assert_int_equal(listen(listener, 5), 0);
	ours = bound(SOCK_DGRAM, "notify");
	rig_in_child = as_systemd_does;
	serve_raw("--json", "--memory", rig_path("mem"), "--keepalive", "systemd");
	v = vmm("version=1.12");
	vmm_join(v);
	kept[0].n = wait_datagram("FDSTORE=1\n", text, sizeof(text), fds);
	memcpy(kept[0].fd, fds, kept[0].n * sizeof(*fds));
	assert_non_null(strstr(text, "\nFDPOLL=0"));
	assert_int_equal(sscanf(strstr(text, "FDNAME="), "FDNAME=%63[^\n]", kept[0].name), 1);
	nkept = 1;
	expect_ok(v, "touch 0 8 1");
	expect_ok(v, "forget");
	assert_int_equal(serve_stop(SIGKILL), 128 + SIGKILL);
	serve_forget();
	serve_raw("--json", "--memory", rig_path("mem"), "--keepalive", "systemd");
	expect_said("adopted");
	expect_ok(v, "touch 0 %d 2", PAGES);
	vmm_kill(v);
	wait_datagram("FDSTOREREMOVE=1\n", text, sizeof(text), fds);
	assert_non_null(strstr(text, kept[0].name));
	close(listener);
}

static const struct CMUnitTest tests[] = {
	KEEP(a_server_is_killed_and_the_next_goes_on),
	KEEP(what_is_given_back_to_nobody_does_not_come_back),
	KEEP(servers_may_end_in_good_order),
	KEEP(a_machine_that_is_complete_needs_no_server),
	KEEP(servers_are_killed_at_any_point_and_all_bytes_come),
	KEEP(machines_are_killed_at_any_point_and_leave_nothing),
	KEEP(a_machine_that_ends_is_dropped),
	KEEP(a_machine_may_end_while_there_is_no_server),
	KEEP(another_memory_is_not_taken_for_the_machines),
	KEEP(rubbish_is_not_taken_for_machines),
	KEEP(a_supervisor_may_go),
	KEEP(systemd_keeps_machines),
};

int main(int argc, char **argv)
{
	return rig_main(argc, argv, "serve-keep", tests, ARRAY_SIZE(tests));
}
