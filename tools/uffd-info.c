/* SPDX-License-Identifier: MIT */
/*
 * uffd-info: what this machine can do with userfaultfd, and why not.
 *
 * What --json prints: one object. Its keys are stable: later versions only add.
 *
 *   format        1
 *   version       of libuffd, "0.1.0"
 *   kernel        its release, as uname -r prints it
 *   machine       as uname -m prints it
 *   page_size     in bytes
 *   open          true if a way in is open that serves every fault
 *   user_mode     true if any way in is open, be it for faults in user mode only
 *   ways          "syscall", "device" and "user-mode", each with
 *                   open    true or false
 *                   errno   null, or the refusal's name: "EPERM"
 *                   message null, or the refusal in words
 *                   cures   array of { name, text, example }; each by itself is enough.
 *                           name: sysctl, capability, device-mode, device-node, device-cgroup,
 *                           seccomp, kernel, limit; newer, if this program does not know it.
 *                           example is null where there is none
 *   facts         sysctl          vm.unprivileged_userfaultfd: 0, 1; null if it cannot be read
 *                 cap_sys_ptrace  true, false; null if unknown
 *                 seccomp         "none", "strict", "filter"; null if unknown
 *                 device          null if /dev/userfaultfd is not there, or { mode, uid, gid,
 *                                 owner, group }; mode is octal, "0600"; owner and group are
 *                                 names, null if there is none
 *   features      by name, as --require takes them, each with
 *                   here    "yes", "no", "denied" (the kernel has it, this process may not enable
 *                           it), "unknown" (no way in is open, so that the kernel cannot be asked)
 *                   bit     its number in the kernel's mask
 *                   since   the kernel that brought it, "6.8"; null if newer than this program
 *                   purpose in words; null likewise
 *   memory        "anonymous", "shared", "hugetlb" and "file", each with
 *                   modes   by name of a register mode that works, the array of ioctls that the
 *                           range then offers; null if no way in is open
 *                   errno   null, or why there is none of this memory here
 *                 and "hugetlb" with
 *                   free    true if a huge page is to be had now
 *   pagemap_scan  available   true or false
 *                 errno       null, or the refusal's name
 *                 categories  those that this kernel knows, as an array of names
 */
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <grp.h>
#include <inttypes.h>
#include <pwd.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <json.h>

#include <uffd/uffd.h>

#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))
#define WIDTH 100 /* columns */

enum { EXIT_THERE, EXIT_MISSING, EXIT_USAGE, EXIT_OUTPUT };

/* ---- What people should know about each bit ------------------------------------------------ */

#if defined(__aarch64__)
#define WP_SINCE "6.10" /* advertised earlier, but the architecture could not do it */
#else
#define WP_SINCE "5.7"
#endif

static const struct feature {
	uint64_t bit;
	const char *since;
	const char *purpose;
} features[] = {
	{ LIBUFFD_FEATURE_PAGEFAULT_FLAG_WP, WP_SINCE, "write-protect pages: learn of each write" },
	{ LIBUFFD_FEATURE_EVENT_FORK, "4.11", "follow children: a fork hands over their memory" },
	{ LIBUFFD_FEATURE_EVENT_REMAP, "4.11", "learn when mremap moves memory" },
	{ LIBUFFD_FEATURE_EVENT_REMOVE, "4.11", "learn when madvise drops pages (balloons)" },
	{ LIBUFFD_FEATURE_MISSING_HUGETLBFS, "4.11", "supply missing huge pages (hugetlb)" },
	{ LIBUFFD_FEATURE_MISSING_SHMEM, "4.11", "supply missing shared pages (memfd, tmpfs)" },
	{ LIBUFFD_FEATURE_EVENT_UNMAP, "4.11", "learn when memory is unmapped" },
	{ LIBUFFD_FEATURE_SIGBUS, "4.14", "a signal in the faulting thread, instead of a message" },
	{ LIBUFFD_FEATURE_THREAD_ID, "4.14", "tell which thread faulted" },
	{ LIBUFFD_FEATURE_MINOR_HUGETLBFS, "5.13",
	  "map huge pages filled through another mapping" },
	{ LIBUFFD_FEATURE_MINOR_SHMEM, "5.14", "map shared pages filled through another mapping" },
	{ LIBUFFD_FEATURE_EXACT_ADDRESS, "5.18", "tell the exact address, not only its page" },
	{ LIBUFFD_FEATURE_WP_HUGETLBFS_SHMEM, "5.19", "write-protect huge and shared pages too" },
	{ LIBUFFD_FEATURE_WP_UNPOPULATED, "6.4", "write-protect pages that are not there yet" },
	{ LIBUFFD_FEATURE_POISON, "6.6", "let lost pages fail with SIGBUS, not read as zeros" },
	{ LIBUFFD_FEATURE_WP_ASYNC, "6.7", "record writes without stopping the writer" },
	{ LIBUFFD_FEATURE_MOVE, "6.8", "move pages into place instead of copying" },
	{ LIBUFFD_FEATURE_RWP, "7.3", "learn of each access, reads too: what is in use?" },
	{ LIBUFFD_FEATURE_RWP_ASYNC, "7.3", "record accesses without stopping the thread" },
};

/* Kernels before 5.11 refuse the flag; before 6.1 there is no device. */
static const struct way {
	const char *key;
	const char *name;
} ways[LIBUFFD_WAYS] = {
	[LIBUFFD_WAY_SYSCALL] = { "syscall", "userfaultfd(2)" },
	[LIBUFFD_WAY_DEVICE] = { "device", "/dev/userfaultfd" },
	[LIBUFFD_WAY_USER_MODE] = { "user-mode", "user mode only" },
};

