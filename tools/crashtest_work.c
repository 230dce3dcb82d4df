/* SPDX-License-Identifier: MIT */
/*
 * tools/crashtest_work.c - the workload of varve crashtest: a seeded guest, and what it was promised
 *
 * Several requests are in flight; those that touch the same sectors never are, so each sector has an order of
 * versions that does not depend on timing. What a flush promises: all that had completed when it was
 * submitted, from the moment it completes. That moment is a length of the log, which only grows.
 */
#include "crashtest.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct slot {
	struct ct_op *op; /* NULL: a flush, or free */
	bool busy, flush;
	uint8_t *covered; /* flush: the ops that it promises, a bit each */
	uint8_t *buf;
	struct iovec iov;
};

struct run {
	struct ct_work *w;
	struct varve_queue *queue;
	struct varve_image *image;
	int log_fd;
	uint64_t rng, seq_at;
	struct slot slots[CT_DEPTH_MAX];
	unsigned busy, since_flush;
	bool writethrough;
	int error;
};

/* The first number of a sector's content; the others follow from it. */
static uint64_t fill_first(uint64_t seed, uint32_t op, uint64_t sector)
{
	uint64_t x = (uint64_t)op << 40 ^ sector ^ seed * 0x9e3779b97f4a7c15ull;

	return ct_random(&x) | 1; /* never zeroes */
}

void ct_fill(uint8_t *to, uint64_t seed, uint32_t op, uint64_t sector)
{
	uint64_t first = fill_first(seed, op, sector);

	/* Few numbers, so that it can be compressed. */
	for (unsigned i = 0; i < CT_SECTOR / 8; i++) {
		uint64_t v = first + i / 16 * 0x0101010101010101ull;

		memcpy(to + (size_t)i * 8, &v, 8);
	}
}

static uint64_t log_len(const struct run *r)
{
	struct stat st;

	return fstat(r->log_fd, &st) < 0 ? UINT64_MAX : (uint64_t)st.st_size;
}

/* ---- choosing ---- */

static bool overlaps(const struct run *r, uint64_t sector, uint64_t nr)
{
	for (unsigned i = 0; i < r->w->o->depth; i++) {
		const struct ct_op *op = r->slots[i].busy ? r->slots[i].op : NULL;

		if (op && sector < op->sector + op->nr && op->sector < sector + nr)
			return true;
	}
	return false;
}

static void choose(struct run *r, struct ct_op *op)
{
	const struct ct_options *o = r->w->o;
	uint64_t sectors = r->w->len / CT_SECTOR, max = MIN(o->maxlen / CT_SECTOR, sectors);
	unsigned kind = (unsigned)(ct_random(&r->rng) % 100);

	op->kind = kind < o->zero ? CT_ZERO : kind < o->zero + o->discard ? CT_DISCARD : CT_WRITE;
	op->durable = UINT64_MAX;
	op->nr = 1 + ct_random(&r->rng) % max;
	if (ct_random(&r->rng) % 100 >= o->unaligned && op->nr > 8)
		op->nr &= ~7ull;
	if (ct_random(&r->rng) % 100 < o->seq) {
		if (r->seq_at + op->nr > sectors)
			r->seq_at = 0;
		op->sector = r->seq_at;
		r->seq_at += op->nr;
	} else {
		op->sector = ct_random(&r->rng) % (sectors - op->nr + 1);
		if (ct_random(&r->rng) % 100 >= o->unaligned)
			op->sector &= ~7ull;
	}
}

/* ---- submitting and collecting ---- */

static void promise(struct run *r, const struct slot *s, uint64_t at)
{
	for (unsigned i = 1; i <= r->w->nr_ops; i++) {
		if ((s->covered[i / 8] >> i % 8 & 1) && r->w->ops[i].durable == UINT64_MAX)
			r->w->ops[i].durable = at;
	}
}

static void completed(struct run *r, struct slot *s, int result)
{
	uint64_t at = log_len(r);

	s->busy = false;
	r->busy--;
	if (result < 0) {
		r->error = r->error ? r->error : result;
		return;
	}
	if (s->flush) {
		promise(r, s, at);
		return;
	}
	s->op->completed = true;
	if (s->op->durable == 0) /* FUA */
		s->op->durable = at;
}

static void reap(struct run *r)
{
	struct varve_completion done[CT_DEPTH_MAX];
	int n = varve_queue_reap(r->queue, done, CT_DEPTH_MAX, -1);

	if (n < 0)
		r->error = n;
	for (int i = 0; i < n; i++)
		completed(r, done[i].user_data, done[i].result);
}

static struct slot *slot_free(struct run *r)
{
	for (unsigned i = 0; i < r->w->o->depth; i++) {
		if (!r->slots[i].busy)
			return &r->slots[i];
	}
	return NULL;
}

static void submitted(struct run *r, struct slot *s, int ret)
{
	if (ret < 0) {
		r->error = ret;
		return;
	}
	s->busy = true;
	r->busy++;
}

