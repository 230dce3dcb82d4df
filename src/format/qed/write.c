/* SPDX-License-Identifier: MIT */
/*
 * qed/write.c - changing the mapping: space for guest clusters, entries that lead there, zeroes, a longer disk
 *
 * Every change is of entries in one piece of one table, with one order_put(): it happens, or it does not.
 *
 * Assumes: fibers of the home queue; block/ has locked the guest clusters concerned against other changes. Other
 *          entries, also of the same table, change whenever we wait.
 * Never:   makes an entry durable before what it points at; frees a cluster (QED knows no free space: what is unmapped
 *          becomes a hole in place).
 */
#include "block/event.h"
#include "format/qed/qed.h"

#include <stdlib.h>

#define RUN_MAX (PIECE_LEN / 8) /* entries in one piece */

/* Guest clusters that are changed together. */
struct run {
	uint64_t guest_off;
	uint32_t table, piece_nr;
	unsigned first, nr; /* entries within the piece */
};

/* As much of [off, off + len) as lies in one piece. len: whole clusters. */
static struct run run_at(const struct qed *q, uint64_t off, uint64_t len)
{
	uint64_t index = off >> q->cluster_bits, in_table = index & ((1ull << q->table_bits) - 1);
	unsigned per_piece = 1u << q->piece_bits;
	struct run run = { .guest_off = off };

	run.table = (uint32_t)(index >> q->table_bits);
	run.piece_nr = (uint32_t)(in_table >> q->piece_bits);
	run.first = (unsigned)(in_table & (per_piece - 1));
	run.nr = (unsigned)MIN(len >> q->cluster_bits, (uint64_t)(per_piece - run.first));
	return run;
}

/* Where the run's first entry lies; the table exists. */
static uint64_t run_host_off(const struct qed *q, const struct run *run)
{
	return q->l1[run->table] + (uint64_t)run->piece_nr * q->l2->piece_len + run->first * 8ull;
}

static bool has_backing(const struct qed *q)
{
	return q->node->backing || q->node->backing_name;
}

/* Longer ones, of which a disk needs little, keep their holes. */
#define TABLE_ALLOCATE_MAX MiB(1)

/*
 * A table for an L1 entry that has none. Under l1_mutex.
 *
 * Durable first: the length of the file that holds the table, which reads as zeroes ("nothing here") because nobody
 * ever wrote there. Only then: the L1 entry. Power lost in between leaks the clusters; the other way round, L1 would
 * lead beyond the end of the file.
 */
static int make_table(struct fiber *f, struct qed *q, uint32_t table)
{
	uint64_t host_off;
	le64 entry;
	int err = space_take_table(f, q, &host_off);

	if (err < 0)
		return err;
	err = q->table_len > TABLE_ALLOCATE_MAX ? 0 : node_allocate(f, q->file, host_off, q->table_len);
	if (err < 0) {
		space_undo_table(q, host_off);
		return err;
	}
	entry = le64_put(host_off);
	err = order_put(f, order_as(q->order, EVENT_L1_UPDATE), q->h.l1_off + table * 8ull, &entry, sizeof(entry),
			order_max(order_now(q->order), need_check_mark(q)), NULL);
	if (err < 0)
		return err; /* the table's clusters are leaked; the list of tables keeps data away from them */
	q->l1[table] = host_off;
	cache_set_empty(q->l2, table, false);
	return 0;
}

/* The piece with the run's entries, pinned, in a table that exists. */
static int run_open(struct fiber *f, struct qed *q, const struct run *run, struct piece **ret)
{
	bool fresh = false;
	int err = 0;

	if (!q->l1[run->table]) {
		fiber_lock(f, &q->l1_mutex);
		if (!q->l1[run->table]) { /* nobody has made it while we waited */
			err = make_table(f, q, run->table);
			fresh = err == 0;
		}
		fiber_unlock(&q->l1_mutex);
	}
	/* fresh: nobody has run since the table was made, it is all zeroes. */
	return err < 0 ? err : cache_get(f, q->l2, run->table, run->piece_nr, fresh, ret);
}

/* ---- alloc, link ---- */

int qed_alloc(struct fiber *f, struct node *n, uint64_t off, uint64_t len, struct extent *ret)
{
	struct qed *q = node_state(n);
	struct run run = run_at(q, off, len);
	uint64_t host_off, nr = run.nr;
	bool fresh = false;
	int err = need_check_begin(f, q);

	if (err < 0)
		return err;
	host_off = space_take_used(q);
	if (host_off) {
		nr = 1;
	} else {
		fresh = true;
		err = space_take(f, q, nr, &host_off);
	}
	if (err < 0) {
		need_check_end(q);
		return err;
	}
	*ret = (struct extent){ .kind = EXTENT_DATA,
				.flags = fresh ? EXTENT_READS_ZERO : 0,
				.node = n->file,
				.host_off = host_off,
				.len = nr << q->cluster_bits };
	return 0;
}

