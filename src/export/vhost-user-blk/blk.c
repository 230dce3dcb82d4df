/* SPDX-License-Identifier: MIT */
/*
 * vhost-user-blk/blk.c - requests of the guest
 *
 * Owns:    see blk.h.
 * Assumes: node_submit() refuses what is out of the disk's bounds, if only off + len does not overflow.
 * Never:   fails a ring for a request that has a place for its status.
 */
#include "export/vhost-user-blk/blk.h"

#include <endian.h>
#include <string.h>

#include "base/iov.h"

enum blk_type {
	BLK_IN = 0,
	BLK_OUT = 1,
	BLK_FLUSH = 4,
	BLK_GET_ID = 8,
	BLK_DISCARD = 11,
	BLK_WRITE_ZEROES = 13,
};

#define RANGE_UNMAP 1u /* write zeroes: the space may be given back */

/* docs/spec/virtio-blk.md: what every request begins with: type (le32), reserved (le32), sector (le64). */
#define HEADER_LEN 16

/* The data of a request: its buffers without header and status. */
struct blk_data {
	struct iovec *iov;
	unsigned nr_iov;
	uint32_t len;
};

static bool has_feature(const struct blk_slot *s, unsigned bit)
{
	return s->ctx->features >> bit & 1;
}

static inline void count_as(struct blk_slot *s, enum blk_class class)
{
	s->count = &s->ctx->stats.count[class];
}

/* For a migration: what we have written, or may have. Ranges lie where the buffers were, but write nothing. */
static __attribute__((noinline, cold)) void log_written(const struct blk_slot *s)
{
	const struct blk_ctx *ctx = s->ctx;

	for (unsigned i = 0; i < s->nr_in; i++)
		memlog_mark_host(ctx->log, ctx->mem, s->iov[s->in_first + i].iov_base,
				 s->iov[s->in_first + i].iov_len);
	memlog_mark_host(ctx->log, ctx->mem, (const void *)(uintptr_t)s->status, 1);
}

/* Ends a request. Of a failed one the status is written, which counts only if nothing lies before it. */
static inline __attribute__((always_inline)) void answer_inline(struct blk_slot *s, enum blk_status status)
{
	*s->status = (uint8_t)status;
	blk_count_add(s->count, s->bytes, status != BLK_OK, queue_now(s->ctx->q) - s->start_ns);
	if (unlikely(s->ctx->log != NULL))
		log_written(s);
	blk_finished(s, likely(status == BLK_OK) ? s->written : s->in_len == 1);
}

static __attribute__((noinline)) void answer(struct blk_slot *s, enum blk_status status)
{
	answer_inline(s, status);
}

static void request_done(struct req *r, int ret)
{
	struct blk_slot *s = container_of(r, struct blk_slot, req);

	if (likely(ret == 0))
		answer_inline(s, BLK_OK);
	else
		answer(s, BLK_IOERR);
}

static inline void submit(struct blk_slot *s, enum req_op op, uint64_t off, uint64_t len, const struct blk_data *data,
			  uint32_t flags, void (*done)(struct req *r, int ret))
{
	req_init(&s->req, s->ctx->q, op, off, len, data ? data->iov : NULL, data ? data->nr_iov : 0, flags,
		 done);
	node_submit(s->ctx->disk->top, &s->req);
}

/* ---- read, write, flush, get id ---- */

static inline __attribute__((always_inline)) void read_write(struct blk_slot *s, enum req_op op, uint64_t sector,
							     const struct blk_data *data, uint32_t flags)
{
	s->bytes = data->len;
	if (unlikely(data->len % BLK_SECTOR_LEN || sector > (VARVE_LEN_MAX - data->len) >> BLK_SECTOR_BITS))
		answer(s, BLK_IOERR);
	else if (unlikely(!data->len))
		answer(s, BLK_OK);
	else
		submit(s, op, sector << BLK_SECTOR_BITS, data->len, data, flags, request_done);
}

