/* SPDX-License-Identifier: MIT */
/*
 * unit/format/qcow2/test_qcow2_subclusters.c - entries of two words: changed at once by many, looked up meanwhile by others
 *
 * subcluster.c is compiled in here, with each load and store of a word going through watched_get() and watched_set(): so the
 * order of the stores is seen, and with it everything that a reader on another queue could have met.
 */
#include <pthread.h>
#include <unistd.h>

#include "../../../lib/patience.h"
#include "disk.h"
#include "format/codec.h"
#include "format/qcow2/entry.h"

static uint64_t watched_get(const struct piece *p, unsigned i);
static void watched_set(struct piece *p, unsigned i, uint64_t word);

#define entry_get watched_get
#define entry_set watched_set
#include "format/qcow2/subcluster.c"
#undef entry_get
#undef entry_set

#define CLUSTER KiB(16)
#define SUB 512u
#define OPTIONS "extended_l2=on,cluster_size=16k"

static struct wide_entry entry_of(struct disk *d, unsigned cluster)
{
	struct row *row;
	struct piece *p = cache_find(disk_state(d)->l2, 0, cluster >> disk_state(d)->l2_piece_bits, &row);

	return p ? wide_get(p, cluster & ((1u << disk_state(d)->l2_piece_bits) - 1)) : (struct wide_entry){ 0 };
}

static struct disk *disk_with(const char *options, uint64_t backing_len)
{
	struct disk *d = disk_made(4 * CLUSTER, options);

	alarm(PROGRAM_S); /* a hang is a failure */
	assert_int_equal(disk_close(d), 0);
	d->backing_len = backing_len;
	disk_reopen(d);
	return d;
}

static struct disk *disk_over(uint64_t backing_len)
{
	return disk_with(OPTIONS, backing_len);
}

/* The kinds of disks: with nothing below, over a backing image; and both with the data in another file. */
#define KINDS 4

static bool kind_has_backing(unsigned kind)
{
	return kind & 1;
}

static struct disk *disk_of(unsigned kind)
{
	return disk_with(kind & 2 ? OPTIONS ",data_file=data" : OPTIONS, kind_has_backing(kind) ? 4 * CLUSTER : 0);
}

static int pack(struct disk *d, uint64_t off, uint8_t byte)
{
	struct disk_op op = { .op = REQ_WRITE, .flags = REQ_COMPRESS, .off = off, .len = CLUSTER, .byte = byte };

	disk_run(d, &op, 1);
	return op.ret;
}

/* ---- many writers ---- */

/* None of them waits for more than its turn; the first finds a place for the cluster, and all the others write there. */
static void writers_of_one_cluster_share_its_place(void **state)
{
	struct disk_op ops[16];

	(void)state;
	for (unsigned kind = 0; kind < KINDS; kind++) {
		struct disk *d = disk_of(kind);
		uint64_t end = disk_state(d)->end_cluster;
		uint8_t below = kind_has_backing(kind) ? 0xba : 0;
		struct wide_entry e;

		for (unsigned i = 0; i < ARRAY_LEN(ops); i++)
			ops[i] = (struct disk_op){ .op = REQ_WRITE, .off = CLUSTER + 2 * i * SUB + 100, .len = 200, .byte = (uint8_t)(i + 1) };
		disk_run(d, ops, ARRAY_LEN(ops));
		for (unsigned i = 0; i < ARRAY_LEN(ops); i++) {
			assert_int_equal(ops[i].ret, 0);
			disk_expect(d, ops[i].off, 200, (uint8_t)(i + 1));
			disk_expect(d, ops[i].off - 100, 100, below);
			disk_expect(d, ops[i].off + 200, SUB - 300, below);
			disk_expect(d, ops[i].off - 100 + SUB, SUB, below);
		}
		e = entry_of(d, 1);
		assert_true((e.data & 0x55555555) == 0x55555555 && !e.zero && (e.place & QCOW2_COPIED));
		/* A table and a cluster; with nothing below, a cluster is given as a whole once the session has a stock. */
		assert_true(disk_state(d)->end_cluster <= end + 2);
		disk_free_clean(d);
	}
}

