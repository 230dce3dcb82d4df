/* SPDX-License-Identifier: MIT */
/*
 * qcow2/data_file.c - images whose data is in another file (docs/spec/qcow2.md, "External data file")
 *
 *     image:      header | L1, L2 | refcounts, of those only
 *     data file:  the cluster that the guest sees at an offset is at the same offset
 *
 * So nothing is allocated for data: an entry says whether a cluster is there, not where. Space of the data file is never given to
 * another cluster, and what an entry no longer leads to needs no order with anything that comes after it.
 *
 * Owns:    what entries of such an image may say.
 * Assumes: fibers of the home queue.
 * Never:   opens a data file for info or check, or believes an entry that leads elsewhere than its own place.
 */
#include "format/qcow2/qcow2.h"

#include <stdlib.h>

#include "base/log.h"
#include "block/data_file.h"

/* ---- open ---- */

/*
 * Other programs read zeroes behind the end of a data file, so we do; but it may have been cut, and then data has become zeroes:
 * that is not passed over in silence.
 */
static void tell_short(const struct qcow2 *q)
{
	uint64_t len = node_len(q->data_leaf);

	if (len < q->h.disk_len)
		log_error("%s: the data file %s has %llu bytes, the disk %llu: it was cut off, it seems; what lies behind its end %s",
			  node_name(q->node), node_name(q->data_leaf), (unsigned long long)len, (unsigned long long)q->h.disk_len,
			  q->data_leaf->fixed_len ? "cannot be read" : "reads as zeroes");
}

static int open_external(struct fiber *f, struct qcow2 *q, struct opts *o, struct varve_error *err)
{
	/* It may be open: a takeover needs it before (open.c). */
	int ret = q->node->data ? 0 : node_open_data(f, q->node, q->h.data_file, o, err);

	if (ret < 0)
		return ret;
	q->data = q->node->data;
	q->data_leaf = node_leaf(q->data);
	return 0;
}

/* What was said about a data file would say nothing. */
static int none_wanted(struct opts *o, struct varve_error *err)
{
	struct opts *sub = o ? opts_take_sub(o, "data-file") : NULL;
	bool given = sub || (o && opts_get(o, "data-file"));

	opts_free(sub);
	return given ? varve_error_set(err, -EINVAL, "option data-file: the data of this image is in the image itself; leave it out") : 0;
}

int data_open(struct fiber *f, struct qcow2 *q, struct opts *o, struct varve_error *err)
{
	q->data = q->file;
	q->data_leaf = q->leaf;
	q->external = q->h.incompatible & QCOW2_INCOMPAT_DATA_FILE;
	q->raw_data = q->external && (q->h.autoclear & QCOW2_AUTOCLEAR_RAW_DATA);
	if (!q->external)
		return none_wanted(o, err);
	if (q->unmapped) {
		if (o)
			node_skip_data(o);
		return 0;
	}
	return open_external(f, q, o, err);
}

void data_tell(const struct qcow2 *q)
{
	if (q->external && !q->unmapped)
		tell_short(q);
}

/* ---- entries ---- */

const char *data_entry_fault(uint64_t entry, uint64_t guest_off)
{
	if (entry & QCOW2_COMPRESSED)
		return "is compressed, in an image with an external data file";
	if ((entry & (QCOW2_OFF_MASK | QCOW2_COPIED)) && (entry & QCOW2_OFF_MASK) != guest_off)
		return "leads to another place of the external data file";
	return NULL;
}

void data_guard_entries(struct qcow2 *q, uint32_t table, uint32_t nr, be64 *words)
{
	unsigned per_piece = 1u << q->l2_piece_bits, step = q->l2_entry_len / 8;

	for (unsigned i = 0; i < per_piece; i++) {
		uint64_t guest_off = (((uint64_t)table << q->l2_bits) + (uint64_t)nr * per_piece + i) << q->cluster_bits;
		uint64_t entry = be64_get(words[i * step]);

		if (data_entry_fault(entry, guest_off))
			words[i * step] = be64_put(QCOW2_L2_RESERVED); /* who meets it is told (corrupt.c) */
	}
}

/* ---- zeroes ---- */

/* Of whole clusters, what the disk has. */
static uint64_t inside(const struct qcow2 *q, uint64_t off, uint64_t len)
{
	uint64_t disk_len = node_len(q->node);

	return off < disk_len ? MIN(len, disk_len - off) : 0;
}

/*
 * Zeroes without space behind them, where that costs nothing; not a discard, after which a device may hold anything: an entry that
 * is on disk still may lead there after a power cut. What cannot be had stays, and is not seen.
 */
void data_punch(struct fiber *f, struct qcow2 *q, uint64_t off, uint64_t len)
{
	uint64_t end = MIN(off + inside(q, off, len), node_len(q->data_leaf));

	if (off < end)
		(void)node_zero(f, q->data, off, end - off, REQ_MAY_UNMAP | REQ_NO_FALLBACK);
}

