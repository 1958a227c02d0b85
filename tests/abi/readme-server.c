/* SPDX-License-Identifier: MIT */
/* The README's block about the server, made a program: a file, memory, and a thread that touches it. */
#define _GNU_SOURCE
#include <err.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <uffd/server.h>

static struct libuffd_server *server;
static char *memory;
static size_t len;

static void *touch(void *wrong)
{
	for (size_t i = 0; i < len; i++)
		*(size_t *)wrong += memory[i] != (char)(i % 251);
	libuffd_server_stop(server);
	return NULL;
}

/* When it runs, everything is ready. */
static int run(struct libuffd_server *s)
{
	size_t wrong = 0;
	pthread_t thread;
	int ret;

	if (pthread_create(&thread, NULL, touch, &wrong))
		errx(1, "thread");
	ret = libuffd_server_run(s);
	pthread_join(thread, NULL);
	if (ret < 0 || wrong)
		errx(1, "run: %s, %zu bytes are wrong", strerror(-ret), wrong);
	puts("all bytes are right");
	return ret;
}

#define libuffd_server_run run

int main(void)
{
	struct libuffd_region region = LIBUFFD_REGION_INIT;
	int fd = memfd_create("bytes", 0);
	struct libuffd *u;
	uint64_t id;

	len = 64 * (size_t)sysconf(_SC_PAGESIZE);
	memory = mmap(NULL, len, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	for (size_t i = 0; i < len; i++)
		if (write(fd, &(char){ (char)(i % 251) }, 1) != 1)
			err(1, "file");
	/* the block that begins: libuffd_open(NULL, &u); */
	libuffd_server_free(server);
	libuffd_source_unref(region.source);
	libuffd_close(u);
	return 0;
}
