/* SPDX-License-Identifier: MIT */
/*
 * crash/test_snapshot_cut.c - power cuts in the middle of making, applying and deleting snapshots, and of saving states
 *
 * The disk is flushed before each of these, so what it holds is known. Whatever subset of the writes under way has reached
 * the disk: the image opens, check finds no corruption, there is each snapshot completely or not at all, as before or as
 * after what was being done, and the disk can be used on.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "aio/sim.h"
#include "base/error.h"
#include "base/math.h"
#include "block/graph.h"
#include "block/snapshot.h"
#include "proto/proto.h"

#define BLOCK 512u
#define BLOCKS_MAX 512u
#define SNAPSHOTS_MAX 8u
#define CUTS_MAX 64u
#define OPS 14u

/* One byte for each block of the disk. */
struct picture {
	uint8_t byte[BLOCKS_MAX];
	unsigned nr;
};

struct kept {
	bool used;
	char name[8];
	struct picture disk;
	uint32_t state_len;
	uint8_t state_byte;
};

/* What there is when nothing is under way. */
struct world {
	struct picture disk;
	struct kept kept[SNAPSHOTS_MAX];
};

struct cut {
	uint8_t *bytes;
	uint64_t len;
	struct world before, after; /* of what was being done */
	char doing[40];
};

struct run {
	uint64_t seed, random;
	uint32_t cluster;
	bool version2, subclusters;
	struct queue *q;
	struct sim_file *sim;
	struct node *n;
	struct world now, next;
	char doing[40];
	bool cutting;
	unsigned nr_names;
	struct cut cuts[CUTS_MAX];
	unsigned nr_cuts, every;
	char broken[400];
};

static unsigned below(struct run *r, unsigned n)
{
	uint64_t z = r->random += 0x9e3779b97f4a7c15u;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
	z = (z ^ z >> 27) * 0x94d049bb133111ebu;
	return (unsigned)((z ^ z >> 31) % n);
}

static void must(int ret, const char *what, const struct varve_error *err)
{
	if (ret < 0)
		fail_msg("%s: %d %s", what, ret, err ? err->message : "");
}

static void __attribute__((format(printf, 2, 3))) broken(struct run *r, const char *fmt, ...)
{
	va_list ap;

	if (*r->broken)
		return;
	va_start(ap, fmt);
	vsnprintf(r->broken, sizeof(r->broken), fmt, ap);
	va_end(ap);
}

/* ---- cuts ---- */

struct keep {
	struct run *r;
	unsigned percent;
};

static bool keep_some(void *arg, unsigned i)
{
	struct keep *k = arg;

	(void)i;
	return below(k->r, 100) < k->percent;
}

/* For every operation on the file: some of them are where the power goes. */
static int64_t maybe_cut(void *arg, uint64_t nr, const struct aio_op *op)
{
	static const unsigned percents[] = { 0, 30, 60, 90, 100 };
	struct run *r = arg;
	struct keep keep = { r, percents[below(r, 5)] };
	struct cut *c;

	(void)nr;
	(void)op;
	if (!r->cutting || r->nr_cuts == CUTS_MAX || below(r, r->every))
		return 0;
	c = &r->cuts[r->nr_cuts++];
	c->bytes = sim_power_cut(r->sim, keep_some, &keep, below(r, 2) ? 1 + below(r, 1u << 30) : 0, &c->len);
	c->before = r->now;
	c->after = r->next;
	snprintf(c->doing, sizeof(c->doing), "%s", r->doing);
	return 0;
}

/* ---- what is done ---- */

static int disk_flush(struct fiber *f, struct run *r)
{
	return r->n->drv->sync(f, r->n);
}

static void write_block(struct fiber *f, struct run *r, unsigned i, uint8_t byte)
{
	uint8_t bytes[BLOCK];

	memset(bytes, byte, sizeof(bytes));
	must(node_write(f, r->n, i * (uint64_t)BLOCK, bytes, sizeof(bytes)), "write", NULL);
	r->now.disk.byte[i] = byte;
}

