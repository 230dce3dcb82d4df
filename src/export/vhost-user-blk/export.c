/* SPDX-License-Identifier: MIT */
/*
 * vhost-user-blk/export.c - one served disk: its socket, its queues, start and stop
 *
 * Owns:    the listening socket and its name in the file system, the session, the queues' attachment.
 * Assumes: start and stop are called by a thread that runs none of the queues.
 * Never:   removes a file that it did not make, unless it is a socket that nobody listens on.
 *
 * While a front end is connected nobody is accepted: the next one waits in the socket's backlog.
 */
#include "export/vhost-user-blk/export.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "block/policy.h"
#include "export/vhost-user-blk/session.h"
#include "export/vhost-user-blk/strange.h"

#define RINGS_MAX 64
#define QUEUE_SIZE_DEFAULT 1024
#define BACKLOG 8

/* After accept() failed for want of descriptors or memory, the socket stays readable: do not spin over it. */
#define ACCEPT_PAUSE_NS 500000000ull

/* How often somebody who waits for requests in flight looks whether they may wait for him. */
#define LOOK_NS 10000000ull

/* How long he waits: what takes longer does not come back, for all he knows, and the machine is to go on. */
#define IN_FLIGHT_NS 10000000000ull

struct vublk {
	/* set at start */
	char *path;
	char *name; /* "vhost-user-blk: PATH", for the log */
	struct blk_disk disk;
	struct queue *control;
	unsigned nr_queues;
	struct queue **queues;
	bool attached;
	bool named; /* the socket's name is ours to remove */
	dev_t dev;  /* of the socket's file, to know it again */
	ino_t ino;

	/* control thread */
	struct watch listener;
	bool listening;
	struct timer retry;
	bool cannot_accept; /* and the log says so */
	bool stopping;
	uint64_t nr_sessions;
	struct waitlist stopped, turned;
	struct session session;
	void (*demand)(void *user_data, bool wanted); /* of the options */
	void *user_data;

	/* the disk's home queue tells, control hears */
	struct len_watch len_watch;
	struct msg len_msg;
	_Atomic bool len_sent;
	bool len_watched; /* start and stop */
};

/* ---- accepting ---- */

static void pause_listening(struct vublk *v)
{
	if (v->listening)
		watch_del(v->control, &v->listener);
	v->listening = false;
}

/* Not while descriptors of the last session are still being closed: a front end that sends such would come with more. */
static int listen_again(struct vublk *v)
{
	int ret;

	if (strange_debt_is_open(v->session.msg.debt))
		return -EBUSY;
	ret = v->listening ? 0 : watch_add(v->control, &v->listener);

	v->listening = ret == 0;
	return ret;
}

static void retry_fired(struct timer *t)
{
	struct vublk *v = container_of(t, struct vublk, retry);

	if (listen_again(v) < 0)
		timer_set(v->control, t, queue_now(v->control) + ACCEPT_PAUSE_NS);
}