static const struct cure {
	uint64_t bit;
	const char *name;
	const char *example;
} cures[] = {
	{ LIBUFFD_CURE_SYSCTL, "sysctl", "sysctl -w vm.unprivileged_userfaultfd=1" },
	{ LIBUFFD_CURE_CAPABILITY, "capability", "setcap cap_sys_ptrace+ep PROGRAM" },
	{ LIBUFFD_CURE_DEVICE_MODE, "device-mode",
	  "chgrp GROUP /dev/userfaultfd && chmod 660 /dev/userfaultfd" },
	{ LIBUFFD_CURE_DEVICE_NODE, "device-node", "docker run --device /dev/userfaultfd" },
	{ LIBUFFD_CURE_DEVICE_CGROUP, "device-cgroup", "docker run --device /dev/userfaultfd" },
	{ LIBUFFD_CURE_SECCOMP, "seccomp", "docker run --security-opt seccomp=PROFILE" },
	{ LIBUFFD_CURE_KERNEL, "kernel", NULL },
	{ LIBUFFD_CURE_LIMIT, "limit", "ulimit -n 4096" },
};

static const struct category {
	uint64_t bit;
	const char *meaning;
} categories[] = {
	{ LIBUFFD_PAGE_WPALLOWED, "its writes are recorded (registered with wp-async)" },
	{ LIBUFFD_PAGE_WRITTEN, "written since it was write-protected" },
	{ LIBUFFD_PAGE_FILE, "belongs to a file or to shared memory" },
	{ LIBUFFD_PAGE_PRESENT, "in memory" },
	{ LIBUFFD_PAGE_SWAPPED, "in swap" },
	{ LIBUFFD_PAGE_PFNZERO, "the page of zeros that all share" },
	{ LIBUFFD_PAGE_HUGE, "mapped as a huge page" },
	{ LIBUFFD_PAGE_SOFT_DIRTY, "written since /proc/PID/clear_refs was told to start over" },
	{ LIBUFFD_PAGE_GUARD, "a guard: any access is a SIGSEGV (MADV_GUARD_INSTALL)" },
	{ LIBUFFD_PAGE_ACCESSED, "used since it was read-write-protected" },
};

/* Only the errors that the ways in, memory and PAGEMAP_SCAN are known to give. */
static const char *errno_name(int error)
{
	static const struct {
		int error;
		const char *name;
	} names[] = {
		{ EPERM, "EPERM" },
		{ ENOENT, "ENOENT" },
		{ ESRCH, "ESRCH" },
		{ EINTR, "EINTR" },
		{ EIO, "EIO" },
		{ ENXIO, "ENXIO" },
		{ EBADF, "EBADF" },
		{ EAGAIN, "EAGAIN" },
		{ ENOMEM, "ENOMEM" },
		{ EACCES, "EACCES" },
		{ EFAULT, "EFAULT" },
		{ EBUSY, "EBUSY" },
		{ EEXIST, "EEXIST" },
		{ ENODEV, "ENODEV" },
		{ EINVAL, "EINVAL" },
		{ ENFILE, "ENFILE" },
		{ EMFILE, "EMFILE" },
		{ ENOTTY, "ENOTTY" },
		{ ENOSPC, "ENOSPC" },
		{ ENOSYS, "ENOSYS" },
		{ ETXTBSY, "ETXTBSY" },
		{ EOVERFLOW, "EOVERFLOW" },
		{ EOPNOTSUPP, "EOPNOTSUPP" },
	};
	static char number[32];

	for (size_t i = 0; i < ARRAY_SIZE(names); i++)
		if (names[i].error == -error)
			return names[i].name;
	snprintf(number, sizeof(number), "errno %d", -error);
	return number;
}

/* ---- Finding out --------------------------------------------------------------------------- */

#define MODES 4
enum { MEM_ANONYMOUS, MEM_SHARED, MEM_HUGETLB, MEM_FILE, MEMS };

static const struct {
	const char *key;
	const char *name;
} memory_names[MEMS] = {
	[MEM_ANONYMOUS] = { "anonymous", "anonymous" },
	[MEM_SHARED] = { "shared", "shared (memfd, tmpfs)" },
	[MEM_HUGETLB] = { "hugetlb", "huge pages (hugetlb)" },
	[MEM_FILE] = { "file", "mapped files" },
};

struct memory {
	int error; /* why there is none: -errno */
	uint64_t modes;
	uint64_t ioctls[MODES]; /* by bit number of the mode */
};

struct machine {
	struct utsname uts;
	struct libuffd_caps caps;
	bool open;	/* some way in serves every fault */
	bool user_mode; /* some way in is open */
	struct memory memory[MEMS];
	bool huge_page_free;
	int scan_error;
	uint64_t categories;
};

/* Features that only widen what can be registered; others change what the process sees. */
#define FEATURES_OF_RANGES                                                                \
	(LIBUFFD_FEATURE_PAGEFAULT_FLAG_WP | LIBUFFD_FEATURE_MISSING_HUGETLBFS |          \
	 LIBUFFD_FEATURE_MISSING_SHMEM | LIBUFFD_FEATURE_MINOR_HUGETLBFS |                \
	 LIBUFFD_FEATURE_MINOR_SHMEM | LIBUFFD_FEATURE_WP_HUGETLBFS_SHMEM |               \
	 LIBUFFD_FEATURE_WP_UNPOPULATED | LIBUFFD_FEATURE_POISON | LIBUFFD_FEATURE_MOVE | \
	 LIBUFFD_FEATURE_RWP)

static int open_with(uint64_t optional, struct libuffd **u)
{
	struct libuffd_open_opts opts = LIBUFFD_OPEN_OPTS_INIT;

	opts.flags = LIBUFFD_OPEN_USER_MODE_OK;
	opts.optional = optional;
	return libuffd_open(&opts, u);
}

