/* SPDX-License-Identifier: MIT */
/*
 * block/event.h - what a format is about to do with its file, for a filter below that wants to know
 * (filter/blkdebug.c)
 *
 * Names are those that rule files use. Two ways lead to the filter:
 *
 *   node_event()       a step that may wait: called on a fiber of the home queue, before the step
 *   flags of a write   metadata waits in order/, so its event travels with the bytes: order_as()
 *
 * I/O without either is the guest's: read_aio, write_aio. What happens when nobody listens is one look at a
 * flag, and only on the cold path; the hot path knows nothing of events.
 */
#ifndef VARVE_BLOCK_EVENT_H
#define VARVE_BLOCK_EVENT_H

#include "block/node.h"

enum event {
	EVENT_UNNAMED, /* of metadata that no rule can name: headers */
	EVENT_L1_UPDATE,
	EVENT_L1_GROW_ALLOC_TABLE,
	EVENT_L1_GROW_WRITE_TABLE,
	EVENT_L1_GROW_ACTIVATE_TABLE,
	EVENT_L2_LOAD,
	EVENT_L2_UPDATE,
	EVENT_L2_UPDATE_COMPRESSED,
	EVENT_L2_ALLOC_COW_READ,
	EVENT_L2_ALLOC_WRITE,
	EVENT_READ_AIO,
	EVENT_READ_BACKING_AIO,
	EVENT_READ_COMPRESSED,
	EVENT_WRITE_AIO,
	EVENT_WRITE_COMPRESSED,
	EVENT_VMSTATE_LOAD,
	EVENT_VMSTATE_SAVE,
	EVENT_COW_READ,
	EVENT_COW_WRITE,
	EVENT_REFTABLE_LOAD,
	EVENT_REFTABLE_GROW,
	EVENT_REFTABLE_UPDATE,
	EVENT_REFBLOCK_LOAD,
	EVENT_REFBLOCK_UPDATE,
	EVENT_REFBLOCK_UPDATE_PART,
	EVENT_REFBLOCK_ALLOC,
	EVENT_REFBLOCK_ALLOC_HOOKUP,
	EVENT_REFBLOCK_ALLOC_WRITE,
	EVENT_REFBLOCK_ALLOC_WRITE_BLOCKS,
	EVENT_REFBLOCK_ALLOC_WRITE_TABLE,
	EVENT_REFBLOCK_ALLOC_SWITCH_TABLE,
	EVENT_CLUSTER_ALLOC,
	EVENT_CLUSTER_ALLOC_BYTES,
	EVENT_CLUSTER_FREE,
	EVENT_FLUSH_TO_OS,
	EVENT_FLUSH_TO_DISK,
	EVENT_PWRITEV_RMW_HEAD,
	EVENT_PWRITEV_RMW_AFTER_HEAD,
	EVENT_PWRITEV_RMW_TAIL,
	EVENT_PWRITEV_RMW_AFTER_TAIL,
	EVENT_PWRITEV,
	EVENT_PWRITEV_ZERO,
	EVENT_PWRITEV_DONE,
	EVENT_EMPTY_IMAGE_PREPARE,
	EVENT_L1_SHRINK_WRITE_TABLE,
	EVENT_L1_SHRINK_FREE_L2_CLUSTERS,
	EVENT_COR_WRITE,
	EVENT_CLUSTER_ALLOC_SPACE,
	EVENT_NONE, /* once, when the filter is opened */
	EVENTS,
};
static_assert(EVENTS <= 64 && REQ_EVENT_SHIFT + 12 <= 32, "two fit the flags of a request");

const char *event_name(enum event e);
/* EVENT_UNNAMED: there is no such name. */
enum event event_by_name(const char *name);
/* Is there a place in this engine where it happens? */
bool event_occurs(enum event e);

/* The flags of a request for metadata, which is these events, one after the other. */
static inline uint32_t req_flags_of(enum event first, enum event second)
{
	return REQ_META | (uint32_t)first << REQ_EVENT_SHIFT | (uint32_t)second << (REQ_EVENT_SHIFT + 6);
}

static inline enum event req_event(const struct req *r)
{
	if (r->flags & REQ_META)
		return (enum event)(r->flags >> REQ_EVENT_SHIFT & 63);
	return r->op == REQ_READ ? EVENT_READ_AIO : r->op == REQ_WRITE ? EVENT_WRITE_AIO : EVENT_UNNAMED;
}

/* EVENT_UNNAMED: there is only one. */
static inline enum event req_second_event(const struct req *r)
{
	return (enum event)(r->flags >> (REQ_EVENT_SHIFT + 6));
}

/* event.c: the filter below n that listens is told; it may hold the fiber. */
void node_tell(struct fiber *f, struct node *n, enum event e);

/* n: the file that the step concerns. Home queue. */
static inline void node_event(struct fiber *f, struct node *n, enum event e)
{
	if (unlikely(n->flags & NODE_EVENTS))
		node_tell(f, n, e);
}

/* ---- break points ---- */

enum debug_op {
	DEBUG_BREAK,	    /* the next request that meets the event stops there, and is called tag */
	DEBUG_REMOVE_BREAK, /* it does not; what has stopped goes on */
	DEBUG_RESUME,	    /* the one that has stopped goes on; tag NULL: all of them */
	DEBUG_IS_SUSPENDED, /* 1: one has stopped, 0 */
};

/* The filter below top, top included, that has break points. -ENOTSUP: there is none. Home queue. */
int node_debug(struct node *top, enum debug_op op, const char *event, const char *tag,
	       struct varve_error *err);

#endif
