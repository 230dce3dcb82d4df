/* SPDX-License-Identifier: MIT */
/*
 * qcow2/layout.c - where everything lies in a new image, and writing it
 *
 * Owns:    the order in which a new image comes into being.
 * Assumes: nobody else uses the file.
 * Never:   needs more memory than one buffer of LAYOUT_CHUNK (or of a cluster), whatever the disk's length.
 */
#include "format/qcow2/layout.h"

#include <stdlib.h>
#include <string.h>

#include "base/iov.h"

#define LAYOUT_CHUNK MiB(1) /* a multiple of every cluster length up to it; longer clusters: one cluster */
#define LAYOUT_HOLE KiB(4)  /* zeroes of this unit need not be written to a file that is known to be empty */
#define HEADER_SECTOR 512u  /* what a disk writes whole or not at all; a cluster is never shorter */
#define PROGRESS_NS 100000000ull

/* ---- planning ---- */

static uint64_t clusters_of(const struct layout *l, uint64_t bytes)
{
	return div_up(bytes, 1ull << l->cluster_bits);
}

/* The refcount structures count themselves: grow them until they cover what there is. */
static void plan_refcounts(struct layout *l)
{
	uint64_t others = 1 + l->l1 + l->l2 + l->data;
	uint64_t per_block = (8ull << l->cluster_bits) >> l->refcount_order;
	uint64_t before;

	l->table = l->blocks = 0;
	do {
		before = l->nr;
		l->nr = others + l->table + l->blocks;
		l->blocks = div_up(l->nr, per_block);
		l->table = clusters_of(l, l->blocks * 8);
		l->nr = others + l->table + l->blocks;
	} while (l->nr != before);
}

int layout_plan(struct layout *ret, enum prealloc prealloc, struct varve_error *err)
{
	struct layout l = *ret;
	unsigned cluster_bits = l.cluster_bits, refcount_order = l.refcount_order;
	uint64_t l2_entries = (1ull << cluster_bits) / (8 * l.entry_words), disk_len = l.disk_len;
	uint64_t data = clusters_of(&l, disk_len);
	char text[32];

	if (disk_len > VARVE_LEN_MAX)
		return varve_error_set(err, -EFBIG, "a disk of %llu bytes is longer than any file can be",
				       (unsigned long long)disk_len);
	/*
	 * An empty disk gets an entry too: tables without a place are an odd thing to meet for every
	 * reader.
	 */
	l.l1_entries = MAX(div_up(data, l2_entries), 1);
	if (l.l1_entries > QCOW2_L1_LEN_MAX / 8)
		return varve_error_set(
			err, -EFBIG,
			"a disk of %s is too large for clusters of %llu bytes; choose a larger cluster_size",
			size_format(text, disk_len), 1ull << cluster_bits);
	l.l1 = clusters_of(&l, l.l1_entries * 8);
	if (prealloc != PREALLOC_OFF) {
		l.l2 = div_up(data, l2_entries);
		l.mapped = data;
		l.data = l.external ? 0 : data;
	}
	plan_refcounts(&l);
	if (l.table << cluster_bits > QCOW2_REFCOUNT_TABLE_LEN_MAX)
		return varve_error_set(
			err, -EFBIG,
			"preallocating %s needs too many refcounts of %u bits in clusters of %llu bytes; "
			"choose a larger cluster_size",
			size_format(text, disk_len), 1u << refcount_order, 1ull << cluster_bits);
	if (l.nr > QCOW2_HOST_OFF_MAX >> cluster_bits)
		return varve_error_set(err, -EFBIG,
				       "preallocating %s needs a file longer than qcow2 can address",
				       size_format(text, disk_len));
	*ret = l;
	return 0;
}

static uint64_t off_of(const struct layout *l, uint64_t cluster)
{
	return cluster << l->cluster_bits;
}

uint64_t layout_table_off(const struct layout *l)
{
	return off_of(l, 1);
}

static uint64_t blocks_off(const struct layout *l)
{
	return off_of(l, 1 + l->table);
}

uint64_t layout_l1_off(const struct layout *l)
{
	return off_of(l, 1 + l->table + l->blocks);
}

static uint64_t l2_off(const struct layout *l)
{
	return off_of(l, 1 + l->table + l->blocks + l->l1);
}

static uint64_t data_off(const struct layout *l)
{
	return off_of(l, 1 + l->table + l->blocks + l->l1 + l->l2);
}

/* ---- writing ---- */

