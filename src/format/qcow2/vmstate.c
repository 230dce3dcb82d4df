/* SPDX-License-Identifier: MIT */
/*
 * qcow2/vmstate.c - reading the state of a snapshot; a snapshot as the disk
 *
 * Owns:    one L2 table of the state, the one that was asked for last.
 * Assumes: fibers of the home queue; nobody deletes the snapshot while its state is read.
 * Never:   answers with a place beyond the end of the file.
 */
#include "format/qcow2/snapshot.h"
#include "format/qcow2/subcluster.h"

#include <stdlib.h>
#include <string.h>

struct snapshot_state {
	struct l1_copy l1; /* of the snapshot, whole */
	uint32_t first;	   /* the state's first entry */
	uint64_t len;
	be64 *table;	 /* the L2 table of entry `loaded` */
	uint32_t loaded; /* UINT32_MAX: none */
};

static int read_table(struct fiber *f, struct qcow2 *q, uint64_t host_off, void *buf, size_t len)
{
	uint64_t file_len = node_len(q->leaf);

	if (q->order)
		return order_read(f, q->order, host_off, buf, len);
	if (host_off >= file_len)
		return -EIO;
	memset(buf, 0, len);
	return node_read(f, q->file, host_off, buf, MIN(len, file_len - host_off));
}

void qcow2_snapshot_state_close(struct snapshot_state *st)
{
	if (!st)
		return;
	free(st->l1.entries);
	free(st->table);
	free(st);
}

static int state_open(struct fiber *f, struct qcow2 *q, const struct qcow2_snapshot *s, struct snapshot_state *st,
		      struct varve_error *err)
{
	uint64_t first = disk_tables(q, s->disk_len), room;
	int ret = tables_read_l1(f, q, s, &st->l1, err);

	if (ret < 0)
		return ret;
	st->l1.whose = "the state"; /* s does not live as long */
	if (!s->vm_state_len)
		return varve_error_set(err, -ENODATA, "snapshot '%s' holds no state of a virtual machine", s->name);
	room = (st->l1.nr - first) * table_covers(q);
	if (s->vm_state_len > room)
		return varve_error_set(err, -EIO,
				       "snapshot '%s': its state has %llu bytes by the snapshot table, but its L1 table has room "
				       "for %llu only: the image is damaged",
				       s->name, (unsigned long long)s->vm_state_len, (unsigned long long)room);
	st->first = (uint32_t)first;
	st->len = s->vm_state_len;
	st->loaded = UINT32_MAX;
	st->table = malloc(q->cluster_len);
	return st->table ? 0 : varve_error_set(err, -ENOMEM, "state: out of memory");
}

int qcow2_snapshot_state_open(struct fiber *f, struct node *n, const struct snapshot_pick *pick,
			      struct snapshot_state **ret, uint64_t *ret_len, struct varve_error *err)
{
	struct qcow2 *q = node_state(n);
	struct snapshot_state *st = calloc(1, sizeof(*st));
	struct snapshots s = { 0 };
	uint32_t i;
	int r;

	if (!st)
		return varve_error_set(err, -ENOMEM, "state: out of memory");
	fiber_lock(f, &q->snapshot_mutex);
	r = snapshots_open(f, q, &s, err);
	if (r == 0)
		r = snapshots_find(&s, pick, &i, err);
	if (r == 0)
		r = state_open(f, q, &s.list[i], st, err);
	snapshots_close(&s);
	fiber_unlock(&q->snapshot_mutex);
	if (r < 0) {
		qcow2_snapshot_state_close(st);
		return r;
	}
	*ret = st;
	*ret_len = st->len;
	return 0;
}

static int load_table(struct fiber *f, struct qcow2 *q, struct snapshot_state *st, uint32_t index)
{
	uint64_t host_off = st->l1.entries[index] & QCOW2_OFF_MASK;
	int ret = 0;

	if ((st->l1.entries[index] & QCOW2_L1_RESERVED) || !is_aligned(host_off, q->cluster_len))
		return -EIO;
	if (st->loaded == index)
		return 0;
	st->loaded = UINT32_MAX;
	if (host_off)
		ret = read_table(f, q, host_off, st->table, q->cluster_len);
	else
		memset(st->table, 0, q->cluster_len);
	if (ret == 0)
		st->loaded = index;
	return ret;
}

/* Where one cluster of the state is; 0: nowhere, it reads as zeroes. Negative: damaged. */
static int64_t entry_place(const struct qcow2 *q, uint64_t entry)
{
	uint64_t host_off = entry & QCOW2_OFF_MASK;

	if (entry & QCOW2_COMPRESSED)
		return -ENOTSUP;
	if ((entry & QCOW2_L2_RESERVED) || !is_aligned(host_off, q->cluster_len) ||
	    (host_off && host_off >= node_len(q->leaf)))
		return -EIO;
	return entry & QCOW2_ZERO ? 0 : (int64_t)host_off;
}

/* The same of what lies at in_table, up to the end of its unit. The table is loaded. */
static int64_t unit_place(const struct qcow2 *q, const struct snapshot_state *st, uint64_t in_table)
{
	uint64_t i = in_table >> q->cluster_bits, in_cluster = in_table & (q->cluster_len - 1);
	struct wide_entry e;
	int64_t place;

	if (!is_wide(q)) {
		place = entry_place(q, be64_get(st->table[i]));
		return place > 0 ? place + (int64_t)in_cluster : place;
	}
	e = wide_of(be64_get(st->table[2 * i]), be64_get(st->table[2 * i + 1]));
	if (e.place & QCOW2_COMPRESSED)
		return -ENOTSUP;
	if (wide_damaged(q, &e))
		return -EIO;
	if (!(e.data >> (in_cluster >> sub_bits(q)) & 1))
		return 0;
	place = (int64_t)((e.place & QCOW2_OFF_MASK) + in_cluster);
	return (uint64_t)place < node_len(q->leaf) ? place : -EIO;
}

void qcow2_snapshot_state_map(struct fiber *f, struct node *n, struct snapshot_state *st, uint64_t off, uint64_t len,
			      struct extent *ret)
{
	struct qcow2 *q = node_state(n);
	uint64_t in_table = off % table_covers(q), unit = map_unit(n), done;
	int64_t first, next;
	int err;

	*ret = (struct extent){ .kind = EXTENT_ERROR, .error = -EIO, .len = len, .node = n->file };
	if (off >= st->len || len > st->len - off)
		return;
	err = load_table(f, q, st, st->first + (uint32_t)(off / table_covers(q)));
	first = err < 0 ? err : unit_place(q, st, in_table);
	if (first < 0) {
		ret->error = (int)first;
		return;
	}
	for (done = unit - (in_table & (unit - 1)); done < len && in_table + done < table_covers(q); done += unit) {
		next = unit_place(q, st, in_table + done);
		if (next != (first ? first + (int64_t)done : 0))
			break;
	}
	ret->kind = first ? EXTENT_DATA : EXTENT_ZERO;
	ret->error = 0;
	ret->host_off = (uint64_t)first;
	ret->len = MIN(done, len);
}
