/* SPDX-License-Identifier: MIT */
/*
 * tools/img_snapshots_keep.c - would snapshots read something else, when what lies below an image changes?
 *
 * A snapshot reads what it does not hold from the backing files of today, as the disk does. The disk can be given what it would
 * lose; a snapshot cannot be written to. So each is looked through: where it holds nothing, the bytes that it reads now are
 * compared with those that it would read.
 *
 * Never:   writes; reads where both lead to the same place.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "img.h"

#define PIECE_LEN ((size_t)1 << 20)

struct look {
	struct varve_image *view;  /* the snapshot, with what is below it now */
	struct varve_image *other; /* what is to be below; NULL: zeroes */
	uint64_t other_len;
	uint8_t *now, *then;
};

bool img_same_place(const struct varve_extent *a, const struct varve_extent *b)
{
	if (a->zero && b->zero)
		return true;
	return a->data && b->data && a->has_offset && b->has_offset && a->offset == b->offset && strcmp(a->file, b->file) == 0;
}

static int map_other(struct look *l, uint64_t off, uint64_t len, struct varve_extent *e, struct varve_error *err)
{
	*e = (struct varve_extent){ .start = off, .length = len, .zero = true };
	if (!l->other || off >= l->other_len)
		return 0;
	return varve_image_map(l->other, off, MIN(len, l->other_len - off), e, err);
}

static int fill(struct varve_image *image, const struct varve_extent *e, uint64_t off, size_t len, uint8_t *buf,
		struct varve_error *err)
{
	if (e->zero || !image)
		memset(buf, 0, len);
	return e->zero || !image ? 0 : varve_image_read(image, off, buf, len, err);
}

/* At off, up to end. 1: something else; *ret_off: how far all was well. */
static int look_at(struct look *l, uint64_t end, uint64_t *off, struct varve_error *err)
{
	struct varve_extent now, then;
	uint64_t len;
	int ret = varve_image_map(l->view, *off, end - *off, &now, err);

	if (ret < 0)
		return ret;
	len = now.length;
	if (!now.present || now.depth > 0) {
		ret = map_other(l, *off, len, &then, err);
		if (ret < 0)
			return ret;
		len = MIN(len, then.length);
		if (!img_same_place(&now, &then)) {
			len = MIN(len, PIECE_LEN);
			ret = fill(l->view, &now, *off, len, l->now, err);
			if (ret >= 0)
				ret = fill(l->other, &then, *off, len, l->then, err);
			if (ret < 0)
				return ret;
			if (memcmp(l->now, l->then, len) != 0)
				return 1;
		}
	}
	*off += len;
	return 0;
}

/* One snapshot. 0, or 1 after a message. */
static int look_through(struct look *l, const json_t *info, const json_t *snapshot, uint64_t limit, const char *advice)
{
	uint64_t off = 0, end = MIN(limit, varve_image_length(l->view));
	struct varve_error err;
	int ret = 0;

	while (ret == 0 && off < end)
		ret = look_at(l, end, &off, &err);
	if (ret < 0)
		complain("%s", err.message);
	else if (ret)
		complain("%s: its snapshot '%s' would read something else at offset %" PRIu64
			 " and behind, which it does not hold itself%s",
			 info_str(info, "filename"), info_str(snapshot, "name"), off, advice);
	return ret != 0;
}

/* "snapshot.id=ID": ids are unique, names need not be. */
static struct varve_image *open_view(const char *name, const struct open_args *args, const json_t *snapshot)
{
	struct open_args with = *args;
	char *key = options_append(NULL, "snapshot.id", info_str(snapshot, "id"), true);
	struct varve_image *view;

	if (!key) {
		complain("out of memory");
		return NULL;
	}
	with.force_share = true;
	view = img_open_snapshot(name, &with, key, 0, NULL);
	free(key);
	return view;
}

int img_snapshots_keep(const json_t *info, const char *name, const struct open_args *args, struct varve_image *other,
		       uint64_t limit, const char *advice)
{
	struct look l = { .other = other, .other_len = other ? varve_image_length(other) : 0 };
	const json_t *list = json_object_get(info, "snapshots");
	json_t *snapshot;
	int ret = 0;
	size_t i;

	if (!json_array_size(list))
		return 0;
	l.now = malloc(PIECE_LEN);
	l.then = malloc(PIECE_LEN);
	if (!l.now || !l.then) {
		complain("out of memory");
		ret = 1;
	}
	json_array_foreach(list, i, snapshot) {
		if (ret)
			break;
		l.view = open_view(name, args, snapshot);
		if (!l.view) {
			ret = 1;
			break;
		}
		ret = look_through(&l, info, snapshot, limit, advice);
		ret = close_image_after(l.view, ret);
	}
	free(l.now);
	free(l.then);
	return ret;
}
