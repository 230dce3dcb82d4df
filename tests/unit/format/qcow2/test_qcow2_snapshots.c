/* SPDX-License-Identifier: MIT */
/*
 * unit/format/qcow2/test_qcow2_snapshots.c - snapshots of a disk that is open: what they keep, what they share, what fails
 */
#include "disk.h"

#include "block/snapshot.h"
#include "format/qcow2/driver.h"

/* ---- calls ---- */

struct snap_call {
	struct disk *d;
	const char *name;
	uint64_t state_len;
	uint8_t byte;
	uint8_t *buf;
	uint64_t len;
	bool now;
	struct snapshot_info *list;
	uint32_t nr;
	struct snapshot_draft *draft;
};

static int state_put(struct fiber *f, struct node *n, struct snapshot_draft *draft, uint64_t len, uint8_t byte)
{
	uint8_t *bytes = malloc(len + 1);
	int ret = 0;

	memset(bytes, byte, len);
	for (uint64_t pos = 0, part; pos < len && ret == 0; pos += part) {
		struct extent e;

		part = 0;
		ret = n->drv->snapshot_space(f, n, draft, len - pos, &e);
		if (ret < 0)
			break;
		part = MIN(e.len, len - pos);
		ret = node_write(f, n->file, e.host_off, bytes, part);
	}
	free(bytes);
	return ret;
}

static int begin_fiber(struct fiber *f, void *arg)
{
	struct snap_call *c = arg;
	struct node *n = c->d->n;
	struct snapshot_want want = { .name = c->name, .door = n, .now = c->now, .icount = UINT64_MAX, .date_s = 1 };
	int ret;

	c->d->err = (struct varve_error){ 0, "" };
	ret = n->drv->snapshot_create(f, n, &want, &c->draft, &c->d->err);
	if (ret == 0 && c->state_len) {
		ret = state_put(f, n, c->draft, c->state_len, c->byte);
		if (ret < 0)
			n->drv->snapshot_abort(f, n, c->draft);
	}
	return ret;
}

static int commit_fiber(struct fiber *f, void *arg)
{
	struct snap_call *c = arg;

	return c->d->n->drv->snapshot_commit(f, c->d->n, c->draft, c->state_len, NULL, &c->d->err);
}

static int abort_fiber(struct fiber *f, void *arg)
{
	struct snap_call *c = arg;

	c->d->n->drv->snapshot_abort(f, c->d->n, c->draft);
	return 0;
}

static int snap_state(struct disk *d, const char *name, uint64_t state_len, uint8_t byte)
{
	struct snap_call c = { .d = d, .name = name, .state_len = state_len, .byte = byte };
	int ret = fiber_call(d->im->q, begin_fiber, &c);

	return ret < 0 ? ret : fiber_call(d->im->q, commit_fiber, &c);
}

static int snap(struct disk *d, const char *name)
{
	return snap_state(d, name, 0, 0);
}

static void must_snap(struct disk *d, const char *name)
{
	if (snap(d, name) < 0)
		fail_msg("snapshot %s: %s", name, d->err.message);
}

static int delete_fiber(struct fiber *f, void *arg)
{
	struct snap_call *c = arg;
	struct snapshot_pick pick = { .name = c->name };

	c->d->err = (struct varve_error){ 0, "" };
	return c->d->n->drv->snapshot_delete(f, c->d->n, &pick, &c->d->err);
}

static int snap_delete(struct disk *d, const char *name)
{
	struct snap_call c = { .d = d, .name = name };

	return fiber_call(d->im->q, delete_fiber, &c);
}

static int apply_fiber(struct fiber *f, void *arg)
{
	struct snap_call *c = arg;
	struct snapshot_pick pick = { .name = c->name };
	int ret;

	c->d->err = (struct varve_error){ 0, "" };
	node_drain_begin(f, c->d->n);
	ret = c->d->n->drv->snapshot_apply(f, c->d->n, &pick, &c->d->err);
	node_drain_end(c->d->n);
	return ret;
}

static int snap_apply(struct disk *d, const char *name)
{
	struct snap_call c = { .d = d, .name = name };

	return fiber_call(d->im->q, apply_fiber, &c);
}

