/* SPDX-License-Identifier: MIT */
/*
 * job/emit.c - see emit.h
 *
 *     take ──▶ read, look for zeroes, compress ──▶ wait for one's turn ──▶ give it to the emitter ──▶ next one's turn
 *
 * Some fibers do this side by side. A format that needs to know sizes before the first byte has all of it done twice; the
 * sink sees the second time only. Reading twice costs no memory, which keeping would.
 *
 * Owns:    the fibers, a buffer or two for each, and one in which small writes are gathered.
 * Assumes: a fiber of the home queue; the sources do not change (a second pass that finds something else is an error).
 * Never:   gives the sink a byte out of order.
 */
#include "job/emit.h"

#include <stdlib.h>
#include <string.h>

#include "base/iov.h"
#include "block/graph.h"

#define PIECE_LEN MiB(1)
#define PACKED_PIECE_LEN KiB(256) /* compressing is what takes long: several workers at once */
#define UNITS_MAX 2048		  /* in a piece: 1 MiB of the smallest clusters */
#define STRETCH_LEN GiB(1)	  /* at once, of what is known without reading */
#define GATHERED_LEN KiB(256)
#define LANES_READING 4
#define LANES_PACKING 8
#define PROGRESS_NS 100000000ull
#define SLEEP_NS 10000000ull

enum kind { KIND_SKIP, KIND_ZERO, KIND_DATA };

/* What becomes of one unit of a piece. */
enum fate { FATE_DATA, FATE_ZERO, FATE_PACKED };

struct lane {
	struct fiber_job job;
	struct pass *p;
	uint8_t *buf, *packed;
	uint32_t *lens; /* of packed units; 0: as it is */
	uint8_t *fates;

	/* what it took */
	enum kind kind;
	uint64_t off, len, turn;
};

struct pass {
	const struct emission *o;
	struct varve_error *err;
	struct queue *q;
	bool measuring;
	uint64_t total, unit, piece, granule;
	unsigned nr_lanes;

	struct fiber_mutex taking;
	uint64_t next, nr_taken, turn;
	uint64_t data_off, data_end; /* known to be data */
	struct file_data known;
	struct waitlist turns, ended;
	unsigned nr_running;
	int ret; /* of the first that failed */

	uint8_t *gathered;
	size_t nr_gathered;

	uint64_t done, of, moved; /* of: before this pass */
	uint64_t told_ns, start_ns;
	struct lane lanes[CONVERT_PARALLEL_MAX];
};

static int fail(struct pass *p, int ret, const char *what, const struct node *n, uint64_t off)
{
	if (!p->ret)
		p->ret = varve_error_errno(p->err, ret, "%s: %s at offset %llu", node_name(n), what, (unsigned long long)off);
	waitlist_wake_all(&p->turns);
	return p->ret;
}

static int fail_writing(struct pass *p, int ret)
{
	if (!p->ret && ret == -ESTALE)
		p->ret = varve_error_set(p->err, ret, "the source changed while it was read: what is written is no image");
	else if (!p->ret)
		p->ret = varve_error_errno(p->err, ret, "the image cannot be written");
	waitlist_wake_all(&p->turns);
	return p->ret;
}

/* ---- the way out ---- */

struct sending {
	const struct emission *o;
	const void *buf;
	size_t len;
};

static int send_run(void *arg)
{
	const struct sending *s = arg;

	return s->o->sink(s->o->sink_arg, s->buf, s->len);
}

/* A pipe may block for as long as its reader likes: not this thread. */
static int send(struct fiber *f, const struct pass *p, const void *buf, size_t len)
{
	struct sending s = { p->o, buf, len };

	return len ? fiber_work(f, send_run, &s) : 0;
}

static int pass_write(struct fiber *f, void *arg, const void *buf, size_t len)
{
	struct pass *p = arg;
	int ret = 0;

	if (p->measuring)
		return 0;
	if (len > GATHERED_LEN - p->nr_gathered) {
		ret = send(f, p, p->gathered, p->nr_gathered);
		p->nr_gathered = 0;
	}
	if (ret < 0 || len > GATHERED_LEN)
		return ret < 0 ? ret : send(f, p, buf, len);
	memcpy(p->gathered + p->nr_gathered, buf, len);
	p->nr_gathered += len;
	return 0;
}

/* ---- what comes next ---- */

static const struct convert_source *here(const struct pass *p, uint64_t off)
{
	return source_at(p->o->convert.sources, p->o->convert.nr_sources, off);
}

