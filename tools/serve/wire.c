/* SPDX-License-Identifier: MIT */
#include "wire.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include <json.h>

/* ---- Where a message ends ------------------------------------------------------------------- */

static bool is_space(char c)
{
	return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

static void scan_string(struct wire_scan *scan, char c)
{
	if (scan->escaped)
		scan->escaped = false;
	else if (c == '\\')
		scan->escaped = true;
	else if (c == '"')
		scan->string = false;
}

/* 1: that was the last bracket. */
static int scan_bracket(struct wire_scan *scan, char c, struct why *why)
{
	if (c == '[' || c == '{') {
		if (scan->depth == WIRE_DEPTH_MOST)
			return refuse(why, -EBADMSG, "the message is nested deeper than %d",
				      WIRE_DEPTH_MOST);
		scan->closer[scan->depth++] = c == '[' ? ']' : '}';
	} else if (c == ']' || c == '}') {
		if (scan->closer[--scan->depth] != c)
			return refuse(why, -EBADMSG, "the message is no JSON: '%c' closes nothing",
				      c);
	}
	return scan->depth == 0;
}

int wire_scan(struct wire_scan *scan, const char *text, size_t len, size_t *used, struct why *why)
{
	int ret = 0;

	for (*used = 0; *used < len && ret == 0;) {
		char c = text[(*used)++];

		if (scan->string)
			scan_string(scan, c);
		else if (!scan->depth && !is_space(c) && c != '[')
			ret = refuse(why, -EBADMSG, "the message is no JSON array");
		else if (!scan->depth && c != '[')
			continue;
		else if (c == '"')
			scan->string = true;
		else
			ret = scan_bracket(scan, c, why);
	}
	return ret;
}

/* ---- What it says --------------------------------------------------------------------------- */

/* 1: there is such a key, and *@value is its number; 0: there is none. */
static int number(struct json_object *of, size_t nth, const char *key, uint64_t *value,
		  struct why *why)
{
	struct json_object *v;

	if (!json_object_object_get_ex(of, key, &v))
		return 0;
	if (!json_object_is_type(v, json_type_int))
		return refuse(why, -EBADMSG, "region %zu: %s is not a whole number", nth, key);
	if (json_object_get_int64(v) < 0)
		return refuse(why, -EINVAL, "region %zu: %s is negative", nth, key);
	*value = json_object_get_uint64(v);
	return 1;
}

static int must(struct json_object *of, size_t nth, const char *key, uint64_t *value,
		struct why *why)
{
	int ret = number(of, nth, key, value, why);

	return ret ? ret : refuse(why, -EBADMSG, "region %zu has no %s", nth, key);
}

static int page_size(struct json_object *of, size_t nth, uint64_t system_page, uint64_t *page,
		     struct why *why)
{
	uint64_t kib = 0;
	int has, has_kib;

	*page = system_page;
	has_kib = number(of, nth, "page_size_kib", &kib, why);
	if (has_kib < 0)
		return has_kib;
	if (has_kib)
		*page = kib;
	has = number(of, nth, "page_size", page, why);
	if (has < 0)
		return has;
	if (has && has_kib && *page != kib)
		return refuse(why, -EINVAL,
			      "region %zu: page_size is %" PRIu64 ", but page_size_kib %" PRIu64,
			      nth, *page, kib);
	return 0;
}

static int check(const struct wire_region *r, size_t nth, uint64_t system_page, struct why *why)
{
	if (r->page_size < system_page || r->page_size & (r->page_size - 1))
		return refuse(why, -EINVAL, "region %zu: there are no pages of %" PRIu64 " bytes",
			      nth, r->page_size);
	if (!r->len)
		return refuse(why, -EINVAL, "region %zu is empty", nth);
	if ((r->start | r->len | r->offset) & (r->page_size - 1))
		return refuse(why, -EINVAL,
			      "region %zu: address %#" PRIx64 ", size %#" PRIx64
			      " and offset %#" PRIx64
			      " are not all multiples of its pages, %#" PRIx64,
			      nth, r->start, r->len, r->offset, r->page_size);
	if (r->start > UINT64_MAX - r->len)
		return refuse(why, -EINVAL,
			      "region %zu ends beyond all addresses: %#" PRIx64 " + %#" PRIx64, nth,
			      r->start, r->len);
	if (r->offset > (uint64_t)INT64_MAX - r->len || r->len > (uint64_t)INT64_MAX)
		return refuse(why, -EINVAL,
			      "region %zu ends beyond all files: offset %#" PRIx64 " + %#" PRIx64,
			      nth, r->offset, r->len);
	return 0;
}

static int parse_region(struct json_object *o, size_t nth, uint64_t system_page,
			struct wire_region *r, struct why *why)
{
	int ret;

	if (!json_object_is_type(o, json_type_object))
		return refuse(why, -EBADMSG, "region %zu is not an object", nth);
	ret = must(o, nth, "base_host_virt_addr", &r->start, why);
	if (ret >= 0)
		ret = must(o, nth, "size", &r->len, why);
	if (ret >= 0)
		ret = must(o, nth, "offset", &r->offset, why);
	if (ret >= 0)
		ret = page_size(o, nth, system_page, &r->page_size, why);
	return ret < 0 ? ret : 0;
}

static int by_start(const void *a, const void *b)
{
	const struct wire_region *x = a, *y = b;

	return x->start < y->start ? -1 : x->start > y->start;
}

static int check_overlap(struct wire_layout *l, struct why *why)
{
	qsort(l->region, l->n, sizeof(*l->region), by_start);
	for (size_t i = 1; i < l->n; i++)
		if (l->region[i].start - l->region[i - 1].start < l->region[i - 1].len)
			return refuse(why, -EINVAL, "two regions overlap at %#" PRIx64,
				      l->region[i].start);
	return 0;
}

int wire_check(struct wire_layout *l, uint64_t system_page, struct why *why)
{
	int ret = 0;

	for (size_t i = 0; i < l->n && ret == 0; i++)
		ret = check(&l->region[i], i, system_page, why);
	return ret ? ret : check_overlap(l, why);
}

static int parse_array(struct json_object *array, uint64_t system_page, struct wire_layout *out,
		       struct why *why)
{
	size_t n = json_object_array_length(array);
	int ret = 0;

	if (!n)
		return refuse(why, -EBADMSG, "the message names no region");
	out->region = calloc(n, sizeof(*out->region));
	if (!out->region)
		return refuse(why, -ENOMEM, "out of memory");
	for (; out->n < n && ret == 0; out->n++)
		ret = parse_region(json_object_array_get_idx(array, out->n), out->n, system_page,
				   &out->region[out->n], why);
	return ret ? ret : wire_check(out, system_page, why);
}

int wire_parse(const char *text, size_t len, uint64_t system_page, struct wire_layout *out,
	       struct why *why)
{
	struct json_tokener *tok = NULL;
	struct json_object *array = NULL;
	int ret;

	memset(out, 0, sizeof(*out));
	if (len > WIRE_MESSAGE_MOST)
		return refuse(why, -EBADMSG, "the message is longer than %zu bytes",
			      WIRE_MESSAGE_MOST);
	tok = json_tokener_new_ex(WIRE_DEPTH_MOST + 2);
	if (!tok)
		return refuse(why, -ENOMEM, "out of memory");
	json_tokener_set_flags(tok, JSON_TOKENER_STRICT);
	array = json_tokener_parse_ex(tok, text, (int)len);
	if (!array)
		ret = refuse(why, -EBADMSG, "the message is no JSON: %s",
			     json_tokener_error_desc(json_tokener_get_error(tok)));
	else if (json_tokener_get_parse_end(tok) != len ||
		 !json_object_is_type(array, json_type_array))
		ret = refuse(why, -EBADMSG, "the message is no JSON array");
	else
		ret = parse_array(array, system_page, out, why);
	json_object_put(array);
	json_tokener_free(tok);
	if (ret)
		wire_free(out);
	return ret;
}

void wire_free(struct wire_layout *layout)
{
	free(layout->region);
	memset(layout, 0, sizeof(*layout));
}
