/* SPDX-License-Identifier: MIT */
/*
 * libuffd: Linux userfaultfd, made safe and pleasant to use from C.
 *
 * A userfaultfd lets a program answer page faults: register a range of memory, read the faults
 * that happen in it, install the pages. This header is the whole core library (libuffd.so.0).
 *
 * Rules that hold for every call
 *
 *   Errors     are returned as -errno; errno itself is left unspecified. Success is 0, or a count
 *              where the call says so. What the kernel refuses is passed on unchanged. -EINVAL
 *              for a NULL handle or an unknown flag comes before any system call. A descriptor
 *              that was closed behind the library's back gives -EBADF.
 *   Addresses  of the target are uint64_t, because they may belong to another process. Memory of
 *              the caller is a pointer. A range is [start, start + len): it must be aligned to
 *              the page size of the memory it covers, not empty, and must not wrap; the kernel
 *              answers -EINVAL otherwise.
 *   Progress   comes in *done, in bytes. It is always written, also on failure, and never holds
 *              an error.
 *   Threads    A handle never changes after it was opened: all calls on one handle may run at the
 *              same time in any thread. Only libuffd_close() needs the handle for itself.
 *   Signals    Calls marked "signal-safe" may be made from a signal handler.
 *   Bits       Feature, ioctl, mode and fault bits are the kernel's own. Bits that this header
 *              does not name pass through, so a newer kernel needs no newer library.
 *   Structs    with a `size` field grow in later releases. Set them up with the LIBUFFD_*_INIT
 *              macro, or zero them and set size to sizeof. A shorter (older) struct is completed
 *              with zeros; a longer (newer) one is accepted if what is beyond this library's
 *              knowledge is zero, and refused with -E2BIG otherwise, and so is a size above 4096.
 *              A size of 0, or one that does not reach the end of the first release's struct,
 *              is -EINVAL. (A struct that the library fills in: -EINVAL for both.)
 *
 * The library never prints, exits, reads the environment, starts a thread or installs a signal
 * handler. The calls that resolve faults neither allocate nor lock (but for the zeros of a huge page,
 * which are mapped for as long as the call takes).
 */
#ifndef LIBUFFD_UFFD_H
#define LIBUFFD_UFFD_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include <uffd/version.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define LIBUFFD_EXPORT __attribute__((visibility("default")))
#else
#define LIBUFFD_EXPORT
#endif

/* A userfaultfd with its handshake done. Opaque; immutable from open to close. */
struct libuffd;

/* ---- Bits: all equal to the kernel's ------------------------------------------------------- */

/* Features (UFFD_FEATURE_*); the comment says since which kernel. */
#define LIBUFFD_FEATURE_PAGEFAULT_FLAG_WP (UINT64_C(1) << 0)   /* 5.7 x86-64, 6.10 arm64 */
#define LIBUFFD_FEATURE_EVENT_FORK (UINT64_C(1) << 1)	       /* 4.11; wants CAP_SYS_PTRACE */
#define LIBUFFD_FEATURE_EVENT_REMAP (UINT64_C(1) << 2)	       /* 4.11 */
#define LIBUFFD_FEATURE_EVENT_REMOVE (UINT64_C(1) << 3)	       /* 4.11 */
#define LIBUFFD_FEATURE_MISSING_HUGETLBFS (UINT64_C(1) << 4)   /* 4.11; informational */
#define LIBUFFD_FEATURE_MISSING_SHMEM (UINT64_C(1) << 5)       /* 4.11; informational */
#define LIBUFFD_FEATURE_EVENT_UNMAP (UINT64_C(1) << 6)	       /* 4.11 */
#define LIBUFFD_FEATURE_SIGBUS (UINT64_C(1) << 7)	       /* 4.14 */
#define LIBUFFD_FEATURE_THREAD_ID (UINT64_C(1) << 8)	       /* 4.14 */
#define LIBUFFD_FEATURE_MINOR_HUGETLBFS (UINT64_C(1) << 9)     /* 5.13, 64-bit kernels */
#define LIBUFFD_FEATURE_MINOR_SHMEM (UINT64_C(1) << 10)	       /* 5.14, 64-bit kernels */
#define LIBUFFD_FEATURE_EXACT_ADDRESS (UINT64_C(1) << 11)      /* 5.18 */
#define LIBUFFD_FEATURE_WP_HUGETLBFS_SHMEM (UINT64_C(1) << 12) /* 5.19 */
#define LIBUFFD_FEATURE_WP_UNPOPULATED (UINT64_C(1) << 13)     /* 6.4 */
#define LIBUFFD_FEATURE_POISON (UINT64_C(1) << 14)	       /* 6.6 */
#define LIBUFFD_FEATURE_WP_ASYNC (UINT64_C(1) << 15)	       /* 6.7; brings WP_UNPOPULATED */
#define LIBUFFD_FEATURE_MOVE (UINT64_C(1) << 16)	       /* 6.8 */
#define LIBUFFD_FEATURE_RWP (UINT64_C(1) << 17)		       /* 7.3 */
#define LIBUFFD_FEATURE_RWP_ASYNC (UINT64_C(1) << 18)	       /* 7.3; needs RWP */

/* What a range can be registered for (UFFDIO_REGISTER_MODE_*). */
#define LIBUFFD_MODE_MISSING (UINT64_C(1) << 0) /* first touch of a page */
#define LIBUFFD_MODE_WP (UINT64_C(1) << 1)	/* write to a write-protected page */
#define LIBUFFD_MODE_MINOR (UINT64_C(1) << 2)	/* page in the page cache, not mapped here */
#define LIBUFFD_MODE_RWP (UINT64_C(1) << 3)	/* any access to a read-write-protected page */

/* Which ioctls a descriptor or a range offers: 1 << the ioctl's number. */
#define LIBUFFD_IOCTL_REGISTER (UINT64_C(1) << 0x00)
#define LIBUFFD_IOCTL_UNREGISTER (UINT64_C(1) << 0x01)
#define LIBUFFD_IOCTL_WAKE (UINT64_C(1) << 0x02)
#define LIBUFFD_IOCTL_COPY (UINT64_C(1) << 0x03)
#define LIBUFFD_IOCTL_ZEROPAGE (UINT64_C(1) << 0x04)
#define LIBUFFD_IOCTL_MOVE (UINT64_C(1) << 0x05)
#define LIBUFFD_IOCTL_WRITEPROTECT (UINT64_C(1) << 0x06)
#define LIBUFFD_IOCTL_CONTINUE (UINT64_C(1) << 0x07)
#define LIBUFFD_IOCTL_POISON (UINT64_C(1) << 0x08)
#define LIBUFFD_IOCTL_RWPROTECT (UINT64_C(1) << 0x09)
#define LIBUFFD_IOCTL_SET_MODE (UINT64_C(1) << 0x0a)
#define LIBUFFD_IOCTL_API (UINT64_C(1) << 0x3f)

