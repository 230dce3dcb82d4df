/* SPDX-License-Identifier: MIT */
/*
 * aio/engine_posix.c - the engine "posix": aio_read() and aio_write()
 *
 * Owns:    the requests that the C library has; per file, descriptors so that they run side by side.
 * Assumes: POSIX AIO, and the worker pool for all that it cannot do.
 * Never:   uses a signal or a thread with signals unblocked; calls aio_init(): those belong to the program.
 *
 * The C library performs the requests of one descriptor one after the other, so each file has a pool of
 * duplicates, grown to the number of requests in flight, at most POSIX_FDS, one request on each. Beyond that,
 * or when the process has no descriptors left, requests share them and wait for each other. How many requests
 * really run at once is the C library's limit (glibc: 20 threads a process, unless the program calls
 * aio_init()).
 *
 * How a completion is heard of: a signal would take one away from the program, and arrive in whichever thread
 * the kernel picks. SIGEV_THREAD makes a thread for every completion, and glibc runs it with all signals
 * unblocked, so a program that blocks a signal everywhere in order to read it (signalfd, sigwait) dies of it.
 * So a worker waits in aio_suspend() for what was submitted in one turn. It needs no way of being told of
 * later requests: those have a worker of their own.
 *
 * POSIX AIO has neither vectors nor FUA nor holes, and its fsync covers only what is queued before it on the
 * same descriptor. The worker pool does these with the calls of engine "threads": one system call, nothing
 * copied.
 */
#include <aio.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "aio/loop.h"
#include "base/error.h"

#define POSIX_DEPTH 64 /* requests of one queue that the C library has at once; the rest waits here */
#define POSIX_FDS 64   /* duplicates of one file */

/* ---- descriptors of a file ---- */

struct fd_pool {
	pthread_mutex_t lock; /* all queues that use the file */
	unsigned nr;
	struct {
		int fd;
		unsigned users;
	} fds[POSIX_FDS]; /* the first is the file's own */
};

static unsigned fd_take(struct fd_pool *p, int *ret_fd)
{
	unsigned best = 0, i;

	pthread_mutex_lock(&p->lock);
	for (i = 0; i < p->nr && p->fds[best].users; i++) {
		if (p->fds[i].users < p->fds[best].users)
			best = i;
	}
	if (p->fds[best].users && p->nr < POSIX_FDS) {
		int fd = fcntl(p->fds[0].fd, F_DUPFD_CLOEXEC, 0);

		if (fd >= 0) {
			best = p->nr++;
			p->fds[best].fd = fd;
			p->fds[best].users = 0;
		}
	}
	p->fds[best].users++;
	*ret_fd = p->fds[best].fd;
	pthread_mutex_unlock(&p->lock);
	return best;
}

static void fd_put(struct fd_pool *p, unsigned i)
{
	pthread_mutex_lock(&p->lock);
	p->fds[i].users--;
	pthread_mutex_unlock(&p->lock);
}

static int posix_file_open(struct aio_file *file, struct varve_error *err)
{
	struct fd_pool *p = calloc(1, sizeof(*p));

	if (!p)
		return varve_error_set(err, -ENOMEM, "%s: out of memory for the aio engine 'posix'",
				       file->name);
	pthread_mutex_init(&p->lock, NULL);
	p->fds[0].fd = file->fd;
	p->nr = 1;
	file->engine_data = p;
	return 0;
}

static void posix_file_close(struct fiber *f, struct aio_file *file)
{
	struct fd_pool *p = file->engine_data;

	(void)f;
	/* The file's own is the caller's to close, and so is the wait that closing the last one may need. */
	for (unsigned i = 1; i < p->nr; i++)
		close(p->fds[i].fd);
	pthread_mutex_destroy(&p->lock);
	free(p);
	file->engine_data = NULL;
}

/* ---- requests ---- */

struct preq {
	struct aiocb cb;
	struct aio_op *op;
	struct preq *next; /* in the list of free ones, or of its batch */
	struct posix *px;
	unsigned fd_index;
	struct msg done;
};

/* What one turn submitted; a worker waits for it. */
struct batch {
	struct work work;
	struct batch *next_free;
	struct posix *px;
	struct preq *reqs;    /* still under way; the worker's until it ends */
	struct preq *at_last; /* completed in the last round */
};

struct posix {
	struct queue *q;
	struct aio_op *head, **tail; /* not yet with the C library */
	struct preq *free_reqs;
	struct batch *free_batches;
	struct preq reqs[POSIX_DEPTH];
	struct batch batches[POSIX_DEPTH];
};

static void req_end(struct preq *r)
{
	struct posix *px = r->px;
	struct aio_op *op = r->op;

	fd_put(op->file->engine_data, r->fd_index);
	r->next = px->free_reqs;
	px->free_reqs = r;
	px->q->nr_outside--;
	/* The C library has no memory, or was told to stop: a worker can do it. */
	if (unlikely(op->res == -EAGAIN || op->res == -ECANCELED || op->res == -EINTR)) {
		aio_op_to_worker(px->q, op);
		return;
	}
	px->q->stats.aio_completed++;
	op->done(op, op->res);
}

static void req_msg(struct msg *m)
{
	req_end(container_of(m, struct preq, done));
}

