/* SPDX-License-Identifier: MIT */
/* Open, adopt, close: how a descriptor is got, and the handshake that fixes its features. */
#include "core.h"

#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "sized.h"

#define OPEN_FLAGS                                                                           \
	(LIBUFFD_OPEN_USER_MODE_OK | LIBUFFD_OPEN_USER_MODE_ONLY | LIBUFFD_OPEN_NO_SYSCALL | \
	 LIBUFFD_OPEN_NO_DEVICE | LIBUFFD_OPEN_BLOCKING)

/* Where the first release's struct ended: what every caller's must reach. */
#define OPTS_LEAST 32

/* ---- Ways in -------------------------------------------------------------------------------- */

static int open_device(int flags)
{
	int fd, dev = sys_open(CORE_DEVICE, O_RDWR);

	if (dev < 0)
		return dev;
	fd = sys_ioctl_value(dev, UAPI_IOC_NEW, (unsigned long)flags);
	sys_close(dev);
	return fd;
}

int core_open_way(int way, int flags)
{
	switch (way) {
	case LIBUFFD_WAY_SYSCALL:
		return sys_userfaultfd(flags);
	case LIBUFFD_WAY_DEVICE:
		return open_device(flags);
	case LIBUFFD_WAY_USER_MODE:
		return sys_userfaultfd(flags | UAPI_USER_MODE_ONLY);
	default:
		return -EINVAL;
	}
}

/* Which ways the caller's flags leave, as 1 << way. */
static unsigned int ways_allowed(uint32_t flags)
{
	unsigned int ways = 0;

	if (flags & LIBUFFD_OPEN_USER_MODE_ONLY)
		return 1u << LIBUFFD_WAY_USER_MODE;
	if (!(flags & LIBUFFD_OPEN_NO_SYSCALL))
		ways |= 1u << LIBUFFD_WAY_SYSCALL;
	if (!(flags & LIBUFFD_OPEN_NO_DEVICE))
		ways |= 1u << LIBUFFD_WAY_DEVICE;
	if (flags & LIBUFFD_OPEN_USER_MODE_OK)
		ways |= 1u << LIBUFFD_WAY_USER_MODE;
	return ways;
}

/*
 * Each way has permissions of its own, so a refusal of one says nothing about the next: all are
 * tried, and the first refusal is what the caller is told if none works.
 */
static int open_any_way(const struct libuffd_open_opts *opts, struct libuffd_report *report,
			int *way)
{
	int flags = O_CLOEXEC | (opts->flags & LIBUFFD_OPEN_BLOCKING ? 0 : O_NONBLOCK);
	unsigned int ways = ways_allowed(opts->flags);
	int first = -EINVAL;
	bool refused = false;

	for (*way = 0; *way < LIBUFFD_WAYS; ++*way) {
		int fd;

		if (!(ways & (1u << *way)))
			continue;
		fd = core_open_way(*way, flags);
		report->error[*way] = fd < 0 ? fd : 0;
		if (fd >= 0)
			return fd;
		if (!refused)
			first = fd;
		refused = true;
	}
	return first;
}

/* ---- Handshake ------------------------------------------------------------------------------ */

int core_handshake(int fd, uint64_t features, struct uapi_api *api)
{
	*api = (struct uapi_api){ .api = UAPI_API, .features = features };
	return sys_ioctl(fd, UAPI_IOC_API, api);
}

/*
 * What the kernel has. A successful handshake is final, so it takes a descriptor of its own. Any
 * way in serves; after the full ones, user mode, which is open to all and has the same features.
 */
static int supported_features(uint64_t *features)
{
	struct uapi_api api;
	int first = 0;

	for (int way = 0; way < LIBUFFD_WAYS; way++) {
		int ret, fd = core_open_way(way, O_CLOEXEC | O_NONBLOCK);

		if (fd < 0) {
			first = first ? first : fd;
			continue;
		}
		ret = core_handshake(fd, 0, &api);
		sys_close(fd);
		*features = api.features;
		return ret;
	}
	return first;
}

/* The kernel switches on with WP_ASYNC what that needs; what is enabled must say so. */
static uint64_t with_implied(uint64_t features)
{
	return features & LIBUFFD_FEATURE_WP_ASYNC ? features | LIBUFFD_FEATURE_WP_UNPOPULATED
						   : features;
}

/*
 * The kernel knows not all that is wanted. Find out what it has, and leave out what is optional.
 * A descriptor that was handed to us may come to a process that cannot open its own: then nothing
 * can be learned, and the required features are all that is asked for.
 */