static int state_fiber(struct fiber *f, void *arg)
{
	struct snap_call *c = arg;
	struct node *n = c->d->n;
	struct snapshot_pick pick = { .name = c->name };
	struct snapshot_state *st;
	int ret = n->drv->snapshot_state_open(f, n, &pick, &st, &c->len, &c->d->err);

	if (ret < 0)
		return ret;
	c->buf = malloc(c->len);
	for (uint64_t pos = 0; pos < c->len && ret == 0;) {
		struct extent e;

		n->drv->snapshot_state_map(f, n, st, pos, c->len - pos, &e);
		ret = e.kind == EXTENT_DATA ? node_read(f, e.node, e.host_off, c->buf + pos, e.len) : -EIO;
		pos += e.len;
	}
	n->drv->snapshot_state_close(st);
	return ret;
}

static void expect_state(struct disk *d, const char *name, uint64_t len, uint8_t byte)
{
	struct snap_call c = { .d = d, .name = name };

	assert_int_equal(fiber_call(d->im->q, state_fiber, &c), 0);
	assert_int_equal(c.len, len);
	for (uint64_t i = 0; i < len; i++) {
		if (c.buf[i] != byte)
			fail_msg("state %s: byte %llu is 0x%02x", name, (unsigned long long)i, c.buf[i]);
	}
	free(c.buf);
}

static int area_fiber(struct fiber *f, void *arg)
{
	struct snap_call *c = arg;
	struct node *n = c->d->n;

	return c->buf ? n->drv->state_area_write(f, n, c->len, c->buf, c->state_len) : 0;
}

/* The disk as a snapshot has it, opened beside the open one: what is queued must be on the file. */
static void expect_in_snapshot(struct disk *d, const char *name, uint64_t off, uint64_t len, uint8_t byte)
{
	struct disk other = { .im = d->im, .backing_len = d->backing_len };
	char options[100];

	snprintf(options, sizeof(options), "snapshot.name=%s", name);
	other.options = options;
	if (disk_open(&other, 0) < 0)
		fail_msg("snapshot %s: %s", name, other.err.message);
	disk_expect(&other, off, len, byte);
	disk_close(&other);
}

/* ---- what a snapshot is ---- */

/* A cluster shared with a snapshot is copied before it is written; both views stay whole. */
static void write_after_snapshot_copies(void **state)
{
	struct disk *d = disk_made(MiB(1), "cluster_size=64k");

	(void)state;
	assert_int_equal(disk_write(d, 0, KiB(64), 0xaa), 0);
	assert_true(disk_map(d, 0, KiB(64)).flags & EXTENT_INPLACE);
	must_snap(d, "before");
	assert_false(disk_map(d, 0, KiB(64)).flags & EXTENT_INPLACE);
	assert_int_equal(disk_write(d, KiB(4), 512, 0xbb), 0);
	assert_true(disk_map(d, 0, KiB(64)).flags & EXTENT_INPLACE);
	disk_expect(d, KiB(4), 512, 0xbb);
	disk_expect(d, 0, KiB(4), 0xaa);
	expect_in_snapshot(d, "before", 0, KiB(64), 0xaa);
	disk_free_clean(d);
}

/* What only the disk has is written in place again when the snapshot is gone; nothing leaks. */
static void deleting_gives_back(void **state)
{
	struct disk *d = disk_made(MiB(1), "cluster_size=4k");
	uint64_t data;

	(void)state;
	assert_int_equal(disk_write(d, 0, KiB(64), 0x11), 0);
	data = disk_map(d, KiB(32), KiB(4)).host_off;
	must_snap(d, "s");
	assert_int_equal(image_refcount(d->im, data), 2);
	assert_int_equal(disk_write(d, 0, KiB(16), 0x22), 0);
	assert_int_equal(snap_delete(d, "s"), 0);
	assert_true(disk_map(d, KiB(32), KiB(4)).flags & EXTENT_INPLACE);
	assert_int_equal(image_refcount(d->im, data), 1);
	assert_int_equal(snap_delete(d, "s"), -ENOENT);
	disk_expect(d, 0, KiB(16), 0x22);
	disk_expect(d, KiB(16), KiB(48), 0x11);
	disk_free_clean(d);
}

