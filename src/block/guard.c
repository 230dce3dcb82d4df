/* SPDX-License-Identifier: MIT */
/*
 * block/guard.c - a raw image that was found by probing must stay raw
 *
 * A guest that owns a probed raw disk could write another format's header to its first sectors, with a backing file of
 * its choice; the next open would follow it. So writes there are looked at: if the result would be recognised as
 * another format they are refused. Give the format explicitly (raw) to allow them.
 */
#include "base/iov.h"
#include "base/log.h"
#include "block/block.h"

#include <string.h>

int guard_write(struct fiber *f, struct node *n, struct req *r)
{
	uint8_t head[PROBE_LEN];
	struct range range;
	struct extent e;
	size_t known = MIN(PROBE_LEN, node_len(n));
	int ret;

	range_lock(f, &n->ranges, &range, 0, PROBE_LEN);
	n->drv->map(n, r->off, r->len, &e);
	memset(head, 0, sizeof(head));
	ret = e.kind == EXTENT_DATA && e.len == r->len ? 0 : -EIO;
	if (ret == 0)
		ret = read_pieces(f, n, 0, known, &(struct iovec){ head, known }, 1);
	if (ret == 0) {
		size_t part = MIN(r->len, PROBE_LEN - r->off);

		if (r->op == REQ_WRITE)
			iov_to_buf(r->iov, r->nr_iov, 0, head + r->off, part);
		else
			memset(head + r->off, 0, part);
		if (driver_probe(head, known) != n->drv || driver_probe_foreign(head, known)) {
			log_warning("%s: refused a write that would turn this probed raw image into another "
				    "format; open it with format raw to allow it",
				    node_name(n));
			ret = -EPERM;
		}
	}
	if (ret == 0)
		ret = r->op == REQ_WRITE ?
			      node_writev(f, e.node, e.host_off, r->iov, r->nr_iov, r->flags & REQ_FUA) :
			      node_zero(f, e.node, e.host_off, r->len, r->flags & (REQ_FUA | REQ_MAY_UNMAP | REQ_NO_FALLBACK));
	range_unlock(&n->ranges, &range);
	return ret;
}