static void listener_ready(struct watch *w, uint32_t events)
{
	struct vublk *v = container_of(w, struct vublk, listener);
	int fd = accept4(w->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

	(void)events;
	if (fd >= 0) {
		pause_listening(v);
		v->cannot_accept = false;
		v->nr_sessions++;
		session_open(&v->session, fd);
	} else if (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED) {
		if (!v->cannot_accept)
			complain_about(&v->session.complaints, v->control, "cannot accept a front end: %s; it waits until that works%s",
				       strerror(errno), errno == EMFILE ? " (ulimit -n)" : "");
		v->cannot_accept = true;
		pause_listening(v);
		timer_set(v->control, &v->retry, queue_now(v->control) + ACCEPT_PAUSE_NS);
	}
}

static void session_closed(struct session *s)
{
	struct vublk *v = container_of(s, struct vublk, session);

	if (v->stopping)
		waitlist_wake_all(&v->stopped);
	else if (listen_again(v) < 0)
		timer_set(v->control, &v->retry, queue_now(v->control) + ACCEPT_PAUSE_NS);
}

static void session_turned(struct session *s)
{
	waitlist_wake_all(&container_of(s, struct vublk, session)->turned);
}

static void session_demanded(struct session *s)
{
	struct vublk *v = container_of(s, struct vublk, session);

	if (v->demand)
		v->demand(v->user_data, s->demand);
}

/* ---- the socket ---- */

/* Nobody listens on the socket at addr any more: a program died without removing it. */
static bool is_dead(const struct sockaddr_un *addr)
{
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	bool dead;

	if (fd < 0)
		return false;
	dead = connect(fd, (const struct sockaddr *)addr, sizeof(*addr)) < 0 && errno == ECONNREFUSED;
	close(fd);
	return dead;
}

/* Makes room for our socket: nothing is there, or a dead socket, which is removed. */
static int clear_path(const struct sockaddr_un *addr, struct varve_error *err)
{
	struct stat st;

	if (lstat(addr->sun_path, &st) < 0)
		return errno == ENOENT ? 0 : varve_error_errno(err, -errno, "%s", addr->sun_path);
	if (!S_ISSOCK(st.st_mode))
		return varve_error_set(err, -EEXIST,
				       "%s: exists and is not a socket; choose another path or remove it",
				       addr->sun_path);
	if (!is_dead(addr))
		return varve_error_set(err, -EADDRINUSE, "%s: another program listens on this socket",
				       addr->sun_path);
	if (unlink(addr->sun_path) < 0 && errno != ENOENT)
		return varve_error_errno(err, -errno,
					 "%s: cannot remove the socket of a program that has ended",
					 addr->sun_path);
	return 0;
}

static int make_socket(struct vublk *v, struct varve_error *err)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	struct stat st;
	int fd, ret;

	if (strlen(v->path) >= sizeof(addr.sun_path))
		return varve_error_set(err, -ENAMETOOLONG,
				       "%s: a socket path has at most %zu bytes, this one has %zu", v->path,
				       sizeof(addr.sun_path) - 1, strlen(v->path));
	strcpy(addr.sun_path, v->path);
	ret = clear_path(&addr, err);
	if (ret < 0)
		return ret;
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return varve_error_errno(err, -errno, "%s: socket", v->path);
	if (bind(fd, (struct sockaddr *)&addr, sizeof(addr)) < 0) {
		ret = varve_error_errno(err, -errno, "%s: cannot make the socket", v->path);
		close(fd);
		return ret;
	}
	if (listen(fd, BACKLOG) < 0 || lstat(v->path, &st) < 0) {
		ret = varve_error_errno(err, -errno, "%s: cannot listen", v->path);
		(void)unlink(v->path); /* made a moment ago */
		close(fd);
		return ret;
	}
	v->dev = st.st_dev;
	v->ino = st.st_ino;
	v->named = true;
	v->listener = (struct watch){ .fd = fd, .events = EPOLLIN, .ready = listener_ready };
	return 0;
}

static bool socket_is(int fd, int option, int value)
{
	int found = -1;
	socklen_t len = sizeof(found);

	return getsockopt(fd, SOL_SOCKET, option, &found, &len) == 0 && found == value;
}

/* One that listens already: see socket_fd in the options. */
static int adopt_socket(struct vublk *v, int given, bool named, struct varve_error *err)
{
	struct stat st;
	int fd, flags;

	if (!socket_is(given, SO_DOMAIN, AF_UNIX) || !socket_is(given, SO_TYPE, SOCK_STREAM) ||
	    !socket_is(given, SO_ACCEPTCONN, 1))
		return varve_error_set(err, -EINVAL, "%s: descriptor %d is no unix stream socket that listens", v->path, given);
	fd = fcntl(given, F_DUPFD_CLOEXEC, 3);
	flags = fd < 0 ? -1 : fcntl(fd, F_GETFL);
	if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0) {
		int ret = varve_error_errno(err, -errno, "%s: descriptor %d", v->path, given);

		if (fd >= 0)
			close(fd);
		return ret;
	}
	if (named && lstat(v->path, &st) == 0 && S_ISSOCK(st.st_mode)) {
		v->dev = st.st_dev;
		v->ino = st.st_ino;
		v->named = true;
	}
	v->listener = (struct watch){ .fd = fd, .events = EPOLLIN, .ready = listener_ready };
	return 0;
}

int vublk_socket(const struct vublk *v)
{
	int fd = fcntl(v->listener.fd, F_DUPFD_CLOEXEC, 3);

	return fd < 0 ? -errno : fd;
}

void vublk_leave_socket(struct vublk *v)
{
	v->named = false;
}

/* Closes the socket and removes its name, if that is still ours. */
static void remove_socket(struct vublk *v)
{
	struct stat st;

	if (v->listener.fd < 0)
		return;
	if (v->named && lstat(v->path, &st) == 0 && st.st_dev == v->dev && st.st_ino == v->ino)
		(void)unlink(v->path); /* gone already is as good */
	close(v->listener.fd);
	v->listener.fd = -1;
}

