/* SPDX-License-Identifier: MIT */
/* Address spaces that fault, and what the server asks of the kernel about them. */
#include "fake-kernel.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

struct fk fk;

struct libuffd {
	int fd, way;
	struct fk_mm *mm;
};

static struct fk_mm *by_fd[FK_FDS];

#define LAYOUT                                                                                     \
	(LIBUFFD_FEATURE_EVENT_FORK | LIBUFFD_FEATURE_EVENT_REMAP | LIBUFFD_FEATURE_EVENT_REMOVE | \
	 LIBUFFD_FEATURE_EVENT_UNMAP)

/* ---- Time ------------------------------------------------------------------------------------------ */

int __wrap_clock_gettime(clockid_t clock, struct timespec *ts);
int __wrap_clock_gettime(clockid_t clock, struct timespec *ts)
{
	(void)clock;
	ts->tv_sec = (time_t)(fk.now / 1000000000);
	ts->tv_nsec = (long)(fk.now % 1000000000);
	return 0;
}

/* ---- Memory ---------------------------------------------------------------------------------------- */

void *__real_mmap64(void *addr, size_t len, int prot, int flags, int fd, off_t offset);
void *__wrap_mmap64(void *addr, size_t len, int prot, int flags, int fd, off_t offset);
void *__wrap_mmap64(void *addr, size_t len, int prot, int flags, int fd, off_t offset)
{
	if (fk.no_memory) {
		errno = ENOMEM;
		return MAP_FAILED;
	}
	return __real_mmap64(addr, len, prot, flags, fd, offset);
}

/* Whether a buffer has turned out to be a huge page. */
int __wrap_mincore(void *addr, size_t len, unsigned char *vec);
int __wrap_mincore(void *addr, size_t len, unsigned char *vec)
{
	(void)addr;
	memset(vec, fk.calm || chance(80), len / FK_PAGE);
	return 0;
}

/* Now and then the page cache has it, or a part. */
ssize_t __wrap_preadv64v2(int fd, const struct iovec *iov, int n, off_t offset, int flags);
ssize_t __wrap_preadv64v2(int fd, const struct iovec *iov, int n, off_t offset, int flags)
{
	size_t len = iov->iov_len;

	if (n != 1 || flags != RWF_NOWAIT)
		broken("reads with flags %#x", flags);
	if (!chance(20)) {
		errno = EAGAIN;
		return -1;
	}
	if (len > 1 && chance(20))
		len = 1 + (size_t)rnd(len - 1);
	return pread(fd, iov->iov_base, len, offset);
}

/* The first and the last eight bytes. */
static uint64_t tag_of(const unsigned char *data)
{
	uint64_t head, end;

	memcpy(&head, data, 8);
	memcpy(&end, data + FK_PAGE - 8, 8);
	if (head == end)
		return head;
	return end ? FK_TORN : head | FK_CUT;
}

static void put_tag(unsigned char *data, uint64_t tag)
{
	memcpy(data, &tag, 8);
	memcpy(data + FK_PAGE - 8, &tag, 8);
}

/* ---- Shared memory --------------------------------------------------------------------------------- */

static unsigned char in_files[FK_FILES][FK_FILE_PAGES * FK_PAGE] __attribute__((aligned(FK_PAGE)));

static unsigned char *bytes_of(const struct fk_file *f, unsigned int page)
{
	return f->at + page * FK_PAGE;
}

unsigned int fk_file(void)
{
	struct fk_file *f = &fk.file[fk.files];

	if (fk.files == FK_FILES)
		return 0;
	f->at = in_files[fk.files];
	for (unsigned int i = 0; i < FK_FILE_PAGES; i++)
		put_tag(bytes_of(f, i), FK_HOLE);
	return ++fk.files;
}

struct fk_file *fk_file_of(const struct fk_page *p)
{
	return p->file ? &fk.file[p->file - 1] : NULL;
}

static unsigned char *bytes(const struct fk_page *p)
{
	return bytes_of(fk_file_of(p), p->file_page);
}

bool fk_cached(const struct fk_page *p)
{
	return p->file && tag_of(bytes(p)) != FK_HOLE;
}

uint64_t fk_tag(const struct fk_page *p)
{
	return p->file ? tag_of(bytes(p)) : p->tag;
}

/* It is in nobody's page table. */
static void punch(struct fk_file *f, unsigned int page)
{
	f->own[page] = 0;
	put_tag(bytes_of(f, page), FK_HOLE);
	for (struct fk_mm *mm = fk.mms; mm; mm = mm->next)
		for (unsigned int i = 0; i < FK_SLOTS; i++) {
			struct fk_page *p = &mm->page[i];

			if (fk_file_of(p) == f && p->file_page == page && p->content == FK_BYTES)
				p->content = FK_ABSENT;
		}
}

void fk_write_file(struct fk_file *f, unsigned int page)
{
	f->own[page] = FK_OWN | ++fk.written;
	put_tag(bytes_of(f, page), f->own[page]);
}

/* Only of files. */
int __real_madvise(void *addr, size_t len, int advice);
int __wrap_madvise(void *addr, size_t len, int advice);
int __wrap_madvise(void *addr, size_t len, int advice)
{
	uintptr_t at = (uintptr_t)addr - (uintptr_t)in_files;

	if (advice != MADV_REMOVE)
		return __real_madvise(addr, len, advice);
	if (at >= sizeof(in_files) || at % FK_PAGE || len % FK_PAGE)
		broken("takes %#zx away from %p", len, addr);
	for (at /= FK_PAGE; len; at++, len -= FK_PAGE)
		punch(&fk.file[at / FK_FILE_PAGES], at % FK_FILE_PAGES);
	return 0;
}

