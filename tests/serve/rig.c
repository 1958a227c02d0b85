/* SPDX-License-Identifier: MIT */
#include "rig.h"

#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdarg.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>

#define PATIENCE_MS \
	120000 /* for what always comes: without it a failure would be a test that hangs */

char *rig_dir;
void (*rig_in_child)(void);
struct served rig_server;
static struct vmm vmms[VMMS];
static size_t nvmms;
static char program[PATH_MAX], *tested;

void pause_ms(void)
{
	struct timespec ms = { 0, 1000000 };

	nanosleep(&ms, NULL);
}

/* ---- Files ---------------------------------------------------------------------------------------- */

const char *rig_path(const char *name)
{
	static char paths[16][PATH_MAX];
	static unsigned int next;
	char *path = paths[next++ % 16];

	snprintf(path, PATH_MAX, "%s/%s", rig_dir, name);
	return path;
}

const char *memory_file(const char *name, uint64_t blocks)
{
	const char *path = rig_path(name);
	int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
	size_t page = page_size();
	unsigned char *block = malloc(page);

	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, (off_t)(blocks * page)), 0);
	for (uint64_t i = 0; i < blocks; i++) {
		if (block_is_hole(i))
			continue;
		block_fill(block, i, page);
		assert_int_equal(pwrite(fd, block, page, (off_t)(i * page)), page);
	}
	free(block);
	close(fd);
	return path;
}

static void remove_dir(const char *path)
{
	DIR *d = opendir(path);
	struct dirent *e;
	char inner[PATH_MAX];

	while (d && (e = readdir(d))) {
		if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0)
			continue;
		if (snprintf(inner, sizeof(inner), "%s/%s", path, e->d_name) >= (int)sizeof(inner))
			continue;
		if (unlink(inner) < 0)
			remove_dir(inner);
	}
	if (d)
		closedir(d);
	rmdir(path);
}

/* ---- The server ------------------------------------------------------------------------------------ */

static void run_server(char *const *argv)
{
	int out[2];

	assert_int_equal(pipe2(out, O_CLOEXEC), 0);
	rig_server.pid = fork();
	assert_true(rig_server.pid >= 0);
	if (rig_server.pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		dup2(out[1], STDOUT_FILENO);
		if (rig_in_child)
			rig_in_child();
		execv(tested, argv);
		_exit(127);
	}
	close(out[1]);
	rig_server.out = out[0];
}

void serve_with(const char *memory, ...)
{
	const char *argv[64] = {
		tested, "--json", "--socket", rig_path("sock"), "--memory", memory
	};
	size_t n = 6;
	va_list args;

	va_start(args, memory);
	while (n < 63 && (argv[n] = va_arg(args, const char *)))
		n++;
	va_end(args);
	argv[n] = NULL;
	run_server((char *const *)(uintptr_t)argv);
	expect_said("ready");
}

void serve_only(const char *first, ...)
{
	const char *argv[64] = { tested, first };
	size_t n = 2;
	va_list args;

	va_start(args, first);
	while (first && n < 63 && (argv[n] = va_arg(args, const char *)))
		n++;
	va_end(args);
	run_server((char *const *)(uintptr_t)argv);
}

bool hear(void)
{
	struct pollfd p = { .fd = rig_server.out, .events = POLLIN };
	ssize_t n;

	rig_server.said = realloc(rig_server.said, rig_server.len + 65536);
	assert_non_null(rig_server.said);
	if (poll(&p, 1, PATIENCE_MS) != 1)
		fail_msg("uffd-serve is silent; it has said: %.*s", (int)rig_server.len,
			 rig_server.said);
	n = read(rig_server.out, rig_server.said + rig_server.len, 65535);
	assert_true(n >= 0);
	rig_server.len += (size_t)n;
	rig_server.said[rig_server.len] = '\0';
	return n > 0;
}

