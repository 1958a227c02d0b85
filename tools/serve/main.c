/* SPDX-License-Identifier: MIT */
#include "serve.h"

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "say.h"

#define LAST_ANSWERS SECOND /* for faults that are under way when we end */
#define IMPATIENCE (SECOND / 200)

static struct serve serve;

/* ---- Signals -------------------------------------------------------------------------------- */

static struct watch signals = { .fd = -1 };

static void begin_to_end(struct serve *sv)
{
	if (sv->draining) {
		sv->over = true;
		return;
	}
	sv->draining = true;
	sv->drain_until = now_ns() + sv->o.drain_ns;
	/* Before it is said: whoever hears it may try. */
	listen_close();
	notify("STOPPING=1\nSTATUS=Fetching what %zu machines lack", vm_count(sv, VM_SERVED));
	say("draining", NULL, 0, "ending: nobody is accepted any more, %zu machines lack pages",
	    vm_count(sv, VM_SERVED));
	for (struct vm *vm = sv->vms; vm && sv->o.drain_ns; vm = vm->next)
		if (vm->state == VM_SERVED)
			vm_fill(sv, vm, 0);
}

static void print_stats(const struct serve *sv)
{
	char *text = stats_text(sv, sv->o.json ? STATS_JSON : STATS_TEXT);

	if (text)
		say_answer(text);
	free(text);
}

static void signalled(struct watch *w, uint32_t events)
{
	struct signalfd_siginfo info;

	(void)events;
	if (read(w->fd, &info, sizeof(info)) != sizeof(info))
		return;
	if (info.ssi_signo == SIGUSR1)
		print_stats(&serve);
	else
		begin_to_end(&serve);
}

/* Blocked before there is any thread, so that they come here alone. */
static int take_signals(struct why *why)
{
	sigset_t set;

	signal(SIGPIPE, SIG_IGN);
	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGUSR1);
	sigprocmask(SIG_BLOCK, &set, NULL);
	signals.ready = signalled;
	signals.fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	if (signals.fd < 0 || loop_watch(&signals, EPOLLIN) < 0)
		return refuse(why, -errno, "signals: %s", strerror(errno));
	return 0;
}

/* ---- The server ----------------------------------------------------------------------------- */

static pthread_t runner;
static bool running;
static int run_result;
static struct watch ended = { .fd = -1 };

/* Nothing but to learn when a thread that serves has ended, and why. */
static void *run(void *server)
{
	uint64_t one = 1;

	run_result = libuffd_server_run(server);
	if (write(ended.fd, &one, sizeof(one)) < 0)
		abort();
	return NULL;
}

static void has_ended(struct watch *w, uint32_t events)
{
	uint64_t n;

	(void)events;
	if (read(w->fd, &n, sizeof(n)) < 0)
		return;
	serve.over = true;
	serve.failure = run_result ? run_result : -ESHUTDOWN;
}

static int start_server(struct serve *sv, struct why *why)
{
	struct libuffd_server_opts opts = LIBUFFD_SERVER_OPTS_INIT;
	int ret = notice_open(sv);

	if (ret)
		return refuse(why, ret, "notices: %s", strerror(-ret));
	opts.engine = sv->o.engine;
	opts.threads = sv->o.threads;
	opts.depth = sv->o.depth;
	opts.notice = notice_tell;
	ret = libuffd_server_new(&opts, &sv->server);
	if (ret)
		return refuse(why, ret, "the %s engine cannot be had: %s",
			      sv->o.engine ? libuffd_engine_name(sv->o.engine) : "server's",
			      strerror(-ret));
	ended.ready = has_ended;
	ended.fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (ended.fd < 0 || loop_watch(&ended, EPOLLIN) < 0)
		return refuse(why, -errno, "eventfd: %s", strerror(errno));
	/* What was kept first; then its own errors, which are errors of the start. */
	ret = keep_adopt(sv, why);
	if (ret)
		return ret;
	ret = libuffd_server_start(sv->server);
	if (ret == 0)
		ret = -pthread_create(&runner, NULL, run, sv->server);
	running = ret == 0;
	return ret ? refuse(why, ret, "threads: %s", strerror(-ret)) : 0;
}

static void stop_server(struct serve *sv)
{
	libuffd_server_stop(sv->server);
	if (running)
		pthread_join(runner, NULL);
	libuffd_server_free(sv->server);
	notice_close();
	if (ended.fd >= 0)
		close(ended.fd);
}

/* ---- From start to end ---------------------------------------------------------------------- */

/* Each machine takes three descriptors, and each that is about to come two. */
static void take_descriptors(void)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
		limit.rlim_cur = limit.rlim_max;
		setrlimit(RLIMIT_NOFILE, &limit);
	}
}