/* A part is zeroed while others are written: bits of one word, changed by turns. */
static void neighbours_change_in_their_own_ways(void **state)
{
	struct disk *d = disk_over(4 * CLUSTER);
	struct disk_op ops[] = {
		{ .op = REQ_ZERO, .off = 0, .len = 4 * SUB },
		{ .op = REQ_WRITE, .off = 4 * SUB, .len = SUB, .byte = 1 },
		{ .op = REQ_DISCARD, .off = 8 * SUB, .len = SUB },
		{ .op = REQ_WRITE, .off = 9 * SUB, .len = 10, .byte = 2 },
		{ .op = REQ_ZERO, .flags = REQ_MAY_UNMAP, .off = 12 * SUB + 1, .len = SUB },
	};
	struct wide_entry e;

	(void)state;
	disk_run(d, ops, ARRAY_LEN(ops));
	for (unsigned i = 0; i < ARRAY_LEN(ops); i++)
		assert_int_equal(ops[i].ret, 0);
	e = entry_of(d, 0);
	assert_int_equal(e.zero, 0x10f);
	assert_int_equal(e.data, 1 << 4 | 1 << 9 | 3 << 12); /* the ends of what no bit can say are written */
	disk_expect(d, 0, 4 * SUB, 0);
	disk_expect(d, 4 * SUB, SUB, 1);
	disk_expect(d, 5 * SUB, 3 * SUB, 0xba);
	disk_expect(d, 8 * SUB, SUB, 0);
	disk_expect(d, 9 * SUB, 10, 2);
	disk_expect(d, 12 * SUB, 1, 0xba);
	disk_expect(d, 12 * SUB + 1, SUB, 0);
	disk_expect(d, 13 * SUB + 1, SUB - 1, 0xba);
	disk_free_clean(d);
}

/* ---- the order of the words ---- */

#define MOMENTS_MAX 256

/* What the entry of cluster 0 has been, in turn; segment: how many grace periods had gone by. */
static struct {
	struct disk *d; /* NULL: nobody watches */
	struct moment {
		uint64_t place, bitmap;
		unsigned segment;
	} moments[MOMENTS_MAX];
	unsigned nr, segment;
	unsigned loads[2], nr_loads;
} watch;

static struct piece *first_piece(struct disk *d)
{
	struct row *row;
	struct piece *p = cache_find(disk_state(d)->l2, 0, 0, &row);

	assert_non_null(p);
	return p;
}

static void note_moment(const struct piece *p)
{
	assert_true(watch.nr < MOMENTS_MAX);
	watch.moments[watch.nr++] = (struct moment){ entry_get(p, 0), entry_get(p, 1), watch.segment };
}

static uint64_t watched_get(const struct piece *p, unsigned i)
{
	if (watch.nr_loads < 2)
		watch.loads[watch.nr_loads++] = i;
	return entry_get(p, i);
}

static void watched_set(struct piece *p, unsigned i, uint64_t word)
{
	entry_set(p, i, word);
	if (watch.d && i < 2 && !p->nr)
		note_moment(p);
}

void __real_node_grace(struct fiber *f, struct node *n);
void __wrap_node_grace(struct fiber *f, struct node *n);

/* Nobody who loaded a word before is still at it afterwards. */
void __wrap_node_grace(struct fiber *f, struct node *n)
{
	__real_node_grace(f, n);
	if (watch.d) {
		watch.segment++;
		note_moment(first_piece(watch.d));
	}
}

static struct wide_entry moment_entry(unsigned bitmap_at, unsigned place_at)
{
	return wide_of(watch.moments[place_at].place, watch.moments[bitmap_at].bitmap);
}

