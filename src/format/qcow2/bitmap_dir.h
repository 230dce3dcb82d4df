/* SPDX-License-Identifier: MIT */
/*
 * qcow2/bitmap_dir.h - changing persistent dirty bitmaps
 *
 *   bitmap_dir.c   the directory, as bytes: entries keep what is in them that we do not know
 *   bitmap_bits.c  the bits of one bitmap: reading them, making a table of them
 *   bitmap_ops.c   the driver's calls
 *   bitmap_note.c  what is written while the image is in use
 *   bitmap_resize.c  the disk gets another length, and they with it
 */
#ifndef VARVE_QCOW2_BITMAP_DIR_H
#define VARVE_QCOW2_BITMAP_DIR_H

#include "block/bitmap.h"
#include "format/qcow2/bitmaps.h"

struct bitmap_dir {
	uint8_t *bytes;
	size_t len;
	struct qcow2_bitmap *list; /* nr of them, as they are in bytes */
	uint32_t nr;
};

/* An image without bitmaps has an empty one. */
int bitmap_dir_load(struct fiber *f, struct qcow2 *q, struct bitmap_dir *d, struct varve_error *err);
void bitmap_dir_free(struct bitmap_dir *d);
/* UINT32_MAX: none of that name. */
uint32_t bitmap_dir_find(const struct bitmap_dir *d, const char *name);
/* In memory: */
int bitmap_dir_append(struct bitmap_dir *d, const struct qcow2_bitmap *b);
void bitmap_dir_remove(struct bitmap_dir *d, uint32_t i);
void bitmap_dir_set(struct bitmap_dir *d, uint32_t i, uint64_t table_off, uint32_t flags);
void bitmap_dir_set_entries(struct bitmap_dir *d, uint32_t i, uint32_t table_entries);
/* Can the image have this directory? To be asked before anything is made for it: what is refused leaves the file as it was. */
int bitmap_dir_fits(struct fiber *f, struct qcow2 *q, const struct bitmap_dir *d, struct varve_error *err);
/* The image has this directory, durably and at once, and everything queued before is durable. The old one's space is free. */
int bitmap_dir_commit(struct fiber *f, struct qcow2 *q, const struct bitmap_dir *d, struct varve_error *err);
/* Another L1 table of the disk; who has made it holds l1_mutex, and changes q->l1 and q->h.l1_* when the header leads there. */
struct new_l1 {
	uint64_t off;
	uint32_t entries;
};
/* The same in two steps, and the disk has that length and L1 table (NULL: as before) in the same instant. The second takes over, or frees, what the first made. */
int bitmap_dir_put(struct fiber *f, struct qcow2 *q, const struct bitmap_dir *d, uint64_t *ret_off, struct varve_error *err);
int bitmap_dir_switch(struct fiber *f, struct qcow2 *q, const struct bitmap_dir *d, uint64_t off, const uint64_t *disk_len,
		      const struct new_l1 *l1, struct varve_error *err);
/* The header that bitmap_dir_switch() would write, for qcow2_header_fits(). Under l1_mutex. */
void bitmap_dir_header(const struct qcow2 *q, const struct bitmap_dir *d, uint64_t off, const uint64_t *disk_len,
		       struct qcow2_header *ret);
/* Only flags are others than on disk: these become durable in their place, after everything that is queued. */
int bitmap_dir_put_flags(struct fiber *f, struct qcow2 *q, const struct bitmap_dir *d, struct varve_error *err);
/*
 * Before the image is written: the bitmaps that are to be up to date are marked, durably, and begin to note what is written
 * (bitmap_note.h). 1: there is nothing left that could be relied upon, the autoclear bit must go.
 */
int bitmap_dir_mark_in_use(struct fiber *f, struct qcow2 *q, struct varve_error *err);

struct qcow2_bits {
	struct bitmap_bits bits;
	struct qcow2 *q;
	uint64_t *table; /* host byte order */
	uint64_t nr_bytes;
	uint32_t nr;
};

/* Checks everything that is in the table. */
int bits_open(struct fiber *f, struct qcow2 *q, const struct qcow2_bitmap *b, struct qcow2_bits **ret, struct varve_error *err);
void bits_close(struct qcow2_bits *h);
/* Nothing of it lies over tables of the image: to be asked before any of its space is given back while the disk is in use. */
int bits_check_places(const struct qcow2_bits *h, const struct qcow2_bitmap *disk, struct varve_error *err);
int bits_read(struct fiber *f, const struct qcow2_bits *h, uint64_t off, uint8_t *buf, size_t len);
/* Bytes [off, off + len) of a bitmap of that granularity that says what the source says. */
int bits_read_as(struct fiber *f, struct node *source, struct bitmap_bits *bits, uint64_t granularity, uint64_t off, uint8_t *buf,
		 size_t len);

/* Entries of the table of a bitmap that is made for a disk of that length. -EFBIG: too many. */
int bits_new_entries(const struct qcow2 *q, uint64_t disk_len, unsigned granularity_bits, uint32_t *ret, struct varve_error *err);
/* The cluster of bits that entry i stands for as it is on disk, with what stands behind the last bit. */
int bits_read_cluster(struct fiber *f, const struct qcow2_bits *h, uint32_t i, uint8_t *buf);
/*
 * Clusters for bits or a table of them; given back by alloc_free_metadata(). As those that the image was opened with, they are counted,
 * and not known to meta.c: so bits_check_places() can tell them from tables of the image.
 */
int bits_alloc(struct fiber *f, struct qcow2 *q, uint64_t nr, uint64_t *ret_off);
/* Queues a table for a bitmap without a bit set (NULL), or with these entries. */
int bits_put_table(struct fiber *f, struct qcow2 *q, const uint64_t *entries, uint32_t nr, uint64_t *ret_off);
/* Space of bits (entry by entry unless it is in `kept`) and their table. What led there is gone, durably. */
void bits_free_space(struct qcow2 *q, const struct qcow2_bitmap *b, const struct qcow2_bits *h, const uint64_t *kept);

int qcow2_bitmap_list(struct fiber *f, struct node *n, struct bitmap_info **ret_list, uint32_t *ret_nr,
		      struct varve_error *err);
int qcow2_bitmap_change(struct fiber *f, struct node *n, const struct bitmap_change *c, struct varve_error *err);
int qcow2_bitmap_open(struct fiber *f, struct node *n, const char *name, struct bitmap_bits **ret, struct varve_error *err);
int qcow2_bitmap_read(struct fiber *f, struct node *n, struct bitmap_bits *bits, uint64_t off, void *buf, size_t len);
void qcow2_bitmap_close(struct node *n, struct bitmap_bits *bits);

#endif