static void write_some(struct fiber *f, struct run *r)
{
	for (unsigned n = 1 + below(r, 12); n; n--) {
		unsigned first = below(r, r->now.disk.nr), nr = 1 + below(r, 16);
		uint8_t byte = (uint8_t)(1 + below(r, 255));

		for (unsigned i = first; i < MIN(first + nr, r->now.disk.nr); i++)
			write_block(f, r, i, byte);
	}
	if (below(r, 3) == 0) {
		unsigned per = r->cluster / BLOCK, first = below(r, r->now.disk.nr / per) * per;

		must(node_discard(f, r->n, first * (uint64_t)BLOCK, r->cluster), "discard", NULL);
		memset(r->now.disk.byte + first, 0, per);
	}
	must(disk_flush(f, r), "flush", NULL);
}

static struct kept *pick(struct run *r, struct world *w, bool used)
{
	unsigned first = below(r, SNAPSHOTS_MAX);

	for (unsigned i = 0; i < SNAPSHOTS_MAX; i++) {
		struct kept *k = &w->kept[(first + i) % SNAPSHOTS_MAX];

		if (k->used == used)
			return k;
	}
	return NULL;
}

/* The state is written as a stream does it: space, then bytes; then the commit. */
static void write_state(struct fiber *f, struct run *r, struct snapshot_draft *d, uint32_t len, uint8_t byte)
{
	uint8_t *bytes = malloc(len + 1);

	memset(bytes, byte, len);
	for (uint32_t pos = 0; pos < len;) {
		struct extent e;
		uint32_t part;

		must(r->n->drv->snapshot_space(f, r->n, d, len - pos, &e), "space", NULL);
		part = (uint32_t)MIN(e.len, (uint64_t)(len - pos));
		must(node_write(f, r->n->file, e.host_off, bytes, part), "state", NULL);
		pos += part;
	}
	free(bytes);
}

static void make(struct fiber *f, struct run *r, bool early)
{
	struct snapshot_want want = { .door = r->n, .now = early, .icount = UINT64_MAX };
	struct varve_error err = { 0, "" };
	struct snapshot_draft *d;
	struct kept *k;
	int ret;

	r->next = r->now;
	k = pick(r, &r->next, false);
	if (!k)
		return;
	*k = (struct kept){ .used = true, .disk = r->now.disk, .state_byte = (uint8_t)below(r, 256) };
	k->state_len = early || below(r, 2) ? 1 + below(r, 40000) : 0;
	snprintf(k->name, sizeof(k->name), "n%u", ++r->nr_names);
	snprintf(r->doing, sizeof(r->doing), "making %s%s", k->name, early ? " of before" : "");
	want.name = k->name;
	r->cutting = true;
	must(r->n->drv->snapshot_create(f, r->n, &want, &d, &err), "create", &err);
	if (early) { /* the disk goes on while the state comes */
		struct world later;

		r->cutting = false;
		write_some(f, r);
		later = r->next;
		later.disk = r->now.disk;
		r->next = later;
		r->cutting = true;
	}
	write_state(f, r, d, k->state_len, k->state_byte);
	if (below(r, 5) == 0) {
		r->n->drv->snapshot_abort(f, r->n, d);
		r->cutting = false;
		return;
	}
	ret = r->n->drv->snapshot_commit(f, r->n, d, k->state_len, NULL, &err);
	r->cutting = false;
	must(ret, "commit", &err);
	r->now = r->next;
}

static void delete_or_apply(struct fiber *f, struct run *r, bool apply)
{
	struct snapshot_pick sp = { 0 };
	struct varve_error err = { 0, "" };
	struct kept *k;
	int ret;

	r->next = r->now;
	k = pick(r, &r->next, true);
	if (!k)
		return;
	sp.name = k->name;
	snprintf(r->doing, sizeof(r->doing), "%s %s", apply ? "applying" : "deleting", k->name);
	if (apply)
		r->next.disk = k->disk;
	else
		k->used = false;
	r->cutting = true;
	ret = apply ? r->n->drv->snapshot_apply(f, r->n, &sp, &err) : r->n->drv->snapshot_delete(f, r->n, &sp, &err);
	r->cutting = false;
	must(ret, r->doing, &err);
	r->now = r->next;
}

static void open_disk(struct fiber *f, struct node *file, uint32_t flags, const char *snapshot, struct node **ret,
		      struct varve_error *err, int *ret_code)
{
	struct opts *o = opts_new();

	must(snapshot ? opts_set(o, "snapshot.name", snapshot, err) : 0, "options", err);
	*ret_code = graph_stack(f, driver_find("qcow2"), file, o, flags, ret, err);
	opts_free(o);
}

