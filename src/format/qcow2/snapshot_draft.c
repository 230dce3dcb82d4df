/* SPDX-License-Identifier: MIT */
/*
 * qcow2/snapshot_draft.c - a snapshot in the making, and the space of its state
 *
 *     create ─▶ (freeze) ─▶ space, space, ... ─▶ (freeze) ─▶ commit
 *                  │                                            └ the header leads to it: it exists
 *                  └ counts +1, nothing of the disk may be written in place any more
 *
 * The state's L2 tables are written while it grows; one is in memory. Nothing refers to them, nor to the state, before the
 * commit, so it goes into the snapshot without being copied or counted again.
 *
 * Owns:    the draft: the L1 table of the moment when the disk was frozen, and the tables of the state.
 * Assumes: fibers of the home queue; one caller at a time for each draft.
 * Never:   leaves a COPIED flag on what two can reach. What a cut leaves of a draft is a leak.
 */
#include "format/qcow2/snapshot.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "format/qcow2/sites.h"
#include "format/qcow2/stock.h"

/* A long state gets space for as much again, in this range. */
#define AHEAD_LEN_MIN MiB(32)
#define AHEAD_LEN_MAX MiB(128)

struct snapshot_draft {
	char *name, *id; /* id NULL: the next number */
	struct snapshot_want want;
	unsigned words; /* of an L2 entry */

	bool frozen;
	bool begun; /* what snapshot_dirty_end() ends */
	uint64_t disk_len; /* then */
	struct l1_copy l1;

	uint64_t *tables; /* host_off of the state's L2 tables that are written */
	uint32_t nr_tables;
	uint64_t state_len;  /* that has got space */
	be64 *table;	     /* the one that grows */
	uint32_t nr_entries; /* in it */
};

/* ---- freezing ---- */

/* Under l1_mutex, the disk drained. */
static int copy_l1(struct qcow2 *q, struct snapshot_draft *d, struct varve_error *err)
{
	d->disk_len = q->h.disk_len;
	d->l1.nr = (uint32_t)MIN(disk_tables(q, d->disk_len), (uint64_t)q->h.l1_entries);
	d->l1.whose = "the disk";
	d->l1.entries = malloc(MAX(d->l1.nr, 1u) * sizeof(d->l1.entries[0]));
	if (!d->l1.entries)
		return varve_error_set(err, -ENOMEM, "L1 table: out of memory");
	for (uint32_t i = 0; i < d->l1.nr; i++)
		d->l1.entries[i] = q->l1[i] & ~QCOW2_COPIED;
	return 0;
}

/* The active L1 table, from now on shared in all that the disk has. */
static int share_l1(struct fiber *f, struct qcow2 *q, const struct l1_copy *l1)
{
	enum { CHUNK = 512 };
	be64 disk[CHUNK];

	/* All of it in memory, whatever can be queued: what is taken back then is what was counted. */
	for (uint32_t i = 0; i < l1->nr; i++)
		q->l1[i] &= ~QCOW2_COPIED;
	for (uint32_t i = 0; i < l1->nr; i += CHUNK) {
		uint32_t nr = MIN(l1->nr - i, (uint32_t)CHUNK);
		int ret;

		for (uint32_t k = 0; k < nr; k++)
			disk[k] = be64_put(q->l1[i + k]);
		ret = order_put(f, q->order, q->h.l1_off + i * 8ull, disk, nr * 8ull, ORDER_NONE, NULL);
		if (ret < 0)
			return ret;
	}
	return 0;
}

static int dirty_end(struct fiber *f, struct qcow2 *q, struct snapshot_draft *d, struct varve_error *err)
{
	d->begun = false;
	return snapshot_dirty_end(f, q, err);
}

/*
 * Counts and flags, in no order among themselves: the dirty bit is durable. (Version 2 has none: a cut in here leaves counts
 * that are too high, and flags that do not agree with them; both are harmless, and check -r mends them.)
 */
