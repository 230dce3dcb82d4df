/* SPDX-License-Identifier: MIT */
/*
 * qcow2/bitmap_note.h - enabled dirty bitmaps of an image that is in use: what is written is noted
 */
#ifndef VARVE_QCOW2_BITMAP_NOTE_H
#define VARVE_QCOW2_BITMAP_NOTE_H

#include "format/qcow2/bitmap_dir.h"

/* Of bits, of all bitmaps of an image. Memory is used for those that are set, and for their neighbours in a page. */
#define NOTED_BYTES_MAX MiB(512)

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
/*
 * The disk gets another length, together with its bitmaps on disk (bitmap_resize.c): memory for the new one is made beforehand, and comes
 * into use when no request is in flight. In ret, for each entry of the directory: who notes writes for it, or NULL.
 */
struct noted;
void bitmap_note_owners(const struct qcow2 *q, const struct bitmap_dir *d, struct noted **ret);
int bitmap_note_prepare(struct noted *b, uint64_t disk_len, uint32_t table_entries);
/* Bits of what is cut off are forgotten, those of what is added are clear. The bitmap has that place on disk. */
void bitmap_note_resize(struct noted *b, uint64_t table_off);
/* Instead of the last: everything stays as it is. */
void bitmap_note_unprepare(struct noted *b);

/* Without storing anything: the image was not opened after all, or cannot be written any more. */
void bitmap_note_free(struct qcow2 *q);

#endif
