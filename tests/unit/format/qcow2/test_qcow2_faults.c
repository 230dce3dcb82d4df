/* SPDX-License-Identifier: MIT */
/*
 * unit/format/qcow2/test_qcow2_faults.c - every single operation on the file fails once, or all from then on;
 * and power cuts at any operation while refcount tables grow
 *
 * After an error: requests that were answered with success hold, requests that failed left old or new bytes,
 * the image has no corruption. After a cut: what a completed flush covers is there, the image has no
 * corruption. Leaks are allowed.
 */
#include "disk.h"

#define SECTOR 512u
#define SUBCLUSTERS "extended_l2=on,cluster_size=16k" /* each a sector */

/* The linker leads order_put() to here (--wrap, see meson.build). */
static uint64_t nr_puts, fail_put = UINT64_MAX;

int __real_order_put(struct fiber *f, struct order *o, uint64_t off, const void *bytes, size_t len,
		     order_mark after, order_mark *ret_mark);
int __wrap_order_put(struct fiber *f, struct order *o, uint64_t off, const void *bytes, size_t len,
		     order_mark after, order_mark *ret_mark);

int __wrap_order_put(struct fiber *f, struct order *o, uint64_t off, const void *bytes, size_t len,
		     order_mark after, order_mark *ret_mark)
{
	if (nr_puts++ == fail_put)
		return -ENOMEM;
	return __real_order_put(f, o, off, bytes, len, after, ret_mark);
}

/* ---- what may be read ---- */

struct model {
	uint64_t nr_sectors;
	uint8_t (*may)[32]; /* for each sector a bit for each value */
};

static struct model *model_new(uint64_t len)
{
	struct model *m = calloc(1, sizeof(*m));

	m->nr_sectors = len / SECTOR;
	m->may = calloc(m->nr_sectors, sizeof(m->may[0]));
	for (uint64_t i = 0; i < m->nr_sectors; i++)
		m->may[i][0] = 1;
	return m;
}

static struct model *model_copy(const struct model *from)
{
	struct model *m = model_new(from->nr_sectors * SECTOR);

	memcpy(m->may, from->may, m->nr_sectors * sizeof(m->may[0]));
	return m;
}

static void model_free(struct model *m)
{
	free(m->may);
	free(m);
}

/* certain: the sectors hold byte and nothing else. */
static void model_write(struct model *m, uint64_t off, uint64_t len, uint8_t byte, bool certain)
{
	for (uint64_t i = off / SECTOR; i < (off + len) / SECTOR; i++) {
		if (certain)
			memset(m->may[i], 0, sizeof(m->may[i]));
		m->may[i][byte / 8] |= (uint8_t)(1u << byte % 8);
	}
}

/* *ret: what is wrong, "" if nothing is. */
static void model_compare(const struct model *m, struct disk *d, char ret[200])
{
	uint64_t len = m->nr_sectors * SECTOR;
	uint8_t *bytes = malloc(len);
	int err = disk_read(d, 0, len, bytes);

	*ret = 0;
	if (err < 0)
		snprintf(ret, 200, "read: %d", err);
	for (uint64_t i = 0; i < m->nr_sectors && !*ret; i++) {
		uint8_t byte = bytes[i * SECTOR];

		for (unsigned k = 1; k < SECTOR; k++) {
			if (bytes[i * SECTOR + k] != byte)
				snprintf(ret, 200, "sector %llu holds two writes", (unsigned long long)i);
		}
		if (!(m->may[i][byte / 8] >> byte % 8 & 1))
			snprintf(ret, 200, "sector %llu holds 0x%02x", (unsigned long long)i, byte);
	}
	free(bytes);
}

/* ---- the workload ---- */

static unsigned below(uint64_t *random, unsigned n)
{
	*random = *random * 6364136223846793005ull + 1442695040888963407ull;
	return (unsigned)((*random >> 33) % n);
}

enum kind { FLUSH, ZERO, ZERO_UNMAP, DISCARD, WRITE };

struct load {
	struct disk *d;
	struct model *now;
	uint64_t random;
	unsigned step;
};

