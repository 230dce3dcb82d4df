/* SPDX-License-Identifier: MIT */
/*
 * qcow2/l2.c - changing the mapping: space for guest clusters, entries that point at it, entries that no longer do
 *
 * Assumes: home queue; block/ has locked the guest clusters concerned against other changes. Tables may be loaded,
 *          evicted and replaced by other fibers whenever one of these functions waits, so slices are looked up again.
 * Never:   queues an entry for the disk without a mark for what it points at.
 */
#include "format/qcow2/qcow2.h"

#include <string.h>

#include "format/qcow2/l2_cache.h"

#define RUN_MAX 512 /* entries changed by one order_put() */

static uint64_t l1_get(const struct qcow2 *q, uint64_t i)
{
	return __atomic_load_n(&q->l1[i], __ATOMIC_RELAXED);
}

/* Bytes of the virtual disk that one L2 table covers. */
static uint64_t table_span(const struct qcow2 *q)
{
	return (uint64_t)q->l2_entries << q->cluster_bits;
}

/* The L1 entry goes to the disk after `after`, and is in force in memory from now on. */
static int l1_set(struct fiber *f, struct qcow2 *q, uint64_t i, uint64_t value, order_mark after, order_mark *ret_mark)
{
	be64 disk = be64_put(value);
	int r = order_put(f, q->order, q->h.l1_off + i * 8, &disk, sizeof(disk), after, ret_mark);

	if (r == 0)
		__atomic_store_n(&q->l1[i], value, __ATOMIC_RELEASE); /* pairs with the acquire in l2_map() */
	return r;
}

/* Content of a new L2 table: zeroes, or what the shared one at old_off holds. */
static int table_fill(struct fiber *f, struct qcow2 *q, uint64_t old_off, uint64_t new_off)
{
	uint8_t piece[4096];
	int r = 0;

	for (uint64_t pos = 0; r == 0 && pos < q->cluster_len; pos += sizeof(piece)) {
		size_t len = MIN(sizeof(piece), q->cluster_len - pos);

		memset(piece, 0, len);
		if (old_off)
			r = order_read(f, q->order, old_off + pos, piece, len);
		if (r == 0)
			r = order_put(f, q->order, new_off + pos, piece, len, ORDER_NONE, NULL);
	}
	return r;
}

/*
 * Makes sure that L1 entry i has an L2 table of our own: a new one, or a copy when a snapshot shares it.
 *
 * Durable first: the new table's content and its refcount. Only then: the L1 entry. Power lost in between leaks one
 * cluster; the other way round, L1 would lead to whatever the cluster held before. The copied entries keep their counts:
 * the snapshot's table and ours now both count for what they point at, as they did together before.
 */
static int table_own(struct fiber *f, struct qcow2 *q, uint64_t i)
{
	uint64_t old = l1_get(q, i), host_off, nr;
	order_mark mark;
	bool fresh;
	int r;

	if (old & QCOW2_COPIED)
		return 0;
	fiber_lock(f, &q->l2->table_mutex);
	old = l1_get(q, i); /* somebody may have made it while we waited */
	r = old & QCOW2_COPIED ? 0 : alloc_clusters(f, q, 1, &host_off, &nr, &fresh, &mark);
	if (r < 0 || (old & QCOW2_COPIED)) {
		fiber_unlock(&q->l2->table_mutex);
		return r;
	}
	r = table_fill(f, q, old & QCOW2_OFF_MASK, host_off);
	if (r == 0)
		r = l1_set(f, q, i, host_off | QCOW2_COPIED, order_max(mark, order_now(q->order)), &mark);
	if (r < 0) {
		alloc_free(f, q, host_off, 1, ORDER_NONE);
	} else if (old & QCOW2_OFF_MASK) {
		l2_cache_drop_table(f, q, i);
		alloc_free(f, q, old & QCOW2_OFF_MASK, 1, mark);
	}
	fiber_unlock(&q->l2->table_mutex);
	return r;
}

/* The entry for guest_off, its slice loaded. */
static int entry_get(struct fiber *f, struct qcow2 *q, uint64_t guest_off, uint64_t *ret)
{
	struct l2_slice *s;

	while (!(s = l2_cache_find(q, guest_off))) {
		int r = l2_load(f, q->node, guest_off);

		if (r < 0)
			return r;
	}
	*ret = l2_slice_entry(q, s, guest_off);
	return 0;
}

