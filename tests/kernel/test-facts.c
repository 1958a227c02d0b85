/* SPDX-License-Identifier: MIT */
/*
 * What the kernel really does, where no other program shows it already: the facts that the library
 * and its users build on, each as a case. Some are told in structs that the library keeps for
 * itself; those are asked for by the bare ioctl.
 */
#include "calls.h"

#include <dirent.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/uio.h>

#include "pages.h"

#define MISSING LIBUFFD_MODE_MISSING
#define WP LIBUFFD_MODE_WP
#define MINOR LIBUFFD_MODE_MINOR

static struct libuffd_caps probed(void)
{
	struct libuffd_caps caps = LIBUFFD_CAPS_INIT;

	assert_int_equal(libuffd_probe(&caps), 0);
	return caps;
}

static bool kernel_has(uint64_t features)
{
	return (probed().features & features) == features;
}

/* Up to 7.2, or from 7.3 on, which brought this feature. */
static bool kernel_has_rwp(void)
{
	return kernel_has(LIBUFFD_FEATURE_RWP);
}

static void fill_page(const struct libuffd *u, const struct mem *m, size_t n, unsigned char byte)
{
	unsigned char *data = page_of(m, 1, byte);

	assert_int_equal(copy_settled(u, mem_at(m, n), data, m->page), 0);
	free(data);
}

/* The page faults, its message comes, and the toucher gets this byte. */
static void page_is_missing(const struct libuffd *u, const struct mem *m, size_t n,
			    unsigned char byte)
{
	struct faulter f;

	faulter_start(&f, mem_page(m, n), false, 0xff);
	assert_int_equal(expect_event(u, LIBUFFD_EVENT_FAULT).fault.address, mem_at(m, n));
	fill_page(u, m, n, byte);
	faulter_join(&f);
	assert_int_equal(f.signal, 0);
	assert_int_equal(f.byte, byte);
}

/* ---- The handshake -------------------------------------------------------------------------- */

#define UFFD_TYPE 0xaa
#define API 0xaa

struct raw_api {
	uint64_t api, features, ioctls;
};

#define RAW_API _IOWR(UFFD_TYPE, 0x3f, struct raw_api)

/* A userfaultfd without a handshake. */
static int raw_uffd(void)
{
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);

	if (fd < 0)
		fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | 1 /* user mode */);
	if (fd < 0)
		SKIP("syscall", "userfaultfd(2) is not permitted here");
	return fd;
}

/* 0 or an errno. */
static int shake(int fd, uint64_t version, uint64_t features, struct raw_api *a)
{
	*a = (struct raw_api){ version, features, 0x77 };
	return ioctl(fd, RAW_API, a) ? errno : 0;
}

static void refused_shake(int fd, uint64_t version, uint64_t features)
{
	struct raw_api a;

	assert_int_equal(shake(fd, version, features, &a), EINVAL);
	/* Nothing is told of what there is: it takes a second descriptor to learn that. */
	assert_true(a.api == 0 && a.features == 0 && a.ioctls == 0);
}

static void a_refused_handshake_can_be_tried_again(void **state)
{
	struct libuffd_caps caps = probed();
	int fd = raw_uffd();
	struct raw_api a;

	(void)state;
	refused_shake(fd, API + 1, 0);
	refused_shake(fd, API, UINT64_C(1) << 62);
	/* Not without RWP; and a kernel before 7.3 has neither. */
	refused_shake(fd, API, LIBUFFD_FEATURE_RWP_ASYNC);
	assert_int_equal(shake(fd, API, LIBUFFD_FEATURE_THREAD_ID, &a), 0);
	assert_int_equal(a.api, API);
	/* All that is supported, whatever was asked for. */
	assert_int_equal(a.features, caps.features);
	assert_int_equal(a.ioctls, caps.ioctls);
	close(fd);
}

/* Asking for nothing, to learn what there is, uses the descriptor up. */
static void a_successful_handshake_is_final(void **state)
{
	int fd = raw_uffd();
	struct libuffd *u;
	struct raw_api a;
	struct mem m;

	(void)state;
	assert_int_equal(shake(fd, API, 0, &a), 0);
	assert_int_equal(shake(fd, API, LIBUFFD_FEATURE_THREAD_ID, &a), EINVAL);
	assert_int_equal(shake(fd, API, 0, &a), EINVAL);
	/* It stays usable, with the features of the first time. */
	assert_int_equal(libuffd_adopt(fd, NULL, &u), 0);
	assert_int_equal(libuffd_features(u), 0);
	mem_map(&m, MEM_ANON, 1);
	mem_register(u, &m, MISSING);
	page_is_missing(u, &m, 0, 1);
	libuffd_close(u);
	mem_unmap(&m);
}

#define FEATURE_INITIALIZED (1u << 31)

static bool fdinfo_api(int fd, unsigned int *api, unsigned int *features, uint64_t *ioctls)
{
	char path[64], line[128];
	bool found = false;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", fd);
	f = fopen(path, "r");
	assert_non_null(f);
	while (!found && fgets(line, sizeof(line), f))
		found = sscanf(line, "API: %x:%x:%" SCNx64, api, features, ioctls) == 3;
	fclose(f);
	return found;
}

/* The one place that tells what a descriptor's owner enabled, and a bit of the kernel's own. */
static void fdinfo_tells_what_is_enabled(void **state)
{
	unsigned int api, features;
	int fd = raw_uffd();
	uint64_t ioctls;
	struct raw_api a;

	(void)state;
	assert_true(fdinfo_api(fd, &api, &features, &ioctls));
	assert_int_equal(api, API);
	assert_int_equal(features, 0);
	assert_int_equal(shake(fd, API, LIBUFFD_FEATURE_THREAD_ID | LIBUFFD_FEATURE_SIGBUS, &a), 0);
	assert_true(fdinfo_api(fd, &api, &features, &ioctls));
	assert_int_equal(features & ~FEATURE_INITIALIZED,
			 LIBUFFD_FEATURE_THREAD_ID | LIBUFFD_FEATURE_SIGBUS);
	assert_true(features & FEATURE_INITIALIZED);
	assert_int_equal(ioctls & a.ioctls & (LIBUFFD_IOCTL_REGISTER | LIBUFFD_IOCTL_UNREGISTER),
			 LIBUFFD_IOCTL_REGISTER | LIBUFFD_IOCTL_UNREGISTER);
	close(fd);
}

/* Those that no processor or configuration can lack: a later one never comes without an earlier. */
static void features_came_one_after_the_other(void **state)
{
	static const uint64_t in_order[] = {
		LIBUFFD_FEATURE_EVENT_FORK | LIBUFFD_FEATURE_EVENT_REMAP |
			LIBUFFD_FEATURE_EVENT_REMOVE | LIBUFFD_FEATURE_MISSING_HUGETLBFS |
			LIBUFFD_FEATURE_MISSING_SHMEM | LIBUFFD_FEATURE_EVENT_UNMAP |
			LIBUFFD_FEATURE_SIGBUS | LIBUFFD_FEATURE_THREAD_ID,
		LIBUFFD_FEATURE_EXACT_ADDRESS,
		LIBUFFD_FEATURE_POISON,
		LIBUFFD_FEATURE_MOVE,
	};
	struct libuffd_caps caps = probed();
	bool had = true;

	(void)state;
	printf("# features 0x%" PRIx64 ", ioctls 0x%" PRIx64 "\n", caps.features, caps.ioctls);
	assert_int_equal(caps.features & in_order[0], in_order[0]);
	for (size_t i = 0; i < ARRAY_SIZE(in_order); i++) {
		bool has = (caps.features & in_order[i]) == in_order[i];

		assert_true(had || !has);
		had = has;
	}
	/* The one feature that brought a call on the descriptor as a whole. */
	assert_int_equal(!!(caps.ioctls & LIBUFFD_IOCTL_SET_MODE), kernel_has_rwp());
}

static void before_the_handshake_there_is_nothing(void **state)
{
	struct pollfd p = { .fd = raw_uffd(), .events = POLLIN };
	unsigned char message[32];

	(void)state;
	assert_int_equal(poll(&p, 1, -1), 1);
	assert_int_equal(p.revents, POLLERR);
	assert_int_equal(read(p.fd, message, sizeof(message)), -1);
	assert_int_equal(errno, EINVAL);
	close(p.fd);
}

struct trial {
	int setup, ret, handshake, ptrace;
};

static void try_in_user_namespace(struct trial *t)
{
	struct libuffd_open_opts opts = LIBUFFD_OPEN_OPTS_INIT;
	struct libuffd_caps caps = LIBUFFD_CAPS_INIT;
	struct libuffd_report report;
	struct libuffd *u;

	if (unshare(CLONE_NEWUSER)) {
		t->setup = errno;
		return;
	}
	opts.flags = LIBUFFD_OPEN_USER_MODE_OK;
	opts.required = LIBUFFD_FEATURE_EVENT_FORK;
	opts.report = &report;
	t->ret = libuffd_open(&opts, &u);
	t->handshake = report.handshake;
	libuffd_close(u);
	libuffd_probe(&caps);
	t->ptrace = caps.ptrace;
}

