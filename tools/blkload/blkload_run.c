/* SPDX-License-Identifier: MIT */
/*
 * blkload_run.c - one worker of the load generator: one thread, one queue, its part of the disk
 *
 * Owns:    the worker's requests, its busy map and its part of the model.
 * Assumes: the range is divided among the workers, so no two ever touch the same block.
 * Never:   allocates, locks or kicks for a single request: a batch is filled, then kicked once.
 */
#include "blkload.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MAX_SAID	10	/* failures of one worker that are told in full */
#define MAX_RUN		16	/* blocks that one discard or write-zeroes covers, at most */
#define REAP		64

int load_worker_prepare(struct load_worker *w, struct vu_err *err)
{
	struct load *l = w->load;
	unsigned depth = l->o.depth;
	int ret;

	ret = vu_blk_open(&w->blk, &l->front, w->q, depth, l->buf_len);
	if (ret < 0)
		return vu_fail(err, ret, "queue %u: %.280s", w->q, w->blk.err.text);
	w->blk.layout = l->o.layout;
	w->blk.seg_len = l->o.seg_len;
	w->blk.timeout_ms = l->o.timeout_ms;
	w->rng = l->o.seed + w->q;
	w->blk.layout_seed = vu_random(&w->rng);
	w->next_block = w->first_block;

	w->op = calloc(depth, sizeof(*w->op));
	w->batch = calloc(depth, sizeof(*w->batch));
	if (l->o.verify)
		w->busy = calloc((w->nr_blocks + 63) / 64, sizeof(*w->busy));
	if (!w->op || !w->batch || (l->o.verify && !w->busy))
		return vu_fail(err, -ENOMEM, "no memory for queue %u with %u requests", w->q,
			       depth);

	/* Unverified writes carry this: not zeroes, and not the same in every buffer. */
	for (unsigned i = 0; i < depth; i++)
		for (uint32_t off = 0; off < w->blk.buf_len; off += 8) {
			uint64_t word = vu_random(&w->rng);

			memcpy(w->blk.ios[i].data + off, &word, sizeof(word));
		}
	return 0;
}

void load_worker_free(struct load_worker *w)
{
	vu_blk_free(&w->blk);
	free(w->op);
	free(w->batch);
	free(w->busy);
}

static bool stopping(struct load *l)
{
	return __atomic_load_n(&l->stop, __ATOMIC_RELAXED);
}

/* ---- which blocks are in flight (verification only) ------------------------------------------ */

static bool is_busy(const struct load_worker *w, uint64_t block)
{
	uint64_t i = block - w->first_block;

	return w->busy && (w->busy[i / 64] >> (i % 64) & 1);
}

static void flip_busy(struct load_worker *w, const struct load_op *op)
{
	uint64_t i = op->block - w->first_block, end = i + op->nr_blocks;

	for (; w->busy && i < end; i++)
		w->busy[i / 64] ^= UINT64_C(1) << (i % 64);
}

/* Blocks from op->block on that are free and belong to this worker, at most `most`. */
static uint32_t free_run(const struct load_worker *w, uint64_t block, uint64_t most)
{
	uint64_t end = w->first_block + w->nr_blocks, n = 0;

	while (n < most && block + n < end && !is_busy(w, block + n))
		n++;
	return (uint32_t)n;
}

/* ---- choosing the next request --------------------------------------------------------------- */

static bool choose_block(struct load_worker *w, uint64_t *ret_block)
{
	uint64_t end = w->first_block + w->nr_blocks, block, tries;

	if (w->load->o.rw == LOAD_READ || w->load->o.rw == LOAD_WRITE) {
		if (is_busy(w, w->next_block))
			return false;	/* the disk is as small as the depth: wait for it */
		*ret_block = w->next_block++;
		if (w->next_block == end)
			w->next_block = w->first_block;
		return true;
	}
	block = w->first_block + vu_random_below(&w->rng, w->nr_blocks);
	for (tries = 0; tries < w->nr_blocks; tries++) {
		if (!is_busy(w, block)) {
			*ret_block = block;
			return true;
		}
		if (++block == end)
			block = w->first_block;
	}
	return false;
}

static enum load_kind choose_kind(struct load_worker *w)
{
	const struct load_options *o = &w->load->o;
	unsigned dice;

	if (o->discard_percent + o->zeroes_percent > 0) {
		dice = (unsigned)vu_random_below(&w->rng, 100);
		if (dice < o->discard_percent)
			return KIND_DISCARD;
		if (dice < o->discard_percent + o->zeroes_percent)
			return KIND_ZEROES;
	}
	switch (o->rw) {
	case LOAD_READ:
	case LOAD_RANDREAD:
		return KIND_READ;
	case LOAD_WRITE:
	case LOAD_RANDWRITE:
		return KIND_WRITE;
	default:
		return vu_random_below(&w->rng, 100) < o->read_percent ? KIND_READ : KIND_WRITE;
	}
}

