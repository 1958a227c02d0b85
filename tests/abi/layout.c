/* SPDX-License-Identifier: MIT */
/*
 * The layout that is promised, byte by byte. Compiled as C11 and as C++17, with the kernel's header
 * before ours, after it, and without it. A line here changes with a NEWS entry only.
 */
#if defined(KERNEL_FIRST)
#include <linux/userfaultfd.h>
#endif
#include <uffd/uffd.h>
#if defined(KERNEL_LAST)
#include <linux/userfaultfd.h>
#endif

#ifdef __cplusplus
#define SAME(a, b) static_assert((a) == (b), #a " != " #b)
#else
#define SAME(a, b) _Static_assert((a) == (b), #a " != " #b)
#endif
#define AT(type, field, offset) SAME(offsetof(struct type, field), offset)

SAME(sizeof(struct libuffd_report), 48);
AT(libuffd_report, handshake, 12);
AT(libuffd_report, missing, 16);
AT(libuffd_report, supported, 24);

SAME(sizeof(struct libuffd_open_opts), 32);
AT(libuffd_open_opts, flags, 4);
AT(libuffd_open_opts, required, 8);
AT(libuffd_open_opts, optional, 16);
AT(libuffd_open_opts, report, 24);

SAME(sizeof(struct libuffd_way_caps), 16);
AT(libuffd_way_caps, cures, 8);

SAME(sizeof(struct libuffd_caps), 112);
AT(libuffd_caps, features, 8);
AT(libuffd_caps, denied, 16);
AT(libuffd_caps, ioctls, 24);
AT(libuffd_caps, way, 32);
AT(libuffd_caps, sysctl, 80);
AT(libuffd_caps, ptrace, 84);
AT(libuffd_caps, seccomp, 88);
AT(libuffd_caps, device, 92);
AT(libuffd_caps, device_mode, 96);
AT(libuffd_caps, page_size, 108);

SAME(sizeof(struct libuffd_event), 64);
AT(libuffd_event, type, 0);
AT(libuffd_event, fault.address, 8);
AT(libuffd_event, fault.flags, 16);
AT(libuffd_event, fault.thread, 24);
AT(libuffd_event, fork.fd, 8);
AT(libuffd_event, fork.handle, 16);
AT(libuffd_event, remap.from, 8);
AT(libuffd_event, remap.to, 16);
AT(libuffd_event, remap.len, 24);
AT(libuffd_event, remove.start, 8);
AT(libuffd_event, remove.end, 16);
AT(libuffd_event, words, 8);

SAME(sizeof(struct libuffd_answer), 48);
AT(libuffd_answer, kind, 4);
AT(libuffd_answer, start, 8);
AT(libuffd_answer, len, 16);
AT(libuffd_answer, flags, 24);
AT(libuffd_answer, page_size, 32);
AT(libuffd_answer, data, 40);
AT(libuffd_answer, from, 40);

SAME(sizeof(struct libuffd_scan_range), 24);
AT(libuffd_scan_range, categories, 16);

SAME(sizeof(struct libuffd_scan_args), 64);
AT(libuffd_scan_args, flags, 8);
AT(libuffd_scan_args, start, 16);
AT(libuffd_scan_args, end, 24);
AT(libuffd_scan_args, all, 32);
AT(libuffd_scan_args, any, 40);
AT(libuffd_scan_args, inverted, 48);
AT(libuffd_scan_args, report, 56);

#if defined(KERNEL_FIRST) || defined(KERNEL_LAST)
/* Names of ours and of the kernel's side by side, and equal where both have them. */
SAME(LIBUFFD_FEATURE_SIGBUS, UFFD_FEATURE_SIGBUS);
SAME(LIBUFFD_EVENT_UNMAP, UFFD_EVENT_UNMAP);
SAME(LIBUFFD_MODE_WP, UFFDIO_REGISTER_MODE_WP);
SAME(LIBUFFD_IOCTL_API, UINT64_C(1) << _UFFDIO_API);
#endif

/* The initialisers initialise all: no warning, and the right size. */
int main(void)
{
	struct libuffd_open_opts opts = LIBUFFD_OPEN_OPTS_INIT;
	struct libuffd_caps caps = LIBUFFD_CAPS_INIT;
	struct libuffd_answer answer = LIBUFFD_ANSWER_INIT;
	struct libuffd_scan_args args = LIBUFFD_SCAN_ARGS_INIT;

	return !(opts.size == sizeof(opts) && !opts.report && caps.size == sizeof(caps) &&
		 answer.size == sizeof(answer) && !answer.data && args.size == sizeof(args));
}
