/* SPDX-License-Identifier: MIT */
/* Answering faults: one ioctl per typed call, and libuffd_resolve(), which gets it all right. */
#include "core.h"

#include <signal.h>
#include <stdbool.h>

#include "sized.h"

/* ---- Typed calls ---------------------------------------------------------------------------- */

/*
 * What a resolving ioctl says about progress. Success is all of it. EAGAIN with a positive field is
 * a prefix. In every other case nothing was done, and the field holds -errno, or what was there
 * before: kernels leave it alone when they refuse the arguments, and up to 6.1 also when the
 * layout is changing. Hence callers preset it to 0.
 */
static inline int settle(int ret, int64_t out, size_t len, size_t *done)
{
	if (ret == 0)
		*done = len;
	else if (ret == -EAGAIN && out > 0)
		*done = (size_t)out;
	return ret;
}

static inline int transfer(const struct libuffd *u, unsigned long request, uint64_t dst,
			   uint64_t src, size_t len, uint64_t mode, size_t *done)
{
	struct uapi_transfer arg = { .dst = dst, .src = src, .len = len, .mode = mode, .out = 0 };
	int ret = sys_ioctl(u->fd, request, &arg);

	return settle(ret, arg.out, len, done);
}

static inline int fill(const struct libuffd *u, unsigned long request, uint64_t dst, size_t len,
		       uint64_t mode, size_t *done)
{
	struct uapi_fill arg = { .range = { dst, len }, .mode = mode, .out = 0 };
	int ret = sys_ioctl(u->fd, request, &arg);

	return settle(ret, arg.out, len, done);
}

static inline int protect(const struct libuffd *u, unsigned long request, uint64_t start,
			  size_t len, uint64_t mode)
{
	struct uapi_protect arg = { .range = { start, len }, .mode = mode };

	return sys_ioctl(u->fd, request, &arg);
}

static inline int wake(const struct libuffd *u, uint64_t start, uint64_t len)
{
	struct uapi_range arg = { start, len };

	return sys_ioctl(u->fd, UAPI_IOC_WAKE, &arg);
}

/* What every call with progress checks before the kernel is asked. */
static inline bool call_ok(const struct libuffd *u, uint64_t flags, uint64_t known, size_t *done)
{
	if (!done)
		return false;
	*done = 0;
	return u && !(flags & ~known);
}

int libuffd_copy(const struct libuffd *u, uint64_t dst, const void *src, size_t len, uint64_t flags,
		 size_t *done)
{
	if (!call_ok(u, flags, LIBUFFD_COPY_DONTWAKE | LIBUFFD_COPY_WP, done))
		return -EINVAL;
	return transfer(u, UAPI_IOC_COPY, dst, (uintptr_t)src, len, flags, done);
}

int libuffd_zeropage(const struct libuffd *u, uint64_t dst, size_t len, uint64_t flags,
		     size_t *done)
{
	if (!call_ok(u, flags, LIBUFFD_ZEROPAGE_DONTWAKE, done))
		return -EINVAL;
	return fill(u, UAPI_IOC_ZEROPAGE, dst, len, flags, done);
}

int libuffd_move(const struct libuffd *u, uint64_t dst, uint64_t src, size_t len, uint64_t flags,
		 size_t *done)
{
	if (!call_ok(u, flags, LIBUFFD_MOVE_DONTWAKE | LIBUFFD_MOVE_ALLOW_SRC_HOLES, done))
		return -EINVAL;
	return transfer(u, UAPI_IOC_MOVE, dst, src, len, flags, done);
}

int libuffd_continue(const struct libuffd *u, uint64_t dst, size_t len, uint64_t flags,
		     size_t *done)
{
	if (!call_ok(u, flags, LIBUFFD_CONTINUE_DONTWAKE | LIBUFFD_CONTINUE_WP, done))
		return -EINVAL;
	return fill(u, UAPI_IOC_CONTINUE, dst, len, flags, done);
}

int libuffd_poison(const struct libuffd *u, uint64_t dst, size_t len, uint64_t flags, size_t *done)
{
	if (!call_ok(u, flags, LIBUFFD_POISON_DONTWAKE, done))
		return -EINVAL;
	return fill(u, UAPI_IOC_POISON, dst, len, flags, done);
}

