/* SPDX-License-Identifier: MIT */
/*
 * microvm: a hypervisor, small but real, whose guest's memory comes when it is touched.
 *
 *   microvm --make SNAPSHOT                    boot a guest, stop it, write down its memory and registers
 *   microvm --restore SNAPSHOT                 go on with it at once, served by a thread of this process
 *   microvm --restore SNAPSHOT --socket PATH   so, served by another process: uffd-serve --socket PATH
 *                                              --memory SNAPSHOT
 *
 * In the third way this process makes the userfaultfd, registers the guest's memory with it, and hands
 * both over as Firecracker does: one message on a Unix socket, a JSON array of what lies where, and
 * with it the descriptor.
 *
 * The guest is a program of 76 bytes that walks through its memory: it adds up words of each page, and in
 * every second pass changes them. What it found is compared with what it should have found, each page by
 * itself; at the end all of the memory is compared, byte by byte.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include <linux/kvm.h>

#include <uffd/server.h>

#include "number.h"

#define MIB (1024.0 * 1024.0)
#define PAGE ((size_t)4096)
#define WORDS (PAGE / 4)
#define MAX_CPUS 16
#define MAX_MIB 3072 /* what follows is devices, in every PC */
#define BAR 20

/* Of a guest that has no use for all of its memory: of every 64 pages, 16 were never written. */
#define HOLE_PAGES 16

enum { EXIT_DONE, EXIT_FAILED, EXIT_USAGE, EXIT_NO_KVM = 77 };

/* ---- The guest ----------------------------------------------------------------------------------- */

#define PORT_COMMAND 0x10 /* it reads its next command there, a word at a time */
#define PORT_DONE 0x11	  /* and writes there when it has done one */

/* A command, as it lies in the guest's memory: EBX points to it. */
struct command {
	uint32_t first; /* the page to begin with */
	uint32_t words; /* of a page */
	uint32_t every; /* bytes from one word to the next */
	uint32_t add;	/* to each word; 0: only read */
	uint32_t step;	/* from one page to the next, modulo pages */
	uint32_t pages;
	uint32_t sums; /* where to put the sum of each page */
	uint32_t count;
};
#define COMMAND_WORDS (sizeof(struct command) / sizeof(uint32_t))

/* Protected mode, 32 bits, no paging, flat segments. It lies at address 0 and has no stack. */
static const uint8_t guest_code[] = {
	0xff, 0x83,	     0x00, 0x04, 0,
	0,		 /* next: inc  dword [ebx + 0x400]  ; commands done, and the boot */
	0xe7, PORT_DONE, /*       out  PORT_DONE, eax */
	0x89, 0xdf,	 /*       mov  edi, ebx */
	0xb9, COMMAND_WORDS, 0,	   0,	 0, /*       mov  ecx, COMMAND_WORDS */
	0xe5, PORT_COMMAND,		    /* get:  in   eax, PORT_COMMAND */
	0xab,				    /*       stosd */
	0xe2, 0xfb,			    /*       loop get */
	0x8b, 0x33,			    /*       mov  esi, [ebx + first] */
	0x8b, 0x6b,	     0x0c,	    /*       mov  ebp, [ebx + add] */
	0x8d, 0x7e,	     0x01, /* page: lea  edi, [esi + 1]       ; page 0 is this one */
	0xc1, 0xe7,	     0x0c, /*       shl  edi, 12 */
	0x89, 0xf0,		   /*       mov  eax, esi */
	0x8b, 0x4b,	     0x04, /*       mov  ecx, [ebx + words] */
	0xc1, 0xc0,	     0x05, /* word: rol  eax, 5 */
	0x03, 0x07,		   /*       add  eax, [edi] */
	0x85, 0xed,		   /*       test ebp, ebp */
	0x74, 0x02,		   /*       jz   over */
	0x01, 0x2f,		   /*       add  [edi], ebp */
	0x03, 0x7b,	     0x08, /* over: add  edi, [ebx + every] */
	0xe2, 0xf0,		   /*       loop word */
	0x8b, 0x7b,	     0x18, /*       mov  edi, [ebx + sums] */
	0x89, 0x04,	     0xb7, /*       mov  [edi + esi * 4], eax */
	0x03, 0x73,	     0x10, /*       add  esi, [ebx + step] */
	0x3b, 0x73,	     0x14, /*       cmp  esi, [ebx + pages] */
	0x72, 0x03,		   /*       jb   same */
	0x2b, 0x73,	     0x14, /*       sub  esi, [ebx + pages] */
	0xff, 0x4b,	     0x1c, /* same: dec  dword [ebx + count] */
	0x75, 0xcf,		   /*       jnz  page */
	0xeb, 0xb4,		   /*       jmp  next */
};

#define COMMAND_AT(cpu) (0x800 + (cpu) * sizeof(struct command)) /* each vCPU has its own */
#define DONE_AT(cpu) (COMMAND_AT(cpu) + 0x400)

/* ---- What there is -------------------------------------------------------------------------------- */

struct options {
	const char *make, *restore, *socket;
	unsigned int mib, cpus, passes, touch, words, balloon, engine;
	uint64_t seed, window;
	bool fill, stay, json, quiet;
};

struct cpu {
	struct vm *vm;
	unsigned int id;
	int fd;
	struct kvm_run *run;
	pthread_t thread;
	uint32_t command[COMMAND_WORDS]; /* what the guest reads; under the lock, as are */
	bool has_command, quit;
	unsigned int next; /* of its words; the vCPU's thread's */
};

/* What a snapshot has besides the memory: a file of its own, as others do it. */
struct state {
	char magic[8];
	uint32_t version, cpus;
	uint64_t bytes, seed;
	struct {
		struct kvm_regs regs;
		struct kvm_sregs sregs;
	} cpu[MAX_CPUS];
};
#define STATE_MAGIC "uffdvm\n" /* with its zero, 8 bytes */
#define STATE_VERSION 1

struct pass {
	unsigned int pages;
	uint32_t add;
	double seconds;
};

