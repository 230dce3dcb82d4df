/* SPDX-License-Identifier: MIT */
/*
 * tools/img_map.c - `varve img map`
 */
#include <inttypes.h>
#include <string.h>

#include "img.h"

static const struct option_row options[] = {
	OPT_FORMAT,
	OPT_IMAGE_OPTS,
	{ 's', "start-offset", "OFFSET", "begin there" },
	{ 'l', "max-length", "LENGTH", "and look at so much" },
	OPT_FORCE_SHARE,
	OPT_OUTPUT,
	OPT_OBJECT,
	OPTION_END,
};

struct map_args {
	struct open_args open;
	uint64_t start, len; /* len UINT64_MAX: to the end */
	enum output output;
};

static bool same_kind(const struct varve_extent *a, const struct varve_extent *b)
{
	if (a->depth != b->depth || a->present != b->present || a->data != b->data || a->zero != b->zero ||
	    a->compressed != b->compressed || a->has_offset != b->has_offset)
		return false;
	if (!a->has_offset)
		return true;
	return a->offset + a->length == b->offset && strcmp(a->file, b->file) == 0;
}

int img_map_joined(struct varve_image *image, uint64_t off, uint64_t end, struct varve_extent *ret,
		   struct varve_error *err)
{
	struct varve_extent next;
	int r = varve_image_map(image, off, end - off, ret, err);

	while (r == 0 && ret->start + ret->length < end) {
		off = ret->start + ret->length;
		r = varve_image_map(image, off, end - off, &next, err);
		if (r == 0 && !same_kind(ret, &next))
			break;
		if (r == 0)
			ret->length += next.length;
	}
	return r;
}

static const char *yes_no(bool b)
{
	return b ? "true" : "false";
}

static void print_json(const struct varve_extent *e, bool first)
{
	printf("%s{ \"start\": %" PRIu64 ", \"length\": %" PRIu64 ", \"depth\": %u, \"present\": %s, \"zero\": %s, "
	       "\"data\": %s, \"compressed\": %s",
	       first ? "[" : ",\n", e->start, e->length, e->depth, yes_no(e->present), yes_no(e->zero),
	       yes_no(e->data), yes_no(e->compressed));
	if (e->has_offset)
		printf(", \"offset\": %" PRIu64, e->offset);
	printf("}");
}

/* One line for what holds data; what cannot be said in a line is an error, not a wrong line. */
static int print_human(const struct varve_extent *e, const char *name)
{
	if (!e->data || e->zero)
		return 0;
	if (!e->has_offset) {
		complain("%s: offset %" PRIu64 " is compressed or encrypted and has no place to show; use --output=json",
			 name, e->start);
		return 1;
	}
	printf("%#-16" PRIx64 "%#-16" PRIx64 "%#-16" PRIx64, e->start, e->length, e->offset);
	print_text(e->file);
	putchar('\n');
	return 0;
}

static int map_image(struct varve_image *image, const char *name, const struct map_args *a)
{
	uint64_t off = a->start, end = varve_image_length(image);
	struct varve_extent e = { .start = off };
	struct varve_error err;
	bool first = true;

	if (off < end && a->len < end - off)
		end = off + a->len;
	if (a->output == OUTPUT_HUMAN)
		printf("%-16s%-16s%-16s%s\n", "Offset", "Length", "Mapped to", "File");
	for (; off < end; off = e.start + e.length, first = false) {
		if (img_map_joined(image, off, end, &e, &err) < 0) {
			complain("%s", err.message);
			return 1;
		}
		if (a->output == OUTPUT_JSON)
			print_json(&e, first);
		else if (print_human(&e, name))
			return 1;
	}
	if (a->output == OUTPUT_JSON) {
		/* Callers expect one stretch at least, also of nothing and behind the end. */
		if (first)
			print_json(&e, true);
		printf("]\n");
	}
	return 0;
}

static int map(const char *name, const struct map_args *a)
{
	struct varve_image *image = open_image(name, &a->open, 0, NULL);
	int ret;

	if (!image)
		return 1;
	ret = map_image(image, name, a);
	ret |= finish_stdout();
	return close_image(image) | ret;
}

static int img_map(int argc, char **argv)
{
	struct map_args a = { .len = UINT64_MAX };
	struct parse p;
	int id, ret = 0;

	parse_start(&p, &cmd_map, argc, argv);
	while (!ret && (id = parse_next(&p)) > 0) {
		switch (id) {
		case 's':
			if (parse_size(p.value, &a.start) < 0 || a.start > INT64_MAX)
				ret = complain_usage("map: -s '%s' is no offset from 0 to 8E - 1", p.value);
			break;
		case 'l':
			if (parse_size(p.value, &a.len) < 0 || a.len > INT64_MAX)
				ret = complain_usage("map: -l '%s' is no length from 0 to 8E - 1", p.value);
			break;
		case LONG_OUTPUT:
			ret = parse_output(p.value, &a.output);
			break;
		default:
			ret = open_option(&a.open, id, p.value);
		}
	}
	if (ret || id < 0)
		return ret ? ret : p.status;
	if (p.nr_args != 1)
		return complain_usage("map: one file name is needed");
	return map(p.args[0], &a);
}

const struct command cmd_map = {
	.name = "map",
	.run = img_map,
	.what = "where the data of an image lies",
	.args = "FILE",
	.options = options,
	.notes = "The human form shows what lies where in which file; json shows everything.\n",
};
