/* SPDX-License-Identifier: MIT */
/*
 * tools/io_aio.c - aio_read, aio_write, aio_flush: requests through a queue
 *
 * A command returns when its request is submitted; the result is told when it has completed, which happens while
 * later commands run, at aio_flush, or at the end.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "io.h"

struct aio {
	bool is_read, machine, quiet, dump, has_pattern, zero;
	bool invalid; /* -i: parsed, and then dropped */
	bool registered;
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
		io_failed(a->is_read ? "readv" : "aio_write", result); /* scripts know these words */
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

static const struct option_row aio_read_rows[] = {
	{ 'C', NULL, NULL, "a result for machines" },
	{ 'i', NULL, NULL, "say that the request is wrong, and send nothing" },
	{ 'q', NULL, NULL, "no result" },
	{ 'r', NULL, NULL, REGISTER_WHAT },
	{ 'v', NULL, NULL, "dump the bytes" },
	{ 'P', NULL, "pattern", "say so unless all bytes are this one" },
	OPTION_END,
};

static const struct option_row aio_write_rows[] = {
	{ 'C', NULL, NULL, "a result for machines" },
	{ 'f', NULL, NULL, "stable before it is done" },
	{ 'i', NULL, NULL, "say that the request is wrong, and send nothing" },
	{ 'q', NULL, NULL, "no result" },
	{ 'r', NULL, NULL, REGISTER_WHAT },
	{ 'u', NULL, NULL, "with -z: give the space back" },
	{ 'z', NULL, NULL, "zeroes, without writing them where that can be" },
	{ 'P', NULL, "pattern", "this byte, instead of 0xcd" },
	OPTION_END,
};

static int aio_option(struct aio *a, int id, const char *value)
{
	switch (id) {
	case 'C':
		a->report.machine = true;
		return 0;
	case 'f':
		a->flags |= VARVE_REQ_FUA;
		return 0;
	case 'i':
		a->invalid = true;
		return 0;
	case 'P':
		a->has_pattern = true;
		return io_pattern(value, &a->pattern);
	case 'q':
		a->quiet = a->report.quiet = true;
		return 0;
	case 'r':
		a->registered = true;
		return 0;
	case 'u':
		a->flags |= VARVE_REQ_MAY_UNMAP;
		return 0;
	case 'v':
		a->dump = true;
		return 0;
	default: /* 'z' */
		a->zero = true;
		return 0;
	}
}

static int aio_options(struct aio *a, int argc, char **argv, struct parse *p)
{
	int id;

	io_parse(p, argc, argv);
	while ((id = parse_next(p)) > 0) {
		if (aio_option(a, id, p->value) < 0)
			return -1;
	}
	if (id < 0 || p->nr_args < 2)
		return io_usage(argv[0]);
	if (a->zero && p->nr_args != 2) {
		printf("-z takes one length only\n");
		return -1;
	}
	if (a->zero && a->has_pattern) {
		printf("-z and -P exclude each other\n");
		return -1;
	}
	if (a->zero && a->registered) {
		printf("-r and -z exclude each other: zeroes have no buffer\n");
		return -1;
	}
	if ((a->flags & VARVE_REQ_MAY_UNMAP) && !a->zero) {
		printf("-u needs -z\n");
		return -1;
	}
	return io_size(p->args[0], &a->report.off);
}

static int aio_prepare(struct io *io, struct aio *a, int argc, char **argv)
{
	struct parse p;

	if (aio_options(a, argc, argv, &p) < 0)
		return -1;
	if (a->zero)
		return io_size(p.args[1], &a->report.len);
	if (io_vector(&a->v, p.nr_args - 1, p.args + 1, a->is_read ? 0xab : a->pattern) < 0)
		return -1;
	a->report.len = a->v.len;
	return a->registered ? io_vector_register(&a->v, io->queue) : 0;
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
	if (aio_prepare(io, a, argc, argv) < 0) {
		free(a);
		return -1;
	}
	if (a->invalid) {
		printf("injecting invalid %s request\n", is_read ? "read" : "write");
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
	{ { "aio_flush", NULL, "waits for all asynchronous requests", "", io_no_options, NULL }, NULL, cmd_aio_flush, 0, 0,
	  false },
	{ { "aio_read", NULL, "reads without waiting for it", "off len [len..]", aio_read_rows,
	    "Its result is told when it is there; that it fails is no failure of the command.\n" },
	  NULL, cmd_aio_read, 2, -1, false },
	{ { "aio_write", NULL, "writes without waiting for it", "off len [len..]", aio_write_rows,
	    "Its result is told when it is there; that it fails is no failure of the command.\n" },
	  NULL, cmd_aio_write, 2, -1, false },
	{ { NULL, NULL, NULL, NULL, NULL, NULL }, NULL, NULL, 0, 0, false },
};
