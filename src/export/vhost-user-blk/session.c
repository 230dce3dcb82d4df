/* SPDX-License-Identifier: MIT */
/*
 * vhost-user-blk/session.c - from one state to the next: receive, stop rings, apply, start rings, answer
 *
 * Owns:    see session.h.
 * Assumes: what each message does stands in requests.c.
 * Never:   leaves a state while a ring still owes an answer.
 */
#include "export/vhost-user-blk/session.h"

#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/log.h"
#include "export/vhost-user-blk/requests.h"
#include "export/vhost-user-blk/strange.h"

/* Messages served in one turn of the control queue, so that a chatterer does not keep it for itself. */
#define MESSAGES_PER_TURN 32

static void advance(struct session *s);
static void turn(struct session *s);

/* ---- watching the socket ---- */

static void unwatch(struct session *s)
{
	if (s->watching)
		watch_del(s->control, &s->watch);
	s->watching = false;
}

/* The events that the state wants. While rings are waited for nobody looks at the socket. */
static int watch_for(struct session *s, uint32_t events)
{
	int ret = 0;

	if (s->watching && s->watch.events == events)
		return 0;
	if (s->watching) {
		watch_change(s->control, &s->watch, events);
	} else {
		s->watch.events = events;
		ret = watch_add(s->control, &s->watch);
		s->watching = ret == 0;
	}
	s->watch.events = events;
	return ret;
}

/* ---- rings ---- */

/* The front end has said all that it takes. */
static bool ring_wanted(const struct session *s, const struct ring *r)
{
	return r->enabled && (r->kick_fd >= 0 || r->polled) && r->has_addr && r->num && s->has_features && s->mem.nr_regions;
}

static bool ring_ready(const struct session *s, const struct ring *r)
{
	return !s->paused && !r->broken && ring_wanted(s, r);
}

static void look_at_demand(struct session *s)
{
	bool demand = false;

	for (unsigned i = 0; i < s->nr_rings; i++)
		demand |= ring_wanted(s, &s->rings[i]);
	if (demand == s->demand)
		return;
	s->demand = demand;
	if (s->demanded)
		s->demanded(s);
}

static void stop_ring(struct session *s, struct ring *r)
{
	if (r->on) {
		s->nr_waiting++;
		ring_stop(r);
	}
}

static void stop_rings(struct session *s)
{
	for (unsigned i = 0; i < s->nr_rings; i++)
		stop_ring(s, &s->rings[i]);
}

/* A ring that cannot start forgets its addresses: the next message shall not fail for the same reason. */
static void start_failed(struct session *s, struct ring *r, int ret)
{
	r->has_addr = false;
	if (s->result == 0)
		s->result = ret;
}

static void start_rings(struct session *s)
{
	for (unsigned i = 0; i < s->nr_rings; i++) {
		struct ring *r = &s->rings[i];
		struct varve_error err;
		int ret;

		if (r->on || !ring_ready(s, r))
			continue;
		if (atomic_load(&s->mem.lost)) {
			ret = varve_error_set(&err, -EFAULT,
					      "queue %u: memory that the front end shares was cut off; share it anew", i);
			if (s->result == 0)
				s->err = err;
			start_failed(s, r, ret);
			continue;
		}
		r->ctx.writethrough = !s->writeback;
		r->ctx.log = s->features >> UMSG_F_LOG_ALL & 1 && s->log.bits ? &s->log : NULL;
		ret = ring_start(r, &s->mem, s->features, &s->inflight, &err);
		if (ret == 0) {
			s->nr_waiting++;
			continue;
		}
		if (s->result == 0)
			s->err = err;
		start_failed(s, r, ret);
	}
}

static void ring_answered(struct ring *r)
{
	struct session *s = r->owner;

	if (r->ret < 0) {
		if (s->result == 0)
			varve_error_errno(&s->err, r->ret,
					  "queue %u: its kick descriptor cannot be waited for", r->index);
		start_failed(s, r, r->ret);
	}
	if (--s->nr_waiting == 0)
		advance(s);
}

/* ---- the end ---- */

static void drop_answer_fd(struct session *s)
{
	if (s->answer_fd >= 0)
		close(s->answer_fd);
	s->answer_fd = -1;
}