void qed_unalloc(struct fiber *f, struct node *n, const struct extent *extent)
{
	struct qed *q = node_state(n);

	(void)f;
	space_undo(q, extent->host_off, extent->len >> q->cluster_bits);
	need_check_end(q);
}

/*
 * Durable first: the data (the guest's, and what was copied around it), whose writes have completed, with the length of
 * the file; and the flag NEED_CHECK. Only then: the L2 entries. Power lost in between leaks the clusters, which the
 * next writer cuts off because of the flag; the old mapping holds. The other way round, an entry would lead to bytes
 * that the guest never wrote, or beyond the end of the file.
 *
 * The L1 entry of a new table (make_table()) and the entries in it have no order between them: without the L1 entry
 * nobody sees the others, without the others the table says "nothing here", which was true before.
 */
int qed_link(struct fiber *f, struct node *n, uint64_t off, const struct extent *extent)
{
	struct qed *q = node_state(n);
	struct run run = run_at(q, off, extent->len);
	le64 disk[RUN_MAX];
	struct piece *p;
	int err;

	assert((uint64_t)run.nr << q->cluster_bits == extent->len);
	err = run_open(f, q, &run, &p);
	if (err < 0)
		return err;
	for (unsigned i = 0; i < run.nr; i++)
		disk[i] = le64_put(extent->host_off + ((uint64_t)i << q->cluster_bits));
	err = order_put(f, order_as(q->order, EVENT_L2_UPDATE), run_host_off(q, &run), disk, run.nr * sizeof(disk[0]),
			order_max(order_now(q->order), need_check_mark(q)), NULL);
	for (unsigned i = 0; err == 0 && i < run.nr; i++)
		qed_entry_set(p, run.first + i, le64_get(disk[i]));
	cache_unpin(q->l2, p);
	if (err == 0)
		need_check_end(q); /* otherwise unalloc() comes */
	return err;
}

/* ---- unlink ---- */

/* Entries that are no data yet and hide the backing image from now on. Needs nothing durable before it. */
static int set_zero(struct fiber *f, struct qed *q, const struct run *run, struct piece *p, unsigned i, unsigned nr)
{
	le64 disk[RUN_MAX];
	int err;

	for (unsigned k = 0; k < nr; k++)
		disk[k] = le64_put(QED_ZERO);
	err = order_put(f, order_as(q->order, EVENT_L2_UPDATE), run_host_off(q, run) + i * 8ull, disk, nr * sizeof(disk[0]), ORDER_NONE, NULL);
	for (unsigned k = 0; err == 0 && k < nr; k++)
		qed_entry_set(p, run->first + i + k, QED_ZERO);
	return err;
}

/*
 * Data clusters become zeroes where they are: a hole, if space is to be given back. The mapping stays, so nothing in
 * flight under it matters more than any two overlapping requests of a guest do.
 */
static int zero_in_place(struct fiber *f, struct qed *q, uint64_t host_off, uint64_t nr, enum unlink_mode mode)
{
	return node_zero(f, q->file, host_off, nr << q->cluster_bits, mode == UNLINK_ZERO ? 0 : REQ_MAY_UNMAP);
}

/* How many entries from i on are alike: absent, zero, or data one behind the other. */
static unsigned alike(const struct qed *q, const struct piece *p, const struct run *run, unsigned i)
{
	uint64_t entry = qed_entry_get(p, run->first + i);
	uint64_t step = entry == QED_ABSENT || entry == QED_ZERO ? 0 : q->cluster_len;
	unsigned nr = 1;

	while (i + nr < run->nr && qed_entry_get(p, run->first + i + nr) == entry + nr * step)
		nr++;
	return nr;
}

static int unlink_pinned(struct fiber *f, struct qed *q, struct piece *p, const struct run *run, enum unlink_mode mode)
{
	unsigned nr;
	int err = 0;

	for (unsigned i = 0; err == 0 && i < run->nr; i += nr) {
		uint64_t entry = qed_entry_get(p, run->first + i);

		nr = alike(q, p, run, i);
		if (entry == QED_ZERO)
			continue;
		if (entry == QED_ABSENT)
			err = has_backing(q) ? set_zero(f, q, run, p, i, nr) : 0;
		else if (is_aligned(entry, q->cluster_len))
			err = zero_in_place(f, q, entry, nr, mode);
		else
			err = mode == UNLINK_DISCARD ? 0 : -EIO; /* damaged; a discard is advice */
	}
	return err;
}