/* What a reader takes subcluster s for: 1 compressed, 2 zeroes, 3 nothing, or 4 more than where its data is; 0: damage. */
static uint64_t answer(const struct disk *d, struct wide_entry e, unsigned s)
{
	if (e.place & QCOW2_COMPRESSED)
		return 1;
	if (wide_damaged(disk_state((struct disk *)d), &e))
		return 0;
	if (e.zero >> s & 1)
		return 2;
	return e.data >> s & 1 ? (e.place & QCOW2_OFF_MASK) + s * SUB + 4 : 3;
}

static void watch_begin(struct disk *d)
{
	disk_map(d, 0, SUB); /* loaded */
	watch.nr = watch.segment = 0;
	watch.d = d;
	note_moment(first_piece(d));
}

/*
 * A reader that loads the bitmap at one moment and the place at another, later one, is told what was so before the operation,
 * or what is so after it. (What a cluster has that moves to a new place is there before the entry says so.) Returns the number
 * of grace periods.
 */
static unsigned watch_end(void)
{
	struct disk *d = watch.d;
	unsigned last;

	note_moment(first_piece(d));
	watch.d = NULL;
	last = watch.nr - 1;
	for (unsigned first = 0; first <= last; first++) {
		for (unsigned later = first; later <= last && watch.moments[later].segment == watch.moments[first].segment; later++) {
			for (unsigned s = 0; s < QCOW2_SUBCLUSTERS; s++) {
				uint64_t got = answer(d, moment_entry(first, later), s);

				if (!got || (got != answer(d, moment_entry(0, 0), s) && got != answer(d, moment_entry(last, last), s)))
					fail_msg("subcluster %u: bitmap of moment %u, place of moment %u of %u: 0x%llx", s, first, later,
						 last, (unsigned long long)got);
			}
		}
	}
	return watch.segment;
}

static void readers_load_the_bitmap_first(void **state)
{
	struct disk *d = disk_over(0);

	(void)state;
	assert_int_equal(disk_write(d, 0, SUB, 1), 0);
	watch.nr_loads = 0;
	(void)wide_get(first_piece(d), 3);
	assert_true(watch.nr_loads == 2 && watch.loads[0] == 7 && watch.loads[1] == 6);
	disk_free_clean(d);
}

static void what_is_added_has_its_place_before_it_is_seen(void **state)
{
	(void)state;
	for (unsigned kind = 0; kind < KINDS; kind++) {
		struct disk *d = disk_of(kind);

		assert_int_equal(disk_write(d, CLUSTER, SUB, 1), 0);
		watch_begin(d);
		assert_int_equal(disk_write(d, 0, SUB, 1), 0);
		assert_int_equal(watch_end(), 0);
		watch_begin(d);
		assert_int_equal(disk_write(d, 5 * SUB, 3 * SUB, 1), 0);
		assert_int_equal(watch_end(), 0);
		disk_free_clean(d);
	}
}

static void what_is_taken_is_not_seen_without_its_place(void **state)
{
	static const struct {
		enum req_op op;
		uint32_t flags;
	} ways[] = { { REQ_DISCARD, 0 }, { REQ_ZERO, 0 }, { REQ_ZERO, REQ_MAY_UNMAP } };

	(void)state;
	for (unsigned kind = 0; kind < KINDS; kind++) {
		for (unsigned i = 0; i < ARRAY_LEN(ways); i++) {
			struct disk *d = disk_of(kind);
			struct disk_op op = { .op = ways[i].op, .flags = ways[i].flags, .len = SUB };

			assert_int_equal(disk_write(d, 0, 2 * SUB, 1), 0);
			watch_begin(d);
			disk_run(d, &op, 1);
			assert_true(op.ret == 0 && watch_end() == 1);
			assert_true(entry_of(d, 0).place);
			op.len = CLUSTER;
			watch_begin(d);
			disk_run(d, &op, 1);
			assert_true(op.ret == 0 && watch_end() == 1);
			assert_true(ways[i].op == REQ_ZERO && !ways[i].flags ? entry_of(d, 0).place : !entry_of(d, 0).place);
			disk_expect(d, 0, CLUSTER, 0);
			disk_free_clean(d);
		}
	}
}

