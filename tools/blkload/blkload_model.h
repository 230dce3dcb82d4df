/* SPDX-License-Identifier: MIT */
/*
 * blkload_model.h - what the disk must hold: the generation of every sector that blkload wrote
 *
 * Owns:    one 32-bit number for each sector of the range under test.
 * Assumes: no two requests that touch the same sector are in flight together when one of them
 *          writes (blkload's busy map sees to that); different sectors, different threads.
 * Never:   judges a sector whose content it cannot know: never written, discarded, or under a
 *          write that failed.
 *
 * A written sector is a function of (seed, sector number, generation): four words that say so,
 * and 60 words of random numbers drawn from them. So found bytes can be told apart: an older
 * write, another sector's data, a torn sector, zeroes, something foreign.
 */
#ifndef BLKLOAD_MODEL_H
#define BLKLOAD_MODEL_H

#include <stdbool.h>
#include <stdint.h>

#include "vu_util.h"

#define MODEL_UNKNOWN	0u
#define MODEL_ZEROES	UINT32_MAX
/* Everything between is the generation of the last acknowledged write. */

struct model {
	uint64_t seed;
	uint64_t first_sector;
	uint64_t nr_sectors;
	uint32_t *gen;		/* in memory that is only taken when it is written */
};

/* All sectors of the range are MODEL_UNKNOWN at first. */
int model_init(struct model *m, uint64_t seed, uint64_t first_sector, uint64_t nr_sectors,
	       struct vu_err *err);
void model_free(struct model *m);

/* Remember gen for nr sectors from sector (a disk sector number) on. */
void model_set(struct model *m, uint64_t sector, uint64_t nr, uint32_t gen);

/* True when something is known of at least one of these sectors. */
bool model_known(const struct model *m, uint64_t sector, uint64_t nr);

/* The bytes of nr sectors at generation gen, into buf. */
void model_fill(const struct model *m, uint64_t sector, uint64_t nr, uint32_t gen, uint8_t *buf);

/*
 * Compare what was read with what is known. Returns the number of wrong sectors and describes
 * the first of them in *ret_first: its number, what was expected, what was found.
 */
unsigned model_check(const struct model *m, uint64_t sector, uint64_t nr, const uint8_t *buf,
		     struct vu_err *ret_first);

#endif
