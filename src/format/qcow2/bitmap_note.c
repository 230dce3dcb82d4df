/* SPDX-License-Identifier: MIT */
/*
 * qcow2/bitmap_note.c - enabled dirty bitmaps of an image that is in use: what is written is noted
 *
 *   open    the bits come into memory; every enabled bitmap is marked "in use", durably, before the first write (bitmap_dir.c)
 *   write   bits are set in memory before anything else happens to the request, so before it is acknowledged
 *   close   what has changed gets a new place, a new table and directory lead there, and the mark goes with the same header
 *
 * A process that dies in between, or a power cut, leaves the mark: the bitmap is inconsistent, and whoever wanted to know what was
 * written has to take all of the disk. Bits may be set for writes that failed, never the other way round.
 *
 * Setting a bit takes no lock: a byte is looked at first, and changed with an atomic OR when that is needed. Nothing at all is done
 * where there is no such bitmap (NODE_NOTES). Zeroes are not written into memory that is all zeroes as it comes: pages of it that no bit
 * needs are never there.
 *
 * Owns:    the bits in memory.
 * Assumes: all but bitmap_note_write() on fibers of the home queue. Whoever gives the disk another length has drained it, so that no
 *          queue is in bitmap_note_write() meanwhile, and each takes what it finds there after that by way of a message.
 * Never:   takes a mark away before what was noted is durable, or keeps more than NOTED_BYTES_MAX in memory.
 */
#include "format/qcow2/bitmap_note.h"

#include <stdlib.h>
#include <string.h>

#include "base/iov.h"
#include "base/log.h"

#define NOTED_MAX 1024		 /* bitmaps of one image: each costs every write a look */
#define ALL_ONES 1ull		 /* table entry: a cluster of set bits, without a place */

struct noted {
	/* set at open */
	struct noted *next;
	struct qcow2_bitmap disk; /* its entry in the directory as it was then */
	unsigned bits;		  /* log2 of the granularity */
	uint64_t nr_bits, nr_bytes;

	/* any queue, atomically */
	_Atomic uint8_t *bytes;	  /* bit i is bit i % 8 of byte i / 8 */
	_Atomic bool *changed;	  /* for each entry of the table: a bit of it is set that was not */

	/* home queue only, while the disk gets another length; bytes and changed as above, NULL if those have room */
	uint64_t next_nr_bits;
	uint32_t next_entries;
	_Atomic uint8_t *next_bytes;
	_Atomic bool *next_changed;

	/* home queue only, at the end */
	struct qcow2_bits *old;	  /* on disk */
	uint64_t *entries;	  /* of the new table */
	uint64_t table_off;	  /* its place; 0: the old one holds */
};

static void noted_free(struct noted *b)
{
	if (!b)
		return;
	bits_close(b->old);
	free(b->disk.name);
	bitmap_note_unprepare(b);
	free((void *)b->bytes);
	free((void *)b->changed);
	free(b->entries);
	free(b);
}

void bitmap_note_free(struct qcow2 *q)
{
	struct noted *b;

	q->node->flags &= ~NODE_NOTES;
	while ((b = q->noted)) {
		q->noted = b->next;
		noted_free(b);
	}
}

/* ---- open ---- */

/* Before its table is read: there may be many. */
static int check_room(const struct qcow2 *q, const struct qcow2_bitmap *disk, struct varve_error *err)
{
	uint64_t bytes = div_up(div_up(node_len(q->node), 1ull << (disk->granularity_bits & 31)), 8); /* if more: bits_open() refuses it */
	unsigned nr = 0;

	for (const struct noted *b = q->noted; b; b = b->next, nr++)
		bytes += b->nr_bytes;
	if (nr == NOTED_MAX)
		return varve_error_set(err, -EFBIG, "more than %d bitmaps are enabled", NOTED_MAX);
	if (bytes > NOTED_BYTES_MAX)
		return varve_error_set(err, -EFBIG, "enabled bitmaps need %llu bytes of memory, at most %llu are taken",
				       (unsigned long long)bytes, (unsigned long long)NOTED_BYTES_MAX);
	return 0;
}

