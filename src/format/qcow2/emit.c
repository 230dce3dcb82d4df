/* SPDX-License-Identifier: MIT */
/*
 * qcow2/emit.c - a qcow2 image written forward only
 *
 *     header | data of one L2 table, that table | ... | L1 | refcount table | the last refcount blocks
 *                 refcount blocks in between, each as soon as all that it counts is written
 *
 * Each table stands behind what it leads to, so it is known when it is written, and one of each is all that is kept. Only
 * the header comes first and must say where L1 and the refcount table will be: that is what the first pass finds out.
 *
 * Compressed bytes are held back until some host clusters are full, and data that does not get smaller goes by them:
 * otherwise each change from one kind to the other would leave the rest of a host cluster unused.
 *
 * Owns:    the tables under construction, the counts not yet written, the compressed bytes held back.
 * Never:   goes back, or keeps more than a few host clusters, whatever the disk's length (L1 and the refcount table are
 *          whole, 40 MiB at most).
 */
#include "format/qcow2/emit.h"

#include <stdlib.h>
#include <string.h>

#include "format/codec.h"

#define HELD_LEN MiB(2)	   /* at least, and room for one cluster more */
#define HELD_CLUSTERS 4u   /* at least */
#define HELD_ITEMS 4096u
#define BLOCKS_AT_ONCE 16u /* by which the memory for counts grows */

/* Where the header says that things are. */
struct places {
	uint64_t l1_off, table_off, table_clusters;
};

/* A compressed cluster that is held back. */
struct item {
	uint32_t l2_index;
	uint32_t len;
	uint64_t pos; /* in what is held */
};

struct emitter {
	/* set when opened */
	struct qcow2_header h;
	unsigned cluster_bits, l2_bits, l2_words;
	uint32_t cluster_len;
	uint64_t per_block, count_max; /* counts in a refcount block; the highest */
	enum codec_level level;
	uint64_t held_cap;

	/* of the first pass */
	bool measured;
	struct places places;

	/* one pass */
	emit_write *write;
	void *write_arg;
	uint64_t next; /* host cluster: all before is written */
	be64 *l1, *l2, *table; /* l2: entries of l2_words words */
	uint64_t l2_nr; /* which one l2 is; UINT64_MAX: none */
	uint64_t table_cap;

	uint8_t *counts; /* of blocks first_block, ...: nr_blocks of them */
	uint64_t first_block, nr_blocks;

	uint8_t *held; /* allocated when something is compressed */
	uint64_t held_len;
	bool bound; /* the first byte held belongs to host cluster `next`, where an item that is written ends */
	uint64_t last_count; /* how many items touch the last, not full, cluster held */
	struct item *items;
	unsigned nr_items;
};

static uint64_t off_of(const struct emitter *e, uint64_t cluster)
{
	return cluster << e->cluster_bits;
}

/* An entry of the table at hand. bitmap: where they have one. */
static void set_entry(struct emitter *e, uint64_t index, uint64_t entry, uint64_t bitmap)
{
	e->l2[index * e->l2_words] = be64_put(entry);
	if (e->l2_words > 1)
		e->l2[index * e->l2_words + 1] = be64_put(bitmap);
}

/* ---- counts ---- */

static int counts_reserve(struct emitter *e, uint64_t cluster)
{
	uint64_t nr = cluster / e->per_block - e->first_block + 1, cap;
	uint8_t *bytes;

	if (nr <= e->nr_blocks)
		return 0;
	cap = align_up(nr, BLOCKS_AT_ONCE);
	bytes = realloc(e->counts, off_of(e, cap));
	if (!bytes)
		return -ENOMEM;
	memset(bytes + off_of(e, e->nr_blocks), 0, off_of(e, cap - e->nr_blocks));
	e->counts = bytes;
	e->nr_blocks = cap;
	return 0;
}

