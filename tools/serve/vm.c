/* SPDX-License-Identifier: MIT */
/*
 * One virtual machine: from its userfaultfd's arrival until its process has exited.
 *
 * Its userfaultfd is the one thing to be careful with. When the last descriptor of one is closed the kernel gives zeros
 * to whoever waits, and to whoever comes. So it is closed only when there is nobody left to read them: the memory is
 * gone, has all its pages, or is poisoned where it lacks some; or when the monitor itself holds it open, as Firecracker
 * does. Else it stays open here, with nobody to serve it: who touches an absent page waits.
 */
#include "serve.h"

#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

#include "say.h"

#define ERRORS_SAID 5	     /* of each machine, one by one */
#define POISON_TRIES 5000    /* of a page, a ms apart */
#define KILLED_WITHIN 5000   /* ms */
#define LINGERS_SAID 3	     /* seconds: a process in its last moments is not worth a word */
#define NO_SUCH_PAGE 0x10000 /* any address that the kernel would take for one */

static struct serve *the_serve; /* for watches */

static const char *const states[VM_STATES] = { "served", "complete", "failed", "refused" };

const char *vm_state_name(enum vm_state state)
{
	return states[state];
}

size_t vm_count(const struct serve *sv, enum vm_state state)
{
	size_t n = 0;

	for (const struct vm *vm = sv->vms; vm; vm = vm->next)
		n += vm->state == state;
	return n;
}

/* ---- Letting go of it ----------------------------------------------------------------------- */

static int vm_fd(const struct vm *vm)
{
	return vm->u ? libuffd_fd(vm->u) : vm->fd;
}

/* One that is kept must be seen to end. There may be no descriptors for that just now. */
static void take_up(struct vm *vm)
{
	if (!vm->u && libuffd_adopt(vm->fd, NULL, &vm->u) == 0)
		vm->fd = -1;
}

/* The memory is no more. Any answer would do to learn it; this one changes nothing wherever it is. */
static bool memory_is_gone(const struct vm *vm)
{
	uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);

	return vm->u &&
	       libuffd_writeprotect(vm->u, NO_SUCH_PAGE / page * page + page, page, 0) == -ESRCH;
}

static void detach(struct serve *sv, struct vm *vm)
{
	if (!vm->space)
		return;
	stats_vm(sv, vm, &vm->last);
	libuffd_server_detach(sv->server, vm->space, NULL);
	vm->space = 0;
}

static void unwatch(struct vm *vm)
{
	if (vm->watched)
		loop_unwatch(&vm->exit);
	vm->watched = false;
}

static void vm_free(struct serve *sv, struct vm *vm)
{
	struct vm **at = &sv->vms;

	while (*at != vm)
		at = &(*at)->next;
	*at = vm->next;
	detach(sv, vm);
	unwatch(vm);
	keep_drop(vm);
	if (vm->state_fd >= 0)
		close(vm->state_fd);
	peer_close(&vm->peer);
	libuffd_close(vm->u);
	if (vm->fd >= 0)
		close(vm->fd);
	free(vm->region);
	free(vm);
}

static void say_sum(const struct serve *sv, struct vm *vm, const char *what)
{
	stats_vm(sv, vm, &vm->last);
	say("gone", &vm->peer, vm->id,
	    "%s after %.1f s: %" PRIu64 " of %" PRIu64 " pages, %" PRIu64 " faults", what,
	    (double)(now_ns() - vm->began) / 1e9, vm->last.pages_present, vm->last.pages,
	    vm->last.faults_missing);
}

static void gone(struct serve *sv, struct vm *vm)
{
	say_sum(sv, vm, "has exited");
	replay_end(sv, vm);
	conn_end(sv, vm->conn);
	vm_free(sv, vm);
}