static void applying_brings_back_disk_and_length(void **state)
{
	struct disk *d = disk_made(MiB(1), "cluster_size=512");

	(void)state;
	assert_int_equal(disk_write(d, 0, KiB(64), 0x11), 0);
	must_snap(d, "small");
	assert_int_equal(disk_truncate(d, MiB(3)), 0);
	assert_int_equal(disk_write(d, MiB(2), KiB(64), 0x22), 0);
	assert_int_equal(disk_write(d, 0, KiB(4), 0x33), 0);
	must_snap(d, "large");
	assert_int_equal(snap_apply(d, "small"), 0);
	assert_int_equal(node_len(d->n), MiB(1));
	disk_expect(d, 0, KiB(64), 0x11);
	assert_int_equal(disk_write(d, KiB(8), KiB(8), 0x44), 0);
	assert_int_equal(snap_apply(d, "large"), 0);
	assert_int_equal(node_len(d->n), MiB(3));
	disk_expect(d, MiB(2), KiB(64), 0x22);
	disk_expect(d, 0, KiB(4), 0x33);
	disk_expect(d, KiB(8), KiB(8), 0x11);
	disk_reopen(d);
	disk_expect(d, MiB(2), KiB(64), 0x22);
	expect_in_snapshot(d, "small", 0, KiB(64), 0x11);
	disk_free_clean(d);
}

/* A draft of now keeps the disk of its beginning, whatever is written until the commit. */
static void a_draft_of_now_is_the_disk_of_then(void **state)
{
	struct disk *d = disk_made(MiB(1), "cluster_size=4k");
	struct snap_call c = { .d = d, .name = "then", .now = true, .state_len = 100000, .byte = 7 };

	(void)state;
	assert_int_equal(disk_write(d, 0, KiB(64), 0x11), 0);
	assert_int_equal(fiber_call(d->im->q, begin_fiber, &c), 0);
	assert_int_equal(disk_write(d, KiB(1), KiB(30), 0x22), 0);
	assert_int_equal(disk_discard(d, KiB(40), KiB(8)), 0);
	assert_int_equal(disk_flush(d), 0);
	assert_int_equal(fiber_call(d->im->q, commit_fiber, &c), 0);
	expect_in_snapshot(d, "then", 0, KiB(64), 0x11);
	expect_state(d, "then", 100000, 7);
	disk_expect(d, KiB(1), KiB(30), 0x22);
	disk_free_clean(d);
}

static void an_aborted_draft_leaves_nothing(void **state)
{
	struct disk *d = disk_made(MiB(1), "cluster_size=4k");
	struct snap_call c = { .d = d, .name = "x", .now = true, .state_len = 3000000, .byte = 7 };

	(void)state;
	assert_int_equal(disk_write(d, 0, KiB(64), 0x11), 0);
	assert_int_equal(fiber_call(d->im->q, begin_fiber, &c), 0);
	assert_int_equal(disk_write(d, 0, KiB(8), 0x22), 0);
	assert_int_equal(fiber_call(d->im->q, abort_fiber, &c), 0);
	assert_true(disk_map(d, KiB(32), KiB(4)).flags & EXTENT_INPLACE);
	disk_free_clean(d);
}

/* The state of a snapshot is of no L1 entry of the disk, so the disk can grow over its place. */
static void states_stay_where_they_are(void **state)
{
	struct disk *d = disk_made(KiB(100), "cluster_size=512");

	(void)state;
	assert_int_equal(disk_write(d, 0, KiB(100), 0x11), 0);
	assert_int_equal(snap_state(d, "a", 70001, 0xa1), 0);
	assert_int_equal(disk_truncate(d, MiB(1)), 0);
	disk_expect(d, KiB(100), KiB(900), 0);
	assert_int_equal(disk_write(d, KiB(100), KiB(200), 0x22), 0);
	assert_int_equal(snap_state(d, "b", 512, 0xb2), 0);
	expect_state(d, "a", 70001, 0xa1);
	expect_state(d, "b", 512, 0xb2);
	assert_int_equal(snap_apply(d, "a"), 0);
	expect_state(d, "a", 70001, 0xa1);
	/* Applied, the state stands behind the disk: growing must not show it. */
	assert_int_equal(disk_truncate(d, MiB(1)), 0);
	disk_expect(d, KiB(100), KiB(900), 0);
	disk_free_clean(d);
}