/* One more reference to each of nr clusters. */
static int count(struct emitter *e, uint64_t cluster, uint64_t nr)
{
	int ret = nr ? counts_reserve(e, cluster + nr - 1) : 0;

	for (uint64_t i = 0; ret == 0 && i < nr; i++) {
		uint64_t index = cluster + i - e->first_block * e->per_block;
		uint64_t old = refcount_read(e->counts, e->h.refcount_order, index);

		assert(old < e->count_max);
		refcount_write(e->counts, e->h.refcount_order, index, old + 1);
	}
	return ret;
}

/* Whole clusters, at the end. */
static int put(struct fiber *f, struct emitter *e, const void *buf, uint64_t nr)
{
	if (nr > (QCOW2_HOST_OFF_MAX >> e->cluster_bits) - e->next)
		return -EFBIG;
	e->next += nr;
	return e->write(f, e->write_arg, buf, off_of(e, nr));
}

static int table_reserve(struct emitter *e, uint64_t nr)
{
	uint64_t cap = MAX(align_up(nr * 8, e->cluster_len), 4096);
	be64 *table;

	if (nr <= e->table_cap)
		return 0;
	if (cap > QCOW2_REFCOUNT_TABLE_LEN_MAX)
		return -EFBIG;
	cap = MIN(MAX(cap, 2 * e->table_cap * 8), QCOW2_REFCOUNT_TABLE_LEN_MAX);
	table = realloc(e->table, cap);
	if (!table)
		return -ENOMEM;
	memset((uint8_t *)table + e->table_cap * 8, 0, cap - e->table_cap * 8);
	e->table = table;
	e->table_cap = cap / 8;
	return 0;
}

static int flush_held(struct fiber *f, struct emitter *e, bool all);

/* Blocks whose clusters are all written. */
static int put_full_blocks(struct fiber *f, struct emitter *e)
{
	int ret = 0;

	while (ret == 0 && (e->first_block + 1) * e->per_block <= e->next) {
		if (e->bound) {
			ret = flush_held(f, e, true); /* the place behind is taken; and this is done there */
			continue;
		}
		ret = table_reserve(e, e->first_block + 1);
		if (ret == 0)
			ret = count(e, e->next, 1);
		if (ret < 0)
			break;
		e->table[e->first_block] = be64_put(off_of(e, e->next));
		ret = put(f, e, e->counts, 1);
		e->first_block++;
		e->nr_blocks--;
		memmove(e->counts, e->counts + e->cluster_len, off_of(e, e->nr_blocks));
		memset(e->counts + off_of(e, e->nr_blocks), 0, e->cluster_len);
		e->nr_blocks++;
	}
	return ret;
}

/* ---- compressed bytes ---- */

static int place_item(struct emitter *e, const struct item *item)
{
	unsigned bits = 62 - (e->cluster_bits - 8);
	uint64_t off = off_of(e, e->next) + item->pos, last = off + item->len - 1;
	uint64_t cluster = off >> e->cluster_bits;

	if (last >> bits || last > QCOW2_HOST_OFF_MAX)
		return -EFBIG;
	set_entry(e, item->l2_index, QCOW2_COMPRESSED | (last / 512 - off / 512) << bits | off, 0);
	return count(e, cluster, (last >> e->cluster_bits) - cluster + 1);
}

/* What is held gets its place. All: the rest of the last cluster stays unused; otherwise that cluster remains held. */
static int flush_held(struct fiber *f, struct emitter *e, bool all)
{
	uint64_t nr = all ? div_up(e->held_len, e->cluster_len) : e->held_len >> e->cluster_bits, rest;
	int ret = 0;

	if (!e->held_len)
		return 0;
	for (unsigned i = 0; ret == 0 && i < e->nr_items; i++)
		ret = place_item(e, &e->items[i]);
	e->nr_items = 0;
	if (ret < 0)
		return ret;
	rest = all ? 0 : e->held_len - off_of(e, nr);
	if (all)
		memset(e->held + e->held_len, 0, off_of(e, nr) - e->held_len);
	ret = nr ? put(f, e, e->held, nr) : 0;
	memmove(e->held, e->held + off_of(e, nr), rest);
	e->held_len = rest;
	e->bound = rest;
	if (!rest)
		e->last_count = 0;
	return ret < 0 ? ret : put_full_blocks(f, e);
}