/* False: nothing can be started before something in flight is finished. */
static bool choose_op(struct load_worker *w, struct load_op *op)
{
	const struct load *l = w->load;
	uint64_t most;

	*op = (struct load_op){ .kind = KIND_FLUSH };
	if (l->o.flush_every > 0 && w->since_flush >= l->o.flush_every) {
		w->since_flush = 0;
		return true;
	}
	if (!choose_block(w, &op->block))
		return false;
	op->kind = choose_kind(w);
	op->nr_blocks = 1;
	if (op->kind == KIND_DISCARD || op->kind == KIND_ZEROES) {
		most = (op->kind == KIND_DISCARD ? l->limits.max_discard_len
						 : l->limits.max_zeroes_len) / l->o.block_len;
		if (most > MAX_RUN)
			most = MAX_RUN;
		op->nr_blocks = free_run(w, op->block, 1 + vu_random_below(&w->rng, most));
	}
	return true;
}

/* ---- starting requests ----------------------------------------------------------------------- */

static uint64_t disk_off(const struct load *l, uint64_t block)
{
	return l->o.range_off + block * l->o.block_len;
}

/* Build the request that op describes. */
static void build(struct load_worker *w, struct load_op *op, struct vu_io *io)
{
	const struct load *l = w->load;
	uint64_t off = disk_off(l, op->block);
	uint32_t len = op->nr_blocks * l->o.block_len;
	struct vu_range range = { off, len, false };

	switch (op->kind) {
	case KIND_READ:
		vu_io_read(io, off, len);
		break;
	case KIND_WRITE:
		if (l->o.verify) {
			if (++w->gen == MODEL_ZEROES)
				w->gen = 1;
			op->gen = w->gen;
			model_fill(&l->model, off / VU_SECTOR, len / VU_SECTOR, op->gen, io->data);
		}
		vu_io_write(io, off, len);
		w->since_flush++;
		break;
	case KIND_FLUSH:
		vu_io_flush(io);
		break;
	case KIND_DISCARD:
		vu_io_discard(io, &range, 1);
		break;
	default:
		range.unmap = l->limits.may_unmap && (vu_random(&w->rng) & 1);
		vu_io_write_zeroes(io, &range, 1);
		break;
	}
}

/* Hand a built request to the ring; it starts with the next kick. */
static int launch(struct load_worker *w, struct vu_io *io, unsigned *nr_batch)
{
	struct load_op *op = &w->op[io->slot];
	int ret = vu_blk_submit(&w->blk, io);

	if (ret < 0)
		return ret;
	op->seq = w->nr_started++;
	flip_busy(w, op);
	w->nr_inflight++;
	w->batch[(*nr_batch)++] = io;
	return 0;
}

/* Stamp and kick all that was launched. */
static int kick(struct load_worker *w, unsigned nr_batch)
{
	uint64_t now = vu_now_ns();
	unsigned i;

	for (i = 0; i < nr_batch; i++)
		w->op[w->batch[i]->slot].start_ns = now;
	return vu_blk_kick(&w->blk);
}

static bool has_room(const struct load_worker *w)
{
	return w->blk.nr_pool > 0 && w->blk.ring->nr_free >= w->load->descs_per_io;
}

/* Fill the queue. */
static int start_batch(struct load_worker *w)
{
	unsigned nr_batch = 0;
	int ret;

	while (has_room(w) && w->nr_issued < w->max_ops) {
		struct load_op op;
		struct vu_io *io;

		if (!choose_op(w, &op))
			break;
		io = vu_blk_get(&w->blk);
		build(w, &op, io);
		w->op[io->slot] = op;
		ret = launch(w, io, &nr_batch);
		if (ret < 0)
			return ret;
		w->nr_issued += op.kind != KIND_FLUSH;
	}
	return nr_batch > 0 ? kick(w, nr_batch) : 0;
}

/* ---- finishing requests ---------------------------------------------------------------------- */

static const char *kind_verb(enum load_kind kind)
{
	static const char *const verb[NR_KINDS] = { "read", "write", "flush", "discard",
						    "write-zeroes" };

	return verb[kind];
}

static void say_failure(struct load_worker *w, const struct load_op *op, const char *what)
{
	uint64_t sector = disk_off(w->load, op->block) / VU_SECTOR;
	uint64_t nr = (uint64_t)op->nr_blocks * w->load->o.block_len / VU_SECTOR;

	if (w->nr_said++ < MAX_SAID)
		load_say(w->load, "queue %u: %s of %" PRIu64 " sectors at sector %" PRIu64 ": %s",
			 w->q, kind_verb(op->kind), nr, sector, what);
	else if (w->nr_said == MAX_SAID + 1)
		load_say(w->load, "queue %u: further failures are only counted", w->q);
}

