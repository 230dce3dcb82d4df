/* SPDX-License-Identifier: MIT */
/*
 * tools/takeover_answer.c - the old side of a takeover: what it serves goes to whoever follows, or stays
 *
 *     SERVES ──asked──▶ PROBES ──it fits, all disks answer, images closed──▶ GIVEN ──"serving", or told to end──▶ over
 *        ▲                 │                                                   │
 *        ├── one does not ◀┘                                                   │
 *        └───── the new one is gone without it ◀───────────────────────────────┘
 *
 * In PROBES all goes on as before. Between it and GIVEN the images are closed, which is waited for; a disk that is stuck only then
 * ends the attempt as well.
 *
 * Owns:    the socket at which it is asked, the one connection.
 * Assumes: the main thread, which does nothing else in GIVEN.
 * Never:   ends, or lets a socket or the pidfile go, before the new one says that it serves; tells it to open anything before every
 *          image here is seen to be closed; waits for a disk without an end.
 */
#include "takeover.h"

#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* How long a disk may take until it is flushed; and then, with its guest paused, until it is closed. */
#define PROBE_MS 20000
#define GIVE_MS 20000

/* After accept() failed for want of descriptors or memory, the socket stays readable: do not spin over it. */
#define ACCEPT_PAUSE_MS 500

struct takeover {
	const struct takeover_ops *ops;
	void *program;
	struct pidfile *held;
	int listener;
	int fd;	   /* who asks; -1: nobody */
	int pidfd; /* of that process */
	long pid;
	json_t *asked;	    /* by it, in PROBES */
	bool probing;	    /* there, after images that were just on their way have arrived */
	int64_t until_ms;   /* the end of PROBES' patience, or of the pause after an accept() that failed; 0: neither */
	bool cannot_accept; /* as was told */
};

static int64_t now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

struct takeover *takeover_new(const struct takeover_ops *ops, void *program, struct pidfile *held)
{
	struct takeover *t = calloc(1, sizeof(*t));
	struct sockaddr_un addr;
	socklen_t len = takeover_address(&addr, (long)getpid());

	if (!t) {
		complain("--pidfile: %s", strerror(ENOMEM));
		return NULL;
	}
	*t = (struct takeover){ .ops = ops, .program = program, .held = held, .fd = -1, .pidfd = -1 };
	t->listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (t->listener >= 0 && bind(t->listener, (struct sockaddr *)&addr, len) == 0 && listen(t->listener, 4) == 0)
		return t;
	/* Anybody may have taken the name: that keeps no disk from being served. Whoever follows sees that it is not us. */
	complain("warning: --pidfile: cannot make the socket @%s: %s; --takeover will end this process by a signal", addr.sun_path + 1,
		 strerror(errno));
	if (t->listener >= 0)
		close(t->listener);
	t->listener = -1;
	return t;
}

static void drop(struct takeover *t)
{
	if (t->fd >= 0)
		close(t->fd);
	if (t->pidfd >= 0)
		close(t->pidfd);
	json_decref(t->asked);
	t->asked = NULL;
	t->probing = false;
	t->until_ms = 0;
	t->fd = t->pidfd = -1;
}

void takeover_free(struct takeover *t)
{
	if (!t)
		return;
	drop(t);
	if (t->listener >= 0)
		close(t->listener);
	free(t);
}

int takeover_fd(const struct takeover *t)
{
	if (!t || t->fd >= 0)
		return t ? t->fd : -1;
	return t->until_ms ? -1 : t->listener;
}

/* ---- does it fit? ---- */

/* False, and why in buf. */
__attribute__((format(printf, 2, 3))) static bool no(char buf[VARVE_ERROR_MAX], const char *format, ...)
{
	va_list ap;

	va_start(ap, format);
	vsnprintf(buf, VARVE_ERROR_MAX, format, ap);
	va_end(ap);
	return false;
}

static bool same(const json_t *ours, const json_t *theirs, const char *key)
{
	return json_equal(json_object_get(ours, key), json_object_get(theirs, key));
}

