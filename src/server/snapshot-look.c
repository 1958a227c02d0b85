/* SPDX-License-Identifier: MIT */
/*
 * A page that cannot be read: there is none, and it is one of zeros; or it must not be passed off as that.
 *
 * Reading fails alike, with EIO, of a page that is absent, of poison, of a guard, and where the mapping has no right to be
 * read and the kernel keeps that for /proc/PID/mem too. What else there is to go by differs:
 *
 *   pagemap     knows of what is there. What is swapped out and protected looks to it like the mark that a protected page
 *               leaves when it goes
 *   the scan    is asked of huge pages of hugetlb, of which pagemap says nothing but that they are present: to it marks and
 *               poison are swapped out, and only marks are protected. Kernels without it (before 6.7) have no poison
 *               there but that of bad memory, which nothing can be copied over
 *   the rights  tell of what a file has, and this mapping has no page for
 */
#include "snap.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "bits.h"
#include "pagemap.h"

/* Since 6.11; what keeps rights came later. As <linux/fs.h> has it, which may be older than the kernel. */
struct mapping_query {
	uint64_t size, query_flags, query_addr;
	uint64_t start, end, flags, page_size, offset, inode;
	uint32_t dev_major, dev_minor, name_size, build_id_size;
	uint64_t name_addr, build_id_addr;
};
_Static_assert(sizeof(struct mapping_query) == 104, "the kernel's");
#define QUERY_MAPPING _IOWR('f', 17, struct mapping_query)
#define MAPPING_READABLE 1

#define PARTS 512 /* of a huge page, at a time */

static int open_of(int32_t pid, const char *what)
{
	char path[64];
	int fd;

	if (pid)
		snprintf(path, sizeof(path), "/proc/%d/%s", (int)pid, what);
	else
		snprintf(path, sizeof(path), "/proc/self/%s", what);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return errno == ENOENT ? -ESRCH : -errno;
	return fd;
}

int srv_snap_look_open(struct libuffd_snapshot *snap)
{
	int32_t pid = snap->opts.pid;
	int ret;

	snap->mem = open_of(pid, "mem");
	if (snap->mem < 0)
		return snap->mem;
	snap->pagemap = open_of(pid, "pagemap");
	if (snap->pagemap < 0)
		return snap->pagemap;
	snap->maps = open_of(pid, "maps");
	if (snap->maps < 0)
		return snap->maps;
	if (snap->page_size <= snap->space->page_size)
		return 0;
	ret = libuffd_scan_open(pid, &snap->scanner);
	/* Poison came with 6.6 already, and what cannot be told from zeros is not to be had. */
	if (ret == -ENOTTY)
		return snap->space->features & LIBUFFD_FEATURE_POISON ? -EOPNOTSUPP : 0;
	return ret == -ENOENT ? -ESRCH : ret;
}

void srv_snap_look_close(struct libuffd_snapshot *snap)
{
	libuffd_scan_close(snap->scanner);
	if (snap->mem >= 0)
		close(snap->mem);
	if (snap->pagemap >= 0)
		close(snap->pagemap);
	if (snap->maps >= 0)
		close(snap->maps);
}

int srv_snap_probe(const struct libuffd_snapshot *snap, uint64_t address, uint64_t len)
{
	size_t done;

	return libuffd_copy(snap->u, address, snap->server->trap, (size_t)len,
			    LIBUFFD_COPY_DONTWAKE, &done);
}

static int entry_of(const struct libuffd_snapshot *snap, uint64_t address, uint64_t *entry)
{
	off_t at = (off_t)(address / snap->space->page_size * sizeof(*entry));

	return pread(snap->pagemap, entry, sizeof(*entry), at) == sizeof(*entry) ? 0 : -ESRCH;
}