/* ---- attaching the queues ---- */

struct attach_call {
	struct vublk *v;
	struct node *top;
	unsigned i;
	struct varve_error *err;
};

static int attach_one(struct fiber *f, void *arg)
{
	struct attach_call *a = arg;

	(void)f;
	return node_attach(a->top, a->v->queues[a->i], a->err);
}

static int detach_one(struct fiber *f, void *arg)
{
	struct attach_call *a = arg;

	node_detach(f, a->top, a->v->queues[a->i]);
	return 0;
}

/* The first nr queues. */
static void detach_queues(struct vublk *v, struct node *top, unsigned nr)
{
	for (unsigned i = 0; i < nr; i++) {
		struct attach_call a = { v, top, i, NULL };

		fiber_call(top->home, detach_one, &a);
	}
}

/* All, or none. A stream that ends closes images of the chain: not while queues are being attached to them. */
static int attach_queues(struct vublk *v, struct node *top, struct varve_error *err)
{
	unsigned i;
	int ret = 0;

	fiber_call(top->home, node_chain_hold, top);
	for (i = 0; i < v->nr_queues && ret == 0; i++) {
		struct attach_call a = { v, top, i, err };

		ret = fiber_call(v->queues[i], attach_one, &a);
	}
	fiber_call(top->home, node_chain_let_go, top);
	if (ret < 0)
		detach_queues(v, top, i - 1);
	return ret;
}

/* ---- start and stop ---- */

static int check_options(const struct node *top, const struct varve_vhost_user_blk_options *o,
			 struct varve_error *err)
{
	if (o->nr_queues > RINGS_MAX)
		return varve_error_set(err, -EINVAL, "%s: %u virtqueues, 1 .. %d are possible",
				       o->socket_path, o->nr_queues, RINGS_MAX);
	if (o->queue_size && (!is_pow2(o->queue_size) || o->queue_size < 2 || o->queue_size > VRING_NUM_MAX))
		return varve_error_set(err, -EINVAL,
				       "%s: a queue size of %u is not a power of two from 2 to %d",
				       o->socket_path, o->queue_size, VRING_NUM_MAX);
	if (o->serial && strlen(o->serial) > BLK_ID_LEN)
		return varve_error_set(err, -EINVAL, "%s: the serial \"%s\" has more than %d bytes",
				       o->socket_path, o->serial, BLK_ID_LEN);
	if (o->writable && !o->paused && !(top->flags & NODE_WRITABLE))
		return varve_error_set(err, -EACCES, "%s: %s is open read-only and cannot be served writable",
				       o->socket_path, node_name(top));
	return 0;
}

static int start_listening(struct fiber *f, void *arg)
{
	struct vublk *v = arg;

	(void)f;
	return listen_again(v);
}

static int stop_everything(struct fiber *f, void *arg)
{
	struct vublk *v = arg;

	v->stopping = true;
	pause_listening(v);
	timer_cancel(v->control, &v->retry);
	if (v->session.state != SESSION_CLOSED) {
		session_close(&v->session);
		while (v->session.state != SESSION_CLOSED)
			waitlist_wait(f, &v->stopped);
	}
	complaints_end(&v->session.complaints);
	return 0;
}

/* ---- the disk gets another length ---- */

static void len_msg_arrived(struct msg *m)
{
	struct vublk *v = container_of(m, struct vublk, len_msg);

	atomic_store(&v->len_sent, false); /* a change from here on is told once more */
	session_config_changed(&v->session);
}

static void len_changed(struct len_watch *w)
{
	struct vublk *v = container_of(w, struct vublk, len_watch);

	if (!atomic_exchange(&v->len_sent, true))
		queue_post(v->control, &v->len_msg);
}

static int watch_len(struct fiber *f, void *arg)
{
	struct vublk *v = arg;

	(void)f;
	v->len_watch.changed = len_changed;
	v->len_msg.run = len_msg_arrived;
	node_watch_len(v->disk.top, &v->len_watch);
	v->len_watched = true;
	return 0;
}

static int unwatch_len(struct fiber *f, void *arg)
{
	struct vublk *v = arg;

	(void)f;
	if (v->len_watched)
		node_unwatch_len(v->disk.top, &v->len_watch);
	v->len_watched = false;
	return 0;
}

/* ---- pause ---- */

static int pause_session(struct fiber *f, void *arg)
{
	struct vublk *v = arg;

	session_pause(&v->session);
	while (!session_is_quiet(&v->session))
		waitlist_wait(f, &v->turned);
	return 0;
}

