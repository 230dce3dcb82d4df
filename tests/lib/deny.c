/* SPDX-License-Identifier: MIT */
/*
 * deny.c - runs a program for which some system calls fail: deny ERRNO CALL[,CALL...] PROGRAM [ARGUMENT]...
 *
 * CALL is io_uring_setup or io_setup; ERRNO is EPERM or ENOSYS. What container runtimes and old kernels do.
 */
#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

static const struct {
	const char *name;
	unsigned nr;
} calls[] = { { "io_uring_setup", SYS_io_uring_setup }, { "io_setup", SYS_io_setup } };

#define NR_CALLS (sizeof(calls) / sizeof(calls[0]))

static int deny(unsigned nr, int error)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, nr, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (unsigned)error),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog prog = { .len = sizeof(code) / sizeof(code[0]), .filter = code };

	return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog);
}

/* The number of calls denied, or -1. */
static int deny_listed(char *list, int error)
{
	int nr = 0;

	for (char *name = strtok(list, ","); name; name = strtok(NULL, ",")) {
		for (unsigned i = 0; i < NR_CALLS; i++) {
			if (strcmp(name, calls[i].name) != 0)
				continue;
			if (deny(calls[i].nr, error) < 0)
				return -1;
			nr++;
		}
	}
	return nr;
}

int main(int argc, char **argv)
{
	int error = 0;

	if (argc > 3)
		error = !strcmp(argv[1], "EPERM") ? EPERM : !strcmp(argv[1], "ENOSYS") ? ENOSYS : 0;
	if (!error) {
		fprintf(stderr, "usage: deny EPERM|ENOSYS CALL[,CALL] PROGRAM [ARGUMENT]...\n");
		return 125;
	}
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 || deny_listed(argv[2], error) < 1) {
		perror("deny");
		return 125;
	}
	execv(argv[3], argv + 3);
	perror(argv[3]);
	return 125;
}
