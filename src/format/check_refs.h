/* SPDX-License-Identifier: MIT */
/*
 * format/check_refs.h - counting references to host clusters, in bounded memory
 *
 * Two structures, both sparse, because a file may be long and hold little:
 *
 *   refs    for each host cluster: how often it is referred to, and in which ways. Covers a window of the file; when
 *           memory runs out the window gets shorter, and the caller comes back for the rest.
 *   l2_set  for each L2 table: how many L1 entries (of all L1 tables) point to it. An L2 table is then read once,
 *           however many snapshots share it, and however often a hostile L1 table names it.
 */
#ifndef VARVE_FORMAT_CHECK_REFS_H
#define VARVE_FORMAT_CHECK_REFS_H

#include "base/math.h"

/* A counter: flags above, number of references below. */
#define REF_COPIED_SET (1u << 31)   /* an entry of the active tables says COPIED */
#define REF_COPIED_CLEAR (1u << 30) /* an entry of the active tables does not */
#define REF_METADATA (1u << 29)	    /* holds metadata */
#define REF_OVERLAP (1u << 28)	    /* holds metadata, and something else too */
#define REF_BLAME (1u << 27)	    /* damaged: name the guest offsets that use it */
#define REF_COUNT_MAX ((1u << 27) - 1)

#define REF_PAGE 64u /* clusters */

struct ref_page {
	struct ref_page *next;
	uint64_t first; /* cluster, multiple of REF_PAGE */
	uint32_t counters[REF_PAGE];
};

struct refs {
	uint64_t from, to; /* the window, in clusters */
	struct ref_page **buckets;
	size_t nr_buckets, nr_pages, max_pages;
	struct ref_page *last; /* found last: neighbours come together */
};

/* max_pages: of memory, about 288 bytes each. */
int refs_init(struct refs *r, size_t max_pages);
void refs_free(struct refs *r);

/* Starts the window [from, to) with nothing counted. */
void refs_window(struct refs *r, uint64_t from, uint64_t to);

/*
 * Counts `weight` references. Clusters outside of the window are left alone. May pull r->to in (multiples of REF_PAGE).
 * -ENOMEM only when there is next to no memory at all.
 */
int refs_add(struct refs *r, uint64_t cluster, uint64_t weight, uint32_t flags);

/* 0 outside of what was counted. */
uint32_t refs_get(struct refs *r, uint64_t cluster);

/* Only flags, and only where something was counted. */
void refs_mark(struct refs *r, uint64_t cluster, uint32_t flags);

/* All pages by place, in a malloc'd array; NULL: no memory. */
struct ref_page **refs_sorted(const struct refs *r, size_t *ret_nr);

/* ---- */

struct l2_slot {
	uint64_t cluster; /* 0: free (cluster 0 is the header's) */
	uint32_t weight;  /* saturates */
	uint32_t seen;	  /* number of the last walk that met it */
};

struct l2_set {
	struct l2_slot *slots;
	size_t nr_slots, nr, max;
};

int l2_set_init(struct l2_set *s, size_t max);
void l2_set_free(struct l2_set *s);
/* -EFBIG: more than max tables; -ENOMEM. */
int l2_set_add(struct l2_set *s, uint64_t cluster, uint32_t weight);
/* NULL: not there. Valid until the next add. */
struct l2_slot *l2_set_find(const struct l2_set *s, uint64_t cluster);

#endif
