/* SPDX-License-Identifier: MIT */
/*
 * Snapshots that ask a write watch what to copy, and leave it watching.
 *
 * The instant of the snapshot is the one at which the watch is asked. Before it, from when the snapshot is known of, nobody's
 * write is let through, in all of its ranges: so what is on record then is all that was written, and stays all of it while
 * pages are protected and taken off the record. What is not on record is protected by the watch already, and its
 * writers are held like the others; at the instant they are sent back to ask once more, and the watch lets them through.
 *
 * A page that has been copied stays protected: it has not been written since the instant, and whoever comes to write to it now is
 * the watch's. No page that is absent comes into being unseen, which elsewhere takes registering for missing faults:
 * the watch's marks are there too, where the kernel can put them (WP_UNPOPULATED), and what a read brings is no more than what
 * was read. Registering is not ours here: the kernel cannot be told to make it less again without letting all writers through.
 *
 * Pages that are dropped come on record when the event is read. One that does so between the question and the instant was not
 * asked for: the snapshot has failed, and once more may do.
 */
#include "pagemap.h"
#include "snap.h"

#define RANGES 64

int srv_snap_watch(struct libuffd_snapshot *snap)
{
	const struct libuffd_watch *w = snap->opts.watch;
	uint64_t end;

	if (!w)
		return 0;
	if (w->space != snap->space)
		return -EINVAL;
	end = w->cfg.start + w->cfg.len;
	for (unsigned int i = 0; i < snap->nranges; i++)
		if (snap->range[i].start < w->cfg.start || snap->range[i].end > end ||
		    UINT64_C(1) << snap->range[i].shift != w->cfg.page_size)
			return -EINVAL;
	snap->track = w->track;
	return 0;
}

/* What is on record in a range goes to @each, in order; what that returns other than 0 ends it. */
static int on_record(struct libuffd_snapshot *snap, const struct snap_range *r,
		     int (*each)(struct libuffd_snapshot *snap, const struct snap_range *r,
				 uint64_t start, uint64_t end))
{
	struct libuffd_scan_range out[RANGES];
	uint64_t at = r->start;
	int ret = 0;

	while (at < r->end && ret == 0) {
		int n = srv_track_get(snap->track, at, r->end, false, out, RANGES, &at);

		if (n < 0)
			return n;
		for (int i = 0; i < n && ret == 0; i++)
			ret = each(snap, r, out[i].start, out[i].end);
	}
	return ret;
}

static uint64_t page_at(const struct snap_range *r, uint64_t address)
{
	return r->first + ((address - r->start) >> r->shift);
}

static int add_part(struct libuffd_snapshot *snap, const struct snap_range *r, uint64_t start,
		    uint64_t end)
{
	struct libuffd_span *last = snap->nparts ? &snap->part[snap->nparts - 1] : NULL;

	pthread_mutex_lock(&snap->lock);
	for (uint64_t page = page_at(r, start), to = page_at(r, end - 1); page <= to; page++)
		snap->state[page] |= SNAP_RECORDED;
	snap->told.bytes += end - start;
	pthread_mutex_unlock(&snap->lock);
	if (last && last->end == start && last->start >= r->start)
		last->end = end;
	else
		snap->part[snap->nparts++] = (struct libuffd_span){ start, end };
	return 0;
}

int srv_snap_ask(struct libuffd_snapshot *snap)
{
	int ret = 0;

	if (!(snap->opts.flags & LIBUFFD_SNAPSHOT_DELTA))
		return 0;
	snap->nparts = 0;
	for (unsigned int i = 0; i < snap->nranges && ret == 0; i++)
		ret = on_record(snap, &snap->range[i], add_part);
	return ret;
}

/* Of what is swapped out and protected pagemap does not tell whether it is more than a mark; a copy does. */
void srv_snap_forget_watch(const struct libuffd_snapshot *snap, const struct snap_range *r,
			   uint64_t address, uint64_t n, uint64_t *entry)
{
	for (uint64_t i = 0; i < n; i++) {
		bool maybe = entry[i] & PM_PROTECTED && !(entry[i] & PM_PRESENT);

		entry[i] &= ~PM_PROTECTED;
		if (maybe && srv_snap_probe(snap, address + (i << r->shift),
					    UINT64_C(1) << r->shift) == -EFAULT)
			entry[i] = 0;
	}
}

int srv_snap_take(struct libuffd_snapshot *snap, const struct libuffd_span *part, uint64_t *at)
{
	snap->asked = true;
	return srv_track_close(snap->track, part->end, at);
}

static int was_asked(struct libuffd_snapshot *snap, const struct snap_range *r, uint64_t start,
		     uint64_t end)
{
	bool all = true;

	pthread_mutex_lock(&snap->lock);
	for (uint64_t page = page_at(r, start), to = page_at(r, end - 1); page <= to; page++)
		all = all && snap->state[page] & SNAP_RECORDED;
	pthread_mutex_unlock(&snap->lock);
	return all ? 0 : -ESTALE;
}

int srv_snap_asked_all(struct libuffd_snapshot *snap)
{
	int ret = 0;

	if (!(snap->opts.flags & LIBUFFD_SNAPSHOT_DELTA))
		return 0;
	for (unsigned int i = 0; i < snap->nranges && ret == 0; i++)
		ret = on_record(snap, &snap->range[i], was_asked);
	return ret;
}

void srv_snap_leave_rest(struct libuffd_snapshot *snap)
{
	if (!(snap->opts.flags & LIBUFFD_SNAPSHOT_DELTA))
		return;
	for (uint64_t page = 0; page < snap->npages; page++)
		if (!(snap->state[page] & SNAP_RECORDED))
			snap->state[page] = (unsigned char)((snap->state[page] & ~SNAP_HOW_FAR) |
							    SNAP_DONE);
}

void srv_snap_put_back(struct libuffd_snapshot *snap)
{
	if (!snap->asked)
		return;
	for (uint64_t i = 0; i < snap->nparts; i++)
		srv_track_reopen(snap->track, snap->part[i].start, snap->part[i].end);
}
