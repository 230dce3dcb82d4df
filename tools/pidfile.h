/* SPDX-License-Identifier: MIT */
/*
 * tools/pidfile.h - --pidfile: who serves here, and --takeover: the next one steps in
 */
#ifndef VARVE_TOOLS_PIDFILE_H
#define VARVE_TOOLS_PIDFILE_H

struct pidfile {
	const char *path; /* NULL: there is none */
	int fd;		  /* locked as long as the process lives */
};

/* 0, or 1 after a message. */
int pidfile_write(struct pidfile *p, const char *path);
void pidfile_remove(struct pidfile *p);

/* The file of another process, which gave us its descriptor: it says our number from now on. 0; 1 after a message: both are not ours. */
int pidfile_adopt(struct pidfile *p, const char *path, int fd);
/* It says our number again. 0, or 1 after a message. */
int pidfile_rewrite(struct pidfile *p);
/* It is another process's now. */
void pidfile_leave(struct pidfile *p);
/*
 * The process that holds the file: *ret_pid (0: none does) and a descriptor of it, to be closed by the caller, which still was its
 * own when the lock was looked at. One that is ending (it was killed) is waited for. 0, or 1 after a message.
 * signal_fd: readable when we are told to end ourselves, which is 1 without one.
 */
int pidfile_find(const char *path, long *ret_pid, int *ret_pidfd, int signal_fd);

/*
 * Asks the process to end (SIGTERM: it finishes what is in flight, flushes, closes) and waits until it has. 0, or 1 after a message.
 * signal_fd: readable when we are told to end ourselves, which is 1 without one.
 */
int pidfile_end(const char *path, long pid, int pidfd, int signal_fd);

#endif
