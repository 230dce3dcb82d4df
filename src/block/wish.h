/* SPDX-License-Identifier: MIT */
/*
 * block/wish.h - what the operator wants of a disk whatever its guest says: discard=, detect-zeroes=
 *
 *   discard=ignore, off     discards are answered and not done; zeroing never gives space back (but see NODE_UNMAPS)
 *   discard=unmap, on       they are done (the default)
 *   detect-zeroes=on        a write of nothing but zeroes becomes a zeroing
 *   detect-zeroes=unmap     and one that may give space back
 *   detect-zeroes=off       writes are what they are (the default)
 */
#ifndef VARVE_BLOCK_WISH_H
#define VARVE_BLOCK_WISH_H

#include "block/node.h"

/* What the options can be; wish.c knows their order. */
#define WISH_DISCARD_WORDS "unmap|on|ignore|off"
#define WISH_DETECT_WORDS "off|on|unmap"

#define WISH_NO_DISCARD (1u << 0)
#define WISH_DETECT_ZEROES (1u << 1)
#define WISH_UNMAP_ZEROES (1u << 2) /* beside WISH_DETECT_ZEROES */
#define WISH_UNMAP_STAYS (1u << 3)  /* beside WISH_NO_DISCARD: which is of discards alone, then */

/* Takes the two options. */
int wish_options(struct opts *o, uint32_t *ret_wish, struct varve_error *err);

/* Takes discard= alone: for a leaf, whose file may be kept from losing space whatever stands above. */
int wish_discard(struct opts *o, bool *ret_ignore, struct varve_error *err);

/* At the door of a disk with wishes: changes the request; false: there is nothing left to do. Never allocates, waits or copies. */
bool wish_apply(const struct node *n, struct req *r);

#endif
