/* SPDX-License-Identifier: MIT */
/*
 * unit/format/qcow2/test_qcow2_write.c - allocation, copy on write, zeroes, discard: what they leave in the
 * file
 */
#include "disk.h"

#include "format/codec.h"

#define CLUSTER KiB(64)

static uint64_t entry_of(struct disk *d, unsigned cluster)
{
	return image_get(d->im, image_l2_entry(d->im, cluster), 8);
}

static uint64_t host_of(struct disk *d, unsigned cluster)
{
	return entry_of(d, cluster) & QCOW2_OFF_MASK;
}

/* ---- allocation ---- */

static void what_is_written_is_there_after_reopening(void **state)
{
	static const char *const options[] = { "cluster_size=512", "cluster_size=4k,compat=0.10",
					       "cluster_size=64k", "cluster_size=2M,refcount_bits=1",
					       "cluster_size=512,refcount_bits=64" };

	for (unsigned i = 0; i < ARRAY_LEN(options); i++) {
		struct disk *d = disk_made(MiB(3) + 1536, options[i]);

		assert_int_equal(disk_write(d, 0, 1, 0x01), 0);
		assert_int_equal(disk_write(d, 1000, 100000, 0x02), 0);
		assert_int_equal(disk_write(d, MiB(3) + 1000, 536, 0x03), 0);
		disk_reopen(d);
		disk_expect(d, 0, 1, 0x01);
		disk_expect(d, 1, 999, 0);
		disk_expect(d, 1000, 100000, 0x02);
		disk_expect(d, 101000, MiB(3) - 100000, 0);
		disk_expect(d, MiB(3) + 1000, 536, 0x03);
		disk_free_clean(d);
	}
}

static void a_second_write_goes_to_the_same_place(void **state)
{
	struct disk *d = disk_made(MiB(1), "cluster_size=64k");
	uint64_t len, host_off;

	assert_int_equal(disk_write(d, 3 * CLUSTER, CLUSTER, 1), 0);
	assert_int_equal(disk_flush(d), 0);
	len = sim_len(d->im->sim);
	host_off = host_of(d, 3);
	assert_int_equal(disk_write(d, 3 * CLUSTER + 5, 100, 2), 0);
	assert_int_equal(disk_flush(d), 0);
	assert_int_equal(sim_len(d->im->sim), len);
	assert_int_equal(host_of(d, 3), host_off);
	disk_expect(d, 3 * CLUSTER + 5, 100, 2);
	disk_free_clean(d);
}

static void a_partial_write_brings_the_rest_from_the_backing_image(void **state)
{
	struct disk *d = disk_made(MiB(1) - 512, "cluster_size=64k");

	disk_close(d);
	d->backing_len = MiB(1) - 3 * CLUSTER; /* ends before the disk does */
	disk_reopen(d);
	assert_int_equal(disk_write(d, CLUSTER + 100, 10, 0x55), 0);
	assert_int_equal(disk_write(d, MiB(1) - CLUSTER + 100, 10, 0x66), 0);
	disk_expect(d, 0, CLUSTER + 100, 0xba);
	disk_expect(d, CLUSTER + 100, 10, 0x55);
	disk_expect(d, CLUSTER + 110, MiB(1) - 4 * CLUSTER - 110, 0xba);
	disk_expect(d, MiB(1) - 3 * CLUSTER, 2 * CLUSTER + 100, 0);
	disk_expect(d, MiB(1) - CLUSTER + 100, 10, 0x66);
	disk_expect(d, MiB(1) - CLUSTER + 110, CLUSTER - 110 - 512, 0);
	disk_free_clean(d);
}

/* They all need the same table, and some the same cluster. */
static void many_at_once_share_a_new_table(void **state)
{
	struct disk_op ops[60];
	struct disk *d = disk_made(MiB(2), "cluster_size=512");

	for (unsigned i = 0; i < 60; i++)
		ops[i] = (struct disk_op){
			.op = REQ_WRITE, .off = i * 170, .len = 170, .byte = (uint8_t)(i + 1)
		};
	disk_run(d, ops, 60);
	for (unsigned i = 0; i < 60; i++) {
		assert_int_equal(ops[i].ret, 0);
		disk_expect(d, i * 170, 170, (uint8_t)(i + 1));
	}
	disk_reopen(d);
	for (unsigned i = 0; i < 60; i++)
		disk_expect(d, i * 170, 170, (uint8_t)(i + 1));
	disk_free_clean(d);
}