static void the_area_behind_the_disk_is_not_the_disk(void **state)
{
	struct disk *d = disk_made(KiB(100), "cluster_size=512");
	struct snap_call c = { .d = d, .len = 1000, .state_len = 50000, .buf = malloc(50000) };

	(void)state;
	memset(c.buf, 0x77, 50000);
	assert_int_equal(fiber_call(d->im->q, area_fiber, &c), 0);
	free(c.buf);
	must_snap(d, "s");
	assert_int_equal(disk_truncate(d, MiB(1)), 0);
	disk_expect(d, 0, MiB(1), 0);
	disk_free_clean(d);
}

/* ---- by seed, against a model ---- */

#define MODEL_BLOCKS 4096u
#define MODEL_KEPT 6u

struct picture {
	uint8_t byte[MODEL_BLOCKS]; /* of each 512 bytes */
	unsigned nr;
};

struct kept {
	bool used;
	char name[8];
	struct picture p;
	uint64_t state_len;
};

static unsigned below(uint64_t *random, unsigned n)
{
	*random = *random * 6364136223846793005ull + 1442695040888963407ull;
	return (unsigned)((*random >> 33) % n);
}

static void expect_picture(struct disk *d, const struct picture *p, const char *what)
{
	uint8_t *bytes = malloc(p->nr * 512ull);

	assert_int_equal(node_len(d->n), p->nr * 512ull);
	assert_int_equal(disk_read(d, 0, p->nr * 512ull, bytes), 0);
	for (uint64_t i = 0; i < p->nr * 512ull; i++) {
		if (bytes[i] != p->byte[i / 512])
			fail_msg("%s: byte %llu is 0x%02x, not 0x%02x", what, (unsigned long long)i, bytes[i],
				 p->byte[i / 512]);
	}
	free(bytes);
}

static void expect_kept(struct disk *d, const struct kept *k)
{
	struct disk other = { .im = d->im };
	char options[100];

	snprintf(options, sizeof(options), "snapshot.name=%s", k->name);
	other.options = options;
	if (disk_open(&other, 0) < 0)
		fail_msg("snapshot %s: %s", k->name, other.err.message);
	expect_picture(&other, &k->p, k->name);
	disk_close(&other);
	if (k->state_len)
		expect_state(d, k->name, k->state_len, (uint8_t)k->name[1]);
}

static void model_step(struct disk *d, uint64_t *random, struct picture *now, struct kept *kept, unsigned step)
{
	unsigned what = below(random, 12), first = below(random, now->nr), nr = 1 + below(random, 100);
	struct kept *k = &kept[below(random, MODEL_KEPT)];
	uint8_t byte = (uint8_t)(1 + below(random, 255));

	nr = MIN(nr, now->nr - first);
	if (what < 6) {
		assert_int_equal(disk_write(d, first * 512ull, nr * 512ull, byte), 0);
		memset(now->byte + first, byte, nr);
	} else if (what == 6) {
		assert_int_equal(disk_zero(d, first * 512ull, nr * 512ull, below(random, 2)), 0);
		memset(now->byte + first, 0, nr);
	} else if (what == 7 && now->nr + 200 < MODEL_BLOCKS && disk_state(d)->h.version > 2) {
		assert_int_equal(disk_truncate(d, (now->nr + 200) * 512ull), 0);
		memset(now->byte + now->nr, 0, 200);
		now->nr += 200;
	} else if (what == 8 && k->used) {
		assert_int_equal(snap_delete(d, k->name), 0);
		k->used = false;
	} else if (what == 9 && k->used) {
		if (snap_apply(d, k->name) < 0)
			fail_msg("apply %s: %s", k->name, d->err.message);
		*now = k->p;
	} else if (what >= 10 && !k->used) {
		*k = (struct kept){ .used = true, .p = *now };
		snprintf(k->name, sizeof(k->name), "n%u", step);
		k->state_len = below(random, 2) ? 1 + below(random, 300000) : 0;
		if (snap_state(d, k->name, k->state_len, (uint8_t)k->name[1]) < 0)
			fail_msg("create %s: %s", k->name, d->err.message);
	}
}