/* ---- Address spaces -------------------------------------------------------------------------------- */

uint64_t fk_address(unsigned int slot)
{
	return FK_BASE + slot * FK_PAGE;
}

unsigned int fk_slot(uint64_t address)
{
	uint64_t slot = (address - FK_BASE) / FK_PAGE;

	return slot < FK_SLOTS ? (unsigned int)slot : FK_SLOTS;
}

static int open_fd(struct fk_mm *mm)
{
	static int null = -1;
	int fd;

	if (null < 0)
		null = open("/dev/null", O_RDWR | O_NONBLOCK | O_CLOEXEC);
	fd = fcntl(null, F_DUPFD_CLOEXEC, 0);
	if (fd < 0 || fd >= FK_FDS)
		broken("no descriptor: %d", fd);
	by_fd[fd] = mm;
	fk.opened++;
	return fd;
}

struct fk_mm *fk_mm_new(uint64_t features)
{
	struct fk_mm *mm = calloc(1, sizeof(*mm));

	mm->id = ++fk.ids;
	mm->features = features;
	mm->fd = -1;
	mm->next = fk.mms;
	fk.mms = mm;
	return mm;
}

void fk_mm_free(struct fk_mm *mm)
{
	struct fk_mm **at = &fk.mms;

	while (*at != mm)
		at = &(*at)->next;
	*at = mm->next;
	free(mm);
}

struct libuffd *fk_handle(struct fk_mm *mm, int way)
{
	struct libuffd *u = calloc(1, sizeof(*u));

	if (mm->fd < 0)
		mm->fd = open_fd(mm);
	u->fd = mm->fd;
	u->way = way;
	u->mm = mm;
	mm->u = u;
	return u;
}

struct fk_mm *fk_mm_of(const struct libuffd *u)
{
	return u->mm;
}

void fk_reset(void)
{
	while (fk.mms)
		fk_mm_free(fk.mms);
	memset(&fk, 0, sizeof(fk));
	memset(by_fd, 0, sizeof(by_fd));
}

static void wake(struct fk_mm *mm, unsigned int first, unsigned int end)
{
	for (unsigned int i = 0; i < FK_THREADS; i++) {
		struct fk_thread *t = &mm->thread[i];

		if (t->state == FK_WAITS && t->slot >= first && t->slot < end) {
			t->state = FK_WOKEN;
			trace("mm %u: thread %u is woken at %u", mm->id, i, t->slot);
		}
	}
}

/* The last descriptor is closed: who waits goes on, and reads zeros. */
static void release(struct fk_mm *mm)
{
	for (unsigned int i = 0; i < FK_SLOTS && !mm->dead; i++)
		if (mm->page[i].missing && mm->page[i].content == FK_ABSENT &&
		    !fk_cached(&mm->page[i]))
			broken("mm %u: closed, and slot %u reads as zeros", mm->id, i);
	mm->released = true;
	mm->fd = -1;
	mm->u = NULL;
	for (unsigned int i = 0; i < FK_SLOTS; i++) {
		struct fk_page *p = &mm->page[i];

		p->missing = p->minor = p->minds_wp = p->wp = false;
	}
	wake(mm, 0, FK_SLOTS);
}

int __real_close(int fd);
int __wrap_close(int fd);
int __wrap_close(int fd)
{
	if (fd >= 0 && fd < FK_FDS && by_fd[fd]) {
		release(by_fd[fd]);
		by_fd[fd] = NULL;
		fk.closed++;
	}
	return __real_close(fd);
}

bool fk_is_busy(const struct fk_mm *mm, unsigned int first, unsigned int n)
{
	for (unsigned int i = first; i < first + n; i++)
		if (mm->page[i].busy)
			return true;
	return false;
}

bool fk_registered(const struct fk_mm *mm, unsigned int first, unsigned int n)
{
	for (unsigned int i = first; i < first + n; i++)
		if (fk_is_registered(&mm->page[i]))
			return true;
	return false;
}

/* ---- Threads --------------------------------------------------------------------------------------- */

static void fault(struct fk_thread *t, uint64_t flags)
{
	t->state = FK_WAITS;
	t->read = false;
	t->flags = flags | (t->write ? LIBUFFD_FAULT_WRITE : 0);
}

/* Nobody is to be asked: what the file has, or zeros. It is protected only if it was before. */
static void map_itself(struct fk_page *p)
{
	if (p->file && !fk_cached(p))
		put_tag(bytes(p), FK_ZERO);
	p->asked |= p->file && !p->wp;
	p->content = FK_BYTES;
	p->tag = FK_ZERO;
}

static void write_to(struct fk_page *p)
{
	if (p->file) {
		fk_write_file(fk_file_of(p), p->file_page);
		return;
	}
	p->tag = FK_OWN | ++fk.written;
	p->own = true;
}

