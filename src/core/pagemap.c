/* SPDX-License-Identifier: MIT */
/*
 * Scanning by /proc/PID/pagemap, an entry of eight bytes for each page: what there is where PAGEMAP_SCAN is not. It can look
 * and nothing else, and of what it does not see it says so: a page that is neither there nor in swap has an empty entry, as
 * addresses have at which nothing is mapped.
 */
#include "core.h"

#include <fcntl.h>
#include <stdbool.h>

#include "pagemap.h"

#define ENTRIES 512 /* read at once */

static uint64_t categories_of(uint64_t entry, uint64_t known)
{
	uint64_t c = 0;

	if (entry & PM_PRESENT)
		c |= LIBUFFD_PAGE_PRESENT;
	if (entry & PM_SWAPPED)
		c |= LIBUFFD_PAGE_SWAPPED;
	if (entry & PM_FILE)
		c |= LIBUFFD_PAGE_FILE;
	if (entry & PM_THERE && !(entry & PM_PROTECTED))
		c |= LIBUFFD_PAGE_WRITTEN;
	return c & known;
}

static bool matches(const struct libuffd_scan_args *a, uint64_t categories)
{
	uint64_t c = categories ^ a->inverted;

	return (c & a->all) == a->all && (!a->any || c & a->any);
}

/* One page more: false if there is no room for it. */
static bool put(struct libuffd_scan_range *out, size_t cap, size_t *n, uint64_t at, uint64_t page,
		uint64_t categories)
{
	struct libuffd_scan_range *last = *n ? &out[*n - 1] : NULL;

	if (last && last->end == at && last->categories == categories) {
		last->end = at + page;
		return true;
	}
	if (*n == cap)
		return false;
	out[(*n)++] = (struct libuffd_scan_range){ at, at + page, categories };
	return true;
}

int core_pagemap_scan(int fd, uint64_t known, const struct libuffd_scan_args *a,
		      struct libuffd_scan_range *out, size_t cap, uint64_t *walked)
{
	uint64_t page = sys_page_size(), at = a->start, entry[ENTRIES];
	size_t n = 0;

	if (at & (page - 1))
		return -EINVAL;
	/* Of what is not there nobody knows whether it might be. */
	if ((a->all | a->any | a->inverted | a->report) & ~known || matches(a, 0))
		return -EOPNOTSUPP;
	while (at < a->end) {
		uint64_t pages = (a->end - at - 1) / page + 1;
		size_t want = pages < ENTRIES ? (size_t)pages : ENTRIES;
		ssize_t got = sys_pread(fd, entry, want * sizeof(entry[0]),
					at / page * sizeof(entry[0]));

		/* What was listed is told first; the error comes the next time. */
		if (got < 0 && !n)
			return (int)got;
		if (got < (ssize_t)sizeof(entry[0])) {
			/* No process has addresses from here on; one that has exited has none at all. */
			if (got >= 0)
				at = a->end;
			break;
		}
		for (size_t i = 0; i < (size_t)got / sizeof(entry[0]); i++, at += page) {
			uint64_t c = categories_of(entry[i], known);

			if (!matches(a, c))
				continue;
			if (!put(out, cap, &n, at, page, c & a->report))
				goto full;
		}
	}
full:
	*walked = at;
	return (int)n;
}

/* ---- Whether entries tell of protection ------------------------------------------------------------ */

static bool is_told(int fd, const void *page, size_t len)
{
	struct uapi_register reg = { .range = { (uintptr_t)page, len }, .mode = LIBUFFD_MODE_WP };
	struct uapi_protect protect = { .range = { (uintptr_t)page, len },
					.mode = LIBUFFD_WRITEPROTECT_WP };
	int map = sys_open("/proc/self/pagemap", O_RDONLY);
	uint64_t entry = 0;
	bool told;

	if (map < 0)
		return false;
	told = sys_ioctl(fd, UAPI_IOC_REGISTER, &reg) >= 0 &&
	       sys_ioctl(fd, UAPI_IOC_WRITEPROTECT, &protect) >= 0 &&
	       sys_pread(map, &entry, sizeof(entry), (uintptr_t)page / len * sizeof(entry)) ==
		       (ssize_t)sizeof(entry) &&
	       entry & PM_PROTECTED;
	sys_close(map);
	return told;
}

/*
 * Nothing tells whether the kernel has the bit. Where it has not every page would look written. So look at a page
 * of one's own that is protected.
 */
bool core_pagemap_tells_written(void)
{
	size_t len = sys_page_size();
	struct uapi_api api;
	bool told = false;
	void *page;
	int fd = core_open_way(LIBUFFD_WAY_SYSCALL, 0);

	if (fd < 0)
		fd = core_open_way(LIBUFFD_WAY_DEVICE, 0);
	if (fd < 0)
		fd = core_open_way(LIBUFFD_WAY_USER_MODE, 0);
	if (fd < 0)
		return false;
	page = sys_map_zeros(len);
	if (page && core_handshake(fd, LIBUFFD_FEATURE_PAGEFAULT_FLAG_WP, &api) >= 0)
		told = is_told(fd, page, len);
	if (page)
		sys_unmap(page, len);
	sys_close(fd);
	return told;
}
