/* SPDX-License-Identifier: MIT */
/*
 * tools/img_convert_bitmaps.c - `varve img convert --bitmaps`: dirty bitmaps go along
 *
 * They are written after the contents, when nothing of those is left to write: in the target they are as true as in the source.
 *
 * Owns:    the list of the source's bitmaps.
 */
#include "img_convert.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

struct bitmaps {
	struct varve_bitmap_info *list;
	unsigned nr;
};

int convert_bitmaps_check(const struct convert_args *a)
{
	if (a->skip_broken_bitmaps && !a->bitmaps)
		return complain_usage("convert: --skip-broken-bitmaps is about --bitmaps, which is missing");
	if (!a->bitmaps)
		return 0;
	if (a->nr_sources > 1)
		return complain_usage("convert: --bitmaps are those of one source, but there are %u", a->nr_sources);
	if (a->snapshot)
		return complain_usage("convert: --bitmaps are about the disk as it is now, not about a snapshot (-l)");
	if (a->source_is_pipe || (!a->target.image_opts && convert_is_pipe(a->names[a->nr_sources])))
		return complain_usage("convert: --bitmaps do not go through a pipe");
	if (a->target.format && strcmp(a->target.format, "qcow2") != 0)
		return complain_usage("convert: --bitmaps: %s images have no bitmaps, qcow2 images do", a->target.format);
	return 0;
}

/* A new image of version 2 would be found to have no room for them only when all the rest is written. */
static bool is_version_2(const struct convert_args *a)
{
	char *compat = a->options ? options_value(a->options, "compat") : NULL;
	bool ret = compat && (strcmp(compat, "0.10") == 0 || strcmp(compat, "v2") == 0);

	free(compat);
	return ret;
}

/* Are there some, and can they be copied? The list is without those that are skipped. */
int convert_bitmaps_begin(const struct convert_args *a, struct varve_image *source, struct bitmaps **ret)
{
	struct bitmaps *b = calloc(1, sizeof(*b));
	struct varve_error err;
	unsigned kept = 0;

	if (!b) {
		complain("convert: out of memory");
		return 1;
	}
	if (varve_bitmap_list(source, &b->list, &b->nr, &err) < 0) {
		complain("convert: --bitmaps: %s", err.message);
		free(b);
		return 1;
	}
	for (unsigned i = 0; i < b->nr; i++) {
		struct varve_bitmap_info now = b->list[i];

		if (now.inconsistent && !a->skip_broken_bitmaps) {
			complain("convert: %s: bitmap '%s' is inconsistent: --skip-broken-bitmaps leaves it out, bitmap --remove "
				 "removes it", a->names[0], now.name);
			convert_bitmaps_free(b);
			return 1;
		}
		if (now.inconsistent && !a->quiet)
			complain("convert: warning: %s: bitmap '%s' is inconsistent, and left out", a->names[0], now.name);
		/* Those that stay move to the front; all are freed later. */
		b->list[i] = b->list[kept];
		b->list[kept] = now;
		kept += !now.inconsistent;
	}
	if (kept && is_version_2(a)) {
		complain("convert: --bitmaps: images of version 2 (-o compat=0.10) have no bitmaps; those of compat=1.1 do");
		convert_bitmaps_free(b);
		return 1;
	}
	*ret = b;
	return 0;
}

/* ---- a target that exists ---- */

static int check_length(const struct convert_args *a, struct varve_image *source, struct varve_image *target)
{
	uint64_t len = varve_image_length(source), have = varve_image_length(target);

	if (len == have)
		return 0;
	complain("convert: --bitmaps: %s has %" PRIu64 " bytes, %s %" PRIu64 ": a bitmap is about one length", a->names[0], len,
		 a->names[a->nr_sources], have);
	return 1;
}

static int check_format(const char *name, struct varve_image *target)
{
	json_t *info = image_info(target);
	const char *compat = NULL, *format = info ? info_str(info, "format") : NULL;

	(void)json_unpack(info, "{s:{s:{s:s}}}", "format-specific", "data", "compat", &compat);
	if (format && strcmp(format, "qcow2") != 0)
		complain("convert: --bitmaps: %s: %s images have no bitmaps, qcow2 images do", name, format);
	else if (compat && strcmp(compat, "0.10") == 0)
		complain("convert: --bitmaps: %s: images of version 2 (compat=0.10) have no bitmaps; img amend -o compat=1.1 changes that",
			 name);
	else if (info) {
		json_decref(info);
		return 0;
	}
	json_decref(info);
	return 1;
}

static int check_names(const char *name, const struct bitmaps *b, struct varve_image *target)
{
	struct varve_bitmap_info *list = NULL;
	struct varve_error err;
	unsigned nr = 0;
	int ret = 0;

	if (varve_bitmap_list(target, &list, &nr, &err) < 0) {
		complain("convert: --bitmaps: %s", err.message);
		return 1;
	}
	for (unsigned i = 0; i < b->nr && !b->list[i].inconsistent && !ret; i++) {
		for (unsigned j = 0; j < nr && !ret; j++)
			ret = strcmp(b->list[i].name, list[j].name) == 0;
		if (ret)
			complain("convert: --bitmaps: %s: bitmap '%s': the image has it already", name, b->list[i].name);
	}
	varve_bitmap_list_free(list, nr);
	return ret;
}

int convert_bitmaps_fit(const struct convert_args *a, const struct bitmaps *b, struct varve_image *source, struct varve_image *target)
{
	const char *name = a->names[a->nr_sources];

	if (!b->nr || b->list[0].inconsistent)
		return 0;
	return check_format(name, target) || check_length(a, source, target) || check_names(name, b, target);
}

/* ---- doing it ---- */

static int copy_one(struct varve_image *target, struct varve_image *source, const struct varve_bitmap_info *i)
{
	struct varve_error err;
	int ret = varve_bitmap_add(target, i->name, i->granularity, i->enabled ? 0 : VARVE_BITMAP_DISABLED, &err);

	if (ret == 0)
		ret = varve_bitmap_merge(target, i->name, source, i->name, &err);
	if (ret < 0)
		complain("convert: --bitmaps: %s", err.message);
	return ret < 0;
}

int convert_bitmaps(const struct convert_args *a, const struct bitmaps *b, struct varve_image *source, struct varve_queue *queue)
{
	struct varve_image *target;
	int ret = 0;

	if (!b->nr || b->list[0].inconsistent)
		return 0;
	target = open_image(a->names[a->nr_sources], &a->target, VARVE_OPEN_WRITABLE | VARVE_OPEN_BITMAPS | VARVE_OPEN_NO_BACKING,
			    queue);
	if (!target)
		return 1;
	for (unsigned i = 0; !ret && i < b->nr && !b->list[i].inconsistent; i++)
		ret = copy_one(target, source, &b->list[i]);
	return close_image_after(target, ret);
}

void convert_bitmaps_free(struct bitmaps *b)
{
	if (!b)
		return;
	varve_bitmap_list_free(b->list, b->nr);
	free(b);
}
