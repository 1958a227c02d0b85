/* SPDX-License-Identifier: MIT */
/* Buffers to read into. */
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "srv.h"

#define KEEP ((size_t)32 << 20) /* the most that lies idle in a pool */

/*
 * An unprivileged user may lock 8 MiB of memory in all. What is larger than SMALL is not worth it: to look its
 * pages up is little beside the read.
 */
#define ARENA ((size_t)4 << 20)
#define SMALL ((size_t)64 << 10)

/* A buffer in the pool begins with the address of the next of its size. */
struct srv_idle {
	struct srv_idle *next;
};

/* Log2 of the size that @len is rounded up to; the number of sizes if it is beyond them all. */
static unsigned int class_of(const struct srv_pool *p, size_t len)
{
	size_t page = (size_t)sysconf(_SC_PAGESIZE);
	unsigned int n = sizeof(p->free) / sizeof(p->free[0]), i = 0;

	if (len < page)
		len = page;
	while (i < n && (uint64_t)1 << i < len)
		i++;
	return i;
}

/*
 * Large ones lie so that they can be huge pages, which MOVE then takes over as they are.
 */
static void *map_aligned(size_t size)
{
	char *room = mmap(NULL, size + SRV_MOVE_LEN, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	size_t before;

	if (room == MAP_FAILED)
		return MAP_FAILED;
	before = (size_t)(-(uintptr_t)room & (SRV_MOVE_LEN - 1));
	if (before)
		munmap(room, before);
	if (SRV_MOVE_LEN - before)
		munmap(room + before + size, SRV_MOVE_LEN - before);
	madvise(room + before, size, MADV_HUGEPAGE);
	return room + before;
}

/*
 * One touch brings a huge page, or one small page with none beside it. Moving small ones takes as long as copying
 * them, and leaves the buffer to be filled with new ones.
 */
static bool is_huge(char *buf)
{
	unsigned char there = 0;
	size_t page = (size_t)sysconf(_SC_PAGESIZE);

	*(volatile char *)buf = 0;
	return !mincore(buf + page, page, &there) && there & 1;
}

/*
 * A fork while a read with O_DIRECT is under way into private memory may leave the page that is read
 * into to the child, and a copy without the bytes to us. What the child does not get is not copied.
 */
static void *map(size_t size)
{
	void *buf = size < SRV_MOVE_LEN ? mmap(NULL, size, PROT_READ | PROT_WRITE,
					       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
					: map_aligned(size);

	if (buf == MAP_FAILED)
		return NULL;
	madvise(buf, size, MADV_DONTFORK);
	return buf;
}

static bool in_arena(const struct srv_pool *p, const void *buf)
{
	return p->arena && (uintptr_t)buf - (uintptr_t)p->arena < ARENA;
}

/* What is taken of the arena is not given back to it, only kept for the next of its size. */
static void *from_arena(struct srv_pool *p, size_t size)
{
	void *buf;

	if (!p->arena || size > SMALL || size > ARENA - p->arena_used)
		return NULL;
	buf = p->arena + p->arena_used;
	p->arena_used += size;
	return buf;
}

void srv_pool_fix(struct srv_pool *p, const struct srv_engine_ops *ops, struct srv_engine *e)
{
	void *arena;

	if (p->arena_tried)
		return;
	p->arena_tried = true;
	arena = ops->fix ? map(ARENA) : NULL;
	if (!arena)
		return;
	if (ops->fix(e, arena, ARENA))
		munmap(arena, ARENA);
	else
		p->arena = arena;
}

/* All that is idle, but what lies in the arena. */
static void unmap_idle(struct srv_pool *p)
{
	for (unsigned int i = 0; i < sizeof(p->free) / sizeof(p->free[0]); i++) {
		struct srv_idle **at = &p->free[i], *idle;

		while ((idle = *at)) {
			if (in_arena(p, idle)) {
				at = &idle->next;
			} else {
				*at = idle->next;
				munmap(idle, (size_t)1 << i);
			}
		}
	}
	p->kept = 0;
}

void *srv_pool_get(struct srv_pool *p, size_t len)
{
	unsigned int i = class_of(p, len);
	struct srv_idle *idle;
	void *buf;

	if (i >= sizeof(p->free) / sizeof(p->free[0]))
		return NULL;
	idle = p->free[i];
	if (idle) {
		p->free[i] = idle->next;
		if (!in_arena(p, idle))
			p->kept -= (size_t)1 << i;
		return idle;
	}
	buf = from_arena(p, (size_t)1 << i);
	if (!buf)
		buf = map((size_t)1 << i);
	if (!buf && p->kept) {
		/* What other sizes have kept may be what is lacking. */
		unmap_idle(p);
		buf = map((size_t)1 << i);
	}
	if (buf && (size_t)1 << i == SRV_MOVE_LEN)
		p->small_pages = !is_huge(buf);
	return buf;
}

void srv_pool_put(struct srv_pool *p, void *buf, size_t len)
{
	unsigned int i = class_of(p, len);
	struct srv_idle *idle = buf;

	if (!buf)
		return;
	if (!in_arena(p, buf)) {
		if ((size_t)1 << i > KEEP - p->kept) {
			munmap(buf, (size_t)1 << i);
			return;
		}
		p->kept += (size_t)1 << i;
	}
	idle->next = p->free[i];
	p->free[i] = idle;
}

void srv_pool_clear(struct srv_pool *p)
{
	unmap_idle(p);
	if (p->arena)
		munmap(p->arena, ARENA);
	memset(p, 0, sizeof(*p));
}
