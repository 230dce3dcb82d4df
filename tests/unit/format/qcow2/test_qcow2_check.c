/* SPDX-License-Identifier: MIT */
/*
 * unit/format/qcow2/test_qcow2_check.c - damage, byte by byte, and what the examination says of it
 *
 * Most images have clusters of 4 KiB and 16 of them mapped:
 *     0 header  1 refcount table  2 refcount block  3 L1  4 L2  5 .. 20 data
 */
#include "image.h"

#define CLUSTER 4096ull
#define DATA(i) ((5 + (i)) * CLUSTER)
#define SMALL "cluster_size=4096,preallocation=metadata"

static struct image *small(void)
{
	return image_made(KiB(64), SMALL);
}

/* ---- counts ---- */

static void a_fresh_image_is_clean(void **state)
{
	struct image *im = small();

	(void)state;
	expect_found(im, 0, 0, 0);
	assert_int_equal(im->found.allocated_clusters, 16);
	assert_int_equal(im->found.total_clusters, 16);
	assert_int_equal(im->found.fragmented_clusters, 0);
	assert_int_equal(im->found.image_end_offset, 21 * CLUSTER);
	assert_int_equal(im->lines_len, 0);
	image_free(im);
}

static void the_examination_changes_nothing(void **state)
{
	struct image *im = small();
	size_t len = sim_len(im->sim);
	uint8_t *before = malloc(len), *after = malloc(len);

	(void)state;
	image_set_refcount(im, DATA(0), 0);
	image_put(im, image_l2_entry(im, 3), 8, 0x123);
	sim_peek(im->sim, 0, before, len);
	assert_int_equal(image_check(im, 0), 0);
	assert_int_equal(sim_len(im->sim), len);
	sim_peek(im->sim, 0, after, len);
	assert_memory_equal(before, after, len);
	free(before);
	free(after);
	image_free(im);
}

static void used_space_that_nothing_refers_to_is_a_leak(void **state)
{
	struct image *im = small();

	(void)state;
	image_grow(im, 3, 1);
	expect_found(im, 0, 3, 0);
	expect_line(im, "leak: host offset 0x15000, 3 clusters: refcount is 1, references found: 0");
	image_set_refcount(im, DATA(15), 2);
	expect_found(im, 1, 4, 0); /* and it is marked COPIED */
	image_free(im);
}

static void references_to_free_space_are_corruptions(void **state)
{
	struct image *im = small();

	(void)state;
	image_put(im, image_l2_entry(im, 2), 8, DATA(2)); /* not COPIED: only the count is wrong */
	image_set_refcount(im, DATA(2), 0);
	expect_found(im, 1, 0, 0);
	expect_line(im, "corruption: host offset 0x7000: refcount is 0, but 1 references were found");
	expect_line(im, "affected: guest offset 0x2000 in the active layer uses host offset 0x7000");
	image_free(im);
}

static void two_references_to_one_cluster_are_found(void **state)
{
	struct image *im = small();

	(void)state;
	image_put(im, image_l2_entry(im, 2), 8, DATA(1) | QCOW2_COPIED);
	expect_found(im, 1, 1, 0);
	expect_line(im, "affected: guest offset 0x1000");
	expect_line(im, "affected: guest offset 0x2000");
	expect_line(im, "leak: host offset 0x7000, 1 cluster: refcount is 1");
	assert_int_equal(im->found.fragmented_clusters, 2);
	image_free(im);
}

/* Every width: one less, one more, and the largest value there is. */
static void refcounts_of_every_width_are_compared(void **state)
{
	(void)state;
	for (unsigned bits = 1; bits <= 64; bits *= 2) {
		uint64_t most = bits == 64 ? UINT64_MAX : (1ull << bits) - 1;
		char options[100];
		struct image *im;

		snprintf(options, sizeof(options), SMALL ",refcount_bits=%u", bits);
		im = image_made(KiB(64), options);
		image_put(im, image_l2_entry(im, 7), 8, DATA(7));
		image_set_refcount(im, DATA(7), 0);
		expect_found(im, 1, 0, 0);
		image_set_refcount(im, DATA(7), most);
		expect_found(im, bits == 1, most > 1, 0); /* 1 bit: now it should be COPIED */
		assert_int_equal(image_refcount(im, DATA(6)), 1);
		assert_int_equal(image_refcount(im, DATA(8)), 1);
		image_free(im);
	}
}

