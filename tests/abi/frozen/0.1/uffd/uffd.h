/* SPDX-License-Identifier: MIT */
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
struct libuffd;
#define LIBUFFD_FEATURE_PAGEFAULT_FLAG_WP (UINT64_C(1) << 0)
#define LIBUFFD_FEATURE_EVENT_FORK (UINT64_C(1) << 1)
#define LIBUFFD_FEATURE_EVENT_REMAP (UINT64_C(1) << 2)
#define LIBUFFD_FEATURE_EVENT_REMOVE (UINT64_C(1) << 3)
#define LIBUFFD_FEATURE_MISSING_HUGETLBFS (UINT64_C(1) << 4)
#define LIBUFFD_FEATURE_MISSING_SHMEM (UINT64_C(1) << 5)
#define LIBUFFD_FEATURE_EVENT_UNMAP (UINT64_C(1) << 6)
#define LIBUFFD_FEATURE_SIGBUS (UINT64_C(1) << 7)
#define LIBUFFD_FEATURE_THREAD_ID (UINT64_C(1) << 8)
#define LIBUFFD_FEATURE_MINOR_HUGETLBFS (UINT64_C(1) << 9)
#define LIBUFFD_FEATURE_MINOR_SHMEM (UINT64_C(1) << 10)
#define LIBUFFD_FEATURE_EXACT_ADDRESS (UINT64_C(1) << 11)
#define LIBUFFD_FEATURE_WP_HUGETLBFS_SHMEM (UINT64_C(1) << 12)
#define LIBUFFD_FEATURE_WP_UNPOPULATED (UINT64_C(1) << 13)
#define LIBUFFD_FEATURE_POISON (UINT64_C(1) << 14)
#define LIBUFFD_FEATURE_WP_ASYNC (UINT64_C(1) << 15)
#define LIBUFFD_FEATURE_MOVE (UINT64_C(1) << 16)
#define LIBUFFD_FEATURE_RWP (UINT64_C(1) << 17)
#define LIBUFFD_FEATURE_RWP_ASYNC (UINT64_C(1) << 18)
#define LIBUFFD_MODE_MISSING (UINT64_C(1) << 0)
#define LIBUFFD_MODE_WP (UINT64_C(1) << 1)
#define LIBUFFD_MODE_MINOR (UINT64_C(1) << 2)
#define LIBUFFD_MODE_RWP (UINT64_C(1) << 3)
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
#define LIBUFFD_FAULT_WRITE (UINT64_C(1) << 0)
#define LIBUFFD_FAULT_WP (UINT64_C(1) << 1)
#define LIBUFFD_FAULT_MINOR (UINT64_C(1) << 2)
#define LIBUFFD_FAULT_RWP (UINT64_C(1) << 3)
LIBUFFD_EXPORT const char *libuffd_feature_name(uint64_t bit);
LIBUFFD_EXPORT const char *libuffd_mode_name(uint64_t bit);
LIBUFFD_EXPORT const char *libuffd_ioctl_name(uint64_t bit);
LIBUFFD_EXPORT const char *libuffd_fault_name(uint64_t bit);
LIBUFFD_EXPORT const char *libuffd_version(void);
#define LIBUFFD_WAY_SYSCALL 0
#define LIBUFFD_WAY_DEVICE 1
#define LIBUFFD_WAY_USER_MODE 2
#define LIBUFFD_WAYS 3
#define LIBUFFD_WAY_ADOPTED 3
#define LIBUFFD_NOT_TRIED 1
struct libuffd_report {
	int32_t error[LIBUFFD_WAYS];
	int32_t handshake;
	uint64_t missing;
	uint64_t supported;
	uint64_t reserved[2];
};
#define LIBUFFD_OPEN_USER_MODE_OK (1u << 0)
#define LIBUFFD_OPEN_USER_MODE_ONLY (1u << 1)
#define LIBUFFD_OPEN_NO_SYSCALL (1u << 2)
#define LIBUFFD_OPEN_NO_DEVICE (1u << 3)
#define LIBUFFD_OPEN_BLOCKING (1u << 4)
struct libuffd_open_opts {
	uint32_t size;
	uint32_t flags;
	uint64_t required;
	uint64_t optional;
	union {
		struct libuffd_report *report;
		uint64_t report_space;
	};
};
#define LIBUFFD_OPEN_OPTS_INIT { sizeof(struct libuffd_open_opts), 0, 0, 0, { NULL } }
LIBUFFD_EXPORT int libuffd_open(const struct libuffd_open_opts *opts, struct libuffd **out);
LIBUFFD_EXPORT int libuffd_adopt(int fd, const struct libuffd_open_opts *opts,
				 struct libuffd **out);
