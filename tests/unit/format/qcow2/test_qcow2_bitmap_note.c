/* SPDX-License-Identifier: MIT */
/*
 * unit/format/qcow2/test_qcow2_bitmap_note.c - enabled dirty bitmaps note what is written, from any queue, and nothing else
 */
#include <pthread.h>
#include <unistd.h>

#include "block/bitmap.h"
#include "../../../lib/patience.h"
#include "disk.h"
#include "format/qcow2/bitmap_note.h"

#define LEN MiB(4)

struct change {
	struct disk *d;
	struct bitmap_change c;
};

static int change_fiber(struct fiber *f, void *arg)
{
	struct change *ch = arg;

	return ch->d->n->drv->bitmap_change(f, ch->d->n, &ch->c, &ch->d->err);
}

/* The disk is closed, and closed again when it is done. */
static void change(struct disk *d, enum bitmap_action action, const char *name, uint64_t granularity)
{
	struct change ch = { d, { .action = action, .name = name, .granularity = granularity } };

	assert_int_equal(disk_open(d, NODE_WRITABLE | NODE_BITMAPS), 0);
	if (fiber_call(d->im->q, change_fiber, &ch) < 0)
		fail_msg("%s", d->err.message);
	assert_int_equal(disk_close(d), 0);
}

struct bits {
	struct disk *d;
	const char *name;
	uint8_t bytes[LEN / 512 / 8];
	uint64_t granularity;
};

static int read_fiber(struct fiber *f, void *arg)
{
	struct bits *b = arg;
	struct bitmap_bits *open;
	int ret = b->d->n->drv->bitmap_open(f, b->d->n, b->name, &open, &b->d->err);

	if (ret < 0)
		return ret;
	b->granularity = open->granularity;
	ret = b->d->n->drv->bitmap_read(f, b->d->n, open, 0, b->bytes, div_up(open->nr_bits, 8));
	b->d->n->drv->bitmap_close(b->d->n, open);
	return ret;
}

/* Bits of a disk that is closed: from `first` on nr, and no others. -EINVAL: it is inconsistent. */
static int expect_bits(struct disk *d, const char *name, uint64_t first, uint64_t nr)
{
	struct bits b = { .d = d, .name = name };
	int ret;

	assert_int_equal(disk_open(d, 0), 0);
	ret = fiber_call(d->im->q, read_fiber, &b);
	assert_int_equal(disk_close(d), 0);
	for (uint64_t i = 0; ret == 0 && i < LEN / b.granularity; i++)
		assert_int_equal(b.bytes[i / 8] >> i % 8 & 1, i >= first && i < first + nr);
	return ret;
}

static struct disk *disk_with_bitmap(const char *options, uint64_t granularity)
{
	struct disk *d = disk_made(LEN, options);

	alarm(PROGRAM_S); /* a hang is a failure */
	assert_int_equal(disk_close(d), 0);
	change(d, BITMAP_ADD, "b", granularity);
	return d;
}

static bool notes(const struct disk *d)
{
	return d->n->flags & NODE_NOTES;
}

/* Each first and last bit of a byte, of a cluster of bits, of the disk. */
static void exactly_what_is_written_is_noted(void **state)
{
	static const struct { uint64_t off, len; } ranges[] = {
		{ 0, 1 }, { 511, 2 }, { 7 * 512, 512 }, { 7 * 512 + 511, 2 }, { 512, 16 * 512 }, { 4096 * 512 - 512, 1024 }, { LEN - 1, 1 },
		{ LEN - 9 * 512, 9 * 512 }, { 0, LEN }, { 100, 3 * 4096 },
	};
	struct disk *d = disk_with_bitmap("cluster_size=512", 512);

	(void)state;
	for (unsigned i = 0; i < ARRAY_LEN(ranges); i++) {
		uint64_t first = ranges[i].off / 512, nr = (ranges[i].off + ranges[i].len - 1) / 512 - first + 1;

		disk_reopen(d);
		assert_true(notes(d));
		bitmap_note_write(d->n, ranges[i].off, ranges[i].len);
		bitmap_note_write(d->n, 5, 0);	   /* nothing */
		bitmap_note_write(d->n, LEN, 512); /* behind the end */
		assert_int_equal(disk_close(d), 0);
		assert_int_equal(expect_bits(d, "b", first, nr), 0);
		change(d, BITMAP_CLEAR, "b", 0);
	}
	disk_free_clean(d);
}