static void clusters_without_a_refcount_block_count_zero(void **state)
{
	/* One bit, 512 bytes: a block covers 4096 clusters = 2 MiB. Its table entry is cleared. */
	struct image *im = image_made(MiB(3), "cluster_size=512,preallocation=metadata,refcount_bits=1");
	uint64_t table = image_get(im, offsetof(struct qcow2_header_disk, refcount_table_off), 8);
	uint64_t clusters = sim_len(im->sim) / 512;

	(void)state;
	assert_true(clusters > 4096 && clusters < 8192);
	expect_found(im, 0, 0, 0);
	image_put(im, table + 8, 8, 0);
	assert_int_equal(image_check(im, 0), 0);
	/* Each of them once for its count and once for COPIED; and the block itself leaks. */
	assert_int_equal(im->found.leaks, 1);
	assert_in_range(im->found.corruptions, 2 * (clusters - 4096), 2 * (clusters - 4096));
	image_free(im);
}

static void metadata_that_is_also_data_is_found(void **state)
{
	struct image *im = small();

	(void)state;
	image_put(im, image_l2_entry(im, 0), 8, 3 * CLUSTER | QCOW2_COPIED); /* the L1 table */
	expect_found(im, 1, 1, 0);
	/* Even where the counts agree. */
	image_put(im, image_l2_entry(im, 0), 8, 3 * CLUSTER);
	image_set_refcount(im, 3 * CLUSTER, 2);
	image_set_refcount(im, DATA(0), 0);
	expect_found(im, 1, 0, 0);
	expect_line(im, "host offset 0x3000: holds metadata and is used for something else too");
	expect_line(im, "affected: guest offset 0x0 ");
	image_free(im);
}

/* ---- entries ---- */

static void copied_must_agree_with_the_refcount(void **state)
{
	struct image *im = small();

	(void)state;
	image_put(im, image_l2_entry(im, 4), 8, DATA(4));
	expect_found(im, 1, 0, 0);
	expect_line(im, "host offset 0x9000: not marked COPIED, but its refcount is 1");
	image_put(im, image_l1(im), 8, 4 * CLUSTER);
	expect_found(im, 2, 0, 0);
	image_free(im);
}

static void unaligned_and_reserved_bits_are_found(void **state)
{
	struct image *im = small();

	(void)state;
	image_put(im, image_l2_entry(im, 0), 8, (DATA(0) + 512) | QCOW2_COPIED);
	expect_found(im, 2, 0, 0); /* it may mean either cluster: the second is used twice, the first is no leak */
	expect_line(im, "guest offset 0x0 in the active layer: host offset 0x5200 is not a multiple of the cluster size");
	image_put(im, image_l2_entry(im, 0), 8, DATA(0) | QCOW2_COPIED | 0x40);
	expect_found(im, 1, 0, 0);
	expect_line(im, "reserved bits");
	image_put(im, image_l2_entry(im, 0), 8, DATA(0) | QCOW2_COPIED);
	image_put(im, image_l1(im), 8, (4 * CLUSTER) | QCOW2_COPIED | 1);
	expect_found(im, 1, 0, 0);
	image_put(im, image_l1(im), 8, (4 * CLUSTER + 512) | QCOW2_COPIED);
	expect_found(im, 1, 17, 0);
	image_put(im, image_l1(im), 8, QCOW2_COPIED);
	expect_found(im, 1, 17, 0);
	expect_line(im, "has no L2 table");
	image_free(im);
}

static void entries_beyond_the_end_of_the_file_are_found(void **state)
{
	struct image *im = small();

	(void)state;
	image_put(im, image_l2_entry(im, 1), 8, (100 * CLUSTER) | QCOW2_COPIED);
	expect_found(im, 1, 1, 0);
	expect_line(im, "guest offset 0x1000 in the active layer: host offset 0x64000 lies beyond the end of the file");
	image_put(im, image_l1(im), 8, QCOW2_OFF_MASK - CLUSTER + 512);
	expect_found(im, 1, 17, 0);
	image_free(im);
}

/* Lost is what was cut off, and it is said so. */
static void a_truncated_file_is_found(void **state)
{
	struct image *im = small();

	(void)state;
	assert_int_equal(sim_truncate(im->sim, DATA(14)), 0);
	expect_found(im, 2, 0, 0);
	/* But the last cluster need not be whole. */
	assert_int_equal(sim_truncate(im->sim, DATA(15) + 1), 0);
	expect_found(im, 0, 0, 0);
	image_free(im);
}

