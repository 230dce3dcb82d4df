/* SPDX-License-Identifier: MIT */
/*
 * qcow2/lazy.h - counts that fall behind on disk while the image is open
 */
#ifndef VARVE_FORMAT_QCOW2_LAZY_H
#define VARVE_FORMAT_QCOW2_LAZY_H

#include "format/cache.h"
#include "format/qcow2/qcow2.h"

/* on: the image, or who opens it, wants counts to be lazy. q->lazy stays NULL if not. */
int lazy_open(struct qcow2 *q, bool on, struct varve_error *err);
void lazy_close(struct qcow2 *q);

/*
 * Counts in piece p of a refcount block have changed in memory: they will be written when the image closes. *ret_mark is
 * durable when a crash leaves the image marked as one whose counts are to be made anew. Not durable by it: the length of the
 * file. -ENOMEM: take the change back.
 */
int lazy_count(struct fiber *f, struct qcow2 *q, struct piece *p, order_mark *ret_mark);

/* The dirty bit must stay, whatever else it was set for: counts are behind. */
bool lazy_behind(const struct qcow2 *q);
/* If it is set for that: it is durable. *ret_dirty: it is. */
int lazy_wait_dirty(struct fiber *f, struct qcow2 *q, bool *ret_dirty);

/* All counts become durable, as if they had never been lazy; the image stays marked. */
int lazy_write_out(struct fiber *f, struct qcow2 *q);
/* The same, and then the mark goes. For close: everything else has been flushed. */
int lazy_end(struct fiber *f, struct qcow2 *q);

#endif