static int load(struct fiber *f, struct qcow2 *q, const struct qcow2_bitmap *disk, struct noted *b, struct varve_error *err)
{
	int ret = check_room(q, disk, err);

	if (ret == 0)
		ret = bits_open(f, q, disk, &b->old, err);
	if (ret == 0)
		ret = bits_check_places(b->old, disk, err);
	if (ret < 0)
		return ret;
	b->disk = *disk;
	b->disk.name = strdup(disk->name);
	b->bits = disk->granularity_bits;
	b->nr_bits = b->old->bits.nr_bits;
	b->nr_bytes = b->old->nr_bytes;
	b->bytes = calloc(MAX(b->nr_bytes, 1), 1);
	b->changed = calloc(MAX(b->old->nr, 1), sizeof(b->changed[0]));
	if (!b->disk.name || !b->bytes || !b->changed)
		return varve_error_errno(err, -ENOMEM, "bits");
	for (uint32_t i = 0; ret == 0 && i < b->old->nr; i++) {
		uint64_t at = (uint64_t)i << q->cluster_bits;

		if (b->old->table[i])
			ret = bits_read(f, b->old, at, (uint8_t *)b->bytes + at, MIN(b->nr_bytes - at, q->cluster_len));
	}
	bits_close(b->old);
	b->old = NULL;
	return ret < 0 ? varve_error_errno(err, ret, "its bits cannot be read") : 0;
}

void bitmap_note_begin(struct fiber *f, struct qcow2 *q, const struct qcow2_bitmap *disk)
{
	struct noted *b = calloc(1, sizeof(*b));
	struct varve_error err = { 0, "" };
	int ret = b ? load(f, q, disk, b, &err) : varve_error_errno(&err, -ENOMEM, "bits");

	if (ret < 0) {
		log_warning("%s: bitmap '%.200s' becomes inconsistent, because writes are not noted there: %s", node_name(q->node),
			    disk->name, err.message);
		noted_free(b);
		return;
	}
	b->next = q->noted;
	q->noted = b;
	q->node->flags |= NODE_NOTES;
}

/* ---- write ---- */

/*
 * Relaxed: who stores the bits does so after all queues have been left, and that is by messages. Nothing else is read by way of them.
 */
static void set_bits(struct noted *b, uint64_t byte, uint8_t mask, unsigned cluster_bits)
{
	if (likely((atomic_load_explicit(&b->bytes[byte], memory_order_relaxed) & mask) == mask))
		return;
	atomic_fetch_or_explicit(&b->bytes[byte], mask, memory_order_relaxed);
	atomic_store_explicit(&b->changed[byte >> cluster_bits], true, memory_order_relaxed);
}

void bitmap_note_write(struct node *n, uint64_t off, uint64_t len)
{
	struct qcow2 *q = node_state(n);

	for (struct noted *b = q->noted; b && len; b = b->next) {
		uint64_t first = off >> b->bits, last = (off + len - 1) >> b->bits;

		if (first >= b->nr_bits)
			continue;
		last = MIN(last, b->nr_bits - 1);
		for (uint64_t byte = first / 8; byte <= last / 8; byte++) {
			unsigned from = byte == first / 8 ? first % 8 : 0, to = byte == last / 8 ? last % 8 : 7;

			set_bits(b, byte, (uint8_t)((2u << to) - (1u << from)), q->cluster_bits);
		}
	}
}

/* ---- close ---- */

static bool has_changed(const struct noted *b)
{
	for (uint32_t i = 0; i < b->disk.table_entries; i++) {
		if (atomic_load_explicit(&b->changed[i], memory_order_relaxed))
			return true;
	}
	return false;
}