/* Whether it is no huge page, but of smaller ones, and some of them are there. To pagemap all of a huge page is alike. */
static int look_for_parts(const struct libuffd_snapshot *snap, uint64_t address, uint64_t len)
{
	uint64_t entry[PARTS], small = snap->space->page_size, n;

	for (uint64_t end = address + len; address < end; address += n * small) {
		ssize_t want;

		n = least((end - address) / small, PARTS);
		want = (ssize_t)(n * sizeof(*entry));
		if (pread(snap->pagemap, entry, (size_t)want,
			  (off_t)(address / small * sizeof(*entry))) != want)
			return -ESRCH;
		for (uint64_t i = 0; i < n; i++)
			if (entry[i] & PM_THERE)
				return -EINVAL;
	}
	return 0;
}

/* Of a huge page. 0, or -EIO if it is poison. */
static int look_for_poison(const struct libuffd_snapshot *snap, uint64_t address, uint64_t len)
{
	struct libuffd_scan_args args = LIBUFFD_SCAN_ARGS_INIT;
	struct libuffd_scan_range found;
	uint64_t walked;
	int ret;

	if (!snap->scanner)
		return srv_snap_probe(snap, address, len) == -EEXIST ? -EIO : 0;
	args.start = address;
	args.end = address + len;
	args.all = LIBUFFD_PAGE_HUGE | LIBUFFD_PAGE_SWAPPED | LIBUFFD_PAGE_WRITTEN;
	ret = libuffd_scan(snap->scanner, &args, &found, 1, &walked);
	return ret > 0 ? -EIO : ret;
}

/* Of a page that the mapping does not have. 0, or -EIO if a file may have it, and the mapping may not be read. */
static int look_at_rights(const struct libuffd_snapshot *snap, uint64_t address)
{
	struct mapping_query q = { .size = sizeof(q), .query_addr = address };

	if (ioctl(snap->maps, QUERY_MAPPING, &q))
		return errno == ESRCH ? -ESRCH : 0;
	return !(q.flags & MAPPING_READABLE) && q.inode ? -EIO : 0;
}

static int look_at_huge(const struct libuffd_snapshot *snap, uint64_t address, uint64_t len)
{
	int ret = look_for_parts(snap, address, len);

	return ret < 0 ? ret : look_for_poison(snap, address, len);
}

int srv_snap_look(const struct libuffd_snapshot *snap, const struct snap_range *r, uint64_t address)
{
	uint64_t entry, page = UINT64_C(1) << r->shift;
	int ret = entry_of(snap, address, &entry);

	if (ret < 0)
		return ret;
	if (entry & PM_PRESENT || (entry & PM_THERE && !(entry & PM_PROTECTED)))
		return -EIO;
	if (page > snap->space->page_size)
		ret = look_at_huge(snap, address & ~(page - 1), page);
	return ret < 0 ? ret : look_at_rights(snap, address);
}

/* A mark goes with the protection, and what is swapped out stays. */
static bool is_there_unprotected(const struct libuffd_snapshot *snap, const struct snap_range *r,
				 uint64_t address)
{
	struct libuffd_answer a = LIBUFFD_ANSWER_INIT;
	uint64_t entry;
	size_t done;

	a.kind = LIBUFFD_ANSWER_UNPROTECT;
	a.flags = LIBUFFD_RESOLVE_DONTWAKE;
	a.start = address;
	a.len = a.page_size = UINT64_C(1) << r->shift;
	return libuffd_resolve(snap->u, &a, &done) == 0 && entry_of(snap, address, &entry) == 0 &&
	       entry & PM_THERE;
}

/*
 * With either answer the snapshot has failed, so nothing is lost by taking the protection off: what is there after all
 * is out of reach, by its rights, or since the memory or the disk that had it is bad.
 */
int srv_snap_why_absent(const struct libuffd_snapshot *snap, const struct snap_range *r,
			uint64_t address)
{
	if (is_there_unprotected(snap, r, address))
		return -EIO;
	return r->served ? srv_snap_why_not_served(snap, address) : -ESTALE;
}