/* What a page fault was (UFFD_PAGEFAULT_FLAG_*). None of the last three: a missing page. */
#define LIBUFFD_FAULT_WRITE (UINT64_C(1) << 0)
#define LIBUFFD_FAULT_WP (UINT64_C(1) << 1)
#define LIBUFFD_FAULT_MINOR (UINT64_C(1) << 2)
#define LIBUFFD_FAULT_RWP (UINT64_C(1) << 3)

/*
 * The name of one bit: the kernel's own, in lower case with hyphens ("wp-async", "missing",
 * "writeprotect"). NULL if @bit is not exactly one bit, or has no name here. The string is static.
 * Signal-safe.
 */
LIBUFFD_EXPORT const char *libuffd_feature_name(uint64_t bit);
LIBUFFD_EXPORT const char *libuffd_mode_name(uint64_t bit);
LIBUFFD_EXPORT const char *libuffd_ioctl_name(uint64_t bit);
LIBUFFD_EXPORT const char *libuffd_fault_name(uint64_t bit);

/* The version of the library that runs, as "0.1.0". LIBUFFD_VERSION is the header's. */
LIBUFFD_EXPORT const char *libuffd_version(void);

/* ---- Opening ------------------------------------------------------------------------------- */

/* The ways to a userfaultfd, in the order in which they are tried. */
#define LIBUFFD_WAY_SYSCALL 0	/* userfaultfd(2): CAP_SYS_PTRACE, or the sysctl */
#define LIBUFFD_WAY_DEVICE 1	/* /dev/userfaultfd (6.1): permission on the file */
#define LIBUFFD_WAY_USER_MODE 2 /* userfaultfd(2) with USER_MODE_ONLY (5.11): anybody */
#define LIBUFFD_WAYS 3
#define LIBUFFD_WAY_ADOPTED 3 /* the descriptor came from somewhere else */

#define LIBUFFD_NOT_TRIED 1 /* in place of an errno */

/* What open or adopt saw on its way. Written on success and on failure. */
struct libuffd_report {
	int32_t error[LIBUFFD_WAYS]; /* by way: 0 worked, -errno refused, or LIBUFFD_NOT_TRIED */
	int32_t handshake;	     /* UFFDIO_API: 0, -errno, or LIBUFFD_NOT_TRIED */
	uint64_t missing;	     /* required features that could not be enabled */
	uint64_t supported;	     /* all that the kernel has; 0 if it needed no asking */
	uint64_t reserved[2];	     /* zero */
};

/*
 * Accept a descriptor that sees faults from user mode only, if every other way is refused. Faults
 * that the kernel takes on the program's behalf (system calls, KVM) then fail with EFAULT instead
 * of being served: that breaks hypervisors, which is why it is never done unasked.
 */
#define LIBUFFD_OPEN_USER_MODE_OK (1u << 0)
#define LIBUFFD_OPEN_USER_MODE_ONLY (1u << 1) /* want exactly that, try nothing else */
#define LIBUFFD_OPEN_NO_SYSCALL (1u << 2)     /* leave out userfaultfd(2) in its full form */
#define LIBUFFD_OPEN_NO_DEVICE (1u << 3)      /* leave out /dev/userfaultfd */
/*
 * Make reads block. The default is O_NONBLOCK: without it poll(2) answers POLLERR for ever, and
 * io_uring reads fail. Worth it only for a thread that does nothing but read.
 */
#define LIBUFFD_OPEN_BLOCKING (1u << 4)

struct libuffd_open_opts {
	uint32_t size;
	uint32_t flags;	   /* LIBUFFD_OPEN_* */
	uint64_t required; /* features without which the open fails */
	uint64_t optional; /* features to enable where the kernel has them */
	union {
		struct libuffd_report *report; /* NULL, or where to tell what happened */
		uint64_t report_space;	       /* zero first where pointers have 32 bits */
	};
};
/* clang-format off */
#define LIBUFFD_OPEN_OPTS_INIT { sizeof(struct libuffd_open_opts), 0, 0, 0, { NULL } }
/* clang-format on */

/*
 * Open a userfaultfd and agree on its features (userfaultfd(2), USERFAULTFD_IOC_NEW, UFFDIO_API).
 * @opts may be NULL: no feature, O_NONBLOCK. The descriptor is close-on-exec.
 *
 * If the kernel refuses the wanted set, a second descriptor is opened for a moment to learn what
 * it does have (a successful handshake cannot be taken back). Optional features that are missing,
 * or not permitted, are left out; libuffd_features() tells what was enabled.
 *
 * Some features change what the program sees as soon as they are enabled: the EVENT_* ones make
 * fork, mremap, madvise and munmap wait until their event is read, and SIGBUS turns messages into
 * signals. Do not ask for everything. With EVENT_FORK in one's own process mind that fork(3) holds
 * the locks of malloc while it waits for the event to be read: the reading thread must not allocate
 * before it reads.
 *
 * Return 0 and the handle in *@out, which the caller must close; or a negative errno and NULL:
 *   -EINVAL      unknown flag, contradictory flags, bad size, @out is NULL; RWP_ASYNC without RWP
 *                on a kernel that has both; USER_MODE_ONLY on a kernel before 5.11
 *   -E2BIG       @opts is newer than the library and uses what it does not know
 *   -EOPNOTSUPP  the kernel lacks a required feature: see report->missing
 *   -EPERM       no way in: the refusal of the first way that was tried (see the report and
 *                libuffd_probe()); or EVENT_FORK is required without CAP_SYS_PTRACE
 *   -EACCES      only the device was tried, and its permissions refuse
 *   -ENOENT      only the device was tried, and there is none
 *   -ENXIO -ENODEV  only the device was tried, and its node has no driver behind it
 *   -ENOTTY      only the device was tried, and what has its name is another file
 *   -ENOSYS      the kernel has no userfaultfd, or a seccomp filter hides it
 *   -EMFILE -ENFILE -ENOMEM  out of descriptors or memory
 */
LIBUFFD_EXPORT int libuffd_open(const struct libuffd_open_opts *opts, struct libuffd **out);