/* A cluster of bits gets a new place, so that the old directory keeps leading to what it led to. */
static int put_cluster(struct fiber *f, struct qcow2 *q, const struct noted *b, uint32_t i, uint8_t *buf, uint64_t *ret_entry)
{
	uint64_t at = (uint64_t)i << q->cluster_bits, len = MIN(b->nr_bytes - at, q->cluster_len), off;
	int ret;

	memset(buf, 0, q->cluster_len);
	memcpy(buf, (const uint8_t *)b->bytes + at, len);
	if (buf[0] == 0xff && !memcmp(buf, buf + 1, q->cluster_len - 1)) {
		*ret_entry = ALL_ONES;
		return 0;
	}
	ret = bits_alloc(f, q, 1, &off);
	if (ret < 0)
		return ret;
	*ret_entry = off; /* given back by forget_new() */
	return order_put(f, q->order, off, buf, q->cluster_len, ORDER_NONE, NULL);
}

static int put_bitmap(struct fiber *f, struct qcow2 *q, struct noted *b, const struct qcow2_bitmap *disk, struct varve_error *err)
{
	uint8_t *buf = malloc(q->cluster_len);
	int ret = bits_open(f, q, disk, &b->old, err);

	if (ret < 0) {
		free(buf);
		return ret;
	}
	b->entries = calloc(MAX(b->old->nr, 1), sizeof(b->entries[0]));
	if (!buf || !b->entries)
		ret = -ENOMEM;
	for (uint32_t i = 0; ret == 0 && i < b->old->nr; i++) {
		b->entries[i] = b->old->table[i];
		if (atomic_load_explicit(&b->changed[i], memory_order_relaxed))
			ret = put_cluster(f, q, b, i, buf, &b->entries[i]);
	}
	if (ret == 0)
		ret = bits_put_table(f, q, b->entries, b->old->nr, &b->table_off);
	free(buf);
	return ret < 0 ? varve_error_errno(err, ret, "bitmap '%.200s'", b->disk.name) : 0;
}

/* Nothing leads to the new places. */
static void forget_new(struct qcow2 *q, struct noted *b)
{
	for (uint32_t i = 0; b->entries && i < b->old->nr; i++) {
		if ((b->entries[i] & QCOW2_OFF_MASK) && b->entries[i] != b->old->table[i])
			alloc_free_metadata(q, b->entries[i], 1, order_all(q->order));
	}
	if (b->table_off)
		alloc_free_metadata(q, b->table_off, MAX(div_up(b->old->nr * 8ull, q->cluster_len), 1), order_all(q->order));
}

/* The bitmap's entry in the directory, if it is still the one that was opened: another one of that name is none of ours. */
static uint32_t find_entry(const struct bitmap_dir *d, const struct noted *b)
{
	uint32_t i = bitmap_dir_find(d, b->disk.name);

	if (i == UINT32_MAX || d->list[i].table_off != b->disk.table_off || d->list[i].table_entries != b->disk.table_entries ||
	    d->list[i].flags != (b->disk.flags | BITMAP_IN_USE))
		return UINT32_MAX;
	return i;
}

/*
 * Durable first: the bits in their new places, and the table that leads to them, and everything else that is queued. Only then: the
 * header that leads to a directory with that table and without the mark (bitmap_dir_commit()). Power lost in between leaves the old
 * directory with the mark; what is new leaks, and check finds it. Where no bit has been set, only the marks change, each a word.
 */
static int store(struct fiber *f, struct qcow2 *q, struct bitmap_dir *d, struct varve_error *err)
{
	bool moved = false, any = false;
	int ret = 0;

	for (struct noted *b = q->noted; ret == 0 && b; b = b->next) {
		uint32_t i = find_entry(d, b);

		if (i == UINT32_MAX)
			continue;
		any = true;
		if (has_changed(b)) {
			moved = true;
			ret = put_bitmap(f, q, b, &d->list[i], err);
		}
		if (ret == 0)
			bitmap_dir_set(d, i, b->table_off ? b->table_off : b->disk.table_off, b->disk.flags);
	}
	if (ret < 0 || !any)
		return ret;
	return moved ? bitmap_dir_commit(f, q, d, err) : bitmap_dir_put_flags(f, q, d, err);
}

