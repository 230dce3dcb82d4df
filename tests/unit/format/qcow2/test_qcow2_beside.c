/* SPDX-License-Identifier: MIT */
/*
 * unit/format/qcow2/test_qcow2_beside.c - what another fiber does beside a change of the image that waits
 *
 * order_put() queues, and may wait then. The linker leads it to here (--wrap, see meson.build): behind a put that a test names, another fiber
 * begins, and goes on until it has ended, or waits for what the first one has; or behind a grace period, likewise. (test_qcow2_meanwhile.c is the same on one fiber.)
 *
 * Clusters of 512 bytes: an L2 table maps 32 KiB.
 */
#include "disk.h"

#include "block/block.h"
#include "block/copy_on_read.h"
#include "format/cache.h"
#include "format/qcow2/refcount.h"
#include "format/qcow2/snapshot.h"

#define SMALL "cluster_size=512,refcount_bits=64"
#define TABLE KiB(32)
#define TURNS 1000 /* that the other fiber gets before the first goes on */

static struct other {
	struct fiber_job job;
	struct disk *d;
	void (*fn)(struct fiber *f, struct disk *d);
	bool (*until)(struct disk *d); /* so far, and no farther; NULL: as far as it comes */
	uint64_t from, end;	       /* where: behind a put that touches this part of the file */
	unsigned skip;		       /* but not the first so many of them */
	bool at_grace;		       /* instead: behind the next grace period */
	bool begun, ended;
} other;

int __real_order_put(struct fiber *f, struct order *o, uint64_t off, const void *bytes, size_t len, order_mark after, order_mark *ret_mark);
int __wrap_order_put(struct fiber *f, struct order *o, uint64_t off, const void *bytes, size_t len, order_mark after, order_mark *ret_mark);

static void other_run(struct fiber *f, struct fiber_job *job)
{
	(void)job;
	other.fn(f, other.d);
	other.ended = true;
}

static void other_begins(struct fiber *f)
{
	other.begun = true;
	other.job.run = other_run;
	fiber_start(other.d->im->q, &other.job, other.d->n->level + 1); /* streams end on a fiber above the disk's */
	for (unsigned i = 0; i < TURNS && !other.ended && !(other.until && other.until(other.d)); i++)
		fiber_yield(f);
}

int __wrap_order_put(struct fiber *f, struct order *o, uint64_t off, const void *bytes, size_t len, order_mark after, order_mark *ret_mark)
{
	int ret = __real_order_put(f, o, off, bytes, len, after, ret_mark);

	if (!other.fn || other.begun || other.at_grace || off >= other.end || off + len <= other.from)
		return ret;
	if (other.skip) {
		other.skip--;
		return ret;
	}
	other_begins(f);
	return ret;
}

void __real_node_grace(struct fiber *f, struct node *n);
void __wrap_node_grace(struct fiber *f, struct node *n);

void __wrap_node_grace(struct fiber *f, struct node *n)
{
	__real_node_grace(f, n);
	if (other.fn && !other.begun && other.at_grace)
		other_begins(f);
}

static void beside(struct disk *d, void (*fn)(struct fiber *f, struct disk *d), bool (*until)(struct disk *d), uint64_t from, uint64_t end)
{
	other = (struct other){ .d = d, .fn = fn, .until = until, .from = from, .end = end };
}

static int wait_for_other(struct fiber *f, struct disk *d)
{
	(void)d;
	while (other.begun && !other.ended)
		fiber_yield(f);
	return 0;
}

/* Both have ended, and the other one did begin. */
static void both_end(struct disk *d)
{
	assert_int_equal(disk_call(d, wait_for_other), 0);
	assert_true(other.begun);
	other.fn = NULL;
}

static int sound(struct disk *d)
{
	return disk_state(d)->unmapped;
}

/* ---- the disk becomes shorter, and somebody fetches ---- */

