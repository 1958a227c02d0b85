/* SPDX-License-Identifier: MIT */
/* uffd-serve at its wits' end: bytes that cannot be had, machines that ask for what nobody named, signals. */
#include <fcntl.h>
#include <sys/stat.h>

#include <uffd/server.h>

#include "rig.h"

#define PAGES 64 /* of two regions of 32 */

static void needs_poison(void)
{
	struct libuffd_caps caps = LIBUFFD_CAPS_INIT;

	REQUIRES(LIBUFFD_FEATURE_POISON);
	/* The server asks for itself. */
	assert_int_equal(libuffd_probe(&caps), 0);
}

/* Before 6.6 there is none, and the policy means another thing. */
static void needs_no_poison(void)
{
	struct libuffd_caps caps = LIBUFFD_CAPS_INIT;

	assert_int_equal(libuffd_probe(&caps), 0);
	if (caps.features & LIBUFFD_FEATURE_POISON)
		SKIP("no-poison", "this kernel can poison");
}

/* Tell it, and do not wait for an answer that does not come. */
static void tell_only(struct vmm *v, const char *what)
{
	fprintf(v->to, "%s\n", what);
	fflush(v->to);
}

/* A machine whose second half of the memory is lost: the file is that of its second region only. */
static struct vmm *with_half_a_file(const char *policy)
{
	struct vmm *v;

	serve(memory_file("mem", PAGES), "--on-error", policy, "--retries", "1");
	v = vmm("version=1.12");
	vmm_join(v);
	assert_int_equal(truncate(rig_path("mem"), (off_t)(PAGES / 2 * page_size())), 0);
	return v;
}

/* ---- The file is truncated while it is served --------------------------------------------------------- */

static void lost_pages_are_poison(void **state)
{
	struct vmm *v, *w;

	(void)state;
	needs_poison();
	v = with_half_a_file("poison");
	w = vmm("version=1.12", "regions=1");
	vmm_join(w);
	assert_string_equal(tell(v, "peek 3"), "sigbus");
	expect_words("error", "cannot be had");
	assert_string_equal(tell(v, "peek 4"), "sigbus");
	/* What can be had is, by this and by others. */
	expect_ok(v, "touch 32 32 2");
	expect_ok(w, "touch 0 32 2");
}

/* Without a word of it from the machine, since Firecracker does not know of poison. */
static void lost_pages_are_poison_for_a_machine_that_has_never_heard_of_it(void **state)
{
	struct vmm *v;

	(void)state;
	needs_poison();
	serve(memory_file("mem", PAGES), "--retries", "0");
	v = vmm("version=1.1", "features=0");
	vmm_join(v);
	assert_int_equal(truncate(rig_path("mem"), 0), 0);
	assert_string_equal(tell(v, "peek 3"), "sigbus");
}

static void without_poison_lost_pages_wait(void **state)
{
	struct vmm *v, *w;

	(void)state;
	needs_no_poison();
	v = with_half_a_file("poison");
	w = vmm("version=1.12", "regions=1");
	vmm_join(w);
	expect_ok(v, "touch 32 8 1");
	expect_ok(v, "stare 3");
	expect_words("failed", "waits");
	expect_ok(v, "closed");
	expect_ok(v, "forget");
	expect_ok(w, "touch 0 32 2");
	assert_string_equal(tell(v, "waits"), "yes");
}

static void it_is_told_that_there_is_no_poison(void **state)
{
	(void)state;
	needs_no_poison();
	memory_file("mem", PAGES);
	serve_raw("--json", "--socket", rig_path("sock"), "--memory", rig_path("mem"));
	expect_words("ready", "on error: fail, since this kernel cannot poison");
	serve_forget();
	serve_raw("--json", "--socket", rig_path("sock"), "--memory", rig_path("mem"), "--on-error",
		  "kill");
	expect_words("ready", "on error: kill\"");
}

static void whoever_lacks_a_page_is_killed(void **state)
{
	struct vmm *v, *w;

	(void)state;
	v = with_half_a_file("kill");
	w = vmm("version=1.12", "regions=1");
	vmm_join(w);
	assert_string_equal(tell(v, "peek 3"), "it is dead");
	assert_int_equal(vmm_died(v), SIGKILL);
	expect_said("killed");
	expect_said("gone");
	expect_ok(w, "touch 0 32 2");
}