static void zero_clusters_are_a_version_3_thing(void **state)
{
	struct image *im = small(), *old = image_made(KiB(64), SMALL ",compat=0.10");

	(void)state;
	image_put(im, image_l2_entry(im, 0), 8, DATA(0) | QCOW2_COPIED | QCOW2_ZERO);
	expect_found(im, 0, 0, 0);
	image_put(im, image_l2_entry(im, 0), 8, QCOW2_ZERO);
	expect_found(im, 0, 1, 0);
	image_free(im);
	image_put(old, image_l2_entry(old, 0), 8, DATA(0) | QCOW2_COPIED | QCOW2_ZERO);
	expect_found(old, 1, 0, 0);
	image_free(old);
}

/* ---- compressed clusters ---- */

/* x = 62 - (12 - 8) = 58 bits of offset, then the sectors beyond the first. */
static uint64_t packed_entry(uint64_t off, uint64_t more_sectors)
{
	return QCOW2_COMPRESSED | more_sectors << 58 | off;
}

static void compressed_clusters_share_their_space(void **state)
{
	struct image *im = small();
	uint64_t host = image_grow(im, 2, 0);

	(void)state;
	for (unsigned i = 0; i < 3; i++) {
		image_put(im, image_l2_entry(im, i), 8, packed_entry(host + i * 700, 1));
		image_set_refcount(im, DATA(i), 0);
	}
	/* The fourth begins in the first cluster and ends in the second. */
	image_put(im, image_l2_entry(im, 3), 8, packed_entry(host + CLUSTER - 300, 1));
	image_set_refcount(im, DATA(3), 0);
	image_set_refcount(im, host, 4);
	image_set_refcount(im, host + CLUSTER, 1);
	expect_found(im, 0, 0, 0);
	assert_int_equal(im->found.compressed_clusters, 4);
	assert_int_equal(im->found.allocated_clusters, 16);
	image_set_refcount(im, host, 3);
	expect_found(im, 1, 0, 0);
	expect_line(im, "affected: guest offset 0x3000");
	image_free(im);
}

static void compressed_clusters_are_bounded_and_never_copied(void **state)
{
	struct image *im = small();

	(void)state;
	image_set_refcount(im, DATA(0), 0);
	image_put(im, image_l2_entry(im, 0), 8, packed_entry(DATA(20), 0));
	expect_found(im, 1, 0, 0);
	expect_line(im, "beyond the end of the file");
	image_put(im, image_l2_entry(im, 0), 8, packed_entry((1ull << 58) - 1, 15));
	expect_found(im, 1, 0, 0);
	image_put(im, image_l2_entry(im, 0), 8, packed_entry(DATA(0), 0) | QCOW2_COPIED);
	image_set_refcount(im, DATA(0), 1);
	expect_found(im, 1, 0, 0);
	expect_line(im, "is marked COPIED");
	image_free(im);
}

/* ---- refcount structures ---- */

static void a_damaged_refcount_table_entry_is_one_finding(void **state)
{
	struct image *im = small();

	(void)state;
	image_put(im, CLUSTER, 8, 2 * CLUSTER + 512);
	expect_found(im, 1, 0, 1);
	expect_line(im, "refcount table, entry 0: host offset 0x2200 is not a multiple of the cluster size");
	expect_line(im, "not examined: refcounts of host offsets 0x0 to 0x15000");
	image_put(im, CLUSTER, 8, 2000 * CLUSTER);
	expect_found(im, 1, 0, 1);
	image_put(im, CLUSTER, 8, 2 * CLUSTER | 4);
	expect_found(im, 1, 0, 0);
	image_free(im);
}

/* Leaks are not counted where references may be missing. */
static void an_unreadable_snapshot_table_hides_leaks(void **state)
{
	struct image *im = small();

	(void)state;
	image_grow(im, 1, 1);
	image_put(im, offsetof(struct qcow2_header_disk, nr_snapshots), 4, 1);
	image_put(im, offsetof(struct qcow2_header_disk, snapshots_off), 8, 22 * CLUSTER);
	if (image_check(im, 0) == 0) { /* opening may refuse it, which is as good */
		assert_int_equal(im->found.leaks, 0);
		assert_int_equal(im->found.check_errors, 1);
	}
	image_free(im);
}