void fk_touch(struct fk_mm *mm, struct fk_thread *t)
{
	struct fk_page *p = &mm->page[t->slot];

	t->state = FK_RUNS;
	if (!p->vma)
		return; /* SIGSEGV */
	if (p->content == FK_ABSENT && (fk_cached(p) ? p->minor : p->missing)) {
		fault(t, fk_cached(p) ? LIBUFFD_FAULT_MINOR : 0);
		return;
	}
	if (p->content == FK_ABSENT)
		map_itself(p);
	if (p->content == FK_BYTES && t->write && p->wp) {
		fault(t, LIBUFFD_FAULT_WP);
		return;
	}
	law_access(mm, t->slot, t->write);
	if (t->write && p->content == FK_BYTES)
		write_to(p);
}

/* A handler runs; then the access faults once more, and sends another message. */
void fk_signal(struct fk_mm *mm, struct fk_thread *t)
{
	if (t->state == FK_WAITS)
		fk_touch(mm, t);
}

/* ---- System calls that change the layout ------------------------------------------------------------ */

struct fk_mutator *fk_mutator(struct fk_mm *mm)
{
	for (unsigned int i = 0; i < FK_MUTATORS; i++)
		if (mm->mutator[i].state == FK_IDLE) {
			memset(&mm->mutator[i], 0, sizeof(mm->mutator[i]));
			return &mm->mutator[i];
		}
	return NULL;
}

void fk_add_event(struct fk_mutator *m, uint32_t type, uint64_t a, uint64_t b, uint64_t c)
{
	m->event[m->n++] = (struct fk_event){ type, { a, b, c } };
}

void fk_mark_busy(struct fk_mm *mm, const struct fk_mutator *m, unsigned int first, unsigned int n)
{
	for (unsigned int i = first; i < first + n; i++)
		mm->page[i].busy = (uint8_t)(1 + (m - mm->mutator));
}

static void enqueue(struct fk_mm *mm, struct fk_mutator *m)
{
	m->state = FK_QUEUED;
	mm->queue[mm->queued++] = (unsigned int)(m - mm->mutator);
}

static void finish(struct fk_mm *mm, struct fk_mutator *m)
{
	for (unsigned int i = 0; i < FK_SLOTS; i++)
		if (mm->page[i].busy == 1 + (m - mm->mutator))
			mm->page[i].busy = 0;
	if (m->child)
		m->child->born = true;
	m->state = FK_IDLE;
}

/* Of a file the mark of a page that was protected stays in the page table, mostly also when the page has gone. */
static void zap_file(struct fk_page *p, bool punches)
{
	if (!punches)
		return;
	punch(fk_file_of(p), p->file_page);
	p->wp = p->wp && chance(50);
}

static void fk_zap(struct fk_mm *mm, const struct fk_mutator *m)
{
	for (unsigned int i = m->first; i < m->end; i++) {
		struct fk_page *p = &mm->page[i];

		if (!p->vma)
			continue;
		p->content = FK_ABSENT;
		if (p->file)
			zap_file(p, m->punches);
		else
			p->wp = false;
		law_zapped(mm, p);
	}
}

void fk_mutate(struct fk_mm *mm, struct fk_mutator *m)
{
	if (!m->n) {
		fk_zap(mm, m);
		finish(mm, m);
		return;
	}
	mm->changing += m->n;
	enqueue(mm, m);
}

bool fk_run_mutator(struct fk_mm *mm, struct fk_mutator *m)
{
	switch (m->state) {
	case FK_TOLD:
		mm->changing--;
		if (++m->at < m->n)
			enqueue(mm, m);
		else if (m->first < m->end)
			m->state = FK_TO_ZAP;
		else
			finish(mm, m);
		return true;
	case FK_TO_ZAP:
		fk_zap(mm, m);
		finish(mm, m);
		return true;
	default:
		return false;
	}
}

bool fk_settled(const struct fk_mm *mm)
{
	for (unsigned int i = 0; i < FK_MUTATORS; i++)
		if (mm->mutator[i].state != FK_IDLE)
			return false;
	return true;
}

void fk_exit(struct fk_mm *mm)
{
	for (unsigned int i = 0; i < FK_MUTATORS; i++) {
		struct fk_mutator *m = &mm->mutator[i];

		if (m->child && m->state == FK_QUEUED)
			m->child->dead = true;
		if (m->state != FK_IDLE)
			finish(mm, m);
	}
	for (unsigned int i = 0; i < FK_THREADS; i++)
		mm->thread[i].state = FK_RUNS;
	mm->queued = mm->changing = 0;
	mm->dead = true;
}

/* ---- Reading messages -------------------------------------------------------------------------------- */

/* As the kernel's: the type in the first byte, the argument from the eighth on. */
static void put_message(unsigned char *msg, uint32_t type, const uint64_t words[3])
{
	memset(msg, 0, SRV_MESSAGE_LEN);
	msg[0] = (unsigned char)type;
	memcpy(msg + 8, words, 24);
}

static unsigned int read_faults(struct fk_mm *mm, unsigned char *msgs, unsigned int max)
{
	unsigned int start = (unsigned int)rnd(FK_THREADS), n = 0;

	for (unsigned int i = 0; i < FK_THREADS && n < max; i++) {
		struct fk_thread *t = &mm->thread[(start + i) % FK_THREADS];
		uint64_t words[3] = { t->flags, fk_address(t->slot), 0 };

		if (t->state != FK_WAITS || t->read)
			continue;
		if (mm->features & LIBUFFD_FEATURE_EXACT_ADDRESS)
			words[1] += rnd(FK_PAGE);
		t->read = true;
		trace("mm %u: thread %u's fault at %u is read, flags %llu", mm->id,
		      (start + i) % FK_THREADS, t->slot, (unsigned long long)t->flags);
		t->reader = mm->readers;
		put_message(msgs + n++ * SRV_MESSAGE_LEN, LIBUFFD_EVENT_FAULT, words);
	}
	return n;
}

