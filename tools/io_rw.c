/* SPDX-License-Identifier: MIT */
/*
 * tools/io_rw.c - read, write, readv, writev, discard, flush
 */
#include <errno.h>
#include <getopt.h>
#include <string.h>

#include "io.h"

#define FILL_DEFAULT 0xcd

/* ---- read ---- */

struct read_args {
	bool machine, quiet, dump, vectored;
	bool area; /* -b: behind the end of the disk */
	bool has_pattern, has_verify_off, has_verify_len;
	int pattern;
	uint64_t verify_off, verify_len;
};

static int read_options(int argc, char **argv, bool vectored, struct read_args *a)
{
	int c;

	*a = (struct read_args){ .vectored = vectored };
	optind = 0;
	opterr = 0;
	while ((c = getopt(argc, argv, vectored ? "CP:qv" : "bCl:pP:qs:v")) != -1) {
		switch (c) {
		case 'b':
			a->area = true;
			break;
		case 'C':
			a->machine = true;
			break;
		case 'l':
			a->has_verify_len = true;
			if (io_size(optarg, &a->verify_len) < 0)
				return -1;
			break;
		case 'p': /* meant something long ago; scripts still say it */
			break;
		case 'P':
			a->has_pattern = true;
			if (io_pattern(optarg, &a->pattern) < 0)
				return -1;
			break;
		case 'q':
			a->quiet = true;
			break;
		case 's':
			a->has_verify_off = true;
			if (io_size(optarg, &a->verify_off) < 0)
				return -1;
			break;
		case 'v':
			a->dump = true;
			break;
		default:
			return io_usage(argv[0]);
		}
	}
	if (optind + 2 > argc || (!vectored && optind + 2 != argc))
		return io_usage(argv[0]);
	if (!a->has_pattern && (a->has_verify_off || a->has_verify_len))
		return io_usage(argv[0]);
	return 0;
}

/* The part of what was read that -s and -l choose. */
static int read_verify(const struct read_args *a, const uint8_t *buf, uint64_t off, uint64_t len)
{
	uint64_t n = a->has_verify_len ? a->verify_len : len - a->verify_off;

	if (!a->has_pattern)
		return 0;
	return io_verify(buf + a->verify_off, n, a->pattern, off + a->verify_off);
}

static int read_common(struct io *io, int argc, char **argv, bool vectored)
{
	struct io_report report = { .what = "read" };
	struct io_vector v;
	struct read_args a;
	struct varve_error err;
	uint64_t off;
	int ret;

	if (read_options(argc, argv, vectored, &a) < 0 || io_size(argv[optind], &off) < 0 ||
	    io_vector(&v, argc - optind - 1, argv + optind + 1, 0xab) < 0)
		return -1;
	if (a.verify_off > v.len || (a.has_verify_len && a.verify_len > v.len - a.verify_off)) {
		printf("the range to verify ends behind what is read\n");
		io_vector_free(&v);
		return -1;
	}
	report.quiet = a.quiet;
	report.machine = a.machine;
	report.off = off;
	report.len = v.len;
	report.start_ns = io_now_ns();
	ret = a.area ? 0 : io_check_range(io, off, v.len);
	if (ret == 0)
		ret = a.area ? varve_state_area_read(io->image, off, v.buf, v.len, &err) :
			       varve_image_read(io->image, off, v.buf, v.len, &err);
	if (ret < 0) {
		ret = io_failed(vectored ? "readv" : "read", ret);
	} else {
		ret = read_verify(&a, v.buf, off, v.len);
		if (a.dump && !a.quiet)
			io_dump(v.buf, off, v.len);
		io_report(&report);
	}
	io_vector_free(&v);
	return ret;
}

static int cmd_read(struct io *io, int argc, char **argv)
{
	return read_common(io, argc, argv, false);
}

static int cmd_readv(struct io *io, int argc, char **argv)
{
	return read_common(io, argc, argv, true);
}

/* ---- write ---- */

struct write_args {
	bool machine, quiet, zero;
	bool area; /* -b: behind the end of the disk */
	bool has_pattern;
	const char *source; /* -s: file whose bytes are written over and over */
	int pattern;
	unsigned flags;
};

static int write_options(int argc, char **argv, bool vectored, struct write_args *a)
{
	int c;

	*a = (struct write_args){ .pattern = FILL_DEFAULT };
	optind = 0;
	opterr = 0;
	while ((c = getopt(argc, argv, vectored ? "CfP:q" : "bcCfnpP:qs:uz")) != -1) {
		switch (c) {
		case 'b':
			a->area = true;
			break;
		case 'c':
			a->flags |= VARVE_REQ_COMPRESS;
			break;
		case 'C':
			a->machine = true;
			break;
		case 'f':
			a->flags |= VARVE_REQ_FUA;
			break;
		case 'n':
			printf("%s -n: refusing slow zeroes is not part of this version\n", argv[0]);
			return -1;
		case 'p':
			break;
		case 'P':
			a->has_pattern = true;
			if (io_pattern(optarg, &a->pattern) < 0)
				return -1;
			break;
		case 'q':
			a->quiet = true;
			break;
		case 's':
			a->source = optarg;
			break;
		case 'u':
			a->flags |= VARVE_REQ_MAY_UNMAP;
			break;
		case 'z':
			a->zero = true;
			break;
		default:
			return io_usage(argv[0]);
		}
	}
	if (optind + 2 > argc || (!vectored && optind + 2 != argc))
		return io_usage(argv[0]);
	if (a->zero + a->has_pattern + !!a->source > 1) {
		printf("-z, -P and -s exclude each other\n");
		return -1;
	}
	if ((a->flags & VARVE_REQ_COMPRESS) && a->zero) {
		printf("-c and -z exclude each other\n");
		return -1;
	}
	if (a->area && (a->zero || a->flags)) {
		printf("-b takes none of -c, -f, -u, -z\n");
		return -1;
	}
	if ((a->flags & VARVE_REQ_MAY_UNMAP) && !a->zero) {
		printf("-u needs -z\n");
		return -1;
	}
	return 0;
}

