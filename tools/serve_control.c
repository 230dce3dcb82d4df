/* SPDX-License-Identifier: MIT */
/*
 * tools/serve_control.c - the control socket of `varve serve`: who is connected, and their lines
 *
 * Owns:    the listening socket and its name, the connections.
 * Assumes: the main thread; commands are carried out one after the other, while everybody waits.
 * Never:   waits for somebody who does not read its answers, or keeps more than a line of anybody.
 */
#include "serve.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define CLIENTS_MAX 16
#define LINE_MAX_LEN 65536u

struct client {
	int fd; /* -1: nobody */
	size_t have;
	char in[LINE_MAX_LEN];
	char *out; /* the answer being sent; nothing is read meanwhile */
	size_t out_len, out_sent;
};

struct serve_control {
	struct serve *s;
	int fd;
	dev_t dev; /* of the socket's file, to know it again */
	ino_t ino;
	struct client client[CLIENTS_MAX];
};

/* ---- the socket ---- */

/* Makes room for the socket: nothing is there, or one that nobody listens on any more. */
static int clear_path(const struct sockaddr_un *addr)
{
	struct stat st;
	int fd, ret;

	if (lstat(addr->sun_path, &st) < 0)
		return 0; /* bind() says what is wrong, if it is not just absent */
	if (!S_ISSOCK(st.st_mode)) {
		complain("%s: exists and is not a socket; choose another path or remove it", addr->sun_path);
		return 1;
	}
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	ret = fd < 0 ? 0 : connect(fd, (const struct sockaddr *)addr, sizeof(*addr)) < 0 ? errno : 0;
	if (fd >= 0)
		close(fd);
	if (ret != ECONNREFUSED) {
		complain("%s: another program listens on this socket", addr->sun_path);
		return 1;
	}
	unlink(addr->sun_path); /* bind() tells if it could not be */
	return 0;
}

static int make_socket(struct serve_control *c, const char *path)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	struct stat st;

	if (strlen(path) >= sizeof(addr.sun_path)) {
		complain("%s: a socket path has at most %zu bytes", path, sizeof(addr.sun_path) - 1);
		return 1;
	}
	strcpy(addr.sun_path, path);
	if (clear_path(&addr))
		return 1;
	c->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	/* Its owner's alone: who may speak here can stop the disks. The mode is taken over by bind(). */
	if (c->fd < 0 || fchmod(c->fd, 0600) < 0 || bind(c->fd, (struct sockaddr *)&addr, sizeof(addr)) < 0) {
		complain("%s: cannot make the control socket: %s", path, strerror(errno));
		return 1;
	}
	if (lstat(path, &st) == 0) {
		c->dev = st.st_dev;
		c->ino = st.st_ino;
	}
	if (listen(c->fd, CLIENTS_MAX) < 0) {
		complain("%s: cannot listen: %s", path, strerror(errno));
		return 1;
	}
	return 0;
}

struct serve_control *serve_control_new(struct serve *s)
{
	struct serve_control *c = calloc(1, sizeof(*c));

	if (!c) {
		complain("%s: %s", s->control_path, strerror(ENOMEM));
		return NULL;
	}
	c->s = s;
	c->fd = -1;
	for (unsigned i = 0; i < CLIENTS_MAX; i++)
		c->client[i].fd = -1;
	if (make_socket(c, s->control_path)) {
		serve_control_free(c);
		return NULL;
	}
	return c;
}

static void drop(struct client *cl)
{
	if (cl->fd >= 0)
		close(cl->fd);
	free(cl->out);
	cl->fd = -1;
	cl->out = NULL;
	cl->have = 0;
}

void serve_control_free(struct serve_control *c)
{
	struct stat st;

	if (!c)
		return;
	for (unsigned i = 0; i < CLIENTS_MAX; i++)
		drop(&c->client[i]);
	if (c->ino && lstat(c->s->control_path, &st) == 0 && st.st_dev == c->dev && st.st_ino == c->ino)
		unlink(c->s->control_path);
	if (c->fd >= 0)
		close(c->fd);
	free(c);
}

