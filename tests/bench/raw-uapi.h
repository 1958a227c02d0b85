/* SPDX-License-Identifier: MIT */
/* <linux/userfaultfd.h> for the raw sides of the benchmarks, with what older headers lack. */
#ifndef TESTS_BENCH_RAW_UAPI_H
#define TESTS_BENCH_RAW_UAPI_H

#include <linux/userfaultfd.h>
#include <sys/ioctl.h>

#ifndef UFFDIO_MOVE
struct uffdio_move {
	__u64 dst, src, len, mode;
	__s64 move;
};
#define UFFDIO_MOVE _IOWR(UFFDIO, 0x05, struct uffdio_move)
#endif

#ifndef UFFDIO_POISON
struct uffdio_poison {
	struct uffdio_range range;
	__u64 mode;
	__s64 updated;
};
#define UFFDIO_POISON _IOWR(UFFDIO, 0x08, struct uffdio_poison)
#endif

#ifndef UFFDIO_RWPROTECT
struct uffdio_rwprotect {
	struct uffdio_range range;
	__u64 mode;
};
#define UFFDIO_RWPROTECT _IOWR(UFFDIO, 0x09, struct uffdio_rwprotect)
#define UFFDIO_RWPROTECT_MODE_RWP ((__u64)1 << 0)
#endif

#ifndef UFFDIO_SET_MODE
struct uffdio_set_mode {
	__u64 enable, disable;
};
#define UFFDIO_SET_MODE _IOW(UFFDIO, 0x0a, struct uffdio_set_mode)
#endif

#endif