/* Sixteen pieces of 4 KiB: the first write makes the table, all the others know that theirs holds zeroes. */
static void a_table_made_in_this_session_is_not_read(void **state)
{
	struct disk *d = disk_made(MiB(512), "cluster_size=64k");
	unsigned before;

	assert_int_equal(disk_write(d, MiB(100), 512, 1), 0);
	before = d->im->nr_reads;
	for (uint64_t i = 0; i < 16; i++)
		assert_int_equal(disk_write(d, i * MiB(32), 512, 2), 0);
	assert_int_equal(d->im->nr_reads, before);
	for (uint64_t i = 0; i < 16; i++)
		disk_expect(d, i * MiB(32), 512, 2);
	disk_expect(d, MiB(100), 512, 1);
	disk_free_clean(d);
}

/* Room for sixteen pieces, with two tables of sixteen each: pieces known to be zeroes, dropped and read again come in every order. */
static void new_tables_larger_than_the_cache_keep_their_entries(void **state)
{
	static uint8_t expected[16384];
	struct disk *d = disk_made(GiB(1), "cluster_size=64k");
	uint64_t seed = 7;

	d->options = "l2-cache-size=64k";
	disk_reopen(d);
	memset(expected, 0, sizeof(expected));
	for (unsigned i = 1; i < 1500; i++) {
		uint64_t cluster;

		seed = seed * 6364136223846793005ull + 1442695040888963407ull;
		cluster = (seed >> 33) % 16384;
		expected[cluster] = (uint8_t)(i % 255 + 1);
		assert_int_equal(disk_write(d, cluster * KiB(64), 512, expected[cluster]), 0);
		if (i % 100 == 0)
			assert_int_equal(disk_flush(d), 0);
	}
	for (unsigned i = 0; i < 16384; i++)
		disk_expect(d, (uint64_t)i * KiB(64), 512, expected[i]);
	disk_reopen(d);
	for (unsigned i = 0; i < 16384; i++)
		disk_expect(d, (uint64_t)i * KiB(64), 512, expected[i]);
	disk_free_clean(d);
}

/* ---- zeroes ---- */

static void zeroes_keep_their_space_and_are_written_there_again(void **state)
{
	struct disk *d = disk_made(MiB(1), "cluster_size=64k");
	struct extent e;
	uint64_t host_off;

	assert_int_equal(disk_write(d, 0, 4 * CLUSTER, 0x77), 0);
	assert_int_equal(disk_flush(d), 0);
	host_off = host_of(d, 1);
	assert_int_equal(disk_zero(d, CLUSTER, 2 * CLUSTER, false), 0);
	e = disk_map(d, CLUSTER, 2 * CLUSTER);
	assert_true(e.kind == EXTENT_ZERO && (e.flags & EXTENT_ALLOCATED) && e.host_off == host_off &&
		    e.len == 2 * CLUSTER);
	disk_expect(d, CLUSTER, 2 * CLUSTER, 0);
	/* The old bytes lie there still: they must not come back around the new ones. */
	assert_int_equal(disk_write(d, CLUSTER + 1000, 10, 0x88), 0);
	disk_expect(d, CLUSTER, 1000, 0);
	disk_expect(d, CLUSTER + 1000, 10, 0x88);
	disk_expect(d, CLUSTER + 1010, 2 * CLUSTER - 1010, 0);
	e = disk_map(d, CLUSTER, CLUSTER);
	assert_true(e.kind == EXTENT_DATA && e.host_off == host_off && (e.flags & EXTENT_INPLACE));
	disk_expect(d, 3 * CLUSTER, CLUSTER, 0x77);
	disk_free_clean(d);
}

static void unmapped_zeroes_give_their_space_to_the_next(void **state)
{
	struct disk *d = disk_made(MiB(1), "cluster_size=64k");
	uint64_t host_off, len;

	assert_int_equal(disk_write(d, 0, 4 * CLUSTER, 0x77), 0);
	assert_int_equal(disk_flush(d), 0);
	host_off = host_of(d, 1);
	len = sim_len(d->im->sim);
	assert_int_equal(disk_zero(d, CLUSTER, 2 * CLUSTER, true), 0);
	disk_expect(d, CLUSTER, 2 * CLUSTER, 0);
	/* Not before the entry is durable. */
	assert_int_equal(disk_write(d, 8 * CLUSTER, CLUSTER, 0x11), 0);
	assert_true(disk_map(d, 8 * CLUSTER, 1).host_off >= len);
	assert_int_equal(disk_flush(d), 0);
	assert_int_equal(disk_flush(d), 0);
	assert_int_equal(image_refcount(d->im, host_off), 0);
	assert_int_equal(disk_write(d, 10 * CLUSTER, 100, 0x22), 0);
	assert_int_equal(disk_map(d, 10 * CLUSTER, 1).host_off, host_off);
	/* Used space does not read as zeroes by itself. */
	disk_expect(d, 10 * CLUSTER + 100, CLUSTER - 100, 0);
	disk_free_clean(d);
}