/* Its process has exited. That its memory has too takes another moment, or it was never its own. */
static void exited(struct watch *w, uint32_t events)
{
	struct vm *vm = container_of(w, struct vm, exit);

	(void)events;
	unwatch(vm);
	take_up(vm);
	if (!vm->u || memory_is_gone(vm))
		gone(the_serve, vm);
	else
		vm->lingers = 1;
}

/* ---- What becomes of one that cannot be served ---------------------------------------------- */

/*
 * Whether the kill is on its way. Whose memory is gone is no machine any more: it may have become another program, or
 * before 6.5, where a socket's peer is known by number only, be another process.
 */
static bool kill_it(const struct vm *vm)
{
	int ret;

	if (memory_is_gone(vm))
		return false;
	ret = peer_kill(&vm->peer);
	if (ret < 0 && ret != -ESRCH)
		say("error", &vm->peer, vm->id, "cannot be killed: %s", strerror(-ret));
	else if (ret < 0)
		say("error", &vm->peer, vm->id, "cannot be killed: its process is not known");
	else
		say("killed", &vm->peer, vm->id, "killed, since it cannot have its memory");
	return ret == 0;
}

/* It is served no more, and is told: by its end, or by that of the connection. */
static void give_up(struct serve *sv, struct vm *vm)
{
	detach(sv, vm);
	if (sv->o.on_error == ON_ERROR_KILL)
		kill_it(vm);
	replay_end(sv, vm);
	conn_end(sv, vm->conn);
}

static void fail(struct serve *sv, struct vm *vm, const char *why)
{
	if (vm->state == VM_FAILED)
		return;
	say("failed", &vm->peer, vm->id, "not served any more: %s%s", why,
	    sv->o.on_error == ON_ERROR_KILL ? "" : "; who touches an absent page waits");
	vm->state = VM_FAILED;
	sv->failed_ever++;
	give_up(sv, vm);
}

void vm_forget(struct serve *sv, struct vm *vm)
{
	vm_free(sv, vm);
}

void vm_reject(struct serve *sv, struct vm *vm, const char *why)
{
	say("refused", &vm->peer, vm->id, "refused: %s", why);
	vm->state = VM_REFUSED;
	sv->refused_ever++;
	take_up(vm);
	give_up(sv, vm);
	if (memory_is_gone(vm)) {
		vm_free(sv, vm);
		return;
	}
	/* What was kept stays so: another server, with another file perhaps, may do better. */
	if (sv->o.on_error == ON_ERROR_KILL || *vm->kept)
		return;
	/* Whoever holds it himself waits without us. */
	if (peer_holds(&vm->peer, vm_fd(vm)) == 1)
		vm_free(sv, vm);
}

/* ---- Beginning ------------------------------------------------------------------------------ */

struct vm *vm_new(struct serve *sv, const struct peer *peer, uint64_t conn, int fd)
{
	struct vm *vm = calloc(1, sizeof(*vm));

	if (!vm)
		return NULL;
	the_serve = sv;
	vm->id = ++sv->last_id;
	vm->conn = conn;
	vm->began = now_ns();
	vm->fd = fd;
	vm->state_fd = -1;
	/* Without a pidfd its end is noticed by its memory's. */
	if (peer_copy(peer, &vm->peer) < 0)
		vm->peer.pidfd = -1;
	vm->last.size = sizeof(vm->last);
	vm->exit.fd = vm->peer.pidfd;
	vm->exit.ready = exited;
	vm->watched = vm->peer.pidfd >= 0 && loop_watch(&vm->exit, EPOLLIN) == 0;
	if (!vm->watched)
		vm->lingers = LINGERS_SAID + 1;
	vm->next = sv->vms;
	sv->vms = vm;
	sv->vms_ever++;
	return vm;
}

