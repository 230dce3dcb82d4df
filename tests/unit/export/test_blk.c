/* SPDX-License-Identifier: MIT */
/*
 * test_blk.c - virtio-blk requests: any layout, every type, every limit
 *
 * node_submit() and blk_finished() are ours: the disk below remembers what it was asked, and answers when
 * told.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "base/iov.h"
#include "export/vhost-user-blk/blk.h"

#define DISK_LEN MiB(64)

enum {
	T_IN = 0,
	T_OUT = 1,
	T_SCSI = 2,
	T_FLUSH = 4,
	T_FLUSH_OUT = 5,
	T_ID = 8,
	T_DISCARD = 11,
	T_ZEROES = 13
};

/* What the disk was asked, and what the ring was told. */
static struct {
	unsigned nr;
	struct req last;
	uint64_t offs[BLK_RANGES_MAX];
	struct req *held;
	bool hold; /* the answer comes later */
	int ret;
} disk_saw;

static unsigned nr_finished;
static uint32_t told_written;

static struct node top;
static struct blk_disk disk = { .top = &top, .id = "0123456789abcdefghij" };
static struct blk_ctx ctx;
static struct blk_slot slot;
static struct vring_chain chain;

static uint8_t header[16], data[BLK_RANGES_MAX * 16 + 64], status;

void node_submit(struct node *n, struct req *r)
{
	assert_ptr_equal(n, &top);
	assert_true(r->op == REQ_FLUSH || r->off + r->len >= r->off);
	disk_saw.last = *r;
	if (disk_saw.nr < BLK_RANGES_MAX)
		disk_saw.offs[disk_saw.nr] = r->off;
	disk_saw.nr++;
	r->op = REQ_FLUSH; /* a layer may change what it was given: the request must not care */
	if (disk_saw.hold)
		disk_saw.held = r;
	else
		r->done(r, disk_saw.ret);
}

void blk_finished(struct blk_slot *s, uint32_t written)
{
	assert_ptr_equal(s, &slot);
	nr_finished++;
	told_written = written;
}

static int setup(void **state)
{
	static struct queue *q;
	struct queue_opts opts = { .virtual_time = true };

	(void)state;
	if (!q && queue_new(&q, &opts, NULL) < 0)
		return -1;
	memset(&disk_saw, 0, sizeof(disk_saw));
	memset(&slot, 0, sizeof(slot));
	memset(&chain, 0, sizeof(chain));
	nr_finished = 0;
	told_written = 0xdead;
	status = 0xff;
	top.len = DISK_LEN;
	disk.writable = true;
	ctx = (struct blk_ctx){ .disk = &disk, .q = q, .features = blk_features(&disk) };
	slot.ctx = &ctx;
	return 0;
}

static void make_header(uint32_t type, uint64_t sector)
{
	le32 t = le32_put(type);
	le64 s = le64_put(sector);

	memset(header, 0, sizeof(header));
	memcpy(header, &t, 4);
	memcpy(header + 8, &s, 8);
}

static void add_out(void *p, size_t len)
{
	assert_int_equal(chain.nr_in, 0);
	slot.iov[chain.nr_out++] = (struct iovec){ p, len };
	chain.out_len += (uint32_t)len;
}

static void add_in(void *p, size_t len)
{
	slot.iov[chain.nr_out + chain.nr_in++] = (struct iovec){ p, len };
	chain.in_len += (uint32_t)len;
}

static void begin(void)
{
	assert_null(blk_begin(&slot, &chain));
}

/* The usual layout: header, data in one piece in one direction, status. */
static void run(uint32_t type, uint64_t sector, size_t out_len, size_t in_len)
{
	memset(&chain, 0, sizeof(chain));
	nr_finished = 0;
	disk_saw.nr = 0;
	status = 0xff;
	make_header(type, sector);
	add_out(header, 16);
	if (out_len)
		add_out(data, out_len);
	if (in_len)
		add_in(data, in_len);
	add_in(&status, 1);
	begin();
}