static int freeze_locked(struct fiber *f, struct qcow2 *q, struct snapshot_draft *d, struct varve_error *err)
{
	int ret = copy_l1(q, d, err);
	bool whole;

	if (ret == 0)
		ret = tables_verify(f, q, &d->l1, err);
	if (ret == 0)
		ret = snapshot_dirty_begin(f, q, err);
	if (ret < 0)
		return ret;
	d->begun = true;
	ret = tables_count(f, q, &d->l1, 1, &whole, err);
	if (ret < 0) {
		/* Counts are as before; else they are too high where flags say "used once", and the next writer counts anew. */
		if (whole)
			(void)dirty_end(f, q, d, NULL);
		return ret;
	}
	d->frozen = true; /* from here on there is something to take back */
	q->nr_frozen++;
	/*
	 * The tables first: if the rest fails, guests go on before it is taken back. Who changed a table in place then would have references taken
	 * back that were never counted, and space would be free that he uses.
	 */
	ret = share_l1(f, q, &d->l1);
	if (ret < 0)
		return varve_error_errno(err, ret, "changing the L1 table");
	return tables_clear_copied(f, q, &d->l1, true, err);
}

static void draft_free(struct qcow2 *q, struct snapshot_draft *d)
{
	q->nr_drafts--;
	q->nr_frozen -= d->frozen;
	free(d->name);
	free(d->id);
	free(d->l1.entries);
	free(d->tables);
	free(d->table);
	free(d);
}

/*
 * With the disk drained: nothing is in flight under a mapping that said "may be written in place", and whoever asks next is
 * told otherwise. Jobs and a change of the length do not come in by the door: the lock of all clusters keeps their changes of
 * the mapping out, and the grace period waits for what they have in flight.
 */
static int freeze(struct fiber *f, struct qcow2 *q, struct snapshot_draft *d, struct varve_error *err)
{
	struct range all;
	int ret;

	node_drain_begin(f, d->want.door);
	range_lock(f, &q->node->ranges, &all, 0, UINT64_MAX);
	fiber_lock(f, &q->l1_mutex);
	ret = freeze_locked(f, q, d, err);
	fiber_unlock(&q->l1_mutex);
	node_grace(f, q->node);
	range_unlock(&q->node->ranges, &all);
	node_drain_end(d->want.door);
	return ret;
}

/* ---- create ---- */

static int check_names(const struct snapshots *s, const struct snapshot_want *want, struct varve_error *err)
{
	if (!*want->name || strlen(want->name) > SNAPSHOT_NAME_MAX)
		return varve_error_set(err, -EINVAL, "the name of a snapshot has 1 to %d bytes", SNAPSHOT_NAME_MAX);
	if (want->id && (!*want->id || strlen(want->id) > SNAPSHOT_NAME_MAX))
		return varve_error_set(err, -EINVAL, "the id of a snapshot has 1 to %d bytes", SNAPSHOT_NAME_MAX);
	for (uint32_t i = 0; i < s->nr; i++) {
		if (!want->repeat && strcmp(s->list[i].name, want->name) == 0)
			return varve_error_set(err, -EEXIST, "there is a snapshot called '%s' already (id %s)", want->name,
					       s->list[i].id);
		if (want->id && strcmp(s->list[i].id, want->id) == 0)
			return varve_error_set(err, -EEXIST, "there is a snapshot with id %s already", want->id);
	}
	return s->nr < QCOW2_SNAPSHOTS_MAX ? 0 :
					     varve_error_set(err, -EFBIG, "the image has %u snapshots; more are not allowed",
							     s->nr);
}

static int check_image(struct qcow2 *q, struct varve_error *err)
{
	if (q->external)
		return varve_error_set(err, -ENOTSUP, "an image with an external data file has no internal snapshots: its clusters are "
						      "not counted");
	return q->order ? qcow2_whole(q, err) : varve_error_set(err, -EACCES, "open read-only, its snapshots cannot be changed");
}