/*
 * Make a handle of a descriptor that came from elsewhere: a socket, a parent, a raw syscall.
 *
 * What its owner enabled is read from /proc/self/fdinfo. If there was no handshake yet it is done
 * here with required and optional, as libuffd_open() would; where no second descriptor can be
 * opened to learn what the kernel has, only the required features are asked for. The flags in
 * @opts do not apply and must be 0. The descriptor's own flags are left as they are.
 *
 * On success the handle owns @fd. On failure @fd still belongs to the caller, open.
 *   -EINVAL      bad @opts, @out is NULL, @fd is negative; RWP_ASYNC without RWP, as above
 *   -E2BIG       as for libuffd_open()
 *   -EBADF       @fd is not open
 *   -ENOTTY      @fd is not a userfaultfd
 *   -EOPNOTSUPP  a required feature is not enabled (report->missing) or not there
 *   -EPERM       EVENT_FORK is required, the handshake is still to be done, and CAP_SYS_PTRACE
 *                is missing
 *   -ENOENT      /proc is not mounted, so that the features cannot be learned
 *   -EMFILE -ENFILE -ENOMEM  out of descriptors or memory
 */
LIBUFFD_EXPORT int libuffd_adopt(int fd, const struct libuffd_open_opts *opts,
				 struct libuffd **out);

/*
 * Close the descriptor and free the handle; NULL is allowed. No other call on it may be running.
 *
 * When the last descriptor of a userfaultfd is closed the kernel unregisters its ranges, lets
 * every waiting thread go, and gives them zero-filled pages: data that was still to be supplied is
 * lost without a word. Unregister or poison first what must not read as zeros. A thread that waits
 * for its FORK event to be read is not let go: the child that it makes holds a descriptor already.
 */
LIBUFFD_EXPORT void libuffd_close(struct libuffd *u);

/* The descriptor, for poll(2) and the like; still owned by the handle. -EINVAL if @u is NULL. */
LIBUFFD_EXPORT int libuffd_fd(const struct libuffd *u);

/* The features that the handshake enabled; 0 if @u is NULL. */
LIBUFFD_EXPORT uint64_t libuffd_features(const struct libuffd *u);

/*
 * The ioctls of the descriptor as a whole, as 1 << number (those of a range come from
 * libuffd_register()); 0 if @u is NULL.
 */
LIBUFFD_EXPORT uint64_t libuffd_ioctls(const struct libuffd *u);

/* How the descriptor was got: LIBUFFD_WAY_*. -EINVAL if @u is NULL. */
LIBUFFD_EXPORT int libuffd_way(const struct libuffd *u);

/* ---- What can this machine do? ------------------------------------------------------------- */

/* What would cure a refusal. Several bits: each by itself is enough. */
#define LIBUFFD_CURE_SYSCTL (UINT64_C(1) << 0)	      /* sysctl vm.unprivileged_userfaultfd=1 */
#define LIBUFFD_CURE_CAPABILITY (UINT64_C(1) << 1)    /* CAP_SYS_PTRACE in the initial namespace */
#define LIBUFFD_CURE_DEVICE_MODE (UINT64_C(1) << 2)   /* permission on /dev/userfaultfd */
#define LIBUFFD_CURE_DEVICE_NODE (UINT64_C(1) << 3)   /* create or pass in /dev/userfaultfd */
#define LIBUFFD_CURE_DEVICE_CGROUP (UINT64_C(1) << 4) /* the container's device list */
#define LIBUFFD_CURE_SECCOMP (UINT64_C(1) << 5) /* allow userfaultfd(2) in the seccomp filter */
#define LIBUFFD_CURE_KERNEL (UINT64_C(1) << 6)	/* a newer kernel, or CONFIG_USERFAULTFD=y */
#define LIBUFFD_CURE_LIMIT (UINT64_C(1) << 7)	/* free descriptors or memory */

struct libuffd_way_caps {
	int32_t error;	   /* 0: open; or the -errno of the refusal */
	uint32_t reserved; /* zero */
	uint64_t cures;	   /* LIBUFFD_CURE_*; 0 if open, or if no cure is known */
};

struct libuffd_caps {
	uint32_t size;
	uint32_t reserved;			   /* zero */
	uint64_t features;			   /* the kernel has these; 0 if no way is open */
	uint64_t denied;			   /* of those, what this process may not enable */
	uint64_t ioctls;			   /* of a descriptor */
	struct libuffd_way_caps way[LIBUFFD_WAYS]; /* every way in, each one tried */
	int32_t sysctl;	      /* vm.unprivileged_userfaultfd: 0 or 1; or -errno */
	int32_t ptrace;	      /* CAP_SYS_PTRACE in the effective set: 0 or 1; or -errno */
	int32_t seccomp;      /* 0 none, 1 strict, 2 filtered; or -errno */
	int32_t device;	      /* 0: /dev/userfaultfd exists; or -errno */
	uint32_t device_mode; /* its permission bits, owner and group, as stat(2) gives them */
	uint32_t device_uid;
	uint32_t device_gid;
	uint32_t page_size; /* of this system, in bytes */
};
/* clang-format off */
#define LIBUFFD_CAPS_INIT { sizeof(struct libuffd_caps), 0, 0, 0, 0, \
	{ { 0, 0, 0 }, { 0, 0, 0 }, { 0, 0, 0 } }, 0, 0, 0, 0, 0, 0, 0, 0 }
/* clang-format on */

/*
 * Find out what this kernel offers to this process: every way in is tried with a descriptor that
 * is closed again. Nothing is remembered between calls.
 *
 * @caps->size is the caller's; as many bytes are filled in, zeros beyond what the library knows.
 * Return 0, also if every way is refused: that is what @caps then says. -EINVAL for NULL or a bad
 * size.
 */
LIBUFFD_EXPORT int libuffd_probe(struct libuffd_caps *caps);

/* One cure (a single LIBUFFD_CURE_* bit) in words that a person can act on; NULL for another. */
LIBUFFD_EXPORT const char *libuffd_cure_text(uint64_t bit);

/* ---- Ranges -------------------------------------------------------------------------------- */

/*
 * Let faults in a range come to @u (UFFDIO_REGISTER). The range must touch at least one mapping
 * and may span several, with holes. @modes are LIBUFFD_MODE_*.
 *
 * *@ioctls (may be NULL) gets what the range can be resolved with, as LIBUFFD_IOCTL_* bits. Mind
 * that the kernel computes it from the mode asked for, and offers MOVE on shared memory too, where
 * it then fails. On failure it is 0.
 *
 * Registering again with a subset of the modes changes nothing, and with other modes replaces them;
 * from 7.3 on what would drop WP or RWP is -EBUSY instead.
 * Other threads may fault as soon as the call is under way. Signal-safe.
 *   -EINVAL  no or unknown mode for this kernel; an unaligned, empty or wrapping range; nothing
 *            mapped there; memory that the mode does not cover; a hugetlb range off its page size;
 *            WP with RWP; RWP on PROT_NONE
 *   -EPERM   a mapping that this process could not make writable
 *   -EBUSY   registered with another userfaultfd; from 7.3 also: would drop WP or RWP
 *   -ENOMEM  the address space is gone, or too many mappings: then a part of the range may have
 *            been registered
 */