static void expect_done(uint8_t want, uint32_t written)
{
	assert_int_equal(nr_finished, 1);
	assert_int_equal(status, want);
	assert_int_equal(told_written, written);
}

/* ---- read and write ---- */

static void a_read_goes_to_its_place(void **state)
{
	(void)state;
	run(T_IN, 100, 0, 4096);
	expect_done(BLK_OK, 4097);
	assert_int_equal(disk_saw.nr, 1);
	assert_int_equal(disk_saw.last.op, REQ_READ);
	assert_int_equal(disk_saw.last.off, 51200);
	assert_int_equal(disk_saw.last.len, 4096);
	assert_int_equal(disk_saw.last.nr_iov, 1);
	assert_ptr_equal(disk_saw.last.iov[0].iov_base, data);
	assert_int_equal(disk_saw.last.iov[0].iov_len, 4096);
}

static void a_write_goes_to_its_place(void **state)
{
	(void)state;
	run(T_OUT, 7, 512, 0);
	expect_done(BLK_OK, 1);
	assert_int_equal(disk_saw.last.op, REQ_WRITE);
	assert_int_equal(disk_saw.last.off, 3584);
	assert_int_equal(disk_saw.last.flags, 0);
	assert_int_equal(iov_len(disk_saw.last.iov, disk_saw.last.nr_iov), 512);
}

/* Every way to cut header, data and status into two or three pieces gives the same request. */
static void the_layout_does_not_matter(void **state)
{
	uint8_t out[16 + 512], in[512 + 1];

	(void)state;
	make_header(T_OUT, 3);
	memcpy(out, header, 16);
	for (size_t a = 1; a < sizeof(out); a++) {
		size_t b = a + (sizeof(out) - a) / 2;

		setup(NULL);
		add_out(out, a);
		add_out(out + a, b - a);
		if (b < sizeof(out))
			add_out(out + b, sizeof(out) - b);
		add_in(&status, 1);
		if (b == a) { /* an empty buffer never gets here */
			slot.iov[1] = slot.iov[2];
			slot.iov[2] = slot.iov[3];
			chain.nr_out--;
		}
		begin();
		expect_done(BLK_OK, 1);
		assert_int_equal(disk_saw.last.op, REQ_WRITE);
		assert_int_equal(disk_saw.last.off, 1536);
		assert_int_equal(iov_len(disk_saw.last.iov, disk_saw.last.nr_iov), 512);
		assert_true(disk_saw.last.iov[0].iov_base == out + 16 ||
			    disk_saw.last.iov[0].iov_base == out + a);
	}
	make_header(T_IN, 3);
	for (size_t a = 1; a <= sizeof(in) - 1; a++) {
		setup(NULL);
		memset(in, 0xff, sizeof(in));
		for (unsigned i = 0; i < 16; i++)
			add_out(header + i, 1); /* the header byte by byte */
		add_in(in, a);
		add_in(in + a, sizeof(in) - a);
		begin();
		assert_int_equal(nr_finished, 1);
		assert_int_equal(in[512], BLK_OK);
		assert_int_equal(told_written, 513);
		assert_int_equal(iov_len(disk_saw.last.iov, disk_saw.last.nr_iov), 512);
		assert_int_equal(disk_saw.last.nr_iov, a < 512 ? 2 : 1);
	}
}

static void lengths_that_are_no_sectors_are_errors(void **state)
{
	static const size_t lens[] = { 1, 511, 513, 1023 };

	(void)state;
	for (unsigned i = 0; i < ARRAY_LEN(lens); i++) {
		run(T_OUT, 0, lens[i], 0);
		expect_done(BLK_IOERR, 1);
		run(T_IN, 0, 0, lens[i]);
		expect_done(BLK_IOERR, 0);
		assert_int_equal(disk_saw.nr, 0);
	}
}