int libuffd_writeprotect(const struct libuffd *u, uint64_t start, size_t len, uint64_t flags)
{
	if (!u || flags & ~(LIBUFFD_WRITEPROTECT_WP | LIBUFFD_WRITEPROTECT_DONTWAKE))
		return -EINVAL;
	return protect(u, UAPI_IOC_WRITEPROTECT, start, len, flags);
}

int libuffd_rwprotect(const struct libuffd *u, uint64_t start, size_t len, uint64_t flags)
{
	if (!u || flags & ~(LIBUFFD_RWPROTECT_RWP | LIBUFFD_RWPROTECT_DONTWAKE))
		return -EINVAL;
	return protect(u, UAPI_IOC_RWPROTECT, start, len, flags);
}

int libuffd_wake(const struct libuffd *u, uint64_t start, size_t len)
{
	return u ? wake(u, start, len) : -EINVAL;
}

int libuffd_set_mode(const struct libuffd *u, uint64_t enable, uint64_t disable)
{
	struct uapi_set_mode arg = { enable, disable };

	return u ? sys_ioctl(u->fd, UAPI_IOC_SET_MODE, &arg) : -EINVAL;
}

/* ---- libuffd_resolve() ---------------------------------------------------------------------- */

/*
 * WRITEPROTECT and RWPROTECT hold the address space's lock from end to end, and every fault and
 * mmap of the process waits behind it: long ranges go in pieces of this size. At about 30 ns a page
 * a piece of 4,096 pages stays near a tenth of a millisecond.
 */
#define PROTECT_CHUNK (UINT64_C(16) << 20)

/*
 * EAGAIN without progress. Where events of the layout are enabled one of them may be in flight, and
 * only reading it helps, so the caller must be told soon; where they are not, it can only be a
 * passing race in the page tables.
 */
#define RETRIES_WITH_EVENTS 2
#define RETRIES_WITHOUT_EVENTS 1000

/* Source of zeros for pages of every size that a kernel has but huge ones. Never written. */
#define ZEROS_LEN ((size_t)65536)
static unsigned char zeros[ZEROS_LEN];

/* One answer on its way through the kernel. */
struct job {
	const struct libuffd *u;
	const struct libuffd_answer *a;
	uint64_t page;	    /* page size of the target memory */
	uint64_t pos;	    /* bytes answered so far */
	uint64_t chunk;	    /* most to ask for at once */
	uint64_t chunk_max; /* the same, when nothing is being split */
	uint64_t wake_from; /* what the kernel will not wake by itself, as offsets */
	uint64_t wake_to;
	unsigned int retries;
	void *huge_zeros; /* one huge page of zeros, if it was needed */
};

