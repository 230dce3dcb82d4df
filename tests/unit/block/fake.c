/* SPDX-License-Identifier: MIT */
/*
 * unit/block/fake.c - see fake.h
 *
 * Assumes: entries change on the home queue only, as in any format; map() may run on any.
 */
#include "fake.h"

#include <time.h>

#include "../../lib/patience.h"

#define ENTRY_KIND 7u
#define ENTRY_FLAGS (uint64_t)511 /* clusters are at least 512 bytes */

static uint64_t entry_get(struct fake *fk, uint64_t i)
{
	return atomic_load_explicit(&fk->entries[i], memory_order_acquire);
}

void fake_set(struct node *n, uint64_t cluster, enum extent_kind kind, uint64_t host_off, bool inplace)
{
	assert_true(cluster < fake_of(n)->nr_clusters && !(host_off & ENTRY_FLAGS));
	atomic_store_explicit(&fake_of(n)->entries[cluster], host_off | kind | (inplace ? FAKE_INPLACE : 0),
			      memory_order_release);
}

void fake_forget(struct node *n, uint64_t cluster)
{
	atomic_fetch_or(&fake_of(n)->entries[cluster], FAKE_UNLOADED);
}

enum extent_kind fake_kind(struct node *n, uint64_t cluster)
{
	return (enum extent_kind)(entry_get(fake_of(n), cluster) & ENTRY_KIND);
}

static int fake_open(struct fiber *f, struct node *n, struct opts *o, struct varve_error *err)
{
	struct fake *fk = node_state(n);
	uint64_t cluster = 65536, size = 0;
	int ret = opts_get_size(o, "cluster", &cluster, err);

	(void)f;
	if (ret == 0)
		ret = opts_get_size(o, "size", &size, err);
	if (ret < 0)
		return ret;
	n->cluster_len = (uint32_t)cluster;
	atomic_store(&n->len, size);
	fk->nr_clusters = div_up(size, cluster);
	fk->entries = calloc(fk->nr_clusters, sizeof(*fk->entries));
	for (uint64_t i = 0; i < fk->nr_clusters; i++)
		fk->entries[i] = EXTENT_ABSENT;
	fk->alloc_run = UINT64_MAX;
	return 0;
}

static void fake_close(struct fiber *f, struct node *n)
{
	(void)f;
	free(fake_of(n)->entries);
}

static void fake_map(struct node *n, uint64_t off, uint64_t len, struct extent *ret)
{
	struct fake *fk = node_state(n);
	uint64_t i = off / n->cluster_len, first = entry_get(fk, i), have = n->cluster_len - off % n->cluster_len;

	atomic_fetch_add_explicit(&fk->nr_map, 1, memory_order_relaxed);
	*ret = (struct extent){ .kind = (enum extent_kind)(first & ENTRY_KIND), .len = MIN(have, len) };
	if (first & FAKE_UNLOADED) {
		ret->kind = EXTENT_UNLOADED;
		ret->node = n;
		return;
	}
	if (ret->kind == EXTENT_PACKED || ret->kind == EXTENT_ERROR)
		ret->error = ret->kind == EXTENT_PACKED ? -ENOTSUP : -EIO;
	if (ret->kind == EXTENT_PACKED)
		ret->node = n;
	for (uint64_t k = 1; have < len; k++, have += n->cluster_len) {
		uint64_t want = first + (ret->kind == EXTENT_DATA ? k * n->cluster_len : 0);

		if (entry_get(fk, i + k) != want)
			break;
	}
	ret->len = MIN(have, len);
	if (ret->kind == EXTENT_DATA) {
		ret->node = n->file;
		ret->host_off = (first & ~ENTRY_FLAGS) + off % n->cluster_len;
		ret->flags = first & FAKE_INPLACE ? EXTENT_INPLACE : 0;
	}
}

static int fake_load(struct fiber *f, struct node *n, uint64_t off)
{
	struct fake *fk = node_state(n);

	fk->nr_load++;
	if (fk->load_yields)
		fiber_yield(f);
	if (fk->load_error)
		return fk->load_error;
	atomic_fetch_and(&fk->entries[off / n->cluster_len], ~(uint64_t)FAKE_UNLOADED);
	return 0;
}

static int fake_alloc(struct fiber *f, struct node *n, uint64_t off, uint64_t len, struct extent *ret)
{
	struct fake *fk = node_state(n);
	uint64_t nr = MIN(len / n->cluster_len, fk->alloc_run);

	assert_true(is_aligned(off | len, n->cluster_len) && len);
	fk->nr_alloc++;
	if (fk->alloc_error)
		return fk->alloc_error;
	*ret = (struct extent){ .kind = EXTENT_DATA,
				.flags = fk->fresh_zero ? EXTENT_READS_ZERO : 0,
				.node = n->file,
				.host_off = fk->next_host,
				.len = nr * n->cluster_len };
	fk->next_host += ret->len + (fk->alloc_gaps ? n->cluster_len : 0);
	return fk->fresh_zero ? node_zero(f, n->file, ret->host_off, ret->len, 0) : 0;
}

