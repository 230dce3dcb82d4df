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
 */
#include "config.h"

#include <errno.h>

#include "aio/fiber_switch.h"
#include "aio/loop.h"
#include "base/error.h"

#ifdef HAVE_LIBURING

#include <fcntl.h>
#include <liburing.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#define SQ_ENTRIES 256
#define CQ_ENTRIES 4096
#define RESERVED 4	 /* of the completion ring: what is no struct aio_op */
#define RETRY_NS 1000000 /* pause when the kernel is out of memory and nothing else is going on */

/* user_data of what is no struct aio_op. */
#define TAG_EVENT 1
#define TAG_EPOLL 2
#define TAG_CANCEL 3

struct uring {
	struct io_uring ring;
	struct queue *q;
	int enter_fd;
	unsigned enter_flags;
	struct aio_op *parked, **parked_tail; /* for want of room, in order of arrival */
	unsigned nr_ring;		      /* requests in the ring or in the kernel, to be completed */
	unsigned nr_ring_max;		      /* with operations; the reserve is for the rest */
	bool event_armed, epoll_armed;
	uint64_t event_count; /* where the kernel puts what it reads from the event fd */
};

/* ---- filling the submission ring ---- */

/* NULL: the submission ring is full. */
static struct io_uring_sqe *sqe_take(struct uring *u)
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

