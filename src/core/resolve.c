/* SPDX-License-Identifier: MIT */
/* Answering faults: one ioctl per typed call, and libuffd_resolve(), which gets it all right. */
#include "core.h"

#include <signal.h>
#include <stdbool.h>

#include "bits.h"
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

/* What each kind of answer is to the kernel. */
static const struct kind {
	unsigned long request;
	uint64_t most; /* bytes that one ioctl may be asked for */
	uint8_t flags; /* LIBUFFD_RESOLVE_* that go with it */
	uint8_t mode;  /* that makes it this kind */
	bool transfer; /* struct uapi_transfer; else struct uapi_fill or what it begins with */
	bool protect;  /* no progress field, and DONTWAKE in bit 1 */
} kinds[] = {
	[LIBUFFD_ANSWER_COPY] = { UAPI_IOC_COPY, SIZE_MAX,
				  LIBUFFD_RESOLVE_DONTWAKE | LIBUFFD_RESOLVE_WP, 0, true, false },
	[LIBUFFD_ANSWER_ZERO] = { UAPI_IOC_ZEROPAGE, SIZE_MAX,
				  LIBUFFD_RESOLVE_DONTWAKE | LIBUFFD_RESOLVE_WP, 0, false, false },
	[LIBUFFD_ANSWER_CONTINUE] = { UAPI_IOC_CONTINUE, SIZE_MAX,
				      LIBUFFD_RESOLVE_DONTWAKE | LIBUFFD_RESOLVE_WP, 0, false,
				      false },
	[LIBUFFD_ANSWER_MOVE] = { UAPI_IOC_MOVE, SIZE_MAX,
				  LIBUFFD_RESOLVE_DONTWAKE | LIBUFFD_RESOLVE_ALLOW_SRC_HOLES, 0,
				  true, false },
	[LIBUFFD_ANSWER_POISON] = { UAPI_IOC_POISON, SIZE_MAX, LIBUFFD_RESOLVE_DONTWAKE, 0, false,
				    false },
	[LIBUFFD_ANSWER_PROTECT] = { UAPI_IOC_WRITEPROTECT, PROTECT_CHUNK, 0,
				     LIBUFFD_WRITEPROTECT_WP, false, true },
	[LIBUFFD_ANSWER_UNPROTECT] = { UAPI_IOC_WRITEPROTECT, PROTECT_CHUNK,
				       LIBUFFD_RESOLVE_DONTWAKE, 0, false, true },
	[LIBUFFD_ANSWER_RWPROTECT] = { UAPI_IOC_RWPROTECT, PROTECT_CHUNK, 0, LIBUFFD_RWPROTECT_RWP,
				       false, true },
	[LIBUFFD_ANSWER_RWUNPROTECT] = { UAPI_IOC_RWPROTECT, PROTECT_CHUNK,
					 LIBUFFD_RESOLVE_DONTWAKE, 0, false, true },
};

static inline bool kind_known(const struct libuffd_answer *a)
{
	return a->kind - 1 < sizeof(kinds) / sizeof(kinds[0]) - 1;
}

/* The kernel's mode of an answer: every install has DONTWAKE in bit 0 and its own flag in bit 1. */
static inline uint64_t mode_of(const struct kind *k, uint64_t flags)
{
	_Static_assert(LIBUFFD_RESOLVE_DONTWAKE == LIBUFFD_COPY_DONTWAKE &&
			       LIBUFFD_RESOLVE_WP == LIBUFFD_COPY_WP &&
			       LIBUFFD_RESOLVE_WP == LIBUFFD_CONTINUE_WP &&
			       LIBUFFD_RESOLVE_ALLOW_SRC_HOLES >> 1 ==
				       LIBUFFD_MOVE_ALLOW_SRC_HOLES &&
			       LIBUFFD_RESOLVE_DONTWAKE << 1 == LIBUFFD_WRITEPROTECT_DONTWAKE &&
			       LIBUFFD_RESOLVE_DONTWAKE << 1 == LIBUFFD_RWPROTECT_DONTWAKE,
		       "flags of answers are made into modes by shifts");
	if (k->protect)
		return k->mode | flags << 1;
	return (flags & 3) | (flags >> 1 & 2);
}