#define LEN (8 * TABLE)
#define SHORTER (TABLE + KiB(16))
#define DISK_LEN_AT offsetof(struct qcow2_header_disk, disk_len)

static uint64_t fetch_at;

/* As copy-on-read does ahead of a reader, and streams do; they do not come in by the door, and nobody drains them. */
static void fetches(struct fiber *f, struct disk *d)
{
	struct cor_stats stats = { 0 };

	(void)cor_populate(f, d->n, fetch_at, KiB(4), COR_BOTTOM_ALL, false, &stats);
}

static int make_shorter(struct fiber *f, struct disk *d)
{
	int ret;

	node_drain_begin(f, d->n);
	ret = node_truncate(f, d->n, SHORTER, PREALLOC_OFF, &d->err);
	node_drain_end(d->n);
	return ret;
}

/* In the table that the shorter disk goes on to have, and in one that goes. */
static void nothing_is_fetched_behind_the_end_of_a_disk_that_becomes_shorter(void **state)
{
	static const uint64_t places[] = { SHORTER, SHORTER + TABLE };

	(void)state;
	for (unsigned i = 0; i < ARRAY_LEN(places); i++) {
		struct disk *d = disk_made(LEN, SMALL);

		d->backing_len = LEN;
		disk_reopen(d);
		assert_int_equal(disk_write(d, 0, 512, 0x11), 0);
		fetch_at = places[i];
		beside(d, fetches, NULL, DISK_LEN_AT, DISK_LEN_AT + 8);
		assert_int_equal(disk_call(d, make_shorter), 0);
		both_end(d);
		for (uint64_t off = SHORTER; off < LEN; off += 512)
			assert_int_equal(disk_map(d, off, 512).kind, EXTENT_ABSENT);
		disk_expect(d, 512, SHORTER - 512, 0xba);
		disk_free_clean(d);
	}
}

static bool loads_a_table(struct disk *d)
{
	return !TAILQ_EMPTY(&disk_state(d)->l2->loading);
}

/* Tables that go are no damage to who is just reading them. */
static void tables_that_go_while_they_are_read_are_no_damage(void **state)
{
	struct disk *d = disk_made(LEN, SMALL);

	(void)state;
	d->options = "l2-cache-size=2k,l2-cache-entry-size=512"; /* four tables */
	disk_reopen(d);
	assert_int_equal(disk_write(d, 0, LEN, 0x11), 0);
	assert_int_equal(disk_flush(d), 0);
	fetch_at = 2 * TABLE;
	beside(d, fetches, loads_a_table, disk_state(d)->h.l1_off + 2 * 8, disk_state(d)->h.l1_off + 3 * 8);
	assert_int_equal(disk_call(d, make_shorter), 0);
	both_end(d);
	assert_int_equal(sound(d), 0);
	disk_expect(d, 0, SHORTER, 0x11);
	disk_free_clean(d);
}

/* ---- the refcount table moves, and somebody changes the header ---- */

#define REFCOUNT_TABLE_AT offsetof(struct qcow2_header_disk, refcount_table_off)

static void changes_the_header(struct fiber *f, struct disk *d)
{
	assert_int_equal(qcow2_set_backing(f, d->n, NULL, NULL, true, &d->err), 0);
}

static int move_refcount_table(struct fiber *f, struct disk *d)
{
	struct qcow2 *q = disk_state(d);
	uint64_t old = q->h.refcount_table_off, first;
	order_mark mark;

	assert_int_equal(refcount_extend(f, q, 64 * 64, &first, &mark), 0); /* more than one cluster of table has entries for */
	assert_int_not_equal(q->h.refcount_table_off, old);
	alloc_free_metadata(q, first << q->cluster_bits, 64 * 64, ORDER_NONE);
	return 0;
}

