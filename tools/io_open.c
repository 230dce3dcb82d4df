/* SPDX-License-Identifier: MIT */
/*
 * tools/io_open.c - opening, closing and reopening the one image of `varve io`; -s: a disk of its own above it
 *
 * Owns:    struct io_opened: how the open image was opened, for reopen.
 */
#include <getopt.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "io.h"

/* ---- how it is opened ---- */

void io_how_free(struct io_how *how)
{
	free(how->name);
	free(how->format);
	free(how->cache);
	free(how->aio);
	free(how->options);
	*how = (struct io_how){ 0 };
}

int io_set(char **var, const char *text)
{
	char *copy = strdup(text);

	if (!copy) {
		complain("out of memory");
		return -1;
	}
	free(*var);
	*var = copy;
	return 0;
}

int io_add_options(char **var, const char *text)
{
	char *all;

	if (!*var)
		return io_set(var, text);
	if (asprintf(&all, "%s,%s", *var, text) < 0) {
		complain("out of memory");
		return -1;
	}
	free(*var);
	*var = all;
	return 0;
}

int io_set_discard(char **options, const char *mode)
{
	char text[32];

	if (strlen(mode) > 16) {
		complain("discard mode '%s' is not unmap (on) or ignore (off)", mode);
		return -1;
	}
	snprintf(text, sizeof(text), "discard=%s", mode);
	return io_add_options(options, text);
}

static struct open_args args_of(const struct io_how *how)
{
	return (struct open_args){ .format = how->format,
				   .image_opts = how->image_opts,
				   .force_share = how->force_share,
				   .copy_on_read = how->copy_on_read,
				   .cache = how->cache,
				   .aio = how->aio,
				   .options = how->options };
}

/* ---- -s: what is written goes to a file that is gone afterwards ---- */

/* Each option of `spec` belongs to the backing image now. Commas that are part of a value are doubled. */
static void put_backing(FILE *out, const char *spec)
{
	bool start = true;

	for (const char *p = spec; *p; p++) {
		if (start && *p != ',')
			fputs("backing.", out);
		start = false;
		if (p[0] == ',' && p[1] == ',') {
			fputs(",,", out);
			p++;
		} else {
			putc(*p, out);
			start = *p == ',';
		}
	}
}

static char *above(const char *path, const char *spec, const char *format)
{
	char *text = NULL;
	size_t len;
	FILE *out = open_memstream(&text, &len);

	if (!out)
		return NULL;
	fprintf(out, "driver=qcow2,cache=unsafe,file.filename=%s,backing.driver=%s,", path, format);
	put_backing(out, spec);
	if (fclose(out) == 0)
		return text;
	free(text);
	return NULL;
}

/* How long and of what format the image below is. */
static int look_below(const char *spec, const struct open_args *args, uint64_t *ret_len, char *ret_format, size_t size)
{
	struct open_args a = *args;
	struct varve_image *image;

	a.image_opts = true;
	a.format = a.options = NULL;
	a.copy_on_read = false;
	image = open_image(spec, &a, 0, NULL);
	if (!image)
		return -1;
	*ret_len = varve_image_length(image);
	snprintf(ret_format, size, "%s", varve_image_format(image));
	return close_image(image) ? -1 : 0;
}

/* The image options of a new overlay at `path` (created empty) above what `how` says; NULL, after a message. */
static char *make_overlay(const struct io_how *how, const char *path)
{
	struct open_args args = args_of(how);
	char *spec = open_spec(how->name, &args), *text = NULL;
	struct varve_error err;
	char format[64];
	uint64_t len;

	if (spec && look_below(spec, &args, &len, format, sizeof(format)) == 0) {
		if (varve_image_create(path, "qcow2", len, NULL, 0, NULL, NULL, &err) < 0)
			complain("%s", err.message);
		else if (!(text = above(path, spec, format)))
			complain("out of memory");
	}
	free(spec);
	return text;
}

static struct varve_image *open_above(struct io *io, const struct io_how *how)
{
	const char *dir = getenv("TMPDIR");
	struct open_args args = { .image_opts = true, .aio = how->aio, .force_share = how->force_share,
				  .copy_on_read = how->copy_on_read };
	struct varve_image *image = NULL;
	char path[4096], *spec;
	int fd;

	if (snprintf(path, sizeof(path), "%s/varve-io-XXXXXX", dir && *dir ? dir : "/var/tmp") >= (int)sizeof(path) ||
	    strchr(path, ',')) {
		complain("TMPDIR: %s cannot hold a temporary image", dir);
		return NULL;
	}
	fd = mkstemp(path);
	if (fd < 0) {
		complain("%s: a temporary image for -s: %m", path);
		return NULL;
	}
	close(fd);
	spec = make_overlay(how, path);
	if (spec)
		image = open_image(spec, &args, VARVE_OPEN_WRITABLE, io->queue);
	unlink(path);
	free(spec);
	return image;
}

/* ---- opening and closing ---- */

static struct varve_image *open_as(struct io *io, const struct io_how *how)
{
	struct open_args args = args_of(how);

	if (how->snapshot && !how->read_only)
		return open_above(io, how);
	return open_image(how->name, &args, how->read_only ? 0 : VARVE_OPEN_WRITABLE, io->queue);
}

