/* SPDX-License-Identifier: MIT */
/*
 * A tenant: one thread changes the memory that the house supplies, and knows what must stand where; two look at any
 * time, and what they see between two changes must be right. Its children do the same by themselves. The scribe writes a
 * ledger, one page after the other, for snapshots and watches.
 */
#include <fcntl.h>
#include <setjmp.h>
#include <sys/prctl.h>
#include <sys/socket.h>

#include "soak.h"

#define LOOKERS 2
#define CHILDREN 2
#define DEPTH 3
#define CHANGES 16

static struct {
	struct plan plan;
	int sock;
	size_t page, words; /* bytes; of 64 bits */
	unsigned int seed;
	unsigned int depth; /* how many forks from the tenant */
	struct libuffd *u;
	int memfd;
	unsigned char *spare;
	size_t gone,
		given; /* pages at its beginning; behind these, those that no mremap has added */
	uint64_t block;
	bool whole;
	uint64_t writes;
	pid_t child[CHILDREN];
	atomic_ulong *ledger;
	/* What was changed last, for who must find out why something is wrong. */
	struct change {
		const char *what;
		size_t first, n, pages;
		unsigned char *at;
	} changes[CHANGES];
	size_t nchanges;

	pthread_t looker[LOOKERS], scribe;
	atomic_bool end, silent; /* lookers, and the scribe, end */
	atomic_uint lookers;
	atomic_uint turn; /* odd: what follows is being changed */
	_Atomic(unsigned char *) at;
	atomic_size_t pages;
	_Atomic(uint64_t) want[MOST];
} t = { .memfd = -1 };

static bool is_small(void)
{
	return !mem_is_hugetlb((enum mem_kind)t.plan.kind);
}

static bool is_shared(void)
{
	return mem_is_shared((enum mem_kind)t.plan.kind);
}

/* ---- What stands in a page ---------------------------------------------------------------------- */

static enum source source_of(uint64_t want)
{
	return (enum source)(want >> 32 & 0xff);
}

static uint64_t expected(uint64_t want, size_t word)
{
	uint64_t block = (want & 0xffffffff) + word / (BLOCK / 8);

	if (want & WANT_OWN)
		return word_of(want & ~WANT_MAYBE, word);
	if (want & WANT_SOURCE)
		return word_of(block_number(source_of(want), block), word % (BLOCK / 8));
	return 0;
}

static bool must_be_lost(uint64_t want)
{
	return want & WANT_SOURCE && source_of(want) == CUSTOM && block_is_lost(want & 0xffffffff);
}

/* Of a file that may have been cut nobody knows. */
static bool may_be_lost(uint64_t want)
{
	return must_be_lost(want) || (want & WANT_SOURCE && source_of(want) == CUTS);
}

static _Thread_local sigjmp_buf probe_env;

static void on_signal(int sig)
{
	siglongjmp(probe_env, sig);
}

__attribute__((no_sanitize("address", "thread"), noinline)) static bool
words_are(const unsigned char *at, uint64_t want, size_t first, size_t n)
{
	const volatile uint64_t *p = (const volatile uint64_t *)(const void *)at;

	for (size_t i = first; i < first + n; i++)
		if (p[i] != expected(want, i))
			return false;
	return true;
}

__attribute__((noinline)) static bool try_words(const unsigned char *at, uint64_t want,
						size_t first, size_t n, int *sig)
{
	*sig = sigsetjmp(probe_env, 1);
	return !*sig && words_are(at, want, first, n);
}

static bool words_are_right(const unsigned char *at, uint64_t want, size_t first, size_t n,
			    int *sig)
{
	bool right = try_words(at, want, first, n, sig);

	if (*sig) {
		right = *sig == SIGBUS && may_be_lost(want);
		if (right)
			happens(DID_SIGBUS);
		return right;
	}
	if (right && !must_be_lost(want))
		return true;
	/* The kernel may take it at any time, in the middle of this as well: zeros stay. */
	return want & WANT_MAYBE && try_words(at, 0, first, n, sig);
}

