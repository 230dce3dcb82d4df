/* SPDX-License-Identifier: MIT */
/*
 * tools/img_create.c - `varve img create`
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "img.h"
#include "img_convert.h"
#include "unfinished.h"

static const struct option_row options[] = {
	{ 'f', "format", ARG_NEW_FORMAT, "of the new image: raw (default), qcow2, qed" },
	{ 'o', "options", ARG_CREATE, "options of the format, listed by -o help; may be repeated" },
	{ 'b', "backing", ARG_FILE, "what the new image does not hold is read from FILE" },
	{ 'B', "backing-format", ARG_FORMAT, "of FILE: needed with -b, never guessed" },
	{ 'F', NULL, ARG_FORMAT, "the same as -B" },
	{ 'u', "backing-unsafe", NULL, "do not open the backing file; SIZE is needed then" },
	OPT_OBJECT,
	OPT_QUIET,
	OPTION_END,
};

struct create_args {
	const char *format, *backing, *backing_format;
	char *options;
	unsigned flags;
	bool quiet;
};

/* 0, or 1 after a message. */
static int take_option(struct create_args *a, int id, const char *value)
{
	switch (id) {
	case 'q':
		a->quiet = true;
		return 0;
	case 'f':
		a->format = value;
		return 0;
	case 'o':
		return options_take("create", &a->options, value);
	case 'b':
		a->backing = value;
		return 0;
	case 'B':
	case 'F':
		a->backing_format = value;
		return 0;
	case 'u':
		a->flags |= VARVE_CREATE_NO_BACKING_CHECK;
		return 0;
	default:
		return object_add(value);
	}
}

static void add_backing(struct create_args *a)
{
	if (a->backing)
		a->options = options_append(a->options, "backing_file", a->backing, true);
	if (a->backing_format)
		a->options = options_append(a->options, "backing_fmt", a->backing_format, true);
}

/* What was made, with the options as they were given. */
static void announce(const char *name, const struct create_args *a)
{
	struct open_args oa = { .format = a->format };
	struct varve_image *image;

	image = open_image(name, &oa, VARVE_OPEN_NO_BACKING | VARVE_OPEN_NO_IO, NULL);
	if (!image)
		return;
	printf("Formatting '");
	print_text(name);
	printf("', fmt=%s size=%llu", a->format, (unsigned long long)varve_image_length(image));
	if (a->options) {
		putchar(' ');
		print_text(a->options);
	}
	putchar('\n');
	varve_image_close(image, NULL);
}

/*
 * With preallocation it takes long, and a signal takes along what is new. A file that existed before stays; it holds no image then,
 * for the header is written last.
 */
static int create(const char *name, uint64_t len, const struct create_args *a)
{
	const char *path = img_local_path(name);
	char *data_path;
	struct varve_error err;
	struct stat st;
	int ret;

	if (img_data_path(a->options, path, &data_path))
		return 1;
	if (lstat(path, &st) < 0)
		unfinished_file(path, false);
	if (data_path && lstat(data_path, &st) < 0)
		unfinished_data_file(data_path);
	unfinished_watch();
	ret = varve_image_create(name, a->format, len, a->options, a->flags, progress_update, NULL, &err);
	unfinished_file(NULL, false); /* it is whole, or the library removed what it made */
	unfinished_data_file(NULL);
	free(data_path);
	if (ret < 0) {
		explain_zeroinit(name, &err);
		complain("%s", err.message);
		return 1;
	}
	if (!a->quiet)
		announce(name, a);
	end_stdout();
	return 0;
}

static int img_create(int argc, char **argv)
{
	struct create_args a = { .format = "raw" };
	uint64_t len = UINT64_MAX;
	struct parse p;
	int id, ret = 0;

	parse_start(&p, &cmd_create, argc, argv);
	p.numbers = true; /* no size, but no option either */
	while (!ret && (id = parse_next(&p)) > 0)
		ret = take_option(&a, id, p.value);
	if (!ret && id < 0)
		ret = p.status;
	else if (!ret && options_ask_help(a.options))
		ret = options_help("create", a.format, false);
	else if (!ret && p.nr_args < 1)
		ret = complain_usage("create: no file name given");
	else if (!ret && p.nr_args > 2)
		ret = complain_usage("create: '%s' is one argument too many", p.args[2]);
	else if (!ret && p.nr_args == 2 && parse_size(p.args[1], &len) < 0)
		ret = complain_usage("create: '%s' is no size (bytes, or with k, M, G, T, P, E)", p.args[1]);
	else if (!ret && p.nr_args == 2 && a.options && options_have(a.options, "size"))
		ret = complain_usage("create: the size is given twice: %s, and with -o size=", p.args[1]);
	else if (!ret) {
		add_backing(&a);
		ret = create(p.args[0], len, &a);
	}
	free(a.options);
	return ret;
}

const struct command cmd_create = {
	.name = "create",
	.run = img_create,
	.what = "make a new image",
	.args = "FILE [SIZE]",
	.options = options,
	.notes = "  varve img create -f qcow2 disk.qcow2 20G                         20 GiB, which take space when they are written\n"
		 "  varve img create -f qcow2 -b base.raw -F raw work.qcow2          base.raw stays as it is\n"
		 "  varve img create -f qcow2 -o help                                the options that -o takes\n",
};