static int hold(struct fiber *f, struct emitter *e, uint32_t l2_index, const void *buf, size_t len)
{
	uint64_t in_cluster = e->held_len & (e->cluster_len - 1), room = e->cluster_len - in_cluster;

	if (in_cluster && e->last_count == e->count_max) { /* its count can go no higher */
		memset(e->held + e->held_len, 0, room);
		e->held_len += room;
		room = e->cluster_len;
		e->last_count = 0;
	}
	e->items[e->nr_items++] = (struct item){ .l2_index = l2_index, .len = (uint32_t)len, .pos = e->held_len };
	memcpy(e->held + e->held_len, buf, len);
	e->held_len += len;
	if (len < room)
		e->last_count++;
	else
		e->last_count = len > room ? 1 : 0;
	return e->held_len >= e->held_cap || e->nr_items == HELD_ITEMS ? flush_held(f, e, false) : 0;
}

static int hold_begin(struct emitter *e)
{
	if (!e->held)
		e->held = malloc(e->held_cap + 2ull * e->cluster_len);
	if (!e->items)
		e->items = malloc(HELD_ITEMS * sizeof(*e->items));
	return e->held && e->items ? 0 : -ENOMEM;
}

/* ---- L2 ---- */

static int l2_finish(struct fiber *f, struct emitter *e)
{
	int ret = flush_held(f, e, true);

	if (e->l2_nr == UINT64_MAX || ret < 0)
		return ret;
	ret = count(e, e->next, 1);
	if (ret < 0)
		return ret;
	e->l1[e->l2_nr] = be64_put(off_of(e, e->next) | QCOW2_COPIED);
	e->l2_nr = UINT64_MAX;
	ret = put(f, e, e->l2, 1);
	return ret < 0 ? ret : put_full_blocks(f, e);
}

/* The table of that guest cluster is the one at hand. */
static int l2_for(struct fiber *f, struct emitter *e, uint64_t guest_cluster)
{
	uint64_t nr = guest_cluster >> e->l2_bits;
	int ret;

	if (e->l2_nr == nr)
		return 0;
	assert(e->l2_nr == UINT64_MAX || nr > e->l2_nr);
	ret = l2_finish(f, e);
	memset(e->l2, 0, e->cluster_len);
	e->l2_nr = nr;
	return ret;
}

static uint64_t l2_index(const struct emitter *e, uint64_t guest_cluster)
{
	return guest_cluster & ((1ull << e->l2_bits) - 1);
}

/* ---- what the disk holds ---- */

static int emit_data(struct fiber *f, struct emitter *e, uint64_t off, const void *buf, uint64_t len)
{
	uint64_t cluster = off >> e->cluster_bits, end = (off + len) >> e->cluster_bits;
	const uint8_t *bytes = buf;
	int ret = 0;

	while (ret == 0 && cluster < end) {
		uint64_t index = l2_index(e, cluster), nr = MIN(end - cluster, (1ull << e->l2_bits) - index);

		ret = l2_for(f, e, cluster);
		if (ret == 0 && e->bound)
			ret = flush_held(f, e, true);
		if (ret == 0)
			ret = count(e, e->next, nr);
		if (ret < 0)
			break;
		for (uint64_t i = 0; i < nr; i++)
			set_entry(e, index + i, off_of(e, e->next + i) | QCOW2_COPIED, UINT32_MAX);
		ret = put(f, e, bytes, nr);
		if (ret == 0)
			ret = put_full_blocks(f, e);
		bytes += off_of(e, nr);
		cluster += nr;
	}
	return ret;
}

