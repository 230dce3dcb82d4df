/* SPDX-License-Identifier: MIT */
/*
 * crash/cut.c - see cut.h
 *
 * The disk is looked at sector by sector (512 bytes, what a device writes whole or not at all). Each write puts a number of
 * its own into its sectors; for each sector there is a list of what it may hold after a power cut: everything since the
 * last write that a completed flush covers, that write included.
 *
 * Assumes: requests in flight do not overlap, as with any sane guest. Runs that cannot be set up end the process.
 */
#include "cut.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "aio/sim.h"
#include "base/error.h"
#include "block/graph.h"
#include "block/copy_on_read.h"
#include "proto/proto.h"

#define SECTOR 512
#define VALUES_MAX 24 /* of one sector; when they are used up it is left alone until a flush */
#define OPS_MAX 32
#define OP_SECTORS_MAX 96
#define BASE_VALUE 0xba5e0000u

struct value {
	uint32_t v;	 /* 0: zeroes */
	uint32_t done;	 /* when it completed, counted in events; 0: in flight */
	bool definitive; /* after it, nothing older can be there (a discard may do nothing) */
};

struct sector {
	struct value val[VALUES_MAX];
	unsigned nr;
	bool busy;
};

struct op {
	struct req r;
	struct cut *c;
	struct iovec iov;
	uint8_t *buf;
	uint64_t first, nr; /* sectors */
	uint32_t begun;	    /* event */
	bool used, flush;
};

struct cut {
	struct cut_config cfg;
	struct cut_result *res;
	uint64_t random;
	struct queue *q;
	struct sim_file *sim, *data_sim; /* data_sim NULL: there is one file only */
	struct aio_file af, data_af;
	struct node *disk;
	struct sector *sectors;
	uint64_t nr_sectors;
	struct op ops[OPS_MAX];
	unsigned in_flight;
	uint32_t event, next_value;
	uint64_t run_next; /* sector */
};

static uint64_t below(struct cut *c, uint64_t n)
{
	uint64_t z = c->random += 0x9e3779b97f4a7c15u;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
	z = (z ^ z >> 27) * 0x94d049bb133111ebu;
	return (z ^ z >> 31) % n;
}

static void must(int ret, const char *what, const struct varve_error *err)
{
	if (ret >= 0)
		return;
	fprintf(stderr, "crash test: %s: %s (%d)\n", what, err ? err->message : "", ret);
	abort();
}

/* ---- contents ---- */

static void sector_put(uint8_t *bytes, uint64_t nr, uint32_t v)
{
	uint64_t pattern[2] = { v, nr * 0x0101010101010101u + v };

	if (!v) {
		memset(bytes, 0, SECTOR);
		return;
	}
	for (unsigned i = 0; i < SECTOR; i += sizeof(pattern))
		memcpy(bytes + i, pattern, sizeof(pattern));
}

static uint32_t base_value(const struct cut *c, uint64_t nr)
{
	return c->cfg.backing ? BASE_VALUE + (uint32_t)nr : 0;
}

static void value_add(struct sector *s, uint32_t v, bool definitive)
{
	s->val[s->nr++] = (struct value){ .v = v, .definitive = definitive };
}

/* What was definitely written before event `before` is stable: nothing older can come back. */
static void sector_settle(struct sector *s, uint32_t before)
{
	for (unsigned i = s->nr; i-- > 1;) {
		if (s->val[i].definitive && s->val[i].done && s->val[i].done < before) {
			memmove(s->val, s->val + i, (s->nr - i) * sizeof(s->val[0]));
			s->nr -= i;
			return;
		}
	}
}

static bool sector_may_hold(const struct sector *s, uint64_t nr, const uint8_t *bytes)
{
	uint8_t want[SECTOR];

	for (unsigned i = 0; i < s->nr; i++) {
		sector_put(want, nr, s->val[i].v);
		if (!memcmp(want, bytes, SECTOR))
			return true;
	}
	return false;
}

/* ---- disks ---- */