/* Host clusters that an entry holds: *ret_nr 0 for none. */
static void entry_clusters(const struct qcow2 *q, uint64_t entry, uint64_t *ret_off, uint64_t *ret_nr)
{
	*ret_nr = 0;
	if (entry & QCOW2_COMPRESSED) {
		unsigned x = 62 - (q->cluster_bits - 8);
		uint64_t off = entry & ((1ull << x) - 1);
		uint64_t sectors = ((entry & ~(QCOW2_COPIED | QCOW2_COMPRESSED)) >> x) + 1;
		uint64_t end = align_down(off, 512) + sectors * 512;

		*ret_off = align_down(off, q->cluster_len);
		*ret_nr = (align_up(end, q->cluster_len) - *ret_off) >> q->cluster_bits;
	} else if (entry & QCOW2_OFF_MASK) {
		*ret_off = entry & QCOW2_OFF_MASK;
		*ret_nr = 1;
	}
}

/*
 * Sets nr entries from guest_off on (all in one table of our own) to value[i], on disk after `after`, and frees what the old
 * ones held and the new ones do not.
 */
static int entries_set(struct fiber *f, struct qcow2 *q, uint64_t guest_off, const uint64_t *value, unsigned nr,
		       order_mark after)
{
	uint64_t old[RUN_MAX];
	be64 disk[RUN_MAX];
	uint64_t table, index = (guest_off >> q->cluster_bits) & (q->l2_entries - 1);
	order_mark mark;
	int r = 0;

	for (unsigned i = 0; r == 0 && i < nr; i++) {
		r = entry_get(f, q, guest_off + ((uint64_t)i << q->cluster_bits), &old[i]);
		disk[i] = be64_put(value[i]);
	}
	if (r < 0)
		return r;
	table = l1_get(q, guest_off / table_span(q)) & QCOW2_OFF_MASK;
	r = order_put(f, q->order, table + index * 8, disk, nr * 8ull, after, &mark);
	if (r < 0)
		return r;
	for (unsigned i = 0; i < nr; i++) {
		uint64_t old_off, old_nr;
		struct l2_slice *s = l2_cache_find(q, guest_off + ((uint64_t)i << q->cluster_bits));

		if (s)
			l2_slice_set(q, s, guest_off + ((uint64_t)i << q->cluster_bits), value[i]);
		entry_clusters(q, old[i], &old_off, &old_nr);
		if (old_nr && (value[i] & QCOW2_OFF_MASK) != old_off)
			alloc_free(f, q, old_off, old_nr, mark);
	}
	return 0;
}

/* ---- what block/ calls ---- */

int l2_alloc(struct fiber *f, struct node *n, uint64_t off, uint64_t len, struct extent *ret)
{
	struct qcow2 *q = node_state(n);
	uint64_t host_off, nr;
	order_mark mark;
	bool fresh;
	int r;

	l2_map(n, off, len, ret);
	if (ret->kind == EXTENT_ZERO && (ret->flags & EXTENT_ALLOCATED) && (ret->flags & EXTENT_INPLACE) &&
	    ret->len >= q->cluster_len) {
		/* Space that was kept for a cluster of zeroes: its old bytes are not zero. */
		ret->kind = EXTENT_DATA;
		ret->node = q->file;
		ret->len = align_down(ret->len, q->cluster_len);
		return 0;
	}
	/* No more than link() can publish in one step: a link that fails half way could not be taken back. */
	len = MIN(MIN(len, table_span(q) - off % table_span(q)), (uint64_t)RUN_MAX << q->cluster_bits);
	r = alloc_clusters(f, q, len >> q->cluster_bits, &host_off, &nr, &fresh, &mark);
	if (r < 0)
		return r;
	*ret = (struct extent){
		.kind = EXTENT_DATA,
		.flags = fresh ? EXTENT_READS_ZERO : 0,
		.node = q->file,
		.host_off = host_off,
		.len = nr << q->cluster_bits,
	};
	return 0;
}

void l2_unalloc(struct fiber *f, struct node *n, const struct extent *extent)
{
	struct qcow2 *q = node_state(n);

	if (!(extent->flags & EXTENT_ALLOCATED))
		alloc_free(f, q, extent->host_off, extent->len >> q->cluster_bits, ORDER_NONE);
}