int qcow2_snapshot_create(struct fiber *f, struct node *n, const struct snapshot_want *want,
			  struct snapshot_draft **ret, struct varve_error *err)
{
	struct qcow2 *q = node_state(n);
	struct snapshots s = { 0 };
	struct snapshot_draft *d;
	int r = check_image(q, err);

	if (r < 0)
		return r;
	fiber_lock(f, &q->snapshot_mutex);
	r = snapshots_open(f, q, &s, err);
	if (r == 0)
		r = check_names(&s, want, err);
	if (r == 0)
		r = qcow2_begin_changes(f, q, err);
	snapshots_close(&s);
	fiber_unlock(&q->snapshot_mutex);
	if (r < 0)
		return r;
	d = calloc(1, sizeof(*d));
	if (d) {
		q->nr_drafts++;
		d->want = *want;
		d->words = q->l2_entry_len / 8;
		d->name = strdup(want->name);
		d->id = want->id ? strdup(want->id) : NULL;
		d->table = calloc(1, q->cluster_len);
	}
	if (!d || !d->name || (want->id && !d->id) || !d->table) {
		if (d)
			draft_free(q, d);
		return varve_error_set(err, -ENOMEM, "snapshot '%s': out of memory", want->name);
	}
	d->want.name = d->name;
	d->want.id = d->id;
	if (want->now) {
		fiber_lock(f, &q->snapshot_mutex);
		r = freeze(f, q, d, err);
		if (r == 0)
			r = dirty_end(f, q, d, err);
		fiber_unlock(&q->snapshot_mutex);
		if (r < 0) {
			qcow2_snapshot_abort(f, n, d);
			return r;
		}
	}
	*ret = d;
	return 0;
}

/* ---- the state ---- */

/* The table that grew is full, or the state ends: it goes to the file. */
static int put_table(struct fiber *f, struct qcow2 *q, struct snapshot_draft *d)
{
	uint64_t host_off, nr;
	order_mark mark;
	bool fresh;
	int ret;

	if (!(d->nr_tables & (d->nr_tables - 1))) { /* room for twice as many */
		uint64_t *more = realloc(d->tables, MAX(2 * d->nr_tables, 8u) * sizeof(more[0]));

		if (!more)
			return -ENOMEM;
		d->tables = more;
	}
	ret = alloc_clusters(f, q, 1, &host_off, &nr, &fresh, &mark);
	if (ret < 0)
		return ret;
	ret = order_put(f, q->order, host_off, d->table, q->cluster_len, ORDER_NONE, NULL);
	if (ret < 0) {
		alloc_undo(f, q, host_off, nr);
		return ret;
	}
	if (q->guards_inactive && meta_reserve(q, 1) == 0) /* no memory now: this one is guarded from the next open on */
		meta_add(q, host_off >> q->cluster_bits);
	d->tables[d->nr_tables++] = host_off;
	memset(d->table, 0, q->cluster_len);
	d->nr_entries = 0;
	return 0;
}

/* Not COPIED: these tables are never those of the active disk. All of the cluster is data. */
static void put_entry(struct snapshot_draft *d, uint64_t host_off)
{
	d->table[d->nr_entries * d->words] = be64_put(host_off);
	if (d->words > 1)
		d->table[d->nr_entries * d->words + 1] = be64_put(UINT32_MAX);
	d->nr_entries++;
}

int qcow2_snapshot_space(struct fiber *f, struct node *n, struct snapshot_draft *d, uint64_t len,
			 struct extent *ret_extent)
{
	struct qcow2 *q = node_state(n);
	uint64_t host_off, nr = div_up(len, q->cluster_len);
	order_mark mark;
	bool fresh;
	int ret = d->nr_entries == q->l2_entries ? put_table(f, q, d) : 0;

