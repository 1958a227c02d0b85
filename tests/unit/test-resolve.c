/* SPDX-License-Identifier: MIT */
/* Answers on a kernel that refuses, stops half way and races: what must come out all the same. */
#include <signal.h>

#include "fake-sys.h"

#define PAGE UINT64_C(4096)
#define BASE UINT64_C(0x10000000)

/* ---- Typed calls: exactly one ioctl, and what the out field means ------------------------------- */

static struct {
	int ret;
	int64_t out;
	bool leave_out; /* the kernel does not write the field */
	unsigned long request;
	uint64_t words[5];
} said;

static int64_t *out_field(unsigned long request, void *arg)
{
	if (request == UAPI_IOC_COPY || request == UAPI_IOC_MOVE)
		return &((struct uapi_transfer *)arg)->out;
	return &((struct uapi_fill *)arg)->out;
}

static int say(int fd, unsigned long request, void *arg)
{
	assert_int_equal(fd, 3);
	said.request = request;
	memcpy(said.words, arg, _IOC_SIZE(request));
	if (!said.leave_out)
		*out_field(request, arg) = said.out;
	return said.ret;
}

typedef int typed_call(const struct libuffd *u, uint64_t flags, size_t *done);

static int call_copy(const struct libuffd *u, uint64_t flags, size_t *done)
{
	return libuffd_copy(u, BASE, &said, 4 * PAGE, flags, done);
}

static int call_zeropage(const struct libuffd *u, uint64_t flags, size_t *done)
{
	return libuffd_zeropage(u, BASE, 4 * PAGE, flags, done);
}

static int call_move(const struct libuffd *u, uint64_t flags, size_t *done)
{
	return libuffd_move(u, BASE, BASE * 2, 4 * PAGE, flags, done);
}

static int call_continue(const struct libuffd *u, uint64_t flags, size_t *done)
{
	return libuffd_continue(u, BASE, 4 * PAGE, flags, done);
}

static int call_poison(const struct libuffd *u, uint64_t flags, size_t *done)
{
	return libuffd_poison(u, BASE, 4 * PAGE, flags, done);
}

static const struct {
	typed_call *call;
	unsigned long request;
	uint64_t flags; /* all that are known */
} typed[] = {
	{ call_copy, UAPI_IOC_COPY, 3 },     { call_zeropage, UAPI_IOC_ZEROPAGE, 1 },
	{ call_move, UAPI_IOC_MOVE, 3 },     { call_continue, UAPI_IOC_CONTINUE, 3 },
	{ call_poison, UAPI_IOC_POISON, 1 },
};

static void typed_progress(void **state)
{
	static const struct {
		int ret;
		int64_t out;
		bool leave_out;
		size_t done;
	} cases[] = {
		{ 0, 4 * 4096, false, 4 * 4096 }, { -EAGAIN, 4096, false, 4096 }, /* a prefix */
		{ -EAGAIN, -EAGAIN, false, 0 }, /* the layout changes, 6.12 and later */
		{ -EAGAIN, 0, true, 0 },	/* the same, 5.10 and 6.1: nothing written */
		{ -EEXIST, -EEXIST, false, 0 },	  { -ENOENT, -ENOENT, false, 0 },
		{ -EINVAL, 0, true, 0 },	  { -ESRCH, 0, true, 0 },
		{ -EEXIST, 4096, false, 0 }, /* progress goes with EAGAIN only */
	};
	struct libuffd *u = fake_handle(0);

	(void)state;
	fake_reset();
	fake.ioctl = say;
	for (size_t t = 0; t < ARRAY_SIZE(typed); t++) {
		for (size_t c = 0; c < ARRAY_SIZE(cases); c++) {
			size_t done = 12345;

			said.ret = cases[c].ret;
			said.out = cases[c].out;
			said.leave_out = cases[c].leave_out;
			fake.ioctls = 0;
			assert_int_equal(typed[t].call(u, 1, &done), cases[c].ret);
			assert_int_equal(done, cases[c].done);
			assert_int_equal(fake.ioctls, 1);
			assert_true(said.request == typed[t].request);
		}
	}
	free(u);
}

static void typed_refuse_before_the_kernel(void **state)
{
	struct libuffd *u = fake_handle(0);

	(void)state;
	fake_reset();
	fake.ioctl = say;
	for (size_t t = 0; t < ARRAY_SIZE(typed); t++) {
		size_t done = 12345;

		assert_int_equal(typed[t].call(NULL, 0, &done), -EINVAL);
		assert_int_equal(done, 0);
		assert_int_equal(typed[t].call(u, 0, NULL), -EINVAL);
		for (int bit = 0; bit < 64; bit++) {
			if (typed[t].flags >> bit & 1)
				continue;
			done = 12345;
			assert_int_equal(typed[t].call(u, UINT64_C(1) << bit, &done), -EINVAL);
			assert_int_equal(done, 0);
		}
	}
	assert_int_equal(libuffd_writeprotect(u, BASE, PAGE, 4), -EINVAL);
	assert_int_equal(libuffd_writeprotect(NULL, BASE, PAGE, 0), -EINVAL);
	assert_int_equal(libuffd_rwprotect(u, BASE, PAGE, 4), -EINVAL);
	assert_int_equal(libuffd_rwprotect(NULL, BASE, PAGE, 0), -EINVAL);
	assert_int_equal(libuffd_wake(NULL, BASE, PAGE), -EINVAL);
	assert_int_equal(libuffd_set_mode(NULL, 0, 0), -EINVAL);
	assert_int_equal(libuffd_register(NULL, BASE, PAGE, 1, NULL), -EINVAL);
	assert_int_equal(libuffd_unregister(NULL, BASE, PAGE), -EINVAL);
	assert_int_equal(fake.ioctls, 0);
	free(u);
}

