/* SPDX-License-Identifier: MIT */
/*
 * job/convert.c - see convert.h
 *
 *     take ──▶ read, look for zeroes ──▶ wait for one's turn ──▶ submit writes ──▶ next one's turn ──▶ wait for the writes
 *
 * Some fibers do this side by side. What they take is cut at multiples of a piece's length, so that a cluster of the target is
 * written once. In order means that writes are submitted in the order of the disk, which is where allocation then puts
 * them; one by one, that each piece is written before the next begins: the file is the same every time.
 *
 * Owns:    the fibers, and a buffer and requests for each: all the memory there is, whatever the disks' lengths.
 * Assumes: a fiber of the home queue; nobody else writes to the target.
 * Never:   looks into zeroes that the map knows, or goes around a disk's door.
 */
#include "job/convert.h"

#include <stdlib.h>
#include <string.h>

#include "base/iov.h"
#include "block/copy.h"
#include "block/graph.h"

#define PIECE_LEN MiB(1)
#define PACKED_PIECE_LEN KiB(64) /* compressing is what takes long: each by a worker of its own */
#define ZEROES_LEN GiB(1)	 /* at once, of what is known without reading */
#define GRANULE_MAX KiB(64)	 /* shorter runs of zeroes inside of a cluster are not worth a request */
#define CACHED_WRITE_LEN KiB(128)
#define RUNS_MAX 32
#define LANES_MANY 8
#define LANES_CACHED 3
#define PROGRESS_NS 100000000ull
#define SLEEP_NS 10000000ull

enum kind { KIND_SKIP, KIND_ZERO, KIND_DATA };

struct run {
	struct req r;
	struct iovec iov;
	struct lane *lane;
};

struct lane {
	struct fiber_job job;
	struct converter *c;
	struct fiber *f; /* while it waits for its requests */
	unsigned nr_pending;
	int ret;
	uint8_t *buf;
	struct run *runs;

	/* what it took */
	enum kind kind;
	uint64_t off, len, turn;
};

struct converter {
	const struct convert_options *o;
	struct varve_error *err;
	uint64_t total, piece, granule, write_max;
	uint64_t below_len; /* over_backing: as far as the target's backing image reaches */
	bool in_order, cached;
	unsigned nr_lanes;
	struct queue *q;

	struct fiber_mutex taking;
	uint64_t next;
	uint64_t data_off, data_end; /* known to be data */
	struct file_data known;
	uint64_t nr_taken, turn;
	struct waitlist turns, ended;
	unsigned nr_running;
	int ret; /* of the first that failed */

	uint64_t done, moved; /* bytes dealt with; bytes read or written */
	uint64_t told_ns, start_ns;
	struct lane lanes[CONVERT_PARALLEL_MAX];
};

static int fail(struct converter *c, int ret, const char *what, const struct node *n, uint64_t off)
{
	if (!c->ret)
		c->ret = varve_error_errno(c->err, ret, "%s: %s at offset %llu", node_name(n), what, (unsigned long long)off);
	waitlist_wake_all(&c->turns);
	return c->ret;
}

/* ---- what comes next ---- */

static const struct convert_source *here(const struct converter *c, uint64_t off)
{
	return source_at(c->o->sources, c->o->nr_sources, off);
}

static enum kind kind_of(const struct converter *c, uint64_t off, const struct extent *e, unsigned depth)
{
	if (c->o->over_backing && depth && off < c->below_len)
		return KIND_SKIP;
	if (!c->o->sparse)
		return KIND_DATA;
	if (e->kind != EXTENT_ZERO && e->kind != EXTENT_ABSENT)
		return KIND_DATA;
	return c->o->reads_zero ? KIND_SKIP : KIND_ZERO;
}

/*
 * What the map says about off, and for how long. Unreadable metadata is data: reading it tells. That there is data is remembered
 * as far as it goes: a file system may look at all of a file's pages, each time, to find the next hole.
 */
static int look(struct fiber *f, struct converter *c, uint64_t off, enum kind *ret_kind, uint64_t *ret_len)
{
	const struct convert_source *s = here(c, off);
	uint64_t in_source = off - s->start, len = MIN(node_len(s->top) - in_source, ZEROES_LEN);
	struct extent e;
	unsigned depth;
	bool present;
	int ret;

	if (!c->o->sparse && !c->o->over_backing) {
		*ret_kind = KIND_DATA;
		*ret_len = len;
		return 0;
	}
	if (off >= c->data_off && off < c->data_end) {
		*ret_kind = KIND_DATA;
		*ret_len = c->data_end - off;
		return 0;
	}
	ret = graph_map_file(f, s->top, in_source, len, &c->known, &e, &depth, &present);
	if (ret < 0 && c->o->salvage) {
		e = (struct extent){ .kind = EXTENT_ERROR, .len = MIN(len, SALVAGE_LEN) };
		depth = 0;
		ret = 0;
	}
	if (ret < 0)
		return ret;
	if (off < c->below_len)
		e.len = MIN(e.len, c->below_len - off);
	*ret_kind = kind_of(c, off, &e, depth);
	*ret_len = e.len;
	if (*ret_kind == KIND_DATA) {
		c->data_off = off;
		c->data_end = off + e.len;
	}
	return 0;
}

