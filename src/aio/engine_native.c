/* SPDX-License-Identifier: MIT */
/*
 * aio/engine_native.c - the engine "native": Linux AIO, by its system calls
 *
 * Owns:    one context of the kernel per queue, the operations that are not yet in it, the event fd that it
 * signals. Assumes: files opened with O_DIRECT: io_submit() of anything else blocks. (Tests do without.)
 * Never:   loses an operation when the context is full; lets a refused operation fail another one.
 *
 * Where it can, the queue waits in io_getevents(): a turn is one io_submit() and one io_getevents(). What
 * else can wake the queue is in its epoll set, and a poll of that set (IOCB_CMD_POLL, Linux 4.19) is in the
 * context. Where it cannot - an old kernel, valgrind, or a queue that waits in io_uring already - the kernel
 * signals each completion to an event fd in the epoll set (edge-triggered: it need not be read). A queue that
 * may be embedded is signalled in either case.
 */
#include <errno.h>
#include <linux/aio_abi.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <poll.h>
#include <unistd.h>

#include "aio/fiber_switch.h"
#include "aio/loop.h"
#include "base/error.h"

#define CTX_EVENTS 512	  /* room for operations; 128 queues stay within the usual fs.aio-max-nr of 65536 */
#define CTX_EVENTS_MIN 16 /* with less than this, another engine is the better choice */
#define BATCH 128	  /* operations in one io_submit(), completions from one io_getevents() */

/* aio_data of what is no struct aio_op. */
#define TAG_EPOLL 1

struct native {
	struct queue *q;
	aio_context_t ctx;
	unsigned nr_max, nr_kernel; /* operations the context has room for, and holds */
	bool waits;		    /* the queue waits in native_wait() */
	bool epoll_armed;
	bool silent;	    /* operations do not signal the event fd: nobody would look at it */
	unsigned nr_silent; /* of those, under way since the queue waits elsewhere */
	bool ready;	    /* the event fd says: there are completions */
	struct watch watch;
	struct aio_op *head, **tail;	    /* not yet in the kernel, in order of arrival */
	struct aio_op *refused, **ref_tail; /* io_submit() said no; res says why */
	unsigned nr_events, event_pos;	    /* fetched, delivered */
	struct io_event events[BATCH];
	struct iocb iocbs[BATCH]; /* the kernel copies them */
	struct iocb *iocb_ptrs[BATCH];
	struct iocb epoll_iocb;
};

/* ---- handing over ---- */

static void iocb_fill(const struct native *n, struct iocb *cb, struct aio_op *op)
{
	const bool write = op->opcode == AIO_WRITE, vector = op->nr_iov != 1;

	cb->aio_data = (uintptr_t)op;
	cb->aio_fildes = (uint32_t)op->file->fd;
	cb->aio_flags = n->silent ? 0 : IOCB_FLAG_RESFD;
	cb->aio_resfd = (uint32_t)n->watch.fd;
	cb->aio_rw_flags = 0;
	if (op->opcode == AIO_FLUSH) {
		cb->aio_lio_opcode = IOCB_CMD_FDSYNC;
		cb->aio_buf = 0;
		cb->aio_nbytes = 0;
		cb->aio_offset = 0;
		return;
	}
	if (vector) {
		cb->aio_lio_opcode = write ? IOCB_CMD_PWRITEV : IOCB_CMD_PREADV;
		cb->aio_buf = (uintptr_t)op->iov;
		cb->aio_nbytes = op->nr_iov;
	} else {
		cb->aio_lio_opcode = write ? IOCB_CMD_PWRITE : IOCB_CMD_PREAD;
		cb->aio_buf = (uintptr_t)op->iov->iov_base;
		cb->aio_nbytes = op->iov->iov_len;
	}
	cb->aio_offset = (int64_t)op->off;
	if (write && op->flags & AIO_FUA)
		cb->aio_rw_flags = RWF_DSYNC;
}