static int say_unregistered(int fd, unsigned long request, void *arg)
{
	const struct uapi_range *r = arg;

	(void)fd;
	assert_true(r->start == BASE && r->len == PAGE);
	assert_true(request == (fake.ioctls == 1 ? UAPI_IOC_UNREGISTER : UAPI_IOC_WAKE));
	return fake.ioctls == 1 ? said.ret : 0;
}

/* The kernel leaves waiters for WP, MINOR and RWP asleep; a failure may have unregistered a part. */
static void unregister_wakes_also_after_a_failure(void **state)
{
	struct libuffd *u = fake_handle(0);

	(void)state;
	for (int i = 0; i < 2; i++) {
		fake_reset();
		fake.ioctl = say_unregistered;
		said.ret = i ? -ENOMEM : 0;
		assert_int_equal(libuffd_unregister(u, BASE, PAGE), said.ret);
		assert_int_equal(fake.ioctls, 2);
	}
	free(u);
}

/* ---- A model of memory, for libuffd_resolve() -------------------------------------------------- */

#define PAGES 64
/* COPY's source in the model: told from the library's zeros by its place, and never read. */
#define SOURCE (BASE * 2)

static struct {
	struct {
		bool gone; /* not registered */
		bool present;
		bool mark;	 /* absent, but marked write-protected */
		bool wp;	 /* protected */
		bool asleep;	 /* somebody waits for it */
		uint64_t source; /* where its bytes came from */
		int vma;
	} page[PAGES];
	unsigned int unit; /* pages per page of this memory: more than 1 is hugetlb */
	bool wp_registered;
	unsigned int again;  /* refuse one call in so many with EAGAIN; 0 never */
	unsigned int stop;   /* stop one call in so many half way */
	bool layout_changes; /* EAGAIN for ever */
	int fail_page;	     /* this page cannot be had: fail_error; or -1 */
	int fail_error;
	bool mark_first; /* a mark is in the way of ZEROPAGE before fail_page is */
	bool old_out;	 /* leave the out field alone on EAGAIN, as up to 6.1 */
	unsigned int wakes;
	unsigned int seed;
} mem;

static unsigned int dice(unsigned int n)
{
	mem.seed = mem.seed * 1103515245u + 12345u;
	return (mem.seed >> 16) % n;
}

static void mem_reset(void)
{
	memset(&mem, 0, sizeof(mem));
	mem.unit = 1;
	mem.fail_page = -1;
}

static bool all_zero(uint64_t source, uint64_t len)
{
	const unsigned char *p = (const unsigned char *)(uintptr_t)source;

	for (uint64_t i = 0; i < len; i++)
		if (p[i])
			return false;
	return true;
}

/* Install pages until something is in the way, and report as the kernel does. */
static int model_install(unsigned long request, uint64_t start, uint64_t len, uint64_t mode,
			 uint64_t source, int64_t *out)
{
	size_t first = (start - BASE) / PAGE, n = len / PAGE, i;
	bool wp = request != UAPI_IOC_MOVE && mode & 2;
	int error = 0;

	assert_true(start >= BASE && first + n <= PAGES && n);
	assert_int_equal(start % (mem.unit * PAGE), 0);
	assert_int_equal(len % (mem.unit * PAGE), 0);
	if (mem.layout_changes || (mem.again && !dice(mem.again))) {
		if (!mem.old_out)
			*out = -EAGAIN;
		return -EAGAIN;
	}
	if (wp && !mem.wp_registered)
		return -EINVAL;
	if (request == UAPI_IOC_ZEROPAGE && mem.unit > 1)
		return -EINVAL;
	for (i = first; i < first + n; i++)
		if (mem.page[i].gone || mem.page[i].vma != mem.page[first].vma)
			error = request == UAPI_IOC_MOVE ? -EINVAL : -ENOENT;
	if (error) {
		*out = error;
		return error;
	}
	for (i = first; i < first + n; i += mem.unit) {
		if (mem.mark_first && mem.page[i].mark && request == UAPI_IOC_ZEROPAGE)
			error = -EEXIST;
		else if ((int)i == mem.fail_page)
			error = mem.fail_error;
		else if (mem.page[i].present)
			error = -EEXIST;
		else if (mem.page[i].mark && request == UAPI_IOC_ZEROPAGE)
			error = -EEXIST;
		else if (i > first && mem.stop && !dice(mem.stop))
			error = -EAGAIN;
		if (error)
			break;
		for (size_t k = i; k < i + mem.unit; k++) {
			mem.page[k].present = true;
			mem.page[k].mark = false;
			mem.page[k].wp = wp;
			mem.page[k].source = source ? source + (k - first) * PAGE : 0;
		}
	}
	if (!(mode & 1))
		for (size_t k = first; k < i; k++)
			mem.page[k].asleep = false;
	if (!error) {
		*out = (int64_t)len;
		return 0;
	}
	if (i == first) {
		*out = error;
		return error;
	}
	*out = (int64_t)((i - first) * PAGE);
	return -EAGAIN;
}

