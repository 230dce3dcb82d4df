/* SPDX-License-Identifier: MIT */
/*
 * tools/serve_control.c - the control socket of `varve serve`: who is connected, and their lines
 *
 * Owns:    the listening socket and its name, the connections.
 * Assumes: the main thread. Commands of one connection are carried out one after the other; who asks for one that may wait
 *          waits, and so do those who want something else of that kind of the same disk.
 *          What a client has said is done, in order, also when it has gone by then: who sends "pause", "snapshot-create" and
 *          "resume" in one go and leaves (or dies) leaves no disk behind that is paused. Only its answers are lost.
 * Never:   waits for somebody who does not read its answers, or keeps more than a line of anybody.
 */
#include "serve.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define CLIENTS_MAX 16
#define BACKLOG 128 /* a connection that does not wait is refused beyond that */
#define LINE_MAX_LEN 65536u

/* After accept() failed for want of descriptors or memory, the socket stays readable: do not spin over it. */
#define ACCEPT_PAUSE_MS 500

struct client {
	int fd;	       /* -1: nobody */
	uint64_t turn; /* of the last sign of life */
	size_t have;
	char in[LINE_MAX_LEN];
	char *out; /* the answer being sent; nothing is read meanwhile */
	size_t out_len, out_sent;
	struct serve_job **asked; /* its command is a disk's job; NULL: none */
	bool queues;		  /* the next one has to wait for somebody else's job */
	bool gone;		  /* it has left; there are lines of it to be carried out */
};