struct ask {
	enum kind kind;
	uint64_t off, len;
	uint8_t byte;
};

static struct ask load_choose(struct load *l, uint64_t longest)
{
	static const enum kind kinds[] = { FLUSH, ZERO,	 ZERO_UNMAP, DISCARD, WRITE,
					   WRITE, WRITE, WRITE,	     WRITE,   WRITE };
	struct ask ask = { .kind = kinds[below(&l->random, ARRAY_LEN(kinds))] };
	uint64_t disk_len = l->now->nr_sectors * SECTOR;

	ask.off = below(&l->random, (unsigned)l->now->nr_sectors) * (uint64_t)SECTOR;
	ask.len = (1 + below(&l->random, (unsigned)(longest / SECTOR))) * (uint64_t)SECTOR;
	ask.len = MIN(ask.len, disk_len - ask.off);
	ask.byte = ask.kind == WRITE ? (uint8_t)(1 + l->step++ % 250) : 0;
	return ask;
}

/* The model learns what came of it. */
static int load_do(struct load *l, const struct ask *ask)
{
	int ret;

	switch (ask->kind) {
	case FLUSH:
		return disk_flush(l->d);
	case ZERO:
	case ZERO_UNMAP:
		ret = disk_zero(l->d, ask->off, ask->len, ask->kind == ZERO_UNMAP);
		break;
	case DISCARD:
		ret = disk_discard(l->d, ask->off, ask->len);
		break;
	default:
		ret = disk_write(l->d, ask->off, ask->len, ask->byte);
	}
	/* A discard is done to whole clusters, if at all. */
	model_write(l->now, ask->off, ask->len, ask->byte, ret == 0 && ask->kind != DISCARD);
	return ret;
}

/* ---- failures ---- */

struct fault {
	uint64_t first, nr; /* operations that fail, counted from the start of the work */
	uint64_t base;
	bool writes_only;
	int error;
	uint64_t failed;
};

static int64_t fault(void *arg, uint64_t nr, const struct aio_op *op)
{
	struct fault *ft = arg;

	if (nr - ft->base < ft->first || nr - ft->base - ft->first >= ft->nr || op->opcode == AIO_FLUSH)
		return 0;
	if (ft->writes_only && op->opcode == AIO_READ)
		return 0;
	ft->failed++;
	return ft->error;
}

/* False: there were not as many operations. */
static bool survive(const char *options, uint64_t len, uint64_t first, uint64_t nr, int error, unsigned seed)
{
	struct disk *d = disk_made(len, options);
	struct load l = { .d = d, .now = model_new(len), .random = seed };
	struct fault ft = { .first = first, .nr = nr, .writes_only = error == -ENOSPC, .error = error };
	char wrong[200];
	bool again;

	d->options = "l2-cache-size=64k,refcount-cache-size=64k";
	disk_reopen(d);
	ft.base = sim_nr_ops(d->im->sim);
	sim_set_fault(d->im->sim, fault, &ft);
	for (unsigned i = 0; i < 60; i++) {
		struct ask ask = load_choose(&l, KiB(24));

		(void)load_do(&l, &ask); /* the model knows */
	}
	ft.nr = 0; /* mended */
	again = sim_nr_ops(d->im->sim) - ft.base > first;
	if (disk_flush(d) < 0)
		fail_msg("op %llu: flush fails after the disk was mended", (unsigned long long)first);
	model_compare(l.now, d, wrong);
	if (!*wrong) {
		disk_reopen(d);
		model_compare(l.now, d, wrong);
	}
	if (*wrong)
		fail_msg("%s, op %llu (%llu): %s", options, (unsigned long long)first, (unsigned long long)nr,
			 wrong);
	assert_int_equal(disk_close(d), 0);
	/* Lazy refcounts that could not be written: the next writer counts anew. */
	if (image_get(d->im, 4, 4) >= 3 &&
	    image_get(d->im, offsetof(struct qcow2_header_disk, incompatible), 8) & QCOW2_INCOMPAT_DIRTY) {
		disk_reopen(d);
		assert_int_equal(disk_close(d), 0);
	}
	assert_int_equal(image_check(d->im, 0), 0);
	if (d->im->found.corruptions || d->im->found.check_errors)
		fail_msg("%s, op %llu (%llu): %s", options, (unsigned long long)first, (unsigned long long)nr,
			 d->im->lines);
	if (!ft.failed && fail_put == UINT64_MAX && d->im->found.leaks)
		fail_msg("%s: leaks without an error: %s", options, d->im->lines);
	model_free(l.now);
	disk_free(d);
	return again;
}