/*
 * Durable first: the data that the caller wrote, the copied bytes around it, and the refcounts of the clusters: all
 * completed or queued in the open section by now, so the mark is order_now(); and what leads to these refcounts, when a
 * refcount block or table is new: refcount_mark(). Only then: the L2 entries. Power lost in between leaks the
 * clusters, which check finds. The other way round, an entry would point at a cluster still marked free, the next
 * allocation would hand it out again, and two guest blocks would share one place on disk.
 */
int l2_link(struct fiber *f, struct node *n, uint64_t off, const struct extent *extent)
{
	struct qcow2 *q = node_state(n);
	uint64_t value[RUN_MAX];
	int r = 0;

	for (uint64_t pos = 0; r == 0 && pos < extent->len;) {
		uint64_t guest_off = off + pos, in_table = table_span(q) - guest_off % table_span(q);
		unsigned nr = (unsigned)MIN(MIN(extent->len - pos, in_table) >> q->cluster_bits, (uint64_t)RUN_MAX);

		for (unsigned i = 0; i < nr; i++)
			value[i] = (extent->host_off + pos + ((uint64_t)i << q->cluster_bits)) | QCOW2_COPIED;
		r = table_own(f, q, guest_off / table_span(q));
		if (r == 0)
			r = entries_set(f, q, guest_off, value, nr,
					order_max(order_now(q->order), refcount_mark(q)));
		pos += (uint64_t)nr << q->cluster_bits;
	}
	return r;
}

/* What an entry becomes; false: it stays as it is. */
static bool entry_unlinked(const struct qcow2 *q, uint64_t old, enum unlink_mode mode, uint64_t *ret)
{
	bool backing = q->node->backing || q->node->backing_name;
	bool empty = !(old & ~QCOW2_COPIED);

	if (q->h.version < 3 || (mode == UNLINK_DISCARD && !backing)) {
		*ret = 0;
		return !empty;
	}
	if (empty && !backing)
		return false; /* reads as zeroes as it is */
	if (mode == UNLINK_ZERO && (old & QCOW2_COPIED) && !(old & QCOW2_COMPRESSED) && (old & QCOW2_OFF_MASK))
		*ret = old | QCOW2_ZERO; /* keep the space: it will be written again */
	else
		*ret = QCOW2_ZERO;
	return *ret != old;
}

static int unlink_run(struct fiber *f, struct qcow2 *q, uint64_t off, unsigned nr, enum unlink_mode mode)
{
	uint64_t value[RUN_MAX];
	bool change = false;
	int r;

	for (unsigned i = 0; i < nr; i++) {
		uint64_t old;

		r = entry_get(f, q, off + ((uint64_t)i << q->cluster_bits), &old);
		if (r < 0)
			return r;
		if (entry_unlinked(q, old, mode, &value[i]))
			change = true;
		else
			value[i] = old;
	}
	if (!change)
		return 0;
	r = table_own(f, q, off / table_span(q));
	/* Nothing has to be durable before an entry that points nowhere; what it frees waits for it (alloc_free()). */
	return r < 0 ? r : entries_set(f, q, off, value, nr, ORDER_NONE);
}

/*
 * The entries lose their clusters in memory at once; the clusters themselves are freed by alloc_settle(), when the entries
 * are durable and no I/O under the old mapping is in flight.
 */
int l2_unlink(struct fiber *f, struct node *n, uint64_t off, uint64_t len, enum unlink_mode mode)
{
	struct qcow2 *q = node_state(n);
	bool backing = n->backing || n->backing_name;
	int r = 0;

	if (q->h.version < 3 && backing)
		return -ENOTSUP; /* version 2 cannot say "zero" over a backing file */
	for (uint64_t pos = 0; r == 0 && pos < len;) {
		uint64_t guest_off = off + pos, in_table = table_span(q) - guest_off % table_span(q);
		uint64_t i = guest_off / table_span(q), part = MIN(len - pos, in_table);

		if (i >= q->h.l1_entries)
			return -EINVAL;
		if (!(l1_get(q, i) & QCOW2_OFF_MASK) && !backing) {
			pos += part; /* no table: reads as zeroes already */
			continue;
		}
		part = MIN(part, (uint64_t)RUN_MAX << q->cluster_bits);
		if (!(l1_get(q, i) & QCOW2_OFF_MASK))
			r = table_own(f, q, i);
		if (r == 0)
			r = unlink_run(f, q, guest_off, (unsigned)(part >> q->cluster_bits), mode);
		pos += part;
	}
	return r;
}