/* The clusters of metadata as the driver knows them now. */
static uint8_t *held(struct disk *d, uint64_t *ret_nr)
{
	uint8_t *bytes;

	*ret_nr = disk_state(d)->end_cluster;
	bytes = malloc(*ret_nr);
	for (uint64_t i = 0; i < *ret_nr; i++)
		bytes[i] = meta_holds(disk_state(d), i);
	return bytes;
}

/* What waits to be freed is freed. */
static int settle_fiber(struct fiber *f, struct disk *d)
{
	int ret = 0;

	for (unsigned i = 0; i < 3 && ret == 0; i++) {
		ret = order_flush(f, disk_state(d)->order);
		if (ret == 0)
			ret = alloc_settle(f, disk_state(d));
	}
	return ret;
}

/* What it has kept up to date is what it finds when the image is opened. */
static void reopen_and_compare(struct disk *d)
{
	uint64_t nr_before, nr_after;
	uint8_t *before, *after;

	assert_int_equal(disk_call(d, settle_fiber), 0);
	before = held(d, &nr_before);
	disk_reopen(d);
	after = held(d, &nr_after);
	for (uint64_t i = 0; i < MAX(nr_before, nr_after); i++) {
		bool was = i < nr_before && before[i], is = i < nr_after && after[i];

		if (was != is)
			fail_msg("host cluster %llu: %s metadata, but %s", (unsigned long long)i, was ? "known as" : "not known as",
				 is ? "it is" : "it is not");
	}
	free(before);
	free(after);
}

static void operations_by_seed_match_a_model(void **state)
{
	static const char *const options[] = { "cluster_size=512", "cluster_size=4k,refcount_bits=4", "cluster_size=64k",
					       "cluster_size=512,compat=0.10" };
	const char *only = getenv("VARVE_SEED");
	uint64_t first = only ? strtoull(only, NULL, 0) : 1, last = only ? first : 24;

	(void)state;
	for (uint64_t seed = first; seed <= last; seed++) {
		struct disk *d = disk_made(1000 * 512, options[seed % 4]);
		struct picture *now = calloc(1, sizeof(*now));
		struct kept *kept = calloc(MODEL_KEPT, sizeof(*kept));
		uint64_t random = seed;

		print_message("# seed %llu\n", (unsigned long long)seed);
		now->nr = 1000;
		d->options = seed / 4 % 2 ? "overlap-check=all,pass-discard-other=on" : NULL;
		disk_reopen(d);
		for (unsigned step = 0; step < 60; step++) {
			model_step(d, &random, now, kept, step);
			if (step % 15 == 14) {
				reopen_and_compare(d);
				expect_found(d->im, 0, 0, 0);
			}
		}
		expect_picture(d, now, "the disk");
		for (unsigned i = 0; i < MODEL_KEPT; i++) {
			if (kept[i].used)
				expect_kept(d, &kept[i]);
		}
		disk_free_clean(d);
		free(now);
		free(kept);
	}
}

/* An L2 table that a snapshot alone has, and an entry of the disk, or a count, that lies about it. *ret: its place. */
static struct disk *with_inactive_table(uint64_t *ret)
{
	struct disk *d = disk_made(MiB(4), "cluster_size=64k");

	assert_int_equal(disk_write(d, 0, KiB(256), 0x11), 0);
	disk_reopen(d);
	*ret = image_get(d->im, image_l1(d->im), 8) & QCOW2_OFF_MASK;
	must_snap(d, "one");
	assert_int_equal(disk_write(d, 0, KiB(64), 0x22), 0);
	assert_int_equal(disk_close(d), 0);
	assert_true(image_get(d->im, image_l1(d->im), 8) != (*ret | QCOW2_COPIED));
	return d;
}