static void try_modes(const struct libuffd *u, struct memory *m, void *addr, size_t len,
		      uint64_t modes)
{
	uint64_t start = (uint64_t)(uintptr_t)addr;

	for (unsigned int i = 0; i < MODES; i++) {
		uint64_t mode = UINT64_C(1) << i;

		if (!(modes & mode) || libuffd_register(u, start, len, mode, &m->ioctls[i]) < 0)
			continue;
		m->modes |= mode;
		libuffd_unregister(u, start, len);
	}
}

/* Map all of a file, or anonymous memory, try it, and leave nothing behind. */
static void try_memory(const struct libuffd *u, struct memory *m, int fd, size_t len, int flags,
		       uint64_t modes)
{
	void *addr = mmap(NULL, len, PROT_READ | PROT_WRITE, flags, fd, 0);

	if (addr == MAP_FAILED) {
		m->error = -errno;
		return;
	}
	try_modes(u, m, addr, len, modes);
	munmap(addr, len);
}

static void try_anonymous(const struct libuffd *u, struct machine *m)
{
	try_memory(u, &m->memory[MEM_ANONYMOUS], -1, m->caps.page_size, MAP_PRIVATE | MAP_ANONYMOUS,
		   ~UINT64_C(0));
}

static void try_shared(const struct libuffd *u, struct machine *m)
{
	struct memory *mem = &m->memory[MEM_SHARED];
	int fd = memfd_create("uffd-info", MFD_CLOEXEC);

	if (fd < 0 || ftruncate(fd, (off_t)m->caps.page_size) < 0)
		mem->error = -errno;
	else
		try_memory(u, mem, fd, m->caps.page_size, MAP_SHARED, ~UINT64_C(0));
	if (fd >= 0)
		close(fd);
}

/*
 * Without a reservation a huge page can be mapped, and registered, where none is free: the kernel
 * is asked what it would offer, and nobody's huge page is taken.
 */
static void try_hugetlb(const struct libuffd *u, struct machine *m)
{
	struct memory *mem = &m->memory[MEM_HUGETLB];
	int fd = memfd_create("uffd-info", MFD_CLOEXEC | MFD_HUGETLB);
	struct stat st;

	if (fd < 0 || fstat(fd, &st) < 0 || ftruncate(fd, st.st_blksize) < 0) {
		mem->error = -errno;
	} else {
		size_t len = (size_t)st.st_blksize;
		void *reserved = mmap(NULL, len, PROT_READ, MAP_SHARED, fd, 0);

		m->huge_page_free = reserved != MAP_FAILED;
		if (m->huge_page_free)
			munmap(reserved, len);
		try_memory(u, mem, fd, len, MAP_SHARED | MAP_NORESERVE, ~UINT64_C(0));
	}
	if (fd >= 0)
		close(fd);
}

/* WP_ASYNC needs nobody to answer, so the kernel lets it watch any mapping, as of our own file. */
static void try_file(struct machine *m)
{
	struct memory *mem = &m->memory[MEM_FILE];
	struct libuffd *u;
	int fd;

	if (!(m->caps.features & LIBUFFD_FEATURE_WP_ASYNC))
		return;
	fd = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
	if (fd < 0) {
		mem->error = -errno;
		return;
	}
	mem->error = open_with(LIBUFFD_FEATURE_PAGEFAULT_FLAG_WP | LIBUFFD_FEATURE_WP_ASYNC, &u);
	if (mem->error == 0) {
		try_memory(u, mem, fd, m->caps.page_size, MAP_PRIVATE, LIBUFFD_MODE_WP);
		libuffd_close(u);
		/* The kernel goes by the mode, and offers what a mapped file then refuses. */
		for (unsigned int i = 0; i < MODES; i++)
			mem->ioctls[i] &= LIBUFFD_IOCTL_WAKE | LIBUFFD_IOCTL_WRITEPROTECT;
	}
	close(fd);
}

static void try_memories(struct machine *m)
{
	struct libuffd *u;
	int error;

	if (!m->user_mode)
		return;
	error = open_with(FEATURES_OF_RANGES, &u);
	if (error < 0) {
		for (unsigned int i = 0; i < MEMS; i++)
			m->memory[i].error = error;
		return;
	}
	try_anonymous(u, m);
	try_shared(u, m);
	try_hugetlb(u, m);
	libuffd_close(u);
	try_file(m);
	/* The kernel offers MOVE on these too, and then refuses it. */
	for (unsigned int i = MEM_SHARED; i < MEMS; i++)
		for (unsigned int mode = 0; mode < MODES; mode++)
			m->memory[i].ioctls[mode] &= ~LIBUFFD_IOCTL_MOVE;
}

static void try_scan(struct machine *m)
{
	struct libuffd_scanner *s;

	m->scan_error = libuffd_scan_open(0, &s);
	if (m->scan_error < 0)
		return;
	m->categories = libuffd_scan_categories(s);
	libuffd_scan_close(s);
}

static int look(struct machine *m)
{
	int ret;

	memset(m, 0, sizeof(*m));
	m->caps.size = sizeof(m->caps);
	ret = libuffd_probe(&m->caps);
	if (ret < 0)
		return ret;
	if (uname(&m->uts) < 0)
		return -errno;
	m->open = m->caps.way[LIBUFFD_WAY_SYSCALL].error == 0 ||
		  m->caps.way[LIBUFFD_WAY_DEVICE].error == 0;
	m->user_mode = m->open || m->caps.way[LIBUFFD_WAY_USER_MODE].error == 0;
	try_memories(m);
	try_scan(m);
	return 0;
}

/* ---- Shared by both kinds of output -------------------------------------------------------- */