/* A base in memory below n, with the base values. */
static void base_attach(struct fiber *f, const struct cut *c, struct node *n)
{
	struct varve_error err = { 0, "" };
	struct opts *o = opts_new();
	struct node *memory, *base;
	uint8_t bytes[SECTOR];
	char size[32];

	snprintf(size, sizeof(size), "%llu", (unsigned long long)c->cfg.len);
	must(opts_set(o, "size", size, &err), "base", &err);
	must(graph_stack(f, &driver_memory, NULL, o, NODE_WRITABLE, &memory, &err), "base", &err);
	opts_free(o);
	for (uint64_t i = 0; i < c->nr_sectors; i++) {
		sector_put(bytes, i, base_value(c, i));
		must(node_write(f, memory, i * SECTOR, bytes, SECTOR), "base", NULL);
	}
	o = opts_new();
	must(graph_stack(f, driver_find("raw"), memory, o, 0, &base, &err), "base", &err);
	opts_free(o);
	n->backing = base;
}

static void image_stack(struct fiber *f, const struct cut *c, struct node *file, uint32_t flags, const char *state_dir,
			struct node **ret, struct varve_error *err, int *ret_code)
{
	struct opts *o = opts_new();

	if (state_dir)
		must(opts_set(o, "state-dir", state_dir, err), "options", err);
	must(opts_set(o, "l2-cache-size", c->cfg.seed & 1 ? "64k" : "1M", err), "options", err);
	/* Entries that are smaller and larger than what is changed at once. */
	if (!strcmp(c->cfg.format, "qcow2") && c->cfg.seed % 3) {
		char whole[24];

		snprintf(whole, sizeof(whole), "%llu", (unsigned long long)c->cfg.cluster);
		must(opts_set(o, "l2-cache-entry-size", c->cfg.seed % 3 == 1 ? "512" : whole, err), "options", err);
	}
	if (c->cfg.keeps_space)
		must(opts_set(o, "discard-no-unref", "on", err), "options", err);
	if (c->cfg.discards_other)
		must(opts_set(o, "pass-discard-other", "on", err), "options", err);
	*ret_code = graph_stack(f, driver_find(c->cfg.format), file, o, flags, ret, err);
	opts_free(o);
	if (*ret_code == 0 && c->cfg.backing)
		base_attach(f, c, *ret);
}

/* The simulated file as the disk of this process. */
static struct node *leaf_new(struct fiber *f, struct cut *c)
{
	struct varve_error err = { 0, "" };
	struct node *leaf;

	must(sim_node_new(f, c->sim, &c->af, NODE_WRITABLE, &leaf, &err), "sim", &err);
	leaf->file_id[0] = 1;
	leaf->file_id[1] = c->cfg.seed; /* a journal belongs to a file */
	if (!c->data_sim)
		return leaf;
	must(sim_node_new(f, c->data_sim, &c->data_af, NODE_WRITABLE, &leaf->data, &err), "sim", &err);
	leaf->data->file_id[0] = 2;
	leaf->data->file_id[1] = c->cfg.seed;
	return leaf;
}

static int disk_new(struct fiber *f, void *arg)
{
	struct cut *c = arg;
	struct sim_opts so = { .seed = c->cfg.seed, .min_ns = 1000, .max_ns = 60000 };
	struct varve_error err = { 0, "" };
	struct opts *o = opts_new();
	struct node *leaf;
	char text[200];
	int ret;

	must(sim_file_new(&c->sim, &c->af, &so), "sim", NULL);
	so.seed += 1000;
	if (c->cfg.data_file)
		must(sim_file_new(&c->data_sim, &c->data_af, &so), "sim", NULL);
	leaf = leaf_new(f, c);
	if (!strcmp(c->cfg.format, "qcow2"))
		snprintf(text, sizeof(text), "cluster_size=%llu,compat=%s,refcount_bits=%u%s%s%s",
			 (unsigned long long)c->cfg.cluster, c->cfg.version2 ? "0.10" : "1.1",
			 c->cfg.version2 ? 16u : 4u << below(c, 5), c->cfg.data_file ? ",data_file=data" : "",
			 c->cfg.data_file_raw ? ",data_file_raw=on" : "", c->cfg.subclusters ? ",extended_l2=on" : "");
	else
		snprintf(text, sizeof(text), "cluster_size=%llu,table_size=%u", (unsigned long long)c->cfg.cluster,
			 1u << below(c, 3));
	must(opts_parse(o, text, &err), text, &err);
	must(driver_find(c->cfg.format)->create(f, leaf, c->cfg.len, o, NULL, NULL, &err), text, &err);
	opts_free(o);
	must(node_flush(f, leaf), "flush", NULL);
	image_stack(f, c, leaf, NODE_WRITABLE, c->cfg.kills ? c->cfg.state_dir : NULL, &c->disk, &err, &ret);
	must(ret, "open", &err);
	if (c->cfg.copy_on_read)
		must(cor_open(c->disk, NULL, &err), "copy-on-read", &err);
	return 0;
}