static void sectors_that_overflow_are_errors(void **state)
{
	static const uint64_t sectors[] = { UINT64_MAX, UINT64_MAX >> 9, 1ull << 55, (1ull << 54),
					    (1ull << 54) - 1 };

	(void)state;
	for (unsigned i = 0; i < ARRAY_LEN(sectors); i++) {
		run(T_IN, sectors[i], 0, 512);
		expect_done(BLK_IOERR, 0);
		run(T_OUT, sectors[i], 512, 0);
		expect_done(BLK_IOERR, 1);
		assert_int_equal(disk_saw.nr, 0);
	}
	/* Fits in 63 bits: whether it is on the disk is for the disk to say. */
	run(T_IN, (1ull << 54) - 2, 0, 512);
	assert_int_equal(disk_saw.nr, 1);
}

static void nothing_to_read_or_write_is_well(void **state)
{
	(void)state;
	run(T_IN, 0, 0, 0);
	expect_done(BLK_OK, 1);
	run(T_OUT, 0, 0, 0);
	expect_done(BLK_OK, 1);
	assert_int_equal(disk_saw.nr, 0);
}

static void data_in_the_wrong_direction_is_an_error(void **state)
{
	(void)state;
	run(T_IN, 0, 512, 512);
	expect_done(BLK_IOERR, 0);
	run(T_OUT, 0, 512, 512);
	expect_done(BLK_IOERR, 0);
	assert_int_equal(disk_saw.nr, 0);
}

static void a_failed_read_tells_of_no_written_byte(void **state)
{
	(void)state;
	disk_saw.ret = -EIO;
	run(T_IN, 0, 0, 512);
	expect_done(BLK_IOERR, 0);
	disk_saw.ret = -ENOSPC;
	run(T_OUT, 0, 512, 0);
	expect_done(BLK_IOERR, 1);
	disk_saw.ret = -ENOTSUP; /* a compressed cluster, say: reads as such are supported */
	run(T_IN, 0, 0, 512);
	expect_done(BLK_IOERR, 0);
}

static void a_driver_that_cannot_flush_writes_through(void **state)
{
	le32 sectors = le32_put(8);

	(void)state;
	ctx.write_flags = REQ_FUA;
	run(T_OUT, 0, 512, 0);
	assert_int_equal(disk_saw.last.flags, REQ_FUA);
	run(T_IN, 0, 0, 512);
	assert_int_equal(disk_saw.last.flags, 0);
	memset(data, 0, 16);
	memcpy(data + 8, &sectors, 4);
	run(T_ZEROES, 0, 16, 0);
	assert_int_equal(disk_saw.last.flags, REQ_FUA);
	run(T_DISCARD, 0, 16, 0);
	assert_int_equal(disk_saw.last.flags, 0);
}

/* ---- flush, id, unknown ---- */

static void a_flush_is_a_flush(void **state)
{
	(void)state;
	run(T_FLUSH, 0, 0, 0);
	expect_done(BLK_OK, 1);
	assert_int_equal(disk_saw.last.op, REQ_FLUSH);
	disk_saw.ret = -EIO;
	run(T_FLUSH, 0, 0, 0);
	expect_done(BLK_IOERR, 1);
	/* Data that nobody asked for is not written, so nothing is claimed to be. */
	disk_saw.ret = 0;
	run(T_FLUSH, 0, 0, 100);
	expect_done(BLK_OK, 0);
}

static void the_id_is_twenty_bytes(void **state)
{
	(void)state;
	memset(data, 0xee, 64);
	run(T_ID, 0, 0, 20);
	expect_done(BLK_OK, 21);
	assert_memory_equal(data, "0123456789abcdefghij", 20);
	assert_int_equal(data[20], 0xee);
	run(T_ID, 0, 0, 19);
	expect_done(BLK_IOERR, 0);
	run(T_ID, 0, 0, 0);
	expect_done(BLK_IOERR, 1);
	run(T_ID, 0, 0, 40);
	expect_done(BLK_OK, 20);
	assert_int_equal(data[20], 0xee);
}

