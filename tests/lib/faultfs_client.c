/* SPDX-License-Identifier: MIT */
/*
 * faultfs_client.c - starting the file system of faultfs.h and giving it orders
 *
 * Owns:    the process that serves it, and the socket to it.
 * Assumes: FAULTFS is the program's path (the build says so).
 */
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "faultfs.h"

bool faultfs_own_mounts(void)
{
	return unshare(CLONE_NEWNS) == 0 && mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0;
}

/* A line with a number. False: the program has ended. */
static bool read_answer(struct faultfs *fs, long *ret)
{
	char line[64];
	size_t n = 0;

	do {
		if (n == sizeof(line) - 1 || read(fs->orders, line + n, 1) != 1)
			return false;
	} while (line[n++] != '\n');
	line[n] = 0;
	*ret = strtol(line, NULL, 10);
	return true;
}

static void serve(const char *dir, const char *mode, int fd)
{
	dup2(fd, 0);
	dup2(fd, 1);
	execl(FAULTFS, "faultfs", dir, mode, (char *)NULL);
	_exit(127);
}

bool faultfs_start(struct faultfs *fs, const char *dir, const char *mode, const char **ret_why)
{
	int pair[2];
	long ready;

	*ret_why = "root is needed to mount";
	if (geteuid() != 0)
		return false;
	*ret_why = "the kernel offers no FUSE (/dev/fuse)";
	if (access("/dev/fuse", R_OK | W_OK) < 0)
		return false;
	*ret_why = "the file system faultfs did not start";
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
		return false;
	fs->pid = fork();
	if (fs->pid == 0)
		serve(dir, mode, pair[1]);
	close(pair[1]);
	fs->orders = pair[0];
	snprintf(fs->dir, sizeof(fs->dir), "%s", dir);
	snprintf(fs->disk, sizeof(fs->disk), "%s/disk", dir);
	snprintf(fs->stable, sizeof(fs->stable), "%s/stable", dir);
	if (fs->pid > 0 && read_answer(fs, &ready))
		return true;
	faultfs_stop(fs);
	return false;
}

void faultfs_stop(struct faultfs *fs)
{
	close(fs->orders);
	if (fs->pid > 0)
		waitpid(fs->pid, NULL, 0);
	fs->pid = 0;
}

long faultfs_tell(struct faultfs *fs, const char *order, ...)
{
	char line[200];
	va_list args;
	long result;
	int len;

	va_start(args, order);
	len = vsnprintf(line, sizeof(line) - 1, order, args);
	va_end(args);
	line[len++] = '\n';
	if (write(fs->orders, line, (size_t)len) != len || !read_answer(fs, &result) || result < 0) {
		line[len - 1] = 0;
		fprintf(stderr, "faultfs: the order '%s' was not carried out\n", line);
		abort();
	}
	return result;
}