static bool page_is_right(size_t i, int *sig)
{
	return words_are_right(atomic_load(&t.at) + i * t.page, atomic_load(&t.want[i]), 0, t.words,
			       sig);
}

/* The first word that is wrong, for who must find out why. */
__attribute__((no_sanitize("address", "thread"), noinline)) static uint64_t
wrong_word(const unsigned char *at, uint64_t want, size_t *word)
{
	const volatile uint64_t *p = (const volatile uint64_t *)(const void *)at;

	for (*word = 0; *word + 1 < t.words && p[*word] == expected(want, *word); ++*word)
		;
	return p[*word];
}

static const char *last_changes(void)
{
	static char text[1000];
	size_t len = 0;

	for (size_t i = t.nchanges > CHANGES ? t.nchanges - CHANGES : 0; i < t.nchanges; i++) {
		const struct change *c = &t.changes[i % CHANGES];

		if (len < sizeof(text))
			len += (size_t)snprintf(text + len, sizeof(text) - len,
						"; %s %zu+%zu: %p, %zu", c->what, c->first, c->n,
						(void *)c->at, c->pages);
	}
	return text;
}

static void tell_wrong(const char *when, size_t i, int sig)
{
	uint64_t want = atomic_load(&t.want[i]), found = 0;
	size_t word = 0;

	if (!sig)
		found = wrong_word(atomic_load(&t.at) + i * t.page, want, &word);
	wrong("slot %u, memory %u, source %u%s%s, depth %u, %s: page %zu of %zu, at %p, is not %#llx: signal %d, word %zu %#llx, not %#llx%s",
	      t.plan.slot, t.plan.kind, t.plan.source, t.plan.unregisters ? ", unregisters" : "",
	      t.plan.doomed ? ", doomed" : "", t.depth, when, i, atomic_load(&t.pages),
	      (void *)(atomic_load(&t.at) + i * t.page), (unsigned long long)want, sig, word,
	      (unsigned long long)found, (unsigned long long)expected(want, word), last_changes());
}

static void look_at_all(const char *when)
{
	for (size_t i = 0; i < atomic_load(&t.pages) && !atomic_load(&board->is_wrong); i++) {
		int sig = 0;

		if (!page_is_right(i, &sig))
			tell_wrong(when, i, sig);
	}
	atomic_fetch_add(&board->pages, atomic_load(&t.pages));
}

/* What is taken away meanwhile does not count; whoever looks must get on. */
static void *look(void *arg)
{
	unsigned int seed = t.plan.seed + 1000 * (1 + atomic_fetch_add(&t.lookers, 1));

	(void)arg;
	for (unsigned long n = 0; !atomic_load(&t.end); n++) {
		unsigned int turn = atomic_load(&t.turn);
		unsigned char *at = atomic_load(&t.at);
		size_t i = any(&seed, atomic_load(&t.pages)), word = any(&seed, t.words);
		uint64_t want = atomic_load(&t.want[i]);
		int sig;
		bool right = words_are_right(at + i * t.page, want, word, 1, &sig);

		if (!right && !(turn & 1) && atomic_load(&t.turn) == turn)
			wrong("slot %u, memory %u, source %u: a looker sees another word %zu of page %zu than %#llx: signal %d",
			      t.plan.slot, t.plan.kind, t.plan.source, word, i,
			      (unsigned long long)want, sig);
		if (n % 16 == 0)
			sched_yield();
	}
	return NULL;
}

static void pause_for_house(void)
{
	unsigned int number;

	while ((number = atomic_load(&board->slot[t.plan.slot].pause)) && !atomic_load(&t.silent)) {
		atomic_store(&board->slot[t.plan.slot].paused, number);
		usleep(500);
	}
}