/* If no way in is open to ask the kernel it is tried: what cannot be done is told then. */
static bool kernel_poisons(void)
{
	struct libuffd_caps caps = LIBUFFD_CAPS_INIT;

	return libuffd_probe(&caps) < 0 || !caps.features || caps.features & LIBUFFD_FEATURE_POISON;
}

/* Whatever has a name, as whoever started us; then the rest as whom we become. */
static int start(struct serve *sv, struct why *why)
{
	int ret = loop_open();

	if (ret)
		return refuse(why, ret, "epoll: %s", strerror(-ret));
	take_descriptors();
	sv->page = (uint64_t)sysconf(_SC_PAGESIZE);
	sv->began = now_ns();
	sv->may_poison = kernel_poisons();
	ret = take_signals(why);
	if (ret == 0)
		ret = notify_open(why);
	if (ret == 0)
		ret = keep_open(&sv->o, why);
	if (ret == 0)
		ret = memory_open(&sv->o, &sv->memory, why);
	if (ret == 0)
		ret = replay_open(sv, why);
	if (ret == 0)
		ret = listen_open(sv, why);
	if (ret == 0)
		ret = report_open(sv, why);
	if (ret == 0)
		ret = jail_enter(&sv->o, why);
	if (ret == 0)
		ret = memory_start(&sv->memory, why);
	if (ret == 0)
		ret = start_server(sv, why);
	if (ret == 0)
		ret = replay_start(sv, why);
	if (ret == 0)
		ret = report_start(sv, why);
	return ret;
}

static void say_ready(const struct serve *sv)
{
	bool cannot = sv->o.on_error == ON_ERROR_POISON && !sv->may_poison;

	say("ready", NULL, 0, "serving %s: %.1f MiB, engine %s, on error: %s%s", sv->memory.name,
	    (double)sv->memory.len / 1048576,
	    libuffd_engine_name((uint32_t)libuffd_server_engine(sv->server)),
	    on_error_name(cannot ? ON_ERROR_FAIL : sv->o.on_error),
	    cannot ? ", since this kernel cannot poison" : "");
	notify("READY=1\nSTATUS=Serving %s", sv->memory.name);
}

static uint64_t tick(struct serve *sv, uint64_t now)
{
	uint64_t again = SECOND, watchdog = notify_watchdog();

	listen_tick();
	vm_tick(sv);
	report_tick(sv);
	memory_tick(&sv->memory);
	notify("WATCHDOG=1");
	if (watchdog && watchdog < again)
		again = watchdog;
	return now + again;
}

static bool is_over(const struct serve *sv)
{
	if (sv->over)
		return true;
	if (!sv->draining)
		return false;
	return now_ns() >= sv->drain_until || (!vm_count(sv, VM_SERVED) && !conn_talking(sv));
}

static uint64_t least(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

static int serve_on(struct serve *sv)
{
	uint64_t next = now_ns();
	int ret = 0;

	while (ret == 0 && !is_over(sv)) {
		uint64_t now = now_ns(), due;

		if (now >= next)
			next = tick(sv, now);
		if (vm_impatient(sv))
			vm_hurry(sv);
		conn_tick(sv);
		due = least(next, conn_due(sv));
		if (sv->draining)
			due = least(due, sv->drain_until);
		if (vm_impatient(sv))
			due = least(due, now + IMPATIENCE);
		ret = loop_turn(due);
	}
	return ret;
}

static void end(struct serve *sv)
{
	listen_close();
	if (running && !sv->failure)
		libuffd_server_drain(sv->server, LAST_ANSWERS);
	if (sv->server)
		notice_take_all(sv);
	conn_end_all(sv);
	vm_leave_all(sv);
	report_close(sv);
	stop_server(sv);
	replay_close(sv);
	memory_close(&sv->memory);
	keep_close();
	notify_close();
	if (signals.fd >= 0)
		close(signals.fd);
	loop_close();
}

int main(int argc, char **argv)
{
	struct serve *sv = &serve;
	struct why why = { "" };
	int status, ret;

	if (options_parse(argc, argv, &sv->o, &status))
		return fflush(stdout) ? EXIT_TROUBLE : status;
	say_setup(sv->o.json);
	sv->record_fd = -1;
	ret = start(sv, &why);
	if (ret) {
		say("error", NULL, 0, "%s", why.text);
		end(sv);
		return EXIT_TROUBLE;
	}
	say_ready(sv);
	ret = serve_on(sv);
	if (ret == 0)
		ret = sv->failure;
	if (ret)
		say("error", NULL, 0, "cannot go on: %s", strerror(-ret));
	end(sv);
	if (sv->let_down)
		say("ended", NULL, 0, "ended, and left %llu machines without pages",
		    (unsigned long long)sv->let_down);
	else
		say("ended", NULL, 0, "ended");
	return ret || sv->let_down ? EXIT_TROUBLE : EXIT_SERVED;
}
