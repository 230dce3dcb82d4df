/* SPDX-License-Identifier: MIT */
/*
 * qcow2/l2.h - what every change of the mapping begins with, whatever the entries look like (l2.c, subcluster.c)
 */
#ifndef VARVE_QCOW2_L2_H
#define VARVE_QCOW2_L2_H

#include "format/qcow2/qcow2.h"

/* Guest clusters that are changed together: their entries stand in one piece of one table. */
struct run {
	uint64_t guest_off; /* as it was asked for: perhaps inside of the first cluster */
	uint32_t table, piece_nr;
	unsigned first, nr; /* entries within the piece */
};

/* The clusters that [off, off + len) touches, as far as their entries lie in one piece. */
struct run run_at(const struct qcow2 *q, uint64_t off, uint64_t len);
/* Where the run's first entry lies; the table exists. */
uint64_t run_host_off(const struct qcow2 *q, const struct run *run);
/* The piece with the run's entries, pinned, in a table that may be changed. */
int run_open(struct fiber *f, struct qcow2 *q, const struct run *run, struct piece **ret);
/* Gives up the reference that an entry (its first word) held; gone: the mark of the entry that replaces it. */
void release_entry(struct qcow2 *q, uint64_t entry, order_mark gone, enum freed why);
enum freed freed_by(enum unlink_mode mode);
/* Whoever asked for that wants the file system to have the space, and the operator lets him: for places that stay the image's. */
bool unlink_discards(const struct qcow2 *q, enum unlink_mode mode);
bool has_backing(const struct qcow2 *q);

#endif
