/* SPDX-License-Identifier: MIT */
/*
 * qcow2/map.c - from guest offsets to extents
 *
 * Owns:    the meaning of L2 entries.
 * Assumes: map() runs on any queue that is attached, load() on the home queue. Entries are read and written
 * one by one, atomically, in disk byte order. Never:   answers with a place beyond the end of the file: a
 * read past the end that returns zeroes would hide that the file was cut.
 */
#include "block/event.h"
#include "format/cache.h"
#include "format/qcow2/qcow2.h"
#include "format/qcow2/entry.h"
#include "format/qcow2/subcluster.h"

/* Entries looked at for one answer. Enough for any request; a bound for those who ask for the whole disk. */
#define MAP_CELLS_MAX (1u << 16)

/* The smallest stretch for which one answer holds: a cluster, a subcluster, or all of a table that does not
 * exist. */
struct cell {
	enum extent_kind kind;
	uint32_t flags;
	int error;
	uint64_t host_off; /* of its first byte asked for */
	uint64_t len;	   /* to its end */
};

static inline int unmapped(const struct qcow2 *q)
{
	return atomic_load_explicit(&q->unmapped, memory_order_relaxed);
}

static struct cell cell_error(int error)
{
	return (struct cell){ .kind = EXTENT_ERROR, .error = error };
}

/* Data at host_off; check_off: of that which must begin inside the file. */
static struct cell cell_data(const struct qcow2 *q, uint64_t entry, uint64_t host_off, uint64_t check_off)
{
	struct cell c = { .kind = EXTENT_DATA, .host_off = host_off };

	if (!is_aligned(entry & QCOW2_OFF_MASK, q->cluster_len) || (check_off >= node_len(q->leaf) && !q->external))
		return cell_error(-EIO);
	if ((entry & QCOW2_COPIED) && q->writable)
		c.flags = EXTENT_INPLACE;
	return c;
}

/* Zeroes; with a cluster behind them if host_off is not 0. */
static struct cell cell_zero(const struct qcow2 *q, uint64_t entry, uint64_t host_off)
{
	struct cell c = { .kind = EXTENT_ZERO };

	if (!(entry & QCOW2_OFF_MASK))
		return c;
	if (!is_aligned(entry & QCOW2_OFF_MASK, q->cluster_len))
		return cell_error(-EIO);
	c.flags = EXTENT_ALLOCATED;
	c.host_off = host_off;
	return c;
}

/* docs/spec/qcow2.md, "L2 entries". in_cluster: offset of what is asked for. */
static struct cell decode(const struct qcow2 *q, uint64_t entry, uint64_t in_cluster)
{
	uint64_t host_off = entry & QCOW2_OFF_MASK;

	if (entry & QCOW2_COMPRESSED)
		return (struct cell){ .kind = EXTENT_PACKED, .host_off = entry };
	if ((entry & QCOW2_L2_RESERVED) || ((entry & QCOW2_ZERO) && q->h.version < 3))
		return cell_error(-EIO);
	if (entry & QCOW2_ZERO)
		return cell_zero(q, entry, host_off + in_cluster);
	if (!host_off && !at_zero(q, entry))
		return (struct cell){ .kind = EXTENT_ABSENT };
	return cell_data(q, entry, host_off + in_cluster, host_off);
}

/* How many bits from the lowest on are set? */
static unsigned run_of(uint32_t bits)
{
	return (unsigned)__builtin_ctzll(~(uint64_t)bits);
}

/* docs/spec/qcow2.md, "Extended L2 entries". Subclusters that are alike make one stretch, to the end of the cluster at most. */
static struct cell cell_wide(const struct qcow2 *q, const struct piece *p, uint32_t nr, uint64_t in_cluster)
{
	struct wide_entry e = wide_get(p, nr);
	unsigned sub = (unsigned)(in_cluster >> sub_bits(q)), alike;
	uint32_t data = e.data >> sub, zero = e.zero >> sub;
	uint64_t host_off = e.place & QCOW2_OFF_MASK, at = host_off + ((uint64_t)sub << sub_bits(q)), end;
	struct cell c;

	if (e.place & QCOW2_COMPRESSED)
		return (struct cell){ .kind = EXTENT_PACKED, .host_off = e.place, .len = q->cluster_len - in_cluster };
	if ((e.place & (QCOW2_L2_RESERVED | QCOW2_ZERO)) || (data & 1 && (zero & 1 || (!host_off && !at_zero(q, e.place))))) {
		c = cell_error(-EIO);
		alike = 1;
	} else if (zero & 1) {
		c = cell_zero(q, e.place, host_off + in_cluster);
		alike = run_of(zero & ~data);
	} else if (data & 1) {
		c = cell_data(q, e.place, host_off + in_cluster, at);
		alike = run_of(data & ~zero);
		/* Each of them begins inside the file. */
		end = node_len(q->leaf);
		if (!q->external && end < at + ((uint64_t)alike << sub_bits(q)))
			alike = end <= at ? 1 : (unsigned)((end - at + (1ull << sub_bits(q)) - 1) >> sub_bits(q));
	} else {
		c = (struct cell){ .kind = EXTENT_ABSENT };
		alike = (unsigned)MIN((uint64_t)__builtin_ctzll((data | zero) | 1ull << 63), (uint64_t)QCOW2_SUBCLUSTERS - sub);
	}
	c.len = ((uint64_t)(sub + alike) << sub_bits(q)) - in_cluster;
	return c;
}

