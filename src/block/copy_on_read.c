/* SPDX-License-Identifier: MIT */
/*
 * block/copy_on_read.c - what is read from a backing image is kept in the disk's own
 *
 * The unit is that of the mapping, a cluster or a part of one: a read that meets some which the disk does not have, but an
 * image below does, fetches them whole, gives the guest its part, and stores them.
 *
 * A guest's write must never be overwritten by an older copy, although it may touch other sectors of the same cluster.
 * Why it is not: copying happens under the lock of the clusters (block/range.h), and only where the map says "nothing
 * here". A guest write to such a cluster needs space, and so waits for the same lock; when it comes first, the map says
 * DATA as soon as we get the lock, and there is nothing to copy. A write to a cluster that has space takes no lock,
 * and we never write there. Two readers of one cluster are kept apart in the same way: the second finds it stored.
 *
 * This stands here and not in filter/ because all of it is about locks and maps, which only the corridor has.
 *
 * Owns:    struct cor of a node; nothing for nodes without the option.
 * Assumes: fibers of the home queue, but for cor_wants().
 * Never:   fails a guest's read because a copy could not be stored; copies from below the bottom; stores a byte that
 *          comes from guest memory, which may change while we look.
 */
#include <stdlib.h>
#include <string.h>

#include "base/iov.h"
#include "base/log.h"
#include "block/block.h"
#include "block/copy_on_read.h"
#include "block/node_id.h"

#define CHUNK MiB(1)		 /* fetched at once: as many clusters, but at least one */
#define BIG_CLUSTER MiB(4)	 /* of such clusters one buffer at a time */
#define STREAMS 4
#define AHEAD_JOBS 8		 /* pieces fetched at once ahead of readers */
#define AHEAD_MAX MiB(16)	 /* farthest ahead of one */
#define HITS_WANTED 2		 /* requests that went on where another had ended, before anything is fetched ahead */
#define PAUSE_NS 1000000000ull	 /* after a failure: no copying for so long */

/* A place where a reader may go on: he has read up to `next`, and everything is to be fetched up to `target`. */
struct stream {
	uint64_t next, ahead, target; /* ahead: fetched, or being fetched, up to here */
	uint64_t window;
	unsigned hits;
	uint64_t used; /* when, for replacement */
};

/* Fetches a piece ahead of a reader. */
struct ahead {
	struct fiber_job job;
	struct node *n;
	uint64_t off, len;
	bool busy;
};

struct cor {
	/* set at open */
	unsigned bottom; /* images below the top that are copied from */

	/* any queue, atomically */
	_Atomic uint64_t pause_until_ns;

	/* home queue only */
	bool told;
	uint64_t last_read_ns; /* when a request last came here */
	struct fiber_mutex big;
	struct cor_stats stats;
	struct stream streams[STREAMS];
	struct ahead ahead[AHEAD_JOBS];
	uint64_t clock; /* of the streams' use */
	unsigned nr_busy;
	bool stopped;
	struct waitlist idle;
};

int cor_options(struct opts *o, bool *ret_on, char **ret_bottom, struct varve_error *err)
{
	const char *bottom = opts_get(o, "copy-on-read-bottom");
	int ret = opts_get_bool(o, "copy-on-read", ret_on, err);

	if (ret < 0)
		return ret;
	if (bottom && !*ret_on)
		return varve_error_set(err, -EINVAL, "option copy-on-read-bottom=%.200s needs copy-on-read=on", bottom);
	*ret_bottom = bottom ? strdup(bottom) : NULL;
	return bottom && !*ret_bottom ? varve_error_errno(err, -ENOMEM, "options") : 0;
}

int cor_depth_of(const struct node *n, const char *name, struct varve_error *err)
{
	int depth = 1;

	for (const struct node *b = n->backing; b; b = b->backing, depth++) {
		if (node_is_called(b, name))
			return depth;
	}
	return varve_error_set(err, -ENOENT, "%s: '%.300s' is not the name of an image in its backing chain",
			       node_name(n), name);
}