LIBUFFD_EXPORT int libuffd_register(const struct libuffd *u, uint64_t start, uint64_t len,
				    uint64_t modes, uint64_t *ioctls);

/*
 * Stop faults in a range from coming to @u, and wake every thread that waits there, whatever for
 * (UFFDIO_UNREGISTER, then UFFDIO_WAKE: the kernel by itself leaves those asleep who wait for a
 * write-protected, minor or read-write-protected page). What was not installed reads as zeros from
 * then on. Ranges with nothing registered are no error. Signal-safe.
 *   -EINVAL  an unaligned, empty or wrapping range; nothing mapped there; on 6.18 and later:
 *            registered with another userfaultfd
 *   -ENOMEM  the address space is gone, or too many mappings
 */
LIBUFFD_EXPORT int libuffd_unregister(const struct libuffd *u, uint64_t start, uint64_t len);

/* ---- Events -------------------------------------------------------------------------------- */

#define LIBUFFD_EVENT_FAULT 0x12  /* a thread waits for a page */
#define LIBUFFD_EVENT_FORK 0x13	  /* the process forked; needs FEATURE_EVENT_FORK */
#define LIBUFFD_EVENT_REMAP 0x14  /* mremap moved a range; FEATURE_EVENT_REMAP */
#define LIBUFFD_EVENT_REMOVE 0x15 /* madvise is about to drop a range; FEATURE_EVENT_REMOVE */
#define LIBUFFD_EVENT_UNMAP 0x16  /* a range was unmapped; FEATURE_EVENT_UNMAP */
#define LIBUFFD_EVENT_MALFORMED 0 /* a message of known type that makes no sense: see words */

struct libuffd_fault {
	uint64_t address; /* masked to the page unless EXACT_ADDRESS is enabled */
	uint64_t flags;	  /* LIBUFFD_FAULT_*, and bits that are newer */
	uint32_t thread;  /* the faulter, in its own pid namespace, if THREAD_ID is enabled */
	uint32_t reserved;
};

struct libuffd_child {
	int32_t fd; /* the child's userfaultfd; owned by handle unless that is NULL */
	uint32_t reserved;
	union {
		struct libuffd *handle; /* yours to close */
		uint64_t handle_space;	/* keeps the layout equal on 32 and 64 bits */
	};
};

struct libuffd_remap {
	uint64_t from, to, len; /* len in bytes: of the old mapping */
};

struct libuffd_span {
	uint64_t start, end; /* the end is exclusive */
};

/* One message, decoded. 64 bytes on every architecture; what is not named is zero. */
struct libuffd_event {
	uint32_t type; /* LIBUFFD_EVENT_*, or a number newer than this header: see words */
	uint32_t reserved;
	union {
		struct libuffd_fault fault;
		struct libuffd_child fork;
		struct libuffd_remap remap;
		struct libuffd_span remove; /* REMOVE and UNMAP */
		uint64_t words[3];	    /* the message's argument, as the kernel sent it */
		uint64_t space[7];
	};
};

/*
 * Read up to @cap events with one read(2). Return how many, at least 1.
 *
 * The kernel hands out pending faults first and then other events, whatever their age: apply the
 * events of a batch before its faults. While a FORK, REMAP, REMOVE or UNMAP is unread its thread
 * sleeps, and every resolving call answers -EAGAIN: read until -EAGAIN before trying again.
 *
 * An event of type FORK brings a handle that the caller must close: as long as any descriptor of
 * the child's is open its memory waits for answers. If there was no memory for the handle, it is
 * NULL and fd is an open descriptor that is the caller's to adopt or close: nothing is lost.
 *
 * Unlike a fault, an event cannot be read a second time: @ev must be writable memory, and must not
 * lie in a range that is registered.
 *   -EAGAIN   nothing to read (non-blocking descriptor); never 0. poll(2) may have said otherwise:
 *             another thread was faster, or the fault was resolved meanwhile
 *   -EINVAL   @u or @ev is NULL, or @cap is 0
 *   -EINTR    a signal came before anything was read
 *   -EMFILE -ENFILE -ENOMEM  no descriptor to be had for a FORK's child: the event stays queued and
 *             the forking thread asleep; free a descriptor and read again
 *   -EFAULT   @ev is not writable
 *   -EBADMSG  what came is no message: the descriptor was replaced by another file's
 */
LIBUFFD_EXPORT int libuffd_read_events(const struct libuffd *u, struct libuffd_event *ev,
				       size_t cap);

/*
 * Decode one message of 32 bytes that was read by other means, such as io_uring. Pure: no system
 * call; a FORK's descriptor is left as a number in fork.fd, which libuffd_adopt() takes. @msg need
 * not be aligned, and may not overlap @out. An unknown type is passed on with its three words.
 * Signal-safe.
 *   -EINVAL   @msg or @out is NULL
 *   -EBADMSG  @len is not 32; or the ranges of a REMAP, REMOVE or UNMAP are empty or wrap, or the
 *             descriptor of a FORK is negative. @out then is of type LIBUFFD_EVENT_MALFORMED
 */
LIBUFFD_EXPORT int libuffd_decode(const void *msg, size_t len, struct libuffd_event *out);

/* "fault", "fork", "remap", "remove", "unmap", "malformed"; NULL for another type. */
LIBUFFD_EXPORT const char *libuffd_event_name(uint32_t type);

/* ---- Resolving: one call, one ioctl -------------------------------------------------------- */

/*
 * These tell exactly what the kernel said; libuffd_resolve() below is what most callers want.
 *
 * For copy, zeropage, move, continue and poison: 0 means all of it, with *done == len. -EAGAIN
 * with *done > 0 means that the first *done bytes were handled and their waiters woken; repeat
 * with the rest to learn why it stopped. Any other error, and -EAGAIN with *done == 0, means
 * nothing was done. NO ERROR WAKES ANYBODY, -EEXIST and -ENOENT included: call libuffd_wake().
 * @done must not be NULL (-EINVAL). Signal-safe, all of them.
 *
 * Errors that they share:
 *   -EAGAIN   the layout is changing (a FORK, REMAP, REMOVE or UNMAP is in flight): read events
 *             until empty, then try again a little later, because nothing will tell when it is
 *             over. Or a passing race in the page tables: try again at once. This check comes
 *             before the arguments are looked at, so it can hide an -EINVAL
 *   -EINVAL   an unknown flag; an unaligned, empty or wrapping range; an operation that this kernel
 *             or this kind of memory does not have
 *   -ENOENT   the range is not inside one mapping that is registered with @u: split it, or it is
 *             gone. Wake its waiters, so that they see what became of their memory
 *   -EEXIST   a page is there already: wake its waiters, they will find it
 *   -ESRCH    the process has exited
 *   -ENOMEM   out of memory (or, from 7.2, beyond the end of a shmem file)
 *   -EINTR    the caller is being killed
 */