static struct cell cell_at(const struct qcow2 *q, uint64_t guest_off)
{
	uint64_t index = guest_off >> q->cluster_bits, in_cluster = guest_off & (q->cluster_len - 1);
	uint32_t table = (uint32_t)(index >> q->l2_bits);
	uint32_t entry = (uint32_t)(index & (q->l2_entries - 1));
	struct row *row;
	struct piece *p = cache_find(q->l2, table, entry >> q->l2_piece_bits, &row);
	struct cell c;

	if (row == &row_empty) {
		c = (struct cell){ .kind = EXTENT_ABSENT };
		c.len = ((uint64_t)q->l2_entries << q->cluster_bits) -
			(guest_off & (((uint64_t)q->l2_entries << q->cluster_bits) - 1));
		return c;
	}
	if (!p) {
		/* Whatever is asked for, loading one piece answers no more than that. */
		c = (struct cell){ .kind = EXTENT_UNLOADED };
		c.len = (1ull << (q->l2_piece_bits + q->cluster_bits)) -
			(guest_off & ((1ull << (q->l2_piece_bits + q->cluster_bits)) - 1));
		return c;
	}
	piece_touch(p);
	entry &= (1u << q->l2_piece_bits) - 1;
	if (likely(q->l2_entry_len == 8)) {
		c = decode(q, entry_get(p, entry), in_cluster);
		c.len = q->cluster_len - in_cluster;
	} else {
		c = cell_wide(q, p, entry, in_cluster);
	}
	return c;
}

/* Does next, which begins `len` bytes behind first, continue it? */
static bool continues(const struct cell *first, const struct cell *next, uint64_t len)
{
	if (first->kind == EXTENT_PACKED || next->kind != first->kind || next->flags != first->flags || next->error != first->error)
		return false;
	return (first->kind != EXTENT_DATA && !(first->flags & EXTENT_ALLOCATED)) ||
	       next->host_off == first->host_off + len;
}

/*
 * What most requests meet: all of it in one cluster, whose entry is in memory and says where the data is, and nothing
 * else. False: look closer; whatever else an entry can hold is seen there.
 */
static inline bool map_plain(const struct qcow2 *q, uint64_t off, uint64_t len, struct extent *ret)
{
	uint64_t index = off >> q->cluster_bits, in_cluster = off & (q->cluster_len - 1), entry, host_off;
	uint32_t at = (uint32_t)(index & (q->l2_entries - 1));
	struct row *row;
	struct piece *p;

	if (len > q->cluster_len - in_cluster || q->l2_entry_len != 8 || unmapped(q))
		return false;
	p = cache_find(q->l2, (uint32_t)(index >> q->l2_bits), at >> q->l2_piece_bits, &row);
	if (!p)
		return false;
	piece_touch(p);
	entry = entry_get(p, at & ((1u << q->l2_piece_bits) - 1));
	host_off = entry & ~QCOW2_COPIED;
	if (!host_off || (host_off & (~QCOW2_OFF_MASK | (q->cluster_len - 1))) || host_off >= node_len(q->data_leaf))
		return false;
	ret->kind = EXTENT_DATA;
	ret->flags = (entry & QCOW2_COPIED) && q->writable ? EXTENT_INPLACE : 0;
	ret->error = 0;
	ret->node = q->data;
	ret->host_off = host_off + in_cluster;
	ret->len = len;
	return true;
}

static __attribute__((noinline)) void map_any(struct node *n, uint64_t off, uint64_t len, struct extent *ret)
{
	struct qcow2 *q = node_state(n);
	struct cell first;
	uint64_t total;

	if (unlikely(unmapped(q))) {
		*ret = (struct extent){ .kind = EXTENT_ERROR, .error = unmapped(q), .len = len };
		return;
	}
	first = cell_at(q, off);
	total = first.len;
	for (unsigned i = 0; unlikely(total < len) && first.kind != EXTENT_UNLOADED && i < MAP_CELLS_MAX;
	     i++) {
		struct cell next = cell_at(q, off + total);

		if (!continues(&first, &next, total))
			break;
		total += next.len;
	}
	ret->kind = first.kind;
	ret->flags = first.flags;
	ret->error = first.error;
	ret->node = first.kind == EXTENT_UNLOADED || first.kind == EXTENT_PACKED ? n : q->data;
	ret->host_off = first.host_off;
	ret->len = MIN(total, len);
}