static void zeroes_hide_the_backing_image(void **state)
{
	for (unsigned version2 = 0; version2 < 2; version2++) {
		struct disk *d =
			disk_made(MiB(1), version2 ? "cluster_size=64k,compat=0.10" : "cluster_size=64k");

		disk_close(d);
		d->backing_len = MiB(1);
		disk_reopen(d);
		assert_int_equal(disk_write(d, 2 * CLUSTER, CLUSTER, 0x11), 0);
		assert_int_equal(disk_zero(d, CLUSTER, 2 * CLUSTER, false), 0);
		assert_int_equal(disk_zero(d, 4 * CLUSTER, 2 * CLUSTER, true), 0);
		assert_int_equal(disk_zero(d, 7 * CLUSTER + 100, CLUSTER, true), 0);
		disk_reopen(d);
		disk_expect(d, 0, CLUSTER, 0xba);
		disk_expect(d, CLUSTER, 2 * CLUSTER, 0);
		disk_expect(d, 3 * CLUSTER, CLUSTER, 0xba);
		disk_expect(d, 4 * CLUSTER, 2 * CLUSTER, 0);
		disk_expect(d, 6 * CLUSTER, CLUSTER + 100, 0xba);
		disk_expect(d, 7 * CLUSTER + 100, CLUSTER, 0);
		disk_expect(d, 8 * CLUSTER + 100, CLUSTER, 0xba);
		disk_free_clean(d);
	}
}

static void discarded_clusters_do_not_show_the_backing_image(void **state)
{
	struct disk *d = disk_made(MiB(1), "cluster_size=64k");

	disk_close(d);
	d->backing_len = MiB(1);
	disk_reopen(d);
	assert_int_equal(disk_write(d, CLUSTER, 2 * CLUSTER, 0x11), 0);
	assert_int_equal(disk_discard(d, CLUSTER, 3 * CLUSTER), 0);
	assert_int_equal(disk_map(d, CLUSTER, CLUSTER).kind, EXTENT_ZERO);
	disk_expect(d, CLUSTER, 3 * CLUSTER, 0);
	disk_free_clean(d);
}

static void discard_without_backing_forgets_the_clusters(void **state)
{
	for (unsigned version2 = 0; version2 < 2; version2++) {
		struct disk *d =
			disk_made(MiB(1), version2 ? "cluster_size=64k,compat=0.10" : "cluster_size=64k");

		assert_int_equal(disk_write(d, 0, 8 * CLUSTER, 0x11), 0);
		assert_int_equal(disk_zero(d, 6 * CLUSTER, CLUSTER, false), 0);
		assert_int_equal(disk_discard(d, CLUSTER + 1, 6 * CLUSTER), 0);
		assert_int_equal(disk_map(d, 2 * CLUSTER, MiB(1)).kind, EXTENT_ABSENT);
		disk_expect(d, 0, 2 * CLUSTER, 0x11); /* not a whole cluster: left alone */
		disk_expect(d, 2 * CLUSTER, 5 * CLUSTER, 0);
		disk_expect(d, 7 * CLUSTER, CLUSTER, 0x11);
		disk_reopen(d);
		assert_int_equal(entry_of(d, 3), 0);
		disk_free_clean(d);
	}
}

/* ---- shared clusters ---- */

/*
 * An internal snapshot, made by hand as others make it: a copy of L1, everything counted once more, no COPIED
 * anywhere. The disk is closed, its first table is the only one. Returns where the snapshot's L1 lies.
 */
static uint64_t make_snapshot(struct disk *d)
{
	struct image *im = d->im;
	uint64_t l1 = image_l1(im), entry = image_get(im, l1, 8) & QCOW2_OFF_MASK;
	uint64_t l1_copy = image_grow(im, 1, 1), table = image_grow(im, 1, 1);
	uint32_t per_table = image_cluster_len(im) / 8;

	image_put(im, l1, 8, entry);
	image_put(im, l1_copy, 8, entry);
	image_set_refcount(im, entry, 2);
	for (uint32_t i = 0; i < per_table; i++) {
		uint64_t e = image_get(im, image_l2_entry(im, i), 8);

		if ((e & QCOW2_OFF_MASK) && !(e & QCOW2_COMPRESSED))
			image_set_refcount(im, e & QCOW2_OFF_MASK, 2);
		image_put(im, image_l2_entry(im, i), 8, e & ~QCOW2_COPIED);
	}
	image_put(im, table, 8, l1_copy);
	image_put(im, table + 8, 4,
		  (uint32_t)image_get(im, offsetof(struct qcow2_header_disk, l1_entries), 4));
	image_put(im, table + 12, 2, 1); /* id, name */
	image_put(im, table + 14, 2, 4);
	image_put(im, table + 36, 4, 16); /* extra data */
	image_put(im, table + 48, 8, image_get(im, offsetof(struct qcow2_header_disk, disk_len), 8));
	sim_poke(im->sim, table + 56, "1snap", 5);
	image_put(im, offsetof(struct qcow2_header_disk, snapshots_off), 8, table);
	image_put(im, offsetof(struct qcow2_header_disk, nr_snapshots), 4, 1);
	return l1_copy;
}

