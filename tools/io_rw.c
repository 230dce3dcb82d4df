/* SPDX-License-Identifier: MIT */
/*
 * tools/io_rw.c - read, write, readv, writev, discard, flush
 */
#include <errno.h>
#include <string.h>

#include "io.h"

#define FILL_DEFAULT 0xcd

/* ---- read ---- */

struct read_args {
	bool machine, quiet, dump, vectored;
	bool area; /* -b: behind the end of the disk */
	bool registered;
	bool has_pattern, has_verify_off, has_verify_len;
	int pattern;
	uint64_t verify_off, verify_len;
};

static const struct option_row read_rows[] = {
	{ 'b', NULL, NULL, "of the area for the state of a machine, not of the disk" },
	{ 'C', NULL, NULL, "a result for machines" },
	{ 'q', NULL, NULL, "no result" },
	{ 'r', NULL, NULL, REGISTER_WHAT },
	{ 'v', NULL, NULL, "dump the bytes" },
	{ 'p', NULL, NULL, NULL }, /* meant something long ago; scripts still say it */
	{ 'P', NULL, "pattern", "fail unless all bytes are this one" },
	{ 's', NULL, "off", "with -P: look at the bytes from there on" },
	{ 'l', NULL, "len", "with -P: look at so many bytes" },
	OPTION_END,
};

static const struct option_row readv_rows[] = {
	{ 'C', NULL, NULL, "a result for machines" },
	{ 'q', NULL, NULL, "no result" },
	{ 'r', NULL, NULL, REGISTER_WHAT },
	{ 'v', NULL, NULL, "dump the bytes" },
	{ 'P', NULL, "pattern", "fail unless all bytes are this one" },
	OPTION_END,
};

static int read_option(struct read_args *a, int id, const char *value)
{
	switch (id) {
	case 'b':
		a->area = true;
		return 0;
	case 'C':
		a->machine = true;
		return 0;
	case 'l':
		a->has_verify_len = true;
		return io_size(value, &a->verify_len);
	case 'P':
		a->has_pattern = true;
		return io_pattern(value, &a->pattern);
	case 'q':
		a->quiet = true;
		return 0;
	case 'r':
		a->registered = true;
		return 0;
	case 's':
		a->has_verify_off = true;
		return io_size(value, &a->verify_off);
	case 'v':
		a->dump = true;
		return 0;
	default:
		return 0; /* -p */
	}
}

static int read_options(int argc, char **argv, bool vectored, struct read_args *a, struct parse *p)
{
	int id;

	*a = (struct read_args){ .vectored = vectored };
	io_parse(p, argc, argv);
	while ((id = parse_next(p)) > 0) {
		if (read_option(a, id, p->value) < 0)
			return -1;
	}
	if (id < 0 || p->nr_args < 2 || (!vectored && p->nr_args != 2) ||
	    (!a->has_pattern && (a->has_verify_off || a->has_verify_len)))
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
	struct parse p;
	uint64_t off;
	int ret;

	if (read_options(argc, argv, vectored, &a, &p) < 0 || io_size(p.args[0], &off) < 0 ||
	    io_vector(&v, p.nr_args - 1, p.args + 1, 0xab) < 0)
		return -1;
	if (a.verify_off > v.len || (a.has_verify_len && a.verify_len > v.len - a.verify_off)) {
		printf("the range to verify ends behind what is read\n");
		io_vector_free(&v);
		return -1;
	}
	if (a.registered && io_vector_register(&v, io->queue) < 0)
		return -1;
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
	bool has_pattern, registered, vectored;
	const char *source; /* -s: file whose bytes are written over and over */
	int pattern;
	unsigned flags;
};

