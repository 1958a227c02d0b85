/* SPDX-License-Identifier: MIT */
/*
 * uffd-serve and what should not come: each is refused with a message that says who and why, the others are served
 * on, and nothing is left of it.
 */
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "rig.h"

#define PAGES 64 /* of two regions of 32 */

/* One machine that is served all the time, and what the server has then. */
static struct vmm *other;
static size_t touched, fds, threads;

static void bystander(const char *const *args)
{
	touched = 0;
	serve(memory_file("mem", PAGES), args ? args[0] : NULL, args ? args[1] : NULL,
	      args ? args[2] : NULL, args ? args[3] : NULL);
	other = machine();
	expect_ok(other, "touch %zu 1 1", touched++);
	fds = server_fds();
	threads = server_threads();
}

static void all_is_as_before(void)
{
	expect_ok(other, "touch %zu 1 1", touched++);
	expect_fds(fds);
	assert_int_equal(server_threads(), threads);
}

/* It is refused with these words, and its name; and it is told. */
static void expect_refused(struct vmm *v, const char *words)
{
	char pid[32];
	const char *line = expect_said("refused");

	snprintf(pid, sizeof(pid), "\"pid\":%d,", (int)v->pid);
	if (!strstr(line, words) || !strstr(line, pid))
		fail_msg("'%s' and %s are not both in: %s", words, pid, line);
	expect_ok(v, "closed");
	all_is_as_before();
}

static void say_and_be_refused(struct vmm *v, const char *text, const char *words)
{
	expect_ok(v, "connect %s", rig_path("sock"));
	expect_ok(v, "say 1 %s", text);
	expect_refused(v, words);
}

/* ---- What is no message ----------------------------------------------------------------------------- */

static void what_is_no_json_is_refused(void **state)
{
	static const struct {
		const char *text, *words;
	} bad[] = {
		{ "hello", "no JSON array" },
		{ "{\"base_host_virt_addr\":4096}", "no JSON array" },
		{ "\"[]\"", "no JSON array" },
		{ "[}", "closes nothing" },
		{ "[{]}", "closes nothing" },
		{ "[{\"size\":4096,}]", "no JSON" },
		{ "[{\"size\":'4096'}]", "no JSON" },
		{ "[{\"size\" 4096}]", "no JSON" },
		{ "[{\"size\":0x1000}]", "no JSON" },
		{ "[{\"size\":4096}/* */]", "no JSON" },
		{ "[{\"size\":NaN}]", "" },
		{ "[,]", "no JSON" },
		{ "[]", "names no region" },
		{ "[4096]", "not an object" },
		{ "[[]]", "not an object" },
		{ "[null]", "not an object" },
	};
	struct vmm *v;

	(void)state;
	bystander(NULL);
	v = vmm("version=1.7");
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		say_and_be_refused(v, bad[i].text, bad[i].words);
}

static void what_is_nested_too_deeply_is_refused(void **state)
{
	char text[20001];
	struct vmm *v;

	(void)state;
	bystander(NULL);
	v = vmm("version=1.7");
	memset(text, '[', sizeof(text) - 1);
	text[sizeof(text) - 1] = '\0';
	say_and_be_refused(v, text, "nested deeper");
}

static void what_is_too_long_is_refused(void **state)
{
	static char text[300000];
	struct vmm *v;

	(void)state;
	bystander(NULL);
	v = vmm("version=1.7");
	memset(text, ' ', sizeof(text) - 1);
	text[0] = '[';
	say_and_be_refused(v, text, "too long");
	/* Also if it would end in time to be one. */
	memset(text, 'x', sizeof(text) - 1);
	memcpy(text, "[\"", 2);
	memcpy(text + sizeof(text) - 3, "\"]", 3);
	say_and_be_refused(v, text, "too long");
}

static void what_is_cut_off_is_refused(void **state)
{
	struct vmm *v;

	(void)state;
	bystander(NULL);
	v = vmm("version=1.7");
	expect_ok(v, "connect %s", rig_path("sock"));
	expect_ok(v, "say 1 [{\"size\":");
	expect_ok(v, "hang-up");
	expect_words("refused", "in the middle of its message");
	all_is_as_before();
	expect_ok(v, "connect %s", rig_path("sock"));
	expect_ok(v, "hang-up");
	expect_words("refused", "without a message");
	all_is_as_before();
}

/* ---- Regions that cannot be --------------------------------------------------------------------------- */

