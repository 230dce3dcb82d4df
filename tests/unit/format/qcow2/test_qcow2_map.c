/* SPDX-License-Identifier: MIT */
/*
 * unit/format/qcow2/test_qcow2_map.c - what L1 and L2 entries mean, good ones and damaged ones
 */
#include "disk.h"

#include "format/codec.h"

#define CLUSTER KiB(64)
#define SUB (KiB(16) / 32)

/* An image of 8 clusters with one L2 table and nothing in it; closed. */
static struct disk *with_table(const char *options)
{
	struct disk *d = disk_made(8 * CLUSTER, options);

	assert_int_equal(disk_write(d, 0, CLUSTER, 0x11), 0);
	assert_int_equal(disk_close(d), 0);
	return d;
}

static void set_entry(struct disk *d, unsigned cluster, uint64_t entry)
{
	image_put(d->im, image_l2_entry(d->im, cluster), 8, entry);
}

/* A new cluster at the end of the file, full of byte. */
static uint64_t data_cluster(struct disk *d, uint8_t byte)
{
	uint32_t len = image_cluster_len(d->im);
	uint64_t off = image_grow(d->im, 1, 1);
	uint8_t *bytes = malloc(len);

	memset(bytes, byte, len);
	sim_poke(d->im->sim, off, bytes, len);
	free(bytes);
	return off;
}

static void expect_error(struct disk *d, uint64_t off, int error)
{
	uint8_t buf[512];
	int ret = disk_read(d, off, sizeof(buf), buf);

	if (ret != error)
		fail_msg("read at %llu: %d, not %d", (unsigned long long)off, ret, error);
}

static void every_kind_of_entry_is_read(void **state)
{
	struct disk *d = with_table("cluster_size=64k");
	uint64_t a = data_cluster(d, 0xaa), b = data_cluster(d, 0xbb);
	struct extent e;

	set_entry(d, 1, a | QCOW2_COPIED);
	set_entry(d, 2, b); /* shared with somebody: no COPIED */
	set_entry(d, 3, QCOW2_ZERO);
	set_entry(d, 4, a | QCOW2_ZERO | QCOW2_COPIED);
	set_entry(d, 5, QCOW2_COMPRESSED | 0x1234);
	assert_int_equal(disk_open(d, 0), 0);
	disk_expect(d, 0, CLUSTER, 0x11);
	disk_expect(d, CLUSTER, CLUSTER, 0xaa);
	disk_expect(d, 2 * CLUSTER, CLUSTER, 0xbb);
	disk_expect(d, 3 * CLUSTER, 2 * CLUSTER, 0);
	disk_expect(d, 6 * CLUSTER, 2 * CLUSTER, 0);
	expect_error(d, 5 * CLUSTER, codec_available(CODEC_DEFLATE) ? -EIO : -ENOTSUP); /* rubbish */
	e = disk_map(d, 3 * CLUSTER, CLUSTER);
	assert_true(e.kind == EXTENT_ZERO && !(e.flags & EXTENT_ALLOCATED));
	e = disk_map(d, 4 * CLUSTER + 100, CLUSTER);
	assert_true(e.kind == EXTENT_ZERO && (e.flags & EXTENT_ALLOCATED) && e.host_off == a + 100 &&
		    e.len == CLUSTER - 100);
	e = disk_map(d, 5 * CLUSTER, CLUSTER);
	assert_true(e.kind == EXTENT_PACKED && e.len == CLUSTER);
	e = disk_map(d, 6 * CLUSTER, 2 * CLUSTER);
	assert_true(e.kind == EXTENT_ABSENT && e.len == 2 * CLUSTER);
	disk_free(d);
}

static void neighbours_are_one_extent(void **state)
{
	struct disk *d = with_table("cluster_size=64k");
	uint64_t a = data_cluster(d, 1);
	struct extent e;

	data_cluster(d, 2);
	data_cluster(d, 3);
	set_entry(d, 2, a | QCOW2_COPIED);
	set_entry(d, 3, (a + CLUSTER) | QCOW2_COPIED);
	set_entry(d, 4, a + 2 * CLUSTER);	       /* may not be written in place */
	set_entry(d, 5, (a + CLUSTER) | QCOW2_COPIED); /* elsewhere */
	assert_int_equal(disk_open(d, NODE_WRITABLE), 0);
	e = disk_map(d, 2 * CLUSTER + 10, 6 * CLUSTER);
	assert_true(e.kind == EXTENT_DATA && e.host_off == a + 10 && e.len == 2 * CLUSTER - 10);
	assert_true(e.flags & EXTENT_INPLACE);
	e = disk_map(d, 4 * CLUSTER, 4 * CLUSTER);
	assert_true(e.kind == EXTENT_DATA && e.len == CLUSTER && !(e.flags & EXTENT_INPLACE));
	disk_close(d);
	/* Read-only, nothing is in place, and the third one continues the others. */
	assert_int_equal(disk_open(d, 0), 0);
	e = disk_map(d, 2 * CLUSTER, 6 * CLUSTER);
	assert_true(e.kind == EXTENT_DATA && e.len == 3 * CLUSTER && !(e.flags & EXTENT_INPLACE));
	disk_free(d);
}