static int adopt(struct vm *vm, struct why *why)
{
	static const struct {
		uint64_t feature;
		const char *means;
	} unfit[] = {
		{ LIBUFFD_FEATURE_SIGBUS, "with SIGBUS its faults are told to nobody" },
		{ LIBUFFD_FEATURE_EVENT_FORK, "machines that fork are not served (EVENT_FORK)" },
	};
	int ret = libuffd_adopt(vm->fd, NULL, &vm->u);

	if (ret == -ENOTTY)
		return refuse(why, ret, "the descriptor that came is no userfaultfd");
	if (ret)
		return refuse(why, ret, "its userfaultfd cannot be used: %s", strerror(-ret));
	vm->fd = -1;
	for (size_t i = 0; i < sizeof(unfit) / sizeof(*unfit); i++)
		if (libuffd_features(vm->u) & unfit[i].feature)
			return refuse(why, -EOPNOTSUPP, "%s", unfit[i].means);
	if (!(fcntl(libuffd_fd(vm->u), F_GETFL) & O_NONBLOCK))
		return refuse(why, -EINVAL, "its userfaultfd is a blocking one");
	return 0;
}

static int add_region(struct serve *sv, struct vm *vm, size_t nth, struct why *why)
{
	const struct wire_region *w = &vm->region[nth].wire;
	struct libuffd_region r = LIBUFFD_REGION_INIT;
	int ret;

	r.space = vm->space;
	/* Then it runs at native speed, and a balloon's pages are the kernel's zeros, with us or without. */
	r.flags = LIBUFFD_REGION_UNREGISTER;
	r.start = w->start;
	r.len = w->len;
	r.page_size = w->page_size;
	if (vm->state_fd >= 0) {
		r.flags |= LIBUFFD_REGION_STATE;
		r.state_fd = vm->state_fd;
		r.state_offset = vm->region[nth].state;
	}
	r.offset = w->offset;
	r.source = sv->memory.source;
	r.on_error = sv->o.on_error == ON_ERROR_POISON ? LIBUFFD_ON_ERROR_POISON
						       : LIBUFFD_ON_ERROR_FAIL;
	r.retries = sv->o.retries;
	r.retry_ns = 10000000;
	r.window = sv->o.window;
	r.ahead = sv->o.prefetch;
	r.key = replay_key(vm, nth);
	ret = libuffd_server_add_region(sv->server, &r, &vm->region[nth].id);
	switch (ret) {
	case 0:
		return 0;
	case -ERANGE:
		return refuse(why, ret,
			      "region %zu ends at %#" PRIx64 " of the memory, which has %#" PRIx64
			      " bytes",
			      nth, w->offset + w->len, sv->memory.len);
	case -ENOENT:
		return refuse(why, ret,
			      "region %zu at %#" PRIx64 " is not registered with its userfaultfd",
			      nth, w->start);
	case -ESRCH:
		return refuse(why, ret, "its process has exited");
	default:
		return refuse(why, ret, "region %zu at %#" PRIx64 ": %s", nth, w->start,
			      strerror(-ret));
	}
}

static int attach(struct serve *sv, struct vm *vm, struct why *why)
{
	struct libuffd_space_opts opts = LIBUFFD_SPACE_OPTS_INIT;
	int ret;

	/*
	 * The peer's pidfd stays ours: memory that outlives it is served on. And whoever touches an address that
	 * the server knows nothing of waits, since it may be of a region that is about to be added.
	 */
	opts.unknown = LIBUFFD_ON_ERROR_FAIL;
	if (sv->may_poison)
		opts.flags = LIBUFFD_SPACE_POISON;
	ret = libuffd_server_attach(sv->server, vm->u, &opts, &vm->space);
	return ret ? refuse(why, ret, "its userfaultfd cannot be served: %s", strerror(-ret)) : 0;
}

static int add_regions(struct serve *sv, struct vm *vm, const struct wire_layout *layout,
		       struct why *why)
{
	int ret = attach(sv, vm, why);

	for (; vm->regions < layout->n && ret == 0; vm->regions++) {
		vm->region[vm->regions].wire = layout->region[vm->regions];
		ret = add_region(sv, vm, vm->regions, why);
	}
	return ret;
}