/* ---- snapshots ---- */

/* A snapshot of everything, made by hand: its own L1, the L2 table and all data shared. */
static struct image *with_snapshot(void)
{
	struct image *im = small();
	uint64_t l1 = image_grow(im, 2, 1), table = l1 + CLUSTER;

	image_put(im, l1, 8, 4 * CLUSTER);
	image_put(im, image_l1(im), 8, 4 * CLUSTER);
	image_set_refcount(im, 4 * CLUSTER, 2);
	for (unsigned i = 0; i < 16; i++) {
		image_put(im, image_l2_entry(im, i), 8, DATA(i));
		image_set_refcount(im, DATA(i), 2);
	}
	image_put(im, table, 8, l1);
	image_put(im, table + 8, 4, 1);
	image_put(im, table + 12, 2, 1); /* id "1" */
	image_put(im, table + 14, 2, 4); /* name */
	image_put(im, table + 36, 4, 16);
	image_put(im, table + 48, 8, KiB(64));
	sim_poke(im->sim, table + 56, "1snap", 5);
	image_put(im, offsetof(struct qcow2_header_disk, nr_snapshots), 4, 1);
	image_put(im, offsetof(struct qcow2_header_disk, snapshots_off), 8, table);
	return im;
}

static void a_snapshot_counts_for_everything_it_holds(void **state)
{
	struct image *im = with_snapshot();

	(void)state;
	expect_found(im, 0, 0, 0);
	image_set_refcount(im, DATA(9), 1);
	expect_found(im, 2, 0, 0); /* too few, and not COPIED with a count of 1 */
	image_set_refcount(im, DATA(9), 3);
	expect_found(im, 0, 1, 0);
	image_free(im);
}

static void a_snapshot_s_own_table_is_examined(void **state)
{
	struct image *im = with_snapshot();
	uint64_t l1 = 21 * CLUSTER, l2 = image_grow(im, 1, 1);

	(void)state;
	/* The snapshot gets a table of its own with one damaged entry; the active layer owns the rest alone. */
	image_put(im, l1, 8, l2);
	image_put(im, l2, 8, DATA(0));
	image_put(im, l2 + 8, 8, 999 * CLUSTER);
	image_set_refcount(im, 4 * CLUSTER, 1);
	image_put(im, image_l1(im), 8, 4 * CLUSTER | QCOW2_COPIED);
	for (unsigned i = 1; i < 16; i++) {
		image_put(im, image_l2_entry(im, i), 8, DATA(i) | QCOW2_COPIED);
		image_set_refcount(im, DATA(i), 1);
	}
	expect_found(im, 1, 0, 0);
	expect_line(im, "guest offset 0x1000 in snap: host offset 0x3e7000");
	image_free(im);
}

static void a_snapshot_s_l1_must_lie_in_the_file(void **state)
{
	struct image *im = with_snapshot();
	uint64_t table = 22 * CLUSTER;

	(void)state;
	image_put(im, table, 8, 4000 * CLUSTER);
	assert_int_equal(image_check(im, 0), 0);
	assert_int_equal(im->found.corruptions, 1);
	expect_line(im, "snapshot 'snap'");
	image_put(im, table, 8, 21 * CLUSTER);
	image_put(im, table + 8, 4, 0xffffffff);
	assert_int_equal(image_check(im, 0), 0);
	assert_int_equal(im->found.corruptions, 1);
	image_free(im);
}

static void names_cannot_write_to_a_terminal(void **state)
{
	struct image *im = with_snapshot();

	(void)state;
	sim_poke(im->sim, 22 * CLUSTER + 57, "\033[2J", 4);
	image_put(im, 22 * CLUSTER, 8, 4000 * CLUSTER);
	assert_int_equal(image_check(im, 0), 0);
	expect_line(im, "snapshot '?[2J'");
	image_free(im);
}

/* ---- bitmaps ---- */

