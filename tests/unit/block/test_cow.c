/* SPDX-License-Identifier: MIT */
/*
 * unit/block/test_cow.c - writes that need new space: nothing around them is lost, nothing half done is seen
 */
#include "fake.h"

#define CL KiB(64)

/* An overlay of 8 clusters above a base whose byte i is leaf_pattern(i); the base may be shorter. */
static void overlay_open(struct image *top, struct image *base, uint64_t base_len)
{
	uint8_t *bytes = malloc(base_len);

	image_open(base, NULL, CL, base_len, NODE_WRITABLE);
	for (uint64_t i = 0; i < base_len; i++)
		bytes[i] = leaf_pattern(i);
	assert_int_equal(leaf_write(&base->l, 0, bytes, base_len, 0), 0);
	free(bytes);
	image_open(top, base->l.q, CL, 8 * CL, NODE_WRITABLE);
	image_chain(top, base);
}

/* Expects the base's bytes (or zeroes from base_len on), but for [from, to), which is 0xd7. */
static void expect_overlay(struct image *top, uint64_t base_len, uint64_t from, uint64_t to)
{
	uint8_t *bytes = malloc(8 * CL);

	assert_int_equal(io_now(top, REQ_READ, 0, bytes, 8 * CL, 0), 0);
	for (uint64_t i = 0; i < 8 * CL; i++) {
		uint8_t want = i >= from && i < to ? 0xd7 : i < base_len ? leaf_pattern(i) : 0;

		if (bytes[i] != want)
			fail_msg("byte %llu is 0x%02x, not 0x%02x", (unsigned long long)i, bytes[i], want);
	}
	free(bytes);
}

static int write_d7(struct image *top, uint64_t off, uint64_t len)
{
	uint8_t *bytes = malloc(len);
	int ret;

	memset(bytes, 0xd7, len);
	ret = io_now(top, REQ_WRITE, off, bytes, len, 0);
	free(bytes);
	return ret;
}

static void head_and_tail_come_from_the_backing_image(void **state)
{
	static const struct { uint64_t off, len; } writes[] = {
		{ 0, 512 }, { CL - 512, 512 }, { CL + 1024, 4096 }, { 3 * CL - 1, 2 }, { 5, 3 * CL }, { 2 * CL, CL },
		{ 8 * CL - 7, 7 }, { 1, 8 * CL - 2 },
	};
	struct image top, base;

	(void)state;
	for (unsigned i = 0; i < ARRAY_LEN(writes); i++) {
		overlay_open(&top, &base, 8 * CL);
		assert_int_equal(write_d7(&top, writes[i].off, writes[i].len), 0);
		expect_overlay(&top, 8 * CL, writes[i].off, writes[i].off + writes[i].len);
		image_close(&top);
	}
}

static void behind_the_end_of_a_smaller_backing_image_are_zeroes(void **state)
{
	static const uint64_t lens[] = { 512, CL - 512, CL, CL + 1536, 3 * CL + 512 };
	struct image top, base;

	(void)state;
	for (unsigned i = 0; i < ARRAY_LEN(lens); i++) {
		for (unsigned zero = 0; zero < 2; zero++) {
			overlay_open(&top, &base, lens[i]);
			fake_of(top.l.n)->fresh_zero = zero;
			assert_int_equal(write_d7(&top, lens[i] - 100, 200), 0);
			expect_overlay(&top, lens[i], lens[i] - 100, lens[i] + 100);
			image_close(&top);
		}
	}
}

static void whole_clusters_are_not_read_first(void **state)
{
	struct image top, base;

	(void)state;
	overlay_open(&top, &base, 8 * CL);
	assert_int_equal(write_d7(&top, 2 * CL, 3 * CL), 0);
	assert_int_equal(hold_of(base.hold)->nr_reads, 0);
	assert_int_equal(hold_of(top.hold)->nr_writes, 1);
	assert_int_equal(hold_of(top.hold)->bytes_written, 3 * CL);
	image_close(&top);
}

static void space_that_reads_as_zeroes_is_not_filled_with_them(void **state)
{
	struct image img;
	uint8_t byte = 0xd7;

	(void)state;
	image_open(&img, NULL, CL, 8 * CL, NODE_WRITABLE);
	fake_of(img.l.n)->fresh_zero = true;
	assert_int_equal(io_now(&img, REQ_WRITE, CL + 5, &byte, 1, 0), 0);
	assert_int_equal(hold_of(img.hold)->bytes_written, 1);
	leaf_expect(&img.l, CL, 5, 0);
	leaf_expect(&img.l, CL + 5, 1, 0xd7);
	leaf_expect(&img.l, CL + 6, CL - 6, 0);
	image_close(&img);
}