/*
 * From off to the end of the piece there: how far does it go on without a need for reading, in whole pieces if it goes
 * beyond the first? Else the piece is read, all of it, or (over a backing image) as far as it is one kind.
 */
static int take_piece(struct fiber *f, struct converter *c, struct lane *l)
{
	uint64_t piece_end = MIN(align_down(c->next, c->piece) + c->piece, c->total), end = c->next, len;
	enum kind kind;
	int ret;

	l->off = c->next;
	ret = look(f, c, end, &l->kind, &len);
	if (ret < 0)
		return ret;
	for (end += len; end < c->total && end - l->off < ZEROES_LEN; end += len) {
		/* What is read is read by the piece; what is not ends where another kind begins. */
		if (l->kind == KIND_DATA && (end >= piece_end || !c->o->over_backing))
			break;
		ret = look(f, c, end, &kind, &len);
		if (ret < 0)
			return ret;
		if (kind != l->kind)
			break;
	}
	if (l->kind != KIND_DATA && end < c->total) {
		/* Clusters of the target are one kind; where several meet, they are read. */
		uint64_t whole = align_down(end, c->granule);

		if (whole > l->off && (whole < piece_end || is_aligned(whole, c->piece)))
			end = whole;
		else if (align_down(end, c->piece) > l->off)
			end = align_down(end, c->piece);
		else if (!c->o->over_backing)
			l->kind = KIND_DATA;
	}
	if (l->kind == KIND_DATA)
		end = c->o->over_backing ? MIN(end, piece_end) : piece_end;
	l->len = end - l->off;
	return 0;
}

static void rate_wait(struct fiber *f, struct converter *c)
{
	while (c->o->rate && !c->ret && !node_ending(c->o->target)) {
		double due = (double)c->moved / (double)c->o->rate;

		if (due * 1e9 <= (double)(queue_now(c->q) - c->start_ns))
			return;
		fiber_sleep_until(f, queue_now(c->q) + SLEEP_NS);
	}
}

/* False: there is nothing more, or something failed. */
static bool take(struct fiber *f, struct converter *c, struct lane *l)
{
	int ret;

	fiber_lock(f, &c->taking);
	rate_wait(f, c);
	if (node_ending(c->o->target))
		fail(c, -ECANCELED, "convert", c->o->target, c->next);
	if (c->ret || c->next >= c->total) {
		fiber_unlock(&c->taking);
		return false;
	}
	ret = take_piece(f, c, l);
	if (ret < 0) {
		fail(c, ret, "the map", here(c, l->off)->top, l->off - here(c, l->off)->start);
	} else {
		c->next = l->off + l->len;
		l->turn = c->nr_taken++;
		if (l->kind == KIND_DATA)
			c->moved += l->len;
	}
	fiber_unlock(&c->taking);
	return ret == 0;
}

/* ---- reading ---- */

static void run_done(struct req *r, int ret)
{
	struct run *run = container_of(r, struct run, r);
	struct lane *l = run->lane;

	if (ret < 0 && !l->ret)
		l->ret = ret;
	if (--l->nr_pending == 0 && l->f)
		fiber_wake(l->f);
}

static void lane_submit(struct lane *l, struct run *run, struct node *n, enum req_op op, uint64_t off, void *buf,
			uint64_t len, uint32_t flags)
{
	run->lane = l;
	run->iov = (struct iovec){ buf, len };
	l->nr_pending++;
	req_init(&run->r, l->c->q, op, off, len, buf ? &run->iov : NULL, buf ? 1 : 0, flags, run_done);
	node_submit(n, &run->r);
}

static int lane_wait(struct fiber *f, struct lane *l)
{
	int ret;

	l->f = f;
	while (l->nr_pending)
		fiber_wait(f);
	l->f = NULL;
	ret = l->ret;
	l->ret = 0;
	return ret;
}

static int read_piece(struct fiber *f, struct lane *l)
{
	struct converter *c = l->c;

	for (uint64_t pos = 0, step; pos < l->len; pos += step) {
		const struct convert_source *s = here(c, l->off + pos);
		uint64_t off = l->off + pos - s->start;
		int ret;

		step = MIN(l->len - pos, node_len(s->top) - off);
		lane_submit(l, &l->runs[0], s->top, REQ_READ, off, l->buf + pos, step, 0);
		ret = lane_wait(f, l);
		if (ret < 0 && c->o->salvage)
			source_salvage(f, s, off, l->buf + pos, step, c->o->report, c->o->user_data);
		else if (ret < 0)
			return fail(c, ret, "read", s->top, off);
	}
	return 0;
}