static void other_types_are_unsupported(void **state)
{
	static const uint32_t types[] = { T_SCSI, 3,  T_FLUSH_OUT, 6,  10,	   12,
					  14,	  15, 16,	   26, 0x80000000, UINT32_MAX };

	(void)state;
	for (unsigned i = 0; i < ARRAY_LEN(types); i++) {
		run(types[i], 0, 0, 512);
		expect_done(BLK_UNSUPP, 0);
		run(types[i], 0, 512, 0);
		expect_done(BLK_UNSUPP, 1);
		assert_int_equal(disk_saw.nr, 0);
	}
}

static void a_read_only_disk_is_not_written(void **state)
{
	(void)state;
	disk.writable = false;
	run(T_OUT, 0, 512, 0);
	expect_done(BLK_IOERR, 1);
	run(T_DISCARD, 0, 16, 0);
	expect_done(BLK_IOERR, 1);
	run(T_ZEROES, 0, 16, 0);
	expect_done(BLK_IOERR, 1);
	run(T_FLUSH, 0, 0, 0);
	expect_done(BLK_OK, 1);
	assert_int_equal(disk_saw.nr, 0);
	run(T_IN, 0, 0, 512);
	expect_done(BLK_OK, 513);
}

static void chains_that_cannot_be_answered_are_refused(void **state)
{
	(void)state;
	make_header(T_OUT, 0);
	add_out(header, 16);
	add_out(data, 512);
	assert_non_null(strstr(blk_begin(&slot, &chain), "status"));
	setup(NULL);
	add_out(header, 15);
	add_in(&status, 1);
	assert_non_null(strstr(blk_begin(&slot, &chain), "header"));
	setup(NULL);
	add_in(data, 512);
	assert_non_null(strstr(blk_begin(&slot, &chain), "header"));
	assert_int_equal(nr_finished, 0);
}

/* ---- discard and write zeroes ---- */

static void put_range(unsigned i, uint64_t sector, uint32_t nr, uint32_t flags)
{
	struct blk_range r = { le64_put(sector), le32_put(nr), le32_put(flags) };

	memcpy(data + i * sizeof(r), &r, sizeof(r));
}

static void ranges_are_done_one_after_the_other(void **state)
{
	(void)state;
	for (unsigned i = 0; i < BLK_RANGES_MAX; i++)
		put_range(i, i * 16, 8, 0);
	run(T_DISCARD, 0, BLK_RANGES_MAX * 16, 0);
	expect_done(BLK_OK, 1);
	assert_int_equal(disk_saw.nr, BLK_RANGES_MAX);
	for (unsigned i = 0; i < BLK_RANGES_MAX; i++)
		assert_int_equal(disk_saw.offs[i], i * 8192);
	assert_int_equal(disk_saw.last.op, REQ_DISCARD);
	assert_int_equal(disk_saw.last.len, 4096);

	/* The same when every answer takes its time, and with empty ranges in between. */
	disk_saw.hold = true;
	put_range(1, 0, 0, 0);
	run(T_ZEROES, 0, 4 * 16, 0);
	for (unsigned i = 0; i < 3; i++) {
		assert_int_equal(disk_saw.nr, i + 1);
		assert_int_equal(nr_finished, 0);
		assert_int_equal(disk_saw.last.op, REQ_ZERO);
		disk_saw.held->done(disk_saw.held, 0);
	}
	expect_done(BLK_OK, 1);
}

static void the_guest_cannot_change_ranges_after_the_check(void **state)
{
	(void)state;
	disk_saw.hold = true;
	put_range(0, 0, 8, 0);
	put_range(1, 16, 8, 0);
	run(T_DISCARD, 0, 32, 0);
	put_range(1, UINT64_MAX, UINT32_MAX, 0);
	disk_saw.held->done(disk_saw.held, 0);
	assert_int_equal(disk_saw.last.off, 8192);
	assert_int_equal(disk_saw.last.len, 4096);
	disk_saw.held->done(disk_saw.held, 0);
	expect_done(BLK_OK, 1);
}