static void native_submit(void *ctx, struct aio_op *op)
{
	struct native *n = ctx;

	/* The kernel can do these only while the caller waits. */
	if (unlikely(op->opcode == AIO_DISCARD || op->opcode == AIO_ZERO)) {
		aio_op_to_worker(n->q, op);
		return;
	}
	*n->tail = op;
	n->tail = &op->next;
}

static struct aio_op *take(struct native *n)
{
	struct aio_op *op = n->head;

	n->head = op->next;
	if (!n->head)
		n->tail = &n->head;
	return op;
}

/*
 * The first operation of a batch was refused. What the kernel or the file system cannot do asynchronously a
 * worker can; the rest is the requester's answer, given by native_reap().
 */
static void refuse(struct native *n, int error)
{
	struct aio_op *op = take(n);

	if (error == ENOSYS || error == EOPNOTSUPP || error == EAGAIN ||
	    (error == EINVAL && (op->opcode == AIO_FLUSH || op->flags & AIO_FUA))) {
		aio_op_to_worker(n->q, op);
		return;
	}
	op->next = NULL;
	op->res = -error;
	*n->ref_tail = op;
	n->ref_tail = &op->next;
	n->q->nr_outside++;
	loop_signal(n->q); /* in whatever way the queue is about to wait, it does not */
}

/* One io_submit(). False: there is no room, or nothing to do. */
static bool submit_batch(struct native *n)
{
	unsigned room = MIN(n->nr_max - n->nr_kernel, BATCH), nr = 0;
	long ret;

	for (struct aio_op *op = n->head; op && nr < room; op = op->next)
		iocb_fill(n, &n->iocbs[nr++], op);
	if (!nr)
		return false;
	n->q->stats.syscalls++;
	ret = syscall(SYS_io_submit, n->ctx, (long)nr, n->iocb_ptrs);
	if (unlikely(ret < 0)) {
		/* No memory for a request, or a limit of the system: completions will make room. */
		if (errno == EAGAIN && n->nr_kernel)
			return false;
		refuse(n, errno);
		return true;
	}
	n->nr_kernel += (unsigned)ret;
	n->q->nr_outside += (unsigned)ret;
	while (ret--)
		take(n)->res = n->silent;
	return n->head;
}

/*
 * io_uring was attached to the queue after this engine, and waits now: hear of completions through epoll.
 * What is under way without a word to the event fd is asked for until it has ended.
 */
static void give_up_wait(struct native *n)
{
	int ret = watch_add(n->q, &n->watch);

	assert(ret == 0 && "no memory to watch the event fd of Linux AIO");
	(void)ret;
	n->nr_silent = n->silent ? n->nr_kernel : 0;
	n->q->nr_polled += n->nr_silent > 0;
	n->silent = false;
	n->waits = false;
	n->ready = true;
}

static void native_flush(void *ctx)
{
	struct native *n = ctx;

	if (unlikely(n->waits && n->q->wait_ctx != n))
		give_up_wait(n);
	while (n->head && submit_batch(n))
		;
}

/* ---- completions ---- */

static void fetch(struct native *n, bool block, int64_t timeout_ns)
{
	struct {
		long tv_sec, tv_nsec;
	} ts = { 0, 0 };
	long ret;

	if (timeout_ns > 0) {
		ts.tv_sec = (long)(timeout_ns / 1000000000);
		ts.tv_nsec = (long)(timeout_ns % 1000000000);
	}
	n->q->stats.syscalls++;
	ret = syscall(SYS_io_getevents, n->ctx, (long)block, (long)BATCH, n->events,
		      timeout_ns < 0 ? NULL : &ts);
	assert((ret >= 0 || errno == EINTR) && "io_getevents() failed");
	n->event_pos = 0;
	n->nr_events = ret > 0 ? (unsigned)ret : 0;
}

