/* SPDX-License-Identifier: MIT */
/*
 * api/measure.c - how large a new image will be, for a source or for a length
 *
 * The format says what its tables take and in which units it gives space to data; what the source holds is counted here.
 */
#include "api/api.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

struct measuring {
	struct node *top;
	uint64_t len, unit, used; /* bytes of units that hold data */
	varve_progress_fn progress;
	void *user_data;
	struct varve_error *err;
};

/* Each unit that any data lies in counts once. */
static int count_fiber(struct fiber *f, void *arg)
{
	struct measuring *m = arg;
	uint64_t told = queue_now(fiber_queue(f)), counted = 0, off = 0;

	while (off < m->len) {
		struct extent e;
		unsigned depth;
		bool present;
		int ret;

		fiber_lock(f, &m->top->chain_mutex);
		ret = graph_map(f, m->top, off, m->len - off, &e, &depth, &present);
		fiber_unlock(&m->top->chain_mutex);
		if (ret == 0 && e.kind == EXTENT_ERROR)
			ret = e.error;
		if (ret < 0)
			return varve_error_errno(m->err, ret, "%s: map at offset %llu", node_name(m->top), (unsigned long long)off);
		if (e.kind != EXTENT_ZERO && e.kind != EXTENT_ABSENT) {
			uint64_t first = MAX(align_down(off, m->unit), counted), end = align_up(off + e.len, m->unit);

			m->used += end - first;
			counted = end;
		}
		off += e.len;
		if (m->progress && queue_now(fiber_queue(f)) - told >= 100000000) {
			told = queue_now(fiber_queue(f));
			m->progress(m->user_data, off, m->len);
		}
	}
	return 0;
}

/* Bitmaps of the source, if the target can hold them: their bytes, tables and directory, each in whole clusters. */
static uint64_t bitmaps_len(const json_t *list, uint64_t disk_len, uint64_t cluster_len)
{
	uint64_t directory = 0, sum = 0;
	size_t i;
	json_t *b;

	json_array_foreach(list, i, b) {
		uint64_t granularity = (uint64_t)json_integer_value(json_object_get(b, "granularity"));
		uint64_t bits = granularity ? div_up(disk_len, granularity) : 0;
		uint64_t clusters = div_up(align_up(div_up(bits, 8), 8), cluster_len);

		directory += align_up(24 + strlen(json_string_value(json_object_get(b, "name"))), 8);
		sum += (clusters * cluster_len) + align_up(clusters * 8, cluster_len);
	}
	return sum + align_up(directory, cluster_len);
}

static int count_bitmaps(struct varve_image *source, uint64_t cluster_len, struct varve_measure *ret, struct varve_error *err)
{
	const json_t *data;
	json_t *info;
	char *text;
	int r = varve_image_info(source, &text, err);

	if (r < 0)
		return r;
	info = json_loads(text, 0, NULL);
	free(text);
	data = json_object_get(json_object_get(info, "format-specific"), "data");
	/* Formats and versions without bitmaps have none to copy, which is another thing than having zero of them. */
	ret->has_bitmaps = json_is_string(json_object_get(data, "compat")) &&
			   strcmp(json_string_value(json_object_get(data, "compat")), "0.10") != 0;
	ret->bitmaps = ret->has_bitmaps ? bitmaps_len(json_object_get(data, "bitmaps"), node_len(source->top), cluster_len) : 0;
	json_decref(info);
	return 0;
}

static int count_source(struct varve_image *source, const struct measure *m, uint64_t *used, varve_progress_fn progress,
			void *user_data, struct varve_error *err)
{
	struct measuring c = { .top = source->top,
			       .len = node_len(source->top),
			       .unit = m->unit,
			       .progress = progress,
			       .user_data = user_data,
			       .err = err };
	int ret;

	if (source->top->flags & NODE_NO_IO)
		return varve_error_set(err, -EINVAL, "%s: opened for information only", node_name(source->top));
	ret = api_call(source, count_fiber, &c);
	*used = c.used;
	return ret;
}

static int measure_opts(const char *options, struct opts **ret, struct varve_error *err)
{
	int r;

	*ret = opts_new();
	if (!*ret)
		return varve_error_errno(err, -ENOMEM, "options");
	r = options ? opts_parse(*ret, options, err) : 0;
	return r < 0 ? varve_error_prefix(err, r, "options: ") : 0;
}

int varve_measure(const char *format, const char *options, uint64_t length, struct varve_image *source,
		  struct varve_measure *ret, varve_progress_fn progress, void *user_data, struct varve_error *err)
{
	const struct driver *drv = format ? driver_find(format) : NULL;
	struct varve_measure result = { 0 };
	struct measure m = { 0 };
	uint64_t used = 0, said;
	struct opts *o;
	int r;

	if (!drv || drv->kind != DRIVER_FORMAT)
		return varve_error_set(err, -EINVAL, "unknown format '%s'", format ? format : "");
	if (!drv->measure)
		return varve_error_set(err, -ENOTSUP, "the size of images of format %s cannot be told in advance", format);
	if (source)
		length = node_len(source->top);
	if (length > VARVE_LEN_MAX - MiB(2))
		return varve_error_set(err, -EFBIG, "a disk of %llu bytes is too large (at most 8 EiB)", (unsigned long long)length);
	r = measure_opts(options, &o, err);
	if (r == 0)
		r = driver_find("file")->hint(NULL, o, err); /* they cost nothing */
	if (r == 0)
		r = opts_get_size(o, "size", &said, err); /* that of the disk counts, which the options of a new image may tell too */
	if (r == 0)
		r = drv->measure(length, o, &m, err);
	opts_free(o);
	if (source && m.over_backing)
		m.everything = true; /* the worst is assumed */
	if (r == 0 && source && !m.everything)
		r = count_source(source, &m, &used, progress, user_data, err);
	if (r == 0 && source && m.holds_bitmaps)
		r = count_bitmaps(source, m.unit, &result, err);
	if (r < 0)
		return r;
	result.fully_allocated = m.tables + align_up(length, m.unit);
	result.required = m.everything ? result.fully_allocated : m.tables + used;
	*ret = result;
	return 0;
}