static int model_protect(const struct uapi_protect *arg)
{
	size_t first = (arg->range.start - BASE) / PAGE, n = arg->range.len / PAGE;
	bool on = arg->mode & LIBUFFD_WRITEPROTECT_WP;

	assert_true(first + n <= PAGES && n);
	assert_false(on && arg->mode & LIBUFFD_WRITEPROTECT_DONTWAKE);
	if (mem.layout_changes || (mem.again && !dice(mem.again)))
		return -EAGAIN;
	/* Earlier mappings stay protected when a later one is not registered. */
	for (size_t i = first; i < first + n; i++) {
		if (mem.page[i].gone || mem.page[i].vma != mem.page[first].vma)
			return -ENOENT;
		if (mem.page[i].present)
			mem.page[i].wp = on;
		else
			mem.page[i].mark = on;
	}
	if (!on && !(arg->mode & LIBUFFD_WRITEPROTECT_DONTWAKE))
		for (size_t i = first; i < first + n; i++)
			mem.page[i].asleep = false;
	return 0;
}

static int model_ioctl(int fd, unsigned long request, void *arg)
{
	struct uapi_transfer *t = arg;
	struct uapi_fill *f = arg;
	struct uapi_range *r = arg;
	bool zeros = false;

	assert_int_equal(fd, 3);
	switch (request) {
	case UAPI_IOC_COPY:
		zeros = t->src - SOURCE >= PAGES * PAGE && all_zero(t->src, t->len);
		return model_install(request, t->dst, t->len, t->mode, zeros ? 0 : t->src, &t->out);
	case UAPI_IOC_MOVE:
		return model_install(request, t->dst, t->len, t->mode, t->src, &t->out);
	case UAPI_IOC_ZEROPAGE:
	case UAPI_IOC_CONTINUE:
	case UAPI_IOC_POISON:
		return model_install(request, f->range.start, f->range.len, f->mode, 0, &f->out);
	case UAPI_IOC_WRITEPROTECT:
	case UAPI_IOC_RWPROTECT:
		return model_protect(arg);
	case UAPI_IOC_WAKE:
		/* Zeros of ours may lie where a waiter's memory was: gone before he looks. */
		assert_int_equal(fake.mapped, 0);
		mem.wakes++;
		for (uint64_t at = r->start; at < r->start + r->len; at += PAGE)
			mem.page[(at - BASE) / PAGE].asleep = false;
		return 0;
	default:
		fail_msg("an ioctl that resolve has no use for");
		return -ENOSYS;
	}
}

static struct libuffd *model(uint64_t features)
{
	fake_reset();
	fake.ioctl = model_ioctl;
	return fake_handle(features);
}

static struct libuffd_answer answer(uint32_t kind, size_t first, size_t n)
{
	struct libuffd_answer a = LIBUFFD_ANSWER_INIT;

	a.kind = kind;
	a.start = BASE + first * PAGE;
	a.len = n * PAGE;
	if (kind == LIBUFFD_ANSWER_COPY)
		a.data = (const void *)(uintptr_t)(SOURCE + first * PAGE);
	if (kind == LIBUFFD_ANSWER_MOVE)
		a.from = SOURCE + first * PAGE;
	return a;
}

static void all_asleep(void)
{
	for (size_t i = 0; i < PAGES; i++)
		mem.page[i].asleep = true;
}

static void plain_answer_is_one_ioctl(void **state)
{
	struct libuffd *u = model(0);

	(void)state;
	for (uint32_t kind = 1; kind <= 9; kind++) {
		struct libuffd_answer a = answer(kind, 0, 4);
		size_t done = 0;

		mem_reset();
		fake.ioctls = 0;
		assert_int_equal(libuffd_resolve(u, &a, &done), 0);
		assert_int_equal(done, 4 * PAGE);
		assert_int_equal(fake.ioctls, 1);
	}
	free(u);
}

static void present_pages_are_passed_over_and_woken(void **state)
{
	struct libuffd *u = model(0);

	(void)state;
	for (uint32_t kind = LIBUFFD_ANSWER_COPY; kind <= LIBUFFD_ANSWER_POISON; kind++) {
		struct libuffd_answer a = answer(kind, 0, 6);
		size_t done = 0;

		mem_reset();
		all_asleep();
		mem.page[0].present = mem.page[3].present = mem.page[5].present = true;
		assert_int_equal(libuffd_resolve(u, &a, &done), 0);
		assert_int_equal(done, 6 * PAGE);
		for (size_t i = 0; i < PAGES; i++)
			assert_int_equal(mem.page[i].asleep, i >= 6);
		if (kind == LIBUFFD_ANSWER_COPY)
			assert_true(mem.page[4].source == SOURCE + 4 * PAGE);
	}
	free(u);
}

