/* SPDX-License-Identifier: MIT */
/*
 * qcow2/bitmap_dir.c - the directory of persistent dirty bitmaps, changed
 *
 * Owns:    the bytes of a directory in memory.
 * Assumes: fibers of the home queue; one change at a time (snapshot_mutex).
 * Never:   writes over a directory that the header leads to, but for a flag.
 */
#include "format/qcow2/bitmap_dir.h"

#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "format/qcow2/bitmap_note.h"
#include "format/qcow2/sites.h"

void bitmap_dir_free(struct bitmap_dir *d)
{
	bitmaps_free(d->list, d->nr);
	free(d->bytes);
	*d = (struct bitmap_dir){ 0 };
}

int bitmap_dir_load(struct fiber *f, struct qcow2 *q, struct bitmap_dir *d, struct varve_error *err)
{
	uint64_t len = q->h.bitmap_directory_len;
	int ret;

	*d = (struct bitmap_dir){ 0 };
	if (!bitmaps_valid(&q->h))
		return 0;
	ret = bitmaps_read(f, q->file, &q->h, &d->list, err);
	if (ret < 0)
		return ret;
	d->nr = q->h.nr_bitmaps;
	d->len = d->list[d->nr - 1].at + d->list[d->nr - 1].entry_len; /* with the padding of the last */
	d->bytes = calloc(1, d->len);
	if (!d->bytes)
		ret = varve_error_errno(err, -ENOMEM, "bitmap directory");
	else
		ret = node_read(f, q->file, q->h.bitmap_directory_off, d->bytes, MIN(len, d->len));
	if (ret < 0) {
		bitmap_dir_free(d);
		return varve_error_errno(err, ret, "bitmap directory");
	}
	return 0;
}

uint32_t bitmap_dir_find(const struct bitmap_dir *d, const char *name)
{
	for (uint32_t i = 0; i < d->nr; i++) {
		if (strcmp(d->list[i].name, name) == 0)
			return i;
	}
	return UINT32_MAX;
}

/* ---- in memory ---- */

int bitmap_dir_append(struct bitmap_dir *d, const struct qcow2_bitmap *b)
{
	size_t name_len = strlen(b->name), entry_len = align_up(sizeof(struct bitmap_disk) + name_len, 8);
	struct bitmap_disk disk = { .table_off = be64_put(b->table_off),
				    .table_entries = be32_put(b->table_entries),
				    .flags = be32_put(b->flags),
				    .type = b->type,
				    .granularity_bits = b->granularity_bits,
				    .name_len = be16_put((uint16_t)name_len) };
	struct qcow2_bitmap *list = realloc(d->list, (d->nr + 1ull) * sizeof(*list));
	uint8_t *bytes;

	if (!list)
		return -ENOMEM;
	d->list = list;
	bytes = realloc(d->bytes, d->len + entry_len);
	if (!bytes)
		return -ENOMEM;
	d->bytes = bytes;
	list[d->nr] = *b;
	list[d->nr].at = d->len;
	list[d->nr].entry_len = (uint32_t)entry_len;
	list[d->nr].name = strdup(b->name);
	if (!list[d->nr].name)
		return -ENOMEM;
	memset(bytes + d->len, 0, entry_len);
	memcpy(bytes + d->len, &disk, sizeof(disk));
	memcpy(bytes + d->len + sizeof(disk), b->name, name_len);
	d->len += entry_len;
	d->nr++;
	return 0;
}

void bitmap_dir_remove(struct bitmap_dir *d, uint32_t i)
{
	uint64_t at = d->list[i].at, len = d->list[i].entry_len;

	memmove(d->bytes + at, d->bytes + at + len, d->len - at - len);
	d->len -= len;
	free(d->list[i].name);
	memmove(d->list + i, d->list + i + 1, (d->nr - i - 1) * sizeof(*d->list));
	d->nr--;
	for (; i < d->nr; i++)
		d->list[i].at -= len;
}

void bitmap_dir_set(struct bitmap_dir *d, uint32_t i, uint64_t table_off, uint32_t flags)
{
	struct bitmap_disk disk;

	memcpy(&disk, d->bytes + d->list[i].at, sizeof(disk));
	disk.table_off = be64_put(table_off);
	disk.flags = be32_put(flags);
	memcpy(d->bytes + d->list[i].at, &disk, sizeof(disk));
	d->list[i].table_off = table_off;
	d->list[i].flags = flags;
}

