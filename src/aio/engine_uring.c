/* SPDX-License-Identifier: MIT */
/*
 * aio/engine_uring.c - the engine "io_uring": one ring per queue, in which the queue also waits
 *
 * Owns:    the ring, the operations that wait for room in it.
 * Assumes: a ring of a queue with its own thread is used by that thread only, and was made there.
 * Never:   has more requests in the kernel than the completion ring holds, so that it cannot overflow;
 *          refuses or loses an operation when the submission ring is full.
 *
 * Handing over and waiting is one io_uring_enter(). What else can wake the queue is in the ring too: a read
 * of the event fd (it completes, and empties the counter, when another thread wakes the queue), and, while
 * descriptors are watched, a poll of the epoll fd. The poll is for one shot: a multishot poll reports only
 * new wake-ups, and would say nothing of a level-triggered descriptor that is still ready after epoll_wait().
 * For those of which only new events count, that is just right (uring_watch.c).
 */
#include "config.h"

#include <errno.h>

#ifdef HAVE_LIBURING

#include <fcntl.h>
#include <poll.h>

#include "aio/uring.h"

#define RETRY_NS 1000000 /* pause when the kernel is out of memory and nothing else is going on */

/* ---- filling the submission ring ---- */

struct io_uring_sqe *uring_sqe(struct uring *u)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&u->ring);

	if (sqe)
		u->nr_ring++;
	return sqe;
}

static void sqe_fill_fallocate(struct io_uring_sqe *sqe, const struct aio_op *op, int mode)
{
	io_uring_prep_rw(IORING_OP_FALLOCATE, sqe, op->file->fd, NULL, (unsigned)mode, op->off);
	sqe->addr = op->len;
}

static void sqe_fill_rw(struct io_uring_sqe *sqe, struct uring *u, const struct aio_op *op)
{
	const bool write = op->opcode == AIO_WRITE;
	const struct iovec *iov = op->iov;
	int buffer;

	if (op->nr_iov != 1) {
		io_uring_prep_rw(write ? IORING_OP_WRITEV : IORING_OP_READV, sqe, op->file->fd, iov,
				 op->nr_iov, op->off);
	} else if (unlikely(u->nr_regions) && (buffer = uring_buffer(u, iov->iov_base, iov->iov_len)) >= 0) {
		io_uring_prep_rw(write ? IORING_OP_WRITE_FIXED : IORING_OP_READ_FIXED, sqe, op->file->fd,
				 iov->iov_base, (unsigned)iov->iov_len, op->off);
		sqe->buf_index = (uint16_t)buffer;
		u->q->stats.aio_registered++;
	} else {
		io_uring_prep_rw(write ? IORING_OP_WRITE : IORING_OP_READ, sqe, op->file->fd, iov->iov_base,
				 (unsigned)iov->iov_len, op->off);
	}
	if (op->flags & AIO_FUA)
		sqe->rw_flags = RWF_DSYNC;
}

static void sqe_fill(struct io_uring_sqe *sqe, struct uring *u, struct aio_op *op)
{
	const int slot = uring_file_slot(u, op->file);

	switch ((enum aio_opcode)op->opcode) {
	case AIO_READ:
	case AIO_WRITE:
		sqe_fill_rw(sqe, u, op);
		break;
	case AIO_FLUSH:
		io_uring_prep_fsync(sqe, op->file->fd, IORING_FSYNC_DATASYNC);
		break;
	case AIO_DISCARD:
		sqe_fill_fallocate(sqe, op, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE);
		break;
	case AIO_ZERO:
		if (op->flags & AIO_MAY_UNMAP)
			u->q->stats.syscalls++; /* it asks for the file's length */
		sqe_fill_fallocate(sqe, op, aio_zero_mode(op));
		break;
	case AIO_OPCODES:
		assert(!"unknown aio opcode");
		break;
	}
	if (likely(slot >= 0)) {
		sqe->fd = slot;
		sqe->flags |= IOSQE_FIXED_FILE;
	}
	io_uring_sqe_set_data(sqe, op);
}

/* False: no room now, here or for the completion. */
static bool op_push(struct uring *u, struct aio_op *op)
{
	struct io_uring_sqe *sqe = u->nr_ring < u->nr_ring_max ? uring_sqe(u) : NULL;

	if (!sqe)
		return false;
	sqe_fill(sqe, u, op);
	u->q->nr_outside++;
	return true;
}

void uring_submit(void *ctx, struct aio_op *op)
{
	struct uring *u = ctx;

	/* The ring knows no discard for block devices. */
	if (op->file->is_blockdev && (op->opcode == AIO_DISCARD || op->opcode == AIO_ZERO)) {
		aio_op_to_worker(u->q, op);
		return;
	}
	if (likely(!u->parked) && likely(op_push(u, op)))
		return;
	if (!u->parked)
		u->parked_tail = &u->parked;
	*u->parked_tail = op;
	u->parked_tail = &op->next;
}

