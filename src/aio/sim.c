/* SPDX-License-Identifier: MIT */
/*
 * aio/sim.c - the engine "sim": a file in memory whose timing, failures and power cuts tests decide
 *
 * Owns:    the content of its files, the operations under way, and what changed since it was last stable.
 * Assumes: one queue's thread per file. It is for tests: memory that runs out ends the process.
 * Never:   looks at the real clock, or at anything but its seed, to decide.
 *
 * A change (write, discard, zero) is recorded when it is submitted and takes effect when it completes. `now`,
 * the content that readers see, has all changes that took effect; `stable` has those that are known to
 * survive a power cut. Between them lies the list of records, in order of submission, each in one of these
 * states:
 *
 *   PENDING ──effect──▶ VOLATILE ──flush──▶ FORCED ──settle──▶ in `stable`, off the list
 *      └────────effect with FUA───────────────▲
 *                          └──failed flush──▶ LOST
 *
 * A flush counts for what took effect before it was submitted. A lost change may survive or not, and no later
 * flush decides it, because a kernel marks pages clean although their writing failed: only writing the range
 * again does. A forced record stays on the list while one that took effect earlier is there and not forced.
 */
#include "aio/sim.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "aio/loop.h"
#include "base/error.h"
#include "base/iov.h"
#include "base/random.h"

#define DISCARDED 0xdb /* what a discarded range reads as: nobody may rely on zeroes */
#define SECTOR 512

/* ---- structures ---- */

enum change_state { CHANGE_PENDING, CHANGE_VOLATILE, CHANGE_LOST, CHANGE_FORCED };

/* A write, discard or zero. */
struct change {
	TAILQ_ENTRY(change) link;
	enum change_state state;
	uint64_t effect_nr; /* when it took effect: counts effects and submitted flushes */
	uint64_t off, len;
	uint8_t *data;		 /* from the effect on; len bytes */
	const struct aio_op *op; /* until then */
};

/* An operation between aio_submit() and its effect. */
struct pending {
	TAILQ_ENTRY(pending) link;
	struct sim_file *s;
	struct timer timer;
	struct aio_op *op;
	struct change *change; /* write, discard, zero */
	uint64_t submit_nr;    /* flush: covers effects before this */
	int64_t fault;
};

TAILQ_HEAD(change_list, change);

struct content {
	uint8_t *bytes;
	uint64_t len, room;
};

struct sim_file {
	struct aio_file *file;
	struct sim_opts opts;
	uint64_t random;
	struct content now, stable;
	TAILQ_HEAD(, pending) pending;
	struct change_list changes;
	uint64_t nr_ops, clock; /* clock: numbers effects and flushes */
	int64_t (*fault)(void *arg, uint64_t nr, const struct aio_op *op);
	void *fault_arg;
};

/* Per queue: what has taken effect and waits for the loop to deliver it. */
struct sim_ctx {
	struct aio_op *done, **done_tail;
};

/* ---- small tools ---- */

static void *must(void *p)
{
	if (!p) {
		fputs("sim: out of memory\n", stderr);
		abort();
	}
	return p;
}

static void content_resize(struct content *c, uint64_t len)
{
	if (len > c->room) {
		c->room = MAX(len, 2 * c->room);
		c->bytes = must(realloc(c->bytes, c->room));
	}
	if (len > c->len)
		memset(c->bytes + c->len, 0, len - c->len);
	c->len = len;
}

static void content_put(struct content *c, uint64_t off, const void *data, uint64_t len)
{
	if (!len)
		return;
	if (off + len > c->len)
		content_resize(c, off + len);
	memcpy(c->bytes + off, data, len);
}

/* What op puts into its range; the caller frees it. A discard stops at the end of the file. */
static uint8_t *change_data(const struct aio_op *op, uint64_t file_len, uint64_t *ret_len)
{
	uint64_t len = op->opcode == AIO_WRITE ? iov_len(op->iov, op->nr_iov) : op->len;
	uint8_t *data;

	if (op->opcode == AIO_DISCARD)
		len = op->off >= file_len ? 0 : MIN(len, file_len - op->off);
	data = must(malloc(len + 1));
	if (op->opcode == AIO_WRITE)
		iov_to_buf(op->iov, op->nr_iov, 0, data, len);
	else
		memset(data, op->opcode == AIO_ZERO ? 0 : DISCARDED, len);
	*ret_len = len;
	return data;
}

/* ---- from volatile to stable ---- */

static void change_free(struct sim_file *s, struct change *c)
{
	TAILQ_REMOVE(&s->changes, c, link);
	free(c->data);
	free(c);
}

