/* SPDX-License-Identifier: MIT */
/*
 * unit/format/qcow2/test_qcow2_settings.c - options of an image that is opened: what they are taken for, and that they are kept to
 */
#include "disk.h"

#include "format/cache.h"
#include "format/qcow2/refcount.h"
#include "../../../lib/seed.h"

static uint64_t bytes_max(const struct cache *c)
{
	return (uint64_t)c->max * c->piece_len;
}

/* cache-size means what it means elsewhere: all L2 tables first, but four clusters of refcounts before them. */
static void the_caches_share_what_is_given(void **state)
{
	static const struct {
		const char *options;
		uint64_t l2, counts;
	} cases[] = {
		{ NULL, MiB(32), MiB(4) },
		{ "cache-size=1M", KiB(768), KiB(256) },
		{ "cache-size=1M,l2-cache-size=512k", KiB(512), KiB(512) },
		{ "cache-size=1M,refcount-cache-size=128k", KiB(896), KiB(128) },
		{ "l2-cache-size=128k,refcount-cache-size=64k", KiB(128), KiB(64) },
		{ "cache-size=0", KiB(16), KiB(16) }, /* four entries each, whatever is asked for */
		{ "l2-cache-size=1,refcount-cache-size=1", KiB(16), KiB(16) },
		{ "l2-cache-size=64k,l2-cache-entry-size=64k", KiB(256), MiB(4) },
		{ "l2-cache-size=64k,l2-cache-entry-size=512", KiB(64), MiB(4) },
		{ "l2-cache-size=200T", 0, MiB(4) },
	};
	struct disk *d = disk_made(GiB(64), "cluster_size=64k");

	disk_close(d);
	for (unsigned i = 0; i < ARRAY_LEN(cases); i++) {
		d->options = cases[i].options;
		if (disk_open(d, NODE_WRITABLE) < 0)
			fail_msg("%s: %s", d->options, d->err.message);
		if (cases[i].l2 && bytes_max(disk_state(d)->l2) != cases[i].l2)
			fail_msg("%s: %llu bytes of L2 tables", d->options, (unsigned long long)bytes_max(disk_state(d)->l2));
		if (bytes_max(disk_state(d)->refcounts->cache) != cases[i].counts)
			fail_msg("%s: %llu bytes of refcounts", d->options,
				 (unsigned long long)bytes_max(disk_state(d)->refcounts->cache));
		disk_close(d);
	}
	/* A disk of 64 GiB has 8 MiB of L2 tables: what is more goes to the refcounts. */
	d->options = "cache-size=16M";
	assert_int_equal(disk_open(d, NODE_WRITABLE), 0);
	assert_true(bytes_max(disk_state(d)->l2) == MiB(8) && bytes_max(disk_state(d)->refcounts->cache) == MiB(8));
	disk_free(d);
}

static void what_makes_no_sense_is_refused_by_name(void **state)
{
	static const struct {
		const char *options, *words;
	} cases[] = {
		{ "refcount-cache-size=many", "refcount-cache-size" },
		{ "cache-size=1M,l2-cache-size=2M", "cache-size" },
		{ "cache-size=1M,refcount-cache-size=2M", "cache-size" },
		{ "cache-size=1M,l2-cache-size=512k,refcount-cache-size=512k", "leave one out" },
		{ "refcount-cache-size=1000T", "refcount-cache-size" },
		{ "l2-cache-entry-size=256", "l2-cache-entry-size" },
		{ "l2-cache-entry-size=3000", "l2-cache-entry-size" },
		{ "l2-cache-entry-size=128k", "65536" },
		{ "l2-cache-entry-size=0", "l2-cache-entry-size" },
		{ "cache-clean-interval=4294967296", "cache-clean-interval" },
		{ "cache-clean-interval=-1", "cache-clean-interval" },
		{ "overlap-check=some", "none, constant, cached, all" },
		{ "overlap-check.template=", "overlap-check.template" },
		{ "overlap-check=all,overlap-check.template=none", "not the same" },
		{ "overlap-check.main-header=maybe", "overlap-check.main-header" },
	};
	struct disk *d = disk_made(MiB(1), "cluster_size=64k");

	disk_close(d);
	for (unsigned i = 0; i < ARRAY_LEN(cases); i++) {
		d->options = cases[i].options;
		if (disk_open(d, 0) != -EINVAL)
			fail_msg("%s was taken", d->options);
		if (!strstr(d->err.message, cases[i].words))
			fail_msg("%s: %s", d->options, d->err.message);
	}
	disk_free(d);
}

