/* SPDX-License-Identifier: MIT */
#include "kernel.h"

#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>

const char *const mem_name[MEM_KINDS] = {
	[MEM_ANON] = "anonymous",
	[MEM_SHMEM_PRIVATE] = "private shmem",
	[MEM_SHMEM_SHARED] = "shared shmem",
	[MEM_HUGETLB_PRIVATE] = "private hugetlb",
	[MEM_HUGETLB_SHARED] = "shared hugetlb",
};

void requires(uint64_t features)
{
	struct libuffd_caps caps = LIBUFFD_CAPS_INIT;
	uint64_t lacking;

	assert_int_equal(libuffd_probe(&caps), 0);
	lacking = features & ~(caps.features & ~caps.denied);
	if (!lacking)
		return;
	printf("# SKIP: needs ");
	for (uint64_t bit; (bit = lacking & -lacking); lacking &= ~bit) {
		const char *name = libuffd_feature_name(bit);

		printf("%s%s", name ? name : "an unknown feature", lacking & ~bit ? "," : "");
	}
	printf(": not offered to this process by this kernel\n");
	fflush(stdout);
	skip();
}

void requires_kernel_faults(void)
{
	struct libuffd_caps caps = LIBUFFD_CAPS_INIT;

	assert_int_equal(libuffd_probe(&caps), 0);
	if (caps.way[LIBUFFD_WAY_SYSCALL].error && caps.way[LIBUFFD_WAY_DEVICE].error)
		SKIP("kernel-faults", "this process may have user-mode faults only");
}

void requires_syscall(void)
{
	struct libuffd_caps caps = LIBUFFD_CAPS_INIT;

	assert_int_equal(libuffd_probe(&caps), 0);
	if (caps.way[LIBUFFD_WAY_SYSCALL].error)
		SKIP("syscall", "userfaultfd(2) is not permitted here");
}

size_t page_size(void)
{
	return (size_t)sysconf(_SC_PAGESIZE);
}

/* The number in a line of /proc/meminfo; 0 if there is none. */
static size_t meminfo(const char *name)
{
	FILE *f = fopen("/proc/meminfo", "r");
	size_t len = strlen(name), n = 0;
	char line[128];

	if (!f)
		return 0;
	while (fgets(line, sizeof(line), f))
		if (!strncmp(line, name, len) && line[len] == ':')
			n = strtoul(line + len + 1, NULL, 10);
	fclose(f);
	return n;
}

/* The default huge page size, as hugetlb memory without a size of its own has it. */
static size_t huge_page_size(void)
{
	return 1024 * meminfo("Hugepagesize");
}

size_t mem_page_size(enum mem_kind kind)
{
	return mem_is_hugetlb(kind) ? huge_page_size() : page_size();
}

bool huge_page_is_a_run_of_ptes(size_t page)
{
	return page < page_size() * (page_size() / sizeof(uint64_t));
}

void requires_whole_children(enum mem_kind kind)
{
	if (kind == MEM_HUGETLB_PRIVATE && huge_page_is_a_run_of_ptes(mem_page_size(kind)))
		SKIP("whole-children",
		     "fork() may leave huge pages that are runs of ptes out of the child");
}

/*
 * With a populated page of the ordinary size on either side. On some kernels a scan that protects a place
 * of hugetlb for which there is no page table waits for itself, and cannot be killed; and whether
 * there is one depends on what else lies near. Memory smaller than what one table is for (1 GiB,
 * where a page has 4 KiB) shares each of its tables with a page at its side.
 */