void cor_keep(struct node *n, unsigned bottom)
{
	for (struct node *b = n->backing; b && bottom > 0; b = b->backing, bottom--) {
		struct node *leaf = b;

		while (leaf->file)
			leaf = leaf->file;
		leaf->kept_above = true;
	}
}

int cor_open(struct node *n, const char *bottom, struct varve_error *err)
{
	int depth = bottom ? cor_depth_of(n, bottom, err) : 0;

	if (depth < 0)
		return depth;
	if (!(n->flags & NODE_WRITABLE))
		return varve_error_set(err, -EINVAL, "%s: copy-on-read needs an image that is open for writing",
				       node_name(n));
	if (!n->drv->alloc)
		return varve_error_set(err, -EINVAL, "%s: copy-on-read: format %s has no backing images to copy from",
				       node_name(n), n->drv->name);
	n->cor = calloc(1, sizeof(*n->cor));
	if (!n->cor)
		return varve_error_errno(err, -ENOMEM, "%s: copy-on-read", node_name(n));
	n->cor->bottom = bottom ? (unsigned)depth : COR_BOTTOM_ALL;
	cor_keep(n, n->cor->bottom);
	return 0;
}

void cor_free(struct node *n)
{
	free(n->cor);
	n->cor = NULL;
}

/* ---- what is to be copied ---- */

/*
 * What the `bottom` images below n say about off: DATA, ZERO (also behind the end of a shorter image), UNLOADED, ERROR; ABSENT
 * when they say nothing.
 */
static void look_below(struct node *n, unsigned bottom, uint64_t off, uint64_t len, struct extent *ret)
{
	struct node *b = n->backing;

	*ret = (struct extent){ .kind = EXTENT_ABSENT, .len = len };
	for (unsigned i = 0; b && i < bottom; i++, b = b->backing) {
		uint64_t blen = node_len(b);

		if (off >= blen) {
			*ret = (struct extent){ .kind = EXTENT_ZERO, .len = len };
			return;
		}
		len = MIN(len, blen - off);
		b->drv->map(b, off, len, ret);
		if (ret->kind != EXTENT_ABSENT)
			return;
		len = ret->len;
	}
	ret->len = len;
}

bool cor_wants(struct node *n, const struct req *r)
{
	struct extent top, below;

	if (queue_now(r->q) < atomic_load_explicit(&n->cor->pause_until_ns, memory_order_relaxed))
		return false;
	for (uint64_t pos = 0; pos < r->len; pos += top.len) {
		n->drv->map(n, r->off + pos, r->len - pos, &top);
		if (top.kind == EXTENT_UNLOADED)
			return true; /* the fiber loads, and looks again */
		if (top.kind != EXTENT_ABSENT)
			continue;
		look_below(n, n->cor->bottom, r->off + pos, top.len, &below);
		if (below.kind == EXTENT_DATA || below.kind == EXTENT_UNLOADED)
			return true;
		top.len = below.len;
	}
	return false;
}

/* A copier: one request, or one step of a job. The clusters concerned are locked. */
struct copier {
	struct node *n;
	unsigned bottom;
	bool keep_zeroes;      /* zeroes that hide an image below the bottom are stored as well */
	struct cor_stats *stats;
	struct req *r;	       /* whom the bytes are for; NULL: nobody */
	struct iovec *part;    /* r->nr_iov elements, for slices of r's vector */
};

/* Is there something to copy in the unit at off, of which the top has nothing? Loads what it has to. */
static int unit_wanted(struct fiber *f, const struct copier *c, uint64_t off, bool *ret_wanted)
{
	struct node *n = c->n;
	uint64_t end = MIN(off + map_unit(n), node_len(n));
	struct extent e;

	*ret_wanted = false;
	while (off < end && !*ret_wanted) {
		look_below(n, c->bottom, off, end - off, &e);
		if (e.kind == EXTENT_UNLOADED) {
			int ret = e.node->drv->load(f, e.node, off);

			if (ret < 0)
				return ret;
			continue;
		}
		*ret_wanted = e.kind == EXTENT_DATA || e.kind == EXTENT_ERROR || e.kind == EXTENT_PACKED ||
			      (e.kind == EXTENT_ZERO && c->keep_zeroes);
		off += e.len;
	}
	return 0;
}