/* The front end of an export has agreed on all of that, and would find another disk. */
static bool export_fits(const json_t *ours, const json_t *theirs, char why[VARVE_ERROR_MAX])
{
	const char *at = info_str(ours, "socket");

	if (!theirs)
		return no(why, "nothing is to be served at %s, where %s is now", at, info_str(ours, "name"));
	if (!same(ours, theirs, "image"))
		return no(why, "%s has another image, %s, than now, %s", at,
			  info_str(theirs, "name") ? info_str(theirs, "name") : "", info_str(ours, "name"));
	if (!same(ours, theirs, "format"))
		return no(why, "%s has format %s, now %s", at, info_str(theirs, "format") ? info_str(theirs, "format") : "",
			  info_str(ours, "format"));
	if (!same(ours, theirs, "writable"))
		return no(why, "%s is %s now", at, json_is_true(json_object_get(ours, "writable")) ? "writable" : "read-only");
	if (!same(ours, theirs, "queues"))
		return no(why, "%s has %d queues, now %d", at, (int)info_int(theirs, "queues", 0),
			  (int)info_int(ours, "queues", 0));
	if (info_int(theirs, "queue-size", 0) < info_int(ours, "queue-size", 0))
		return no(why, "%s has queues of %d, now %d", at, (int)info_int(theirs, "queue-size", 0),
			  (int)info_int(ours, "queue-size", 0));
	return true;
}

static const json_t *find_socket(const json_t *exports, const json_t *ours)
{
	const json_t *e;
	size_t i;

	json_array_foreach(exports, i, e) {
		if (same(ours, e, "socket"))
			return e;
	}
	return NULL;
}

static bool fits(const struct takeover *t, const json_t *asked, char why[VARVE_ERROR_MAX])
{
	const json_t *exports = json_object_get(asked, "exports");
	struct lend *l = NULL;
	struct lend_export *e = NULL;
	unsigned nr = 0;

	if (info_int(asked, "varve-takeover", 0) != 1)
		return no(why, "it asks for something that this version does not know");
	while ((e = takeover_next(t->ops, t->program, &l, e))) {
		json_t *ours = takeover_describe(e);
		bool fit = ours && *info_str(ours, "socket") && export_fits(ours, find_socket(exports, ours), why);

		if (!ours)
			return no(why, "out of memory");
		if (!*info_str(ours, "socket"))
			no(why, "an export's socket has no name, so that it is its maker's");
		json_decref(ours);
		if (!fit)
			return false;
		if (++nr > TAKEOVER_EXPORTS_MAX)
			return no(why, "there are more than %d exports", TAKEOVER_EXPORTS_MAX);
	}
	while ((l = t->ops->next(t->program, l))) {
		if (l->ops->busy && l->ops->busy(l->disk, true))
			return no(why, "%s: a command is being carried out; ask again when it is done", l->name);
		/* The next one starts it paused, too; there somebody must be able to resume it. */
		if (l->stopped && !json_is_true(json_object_get(asked, "controlled")))
			return no(why, "%s: somebody has paused it; ask again when it has been resumed, or with --control", l->name);
	}
	return true;
}

/* LEND_UNDER_WAY: of one at least. LEND_FAILED: of one, and why. */
static enum lend_result result_of_all(const struct takeover *t, char why[VARVE_ERROR_MAX])
{
	enum lend_result ret = LEND_DONE;
	struct lend *l = NULL;
	const char *words;

	while ((l = t->ops->next(t->program, l))) {
		enum lend_result one = lend_result(l, &words);

		if (one == LEND_FAILED) {
			no(why, "%s", words);
			return one;
		}
		if (one == LEND_UNDER_WAY && ret == LEND_DONE) {
			no(why, "%s: its storage does not answer; ask again when it does", l->name);
			ret = one;
		}
	}
	return ret;
}

/* ---- giving ---- */