static void dontwake_wakes_nobody(void **state)
{
	struct libuffd *u = model(0);
	struct libuffd_answer a = answer(LIBUFFD_ANSWER_COPY, 0, 6);

	(void)state;
	mem_reset();
	all_asleep();
	mem.page[3].present = true;
	a.flags = LIBUFFD_RESOLVE_DONTWAKE;
	assert_int_equal(libuffd_resolve(u, &a, NULL), 0);
	for (size_t i = 0; i < 6; i++)
		assert_true(mem.page[i].present && mem.page[i].asleep);
	assert_int_equal(mem.wakes, 0);
	free(u);
}

/* Huge pages: stepping over one means all of it, and zeros are copied, whole pages at a time. */
static void hugetlb_goes_by_huge_pages(void **state)
{
	struct libuffd *u = model(LIBUFFD_FEATURE_WP_UNPOPULATED);
	struct libuffd_answer a = answer(LIBUFFD_ANSWER_ZERO, 0, 32);
	size_t done;

	(void)state;
	mem_reset();
	all_asleep();
	mem.unit = 8;
	for (size_t i = 8; i < 16; i++)
		mem.page[i].present = true;
	a.page_size = 8 * PAGE;
	assert_int_equal(libuffd_resolve(u, &a, &done), 0);
	assert_int_equal(done, 32 * PAGE);
	for (size_t i = 0; i < 32; i++)
		assert_true(mem.page[i].present && !mem.page[i].asleep);
	free(u);
}

/* The zeros of a huge page are mapped for it. Without memory for them the answer fails, and can be given again. */
static void zeros_of_a_huge_page_want_memory(void **state)
{
	struct libuffd *u = model(LIBUFFD_FEATURE_WP_UNPOPULATED);
	struct libuffd_answer a = answer(LIBUFFD_ANSWER_ZERO, 0, 8);
	size_t done = 1;

	(void)state;
	mem_reset();
	mem.unit = 8;
	a.page_size = 8 * PAGE;
	fake.no_memory = true;
	assert_int_equal(libuffd_resolve(u, &a, &done), -ENOMEM);
	assert_int_equal(done, 0);
	assert_false(mem.page[0].present);
	fake.no_memory = false;
	assert_int_equal(libuffd_resolve(u, &a, &done), 0);
	assert_int_equal(done, 8 * PAGE);
	assert_true(mem.page[7].present);
	free(u);
}

static void splits_at_mappings(void **state)
{
	struct libuffd *u = model(0);

	(void)state;
	for (uint32_t kind = 1; kind <= 9; kind++) {
		for (size_t border = 1; border < 13; border++) {
			struct libuffd_answer a = answer(kind, 0, 13);
			size_t done;

			mem_reset();
			for (size_t i = border; i < PAGES; i++)
				mem.page[i].vma = i < 9 ? 1 : 2;
			assert_int_equal(libuffd_resolve(u, &a, &done), 0);
			assert_int_equal(done, 13 * PAGE);
			/* A search by halving, not a walk by pages. */
			assert_true(fake.ioctls < 40);
			fake.ioctls = 0;
		}
	}
	free(u);
}

/* What is unmapped will never come: its waiters must fault again and see for themselves. */
static void gone_pages_end_it_and_wake_the_rest(void **state)
{
	struct libuffd *u = model(0);

	(void)state;
	for (uint32_t kind = 1; kind <= 9; kind++) {
		struct libuffd_answer a = answer(kind, 0, 9);
		size_t done;

		mem_reset();
		all_asleep();
		mem.page[5].gone = true;
		assert_int_equal(libuffd_resolve(u, &a, &done),
				 kind == LIBUFFD_ANSWER_MOVE ? -EINVAL : -ENOENT);
		assert_int_equal(done, 5 * PAGE);
		if (kind != LIBUFFD_ANSWER_MOVE)
			for (size_t i = 5; i < 9; i++)
				assert_false(mem.page[i].asleep);
	}
	free(u);
}

static void again_is_told_apart_from_failure(void **state)
{
	struct libuffd *u = model(LIBUFFD_FEATURE_EVENT_REMOVE);

	(void)state;
	for (int old = 0; old < 2; old++) {
		for (uint32_t kind = 1; kind <= 9; kind++) {
			struct libuffd_answer a = answer(kind, 0, 4);
			size_t done = 99;

			mem_reset();
			all_asleep();
			mem.layout_changes = true;
			mem.old_out = old;
			fake.ioctls = 0;
			assert_int_equal(libuffd_resolve(u, &a, &done), -EAGAIN);
			assert_int_equal(done, 0);
			/* The events must be read before anything can change: no spinning here. */
			assert_true(fake.ioctls <= 4);
			assert_true(mem.page[0].asleep);
		}
	}
	free(u);
}

/* With no event enabled the layout cannot be what is in the way: a race, that passes. */
static void passing_races_are_retried(void **state)
{
	struct libuffd *u = model(0);
	struct libuffd_answer a = answer(LIBUFFD_ANSWER_COPY, 0, 40);
	size_t done;

	(void)state;
	mem_reset();
	mem.again = 2;
	mem.stop = 3;
	assert_int_equal(libuffd_resolve(u, &a, &done), 0);
	assert_int_equal(done, 40 * PAGE);
	free(u);
}