/* Its bitmap is empty: with the new place, that would be a cluster without data. */
static void a_compressed_cluster_never_looks_empty(void **state)
{
	struct disk *d = disk_over(4 * CLUSTER);

	(void)state;
	if (!codec_available(CODEC_DEFLATE)) {
		disk_free(d);
		skip();
	}
	assert_int_equal(disk_write(d, CLUSTER, SUB, 1), 0);
	watch_begin(d);
	assert_int_equal(pack(d, 0, 5), 0);
	assert_int_equal(watch_end(), 0);
	assert_true(entry_of(d, 0).place & QCOW2_COMPRESSED);
	watch_begin(d);
	assert_int_equal(disk_write(d, SUB, SUB, 1), 0);
	assert_int_equal(watch_end(), 1);
	assert_int_equal(entry_of(d, 0).data, SUB_ALL);
	disk_expect(d, 0, SUB, 5);
	disk_expect(d, SUB, SUB, 1);
	disk_expect(d, 2 * SUB, CLUSTER - 2 * SUB, 5);
	/* A cluster that has a place is not compressed, whatever its first part is. */
	assert_int_equal(disk_discard(d, 0, SUB), 0);
	assert_int_equal(pack(d, 0, 6), 0);
	assert_false(entry_of(d, 0).place & QCOW2_COMPRESSED);
	disk_expect(d, 0, CLUSTER, 6);
	assert_int_equal(disk_discard(d, 0, CLUSTER), 0);
	assert_int_equal(pack(d, 0, 7), 0);
	watch_begin(d);
	assert_int_equal(disk_discard(d, 0, CLUSTER), 0);
	assert_int_equal(watch_end(), 1);
	disk_free_clean(d);
}

/* ---- a data file ---- */

static void expect_in_file(struct disk *d, uint64_t off, uint64_t len, uint8_t byte)
{
	uint8_t buf[CLUSTER];

	assert_true(len <= sizeof(buf));
	sim_peek(d->im->data, off, buf, len);
	for (uint64_t i = 0; i < len; i++)
		assert_int_equal(buf[i], byte);
}

/* What the file holds where no bit says so is nobody's; and what is taken away takes nothing else along. */
static void parts_of_a_data_file_come_and_go_alone(void **state)
{
	struct disk *d = disk_of(2);
	uint8_t rest[4 * CLUSTER];
	struct wide_entry e;

	(void)state;
	memset(rest, 0xdd, sizeof(rest));
	sim_poke(d->im->data, 0, rest, sizeof(rest));
	disk_expect(d, 0, CLUSTER, 0);
	assert_int_equal(disk_write(d, 3 * SUB + 100, 2 * SUB, 1), 0); /* of three parts */
	e = entry_of(d, 0);
	assert_true(e.place == QCOW2_COPIED && e.data == 7 << 3 && !e.zero);
	disk_expect(d, 0, 3 * SUB + 100, 0);
	disk_expect(d, 3 * SUB + 100, 2 * SUB, 1);
	disk_expect(d, 5 * SUB + 100, CLUSTER - 5 * SUB - 100, 0);
	expect_in_file(d, 0, 3 * SUB, 0xdd);
	expect_in_file(d, 6 * SUB, SUB, 0xdd);
	assert_int_equal(disk_discard(d, 4 * SUB, SUB), 0);
	expect_in_file(d, 3 * SUB + 100, SUB - 100, 1);
	expect_in_file(d, 4 * SUB, SUB, 0);
	expect_in_file(d, 5 * SUB, 100, 1);
	disk_reopen(d);
	disk_expect(d, 4 * SUB, SUB, 0);
	disk_expect(d, 5 * SUB, 100, 1);
	/* Over the end of a cluster: two entries, one hole. */
	assert_int_equal(disk_write(d, 0, 2 * CLUSTER, 2), 0);
	assert_true(entry_of(d, 1).place == (CLUSTER | QCOW2_COPIED) && entry_of(d, 1).data == SUB_ALL);
	assert_int_equal(disk_zero(d, CLUSTER - SUB, 3 * SUB, true), 0);
	assert_true(entry_of(d, 0).data == SUB_ALL >> 1 && entry_of(d, 1).data == SUB_ALL << 2);
	expect_in_file(d, CLUSTER - 2 * SUB, SUB, 2);
	expect_in_file(d, CLUSTER - SUB, 3 * SUB, 0);
	expect_in_file(d, CLUSTER + 2 * SUB, SUB, 2);
	disk_free_clean(d);
}

