/* SPDX-License-Identifier: MIT */
/* Decoding is total: any bytes in, a valid event or -EBADMSG out. And reading loses nothing. */
#include "fake-sys.h"

static struct uapi_msg message(uint8_t type, uint64_t a, uint64_t b, uint64_t c)
{
	return (struct uapi_msg){ .event = type, .words = { a, b, c } };
}

static int decode_msg(struct uapi_msg msg, struct libuffd_event *ev)
{
	memset(ev, 0xa5, sizeof(*ev));
	return libuffd_decode(&msg, sizeof(msg), ev);
}

/* Everything after the named fields is zero, so that a later release can give it a meaning. */
static void assert_zero_after(const struct libuffd_event *ev, size_t used)
{
	const unsigned char *bytes = (const unsigned char *)ev;

	for (size_t i = offsetof(struct libuffd_event, space) + used; i < sizeof(*ev); i++)
		assert_int_equal(bytes[i], 0);
	assert_int_equal(ev->reserved, 0);
}

static void decode_fault(void **state)
{
	struct libuffd_event ev;

	(void)state;
	assert_int_equal(decode_msg(message(0x12, 3, 0x7f0000001000, 77), &ev), 0);
	assert_int_equal(ev.type, LIBUFFD_EVENT_FAULT);
	assert_true(ev.fault.address == 0x7f0000001000);
	assert_true(ev.fault.flags == (LIBUFFD_FAULT_WRITE | LIBUFFD_FAULT_WP));
	assert_int_equal(ev.fault.thread, 77);
	assert_zero_after(&ev, sizeof(struct libuffd_fault));
}

/* A newer kernel's fault flags must reach the caller (peers: an assertion broke Firecracker). */
static void decode_fault_passes_unknown_flags(void **state)
{
	struct libuffd_event ev;

	(void)state;
	assert_int_equal(decode_msg(message(0x12, UINT64_C(1) << 40, 0x1000, 0), &ev), 0);
	assert_true(ev.fault.flags == UINT64_C(1) << 40);
}

static void decode_fork(void **state)
{
	struct libuffd_event ev;

	(void)state;
	assert_int_equal(decode_msg(message(0x13, 9, 0, 0), &ev), 0);
	assert_int_equal(ev.fork.fd, 9);
	assert_null(ev.fork.handle);
	assert_zero_after(&ev, sizeof(struct libuffd_child));
	assert_int_equal(decode_msg(message(0x13, 0xffffffff, 0, 0), &ev), -EBADMSG);
	assert_int_equal(ev.type, LIBUFFD_EVENT_MALFORMED);
}

static void decode_ranges(void **state)
{
	struct libuffd_event ev;

	(void)state;
	assert_int_equal(decode_msg(message(0x14, 0x1000, 0x9000, 0x2000), &ev), 0);
	assert_true(ev.remap.from == 0x1000 && ev.remap.to == 0x9000 && ev.remap.len == 0x2000);
	assert_zero_after(&ev, sizeof(struct libuffd_remap));
	for (uint8_t type = 0x15; type <= 0x16; type++) {
		assert_int_equal(decode_msg(message(type, 0x1000, 0x3000, 0), &ev), 0);
		assert_int_equal(ev.type, type);
		assert_true(ev.remove.start == 0x1000 && ev.remove.end == 0x3000);
		assert_zero_after(&ev, sizeof(struct libuffd_span));
	}
}

static void decode_refuses_impossible_ranges(void **state)
{
	struct libuffd_event ev;
	const struct uapi_msg bad[] = {
		message(0x14, 0x1000, 0x2000, 0),
		message(0x14, UINT64_MAX - 0xfff, 0x2000, 0x2000),
		message(0x14, 0x2000, UINT64_MAX - 0xfff, 0x2000),
		message(0x15, 0x2000, 0x2000, 0),
		message(0x15, 0x3000, 0x2000, 0),
		message(0x16, 0x2000, 0, 0),
		message(0x00, 1, 2, 3),
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		assert_int_equal(decode_msg(bad[i], &ev), -EBADMSG);
		assert_int_equal(ev.type, LIBUFFD_EVENT_MALFORMED);
		assert_memory_equal(ev.words, bad[i].words, sizeof(ev.words));
	}
}