/* Reads, flushes and copies of what is below are none. */
static void what_only_looks_is_not_noted(void **state)
{
	struct disk *d = disk_with_bitmap("cluster_size=4k", 4096);
	uint8_t buf[4096];

	(void)state;
	disk_reopen(d);
	assert_int_equal(disk_read(d, 0, sizeof(buf), buf), 0);
	assert_int_equal(disk_flush(d), 0);
	assert_int_equal(disk_close(d), 0);
	assert_int_equal(expect_bits(d, "b", 0, 0), 0);
	disk_reopen(d);
	assert_int_equal(disk_discard(d, 8192, 4096), 0);
	assert_int_equal(disk_close(d), 0);
	assert_int_equal(expect_bits(d, "b", 2, 1), 0);
	disk_free_clean(d);
}

/* While the disk is open, whoever looks finds the mark; and after a crash. */
static void the_mark_is_there_as_long_as_the_disk_is_open(void **state)
{
	struct disk *d = disk_with_bitmap("cluster_size=4k", 4096), after = { 0 };

	(void)state;
	disk_reopen(d);
	assert_int_equal(disk_write(d, 0, 512, 1), 0);
	assert_int_equal(disk_flush(d), 0);
	after.im = image_copy(d->im);
	assert_int_equal(disk_close(d), 0);
	assert_int_equal(expect_bits(d, "b", 0, 1), 0);
	assert_int_equal(expect_bits(&after, "b", 0, 0), -EINVAL);
	/* And stays there: nobody can say what was written before. */
	disk_reopen(&after);
	assert_false(notes(&after));
	assert_int_equal(disk_close(&after), 0);
	assert_int_equal(expect_bits(&after, "b", 0, 0), -EINVAL);
	image_free(after.im);
	disk_free_clean(d);
}

/* Nothing is done for bitmaps that need nothing. */
static void a_disabled_bitmap_costs_nothing(void **state)
{
	struct disk *d = disk_with_bitmap("cluster_size=4k", 4096);

	(void)state;
	change(d, BITMAP_DISABLE, "b", 0);
	disk_reopen(d);
	assert_false(notes(d));
	assert_int_equal(disk_write(d, 0, 512, 1), 0);
	assert_int_equal(disk_close(d), 0);
	assert_int_equal(expect_bits(d, "b", 0, 0), 0);
	disk_free_clean(d);
}

/* A disk that fails while it is closed: the mark stays. */
static void a_disk_that_fails_at_the_end_leaves_the_mark(void **state)
{
	struct disk *d = disk_with_bitmap("cluster_size=4k", 4096);

	(void)state;
	disk_reopen(d);
	assert_int_equal(disk_write(d, 0, 512, 1), 0);
	assert_int_equal(disk_flush(d), 0);
	d->im->fail_nr = 0;
	(void)disk_close(d);
	d->im->fail_nr = UINT64_MAX;
	assert_int_equal(expect_bits(d, "b", 0, 0), -EINVAL);
	disk_free(d);
}

static int64_t one_fails(void *arg, uint64_t nr, const struct aio_op *op)
{
	(void)op;
	return nr == *(const uint64_t *)arg ? -EIO : 0;
}