static void sqe_fill(struct io_uring_sqe *sqe, struct uring *u, struct aio_op *op)
{
	const int fd = op->file->fd;
	const bool vector = op->nr_iov != 1;
	const void *addr = vector ? (const void *)op->iov : op->iov->iov_base;
	const unsigned len = vector ? op->nr_iov : (unsigned)op->iov->iov_len;

	switch ((enum aio_opcode)op->opcode) {
	case AIO_READ:
		io_uring_prep_rw(vector ? IORING_OP_READV : IORING_OP_READ, sqe, fd, addr, len, op->off);
		break;
	case AIO_WRITE:
		io_uring_prep_rw(vector ? IORING_OP_WRITEV : IORING_OP_WRITE, sqe, fd, addr, len, op->off);
		if (op->flags & AIO_FUA)
			sqe->rw_flags = RWF_DSYNC;
		break;
	case AIO_FLUSH:
		io_uring_prep_fsync(sqe, fd, IORING_FSYNC_DATASYNC);
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
	io_uring_sqe_set_data(sqe, op);
}

/* False: no room now, here or for the completion. */
static bool op_push(struct uring *u, struct aio_op *op)
{
	struct io_uring_sqe *sqe = u->nr_ring < u->nr_ring_max ? sqe_take(u) : NULL;

	if (!sqe)
		return false;
	sqe_fill(sqe, u, op);
	u->q->nr_outside++;
	return true;
}

static void uring_submit(void *ctx, struct aio_op *op)
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

	if (!u->event_armed) {
		sqe = sqe_take(u);
		if (!sqe)
			return false;
		io_uring_prep_rw(IORING_OP_READ, sqe, u->q->event_fd, &u->event_count, sizeof(u->event_count),
				 0);
		sqe->user_data = TAG_EVENT;
		u->event_armed = true;
	}
	if (!u->epoll_armed && want_epoll) {
		sqe = sqe_take(u);
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

/*
 * Makes the filled entries visible and enters the kernel. Written here and not left to liburing's helpers, so
 * that one call means one system call. Returns the number taken, or a negative errno.
 */
static int enter(struct uring *u, unsigned nr_wait, int64_t timeout_ns)
{
	struct io_uring_sq *sq = &u->ring.sq;
	struct __kernel_timespec ts;
	struct io_uring_getevents_arg arg = { 0 };
	unsigned flags = IORING_ENTER_GETEVENTS | u->enter_flags;

	sq->sqe_head = sq->sqe_tail;
	io_uring_smp_store_release(sq->ktail, sq->sqe_tail);
	if (nr_wait && timeout_ns > 0) {
		ts.tv_sec = timeout_ns / 1000000000;
		ts.tv_nsec = timeout_ns % 1000000000;
		arg.ts = (uintptr_t)&ts;
		flags |= IORING_ENTER_EXT_ARG;
	}
	u->q->stats.syscalls++;
	return io_uring_enter2((unsigned)u->enter_fd, io_uring_sq_ready(&u->ring), nr_wait, flags,
			       arg.ts ? (sigset_t *)&arg : NULL, arg.ts ? sizeof(arg) : 0);
}

/*
 * EAGAIN: the kernel has no memory for a request. EBUSY: completions must be reaped first. The entries are
 * still in the ring. If nothing has completed, sleeps a little for what is under way, or for memory.
 */
static void enter_later(struct uring *u)
{
	struct __kernel_timespec ts = { .tv_nsec = RETRY_NS };
	struct io_uring_getevents_arg arg = { .ts = (uintptr_t)&ts };

	if (!cq_empty(u))
		return;
	u->q->stats.syscalls++;
	io_uring_enter2((unsigned)u->enter_fd, 0, 1,
			IORING_ENTER_GETEVENTS | IORING_ENTER_EXT_ARG | u->enter_flags, (sigset_t *)&arg,
			sizeof(arg));
}

/* Hands over all that there is room for; several times, if it is more than the submission ring holds. */
static void uring_wait(void *ctx, int64_t timeout_ns)
{
	struct uring *u = ctx;
	bool more;

	do {
		unsigned nr_wait;
		int ret;

		more = !arm(u);
		unpark(u);
		more |= u->parked && u->nr_ring < u->nr_ring_max;
		/* What has completed is reaped before any wait. */
		nr_wait = timeout_ns && !more && cq_empty(u);
		if (!io_uring_sq_ready(&u->ring) && !nr_wait && !kernel_has_work(u))
			return;
		ret = enter(u, nr_wait, timeout_ns);
		if (ret < 0) {
			assert((ret == -EAGAIN || ret == -EBUSY || ret == -EINTR || ret == -ETIME) &&
			       "io_uring_enter() failed");
			if (ret == -EAGAIN || ret == -EBUSY)
				enter_later(u);
			return; /* the next turn goes on */
		}
	} while (more);
}

/* ---- completions ---- */

static void op_complete(struct uring *u, struct aio_op *op, int res)
{
	u->q->nr_outside--;
	/*
	 * Neither a full device queue, nor a signal, nor the end of the thread that submitted (which cancels
	 * its requests) is an answer to the requester. A worker does it again, and cannot get these.
	 */
	if (unlikely(res == -EAGAIN || res == -EINTR || res == -ECANCELED)) {
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

static unsigned uring_reap(void *ctx)
{
	struct uring *u = ctx;
	unsigned n = io_uring_cq_ready(&u->ring);

	for (unsigned i = 0; i < n; i++) {
		struct io_uring_cq *cq = &u->ring.cq;
		const struct io_uring_cqe *cqe = &cq->cqes[*cq->khead & cq->ring_mask];
		const uint64_t data = cqe->user_data;
		const int res = cqe->res;

		io_uring_cq_advance(&u->ring, 1); /* before done(), which may submit */
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

/* ---- making and ending ---- */

static int ring_init(struct io_uring *ring, unsigned flags)
{
	struct io_uring_params p = { .flags = flags | IORING_SETUP_CQSIZE, .cq_entries = CQ_ENTRIES };

	memset(ring, 0, sizeof(*ring));
	return io_uring_queue_init_params(SQ_ENTRIES, ring, &p);
}

/*
 * True if the calling thread alone will enter the ring. A queue run by its callers may see several threads,
 * and with -Dfiber=thread attaching happens on a fiber's thread.
 */
static bool one_thread(const struct queue *q)
{
#ifdef VARVE_FIBER_THREAD
	(void)q;
	return false;
#else
	return q->own_thread;
#endif
}

/* The modes from the best to the one every kernel has; an unknown flag is EINVAL. */
static int ring_make(struct uring *u)
{
	static const unsigned own_thread[] = {
		IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG, /* 6.1 */
		IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG, /* 5.19 */
		0,
	};
	const unsigned *modes = one_thread(u->q) ? own_thread : own_thread + 1;
	int ret;

	do {
		ret = ring_init(&u->ring, *modes);
	} while (ret == -EINVAL && *modes++);
	return ret;
}

static int refuse(int ret, struct varve_error *err)
{
	if (ret == -ENOSYS)
		return varve_error_set(err, ret, "the kernel has no io_uring: use aio=threads");
	if (ret == -EPERM || ret == -EACCES)
		return varve_error_set(err, ret,
				       "io_uring is forbidden here (sysctl kernel.io_uring_disabled, or a "
				       "seccomp filter): use aio=threads");
	return varve_error_errno(err, ret, "cannot make an io_uring");
}

static int uring_attach(struct queue *q, void **ret_ctx, struct varve_error *err)
{
	struct uring *u;
	int ret;

	/* It does not see what the kernel writes later, and stops all threads while one waits in the ring. */
	if (runs_on_valgrind())
		return varve_error_set(err, -ENOSYS,
				       "io_uring does not work under valgrind: use aio=threads");
	u = calloc(1, sizeof(*u));
	if (!u)
		return varve_error_set(err, -ENOMEM, "out of memory for the aio engine 'io_uring'");
	u->q = q;
	ret = ring_make(u);
	if (ret < 0) {
		free(u);
		return refuse(ret, err);
	}
	if (!(u->ring.features & IORING_FEAT_EXT_ARG) || !(u->ring.features & IORING_FEAT_NODROP)) {
		ret = varve_error_set(err, -ENOSYS,
				      "the kernel's io_uring is too old (5.11 is needed): use aio=threads");
		goto fail;
	}
	/* liburing may leave this to its own submit functions, which are not used here. */
	for (unsigned i = 0; u->ring.sq.array && i < u->ring.sq.ring_entries; i++)
		u->ring.sq.array[i] = i;
	u->nr_ring_max = u->ring.cq.ring_entries - RESERVED;
	u->enter_fd = u->ring.ring_fd;
	/* Saves the look-up of the descriptor; the registration belongs to the thread. */
	if (one_thread(q) && io_uring_register_ring_fd(&u->ring) == 1) {
		u->enter_fd = u->ring.enter_ring_fd;
		u->enter_flags = IORING_ENTER_REGISTERED_RING;
	}
	ret = watches_set_wait(q, uring_wait, u, u->ring.ring_fd);
	if (ret < 0) {
		varve_error_errno(err, ret, "queue %s: cannot wait in io_uring", q->name);
		goto fail;
	}
	*ret_ctx = u;
	return 0;

fail:
	io_uring_queue_exit(&u->ring);
	free(u);
	return ret;
}

/* The kernel writes event_count: it may not be freed while the read is armed. */
static void disarm(struct uring *u)
{
	if (u->event_armed || u->epoll_armed) {
		for (uint64_t tag = TAG_EVENT; tag <= TAG_EPOLL; tag++) {
			struct io_uring_sqe *sqe = sqe_take(u);

			assert(sqe);
			io_uring_prep_rw(IORING_OP_ASYNC_CANCEL, sqe, -1, NULL, 0, 0);
			sqe->addr = tag;
			sqe->user_data = TAG_CANCEL;
		}
	}
	while (u->nr_ring) {
		int ret = enter(u, cq_empty(u), RETRY_NS);

		if (ret < 0 && ret != -EINTR && ret != -ETIME && ret != -EAGAIN && ret != -EBUSY)
			break; /* the ring is unusable: nothing comes back */
		uring_reap(u);
	}
	u->q->fds_ready = u->q->nr_watches > 0;
}

static void uring_detach(struct queue *q, void *ctx)
{
	struct uring *u = ctx;

	assert(!u->parked);
	disarm(u);
	watches_set_wait(q, NULL, NULL, -1);
	io_uring_queue_exit(&u->ring);
	free(u);
}

static bool works;

static void works_ask(void)
{
	struct io_uring ring;

	if (runs_on_valgrind() || ring_init(&ring, 0) < 0)
		return;
	works = ring.features & IORING_FEAT_EXT_ARG && ring.features & IORING_FEAT_NODROP;
	io_uring_queue_exit(&ring);
}

bool uring_works(void)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;

	pthread_once(&once, works_ask);
	return works;
}

const struct aio_engine aio_engine_uring = {
	.name = "io_uring",
	.attach = uring_attach,
	.detach = uring_detach,
	.submit = uring_submit,
	.reap = uring_reap,
	/* no flush: the loop's wait hands over */
};

#else /* !HAVE_LIBURING */

static int uring_attach(struct queue *q, void **ret_ctx, struct varve_error *err)
{
	(void)q;
	(void)ret_ctx;
	return varve_error_set(err, -ENOSYS,
			       "this build has no io_uring (liburing was missing): use aio=threads");
}

bool uring_works(void)
{
	return false;
}

const struct aio_engine aio_engine_uring = {
	.name = "io_uring",
	.attach = uring_attach,
};

#endif