static int fake_link(struct fiber *f, struct node *n, uint64_t off, const struct extent *x)
{
	struct fake *fk = node_state(n);

	fiber_yield(f); /* a real one may wait too */
	fk->nr_link++;
	if (fk->link_error)
		return fk->link_error;
	for (uint64_t pos = 0; pos < x->len; pos += n->cluster_len)
		fake_set(n, (off + pos) / n->cluster_len, EXTENT_DATA, x->host_off + pos, true);
	return 0;
}

static void fake_unalloc(struct fiber *f, struct node *n, const struct extent *x)
{
	(void)f;
	(void)x;
	fake_of(n)->nr_unalloc++;
}

static int fake_unlink(struct fiber *f, struct node *n, uint64_t off, uint64_t len, enum unlink_mode mode)
{
	struct fake *fk = node_state(n);

	assert_true(is_aligned(off | len, n->cluster_len) && len);
	fk->nr_unlink++;
	if (fk->unlink_error)
		return fk->unlink_error;
	for (uint64_t pos = off; pos < off + len; pos += n->cluster_len)
		fake_set(n, pos / n->cluster_len,
			 mode == UNLINK_DISCARD && !n->backing ? EXTENT_ABSENT : EXTENT_ZERO, 0, false);
	node_grace(f, n);
	return 0;
}

static int fake_sync(struct fiber *f, struct node *n)
{
	fake_of(n)->nr_sync++;
	fake_of(n)->dirty = false;
	return node_flush(f, n->file);
}

static bool fake_clean(struct node *n)
{
	return !fake_of(n)->dirty;
}

const struct driver driver_fake = {
	.name = "fake",
	.kind = DRIVER_FORMAT,
	.state_len = sizeof(struct fake),
	.open = fake_open,
	.close = fake_close,
	.map = fake_map,
	.load = fake_load,
	.alloc = fake_alloc,
	.link = fake_link,
	.unalloc = fake_unalloc,
	.unlink = fake_unlink,
	.sync = fake_sync,
	.clean = fake_clean,
};

/* ---- hold ---- */

static int hold_open(struct fiber *f, struct node *n, struct opts *o, struct varve_error *err)
{
	(void)f;
	(void)o;
	(void)err;
	TAILQ_INIT(&hold_of(n)->held);
	atomic_store(&n->len, node_len(n->file));
	return 0;
}

static void hold_submit(struct node *n, struct req *r)
{
	struct hold *h = node_state(n);
	uint64_t nr;

	/* Relaxed: a counter must not make an order between queues that would hide a race from ThreadSanitizer. */
	atomic_fetch_add_explicit(&h->nr_reads, r->op == REQ_READ, memory_order_relaxed);
	nr = atomic_fetch_add_explicit(&h->nr_writes, r->op == REQ_WRITE, memory_order_relaxed);
	atomic_fetch_add_explicit(&h->nr_flushes, r->op == REQ_FLUSH, memory_order_relaxed);
	atomic_fetch_add_explicit(&h->bytes_written, r->op == REQ_WRITE ? r->len : 0, memory_order_relaxed);
	if (r->op == REQ_WRITE && h->fail_writes) {
		req_done(r, h->fail_writes);
	} else if (r->op == REQ_WRITE && h->fail_every && nr % h->fail_every == 0) {
		req_done(r, -EIO);
	} else if (r->op == REQ_FLUSH && h->fail_flush) {
		req_done(r, h->fail_flush);
	} else if ((r->op == REQ_READ && h->reads) || (r->op == REQ_WRITE && h->writes) ||
		   (r->op == REQ_FLUSH && h->flushes)) {
		TAILQ_INSERT_TAIL(&h->held, r, parked);
		h->nr_held++;
	} else {
		req_forward(r, n->file, r->off, NULL);
	}
}

bool hold_release(struct node *n)
{
	struct hold *h = node_state(n);
	struct req *r = TAILQ_FIRST(&h->held);

	if (!r)
		return false;
	TAILQ_REMOVE(&h->held, r, parked);
	h->nr_held--;
	req_forward(r, n->file, r->off, NULL);
	return true;
}

const struct driver driver_hold = {
	.name = "hold",
	.kind = DRIVER_FILTER,
	.state_len = sizeof(struct hold),
	.open = hold_open,
	.submit = hold_submit,
};

/* ---- images ---- */