#define LIBUFFD_COPY_DONTWAKE (UINT64_C(1) << 0)
#define LIBUFFD_COPY_WP (UINT64_C(1) << 1) /* install write-protected; the range must have WP */

/*
 * Install pages with bytes from @src, of any alignment (UFFDIO_COPY). Overwrites write-protection
 * (unless LIBUFFD_COPY_WP is given) and poison that was put on an absent page. @src must not lie
 * in memory that is itself missing under the same handler: that waits for ever.
 *   -EFAULT  @src is not readable; or the end of a shmem file (-ENOMEM from 7.2)
 */
LIBUFFD_EXPORT int libuffd_copy(const struct libuffd *u, uint64_t dst, const void *src, size_t len,
				uint64_t flags, size_t *done);

#define LIBUFFD_ZEROPAGE_DONTWAKE (UINT64_C(1) << 0)

/*
 * Install zero pages (UFFDIO_ZEROPAGE). Not for hugetlb (-EINVAL): copy zeros there. A protected
 * absent page is -EEXIST in private memory, and loses its protection in shared memory.
 */
LIBUFFD_EXPORT int libuffd_zeropage(const struct libuffd *u, uint64_t dst, size_t len,
				    uint64_t flags, size_t *done);

#define LIBUFFD_MOVE_DONTWAKE (UINT64_C(1) << 0)
#define LIBUFFD_MOVE_ALLOW_SRC_HOLES (UINT64_C(1) << 1)

/*
 * Move pages from @src to @dst, both in the caller's own address space and in private anonymous
 * memory of equal protection (UFFDIO_MOVE, 6.8). FEATURE_MOVE says that the kernel has it, and need not be
 * enabled.
 *   -EBUSY   a source page is pinned (io_uring fixed buffers) or shared after a fork: copy instead
 *   -ENOENT  also: a hole in the source without LIBUFFD_MOVE_ALLOW_SRC_HOLES, or nothing mapped there
 *   -EFAULT  a source page that is neither in memory nor in swap, such as a poisoned one
 *   -EINVAL  also: more than one mapping on either side, or none that is registered; not the
 *            caller's address space; protection or mlock state differ
 */
LIBUFFD_EXPORT int libuffd_move(const struct libuffd *u, uint64_t dst, uint64_t src, size_t len,
				uint64_t flags, size_t *done);

#define LIBUFFD_CONTINUE_DONTWAKE (UINT64_C(1) << 0)
#define LIBUFFD_CONTINUE_WP (UINT64_C(1) << 1) /* 6.4: map write-protected */

/*
 * Map what is in the page cache already (UFFDIO_CONTINUE, 5.13; shmem and hugetlb).
 *   -EFAULT  no page in the page cache
 *   -EIO     the page is poisoned by the hardware
 */
LIBUFFD_EXPORT int libuffd_continue(const struct libuffd *u, uint64_t dst, size_t len,
				    uint64_t flags, size_t *done);

#define LIBUFFD_POISON_DONTWAKE (UINT64_C(1) << 0)

/*
 * Let every access to absent pages fail with SIGBUS, system calls with EFAULT (UFFDIO_POISON, 6.6):
 * the honest answer when the bytes are lost. MADV_DONTNEED or libuffd_copy() takes it back.
 * FEATURE_POISON says that the kernel has it, and need not be enabled.
 */
LIBUFFD_EXPORT int libuffd_poison(const struct libuffd *u, uint64_t dst, size_t len, uint64_t flags,
				  size_t *done);

#define LIBUFFD_WRITEPROTECT_WP (UINT64_C(1) << 0) /* protect; without it: unprotect and wake */
#define LIBUFFD_WRITEPROTECT_DONTWAKE (UINT64_C(1) << 1) /* only when unprotecting */

/*
 * Protect a range against writes, or let them through again (UFFDIO_WRITEPROTECT, 5.7). There is
 * no progress: after an error a part may be protected, and repeating is harmless. Holds the
 * address space's lock throughout: go through long ranges in pieces. Absent pages of anonymous
 * memory are skipped silently unless WP_UNPOPULATED is enabled.
 *   -ENOENT  a part is not registered for WP (what came before it was changed); up to 6.1 also: more
 *            than one mapping
 */
LIBUFFD_EXPORT int libuffd_writeprotect(const struct libuffd *u, uint64_t start, size_t len,
					uint64_t flags);

#define LIBUFFD_RWPROTECT_RWP (UINT64_C(1) << 0)      /* protect; without it: unprotect and wake */
#define LIBUFFD_RWPROTECT_DONTWAKE (UINT64_C(1) << 1) /* only when unprotecting */

/*
 * Make the present pages of a range fault at the next access of any kind, or stop that
 * (UFFDIO_RWPROTECT, 7.3; needs FEATURE_RWP). Absent pages are skipped. All or nothing.
 *   -ENOENT  a part is not registered for RWP
 */
LIBUFFD_EXPORT int libuffd_rwprotect(const struct libuffd *u, uint64_t start, size_t len,
				     uint64_t flags);

/*
 * Wake the threads that wait for pages of a range; they access again, and fault again if there is
 * still cause (UFFDIO_WAKE). With EXACT_ADDRESS wake the whole huge page of a hugetlb fault.
 * Harmless where nobody waits or nothing is mapped. Signal-safe.
 *   -EINVAL  an unaligned, empty or wrapping range
 */
LIBUFFD_EXPORT int libuffd_wake(const struct libuffd *u, uint64_t start, size_t len);

/*
 * Switch features on and off while running (UFFDIO_SET_MODE, 7.3): so far RWP_ASYNC only, and it
 * needs RWP. libuffd_features() keeps telling what the handshake enabled. Enabling wakes every
 * waiter: their faults arrive twice. Signal-safe.
 *   -EINVAL  a bit in both masks, another feature, RWP is not enabled, or a kernel before 7.3
 */
LIBUFFD_EXPORT int libuffd_set_mode(const struct libuffd *u, uint64_t enable, uint64_t disable);

/* ---- Resolving, correct by construction ---------------------------------------------------- */

#define LIBUFFD_ANSWER_COPY 1	     /* bytes from data */
#define LIBUFFD_ANSWER_ZERO 2	     /* zeros, hugetlb included */
#define LIBUFFD_ANSWER_CONTINUE 3    /* what is in the page cache */
#define LIBUFFD_ANSWER_MOVE 4	     /* pages from address `from` */
#define LIBUFFD_ANSWER_POISON 5	     /* the bytes are lost: SIGBUS */
#define LIBUFFD_ANSWER_PROTECT 6     /* write-protect (nobody waits for this) */
#define LIBUFFD_ANSWER_UNPROTECT 7   /* let writes through */
#define LIBUFFD_ANSWER_RWPROTECT 8   /* read-write-protect (nobody waits for this) */
#define LIBUFFD_ANSWER_RWUNPROTECT 9 /* let accesses through */

