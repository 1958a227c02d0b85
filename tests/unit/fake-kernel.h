/* SPDX-License-Identifier: MIT */
/*
 * A kernel for the server to run on: address spaces, their threads, their userfaultfds, and an engine that
 * brings its messages and reads. One thread of this process runs it all, so that a seed tells what happens.
 *
 * What a page may show is the test's to say: it keeps a law in every page, which goes where the page goes, and
 * is asked whenever something is installed or seen.
 */
#ifndef FAKE_KERNEL_H
#define FAKE_KERNEL_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "srv.h"

#define FK_PAGE UINT64_C(4096)
#define FK_BASE UINT64_C(0x7f5500000000)
#define FK_SLOTS 80 /* pages that an address space has room for */
#define FK_THREADS 4
/* ns: whoever waits so long has nothing to do but to look, now and then, who is still there. */
#define FK_LONG 400000000
#define FK_MUTATORS 3
#define FK_EVENTS 4 /* of one system call */
#define FK_FDS 1024
#define FK_FILES 40 /* shared memory */
#define FK_FILE_PAGES 20

/* The first and the last eight bytes of a page; what does not fit together is no page of a source. */
#define FK_ZERO UINT64_C(0)
#define FK_CUT (UINT64_C(1) << 62) /* the end of the page is zeros */
#define FK_OWN (UINT64_C(1) << 61) /* written by the program */
#define FK_TORN UINT64_MAX
/* In memory of this process: what a page begins and ends with that is not there. */
#define FK_HOLE (UINT64_C(1) << 60)

enum fk_content { FK_ABSENT, FK_BYTES, FK_POISON };

enum law {
	LAW_PLAIN,   /* nobody serves it: the kernel's own zeros */
	LAW_SOURCE,  /* what the source has */
	LAW_ZERO,    /* it was dropped, or never had anything */
	LAW_EITHER,  /* it is being dropped; or the process forked meanwhile */
	LAW_UNKNOWN, /* registered, but of no region: never zeros */
	LAW_UNSURE,  /* what mremap added to a mapping that was cut: zeros, or unknown */
};

/* A file in memory. This process has it mapped, and others write to it. */
struct fk_file {
	unsigned char *at;
	uint64_t own
		[FK_FILE_PAGES]; /* what was written there last; 0: nothing but what the server has */
};

struct fk_page {
	uint32_t vma;		       /* 0: nothing is mapped */
	uint8_t content;	       /* enum fk_content; of a file: in the page table */
	bool missing, minor, minds_wp; /* registered for these */
	bool wp;		       /* protected; of a file also when it is absent */
	bool locked;		       /* by mlock() */
	uint8_t busy;		       /* a system call is changing it: 1 + its mutator */
	uint8_t file;		       /* 1 + index; 0: private memory */
	uint8_t file_page;
	uint64_t tag; /* of its bytes, in private memory */

	/* The test's. */
	uint8_t law;
	uint8_t region; /* 1 + index; 0: none */
	bool tail;	/* added by mremap */
	bool own;	/* its content was there before, or was written by the program */
	bool must_ask;	/* before a write */
	bool asked;
	bool may_poison;  /* the kernel refused to install it */
	bool keep_poison; /* bytes must not take it back */
	bool asked_late;  /* but those that the source has by now, for who comes late */
	uint16_t index;	  /* in the region */
	uint16_t from;	  /* page of the source */
};

struct fk_thread {
	enum { FK_RUNS, FK_WAITS, FK_WOKEN } state;
	bool write, read; /* read: its message */
	unsigned int slot;
	uint64_t flags;	     /* of the message */
	unsigned int reader; /* who read it: mm->readers then */
};

struct fk_event {
	uint32_t type;
	uint64_t words[3];
};

/* A thread in a system call that changes the layout. */
struct fk_mutator {
	enum { FK_IDLE, FK_TO_QUEUE, FK_QUEUED, FK_TOLD, FK_TO_ZAP } state;
	struct fk_event event[FK_EVENTS];
	unsigned int n, at;
	unsigned int first, end; /* slots to be emptied when the events are through */
	bool punches;		 /* of a file the pages themselves, not only of the page table */
	struct fk_mm *child;	 /* not born before */
};