static void values_of_the_wrong_type_are_refused(void **state)
{
	static const struct {
		const char *text, *words;
	} bad[] = {
		{ "[{\"size\":4096,\"offset\":0}]", "has no base_host_virt_addr" },
		{ "[{\"base_host_virt_addr\":65536,\"offset\":0}]", "has no size" },
		{ "[{\"base_host_virt_addr\":65536,\"size\":65536}]", "has no offset" },
		{ "[{\"base_host_virt_addr\":\"65536\",\"size\":65536,\"offset\":0}]",
		  "base_host_virt_addr is not a whole number" },
		{ "[{\"base_host_virt_addr\":65536,\"size\":65536.0,\"offset\":0}]",
		  "size is not a whole number" },
		{ "[{\"base_host_virt_addr\":65536,\"size\":65536,\"offset\":null}]",
		  "offset is not a whole number" },
		{ "[{\"base_host_virt_addr\":65536,\"size\":65536,\"offset\":true}]",
		  "offset is not a whole number" },
		{ "[{\"base_host_virt_addr\":65536,\"size\":65536,\"offset\":-65536}]",
		  "offset is negative" },
		{ "[{\"base_host_virt_addr\":65536,\"size\":65536,\"offset\":0,\"page_size\":[]}]",
		  "page_size is not a whole number" },
		{ "[{\"base_host_virt_addr\":65536,\"size\":65536,\"offset\":0,\"page_size_kib\":\"4\"}]",
		  "page_size_kib is not a whole number" },
	};
	struct vmm *v;

	(void)state;
	bystander(NULL);
	v = vmm("version=1.7");
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		say_and_be_refused(v, bad[i].text, bad[i].words);
}

static void regions_that_cannot_be_are_refused(void **state)
{
	static const struct {
		const char *text, *words;
	} bad[] = {
		{ "[{\"base_host_virt_addr\":65536,\"size\":0,\"offset\":0}]", "is empty" },
		{ "[{\"base_host_virt_addr\":65537,\"size\":65536,\"offset\":0}]",
		  "not all multiples" },
		{ "[{\"base_host_virt_addr\":65536,\"size\":65535,\"offset\":0}]",
		  "not all multiples" },
		{ "[{\"base_host_virt_addr\":65536,\"size\":65536,\"offset\":1}]",
		  "not all multiples" },
		{ "[{\"base_host_virt_addr\":65536,\"size\":65536,\"offset\":0,\"page_size\":2097152}]",
		  "not all multiples" },
		{ "[{\"base_host_virt_addr\":18446744073709486080,\"size\":131072,\"offset\":0}]",
		  "beyond all addresses" },
		{ "[{\"base_host_virt_addr\":65536,\"size\":65536,\"offset\":9223372036854710272}]",
		  "beyond all files" },
		{ "[{\"base_host_virt_addr\":65536,\"size\":65536,\"offset\":18446744073709486080}]",
		  "beyond all files" },
		{ "[{\"base_host_virt_addr\":65536,\"size\":99999999999999999999999,\"offset\":0}]",
		  "" },
		{ "[{\"base_host_virt_addr\":65536,\"size\":65536,\"offset\":0,\"page_size\":0}]",
		  "no pages of 0 bytes" },
		{ "[{\"base_host_virt_addr\":65536,\"size\":65536,\"offset\":0,\"page_size\":65535}]",
		  "no pages of 65535 bytes" },
		{ "[{\"base_host_virt_addr\":65536,\"size\":65536,\"offset\":0,\"page_size_kib\":4}]",
		  "no pages of 4 bytes" },
		{ "[{\"base_host_virt_addr\":65536,\"size\":65536,\"offset\":0,\"page_size\":65536,"
		  "\"page_size_kib\":32768}]",
		  "page_size is 65536, but page_size_kib 32768" },
		{ "[{\"base_host_virt_addr\":131072,\"size\":65536,\"offset\":0},"
		  "{\"base_host_virt_addr\":65536,\"size\":131072,\"offset\":65536}]",
		  "overlap at 0x20000" },
		{ "[{\"base_host_virt_addr\":65536,\"size\":65536,\"offset\":0}]",
		  "not registered with its userfaultfd" },
	};
	struct vmm *v;

	(void)state;
	bystander(NULL);
	v = vmm("version=1.7");
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		say_and_be_refused(v, bad[i].text, bad[i].words);
}

static void an_offset_beyond_the_file_is_refused(void **state)
{
	struct vmm *v;

	(void)state;
	bystander(NULL);
	/* Of three regions the first lies in the file behind the end of what there is. */
	v = vmm("version=1.12", "regions=3");
	expect_ok(v, "connect %s", rig_path("sock"));
	expect_ok(v, "hello");
	expect_refused(v, "ends at");
}

/* ---- Descriptors that cannot be ------------------------------------------------------------------------ */