static inline uint64_t source_of(const struct libuffd_answer *a)
{
	/* Where pointers have 64 bits both are the same eight bytes. */
	if (sizeof(a->data) == sizeof(a->from) || a->kind == LIBUFFD_ANSWER_MOVE)
		return a->from;
	return (uintptr_t)a->data;
}

/* Ask for @len bytes of the answer from @pos on, in one ioctl. */
static inline int ask(const struct libuffd *u, const struct libuffd_answer *a, uint64_t pos,
		      size_t len, uint64_t mode, size_t *did)
{
	const struct kind *k = &kinds[a->kind];

	if (k->transfer)
		return transfer(u, k->request, a->start + pos, source_of(a) + pos, len, mode, did);
	return fill(u, k->request, a->start + pos, len, mode, did);
}

/* One answer that takes more than one ioctl. */
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

/* hugetlb: the kernel takes whole huge pages only, and has no ZEROPAGE for it. */
static inline bool is_huge(const struct libuffd *u, const struct libuffd_answer *a)
{
	return a->page_size > u->page_size;
}

/*
 * ZEROPAGE does not know hugetlb, and cannot install write-protected. Protecting afterwards would
 * leave a moment for a write to slip through; a copy of zeros has none.
 */
static inline bool zeros_are_copied(const struct libuffd *u, const struct libuffd_answer *a)
{
	return a->kind == LIBUFFD_ANSWER_ZERO && (a->flags & LIBUFFD_RESOLVE_WP || is_huge(u, a));
}

static int copy_zeros(struct job *j, uint64_t len, uint64_t mode, size_t *did)
{
	const void *src = zeros;
	uint64_t most = ZEROS_LEN;

	if (is_huge(j->u, j->a)) {
		if (!j->huge_zeros)
			j->huge_zeros = sys_map_zeros((size_t)j->page);
		if (!j->huge_zeros)
			return -ENOMEM;
		src = j->huge_zeros;
		most = j->page;
	}
	return transfer(j->u, UAPI_IOC_COPY, j->a->start + j->pos, (uintptr_t)src,
			(size_t)least(len, most), mode, did);
}

/*
 * "There is something already." In private memory that may be the mark of a protected absent page,
 * which ZEROPAGE does not replace: its waiters would only fault again, for ever. COPY replaces it,
 * and refuses if there is a page after all (or no write-protection, and so no mark). No feature tells
 * whether there are marks: files have them without WP_UNPOPULATED.
 */
static int zero_over_mark(struct job *j)
{
	size_t did = 0;
	int ret;

	if (j->a->kind != LIBUFFD_ANSWER_ZERO || zeros_are_copied(j->u, j->a))
		return -EEXIST;
	ret = copy_zeros(j, j->page, j->a->flags | LIBUFFD_COPY_WP, &did);
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

static void unsplit(struct job *j)
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
	if (j->wake_from == j->wake_to || j->a->flags & LIBUFFD_RESOLVE_DONTWAKE)
		return ret;
	woken = wake(j->u, j->a->start + j->wake_from, j->wake_to - j->wake_from);
	return ret < 0 ? ret : woken;
}

static int ask_next(struct job *j)
{
	size_t len = (size_t)least(j->a->len - j->pos, j->chunk), did = 0;
	uint64_t mode = mode_of(&kinds[j->a->kind], j->a->flags);
	int ret;

	if (zeros_are_copied(j->u, j->a))
		ret = copy_zeros(j, len, mode, &did);
	else
		ret = ask(j->u, j->a, j->pos, len, mode, &did);
	j->pos += did;
	if (ret < 0)
		return recover(j, ret, len, did);
	unsplit(j);
	return 0;
}

#define NOT_ASKED 1

/* The long way. @ret and *@done are what a first call for all of it came to, or NOT_ASKED and 0. */
static int run(const struct libuffd *u, const struct libuffd_answer *a, int ret, size_t *done)
{
	struct job j = { .u = u, .a = a, .pos = *done };

	j.page = a->page_size ? a->page_size : u->page_size;
	j.chunk_max = least(a->len, kinds[a->kind].most);
	if (j.chunk_max < j.page)
		j.chunk_max = j.page;
	j.chunk = j.chunk_max;

	ret = ret == NOT_ASKED ? 0 : recover(&j, ret, a->len, *done);
	while (j.pos < a->len && ret == 0)
		ret = ask_next(&j);
	/* Before anybody is woken: the zeros may have been mapped where his own memory was. */
	if (j.huge_zeros)
		sys_unmap(j.huge_zeros, (size_t)j.page);
	ret = wake_left(&j, ret);
	*done = (size_t)j.pos;
	return ret;
}

