/* SPDX-License-Identifier: MIT */
/* Where the house has its bytes from. */
#include <fcntl.h>
#include <time.h>

#include "house.h"

#define ANSWERERS 2
#define PENDING 8192
#define MEMORIES 65536 /* which fetch has failed */

struct late {
	uint64_t id, offset, len;
	void *buffer;
};

struct held {
	uint64_t space, address, len;
};

static struct {
	pthread_mutex_t lock;
	pthread_cond_t came;
	struct late late[PENDING];
	struct held held[PENDING];
	size_t nlate, nheld, answering;
	bool stalls, ends;
	pthread_t thread[ANSWERERS];
	unsigned int seed; /* of fetches: any thread of the server's */
	unsigned char failed[MEMORIES];

	pthread_mutex_t allowing;
} src = { .lock = PTHREAD_MUTEX_INITIALIZER,
	  .came = PTHREAD_COND_INITIALIZER,
	  .allowing = PTHREAD_MUTEX_INITIALIZER };

static size_t chance(size_t below)
{
	size_t n;

	pthread_mutex_lock(&src.lock);
	n = any(&src.seed, below);
	pthread_mutex_unlock(&src.lock);
	return n;
}

/* ---- Custom ------------------------------------------------------------------------------------------ */

static size_t lost_blocks(uint64_t offset, uint64_t len)
{
	size_t n = 0;

	for (uint64_t b = offset / BLOCK; b < (offset + len) / BLOCK; b++)
		n += block_is_lost(b);
	return n;
}

static bool all_holes(uint64_t offset, uint64_t len)
{
	for (uint64_t b = offset / BLOCK; b < (offset + len) / BLOCK; b++)
		if (!block_is_hole(b))
			return false;
	return true;
}

static int result_of(const struct late *l)
{
	size_t lost = lost_blocks(l->offset, l->len);

	/* Asked for page by page then. */
	if (lost && l->len > BLOCK)
		return -EIO;
	if (lost)
		return chance(4) ? -EIO : LIBUFFD_FETCHED_POISON; /* it is retried */
	if (all_holes(l->offset, l->len) && chance(2))
		return LIBUFFD_FETCHED_ZERO;
	return LIBUFFD_FETCHED_BYTES;
}

static void complete(const struct late *l, int result)
{
	struct libuffd_source *custom = house.source[CUSTOM];
	int ret = libuffd_source_complete(custom, l->id, result, l->len);

	if (ret == -ESTALE)
		happens(DID_STALE);
	else if (ret < 0)
		wrong("a fetch cannot be completed with %d: %s", result, strerror(-ret));
	if (result == LIBUFFD_FETCHED_POISON)
		happens(DID_POISONED);
	if (result == LIBUFFD_FETCHED_ZERO)
		happens(DID_EMPTY);
	if (chance(50))
		return;
	ret = libuffd_source_complete(custom, l->id, result, l->len);
	if (ret != -ESTALE)
		wrong("a second answer gives %d", ret);
	happens(DID_TWICE);
}

/* The buffer is there until the answer, whatever has become of the server. */
static void answer(const struct late *l)
{
	int result = result_of(l), ret;

	for (uint64_t at = 0; result == LIBUFFD_FETCHED_BYTES && at < l->len; at += BLOCK)
		fill_block((unsigned char *)l->buffer + at,
			   block_number(CUSTOM, (l->offset + at) / BLOCK));
	if (result == LIBUFFD_FETCHED_BYTES && chance(20) == 0) {
		ret = libuffd_source_complete(house.source[CUSTOM], l->id, result, l->len - 1);
		if (ret != -EMSGSIZE && ret != -ESTALE)
			wrong("an answer that is too short gives %d", ret);
		happens(DID_SHORT);
	}
	complete(l, result);
}

/* Never twice in a row, so that the retries of a region are enough. */
static bool fails_once(const struct libuffd_request *req)
{
	unsigned char *failed = &src.failed[(req->region * 131 + req->offset / BLOCK) % MEMORIES];
	bool fails;

	pthread_mutex_lock(&src.lock);
	fails = !*failed && any(&src.seed, 12) == 0;
	*failed = fails;
	pthread_mutex_unlock(&src.lock);
	return fails;
}

static void fetch(void *ctx, const struct libuffd_request *req)
{
	struct late l = { req->id, req->offset, req->len, req->buffer };
	bool later = false;

	(void)ctx;
	if (fails_once(req)) {
		happens(DID_FAILED_ONCE);
		complete(&l, -EIO);
		return;
	}
	pthread_mutex_lock(&src.lock);
	if (src.nlate < PENDING && (src.stalls || any(&src.seed, 4))) {
		src.late[src.nlate++] = l;
		later = true;
		pthread_cond_signal(&src.came);
	}
	pthread_mutex_unlock(&src.lock);
	if (!later)
		answer(&l);
}

/* ---- Threads that answer ------------------------------------------------------------------------------ */

int source_written(void *ctx, uint64_t space, uint64_t region, uint64_t address, uint64_t len)
{
	int holds = 0;

	(void)ctx;
	(void)region;
	pthread_mutex_lock(&src.lock);
	if (src.nheld < PENDING && any(&src.seed, 3) == 0) {
		src.held[src.nheld++] = (struct held){ space, address, len };
		holds = 1;
		pthread_cond_signal(&src.came);
	}
	pthread_mutex_unlock(&src.lock);
	return holds;
}