static int disk_close(struct fiber *f, void *arg)
{
	struct cut *c = arg;
	struct varve_error err = { 0, "" };

	must(graph_close(f, c->disk, &err), "close", &err);
	return 0;
}

/* ---- after a cut ---- */

struct after {
	struct cut *c;
	uint8_t *bytes, *data; /* of the file, the data file */
	uint64_t len, data_len;
	char line[300]; /* the first thing that check reported */
};

static void __attribute__((format(printf, 2, 3))) broken(struct cut *c, const char *fmt, ...)
{
	struct cut_result *res = c->res;
	va_list ap;
	int n;

	if (*res->broken)
		return;
	n = snprintf(res->broken, sizeof(res->broken), "seed %llu, cluster %llu, depth %u, cut %u, event %u: ",
		     (unsigned long long)c->cfg.seed, (unsigned long long)c->cfg.cluster, c->cfg.depth, res->nr_cuts,
		     c->event);
	va_start(ap, fmt);
	vsnprintf(res->broken + n, sizeof(res->broken) - (size_t)n, fmt, ap);
	va_end(ap);
}

static void report(void *user_data, const char *line)
{
	struct after *a = user_data;

	if (!strncmp(line, "leak", 4) || !strncmp(line, "Leak", 4))
		return;
	if (!*a->line)
		snprintf(a->line, sizeof(a->line), "%.290s", line);
}

static void after_check(struct fiber *f, struct after *a, struct node *n, const char *when)
{
	struct varve_check_result result = { 0 };
	struct check check = { .result = &result, .report = report, .user_data = a };
	struct varve_error err = { 0, "" };
	int ret = n->drv->check(f, n, &check, &err);

	if (ret < 0 || result.corruptions || result.check_errors)
		broken(a->c, "%s: check: %d %s, %llu corruptions, %llu errors: %s", when, ret, err.message,
		       (unsigned long long)result.corruptions, (unsigned long long)result.check_errors, a->line);
	a->c->res->leaks += result.leaks;
}

/* A raw data file is to hold all that the disk does. */
static void after_read(struct fiber *f, struct after *a, struct node *n, const char *what)
{
	struct cut *c = a->c;
	uint8_t *bytes = malloc(c->cfg.len);
	int ret = node_read(f, n, 0, bytes, c->cfg.len);

	if (ret < 0)
		broken(c, "%scannot be read: %d", what, ret);
	for (uint64_t i = 0; ret == 0 && i < c->nr_sectors; i++) {
		const struct sector *s = &c->sectors[i];
		uint32_t got;

		if (sector_may_hold(s, i, bytes + i * SECTOR))
			continue;
		memcpy(&got, bytes + i * SECTOR, sizeof(got));
		broken(c, "%ssector %llu holds 0x%x; the oldest it may hold of %u is 0x%x", what, (unsigned long long)i, got, s->nr,
		       s->val[0].v);
		break;
	}
	free(bytes);
}

/* The disk goes on living: what is written now must not hit anything that is in use. */
static void after_write(struct fiber *f, struct after *a, struct node *n)
{
	struct cut *c = a->c;
	uint8_t bytes[SECTOR];

	memset(bytes, 0xee, sizeof(bytes));
	for (unsigned i = 0; i < 8; i++) {
		int ret = node_write(f, n, below(c, c->nr_sectors) * SECTOR, bytes, SECTOR);

		if (ret < 0)
			broken(c, "cannot be written: %d", ret);
	}
	if (n->drv->sync(f, n) < 0)
		broken(c, "cannot be flushed");
}

