/* SPDX-License-Identifier: MIT */
/*
 * qcow2/bitmaps.h - the directory of persistent dirty bitmaps (read)
 */
#ifndef VARVE_QCOW2_BITMAPS_H
#define VARVE_QCOW2_BITMAPS_H

#include "format/qcow2/qcow2.h"

#define BITMAP_IN_USE (1u << 0)
#define BITMAP_AUTO (1u << 1)

#define BITMAP_TABLE_ENTRIES_MAX 0x8000000u

/* docs/spec/qcow2.md, "Bitmaps". Extra data and the name follow; entries begin at multiples of 8. */
struct bitmap_disk {
	be64 table_off;		  /*  0 */
	be32 table_entries;	  /*  8 */
	be32 flags;		  /* 12 */
	uint8_t type;		  /* 16  1: dirty tracking */
	uint8_t granularity_bits; /* 17  0 .. 63 */
	be16 name_len;		  /* 18  1 .. 1023, not NUL-terminated */
	be32 extra_len;		  /* 20 */
};
static_assert(sizeof(struct bitmap_disk) == 24, "see the spec");

struct qcow2_bitmap {
	uint64_t table_off;
	uint32_t table_entries;
	uint32_t flags;
	uint8_t type;
	uint8_t granularity_bits; /* 0 .. 63 */
	char *name;
	uint32_t extra_len;
	uint64_t at;	    /* of its entry in the directory */
	uint32_t entry_len; /* with padding, which the last one may lack */
};

/*
 * True if the directory is to be trusted: the image has one, and whoever wrote last knew of it. Otherwise its space is
 * as good as free.
 */
bool bitmaps_valid(const struct qcow2_header *h);

/* Reads and checks the whole directory. *ret_list has h->nr_bitmaps elements; free with bitmaps_free(). */
int bitmaps_read(struct fiber *f, struct node *file, const struct qcow2_header *h, struct qcow2_bitmap **ret_list,
		 struct varve_error *err);
void bitmaps_free(struct qcow2_bitmap *list, uint32_t nr);

#endif