static void *scribe(void *arg)
{
	size_t words = page_size() / sizeof(*t.ledger);
	unsigned long c = 0;

	(void)arg;
	while (!atomic_load(&t.silent)) {
		atomic_ulong *p = t.ledger + ++c % LEDGER_PAGES * words;

		atomic_store(p, c);
		atomic_store(p + words - 1, c);
		pause_for_house();
		if (c % 8 == 0)
			usleep(50);
	}
	return NULL;
}

static void changed(const char *what, size_t first, size_t n)
{
	t.changes[t.nchanges++ % CHANGES] = (struct change){ what, first, n, atomic_load(&t.pages),
							     atomic_load(&t.at) };
}

/* ---- With the host ------------------------------------------------------------------------------- */

/* There is nobody any more: so there need not be anything here. */
static void alone(void)
{
	kill(getpid(), SIGKILL);
}

static int ask(uint32_t what, uint64_t a, uint64_t b)
{
	struct ask q = { .what = what, .a = a, .b = b };
	struct answer answer;

	q.layout.at = (uintptr_t)atomic_load(&t.at);
	q.layout.pages = t.given;
	q.layout.block = t.block;
	q.layout.whole = t.whole;
	q.layout.memfd = t.memfd;
	for (size_t i = 0; i < MOST; i++)
		q.layout.want[i] = atomic_load(&t.want[i]);
	if (send(t.sock, &q, sizeof(q), MSG_NOSIGNAL) != sizeof(q) ||
	    recv(t.sock, &answer, sizeof(answer), 0) != sizeof(answer))
		alone();
	/* Of one whose space is given up nobody hears anything any more. */
	while (answer.ret < 0 && t.plan.doomed)
		pause();
	return answer.ret;
}

static void say_hello(void)
{
	struct libuffd_open_opts opts = LIBUFFD_OPEN_OPTS_INIT;
	struct hello hello = { .ledger = (uintptr_t)t.ledger };
	int ret;

	opts.required = t.plan.features;
	ret = libuffd_open(&opts, &t.u);
	if (ret < 0)
		wrong("slot %u: no userfaultfd with %#llx: %s", t.plan.slot,
		      (unsigned long long)t.plan.features, strerror(-ret));
	else if (libuffd_send(t.sock, t.u, &hello, sizeof(hello)) < 0)
		alone();
}

/* ---- A region, from its beginning to its end ------------------------------------------------------- */

/* Addresses for all that it can become, between pages. */
static void *addresses(size_t pages)
{
	size_t len = (pages + (is_small() ? 0 : 1)) * t.page;
	unsigned char *p = mmap(NULL, len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
				-1, 0);
	size_t before;

	if (p == MAP_FAILED) {
		wrong("slot %u: no addresses: %s", t.plan.slot, strerror(errno));
		return p;
	}
	before = -(uintptr_t)p & (t.page - 1);
	if (before)
		munmap(p, before);
	if (len > before + pages * t.page)
		munmap(p + before + pages * t.page, len - before - pages * t.page);
	return p + before;
}

static void *map_memory(void)
{
	size_t len = t.plan.begin * t.page;
	int flags = (is_shared() ? MAP_SHARED : MAP_PRIVATE) | MAP_NORESERVE;

	if (t.memfd >= 0)
		close(t.memfd);
	t.memfd = -1;
	if (t.plan.kind == MEM_ANON)
		return mmap(NULL, len, PROT_NONE, flags | MAP_ANONYMOUS, -1, 0);
	t.memfd = memfd_create("soak", MFD_CLOEXEC | (is_small() ? 0 : MFD_HUGETLB));
	if (t.memfd < 0 || ftruncate(t.memfd, (off_t)(t.plan.most * t.page)))
		return MAP_FAILED;
	return mmap(NULL, len, PROT_NONE, flags, t.memfd, 0);
}

static uint64_t any_block(void)
{
	if (t.plan.source == CUTS)
		return 0;
	if (!is_small())
		return 2 * ODD_BLOCKS + any(&t.seed, 6) * (t.page / BLOCK);
	return any(&t.seed, any(&t.seed, 4) ? ODD_BLOCKS : BLOCKS - MOST);
}