LIBUFFD_EXPORT void libuffd_close(struct libuffd *u);
LIBUFFD_EXPORT int libuffd_fd(const struct libuffd *u);
LIBUFFD_EXPORT uint64_t libuffd_features(const struct libuffd *u);
LIBUFFD_EXPORT uint64_t libuffd_ioctls(const struct libuffd *u);
LIBUFFD_EXPORT int libuffd_way(const struct libuffd *u);
#define LIBUFFD_CURE_SYSCTL (UINT64_C(1) << 0)
#define LIBUFFD_CURE_CAPABILITY (UINT64_C(1) << 1)
#define LIBUFFD_CURE_DEVICE_MODE (UINT64_C(1) << 2)
#define LIBUFFD_CURE_DEVICE_NODE (UINT64_C(1) << 3)
#define LIBUFFD_CURE_DEVICE_CGROUP (UINT64_C(1) << 4)
#define LIBUFFD_CURE_SECCOMP (UINT64_C(1) << 5)
#define LIBUFFD_CURE_KERNEL (UINT64_C(1) << 6)
#define LIBUFFD_CURE_LIMIT (UINT64_C(1) << 7)
struct libuffd_way_caps {
	int32_t error;
	uint32_t reserved;
	uint64_t cures;
};
struct libuffd_caps {
	uint32_t size;
	uint32_t reserved;
	uint64_t features;
	uint64_t denied;
	uint64_t ioctls;
	struct libuffd_way_caps way[LIBUFFD_WAYS];
	int32_t sysctl;
	int32_t ptrace;
	int32_t seccomp;
	int32_t device;
	uint32_t device_mode;
	uint32_t device_uid;
	uint32_t device_gid;
	uint32_t page_size;
};
#define LIBUFFD_CAPS_INIT { sizeof(struct libuffd_caps), 0, 0, 0, 0, \
	{ { 0, 0, 0 }, { 0, 0, 0 }, { 0, 0, 0 } }, 0, 0, 0, 0, 0, 0, 0, 0 }
LIBUFFD_EXPORT int libuffd_probe(struct libuffd_caps *caps);
LIBUFFD_EXPORT const char *libuffd_cure_text(uint64_t bit);
LIBUFFD_EXPORT int libuffd_register(const struct libuffd *u, uint64_t start, uint64_t len,
				    uint64_t modes, uint64_t *ioctls);
LIBUFFD_EXPORT int libuffd_unregister(const struct libuffd *u, uint64_t start, uint64_t len);
#define LIBUFFD_EVENT_FAULT 0x12
#define LIBUFFD_EVENT_FORK 0x13
#define LIBUFFD_EVENT_REMAP 0x14
#define LIBUFFD_EVENT_REMOVE 0x15
#define LIBUFFD_EVENT_UNMAP 0x16
#define LIBUFFD_EVENT_MALFORMED 0
struct libuffd_fault {
	uint64_t address;
	uint64_t flags;
	uint32_t thread;
	uint32_t reserved;
};
struct libuffd_child {
	int32_t fd;
	uint32_t reserved;
	union {
		struct libuffd *handle;
		uint64_t handle_space;
	};
};
struct libuffd_remap {
	uint64_t from, to, len;
};
struct libuffd_span {
	uint64_t start, end;
};
struct libuffd_event {
	uint32_t type;
	uint32_t reserved;
	union {
		struct libuffd_fault fault;
		struct libuffd_child fork;
		struct libuffd_remap remap;
		struct libuffd_span remove;
		uint64_t words[3];
		uint64_t space[7];
	};
};
LIBUFFD_EXPORT int libuffd_read_events(const struct libuffd *u, struct libuffd_event *ev,
				       size_t cap);