#define LIBUFFD_RESOLVE_DONTWAKE (UINT64_C(1) << 0) /* wake nobody; the caller will */
/*
 * Install write-protected (COPY, ZERO, CONTINUE). A page that is there already is protected too
 * before its waiters are woken, so that the promise holds for all of the range; except with
 * WP_ASYNC, where protecting again would erase the record that the page was written.
 */
#define LIBUFFD_RESOLVE_WP (UINT64_C(1) << 1)
#define LIBUFFD_RESOLVE_ALLOW_SRC_HOLES (UINT64_C(1) << 2) /* MOVE */

struct libuffd_answer {
	uint32_t size;
	uint32_t kind;	/* LIBUFFD_ANSWER_* */
	uint64_t start; /* in the target; a multiple of page_size */
	uint64_t len;	/* bytes; a multiple of page_size, not 0 */
	uint64_t flags; /* LIBUFFD_RESOLVE_* */
	/*
	 * Page size of the memory, in bytes: 0 for the system's, the huge page size for hugetlb (it
	 * must be right there: what is already present is stepped over by this much).
	 */
	uint64_t page_size;
	union {
		uint64_t from;	  /* MOVE: source address, a multiple of page_size */
		const void *data; /* COPY: len bytes, of any alignment */
	};
};
/* clang-format off */
#define LIBUFFD_ANSWER_INIT { sizeof(struct libuffd_answer), 0, 0, 0, 0, 0, { 0 } }
/* clang-format on */

/*
 * Answer one fault, or fill one background range. Goes on after partial progress; treats what is
 * there already as done; splits where the kernel takes one mapping only; goes through protection
 * in pieces, so that the address space's lock is free in between; tries again what failed in a
 * passing race; supplies zeros to hugetlb and to write-protected installs by copying; and wakes
 * everybody whose page is there or will never be (unless told DONTWAKE).
 *
 * Bytes and protected zeros take poison back, and so do plain zeros in shared memory, in hugetlb and
 * in a range registered for WP: do not answer what was poisoned, not even who asks for it. Whoever
 * found nothing there a moment before may ask behind the poison: answer him with poison again.
 *
 * *@done (may be NULL) gets the bytes from start that are answered. The page at start + *done is
 * the one that failed: go on there, give it another answer, or pass over it.
 *
 * Return 0 when all of it is answered, or
 *   -EAGAIN   the layout is changing: read events until empty, then call again for the rest, a
 *             little later. The rest's waiters still wait
 *   -ENOENT   the page at start + *done is not registered with @u (unmapped, unregistered; for MOVE
 *             that is -EINVAL); or for MOVE its source is a hole. Waiters in the rest were woken:
 *             they fail, or fault again
 *   -ESRCH    the process has exited
 *   -EINVAL   @u or @answer is NULL, data is NULL for COPY, unknown kind or flag, a flag that does
 *             not go with the kind, DONTWAKE with PROTECT or RWPROTECT, start, len or page_size
 *             unaligned, zero or wrapping; or the kernel's refusal (the operation does not exist
 *             for this memory or kernel, WP without that mode)
 *   -E2BIG    @answer is newer than the library and uses what it does not know
 *   -EBUSY    MOVE: the source is pinned or shared; answer with COPY
 *   -EFAULT   COPY: data is not readable, or beyond the end of a shmem file; CONTINUE: no page in
 *             the page cache; MOVE: a source page that is neither in memory nor in swap. Waiters
 *             still wait: give another answer
 *   -EIO      CONTINUE: the page is poisoned by the hardware. Waiters still wait
 *   -ENOMEM   out of memory. Waiters still wait
 *   -EINTR    the caller is being killed
 *
 * Costs one ioctl when nothing is in the way. Signal-safe. Stands on the calls above.
 */
LIBUFFD_EXPORT int libuffd_resolve(const struct libuffd *u, const struct libuffd_answer *answer,
				   size_t *done);

/*
 * For the caller's own SIGBUS handler, with FEATURE_SIGBUS enabled: answer a fault in the thread
 * that took it, with no message and no other thread: the cheapest fault there is. Mind that system
 * calls that touch an absent page then fail with EFAULT.
 *
 * @region is an answer for a whole region (COPY, ZERO, CONTINUE, MOVE or POISON): if @address lies in it,
 * the page there is answered, with as many pages of an aligned window of @window bytes as lie in
 * the region (0: one page; else a power of two, and a multiple of the page size). @address and
 * @code are si_addr and si_code of the handler's siginfo_t.
 *
 * Where many threads fault at once, spare the kernel's locks: install the handler with SA_NODEFER and
 * an empty mask, and give the memory of each thread a userfaultfd of its own.
 *
 * Return 1 if the fault was ours: return from the handler, and the access goes ahead (or faults
 * again, if the layout was changing: the thread that reads events must be running). 0 if it was
 * not: the address lies elsewhere, or the signal tells of a real hardware or poison error; try the
 * next region, then the handler that was there before. A negative errno: it was ours and cannot be
 * answered, as libuffd_resolve() says; do not return from the handler, the access would only fault again. errno is
 * preserved. Signal-safe.
 */
LIBUFFD_EXPORT int libuffd_sigbus(const struct libuffd *u, const struct libuffd_answer *region,
				  size_t window, uint64_t address, int code);

/* ---- Scanning: what was written, what was used (PAGEMAP_SCAN, 6.7) -------------------------- */

/* Categories of a page (PAGE_IS_*). */
#define LIBUFFD_PAGE_WPALLOWED (UINT64_C(1) << 0) /* in a range registered for WP with WP_ASYNC */
#define LIBUFFD_PAGE_WRITTEN (UINT64_C(1) << 1)	  /* written since it was protected */
#define LIBUFFD_PAGE_FILE (UINT64_C(1) << 2)
#define LIBUFFD_PAGE_PRESENT (UINT64_C(1) << 3)
#define LIBUFFD_PAGE_SWAPPED (UINT64_C(1) << 4)
#define LIBUFFD_PAGE_PFNZERO (UINT64_C(1) << 5)
#define LIBUFFD_PAGE_HUGE (UINT64_C(1) << 6)
#define LIBUFFD_PAGE_SOFT_DIRTY (UINT64_C(1) << 7)
#define LIBUFFD_PAGE_GUARD (UINT64_C(1) << 8)	 /* between 6.12 and 6.18 */
#define LIBUFFD_PAGE_ACCESSED (UINT64_C(1) << 9) /* 7.3: used since it was read-write-protected */

