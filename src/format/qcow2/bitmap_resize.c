/* SPDX-License-Identifier: MIT */
/*
 * qcow2/bitmap_resize.c - the disk gets another length, and its persistent dirty bitmaps with it
 *
 * Bits of what both lengths have stay, those of what is added are clear. Clusters of bits stay where they are, but for the one in which
 * the shorter of both bitmaps ends: behind its last bit may stand anything, which would be bits of the longer one.
 *
 * Durable first: the new tables and the directory that leads to them. Only then: the first sector of the header, which has the length
 * of the disk and the place of the directory, so that one never comes without the other. Power lost before that leaves the old length
 * with the old bitmaps, and what is new leaks; check finds it.
 *
 * A disk that gets shorter loses data before the header says so (resize.c). Durable before that: the mark "in use" in every enabled
 * bitmap, which goes with the new directory. Power lost in between leaves the old length, and bitmaps that nobody relies upon. The other
 * way round, a bitmap would say "not changed" of what has become zeroes.
 *
 * A snapshot that is applied may bring another length, and does the same (snapshot_ops.c): its L1 table goes with the same sector.
 *
 * Owns:    what a change of the length has made, until the header leads there.
 * Assumes: fibers of the home queue, under snapshot_mutex: the directory stays.
 * Never:   gives a bitmap another length that cannot be relied upon, or that the next writer could not keep.
 */
#include "format/qcow2/bitmap_resize.h"

#include <stdlib.h>
#include <string.h>

#include "base/iov.h"
#include "base/log.h"
#include "format/qcow2/bitmap_note.h"
#include "format/qcow2/sites.h"

#define TABLES_LEN_MAX MiB(64) /* of all bitmaps, in memory while they change */
#define ALL_ONES 1ull	       /* table entry: a cluster of set bits, without a place */

struct piece {
	struct qcow2_bitmap old; /* its entry in the directory; the name is the directory's */
	struct qcow2_bits *bits; /* as they are on disk */
	struct noted *noted;	 /* who notes writes for it, or NULL */
	uint64_t *entries;	 /* of the new table, zeroes up to the length of the old one */
	uint32_t nr;		 /* entries of the new table */
	uint64_t table_off;	 /* its place; 0: none yet */
};

struct bitmap_resize {
	uint64_t len;
	struct bitmap_dir dir; /* as it will be */
	uint64_t directory_off; /* its place; 0: none yet, or no longer ours */
	struct noted **owners;
	struct piece *pieces; /* dir.nr of them */
	bool done;	      /* the header leads to what was made, or may come to */
};

/* ---- can it be? ---- */

static int refuse(const struct bitmap_resize *r, const struct qcow2_bitmap *b, int ret, const struct varve_error *why, struct varve_error *err)
{
	return varve_error_set(err, ret, "bitmap '%.200s' cannot be kept for a disk of %llu bytes: %s", b->name, (unsigned long long)r->len,
			       why->message);
}

/* Enabled bitmaps are in memory while somebody writes. Those of a disk of the old length have room there. */
static int check_memory(const struct qcow2 *q, const struct bitmap_resize *r, struct varve_error *err)
{
	uint64_t before = 0, after = 0;

	for (uint32_t i = 0; i < r->dir.nr; i++) {
		const struct qcow2_bitmap *b = &r->dir.list[i];

		if (!(b->flags & BITMAP_AUTO))
			continue;
		before += div_up(div_up(q->h.disk_len, 1ull << b->granularity_bits), 8);
		after += div_up(div_up(r->len, 1ull << b->granularity_bits), 8);
		if (after > NOTED_BYTES_MAX && before <= NOTED_BYTES_MAX) {
			struct varve_error why;

			varve_error_set(&why, -EFBIG, "enabled ones would need %llu bytes of memory, at most %llu are taken; disable or remove "
						      "it (img bitmap), or make one with a larger granularity",
					(unsigned long long)after, (unsigned long long)NOTED_BYTES_MAX);
			return refuse(r, b, -EFBIG, &why, err);
		}
	}
	return 0;
}