static void what_a_snapshot_shares_is_copied_before_it_is_written(void **state)
{
	struct disk *d = disk_made(MiB(1), "cluster_size=64k");
	uint64_t l1_copy, shared;

	assert_int_equal(disk_write(d, 0, 8 * CLUSTER, 0x11), 0);
	disk_close(d);
	l1_copy = make_snapshot(d);
	expect_found(d->im, 0, 0, 0);
	shared = host_of(d, 1);
	disk_reopen(d);
	assert_int_equal(disk_write(d, CLUSTER + 10, 10, 0x22), 0); /* partly */
	assert_int_equal(disk_write(d, 3 * CLUSTER, CLUSTER, 0x33), 0);
	assert_int_equal(disk_zero(d, 4 * CLUSTER, CLUSTER, false), 0);
	assert_int_equal(disk_zero(d, 5 * CLUSTER, CLUSTER, true), 0);
	assert_int_equal(disk_discard(d, 6 * CLUSTER, CLUSTER), 0);
	assert_int_equal(disk_write(d, 9 * CLUSTER, CLUSTER, 0x44), 0);
	disk_reopen(d);
	disk_expect(d, 0, CLUSTER + 10, 0x11);
	disk_expect(d, CLUSTER + 10, 10, 0x22);
	disk_expect(d, CLUSTER + 20, 2 * CLUSTER - 20, 0x11);
	disk_expect(d, 3 * CLUSTER, CLUSTER, 0x33);
	disk_expect(d, 4 * CLUSTER, 3 * CLUSTER, 0);
	disk_expect(d, 7 * CLUSTER, CLUSTER, 0x11);
	disk_expect(d, 9 * CLUSTER, CLUSTER, 0x44);
	assert_int_equal(image_refcount(d->im, shared), 1);
	disk_close(d);
	expect_found(d->im, 0, 0, 0);
	/* The snapshot's view. */
	image_put(d->im, offsetof(struct qcow2_header_disk, l1_off), 8, l1_copy);
	assert_int_equal(disk_open(d, 0), 0);
	disk_expect(d, 0, 8 * CLUSTER, 0x11);
	disk_expect(d, 8 * CLUSTER, 8 * CLUSTER, 0);
	disk_free(d);
}

/* Compressed data: cluster 1, sectors that begin in one host cluster and end in the next; cluster 2 shares
 * the second. */
static uint64_t make_compressed(struct disk *d)
{
	uint64_t host_off = image_grow(d->im, 2, 1), off = host_off + CLUSTER - 700;
	unsigned bits = 62 - (16 - 8);

	image_put(d->im, image_l2_entry(d->im, 1), 8, QCOW2_COMPRESSED | 2ull << bits | off);
	image_put(d->im, image_l2_entry(d->im, 2), 8,
		  QCOW2_COMPRESSED | 3ull << bits | (host_off + CLUSTER + 1024));
	image_set_refcount(d->im, host_off + CLUSTER, 2);
	return host_off;
}

static void compressed_clusters_lose_each_reference_once(void **state)
{
	struct disk *d = disk_made(MiB(1), "cluster_size=64k");
	uint64_t host_off;

	assert_int_equal(disk_write(d, 0, CLUSTER, 0x11), 0);
	disk_close(d);
	host_off = make_compressed(d);
	expect_found(d->im, 0, 0, 0);
	disk_reopen(d);
	/* A part cannot be written: the rest cannot be read, it is rubbish. Nothing is leaked by trying. */
	assert_int_equal(disk_write(d, CLUSTER + 1, 10, 0x22), codec_available(CODEC_DEFLATE) ? -EIO : -ENOTSUP);
	assert_int_equal(disk_write(d, CLUSTER, CLUSTER, 0x33), 0);
	disk_reopen(d);
	assert_int_equal(image_refcount(d->im, host_off), 0);
	assert_int_equal(image_refcount(d->im, host_off + CLUSTER), 1);
	assert_int_equal(disk_discard(d, 2 * CLUSTER, CLUSTER), 0);
	disk_reopen(d);
	assert_int_equal(image_refcount(d->im, host_off + CLUSTER), 0);
	disk_expect(d, CLUSTER, CLUSTER, 0x33);
	disk_free_clean(d);
}

/* ---- opening for writing ---- */