struct fk_mm {
	struct fk_mm *next;
	unsigned int id;
	struct fk_page page[FK_SLOTS];
	struct fk_thread thread[FK_THREADS];
	struct fk_mutator mutator[FK_MUTATORS];
	unsigned int queue[FK_MUTATORS], queued; /* mutators whose event waits to be read */
	unsigned int changing;
	uint32_t last_vma;
	unsigned int last_slot;
	bool born, dead, released; /* released: its userfaultfd was closed */
	uint64_t features;
	int fd;		      /* of its userfaultfd, or -1 */
	struct libuffd *u;    /* the handle, once there is one */
	unsigned int readers; /* how many times it was attached */

	/* The test's. */
	bool root, served, failed, owned; /* owned: u is the test's to close */
	bool pidfd, unknown_waits;
	uint64_t space;
};

struct fk {
	struct fk_mm *mms;
	unsigned int ids;
	uint64_t now;
	bool calm;   /* nothing fails any more, and nothing is held back */
	bool blocks; /* the engine is to wait for ever, or FK_LONG, and has nothing to wait for */
	bool no_memory;	    /* mmap() fails */
	unsigned int flaky; /* of 1000 answers are refused for lack of memory; of 1000 reads fail */
	uint64_t refused;   /* EAGAIN because of an event in flight */
	uint64_t faults, given_back; /* messages called back; not called back */
	uint64_t memory_errors, events;
	uint64_t opened, closed; /* userfaultfds */
	struct fk_file file[FK_FILES];
	unsigned int files;
	uint64_t to_copy;				 /* where a move was refused */
	uint64_t installed, continued, moved, not_moved; /* pages; calls */
	uint64_t written;				 /* so many times */
	void (*unregistered)(struct fk_mm *mm);		 /* what happens right after; or NULL */
};
extern struct fk fk;

/* ---- The test's ---------------------------------------------------------------------------------- */

uint64_t rnd(uint64_t n); /* [0, n) */
bool chance(unsigned int percent);
void broken(const char *fmt, ...) __attribute__((format(printf, 1, 2), noreturn));
void trace(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
/* The server puts this into the page (poison: tag is not looked at). */
void law_install(const struct fk_mm *mm, unsigned int slot, enum fk_content content, uint64_t tag,
		 bool wp);
/* The server lets a page of a file be seen. */
void law_map(const struct fk_mm *mm, unsigned int slot, uint64_t tag, bool wp);
/* A thread sees or writes what is there. */
void law_access(const struct fk_mm *mm, unsigned int slot, bool write);
void law_zapped(const struct fk_mm *mm, struct fk_page *p);
/* A read of [offset, offset + len) has failed. */
void law_read_failed(uint64_t offset, uint64_t len);

/* ---- The kernel ----------------------------------------------------------------------------------- */

struct fk_mm *fk_mm_new(uint64_t features); /* with a userfaultfd; not born */
void fk_mm_free(struct fk_mm *mm);
struct libuffd *fk_handle(struct fk_mm *mm, int way);
struct fk_mm *fk_mm_of(const struct libuffd *u);
void fk_reset(void); /* forget every address space */
uint64_t fk_address(unsigned int slot);
unsigned int fk_slot(uint64_t address);

/* Shared memory: its number, or 0 if there are too many. */
unsigned int fk_file(void);
bool fk_cached(const struct fk_page *p); /* the page is in the file */
uint64_t fk_tag(const struct fk_page *p);
struct fk_file *fk_file_of(const struct fk_page *p);
void fk_write_file(struct fk_file *f, unsigned int page); /* whoever has it mapped */
/* Registered at all. */
static inline bool fk_is_registered(const struct fk_page *p)
{
	return p->missing || p->minor || p->minds_wp;
}

bool fk_is_busy(const struct fk_mm *mm, unsigned int first, unsigned int n);
bool fk_registered(const struct fk_mm *mm, unsigned int first, unsigned int n);
/* A thread that runs touches a page; one that was woken tries again. */
void fk_touch(struct fk_mm *mm, struct fk_thread *t);
void fk_signal(struct fk_mm *mm, struct fk_thread *t);
/* A free mutator, or NULL. */
struct fk_mutator *fk_mutator(struct fk_mm *mm);
/* Its events are complete, the layout has changed: begin to tell. */
void fk_mutate(struct fk_mm *mm, struct fk_mutator *m);
void fk_add_event(struct fk_mutator *m, uint32_t type, uint64_t a, uint64_t b, uint64_t c);
void fk_mark_busy(struct fk_mm *mm, const struct fk_mutator *m, unsigned int first, unsigned int n);
/* Let it go on by one step, if it can. */
bool fk_run_mutator(struct fk_mm *mm, struct fk_mutator *m);
bool fk_settled(const struct fk_mm *mm); /* no system call is under way */
void fk_exit(struct fk_mm *mm);

#endif
