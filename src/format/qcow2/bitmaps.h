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

struct qcow2_bitmap {
	uint64_t table_off;
	uint32_t table_entries;
	uint32_t flags;
	uint8_t type;
	uint8_t granularity_bits; /* 0 .. 63 */
	char *name;
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