static void unpark(struct uring *u)
{
	while (u->parked) {
		struct aio_op *next = u->parked->next;

		if (!op_push(u, u->parked))
			break;
		u->parked = next;
	}
}

/* Makes sure that the event fd and the watched descriptors end a wait. False: no room now. */
static bool arm(struct uring *u)
{
	const bool want_epoll = u->q->nr_watches && !u->q->fds_ready;
	struct io_uring_sqe *sqe;

	if (unlikely(!u->waits))
		return true;
	if (unlikely(u->watches_changed) && !uring_watches_arm(u))
		return false;
	if (!u->event_armed) {
		sqe = uring_sqe(u);
		if (!sqe)
			return false;
		io_uring_prep_rw(IORING_OP_READ, sqe, u->q->event_fd, &u->event_count, sizeof(u->event_count),
				 0);
		sqe->user_data = TAG_EVENT;
		u->event_armed = true;
	}
	if (!u->epoll_armed && want_epoll) {
		sqe = uring_sqe(u);
		if (!sqe)
			return false;
		io_uring_prep_poll_add(sqe, u->q->epoll_fd, POLLIN);
		sqe->user_data = TAG_EPOLL;
		u->epoll_armed = true;
	}
	return true;
}

/* ---- the one system call ---- */

static bool cq_empty(const struct uring *u)
{
	return io_uring_cq_ready(&u->ring) == 0;
}

/* What the kernel would do for us although nothing is submitted: finish requests, bring back an overflow. */
static bool kernel_has_work(const struct uring *u)
{
	return IO_URING_READ_ONCE(*u->ring.sq.kflags) & (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW);
}

/* Makes the filled entries visible to the kernel. */
static void publish(struct uring *u)
{
	struct io_uring_sq *sq = &u->ring.sq;

	sq->sqe_head = sq->sqe_tail;
	io_uring_smp_store_release(sq->ktail, sq->sqe_tail);
}

/*
 * io_uring_enter(). Written here and not left to liburing's helpers, so that one call means one system call.
 * Returns the number taken, or a negative errno.
 */
static int enter(struct uring *u, unsigned nr_submit, unsigned nr_wait, int64_t timeout_ns, unsigned flags)
{
	struct __kernel_timespec ts;
	struct io_uring_getevents_arg arg = { 0 };

	flags |= IORING_ENTER_GETEVENTS | u->enter_flags;
	if (nr_wait && timeout_ns > 0) {
		ts.tv_sec = timeout_ns / 1000000000;
		ts.tv_nsec = timeout_ns % 1000000000;
		arg.ts = (uintptr_t)&ts;
		flags |= IORING_ENTER_EXT_ARG;
	}
	u->q->stats.syscalls++;
	return io_uring_enter2((unsigned)u->enter_fd, nr_submit, nr_wait, flags,
			       arg.ts ? (sigset_t *)&arg : NULL, arg.ts ? sizeof(arg) : 0);
}

/*
 * EAGAIN: the kernel has no memory for a request. EBUSY: completions must be reaped first. The entries are
 * still in the ring. If nothing has completed, sleeps a little for what is under way, or for memory.
 */
static void enter_later(struct uring *u)
{
	if (cq_empty(u))
		enter(u, 0, 1, RETRY_NS, 0);
}

/* The thread of the kernel has gone to sleep. Pairs with its own barrier: it looks for entries after it says
 * so. */
static unsigned wake_flag(const struct uring *u)
{
	if (!io_uring_sq_ready(&u->ring))
		return 0;
	io_uring_smp_mb();
	return IO_URING_READ_ONCE(*u->ring.sq.kflags) & IORING_SQ_NEED_WAKEUP ? IORING_ENTER_SQ_WAKEUP : 0;
}

/* One turn's worth, at most one system call. more: the ring is full, and there is more. Returns as enter().
 */
static int hand_over(struct uring *u, unsigned nr_wait, int64_t timeout_ns, bool more)
{
	unsigned flags = 0;

	publish(u);
	if (u->mode & URING_SQPOLL) {
		flags = wake_flag(u);
		if (more)
			flags |= IORING_ENTER_SQ_WAIT;
		if (!flags && !nr_wait && !kernel_has_work(u))
			return 0;
	} else if (!io_uring_sq_ready(&u->ring) && !nr_wait && !kernel_has_work(u)) {
		return 0;
	}
	return enter(u, io_uring_sq_ready(&u->ring), nr_wait, timeout_ns, flags);
}

