/* SPDX-License-Identifier: MIT */
/*
 * tools/pidfile.c - the file that says which process serves, and holds a lock for it
 *
 * A number alone may be that of another process by now. The lock (flock) is given up by the kernel when the process is
 * gone, so a locked pidfile names a process that lives, and that is one of ours.
 *
 * Owns:    the file, from pidfile_write() to pidfile_remove().
 * Never:   sends a signal to a process that does not hold the lock.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common.h"
#include "pidfile.h"

#define END_MS 120000

static int fail(const char *path, const char *what)
{
	complain("--pidfile %s: %s: %s", path, what, strerror(errno));
	return 1;
}

int pidfile_rewrite(struct pidfile *p)
{
	char text[24];
	int n = snprintf(text, sizeof(text), "%ld\n", (long)getpid());

	/* Never empty, and never part of two numbers: who reads it meanwhile finds one of the two. */
	if (pwrite(p->fd, text, (size_t)n, 0) != n || ftruncate(p->fd, n) < 0)
		return fail(p->path, "cannot write it");
	return 0;
}

int pidfile_write(struct pidfile *p, const char *path)
{
	p->fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600); /* who may open it can lock it */
	if (p->fd < 0)
		return fail(path, "cannot make it");
	if (flock(p->fd, LOCK_EX | LOCK_NB) < 0) {
		close(p->fd);
		return fail(path, "another process holds it");
	}
	p->path = path;
	return pidfile_rewrite(p);
}

int pidfile_adopt(struct pidfile *p, const char *path, int fd)
{
	*p = (struct pidfile){ .fd = fd, .path = path };
	if (pidfile_rewrite(p) == 0)
		return 0;
	p->path = NULL; /* it is not ours, nor the descriptor */
	return 1;
}

void pidfile_leave(struct pidfile *p)
{
	if (p->path)
		close(p->fd);
	p->path = NULL;
}

void pidfile_remove(struct pidfile *p)
{
	if (p->path)
		unlink(p->path);
	pidfile_leave(p);
}

/* The process that holds the lock; 0: nobody does; -1: errno. */
static long holder(int fd)
{
	char text[24] = "";
	long pid;

	if (flock(fd, LOCK_SH | LOCK_NB) == 0)
		return 0;
	if (errno != EWOULDBLOCK || pread(fd, text, sizeof(text) - 1, 0) < 0)
		return -1;
	pid = strtol(text, NULL, 10);
	if (pid <= 1) {
		errno = EINVAL;
		return -1;
	}
	return pid;
}

int pidfile_find(const char *path, long *ret_pid, int *ret_pidfd)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC), ret = 0;

	*ret_pid = 0;
	*ret_pidfd = -1;
	if (fd < 0)
		return errno == ENOENT ? 0 : fail(path, "cannot read it");
	*ret_pid = holder(fd);
	if (*ret_pid < 0)
		ret = fail(path, "cannot tell whose it is");
	if (*ret_pid > 0) {
		*ret_pidfd = (int)syscall(SYS_pidfd_open, (pid_t)*ret_pid, 0);
		if (*ret_pidfd < 0 && errno != ESRCH)
			ret = fail(path, "cannot watch its process");
		/* Is it still the one that holds the lock? Its number may have been given away before pidfd_open(). */
		if (*ret_pidfd < 0 || flock(fd, LOCK_SH | LOCK_NB) == 0)
			*ret_pid = 0;
	}
	close(fd);
	if (ret || !*ret_pid) {
		if (*ret_pidfd >= 0)
			close(*ret_pidfd);
		*ret_pidfd = -1;
	}
	return ret;
}

int pidfile_end(const char *path, long pid, int pidfd, int signal_fd)
{
	struct pollfd p[2] = { { .fd = pidfd, .events = POLLIN }, { .fd = signal_fd, .events = POLLIN } };
	int n;

	if (syscall(SYS_pidfd_send_signal, pidfd, SIGTERM, NULL, 0) < 0 && errno != ESRCH)
		return fail(path, "cannot send SIGTERM to its process");
	do {
		n = poll(p, 2, END_MS);
	} while (n < 0 && errno == EINTR);
	if (n > 0)
		return !p[0].revents;
	complain("--takeover: process %ld has not ended within %d seconds of SIGTERM", pid, END_MS / 1000);
	return 1;
}
