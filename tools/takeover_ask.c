/* SPDX-License-Identifier: MIT */
/*
 * tools/takeover_ask.c - the new side of a takeover
 *
 * Owns:    the connection to the old one, what came over it.
 * Assumes: signals that end the process are blocked, and readable.
 * Never:   opens an image for writing, or makes a socket, before the old one has let go of it or is gone.
 */
#include "takeover.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* What we would serve: of each image its header is read. NULL: one cannot be opened, which was told. */
static json_t *describe_all(const struct takeover_ops *ops, void *program)
{
	json_t *exports = json_array();
	struct lend *l = NULL;
	int failed = !exports;

	while (!failed && (l = ops->next(program, l))) {
		failed = lend_peek(l);
		for (struct lend_export *e = failed ? NULL : l->exports; e && !failed; e = e->next)
			failed = json_array_append_new(exports, takeover_describe(e)) < 0;
		lend_unpeek(l);
	}
	if (failed) {
		json_decref(exports);
		return NULL;
	}
	return exports;
}

/* *ret -1: it cannot be asked. Not 0, after a message: whether it can is not known. */
static int connect_to(long pid, int *ret)
{
	struct sockaddr_un addr;
	socklen_t len = takeover_address(&addr, pid);
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	*ret = -1;
	if (fd >= 0 && connect(fd, (struct sockaddr *)&addr, len) == 0) {
		/* Somebody else may have taken the name, and would be told what we serve, and give us sockets that are his. */
		if (takeover_peer(fd) == pid)
			*ret = fd;
		else
			close(fd);
		return 0;
	}
	if (fd >= 0 && errno == ECONNREFUSED) {
		close(fd);
		return 0;
	}
	complain("--takeover: process %ld cannot be asked: %s", pid, strerror(errno));
	if (fd >= 0)
		close(fd);
	return 1;
}

static void forget(struct takeover_from *t)
{
	int *const all[] = { &t->fd, &t->pidfd, &t->pid_fd };

	for (size_t i = 0; i < ARRAY_LEN(all); i++) {
		if (*all[i] >= 0)
			close(*all[i]);
		*all[i] = -1;
	}
}

/* The pidfile comes first, then sockets in the order of their names; so are the settings of their disks. */
static int use_fds(struct takeover_from *t, const json_t *reply, const int *fds, unsigned nr, const struct takeover_ops *ops,
		   void *program)
{
	const json_t *sockets = json_object_get(reply, "sockets"), *settings = json_object_get(reply, "settings");
	struct lend *l = NULL;
	struct lend_export *e = NULL;
	unsigned used = 0;
	int strange = 0;

	t->pid_fd = nr ? fds[0] : -1;
	while ((e = takeover_next(ops, program, &l, e))) {
		json_t *d = NULL, *name;
		size_t i;

		if (!lend_peek(l))
			d = takeover_describe(e);
		lend_unpeek(l);
		json_array_foreach(sockets, i, name) {
			if (d && i + 1 < nr && json_equal(name, json_object_get(d, "socket")) && !e->options->socket_fd) {
				e->options->socket_fd = fds[i + 1];
				strange |= lend_inherit(l, json_array_get(settings, i));
				used++;
			}
		}
		json_decref(d);
	}
	if (nr && used == nr - 1 && used == json_array_size(sockets) && !strange)
		return 0;
	complain("--takeover: process %ld sent what cannot be understood", t->pid);
	return 1;
}

static int converse(struct takeover_from *t, json_t *exports, const struct takeover_ops *ops, void *program, int signal_fd)
{
	int fds[TAKEOVER_EXPORTS_MAX + 1];
	unsigned nr = 0;
	json_t *reply = NULL;
	enum takeover_heard heard = TAKEOVER_GONE;
	const char *word;
	bool controlled = ops->controlled && ops->controlled(program);
	int ret = 0;

	if (takeover_send(t->fd, json_pack("{s:i, s:b, s:o}", "varve-takeover", 1, "controlled", controlled, "exports", exports), NULL,
			  0)) {
		heard = takeover_receive(t->fd, signal_fd, &reply, fds, &nr);
	} else if (errno != EPIPE && errno != ECONNRESET) {
		complain("--takeover: process %ld cannot be asked: %s", t->pid, strerror(errno));
		return 1;
	}
	word = info_str(reply, "takeover");
	if (heard == TAKEOVER_SIGNAL) {
		ret = 1;
	} else if (heard == TAKEOVER_STRANGE) {
		/* The connection ends before we do, and with it the descriptors that came: it goes on. */
		complain("--takeover: what process %ld answers cannot be understood, or there are too few file descriptors for it (ulimit -n)",
			 t->pid);
		ret = 1;
	} else if (heard == TAKEOVER_GONE) {
		/* It ends, or was killed: what it leaves is taken up as after a kill. */
		close(t->fd);
		t->fd = -1;
		ret = !takeover_wait_gone(t->pidfd, signal_fd);
		forget(t);
	} else if (word && !strcmp(word, "given")) {
		ret = use_fds(t, reply, fds, nr, ops, program);
	} else {
		complain("--takeover: process %ld goes on serving: %s", t->pid,
			 info_str(reply, "why") ? info_str(reply, "why") : "it answers what cannot be understood");
		ret = 1;
	}
	json_decref(reply);
	return ret;
}

int takeover_ask(struct takeover_from *t, const char *pidfile, const struct takeover_ops *ops, void *program, int signal_fd)
{
	json_t *exports;
	int ret;

	*t = (struct takeover_from){ .fd = -1, .pidfd = -1, .pid_fd = -1 };
	if (pidfile_find(pidfile, &t->pid, &t->pidfd, signal_fd))
		return 1;
	if (!t->pid)
		return 0;
	/* First, so that what cannot be opened here ends nobody there. */
	exports = describe_all(ops, program);
	if (!exports)
		return 1;
	ret = connect_to(t->pid, &t->fd);
	if (t->fd >= 0)
		return converse(t, exports, ops, program, signal_fd);
	json_decref(exports);
	if (ret)
		return ret;
	/* One that could not have the name at which it is asked, or in another network namespace. */
	ret = pidfile_end(pidfile, t->pid, t->pidfd, signal_fd);
	forget(t);
	return ret;
}

int takeover_serving(struct takeover_from *t, struct pidfile *held, const char *pidfile, int signal_fd)
{
	if (t->fd < 0)
		return pidfile_write(held, pidfile);
	if (pidfile_adopt(held, pidfile, t->pid_fd))
		return 1;
	t->pid_fd = -1; /* held's */
	/* If it is gone: as it should be, a little early. */
	takeover_send(t->fd, json_pack("{s:s}", "takeover", "serving"), NULL, 0);
	/* Told to end: that is heard of again. */
	takeover_wait_gone(t->pidfd, signal_fd);
	forget(t);
	return 0;
}

void takeover_end(struct takeover_from *t, const struct takeover_ops *ops, void *program)
{
	struct lend *l = NULL;
	struct lend_export *e = NULL;
	bool failed = t->fd >= 0;

	while ((e = takeover_next(ops, program, &l, e))) {
		if (e->options->socket_fd <= 0 || !e->options->socket_path)
			continue; /* none, or somebody else's */
		close(e->options->socket_fd);
		e->options->socket_fd = 0;
		if (failed && e->exp)
			varve_export_leave_socket(e->exp);
	}
	forget(t);
}