/* A front end that lets a ring wait for its call descriptor: the others of that thread are not to wait with it. */
static void look_after_rings(struct timer *t)
{
	struct session *s = container_of(t, struct session, look);

	for (unsigned i = 0; i < s->nr_rings; i++) {
		if (!notifier_rescue(&s->rings[i].notifier))
			continue;
		complain_about(&s->complaints, s->control,
			       "queue %u: its call descriptor was full and in blocking mode, and held its thread up; "
			       "the disk's queues are called with more care from now on",
			       i);
		for (unsigned k = 0; k < s->nr_rings; k++)
			atomic_store(&s->rings[k].notifier.careful, true);
	}
	complaints_look(&s->complaints);
	timer_set(s->control, &s->look, queue_now(s->control) + NOTIFY_LOOK_NS);
}

static void forget_everything(struct session *s)
{
	timer_cancel(s->control, &s->look);
	for (unsigned i = 0; i < s->nr_rings; i++)
		ring_reset(&s->rings[i]);
	gmem_unmap(&s->mem);
	inflight_close(&s->inflight);
	memlog_close(&s->log);
	session_forget_transfer(s);
	if (s->backend_fd >= 0)
		close(s->backend_fd);
	s->backend_fd = -1;
	umsg_reset(&s->msg);
	close(s->watch.fd);
	s->watch.fd = -1;
	s->features = s->protocol_features = 0;
	s->has_features = false;
	s->status = 0;
	s->writeback = true;
	s->answer_len = 0;
	drop_answer_fd(s);
	s->doomed = false;
	look_at_demand(s);
	complaints_look(&s->complaints);
}

static void begin_closing(struct session *s)
{
	unwatch(s);
	s->state = SESSION_CLOSING;
	stop_rings(s);
	if (s->nr_waiting == 0)
		advance(s);
}

void session_close(struct session *s)
{
	switch (s->state) {
	case SESSION_CLOSED:
		s->closed(s);
		break;
	case SESSION_READING:
	case SESSION_WRITING:
		begin_closing(s);
		break;
	case SESSION_QUIESCING:
	case SESSION_RESUMING:
	case SESSION_TURNING:
		s->doomed = true;
		break;
	case SESSION_CLOSING:
		break;
	}
}

/* ---- answering ---- */

/* One sendmsg() of the rest of the answer, with its descriptor if that has not gone yet. Bytes, or -1. */
static ssize_t send_part(struct session *s)
{
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(sizeof(int))];
	} control = { .bytes = { 0 } };
	struct iovec iov = { s->answer + s->answer_sent, s->answer_len - s->answer_sent };
	struct msghdr mh = { .msg_iov = &iov, .msg_iovlen = 1 };
	ssize_t n;

	if (s->answer_fd >= 0) {
		struct cmsghdr *c;

		mh.msg_control = &control;
		mh.msg_controllen = sizeof(control);
		c = CMSG_FIRSTHDR(&mh);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(c), &s->answer_fd, sizeof(int));
	}
	n = sendmsg(s->watch.fd, &mh, MSG_DONTWAIT | MSG_NOSIGNAL);
	if (n > 0)
		drop_answer_fd(s);
	return n;
}

/* Sends what is left of the answer. Afterwards the state is READING, WRITING or CLOSING. */
static void send_answer(struct session *s)
{
	while (s->answer_sent < s->answer_len) {
		ssize_t n = send_part(s);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN) {
			s->state = SESSION_WRITING;
			if (watch_for(s, EPOLLOUT) < 0)
				begin_closing(s);
			else
				turn(s);
			return;
		}
		if (n < 0) {
			begin_closing(s); /* the front end went away; nobody is left to be told */
			return;
		}
		s->answer_sent += (size_t)n;
	}
	s->answer_len = 0;
	s->state = SESSION_READING;
	if (watch_for(s, EPOLLIN) < 0) {
		complain_about(&s->complaints, s->control, "connection closed: no memory to wait for it");
		begin_closing(s);
		return;
	}
	turn(s);
}

void session_refused(struct session *s)
{
	complain_about(&s->complaints, s->control, "refused: %s", s->err.message);
}