static void hard_errors_pass_and_leave_waiters(void **state)
{
	static const int errors[] = { -EFAULT, -ENOMEM, -EIO, -EBUSY, -ESRCH, -EINTR };
	struct libuffd *u = model(0);

	(void)state;
	for (size_t e = 0; e < ARRAY_SIZE(errors); e++) {
		struct libuffd_answer a = answer(LIBUFFD_ANSWER_COPY, 0, 9);
		size_t done;

		mem_reset();
		all_asleep();
		mem.fail_page = 4;
		mem.fail_error = errors[e];
		mem.page[2].present = true;
		assert_int_equal(libuffd_resolve(u, &a, &done), errors[e]);
		assert_int_equal(done, 4 * PAGE);
		for (size_t i = 0; i < 9; i++)
			assert_int_equal(mem.page[i].asleep, i >= 4);
	}
	free(u);
}

/* ---- The promise of write-protection ---------------------------------------------------------- */

static void present_pages_are_protected_too(void **state)
{
	struct libuffd *u = model(LIBUFFD_FEATURE_PAGEFAULT_FLAG_WP);

	(void)state;
	for (uint32_t kind = LIBUFFD_ANSWER_COPY; kind <= LIBUFFD_ANSWER_CONTINUE; kind++) {
		struct libuffd_answer a = answer(kind, 0, 6);

		mem_reset();
		mem.wp_registered = true;
		mem.page[3].present = true;
		a.flags = LIBUFFD_RESOLVE_WP;
		assert_int_equal(libuffd_resolve(u, &a, NULL), 0);
		for (size_t i = 0; i < 6; i++)
			assert_true(mem.page[i].present && mem.page[i].wp);
	}
	free(u);
}

/* With WP_ASYNC unprotected means written: protecting again would lose that. */
static void written_pages_stay_written(void **state)
{
	struct libuffd *u = model(LIBUFFD_FEATURE_WP_ASYNC | LIBUFFD_FEATURE_WP_UNPOPULATED);
	struct libuffd_answer a = answer(LIBUFFD_ANSWER_COPY, 0, 6);

	(void)state;
	mem_reset();
	mem.wp_registered = true;
	mem.page[3].present = true;
	a.flags = LIBUFFD_RESOLVE_WP;
	assert_int_equal(libuffd_resolve(u, &a, NULL), 0);
	for (size_t i = 0; i < 6; i++)
		assert_int_equal(mem.page[i].wp, i != 3);
	free(u);
}

/* ZEROPAGE has no protected form; between it and a WRITEPROTECT a write could slip through. */
static void protected_zeros_come_in_one_step(void **state)
{
	struct libuffd *u = model(LIBUFFD_FEATURE_PAGEFAULT_FLAG_WP);
	struct libuffd_answer a = answer(LIBUFFD_ANSWER_ZERO, 0, 40);

	(void)state;
	mem_reset();
	mem.wp_registered = true;
	a.flags = LIBUFFD_RESOLVE_WP;
	fake.ioctls = 0;
	assert_int_equal(libuffd_resolve(u, &a, NULL), 0);
	/* 16 pages of zeros at a time. */
	assert_int_equal(fake.ioctls, 3);
	for (size_t i = 0; i < 40; i++)
		assert_true(mem.page[i].present && mem.page[i].wp && mem.page[i].source == 0);
	free(u);
}

/* An absent page that is marked protected: EEXIST for ZEROPAGE, and a fault for ever. */
static void zeros_replace_the_mark_of_protection(void **state)
{
	struct libuffd *u = model(0);
	struct libuffd_answer a = answer(LIBUFFD_ANSWER_ZERO, 0, 6);

	(void)state;
	mem_reset();
	all_asleep();
	mem.wp_registered = true;
	mem.page[2].mark = mem.page[3].mark = true;
	mem.page[4].present = true;
	assert_int_equal(libuffd_resolve(u, &a, NULL), 0);
	for (size_t i = 0; i < 6; i++) {
		assert_true(mem.page[i].present && !mem.page[i].asleep);
		assert_int_equal(mem.page[i].wp, i == 2 || i == 3);
	}
	free(u);
}

static void zeros_over_a_mark_obey_and_report(void **state)
{
	struct libuffd *u = model(0);
	struct libuffd_answer a = answer(LIBUFFD_ANSWER_ZERO, 0, 4);
	size_t done;

	(void)state;
	mem_reset();
	all_asleep();
	mem.wp_registered = true;
	mem.page[2].mark = true;
	a.flags = LIBUFFD_RESOLVE_DONTWAKE;
	assert_int_equal(libuffd_resolve(u, &a, &done), 0);
	assert_true(mem.page[2].present && mem.page[2].wp && mem.page[2].asleep);

	mem_reset();
	mem.wp_registered = true;
	mem.page[2].mark = true;
	mem.fail_page = 2;
	mem.fail_error = -ENOMEM;
	mem.mark_first = true;
	assert_int_equal(libuffd_resolve(u, &a, &done), -ENOMEM);
	assert_int_equal(done, 2 * PAGE);
	free(u);
}

/* ---- Chunks ----------------------------------------------------------------------------------- */

#define HUGE_BASE (UINT64_C(1) << 30) /* on the border of a page of 1 GiB */
static uint64_t longest, total;

