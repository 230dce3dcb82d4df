/* SPDX-License-Identifier: MIT */
/*
 * crash/test_bitmap_cut.c - power cuts in the middle of changes of dirty bitmaps
 *
 * Whatever subset of the writes under way has reached the disk: the image opens, check finds no corruption, and all bitmaps are
 * as before or as after what was being done, and for a disk of the length of then. When somebody writes to the disk, or makes it
 * shorter, no cut, also while he closes it, may leave a changed disk under an enabled bitmap that can be trusted and does not say so.
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
#include "block/bitmap.h"
#include "block/graph.h"
#include "proto/proto.h"

#define DISK_LEN MiB(4)
#define DATA_LEN KiB(128) /* of the disk: has space from the beginning, and is written in place */
#define FIRST 0x11	  /* its bytes then, when no bitmap had a bit */
#define BITMAPS 4u
#define BITS_LEN 1024u /* bytes of the longest: granularity 512 */
#define CUTS_MAX 96u
#define CUTS_AT_THE_END 32u /* of these, for the writer and his close */
#define OPS 16u

struct kept {
	bool used, enabled;
	uint64_t granularity;
	uint8_t bits[BITS_LEN];
};

struct world {
	struct kept kept[BITMAPS];
	uint64_t len; /* of the disk */
	uint64_t low; /* the shortest that it was: behind that it is zeroes, as far as bitmaps know */
};

struct cut {
	uint8_t *bytes;
	uint64_t len;
	struct world before, after; /* of what was being done */
	char doing[40];
	bool writing;
	bool cutting_off; /* the disk gets shorter: enabled bitmaps may be marked */
};

struct run {
	uint64_t seed, random;
	uint32_t cluster;
	struct queue *q;
	struct sim_file *sim;
	struct node *n;
	struct world now, next;
	char doing[40];
	bool cutting, writing, cutting_off;
	struct cut cuts[CUTS_MAX];
	unsigned nr_cuts;
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
	if (!r->cutting || r->nr_cuts >= CUTS_MAX - (r->writing ? 1 : CUTS_AT_THE_END) || below(r, 3))
		return 0;
	c = &r->cuts[r->nr_cuts++];
	c->bytes = sim_power_cut(r->sim, keep_some, &keep, below(r, 2) ? 1 + below(r, 1u << 30) : 0, &c->len);
	c->before = r->now;
	c->after = r->next;
	c->writing = r->writing;
	c->cutting_off = r->cutting_off;
	snprintf(c->doing, sizeof(c->doing), "%s", r->doing);
	return 0;
}

/* No cut at all: what is on the disk when it has been closed in order. */
static void look_at_the_end(struct run *r)
{
	struct keep keep = { r, 0 };
	struct cut *c = &r->cuts[r->nr_cuts++];

	c->bytes = sim_power_cut(r->sim, keep_some, &keep, 0, &c->len);
	c->before = c->after = r->next;
	snprintf(c->doing, sizeof(c->doing), "closed in order");
}

/* ---- a bitmap to merge: nothing but bits ---- */

struct giver {
	struct bitmap_bits bits;
	uint8_t bytes[BITS_LEN];
};

static int giver_open(struct fiber *f, struct node *n, const char *name, struct bitmap_bits **ret, struct varve_error *err)
{
	struct giver *g = n->state;

	(void)f;
	(void)name;
	(void)err;
	*ret = &g->bits;
	return 0;
}

static int giver_read(struct fiber *f, struct node *n, struct bitmap_bits *bits, uint64_t off, void *buf, size_t len)
{
	struct giver *g = n->state;

	(void)f;
	(void)bits;
	memset(buf, 0, len);
	if (off < BITS_LEN)
		memcpy(buf, g->bytes + off, MIN(len, BITS_LEN - off));
	return 0;
}

static void giver_close(struct node *n, struct bitmap_bits *bits)
{
	(void)n;
	(void)bits;
}

static const struct driver giver_driver = {
	.name = "giver", .kind = DRIVER_FORMAT, .bitmap_open = giver_open, .bitmap_read = giver_read, .bitmap_close = giver_close
};

