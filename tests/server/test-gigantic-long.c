/* SPDX-License-Identifier: MIT */
/* The cases with pages of 1 GiB that take an emulated machine minutes in all. */
#define LONG 1
#include "test-gigantic.c"
