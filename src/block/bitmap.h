/* SPDX-License-Identifier: MIT */
/*
 * block/bitmap.h - persistent dirty bitmaps of an image, as the rooms above see them
 *
 * A bitmap has a bit for each `granularity` bytes of the disk: set when they were written since the bitmap was made or
 * cleared. Bit i is bit i % 8 of byte i / 8. The driver's calls are in block/node.h; all run on fibers of the home queue.
 */
#ifndef VARVE_BLOCK_BITMAP_H
#define VARVE_BLOCK_BITMAP_H

#include <stdbool.h>
#include <stdint.h>

#define BITMAP_NAME_MAX 1023 /* bytes */
#define BITMAP_GRANULARITY_MIN 512u
#define BITMAP_GRANULARITY_MAX (2u << 30)

struct node;

struct bitmap_info {
	char *name;
	uint64_t granularity;
	bool enabled;	   /* whoever writes to the disk has to note it there */
	bool inconsistent; /* somebody wrote and did not: what it says is worth nothing */
};

enum bitmap_action { BITMAP_ADD, BITMAP_REMOVE, BITMAP_CLEAR, BITMAP_ENABLE, BITMAP_DISABLE, BITMAP_MERGE };

struct bitmap_change {
	enum bitmap_action action;
	const char *name;
	uint64_t granularity; /* ADD: 0: what suits the image */
	bool disabled;	      /* ADD */
	struct node *source;  /* MERGE: a format node of the same home queue; may be the same */
	const char *source_name;
};

/* A bitmap that is being read. */
struct bitmap_bits {
	uint64_t granularity, nr_bits;
	uint64_t disk_len;
};

#endif