/*
 * How far from off (a unit's start, below end) is one of the two true: to be copied, or not? Looks at max bytes. The
 * answer holds as long as the clusters are locked: nobody else gives them space, and images below do not change.
 */
static int next_run(struct fiber *f, const struct copier *c, uint64_t off, uint64_t end, uint64_t max, bool *ret_copy,
		    uint64_t *ret_len)
{
	struct node *n = c->n;
	uint64_t pos = off;
	struct extent top;

	while (pos < end && pos - off < max) {
		bool wanted = false;
		uint64_t step;
		int ret;

		n->drv->map(n, pos, end - pos, &top);
		if (top.kind == EXTENT_UNLOADED) {
			ret = n->drv->load(f, n, pos);
			if (ret < 0)
				return ret;
			continue;
		}
		step = top.len;
		if (top.kind == EXTENT_ABSENT) {
			step = map_unit(n);
			ret = unit_wanted(f, c, pos, &wanted);
			if (ret < 0)
				return ret;
		}
		if (pos > off && wanted != *ret_copy)
			break;
		*ret_copy = wanted;
		pos += step;
	}
	*ret_len = pos - off;
	return 0;
}

/* ---- storing ---- */

static bool all_zero(const uint8_t *p, uint64_t len)
{
	return !len || (!p[0] && !memcmp(p, p + 1, len - 1));
}

static int store_zero(struct fiber *f, struct copier *c, uint64_t off, uint64_t len, const uint8_t *bytes)
{
	struct node *n = c->n;
	struct iovec iov = { (void *)bytes, len };
	int ret = n->drv->unlink(f, n, off, align_up(len, map_unit(n)), UNLINK_ZERO_UNMAP);

	/* Old versions of a format cannot say "zeroes". */
	if (ret == -ENOTSUP)
		ret = write_locked(f, n, off, len, &iov, 1);
	if (ret == 0)
		c->stats->zero_bytes += len;
	return ret;
}

/* Zeroes are stored as zeroes, unit by unit; the rest as data. */
static int store(struct fiber *f, struct copier *c, uint64_t off, uint64_t len, const uint8_t *bytes)
{
	uint64_t cl = map_unit(c->n), end;
	int ret = 0;

	for (uint64_t pos = 0; ret == 0 && pos < len; pos = end) {
		bool zero = all_zero(bytes + pos, MIN(cl, len - pos));

		end = MIN(pos + cl, len);
		while (end < len && all_zero(bytes + end, MIN(cl, len - end)) == zero)
			end = MIN(end + cl, len);
		if (zero) {
			ret = store_zero(f, c, off + pos, end - pos, bytes + pos);
		} else {
			struct iovec iov = { (void *)(bytes + pos), end - pos };

			ret = write_locked(f, c->n, off + pos, end - pos, &iov, 1);
			if (ret == 0)
				c->stats->copied_bytes += end - pos;
		}
	}
	return ret;
}

/* ---- copying ---- */

/* The part of [off, off + len) that the request wants: read as it is, without copying. */
static int read_wanted(struct fiber *f, struct copier *c, uint64_t off, uint64_t len)
{
	uint64_t from, to;
	unsigned nr;
	size_t got;

	if (!c->r)
		return 0;
	from = MAX(off, c->r->off);
	to = MIN(off + len, c->r->off + c->r->len);
	if (from >= to)
		return 0;
	nr = iov_slice(c->part, c->r->nr_iov, c->r->iov, c->r->nr_iov, from - c->r->off, to - from, &got);
	assert(got == to - from);
	return read_pieces(f, c->n, from, to - from, c->part, nr);
}

static void deliver(struct copier *c, uint64_t off, uint64_t len, const uint8_t *bytes)
{
	uint64_t from, to;

	if (!c->r)
		return;
	from = MAX(off, c->r->off);
	to = MIN(off + len, c->r->off + c->r->len);
	if (from < to)
		iov_from_buf(c->r->iov, c->r->nr_iov, from - c->r->off, bytes + (from - off), to - from);
}

