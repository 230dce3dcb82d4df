/* SPDX-License-Identifier: MIT */
/*
 * aio/at_once.c - a lone write into the page cache, made by the queue's own thread
 *
 * A cached write is a copy. Engines hand it to another thread all the same, because it may block: io_uring
 * does for every file system that cannot say beforehand whether it will (ext4, for one). Waking that thread
 * and being woken by it costs more than the copy, several times for 4 KiB. While nothing else is under way on
 * the queue there is nothing that waiting could hold up but new work, so then the copy is made here.
 *
 * It does block sometimes: too many dirty pages, a journal that is full. A write that took long sends those
 * that follow to the engine for a while, and longer each time in a row: at most about one part in ten of the
 * thread's time is waited away here, and one part in a hundred of it if it goes on.
 *
 * Owns:    when this was last found to be slow, for each queue.
 * Assumes: the file is marked for it: cached, regular, on a local file system (proto/file_open.c). A file
 * behind a server could hold up the thread for as long as the server likes. Never:   does this for a write
 * that must be stable (AIO_FUA), or while others are under way; completes inside of submit.
 */
#include <errno.h>
#include <sys/uio.h>
#include <time.h>

#include "aio/loop.h"

#define AT_ONCE_LEN (64 * 1024) /* a longer copy is worth another thread */
#define SLOW_NS 1000000ull	/* not a copy any more, but a wait */
#define PAUSE_MIN 10		/* times what the slow write took */
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

	op->q->stats.aio_completed++;
	op->done(op, op->res);
}

void at_once_note(struct at_once *a, uint64_t begin_ns, uint64_t end_ns)
{
	uint64_t took = end_ns - begin_ns;

	if (likely(took < SLOW_NS)) {
		a->nr_slow = 0;
		return;
	}
	a->pause_until_ns = end_ns + MIN(took * (PAUSE_MIN << MIN(a->nr_slow, 10u)), PAUSE_MAX_NS);
	a->nr_slow++;
}

bool aio_at_once(struct queue *q, struct aio_op *op)
{
	uint64_t begin;
	ssize_t n;

	if (op->opcode != AIO_WRITE || (op->flags & AIO_FUA) || op->len > AT_ONCE_LEN ||
	    q->stats.aio_submitted != q->stats.aio_completed)
		return false;
	begin = now_ns();
	if (unlikely(begin < q->at_once.pause_until_ns))
		return false;
	q->stats.syscalls++;
	n = pwritev(op->file->fd, op->iov, (int)op->nr_iov, (off_t)op->off);
	at_once_note(&q->at_once, begin, now_ns());
	if (unlikely(n < 0 && (errno == EINTR || errno == EAGAIN)))
		return false;
	op->res = n < 0 ? -errno : n;
	op->work.done.run = done_run;
	queue_later(q, &op->work.done);
	return true;
}