static int gives_up_a_write(struct fiber *f, struct disk *d)
{
	struct qcow2 *q = disk_state(d);
	struct extent x;
	uint64_t host_off, nr;
	order_mark mark;
	bool fresh;

	/* Given up, and it is durable that nothing leads there: what a guest's discard has become some seconds later. */
	assert_int_equal(alloc_clusters(f, q, 1, &host_off, &nr, &fresh, &mark), 0);
	assert_int_equal(l2_alloc(f, d->n, 0, CLUSTER, &x), 0);
	alloc_free(q, host_off, 1, order_now(q->order), FREED_OTHER);
	assert_int_equal(order_flush(f, q->order), 0);
	assert_false(alloc_idle(q));
	l2_unalloc(f, d->n, &x); /* the file system is full */
	assert_true(alloc_idle(q));
	return 0;
}

/* Else who tries again gets the same clusters again, for which there is no space: for ever, if the guest does not flush. */
static void a_write_that_fails_gives_back_what_is_due(void **state)
{
	struct disk *d = disk_made(MiB(4), "cluster_size=64k");

	(void)state;
	assert_int_equal(disk_call(d, gives_up_a_write), 0);
	disk_free_clean(d);
}

static void autoclear_bits_are_cleared_before_anything_else(void **state)
{
	struct disk *d = disk_made(MiB(1), "cluster_size=64k");
	uint64_t writes;

	disk_close(d);
	image_put(d->im, offsetof(struct qcow2_header_disk, autoclear), 8, 0x8000000000000005);
	assert_int_equal(disk_open(d, 0), 0);
	disk_close(d);
	assert_int_equal(image_get(d->im, offsetof(struct qcow2_header_disk, autoclear), 8),
			 0x8000000000000005);
	writes = d->im->nr_writes;
	assert_int_equal(disk_open(d, NODE_WRITABLE), 0);
	/* Cleared, stable, and nothing else was written. */
	assert_int_equal(d->im->nr_writes, writes + 1);
	assert_int_equal(sim_nr_unstable(d->im->sim), 0);
	assert_int_equal(image_get(d->im, offsetof(struct qcow2_header_disk, autoclear), 8), 0);
	disk_free(d);
}

/* Opened for changes of metadata only, they stay until the first of these; the power may be lost at any step of it. */
static void autoclear_bits_go_with_the_first_change_before_anything_else(void **state)
{
	unsigned at = offsetof(struct qcow2_header_disk, autoclear);
	struct disk *d = disk_made(MiB(1), "cluster_size=64k");
	struct cuts cuts;
	unsigned kept = 0;

	(void)state;
	disk_close(d);
	image_put(d->im, at, 8, 0x8000000000000004);
	assert_int_equal(disk_open(d, NODE_WRITABLE | NODE_BITMAPS), 0);
	assert_int_equal(image_get(d->im, at, 8), 0x8000000000000004);
	cuts_begin(&cuts, d);
	cuts_add(&cuts, 0, 0); /* as it was */
	assert_int_equal(disk_truncate(d, MiB(64)), 0);
	cuts_end(&cuts);
	for (unsigned i = 0; i < cuts.nr; i++) {
		const struct cut *c = &cuts.all[i];
		be64 bits;

		memcpy(&bits, c->bytes + at, 8);
		if (!be64_get(bits))
			continue;
		kept++;
		assert_int_equal(c->len, cuts.all[0].len);
		assert_memory_equal(c->bytes, cuts.all[0].bytes, c->len);
	}
	assert_in_range(kept, 1, cuts.nr - 1);
	cuts_free(&cuts);
	disk_free(d);
}

static void expect_refused(struct disk *d, int code, const char *words)
{
	uint64_t writes = d->im->nr_writes;
	int ret = disk_open(d, NODE_WRITABLE);

	if (ret != code || !strstr(d->err.message, words))
		fail_msg("expected %d and '%s', got %d and '%s'", code, words, ret, d->err.message);
	assert_int_equal(d->im->nr_writes, writes);
}

static void what_cannot_be_written_safely_is_refused(void **state)
{
	struct disk *d = disk_made(MiB(1), "cluster_size=64k");
	unsigned incompatible = offsetof(struct qcow2_header_disk, incompatible);

	disk_close(d);
	image_put(d->im, offsetof(struct qcow2_header_disk, autoclear), 8, 0x100);
	image_put(d->im, incompatible, 8, QCOW2_INCOMPAT_CORRUPT);
	expect_refused(d, -EIO, "marked corrupt");
	assert_int_equal(disk_open(d, 0), 0);
	disk_close(d);
	image_put(d->im, incompatible, 8, 1ull << 63);
	expect_refused(d, -ENOTSUP, "incompatible bit 63");
	assert_int_equal(disk_open(d, 0), -ENOTSUP);
	disk_free(d);
}

static void an_untouched_disk_is_not_written(void **state)
{
	struct disk *d = disk_made(MiB(1), "cluster_size=64k,lazy_refcounts=on");
	uint64_t writes = d->im->nr_writes;

	disk_reopen(d);
	disk_expect(d, 0, MiB(1), 0);
	assert_int_equal(disk_flush(d), 0);
	disk_reopen(d);
	assert_int_equal(d->im->nr_writes, writes);
	disk_free_clean(d);
}

