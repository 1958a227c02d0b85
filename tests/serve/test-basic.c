/* SPDX-License-Identifier: MIT */
/* uffd-serve and monitors that do as they should. */
#include <fcntl.h>
#include <sys/stat.h>

#include <uffd/server.h>

#include "rig.h"

#define PAGES 64 /* of two regions of 32 */

static void verified(struct vmm *v)
{
	expect_ok(v, "touch 0 %d 1", PAGES);
}

/* ---- The handshake, as each version has it ----------------------------------------------------------- */

static void a_version_is_understood(const char *version)
{
	char arg[32];
	struct vmm *v;

	snprintf(arg, sizeof(arg), "version=%s", version);
	serve(memory_file("mem", PAGES));
	v = vmm(arg);
	vmm_join(v);
	verified(v);
	expect_said("complete");
}

static void version_1_1_is_understood(void **state)
{
	(void)state;
	a_version_is_understood("1.1");
}

static void version_1_7_is_understood(void **state)
{
	(void)state;
	a_version_is_understood("1.7");
}

static void version_1_12_is_understood(void **state)
{
	(void)state;
	a_version_is_understood("1.12");
}

static void version_2_0_is_understood(void **state)
{
	(void)state;
	a_version_is_understood("2.0");
}

/* Huge pages are told by the page size alone; the key that has them is another one in each version. */
static void huge_pages_of_a_version(const char *version)
{
	size_t huge = mem_page_size(MEM_HUGETLB_PRIVATE);
	char arg[32];
	struct vmm *v;

	if (huge_reserve(10) < 0)
		SKIP("hugetlb", "huge pages cannot be reserved here");
	REQUIRES(LIBUFFD_FEATURE_MISSING_HUGETLBFS);
	snprintf(arg, sizeof(arg), "version=%s", version);
	serve(memory_file("mem", 4 * huge / page_size()));
	v = vmm(arg, "huge=1", "pages=2");
	vmm_join(v);
	expect_ok(v, "touch 0 4 2");
	expect_said("complete");
	vmm_kill(v);
	huge_restore();
}

static void huge_pages_of_1_7_are_in_the_key_with_the_wrong_name(void **state)
{
	(void)state;
	huge_pages_of_a_version("1.7");
}

static void huge_pages_of_1_12(void **state)
{
	(void)state;
	huge_pages_of_a_version("1.12");
}

static void huge_pages_of_2_0(void **state)
{
	(void)state;
	huge_pages_of_a_version("2.0");
}

/* One server, so many machines as there are places to cut. No kernel's matter is which. */
static void a_message_may_be_cut_anywhere(void **state)
{
	size_t len, step = rig_often(1, 47);

	(void)state;
	serve(memory_file("mem", 2), "--quiet");
	len = strlen(tell(vmm("version=1.12", "pages=1"), "message"));
	for (size_t at = 1; at < len; at += step) {
		struct vmm *v = vmm("version=1.12", "pages=1");

		expect_ok(v, "connect %s", rig_path("sock"));
		expect_ok(v, "hello at %zu", at);
		expect_said("served");
		expect_ok(v, "touch 0 2 1");
		vmm_kill(v);
		vmm_gone(v);
	}
}

static void a_message_may_come_byte_by_byte(void **state)
{
	struct vmm *v;

	(void)state;
	serve(memory_file("mem", PAGES));
	v = vmm("version=1.7");
	expect_ok(v, "connect %s", rig_path("sock"));
	expect_ok(v, "hello each");
	expect_said("served");
	verified(v);
}

static void two_machines_may_come_over_one_connection(void **state)
{
	struct vmm *v;

	(void)state;
	serve(memory_file("mem", PAGES));
	v = vmm("version=2.0");
	expect_ok(v, "connect %s", rig_path("sock"));
	expect_ok(v, "twice");
	expect_said("served");
	expect_said("served");
	verified(v);
}

static void one_piece_may_end_a_message_and_begin_the_next(void **state)
{
	struct vmm *v;

	(void)state;
	serve(memory_file("mem", PAGES));
	v = vmm("version=2.0");
	expect_ok(v, "connect %s", rig_path("sock"));
	expect_ok(v, "glued");
	expect_said("served");
	expect_said("served");
	verified(v);
}

static void more_regions_than_fit_one_buffer_are_served(void **state)
{
	size_t regions = rig_often(1000, 300);
	char arg[32];
	struct vmm *v;

	(void)state;
	serve(memory_file("mem", regions));
	snprintf(arg, sizeof(arg), "regions=%zu", regions);
	v = vmm("version=1.12", arg, "pages=1");
	vmm_join(v);
	expect_ok(v, "touch 0 %zu 4", regions);
	expect_said("complete");
}

