/* SPDX-License-Identifier: MIT */
/*
 * tools/img_bitmap.c - `varve img bitmap`: the grammar is understood; the actions are not part of this version
 *
 * Dirty bitmaps are shown by `img info` and counted by `img measure`, and nothing changes them. An image that is written by a
 * program which does not keep them up to date loses them: so that is refused here, by name, rather than done by half.
 */
#include <string.h>

#include "img.h"

enum { ID_ADD = LONG_COMMAND, ID_REMOVE, ID_CLEAR, ID_ENABLE, ID_DISABLE, ID_MERGE };

static const struct option_row options[] = {
	{ ID_ADD, "add", NULL, "make the bitmap" },
	{ ID_REMOVE, "remove", NULL, "remove it" },
	{ ID_CLEAR, "clear", NULL, "forget what it says" },
	{ ID_ENABLE, "enable", NULL, "note writes from now on" },
	{ ID_DISABLE, "disable", NULL, "note none any more" },
	{ ID_MERGE, "merge", "SOURCE", "add what the bitmap SOURCE says" },
	{ 'g', "granularity", "SIZE", "of the bitmap that --add makes" },
	{ 'b', "source-file", "FILE", "that holds SOURCE, if not FILE" },
	{ 'F', "source-format", "FORMAT", "of that file" },
	OPT_FORMAT,
	OPT_IMAGE_OPTS,
	OPT_OBJECT,
	OPTION_END,
};

struct bitmap {
	struct open_args open;
	const char *action; /* the first */
	bool add, merge;
	uint64_t granularity;
	const char *source_file, *source_format;
};

static void note_action(struct bitmap *b, const char *name)
{
	if (!b->action)
		b->action = name;
}

static int take_option(struct bitmap *b, int id, const char *value)
{
	static const char *const actions[] = { "--add", "--remove", "--clear", "--enable", "--disable", "--merge" };

	if (id >= ID_ADD && id <= ID_MERGE) {
		note_action(b, actions[id - ID_ADD]);
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
	if (!b->action)
		return complain_usage("bitmap: nothing to do: --add, --remove, --clear, --enable, --disable or --merge is needed");
	if (b->granularity && !b->add)
		return complain_usage("bitmap: -g is for --add");
	if (b->source_format && !b->source_file)
		return complain_usage("bitmap: -F needs -b");
	if (b->source_file && !b->merge)
		return complain_usage("bitmap: -b is for --merge");
	return 0;
}

static int img_bitmap(int argc, char **argv)
{
	struct bitmap b = { 0 };
	struct parse p;
	int id, ret = 0;

	parse_start(&p, &cmd_bitmap, argc, argv);
	while (!ret && (id = parse_next(&p)) > 0)
		ret = take_option(&b, id, p.value);
	if (ret || id < 0)
		return ret ? ret : p.status;
	if (check_arguments(&b, &p))
		return 1;
	complain("%s: bitmap '%s': %s is not part of this version (varve %s): it shows dirty bitmaps and changes none", p.args[0],
		 p.args[1], b.action, varve_version());
	return 1;
}

const struct command cmd_bitmap = {
	.name = "bitmap",
	.run = img_bitmap,
	.what = "change dirty bitmaps (understood, and refused by this version)",
	.args = "FILE BITMAP",
	.options = options,
};