static void read_event(struct fk_mm *mm, unsigned char *msg)
{
	struct fk_mutator *m = &mm->mutator[mm->queue[0]];
	struct fk_event *e = &m->event[m->at];

	mm->queued--;
	memmove(mm->queue, mm->queue + 1, mm->queued * sizeof(mm->queue[0]));
	m->state = FK_TOLD;
	fk.events++;
	trace("mm %u: event %u is read: %u, %u, %llu pages", mm->id, e->type, fk_slot(e->words[0]),
	      fk_slot(e->words[1]), (unsigned long long)(e->words[2] / FK_PAGE));
	if (e->type == LIBUFFD_EVENT_FORK) {
		m->child->fd = open_fd(m->child);
		e->words[0] = (uint64_t)m->child->fd;
	}
	put_message(msg, e->type, e->words);
}

static bool fork_is_next(const struct fk_mm *mm)
{
	const struct fk_mutator *m = &mm->mutator[mm->queue[0]];

	return m->event[m->at].type == LIBUFFD_EVENT_FORK;
}

/* Bytes, or -errno; 0 where the kernel says EAGAIN. Faults first, then events. */
static int read_messages(struct fk_mm *mm, unsigned char *msgs)
{
	unsigned int max = fk.calm || chance(70) ? SRV_MESSAGES : 1 + (unsigned int)rnd(4), n;

	n = read_faults(mm, msgs, max);
	while (n < max && mm->queued && (fk.calm || chance(90))) {
		if (!n && !fk.calm && fork_is_next(mm) && chance(20))
			return -EMFILE;
		read_event(mm, msgs + n++ * SRV_MESSAGE_LEN);
	}
	return (int)(n * SRV_MESSAGE_LEN);
}

/* ---- The core's calls --------------------------------------------------------------------------------- */

int libuffd_fd(const struct libuffd *u)
{
	return u->fd;
}

uint64_t libuffd_features(const struct libuffd *u)
{
	return u->mm->features;
}

int libuffd_way(const struct libuffd *u)
{
	return u->way;
}

void libuffd_close(struct libuffd *u)
{
	if (!u)
		return;
	__wrap_close(u->fd);
	free(u);
}

/* Nothing but what was attached is asked about memory here. */
int libuffd_open(const struct libuffd_open_opts *opts, struct libuffd **out)
{
	(void)opts;
	*out = NULL;
	return -EPERM;
}

int libuffd_adopt(int fd, const struct libuffd_open_opts *opts, struct libuffd **out)
{
	if (opts || fd < 0 || fd >= FK_FDS || !by_fd[fd])
		broken("adopts descriptor %d", fd);
	*out = fk_handle(by_fd[fd], LIBUFFD_WAY_ADOPTED);
	return 0;
}

int libuffd_decode(const void *msg, size_t len, struct libuffd_event *out)
{
	const unsigned char *m = msg;
	uint64_t w[3];

	if (len != SRV_MESSAGE_LEN)
		broken("decodes %zu bytes", len);
	memset(out, 0, sizeof(*out));
	memcpy(w, m + 8, sizeof(w));
	out->type = m[0];
	if (out->type == LIBUFFD_EVENT_FAULT) {
		out->fault.flags = w[0];
		out->fault.address = w[1];
	} else if (out->type == LIBUFFD_EVENT_FORK) {
		out->fork.fd = (int32_t)w[0];
	} else {
		memcpy(out->words, w, sizeof(w));
	}
	return 0;
}

/* In slots; true if it is within bounds. */
static bool to_slots(uint64_t start, uint64_t len, unsigned int *first, unsigned int *n)
{
	if ((start | len) % FK_PAGE || !len || start < FK_BASE ||
	    start - FK_BASE + len > FK_SLOTS * FK_PAGE)
		return false;
	*first = fk_slot(start);
	*n = (unsigned int)(len / FK_PAGE);
	return true;
}

int libuffd_wake(const struct libuffd *u, uint64_t start, size_t len)
{
	uint64_t end = start + len;

	if ((start | len) % FK_PAGE || !len)
		broken("wakes %#llx + %#zx", (unsigned long long)start, len);
	if (end <= FK_BASE)
		return 0;
	start = start < FK_BASE ? FK_BASE : start;
	wake(u->mm, fk_slot(start), end - FK_BASE < FK_SLOTS * FK_PAGE ? fk_slot(end) : FK_SLOTS);
	return 0;
}

int libuffd_register(const struct libuffd *u, uint64_t start, uint64_t len, uint64_t modes,
		     uint64_t *ioctls)
{
	struct fk_mm *mm = u->mm;
	unsigned int first, n, found = 0;

	if (ioctls)
		*ioctls = 0;
	if (mm->dead)
		return -ENOMEM;
	if (!to_slots(start, len, &first, &n))
		return -EINVAL;
	for (unsigned int i = first; i < first + n; i++) {
		if (!mm->page[i].vma)
			continue;
		found++;
		mm->page[i].missing = modes & LIBUFFD_MODE_MISSING;
		mm->page[i].minor = modes & LIBUFFD_MODE_MINOR;
		mm->page[i].minds_wp = modes & LIBUFFD_MODE_WP;
	}
	return found ? 0 : -EINVAL;
}

