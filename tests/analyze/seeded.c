/* SPDX-License-Identifier: MIT */
/* Mistakes for scripts/analyze: a tool that does not find its own does not work. Nothing is built of this. */
#include <stdlib.h>

int uses_what_is_freed(void);
int looks_behind_the_end(void);

int uses_what_is_freed(void)
{
	int *p = malloc(sizeof(*p));

	if (!p)
		return -1;
	*p = 1;
	free(p);
	return *p;
}

int looks_behind_the_end(void)
{
	int two[2] = { 1, 2 };

	return two[2];
}
