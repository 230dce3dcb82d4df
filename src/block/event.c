/* SPDX-License-Identifier: MIT */
/*
 * block/event.c - see event.h
 */
#include "block/event.h"

#include <string.h>

static const struct {
	const char *name;
	bool occurs;
} events[EVENTS] = {
	[EVENT_L1_UPDATE] = { "l1_update", true },
	[EVENT_L1_GROW_ALLOC_TABLE] = { "l1_grow_alloc_table", true },
	[EVENT_L1_GROW_WRITE_TABLE] = { "l1_grow_write_table", true },
	[EVENT_L1_GROW_ACTIVATE_TABLE] = { "l1_grow_activate_table", true },
	[EVENT_L2_LOAD] = { "l2_load", true },
	[EVENT_L2_UPDATE] = { "l2_update", true },
	[EVENT_L2_UPDATE_COMPRESSED] = { "l2_update_compressed", true },
	[EVENT_L2_ALLOC_COW_READ] = { "l2_alloc_cow_read", true },
	[EVENT_L2_ALLOC_WRITE] = { "l2_alloc_write", true },
	[EVENT_READ_AIO] = { "read_aio", true },
	[EVENT_READ_BACKING_AIO] = { "read_backing_aio", false },
	[EVENT_READ_COMPRESSED] = { "read_compressed", true },
	[EVENT_WRITE_AIO] = { "write_aio", true },
	[EVENT_WRITE_COMPRESSED] = { "write_compressed", true },
	[EVENT_VMSTATE_LOAD] = { "vmstate_load", true },
	[EVENT_VMSTATE_SAVE] = { "vmstate_save", true },
	[EVENT_COW_READ] = { "cow_read", true },
	[EVENT_COW_WRITE] = { "cow_write", true },
	[EVENT_REFTABLE_LOAD] = { "reftable_load", true },
	[EVENT_REFTABLE_GROW] = { "reftable_grow", true },
	[EVENT_REFTABLE_UPDATE] = { "reftable_update", false },
	[EVENT_REFBLOCK_LOAD] = { "refblock_load", true },
	[EVENT_REFBLOCK_UPDATE] = { "refblock_update", false },
	[EVENT_REFBLOCK_UPDATE_PART] = { "refblock_update_part", true },
	[EVENT_REFBLOCK_ALLOC] = { "refblock_alloc", true },
	[EVENT_REFBLOCK_ALLOC_HOOKUP] = { "refblock_alloc_hookup", true },
	[EVENT_REFBLOCK_ALLOC_WRITE] = { "refblock_alloc_write", true },
	[EVENT_REFBLOCK_ALLOC_WRITE_BLOCKS] = { "refblock_alloc_write_blocks", true },
	[EVENT_REFBLOCK_ALLOC_WRITE_TABLE] = { "refblock_alloc_write_table", true },
	[EVENT_REFBLOCK_ALLOC_SWITCH_TABLE] = { "refblock_alloc_switch_table", true },
	[EVENT_CLUSTER_ALLOC] = { "cluster_alloc", true },
	[EVENT_CLUSTER_ALLOC_BYTES] = { "cluster_alloc_bytes", true },
	[EVENT_CLUSTER_FREE] = { "cluster_free", true },
	[EVENT_FLUSH_TO_OS] = { "flush_to_os", true },
	[EVENT_FLUSH_TO_DISK] = { "flush_to_disk", true },
	[EVENT_PWRITEV_RMW_HEAD] = { "pwritev_rmw_head", true },
	[EVENT_PWRITEV_RMW_AFTER_HEAD] = { "pwritev_rmw_after_head", true },
	[EVENT_PWRITEV_RMW_TAIL] = { "pwritev_rmw_tail", true },
	[EVENT_PWRITEV_RMW_AFTER_TAIL] = { "pwritev_rmw_after_tail", true },
	[EVENT_PWRITEV] = { "pwritev", true },
	[EVENT_PWRITEV_ZERO] = { "pwritev_zero", true },
	[EVENT_PWRITEV_DONE] = { "pwritev_done", true },
	[EVENT_EMPTY_IMAGE_PREPARE] = { "empty_image_prepare", false },
	[EVENT_L1_SHRINK_WRITE_TABLE] = { "l1_shrink_write_table", false },
	[EVENT_L1_SHRINK_FREE_L2_CLUSTERS] = { "l1_shrink_free_l2_clusters", false },
	[EVENT_COR_WRITE] = { "cor_write", false },
	[EVENT_CLUSTER_ALLOC_SPACE] = { "cluster_alloc_space", false },
	[EVENT_NONE] = { "none", true },
};

const char *event_name(enum event e)
{
	assert(e > EVENT_UNNAMED && e < EVENTS);
	return events[e].name;
}

enum event event_by_name(const char *name)
{
	for (unsigned i = EVENT_UNNAMED + 1; i < EVENTS; i++) {
		if (!strcmp(events[i].name, name))
			return (enum event)i;
	}
	return EVENT_UNNAMED;
}

bool event_occurs(enum event e)
{
	return events[e].occurs;
}

void node_tell(struct fiber *f, struct node *n, enum event e)
{
	while (n && !n->drv->event)
		n = n->file;
	if (n && e != EVENT_UNNAMED)
		n->drv->event(f, n, e);
}

int node_debug(struct node *top, enum debug_op op, const char *event, const char *tag,
	       struct varve_error *err)
{
	struct node *n = top;

	while (n && !n->drv->debug)
		n = n->file;
	if (!n)
		return varve_error_set(err, -ENOTSUP,
				       "%s: no node of driver blkdebug is there to have break points",
				       node_name(top));
	return n->drv->debug(n, op, event, tag, err);
}
