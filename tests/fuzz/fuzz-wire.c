/* SPDX-License-Identifier: MIT */
/*
 * What a monitor sends to uffd-serve. The first byte says how the rest is cut into pieces: where a message ends, and
 * what it says, must not depend on that; and what is let through must be what the server may be given.
 */
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "wire.h"

#define PAGE 4096

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(bool holds)
{
	if (!holds)
		abort();
}

/* How long the message is, in pieces of this length; *@ret is the last answer. */
static size_t scan(const char *text, size_t len, size_t piece, int *ret)
{
	struct wire_scan s = { 0 };
	struct why why = { "" };
	size_t at = 0, used;

	*ret = 0;
	while (at < len && *ret == 0) {
		size_t n = len - at < piece ? len - at : piece;

		*ret = wire_scan(&s, text + at, n, &used, &why);
		require(used <= n && (*ret || used == n));
		require(*ret >= 0 || *why.text);
		at += used;
	}
	return at;
}

static void check_layout(const struct wire_layout *l)
{
	require(l->n > 0);
	for (size_t i = 0; i < l->n; i++) {
		const struct wire_region *r = &l->region[i];

		require(r->page_size >= PAGE && !(r->page_size & (r->page_size - 1)));
		require(r->len && !((r->start | r->len | r->offset) & (r->page_size - 1)));
		require(r->start + r->len > r->start);
		require(r->offset + r->len > r->offset && r->offset + r->len <= INT64_MAX);
		require(!i || l->region[i - 1].start + l->region[i - 1].len <= r->start);
	}
}

static void parse(const char *text, size_t len)
{
	/* Of its own, so that a byte too many is seen. */
	char *copy = malloc(len ? len : 1);
	struct why why = { "" };
	struct wire_layout l;
	int ret;

	require(copy);
	memcpy(copy, text, len);
	ret = wire_parse(copy, len, PAGE, &l, &why);
	if (ret == 0)
		check_layout(&l);
	else
		require(ret < 0 && *why.text && !l.n && !l.region);
	wire_free(&l);
	free(copy);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	const char *text = (const char *)data + 1;
	int whole, cut;
	size_t len;

	if (!size)
		return 0;
	len = scan(text, size - 1, SIZE_MAX, &whole);
	require(scan(text, size - 1, 1 + data[0] % 64, &cut) == len && cut == whole);
	/* Whoever finds the end of a message parses that; the parser is to bear anything all the same. */
	parse(text, whole == 1 ? len : size - 1);
	return 0;
}