static int check_piece(struct fiber *f, struct qcow2 *q, struct bitmap_resize *r, uint32_t i, uint64_t *tables_len,
		       struct varve_error *err)
{
	const struct qcow2_bitmap *b = &r->dir.list[i];
	struct piece *p = &r->pieces[i];
	struct varve_error why = { 0, "" };
	int ret;

	p->old = *b;
	p->noted = r->owners[i];
	if ((b->flags & BITMAP_IN_USE) && !p->noted) {
		varve_error_set(&why, -EINVAL, "is inconsistent (somebody wrote and did not note it); remove it first (img bitmap --remove)");
		return refuse(r, b, -EINVAL, &why, err);
	}
	ret = bits_open(f, q, b, &p->bits, &why);
	if (ret == 0)
		ret = bits_check_places(p->bits, b, &why);
	if (ret == 0)
		ret = bits_new_entries(q, r->len, b->granularity_bits, &p->nr, &why);
	*tables_len += ((uint64_t)b->table_entries + p->nr) * 8;
	if (ret == 0 && *tables_len > TABLES_LEN_MAX)
		ret = varve_error_set(&why, -EFBIG, "tables of all bitmaps have more than %llu bytes", (unsigned long long)TABLES_LEN_MAX);
	if (ret < 0 && ret != -ENOMEM && ret != -EIO) /* a second try would not help */
		return varve_error_set(err, ret, "bitmap '%.200s' cannot be kept for a disk of %llu bytes; remove it first (img bitmap --remove): %s",
				       b->name, (unsigned long long)r->len, why.message);
	if (ret < 0)
		return refuse(r, b, ret, &why, err);
	p->entries = calloc(MAX(MAX(p->nr, p->bits->nr), 1), sizeof(p->entries[0]));
	if (!p->entries || (p->noted && bitmap_note_prepare(p->noted, r->len, p->nr) < 0))
		return varve_error_errno(err, -ENOMEM, "bitmap '%.200s' for a disk of %llu bytes", b->name, (unsigned long long)r->len);
	return 0;
}

static int check_header(struct fiber *f, struct qcow2 *q, const struct bitmap_resize *r, struct varve_error *err)
{
	struct qcow2_header *want = malloc(sizeof(*want));
	int ret;

	if (!want)
		return varve_error_errno(err, -ENOMEM, "header");
	fiber_lock(f, &q->l1_mutex);
	bitmap_dir_header(q, &r->dir, q->h.bitmap_directory_off, &r->len, want);
	ret = qcow2_header_fits(f, q, want, err);
	fiber_unlock(&q->l1_mutex);
	free(want);
	return ret;
}

static int check_all(struct fiber *f, struct qcow2 *q, struct bitmap_resize *r, struct varve_error *err)
{
	uint64_t tables_len = 0;
	int ret;

	r->pieces = calloc(r->dir.nr, sizeof(r->pieces[0]));
	r->owners = calloc(r->dir.nr, sizeof(r->owners[0]));
	if (!r->pieces || !r->owners)
		return varve_error_errno(err, -ENOMEM, "bitmaps");
	if (!r->len)
		return varve_error_set(err, -EINVAL, "bitmap '%.200s': a disk of 0 bytes has no bitmaps; remove it first (img bitmap --remove)",
				       r->dir.list[0].name);
	bitmap_note_owners(q, &r->dir, r->owners);
	ret = check_memory(q, r, err);
	for (uint32_t i = 0; ret == 0 && i < r->dir.nr; i++)
		ret = check_piece(f, q, r, i, &tables_len, err);
	return ret < 0 ? ret : check_header(f, q, r, err);
}

/* ---- what is new ---- */

