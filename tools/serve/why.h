/* SPDX-License-Identifier: MIT */
/* The cause of a refusal in words, beside the errno that is returned. */
#ifndef SERVE_WHY_H
#define SERVE_WHY_H

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>

struct why {
	char text[256];
};

/* Returns @error, so that whoever refuses can say why and return in one line. */
__attribute__((format(printf, 3, 4))) static inline int refuse(struct why *why, int error,
							       const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vsnprintf(why->text, sizeof(why->text), format, args);
	va_end(args);
	return error;
}

#endif