static const struct feature *feature_row(uint64_t bit)
{
	for (size_t i = 0; i < ARRAY_SIZE(features); i++)
		if (features[i].bit == bit)
			return &features[i];
	return NULL;
}

/* A feature that is newer than the library has no name: its number then. */
static const char *feature_name(unsigned int number, char *buf, size_t size)
{
	const char *name = libuffd_feature_name(UINT64_C(1) << number);

	if (name)
		return name;
	snprintf(buf, size, "bit-%u", number);
	return buf;
}

static const struct cure *cure_row(uint64_t bit)
{
	static const struct cure newer = { 0, "newer", NULL };

	for (size_t i = 0; i < ARRAY_SIZE(cures); i++)
		if (cures[i].bit == bit)
			return &cures[i];
	return &newer;
}

static bool feature_listed(const struct machine *m, uint64_t bit)
{
	return (m->caps.features & bit) || libuffd_feature_name(bit);
}

static const char *feature_here(const struct machine *m, uint64_t bit)
{
	if (!m->user_mode)
		return "unknown";
	if (m->caps.denied & bit)
		return "denied";
	return m->caps.features & bit ? "yes" : "no";
}

static const char *seccomp_name(int32_t seccomp)
{
	static const char *const names[] = { "none", "strict", "filter" };

	return seccomp >= 0 && (size_t)seccomp < ARRAY_SIZE(names) ? names[seccomp] : NULL;
}

/* The cures that open a way for every fault, or any way at all. */
static uint64_t cures_for(const struct machine *m, bool user_mode_too)
{
	uint64_t bits = m->caps.way[LIBUFFD_WAY_SYSCALL].cures |
			m->caps.way[LIBUFFD_WAY_DEVICE].cures;

	return user_mode_too ? bits | m->caps.way[LIBUFFD_WAY_USER_MODE].cures : bits;
}

/* ---- For a person -------------------------------------------------------------------------- */

/* Words of @text from column @at on, wrapped, with later lines indented by @indent. */
static void wrap(const char *text, size_t at, size_t indent)
{
	size_t column = at;
	bool first = true;

	while (*text) {
		size_t len = strcspn(text, " ");

		if (!first && column + 1 + len > WIDTH) {
			printf("\n%*s", (int)indent, "");
			column = indent;
		} else if (!first) {
			putchar(' ');
			column++;
		}
		printf("%.*s", (int)len, text);
		column += len;
		text += len;
		text += strspn(text, " ");
		first = false;
	}
	putchar('\n');
}

#define VERDICT_SIZE 2048

/* Append to a string of VERDICT_SIZE. */
static void add(char *s, const char *more)
{
	size_t used = strlen(s);

	snprintf(s + used, VERDICT_SIZE - used, "%s", more);
}

static void add_cures(char *s, uint64_t bits)
{
	const char *between = "";

	for (unsigned int i = 0; i < 64; i++) {
		const char *text = libuffd_cure_text(bits & (UINT64_C(1) << i));

		if (!text)
			continue;
		add(s, between);
		add(s, text);
		between = "; or ";
	}
	if (!*between)
		add(s, "no cure is known");
	add(s, ".");
}

static void print_verdict(const struct machine *m)
{
	char text[VERDICT_SIZE] = "";

	if (m->open) {
		add(text, "userfaultfd works here, for every fault.");
	} else if (m->user_mode) {
		add(text, "userfaultfd works here for faults in user mode only: a fault inside a "
			  "system call or KVM fails with EFAULT. For every fault: ");
		add_cures(text, cures_for(m, false));
	} else {
		add(text, "userfaultfd cannot be used here: every way in is refused. The cure: ");
		add_cures(text, cures_for(m, true));
	}
	wrap(text, 0, 0);
}

static void print_cures(uint64_t bits)
{
	const char *label = "cure: ";

	for (unsigned int i = 0; i < 64; i++) {
		uint64_t bit = bits & (UINT64_C(1) << i);
		const char *text = libuffd_cure_text(bit), *example = cure_row(bit)->example;

		if (!text)
			continue;
		printf("%22s%-6s", "", label);
		wrap(text, 28, 28);
		if (example)
			printf("%28sas in: %s\n", "", example);
		label = "or:   ";
	}
}

static void print_ways(const struct machine *m)
{
	printf("\nWAYS TO OPEN A USERFAULTFD\n");
	for (int i = 0; i < LIBUFFD_WAYS; i++) {
		const struct libuffd_way_caps *way = &m->caps.way[i];

		printf("  %-18s  ", ways[i].name);
		if (way->error) {
			printf("refused %s: %s\n", errno_name(way->error), strerror(-way->error));
			print_cures(way->cures);
		} else {
			printf("open    %s\n", i == LIBUFFD_WAY_USER_MODE
						       ? "userfaultfd(2) without the faults inside "
							 "system calls and KVM"
						       : "serves every fault");
		}
	}
}

static void print_unreadable(int error)
{
	printf("unknown (%s: %s)\n", errno_name(error), strerror(-error));
}

static void print_fact_device(const struct libuffd_caps *caps)
{
	static const char letters[] = "rwxrwxrwx";
	const struct passwd *pw = getpwuid(caps->device_uid);
	const struct group *gr = getgrgid(caps->device_gid);
	char mode[sizeof(letters)];

	for (unsigned int i = 0; i < 9; i++)
		mode[i] = caps->device_mode & (0400u >> i) ? letters[i] : '-';
	mode[9] = '\0';
	printf("%s, owner ", mode);
	if (pw)
		printf("%s, group ", pw->pw_name);
	else
		printf("%" PRIu32 ", group ", caps->device_uid);
	if (gr)
		printf("%s\n", gr->gr_name);
	else
		printf("%" PRIu32 "\n", caps->device_gid);
}