static void take_back(struct takeover *t)
{
	struct lend *l = NULL;

	/* The program's main loop settles them: they are wanted from now on. */
	while ((l = t->ops->next(t->program, l)))
		l->given = false;
	if (t->ops->back)
		t->ops->back(t->program);
}

/* Until all that is under way is done, or one of it failed, or patience is at its end. False, and why. */
static bool wait_for_all(const struct takeover *t, char why[VARVE_ERROR_MAX])
{
	struct pollfd p = { .fd = t->ops->next(t->program, NULL)->wake_fd, .events = POLLIN };
	int64_t until_ms = now_ms() + GIVE_MS, left;
	enum lend_result result;

	while ((result = result_of_all(t, why)) == LEND_UNDER_WAY && (left = until_ms - now_ms()) > 0) {
		if (poll(&p, 1, (int)left) > 0)
			lend_woken(p.fd); /* the main loop looks at all of them, afterwards */
	}
	return result == LEND_DONE;
}

static bool give_all(struct takeover *t, char why[VARVE_ERROR_MAX])
{
	struct lend *l = NULL;
	bool given = true;

	if (!t->ops->next(t->program, NULL))
		return true;
	if (t->ops->leave)
		t->ops->leave(t->program);
	while (given && (l = t->ops->next(t->program, l)))
		given = lend_give(l) || no(why, "%s cannot be closed: %s", l->name, *l->trouble ? l->trouble : "it is being probed");
	given = given && wait_for_all(t, why);
	if (!given)
		take_back(t);
	return given;
}

static bool send_all(const struct takeover *t)
{
	int fds[TAKEOVER_EXPORTS_MAX + 1] = { t->held->fd };
	json_t *sockets = json_array(), *settings = json_array();
	struct lend *l = NULL;
	struct lend_export *e = NULL;
	unsigned nr = 1;
	bool sent = true;

	while (sent && (e = takeover_next(t->ops, t->program, &l, e))) {
		json_t *d = takeover_describe(e);

		fds[nr] = varve_export_socket(e->exp);
		sent = d && fds[nr] >= 0;
		if (fds[nr] >= 0)
			nr++;
		json_array_append(sockets, json_object_get(d, "socket"));
		json_array_append_new(settings, lend_settings(l));
		json_decref(d);
	}
	if (sent) {
		sent = takeover_send(t->fd, json_pack("{s:s, s:o, s:o}", "takeover", "given", "sockets", sockets, "settings", settings),
				     fds, nr);
	} else {
		json_decref(sockets);
		json_decref(settings);
	}
	for (unsigned i = 1; i < nr; i++)
		close(fds[i]);
	return sent;
}

/* ---- the conversation ---- */

/* GIVEN is over. True: with us. */
static bool hear_the_end(struct takeover *t, int signal_fd)
{
	struct lend *l = NULL;
	struct lend_export *e = NULL;
	json_t *last;
	bool over = takeover_receive(t->fd, signal_fd, &last, NULL, NULL) == TAKEOVER_SIGNAL ||
		    (info_str(last, "takeover") && !strcmp(info_str(last, "takeover"), "serving"));

	json_decref(last);
	if (!over) {
		close(t->fd); /* which it notices, if it goes on */
		t->fd = -1;
		over = !takeover_wait_gone(t->pidfd, signal_fd); /* then nobody else has the images open */
		drop(t);
	}
	if (over) {
		while ((e = takeover_next(t->ops, t->program, &l, e)))
			varve_export_leave_socket(e->exp);
		pidfile_leave(t->held);
		return true;
	}
	complain("warning: --takeover: process %ld has ended before it served; this one goes on", t->pid);
	pidfile_rewrite(t->held);
	take_back(t);
	return false;
}

/* The connection ends with it. */
static bool refuse(struct takeover *t, const char *why)
{
	takeover_send(t->fd, json_pack("{s:s, s:s}", "takeover", "refused", "why", why), NULL, 0);
	drop(t);
	return false;
}