/* The record that took effect first of those that took effect; NULL: none. */
static struct change *oldest_effect(const struct change_list *list, uint64_t after)
{
	struct change *c, *oldest = NULL;

	TAILQ_FOREACH(c, list, link) {
		if (c->state != CHANGE_PENDING && c->effect_nr > after &&
		    (!oldest || c->effect_nr < oldest->effect_nr))
			oldest = c;
	}
	return oldest;
}

/* Folds forced records into the stable content, as long as no older one could still come out on top. */
static void settle(struct sim_file *s)
{
	struct change *c;

	while ((c = oldest_effect(&s->changes, 0)) && c->state == CHANGE_FORCED) {
		content_put(&s->stable, c->off, c->data, c->len);
		change_free(s, c);
	}
}

/* True if a forced record that took effect later replaces all of c. */
static bool superseded(const struct sim_file *s, const struct change *c)
{
	const struct change *by;

	TAILQ_FOREACH(by, &s->changes, link) {
		if (by->state == CHANGE_FORCED && by->effect_nr > c->effect_nr && by->off <= c->off &&
		    by->off + by->len >= c->off + c->len)
			return true;
	}
	return false;
}

/* Some records became forced: drops what they replaced, and settles. */
static void forced(struct sim_file *s)
{
	struct change *c, *next;

	for (c = TAILQ_FIRST(&s->changes); c; c = next) {
		next = TAILQ_NEXT(c, link);
		if ((c->state == CHANGE_VOLATILE || c->state == CHANGE_LOST) && superseded(s, c))
			change_free(s, c);
	}
	settle(s);
}

static void flush_effect(struct sim_file *s, const struct pending *p, bool ok)
{
	struct change *c;

	TAILQ_FOREACH(c, &s->changes, link) {
		if (c->state == CHANGE_VOLATILE && c->effect_nr < p->submit_nr)
			c->state = ok ? CHANGE_FORCED : CHANGE_LOST;
	}
	if (ok)
		forced(s);
}

/* ---- effects ---- */

/* res: negative, it failed and nothing changes; positive, only so many bytes of a write. */
static int64_t change_effect(struct sim_file *s, struct pending *p, int64_t res)
{
	struct change *c = p->change;

	if (res >= 0 && p->op->opcode != AIO_DISCARD && p->op->off + p->op->len > SIM_LEN_MAX)
		res = -EFBIG;
	if (res < 0) {
		change_free(s, c);
		return res;
	}
	c->data = change_data(p->op, s->now.len, &c->len);
	c->op = NULL;
	if (res > 0 && p->op->opcode == AIO_WRITE)
		c->len = MIN(c->len, (uint64_t)res);
	res = p->op->opcode == AIO_WRITE ? (int64_t)c->len : 0;
	c->effect_nr = ++s->clock;
	content_put(&s->now, c->off, c->data, c->len);
	if (p->op->flags & AIO_FUA) {
		c->state = CHANGE_FORCED;
		forced(s);
	} else {
		c->state = CHANGE_VOLATILE;
	}
	return res;
}

static int64_t read_effect(struct sim_file *s, const struct aio_op *op, int64_t res)
{
	uint64_t len = iov_len(op->iov, op->nr_iov);

	if (res < 0)
		return res;
	len = op->off >= s->now.len ? 0 : MIN(len, s->now.len - op->off);
	if (res > 0)
		len = MIN(len, (uint64_t)res);
	return (int64_t)iov_from_buf(op->iov, op->nr_iov, 0, s->now.bytes + (len ? op->off : 0), len);
}

static void ctx_add(struct queue *q, struct aio_op *op, int64_t res)
{
	struct sim_ctx *ctx = NULL;

	for (unsigned i = 0; i < q->nr_engines; i++) {
		if (q->engines[i].engine == &aio_engine_sim)
			ctx = q->engines[i].ctx;
	}
	op->res = res;
	op->next = NULL;
	*ctx->done_tail = op;
	ctx->done_tail = &op->next;
}

/* p takes effect now; the requester hears of it when the loop reaps. */
static void effect(struct pending *p, int64_t res)
{
	struct sim_file *s = p->s;
	struct aio_op *op = p->op;

	if (op->opcode == AIO_READ) {
		res = read_effect(s, op, res);
	} else if (op->opcode == AIO_FLUSH) {
		flush_effect(s, p, res >= 0);
		res = MIN(res, 0);
	} else {
		res = change_effect(s, p, res);
	}
	timer_cancel(op->q, &p->timer);
	TAILQ_REMOVE(&s->pending, p, link);
	free(p);
	ctx_add(op->q, op, res);
}

