/* SPDX-License-Identifier: MIT */
/*
 * block/cold_write.c - writes that need new space: allocate, copy on write, write, link
 *
 * Assumes: the clusters concerned are locked (block/range.h): nobody else changes their mapping.
 * Never:   makes a cluster reachable before all of its bytes are written.
 */
#include "base/iov.h"
#include "block/block.h"
#include "block/event.h"

#include <stdlib.h>
#include <string.h>


void clusters_lock(struct fiber *f, struct node *n, struct range *range, uint64_t off, uint64_t len)
{
	uint64_t unit = n->cluster_len ? n->cluster_len : 512;
	uint64_t start = align_down(off, unit);

	range_lock(f, &n->ranges, range, start, align_up(off + len, unit) - start);
}

/* Reads zero all over [off, off + len), as far as that is known without reading data? */
static int reads_zero(struct fiber *f, struct node *n, uint64_t off, uint64_t len, bool *ret_zero)
{
	struct extent e;

	for (uint64_t pos = 0; pos < len; pos += e.len) {
		chain_map(n, off + pos, len - pos, &e);
		if (e.kind == EXTENT_UNLOADED) {
			int ret = e.node->drv->load(f, e.node, off + pos);

			if (ret < 0)
				return ret;
			e.len = 0;
		} else if (e.kind != EXTENT_ZERO) {
			*ret_zero = false;
			return 0;
		}
	}
	*ret_zero = true;
	return 0;
}

/* One side of a partial cluster: what stands before or behind the guest's bytes in the fresh space. */
struct fill {
	uint64_t off, len; /* of the virtual disk */
	bool skip;	   /* the fresh space holds the right bytes (zeroes) already */
	void *buf;
};

static int fill_prepare(struct fiber *f, struct node *n, struct fill *fill, bool fresh_reads_zero)
{
	uint64_t disk_len = node_len(n);
	uint64_t inside = fill->off >= disk_len ? 0 : MIN(fill->len, disk_len - fill->off);
	struct iovec iov;
	bool zero = true;
	int ret;

	fill->skip = true;
	if (!fill->len)
		return 0;
	if (inside) {
		ret = reads_zero(f, n, fill->off, inside, &zero);
		if (ret < 0)
			return ret;
	}
	if (zero && fresh_reads_zero)
		return 0;
	fill->skip = false;
	if (posix_memalign(&fill->buf, 4096, align_up(fill->len, 4096)))
		return -ENOMEM;
	memset((char *)fill->buf + inside, 0, fill->len - inside);
	iov = (struct iovec){ fill->buf, inside };
	node_event(f, n->file, EVENT_COW_READ);
	return inside ? read_pieces(f, n, fill->off, inside, &iov, 1) : 0;
}

/* Writes head, guest bytes and tail into the fresh space, as one vectored write where it is contiguous. */
static int write_fresh(struct fiber *f, const struct extent *x, const struct fill *head, const struct fill *tail,
		       const struct iovec *iov, unsigned nr_iov, uint64_t pos, uint64_t len)
{
	struct iovec *all = malloc((nr_iov + 2) * sizeof(*all));
	uint64_t host_off = x->host_off + (head->skip ? head->len : 0);
	unsigned nr = 0;
	size_t got;
	int ret;

	if (!all)
		return -ENOMEM;
	if (!head->skip)
		all[nr++] = (struct iovec){ head->buf, head->len };
	nr += iov_slice(all + nr, nr_iov, iov, nr_iov, pos, len, &got);
	assert(got == len);
	if (!tail->skip)
		all[nr++] = (struct iovec){ tail->buf, tail->len };
	ret = node_writev(f, x->node, host_off, all, nr, 0);
	free(all);
	return ret;
}

/*
 * Gives [off, off + len) of the guest, for which the map says `old`, space of its own. *ret_len: how much was
 * written (allocation may come in several runs). Space is asked for in units of the mapping, and filled around the guest's
 * bytes as far as the format says: of a cluster that is mapped in parts, what has no bytes of its own stays where it is.
 *
 * Durable first: the bytes around the guest's (copied from the old cluster or the backing image), the guest's bytes,
 * and the count of the new cluster; only then the entry that links it: link() takes the mark "all data written
 * until now", and the write has completed here before. Power lost in between leaks clusters, which check finds;
 * the old mapping still holds. The other way round, bytes that the guest never wrote would read as rubbish.
 */