/* Being root there is not enough: the descriptors would be to memory that others may share. */
static void fork_events_want_the_initial_namespace(void **state)
{
	struct trial *shared, t;
	int status;
	pid_t pid;

	(void)state;
	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1,
		      0);
	assert_ptr_not_equal(shared, MAP_FAILED);
	pid = fork();
	assert_true(pid >= 0);
	if (!pid) {
		try_in_user_namespace(shared);
		_exit(0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	t = *shared;
	munmap(shared, sizeof(*shared));
	assert_int_equal(status, 0);
	if (t.setup)
		SKIP("namespaces", "no user namespace for a child here: %s", strerror(t.setup));
	assert_int_equal(t.ptrace, 1);
	assert_int_equal(t.ret, -EPERM);
	if (t.handshake == LIBUFFD_NOT_TRIED)
		SKIP("user-mode", "there is no way to a descriptor at all in there");
	assert_int_equal(t.handshake, -EPERM);
}

/* ---- read and poll -------------------------------------------------------------------------- */

/* Messages come whole or not at all. */
static void a_read_is_of_whole_messages(void **state)
{
	unsigned char buf[100];
	struct faulter f[2];
	struct rig r;
	ssize_t got;

	(void)state;
	rig_up(&r, MEM_ANON, 2, MISSING, 0);
	faulter_start(&f[0], mem_page(&r.m, 0), false, 0);
	faulter_start(&f[1], mem_page(&r.m, 1), false, 0);
	wait_waiters(r.u, 2);
	for (size_t len = 0; len < 32; len += 31) {
		got = read(libuffd_fd(r.u), buf, len);
		assert_true(got == -1 && errno == EINVAL);
	}
	memset(buf, 0x55, sizeof(buf));
	assert_int_equal(read(libuffd_fd(r.u), buf, 63), 32);
	assert_true(all_bytes(buf + 32, sizeof(buf) - 32, 0x55));
	assert_int_equal(read(libuffd_fd(r.u), buf, 99), 32);
	expect_no_event(r.u);
	fill_page(r.u, &r.m, 0, 1);
	fill_page(r.u, &r.m, 1, 2);
	faulter_join(&f[0]);
	faulter_join(&f[1]);
	rig_down(&r);
}

/* Where no message can be written. */
static void *unwritable_page(void)
{
	void *p = mmap(NULL, page_size(), PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	assert_ptr_not_equal(p, MAP_FAILED);
	return p;
}

/* The kernel takes the message off its queue first. The toucher waits; a wake has it told again. */
static void a_bad_buffer_loses_a_fault_until_it_is_woken(void **state)
{
	void *bad = unwritable_page();
	struct libuffd_event ev;
	struct faulter f;
	struct rig r;

	rig_up(&r, kind_of(state), 1, MISSING, 0);
	faulter_start(&f, r.m.addr, false, 0);
	wait_asleep(r.u, 1, &r.m);
	assert_int_equal(libuffd_read_events(r.u, bad, 1), -EFAULT);
	expect_no_event(r.u);
	assert_int_equal(waiters(r.u), 1);
	assert_int_equal(libuffd_wake(r.u, r.m.start, r.m.len), 0);
	ev = expect_event(r.u, LIBUFFD_EVENT_FAULT);
	assert_int_equal(ev.fault.address, r.m.start);
	fill_page(r.u, &r.m, 0, 9);
	faulter_join(&f);
	assert_int_equal(f.byte, 9);
	munmap(bad, page_size());
	rig_down(&r);
}

/* To the kernel an event has been delivered then: its thread goes on, and nobody ever knew. */
static void a_bad_buffer_loses_an_event_for_good(void **state)
{
	void *bad = unwritable_page();
	struct call c;
	struct rig r;

	(void)state;
	rig_up(&r, MEM_ANON, 1, MISSING, LIBUFFD_FEATURE_EVENT_REMOVE);
	madvise_start(&c, r.m.addr, r.m.len, MADV_DONTNEED);
	wait_readable(r.u);
	assert_int_equal(libuffd_read_events(r.u, bad, 1), -EFAULT);
	assert_int_equal(call_join(&c), 0);
	expect_no_event(r.u);
	munmap(bad, page_size());
	rig_down(&r);
}

static int exit_at_once(void *arg)
{
	(void)arg;
	return 0;
}

/* Wait for a child of fork_start(); it must have ended by itself. */
static int exit_status(pid_t pid)
{
	int status;

	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	return WEXITSTATUS(status);
}

/* The handle of a child's memory; @c is joined, and the child runs. */
static struct libuffd *fork_handle(const struct libuffd *u, struct call *c)
{
	struct libuffd_event ev = expect_event(u, LIBUFFD_EVENT_FORK);

	assert_non_null(ev.fork.handle);
	assert_int_equal(call_join(c), 0);
	return ev.fork.handle;
}

/* A handler that waits for its target's end in poll(2) waits for ever: a pidfd tells. */
static void the_exit_of_the_target_is_not_told(void **state)
{
	struct pollfd p = { .events = POLLIN | POLLPRI };
	struct libuffd *child;
	struct call c;
	struct rig r;

	(void)state;
	rig_up(&r, MEM_ANON, 1, MISSING, LIBUFFD_FEATURE_EVENT_FORK);
	fork_start(&c, exit_at_once, NULL);
	child = fork_handle(r.u, &c);
	assert_int_equal(exit_status(c.pid), 0);
	p.fd = libuffd_fd(child);
	assert_int_equal(poll(&p, 1, 0), 0);
	assert_int_equal(p.revents, 0);
	expect_no_event(child);
	libuffd_close(child);
	rig_down(&r);
}

static void sigbus_mode_sends_no_message(void **state)
{
	unsigned char byte = 0;
	struct rig r;

	rig_up(&r, kind_of(state), 1, MISSING, LIBUFFD_FEATURE_SIGBUS);
	assert_int_equal(touch(r.m.addr, false, &byte), SIGBUS);
	assert_int_equal(touch(r.m.addr, true, &byte), SIGBUS);
	expect_no_event(r.u);
	assert_int_equal(waiters(r.u), 0);
	rig_down(&r);
}

static atomic_int handled;

static void count_signal(int sig)
{
	(void)sig;
	atomic_fetch_add(&handled, 1);
}

/*
 * So a thread that waits for a page can be made to do other things, and its access is told again
 * afterwards. (A sanitizer has its own hour for handlers.)
 */
static void a_waiters_signal_handler_runs(void **state)
{
	struct sigaction sa = { .sa_handler = count_signal, .sa_flags = SA_RESTART }, old;
	struct faulter f;
	struct rig r;

	if (UNDER_SANITIZER)
		SKIP("no-sanitizer", "signal handlers are put off by some sanitizers");
	assert_int_equal(sigaction(SIGUSR2, &sa, &old), 0);
	atomic_store(&handled, 0);
	rig_up(&r, kind_of(state), 1, MISSING, 0);
	faulter_start(&f, r.m.addr, false, 0);
	for (int i = 1; i <= 3; i++) {
		expect_event(r.u, LIBUFFD_EVENT_FAULT);
		assert_int_equal(pthread_kill(f.thread, SIGUSR2), 0);
		while (atomic_load(&handled) < i)
			give_way();
		assert_false(atomic_load(&f.done));
	}
	expect_event(r.u, LIBUFFD_EVENT_FAULT);
	assert_int_equal(waiters(r.u), 1);
	fill_page(r.u, &r.m, 0, 7);
	faulter_join(&f);
	assert_int_equal(f.byte, 7);
	rig_down(&r);
	sigaction(SIGUSR2, &old, NULL);
}

/* ---- The output field, as the kernel leaves it ---------------------------------------------- */

enum op_kind { COPY, ZEROPAGE, MOVE, CONTINUE, POISON };

struct raw_transfer {
	uint64_t dst, src, len, mode;
	int64_t out;
};

struct raw_fill {
	uint64_t start, len, mode;
	int64_t out;
};

static const unsigned long request[] = {
	[COPY] = _IOWR(UFFD_TYPE, 0x03, struct raw_transfer),
	[ZEROPAGE] = _IOWR(UFFD_TYPE, 0x04, struct raw_fill),
	[MOVE] = _IOWR(UFFD_TYPE, 0x05, struct raw_transfer),
	[CONTINUE] = _IOWR(UFFD_TYPE, 0x07, struct raw_fill),
	[POISON] = _IOWR(UFFD_TYPE, 0x08, struct raw_fill),
};

/* What no kernel writes there. */
#define UNTOUCHED INT64_C(0x5a5a5a5a5a5a)

/* A range, the call, and memory where COPY and MOVE take their pages from. */
struct bench {
	enum op_kind op;
	struct rig r;
	struct mem from;
};

static void bench_up(struct bench *b, void **state, size_t pages, uint64_t features)
{
	b->op = (enum op_kind)(uintptr_t)*state;
	features |= b->op == MOVE     ? LIBUFFD_FEATURE_MOVE
		    : b->op == POISON ? LIBUFFD_FEATURE_POISON
				      : 0;
	rig_up(&b->r, b->op == CONTINUE ? MEM_SHMEM_SHARED : MEM_ANON, pages,
	       b->op == CONTINUE ? MINOR : MISSING, features);
	if (b->op == CONTINUE)
		memset(b->r.m.alias, 1, b->r.m.len);
	mem_map(&b->from, MEM_ANON, pages);
	memset(b->from.addr, 1, b->from.len);
}

static void bench_down(struct bench *b)
{
	mem_unmap(&b->from);
	rig_down(&b->r);
}

/* 0 or an errno, and what came out. */
static int raw_call(const struct bench *b, const struct libuffd *u, uint64_t dst, size_t page,
		    size_t len, int64_t *out)
{
	struct raw_transfer t = { dst, mem_at(&b->from, page), len, 0, UNTOUCHED };
	struct raw_fill f = { dst, len, 0, UNTOUCHED };
	bool transfer = b->op == COPY || b->op == MOVE;
	int ret = ioctl(libuffd_fd(u), request[b->op], transfer ? (void *)&t : (void *)&f);
	int error = ret ? errno : 0;

	*out = transfer ? t.out : f.out;
	return error;
}

#define RAW(error, field, b, u, dst, page, len)                                 \
	do {                                                                    \
		int64_t out_;                                                   \
		assert_int_equal(raw_call(b, u, dst, page, len, &out_), error); \
		assert_int_equal(out_, field);                                  \
	} while (0)

static void the_field_holds_bytes_or_the_error(void **state)
{
	const struct mem *m;
	struct bench b;

	bench_up(&b, state, 6, 0);
	m = &b.r.m;
	RAW(0, (int64_t)m->page, &b, b.r.u, mem_at(m, 2), 2, m->page);
	if (b.op == MOVE)
		memset(mem_page(&b.from, 2), 1, m->page);
	/* Page 2 is in the way: the two before it are told of, the reason only the next time. */
	RAW(EAGAIN, (int64_t)(2 * m->page), &b, b.r.u, m->start, 0, 6 * m->page);
	RAW(EEXIST, -EEXIST, &b, b.r.u, mem_at(m, 2), 2, 4 * m->page);
	RAW(0, (int64_t)(3 * m->page), &b, b.r.u, mem_at(m, 3), 3, 3 * m->page);
	bench_down(&b);
}

/* Who takes the field for a result reads there what he put in. */
static void refused_arguments_leave_the_field_alone(void **state)
{
	const struct mem *m;
	struct bench b;

	bench_up(&b, state, 2, 0);
	m = &b.r.m;
	RAW(EINVAL, UNTOUCHED, &b, b.r.u, m->start + 1, 0, m->page);
	RAW(EINVAL, UNTOUCHED, &b, b.r.u, m->start, 0, 0);
	RAW(EINVAL, UNTOUCHED, &b, b.r.u, m->start, 0, m->page + 1);
	assert_int_equal(ioctl(libuffd_fd(b.r.u), request[b.op], NULL), -1);
	assert_int_equal(errno, EFAULT);
	bench_down(&b);
}

/* -EAGAIN on newer kernels, what was there before on 5.10 and 6.1. No feature tells which. */
static void a_changing_layout_and_the_field(void **state)
{
	const struct mem *m;
	struct bench b;
	struct call c;
	int64_t out;

	bench_up(&b, state, 2, LIBUFFD_FEATURE_EVENT_REMOVE);
	m = &b.r.m;
	madvise_start(&c, mem_page(m, 1), m->page, MADV_DONTNEED);
	wait_readable(b.r.u);
	assert_int_equal(raw_call(&b, b.r.u, m->start, 0, m->page, &out), EAGAIN);
	printf("# the field is %s\n", out == UNTOUCHED ? "left alone" : "-EAGAIN");
	assert_true(out == -EAGAIN || out == UNTOUCHED);
	/* The layout comes before the arguments, so what is wrong with them stays unsaid. */
	assert_int_equal(raw_call(&b, b.r.u, m->start + 1, 0, m->page, &out), EAGAIN);
	expect_event(b.r.u, LIBUFFD_EVENT_REMOVE);
	assert_int_equal(call_join(&c), 0);
	bench_down(&b);
}

/* MOVE looks at whose memory it is before it looks whether that is alive. */
static void a_dead_process_leaves_the_field_alone(void **state)
{
	struct libuffd *dead;
	struct bench b;
	struct call c;

	bench_up(&b, state, 1, LIBUFFD_FEATURE_EVENT_FORK);
	fork_start(&c, exit_at_once, NULL);
	dead = fork_handle(b.r.u, &c);
	assert_int_equal(exit_status(c.pid), 0);
	RAW(b.op == MOVE ? EINVAL : ESRCH, UNTOUCHED, &b, dead, b.r.m.start, 0, b.r.m.page);
	libuffd_close(dead);
	bench_down(&b);
}

/* ---- Registering ---------------------------------------------------------------------------- */

#define MAX_MAP_COUNT "/proc/sys/vm/max_map_count"
/* A limit above this takes too long to reach. */
#define MANY_MAPS 100000

static long maps_before = -1;

static long read_number(const char *path)
{
	FILE *f = fopen(path, "r");
	long n = -1;

	if (f && fscanf(f, "%ld", &n) != 1)
		n = -1;
	if (f)
		fclose(f);
	return n;
}

static bool write_text(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	bool ok = fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text);

	if (fd >= 0)
		close(fd);
	return ok;
}

static bool write_number(const char *path, long n)
{
	char text[32];

	snprintf(text, sizeof(text), "%ld", n);
	return write_text(path, text);
}

/* Only where nobody else lives: on a real machine the true limit has to be reached. */
static int lower_the_limit_of_maps(void **state)
{
	(void)state;
	maps_before = -1;
	if (in_test_vm() && !geteuid()) {
		maps_before = read_number(MAX_MAP_COUNT);
		write_number(MAX_MAP_COUNT, 1000);
	}
	return 0;
}

static int restore_the_limit_of_maps(void **state)
{
	(void)state;
	return maps_before < 0 || write_number(MAX_MAP_COUNT, maps_before) ? 0 : -1;
}

/* Cut a piece of address space into mappings of a page, until the kernel allows no more of them. */
static void *exhaust_maps(size_t *len)
{
	long limit = read_number(MAX_MAP_COUNT);
	unsigned char *p;

	*len = (size_t)(limit + 2) * page_size();
	p = mmap(NULL, *len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	assert_ptr_not_equal(p, MAP_FAILED);
	/* The rest of it changes its protection each time: one cut, and so exactly the limit. */
	for (size_t at = page_size(); at < *len; at += page_size())
		if (mprotect(p + at, *len - at, at / page_size() % 2 ? PROT_READ : PROT_NONE)) {
			assert_int_equal(errno, ENOMEM);
			return p;
		}
	fail_msg("%ld mappings were not the limit", limit);
	return NULL;
}

/* Two mappings, of which the second has to be cut in two to register a part of it. */
static void a_failed_split_leaves_a_prefix_registered(void **state)
{
	int registered, unregistered;
	unsigned char byte = 0xff;
	struct libuffd *u;
	struct mem m;
	size_t len;
	void *cut;

	(void)state;
	if (read_number(MAX_MAP_COUNT) > MANY_MAPS)
		SKIP("vm", "vm.max_map_count is high, and not ours to change");
	mem_map(&m, MEM_ANON, 4);
	assert_int_equal(mprotect(mem_page(&m, 2), 2 * m.page, PROT_READ), 0);
	u = uffd_with(0);
	cut = exhaust_maps(&len);
	registered = libuffd_register(u, m.start, 3 * m.page, MISSING, NULL);
	unregistered = libuffd_unregister(u, m.start, m.page);
	munmap(cut, len);
	assert_int_equal(registered, -ENOMEM);
	/* The first mapping is registered all the same, and the second is not. */
	page_is_missing(u, &m, 0, 5);
	page_is_missing(u, &m, 1, 6);
	assert_int_equal(touch(mem_page(&m, 2), false, &byte), 0);
	assert_int_equal(byte, 0);
	expect_no_event(u);
	/* Letting go of a part needs a cut as well. */
	assert_int_equal(unregistered, -ENOMEM);
	libuffd_close(u);
	mem_unmap(&m);
}

/* Not what the range can do, but what this request would bring: MINOR is there all the same. */
static void a_subset_is_a_silent_success_that_changes_nothing(void **state)
{
	struct libuffd_event ev;
	struct faulter f;
	struct rig r;
	uint64_t ioctls;

	rig_up(&r, kind_of(state), 2, MISSING | MINOR, 0);
	assert_int_equal(libuffd_register(r.u, r.m.start, r.m.len, MISSING, &ioctls), 0);
	assert_true(ioctls & LIBUFFD_IOCTL_COPY);
	assert_false(ioctls & LIBUFFD_IOCTL_CONTINUE);
	mem_fill_file(&r.m, 1, 4);
	faulter_start(&f, mem_page(&r.m, 1), false, 0);
	ev = expect_event(r.u, LIBUFFD_EVENT_FAULT);
	assert_int_equal(ev.fault.flags, LIBUFFD_FAULT_MINOR);
	assert_int_equal(libuffd_unregister(r.u, r.m.start, r.m.len), 0);
	faulter_join(&f);
	assert_int_equal(f.byte, 4);
	rig_down(&r);
}

/* MISSING, then MINOR: absent pages are the kernel's own again, and cached ones fault. */
static void a_disjoint_mode_replaces_the_old_one(void **state)
{
	unsigned char byte = 0xff;
	struct libuffd_event ev;
	struct faulter f;
	struct rig r;

	rig_up(&r, kind_of(state), 2, MISSING, mem_features(kind_of(state), MINOR));
	mem_register(r.u, &r.m, MINOR);
	assert_int_equal(touch(mem_page(&r.m, 0), false, &byte), 0);
	assert_int_equal(byte, 0);
	expect_no_event(r.u);
	mem_fill_file(&r.m, 1, 4);
	faulter_start(&f, mem_page(&r.m, 1), false, 0);
	ev = expect_event(r.u, LIBUFFD_EVENT_FAULT);
	assert_int_equal(ev.fault.flags, LIBUFFD_FAULT_MINOR);
	assert_int_equal(libuffd_unregister(r.u, r.m.start, r.m.len), 0);
	faulter_join(&f);
	rig_down(&r);
}

/* The kernel that has RWP refuses what would drop WP; the ones before it do as they are told. */
static void dropping_wp_is_busy_on_kernels_with_rwp(void **state)
{
	int expected = kernel_has_rwp() ? -EBUSY : 0;
	struct rig r;

	rig_up(&r, kind_of(state), 1, MISSING | WP, 0);
	assert_int_equal(libuffd_register(r.u, r.m.start, r.m.len, MISSING, NULL), expected);
	rig_down(&r);
	rig_up(&r, kind_of(state), 1, WP, 0);
	assert_int_equal(libuffd_register(r.u, r.m.start, r.m.len, MISSING, NULL), expected);
	rig_down(&r);
}

/*
 * From 6.18 on it is EINVAL and nothing happens. Before, it is a success that takes the range away
 * from its owner, who is not told.
 */
static void unregistering_anothers_range(void **state)
{
	unsigned char byte = 0xff;
	struct libuffd *other;
	struct rig r;
	int ret;

	rig_up(&r, kind_of(state), 1, MISSING, 0);
	other = uffd_with(0);
	ret = libuffd_unregister(other, r.m.start, r.m.len);
	printf("# unregistering another's range: %d\n", ret);
	if (ret) {
		assert_int_equal(ret, -EINVAL);
		page_is_missing(r.u, &r.m, 0, 3);
	} else {
		assert_int_equal(touch(r.m.addr, false, &byte), 0);
		assert_int_equal(byte, 0);
		expect_no_event(r.u);
	}
	libuffd_close(other);
	rig_down(&r);
}

struct raw_range {
	uint64_t start, len;
};

#define RAW_UNREGISTER _IOR(UFFD_TYPE, 0x01, struct raw_range)

/* As it leaves who waits to write or for a page of the cache: test-range.c has those. */
static void the_ioctl_alone_leaves_who_waits_to_access_asleep(void **state)
{
	struct raw_range range;
	struct faulter f;
	struct rig r;

	rig_up(&r, kind_of(state), 1, LIBUFFD_MODE_RWP, 0);
	poke(r.m.addr, 6);
	assert_int_equal(libuffd_rwprotect(r.u, r.m.start, r.m.len, LIBUFFD_RWPROTECT_RWP), 0);
	faulter_start(&f, r.m.addr, false, 0);
	wait_asleep(r.u, 1, &r.m);
	range = (struct raw_range){ r.m.start, r.m.len };
	assert_int_equal(ioctl(libuffd_fd(r.u), RAW_UNREGISTER, &range), 0);
	assert_int_equal(waiters(r.u), 1);
	assert_int_equal(libuffd_wake(r.u, r.m.start, r.m.len), 0);
	faulter_join(&f);
	assert_int_equal(f.byte, 6);
	rig_down(&r);
}

/* ---- Operations ----------------------------------------------------------------------------- */

/* Both halves are registered; another protection makes two mappings of them. Nobody is woken. */
static void a_range_over_two_mappings_is_enoent(void **state)
{
	struct faulter f;
	struct bench b;
	int64_t out;
	int error;

	bench_up(&b, state, 2, 0);
	assert_int_equal(mprotect(mem_page(&b.r.m, 1), b.r.m.page, PROT_READ), 0);
	faulter_start(&f, b.r.m.addr, false, 0);
	wait_asleep(b.r.u, 1, &b.r.m);
	error = raw_call(&b, b.r.u, b.r.m.start, 0, b.r.m.len, &out);
	assert_int_equal(error, b.op == MOVE ? EINVAL : ENOENT);
	assert_int_equal(out, -error);
	assert_int_equal(waiters(b.r.u), 1);
	RAW(0, (int64_t)b.r.m.page, &b, b.r.u, b.r.m.start, 0, b.r.m.page);
	faulter_join(&f);
	assert_int_equal(f.signal, b.op == POISON ? SIGBUS : 0);
	bench_down(&b);
}

/* The flag came with 6.4, as WP_UNPOPULATED did; before, it is an unknown one. */
static void continue_wp_came_with_wp_unpopulated(void **state)
{
	int expected = kernel_has(LIBUFFD_FEATURE_WP_UNPOPULATED) ? 0 : -EINVAL;
	struct rig r;
	size_t done;

	rig_up(&r, kind_of(state), 1, MINOR | WP, 0);
	mem_fill_file(&r.m, 0, 3);
	assert_int_equal(libuffd_continue(r.u, r.m.start, r.m.page, LIBUFFD_CONTINUE_WP, &done),
			 expected);
	rig_down(&r);
}

/* COPY replaces the mark of a protected absent page, poison does not. */
static void poison_does_not_replace_a_mark(void **state)
{
	enum mem_kind kind = kind_of(state);
	struct rig r;
	size_t done;

	rig_up(&r, kind, 1, MISSING | WP,
	       LIBUFFD_FEATURE_POISON | (kind == MEM_ANON ? LIBUFFD_FEATURE_WP_UNPOPULATED : 0));
	assert_int_equal(libuffd_writeprotect(r.u, r.m.start, r.m.len, LIBUFFD_WRITEPROTECT_WP), 0);
	assert_int_equal(libuffd_poison(r.u, r.m.start, r.m.len, 0, &done), -EEXIST);
	assert_int_equal(done, 0);
	rig_down(&r);
}

static size_t page_tables_kib(void)
{
	FILE *f = fopen("/proc/self/status", "r");
	char line[128];
	size_t kib = 0;

	assert_non_null(f);
	while (fgets(line, sizeof(line), f))
		if (sscanf(line, "VmPTE: %zu kB", &kib) == 1)
			break;
	fclose(f);
	return kib;
}

#define TABLES 16

/* What protecting an untouched range costs: one table for as many pages as its entries count. */
static size_t tables_of_protecting(uint64_t features)
{
	struct mem m = { .kind = MEM_ANON, .page = page_size(), .memfd = -1 };
	struct libuffd *u;
	size_t before;

	m.len = TABLES * m.page / 8 * m.page;
	m.addr = mmap(NULL, m.len, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (m.addr == MAP_FAILED)
		SKIP("address-space", "no room for a range of %zu bytes", m.len);
	m.start = (uintptr_t)m.addr;
	madvise(m.addr, m.len, MADV_NOHUGEPAGE);
	u = uffd_with(features);
	mem_register(u, &m, WP);
	before = page_tables_kib();
	assert_int_equal(libuffd_writeprotect(u, m.start, m.len, LIBUFFD_WRITEPROTECT_WP), 0);
	before = page_tables_kib() - before;
	libuffd_close(u);
	mem_unmap(&m);
	return before * 1024 / page_size();
}

static void wp_unpopulated_builds_page_tables(void **state)
{
	(void)state;
	REQUIRES(LIBUFFD_FEATURE_PAGEFAULT_FLAG_WP);
	assert_int_equal(tables_of_protecting(LIBUFFD_FEATURE_PAGEFAULT_FLAG_WP), 0);
	REQUIRES(LIBUFFD_FEATURE_WP_UNPOPULATED);
	assert_true(tables_of_protecting(LIBUFFD_FEATURE_WP_UNPOPULATED) >= TABLES - 1);
}

static void move_rig(struct rig *r, struct mem *from, size_t pages, uint64_t features)
{
	rig_up(r, MEM_ANON, pages, MISSING, LIBUFFD_FEATURE_MOVE | features);
	mem_map(from, MEM_ANON, pages);
	memset(from->addr, 0x21, from->len);
}

static void move_rig_down(struct rig *r, struct mem *from)
{
	mem_unmap(from);
	rig_down(r);
}

/* A device may be writing to it: fixed buffers of an io_uring are such pins. */
static void move_of_a_pinned_page_is_busy(void **state)
{
	struct mem from;
	struct pin pin;
	struct rig r;
	size_t done;

	(void)state;
	REQUIRES(LIBUFFD_FEATURE_MOVE);
	mem_map(&from, MEM_ANON, 3);
	memset(from.addr, 0x21, from.len);
	pin_pages(&pin, mem_page(&from, 1), from.page);
	rig_up(&r, MEM_ANON, 3, MISSING, LIBUFFD_FEATURE_MOVE);
	assert_int_equal(libuffd_move(r.u, mem_at(&r.m, 1), mem_at(&from, 1), r.m.page, 0, &done),
			 -EBUSY);
	assert_int_equal(done, 0);
	assert_int_equal(libuffd_move(r.u, r.m.start, from.start, r.m.len, 0, &done), -EAGAIN);
	assert_int_equal(done, r.m.page);
	assert_true(all_bytes(mem_page(&from, 1), 2 * from.page, 0x21));
	unpin_pages(&pin);
	assert_int_equal(
		libuffd_move(r.u, mem_at(&r.m, 1), mem_at(&from, 1), 2 * r.m.page, 0, &done), 0);
	assert_true(all_bytes(r.m.addr, r.m.len, 0x21));
	move_rig_down(&r, &from);
}

/* The features say that the kernel has these; whoever opened the descriptor need not have asked for them. */
static void poison_and_move_need_not_be_enabled(void **state)
{
	struct mem from;
	struct rig r;
	size_t done;

	(void)state;
	REQUIRES(LIBUFFD_FEATURE_POISON | LIBUFFD_FEATURE_MOVE);
	mem_map(&from, MEM_ANON, 1);
	memset(from.addr, 0x21, from.len);
	rig_up(&r, MEM_ANON, 2, MISSING, 0);
	assert_int_equal(libuffd_features(r.u), 0);
	assert_int_equal(libuffd_move(r.u, r.m.start, from.start, from.len, 0, &done), 0);
	assert_true(all_bytes(r.m.addr, r.m.page, 0x21));
	assert_int_equal(libuffd_poison(r.u, mem_at(&r.m, 1), r.m.page, 0, &done), 0);
	assert_int_equal(touch(mem_page(&r.m, 1), false, NULL), SIGBUS);
	move_rig_down(&r, &from);
}

static void move_wants_both_sides_locked_or_neither(void **state)
{
	struct mem from;
	struct rig r;
	size_t done;

	(void)state;
	move_rig(&r, &from, 1, 0);
	assert_int_equal(syscall(SYS_mlock, from.addr, from.len), 0);
	assert_int_equal(libuffd_move(r.u, r.m.start, from.start, r.m.len, 0, &done), -EINVAL);
	assert_int_equal(done, 0);
	assert_int_equal(syscall(SYS_munlock, from.addr, from.len), 0);
	assert_int_equal(libuffd_move(r.u, r.m.start, from.start, r.m.len, 0, &done), 0);
	move_rig_down(&r, &from);
}

/* Until the pipe's other end is closed, or its owner dies. */
static int sleep_until_told(void *arg)
{
	const int *fd = arg;
	char byte;

	syscall(SYS_close, fd[1]);
	while (syscall(SYS_read, fd[0], &byte, 1) < 0)
		continue;
	return 0;
}

/* Pages cannot be moved from one process into another, alive or not. */
static void move_through_a_living_childs_handle(void **state)
{
	struct libuffd *child;
	struct mem from;
	struct call c;
	struct rig r;
	size_t done;
	int fd[2];

	(void)state;
	move_rig(&r, &from, 1, LIBUFFD_FEATURE_EVENT_FORK);
	assert_int_equal(pipe(fd), 0);
	fork_start(&c, sleep_until_told, fd);
	child = fork_handle(r.u, &c);
	assert_int_equal(libuffd_move(child, r.m.start, from.start, r.m.len, 0, &done), -EINVAL);
	assert_int_equal(done, 0);
	assert_true(all_bytes(from.addr, from.len, 0x21));
	/* COPY through the same handle is what it is for. */
	assert_int_equal(copy_settled(child, r.m.start, from.addr, r.m.len), 0);
	close(fd[1]);
	assert_int_equal(exit_status(c.pid), 0);
	close(fd[0]);
	libuffd_close(child);
	move_rig_down(&r, &from);
}

/* ---- Huge pages that come by themselves ----------------------------------------------------- */

/* A mapping that one THP fills. With a file it is a mapping of its beginning. */
static unsigned char *map_for_thp(size_t thp, int fd)
{
	int flags = fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED;
	unsigned char *room, *p;

	room = mmap(NULL, 2 * thp, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	assert_ptr_not_equal(room, MAP_FAILED);
	p = room + (thp - (uintptr_t)room % thp) % thp;
	if (p > room)
		munmap(room, (size_t)(p - room));
	if (p + thp < room + 2 * thp)
		munmap(p + thp, (size_t)(room + 2 * thp - (p + thp)));
	assert_ptr_equal(mmap(p, thp, PROT_READ | PROT_WRITE, flags | MAP_FIXED, fd, 0), p);
	assert_int_equal(madvise(p, thp, MADV_HUGEPAGE), 0);
	return p;
}

static struct mem mem_for_thp(enum mem_kind kind, size_t thp, int fd)
{
	struct mem m = { .kind = kind, .len = thp, .page = page_size(), .memfd = fd };

	m.addr = map_for_thp(thp, fd);
	m.start = (uintptr_t)m.addr;
	return m;
}

/* A fault is served by the page, however willing the kernel is to fill in a huge one. */
static void copy_installs_single_pages_where_thps_are_wanted(void **state)
{
	struct libuffd *u = NULL;
	size_t thp = thp_size();
	struct mem m;

	(void)state;
	m = mem_for_thp(MEM_ANON, thp, -1);
	poke(m.addr, 1);
	if (thp_mapped(m.addr) != thp) {
		mem_unmap(&m);
		SKIP("thp", "no huge page was to be had");
	}
	mem_unmap(&m);
	m = mem_for_thp(MEM_ANON, thp, -1);
	u = uffd_with(0);
	mem_register(u, &m, MISSING);
	page_is_missing(u, &m, 1, 1);
	page_is_missing(u, &m, 0, 2);
	page_is_missing(u, &m, m.len / m.page - 1, 3);
	assert_int_equal(thp_mapped(m.addr), 0);
	libuffd_close(u);
	mem_unmap(&m);
}

#define SHMEM_ENABLED "/sys/kernel/mm/transparent_hugepage/shmem_enabled"

static char shmem_thp_before[32];

/* The word in brackets is the one that holds. */
static int advise_shmem_thp(void **state)
{
	FILE *f = fopen(SHMEM_ENABLED, "r");
	char line[128], *p;

	(void)state;
	*shmem_thp_before = '\0';
	if (!f)
		return 0;
	if (fgets(line, sizeof(line), f) && (p = strchr(line, '[')) && strchr(p, ']')) {
		*strchr(p, ']') = '\0';
		if (write_text(SHMEM_ENABLED, "advise"))
			snprintf(shmem_thp_before, sizeof(shmem_thp_before), "%s", p + 1);
	}
	fclose(f);
	return 0;
}

static int restore_shmem_thp(void **state)
{
	(void)state;
	return !*shmem_thp_before || write_text(SHMEM_ENABLED, shmem_thp_before) ? 0 : -1;
}

/* Memory whose file gets a huge page by one byte written through the alias. */
struct thp_file {
	struct libuffd *u;
	struct mem m;
	unsigned char *alias;
};

static void thp_file_up(struct thp_file *t, uint64_t modes)
{
	uint64_t features = mem_features(MEM_SHMEM_SHARED, modes);
	size_t thp, mapped;
	int fd;

	REQUIRES(features);
	thp = thp_size();
	if (!*shmem_thp_before && geteuid())
		SKIP("root", "only root can have shmem use huge pages");
	if (!*shmem_thp_before)
		SKIP("shmem-thp", "shmem cannot be told to use huge pages here");
	fd = memfd_create("libuffd-test", MFD_CLOEXEC);
	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, (off_t)thp), 0);
	t->m = mem_for_thp(MEM_SHMEM_SHARED, thp, fd);
	t->alias = map_for_thp(thp, fd);
	t->u = uffd_with(features);
	mem_register(t->u, &t->m, modes);
	poke(t->alias, 0x61);
	mapped = thp_mapped(t->alias);
	if (mapped == thp)
		return;
	libuffd_close(t->u);
	munmap(t->alias, thp);
	mem_unmap(&t->m);
	SKIP("shmem-thp", "no huge page was to be had for a file");
}

static void thp_file_down(struct thp_file *t)
{
	libuffd_close(t->u);
	munmap(t->alias, t->m.len);
	mem_unmap(&t->m);
}

/* Who fills a file through another mapping supplies a huge page of zeros with the first byte. */
static void a_huge_page_in_the_file_hides_its_neighbours(void **state)
{
	struct thp_file t;
	unsigned char byte;

	(void)state;
	thp_file_up(&t, MISSING);
	for (size_t i = 0; i < t.m.len / t.m.page; i += t.m.len / t.m.page / 8) {
		byte = 0xff;
		assert_int_equal(touch(mem_page(&t.m, i), false, &byte), 0);
		assert_int_equal(byte, i ? 0 : 0x61);
	}
	expect_no_event(t.u);
	thp_file_down(&t);
}

/* Minor faults come whatever the file holds, and are answered when the page is truly there. */
static void minor_faults_see_behind_a_huge_page(void **state)
{
	struct libuffd_event ev;
	struct thp_file t;
	struct faulter f;
	size_t done;

	(void)state;
	thp_file_up(&t, MINOR);
	for (size_t i = 0; i < 3; i++) {
		faulter_start(&f, mem_page(&t.m, i), false, 0xff);
		ev = expect_event(t.u, LIBUFFD_EVENT_FAULT);
		assert_int_equal(ev.fault.address, mem_at(&t.m, i));
		assert_int_equal(ev.fault.flags, LIBUFFD_FAULT_MINOR);
		poke(t.alias + i * t.m.page, (unsigned char)(0x70 + i));
		assert_int_equal(libuffd_continue(t.u, mem_at(&t.m, i), t.m.page, 0, &done), 0);
		faulter_join(&f);
		assert_int_equal(f.byte, 0x70 + i);
	}
	thp_file_down(&t);
}

/* ---- Pages that the hardware lost ----------------------------------------------------------- */

#ifndef MADV_HWPOISON
#define MADV_HWPOISON 100
#endif

/* Give the page back, if the module for that is loaded. It is a guest's: no harm if not. */
static void unpoison(uint64_t entry)
{
	write_number("/sys/kernel/debug/hwpoison/unpoison-pfn",
		     (long)(entry & ((UINT64_C(1) << 55) - 1)));
}

/*
 * The cache of the file keeps the page, so that nobody takes old bytes for good: shmem since 5.16,
 * hugetlb since 6.2. Before, it is gone from there.
 */
static int lost_page_error(enum mem_kind kind)
{
	(void)kind;
	return kernel_has(LIBUFFD_FEATURE_WP_UNPOPULATED) ? -EIO : -EFAULT;
}

/* Who has the page mapped gets a SIGBUS, of which nobody is to die here. 0 or an errno. */
static int lose_page(void *addr)
{
	struct sigaction sa = { .sa_handler = count_signal }, old;
	int error;

	assert_int_equal(sigaction(SIGBUS, &sa, &old), 0);
	error = madvise(addr, page_size(), MADV_HWPOISON) ? errno : 0;
	sigaction(SIGBUS, &old, NULL);
	return error;
}

static void continue_of_a_page_that_the_hardware_lost(void **state)
{
	struct faulter f;
	uint64_t entry;
	struct rig r;
	size_t done;
	int error;

	if (!in_test_vm())
		SKIP("vm", "a page would be lost to this machine");
	if (geteuid())
		SKIP("root", "only root can say that a page is lost");
	rig_up(&r, kind_of(state), 2, MINOR, 0);
	memset(r.m.alias, 8, r.m.len);
	entry = pagemap_entry(r.m.alias + r.m.page);
	/* Before the page is lost: afterwards hugetlb would kill the toucher, and tell nobody. */
	faulter_start(&f, mem_page(&r.m, 1), false, 0);
	assert_int_equal(expect_event(r.u, LIBUFFD_EVENT_FAULT).fault.flags, LIBUFFD_FAULT_MINOR);
	wait_asleep(r.u, 1, &r.m);
	error = lose_page(r.m.alias + r.m.page);
	if (error) {
		assert_int_equal(libuffd_unregister(r.u, r.m.start, r.m.len), 0);
		faulter_join(&f);
		rig_down(&r);
		assert_int_equal(error, EINVAL);
		SKIP("hwpoison", "this kernel does not handle memory failures");
	}
	/* The page before it goes in. */
	assert_int_equal(libuffd_continue(r.u, r.m.start, r.m.len, 0, &done), -EAGAIN);
	assert_int_equal(done, r.m.page);
	assert_int_equal(libuffd_continue(r.u, mem_at(&r.m, 1), r.m.page, 0, &done),
			 lost_page_error(r.m.kind));
	assert_int_equal(done, 0);
	assert_int_equal(waiters(r.u), 1);
	/* The honest answer; without one the kernel finds out by itself. */
	if (kernel_has(LIBUFFD_FEATURE_POISON))
		assert_int_equal(libuffd_poison(r.u, mem_at(&r.m, 1), r.m.page, 0, &done), 0);
	else
		assert_int_equal(libuffd_unregister(r.u, r.m.start, r.m.len), 0);
	faulter_join(&f);
	assert_int_equal(f.signal, SIGBUS);
	rig_down(&r);
	unpoison(entry);
}

/* ---- Accesses that the kernel makes --------------------------------------------------------- */

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#define MADV_POPULATE_WRITE 23
#endif

static int call_mlock(struct call *c)
{
	/* A sanitizer makes nothing of libc's. */
	if (syscall(SYS_mlock, c->addr, c->len))
		return errno;
	return syscall(SYS_munlock, c->addr, c->len) ? errno : 0;
}

static int call_remote(struct call *c)
{
	unsigned char bytes[8] = "written";
	struct iovec local = { bytes, sizeof(bytes) }, remote = { c->addr, sizeof(bytes) };
	ssize_t n;

	if (c->how)
		n = process_vm_writev(getpid(), &local, 1, &remote, 1, 0);
	else
		n = process_vm_readv(getpid(), &local, 1, &remote, 1, 0);
	return n == sizeof(bytes) ? 0 : n < 0 ? errno : EIO;
}

enum access { LOCK, POPULATE_READ, POPULATE_WRITE, REMOTE_READ, REMOTE_WRITE };

static const struct kernel_access {
	int (*fn)(struct call *c);
	int how;
	int refused; /* where only faults of user mode are told of */
} accesses[] = {
	[LOCK] = { call_mlock, 0, ENOMEM },
	[POPULATE_READ] = { call_madvise, MADV_POPULATE_READ, EFAULT },
	[POPULATE_WRITE] = { call_madvise, MADV_POPULATE_WRITE, EFAULT },
	[REMOTE_READ] = { call_remote, 0, EFAULT },
	[REMOTE_WRITE] = { call_remote, 1, EFAULT },
};

static const struct kernel_access *access_of(void **state)
{
	return &accesses[(uintptr_t)*state >> 4];
}

static enum mem_kind kind_of_access(void **state)
{
	return (enum mem_kind)((uintptr_t)*state & 15);
}

/* MADV_POPULATE_* came with 5.14. No range at all is enough to ask whether an advice is known. */
static bool is_unknown(const struct kernel_access *a, const struct mem *m)
{
	return a->fn == call_madvise && madvise(m->addr, 0, a->how) && errno == EINVAL;
}

static void the_kernel_waits_for_a_missing_page(void **state)
{
	const struct kernel_access *a = access_of(state);
	struct libuffd_event ev;
	struct call c;
	struct rig r;

	requires_kernel_faults();
	rig_up(&r, kind_of_access(state), 1, MISSING, 0);
	c = (struct call){ .fn = a->fn, .addr = r.m.addr, .len = r.m.len, .how = a->how };
	call_start(&c);
	if (event_of_call(r.u, &c, &ev)) {
		assert_int_equal(ev.type, LIBUFFD_EVENT_FAULT);
		assert_int_equal(ev.fault.address, r.m.start);
		wait_asleep(r.u, 1, &r.m);
		assert_false(atomic_load(&c.done));
		fill_page(r.u, &r.m, 0, 0x44);
		assert_int_equal(call_join(&c), 0);
		assert_int_equal(peek(r.m.addr), a->fn == call_remote && a->how ? 'w' : 0x44);
	} else {
		assert_true(is_unknown(a, &r.m));
		assert_int_equal(call_join(&c), EINVAL);
	}
	expect_no_event(r.u);
	rig_down(&r);
}

static struct libuffd *user_mode_uffd(void)
{
	struct libuffd_open_opts opts = LIBUFFD_OPEN_OPTS_INIT;
	struct libuffd *u;

	if (probed().way[LIBUFFD_WAY_USER_MODE].error)
		SKIP("user-mode", "no user-mode descriptors here (before 5.11)");
	opts.flags = LIBUFFD_OPEN_USER_MODE_ONLY;
	assert_int_equal(libuffd_open(&opts, &u), 0);
	return u;
}

static void user_mode_only_fails_the_kernels_accesses(void **state)
{
	const struct kernel_access *a = access_of(state);
	struct call c;
	struct rig r;

	r.u = user_mode_uffd();
	mem_map(&r.m, kind_of_access(state), 1);
	mem_register(r.u, &r.m, MISSING);
	c = (struct call){ .fn = a->fn, .addr = r.m.addr, .len = r.m.len, .how = a->how };
	assert_int_equal(a->fn(&c), is_unknown(a, &r.m) ? EINVAL : a->refused);
	expect_no_event(r.u);
	rig_down(&r);
}

static int call_mlockall(struct call *c)
{
	(void)c;
	if (syscall(SYS_mlockall, MCL_CURRENT))
		return errno;
	return syscall(SYS_munlockall) ? errno : 0;
}

/* A program that locks its memory after it registered some waits for its own handler. */
static void mlockall_waits_for_missing_pages(void **state)
{
	struct libuffd_event ev;
	struct call c = { .fn = call_mlockall };
	struct rig r;

	(void)state;
	if (UNDER_SANITIZER)
		SKIP("no-sanitizer", "a sanitizer's own memory is too large to be locked");
	requires_kernel_faults();
	rig_up(&r, MEM_ANON, 2, MISSING, 0);
	call_start(&c);
	if (!event_of_call(r.u, &c, &ev)) {
		int error = call_join(&c);

		rig_down(&r);
		assert_true(error == ENOMEM || error == EPERM);
		SKIP("root", "this process may not lock that much memory");
	}
	assert_int_equal(ev.fault.address, r.m.start);
	fill_page(r.u, &r.m, 0, 1);
	ev = expect_event(r.u, LIBUFFD_EVENT_FAULT);
	assert_int_equal(ev.fault.address, mem_at(&r.m, 1));
	fill_page(r.u, &r.m, 1, 1);
	assert_int_equal(call_join(&c), 0);
	rig_down(&r);
}

/* It is not prepared to wait, so the access fails: a debugger sees no missing page. */
static void proc_mem_says_eio_and_tells_nobody(void **state)
{
	unsigned char byte = 1;
	struct rig r;
	int fd;

	rig_up(&r, kind_of(state), 1, MISSING, 0);
	fd = open("/proc/self/mem", O_RDWR | O_CLOEXEC);
	assert_true(fd >= 0);
	assert_int_equal(pread(fd, &byte, 1, (off_t)r.m.start), -1);
	assert_int_equal(errno, EIO);
	assert_int_equal(pwrite(fd, &byte, 1, (off_t)r.m.start), -1);
	assert_int_equal(errno, EIO);
	expect_no_event(r.u);
	assert_int_equal(waiters(r.u), 0);
	fill_page(r.u, &r.m, 0, 0x45);
	assert_int_equal(pread(fd, &byte, 1, (off_t)r.m.start), 1);
	assert_int_equal(byte, 0x45);
	close(fd);
	rig_down(&r);
}

static int call_copy_within(struct call *c)
{
	const struct rig *r = c->arg;
	size_t done;

	return -libuffd_copy(r->u, r->m.start, mem_page(&r->m, 1), r->m.page, 0, &done);
}

/* The thread that answers faults would wait for itself. */
static void copy_from_a_missing_page_waits_for_it(void **state)
{
	struct libuffd_event ev;
	struct call c;
	struct rig r;

	requires_kernel_faults();
	rig_up(&r, kind_of(state), 2, MISSING, 0);
	c = (struct call){ .fn = call_copy_within, .arg = &r };
	call_start(&c);
	ev = expect_event(r.u, LIBUFFD_EVENT_FAULT);
	assert_int_equal(ev.fault.address, mem_at(&r.m, 1));
	wait_asleep(r.u, 1, &r.m);
	assert_false(atomic_load(&c.done));
	fill_page(r.u, &r.m, 1, 0x46);
	assert_int_equal(call_join(&c), 0);
	assert_true(all_bytes(r.m.addr, r.m.len, 0x46));
	rig_down(&r);
}

/* ---- Closing -------------------------------------------------------------------------------- */

/* It is the last descriptor that counts; the others come and go. */
static void closing_one_of_two_descriptors_changes_nothing(void **state)
{
	struct libuffd *other;
	struct faulter f;
	struct rig r;
	int fd;

	rig_up(&r, kind_of(state), 1, MISSING, 0);
	faulter_start(&f, r.m.addr, false, 0xff);
	wait_waiters(r.u, 1);
	fd = fcntl(libuffd_fd(r.u), F_DUPFD_CLOEXEC, 0);
	assert_true(fd >= 0);
	libuffd_close(r.u);
	assert_int_equal(libuffd_adopt(fd, NULL, &other), 0);
	r.u = other;
	assert_int_equal(waiters(r.u), 1);
	assert_int_equal(expect_event(r.u, LIBUFFD_EVENT_FAULT).fault.address, r.m.start);
	fill_page(r.u, &r.m, 0, 0x47);
	faulter_join(&f);
	assert_int_equal(f.byte, 0x47);
	rig_down(&r);
}

/* A handler that reads one message, says so, and then does nothing any more. */
static void idle_handler(int fd, int says)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };
	unsigned char message[32];

	syscall(SYS_prctl, PR_SET_PDEATHSIG, SIGKILL);
	while (syscall(SYS_read, fd, message, sizeof(message)) != sizeof(message))
		syscall(SYS_ppoll, &p, 1, NULL, NULL, 0);
	syscall(SYS_write, says, "r", 1);
	for (;;)
		syscall(SYS_ppoll, NULL, 0, NULL, NULL, 0);
}

