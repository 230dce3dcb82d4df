/* SPDX-License-Identifier: MIT */
/*
 * qcow2/bitmap_resize.h - the disk gets another length, and its persistent dirty bitmaps with it
 */
#ifndef VARVE_QCOW2_BITMAP_RESIZE_H
#define VARVE_QCOW2_BITMAP_RESIZE_H

#include "format/qcow2/bitmap_dir.h"

struct bitmap_resize;

/* Only whether bitmap_resize_begin() would find it possible. Under the same locks. */
int bitmap_resize_fits(struct fiber *f, struct qcow2 *q, uint64_t len, struct varve_error *err);
/*
 * Under snapshot_mutex and resize_mutex until bitmap_resize_end(), and not under l1_mutex. Everything that bitmaps for a disk of that length need is made; if
 * that is not possible, the words say for which of them, and nothing has changed. After a success, and before anything of the disk is
 * given up, they are marked if it gets shorter. *ret NULL: there are none.
 */
int bitmap_resize_begin(struct fiber *f, struct qcow2 *q, uint64_t len, struct bitmap_resize **ret, struct varve_error *err);
/*
 * The disk has that length, these bitmaps, and that L1 table (NULL: as before), durably and at once; everything queued before is
 * durable. No request is in flight.
 */
int bitmap_resize_commit(struct fiber *f, struct qcow2 *q, struct bitmap_resize *r, const struct new_l1 *l1, struct varve_error *err);
/* After a commit that failed: the header is queued all the same, and may become durable with the next flush. */
bool bitmap_resize_done(const struct bitmap_resize *r);
/* Takes NULL. Without a commit everything that was made is given back. */
void bitmap_resize_end(struct qcow2 *q, struct bitmap_resize *r);

#endif