/* Pages of unlike registration are mappings of their own. */
static void own_mapping(struct fk_mm *mm, unsigned int first, unsigned int n)
{
	uint32_t old = 0;

	for (unsigned int i = first; i < FK_SLOTS; i++) {
		struct fk_page *p = &mm->page[i];

		if (i >= first + n && p->vma != old)
			return;
		if (i == first + n || p->vma != old) {
			old = p->vma;
			mm->last_vma++;
		}
		if (p->vma)
			p->vma = mm->last_vma;
	}
}

int libuffd_unregister(const struct libuffd *u, uint64_t start, uint64_t len)
{
	struct fk_mm *mm = u->mm;
	unsigned int first, n;

	if (mm->dead)
		return -ENOMEM;
	if (!to_slots(start, len, &first, &n))
		return -EINVAL;
	own_mapping(mm, first, n);
	for (unsigned int i = first; i < first + n; i++) {
		struct fk_page *p = &mm->page[i];

		/* What mremap added to what had come to a place that was left is taken for what had been there. */
		if (p->vma && p->missing && !p->tail && p->content == FK_ABSENT && !fk_cached(p) &&
		    p->law != LAW_ZERO && p->law != LAW_PLAIN && p->law != LAW_EITHER)
			broken("mm %u: page %u is unregistered and was never supplied", mm->id, i);
		p->missing = p->minor = p->minds_wp = p->wp = false;
		if (!p->vma)
			continue;
		p->law = LAW_PLAIN;
		p->own = p->content == FK_BYTES;
		p->must_ask = false;
	}
	wake(mm, first, first + n);
	if (fk.unregistered)
		fk.unregistered(mm);
	return 0;
}

static bool one_mapping(const struct fk_mm *mm, unsigned int first, unsigned int n)
{
	for (unsigned int i = first; i < first + n; i++)
		if (!mm->page[i].vma || mm->page[i].vma != mm->page[first].vma ||
		    !fk_is_registered(&mm->page[i]))
			return false;
	return true;
}

/* What every resolving call looks at first, in the kernel's order. */
static int may_resolve(struct fk_mm *mm, uint64_t start, uint64_t len, unsigned int *first,
		       unsigned int *n)
{
	if (mm->released)
		broken("mm %u: an ioctl on a closed userfaultfd", mm->id);
	if (mm->changing) {
		fk.refused++;
		return -EAGAIN;
	}
	if (mm->dead)
		return -ESRCH;
	if ((start | len) % FK_PAGE || !len)
		broken("mm %u: answers %#llx + %#llx", mm->id, (unsigned long long)start,
		       (unsigned long long)len);
	if (!to_slots(start, len, first, n))
		return -ENOENT;
	if (!fk.calm && chance(2))
		return -EAGAIN;
	return one_mapping(mm, *first, *n) ? 0 : -ENOENT;
}

enum op { COPY, ZERO, CONTINUE, POISON };

/* 0, or why not. */
static int may_install(const struct fk_page *p, enum op op, bool wp)
{
	if (wp && !p->minds_wp)
		return -EINVAL;
	/* A mark in the page table is overwritten by pages, not by other marks; in private memory ZEROPAGE maps no page of its own. */
	if (p->content == FK_BYTES || (op == POISON && (p->content == FK_POISON || p->wp)) ||
	    (p->content == FK_POISON && op == ZERO && !p->file))
		return -EEXIST;
	if (op == CONTINUE)
		return !p->file ? -EINVAL : fk_cached(p) ? 0 : -EFAULT;
	return op != POISON && fk_cached(p) ? -EEXIST : 0;
}

static void put_in(struct fk_mm *mm, unsigned int slot, enum op op, uint64_t tag, bool wp)
{
	static const char *const names[] = { "bytes", "bytes", "its file's", "poison" };
	struct fk_page *p = &mm->page[slot];

	trace("mm %u: slot %u gets %s %#llx%s", mm->id, slot, names[op], (unsigned long long)tag,
	      wp ? " protected" : "");
	if (op == CONTINUE)
		law_map(mm, slot, tag, wp);
	else
		law_install(mm, slot, op == POISON ? FK_POISON : FK_BYTES, tag, wp);
	if (p->file && op != CONTINUE && op != POISON) {
		memset(bytes(p), 0, FK_PAGE);
		put_tag(bytes(p), tag & ~FK_CUT);
		if (tag & FK_CUT)
			memset(bytes(p) + FK_PAGE - 8, 0, 8);
	}
	p->content = op == POISON ? FK_POISON : FK_BYTES;
	p->tag = tag;
	p->wp = wp;
	p->own = false;
	p->keep_poison = op == POISON;
	p->asked_late = false;
	fk.continued += op == CONTINUE;
	fk.installed += op != POISON;
}

static int install_one(struct fk_mm *mm, unsigned int slot, enum op op, const unsigned char *data,
		       bool wp)
{
	struct fk_page *p = &mm->page[slot];
	int ret = may_install(p, op, wp);

	if (ret < 0)
		return ret;
	if (!fk.calm && rnd(1000) < fk.flaky) {
		p->may_poison = true;
		fk.memory_errors++;
		return -ENOMEM;
	}
	put_in(mm, slot, op, op == COPY ? tag_of(data) : op == CONTINUE ? fk_tag(p) : FK_ZERO, wp);
	return 0;
}

