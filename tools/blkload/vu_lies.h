/* SPDX-License-Identifier: MIT */
/*
 * vu_lies.h - what a guest must not put into a split ring, by name
 *
 * Owns:    nothing.
 * Assumes: a queue that is running and has nothing in flight.
 * Never:   kicks: whoever tells a lie does that, and looks for what becomes of it (vu_raw_wait_broken()).
 */
#ifndef VU_LIES_H
#define VU_LIES_H

#include <stdbool.h>

#include "vu_front.h"

/* Places in a liar's room. */
#define VU_LIAR_ROOM	0x10000u
#define VU_LIAR_HEADER	0x100u
#define VU_LIAR_STATUS	0x200u
#define VU_LIAR_TABLE	0x1000u
#define VU_LIAR_DATA	0x8000u

struct vu_liar {
	struct vu_ring *ring;
	const struct vu_mem *mem;
	uint8_t *room;		/* VU_LIAR_ROOM bytes of guest memory ... */
	uint64_t room_addr;	/* ... as the guest sees them */
};

/*
 * Room, and in the first three descriptors an honest request (header, 512 bytes to read, status) that is not
 * offered. False: there is no guest memory left.
 */
bool vu_liar_init(struct vu_liar *l, struct vu_front *f, unsigned q);

struct vu_lie {
	const char *name;
	void (*tell)(const struct vu_liar *l);	/* offers something, after vu_liar_init() */
};

extern const struct vu_lie vu_lies[];
extern const unsigned vu_nr_lies;

#endif