/* ---- writing ---- */

static bool wait_for_turn(struct fiber *f, struct lane *l)
{
	struct converter *c = l->c;

	while (c->in_order && c->turn != l->turn && !c->ret)
		waitlist_wait(f, &c->turns);
	return !c->ret;
}

static void pass_turn(struct lane *l)
{
	if (!l->c->in_order)
		return;
	l->c->turn = l->turn + 1;
	waitlist_wake_all(&l->c->turns);
}

static int wrote(struct fiber *f, struct lane *l)
{
	int ret = lane_wait(f, l);

	return ret < 0 ? fail(l->c, ret, "write", l->c->o->target, l->off) : 0;
}

/* The run of one kind, zeroes or not, that begins at pos. */
static uint64_t run_len(const struct lane *l, uint64_t pos, bool *ret_zero)
{
	uint64_t granule = l->c->granule, end = pos;

	*ret_zero = false;
	if (!l->c->o->sparse)
		return l->len - pos;
	while (end < l->len) {
		uint64_t next = MIN(align_down(l->off + end, granule) + granule - l->off, l->len);
		bool zero = buf_is_zero(l->buf + end, next - end);

		if (end > pos && zero != *ret_zero)
			break;
		*ret_zero = zero;
		end = next;
	}
	return end - pos;
}

static int submit_writes(struct fiber *f, struct lane *l)
{
	const struct convert_options *o = l->c->o;
	unsigned nr = 0;
	uint64_t len;

	for (uint64_t pos = 0; pos < l->len; pos += len) {
		bool zero;

		len = run_len(l, pos, &zero);
		if (zero && o->reads_zero)
			continue;
		if (!zero)
			len = MIN(len, l->c->write_max - (l->off + pos) % l->c->write_max);
		if (nr == (o->one_by_one ? 1 : RUNS_MAX)) { /* side by side, which run gets its space first is chance */
			int ret = wrote(f, l);

			if (ret < 0)
				return ret;
			nr = 0;
		}
		if (zero)
			lane_submit(l, &l->runs[nr++], o->target, REQ_ZERO, l->off + pos, NULL, len, REQ_MAY_UNMAP);
		else
			lane_submit(l, &l->runs[nr++], o->target, REQ_WRITE, l->off + pos, l->buf + pos, len,
				    o->compress ? REQ_COMPRESS : 0);
	}
	return 0;
}

static int copy_offloaded(struct fiber *f, struct lane *l)
{
	for (uint64_t pos = 0; pos < l->len;) {
		const struct convert_source *s = here(l->c, l->off + pos);
		struct node_copy copy = { .src = s->top, .dst = l->c->o->target, .src_off = l->off + pos - s->start,
					  .dst_off = l->off + pos, .offload = true };
		uint64_t len;
		int ret;

		copy.len = len = MIN(l->len - pos, node_len(s->top) - copy.src_off);
		ret = node_copy(f, &copy);
		if (ret < 0)
			return fail(l->c, ret, "copy to the target", s->top, copy.src_off);
		pos += len;
	}
	return 0;
}

static int convert_piece(struct fiber *f, struct lane *l)
{
	const struct convert_options *o = l->c->o;
	int ret = 0;

	if (l->kind == KIND_DATA && !o->offload)
		ret = read_piece(f, l);
	if (ret < 0 || !wait_for_turn(f, l))
		return l->c->ret;
	if (l->kind == KIND_DATA && o->offload)
		ret = copy_offloaded(f, l);
	else if (l->kind == KIND_DATA)
		ret = submit_writes(f, l);
	else if (l->kind == KIND_ZERO)
		lane_submit(l, &l->runs[0], o->target, REQ_ZERO, l->off, NULL, l->len, REQ_MAY_UNMAP);
	if (o->one_by_one && ret == 0)
		ret = wrote(f, l);
	pass_turn(l);
	return ret < 0 || o->one_by_one ? ret : wrote(f, l);
}

/* ---- the whole ---- */

static void tell(struct converter *c, uint64_t len)
{
	uint64_t now = queue_now(c->q);

	c->done += len;
	if (c->o->progress && now - c->told_ns >= PROGRESS_NS) {
		c->told_ns = now;
		c->o->progress(c->o->user_data, c->done, c->total);
	}
}