static void decode_passes_unknown_types(void **state)
{
	struct libuffd_event ev;

	(void)state;
	for (unsigned int type = 1; type < 256; type++) {
		if (type >= 0x12 && type <= 0x16)
			continue;
		assert_int_equal(decode_msg(message((uint8_t)type, 1, 2, 3), &ev), 0);
		assert_int_equal(ev.type, type);
		assert_true(ev.words[0] == 1 && ev.words[1] == 2 && ev.words[2] == 3);
		assert_zero_after(&ev, sizeof(ev.words));
	}
}

static void decode_wants_all_32_bytes(void **state)
{
	unsigned char bytes[64] = { 0x12 };
	struct libuffd_event ev;

	(void)state;
	for (size_t len = 0; len <= sizeof(bytes); len++)
		assert_int_equal(libuffd_decode(bytes, len, &ev), len == 32 ? 0 : -EBADMSG);
	assert_int_equal(libuffd_decode(NULL, 32, &ev), -EINVAL);
	assert_int_equal(libuffd_decode(bytes, 32, NULL), -EINVAL);
}

/* ---- libuffd_read_events() ------------------------------------------------------------------ */

static struct uapi_msg queue[64];
static size_t queued, asked_bytes;
static ssize_t read_result; /* instead of the queue, if not 0 */

static ssize_t read_queue(int fd, void *buf, size_t len)
{
	size_t n = len / sizeof(queue[0]);

	assert_int_equal(fd, 3);
	asked_bytes = len;
	if (read_result)
		return read_result;
	n = n < queued ? n : queued;
	memcpy(buf, queue, n * sizeof(queue[0]));
	queued -= n;
	memmove(queue, queue + n, queued * sizeof(queue[0]));
	return n ? (ssize_t)(n * sizeof(queue[0])) : -EAGAIN;
}

static struct libuffd *reader(uint64_t features)
{
	fake_reset();
	fake.read = read_queue;
	queued = 0;
	read_result = 0;
	return fake_handle(features);
}

/* Messages lie in the upper half of the caller's array while they are decoded upwards. */
static void read_decodes_every_batch_in_place(void **state)
{
	struct libuffd *u = reader(0);
	struct libuffd_event ev[64];

	(void)state;
	for (size_t cap = 1; cap <= 64; cap++) {
		for (size_t n = 1; n <= cap; n++) {
			for (size_t i = 0; i < n; i++)
				queue[i] = message(0x12, i, 0x1000 * (i + 1), (uint64_t)cap);
			queued = n;
			assert_int_equal(libuffd_read_events(u, ev, cap), n);
			assert_int_equal(asked_bytes, cap * 32);
			for (size_t i = 0; i < n; i++) {
				assert_int_equal(ev[i].type, LIBUFFD_EVENT_FAULT);
				assert_true(ev[i].fault.flags == i);
				assert_true(ev[i].fault.address == 0x1000 * (i + 1));
				assert_int_equal(ev[i].fault.thread, cap);
				assert_zero_after(&ev[i], sizeof(struct libuffd_fault));
			}
		}
	}
	free(u);
}

static void read_passes_errors_on(void **state)
{
	static const int errors[] = { EAGAIN, EINTR, EINVAL, EMFILE, EFAULT, EBADF };
	struct libuffd *u = reader(0);
	struct libuffd_event ev;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(errors); i++) {
		read_result = -errors[i];
		assert_int_equal(libuffd_read_events(u, &ev, 1), -errors[i]);
	}
	assert_int_equal(libuffd_read_events(NULL, &ev, 1), -EINVAL);
	assert_int_equal(libuffd_read_events(u, NULL, 1), -EINVAL);
	assert_int_equal(libuffd_read_events(u, &ev, 0), -EINVAL);
	free(u);
}