static int work(struct fiber *f, void *arg)
{
	struct sim_opts so = { .seed = ((struct run *)arg)->seed, .min_ns = 1000, .max_ns = 60000 };
	struct varve_error err = { 0, "" };
	struct run *r = arg;
	struct opts *o = opts_new();
	struct aio_file af;
	struct node *leaf;
	char text[100];
	int ret;

	must(sim_file_new(&r->sim, &af, &so), "sim", NULL);
	must(sim_node_new(f, r->sim, &af, NODE_WRITABLE, &leaf, &err), "sim", &err);
	snprintf(text, sizeof(text), "cluster_size=%u,compat=%s%s", r->cluster, r->version2 ? "0.10" : "1.1",
		 r->subclusters ? ",extended_l2=on" : "");
	must(opts_parse(o, text, &err), text, &err);
	must(driver_find("qcow2")->create(f, leaf, r->now.disk.nr * (uint64_t)BLOCK, o, NULL, NULL, &err), text, &err);
	opts_free(o);
	must(node_flush(f, leaf), "flush", NULL);
	open_disk(f, leaf, NODE_WRITABLE, NULL, &r->n, &err, &ret);
	must(ret, "open", &err);
	sim_set_fault(r->sim, maybe_cut, r);
	write_some(f, r);
	for (unsigned i = 0; i < OPS; i++) {
		unsigned what = below(r, 10);

		if (what < 3)
			write_some(f, r);
		else if (what < 7)
			make(f, r, what == 6);
		else
			delete_or_apply(f, r, what == 9);
		if (below(r, 4))
			write_some(f, r);
	}
	must(graph_close(f, r->n, &err), "close", &err);
	return 0;
}

/* ---- after a cut ---- */

struct look {
	struct run *r;
	struct cut *c;
};

static bool same_picture(struct fiber *f, struct node *n, const struct picture *p)
{
	uint8_t *bytes = malloc(p->nr * (size_t)BLOCK), want[BLOCK];
	bool same = node_len(n) == p->nr * (uint64_t)BLOCK && node_read(f, n, 0, bytes, p->nr * (size_t)BLOCK) == 0;

	for (unsigned i = 0; i < p->nr && same; i++) {
		memset(want, p->byte[i], BLOCK);
		same = memcmp(bytes + i * (size_t)BLOCK, want, BLOCK) == 0;
	}
	free(bytes);
	return same;
}

static bool same_state(struct fiber *f, struct node *n, const struct kept *k)
{
	struct snapshot_pick sp = { .name = k->name };
	struct snapshot_state *st;
	uint64_t len;
	bool same;

	if (!k->state_len)
		return n->drv->snapshot_state_open(f, n, &sp, &st, &len, NULL) == -ENODATA;
	if (n->drv->snapshot_state_open(f, n, &sp, &st, &len, NULL) < 0)
		return false;
	same = len == k->state_len;
	for (uint64_t pos = 0; same && pos < len;) {
		uint8_t bytes[4096];
		struct extent e;

		n->drv->snapshot_state_map(f, n, st, pos, MIN(len - pos, sizeof(bytes)), &e);
		same = e.kind == EXTENT_DATA && node_read(f, e.node, e.host_off, bytes, e.len) == 0;
		for (uint64_t i = 0; same && i < e.len; i++)
			same = bytes[i] == k->state_byte;
		pos += e.len;
	}
	n->drv->snapshot_state_close(st);
	return same;
}

static const struct kept *find_kept(const struct world *w, const char *name)
{
	for (unsigned i = 0; i < SNAPSHOTS_MAX; i++) {
		if (w->kept[i].used && !strcmp(w->kept[i].name, name))
			return &w->kept[i];
	}
	return NULL;
}

static unsigned nr_kept(const struct world *w)
{
	unsigned nr = 0;

	for (unsigned i = 0; i < SNAPSHOTS_MAX; i++)
		nr += w->kept[i].used;
	return nr;
}

static bool same_names(const struct snapshot_info *list, uint32_t nr, const struct world *w)
{
	bool same = nr == nr_kept(w);

	for (uint32_t i = 0; same && i < nr; i++)
		same = find_kept(w, list[i].name);
	return same;
}

static void note_line(void *user_data, const char *line)
{
	char *text = user_data;

	if (strncmp(line, "leak", 4) && !*text)
		snprintf(text, 200, "%s", line);
}

