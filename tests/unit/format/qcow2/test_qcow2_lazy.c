/* SPDX-License-Identifier: MIT */
/* format/qcow2/test_qcow2_lazy.c - counts that are written when the image closes, and the bit that says so */
#include "disk.h"

#include "order/order.h"

#define CLUSTER 512u
#define LAZY "cluster_size=512,lazy_refcounts=on"

static struct order_stats stats(struct disk *d)
{
	struct order_stats s;

	order_stats(disk_state(d)->order, &s);
	return s;
}

static bool is_dirty(struct disk *d)
{
	return image_get(d->im, offsetof(struct qcow2_header_disk, incompatible), 8) & QCOW2_INCOMPAT_DIRTY;
}

/* Every other cluster, so that no run is seen. */
static void write_some(struct disk *d, unsigned from, unsigned to)
{
	for (unsigned i = from; i < to; i++)
		assert_int_equal(disk_write(d, i * 2ull * CLUSTER, CLUSTER, (uint8_t)(i % 255 + 1)), 0);
}

static void expect_some(struct disk *d, unsigned nr)
{
	for (unsigned i = 0; i < nr; i++)
		disk_expect(d, i * 2ull * CLUSTER, CLUSTER, (uint8_t)(i % 255 + 1));
}

/* Not by opening, not by reading; by the first flush after a cluster was counted; until everything is closed.
 */
static void the_bit_stands_while_counts_are_behind(void **state)
{
	struct disk *d = disk_made(MiB(4), LAZY);
	unsigned before = d->im->nr_writes;

	(void)state;
	disk_expect(d, 0, KiB(64), 0);
	assert_int_equal(disk_flush(d), 0);
	assert_int_equal(d->im->nr_writes, before);
	write_some(d, 0, 100);
	assert_false(is_dirty(d));
	assert_int_equal(disk_flush(d), 0);
	assert_true(is_dirty(d));
	write_some(d, 100, 200);
	assert_int_equal(disk_discard(d, 0, KiB(16)), 0);
	assert_int_equal(disk_close(d), 0);
	assert_false(is_dirty(d));
	disk_reopen(d);
	assert_false(is_dirty(d));
	disk_free_clean(d);
}

static void a_clean_session_leaves_counts_as_any_other(void **state)
{
	struct disk *d = disk_made(MiB(4), LAZY);

	(void)state;
	for (unsigned round = 0; round < 5; round++) {
		write_some(d, round * 300, round * 300 + 300);
		assert_int_equal(disk_discard(d, round * 2048ull * CLUSTER / 8, 37 * CLUSTER), 0);
		write_some(d, 0, 10);
		if (round & 1)
			assert_int_equal(disk_flush(d), 0);
		disk_reopen(d);
		assert_int_equal(image_check(d->im, 0), 0);
		expect_found(d->im, 0, 0, 0);
	}
	disk_free_clean(d);
}

/* What the option promises: not for those taken, not for those given back. */
static void counts_cost_no_writes(void **state)
{
	uint64_t writes[2], puts[2];

	(void)state;
	for (unsigned lazy = 0; lazy < 2; lazy++) {
		struct disk *d = disk_made(MiB(4), "cluster_size=512");

		d->options = lazy ? "lazy-refcounts=on" : "lazy-refcounts=off";
		disk_reopen(d);
		write_some(d, 0, 600);
		assert_int_equal(disk_flush(d), 0);
		assert_int_equal(disk_discard(d, 0, 300 * CLUSTER), 0);
		assert_int_equal(disk_flush(d), 0); /* the clusters are given back ... */
		assert_int_equal(disk_flush(d), 0); /* ... and the lower counts written, if they are */
		writes[lazy] = stats(d).writes;
		puts[lazy] = stats(d).puts;
		disk_free_clean(d);
	}
	assert_true(writes[1] < writes[0]);
	assert_true(puts[1] < puts[0]);
}

static void a_crash_costs_a_count_and_no_space(void **state)
{
	struct disk *d = disk_made(MiB(4), LAZY), *after;

	(void)state;
	write_some(d, 0, 500);
	assert_int_equal(disk_flush(d), 0);
	after = disk_made(MiB(4), LAZY);
	assert_int_equal(disk_close(after), 0);
	image_free(after->im);
	after->im = image_copy(d->im); /* as it is on disk now */
	disk_reopen(after);
	assert_false(is_dirty(after));
	expect_some(after, 500);
	write_some(after, 500, 520);
	expect_some(after, 520);
	disk_free_clean(after);
	disk_free_clean(d);
}

/* Room for 64 pieces of 256 counts that are behind; these are 260. What does not fit is written while the
 * disk is in use. */
static void more_counts_than_the_cache_holds_are_written_early(void **state)
{
	struct disk *d = disk_made(MiB(64), LAZY);

	(void)state;
	d->options = "refcount-cache-size=64k";
	disk_reopen(d);
	for (unsigned i = 0; i < 33; i++)
		assert_int_equal(disk_write(d, i * MiB(1), MiB(1), (uint8_t)(i + 1)), 0);
	assert_int_equal(disk_flush(d), 0);
	assert_true(is_dirty(d));
	for (unsigned i = 0; i < 33; i++)
		disk_expect(d, i * MiB(1), MiB(1), (uint8_t)(i + 1));
	disk_free_clean(d);
}

static int check_open(struct fiber *f, struct disk *d)
{
	struct check c = { .result = &d->im->found };

	return qcow2_check(f, d->n, &c, &d->err);
}

static void a_check_of_the_open_image_sees_its_counts(void **state)
{
	struct disk *d = disk_made(MiB(4), LAZY);

	(void)state;
	write_some(d, 0, 4); /* fewer than would get a stock */
	assert_int_equal(disk_flush(d), 0);
	assert_int_equal(disk_call(d, check_open), 0);
	assert_int_equal(d->im->found.corruptions, 0);
	assert_int_equal(d->im->found.leaks, 0);
	disk_free_clean(d);
}

/* The bit stays, and nothing else is lost. */
static void counts_that_cannot_be_written_leave_the_bit(void **state)
{
	struct disk *d = disk_made(MiB(4), LAZY);

	(void)state;
	write_some(d, 0, 300);
	assert_int_equal(disk_flush(d), 0);
	d->im->fail_nr = 0;
	(void)disk_close(d); /* what it answers is for the tests of closing */
	d->im->fail_nr = UINT64_MAX;
	assert_true(is_dirty(d));
	disk_reopen(d);
	expect_some(d, 300);
	disk_free_clean(d);
}

static void version_2_has_no_place_for_the_bit(void **state)
{
	struct disk *d = disk_made(MiB(4), "compat=0.10");

	(void)state;
	assert_int_equal(disk_close(d), 0);
	d->options = "lazy-refcounts=on";
	assert_int_equal(disk_open(d, NODE_WRITABLE), -ENOTSUP);
	assert_non_null(strstr(d->err.message, "lazy-refcounts"));
	d->options = "lazy-refcounts=off";
	disk_reopen(d);
	disk_free_clean(d);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_bit_stands_while_counts_are_behind),
		cmocka_unit_test(a_clean_session_leaves_counts_as_any_other),
		cmocka_unit_test(counts_cost_no_writes),
		cmocka_unit_test(a_crash_costs_a_count_and_no_space),
		cmocka_unit_test(more_counts_than_the_cache_holds_are_written_early),
		cmocka_unit_test(a_check_of_the_open_image_sees_its_counts),
		cmocka_unit_test(counts_that_cannot_be_written_leave_the_bit),
		cmocka_unit_test(version_2_has_no_place_for_the_bit),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
