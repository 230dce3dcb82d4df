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

/*
 * A format without tables (raw) knows no holes; the file below may. A format with tables knows what is data, but where they were
 * filled beforehand (preallocation=metadata) nothing was ever written behind them. Most images are not like that, and each question
 * costs: the file is asked only if the format says that much of it is only reserved: of its own file, that with the tables, as
 * everybody decides it. holder: whose data it is.
 */
static int worth_asking(struct fiber *f, struct node *holder, struct node *leaf, bool *ret)
{
	const struct driver *drv = holder->drv;
	struct node *own = holder;

	*ret = leaf->drv->status && !drv->load;
	while (own->file)
		own = own->file;
	if (!leaf->drv->status || !own->drv->taken || !drv->reserved)
		return 0;
	if (holder->holes == HOLES_UNKNOWN) {
		bool reserved = false;
		uint64_t taken;
		int error = own->drv->taken(f, own, &taken);

		if (error == 0)
			error = drv->reserved(f, holder, taken, &reserved);
		if (error < 0)
			return error;
		holder->holes = reserved ? HOLES_MANY : HOLES_FEW;
	}
	*ret = holder->holes == HOLES_MANY;
	return 0;
}

/* e->len: as far as an answer is wanted, and then, as far as it holds. */
static int ask_file(struct fiber *f, const struct node *holder, struct node *leaf, struct extent *e)
{
	bool hole = false;
	int ret = leaf->drv->status(f, leaf, e->host_off, e->len, &hole, &e->len);

	if (ret == 0 && hole) {
		e->kind = EXTENT_ZERO;
		e->flags |= EXTENT_ALLOCATED | (holder->drv->load ? EXTENT_MAPPED : 0);
	}
	return ret;
}

/* By the tables only. *ret_holder: the format whose they are; NULL: nobody's. */
static int resolve(struct fiber *f, struct node *n, uint64_t off, uint64_t len, struct extent *ret_extent, unsigned *ret_depth,
		   bool *ret_present, struct node **ret_holder)
{
	unsigned depth = 0;

	n = without_filters(n);
	*ret_depth = 0;
	*ret_present = false;
	*ret_holder = NULL;
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
			*ret_holder = n;
			return 0;
		}
		n = n->backing;
		if (n)
			depth++;
	}
	*ret_extent = (struct extent){ .kind = EXTENT_ZERO, .len = len };
	return 0;
}

int graph_map_file(struct fiber *f, struct node *top, uint64_t off, uint64_t len, struct file_data *known, struct extent *ret_extent,
		   unsigned *ret_depth, bool *ret_present)
{
	struct node *holder, *leaf;
	struct extent e;
	bool ask;
	int ret = resolve(f, top, off, len, ret_extent, ret_depth, ret_present, &holder);

	if (ret < 0 || !holder || ret_extent->kind != EXTENT_DATA)
		return ret;
	e = *ret_extent;
	leaf = without_filters(e.node);
	if (known->file == leaf && e.host_off >= known->off && e.host_off < known->end) {
		ret_extent->len = MIN(e.len, known->end - e.host_off);
		return 0;
	}
	ret = worth_asking(f, holder, leaf, &ask);
	if (ret < 0 || !ask)
		return ret;
	e.len = UINT64_MAX - e.host_off; /* as far as it goes: the next ones may lie there */
	ret = ask_file(f, holder, leaf, &e);
	if (ret < 0)
		return ret;
	if (e.kind == EXTENT_DATA)
		*known = (struct file_data){ leaf, e.host_off, e.host_off + e.len };
	e.len = MIN(e.len, ret_extent->len);
	*ret_extent = e;
	return 0;
}

int graph_map(struct fiber *f, struct node *top, uint64_t off, uint64_t len, struct extent *ret_extent, unsigned *ret_depth,
	      bool *ret_present)
{
	struct file_data unknown = { NULL, 0, 0 };

	return graph_map_file(f, top, off, len, &unknown, ret_extent, ret_depth, ret_present);
}