/* Nobody can touch it before it is registered. */
static void begin(void)
{
	unsigned char *at = map_memory();
	int ret;

	if (at == MAP_FAILED) {
		wrong("slot %u: no memory of kind %u: %s", t.plan.slot, t.plan.kind,
		      strerror(errno));
		return;
	}
	t.block = any_block();
	t.gone = 0;
	t.given = t.plan.begin;
	t.whole = true;
	for (size_t i = 0; i < t.plan.begin; i++)
		atomic_store(&t.want[i], want_source((enum source)t.plan.source,
						     t.block + i * (t.page / BLOCK)));
	atomic_store(&t.at, at);
	atomic_store(&t.pages, t.plan.begin);
	changed("began", t.block, t.plan.begin);
	ret = ask(ASK_ADD, 0, 0);
	if (ret < 0)
		wrong("slot %u: memory %u cannot be added: %s", t.plan.slot, t.plan.kind,
		      strerror(-ret));
	if (mprotect(at, t.plan.begin * t.page, PROT_READ | PROT_WRITE))
		wrong("slot %u: mprotect: %s", t.plan.slot, strerror(errno));
}

static void unmap_all(void)
{
	int ret;

	if (munmap(atomic_load(&t.at), atomic_load(&t.pages) * t.page))
		wrong("slot %u: munmap of all: %s", t.plan.slot, strerror(errno));
	happens(DID_UNMAPPED_ALL);
	ret = ask(ASK_REMOVE, 0, 0);
	if (ret < 0 && ret != -ENOENT)
		wrong("slot %u: cannot be removed: %s", t.plan.slot, strerror(-ret));
}

/* ---- Changes --------------------------------------------------------------------------------------- */

/* What becomes of a page's bytes, and who counts it. */
static int any_advice(enum what *what, bool *maybe)
{
	bool other = any(&t.seed, 2);

	*maybe = false;
	*what = DID_DONTNEED;
	if (t.plan.kind == MEM_ANON && other) {
		*what = DID_FREED;
		*maybe = true;
		return MADV_FREE;
	}
	/* The file keeps what it has, and the server what it has not. */
	if (t.plan.kind == MEM_SHMEM_SHARED && other)
		*maybe = true;
	else if (is_shared())
		*what = DID_REMOVED;
	return *what == DID_REMOVED ? MADV_REMOVE : MADV_DONTNEED;
}

static void drop(void)
{
	size_t first = any(&t.seed, atomic_load(&t.pages)), n = 1 + any(&t.seed, 3);
	enum what what;
	bool maybe;
	int advice = any_advice(&what, &maybe);

	if (n > atomic_load(&t.pages) - first)
		n = atomic_load(&t.pages) - first;
	if (madvise(atomic_load(&t.at) + first * t.page, n * t.page, advice))
		wrong("slot %u, memory %u: madvise %d: %s", t.plan.slot, t.plan.kind, advice,
		      strerror(errno));
	happens(what);
	changed(what_text[what], first, n);
	for (size_t i = first; i < first + n; i++) {
		uint64_t want = atomic_load(&t.want[i]);

		/* Of a file the kernel keeps the mark that says that the page is lost. */
		if (want && (maybe || (t.plan.kind != MEM_ANON && may_be_lost(want))))
			atomic_store(&t.want[i], want | WANT_MAYBE);
		else
			atomic_store(&t.want[i], 0);
	}
}

/* Private memory is gone from there, and a file is the same. */
static void look_at_left(const unsigned char *old)
{
	size_t i = any(&t.seed, atomic_load(&t.pages));
	uint64_t want = is_shared() ? atomic_load(&t.want[i]) : 0;
	int sig;

	if (!words_are_right(old + i * t.page, want, 0, t.words, &sig))
		wrong("slot %u, memory %u, source %u, depth %u: page %zu of %zu given that a move left at %p is not %#llx: signal %d%s",
		      t.plan.slot, t.plan.kind, t.plan.source, t.depth, i, t.given,
		      (const void *)old, (unsigned long long)want, sig, last_changes());
}

