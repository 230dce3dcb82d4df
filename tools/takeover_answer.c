/* SPDX-License-Identifier: MIT */
/*
 * tools/takeover_answer.c - the old side of a takeover: what it serves goes to whoever follows, or stays
 *
 *     SERVES ──asked, and it fits: images closed──▶ GIVEN ──"serving", or told to end──▶ over
 *        ▲                                            │
 *        └───── the new one is gone without it ───────┘
 *
 * Owns:    the socket at which it is asked, the one connection.
 * Assumes: the main thread, which does nothing else in GIVEN.
 * Never:   ends, or lets a socket or the pidfile go, before the new one says that it serves.
 */
#include "takeover.h"

#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

struct takeover {
	const struct takeover_ops *ops;
	void *program;
	struct pidfile *held;
	int listener;
	int fd;	   /* who asks; -1: nobody */
	int pidfd; /* of that process */
	long pid;
};

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
	return !t ? -1 : t->fd >= 0 ? t->fd : t->listener;
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

static bool is_stopped(const struct lend *l, char why[VARVE_ERROR_MAX])
{
	return l->held && lend_is_stopped(l) && !no(why, "%s: an error has stopped it; ask again when it has been resumed", l->name);
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
		if (l->ops->busy && l->ops->busy(l->disk))
			return no(why, "%s: a command is being carried out; ask again when it is done", l->name);
		/* The next one starts it paused, too; there somebody must be able to resume it. */
		if (l->stopped && !json_is_true(json_object_get(asked, "controlled")))
			return no(why, "%s: somebody has paused it; ask again when it has been resumed, or with --control", l->name);
		if (is_stopped(l, why))
			return false;
	}
	return true;
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

static bool give_all(struct takeover *t, char why[VARVE_ERROR_MAX])
{
	struct lend *l = NULL;

	if (t->ops->leave)
		t->ops->leave(t->program);
	while ((l = t->ops->next(t->program, l))) {
		/* Flushing those before it may have taken long; and what was in flight may have failed only now. */
		if (is_stopped(l, why) || lend_give(l)) {
			if (!is_stopped(l, why))
				no(why, "%s cannot be closed: %s", l->name, l->trouble);
			take_back(t);
			return false;
		}
	}
	return true;
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

static bool answer(struct takeover *t, int signal_fd)
{
	char why[VARVE_ERROR_MAX];
	json_t *asked;
	enum takeover_heard heard = takeover_receive(t->fd, signal_fd, &asked, NULL, NULL);
	bool fit;

	if (heard == TAKEOVER_STRANGE)
		return refuse(t, "its question cannot be understood");
	if (heard != TAKEOVER_HEARD) {
		drop(t);
		return false;
	}
	fit = fits(t, asked, why);
	json_decref(asked);
	if (!fit || !give_all(t, why))
		return refuse(t, why);
	if (send_all(t))
		return hear_the_end(t, signal_fd);
	/* Without them it opens nothing. */
	take_back(t);
	return refuse(t, "its sockets cannot be passed on");
}

static void accept_one(struct takeover *t)
{
	t->fd = accept4(t->listener, NULL, NULL, SOCK_CLOEXEC);
	if (t->fd < 0)
		return;
	t->pid = takeover_peer(t->fd);
	t->pidfd = t->pid ? (int)syscall(SYS_pidfd_open, (pid_t)t->pid, 0) : -1;
	if (!t->pid)
		refuse(t, "it belongs to somebody else");
	else if (t->pidfd < 0)
		refuse(t, "its end could not be noticed");
}

bool takeover_turn(struct takeover *t, int signal_fd)
{
	if (t->fd >= 0)
		return answer(t, signal_fd);
	accept_one(t);
	return false;
}
