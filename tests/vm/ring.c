/* SPDX-License-Identifier: MIT */
/*
 * Keep an io_uring for as long as the guest runs. 6.12 and later kernels patch their own code when the first ring comes and
 * after the last has gone (io_key_has_sqarray), which the tests would have them do all the time; see BOOTS in lib/guest.py
 * for what an emulator makes of that. Where rings are refused there is nothing to keep.
 */
#include <liburing.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

int main(void)
{
	struct io_uring ring;
	int err = io_uring_queue_init(1, &ring, 0);

	if (err) {
		printf("no ring to keep: %s\n", strerror(-err));
		return 0;
	}
	/* Whoever started us may go on: there is one. */
	switch (fork()) {
	case -1:
		perror("fork");
		return 1;
	case 0:
		for (;;)
			pause();
	}
	return 0;
}