static void whoever_changes_the_header_leaves_the_refcount_table_where_it_is(void **state)
{
	struct disk *d = disk_made(KiB(64), SMALL);
	uint64_t there;

	(void)state;
	assert_int_equal(disk_write(d, 0, KiB(64), 0x11), 0);
	beside(d, changes_the_header, NULL, REFCOUNT_TABLE_AT, REFCOUNT_TABLE_AT + 8);
	assert_int_equal(disk_call(d, move_refcount_table), 0);
	both_end(d);
	there = disk_state(d)->h.refcount_table_off;
	assert_int_equal(disk_close(d), 0);
	assert_int_equal(image_get(d->im, REFCOUNT_TABLE_AT, 8), there);
	disk_reopen(d);
	disk_expect(d, 0, KiB(64), 0x11);
	disk_free_clean(d);
}

/* ---- a snapshot is being made, and somebody takes away what it reads from ---- */

static struct snapshot_draft *draft;

static int begins_a_snapshot(struct fiber *f, struct disk *d)
{
	struct snapshot_want want = { .name = "then", .door = d->n, .icount = UINT64_MAX, .date_s = 1, .now = true };

	return qcow2_snapshot_create(f, d->n, &want, &draft, &d->err);
}

static int makes_it(struct fiber *f, struct disk *d)
{
	return qcow2_snapshot_commit(f, d->n, draft, 0, NULL, &d->err);
}

static int gives_it_up(struct fiber *f, struct disk *d)
{
	qcow2_snapshot_abort(f, d->n, draft);
	return 0;
}

static int names_a_backing_file(struct fiber *f, struct disk *d)
{
	return qcow2_set_backing(f, d->n, "base", "raw", true, &d->err);
}

/* As a stream does at its end. */
static int takes_it_away(struct fiber *f, struct disk *d)
{
	return qcow2_set_backing(f, d->n, NULL, NULL, false, &d->err);
}

static int changes_counts(struct fiber *f, struct disk *d)
{
	struct opts *o = opts_new();
	int ret;

	assert_int_equal(opts_parse(o, "refcount_bits=16", NULL), 0);
	ret = qcow2_amend(f, d->n, o, NULL, NULL, &d->err);
	opts_free(o);
	return ret;
}

static void what_a_snapshot_in_the_making_needs_stays(void **state)
{
	struct disk *d = disk_made(KiB(64), SMALL);

	(void)state;
	assert_int_equal(disk_write(d, 0, KiB(64), 0x11), 0);
	assert_int_equal(disk_call(d, names_a_backing_file), 0);
	assert_int_equal(disk_call(d, begins_a_snapshot), 0);
	assert_int_equal(disk_call(d, takes_it_away), -ENOTSUP);
	assert_int_equal(disk_call(d, changes_counts), -EBUSY);
	assert_int_equal(disk_call(d, makes_it), 0);
	assert_int_equal(disk_call(d, takes_it_away), -ENOTSUP);
	assert_string_equal(disk_state(d)->h.backing_name, "base");
	disk_free_clean(d);

	d = disk_made(KiB(64), SMALL);
	assert_int_equal(disk_call(d, names_a_backing_file), 0);
	assert_int_equal(disk_call(d, begins_a_snapshot), 0);
	assert_int_equal(disk_call(d, gives_it_up), 0);
	assert_int_equal(disk_call(d, takes_it_away), 0);
	assert_int_equal(disk_call(d, changes_counts), 0);
	disk_free_clean(d);
}

/* ---- all that the disk holds goes, and somebody fetches ---- */

static int loses_all(struct fiber *f, struct disk *d)
{
	int ret;

	node_change_begin(f, d->n);
	ret = make_empty(f, d->n);
	node_change_end(d->n);
	return ret;
}

