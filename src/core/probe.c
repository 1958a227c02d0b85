/* SPDX-License-Identifier: MIT */
/* What this kernel offers to this process, and what stands in the way. */
#include "core.h"

#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "sized.h"

#define CAP_SYS_PTRACE 19
#define SYSCTL "/proc/sys/vm/unprivileged_userfaultfd"

/* ---- The facts ------------------------------------------------------------------------------ */

int core_read_text(const char *path, char *buf, size_t size)
{
	int fd = sys_open(path, O_RDONLY);
	size_t len = 0;
	ssize_t n;

	if (fd < 0)
		return fd;
	do { /* a read of /proc may come in pieces */
		n = sys_read(fd, buf + len, size - 1 - len);
		if (n > 0)
			len += (size_t)n;
	} while (n == -EINTR || (n > 0 && len < size - 1));
	sys_close(fd);
	buf[len] = '\0';
	return n < 0 ? (int)n : 0;
}

static int32_t read_sysctl(void)
{
	char text[32];
	int ret = core_read_text(SYSCTL, text, sizeof(text));

	return ret < 0 ? ret : (int32_t)strtol(text, NULL, 10);
}

static int32_t read_seccomp(void)
{
	char text[4096], *line;
	int ret = core_read_text("/proc/self/status", text, sizeof(text));

	if (ret < 0)
		return ret;
	line = strstr(text, "\nSeccomp:");
	return line ? (int32_t)strtol(line + strlen("\nSeccomp:"), NULL, 10) : -ENOENT;
}

static void look_at_device(struct libuffd_caps *caps)
{
	struct stat st;

	caps->device = sys_stat(CORE_DEVICE, &st);
	if (caps->device < 0)
		return;
	caps->device_mode = st.st_mode & 07777;
	caps->device_uid = st.st_uid;
	caps->device_gid = st.st_gid;
}

/* A kernel from 6.1 on lists its misc devices, whether or not a node exists for them. */
static bool kernel_has_device(void)
{
	char text[4096];

	return core_read_text("/proc/misc", text, sizeof(text)) == 0 &&
	       strstr(text, " userfaultfd\n");
}

/* ---- The cures ------------------------------------------------------------------------------ */

static uint64_t cures_of_syscall(const struct libuffd_caps *caps, int error)
{
	switch (error) {
	case -EPERM:
		/* With permission by all we can see, something else said no. */
		if (caps->sysctl == 1)
			return LIBUFFD_CURE_SECCOMP;
		if (caps->ptrace == 1 && caps->seccomp == 2)
			return LIBUFFD_CURE_SECCOMP | LIBUFFD_CURE_SYSCTL;
		/* The capability counts in the initial user namespace only. */
		return LIBUFFD_CURE_SYSCTL | LIBUFFD_CURE_CAPABILITY;
	case -ENOSYS:
		/* The sysctl exists if and only if the kernel was built with userfaultfd. */
		return caps->sysctl >= 0 || caps->seccomp == 2 ? LIBUFFD_CURE_SECCOMP
							       : LIBUFFD_CURE_KERNEL;
	default:
		return 0;
	}
}

static uint64_t cures_of_device(int error)
{
	switch (error) {
	case -EACCES:
		return LIBUFFD_CURE_DEVICE_MODE;
	case -EPERM: /* no file permission says this: it is the device controller of a cgroup */
		return LIBUFFD_CURE_DEVICE_CGROUP;
	case -ENOENT:
	case -ENXIO:
	case -ENODEV: /* a node, and no driver behind it */
		return kernel_has_device() ? LIBUFFD_CURE_DEVICE_NODE : LIBUFFD_CURE_KERNEL;
	default:
		return 0;
	}
}

static uint64_t cures_of_user_mode(const struct libuffd_caps *caps, int error)
{
	switch (error) {
	case -EINVAL: /* the flag came with 5.11 */
		return LIBUFFD_CURE_KERNEL;
	case -EPERM: /* the kernel grants this to everybody */
		return LIBUFFD_CURE_SECCOMP;
	default:
		return cures_of_syscall(caps, error);
	}
}

static uint64_t cures_of(const struct libuffd_caps *caps, int way, int error)
{
	if (error == -EMFILE || error == -ENFILE || error == -ENOMEM)
		return LIBUFFD_CURE_LIMIT;
	switch (way) {
	case LIBUFFD_WAY_SYSCALL:
		return cures_of_syscall(caps, error);
	case LIBUFFD_WAY_DEVICE:
		return cures_of_device(error);
	default:
		return cures_of_user_mode(caps, error);
	}
}

/* ---- The probe ------------------------------------------------------------------------------ */

/* Which of the kernel's features a process may not enable is found by asking for it. */
static uint64_t denied_features(int way, uint64_t features)
{
	struct uapi_api api;
	int fd, ret;

	if (!(features & LIBUFFD_FEATURE_EVENT_FORK))
		return 0;
	fd = core_open_way(way, O_CLOEXEC | O_NONBLOCK);
	if (fd < 0)
		return 0;
	ret = core_handshake(fd, LIBUFFD_FEATURE_EVENT_FORK, &api);
	sys_close(fd);
	return ret == -EPERM ? LIBUFFD_FEATURE_EVENT_FORK : 0;
}

static void try_way(struct libuffd_caps *caps, int way)
{
	struct uapi_api api;
	int fd = core_open_way(way, O_CLOEXEC | O_NONBLOCK), ret;

	if (fd >= 0) {
		ret = core_handshake(fd, 0, &api);
		sys_close(fd);
	} else {
		ret = fd;
	}
	caps->way[way].error = ret;
	if (ret < 0) {
		caps->way[way].cures = cures_of(caps, way, ret);
		return;
	}
	if (caps->features)
		return;
	caps->features = api.features;
	caps->ioctls = api.ioctls;
	caps->denied = denied_features(way, api.features);
}

/* Where the first release's struct ended. */
#define CAPS_LEAST 112

int libuffd_probe(struct libuffd_caps *out)
{
	struct libuffd_caps caps = LIBUFFD_CAPS_INIT;
	uint32_t size;

	_Static_assert(sizeof(caps) == CAPS_LEAST, "grown: keep CAPS_LEAST");
	if (!out || out->size < CAPS_LEAST || out->size > SIZED_MAX)
		return -EINVAL;
	size = out->size;

	caps.page_size = (uint32_t)sys_page_size();
	caps.sysctl = read_sysctl();
	caps.ptrace = sys_capable(CAP_SYS_PTRACE);
	caps.seccomp = read_seccomp();
	look_at_device(&caps);
	for (int way = 0; way < LIBUFFD_WAYS; way++)
		try_way(&caps, way);

	memset(out, 0, size);
	memcpy(out, &caps, size < sizeof(caps) ? size : sizeof(caps));
	out->size = size;
	return 0;
}