static void pending_fire(struct timer *t)
{
	struct pending *p = container_of(t, struct pending, timer);

	effect(p, p->fault);
}

/* ---- the engine ---- */

static int sim_attach(struct queue *q, void **ret_ctx, struct varve_error *err)
{
	struct sim_ctx *ctx = malloc(sizeof(*ctx));

	(void)q;
	if (!ctx)
		return varve_error_set(err, -ENOMEM, "out of memory for the aio engine 'sim'");
	ctx->done = NULL;
	ctx->done_tail = &ctx->done;
	*ret_ctx = ctx;
	return 0;
}

static void sim_detach(struct queue *q, void *ctx)
{
	(void)q;
	free(ctx);
}

static void sim_submit(void *ctx, struct aio_op *op)
{
	struct sim_file *s = op->file->engine_data;
	struct pending *p = must(calloc(1, sizeof(*p)));

	(void)ctx;
	p->s = s;
	p->op = op;
	p->fault = s->fault ? s->fault(s->fault_arg, s->nr_ops, op) : 0;
	s->nr_ops++;
	if (op->opcode == AIO_FLUSH) {
		p->submit_nr = ++s->clock;
	} else if (op->opcode != AIO_READ) {
		p->change = must(calloc(1, sizeof(*p->change)));
		p->change->off = op->off;
		p->change->op = op;
		TAILQ_INSERT_TAIL(&s->changes, p->change, link);
	}
	TAILQ_INSERT_TAIL(&s->pending, p, link);
	p->timer.fire = pending_fire;
	if (!s->opts.manual) {
		const uint64_t spread = s->opts.max_ns - s->opts.min_ns;
		const uint64_t ns = s->opts.min_ns + (spread ? random_next(&s->random) % (spread + 1) : 0);

		timer_set(op->q, &p->timer, queue_now(op->q) + ns);
	}
}

static unsigned sim_reap(void *arg)
{
	struct sim_ctx *ctx = arg;
	struct aio_op *op = ctx->done;
	unsigned n = 0;

	ctx->done = NULL;
	ctx->done_tail = &ctx->done;
	for (; op; n++) {
		struct aio_op *next = op->next;

		op->q->stats.aio_completed++;
		op->done(op, op->res);
		op = next;
	}
	return n;
}

const struct aio_engine aio_engine_sim = {
	.name = "sim",
	.attach = sim_attach,
	.detach = sim_detach,
	.submit = sim_submit,
	.reap = sim_reap,
};

/* ---- files ---- */

int sim_file_new(struct sim_file **ret, struct aio_file *file, const struct sim_opts *opts)
{
	struct sim_file *s = calloc(1, sizeof(*s));

	if (!s)
		return -ENOMEM;
	assert(opts->min_ns <= opts->max_ns);
	s->opts = *opts;
	s->random = opts->seed;
	s->file = file;
	TAILQ_INIT(&s->pending);
	TAILQ_INIT(&s->changes);
	content_resize(&s->now, opts->len);
	content_resize(&s->stable, opts->len);
	*file = (struct aio_file){ .engine = &aio_engine_sim, .fd = -1, .engine_data = s, .name = "sim" };
	*ret = s;
	return 0;
}

void sim_file_free(struct sim_file *s)
{
	if (!s)
		return;
	assert(TAILQ_EMPTY(&s->pending) && "a sim file was freed with operations under way");
	while (!TAILQ_EMPTY(&s->changes))
		change_free(s, TAILQ_FIRST(&s->changes));
	free(s->now.bytes);
	free(s->stable.bytes);
	free(s);
}

uint64_t sim_len(const struct sim_file *s)
{
	return s->now.len;
}

int sim_truncate(struct sim_file *s, uint64_t len)
{
	struct change *c, *next;

	if (len > SIM_LEN_MAX)
		return -EFBIG;
	content_resize(&s->now, len);
	content_resize(&s->stable, len);
	for (c = TAILQ_FIRST(&s->changes); c; c = next) {
		next = TAILQ_NEXT(c, link);
		if (c->state == CHANGE_PENDING || c->off + c->len <= len)
			continue;
		if (c->off >= len)
			change_free(s, c);
		else
			c->len = len - c->off;
	}
	return 0;
}

void sim_peek(const struct sim_file *s, uint64_t off, void *buf, size_t len)
{
	const size_t have = off >= s->now.len ? 0 : (size_t)MIN(len, s->now.len - off);

	if (have)
		memcpy(buf, s->now.bytes + off, have);
	if (len > have)
		memset((uint8_t *)buf + have, 0, len - have);
}