static int measure_protect(int fd, unsigned long request, void *arg)
{
	const struct uapi_protect *p = arg;

	(void)fd;
	assert_true(request == UAPI_IOC_WRITEPROTECT);
	longest = p->range.len > longest ? p->range.len : longest;
	assert_true(p->range.start == HUGE_BASE + total);
	total += p->range.len;
	return 0;
}

/* The address space's lock is held for a whole WRITEPROTECT: long ranges must not be one. */
static void protection_goes_in_chunks(void **state)
{
	struct libuffd_answer a = LIBUFFD_ANSWER_INIT;
	struct libuffd *u = model(0);
	size_t done;

	(void)state;
	fake.ioctl = measure_protect;
	longest = total = 0;
	a.kind = LIBUFFD_ANSWER_PROTECT;
	a.start = HUGE_BASE;
	a.len = UINT64_C(1) << 30;
	assert_int_equal(libuffd_resolve(u, &a, &done), 0);
	assert_true(total == a.len && done == a.len);
	assert_true(longest == UINT64_C(16) << 20);

	/* A huge page larger than a chunk goes whole. */
	longest = total = 0;
	a.page_size = UINT64_C(1) << 30;
	assert_int_equal(libuffd_resolve(u, &a, &done), 0);
	assert_true(longest == a.len);
	free(u);
}

/* ---- Everything at random --------------------------------------------------------------------- */

static void random_memory(void)
{
	int vma = 0;

	mem_reset();
	mem.seed = (unsigned int)rand();
	for (size_t i = 0; i < PAGES; i++) {
		if (!dice(10))
			vma++;
		mem.page[i].vma = vma;
		mem.page[i].present = !dice(4);
		mem.page[i].gone = !dice(60);
		mem.page[i].asleep = dice(2);
	}
	mem.again = dice(2) ? 4 : 0;
	mem.stop = dice(2) ? 5 : 0;
	mem.old_out = dice(2);
}

static void random_answer(struct libuffd *u, unsigned int seed)
{
	uint32_t kind = 1 + dice(5);
	size_t first = dice(PAGES / 2), n = 1 + dice(PAGES / 2), i = 0, done = 99;
	struct libuffd_answer a = answer(kind, first, n);
	bool dontwake = !dice(3);
	int ret;

	a.flags = dontwake ? LIBUFFD_RESOLVE_DONTWAKE : 0;
	ret = libuffd_resolve(u, &a, &done);
	if (ret == 0 && done != a.len)
		fail_msg("seed %u: 0, but done %zu of %zu", seed, done, (size_t)a.len);
	if (ret != 0 && ret != -ENOENT && ret != -EINVAL)
		fail_msg("seed %u: %d", seed, ret);
	if (ret == -EINVAL && kind != LIBUFFD_ANSWER_MOVE)
		fail_msg("seed %u: EINVAL of kind %u", seed, kind);
	for (i = first; i < first + done / PAGE; i++) {
		if (!mem.page[i].present)
			fail_msg("seed %u: page %zu is not there", seed, i);
		if (!dontwake && mem.page[i].asleep)
			fail_msg("seed %u: page %zu is there, its waiter asleep", seed, i);
	}
	if (ret == -ENOENT && !dontwake)
		for (; i < first + n; i++)
			if (mem.page[i].asleep)
				fail_msg("seed %u: page %zu is gone, its waiter asleep", seed, i);
	if (ret < 0 && !mem.page[first + done / PAGE].gone)
		fail_msg("seed %u: page %zu is not the one that failed", seed, first + done / PAGE);
	if (dontwake && mem.wakes)
		fail_msg("seed %u: a wake in spite of DONTWAKE", seed);
}

static void random_kernels(void **state)
{
	struct libuffd *u = model(0);

	(void)state;
	for (unsigned int seed = 1; seed <= 20000; seed++) {
		srand(seed);
		random_memory();
		random_answer(u, seed);
	}
	free(u);
}

/* ---- Bad answers ------------------------------------------------------------------------------- */

/* Ranges that make no sense: the kernel sees that before it does anything, and so may be asked. */
static int refuse_ranges(int fd, unsigned long request, void *arg)
{
	(void)fd;
	(void)request;
	(void)arg;
	return mem.layout_changes ? -EAGAIN : -EINVAL;
}

#define REFUSED(change)                                                   \
	do {                                                              \
		a = good;                                                 \
		change;                                                   \
		done = 99;                                                \
		assert_int_equal(libuffd_resolve(u, &a, &done), -EINVAL); \
		assert_int_equal(done, 0);                                \
	} while (0)

