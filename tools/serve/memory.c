/* SPDX-License-Identifier: MIT */
#include "memory.h"

#include <fcntl.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

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

int memory_open(const char *name, struct memory *m, struct why *why)
{
	memset(m, 0, sizeof(*m));
	m->name = name;
	return open_file(m, why);
}

void memory_close(struct memory *m)
{
	libuffd_source_unref(m->source);
	m->source = NULL;
}
