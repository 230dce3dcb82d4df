/* SPDX-License-Identifier: MIT */
/*
 * tools/takeover.c - what both sides of a takeover need: messages, and the description of an export
 *
 * Assumes: the other side is of our user, which is checked by who connects and who accepts.
 * Never:   keeps a descriptor that was not asked for.
 */
#include "takeover.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <unistd.h>

int takeover_signals(void)
{
	sigset_t ends;
	int fd;

	sigemptyset(&ends);
	sigaddset(&ends, SIGTERM);
	sigaddset(&ends, SIGINT);
	sigaddset(&ends, SIGHUP);
	pthread_sigmask(SIG_BLOCK, &ends, NULL);
	fd = signalfd(-1, &ends, SFD_CLOEXEC | SFD_NONBLOCK);
	if (fd < 0)
		complain("signalfd: %s", strerror(errno));
	return fd;
}

/* An abstract name: it is gone with its process, and no directory has to be there. */
socklen_t takeover_address(struct sockaddr_un *addr, long pid)
{
	memset(addr, 0, sizeof(*addr));
	addr->sun_family = AF_UNIX;
	return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 +
			   (size_t)snprintf(addr->sun_path + 1, sizeof(addr->sun_path) - 1, "varve-takeover-%ld", pid));
}

/* ---- what an export is ---- */

struct lend_export *takeover_next(const struct takeover_ops *ops, void *program, struct lend **l, struct lend_export *e)
{
	e = e ? e->next : NULL;
	while (!e && (*l = ops->next(program, *l)))
		e = (*l)->exports;
	return e;
}

/* From the root on, without links in its directory. */
static void absolute(const char *path, char buf[PATH_MAX])
{
	const char *slash = strrchr(path, '/');
	char dir[PATH_MAX], real[PATH_MAX];

	snprintf(dir, sizeof(dir), "%.*s", slash ? (int)(slash - path) + 1 : 1, slash ? path : ".");
	if (!realpath(dir, real))
		*real = 0; /* bind() says what is wrong with it */
	if (snprintf(buf, PATH_MAX, "%s/%s", strcmp(real, "/") ? real : "", slash ? slash + 1 : path) >= PATH_MAX)
		*buf = 0;
}

/* A path may be no UTF-8, which JSON is: bytes that are no ASCII are told as "%hh", and so is '%'. */
static void to_ascii(const char *path, char *buf, size_t size)
{
	size_t at = 0;

	for (; *path && at + 4 < size; path++) {
		bool plain = *path > 0 && *path != '%';

		at += (size_t)snprintf(buf + at, size - at, plain ? "%c" : "%%%02x", (unsigned char)*path);
	}
	buf[at] = 0;
}

json_t *takeover_describe(const struct lend_export *e)
{
	const struct varve_vhost_user_blk_options *o = e->options;
	char path[PATH_MAX] = "", socket[3 * PATH_MAX], name[3 * PATH_MAX], image[3 * PATH_MAX];

	if (o->socket_path)
		absolute(o->socket_path, path);
	to_ascii(path, socket, sizeof(socket));
	to_ascii(e->of->id, image, sizeof(image));
	to_ascii(e->of->file, name, sizeof(name));
	return json_pack("{s:s, s:s, s:s, s:s, s:i, s:i, s:b}", "socket", socket, "image", image, "name", name, "format",
			 varve_image_format(e->of->image), "queues", (int)o->nr_queues, "queue-size",
			 o->queue_size ? (int)o->queue_size : 1024, "writable", o->writable);
}

/* ---- messages ---- */

union control {
	struct cmsghdr header;
	char room[CMSG_SPACE(sizeof(int) * (TAKEOVER_EXPORTS_MAX + 1))];
};

bool takeover_send(int fd, json_t *message, const int *fds, unsigned nr_fds)
{
	char *text = json_dumps(message, JSON_COMPACT);
	struct iovec iov = { .iov_base = text, .iov_len = text ? strlen(text) : 0 };
	struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1 };
	union control control = { .room = { 0 } };
	ssize_t n = -1;

	json_decref(message);
	if (nr_fds) {
		m.msg_control = &control;
		m.msg_controllen = CMSG_SPACE(sizeof(int) * nr_fds);
		control.header.cmsg_level = SOL_SOCKET;
		control.header.cmsg_type = SCM_RIGHTS;
		control.header.cmsg_len = CMSG_LEN(sizeof(int) * nr_fds);
		memcpy(CMSG_DATA(&control.header), fds, sizeof(int) * nr_fds);
	}
	if (text && iov.iov_len <= TAKEOVER_PACKET_MAX)
		n = sendmsg(fd, &m, MSG_NOSIGNAL);
	free(text);
	return n >= 0;
}

static void keep_fds(struct msghdr *m, int *ret_fds, unsigned *ret_nr_fds)
{
	for (struct cmsghdr *c = CMSG_FIRSTHDR(m); c; c = CMSG_NXTHDR(m, c)) {
		unsigned nr = (unsigned)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));

		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		for (unsigned i = 0; i < nr; i++) {
			int fd;

			memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(fd));
			if (ret_fds && *ret_nr_fds <= TAKEOVER_EXPORTS_MAX)
				ret_fds[(*ret_nr_fds)++] = fd;
			else
				close(fd);
		}
	}
}

enum takeover_heard takeover_receive(int fd, int signal_fd, json_t **ret, int *ret_fds, unsigned *ret_nr_fds)
{
	struct pollfd p[2] = { { .fd = fd, .events = POLLIN }, { .fd = signal_fd, .events = POLLIN } };
	char *text = malloc(TAKEOVER_PACKET_MAX);
	struct iovec iov = { .iov_base = text, .iov_len = TAKEOVER_PACKET_MAX };
	union control control;
	struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control) };
	unsigned nr_fds = 0;
	ssize_t n;

	*ret = NULL;
	if (!text)
		return TAKEOVER_STRANGE;
	/* What was said counts, also when we are told to end. */
	while (poll(p, 2, -1) < 0 && errno == EINTR)
		;
	if (!p[0].revents) {
		free(text);
		return TAKEOVER_SIGNAL;
	}
	n = recvmsg(fd, &m, MSG_CMSG_CLOEXEC);
	if (n <= 0) {
		bool gone = n == 0 || errno == ECONNRESET;

		free(text);
		return gone ? TAKEOVER_GONE : TAKEOVER_STRANGE;
	}
	keep_fds(&m, ret_fds, &nr_fds);
	if (!(m.msg_flags & (MSG_TRUNC | MSG_CTRUNC)))
		*ret = json_loadb(text, (size_t)n, JSON_REJECT_DUPLICATES, NULL);
	free(text);
	if (json_is_object(*ret)) {
		if (ret_nr_fds)
			*ret_nr_fds = nr_fds;
		return TAKEOVER_HEARD;
	}
	for (unsigned i = 0; i < nr_fds; i++)
		close(ret_fds[i]);
	json_decref(*ret);
	*ret = NULL;
	return TAKEOVER_STRANGE;
}

long takeover_peer(int fd)
{
	struct ucred who = { 0 };
	socklen_t len = sizeof(who);

	return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &len) == 0 && who.uid == geteuid() ? who.pid : 0;
}

bool takeover_wait_gone(int pidfd, int signal_fd)
{
	struct pollfd p[2] = { { .fd = pidfd, .events = POLLIN }, { .fd = signal_fd, .events = POLLIN } };

	while (pidfd >= 0 && poll(p, 2, -1) < 0 && errno == EINTR)
		;
	return pidfd < 0 || p[0].revents;
}