/* As long as it lives its target hangs; when it dies the target gets zeros, and no sign of it. */
static void a_dead_handlers_target_reads_zeros(void **state)
{
	struct faulter f;
	int says[2], status;
	struct rig r;
	pid_t pid;
	char byte;

	rig_up(&r, kind_of(state), 1, MISSING, 0);
	assert_int_equal(pipe(says), 0);
	pid = bare_fork();
	assert_true(pid >= 0);
	if (!pid)
		idle_handler(libuffd_fd(r.u), says[1]);
	libuffd_close(r.u);
	faulter_start(&f, r.m.addr, false, 0xff);
	assert_int_equal(read(says[0], &byte, 1), 1);
	wait_thread_state(&f.tid, 'S');
	assert_false(atomic_load(&f.done));
	assert_int_equal(kill(pid, SIGKILL), 0);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFSIGNALED(status));
	faulter_join(&f);
	assert_int_equal(f.signal, 0);
	assert_int_equal(f.byte, 0);
	close(says[0]);
	close(says[1]);
	mem_unmap(&r.m);
}

/* ---- Events --------------------------------------------------------------------------------- */

/* Room of the size of @m, to move it to. */
static void *room_for(const struct mem *m)
{
	void *p = mmap(NULL, m->len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	assert_ptr_not_equal(p, MAP_FAILED);
	return p;
}

/* Put the layout of the second half of @m into motion, by the call that gives this event. */
static void start_changing(struct call *c, uint32_t event, const struct mem *half)
{
	if (event == LIBUFFD_EVENT_REMOVE)
		madvise_start(c, half->addr, half->len, MADV_DONTNEED);
	else if (event == LIBUFFD_EVENT_UNMAP)
		munmap_start(c, half->addr, half->len);
	else if (event == LIBUFFD_EVENT_REMAP)
		mremap_start(c, half->addr, half->len, half->len, MREMAP_MAYMOVE | MREMAP_FIXED,
			     room_for(half));
	else
		fork_start(c, exit_at_once, NULL);
}

static uint64_t event_feature(uint32_t event)
{
	return event == LIBUFFD_EVENT_REMOVE  ? LIBUFFD_FEATURE_EVENT_REMOVE
	       : event == LIBUFFD_EVENT_UNMAP ? LIBUFFD_FEATURE_EVENT_UNMAP
	       : event == LIBUFFD_EVENT_REMAP ? LIBUFFD_FEATURE_EVENT_REMAP
					      : LIBUFFD_FEATURE_EVENT_FORK;
}

static void finish_changing(struct call *c, const struct libuffd_event *ev, size_t len)
{
	assert_int_equal(call_join(c), 0);
	if (ev->type == LIBUFFD_EVENT_REMAP)
		munmap((void *)(uintptr_t)ev->remap.to, len);
	if (ev->type == LIBUFFD_EVENT_FORK) {
		libuffd_close(ev->fork.handle);
		assert_int_equal(exit_status(c->pid), 0);
	}
}

/* Nobody is woken by the refusal. What takes no lock of the layout goes on working. */
static void no_answer_while_an_event_is_in_flight(void **state)
{
	uint32_t event = (uint32_t)(uintptr_t)*state;
	struct libuffd_event ev;
	struct mem half;
	struct faulter f;
	struct call c;
	struct rig r;
	size_t done;

	rig_up(&r, MEM_ANON, 4, MISSING, event_feature(event));
	half = r.m;
	half.addr = mem_page(&r.m, 2);
	half.len = 2 * r.m.page;
	faulter_start(&f, r.m.addr, false, 0);
	expect_event(r.u, LIBUFFD_EVENT_FAULT);
	wait_asleep(r.u, 1, &r.m);
	start_changing(&c, event, &half);
	wait_readable(r.u);
	for (int i = 0; i < 3; i++) {
		assert_int_equal(libuffd_zeropage(r.u, r.m.start, r.m.page, 0, &done), -EAGAIN);
		assert_int_equal(done, 0);
		assert_int_equal(waiters(r.u), 1);
	}
	assert_int_equal(libuffd_set_mode(r.u, 0, 0), kernel_has_rwp() ? 0 : -EINVAL);
	ev = expect_event(r.u, event);
	fill_page(r.u, &r.m, 0, 0x51);
	faulter_join(&f);
	assert_int_equal(f.byte, 0x51);
	finish_changing(&c, &ev, half.len);
	expect_no_event(r.u);
	rig_down(&r);
}

/* Up to 5.14 a bit says that the layout is changing, which the first to go on takes back for all; later it is a count. */
static void who_goes_on_first_ends_no_other_change(void **state)
{
	struct call c[2];
	struct rig r;
	size_t done;
	int ret, gone = -1;

	(void)state;
	rig_up(&r, MEM_ANON, 4, MISSING, LIBUFFD_FEATURE_EVENT_REMOVE);
	for (size_t i = 0; i < 2; i++)
		madvise_start(&c[i], mem_page(&r.m, 2 + i), r.m.page, MADV_DONTNEED);
	for (size_t i = 0; i < 2; i++)
		while (thread_state(atomic_load(&c[i].tid)) != 'D')
			give_way();
	expect_event(r.u, LIBUFFD_EVENT_REMOVE);
	while (gone < 0)
		for (int i = 0; i < 2; i++)
			if (atomic_load(&c[i].done))
				gone = i;
	assert_int_equal(call_join(&c[gone]), 0);
	wait_readable(r.u);
	ret = libuffd_zeropage(r.u, r.m.start, r.m.page, 0, &done);
	if (kernel_has(LIBUFFD_FEATURE_EXACT_ADDRESS))
		assert_int_equal(ret, -EAGAIN);
	else
		assert_int_equal(ret, 0);
	expect_event(r.u, LIBUFFD_EVENT_REMOVE);
	assert_int_equal(call_join(&c[1 - gone]), 0);
	rig_down(&r);
}

#define DROPPED 256

/* Drop all of @r while its last page is answered. Is that one there afterwards? */
static bool answer_while_dropped(const struct rig *r, const unsigned char *data)
{
	uint64_t last = mem_at(&r->m, DROPPED - 1);
	struct call c;
	size_t done;
	int ret;

	assert_int_equal(copy_settled(r->u, r->m.start, data, r->m.len - r->m.page), 0);
	madvise_start(&c, r->m.addr, r->m.len, MADV_DONTNEED);
	expect_event(r->u, LIBUFFD_EVENT_REMOVE);
	do
		ret = libuffd_copy(r->u, last, data, r->m.page, 0, &done);
	while (ret == -EAGAIN);
	assert_int_equal(ret, 0);
	assert_int_equal(call_join(&c), 0);
	for (size_t i = 0; i < DROPPED - 1; i++)
		assert_false(pte_is_present(mem_page(&r->m, i)));
	return pte_is_present(mem_page(&r->m, DROPPED - 1));
}

/*
 * REMOVE is told before anything is dropped. An answer that comes after it was read may be dropped
 * with the rest, or stay, as bytes that their owner has given up: which is chance.
 */
static void an_answer_after_a_remove_vanishes_or_stays(void **state)
{
	unsigned int stayed = 0;
	unsigned char *data;
	struct call c;
	struct rig r;

	(void)state;
	rig_up(&r, MEM_ANON, DROPPED, MISSING, LIBUFFD_FEATURE_EVENT_REMOVE);
	data = page_of(&r.m, DROPPED, 0x52);
	for (int i = 0; i < 20; i++) {
		if (!answer_while_dropped(&r, data))
			continue;
		stayed++;
		assert_int_equal(peek(mem_page(&r.m, DROPPED - 1)), 0x52);
		madvise_start(&c, r.m.addr, r.m.len, MADV_DONTNEED);
		expect_event(r.u, LIBUFFD_EVENT_REMOVE);
		assert_int_equal(call_join(&c), 0);
	}
	printf("# of 20 answers %u stayed and %u vanished\n", stayed, 20 - stayed);
	free(data);
	rig_down(&r);
}

/* Not the part that is registered: what munmap(2) was called with. */
static void unmap_tells_the_range_of_the_call(void **state)
{
	struct libuffd_event ev;
	struct libuffd *u;
	struct call c;
	struct mem m;

	(void)state;
	REQUIRES(LIBUFFD_FEATURE_EVENT_UNMAP);
	mem_map(&m, MEM_ANON, 6);
	u = uffd_with(LIBUFFD_FEATURE_EVENT_UNMAP);
	assert_int_equal(libuffd_register(u, mem_at(&m, 2), 2 * m.page, MISSING, NULL), 0);
	munmap_start(&c, mem_page(&m, 1), 4 * m.page);
	ev = expect_event(u, LIBUFFD_EVENT_UNMAP);
	assert_int_equal(ev.remove.start, mem_at(&m, 1));
	assert_int_equal(ev.remove.end, mem_at(&m, 5));
	assert_int_equal(call_join(&c), 0);
	expect_no_event(u);
	libuffd_close(u);
	munmap(m.addr, m.page);
	munmap(mem_page(&m, 5), m.page);
}

/* Of a descriptor that may block: poll(2) says POLLERR of it. */
static struct libuffd_event first_event(const struct libuffd *u)
{
	struct libuffd_event ev;
	int n;

	while ((n = libuffd_read_events(u, &ev, 1)) == -EAGAIN)
		give_way();
	assert_int_equal(n, 1);
	return ev;
}

static void childs_flags(uint32_t flags, int status_flags, bool nonblocking)
{
	struct libuffd_open_opts opts = LIBUFFD_OPEN_OPTS_INIT;
	struct libuffd *u, *child;
	struct libuffd_event ev;
	struct call c;
	struct mem m;
	int fd;

	opts.flags = flags;
	opts.required = LIBUFFD_FEATURE_EVENT_FORK;
	assert_int_equal(libuffd_open(&opts, &u), 0);
	mem_map(&m, MEM_ANON, 1);
	mem_register(u, &m, MISSING);
	assert_int_equal(fcntl(libuffd_fd(u), F_SETFL, status_flags), 0);
	assert_int_equal(fcntl(libuffd_fd(u), F_SETFD, 0), 0);
	fork_start(&c, exit_at_once, NULL);
	ev = first_event(u);
	assert_int_equal(ev.type, LIBUFFD_EVENT_FORK);
	child = ev.fork.handle;
	assert_non_null(child);
	fd = libuffd_fd(child);
	assert_int_equal(!!(fcntl(fd, F_GETFL) & O_NONBLOCK), nonblocking);
	assert_int_equal(fcntl(fd, F_GETFD), FD_CLOEXEC);
	assert_int_equal(call_join(&c), 0);
	assert_int_equal(exit_status(c.pid), 0);
	libuffd_close(child);
	libuffd_close(u);
	mem_unmap(&m);
}

/* What fcntl(2) made of the parent's descriptor since does not count. */
static void a_childs_descriptor_has_the_flags_of_creation(void **state)
{
	(void)state;
	REQUIRES(LIBUFFD_FEATURE_EVENT_FORK);
	childs_flags(0, 0, true);
	childs_flags(LIBUFFD_OPEN_BLOCKING, O_NONBLOCK, false);
}

/* ---- Other processes ------------------------------------------------------------------------ */

#ifndef CLONE_NEWPID
#define CLONE_NEWPID 0x20000000
#endif

static int call_fork_into_pid_namespace(struct call *c)
{
	pid_t pid = (pid_t)syscall(SYS_clone, SIGCHLD | CLONE_NEWPID, 0, 0, 0, 0);

	if (pid < 0)
		return errno;
	if (!pid)
		bare_exit(c->child(c->arg));
	c->pid = pid;
	return 0;
}

static int child_reads_page_0(void *arg)
{
	const struct mem *m = arg;

	return peek(m->addr);
}

/* Who asks the kernel about that thread asks about another one, or none. */
static void a_thread_id_is_of_the_faulters_own_namespace(void **state)
{
	struct libuffd *child;
	struct libuffd_event ev;
	struct call c;
	struct rig r;

	(void)state;
	rig_up(&r, MEM_ANON, 1, MISSING, LIBUFFD_FEATURE_EVENT_FORK | LIBUFFD_FEATURE_THREAD_ID);
	c = (struct call){ .fn = call_fork_into_pid_namespace,
			   .child = child_reads_page_0,
			   .arg = &r.m };
	call_start(&c);
	if (!event_of_call(r.u, &c, &ev)) {
		int error = call_join(&c);

		rig_down(&r);
		assert_true(error == EPERM || error == EINVAL || error == ENOSPC);
		SKIP("namespaces", "no pid namespace for a child here: %s", strerror(error));
	}
	assert_int_equal(ev.type, LIBUFFD_EVENT_FORK);
	child = ev.fork.handle;
	assert_int_equal(call_join(&c), 0);
	ev = expect_event(child, LIBUFFD_EVENT_FAULT);
	/* The first process of its namespace. */
	assert_int_equal(ev.fault.thread, 1);
	assert_int_not_equal(c.pid, 1);
	fill_page(child, &r.m, 0, 0x53);
	assert_int_equal(exit_status(c.pid), 0x53);
	libuffd_close(child);
	rig_down(&r);
}

/* The page is in the file then, and all who wait for it elsewhere wait on. */
static void copy_wakes_nobody_in_another_process(void **state)
{
	struct libuffd *child;
	unsigned char *data;
	struct call c;
	struct rig r;
	size_t done;

	rig_up(&r, kind_of(state), 1, MISSING, LIBUFFD_FEATURE_EVENT_FORK);
	data = page_of(&r.m, 1, 0x54);
	fork_start(&c, child_reads_page_0, &r.m);
	child = fork_handle(r.u, &c);
	expect_event(child, LIBUFFD_EVENT_FAULT);
	fill_page(r.u, &r.m, 0, 0x54);
	assert_int_equal(waiters(child), 1);
	/* Nor does an answer through the child's own handle: it finds the file filled. */
	assert_int_equal(libuffd_copy(child, r.m.start, data, r.m.page, 0, &done), -EEXIST);
	assert_int_equal(waiters(child), 1);
	assert_int_equal(libuffd_wake(child, r.m.start, r.m.len), 0);
	assert_int_equal(exit_status(c.pid), 0x54);
	expect_no_event(child);
	libuffd_close(child);
	free(data);
	rig_down(&r);
}

/* ---- Huge pages that are runs of ptes ----------------------------------------------------------------------- */

#define HUGE_SIZES "/sys/kernel/mm/hugepages"
#define RUN_PAGES 3

/* The smallest that there are; 0: none. */
static size_t smallest_huge_page(void)
{
	DIR *d = opendir(HUGE_SIZES);
	const struct dirent *e;
	size_t least = 0;
	unsigned long kib;

	while (d && (e = readdir(d)))
		if (sscanf(e->d_name, "hugepages-%lukB", &kib) == 1 &&
		    (!least || kib * 1024 < least))
			least = kib * 1024;
	if (d)
		closedir(d);
	return least;
}

/* The pool of that size; what was in it, or -1. */
static long set_huge_pages(size_t size, long n)
{
	char path[96];
	long was = -1;
	FILE *f;

	snprintf(path, sizeof(path), HUGE_SIZES "/hugepages-%zukB/nr_hugepages", size / 1024);
	f = fopen(path, "r+");
	if (!f)
		return -1;
	if (fscanf(f, "%ld", &was) != 1)
		was = -1;
	rewind(f);
	fprintf(f, "%ld\n", n);
	fclose(f);
	return was;
}

/* The memory that is free next has been the kernel's own for small things, a page table of the child's may come from it. */
static void use_and_free_small_things(void)
{
	int ends[500][2];
	size_t n = 0;

	while (n < ARRAY_SIZE(ends) && pipe(ends[n]) == 0)
		n++;
	while (n--) {
		close(ends[n][0]);
		close(ends[n][1]);
	}
}

static struct {
	unsigned char *at;
	size_t page;
} runs;

/* A bit for each page that is not there, 0x80 for a byte that never was. */
static int child_looks_at_runs(void)
{
	int lacks = 0;

	for (size_t i = 0; i < RUN_PAGES; i++) {
		unsigned char byte = peek(runs.at + i * runs.page);

		if (byte != i + 1)
			lacks |= byte ? 0x80 : 1 << i;
	}
	return lacks;
}

/*
 * The kernel counts who shares a page table, and fork() leaves out what a shared one maps. In a table of ptes the place of that count is
 * whatever the page was used for before. No userfaultfd comes into it: what is absent in the child reads zeros, or, where the child is
 * told of, is missing.
 */
static void a_child_may_lack_huge_pages(void **state)
{
	int lacked = 0;
	long was;

	(void)state;
	runs.page = smallest_huge_page();
	if (!runs.page || !huge_page_is_a_run_of_ptes(runs.page))
		SKIP("pte-runs", "no huge pages are runs of ptes here");
	was = set_huge_pages(runs.page, 4 * RUN_PAGES);
	assert_true(was >= 0);
	runs.at = mmap(NULL, RUN_PAGES * runs.page, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB |
			       __builtin_ctzl(runs.page) << MAP_HUGE_SHIFT,
		       -1, 0);
	assert_ptr_not_equal(runs.at, MAP_FAILED);
	for (size_t i = 0; i < RUN_PAGES; i++)
		poke(runs.at + i * runs.page, (unsigned char)(i + 1));
	for (int i = 0; i < 100; i++) {
		int status;
		pid_t pid;

		use_and_free_small_things();
		pid = fork();
		if (!pid)
			_exit(child_looks_at_runs());
		status = exit_status(pid);
		/* All or nothing: a table is left out as a whole. */
		assert_true(status == 0 || status == (1 << RUN_PAGES) - 1);
		lacked += status != 0;
	}
	print_message("# %d of 100 children lacked them\n", lacked);
	munmap(runs.at, RUN_PAGES * runs.page);
	set_huge_pages(runs.page, was);
}

/* A COPY into the parent's memory, whose source lies in the child's. */
struct killed_copy {
	struct rig to, from;
};

static int child_copies(void *arg)
{
	const struct killed_copy *k = arg;
	size_t done;

	libuffd_copy(k->to.u, k->to.m.start, k->from.m.addr, k->to.m.len, 0, &done);
	return 1;
}

static void expect_prefix(const struct rig *r, size_t pages)
{
	for (size_t i = 0; i < r->m.len / r->m.page; i++) {
		assert_int_equal(pte_is_present(mem_page(&r->m, i)), i < pages);
		if (i < pages)
			assert_true(all_bytes(mem_page(&r->m, i), r->m.page, 0x55));
	}
}

/*
 * The caller itself never learns of its EINTR. What others see: it is gone at once, though in the
 * middle of the call; what it had installed stays, and is woken; the rest waits on.
 */
static void a_caller_killed_in_a_copy_leaves_a_prefix(void **state)
{
	struct faulter first, last;
	struct killed_copy k;
	struct libuffd *child;
	struct call c;
	int status;

	(void)state;
	rig_up(&k.to, MEM_ANON, 6, MISSING, 0);
	rig_up(&k.from, MEM_ANON, 6, MISSING, LIBUFFD_FEATURE_EVENT_FORK);
	for (size_t i = 0; i < 4; i++)
		fill_page(k.from.u, &k.from.m, i, 0x55);
	faulter_start(&first, mem_page(&k.to.m, 0), false, 0);
	faulter_start(&last, mem_page(&k.to.m, 5), false, 0);
	wait_asleep(k.to.u, 2, &k.to.m);
	fork_start(&c, child_copies, &k);
	child = fork_handle(k.from.u, &c);
	/* Four pages are copied; for the fifth it waits, and is killed there. */
	assert_int_equal(expect_event(child, LIBUFFD_EVENT_FAULT).fault.address,
			 mem_at(&k.from.m, 4));
	assert_int_equal(kill(c.pid, SIGKILL), 0);
	assert_int_equal(waitpid(c.pid, &status, 0), c.pid);
	assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
	faulter_join(&first);
	assert_int_equal(first.byte, 0x55);
	expect_prefix(&k.to, 4);
	assert_int_equal(waiters(k.to.u), 1);
	fill_page(k.to.u, &k.to.m, 5, 0x56);
	faulter_join(&last);
	libuffd_close(child);
	rig_down(&k.from);
	rig_down(&k.to);
}

/* ---- SET_MODE ------------------------------------------------------------------------------- */

/* 7.3 has the call for every descriptor. Without RWP there is nothing that it could switch on. */
static void set_mode_without_rwp(void **state)
{
	const uint64_t async = LIBUFFD_FEATURE_RWP_ASYNC;
	int nothing = kernel_has_rwp() ? 0 : -EINVAL;
	struct libuffd *u = uffd_with(0);

	(void)state;
	assert_int_equal(libuffd_set_mode(u, 0, 0), nothing);
	assert_int_equal(libuffd_set_mode(u, 0, async), nothing);
	assert_int_equal(libuffd_set_mode(u, async, 0), -EINVAL);
	assert_int_equal(libuffd_set_mode(u, async, async), -EINVAL);
	assert_int_equal(libuffd_set_mode(u, LIBUFFD_FEATURE_SIGBUS, 0), -EINVAL);
	assert_int_equal(libuffd_set_mode(u, 0, LIBUFFD_FEATURE_SIGBUS), -EINVAL);
	libuffd_close(u);
}

/* Whatever they wait for: so an unanswered fault is told twice. */
static void switching_on_wakes_every_waiter(void **state)
{
	struct libuffd_event first, second;
	struct faulter f;
	struct rig r;

	(void)state;
	rig_up(&r, MEM_ANON, 1, MISSING, LIBUFFD_FEATURE_RWP | LIBUFFD_FEATURE_RWP_ASYNC);
	assert_int_equal(libuffd_set_mode(r.u, 0, LIBUFFD_FEATURE_RWP_ASYNC), 0);
	faulter_start(&f, r.m.addr, false, 0);
	first = expect_event(r.u, LIBUFFD_EVENT_FAULT);
	wait_asleep(r.u, 1, &r.m);
	assert_int_equal(libuffd_set_mode(r.u, 0, LIBUFFD_FEATURE_RWP_ASYNC), 0);
	expect_no_event(r.u);
	assert_int_equal(libuffd_set_mode(r.u, LIBUFFD_FEATURE_RWP_ASYNC, 0), 0);
	second = expect_event(r.u, LIBUFFD_EVENT_FAULT);
	assert_memory_equal(&first, &second, sizeof(first));
	fill_page(r.u, &r.m, 0, 0x57);
	faulter_join(&f);
	rig_down(&r);
}

/* ---- PAGEMAP_SCAN --------------------------------------------------------------------------- */

struct raw_scan {
	uint64_t size, flags, start, end, walk_end;
	uint64_t vec, vec_len, max_pages;
	uint64_t inverted, all, any, report;
};

#define RAW_SCAN _IOWR('f', 16, struct raw_scan)
#define LARGEST_SCAN 256

static struct libuffd_scanner *scanner(void)
{
	struct libuffd_scanner *s;
	int ret = libuffd_scan_open(0, &s);

	if (ret == -ENOTTY)
		SKIP("pagemap-scan", "this kernel has no PAGEMAP_SCAN (before 6.7)");
	assert_int_equal(ret, 0);
	return s;
}

/* 6.7 brought both. */
static void the_scan_came_with_wp_async(void **state)
{
	struct libuffd_scanner *s;
	int ret = libuffd_scan_open(0, &s);

	(void)state;
	if (kernel_has(LIBUFFD_FEATURE_PAGEFAULT_FLAG_WP | LIBUFFD_FEATURE_POISON))
		assert_int_equal(ret == -ENOTTY, !kernel_has(LIBUFFD_FEATURE_WP_ASYNC));
	assert_true(ret == 0 || ret == -ENOTTY);
	libuffd_scan_close(s);
}

/* Neither more nor less: a kernel whose struct has grown takes the old one no more. */
static void one_size_of_the_scans_struct_is_right(void **state)
{
	union {
		struct raw_scan scan;
		unsigned char space[LARGEST_SCAN];
	} arg;
	int fd, taken = 0;

	(void)state;
	libuffd_scan_close(scanner());
	fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	assert_true(fd >= 0);
	for (uint64_t size = 0; size <= LARGEST_SCAN; size += 8) {
		memset(&arg, 0, sizeof(arg));
		arg.scan.size = size;
		if (ioctl(fd, RAW_SCAN, &arg)) {
			assert_int_equal(errno, EINVAL);
		} else {
			assert_true(size >= sizeof(arg.scan));
			taken++;
		}
	}
	assert_int_equal(taken, 1);
	close(fd);
}

/* How many pages of @m have all of these. More of a report takes the kernel by another path. */
static size_t pages_with_report(struct libuffd_scanner *s, const struct mem *m, uint64_t categories,
				uint64_t report)
{
	struct libuffd_scan_args a = LIBUFFD_SCAN_ARGS_INIT;
	struct libuffd_scan_range out[8];
	size_t pages = 0;
	uint64_t walked;
	int n;

	a.start = m->start;
	a.end = m->start + m->len;
	a.all = categories;
	a.report = report;
	n = libuffd_scan(s, &a, out, ARRAY_SIZE(out), &walked);
	assert_true(n >= 0 && n < (int)ARRAY_SIZE(out));
	assert_int_equal(walked, a.end);
	for (int i = 0; i < n; i++)
		pages += (size_t)(out[i].end - out[i].start) / m->page;
	return pages;
}

static size_t pages_with(struct libuffd_scanner *s, const struct mem *m, uint64_t categories)
{
	return pages_with_report(s, m, categories, categories);
}

#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#endif

static void the_later_categories_of_a_scan(void **state)
{
	struct libuffd_scanner *s = scanner();
	uint64_t known = libuffd_scan_categories(s);
	struct mem m;

	(void)state;
	assert_int_equal(!!(known & LIBUFFD_PAGE_ACCESSED), kernel_has_rwp());
	mem_map(&m, MEM_ANON, 3);
	if (known & LIBUFFD_PAGE_GUARD) {
		assert_int_equal(madvise(mem_page(&m, 1), m.page, MADV_GUARD_INSTALL), 0);
		assert_int_equal(pages_with(s, &m, LIBUFFD_PAGE_GUARD), 1);
	}
	mem_unmap(&m);
	libuffd_scan_close(s);
}

/* Up to 7.2 "written" is all that is not protected; from 7.3 on only where somebody watches. */
static void written_pages_of_memory_that_nobody_watches(void **state)
{
	struct libuffd_scanner *s = scanner();
	struct mem m;

	mem_map(&m, kind_of(state), 2);
	poke(m.addr, 1);
	assert_int_equal(pages_with(s, &m, LIBUFFD_PAGE_WRITTEN | LIBUFFD_PAGE_PRESENT),
			 kernel_has_rwp() ? 0 : 1);
	mem_unmap(&m);
	libuffd_scan_close(s);
}

static void expect_written(struct libuffd_scanner *s, const struct mem *m, size_t most,
			   size_t least)
{
	const uint64_t both = LIBUFFD_PAGE_WRITTEN | LIBUFFD_PAGE_PRESENT;
	size_t alone = pages_with(s, m, LIBUFFD_PAGE_WRITTEN);
	size_t more = pages_with_report(s, m, LIBUFFD_PAGE_WRITTEN, both);

	printf("# %zu pages are written, or %zu if more is asked for\n", alone, more);
	assert_int_equal(alone, most);
	assert_true(more == most || more == least);
}

/* @pages of @m, which has nearly twice as many, that one page table maps, wherever @m came to lie. */
static struct mem under_one_table(const struct mem *m, size_t pages)
{
	size_t entries = page_size() / sizeof(uint64_t);
	size_t left = entries - (size_t)(m->start / m->page) % entries;
	size_t first = left < pages ? left : 0;
	struct mem part = *m;

	part.addr = mem_page(m, first);
	part.start = mem_at(m, first);
	part.len = pages * m->page;
	return part;
}

/*
 * Beside a page that is there, an absent one that nobody protected is a written one: on Debian's
 * 6.18.15 to a scan that asks for nothing else, which goes a shorter way in the kernel; on 6.12,
 * 7.2 and 7.3 to all. On hugetlb it is not. Beside means in the same page table: where there is
 * none only later updates (6.18.44) list anything.
 */
static void written_pages_where_nothing_is(void **state)
{
	bool hugetlb = mem_is_hugetlb(kind_of(state));
	size_t absent = hugetlb ? 0 : 3;
	struct libuffd_scanner *s;
	struct mem m;
	struct rig r;

	rig_up(&r, kind_of(state), hugetlb ? 4 : 7, WP, LIBUFFD_FEATURE_WP_ASYNC);
	m = hugetlb ? r.m : under_one_table(&r.m, 4);
	s = scanner();
	poke(m.addr, 1);
	expect_written(s, &m, 1 + absent, 1);
	assert_int_equal(libuffd_writeprotect(r.u, m.start, m.len, LIBUFFD_WRITEPROTECT_WP), 0);
	expect_written(s, &m, 0, 0);
	assert_int_equal(libuffd_unregister(r.u, r.m.start, r.m.len), 0);
	if (kernel_has_rwp())
		expect_written(s, &m, 0, 0);
	else
		expect_written(s, &m, 1 + absent, 1);
	libuffd_scan_close(s);
	rig_down(&r);
}

/* ---- Running -------------------------------------------------------------------------------- */

#define OF_OP(test, op)                                                  \
	{                                                                \
#test "/" #op, test, NULL, NULL, (void *)(uintptr_t)(op) \
	}
#define OF_EVERY_OP(test)                                                                   \
	OF_OP(test, COPY), OF_OP(test, ZEROPAGE), OF_OP(test, MOVE), OF_OP(test, CONTINUE), \
		OF_OP(test, POISON)
#define OF_EVENT(test, event)                                                                \
	{                                                                                    \
#test "/" #event, test, NULL, NULL, (void *)(uintptr_t)LIBUFFD_EVENT_##event \
	}
#define OF_ACCESS(test, access, kind)                               \
	{                                                           \
#test "/" #access "/" #kind, test, NULL, NULL,      \
			(void *)(uintptr_t)((access) << 4 | (kind)) \
	}
#define OF_ACCESSES(test, access)                                                     \
	OF_ACCESS(test, access, MEM_ANON), OF_ACCESS(test, access, MEM_SHMEM_SHARED), \
		OF_ACCESS(test, access, MEM_HUGETLB_SHARED)
#define OF_EVERY_ACCESS(test)                                                      \
	OF_ACCESSES(test, LOCK), OF_ACCESSES(test, POPULATE_READ),                 \
		OF_ACCESSES(test, POPULATE_WRITE), OF_ACCESSES(test, REMOTE_READ), \
		OF_ACCESSES(test, REMOTE_WRITE)
#define OF_SHARED(test) OF_KIND(test, MEM_SHMEM_SHARED), OF_KIND(test, MEM_HUGETLB_SHARED)
#define OF_FILES(test) \
	OF_SHARED(test), OF_KIND(test, MEM_SHMEM_PRIVATE), OF_KIND(test, MEM_HUGETLB_PRIVATE)
#define WITH(test, setup, teardown) cmocka_unit_test_setup_teardown(test, setup, teardown)

static int reserve_huge_pages(void **state)
{
	(void)state;
	if (huge_reserve(8))
		printf("# huge pages cannot be reserved here: their tests will be skipped\n");
	return 0;
}

static const struct CMUnitTest tests[] = {
	/* First: what a failed test leaves behind would have it wait for ever. */
	cmocka_unit_test(mlockall_waits_for_missing_pages),
	cmocka_unit_test(a_refused_handshake_can_be_tried_again),
	cmocka_unit_test(a_successful_handshake_is_final),
	cmocka_unit_test(fdinfo_tells_what_is_enabled),
	cmocka_unit_test(features_came_one_after_the_other),
	cmocka_unit_test(before_the_handshake_there_is_nothing),
	cmocka_unit_test(fork_events_want_the_initial_namespace),
	cmocka_unit_test(a_read_is_of_whole_messages),
	OF_EVERY_KIND(a_bad_buffer_loses_a_fault_until_it_is_woken),
	cmocka_unit_test(a_bad_buffer_loses_an_event_for_good),
	cmocka_unit_test(the_exit_of_the_target_is_not_told),
	OF_EVERY_KIND(sigbus_mode_sends_no_message),
	OF_EVERY_KIND(a_waiters_signal_handler_runs),
	OF_EVERY_OP(the_field_holds_bytes_or_the_error),
	OF_EVERY_OP(refused_arguments_leave_the_field_alone),
	OF_EVERY_OP(a_changing_layout_and_the_field),
	OF_EVERY_OP(a_dead_process_leaves_the_field_alone),
	WITH(a_failed_split_leaves_a_prefix_registered, lower_the_limit_of_maps,
	     restore_the_limit_of_maps),
	OF_FILES(a_subset_is_a_silent_success_that_changes_nothing),
	OF_FILES(a_disjoint_mode_replaces_the_old_one),
	OF_EVERY_KIND(dropping_wp_is_busy_on_kernels_with_rwp),
	OF_EVERY_KIND(unregistering_anothers_range),
	OF_EVERY_KIND(the_ioctl_alone_leaves_who_waits_to_access_asleep),
	OF_EVERY_OP(a_range_over_two_mappings_is_enoent),
	OF_FILES(continue_wp_came_with_wp_unpopulated),
	OF_EVERY_KIND(poison_does_not_replace_a_mark),
	cmocka_unit_test(wp_unpopulated_builds_page_tables),
	cmocka_unit_test(move_of_a_pinned_page_is_busy),
	cmocka_unit_test(poison_and_move_need_not_be_enabled),
	cmocka_unit_test(move_wants_both_sides_locked_or_neither),
	cmocka_unit_test(move_through_a_living_childs_handle),
	cmocka_unit_test(copy_installs_single_pages_where_thps_are_wanted),
	WITH(a_huge_page_in_the_file_hides_its_neighbours, advise_shmem_thp, restore_shmem_thp),
	WITH(minor_faults_see_behind_a_huge_page, advise_shmem_thp, restore_shmem_thp),
	OF_SHARED(continue_of_a_page_that_the_hardware_lost),
	OF_EVERY_ACCESS(the_kernel_waits_for_a_missing_page),
	OF_EVERY_ACCESS(user_mode_only_fails_the_kernels_accesses),
	OF_EVERY_KIND(proc_mem_says_eio_and_tells_nobody),
	OF_EVERY_KIND(copy_from_a_missing_page_waits_for_it),
	OF_EVERY_KIND(closing_one_of_two_descriptors_changes_nothing),
	OF_EVERY_KIND(a_dead_handlers_target_reads_zeros),
	OF_EVENT(no_answer_while_an_event_is_in_flight, REMOVE),
	OF_EVENT(no_answer_while_an_event_is_in_flight, UNMAP),
	OF_EVENT(no_answer_while_an_event_is_in_flight, REMAP),
	OF_EVENT(no_answer_while_an_event_is_in_flight, FORK),
	cmocka_unit_test(who_goes_on_first_ends_no_other_change),
	cmocka_unit_test(an_answer_after_a_remove_vanishes_or_stays),
	cmocka_unit_test(unmap_tells_the_range_of_the_call),
	cmocka_unit_test(a_childs_descriptor_has_the_flags_of_creation),
	cmocka_unit_test(a_thread_id_is_of_the_faulters_own_namespace),
	OF_SHARED(copy_wakes_nobody_in_another_process),
	cmocka_unit_test(a_child_may_lack_huge_pages),
	cmocka_unit_test(a_caller_killed_in_a_copy_leaves_a_prefix),
	cmocka_unit_test(set_mode_without_rwp),
	cmocka_unit_test(switching_on_wakes_every_waiter),
	cmocka_unit_test(the_scan_came_with_wp_async),
	cmocka_unit_test(one_size_of_the_scans_struct_is_right),
	cmocka_unit_test(the_later_categories_of_a_scan),
	OF_EVERY_KIND(written_pages_of_memory_that_nobody_watches),
	OF_EVERY_KIND(written_pages_where_nothing_is),
};

KERNEL_MAIN("facts", tests, reserve_huge_pages, NULL)