	if (ret == 0 && d->l1.nr + d->nr_tables + 1ull > QCOW2_L1_LEN_MAX / 8)
		ret = -EFBIG;
	if (ret < 0)
		return ret;
	if (d->state_len >= AHEAD_LEN_MIN)
		stock_lengthen(f, q, MIN(d->state_len, AHEAD_LEN_MAX));
	nr = MIN(nr, (uint64_t)(q->l2_entries - d->nr_entries));
	ret = alloc_clusters(f, q, nr, &host_off, &nr, &fresh, &mark);
	if (ret < 0)
		return ret;
	for (uint64_t i = 0; i < nr; i++)
		put_entry(d, host_off + (i << q->cluster_bits));
	d->state_len += nr << q->cluster_bits;
	*ret_extent = (struct extent){
		.kind = EXTENT_DATA, .node = n->file, .host_off = host_off, .len = nr << q->cluster_bits
	};
	return 0;
}

/* ---- abort ---- */

static void release_entries(struct qcow2 *q, const be64 *entries, uint32_t nr)
{
	for (uint32_t i = 0; i < nr; i++)
		alloc_free(q, be64_get(entries[i * (q->l2_entry_len / 8)]) & QCOW2_OFF_MASK, 1, ORDER_NONE, FREED_SNAPSHOT);
}

/*
 * The counts that the state has, and its tables. Nothing on disk refers to them; but tables were queued for writing, and
 * nobody gets their place before that is out of the way.
 */
static void release_state(struct fiber *f, struct qcow2 *q, struct snapshot_draft *d)
{
	order_mark all = order_all(q->order);

	release_entries(q, d->table, d->nr_entries);
	for (uint32_t i = 0; i < d->nr_tables; i++) {
		if (order_read(f, q->order, d->tables[i], d->table, q->cluster_len) == 0)
			release_entries(q, d->table, q->l2_entries);
		alloc_free(q, d->tables[i], 1, all, FREED_SNAPSHOT);
		(void)alloc_settle(f, q); /* what cannot be given back now is a leak at worst */
	}
	(void)alloc_settle(f, q);
}

void qcow2_snapshot_abort(struct fiber *f, struct node *n, struct snapshot_draft *d)
{
	struct qcow2 *q = node_state(n);

	release_state(f, q, d);
	if (d->frozen) {
		/*
		 * The disk as before. Failing in here leaves counts that are too high and flags that are not set: space
		 * and copies that are not needed, until check.
		 */
		fiber_lock(f, &q->snapshot_mutex);
		if ((d->begun || snapshot_dirty_begin(f, q, NULL) == 0) && tables_release(f, q, &d->l1, ORDER_NONE, NULL) == 0 &&
		    tables_restore_copied(f, q, NULL) == 0)
			(void)dirty_end(f, q, d, NULL);
		fiber_unlock(&q->snapshot_mutex);
	}
	if (order_flush(f, q->order) == 0)
		(void)alloc_settle(f, q);
	draft_free(q, d);
}

/* ---- commit ---- */

/* Ids are numbers, but for those that others made: the next is one more than the largest. */
static char *next_id(const struct snapshots *s)
{
	unsigned long long most = 0;
	char *id;

	for (uint32_t i = 0; i < s->nr; i++) {
		char *end;
		unsigned long long x = strtoull(s->list[i].id, &end, 10);

		if (!*end && *s->list[i].id >= '0' && *s->list[i].id <= '9' && x < UINT64_MAX)
			most = MAX(most, x);
	}
	return asprintf(&id, "%llu", most + 1) < 0 ? NULL : id;
}

/* The snapshot's own L1 table: the disk's, and behind it the state's. One without entries has no place. */
static int put_l1(struct fiber *f, struct qcow2 *q, struct snapshot_draft *d, struct qcow2_snapshot *s)
{
	uint32_t nr = d->l1.nr + d->nr_tables;
	uint64_t clusters = div_up(nr * 8ull, q->cluster_len);
	order_mark counted;
	be64 *disk;
	bool zero;
	int ret = nr ? alloc_metadata(f, q, clusters, &s->l1_off, &zero, &counted) : 0;

	if (ret < 0 || !nr)
		return ret;
	s->l1_entries = nr;
	disk = calloc(nr, sizeof(disk[0]));
	ret = disk ? 0 : -ENOMEM;
	for (uint32_t i = 0; ret == 0 && i < nr; i++)
		disk[i] = be64_put(i < d->l1.nr ? d->l1.entries[i] : d->tables[i - d->l1.nr]);
	if (ret == 0)
		ret = order_put(f, q->order, s->l1_off, disk, nr * 8ull, ORDER_NONE, NULL);
	free(disk);
	if (ret < 0)
		alloc_free_metadata(q, s->l1_off, clusters, order_all(q->order));
	return ret;
}

