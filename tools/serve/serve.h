/* SPDX-License-Identifier: MIT */
/*
 * uffd-serve: a page server for virtual machine monitors, on libuffd-server.
 *
 *   main.c     from start to end: what is opened in which order, signals, the turns of the main thread
 *   options.c  the command line                    say.c      messages
 *   loop.c     what the main thread waits for      peer.c     who is at the other end
 *   listen.c   sockets, also systemd's             conn.c     a monitor's connection: bytes and descriptors
 *   wire.c     what these bytes say                vm.c       one virtual machine, from its message to its end
 *   notice.c   what the server tells               memory.c   where bytes come from
 *   nbd.c      from another machine: requests, connections    nbd-uri.c  where that is
 *   nbd-map.c  where there are only zeros
 *   replay.c   recording one machine, replaying to the others
 *   stats.c    figures                             report.c   where these are asked for
 *   notify.c   telling systemd                     jail.c     giving up rights
 *   keep.c     what outlives us
 *
 * Two kinds of threads: those of the library answer faults, and need nobody else for it, but for one that speaks to an NBD
 * server (nbd.c) if the bytes come from there; the main one does all the rest, and nothing here is seen by any other (but
 * for the queue of notice.c).
 */
#ifndef SERVE_SERVE_H
#define SERVE_SERVE_H

#include <stdbool.h>
#include <stdint.h>

#include <uffd/server.h>

#include "loop.h"
#include "memory.h"
#include "options.h"
#include "peer.h"
#include "wire.h"
#include "why.h"

/* Entries of a record, and room for more. */
struct order {
	struct libuffd_record_entry *entry;
	size_t n, room;
};

enum vm_state {
	VM_SERVED,
	VM_COMPLETE, /* has every page, and needs nobody any more */
	VM_FAILED,   /* is not served any more: who touches an absent page waits */
	VM_REFUSED,  /* never was: its message made no sense, but its userfaultfd came */
	VM_STATES
};

struct vm_region {
	struct wire_region wire;
	uint64_t id; /* the server's */
	bool complete;
	uint64_t state;		   /* where in the machine's file of states */
	struct libuffd_stats last; /* once it is complete: then the server forgets it */
};

#define KEEP_NAME 64  /* bytes of the name that a supervisor has for a machine */
#define VM_STRANGE 16 /* addresses of no region that wait for poison */

struct vm {
	struct vm *next;
	uint64_t id;
	uint64_t conn; /* over which it came */
	struct peer peer;
	struct watch exit; /* of the peer, by its pidfd */
	bool watched;
	unsigned int lingers; /* seconds that its memory has outlived the peer */
	int fd;		      /* its userfaultfd, as long as @u is NULL; or -1 */
	struct libuffd *u;
	uint64_t space; /* the server's; 0: none */
	struct vm_region *region;
	size_t regions, complete;
	enum vm_state state;
	uint64_t began; /* now_ns() */
	uint64_t errors, unknown;
	uint64_t strange[VM_STRANGE];
	size_t strangers;
	struct libuffd_stats last; /* when they were last looked at */
	int state_fd;		   /* keep.c: what outlives us; or -1 */
	char kept[KEEP_NAME];	   /* under which name; "": by nobody */
};

struct conn;

struct serve {
	struct options o;
	struct memory memory;
	struct libuffd_server *server;
	uint64_t page; /* the system's */
	bool may_poison;
	uint64_t began; /* now_ns() */

	struct vm *vms; /* newest first */
	struct conn *conns;
	uint64_t last_id; /* of VMs and connections */
	uint64_t vms_ever, refused_ever, failed_ever, let_down;

	/* One machine is recorded, and what was recorded once is replayed to each. */
	uint64_t recorded; /* its id */
	int record_fd;
	bool recording;
	struct order replay;

	bool draining;
	uint64_t drain_until;
	bool over;   /* the main loop ends */
	int failure; /* why: -errno of a thread that serves */
};

/* ---- vm.c --------------------------------------------------------------------------------------- */

/* Another server served it. After an error vm_reject() it. */
int vm_take_over(struct serve *sv, struct vm *vm, const struct wire_layout *layout,
		 struct why *why);
/* A userfaultfd came; it is the machine's from now on. NULL: out of memory, and @fd is still the caller's. */
struct vm *vm_new(struct serve *sv, const struct peer *peer, uint64_t conn, int fd);
/* Serve it. After an error vm_reject() it. */
int vm_serve(struct serve *sv, struct vm *vm, const struct wire_layout *layout, struct why *why);
/*
 * The machine that this userfaultfd is already, by that or by its memory, which may have connected once more; NULL: it
 * is a new one.
 */
struct vm *vm_known(const struct serve *sv, const struct peer *peer, int fd,
		    const struct wire_layout *layout);
/* It has, and says that its memory is what it was. */
int vm_again(struct serve *sv, struct vm *vm, uint64_t conn, const struct wire_layout *layout,
	     struct why *why);
