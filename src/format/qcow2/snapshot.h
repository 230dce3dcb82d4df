/* SPDX-License-Identifier: MIT */
/*
 * qcow2/snapshot.h - what the files about internal snapshots share
 *
 *   snapshot.c         the snapshot table
 *   snapshot_walk.c    all that an L1 table refers to: examined, counted, given back, COPIED or not
 *   snapshot_header.c  the header leads to another snapshot table; the dirty bit around it
 *   snapshot_draft.c   a snapshot in the making, and the space of its state
 *   snapshot_ops.c     list, delete, apply
 *   snapshot_graph.c   what each holds alone and shares
 *   vmstate.c          reading the state of a snapshot
 *   vmstate_area.c     the state that stands behind the end of the active disk
 *
 * How the state of a virtual machine lies: as if it were data of the disk, from the first L1 entry on that the disk does
 * not need, its length rounded up to whole L2 tables.
 */
#ifndef VARVE_QCOW2_SNAPSHOT_H
#define VARVE_QCOW2_SNAPSHOT_H

#include "block/snapshot.h"
#include "format/qcow2/qcow2.h"

/* Bytes of the disk that one L2 table maps. */
static inline uint64_t table_covers(const struct qcow2 *q)
{
	return (uint64_t)q->l2_entries << q->cluster_bits;
}

/* The tables that a disk of that length needs: the index of the first L1 entry of a state. */
static inline uint64_t disk_tables(const struct qcow2 *q, uint64_t disk_len)
{
	return div_up(disk_len, table_covers(q));
}

/* ---- snapshot_walk.c ---- */

/* An L1 table in memory, host byte order, without COPIED flags. */
struct l1_copy {
	uint64_t *entries;
	uint32_t nr;
	const char *whose; /* for messages */
};

/* What it leads to lies in the file, where data may be, and is counted: nothing else is touched before that is known. */
int tables_verify(struct fiber *f, struct qcow2 *q, const struct l1_copy *l1, struct varve_error *err);
/*
 * +1 or -1 for every cluster, tables included. All or nothing, or *ret_whole is false: what was done could not be undone, and the
 * dirty bit has to stay.
 */
int tables_count(struct fiber *f, struct qcow2 *q, const struct l1_copy *l1, int delta, bool *ret_whole, struct varve_error *err);
/* -1 for every cluster once `gone` is durable, and the space goes back to the file system where nobody else needs it. */
int tables_release(struct fiber *f, struct qcow2 *q, const struct l1_copy *l1, order_mark gone, struct varve_error *err);
/* The entries of the L2 tables lose their COPIED flags, on disk, and in memory if the tables are those of the disk. */
int tables_clear_copied(struct fiber *f, struct qcow2 *q, const struct l1_copy *l1, bool active, struct varve_error *err);
/* What only the active disk refers to can be written in place again. */
int tables_restore_copied(struct fiber *f, struct qcow2 *q, struct varve_error *err);
/* The L1 table of a snapshot, from the file. Free ret->entries. */
int tables_read_l1(struct fiber *f, struct qcow2 *q, const struct qcow2_snapshot *s, struct l1_copy *ret,
		   struct varve_error *err);

/* ---- snapshot_header.c ---- */

/*
 * While counts and COPIED flags are changed they do not agree on the disk. The dirty bit (version 3) says so: after a cut
 * the next writer counts anew what is referred to.
 */
int snapshot_dirty_begin(struct fiber *f, struct qcow2 *q, struct varve_error *err);
/*
 * Everything done in between is durable before the bit goes. A change that has begun and is not ended has left something to be counted anew: then
 * the bit stays, whatever others end, until the image is opened again.
 */
int snapshot_dirty_end(struct fiber *f, struct qcow2 *q, struct varve_error *err);
/* The whole table, in memory. */
struct snapshots {
	struct qcow2_snapshot *list;
	uint32_t nr;
	uint64_t table_len; /* on disk */
};
int snapshots_open(struct fiber *f, struct qcow2 *q, struct snapshots *ret, struct varve_error *err);
void snapshots_close(struct snapshots *s);
/* The one that is meant; -ENOENT, or -EEXIST when it could be several. */
int snapshots_find(const struct snapshots *s, const struct snapshot_pick *pick, uint32_t *ret, struct varve_error *err);
/*
 * Writes the table without one entry (UINT32_MAX: all) to a new place and has the header lead there. The old one is given
 * back. *ret_mark: durable when the header is. clean: the change that has begun ends, and the dirty bit goes with the same write.
 */
int snapshots_write(struct fiber *f, struct qcow2 *q, const struct snapshots *s, uint32_t without, bool clean,
		    order_mark *ret_mark, struct varve_error *err);

/* ---- the driver's calls ---- */

int qcow2_snapshot_list(struct fiber *f, struct node *n, struct snapshot_info **ret_list, uint32_t *ret_nr,
			struct varve_error *err);
int qcow2_snapshot_create(struct fiber *f, struct node *n, const struct snapshot_want *want,
			  struct snapshot_draft **ret, struct varve_error *err);
int qcow2_snapshot_space(struct fiber *f, struct node *n, struct snapshot_draft *d, uint64_t len,
			 struct extent *ret_extent);
int qcow2_snapshot_commit(struct fiber *f, struct node *n, struct snapshot_draft *d, uint64_t state_len, char **ret_id,
			  struct varve_error *err);
void qcow2_snapshot_abort(struct fiber *f, struct node *n, struct snapshot_draft *d);
int qcow2_snapshot_delete(struct fiber *f, struct node *n, const struct snapshot_pick *pick, struct varve_error *err);
int qcow2_snapshot_apply(struct fiber *f, struct node *n, const struct snapshot_pick *pick, struct varve_error *err);
int qcow2_snapshot_state_open(struct fiber *f, struct node *n, const struct snapshot_pick *pick,
			      struct snapshot_state **ret, uint64_t *ret_len, struct varve_error *err);
void qcow2_snapshot_state_map(struct fiber *f, struct node *n, struct snapshot_state *st, uint64_t off, uint64_t len,
			      struct extent *ret);
void qcow2_snapshot_state_close(struct snapshot_state *st);
int qcow2_snapshot_graph(struct fiber *f, struct node *n, struct snapshot_usage **ret_list, uint32_t *ret_nr,
			 struct varve_error *err);
int qcow2_state_area_read(struct fiber *f, struct node *n, uint64_t off, void *buf, size_t len);
int qcow2_state_area_write(struct fiber *f, struct node *n, uint64_t off, const void *buf, size_t len);
/* Under l1_mutex: what stands behind the end of the disk goes, before the disk grows over its place. */
int state_area_clear(struct fiber *f, struct qcow2 *q, struct varve_error *err);

#endif