static uint64_t len_of(const struct wire_layout *layout)
{
	uint64_t len = 0;

	for (size_t i = 0; i < layout->n; i++)
		len += layout->region[i].len;
	return len;
}

int vm_serve(struct serve *sv, struct vm *vm, const struct wire_layout *layout, struct why *why)
{
	int ret = adopt(vm, why);

	if (ret)
		return ret;
	vm->region = calloc(layout->n, sizeof(*vm->region));
	if (!vm->region)
		return refuse(why, -ENOMEM, "out of memory");
	ret = keep_begin(sv, vm, layout, why);
	if (ret == 0)
		ret = add_regions(sv, vm, layout, why);
	if (ret) {
		keep_drop(vm);
		return ret;
	}
	replay_begin(sv, vm);
	if (sv->draining)
		vm_fill(sv, vm, 0);
	else if (sv->o.fill)
		vm_fill(sv, vm, sv->o.fill_rate);
	say("served", &vm->peer, vm->id, "served: %zu region%s, %.1f MiB", vm->regions,
	    vm->regions == 1 ? "" : "s", (double)len_of(layout) / 1048576);
	return 0;
}

/* Nobody's any more, or about to be when the other server ended. */
static void leave_complete(struct vm *vm, struct vm_region *r)
{
	libuffd_unregister(vm->u, r->wire.start, r->wire.len);
	r->complete = true;
	r->last.pages = r->last.pages_present = r->wire.len / r->wire.page_size;
	vm->complete++;
}

int vm_take_over(struct serve *sv, struct vm *vm, const struct wire_layout *layout, struct why *why)
{
	int ret = adopt(vm, why);

	if (ret == 0)
		ret = attach(sv, vm, why);
	for (; vm->regions < layout->n && ret == 0; vm->regions++) {
		struct vm_region *r = &vm->region[vm->regions];

		r->wire = layout->region[vm->regions];
		if (keep_is_complete(vm, r))
			leave_complete(vm, r);
		else
			ret = add_region(sv, vm, vm->regions, why);
	}
	if (ret)
		return ret;
	if (vm->complete == vm->regions)
		vm->state = VM_COMPLETE;
	else if (sv->o.fill)
		vm_fill(sv, vm, sv->o.fill_rate);
	say("adopted", &vm->peer, vm->id, "served on: %zu region%s, %.1f MiB, %zu complete",
	    vm->regions, vm->regions == 1 ? "" : "s", (double)len_of(layout) / 1048576,
	    vm->complete);
	return 0;
}

/* Each region its share of the rate, so that they end together. */
void vm_fill(struct serve *sv, struct vm *vm, uint64_t rate)
{
	struct libuffd_fill_opts opts = LIBUFFD_FILL_OPTS_INIT;
	double all = 0;
	int ret = 0;

	for (size_t i = 0; i < vm->regions; i++)
		all += (double)vm->region[i].wire.len;
	for (size_t i = 0; i < vm->regions; i++) {
		int one;

		if (vm->region[i].complete)
			continue;
		if (rate)
			opts.rate = 1 + (uint64_t)((double)rate *
						   ((double)vm->region[i].wire.len / all));
		one = libuffd_server_fill(sv->server, vm->region[i].id, &opts);
		/* It has come to be complete, and that is yet to be heard. */
		if (one != -ENOENT && !ret)
			ret = one;
	}
	if (ret)
		say("error", &vm->peer, vm->id, "the rest of its memory is not fetched ahead: %s",
		    strerror(-ret));
}

/* ---- Once more ------------------------------------------------------------------------------- */

static bool is_same_memory(const struct vm *vm, const struct wire_layout *layout)
{
	if (layout->n != vm->regions)
		return false;
	for (size_t i = 0; i < vm->regions; i++)
		if (memcmp(&vm->region[i].wire, &layout->region[i], sizeof(layout->region[i])))
			return false;
	return true;
}

