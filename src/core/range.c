/* SPDX-License-Identifier: MIT */
/* What will fault: registering ranges, and letting go of them. */
#include "core.h"

int libuffd_register(const struct libuffd *u, uint64_t start, uint64_t len, uint64_t modes,
		     uint64_t *ioctls)
{
	struct uapi_register reg = { .range = { start, len }, .mode = modes };
	int ret = u ? sys_ioctl(u->fd, UAPI_IOC_REGISTER, &reg) : -EINVAL;

	if (ioctls)
		*ioctls = ret < 0 ? 0 : reg.ioctls;
	return ret;
}

int libuffd_unregister(const struct libuffd *u, uint64_t start, uint64_t len)
{
	struct uapi_range range = { start, len };
	int ret, woken;

	if (!u)
		return -EINVAL;
	ret = sys_ioctl(u->fd, UAPI_IOC_UNREGISTER, &range);
	/*
	 * The kernel wakes those who wait for a missing page, and nobody else: whoever waits for a
	 * write, a minor or an access fault would sleep on with nobody left to answer. It holds the
	 * address space's lock for writing meanwhile, so nobody can come to wait after it. A failure
	 * may have unregistered a part, so wake then as well.
	 */
	woken = sys_ioctl(u->fd, UAPI_IOC_WAKE, &range);
	return ret < 0 ? ret : woken;
}