/* Some bits, the same in the model. */
static void random_bits(struct run *r, struct giver *g, struct kept *k)
{
	uint64_t len = r->now.len, nr_bits = div_up(len, k->granularity);

	*g = (struct giver){ .bits = { .granularity = k->granularity, .nr_bits = nr_bits, .disk_len = len } };
	for (unsigned n = 1 + below(r, 40); n; n--)
		g->bytes[below(r, (unsigned)div_up(nr_bits, 8))] |= (uint8_t)below(r, 256);
	if (nr_bits % 8)
		g->bytes[nr_bits / 8] &= (uint8_t)((1u << nr_bits % 8) - 1);
	for (unsigned i = 0; i < BITS_LEN; i++)
		k->bits[i] |= g->bytes[i];
}

/* ---- what is done ---- */

/* What becomes of the model. */
static void set_length(struct world *w, uint64_t len)
{
	w->len = len;
	w->low = MIN(w->low, len);
	for (unsigned i = 0; i < BITMAPS; i++) {
		struct kept *k = &w->kept[i];

		for (uint64_t bit = k->used ? div_up(len, k->granularity) : 0; k->used && bit < BITS_LEN * 8; bit++)
			k->bits[bit / 8] &= (uint8_t) ~(1u << bit % 8);
	}
}

static uint64_t any_length(struct run *r)
{
	uint64_t len = r->now.len;

	while (len == r->now.len)
		len = (1 + below(r, (unsigned)((below(r, 3) ? 2 * DATA_LEN : DISK_LEN) / 512))) * 512ull;
	return len;
}

static void change_length(struct fiber *f, struct run *r)
{
	struct varve_error err = { 0, "" };
	uint64_t len = any_length(r);

	r->next = r->now;
	set_length(&r->next, len);
	snprintf(r->doing, sizeof(r->doing), "%llu bytes become %llu", (unsigned long long)r->now.len, (unsigned long long)len);
	r->cutting = true;
	r->cutting_off = len < r->now.len;
	must(node_truncate(f, r->n, len, PREALLOC_OFF, &err), r->doing, &err);
	r->cutting = r->writing;
	r->cutting_off = false;
	r->now = r->next;
}

static void change(struct fiber *f, struct run *r)
{
	static const char *const names[] = { "add", "remove", "clear", "enable", "disable", "merge" };
	unsigned i = below(r, BITMAPS);
	struct kept *k = &r->next.kept[i];
	struct giver g;
	struct node source = { .drv = &giver_driver, .state = &g };
	char name[8];
	struct bitmap_change c = { .name = name, .source = &source, .source_name = "any" };
	struct varve_error err = { 0, "" };

	snprintf(name, sizeof(name), "b%u", i);
	r->next = r->now;
	c.action = k->used ? BITMAP_REMOVE + below(r, 5) : BITMAP_ADD;
	if (c.action == BITMAP_REMOVE && below(r, 2))
		c.action = BITMAP_MERGE;
	if (c.action == BITMAP_ADD) {
		c.granularity = 512ull << below(r, 5);
		c.disabled = below(r, 2);
		*k = (struct kept){ .used = true, .enabled = !c.disabled, .granularity = c.granularity };
	} else if (c.action == BITMAP_REMOVE) {
		*k = (struct kept){ 0 };
	} else if (c.action == BITMAP_CLEAR) {
		memset(k->bits, 0, sizeof(k->bits));
	} else if (c.action == BITMAP_MERGE) {
		random_bits(r, &g, k);
	} else {
		k->enabled = c.action == BITMAP_ENABLE;
	}
	snprintf(r->doing, sizeof(r->doing), "%s %s", names[c.action], name);
	r->cutting = true;
	must(r->n->drv->bitmap_change(f, r->n, &c, &err), r->doing, &err);
	r->cutting = false;
	r->now = r->next;
}

static int open_disk(struct fiber *f, struct node *file, uint32_t flags, struct node **ret, struct varve_error *err)
{
	struct opts *o = opts_new();
	int r = graph_stack(f, driver_find("qcow2"), file, o, flags, ret, err);

	opts_free(o);
	return r;
}

static void note(struct run *r, uint64_t off)
{
	for (unsigned i = 0; i < BITMAPS; i++) {
		struct kept *k = &r->next.kept[i];
		uint64_t bit = k->used && k->enabled ? off / k->granularity : 0;

		if (k->used && k->enabled)
			k->bits[bit / 8] |= (uint8_t)(1u << bit % 8);
	}
}

