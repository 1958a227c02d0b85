/* SPDX-License-Identifier: MIT */
/*
 * The first machine's touches are recorded; what was recorded another time is replayed to every machine.
 *
 * In the server each region of each machine has a key of its own. In a file there is one key, 0, and offsets are those
 * of the memory file: so what was learned of one machine is good for the next, wherever its memory lies, and for
 * whatever else reads that file.
 */
#include "serve.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "say.h"

/* Of the server, where they must be different for each region; machine and region are in it. */
#define KEY(vm, region) ((vm)->id << 16 | (region))
#define KEY_OF_FILE 0

uint64_t replay_key(const struct vm *vm, size_t region)
{
	return KEY(vm, region);
}

/* ---- Entries --------------------------------------------------------------------------------- */

static int order_add(struct order *o, const struct libuffd_record_entry *e)
{
	if (o->n == o->room) {
		size_t room = o->room ? 2 * o->room : 64;
		void *p = reallocarray(o->entry, room, sizeof(*o->entry));

		if (!p)
			return -ENOMEM;
		o->entry = p;
		o->room = room;
	}
	o->entry[o->n++] = *e;
	return 0;
}

static void order_free(struct order *o)
{
	free(o->entry);
	memset(o, 0, sizeof(*o));
}

static int order_read(int fd, struct order *o)
{
	int ret = libuffd_record_read(fd, &o->entry, &o->n);

	o->room = o->n;
	return ret;
}

/* ---- Opening -------------------------------------------------------------------------------- */

static int open_replay(struct serve *sv, struct why *why)
{
	int fd = open(sv->o.replay, O_RDONLY | O_CLOEXEC | O_NOCTTY), ret;

	if (fd < 0)
		return refuse(why, -errno, "%s: %s", sv->o.replay, strerror(errno));
	ret = order_read(fd, &sv->replay);
	close(fd);
	if (ret == -EBADMSG)
		return refuse(why, ret, "%s is no record, or is damaged", sv->o.replay);
	if (ret == -EPROTONOSUPPORT)
		return refuse(why, ret, "%s is a record of a later version", sv->o.replay);
	return ret ? refuse(why, ret, "%s: %s", sv->o.replay, strerror(-ret)) : 0;
}

/* What it holds stays until there is something better; it may be the one that is replayed. */
static int open_record(struct serve *sv, struct why *why)
{
	sv->record_fd = open(sv->o.record, O_RDWR | O_CREAT | O_CLOEXEC | O_NOCTTY, 0666);
	if (sv->record_fd < 0)
		return refuse(why, -errno, "%s: %s", sv->o.record, strerror(errno));
	return 0;
}

int replay_open(struct serve *sv, struct why *why)
{
	int ret = 0;

	sv->record_fd = -1;
	if (sv->o.replay)
		ret = open_replay(sv, why);
	if (ret == 0 && sv->o.record)
		ret = open_record(sv, why);
	return ret;
}

/* ---- Replaying ------------------------------------------------------------------------------ */

/* What an entry of the file is in the machine's regions: a part of any of them. */
static int translate(const struct vm *vm, const struct libuffd_record_entry *e, struct order *to)
{
	int ret = 0;

	for (size_t i = 0; i < vm->regions && ret == 0; i++) {
		const struct wire_region *w = &vm->region[i].wire;
		uint64_t first = e->offset > w->offset ? e->offset : w->offset;
		uint64_t end = e->offset + e->len < w->offset + w->len ? e->offset + e->len
								       : w->offset + w->len;
		struct libuffd_record_entry mine = { KEY(vm, i), first - w->offset, end - first };

		if (first < end)
			ret = order_add(to, &mine);
	}
	return ret;
}

static int replay_to(const struct serve *sv, const struct vm *vm)
{
	int fd = memfd_create("uffd-serve-replay", MFD_CLOEXEC), ret = 0;
	struct order mine = { 0 };

	if (fd < 0)
		return -errno;
	for (size_t i = 0; i < sv->replay.n && ret == 0; i++)
		if (sv->replay.entry[i].key == KEY_OF_FILE)
			ret = translate(vm, &sv->replay.entry[i], &mine);
	if (ret == 0)
		ret = libuffd_record_write(fd, mine.entry, mine.n);
	order_free(&mine);
	if (ret == 0 && lseek(fd, 0, SEEK_SET) < 0)
		ret = -errno;
	if (ret == 0)
		ret = libuffd_server_replay(sv->server, fd);
	close(fd);
	return ret;
}

/* Its first touch comes as soon as its regions are there. */
int replay_start(struct serve *sv, struct why *why)
{
	int ret = sv->record_fd >= 0 ? libuffd_server_record(sv->server) : 0;

	sv->recording = sv->record_fd >= 0;
	return ret ? refuse(why, ret, "--record: %s", strerror(-ret)) : 0;
}

void replay_begin(struct serve *sv, const struct vm *vm)
{
	int ret = sv->replay.n ? replay_to(sv, vm) : 0;

	if (ret)
		say("error", &vm->peer, vm->id, "%s is not replayed: %s", sv->o.replay,
		    strerror(-ret));
	if (!sv->recorded)
		sv->recorded = vm->id;
}

/* ---- Recording ------------------------------------------------------------------------------ */

/* What the server recorded, of this machine only, as offsets in the file. */
static int collect(struct serve *sv, const struct vm *vm, struct order *to)
{
	int fd = memfd_create("uffd-serve-record", MFD_CLOEXEC), ret;
	struct order all = { 0 };

	if (fd < 0)
		return -errno;
	ret = libuffd_server_record_end(sv->server, fd);
	if (ret == 0 && lseek(fd, 0, SEEK_SET) < 0)
		ret = -errno;
	if (ret == 0)
		ret = order_read(fd, &all);
	close(fd);
	for (size_t i = 0; i < all.n && ret == 0; i++) {
		struct libuffd_record_entry e = all.entry[i];
		size_t region = e.key & 0xffff;

		if (e.key >> 16 != vm->id || region >= vm->regions)
			continue;
		e.key = KEY_OF_FILE;
		e.offset += vm->region[region].wire.offset;
		ret = order_add(to, &e);
	}
	order_free(&all);
	return ret;
}

static int write_record(const struct serve *sv, const struct order *o)
{
	int ret = lseek(sv->record_fd, 0, SEEK_SET) < 0 ? -errno : 0;

	if (ret == 0)
		ret = libuffd_record_write(sv->record_fd, o->entry, o->n);
	if (ret == 0 && ftruncate(sv->record_fd, lseek(sv->record_fd, 0, SEEK_CUR)) < 0)
		ret = -errno;
	return ret;
}

void replay_end(struct serve *sv, const struct vm *vm)
{
	struct order o = { 0 };
	int ret;

	if (!sv->recording || sv->recorded != vm->id)
		return;
	sv->recording = false;
	ret = collect(sv, vm, &o);
	if (ret == 0)
		ret = write_record(sv, &o);
	if (ret)
		say("error", &vm->peer, vm->id, "%s cannot be written: %s", sv->o.record,
		    strerror(-ret));
	else
		say("recorded", &vm->peer, vm->id, "its first touches are in %s: %zu", sv->o.record,
		    o.n);
	order_free(&o);
}

void replay_close(struct serve *sv)
{
	if (sv->record_fd >= 0)
		close(sv->record_fd);
	order_free(&sv->replay);
}
