/* SPDX-License-Identifier: MIT */
/*
 * block/cold_read.c - reads and flushes that have to wait for metadata
 */
#include "base/iov.h"
#include "block/block.h"
#include "block/event.h"

#include <stdlib.h>

int chain_map_loaded(struct fiber *f, struct node *n, uint64_t off, uint64_t len, struct extent *e)
{
	for (;;) {
		int ret;

		chain_map(n, off, len, e);
		if (e->kind != EXTENT_UNLOADED)
			return 0;
		ret = e->node->drv->load(f, e->node, off);
		if (ret < 0)
			return ret;
	}
}

static int read_piece(struct fiber *f, const struct extent *e, uint64_t off, const struct iovec *iov, unsigned nr_iov,
		      uint64_t pos)
{
	struct iovec piece[64];
	uint64_t done = 0;

	if (e->kind == EXTENT_ZERO) {
		iov_fill(iov, nr_iov, pos, 0, e->len);
		return 0;
	}
	if (e->kind == EXTENT_PACKED && e->node->drv->unpack)
		return e->node->drv->unpack(f, e->node, off, e->len, e->host_off, iov, nr_iov, pos);
	if (e->kind != EXTENT_DATA)
		return e->error ? e->error : -EIO;
	while (done < e->len) {
		size_t got;
		unsigned nr = iov_slice(piece, ARRAY_LEN(piece), iov, nr_iov, pos + done, e->len - done, &got);
		int ret = node_readv(f, e->node, e->host_off + done, piece, nr);

		if (ret < 0)
			return ret;
		done += got;
	}
	return 0;
}

int read_pieces(struct fiber *f, struct node *n, uint64_t off, uint64_t len, const struct iovec *iov, unsigned nr_iov)
{
	struct extent e;
	int ret;

	for (uint64_t pos = 0; pos < len; pos += e.len) {
		ret = chain_map_loaded(f, n, off + pos, len - pos, &e);
		if (ret == 0)
			ret = e.kind == EXTENT_ERROR ? damage_met(f, n, off + pos, e.len, &e, false) :
						       read_piece(f, &e, off + pos, iov, nr_iov, pos);
		if (ret < 0)
			return ret;
	}
	return 0;
}

/* All of it here. The lock keeps the clusters from being freed and reused while they are being read. */
int cold_unpack(struct fiber *f, struct node *n, struct req *r)
{
	struct range range;
	int ret;

	clusters_lock(f, n, &range, r->off, r->len);
	ret = read_pieces(f, n, r->off, r->len, r->iov, r->nr_iov);
	range_unlock(&n->ranges, &range);
	return ret;
}

/*
 * First visit: load what the request needs, then the hot path reads. A second visit means that the mapping changes or
 * is evicted under us: read here, where a look-up and what follows it are not interrupted by other fibers.
 */
int cold_read(struct fiber *f, struct node *n, struct req *r)
{
	struct extent e;
	int ret;

	if (r->flags & REQ_REPAIRED)
		return cold_unpack(f, n, r);
	for (uint64_t pos = 0; pos < r->len; pos += e.len) {
		ret = chain_map_loaded(f, n, r->off + pos, r->len - pos, &e);
		if (ret < 0)
			return ret;
	}
	return COLD_RETRY;
}

int damage_met(struct fiber *f, struct node *n, uint64_t off, uint64_t len, const struct extent *e, bool write)
{
	int ret = n->drv->damage ? n->drv->damage(f, n, off, len, write) : 0;

	return ret < 0 ? ret : e->error ? e->error : -EIO;
}

/* A read, all of it; the format hears of it. */
int cold_damage(struct fiber *f, struct node *n, struct req *r)
{
	struct extent e;
	int ret = chain_map_loaded(f, n, r->off, r->len, &e);

	if (ret < 0)
		return ret;
	return e.kind == EXTENT_ERROR ? damage_met(f, n, r->off, e.len, &e, false) : COLD_RETRY;
}

int cold_flush(struct fiber *f, struct node *n, struct req *r)
{
	node_event(f, n->file, EVENT_FLUSH_TO_OS);
	return n->drv->sync(f, n);
}
