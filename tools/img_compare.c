/* SPDX-License-Identifier: MIT */
/*
 * tools/img_compare.c - `varve img compare`
 *
 * Exit status: 0 the same, 1 different, 2 one cannot be opened (or wrong usage), 3 a map cannot be read,
 * 4 data cannot be read.
 */
#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "img.h"

static const struct option_row options[] = {
	{ 'f', "a-format", ARG_FORMAT, "of the first image: not guessed then" },
	{ 'F', "b-format", ARG_FORMAT, "of the second image" },
	{ LONG_IMAGE_OPTS, "image-opts", NULL, "both names are driver=...,file.filename=..." },
	{ 's', "strict", NULL, "sizes and allocation must agree too" },
	OPT_CACHE('T'),
	OPT_FORCE_SHARE,
	OPT_PROGRESS,
	OPT_OBJECT,
	OPT_QUIET,
	OPTION_END,
};

enum { COMPARE_SAME, COMPARE_DIFFER, COMPARE_OPEN, COMPARE_MAP, COMPARE_READ };

#define COMPARE_BUF_LEN ((size_t)2 << 20)
#define SECTOR_LEN 512

struct side {
	const char *name;
	struct varve_image *image;
	uint64_t len;
	struct varve_extent extent; /* the last one looked up */
	uint8_t *buf;
};

struct compare {
	struct side side[2];
	struct open_args open[2];
	bool strict, quiet, progress;
};

