/* SPDX-License-Identifier: MIT */
/*
 * without-userfaultfd EPERM|ENOSYS PROGRAM [ARGUMENT...]: run a program under a seccomp filter that
 * answers userfaultfd(2) with that error, as container runtimes do.
 */
#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <linux/filter.h>
#include <linux/seccomp.h>

static int filter_out(unsigned int nr, unsigned int error)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, nr, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | error),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = { sizeof(code) / sizeof(code[0]), code };

	/* Without privileges a filter is allowed only to those who can gain none. */
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		return -1;
	return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program);
}

int main(int argc, char **argv)
{
	unsigned int error;

	if (argc < 3)
		return 125;
	error = strcmp(argv[1], "ENOSYS") == 0 ? ENOSYS : EPERM;
	if (filter_out(SYS_userfaultfd, error) < 0) {
		perror("without-userfaultfd: seccomp");
		return 125;
	}
	execv(argv[2], argv + 2);
	perror(argv[2]);
	return 125;
}
