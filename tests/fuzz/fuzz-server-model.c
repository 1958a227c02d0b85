/* SPDX-License-Identifier: MIT */
/*
 * The server's state machine. tests/unit/test-server-model.c has a kernel that does anything at any time, and a
 * model that says what each page may show; here the fuzzer's bytes are what it does, in place of a generator's numbers. So
 * a change of one byte is another choice at one step, and what it learns is which choices lead somewhere new.
 *
 * The first byte says which events the kernel tells, and how it ends; the next two are the seed of what a life begins with, and from
 * then on each choice takes a byte, or two where there are more than 256. When there are no more the program holds still:
 * every fault must have been answered then, no byte be stale, and nothing be left of anything.
 */
#include <stdint.h>

#include "fake-kernel.h"

/* A failure is a crash, and its input says how to get there. */
#undef fail_msg
#define fail_msg(format, name, ...)                           \
	do {                                                  \
		fprintf(stderr, "step %u: %s\n", step, text); \
		abort();                                      \
	} while (0)
#define main model_main
int model_main(int argc, char **argv);
#include "test-server-model.c"
#undef main

#define STEPS 2000

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const uint8_t *bytes;
static size_t left;

static uint8_t next_byte(void)
{
	if (!left)
		return 0;
	left--;
	return *bytes++;
}

static uint64_t rnd_of_bytes(uint64_t n)
{
	uint64_t v;

	/* How it comes to an end has to be fair: always the first of all choices may lead nowhere. */
	if (!left)
		return rnd_of_seed(n);
	v = next_byte();
	for (uint64_t range = 256; range < n; range *= 256)
		v = v << 8 | next_byte();
	return v % n;
}

static uint64_t events_of(uint8_t b)
{
	return b % 4 < 2 ? EVENTS : b % 4 == 2 ? LIBUFFD_FEATURE_EVENT_REMOVE : 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	bool at_rest;
	uint8_t how;

	if (file < 0) {
		make_bytes();
		tracing = getenv("UFFD_MODEL_TRACE");
	}
	bytes = data;
	left = size;
	how = next_byte();
	/* An end in the middle of things is one too. */
	at_rest = how / 4 % 4;
	seed = next_byte();
	seed = seed << 8 | next_byte();
	rnd_of = rnd_of_seed;
	begin_life(events_of(how));
	rnd_of = rnd_of_bytes;
	for (step = 0; left && step < STEPS; step++)
		one_step();
	if (at_rest)
		rest();
	end_life(at_rest);
	return 0;
}