void image_open(struct image *img, struct queue *q, uint64_t cluster, uint64_t size, uint32_t flags)
{
	uint64_t room = 4 * size + KiB(256);
	char options[96];

	img->l.q = q ? q : leaf_queue();
	snprintf(options, sizeof(options), "size=%llu", (unsigned long long)room);
	if (leaf_try(&img->l, &driver_memory, NULL, options, NODE_WRITABLE) < 0)
		fail_msg("%s", img->l.err.message);
	img->memory = img->l.n;
	leaf_fill(&img->l, 0, room, 0xaa);
	if (leaf_try(&img->l, &driver_hold, img->memory, "", NODE_WRITABLE) < 0)
		fail_msg("%s", img->l.err.message);
	img->hold = img->l.n;
	snprintf(options, sizeof(options), "size=%llu,cluster=%llu", (unsigned long long)size,
		 (unsigned long long)cluster);
	if (leaf_try(&img->l, &driver_fake, img->hold, options, flags) < 0)
		fail_msg("%s", img->l.err.message);
}

void image_chain(struct image *top, struct image *lower)
{
	struct node *n = top->l.n;

	n->backing = lower->l.n;
	/* As graph_open() does it: a table from two backing images on. */
	if (n->backing->backing) {
		n->chain = chain_cache_new(n);
		assert_non_null(n->chain);
	}
}

void image_close(struct image *img)
{
	assert_int_equal(leaf_close(&img->l), 0);
}

/* ---- requests ---- */

static void io_done(struct req *r, int ret)
{
	struct io *io = container_of(r, struct io, r);

	assert_false(io->done);
	io->ret = ret;
	io->done = true;
}

void io_start(struct io *io, struct node *n, struct queue *q, enum req_op op, uint64_t off, void *buf, uint64_t len,
	      uint32_t flags)
{
	io->iov = (struct iovec){ buf, len };
	io->done = false;
	req_init(&io->r, q, op, off, len, buf ? &io->iov : NULL, buf ? 1 : 0, flags, io_done);
	node_submit(n, &io->r);
}

static time_t seconds(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec;
}

int io_wait(struct io *io)
{
	const time_t end = seconds() + PATIENCE_MS / 1000;

	/* The limit is for requests that never end. Not in turns: they may be short, and what is waited for in another thread. */
	for (unsigned i = 0; !io->done && (i < 1000 || seconds() < end); i++)
		queue_turn(io->r.q, i < 1000 ? 0 : 1000000);
	if (!io->done) {
		fprintf(stderr, "a request does not end\n");
		abort(); /* fail_msg() is for the main thread only, and the request is still in flight */
	}
	return io->ret;
}

void turns(struct queue *q, unsigned nr)
{
	while (nr--)
		queue_turn(q, 0);
}

int io_now(struct image *img, enum req_op op, uint64_t off, void *buf, uint64_t len, uint32_t flags)
{
	struct io io;

	io_start(&io, img->l.n, img->l.q, op, off, buf, len, flags);
	return io_wait(&io);
}

/* ---- queues with threads ---- */

static void *worker_thread(void *arg)
{
	struct worker *w = arg;
	struct varve_error err = { 0, "" };

	w->ret = node_attach(w->n, w->q, &err);
	if (w->ret < 0)
		snprintf(w->why, sizeof(w->why), "attach: %.150s", err.message);
	else
		w->ret = w->fn(w);
	/* It goes on answering home's messages until everybody has ended. */
	atomic_store(&w->done, true);
	while (atomic_load(&w->done))
		queue_turn(w->q, 1000000);
	return NULL;
}

struct detach {
	struct node *n;
	struct queue *q;
};

static int detach_fiber(struct fiber *f, void *arg)
{
	struct detach *d = arg;

	node_detach(f, d->n, d->q);
	return 0;
}

void workers_run(struct leaf *home, struct worker *w, unsigned nr, void (*meanwhile)(void *arg), void *arg)
{
	unsigned left = nr;

	for (unsigned i = 0; i < nr; i++) {
		w[i].n = home->n;
		w[i].nr = i;
		w[i].q = leaf_queue();
		assert_int_equal(pthread_create(&w[i].thread, NULL, worker_thread, &w[i]), 0);
	}
	while (left) {
		if (meanwhile)
			meanwhile(arg);
		queue_turn(home->q, meanwhile ? 0 : 1000000);
		left = 0;
		for (unsigned i = 0; i < nr; i++)
			left += !atomic_load(&w[i].done);
	}
	for (unsigned i = 0; i < nr; i++) {
		struct detach d = { w[i].n, w[i].q };

		assert_int_equal(fiber_call(home->q, detach_fiber, &d), 0);
	}
	for (unsigned i = 0; i < nr; i++) {
		atomic_store(&w[i].done, false);
		pthread_join(w[i].thread, NULL);
		turns(w[i].q, 2);
		queue_free(w[i].q);
		if (w[i].ret < 0)
			fail_msg("worker %u: %d %s", i, w[i].ret, w[i].why);
	}
}

/* ---- random ---- */

void rnd_start(struct rnd *r, uint64_t seed)
{
	r->seed = r->s = seed;
}

uint64_t rnd_below(struct rnd *r, uint64_t n)
{
	uint64_t z = r->s += 0x9e3779b97f4a7c15u;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
	z = (z ^ z >> 27) * 0x94d049bb133111ebu;
	return (z ^ z >> 31) % n;
}