static bool give(struct takeover *t, int signal_fd)
{
	char why[VARVE_ERROR_MAX];

	/* Once more: somebody may have given a command while the disks were probed. */
	if (!fits(t, t->asked, why) || !give_all(t, why))
		return refuse(t, why);
	if (send_all(t))
		return hear_the_end(t, signal_fd);
	/* Without them it opens nothing. */
	take_back(t);
	return refuse(t, "its sockets cannot be passed on");
}

/* One that is still being probed for somebody who has gone is waited for all the same. */
static void probe_all(struct takeover *t)
{
	struct lend *l = NULL;

	t->probing = true;
	while ((l = t->ops->next(t->program, l)))
		lend_probe(l); /* without a thread: all the longer may it take to close it */
}

static void answer(struct takeover *t, int signal_fd)
{
	enum takeover_heard heard = takeover_receive(t->fd, signal_fd, &t->asked, NULL, NULL);

	if (heard == TAKEOVER_STRANGE)
		refuse(t, "its question cannot be understood");
	else if (heard != TAKEOVER_HEARD)
		drop(t);
	else
		t->until_ms = now_ms() + PROBE_MS;
}

static void accept_one(struct takeover *t)
{
	t->fd = accept4(t->listener, NULL, NULL, SOCK_CLOEXEC);
	if (t->fd < 0) {
		if (errno == EAGAIN || errno == EINTR || errno == ECONNABORTED)
			return;
		if (!t->cannot_accept)
			complain("warning: --takeover: cannot be asked: %s; who asks waits until that works%s", strerror(errno),
				 errno == EMFILE ? " (ulimit -n)" : "");
		t->cannot_accept = true;
		t->until_ms = now_ms() + ACCEPT_PAUSE_MS;
		return;
	}
	t->cannot_accept = false;
	t->pid = takeover_peer(t->fd);
	t->pidfd = t->pid ? (int)syscall(SYS_pidfd_open, (pid_t)t->pid, 0) : -1;
	if (!t->pid)
		refuse(t, "it belongs to somebody else");
	else if (t->pidfd < 0)
		refuse(t, "its end could not be noticed");
}

/* One may be on its way back from an attempt before, or to a machine that has started. */
static bool is_moving(const struct takeover *t, char why[VARVE_ERROR_MAX])
{
	struct lend *l = NULL;

	while ((l = t->ops->next(t->program, l))) {
		if (lend_moves(l))
			return !no(why, "%s: its image is on its way, and its storage does not answer; ask again when it does", l->name);
	}
	return false;
}

/* The next step in PROBES. LEND_DONE: all the images can be had. */
static enum lend_result go_on(struct takeover *t, char why[VARVE_ERROR_MAX])
{
	if (is_moving(t, why))
		return LEND_UNDER_WAY;
	if (!t->probing) {
		if (!fits(t, t->asked, why))
			return LEND_FAILED;
		probe_all(t);
	}
	return result_of_all(t, why);
}

int takeover_settle(struct takeover *t, int signal_fd, bool *ret_over)
{
	char why[VARVE_ERROR_MAX];
	int64_t left = t && t->until_ms ? t->until_ms - now_ms() : -1;
	enum lend_result result;

	*ret_over = false;
	if (!t || !t->until_ms)
		return -1;
	if (!t->asked) {
		t->until_ms = left > 0 ? t->until_ms : 0;
		return (int)MAX(left, 0);
	}
	result = go_on(t, why);
	if (result == LEND_DONE)
		*ret_over = give(t, signal_fd);
	else if (result == LEND_FAILED || left <= 0)
		refuse(t, why);
	else
		return (int)left;
	return 0; /* what became of the images is to be seen to */
}

void takeover_turn(struct takeover *t, int signal_fd)
{
	if (t->asked)
		drop(t); /* it has gone; it has nothing to say now */
	else if (t->fd >= 0)
		answer(t, signal_fd);
	else
		accept_one(t);
}
