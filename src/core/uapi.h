/* SPDX-License-Identifier: MIT */
/*
 * The kernel's interface as this library speaks it. The code uses only the names below, so that
 * a build on old headers drives a new kernel to the full; wherever the headers at hand know a
 * thing too, the compiler proves that both are equal.
 */
#ifndef LIBUFFD_UAPI_H
#define LIBUFFD_UAPI_H

#include <stddef.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <linux/fs.h>
#include <linux/userfaultfd.h>

#include <uffd/uffd.h>

#define UAPI_API UINT64_C(0xaa)
#define UAPI_USER_MODE_ONLY 1		    /* flag of userfaultfd(2) */
#define UAPI_FEATURE_INITIALIZED (1u << 31) /* internal to the kernel; seen in fdinfo */
#define UAPI_MSG_SIZE 32

struct uapi_range {
	uint64_t start, len;
};

struct uapi_api {
	uint64_t api, features, ioctls;
};

struct uapi_register {
	struct uapi_range range;
	uint64_t mode, ioctls;
};

/* COPY and MOVE */
struct uapi_transfer {
	uint64_t dst, src, len, mode;
	int64_t out;
};

/* ZEROPAGE, CONTINUE and POISON */
struct uapi_fill {
	struct uapi_range range;
	uint64_t mode;
	int64_t out;
};

/* WRITEPROTECT and RWPROTECT */
struct uapi_protect {
	struct uapi_range range;
	uint64_t mode;
};

struct uapi_set_mode {
	uint64_t enable, disable;
};

/* What read(2) delivers; unaligned in places, hence the words. */
struct uapi_msg {
	uint8_t event, reserved1;
	uint16_t reserved2;
	uint32_t reserved3;
	uint64_t words[3];
};

struct uapi_scan {
	uint64_t size, flags, start, end, walk_end;
	uint64_t vec, vec_len, max_pages;
	uint64_t inverted, all, any, report;
};

#define UAPI_NR 0xaa
#define UAPI_IOC_NEW _IO(UAPI_NR, 0x00) /* on /dev/userfaultfd */
#define UAPI_IOC_API _IOWR(UAPI_NR, 0x3f, struct uapi_api)
#define UAPI_IOC_REGISTER _IOWR(UAPI_NR, 0x00, struct uapi_register)
#define UAPI_IOC_UNREGISTER _IOR(UAPI_NR, 0x01, struct uapi_range)
#define UAPI_IOC_WAKE _IOR(UAPI_NR, 0x02, struct uapi_range)
#define UAPI_IOC_COPY _IOWR(UAPI_NR, 0x03, struct uapi_transfer)
#define UAPI_IOC_ZEROPAGE _IOWR(UAPI_NR, 0x04, struct uapi_fill)
#define UAPI_IOC_MOVE _IOWR(UAPI_NR, 0x05, struct uapi_transfer)
#define UAPI_IOC_WRITEPROTECT _IOWR(UAPI_NR, 0x06, struct uapi_protect)
#define UAPI_IOC_CONTINUE _IOWR(UAPI_NR, 0x07, struct uapi_fill)
#define UAPI_IOC_POISON _IOWR(UAPI_NR, 0x08, struct uapi_fill)
#define UAPI_IOC_RWPROTECT _IOWR(UAPI_NR, 0x09, struct uapi_protect)
#define UAPI_IOC_SET_MODE _IOW(UAPI_NR, 0x0a, struct uapi_set_mode)
#define UAPI_IOC_PAGEMAP_SCAN _IOWR('f', 16, struct uapi_scan)

/* Of sockets, from 6.5 on: the peer's pidfd, and a pidfd of the sender beside each message. */
#if defined(__sparc__)
#define UAPI_SO_PEERPIDFD 0x0056
#elif defined(__hppa__)
#define UAPI_SO_PEERPIDFD 0x404b
#else
#define UAPI_SO_PEERPIDFD 77
#endif
#define UAPI_SCM_PIDFD 4

/* ---- Proof ---------------------------------------------------------------------------------- */