/* Who looks at the data file alone sees each zero; the tables lead to all of it all the time. */
static void parts_of_a_raw_data_file_stay_mapped(void **state)
{
	struct disk *d = disk_with(OPTIONS ",data_file=data,data_file_raw=on", 0);

	(void)state;
	assert_int_equal(disk_write(d, 0, 4 * CLUSTER, 1), 0);
	assert_int_equal(disk_zero(d, SUB, SUB, false), 0);
	assert_int_equal(disk_zero(d, 3 * SUB, SUB, true), 0);
	assert_int_equal(disk_discard(d, CLUSTER - SUB, 2 * SUB), 0);
	for (unsigned i = 0; i < 4; i++)
		assert_true(entry_of(d, i).place == (i * CLUSTER | QCOW2_COPIED) && entry_of(d, i).data == SUB_ALL && !entry_of(d, i).zero);
	expect_in_file(d, 0, SUB, 1);
	expect_in_file(d, SUB, SUB, 0);
	expect_in_file(d, 2 * SUB, SUB, 1);
	expect_in_file(d, 3 * SUB, SUB, 0);
	expect_in_file(d, CLUSTER - SUB, 2 * SUB, 0);
	expect_in_file(d, CLUSTER + SUB, SUB, 1);
	disk_free_clean(d);
}

/* Neither what it says nor what the file holds is changed: the other parts of such an entry would become something. */
static void a_damaged_entry_is_not_filled(void **state)
{
	static const uint64_t damaged[][2] = { { 0, 1 }, { QCOW2_COPIED, 0x100000001 }, { QCOW2_COPIED | 1, 0 }, { QCOW2_COPIED | CLUSTER, 1 } };

	(void)state;
	for (unsigned i = 0; i < ARRAY_LEN(damaged); i++) {
		struct disk *d = disk_of(2);
		uint64_t at;

		assert_int_equal(disk_write(d, 0, 2 * CLUSTER, 1), 0);
		assert_int_equal(disk_close(d), 0);
		at = image_get(d->im, image_l1(d->im), 8) & QCOW2_OFF_MASK;
		image_put(d->im, at, 8, damaged[i][0]);
		image_put(d->im, at + 8, 8, damaged[i][1]);
		assert_int_equal(disk_open(d, NODE_WRITABLE), 0);
		assert_int_equal(disk_write(d, CLUSTER, CLUSTER, 2), 0);
		disk_expect(d, CLUSTER, CLUSTER, 2);
		assert_int_equal(disk_write(d, 5 * SUB, SUB, 2), -EIO);
		assert_int_equal(disk_write(d, 0, CLUSTER, 2), -EIO);
		assert_int_equal(disk_zero(d, 5 * SUB, SUB, false), -EIO);
		assert_int_equal(disk_close(d), 0);
		expect_in_file(d, 0, CLUSTER, 1);
		assert_true(image_get(d->im, at, 8) == damaged[i][0] && image_get(d->im, at + 8, 8) == damaged[i][1]);
		disk_free(d);
	}
}