struct vm {
	struct options opts;
	int kvm, fd;
	uint8_t *memory;
	size_t len;
	unsigned int pages; /* that are walked: all but the first, and the table of sums */
	size_t sums_at;
	struct state state;
	struct cpu cpu[MAX_CPUS];
	pthread_mutex_t lock;
	pthread_cond_t commanded;
	int done; /* eventfd: vCPUs that have done what they were told */

	/* What the guest's memory should be, besides what it was at first. */
	uint32_t *added; /* to each word that is walked, by page */
	bool *dropped;	 /* by the balloon: zeros since */

	struct libuffd *u;
	struct libuffd_server *server; /* in this process; or */
	struct libuffd_source *source;
	int sock, server_pidfd; /* in another */
	pid_t server_pid;
	uint64_t region;

	double ready; /* seconds, from nothing to a guest that can run */
	struct pass *pass;
	size_t came; /* bytes that were there when the passes were over */
	struct libuffd_stats stats;
	bool equal;
};

/* Threads of the guest's run on, or wait for pages that never come: nothing is taken down in order. */
__attribute__((noreturn, format(printf, 2, 3))) static void die_as(int status, const char *format,
								   ...)
{
	va_list args;

	fflush(stdout);
	fputs("microvm: ", stderr);
	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fputc('\n', stderr);
	_exit(status);
}

#define die(...) die_as(EXIT_FAILED, __VA_ARGS__)