static bool shares_memory(const struct vm *vm, const struct wire_layout *layout)
{
	for (size_t i = 0; i < layout->n; i++)
		for (size_t j = 0; j < vm->regions; j++) {
			const struct wire_region *a = &layout->region[i], *b = &vm->region[j].wire;

			if (a->start < b->start + b->len && b->start < a->start + a->len)
				return true;
		}
	return false;
}

/*
 * Of two that read the same userfaultfd each would miss what the other is told. Without kcmp(2) a machine is known by
 * its memory.
 */
struct vm *vm_known(const struct serve *sv, const struct peer *peer, int fd,
		    const struct wire_layout *layout)
{
	struct vm *refused = NULL;

	for (struct vm *vm = sv->vms; vm; vm = vm->next) {
		int same = same_file(vm_fd(vm), fd);

		if (same < 0)
			same = peer->pid && peer->pid == vm->peer.pid && shares_memory(vm, layout);
		if (same && vm->state != VM_REFUSED)
			return vm;
		if (same)
			refused = vm;
	}
	return refused;
}

int vm_again(struct serve *sv, struct vm *vm, uint64_t conn, const struct wire_layout *layout,
	     struct why *why)
{
	if (vm->state == VM_FAILED)
		return refuse(why, -ESHUTDOWN, "it was given up as vm %" PRIu64, vm->id);
	if (!is_same_memory(vm, layout))
		return refuse(why, -EEXIST, "it is served as vm %" PRIu64 ", with other memory",
			      vm->id);
	if (vm->conn != conn)
		conn_end(sv, vm->conn);
	vm->conn = conn;
	say("again", &vm->peer, vm->id, "has connected again");
	return 0;
}

/* ---- While it is served --------------------------------------------------------------------- */

static struct vm *of_space(const struct serve *sv, uint64_t space)
{
	struct vm *vm = sv->vms;

	while (vm && vm->space != space)
		vm = vm->next;
	return vm;
}

static struct vm_region *region_at(struct vm *vm, uint64_t address)
{
	for (size_t i = 0; i < vm->regions; i++)
		if (address - vm->region[i].wire.start < vm->region[i].wire.len)
			return &vm->region[i];
	return NULL;
}

static void region_complete(struct serve *sv, struct vm *vm, uint64_t id,
			    const struct libuffd_stats *stats)
{
	for (size_t i = 0; i < vm->regions; i++)
		if (vm->region[i].id == id && !vm->region[i].complete) {
			vm->region[i].complete = true;
			vm->region[i].last = *stats;
			vm->region[i].last.pages = vm->region[i].last.pages_present =
				vm->region[i].wire.len / vm->region[i].wire.page_size;
			vm->complete++;
		}
	if (vm->complete < vm->regions || vm->state != VM_SERVED)
		return;
	vm->state = VM_COMPLETE;
	say("complete", &vm->peer, vm->id, "has all its memory, after %.1f s",
	    (double)(now_ns() - vm->began) / 1e9);
	replay_end(sv, vm);
}

static void error(struct serve *sv, struct vm *vm, const struct libuffd_notice *n)
{
	if (vm->errors++ < ERRORS_SAID) {
		const struct vm_region *r = region_at(vm, n->address);

		say("error", &vm->peer, vm->id,
		    "%" PRIu64 " bytes at %#" PRIx64 " cannot be had (%s at %#" PRIx64
		    "): %s; who touches them %s",
		    n->len, n->address, sv->memory.name,
		    r ? n->address - r->wire.start + r->wire.offset : 0, strerror(-n->error),
		    n->done == LIBUFFD_DONE_POISONED ? "gets SIGBUS" : "waits");
	} else if (vm->errors == ERRORS_SAID + 1) {
		say("error", &vm->peer, vm->id, "more bytes cannot be had; the statistics count");
	}
}

