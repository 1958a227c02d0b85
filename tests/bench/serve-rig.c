/* SPDX-License-Identifier: MIT */
/* uffd-serve and who connects to it, as processes. */
#include "serve-bench.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

/* ---- Files ------------------------------------------------------------------------------------- */

static const char *const files[] = {
	FILE_MEMORY, FILE_SOCKET, FILE_RECORD, FILE_NBD, FILE_NBD_READY, FILE_SLOW,
};
#define FILES (sizeof(files) / sizeof(*files))

static char dir[3072], paths[FILES][4096];
static pid_t owner;
static void (*hangs)(int sig);

const char *scratch(const char *name)
{
	for (size_t i = 0; i < FILES; i++)
		if (!strcmp(files[i], name))
			return paths[i];
	die("there is no file '%s'", name);
}

/* Also in a signal handler. */
static void scratch_remove(void)
{
	if (getpid() != owner)
		return;
	for (size_t i = 0; i < FILES; i++)
		unlink(paths[i]);
	rmdir(dir);
}

static void killed(int sig)
{
	scratch_remove();
	signal(sig, SIG_DFL);
	raise(sig);
}

static void hung(int sig)
{
	scratch_remove();
	hangs(sig);
}

void scratch_make(void)
{
	if (owner)
		return;
	snprintf(dir, sizeof(dir), "%s/serve-bench-XXXXXX", paper_dir);
	if (!mkdtemp(dir))
		die("%s: %s", dir, strerror(errno));
	for (size_t i = 0; i < FILES; i++)
		snprintf(paths[i], sizeof(paths[i]), "%s/%s", dir, files[i]);
	owner = getpid();
	atexit(scratch_remove);
	signal(SIGINT, killed);
	signal(SIGTERM, killed);
	hangs = signal(SIGALRM, hung);
}

size_t memory_pages(void)
{
	return ((size_t)(quick ? 64 : 1024) << 20) / page;
}

const struct paper *memory_paper(void)
{
	static struct paper paper;

	scratch_make();
	if (!paper.pages)
		paper_make_at(&paper, scratch(FILE_MEMORY), memory_pages());
	return &paper;
}

/* ---- Processes --------------------------------------------------------------------------------- */

pid_t child(int cpu)
{
	pid_t pid;

	fflush(NULL);
	pid = fork();
	if (pid < 0)
		die("fork: %s", strerror(errno));
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		signal(SIGINT, SIG_DFL);
		signal(SIGTERM, SIG_DFL);
		pin(cpu);
	}
	return pid;
}

void child_end(pid_t pid, int sig)
{
	if (sig)
		kill(pid, sig);
	if (waitpid(pid, NULL, 0) != pid)
		die("waitpid: %s", strerror(errno));
}

/* Named by the environment, or beside this program where both were built. */
static const char *uffd_serve(void)
{
	static char path[4096];
	const char *named = getenv("UFFD_SERVE");
	ssize_t n;

	if (named)
		return named;
	n = readlink("/proc/self/exe", path, sizeof(path) - 64);
	path[n > 0 ? n : 0] = '\0';
	if (strrchr(path, '/'))
		strcpy(strrchr(path, '/'), "/../../tools/serve/uffd-serve");
	return path;
}

static void run_uffd_serve(const char *memory, int out, const char *const *more)
{
	const char *argv[32] = { "uffd-serve", "--json", "--socket", scratch(FILE_SOCKET),
				 "--memory",   memory,	 "--engine", "auto" };
	size_t n = 8;

	if (engine != LIBUFFD_ENGINE_AUTO)
		argv[7] = libuffd_engine_name(engine);
	while (*more && n < 31)
		argv[n++] = *more++;
	dup2(out, STDOUT_FILENO);
	execv(uffd_serve(), (char *const *)(uintptr_t)argv);
	fprintf(stderr, "%s: %s\n", uffd_serve(), strerror(errno));
	_exit(127);
}

