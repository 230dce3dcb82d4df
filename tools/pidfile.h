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

/*
 * If a process holds the pidfile: asks it to end (SIGTERM: it finishes what is in flight, flushes, closes) and waits until
 * it has. No such process is no error. 0, or 1 after a message.
 */
int pidfile_take_over(const char *path);

#endif