/* What is tried again may succeed: whatever became durable leads to nothing that was given back. */
static void a_disk_that_fails_once_at_the_end_is_not_damaged(void **state)
{
	unsigned nr_kept = 0;

	(void)state;
	for (unsigned k = 0; k < 40; k++) {
		struct disk *d = disk_with_bitmap("cluster_size=4k", 4096);
		uint64_t nr;

		disk_reopen(d);
		assert_int_equal(disk_write(d, 0, 512, 1), 0);
		assert_int_equal(disk_flush(d), 0);
		nr = sim_nr_ops(d->im->sim) + k;
		sim_set_fault(d->im->sim, one_fails, &nr);
		(void)disk_close(d);
		sim_set_fault(d->im->sim, NULL, NULL);
		assert_int_equal(image_check(d->im, SIZE_MAX), 0);
		assert_int_equal(d->im->found.corruptions, 0);
		nr_kept += expect_bits(d, "b", 0, 1) == 0;
		disk_free(d);
	}
	assert_true(nr_kept > 0);
}

/* The k-th operation fails. True: so did getting shorter, and some of what was to go is gone. */
static bool lost_by_half(unsigned k)
{
	struct disk *d = disk_with_bitmap("cluster_size=512", 4096);
	const uint64_t cut = LEN / 4 + 512;
	static uint8_t data[LEN];
	struct bits b = { .d = d, .name = "b" };
	uint64_t nr, lost = 0;
	int ret;

	disk_reopen(d);
	assert_int_equal(disk_write(d, 0, LEN, 1), 0);
	assert_int_equal(disk_close(d), 0);
	change(d, BITMAP_CLEAR, "b", 0);
	disk_reopen(d);
	nr = sim_nr_ops(d->im->sim) + k;
	sim_set_fault(d->im->sim, one_fails, &nr);
	ret = disk_truncate(d, cut);
	sim_set_fault(d->im->sim, NULL, NULL);
	if (ret < 0) {
		assert_int_equal(disk_read(d, 0, LEN, data), 0);
		assert_int_equal(disk_close(d), 0);
		assert_int_equal(disk_open(d, 0), 0);
		ret = fiber_call(d->im->q, read_fiber, &b);
		for (uint64_t off = cut; off < LEN; off++) {
			lost += !data[off];
			if (ret == 0 && !data[off])
				assert_true(b.bytes[off / 4096 / 8] >> off / 4096 % 8 & 1);
		}
	}
	assert_int_equal(disk_close(d), 0);
	disk_free(d);
	return lost;
}

static void what_a_shrink_that_failed_has_taken_is_noted(void **state)
{
	unsigned nr_lost = 0;

	(void)state;
	for (unsigned k = 0; k < 60; k++)
		nr_lost += lost_by_half(k);
	assert_true(nr_lost > 0);
}

/* ---- many queues ---- */

struct writer {
	struct disk *d;
	unsigned nr;
	pthread_t thread;
};

static void *note_on(void *arg)
{
	struct writer *w = arg;

	/* Neighbouring bits, of the same bytes. */
	for (uint64_t i = w->nr; i < LEN / 512; i += 4)
		bitmap_note_write(w->d->n, i * 512, 512);
	return NULL;
}

static void no_bit_is_lost_between_queues(void **state)
{
	struct disk *d = disk_with_bitmap("cluster_size=512", 512);
	struct writer w[4];

	(void)state;
	disk_reopen(d);
	for (unsigned i = 0; i < 4; i++) {
		w[i] = (struct writer){ .d = d, .nr = i };
		assert_int_equal(pthread_create(&w[i].thread, NULL, note_on, &w[i]), 0);
	}
	for (unsigned i = 0; i < 4; i++)
		pthread_join(w[i].thread, NULL);
	assert_int_equal(disk_close(d), 0);
	assert_int_equal(expect_bits(d, "b", 0, LEN / 512), 0);
	disk_free_clean(d);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(exactly_what_is_written_is_noted),
		cmocka_unit_test(what_only_looks_is_not_noted),
		cmocka_unit_test(the_mark_is_there_as_long_as_the_disk_is_open),
		cmocka_unit_test(a_disabled_bitmap_costs_nothing),
		cmocka_unit_test(a_disk_that_fails_at_the_end_leaves_the_mark),
		cmocka_unit_test(a_disk_that_fails_once_at_the_end_is_not_damaged),
		cmocka_unit_test(what_a_shrink_that_failed_has_taken_is_noted),
		cmocka_unit_test(no_bit_is_lost_between_queues),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
