/* SPDX-License-Identifier: MIT */
/*
 * Giving up rights: a root directory of its own, another user, no way back.
 *
 * All that has a name was opened before, but for /proc: it is there that a process learns what was agreed for a
 * userfaultfd, and who its peers are. So a jail gets one, mounted where nobody else sees it.
 */
#include "serve.h"

#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <pwd.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

/* ---- Who to become -------------------------------------------------------------------------- */

struct identity {
	bool user, group;
	uid_t uid;
	gid_t gid;
};

static bool is_number(const char *text, unsigned long *n)
{
	char *end;

	errno = 0;
	*n = strtoul(text, &end, 10);
	return *text >= '0' && *text <= '9' && !*end && !errno && *n < UINT32_MAX;
}

static int find_user(const char *name, struct identity *id, struct why *why)
{
	struct passwd *pw = getpwnam(name);
	unsigned long n;

	if (!pw && is_number(name, &n)) {
		pw = getpwuid((uid_t)n);
		id->uid = (uid_t)n;
		id->gid = pw ? pw->pw_gid : (gid_t)n;
	} else if (pw) {
		id->uid = pw->pw_uid;
		id->gid = pw->pw_gid;
	} else {
		return refuse(why, -ENOENT, "there is no user '%s'", name);
	}
	id->user = id->group = true;
	return 0;
}

static int find_group(const char *name, struct identity *id, struct why *why)
{
	struct group *gr = getgrnam(name);
	unsigned long n;

	if (gr)
		id->gid = gr->gr_gid;
	else if (is_number(name, &n))
		id->gid = (gid_t)n;
	else
		return refuse(why, -ENOENT, "there is no group '%s'", name);
	id->group = true;
	return 0;
}

/* ---- The directory -------------------------------------------------------------------------- */

static bool has_proc(const char *root)
{
	char path[4096];

	snprintf(path, sizeof(path), "%s/proc/self/fdinfo", root);
	return access(path, R_OK) == 0;
}

static int mount_proc(const char *root, struct why *why)
{
	char path[4096];

	if (snprintf(path, sizeof(path), "%s/proc", root) >= (int)sizeof(path))
		return refuse(why, -ENAMETOOLONG, "--chroot %s: %s", root, strerror(ENAMETOOLONG));
	/* Ours alone: it goes when we do. */
	if (unshare(CLONE_NEWNS) < 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
		return refuse(why, -errno, "--chroot: no mounts of its own: %s", strerror(errno));
	if (mount("proc", path, "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_RDONLY, NULL) < 0)
		return refuse(why, -errno, "%s: no /proc can be mounted there: %s", path,
			      strerror(errno));
	return 0;
}

static int change_root(const char *root, struct why *why)
{
	int ret = has_proc(root) ? 0 : mount_proc(root, why);

	if (ret)
		return ret;
	if (chroot(root) < 0 || chdir("/") < 0)
		return refuse(why, -errno, "--chroot %s: %s", root, strerror(errno));
	return 0;
}

/* ---- The rights ----------------------------------------------------------------------------- */

/* Of all that root may do, one thing: to kill a machine that is another user's. */
static int keep_kill_only(struct why *why)
{
	struct __user_cap_header_struct head = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct data[2] = { { 0 } };

	data[0].effective = data[0].permitted = 1u << CAP_KILL;
	if (syscall(SYS_capset, &head, data) < 0)
		return refuse(why, -errno, "cannot keep the right to kill: %s", strerror(errno));
	return 0;
}

static int become(const struct identity *id, bool kills, struct why *why)
{
	bool root = geteuid() == 0;

	if (kills && root && id->user && prctl(PR_SET_KEEPCAPS, 1) < 0)
		return refuse(why, -errno, "PR_SET_KEEPCAPS: %s", strerror(errno));
	if (id->group &&
	    ((root && setgroups(1, &id->gid) < 0) || setresgid(id->gid, id->gid, id->gid) < 0))
		return refuse(why, -errno, "cannot become group %u: %s", (unsigned int)id->gid,
			      strerror(errno));
	if (id->user && setresuid(id->uid, id->uid, id->uid) < 0)
		return refuse(why, -errno, "cannot become user %u: %s", (unsigned int)id->uid,
			      strerror(errno));
	if (kills && root && id->user && id->uid != 0)
		return keep_kill_only(why);
	return 0;
}

/* Whoever has become another user is a stranger in its own /proc before 5.14; there it must say otherwise. */
static int see_oneself(struct why *why)
{
	if (access("/proc/self/fdinfo/0", R_OK) == 0 || errno != EACCES)
		return 0;
	if (prctl(PR_SET_DUMPABLE, 1) < 0)
		return refuse(why, -errno, "PR_SET_DUMPABLE: %s", strerror(errno));
	return 0;
}

int jail_enter(const struct options *o, struct why *why)
{
	struct identity id = { 0 };
	int ret = 0;

	if (o->user)
		ret = find_user(o->user, &id, why);
	if (ret == 0 && o->group)
		ret = find_group(o->group, &id, why);
	if (ret == 0 && o->chroot)
		ret = change_root(o->chroot, why);
	if (ret == 0)
		ret = become(&id, o->on_error == ON_ERROR_KILL, why);
	if (ret == 0 && id.user)
		ret = see_oneself(why);
	if (ret == 0 && prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		ret = refuse(why, -errno, "PR_SET_NO_NEW_PRIVS: %s", strerror(errno));
	return ret;
}