static void lane_run(struct fiber *f, struct fiber_job *job)
{
	struct lane *l = container_of(job, struct lane, job);
	struct converter *c = l->c;

	while (take(f, c, l) && convert_piece(f, l) == 0)
		tell(c, l->len);
	if (l->nr_pending) /* others have failed meanwhile */
		(void)lane_wait(f, l);
	if (--c->nr_running == 0)
		waitlist_wake_all(&c->ended);
}

static int lanes_make(struct converter *c)
{
	for (unsigned i = 0; i < c->nr_lanes; i++) {
		struct lane *l = &c->lanes[i];

		l->c = c;
		l->job.run = lane_run;
		l->runs = malloc(RUNS_MAX * sizeof(l->runs[0]));
		if (!l->runs || posix_memalign((void **)&l->buf, 4096, c->piece))
			return -ENOMEM;
	}
	return 0;
}

static void lanes_free(struct converter *c)
{
	for (unsigned i = 0; i < c->nr_lanes; i++) {
		free(c->lanes[i].runs);
		free(c->lanes[i].buf);
	}
}

static const struct node *leaf_of(const struct node *n)
{
	while (n->file)
		n = n->file;
	return n;
}

static void geometry(struct converter *c)
{
	const struct convert_options *o = c->o;
	const struct node *n = o->target;
	uint64_t cluster;

	while (n->drv->kind == DRIVER_FILTER)
		n = n->file;
	/* What the target has below it may be shorter than what the source has: behind its end there is nothing to leave out for. */
	c->below_len = n->backing ? node_len(n->backing) : UINT64_MAX;
	cluster = MAX(n->cluster_len, 512);
	/* In a cluster that has data, zeroes are written along with it, unless they are long enough to be worth a hole. */
	c->granule = MAX(o->sparse ? 1ull << log2_u64(o->sparse) : 512, MIN(cluster, GRANULE_MAX));
	if (o->compress)
		c->granule = MAX(cluster, c->granule);
	c->piece = MAX(o->compress ? PACKED_PIECE_LEN : PIECE_LEN, MAX(cluster, c->granule));
	/*
	 * The page cache takes memory in blocks as long as the write. Long ones are what a hypervisor takes back from an idle
	 * machine, and gives again page by page: a new file by shorter writes costs a third.
	 */
	c->write_max = (leaf_of(n)->flags & NODE_DIRECT) && !o->one_by_one ? c->piece : MAX(CACHED_WRITE_LEN, cluster);
}

/*
 * Writes into the page cache are copies of memory, and those of one file take turns in the kernel: in the order of the disk they are
 * no slower, and lie in it. What goes to a disk, or is compressed first, need not wait.
 */
static void choose_order(struct converter *c)
{
	const struct convert_options *o = c->o;

	c->cached = !o->compress && !(leaf_of(o->target)->flags & NODE_DIRECT);
	c->in_order = o->in_order || o->one_by_one || c->cached;
}

/*
 * Between the page cache and the page cache, one piece is read while the kernel writes another, and a third is there when that is
 * done; more buffers would only push each other out of the processor's caches. Who waits for a disk or a server, or compresses, wants many.
 */
static unsigned choose_lanes(const struct converter *c)
{
	const struct convert_options *o = c->o;

	if (o->parallel)
		return o->parallel;
	if (!c->cached)
		return LANES_MANY;
	for (unsigned i = 0; i < o->nr_sources; i++) {
		const struct node *leaf = leaf_of(o->sources[i].top);

		if ((leaf->flags & NODE_DIRECT) || !leaf->file_id[1]) /* 0, 0: no local file */
			return LANES_MANY;
	}
	return LANES_CACHED;
}

int convert(struct fiber *f, const struct convert_options *o, struct varve_error *err)
{
	struct converter *c = calloc(1, sizeof(*c));
	int ret;

	if (!c)
		return varve_error_errno(err, -ENOMEM, "%s", node_name(o->target));
	c->o = o;
	c->err = err;
	c->q = fiber_queue(f);
	c->start_ns = c->told_ns = queue_now(c->q);
	for (unsigned i = 0; i < o->nr_sources; i++) {
		o->sources[i].start = c->total;
		c->total += node_len(o->sources[i].top);
	}
	geometry(c);
	choose_order(c);
	c->nr_lanes = choose_lanes(c);
	ret = lanes_make(c);
	if (ret < 0)
		varve_error_errno(err, ret, "%s", node_name(o->target));
	c->nr_running = ret == 0 ? c->nr_lanes : 0;
	for (unsigned i = 0; i < c->nr_running; i++)
		fiber_start(c->q, &c->lanes[i].job, FIBER_LEVEL_JOB);
	while (c->nr_running)
		waitlist_wait(f, &c->ended);
	if (ret == 0)
		ret = c->ret;
	if (ret == 0 && o->progress)
		o->progress(o->user_data, c->total, c->total);
	lanes_free(c);
	free(c);
	return ret;
}
