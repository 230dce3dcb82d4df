/* SPDX-License-Identifier: MIT */
/*
 * vu_ring_packed.h - the driver's side of a packed virtqueue; for vu_ring.c only
 *
 * Owns:    nothing; works on a struct vu_ring.
 * Assumes: as vu_ring.h.
 * Never:   knows of eventfds or waiting, which both kinds of ring share.
 */
#ifndef VU_RING_PACKED_H
#define VU_RING_PACKED_H

#include "vu_ring.h"

/* An empty ring that begins at the position base (as vu_ring_base() gives it). */
void vu_packed_reset(struct vu_ring *r, uint16_t base);

/* As vu_ring_add(), vu_ring_reap(). */
int vu_packed_add(struct vu_ring *r, const struct vu_seg *segs, unsigned nr_segs, void *cookie);
int vu_packed_reap(struct vu_ring *r, struct vu_done *done, unsigned max);

/* Show what was added since the last time. Returns whether the device wants a kick. */
bool vu_packed_show(struct vu_ring *r);

/* Is something finished? Ask to be told when the next request is; ask not to be told. */
bool vu_packed_has_used(const struct vu_ring *r);
void vu_packed_call_on(struct vu_ring *r);
void vu_packed_call_off(struct vu_ring *r);

#endif