static void move(bool stays)
{
	size_t n = atomic_load(&t.pages);
	unsigned char *old = atomic_load(&t.at), *to = t.spare;
	int flags = MREMAP_MAYMOVE | MREMAP_FIXED | (stays ? MREMAP_DONTUNMAP : 0);

	if (mremap(old, n * t.page, n * t.page, flags, to) != to) {
		wrong("slot %u, memory %u: mremap: %s", t.plan.slot, t.plan.kind, strerror(errno));
		return;
	}
	atomic_store(&t.at, to);
	if (n < t.plan.most)
		munmap(to + n * t.page, (t.plan.most - n) * t.page);
	t.spare = addresses(t.plan.most);
	happens(stays ? DID_LEFT : DID_MOVED);
	changed(stays ? "left" : "moved", 0, n);
	if (!stays)
		return;
	look_at_left(old);
	if (munmap(old, n * t.page))
		wrong("slot %u: munmap of what was left: %s", t.plan.slot, strerror(errno));
}

static void resize(size_t n)
{
	size_t before = atomic_load(&t.pages);
	unsigned char *at = mremap(atomic_load(&t.at), before * t.page, n * t.page, MREMAP_MAYMOVE);

	if (at == MAP_FAILED) {
		wrong("slot %u: mremap to %zu pages: %s", t.plan.slot, n, strerror(errno));
		return;
	}
	for (size_t i = before; i < n; i++)
		atomic_store(&t.want[i], 0);
	if (t.given > n) {
		t.given = n;
		t.whole = false;
	}
	atomic_store(&t.at, at);
	atomic_store(&t.pages, n);
	happens(n > before ? DID_GREW : DID_SHRANK);
	changed("resized", before, n);
}

/* Some pages at one of its ends. */
static void unmap(size_t n, bool front)
{
	size_t left = atomic_load(&t.pages) - n;
	unsigned char *at = atomic_load(&t.at);

	if (munmap(front ? at : at + left * t.page, n * t.page))
		wrong("slot %u: munmap: %s", t.plan.slot, strerror(errno));
	happens(DID_UNMAPPED);
	if (front) {
		for (size_t i = 0; i < left; i++)
			atomic_store(&t.want[i], atomic_load(&t.want[i + n]));
		atomic_store(&t.at, at + n * t.page);
		t.gone += n;
		t.given -= n;
		t.block += n * (t.page / BLOCK);
		t.whole = false;
	} else if (t.given > left) {
		t.given = left;
		t.whole = false;
	}
	atomic_store(&t.pages, left);
	changed(front ? "front" : "back", 0, n);
}

__attribute__((no_sanitize("address", "thread"), noinline)) static void
write_words(unsigned char *at, uint64_t number)
{
	volatile uint64_t *p = (volatile uint64_t *)(void *)at;

	for (size_t i = 0; i < t.words; i++)
		p[i] = word_of(number, i);
}

__attribute__((noinline)) static int try_write(unsigned char *at, uint64_t number)
{
	int sig = sigsetjmp(probe_env, 1);

	if (!sig)
		write_words(at, number);
	return sig;
}

static void write_page(void)
{
	size_t i = any(&t.seed, atomic_load(&t.pages));
	uint64_t want = atomic_load(&t.want[i]);
	uint64_t number = WANT_OWN | (uint64_t)t.depth << 48 | ++t.writes;
	int sig = try_write(atomic_load(&t.at) + i * t.page, number);

	if (!sig)
		atomic_store(&t.want[i], number);
	if (sig ? !(sig == SIGBUS && may_be_lost(want))
		: must_be_lost(want) && !(want & WANT_MAYBE))
		wrong("slot %u, memory %u, source %u: page %zu, %#llx, is written: signal %d",
		      t.plan.slot, t.plan.kind, t.plan.source, i, (unsigned long long)want, sig);
	happens(DID_WROTE);
	changed("wrote", i, 1);
}

