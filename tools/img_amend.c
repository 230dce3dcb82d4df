/* SPDX-License-Identifier: MIT */
/*
 * tools/img_amend.c - `varve img amend`: options of an image become others
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "img.h"
#include "stop.h"

enum { ID_FORCE = LONG_COMMAND };

static const struct option_row options[] = {
	{ 'o', "options", ARG_CREATE, "what to change; may be repeated" },
	OPT_FORMAT,
	OPT_IMAGE_OPTS,
	OPT_CACHE('t'),
	{ ID_FORCE, "force", NULL, "also what may make an encrypted image unreadable (this version changes no keys)" },
	OPT_PROGRESS,
	OPT_OBJECT,
	OPT_QUIET,
	OPTION_END,
};

struct amend {
	struct open_args open;
	char *options;
	bool progress, quiet;
};

static int amend(const char *name, const struct amend *a)
{
	/* Bitmaps stay true: what the disk had stays what it is. */
	struct varve_image *image = open_image(name, &a->open, VARVE_OPEN_WRITABLE | VARVE_OPEN_BITMAPS, NULL);
	struct varve_error err;
	int ret;

	if (!image)
		return 1;
	progress_start(a->progress);
	stop_image(image);
	ret = varve_image_amend(image, a->options, progress_update, NULL, &err);
	stop_image(NULL);
	if (ret == -ECANCELED && stop_asked())
		complain("amend: ended by %s: %s keeps what was changed until then", stop_asked(), name);
	else if (ret < 0)
		complain("%s", err.message);
	else
		progress_end();
	ret = close_image_after(image, ret < 0);
	if (ret == 0)
		end_stdout();
	return ret;
}

/* The format is the image's. */
static int help_for(const char *name, const struct amend *a)
{
	struct varve_image *image = open_image(name, &a->open, VARVE_OPEN_NO_BACKING | VARVE_OPEN_NO_IO, NULL);
	int ret;

	if (!image)
		return 1;
	ret = options_help("amend", varve_image_format(image), true);
	return close_image(image) | ret;
}

static int take_option(struct amend *a, int id, const char *value)
{
	switch (id) {
	case 'o':
		return options_take("amend", &a->options, value);
	case ID_FORCE:
		return 0; /* nothing that this version can change is dangerous */
	case 'p':
		a->progress = true;
		return progress_form(value);
	case 'q':
		a->quiet = true;
		return 0;
	default:
		return open_option(&a->open, id, value);
	}
}

static int img_amend(int argc, char **argv)
{
	struct amend a = { 0 };
	struct parse p;
	int id, ret = 0;

	parse_start(&p, &cmd_amend, argc, argv);
	while (!ret && (id = parse_next(&p)) > 0)
		ret = take_option(&a, id, p.value);
	if (a.quiet)
		a.progress = false;
	if (!ret && id < 0)
		ret = p.status;
	else if (!ret && !a.options)
		ret = complain_usage("amend: options (-o) are needed");
	else if (!ret && options_ask_help(a.options) && a.open.format && p.nr_args < 2)
		ret = options_help("amend", a.open.format, true);
	else if (!ret && p.nr_args != 1)
		ret = complain_usage("amend: one file name is needed");
	else if (!ret && options_ask_help(a.options))
		ret = help_for(p.args[0], &a);
	else if (!ret) {
		stop_watch();
		ret = amend(p.args[0], &a);
	}
	free(a.options);
	return ret;
}

const struct command cmd_amend = {
	.name = "amend",
	.run = img_amend,
	.what = "change options of an image",
	.args = "FILE",
	.options = options,
	.notes = "Options of qcow2: compat (0.10 or 1.1), lazy_refcounts (on or off), refcount_bits, size.\n",
};