/* ---- a longer disk ---- */

static void a_longer_disk_keeps_what_it_had(void **state)
{
	struct disk *d = disk_made(KiB(64), "cluster_size=512");

	assert_int_equal(disk_write(d, 0, KiB(64), 0x11), 0);
	assert_int_equal(disk_truncate(d, KiB(65)), 0);	   /* within L1 */
	assert_int_equal(disk_truncate(d, MiB(4) + 1), 0); /* L1 moves; rounded up to sectors */
	assert_int_equal(node_len(d->n), MiB(4) + 512);
	disk_expect(d, 0, KiB(64), 0x11);
	disk_expect(d, KiB(64), MiB(4) + 512 - KiB(64), 0);
	assert_int_equal(disk_write(d, MiB(4) - 100, 612, 0x22), 0);
	disk_reopen(d);
	assert_int_equal(node_len(d->n), MiB(4) + 512);
	disk_expect(d, 0, KiB(64), 0x11);
	disk_expect(d, KiB(64), MiB(4) - KiB(64) - 100, 0);
	disk_expect(d, MiB(4) - 100, 612, 0x22);
	assert_int_equal(disk_truncate(d, MiB(30)), 0);
	assert_int_equal(disk_write(d, MiB(29), 512, 0x33), 0);
	disk_free_clean(d);
}

static void lengths_that_cannot_be_are_refused(void **state)
{
	struct disk *d = disk_made(MiB(1), "cluster_size=512,compat=0.10");

	assert_int_equal(disk_truncate(d, UINT64_MAX), -EFBIG);
	assert_int_equal(disk_truncate(d, TiB(1)), -EFBIG);
	assert_int_equal(disk_truncate(d, MiB(1)), 0);
	assert_int_equal(node_len(d->n), MiB(1));
	assert_int_equal(disk_write(d, 0, 512, 1), 0);
	disk_close(d);
	make_snapshot(d);
	disk_reopen(d);
	assert_int_equal(disk_truncate(d, MiB(2)), -ENOTSUP);
	assert_non_null(strstr(d->err.message, "snapshots"));
	disk_free_clean(d);
}

/* The new part would show the backing image's old data, or bytes that a program before us left in the last cluster. */
static void what_is_new_reads_as_zeroes(void **state)
{
	static const char *const options[] = { "cluster_size=64k", "cluster_size=4k", "cluster_size=4k,compat=0.10" };

	for (unsigned i = 0; i < ARRAY_LEN(options); i++) {
		struct disk *d = disk_made(MiB(1) - 512, options[i]);

		disk_close(d);
		d->backing_len = MiB(2);
		disk_reopen(d);
		assert_int_equal(disk_write(d, 4096, 512, 0x11), 0);
		assert_int_equal(disk_truncate(d, MiB(3)), 0);
		disk_reopen(d);
		disk_expect(d, 4096, 512, 0x11);
		disk_expect(d, MiB(1) - 512, MiB(2) + 512, 0);
		assert_int_equal(disk_write(d, MiB(2) - 100, 200, 0x22), 0);
		disk_expect(d, MiB(2) - 4096, 4096 - 100, 0);
		disk_free_clean(d);
	}
}

/* ---- a shorter disk ---- */

/* What is cut off is gone: space and bytes, whoever makes the disk longer again. */
static void a_shorter_disk_forgets_what_was_behind_its_end(void **state)
{
	static const uint64_t lens[] = { 0, 512, KiB(60), KiB(64), KiB(200) + 512, MiB(1) };

	for (unsigned i = 0; i < ARRAY_LEN(lens); i++) {
		struct disk *d = disk_made(MiB(4), "cluster_size=4k");

		assert_int_equal(disk_write(d, 0, MiB(4), 0x11), 0);
		assert_int_equal(disk_truncate(d, lens[i]), 0);
		assert_int_equal(node_len(d->n), lens[i]);
		disk_reopen(d);
		assert_int_equal(node_len(d->n), lens[i]);
		disk_expect(d, 0, lens[i], 0x11);
		assert_int_equal(disk_truncate(d, MiB(5)), 0);
		disk_expect(d, lens[i], MiB(5) - lens[i], 0);
		assert_int_equal(disk_write(d, MiB(4) - 512, 1024, 0x22), 0);
		disk_free_clean(d);
	}
}

static void a_snapshot_keeps_what_is_cut_off(void **state)
{
	struct disk *d = disk_made(MiB(2), "cluster_size=4k");

	assert_int_equal(disk_write(d, 0, MiB(2), 0x11), 0);
	disk_close(d);
	make_snapshot(d);
	disk_reopen(d);
	assert_int_equal(disk_truncate(d, KiB(6)), 0);
	assert_int_equal(disk_write(d, 0, KiB(6), 0x22), 0);
	assert_int_equal(disk_truncate(d, MiB(2)), 0);
	disk_expect(d, KiB(6), MiB(2) - KiB(6), 0);
	disk_free_clean(d);
}