/* It was refused, and there is another for its userfaultfd now. */
void vm_forget(struct serve *sv, struct vm *vm);
/* It cannot be served: the policy is followed, and nobody reads zeros for that. */
void vm_reject(struct serve *sv, struct vm *vm, const char *why);
/* @stats is the region's, with COMPLETE. */
void vm_notice(struct serve *sv, const struct libuffd_notice *notice,
	       const struct libuffd_stats *stats);
/* Fetch all that it lacks, at this rate for all of it. */
void vm_fill(struct serve *sv, struct vm *vm, uint64_t rate);
/* Once a second. */
void vm_tick(struct serve *sv);
/* Somebody waits for what could not be answered while the layout changed: try again, and soon. */
bool vm_impatient(const struct serve *sv);
void vm_hurry(struct serve *sv);
/* We end. Machines that lack pages are treated as the policy says. */
void vm_leave_all(struct serve *sv);
size_t vm_count(const struct serve *sv, enum vm_state state);
const char *vm_state_name(enum vm_state state);

/* ---- conn.c ------------------------------------------------------------------------------------- */

/* Somebody has connected. The socket is taken. */
void conn_new(struct serve *sv, int sock);
/* Tell the monitor by closing the connection. There may be none any more. */
void conn_end(struct serve *sv, uint64_t id);
/* When to call conn_tick(); UINT64_MAX: nobody is late. */
uint64_t conn_due(const struct serve *sv);
void conn_tick(struct serve *sv);
/* How many are about to say something. */
size_t conn_talking(const struct serve *sv);
void conn_end_all(struct serve *sv);

/* ---- listen.c ----------------------------------------------------------------------------------- */

int listen_open(struct serve *sv, struct why *why);
/* A socket of a name, for whoever answers there. Returns it, or -errno. */
int listen_at(const char *path, mode_t mode, struct why *why);
/* Take the name away again; possible also from within a jail, given the right to. */
void listen_forget(int sock);
/* Try again, if there were no descriptors left. */
void listen_tick(void);
void listen_close(void);

/* ---- notice.c ----------------------------------------------------------------------------------- */

int notice_open(struct serve *sv);
void notice_tell(void *ctx, const struct libuffd_notice *notice); /* any thread */
void notice_take_all(struct serve *sv);
void notice_close(void);

/* ---- replay.c ----------------------------------------------------------------------------------- */

int replay_open(struct serve *sv, struct why *why);
/* The server is there. */
int replay_start(struct serve *sv, struct why *why);
uint64_t replay_key(const struct vm *vm, size_t region);
/* Its regions have been added. */
void replay_begin(struct serve *sv, const struct vm *vm);
/* It has all its pages, or is no more: if it is the one that is recorded, that is all of it. */
void replay_end(struct serve *sv, const struct vm *vm);
void replay_close(struct serve *sv);

/* ---- stats.c ------------------------------------------------------------------------------------ */

enum stats_form { STATS_TEXT, STATS_JSON, STATS_PROMETHEUS };

/* All figures; free() it. NULL: out of memory. */
char *stats_text(const struct serve *sv, enum stats_form form);
/* Of one machine. What is not served any more keeps what it had. */
void stats_vm(const struct serve *sv, const struct vm *vm, struct libuffd_stats *sum);
/* Of all machines, and what those did that are gone. */
struct libuffd_stats stats_all(const struct serve *sv);
/* Below so many ns were 99 of 100 faults; 0: there were none. */
uint64_t stats_p99(const uint64_t *latency);

/* ---- report.c ----------------------------------------------------------------------------------- */

int report_open(struct serve *sv, struct why *why);
/* As whom we have become: what cannot be kept up is better known now. */
int report_start(struct serve *sv, struct why *why);
void report_tick(struct serve *sv);
void report_close(struct serve *sv);

/* ---- notify.c ----------------------------------------------------------------------------------- */

int notify_open(struct why *why);
__attribute__((format(printf, 1, 2))) void notify(const char *format, ...);
bool notify_is_on(void);
/* With descriptors. -errno. */
int notify_fds(const char *text, const int *fds, size_t n);
/* How often systemd wants to hear of us, in ns; 0: not at all. */
uint64_t notify_watchdog(void);
void notify_close(void);

/* ---- keep.c ------------------------------------------------------------------------------------- */

int keep_open(const struct options *o, struct why *why);
/* There is a supervisor, and what he was told to keep outlives us. */
bool keep_on(void);
/* systemd has passed it, under a name of ours. */
bool keep_is_name(const char *name);
int keep_passed(const char *name, int fd);
/* Go on with all that was kept. The server has not been started: see state_fd in <uffd/server.h>. */
int keep_adopt(struct serve *sv, struct why *why);
/* A machine is about to be served, as this. */
int keep_begin(const struct serve *sv, struct vm *vm, const struct wire_layout *l, struct why *why);
/* Another server has supplied all of it. */
bool keep_is_complete(const struct vm *vm, const struct vm_region *r);
void keep_drop(struct vm *vm);
void keep_close(void);

/* ---- jail.c ------------------------------------------------------------------------------------- */

/* What to become is looked up before anything is given up. */
int jail_enter(const struct options *o, struct why *why);

#endif