static void a_failed_range_ends_the_request(void **state)
{
	(void)state;
	put_range(0, 0, 8, 0);
	put_range(1, 16, 8, 0);
	disk_saw.ret = -EIO;
	run(T_ZEROES, 0, 32, 0);
	expect_done(BLK_IOERR, 1);
	assert_int_equal(disk_saw.nr, 1);
	disk_saw.ret = -ENOTSUP;
	run(T_DISCARD, 0, 32, 0);
	expect_done(BLK_UNSUPP, 1);
}

static void flags_of_ranges_are_checked(void **state)
{
	(void)state;
	put_range(0, 0, 8, 0);
	put_range(1, 16, 8, 1);
	run(T_ZEROES, 0, 32, 0);
	expect_done(BLK_OK, 1);
	assert_int_equal(disk_saw.last.flags, REQ_MAY_UNMAP);
	run(T_DISCARD, 0, 32, 0); /* no unmap for discard; and nothing was touched before that was seen */
	expect_done(BLK_UNSUPP, 1);
	assert_int_equal(disk_saw.nr, 0);
	put_range(1, 16, 8, 2);
	run(T_ZEROES, 0, 32, 0);
	expect_done(BLK_UNSUPP, 1);
	put_range(1, 16, 8, 0x80000001);
	run(T_ZEROES, 0, 32, 0);
	expect_done(BLK_UNSUPP, 1);
	assert_int_equal(disk_saw.nr, 0);
}

static void limits_of_ranges_are_enforced(void **state)
{
	static const size_t lens[] = { 0, 1, 15, 17, 31, BLK_RANGES_MAX * 16 + 16 };

	(void)state;
	for (unsigned i = 0; i < ARRAY_LEN(lens); i++) {
		memset(data, 0, sizeof(data));
		run(T_DISCARD, 0, lens[i], 0);
		expect_done(BLK_IOERR, 1);
		assert_int_equal(disk_saw.nr, 0);
	}
	put_range(0, 0, BLK_RANGE_SECTORS_MAX + 1, 0);
	run(T_ZEROES, 0, 16, 0);
	expect_done(BLK_IOERR, 1);
	put_range(0, UINT64_MAX, 1, 0);
	run(T_ZEROES, 0, 16, 0);
	expect_done(BLK_IOERR, 1);
	put_range(0, (1ull << 54) - 1, 1, 0);
	run(T_ZEROES, 0, 16, 0);
	expect_done(BLK_IOERR, 1);
	put_range(0, UINT64_MAX - 7, 8, 0);
	run(T_ZEROES, 0, 16, 0);
	expect_done(BLK_IOERR, 1);
	assert_int_equal(disk_saw.nr, 0);
	put_range(0, 0, BLK_RANGE_SECTORS_MAX, 0);
	run(T_ZEROES, 0, 16, 0);
	expect_done(BLK_OK, 1);
	assert_int_equal(disk_saw.last.len, GiB(1));
}

static void what_was_not_negotiated_is_unsupported(void **state)
{
	(void)state;
	put_range(0, 0, 8, 0);
	ctx.features &= ~(1ull << BLK_F_DISCARD);
	run(T_DISCARD, 0, 16, 0);
	expect_done(BLK_UNSUPP, 1);
	run(T_ZEROES, 0, 16, 0);
	expect_done(BLK_OK, 1);
	ctx.features &= ~(1ull << BLK_F_WRITE_ZEROES);
	run(T_ZEROES, 0, 16, 0);
	expect_done(BLK_UNSUPP, 1);
}

/* ---- configuration ---- */

