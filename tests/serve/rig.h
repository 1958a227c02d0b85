/* SPDX-License-Identifier: MIT */
/* For tests of uffd-serve: one, monitors that use it, and the end of all of them, whatever became of the test. */
#ifndef TESTS_SERVE_RIG_H
#define TESTS_SERVE_RIG_H

#include "../kernel/kernel.h"
#include "vmm.h"

#define VMMS 64

struct vmm {
	pid_t pid;
	FILE *to, *from;
};

struct served {
	pid_t pid;
	int out;	  /* what it says: an object a line */
	char *said;	  /* all of it */
	size_t len, read; /* what has been looked at */
	char *line;
};

extern char *rig_dir; /* of this test */
extern struct served rig_server;

/* Between two looks at what is waited for. */
void pause_ms(void);

/* What every test begins and ends with, as cmocka's setup and teardown. */
int case_begin(void **state);
int case_end(void **state);
#define CASE(test) cmocka_unit_test_setup_teardown(test, case_begin, case_end)

/* How often to do what is worth so much repetition on a machine, and less of it in an emulated guest of the matrix. */
size_t rig_often(size_t here, size_t in_guest);

/* A name in the directory; stays until the end of the test. */
const char *rig_path(const char *name);
/* A memory file of the pattern of vmm.h, holes included; of so many blocks of the system's page size. */
const char *memory_file(const char *name, uint64_t blocks);

/* Run uffd-serve on the socket "sock" and a memory file, with more arguments up to a NULL; waits until it is ready. */
void serve_with(const char *memory, ...);
#define serve(...) serve_with(__VA_ARGS__, NULL)
/* The one before has ended. */
#define serve_again(...) (serve_forget(), serve_with(__VA_ARGS__, NULL))
void serve_forget(void);
/* Run it with just these arguments, up to a NULL, and do not wait. */
void serve_only(const char *first, ...);
#define serve_raw(...) serve_only(__VA_ARGS__, NULL)
/* What the process does before it becomes uffd-serve; until the end of the test. */
extern void (*rig_in_child)(void);
/* More of what it says has been read; false: it has ended. */
bool hear(void);
/* Until it has said this event, and the line with it; what it said before is passed over. */
const char *expect_said(const char *event);
/* The same, and it must have these words. */
void expect_words(const char *event, const char *words);
/* It has ended: its exit status, or 128 + a signal. */
int serve_ended(void);
int serve_stop(int sig);

/* Start a monitor; arguments as in vmm.h, up to a NULL. */
struct vmm *vmm_with(const char *first, ...);
#define vmm(...) vmm_with(__VA_ARGS__, NULL)
/* Tell it something; what it answers. */
__attribute__((format(printf, 2, 3))) const char *tell(struct vmm *v, const char *format, ...);
#define expect_ok(v, ...) assert_string_equal(tell(v, __VA_ARGS__), "ok")
/* Connect, shake hands, and wait until it is served. */
void vmm_join(struct vmm *v);
/* One of version 1.12 that has done so. */
struct vmm *machine(void);
void vmm_kill(struct vmm *v);
/* One that has ended makes room for another: there may be any number, one after the other. */
void vmm_gone(struct vmm *v);
/* The signal that it died of, once it has. */
int vmm_died(struct vmm *v);

/* What it prints upon SIGUSR1, and a number in it: the first after this key. */
const char *figures(void);
uint64_t figure_in(const char *text, const char *key);
/* Until such a number is at least this. */
void wait_figure(const char *key, uint64_t n);
/* Until the machines have so many pages. */
void wait_present(uint64_t pages);

/* Descriptors and threads of the server. */
size_t server_fds(void);
size_t server_threads(void);
/* Until it has so many descriptors. */
void expect_fds(size_t n);
/* The same, where some may have been about to be closed when they were counted. */
void expect_no_more_fds(size_t n);

int rig_main(int argc, char **argv, const char *name, const struct CMUnitTest *tests, size_t n);

#endif