/* From the open on, to the end of the close. */
static void write_disk(struct fiber *f, struct run *r, struct node *leaf)
{
	uint8_t bytes[512];
	struct varve_error err = { 0, "" };

	memset(bytes, 0xee, sizeof(bytes));
	snprintf(r->doing, sizeof(r->doing), "writing to the disk");
	r->next = r->now;
	r->cutting = r->writing = true;
	must(open_disk(f, leaf, NODE_WRITABLE, &r->n, &err), "open to write", &err);
	for (unsigned i = 0; i < 6; i++) {
		uint64_t off = below(r, (unsigned)(MIN(DATA_LEN, r->now.len) / 512)) * 512ull;

		if (!below(r, 3)) {
			change_length(f, r);
			continue;
		}

		must(node_write(f, r->n, off, bytes, sizeof(bytes)), "write", NULL);
		note(r, off);
		r->now = r->next; /* until it is closed, nobody relies upon enabled ones */
		if (below(r, 2))
			must(r->n->drv->sync(f, r->n), "flush", NULL);
	}
	snprintf(r->doing, sizeof(r->doing), "closing the disk");
}

/* Bytes that have space. */
static void fill_disk(struct fiber *f, struct run *r)
{
	uint8_t *bytes = calloc(1, DATA_LEN);

	assert_non_null(bytes);
	memset(bytes, FIRST, DATA_LEN);
	must(node_write(f, r->n, 0, bytes, DATA_LEN), "fill", NULL);
	must(r->n->drv->sync(f, r->n), "flush", NULL);
	free(bytes);
}

static int work(struct fiber *f, void *arg)
{
	struct run *r = arg;
	struct sim_opts so = { .seed = r->seed, .min_ns = 1000, .max_ns = 60000 };
	struct varve_error err = { 0, "" };
	struct opts *o = opts_new();
	struct aio_file af;
	struct node *leaf;
	char text[40];

	must(sim_file_new(&r->sim, &af, &so), "sim", NULL);
	must(sim_node_new(f, r->sim, &af, NODE_WRITABLE, &leaf, &err), "sim", &err);
	snprintf(text, sizeof(text), "cluster_size=%u", r->cluster);
	must(opts_parse(o, text, &err), text, &err);
	must(driver_find("qcow2")->create(f, leaf, DISK_LEN, o, NULL, NULL, &err), text, &err);
	opts_free(o);
	must(node_flush(f, leaf), "flush", NULL);
	sim_set_fault(r->sim, maybe_cut, r);
	must(open_disk(f, leaf, NODE_WRITABLE | NODE_BITMAPS, &r->n, &err), "open", &err);
	fill_disk(f, r);
	r->now.len = DISK_LEN;
	r->now.low = DATA_LEN;
	for (unsigned i = 0; i < OPS; i++)
		below(r, 4) ? change(f, r) : change_length(f, r);
	if (r->seed % 2) { /* the same file once more, by who knows no bitmaps; the other node is not used any more */
		uint8_t *bytes = malloc(MiB(8));
		uint64_t len = (uint64_t)node_file_len(f, leaf);
		struct sim_file *first = r->sim;

		assert_non_null(bytes);
		assert_true(len <= MiB(8));
		must(r->n->drv->sync(f, r->n), "sync", NULL);
		must(node_read(f, leaf, 0, bytes, len), "read", NULL);
		must(graph_close(f, r->n, &err), "close", &err);
		must(sim_file_new(&r->sim, &af, &so), "sim", NULL);
		must(sim_node_new(f, r->sim, &af, NODE_WRITABLE, &leaf, &err), "sim", &err);
		must(node_write(f, leaf, 0, bytes, len), "write", NULL);
		must(node_flush(f, leaf), "flush", NULL);
		free(bytes);
		sim_file_free(first);
		sim_set_fault(r->sim, maybe_cut, r);
		write_disk(f, r, leaf);
	}
	must(graph_close(f, r->n, &err), "close", &err);
	r->cutting = false;
	look_at_the_end(r);
	return 0;
}

/* ---- after a cut ---- */

struct look {
	struct run *r;
	struct cut *c;
};

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