LIBUFFD_EXPORT int libuffd_decode(const void *msg, size_t len, struct libuffd_event *out);
LIBUFFD_EXPORT const char *libuffd_event_name(uint32_t type);
#define LIBUFFD_COPY_DONTWAKE (UINT64_C(1) << 0)
#define LIBUFFD_COPY_WP (UINT64_C(1) << 1)
LIBUFFD_EXPORT int libuffd_copy(const struct libuffd *u, uint64_t dst, const void *src, size_t len,
				uint64_t flags, size_t *done);
#define LIBUFFD_ZEROPAGE_DONTWAKE (UINT64_C(1) << 0)
LIBUFFD_EXPORT int libuffd_zeropage(const struct libuffd *u, uint64_t dst, size_t len,
				    uint64_t flags, size_t *done);
#define LIBUFFD_MOVE_DONTWAKE (UINT64_C(1) << 0)
#define LIBUFFD_MOVE_ALLOW_SRC_HOLES (UINT64_C(1) << 1)
LIBUFFD_EXPORT int libuffd_move(const struct libuffd *u, uint64_t dst, uint64_t src, size_t len,
				uint64_t flags, size_t *done);
#define LIBUFFD_CONTINUE_DONTWAKE (UINT64_C(1) << 0)
#define LIBUFFD_CONTINUE_WP (UINT64_C(1) << 1)
LIBUFFD_EXPORT int libuffd_continue(const struct libuffd *u, uint64_t dst, size_t len,
				    uint64_t flags, size_t *done);
#define LIBUFFD_POISON_DONTWAKE (UINT64_C(1) << 0)
LIBUFFD_EXPORT int libuffd_poison(const struct libuffd *u, uint64_t dst, size_t len, uint64_t flags,
				  size_t *done);
#define LIBUFFD_WRITEPROTECT_WP (UINT64_C(1) << 0)
#define LIBUFFD_WRITEPROTECT_DONTWAKE (UINT64_C(1) << 1)
LIBUFFD_EXPORT int libuffd_writeprotect(const struct libuffd *u, uint64_t start, size_t len,
					uint64_t flags);
#define LIBUFFD_RWPROTECT_RWP (UINT64_C(1) << 0)
#define LIBUFFD_RWPROTECT_DONTWAKE (UINT64_C(1) << 1)
LIBUFFD_EXPORT int libuffd_rwprotect(const struct libuffd *u, uint64_t start, size_t len,
				     uint64_t flags);
LIBUFFD_EXPORT int libuffd_wake(const struct libuffd *u, uint64_t start, size_t len);
LIBUFFD_EXPORT int libuffd_set_mode(const struct libuffd *u, uint64_t enable, uint64_t disable);
#define LIBUFFD_ANSWER_COPY 1
#define LIBUFFD_ANSWER_ZERO 2
#define LIBUFFD_ANSWER_CONTINUE 3
#define LIBUFFD_ANSWER_MOVE 4
#define LIBUFFD_ANSWER_POISON 5
#define LIBUFFD_ANSWER_PROTECT 6
#define LIBUFFD_ANSWER_UNPROTECT 7
#define LIBUFFD_ANSWER_RWPROTECT 8
#define LIBUFFD_ANSWER_RWUNPROTECT 9
#define LIBUFFD_RESOLVE_DONTWAKE (UINT64_C(1) << 0)
#define LIBUFFD_RESOLVE_WP (UINT64_C(1) << 1)
#define LIBUFFD_RESOLVE_ALLOW_SRC_HOLES (UINT64_C(1) << 2)
struct libuffd_answer {
	uint32_t size;
	uint32_t kind;
	uint64_t start;
	uint64_t len;
	uint64_t flags;
	uint64_t page_size;
	union {
		uint64_t from;
		const void *data;
	};
};
#define LIBUFFD_ANSWER_INIT { sizeof(struct libuffd_answer), 0, 0, 0, 0, 0, { 0 } }
LIBUFFD_EXPORT int libuffd_resolve(const struct libuffd *u, const struct libuffd_answer *answer,
				   size_t *done);