/* The cluster in which the shorter bitmap ends, without anything behind its last bit; in its place if nothing is there. */
static int put_end(struct fiber *f, struct qcow2 *q, struct piece *p, uint64_t bit, uint8_t *buf)
{
	uint64_t per_cluster = 8ull << q->cluster_bits, at = bit % per_cluster / 8, off;
	uint32_t i = (uint32_t)(bit / per_cluster);
	uint8_t kept;
	int ret = p->bits->table[i] ? bits_read_cluster(f, p->bits, i, buf) : 0;

	if (ret < 0 || !p->bits->table[i])
		return ret;
	kept = buf[at] & (uint8_t)((1u << bit % 8) - 1);
	if (p->bits->table[i] != ALL_ONES && kept == buf[at] && buf_is_zero(buf + at + 1, q->cluster_len - at - 1))
		return 0;
	buf[at] = kept;
	memset(buf + at + 1, 0, q->cluster_len - at - 1);
	p->entries[i] = 0;
	if (buf_is_zero(buf, q->cluster_len))
		return 0;
	ret = bits_alloc(f, q, 1, &off);
	if (ret < 0)
		return ret;
	p->entries[i] = off; /* given back by forget_new() */
	return order_put(f, q->order, off, buf, q->cluster_len, ORDER_NONE, NULL);
}

static int put_piece(struct fiber *f, struct qcow2 *q, struct bitmap_resize *r, uint32_t i, uint8_t *buf)
{
	struct piece *p = &r->pieces[i];
	uint64_t bit = MIN(p->bits->bits.nr_bits, div_up(r->len, p->bits->bits.granularity));
	int ret = 0;

	memcpy(p->entries, p->bits->table, MIN(p->nr, p->bits->nr) * sizeof(p->entries[0]));
	if (bit % (8ull << q->cluster_bits))
		ret = put_end(f, q, p, bit, buf);
	if (ret == 0)
		ret = bits_put_table(f, q, p->entries, p->nr, &p->table_off);
	if (ret < 0)
		return ret;
	bitmap_dir_set(&r->dir, i, p->table_off, p->old.flags);
	bitmap_dir_set_entries(&r->dir, i, p->nr);
	return 0;
}

static int put_all(struct fiber *f, struct qcow2 *q, struct bitmap_resize *r, struct varve_error *err)
{
	uint8_t *buf = malloc(q->cluster_len);
	int ret = buf ? 0 : varve_error_errno(err, -ENOMEM, "bitmaps");

	for (uint32_t i = 0; ret == 0 && i < r->dir.nr; i++) {
		ret = put_piece(f, q, r, i, buf);
		if (ret < 0)
			varve_error_errno(err, ret, "bitmap '%.200s': its bits for a disk of %llu bytes cannot be written",
					  r->dir.list[i].name, (unsigned long long)r->len);
	}
	free(buf);
	return ret < 0 ? ret : bitmap_dir_put(f, q, &r->dir, &r->directory_off, err);
}

/* The directory on disk, which has the same entries in the same places, says that nothing is noted any more. */
static int mark_old(struct fiber *f, struct qcow2 *q, const struct bitmap_resize *r, struct varve_error *err)
{
	struct bitmap_dir d;
	bool any = false;
	int ret;

	if (site_off(q, SITE_BITMAP_USE))
		return 0;
	ret = bitmap_dir_load(f, q, &d, err);
	if (ret < 0)
		return ret;
	for (uint32_t i = 0; i < d.nr; i++) {
		if ((d.list[i].flags & (BITMAP_AUTO | BITMAP_IN_USE)) != BITMAP_AUTO)
			continue;
		any = true;
		bitmap_dir_set(&d, i, d.list[i].table_off, d.list[i].flags | BITMAP_IN_USE);
	}
	if (any)
		ret = bitmap_dir_put_flags(f, q, &d, err);
	if (ret < 0) { /* nothing of the disk has gone: if the marks become durable by a later flush, so does this */
		for (uint32_t i = 0; i < d.nr; i++)
			bitmap_dir_set(&d, i, d.list[i].table_off, r->pieces[i].old.flags);
		(void)bitmap_dir_put_flags(f, q, &d, NULL);
	}
	bitmap_dir_free(&d);
	return ret;
}

/* ---- the three steps ---- */

