/* SPDX-License-Identifier: MIT */
/* Memory whose pages are made at the moment somebody reads them. */
#include <err.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <uffd/uffd.h>

static void *answer_faults(void *u)
{
	static char page[65536]; /* as large as pages get */
	struct libuffd_answer answer = LIBUFFD_ANSWER_INIT;
	struct libuffd_event event;

	for (int n = 1; libuffd_read_events(u, &event, 1) == 1; n++) {
		snprintf(page, sizeof(page), "made for fault %d", n);
		answer.kind = LIBUFFD_ANSWER_COPY;
		answer.start = event.fault.address;
		answer.len = sysconf(_SC_PAGESIZE);
		answer.data = page;
		if (libuffd_resolve(u, &answer, NULL) < 0)
			errx(1, "cannot answer a fault");
	}
	errx(1, "cannot read a fault");
}

int main(void)
{
	struct libuffd_open_opts opts = LIBUFFD_OPEN_OPTS_INIT;
	size_t page = sysconf(_SC_PAGESIZE), len = 4 * page;
	char *memory = mmap(NULL, len, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct libuffd *u;
	pthread_t thread;
	int ret;

	opts.flags = LIBUFFD_OPEN_BLOCKING | LIBUFFD_OPEN_USER_MODE_OK;
	if ((ret = libuffd_open(&opts, &u)) < 0)
		errx(1, "userfaultfd: %s (uffd-info knows more)", strerror(-ret));
	if ((ret = libuffd_register(u, (uintptr_t)memory, len, LIBUFFD_MODE_MISSING, NULL)) < 0)
		errx(1, "register: %s", strerror(-ret));
	pthread_create(&thread, NULL, answer_faults, u);
	for (size_t i = 4; i-- > 0;)
		printf("page %zu was %s\n", i, memory + i * page);
	return 0;
}