static void any_operation_may_fail_once(void **state)
{
	unsigned nr = 0;

	for (uint64_t first = 0; survive("cluster_size=512,refcount_bits=64", KiB(512), first, 1, -EIO, 1);
	     first++)
		nr++;
	for (uint64_t first = 0; survive("cluster_size=4k,refcount_bits=1", MiB(1), first, 1, -EIO, 2);
	     first++)
		nr++;
	for (uint64_t first = 0; survive("cluster_size=512,lazy_refcounts=on", KiB(512), first, 1, -EIO, 6);
	     first++)
		nr++;
	for (uint64_t first = 0; survive(SUBCLUSTERS, KiB(512), first, 1, -EIO, 7); first++)
		nr++;
	printf("# %u operations\n", nr);
	assert_true(nr > 100);
}

/* No memory for an entry of the queue: what had been begun is undone, or leaked. */
static void any_entry_may_find_no_memory(void **state)
{
	unsigned nr = 0;

	for (uint64_t first = 0; first < 400; first++) {
		nr_puts = 0;
		fail_put = first + 10; /* not at the start: creating does not use the queue */
		(void)survive(first % 2 ? "cluster_size=512,refcount_bits=64"
					: "cluster_size=512,lazy_refcounts=on",
			      KiB(512), UINT64_MAX, 0, 0, 5 + (unsigned)first % 3);
		if (nr_puts <= fail_put && first % 2)
			break;
		nr++;
	}
	for (uint64_t first = 0; first < 100; first++, nr++) {
		nr_puts = 0;
		fail_put = first + 5;
		(void)survive(SUBCLUSTERS, KiB(512), UINT64_MAX, 0, 0, 8 + (unsigned)first % 3);
		if (nr_puts <= fail_put)
			break;
	}
	fail_put = UINT64_MAX;
	printf("# %u entries\n", nr);
	assert_true(nr > 100);
}

static void the_file_system_may_be_full_for_a_while(void **state)
{
	for (uint64_t first = 0;
	     survive("cluster_size=512,refcount_bits=32", KiB(512), first, 100, -ENOSPC, 3); first += 3)
		;
	for (uint64_t first = 0; survive("cluster_size=4k,compat=0.10", MiB(1), first, 1000000, -ENOSPC, 4);
	     first += 3)
		;
	for (uint64_t first = 0; survive(SUBCLUSTERS, KiB(512), first, 50, -ENOSPC, 9); first += 3)
		;
}

/* ---- power cuts ---- */

#define CUTS_MAX 64

struct known_cut {
	struct cut left;
	struct model *durable; /* may be read */
};

struct cutter {
	struct load l;
	struct model *durable; /* what the last flush covers, and all that was asked for since */
	struct known_cut cut[CUTS_MAX];
	uint64_t random;
	unsigned nr, percent, one_in;
};

static bool keep(void *arg, unsigned i)
{
	struct cutter *c = arg;

	return below(&c->random, 100) < c->percent;
}

/* Before any operation begins, sometimes: the file as a cut would leave it. */
static int64_t maybe_cut(void *arg, uint64_t nr, const struct aio_op *op)
{
	static const unsigned percents[] = { 0, 30, 50, 70, 90, 100 };
	struct cutter *c = arg;
	struct known_cut *cut = &c->cut[c->nr];

	if (c->nr == CUTS_MAX || below(&c->random, c->one_in))
		return 0;
	c->percent = percents[below(&c->random, ARRAY_LEN(percents))];
	cut->left.bytes = sim_power_cut(c->l.d->im->sim, keep, c, 1 + nr, &cut->left.len);
	cut->durable = model_copy(c->durable);
	c->nr++;
	return 0;
}