/* The list with room for one more, which is filled. */
static int add_entry(struct snapshots *s, const struct snapshot_draft *d, uint64_t state_len, struct varve_error *err)
{
	struct qcow2_snapshot *list = realloc(s->list, (s->nr + 2ull) * sizeof(list[0])), *e;

	if (!list)
		return varve_error_set(err, -ENOMEM, "snapshot table: out of memory");
	s->list = list;
	e = &list[s->nr];
	*e = (struct qcow2_snapshot){
		.date_s = d->want.date_s,
		.date_ns = d->want.date_ns,
		.vm_clock_ns = d->want.vm_clock_ns,
		.icount = d->want.icount,
		.vm_state_len = state_len,
		.disk_len = d->disk_len,
		.name = strdup(d->name),
		.id = d->id ? strdup(d->id) : next_id(s),
	};
	s->nr++;
	return e->name && e->id ? 0 : varve_error_set(err, -ENOMEM, "snapshot table: out of memory");
}

static int commit(struct fiber *f, struct qcow2 *q, struct snapshot_draft *d, uint64_t state_len, struct snapshots *s,
		  order_mark *ret_mark, struct varve_error *err)
{
	struct qcow2_snapshot *e;
	int ret = snapshots_open(f, q, s, err);

	if (ret == 0)
		ret = check_names(s, &d->want, err); /* others may have made some meanwhile */
	if (ret == 0 && d->nr_entries) {
		ret = put_table(f, q, d);
		if (ret < 0)
			varve_error_errno(err, ret, "cannot write a table of the state");
	}
	if (ret == 0 && !d->frozen)
		ret = freeze(f, q, d, err);
	if (ret == 0)
		ret = add_entry(s, d, state_len, err);
	if (ret < 0)
		return ret;
	e = &s->list[s->nr - 1];
	ret = put_l1(f, q, d, e);
	if (ret < 0)
		return varve_error_errno(err, ret, "cannot write an L1 table");
	ret = snapshots_write(f, q, s, UINT32_MAX, d->begun, ret_mark, err);
	d->begun &= ret < 0;
	if (ret < 0 && e->l1_entries)
		alloc_free_metadata(q, e->l1_off, div_up(e->l1_entries * 8ull, q->cluster_len), order_all(q->order));
	return ret;
}

int qcow2_snapshot_commit(struct fiber *f, struct node *n, struct snapshot_draft *d, uint64_t state_len, char **ret_id,
			  struct varve_error *err)
{
	struct qcow2 *q = node_state(n);
	struct snapshots s = { 0 };
	order_mark mark;
	int ret;

	fiber_lock(f, &q->snapshot_mutex);
	ret = qcow2_whole(q, err);
	if (ret == 0)
		ret = commit(f, q, d, state_len, &s, &mark, err);
	if (ret == 0 && ret_id)
		*ret_id = strdup(s.list[s.nr - 1].id);
	if (ret < 0) {
		fiber_unlock(&q->snapshot_mutex);
		snapshots_close(&s);
		qcow2_snapshot_abort(f, n, d);
		return ret;
	}
	/* It exists. That it cannot be made durable now is an error all the same: a cut would take it away. */
	ret = order_wait(f, q->order, mark);
	if (ret < 0)
		varve_error_errno(err, ret, "snapshot '%s' is made, but could not be made durable", d->name);
	(void)alloc_settle(f, q);
	fiber_unlock(&q->snapshot_mutex);
	snapshots_close(&s);
	draft_free(q, d);
	return ret;
}