static void bitmaps_are_counted_when_they_are_valid(void **state)
{
	struct image *im = small();
	uint64_t dir = image_grow(im, 3, 1), table = dir + CLUSTER, ext = 0;
	uint64_t header_len = image_get(im, offsetof(struct qcow2_header_disk, header_len), 4);

	(void)state;
	/* The bitmaps extension takes the place of the others. */
	ext = header_len;
	image_put(im, ext, 4, QCOW2_EXT_BITMAPS);
	image_put(im, ext + 4, 4, 24);
	image_put(im, ext + 8, 4, 1);
	image_put(im, ext + 12, 4, 0);
	image_put(im, ext + 16, 8, 32);
	image_put(im, ext + 24, 8, dir);
	image_put(im, ext + 32, 8, 0);
	image_put(im, dir, 8, table);
	image_put(im, dir + 8, 4, 1);
	image_put(im, dir + 16, 1, 1);
	image_put(im, dir + 17, 1, 16);
	image_put(im, dir + 18, 2, 2);
	sim_poke(im->sim, dir + 24, "bm", 2);
	image_put(im, table, 8, dir + 2 * CLUSTER);
	expect_found(im, 0, 3, 0); /* the autoclear bit is not set: leaked */
	image_put(im, offsetof(struct qcow2_header_disk, autoclear), 8, QCOW2_AUTOCLEAR_BITMAPS);
	expect_found(im, 0, 0, 0);
	/* What others refuse the image for. */
	image_put(im, dir + 17, 1, 60);
	expect_found(im, 1, 0, 0);
	expect_line(im, "bitmap 'bm': a granularity of 2^60");
	image_put(im, dir + 17, 1, 16);
	image_put(im, dir + 16, 1, 2);
	expect_found(im, 1, 0, 0);
	expect_line(im, "bitmap 'bm': its type 2 is unknown");
	image_put(im, dir + 16, 1, 1);
	image_put(im, dir + 8, 4, 0);
	expect_found(im, 1, 2, 0);
	expect_line(im, "bitmap 'bm': a table of 0 entries is too short for the disk");
	image_put(im, dir + 8, 4, 1);
	image_put(im, table, 8, dir + 200 * CLUSTER);
	expect_found(im, 1, 1, 0);
	expect_line(im, "bitmap 'bm', entry 0");
	image_put(im, dir + 8, 4, 0x7ffffff);
	expect_found(im, 1, 2, 0);
	image_free(im);
}

/* ---- hostile images: the cost is bounded by the file's length ---- */

/* 64 Ki L1 entries for one L2 table of 512 Ki ... each of whose entries names one cluster: 2^33 references. */
static void one_table_named_by_all_entries_is_read_once(void **state)
{
	struct image *im = image_made(KiB(64), "cluster_size=65536,preallocation=metadata,refcount_bits=64");
	uint64_t l2 = image_get(im, image_l1(im), 8) & QCOW2_OFF_MASK, host = image_grow(im, 8, 1);
	uint8_t *l1 = calloc(1, KiB(512)), *entries = malloc(KiB(64));

	(void)state;
	for (unsigned i = 0; i < KiB(64); i++)
		((be64 *)l1)[i] = be64_put(l2);
	for (unsigned i = 0; i < KiB(8); i++)
		((be64 *)entries)[i] = be64_put(image_get(im, l2, 8) & QCOW2_OFF_MASK);
	sim_poke(im->sim, host, l1, KiB(512));
	sim_poke(im->sim, l2, entries, KiB(64));
	image_put(im, offsetof(struct qcow2_header_disk, l1_entries), 4, KiB(64));
	image_put(im, offsetof(struct qcow2_header_disk, l1_off), 8, host);
	assert_int_equal(image_check(im, 0), 0);
	assert_true(im->found.corruptions >= 2);
	/* Reading it 65536 times would be 4 GiB. */
	assert_in_range(sim_nr_ops(im->sim), 1, 400);
	free(l1);
	free(entries);
	image_free(im);
}

/* The same for the refcount table: every entry names the one block. */
static void one_block_named_by_all_entries_is_read_once(void **state)
{
	struct image *im = image_made(KiB(64), "cluster_size=65536,refcount_bits=1");
	uint64_t nr = sim_len(im->sim) / KiB(64);

	(void)state;
	for (unsigned i = 1; i < 8192; i++)
		image_put(im, KiB(64) + 8 * i, 8, 2 * KiB(64));
	assert_int_equal(image_check(im, 0), 0);
	/* Each further entry is one; so is the count of the block. */
	assert_in_range(im->found.corruptions, 8191, 8192);
	assert_int_equal(im->found.image_end_offset, nr * KiB(64));
	assert_in_range(sim_nr_ops(im->sim), 1, 100);
	image_free(im);
}

