/* SPDX-License-Identifier: MIT */
/*
 * A kernel in which everything succeeds at once. valgrind does not know userfaultfd(2), so the
 * program whose instructions are counted is linked with this library in front of libc. It is a
 * shared library because then the raw loop reaches ioctl through the PLT, as it does in real
 * programs, and pays as much for it as libuffd.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "raw-uapi.h"

/* libc's own prototypes; repeated because not every libc header is wanted here */
int ioctl(int fd, unsigned long request, ...);
long syscall(long number, ...);
ssize_t read(int fd, void *buf, size_t len);

long syscall(long number, ...)
{
	if (number == SYS_userfaultfd)
		return open("/dev/null", O_RDWR | O_CLOEXEC);
	errno = ENOSYS;
	return -1;
}

static void handshake(struct uffdio_api *api)
{
	api->features = ~UINT64_C(0);
	api->ioctls = ~UINT64_C(0);
}

int ioctl(int fd, unsigned long request, ...)
{
	va_list ap;
	void *arg;

	(void)fd;
	va_start(ap, request);
	arg = va_arg(ap, void *);
	va_end(ap);

	switch (request) {
	case UFFDIO_API:
		handshake(arg);
		return 0;
	case UFFDIO_REGISTER:
		((struct uffdio_register *)arg)->ioctls = ~UINT64_C(0);
		return 0;
	case UFFDIO_COPY:
		((struct uffdio_copy *)arg)->copy = (__s64)((struct uffdio_copy *)arg)->len;
		return 0;
	case UFFDIO_MOVE:
		((struct uffdio_move *)arg)->move = (__s64)((struct uffdio_move *)arg)->len;
		return 0;
	case UFFDIO_ZEROPAGE:
		((struct uffdio_zeropage *)arg)->zeropage =
			(__s64)((struct uffdio_zeropage *)arg)->range.len;
		return 0;
	case UFFDIO_CONTINUE:
		((struct uffdio_continue *)arg)->mapped =
			(__s64)((struct uffdio_continue *)arg)->range.len;
		return 0;
	case UFFDIO_POISON:
		((struct uffdio_poison *)arg)->updated =
			(__s64)((struct uffdio_poison *)arg)->range.len;
		return 0;
	default: /* the others have no out field */
		return 0;
	}
}

/* As many pending faults as fit. */
ssize_t read(int fd, void *buf, size_t len)
{
	struct uffd_msg *msg = buf;
	size_t n = len / sizeof(*msg);

	(void)fd;
	memset(msg, 0, n * sizeof(*msg));
	for (size_t i = 0; i < n; i++) {
		msg[i].event = UFFD_EVENT_PAGEFAULT;
		msg[i].arg.pagefault.address = 0x100000 + i * 0x1000;
	}
	return (ssize_t)(n * sizeof(*msg));
}