static void op_complete(struct native *n, struct aio_op *op, int64_t res)
{
	n->q->nr_outside--;
	/* No answers to the requester: a worker does it again, and cannot get these. */
	if (unlikely(res == -EAGAIN || res == -EINTR || res == -ECANCELED)) {
		aio_op_to_worker(n->q, op);
		return;
	}
	if (res == -ENOSYS)
		res = -ENOTSUP;
	n->q->stats.aio_completed++;
	op->done(op, res);
}

static unsigned deliver_refused(struct native *n)
{
	struct aio_op *op = n->refused;
	unsigned nr = 0;

	n->refused = NULL;
	n->ref_tail = &n->refused;
	while (op) {
		struct aio_op *next = op->next;

		op_complete(n, op, op->res);
		op = next;
		nr++;
	}
	return nr;
}

static unsigned native_reap(void *ctx)
{
	struct native *n = ctx;
	unsigned nr = 0;

	if (unlikely(n->refused))
		nr = deliver_refused(n);
	if (n->event_pos == n->nr_events && (n->ready || n->nr_silent) && !n->waits) {
		n->ready = false;
		if (n->nr_kernel) {
			fetch(n, false, 0);
			n->ready = n->nr_events == BATCH; /* maybe more: the event fd will not say so again */
		}
	}
	while (n->event_pos < n->nr_events) {
		const struct io_event *ev = &n->events[n->event_pos++];

		nr++;
		if (unlikely(ev->data == TAG_EPOLL)) {
			n->epoll_armed = false;
			n->q->fds_ready = true;
			continue;
		}
		n->nr_kernel--;
		if (unlikely(n->nr_silent) && ((struct aio_op *)(uintptr_t)ev->data)->res && !--n->nr_silent)
			n->q->nr_polled--;
		op_complete(n, (struct aio_op *)(uintptr_t)ev->data, ev->res);
	}
	return nr;
}

static void watch_ready(struct watch *w, uint32_t events)
{
	(void)events;
	container_of(w, struct native, watch)->ready = true;
}

/* ---- waiting ---- */

/* A poll for one shot of the queue's epoll set, in which its own event fd stays. False: not possible. */
static bool arm(struct native *n)
{
	struct iocb *cb = &n->epoll_iocb;

	n->q->stats.syscalls++;
	n->epoll_armed = syscall(SYS_io_submit, n->ctx, 1L, &cb) == 1;
	return n->epoll_armed;
}

/*
 * Embedded, the event fd is what others poll: it is emptied before completions are fetched, and filled again
 * if there were some, because this may be the end of a turn. False: nothing has completed.
 */
static bool embedded_empty(struct native *n)
{
	uint64_t count;

	n->q->stats.syscalls++;
	return read(n->watch.fd, &count, sizeof(count)) > 0;
}

static void embedded_fill(struct native *n)
{
	const uint64_t one = 1;

	n->q->stats.syscalls++;
	while (write(n->watch.fd, &one, sizeof(one)) < 0 && errno == EINTR)
		;
}

static void native_wait(void *ctx, int64_t timeout_ns)
{
	struct native *n = ctx;
	const bool embedded = n->q->poll_fd >= 0, polled = n->q->nr_watches || embedded;

	if (n->event_pos < n->nr_events || n->refused)
		return;
	if (!n->epoll_armed && !n->q->fds_ready && (timeout_ns || polled) && !arm(n))
		n->q->fds_ready = true; /* no memory just now: look at the epoll set itself */
	if (n->q->fds_ready)
		timeout_ns = 0;
	if (embedded && !embedded_empty(n) && !timeout_ns && !n->epoll_armed)
		return;
	/* Without watches the epoll set says only that there are messages, which the queue sees in its inbox.
	 */
	if (timeout_ns || n->nr_kernel || (n->epoll_armed && polled))
		fetch(n, timeout_ns, timeout_ns);
	if (embedded && n->nr_events)
		embedded_fill(n);
}

/* ---- making and ending ---- */

