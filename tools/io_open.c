/* SPDX-License-Identifier: MIT */
/*
 * tools/io_open.c - opening, closing and reopening the one image of `varve io`; -s: a disk of its own above it
 *
 * Owns:    struct io_opened: how the open image was opened, for reopen.
 */
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

/* What was written is stable when the command is done, unless other is asked for: a script may kill us between two. */
#define CACHE_DEFAULT "writethrough"

static struct open_args args_of(const struct io_how *how)
{
	return (struct open_args){ .format = how->format,
				   .image_opts = how->image_opts,
				   .force_share = how->force_share,
				   .copy_on_read = how->copy_on_read,
				   .cache = how->cache ? how->cache : CACHE_DEFAULT, /* image options overrule it */
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
	(void)varve_debug_resume(io->image, NULL, NULL); /* what a break point holds would never end */
	io_aio_reap(io, true);
	ret = close_image(io->image) ? -1 : 0;
	io->image = NULL;
	return ret;
}

/* ---- commands ---- */

static const struct option_row open_rows[] = {
	{ 'r', NULL, NULL, "not for writing" },
	{ 's', NULL, NULL, "keep what is written in a temporary image" },
	{ 'C', NULL, NULL, "keep what is read from the backing file" },
	{ 'n', NULL, NULL, "the same as -t none" },
	{ 'k', NULL, NULL, "the same as -i native" },
	{ 'U', NULL, NULL, "also while another process writes to it; needs -r" },
	{ 't', NULL, "cache", "writethrough (default), writeback, none, directsync, unsafe" },
	{ 'i', NULL, "aio", "io_uring, native, posix or threads" },
	{ 'd', NULL, "discard", "unmap or ignore" },
	{ 'o', NULL, "options", "image options; may be repeated" },
	OPTION_END,
};

static int open_option(struct io_how *how, int id, const char *value)
{
	switch (id) {
	case 'r':
		how->read_only = true;
		return 0;
	case 's':
		how->snapshot = true;
		return 0;
	case 'n':
		return io_set(&how->cache, "none");
	case 't':
		return io_set(&how->cache, value);
	case 'k':
		return io_set(&how->aio, "native");
	case 'i':
		return io_set(&how->aio, value);
	case 'd':
		return io_set_discard(&how->options, value);
	case 'o':
		return io_add_options(&how->options, value);
	case 'U':
		how->force_share = true;
		return 0;
	default: /* 'C' */
		how->copy_on_read = true;
		return 0;
	}
}

static int open_options(struct io_how *how, int argc, char **argv)
{
	struct parse p;
	int id;

	io_parse(&p, argc, argv);
	while ((id = parse_next(&p)) > 0) {
		if (open_option(how, id, p.value) < 0)
			return -1;
	}
	if (id == 0 && p.nr_args == 1)
		return io_set(&how->name, p.args[0]);
	if (id < 0 || p.nr_args || !how->options)
		return io_usage(argv[0]);
	how->name = how->options; /* they say what to open */
	how->options = NULL;
	how->image_opts = true;
	return 0;
}

static int cmd_open(struct io *io, int argc, char **argv)
{
	struct io_how how = { 0 };

	if (io->image) {
		complain("a file is open already, try 'help close'");
		return -1;
	}
	if (open_options(&how, argc, argv) < 0) {
		io_how_free(&how);
		return -1;
	}
	return io_open(io, &how);
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

static const struct option_row reopen_rows[] = {
	{ 'r', NULL, NULL, "not for writing" },
	{ 'w', NULL, NULL, "for writing" },
	{ 'c', NULL, "cache", "in that cache mode" },
	{ 'o', NULL, "options", "with further image options; may be repeated" },
	OPTION_END,
};

static int reopen_options(struct io_how *how, int argc, char **argv)
{
	bool r = false, w = false;
	struct parse p;
	int id, ret = 0;

	io_parse(&p, argc, argv);
	while (ret == 0 && (id = parse_next(&p)) > 0) {
		if (id == 'c')
			ret = io_set(&how->cache, p.value);
		else if (id == 'o')
			ret = io_add_options(&how->options, p.value);
		else
			*(id == 'r' ? &r : &w) = true;
	}
	if (ret < 0)
		return ret;
	if (id < 0 || p.nr_args)
		return io_usage(argv[0]);
	if (r && w) {
		complain("reopen: -r and -w exclude each other");
		return -1;
	}
	if (r || w)
		how->read_only = r;
	return 0;
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
	{ { "close", NULL, "closes the open image", "", io_no_options, NULL }, "c", cmd_close, 0, 0, false },
	{ { "open", NULL, "opens an image", "[path]", open_rows,
	    "'open -o driver=qcow2,file.filename=x' needs no path: the options say what to open.\n" },
	  "o", cmd_open, 1, -1, true },
	{ { "reopen", NULL, "closes the open image, and opens it in another way", "", reopen_rows,
	    "If that fails, it is opened again as it was.\n" },
	  NULL, cmd_reopen, 0, -1, false },
	{ { NULL, NULL, NULL, NULL, NULL, NULL }, NULL, NULL, 0, 0, false },
};
