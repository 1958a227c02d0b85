/* SPDX-License-Identifier: MIT */
/*
 * A virtual machine monitor's part in the handshake, written from the protocol's description, for the tests of
 * uffd-serve: a process of its own that has memory, hands its userfaultfd over, and touches pages when it is told to.
 *
 * It is the test program itself, run again as `PROGRAM --vmm KEY=VALUE...`; it takes a command a line on standard input,
 * and answers each with a line. Pages are numbered through all of its regions.
 *
 *   version=V    1.1, 1.7, 1.12, 2.0: which keys its message has
 *   regions=N pages=N   regions, and pages of each
 *   huge=1       hugetlb
 *   features=X   of its userfaultfd, hexadecimal; EVENT_REMOVE by itself from version 1.12 on
 *
 *   connect PATH         ok
 *   hello                send the message in one piece, with the userfaultfd
 *   hello at N           in two, where the second is sent when the first has been read
 *   hello each           byte by byte
 *   twice                two messages, of two userfaultfds, as two of one send each
 *   glued                the end of the first message with the beginning of the second
 *   say FDS TEXT         any bytes, in one piece, with so many descriptors
 *   message              tells what hello would send
 *   base N               where region N lies
 *   touch FIRST N THREADS   "ok" if all of these pages have the file's bytes, or which has not
 *   zeros FIRST N        "ok" if they are zeros
 *   peek PAGE            "file", "zeros", "sigbus", "other"
 *   peek-outside         the same, of a page that is registered and in no region of the message
 *   stare PAGE           touch it in a thread; "ok" when that waits
 *   seen                 what it saw, when it has
 *   waits                "yes" if it has not
 *   drop FIRST N         MADV_DONTNEED
 *   forget               close the userfaultfd
 *   closed               "ok" when the other end has closed the connection
 *   hang-up              close the connection
 *   exec                 become another program, of other memory, in the same process: answers "ready"
 */
#ifndef TESTS_SERVE_VMM_H
#define TESTS_SERVE_VMM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

int vmm_main(int argc, char **argv);

/* The bytes of the memory file, in any process: whole blocks of a page are holes. */
bool block_is_hole(uint64_t block);
void block_fill(unsigned char *to, uint64_t block, size_t len);

#endif