struct serve_control {
	struct serve *s;
	uint64_t turn; /* counts connections and what comes from them */
	int fd;
	bool cannot_accept; /* the last time; it was told */
	bool resting;	    /* from that, until the next turn that comes by time */
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
	if (listen(c->fd, BACKLOG) < 0) {
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
	s->job_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (s->job_fd < 0) {
		complain("eventfd: %s", strerror(errno));
		free(c);
		return NULL;
	}
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
	cl->asked = NULL; /* the job goes on; nobody gets its answer */
	cl->queues = cl->gone = false;
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

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	cl->gone = n < 0;
	cl->out_sent += n < 0 ? 0 : (size_t)n;
	if (cl->gone || cl->out_sent == cl->out_len) {
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
	if (cl->gone) {
		free(text);
		return;
	}
	text[len] = '\n'; /* in place of the NUL: the length says where it ends */
	cl->out = text;
	cl->out_len = len + 1;
	cl->out_sent = 0;
	send_more(cl);
}

static char *no_thread(int error)
{
	char *text = NULL;

	if (asprintf(&text, "{\"error\": \"no thread for the command: %s\"}", strerror(error)) < 0)
		return NULL;
	return text;
}

/* False: not now. Sending the answer may end the connection; the line is still in its buffer. */
static bool run_line(struct serve_control *c, struct client *cl, size_t len)
{
	struct serve_disk *d;
	enum serve_kind kind = serve_command_kind(c->s, cl->in, len, &d);
	struct serve_job **job = !d ? NULL : kind == SERVE_LOOK ? &d->look : &d->job;
	int ret;

	if (kind == SERVE_RESUME && d->job)
		varve_image_resume(d->lend.image); /* that is what it may be waiting for */
	if (kind != SERVE_AT_ONCE && (*job || lend_moves(&d->lend)))
		return false;
	if (kind == SERVE_JOB || kind == SERVE_LOOK) {
		ret = serve_job_start(c->s, job, cl->in, len);
		if (ret == 0)
			cl->asked = job;
		else
			answer(cl, no_thread(-ret));
		return true;
	}
	answer(cl, serve_command(c->s, cl->in, len));
	return true;
}

/* Of a client that waits for a job nothing is wanted but to know that it has gone. */
static bool waits(const struct client *cl)
{
	return !cl->out && (cl->asked || cl->queues);
}

/* More of what it has said, for which there is room. 1; 0: nothing now; -1: that was all. */
static int receive(struct client *cl)
{
	ssize_t n = recv(cl->fd, cl->in + cl->have, sizeof(cl->in) - cl->have, MSG_DONTWAIT);

	if (n > 0)
		cl->have += (size_t)n;
	return n > 0 ? 1 : n < 0 && (errno == EAGAIN || errno == EINTR) ? 0 : -1;
}

static void lines_end(struct serve_control *c, struct client *cl)
{
	if (cl->have == sizeof(cl->in))
		complain("%s: a command of more than %u bytes; the connection is closed", c->s->control_path, LINE_MAX_LEN);
	if (cl->gone || cl->have == sizeof(cl->in))
		drop(cl);
}

/* Carries out the lines that are there, as long as answers go out; of who has gone, also those that the kernel still has. */
static void run_lines(struct serve_control *c, struct client *cl)
{
	char *end;

	cl->queues = false;
	do {
		while (cl->fd >= 0 && !cl->out && !cl->asked && (end = memchr(cl->in, '\n', cl->have))) {
			size_t len = (size_t)(end - cl->in);

			if (!run_line(c, cl, len)) {
				cl->queues = true;
				return;
			}
			if (cl->fd < 0)
				return; /* no memory for its answer */
			cl->have -= len + 1;
			memmove(cl->in, end + 1, cl->have);
		}
	} while (cl->fd >= 0 && cl->gone && !cl->asked && cl->have < sizeof(cl->in) && receive(cl) > 0);
	if (cl->fd >= 0 && !cl->out && !cl->asked)
		lines_end(c, cl);
}

static void read_more(struct serve_control *c, struct client *cl)
{
	int ret = receive(cl);

	if (ret < 0)
		drop(cl);
	if (ret <= 0)
		return;
	cl->turn = ++c->turn;
	run_lines(c, cl);
}

/* It has gone while it waited. It stays as long as it has something to be done; the job that it asked for goes on without it. */
static void has_gone(struct client *cl)
{
	cl->gone = true;
	while (cl->have < sizeof(cl->in) && receive(cl) > 0)
		;
	if (!memchr(cl->in, '\n', cl->have))
		drop(cl);
}

/*
 * A place for one more: free, or of the one that has been silent longest, with nothing to come to it. Then of one that has gone and left
 * commands: clients that come and go must not lock everybody out, beside a disk that is stuck. NULL: all are busy.
 */
static struct client *place(struct serve_control *c)
{
	struct client *ret = NULL, *left = NULL;

	for (unsigned i = 0; i < CLIENTS_MAX; i++) {
		struct client *cl = &c->client[i];

		if (cl->fd < 0)
			return cl;
		if (cl->gone)
			left = !left || cl->turn < left->turn ? cl : left;
		else if (!cl->out && !waits(cl) && (!ret || cl->turn < ret->turn))
			ret = cl;
	}
	return ret ? ret : left;
}

static void accept_one(struct serve_control *c)
{
	int fd = accept4(c->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	struct client *cl = place(c);

	if (fd < 0 && errno != EAGAIN && errno != EINTR && errno != ECONNABORTED) {
		if (!c->cannot_accept)
			complain("warning: %s: cannot accept a client: %s; it waits until that works%s", c->s->control_path, strerror(errno),
				 errno == EMFILE ? " (ulimit -n)" : "");
		c->cannot_accept = c->resting = true;
	}
	if (fd >= 0)
		c->cannot_accept = false;
	if (fd >= 0 && cl) {
		if (cl->gone)
			complain("warning: %s: commands of a client that has left are given up: others want its place", c->s->control_path);
		drop(cl);
		cl->fd = fd;
		cl->turn = ++c->turn;
	} else if (fd >= 0) {
		close(fd);
	}
}

/* Gives whoever asked for it the answer of a job, if that is over. */
static void job_done(struct serve_control *c, struct serve_job **job)
{
	struct client *who = NULL;
	char *text;

	if (!serve_job_take(job, &text))
		return;
	for (unsigned k = 0; k < CLIENTS_MAX && !who; k++)
		who = c->client[k].asked == job ? &c->client[k] : NULL;
	if (!who) {
		free(text);
		return;
	}
	who->asked = NULL;
	answer(who, text);
}

/* After that those who had to wait may have theirs. */
static void jobs_done(struct serve_control *c)
{
	uint64_t count;

	if (read(c->s->job_fd, &count, sizeof(count)) < 0)
		return; /* it was for one that is taken already */
	for (unsigned i = 0; i < c->s->nr_disks; i++) {
		job_done(c, &c->s->disk[i].job);
		job_done(c, &c->s->disk[i].look);
	}
	serve_settle(c->s); /* who wants the image itself comes before the next command */
	for (unsigned k = 0; k < CLIENTS_MAX; k++) {
		if (c->client[k].fd >= 0)
			run_lines(c, &c->client[k]);
	}
}

/* Those who had to wait for an image that was on its way. */
static void images_arrived(struct serve_control *c)
{
	for (unsigned i = 0; c && i < CLIENTS_MAX; i++) {
		if (c->client[i].fd >= 0 && c->client[i].queues)
			run_lines(c, &c->client[i]);
	}
}

static bool listens(struct serve_control *c)
{
	bool rests = c && c->resting;

	if (c)
		c->resting = false;
	return c && !rests && place(c); /* who finds no place waits in the backlog */
}

void serve_control_run(struct serve *s)
{
	static const struct client nobody = { .fd = -1 };
	struct pollfd p[CLIENTS_MAX + 5];

	for (;;) {
		int timeout = serve_settle(s);
		struct serve_control *c;
		bool over;

		timeout = sooner(timeout, takeover_settle(s->answers, s->signal_fd, &over));
		if (over)
			return;
		c = s->asked; /* another one after a takeover that failed */
		images_arrived(c);
		if (c && c->resting)
			timeout = sooner(timeout, ACCEPT_PAUSE_MS);
		for (unsigned i = 0; i < CLIENTS_MAX; i++) {
			const struct client *cl = c ? &c->client[i] : &nobody;

			p[i] = (struct pollfd){ .fd = cl->gone ? -1 : cl->fd, .events = cl->out ? POLLOUT : waits(cl) ? 0 : POLLIN };
		}
		p[CLIENTS_MAX] = (struct pollfd){ .fd = listens(c) ? c->fd : -1, .events = POLLIN };
		p[CLIENTS_MAX + 1] = (struct pollfd){ .fd = s->signal_fd, .events = POLLIN };
		p[CLIENTS_MAX + 2] = (struct pollfd){ .fd = s->wake_fd, .events = POLLIN };
		p[CLIENTS_MAX + 3] = (struct pollfd){ .fd = s->job_fd, .events = POLLIN };
		p[CLIENTS_MAX + 4] = (struct pollfd){ .fd = takeover_fd(s->answers), .events = POLLIN };
		if (poll(p, CLIENTS_MAX + 5, timeout) < 0 && errno != EINTR) {
			complain("poll: %s", strerror(errno));
			return;
		}
		if (p[CLIENTS_MAX + 1].revents)
			return;
		for (unsigned i = 0; c && i < CLIENTS_MAX; i++) {
			struct client *cl = &c->client[i];

			if (!p[i].revents)
				continue;
			if (waits(cl)) {
				has_gone(cl);
				continue;
			}
			if (cl->out)
				send_more(cl);
			else
				read_more(c, cl);
			if (!cl->out)
				run_lines(c, cl);
		}
		if (p[CLIENTS_MAX + 3].revents)
			jobs_done(c);
		if (p[CLIENTS_MAX].revents)
			accept_one(c);
		if (p[CLIENTS_MAX + 4].revents)
			takeover_turn(s->answers, s->signal_fd);
	}
}