#define UAPI_SAME(ours, theirs) \
	_Static_assert((uint64_t)(ours) == (uint64_t)(theirs), #ours " is not the kernel's")
#define UAPI_SAME_FIELD(ours, field, theirs, kfield)                                    \
	_Static_assert(offsetof(struct ours, field) == offsetof(struct theirs, kfield), \
		       #ours "." #field " is not where the kernel has it")

_Static_assert(sizeof(struct uapi_msg) == UAPI_MSG_SIZE, "struct uffd_msg has 32 bytes");
_Static_assert(sizeof(struct uffd_msg) == UAPI_MSG_SIZE, "struct uffd_msg has 32 bytes");
UAPI_SAME_FIELD(uapi_msg, words[0], uffd_msg, arg.pagefault.flags);
UAPI_SAME_FIELD(uapi_msg, words[1], uffd_msg, arg.pagefault.address);
UAPI_SAME_FIELD(uapi_msg, words[2], uffd_msg, arg.pagefault.feat.ptid);
UAPI_SAME_FIELD(uapi_msg, words[0], uffd_msg, arg.fork.ufd);
UAPI_SAME_FIELD(uapi_msg, words[2], uffd_msg, arg.remap.len);
UAPI_SAME_FIELD(uapi_msg, words[1], uffd_msg, arg.remove.end);

UAPI_SAME(UAPI_API, UFFD_API);
/* The request numbers carry the size of the struct: equal numbers are equal sizes. */
UAPI_SAME(UAPI_IOC_API, UFFDIO_API);
UAPI_SAME(UAPI_IOC_REGISTER, UFFDIO_REGISTER);
UAPI_SAME(UAPI_IOC_UNREGISTER, UFFDIO_UNREGISTER);
UAPI_SAME(UAPI_IOC_WAKE, UFFDIO_WAKE);
UAPI_SAME(UAPI_IOC_COPY, UFFDIO_COPY);
UAPI_SAME_FIELD(uapi_transfer, out, uffdio_copy, copy);
UAPI_SAME_FIELD(uapi_transfer, mode, uffdio_copy, mode);
UAPI_SAME(UAPI_IOC_ZEROPAGE, UFFDIO_ZEROPAGE);
UAPI_SAME_FIELD(uapi_fill, out, uffdio_zeropage, zeropage);
UAPI_SAME(LIBUFFD_EVENT_FAULT, UFFD_EVENT_PAGEFAULT);
UAPI_SAME(LIBUFFD_EVENT_FORK, UFFD_EVENT_FORK);
UAPI_SAME(LIBUFFD_EVENT_REMAP, UFFD_EVENT_REMAP);
UAPI_SAME(LIBUFFD_EVENT_REMOVE, UFFD_EVENT_REMOVE);
UAPI_SAME(LIBUFFD_EVENT_UNMAP, UFFD_EVENT_UNMAP);
UAPI_SAME(LIBUFFD_FAULT_WRITE, UFFD_PAGEFAULT_FLAG_WRITE);
UAPI_SAME(LIBUFFD_FAULT_WP, UFFD_PAGEFAULT_FLAG_WP);
UAPI_SAME(LIBUFFD_MODE_MISSING, UFFDIO_REGISTER_MODE_MISSING);
UAPI_SAME(LIBUFFD_MODE_WP, UFFDIO_REGISTER_MODE_WP);
UAPI_SAME(LIBUFFD_COPY_DONTWAKE, UFFDIO_COPY_MODE_DONTWAKE);
UAPI_SAME(LIBUFFD_ZEROPAGE_DONTWAKE, UFFDIO_ZEROPAGE_MODE_DONTWAKE);
UAPI_SAME(LIBUFFD_FEATURE_PAGEFAULT_FLAG_WP, UFFD_FEATURE_PAGEFAULT_FLAG_WP);
UAPI_SAME(LIBUFFD_FEATURE_EVENT_FORK, UFFD_FEATURE_EVENT_FORK);
UAPI_SAME(LIBUFFD_FEATURE_EVENT_REMAP, UFFD_FEATURE_EVENT_REMAP);
UAPI_SAME(LIBUFFD_FEATURE_EVENT_REMOVE, UFFD_FEATURE_EVENT_REMOVE);
UAPI_SAME(LIBUFFD_FEATURE_MISSING_HUGETLBFS, UFFD_FEATURE_MISSING_HUGETLBFS);
UAPI_SAME(LIBUFFD_FEATURE_MISSING_SHMEM, UFFD_FEATURE_MISSING_SHMEM);
UAPI_SAME(LIBUFFD_FEATURE_EVENT_UNMAP, UFFD_FEATURE_EVENT_UNMAP);
UAPI_SAME(LIBUFFD_FEATURE_SIGBUS, UFFD_FEATURE_SIGBUS);
UAPI_SAME(LIBUFFD_FEATURE_THREAD_ID, UFFD_FEATURE_THREAD_ID);

#ifdef UFFDIO_WRITEPROTECT
UAPI_SAME(UAPI_IOC_WRITEPROTECT, UFFDIO_WRITEPROTECT);
UAPI_SAME(LIBUFFD_WRITEPROTECT_WP, UFFDIO_WRITEPROTECT_MODE_WP);
UAPI_SAME(LIBUFFD_WRITEPROTECT_DONTWAKE, UFFDIO_WRITEPROTECT_MODE_DONTWAKE);
UAPI_SAME(LIBUFFD_COPY_WP, UFFDIO_COPY_MODE_WP);
#endif
#ifdef UFFD_USER_MODE_ONLY
UAPI_SAME(UAPI_USER_MODE_ONLY, UFFD_USER_MODE_ONLY);
#endif
#ifdef UFFDIO_CONTINUE
UAPI_SAME(UAPI_IOC_CONTINUE, UFFDIO_CONTINUE);
UAPI_SAME_FIELD(uapi_fill, out, uffdio_continue, mapped);
UAPI_SAME(LIBUFFD_CONTINUE_DONTWAKE, UFFDIO_CONTINUE_MODE_DONTWAKE);
UAPI_SAME(LIBUFFD_MODE_MINOR, UFFDIO_REGISTER_MODE_MINOR);
UAPI_SAME(LIBUFFD_FAULT_MINOR, UFFD_PAGEFAULT_FLAG_MINOR);
#endif
#ifdef UFFDIO_CONTINUE_MODE_WP
UAPI_SAME(LIBUFFD_CONTINUE_WP, UFFDIO_CONTINUE_MODE_WP);
#endif
#ifdef UFFD_FEATURE_MINOR_HUGETLBFS
UAPI_SAME(LIBUFFD_FEATURE_MINOR_HUGETLBFS, UFFD_FEATURE_MINOR_HUGETLBFS);
#endif
#ifdef UFFD_FEATURE_MINOR_SHMEM
UAPI_SAME(LIBUFFD_FEATURE_MINOR_SHMEM, UFFD_FEATURE_MINOR_SHMEM);
#endif
#ifdef UFFD_FEATURE_EXACT_ADDRESS
UAPI_SAME(LIBUFFD_FEATURE_EXACT_ADDRESS, UFFD_FEATURE_EXACT_ADDRESS);
#endif
#ifdef UFFD_FEATURE_WP_HUGETLBFS_SHMEM
UAPI_SAME(LIBUFFD_FEATURE_WP_HUGETLBFS_SHMEM, UFFD_FEATURE_WP_HUGETLBFS_SHMEM);
#endif
#ifdef USERFAULTFD_IOC_NEW
UAPI_SAME(UAPI_IOC_NEW, USERFAULTFD_IOC_NEW);
#endif
#ifdef UFFD_FEATURE_WP_UNPOPULATED
UAPI_SAME(LIBUFFD_FEATURE_WP_UNPOPULATED, UFFD_FEATURE_WP_UNPOPULATED);
#endif
#ifdef UFFDIO_POISON
UAPI_SAME(UAPI_IOC_POISON, UFFDIO_POISON);
UAPI_SAME_FIELD(uapi_fill, out, uffdio_poison, updated);
UAPI_SAME(LIBUFFD_POISON_DONTWAKE, UFFDIO_POISON_MODE_DONTWAKE);
UAPI_SAME(LIBUFFD_FEATURE_POISON, UFFD_FEATURE_POISON);
#endif
#ifdef UFFD_FEATURE_WP_ASYNC
UAPI_SAME(LIBUFFD_FEATURE_WP_ASYNC, UFFD_FEATURE_WP_ASYNC);
#endif
#ifdef UFFDIO_MOVE
UAPI_SAME(UAPI_IOC_MOVE, UFFDIO_MOVE);
UAPI_SAME_FIELD(uapi_transfer, out, uffdio_move, move);
UAPI_SAME(LIBUFFD_MOVE_DONTWAKE, UFFDIO_MOVE_MODE_DONTWAKE);
UAPI_SAME(LIBUFFD_MOVE_ALLOW_SRC_HOLES, UFFDIO_MOVE_MODE_ALLOW_SRC_HOLES);
UAPI_SAME(LIBUFFD_FEATURE_MOVE, UFFD_FEATURE_MOVE);
#endif
#ifdef UFFDIO_RWPROTECT
UAPI_SAME(UAPI_IOC_RWPROTECT, UFFDIO_RWPROTECT);
UAPI_SAME(LIBUFFD_RWPROTECT_RWP, UFFDIO_RWPROTECT_MODE_RWP);
UAPI_SAME(LIBUFFD_RWPROTECT_DONTWAKE, UFFDIO_RWPROTECT_MODE_DONTWAKE);
UAPI_SAME(LIBUFFD_MODE_RWP, UFFDIO_REGISTER_MODE_RWP);
UAPI_SAME(LIBUFFD_FAULT_RWP, UFFD_PAGEFAULT_FLAG_RWP);
UAPI_SAME(LIBUFFD_FEATURE_RWP, UFFD_FEATURE_RWP);
UAPI_SAME(LIBUFFD_FEATURE_RWP_ASYNC, UFFD_FEATURE_RWP_ASYNC);
#endif
#ifdef UFFDIO_SET_MODE
UAPI_SAME(UAPI_IOC_SET_MODE, UFFDIO_SET_MODE);
#endif
#ifdef PAGEMAP_SCAN
UAPI_SAME(UAPI_IOC_PAGEMAP_SCAN, PAGEMAP_SCAN);
UAPI_SAME_FIELD(uapi_scan, walk_end, pm_scan_arg, walk_end);
UAPI_SAME_FIELD(uapi_scan, vec_len, pm_scan_arg, vec_len);
UAPI_SAME_FIELD(uapi_scan, inverted, pm_scan_arg, category_inverted);
UAPI_SAME_FIELD(uapi_scan, all, pm_scan_arg, category_mask);
UAPI_SAME_FIELD(uapi_scan, any, pm_scan_arg, category_anyof_mask);
UAPI_SAME_FIELD(uapi_scan, report, pm_scan_arg, return_mask);
UAPI_SAME(sizeof(struct libuffd_scan_range), sizeof(struct page_region));
UAPI_SAME(LIBUFFD_SCAN_PROTECT, PM_SCAN_WP_MATCHING);
UAPI_SAME(LIBUFFD_SCAN_CHECK_WPASYNC, PM_SCAN_CHECK_WPASYNC);
UAPI_SAME(LIBUFFD_PAGE_WPALLOWED, PAGE_IS_WPALLOWED);
UAPI_SAME(LIBUFFD_PAGE_WRITTEN, PAGE_IS_WRITTEN);
UAPI_SAME(LIBUFFD_PAGE_FILE, PAGE_IS_FILE);
UAPI_SAME(LIBUFFD_PAGE_PRESENT, PAGE_IS_PRESENT);
UAPI_SAME(LIBUFFD_PAGE_SWAPPED, PAGE_IS_SWAPPED);
UAPI_SAME(LIBUFFD_PAGE_PFNZERO, PAGE_IS_PFNZERO);
UAPI_SAME(LIBUFFD_PAGE_HUGE, PAGE_IS_HUGE);
UAPI_SAME(LIBUFFD_PAGE_SOFT_DIRTY, PAGE_IS_SOFT_DIRTY);
#endif
#ifdef PAGE_IS_GUARD
UAPI_SAME(LIBUFFD_PAGE_GUARD, PAGE_IS_GUARD);
#endif
#ifdef SO_PEERPIDFD
UAPI_SAME(UAPI_SO_PEERPIDFD, SO_PEERPIDFD);
#endif
#ifdef SCM_PIDFD
UAPI_SAME(UAPI_SCM_PIDFD, SCM_PIDFD);
#endif
#ifdef PAGE_IS_ACCESSED
UAPI_SAME(LIBUFFD_PAGE_ACCESSED, PAGE_IS_ACCESSED);
#endif

#endif