/* ---- Children -------------------------------------------------------------------------------------- */

static void change(size_t what);

static bool reap(size_t i, int flags)
{
	int status = 0;
	long pid = syscall(SYS_wait4, t.child[i], &status, flags, NULL);

	if (pid == 0)
		return false;
	if (pid != t.child[i] ||
	    !(WIFEXITED(status) ? !WEXITSTATUS(status) : WTERMSIG(status) == SIGKILL))
		wrong("slot %u, memory %u, depth %u: a child ends with status %#x", t.plan.slot,
		      t.plan.kind, t.depth, (unsigned int)status);
	t.child[i] = 0;
	return true;
}

static void reap_all(void)
{
	for (size_t i = 0; i < CHILDREN; i++)
		if (t.child[i])
			reap(i, 0);
}

/*
 * The lookers never rest, and have locks of the thread sanitizer's at any time: each atomic_load() takes one, and a
 * child that comes of the bare system call would wait for it for ever with its first atomic_store(). Of fork() the
 * sanitizer is told, and leaves such a child alone. Others read the event, so nobody minds what fork() holds meanwhile.
 * A child has no other threads, and is told of to nobody: the sanitizer would give its own child a thread.
 */
static pid_t tenant_fork(void)
{
	return t.depth ? bare_fork() : fork();
}

/* It makes system calls and accesses, and nothing else: there may be locks that nobody gives back. */
static void child_lives(pid_t parent)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent)
		alone();
	t.depth++;
	changed("forked", t.depth, (size_t)getpid());
	memset(t.child, 0, sizeof(t.child));
	t.seed = t.seed * 31 + t.depth;
	/* Of shared memory there is one for all, and the parent waits. */
	for (size_t n = is_shared() ? 0 : 2 + any(&t.seed, 8); n; n--) {
		if (any(&t.seed, 40) == 0) {
			/* Its own would go on for a moment, while the region is taken from them. */
			reap_all();
			happens(DID_CHILD_KILLED);
			alone();
		}
		change(any(&t.seed, 9));
	}
	look_at_all("at a child's end");
	reap_all();
	bare_exit(0);
}

static void fork_one(void)
{
	size_t i = any(&t.seed, CHILDREN);
	pid_t self = getpid(), pid;

	if (t.child[i] && !reap(i, WNOHANG))
		return;
	t.seed++;
	pid = tenant_fork();
	if (!pid)
		child_lives(self);
	if (pid < 0) {
		wrong("slot %u: fork: %s", t.plan.slot, strerror(errno));
		return;
	}
	happens(t.depth ? DID_GRANDCHILD : DID_FORKED);
	t.child[i] = pid;
	/* What one of them does to huge pages the others have to make room for. */
	if (is_shared() || !is_small() || any(&t.seed, 2))
		reap(i, 0);
}

/* ---- A life ------------------------------------------------------------------------------------------ */

/* Those that children make, too; what does not fit the length that is left is passed over. */
static void change(size_t what)
{
	size_t n = atomic_load(&t.pages), by = 1 + any(&t.seed, 3);

	switch (what) {
	case 0:
		if (t.plan.forks && t.depth < DEPTH)
			fork_one();
		break;
	case 1:
	case 2:
		drop();
		break;
	case 3:
		move(false);
		break;
	case 4:
		/*
		 * Of the file of a private mapping nothing is known. Who forks does it with the thread that moves: a
		 * move that is told after a fork that came later, heirs.c says, must not leave anything behind.
		 */
		if (is_small() && t.plan.kind != MEM_SHMEM_PRIVATE)
			move(true);
		break;
	case 5:
		if (n >= t.plan.least + by)
			resize(n - by);
		break;
	case 6:
		if (t.plan.grows && t.gone + n + by <= t.plan.most)
			resize(n + by);
		break;
	case 7:
		if (n >= t.plan.least + by)
			unmap(by, t.given > by && any(&t.seed, 2));
		break;
	default:
		/* Copies of huge pages are more than was set aside. */
		if (t.plan.kind != MEM_HUGETLB_PRIVATE || !t.plan.forks)
			write_page();
	}
}

