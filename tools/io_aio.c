/* SPDX-License-Identifier: MIT */
/*
 * tools/io_aio.c - aio_read, aio_write, aio_flush: requests through a queue
 *
 * A command returns when its request is submitted; the result is told when it has completed, which happens while
 * later commands run, at aio_flush, or at the end.
 */
#include <errno.h>
#include <getopt.h>
#include <stdlib.h>
#include <string.h>

#include "io.h"

struct aio {
	bool is_read, machine, quiet, dump, has_pattern, zero;
	bool invalid; /* -i: parsed, and then dropped */
	int pattern;
	unsigned flags;
	struct io_vector v; /* not for zeroes */
	struct io_report report;
};

static void aio_free(struct aio *a)
{
	if (!a->zero)
		io_vector_free(&a->v);
	free(a);
}

static void aio_tell(struct aio *a, int result)
{
	if (result < 0) {
		io_failed(a->is_read ? "aio_read" : "aio_write", result);
		return;
	}
	if (a->has_pattern && a->is_read)
		io_verify(a->v.buf, a->v.len, a->pattern, a->report.off);
	if (a->dump && !a->quiet)
		io_dump(a->v.buf, a->report.off, a->v.len);
	io_report(&a->report);
}

static int aio_collect(struct io *io, int timeout_ms)
{
	struct varve_completion done[32];
	int n = varve_queue_reap(io->queue, done, ARRAY_LEN(done), timeout_ms);

	for (int i = 0; i < n; i++) {
		aio_tell(done[i].user_data, done[i].result);
		aio_free(done[i].user_data);
		io->pending--;
	}
	return n;
}

void io_aio_reap(struct io *io, bool all)
{
	if (!io->pending)
		return;
	if (!all) {
		aio_collect(io, 0);
		return;
	}
	while (io->pending && aio_collect(io, -1) >= 0)
		;
}

void io_aio_sleep(struct io *io, uint64_t ms)
{
	uint64_t end = io_now_ns() + ms * 1000000;

	for (;;) {
		uint64_t now = io_now_ns();

		if (now >= end)
			break;
		aio_collect(io, (int)MIN((end - now + 999999) / 1000000, 1000000));
	}
}

/* The request goes to the queue; if the queue is full, completions make room. */
static int aio_submit(struct io *io, struct aio *a)
{
	int ret;

	for (;;) {
		if (a->zero)
			ret = varve_submit_write_zeroes(io->queue, io->image, a->report.off, a->report.len, a->flags, a);
		else if (a->is_read)
			ret = varve_submit_readv(io->queue, io->image, a->v.iov, a->v.nr_iov, a->report.off, a);
		else
			ret = varve_submit_writev(io->queue, io->image, a->v.iov, a->v.nr_iov, a->report.off, a->flags,
						  a);
		if (ret != -EAGAIN)
			break;
		aio_collect(io, -1);
	}
	if (ret == 0)
		io->pending++;
	return ret;
}

static int aio_options(struct aio *a, int argc, char **argv)
{
	int c;

	optind = 0;
	opterr = 0;
	while ((c = getopt(argc, argv, a->is_read ? "CiP:qv" : "CfiP:quz")) != -1) {
		switch (c) {
		case 'C':
			a->report.machine = true;
			break;
		case 'f':
			a->flags |= VARVE_REQ_FUA;
			break;
		case 'i':
			a->invalid = true;
			break;
		case 'P':
			a->has_pattern = true;
			if (io_pattern(optarg, &a->pattern) < 0)
				return -1;
			break;
		case 'q':
			a->quiet = a->report.quiet = true;
			break;
		case 'u':
			a->flags |= VARVE_REQ_MAY_UNMAP;
			break;
		case 'v':
			a->dump = true;
			break;
		case 'z':
			a->zero = true;
			break;
		default:
			return io_usage(argv[0]);
		}
	}
	if (optind + 2 > argc || (a->zero && optind + 2 != argc))
		return io_usage(argv[0]);
	if (a->zero && a->has_pattern) {
		printf("-z and -P exclude each other\n");
		return -1;
	}
	if ((a->flags & VARVE_REQ_MAY_UNMAP) && !a->zero) {
		printf("-u needs -z\n");
		return -1;
	}
	return io_size(argv[optind], &a->report.off);
}

static int aio_prepare(struct aio *a, int argc, char **argv)
{
	if (aio_options(a, argc, argv) < 0)
		return -1;
	if (a->zero)
		return io_size(argv[optind + 1], &a->report.len);
	if (io_vector(&a->v, argc - optind - 1, argv + optind + 1, a->is_read ? 0xab : a->pattern) < 0)
		return -1;
	a->report.len = a->v.len;
	return 0;
}

static int aio_common(struct io *io, int argc, char **argv, bool is_read)
{
	struct aio *a = calloc(1, sizeof(*a));
	int ret;

	if (!a) {
		printf("no memory for a request\n");
		return -1;
	}
	a->is_read = is_read;
	a->pattern = 0xcd;
	a->report.what = is_read ? "read" : "wrote";
	if (aio_prepare(a, argc, argv) < 0) {
		free(a);
		return -1;
	}
	if (a->invalid) {
		aio_free(a);
		return 0;
	}
	a->report.start_ns = io_now_ns();
	ret = io_check_range(io, a->report.off, a->report.len);
	if (ret == 0)
		ret = aio_submit(io, a);
	if (ret < 0) {
		/* As if it had failed on the way: the command itself was right. */
		aio_tell(a, ret);
		aio_free(a);
	}
	return 0;
}

static int cmd_aio_read(struct io *io, int argc, char **argv)
{
	return aio_common(io, argc, argv, true);
}

static int cmd_aio_write(struct io *io, int argc, char **argv)
{
	return aio_common(io, argc, argv, false);
}

static int cmd_aio_flush(struct io *io, int argc, char **argv)
{
	(void)argc;
	(void)argv;
	io_aio_reap(io, true);
	return 0;
}

const struct io_command io_aio_commands[] = {
	{ "aio_flush", NULL, cmd_aio_flush, 0, 0, false, "", "waits for all asynchronous requests" },
	{ "aio_read", NULL, cmd_aio_read, 2, -1, false, "[-Ciqv] [-P pattern] off len [len..]",
	  "reads without waiting for it" },
	{ "aio_write", NULL, cmd_aio_write, 2, -1, false, "[-Cfiquz] [-P pattern] off len [len..]",
	  "writes without waiting for it" },
	{ NULL, NULL, NULL, 0, 0, false, NULL, NULL },
};