void bitmap_dir_set_entries(struct bitmap_dir *d, uint32_t i, uint32_t table_entries)
{
	be32 disk = be32_put(table_entries);

	memcpy(d->bytes + d->list[i].at + offsetof(struct bitmap_disk, table_entries), &disk, sizeof(disk));
	d->list[i].table_entries = table_entries;
}

/* ---- on disk ---- */

static int put_directory(struct fiber *f, struct qcow2 *q, const struct bitmap_dir *d, uint64_t *ret_off)
{
	uint64_t nr = div_up(d->len, q->cluster_len);
	order_mark mark;
	uint8_t *bytes;
	bool zero;
	int ret;

	if (d->len > QCOW2_BITMAP_DIRECTORY_LEN_MAX || d->nr > QCOW2_BITMAPS_MAX)
		return -EFBIG;
	bytes = calloc(nr, q->cluster_len);
	if (!bytes)
		return -ENOMEM;
	memcpy(bytes, d->bytes, d->len);
	ret = alloc_metadata(f, q, nr, ret_off, &zero, &mark);
	if (ret == 0) {
		ret = order_put(f, q->order, *ret_off, bytes, nr << q->cluster_bits, ORDER_NONE, NULL);
		if (ret < 0) {
			alloc_free_metadata(q, *ret_off, nr, order_all(q->order));
			*ret_off = 0; /* nobody is to free it again */
		}
	}
	free(bytes);
	return ret;
}

int bitmap_dir_put(struct fiber *f, struct qcow2 *q, const struct bitmap_dir *d, uint64_t *ret_off, struct varve_error *err)
{
	int ret = put_directory(f, q, d, ret_off);

	return ret < 0 ? varve_error_errno(err, ret, "cannot write the bitmap directory") : 0;
}

void bitmap_dir_header(const struct qcow2 *q, const struct bitmap_dir *d, uint64_t off, const uint64_t *disk_len,
		       struct qcow2_header *ret)
{
	*ret = q->h;
	ret->nr_bitmaps = d->nr;
	ret->bitmap_directory_off = off;
	ret->bitmap_directory_len = d->len;
	ret->autoclear &= ~QCOW2_AUTOCLEAR_BITMAPS;
	if (d->nr)
		ret->autoclear |= QCOW2_AUTOCLEAR_BITMAPS;
	if (disk_len)
		ret->disk_len = *disk_len;
}

static int switch_header(struct fiber *f, struct qcow2 *q, const struct bitmap_dir *d, uint64_t off, const uint64_t *disk_len,
			 const struct new_l1 *l1, struct varve_error *err)
{
	struct qcow2_header *want = malloc(sizeof(*want));
	int ret;

	if (!want)
		return varve_error_errno(err, -ENOMEM, "header");
	if (!l1)
		fiber_lock(f, &q->l1_mutex);
	bitmap_dir_header(q, d, off, disk_len, want);
	if (l1) {
		want->l1_off = l1->off;
		want->l1_entries = l1->entries;
	}
	ret = qcow2_header_change(f, q, want, err);
	if (!l1)
		fiber_unlock(&q->l1_mutex);
	free(want);
	return ret;
}

/*
 * Durable first: the new directory with all that it leads to, and the counts. Only then: the header (qcow2_header_change()).
 * Power lost in between leaks what is new; the old directory holds. The old one's space is free when the header is durable.
 */
int bitmap_dir_switch(struct fiber *f, struct qcow2 *q, const struct bitmap_dir *d, uint64_t off, const uint64_t *disk_len,
		      const struct new_l1 *l1, struct varve_error *err)
{
	uint64_t old_off = q->h.bitmap_directory_off, old_len = bitmaps_valid(&q->h) ? q->h.bitmap_directory_len : 0;
	int ret = switch_header(f, q, d, off, disk_len, l1, err);

	if (ret < 0) {
		/* A header that is queued may yet become durable, when the next flush succeeds: what it leads to is leaked then, at worst. */
		if (off && q->h.bitmap_directory_off != off)
			alloc_free_metadata(q, off, div_up(d->len, q->cluster_len), order_all(q->order));
		return ret;
	}
	if (old_len && is_aligned(old_off, q->cluster_len))
		alloc_free_metadata(q, old_off, div_up(old_len, q->cluster_len), order_all(q->order));
	return 0;
}