static void tables_of_snapshots_are_guarded_if_asked(void **state)
{
	static const struct {
		const char *options;
		int ret;
	} cases[] = {
		{ NULL, 0 },
		{ "overlap-check=cached", 0 },
		{ "overlap-check=all", -EIO },
		{ "overlap-check=none,overlap-check.inactive-l2=on", -EIO },
		{ "overlap-check.template=all,overlap-check.inactive-l2=off", 0 },
	};

	(void)state;
	for (unsigned i = 0; i < ARRAY_LEN(cases); i++) {
		for (unsigned lie = 0; lie < 2; lie++) {
			uint64_t table;
			struct disk *d = with_inactive_table(&table);

			if (lie)
				image_set_refcount(d->im, table, 0); /* the next that is handed out */
			else
				image_put(d->im, image_l2_entry(d->im, 9), 8, table | QCOW2_COPIED);
			d->options = cases[i].options;
			assert_int_equal(disk_open(d, NODE_WRITABLE), 0);
			assert_int_equal(disk_write(d, 9 * KiB(64), KiB(64), 0x5e), cases[i].ret);
			(void)disk_close(d);
			/* The snapshot has its table, or the guest's bytes instead of it. */
			assert_int_equal(image_get(d->im, table + 1024, 8) == 0x5e5e5e5e5e5e5e5eull, cases[i].ret == 0);
			disk_free(d);
		}
	}
}

/* ---- what fails ---- */

static void names_are_unique_and_bounded(void **state)
{
	struct disk *d = disk_made(MiB(1), "");
	char name[300];

	(void)state;
	must_snap(d, "one");
	assert_int_equal(snap(d, "one"), -EEXIST);
	assert_int_equal(snap(d, ""), -EINVAL);
	memset(name, 'x', sizeof(name));
	name[sizeof(name) - 1] = 0;
	assert_int_equal(snap(d, name), -EINVAL);
	assert_int_equal(snap_delete(d, "two"), -ENOENT);
	assert_int_equal(snap_apply(d, "two"), -ENOENT);
	disk_free_clean(d);
}

/* Counts of one bit cannot say "twice". */
static void counts_that_are_too_narrow_leave_all_as_it_was(void **state)
{
	struct disk *d = disk_made(MiB(1), "cluster_size=4k,refcount_bits=1");

	(void)state;
	assert_int_equal(disk_write(d, 0, KiB(64), 0x11), 0);
	assert_int_equal(snap(d, "s"), -ERANGE);
	assert_non_null(strstr(d->err.message, "1 bits"));
	assert_true(disk_map(d, 0, KiB(4)).flags & EXTENT_INPLACE);
	assert_int_equal(image_get(d->im, 72, 8), 0); /* not dirty */
	disk_free_clean(d);
}

/* Two bits count to three: the disk and two snapshots; the third fails half-way, and is taken back. */
static void a_count_that_overflows_half_way_is_taken_back(void **state)
{
	struct disk *d = disk_made(MiB(1), "cluster_size=4k,refcount_bits=2");

	(void)state;
	assert_int_equal(disk_write(d, KiB(512), KiB(64), 0x11), 0);
	must_snap(d, "a");
	must_snap(d, "b");
	assert_int_equal(disk_write(d, 0, KiB(4), 0x22), 0);
	assert_int_equal(snap(d, "c"), -ERANGE);
	disk_reopen(d);
	expect_found(d->im, 0, 0, 0);
	assert_int_equal(snap_delete(d, "a"), 0);
	must_snap(d, "c");
	expect_in_snapshot(d, "c", KiB(512), KiB(64), 0x11);
	disk_free_clean(d);
}

/* Field of the only entry of the snapshot table. */
static void put_field(struct disk *d, unsigned at, unsigned bytes, uint64_t value)
{
	image_put(d->im, image_get(d->im, 64, 8) + at, bytes, value);
}

struct lie {
	const char *what;
	unsigned at, bytes;
	uint64_t value;
};