static void print_facts(const struct machine *m)
{
	const struct libuffd_caps *caps = &m->caps;

	printf("\nWHAT DECIDES THAT\n");
	printf("  %-34s  ", "sysctl vm.unprivileged_userfaultfd");
	if (caps->sysctl == 0)
		printf("0: userfaultfd(2) is for processes with CAP_SYS_PTRACE\n");
	else if (caps->sysctl > 0)
		printf("%" PRId32 ": userfaultfd(2) is for everybody\n", caps->sysctl);
	else
		print_unreadable(caps->sysctl);

	printf("  %-34s  ", "CAP_SYS_PTRACE of this process");
	if (caps->ptrace < 0)
		print_unreadable(caps->ptrace);
	else
		printf("%s\n", caps->ptrace ? "yes" : "no");

	printf("  %-34s  ", "permissions of /dev/userfaultfd");
	if (caps->device == 0)
		print_fact_device(caps);
	else if (caps->device == -ENOENT)
		printf("there is no such file\n");
	else
		print_unreadable(caps->device);

	printf("  %-34s  ", "system call filter (seccomp)");
	if (caps->seccomp < 0)
		print_unreadable(caps->seccomp);
	else if (seccomp_name(caps->seccomp))
		printf("%s\n", seccomp_name(caps->seccomp));
	else
		printf("%" PRId32 "\n", caps->seccomp);
}

static void print_features(const struct machine *m)
{
	bool denied = false;

	printf("\n%-22s%-7s%-9s%s\n", "FEATURES", "since", "here", "what it is for");
	for (unsigned int i = 0; i < 64; i++) {
		uint64_t bit = UINT64_C(1) << i;
		const struct feature *row = feature_row(bit);
		char number[16];

		if (!feature_listed(m, bit))
			continue;
		printf("  %-20s%-7s%-9s%s\n", feature_name(i, number, sizeof(number)),
		       row ? row->since : "?", feature_here(m, bit),
		       row ? row->purpose : "newer than this uffd-info");
		denied = denied || (m->caps.denied & bit);
	}
	if (!m->user_mode)
		printf("  unknown: only a process that can open a userfaultfd can ask the kernel.\n");
	if (denied)
		printf("  denied: the kernel has it, but only for processes with "
		       "CAP_SYS_PTRACE.\n");
}

static void print_ioctls(uint64_t bits, size_t indent)
{
	char text[VERDICT_SIZE] = "";
	const char *between = "";

	for (unsigned int i = 0; i < 64; i++) {
		uint64_t bit = UINT64_C(1) << i;
		const char *name = libuffd_ioctl_name(bit);

		if (!(bits & bit))
			continue;
		add(text, between);
		add(text, name ? name : "?");
		between = ", ";
	}
	wrap(text, indent, indent);
}

static void print_memory(const struct machine *m)
{
	if (!m->user_mode) {
		printf("\nMEMORY\n  unknown, for the same reason.\n");
		return;
	}
	printf("\n%-26s%-10s%s\n", "MEMORY", "faults", "answered with");
	for (unsigned int i = 0; i < MEMS; i++) {
		const struct memory *mem = &m->memory[i];
		const char *name = memory_names[i].name;

		if (mem->error) {
			printf("  %-24s%s: %s\n", name, errno_name(mem->error),
			       strerror(-mem->error));
			continue;
		}
		if (!mem->modes)
			printf("  %-24s%s\n", name, i == MEM_FILE ? "no: needs wp-async" : "no");
		for (unsigned int mode = 0; mode < MODES; mode++) {
			if (!(mem->modes & (UINT64_C(1) << mode)))
				continue;
			printf("  %-24s%-10s", name, libuffd_mode_name(UINT64_C(1) << mode));
			if (i == MEM_FILE)
				printf("nothing: recorded only, by wp-async, and read with "
				       "PAGEMAP_SCAN\n");
			else
				print_ioctls(mem->ioctls[mode], 36);
			name = "";
		}
	}
	if (m->memory[MEM_HUGETLB].error == 0 && !m->huge_page_free)
		printf("  No huge page is free here now: sysctl vm.nr_hugepages reserves them.\n");
	printf("  missing: first touch of a page. wp: write to a write-protected page. minor: the "
	       "page is\n"
	       "  in memory, but not mapped here. rwp: any access to a read-write-protected "
	       "page.\n");
}

static void print_scan(const struct machine *m)
{
	uint64_t unnamed = m->categories;

	if (m->scan_error) {
		printf("\nPAGEMAP_SCAN (Linux 6.7), which lists pages by what happened to them: "
		       "no\n  ");
		if (m->scan_error == -ENOTTY)
			printf("This kernel does not have it.\n");
		else
			printf("%s: %s\n", errno_name(m->scan_error), strerror(-m->scan_error));
		return;
	}
	printf("\n%-29s%-9s%s\n", "PAGEMAP_SCAN (Linux 6.7)", "here", "lists pages by");
	for (size_t i = 0; i < ARRAY_SIZE(categories); i++) {
		uint64_t bit = categories[i].bit;

		printf("  %-27s%-9s%s\n", libuffd_page_name(bit),
		       m->categories & bit ? "yes" : "no", categories[i].meaning);
		unnamed &= ~bit;
	}
	if (unnamed)
		printf("  and categories newer than this uffd-info: 0x%" PRIx64 "\n", unnamed);
}

static void print_human(const struct machine *m)
{
	print_verdict(m);
	printf("Linux %s on %s, pages of %" PRIu32 " bytes, libuffd %s.\n", m->uts.release,
	       m->uts.machine, m->caps.page_size, libuffd_version());
	print_ways(m);
	print_facts(m);
	print_features(m);
	print_memory(m);
	print_scan(m);
}

/* ---- For a program ------------------------------------------------------------------------- */