static const struct option_row write_rows[] = {
	{ 'b', NULL, NULL, "to the area for the state of a machine, not to the disk" },
	{ 'c', NULL, NULL, "store whole clusters compressed" },
	{ 'C', NULL, NULL, "a result for machines" },
	{ 'f', NULL, NULL, "stable before it is done" },
	{ 'n', NULL, NULL, "with -z: fail rather than write zeroes as data" },
	{ 'q', NULL, NULL, "no result" },
	{ 'r', NULL, NULL, REGISTER_WHAT },
	{ 'u', NULL, NULL, "with -z: give the space back" },
	{ 'z', NULL, NULL, "zeroes, without writing them where that can be" },
	{ 'p', NULL, NULL, NULL },
	{ 'P', NULL, "pattern", "this byte, instead of 0xcd" },
	{ 's', NULL, "file", "the bytes of that file, over and over" },
	OPTION_END,
};

static const struct option_row writev_rows[] = {
	{ 'C', NULL, NULL, "a result for machines" },
	{ 'f', NULL, NULL, "stable before it is done" },
	{ 'q', NULL, NULL, "no result" },
	{ 'r', NULL, NULL, REGISTER_WHAT },
	{ 'P', NULL, "pattern", "this byte, instead of 0xcd" },
	OPTION_END,
};

static int write_option(struct write_args *a, int id, const char *value)
{
	switch (id) {
	case 'b':
		a->area = true;
		return 0;
	case 'c':
		a->flags |= VARVE_REQ_COMPRESS;
		return 0;
	case 'C':
		a->machine = true;
		return 0;
	case 'f':
		a->flags |= VARVE_REQ_FUA;
		return 0;
	case 'n':
		a->flags |= VARVE_REQ_NO_FALLBACK;
		return 0;
	case 'P':
		a->has_pattern = true;
		return io_pattern(value, &a->pattern);
	case 'q':
		a->quiet = true;
		return 0;
	case 'r':
		a->registered = true;
		return 0;
	case 's':
		a->source = value;
		return 0;
	case 'u':
		a->flags |= VARVE_REQ_MAY_UNMAP;
		return 0;
	case 'z':
		a->zero = true;
		return 0;
	default:
		return 0; /* -p */
	}
}

/* Options that do not go together. */
static int write_conflicts(const struct write_args *a)
{
	const char *text = NULL;

	if (a->zero + a->has_pattern + !!a->source > 1)
		text = "-z, -P and -s exclude each other";
	else if ((a->flags & VARVE_REQ_COMPRESS) && (a->flags & VARVE_REQ_FUA))
		text = "-c and -f exclude each other";
	else if ((a->flags & VARVE_REQ_MAY_UNMAP) && !a->zero)
		text = "-u needs -z";
	else if ((a->flags & VARVE_REQ_NO_FALLBACK) && !a->zero)
		text = "-n needs -z";
	else if (a->registered && a->zero)
		text = "-r and -z exclude each other: zeroes have no buffer";
	else if (a->area && (a->zero || (a->flags & VARVE_REQ_FUA)))
		text = "-b takes none of -f, -z";
	if (text)
		printf("%s\n", text);
	return text ? -1 : 0;
}

static int write_options(int argc, char **argv, bool vectored, struct write_args *a, struct parse *p)
{
	int id;

	*a = (struct write_args){ .pattern = FILL_DEFAULT };
	io_parse(p, argc, argv);
	while ((id = parse_next(p)) > 0) {
		if (write_option(a, id, p->value) < 0)
			return -1;
	}
	if (id < 0 || p->nr_args < 2 || (!vectored && p->nr_args != 2))
		return io_usage(argv[0]);
	if (write_conflicts(a) < 0)
		return -1;
	if (a->zero || a->area) /* nothing there can be compressed: as for qemu-io, -c says nothing then */
		a->flags &= ~VARVE_REQ_COMPRESS;
	return 0;
}

/* Compressed are whole clusters only, the last one of the disk may be shorter. 0, or the error of what is not that. */
static int check_clusters(struct io *io, uint64_t off, uint64_t len)
{
	json_t *info = image_info(io->image);
	uint64_t cluster = info ? (uint64_t)info_int(info, "cluster-size", 1) : 1;

	json_decref(info);
	if (off % cluster || (len % cluster && off + len != varve_image_length(io->image)))
		return -EINVAL;
	return 0;
}