static void keys_that_are_not_known_are_passed_over(void **state)
{
	struct vmm *v;
	char *text;

	(void)state;
	serve(memory_file("mem", 32));
	v = vmm("version=1.12", "regions=1");
	text = strdup(tell(v, "message"));
	expect_ok(v, "connect %s", rig_path("sock"));
	/* The closing brackets are the last two bytes. */
	text[strlen(text) - 2] = '\0';
	expect_ok(v, "say 1 %s,\"later\":{\"a\":[1,2,{\"]}\":\"\\\"]\"}]},\"flags\":null}]", text);
	free(text);
	expect_said("served");
	expect_ok(v, "touch 0 32 1");
}

/* A monitor may close the connection at once: some versions do. */
static void a_closed_connection_ends_nothing(void **state)
{
	struct vmm *v;

	(void)state;
	serve(memory_file("mem", PAGES));
	v = vmm("version=1.1");
	vmm_join(v);
	expect_ok(v, "hang-up");
	verified(v);
}

/* It may not know what became of its first connection. */
static void a_machine_may_connect_again(void **state)
{
	struct vmm *v;
	size_t fds;

	(void)state;
	serve(memory_file("mem", PAGES));
	v = vmm("version=1.12");
	vmm_join(v);
	fds = server_fds();
	expect_ok(v, "touch 0 16 1");
	expect_ok(v, "drop 8 8");
	for (int i = 0; i < 3; i++) {
		expect_ok(v, "hang-up");
		expect_ok(v, "connect %s", rig_path("sock"));
		expect_ok(v, "hello");
		expect_said("again");
	}
	expect_ok(v, "hello");
	expect_said("again");
	expect_fds(fds);
	/* It is the same still: what it gave back does not come back. */
	expect_ok(v, "zeros 8 8");
	expect_ok(v, "touch 16 48 2");
}

/* ---- Serving -------------------------------------------------------------------------------------------- */

static void threads_of_a_machine_touch_at_once(void **state)
{
	size_t pages = rig_often(2048, 512);
	char arg[32];
	struct vmm *v;

	(void)state;
	serve(memory_file("mem", pages));
	snprintf(arg, sizeof(arg), "pages=%zu", pages / 2);
	v = vmm("version=1.12", arg);
	vmm_join(v);
	expect_ok(v, "touch 0 %zu 8", pages);
	expect_said("complete");
}

static void many_machines_are_served_at_once(void **state)
{
	struct vmm *v[16];
	size_t fds, n = rig_often(ARRAY_SIZE(v), 3);

	(void)state;
	serve(memory_file("mem", PAGES));
	fds = server_fds();
	for (size_t i = 0; i < n; i++) {
		v[i] = vmm(i % 2 ? "version=1.7" : "version=2.0");
		vmm_join(v[i]);
	}
	for (size_t i = 0; i < n; i++)
		expect_ok(v[i], "touch %zu 8 2", i);
	for (size_t i = 0; i < n; i++)
		verified(v[i]);
	for (size_t i = 0; i < n; i++)
		vmm_kill(v[i]);
	expect_fds(fds);
}

static void removed_pages_are_zeros(void **state)
{
	struct vmm *v;

	(void)state;
	serve(memory_file("mem", PAGES));
	v = vmm("version=1.12");
	vmm_join(v);
	expect_ok(v, "touch 0 8 1");
	/* Some were there, some were not. */
	expect_ok(v, "drop 4 8");
	expect_ok(v, "zeros 4 8");
	expect_ok(v, "touch 0 4 1");
	expect_ok(v, "touch 12 %d 2", PAGES - 12);
	expect_said("complete");
	/* It is nobody's any more, and what is given back is the kernel's. */
	expect_ok(v, "drop 0 8");
	expect_ok(v, "zeros 0 8");
}

static void a_fill_completes_what_nobody_touches(void **state)
{
	struct vmm *v;

	(void)state;
	serve(memory_file("mem", PAGES), "--fill", "max");
	v = vmm("version=1.12");
	vmm_join(v);
	expect_said("complete");
	verified(v);
	assert_int_equal(serve_stop(SIGTERM), 0);
	expect_ok(v, "drop 0 8");
	expect_ok(v, "zeros 0 8");
}

static void a_fill_may_be_slow(void **state)
{
	struct vmm *v;

	(void)state;
	serve(memory_file("mem", PAGES), "--fill", "1M", "--window", "16K", "--prefetch", "64K");
	v = vmm("version=1.12");
	vmm_join(v);
	verified(v);
	expect_said("complete");
}