/* ---- lines ---- */

static void send_more(struct client *cl)
{
	ssize_t n = send(cl->fd, cl->out + cl->out_sent, cl->out_len - cl->out_sent, MSG_NOSIGNAL | MSG_DONTWAIT);

	if (n < 0) {
		if (errno != EAGAIN && errno != EINTR)
			drop(cl);
		return;
	}
	cl->out_sent += (size_t)n;
	if (cl->out_sent == cl->out_len) {
		free(cl->out);
		cl->out = NULL;
	}
}

static void answer(struct client *cl, char *text)
{
	size_t len = text ? strlen(text) : 0;

	if (!text) {
		drop(cl);
		return;
	}
	text[len] = '\n'; /* in place of the NUL: the length says where it ends */
	cl->out = text;
	cl->out_len = len + 1;
	cl->out_sent = 0;
	send_more(cl);
}

/* Carries out the lines that are there, as long as answers go out. */
static void run_lines(struct serve_control *c, struct client *cl)
{
	char *end;

	while (cl->fd >= 0 && !cl->out && (end = memchr(cl->in, '\n', cl->have))) {
		size_t len = (size_t)(end - cl->in);
		char *text = serve_command(c->s, cl->in, len);

		cl->have -= len + 1;
		memmove(cl->in, end + 1, cl->have);
		answer(cl, text);
	}
}

static void read_more(struct serve_control *c, struct client *cl)
{
	ssize_t n = recv(cl->fd, cl->in + cl->have, sizeof(cl->in) - cl->have, MSG_DONTWAIT);

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n <= 0) {
		drop(cl);
		return;
	}
	cl->have += (size_t)n;
	run_lines(c, cl);
	if (cl->have == sizeof(cl->in) && !cl->out) {
		complain("%s: a command of more than %u bytes; the connection is closed", c->s->control_path,
			 LINE_MAX_LEN);
		drop(cl);
	}
}

static void accept_one(struct serve_control *c)
{
	int fd = accept4(c->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

	for (unsigned i = 0; fd >= 0 && i < CLIENTS_MAX; i++) {
		if (c->client[i].fd < 0) {
			c->client[i].fd = fd;
			return;
		}
	}
	if (fd >= 0)
		close(fd);
}

void serve_control_run(struct serve *s, int signal_fd)
{
	struct serve_control *c = s->asked;
	static const struct client nobody = { .fd = -1 };
	struct pollfd p[CLIENTS_MAX + 3];

	for (;;) {
		int timeout = serve_hand_over(s);
		unsigned nr_clients = 0;

		for (unsigned i = 0; i < CLIENTS_MAX; i++) {
			const struct client *cl = c ? &c->client[i] : &nobody;

			nr_clients += cl->fd >= 0;
			p[i] = (struct pollfd){ .fd = cl->fd, .events = cl->out ? POLLOUT : POLLIN };
		}
		/* Who finds no place waits in the backlog. */
		p[CLIENTS_MAX] = (struct pollfd){ .fd = c && nr_clients < CLIENTS_MAX ? c->fd : -1, .events = POLLIN };
		p[CLIENTS_MAX + 1] = (struct pollfd){ .fd = signal_fd, .events = POLLIN };
		p[CLIENTS_MAX + 2] = (struct pollfd){ .fd = s->wake_fd, .events = POLLIN };
		if (poll(p, CLIENTS_MAX + 3, timeout) < 0 && errno != EINTR) {
			complain("poll: %s", strerror(errno));
			return;
		}
		if (p[CLIENTS_MAX + 1].revents)
			return;
		for (unsigned i = 0; i < CLIENTS_MAX; i++) {
			struct client *cl = &c->client[i];

			if (!p[i].revents)
				continue;
			if (cl->out)
				send_more(cl);
			else
				read_more(c, cl);
			if (!cl->out)
				run_lines(c, cl);
		}
		if (p[CLIENTS_MAX].revents)
			accept_one(c);
	}
}
