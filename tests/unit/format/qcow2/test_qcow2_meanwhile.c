/* SPDX-License-Identifier: MIT */
/*
 * unit/format/qcow2/test_qcow2_meanwhile.c - what others do to an image while one change of its metadata is being queued
 *
 * order_put() queues, and then may wait until there is room. The linker leads it to here (--wrap, see meson.build): where it might wait,
 * somebody else comes by and does something, on the same fiber, at exactly that moment. Or it fails, as it does when there is no room.
 *
 * Clusters of 512 bytes with counts of 64 bits: a refcount block counts 64 clusters, so that a longer run is counted by several puts.
 */
#include "disk.h"

#include "block/block.h"
#include "format/qcow2/lazy.h"
#include "format/qcow2/refcount.h"
#include "format/qcow2/snapshot.h"
#include "format/qcow2/stock.h"

#define SMALL "cluster_size=512,refcount_bits=64"
#define RUN 150 /* clusters, in three or four blocks */
#define FEATURES_AT offsetof(struct qcow2_header_disk, incompatible)

static struct {
	void (*fn)(struct fiber *f, struct qcow2 *q); /* NULL: nobody comes by */
	uint64_t from, end;			      /* where: puts that touch this part of the file */
	unsigned nr, max;			      /* how often he came, and comes at most */
	uint64_t fail;				      /* bit i: the i-th of these puts fails */
	unsigned nr_puts;
	struct qcow2 *q;
} meanwhile;

int __real_order_put(struct fiber *f, struct order *o, uint64_t off, const void *bytes, size_t len, order_mark after, order_mark *ret_mark);
int __wrap_order_put(struct fiber *f, struct order *o, uint64_t off, const void *bytes, size_t len, order_mark after, order_mark *ret_mark);

int __wrap_order_put(struct fiber *f, struct order *o, uint64_t off, const void *bytes, size_t len, order_mark after, order_mark *ret_mark)
{
	bool here = off < meanwhile.end && off + len > meanwhile.from, fails = false;
	int ret;

	if (here)
		fails = meanwhile.nr_puts < 64 && meanwhile.fail >> meanwhile.nr_puts & 1;
	meanwhile.nr_puts += here;
	ret = fails ? -ENOMEM : __real_order_put(f, o, off, bytes, len, after, ret_mark);
	if (here && meanwhile.fn && meanwhile.nr < meanwhile.max) {
		void (*fn)(struct fiber *f, struct qcow2 *q) = meanwhile.fn;

		meanwhile.nr++;
		meanwhile.fn = NULL; /* who comes by is not met by others */
		fn(f, meanwhile.q);
		meanwhile.fn = fn;
	}
	return ret;
}

/* And behind a read. */
static void (*after_read)(struct fiber *f, struct qcow2 *q, uint64_t off);

int __real_order_read(struct fiber *f, struct order *o, uint64_t off, void *buf, size_t len);
int __wrap_order_read(struct fiber *f, struct order *o, uint64_t off, void *buf, size_t len);

int __wrap_order_read(struct fiber *f, struct order *o, uint64_t off, void *buf, size_t len)
{
	int ret = __real_order_read(f, o, off, buf, len);

	if (after_read)
		after_read(f, meanwhile.q, off);
	return ret;
}

static void nobody(void)
{
	memset(&meanwhile, 0, sizeof(meanwhile));
}

static void comes_by(struct qcow2 *q, void (*fn)(struct fiber *f, struct qcow2 *q), unsigned max, uint64_t from, uint64_t end)
{
	nobody();
	meanwhile.q = q;
	meanwhile.fn = fn;
	meanwhile.max = max;
	meanwhile.from = from;
	meanwhile.end = end;
}

static uint64_t on_disk(struct disk *d)
{
	return image_get(d->im, FEATURES_AT, 8);
}

/* ---- metadata is given back, and somebody allocates ---- */