static json_object *json_text(const char *text)
{
	return text ? json_object_new_string(text) : NULL;
}

static void put(json_object *to, const char *key, json_object *value)
{
	json_object_object_add(to, key, value);
}

static json_object *json_error_name(int error)
{
	return json_text(error ? errno_name(error) : NULL);
}

static json_object *json_cures(uint64_t bits)
{
	json_object *list = json_object_new_array();

	for (unsigned int i = 0; i < 64; i++) {
		uint64_t bit = bits & (UINT64_C(1) << i);
		json_object *cure;

		if (!bit)
			continue;
		cure = json_object_new_object();
		put(cure, "name", json_text(cure_row(bit)->name));
		put(cure, "text", json_text(libuffd_cure_text(bit)));
		put(cure, "example", json_text(cure_row(bit)->example));
		json_object_array_add(list, cure);
	}
	return list;
}

static json_object *json_ways(const struct machine *m)
{
	json_object *all = json_object_new_object();

	for (int i = 0; i < LIBUFFD_WAYS; i++) {
		const struct libuffd_way_caps *caps = &m->caps.way[i];
		json_object *way = json_object_new_object();

		put(way, "open", json_object_new_boolean(caps->error == 0));
		put(way, "errno", json_error_name(caps->error));
		put(way, "message", json_text(caps->error ? strerror(-caps->error) : NULL));
		put(way, "cures", json_cures(caps->cures));
		put(all, ways[i].key, way);
	}
	return all;
}

static json_object *json_device(const struct libuffd_caps *caps)
{
	const struct passwd *pw;
	const struct group *gr;
	json_object *device;
	char mode[16];

	if (caps->device < 0)
		return NULL;
	pw = getpwuid(caps->device_uid);
	gr = getgrgid(caps->device_gid);
	snprintf(mode, sizeof(mode), "%04" PRIo32, caps->device_mode);
	device = json_object_new_object();
	put(device, "mode", json_text(mode));
	put(device, "uid", json_object_new_int64(caps->device_uid));
	put(device, "gid", json_object_new_int64(caps->device_gid));
	put(device, "owner", json_text(pw ? pw->pw_name : NULL));
	put(device, "group", json_text(gr ? gr->gr_name : NULL));
	return device;
}

static json_object *json_facts(const struct libuffd_caps *caps)
{
	json_object *facts = json_object_new_object();

	put(facts, "sysctl", caps->sysctl < 0 ? NULL : json_object_new_int(caps->sysctl));
	put(facts, "cap_sys_ptrace",
	    caps->ptrace < 0 ? NULL : json_object_new_boolean(caps->ptrace));
	put(facts, "seccomp", json_text(seccomp_name(caps->seccomp)));
	put(facts, "device", json_device(caps));
	return facts;
}

static json_object *json_features(const struct machine *m)
{
	json_object *all = json_object_new_object();

	for (unsigned int i = 0; i < 64; i++) {
		uint64_t bit = UINT64_C(1) << i;
		const struct feature *row = feature_row(bit);
		json_object *feature;
		char number[16];

		if (!feature_listed(m, bit))
			continue;
		feature = json_object_new_object();
		put(feature, "here", json_text(feature_here(m, bit)));
		put(feature, "bit", json_object_new_int((int32_t)i));
		put(feature, "since", json_text(row ? row->since : NULL));
		put(feature, "purpose", json_text(row ? row->purpose : NULL));
		put(all, feature_name(i, number, sizeof(number)), feature);
	}
	return all;
}

static json_object *json_ioctls(uint64_t bits)
{
	json_object *list = json_object_new_array();

	for (unsigned int i = 0; i < 64; i++) {
		uint64_t bit = UINT64_C(1) << i;

		if ((bits & bit) && libuffd_ioctl_name(bit))
			json_object_array_add(list, json_text(libuffd_ioctl_name(bit)));
	}
	return list;
}

static json_object *json_memory(const struct machine *m)
{
	json_object *all = json_object_new_object();

	for (unsigned int i = 0; i < MEMS; i++) {
		const struct memory *mem = &m->memory[i];
		json_object *memory = json_object_new_object(), *modes = NULL;

		if (m->user_mode)
			modes = json_object_new_object();
		for (unsigned int mode = 0; modes && mode < MODES; mode++)
			if (mem->modes & (UINT64_C(1) << mode))
				put(modes, libuffd_mode_name(UINT64_C(1) << mode),
				    json_ioctls(mem->ioctls[mode]));
		put(memory, "modes", modes);
		put(memory, "errno", json_error_name(mem->error));
		if (i == MEM_HUGETLB)
			put(memory, "free", json_object_new_boolean(m->huge_page_free));
		put(all, memory_names[i].key, memory);
	}
	return all;
}

static json_object *json_scan(const struct machine *m)
{
	json_object *scan = json_object_new_object(), *list = json_object_new_array();

	for (unsigned int i = 0; i < 64; i++) {
		uint64_t bit = UINT64_C(1) << i;

		if ((m->categories & bit) && libuffd_page_name(bit))
			json_object_array_add(list, json_text(libuffd_page_name(bit)));
	}
	put(scan, "available", json_object_new_boolean(m->scan_error == 0));
	put(scan, "errno", json_error_name(m->scan_error));
	put(scan, "categories", list);
	return scan;
}

static void print_json(const struct machine *m)
{
	json_object *all = json_object_new_object();

	put(all, "format", json_object_new_int(1));
	put(all, "version", json_text(libuffd_version()));
	put(all, "kernel", json_text(m->uts.release));
	put(all, "machine", json_text(m->uts.machine));
	put(all, "page_size", json_object_new_int64(m->caps.page_size));
	put(all, "open", json_object_new_boolean(m->open));
	put(all, "user_mode", json_object_new_boolean(m->user_mode));
	put(all, "ways", json_ways(m));
	put(all, "facts", json_facts(&m->caps));
	put(all, "features", json_features(m));
	put(all, "memory", json_memory(m));
	put(all, "pagemap_scan", json_scan(m));
	puts(json_object_to_json_string_ext(all, JSON_C_TO_STRING_PRETTY |
							 JSON_C_TO_STRING_NOSLASHESCAPE));
	json_object_put(all);
}

