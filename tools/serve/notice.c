/* SPDX-License-Identifier: MIT */
/* What the server's threads tell, in order, until the main thread has time for it. */
#include "serve.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "say.h"

#define CHATTER_MOST 10000 /* pages that could not be had: later ones are counted only */

struct told {
	struct told *next;
	struct libuffd_notice notice;
	struct libuffd_stats
		stats; /* of a region that is complete: soon the server has none any more */
};

static struct {
	pthread_mutex_t lock;
	struct told *first, **last;
	size_t chatter;
	struct watch watch; /* an eventfd */
	struct serve *serve;
} queue = { .lock = PTHREAD_MUTEX_INITIALIZER, .watch.fd = -1 };

/*
 * The first fields of a notice are what this program knows. Without memory for it one is lost: then nobody hears that
 * a page waits, which goes on waiting.
 */
void notice_tell(void *ctx, const struct libuffd_notice *notice)
{
	bool chatter = notice->type == LIBUFFD_NOTICE_ERROR;
	struct told *t = calloc(1, sizeof(*t));
	uint64_t one = 1;

	(void)ctx;
	if (!t)
		return;
	t->notice = *notice;
	t->stats.size = sizeof(t->stats);
	if (notice->type == LIBUFFD_NOTICE_COMPLETE)
		libuffd_server_stats(queue.serve->server, notice->region, &t->stats);
	pthread_mutex_lock(&queue.lock);
	if (chatter && queue.chatter == CHATTER_MOST) {
		free(t);
	} else {
		queue.chatter += chatter;
		*queue.last = t;
		queue.last = &t->next;
	}
	pthread_mutex_unlock(&queue.lock);
	/* It counts to 2^64: this cannot fail. */
	if (write(queue.watch.fd, &one, sizeof(one)) < 0)
		return;
}

void notice_take_all(struct serve *sv)
{
	struct told *t;

	pthread_mutex_lock(&queue.lock);
	t = queue.first;
	queue.first = NULL;
	queue.last = &queue.first;
	queue.chatter = 0;
	pthread_mutex_unlock(&queue.lock);
	while (t) {
		struct told *next = t->next;

		vm_notice(sv, &t->notice, &t->stats);
		free(t);
		t = next;
	}
}

static void ready(struct watch *w, uint32_t events)
{
	uint64_t n;

	(void)events;
	if (read(w->fd, &n, sizeof(n)) == sizeof(n))
		notice_take_all(queue.serve);
}

int notice_open(struct serve *sv)
{
	queue.serve = sv;
	queue.last = &queue.first;
	queue.watch.ready = ready;
	queue.watch.fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (queue.watch.fd < 0)
		return -errno;
	return loop_watch(&queue.watch, EPOLLIN);
}

void notice_close(void)
{
	while (queue.first) {
		struct told *next = queue.first->next;

		free(queue.first);
		queue.first = next;
	}
	if (queue.watch.fd >= 0)
		close(queue.watch.fd);
	queue.watch.fd = -1;
}