/* Another file behind the number: not "nothing there", which would be asked again for ever. */
static void read_of_a_foreign_file_is_no_message(void **state)
{
	struct libuffd *u = reader(0);
	struct libuffd_event ev;

	(void)state;
	read_result = 7;
	assert_int_equal(libuffd_read_events(u, &ev, 1), -EBADMSG);
	free(u);
}

static void read_never_asks_for_more_than_the_kernel_gives(void **state)
{
	struct libuffd *u = reader(0);
	struct libuffd_event ev[2];

	(void)state;
	read_result = -EAGAIN; /* so that nothing is written behind the two */
	assert_int_equal(libuffd_read_events(u, ev, SIZE_MAX), -EAGAIN);
	assert_true(asked_bytes <= 0x7ffff000 && asked_bytes % 32 == 0);
	free(u);
}

static void read_makes_a_handle_of_a_fork(void **state)
{
	struct libuffd *u = reader(LIBUFFD_FEATURE_EVENT_FORK | LIBUFFD_FEATURE_THREAD_ID);
	struct libuffd_event ev[2];

	(void)state;
	queue[0] = message(0x12, 0, 0x1000, 0);
	queue[1] = message(0x13, 42, 0, 0);
	queued = 2;
	assert_int_equal(libuffd_read_events(u, ev, 2), 2);
	assert_int_equal(ev[1].type, LIBUFFD_EVENT_FORK);
	assert_int_equal(ev[1].fork.fd, 42);
	assert_non_null(ev[1].fork.handle);
	assert_int_equal(libuffd_fd(ev[1].fork.handle), 42);
	assert_true(libuffd_features(ev[1].fork.handle) == u->features);
	assert_int_equal(libuffd_way(ev[1].fork.handle), LIBUFFD_WAY_ADOPTED);
	libuffd_close(ev[1].fork.handle);
	assert_int_equal(fake.closed[0], 42);
	free(u);
}

/* Linked with --wrap=calloc. */
static bool out_of_memory;
void *__real_calloc(size_t n, size_t size);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_calloc(size_t n, size_t size)
{
	return out_of_memory ? NULL : __real_calloc(n, size);
}

/* The event is gone from the kernel's queue and the descriptor is ours: neither may be lost. */
static void read_without_memory_keeps_the_forks_descriptor(void **state)
{
	struct libuffd *u = reader(0);
	struct libuffd_event ev;

	(void)state;
	queue[0] = message(0x13, 42, 0, 0);
	queued = 1;
	out_of_memory = true;
	assert_int_equal(libuffd_read_events(u, &ev, 1), 1);
	out_of_memory = false;
	assert_int_equal(ev.type, LIBUFFD_EVENT_FORK);
	assert_null(ev.fork.handle);
	assert_int_equal(ev.fork.fd, 42);
	assert_int_equal(fake.n_closed, 0);
	free(u);
}

static const struct CMUnitTest tests[] = {
	cmocka_unit_test(decode_fault),
	cmocka_unit_test(decode_fault_passes_unknown_flags),
	cmocka_unit_test(decode_fork),
	cmocka_unit_test(decode_ranges),
	cmocka_unit_test(decode_refuses_impossible_ranges),
	cmocka_unit_test(decode_passes_unknown_types),
	cmocka_unit_test(decode_wants_all_32_bytes),
	cmocka_unit_test(read_decodes_every_batch_in_place),
	cmocka_unit_test(read_passes_errors_on),
	cmocka_unit_test(read_of_a_foreign_file_is_no_message),
	cmocka_unit_test(read_never_asks_for_more_than_the_kernel_gives),
	cmocka_unit_test(read_makes_a_handle_of_a_fork),
	cmocka_unit_test(read_without_memory_keeps_the_forks_descriptor),
};
UNIT_MAIN("decode", tests)