static int after_cut(struct fiber *f, void *arg)
{
	struct after *a = arg;
	struct varve_error err = { 0, "" };
	struct opts *o = opts_new();
	struct node *memory, *n;
	int ret;

	must(graph_stack(f, &driver_memory, NULL, o, NODE_WRITABLE, &memory, &err), "memory", &err);
	opts_free(o);
	must(node_write(f, memory, 0, a->bytes, a->len), "memory", NULL);
	if (a->data) {
		o = opts_new();
		must(graph_stack(f, &driver_memory, NULL, o, NODE_WRITABLE, &memory->data, &err), "memory", &err);
		opts_free(o);
		must(node_write(f, memory->data, 0, a->data, a->data_len), "memory", NULL);
	}
	image_stack(f, a->c, memory, NODE_WRITABLE, NULL, &n, &err, &ret); /* the journal is gone, too */
	if (ret < 0) {
		broken(a->c, "cannot be opened: %s", err.message);
		graph_close(f, memory, NULL);
		return 0;
	}
	after_check(f, a, n, "after the cut");
	after_read(f, a, n, "");
	if (a->c->cfg.data_file_raw)
		after_read(f, a, n->data, "of the data file, ");
	if (!*a->c->res->broken) {
		after_write(f, a, n);
		after_check(f, a, n, "after writing on");
	}
	graph_close(f, n, NULL);
	return 0;
}

struct keep {
	struct cut *c;
	unsigned percent;
};

static bool keep_some(void *arg, unsigned i)
{
	struct keep *k = arg;

	(void)i;
	return below(k->c, 100) < k->percent;
}

static void cut_now(struct cut *c)
{
	static const unsigned percents[] = { 0, 20, 50, 50, 80, 95, 100 };
	struct keep keep = { c, percents[below(c, 7)] };
	struct after a = { .c = c };
	struct queue *q;
	uint64_t torn = below(c, 2) ? 1 + below(c, 1u << 30) : 0;

	c->res->nr_cuts++;
	c->res->nr_unstable += sim_nr_unstable(c->sim);
	a.bytes = sim_power_cut(c->sim, keep_some, &keep, torn, &a.len);
	if (c->data_sim) {
		keep.percent = percents[below(c, 7)]; /* it may be another disk */
		c->res->nr_unstable += sim_nr_unstable(c->data_sim);
		a.data = sim_power_cut(c->data_sim, keep_some, &keep, torn, &a.data_len);
	}
	must(queue_new(&q, NULL, NULL), "queue", NULL);
	fiber_call(q, after_cut, &a);
	queue_free(q);
	free(a.bytes);
	free(a.data);
}

/* ---- the workload ---- */

static void op_done(struct req *r, int ret)
{
	struct op *op = container_of(r, struct op, r);
	struct cut *c = op->c;
	uint32_t now = ++c->event;

	must(ret, "a request failed", NULL);
	for (uint64_t i = op->first; i < op->first + op->nr; i++) {
		struct sector *s = &c->sectors[i];

		s->val[s->nr - 1].done = now;
		s->busy = false;
		if (op->iov.iov_len && op->begun == UINT32_MAX) /* FUA */
			sector_settle(s, now + 1);
	}
	if (op->flush) {
		c->res->nr_flushes++;
		for (uint64_t i = 0; i < c->nr_sectors; i++)
			sector_settle(&c->sectors[i], op->begun);
	}
	free(op->buf);
	op->used = false;
	c->in_flight--;
}

/* A free range of sectors; 0: not found. Sometimes whole clusters. */
static uint64_t pick_range(struct cut *c, uint64_t *ret_first)
{
	uint64_t per_cluster = c->cfg.cluster / SECTOR, max = 1 + below(c, OP_SECTORS_MAX), nr = 0;
	uint64_t first = below(c, c->nr_sectors);
	bool goes_on = c->cfg.run && below(c, 20) != 0;

	if (goes_on) {
		first = c->run_next % c->nr_sectors;
	} else if (below(c, 3) == 0 && per_cluster <= OP_SECTORS_MAX) {
		first -= first % per_cluster;
		max = per_cluster * (1 + below(c, OP_SECTORS_MAX / per_cluster));
	}
	while (nr < max && first + nr < c->nr_sectors && !c->sectors[first + nr].busy &&
	       c->sectors[first + nr].nr < VALUES_MAX)
		nr++;
	*ret_first = first;
	if (goes_on)
		c->run_next = first + nr;
	return nr;
}