static enum kind kind_of(const struct pass *p, const struct extent *e, unsigned depth)
{
	if (p->o->convert.over_backing && depth)
		return KIND_SKIP;
	if (!p->o->convert.sparse || (e->kind != EXTENT_ZERO && e->kind != EXTENT_ABSENT))
		return KIND_DATA;
	return p->o->convert.over_backing ? KIND_ZERO : KIND_SKIP;
}

/* What the map says about off, and for how long. Unreadable metadata is data when it is to be salvaged: reading it tells. */
static int look(struct fiber *f, struct pass *p, uint64_t off, enum kind *ret_kind, uint64_t *ret_len)
{
	const struct convert_source *s = here(p, off);
	uint64_t in_source = off - s->start, len = MIN(node_len(s->top) - in_source, STRETCH_LEN);
	struct extent e = { .kind = EXTENT_DATA, .len = len };
	unsigned depth = 0;
	bool present;
	int ret = 0;

	if (off >= p->data_off && off < p->data_end) {
		*ret_kind = KIND_DATA;
		*ret_len = p->data_end - off;
		return 0;
	}
	if (p->o->convert.sparse || p->o->convert.over_backing)
		ret = graph_map_file(f, s->top, in_source, len, &p->known, &e, &depth, &present);
	if (ret < 0 && p->o->convert.salvage) {
		e = (struct extent){ .kind = EXTENT_ERROR, .len = MIN(len, SALVAGE_LEN) };
		ret = 0;
	}
	if (ret < 0)
		return fail(p, ret, "the map", s->top, in_source);
	*ret_kind = kind_of(p, &e, depth);
	*ret_len = e.len;
	if (*ret_kind == KIND_DATA) {
		p->data_off = off;
		p->data_end = off + e.len;
	}
	return 0;
}

/*
 * How far whole units from off on, at most up to end (data: data_end), are of the one kind that the first byte has. off: there are
 * none.
 */
static int stretch(struct fiber *f, struct pass *p, uint64_t off, uint64_t end, uint64_t data_end, enum kind *ret_kind,
		   uint64_t *ret_end)
{
	uint64_t at, len;
	enum kind kind;
	int ret = look(f, p, off, ret_kind, &len);

	if (ret < 0)
		return ret;
	if (*ret_kind == KIND_DATA)
		end = data_end;
	for (at = off + len; ret == 0 && at < end; at += len) {
		ret = look(f, p, at, &kind, &len);
		if (ret == 0 && kind != *ret_kind)
			break;
	}
	*ret_end = at >= end ? end : align_down(at, p->unit);
	return ret;
}

/* From the next byte, which begins a unit: either what needs no reading, or what is to be read, up to the end of its piece. */
static int take_piece(struct fiber *f, struct pass *p, struct lane *l)
{
	uint64_t piece_end = MIN(align_down(p->next, p->piece) + p->piece, p->total), end;
	uint64_t stretch_end = MIN(align_down(p->next, p->piece) + STRETCH_LEN, p->total);
	enum kind kind;
	int ret;

	l->off = p->next;
	ret = stretch(f, p, p->next, stretch_end, piece_end, &l->kind, &end);
	if (ret < 0)
		return ret;
	if (l->kind != KIND_DATA && end > l->off) {
		l->len = end - l->off;
		return 0;
	}
	/* Data, or a unit of several kinds, which is read; then on, until whole units are something else. */
	l->kind = KIND_DATA;
	for (end = MAX(MIN(end, piece_end), MIN(l->off + p->unit, p->total)); end < piece_end;) {
		uint64_t more;

		ret = stretch(f, p, end, piece_end, piece_end, &kind, &more);
		if (ret < 0)
			return ret;
		if (kind != KIND_DATA && more > end)
			break;
		end = more > end ? more : MIN(end + p->unit, p->total);
	}
	l->len = end - l->off;
	return 0;
}

static void rate_wait(struct fiber *f, const struct pass *p)
{
	while (p->o->convert.rate && !p->measuring && !p->ret) {
		double due = (double)p->moved / (double)p->o->convert.rate;

		if (due * 1e9 <= (double)(queue_now(p->q) - p->start_ns))
			return;
		fiber_sleep_until(f, queue_now(p->q) + SLEEP_NS);
	}
}

/* False: there is nothing more, or something failed. */
static bool take(struct fiber *f, struct pass *p, struct lane *l)
{
	bool taken = false;

	fiber_lock(f, &p->taking);
	rate_wait(f, p);
	if (!p->ret && p->next < p->total && take_piece(f, p, l) == 0) {
		p->next = l->off + l->len;
		l->turn = p->nr_taken++;
		if (l->kind == KIND_DATA)
			p->moved += l->len;
		taken = true;
	}
	fiber_unlock(&p->taking);
	return taken;
}

