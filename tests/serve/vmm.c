/* SPDX-License-Identifier: MIT */
#include "vmm.h"

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <linux/sockios.h>
#include <pthread.h>
#include <unistd.h>

#include "../kernel/kernel.h"

#define REGIONS_MOST 2000
#define STARERS 16

static struct {
	const char *version;
	size_t regions, pages, page;
	unsigned char *base[REGIONS_MOST];
	unsigned char *outside;
	struct libuffd *u;
	int sock;
	char **argv;
} vm;

/* ---- The file's bytes ------------------------------------------------------------------------- */

bool block_is_hole(uint64_t block)
{
	return block % 8 == 5;
}

void block_fill(unsigned char *to, uint64_t block, size_t len)
{
	uint64_t x = (block + 1) * UINT64_C(0x9e3779b97f4a7c15);

	for (size_t i = 0; i < len; i += sizeof(x)) {
		uint64_t word;

		x = x * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
		word = (x ^ x >> 29) | UINT64_C(0x0101010101010101);
		memcpy(to + i, &word, sizeof(word));
	}
}

/* ---- Memory ------------------------------------------------------------------------------------- */

static unsigned char *page_at(size_t n)
{
	return vm.base[n / vm.pages] + n % vm.pages * vm.page;
}

/* Regions lie in the file in the other order. */
static uint64_t offset_of_region(size_t region)
{
	return (uint64_t)(vm.regions - 1 - region) * vm.pages * vm.page;
}

static uint64_t offset_of_page(size_t n)
{
	return offset_of_region(n / vm.pages) + n % vm.pages * vm.page;
}

static void give_up(const char *what)
{
	printf("no %s: %s\n", what, strerror(errno));
	exit(1);
}

static unsigned char *map(size_t len, bool huge)
{
	unsigned char *p = mmap(NULL, len, PROT_READ | PROT_WRITE,
				MAP_PRIVATE | MAP_ANONYMOUS | (huge ? MAP_HUGETLB : 0), -1, 0);

	if (p == MAP_FAILED)
		give_up("memory");
	return p;
}

static void make_memory(uint64_t features, bool huge, int fault_flags)
{
	struct libuffd_open_opts opts = LIBUFFD_OPEN_OPTS_INIT;
	size_t len = vm.pages * vm.page;

	opts.flags = LIBUFFD_OPEN_USER_MODE_OK | (uint32_t)fault_flags;
	opts.required = features;
	if (libuffd_open(&opts, &vm.u) < 0)
		give_up("userfaultfd");
	for (size_t i = 0; i < vm.regions; i++) {
		/* With a page in between that is nobody's, so that no two are one mapping. */
		unsigned char *p = map(len + vm.page, huge);

		munmap(p + len, vm.page);
		vm.base[i] = p;
		if (libuffd_register(vm.u, (uintptr_t)p, len, LIBUFFD_MODE_MISSING, NULL) < 0)
			give_up("registering");
	}
	vm.outside = map(vm.page, huge);
	if (libuffd_register(vm.u, (uintptr_t)vm.outside, vm.page, LIBUFFD_MODE_MISSING, NULL) < 0)
		give_up("registering");
}

/* ---- Looking at it ------------------------------------------------------------------------------ */

static __thread sigjmp_buf *on_sigbus;

static void sigbus(int sig)
{
	(void)sig;
	siglongjmp(*on_sigbus, 1);
}

static bool is_zero_block(const unsigned char *p, size_t len)
{
	for (size_t i = 0; i < len; i++)
		if (p[i])
			return false;
	return true;
}

/* A page, against the file: holes are zeros there too. */
static bool is_of_file(const unsigned char *p, uint64_t offset)
{
	size_t block = page_size();
	unsigned char *want = malloc(block);
	bool same = true;

	for (size_t at = 0; at < vm.page && same; at += block) {
		uint64_t n = (offset + at) / block;

		block_fill(want, n, block);
		same = block_is_hole(n) ? is_zero_block(p + at, block)
					: memcmp(p + at, want, block) == 0;
	}
	free(want);
	return same;
}

