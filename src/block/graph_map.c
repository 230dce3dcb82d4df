/* SPDX-License-Identifier: MIT */
/*
 * block/graph_map.c - where the bytes of a disk are, through all of its chain
 *
 * Assumes: a fiber of the home queue.
 * Never:   changes anything but caches.
 */
#include "block/graph.h"

static struct node *without_filters(struct node *n)
{
	while (n->drv->kind == DRIVER_FILTER)
		n = n->file;
	return n;
}

/* A format without tables (raw) knows no holes; the file below may. */
static int ask_file(struct fiber *f, struct extent *e)
{
	struct node *leaf = without_filters(e->node);
	bool hole = false;
	int ret;

	if (e->kind != EXTENT_DATA || !leaf->drv->status)
		return 0;
	ret = leaf->drv->status(f, leaf, e->host_off, e->len, &hole, &e->len);
	if (ret == 0 && hole) {
		e->kind = EXTENT_ZERO;
		e->flags |= EXTENT_ALLOCATED;
	}
	return ret;
}

/* By the tables only. *ret_ask: of a format that has none. */
static int resolve(struct fiber *f, struct node *n, uint64_t off, uint64_t len, struct extent *ret_extent, unsigned *ret_depth,
		   bool *ret_present, bool *ret_ask)
{
	unsigned depth = 0;

	n = without_filters(n);
	*ret_depth = 0;
	*ret_present = *ret_ask = false;
	if (n->drv->kind != DRIVER_FORMAT) {
		*ret_extent = (struct extent){ .kind = EXTENT_DATA, .node = n, .host_off = off, .len = len };
		*ret_present = true;
		return 0;
	}
	while (n) {
		uint64_t nlen = node_len(n);
		int ret;

		if (off >= nlen)
			break;
		*ret_depth = depth; /* of the last layer that reaches so far, if none holds it */
		len = MIN(len, nlen - off);
		n->drv->map(n, off, len, ret_extent);
		if (ret_extent->kind == EXTENT_UNLOADED) {
			ret = n->drv->load(f, n, off);
			if (ret < 0)
				return ret;
			continue;
		}
		len = ret_extent->len;
		if (ret_extent->kind != EXTENT_ABSENT) {
			*ret_present = true;
			*ret_ask = !n->drv->load;
			return 0;
		}
		n = n->backing;
		if (n)
			depth++;
	}
	*ret_extent = (struct extent){ .kind = EXTENT_ZERO, .len = len };
	return 0;
}

int graph_map(struct fiber *f, struct node *top, uint64_t off, uint64_t len, struct extent *ret_extent, unsigned *ret_depth,
	      bool *ret_present)
{
	bool ask;
	int ret = resolve(f, top, off, len, ret_extent, ret_depth, ret_present, &ask);

	return ret == 0 && ask ? ask_file(f, ret_extent) : ret;
}

int graph_map_file(struct fiber *f, struct node *top, uint64_t off, uint64_t len, struct file_data *known, struct extent *ret_extent,
		   unsigned *ret_depth, bool *ret_present)
{
	struct extent e;
	const struct node *file;
	bool ask;
	int ret = resolve(f, top, off, len, ret_extent, ret_depth, ret_present, &ask);

	if (ret < 0 || ret_extent->kind != EXTENT_DATA)
		return ret;
	e = *ret_extent;
	file = e.node;
	if (known->file == file && e.host_off >= known->off && e.host_off < known->end) {
		ret_extent->len = MIN(e.len, known->end - e.host_off);
		return 0;
	}
	e.len = UINT64_MAX - e.host_off; /* as far as it goes: the next ones may lie there */
	ret = ask_file(f, &e);
	if (ret < 0)
		return ret;
	e.len = MIN(e.len, UINT64_MAX - e.host_off);
	if (e.kind == EXTENT_DATA)
		*known = (struct file_data){ file, e.host_off, e.host_off + e.len };
	e.len = MIN(e.len, ret_extent->len);
	*ret_extent = e;
	return 0;
}