/* ---- reading ---- */

/* What cannot be read is told once, in the pass that writes. */
static int read_piece(struct fiber *f, struct lane *l)
{
	struct pass *p = l->p;

	for (uint64_t pos = 0, step; pos < l->len; pos += step) {
		const struct convert_source *s = here(p, l->off + pos);
		uint64_t off = l->off + pos - s->start;
		int ret;

		step = MIN(l->len - pos, node_len(s->top) - off);
		ret = source_read(f, s, off, l->buf + pos, step);
		if (ret < 0 && p->o->convert.salvage)
			source_salvage(f, s, off, l->buf + pos, step, p->measuring ? NULL : p->o->convert.report, p->o->convert.user_data);
		else if (ret < 0)
			return fail(p, ret, "read", s->top, off);
	}
	memset(l->buf + l->len, 0, align_up(l->len, p->unit) - l->len); /* behind the end of the disk */
	return 0;
}

/* ---- compressing ---- */

/* On a worker's thread: all units of a piece that are data. -ENOTSUP: built without that compression. */
static int pack_run(void *arg)
{
	struct lane *l = arg;
	const struct emission *o = l->p->o;
	uint64_t unit = l->p->unit;

	for (uint64_t i = 0; i < div_up(l->len, unit); i++) {
		size_t len;
		int ret;

		if (l->fates[i] != FATE_DATA)
			continue;
		ret = o->drv->pack(o->emitter, l->buf + i * unit, l->packed + i * unit, &len);
		if (ret < 0 && ret != -ENOSPC)
			return ret;
		if (ret == 0) {
			l->fates[i] = FATE_PACKED;
			l->lens[i] = (uint32_t)len;
		}
	}
	return 0;
}

/* Zeroes are found by the granule, which is a unit or more. */
static void find_zeroes(struct lane *l)
{
	const struct pass *p = l->p;
	uint64_t nr = div_up(l->len, p->unit), end;

	memset(l->fates, FATE_DATA, nr);
	if (!p->o->convert.sparse || p->o->drv->dense)
		return;
	for (uint64_t i = 0; i < nr; i = end) {
		end = MIN((align_down(l->off + i * p->unit, p->granule) + p->granule - l->off) / p->unit, nr);
		if (buf_is_zero(l->buf + i * p->unit, (end - i) * p->unit))
			memset(l->fates + i, FATE_ZERO, end - i);
	}
}

static int prepare(struct fiber *f, struct lane *l)
{
	int ret = read_piece(f, l);

	if (ret < 0)
		return ret;
	find_zeroes(l);
	ret = l->p->o->convert.compress ? fiber_work(f, pack_run, l) : 0;
	return ret < 0 ? fail_writing(l->p, ret) : 0;
}

/* ---- giving it to the emitter ---- */

static int give_data(struct fiber *f, struct lane *l)
{
	const struct emission *o = l->p->o;
	uint64_t unit = l->p->unit, nr = div_up(l->len, unit), end;
	int ret = 0;

	for (uint64_t i = 0; ret == 0 && i < nr; i = end) {
		uint64_t off = l->off + i * unit;

		end = i + 1;
		while (l->fates[i] != FATE_PACKED && end < nr && l->fates[end] == l->fates[i])
			end++;
		if (l->fates[i] == FATE_PACKED)
			ret = o->drv->packed(f, o->emitter, off, l->packed + i * unit, l->lens[i]);
		else if (l->fates[i] == FATE_DATA)
			ret = o->drv->data(f, o->emitter, off, l->buf + i * unit, (end - i) * unit);
		else if (o->convert.over_backing)
			ret = o->drv->zero(f, o->emitter, off, (end - i) * unit);
	}
	return ret;
}

static int give(struct fiber *f, struct lane *l)
{
	struct pass *p = l->p;
	int ret = 0;

	while (p->turn != l->turn && !p->ret)
		waitlist_wait(f, &p->turns);
	if (p->ret)
		return p->ret;
	if (l->kind == KIND_DATA)
		ret = give_data(f, l);
	else if (l->kind == KIND_ZERO)
		ret = p->o->drv->zero(f, p->o->emitter, l->off, l->len);
	if (ret < 0)
		return fail_writing(p, ret);
	p->turn++;
	waitlist_wake_all(&p->turns);
	return 0;
}