static void read_start(struct cut *c)
{
	uint64_t first = below(c, c->nr_sectors), max = 1 + below(c, OP_SECTORS_MAX);
	uint64_t nr = MIN(max, c->nr_sectors - first);
	struct op *op = c->ops;

	while (op->used)
		op++;
	*op = (struct op){ .c = c, .used = true, .buf = malloc(nr * SECTOR) };
	op->iov = (struct iovec){ op->buf, nr * SECTOR };
	c->in_flight++;
	req_init(&op->r, c->q, REQ_READ, first * SECTOR, nr * SECTOR, &op->iov, 1, 0, op_done);
	node_submit(c->disk, &op->r);
}

static void op_start(struct cut *c)
{
	uint64_t what = below(c, 100), first = 0, nr = what < 90 ? pick_range(c, &first) : 0;
	enum req_op code = what < 70 ? REQ_WRITE : what < 80 ? REQ_ZERO : what < 90 ? REQ_DISCARD : REQ_FLUSH;
	uint32_t v = code == REQ_WRITE ? ++c->next_value : 0, flags = 0;
	struct op *op = c->ops;

	if (c->cfg.copy_on_read && below(c, 3) == 0) {
		read_start(c);
		return;
	}
	if (what < 90 && !nr)
		return;
	while (op->used)
		op++;
	*op = (struct op){ .c = c, .used = true, .flush = what >= 90, .first = first, .nr = nr, .begun = ++c->event };
	if (code == REQ_WRITE) {
		op->buf = malloc(nr * SECTOR);
		for (uint64_t i = 0; i < nr; i++)
			sector_put(op->buf + i * SECTOR, first + i, v);
		op->iov = (struct iovec){ op->buf, nr * SECTOR };
		if (what < 3) {
			flags = REQ_FUA;
			op->begun = UINT32_MAX;
		}
	} else if (code == REQ_ZERO && below(c, 2)) {
		flags = REQ_MAY_UNMAP;
	}
	for (uint64_t i = first; i < first + nr; i++) {
		c->sectors[i].busy = true;
		value_add(&c->sectors[i], v, code != REQ_DISCARD);
	}
	c->in_flight++;
	req_init(&op->r, c->q, code, first * SECTOR, nr * SECTOR, op->buf ? &op->iov : NULL, op->buf ? 1 : 0, flags,
		 op_done);
	node_submit(c->disk, &op->r);
}

/* What a worker does takes as long as it takes: no time passes and no seed is used up before it has come back. */
static void step(struct cut *c)
{
	do
		queue_turn(c->q, -1);
	while (queue_awaits(c->q));
	queue_advance(c->q, 1 + below(c, 20000));
}

/* ---- the process is killed ---- */

struct takeover {
	struct fiber_job job;
	struct cut *c;
	bool done;
};

/* Flushed or not: what was acknowledged last, or what was in flight then or is since. */
static bool sector_acknowledged(const struct sector *s, uint64_t nr, const uint8_t *bytes)
{
	struct sector since = *s;

	for (unsigned i = s->nr; i-- > 1;) {
		if (s->val[i].definitive && s->val[i].done) {
			memmove(since.val, s->val + i, (s->nr - i) * sizeof(s->val[0]));
			since.nr = s->nr - i;
			break;
		}
	}
	return sector_may_hold(&since, nr, bytes);
}

static void takeover_run(struct fiber *f, struct fiber_job *job)
{
	struct takeover *t = container_of(job, struct takeover, job);
	struct cut *c = t->c;
	struct varve_error err = { 0, "" };
	uint8_t *bytes = malloc(c->cfg.len);
	int ret;

	image_stack(f, c, leaf_new(f, c), NODE_WRITABLE, c->cfg.state_dir, &c->disk, &err, &ret);
	must(ret, "takeover", &err);
	must(node_read(f, c->disk, 0, bytes, c->cfg.len), "read", NULL);
	for (uint64_t i = 0; i < c->nr_sectors; i++) {
		if (!sector_acknowledged(&c->sectors[i], i, bytes + i * SECTOR)) {
			broken(c, "after kill %u, sector %llu does not hold what was acknowledged", c->res->nr_kills,
			       (unsigned long long)i);
			break;
		}
	}
	free(bytes);
	t->done = true;
}