/* ---- a worker waits for a batch ---- */

/* Takes the completed ones out of the batch. */
static struct preq *collect(struct batch *b)
{
	struct preq **link = &b->reqs, *completed = NULL;

	while (*link) {
		struct preq *r = *link;
		const int error = aio_error(&r->cb);

		if (error == EINPROGRESS) {
			link = &r->next;
			continue;
		}
		*link = r->next;
		r->op->res = error ? -error : aio_return(&r->cb);
		r->next = completed;
		completed = r;
	}
	return completed;
}

static void wait_for_one(const struct batch *b)
{
	const struct aiocb *list[POSIX_DEPTH];
	int nr = 0;

	for (const struct preq *r = b->reqs; r; r = r->next)
		list[nr++] = &r->cb;
	while (aio_suspend(list, nr, NULL) < 0 && errno == EINTR)
		;
}

static void batch_run(struct work *w)
{
	struct batch *b = container_of(w, struct batch, work);
	struct queue *q = w->q;

	for (;;) {
		/* Looked at first: cached data may be there before this worker is. */
		struct preq *completed = collect(b);

		if (!b->reqs) {
			/* After the last message the queue may be freed: they travel with the end of the
			 * work. */
			b->at_last = completed;
			return;
		}
		if (!completed)
			wait_for_one(b);
		while (completed) {
			struct preq *r = completed;

			completed = r->next;
			r->done.run = req_msg;
			queue_post(q, &r->done);
		}
	}
}

static void batch_done(struct msg *m)
{
	struct batch *b = container_of(m, struct batch, work.done);
	struct preq *r = b->at_last;

	b->next_free = b->px->free_batches;
	b->px->free_batches = b;
	while (r) {
		struct preq *next = r->next;

		req_end(r);
		r = next;
	}
}

/* ---- handing over ---- */

/* POSIX AIO can do it. */
static bool fits(const struct aio_op *op)
{
	return (op->opcode == AIO_READ || op->opcode == AIO_WRITE) && op->nr_iov == 1 &&
	       !(op->flags & AIO_FUA) && op->file->engine_data;
}

static void posix_submit(void *ctx, struct aio_op *op)
{
	struct posix *px = ctx;

	*px->tail = op;
	px->tail = &op->next;
}

/* False: the C library did not take it; errno says why. */
static bool req_start(struct preq *r)
{
	const struct aio_op *op = r->op;
	int fd;

	r->fd_index = fd_take(op->file->engine_data, &fd);
	memset(&r->cb, 0, sizeof(r->cb));
	r->cb.aio_fildes = fd;
	r->cb.aio_buf = op->iov->iov_base;
	r->cb.aio_nbytes = op->iov->iov_len;
	r->cb.aio_offset = (off_t)op->off;
	r->cb.aio_sigevent.sigev_notify = SIGEV_NONE;
	if ((op->opcode == AIO_READ ? aio_read(&r->cb) : aio_write(&r->cb)) == 0)
		return true;
	fd_put(op->file->engine_data, r->fd_index);
	return false;
}

static void posix_flush(void *ctx)
{
	struct posix *px = ctx;
	struct batch *b = px->free_batches;
	struct preq *reqs = NULL;

	while (px->head) {
		struct aio_op *op = px->head;
		struct preq *r = px->free_reqs;

		if (fits(op) && !r)
			break; /* goes on when one completes */
		px->head = op->next;
		if (!fits(op)) {
			aio_op_to_worker(px->q, op);
			continue;
		}
		r->op = op;
		if (!req_start(r)) {
			aio_op_to_worker(px->q, op); /* its answer is the true one */
			continue;
		}
		px->q->nr_outside++;
		px->free_reqs = r->next;
		r->next = reqs;
		reqs = r;
	}
	if (!px->head)
		px->tail = &px->head;
	if (!reqs)
		return;
	px->free_batches = b->next_free;
	b->reqs = reqs;
	worker_submit(&b->work);
}

/* ---- making and ending ---- */

static int posix_attach(struct queue *q, void **ret_ctx, struct varve_error *err)
{
	struct posix *px = calloc(1, sizeof(*px));

	if (!px)
		return varve_error_set(err, -ENOMEM, "out of memory for the aio engine 'posix'");
	px->q = q;
	px->tail = &px->head;
	for (unsigned i = 0; i < POSIX_DEPTH; i++) {
		struct batch *b = &px->batches[i];

		px->reqs[i].px = px;
		px->reqs[i].next = px->free_reqs;
		px->free_reqs = &px->reqs[i];
		b->px = px;
		b->work.run = batch_run;
		b->work.q = q;
		b->work.done.run = batch_done;
		b->next_free = px->free_batches;
		px->free_batches = b;
	}
	*ret_ctx = px;
	return 0;
}

static void posix_detach(struct queue *q, void *ctx)
{
	struct posix *px = ctx;

	(void)q;
	assert(!px->head);
	free(px);
}

const struct aio_engine aio_engine_posix = {
	.name = "posix",
	.attach = posix_attach,
	.detach = posix_detach,
	.file_open = posix_file_open,
	.file_close = posix_file_close,
	.submit = posix_submit,
	.flush = posix_flush,
};
