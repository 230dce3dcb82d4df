/* SPDX-License-Identifier: MIT */
/*
 * aio/at_once.c - writes into the page cache, and reads of files in memory, made by the queue's own thread
 * while it has nothing else under way
 *
 * A cached write is a copy. Engines hand it to another thread all the same, because it may block: io_uring
 * does for every file system that cannot say beforehand whether it will (ext4, for one). Waking that thread
 * and being woken by it costs more than the copy, several times for 4 KiB. While nothing but such copies is
 * under way on the queue there is nothing that waiting could hold up but new work, so they are made here.
 *
 * A file system in memory has nothing to wait for, but cannot say so either (tmpfs, for io_uring): there
 * reads are copies as well, and a sync is nothing at all.
 *
 * It does block sometimes: too many dirty pages, a journal that is full. A write that took long sends those
 * that follow to the engine for a while, and longer each time in a row: at most about one part in ten of the
 * thread's time is waited away here, and one part in a hundred of it if it goes on.
 *
 * Owns:    when this was last found to be slow, for each queue.
 * Assumes: the file is marked for it: cached, regular, on a local file system (proto/file_open.c). A file
 * behind a server could hold up the thread for as long as the server likes.
 * Never:   does this for a write that must be stable (AIO_FUA), or while the engine has something to do;
 * completes inside of submit.
 */
#include <errno.h>
#include <sys/uio.h>
#include <time.h>

#include "aio/loop.h"

#define AT_ONCE_LEN (64 * 1024)	  /* a longer copy is worth another thread */
#define AT_ONCE_TURN (128 * 1024) /* bytes between two looks at everything else */
#define PAUSE_MIN 10		  /* times what the slow one took */
#define PAUSE_MAX_NS 10000000000ull

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

static void done_run(struct msg *m)
{
	struct aio_op *op = container_of(m, struct aio_op, work.done);

	if (!--op->q->at_once.nr)
		op->q->at_once.bytes = 0;
	op->q->stats.aio_completed++;
	op->done(op, op->res);
}

void at_once_note(struct at_once *a, uint64_t begin_ns, uint64_t end_ns)
{
	uint64_t took = end_ns - begin_ns;

	if (likely(took < a->slow_ns)) {
		a->nr_slow = 0;
		return;
	}
	a->pause_until_ns = end_ns + MIN(took * (PAUSE_MIN << MIN(a->nr_slow, 10u)), PAUSE_MAX_NS);
	a->nr_slow++;
}

/* Is it a copy, and no more? */
static bool is_copy(const struct aio_op *op)
{
	switch (op->opcode) {
	case AIO_WRITE:
		return !(op->flags & AIO_FUA);
	case AIO_READ:
	case AIO_FLUSH:
		return op->file->in_memory;
	default:
		return false;
	}
}

static ssize_t copy(const struct aio_op *op)
{
	switch (op->opcode) {
	case AIO_READ:
		return preadv(op->file->fd, op->iov, (int)op->nr_iov, (off_t)op->off);
	case AIO_WRITE:
		return pwritev(op->file->fd, op->iov, (int)op->nr_iov, (off_t)op->off);
	default:
		return fdatasync(op->file->fd);
	}
}

bool aio_at_once(struct queue *q, struct aio_op *op)
{
	struct at_once *a = &q->at_once;
	uint64_t begin;
	ssize_t n;

	if (!is_copy(op) || op->len > AT_ONCE_LEN ||
	    q->stats.aio_submitted - q->stats.aio_completed != a->nr || a->bytes > AT_ONCE_TURN - op->len)
		return false;
	begin = now_ns();
	if (unlikely(begin < a->pause_until_ns))
		return false;
	q->stats.syscalls++;
	n = copy(op);
	at_once_note(a, begin, now_ns());
	if (unlikely(n < 0 && (errno == EINTR || errno == EAGAIN)))
		return false;
	op->res = n < 0 ? -errno : n;
	a->nr++;
	a->bytes += op->len;
	op->work.done.run = done_run;
	queue_later(q, &op->work.done);
	return true;
}
