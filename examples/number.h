/* SPDX-License-Identifier: MIT */
/* What the examples have in common, and none of them is about: numbers on a command line. */
#ifndef EXAMPLES_NUMBER_H
#define EXAMPLES_NUMBER_H

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>

/* strtoull() takes a sign and blanks; a count has neither. */
static inline bool number(const char *text, uint64_t min, uint64_t max, uint64_t *out)
{
	unsigned long long v;
	char *end;

	if (*text < '0' || *text > '9')
		return false;
	errno = 0;
	v = strtoull(text, &end, 10);
	if (errno || *end || v < min || v > max)
		return false;
	*out = v;
	return true;
}

static inline bool small_number(const char *text, unsigned int min, unsigned int max,
				unsigned int *out)
{
	uint64_t v;

	if (!number(text, min, max, &v))
		return false;
	*out = (unsigned int)v;
	return true;
}

#endif