static void new_space_can_be_had_in_advance(void **state)
{
	for (enum prealloc mode = PREALLOC_METADATA; mode <= PREALLOC_FULL; mode++) {
		struct disk *d = disk_made(MiB(1) - 512, "cluster_size=4k");
		struct extent e;

		assert_int_equal(disk_write(d, MiB(1) - 1024, 512, 0x11), 0);
		assert_int_equal(disk_truncate_prealloc(d, MiB(3) + 512, mode), 0);
		disk_reopen(d);
		disk_expect(d, MiB(1) - 1024, 512, 0x11);
		disk_expect(d, MiB(1) - 512, MiB(2) + 1024, 0);
		for (uint64_t off = MiB(1); off < MiB(3); off += KiB(4)) {
			e = disk_map(d, off, KiB(4));
			assert_int_equal(e.kind, EXTENT_DATA);
		}
		assert_int_equal(disk_truncate_prealloc(d, MiB(1), mode), -EINVAL);
		disk_free_clean(d);
	}
}

/* ---- devices ---- */

/* On a device the end of the file says nothing about the end of the image; and nobody can write beyond it. */
static void a_device_is_filled_up_to_its_end(void **state)
{
	struct disk *d = disk_made(MiB(4), "cluster_size=64k");
	uint8_t junk[4096];
	unsigned written = 0;

	assert_int_equal(disk_write(d, 0, CLUSTER, 0x11), 0);
	disk_close(d);
	d->device = true;
	assert_int_equal(sim_truncate(d->im->sim, MiB(1) + 1000), 0);
	memset(junk, 0xdd, sizeof(junk));
	for (uint64_t off = 7 * CLUSTER; off + sizeof(junk) <= MiB(1); off += sizeof(junk))
		sim_poke(d->im->sim, off, junk, sizeof(junk));
	disk_reopen(d);
	/* What lies there from before is not taken for zeroes. */
	assert_int_equal(disk_write(d, 2 * CLUSTER + 100, 100, 0x22), 0);
	disk_expect(d, 2 * CLUSTER, 100, 0);
	disk_expect(d, 2 * CLUSTER + 100, 100, 0x22);
	disk_expect(d, 2 * CLUSTER + 200, CLUSTER - 200, 0);
	assert_true(disk_map(d, 2 * CLUSTER, 1).host_off < MiB(1) / 2);
	for (unsigned i = 4; i < 64; i++) {
		int ret = disk_write(d, i * CLUSTER, CLUSTER, 0x33);

		assert_true(ret == 0 || ret == -ENOSPC);
		written += ret == 0;
	}
	assert_int_equal(written, MiB(1) / CLUSTER - 7); /* 5 of metadata, 2 of data were there */
	assert_int_equal(sim_len(d->im->sim), MiB(1) + 1000);
	/* Space that is given back is used again, though the frontier cannot move. */
	assert_int_equal(disk_discard(d, 0, CLUSTER), 0);
	assert_int_equal(disk_flush(d), 0);
	assert_int_equal(disk_write(d, 60 * CLUSTER, CLUSTER, 0x44), 0);
	assert_int_equal(disk_write(d, 61 * CLUSTER, CLUSTER, 0x44), -ENOSPC);
	disk_reopen(d);
	disk_expect(d, 60 * CLUSTER, CLUSTER, 0x44);
	disk_expect(d, 4 * CLUSTER, 9 * CLUSTER, 0x33);
	disk_free_clean(d);
}

/* ---- refcounts ---- */

/* A file that outgrows its refcount table several times; each table and block counts itself or another. */
static void the_refcount_table_grows(void **state)
{
	static const char *const options[] = { "cluster_size=512,refcount_bits=64",
					       "cluster_size=512,refcount_bits=16",
					       "cluster_size=512,refcount_bits=1",
					       "cluster_size=1k,refcount_bits=32" };

	for (unsigned i = 0; i < ARRAY_LEN(options); i++) {
		struct disk *d = disk_made(MiB(12), options[i]);
		uint64_t table = image_get(d->im, offsetof(struct qcow2_header_disk, refcount_table_off), 8);

		d->options = "refcount-cache-size=64k";
		disk_reopen(d);
		for (uint64_t off = 0; off < MiB(12); off += KiB(100)) {
			uint64_t len = MIN(KiB(100), MiB(12) - off);

			assert_int_equal(disk_write(d, off, len, (uint8_t)(off / KiB(100))), 0);
			if (off % KiB(700) == 0)
				assert_int_equal(disk_flush(d), 0);
		}
		for (uint64_t off = 0; off < MiB(12); off += KiB(100))
			disk_expect(d, off, MIN(KiB(100), MiB(12) - off), (uint8_t)(off / KiB(100)));
		assert_int_equal(disk_close(d), 0);
		if (i < 2) /* these tables cover 2 and 8 MiB */
			assert_true(table != image_get(d->im,
						       offsetof(struct qcow2_header_disk, refcount_table_off),
						       8));
		expect_found(d->im, 0, 0, 0);
		disk_free(d);
	}
}