static const char *why(const struct vu_io *io)
{
	switch (io->ret) {
	case -EIO:
		return "the device answered with an I/O error (status 1)";
	case -ENOTSUP:
		return "the device answered that it does not support this (status 2)";
	default:
		return io->dev_status == VU_NO_STATUS ? "the device wrote no status" :
							"the device wrote an unknown status";
	}
}

/* Bring the model up to date after a finished request, or hold what was read against it. */
static void learn(struct load_worker *w, const struct load_op *op, const struct vu_io *io)
{
	struct model *m = &w->load->model;
	uint64_t sector = disk_off(w->load, op->block) / VU_SECTOR;
	uint64_t nr = (uint64_t)op->nr_blocks * w->load->o.block_len / VU_SECTOR;
	struct vu_err first;
	unsigned wrong;

	switch (op->kind) {
	case KIND_READ:
		if (io->ret < 0)
			break;
		wrong = model_check(m, sector, nr, io->data, &first);
		if (wrong > 0) {
			load_bump(&w->nr_mismatches, wrong);
			say_failure(w, op, first.text);
		}
		break;
	case KIND_WRITE:
		model_set(m, sector, nr, io->ret == 0 ? op->gen : MODEL_UNKNOWN);
		break;
	case KIND_DISCARD:
		model_set(m, sector, nr, MODEL_UNKNOWN);
		break;
	case KIND_ZEROES:
		model_set(m, sector, nr, io->ret == 0 ? MODEL_ZEROES : MODEL_UNKNOWN);
		break;
	default:
		break;
	}
}

static void finish(struct load_worker *w, struct vu_io *io, uint64_t now)
{
	struct load_op *op = &w->op[io->slot];
	uint64_t len = (uint64_t)op->nr_blocks * w->load->o.block_len;

	w->nr_inflight--;
	flip_busy(w, op);
	if (io->ret < 0) {
		load_bump(&w->nr_errors, 1);
		say_failure(w, op, why(io));
	}
	if (w->load->o.verify)
		learn(w, op, io);
	if (op->readback) {
		if (io->ret == 0)
			load_bump(&w->nr_verified, len / VU_SECTOR);
	} else {
		hist_add(&w->hist[op->kind], now - op->start_ns);
		load_bump(&w->count[op->kind].ops, 1);
		load_bump(&w->count[op->kind].bytes, len);
		w->written |= op->kind != KIND_READ && op->kind != KIND_FLUSH;
	}
	vu_blk_put(&w->blk, io);
}

/* Name the oldest request that the device owes us. */
static void say_oldest(struct load_worker *w)
{
	const struct load_op *oldest = NULL;
	unsigned i, k;

	for (i = 0; i < w->load->o.depth; i++) {
		bool free = false;

		for (k = 0; k < w->blk.nr_pool; k++)
			free |= w->blk.pool[k]->slot == i;
		if (!free && (!oldest || w->op[i].start_ns < oldest->start_ns))
			oldest = &w->op[i];
	}
	if (oldest)
		say_failure(w, oldest, "the oldest request without an answer");
}

/* Wait for at least one request and finish all that are done. *ret_now: when that was. */
static int await(struct load_worker *w, uint64_t *ret_now)
{
	struct vu_io *done[REAP];
	uint64_t now;
	int n, i, ret;

	n = vu_blk_reap(&w->blk, done, REAP);
	while (n == 0) {
		ret = vu_blk_wait(&w->blk, vu_deadline_ns(w->load->o.timeout_ms));
		if (ret == -ETIMEDOUT)
			say_oldest(w);
		if (ret == -ECONNRESET)
			ret = load_link_lost(w);
		if (ret < 0 && ret != -EINTR)
			return ret;
		n = vu_blk_reap(&w->blk, done, REAP);
	}
	if (n < 0)
		return n;
	now = vu_now_ns();
	for (i = 0; i < n; i++)
		finish(w, done[i], now);
	*ret_now = now;
	return 0;
}

/* ---- the two phases -------------------------------------------------------------------------- */

/* Told from outside to be done with it; not before there was a load at all. */
static bool told_to_end(const struct load_worker *w)
{
	return w->nr_started > 0 && __atomic_load_n(&w->load->time_over, __ATOMIC_RELAXED);
}