static uint32_t config32(const uint8_t *space, unsigned off)
{
	le32 v;

	memcpy(&v, space + off, 4);
	return le32_get(v);
}

static void the_configuration_tells_the_disk(void **state)
{
	static struct node file;
	uint8_t space[UMSG_CONFIG_MAX];

	(void)state;
	memset(space, 0xff, sizeof(space));
	top.len = GiB(3) + 1000;
	top.align = 1;
	top.cluster_len = 65536;
	top.file = &file;
	file.align = 4096;
	blk_config(&disk, 4, 256, true, space);
	assert_int_equal(config32(space, 0), (GiB(3) + 512) / 512);
	assert_int_equal(config32(space, 4), 0);
	assert_int_equal(config32(space, 12), 126);
	assert_int_equal(config32(space, 20), 512);
	assert_int_equal(space[24], 3);		    /* 8 blocks of 512 in a physical one */
	assert_int_equal(space[26], 8);		    /* min_io_size */
	assert_int_equal(config32(space, 28), 128); /* opt_io_size: a cluster */
	assert_int_equal(space[32], 1);
	assert_int_equal(space[34], 4);
	assert_int_equal(config32(space, 36), BLK_RANGE_SECTORS_MAX);
	assert_int_equal(config32(space, 40), BLK_RANGES_MAX);
	assert_int_equal(config32(space, 44), 128);
	assert_int_equal(config32(space, 48), BLK_RANGE_SECTORS_MAX);
	assert_int_equal(config32(space, 52), BLK_RANGES_MAX);
	assert_int_equal(space[56], 1);
	for (unsigned i = 57; i < sizeof(space); i++)
		assert_int_equal(space[i], 0);

	blk_config(&disk, 1, 64, true, space);
	assert_int_equal(config32(space, 12), 62);
	blk_config(&disk, 1, 2, true, space);
	assert_int_equal(config32(space, 12), 1);
	top.file = NULL;
	top.cluster_len = 0;
	disk.writable = false;
	blk_config(&disk, 1, 256, true, space);
	assert_int_equal(config32(space, 36), 0);
	assert_int_equal(config32(space, 28), 0);
	assert_int_equal(space[24], 0);
}

static void a_read_only_disk_says_so(void **state)
{
	uint64_t f = blk_features(&disk);

	(void)state;
	assert_true(f >> BLK_F_DISCARD & 1 && f >> BLK_F_WRITE_ZEROES & 1 && !(f >> BLK_F_RO & 1));
	disk.writable = false;
	f = blk_features(&disk);
	assert_true(!(f >> BLK_F_DISCARD & 1) && !(f >> BLK_F_WRITE_ZEROES & 1) && f >> BLK_F_RO & 1);
}

#define TEST(name) cmocka_unit_test_setup(name, setup)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(a_read_goes_to_its_place),
		TEST(a_write_goes_to_its_place),
		TEST(the_layout_does_not_matter),
		TEST(lengths_that_are_no_sectors_are_errors),
		TEST(sectors_that_overflow_are_errors),
		TEST(nothing_to_read_or_write_is_well),
		TEST(data_in_the_wrong_direction_is_an_error),
		TEST(a_failed_read_tells_of_no_written_byte),
		TEST(a_driver_that_cannot_flush_writes_through),
		TEST(a_flush_is_a_flush),
		TEST(the_id_is_twenty_bytes),
		TEST(other_types_are_unsupported),
		TEST(a_read_only_disk_is_not_written),
		TEST(chains_that_cannot_be_answered_are_refused),
		TEST(ranges_are_done_one_after_the_other),
		TEST(the_guest_cannot_change_ranges_after_the_check),
		TEST(a_failed_range_ends_the_request),
		TEST(flags_of_ranges_are_checked),
		TEST(limits_of_ranges_are_enforced),
		TEST(what_was_not_negotiated_is_unsupported),
		TEST(the_configuration_tells_the_disk),
		TEST(a_read_only_disk_says_so),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
