/* SPDX-License-Identifier: MIT */
/*
 * tools/takeover.h - --takeover: a new server follows an old one, which lets go of nothing before the new one has it
 *
 *   new                                       old
 *   opens stand-ins of its images
 *   what it would serve, and where    ──▶     compares that with what it serves
 *                                             looks whether its disks answer
 *                                     ◀──     "refused", why: it goes on; or
 *                                             pauses its exports, flushes and closes its images
 *                                     ◀──     "given", with what was set at run time, the listening sockets and the locked pidfile
 *   opens its images, starts its exports
 *   writes its number into the pidfile
 *   "serving"                         ──▶     ends: front ends find the new one at the same sockets
 *
 * Who dies, ends without the last word or cannot go on is noticed at once, because his connection ends. Is it the new one, the old
 * one waits until he is gone, opens its images again and goes on. Is it the old one, the new one goes on as after a kill.
 * One message is one packet, of JSON. The two find each other by the number in the pidfile.
 *
 *   takeover_answer.c  the old one's part
 *   takeover_ask.c     the new one's
 */
#ifndef VARVE_TOOLS_TAKEOVER_H
#define VARVE_TOOLS_TAKEOVER_H

#include <sys/socket.h>
#include <sys/un.h>

#include "common.h"
#include "lend.h"
#include "pidfile.h"

#define TAKEOVER_EXPORTS_MAX 200 /* descriptors that go with one message: fewer than the 253 of SCM_RIGHTS */
#define TAKEOVER_PACKET_MAX (160u << 10)

/* ---- the old one ---- */

struct takeover_ops {
	/* The next lend of the program behind l, the first for NULL; NULL: there is none. */
	struct lend *(*next)(void *program, struct lend *l);
	/* Before the images are given: what else the new one needs for itself is let go of. NULL: nothing. */
	void (*leave)(void *program);
	/* They are ours again. */
	void (*back)(void *program);
	/* Somebody can resume a disk that is paused. NULL: nobody can. */
	bool (*controlled)(void *program);
};

struct takeover;

/* NULL after a message. */
struct takeover *takeover_new(const struct takeover_ops *ops, void *program, struct pidfile *held);
/* Takes NULL. */
void takeover_free(struct takeover *t);
/* What to wait for (POLLIN) before takeover_turn() is called; -1 for NULL. */
int takeover_fd(const struct takeover *t);
/* Hears whoever asks. signal_fd: readable when the process is told to end. */
void takeover_turn(struct takeover *t, int signal_fd);
/*
 * Goes on with whoever has asked; after the lends have been settled, which is what it waits for. Milliseconds until it wants to be called
 * again; -1: no need. *ret_over: another process serves now, and ours is to end; the names of sockets and pidfile are its own. Takes NULL.
 */
int takeover_settle(struct takeover *t, int signal_fd, bool *ret_over);

/* ---- the new one ---- */

struct takeover_from {
	int fd;	    /* the connection; -1: there was nobody, or he is gone */
	int pidfd;
	int pid_fd; /* the pidfile, locked */
	long pid;
};

/*
 * If a process holds the pidfile: takes over from it. The lends have all their exports, which are not started; those that the
 * old one had get its sockets. 0, also if there is nobody; 1 after a message: the old one goes on.
 */
int takeover_ask(struct takeover_from *t, const char *pidfile, const struct takeover_ops *ops, void *program, int signal_fd);
/* All is started, and held is made. Afterwards the old one is gone. 0, or 1 after a message. */
int takeover_serving(struct takeover_from *t, struct pidfile *held, const char *pidfile, int signal_fd);
/* What is still open is closed; before exports are stopped. If that is not after takeover_serving(), the old one goes on. */
void takeover_end(struct takeover_from *t, const struct takeover_ops *ops, void *program);

/* ---- both ---- */

/*
 * SIGTERM, SIGINT and SIGHUP are blocked, in every thread that is made from here on, too. A signalfd that is readable when one of them has
 * come; -1 after a message.
 */
int takeover_signals(void);

/* The export behind e, which is one of *l's, in all that the program has; the first for NULL and *l NULL. */
struct lend_export *takeover_next(const struct takeover_ops *ops, void *program, struct lend **l, struct lend_export *e);
/* {"socket": ..., "image": ..., ...}; NULL: no memory, or after a message. */
json_t *takeover_describe(const struct lend_export *e);
/* The name under which a process can be asked; its length for bind() and connect(). */
socklen_t takeover_address(struct sockaddr_un *addr, long pid);
/* Sends an object, with descriptors; it is freed. False, and errno: it could not be. */
bool takeover_send(int fd, json_t *message, const int *fds, unsigned nr_fds);
enum takeover_heard { TAKEOVER_HEARD, TAKEOVER_GONE, TAKEOVER_STRANGE, TAKEOVER_SIGNAL };

/*
 * Waits for an object, *ret. Or the other one is gone, or said what cannot be understood, or the process is told to end. ret_fds: room
 * for TAKEOVER_EXPORTS_MAX + 1; *ret_nr_fds came with what was heard, which are the caller's.
 */
enum takeover_heard takeover_receive(int fd, int signal_fd, json_t **ret, int *ret_fds, unsigned *ret_nr_fds);
/* The other side of a connection is a process of our user: its number; 0: it is not. */
long takeover_peer(int fd);
/* Until the process is gone; false: we are told to end before. */
bool takeover_wait_gone(int pidfd, int signal_fd);

#endif