static void allocation_may_come_in_several_runs(void **state)
{
	struct image top, base;

	(void)state;
	overlay_open(&top, &base, 8 * CL);
	fake_of(top.l.n)->alloc_run = 2;
	fake_of(top.l.n)->alloc_gaps = true;
	assert_int_equal(write_d7(&top, 100, 6 * CL + 17), 0);
	assert_int_equal(fake_of(top.l.n)->nr_alloc, 4);
	expect_overlay(&top, 8 * CL, 100, 100 + 6 * CL + 17);
	image_close(&top);
}

/* What a snapshot shares is copied: the old place keeps its bytes. */
static void a_shared_cluster_is_copied_before_it_is_written(void **state)
{
	uint8_t old[CL];
	struct image img;

	(void)state;
	image_open(&img, NULL, CL, 8 * CL, NODE_WRITABLE);
	leaf_fill(&img.l, 0, 2 * CL, 0x21);
	fake_set(img.l.n, 0, EXTENT_DATA, 0, false);
	leaf_fill(&img.l, 512, 512, 0xd7);
	leaf_expect(&img.l, 0, 512, 0x21);
	leaf_expect(&img.l, 512, 512, 0xd7);
	leaf_expect(&img.l, 1024, CL - 1024, 0x21);
	assert_int_equal(leaf_read(&(struct leaf){ .q = img.l.q, .n = img.memory }, 0, old, CL), 0);
	for (unsigned i = 0; i < CL; i++)
		assert_int_equal(old[i], 0x21);
	image_close(&img);
}

static void a_failed_data_write_gives_the_space_back(void **state)
{
	struct image top, base;

	(void)state;
	overlay_open(&top, &base, 8 * CL);
	hold_of(top.hold)->fail_writes = -ENOSPC;
	assert_int_equal(write_d7(&top, 512, 2 * CL), -ENOSPC);
	assert_int_equal(fake_of(top.l.n)->nr_unalloc, 1);
	assert_int_equal(fake_of(top.l.n)->nr_link, 0);
	expect_overlay(&top, 8 * CL, 0, 0);
	hold_of(top.hold)->fail_writes = 0;
	assert_int_equal(write_d7(&top, 512, 2 * CL), 0);
	expect_overlay(&top, 8 * CL, 512, 512 + 2 * CL);
	image_close(&top);
}

static void failing_to_link_or_to_allocate_leaves_the_old_content(void **state)
{
	struct image top, base;

	(void)state;
	overlay_open(&top, &base, 8 * CL);
	fake_of(top.l.n)->link_error = -EIO;
	assert_int_equal(write_d7(&top, 512, 512), -EIO);
	assert_int_equal(fake_of(top.l.n)->nr_unalloc, 1);
	expect_overlay(&top, 8 * CL, 0, 0);
	fake_of(top.l.n)->link_error = 0;
	fake_of(top.l.n)->alloc_error = -ENOSPC;
	assert_int_equal(write_d7(&top, 512, 512), -ENOSPC);
	assert_int_equal(fake_of(top.l.n)->nr_unalloc, 1);
	expect_overlay(&top, 8 * CL, 0, 0);
	image_close(&top);
}

/* Sixteen writers to parts of two clusters that nobody has yet: each allocates, or waits for the one who does. */
static void concurrent_writers_of_one_cluster_lose_nothing(void **state)
{
	static uint8_t part[16][CL / 8];
	struct image top, base;
	struct io io[16];

	(void)state;
	overlay_open(&top, &base, 8 * CL);
	memset(part, 0xd7, sizeof(part));
	hold_of(top.hold)->writes = hold_of(base.hold)->reads = true;
	for (unsigned i = 0; i < 16; i++)
		io_start(&io[i], top.l.n, top.l.q, REQ_WRITE, CL + (i * 7 % 16) * (CL / 8), part[i], CL / 8, 0);
	for (unsigned i = 0; i < 1000; i++) {
		queue_turn(top.l.q, 0);
		hold_release(i & 1 ? top.hold : base.hold);
	}
	for (unsigned i = 0; i < 16; i++)
		assert_int_equal(io_wait(&io[i]), 0);
	assert_int_equal(fake_of(top.l.n)->nr_alloc, 2);
	hold_of(base.hold)->reads = false;
	expect_overlay(&top, 8 * CL, CL, 3 * CL);
	image_close(&top);
}