int data_unlink_raw(struct fiber *f, struct qcow2 *q, uint64_t off, uint64_t len, enum unlink_mode mode)
{
	bool may_unmap = q->discards >> FREED_REQUEST & 1;

	len = inside(q, off, len);
	if (mode == UNLINK_DISCARD) {
		if (may_unmap)
			data_punch(f, q, off, len);
		return 0; /* the file reads as the disk does, whatever that is */
	}
	return len ? node_zero(f, q->data, off, len, mode == UNLINK_ZERO_UNMAP && may_unmap ? REQ_MAY_UNMAP : 0) : 0;
}

/* ---- another length ---- */

/* Allocated as the mode says, or merely there. Zeroes are written by who links clusters. */
static enum prealloc of_file(enum prealloc prealloc)
{
	return prealloc == PREALLOC_FALLOC || prealloc == PREALLOC_FULL ? PREALLOC_FALLOC : PREALLOC_OFF;
}

int data_fits(const struct qcow2 *q, uint64_t len, struct varve_error *err)
{
	uint64_t there = node_len(q->data_leaf);

	if (there < len && q->data_leaf->fixed_len)
		return varve_error_set(err, -ENOSPC, "the data file %s is a device of %llu bytes; a disk of %llu does not fit", node_name(q->data),
				       (unsigned long long)there, (unsigned long long)len);
	return 0;
}

/*
 * What a data file has behind the old end of the disk (it may be longer) is not what a new part of it may show. As everything that
 * was written, the zeroes are durable before the header with the new length. Power lost before that leaves a data file that is too
 * long, which harms nobody.
 */
int data_grow(struct fiber *f, struct qcow2 *q, uint64_t len, enum prealloc prealloc, struct varve_error *err)
{
	uint64_t old = q->h.disk_len, there = node_len(q->data_leaf);
	int ret = 0;

	if (old < MIN(there, len))
		ret = node_zero(f, q->data, old, MIN(there, len) - old, prealloc == PREALLOC_OFF ? REQ_MAY_UNMAP : 0);
	if (ret < 0)
		return varve_error_errno(err, ret, "the data file %s: cannot write zeroes behind the old end at %llu", node_name(q->data),
					 (unsigned long long)old);
	return there < len ? node_truncate(f, q->data, len, of_file(prealloc), err) : 0;
}

/*
 * The header with the shorter length is durable. The other way round, a cut would leave a disk of the old length over a data file
 * that ends before it does.
 */
int data_shrink(struct fiber *f, struct qcow2 *q, uint64_t len, struct varve_error *err)
{
	if (q->data_leaf->fixed_len || node_len(q->data_leaf) <= len)
		return 0;
	return node_truncate(f, q->data, len, PREALLOC_OFF, err);
}

/* ---- new ---- */

static int write_zeroes(struct fiber *f, struct node *data, uint64_t len)
{
	size_t zeroes_len = MiB(1);
	void *zeroes = calloc(1, zeroes_len);
	int ret = zeroes ? 0 : -ENOMEM;

	for (uint64_t off = 0; ret == 0 && off < len; off += zeroes_len)
		ret = node_write(f, data, off, zeroes, (size_t)MIN(zeroes_len, len - off));
	free(zeroes);
	return ret;
}

/*
 * Durable before the header of the image has its magic (layout.c): a disk that is there reads as it was made. A device keeps what it
 * holds if that is to be the disk (raw); otherwise what tables would show is zeroed.
 */
int data_create(struct fiber *f, struct node *data, uint64_t len, bool raw, enum prealloc prealloc, struct varve_error *err)
{
	const struct node *leaf = node_leaf(data);
	int ret = 0;

	if (leaf->fixed_len && node_len(leaf) < len)
		return varve_error_set(err, -ENOSPC, "the data file %s is a device of %llu bytes; a disk of %llu does not fit", node_name(data),
				       (unsigned long long)node_len(leaf), (unsigned long long)len);
	if (!leaf->fixed_len) {
		ret = node_truncate(f, data, 0, PREALLOC_OFF, err);
		if (ret == 0)
			ret = node_truncate(f, data, len, prealloc == PREALLOC_FALLOC ? PREALLOC_FALLOC : PREALLOC_OFF, err);
		if (ret < 0)
			return ret;
	}
	if (prealloc == PREALLOC_FULL && !(leaf->fixed_len && raw))
		ret = write_zeroes(f, data, len);
	else if (prealloc != PREALLOC_OFF && leaf->fixed_len && !raw && len)
		ret = node_zero(f, data, 0, len, 0);
	if (ret == 0)
		ret = node_flush(f, data);
	return ret < 0 ? varve_error_errno(err, ret, "the data file %s: cannot be made ready", node_name(data)) : 0;
}