static void expect_bounded(struct disk *d, const struct cache *c)
{
	if (c->nr_pieces > c->max)
		fail_msg("%s: %u pieces, at most %u", d->options, c->nr_pieces, c->max);
	/* A piece more or less of each that is dropped. */
	if (c->nr_rows > c->max_rows + 1)
		fail_msg("%s: %u rows, at most %u", d->options, c->nr_rows, c->max_rows);
}

/* Of tables all over the disk, in any order, no more is in memory than was said; and all of it reads as it was written. */
static void memory_is_bounded(void **state)
{
	static const char *const options[] = { "cache-size=64k", "cache-size=64k,l2-cache-entry-size=512", "cache-size=0",
					       "l2-cache-size=32k,l2-cache-entry-size=4k,refcount-cache-size=16k" };
	struct disk *d = disk_made(MiB(512), "cluster_size=4k");
	uint64_t s = seed_of_run(), step = MiB(1);

	for (uint64_t off = 0; off < MiB(512); off += step)
		assert_int_equal(disk_write(d, off, 512, (uint8_t)(1 + off / step % 255)), 0);
	disk_close(d);
	for (unsigned i = 0; i < ARRAY_LEN(options); i++) {
		d->options = options[i];
		assert_int_equal(disk_open(d, NODE_WRITABLE), 0);
		for (unsigned turn = 0; turn < 600; turn++) {
			uint64_t off;

			s = s * 6364136223846793005ull + 1442695040888963407ull;
			off = (s >> 33) % 512 * step;
			if (turn % 3 == 0)
				assert_int_equal(disk_write(d, off, 512, (uint8_t)(1 + off / step % 255)), 0);
			disk_expect(d, off, 512, (uint8_t)(1 + off / step % 255));
			expect_bounded(d, disk_state(d)->l2);
			expect_bounded(d, disk_state(d)->refcounts->cache);
		}
		disk_close(d);
	}
	d->options = NULL;
	disk_reopen(d);
	disk_free_clean(d);
}

/* What is used goes on being there; what is not goes. Ends when it has gone, not at a time. */
static void what_nobody_uses_leaves_memory(void **state)
{
	struct disk *d = disk_made(MiB(512), "cluster_size=4k");
	const struct cache *c;
	struct row *row;

	for (uint64_t off = 0; off < MiB(512); off += MiB(8))
		assert_int_equal(disk_write(d, off, 512, 1), 0);
	disk_close(d);
	d->options = "cache-clean-interval=1";
	assert_int_equal(disk_open(d, NODE_WRITABLE), 0);
	c = disk_state(d)->l2;
	for (uint64_t off = 0; off < MiB(512); off += MiB(8))
		disk_expect(d, off, 512, 1);
	assert_int_equal(c->nr_pieces, 64);
	while (c->nr_pieces > 1) {
		disk_expect(d, 0, 512, 1);
		assert_non_null(cache_find(disk_state(d)->l2, 0, 0, &row));
		queue_turn(d->im->q, 20000000);
	}
	assert_int_equal(c->nr_rows, 1);
	while (c->nr_pieces || disk_state(d)->refcounts->cache->nr_pieces)
		queue_turn(d->im->q, 100000000);
	assert_int_equal(c->nr_rows, 0);
	/* And nobody is woken for nothing. */
	assert_false(disk_state(d)->cleaner->timer.armed);
	for (uint64_t off = 0; off < MiB(512); off += MiB(8))
		disk_expect(d, off, 512, 1);
	assert_true(disk_state(d)->cleaner->timer.armed);
	disk_free_clean(d);
}

static void with_interval_0_all_stays(void **state)
{
	struct disk *d = disk_made(MiB(4), "cluster_size=4k");

	assert_int_equal(disk_write(d, 0, 512, 1), 0);
	disk_close(d);
	d->options = "cache-clean-interval=0";
	assert_int_equal(disk_open(d, NODE_WRITABLE), 0);
	disk_expect(d, 0, 512, 1);
	assert_int_equal(disk_state(d)->l2->nr_pieces, 1);
	assert_false(disk_state(d)->cleaner->timer.armed);
	disk_free_clean(d);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_caches_share_what_is_given),
		cmocka_unit_test(what_makes_no_sense_is_refused_by_name),
		cmocka_unit_test(memory_is_bounded),
		cmocka_unit_test(what_nobody_uses_leaves_memory),
		cmocka_unit_test(with_interval_0_all_stays),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
