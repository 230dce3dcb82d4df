/* SPDX-License-Identifier: MIT */
/*
 * tools/img_resize.c - `varve img resize`
 */
#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "img.h"
#include "stop.h"

#define PREALLOC_WORDS "off|metadata|falloc|full" /* in the order of enum varve_prealloc */

enum { ID_PREALLOCATION = LONG_COMMAND, ID_SHRINK };

static const struct option_row options[] = {
	OPT_FORMAT,
	OPT_IMAGE_OPTS,
	{ ID_PREALLOCATION, "preallocation", PREALLOC_WORDS, "of the new part: off (default), metadata, falloc, full" },
	{ ID_SHRINK, "shrink", NULL, "a smaller size is meant; what is behind it is lost" },
	OPT_OBJECT,
	OPT_QUIET,
	OPTION_END,
};

struct resize {
	struct open_args open;
	enum varve_prealloc prealloc;
	unsigned flags;
	bool quiet;
};

static int parse_prealloc(const char *text, enum varve_prealloc *ret)
{
	int i = option_word(PREALLOC_WORDS, text);

	if (i >= 0) {
		*ret = (enum varve_prealloc)i;
		return 0;
	}
	return complain_usage("resize: --preallocation '%s' is none of off, metadata, falloc, full", text);
}

/* "10G", or "+1G", "-1G" from what it is now. */
static int new_length(const char *name, const char *text, uint64_t now, uint64_t *ret)
{
	bool more = *text == '+', less = *text == '-';
	uint64_t len;

	/* Spaces before a sign: is that a length, or a difference? A disk may be lost with the wrong answer. */
	if ((isspace((unsigned char)*text) && strpbrk(text, "+-")) || parse_size(text + (more || less), &len) < 0)
		return complain_usage("resize: '%s' is no size (bytes, or with k, M, G, T, P, E; +SIZE and -SIZE change it)", text);
	if (less && len > now) {
		complain("%s: the image has %" PRIu64 " bytes, less than the %" PRIu64 " that it is to lose", name, now, len);
		return 1;
	}
	if (more && len > UINT64_MAX - now) {
		complain("%s: %" PRIu64 " bytes more are too many", name, len);
		return 1;
	}
	*ret = less ? now - len : more ? now + len : len;
	if (!*ret) {
		complain("%s: the image would have no bytes left", name);
		return 1;
	}
	return 0;
}

static int resize_image(struct varve_image *image, const char *name, const char *size, const struct resize *r)
{
	struct varve_error err;
	uint64_t len;
	int ret;

	if (new_length(name, size, varve_image_length(image), &len))
		return 1;
	if (len < varve_image_length(image) && !(r->flags & VARVE_RESIZE_SHRINK)) {
		complain("%s: %" PRIu64 " bytes are less than the image has (%" PRIu64
			 "): what is behind would be lost; --shrink says that this is meant",
			 name, len, varve_image_length(image));
		return 1;
	}
	stop_image(image);
	ret = varve_image_resize(image, len, r->prealloc, r->flags, &err);
	stop_image(NULL);
	if (ret == -ECANCELED && stop_asked())
		complain("resize: ended by %s: %s has the size that it had", stop_asked(), name);
	else if (ret < 0)
		complain("%s", err.message);
	if (ret < 0)
		return 1;
	if (!r->quiet)
		printf("Image resized.\n");
	return 0;
}

static int resize(const char *name, const char *size, const struct resize *r)
{
	struct varve_image *image;
	uint64_t len;
	int ret;

	if (new_length(name, size, UINT64_MAX / 2, &len)) /* before anything is opened */
		return 1;
	image = open_image(name, &r->open, VARVE_OPEN_WRITABLE | VARVE_OPEN_BITMAPS, NULL); /* they get the new length with it */
	if (!image)
		return 1;
	ret = resize_image(image, name, size, r);
	ret = close_image_after(image, ret);
	if (ret == 0)
		end_stdout();
	return ret;
}

static int img_resize(int argc, char **argv)
{
	struct resize r = { 0 };
	struct parse p;
	int id, ret = 0;

	parse_start(&p, &cmd_resize, argc, argv);
	p.numbers = true;
	while (!ret && (id = parse_next(&p)) > 0) {
		switch (id) {
		case ID_PREALLOCATION:
			ret = parse_prealloc(p.value, &r.prealloc);
			break;
		case ID_SHRINK:
			r.flags |= VARVE_RESIZE_SHRINK;
			break;
		case 'q':
			r.quiet = true;
			break;
		default:
			ret = open_option(&r.open, id, p.value);
		}
	}
	if (ret || id < 0)
		return ret ? ret : p.status;
	if (p.nr_args != 2)
		return complain_usage("resize: a file name and a size are needed");
	stop_watch();
	return resize(p.args[0], p.args[1], &r);
}

const struct command cmd_resize = {
	.name = "resize",
	.run = img_resize,
	.what = "change the size of an image",
	.args = "FILE [+|-]SIZE",
	.options = options,
	.notes = "SIZE is in bytes or has a suffix k, M, G, T, P or E; +SIZE makes the image so much longer, -SIZE shorter.\n"
		 "New space reads as zeroes. Partitions and file systems inside are left alone: shrink them first.\n",
};