struct maker {
	struct node *file;
	const struct layout *l;
	bool empty; /* the file reads as zeroes wherever we have not written */
	uint8_t *chunk;
	size_t chunk_len;
	varve_progress_fn progress;
	void *user_data;
	uint64_t done, total; /* bytes */
	uint64_t told_ns;
	struct varve_error *err;
};

static void advance(struct fiber *f, struct maker *m, uint64_t len)
{
	uint64_t now = queue_now(fiber_queue(f));

	m->done += len;
	if (m->progress && now - m->told_ns >= PROGRESS_NS) {
		m->told_ns = now;
		m->progress(m->user_data, m->done, m->total);
	}
}

static int write_failed(struct maker *m, int err, const char *what)
{
	return varve_error_errno(m->err, err, "cannot write the %s of the new image", what);
}

/* Writes buf at off; in an empty file only what is not zero. */
static int put_bytes(struct fiber *f, struct maker *m, uint64_t off, const uint8_t *buf, size_t len)
{
	size_t pos = 0;

	if (!m->empty)
		return node_write(f, m->file, off, buf, len);
	while (pos < len) {
		size_t end = pos;
		int err;

		while (end < len && !buf_is_zero(buf + end, MIN(LAYOUT_HOLE, len - end)))
			end += MIN(LAYOUT_HOLE, len - end);
		if (end > pos) {
			err = node_write(f, m->file, off + pos, buf + pos, end - pos);
			if (err < 0)
				return err;
		}
		pos = end + MIN(LAYOUT_HOLE, len - end);
	}
	return 0;
}

/*
 * A table of 64-bit entries, or of entries with a second word: entry i < nr is first_off + i clusters, with flags; the rest of
 * the clusters is 0.
 */
struct table {
	const char *what;
	uint64_t off, clusters;
	uint64_t nr, first_off, flags;
	unsigned words;	 /* of an entry */
	uint64_t bitmap; /* the second */
};

static int write_table(struct fiber *f, struct maker *m, const struct table *t)
{
	uint64_t len = off_of(m->l, t->clusters), i = 0;

	for (uint64_t pos = 0; pos < len; pos += m->chunk_len) {
		size_t part = (size_t)MIN(len - pos, m->chunk_len);
		be64 *entries = (be64 *)m->chunk;
		int err;

		for (size_t k = 0; k < part / 8; k += t->words, i++) {
			entries[k] = be64_put(i < t->nr ? (t->first_off + off_of(m->l, i)) | t->flags : 0);
			if (t->words > 1)
				entries[k + 1] = be64_put(i < t->nr ? t->bitmap : 0);
		}
		err = put_bytes(f, m, t->off + pos, m->chunk, part);
		if (err < 0)
			return write_failed(m, err, t->what);
		advance(f, m, part);
	}
	return 0;
}

/* Every cluster of the file is used once. All chunks but the last are alike. */
static int write_refcounts(struct fiber *f, struct maker *m)
{
	const struct layout *l = m->l;
	uint64_t len = off_of(l, l->blocks);
	uint64_t per_chunk = ((uint64_t)m->chunk_len * 8) >> l->refcount_order;
	uint64_t left = l->nr, filled = 0;

	memset(m->chunk, 0, m->chunk_len);
	for (uint64_t pos = 0; pos < len; pos += m->chunk_len) {
		size_t part = (size_t)MIN(len - pos, m->chunk_len);
		uint64_t nr = MIN(left, per_chunk);
		int err;

		for (; filled < nr; filled++)
			refcount_write(m->chunk, l->refcount_order, filled, 1);
		for (; filled > nr; filled--)
			refcount_write(m->chunk, l->refcount_order, filled - 1, 0);
		left -= nr;
		err = put_bytes(f, m, blocks_off(l) + pos, m->chunk, part);
		if (err < 0)
			return write_failed(m, err, "refcount blocks");
		advance(f, m, part);
	}
	return 0;
}

static int write_tables(struct fiber *f, struct maker *m)
{
	const struct layout *l = m->l;
	const struct table tables[] = {
		{ "refcount table", layout_table_off(l), l->table, l->blocks, blocks_off(l), 0, 1, 0 },
		{ "L1 table", layout_l1_off(l), l->l1, l->l2, l2_off(l), QCOW2_COPIED, 1, 0 },
		{ "L2 tables", l2_off(l), l->l2, l->mapped, l->external ? 0 : data_off(l), QCOW2_COPIED, l->entry_words,
		  l->over_backing ? 0 : UINT32_MAX },
	};
	int err = write_refcounts(f, m);

	for (unsigned i = 0; err == 0 && i < ARRAY_LEN(tables); i++)
		err = write_table(f, m, &tables[i]);
	return err;
}