static void check(struct fiber *f, struct look *l, struct node *n, const char *when)
{
	struct varve_check_result result = { 0 };
	char line[200] = "";
	struct check c = { .result = &result, .report = note_line, .user_data = line };
	int ret = n->drv->check(f, n, &c, NULL);

	if (ret < 0 || result.corruptions || result.check_errors)
		broken(l->r, "%s: check %s: %d, %llu corruptions: %s", l->c->doing, when, ret,
		       (unsigned long long)result.corruptions, line);
}

static struct node *memory_of(struct fiber *f, const struct cut *c)
{
	struct varve_error err = { 0, "" };
	struct opts *o = opts_new();
	struct node *memory;

	must(graph_stack(f, &driver_memory, NULL, o, NODE_WRITABLE, &memory, &err), "memory", &err);
	opts_free(o);
	must(node_write(f, memory, 0, c->bytes, c->len), "memory", NULL);
	return memory;
}

/* As whoever only reads finds it, also when a writer would count anew first. */
static void look_at_one(struct fiber *f, struct look *l, const struct kept *k)
{
	struct node *memory = memory_of(f, l->c), *s;
	struct varve_error err = { 0, "" };
	int ret;

	open_disk(f, memory, 0, k->name, &s, &err, &ret);
	if (ret < 0) {
		broken(l->r, "%s: snapshot %s: %s", l->c->doing, k->name, err.message);
		graph_close(f, memory, NULL);
		return;
	}
	if (!same_picture(f, s, &k->disk))
		broken(l->r, "%s: snapshot %s holds something else", l->c->doing, k->name);
	if (!same_state(f, s, k))
		broken(l->r, "%s: snapshot %s has another state", l->c->doing, k->name);
	graph_close(f, s, NULL);
}

static void look_at_snapshots(struct fiber *f, struct look *l, struct node *n)
{
	struct varve_error err = { 0, "" };
	const struct world *w = NULL;
	struct snapshot_info *list;
	uint32_t nr;

	if (n->drv->snapshot_list(f, n, &list, &nr, &err) < 0) {
		broken(l->r, "%s: list: %s", l->c->doing, err.message);
		return;
	}
	if (same_names(list, nr, &l->c->before) && same_picture(f, n, &l->c->before.disk))
		w = &l->c->before;
	else if (same_names(list, nr, &l->c->after) && same_picture(f, n, &l->c->after.disk))
		w = &l->c->after;
	if (!w)
		broken(l->r, "%s: the disk and its %u snapshots are neither as before nor as after", l->c->doing, nr);
	for (uint32_t i = 0; i < nr; i++) {
		if (w)
			look_at_one(f, l, find_kept(w, list[i].name));
		free(list[i].id);
		free(list[i].name);
	}
	free(list);
}

/* What is written now must hit nothing that is in use, and all snapshots can be deleted. */
static void go_on(struct fiber *f, struct look *l, struct node *n)
{
	struct snapshot_info *list;
	uint8_t bytes[BLOCK];
	uint32_t nr;

	memset(bytes, 0xee, sizeof(bytes));
	for (unsigned i = 0; i < 8; i++) {
		if (node_write(f, n, below(l->r, (unsigned)(node_len(n) / BLOCK)) * (uint64_t)BLOCK, bytes, BLOCK) < 0)
			broken(l->r, "%s: cannot be written", l->c->doing);
	}
	if (n->drv->sync(f, n) < 0)
		broken(l->r, "%s: cannot be flushed", l->c->doing);
	check(f, l, n, "after writing");
	if (n->drv->snapshot_list(f, n, &list, &nr, NULL) < 0)
		return;
	for (uint32_t i = 0; i < nr; i++) {
		struct snapshot_pick sp = { .id = list[i].id };
		struct varve_error err = { 0, "" };

		if (n->drv->snapshot_delete(f, n, &sp, &err) < 0)
			broken(l->r, "%s: cannot delete: %s", l->c->doing, err.message);
		free(list[i].id);
		free(list[i].name);
	}
	free(list);
	check(f, l, n, "after deleting");
}

static int look(struct fiber *f, void *arg)
{
	struct look *l = arg;
	struct node *memory = memory_of(f, l->c), *n;
	struct varve_error err = { 0, "" };
	int ret;

	open_disk(f, memory, NODE_WRITABLE, NULL, &n, &err, &ret);
	if (ret < 0) {
		broken(l->r, "%s: cannot be opened: %s", l->c->doing, err.message);
		graph_close(f, memory, NULL);
		return 0;
	}
	/* Version 2 has no dirty bit: flags may disagree with counts, harmlessly, until both are made right. */
	if (!l->r->version2)
		check(f, l, n, "after the cut");
	look_at_snapshots(f, l, n);
	if (!*l->r->broken && !l->r->version2)
		go_on(f, l, n);
	graph_close(f, n, NULL);
	return 0;
}