static void damaged_entries_are_errors(void **state)
{
	static const uint64_t bits[] = { 1ull << 1, 1ull << 8, 1ull << 56, 1ull << 61, 512, KiB(32) };

	for (unsigned i = 0; i < ARRAY_LEN(bits); i++) {
		struct disk *d = with_table("cluster_size=64k");
		uint64_t a = data_cluster(d, 0xaa);

		set_entry(d, 1, a | QCOW2_COPIED | bits[i]);
		set_entry(d, 2, bits[i] | QCOW2_ZERO | a);
		for (uint32_t flags = 0; flags < 2; flags++) {
			assert_int_equal(disk_open(d, flags ? NODE_WRITABLE : 0), 0);
			disk_expect(d, 0, CLUSTER, 0x11); /* the others are none of its business */
			expect_error(d, CLUSTER, -EIO);
			expect_error(d, 2 * CLUSTER, -EIO);
			if (flags)
				assert_int_equal(disk_write(d, CLUSTER, 512, 1), -EIO);
			disk_close(d);
		}
		disk_free(d);
	}
}

static void version_2_has_no_zero_bit(void **state)
{
	struct disk *d = with_table("cluster_size=64k,compat=0.10");

	set_entry(d, 1, QCOW2_ZERO);
	assert_int_equal(disk_open(d, 0), 0);
	expect_error(d, CLUSTER, -EIO);
	disk_free(d);
}

/* A read past the end that returned zeroes would hide that the file was cut. */
static void clusters_beyond_the_end_of_the_file_are_errors(void **state)
{
	struct disk *d = with_table("cluster_size=64k");
	uint64_t a = data_cluster(d, 0xaa), b = data_cluster(d, 0xbb);

	set_entry(d, 1, a | QCOW2_COPIED);
	set_entry(d, 2, b | QCOW2_COPIED);
	assert_int_equal(sim_truncate(d->im->sim, a + 1000), 0);
	assert_int_equal(disk_open(d, 0), 0);
	disk_expect(d, CLUSTER, 1000, 0xaa);
	disk_expect(d, CLUSTER + 1000, CLUSTER - 1000, 0); /* never written: the end of the last cluster */
	expect_error(d, 2 * CLUSTER, -EIO);
	disk_close(d);
	/* The file grows when something else is written; what was lost is still lost. */
	assert_int_equal(disk_open(d, NODE_WRITABLE), 0);
	for (unsigned i = 3; i < 7; i++)
		assert_int_equal(disk_write(d, i * CLUSTER, CLUSTER, 0x33), 0);
	expect_error(d, 2 * CLUSTER, -EIO);
	assert_int_equal(disk_write(d, 2 * CLUSTER, 512, 0x44), -EIO);
	for (unsigned i = 3; i < 7; i++)
		disk_expect(d, i * CLUSTER, CLUSTER, 0x33);
	disk_free(d);
}

static void damaged_l1_entries_are_errors(void **state)
{
	static const uint64_t bits[] = { 1, 1ull << 8, 1ull << 56, 1ull << 62, 512, GiB(1) };

	for (unsigned i = 0; i < ARRAY_LEN(bits); i++) {
		struct disk *d = with_table("cluster_size=64k");
		uint64_t entry = image_get(d->im, image_l1(d->im), 8);

		image_put(d->im, image_l1(d->im), 8, entry | bits[i]);
		assert_int_equal(disk_open(d, 0), 0);
		expect_error(d, 0, -EIO);
		disk_free(d);
	}
}

/* ---- extended L2 entries ---- */

/* As with_table(), clusters of 16 KiB whose entries are extended. */
static struct disk *extended(void)
{
	struct disk *d = disk_made(8 * KiB(16), "cluster_size=16k");

	assert_int_equal(disk_write(d, 0, KiB(16), 0x11), 0);
	assert_int_equal(disk_close(d), 0);
	image_put(d->im, offsetof(struct qcow2_header_disk, incompatible), 8, QCOW2_INCOMPAT_EXTENDED_L2);
	/* The entry of 8 bytes that is there stays the first word of cluster 0. */
	image_put(d->im, image_l2_entry(d->im, 1), 8, 0xffffffff);
	return d;
}

static void set_extended(struct disk *d, unsigned cluster, uint64_t entry, uint32_t allocated, uint32_t zero)
{
	uint64_t off = image_l2_entry(d->im, 2 * cluster);

	image_put(d->im, off, 8, entry);
	image_put(d->im, off + 8, 8, (uint64_t)zero << 32 | allocated);
}