static const char *look(const unsigned char *p, uint64_t offset)
{
	sigjmp_buf here;

	on_sigbus = &here;
	if (sigsetjmp(here, 1))
		return "sigbus";
	if (is_of_file(p, offset))
		return "file";
	return is_zero_block(p, vm.page) ? "zeros" : "other";
}

struct toucher {
	pthread_t thread;
	size_t first, n, step, wrong;
};

static void *touch_some(void *arg)
{
	struct toucher *t = arg;

	t->wrong = SIZE_MAX;
	for (size_t i = 0; i < t->n && t->wrong == SIZE_MAX; i += t->step)
		if (strcmp(look(page_at(t->first + i), offset_of_page(t->first + i)), "file"))
			t->wrong = t->first + i;
	return NULL;
}

static void touch_pages(size_t first, size_t n, size_t threads)
{
	struct toucher *t = calloc(threads, sizeof(*t));
	size_t wrong = SIZE_MAX;

	for (size_t i = 0; i < threads; i++) {
		t[i] = (struct toucher){ .first = first + i, .n = n - i, .step = threads };
		pthread_create(&t[i].thread, NULL, touch_some, &t[i]);
	}
	for (size_t i = 0; i < threads; i++) {
		pthread_join(t[i].thread, NULL);
		if (t[i].wrong < wrong)
			wrong = t[i].wrong;
	}
	free(t);
	if (wrong == SIZE_MAX)
		printf("ok\n");
	else
		printf("no page %zu: %s\n", wrong, look(page_at(wrong), offset_of_page(wrong)));
}

static void zeros(size_t first, size_t n)
{
	for (size_t i = first; i < first + n; i++)
		if (!is_zero_block(page_at(i), vm.page)) {
			printf("no page %zu: %s\n", i, look(page_at(i), offset_of_page(i)));
			return;
		}
	printf("ok\n");
}

static struct {
	pthread_t thread;
	size_t page;
	const char *saw;
	atomic_bool done;
} starer;

static void *stare(void *arg)
{
	(void)arg;
	starer.saw = look(page_at(starer.page), offset_of_page(starer.page));
	atomic_store(&starer.done, true);
	return NULL;
}

static void start_staring(size_t page)
{
	starer.page = page;
	atomic_store(&starer.done, false);
	pthread_create(&starer.thread, NULL, stare, NULL);
	/* Whoever is served at once never waits long enough to be seen. */
	while (!atomic_load(&starer.done) && (!vm.u || waiters(vm.u) < 1))
		sched_yield();
	printf("ok\n");
}

/* ---- What it says -------------------------------------------------------------------------------- */

static bool is_since(const char *version)
{
	int major, minor, of_major, of_minor;

	sscanf(vm.version, "%d.%d", &of_major, &of_minor);
	sscanf(version, "%d.%d", &major, &minor);
	return of_major > major || (of_major == major && of_minor >= minor);
}

static char *message(void)
{
	char *text = NULL;
	size_t len;
	FILE *f = open_memstream(&text, &len);

	for (size_t i = 0; i < vm.regions; i++) {
		fprintf(f, "%c{\"base_host_virt_addr\":%llu,\"size\":%zu,\"offset\":%llu",
			i ? ',' : '[', (unsigned long long)(uintptr_t)vm.base[i],
			vm.pages * vm.page, (unsigned long long)offset_of_region(i));
		if (is_since("1.12"))
			fprintf(f, ",\"page_size\":%zu", vm.page);
		if (is_since("1.7") && !is_since("2.0"))
			fprintf(f, ",\"page_size_kib\":%zu", vm.page);
		fprintf(f, "}");
	}
	fprintf(f, "]");
	fclose(f);
	return text;
}