static void tell(const struct compare *c, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

static void tell(const struct compare *c, const char *fmt, ...)
{
	va_list ap;

	if (c->quiet)
		return;
	va_start(ap, fmt);
	vprintf(fmt, ap);
	va_end(ap);
}

/* The extent of one side at off. Beyond the end of the shorter image there are zeroes, present nowhere. */
static int side_map(struct side *s, uint64_t off, uint64_t end)
{
	struct varve_error err;

	if (off >= s->len) {
		s->extent = (struct varve_extent){ .start = off, .length = end - off, .zero = true };
		return 0;
	}
	if (off >= s->extent.start && off - s->extent.start < s->extent.length)
		return 0;
	if (varve_image_map(s->image, off, MIN(end, s->len) - off, &s->extent, &err) < 0) {
		complain("%s", err.message);
		return COMPARE_MAP;
	}
	return 0;
}

static uint64_t side_left(const struct side *s, uint64_t off)
{
	return s->extent.start + s->extent.length - off;
}

static int side_read(struct side *s, uint64_t off, size_t len)
{
	struct varve_error err;

	if (s->extent.zero) {
		memset(s->buf, 0, len);
		return 0;
	}
	if (varve_image_read(s->image, off, s->buf, len, &err) < 0) {
		complain("%s", err.message);
		return COMPARE_READ;
	}
	return 0;
}

/* Compares [off, off + len), where both extents reach at least to its end. */
static int compare_piece(struct compare *c, uint64_t off, size_t len)
{
	struct side *a = &c->side[0], *b = &c->side[1];
	size_t at;
	int ret;

	if (a->extent.zero && b->extent.zero)
		return COMPARE_SAME;
	ret = side_read(a, off, len);
	if (!ret)
		ret = side_read(b, off, len);
	if (ret || memcmp(a->buf, b->buf, len) == 0)
		return ret;
	for (at = 0; a->buf[at] == b->buf[at]; at++)
		;
	tell(c, "Content mismatch at offset %" PRIu64 "!\n", (off + at) / SECTOR_LEN * SECTOR_LEN);
	return COMPARE_DIFFER;
}

static bool same_kind(const struct varve_extent *a, const struct varve_extent *b)
{
	return a->present == b->present && a->data == b->data && a->zero == b->zero && a->has_offset == b->has_offset;
}

static int compare_all(struct compare *c)
{
	struct side *a = &c->side[0], *b = &c->side[1];
	uint64_t end = MAX(a->len, b->len), off = 0, len;
	bool told = a->len == b->len;
	int ret = 0;

	while (off < end && ret == 0) {
		if (!told && off >= MIN(a->len, b->len)) { /* what both have is the same */
			tell(c, "Warning: Image size mismatch!\n");
			told = true;
		}
		ret = side_map(a, off, end);
		if (!ret)
			ret = side_map(b, off, end);
		if (ret)
			break;
		if (c->strict && !same_kind(&a->extent, &b->extent)) {
			tell(c, "Strict mode: Offset %" PRIu64 " block status mismatch!\n", off);
			return COMPARE_DIFFER;
		}
		len = MIN(side_left(a, off), side_left(b, off));
		if (!a->extent.zero || !b->extent.zero)
			len = MIN(len, COMPARE_BUF_LEN);
		ret = compare_piece(c, off, len);
		off += len;
		progress_update(NULL, off, end);
	}
	return ret;
}

static int compare_open(struct compare *c)
{
	for (int i = 0; i < 2; i++) {
		struct side *s = &c->side[i];

		s->image = open_image(s->name, &c->open[i], 0, NULL);
		if (!s->image)
			return COMPARE_OPEN;
		s->len = varve_image_length(s->image);
		s->buf = malloc(COMPARE_BUF_LEN);
		if (!s->buf) {
			complain("out of memory");
			return COMPARE_OPEN;
		}
	}
	return 0;
}

static int compare(struct compare *c)
{
	int ret = compare_open(c);
	bool sizes_differ = c->side[0].len != c->side[1].len;

	if (ret == 0 && sizes_differ && c->strict) {
		tell(c, "Strict mode: Image size mismatch!\n");
		ret = COMPARE_DIFFER;
	} else if (ret == 0) {
		progress_start(c->progress);
		ret = compare_all(c);
		if (ret == COMPARE_SAME)
			progress_end();
	}
	if (ret == COMPARE_SAME)
		tell(c, "Images are identical.\n");
	for (int i = 0; i < 2; i++) {
		if (close_image(c->side[i].image) && ret == COMPARE_SAME)
			ret = COMPARE_READ;
		free(c->side[i].buf);
	}
	return finish_stdout() && ret == COMPARE_SAME ? COMPARE_OPEN : ret;
}

/* 0, or 1 after a message. */
static int take_option(struct compare *c, int id, const char *value)
{
	switch (id) {
	case 'q':
		c->quiet = true;
		return 0;
	case 'p':
		c->progress = true;
		return progress_form(value);
	case 'F':
		c->open[1].format = value;
		return 0;
	case 's':
		c->strict = true;
		return 0;
	case 'f':
	case LONG_OBJECT:
		return open_option(&c->open[0], id, value);
	default:
		return open_option(&c->open[0], id, value) || open_option(&c->open[1], id, value);
	}
}

static int img_compare(int argc, char **argv)
{
	struct compare c = { 0 };
	struct parse p;
	int id, ret = 0;

	parse_start(&p, &cmd_compare, argc, argv);
	while (!ret && (id = parse_next(&p)) > 0)
		ret = take_option(&c, id, p.value);
	if (!ret && id == 0 && p.nr_args != 2)
		ret = complain_usage("compare: two file names are needed");
	if (ret || (id < 0 && p.status))
		return COMPARE_OPEN; /* wrong usage must not look like "different" */
	if (id < 0)
		return 0;
	if (c.quiet)
		c.progress = false;
	c.side[0].name = p.args[0];
	c.side[1].name = p.args[1];
	return compare(&c);
}

const struct command cmd_compare = {
	.name = "compare",
	.run = img_compare,
	.what = "say whether two images hold the same data",
	.args = "FILE1 FILE2",
	.options = options,
	.notes = "Exit status: 0 the same, 1 different, 2 not opened, 3 map not readable, 4 data not readable.\n",
};