/* The page, however large it is there. -EAGAIN: later. */
static int poison_at(const struct vm *vm, uint64_t page, uint64_t address)
{
	struct libuffd_answer a = LIBUFFD_ANSWER_INIT;
	int ret;

	a.kind = LIBUFFD_ANSWER_POISON;
	a.page_size = a.len = page;
	a.start = address & ~(page - 1);
	ret = libuffd_resolve(vm->u, &a, NULL);
	for (size_t i = 0; ret == -EINVAL && i < vm->regions; i++) {
		a.page_size = a.len = vm->region[i].wire.page_size;
		a.start = address & ~(a.len - 1);
		ret = libuffd_resolve(vm->u, &a, NULL);
	}
	return ret;
}

/* Those of no region. While the layout changes they cannot be answered: vm_tick() tries again. */
static void poison_strangers(struct serve *sv, struct vm *vm)
{
	size_t left = 0;

	for (size_t i = 0; i < vm->strangers && vm->state == VM_SERVED; i++) {
		int ret = poison_at(vm, sv->page, vm->strange[i]);

		if (ret == -EAGAIN)
			vm->strange[left++] = vm->strange[i];
		else if (ret && ret != -ENOENT && ret != -ESRCH)
			fail(sv, vm, "an address of no region was touched, and cannot be poisoned");
	}
	vm->strangers = left;
}

/* It is registered with its userfaultfd, but the message did not say what is to be there. */
static void unknown(struct serve *sv, struct vm *vm, uint64_t address)
{
	/* While regions were being added this may have been told of them. */
	if (region_at(vm, address))
		return;
	if (vm->unknown++ < ERRORS_SAID)
		say("error", &vm->peer, vm->id,
		    "touches %#" PRIx64 ", which its message did not name", address);
	if (sv->o.on_error != ON_ERROR_POISON || vm->strangers == VM_STRANGE) {
		fail(sv, vm, "it touched an address of no region");
		return;
	}
	vm->strange[vm->strangers++] = address;
	poison_strangers(sv, vm);
}

void vm_notice(struct serve *sv, const struct libuffd_notice *n, const struct libuffd_stats *stats)
{
	struct vm *vm = of_space(sv, n->space);
	char why[128];

	/* It ended while this was on its way. */
	if (!vm)
		return;
	switch (n->type) {
	case LIBUFFD_NOTICE_COMPLETE:
		region_complete(sv, vm, n->region, stats);
		break;
	case LIBUFFD_NOTICE_ERROR:
		error(sv, vm, n);
		break;
	case LIBUFFD_NOTICE_UNKNOWN:
		unknown(sv, vm, n->address);
		break;
	case LIBUFFD_NOTICE_FAILED:
		snprintf(why, sizeof(why), "%s", strerror(-n->error));
		fail(sv, vm, why);
		break;
	case LIBUFFD_NOTICE_GONE:
		/* By an answer that the kernel refused. The pidfd may be behind. */
		gone(sv, vm);
		break;
	}
}

bool vm_impatient(const struct serve *sv)
{
	for (const struct vm *vm = sv->vms; vm; vm = vm->next)
		if (vm->strangers && vm->state == VM_SERVED)
			return true;
	return false;
}

void vm_hurry(struct serve *sv)
{
	for (struct vm *vm = sv->vms; vm; vm = vm->next)
		poison_strangers(sv, vm);
}

void vm_tick(struct serve *sv)
{
	for (struct vm *vm = sv->vms, *next; vm; vm = next) {
		next = vm->next;
		if (vm->space)
			stats_vm(sv, vm, &vm->last);
		if (!vm->lingers)
			continue;
		take_up(vm);
		if (memory_is_gone(vm))
			gone(sv, vm);
		else if (vm->lingers++ == LINGERS_SAID)
			say("orphan", &vm->peer, vm->id,
			    "has exited, but its memory is another process's too: served on");
	}
}

/* ---- When we end ---------------------------------------------------------------------------- */

static void pause_ms(void)
{
	struct timespec t = { 0, 1000000 };

	nanosleep(&t, NULL);
}