static struct {
	uint64_t run;	       /* host offset of what is given back */
	uint64_t host_off[3 * RUN]; /* what was allocated meanwhile */
	unsigned nr;
} given;

static void allocates(struct fiber *f, struct qcow2 *q)
{
	order_mark mark;
	uint64_t nr;
	bool fresh;

	assert_in_range(given.nr, 0, ARRAY_LEN(given.host_off) - 1);
	assert_int_equal(alloc_clusters(f, q, 1, &given.host_off[given.nr++], &nr, &fresh, &mark), 0);
}

/* As long as they find none, allocations look at one block each: so many look at all of them. */
static void allocates_everywhere(struct fiber *f, struct qcow2 *q)
{
	for (unsigned i = 0; i < 8; i++)
		allocates(f, q);
}

/* A run that nothing refers to any more, on disk either; and its counts are all that will be put. */
static void make_run(struct fiber *f, struct qcow2 *q, bool metadata)
{
	uint8_t bytes[512] = { 0 };
	order_mark mark;
	bool zero;

	assert_int_equal(alloc_metadata(f, q, RUN, &given.run, &zero, &mark), 0);
	assert_int_equal(node_write(f, q->file, given.run + (RUN - 1) * 512, bytes, 512), 0); /* the file is that long */
	for (unsigned i = 0; i < RUN && !metadata; i++)
		meta_remove(q, given.run / 512 + i);
	assert_int_equal(order_flush(f, q->order), 0);
	if (metadata)
		alloc_free_metadata(q, given.run, RUN, order_now(q->order));
	else
		alloc_free(q, given.run, RUN, order_now(q->order), FREED_OTHER);
	assert_int_equal(order_flush(f, q->order), 0);
}

static bool in_run(uint64_t host_off)
{
	return host_off >= given.run && host_off < given.run + RUN * 512;
}

static void free_given(struct qcow2 *q)
{
	while (given.nr)
		alloc_free(q, given.host_off[--given.nr], 1, ORDER_NONE, FREED_OTHER);
}

static int allocate_while_metadata_is_given_back(struct fiber *f, struct disk *d)
{
	struct qcow2 *q = disk_state(d);

	given.nr = 0;
	make_run(f, q, true);
	comes_by(q, allocates_everywhere, 10, 0, UINT64_MAX);
	assert_int_equal(alloc_settle(f, q), 0);
	assert_in_range(meanwhile.nr, 2, 10); /* some counts were lower already, others not yet */
	nobody();
	assert_int_equal(q->unmapped, 0);
	/* Now it is space like any other. */
	free_given(q);
	assert_int_equal(alloc_settle(f, q), 0);
	allocates(f, q);
	for (unsigned i = 0; i < 30 && !in_run(given.host_off[given.nr - 1]); i++)
		allocates(f, q);
	assert_true(in_run(given.host_off[given.nr - 1]));
	free_given(q);
	return 0;
}

static const char *const guards[] = { NULL, "overlap-check=all" };

/* Counts that are 0 already, of clusters that are known as metadata still, are no damage. */
static void who_allocates_while_metadata_is_given_back_marks_no_healthy_image(void **state)
{
	(void)state;
	for (unsigned i = 0; i < ARRAY_LEN(guards); i++) {
		struct disk *d = disk_made(MiB(4), SMALL);

		d->options = guards[i];
		disk_reopen(d);
		assert_int_equal(disk_state(d)->guards_inactive, i);
		assert_int_equal(disk_call(d, allocate_while_metadata_is_given_back), 0);
		assert_int_equal(on_disk(d), 0);
		disk_free_clean(d);
	}
}

/* ---- a change of counts that fails half way ---- */

static unsigned nr_free(struct fiber *f, struct qcow2 *q)
{
	unsigned nr = 0;

	for (uint64_t i = 0, count; i < RUN; i++) {
		assert_int_equal(refcount_get(f, q, given.run / 512 + i, &count), 0);
		assert_in_range(count, 0, 1);
		nr += !count;
	}
	return nr;
}