/*
 * A thread that had found nothing before the poison came goes to sleep behind the wake: to the kernel a mark is as good as
 * nothing when it looks a last time.
 */
static void come_late(struct fk_mm *mm, unsigned int slot)
{
	struct fk_thread *t = &mm->thread[rnd(FK_THREADS)];

	if (t->state != FK_RUNS || !mm->page[slot].missing)
		return;
	t->slot = slot;
	mm->page[slot].asked_late = true;
	fault(t, 0);
	trace("mm %u: a thread comes late to slot %u", mm->id, slot);
}

static int install(const struct libuffd *u, enum op op, uint64_t start, const void *src,
		   uint64_t len, uint64_t flags, size_t *done)
{
	struct fk_mm *mm = u->mm;
	unsigned int first, n, i;
	int ret = may_resolve(mm, start, len, &first, &n);
	const unsigned char *data = src;

	*done = 0;
	if (ret < 0)
		return ret;
	if (op == POISON && !(mm->features & LIBUFFD_FEATURE_POISON))
		return -EINVAL;
	for (i = 0; i < n && ret == 0; i++) {
		if (i && !fk.calm && chance(3))
			ret = -EAGAIN;
		else
			ret = install_one(mm, first + i, op, data ? data + i * FK_PAGE : NULL,
					  flags & LIBUFFD_COPY_WP);
		if (ret < 0)
			break;
	}
	*done = i * FK_PAGE;
	if (i)
		wake(mm, first, first + i);
	if (i && op == POISON && !fk.calm && chance(30))
		come_late(mm, first);
	return ret < 0 && i ? -EAGAIN : ret;
}

/* A copy that wakes nobody is how the server finds out whether a page is registered. */
static int probe(struct fk_mm *mm, uint64_t dst)
{
	unsigned int first, n;
	int ret = may_resolve(mm, dst, FK_PAGE, &first, &n);

	if (ret < 0)
		return ret;
	return mm->page[first].content == FK_BYTES || fk_cached(&mm->page[first]) ? -EEXIST
										  : -EFAULT;
}

int libuffd_copy(const struct libuffd *u, uint64_t dst, const void *src, size_t len, uint64_t flags,
		 size_t *done)
{
	*done = 0;
	if (flags & LIBUFFD_COPY_DONTWAKE)
		return probe(u->mm, dst);
	if (fk.to_copy == dst)
		fk.to_copy = 0;
	return install(u, COPY, dst, src, len, flags, done);
}

/* As before 6.7. */
int libuffd_scan_open(pid_t pid, struct libuffd_scanner **out)
{
	(void)pid;
	*out = NULL;
	return -ENOTTY;
}

int libuffd_scan(struct libuffd_scanner *s, const struct libuffd_scan_args *args,
		 struct libuffd_scan_range *out, size_t cap, uint64_t *walked)
{
	(void)s;
	(void)args;
	(void)out;
	(void)cap;
	(void)walked;
	return -ENOTTY;
}

void libuffd_scan_close(struct libuffd_scanner *s)
{
	(void)s;
}

int libuffd_continue(const struct libuffd *u, uint64_t dst, size_t len, uint64_t flags,
		     size_t *done)
{
	if (flags & LIBUFFD_CONTINUE_DONTWAKE)
		broken("continues, and wakes nobody");
	return install(u, CONTINUE, dst, NULL, len, flags, done);
}

int libuffd_poison(const struct libuffd *u, uint64_t dst, size_t len, uint64_t flags, size_t *done)
{
	if (flags)
		broken("poisons, and wakes nobody");
	return install(u, POISON, dst, NULL, len, 0, done);
}

/* The page leaves a hole behind: whoever looks there again finds no bytes. */
static int move_one(struct fk_mm *mm, unsigned int slot, unsigned char *from)
{
	uint64_t tag = tag_of(from);

	if (mm->page[slot].content != FK_ABSENT || mm->page[slot].wp)
		return -EEXIST;
	if (tag == FK_HOLE || (!fk.calm && chance(2)))
		return -ENOENT;
	if (!fk.calm && chance(3)) /* pinned, or shared after a fork */
		return -EBUSY;
	put_in(mm, slot, COPY, tag, false);
	put_tag(from, FK_HOLE);
	fk.moved++;
	return 0;
}

/* Only the first process is this one, and what is private; none of the kernel's -EINVAL says which it is. */
static int may_move(const struct fk_mm *mm, uint64_t dst, size_t len, unsigned int *first,
		    unsigned int *n)
{
	if (!(mm->features & LIBUFFD_FEATURE_MOVE))
		broken("mm %u: moves, and cannot", mm->id);
	if (mm->changing || (!fk.calm && chance(3)))
		return -EAGAIN;
	if (!mm->root || !to_slots(dst, len, first, n) || !one_mapping(mm, *first, *n) ||
	    mm->page[*first].file || mm->page[*first].locked)
		return -EINVAL;
	return 0;
}