static void get_id(struct blk_slot *s, const struct blk_data *in)
{
	if (in->len < BLK_ID_LEN) {
		answer(s, BLK_IOERR);
		return;
	}
	iov_from_buf(in->iov, in->nr_iov, 0, s->ctx->disk->id, BLK_ID_LEN);
	s->written = BLK_ID_LEN + (in->len == BLK_ID_LEN);
	answer(s, BLK_OK);
}

/* ---- discard and write zeroes ---- */

static void range_done(struct req *r, int ret);

/* Submits one range after the other until one does not end at once, or fails, or none is left. */
static void run_ranges(struct blk_slot *s)
{
	enum req_op op = s->range_op;

	while (s->ret == 0 && s->next_range < s->nr_ranges) {
		const struct blk_range *range = &s->range[s->next_range++];
		uint64_t len = (uint64_t)le32_get(range->nr_sectors) << BLK_SECTOR_BITS;
		uint32_t flags = 0;

		if (!len)
			continue;
		s->bytes += len;
		if (op == REQ_ZERO)
			flags = s->ctx->write_flags |
				(le32_get(range->flags) & RANGE_UNMAP ? REQ_MAY_UNMAP : 0);
		/* An answer that comes inside submit() leaves a mark: no recursion, however many ranges. */
		s->answered = false;
		s->submitting = true;
		submit(s, op, le64_get(range->sector) << BLK_SECTOR_BITS, len, NULL, flags, range_done);
		s->submitting = false;
		if (!s->answered)
			return;
	}
	if (s->ret == 0)
		answer(s, BLK_OK);
	else
		answer(s, s->ret == -ENOTSUP ? BLK_UNSUPP : BLK_IOERR);
}

static void range_done(struct req *r, int ret)
{
	struct blk_slot *s = container_of(r, struct blk_slot, req);

	s->ret = ret;
	s->answered = true;
	if (!s->submitting)
		run_ranges(s);
}

/* Checks all ranges before the first is touched. */
static enum blk_status check_ranges(const struct blk_slot *s, enum req_op op)
{
	for (unsigned i = 0; i < s->nr_ranges; i++) {
		const struct blk_range *range = &s->range[i];
		uint64_t nr = le32_get(range->nr_sectors);

		if (le32_get(range->flags) & ~(op == REQ_ZERO ? RANGE_UNMAP : 0u))
			return BLK_UNSUPP;
		if (nr > BLK_RANGE_SECTORS_MAX ||
		    le64_get(range->sector) > (VARVE_LEN_MAX >> BLK_SECTOR_BITS) - nr)
			return BLK_IOERR;
	}
	return BLK_OK;
}

static void ranges(struct blk_slot *s, enum req_op op, const struct blk_data *out)
{
	struct blk_range copy[BLK_RANGES_MAX];
	enum blk_status status;

	if (!out->len || out->len % sizeof(copy[0]) || out->len > sizeof(copy)) {
		answer(s, BLK_IOERR);
		return;
	}
	/* By way of the stack, because the ranges take the place of the buffers that they come from. */
	iov_to_buf(out->iov, out->nr_iov, 0, copy, out->len);
	memcpy(s->range, copy, out->len);
	s->nr_in = 0; /* buffers no more */
	s->nr_ranges = (uint16_t)(out->len / sizeof(copy[0]));
	s->next_range = 0;
	s->ret = 0;
	s->range_op = op;
	status = check_ranges(s, op);
	if (status == BLK_OK)
		run_ranges(s);
	else
		answer(s, status);
}

/* ---- the beginning of every request ---- */

/* What every request begins with. */
struct blk_header {
	uint64_t type, sector; /* the upper half of type is reserved */
};

static_assert(sizeof(struct blk_header) == HEADER_LEN, "see the spec");

