/* SPDX-License-Identifier: MIT */
/*
 * tools/img_measure.c - `varve img measure`: how large an image would be
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "img.h"

enum { ID_TARGET = 'O', ID_SIZE = 's' };

static const struct option_row options[] = {
	{ 'f', "source-format", ARG_FORMAT, "of FILE: not guessed then" },
	OPT_IMAGE_OPTS,
	{ 'l', "snapshot", ARG_SNAPSHOT, "of FILE: name, id, or snapshot.name=NAME, snapshot.id=ID" },
	{ ID_TARGET, "target-format", ARG_NEW_FORMAT, "of the new image: raw (default), qcow2" },
	{ 'o', "options", ARG_CREATE, "options that it would be made with; may be repeated" },
	{ ID_SIZE, "size", "SIZE", "of an empty disk, instead of FILE" },
	OPT_FORCE_SHARE,
	OPT_OUTPUT,
	OPT_OBJECT,
	OPTION_END,
};

struct measure {
	struct open_args open;
	const char *target, *snapshot;
	char *options;
	uint64_t size; /* UINT64_MAX: not given */
	enum output output;
};

static void print_json(const struct varve_measure *m)
{
	json_t *o = json_object();

	if (m->has_bitmaps)
		json_object_set_new(o, "bitmaps", json_integer((json_int_t)m->bitmaps));
	json_object_set_new(o, "required", json_integer((json_int_t)m->required));
	json_object_set_new(o, "fully-allocated", json_integer((json_int_t)m->fully_allocated));
	json_dumpf(o, stdout, JSON_INDENT(4));
	putchar('\n');
	json_decref(o);
}

static void print_human(const struct varve_measure *m)
{
	printf("required size: %" PRIu64 "\nfully allocated size: %" PRIu64 "\n", m->required, m->fully_allocated);
	if (m->has_bitmaps)
		printf("bitmaps size: %" PRIu64 "\n", m->bitmaps);
}

static int measure_image(struct varve_image *source, const struct measure *a)
{
	struct varve_measure m;
	struct varve_error err;

	if (varve_measure(a->target, a->options, a->size, source, &m, progress_update, NULL, &err) < 0) {
		complain("measure: %s", err.message);
		return 1;
	}
	if (a->output == OUTPUT_JSON)
		print_json(&m);
	else
		print_human(&m);
	return finish_stdout();
}

static int measure(const char *name, const struct measure *a)
{
	struct varve_image *source;
	int ret;

	if (!name)
		return measure_image(NULL, a);
	source = img_open_snapshot(name, &a->open, a->snapshot, VARVE_OPEN_NO_DATA_FILE, NULL);
	if (!source)
		return 1;
	ret = measure_image(source, a);
	return close_image(source) | ret;
}

static int take_option(struct measure *a, int id, const char *value)
{
	switch (id) {
	case 'l':
		a->snapshot = value;
		return 0;
	case ID_TARGET:
		a->target = value;
		return 0;
	case 'o':
		return options_take("measure", &a->options, value);
	case ID_SIZE:
		if (parse_size(value, &a->size) < 0 || a->size > INT64_MAX)
			return complain_usage("measure: --size '%s' is no size from 0 to %" PRId64, value, INT64_MAX);
		return 0;
	case LONG_OUTPUT:
		return parse_output(value, &a->output);
	default:
		return open_option(&a->open, id, value);
	}
}

static int check_arguments(const struct measure *a, const struct parse *p)
{
	bool size = a->size != UINT64_MAX;

	if (p->nr_args > 1)
		return complain_usage("measure: '%s' is one argument too many", p->args[1]);
	if (size == (p->nr_args == 1))
		return complain_usage("measure: %s", size ? "--size and a file name exclude each other" :
							    "--size or a file name is needed");
	if (size && (a->open.format || a->open.image_opts || a->snapshot || a->open.force_share))
		return complain_usage("measure: -f, --image-opts, -l and -U are about a file, but --size is given");
	return 0;
}

static int img_measure(int argc, char **argv)
{
	struct measure a = { .target = "raw", .size = UINT64_MAX };
	struct parse p;
	int id, ret = 0;

	parse_start(&p, &cmd_measure, argc, argv);
	while (!ret && (id = parse_next(&p)) > 0)
		ret = take_option(&a, id, p.value);
	if (!ret && id < 0)
		ret = p.status;
	else if (!ret && options_ask_help(a.options))
		ret = options_help("measure", a.target, false);
	else if (!ret)
		ret = check_arguments(&a, &p) || measure(p.nr_args ? p.args[0] : NULL, &a);
	free(a.options);
	return ret;
}

const struct command cmd_measure = {
	.name = "measure",
	.run = img_measure,
	.what = "how large a new image would be",
	.args = "[FILE]",
	.options = options,
	.notes = "For the contents of FILE with its backing files, or for an empty disk of SIZE bytes.\n",
};