void sim_poke(struct sim_file *s, uint64_t off, const void *buf, size_t len)
{
	struct change *c;

	/* Above every earlier write, whatever becomes of those. */
	content_put(&s->now, off, buf, len);
	content_put(&s->stable, off, buf, len);
	TAILQ_FOREACH(c, &s->changes, link) {
		const uint64_t from = MAX(c->off, off), to = MIN(c->off + c->len, off + len);

		if (c->state != CHANGE_PENDING && from < to)
			memcpy(c->data + (from - c->off), (const uint8_t *)buf + (from - off), to - from);
	}
}

/* ---- manual completion, faults ---- */

unsigned sim_pending(const struct sim_file *s)
{
	const struct pending *p;
	unsigned n = 0;

	TAILQ_FOREACH(p, &s->pending, link)
		n++;
	return n;
}

static struct pending *pending_nr(const struct sim_file *s, unsigned i)
{
	struct pending *p = TAILQ_FIRST(&s->pending);

	while (p && i--)
		p = TAILQ_NEXT(p, link);
	assert(p && "there are fewer pending operations");
	return p;
}

const struct aio_op *sim_op(const struct sim_file *s, unsigned i)
{
	return pending_nr(s, i)->op;
}

void sim_complete(struct sim_file *s, unsigned i, int64_t res)
{
	struct pending *p = pending_nr(s, i);

	effect(p, res ? res : p->fault);
}

void sim_set_fault(struct sim_file *s, int64_t (*fault)(void *arg, uint64_t nr, const struct aio_op *op),
		   void *arg)
{
	s->fault = fault;
	s->fault_arg = arg;
}

uint64_t sim_nr_ops(const struct sim_file *s)
{
	return s->nr_ops;
}

/* ---- power cuts ---- */

unsigned sim_nr_unstable(const struct sim_file *s)
{
	const struct change *c;
	unsigned n = 0;

	TAILQ_FOREACH(c, &s->changes, link)
		n += c->state != CHANGE_FORCED;
	return n;
}

/* A cut in the middle of a write: each sector has the new or the old content. */
static void put_torn(struct content *cut, uint64_t off, const uint8_t *data, uint64_t len, uint64_t *random)
{
	while (len) {
		const uint64_t n = MIN(len, SECTOR - off % SECTOR);

		if (random_next(random) & 1)
			content_put(cut, off, data, n);
		off += n;
		data += n;
		len -= n;
	}
}

static void cut_apply(const struct sim_file *s, struct content *cut, const struct change *c, uint64_t *random)
{
	uint64_t len = c->len;
	uint8_t *data = c->data;

	if (c->state == CHANGE_PENDING)
		data = change_data(c->op, s->now.len, &len);
	if (*random && c->state != CHANGE_FORCED)
		put_torn(cut, c->off, data, len, random);
	else
		content_put(cut, c->off, data, len);
	if (c->state == CHANGE_PENDING)
		free(data);
}

uint8_t *sim_power_cut(const struct sim_file *s, bool (*keep)(void *arg, unsigned i), void *arg,
		       uint64_t torn, uint64_t *ret_len)
{
	struct content cut = { 0 };
	struct change *c;
	bool *kept = must(calloc(sim_nr_unstable(s) + 1, sizeof(*kept)));
	uint64_t effect_nr = 0;
	unsigned i;

	content_put(&cut, 0, s->stable.bytes, s->stable.len);
	for (i = 0; i < sim_nr_unstable(s); i++)
		kept[i] = keep(arg, i);

	/* Those that took effect, in the order in which readers saw them; then the others. */
	while ((c = oldest_effect(&s->changes, effect_nr))) {
		const struct change *other;

		effect_nr = c->effect_nr;
		i = 0;
		for (other = TAILQ_FIRST(&s->changes); other != c; other = TAILQ_NEXT(other, link))
			i += other->state != CHANGE_FORCED;
		if (c->state == CHANGE_FORCED || kept[i])
			cut_apply(s, &cut, c, &torn);
	}
	i = 0;
	TAILQ_FOREACH(c, &s->changes, link) {
		if (c->state == CHANGE_PENDING && kept[i])
			cut_apply(s, &cut, c, &torn);
		i += c->state != CHANGE_FORCED;
	}
	free(kept);
	*ret_len = cut.len;
	content_resize(&cut, MAX(cut.len, s->now.len) + 1); /* never an empty allocation */
	return cut.bytes;
}