void vublk_pause(struct vublk *v)
{
	fiber_call(v->control, pause_session, v);
}

struct look {
	struct vublk *v;
	struct timer timer;
};

static void look_fired(struct timer *t)
{
	struct look *l = container_of(t, struct look, timer);

	waitlist_wake_all(&l->v->turned);
	timer_set(l->v->control, t, queue_now(l->v->control) + LOOK_NS);
}

/* What an error has stopped is in flight until somebody resumes the disk, who may be waiting for us. */
static int pause_while_running(struct fiber *f, void *arg)
{
	struct vublk *v = arg;
	struct look look = { .v = v, .timer = { .fire = look_fired } };
	struct policy_state state = { .error = 0 };
	bool was = v->session.paused;
	uint64_t until = queue_now(v->control) + IN_FLIGHT_NS;
	int ret;

	session_pause(&v->session);
	look_fired(&look.timer);
	while (!(policy_get_state(v->disk.top, &state) && state.error) && !session_is_quiet(&v->session) && queue_now(v->control) < until)
		waitlist_wait(f, &v->turned);
	timer_cancel(v->control, &look.timer);
	ret = state.error ? state.error : session_is_quiet(&v->session) ? 0 : -ETIMEDOUT;
	if (ret < 0 && !was)
		session_resume(&v->session);
	return ret;
}

int vublk_pause_unless_stopped(struct vublk *v)
{
	return fiber_call(v->control, pause_while_running, v);
}

static int resume_session(struct fiber *f, void *arg)
{
	struct vublk *v = arg;

	(void)f;
	session_resume(&v->session);
	return 0;
}

void vublk_resume(struct vublk *v)
{
	fiber_call(v->control, resume_session, v);
}

/* ---- another image ---- */

struct swap_call {
	struct vublk *v;
	struct node *top;
};

static int swap_node(struct fiber *f, void *arg)
{
	struct swap_call *c = arg;
	struct vublk *v = c->v;
	uint64_t len = node_len(v->disk.top);

	(void)f;
	assert(v->session.paused && session_is_quiet(&v->session));
	v->disk.top = c->top;
	if (node_len(c->top) != len)
		session_config_changed(&v->session);
	return 0;
}

int vublk_set_node(struct vublk *v, struct node *top, struct varve_error *err)
{
	struct node *old = v->disk.top;
	struct swap_call c = { v, top };
	int ret = attach_queues(v, top, err);

	if (ret < 0)
		return ret;
	fiber_call(old->home, unwatch_len, v);
	fiber_call(v->control, swap_node, &c);
	fiber_call(top->home, watch_len, v);
	detach_queues(v, old, v->nr_queues);
	return 0;
}

struct stats_call {
	struct vublk *v;
	struct vublk_stats *st;
};

static int read_stats(struct fiber *f, void *arg)
{
	struct stats_call *c = arg;
	struct vublk *v = c->v;
	struct vublk_stats *st = c->st;

	(void)f;
	st->socket_path = v->path;
	st->connected = v->session.state != SESSION_CLOSED;
	st->paused = v->session.paused;
	st->writeback = v->session.writeback;
	st->memory_lost = atomic_load(&v->session.mem.lost);
	st->nr_sessions = v->nr_sessions;
	st->features = v->session.features;
	st->protocol_features = v->session.protocol_features;
	st->nr_regions = v->session.mem.nr_regions;
	for (unsigned i = 0; i < st->nr_queues; i++) {
		struct ring *r = &v->session.rings[i];

		st->queue[i].running = r->on;
		st->queue[i].broken = __atomic_load_n(&r->broken, __ATOMIC_RELAXED);
		st->queue[i].nr_breaks = __atomic_load_n(&r->nr_breaks, __ATOMIC_RELAXED);
		st->queue[i].nr_kicks = __atomic_load_n(&r->nr_kicks, __ATOMIC_RELAXED);
		st->queue[i].nr_calls = __atomic_load_n(&r->nr_calls, __ATOMIC_RELAXED);
		queue_turns(r->q, &st->queue[i].loop);
		blk_stats_read(&r->ctx.stats, &st->queue[i].done);
	}
	return 0;
}

struct vublk_stats *vublk_get_stats(struct vublk *v)
{
	unsigned nr = v->session.nr_rings; /* set at start */
	struct stats_call c = { v, calloc(1, sizeof(*c.st) + nr * sizeof(c.st->queue[0])) };