/* Each is refused with words, and nothing is changed. */
static void damaged_entries_are_refused(void **state)
{
	static const struct lie lies[] = {
		{ "L1 beyond the file", 0, 8, MiB(512) },	  { "L1 at no cluster", 0, 8, 0x200 },
		{ "L1 too long", 8, 4, 0x7fffffff },		  { "L1 too short for the disk", 8, 4, 1 },
		{ "no L1", 0, 8, 0 },				  { "a disk too long", 48, 8, UINT64_MAX / 2 },
	};

	(void)state;
	for (unsigned i = 0; i < ARRAY_LEN(lies); i++) {
		struct disk *d = disk_made(MiB(1), "cluster_size=4k");
		char options[] = "snapshot.name=s";

		assert_int_equal(disk_write(d, 0, KiB(64), 0x11), 0);
		assert_int_equal(disk_truncate(d, MiB(3)), 0);
		must_snap(d, "s");
		disk_close(d);
		put_field(d, lies[i].at, lies[i].bytes, lies[i].value);
		assert_int_equal(disk_open(d, NODE_WRITABLE), 0);
		if (snap_delete(d, "s") >= 0 || snap_apply(d, "s") >= 0)
			fail_msg("%s: was followed", lies[i].what);
		assert_true(*d->err.message);
		disk_expect(d, 0, KiB(64), 0x11);
		disk_close(d);
		assert_int_equal(image_get(d->im, 60, 4), 1);
		d->options = options;
		if (disk_open(d, 0) >= 0)
			fail_msg("%s: was opened", lies[i].what);
		disk_free(d);
	}
}

/* An L2 entry of a snapshot that leads to metadata, to free space or beyond the end must not change a count. */
static void damaged_tables_of_a_snapshot_are_refused(void **state)
{
	static const uint64_t entries[] = { 0, 0x1000, MiB(700), 0x123 };

	(void)state;
	for (unsigned i = 0; i < ARRAY_LEN(entries); i++) {
		struct disk *d = disk_made(MiB(1), "cluster_size=4k");
		uint64_t l1, l2;

		assert_int_equal(disk_write(d, 0, KiB(64), 0x11), 0);
		must_snap(d, "s");
		assert_int_equal(disk_write(d, 0, KiB(64), 0x22), 0);
		disk_close(d);
		l1 = image_get(d->im, image_get(d->im, 64, 8), 8);
		l2 = image_get(d->im, l1, 8) & QCOW2_OFF_MASK;
		image_put(d->im, l2, 8, i ? entries[i] : image_l1(d->im));
		assert_int_equal(disk_open(d, NODE_WRITABLE), 0);
		assert_int_equal(snap_delete(d, "s"), -EIO);
		assert_int_equal(snap_apply(d, "s"), -EIO);
		disk_expect(d, 0, KiB(64), 0x22);
		disk_free(d);
	}
}

static void a_state_whose_length_lies_is_refused(void **state)
{
	struct disk *d = disk_made(MiB(1), "cluster_size=4k");
	struct snap_call c = { .d = d, .name = "s" };

	(void)state;
	assert_int_equal(snap_state(d, "s", 10000, 3), 0);
	disk_close(d);
	put_field(d, 40, 8, MiB(500));
	assert_int_equal(disk_open(d, NODE_WRITABLE), 0);
	assert_int_equal(fiber_call(d->im->q, state_fiber, &c), -EIO);
	assert_non_null(strstr(d->err.message, "room for"));
	disk_free(d);
}

/* Fields behind those that we know stay what they were when the table is written anew. */
static void unknown_fields_are_kept(void **state)
{
	struct disk *d = disk_made(MiB(1), "cluster_size=4k");
	uint64_t table, id_len = 1, name_len = 3;

	(void)state;
	must_snap(d, "one");
	disk_close(d);
	table = image_get(d->im, 64, 8);
	image_put(d->im, table + 36, 4, 32); /* eight bytes more, before id and name */
	image_put(d->im, table + 64, 8, 0x1122334455667788);
	image_put(d->im, table + 72, 1, '1');
	image_put(d->im, table + 73, 3, ('o' << 16) | ('n' << 8) | 'e');
	assert_int_equal(image_get(d->im, table + 12, 2), id_len);
	assert_int_equal(image_get(d->im, table + 14, 2), name_len);
	disk_reopen(d);
	must_snap(d, "two");
	disk_close(d);
	table = image_get(d->im, 64, 8);
	assert_int_equal(image_get(d->im, table + 36, 4), 32);
	assert_int_equal(image_get(d->im, table + 64, 8), 0x1122334455667788);
	disk_free_clean(d);
}