static int emit_packed(struct fiber *f, struct emitter *e, uint64_t off, const void *buf, size_t len)
{
	uint64_t cluster = off >> e->cluster_bits;
	int ret = l2_for(f, e, cluster);

	if (ret == 0)
		ret = hold_begin(e);
	return ret < 0 ? ret : hold(f, e, (uint32_t)l2_index(e, cluster), buf, len);
}

static int emit_zero(struct fiber *f, struct emitter *e, uint64_t off, uint64_t len)
{
	uint64_t cluster = off >> e->cluster_bits, end = div_up(off + len, e->cluster_len);
	uint8_t *zeroes = NULL;
	int ret = 0;

	if (e->h.version < 3) { /* cannot say so: they are data */
		zeroes = calloc(1, e->cluster_len);
		if (!zeroes)
			return -ENOMEM;
	}
	for (; ret == 0 && cluster < end; cluster++) {
		if (zeroes) {
			ret = emit_data(f, e, off_of(e, cluster), zeroes, e->cluster_len);
			continue;
		}
		ret = l2_for(f, e, cluster);
		if (ret == 0)
			set_entry(e, l2_index(e, cluster), e->l2_words > 1 ? 0 : QCOW2_ZERO, (uint64_t)UINT32_MAX << 32);
	}
	free(zeroes);
	return ret;
}

/* ---- beginning and end ---- */

static int emit_begin(struct fiber *f, struct emitter *e, emit_write *write, void *arg)
{
	uint8_t *cluster = calloc(1, e->cluster_len);
	struct varve_error err;
	int ret;

	if (!cluster)
		return -ENOMEM;
	e->write = write;
	e->write_arg = arg;
	e->next = e->held_len = e->last_count = e->first_block = 0;
	e->nr_items = 0;
	e->bound = false;
	e->l2_nr = UINT64_MAX;
	memset(e->l1, 0, align_up((uint64_t)e->h.l1_entries * 8, e->cluster_len));
	memset(e->table, 0, e->table_cap * 8);
	memset(e->counts, 0, off_of(e, e->nr_blocks));
	e->h.l1_off = e->places.l1_off;
	e->h.refcount_table_off = e->places.table_off;
	e->h.refcount_table_clusters = (uint32_t)e->places.table_clusters;
	ret = qcow2_header_build(&e->h, cluster, &err); /* tried when it was opened */
	if (ret == 0)
		ret = count(e, 0, 1);
	if (ret == 0)
		ret = put(f, e, cluster, 1);
	free(cluster);
	return ret;
}

/* The refcount table, then the blocks that are not written yet: they count both, and themselves. */
static int put_refcounts(struct fiber *f, struct emitter *e, struct places *at)
{
	uint64_t first = e->first_block, last = 0, clusters = 0, before;
	int ret;

	do { /* last: the number of all blocks */
		before = last;
		clusters = div_up(before * 8, e->cluster_len);
		last = div_up(e->next + clusters + (before - MIN(before, first)), e->per_block);
	} while (last != before);
	at->table_off = off_of(e, e->next);
	at->table_clusters = clusters;
	ret = table_reserve(e, last);
	if (ret == 0)
		ret = count(e, e->next, clusters + last - first);
	if (ret < 0)
		return ret;
	for (uint64_t i = first; i < last; i++)
		e->table[i] = be64_put(off_of(e, e->next + clusters + i - first));
	ret = put(f, e, e->table, clusters);
	return ret < 0 ? ret : put(f, e, e->counts, last - first);
}

static int emit_end(struct fiber *f, struct emitter *e)
{
	uint64_t l1_clusters = div_up((uint64_t)e->h.l1_entries * 8, e->cluster_len);
	struct places at = { 0 };
	int ret = l2_finish(f, e);

	at.l1_off = off_of(e, e->next);
	if (ret == 0)
		ret = count(e, e->next, l1_clusters);
	if (ret == 0)
		ret = put(f, e, e->l1, l1_clusters);
	if (ret == 0)
		ret = put_full_blocks(f, e);
	if (ret == 0)
		ret = put_refcounts(f, e, &at);
	if (ret < 0)
		return ret;
	if (e->measured && (at.l1_off != e->places.l1_off || at.table_off != e->places.table_off ||
			    at.table_clusters != e->places.table_clusters))
		return -ESTALE;
	e->places = at;
	e->measured = true;
	return 0;
}

