/* SPDX-License-Identifier: MIT */
/*
 * As much of cmocka as our tests use, for C libraries that nobody packages cmocka for: see tests/builds/run.
 * What it prints is cmocka's TAP. Each name means what it means there.
 */
#ifndef TESTS_BUILDS_CMOCKA_H
#define TESTS_BUILDS_CMOCKA_H

#include <stddef.h>
#include <stdint.h>

typedef void (*CMUnitTestFunction)(void **state);
typedef int (*CMFixtureFunction)(void **state);

struct CMUnitTest {
	const char *name;
	CMUnitTestFunction test_func;
	CMFixtureFunction setup_func, teardown_func;
	void *initial_state;
};

/* clang-format off */
#define cmocka_unit_test(f) { #f, f, NULL, NULL, NULL }
#define cmocka_unit_test_teardown(f, teardown) { #f, f, NULL, teardown, NULL }
#define cmocka_unit_test_setup_teardown(f, setup, teardown) { #f, f, setup, teardown, NULL }
/* clang-format on */

/* How many failed. An argument of a fixture may be NULL. */
int _cmocka_run_group_tests(const char *group, const struct CMUnitTest *tests, size_t n,
			    CMFixtureFunction setup, CMFixtureFunction teardown);
#define cmocka_run_group_tests_name(group, tests, setup, teardown) \
	_cmocka_run_group_tests(group, tests, sizeof(tests) / sizeof((tests)[0]), setup, teardown)
#define cmocka_run_group_tests(tests, setup, teardown) \
	cmocka_run_group_tests_name(#tests, tests, setup, teardown)

/* A name, or a pattern of them: * is any number of characters, ? is one. */
void cmocka_set_test_filter(const char *pattern);
/* TAP is all that there is here. */
enum cm_message_output { CM_OUTPUT_TAP = 2 };
void cmocka_set_message_output(enum cm_message_output output);
__attribute__((format(printf, 1, 2))) void print_message(const char *format, ...);
#define print_error print_message

/* These leave the test that runs in this thread, and do not return. */
__attribute__((noreturn)) void _skip(void);
__attribute__((noreturn, format(printf, 3, 4))) void _fail(const char *file, int line,
							   const char *format, ...);
#define skip() _skip()
#define fail() _fail(__FILE__, __LINE__, "fail()")
#define fail_msg(...) _fail(__FILE__, __LINE__, __VA_ARGS__)

void _assert(int holds, const char *what, const char *file, int line);
void _assert_int(int wanted, uintmax_t a, uintmax_t b, const char *file, int line);
void _assert_in_range(uintmax_t value, uintmax_t low, uintmax_t high, const char *file, int line);
void _assert_string_equal(const char *a, const char *b, const char *file, int line);
void _assert_memory_equal(const void *a, const void *b, size_t len, const char *file, int line);

#define cm_number(pointer) ((uintmax_t)(uintptr_t)(pointer))
#define assert_true(c) _assert(!!(c), #c, __FILE__, __LINE__)
#define assert_false(c) _assert(!(c), "!(" #c ")", __FILE__, __LINE__)
#define assert_non_null(p) _assert(!!(p), #p " != NULL", __FILE__, __LINE__)
#define assert_null(p) _assert(!(p), #p " == NULL", __FILE__, __LINE__)
#define assert_int_equal(a, b) _assert_int(1, (uintmax_t)(a), (uintmax_t)(b), __FILE__, __LINE__)
#define assert_int_not_equal(a, b) \
	_assert_int(0, (uintmax_t)(a), (uintmax_t)(b), __FILE__, __LINE__)
#define assert_ptr_equal(a, b) _assert_int(1, cm_number(a), cm_number(b), __FILE__, __LINE__)
#define assert_ptr_not_equal(a, b) _assert_int(0, cm_number(a), cm_number(b), __FILE__, __LINE__)
#define assert_in_range(v, low, high) \
	_assert_in_range((uintmax_t)(v), (uintmax_t)(low), (uintmax_t)(high), __FILE__, __LINE__)
#define assert_string_equal(a, b) _assert_string_equal(a, b, __FILE__, __LINE__)
#define assert_memory_equal(a, b, len) _assert_memory_equal(a, b, len, __FILE__, __LINE__)

#endif
