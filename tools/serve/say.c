/* SPDX-License-Identifier: MIT */
#include "say.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <json.h>

#include "peer.h"

static bool as_json;
static char progress[160]; /* what stands on the terminal's last line */

void say_setup(bool json)
{
	as_json = json;
}

void say_progress(const char *line)
{
	if (strcmp(line, progress) == 0)
		return;
	snprintf(progress, sizeof(progress), "%s", line);
	fprintf(stderr, "\r%s\033[K", progress);
	fflush(stderr);
}

static void say_json(const char *event, const struct peer *peer, uint64_t vm, const char *text)
{
	struct json_object *o = json_object_new_object();

	json_object_object_add(o, "event", json_object_new_string(event));
	if (vm)
		json_object_object_add(o, "vm", json_object_new_uint64(vm));
	if (peer)
		json_object_object_add(o, "pid", json_object_new_int(peer->pid));
	json_object_object_add(o, "message", json_object_new_string(text));
	puts(json_object_to_json_string_ext(o, JSON_C_TO_STRING_PLAIN));
	fflush(stdout);
	json_object_put(o);
}

void say(const char *event, const struct peer *peer, uint64_t vm, const char *format, ...)
{
	char text[512], whom[96] = "";
	va_list args;

	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	if (as_json) {
		say_json(event, peer, vm, text);
		return;
	}
	if (vm)
		snprintf(whom, sizeof(whom), "vm %llu, %s: ", (unsigned long long)vm,
			 peer ? peer->name : "?");
	else if (peer)
		snprintf(whom, sizeof(whom), "%s: ", peer->name);
	fprintf(stderr, "%suffd-serve: %s%s\n%s", *progress ? "\r\033[K" : "", whom, text,
		progress);
	fflush(stderr);
}