static void bad_answers_do_not_reach_the_kernel(void **state)
{
	struct libuffd *u = model(0);
	struct libuffd_answer good = answer(LIBUFFD_ANSWER_COPY, 0, 4), a;
	size_t done = 99;

	(void)state;
	mem_reset();
	REFUSED(a.size = 0);
	REFUSED(a.size = sizeof(a) - 8);
	REFUSED(a.kind = 0);
	REFUSED(a.kind = 10);
	REFUSED(a.kind = UINT32_MAX);
	REFUSED(a.flags = 8);
	REFUSED(a.flags = LIBUFFD_RESOLVE_ALLOW_SRC_HOLES);
	REFUSED(a.kind = LIBUFFD_ANSWER_POISON; a.flags = LIBUFFD_RESOLVE_WP);
	REFUSED(a.kind = LIBUFFD_ANSWER_PROTECT; a.flags = LIBUFFD_RESOLVE_DONTWAKE);
	REFUSED(a.page_size = 3);
	REFUSED(a.page_size = PAGE / 2);
	REFUSED(a.page_size = 3 * PAGE);
	REFUSED(a.page_size = 8 * PAGE);
	REFUSED(a.data = NULL);
	assert_int_equal(libuffd_resolve(NULL, &good, &done), -EINVAL);
	assert_int_equal(libuffd_resolve(u, NULL, &done), -EINVAL);
	assert_int_equal(fake.ioctls, 0);
	free(u);
}

static void bad_ranges_are_invalid_whatever_the_kernel_says_first(void **state)
{
	struct libuffd *u = model(LIBUFFD_FEATURE_EVENT_REMOVE);
	struct libuffd_answer good = answer(LIBUFFD_ANSWER_COPY, 0, 4), a;
	size_t done = 99;

	(void)state;
	mem_reset();
	fake.ioctl = refuse_ranges;
	for (int changing = 0; changing < 2; changing++) {
		mem.layout_changes = changing;
		REFUSED(a.start++);
		REFUSED(a.len++);
		REFUSED(a.len = 0);
		REFUSED(a.start = UINT64_MAX - PAGE + 1; a.len = 2 * PAGE);
		REFUSED(a.start = PAGE * 2; a.len = UINT64_MAX - PAGE + 1);
		REFUSED(a.data = (const void *)(UINTPTR_MAX - PAGE));
		REFUSED(a.kind = LIBUFFD_ANSWER_MOVE; a.from = BASE + 1);
		REFUSED(a.kind = LIBUFFD_ANSWER_MOVE; a.from = UINT64_MAX - PAGE + 1);
	}
	/* One call each, and no search for a border that is not there. */
	assert_true(fake.ioctls <= 16);
	free(u);
}

/* A program built against a later header, whose struct is longer. */
static void a_longer_answer_is_taken_if_it_says_no_more(void **state)
{
	struct {
		struct libuffd_answer a;
		uint64_t more[2];
	} later = { answer(LIBUFFD_ANSWER_COPY, 0, 4), { 0, 0 } };
	struct libuffd *u = model(0);
	size_t done;

	(void)state;
	mem_reset();
	later.a.size = sizeof(later);
	assert_int_equal(libuffd_resolve(u, &later.a, &done), 0);
	assert_int_equal(done, 4 * PAGE);
	assert_true(mem.page[3].source == SOURCE + 3 * PAGE);
	assert_int_equal(libuffd_sigbus(u, &later.a, 0, BASE + PAGE, BUS_ADRERR), 1);
	later.more[1] = 1;
	assert_int_equal(libuffd_resolve(u, &later.a, &done), -E2BIG);
	assert_int_equal(libuffd_sigbus(u, &later.a, 0, BASE + PAGE, BUS_ADRERR), -E2BIG);
	later.a.size = UINT32_MAX;
	assert_int_equal(libuffd_resolve(u, &later.a, &done), -E2BIG);
	free(u);
}

/* ---- In the faulting thread -------------------------------------------------------------------- */

static void sigbus_answers_what_is_ours(void **state)
{
	struct libuffd_answer region = answer(LIBUFFD_ANSWER_COPY, 8, 21);
	struct libuffd *u = model(LIBUFFD_FEATURE_SIGBUS);
	uint64_t at = BASE + 20 * PAGE + 123;

	(void)state;
	mem_reset();
	assert_int_equal(libuffd_sigbus(u, &region, 0, BASE + 8 * PAGE - 1, BUS_ADRERR), 0);
	assert_int_equal(libuffd_sigbus(u, &region, 0, BASE + 29 * PAGE, BUS_ADRERR), 0);
	assert_int_equal(libuffd_sigbus(u, &region, 0, at, BUS_MCEERR_AR), 0);
	assert_int_equal(fake.ioctls, 0);

	errno = ERANGE;
	assert_int_equal(libuffd_sigbus(u, &region, 0, at, BUS_ADRERR), 1);
	assert_int_equal(errno, ERANGE);
	for (size_t i = 0; i < PAGES; i++)
		assert_int_equal(mem.page[i].present, i == 20);
	assert_true(mem.page[20].source == SOURCE + 20 * PAGE);

	/* The window is aligned by address and clipped to the region. */
	assert_int_equal(libuffd_sigbus(u, &region, 8 * PAGE, BASE + 27 * PAGE, BUS_ADRERR), 1);
	for (size_t i = 0; i < PAGES; i++)
		assert_int_equal(mem.page[i].present, i == 20 || (i >= 24 && i < 29));
	assert_true(mem.page[28].source == SOURCE + 28 * PAGE);
	assert_int_equal(libuffd_sigbus(u, &region, 16 * PAGE, BASE + 9 * PAGE, BUS_ADRERR), 1);
	for (size_t i = 0; i < 8; i++)
		assert_false(mem.page[i].present);
	assert_true(mem.page[8].present && mem.page[15].present && !mem.page[16].present);
	free(u);
}