static void whoever_lacks_a_page_waits(void **state)
{
	struct vmm *v, *w;

	(void)state;
	v = with_half_a_file("fail");
	w = vmm("version=1.12", "regions=1");
	vmm_join(w);
	expect_ok(v, "touch 32 8 1");
	expect_ok(v, "stare 3");
	expect_words("failed", "waits");
	/* It is told. */
	expect_ok(v, "closed");
	expect_ok(w, "touch 0 32 2");
	/* Nor is it answered when its descriptor is nobody's but the server's. */
	expect_ok(v, "forget");
	expect_ok(w, "touch 0 32 2");
	assert_string_equal(tell(v, "waits"), "yes");
	vmm_kill(v);
	expect_said("gone");
}

static void a_failed_machine_does_not_come_back(void **state)
{
	struct vmm *v;

	(void)state;
	v = with_half_a_file("fail");
	expect_ok(v, "stare 3");
	expect_said("failed");
	expect_ok(v, "hang-up");
	expect_ok(v, "connect %s", rig_path("sock"));
	expect_ok(v, "hello");
	/* It may have given pages back meanwhile, of which nobody was told. */
	expect_words("refused", "given up");
	assert_string_equal(tell(v, "waits"), "yes");
}

/* ---- Addresses that the message did not name ----------------------------------------------------------- */

static void an_unnamed_address_is_poison(void **state)
{
	struct vmm *v;

	(void)state;
	needs_poison();
	serve(memory_file("mem", PAGES));
	v = vmm("version=1.12");
	vmm_join(v);
	assert_string_equal(tell(v, "peek-outside"), "sigbus");
	expect_words("error", "did not name");
	expect_ok(v, "touch 0 %d 2", PAGES);
}

static void without_poison_an_unnamed_address_waits(void **state)
{
	struct vmm *v, *w;

	(void)state;
	needs_no_poison();
	serve(memory_file("mem", PAGES));
	w = vmm("version=1.12");
	vmm_join(w);
	v = vmm("version=1.12");
	vmm_join(v);
	tell_only(v, "peek-outside");
	expect_words("failed", "address of no region");
	expect_ok(w, "touch 0 %d 2", PAGES);
	vmm_kill(v);
	expect_said("gone");
}

static void an_unnamed_address_is_death(void **state)
{
	struct vmm *v;

	(void)state;
	serve(memory_file("mem", PAGES), "--on-error", "kill");
	v = vmm("version=1.12");
	vmm_join(v);
	assert_string_equal(tell(v, "peek-outside"), "it is dead");
	assert_int_equal(vmm_died(v), SIGKILL);
}

/* It touched before the server knew of the region: that is no address that nobody named. */
static void who_was_there_before_its_message_is_served(void **state)
{
	size_t rounds = rig_often(20, 4);
	struct vmm *v;

	(void)state;
	serve(memory_file("mem", PAGES), "--on-error", "kill");
	for (size_t i = 0; i < rounds; i++) {
		v = vmm("version=1.12");
		expect_ok(v, "stare 40");
		vmm_join(v);
		assert_string_equal(tell(v, "seen"), "file");
		vmm_kill(v);
		vmm_gone(v);
	}
}

/* ---- Machines that are refused ------------------------------------------------------------------------- */

/* Nobody else has its descriptor: if that were closed its memory would read as zeros. */
static void a_refused_machine_does_not_read_zeros(void **state)
{
	struct vmm *v, *w;
	size_t fds;

	(void)state;
	serve(memory_file("mem", PAGES), "--on-error", "fail", "--handshake-timeout", "1");
	w = vmm("version=1.12");
	vmm_join(w);
	fds = server_fds();
	v = vmm("version=1.12");
	expect_ok(v, "stare 3");
	expect_ok(v, "connect %s", rig_path("sock"));
	expect_ok(v, "say 1 [{\"size\"");
	expect_ok(v, "forget");
	expect_words("refused", "did not end in time");
	expect_ok(v, "closed");
	/* All that was done about it has been done. */
	assert_int_equal(figure_in(figures(), "refused"), 1);
	expect_ok(w, "touch 0 %d 2", PAGES);
	assert_string_equal(tell(v, "waits"), "yes");
	vmm_kill(v);
	expect_said("gone");
	expect_fds(fds);
}

/* It may do better. */
static void a_refused_machine_may_come_again(void **state)
{
	struct vmm *v;

	(void)state;
	serve(memory_file("mem", PAGES), "--on-error", "fail");
	v = vmm("version=1.12");
	expect_ok(v, "connect %s", rig_path("sock"));
	expect_ok(v, "say 1 [}");
	expect_said("refused");
	expect_ok(v, "closed");
	vmm_join(v);
	expect_ok(v, "touch 0 %d 2", PAGES);
}