static bool answer_ok(const struct libuffd *u, const struct libuffd_answer *a)
{
	uint64_t page = a->page_size ? a->page_size : u->page_size;
	uint64_t last = a->len - 1;

	if (!kind_known(a) || a->flags & ~(uint64_t)kinds[a->kind].flags)
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
static const struct libuffd_answer *get_answer(const struct libuffd_answer *from,
					       struct libuffd_answer *own, int *ret)
{
	if (from->size == sizeof(*from))
		return from;
	*ret = sized_get(own, sizeof(*own), ANSWER_LEAST, from);
	return *ret < 0 ? NULL : own;
}

/* Everything but the plain case, whose first call came to @ret. */
static __attribute__((noinline)) int
resolve(const struct libuffd *u, const struct libuffd_answer *from, int ret, size_t *done)
{
	struct libuffd_answer own;
	const struct libuffd_answer *a = get_answer(from, &own, &ret);

	if (!a)
		return ret;
	return answer_ok(u, a) ? run(u, a, ret, done) : -EINVAL;
}

/*
 * What nearly every answer is: one ioctl. The kernel looks at the ranges itself, so they need looking
 * at here only once it has refused; what it would not see is seen here.
 */
static inline bool is_plain(const struct libuffd_answer *a)
{
	return a->size == sizeof(*a) && !(a->flags | a->page_size) && kind_known(a) &&
	       a->len <= kinds[a->kind].most && (a->kind != LIBUFFD_ANSWER_COPY || a->data);
}

int libuffd_resolve(const struct libuffd *u, const struct libuffd_answer *a, size_t *done)
{
	int ret = NOT_ASKED;
	size_t unused;

	if (!done)
		done = &unused;
	*done = 0;
	if (!u || !a)
		return -EINVAL;
	if (is_plain(a)) {
		ret = ask(u, a, 0, (size_t)a->len, kinds[a->kind].mode, done);
		if (ret == 0)
			return 0;
	}
	return resolve(u, a, ret, done);
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
	a.len = least(first + (window - 1) - a.start, region->len - offset - 1) + 1;
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
	size_t done = 0;
	int ret;

	if (a.kind == LIBUFFD_ANSWER_POISON) {
		/*
		 * A kernel without memory-failure handling has one code for a poisoned page and a
		 * missing one. What is poisoned already will not get better.
		 */
		a = window_of(region, page, address);
		ret = ask(u, &a, 0, (size_t)a.len, 0, &done);
		return ret == -EEXIST ? 0 : ret < 0 ? ret : 1;
	}
	ret = libuffd_resolve(u, &a, &done);
	if (ret < 0 && ret != -EAGAIN && window > page) {
		/* A neighbour could not be had; the page itself may. */
		a = window_of(region, page, address);
		ret = libuffd_resolve(u, &a, &done);
	}
	return ret < 0 ? ret : 1;
}

int libuffd_sigbus(const struct libuffd *u, const struct libuffd_answer *region, size_t window,
		   uint64_t address, int code)
{
	struct libuffd_answer own;
	int saved = errno, ret = -EINVAL;
	uint64_t page;

	if (!u || !region)
		return -EINVAL;
	region = get_answer(region, &own, &ret);
	if (!region)
		return ret;
	if (!answer_ok(u, region) || kinds[region->kind].protect)
		return -EINVAL;
	page = region->page_size ? region->page_size : u->page_size;
	if (!window)
		window = (size_t)page;
	if (window < page || (window & (window - 1)))
		return -EINVAL;
	/* Real memory errors have codes of their own. */
	if (code != BUS_ADRERR || address - region->start >= region->len)
		return 0;
	ret = answer_here(u, region, page, window, address);
	if (ret == -EAGAIN) {
		/* The access will fault again, and find the layout settled sooner or later. */
		sys_yield();
		ret = 1;
	}
	errno = saved;
	return ret;
}
