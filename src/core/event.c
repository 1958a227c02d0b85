/* SPDX-License-Identifier: MIT */
/* Events: one read(2) for many, and their decoding. */
#include "core.h"

#include <limits.h>
#include <stdbool.h>
#include <string.h>

_Static_assert(sizeof(struct libuffd_event) == 64, "ABI");
_Static_assert(offsetof(struct libuffd_event, fault) == 8, "ABI");
_Static_assert(sizeof(((struct libuffd_event *)0)->space) == 56, "ABI");

/* The kernel cuts a read at this many bytes; a count must fit an int too. */
#define READ_MAX ((size_t)0x7ffff000)

/* Neither empty nor past the end of the address space. */
static bool span_ok(uint64_t start, uint64_t len)
{
	return len && start + len - 1 >= start;
}

static bool decode_known(const struct uapi_msg *msg, struct libuffd_event *out)
{
	const uint64_t *w = msg->words;
	uint32_t low;

	switch (msg->event) {
	case LIBUFFD_EVENT_FAULT:
		/* A 32-bit field, whatever the byte order. */
		memcpy(&low, &w[2], sizeof(low));
		out->fault = (struct libuffd_fault){ .address = w[1],
						     .flags = w[0],
						     .thread = low };
		return true;
	case LIBUFFD_EVENT_FORK:
		memcpy(&low, &w[0], sizeof(low));
		if (low > INT_MAX)
			return false;
		out->fork = (struct libuffd_child){ .fd = (int32_t)low };
		return true;
	case LIBUFFD_EVENT_REMAP:
		if (!span_ok(w[0], w[2]) || !span_ok(w[1], w[2]))
			return false;
		out->remap = (struct libuffd_remap){ .from = w[0], .to = w[1], .len = w[2] };
		return true;
	case LIBUFFD_EVENT_REMOVE:
	case LIBUFFD_EVENT_UNMAP:
		if (w[1] <= w[0])
			return false;
		out->remove = (struct libuffd_span){ .start = w[0], .end = w[1] };
		return true;
	default:
		memcpy(out->words, w, sizeof(out->words));
		return true;
	}
}

static int decode(const struct uapi_msg *msg, struct libuffd_event *out)
{
	memset(out, 0, sizeof(*out));
	out->type = msg->event;
	if (msg->event != LIBUFFD_EVENT_MALFORMED && decode_known(msg, out))
		return 0;
	out->type = LIBUFFD_EVENT_MALFORMED;
	memcpy(out->words, msg->words, sizeof(out->words));
	return -EBADMSG;
}

int libuffd_decode(const void *bytes, size_t len, struct libuffd_event *out)
{
	struct uapi_msg msg;

	if (!bytes || !out)
		return -EINVAL;
	memset(&msg, 0, sizeof(msg));
	if (len == sizeof(msg))
		memcpy(&msg, bytes, sizeof(msg));
	return decode(&msg, out);
}

/* The kernel has given us the descriptor already: with or without a handle, it goes on. */
static void own_child(const struct libuffd *u, struct libuffd_event *ev)
{
	ev->fork.handle = core_child(u, ev->fork.fd);
}

int libuffd_read_events(const struct libuffd *u, struct libuffd_event *ev, size_t cap)
{
	unsigned char *raw;
	ssize_t bytes;
	size_t n;

	if (!u || !ev || !cap)
		return -EINVAL;
	if (cap > READ_MAX / UAPI_MSG_SIZE)
		cap = READ_MAX / UAPI_MSG_SIZE;
	/*
	 * A message is half the size of an event: they are read into the upper half of the array and
	 * decoded upwards. Event i ends at 64(i+1), message i+1 begins at 32(cap+i+1): not before that
	 * as long as i < cap, so no message is overwritten before its turn.
	 */
	raw = (unsigned char *)ev + cap * UAPI_MSG_SIZE;
	bytes = sys_read(u->fd, raw, cap * UAPI_MSG_SIZE);
	if (bytes < 0)
		return (int)bytes;
	n = (size_t)bytes / UAPI_MSG_SIZE;
	if (!n) /* no userfaultfd answers so: somebody put another file in its place */
		return -EBADMSG;
	for (size_t i = 0; i < n; i++) {
		struct uapi_msg msg;

		memcpy(&msg, raw + i * UAPI_MSG_SIZE, sizeof(msg));
		decode(&msg, &ev[i]);
		if (ev[i].type == LIBUFFD_EVENT_FORK)
			own_child(u, &ev[i]);
	}
	return (int)n;
}
