/* SPDX-License-Identifier: MIT */
/*
 * tools/img_bitmap.c - `varve img bitmap`: persistent dirty bitmaps made, removed, changed, in the order of the options
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "img.h"

enum { ID_ADD = LONG_COMMAND, ID_REMOVE, ID_CLEAR, ID_ENABLE, ID_DISABLE, ID_MERGE };

static const struct option_row options[] = {
	{ ID_ADD, "add", NULL, "make the bitmap" },
	{ ID_REMOVE, "remove", NULL, "remove it" },
	{ ID_CLEAR, "clear", NULL, "forget what it says" },
	{ ID_ENABLE, "enable", NULL, "note writes from now on" },
	{ ID_DISABLE, "disable", NULL, "note none any more" },
	{ ID_MERGE, "merge", ARG_BITMAP, "add what that bitmap says" },
	{ 'g', "granularity", "SIZE", "of the bitmap that --add makes (a cluster, 4k to 64k)" },
	{ 'b', "source-file", ARG_FILE, "that holds it, if not FILE" },
	{ 'F', "source-format", ARG_FORMAT, "of that file" },
	OPT_FORMAT,
	OPT_IMAGE_OPTS,
	OPT_OBJECT,
	OPTION_END,
};

#define ACTIONS_MAX 64

struct action {
	int id;
	const char *source; /* --merge */
};

struct bitmap {
	struct open_args open;
	struct action actions[ACTIONS_MAX];
	unsigned nr;
	bool add, merge;
	uint64_t granularity;
	const char *file, *source_file, *source_format;

	struct varve_queue *queue;
	struct varve_image *image, *source;
};

static int take_option(struct bitmap *b, int id, const char *value)
{
	if (id >= ID_ADD && id <= ID_MERGE) {
		if (b->nr == ACTIONS_MAX)
			return complain_usage("bitmap: more than %d actions at once", ACTIONS_MAX);
		b->actions[b->nr++] = (struct action){ .id = id, .source = value };
		b->add |= id == ID_ADD;
		b->merge |= id == ID_MERGE;
		return 0;
	}
	switch (id) {
	case 'g':
		if (parse_size(value, &b->granularity) < 0 || b->granularity < 512 || (b->granularity & (b->granularity - 1)) ||
		    b->granularity > (uint64_t)2 << 30)
			return complain_usage("bitmap: -g '%s' is no power of two from 512 to 2G", value);
		return 0;
	case 'b':
		b->source_file = value;
		return 0;
	case 'F':
		b->source_format = value;
		return 0;
	default:
		return open_option(&b->open, id, value);
	}
}

static int check_arguments(const struct bitmap *b, const struct parse *p)
{
	if (p->nr_args != 2)
		return complain_usage("bitmap: a file name and the name of a bitmap are needed");
	if (!b->nr)
		return complain_usage("bitmap: nothing to do: --add, --remove, --clear, --enable, --disable or --merge is needed");
	if (b->granularity && !b->add)
		return complain_usage("bitmap: -g is for --add");
	if (b->source_format && !b->source_file)
		return complain_usage("bitmap: -F needs -b");
	if (b->source_file && !b->merge)
		return complain_usage("bitmap: -b is for --merge");
	return 0;
}

/* ---- doing it ---- */

static int act(struct bitmap *b, const struct action *a, const char *name)
{
	struct varve_error err;
	int ret;

	switch (a->id) {
	case ID_ADD:
		ret = varve_bitmap_add(b->image, name, b->granularity, 0, &err);
		break;
	case ID_REMOVE:
		ret = varve_bitmap_remove(b->image, name, &err);
		break;
	case ID_CLEAR:
		ret = varve_bitmap_clear(b->image, name, &err);
		break;
	case ID_MERGE:
		ret = varve_bitmap_merge(b->image, name, b->source ? b->source : b->image, a->source, &err);
		break;
	default:
		ret = varve_bitmap_enable(b->image, name, a->id == ID_ENABLE, &err);
	}
	if (ret < 0)
		complain("bitmap: %s", err.message);
	return ret < 0;
}

/* Does the image have what is to be merged? Asked before --add or --clear, whose work would be left behind. */
static int check_source(struct bitmap *b, const char *wanted, const char *name)
{
	struct varve_image *image = b->source ? b->source : b->image;
	struct varve_bitmap_info *list = NULL;
	struct varve_error err;
	unsigned nr = 0, i = 0;

	if (!b->source && strcmp(wanted, name) == 0)
		return 0; /* an action before may make it */
	if (varve_bitmap_list(image, &list, &nr, &err) < 0) {
		complain("bitmap: %s", err.message);
		return 1;
	}
	while (i < nr && strcmp(list[i].name, wanted) != 0)
		i++;
	varve_bitmap_list_free(list, nr);
	if (i == nr)
		complain("bitmap: %s: bitmap '%s': the image has none of that name", b->source ? b->source_file : b->file, wanted);
	return i == nr;
}

static int check_sources(struct bitmap *b, const char *name)
{
	uint64_t len = varve_image_length(b->image), have = b->source ? varve_image_length(b->source) : len;
	int ret = 0;

	for (unsigned i = 0; !ret && i < b->nr; i++) {
		if (b->actions[i].id == ID_MERGE)
			ret = check_source(b, b->actions[i].source, name);
	}
	if (!ret && have != len) {
		complain("bitmap: %s: bitmap '%s' is of a disk of %" PRIu64 " bytes, those of %s of one of %" PRIu64, b->file, name, len,
			 b->source_file, have);
		return 1;
	}
	return ret;
}

static int run(struct bitmap *b, const char *file, const char *name)
{
	struct open_args source = { .format = b->source_format };
	int ret = 0;

	b->file = file;
	if (b->source_file) {
		b->source = open_image(b->source_file, &source, 0, b->queue);
		ret = !b->source;
	}
	if (!ret) {
		b->image = open_image(file, &b->open, VARVE_OPEN_WRITABLE | VARVE_OPEN_BITMAPS | VARVE_OPEN_NO_BACKING, b->queue);
		ret = !b->image;
	}
	if (!ret)
		ret = check_sources(b, name);
	for (unsigned i = 0; !ret && i < b->nr; i++)
		ret = act(b, &b->actions[i], name);
	if (b->image)
		ret = close_image_after(b->image, ret);
	if (b->source)
		ret = close_image_after(b->source, ret);
	return ret;
}

static int img_bitmap(int argc, char **argv)
{
	struct bitmap b = { 0 };
	struct varve_error err;
	struct parse p;
	int id, ret = 0;

	parse_start(&p, &cmd_bitmap, argc, argv);
	while (!ret && (id = parse_next(&p)) > 0)
		ret = take_option(&b, id, p.value);
	if (ret || id < 0)
		return ret ? ret : p.status;
	if (check_arguments(&b, &p))
		return 1;
	if (varve_queue_new(&b.queue, NULL, &err) < 0) {
		complain("bitmap: %s", err.message);
		return 1;
	}
	ret = run(&b, p.args[0], p.args[1]);
	varve_queue_free(b.queue);
	return ret;
}

const struct command cmd_bitmap = {
	.name = "bitmap",
	.run = img_bitmap,
	.what = "make, remove and change dirty bitmaps of an image that is not in use",
	.args = "FILE BITMAP",
	.options = options,
	.notes = "Several actions are done in their order. Each is complete or not made at all.\n",
};
