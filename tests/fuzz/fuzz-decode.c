/* SPDX-License-Identifier: MIT */
/* Any bytes in, a valid event or -EBADMSG out. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <uffd/uffd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(int truth)
{
	if (!truth)
		abort();
}

static void check_event(const uint8_t *msg, const struct libuffd_event *ev)
{
	uint64_t words[3];

	memcpy(words, msg + 8, sizeof(words));
	require(ev->type == msg[0] && ev->reserved == 0);
	switch (ev->type) {
	case LIBUFFD_EVENT_FAULT:
		require(ev->fault.flags == words[0] && ev->fault.address == words[1]);
		break;
	case LIBUFFD_EVENT_FORK:
		require(ev->fork.fd >= 0 && !ev->fork.handle);
		break;
	case LIBUFFD_EVENT_REMAP:
		require(ev->remap.len && ev->remap.from + (ev->remap.len - 1) >= ev->remap.from &&
			ev->remap.to + (ev->remap.len - 1) >= ev->remap.to);
		break;
	case LIBUFFD_EVENT_REMOVE:
	case LIBUFFD_EVENT_UNMAP:
		require(ev->remove.start < ev->remove.end);
		break;
	default:
		require(ev->type != LIBUFFD_EVENT_MALFORMED);
		require(memcmp(ev->words, words, sizeof(words)) == 0);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct libuffd_event ev;
	int ret;

	memset(&ev, 0xa5, sizeof(ev));
	ret = libuffd_decode(data, size, &ev);
	if (!data) {
		require(ret == -EINVAL);
		return 0;
	}
	require(ret == 0 || ret == -EBADMSG);
	require(size == 32 || ret == -EBADMSG);
	for (size_t i = 3; i < 7; i++)
		require(ev.space[i] == 0);
	if (ret == 0)
		check_event(data, &ev);
	else
		require(ev.type == LIBUFFD_EVENT_MALFORMED);
	return 0;
}
