/* SPDX-License-Identifier: MIT */
/* What an entry of /proc/PID/pagemap tells of a page. */
#ifndef LIBUFFD_PAGEMAP_H
#define LIBUFFD_PAGEMAP_H

#include <stdint.h>

#define PM_PROTECTED (UINT64_C(1) << 57) /* against writes, or all access; since 5.14 */
#define PM_FILE (UINT64_C(1) << 61)
#define PM_SWAPPED (UINT64_C(1) << 62)
#define PM_PRESENT (UINT64_C(1) << 63)
#define PM_THERE (PM_PRESENT | PM_SWAPPED)

#endif