static inline uint64_t min_u64(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

static inline bool is_protect(uint32_t kind)
{
	return kind >= LIBUFFD_ANSWER_PROTECT;
}

/* hugetlb: the kernel takes whole huge pages only, and has no ZEROPAGE for it. */
static bool is_huge(const struct job *j)
{
	return j->page > j->u->page_size;
}

/* The modes of all operations have DONTWAKE in bit 0 but for the two that protect. */
static inline uint64_t mode_of(const struct libuffd_answer *a)
{
	return a->flags & LIBUFFD_RESOLVE_DONTWAKE;
}

static int copy_zeros(struct job *j, uint64_t at, uint64_t len, uint64_t mode, size_t *done)
{
	const void *src = zeros;
	uint64_t most = ZEROS_LEN;

	if (is_huge(j)) {
		if (!j->huge_zeros)
			j->huge_zeros = sys_map_zeros((size_t)j->page);
		if (!j->huge_zeros)
			return -ENOMEM;
		src = j->huge_zeros;
		most = j->page;
	}
	return transfer(j->u, UAPI_IOC_COPY, at, (uintptr_t)src, (size_t)min_u64(len, most), mode,
			done);
}

static int ask_zero(struct job *j, uint64_t at, size_t len, size_t *done)
{
	uint64_t mode = mode_of(j->a);

	/*
	 * ZEROPAGE cannot install write-protected. Protecting afterwards would leave a moment for a
	 * write to slip through; a copy of zeros has none.
	 */
	if (j->a->flags & LIBUFFD_RESOLVE_WP)
		return copy_zeros(j, at, len, mode | LIBUFFD_COPY_WP, done);
	if (is_huge(j))
		return copy_zeros(j, at, len, mode, done);
	return fill(j->u, UAPI_IOC_ZEROPAGE, at, len, mode, done);
}

/* No progress field: all or, for all that can be known, nothing. Asking twice is harmless. */
static int ask_protect(struct job *j, uint64_t at, size_t len, size_t *done)
{
	bool rw = j->a->kind >= LIBUFFD_ANSWER_RWPROTECT;
	bool on = j->a->kind == LIBUFFD_ANSWER_PROTECT || j->a->kind == LIBUFFD_ANSWER_RWPROTECT;
	uint64_t mode = on		? LIBUFFD_WRITEPROTECT_WP
			: mode_of(j->a) ? LIBUFFD_WRITEPROTECT_DONTWAKE
					: 0;
	int ret = protect(j->u, rw ? UAPI_IOC_RWPROTECT : UAPI_IOC_WRITEPROTECT, at, len, mode);

	return settle(ret, 0, len, done);
}

static inline int ask(struct job *j, size_t len, size_t *done)
{
	const struct libuffd_answer *a = j->a;
	uint64_t at = a->start + j->pos, mode = mode_of(a);

	*done = 0;
	switch (a->kind) {
	case LIBUFFD_ANSWER_COPY:
		if (a->flags & LIBUFFD_RESOLVE_WP)
			mode |= LIBUFFD_COPY_WP;
		return transfer(j->u, UAPI_IOC_COPY, at, (uintptr_t)a->data + j->pos, len, mode,
				done);
	case LIBUFFD_ANSWER_ZERO:
		return ask_zero(j, at, len, done);
	case LIBUFFD_ANSWER_CONTINUE:
		if (a->flags & LIBUFFD_RESOLVE_WP)
			mode |= LIBUFFD_CONTINUE_WP;
		return fill(j->u, UAPI_IOC_CONTINUE, at, len, mode, done);
	case LIBUFFD_ANSWER_MOVE:
		if (a->flags & LIBUFFD_RESOLVE_ALLOW_SRC_HOLES)
			mode |= LIBUFFD_MOVE_ALLOW_SRC_HOLES;
		return transfer(j->u, UAPI_IOC_MOVE, at, a->from + j->pos, len, mode, done);
	case LIBUFFD_ANSWER_POISON:
		return fill(j->u, UAPI_IOC_POISON, at, len, mode, done);
	default:
		return ask_protect(j, at, len, done);
	}
}

/*
 * "There is something already." In anonymous memory that may be the mark of a protected absent page,
 * which ZEROPAGE does not replace: its waiters would only fault again, for ever. COPY replaces it,
 * and refuses if there is a page after all (or no write-protection, and so no mark).
 */
static int zero_over_mark(struct job *j)
{
	size_t done = 0;
	int ret;

	if (j->a->kind != LIBUFFD_ANSWER_ZERO || is_huge(j) || j->a->flags & LIBUFFD_RESOLVE_WP ||
	    !(j->u->features & LIBUFFD_FEATURE_WP_UNPOPULATED))
		return -EEXIST;
	ret = copy_zeros(j, j->a->start + j->pos, j->page, mode_of(j->a) | LIBUFFD_COPY_WP, &done);
	return ret == -EINVAL ? -EEXIST : ret;
}

/* The page at pos is there: keep the promise that it is protected, wake its waiters later, go on. */
static int step_over_present(struct job *j)
{
	const struct libuffd *u = j->u;
	int ret = zero_over_mark(j);

	if (ret == -EEXIST) {
		ret = 0;
		/* With WP_ASYNC an unprotected page is a written one, and that must stay on record. */
		if (j->a->flags & LIBUFFD_RESOLVE_WP && !(u->features & LIBUFFD_FEATURE_WP_ASYNC))
			ret = protect(u, UAPI_IOC_WRITEPROTECT, j->a->start + j->pos,
				      (size_t)j->page, LIBUFFD_WRITEPROTECT_WP);
		if (ret == 0) {
			/* An EEXIST wakes nobody. */
			if (j->wake_from == j->wake_to)
				j->wake_from = j->pos;
			j->wake_to = j->pos + j->page;
		}
	}
	if (ret == 0)
		j->pos += j->page;
	return ret;
}

/*
 * The kernel wants one mapping at a time, and does not say where it ends. Look for the end by
 * halving: after a piece went in, the end is less than another such piece away.
 */
static bool split(struct job *j, uint64_t asked)
{
	if (asked <= j->page)
		return false;
	j->chunk = asked / 2 / j->page * j->page;
	return true;
}

static inline void unsplit(struct job *j)
{
	j->retries = 0;
	if (j->chunk == j->chunk_max)
		return;
	j->chunk = j->chunk > j->page ? j->chunk / 2 / j->page * j->page : j->chunk_max;
}

static bool may_retry(struct job *j)
{
	unsigned int most = j->u->features & CORE_LAYOUT_EVENTS ? RETRIES_WITH_EVENTS
								: RETRIES_WITHOUT_EVENTS;

	return j->retries++ < most;
}

/* What to do about a refusal: 0 to go on, or the error that ends it. */
static int recover(struct job *j, int ret, uint64_t asked, size_t did)
{
	if (ret == -EEXIST)
		ret = step_over_present(j);
	switch (ret) {
	case 0:
		return 0;
	case -EAGAIN:
		if (did) { /* the real reason comes with the next call */
			j->retries = 0;
			return 0;
		}
		return may_retry(j) ? 0 : ret;
	case -ENOENT:
		return split(j, asked) ? 0 : ret;
	case -EINVAL: /* what MOVE says of two mappings */
		return j->a->kind == LIBUFFD_ANSWER_MOVE && split(j, asked) ? 0 : ret;
	default:
		return ret;
	}
}

/* Nobody is left asleep whose page is there, or will never come. */
static int wake_left(struct job *j, int ret)
{
	int woken;

	if (ret == -ENOENT) {
		/* munmap wakes nobody either: let them fault again, and see for themselves. */
		if (j->wake_from == j->wake_to)
			j->wake_from = j->pos;
		j->wake_to = j->a->len;
	}
	if (j->wake_from == j->wake_to || mode_of(j->a))
		return ret;
	woken = wake(j->u, j->a->start + j->wake_from, j->wake_to - j->wake_from);
	return ret < 0 ? ret : woken;
}

static int run(const struct libuffd *u, const struct libuffd_answer *a, uint64_t *answered)
{
	struct job j = { .u = u, .a = a };
	int ret = 0;

	j.page = a->page_size ? a->page_size : u->page_size;
	j.chunk_max = a->len;
	if (is_protect(a->kind))
		j.chunk_max = min_u64(a->len, PROTECT_CHUNK > j.page ? PROTECT_CHUNK : j.page);
	j.chunk = j.chunk_max;

	while (j.pos < a->len && ret == 0) {
		size_t len = (size_t)min_u64(a->len - j.pos, j.chunk), did;

		ret = ask(&j, len, &did);
		j.pos += did;
		if (ret == 0)
			unsplit(&j);
		else
			ret = recover(&j, ret, len, did);
	}
	ret = wake_left(&j, ret);
	if (j.huge_zeros)
		sys_unmap(j.huge_zeros, (size_t)j.page);
	*answered = j.pos;
	return ret;
}

/* Which flags go with which kind. */
static inline uint64_t flags_of(uint32_t kind)
{
	switch (kind) {
	case LIBUFFD_ANSWER_COPY:
	case LIBUFFD_ANSWER_ZERO:
	case LIBUFFD_ANSWER_CONTINUE:
		return LIBUFFD_RESOLVE_DONTWAKE | LIBUFFD_RESOLVE_WP;
	case LIBUFFD_ANSWER_MOVE:
		return LIBUFFD_RESOLVE_DONTWAKE | LIBUFFD_RESOLVE_ALLOW_SRC_HOLES;
	case LIBUFFD_ANSWER_POISON:
	case LIBUFFD_ANSWER_UNPROTECT:
	case LIBUFFD_ANSWER_RWUNPROTECT:
		return LIBUFFD_RESOLVE_DONTWAKE;
	default:
		return 0;
	}
}

static inline bool answer_ok(const struct libuffd *u, const struct libuffd_answer *a)
{
	uint64_t page = a->page_size ? a->page_size : u->page_size;
	uint64_t last = a->len - 1;

	if (a->kind < LIBUFFD_ANSWER_COPY || a->kind > LIBUFFD_ANSWER_RWUNPROTECT ||
	    a->flags & ~flags_of(a->kind))
		return false;
	if (page < u->page_size || (page & (page - 1)))
		return false;
	if (!a->len || ((a->start | a->len) & (page - 1)) || a->start + last < a->start ||
	    a->len > SIZE_MAX)
		return false;
	if (a->kind == LIBUFFD_ANSWER_COPY)
		return a->data && (uintptr_t)a->data + (uintptr_t)last >= (uintptr_t)a->data;
	if (a->kind == LIBUFFD_ANSWER_MOVE)
		return !(a->from & (page - 1)) && a->from + last >= a->from;
	return true;
}

#define ANSWER_LEAST 48
_Static_assert(sizeof(struct libuffd_answer) == ANSWER_LEAST, "grown: keep ANSWER_LEAST");

/* A struct of our own size needs no copy; another is brought to it in @own. NULL: *ret says why. */
static inline const struct libuffd_answer *get_answer(const struct libuffd_answer *from,
						      struct libuffd_answer *own, int *ret)
{
	if (from->size == sizeof(*from))
		return from;
	*ret = sized_get(own, sizeof(*own), ANSWER_LEAST, from);
	return *ret < 0 ? NULL : own;
}

int libuffd_resolve(const struct libuffd *u, const struct libuffd_answer *from, size_t *done)
{
	struct libuffd_answer own;
	uint64_t answered;
	int ret = -EINVAL;

	if (done)
		*done = 0;
	if (!u || !from)
		return -EINVAL;
	from = get_answer(from, &own, &ret);
	if (!from)
		return ret;
	if (!answer_ok(u, from))
		return -EINVAL;
	ret = run(u, from, &answered);
	if (done)
		*done = (size_t)answered;
	return ret;
}

/* ---- In the faulting thread ----------------------------------------------------------------- */

/* The part of @region that lies in the aligned window around @address. */
static struct libuffd_answer window_of(const struct libuffd_answer *region, uint64_t window,
				       uint64_t address)
{
	struct libuffd_answer a = *region;
	uint64_t first = address & ~(window - 1), offset;

	a.start = first > region->start ? first : region->start;
	offset = a.start - region->start;
	a.len = min_u64(first + (window - 1) - a.start, region->len - offset - 1) + 1;
	if (a.kind == LIBUFFD_ANSWER_COPY)
		a.data = (const unsigned char *)region->data + offset;
	else if (a.kind == LIBUFFD_ANSWER_MOVE)
		a.from = region->from + offset;
	return a;
}

static int answer_here(const struct libuffd *u, const struct libuffd_answer *region, uint64_t page,
		       uint64_t window, uint64_t address)
{
	struct libuffd_answer a = window_of(region, window, address);
	uint64_t answered;
	size_t done = 0;
	int ret;

	if (a.kind == LIBUFFD_ANSWER_POISON) {
		/*
		 * A kernel without memory-failure handling has one code for a poisoned page and a
		 * missing one. What is poisoned already will not get better.
		 */
		a = window_of(region, page, address);
		ret = fill(u, UAPI_IOC_POISON, a.start, (size_t)a.len, 0, &done);
		return ret == -EEXIST ? 0 : ret < 0 ? ret : 1;
	}
	ret = run(u, &a, &answered);
	if (ret < 0 && ret != -EAGAIN && window > page) {
		/* A neighbour could not be had; the page itself may. */
		a = window_of(region, page, address);
		ret = run(u, &a, &answered);
	}
	return ret < 0 ? ret : 1;
}

int libuffd_sigbus(const struct libuffd *u, const struct libuffd_answer *from, size_t window,
		   uint64_t address, int code)
{
	struct libuffd_answer own;
	int saved = errno, ret = -EINVAL;
	uint64_t page;

	if (!u || !from)
		return -EINVAL;
	from = get_answer(from, &own, &ret);
	if (!from)
		return ret;
	if (!answer_ok(u, from) || is_protect(from->kind))
		return -EINVAL;
	page = from->page_size ? from->page_size : u->page_size;
	if (!window)
		window = (size_t)page;
	if (window < page || (window & (window - 1)))
		return -EINVAL;
	/* Real memory errors have codes of their own. */
	if (code != BUS_ADRERR || address - from->start >= from->len)
		return 0;
	ret = answer_here(u, from, page, window, address);
	if (ret == -EAGAIN) {
		/* The access will fault again, and find the layout settled sooner or later. */
		sys_yield();
		ret = 1;
	}
	errno = saved;
	return ret;
}