	if (!c.st)
		return NULL;
	c.st->nr_queues = nr;
	fiber_call(v->control, read_stats, &c);
	return c.st;
}

static int count_descriptors(struct fiber *f, void *arg)
{
	const struct vublk *v = arg;

	(void)f;
	return v->session.state == SESSION_CLOSED ? (int)(SESSION_FDS + v->session.nr_rings * RING_FDS) : 0;
}

unsigned vublk_descriptors_to_come(struct vublk *v)
{
	return (unsigned)fiber_call(v->control, count_descriptors, v);
}

static void vublk_free(struct vublk *v)
{
	session_free(&v->session);
	free(v->queues);
	free(v->path);
	free(v->name);
	free(v);
}

/* The object, with nothing started yet. */
static struct vublk *vublk_new(struct node *top, const struct varve_vhost_user_blk_options *o,
			       struct queue *control, struct queue *const *queues, unsigned nr_queues)
{
	struct vublk *v = calloc(1, sizeof(*v));

	if (!v)
		return NULL;
	v->path = strdup(o->socket_path);
	if (asprintf(&v->name, "vhost-user-blk: %s", o->socket_path) < 0)
		v->name = NULL;
	v->queues = calloc(nr_queues, sizeof(*v->queues));
	if (!v->path || !v->name || !v->queues) {
		vublk_free(v);
		return NULL;
	}
	v->control = control;
	v->disk.top = top;
	v->disk.writable = o->writable;
	v->disk.in_order = o->in_order;
	v->disk.fixed_cache = o->fixed_cache;
	memcpy(v->disk.id, o->serial ? o->serial : "varve", strlen(o->serial ? o->serial : "varve"));
	v->listener.fd = -1;
	v->retry.fire = retry_fired;
	v->demand = o->demand;
	v->user_data = o->user_data;
	for (unsigned i = 0; i < nr_queues; i++)
		v->queues[v->nr_queues++] = queues[i];
	return v;
}

int vublk_start(struct vublk **ret_vublk, struct node *top, const struct varve_vhost_user_blk_options *given,
		struct queue *control, struct queue *const *queues, unsigned nr_queues,
		struct varve_error *err)
{
	struct varve_vhost_user_blk_options o = *given;
	const struct varve_vhost_user_blk_options *opts = &o;
	char name[32];
	struct vublk *v;
	int ret;

	assert(nr_queues);
	snprintf(name, sizeof(name), "descriptor %d", o.socket_fd);
	if (!o.socket_path)
		o.socket_path = name;
	ret = check_options(top, opts, err);
	if (ret < 0)
		return ret;
	v = vublk_new(top, opts, control, queues, nr_queues);
	if (!v)
		return varve_error_errno(err, -ENOMEM, "%s", opts->socket_path);
	ret = session_init(&v->session, v->name, &v->disk, control, queues, nr_queues,
			   opts->nr_queues ? opts->nr_queues : 1,
			   opts->queue_size ? opts->queue_size : QUEUE_SIZE_DEFAULT, session_closed,
			   session_turned, err);
	if (ret < 0)
		goto fail;
	v->session.demanded = session_demanded;
	v->session.paused = opts->paused;
	ret = attach_queues(v, top, err);
	if (ret < 0)
		goto fail;
	v->attached = true;
	ret = o.socket_fd > 0 ? adopt_socket(v, o.socket_fd, given->socket_path != NULL, err) : make_socket(v, err);
	if (ret < 0)
		goto fail;
	fiber_call(top->home, watch_len, v);
	ret = fiber_call(control, start_listening, v);
	if (ret < 0) {
		varve_error_errno(err, ret, "%s: cannot wait for front ends", opts->socket_path);
		goto fail;
	}
	*ret_vublk = v;
	return 0;
fail:
	fiber_call(top->home, unwatch_len, v);
	if (o.socket_fd > 0)
		v->named = false; /* whoever gave it to us may still serve there */
	remove_socket(v);
	if (v->attached)
		detach_queues(v, top, v->nr_queues);
	vublk_free(v);
	return ret;
}

void vublk_stop(struct vublk *v)
{
	struct node *top;

	if (!v)
		return;
	top = v->disk.top;
	fiber_call(top->home, unwatch_len, v);
	fiber_call(v->control, stop_everything, v); /* behind a message of the watch, if one is under way */
	remove_socket(v);
	detach_queues(v, top, v->nr_queues);
	vublk_free(v);
}