static void submit_flush(struct run *r, struct slot *s)
{
	s->flush = true;
	s->op = NULL;
	memset(s->covered, 0, r->w->nr_ops / 8 + 1);
	for (unsigned i = 1; i <= r->w->nr_ops; i++)
		s->covered[i / 8] |= (uint8_t)(r->w->ops[i].completed << i % 8);
	submitted(r, s, varve_submit_flush(r->queue, r->image, s));
}

static void submit_op(struct run *r, struct slot *s, uint32_t id)
{
	struct ct_op *op = &r->w->ops[id];
	uint64_t off = op->sector * CT_SECTOR, len = op->nr * CT_SECTOR;
	bool fua = op->kind == CT_WRITE && (r->writethrough || ct_random(&r->rng) % 100 < r->w->o->fua);
	unsigned flags = fua && !r->writethrough ? VARVE_REQ_FUA : 0;
	int ret;

	s->flush = false;
	s->op = op;
	if (r->w->o->compress && ct_random(&r->rng) % 100 < r->w->o->compress)
		flags |= VARVE_REQ_COMPRESS;
	op->durable = fua ? 0 : UINT64_MAX;
	if (op->kind == CT_WRITE) {
		for (uint64_t i = 0; i < op->nr; i++)
			ct_fill(s->buf + i * CT_SECTOR, r->w->o->seed, id, op->sector + i);
		s->iov = (struct iovec){ s->buf, len };
		ret = varve_submit_writev(r->queue, r->image, &s->iov, 1, off, flags, s);
	} else if (op->kind == CT_ZERO) {
		ret = varve_submit_write_zeroes(r->queue, r->image, off, len,
						ct_random(&r->rng) % 2 ? VARVE_REQ_MAY_UNMAP : 0, s);
	} else {
		ret = varve_submit_discard(r->queue, r->image, off, len, s);
	}
	submitted(r, s, ret);
}

static void go(struct run *r)
{
	const struct ct_options *o = r->w->o;

	for (uint32_t id = 1; id <= r->w->nr_ops && !r->error; id++) {
		struct ct_op *op = &r->w->ops[id];

		choose(r, op);
		while (!r->error && (overlaps(r, op->sector, op->nr) || !slot_free(r)))
			reap(r);
		if (r->error)
			break;
		submit_op(r, slot_free(r), id);
		if (o->flush && ++r->since_flush == o->flush) {
			r->since_flush = 0;
			while (!r->error && !slot_free(r))
				reap(r);
			if (!r->error)
				submit_flush(r, slot_free(r));
		}
	}
	while (r->busy) {
		int before = r->error;

		reap(r);
		if (r->error && !before && r->busy)
			continue;
	}
}

/* ---- the image ---- */