static void sigbus_helps_the_page_when_a_neighbour_fails(void **state)
{
	struct libuffd_answer region = answer(LIBUFFD_ANSWER_COPY, 0, 16);
	struct libuffd *u = model(LIBUFFD_FEATURE_SIGBUS);

	(void)state;
	mem_reset();
	mem.fail_page = 1;
	mem.fail_error = -EFAULT;
	assert_int_equal(libuffd_sigbus(u, &region, 8 * PAGE, BASE + 5 * PAGE, BUS_ADRERR), 1);
	assert_true(mem.page[5].present);
	assert_int_equal(libuffd_sigbus(u, &region, 8 * PAGE, BASE + 1 * PAGE, BUS_ADRERR),
			 -EFAULT);
	free(u);
}

static void sigbus_lets_the_access_retry_while_the_layout_changes(void **state)
{
	struct libuffd_answer region = answer(LIBUFFD_ANSWER_ZERO, 0, 16);
	struct libuffd *u = model(LIBUFFD_FEATURE_SIGBUS | LIBUFFD_FEATURE_EVENT_REMOVE);

	(void)state;
	mem_reset();
	mem.layout_changes = true;
	assert_int_equal(libuffd_sigbus(u, &region, 0, BASE, BUS_ADRERR), 1);
	assert_int_equal(fake.yields, 1);
	free(u);
}

/* Poisoned already, and faulting still: answering again would go on for ever. */
static void sigbus_does_not_answer_poison_with_poison(void **state)
{
	struct libuffd_answer region = answer(LIBUFFD_ANSWER_POISON, 0, 16);
	struct libuffd *u = model(LIBUFFD_FEATURE_SIGBUS);

	(void)state;
	mem_reset();
	assert_int_equal(libuffd_sigbus(u, &region, 0, BASE, BUS_ADRERR), 1);
	assert_int_equal(libuffd_sigbus(u, &region, 0, BASE, BUS_ADRERR), 0);
	free(u);
}

static void sigbus_refuses_bad_arguments(void **state)
{
	struct libuffd_answer region = answer(LIBUFFD_ANSWER_ZERO, 0, 16);
	struct libuffd *u = model(LIBUFFD_FEATURE_SIGBUS);

	(void)state;
	assert_int_equal(libuffd_sigbus(NULL, &region, 0, BASE, BUS_ADRERR), -EINVAL);
	assert_int_equal(libuffd_sigbus(u, NULL, 0, BASE, BUS_ADRERR), -EINVAL);
	assert_int_equal(libuffd_sigbus(u, &region, 1, BASE, BUS_ADRERR), -EINVAL);
	assert_int_equal(libuffd_sigbus(u, &region, 3 * PAGE, BASE, BUS_ADRERR), -EINVAL);
	region.kind = LIBUFFD_ANSWER_PROTECT;
	assert_int_equal(libuffd_sigbus(u, &region, 0, BASE, BUS_ADRERR), -EINVAL);
	region.kind = 0;
	assert_int_equal(libuffd_sigbus(u, &region, 0, BASE, BUS_ADRERR), -EINVAL);
	assert_int_equal(fake.ioctls, 0);
	free(u);
}

static const struct CMUnitTest tests[] = {
	cmocka_unit_test(typed_progress),
	cmocka_unit_test(typed_refuse_before_the_kernel),
	cmocka_unit_test(unregister_wakes_also_after_a_failure),
	cmocka_unit_test(plain_answer_is_one_ioctl),
	cmocka_unit_test(present_pages_are_passed_over_and_woken),
	cmocka_unit_test(dontwake_wakes_nobody),
	cmocka_unit_test(hugetlb_goes_by_huge_pages),
	cmocka_unit_test(zeros_of_a_huge_page_want_memory),
	cmocka_unit_test(splits_at_mappings),
	cmocka_unit_test(gone_pages_end_it_and_wake_the_rest),
	cmocka_unit_test(again_is_told_apart_from_failure),
	cmocka_unit_test(passing_races_are_retried),
	cmocka_unit_test(hard_errors_pass_and_leave_waiters),
	cmocka_unit_test(present_pages_are_protected_too),
	cmocka_unit_test(written_pages_stay_written),
	cmocka_unit_test(protected_zeros_come_in_one_step),
	cmocka_unit_test(zeros_replace_the_mark_of_protection),
	cmocka_unit_test(zeros_over_a_mark_obey_and_report),
	cmocka_unit_test(protection_goes_in_chunks),
	cmocka_unit_test(random_kernels),
	cmocka_unit_test(bad_answers_do_not_reach_the_kernel),
	cmocka_unit_test(bad_ranges_are_invalid_whatever_the_kernel_says_first),
	cmocka_unit_test(a_longer_answer_is_taken_if_it_says_no_more),
	cmocka_unit_test(sigbus_answers_what_is_ours),
	cmocka_unit_test(sigbus_helps_the_page_when_a_neighbour_fails),
	cmocka_unit_test(sigbus_lets_the_access_retry_while_the_layout_changes),
	cmocka_unit_test(sigbus_does_not_answer_poison_with_poison),
	cmocka_unit_test(sigbus_refuses_bad_arguments),
};
UNIT_MAIN("resolve", tests)