static void what_was_handed_over(struct cut *c, struct sim_file *s)
{
	for (unsigned i = sim_pending(s); i-- > 0;) {
		bool happens = sim_op(s, i)->opcode == AIO_FLUSH || below(c, 2);

		sim_complete(s, i, happens ? 0 : -EIO);
	}
}

/* Its queue never runs again. What the kernel had been handed may still happen. */
static void process_dies(struct cut *c)
{
	cut_give_up_journal(c->disk, c->cfg.format);
	what_was_handed_over(c, c->sim);
	if (c->data_sim)
		what_was_handed_over(c, c->data_sim);
	for (unsigned i = 0; i < OPS_MAX; i++) {
		struct op *op = &c->ops[i];

		for (uint64_t nr = op->first; op->used && nr < op->first + op->nr; nr++)
			c->sectors[nr].busy = false; /* never acknowledged; it may be there for ever */
		op->used = false;
	}
	c->in_flight = 0;
	c->res->nr_kills++;
}

static void kill_now(struct cut *c)
{
	struct takeover *t = calloc(1, sizeof(*t));

	process_dies(c);
	must(queue_new(&c->q, &(struct queue_opts){ .virtual_time = true }, NULL), "queue", NULL);
	*t = (struct takeover){ .job.run = takeover_run, .c = c };
	fiber_start(c->q, &t->job, FIBER_LEVELS - 1);
	while (!t->done) {
		step(c);
		if (below(c, 24) == 0 && !*c->res->broken) {
			cut_now(c);
			c->res->nr_cuts_in_takeover++;
		}
	}
	free(t);
}

static void run(const struct cut_config *config, struct cut_result *res)
{
	struct cut *c = calloc(1, sizeof(*c));
	struct varve_error err = { 0, "" };
	unsigned every = 1 + 3 * config->steps / config->cuts; /* turns are about three times the requests */

	memset(res, 0, sizeof(*res));
	c->cfg = *config;
	c->res = res;
	c->random = config->seed;
	c->nr_sectors = config->len / SECTOR;
	c->sectors = calloc(c->nr_sectors, sizeof(*c->sectors));
	for (uint64_t i = 0; i < c->nr_sectors; i++) {
		value_add(&c->sectors[i], base_value(c, i), true);
		c->sectors[i].val[0].done = ++c->event;
	}
	must(queue_new(&c->q, &(struct queue_opts){ .virtual_time = true }, &err), "queue", &err);
	fiber_call(c->q, disk_new, c);
	for (unsigned i = 0; i < config->steps && !*res->broken;) {
		while (c->in_flight < config->depth && i < config->steps) {
			op_start(c);
			i++;
		}
		step(c);
		if (below(c, every) == 0)
			cut_now(c);
		if (c->cfg.kills && below(c, 3 * config->steps / c->cfg.kills) == 0 && !*res->broken)
			kill_now(c);
	}
	while (c->in_flight)
		step(c);
	if (!*res->broken)
		cut_now(c);
	fiber_call(c->q, disk_close, c);
	sim_file_free(c->sim);
	if (c->data_sim)
		sim_file_free(c->data_sim);
	queue_free(c->q);
	free(c->sectors);
	free(c);
}

/* What the dead held is given back by nobody: their queues, files and memory end with a process of their own. */
static void run_apart(const struct cut_config *config, struct cut_result *res)
{
	struct cut_result *shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	int status = -1;
	pid_t pid;

	must(shared == MAP_FAILED ? -errno : 0, "memory", NULL);
	fflush(NULL);
	pid = fork();
	must(pid, "fork", NULL);
	if (!pid) {
		run(config, shared);
		fflush(NULL);
		_exit(0);
	}
	must(waitpid(pid, &status, 0), "waitpid", NULL);
	must(status ? -ECHILD : 0, "a run in a process of its own did not end well", NULL);
	*res = *shared;
	munmap(shared, sizeof(*shared));
}

void cut_run(const struct cut_config *config, struct cut_result *res)
{
	if (config->kills)
		run_apart(config, res);
	else
		run(config, res);
}