static void must(int ret, const char *what)
{
	if (ret < 0)
		die("%s: %s", what, strerror(-ret));
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static uint64_t mix(uint64_t x)
{
	x ^= x >> 31;
	x *= UINT64_C(0x9e3779b97f4a7c15);
	x ^= x >> 29;
	x *= UINT64_C(0xbf58476d1ce4e5b9);
	return x ^ x >> 32;
}

/* ---- What the guest should find --------------------------------------------------------------------- */

static bool is_hole(unsigned int page)
{
	return page / HOLE_PAGES % 4 == 3;
}

/* A word as the snapshot has it. */
static uint32_t first_word(const struct vm *vm, unsigned int page, unsigned int word)
{
	if (is_hole(page))
		return 0;
	return (uint32_t)mix(vm->state.seed + (uint64_t)page * WORDS + word);
}

static uint32_t word_now(const struct vm *vm, unsigned int page, unsigned int word)
{
	uint32_t was = vm->dropped[page] ? 0 : first_word(vm, page, word);

	return word % (WORDS / vm->opts.words) ? was : was + vm->added[page];
}

/* As the guest does it. */
static uint32_t sum_now(const struct vm *vm, unsigned int page)
{
	uint32_t sum = page;

	for (unsigned int w = 0; w < WORDS; w += WORDS / vm->opts.words)
		sum = (sum << 5 | sum >> 27) + word_now(vm, page, w);
	return sum;
}

static void lay_out(struct vm *vm)
{
	size_t all = vm->len / PAGE;
	size_t sums = (all * sizeof(uint32_t) + PAGE - 1) / PAGE;

	vm->pages = (unsigned int)(all - 1 - sums);
	vm->sums_at = (all - sums) * PAGE;
	vm->added = calloc(vm->pages, sizeof(*vm->added));
	vm->dropped = calloc(vm->pages, sizeof(*vm->dropped));
	vm->memory = mmap(NULL, vm->len, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (!vm->added || !vm->dropped || vm->memory == MAP_FAILED)
		die("no memory for a guest of %.0f MiB", (double)vm->len / MIB);
}

/* ---- KVM -------------------------------------------------------------------------------------------- */

static void open_kvm(struct vm *vm)
{
	struct kvm_userspace_memory_region slot = { 0 };

	vm->kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (vm->kvm < 0)
		die_as(EXIT_NO_KVM,
		       "/dev/kvm: %s: this takes KVM (a processor that can virtualize, which the\n"
		       "firmware permits; in a virtual machine, nesting; permission on the device)",
		       strerror(errno));
	if (ioctl(vm->kvm, KVM_GET_API_VERSION, 0) != KVM_API_VERSION)
		die_as(EXIT_NO_KVM, "/dev/kvm: not the interface of Linux 2.6.22 and later");
	vm->fd = ioctl(vm->kvm, KVM_CREATE_VM, 0);
	if (vm->fd < 0)
		die_as(EXIT_NO_KVM, "KVM makes no virtual machine: %s", strerror(errno));
	/* Where old Intel processors need pages of their own while the guest has no paging. */
	if (ioctl(vm->kvm, KVM_CHECK_EXTENSION, KVM_CAP_SET_TSS_ADDR) > 0 &&
	    ioctl(vm->fd, KVM_SET_TSS_ADDR, 0xfffbd000UL) < 0)
		die("KVM_SET_TSS_ADDR: %s", strerror(errno));
	slot.memory_size = vm->len;
	slot.userspace_addr = (uintptr_t)vm->memory;
	if (ioctl(vm->fd, KVM_SET_USER_MEMORY_REGION, &slot) < 0)
		die("KVM does not take the guest's memory: %s", strerror(errno));
}

static void make_cpu(struct vm *vm, unsigned int id)
{
	int size = ioctl(vm->kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	struct cpu *c = &vm->cpu[id];

	c->vm = vm;
	c->id = id;
	c->fd = ioctl(vm->fd, KVM_CREATE_VCPU, (unsigned long)id);
	if (c->fd < 0 || size < 0)
		die("KVM makes no vCPU %u: %s", id, strerror(errno));
	c->run = mmap(NULL, (size_t)size, PROT_READ | PROT_WRITE, MAP_SHARED, c->fd, 0);
	if (c->run == MAP_FAILED)
		die("vCPU %u cannot be mapped: %s", id, strerror(errno));
}

/* What a guest begins with. The kernel fills in what we do not name: a processor after its reset. */
static void reset_cpu(const struct cpu *c, struct kvm_regs *regs, struct kvm_sregs *sregs)
{
	struct kvm_segment flat = { .limit = 0xffffffff, .present = 1, .db = 1, .s = 1, .g = 1 };

	if (ioctl(c->fd, KVM_GET_SREGS, sregs) < 0)
		die("KVM_GET_SREGS: %s", strerror(errno));
	flat.selector = 0x08;
	flat.type = 11; /* code, readable, used */
	sregs->cs = flat;
	flat.selector = 0x10;
	flat.type = 3; /* data, writable, used */
	sregs->ds = sregs->es = sregs->fs = sregs->gs = sregs->ss = flat;
	sregs->cr0 |= 1; /* protected mode */
	*regs = (struct kvm_regs){ .rflags = 2, .rbx = COMMAND_AT(c->id) };
}

static void set_cpu(struct cpu *c)
{
	struct state *st = &c->vm->state;

	if (ioctl(c->fd, KVM_SET_SREGS, &st->cpu[c->id].sregs) < 0 ||
	    ioctl(c->fd, KVM_SET_REGS, &st->cpu[c->id].regs) < 0)
		die("KVM does not take the registers of vCPU %u: %s", c->id, strerror(errno));
}

/* The instruction at which the guest stopped is complete only when KVM was entered once more. */
static void get_cpu(struct cpu *c)
{
	struct state *st = &c->vm->state;

	c->run->immediate_exit = 1;
	if (!ioctl(c->fd, KVM_RUN, 0) || errno != EINTR)
		die("vCPU %u does not stop", c->id);
	c->run->immediate_exit = 0;
	if (ioctl(c->fd, KVM_GET_SREGS, &st->cpu[c->id].sregs) < 0 ||
	    ioctl(c->fd, KVM_GET_REGS, &st->cpu[c->id].regs) < 0)
		die("the registers of vCPU %u cannot be had: %s", c->id, strerror(errno));
}

/* ---- A vCPU's thread ---------------------------------------------------------------------------------- */

/* It has done what it was told, or has booted. Return false if that was all. */
static bool is_done(struct cpu *c)
{
	struct vm *vm = c->vm;
	uint64_t one = 1;
	bool quit;

	pthread_mutex_lock(&vm->lock);
	quit = c->quit;
	pthread_mutex_unlock(&vm->lock);
	c->next = 0;
	if (write(vm->done, &one, sizeof(one)) != sizeof(one))
		die("eventfd: %s", strerror(errno));
	return !quit;
}

/* Return false if there will be none. */
static bool wait_for_command(struct cpu *c)
{
	struct vm *vm = c->vm;
	bool there;

	pthread_mutex_lock(&vm->lock);
	while (!c->has_command && !c->quit)
		pthread_cond_wait(&vm->commanded, &vm->lock);
	there = c->has_command;
	c->has_command = false;
	pthread_mutex_unlock(&vm->lock);
	return there;
}

__attribute__((noreturn)) static void stopped_wrongly(const struct cpu *c)
{
	const struct kvm_run *run = c->run;

	if (run->exit_reason == KVM_EXIT_MMIO && run->mmio.phys_addr < c->vm->len)
		die("vCPU %u cannot get at its memory at 0x%" PRIx64
		    ": a page that was lost, or a userfaultfd that\n"
		    "does not see faults in the kernel (user mode only)",
		    c->id, (uint64_t)run->mmio.phys_addr);
	if (run->exit_reason == KVM_EXIT_INTERNAL_ERROR)
		die("vCPU %u: KVM cannot go on with it (internal error %u): a page of its code, or one that\n"
		    "it was about to write to, may be lost",
		    c->id, run->internal.suberror);
	die("vCPU %u stopped in a way that this guest never does (exit %u)", c->id,
	    run->exit_reason);
}

/* Return false when there is nothing more to do. */
static bool answer_exit(struct cpu *c)
{
	struct kvm_run *run = c->run;
	uint32_t *data;

	if (run->exit_reason != KVM_EXIT_IO || run->io.size != 4 || run->io.count != 1)
		stopped_wrongly(c);
	data = (uint32_t *)(void *)((uint8_t *)run + run->io.data_offset);
	if (run->io.direction == KVM_EXIT_IO_OUT && run->io.port == PORT_DONE)
		return is_done(c);
	if (run->io.direction != KVM_EXIT_IO_IN || run->io.port != PORT_COMMAND ||
	    c->next >= COMMAND_WORDS)
		stopped_wrongly(c);
	if (!c->next && !wait_for_command(c))
		return false;
	*data = c->command[c->next++];
	return true;
}

static void *run_cpu(void *arg)
{
	struct cpu *c = arg;

	do {
		if (ioctl(c->fd, KVM_RUN, 0) < 0) {
			if (errno == EINTR || errno == EAGAIN)
				continue;
			die("vCPU %u: KVM_RUN: %s: a page of the guest's was lost, or its userfaultfd does not see\n"
			    "faults in the kernel (user mode only)",
			    c->id, strerror(errno));
		}
		if (!answer_exit(c))
			break;
	} while (true);
	return NULL;
}

static void start_cpus(struct vm *vm)
{
	for (unsigned int i = 0; i < vm->state.cpus; i++)
		if (pthread_create(&vm->cpu[i].thread, NULL, run_cpu, &vm->cpu[i]))
			die("threads cannot be made");
}

/* They end where they wait for a command, or when they have done the one that they have. */
static void quit_cpus(struct vm *vm)
{
	pthread_mutex_lock(&vm->lock);
	for (unsigned int i = 0; i < vm->state.cpus; i++)
		vm->cpu[i].quit = true;
	pthread_cond_broadcast(&vm->commanded);
	pthread_mutex_unlock(&vm->lock);
}

static void join_cpus(struct vm *vm)
{
	for (unsigned int i = 0; i < vm->state.cpus; i++)
		pthread_join(vm->cpu[i].thread, NULL);
}

/*
 * A page that cannot be had is poisoned: KVM tells so by SIGBUS to the thread of the vCPU that touched it, as
 * the kernel does to our own. Never go on with what it might have read.
 */
static void page_is_lost(int sig, siginfo_t *info, void *context)
{
	static const char text[] =
		"microvm: a page of the guest's memory is lost (SIGBUS): the guest is stopped\n";

	(void)sig;
	(void)info;
	(void)context;
	if (write(STDERR_FILENO, text, sizeof(text) - 1) < 0)
		_exit(EXIT_FAILED);
	_exit(EXIT_FAILED);
}

static void watch_for_lost_pages(void)
{
	struct sigaction sa = { .sa_sigaction = page_is_lost, .sa_flags = SA_SIGINFO };

	sigaction(SIGBUS, &sa, NULL);
}

/* ---- Making a snapshot --------------------------------------------------------------------------------- */

static char *state_path(const char *snapshot)
{
	char *path;

	if (asprintf(&path, "%s.state", snapshot) < 0)
		die("out of memory");
	return path;
}

static int create(const char *path)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	if (fd < 0)
		die("%s: %s", path, strerror(errno));
	return fd;
}

static void write_at(int fd, const char *path, const void *data, size_t len, size_t at)
{
	while (len) {
		ssize_t n = pwrite(fd, data, len, (off_t)at);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			die("%s: %s", path, n ? strerror(errno) : "nothing more can be written");
		data = (const uint8_t *)data + n;
		at += (size_t)n;
		len -= (size_t)n;
	}
}

static bool is_zero(const uint8_t *page)
{
	return !page[0] && !memcmp(page, page + 1, PAGE - 1);
}

/* Pages of zeros become holes. */
static void write_memory(const struct vm *vm)
{
	const char *path = vm->opts.make;
	int fd = create(path);

	if (ftruncate(fd, (off_t)vm->len) < 0)
		die("%s: %s", path, strerror(errno));
	for (size_t at = 0; at < vm->len; at += PAGE)
		if (!is_zero(vm->memory + at))
			write_at(fd, path, vm->memory + at, PAGE, at);
	if (close(fd) < 0)
		die("%s: %s", path, strerror(errno));
}

static void write_state(struct vm *vm, const char *path)
{
	int fd = create(path);

	memcpy(vm->state.magic, STATE_MAGIC, sizeof(vm->state.magic));
	vm->state.version = STATE_VERSION;
	vm->state.bytes = vm->len;
	write_at(fd, path, &vm->state, sizeof(vm->state), 0);
	if (close(fd) < 0)
		die("%s: %s", path, strerror(errno));
}

static void load_guest(struct vm *vm)
{
	memcpy(vm->memory, guest_code, sizeof(guest_code));
	for (unsigned int p = 0; p < vm->pages; p++) {
		uint32_t *page = (uint32_t *)(void *)(vm->memory + (p + 1) * PAGE);

		for (unsigned int w = 0; !is_hole(p) && w < WORDS; w++)
			page[w] = first_word(vm, p, w);
	}
}

static int make(struct vm *vm)
{
	char *state = state_path(vm->opts.make);

	vm->len = (size_t)vm->opts.mib << 20;
	vm->state.cpus = vm->opts.cpus;
	vm->state.seed = vm->opts.seed;
	lay_out(vm);
	open_kvm(vm);
	load_guest(vm);
	for (unsigned int i = 0; i < vm->state.cpus; i++) {
		make_cpu(vm, i);
		reset_cpu(&vm->cpu[i], &vm->state.cpu[i].regs, &vm->state.cpu[i].sregs);
		set_cpu(&vm->cpu[i]);
	}
	quit_cpus(vm); /* when they have booted */
	start_cpus(vm);
	join_cpus(vm);
	for (unsigned int i = 0; i < vm->state.cpus; i++)
		get_cpu(&vm->cpu[i]);
	/* A memory without its state is no snapshot: one that is half made is never taken for one. */
	if (unlink(state) < 0 && errno != ENOENT)
		die("%s: %s", state, strerror(errno));
	write_memory(vm);
	write_state(vm, state);
	if (!vm->opts.quiet)
		printf("%s: the memory of a guest of %u MiB, a quarter of it holes; %s: the registers of %u vCPU%s\n",
		       vm->opts.make, vm->opts.mib, state, vm->state.cpus,
		       vm->state.cpus > 1 ? "s" : "");
	free(state);
	return EXIT_DONE;
}

/* ---- Reading a snapshot --------------------------------------------------------------------------------- */

static void read_state(struct vm *vm)
{
	char *path = state_path(vm->opts.restore);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	struct state *st = &vm->state;

	if (fd < 0)
		die("%s: %s (made with --make?)", path, strerror(errno));
	if (read(fd, st, sizeof(*st)) != (ssize_t)sizeof(*st) ||
	    memcmp(st->magic, STATE_MAGIC, sizeof(st->magic)) != 0)
		die("%s: not the state of a snapshot, or cut off", path);
	if (st->version != STATE_VERSION)
		die("%s: of version %u, and this program knows %u", path, st->version,
		    STATE_VERSION);
	if (!st->cpus || st->cpus > MAX_CPUS || !st->bytes || st->bytes > (uint64_t)MAX_MIB << 20 ||
	    st->bytes % (1 << 20))
		die("%s: damaged", path);
	vm->len = (size_t)st->bytes;
	close(fd);
	free(path);
}

static int open_memory(const struct vm *vm)
{
	int fd = open(vm->opts.restore, O_RDONLY | O_CLOEXEC);
	struct stat st;

	if (fd < 0 || fstat(fd, &st) < 0)
		die("%s: %s", vm->opts.restore, strerror(errno));
	if (!S_ISREG(st.st_mode) || (uint64_t)st.st_size != vm->len)
		die("%s: not the memory of a guest of %.0f MiB, which its state is of",
		    vm->opts.restore, (double)vm->len / MIB);
	return fd;
}

/* ---- The userfaultfd -------------------------------------------------------------------------------------- */

static void print_cures(const struct libuffd_way_caps *way)
{
	for (unsigned int bit = 0; bit < 64; bit++)
		if (way->cures >> bit & 1 && libuffd_cure_text(UINT64_C(1) << bit))
			fprintf(stderr, "  - %s\n", libuffd_cure_text(UINT64_C(1) << bit));
}

/*
 * KVM touches the guest's memory from the kernel. A userfaultfd that sees faults from user mode only would be
 * had by anybody, and let every one of these fail: so LIBUFFD_OPEN_USER_MODE_OK is not for hypervisors.
 */
__attribute__((noreturn)) static void no_userfaultfd(int error)
{
	struct libuffd_caps caps = LIBUFFD_CAPS_INIT;

	fprintf(stderr,
		"microvm: no userfaultfd: %s. One for faults of user mode only will not do, since KVM touches\n"
		"the guest's memory in the kernel: KVM_RUN would fail with \"Bad address\". Any of these cures it:\n",
		strerror(-error));
	if (!libuffd_probe(&caps)) {
		print_cures(&caps.way[LIBUFFD_WAY_SYSCALL]);
		print_cures(&caps.way[LIBUFFD_WAY_DEVICE]);
	}
	die("the guest cannot be restored lazily (uffd-info knows more)");
}

static void open_userfaultfd(struct vm *vm)
{
	struct libuffd_open_opts oo = LIBUFFD_OPEN_OPTS_INIT;
	int ret;

	oo.required = LIBUFFD_FEATURE_EVENT_REMOVE; /* for the balloon */
	oo.optional = LIBUFFD_FEATURE_POISON | LIBUFFD_FEATURE_MISSING_HUGETLBFS |
		      LIBUFFD_FEATURE_MISSING_SHMEM;
	if (!vm->opts.socket)
		oo.optional |= LIBUFFD_FEATURE_MOVE;
	ret = libuffd_open(&oo, &vm->u);
	if (ret < 0)
		no_userfaultfd(ret);
}

/* In this process the notice comes on the server's thread: it is the guest that must not go on. */
static void notice(void *ctx, const struct libuffd_notice *n)
{
	struct vm *vm = ctx;

	if (n->type == LIBUFFD_NOTICE_ERROR)
		die("%s: the page at %" PRIu64 " cannot be had: %s: the guest is stopped",
		    vm->opts.restore, n->address - (uintptr_t)vm->memory, strerror(-n->error));
	if (n->type == LIBUFFD_NOTICE_FAILED)
		die("the guest is not served any more: %s", strerror(-n->error));
}

static void serve_here(struct vm *vm)
{
	struct libuffd_server_opts so = LIBUFFD_SERVER_OPTS_INIT;
	struct libuffd_region region = LIBUFFD_REGION_INIT;
	struct libuffd_fill_opts fill = LIBUFFD_FILL_OPTS_INIT;
	int file = open_memory(vm);

	so.engine = vm->opts.engine;
	so.threads = 1;
	so.notice = notice;
	so.ctx = vm;
	must(libuffd_server_new(&so, &vm->server), "server");
	must(libuffd_server_attach(vm->server, vm->u, NULL, &region.space), "attach");
	must(libuffd_source_file(file, &vm->source), vm->opts.restore);
	close(file); /* the source has its own */
	region.flags = LIBUFFD_REGION_REGISTER;
	region.start = (uintptr_t)vm->memory;
	region.len = vm->len;
	region.source = vm->source;
	region.window = vm->opts.window;
	must(libuffd_server_add_region(vm->server, &region, &vm->region), "the guest's memory");
	if (vm->opts.fill)
		must(libuffd_server_fill(vm->server, vm->region, &fill), "fill");
	must(libuffd_server_start(vm->server), "server");
}

static int connect_to(const char *path)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	int sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (strlen(path) >= sizeof(addr.sun_path))
		die("%s: too long for a socket's name", path);
	memcpy(addr.sun_path, path, strlen(path) + 1);
	if (sock < 0 || connect(sock, (struct sockaddr *)&addr, sizeof(addr)) < 0)
		die("%s: %s (does uffd-serve run there?)", path, strerror(errno));
	return sock;
}

/*
 * Whoever serves us may die, and a userfaultfd does not tell: our own copy of it keeps the guest waiting, so that it
 * never sees a page of zeros that nobody meant. A pidfd tells.
 */
static void watch_server(struct vm *vm)
{
	struct libuffd_peer_info peer = LIBUFFD_PEER_INFO_INIT;
	int ret = libuffd_peer(vm->sock, 0, &peer);

	if (ret < 0 && !vm->opts.stay)
		fprintf(stderr,
			"microvm: who serves at %s is not known (%s): should it end, nothing tells\n",
			vm->opts.socket, strerror(-ret));
	vm->server_pid = peer.pid;
	vm->server_pidfd = peer.pidfd;
}

/* One message: what lies where, and the descriptor. Later versions say page_size, earlier ones page_size_kib. */
static void hand_over(struct vm *vm)
{
	char message[256];
	int len = snprintf(message, sizeof(message),
			   "[{\"base_host_virt_addr\": %" PRIuPTR ", \"size\": %zu, \"offset\": 0, "
			   "\"page_size\": %zu, \"page_size_kib\": %zu}]",
			   (uintptr_t)vm->memory, vm->len, PAGE, PAGE);

	vm->sock = connect_to(vm->opts.socket);
	watch_server(vm);
	must(libuffd_register(vm->u, (uintptr_t)vm->memory, vm->len, LIBUFFD_MODE_MISSING, NULL),
	     "the guest's memory");
	must(libuffd_send(vm->sock, vm->u, message, (size_t)len), vm->opts.socket);
}

/* ---- Passes --------------------------------------------------------------------------------------------- */

static size_t bytes_here(const struct vm *vm)
{
	static unsigned char in_core[(size_t)MAX_MIB << 20 >> 12];
	size_t n = 0;

	if (mincore(vm->memory, vm->len, in_core) < 0)
		return 0;
	for (size_t i = 0; i < vm->len / PAGE; i++)
		n += in_core[i] & 1;
	return n * PAGE;
}

static void show(const struct vm *vm, unsigned int pass, double begun)
{
	char bar[BAR + 1];
	size_t here;

	if (vm->opts.quiet || !isatty(STDERR_FILENO))
		return;
	here = bytes_here(vm);
	memset(bar, '.', BAR);
	memset(bar, '#', here * BAR / vm->len);
	bar[BAR] = 0;
	fprintf(stderr, "\rpass %2u of %2u [%s] %6.1f of %.0f MiB are here, %5.1f s ", pass,
		vm->opts.passes, bar, (double)here / MIB, (double)vm->len / MIB, now() - begun);
}

static void show_nothing(const struct vm *vm)
{
	if (!vm->opts.quiet && isatty(STDERR_FILENO))
		fputs("\r\033[K", stderr);
}

/* A guest that has all of its memory needs nobody any more. */
static void server_is_gone(struct vm *vm)
{
	if (bytes_here(vm) == vm->len) {
		vm->opts.stay = true;
		return;
	}
	show_nothing(vm);
	die("the page server (process %d, %s) has ended: what it did not supply will not come, and the\n"
	    "guest waits for ever. It is stopped (--stay keeps it, for another server)",
	    (int)vm->server_pid, vm->opts.socket);
}

/* Until so many vCPUs have done what they were told. */
static void wait_for_cpus(struct vm *vm, unsigned int n, double begun, unsigned int pass)
{
	struct pollfd fds[] = { { .fd = vm->done, .events = POLLIN },
				{ .fd = -1, .events = POLLIN } };

	while (n) {
		uint64_t done;

		fds[1].fd = vm->opts.socket && !vm->opts.stay ? vm->server_pidfd : -1;
		if (poll(fds, 2, 100) < 0 && errno != EINTR)
			die("poll: %s", strerror(errno));
		show(vm, pass, begun);
		if (fds[0].revents & POLLIN) {
			if (read(vm->done, &done, sizeof(done)) != sizeof(done))
				die("eventfd: %s", strerror(errno));
			n -= (unsigned int)done;
		} else if (fds[1].revents) {
			server_is_gone(vm);
		}
	}
}

static unsigned int common_divisor(unsigned int a, unsigned int b)
{
	return b ? common_divisor(b, a % b) : a;
}

/* A step that leads to every page before it leads back. */
static unsigned int choose_step(const struct vm *vm, unsigned int pass)
{
	unsigned int step = (unsigned int)(mix(vm->opts.seed ^ mix(pass)) % vm->pages);

	while (common_divisor(step, vm->pages) != 1)
		step = (step + 1) % vm->pages;
	return step;
}

/* Each vCPU has its part of the pages. Return how many got one. */
static unsigned int tell(struct vm *vm, const struct command *whole)
{
	unsigned int done = 0, told = 0;

	pthread_mutex_lock(&vm->lock);
	for (unsigned int i = 0; i < vm->state.cpus; i++) {
		struct command mine = *whole;
		unsigned int until = (unsigned int)((uint64_t)whole->count * (i + 1) /
						    vm->state.cpus);

		mine.first = (uint32_t)((whole->first + (uint64_t)done * whole->step) %
					whole->pages);
		mine.count = until - done;
		done = until;
		if (!mine.count)
			continue;
		memcpy(vm->cpu[i].command, &mine, sizeof(mine));
		vm->cpu[i].has_command = true;
		told++;
	}
	pthread_cond_broadcast(&vm->commanded);
	pthread_mutex_unlock(&vm->lock);
	return told;
}

/* Each page that was walked, against what the guest must have found there. */
static void check_sums(struct vm *vm, const struct command *c, unsigned int pass)
{
	const uint32_t *sums = (const uint32_t *)(const void *)(vm->memory + vm->sums_at);
	uint32_t page = c->first;

	for (uint32_t i = 0; i < c->count; i++) {
		if (sums[page] != sum_now(vm, page))
			die("pass %u: in page %u the guest found something else (%08x) than was there (%08x)",
			    pass, page, sums[page], sum_now(vm, page));
		vm->added[page] += c->add;
		page = (page + c->step) % c->pages;
	}
}

static void run_pass(struct vm *vm, unsigned int pass)
{
	struct pass *p = &vm->pass[pass - 1];
	struct command c = {
		.words = vm->opts.words,
		.every = (uint32_t)(PAGE / vm->opts.words),
		.add = pass % 2 ? 0 : (uint32_t)mix(pass) | 1,
		.step = choose_step(vm, pass),
		.pages = vm->pages,
		.sums = (uint32_t)vm->sums_at,
		.count = (uint32_t)((uint64_t)vm->pages * vm->opts.touch / 100),
	};
	double begun = now();

	c.first = (uint32_t)(mix(vm->opts.seed + pass) % vm->pages);
	if (!c.count)
		c.count = 1;
	wait_for_cpus(vm, tell(vm, &c), begun, pass);
	p->seconds = now() - begun;
	p->pages = c.count;
	p->add = c.add;
	check_sums(vm, &c, pass);
}

/*
 * What a balloon does: the guest has said that it does not need some pages, and they are given back to the system.
 * From then on they are zeros, and never again what the snapshot has there.
 */
static void inflate_balloon(struct vm *vm)
{
	for (unsigned int p = 0; p < vm->pages; p++) {
		if (mix(vm->opts.seed ^ p / 8) % 100 >= vm->opts.balloon)
			continue;
		if (madvise(vm->memory + (p + 1) * PAGE, PAGE, MADV_DONTNEED) < 0)
			die("madvise: %s", strerror(errno));
		vm->dropped[p] = true;
		vm->added[p] = 0;
	}
}

/* ---- At the end ---------------------------------------------------------------------------------------------- */

static bool page_is_right(const struct vm *vm, unsigned int page)
{
	const uint32_t *words = (const uint32_t *)(const void *)(vm->memory + (page + 1) * PAGE);

	for (unsigned int w = 0; w < WORDS; w++)
		if (words[w] != word_now(vm, page, w))
			return false;
	return true;
}

/* Each vCPU has counted its commands, in memory that the snapshot had after the boot. */
static bool counters_are_right(const struct vm *vm)
{
	for (unsigned int i = 0; i < vm->state.cpus; i++) {
		uint32_t done, most = vm->opts.passes + 1;

		memcpy(&done, vm->memory + DONE_AT(i), sizeof(done));
		/* The last vCPU has a part of every pass; the others may have been left without. */
		if (done < 1 || done > most || (i == vm->state.cpus - 1 && done != most))
			return false;
	}
	return true;
}

/* All of it: what was never touched comes now. */
static bool compare(const struct vm *vm)
{
	bool equal = !memcmp(vm->memory, guest_code, sizeof(guest_code)) && counters_are_right(vm);

	for (unsigned int p = 0; equal && p < vm->pages; p++)
		equal = page_is_right(vm, p);
	return equal;
}

/*
 * The upper bound of the bucket that this part of the faults stays below, in microseconds; 0 if none
 * was measured.
 */
static double percentile(const struct libuffd_stats *st, unsigned int percent)
{
	uint64_t all = 0, seen = 0;

	for (int i = 0; i < LIBUFFD_LATENCY_BUCKETS; i++)
		all += st->latency[i];
	for (int i = 0; all && i < LIBUFFD_LATENCY_BUCKETS; i++) {
		seen += st->latency[i];
		if (seen * 100 >= all * percent)
			return (double)(UINT64_C(1) << (i + 8)) / 1000.0;
	}
	return 0;
}

static const char *server_name(const struct vm *vm)
{
	if (!vm->server)
		return vm->opts.socket;
	return libuffd_engine_name((uint32_t)libuffd_server_engine(vm->server));
}

static void print_text(const struct vm *vm)
{
	printf("guest    %.0f MiB, %u vCPU%s, ready after %.1f ms\n", (double)vm->len / MIB,
	       vm->state.cpus, vm->state.cpus > 1 ? "s" : "", vm->ready * 1e3);
	for (unsigned int i = 0; i < vm->opts.passes; i++)
		printf("pass %-3u %u of %u pages %s in %.2f s: the guest found what it should\n",
		       i + 1, vm->pass[i].pages, vm->pages, vm->pass[i].add ? "changed" : "read",
		       vm->pass[i].seconds);
	if (vm->server)
		printf("served   in this process, by %s: %" PRIu64
		       " faults, p50 below %.0f us, p99 below %.0f us\n",
		       server_name(vm), vm->stats.faults_missing, percentile(&vm->stats, 50),
		       percentile(&vm->stats, 99));
	else
		printf("served   by another process, at %s\n", server_name(vm));
	printf("came     %.1f MiB until the passes were over\n", (double)vm->came / MIB);
	printf("memory   %s\n", vm->equal ? "every byte is what it should be" : "DIFFERENT");
}

static void print_string(const char *s)
{
	putchar('"');
	for (; *s; s++) {
		if (*s == '"' || *s == '\\')
			putchar('\\');
		if ((unsigned char)*s < ' ')
			printf("\\u%04x", (unsigned int)*s);
		else
			putchar(*s);
	}
	putchar('"');
}

static void print_json(const struct vm *vm)
{
	printf("{\"bytes\": %zu, \"cpus\": %u, \"pages\": %u, \"ready_s\": %.6f, \"server\": ",
	       vm->len, vm->state.cpus, vm->pages, vm->ready);
	print_string(server_name(vm));
	printf(", \"passes\": [");
	for (unsigned int i = 0; i < vm->opts.passes; i++)
		printf("%s\n {\"pages\": %u, \"changed\": %s, \"seconds\": %.6f, \"right\": true}",
		       i ? "," : "", vm->pass[i].pages, vm->pass[i].add ? "true" : "false",
		       vm->pass[i].seconds);
	printf("\n], \"came\": %zu", vm->came);
	if (vm->server)
		printf(", \"faults\": %" PRIu64 ", \"supplied\": %" PRIu64
		       ", \"p50_below_us\": %.1f, \"p99_below_us\": %.1f",
		       vm->stats.faults_missing, vm->stats.bytes, percentile(&vm->stats, 50),
		       percentile(&vm->stats, 99));
	printf(", \"equal\": %s}\n", vm->equal ? "true" : "false");
}

/* ---- Restoring one --------------------------------------------------------------------------------------------- */

static void close_all(struct vm *vm)
{
	for (unsigned int i = 0; i < vm->state.cpus; i++)
		close(vm->cpu[i].fd);
	close(vm->fd);
	close(vm->kvm);
	libuffd_server_free(vm->server);
	libuffd_source_unref(vm->source);
	libuffd_close(vm->u);
	if (vm->opts.socket) {
		close(vm->sock);
		if (vm->server_pidfd >= 0)
			close(vm->server_pidfd);
	}
	munmap(vm->memory, vm->len);
	free(vm->pass);
	free(vm->added);
	free(vm->dropped);
}

static void resume(struct vm *vm)
{
	double begun = now();

	read_state(vm);
	lay_out(vm);
	open_kvm(vm);
	open_userfaultfd(vm);
	if (vm->opts.socket)
		hand_over(vm);
	else
		serve_here(vm);
	for (unsigned int i = 0; i < vm->state.cpus; i++) {
		make_cpu(vm, i);
		set_cpu(&vm->cpu[i]);
	}
	start_cpus(vm);
	vm->ready = now() - begun;
}

static int restore(struct vm *vm)
{
	vm->pass = calloc(vm->opts.passes, sizeof(*vm->pass));
	if (!vm->pass)
		die("out of memory");
	watch_for_lost_pages();
	resume(vm);
	for (unsigned int pass = 1; pass <= vm->opts.passes; pass++) {
		run_pass(vm, pass);
		if (pass == 1 && vm->opts.balloon)
			inflate_balloon(vm);
	}
	quit_cpus(vm);
	join_cpus(vm);
	vm->came = bytes_here(vm);
	vm->stats = (struct libuffd_stats)LIBUFFD_STATS_INIT;
	if (vm->server)
		must(libuffd_server_stats(vm->server, vm->region, &vm->stats), "statistics");
	vm->equal = compare(vm);
	show_nothing(vm);
	if (vm->opts.json)
		print_json(vm);
	else
		print_text(vm);
	return vm->equal ? EXIT_DONE : EXIT_FAILED;
}

/* ---- Options ---------------------------------------------------------------------------------------------------- */

static void help(void)
{
	puts("usage: microvm --make SNAPSHOT [--size MIB] [--cpus N] [--seed N]\n"
	     "       microvm --restore SNAPSHOT [--socket PATH] [OPTION...]\n"
	     "\n"
	     "A small hypervisor on KVM. --make boots a guest and writes down its memory, in SNAPSHOT, with holes,\n"
	     "and its registers, in SNAPSHOT.state. --restore goes on with it at once: its memory comes when it is\n"
	     "touched. What the guest reads is verified, and at the end every byte of its memory.\n"
	     "\n"
	     "  -m, --make SNAPSHOT     make one\n"
	     "      --size MIB          of the guest's memory (64)\n"
	     "      --cpus N            vCPUs (1)\n"
	     "      --seed N            of what is in the memory, and of the order in which it is walked (1)\n"
	     "\n"
	     "  -r, --restore SNAPSHOT  go on with one\n"
	     "  -s, --socket PATH       served by another process, which listens there:\n"
	     "                          uffd-serve --socket PATH --memory SNAPSHOT\n"
	     "      --stay              wait on if that process ends: another one will serve\n"
	     "  -n, --passes N          walks through the memory; every second one changes it (3)\n"
	     "  -t, --touch PERCENT     of the pages, in each pass (100)\n"
	     "      --words N           of each page that the guest looks at, a power of two up to 1024 (8)\n"
	     "  -b, --balloon PERCENT   of the pages: dropped after the first pass; they are zeros then (0)\n"
	     "  -w, --window KIB        what is supplied with a fault, a power of two (0: one page)\n"
	     "  -f, --fill              and the rest in the background\n"
	     "  -e, --engine NAME       auto, uring or poll (auto)\n"
	     "  -j, --json              the result as JSON\n"
	     "  -q, --quiet             no progress\n"
	     "  -h, --help              this text\n"
	     "\n"
	     "--window, --fill and --engine are for a server in this process: of another one they are its options.\n"
	     "\n"
	     "Exit status: 0 all of it was right; 1 it was not, or could not be done; 2 wrong usage; 77 no KVM here.");
}

static bool engine(const char *name, unsigned int *out)
{
	static const char *const names[] = { "auto", "uring", "poll" };

	for (unsigned int i = 0; i < 3; i++) {
		if (!strcmp(name, names[i])) {
			*out = i;
			return true;
		}
	}
	return false;
}

static bool is_power(uint64_t v)
{
	return !(v & (v - 1));
}

/* A window smaller than a page is a page. */
static bool window(const char *text, uint64_t *out)
{
	uint64_t kib = 0;

	if (!number(text, 0, 32768, &kib) || !is_power(kib) || (kib && kib < 4))
		return false;
	*out = kib << 10;
	return true;
}

static int usage(void)
{
	fputs("microvm: see microvm --help\n", stderr);
	return EXIT_USAGE;
}

enum { SIZE = 256, CPUS, SEED, STAY, WORDS_OF_PAGE };

static const struct option longs[] = {
	{ "make", required_argument, NULL, 'm' },
	{ "restore", required_argument, NULL, 'r' },
	{ "socket", required_argument, NULL, 's' },
	{ "size", required_argument, NULL, SIZE },
	{ "cpus", required_argument, NULL, CPUS },
	{ "seed", required_argument, NULL, SEED },
	{ "stay", no_argument, NULL, STAY },
	{ "passes", required_argument, NULL, 'n' },
	{ "touch", required_argument, NULL, 't' },
	{ "words", required_argument, NULL, WORDS_OF_PAGE },
	{ "balloon", required_argument, NULL, 'b' },
	{ "window", required_argument, NULL, 'w' },
	{ "fill", no_argument, NULL, 'f' },
	{ "engine", required_argument, NULL, 'e' },
	{ "json", no_argument, NULL, 'j' },
	{ "quiet", no_argument, NULL, 'q' },
	{ "help", no_argument, NULL, 'h' },
	{ NULL, 0, NULL, 0 },
};

/* One that has a value; false if that will not do. */
static bool take(struct options *o, int c, const char *value)
{
	switch (c) {
	case 'm':
		o->make = value;
		return *value;
	case 'r':
		o->restore = value;
		return *value;
	case 's':
		o->socket = value;
		return *value;
	case SIZE:
		return small_number(value, 1, MAX_MIB, &o->mib);
	case CPUS:
		return small_number(value, 1, MAX_CPUS, &o->cpus);
	case SEED:
		return number(value, 0, UINT64_MAX, &o->seed);
	case 'n':
		return small_number(value, 1, 10000, &o->passes);
	case 't':
		return small_number(value, 1, 100, &o->touch);
	case WORDS_OF_PAGE:
		return small_number(value, 1, WORDS, &o->words) && is_power(o->words);
	case 'b':
		return small_number(value, 0, 100, &o->balloon);
	case 'w':
		return window(value, &o->window);
	default:
		return engine(value, &o->engine);
	}
}

/* -1: go on; else the exit status. */
static int parse(struct options *o, int argc, char **argv)
{
	int c;

	while ((c = getopt_long(argc, argv, "m:r:s:n:t:b:w:fe:jqh", longs, NULL)) != -1) {
		switch (c) {
		case STAY:
			o->stay = true;
			break;
		case 'f':
			o->fill = true;
			break;
		case 'j':
			o->json = true;
			break;
		case 'q':
			o->quiet = true;
			break;
		case 'h':
			help();
			return EXIT_DONE;
		case '?':
			return usage();
		default:
			if (!take(o, c, optarg)) {
				fprintf(stderr, "microvm: '%s' will not do\n", optarg);
				return usage();
			}
		}
	}
	if (optind != argc || !o->make == !o->restore || (o->make && o->socket))
		return usage();
	if (o->socket && (o->window || o->fill || o->engine)) {
		fputs("microvm: --window, --fill and --engine are options of the server at the socket\n",
		      stderr);
		return usage();
	}
	return -1;
}

int main(int argc, char **argv)
{
	static struct vm vm = {
		.opts = { .mib = 64, .cpus = 1, .passes = 3, .touch = 100, .words = 8, .seed = 1 },
		.lock = PTHREAD_MUTEX_INITIALIZER,
		.commanded = PTHREAD_COND_INITIALIZER,
	};
	int ret = parse(&vm.opts, argc, argv);

	if (ret >= 0)
		return ret;
	vm.done = eventfd(0, EFD_CLOEXEC);
	if (vm.done < 0)
		die("eventfd: %s", strerror(errno));
	ret = vm.opts.make ? make(&vm) : restore(&vm);
	close_all(&vm);
	close(vm.done);
	if (fflush(stdout) || ferror(stdout)) {
		fputs("microvm: standard output cannot be written\n", stderr);
		return EXIT_FAILED;
	}
	return ret;
}