static void a_message_without_a_descriptor_is_refused(void **state)
{
	struct vmm *v;
	char *text;

	(void)state;
	bystander(NULL);
	v = vmm("version=1.7");
	text = strdup(tell(v, "message"));
	expect_ok(v, "connect %s", rig_path("sock"));
	expect_ok(v, "say 0 %s", text);
	expect_refused(v, "no descriptor came");
	free(text);
}

static void a_message_with_two_descriptors_is_refused(void **state)
{
	struct vmm *v;
	char *text;

	(void)state;
	bystander(NULL);
	v = vmm("version=1.7");
	text = strdup(tell(v, "message"));
	expect_ok(v, "connect %s", rig_path("sock"));
	expect_ok(v, "say 2 %s", text);
	/* Each of them may be a machine's. */
	expect_said("refused");
	expect_refused(v, "more than one descriptor came");
	/* Also if they come one by one. */
	expect_ok(v, "connect %s", rig_path("sock"));
	expect_ok(v, "say 1 [");
	expect_ok(v, "say 1 %s", text + 1);
	expect_said("refused");
	expect_refused(v, "two descriptors came");
	expect_ok(v, "connect %s", rig_path("sock"));
	expect_ok(v, "say 15 %s", text);
	for (int i = 0; i < 14; i++)
		expect_said("refused");
	expect_refused(v, "more than one descriptor came");
	free(text);
}

static void a_descriptor_that_is_no_userfaultfd_is_refused(void **state)
{
	struct vmm *v;
	char *text;

	(void)state;
	bystander(NULL);
	v = vmm("version=1.7");
	text = strdup(tell(v, "message"));
	expect_ok(v, "connect %s", rig_path("sock"));
	expect_ok(v, "say x %s", text);
	expect_refused(v, "no userfaultfd");
	free(text);
}

/* With other memory it would be two machines that each miss what the other is told. */
static void a_machine_that_is_served_does_not_become_another(void **state)
{
	char *text;

	(void)state;
	bystander(NULL);
	text = strdup(tell(other, "message"));
	expect_ok(other, "connect %s", rig_path("sock"));
	/* The first of its regions alone. */
	strcpy(strchr(text, '}'), "}]");
	expect_ok(other, "say 1 %s", text);
	free(text);
	expect_words("refused", "with other memory");
	expect_ok(other, "touch 0 %d 1", PAGES);
}

static void userfaultfds_that_cannot_be_served_are_refused(void **state)
{
	struct vmm *v;
	char features[32];

	(void)state;
	bystander(NULL);
	REQUIRES(LIBUFFD_FEATURE_SIGBUS);
	snprintf(features, sizeof(features), "features=%llx",
		 (unsigned long long)LIBUFFD_FEATURE_SIGBUS);
	v = vmm("version=1.7", features);
	expect_ok(v, "connect %s", rig_path("sock"));
	expect_ok(v, "hello");
	expect_refused(v, "SIGBUS");
	v = vmm("version=1.7", "blocking=1");
	expect_ok(v, "connect %s", rig_path("sock"));
	expect_ok(v, "hello");
	expect_refused(v, "blocking");
}

/* ---- Those who say nothing -------------------------------------------------------------------------------- */

static void who_says_nothing_is_sent_away(void **state)
{
	static const char *const args[] = { "--handshake-timeout", "0.2", NULL, NULL };
	struct vmm *v;

	(void)state;
	bystander(args);
	v = vmm("version=1.7");
	expect_ok(v, "connect %s", rig_path("sock"));
	expect_refused(v, "said nothing in time");
	expect_ok(v, "connect %s", rig_path("sock"));
	expect_ok(v, "say 1 [{");
	expect_refused(v, "did not end in time");
	/* Whoever has said all may be silent as long as he likes. */
	expect_ok(v, "connect %s", rig_path("sock"));
	expect_ok(v, "hello");
	expect_said("served");
	expect_ok(v, "touch 0 %d 1", PAGES);
}

static int connect_silently(void)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	strcpy(address.sun_path, rig_path("sock"));
	assert_true(sock >= 0);
	assert_int_equal(connect(sock, (struct sockaddr *)&address, sizeof(address)), 0);
	return sock;
}

/* More than a process may have by itself. */
static void take_descriptors(void)
{
	struct rlimit limit;

	assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
	limit.rlim_cur = limit.rlim_max;
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
}

/* Nobody who has something to say waits for them. */
static void a_thousand_who_say_nothing_are_in_nobodys_way(void **state)
{
	static const char *const args[] = { "--handshake-timeout", "3600", NULL, NULL };
	enum { SILENT = 1000 };
	struct vmm *v;
	int *sock = calloc(SILENT, sizeof(*sock));

	(void)state;
	take_descriptors();
	bystander(args);
	for (int i = 0; i < SILENT; i++)
		sock[i] = connect_silently();
	v = vmm("version=1.7");
	vmm_join(v);
	expect_ok(v, "touch 0 %d 2", PAGES);
	expect_ok(other, "touch %zu 1 1", touched++);
	vmm_kill(v);
	for (int i = 0; i < SILENT; i++)
		close(sock[i]);
	free(sock);
	all_is_as_before();
}