/* Takes a header off the front of the readable buffers, wherever they are cut. */
static __attribute__((noinline)) struct blk_header take_cut_header(struct blk_data *out)
{
	size_t left = HEADER_LEN;
	struct blk_header h;

	iov_to_buf(out->iov, out->nr_iov, 0, &h, left);
	for (; left && left >= out->iov->iov_len; out->nr_iov--)
		left -= (out->iov++)->iov_len;
	if (left) {
		out->iov->iov_base = (uint8_t *)out->iov->iov_base + left;
		out->iov->iov_len -= left;
	}
	return h;
}

/* What is neither a read nor a write, or has data in a direction that it should not have. */
static __attribute__((noinline)) void begin_other(struct blk_slot *s, uint32_t type, const struct blk_data *out,
						  const struct blk_data *in)
{
	bool writable = s->ctx->disk->writable;

	s->bytes = 0;
	count_as(s, BLK_OTHERS);
	switch (type) {
	case BLK_IN:
	case BLK_OUT:
		count_as(s, type == BLK_IN ? BLK_READS : BLK_WRITES);
		answer(s, BLK_IOERR);
		return;
	case BLK_FLUSH:
		count_as(s, BLK_FLUSHES);
		if (writable)
			submit(s, REQ_FLUSH, 0, 0, NULL, 0, request_done);
		else
			answer(s, BLK_OK);
		return;
	case BLK_GET_ID:
		get_id(s, in);
		return;
	case BLK_DISCARD:
	case BLK_WRITE_ZEROES:
		count_as(s, type == BLK_DISCARD ? BLK_DISCARDS : BLK_ZEROES);
		if (!writable)
			answer(s, BLK_IOERR);
		else if (!has_feature(s, type == BLK_DISCARD ? BLK_F_DISCARD : BLK_F_WRITE_ZEROES))
			answer(s, BLK_UNSUPP);
		else
			ranges(s, type == BLK_DISCARD ? REQ_DISCARD : REQ_ZERO, out);
		return;
	default:
		answer(s, BLK_UNSUPP);
	}
}

const char *blk_begin_parts(struct blk_slot *s, unsigned nr_out, unsigned nr_in, uint32_t out_len, uint32_t in_len)
{
	struct blk_data out = { s->iov, nr_out, out_len - HEADER_LEN };
	struct blk_data in = { s->iov + nr_out, nr_in, in_len - 1 };
	struct blk_header h;
	struct iovec *last;
	uint32_t type;

	if (unlikely(!in_len))
		return "a request without a writable byte for its status";
	if (unlikely(out_len < HEADER_LEN))
		return "a request with a header of less than 16 bytes";
	/* The status byte comes off the end of the writable buffers. */
	last = in.iov + nr_in - 1;
	s->status = (uint8_t *)last->iov_base + --last->iov_len;
	in.nr_iov -= !last->iov_len;
	s->in_len = in_len;
	s->in_first = (uint16_t)nr_out;
	s->nr_in = (uint16_t)in.nr_iov;
	s->start_ns = queue_now(s->ctx->q);
	if (likely(out.iov->iov_len == HEADER_LEN)) {
		memcpy(&h.type, out.iov->iov_base, 8);
		memcpy(&h.sector, (const uint8_t *)out.iov->iov_base + 8, 8);
		out.iov++;
		out.nr_iov--;
	} else {
		struct blk_data whole = out;

		h = take_cut_header(&whole);
		out = whole;
	}
	/* From here on only our copy counts, whatever the guest writes over the original. */
	__asm__ volatile("" : "+r"(h.type), "+r"(h.sector));
	type = (uint32_t)le64toh(h.type);
	if (likely(type == BLK_IN && !out.len)) {
		count_as(s, BLK_READS);
		s->written = in_len;
		read_write(s, REQ_READ, le64toh(h.sector), &in, 0);
	} else if (likely(type == BLK_OUT && !in.len && s->ctx->disk->writable)) {
		count_as(s, BLK_WRITES);
		s->written = 1;
		read_write(s, REQ_WRITE, le64toh(h.sector), &out, s->ctx->write_flags);
	} else {
		struct blk_data far_out = out, far_in = in;

		s->written = !in.len;
		begin_other(s, type, &far_out, &far_in);
	}
	return NULL;
}