/* The name of one category: "written", "present", ...; NULL for another. Signal-safe. */
LIBUFFD_EXPORT const char *libuffd_page_name(uint64_t bit);

/* Protect each reported page again in the same step: no write in between is lost. */
#define LIBUFFD_SCAN_PROTECT (UINT64_C(1) << 0)
/* Stop at the first mapping that WP_ASYNC does not watch, instead of passing over it. */
#define LIBUFFD_SCAN_CHECK_WPASYNC (UINT64_C(1) << 1)

struct libuffd_scan_range {
	uint64_t start, end; /* the end is exclusive */
	uint64_t categories; /* those of report that hold for the range */
};

/* A page is listed if it has all of `all`, and one of `any` unless that is 0. */
struct libuffd_scan_args {
	uint32_t size;
	uint32_t reserved; /* zero */
	uint64_t flags;	   /* LIBUFFD_SCAN_* */
	uint64_t start;	   /* page-aligned */
	uint64_t end;	   /* exclusive */
	uint64_t all;	   /* LIBUFFD_PAGE_* */
	uint64_t any;
	uint64_t inverted; /* categories whose absence counts as presence */
	uint64_t report;   /* categories to tell of; ranges that differ in them are kept apart */
};
/* clang-format off */
#define LIBUFFD_SCAN_ARGS_INIT { sizeof(struct libuffd_scan_args), 0, 0, 0, 0, 0, 0, 0, 0 }
/* clang-format on */

struct libuffd_scanner;

/*
 * Get ready to scan a process; 0 is the caller. Another process needs the right to trace it.
 * Return 0 and the scanner in *@out, which the caller must close; or NULL and
 *   -EINVAL  @out is NULL, or @pid is negative
 *   -ENOTTY  the kernel has no PAGEMAP_SCAN (before 6.7): there is libuffd_scan_open_pagemap()
 *   -ENOENT  no such process, or /proc is not mounted
 *   -EACCES -EPERM  not permitted to look into that process
 *   -ESRCH   it has exited
 *   -EMFILE -ENFILE -ENOMEM  out of descriptors or memory
 */
LIBUFFD_EXPORT int libuffd_scan_open(pid_t pid, struct libuffd_scanner **out);

/*
 * The same by /proc/PID/pagemap, which every kernel has: for one without PAGEMAP_SCAN. It takes eight bytes of reading for
 * each page of the range, whether or not there is one, and libuffd_scan() with it tells less:
 * - Categories are PRESENT, SWAPPED and FILE, and from 5.14 on WRITTEN, if a userfaultfd can be opened for a moment to find
 *   out that this kernel tells: libuffd_scan_categories() says. With the ioctl there is always WPALLOWED among them, and
 *   with this never.
 * - A page that is neither PRESENT nor SWAPPED is not listed, and not WRITTEN: addresses at which nothing is mapped look the
 *   same. Of shared memory that is a page, too, that was written and then swapped out.
 * - It protects nothing. WRITTEN is a page that is not protected, also in memory that is registered for nothing.
 * Errors as libuffd_scan_open(), but for -ENOTTY.
 */
LIBUFFD_EXPORT int libuffd_scan_open_pagemap(pid_t pid, struct libuffd_scanner **out);

/* The categories that can be asked for; 0 if @s is NULL. */
LIBUFFD_EXPORT uint64_t libuffd_scan_categories(const struct libuffd_scanner *s);

/*
 * List the pages of [start, end) that match, as ranges in ascending order, into @out. Return how
 * many, at most @cap; 0 is no error. *@walked (not NULL) gets where the scan stopped: call again
 * with it as start until it is end. It never makes a range appear twice. On failure it is start.
 * With LIBUFFD_SCAN_PROTECT what is returned has been protected: do not drop it.
 * Several threads may use one scanner.
 *
 * Two traps of the kernel's lie where LIBUFFD_SCAN_PROTECT meets hugetlb:
 * - It protects no part of a huge page. Begin and end between huge pages. One that matches, and of
 *   which the range has a part only, is not listed and stays as it was: the scan passes over it if
 *   others follow, and otherwise stops there, and called again with it as start says -EINVAL.
 *   To some kernels (6.18.15) every page of 1 GiB is such a part.
 * - Some kernels (6.18.15; not 6.12.118, nor 7.2) never return, and the caller cannot be killed, when a
 *   page matches for which there is no page table: nothing was ever touched or protected in the
 *   same GiB (where a page has 4 KiB). So protect all of it with libuffd_writeprotect() before the
 *   first scan; or let no absent page match: of WRITTEN, PRESENT and SWAPPED have one in `all`, or
 *   nothing but these in `any`, and none of them in `inverted`. To ask for all of WPALLOWED and
 *   WRITTEN is safe.
 *
 *   -EINVAL  NULL, @cap is 0, an unknown flag, start unaligned or after end, or a category that
 *            this kernel does not know; or PROTECT, and at start lies a part of a huge page of
 *            hugetlb that matches and cannot be protected. What was protected before it was
 *            returned first, as a success
 *   -EOPNOTSUPP  libuffd_scan_open_pagemap(), and a flag, a category that is not told, or masks that a page matches which is
 *            not there
 *   -E2BIG   @args is newer than the library and uses what it does not know
 *   -EPERM   CHECK_WPASYNC, and a mapping in the range is not watched. If pages before it were
 *            protected in the same call they are returned first, as a success; the error comes when
 *            nothing is held back
 *   -ESRCH   the process has exited, or does so just then: nothing is listed that is a part of what there was
 *   -EFAULT  @out is not writable
 *   -EINTR -ENOMEM
 */
LIBUFFD_EXPORT int libuffd_scan(struct libuffd_scanner *s, const struct libuffd_scan_args *args,
				struct libuffd_scan_range *out, size_t cap, uint64_t *walked);

/* NULL is allowed. */
LIBUFFD_EXPORT void libuffd_scan_close(struct libuffd_scanner *s);

/* ---- Handing a userfaultfd to another process ----------------------------------------------- */

/*
 * Send a duplicate of the descriptor, with @len bytes of payload, over a connected Unix socket
 * (SCM_RIGHTS). The handle stays the caller's. SOCK_SEQPACKET keeps messages apart; on SOCK_STREAM
 * the payload must tell its own length: see libuffd_recv_more(). If the socket is non-blocking and
 * full in the middle of a payload the call waits for it. Never raises SIGPIPE.
 *   -EINVAL   @u or @payload is NULL, or @len is 0 (a descriptor cannot travel alone)
 *   -EAGAIN   non-blocking socket, nothing sent
 *   -EPIPE -ECONNRESET -ENOTCONN  the peer is gone. If a part was sent, so was the descriptor
 *   -EMSGSIZE  longer than one packet can be
 *   -ENOTSOCK  not a socket
 *   -EOPNOTSUPP  not a Unix socket: others would send the bytes and forget the descriptor
 *   -ETOOMANYREFS  too many descriptors of this user are on their way (RLIMIT_NOFILE)
 *   -EBADF    @sock is not open
 *   -EINTR    a signal came before anything was sent
 *   -ENOBUFS -ENOMEM
 */