LIBUFFD_EXPORT int libuffd_sigbus(const struct libuffd *u, const struct libuffd_answer *region,
				  size_t window, uint64_t address, int code);
#define LIBUFFD_PAGE_WPALLOWED (UINT64_C(1) << 0)
#define LIBUFFD_PAGE_WRITTEN (UINT64_C(1) << 1)
#define LIBUFFD_PAGE_FILE (UINT64_C(1) << 2)
#define LIBUFFD_PAGE_PRESENT (UINT64_C(1) << 3)
#define LIBUFFD_PAGE_SWAPPED (UINT64_C(1) << 4)
#define LIBUFFD_PAGE_PFNZERO (UINT64_C(1) << 5)
#define LIBUFFD_PAGE_HUGE (UINT64_C(1) << 6)
#define LIBUFFD_PAGE_SOFT_DIRTY (UINT64_C(1) << 7)
#define LIBUFFD_PAGE_GUARD (UINT64_C(1) << 8)
#define LIBUFFD_PAGE_ACCESSED (UINT64_C(1) << 9)
LIBUFFD_EXPORT const char *libuffd_page_name(uint64_t bit);
#define LIBUFFD_SCAN_PROTECT (UINT64_C(1) << 0)
#define LIBUFFD_SCAN_CHECK_WPASYNC (UINT64_C(1) << 1)
struct libuffd_scan_range {
	uint64_t start, end;
	uint64_t categories;
};
struct libuffd_scan_args {
	uint32_t size;
	uint32_t reserved;
	uint64_t flags;
	uint64_t start;
	uint64_t end;
	uint64_t all;
	uint64_t any;
	uint64_t inverted;
	uint64_t report;
};
#define LIBUFFD_SCAN_ARGS_INIT { sizeof(struct libuffd_scan_args), 0, 0, 0, 0, 0, 0, 0, 0 }
struct libuffd_scanner;
LIBUFFD_EXPORT int libuffd_scan_open(pid_t pid, struct libuffd_scanner **out);
LIBUFFD_EXPORT uint64_t libuffd_scan_categories(const struct libuffd_scanner *s);
LIBUFFD_EXPORT int libuffd_scan(struct libuffd_scanner *s, const struct libuffd_scan_args *args,
				struct libuffd_scan_range *out, size_t cap, uint64_t *walked);
LIBUFFD_EXPORT void libuffd_scan_close(struct libuffd_scanner *s);
LIBUFFD_EXPORT int libuffd_send(int sock, const struct libuffd *u, const void *payload, size_t len);
LIBUFFD_EXPORT int libuffd_recv(int sock, void *payload, size_t cap, size_t *len,
				struct libuffd **out);
#define LIBUFFD_RECV_ALL (UINT64_C(1) << 0)
LIBUFFD_EXPORT int libuffd_recv_more(int sock, void *payload, size_t cap, uint64_t flags,
				     size_t *done);
#define LIBUFFD_PEER_NO_PIDFD (UINT64_C(1) << 0)
#define LIBUFFD_PEER_EXACT (UINT64_C(1) << 1)
struct libuffd_peer_info {
	uint32_t size;
	int32_t pid;
	uint32_t uid, gid;
	int32_t pidfd;
	uint32_t by_number;
};
#define LIBUFFD_PEER_INFO_INIT { sizeof(struct libuffd_peer_info), 0, 0, 0, -1, 0 }
LIBUFFD_EXPORT int libuffd_peer(int sock, uint64_t flags, struct libuffd_peer_info *out);
#ifdef __cplusplus
}
#endif
#endif
