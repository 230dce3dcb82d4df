/* SPDX-License-Identifier: MIT */
/*
 * aio/uring_iopoll.c - rings whose completions are polled for: the engines "io_uring+iopoll..."
 *
 * The device raises no interrupts; it is asked once a turn, and a queue with such a request under way does
 * not sleep. It buys latency with a processor. Such a ring takes reads and writes only, and nothing can wait
 * in it, so the queue waits elsewhere, and workers do the rest.
 *
 * Owns:    q->nr_polled.
 * Assumes: files opened with O_DIRECT on a device that has queues without interrupts.
 */
#include "config.h"

#ifdef HAVE_LIBURING

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "aio/fiber_switch.h"
#include "aio/uring.h"
#include "base/error.h"

/* ---- which files ---- */

/* The file of sysfs that says whether the device, or the one that it is a partition of, has queues to poll.
 */
static FILE *open_says(unsigned major_nr, unsigned minor_nr)
{
	static const char *const places[] = { "", "../" };
	char path[96];
	FILE *f = NULL;

	for (unsigned i = 0; i < ARRAY_LEN(places) && !f; i++) {
		snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/%squeue/io_poll", major_nr, minor_nr,
			 places[i]);
		f = fopen(path, "re");
	}
	return f;
}

static bool device_polls(dev_t dev)
{
	FILE *f = open_says(major(dev), minor(dev));
	int answer = EOF;

	if (f) {
		answer = fgetc(f);
		fclose(f);
	}
	return answer == '1';
}

int iopoll_file_open(struct aio_file *file, struct varve_error *err)
{
	struct stat st;
	dev_t dev;

	if (!file->direct)
		return varve_error_set(err, -EINVAL,
				       "%s: aio=%s needs cache.direct=on (cache mode none or directsync)",
				       file->name, file->engine->name);
	if (fstat(file->fd, &st) < 0)
		return varve_error_errno(err, -errno, "%s: cannot look at the open file", file->name);
	dev = file->is_blockdev ? st.st_rdev : st.st_dev;
	if (!device_polls(dev))
		return varve_error_set(
			err, -EOPNOTSUPP,
			"%s: aio=%s: block device %u:%u has no queue to poll (/sys/dev/block/%u:%u/"
			"queue/io_poll is not 1; drivers such as nvme have a parameter poll_queues): use "
			"aio=io_uring",
			file->name, file->engine->name, major(dev), minor(dev), major(dev), minor(dev));
	return uring_file_open(file, err);
}

/* ---- requests ---- */

void iopoll_submit(void *ctx, struct aio_op *op)
{
	struct uring *u = ctx;

	if (unlikely(op->opcode != AIO_READ && op->opcode != AIO_WRITE)) {
		aio_op_to_worker(u->q, op);
		return;
	}
	u->q->nr_polled++;
	uring_submit(u, op);
}

/* Hands over, and asks the device once. */
void iopoll_flush(void *ctx)
{
	struct uring *u = ctx;

	if (unlikely(atomic_load_explicit(&u->nr_drops, memory_order_relaxed)))
		uring_files_drop(u);
	if (u->nr_ring)
		uring_poll(u);
}

/* ---- making and ending ---- */

int iopoll_attach(struct queue *q, unsigned mode, void **ret_ctx, struct varve_error *err)
{
	struct uring *u;
	int ret;

	if (runs_on_valgrind())
		return uring_refuse(-ENOSYS, err);
	u = calloc(1, sizeof(*u));
	if (!u)
		return varve_error_set(err, -ENOMEM, "out of memory for the aio engine 'io_uring+iopoll'");
	u->q = q;
	u->mode = mode;
	ret = uring_ring_init(&u->ring, IORING_SETUP_IOPOLL);
	if (ret < 0) {
		free(u);
		return uring_refuse(ret, err);
	}
	ret = uring_check(&u->ring, err);
	if (ret < 0) {
		io_uring_queue_exit(&u->ring);
		free(u);
		return ret;
	}
	u->nr_ring_max = u->ring.cq.ring_entries;
	u->enter_fd = u->ring.ring_fd;
	uring_files_init(u);
	*ret_ctx = u;
	return 0;
}

void iopoll_detach(struct queue *q, void *ctx)
{
	struct uring *u = ctx;

	(void)q;
	assert(!u->parked && !u->nr_ring);
	uring_files_exit(u);
	io_uring_queue_exit(&u->ring);
	free(u);
}

#endif