/* *ret_stored: the errno of the storing. The result is that of the reading, as far as somebody waits for it. */
static int copy_run(struct fiber *f, struct copier *c, uint64_t off, uint64_t len, int *ret_stored)
{
	struct iovec iov = { NULL, MIN(len, node_len(c->n) - off) };
	int ret;

	*ret_stored = -ENOMEM;
	if (posix_memalign(&iov.iov_base, 4096, align_up(iov.iov_len, 4096)))
		return c->r ? read_wanted(f, c, off, len) : -ENOMEM;
	ret = read_pieces(f, c->n, off, iov.iov_len, &iov, 1);
	if (ret < 0) {
		*ret_stored = ret;
		/* It may be only the guest's neighbourhood that cannot be read. */
		ret = c->r ? read_wanted(f, c, off, len) : ret;
	} else {
		deliver(c, off, iov.iov_len, iov.iov_base);
		*ret_stored = store(f, c, off, iov.iov_len, iov.iov_base);
		c->stats->copies++;
	}
	free(iov.iov_base);
	return ret;
}

static void copy_failed(struct node *n, int error)
{
	struct cor *cor = n->cor;

	cor->stats.failures++;
	atomic_store_explicit(&cor->pause_until_ns, queue_now(n->home) + PAUSE_NS, memory_order_relaxed);
	if (cor->told)
		return;
	cor->told = true;
	log_warning("%s: copy-on-read: what was read from the backing image could not be kept: %s. Reads go on from the "
		    "backing image; this is said once, and counted",
		    node_name(n), strerror(-error));
}

/* [off, end): whole units of clusters that are locked. With a request: all of its bytes are there afterwards, or its error. */
static int copy_clusters(struct fiber *f, struct copier *c, uint64_t off, uint64_t end, int *ret_stored)
{
	uint64_t len, max = MAX(CHUNK, (uint64_t)c->n->cluster_len);
	int ret = 0, stored;

	*ret_stored = 0;
	for (; off < end; off += len) {
		bool copy = false;

		ret = next_run(f, c, off, end, max, &copy, &len);
		if (ret < 0)
			return ret;
		if (!copy || (*ret_stored < 0 && c->r)) {
			ret = read_wanted(f, c, off, len);
		} else {
			len = MIN(len, max);
			ret = copy_run(f, c, off, len, &stored);
			if (stored < 0 && *ret_stored == 0)
				*ret_stored = stored;
		}
		if (ret < 0 || (*ret_stored < 0 && !c->r))
			return ret;
	}
	return 0;
}

/* ---- fetching ahead ---- */

static void ahead_go(struct node *n);

static void ahead_run(struct fiber *f, struct fiber_job *job)
{
	struct ahead *a = container_of(job, struct ahead, job);
	struct node *n = a->n;
	struct cor *cor = n->cor;
	uint64_t before = cor->stats.copied_bytes + cor->stats.zero_bytes;
	int ret = cor_populate(f, n, a->off, a->len, cor->bottom, false, &cor->stats);

	cor->stats.ahead_bytes += cor->stats.copied_bytes + cor->stats.zero_bytes - before;
	a->busy = false;
	cor->nr_busy--;
	if (ret < 0) { /* whoever really needs it meets the same trouble, and tells */
		for (unsigned i = 0; i < STREAMS; i++)
			cor->streams[i].target = 0;
	}
	ahead_go(n);
	if (!cor->nr_busy)
		waitlist_wake_all(&cor->idle);
}

static bool ahead_start(struct node *n, uint64_t off, uint64_t len)
{
	struct cor *cor = n->cor;

	for (unsigned i = 0; i < AHEAD_JOBS; i++) {
		struct ahead *a = &cor->ahead[i];

		if (a->busy)
			continue;
		*a = (struct ahead){ .job.run = ahead_run, .n = n, .off = off, .len = len, .busy = true };
		cor->nr_busy++;
		fiber_start(n->home, &a->job, n->level);
		return true;
	}
	return false;
}