static unsigned char *map_hugetlb(struct mem *m, int flags)
{
	size_t small = page_size(), room = m->len + m->page + small;
	unsigned char *all, *addr, *end;

	all = mmap(NULL, room, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	assert_ptr_not_equal(all, MAP_FAILED);
	addr = (unsigned char *)(((uintptr_t)all + small + m->page - 1) / m->page * m->page);
	end = addr + m->len;
	if (addr - small > all)
		munmap(all, (size_t)(addr - small - all));
	if (end + small < all + room)
		munmap(end + small, (size_t)(all + room - end - small));
	if (mmap(addr, m->len, PROT_READ | PROT_WRITE, flags | MAP_FIXED, m->memfd, 0) != addr) {
		munmap(addr - small, m->len + 2 * small);
		return MAP_FAILED;
	}
	m->sides[0] = addr - small;
	m->sides[1] = end;
	for (size_t i = 0; i < ARRAY_SIZE(m->sides); i++) {
		assert_int_equal(mprotect(m->sides[i], small, PROT_READ | PROT_WRITE), 0);
		*(volatile unsigned char *)m->sides[i] = 1;
	}
	return addr;
}

void mem_map(struct mem *m, enum mem_kind kind, size_t pages)
{
	int flags = mem_is_shared(kind) ? MAP_SHARED : MAP_PRIVATE;

	memset(m, 0, sizeof(*m));
	m->kind = kind;
	m->memfd = -1;
	m->page = mem_page_size(kind);
	if (!m->page)
		SKIP("hugetlb", "this kernel has no huge pages");
	m->len = pages * m->page;
	if (kind == MEM_ANON) {
		flags |= MAP_ANONYMOUS;
	} else {
		m->memfd = memfd_create("libuffd-test",
					MFD_CLOEXEC | (mem_is_hugetlb(kind) ? MFD_HUGETLB : 0));
		assert_true(m->memfd >= 0);
		assert_int_equal(ftruncate(m->memfd, (off_t)m->len), 0);
	}
	if (mem_is_hugetlb(kind))
		m->addr = map_hugetlb(m, flags);
	else
		m->addr = mmap(NULL, m->len, PROT_READ | PROT_WRITE, flags, m->memfd, 0);
	if (m->addr == MAP_FAILED && mem_is_hugetlb(kind)) {
		close(m->memfd);
		SKIP("hugetlb", "no huge pages are to be had");
	}
	assert_ptr_not_equal(m->addr, MAP_FAILED);
	/* Tests count pages of the page size they ask for; a THP would be one fault for 512. */
	if (!mem_is_hugetlb(kind))
		madvise(m->addr, m->len, MADV_NOHUGEPAGE);
	m->start = (uintptr_t)m->addr;
	if (m->memfd >= 0 && mem_is_shared(kind)) {
		m->alias = mmap(NULL, m->len, PROT_READ | PROT_WRITE, MAP_SHARED, m->memfd, 0);
		assert_ptr_not_equal(m->alias, MAP_FAILED);
		if (!mem_is_hugetlb(kind))
			madvise(m->alias, m->len, MADV_NOHUGEPAGE);
	}
}

#define HOLES_MAX 64

void mem_hole(struct mem *m, size_t page, size_t pages)
{
	assert_true(page + pages <= HOLES_MAX);
	for (size_t i = page; i < page + pages; i++)
		m->holes |= UINT64_C(1) << i;
	assert_int_equal(munmap(mem_page(m, page), pages * m->page), 0);
}

void mem_unmap(struct mem *m)
{
	if (m->alias)
		munmap(m->alias, m->len);
	if (!m->holes)
		munmap(m->addr, m->len);
	for (size_t i = 0; m->holes && i < m->len / m->page; i++)
		if (i >= HOLES_MAX || !(m->holes >> i & 1))
			munmap(mem_page(m, i), m->page);
	for (size_t i = 0; i < ARRAY_SIZE(m->sides); i++)
		if (m->sides[i])
			munmap(m->sides[i], page_size());
	if (m->memfd >= 0)
		close(m->memfd);
	memset(m, 0, sizeof(*m));
}

unsigned char *page_of(const struct mem *m, size_t pages, unsigned char byte)
{
	unsigned char *p = malloc(pages * m->page);

	assert_non_null(p);
	memset(p, byte, pages * m->page);
	return p;
}

bool all_bytes(const void *p, size_t len, unsigned char byte)
{
	const unsigned char *b = p;

	for (size_t i = 0; i < len; i++)
		if (b[i] != byte)
			return false;
	return true;
}

bool in_test_vm(void)
{
	const char *value = getenv("LIBUFFD_TEST_VM");

	return value && *value;
}

/* ---- Huge pages: reserved for the run, put back as found ------------------------------------- */

#define NR_HUGEPAGES "/proc/sys/vm/nr_hugepages"
static long huge_before = -1;
/* Lines to the process that prints, which puts the number back if this one dies (see TAP). */
#define HUGE_TAKEN "# huge pages before: "
#define HUGE_GIVEN_BACK "# huge pages given back"
/* Locked as long as the number is ours: it is the machine's, and other runs want it too. */
static int huge_lock = -1;

static long huge_read(void)
{
	FILE *f = fopen(NR_HUGEPAGES, "r");
	long n = -1;

	if (!f)
		return -1;
	if (fscanf(f, "%ld", &n) != 1)
		n = -1;
	fclose(f);
	return n;
}

static int huge_write(long n)
{
	int fd = open(NR_HUGEPAGES, O_WRONLY | O_CLOEXEC);
	int ret;

	if (fd < 0)
		return -1;
	ret = dprintf(fd, "%ld", n) < 0 ? -1 : 0;
	close(fd);
	return ret;
}

/* Those that nobody has, and nobody was promised; one that the hardware lost counts as taken. */
static long huge_available(void)
{
	return (long)meminfo("HugePages_Free") - (long)meminfo("HugePages_Rsvd");
}

int huge_reserve(unsigned int pages)
{
	long before, lacking;
	unsigned int watch;

	if (huge_lock < 0) {
		huge_lock = open(NR_HUGEPAGES, O_RDONLY | O_CLOEXEC);
		if (huge_lock < 0)
			return -1;
		/* Who waits for another program to give them back is not one that hangs. */
		watch = alarm(0);
		flock(huge_lock, LOCK_EX);
		alarm(watch);
	}
	before = huge_read();
	if (before < 0)
		return -1;
	lacking = (long)pages - huge_available();
	if (lacking <= 0)
		return 0;
	if (huge_before < 0) {
		huge_before = before;
		printf(HUGE_TAKEN "%ld\n", before);
		fflush(stdout);
	}
	/*
	 * Not from the number that was asked for: pages beyond it that are held by a promise (which some kernels make and
	 * forget, when a part of a private mapping is moved) would become some of ours.
	 */
	if (huge_write((long)meminfo("HugePages_Total") + lacking))
		return -1;
	return huge_available() >= (long)pages ? 0 : -1;
}

void huge_restore(void)
{
	if (huge_before >= 0) {
		huge_write(huge_before);
		printf(HUGE_GIVEN_BACK "\n");
		fflush(stdout);
	}
	huge_before = -1;
	if (huge_lock >= 0) {
		flock(huge_lock, LOCK_UN);
		close(huge_lock);
	}
	huge_lock = -1;
}

/* ---- userfaultfd ----------------------------------------------------------------------------- */

struct libuffd *uffd_with(uint64_t features)
{
	struct libuffd_open_opts opts = LIBUFFD_OPEN_OPTS_INIT;
	struct libuffd *u = NULL;

	opts.flags = LIBUFFD_OPEN_USER_MODE_OK;
	opts.required = features;
	assert_int_equal(libuffd_open(&opts, &u), 0);
	assert_non_null(u);
	return u;
}

uint64_t mem_register(const struct libuffd *u, const struct mem *m, uint64_t modes)
{
	uint64_t ioctls = 0;

	assert_int_equal(libuffd_register(u, m->start, m->len, modes, &ioctls), 0);
	return ioctls;
}

unsigned long waiters(const struct libuffd *u)
{
	char path[64], line[128];
	unsigned long n = 0;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", libuffd_fd(u));
	f = fopen(path, "r");
	assert_non_null(f);
	while (fgets(line, sizeof(line), f))
		if (sscanf(line, "total: %lu", &n) == 1)
			break;
	fclose(f);
	return n;
}

void wait_waiters(const struct libuffd *u, unsigned long n)
{
	while (waiters(u) < n)
		give_way();
}

void wait_asleep(const struct libuffd *u, unsigned long n, const struct mem *m)
{
	wait_waiters(u, n);
	/*
	 * A thread is counted a moment before it looks a last time whether its page is there. It looks
	 * with its mapping locked for reading; changing a flag of the mapping locks it for writing.
	 */
	madvise(m->addr, m->len, MADV_DONTFORK);
	madvise(m->addr, m->len, MADV_DOFORK);
}

struct libuffd_event next_event(const struct libuffd *u)
{
	struct libuffd_event ev;
	int n;

	do {
		struct pollfd p = { .fd = libuffd_fd(u), .events = POLLIN };

		assert_int_equal(poll(&p, 1, -1), 1);
		n = libuffd_read_events(u, &ev, 1);
	} while (n == -EAGAIN);
	assert_int_equal(n, 1);
	return ev;
}

struct libuffd_event expect_event(const struct libuffd *u, uint32_t type)
{
	struct libuffd_event ev = next_event(u);

	assert_int_equal(ev.type, type);
	return ev;
}

void expect_no_event(const struct libuffd *u)
{
	struct libuffd_event ev;

	assert_int_equal(libuffd_read_events(u, &ev, 1), -EAGAIN);
}

/* ---- Touching -------------------------------------------------------------------------------- */

static _Thread_local sigjmp_buf touch_env;
static _Thread_local volatile sig_atomic_t touching;

static void on_fatal(int sig)
{
	if (touching)
		siglongjmp(touch_env, sig);
	/* Not an access of touch(): die of it, as without us. */
	signal(sig, SIG_DFL);
	raise(sig);
}

/* No sanitizer checks: the address is none that they know, and the access may not return. */
__attribute__((no_sanitize("address", "thread"))) static void access_byte(void *addr, bool write,
									  unsigned char *byte)
{
	volatile unsigned char *p = addr;

	if (write)
		*p = *byte;
	else
		*byte = *p;
}

/* Apart from its callers: what they keep in registers a siglongjmp() would throw away. */
__attribute__((noinline)) static int try_access(void *addr, bool write, unsigned char *byte)
{
	int sig = sigsetjmp(touch_env, 1);

	if (!sig) {
		touching = 1;
		access_byte(addr, write, byte);
	}
	touching = 0;
	return sig;
}

int touch(void *addr, bool write, unsigned char *byte)
{
	struct sigaction sa = { .sa_handler = on_fatal }, old_segv, old_bus;
	unsigned char none = 0;
	int sig;

	sigaction(SIGSEGV, &sa, &old_segv);
	sigaction(SIGBUS, &sa, &old_bus);
	sig = try_access(addr, write, byte ? byte : &none);
	sigaction(SIGSEGV, &old_segv, NULL);
	sigaction(SIGBUS, &old_bus, NULL);
	return sig;
}

static void *fault_thread(void *arg)
{
	struct faulter *f = arg;
	unsigned char byte = f->byte;

	atomic_store(&f->tid, (int)syscall(SYS_gettid));
	/* The handlers are the process's; only the jump's target is this thread's own. */
	f->signal = try_access((void *)(uintptr_t)f->addr, f->write, &byte);
	f->byte = byte;
	atomic_store(&f->done, true);
	return NULL;
}

void faulter_start(struct faulter *f, void *addr, bool write, unsigned char byte)
{
	struct sigaction sa = { .sa_handler = on_fatal };

	/* Ours for good: a test ends with all its faulters joined, and touching says whose it is. */
	sigaction(SIGSEGV, &sa, NULL);
	sigaction(SIGBUS, &sa, NULL);
	memset(f, 0, sizeof(*f));
	f->addr = addr;
	f->write = write;
	f->byte = byte;
	assert_int_equal(pthread_create(&f->thread, NULL, fault_thread, f), 0);
}

void faulter_join(struct faulter *f)
{
	assert_int_equal(pthread_join(f->thread, NULL), 0);
}

/*
 * A thread is counted among those that wait before it wakes who polls for its message. What call a thread
 * is in the kernel tells only when that thread is off its processor, asleep.
 */
void wait_told(struct faulter *f)
{
	char path[64], line[32];

	do {
		FILE *file;

		give_way();
		snprintf(path, sizeof(path), "/proc/self/task/%d/syscall", atomic_load(&f->tid));
		file = fopen(path, "r");
		assert_non_null(file);
		assert_non_null(fgets(line, sizeof(line), file));
		fclose(file);
	} while (strncmp(line, "running", 7) == 0);
}

int count_fds(void)
{
	DIR *d = opendir("/proc/self/fd");
	int n = 0;

	assert_non_null(d);
	while (readdir(d))
		n++;
	closedir(d);
	return n;
}

/* ---- Memory and a userfaultfd together ------------------------------------------------------- */

uint64_t mem_features(enum mem_kind kind, uint64_t modes)
{
	bool hugetlb = mem_is_hugetlb(kind);
	uint64_t features = 0;

	if ((modes & LIBUFFD_MODE_MISSING) && kind != MEM_ANON)
		features |= hugetlb ? LIBUFFD_FEATURE_MISSING_HUGETLBFS
				    : LIBUFFD_FEATURE_MISSING_SHMEM;
	if (modes & LIBUFFD_MODE_WP)
		features |= LIBUFFD_FEATURE_PAGEFAULT_FLAG_WP |
			    (kind == MEM_ANON ? 0 : LIBUFFD_FEATURE_WP_HUGETLBFS_SHMEM);
	if (modes & LIBUFFD_MODE_MINOR)
		features |= hugetlb ? LIBUFFD_FEATURE_MINOR_HUGETLBFS : LIBUFFD_FEATURE_MINOR_SHMEM;
	if (modes & LIBUFFD_MODE_RWP)
		features |= LIBUFFD_FEATURE_RWP;
	return features;
}

void mem_fill_file(const struct mem *m, size_t page, unsigned char byte)
{
	unsigned char *p = mmap(NULL, m->page, PROT_READ | PROT_WRITE, MAP_SHARED, m->memfd,
				(off_t)(page * m->page));

	assert_ptr_not_equal(p, MAP_FAILED);
	/* A huge page in the cache would also be a page for its neighbours. */
	if (!mem_is_hugetlb(m->kind))
		madvise(p, m->page, MADV_NOHUGEPAGE);
	memset(p, byte, m->page);
	munmap(p, m->page);
}

void rig_up(struct rig *r, enum mem_kind kind, size_t pages, uint64_t modes, uint64_t features)
{
	features |= mem_features(kind, modes);
	requires(features);
	mem_map(&r->m, kind, pages);
	r->u = uffd_with(features);
	mem_register(r->u, &r->m, modes);
}

void rig_down(struct rig *r)
{
	libuffd_close(r->u);
	mem_unmap(&r->m);
}

/* ---- TAP ------------------------------------------------------------------------------------- */

/*
 * cmocka 1.1.5 prints a skipped test as "not ok 3 # SKIP name", which TAP reads as a failure
 * (later releases say "ok"). A child between us and stdout puts that right, and moves the reason
 * that SKIP() gave before into the line.
 */
#define TAP_END "# end"

static void tap_line(const char *line, char *reason, size_t cap)
{
	unsigned int number;
	int name = 0;

	if (!strncmp(line, "# SKIP: ", 8)) {
		snprintf(reason, cap, "%s", line + 8);
		return;
	}
	if (sscanf(line, HUGE_TAKEN "%ld", &huge_before) == 1)
		return;
	if (!strcmp(line, HUGE_GIVEN_BACK)) {
		huge_before = -1;
		return;
	}
	if ((sscanf(line, "not ok %u # SKIP %n", &number, &name) == 1 && name) ||
	    (sscanf(line, "ok %u # SKIP %n", &number, &name) == 1 && name)) {
		printf("ok %u - %s # SKIP %s\n", number, line + name, reason);
		*reason = '\0';
		return;
	}
	printf("%s\n", line);
}

/* Not until the end of the pipe: a test that failed may have left a process that holds it open. */
static void tap_filter(int fd)
{
	FILE *in = fdopen(fd, "r");
	char *line = NULL, reason[256] = "";
	size_t cap = 0;

	while (in && getline(&line, &cap, in) > 0) {
		line[strcspn(line, "\n")] = '\0';
		if (!strcmp(line, TAP_END))
			break;
		tap_line(line, reason, sizeof(reason));
		fflush(stdout);
	}
	free(line);
}

static pid_t tap_begin(void)
{
	pid_t pid;
	int fd[2];

	if (pipe(fd))
		return -1;
	fflush(stdout);
	pid = fork();
	if (!pid) {
		/* Whoever ends the tests must not end this: it goes when they are gone. */
		signal(SIGTERM, SIG_IGN);
		signal(SIGINT, SIG_IGN);
		signal(SIGPIPE, SIG_IGN);
		close(fd[1]);
		tap_filter(fd[0]);
		huge_restore();
		_exit(0);
	}
	if (pid > 0)
		dup2(fd[1], STDOUT_FILENO);
	close(fd[0]);
	close(fd[1]);
	return pid;
}

static void tap_end(pid_t filter)
{
	printf(TAP_END "\n");
	fflush(stdout);
	waitpid(filter, NULL, 0);
}

/* ---- main ------------------------------------------------------------------------------------ */

/*
 * A test that hangs must fail, not stop the whole run: when a case has taken so long SIGALRM ends the program,
 * whose plan then lacks cases, and the process behind it puts the huge pages back.
 */
#define WATCHDOG_SECONDS 300

static struct {
	const struct CMUnitTest *tests;
	size_t n;
	const char *running;
} cases;

/* In front of each case's own setup: what hangs can be named. */
static int announce(void **state)
{
	const struct CMUnitTest *own = *state;

	if (own < cases.tests || own >= cases.tests + cases.n)
		return 0;
	cases.running = own->name;
	alarm(WATCHDOG_SECONDS);
	*state = own->initial_state;
	return own->setup_func ? own->setup_func(state) : 0;
}

static struct CMUnitTest *announced(const struct CMUnitTest *tests, size_t n)
{
	struct CMUnitTest *out = calloc(n, sizeof(*out));

	cases.tests = tests;
	cases.n = n;
	for (size_t i = 0; out && i < n; i++) {
		out[i] = tests[i];
		out[i].setup_func = announce;
		out[i].initial_state = (void *)&tests[i];
	}
	return out;
}

static void say(const char *text)
{
	if (write(STDOUT_FILENO, text, strlen(text)) < 0)
		return;
}

/* The first line of /proc/@process/task/@tid/@name, all of it that has room. In a signal handler. */
static void say_of_thread(const char *process, const char *tid, const char *name)
{
	char path[100] = "/proc/", text[160];
	ssize_t n;
	int fd;

	strncat(path, process, 20);
	strcat(path, "/task/");
	strncat(path, tid, 20);
	strcat(path, "/");
	strncat(path, name, 20);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	n = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);
	if (fd >= 0)
		close(fd);
	text[n > 0 ? n : 0] = '\0';
	text[strcspn(text, "\n")] = '\0';
	say(" ");
	say(*text ? text : "?");
}