/*
 * Preallocated clusters are mapped: the guest sees what the file holds there, which must be zeroes. A file
 * that was empty has them; "full" writes them all the same, so that the space is really there.
 */
static int write_data(struct fiber *f, struct maker *m, bool full)
{
	uint64_t off = data_off(m->l), len = off_of(m->l, m->l->data);
	int err = 0;

	if (m->empty && !full)
		return 0;
	memset(m->chunk, 0, m->chunk_len);
	for (uint64_t pos = 0; pos < len && err == 0; pos += m->chunk_len) {
		size_t part = (size_t)MIN(len - pos, m->chunk_len);

		if (full)
			err = node_write(f, m->file, off + pos, m->chunk, part);
		else
			err = node_zero(f, m->file, off + pos, part, 0);
		advance(f, m, part);
	}
	return err < 0 ? write_failed(m, err, "data area") : 0;
}

/* The file gets its length and nothing that looks like an image. */
static int prepare_file(struct fiber *f, struct maker *m, bool allocate)
{
	uint64_t end = off_of(m->l, m->l->nr);
	int64_t file_len = node_file_len(f, m->file);
	int err;

	if (file_len < 0)
		return varve_error_errno(m->err, (int)file_len, "cannot find its length");
	m->empty = file_len == 0;
	if ((uint64_t)file_len < end) {
		err = node_truncate(f, m->file, end, allocate ? PREALLOC_FALLOC : PREALLOC_OFF, m->err);
		if (err < 0)
			return err;
	}
	err = node_allocate(f, m->file, 0, data_off(m->l));
	if (err < 0)
		return varve_error_errno(m->err, err, "no space for the tables of the new image");
	if (m->empty)
		return 0;
	/*
	 * A device, perhaps with an old image on it: its header goes first, and only the sector with the
	 * header, for what follows may be tables of the old image. Power lost after this leaves a device
	 * without any header; the other way round, the old header would stand above half of the new tables.
	 */
	memset(m->chunk, 0, HEADER_SECTOR);
	err = node_write(f, m->file, 0, m->chunk, HEADER_SECTOR);
	if (err == 0)
		err = node_flush(f, m->file);
	return err < 0 ? write_failed(m, err, "header") : 0;
}

/*
 * Durable first: all tables and the rest of the header's cluster (extensions, the backing file's name). Only
 * then: the sector with the header itself. Power lost in between leaves a file that no driver takes for a
 * qcow2 image; a header over tables that are not there would be one with random mappings.
 */
static int write_header(struct fiber *f, struct maker *m, const uint8_t *header)
{
	size_t cluster_len = (size_t)off_of(m->l, 1);
	int err = 0;

	if (cluster_len > HEADER_SECTOR)
		err = put_bytes(f, m, HEADER_SECTOR, header + HEADER_SECTOR, cluster_len - HEADER_SECTOR);
	if (err == 0)
		err = node_flush(f, m->file);
	if (err == 0)
		err = node_write(f, m->file, 0, header, HEADER_SECTOR);
	if (err == 0)
		err = node_flush(f, m->file);
	return err < 0 ? write_failed(m, err, "header") : 0;
}

int layout_write(struct fiber *f, struct node *file, const struct layout *l, enum prealloc prealloc,
		 const uint8_t *header, varve_progress_fn progress, void *user_data, struct varve_error *err)
{
	struct maker m = {
		.file = file,
		.l = l,
		.chunk_len = (size_t)MAX(off_of(l, 1), LAYOUT_CHUNK),
		.progress = progress,
		.user_data = user_data,
		.told_ns = queue_now(fiber_queue(f)),
		.err = err,
	};
	int ret;

	m.chunk = aligned_alloc(4096, m.chunk_len);
	if (!m.chunk)
		return varve_error_set(err, -ENOMEM, "out of memory");
	ret = prepare_file(f, &m, prealloc == PREALLOC_FALLOC);
	m.total = off_of(l, l->table + l->blocks + l->l1 + l->l2);
	if (prealloc == PREALLOC_FULL || !m.empty)
		m.total += off_of(l, l->data);
	if (ret == 0)
		ret = write_tables(f, &m);
	if (ret == 0)
		ret = write_data(f, &m, prealloc == PREALLOC_FULL);
	if (ret == 0)
		ret = write_header(f, &m, header);
	if (ret == 0 && progress)
		progress(user_data, m.total, m.total);
	free(m.chunk);
	return ret;
}