/* The second put fails, and what the first one did is undone: tried again later, all of it is done. */
static int undone_it_is_done_later(struct fiber *f, struct disk *d)
{
	struct qcow2 *q = disk_state(d);

	make_run(f, q, false);
	comes_by(q, NULL, 0, 0, UINT64_MAX);
	meanwhile.fail = 2;
	assert_int_equal(alloc_settle(f, q), -ENOMEM);
	assert_int_equal(meanwhile.nr_puts, 3);
	assert_false(alloc_idle(q));
	assert_int_equal(nr_free(f, q), 0);
	assert_int_equal(alloc_settle(f, q), 0);
	assert_int_equal(nr_free(f, q), RUN);
	nobody();
	return 0;
}

/* Somebody is given all that is free of the run. */
static void take_run(struct fiber *f, struct qcow2 *q, uint64_t below)
{
	unsigned nr = nr_free(f, q);

	alloc_undo(f, q, below, 1); /* from there on space is looked for */
	for (unsigned i = 0; i < 3 * RUN && nr_free(f, q); i++)
		allocates(f, q);
	assert_int_equal(q->unmapped, 0);
	assert_int_equal(nr_free(f, q), 0);
	assert_in_range(given.nr, nr, 3 * RUN);
}

/* So does what would undo it. The space of the first part is free now; tried again, it would be taken from those who have been given it. */
static int half_done_it_is_not_tried_again(struct fiber *f, struct disk *d)
{
	struct qcow2 *q = disk_state(d);
	uint64_t below;
	unsigned nr;

	given.nr = 0;
	allocates(f, q);
	below = given.host_off[--given.nr];
	make_run(f, q, false);
	comes_by(q, NULL, 0, 0, UINT64_MAX);
	meanwhile.fail = 6;
	assert_int_equal(alloc_settle(f, q), -EIO);
	nobody();
	assert_true(alloc_idle(q));
	nr = nr_free(f, q);
	assert_in_range(nr, 1, RUN - 1);
	take_run(f, q, below);
	assert_int_equal(alloc_settle(f, q), 0);
	assert_int_equal(nr_free(f, q), 0);
	free_given(q);
	return (int)nr;
}

static void a_change_of_counts_is_done_or_undone_or_never_tried_again(void **state)
{
	struct disk *d = disk_made(MiB(4), SMALL);
	int nr;

	(void)state;
	assert_int_equal(disk_call(d, undone_it_is_done_later), 0);
	disk_free_clean(d);
	d = disk_made(MiB(4), SMALL);
	nr = disk_call(d, half_done_it_is_not_tried_again);
	assert_int_equal(disk_close(d), 0);
	expect_found(d->im, 0, RUN - (unsigned)nr, 0); /* the other part has leaked */
	disk_free(d);
}

/* All puts but the first fail. What is free is free, and who takes it before the rest is given back, too, meets no damage. */
static int metadata_is_given_back_in_two_goes(struct fiber *f, struct disk *d)
{
	struct qcow2 *q = disk_state(d);
	uint64_t below;
	unsigned nr;

	given.nr = 0;
	allocates(f, q);
	below = given.host_off[--given.nr];
	make_run(f, q, true);
	comes_by(q, NULL, 0, 0, UINT64_MAX);
	meanwhile.fail = ~0ull << 1;
	assert_true(alloc_settle(f, q) < 0);
	nobody();
	nr = nr_free(f, q);
	assert_in_range(nr, 1, RUN - 1);
	take_run(f, q, below);
	assert_int_equal(alloc_settle(f, q), 0);
	assert_true(alloc_idle(q));
	assert_int_equal(nr_free(f, q), RUN - nr);
	free_given(q);
	return 0;
}