static void a_refused_machine_is_killed_where_that_is_the_policy(void **state)
{
	struct vmm *v;

	(void)state;
	serve(memory_file("mem", PAGES), "--on-error", "kill");
	v = vmm("version=1.12");
	/* Who has no userfaultfd is no machine. */
	expect_ok(v, "connect %s", rig_path("sock"));
	expect_ok(v, "say 0 [}");
	expect_said("refused");
	expect_ok(v, "closed");
	expect_ok(v, "connect %s", rig_path("sock"));
	tell(v, "say 1 [}");
	assert_int_equal(vmm_died(v), SIGKILL);
	expect_said("killed");
}

/*
 * Its process lives, and has nothing to do with the machine any more: also if it is but another process of the same
 * number.
 */
static void who_has_become_another_program_is_not_killed(void **state)
{
	struct vmm *v, *w;
	size_t fds;

	(void)state;
	serve(memory_file("mem", PAGES), "--on-error", "kill");
	w = vmm("version=1.12");
	vmm_join(w);
	fds = server_fds();
	v = vmm("version=1.12");
	expect_ok(v, "connect %s", rig_path("sock"));
	expect_ok(v, "say 1 [{\"size\"");
	assert_string_equal(tell(v, "exec"), "ready");
	expect_words("refused", "in the middle of its message");
	expect_fds(fds);
	vmm_join(v);
	expect_ok(v, "touch 0 %d 2", PAGES);
	expect_ok(w, "touch 0 %d 2", PAGES);
}

/* ---- Signals --------------------------------------------------------------------------------------------- */

static void the_end_waits_until_machines_have_all(void **state)
{
	struct vmm *v[4];
	struct stat st;

	(void)state;
	serve(memory_file("mem", PAGES), "--on-error", "fail");
	for (size_t i = 0; i < ARRAY_SIZE(v); i++) {
		v[i] = vmm("version=1.12");
		vmm_join(v[i]);
		expect_ok(v[i], "touch %zu 4 1", i);
		expect_ok(v[i], "drop 0 2");
	}
	assert_int_equal(serve_stop(SIGTERM), 0);
	/* It is gone, and its socket with it; who has forgotten his own descriptor too has all the same. */
	assert_int_equal(stat(rig_path("sock"), &st), -1);
	for (size_t i = 0; i < ARRAY_SIZE(v); i++) {
		expect_ok(v[i], "forget");
		expect_ok(v[i], "zeros 0 2");
		expect_ok(v[i], "touch 4 %d 2", PAGES - 4);
	}
}

/* As the machine itself holds its descriptor it waits for another server. */
static void the_end_leaves_who_can_wait(void **state)
{
	struct vmm *v;

	(void)state;
	serve(memory_file("mem", PAGES), "--on-error", "fail", "--drain", "0");
	v = vmm("version=1.12");
	vmm_join(v);
	expect_ok(v, "touch 0 8 1");
	assert_int_equal(serve_stop(SIGTERM), 1);
	expect_ok(v, "stare 20");
	assert_string_equal(tell(v, "waits"), "yes");
	serve_again(rig_path("mem"));
	expect_ok(v, "hang-up");
	vmm_join(v);
	assert_string_equal(tell(v, "seen"), "file");
	expect_ok(v, "touch 0 %d 2", PAGES);
}

/* It cannot: it would read zeros. */
static void the_end_kills_who_cannot_wait(void **state)
{
	struct vmm *v;

	(void)state;
	serve(memory_file("mem", PAGES), "--on-error", "fail", "--drain", "0");
	v = vmm("version=1.12");
	vmm_join(v);
	expect_ok(v, "forget");
	assert_int_equal(serve_stop(SIGTERM), 1);
	assert_int_equal(vmm_died(v), SIGKILL);
}

static void the_end_poisons_what_is_lacking(void **state)
{
	struct vmm *v;

	(void)state;
	needs_poison();
	serve(memory_file("mem", PAGES), "--drain", "0");
	v = vmm("version=1.12");
	vmm_join(v);
	expect_ok(v, "touch 0 8 1");
	expect_ok(v, "forget");
	assert_int_equal(serve_stop(SIGTERM), 1);
	expect_ok(v, "touch 0 8 1");
	assert_string_equal(tell(v, "peek 8"), "sigbus");
	assert_string_equal(tell(v, "peek %d", PAGES - 1), "sigbus");
	/* It is the machine's own memory otherwise. */
	expect_ok(v, "drop 0 16");
	expect_ok(v, "zeros 0 16");
}

