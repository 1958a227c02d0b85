/* SPDX-License-Identifier: MIT */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cmocka.h"

enum outcome { PASSED, FAILED, SKIPPED };

/* Of the thread that runs the tests: no other has anywhere to go back to. */
static _Thread_local jmp_buf back;
static _Thread_local bool running;
static const char *filter;

/* ---- Leaving a test -------------------------------------------------------------------------- */

__attribute__((noreturn)) static void leave(enum outcome outcome)
{
	if (running)
		longjmp(back, outcome);
	/* A thread of the test's: the program ends here, with fewer cases than it announced. */
	fflush(stdout);
	_Exit(1);
}

void _skip(void)
{
	leave(SKIPPED);
}

void _fail(const char *file, int line, const char *format, ...)
{
	va_list args;

	printf("# %s:%d: ", file, line);
	va_start(args, format);
	vprintf(format, args);
	va_end(args);
	printf("\n");
	leave(FAILED);
}

void _assert(int holds, const char *what, const char *file, int line)
{
	if (!holds)
		_fail(file, line, "%s", what);
}

void _assert_int(int wanted, uintmax_t a, uintmax_t b, const char *file, int line)
{
	if ((a == b) != wanted)
		_fail(file, line, "%#jx %s %#jx", a, wanted ? "!=" : "==", b);
}

void _assert_in_range(uintmax_t value, uintmax_t low, uintmax_t high, const char *file, int line)
{
	if (value < low || value > high)
		_fail(file, line, "%ju is not in %ju to %ju", value, low, high);
}

void _assert_string_equal(const char *a, const char *b, const char *file, int line)
{
	if (strcmp(a, b))
		_fail(file, line, "\"%s\" != \"%s\"", a, b);
}

void _assert_memory_equal(const void *a, const void *b, size_t len, const char *file, int line)
{
	const unsigned char *x = a, *y = b;

	for (size_t i = 0; i < len; i++)
		if (x[i] != y[i])
			_fail(file, line, "byte %zu of %zu: %#x != %#x", i, len, x[i], y[i]);
}

/* ---- What is printed ------------------------------------------------------------------------- */

void print_message(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vprintf(format, args);
	va_end(args);
}

void cmocka_set_message_output(enum cm_message_output output)
{
	(void)output;
}

/* ---- Running --------------------------------------------------------------------------------- */

static bool matches(const char *pattern, const char *name)
{
	if (!*pattern)
		return !*name;
	if (*pattern == '*')
		return matches(pattern + 1, name) || (*name && matches(pattern, name + 1));
	return *name && (*pattern == '?' || *pattern == *name) && matches(pattern + 1, name + 1);
}

static bool chosen(const struct CMUnitTest *test)
{
	return !filter || matches(filter, test->name);
}

void cmocka_set_test_filter(const char *pattern)
{
	filter = pattern;
}

/* A fixture, or the test itself, from which it may be left. */
static enum outcome attempt(CMFixtureFunction fixture, CMUnitTestFunction test, void **state)
{
	enum outcome outcome;

	switch (setjmp(back)) {
	case PASSED: /* not yet: this is where it begins */
		running = true;
		if (fixture && fixture(state))
			_fail(__FILE__, __LINE__, "a fixture failed");
		if (test)
			test(state);
		outcome = PASSED;
		break;
	case FAILED:
		outcome = FAILED;
		break;
	default:
		outcome = SKIPPED;
	}
	running = false;
	return outcome;
}

static enum outcome run(const struct CMUnitTest *test, void *group)
{
	void *state = test->initial_state ? test->initial_state : group;
	enum outcome outcome = attempt(test->setup_func, NULL, &state);

	if (outcome != PASSED)
		return outcome;
	outcome = attempt(NULL, test->test_func, &state);
	return attempt(test->teardown_func, NULL, &state) == FAILED ? FAILED : outcome;
}

int _cmocka_run_group_tests(const char *group, const struct CMUnitTest *tests, size_t n,
			    CMFixtureFunction setup, CMFixtureFunction teardown)
{
	int number = 0, planned = 0, failed = 0;
	void *state = NULL;

	for (size_t i = 0; i < n; i++)
		planned += chosen(&tests[i]);
	printf("1..%d\n# %s\n", planned, group);
	fflush(stdout); /* before a test forks */
	if (attempt(setup, NULL, &state) != PASSED)
		return planned ? planned : 1;
	for (size_t i = 0; i < n; i++) {
		enum outcome outcome;

		if (!chosen(&tests[i]))
			continue;
		number++;
		outcome = run(&tests[i], state);
		failed += outcome == FAILED;
		if (outcome == SKIPPED)
			printf("ok %d # SKIP %s\n", number, tests[i].name);
		else
			printf("%s %d - %s\n", outcome == FAILED ? "not ok" : "ok", number,
			       tests[i].name);
		fflush(stdout);
	}
	if (attempt(teardown, NULL, &state) != PASSED)
		failed++;
	return failed;
}