/* What is fetched meanwhile is there afterwards, in memory and in the file; or is not, in both. */
static void what_is_fetched_while_a_disk_is_emptied_is_there_or_is_not(void **state)
{
	struct disk *d = disk_made(LEN, SMALL);

	(void)state;
	d->backing_len = LEN;
	disk_reopen(d);
	assert_int_equal(disk_write(d, 0, 512, 0x11), 0);
	fetch_at = KiB(4);
	beside(d, fetches, NULL, 0, 0);
	other.at_grace = true;
	assert_int_equal(disk_call(d, loses_all), 0);
	both_end(d);
	disk_expect(d, 0, LEN, 0xba);
	disk_free_clean(d);
}

/* ---- a snapshot is made, and somebody reads the list of them ---- */

#define SNAPSHOTS_AT offsetof(struct qcow2_header_disk, nr_snapshots)

static json_t *listed;
static const char *snapshot_name;

static void reads_the_list(struct fiber *f, struct disk *d)
{
	listed = json_object();
	assert_int_equal(qcow2_info(f, d->n, listed, &d->err), 0);
}

static bool reads(struct disk *d)
{
	return sim_pending(d->im->sim);
}

static int makes_a_snapshot(struct fiber *f, struct disk *d)
{
	struct snapshot_want want = { .name = snapshot_name, .door = d->n, .icount = UINT64_MAX, .date_s = 1 };

	assert_int_equal(qcow2_snapshot_create(f, d->n, &want, &draft, &d->err), 0);
	return qcow2_snapshot_commit(f, d->n, draft, 0, NULL, &d->err);
}

static void the_list_of_snapshots_is_that_of_one_moment(void **state)
{
	static const char *const names[] = { "one", "two" };
	struct disk *d = disk_made(KiB(64), SMALL);
	json_t *all;

	(void)state;
	snapshot_name = names[0];
	assert_int_equal(disk_call(d, makes_a_snapshot), 0);
	snapshot_name = names[1];
	beside(d, reads_the_list, reads, SNAPSHOTS_AT, SNAPSHOTS_AT + 4);
	other.skip = 1; /* the first is that of the dirty bit */
	assert_int_equal(disk_call(d, makes_a_snapshot), 0);
	both_end(d);
	all = json_object_get(listed, "snapshots");
	assert_in_range(json_array_size(all), 1, 2);
	for (size_t i = 0; i < json_array_size(all); i++)
		assert_string_equal(json_string_value(json_object_get(json_array_get(all, i), "name")), names[i]);
	json_decref(listed);
	disk_free_clean(d);
}

/* ---- the disk is changed, and a stream takes away the backing chain ---- */

static void takes_the_chain_away(struct fiber *f, struct disk *d)
{
	assert_int_equal(graph_cut_backing(f, d->n, NULL, &d->err), 0);
}

static int changes_the_disk(struct fiber *f, struct disk *d)
{
	struct node *backing = d->n->backing;

	beside(d, takes_the_chain_away, NULL, 0, 0);
	node_change_begin(f, d->n);
	other_begins(f);
	assert_false(other.ended);
	assert_ptr_equal(d->n->backing, backing);
	assert_int_equal(node_truncate(f, d->n, LEN + KiB(64), PREALLOC_OFF, &d->err), 0); /* reads from there */
	assert_false(other.ended);
	node_change_end(d->n);
	return 0;
}

static void who_changes_a_disk_has_its_chain_to_the_end(void **state)
{
	struct disk *d = disk_made(LEN - 512 - KiB(1), "cluster_size=4096");

	(void)state;
	d->backing_len = LEN;
	disk_reopen(d);
	assert_int_equal(disk_call(d, changes_the_disk), 0);
	both_end(d);
	assert_null(d->n->backing);
	disk_expect(d, LEN, KiB(64), 0);
	disk_free_clean(d);
}

/* ---- metadata is made, and somebody reads entries that lead there ---- */

#define CRAFTED 5 /* guest cluster */
#define REGION 12 /* clusters behind the end that are looked at, and the longest region */

static uint64_t wanted;	    /* clusters */
static struct extent found; /* what the entry says, when the file is so long that it has what it leads to */