static void without_poison_the_end_kills_who_cannot_wait(void **state)
{
	struct vmm *v, *w;

	(void)state;
	needs_no_poison();
	serve(memory_file("mem", PAGES), "--drain", "0");
	v = vmm("version=1.12");
	vmm_join(v);
	expect_ok(v, "forget");
	w = vmm("version=1.12");
	vmm_join(w);
	assert_int_equal(serve_stop(SIGTERM), 1);
	assert_int_equal(vmm_died(v), SIGKILL);
	/* This one has its descriptor. */
	expect_ok(w, "stare 3");
	assert_string_equal(tell(w, "waits"), "yes");
}

static void the_end_kills_where_that_is_the_policy(void **state)
{
	struct vmm *v;

	(void)state;
	serve(memory_file("mem", PAGES), "--on-error", "kill", "--drain", "0");
	v = vmm("version=1.12");
	vmm_join(v);
	assert_int_equal(serve_stop(SIGINT), 1);
	assert_int_equal(vmm_died(v), SIGKILL);
}

/* The end may take long, and whoever has no time says so. */
static void a_second_signal_ends_at_once(void **state)
{
	struct vmm *v;

	(void)state;
	serve(memory_file("mem", PAGES), "--on-error", "kill", "--drain", "86400", "--retries",
	      "0");
	v = vmm("version=1.12");
	vmm_join(v);
	assert_int_equal(truncate(rig_path("mem"), 0), 0);
	assert_int_equal(kill(rig_server.pid, SIGTERM), 0);
	expect_said("draining");
	assert_int_equal(serve_stop(SIGTERM), 1);
	assert_int_equal(vmm_died(v), SIGKILL);
}

static void nobody_is_accepted_while_it_ends(void **state)
{
	struct vmm *v, *w;

	(void)state;
	serve(memory_file("mem", PAGES), "--drain", "86400", "--retries", "0");
	v = vmm("version=1.12");
	vmm_join(v);
	w = vmm("version=1.12");
	assert_int_equal(truncate(rig_path("mem"), 0), 0);
	assert_int_equal(kill(rig_server.pid, SIGTERM), 0);
	expect_said("draining");
	assert_string_equal(tell(w, "connect %s", rig_path("sock")),
			    "no No such file or directory");
	/* When those who lack something are gone there is nothing to wait for. */
	vmm_kill(v);
	assert_int_equal(serve_ended(), 0);
}

/* ---- Being killed ------------------------------------------------------------------------------------------ */

static void a_killed_server_leaves_a_name_that_the_next_takes(void **state)
{
	struct vmm *v;

	(void)state;
	serve(memory_file("mem", PAGES));
	assert_int_equal(serve_stop(SIGKILL), 128 + SIGKILL);
	serve_again(rig_path("mem"));
	v = vmm("version=1.12");
	vmm_join(v);
	expect_ok(v, "touch 0 %d 2", PAGES);
}

static const struct CMUnitTest tests[] = {
	CASE(lost_pages_are_poison),
	CASE(lost_pages_are_poison_for_a_machine_that_has_never_heard_of_it),
	CASE(without_poison_lost_pages_wait),
	CASE(it_is_told_that_there_is_no_poison),
	CASE(whoever_lacks_a_page_is_killed),
	CASE(whoever_lacks_a_page_waits),
	CASE(a_failed_machine_does_not_come_back),
	CASE(an_unnamed_address_is_poison),
	CASE(without_poison_an_unnamed_address_waits),
	CASE(an_unnamed_address_is_death),
	CASE(who_was_there_before_its_message_is_served),
	CASE(a_refused_machine_does_not_read_zeros),
	CASE(a_refused_machine_may_come_again),
	CASE(a_refused_machine_is_killed_where_that_is_the_policy),
	CASE(who_has_become_another_program_is_not_killed),
	CASE(the_end_waits_until_machines_have_all),
	CASE(the_end_leaves_who_can_wait),
	CASE(the_end_kills_who_cannot_wait),
	CASE(the_end_poisons_what_is_lacking),
	CASE(without_poison_the_end_kills_who_cannot_wait),
	CASE(the_end_kills_where_that_is_the_policy),
	CASE(a_second_signal_ends_at_once),
	CASE(nobody_is_accepted_while_it_ends),
	CASE(a_killed_server_leaves_a_name_that_the_next_takes),
};

int main(int argc, char **argv)
{
	return rig_main(argc, argv, "serve-end", tests, ARRAY_SIZE(tests));
}