int io_open(struct io *io, struct io_how *how)
{
	io->image = open_as(io, how);
	if (!io->image) {
		io_how_free(how);
		return -1;
	}
	io_how_free(&io->how);
	io->how = *how;
	*how = (struct io_how){ 0 };
	return 0;
}

int io_close(struct io *io)
{
	int ret;

	if (!io->image)
		return 0;
	io_aio_reap(io, true);
	ret = close_image(io->image) ? -1 : 0;
	io->image = NULL;
	return ret;
}

/* ---- commands ---- */

static int open_options(struct io_how *how, int argc, char **argv)
{
	int c, ret = 0;

	optind = 0;
	opterr = 0;
	while (ret == 0 && (c = getopt(argc, argv, "Cd:ki:no:rst:U")) != -1) {
		switch (c) {
		case 'r':
			how->read_only = true;
			break;
		case 's':
			how->snapshot = true;
			break;
		case 'n':
			ret = io_set(&how->cache, "none");
			break;
		case 't':
			ret = io_set(&how->cache, optarg);
			break;
		case 'k':
			ret = io_set(&how->aio, "native");
			break;
		case 'i':
			ret = io_set(&how->aio, optarg);
			break;
		case 'd':
			ret = io_set_discard(&how->options, optarg);
			break;
		case 'o':
			ret = io_add_options(&how->options, optarg);
			break;
		case 'U':
			how->force_share = true;
			break;
		case 'C':
			how->copy_on_read = true;
			break;
		default:
			return io_usage(argv[0]);
		}
	}
	return ret;
}

static int cmd_open(struct io *io, int argc, char **argv)
{
	struct io_how how = { 0 };

	if (io->image) {
		fprintf(stderr, "a file is open already, try 'help close'\n");
		return -1;
	}
	if (open_options(&how, argc, argv) < 0)
		goto fail;
	if (optind + 1 == argc) {
		if (io_set(&how.name, argv[optind]) < 0)
			goto fail;
	} else if (optind == argc && how.options) { /* the options say what to open */
		how.name = how.options;
		how.options = NULL;
		how.image_opts = true;
	} else {
		io_usage(argv[0]);
		goto fail;
	}
	return io_open(io, &how);

fail:
	io_how_free(&how);
	return -1;
}

static int cmd_close(struct io *io, int argc, char **argv)
{
	(void)argc;
	(void)argv;
	return io_close(io);
}

static int how_copy(struct io_how *to, const struct io_how *from)
{
	*to = (struct io_how){ .read_only = from->read_only,
			       .snapshot = from->snapshot,
			       .image_opts = from->image_opts,
			       .force_share = from->force_share,
			       .copy_on_read = from->copy_on_read };
	if ((from->name && io_set(&to->name, from->name) < 0) ||
	    (from->format && io_set(&to->format, from->format) < 0) ||
	    (from->cache && io_set(&to->cache, from->cache) < 0) || (from->aio && io_set(&to->aio, from->aio) < 0) ||
	    (from->options && io_set(&to->options, from->options) < 0)) {
		io_how_free(to);
		return -1;
	}
	return 0;
}

static int reopen_options(struct io_how *how, int argc, char **argv)
{
	int c, ret = 0;
	bool r = false, w = false;

	optind = 0;
	opterr = 0;
	while (ret == 0 && (c = getopt(argc, argv, "c:o:rw")) != -1) {
		switch (c) {
		case 'c':
			ret = io_set(&how->cache, optarg);
			break;
		case 'o':
			ret = io_add_options(&how->options, optarg);
			break;
		case 'r':
			r = how->read_only = true;
			break;
		case 'w':
			w = true;
			how->read_only = false;
			break;
		default:
			return io_usage(argv[0]);
		}
	}
	if (ret == 0 && (optind != argc || (r && w)))
		return io_usage(argv[0]);
	return ret;
}

/* Closes, and opens again in another way; if that does not work, in the old way. */
static int cmd_reopen(struct io *io, int argc, char **argv)
{
	struct io_how how, old;
	int ret;

	if (io->how.snapshot) {
		printf("reopen: what was written with -s would be gone\n");
		return -1;
	}
	if (how_copy(&how, &io->how) < 0)
		return -1;
	if (reopen_options(&how, argc, argv) < 0 || how_copy(&old, &io->how) < 0) {
		io_how_free(&how);
		return -1;
	}
	ret = io_close(io);
	if (ret == 0 && io_open(io, &how) < 0) {
		ret = -1;
		if (io_open(io, &old) < 0)
			complain("nor could it be opened as it was; no image is open now");
	}
	io_how_free(&how);
	io_how_free(&old);
	return ret;
}

const struct io_command io_open_commands[] = {
	{ "close", "c", cmd_close, 0, 0, false, "", "closes the open image" },
	{ "open", "o", cmd_open, 1, -1, true, "[-rsCnkU] [-t cache] [-i aio] [-d discard] [-o options] [path]",
	  "opens an image" },
	{ "reopen", NULL, cmd_reopen, 0, -1, false, "[-r | -w] [-c cache] [-o options]",
	  "closes the open image, and opens it in another way" },
	{ NULL, NULL, NULL, 0, 0, false, NULL, NULL },
};