static int copy_file(const char *from, const char *to)
{
	int in = open(from, O_RDONLY | O_CLOEXEC),
	    out = open(to, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	char buf[65536];
	ssize_t n = -1;

	if (in >= 0 && out >= 0) {
		while ((n = read(in, buf, sizeof(buf))) > 0) {
			if (write(out, buf, (size_t)n) != n) {
				n = -1;
				break;
			}
		}
	}
	if (n < 0)
		complain("cannot copy %s to %s: %s", from, to, strerror(errno));
	if (in >= 0)
		close(in);
	if (out >= 0)
		close(out);
	return n < 0;
}

static int make_base(const struct ct_options *o, const char *dir, const char *run)
{
	struct varve_error err;
	char base[4096];

	snprintf(base, sizeof(base), "%s/base", dir);
	if (o->image ? copy_file(o->image, base) : 0)
		return 1;
	if (!o->image && varve_image_create(base, o->format, o->len, o->create, 0, NULL, NULL, &err) < 0) {
		complain("%s", err.message);
		return 1;
	}
	return copy_file(base, run);
}

static int run_open(struct run *r, const char *dir)
{
	struct varve_queue_options qo = { .depth = CT_DEPTH_MAX };
	struct varve_open_options oo = { .flags = VARVE_OPEN_WRITABLE | VARVE_OPEN_IMAGE_OPTS,
					 .cache = r->w->o->cache };
	struct varve_error err;
	char text[4 * 4096];

	/* dir has no comma: crashtest.c saw to it */
	snprintf(text, sizeof(text),
		 "driver=%s,file.driver=write-log,file.log=%s/log,file.file.driver=lockstep,file.file.seed=%llu,"
		 "file.file.file.filename=%s/run",
		 r->w->o->format, dir, (unsigned long long)r->w->o->seed, dir);
	if (varve_queue_new(&r->queue, &qo, &err) < 0) {
		complain("%s", err.message);
		return 1;
	}
	oo.home = r->queue;
	if (varve_image_open(&r->image, text, &oo, &err) < 0) {
		complain("%s", err.message);
		return 1;
	}
	snprintf(text, sizeof(text), "%s/log", dir);
	r->log_fd = open(text, O_RDONLY | O_CLOEXEC);
	return 0;
}

static int prepare(struct run *r)
{
	struct ct_work *w = r->w;
	struct varve_error err;

	w->len = varve_image_length(r->image) & ~(uint64_t)(CT_SECTOR - 1);
	if (!w->len || w->len > CT_IMAGE_MAX) {
		complain("a disk of %llu bytes is not 512 bytes .. 256 MiB", (unsigned long long)w->len);
		return 1;
	}
	w->nr_ops = w->o->ops;
	w->ops = calloc((size_t)w->nr_ops + 1, sizeof(*w->ops));
	w->before = malloc(w->len);
	w->versions = calloc(w->len / CT_SECTOR, sizeof(*w->versions));
	for (unsigned i = 0; i < w->o->depth; i++) {
		r->slots[i].buf = malloc(w->o->maxlen);
		r->slots[i].covered = calloc(1, w->nr_ops / 8 + 1);
		if (!r->slots[i].buf || !r->slots[i].covered)
			return complain("out of memory"), 1;
	}
	if (!w->ops || !w->before || !w->versions)
		return complain("out of memory"), 1;
	if (varve_image_read(r->image, 0, w->before, w->len, &err) < 0)
		return complain("%s", err.message), 1;
	return 0;
}

static int note_versions(struct ct_work *w)
{
	for (uint32_t id = 1; id <= w->nr_ops; id++) {
		for (uint64_t i = 0; i < w->ops[id].nr; i++) {
			struct ct_versions *v = &w->versions[w->ops[id].sector + i];
			uint32_t *more = realloc(v->ops, (v->nr + 1) * sizeof(*more));

			if (!more)
				return complain("out of memory"), 1;
			v->ops = more;
			v->ops[v->nr++] = id;
		}
	}
	return 0;
}

static int run_close(struct run *r, int failed)
{
	struct varve_error err;
	int ret = r->image ? varve_image_close(r->image, &err) : 0;

	if (ret < 0 && !failed)
		complain("%s", err.message);
	if (r->log_fd >= 0)
		close(r->log_fd);
	varve_queue_free(r->queue);
	for (unsigned i = 0; i < CT_DEPTH_MAX; i++) {
		free(r->slots[i].buf);
		free(r->slots[i].covered);
	}
	return failed || ret < 0;
}

int ct_work_run(struct ct_work *w, const struct ct_options *o, const char *dir)
{
	struct run r = { .w = w, .rng = o->seed, .log_fd = -1 };
	char name[4096];
	int failed;

	*w = (struct ct_work){ .o = o };
	r.writethrough = o->cache && (!strcmp(o->cache, "writethrough") || !strcmp(o->cache, "directsync"));
	snprintf(name, sizeof(name), "%s/run", dir);
	failed = make_base(o, dir, name) || run_open(&r, dir) || prepare(&r);
	if (!failed) {
		go(&r);
		if (r.error) {
			complain("the workload failed: %s", strerror(-r.error));
			failed = 1;
		}
	}
	failed = run_close(&r, failed);
	return failed || note_versions(w);
}

void ct_work_free(struct ct_work *w)
{
	for (uint64_t i = 0; w->versions && i < w->len / CT_SECTOR; i++)
		free(w->versions[i].ops);
	free(w->versions);
	free(w->before);
	free(w->ops);
}

/* ---- judging ---- */

static bool holds(const struct ct_work *w, uint32_t id, uint64_t sector, const uint8_t *bytes)
{
	static const uint8_t zeroes[CT_SECTOR];
	uint8_t want[CT_SECTOR];
	uint64_t first;

	if (id && w->ops[id].kind != CT_WRITE)
		return !memcmp(bytes, zeroes, CT_SECTOR);
	if (!id)
		return !memcmp(bytes, w->before + sector * CT_SECTOR, CT_SECTOR);
	first = fill_first(w->o->seed, id, sector);
	if (memcmp(bytes, &first, sizeof(first)) != 0)
		return false;
	ct_fill(want, w->o->seed, id, sector);
	return !memcmp(bytes, want, CT_SECTOR);
}

bool ct_sector_allowed(const struct ct_work *w, uint64_t sector, const uint8_t *bytes, uint64_t at, char *why,
		       size_t why_len)
{
	const struct ct_versions *v = &w->versions[sector];
	unsigned nr = v->nr;
	uint32_t promised = 0, holding = UINT32_MAX;

	/* From the newest back to what was promised. A discard is advice: what was there before it may be
	 * there still. */
	for (;; nr--) {
		uint32_t id = nr ? v->ops[nr - 1] : 0;

		if (holds(w, id, sector, bytes))
			return true;
		if (!nr)
			break;
		if (!promised && w->ops[id].durable <= at)
			promised = id;
		if (promised && w->ops[id].kind != CT_DISCARD)
			break;
	}
	for (nr = v->nr; holding == UINT32_MAX && nr; nr--) {
		if (holds(w, v->ops[nr - 1], sector, bytes))
			holding = v->ops[nr - 1];
	}
	if (holding == UINT32_MAX && holds(w, 0, sector, bytes))
		holding = 0;
	if (holding == UINT32_MAX)
		snprintf(why, why_len,
			 "sector %llu holds bytes that were never written there; promised was op %u",
			 (unsigned long long)sector, promised);
	else
		snprintf(why, why_len,
			 "sector %llu holds what op %u left there, older than op %u, which was promised",
			 (unsigned long long)sector, holding, promised);
	return false;
}