/*
 * The message is done with. One that was refused is answered with a refusal if the front end asked for an
 * answer; else only the end of the connection can tell it that things are not as it believes.
 */
static void finish_message(struct session *s)
{
	umsg_reset(&s->msg);
	if (s->result < 0 && !s->need_reply) {
		complain_about(&s->complaints, s->control, "connection closed: %s", s->err.message);
		begin_closing(s);
		return;
	}
	if (s->result < 0)
		session_refused(s);
	if (s->need_reply && !s->answer_len)
		session_answer_u64(s, s->result < 0);
	send_answer(s);
}

/* ---- from state to state ---- */

/* No ring owes an answer. */
static void advance(struct session *s)
{
	switch (s->state) {
	case SESSION_QUIESCING:
		if (!s->doomed) {
			s->result = session_apply(s);
			look_at_demand(s);
			start_rings(s);
		}
		s->state = SESSION_RESUMING;
		if (s->nr_waiting)
			break;
		/* fallthrough */
	case SESSION_RESUMING:
		if (s->doomed)
			begin_closing(s);
		else
			finish_message(s);
		break;
	case SESSION_TURNING:
		if (s->doomed)
			begin_closing(s);
		else
			send_answer(s); /* what was left of it, perhaps nothing: back to WRITING or READING */
		s->turned(s);
		break;
	case SESSION_CLOSING:
		forget_everything(s);
		s->state = SESSION_CLOSED;
		s->turned(s);
		s->closed(s);
		break;
	case SESSION_CLOSED:
	case SESSION_READING:
	case SESSION_WRITING:
		assert(!"a ring answered in a state without orders");
	}
}

/* ---- pause and resume ---- */

bool session_is_quiet(const struct session *s)
{
	for (unsigned i = 0; i < s->nr_rings; i++) {
		if (s->rings[i].on)
			return false;
	}
	return true;
}

/* READING or WRITING: brings the rings to where session_pause() or session_resume() wants them. */
static void turn(struct session *s)
{
	if (s->paused) {
		stop_rings(s);
	} else {
		s->result = 0;
		start_rings(s);
		if (s->result < 0)
			complain_about(&s->complaints, s->control, "%s", s->err.message);
	}
	if (!s->nr_waiting) {
		if (s->paused)
			s->turned(s); /* a message may have stopped the last ring for us */
		return;
	}
	s->state = SESSION_TURNING;
	unwatch(s);
}

static void turn_if_possible(struct session *s)
{
	if (s->state == SESSION_READING || s->state == SESSION_WRITING)
		turn(s);
	s->turned(s);
}

void session_pause(struct session *s)
{
	s->paused = true;
	turn_if_possible(s);
}

void session_resume(struct session *s)
{
	s->paused = false;
	/* Those that still wait for requests in flight need not. */
	for (unsigned i = 0; i < s->nr_rings && s->state == SESSION_TURNING; i++)
		ring_go_on(&s->rings[i]);
	turn_if_possible(s);
}

/* A whole message: stop what it concerns, then go on. */
static void begin_message(struct session *s)
{
	bool ack = s->protocol_features >> UMSG_PROTOCOL_F_REPLY_ACK & 1;
	int64_t ring = umsg_ring(&s->msg);

	s->result = 0;
	s->answer_len = s->answer_sent = 0;
	s->need_reply = ack && s->msg.header.flags & UMSG_NEED_REPLY && !session_has_answer(&s->msg);
	s->state = SESSION_QUIESCING;
	if (ring < (int64_t)s->nr_rings) {
		switch (session_scope(s)) {
		case SCOPE_RING:
			stop_ring(s, &s->rings[ring]);
			break;
		case SCOPE_ALL_RINGS:
			stop_rings(s);
			break;
		case SCOPE_NO_RING:
			break;
		}
	}
	if (s->nr_waiting == 0)
		advance(s);
	if (s->state == SESSION_QUIESCING || s->state == SESSION_RESUMING)
		unwatch(s);
}

