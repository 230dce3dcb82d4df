/* SPDX-License-Identifier: MIT */
/*
 * format/qcow2/test_qcow2_ahead.c - clusters counted and linked before they are wanted; counts that are made
 * anew
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <string.h>

#include "disk.h"
#include "order/order.h"

#define CLUSTER KiB(4)

static uint64_t syncs(struct disk *d)
{
	struct order_stats s;

	order_stats(disk_state(d)->order, &s);
	return s.syncs;
}

/* Never two neighbours, so that no run is seen; the disk has 2^n clusters. */
static uint64_t scattered(unsigned i)
{
	return (uint64_t)i * 1237 * CLUSTER % MiB(16);
}

static void write_scattered(struct disk *d, unsigned from, unsigned to)
{
	for (unsigned i = from; i < to; i++)
		assert_int_equal(disk_write(d, scattered(i), 512, (uint8_t)(i % 255 + 1)), 0);
}

static void a_flush_is_one_sync_whatever_was_allocated(void **state)
{
	struct disk *d = disk_made(MiB(16), "cluster_size=4k");
	uint64_t before;

	write_scattered(d, 0, 64);
	assert_int_equal(disk_flush(d), 0);
	assert_int_equal(disk_flush(d), 0);
	before = syncs(d);
	for (unsigned round = 0; round < 20; round++) {
		write_scattered(d, 64 + round * 10, 74 + round * 10);
		assert_int_equal(disk_flush(d), 0);
	}
	/* Blocks of counts are full now and then; that costs a barrier. */
	assert_in_range(syncs(d) - before, 20, 22);
	for (unsigned i = 0; i < 264; i++) {
		disk_expect(d, scattered(i), 512, (uint8_t)(i % 255 + 1));
		disk_expect(d, scattered(i) + 512, CLUSTER - 512, 0);
	}
	disk_reopen(d);
	for (unsigned i = 0; i < 264; i++)
		disk_expect(d, scattered(i), 512, (uint8_t)(i % 255 + 1));
	disk_free_clean(d);
}

/* The file as a crash leaves it: no corruption, and no more leaks than stock. */
static void expect_bounded_leaks(struct disk *d, uint64_t most)
{
	struct image *left = image_copy(d->im);

	assert_int_equal(image_check(left, 0), 0);
	assert_int_equal(left->found.corruptions, 0);
	assert_int_equal(left->found.check_errors, 0);
	assert_in_range(left->found.leaks, 0, most);
	image_free(left);
}

static void a_crash_leaks_no_more_than_three_times_what_was_allocated(void **state)
{
	for (unsigned nr = 1; nr <= 256; nr *= 4) {
		struct disk *d = disk_made(MiB(16), "cluster_size=4k");
		uint64_t before = sim_len(d->im->sim);

		write_scattered(d, 0, nr);
		assert_int_equal(disk_flush(d), 0);
		expect_bounded_leaks(d, nr < 8 ? 0 : 3ull * nr + 24);
		assert_int_equal(disk_close(d), 0);
		/* Given back: what is left are the clusters in use, and tables. */
		assert_in_range(sim_len(d->im->sim), before, before + (nr + 16) * CLUSTER);
		disk_free_clean(d);
	}
}

/*
 * Nobody waits for a sync with cache=unsafe, so there is nothing to save one with. The file only ever grows: XFS and btrfs begin to
 * write out a file that was cut when it is closed, and the program waits.
 */
static void without_flushes_the_file_is_no_longer_than_what_is_in_it(void **state)
{
	struct disk *d = disk_made(MiB(16), "cluster_size=4k");
	uint64_t len;

	assert_int_equal(disk_close(d), 0);
	assert_int_equal(disk_open(d, NODE_WRITABLE | NODE_NO_FLUSH), 0);
	write_scattered(d, 0, 256);
	assert_int_equal(disk_flush(d), 0);
	len = sim_len(d->im->sim);
	assert_int_equal(disk_close(d), 0);
	assert_int_equal(sim_len(d->im->sim), len);
	disk_reopen(d);
	for (unsigned i = 0; i < 256; i++)
		disk_expect(d, scattered(i), 512, (uint8_t)(i % 255 + 1));
	(void)state;
	disk_free_clean(d);
}

static void write_run(struct disk *d, uint64_t from, uint64_t to)
{
	for (uint64_t off = from; off < to; off += 1024)
		assert_int_equal(disk_write(d, off, 1024, 0x5a), 0);
}

static void a_run_finds_its_clusters_linked_and_they_read_as_zeroes(void **state)
{
	struct disk *d = disk_made(MiB(16), "cluster_size=4k");
	struct extent e;
	uint64_t before;

	write_run(d, 0, MiB(1));
	assert_int_equal(disk_flush(d), 0);
	write_run(d, MiB(1), MiB(2));
	e = disk_map(d, MiB(2) + CLUSTER, CLUSTER);
	assert_int_equal(e.kind, EXTENT_DATA);
	assert_true(e.flags & EXTENT_INPLACE);
	disk_expect(d, MiB(2), MiB(14), 0);
	/* A flush now and then, and hardly any of them has metadata to write. */
	before = syncs(d);
	for (uint64_t off = MiB(2); off < MiB(3); off += KiB(16)) {
		write_run(d, off, off + KiB(16));
		assert_int_equal(disk_flush(d), 0);
	}
	assert_in_range(syncs(d) - before, 0, 64 / 8);
	expect_bounded_leaks(d, 3 * MiB(3) / CLUSTER);
	disk_reopen(d);
	disk_expect(d, 0, MiB(3), 0x5a);
	disk_expect(d, MiB(3), MiB(13), 0);
	disk_free_clean(d);
}

