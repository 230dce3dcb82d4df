/* SPDX-License-Identifier: MIT */
/*
 * vhost-user-blk/migrate.c - messages that help a virtual machine to move, and this program to come back
 * after its death
 *
 * Owns:    see session.h: the dirty log, the area of requests in flight, the descriptor of a state on its
 * way. Assumes: as requests.c. Never:   waits for the other end of a descriptor that it was given.
 *
 * The state of the device that is nowhere else: whether the guest has switched the write cache off. Lost on
 * the way to another host, the guest would believe its writes to be stable there, and they would not be.
 */
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "export/vhost-user-blk/requests.h"

/* ---- the dirty log ---- */

static int log_fits(struct session *s, const struct memlog *l)
{
	for (unsigned i = 0; i < s->nr_rings; i++) {
		const struct ring *r = &s->rings[i];

		if (r->log_used && r->num &&
		    !memlog_covers(l, r->log_addr,
				   vring_used_len(r->num, s->features >> BLK_F_RING_PACKED & 1)))
			return varve_error_set(
				&s->err, -EINVAL,
				"a dirty log of 0x%" PRIx64
				" bytes has no bits for the used ring of queue %u at 0x%" PRIx64,
				l->len, i, r->log_addr);
	}
	return memlog_covers_all(l, &s->mem, &s->err);
}

/* Refused or not, there is no log of before: a front end that sends this is not looking at that one any more.
 */
int session_set_log_base(struct session *s)
{
	const struct umsg_log *m = &s->msg.payload.log;
	int ret = memlog_open(&s->log, s->msg.fds[0], m->len, m->off, &s->mem.lost, &s->err);

	if (ret == 0)
		ret = log_fits(s, &s->log);
	if (ret < 0) {
		memlog_close(&s->log);
		return varve_error_prefix(&s->err, ret, "SET_LOG_BASE: ");
	}
	session_answer_u64(s, 0);
	return 0;
}

/* An eventfd to signal changes of the log with, if the back end likes to. Who reads the log does so when it
 * needs it. */
int session_set_log_fd(struct session *s)
{
	(void)s; /* the descriptor is closed with the message */
	return 0;
}

/* ---- requests in flight ---- */

int session_get_inflight_fd(struct session *s)
{
	struct umsg_inflight d = s->msg.payload.inflight;
	int fd, ret;

	ret = inflight_create(d.nr_queues, d.queue_size, &fd, &d.mmap_len, &s->err);
	if (ret < 0)
		return varve_error_prefix(&s->err, ret, "GET_INFLIGHT_FD: ");
	d.mmap_off = 0;
	memset(d.padding, 0, sizeof(d.padding));
	session_answer(s, &d, s->msg.header.size);
	s->answer_fd = fd;
	return 0;
}

int session_set_inflight_fd(struct session *s)
{
	const struct umsg_inflight *d = &s->msg.payload.inflight;
	int ret = inflight_map(&s->inflight, s->msg.fds[0], d->mmap_len, d->mmap_off, d->nr_queues,
			       d->queue_size, &s->err);

	if (ret < 0)
		return varve_error_prefix(&s->err, ret, "SET_INFLIGHT_FD: ");
	/* What the guest told the back end before us, or us before there was an area. */
	session_set_writeback(s, s->writeback && !inflight_writethrough(&s->inflight));
	return 0;
}

/* ---- the device's own state ---- */

#define STATE_MAGIC "varvevub"
#define STATE_VERSION 1
#define STATE_WRITETHROUGH 1u

struct state {
	char magic[8];
	le32 version;
	le32 flags;
};

static int save_state(const struct session *s, int fd)
{
	struct state st = { .version = le32_put(STATE_VERSION),
			    .flags = le32_put(s->writeback ? 0 : STATE_WRITETHROUGH) };

	memcpy(st.magic, STATE_MAGIC, sizeof(st.magic));
	return write(fd, &st, sizeof(st)) == sizeof(st) ? 0 : -EIO;
}

/* No byte at all is the state of a back end that has none. */
static int load_state(struct session *s, struct varve_error *err)
{
	uint8_t bytes[sizeof(struct state) + 1];
	struct state st;
	size_t have = 0;
	ssize_t n = 0;

	while (have < sizeof(bytes) && (n = read(s->state_fd, bytes + have, sizeof(bytes) - have)) > 0)
		have += (size_t)n;
	if (n < 0)
		return varve_error_errno(err, -errno, "the device's state cannot be read to its end");
	if (!have)
		return 0;
	memcpy(&st, bytes, sizeof(st));
	if (have != sizeof(st) || memcmp(st.magic, STATE_MAGIC, sizeof(st.magic)) ||
	    le32_get(st.version) != STATE_VERSION || le32_get(st.flags) & ~STATE_WRITETHROUGH)
		return varve_error_set(err, -EINVAL, "the device's state is not one that this version wrote");
	session_set_writeback(s, !(le32_get(st.flags) & STATE_WRITETHROUGH));
	return 0;
}

static int refuse_transfer(struct session *s, const char *why)
{
	varve_error_set(&s->err, -EINVAL, "SET_DEVICE_STATE_FD: %s", why);
	session_refused(s);
	session_answer_u64(s, UMSG_STATE_NO_FD | 1);
	return 0;
}

/*
 * Whatever the state is, it is written or read in one go: 16 bytes, which any pipe holds. So the direction
 * "save" is done when this is answered, and "load" when the front end has closed its end and asks how it
 * went.
 */
int session_set_device_state_fd(struct session *s)
{
	const struct umsg_transfer *t = &s->msg.payload.transfer;
	int fd = s->msg.fds[0], flags;
	struct stat st;

	if (t->direction > UMSG_STATE_LOAD || t->phase)
		return refuse_transfer(s, "an unknown direction or phase");
	for (unsigned i = 0; i < s->nr_rings; i++) {
		if (s->rings[i].on)
			return refuse_transfer(s, "the device is running; stop its queues first");
	}
	if (fstat(fd, &st) < 0 || !(S_ISFIFO(st.st_mode) || S_ISSOCK(st.st_mode)))
		return refuse_transfer(s, "the descriptor is neither a pipe nor a socket");
	flags = fcntl(fd, F_GETFL);
	if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0)
		return refuse_transfer(s, "the descriptor cannot be made non-blocking");
	session_forget_transfer(s);
	if (t->direction == UMSG_STATE_SAVE)
		s->state_ret = save_state(s, fd); /* the message's end closes it, and so ends the state */
	else
		s->state_fd = umsg_take_fd(&s->msg, 0);
	session_answer_u64(s, UMSG_STATE_NO_FD);
	return 0;
}

int session_check_device_state(struct session *s)
{
	if (s->state_fd >= 0)
		s->state_ret = load_state(s, &s->err);
	else if (s->state_ret < 0)
		varve_error_set(&s->err, s->state_ret, "the device's state could not be written");
	if (s->state_ret < 0) {
		varve_error_prefix(&s->err, s->state_ret, "CHECK_DEVICE_STATE: ");
		session_refused(s);
	}
	session_answer_u64(s, s->state_ret < 0);
	session_forget_transfer(s);
	return 0;
}

void session_forget_transfer(struct session *s)
{
	if (s->state_fd >= 0)
		close(s->state_fd);
	s->state_fd = -1;
	s->state_ret = 0;
}