static int context_make(struct native *n, struct varve_error *err)
{
	int ret = 0;

	for (n->nr_max = CTX_EVENTS; n->nr_max >= CTX_EVENTS_MIN; n->nr_max /= 2) {
		/* One more for the poll of the epoll set. */
		if (syscall(SYS_io_setup, (long)n->nr_max + 1, &n->ctx) == 0)
			return 0;
		ret = -errno;
		if (ret != -EAGAIN)
			break;
	}
	if (ret == -EAGAIN)
		return varve_error_set(err, ret,
				       "no Linux AIO context: the system's limit is reached (sysctl "
				       "fs.aio-nr is near fs.aio-max-nr): raise fs.aio-max-nr, or use "
				       "aio=threads");
	if (ret == -ENOSYS)
		return varve_error_set(err, ret, "the kernel has no Linux AIO: use aio=threads");
	return varve_error_errno(err, ret, "cannot make a Linux AIO context");
}

/* If nobody else does, this engine waits for the whole queue. */
static bool take_wait(struct native *n)
{
	if (n->q->wait || runs_on_valgrind())
		return false;
	n->epoll_iocb = (struct iocb){ .aio_data = TAG_EPOLL,
				       .aio_lio_opcode = IOCB_CMD_POLL,
				       .aio_fildes = (uint32_t)n->q->epoll_fd,
				       .aio_buf = POLLIN };
	/* Refused: an old kernel. Not undone if what follows fails: its completion does no harm. */
	if (!arm(n) || watches_set_wait(n->q, native_wait, n, n->watch.fd) < 0)
		return false;
	/* Back into the epoll set, where the poll finds it. */
	if (watches_event_fd(n->q, true) == 0)
		return true;
	watches_set_wait(n->q, NULL, NULL, -1);
	return false;
}

static int native_attach(struct queue *q, void **ret_ctx, struct varve_error *err)
{
	struct native *n = calloc(1, sizeof(*n));
	int ret;

	if (!n)
		return varve_error_set(err, -ENOMEM, "out of memory for the aio engine 'native'");
	n->q = q;
	n->tail = &n->head;
	n->ref_tail = &n->refused;
	n->watch.events = EPOLLIN | EPOLLET;
	n->watch.ready = watch_ready;
	for (unsigned i = 0; i < BATCH; i++)
		n->iocb_ptrs[i] = &n->iocbs[i];
	n->watch.fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (n->watch.fd < 0) {
		ret = varve_error_errno(err, -errno, "cannot make an event fd for Linux AIO");
		goto fail;
	}
	ret = context_make(n, err);
	if (ret < 0)
		goto fail_fd;
	n->waits = take_wait(n);
	n->silent = n->waits && (q->own_thread || q->only);
	if (!n->waits) {
		ret = watch_add(q, &n->watch);
		if (ret < 0) {
			varve_error_errno(err, ret, "queue %s: cannot wait for Linux AIO", q->name);
			goto fail_context;
		}
	}
	*ret_ctx = n;
	return 0;

fail_context:
	syscall(SYS_io_destroy, n->ctx);
fail_fd:
	close(n->watch.fd);
fail:
	free(n);
	return ret;
}

static void native_detach(struct queue *q, void *ctx)
{
	struct native *n = ctx;

	assert(!n->head && !n->refused && !n->nr_kernel);
	if (!n->waits) {
		watch_del(q, &n->watch);
	} else {
		watches_event_fd(q, false);
		watches_set_wait(q, NULL, NULL, -1);
	}
	syscall(SYS_io_destroy, n->ctx); /* ends the poll of the epoll set, too */
	close(n->watch.fd);
	free(n);
}

bool native_works(void)
{
	aio_context_t ctx = 0;

	if (syscall(SYS_io_setup, 1L, &ctx) < 0)
		return false;
	syscall(SYS_io_destroy, ctx);
	return true;
}

const struct aio_engine aio_engine_native = {
	.name = "native",
	.attach = native_attach,
	.detach = native_detach,
	.submit = native_submit,
	.flush = native_flush,
	.reap = native_reap,
};
