/* SPDX-License-Identifier: MIT */
/*
 * qcow2/bitmap_note.h - enabled dirty bitmaps of an image that is in use: what is written is noted
 */
#ifndef VARVE_QCOW2_BITMAP_NOTE_H
#define VARVE_QCOW2_BITMAP_NOTE_H

#include "format/qcow2/bitmap_dir.h"

/*
 * The enabled bitmap b, which is not marked as in use yet, will note all writes from now on. Otherwise it is as if nobody noted
 * them: the log says why, and once it is marked it cannot be relied upon any more.
 */
void bitmap_note_begin(struct fiber *f, struct qcow2 *q, const struct qcow2_bitmap *b);
/* Any queue. [off, off + len) of the disk is about to be written, or to become something else. */
void bitmap_note_write(struct node *n, uint64_t off, uint64_t len);
/*
 * The image closes, nobody writes any more: what was noted is stored, and the marks go, durably. On failure (told in the log) the marks
 * stay. All memory is freed.
 */
void bitmap_note_end(struct fiber *f, struct qcow2 *q);
/* The same without storing anything: the image was not opened after all, or cannot be written any more. */
void bitmap_note_free(struct qcow2 *q);

#endif