/* Clusters whose block is another one's cannot be compared. */
static void a_block_with_two_entries_counts_for_the_first(void **state)
{
	struct image *im = image_made(MiB(1), "cluster_size=512,refcount_bits=64,preallocation=metadata");
	uint64_t table = image_get(im, offsetof(struct qcow2_header_disk, refcount_table_off), 8);
	uint64_t nr = div_up(sim_len(im->sim) / 512, 64), first = image_get(im, table, 8);

	(void)state;
	expect_found(im, 0, 0, 0);
	for (uint64_t i = 1; i < nr; i++)
		image_put(im, table + i * 8, 8, first);
	assert_int_equal(image_check(im, 0), 0);
	assert_int_equal(im->found.check_errors, nr - 1);
	/* Each entry too many, and the first block's cluster with all its references. */
	assert_int_equal(im->found.corruptions, nr);
	image_free(im);
}

/* Random bytes all over the metadata: no crash, no hang, and the same answer however memory is bounded. */
static void random_damage_is_survived(void **state)
{
	(void)state;
	for (unsigned seed = 1; seed <= 400; seed++) {
		struct image *im = seed % 2 ? with_snapshot() : small();
		struct varve_check_result whole;

		srandom(seed);
		for (unsigned i = 0; i < 1 + seed % 5; i++) {
			static const uint8_t metadata[] = { 1, 2, 3, 4, 4, 21, 22 };
			uint64_t at = metadata[random() % 7] * CLUSTER + (uint64_t)(random() % 24) * 8;

			if (at + 8 <= sim_len(im->sim))
				image_put(im, at, random() % 2 ? 8 : 2, (uint64_t)random() << 32 ^ (uint64_t)random() << 9);
		}
		if (image_check(im, 0) == 0) {
			whole = im->found;
			assert_int_equal(image_check(im, 1), 0);
			if (memcmp(&whole, &im->found, sizeof(whole)))
				fail_msg("seed %u: windows disagree", seed);
		}
		image_free(im);
	}
}

/* Counting in several windows says the same as in one. */
static void many_windows_agree_with_one(void **state)
{
	struct image *im = image_made(MiB(16), "cluster_size=512,preallocation=metadata");

	(void)state;
	for (unsigned i = 0; i < 40; i++)
		image_set_refcount(im, (100 + 790ull * i) * 512, i % 3);
	assert_int_equal(image_check(im, 0), 0);
	assert_true(im->found.corruptions && im->found.leaks);
	expect_found(im, im->found.corruptions, im->found.leaks, im->found.check_errors);
	image_free(im);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_fresh_image_is_clean),
		cmocka_unit_test(the_examination_changes_nothing),
		cmocka_unit_test(used_space_that_nothing_refers_to_is_a_leak),
		cmocka_unit_test(references_to_free_space_are_corruptions),
		cmocka_unit_test(two_references_to_one_cluster_are_found),
		cmocka_unit_test(refcounts_of_every_width_are_compared),
		cmocka_unit_test(clusters_without_a_refcount_block_count_zero),
		cmocka_unit_test(metadata_that_is_also_data_is_found),
		cmocka_unit_test(copied_must_agree_with_the_refcount),
		cmocka_unit_test(unaligned_and_reserved_bits_are_found),
		cmocka_unit_test(entries_beyond_the_end_of_the_file_are_found),
		cmocka_unit_test(a_truncated_file_is_found),
		cmocka_unit_test(zero_clusters_are_a_version_3_thing),
		cmocka_unit_test(compressed_clusters_share_their_space),
		cmocka_unit_test(compressed_clusters_are_bounded_and_never_copied),
		cmocka_unit_test(a_damaged_refcount_table_entry_is_one_finding),
		cmocka_unit_test(an_unreadable_snapshot_table_hides_leaks),
		cmocka_unit_test(a_snapshot_counts_for_everything_it_holds),
		cmocka_unit_test(a_snapshot_s_own_table_is_examined),
		cmocka_unit_test(a_snapshot_s_l1_must_lie_in_the_file),
		cmocka_unit_test(names_cannot_write_to_a_terminal),
		cmocka_unit_test(bitmaps_are_counted_when_they_are_valid),
		cmocka_unit_test(one_table_named_by_all_entries_is_read_once),
		cmocka_unit_test(one_block_named_by_all_entries_is_read_once),
		cmocka_unit_test(a_block_with_two_entries_counts_for_the_first),
		cmocka_unit_test(random_damage_is_survived),
		cmocka_unit_test(many_windows_agree_with_one),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