static void metadata_that_is_given_back_in_part_is_no_damage(void **state)
{
	(void)state;
	for (unsigned i = 0; i < ARRAY_LEN(guards); i++) {
		struct disk *d = disk_made(MiB(4), SMALL);

		d->options = guards[i];
		disk_reopen(d);
		assert_int_equal(disk_call(d, metadata_is_given_back_in_two_goes), 0);
		disk_free_clean(d);
	}
}

/* ---- clusters are counted ahead of use, and somebody takes more than there are ---- */

static void takes_on(struct fiber *f, struct qcow2 *q)
{
	for (unsigned i = 0, more = 4; i < RUN && (stock_nr(q) || more--); i++)
		allocates(f, q);
}

static int stock_is_passed(struct fiber *f, struct disk *d)
{
	struct qcow2 *q = disk_state(d);
	uint8_t bytes[512] = { 0 };

	given.nr = 0;
	assert_int_equal(node_write(f, q->file, MiB(1), bytes, 512), 0); /* the file is that long: there can be a stock */
	for (unsigned i = 0; i < RUN && !stock_low(q); i++)
		allocates(f, q);
	assert_true(stock_low(q));
	comes_by(q, takes_on, 1, 0, UINT64_MAX);
	assert_int_equal(stock_refill(f, q), 0);
	assert_int_equal(meanwhile.nr, 1);
	nobody();
	free_given(q);
	return 0;
}

/* The frontier goes on over what was being counted: nobody has it then, and it is space like any other. */
static void stock_that_the_frontier_has_passed_is_given_back(void **state)
{
	struct disk *d = disk_made(MiB(4), "cluster_size=512"); /* one refcount block is enough: another would wait for the refill */

	(void)state;
	assert_int_equal(disk_call(d, stock_is_passed), 0);
	disk_free_clean(d);
}

/* ---- room among the metadata that is known ---- */

#define ANYWHERE (1ull << 40) /* clusters that no file here has */
#define ROOMS 40	      /* more than a small disk has room for at first, so that one of these is exactly what is left */

static uint64_t nr_added;

static void adds(struct fiber *f, struct qcow2 *q)
{
	(void)f;
	for (uint64_t i = 0; i < nr_added; i++) {
		assert_int_equal(meta_reserve(q, 1), 0);
		meta_add(q, ANYWHERE + i);
	}
}

static void removes(struct qcow2 *q)
{
	assert_int_equal(meanwhile.nr, 1);
	nobody();
	for (uint64_t i = 0; i < nr_added; i++) {
		assert_true(meta_holds(q, ANYWHERE + i));
		meta_remove(q, ANYWHERE + i);
	}
}

static void gives_back(struct fiber *f, struct qcow2 *q, uint64_t first, uint64_t nr)
{
	for (uint64_t i = 0; i < nr; i++) {
		assert_true(meta_holds(q, first + i));
		meta_remove(q, first + i);
	}
	alloc_undo(f, q, first << q->cluster_bits, nr);
}

static int blocks_are_added(struct fiber *f, struct qcow2 *q, uint64_t nr)
{
	uint64_t first, old = q->h.refcount_table_off;
	uint32_t entries = q->refcount_table_entries;
	order_mark mark;
	int moved;

	comes_by(q, adds, 1, 0, UINT64_MAX);
	assert_int_equal(refcount_extend(f, q, nr, &first, &mark), 0);
	removes(q);
	for (uint32_t i = 0; i < q->refcount_table_entries; i++)
		assert_true(!q->refcount_table[i] || meta_holds(q, q->refcount_table[i] >> q->cluster_bits));
	moved = q->refcount_table_entries != entries;
	assert_int_equal(moved, q->h.refcount_table_off != old);
	gives_back(f, q, first, nr);
	return moved;
}

static int grows(struct fiber *f, struct disk *d)
{
	return blocks_are_added(f, disk_state(d), RUN);
}

static int grows_and_moves(struct fiber *f, struct disk *d)
{
	return !blocks_are_added(f, disk_state(d), 64 * 64); /* more than one cluster of table has entries for */
}