static void cut_step(struct cutter *c)
{
	struct ask ask = load_choose(&c->l, KiB(96));

	if (ask.kind != FLUSH)
		model_write(c->durable, ask.off, ask.len, ask.byte, false);
	assert_int_equal(load_do(&c->l, &ask), 0);
	if (ask.kind == FLUSH) {
		model_free(c->durable);
		c->durable = model_copy(c->l.now);
	}
}

static void judge(struct known_cut *cut, const char *options, unsigned seed, unsigned nr)
{
	struct disk *d = disk_of_cut(&cut->left);
	char wrong[200] = "";

	if (image_check(d->im, 0) < 0)
		snprintf(wrong, sizeof(wrong), "check: %.150s", d->im->err.message);
	else if (d->im->found.corruptions || d->im->found.check_errors)
		snprintf(wrong, sizeof(wrong), "%.190s", d->im->lines);
	if (!*wrong && disk_open(d, NODE_WRITABLE) < 0)
		snprintf(wrong, sizeof(wrong), "open: %.150s", d->err.message);
	if (!*wrong)
		model_compare(cut->durable, d, wrong);
	/* Life goes on. */
	if (!*wrong && (disk_write(d, 0, KiB(64), 0xfe) < 0 || disk_flush(d) < 0))
		snprintf(wrong, sizeof(wrong), "cannot be written");
	if (!*wrong) {
		model_write(cut->durable, 0, KiB(64), 0xfe, true);
		model_compare(cut->durable, d, wrong);
	}
	if (*wrong)
		fail_msg("%s, seed %u, cut %u: %s", options, seed, nr, wrong);
	disk_free(d);
	free(cut->left.bytes);
	model_free(cut->durable);
}

static void cut_run(const char *options, uint64_t len, unsigned seed, unsigned steps, unsigned one_in)
{
	struct disk *d = disk_made(len, options);
	struct cutter c = { .l = { .d = d, .now = model_new(len), .random = seed },
			    .random = seed,
			    .one_in = one_in };
	uint64_t table = image_get(d->im, offsetof(struct qcow2_header_disk, refcount_table_off), 8);
	unsigned grown = 0;

	c.durable = model_new(len);
	assert_int_equal(disk_flush(d), 0);
	sim_set_fault(d->im->sim, maybe_cut, &c);
	for (unsigned i = 0; i < steps; i++) {
		uint64_t at;

		cut_step(&c);
		at = image_get(d->im, offsetof(struct qcow2_header_disk, refcount_table_off), 8);
		grown += at != table;
		table = at;
	}
	sim_set_fault(d->im->sim, NULL, NULL);
	printf("# %s seed %u: %u cuts, refcount table moved %u times\n", options, seed, c.nr, grown);
	assert_true(c.nr > 5);
	for (unsigned i = 0; i < c.nr; i++)
		judge(&c.cut[i], options, seed, i);
	model_free(c.l.now);
	model_free(c.durable);
	disk_free_clean(d);
}

static void growing_tables_survive_power_cuts(void **state)
{
	const char *env = getenv("VARVE_TEST_SEED");
	unsigned seed = env ? (unsigned)strtoul(env, NULL, 0) : 20260103;

	printf("# VARVE_TEST_SEED=%u\n", seed);
	for (unsigned i = 0; i < 4; i++)
		cut_run("cluster_size=512,refcount_bits=64", MiB(5), seed + i, 130, 30);
	cut_run("cluster_size=512,refcount_bits=1", MiB(2), seed, 100, 30);
	cut_run("cluster_size=1k,refcount_bits=64,compat=1.1", MiB(5), seed, 100, 20);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(any_operation_may_fail_once),
		cmocka_unit_test(any_entry_may_find_no_memory),
		cmocka_unit_test(the_file_system_may_be_full_for_a_while),
		cmocka_unit_test(growing_tables_survive_power_cuts),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