static const char *next_line(void)
{
	char *start, *end = NULL;

	for (;;) {
		start = rig_server.said ? rig_server.said + rig_server.read : NULL;
		if (start)
			end = memchr(start, '\n', rig_server.len - rig_server.read);
		if (end)
			break;
		if (!hear())
			return NULL;
	}
	rig_server.read += (size_t)(end - start) + 1;
	free(rig_server.line);
	rig_server.line = strndup(start, (size_t)(end - start));
	return rig_server.line;
}

const char *expect_said(const char *event)
{
	char want[64];
	const char *line;

	snprintf(want, sizeof(want), "\"event\":\"%s\"", event);
	while ((line = next_line()))
		if (strstr(line, want))
			return line;
	fail_msg("uffd-serve has ended without '%s'; it has said: %s", event,
		 rig_server.said ? rig_server.said : "nothing");
	return NULL;
}

void expect_words(const char *event, const char *words)
{
	const char *line = expect_said(event);

	if (!strstr(line, words))
		fail_msg("'%s' is not in: %s", words, line);
}

int serve_ended(void)
{
	int status;

	while (hear())
		;
	assert_int_equal(waitpid(rig_server.pid, &status, 0), rig_server.pid);
	rig_server.pid = 0;
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

int serve_stop(int sig)
{
	assert_int_equal(kill(rig_server.pid, sig), 0);
	return serve_ended();
}

void serve_forget(void)
{
	if (rig_server.pid) {
		kill(rig_server.pid, SIGKILL);
		waitpid(rig_server.pid, NULL, 0);
	}
	if (rig_server.out > 0)
		close(rig_server.out);
	free(rig_server.said);
	free(rig_server.line);
	memset(&rig_server, 0, sizeof(rig_server));
}

/* ---- Monitors --------------------------------------------------------------------------------------- */

static const char *answer_of(struct vmm *v)
{
	static char line[1 << 20];

	assert_true(nvmms > 0);
	if (!fgets(line, sizeof(line), v->from))
		return "it is dead";
	line[strcspn(line, "\n")] = '\0';
	return line;
}

struct vmm *vmm_with(const char *first, ...)
{
	const char *argv[32] = { program, "--vmm", first };
	struct vmm *v = &vmms[nvmms];
	int in[2], out[2];
	size_t n = 3;
	va_list args;

	va_start(args, first);
	while (first && n < 31 && (argv[n] = va_arg(args, const char *)))
		n++;
	va_end(args);
	assert_true(nvmms < VMMS);
	assert_int_equal(pipe2(in, O_CLOEXEC), 0);
	assert_int_equal(pipe2(out, O_CLOEXEC), 0);
	v->pid = fork();
	assert_true(v->pid >= 0);
	if (v->pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		dup2(in[0], STDIN_FILENO);
		dup2(out[1], STDOUT_FILENO);
		execv(program, (char *const *)(uintptr_t)argv);
		_exit(127);
	}
	nvmms++;
	close(in[0]);
	close(out[1]);
	v->to = fdopen(in[1], "w");
	v->from = fdopen(out[0], "r");
	assert_string_equal(answer_of(v), "ready");
	return v;
}

const char *tell(struct vmm *v, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vfprintf(v->to, format, args);
	va_end(args);
	fputc('\n', v->to);
	if (fflush(v->to))
		return "it is dead";
	return answer_of(v);
}

void vmm_join(struct vmm *v)
{
	expect_ok(v, "connect %s", rig_path("sock"));
	expect_ok(v, "hello");
	expect_said("served");
}

struct vmm *machine(void)
{
	struct vmm *v = vmm("version=1.12");

	vmm_join(v);
	return v;
}

void vmm_kill(struct vmm *v)
{
	kill(v->pid, SIGKILL);
	waitpid(v->pid, NULL, 0);
	v->pid = 0;
}

void vmm_gone(struct vmm *v)
{
	assert_ptr_equal(v, &vmms[nvmms - 1]);
	assert_int_equal(v->pid, 0);
	fclose(v->to);
	fclose(v->from);
	nvmms--;
}

int vmm_died(struct vmm *v)
{
	int status = 0;

	assert_int_equal(waitpid(v->pid, &status, 0), v->pid);
	v->pid = 0;
	return WIFSIGNALED(status) ? WTERMSIG(status) : 0;
}

static void vmms_down(void)
{
	for (size_t i = 0; i < nvmms; i++) {
		if (vmms[i].pid)
			vmm_kill(&vmms[i]);
		fclose(vmms[i].to);
		fclose(vmms[i].from);
	}
	memset(vmms, 0, sizeof(vmms));
	nvmms = 0;
}

/* ---- What it counts ----------------------------------------------------------------------------------- */

const char *figures(void)
{
	const char *line;

	assert_int_equal(kill(rig_server.pid, SIGUSR1), 0);
	while ((line = next_line()))
		if (strncmp(line, "{\"format\"", 9) == 0)
			return line;
	fail_msg("uffd-serve has ended");
	return NULL;
}

uint64_t figure_in(const char *text, const char *key)
{
	char want[64];
	const char *at;

	snprintf(want, sizeof(want), "\"%s\":", key);
	at = strstr(text, want);
	if (!at)
		fail_msg("%s is not in: %s", want, text);
	return strtoull(at + strlen(want), NULL, 10);
}

void wait_figure(const char *key, uint64_t n)
{
	for (int i = 0; figure_in(figures(), key) < n; i++) {
		if (i == PATIENCE_MS)
			fail_msg("%s is not %llu: %s", key, (unsigned long long)n, rig_server.line);
		pause_ms();
	}
}

void wait_present(uint64_t pages)
{
	wait_figure("pages_present", pages);
}

/* ---- What the server has ----------------------------------------------------------------------------- */

static size_t count_in(const char *what)
{
	char path[64];
	size_t n = 0;
	DIR *d;

	snprintf(path, sizeof(path), "/proc/%d/%s", (int)rig_server.pid, what);
	d = opendir(path);
	assert_non_null(d);
	while (readdir(d))
		n++;
	closedir(d);
	return n - 2;
}

size_t server_fds(void)
{
	return count_in("fd");
}

size_t server_threads(void)
{
	return count_in("task");
}

void expect_fds(size_t n)
{
	for (int i = 0; server_fds() != n; i++) {
		if (i == PATIENCE_MS)
			fail_msg("uffd-serve has %zu descriptors, and not %zu", server_fds(), n);
		pause_ms();
	}
}

void expect_no_more_fds(size_t n)
{
	for (int i = 0; server_fds() > n; i++) {
		if (i == PATIENCE_MS)
			fail_msg("uffd-serve has %zu descriptors, and not %zu at most",
				 server_fds(), n);
		pause_ms();
	}
}

/* ---- Tests --------------------------------------------------------------------------------------------- */

int case_begin(void **state)
{
	char template[] = "/tmp/uffd-serve-test-XXXXXX";

	(void)state;
	rig_dir = strdup(mkdtemp(template));
	return rig_dir ? 0 : -1;
}

int case_end(void **state)
{
	(void)state;
	vmms_down();
	serve_forget();
	rig_in_child = NULL;
	remove_dir(rig_dir);
	free(rig_dir);
	rig_dir = NULL;
	return 0;
}

size_t rig_often(size_t here, size_t in_guest)
{
	return in_test_vm() ? in_guest : here;
}

/* What is tested is named by the build, or lies beside the tests. */
static void find_programs(void)
{
	const char *named = getenv("UFFD_SERVE");
	ssize_t n = readlink("/proc/self/exe", program, sizeof(program) - 1);
	char *slash;

	program[n > 0 ? n : 0] = '\0';
	slash = strrchr(program, '/');
	if (named)
		tested = strdup(named);
	else if (slash && asprintf(&tested, "%.*s/uffd-serve", (int)(slash - program), program) < 0)
		tested = NULL;
}

int rig_main(int argc, char **argv, const char *name, const struct CMUnitTest *tests, size_t n)
{
	if (argc > 1 && strcmp(argv[1], "--vmm") == 0)
		return vmm_main(argc, argv);
	signal(SIGPIPE, SIG_IGN);
	find_programs();
	return run_kernel_tests(argc, argv, name, tests, n, NULL, NULL);
}
