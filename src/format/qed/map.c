/* SPDX-License-Identifier: MIT */
/*
 * qed/map.c - from guest offsets to extents
 *
 * Owns:    the meaning of table entries.
 * Assumes: map() runs on any queue that is attached, load() on the home queue. Entries are read and written one by one,
 *          atomically, in disk byte order.
 * Never:   answers with a place beyond the end of the file: a read past the end that returns zeroes would hide that
 *          the file was cut.
 */
#include "block/event.h"
#include "format/qed/qed.h"

#include <string.h>

/* Entries looked at for one answer. Enough for any request; a bound for those who ask for the whole disk. */
#define MAP_CELLS_MAX (1u << 16)

#define ENTRY_DAMAGED 2ull /* in memory only: what the disk says would lead into metadata, or nowhere */

/* The smallest stretch for which one answer holds: a cluster, or all of a table that does not exist. */
struct cell {
	enum extent_kind kind;
	uint64_t host_off; /* DATA: of its first byte asked for */
	uint64_t len;	   /* to its end */
};

bool qed_place_ok(const struct qed *q, uint64_t host_off, uint64_t len, uint64_t file_len)
{
	uint64_t end;

	return is_aligned(host_off, q->cluster_len) && host_off >= q->header_end && !u64_add(host_off, len, &end) &&
	       end <= file_len && (end <= q->h.l1_off || host_off >= q->h.l1_off + q->table_len);
}

/* docs/spec/qed.md, "Entries of L2 tables". */
static struct cell decode(const struct qed *q, uint64_t entry, uint64_t in_cluster)
{
	struct cell c = { .kind = EXTENT_ERROR, .len = q->cluster_len - in_cluster };

	if (entry == QED_ABSENT)
		c.kind = EXTENT_ABSENT;
	else if (entry == QED_ZERO)
		c.kind = EXTENT_ZERO;
	else if (likely(qed_place_ok(q, entry, q->cluster_len, align_up(node_len(q->leaf), q->cluster_len)) &&
			entry + in_cluster < node_len(q->leaf)))
		c.kind = EXTENT_DATA;
	c.host_off = entry + in_cluster;
	return c;
}

static struct cell cell_at(const struct qed *q, uint64_t guest_off)
{
	uint64_t index = guest_off >> q->cluster_bits, in_cluster = guest_off & (q->cluster_len - 1);
	uint64_t table_mask = (1ull << q->table_bits) - 1, piece_mask = (1ull << q->piece_bits) - 1;
	uint64_t in_table = index & table_mask;
	struct row *row;
	struct piece *p = cache_find(q->l2, (uint32_t)(index >> q->table_bits), (uint32_t)(in_table >> q->piece_bits),
				     &row);
	uint64_t span;

	if (likely(p)) {
		piece_touch(p);
		return decode(q, qed_entry_get(p, (unsigned)(in_table & piece_mask)), in_cluster);
	}
	/* A table that does not exist answers for all of it; a piece to be loaded for no more than its own part. */
	span = (row == &row_empty ? 1ull << q->table_bits : 1ull << q->piece_bits) << q->cluster_bits;
	return (struct cell){ .kind = row == &row_empty ? EXTENT_ABSENT : EXTENT_UNLOADED,
			      .len = span - (guest_off & (span - 1)) };
}

void qed_map(struct node *n, uint64_t off, uint64_t len, struct extent *ret)
{
	struct qed *q = node_state(n);
	struct cell first;
	uint64_t total;

	if (unlikely(q->unmapped)) {
		*ret = (struct extent){ .kind = EXTENT_ERROR, .error = -ENOTSUP, .len = len };
		return;
	}
	first = cell_at(q, off);
	total = first.len;
	for (unsigned i = 0; unlikely(total < len) && first.kind != EXTENT_UNLOADED && i < MAP_CELLS_MAX; i++) {
		struct cell next = cell_at(q, off + total);

		if (next.kind != first.kind ||
		    (first.kind == EXTENT_DATA && next.host_off != first.host_off + total))
			break;
		total += next.len;
	}
	*ret = (struct extent){ .kind = first.kind,
				.flags = first.kind == EXTENT_DATA && q->writable ? EXTENT_INPLACE : 0,
				.error = first.kind == EXTENT_ERROR ? -EIO : 0,
				.node = first.kind == EXTENT_UNLOADED ? n : n->file,
				.host_off = first.host_off,
				.len = MIN(total, len) };
}