/* Version 2: what a repair makes of it has no fault. */
static int look_repaired(struct fiber *f, void *arg)
{
	struct look *l = arg;
	struct node *memory = memory_of(f, l->c), *n;
	struct varve_error err = { 0, "" };
	int ret;

	open_disk(f, memory, NODE_WRITABLE | NODE_REPAIR, NULL, &n, &err, &ret);
	if (ret < 0) {
		broken(l->r, "%s: cannot be repaired: %s", l->c->doing, err.message);
		graph_close(f, memory, NULL);
		return 0;
	}
	check(f, l, n, "after the repair");
	go_on(f, l, n);
	graph_close(f, n, NULL);
	return 0;
}

/* The first cut that was not survived, in r->broken. */
static struct run *run(uint64_t seed, bool subclusters, const char *forget)
{
	static const uint32_t clusters[] = { 512, 1024, 4096 };
	struct run *r = calloc(1, sizeof(*r));
	struct queue *q;

	r->seed = r->random = seed;
	r->cluster = clusters[seed % 3];
	r->version2 = seed % 4 == 3;
	r->now.disk.nr = r->cluster == 4096 ? BLOCKS_MAX : BLOCKS_MAX / 2;
	r->subclusters = subclusters;
	if (subclusters) { /* of one block each */
		r->cluster = 16384;
		r->version2 = false;
		r->now.disk.nr = BLOCKS_MAX;
	}
	r->every = 3;
	if (forget)
		setenv("VARVE_FORGET_ORDER", forget, 1);
	must(queue_new(&r->q, &(struct queue_opts){ .virtual_time = true }, NULL), "queue", NULL);
	fiber_call(r->q, work, r);
	unsetenv("VARVE_FORGET_ORDER");
	sim_file_free(r->sim);
	queue_free(r->q);
	must(queue_new(&q, NULL, NULL), "queue", NULL);
	for (unsigned i = 0; i < r->nr_cuts; i++) {
		struct look l = { r, &r->cuts[i] };

		if (!*r->broken)
			fiber_call(q, look, &l);
		if (!*r->broken && r->version2)
			fiber_call(q, look_repaired, &l);
		free(r->cuts[i].bytes);
	}
	queue_free(q);
	return r;
}

static void survive(uint64_t first, uint64_t last, bool subclusters, unsigned cuts_wanted)
{
	const char *only = getenv("VARVE_CRASH_SEED");
	unsigned cuts = 0;

	if (only)
		first = last = strtoull(only, NULL, 0);
	for (uint64_t seed = first; seed <= last; seed++) {
		struct run *r = run(seed, subclusters, NULL);

		if (*r->broken)
			fail_msg("seed %llu (again with VARVE_CRASH_SEED): %s", (unsigned long long)seed, r->broken);
		cuts += r->nr_cuts;
		free(r);
	}
	print_message("# %u cuts\n", cuts);
	assert_true(only || cuts >= cuts_wanted);
}

static void every_power_cut_is_survived(void **state)
{
	(void)state;
	survive(1, 60, false, 1000);
}

static void every_power_cut_with_subclusters_is_survived(void **state)
{
	(void)state;
	survive(100, 130, true, 500);
}

/* Each order is needed, and its loss would be seen. */
static void a_forgotten_order_is_noticed(void **state)
{
	static const char *const orders[] = { "snapshot-dirty", "snapshot-link", "snapshot-gone" };

	(void)state;
	for (unsigned i = 0; i < ARRAY_LEN(orders); i++) {
		bool noticed = false;

		for (uint64_t seed = 1; seed <= 200 && !noticed; seed++) {
			struct run *r = run(seed, false, orders[i]);

			noticed = *r->broken;
			if (noticed)
				print_message("# %s: seed %llu: %s\n", orders[i], (unsigned long long)seed, r->broken);
			free(r);
		}
		if (!noticed)
			fail_msg("%s was forgotten, and nothing was seen", orders[i]);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_power_cut_is_survived),
		cmocka_unit_test(every_power_cut_with_subclusters_is_survived),
		cmocka_unit_test(a_forgotten_order_is_noticed),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
