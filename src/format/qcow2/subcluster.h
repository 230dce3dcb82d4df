/* SPDX-License-Identifier: MIT */
/*
 * qcow2/subcluster.h - L2 entries of two words: a place, and a bitmap of what each 32nd of the cluster is
 *
 * docs/spec/qcow2.md, "Extended L2 entries". Other queues read the words one at a time, while the home queue changes them.
 * That no queue ever sees a place with a bitmap that does not belong to it:
 *
 *   readers    the bitmap first, then the place (both acquire)
 *   adding     the place first, then the bitmap (both release). Whoever sees the new bitmap sees the new place. Whoever
 *              sees the old one may see either place, and both are right for it: what the old bitmap calls data was
 *              copied to the new place before (or the place is new, and the old bitmap calls nothing data).
 *   taking     the bitmap first; then a grace period, after which nobody uses the old bitmap any more; then the place.
 *              Without the grace, a reader could take "data" from the old bitmap and look for it in no place.
 *   from a     as when taking: the bitmap, which means nothing as long as the place says "compressed"; a grace period;
 *   compressed then the place. Without the grace, a reader could take the empty bitmap of a compressed cluster for that
 *   cluster    of the new place: the backing image, or zeroes, would show where there was data.
 *   to a       as when adding: the place first. "Compressed" is right whatever the bitmap says.
 *   compressed
 *   cluster
 *
 * What is added again after it was taken has a grace period in between; so a reader never meets the bitmaps of two lives of
 * an entry. Changes of the bitmap alone, and of the COPIED flag, are changes of one word.
 *
 * With an external data file a cluster has only one place, its own: "adding" and "taking" change what the bitmap says and
 * whether there is a place at all, and the same order holds for these.
 */
#ifndef VARVE_QCOW2_SUBCLUSTER_H
#define VARVE_QCOW2_SUBCLUSTER_H

#include "format/qcow2/entry.h"
#include "format/qcow2/l2.h"

#define SUB_ALL 0xffffffffu /* subclusters: one bit for each */

struct wide_entry {
	uint64_t place;
	uint32_t data, zero;
};

static inline struct wide_entry wide_of(uint64_t place, uint64_t bitmap)
{
	return (struct wide_entry){ place, (uint32_t)bitmap, (uint32_t)(bitmap >> QCOW2_SUBCLUSTERS) };
}

static inline uint64_t wide_bitmap(const struct wide_entry *e)
{
	return (uint64_t)e->zero << QCOW2_SUBCLUSTERS | e->data;
}

/* Any queue. */
static inline struct wide_entry wide_get(const struct piece *p, unsigned i)
{
	uint64_t bitmap = entry_get(p, 2 * i + 1);

	return wide_of(entry_get(p, 2 * i), bitmap);
}

static inline unsigned sub_bits(const struct qcow2 *q)
{
	return q->cluster_bits - 5;
}
static_assert(QCOW2_SUBCLUSTERS == 1 << 5, "see sub_bits()");

static inline bool is_wide(const struct qcow2 *q)
{
	return q->l2_entry_len == 16;
}

/* No writer leaves such an entry; it is not read, nor written over. */
static inline bool wide_damaged(const struct qcow2 *q, const struct wide_entry *e)
{
	if (e->place & QCOW2_COMPRESSED)
		return false;
	return (e->place & (QCOW2_L2_RESERVED | QCOW2_ZERO)) || !is_aligned(e->place & QCOW2_OFF_MASK, q->cluster_len) ||
	       (e->data & e->zero) || (e->data && !(e->place & QCOW2_OFF_MASK) && !at_zero(q, e->place));
}

/* subcluster.c: what l2.c's functions of these names do, in units of subclusters. */
int sub_alloc(struct fiber *f, struct qcow2 *q, uint64_t off, uint64_t len, struct extent *ret);
int sub_alloc_external(struct fiber *f, struct qcow2 *q, uint64_t off, uint64_t len, struct extent *ret);
int sub_link(struct fiber *f, struct qcow2 *q, uint64_t off, const struct extent *extent);
int sub_link_zeroes(struct fiber *f, struct qcow2 *q, uint64_t off, uint64_t *len);
int sub_link_packed(struct fiber *f, struct qcow2 *q, uint64_t off, uint64_t entry);
/* Of [off, off + len), all in the run, whose piece is pinned. */
int sub_unlink(struct fiber *f, struct qcow2 *q, struct piece *p, const struct run *run, uint64_t off, uint64_t len,
	       enum unlink_mode mode);
/* 1: the cluster has a place of its own, so it is not to be compressed. 0: not; or negative. */
int sub_keeps_place(struct fiber *f, struct qcow2 *q, uint64_t off);

#endif
