/* SPDX-License-Identifier: MIT */
/* Names of bits. Order is bit order; a gap is a bit without a name. */
#include "core.h"

#include "bits.h"

static const char *const features[] = {
	"pagefault-flag-wp",
	"event-fork",
	"event-remap",
	"event-remove",
	"missing-hugetlbfs",
	"missing-shmem",
	"event-unmap",
	"sigbus",
	"thread-id",
	"minor-hugetlbfs",
	"minor-shmem",
	"exact-address",
	"wp-hugetlbfs-shmem",
	"wp-unpopulated",
	"poison",
	"wp-async",
	"move",
	"rwp",
	"rwp-async",
};

static const char *const modes[] = { "missing", "wp", "minor", "rwp" };

static const char *const ioctls[64] = {
	"register",	"unregister", "wake",	"copy",	     "zeropage", "move",
	"writeprotect", "continue",   "poison", "rwprotect", "set-mode", [0x3f] = "api",
};

static const char *const faults[] = { "write", "wp", "minor", "rwp" };

static const char *const pages[] = { "wpallowed", "written", "file",	   "present", "swapped",
				     "pfnzero",	  "huge",    "soft-dirty", "guard",   "accessed" };

static const char *const cures[] = {
	"set the sysctl vm.unprivileged_userfaultfd to 1",
	"run with CAP_SYS_PTRACE in the initial user namespace",
	"give this user or group read and write permission on /dev/userfaultfd",
	"create /dev/userfaultfd (a misc device, its minor number is in /proc/misc), or pass it into the container",
	"allow the device /dev/userfaultfd in the container's device list",
	"allow userfaultfd(2) in the seccomp filter of the container or service",
	"use a newer kernel, or one built with CONFIG_USERFAULTFD",
	"free descriptors or memory, or raise the limit on them",
};

#define NAME(table, bit) bit_name(table, sizeof(table) / sizeof((table)[0]), bit)

const char *libuffd_feature_name(uint64_t bit)
{
	return NAME(features, bit);
}

const char *libuffd_mode_name(uint64_t bit)
{
	return NAME(modes, bit);
}

const char *libuffd_ioctl_name(uint64_t bit)
{
	return NAME(ioctls, bit);
}

const char *libuffd_fault_name(uint64_t bit)
{
	return NAME(faults, bit);
}

const char *libuffd_page_name(uint64_t bit)
{
	return NAME(pages, bit);
}

const char *libuffd_cure_text(uint64_t bit)
{
	return NAME(cures, bit);
}

const char *libuffd_event_name(uint32_t type)
{
	switch (type) {
	case LIBUFFD_EVENT_FAULT:
		return "fault";
	case LIBUFFD_EVENT_FORK:
		return "fork";
	case LIBUFFD_EVENT_REMAP:
		return "remap";
	case LIBUFFD_EVENT_REMOVE:
		return "remove";
	case LIBUFFD_EVENT_UNMAP:
		return "unmap";
	case LIBUFFD_EVENT_MALFORMED:
		return "malformed";
	default:
		return NULL;
	}
}

const char *libuffd_version(void)
{
	return LIBUFFD_VERSION;
}
