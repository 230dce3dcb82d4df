/* SPDX-License-Identifier: MIT */
/*
 * job/source.h - disks that are read one behind the other, for convert.c and emit.c
 */
#ifndef VARVE_JOB_SOURCE_H
#define VARVE_JOB_SOURCE_H

#include "block/node.h"

#define SALVAGE_LEN KiB(4) /* what disks lose at once, mostly */
#define SALVAGE_SECTOR_LEN 512

struct convert_source {
	struct node *top;
	uint64_t start; /* behind the sources before it; the job sets it */
};

/* The one that holds off. sources: at least one, by start. */
const struct convert_source *source_at(const struct convert_source *sources, unsigned nr, uint64_t off);

/* Guest's bytes of one source, off from its start: 0 or a negative errno. */
int source_read(struct fiber *f, const struct convert_source *s, uint64_t off, uint8_t *buf, uint64_t len);

/*
 * The same in the smallest pieces, sectors of 512 bytes where one of SALVAGE_LEN cannot be read: what cannot be read becomes zeroes, and is
 * told, if there is a report().
 */
void source_salvage(struct fiber *f, const struct convert_source *s, uint64_t off, uint8_t *buf, uint64_t len,
		    void (*report)(void *user_data, const char *text), void *user_data);

#endif