static void reads_the_entry(struct fiber *f, struct disk *d)
{
	assert_int_equal(l2_load(f, d->n, CRAFTED * 512), 0);
}

static int makes_metadata(struct fiber *f, struct disk *d)
{
	struct qcow2 *q = disk_state(d);
	uint8_t bytes[512] = { 0 };
	uint64_t host_off;
	order_mark mark;
	bool zero;

	assert_int_equal(alloc_metadata(f, q, wanted, &host_off, &zero, &mark), 0);
	wait_for_other(f, d);
	assert_int_equal(node_write(f, q->file, (q->end_cluster + REGION) * 512, bytes, 512), 0);
	l2_map(d->n, CRAFTED * 512, 512, &found);
	alloc_free_metadata(q, host_off, wanted, order_all(q->order));
	return 0;
}

/*
 * An image whose entry for a guest cluster leads behind the end of the file, by so many clusters, and the end is so far from the next one that a
 * refcount block counts. The entry is read behind the put with number `skip`, if there are so many: true.
 */
static bool entry_is_safe(unsigned to_boundary, uint64_t target, unsigned skip)
{
	struct disk *d = disk_made(KiB(64), SMALL);
	uint64_t end, entry;
	struct qcow2 *q;
	bool read;

	assert_int_equal(disk_write(d, 0, 512, 0x11), 0);
	for (uint64_t off = TABLE; (disk_state(d)->end_cluster + to_boundary) % 64; off += 512)
		assert_int_equal(disk_write(d, off, 512, 0x11), 0);
	assert_int_equal(disk_close(d), 0);
	end = sim_len(d->im->sim) / 512;
	entry = image_l2_entry(d->im, CRAFTED);
	image_put(d->im, entry, 8, (end + target) * 512 | QCOW2_COPIED);
	disk_reopen(d);
	q = disk_state(d);
	assert_int_equal(q->end_cluster, end);
	beside(d, reads_the_entry, NULL, 0, UINT64_MAX);
	other.skip = skip;
	assert_int_equal(disk_call(d, makes_metadata), 0);
	read = other.begun;
	other.fn = NULL;
	if (read && meta_holds(q, end + target) && found.kind != EXTENT_ERROR)
		fail_msg("%llu clusters, block boundary behind %u: an entry that leads to the %llu-th, read behind put %u, is kind %d",
			 (unsigned long long)wanted, to_boundary, (unsigned long long)target, skip, (int)found.kind);
	disk_free(d);
	return read;
}

/* Whenever it is read: of one cluster, of several, with a refcount block before them and without. The guest could write to tables else. */
static void no_entry_leads_into_metadata_that_is_being_made(void **state)
{
	static const uint64_t amounts[] = { 1, 7 };
	static const unsigned boundaries[] = { 0, 4, 32 };

	(void)state;
	for (unsigned i = 0; i < ARRAY_LEN(amounts) * ARRAY_LEN(boundaries); i++) {
		unsigned nr = 0;

		wanted = amounts[i % 2];
		for (uint64_t target = 0; target < REGION; target++) {
			for (unsigned skip = 0; entry_is_safe(boundaries[i / 2], target, skip); skip++)
				nr++;
		}
		assert_true(nr >= REGION);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(whoever_changes_the_header_leaves_the_refcount_table_where_it_is),
		cmocka_unit_test(what_a_snapshot_in_the_making_needs_stays),
		cmocka_unit_test(who_changes_a_disk_has_its_chain_to_the_end),
		cmocka_unit_test(the_list_of_snapshots_is_that_of_one_moment),
		cmocka_unit_test(what_is_fetched_while_a_disk_is_emptied_is_there_or_is_not),
		cmocka_unit_test(no_entry_leads_into_metadata_that_is_being_made),
		cmocka_unit_test(nothing_is_fetched_behind_the_end_of_a_disk_that_becomes_shorter),
		cmocka_unit_test(tables_that_go_while_they_are_read_are_no_damage),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
