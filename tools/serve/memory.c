/* SPDX-License-Identifier: MIT */
#include "memory.h"

#include <fcntl.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "nbd-uri.h"
#include "nbd.h"

static int file_len(int fd, const char *name, uint64_t *len, struct why *why)
{
	struct stat st;

	if (fstat(fd, &st) < 0)
		return refuse(why, -errno, "%s: %s", name, strerror(errno));
	if (S_ISREG(st.st_mode))
		*len = (uint64_t)st.st_size;
	else if (!S_ISBLK(st.st_mode))
		return refuse(why, -EINVAL, "%s is neither a file nor a block device", name);
	else if (ioctl(fd, BLKGETSIZE64, len) < 0)
		return refuse(why, -errno, "%s: %s", name, strerror(errno));
	return *len ? 0 : refuse(why, -EINVAL, "%s is empty", name);
}

static int open_file(struct memory *m, struct why *why)
{
	/* Non-blocking for the sake of a FIFO, which is refused then; it means nothing to a file. */
	int fd = open(m->name, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	int ret;

	if (fd < 0)
		return refuse(why, -errno, "%s: %s", m->name, strerror(errno));
	ret = file_len(fd, m->name, &m->len, why);
	if (ret == 0) {
		ret = libuffd_source_file(fd, &m->source);
		if (ret)
			refuse(why, ret, "%s: %s", m->name, strerror(-ret));
	}
	close(fd);
	return ret;
}

#if HAVE_LIBNBD
static int open_nbd(const struct options *o, struct memory *m, struct why *why)
{
	return nbd_open(o->memory, o->nbd_connections, o->nbd_timeout_ns, &m->nbd, &m->source,
			&m->len, why);
}
#else
static int open_nbd(const struct options *o, struct memory *m, struct why *why)
{
	(void)m;
	return refuse(why, -EOPNOTSUPP, "%s: this uffd-serve was built without libnbd", o->memory);
}
#endif

int memory_open(const struct options *o, struct memory *m, struct why *why)
{
	memset(m, 0, sizeof(*m));
	m->name = o->memory;
	return nbd_is_uri(o->memory) ? open_nbd(o, m, why) : open_file(m, why);
}

int memory_start(struct memory *m, struct why *why)
{
#if HAVE_LIBNBD
	if (m->nbd)
		return nbd_start(m->nbd, why);
#endif
	(void)m;
	(void)why;
	return 0;
}

void memory_tick(struct memory *m)
{
#if HAVE_LIBNBD
	if (m->nbd)
		nbd_tick(m->nbd);
#endif
	(void)m;
}

void memory_close(struct memory *m)
{
#if HAVE_LIBNBD
	if (m->nbd)
		nbd_end(m->nbd);
#endif
	m->nbd = NULL;
	libuffd_source_unref(m->source);
	m->source = NULL;
}