/* Only pages that came in one huge page are moved; here they are small, and as many as SRV_MOVE_LEN says. */
int libuffd_move(const struct libuffd *u, uint64_t dst, uint64_t src, size_t len, uint64_t flags,
		 size_t *done)
{
	unsigned char *from = (void *)(uintptr_t)src;
	struct fk_mm *mm = u->mm;
	unsigned int first, n, i = 0;
	int ret;

	*done = 0;
	if (len != SRV_MOVE_LEN || (dst | src) % len || flags || mm->released)
		broken("mm %u: moves %#zx to %#llx", mm->id, len, (unsigned long long)dst);
	ret = may_move(mm, dst, len, &first, &n);
	for (; ret == 0 && i < n; i += ret == 0)
		ret = move_one(mm, first + i, from + i * FK_PAGE);
	*done = i * FK_PAGE;
	fk.not_moved += ret < 0;
	fk.to_copy = ret < 0 && !i ? dst : 0;
	if (i)
		wake(mm, first, first + i);
	return ret < 0 && i ? -EAGAIN : ret;
}

/* Takes a mark of protection away, where there is no page, or puts one there in a file. */
static int protect(struct fk_mm *mm, uint64_t start, bool wp, bool wakes)
{
	unsigned int first, n;
	int ret = may_resolve(mm, start, FK_PAGE, &first, &n);

	if (ret < 0)
		return ret;
	if (!mm->page[first].minds_wp)
		return -ENOENT;
	mm->page[first].wp = wp && (mm->page[first].content == FK_BYTES || mm->page[first].file);
	if (wakes)
		wake(mm, first, first + 1);
	return 0;
}

/* One page, as libuffd_resolve() makes of the kernel's answers; *present if it was there. */
static int resolve_page(const struct libuffd *u, const struct libuffd_answer *a, uint64_t pos,
			bool *present)
{
	static const unsigned char zeros[FK_PAGE];
	bool wp = a->flags & LIBUFFD_RESOLVE_WP;
	struct fk_page *p;
	size_t done;
	int ret;

	*present = false;
	switch (a->kind) {
	case LIBUFFD_ANSWER_UNPROTECT:
		return protect(u->mm, a->start + pos, false,
			       !(a->flags & LIBUFFD_RESOLVE_DONTWAKE));
	case LIBUFFD_ANSWER_PROTECT:
		return protect(u->mm, a->start + pos, true, false);
	case LIBUFFD_ANSWER_COPY:
		ret = install(u, COPY, a->start + pos, (const char *)a->data + pos, FK_PAGE,
			      a->flags, &done);
		break;
	case LIBUFFD_ANSWER_ZERO:
		ret = install(u, wp ? COPY : ZERO, a->start + pos, zeros, FK_PAGE, a->flags, &done);
		break;
	case LIBUFFD_ANSWER_CONTINUE:
		ret = install(u, CONTINUE, a->start + pos, NULL, FK_PAGE, a->flags, &done);
		break;
	case LIBUFFD_ANSWER_POISON:
		ret = install(u, POISON, a->start + pos, NULL, FK_PAGE, 0, &done);
		break;
	default:
		broken("answer %u", a->kind);
	}
	if (ret != -EEXIST)
		return ret;
	p = &u->mm->page[fk_slot(a->start + pos)];
	if (a->kind == LIBUFFD_ANSWER_ZERO && p->content == FK_POISON && p->minds_wp)
		return install(u, COPY, a->start + pos, zeros, FK_PAGE, a->flags | LIBUFFD_COPY_WP,
			       &done);
	if (wp && !p->minds_wp)
		return -ENOENT;
	if (wp && (p->content == FK_BYTES || p->file))
		p->wp = true;
	*present = true;
	return 0;
}

int libuffd_resolve(const struct libuffd *u, const struct libuffd_answer *a, size_t *done)
{
	unsigned int tries = 0;
	int ret = 0;

	*done = 0;
	/* Of an address that nobody knows larger ones are tried. */
	if (a->page_size != FK_PAGE && a->kind != LIBUFFD_ANSWER_CONTINUE)
		broken("page size %llu", (unsigned long long)a->page_size);
	while (*done < a->len && ret == 0) {
		bool present;

		ret = resolve_page(u, a, *done, &present);
		if (ret == -EAGAIN && tries++ < 2)
			ret = 0;
		else if (ret == 0) {
			tries = 0;
			if (present)
				libuffd_wake(u, a->start + *done, FK_PAGE);
			*done += FK_PAGE;
		}
	}
	if (ret == -ENOENT)
		libuffd_wake(u, a->start + *done, (size_t)(a->len - *done));
	return ret;
}

int libuffd_sigbus(const struct libuffd *u, const struct libuffd_answer *region, size_t window,
		   uint64_t address, int code)
{
	(void)u;
	(void)region;
	(void)window;
	(void)address;
	(void)code;
	broken("a signal");
}

/* ---- The engine ---------------------------------------------------------------------------------------- */

#define NOT_READ INT32_MIN

struct srv_engine {
	struct srv_watch *watches;
	struct srv_io *ios;
	bool kicked;
};

/* What a watch's state is. */
enum { WATCHED = 1, TAKEN };

static int engine_create(const struct srv_engine_opts *opts, struct srv_engine **out)
{
	(void)opts;
	*out = calloc(1, sizeof(**out));
	return 0;
}

static int engine_bind(struct srv_engine *e)
{
	(void)e;
	return 0;
}

static void engine_destroy(struct srv_engine *e)
{
	free(e);
}

static int engine_watch(struct srv_engine *e, struct srv_watch *w)
{
	w->next = e->watches;
	w->state = WATCHED;
	e->watches = w;
	return 0;
}