static void every_engine_serves(void **state)
{
	static const char *const engines[] = { "auto", "poll", "uring" };

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(engines); i++) {
		struct libuffd_server_opts opts = LIBUFFD_SERVER_OPTS_INIT;
		struct libuffd_server *s;
		struct vmm *v;

		opts.engine = LIBUFFD_ENGINE_URING;
		if (i == 2 && libuffd_server_new(&opts, &s) < 0)
			SKIP("io-uring", "io_uring is not permitted here, or too old");
		else if (i == 2)
			libuffd_server_free(s);
		serve(memory_file("mem", PAGES), "--engine", engines[i], "--threads", "2",
		      "--max-inflight", "4");
		v = vmm("version=1.12");
		vmm_join(v);
		expect_ok(v, "touch 0 %d 4", PAGES);
		assert_int_equal(serve_stop(SIGTERM), 0);
		case_end(state);
		case_begin(state);
	}
}

/* ---- Records -------------------------------------------------------------------------------------------- */

static void what_one_machine_touched_is_fetched_for_the_next(void **state)
{
	struct vmm *v;
	struct stat st;

	(void)state;
	serve(memory_file("mem", PAGES), "--record", rig_path("record"));
	v = vmm("version=1.12");
	vmm_join(v);
	/* 8 pages, one by one, none of them next to another. */
	for (size_t i = 0; i < 8; i++)
		expect_ok(v, "touch %zu 1 1", (i * 23 + 1) % PAGES);
	vmm_kill(v);
	expect_said("recorded");
	assert_int_equal(serve_stop(SIGTERM), 0);
	assert_int_equal(stat(rig_path("record"), &st), 0);
	assert_int_equal(st.st_size, 32 + 8 * 24);

	serve_again(rig_path("mem"), "--replay", rig_path("record"));
	v = vmm("version=1.12");
	vmm_join(v);
	/* Nobody touches anything: what is there was brought by the record. */
	wait_present(8);
	verified(v);
}

/* A second one has other regions, in another place, of the same file. */
static void a_record_is_for_any_layout(void **state)
{
	struct vmm *v;

	(void)state;
	serve(memory_file("mem", PAGES), "--record", rig_path("record"));
	v = vmm("version=1.12");
	vmm_join(v);
	expect_ok(v, "touch 10 20 1");
	vmm_kill(v);
	expect_said("recorded");
	assert_int_equal(serve_stop(SIGTERM), 0);
	serve_again(rig_path("mem"), "--replay", rig_path("record"));
	v = vmm("version=1.7", "regions=8", "pages=8");
	vmm_join(v);
	wait_present(20);
	verified(v);
}

static void a_record_outlives_the_server(void **state)
{
	struct vmm *v;
	struct stat st;

	(void)state;
	serve(memory_file("mem", PAGES), "--record", rig_path("record"), "--drain", "0");
	v = vmm("version=1.12");
	vmm_join(v);
	expect_ok(v, "touch 3 1 1");
	assert_int_equal(serve_stop(SIGTERM), 1);
	assert_int_equal(stat(rig_path("record"), &st), 0);
	assert_int_equal(st.st_size, 32 + 24);
}

static const struct CMUnitTest tests[] = {
	CASE(version_1_1_is_understood),
	CASE(version_1_7_is_understood),
	CASE(version_1_12_is_understood),
	CASE(version_2_0_is_understood),
	CASE(huge_pages_of_1_7_are_in_the_key_with_the_wrong_name),
	CASE(huge_pages_of_1_12),
	CASE(huge_pages_of_2_0),
	CASE(a_message_may_be_cut_anywhere),
	CASE(a_message_may_come_byte_by_byte),
	CASE(two_machines_may_come_over_one_connection),
	CASE(one_piece_may_end_a_message_and_begin_the_next),
	CASE(more_regions_than_fit_one_buffer_are_served),
	CASE(keys_that_are_not_known_are_passed_over),
	CASE(a_closed_connection_ends_nothing),
	CASE(a_machine_may_connect_again),
	CASE(threads_of_a_machine_touch_at_once),
	CASE(many_machines_are_served_at_once),
	CASE(removed_pages_are_zeros),
	CASE(a_fill_completes_what_nobody_touches),
	CASE(a_fill_may_be_slow),
	CASE(every_engine_serves),
	CASE(what_one_machine_touched_is_fetched_for_the_next),
	CASE(a_record_is_for_any_layout),
	CASE(a_record_outlives_the_server),
};

int main(int argc, char **argv)
{
	return rig_main(argc, argv, "serve-basic", tests, ARRAY_SIZE(tests));
}