static int run_load(struct load_worker *w)
{
	const struct load_options *o = &w->load->o;
	uint64_t until;
	int ret = 0;

	w->begin_ns = w->end_ns = vu_now_ns();
	until = o->runtime_ns ? w->begin_ns + o->runtime_ns : UINT64_MAX;
	while (ret == 0) {
		if (w->end_ns < until && !told_to_end(w) && !stopping(w->load))
			ret = start_batch(w);
		if (w->nr_inflight == 0)
			break;
		if (ret == 0)
			ret = await(w, &w->end_ns);
	}
	return ret;
}

/* Start reading back from *block on; afterwards *block is the first that is left. */
static int start_readback(struct load_worker *w, uint64_t *block)
{
	const struct load *l = w->load;
	uint64_t end = w->first_block + w->nr_blocks;
	uint32_t most = w->blk.buf_len / l->o.block_len, block_sectors = l->o.block_len / VU_SECTOR;
	unsigned nr_batch = 0;
	int ret;

	while (has_room(w)) {
		struct vu_io *io;
		uint32_t n = 0;

		while (*block < end &&
		       !model_known(&l->model, disk_off(l, *block) / VU_SECTOR, block_sectors))
			++*block;
		while (n < most && *block + n < end &&
		       model_known(&l->model, disk_off(l, *block + n) / VU_SECTOR, block_sectors))
			n++;
		if (n == 0)
			break;
		io = vu_blk_get(&w->blk);
		w->op[io->slot] = (struct load_op){ .kind = KIND_READ, .readback = true,
						    .block = *block, .nr_blocks = n };
		vu_io_read(io, disk_off(l, *block), n * l->o.block_len);
		*block += n;
		ret = launch(w, io, &nr_batch);
		if (ret < 0)
			return ret;
	}
	return nr_batch > 0 ? kick(w, nr_batch) : 0;
}

/* Read back all that is known of this worker's part and compare. */
static int run_readback(struct load_worker *w)
{
	uint64_t block = w->first_block, now;
	int ret = 0;

	while (ret == 0) {
		if (!stopping(w->load))
			ret = start_readback(w, &block);
		if (w->nr_inflight == 0)
			break;
		if (ret == 0)
			ret = await(w, &now);
	}
	return ret;
}

/*
 * The last flush of the load, when anything was written and the device can flush. It stands in
 * the results with its own duration, but the time it takes is not time of the load.
 */
static int flush_at_end(struct load_worker *w)
{
	unsigned nr_batch = 0;
	struct vu_io *io;
	uint64_t now;
	int ret;

	if (!w->written || !w->load->limits.has_flush)
		return 0;
	io = vu_blk_get(&w->blk);
	w->op[io->slot] = (struct load_op){ .kind = KIND_FLUSH };
	build(w, &w->op[io->slot], io);
	ret = launch(w, io, &nr_batch);
	if (ret == 0)
		ret = kick(w, nr_batch);
	while (ret == 0 && w->nr_inflight > 0)
		ret = await(w, &now);
	return ret;
}

/* ---- a back end that knows nothing of what was in flight ------------------------------------- */

static bool in_pool(const struct load_worker *w, unsigned slot)
{
	unsigned k;

	for (k = 0; k < w->blk.nr_pool; k++)
		if (w->blk.pool[k]->slot == slot)
			return true;
	return false;
}

/* Requests that are not in the pool, in the order in which they were started. */
static unsigned outstanding(struct load_worker *w)
{
	unsigned nr = 0, i, k;

	for (i = 0; i < w->load->o.depth; i++) {
		if (in_pool(w, i))
			continue;
		for (k = nr++; k > 0 && w->op[w->batch[k - 1]->slot].seq > w->op[i].seq; k--)
			w->batch[k] = w->batch[k - 1];
		w->batch[k] = &w->blk.ios[i];
	}
	return nr;
}

int load_worker_offer_again(struct load_worker *w)
{
	unsigned nr = outstanding(w), i;
	int ret = 0;

	vu_ring_set_packed(w->blk.ring, w->blk.ring->packed);
	for (i = 0; ret == 0 && i < nr; i++)
		ret = vu_blk_submit(&w->blk, w->batch[i]);
	return ret < 0 ? ret : vu_blk_kick(&w->blk);
}

void *load_worker_main(void *worker)
{
	struct load_worker *w = worker;
	int ret;

	ret = run_load(w);
	if (ret == 0)
		ret = flush_at_end(w);
	if (ret == 0 && w->load->o.verify && !stopping(w->load)) {
		__atomic_store_n(&w->verifying, true, __ATOMIC_RELAXED);
		ret = run_readback(w);
	}
	if (ret < 0) {
		w->fatal = w->blk.err;
		load_say(w->load, "%s", w->fatal.text);
		__atomic_store_n(&w->load->stop, true, __ATOMIC_RELAXED);
	}
	load_worker_ended(w);
	return NULL;
}
