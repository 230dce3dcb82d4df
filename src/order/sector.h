/* SPDX-License-Identifier: MIT */
/*
 * order/sector.h - the queued bytes: 512-byte sectors, each belonging to one section
 *
 * One hash table holds all sectors of all sections. A place may be queued in several sections at once; its sectors
 * are then found newest section first.
 */
#ifndef VARVE_ORDER_SECTOR_H
#define VARVE_ORDER_SECTOR_H

#include <sys/queue.h>

#include "base/math.h"

#define SECTOR_LEN 512u

struct sector {
	struct sector *hash_next;
	struct sector *next;	     /* in the section's list */
	uint64_t nr;		     /* off / SECTOR_LEN */
	uint64_t section;	     /* number of the section */
	uint8_t first_event, event;  /* of the first put that has one, of the last put */
	uint64_t valid[SECTOR_LEN / 64]; /* one bit for each queued byte */
	uint8_t bytes[SECTOR_LEN];
};

/* What one queued sector costs, with its share of the hash table. */
#define SECTOR_COST (sizeof(struct sector) + 2 * sizeof(struct sector *))

struct sector_table {
	struct sector **buckets;
	size_t nr_buckets; /* power of two */
	size_t nr;
};

int sector_table_init(struct sector_table *t);
/* Frees the sectors too. */
void sector_table_free(struct sector_table *t);

/* The newest queued sector at that place, NULL: none. */
struct sector *sector_newest(const struct sector_table *t, uint64_t nr);
/* The next older one. */
struct sector *sector_older(const struct sector *s);
/* The one of a given section. */
struct sector *sector_find(const struct sector_table *t, uint64_t nr, uint64_t section);

/* Puts s (nr and section set) in its place. Never fails: a table that cannot grow gets longer chains. */
void sector_insert(struct sector_table *t, struct sector *s);
void sector_remove(struct sector_table *t, struct sector *s);

/* Any byte of [from, from + len) queued in s? from + len <= SECTOR_LEN in all of these. */
bool sector_has(const struct sector *s, unsigned from, unsigned len);
void sector_fill(struct sector *s, unsigned from, const uint8_t *bytes, unsigned len);
/*
 * Copies the newest queued bytes of [from, from + len) to buf, which belongs to byte `from`; leaves the others of buf
 * alone. newest: of that place, older versions show through where it has no bytes.
 */
void sector_overlay(const struct sector *newest, unsigned from, uint8_t *buf, unsigned len);
/* The first stretch of queued bytes that begins at or behind *from. False: none. */
bool sector_run(const struct sector *s, unsigned *from, unsigned *ret_len);

/* Sorts a section's list by place. No memory needed. */
struct sector *sector_sort(struct sector *list);

#endif
