/* SPDX-License-Identifier: MIT */
/*
 * qcow2/packed.h - tables whose entries have no fixed length, read from front to end
 *
 * The snapshot table and the bitmap directory: each entry says itself how long it is, and begins at a multiple of 8.
 */
#ifndef VARVE_QCOW2_PACKED_H
#define VARVE_QCOW2_PACKED_H

#include "block/node.h"

#define PACKED_WINDOW_LEN KiB(256) /* the most that packed_take() takes at once */

struct packed {
	struct node *file;
	const char *what;	  /* for messages */
	uint64_t start, pos, end; /* host_off: of the table, of the next byte, of what may be read */
	uint64_t max_len;	  /* bytes the table may have */
	uint8_t *window;
	uint64_t window_off;
	size_t window_len;
	struct varve_error *err;
};

/* len: of the table, UINT64_MAX: as it says itself. The table must begin, and end if len is given, inside the file. */
int packed_open(struct fiber *f, struct packed *p, struct node *file, const char *what, uint64_t off, uint64_t len,
		uint64_t max_len, struct varve_error *err);
void packed_close(struct packed *p);

/* The next len bytes, which belong to entry nr. *ret is good until the next call. */
int packed_take(struct fiber *f, struct packed *p, uint32_t nr, size_t len, const uint8_t **ret);

/* To the beginning of the next entry. The padding of the last one need not be there. */
void packed_align(struct packed *p);

/* malloc'd and NUL-terminated; NULL: no memory. */
char *packed_string(const uint8_t *bytes, size_t len);

#endif