static void snapshots_are_for_reading(void **state)
{
	struct disk *d = disk_made(MiB(1), "cluster_size=4k");

	(void)state;
	must_snap(d, "s");
	disk_close(d);
	d->options = "snapshot.name=s";
	assert_int_equal(disk_open(d, NODE_WRITABLE), -EINVAL);
	assert_int_equal(disk_open(d, 0), 0);
	assert_int_equal(snap(d, "t"), -EACCES);
	disk_close(d);
	d->options = "snapshot.id=7";
	assert_int_equal(disk_open(d, 0), -ENOENT);
	d->options = NULL;
	disk_free_clean(d);
}

/* ---- errors of the disk ---- */

/* Everything fails from the nth operation on: each snapshot is whole or not there, and no count is too low. */
static void an_error_anywhere_leaves_a_whole_image(void **state)
{
	unsigned failed = 0;

	(void)state;
	for (unsigned what = 0; what < 3; what++) {
		bool through = false;

		for (unsigned nth = 0; !through; nth++) {
			struct disk *d = disk_made(KiB(256), "cluster_size=512");

			assert_int_equal(disk_write(d, 0, KiB(64), 0x11), 0);
			must_snap(d, "a");
			assert_int_equal(disk_write(d, KiB(8), KiB(32), 0x22), 0);
			assert_int_equal(disk_flush(d), 0);
			d->im->fail_nr = sim_nr_ops(d->im->sim) + nth;
			through = (what == 0 ? snap_state(d, "b", 5000, 5) :
				   what == 1 ? snap_delete(d, "a") :
					       snap_apply(d, "a")) == 0;
			failed += !through;
			if (d->n)
				disk_close(d);
			d->im->fail_nr = UINT64_MAX;
			if (disk_open(d, NODE_WRITABLE) < 0)
				fail_msg("operation %u fails: %s", nth, d->err.message);
			disk_expect(d, 0, KiB(8), 0x11);
			if (what < 2)
				disk_expect(d, KiB(8), KiB(32), 0x22);
			assert_int_equal(disk_close(d), 0);
			image_check(d->im, 0);
			if (d->im->found.corruptions)
				fail_msg("%u, operation %u fails: %s", what, nth, d->im->lines);
			disk_free(d);
			assert_true(nth < 2000);
		}
	}
	assert_true(failed > 20);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(write_after_snapshot_copies),
		cmocka_unit_test(deleting_gives_back),
		cmocka_unit_test(applying_brings_back_disk_and_length),
		cmocka_unit_test(a_draft_of_now_is_the_disk_of_then),
		cmocka_unit_test(an_aborted_draft_leaves_nothing),
		cmocka_unit_test(states_stay_where_they_are),
		cmocka_unit_test(the_area_behind_the_disk_is_not_the_disk),
		cmocka_unit_test(operations_by_seed_match_a_model),
		cmocka_unit_test(tables_of_snapshots_are_guarded_if_asked),
		cmocka_unit_test(names_are_unique_and_bounded),
		cmocka_unit_test(counts_that_are_too_narrow_leave_all_as_it_was),
		cmocka_unit_test(a_count_that_overflows_half_way_is_taken_back),
		cmocka_unit_test(damaged_entries_are_refused),
		cmocka_unit_test(damaged_tables_of_a_snapshot_are_refused),
		cmocka_unit_test(a_state_whose_length_lies_is_refused),
		cmocka_unit_test(unknown_fields_are_kept),
		cmocka_unit_test(snapshots_are_for_reading),
		cmocka_unit_test(an_error_anywhere_leaves_a_whole_image),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