/* Until the entry is linked a reader sees the old bytes, all of them. */
static void a_reader_meanwhile_sees_the_old_bytes(void **state)
{
	static uint8_t buf[CL];
	struct image top, base;
	struct io io;

	(void)state;
	overlay_open(&top, &base, 8 * CL);
	hold_of(top.hold)->writes = true;
	memset(buf, 0xd7, CL);
	io_start(&io, top.l.n, top.l.q, REQ_WRITE, CL, buf, CL, 0);
	turns(top.l.q, 20);
	assert_false(io.done);
	expect_overlay(&top, 8 * CL, 0, 0);
	while (hold_release(top.hold))
		;
	assert_int_equal(io_wait(&io), 0);
	expect_overlay(&top, 8 * CL, CL, 2 * CL);
	image_close(&top);
}

/* ---- discard and write-zeroes ---- */

static void zeroing_changes_whole_clusters_and_writes_the_edges(void **state)
{
	struct image top, base;

	(void)state;
	overlay_open(&top, &base, 8 * CL);
	leaf_fill(&top.l, 0, 8 * CL, 0xd7);
	assert_int_equal(io_now(&top, REQ_ZERO, 3 * CL - 100, NULL, 2 * CL + 200, 0), 0);
	assert_int_equal(fake_of(top.l.n)->nr_unlink, 1);
	leaf_expect(&top.l, 0, 3 * CL - 100, 0xd7);
	leaf_expect(&top.l, 3 * CL - 100, 2 * CL + 200, 0);
	leaf_expect(&top.l, 5 * CL + 100, 3 * CL - 100, 0xd7);
	assert_int_equal(fake_kind(top.l.n, 3), EXTENT_ZERO);
	assert_int_equal(fake_kind(top.l.n, 2), EXTENT_DATA);
	image_close(&top);
}

static void zeroing_part_of_an_absent_cluster_keeps_the_rest_of_the_base(void **state)
{
	uint8_t bytes[CL];
	struct image top, base;

	(void)state;
	overlay_open(&top, &base, 8 * CL);
	assert_int_equal(io_now(&top, REQ_ZERO, CL + 512, NULL, 1024, REQ_MAY_UNMAP), 0);
	assert_int_equal(io_now(&top, REQ_READ, CL, bytes, CL, 0), 0);
	for (uint64_t i = 0; i < CL; i++)
		assert_int_equal(bytes[i], i >= 512 && i < 1536 ? 0 : leaf_pattern(CL + i));
	image_close(&top);
}

/* Discarding never uncovers what the backing image holds, and leaves parts of clusters alone. */
static void discard_does_not_uncover_the_base(void **state)
{
	struct image top, base;

	(void)state;
	overlay_open(&top, &base, 8 * CL);
	leaf_fill(&top.l, 0, 8 * CL, 0xd7);
	assert_int_equal(io_now(&top, REQ_DISCARD, CL + 1, NULL, 2 * CL - 1, 0), 0);
	leaf_expect(&top.l, 0, 2 * CL, 0xd7);
	leaf_expect(&top.l, 2 * CL, CL, 0);
	assert_int_equal(io_now(&top, REQ_DISCARD, 5 * CL + 1, NULL, CL - 2, 0), 0);
	leaf_expect(&top.l, 3 * CL, 5 * CL, 0xd7);
	image_close(&top);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(head_and_tail_come_from_the_backing_image),
		cmocka_unit_test(behind_the_end_of_a_smaller_backing_image_are_zeroes),
		cmocka_unit_test(whole_clusters_are_not_read_first),
		cmocka_unit_test(space_that_reads_as_zeroes_is_not_filled_with_them),
		cmocka_unit_test(allocation_may_come_in_several_runs),
		cmocka_unit_test(a_shared_cluster_is_copied_before_it_is_written),
		cmocka_unit_test(a_failed_data_write_gives_the_space_back),
		cmocka_unit_test(failing_to_link_or_to_allocate_leaves_the_old_content),
		cmocka_unit_test(concurrent_writers_of_one_cluster_lose_nothing),
		cmocka_unit_test(a_reader_meanwhile_sees_the_old_bytes),
		cmocka_unit_test(zeroing_changes_whole_clusters_and_writes_the_edges),
		cmocka_unit_test(zeroing_part_of_an_absent_cluster_keeps_the_rest_of_the_base),
		cmocka_unit_test(discard_does_not_uncover_the_base),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
