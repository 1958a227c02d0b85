/* SPDX-License-Identifier: MIT */
#include "say.h"

#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <json.h>

#include "peer.h"

#define STEP 4096     /* as much as a pipe that poll() calls writable takes at once (PIPE_BUF) */
#define PATIENCE 1000 /* ms, for what was asked for */

static bool as_json;
static char progress[160]; /* what stands on the terminal's last line */
static unsigned long lost; /* messages, since the last that was heard */

void say_setup(bool json)
{
	as_json = json;
}

/* Machines must not wait for somebody who does not read what we say. False: that is how it is. */
static bool put(int fd, const char *text, size_t len, int patience)
{
	while (len) {
		struct pollfd p = { .fd = fd, .events = POLLOUT };
		ssize_t n;

		if (poll(&p, 1, patience) != 1 || !(p.revents & POLLOUT))
			return false;
		n = write(fd, text, len < STEP ? len : STEP);
		if (n <= 0)
			return false;
		text += n;
		len -= (size_t)n;
	}
	return true;
}

bool say_answer(const char *text)
{
	return put(STDOUT_FILENO, text, strlen(text), PATIENCE);
}

void say_progress(const char *line)
{
	char text[200];

	if (strcmp(line, progress) == 0)
		return;
	snprintf(progress, sizeof(progress), "%s", line);
	snprintf(text, sizeof(text), "\r%s\033[K", progress);
	put(STDERR_FILENO, text, strlen(text), 0);
}

static bool say_json(const char *event, const struct peer *peer, uint64_t vm, const char *text)
{
	struct json_object *o = json_object_new_object();
	char line[2048];

	json_object_object_add(o, "event", json_object_new_string(event));
	if (vm)
		json_object_object_add(o, "vm", json_object_new_uint64(vm));
	if (peer)
		json_object_object_add(o, "pid", json_object_new_int(peer->pid));
	json_object_object_add(o, "message", json_object_new_string(text));
	snprintf(line, sizeof(line), "%s\n",
		 json_object_to_json_string_ext(o, JSON_C_TO_STRING_PLAIN));
	json_object_put(o);
	return put(STDOUT_FILENO, line, strlen(line), 0);
}

static bool say_text(const struct peer *peer, uint64_t vm, const char *text)
{
	char line[2048], whom[96] = "";

	if (vm)
		snprintf(whom, sizeof(whom), "vm %llu, %s: ", (unsigned long long)vm,
			 peer ? peer->name : "?");
	else if (peer)
		snprintf(whom, sizeof(whom), "%s: ", peer->name);
	snprintf(line, sizeof(line), "%suffd-serve: %s%s\n%s", *progress ? "\r\033[K" : "", whom,
		 text, progress);
	return put(STDERR_FILENO, line, strlen(line), 0);
}

static bool say_to(const char *event, const struct peer *peer, uint64_t vm, const char *text)
{
	return as_json ? say_json(event, peer, vm, text) : say_text(peer, vm, text);
}

void say(const char *event, const struct peer *peer, uint64_t vm, const char *format, ...)
{
	char text[512];
	va_list args;

	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	if (lost) {
		char words[64];

		snprintf(words, sizeof(words), "%lu messages were not read, and are lost", lost);
		if (say_to("lost", NULL, 0, words))
			lost = 0;
	}
	if (!say_to(event, peer, vm, text))
		lost++;
}