static void expect_nothing_ahead(struct disk *d)
{
	write_run(d, 0, MiB(2));
	assert_int_equal(disk_flush(d), 0);
	write_run(d, MiB(2), MiB(3));
	for (uint64_t off = MiB(3); off < MiB(4); off += CLUSTER)
		assert_int_equal(disk_map(d, off, CLUSTER).kind, EXTENT_ABSENT);
}

static void nothing_is_linked_ahead_when_the_option_says_so_or_a_backing_image_would_show(void **state)
{
	struct disk *d = disk_made(MiB(16), "cluster_size=4k");

	disk_close(d);
	d->options = "map-ahead=off";
	disk_reopen(d);
	expect_nothing_ahead(d);
	disk_free_clean(d);

	d = disk_made(MiB(16), "cluster_size=4k");
	disk_close(d);
	d->backing_len = MiB(16);
	disk_reopen(d);
	expect_nothing_ahead(d);
	disk_expect(d, MiB(3), MiB(1), 0xba);
	disk_free_clean(d);
}

/* A discard of what is linked and was never written; a write into the middle of the window by somebody else.
 */
static void windows_are_ordinary_clusters(void **state)
{
	struct disk *d = disk_made(MiB(16), "cluster_size=4k");

	write_run(d, 0, MiB(1));
	assert_int_equal(disk_flush(d), 0);
	write_run(d, MiB(1), MiB(2));
	assert_int_equal(disk_discard(d, MiB(2), KiB(64)), 0);
	assert_int_equal(disk_write(d, MiB(2) + KiB(128), 100, 0x11), 0);
	assert_int_equal(disk_zero(d, MiB(2) + KiB(256), KiB(64), false), 0);
	disk_expect(d, MiB(2), KiB(128), 0);
	disk_expect(d, MiB(2) + KiB(128), 100, 0x11);
	disk_expect(d, MiB(2) + KiB(128) + 100, MiB(1), 0);
	write_run(d, MiB(2), MiB(3));
	disk_expect(d, 0, MiB(3), 0x5a);
	disk_free_clean(d);
}

/* ---- rebuilding ---- */

static void set_dirty(struct disk *d)
{
	image_put(d->im, offsetof(struct qcow2_header_disk, incompatible), 8, QCOW2_INCOMPAT_DIRTY);
}

static void counts_of_an_image_that_was_not_closed_are_made_anew(void **state)
{
	static const char *const made[] = { "cluster_size=4k", "cluster_size=512,refcount_bits=1",
					    "cluster_size=64k,refcount_bits=64" };

	for (unsigned i = 0; i < ARRAY_LEN(made); i++) {
		struct disk *d = disk_made(MiB(1), made[i]);
		uint64_t host_off[4];

		assert_int_equal(disk_write(d, 0, KiB(300), 0x77), 0);
		for (unsigned j = 0; j < 4; j++)
			host_off[j] = disk_map(d, j * KiB(64), 1).host_off;
		disk_close(d);
		/* As if the writer had been lazy: counts of 0, and one of a cluster that nobody uses. */
		for (unsigned j = 0; j < 4; j++)
			image_set_refcount(d->im, host_off[j], 0);
		image_grow(d->im, 1, 1);
		set_dirty(d);
		disk_reopen(d);
		assert_int_equal(image_get(d->im, offsetof(struct qcow2_header_disk, incompatible), 8), 0);
		disk_expect(d, 0, KiB(300), 0x77);
		assert_int_equal(disk_write(d, KiB(500), KiB(200), 0x88), 0);
		disk_expect(d, 0, KiB(300), 0x77);
		disk_expect(d, KiB(500), KiB(200), 0x88);
		disk_free_clean(d);
	}
}

static void damage_is_not_made_into_counts(void **state)
{
	struct disk *d = disk_made(MiB(1), "cluster_size=4k");

	assert_int_equal(disk_write(d, 0, KiB(64), 0x77), 0);
	disk_close(d);
	/* Two guest clusters in one place, and both may be written there. */
	image_put(d->im, image_l2_entry(d->im, 1), 8, image_get(d->im, image_l2_entry(d->im, 0), 8));
	set_dirty(d);
	assert_int_equal(disk_open(d, NODE_WRITABLE), -EIO);
	assert_non_null(strstr(d->err.message, "not closed cleanly"));
	assert_int_equal(image_get(d->im, offsetof(struct qcow2_header_disk, incompatible), 8),
			 QCOW2_INCOMPAT_DIRTY);
	/* An entry that leads out of the file. */
	image_put(d->im, image_l2_entry(d->im, 1), 8, GiB(1) | QCOW2_COPIED);
	assert_int_equal(disk_open(d, NODE_WRITABLE), -EIO);
	assert_non_null(strstr(d->err.message, "cannot be rebuilt"));
	assert_int_equal(disk_open(d, 0), 0);
	disk_free(d);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_flush_is_one_sync_whatever_was_allocated),
		cmocka_unit_test(a_crash_leaks_no_more_than_three_times_what_was_allocated),
		cmocka_unit_test(without_flushes_the_file_is_no_longer_than_what_is_in_it),
		cmocka_unit_test(a_run_finds_its_clusters_linked_and_they_read_as_zeroes),
		cmocka_unit_test(
			nothing_is_linked_ahead_when_the_option_says_so_or_a_backing_image_would_show),
		cmocka_unit_test(windows_are_ordinary_clusters),
		cmocka_unit_test(counts_of_an_image_that_was_not_closed_are_made_anew),
		cmocka_unit_test(damage_is_not_made_into_counts),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