static void every_width_holds_its_numbers(void **state)
{
	uint8_t block[64];

	for (unsigned order = 0; order <= 6; order++) {
		uint64_t max = UINT64_MAX >> (64 - (1u << order));
		unsigned n = (unsigned)(sizeof(block) * 8 >> order);

		memset(block, 0, sizeof(block));
		for (unsigned i = 0; i < n; i++)
			refcount_write(block, order, i, i & 1 ? max : (i / 2) & max);
		for (unsigned i = 0; i < n; i++)
			assert_int_equal(refcount_read(block, order, i), i & 1 ? max : (i / 2) & max);
	}
	/* Narrow counts fill a byte from its low bits. */
	memset(block, 0, sizeof(block));
	refcount_write(block, 1, 1, 2);
	assert_int_equal(block[0], 0x08);
	memset(block, 0, sizeof(block));
	refcount_write(block, 4, 0, 0x0102);
	assert_int_equal(block[0], 0x01);
	assert_int_equal(block[1], 0x02);
}

static int count_beyond_the_width(struct fiber *f, struct disk *d)
{
	struct qcow2 *q = disk_state(d);
	uint64_t count;
	order_mark mark;

	assert_int_equal(refcount_get(f, q, 0, &count), 0);
	assert_int_equal(count, 1);
	assert_int_equal(refcount_add(f, q, 0, 1, 1, ORDER_NONE, &mark), -ERANGE);
	/* All or nothing: the second of the two cannot go down. */
	assert_int_equal(refcount_add(f, q, q->end_cluster - 1, 2, -1, ORDER_NONE, &mark), -EIO);
	assert_int_equal(refcount_get(f, q, q->end_cluster - 1, &count), 0);
	assert_int_equal(count, 1);
	assert_int_equal(refcount_get(f, q, UINT64_MAX >> 16, &count), 0);
	assert_int_equal(count, 0);
	return 0;
}

static void counts_stay_in_their_width(void **state)
{
	struct disk *d = disk_made(MiB(1), "cluster_size=64k,refcount_bits=1");

	disk_call(d, count_beyond_the_width);
	disk_free_clean(d);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_is_written_is_there_after_reopening),
		cmocka_unit_test(a_second_write_goes_to_the_same_place),
		cmocka_unit_test(a_partial_write_brings_the_rest_from_the_backing_image),
		cmocka_unit_test(many_at_once_share_a_new_table),
		cmocka_unit_test(a_table_made_in_this_session_is_not_read),
		cmocka_unit_test(new_tables_larger_than_the_cache_keep_their_entries),
		cmocka_unit_test(zeroes_keep_their_space_and_are_written_there_again),
		cmocka_unit_test(unmapped_zeroes_give_their_space_to_the_next),
		cmocka_unit_test(zeroes_hide_the_backing_image),
		cmocka_unit_test(discarded_clusters_do_not_show_the_backing_image),
		cmocka_unit_test(discard_without_backing_forgets_the_clusters),
		cmocka_unit_test(what_a_snapshot_shares_is_copied_before_it_is_written),
		cmocka_unit_test(compressed_clusters_lose_each_reference_once),
		cmocka_unit_test(a_write_that_fails_gives_back_what_is_due),
		cmocka_unit_test(autoclear_bits_are_cleared_before_anything_else),
		cmocka_unit_test(autoclear_bits_go_with_the_first_change_before_anything_else),
		cmocka_unit_test(what_cannot_be_written_safely_is_refused),
		cmocka_unit_test(an_untouched_disk_is_not_written),
		cmocka_unit_test(a_longer_disk_keeps_what_it_had),
		cmocka_unit_test(lengths_that_cannot_be_are_refused),
		cmocka_unit_test(what_is_new_reads_as_zeroes),
		cmocka_unit_test(a_shorter_disk_forgets_what_was_behind_its_end),
		cmocka_unit_test(a_snapshot_keeps_what_is_cut_off),
		cmocka_unit_test(new_space_can_be_had_in_advance),
		cmocka_unit_test(a_device_is_filled_up_to_its_end),
		cmocka_unit_test(the_refcount_table_grows),
		cmocka_unit_test(every_width_holds_its_numbers),
		cmocka_unit_test(counts_stay_in_their_width),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