static void snaps(struct fiber *f, struct disk *d, const char *name)
{
	struct snapshot_want want = { .name = name, .door = d->n, .icount = UINT64_MAX, .date_s = 1 };
	struct snapshot_draft *draft;

	assert_int_equal(qcow2_snapshot_create(f, d->n, &want, &draft, &d->err), 0);
	assert_int_equal(qcow2_snapshot_commit(f, d->n, draft, 0, NULL, &d->err), 0);
}

static void goes_back(struct fiber *f, struct disk *d, const char *name)
{
	struct snapshot_pick pick = { .name = name };

	node_drain_begin(f, d->n);
	assert_int_equal(qcow2_snapshot_apply(f, d->n, &pick, &d->err), 0);
	node_drain_end(d->n);
}

/* The disk has no tables, and is given those of the snapshot. */
static int applies(struct fiber *f, struct disk *d)
{
	struct qcow2 *q = disk_state(d);
	unsigned nr = 0;

	snaps(f, d, "full");
	goes_back(f, d, "empty");
	comes_by(q, adds, 1, offsetof(struct qcow2_header_disk, l1_off), offsetof(struct qcow2_header_disk, l1_off) + 8);
	goes_back(f, d, "full");
	removes(q);
	for (uint32_t i = 0; i < q->h.l1_entries; i++) {
		nr += !!q->l1[i];
		assert_true(!q->l1[i] || meta_holds(q, (q->l1[i] & QCOW2_OFF_MASK) >> q->cluster_bits));
	}
	assert_int_equal(nr, 2);
	return 0;
}

static int snap_empty(struct fiber *f, struct disk *d)
{
	snaps(f, d, "empty");
	return 0;
}

/* Reserved before a wait, it is there after it, however many others came by. */
static void room_that_is_reserved_is_left_to_who_reserved_it(void **state)
{
	static int (*const ways[])(struct fiber *f, struct disk *d) = { grows, grows_and_moves, applies };

	(void)state;
	for (unsigned i = 0; i < ARRAY_LEN(ways); i++) {
		for (nr_added = 0; nr_added < ROOMS; nr_added++) {
			struct disk *d = disk_made(KiB(64), SMALL);

			assert_int_equal(disk_call(d, snap_empty), 0);
			assert_int_equal(disk_write(d, 0, KiB(64), 0x11), 0);
			assert_int_equal(disk_call(d, ways[i]), 0);
			disk_free_clean(d);
		}
	}
}

/* What was reserved and not used is given back: growth that fails leaves no room behind that nobody uses. */
static int fails_to_grow(struct fiber *f, struct disk *d)
{
	struct qcow2 *q = disk_state(d);
	uint64_t first, off;
	order_mark mark;
	bool zero;

	comes_by(q, NULL, 0, 0, UINT64_MAX);
	meanwhile.fail = ~0ull;
	assert_int_equal(refcount_extend(f, q, RUN, &first, &mark), -ENOMEM);
	assert_int_equal(alloc_metadata(f, q, RUN, &off, &zero, &mark), -ENOMEM);
	nobody();
	return 0; /* meta_close() looks whether anything is reserved still */
}

static void room_that_is_not_used_is_given_back(void **state)
{
	struct disk *d = disk_made(KiB(64), SMALL);

	(void)state;
	assert_int_equal(disk_call(d, fails_to_grow), 0);
	disk_free(d);
}

/* ---- a snapshot is deleted, and somebody else gives back what it had ---- */

#define TURNS 1000 /* of others, while somebody is at it */

static struct settler {
	struct fiber_job job;
	struct qcow2 *q;
	uint64_t table; /* the second that the snapshot leads to */
	bool begun, stayed, ended, deleted;
} settler;

/* Of the first counts that he has lowered, he waits until they are queued. */
static void stays(struct fiber *f, struct qcow2 *q)
{
	(void)q;
	for (unsigned i = 0; i < TURNS && !settler.deleted; i++)
		fiber_yield(f);
	settler.stayed = true;
}