/* ---- another length ---- */

void bitmap_note_owners(const struct qcow2 *q, const struct bitmap_dir *d, struct noted **ret)
{
	for (struct noted *b = q->noted; b; b = b->next) {
		uint32_t i = find_entry(d, b);

		if (i != UINT32_MAX)
			ret[i] = b;
	}
}

int bitmap_note_prepare(struct noted *b, uint64_t disk_len, uint32_t table_entries)
{
	uint64_t nr_bits = div_up(disk_len, 1ull << b->bits);

	b->next_nr_bits = nr_bits;
	b->next_entries = table_entries;
	if (nr_bits <= b->nr_bits)
		return 0;
	b->next_bytes = calloc(MAX(div_up(nr_bits, 8), 1), sizeof(b->next_bytes[0]));
	b->next_changed = calloc(MAX(table_entries, 1), sizeof(b->next_changed[0]));
	if (b->next_bytes && b->next_changed)
		return 0;
	bitmap_note_unprepare(b);
	return -ENOMEM;
}

void bitmap_note_unprepare(struct noted *b)
{
	free((void *)b->next_bytes);
	free((void *)b->next_changed);
	b->next_bytes = NULL;
	b->next_changed = NULL;
}

/* Into memory that is all zeroes. */
static void copy_set(uint8_t *to, const uint8_t *from, uint64_t len)
{
	for (uint64_t at = 0, step; at < len; at += step) {
		step = MIN(len - at, KiB(4));
		if (!buf_is_zero(from + at, step))
			memcpy(to + at, from + at, step);
	}
}

/* Bits behind the last are clear in both arrays, so that a copy brings none into what is added. */
void bitmap_note_resize(struct noted *b, uint64_t table_off)
{
	uint64_t nr_bytes = div_up(b->next_nr_bits, 8);

	if (b->next_bytes) {
		copy_set((uint8_t *)b->next_bytes, (const uint8_t *)b->bytes, b->nr_bytes);
		memcpy((void *)b->next_changed, (void *)b->changed, b->disk.table_entries * sizeof(b->changed[0]));
		free((void *)b->bytes);
		free((void *)b->changed);
		b->bytes = b->next_bytes;
		b->changed = b->next_changed;
		b->next_bytes = NULL;
		b->next_changed = NULL;
	} else {
		memset((uint8_t *)b->bytes + nr_bytes, 0, b->nr_bytes - nr_bytes);
		if (b->next_nr_bits % 8)
			b->bytes[nr_bytes - 1] &= (uint8_t)((1u << b->next_nr_bits % 8) - 1);
	}
	b->nr_bits = b->next_nr_bits;
	b->nr_bytes = nr_bytes;
	b->disk.table_off = table_off;
	b->disk.table_entries = b->next_entries;
}

void bitmap_note_end(struct fiber *f, struct qcow2 *q)
{
	struct varve_error err = { 0, "" };
	uint64_t directory_off = q->h.bitmap_directory_off;
	struct bitmap_dir d;
	int ret;

	if (!q->noted)
		return;
	fiber_lock(f, &q->snapshot_mutex);
	ret = bitmap_dir_load(f, q, &d, &err);
	if (ret == 0)
		ret = store(f, q, &d, &err);
	for (struct noted *b = q->noted; b; b = b->next) {
		if (ret == 0 && b->table_off)
			bits_free_space(q, &b->disk, b->old, b->entries);
		else if (ret < 0 && b->old && q->h.bitmap_directory_off == directory_off)
			forget_new(q, b); /* else a header that leads there is queued, and may yet become durable */
	}
	bitmap_dir_free(&d);
	fiber_unlock(&q->snapshot_mutex);
	if (ret < 0)
		log_warning("%s: what was written could not be stored in its bitmaps, which are inconsistent now: %s", node_name(q->node),
			    err.message);
	bitmap_note_free(q);
}
