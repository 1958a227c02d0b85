/* SPDX-License-Identifier: MIT */
/*
 * Messages for people on standard error, or with --json for programs, an object a line, on standard output. Whoever
 * does not read them misses some, and is told how many.
 */
#ifndef SERVE_SAY_H
#define SERVE_SAY_H

#include <stdbool.h>
#include <stdint.h>

struct peer;

void say_setup(bool json);
/*
 * Something happened: @event is a word for programs, @peer and @vm (or NULL and 0) whom it is about, and the rest what
 * people read.
 */
__attribute__((format(printf, 4, 5))) void say(const char *event, const struct peer *peer,
					       uint64_t vm, const char *format, ...);
/* What was asked for, on standard output. False: nobody reads it. */
bool say_answer(const char *text);
/* The line that a terminal shows in place of the one before; "" takes it away. */
void say_progress(const char *line);

#endif