static void begin_anew(void)
{
	reap_all();
	unmap_all();
	begin();
}

static void ahead(void)
{
	size_t first = any(&t.seed, t.given);

	if (t.gone == 0)
		ask(ASK_AHEAD, first * t.page, (1 + any(&t.seed, t.given - first)) * t.page);
}

static void reattach(void)
{
	int ret;

	if (!t.plan.survives || !t.whole)
		return;
	reap_all();
	ret = ask(ASK_REATTACH, 0, 0);
	if (ret < 0)
		wrong("slot %u: attaching again: %s", t.plan.slot, strerror(-ret));
}

static void one_round(void)
{
	size_t what = any(&t.seed, 24);
	int sig = 0;

	atomic_fetch_add(&t.turn, 1);
	if (what < 10)
		change(what);
	else if (what == 10)
		begin_anew();
	else if (what == 11)
		ahead();
	else if (what == 12 && any(&t.seed, 4) == 0)
		reattach();
	atomic_fetch_add(&t.turn, 1);
	if (what > 12 && !page_is_right(any(&t.seed, atomic_load(&t.pages)), &sig))
		look_at_all("in between");
	if (any(&t.seed, 64) == 0)
		look_at_all("now and then");
}

/* The house wants to do something about its server. */
static void hold(void)
{
	reap_all();
	if (t.plan.survives)
		ask(ASK_HOLD, 0, 0);
}

static void live(size_t rounds)
{
	for (size_t n = 0; n < rounds && !atomic_load(&board->is_wrong); n++) {
		if (atomic_load(&board->hold)) {
			if (!t.plan.survives || atomic_load(&board->end))
				return;
			hold();
		}
		one_round();
	}
}

static void end(void)
{
	reap_all();
	look_at_all("at the end");
	atomic_store(&t.end, true);
	for (size_t i = 0; i < LOOKERS; i++)
		pthread_join(t.looker[i], NULL);
	unmap_all();
	atomic_store(&t.silent, true);
	pthread_join(t.scribe, NULL);
	ask(ASK_BYE, 0, 0);
}

static void begin_thread(pthread_t *thread, void *(*run)(void *))
{
	int ret = pthread_create(thread, NULL, run, NULL);

	if (ret)
		wrong("slot %u: no thread: %s", t.plan.slot, strerror(ret));
}

int tenant_main(int sock)
{
	struct sigaction sa = { .sa_handler = on_signal };

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	t.sock = sock;
	if (recv(sock, &t.plan, sizeof(t.plan), 0) != sizeof(t.plan))
		return 1;
	t.seed = t.plan.seed;
	t.page = mem_page_size((enum mem_kind)t.plan.kind);
	t.words = t.page / 8;
	sigaction(SIGSEGV, &sa, NULL);
	sigaction(SIGBUS, &sa, NULL);
	t.ledger = mmap(NULL, LEDGER_PAGES * page_size(), PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	t.spare = addresses(t.plan.most);
	if (t.ledger == MAP_FAILED || t.spare == MAP_FAILED)
		return 1;
	say_hello();
	/* The house may wait for it, and lets nobody ask meanwhile: so it is there whenever somebody asks. */
	begin_thread(&t.scribe, scribe);
	begin();
	if (t.plan.closes) {
		libuffd_close(t.u);
		happens(DID_CLOSED);
	}
	if (!is_small())
		happens(DID_HUGE);
	if (is_shared())
		happens(DID_SHARED);
	for (size_t i = 0; i < LOOKERS; i++)
		begin_thread(&t.looker[i], look);
	live(20 + any(&t.seed, 1500));
	if (!atomic_load(&board->is_wrong))
		end();
	return 0;
}
