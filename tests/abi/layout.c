/* SPDX-License-Identifier: MIT */
/*
 * The layout that is promised, byte by byte. Compiled as C11 and as C++17, with the kernel's header
 * before ours, after it, and without it. A line here changes with a NEWS entry only.
 */
#if defined(KERNEL_FIRST)
#include <linux/userfaultfd.h>
#endif
#include <uffd/uffd.h>
#include <uffd/server.h>
#include <uffd/snapshot.h>
#include <uffd/watch.h>
#include <uffd/workingset.h>
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

SAME(sizeof(struct libuffd_peer_info), 24);
AT(libuffd_peer_info, pid, 4);
AT(libuffd_peer_info, uid, 8);
AT(libuffd_peer_info, gid, 12);
AT(libuffd_peer_info, pidfd, 16);
AT(libuffd_peer_info, by_number, 20);

/* server.h */

/* No size in it, nor in libuffd_request: what is appended changes sizeof, and nothing that is there. */
SAME(sizeof(struct libuffd_notice), 64);
AT(libuffd_notice, type, 0);
AT(libuffd_notice, error, 4);
AT(libuffd_notice, space, 8);
AT(libuffd_notice, region, 16);
AT(libuffd_notice, address, 24);
AT(libuffd_notice, len, 32);
AT(libuffd_notice, other, 40);
AT(libuffd_notice, done, 48);
AT(libuffd_notice, reserved0, 52);
AT(libuffd_notice, reserved, 56);

SAME(sizeof(struct libuffd_server_opts), 48);
AT(libuffd_server_opts, flags, 4);
AT(libuffd_server_opts, engine, 8);
AT(libuffd_server_opts, threads, 12);
AT(libuffd_server_opts, placement, 16);
AT(libuffd_server_opts, depth, 20);
AT(libuffd_server_opts, workers, 24);
AT(libuffd_server_opts, notice, 32);
AT(libuffd_server_opts, ctx, 40);

SAME(sizeof(struct libuffd_space_opts), 16);
AT(libuffd_space_opts, flags, 4);
AT(libuffd_space_opts, pidfd, 8);
AT(libuffd_space_opts, unknown, 12);

SAME(sizeof(struct libuffd_region), 144);
AT(libuffd_region, flags, 4);
AT(libuffd_region, space, 8);
AT(libuffd_region, start, 16);
AT(libuffd_region, len, 24);
AT(libuffd_region, page_size, 32);
AT(libuffd_region, modes, 40);
AT(libuffd_region, offset, 48);
AT(libuffd_region, source, 56);
AT(libuffd_region, alias, 64);
AT(libuffd_region, written, 72);
AT(libuffd_region, ctx, 80);
AT(libuffd_region, key, 88);
AT(libuffd_region, on_error, 96);
AT(libuffd_region, retries, 100);
AT(libuffd_region, retry_ns, 104);
AT(libuffd_region, window, 112);
AT(libuffd_region, ahead, 120);
AT(libuffd_region, state_fd, 128);
AT(libuffd_region, state_offset, 136);

SAME(sizeof(struct libuffd_fill_opts), 32);
AT(libuffd_fill_opts, flags, 4);
AT(libuffd_fill_opts, depth, 8);
AT(libuffd_fill_opts, chunk, 16);
AT(libuffd_fill_opts, rate, 24);

SAME(sizeof(struct libuffd_request), 64);
AT(libuffd_request, id, 0);
AT(libuffd_request, offset, 8);
AT(libuffd_request, len, 16);
AT(libuffd_request, buffer, 24);
AT(libuffd_request, space, 32);
AT(libuffd_request, region, 40);
AT(libuffd_request, address, 48);
AT(libuffd_request, reserved, 56);

SAME(sizeof(struct libuffd_record_entry), 24);
AT(libuffd_record_entry, offset, 8);
AT(libuffd_record_entry, len, 16);

SAME(sizeof(struct libuffd_stats), 496);
AT(libuffd_stats, faults_missing, 8);
AT(libuffd_stats, faults_minor, 16);
AT(libuffd_stats, faults_wp, 24);
AT(libuffd_stats, faults_unknown, 32);
AT(libuffd_stats, duplicates, 40);
AT(libuffd_stats, bytes, 48);
AT(libuffd_stats, installed, 56);
AT(libuffd_stats, zeros, 64);
AT(libuffd_stats, present, 72);
AT(libuffd_stats, deferred, 80);
AT(libuffd_stats, retries, 88);
AT(libuffd_stats, failed, 96);
AT(libuffd_stats, refetched, 104);
AT(libuffd_stats, removed_in_flight, 112);
AT(libuffd_stats, removed, 120);
AT(libuffd_stats, unmapped, 128);
AT(libuffd_stats, remaps, 136);
AT(libuffd_stats, forks, 144);
AT(libuffd_stats, fetches, 152);
AT(libuffd_stats, prefetched, 160);
AT(libuffd_stats, prefetch_hits, 168);
AT(libuffd_stats, in_flight, 176);
AT(libuffd_stats, queued, 184);
AT(libuffd_stats, waiting, 192);
AT(libuffd_stats, pages, 200);
AT(libuffd_stats, pages_present, 208);
AT(libuffd_stats, latency_ns, 216);
AT(libuffd_stats, latency_max_ns, 224);
AT(libuffd_stats, latency, 232);
AT(libuffd_stats, prefetch_wasted, 488);