/* Nothing is made yet; *ret_resize NULL: there are no bitmaps. */
static int judge(struct fiber *f, struct qcow2 *q, uint64_t len, struct bitmap_resize **ret_resize, struct varve_error *err)
{
	struct bitmap_resize *r;
	int ret;

	*ret_resize = NULL;
	if (!bitmaps_valid(&q->h))
		return 0;
	r = calloc(1, sizeof(*r));
	if (!r)
		return varve_error_errno(err, -ENOMEM, "bitmaps");
	r->len = len;
	ret = bitmap_dir_load(f, q, &r->dir, err);
	if (ret == 0)
		ret = check_all(f, q, r, err);
	if (ret == 0)
		*ret_resize = r;
	else
		bitmap_resize_end(q, r);
	return ret;
}

int bitmap_resize_fits(struct fiber *f, struct qcow2 *q, uint64_t len, struct varve_error *err)
{
	struct bitmap_resize *r;
	int ret = judge(f, q, len, &r, err);

	bitmap_resize_end(q, r);
	return ret;
}

int bitmap_resize_begin(struct fiber *f, struct qcow2 *q, uint64_t len, struct bitmap_resize **ret_resize, struct varve_error *err)
{
	struct bitmap_resize *r;
	int ret = judge(f, q, len, &r, err);

	*ret_resize = NULL;
	if (ret == 0 && r)
		ret = put_all(f, q, r, err);
	if (ret == 0 && r && len < q->h.disk_len)
		ret = mark_old(f, q, r, err);
	if (ret < 0) {
		bitmap_resize_end(q, r);
		return ret;
	}
	*ret_resize = r;
	return 0;
}

int bitmap_resize_commit(struct fiber *f, struct qcow2 *q, struct bitmap_resize *r, const struct new_l1 *l1, struct varve_error *err)
{
	uint64_t directory_off = r->directory_off;
	int ret;

	r->directory_off = 0;
	ret = bitmap_dir_switch(f, q, &r->dir, directory_off, &r->len, l1, err);
	r->done = ret == 0 || q->h.bitmap_directory_off == directory_off;
	if (!r->done)
		return ret;
	/* On failure, too, if the header is queued: it may yet become durable, with the next flush. Then the old space leaks, at worst. */
	for (uint32_t i = 0; i < r->dir.nr; i++) {
		struct piece *p = &r->pieces[i];

		if (p->noted)
			bitmap_note_resize(p->noted, p->table_off);
		if (ret == 0)
			bits_free_space(q, &p->old, p->bits, p->entries);
	}
	atomic_store_explicit(&q->node->len, r->len, memory_order_release);
	return ret;
}

bool bitmap_resize_done(const struct bitmap_resize *r)
{
	return r->done;
}

/* Nothing leads to the new places. */
static void forget_new(struct qcow2 *q, struct bitmap_resize *r)
{
	order_mark gone = order_all(q->order);

	for (uint32_t i = 0; r->pieces && i < r->dir.nr; i++) {
		const struct piece *p = &r->pieces[i];

		for (uint32_t k = 0; p->entries && k < MIN(p->nr, p->bits->nr); k++) {
			if ((p->entries[k] & QCOW2_OFF_MASK) && p->entries[k] != p->bits->table[k])
				alloc_free_metadata(q, p->entries[k], 1, gone);
		}
		if (p->table_off)
			alloc_free_metadata(q, p->table_off, MAX(div_up(p->nr * 8ull, q->cluster_len), 1), gone);
	}
	if (r->directory_off)
		alloc_free_metadata(q, r->directory_off, div_up(r->dir.len, q->cluster_len), gone);
}

void bitmap_resize_end(struct qcow2 *q, struct bitmap_resize *r)
{
	if (!r)
		return;
	if (!r->done)
		forget_new(q, r);
	for (uint32_t i = 0; r->pieces && i < r->dir.nr; i++) {
		if (r->pieces[i].noted)
			bitmap_note_unprepare(r->pieces[i].noted);
		bits_close(r->pieces[i].bits);
		free(r->pieces[i].entries);
	}
	free(r->pieces);
	free(r->owners);
	bitmap_dir_free(&r->dir);
	free(r);
}