static void emit_close(struct emitter *e)
{
	if (!e)
		return;
	free(e->l1);
	free(e->l2);
	free(e->table);
	free(e->counts);
	free(e->held);
	free(e->items);
	free(e);
}

/* ---- opening ---- */

static int take_level(struct emitter *e, struct opts *o, struct varve_error *err)
{
	const char *text = opts_get(o, "compress-level");

	e->level = text && !strcmp(text, "ratio") ? CODEC_RATIO : CODEC_FAST;
	if (text && strcmp(text, "ratio") && strcmp(text, "fast"))
		return varve_error_set(err, -EINVAL, "option compress-level=%s: must be fast or ratio", text);
	return 0;
}

static int make_tables(struct emitter *e)
{
	e->l1 = malloc(align_up((uint64_t)e->h.l1_entries * 8, e->cluster_len));
	e->l2 = calloc(1, e->cluster_len);
	if (!e->l1 || !e->l2 || table_reserve(e, 1) < 0 || counts_reserve(e, 0) < 0)
		return -ENOMEM;
	return 0;
}

/* The header is built once to see whether all fits into its cluster. */
static int try_header(struct emitter *e, struct varve_error *err)
{
	uint8_t *cluster = malloc(e->cluster_len);
	int ret = cluster ? qcow2_header_build(&e->h, cluster, err) : varve_error_errno(err, -ENOMEM, "header");

	free(cluster);
	return ret;
}

static int emit_open(uint64_t disk_len, struct opts *o, struct emitter **ret, struct varve_error *err)
{
	struct emitter *e = calloc(1, sizeof(*e));
	int r;

	if (!e)
		return varve_error_errno(err, -ENOMEM, "qcow2");
	r = take_level(e, o, err);
	if (r == 0)
		r = qcow2_emit_header(disk_len, o, &e->h, err);
	e->cluster_bits = e->h.cluster_bits;
	e->cluster_len = 1u << e->cluster_bits;
	e->l2_words = e->h.incompatible & QCOW2_INCOMPAT_EXTENDED_L2 ? 2 : 1;
	e->l2_bits = e->cluster_bits - 3 - (e->l2_words - 1);
	e->per_block = (8ull << e->cluster_bits) >> e->h.refcount_order;
	e->count_max = e->h.refcount_order == 6 ? UINT64_MAX : (1ull << (1u << e->h.refcount_order)) - 1;
	e->held_cap = MAX(HELD_LEN, (uint64_t)HELD_CLUSTERS << e->cluster_bits);
	if (r == 0)
		r = try_header(e, err);
	if (r == 0 && make_tables(e) < 0)
		r = varve_error_errno(err, -ENOMEM, "qcow2");
	if (r < 0) {
		emit_close(e);
		return r;
	}
	*ret = e;
	return 0;
}

static uint32_t emit_unit(const struct emitter *e)
{
	return e->cluster_len;
}

static int emit_pack(const struct emitter *e, const void *in, void *out, size_t *ret_len)
{
	enum codec codec = e->h.compression_type ? CODEC_ZSTD : CODEC_DEFLATE;

	return codec_pack(codec, e->level, in, e->cluster_len, out, e->cluster_len - 1, ret_len);
}

const struct emit_driver qcow2_emit = {
	.measures = true,
	.open = emit_open,
	.close = emit_close,
	.unit = emit_unit,
	.pack = emit_pack,
	.begin = emit_begin,
	.zero = emit_zero,
	.data = emit_data,
	.packed = emit_packed,
	.end = emit_end,
};