static int narrow_to_supported(const struct libuffd_open_opts *opts, struct libuffd_report *report,
			       uint64_t *want)
{
	uint64_t supported = 0;
	int ret = supported_features(&supported);

	if (ret == -EMFILE || ret == -ENFILE || ret == -ENOMEM)
		return ret;
	if (ret < 0)
		supported = opts->required;
	else
		report->supported = supported;
	report->missing = opts->required & ~supported;
	*want &= supported;
	return report->missing ? -EOPNOTSUPP : 0;
}

/*
 * Agree on features. The plain case is one ioctl. A refused UFFDIO_API leaves the descriptor as it
 * was, so the set is narrowed until it is accepted: without permission for EVENT_FORK, which hands
 * out descriptors of other processes (the kernel looks at that first), and to what there is.
 */
static int negotiate(struct libuffd *u, const struct libuffd_open_opts *opts,
		     struct libuffd_report *report)
{
	const uint64_t fork = LIBUFFD_FEATURE_EVENT_FORK;
	uint64_t want = opts->required | opts->optional;
	bool narrowed = false;
	struct uapi_api api;
	int ret;

	for (;;) {
		ret = core_handshake(u->fd, want, &api);
		report->handshake = ret;
		if (ret == -EPERM && want & fork & ~opts->required) {
			want &= ~fork;
		} else if (ret == -EINVAL && want && !narrowed) {
			narrowed = true;
			ret = narrow_to_supported(opts, report, &want);
			if (ret < 0)
				return ret;
		} else {
			break;
		}
	}
	if (ret == -EPERM)
		report->missing = opts->required & fork;
	if (ret < 0)
		return ret;
	report->supported = api.features;
	u->features = with_implied(want);
	u->ioctls = api.ioctls;
	return 0;
}

/* ---- The handle ----------------------------------------------------------------------------- */

static struct libuffd *handle_new(int fd, int way)
{
	struct libuffd *u = calloc(1, sizeof(*u));

	if (!u)
		return NULL;
	u->fd = fd;
	u->way = way;
	u->page_size = sys_page_size();
	return u;
}

struct libuffd *core_child(const struct libuffd *parent, int fd)
{
	struct libuffd *u = handle_new(fd, LIBUFFD_WAY_ADOPTED);

	if (!u)
		return NULL;
	u->features = parent->features;
	u->ioctls = parent->ioctls;
	return u;
}

static int get_opts(const struct libuffd_open_opts *from, struct libuffd_open_opts *opts,
		    struct libuffd_report *report)
{
	int ret = 0;

	_Static_assert(sizeof(struct libuffd_open_opts) == OPTS_LEAST, "grown: keep OPTS_LEAST");
	*report = (struct libuffd_report){ .handshake = LIBUFFD_NOT_TRIED };
	for (int way = 0; way < LIBUFFD_WAYS; way++)
		report->error[way] = LIBUFFD_NOT_TRIED;
	memset(opts, 0, sizeof(*opts));
	if (from)
		ret = sized_get(opts, sizeof(*opts), OPTS_LEAST, from);
	return ret;
}

static void tell(const struct libuffd_open_opts *opts, const struct libuffd_report *report)
{
	if (opts->report)
		*opts->report = *report;
}

/* Flags that leave no way in, or say two things at once, are a caller's mistake. */
static bool flags_make_sense(uint32_t flags)
{
	uint32_t choice = flags & (LIBUFFD_OPEN_USER_MODE_OK | LIBUFFD_OPEN_NO_SYSCALL |
				   LIBUFFD_OPEN_NO_DEVICE);

	if (flags & ~OPEN_FLAGS)
		return false;
	if (flags & LIBUFFD_OPEN_USER_MODE_ONLY)
		return !choice;
	return ways_allowed(flags) != 0;
}

int libuffd_open(const struct libuffd_open_opts *from, struct libuffd **out)
{
	struct libuffd_open_opts opts;
	struct libuffd_report report;
	struct libuffd *u = NULL;
	int fd, way, ret;

	if (!out)
		return -EINVAL;
	*out = NULL;
	ret = get_opts(from, &opts, &report);
	if (ret < 0)
		return ret;
	if (!flags_make_sense(opts.flags)) {
		tell(&opts, &report);
		return -EINVAL;
	}
	fd = open_any_way(&opts, &report, &way);
	if (fd < 0) {
		tell(&opts, &report);
		return fd;
	}
	u = handle_new(fd, way);
	ret = u ? negotiate(u, &opts, &report) : -ENOMEM;
	tell(&opts, &report);
	if (ret < 0) {
		free(u);
		sys_close(fd);
		return ret;
	}
	*out = u;
	return 0;
}