/* ---- --require ----------------------------------------------------------------------------- */

/* Beside the features. */
static const char *const words[] = { "open", "user-mode", "pagemap-scan" };

/* "UFFD_FEATURE_WP_ASYNC" and "wp_async" are "wp-async" too. In place. */
static char *canonical(char *name)
{
	static const char *const prefixes[] = { "libuffd-feature-", "uffd-feature-" };

	for (char *c = name; *c; c++)
		*c = *c == '_' ? '-' : (char)tolower((unsigned char)*c);
	for (size_t i = 0; i < ARRAY_SIZE(prefixes); i++)
		if (strncmp(name, prefixes[i], strlen(prefixes[i])) == 0)
			return name + strlen(prefixes[i]);
	return name;
}

static uint64_t feature_by_name(const char *name)
{
	for (unsigned int i = 0; i < 64; i++) {
		const char *known = libuffd_feature_name(UINT64_C(1) << i);

		if (known && strcmp(known, name) == 0)
			return UINT64_C(1) << i;
	}
	return 0;
}

static bool known_word(const char *name)
{
	for (size_t i = 0; i < ARRAY_SIZE(words); i++)
		if (strcmp(words[i], name) == 0)
			return true;
	return feature_by_name(name) != 0;
}

static int unknown_word(const char *name)
{
	if (*name)
		fprintf(stderr, "uffd-info: --require: unknown name '%s'. Known are:\n ", name);
	else
		fprintf(stderr, "uffd-info: --require: an empty name. Known are:\n ");
	for (size_t i = 0; i < ARRAY_SIZE(words); i++)
		fprintf(stderr, " %s", words[i]);
	for (unsigned int i = 0; i < 64; i++) {
		const char *known = libuffd_feature_name(UINT64_C(1) << i);

		if (known)
			fprintf(stderr, "%s%s", i % 6 ? " " : "\n  ", known);
	}
	fprintf(stderr, "\n");
	return EXIT_USAGE;
}

/* Why no way in serves what is wanted, and what would help: the rest of a message. */
static void explain_ways(const struct machine *m, bool user_mode_too)
{
	char text[VERDICT_SIZE] = "";

	for (int i = 0; i < LIBUFFD_WAYS; i++)
		if (m->caps.way[i].error && (user_mode_too || i != LIBUFFD_WAY_USER_MODE))
			fprintf(stderr, "; %s: %s", ways[i].name, errno_name(m->caps.way[i].error));
	add_cures(text, cures_for(m, user_mode_too));
	fprintf(stderr, "\n  cure: %s\n", text);
}

static bool there_open(const struct machine *m, bool quiet)
{
	if (!m->open && !quiet) {
		fprintf(stderr, "uffd-info: open: no, no way in serves every fault");
		explain_ways(m, false);
	}
	return m->open;
}

static bool there_user_mode(const struct machine *m, bool quiet)
{
	if (!m->user_mode && !quiet) {
		fprintf(stderr, "uffd-info: user-mode: no, every way in is refused");
		explain_ways(m, true);
	}
	return m->user_mode;
}

static bool there_scan(const struct machine *m, bool quiet)
{
	if (m->scan_error && !quiet)
		fprintf(stderr, "uffd-info: pagemap-scan: no, %s (since Linux 6.7; this is %s)\n",
			m->scan_error == -ENOTTY ? "this kernel does not have it"
						 : strerror(-m->scan_error),
			m->uts.release);
	return m->scan_error == 0;
}

static bool there_feature(const struct machine *m, uint64_t bit, bool quiet)
{
	const struct feature *row = feature_row(bit);
	const char *name = libuffd_feature_name(bit);

	if (m->caps.features & ~m->caps.denied & bit)
		return true;
	if (quiet)
		return false;
	if (!m->user_mode) {
		fprintf(stderr, "uffd-info: %s: unknown, every way in is refused (since Linux %s)",
			name, row ? row->since : "?");
		explain_ways(m, true);
	} else if (m->caps.denied & bit) {
		fprintf(stderr,
			"uffd-info: %s: denied, the kernel has it (since Linux %s), but only for "
			"processes with CAP_SYS_PTRACE\n",
			name, row ? row->since : "?");
	} else {
		fprintf(stderr,
			"uffd-info: %s: no, this kernel does not have it (since Linux %s; "
			"this is %s on %s)\n",
			name, row ? row->since : "?", m->uts.release, m->uts.machine);
	}
	return false;
}

static bool is_there(const struct machine *m, const char *name, bool quiet)
{
	if (strcmp(name, "open") == 0)
		return there_open(m, quiet);
	if (strcmp(name, "user-mode") == 0)
		return there_user_mode(m, quiet);
	if (strcmp(name, "pagemap-scan") == 0)
		return there_scan(m, quiet);
	return there_feature(m, feature_by_name(name), quiet);
}

/* Every name of the list is judged: a script's author wants all that is missing at once. */
static bool all_there(const struct machine *m, char *const *names, size_t n, bool quiet)
{
	bool all = true;

	for (size_t i = 0; i < n; i++)
		if (!is_there(m, names[i], quiet))
			all = false;
	return all;
}

/* ---- The command line ---------------------------------------------------------------------- */

struct options {
	bool json;
	bool quiet;
	bool require;
	char **names; /* of --require, canonical; they point into argv */
	size_t n;
};