/* The one that has been silent the longest goes first. */
static void more_than_are_bearable_make_way(void **state)
{
	static const char *const args[] = { "--handshake-timeout", "3600", NULL, NULL };
	enum { SILENT = 1100 };
	struct vmm *v;
	int *sock = calloc(SILENT, sizeof(*sock));

	(void)state;
	take_descriptors();
	bystander(args);
	for (int i = 0; i < SILENT; i++)
		sock[i] = connect_silently();
	for (int i = 0; i < SILENT - 1024; i++)
		expect_words("refused", "too many others");
	v = vmm("version=1.7");
	vmm_join(v);
	expect_ok(v, "touch 0 %d 2", PAGES);
	vmm_kill(v);
	for (int i = 0; i < SILENT; i++)
		close(sock[i]);
	free(sock);
	all_is_as_before();
}

/* ---- Those who die ------------------------------------------------------------------------------------------ */

static void a_monitor_may_die_at_any_point_of_the_handshake(void **state)
{
	struct vmm *v;
	size_t len;

	(void)state;
	bystander(NULL);
	v = vmm("version=1.12");
	expect_ok(v, "connect %s", rig_path("sock"));
	len = strlen(tell(v, "message"));
	vmm_kill(v);
	all_is_as_before();
	for (size_t at = 0; at <= len; at += at == len - 1 ? 1 : (len - 1) / 4) {
		char *text;

		v = vmm("version=1.12");
		text = strdup(tell(v, "message"));
		text[at < strlen(text) ? at : strlen(text)] = '\0';
		expect_ok(v, "connect %s", rig_path("sock"));
		expect_ok(v, "say 1 %s", text);
		free(text);
		vmm_kill(v);
		all_is_as_before();
	}
}

static void a_monitor_may_die_while_it_is_served(void **state)
{
	struct vmm *v;

	(void)state;
	bystander(NULL);
	v = vmm("version=1.12");
	vmm_join(v);
	vmm_kill(v);
	expect_said("gone");
	all_is_as_before();
	/* In the middle of a storm of faults. */
	v = vmm("version=1.12");
	vmm_join(v);
	fprintf(v->to, "touch 0 %d 8\n", PAGES);
	fflush(v->to);
	vmm_kill(v);
	expect_said("gone");
	all_is_as_before();
	v = vmm("version=1.12");
	vmm_join(v);
	expect_ok(v, "touch 0 16 1");
	expect_ok(v, "drop 0 16");
	vmm_kill(v);
	expect_said("gone");
	all_is_as_before();
}

/* Its page cannot be had, and is tried for again and again. */
static void a_monitor_may_die_during_a_fetch(void **state)
{
	static const char *const args[] = { "--retries", "1000", NULL, NULL };
	struct vmm *v;

	(void)state;
	bystander(args);
	assert_int_equal(truncate(rig_path("mem"), 0), 0);
	v = vmm("version=1.12");
	vmm_join(v);
	expect_ok(v, "stare 9");
	vmm_kill(v);
	expect_said("gone");
	expect_fds(fds);
	assert_int_equal(server_threads(), threads);
}

static const struct CMUnitTest tests[] = {
	CASE(what_is_no_json_is_refused),
	CASE(what_is_nested_too_deeply_is_refused),
	CASE(what_is_too_long_is_refused),
	CASE(what_is_cut_off_is_refused),
	CASE(values_of_the_wrong_type_are_refused),
	CASE(regions_that_cannot_be_are_refused),
	CASE(an_offset_beyond_the_file_is_refused),
	CASE(a_message_without_a_descriptor_is_refused),
	CASE(a_message_with_two_descriptors_is_refused),
	CASE(a_descriptor_that_is_no_userfaultfd_is_refused),
	CASE(a_machine_that_is_served_does_not_become_another),
	CASE(userfaultfds_that_cannot_be_served_are_refused),
	CASE(who_says_nothing_is_sent_away),
	CASE(a_thousand_who_say_nothing_are_in_nobodys_way),
	CASE(more_than_are_bearable_make_way),
	CASE(a_monitor_may_die_at_any_point_of_the_handshake),
	CASE(a_monitor_may_die_while_it_is_served),
	CASE(a_monitor_may_die_during_a_fetch),
};

int main(int argc, char **argv)
{
	return rig_main(argc, argv, "serve-bad", tests, ARRAY_SIZE(tests));
}