static int write_alloc(struct fiber *f, struct node *n, uint64_t off, uint64_t len, const struct iovec *iov,
		       unsigned nr_iov, uint64_t pos, uint64_t *ret_len)
{
	uint64_t unit = map_unit(n), first = align_down(off, unit), end;
	struct fill head = { 0 }, tail = { 0 };
	struct extent x;
	int ret = n->drv->alloc(f, n, first, align_up(off + len, unit) - first, &x);

	if (ret < 0)
		return ret;
	assert(x.len > x.before && is_aligned(x.len | x.before, unit) && x.before < n->cluster_len);
	first -= x.before;
	head.off = first;
	head.len = off - first;
	end = MIN(off + len, first + x.len);
	tail.off = end;
	tail.len = first + x.len - end;
	if (x.node == n->data) /* a file with nothing but the disk ends where that does, and may be a device of its length */
		tail.len = MIN(tail.len, MAX(end, node_len(n)) - end);
	if (tail.len >= n->cluster_len) { /* more than asked for: cannot be, but never link unwritten space */
		n->drv->unalloc(f, n, &x);
		return -EIO;
	}
	ret = fill_prepare(f, n, &head, x.flags & EXTENT_READS_ZERO);
	if (ret == 0)
		ret = fill_prepare(f, n, &tail, x.flags & EXTENT_READS_ZERO);
	if (ret == 0 && !(head.skip && tail.skip))
		node_event(f, x.node, EVENT_COW_WRITE);
	if (ret == 0)
		ret = write_fresh(f, &x, &head, &tail, iov, nr_iov, pos, end - off);
	free(head.buf);
	free(tail.buf);
	if (ret == 0)
		ret = n->drv->link(f, n, first, &x);
	if (ret < 0) {
		n->drv->unalloc(f, n, &x);
		return ret;
	}
	*ret_len = end - off;
	return 0;
}

static int write_inplace(struct fiber *f, const struct extent *e, const struct iovec *iov, unsigned nr_iov,
			 uint64_t pos)
{
	struct iovec piece[64];

	for (uint64_t done = 0; done < e->len;) {
		size_t got;
		unsigned nr = iov_slice(piece, ARRAY_LEN(piece), iov, nr_iov, pos + done, e->len - done, &got);
		int ret = node_writev(f, e->node, e->host_off + done, piece, nr, 0);

		if (ret < 0)
			return ret;
		done += got;
	}
	return 0;
}

int write_locked(struct fiber *f, struct node *n, uint64_t off, uint64_t len, const struct iovec *iov,
		 unsigned nr_iov)
{
	struct extent e;
	uint64_t step = 0;
	int ret;

	for (uint64_t pos = 0; pos < len; pos += step) {
		n->drv->map(n, off + pos, len - pos, &e);
		step = e.len;
		switch (e.kind) {
		case EXTENT_UNLOADED:
			ret = n->drv->load(f, n, off + pos);
			step = 0;
			break;
		case EXTENT_ERROR:
			ret = damage_met(f, n, off + pos, e.len, &e, true);
			break;
		case EXTENT_DATA:
			if (e.flags & EXTENT_INPLACE) {
				ret = write_inplace(f, &e, iov, nr_iov, pos);
				break;
			}
			/* fall through */
		default:
			ret = write_alloc(f, n, off + pos, step, iov, nr_iov, pos, &step);
		}
		if (ret < 0)
			return ret;
	}
	return 0;
}

int cold_write(struct fiber *f, struct node *n, struct req *r)
{
	struct range range;
	struct extent e;
	int ret;

	clusters_lock(f, n, &range, r->off, r->len);
	n->drv->map(n, r->off, r->len, &e);
	if (e.kind == EXTENT_DATA && (e.flags & EXTENT_INPLACE) && e.len == r->len && !(r->flags & REQ_REPAIRED))
		ret = COLD_RETRY; /* somebody allocated it while we waited */
	else
		ret = write_locked(f, n, r->off, r->len, r->iov, r->nr_iov);
	range_unlock(&n->ranges, &range);
	return ret;
}