static void send_piece(const char *text, size_t len, const int *fds, size_t n)
{
	union {
		struct cmsghdr head;
		unsigned char space[CMSG_SPACE(16 * sizeof(int))];
	} control;
	struct iovec iov = { (void *)(uintptr_t)text, len };
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
	while (len) {
		ssize_t sent = sendmsg(vm.sock, &msg, MSG_NOSIGNAL);

		/* Whoever has heard enough may have hung up: what he made of it is seen elsewhere. */
		if (sent < 0)
			return;
		msg.msg_control = NULL;
		msg.msg_controllen = 0;
		iov.iov_base = (char *)iov.iov_base + sent;
		iov.iov_len = len -= (size_t)sent;
	}
}

/* Until the other side has read all of it, or has hung up. */
static void wait_read(void)
{
	int unread;

	while (ioctl(vm.sock, SIOCOUTQ, &unread) == 0 && unread)
		sched_yield();
}

static void hello_in(size_t piece, size_t first)
{
	char *text = message();
	size_t len = strlen(text), at = first;
	int fd = libuffd_fd(vm.u);

	send_piece(text, first, &fd, 1);
	for (; at < len; at += piece) {
		wait_read();
		send_piece(text + at, len - at < piece ? len - at : piece, NULL, 0);
	}
	free(text);
	printf("ok\n");
}

/* A second machine of the same process, whose memory this one then has in its place. */
static void two_messages(bool glued)
{
	char *one = message(), *two, *text = NULL;
	int fd = libuffd_fd(vm.u);
	size_t half = strlen(one) / 2;

	make_memory(libuffd_features(vm.u) & ~(UINT64_C(1) << 31), false, 0);
	two = message();
	if (glued) {
		send_piece(one, half, &fd, 1);
		fd = libuffd_fd(vm.u);
		if (asprintf(&text, "%s%s", one + half, two) < 0)
			give_up("memory");
		send_piece(text, strlen(text), &fd, 1);
	} else {
		send_piece(one, strlen(one), &fd, 1);
		fd = libuffd_fd(vm.u);
		send_piece(two, strlen(two), &fd, 1);
	}
	free(one);
	free(two);
	free(text);
	printf("ok\n");
}

/* The first two are userfaultfds, so that two are two good ones; "x" is a descriptor that is none. */
static void say(const char *fds, const char *text)
{
	int fd[16], n = atoi(fds);

	for (int i = 0; i < n && i < 16; i++)
		fd[i] = libuffd_fd(vm.u);
	if (*fds == 'x') {
		fd[0] = STDERR_FILENO;
		n = 1;
	}
	send_piece(text, strlen(text), fd, (size_t)n);
	printf("ok\n");
}

static void connect_to(const char *path)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };

	memcpy(address.sun_path, path, strnlen(path, sizeof(address.sun_path) - 1));
	vm.sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (vm.sock < 0 || connect(vm.sock, (struct sockaddr *)&address, sizeof(address)) < 0)
		printf("no %s\n", strerror(errno));
	else
		printf("ok\n");
}

static void expect_closed(void)
{
	char byte;
	ssize_t n = recv(vm.sock, &byte, 1, 0);

	/* With bytes that were not read it is a reset. */
	printf(n == 0 || (n < 0 && errno == ECONNRESET) ? "ok\n" : "no, it said something\n");
}

/* ---- Commands ------------------------------------------------------------------------------------- */