/* Nobody else reads it any more. Without that nothing can be answered while the layout changes. */
static void read_away(const struct vm *vm)
{
	struct libuffd_event e[16];

	while (libuffd_read_events(vm->u, e, 16) > 0)
		;
}

/* All that is absent in a region. 0, or the errno that stands in the way. */
static int poison_region(const struct vm *vm, const struct wire_region *w)
{
	uint64_t at = w->start, end = w->start + w->len;
	unsigned int tries = 0;

	while (at < end) {
		struct libuffd_answer a = LIBUFFD_ANSWER_INIT;
		size_t done = 0;
		int ret;

		a.kind = LIBUFFD_ANSWER_POISON;
		a.page_size = w->page_size;
		a.start = at;
		a.len = end - at;
		ret = libuffd_resolve(vm->u, &a, &done);
		at += done;
		if (done)
			tries = 0;
		if (ret == -ENOENT) {
			at += w->page_size; /* not mapped any more */
		} else if (ret == -EAGAIN && tries++ < POISON_TRIES) {
			read_away(vm);
			pause_ms();
		} else if (ret) {
			return ret == -ESRCH ? 0 : ret;
		}
	}
	return 0;
}

static bool poison_all(const struct vm *vm)
{
	int ret = 0;

	for (size_t i = 0; i < vm->regions && ret == 0; i++)
		ret = poison_region(vm, &vm->region[i].wire);
	if (ret)
		say("error", &vm->peer, vm->id, "cannot be poisoned: %s", strerror(-ret));
	return ret == 0;
}

/* From now on the kernel serves it alone: pages that a balloon gives back are zeros. */
static void unregister(const struct vm *vm)
{
	for (size_t i = 0; i < vm->regions; i++)
		libuffd_unregister(vm->u, vm->region[i].wire.start, vm->region[i].wire.len);
}

static bool kill_and_wait(const struct vm *vm)
{
	struct pollfd p = { .fd = vm->peer.pidfd, .events = POLLIN };

	return kill_it(vm) && poll(&p, 1, KILLED_WITHIN) == 1;
}

/* It lacks pages, and nobody will bring them. */
static void let_down(struct serve *sv, struct vm *vm)
{
	bool poison = vm->state == VM_SERVED && vm->u && sv->may_poison;

	sv->let_down++;
	if (sv->o.on_error == ON_ERROR_POISON && poison && poison_all(vm)) {
		unregister(vm);
		say("left", &vm->peer, vm->id,
		    "left: who touches a page that it lacks gets SIGBUS");
		return;
	}
	if (sv->o.on_error != ON_ERROR_KILL && peer_holds(&vm->peer, vm_fd(vm)) == 1) {
		say("left", &vm->peer, vm->id,
		    "left: it holds its userfaultfd, so that who touches a page that it lacks waits");
		return;
	}
	if (kill_and_wait(vm))
		return;
	if (poison && poison_all(vm)) {
		unregister(vm);
		say("left", &vm->peer, vm->id,
		    "left: who touches a page that it lacks gets SIGBUS");
		return;
	}
	say("error", &vm->peer, vm->id,
	    "left, and can be neither killed nor poisoned: pages that it lacks may read as zeros");
}

/* Somebody has its descriptor, and another server will come. */
static void leave_kept(struct vm *vm)
{
	say("left", &vm->peer, vm->id, "left to the next server");
	*vm->kept = '\0';
}

void vm_leave_all(struct serve *sv)
{
	while (sv->vms) {
		struct vm *vm = sv->vms;

		detach(sv, vm);
		replay_end(sv, vm);
		if (vm->state == VM_COMPLETE)
			unregister(vm);
		else if (*vm->kept && keep_on() && (!vm->u || !memory_is_gone(vm)))
			leave_kept(vm);
		else if (!vm->u || !memory_is_gone(vm))
			let_down(sv, vm);
		vm_free(sv, vm);
	}
}