int bitmap_dir_fits(struct fiber *f, struct qcow2 *q, const struct bitmap_dir *d, struct varve_error *err)
{
	struct qcow2_header *want;
	int ret;

	if (q->h.version < 3)
		return varve_error_set(err, -ENOTSUP,
				       "images of version 2 (compat=0.10) have no bitmaps; img amend -o compat=1.1 changes that");
	if (d->len > QCOW2_BITMAP_DIRECTORY_LEN_MAX || d->nr > QCOW2_BITMAPS_MAX)
		return varve_error_set(err, -EFBIG, "the bitmap directory would have %u bitmaps in %llu bytes, at most %d in %llu are allowed; "
						    "remove one first",
				       d->nr, (unsigned long long)d->len, QCOW2_BITMAPS_MAX,
				       (unsigned long long)QCOW2_BITMAP_DIRECTORY_LEN_MAX);
	want = malloc(sizeof(*want));
	if (!want)
		return varve_error_errno(err, -ENOMEM, "header");
	fiber_lock(f, &q->l1_mutex);
	bitmap_dir_header(q, d, q->h.bitmap_directory_off, NULL, want);
	ret = qcow2_header_fits(f, q, want, err);
	fiber_unlock(&q->l1_mutex);
	free(want);
	return ret;
}

int bitmap_dir_commit(struct fiber *f, struct qcow2 *q, const struct bitmap_dir *d, struct varve_error *err)
{
	uint64_t off = 0;
	int ret = bitmap_dir_fits(f, q, d, err);

	if (ret == 0)
		ret = qcow2_begin_changes(f, q, err);
	if (ret == 0 && d->nr)
		ret = bitmap_dir_put(f, q, d, &off, err);
	return ret < 0 ? ret : bitmap_dir_switch(f, q, d, off, NULL, NULL, err);
}

static int put_flags(struct fiber *f, struct qcow2 *q, const struct qcow2_bitmap *b, uint32_t flags, order_mark after, order_mark *ret_mark)
{
	uint64_t at = q->h.bitmap_directory_off + b->at + offsetof(struct bitmap_disk, flags);
	be32 disk = be32_put(flags);

	return order_put(f, q->order, at, &disk, sizeof(disk), after, ret_mark);
}

int bitmap_dir_put_flags(struct fiber *f, struct qcow2 *q, const struct bitmap_dir *d, struct varve_error *err)
{
	order_mark after = order_all(q->order);
	int ret = 0;

	for (uint32_t i = 0; ret == 0 && i < d->nr; i++)
		ret = put_flags(f, q, &d->list[i], d->list[i].flags, after, NULL);
	if (ret == 0)
		ret = order_flush(f, q->order);
	return ret < 0 ? varve_error_errno(err, ret, "cannot write the flags of bitmaps") : 0;
}

/*
 * Durable first: the mark in each bitmap that is to note every write. Only then: a write. The other way round, power lost in
 * between would leave a changed image whose bitmaps say "not changed". The mark goes when the image is closed and what was written
 * has been stored. A disabled bitmap speaks of a time that is over: what it says stays true.
 */
int bitmap_dir_mark_in_use(struct fiber *f, struct qcow2 *q, struct varve_error *err)
{
	struct bitmap_dir d;
	struct varve_error why;
	order_mark mark = ORDER_NONE;
	int ret;

	if (!bitmaps_valid(&q->h))
		return 1;
	if (bitmap_dir_load(f, q, &d, &why) < 0) {
		log_warning("%s: %s: bitmaps are given up", node_name(q->node), why.message);
		return 1;
	}
	ret = 0;
	for (uint32_t i = 0; ret == 0 && i < d.nr; i++) {
		if (!(d.list[i].flags & BITMAP_AUTO) || (d.list[i].flags & BITMAP_IN_USE))
			continue;
		bitmap_note_begin(f, q, &d.list[i]);
		ret = put_flags(f, q, &d.list[i], d.list[i].flags | BITMAP_IN_USE, ORDER_NONE, &mark);
	}
	bitmap_dir_free(&d);
	if (ret == 0 && !site_off(q, SITE_BITMAP_USE))
		ret = order_wait(f, q->order, mark);
	return ret < 0 ? varve_error_errno(err, ret, "cannot mark bitmaps as not up to date") : 0;
}