int qed_unlink(struct fiber *f, struct node *n, uint64_t off, uint64_t len, enum unlink_mode mode)
{
	struct qed *q = node_state(n);
	int err = 0;

	if (mode == UNLINK_ABSENT)
		return -ENOTSUP; /* QED has no way to say which clusters are free */
	for (uint64_t pos = 0; err == 0 && pos < len;) {
		struct run run = run_at(q, off + pos, len - pos);
		struct piece *p;

		pos += (uint64_t)run.nr << q->cluster_bits;
		if (!q->l1[run.table] && !has_backing(q))
			continue; /* reads as zeroes already */
		err = need_check_begin(f, q);
		if (err < 0)
			break;
		err = run_open(f, q, &run, &p);
		if (err == 0) {
			err = unlink_pinned(f, q, p, &run, mode);
			cache_unpin(q->l2, p);
		}
		need_check_end(q);
	}
	return err;
}

/* ---- a longer disk ---- */

/* What is behind the old end of the disk must read as zeroes, not as what a longer backing image has there. */
static int check_backing(const struct qed *q, struct varve_error *err)
{
	const struct node *n = q->node;

	if (!n->backing_name && !n->backing)
		return 0;
	if (!n->backing)
		return varve_error_set(err, -ENOTSUP, "a disk opened without its backing image cannot be made longer");
	if (node_len(n->backing) > q->h.disk_len)
		return varve_error_set(
			err, -ENOTSUP,
			"the backing image (%llu bytes) is longer than this one (%llu bytes): making this one "
			"longer is not supported, old data of the backing image would appear",
			(unsigned long long)node_len(n->backing), (unsigned long long)q->h.disk_len);
	return 0;
}

/* More of the L1 table comes into use. It is as long on disk as it can ever be; what comes into use must be empty. */
static int grow_l1(struct fiber *f, struct qed *q, uint32_t nr)
{
	uint64_t *l1 = realloc(q->l1, MAX(nr, 1) * sizeof(*l1));
	int ret;

	if (!l1)
		return -ENOMEM;
	q->l1 = l1;
	ret = qed_read_l1(f, q, l1, q->nr_l1, nr);
	for (uint32_t i = q->nr_l1; ret == 0 && i < nr; i++) {
		if (l1[i])
			ret = qed_damaged(q, "L1 entry %u behind the end of the disk is in use (0x%llx)", i,
					  (unsigned long long)l1[i]);
	}
	if (ret == 0)
		ret = cache_grow(f, q->l2, nr, true);
	if (ret == 0)
		q->nr_l1 = nr;
	return ret;
}

/* A single field changes, in one sector: the disk has its old length or the new one. */
static int grow(struct fiber *f, struct qed *q, uint64_t len, struct varve_error *err)
{
	uint32_t nr = qed_nr_l1(q, len);
	int ret = nr > q->nr_l1 ? grow_l1(f, q, nr) : 0;

	if (ret < 0)
		return varve_error_errno(err, ret, "the L1 table cannot be used for %llu bytes (check -r all repairs it)", (unsigned long long)len);
	if (ret == 0)
		ret = qed_put_disk_len(f, q, len, ORDER_NONE, NULL);
	if (ret == 0) {
		atomic_store_explicit(&q->node->len, len, memory_order_release);
		ret = order_flush(f, q->order);
	}
	return ret < 0 ? varve_error_errno(err, ret, "the new length %llu could not be made durable",
					   (unsigned long long)len)
		       : 0;
}

int qed_truncate(struct fiber *f, struct node *n, uint64_t len, enum prealloc prealloc, struct varve_error *err)
{
	struct qed *q = node_state(n);
	uint64_t max = qed_disk_len_max(q->h.cluster_len, q->h.table_clusters);
	int ret;

	if (!q->writable)
		return varve_error_set(err, -EACCES, "open read-only, the length cannot change");
	if (prealloc != PREALLOC_OFF)
		return varve_error_set(err, -ENOTSUP, "QED has no preallocation");
	if (len > max)
		return varve_error_set(err, -EFBIG, "a disk of %llu bytes is too large for the image's tables, at most %llu",
				       (unsigned long long)len, (unsigned long long)max);
	len = align_up(len, 512);
	ret = len > q->h.disk_len ? check_backing(q, err) : 0;
	if (ret < 0)
		return ret;
	fiber_lock(f, &q->l1_mutex);
	if (len < q->h.disk_len)
		ret = varve_error_set(err, -ENOTSUP, "QED images cannot be made shorter (this one has %llu bytes)",
				      (unsigned long long)q->h.disk_len);
	else if (len > q->h.disk_len)
		ret = grow(f, q, len, err);
	fiber_unlock(&q->l1_mutex);
	return ret;
}