static void settles(struct fiber *f, struct fiber_job *job)
{
	(void)job;
	comes_by(settler.q, stays, 1, 0, UINT64_MAX);
	assert_int_equal(alloc_settle(f, settler.q), 0); /* as a flush does, or an allocation */
	settler.ended = true;
}

/* What the first table leads to is in the list of what is to be given back. */
static void lets_others_settle(struct fiber *f, struct qcow2 *q, uint64_t off)
{
	if (off != settler.table || settler.begun || alloc_idle(q))
		return;
	settler.begun = true;
	settler.job.run = settles;
	fiber_start(fiber_queue(f), &settler.job, q->node->level);
	for (unsigned i = 0; i < TURNS && !meanwhile.nr; i++)
		fiber_yield(f);
}

static int deletes_while_others_settle(struct fiber *f, struct disk *d)
{
	struct qcow2 *q = disk_state(d);
	struct snapshot_pick pick = { .name = "full" };

	snaps(f, d, "full");
	settler = (struct settler){ .q = q, .table = q->l1[1] & QCOW2_OFF_MASK };
	meanwhile.q = q;
	after_read = lets_others_settle;
	assert_int_equal(qcow2_snapshot_delete(f, d->n, &pick, &d->err), 0);
	after_read = NULL;
	settler.deleted = true;
	assert_true(settler.begun);
	while (!settler.ended)
		fiber_yield(f);
	assert_true(settler.stayed);
	nobody();
	return 0;
}

/* Then its clusters are used once, and marked so: not before all counts are down. */
static void what_a_deleted_snapshot_had_is_marked_as_used_once(void **state)
{
	struct disk *d = disk_made(KiB(64), SMALL);

	(void)state;
	assert_int_equal(disk_write(d, 0, KiB(64), 0x11), 0);
	assert_int_equal(disk_call(d, deletes_while_others_settle), 0);
	disk_free_clean(d);
}

/* ---- a snapshot cannot be made, and what was counted for it not be taken back ---- */

static uint64_t failing; /* puts that fail, from the first of the counts on */

static int snaps_in_vain(struct fiber *f, struct disk *d)
{
	struct qcow2 *q = disk_state(d);
	struct snapshot_want want = { .name = "never", .door = d->n, .icount = UINT64_MAX, .date_s = 1 };
	struct snapshot_draft *draft;
	int ret;

	/* Not the header's, so that the dirty bit could go. */
	comes_by(q, NULL, 0, 512, UINT64_MAX);
	meanwhile.fail = failing;
	ret = qcow2_snapshot_create(f, d->n, &want, &draft, &d->err);
	if (ret == 0)
		(void)qcow2_snapshot_commit(f, d->n, draft, 0, NULL, &d->err);
	nobody();
	return 0;
}

static int snaps_another(struct fiber *f, struct disk *d)
{
	struct snapshot_pick pick = { .name = "another" };

	snaps(f, d, "another");
	assert_int_equal(qcow2_snapshot_delete(f, d->n, &pick, &d->err), 0);
	return order_flush(f, disk_state(d)->order);
}

/* Where one put failed, all was taken back. Where two did, the dirty bit stays if it was not, and the next writer counts anew. */
static void counts_that_cannot_be_taken_back_leave_the_dirty_bit(void **state)
{
	unsigned nr_dirty = 0;

	(void)state;
	for (unsigned i = 0; i < 24; i++) {
		struct disk *d = disk_made(KiB(64), SMALL);

		assert_int_equal(disk_write(d, 0, KiB(64), 0x11), 0);
		assert_int_equal(disk_flush(d), 0);
		failing = (i % 2 ? 3ull : 1ull) << i / 2;
		print_message("# puts that fail: 0x%llx\n", (unsigned long long)failing);
		assert_int_equal(disk_call(d, snaps_in_vain), 0);
		assert_int_equal(disk_flush(d), 0);
		if (on_disk(d))
			assert_int_equal(i % 2, 1);
		if (on_disk(d)) {
			nr_dirty++;
			assert_int_equal(disk_call(d, snaps_another), 0);
			assert_int_equal(on_disk(d), QCOW2_INCOMPAT_DIRTY); /* that one went well does not count anew */
		}
		disk_reopen(d);
		assert_int_equal(on_disk(d), 0);
		disk_expect(d, 0, KiB(64), 0x11);
		disk_free_clean(d);
	}
	assert_true(nr_dirty > 0);
}