/* ---- Adopting ------------------------------------------------------------------------------- */

/*
 * A userfaultfd's fdinfo has a line "API:\taa:<features>:<ioctls>", in hexadecimal; no other file's
 * has. The features are the enabled ones, with a bit of the kernel's own once initialised.
 */
static int read_fdinfo(int fd, uint64_t *features, uint64_t *ioctls)
{
	char path[40], text[1024], *line, *end;
	int ret;

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", fd);
	ret = core_read_text(path, text, sizeof(text));
	if (ret < 0)
		return ret;
	line = strstr(text, "\nAPI:\t");
	if (!line)
		return -ENOTTY;
	line += 6;
	if (strtoull(line, &end, 16) != UAPI_API || *end != ':')
		return -ENOTTY;
	*features = strtoull(end + 1, &end, 16);
	if (*end != ':')
		return -ENOTTY;
	*ioctls = strtoull(end + 1, &end, 16);
	return 0;
}

/* fdinfo lists ioctls of descriptor and ranges in one; these are the ranges'. */
#define RANGE_IOCTLS                                                                             \
	(LIBUFFD_IOCTL_WAKE | LIBUFFD_IOCTL_COPY | LIBUFFD_IOCTL_ZEROPAGE | LIBUFFD_IOCTL_MOVE | \
	 LIBUFFD_IOCTL_WRITEPROTECT | LIBUFFD_IOCTL_CONTINUE | LIBUFFD_IOCTL_POISON |            \
	 LIBUFFD_IOCTL_RWPROTECT)

/* Learn what the owner enabled. Nothing at all, not even the kernel's own bit: no handshake yet. */
static int learn_enabled(struct libuffd *u)
{
	uint64_t features, ioctls;
	int ret = read_fdinfo(u->fd, &features, &ioctls);

	if (ret < 0)
		return ret;
	u->features = features & ~(uint64_t)UAPI_FEATURE_INITIALIZED;
	u->ioctls = ioctls & ~RANGE_IOCTLS;
	return features != 0;
}

static int adopt_fd(struct libuffd *u, const struct libuffd_open_opts *opts,
		    struct libuffd_report *report)
{
	int ret = learn_enabled(u);

	if (ret < 0)
		return ret;
	if (!ret)
		return negotiate(u, opts, report);
	report->missing = opts->required & ~u->features;
	return report->missing ? -EOPNOTSUPP : 0;
}

int libuffd_adopt(int fd, const struct libuffd_open_opts *from, struct libuffd **out)
{
	struct libuffd_open_opts opts;
	struct libuffd_report report;
	struct libuffd *u = NULL;
	int ret;

	if (!out)
		return -EINVAL;
	*out = NULL;
	ret = get_opts(from, &opts, &report);
	if (ret < 0)
		return ret;
	ret = fd < 0 || opts.flags ? -EINVAL : sys_fd_flags(fd);
	if (ret >= 0) {
		u = handle_new(fd, LIBUFFD_WAY_ADOPTED);
		ret = u ? adopt_fd(u, &opts, &report) : -ENOMEM;
	}
	tell(&opts, &report);
	if (ret < 0) {
		free(u);
		return ret;
	}
	*out = u;
	return 0;
}

int core_adopt_ready(int fd, struct libuffd **out)
{
	struct libuffd *u = handle_new(fd, LIBUFFD_WAY_ADOPTED);
	int ret = u ? learn_enabled(u) : -ENOMEM;

	if (ret == 0)
		ret = -EOPNOTSUPP;
	if (ret < 0) {
		free(u);
		return ret;
	}
	*out = u;
	return 0;
}

void libuffd_close(struct libuffd *u)
{
	if (!u)
		return;
	sys_close(u->fd);
	free(u);
}

int libuffd_fd(const struct libuffd *u)
{
	return u ? u->fd : -EINVAL;
}

uint64_t libuffd_features(const struct libuffd *u)
{
	return u ? u->features : 0;
}

uint64_t libuffd_ioctls(const struct libuffd *u)
{
	return u ? u->ioctls : 0;
}

int libuffd_way(const struct libuffd *u)
{
	return u ? u->way : -EINVAL;
}
