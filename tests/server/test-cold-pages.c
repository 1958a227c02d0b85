/* SPDX-License-Identifier: MIT */
/*
 * examples/cold-pages.c, as it is, in a process of its own: so that the guests whose kernels have what it takes run it.
 */
#define main cold_pages_main
int cold_pages_main(int argc, char **argv);
#include "../../examples/cold-pages.c"
#undef main

#include <sys/wait.h>

#include "kernel.h"

static char output[8192];

/* Its exit status; what it said is in `output`. */
static int cold_pages(const char *const *options)
{
	const char *argv[32] = { "cold-pages" };
	int ends[2], status, argc = 1;
	size_t len = 0;
	ssize_t n;
	pid_t pid;

	while (options[argc - 1]) {
		argv[argc] = options[argc - 1];
		assert_true(++argc < 31);
	}
	assert_int_equal(pipe(ends), 0);
	fflush(NULL);
	pid = fork();
	assert_true(pid >= 0);
	if (!pid) {
		dup2(ends[1], 1);
		dup2(ends[1], 2);
		close(ends[0]);
		close(ends[1]);
		exit(cold_pages_main(argc, (char **)(uintptr_t)argv));
	}
	close(ends[1]);
	while ((n = read(ends[0], output + len, sizeof(output) - 1 - len)) > 0)
		len += (size_t)n;
	output[len] = '\0';
	close(ends[0]);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	for (const char *line = output; *line;) {
		size_t here = strcspn(line, "\n");

		printf("# %.*s\n", (int)here, line);
		line += here + (line[here] == '\n');
	}
	assert_true(WIFEXITED(status));
	return WEXITSTATUS(status);
}

#define COLD_PAGES(...) cold_pages((const char *const[]){ __VA_ARGS__, NULL })

static uint64_t figure(const char *name)
{
	char key[64];
	const char *at;

	snprintf(key, sizeof(key), "\"%s\": ", name);
	at = strstr(output, key);
	assert_non_null(at);
	return strtoull(at + strlen(key), NULL, 10);
}

static void options_are_looked_at_first(void **state)
{
	(void)state;
	assert_int_equal(COLD_PAGES("--help"), EXIT_DONE);
	assert_non_null(strstr(output, "usage: cold-pages"));
	assert_int_equal(COLD_PAGES("--nothing"), EXIT_USAGE);
	assert_int_equal(COLD_PAGES("--size", "0"), EXIT_USAGE);
	assert_int_equal(COLD_PAGES("--hot", "91"), EXIT_USAGE);
	assert_int_equal(COLD_PAGES("--threads", "x"), EXIT_USAGE);
	assert_int_equal(COLD_PAGES("more"), EXIT_USAGE);
}

static void without_rwp_it_says_which_kernel_it_wants(void **state)
{
	struct libuffd_caps caps = LIBUFFD_CAPS_INIT;

	(void)state;
	assert_int_equal(libuffd_probe(&caps), 0);
	if (caps.features & LIBUFFD_FEATURE_RWP)
		SKIP("older-kernel", "this kernel has it");
	assert_int_equal(COLD_PAGES("--dir", "/tmp"), EXIT_KERNEL);
	assert_non_null(strstr(output, "7.3"));
}

/* What nobody uses goes, all of it, and comes back right; whatever else went. */
static void nothing_is_lost(void **state)
{
	static const char *const threads[] = { "1", "4" };

	(void)state;
	REQUIRES(LIBUFFD_FEATURE_RWP);
	for (size_t i = 0; i < ARRAY_SIZE(threads); i++) {
		assert_int_equal(COLD_PAGES("--size", "4", "--keep", "0", "--interval", "20",
					    "--rounds", "15", "--dir", "/tmp", "--json",
					    "--threads", threads[i]),
				 EXIT_DONE);
		assert_int_equal(figure("wrong"), 0);
		assert_int_equal(figure("unlocked"), 0);
		assert_true(figure("evicted") >= figure("pages") / 11);
		assert_true(figure("brought_back") >= figure("pages") / 11);
		assert_true(figure("least_resident") < figure("size"));
		assert_true(figure("accesses") > 0);
	}
}

/* No pause at all: always frozen, or about to be. */
static void nor_is_it_in_a_hurry(void **state)
{
	(void)state;
	REQUIRES(LIBUFFD_FEATURE_RWP);
	assert_int_equal(COLD_PAGES("--size", "1", "--keep", "0", "--interval", "0", "--rounds",
				    "200", "--hot", "50", "--threads", "3", "--dir", "/tmp",
				    "--json"),
			 EXIT_DONE);
	assert_int_equal(figure("wrong"), 0);
}

static void it_takes_no_more_than_it_may(void **state)
{
	(void)state;
	REQUIRES(LIBUFFD_FEATURE_RWP);
	assert_int_equal(COLD_PAGES("--size", "4", "--keep", "0", "--interval", "1", "--rounds",
				    "3", "--batch", "7", "--dir", "/tmp", "--json"),
			 EXIT_DONE);
	assert_true(figure("evicted") <= 21);
	/* There is no more than is to be kept. */
	assert_int_equal(COLD_PAGES("--size", "4", "--keep", "4", "--interval", "1", "--rounds",
				    "3", "--dir", "/tmp"),
			 EXIT_DONE);
	assert_non_null(strstr(output, " 0 taken away, 0 brought back"));
	assert_non_null(strstr(output, "every byte is what it should be"));
}

static const struct CMUnitTest tests[] = {
	cmocka_unit_test(options_are_looked_at_first),
	cmocka_unit_test(without_rwp_it_says_which_kernel_it_wants),
	cmocka_unit_test(nothing_is_lost),
	cmocka_unit_test(nor_is_it_in_a_hurry),
	cmocka_unit_test(it_takes_no_more_than_it_may),
};

KERNEL_MAIN("server-cold-pages", tests, NULL, NULL)