/* ---- a snapshot cannot be made, and the guest goes on before it is taken back ---- */

static struct guest {
	struct fiber_job job;
	struct disk *d;
	uint64_t table; /* the first that the snapshot would have had */
	bool begun, ended;
} guest;

static void guest_writes(struct fiber *f, struct fiber_job *job)
{
	static uint8_t bytes[KiB(8)];

	(void)job;
	memset(bytes, 0x22, sizeof(bytes));
	assert_int_equal(node_enter_wait(f, guest.d->n, REQ_WRITE, KiB(32) + KiB(12), bytes, sizeof(bytes)), 0);
	guest.ended = true;
}

/* Taking back begins with the first table. The guest changes the second one. */
static void lets_the_guest_write(struct fiber *f, struct qcow2 *q, uint64_t off)
{
	if (off != guest.table || guest.begun || meanwhile.nr_puts <= (unsigned)__builtin_ctzll(meanwhile.fail) || ranges_overlap(&q->node->ranges, 0, 1))
		return;
	guest.begun = true;
	guest.job.run = guest_writes;
	fiber_start(fiber_queue(f), &guest.job, guest.d->n->level);
	for (unsigned i = 0; i < TURNS && !guest.ended; i++)
		fiber_yield(f);
}

static int snaps_in_vain_while_the_guest_writes(struct fiber *f, struct disk *d)
{
	struct qcow2 *q = disk_state(d);

	guest = (struct guest){ .d = d, .table = q->l1[0] & QCOW2_OFF_MASK };
	after_read = lets_the_guest_write;
	(void)snaps_in_vain(f, d);
	after_read = NULL;
	while (guest.begun && !guest.ended)
		fiber_yield(f);
	return guest.begun;
}

static void what_the_guest_gets_while_a_snapshot_is_taken_back_stays_its_own(void **state)
{
	int nr = 0;

	(void)state;
	for (unsigned i = 0; i < 16; i++) {
		struct disk *d = disk_made(KiB(64), SMALL);

		assert_int_equal(disk_write(d, 0, KiB(32) + KiB(16), 0x11), 0);
		assert_int_equal(disk_flush(d), 0);
		failing = 1ull << i;
		print_message("# puts that fail: 0x%llx\n", (unsigned long long)failing);
		nr += disk_call(d, snaps_in_vain_while_the_guest_writes);
		if (guest.begun)
			disk_expect(d, KiB(32) + KiB(12), KiB(8), 0x22);
		disk_free_clean(d);
	}
	assert_in_range(nr, 1, 16);
}

/* ---- bits of the header ---- */

#define LAZY "cluster_size=512,lazy_refcounts=on"

static void begins(struct fiber *f, struct qcow2 *q)
{
	assert_int_equal(snapshot_dirty_begin(f, q, NULL), meanwhile.fail ? -ENOMEM : 0);
}

static void ends(struct fiber *f, struct qcow2 *q)
{
	assert_int_equal(snapshot_dirty_end(f, q, NULL), 0);
}

static void writes_no_snapshots(struct fiber *f, struct qcow2 *q)
{
	struct snapshots none = { .nr = 0 };
	order_mark mark;

	assert_int_equal(snapshots_write(f, q, &none, UINT32_MAX, true, &mark, NULL), 0);
}