/* Fills buf with the bytes of a file, from its start again and again. */
static int fill_from_file(const char *path, uint8_t *buf, size_t len)
{
	FILE *in = fopen(path, "rb");
	size_t have;

	if (!in) {
		printf("%s: %s\n", path, strerror(errno));
		return -1;
	}
	have = fread(buf, 1, len, in);
	if (ferror(in) || (have == 0 && len)) {
		printf("%s: %s\n", path, ferror(in) ? strerror(errno) : "is empty");
		fclose(in);
		return -1;
	}
	fclose(in);
	for (size_t at = have; at < len; at++)
		buf[at] = buf[at - have];
	return 0;
}

static int write_data(struct io *io, const struct write_args *a, uint64_t off, int argc, char **argv,
		      struct io_report *report)
{
	struct varve_error err;
	struct io_vector v;
	int ret;

	if (io_vector(&v, argc, argv, a->pattern) < 0)
		return -1;
	if (a->source && fill_from_file(a->source, v.buf, v.len) < 0) {
		io_vector_free(&v);
		return -1;
	}
	report->len = v.len;
	report->start_ns = io_now_ns();
	ret = a->area ? 0 : io_check_range(io, off, v.len);
	if (ret == 0)
		ret = a->area ? varve_state_area_write(io->image, off, v.buf, v.len, &err) :
				varve_image_write(io->image, off, v.buf, v.len, a->flags, &err);
	io_vector_free(&v);
	return ret < 0 ? io_failed("write", ret) : 0;
}

static int write_zeroes(struct io *io, const struct write_args *a, uint64_t off, const char *len_text,
			struct io_report *report)
{
	struct varve_error err;
	int ret;

	if (io_size(len_text, &report->len) < 0)
		return -1;
	report->start_ns = io_now_ns();
	ret = io_check_range(io, off, report->len);
	if (ret == 0)
		ret = varve_image_write_zeroes(io->image, off, report->len, a->flags, &err);
	return ret < 0 ? io_failed("write", ret) : 0;
}

static int write_common(struct io *io, int argc, char **argv, bool vectored)
{
	struct io_report report = { .what = "wrote" };
	struct write_args a;
	uint64_t off;
	int ret;

	if (write_options(argc, argv, vectored, &a) < 0 || io_size(argv[optind], &off) < 0)
		return -1;
	report.quiet = a.quiet;
	report.machine = a.machine;
	report.off = off;
	if (a.zero)
		ret = write_zeroes(io, &a, off, argv[optind + 1], &report);
	else
		ret = write_data(io, &a, off, argc - optind - 1, argv + optind + 1, &report);
	if (ret == 0)
		io_report(&report);
	return ret;
}

static int cmd_write(struct io *io, int argc, char **argv)
{
	return write_common(io, argc, argv, false);
}

static int cmd_writev(struct io *io, int argc, char **argv)
{
	return write_common(io, argc, argv, true);
}

/* ---- discard, flush ---- */

static int cmd_discard(struct io *io, int argc, char **argv)
{
	struct io_report report = { .what = "discard" };
	struct varve_error err;
	int c, ret;

	optind = 0;
	opterr = 0;
	while ((c = getopt(argc, argv, "Cq")) != -1) {
		if (c == 'C')
			report.machine = true;
		else if (c == 'q')
			report.quiet = true;
		else
			return io_usage(argv[0]);
	}
	if (optind + 2 != argc)
		return io_usage(argv[0]);
	if (io_size(argv[optind], &report.off) < 0 || io_size(argv[optind + 1], &report.len) < 0)
		return -1;
	report.start_ns = io_now_ns();
	ret = io_check_range(io, report.off, report.len);
	if (ret == 0)
		ret = varve_image_discard(io->image, report.off, report.len, &err);
	if (ret < 0)
		return io_failed("discard", ret);
	io_report(&report);
	return 0;
}

static int cmd_flush(struct io *io, int argc, char **argv)
{
	struct varve_error err;
	int ret = varve_image_flush(io->image, &err);

	(void)argc;
	return ret < 0 ? io_failed(argv[0], ret) : 0;
}

const struct io_command io_rw_commands[] = {
	{ "discard", "d", cmd_discard, 2, -1, false, "[-Cq] off len", "says that a range is not needed any more" },
	{ "flush", "f", cmd_flush, 0, 0, false, "", "makes everything written so far stable" },
	{ "read", "r", cmd_read, 2, -1, false, "[-bCqv] [-P pattern [-s off] [-l len]] off len",
	  "reads, and verifies or dumps what was read; -b: of the area for the state of a machine" },
	{ "readv", NULL, cmd_readv, 2, -1, false, "[-Cqv] [-P pattern] off len [len..]", "reads into several buffers" },
	{ "write", "w", cmd_write, 2, -1, false, "[-bcCfquz] [-P pattern | -s file] off len",
	  "writes a pattern (0xcd), the bytes of a file, or zeroes; -b: to the area for the state of a machine" },
	{ "writev", NULL, cmd_writev, 2, -1, false, "[-Cfq] [-P pattern] off len [len..]",
	  "writes from several buffers" },
	{ NULL, NULL, NULL, 0, 0, false, NULL, NULL },
};
