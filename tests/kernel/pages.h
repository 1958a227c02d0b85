/* SPDX-License-Identifier: MIT */
/* What the page tables hold, and what puts pages into other states: THPs, swap, pins. */
#ifndef TESTS_KERNEL_PAGES_H
#define TESTS_KERNEL_PAGES_H

#include "kernel.h"

/* ---- /proc/self/pagemap ---------------------------------------------------------------------- */

#define PM_UFFD_WP (UINT64_C(1) << 57) /* since 5.14 */
#define PM_EXCLUSIVE (UINT64_C(1) << 56)
#define PM_FILE (UINT64_C(1) << 61)
#define PM_SWAP (UINT64_C(1) << 62)
#define PM_PRESENT (UINT64_C(1) << 63)

/* The entry of the page at @addr. In a forked child: the child's own. Makes system calls only. */
uint64_t pagemap_entry(const void *addr);

static inline bool pte_is_present(const void *addr)
{
	return pagemap_entry(addr) & PM_PRESENT;
}

static inline bool pte_is_swapped(const void *addr)
{
	return pagemap_entry(addr) & PM_SWAP;
}

/* Skip where what is read before it was written has pages of its own: kernels of some virtual machines have no zero page. */
void requires_zero_page(void);

/* Skip unless pagemap tells of write-protection, which it does since 5.14. */
void requires_pagemap_wp(void);

static inline bool pte_is_wp(const void *addr)
{
	return pagemap_entry(addr) & PM_UFFD_WP;
}

/* ---- Transparent huge pages ------------------------------------------------------------------- */

/* The size of a THP that fills one entry of the middle page directory; skips where there is none. */
size_t thp_size(void);
/* Of the mapping around @addr, what smaps says: "Anonymous", "Rss", ...; in bytes, 0 if it does not. */
size_t smaps_bytes(const void *addr, const char *what);
/* Bytes of the mapping around @addr that are mapped by whole THPs. */
size_t thp_mapped(const void *addr);

/* ---- Swap ------------------------------------------------------------------------------------ */

/* Skip unless there is swap space. */
void requires_swap(void);
/* Push present pages of the caller out; false if the kernel kept one of them. */
bool page_out(void *addr, size_t len);

/* ---- Pins ------------------------------------------------------------------------------------- */

/*
 * Pin pages for long, and for writing, as a device would that writes to them: as fixed buffers of an
 * io_uring. Skips where io_uring is not to be had. The pages must not be missing or protected.
 */
struct pin {
	int ring;
};

void pin_pages(struct pin *p, void *addr, size_t len);
void unpin_pages(struct pin *p);

#endif