/* Hands over all that there is room for; several times, if it is more than the submission ring holds. */
void uring_wait(void *ctx, int64_t timeout_ns)
{
	struct uring *u = ctx;
	bool more;

	do {
		int ret;

		more = !arm(u);
		unpark(u);
		more |= u->parked && u->nr_ring < u->nr_ring_max;
		/* What has completed is reaped before any wait. */
		ret = hand_over(u, timeout_ns && !more && cq_empty(u), timeout_ns, more);
		if (ret < 0) {
			assert((ret == -EAGAIN || ret == -EBUSY || ret == -EINTR || ret == -ETIME) &&
			       "io_uring_enter() failed");
			if (ret == -EAGAIN || ret == -EBUSY)
				enter_later(u);
			return; /* the next turn goes on */
		}
	} while (more);
}

void uring_poll(struct uring *u)
{
	int ret;

	unpark(u);
	publish(u);
	if (!io_uring_sq_ready(&u->ring) && !cq_empty(u))
		return;
	ret = enter(u, io_uring_sq_ready(&u->ring), 0, 0, 0);
	assert((ret >= 0 || ret == -EAGAIN || ret == -EBUSY || ret == -EINTR) && "io_uring_enter() failed");
	(void)ret; /* the next turn goes on */
}

/* The ring has completions: uring_reap() comes after the watches of a turn. */
void uring_ready(struct watch *w, uint32_t events)
{
	(void)w;
	(void)events;
}

/* The queue waits for this ring's completions in epoll, or in the ring of another engine, by the ring's
 * descriptor. */
void uring_flush(void *ctx)
{
	struct uring *u = ctx;

	if (unlikely(atomic_load_explicit(&u->nr_drops, memory_order_relaxed)))
		uring_files_drop(u);
	if (unlikely(!u->waits))
		uring_wait(u, 0);
}

/* ---- completions ---- */

static void op_complete(struct uring *u, struct aio_op *op, int res)
{
	const bool polled = u->mode & URING_IOPOLL;

	u->q->nr_outside--;
	u->q->nr_polled -= polled;
	/*
	 * Neither a full device queue, nor a signal, nor the end of the thread that submitted (which cancels
	 * its requests), nor that this one cannot be polled for, is an answer to the requester. A worker does
	 * it again, and cannot get these.
	 */
	if (unlikely(res == -EAGAIN || res == -EINTR || res == -ECANCELED ||
		     (polled && res == -EOPNOTSUPP))) {
		aio_op_to_worker(u->q, op);
		return;
	}
	if (res >= 0 && op->opcode != AIO_READ && op->opcode != AIO_WRITE)
		res = 0;
	else if (res == -ENOSYS)
		res = -ENOTSUP;
	u->q->stats.aio_completed++;
	op->done(op, res);
}

unsigned uring_reap(void *ctx)
{
	struct uring *u = ctx;
	unsigned n;

	if (unlikely(!u->waits) && !(u->mode & URING_IOPOLL) && cq_empty(u) && kernel_has_work(u))
		enter(u, 0, 0, 0, 0);
	n = io_uring_cq_ready(&u->ring);
	for (unsigned i = 0; i < n; i++) {
		struct io_uring_cq *cq = &u->ring.cq;
		const struct io_uring_cqe *cqe = &cq->cqes[*cq->khead & cq->ring_mask];
		const uint64_t data = cqe->user_data;
		const int res = cqe->res;
		const unsigned flags = cqe->flags;

		io_uring_cq_advance(&u->ring, 1); /* before done(), which may submit */
		if (unlikely(data - TAG_WATCH < URING_WATCHES)) {
			if (!uring_watch_done(u, (unsigned)(data - TAG_WATCH), res, flags))
				u->nr_ring--;
			continue;
		}
		u->nr_ring--;
		switch (data) {
		case TAG_EVENT:
			u->event_armed = false;
			break;
		case TAG_EPOLL:
			u->epoll_armed = false;
			u->q->fds_ready = u->q->nr_watches > 0;
			break;
		case TAG_CANCEL:
			break;
		default:
			op_complete(u, (struct aio_op *)(uintptr_t)data, res);
		}
	}
	if (unlikely(u->parked))
		unpark(u);
	return n;
}

/* The kernel writes event_count: it may not be freed while the read is armed. */
void uring_disarm(struct uring *u)
{
	if (u->event_armed || u->epoll_armed) {
		for (uint64_t tag = TAG_EVENT; tag <= TAG_EPOLL; tag++) {
			struct io_uring_sqe *sqe = uring_sqe(u);

			assert(sqe);
			io_uring_prep_rw(IORING_OP_ASYNC_CANCEL, sqe, -1, NULL, 0, 0);
			sqe->addr = tag;
			sqe->user_data = TAG_CANCEL;
		}
	}
	while (u->nr_ring) {
		int ret = hand_over(u, cq_empty(u), RETRY_NS, false);

		if (ret < 0 && ret != -EINTR && ret != -ETIME && ret != -EAGAIN && ret != -EBUSY)
			break; /* the ring is unusable: nothing comes back */
		uring_reap(u);
	}
	u->q->fds_ready = u->q->nr_watches > 0;
}

#endif