static bool same_bits(struct fiber *f, struct node *n, const char *name, const struct kept *k)
{
	uint8_t bytes[BITS_LEN];
	struct bitmap_bits *bits;
	bool same;

	if (n->drv->bitmap_open(f, n, name, &bits, NULL) < 0)
		return false;
	same = bits->granularity == k->granularity && n->drv->bitmap_read(f, n, bits, 0, bytes, sizeof(bytes)) == 0 &&
	       memcmp(bytes, k->bits, sizeof(bytes)) == 0;
	n->drv->bitmap_close(n, bits);
	return same;
}

static bool same_world(struct fiber *f, struct node *n, const struct bitmap_info *list, uint32_t nr, const struct world *w,
		       bool in_use)
{
	uint32_t used = 0;

	if (node_len(n) != w->len)
		return false;

	for (unsigned i = 0; i < BITMAPS; i++)
		used += w->kept[i].used;
	if (used != nr)
		return false;
	for (uint32_t i = 0; i < nr; i++) {
		const struct kept *k = &w->kept[list[i].name[1] - '0'];

		if (!k->used || k->enabled != list[i].enabled)
			return false;
		if (list[i].inconsistent ? !(in_use && k->enabled) : !same_bits(f, n, list[i].name, k))
			return false;
	}
	return true;
}

/* Does the bitmap say so of all that is something else now than it was first? */
static bool knows_all(struct fiber *f, struct node *n, const char *name, const struct world *w)
{
	uint64_t len = node_len(n);
	uint8_t *disk = malloc(len), bytes[BITS_LEN];
	struct bitmap_bits *bits;
	bool knows = disk && node_read(f, n, 0, disk, len) == 0;

	if (n->drv->bitmap_open(f, n, name, &bits, NULL) < 0) {
		free(disk);
		return false;
	}
	knows = knows && n->drv->bitmap_read(f, n, bits, 0, bytes, sizeof(bytes)) == 0;
	for (uint64_t off = 0; knows && off < len; off += 512) {
		uint64_t bit = off / bits->granularity;

		knows = disk[off] == (off < w->low ? FIRST : 0) || bytes[bit / 8] >> bit % 8 & 1;
	}
	n->drv->bitmap_close(n, bits);
	free(disk);
	return knows;
}

/* What was left can get another length, too; nothing comes back that was cut off. */
static void look_longer(struct fiber *f, struct look *l, struct node *n)
{
	struct world w = l->c->before;
	struct varve_error err = { 0, "" };
	struct bitmap_info *list;
	uint64_t len = below(l->r, 2) ? DISK_LEN : 512ull * (1 + below(l->r, DISK_LEN / 512));
	uint32_t nr;
	int ret = node_truncate(f, n, len, PREALLOC_OFF, &err);

	if (ret < 0 || n->drv->bitmap_list(f, n, &list, &nr, &err) < 0) {
		broken(l->r, "%s: then %llu bytes: %s", l->c->doing, (unsigned long long)len, err.message);
		return;
	}
	set_length(&w, len);
	for (uint32_t i = 0; i < nr; i++) {
		if (list[i].inconsistent || !same_bits(f, n, list[i].name, &w.kept[list[i].name[1] - '0']))
			broken(l->r, "%s: then %llu bytes: %s is another", l->c->doing, (unsigned long long)len, list[i].name);
		free(list[i].name);
	}
	free(list);
}

static void look_at_bitmaps(struct fiber *f, struct look *l, struct node *n)
{
	struct varve_error err = { 0, "" };
	bool inconsistent = false, same_before;
	struct bitmap_info *list;
	uint32_t nr;

	if (n->drv->bitmap_list(f, n, &list, &nr, &err) < 0) {
		broken(l->r, "%s: list: %s", l->c->doing, err.message);
		return;
	}
	same_before = same_world(f, n, list, nr, &l->c->before, l->c->writing || l->c->cutting_off);
	if (!same_before &&
	    !same_world(f, n, list, nr, &l->c->after, l->c->writing))
		broken(l->r, "%s: the %u bitmaps are neither as before nor as after", l->c->doing, nr);
	for (uint32_t i = 0; i < nr; i++) {
		if (list[i].enabled && !list[i].inconsistent && !knows_all(f, n, list[i].name, node_len(n) == l->c->before.len ? &l->c->before : &l->c->after))
			broken(l->r, "%s: the disk has changed, and %s does not know", l->c->doing, list[i].name);
		inconsistent = inconsistent || list[i].inconsistent;
		free(list[i].name);
	}
	free(list);
	if (!same_before) /* look_longer() begins with the world that is there */
		l->c->before = l->c->after;
	if (!inconsistent && !*l->r->broken)
		look_longer(f, l, n);
}