static void allow(void)
{
	struct held held = { 0 };
	int ret;

	pthread_mutex_lock(&src.allowing);
	pthread_mutex_lock(&src.lock);
	if (src.nheld)
		held = src.held[--src.nheld];
	pthread_mutex_unlock(&src.lock);
	if (held.len) {
		ret = libuffd_server_allow(house.s, held.space, held.address, held.len);
		if (ret < 0 && ret != -ENOENT)
			wrong("a write cannot be allowed: %s", strerror(-ret));
		happens(DID_WRITE_HELD);
	}
	pthread_mutex_unlock(&src.allowing);
}

void sources_forget_writes(void)
{
	pthread_mutex_lock(&src.allowing);
	pthread_mutex_lock(&src.lock);
	src.nheld = 0;
	pthread_mutex_unlock(&src.lock);
	house.s = NULL;
	pthread_mutex_unlock(&src.allowing);
}

/* In any order, and never all of them at once. */
static bool take_late(struct late *l, unsigned int *seed)
{
	bool takes = src.nlate && !src.stalls && (src.ends || any(seed, 4));
	size_t i;

	if (!takes)
		return false;
	i = any(seed, src.nlate);
	*l = src.late[i];
	src.late[i] = src.late[--src.nlate];
	return true;
}

static void wait_for_some(unsigned int *seed)
{
	struct timespec until;

	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_nsec += (long)any(seed, 2000000);
	until.tv_sec += until.tv_nsec / 1000000000;
	until.tv_nsec %= 1000000000;
	pthread_cond_timedwait(&src.came, &src.lock, &until);
}

static void *answers(void *arg)
{
	unsigned int seed = (unsigned int)(uintptr_t)arg;
	struct late l;
	bool has;

	pthread_mutex_lock(&src.lock);
	while (!src.ends || src.nlate) {
		has = take_late(&l, &seed);
		src.answering += has;
		if (!has && !src.nheld && !src.ends)
			wait_for_some(&seed);
		pthread_mutex_unlock(&src.lock);
		if (has) {
			answer(&l);
			happens(DID_LATE);
		}
		allow();
		pthread_mutex_lock(&src.lock);
		src.answering -= has;
	}
	pthread_mutex_unlock(&src.lock);
	return NULL;
}

void sources_stall(bool stall)
{
	pthread_mutex_lock(&src.lock);
	src.stalls = stall;
	pthread_cond_broadcast(&src.came);
	pthread_mutex_unlock(&src.lock);
}

static void make_custom(void)
{
	if (libuffd_source_custom(fetch, NULL, BLOCKS * BLOCK, &house.source[CUSTOM]))
		wrong("no custom source");
}

void sources_settle(void)
{
	unsigned int seed = 1;

	pthread_mutex_lock(&src.lock);
	while (src.nlate || src.answering)
		wait_for_some(&seed);
	pthread_mutex_unlock(&src.lock);
	/* One keeps buffers for as long as it lives, so that goes on with another. */
	libuffd_source_unref(house.source[CUSTOM]);
	make_custom();
}

/* ---- Files and memory ----------------------------------------------------------------------------------- */

/* On a disk, if there is one; else in memory. */
static int new_file(void)
{
	int fd = open("/var/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);

	return fd >= 0 ? fd : memfd_create("soak", MFD_CLOEXEC);
}

static int file_of(enum source source, size_t blocks)
{
	unsigned char block[BLOCK];
	int fd = new_file();

	if (fd < 0 || ftruncate(fd, (off_t)(blocks * BLOCK)))
		wrong("no file: %s", strerror(errno));
	for (size_t i = 0; i < blocks; i++) {
		uint64_t number = block_number(source, i);

		fill_block(block, number);
		if (number && pwrite(fd, block, BLOCK, (off_t)(i * BLOCK)) != (ssize_t)BLOCK)
			wrong("a file cannot be written: %s", strerror(errno));
	}
	return fd;
}

int cut_file(void)
{
	return file_of(CUTS, MOST);
}

static unsigned char *memory_of(enum source source)
{
	unsigned char *p = mmap(NULL, BLOCKS * BLOCK, PROT_READ | PROT_WRITE,
				MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	for (size_t i = 0; p != MAP_FAILED && i < BLOCKS; i++)
		fill_block(p + i * BLOCK, block_number(source, i));
	return p;
}

void sources_begin(unsigned int seed)
{
	int fd = file_of(FILES, BLOCKS), ret = 0;

	src.seed = seed;
	ret |= libuffd_source_memory(memory_of(MEMORY), BLOCKS * BLOCK, &house.source[MEMORY]);
	make_custom();
	ret |= libuffd_source_file(fd, &house.source[FILES]);
	ret |= libuffd_source_zero(&house.source[ZEROS]);
	ret |= libuffd_source_chain(
		(struct libuffd_source *[]){ house.source[FILES], house.source[MEMORY] }, 2,
		&house.source[CHAIN]);
	close(fd);
	for (size_t i = 0; i < ANSWERERS; i++)
		ret |= pthread_create(&src.thread[i], NULL, answers, (void *)(uintptr_t)(seed + i));
	if (ret)
		wrong("sources cannot be made: %d", ret);
}

void sources_end(void)
{
	pthread_mutex_lock(&src.lock);
	src.ends = true;
	pthread_cond_broadcast(&src.came);
	pthread_mutex_unlock(&src.lock);
	for (size_t i = 0; i < ANSWERERS; i++)
		pthread_join(src.thread[i], NULL);
	for (size_t i = SOURCES; i--;)
		libuffd_source_unref(house.source[i]);
}
