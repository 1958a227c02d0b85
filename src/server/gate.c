/* SPDX-License-Identifier: MIT */
/*
 * Readers who cannot lock, and writers who wait for them. A reader counts himself in under the turn that he
 * finds, and out again. A writer who has made something unreachable waits until the count of the other turn
 * was zero, takes it for the turn, and waits for that of the turn before: whoever may have seen what was there
 * is in one of the two, and nobody who comes later keeps him, since those are counted under the turn.
 *
 * A reader who read the turn, and counts himself in late, has not seen anything yet.
 */
#include "srv.h"

void srv_gate_init(struct srv_gate *g)
{
	sem_init(&g->left, 0, 0);
	pthread_mutex_init(&g->lock, NULL);
}

void srv_gate_destroy(struct srv_gate *g)
{
	pthread_mutex_destroy(&g->lock);
	sem_destroy(&g->left);
}

/* Threads have stacks of their own, and nothing else that a signal handler can tell them apart by. */
static unsigned int slot_here(void)
{
	uint64_t stack = (uintptr_t)__builtin_frame_address(0) >> 12;

	return (unsigned int)(stack * UINT64_C(0x9e3779b97f4a7c15) >> 32) % SRV_GATE_SLOTS;
}

atomic_uint *srv_gate_enter(struct srv_gate *g)
{
	atomic_uint *inside = &g->slot[slot_here()].inside[atomic_load(&g->turn) & 1];

	atomic_fetch_add(inside, 1);
	return inside;
}

/* sem_post() is the one way to wake somebody that a signal handler has. */
void srv_gate_leave(struct srv_gate *g, atomic_uint *inside)
{
	atomic_fetch_sub(inside, 1);
	if (atomic_load(&g->awaited))
		sem_post(&g->left);
}

/* A post too many, of who left before it was asked for, only has it look once more. */
static void wait_for(struct srv_gate *g, unsigned int turn)
{
	for (unsigned int i = 0; i < SRV_GATE_SLOTS; i++)
		while (atomic_load(&g->slot[i].inside[turn & 1]))
			sem_wait(&g->left);
}

void srv_gate_wait(struct srv_gate *g)
{
	unsigned int turn;

	pthread_mutex_lock(&g->lock);
	atomic_store(&g->awaited, true);
	turn = atomic_load(&g->turn);
	wait_for(g, turn + 1);
	atomic_store(&g->turn, turn + 1);
	wait_for(g, turn);
	atomic_store(&g->awaited, false);
	while (sem_trywait(&g->left) == 0)
		;
	pthread_mutex_unlock(&g->lock);
}