void say_threads(const char *process)
{
	char path[64] = "/proc/";
	struct dirent *d;
	DIR *tasks;

	strncat(path, process, 20);
	strcat(path, "/task");
	tasks = opendir(path);
	while (tasks && (d = readdir(tasks))) {
		if (d->d_name[0] == '.')
			continue;
		say("# thread ");
		say(d->d_name);
		say_of_thread(process, d->d_name, "comm");
		say_of_thread(process, d->d_name, "wchan");
		say_of_thread(process, d->d_name, "syscall");
		say("\n");
	}
	if (tasks)
		closedir(tasks);
}

static void hung(int sig)
{
	sigset_t own;

	/* The directory is read with memory of malloc(), whose lock somebody may have: then this is the end. */
	signal(sig, SIG_DFL);
	sigemptyset(&own);
	sigaddset(&own, sig);
	sigprocmask(SIG_UNBLOCK, &own, NULL);
	alarm(10);
	say("\n# hung: ");
	say(cases.running ? cases.running : "no case");
	say("\n");
	say_threads("self");
	raise(sig);
}

int run_kernel_tests(int argc, char **argv, const char *name, const struct CMUnitTest *tests,
		     size_t n, CMFixtureFunction setup, CMFixtureFunction teardown)
{
	struct CMUnitTest *own;
	pid_t filter;
	int failed;

	if (argc > 2 || (argc == 2 && *argv[1] == '-')) {
		fprintf(stderr, "usage: %s [PATTERN]    the cases whose names match, or all\n",
			argv[0]);
		return 2;
	}
	if (argc == 2)
		cmocka_set_test_filter(argv[1]);
	setvbuf(stdout, NULL, _IOLBF, 0);
	own = announced(tests, n);
	filter = own ? tap_begin() : -1;
	if (filter < 0) {
		printf("Bail out! no process for the output: %s\n", strerror(errno));
		free(own);
		return 1;
	}
	signal(SIGALRM, hung);
	alarm(WATCHDOG_SECONDS);
	cmocka_set_message_output(CM_OUTPUT_TAP);
	failed = _cmocka_run_group_tests(name, own, n, setup, teardown);
	free(own);
	huge_restore();
	tap_end(filter);
	return failed ? 1 : 0;
}