static const char help[] =
	"Usage: uffd-info [--json] [--require NAME[,NAME...] [--quiet]]\n"
	"\n"
	"Tells what this machine can do with userfaultfd, the kernel's way to let a program\n"
	"answer page faults: which ways to it are open to you, which features the kernel has;\n"
	"and where something is refused, why, and what would cure it.\n"
	"\n"
	"  -j, --json          print the same as JSON; its keys are listed below\n"
	"  -r, --require LIST  print nothing, but exit with 0 if all of LIST is there. LIST is\n"
	"                      names with commas in between: features as uffd-info lists them\n"
	"                      (wp-async, WP_ASYNC and UFFD_FEATURE_WP_ASYNC are the same), and\n"
	"                        open          some way in serves every fault\n"
	"                        user-mode     some way in is open, be it for faults in user\n"
	"                                      mode only\n"
	"                        pagemap-scan  the kernel has PAGEMAP_SCAN\n"
	"                      What is missing, and why, is told on standard error. May be\n"
	"                      given more than once, and together with --json\n"
	"  -q, --quiet         with --require: do not tell, only exit\n"
	"  -h, --help          print this\n"
	"  -V, --version       print the version\n"
	"\n"
	"Exit status:\n"
	"  0  done; with --require, all is there\n"
	"  1  something in the list of --require is missing\n"
	"  2  wrong usage, or an unknown name in the list\n"
	"  3  the output could not be written\n"
	"\n"
	"Keys of the JSON object; what does not apply is null, and later versions only add:\n"
	"  format, version, kernel, machine, page_size, open, user_mode\n"
	"  ways.{syscall,device,user-mode}.{open,errno,message}\n"
	"  ways.{syscall,device,user-mode}.cures[].{name,text,example}\n"
	"  facts.{sysctl,cap_sys_ptrace,seccomp}\n"
	"  facts.device.{mode,uid,gid,owner,group}\n"
	"  features.NAME.{here,bit,since,purpose}; here is yes, no, denied or unknown\n"
	"  memory.{anonymous,shared,hugetlb,file}.{modes.MODE[],errno}\n"
	"  memory.hugetlb.free\n"
	"  pagemap_scan.{available,errno,categories[]}\n"
	"\n"
	"Example: uffd-info --require open,move,wp-async && start-the-hypervisor\n";

static int usage_error(void)
{
	fprintf(stderr, "Try 'uffd-info --help'.\n");
	return EXIT_USAGE;
}

static int add_names(struct options *o, char *list)
{
	while (list) {
		char *comma = strchr(list, ','), **names;

		if (comma)
			*comma = '\0';
		names = realloc(o->names, (o->n + 1) * sizeof(*names));
		if (!names) {
			fprintf(stderr, "uffd-info: out of memory\n");
			return EXIT_USAGE;
		}
		o->names = names;
		o->names[o->n] = canonical(list);
		if (!known_word(o->names[o->n]))
			return unknown_word(o->names[o->n]);
		o->n++;
		list = comma ? comma + 1 : NULL;
	}
	return 0;
}

/* Anything but "go on" is an exit status. */
#define GO_ON (-1)

static int parse(struct options *o, int argc, char **argv)
{
	static const struct option longs[] = {
		{ "json", no_argument, NULL, 'j' },    { "require", required_argument, NULL, 'r' },
		{ "quiet", no_argument, NULL, 'q' },   { "help", no_argument, NULL, 'h' },
		{ "version", no_argument, NULL, 'V' }, { NULL, 0, NULL, 0 },
	};
	int c, ret;

	while ((c = getopt_long(argc, argv, "jr:qhV", longs, NULL)) != -1) {
		switch (c) {
		case 'j':
			o->json = true;
			break;
		case 'r':
			o->require = true;
			ret = add_names(o, optarg);
			if (ret)
				return ret;
			break;
		case 'q':
			o->quiet = true;
			break;
		case 'h':
			fputs(help, stdout);
			return EXIT_THERE;
		case 'V':
			printf("uffd-info %s\n", libuffd_version());
			return EXIT_THERE;
		default:
			return usage_error();
		}
	}
	if (optind < argc) {
		fprintf(stderr, "uffd-info: takes no argument '%s'\n", argv[optind]);
		return usage_error();
	}
	if (o->quiet && !o->require) {
		fprintf(stderr, "uffd-info: --quiet goes with --require only\n");
		return usage_error();
	}
	return GO_ON;
}

static int run(int argc, char **argv, struct options *o)
{
	struct machine m;
	int ret = parse(o, argc, argv);

	if (ret != GO_ON)
		return ret;
	/*
	 * Look first, print afterwards: where standard output is closed, a descriptor that is
	 * opened to look would take its number, and the print would end up in it.
	 */
	ret = look(&m);
	if (ret < 0) {
		fprintf(stderr, "uffd-info: cannot look: %s\n", strerror(-ret));
		return EXIT_MISSING;
	}
	if (o->json)
		print_json(&m);
	else if (!o->require)
		print_human(&m);
	return all_there(&m, o->names, o->n, o->quiet) ? EXIT_THERE : EXIT_MISSING;
}

/* An output that got lost must not look like success. Closed and never written to is fine. */
static bool output_lost(void)
{
	bool lost = ferror(stdout) != 0;

	if (fflush(stdout) != 0)
		lost = true;
	if (fclose(stdout) != 0 && errno != EBADF)
		lost = true;
	return lost;
}

int main(int argc, char **argv)
{
	struct options o = { 0 };
	int status = run(argc, argv, &o);

	free(o.names);
	if (output_lost()) {
		fprintf(stderr, "uffd-info: the output could not be written\n");
		return EXIT_OUTPUT;
	}
	return status;
}