/* index: bytes, while the state is TAKEN. */
static int engine_unwatch(struct srv_engine *e, struct srv_watch *w)
{
	struct srv_watch **at = &e->watches;
	int res = 0;

	while (*at && *at != w)
		at = &(*at)->next;
	if (!*at)
		broken("unwatches what is not watched");
	*at = w->next;
	if (w->state == TAKEN && (int)w->index > 0)
		res = (int)w->index;
	fk.given_back += (unsigned int)res / SRV_MESSAGE_LEN;
	w->state = 0;
	return res;
}

static void engine_read(struct srv_engine *e, struct srv_io *io)
{
	io->res = NOT_READ;
	io->next = e->ios;
	e->ios = io;
}

static void do_read(struct srv_io *io);

/* Its result is known, and is told in a turn. */
static void engine_finish(struct srv_engine *e, const struct srv_io *io)
{
	struct srv_io *at = e->ios;

	while (at && at != io)
		at = at->next;
	if (at && at->res == NOT_READ)
		do_read(at);
}

static void engine_kick(struct srv_engine *e)
{
	e->kicked = true;
}

static int engine_fd(struct srv_engine *e)
{
	(void)e;
	return -1;
}

static void engine_alarm(struct srv_engine *e, uint64_t at_ns)
{
	(void)e;
	(void)at_ns;
}

static void take_messages(struct srv_engine *e)
{
	for (struct srv_watch *w = e->watches; w; w = w->next) {
		struct fk_mm *mm = w->readable ? NULL : by_fd[w->fd];
		int res;

		if (w->readable || (!fk.calm && chance(25)))
			continue;
		if (!mm)
			broken("reads a userfaultfd that is closed");
		res = mm->dead ? 0 : read_messages(mm, w->msgs);
		if (!res)
			continue;
		w->state = TAKEN;
		w->index = (uint32_t)res;
	}
}

static struct srv_watch *taken(struct srv_engine *e)
{
	for (struct srv_watch *w = e->watches; w; w = w->next)
		if (w->state == TAKEN)
			return w;
	return NULL;
}

static int call_messages(struct srv_engine *e)
{
	struct srv_watch *w;
	int n = 0;

	while ((w = taken(e))) {
		const unsigned char *msgs = w->msgs;
		int res = (int)w->index;

		w->state = WATCHED;
		for (int at = 0; at < res; at += SRV_MESSAGE_LEN)
			fk.faults += msgs[at] == LIBUFFD_EVENT_FAULT;
		w->messages(w, res);
		n++;
	}
	return n;
}

static bool engine_has_taken(const struct srv_engine *e)
{
	for (const struct srv_watch *w = e->watches; w; w = w->next)
		if (w->state == TAKEN)
			return true;
	return false;
}

static bool has_exited(struct srv_watch *w)
{
	struct srv_space *sp = (void *)((char *)w - offsetof(struct srv_space, exit));

	return fk_mm_of(sp->u)->dead;
}

static int call_readable(struct srv_engine *e)
{
	struct srv_watch *w;

	for (w = e->watches; w; w = w->next)
		if (w->readable && has_exited(w) && (fk.calm || chance(30))) {
			w->readable(w);
			return 1;
		}
	return 0;
}

static void do_read(struct srv_io *io)
{
	uint32_t len = io->len;

	if (!fk.calm && rnd(1000) < 4 * fk.flaky) {
		io->res = chance(50) ? -EIO : 0;
		law_read_failed(io->offset, io->len);
		return;
	}
	if (!fk.calm && len > 1 && chance(20))
		len = 1 + (uint32_t)rnd(len - 1);
	io->res = (int32_t)pread(io->fd, io->buf, len, (off_t)io->offset);
}

static int call_done(struct srv_engine *e)
{
	struct srv_io *left = e->ios, *io;
	int n = 0;

	e->ios = NULL;
	while ((io = left)) {
		left = io->next;
		if (!fk.calm && chance(60)) {
			io->next = e->ios;
			e->ios = io;
			continue;
		}
		if (io->res == NOT_READ)
			do_read(io);
		io->done(io);
		n++;
	}
	return n;
}

static int engine_turn(struct srv_engine *e, int64_t timeout)
{
	bool kicked = e->kicked;
	int n;

	if (fk.to_copy)
		broken("a move to %#llx was refused, and nothing is copied",
		       (unsigned long long)fk.to_copy);
	e->kicked = false;
	fk.now += 200;
	take_messages(e);
	n = call_messages(e);
	n += call_readable(e);
	n += call_done(e);
	if (n || kicked)
		return n;
	if (timeout > 0)
		fk.now += (uint64_t)timeout;
	fk.blocks = !e->ios && (timeout < 0 || timeout >= FK_LONG);
	return 0;
}

const struct srv_engine_ops srv_engine_uring = {
	.id = LIBUFFD_ENGINE_URING,
	.create = engine_create,
	.bind = engine_bind,
	.destroy = engine_destroy,
	.watch = engine_watch,
	.unwatch = engine_unwatch,
	.has_taken = engine_has_taken,
	.read = engine_read,
	.finish = engine_finish,
	.turn = engine_turn,
	.fd = engine_fd,
	.alarm = engine_alarm,
	.kick = engine_kick,
};

static int no_engine(const struct srv_engine_opts *opts, struct srv_engine **out)
{
	(void)opts;
	*out = NULL;
	return -ENOSYS;
}

const struct srv_engine_ops srv_engine_poll = { .id = LIBUFFD_ENGINE_POLL, .create = no_engine };