/* "... engine uring, ..." */
static void note_engine(const char *line)
{
	const char *at = strstr(line, "engine ");

	for (uint32_t e = 1; at && libuffd_engine_name(e); e++) {
		const char *name = libuffd_engine_name(e);

		if (!strncmp(at + strlen("engine "), name, strlen(name)))
			engines_ran |= UINT32_C(1) << e;
	}
}

/* Its message, without what JSON has around it: no word of these needs undoing. */
static const char *words_of(char *line)
{
	static const char key[] = "\"message\":\"";
	char *at = strstr(line, key);

	if (!at)
		return line;
	at += strlen(key);
	at[strcspn(at, "\"\n")] = '\0';
	return at;
}

const char *served_begin(struct served *s, const char *memory, int cpu, const char *const *more)
{
	static const char *const none[] = { NULL };
	static char line[1024];
	int out[2];

	if (pipe2(out, O_CLOEXEC))
		die("pipe: %s", strerror(errno));
	s->pid = child(cpu);
	if (s->pid == 0)
		run_uffd_serve(memory, out[1], more ? more : none);
	close(out[1]);
	s->said = fdopen(out[0], "r");
	while (fgets(line, sizeof(line), s->said)) {
		if (strstr(line, "\"event\":\"ready\"")) {
			note_engine(line);
			return NULL;
		}
		if (strstr(line, "\"event\":\"error\"")) {
			served_end(s);
			return words_of(line);
		}
	}
	die("%s does not run", uffd_serve());
}

void served_says(struct served *s, const char *event)
{
	char line[1024], want[64];

	snprintf(want, sizeof(want), "\"event\":\"%s\"", event);
	while (fgets(line, sizeof(line), s->said))
		if (strstr(line, want))
			return;
	die("uffd-serve has ended without '%s'", event);
}

void served_end(struct served *s)
{
	child_end(s->pid, SIGKILL);
	fclose(s->said);
}

/* ---- Monitors ---------------------------------------------------------------------------------- */

static int connect_to(const char *path)
{
	struct sockaddr_un to = { .sun_family = AF_UNIX };
	int sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (strlen(path) >= sizeof(to.sun_path))
		die("%s is too long for a socket's name; --dir chooses another", path);
	memcpy(to.sun_path, path, strlen(path));
	if (sock < 0 || connect(sock, (const struct sockaddr *)&to, sizeof(to)))
		die("%s: %s", path, strerror(errno));
	return sock;
}

/* The spare pages, which show that it is at work, begin where the file does. */
void machine_begin(struct machine *m, const struct arena *a)
{
	static const char region[] = "{\"base_host_virt_addr\":%llu,\"size\":%zu,\"offset\":0,"
				     "\"page_size\":%zu,\"page_size_kib\":%zu}";
	unsigned char *spare = a->mem + a->pages * page;
	char text[512];
	size_t n = 0;

	m->arena = a;
	m->u = open_uffd(0, MACHINE_FEATURES, 0);
	watch(m->u, a->mem, arena_len(a), LIBUFFD_MODE_MISSING);
	text[n++] = '[';
	n += (size_t)snprintf(text + n, sizeof(text) - n, region,
			      (unsigned long long)address_of(a->mem), a->pages * page, page, page);
	text[n++] = ',';
	n += (size_t)snprintf(text + n, sizeof(text) - n, region,
			      (unsigned long long)address_of(spare), SPARE_PAGES * page, page,
			      page);
	text[n++] = ']';
	m->sock = connect_to(scratch(FILE_SOCKET));
	must("libuffd_send", libuffd_send(m->sock, m->u, text, n));
	touch_spare(a, READY);
}

void machine_end(struct machine *m)
{
	must("libuffd_unregister",
	     libuffd_unregister(m->u, address_of(m->arena->mem), arena_len(m->arena)));
	libuffd_close(m->u);
	close(m->sock);
}