static bool talk_command(const char *line)
{
	size_t n;
	char fds[8];
	int at = 0;

	if (strncmp(line, "connect ", 8) == 0) {
		connect_to(line + 8);
	} else if (strcmp(line, "hello") == 0) {
		hello_in(SIZE_MAX / 2, strlen(message()));
	} else if (strcmp(line, "hello each") == 0) {
		hello_in(1, 1);
	} else if (sscanf(line, "hello at %zu", &n) == 1) {
		hello_in(SIZE_MAX / 2, n);
	} else if (strcmp(line, "twice") == 0) {
		two_messages(false);
	} else if (strcmp(line, "glued") == 0) {
		two_messages(true);
	} else if (sscanf(line, "say %7s %n", fds, &at) == 1 && at) {
		say(fds, line + at);
	} else if (strcmp(line, "message") == 0) {
		printf("%s\n", message());
	} else if (sscanf(line, "base %zu", &n) == 1) {
		printf("%llu\n", (unsigned long long)(uintptr_t)vm.base[n]);
	} else if (strcmp(line, "closed") == 0) {
		expect_closed();
	} else if (strcmp(line, "hang-up") == 0) {
		close(vm.sock);
		printf("ok\n");
	} else if (strcmp(line, "exec") == 0) {
		execv("/proc/self/exe", vm.argv);
		give_up("program");
	} else {
		return false;
	}
	return true;
}

static bool memory_command(const char *line)
{
	size_t first, n, threads;

	if (sscanf(line, "touch %zu %zu %zu", &first, &n, &threads) == 3) {
		touch_pages(first, n, threads);
	} else if (sscanf(line, "zeros %zu %zu", &first, &n) == 2) {
		zeros(first, n);
	} else if (sscanf(line, "peek %zu", &n) == 1) {
		printf("%s\n", look(page_at(n), offset_of_page(n)));
	} else if (strcmp(line, "peek-outside") == 0) {
		printf("%s\n", look(vm.outside, 0));
	} else if (sscanf(line, "stare %zu", &n) == 1) {
		start_staring(n);
	} else if (strcmp(line, "seen") == 0) {
		pthread_join(starer.thread, NULL);
		printf("%s\n", starer.saw);
	} else if (strcmp(line, "waits") == 0) {
		printf("%s\n", atomic_load(&starer.done) ? starer.saw : "yes");
	} else if (sscanf(line, "drop %zu %zu", &first, &n) == 2) {
		printf(madvise(page_at(first), n * vm.page, MADV_DONTNEED) ? "no\n" : "ok\n");
	} else if (strcmp(line, "forget") == 0) {
		libuffd_close(vm.u);
		vm.u = NULL;
		printf("ok\n");
	} else {
		return false;
	}
	return true;
}

static uint64_t setting(int argc, char **argv, const char *key, int base, uint64_t otherwise)
{
	size_t len = strlen(key);

	for (int i = 2; i < argc; i++)
		if (strncmp(argv[i], key, len) == 0 && argv[i][len] == '=')
			return strtoull(argv[i] + len + 1, NULL, base);
	return otherwise;
}

int vmm_main(int argc, char **argv)
{
	struct sigaction act = { .sa_handler = sigbus };
	static char line[1 << 20];
	uint64_t features;
	bool huge;

	vm.version = "1.12";
	for (int i = 2; i < argc; i++)
		if (strncmp(argv[i], "version=", 8) == 0)
			vm.version = argv[i] + 8;
	huge = setting(argc, argv, "huge", 10, 0);
	vm.page = huge ? mem_page_size(MEM_HUGETLB_PRIVATE) : page_size();
	vm.regions = setting(argc, argv, "regions", 10, 2);
	vm.pages = setting(argc, argv, "pages", 10, 32);
	vm.sock = -1;
	vm.argv = argv;
	features = is_since("1.12") ? LIBUFFD_FEATURE_EVENT_REMOVE : 0;
	features = setting(argc, argv, "features", 16, features);
	sigaction(SIGBUS, &act, NULL);
	setvbuf(stdout, NULL, _IOLBF, 0);
	make_memory(features, huge,
		    setting(argc, argv, "blocking", 10, 0) ? LIBUFFD_OPEN_BLOCKING : 0);
	printf("ready\n");
	while (fgets(line, sizeof(line), stdin)) {
		line[strcspn(line, "\n")] = '\0';
		if (!talk_command(line) && !memory_command(line))
			printf("no such command: %s\n", line);
	}
	return 0;
}