static int look(struct fiber *f, void *arg)
{
	struct look *l = arg;
	struct varve_error err = { 0, "" };
	struct opts *o = opts_new();
	struct node *memory, *n;
	uint8_t bytes[512] = { 1 };

	must(graph_stack(f, &driver_memory, NULL, o, NODE_WRITABLE, &memory, &err), "memory", &err);
	opts_free(o);
	must(node_write(f, memory, 0, l->c->bytes, l->c->len), "memory", NULL);
	if (open_disk(f, memory, NODE_WRITABLE | NODE_BITMAPS, &n, &err) < 0) {
		broken(l->r, "%s: cannot be opened: %s", l->c->doing, err.message);
		graph_close(f, memory, NULL);
		return 0;
	}
	check(f, l, n, "after the cut");
	look_at_bitmaps(f, l, n);
	/* What is written now must hit nothing that is in use, and all bitmaps can go. */
	for (unsigned i = 0; i < 8; i++)
		must(node_write(f, n, below(l->r, (unsigned)(node_len(n) / 512)) * 512ull, bytes, sizeof(bytes)), "write", NULL);
	for (unsigned i = 0; i < BITMAPS; i++) {
		char name[8];
		struct bitmap_change c = { .action = BITMAP_REMOVE, .name = name };
		int ret;

		snprintf(name, sizeof(name), "b%u", i);
		ret = n->drv->bitmap_change(f, n, &c, &err);
		if (ret < 0 && ret != -ENOENT)
			broken(l->r, "%s: cannot remove %s: %s", l->c->doing, name, err.message);
	}
	must(n->drv->sync(f, n), "flush", NULL);
	check(f, l, n, "after removing");
	graph_close(f, n, NULL);
	return 0;
}

/* The first cut that was not survived, in r->broken. */
static struct run *run(uint64_t seed, const char *forget)
{
	static const uint32_t clusters[] = { 512, 1024, 4096 };
	struct run *r = calloc(1, sizeof(*r));
	struct queue *q;

	assert_non_null(r);
	r->seed = r->random = seed;
	r->cluster = clusters[seed % 3];
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
		free(r->cuts[i].bytes);
	}
	queue_free(q);
	return r;
}

static void every_power_cut_is_survived(void **state)
{
	const char *only = getenv("VARVE_CRASH_SEED");
	uint64_t first = only ? strtoull(only, NULL, 0) : 1, last = only ? first : 60;
	unsigned cuts = 0;

	(void)state;
	for (uint64_t seed = first; seed <= last; seed++) {
		struct run *r = run(seed, NULL);

		if (*r->broken)
			fail_msg("seed %llu (again with VARVE_CRASH_SEED): %s", (unsigned long long)seed, r->broken);
		cuts += r->nr_cuts;
		free(r);
	}
	print_message("# %u cuts\n", cuts);
	assert_true(only || cuts >= 1000);
}

/* Each order is needed, and its loss would be seen. */
static void a_forgotten_order_is_noticed(void **state)
{
	/* step: seeds 2, 4, ... write nothing, so that what they notice is a shorter disk */
	static const struct {
		const char *name;
		uint64_t first, step;
	} orders[] = { { "header-change", 1, 1 }, { "bitmap-in-use", 1, 2 }, { "bitmap-in-use", 2, 2 } };

	(void)state;
	for (unsigned i = 0; i < ARRAY_LEN(orders); i++) {
		bool noticed = false;

		for (uint64_t seed = orders[i].first; seed <= 60 && !noticed; seed += orders[i].step) {
			struct run *r = run(seed, orders[i].name);

			noticed = *r->broken;
			if (noticed)
				print_message("# %s: seed %llu: %s\n", orders[i].name, (unsigned long long)seed, r->broken);
			free(r);
		}
		if (!noticed)
			fail_msg("%s was forgotten, and nothing was seen", orders[i].name);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_power_cut_is_survived),
		cmocka_unit_test(a_forgotten_order_is_noticed),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
