/* SPDX-License-Identifier: MIT */
/*
 * tools/pidfile.c - the file that says which process serves, and holds a lock for it
 *
 * A number alone may be that of another process by now. The lock (flock) is given up by the kernel when the process is
 * gone, so a locked pidfile names a process that lives, or is about to be gone, and that is one of ours.
 *
 * Owns:    the file, from pidfile_write() to pidfile_remove().
 * Never:   sends a signal to a process that does not hold the lock.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common.h"
#include "pidfile.h"

#define END_MS 120000
#define PROCESS_EXITING 4u /* PF_EXITING of the kernel, see proc(5) */

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

/* A pipe or a device of that name is somebody else's, and could make us wait. The descriptor, or -1 after a message. */
static int open_file(const char *path, int flags, const char *what)
{
	int fd = open(path, flags | O_NONBLOCK | O_CLOEXEC, 0600); /* who may open it can lock it */
	struct stat st;

	if (fd < 0) {
		fail(path, what);
	} else if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode)) {
		complain("--pidfile %s: exists and is no regular file; choose another path or remove it", path);
		close(fd);
		fd = -1;
	}
	return fd;
}

int pidfile_write(struct pidfile *p, const char *path)
{
	p->fd = open_file(path, O_RDWR | O_CREAT, "cannot make it");
	if (p->fd < 0)
		return 1;
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

/* The number in the file. -1: errno. */
static long read_number(int fd)
{
	char text[24] = "";
	long pid;

	if (pread(fd, text, sizeof(text) - 1, 0) < 0)
		return -1;
	pid = strtol(text, NULL, 10);
	if (pid <= 1) {
		errno = EINVAL;
		return -1;
	}
	return pid;
}

/*
 * Whether the process has the file open, as every one has that holds its lock. The kernel's list of locks would name who made
 * it, which is another process after a takeover. -1: errno.
 */
static int has_open(long pid, int fd)
{
	struct stat file, st;
	struct dirent *entry;
	char dir[32];
	int found = 0;
	DIR *d;

	snprintf(dir, sizeof(dir), "/proc/%ld/fd", pid);
	d = opendir(dir);
	if (!d || fstat(fd, &file) < 0) {
		if (d)
			closedir(d);
		return errno == ENOENT ? 0 : -1;
	}
	while (!found && (entry = readdir(d)))
		found = fstatat(dirfd(d), entry->d_name, &st, 0) == 0 && st.st_dev == file.st_dev && st.st_ino == file.st_ino;
	closedir(d);
	return found;
}

/* Until the process is gone. Not 0: it is not, which was told, or a signal has come. */
static int wait_end(long pid, int pidfd, int signal_fd, const char *since)
{
	struct pollfd p[2] = { { .fd = pidfd, .events = POLLIN }, { .fd = signal_fd, .events = POLLIN } };
	int n;

	do {
		n = poll(p, 2, END_MS);
	} while (n < 0 && errno == EINTR);
	if (n > 0)
		return !p[0].revents;
	complain("--takeover: process %ld has not ended within %d seconds%s", pid, END_MS / 1000, since);
	return 1;
}

/*
 * Whether a process is on its way out. What it had open is not to be seen any more when its first thread has gone, but is there, and
 * with it the lock, until the last one has: for a moment, where it was killed in the middle of its work.
 */
static bool is_ending(long pid)
{
	char path[32], text[512] = "";
	unsigned flags = 0;
	const char *rest;
	int fd;

	snprintf(path, sizeof(path), "/proc/%ld/stat", pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return false;
	/* Behind the name, which may hold anything: state, four numbers, terminal, flags. */
	rest = read(fd, text, sizeof(text) - 1) > 0 ? strrchr(text, ')') : NULL;
	close(fd);
	return rest && sscanf(rest + 1, " %*c %*d %*d %*d %*d %*d %u", &flags) == 1 && flags & PROCESS_EXITING;
}

#define ENDED_WAITING (-2)

/*
 * The process whose number is in the file, and a descriptor of it, if it is one that can hold the lock. 0: it is gone, or does not have
 * the file; ENDED_WAITING: it is ending, and we were told to end before it had, or have said that it takes too long; else as has_open().
 */
static int watch_holder(int fd, long pid, int *ret_pidfd, int signal_fd)
{
	int found, error;

	*ret_pidfd = (int)syscall(SYS_pidfd_open, (pid_t)pid, 0);
	if (*ret_pidfd < 0)
		return errno == ESRCH ? 0 : -1;
	found = has_open(pid, fd);
	if (found > 0)
		return found;
	error = errno;
	/* May it not be looked at (its owner is root then), or is there nothing to be seen? When it is gone the lock is nobody's, or the next one's. */
	if (is_ending(pid))
		found = wait_end(pid, *ret_pidfd, signal_fd, "") ? ENDED_WAITING : 0;
	close(*ret_pidfd);
	*ret_pidfd = -1;
	errno = error;
	return found;
}

int pidfile_find(const char *path, long *ret_pid, int *ret_pidfd, int signal_fd)
{
	int fd, found = 0;
	long pid = 0;

	*ret_pid = 0;
	*ret_pidfd = -1;
	if (access(path, F_OK) < 0 && errno == ENOENT)
		return 0;
	fd = open_file(path, O_RDONLY, "cannot read it");
	if (fd < 0)
		return 1;
	/* Again: the number may be of one that has just handed the file over; and whose is there then may be ending. */
	for (unsigned i = 0; i < 3 && found == 0; i++) {
		if (flock(fd, LOCK_SH | LOCK_NB) == 0) {
			close(fd); /* nobody's, whatever number is in it */
			return 0;
		}
		pid = errno == EWOULDBLOCK ? read_number(fd) : -1;
		found = pid < 0 ? -1 : watch_holder(fd, pid, ret_pidfd, signal_fd);
	}
	if (found == -1)
		fail(path, "cannot tell whose it is");
	else if (!found)
		complain("--pidfile %s: it is locked, but not by process %ld, whose number it holds: nothing is done to that one", path, pid);
	/* Is it still the one that holds the lock? Its number may have been given away before pidfd_open(). */
	if (found > 0 && flock(fd, LOCK_SH | LOCK_NB) < 0) {
		*ret_pid = pid;
	} else if (*ret_pidfd >= 0) {
		close(*ret_pidfd);
		*ret_pidfd = -1;
	}
	close(fd);
	return found <= 0;
}

int pidfile_end(const char *path, long pid, int pidfd, int signal_fd)
{
	if (syscall(SYS_pidfd_send_signal, pidfd, SIGTERM, NULL, 0) < 0 && errno != ESRCH)
		return fail(path, "cannot send SIGTERM to its process");
	return wait_end(pid, pidfd, signal_fd, " of SIGTERM");
}