static void tell(struct pass *p, uint64_t len)
{
	uint64_t now = queue_now(p->q);

	p->done += len;
	if (p->o->convert.progress && now - p->told_ns >= PROGRESS_NS) {
		p->told_ns = now;
		p->o->convert.progress(p->o->convert.user_data, p->of + p->done, p->o->drv->measures ? 2 * p->total : p->total);
	}
}

static void lane_run(struct fiber *f, struct fiber_job *job)
{
	struct lane *l = container_of(job, struct lane, job);
	struct pass *p = l->p;

	while (take(f, p, l) && (l->kind != KIND_DATA || prepare(f, l) == 0) && give(f, l) == 0)
		tell(p, l->len);
	if (--p->nr_running == 0)
		waitlist_wake_all(&p->ended);
}

/* ---- passes ---- */

static int run_pass(struct fiber *f, struct pass *p, bool measuring)
{
	const struct emission *o = p->o;
	int ret;

	p->measuring = measuring;
	p->next = p->nr_taken = p->turn = p->done = p->moved = p->data_off = p->data_end = 0;
	p->start_ns = queue_now(p->q);
	ret = o->drv->begin(f, o->emitter, pass_write, p);
	if (ret < 0)
		return fail_writing(p, ret);
	p->nr_running = p->nr_lanes;
	for (unsigned i = 0; i < p->nr_lanes; i++)
		fiber_start(p->q, &p->lanes[i].job, FIBER_LEVEL_JOB);
	while (p->nr_running)
		waitlist_wait(f, &p->ended);
	if (p->ret)
		return p->ret;
	ret = o->drv->end(f, o->emitter);
	if (ret == 0 && !measuring)
		ret = send(f, p, p->gathered, p->nr_gathered);
	p->of += p->total;
	return ret < 0 ? fail_writing(p, ret) : 0;
}

static int lanes_make(struct pass *p)
{
	p->gathered = malloc(GATHERED_LEN);
	for (unsigned i = 0; i < p->nr_lanes; i++) {
		struct lane *l = &p->lanes[i];

		l->p = p;
		l->job.run = lane_run;
		l->lens = calloc(UNITS_MAX, sizeof(l->lens[0]));
		l->fates = malloc(UNITS_MAX);
		if (!l->lens || !l->fates || posix_memalign((void **)&l->buf, 4096, p->piece) ||
		    (p->o->convert.compress && posix_memalign((void **)&l->packed, 4096, p->piece)))
			return -ENOMEM;
	}
	return p->gathered ? 0 : -ENOMEM;
}

static void lanes_free(struct pass *p)
{
	free(p->gathered);
	for (unsigned i = 0; i < p->nr_lanes; i++) {
		free(p->lanes[i].lens);
		free(p->lanes[i].fates);
		free(p->lanes[i].buf);
		free(p->lanes[i].packed);
	}
}

static void geometry(struct pass *p)
{
	const struct emission *o = p->o;

	for (unsigned i = 0; i < o->convert.nr_sources; i++) {
		o->convert.sources[i].start = p->total;
		p->total += node_len(o->convert.sources[i].top);
	}
	p->unit = o->drv->unit(o->emitter);
	p->piece = MAX(o->convert.compress ? PACKED_PIECE_LEN : PIECE_LEN, p->unit);
	p->granule = MIN(MAX(o->convert.sparse ? 1ull << log2_u64(o->convert.sparse) : 0, p->unit), p->piece);
	/* Long clusters: fewer, for the memory's sake. */
	p->nr_lanes = o->convert.parallel ? o->convert.parallel : o->convert.compress && p->piece <= PIECE_LEN ? LANES_PACKING : LANES_READING;
}

int emit(struct fiber *f, const struct emission *o, struct varve_error *err)
{
	struct pass *p = calloc(1, sizeof(*p));
	int ret;

	if (!p)
		return varve_error_errno(err, -ENOMEM, "%s", node_name(o->convert.sources[0].top));
	p->o = o;
	p->err = err;
	p->q = fiber_queue(f);
	geometry(p);
	ret = lanes_make(p);
	if (ret < 0)
		varve_error_errno(err, ret, "%s", node_name(o->convert.sources[0].top));
	if (ret == 0 && o->drv->measures)
		ret = run_pass(f, p, true);
	if (ret == 0)
		ret = run_pass(f, p, false);
	if (ret == 0 && o->convert.progress)
		o->convert.progress(o->convert.user_data, 1, 1);
	lanes_free(p);
	free(p);
	return ret;
}