void l2_map(struct node *n, uint64_t off, uint64_t len, struct extent *ret)
{
	if (unlikely(!map_plain(node_state(n), off, len, ret)))
		map_any(n, off, len, ret);
}

/* ---- loading ---- */

/*
 * Entries of a writable image that would let the guest write over metadata become damage in memory, which
 * map() refuses; on disk they stay. Who meets one is told (corrupt.c). Metadata made later lies behind the frontier, where no entry may point
 * when it is read: so what was looked at once stays safe.
 */
static void guard_entries(struct qcow2 *q, be64 *entries)
{
	unsigned per_piece = 1u << q->l2_piece_bits, words = q->l2_entry_len / 8;

	for (unsigned i = 0; i < per_piece; i++) {
		uint64_t entry = be64_get(entries[i * words]), cluster = (entry & QCOW2_OFF_MASK) >> q->cluster_bits;

		bool packed = entry & QCOW2_COMPRESSED;

		if (packed ? !packed_in_metadata(q, entry) : !cluster || (cluster < q->end_cluster && !meta_holds(q, cluster)))
			continue;
		entries[i * words] = be64_put(QCOW2_L2_RESERVED);
	}
}

static int read_table(struct fiber *f, struct qcow2 *q, uint64_t host_off, void *words, uint32_t len)
{
	uint64_t file_len = node_len(q->leaf);
	int err;

	if (q->order)
		return order_read(f, q->order, host_off, words, len);
	if (host_off >= file_len)
		return -EIO;
	if (len <= file_len - host_off)
		return node_read(f, q->file, host_off, words, len);
	err = node_read(f, q->file, host_off, words, file_len - host_off);
	__builtin_memset((uint8_t *)words + (file_len - host_off), 0, len - (file_len - host_off));
	return err;
}

/* Where L2 table number `table` lies; -EIO if its L1 entry is damaged. */
static int table_place(struct fiber *f, struct qcow2 *q, uint32_t table, uint64_t *ret)
{
	uint64_t entry = q->l1[table], host_off = entry & QCOW2_OFF_MASK;
	uint64_t end = q->writable ? q->end_cluster << q->cluster_bits : node_len(q->leaf);

	if (!(entry & QCOW2_L1_RESERVED) && host_off && is_aligned(host_off, q->cluster_len) &&
	    host_off < end) {
		*ret = host_off;
		return 0;
	}
	return qcow2_corrupt(f, q, "L1 entry %u (0x%llx) leads to no L2 table inside the file", table,
			     (unsigned long long)entry);
}

static int load_piece(struct fiber *f, void *owner, uint32_t table, uint32_t nr, void *words)
{
	struct qcow2 *q = owner;
	uint32_t len = q->l2->piece_len;
	uint64_t host_off = 0, before;
	int err;

	do {
		/* A table may move while it is read (l2.c copies one that is shared); its old place may be
		 * reused then. */
		err = table_place(f, q, table, &before);
		if (err == 0) {
			node_event(f, q->file, EVENT_L2_LOAD);
			err = read_table(f, q, before + (uint64_t)nr * len, words, len);
		}
		if (err == 0)
			err = table_place(f, q, table, &host_off);
		if (err < 0)
			return err;
	} while (host_off != before);
	if (q->external)
		data_guard_entries(q, table, nr, words);
	else if (q->writable)
		guard_entries(q, words);
	return 0;
}

int l2_load(struct fiber *f, struct node *n, uint64_t off)
{
	struct qcow2 *q = node_state(n);
	uint64_t index = off >> q->cluster_bits;
	uint32_t table = (uint32_t)(index >> q->l2_bits);
	struct piece *p;
	int err;

	if (q->unmapped)
		return q->unmapped;
	if (table >= q->h.l1_entries)
		return -EIO;
	if (!q->l1[table])
		return 0; /* it has become empty space for map() by now */
	err = cache_get(f, q->l2, table, (uint32_t)(index & (q->l2_entries - 1)) >> q->l2_piece_bits, false,
			&p);
	if (err == 0)
		cache_unpin(q->l2, p);
	return err;
}

int l2_open(struct qcow2 *q, uint64_t cache_len, uint32_t piece_len)
{
	q->l2 = cache_new(q->node, q, true, MAX(q->h.l1_entries, 1), q->cluster_len, piece_len, cache_len, load_piece);
	if (!q->l2)
		return -ENOMEM;
	q->l2_bits = log2_u64(q->l2_entries);
	q->l2_piece_bits = log2_u64(q->l2->piece_len / q->l2_entry_len);
	for (uint32_t i = 0; i < q->h.l1_entries; i++) {
		if (!q->l1[i])
			cache_set_empty(q->l2, i, true);
	}
	return 0;
}

void l2_close(struct qcow2 *q)
{
	cache_free(q->l2);
	q->l2 = NULL;
}