/* Fills buf with the bytes of a file, from its start again and again. */
static int fill_from_file(const char *path, uint8_t *buf, size_t len)
{
	FILE *in = fopen(path, "rb");
	size_t have;

	if (!in) {
		complain("%s: %s", path, strerror(errno));
		return -1;
	}
	have = fread(buf, 1, len, in);
	if (ferror(in) || (have == 0 && len)) {
		complain("%s: %s", path, ferror(in) ? strerror(errno) : "the file is empty");
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
	if (a->registered && io_vector_register(&v, io->queue) < 0)
		return -1;
	report->len = v.len;
	report->start_ns = io_now_ns();
	ret = a->area ? 0 : io_check_range(io, off, v.len);
	if (ret == 0 && (a->flags & VARVE_REQ_COMPRESS))
		ret = check_clusters(io, off, v.len);
	if (ret == 0)
		ret = a->area ? varve_state_area_write(io->image, off, v.buf, v.len, &err) :
				varve_image_write(io->image, off, v.buf, v.len, a->flags, &err);
	io_vector_free(&v);
	return ret < 0 ? io_failed(a->vectored ? "writev" : "write", ret) : 0;
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
	struct parse p;
	uint64_t off;
	int ret;

	if (write_options(argc, argv, vectored, &a, &p) < 0 || io_size(p.args[0], &off) < 0)
		return -1;
	a.vectored = vectored;
	report.quiet = a.quiet;
	report.machine = a.machine;
	report.off = off;
	if (a.zero)
		ret = write_zeroes(io, &a, off, p.args[1], &report);
	else
		ret = write_data(io, &a, off, p.nr_args - 1, p.args + 1, &report);
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

static const struct option_row discard_rows[] = {
	{ 'C', NULL, NULL, "a result for machines" },
	{ 'q', NULL, NULL, "no result" },
	OPTION_END,
};

static int cmd_discard(struct io *io, int argc, char **argv)
{
	struct io_report report = { .what = "discard" };
	struct varve_error err;
	struct parse p;
	int id, ret;

	io_parse(&p, argc, argv);
	while ((id = parse_next(&p)) > 0) {
		report.machine |= id == 'C';
		report.quiet |= id == 'q';
	}
	if (id < 0 || p.nr_args != 2)
		return io_usage(argv[0]);
	if (io_size(p.args[0], &report.off) < 0 || io_size(p.args[1], &report.len) < 0)
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

	(void)argc;
	(void)argv;
	return varve_image_flush(io->image, &err) < 0 ? io_complain(NULL, &err) : 0;
}

const struct io_command io_rw_commands[] = {
	{ { "discard", NULL, "says that a range is not needed any more", "off len", discard_rows, NULL }, "d", cmd_discard, 2,
	  -1, false },
	{ { "flush", NULL, "makes everything written so far stable", "", io_no_options, NULL }, "f", cmd_flush, 0, 0, false },
	{ { "read", NULL, "reads, and verifies or dumps what was read", "off len", read_rows,
	    "'read -v 512 1k' dumps the second and third sector.\n" },
	  "r", cmd_read, 2, -1, false },
	{ { "readv", NULL, "reads into several buffers in one request", "off len [len..]", readv_rows, NULL }, NULL, cmd_readv,
	  2, -1, false },
	{ { "write", NULL, "writes a pattern (0xcd), the bytes of a file, or zeroes", "off len", write_rows,
	    "'write -P 7 1M 64k' writes 64 KiB of sevens at 1 MiB.\n" },
	  "w", cmd_write, 2, -1, false },
	{ { "writev", NULL, "writes from several buffers in one request", "off len [len..]", writev_rows, NULL }, NULL,
	  cmd_writev, 2, -1, false },
	{ { NULL, NULL, NULL, NULL, NULL, NULL }, NULL, NULL, 0, 0, false },
};