/* ---- another queue ---- */

struct reader {
	struct disk *d;
	struct queue *q;
	pthread_t thread;
	_Atomic int stage; /* 0 starting, 1 looking, 2 to end, 3 detached by home: the thread may go */
	_Atomic uint64_t looks, wrong;
};

/* Never damage; and never "look below", for everything here has been written, zeroed or compressed from the first on. */
static void *look_on(void *arg)
{
	struct reader *r = arg;
	struct varve_error err;

	if (node_attach(r->d->n, r->q, &err) < 0)
		atomic_fetch_add(&r->wrong, 1);
	atomic_store(&r->stage, 1);
	while (atomic_load(&r->stage) == 1) {
		for (unsigned i = 0; i < 200; i++) {
			struct extent e;

			r->d->n->drv->map(r->d->n, i % 2 * CLUSTER + i % 32 * SUB, SUB, &e);
			if (e.kind != EXTENT_DATA && e.kind != EXTENT_ZERO && e.kind != EXTENT_PACKED)
				atomic_fetch_add(&r->wrong, 1);
			atomic_fetch_add_explicit(&r->looks, 1, memory_order_relaxed);
		}
		queue_turn(r->q, 0);
	}
	while (atomic_load(&r->stage) != 3)
		queue_turn(r->q, 1000000);
	return NULL;
}

static int detach(struct fiber *f, void *arg)
{
	struct reader *r = arg;

	node_detach(f, r->d->n, r->q);
	return 0;
}

static void no_queue_sees_half_an_entry(void **state)
{
	struct disk *d = disk_over(4 * CLUSTER);
	struct reader r = { .d = d };

	(void)state;
	assert_int_equal(disk_write(d, 0, 2 * CLUSTER, 1), 0);
	assert_int_equal(queue_new(&r.q, &(struct queue_opts){ .name = "reader" }, NULL), 0);
	assert_int_equal(pthread_create(&r.thread, NULL, look_on, &r), 0);
	while (!atomic_load(&r.stage))
		queue_turn(d->im->q, 0);
	for (unsigned round = 0; round < 300; round++) {
		uint64_t before = atomic_load(&r.looks);

		assert_int_equal(disk_discard(d, 0, 2 * CLUSTER), 0);
		if (codec_available(CODEC_DEFLATE) && round % 3) {
			assert_int_equal(pack(d, CLUSTER, (uint8_t)round), 0);
			if (round % 3 == 2)
				assert_int_equal(disk_discard(d, CLUSTER, CLUSTER), 0);
		}
		for (unsigned i = 0; i < 4; i++)
			assert_int_equal(disk_write(d, i % 2 * CLUSTER + (round + i) % 31 * SUB, 700, (uint8_t)i), 0);
		while (atomic_load(&r.looks) == before) /* it has had its turn */
			queue_turn(d->im->q, 0);
	}
	atomic_store(&r.stage, 2);
	assert_int_equal(fiber_call(d->im->q, detach, &r), 0);
	atomic_store(&r.stage, 3);
	pthread_join(r.thread, NULL);
	queue_free(r.q);
	assert_int_equal(r.wrong, 0);
	disk_free_clean(d);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(writers_of_one_cluster_share_its_place),
		cmocka_unit_test(neighbours_change_in_their_own_ways),
		cmocka_unit_test(readers_load_the_bitmap_first),
		cmocka_unit_test(what_is_added_has_its_place_before_it_is_seen),
		cmocka_unit_test(what_is_taken_is_not_seen_without_its_place),
		cmocka_unit_test(a_compressed_cluster_never_looks_empty),
		cmocka_unit_test(parts_of_a_data_file_come_and_go_alone),
		cmocka_unit_test(parts_of_a_raw_data_file_stay_mapped),
		cmocka_unit_test(a_damaged_entry_is_not_filled),
		cmocka_unit_test(no_queue_sees_half_an_entry),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