SAME(sizeof(struct libuffd_workingset_opts), 24);
AT(libuffd_workingset_opts, flags, 4);
AT(libuffd_workingset_opts, pid, 8);
AT(libuffd_workingset_opts, chunk, 16);

SAME(sizeof(struct libuffd_workingset_area), 40);
AT(libuffd_workingset_area, flags, 4);
AT(libuffd_workingset_area, start, 8);
AT(libuffd_workingset_area, len, 16);
AT(libuffd_workingset_area, page_size, 24);
AT(libuffd_workingset_area, offset, 32);

SAME(sizeof(struct libuffd_workingset_range), 24);
AT(libuffd_workingset_range, end, 8);
AT(libuffd_workingset_range, offset, 16);
SAME(sizeof(struct libuffd_watch_opts), 56);
AT(libuffd_watch_opts, flags, 4);
AT(libuffd_watch_opts, start, 8);
AT(libuffd_watch_opts, len, 16);
AT(libuffd_watch_opts, page_size, 24);
AT(libuffd_watch_opts, mechanism, 32);
AT(libuffd_watch_opts, pid, 36);
AT(libuffd_watch_opts, space, 40);
AT(libuffd_watch_opts, server, 48);
SAME(LIBUFFD_WATCH_ASYNC, 1);
SAME(LIBUFFD_WATCH_SYNC, 2);
SAME(LIBUFFD_WATCH_REGISTER, 1);
SAME(LIBUFFD_WATCH_RESET, 1);
SAME(sizeof(struct libuffd_snapshot_range), 32);
AT(libuffd_snapshot_range, len, 8);
AT(libuffd_snapshot_range, offset, 16);
AT(libuffd_snapshot_range, page_size, 24);

AT(libuffd_snapshot_piece, offset, 8);
AT(libuffd_snapshot_piece, len, 16);
AT(libuffd_snapshot_piece, data, 24);
AT(libuffd_snapshot_piece, reserved, 32);

SAME(sizeof(struct libuffd_snapshot_opts), 96);
AT(libuffd_snapshot_opts, flags, 4);
AT(libuffd_snapshot_opts, space, 8);
AT(libuffd_snapshot_opts, pid, 16);
AT(libuffd_snapshot_opts, nranges, 20);
AT(libuffd_snapshot_opts, ranges, 24);
AT(libuffd_snapshot_opts, changed, 32);
AT(libuffd_snapshot_opts, nchanged, 40);
AT(libuffd_snapshot_opts, memory, 48);
AT(libuffd_snapshot_opts, rate, 56);
AT(libuffd_snapshot_opts, path, 64);
AT(libuffd_snapshot_opts, dirfd, 72);
AT(libuffd_snapshot_opts, perms, 76);
AT(libuffd_snapshot_opts, piece, 80);
AT(libuffd_snapshot_opts, ctx, 88);

SAME(sizeof(struct libuffd_snapshot_info), 72);
AT(libuffd_snapshot_info, phase, 4);
AT(libuffd_snapshot_info, error, 8);
AT(libuffd_snapshot_info, bytes, 16);
AT(libuffd_snapshot_info, copied, 24);
AT(libuffd_snapshot_info, passed, 32);
AT(libuffd_snapshot_info, zeros, 40);
AT(libuffd_snapshot_info, before_write, 48);
AT(libuffd_snapshot_info, held, 56);
AT(libuffd_snapshot_info, arming_ns, 64);

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
	struct libuffd_peer_info peer = LIBUFFD_PEER_INFO_INIT;
	struct libuffd_server_opts server = LIBUFFD_SERVER_OPTS_INIT;
	struct libuffd_space_opts space = LIBUFFD_SPACE_OPTS_INIT;
	struct libuffd_region region = LIBUFFD_REGION_INIT;
	struct libuffd_fill_opts fill = LIBUFFD_FILL_OPTS_INIT;
	struct libuffd_stats stats = LIBUFFD_STATS_INIT;
	struct libuffd_workingset_opts ws = LIBUFFD_WORKINGSET_OPTS_INIT;
	struct libuffd_workingset_area area = LIBUFFD_WORKINGSET_AREA_INIT;
	struct libuffd_watch_opts watch = LIBUFFD_WATCH_OPTS_INIT;
	struct libuffd_snapshot_opts snapshot = LIBUFFD_SNAPSHOT_OPTS_INIT;
	struct libuffd_snapshot_info progress = LIBUFFD_SNAPSHOT_INFO_INIT;

	return !(opts.size == sizeof(opts) && !opts.report && caps.size == sizeof(caps) &&
		 answer.size == sizeof(answer) && !answer.data && args.size == sizeof(args) &&
		 peer.size == sizeof(peer) && peer.pidfd == -1 && server.size == sizeof(server) &&
		 !server.notice && !server.ctx && space.size == sizeof(space) &&
		 space.pidfd == -1 && region.size == sizeof(region) && !region.source &&
		 !region.ahead && fill.size == sizeof(fill) && !fill.rate &&
		 ws.size == sizeof(ws) && !ws.chunk && area.size == sizeof(area) && !area.offset &&
		 watch.size == sizeof(watch) && !watch.server &&
		 snapshot.size == sizeof(snapshot) && snapshot.dirfd == -100 && !snapshot.ctx &&
		 progress.size == sizeof(progress) && !progress.arming_ns &&
		 stats.size == sizeof(stats) && !stats.latency[LIBUFFD_LATENCY_BUCKETS - 1]);
}