static void subclusters_are_read_one_by_one(void **state)
{
	struct disk *d = extended();
	uint64_t a = data_cluster(d, 0xaa);
	struct extent e;

	d->backing_len = 8 * KiB(16);
	set_extended(d, 1, a | QCOW2_COPIED, 0x0000f00f, 0x0ff00000);
	set_extended(d, 2, 0, 0, 0xffffffff);
	set_extended(d, 3, a | QCOW2_COPIED, 0, 0x3); /* a cluster without a byte that counts */
	set_extended(d, 4, QCOW2_COMPRESSED | 0x1234, 0, 0);
	assert_int_equal(disk_open(d, 0), 0);
	disk_expect(d, 0, KiB(16), 0x11);
	for (unsigned i = 0; i < 32; i++) {
		uint8_t byte = 0x0000f00f >> i & 1 ? 0xaa : 0x0ff00000 >> i & 1 ? 0 : 0xba;

		disk_expect(d, KiB(16) + i * SUB, SUB, byte);
	}
	disk_expect(d, 2 * KiB(16), KiB(16), 0);
	disk_expect(d, 3 * KiB(16), 2 * SUB, 0);
	disk_expect(d, 3 * KiB(16) + 2 * SUB, KiB(16) - 2 * SUB, 0xba);
	expect_error(d, 4 * KiB(16), codec_available(CODEC_DEFLATE) ? -EIO : -ENOTSUP);
	disk_expect(d, 5 * KiB(16), 3 * KiB(16), 0xba);
	/* Extents end where the kind changes, and not before. */
	e = disk_map(d, KiB(16) + 100, KiB(16));
	assert_true(e.kind == EXTENT_DATA && e.host_off == a + 100 && e.len == 4 * SUB - 100);
	e = disk_map(d, KiB(16) + 4 * SUB, KiB(16));
	assert_true(e.kind == EXTENT_ABSENT && e.len == 8 * SUB);
	e = disk_map(d, KiB(16) + 12 * SUB, KiB(16));
	assert_true(e.kind == EXTENT_DATA && e.host_off == a + 12 * SUB && e.len == 4 * SUB);
	e = disk_map(d, KiB(16) + 20 * SUB, KiB(16));
	assert_true(e.kind == EXTENT_ZERO && e.len == 8 * SUB);
	e = disk_map(d, KiB(16) + 28 * SUB, 2 * KiB(16));
	assert_true(e.kind == EXTENT_ABSENT && e.len == 4 * SUB);
	disk_free(d);
}

static void damaged_subclusters_are_errors(void **state)
{
	struct disk *d = extended();
	uint64_t a = data_cluster(d, 0xaa);

	set_extended(d, 1, a | QCOW2_COPIED, 0x1, 0x1); /* both */
	set_extended(d, 2, 0, 0x2, 0);			/* data nowhere */
	set_extended(d, 3, a | QCOW2_COPIED | QCOW2_ZERO, 0x1, 0);
	set_extended(d, 4, GiB(1) | QCOW2_COPIED, 0x1, 0);
	assert_int_equal(disk_open(d, 0), 0);
	expect_error(d, KiB(16), -EIO);
	disk_expect(d, 2 * KiB(16), SUB, 0);
	expect_error(d, 2 * KiB(16) + SUB, -EIO);
	expect_error(d, 3 * KiB(16), -EIO);
	expect_error(d, 4 * KiB(16), -EIO);
	disk_close(d);
	disk_free(d);
}

/* ---- loading ---- */

/* More tables than the cache has room for: what is dropped is read again, whoever asks. */
static void a_small_cache_reads_the_same(void **state)
{
	struct disk *d = disk_made(MiB(8), "cluster_size=512");
	struct disk_op ops[64];

	d->options = "l2-cache-size=64k,refcount-cache-size=64k";
	for (uint64_t off = 0; off < MiB(8); off += KiB(32))
		assert_int_equal(disk_write(d, off, 512, (uint8_t)(off / KiB(32))), 0);
	disk_reopen(d);
	for (unsigned turn = 0; turn < 2; turn++) {
		for (uint64_t off = 0; off < MiB(8); off += KiB(32))
			disk_expect(d, off, 512, (uint8_t)(off / KiB(32)));
	}
	/* Many at once, two for each table. */
	for (unsigned i = 0; i < 64; i++)
		ops[i] = (struct disk_op){ .op = REQ_READ,
					   .off = (i / 2) * KiB(256) + i % 2 * 512,
					   .len = 512 };
	disk_run(d, ops, 64);
	for (unsigned i = 0; i < 64; i++)
		assert_int_equal(ops[i].ret, 0);
	disk_free_clean(d);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_kind_of_entry_is_read),
		cmocka_unit_test(neighbours_are_one_extent),
		cmocka_unit_test(damaged_entries_are_errors),
		cmocka_unit_test(version_2_has_no_zero_bit),
		cmocka_unit_test(clusters_beyond_the_end_of_the_file_are_errors),
		cmocka_unit_test(damaged_l1_entries_are_errors),
		cmocka_unit_test(subclusters_are_read_one_by_one),
		cmocka_unit_test(damaged_subclusters_are_errors),
		cmocka_unit_test(a_small_cache_reads_the_same),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
