/* SPDX-License-Identifier: MIT */
/*
 * unit/format/qcow2/test_qcow2_snapshot.c - the snapshot table: what is read, and every length that is refused
 */
#include "image.h"

#define TABLE 4096ull

/* A file with nothing but a snapshot table at TABLE. */
static struct image *file_of(size_t len)
{
	struct image *im = image_new();

	assert_int_equal(sim_truncate(im->sim, TABLE + len), 0);
	return im;
}

/* Writes an entry; returns the offset of the next. */
static uint64_t put_entry(struct image *im, uint64_t off, uint32_t extra_len, const char *id, const char *name)
{
	image_put(im, off, 8, 0x50000);
	image_put(im, off + 8, 4, 7);
	image_put(im, off + 12, 2, strlen(id));
	image_put(im, off + 14, 2, strlen(name));
	image_put(im, off + 16, 4, 1700000000);
	image_put(im, off + 20, 4, 123456789);
	image_put(im, off + 24, 8, 5000000001);
	image_put(im, off + 32, 4, 4096);
	image_put(im, off + 36, 4, extra_len);
	if (extra_len >= 8)
		image_put(im, off + 40, 8, 1ull << 33);
	if (extra_len >= 16)
		image_put(im, off + 48, 8, MiB(7));
	if (extra_len >= 24)
		image_put(im, off + 56, 8, 42);
	off += 40 + extra_len;
	sim_poke(im->sim, off, id, strlen(id));
	sim_poke(im->sim, off + strlen(id), name, strlen(name));
	off += strlen(id) + strlen(name);
	return TABLE + align_up(off - TABLE, 8);
}

static struct qcow2_header header_of(uint32_t nr)
{
	return (struct qcow2_header){ .version = 3, .cluster_bits = 12, .disk_len = MiB(10), .nr_snapshots = nr,
				      .snapshots_off = TABLE };
}

static void every_field_is_read(void **state)
{
	struct image *im = file_of(1000);
	struct qcow2_header h = header_of(3);
	struct qcow2_snapshot *list;
	uint64_t len, off;

	(void)state;
	off = put_entry(im, TABLE, 24, "1", "first");
	off = put_entry(im, off, 16, "22", "");
	off = put_entry(im, off, 0, "", "third one");
	assert_int_equal(image_snapshots(im, &h, &list, &len), 0);
	assert_int_equal(len, off - TABLE);
	assert_string_equal(list[0].id, "1");
	assert_string_equal(list[0].name, "first");
	assert_int_equal(list[0].l1_off, 0x50000);
	assert_int_equal(list[0].l1_entries, 7);
	assert_int_equal(list[0].date_s, 1700000000);
	assert_int_equal(list[0].date_ns, 123456789);
	assert_int_equal(list[0].vm_clock_ns, 5000000001);
	assert_int_equal(list[0].vm_state_len, 1ull << 33);
	assert_int_equal(list[0].disk_len, MiB(7));
	assert_int_equal(list[0].icount, 42);
	assert_string_equal(list[1].id, "22");
	assert_string_equal(list[1].name, "");
	assert_int_equal(list[1].disk_len, MiB(7));
	assert_true(list[1].icount == UINT64_MAX);
	assert_string_equal(list[2].name, "third one");
	assert_int_equal(list[2].vm_state_len, 4096);
	assert_int_equal(list[2].disk_len, MiB(10)); /* it does not say */
	snapshots_free(list, 3);
	image_free(im);
}

/* The table may end with the last byte of the last name. */
static void the_last_padding_may_be_missing(void **state)
{
	struct image *im = file_of(1000);
	struct qcow2_header h = header_of(1);
	struct qcow2_snapshot *list;
	uint64_t len;

	(void)state;
	put_entry(im, TABLE, 16, "1", "x");
	assert_int_equal(sim_truncate(im->sim, TABLE + 58), 0);
	assert_int_equal(image_snapshots(im, &h, &list, &len), 0);
	assert_int_equal(len, 58);
	snapshots_free(list, 1);
	assert_int_equal(sim_truncate(im->sim, TABLE + 57), 0);
	assert_int_equal(image_snapshots(im, &h, &list, &len), -EINVAL);
	image_free(im);
}

static void no_snapshots_need_no_table(void **state)
{
	struct image *im = file_of(0);
	struct qcow2_header h = header_of(0);
	struct qcow2_snapshot *list;
	uint64_t len;

	(void)state;
	h.snapshots_off = UINT64_MAX;
	assert_int_equal(image_snapshots(im, &h, &list, &len), 0);
	assert_int_equal(len, 0);
	snapshots_free(list, 0);
	image_free(im);
}

static void expect_refused(struct image *im, const struct qcow2_header *h, int code)
{
	struct qcow2_snapshot *list;
	uint64_t len;

	assert_int_equal(image_snapshots(im, h, &list, &len), code);
	assert_int_equal(im->err.code, code);
	assert_non_null(strstr(im->err.message, "snapshot"));
}

static void lengths_are_bounded(void **state)
{
	struct image *im = file_of(100000);
	struct qcow2_header h = header_of(1);

	(void)state;
	put_entry(im, TABLE, 16, "1", "x");
	image_put(im, TABLE + 36, 4, 1025); /* extra data */
	expect_refused(im, &h, -EFBIG);
	image_put(im, TABLE + 36, 4, 0xffffffff);
	expect_refused(im, &h, -EFBIG);
	image_put(im, TABLE + 36, 4, 16);
	image_put(im, TABLE + 12, 2, 65535); /* id and name: more than the file has */
	image_put(im, TABLE + 14, 2, 65535);
	expect_refused(im, &h, -EINVAL);
	h.nr_snapshots = QCOW2_SNAPSHOTS_MAX + 1;
	expect_refused(im, &h, -EFBIG);
	h.nr_snapshots = 1;
	h.snapshots_off = sim_len(im->sim) + 1;
	expect_refused(im, &h, -EINVAL);
	h.snapshots_off = UINT64_MAX - 8;
	expect_refused(im, &h, -EINVAL);
	h.snapshots_off = sim_len(im->sim) - 8;
	expect_refused(im, &h, -EINVAL);
	image_free(im);
}

/* Entries of the greatest length: the table passes its 64 MiB before its 65536 entries. */
static void the_whole_table_is_bounded(void **state)
{
	const uint64_t entry_len = 40 + 1024 + 65535 + 1;
	struct image *im = file_of(MiB(66));
	struct qcow2_header h = header_of(1020);

	(void)state;
	for (uint64_t off = TABLE; off + entry_len < TABLE + MiB(66); off = TABLE + align_up(off + entry_len - TABLE, 8)) {
		image_put(im, off + 12, 2, 1);
		image_put(im, off + 14, 2, 65535);
		image_put(im, off + 36, 4, 1024);
	}
	expect_refused(im, &h, -EFBIG);
	assert_in_range(sim_nr_ops(im->sim), 1, 600); /* read in pieces, not entry by entry */
	image_free(im);
}

static void an_unreadable_table_is_an_error(void **state)
{
	struct image *im = file_of(1000);
	struct qcow2_header h = header_of(1);

	(void)state;
	put_entry(im, TABLE, 16, "1", "x");
	im->fail_nr = 0;
	expect_refused(im, &h, -EIO);
	image_free(im);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_field_is_read),
		cmocka_unit_test(the_last_padding_may_be_missing),
		cmocka_unit_test(no_snapshots_need_no_table),
		cmocka_unit_test(lengths_are_bounded),
		cmocka_unit_test(the_whole_table_is_bounded),
		cmocka_unit_test(an_unreadable_table_is_an_error),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