/* With lazy refcounts the first count that changes sets the dirty bit. */
static void counts(struct fiber *f, struct qcow2 *q)
{
	given.nr = 0;
	allocates(f, q);
}

static void meets_damage(struct fiber *f, struct qcow2 *q)
{
	assert_int_equal(qcow2_corrupt(f, q, "so says the test"), -EIO);
}

#define DIRTY QCOW2_INCOMPAT_DIRTY
#define CORRUPT QCOW2_INCOMPAT_CORRUPT

static const struct both {
	const char *what;
	const char *options;
	void (*before)(struct fiber *f, struct qcow2 *q);
	void (*one)(struct fiber *f, struct qcow2 *q); /* puts the header, */
	void (*other)(struct fiber *f, struct qcow2 *q); /* and before that returns, so does he */
	uint64_t features; /* then */
	bool fails;
} both[] = {
	{ "a snapshot is begun, damage", SMALL, NULL, begins, meets_damage, DIRTY | CORRUPT, false },
	{ "a snapshot is begun, a count changes", LAZY, NULL, begins, counts, DIRTY, false },
	{ "a snapshot is begun in vain, a count changes", LAZY, NULL, begins, counts, DIRTY, true },
	{ "a snapshot is done, damage", SMALL, begins, ends, meets_damage, CORRUPT, false },
	{ "a snapshot is done, a count changes", LAZY, begins, ends, counts, DIRTY, false },
	{ "the list is written, damage", SMALL, begins, writes_no_snapshots, meets_damage, CORRUPT, false },
	{ "the list is written, a count changes", LAZY, begins, writes_no_snapshots, counts, DIRTY, false },
	{ "a count changes, damage", LAZY, NULL, counts, meets_damage, DIRTY | CORRUPT, false },
	{ "damage, a snapshot is begun", SMALL, NULL, meets_damage, begins, DIRTY | CORRUPT, false },
	{ "damage, a snapshot is done", SMALL, begins, meets_damage, ends, CORRUPT, false },
};

static const struct both *now;

static int do_both(struct fiber *f, struct disk *d)
{
	struct qcow2 *q = disk_state(d);

	if (now->before)
		now->before(f, q);
	comes_by(q, now->other, 1, FEATURES_AT, FEATURES_AT + 8);
	meanwhile.fail = now->fails;
	now->one(f, q);
	assert_int_equal(meanwhile.nr, 1);
	nobody();
	assert_int_equal(order_flush(f, q->order), 0);
	assert_int_equal(q->h.incompatible, now->features);
	return 0;
}

static void bits_of_the_header_that_are_set_while_others_are_put_are_kept(void **state)
{
	(void)state;
	for (now = both; now < both + ARRAY_LEN(both); now++) {
		struct disk *d = disk_made(MiB(4), now->options);

		print_message("# %s\n", now->what);
		assert_int_equal(disk_call(d, do_both), 0);
		assert_int_equal(on_disk(d), now->features);
		disk_free(d);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(who_allocates_while_metadata_is_given_back_marks_no_healthy_image),
		cmocka_unit_test(a_change_of_counts_is_done_or_undone_or_never_tried_again),
		cmocka_unit_test(metadata_that_is_given_back_in_part_is_no_damage),
		cmocka_unit_test(stock_that_the_frontier_has_passed_is_given_back),
		cmocka_unit_test(room_that_is_reserved_is_left_to_who_reserved_it),
		cmocka_unit_test(room_that_is_not_used_is_given_back),
		cmocka_unit_test(what_a_deleted_snapshot_had_is_marked_as_used_once),
		cmocka_unit_test(counts_that_cannot_be_taken_back_leave_the_dirty_bit),
		cmocka_unit_test(what_the_guest_gets_while_a_snapshot_is_taken_back_stays_its_own),
		cmocka_unit_test(bits_of_the_header_that_are_set_while_others_are_put_are_kept),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