static void ahead_go(struct node *n)
{
	struct cor *cor = n->cor;
	uint64_t step = MAX(CHUNK / 2, (uint64_t)n->cluster_len);

	for (unsigned i = 0; i < STREAMS && !cor->stopped; i++) {
		struct stream *s = &cor->streams[i];

		while (s->ahead < s->target && ahead_start(n, s->ahead, MIN(step, s->target - s->ahead)))
			s->ahead += step;
	}
}

/* The reader who may have sent this request; else the place used longest ago. */
static struct stream *stream_of(struct cor *cor, uint64_t off)
{
	struct stream *oldest = &cor->streams[0];

	for (unsigned i = 0; i < STREAMS; i++) {
		struct stream *s = &cor->streams[i];

		/* What was fetched ahead is read without coming here: he may have got as far as that. */
		if (s->used && off >= s->next && off <= MAX(s->next, s->ahead))
			return s;
		if (s->used < oldest->used)
			oldest = s;
	}
	*oldest = (struct stream){ .next = UINT64_MAX };
	return oldest;
}

static void ahead_note(struct node *n, uint64_t off, uint64_t len)
{
	struct cor *cor = n->cor;
	struct stream *s = stream_of(cor, off);

	if (n->cluster_len > BIG_CLUSTER)
		return;
	s->hits = s->next == UINT64_MAX ? 0 : s->hits + 1;
	s->used = ++cor->clock;
	s->next = off + len;
	if (s->hits < HITS_WANTED)
		return;
	s->window = MIN(MAX(s->window * 2, CHUNK), AHEAD_MAX);
	s->ahead = MAX(s->ahead, align_down(s->next, n->cluster_len));
	s->target = MIN(s->next + s->window, node_len(n));
	ahead_go(n);
}

uint64_t cor_last_read(const struct node *n)
{
	return n->cor ? n->cor->last_read_ns : 0;
}

void cor_resume(struct node *n)
{
	if (n->cor)
		n->cor->stopped = false;
}

void cor_stop(struct fiber *f, struct node *n)
{
	struct cor *cor = n->cor;

	if (!cor)
		return;
	cor->stopped = true;
	while (cor->nr_busy)
		waitlist_wait(f, &cor->idle);
}

int cor_read(struct fiber *f, struct node *n, struct req *r)
{
	struct cor *cor = n->cor;
	struct copier c = { .n = n, .bottom = cor->bottom, .stats = &cor->stats, .r = r };
	uint64_t off = align_down(r->off, map_unit(n)), end = align_up(r->off + r->len, map_unit(n));
	bool big = n->cluster_len > BIG_CLUSTER;
	struct range range;
	int ret, stored;

	cor->last_read_ns = queue_now(n->home);
	c.part = malloc(r->nr_iov * sizeof(c.part[0]));
	if (!c.part)
		return cold_read(f, n, r);
	if (big)
		fiber_lock(f, &cor->big);
	clusters_lock(f, n, &range, off, end - off);
	ret = copy_clusters(f, &c, off, MIN(end, align_up(node_len(n), map_unit(n))), &stored);
	range_unlock(&n->ranges, &range);
	if (big)
		fiber_unlock(&cor->big);
	free(c.part);
	if (stored < 0)
		copy_failed(n, stored);
	else if (ret == 0)
		ahead_note(n, r->off, r->len);
	return ret;
}

int cor_populate(struct fiber *f, struct node *n, uint64_t off, uint64_t len, unsigned bottom, bool keep_zeroes,
		 struct cor_stats *stats)
{
	struct copier c = { .n = n, .bottom = bottom, .keep_zeroes = keep_zeroes, .stats = stats };
	struct range range;
	int ret, stored;

	clusters_lock(f, n, &range, off, len);
	ret = copy_clusters(f, &c, align_down(off, map_unit(n)), align_up(off + len, map_unit(n)), &stored);
	range_unlock(&n->ranges, &range);
	return ret < 0 ? ret : stored;
}

void cor_get_stats(const struct node *n, struct cor_stats *ret)
{
	*ret = n->cor->stats;
}