LIBUFFD_EXPORT int libuffd_send(int sock, const struct libuffd *u, const void *payload, size_t len);

/*
 * Receive one message with exactly one userfaultfd, as a handle that knows what its owner enabled.
 * The descriptor is close-on-exec. *@len gets the bytes of payload received. On SOCK_STREAM these
 * may be a part only, even one byte: libuffd_recv_more() gets the rest. On any failure every
 * descriptor that came is closed again, and the message is lost.
 *   -EINVAL   a NULL pointer, or @cap is 0; a SOCK_STREAM that is not connected
 *   -EAGAIN   non-blocking socket, nothing there
 *   -EINTR    a signal handler ran before anything came
 *   -ECONNRESET  the peer closed the connection
 *   -EBADMSG  no descriptor, more than one, or descriptors were cut off
 *   -EMSGSIZE the packet is longer than @cap
 *   -ENOTTY   the descriptor is not a userfaultfd
 *   -EOPNOTSUPP  its owner has not done the handshake
 *   -ENOTSOCK  not a socket
 *   -EBADF    not a descriptor
 *   -ENOTCONN  a SOCK_SEQPACKET that is not connected
 *   -ENOENT -EMFILE -ENFILE -ENOMEM  as for libuffd_adopt()
 */
LIBUFFD_EXPORT int libuffd_recv(int sock, void *payload, size_t cap, size_t *len,
				struct libuffd **out);

/* Do not return before all of @cap bytes are there. */
#define LIBUFFD_RECV_ALL (UINT64_C(1) << 0)

/*
 * Receive more of a payload whose descriptor libuffd_recv() has got from a SOCK_STREAM: what is
 * there, up to @cap bytes, waiting for the first of them; or, with LIBUFFD_RECV_ALL, exactly @cap
 * bytes, joined from as many parts as they come in (none at once if @cap is 0). No byte beyond
 * @cap is taken, so the next message keeps its own, and its descriptor.
 *
 * The socket knows no ends of messages: how long a payload is must stand in it, or both sides must
 * know. Where the end can be told only after reading up to it, ask without RECV_ALL, and let no second
 * message follow on the connection: what is read too far would be of that.
 *
 * *@done gets the bytes received, also on failure: after -EAGAIN and -EINTR go on behind them.
 *   -EINVAL   @done is NULL, an unknown flag, @payload is NULL; @cap is 0 without RECV_ALL;
 *             not connected
 *   -EAGAIN   non-blocking socket, and there is no more
 *   -EINTR    a signal handler ran
 *   -ECONNRESET  the peer closed the connection
 *   -EBADMSG  a descriptor came, or several. They are closed, and the bytes that they came with are
 *             lost; the kernel may have joined these with bytes before them. Close the connection
 *   -EPROTOTYPE  not a stream: packets come whole
 *   -ENOTSOCK  not a socket
 */
LIBUFFD_EXPORT int libuffd_recv_more(int sock, void *payload, size_t cap, uint64_t flags,
				     size_t *done);

/* ---- Who is at the other end ---------------------------------------------------------------- */

/* No pidfd: who it is, is all that is wanted. */
#define LIBUFFD_PEER_NO_PIDFD (UINT64_C(1) << 0)
/* A pidfd that is the peer's beyond doubt, or none: see by_number. */
#define LIBUFFD_PEER_EXACT (UINT64_C(1) << 1)

struct libuffd_peer_info {
	uint32_t size;
	int32_t pid;	    /* 0: not in the caller's pid namespace, nor below it */
	uint32_t uid, gid;  /* effective; as the caller's user namespace has them */
	int32_t pidfd;	    /* the caller closes it; -1: none */
	uint32_t by_number; /* 1: the pidfd was got by pid; 0: from the socket, or there is none */
};
/* clang-format off */
#define LIBUFFD_PEER_INFO_INIT { sizeof(struct libuffd_peer_info), 0, 0, 0, -1, 0 }
/* clang-format on */

/*
 * Who is at the other end of a connected Unix socket, SOCK_STREAM or SOCK_SEQPACKET (SO_PEERCRED),
 * with a pidfd, close-on-exec. A userfaultfd says nothing when the process dies whose memory it
 * serves: that is what the pidfd is for. It polls readable from the exit on; struct libuffd_space_opts
 * takes it, and so does pidfd_send_signal(2).
 *
 * The kernel remembers who called connect(2); if the peer is the one that accepted, who called
 * listen(2); of a socketpair(2), who made it. Whoever was given the socket since, or inherited it,
 * is not told of, and no more does the socket know whose memory a userfaultfd is of that came
 * over it: that both are one is for the two sides to agree.
 *
 * From 6.5 on the pidfd is the peer's own, whatever has become of its number (SO_PEERPIDFD). Before
 * that it is got by the number (pidfd_open(2), 5.3), and by_number is 1. The number may be another
 * process's by then. If the connection has been closed the call sees it, and fails; but if the peer
 * has exited, and somebody else holds its end of the connection (a child that inherited it, say),
 * then this can be any process. Do not kill by such a pidfd where that may be.
 *
 * @out->size is the caller's; as many bytes are filled in, zeros beyond what the library knows. On
 * failure pidfd is -1, and pid, uid and gid are told if they are known (pid 0 and uid -1 if not).
 *   -EINVAL   @out is NULL, or its size is bad (then nothing is written); an unknown flag, or both
 *   -EBADF    not a descriptor
 *   -ENOTSOCK  not a socket
 *   -EOPNOTSUPP  not a Unix socket, or one of datagrams
 *   -ENOTCONN  never connected, or a listening socket
 *   -ESRCH    the peer has exited, and was waited for (from 6.16 on there is a pidfd of it all the
 *             same, and readable); or, before 6.5, the connection has been closed
 *   -ENOPROTOOPT  this kernel has no SO_PEERPIDFD, and PEER_EXACT was asked for, or pid is 0
 *   -ENOSYS   before 5.3: no pidfds at all
 *   -EMFILE -ENFILE -ENOMEM  out of descriptors or memory
 */
LIBUFFD_EXPORT int libuffd_peer(int sock, uint64_t flags, struct libuffd_peer_info *out);

#ifdef __cplusplus
}
#endif

#endif