/* ---- loading ---- */

/*
 * Entries of a writable image that would let the guest write over metadata, or into clusters that are yet to be given
 * out, become damage in memory, which map() refuses; on disk they stay.
 */
static void guard_entries(struct qed *q, uint32_t table, uint32_t nr, le64 *entries)
{
	uint64_t per_piece = 1ull << q->piece_bits;

	for (uint64_t i = 0; i < per_piece; i++) {
		uint64_t entry = le64_get(entries[i]);

		if (entry == QED_ABSENT || entry == QED_ZERO)
			continue;
		if (qed_place_ok(q, entry, q->cluster_len, space_end(q)) && !space_holds_metadata(q, entry))
			continue;
		entries[i] = le64_put(ENTRY_DAMAGED);
		(void)qed_damaged(q,
				  "guest offset 0x%llx leads to host offset 0x%llx, which is no place for data; it "
				  "cannot be read or written",
				  (unsigned long long)((((uint64_t)table << q->table_bits) + nr * per_piece + i)
						       << q->cluster_bits),
				  (unsigned long long)entry);
	}
}

static int load_piece(struct fiber *f, void *owner, uint32_t table, uint32_t nr, void *words)
{
	struct qed *q = owner;
	uint64_t host_off = q->l1[table], file_len = node_len(q->leaf);
	uint32_t len = q->l2->piece_len;
	int err;

	if (!qed_place_ok(q, host_off, q->table_len, q->writable ? space_end(q) : file_len))
		return qed_damaged(q, "L1 entry %u (0x%llx) leads to no L2 table inside the file", table,
				   (unsigned long long)host_off);
	host_off += (uint64_t)nr * len;
	node_event(f, q->file, EVENT_L2_LOAD);
	if (!q->order)
		return node_read(f, q->file, host_off, words, len);
	err = order_read(f, q->order, host_off, words, len);
	if (err == 0)
		guard_entries(q, table, nr, words);
	return err;
}

int qed_load(struct fiber *f, struct node *n, uint64_t off)
{
	struct qed *q = node_state(n);
	uint64_t index = off >> q->cluster_bits, in_table = index & ((1ull << q->table_bits) - 1);
	uint32_t table = (uint32_t)(index >> q->table_bits);
	struct piece *p;
	int err;

	if (q->unmapped)
		return -ENOTSUP;
	if (table >= q->nr_l1)
		return -EIO;
	if (!q->l1[table])
		return 0; /* it has become empty space for map() by now */
	err = cache_get(f, q->l2, table, (uint32_t)(in_table >> q->piece_bits), false, &p);
	if (err == 0)
		cache_unpin(q->l2, p);
	return err;
}

/* ---- L1 ---- */

uint32_t qed_nr_l1(const struct qed *q, uint64_t disk_len)
{
	unsigned bits = q->table_bits + q->cluster_bits;

	/* At most 2^21, for disks of 2^63 bytes and the least favourable geometry. */
	return bits >= 63 ? disk_len > 0 : (uint32_t)div_up(disk_len, 1ull << bits);
}

int qed_read_l1(struct fiber *f, struct qed *q, uint64_t *l1, uint32_t from, uint32_t to)
{
	uint64_t host_off = q->h.l1_off + from * 8ull;
	size_t len = (to - from) * sizeof(*l1);
	int ret;

	if (q->h.l1_off + to * 8ull > node_len(q->leaf))
		return -ENODATA;
	ret = q->order ? order_read(f, q->order, host_off, l1 + from, len)
		       : node_read(f, q->file, host_off, l1 + from, len);
	for (uint32_t i = from; ret == 0 && i < to; i++) {
		le64 disk;

		memcpy(&disk, &l1[i], sizeof(disk));
		l1[i] = le64_get(disk);
	}
	return ret;
}

int qed_map_open(struct qed *q, uint64_t cache_len)
{
	q->l2 = cache_new(q->node, q, true, MAX(q->nr_l1, 1), q->table_len, PIECE_LEN, cache_len, load_piece);
	if (!q->l2)
		return -ENOMEM;
	q->piece_bits = log2_u64(q->l2->piece_len / sizeof(le64));
	for (uint32_t i = 0; i < q->nr_l1; i++) {
		if (!q->l1[i])
			cache_set_empty(q->l2, i, true);
	}
	return 0;
}

void qed_map_close(struct qed *q)
{
	cache_free(q->l2);
	q->l2 = NULL;
}