static void read_messages(struct session *s)
{
	struct varve_error err;

	for (unsigned i = 0; i < MESSAGES_PER_TURN && s->state == SESSION_READING; i++) {
		int ret = umsg_recv(&s->msg, s->watch.fd, &err);

		if (ret == -EAGAIN)
			return;
		if (ret == 0) {
			log_debug("%s: the front end has gone", s->name);
			begin_closing(s);
			return;
		}
		if (ret > 0)
			ret = umsg_check(&s->msg, &err);
		if (ret < 0) {
			complain_about(&s->complaints, s->control, "connection closed: %s", err.message);
			begin_closing(s);
			return;
		}
		begin_message(s);
	}
}

/*
 * No answer is asked for, so none comes to be read. A front end that lets its channel fill up is not told any more:
 * it has stopped listening.
 */
void session_config_changed(struct session *s)
{
	const struct umsg_header h = { .request = UMSG_BACKEND_CONFIG_CHANGE, .flags = UMSG_VERSION };

	if (s->backend_fd < 0 || !(s->protocol_features >> UMSG_PROTOCOL_F_CONFIG & 1))
		return;
	if (send(s->backend_fd, &h, sizeof(h), MSG_DONTWAIT | MSG_NOSIGNAL) == sizeof(h))
		return;
	complain_about(&s->complaints, s->control,
		       "the front end cannot be told of the new configuration: its back-end channel does not take it");
	close(s->backend_fd);
	s->backend_fd = -1;
}

static void socket_ready(struct watch *w, uint32_t events)
{
	struct session *s = container_of(w, struct session, watch);

	(void)events; /* an error or a hang-up shows when reading or writing */
	if (s->state == SESSION_WRITING)
		send_answer(s);
	else if (s->state == SESSION_READING)
		read_messages(s);
}

/* ---- making and unmaking ---- */

/* All eventfds share one inode, and share it with nothing that could make us wait (pipes, FUSE files). */
static int learn_eventfd(struct session *s, struct varve_error *err)
{
	int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	struct stat st;
	int ret = 0;

	if (fd < 0 || fstat(fd, &st) < 0)
		ret = varve_error_errno(err, -errno, "eventfd");
	if (fd >= 0)
		close(fd);
	if (ret < 0)
		return ret;
	s->eventfd_dev = st.st_dev;
	s->eventfd_ino = st.st_ino;
	return 0;
}

int session_init(struct session *s, const char *name, const struct blk_disk *disk, struct queue *control,
		 struct queue *const *queues, unsigned nr_queues, unsigned nr_rings, unsigned num_max,
		 void (*closed)(struct session *s), void (*turned)(struct session *s), struct varve_error *err)
{
	int ret;

	*s = (struct session){
		.name = name,
		.disk = disk,
		.control = control,
		.num_max = num_max,
		.nr_rings = nr_rings,
		.closed = closed,
		.turned = turned,
		.writeback = true,
		.backend_fd = -1,
		.answer_fd = -1,
		.state_fd = -1,
		.watch = { .fd = -1, .ready = socket_ready },
		.look = { .fire = look_after_rings },
	};
	complaints_init(&s->complaints, name, control);
	ret = learn_eventfd(s, err);
	if (ret < 0)
		return ret;
	s->rings = calloc(nr_rings, sizeof(*s->rings));
	s->msg.debt = strange_debt_new();
	if (!s->rings || !s->msg.debt)
		return varve_error_errno(err, -ENOMEM, "%u rings", nr_rings);
	for (unsigned i = 0; i < nr_rings; i++)
		ring_init(&s->rings[i], i, &s->complaints, queues[i % nr_queues], control, disk, ring_answered, s);
	return 0;
}

void session_free(struct session *s)
{
	assert(s->state == SESSION_CLOSED);
	free(s->rings);
	s->rings = NULL;
	strange_debt_free(s->msg.debt);
	s->msg.debt = NULL;
}

void session_open(struct session *s, int fd)
{
	assert(s->state == SESSION_CLOSED);
	s->watch.fd = fd;
	s->state = SESSION_READING;
	timer_set(s->control, &s->look, queue_now(s->control) + NOTIFY_LOOK_NS);
	if (watch_for(s, EPOLLIN) < 0)
		begin_closing(s);
	else
		log_debug("%s: a front end has connected", s->name);
}
