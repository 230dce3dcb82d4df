/* SPDX-License-Identifier: MIT */
/*
 * unit/format/qed/test_qed.c - QED images: bounds of the header, the flag, repair, damage, growth
 *
 * The file below is a simulated one, which outlives the disk opened over it. Time is virtual.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "aio/sim.h"
#include "block/graph.h"
#include "format/qed/driver.h"
#include "format/qed/qed.h"
#include "proto/proto.h"

#define CLUSTER 4096u
#define TABLE (2 * CLUSTER) /* table_size=2: 1024 entries, 4 MiB each L2 */
#define L1_OFF CLUSTER

struct world {
	struct queue *q;
	struct sim_file *sim;
	struct aio_file af;
	struct node *disk; /* NULL: closed */
	bool device;
	struct varve_error err;
	/* of the call under way */
	uint32_t flags;
	uint64_t off, len;
	uint8_t byte;
	const char *options;
	struct varve_check_result found;
	int (*fn)(struct fiber *f, struct world *w);
};

static int call_fiber(struct fiber *f, void *arg)
{
	struct world *w = arg;

	return w->fn(f, w);
}

static int call(struct world *w, int (*fn)(struct fiber *f, struct world *w))
{
	w->fn = fn;
	return fiber_call(w->q, call_fiber, w);
}

static int leaf_new(struct fiber *f, struct world *w, uint32_t flags, struct node **ret)
{
	int r = sim_node_new(f, w->sim, &w->af, flags & NODE_WRITABLE, ret, &w->err);

	if (r == 0)
		(*ret)->fixed_len = w->device;
	return r;
}

static int create_fn(struct fiber *f, struct world *w)
{
	struct opts *o = opts_new();
	struct node *leaf;
	int ret;

	assert_int_equal(leaf_new(f, w, NODE_WRITABLE, &leaf), 0);
	ret = opts_parse(o, w->options, &w->err);
	assert_int_equal(ret, 0);
	ret = driver_qed.create(f, leaf, w->len, o, NULL, NULL, &w->err);
	opts_free(o);
	graph_close(f, leaf, NULL);
	return ret;
}

static int create(struct world *w, uint64_t len, const char *options)
{
	w->len = len;
	w->options = options;
	w->err = (struct varve_error){ 0, "" };
	return call(w, create_fn);
}

static int open_fn(struct fiber *f, struct world *w)
{
	struct opts *o = opts_new();
	struct node *leaf;
	int ret;

	assert_int_equal(leaf_new(f, w, w->flags, &leaf), 0);
	ret = graph_stack(f, &driver_qed, leaf, o, w->flags, &w->disk, &w->err);
	opts_free(o);
	if (ret < 0) {
		w->disk = NULL;
		graph_close(f, leaf, NULL);
	}
	return ret;
}

static int open_disk(struct world *w, uint32_t flags)
{
	w->flags = flags;
	w->err = (struct varve_error){ 0, "" };
	return call(w, open_fn);
}

static int close_fn(struct fiber *f, struct world *w)
{
	int ret = graph_close(f, w->disk, &w->err);

	w->disk = NULL;
	return ret;
}

static int write_fn(struct fiber *f, struct world *w)
{
	uint8_t *buf = malloc(w->len);
	int ret;

	memset(buf, w->byte, w->len);
	ret = node_write(f, w->disk, w->off, buf, w->len);
	free(buf);
	return ret;
}

static int write_at(struct world *w, uint64_t off, uint64_t len, uint8_t byte)
{
	w->off = off;
	w->len = len;
	w->byte = byte;
	return call(w, write_fn);
}

static int read_fn(struct fiber *f, struct world *w)
{
	uint8_t *buf = malloc(w->len);
	int ret = node_read(f, w->disk, w->off, buf, w->len);

	for (uint64_t i = 0; ret == 0 && i < w->len; i++)
		assert_int_equal(buf[i], w->byte);
	free(buf);
	return ret;
}

static int read_at(struct world *w, uint64_t off, uint64_t len, uint8_t byte)
{
	w->off = off;
	w->len = len;
	w->byte = byte;
	return call(w, read_fn);
}

static int zero_fn(struct fiber *f, struct world *w)
{
	return node_zero(f, w->disk, w->off, w->len, REQ_MAY_UNMAP);
}

static int flush_fn(struct fiber *f, struct world *w)
{
	return node_flush(f, w->disk);
}

static int grow_fn(struct fiber *f, struct world *w)
{
	return node_truncate(f, w->disk, w->len, false, &w->err);
}

static int grow_to(struct world *w, uint64_t len)
{
	w->len = len;
	w->err = (struct varve_error){ 0, "" };
	return call(w, grow_fn);
}

static int check_fn(struct fiber *f, struct world *w)
{
	struct check c = { .result = &w->found };

	w->found = (struct varve_check_result){ 0 };
	return driver_qed.check(f, w->disk, &c, &w->err);
}

static void expect_found(struct world *w, uint64_t corruptions, uint64_t leaks)
{
	assert_int_equal(open_disk(w, NODE_CHECK), 0);
	assert_int_equal(call(w, check_fn), 0);
	assert_int_equal(w->found.corruptions, corruptions);
	assert_int_equal(w->found.leaks, leaks);
	assert_int_equal(w->found.check_errors, 0);
	assert_int_equal(call(w, close_fn), 0);
}

/* ---- bytes of the file ---- */

static uint64_t get64(struct world *w, uint64_t off)
{
	le64 x;

	sim_peek(w->sim, off, &x, sizeof(x));
	return le64_get(x);
}

static void put64(struct world *w, uint64_t off, uint64_t value)
{
	le64 x = le64_put(value);

	sim_poke(w->sim, off, &x, sizeof(x));
}

static void put32(struct world *w, uint64_t off, uint32_t value)
{
	le32 x = le32_put(value);

	sim_poke(w->sim, off, &x, sizeof(x));
}

static bool flag_on_disk(struct world *w)
{
	return get64(w, 16) & QED_F_NEED_CHECK;
}

/* Where the L2 entry of a guest cluster of the first table lies. */
static uint64_t l2_entry(struct world *w, uint64_t cluster)
{
	return get64(w, L1_OFF) + cluster * 8;
}

/* ---- setting up ---- */

static int setup(void **state)
{
	struct world *w = calloc(1, sizeof(*w));
	struct queue_opts qo = { .virtual_time = true };
	struct sim_opts so = { .min_ns = 1000, .max_ns = 1000 };

	if (queue_new(&w->q, &qo, NULL) < 0 || sim_file_new(&w->sim, &w->af, &so) < 0 ||
	    create(w, MiB(16), "cluster_size=4k,table_size=2") < 0)
		return -1;
	*state = w;
	return 0;
}

static int teardown(void **state)
{
	struct world *w = *state;

	if (w->disk)
		call(w, close_fn);
	queue_free(w->q);
	sim_file_free(w->sim);
	free(w);
	return 0;
}

/* ---- header ---- */

static void every_field_of_the_header_is_bounded(void **state)
{
	static const struct {
		unsigned off, bytes;
		uint64_t value;
		const char *says;
	} cases[] = {
		{ 0, 4, 0x00444552, "no QED image" },
		{ 4, 4, 0, "cluster size 0" },
		{ 4, 4, 2048, "cluster size 2048" },
		{ 4, 4, 5000, "cluster size 5000" },
		{ 4, 4, 1u << 27, "cluster size" },
		{ 8, 4, 0, "table size of 0" },
		{ 8, 4, 3, "table size of 3" },
		{ 8, 4, 32, "table size of 32" },
		{ 12, 4, 0, "header size is 0" },
		{ 12, 4, 2, "L1 table at 0x1000" },
		{ 12, 4, 0xffffffff, "L1 table at 0x1000" },
		{ 16, 8, 8, "unknown feature bits 0x8" },
		{ 40, 8, 0, "L1 table at 0x0" },
		{ 40, 8, 4097, "L1 table at 0x1001" },
		{ 40, 8, ~0ull << 12, "L1 table at" },
		{ 40, 8, CLUSTER * 100, "beyond the end of the file" },
		{ 48, 8, 511, "image size 511" },
		{ 48, 8, 1ull << 40, "image size" },
		{ 48, 8, ~511ull, "image size" },
	};
	struct world *w = *state;

	for (unsigned i = 0; i < ARRAY_LEN(cases); i++) {
		uint8_t before[8];

		sim_peek(w->sim, cases[i].off, before, sizeof(before));
		if (cases[i].bytes == 4)
			put32(w, cases[i].off, (uint32_t)cases[i].value);
		else
			put64(w, cases[i].off, cases[i].value);
		assert_true(open_disk(w, NODE_WRITABLE) < 0);
		if (!strstr(w->err.message, cases[i].says))
			fail_msg("case %u: \"%s\" does not say \"%s\"", i, w->err.message, cases[i].says);
		sim_poke(w->sim, cases[i].off, before, sizeof(before));
	}
	assert_int_equal(open_disk(w, NODE_WRITABLE), 0);
}

static void a_backing_file_name_lies_in_the_header(void **state)
{
	static const struct { uint32_t off, len; } bad[] = {
		{ 0, 4 }, { 63, 4 }, { 64, 0 }, { 64, 1024 }, { 4093, 4 }, { 0xffffffff, 16 }, { 64, 0xffffffff },
	};
	struct world *w = *state;

	put64(w, 16, QED_F_BACKING_FILE | QED_F_BACKING_FORMAT_NO_PROBE);
	for (unsigned i = 0; i < ARRAY_LEN(bad); i++) {
		put32(w, 56, bad[i].off);
		put32(w, 60, bad[i].len);
		assert_int_equal(open_disk(w, NODE_NO_BACKING), -EINVAL);
		assert_non_null(strstr(w->err.message, "backing file name"));
	}
	put32(w, 56, 64);
	put32(w, 60, 4);
	assert_int_equal(open_disk(w, NODE_NO_BACKING), -EINVAL); /* four zero bytes are no name */
	sim_poke(w->sim, 64, "base", 4);
	assert_int_equal(open_disk(w, NODE_NO_BACKING), 0);
	assert_string_equal(w->disk->backing_name, "base");
	assert_string_equal(w->disk->backing_format, "raw");
}

static void unknown_autoclear_bits_are_cleared_by_a_writer_only(void **state)
{
	struct world *w = *state;

	put64(w, 32, 0x30);
	assert_int_equal(open_disk(w, 0), 0);
	call(w, close_fn);
	assert_int_equal(get64(w, 32), 0x30);
	assert_int_equal(open_disk(w, NODE_WRITABLE), 0);
	assert_int_equal(get64(w, 32), 0);
}

static void a_device_cannot_grow_and_is_not_written(void **state)
{
	struct world *w = *state;

	w->device = true;
	assert_int_equal(open_disk(w, NODE_WRITABLE), -ENOTSUP);
	assert_int_equal(open_disk(w, 0), 0);
}

/* ---- the flag ---- */

static void the_flag_stands_from_the_first_flush_until_the_disk_is_idle(void **state)
{
	struct world *w = *state;

	assert_int_equal(open_disk(w, NODE_WRITABLE), 0);
	assert_int_equal(write_at(w, 0, 512, 0x11), 0);
	assert_int_equal(call(w, flush_fn), 0);
	assert_true(flag_on_disk(w));
	for (unsigned i = 0; i < 5; i++) { /* allocations keep it */
		queue_advance(w->q, 4000000000ull);
		queue_turn(w->q, 0);
		assert_int_equal(write_at(w, MiB(1) * (i + 1), 512, 0x22), 0);
	}
	assert_true(flag_on_disk(w));
	queue_advance(w->q, 5000000001ull);
	for (unsigned i = 0; i < 100 && flag_on_disk(w); i++) {
		queue_turn(w->q, 0);
		queue_advance(w->q, 1000);
	}
	assert_false(flag_on_disk(w));
	/* Writes in place need none. */
	assert_int_equal(write_at(w, 0, 4096, 0x33), 0);
	assert_int_equal(call(w, flush_fn), 0);
	assert_false(flag_on_disk(w));
	assert_int_equal(write_at(w, MiB(9), 512, 0x44), 0);
	assert_int_equal(call(w, flush_fn), 0);
	assert_true(flag_on_disk(w));
	assert_int_equal(call(w, close_fn), 0);
	assert_false(flag_on_disk(w));
	expect_found(w, 0, 0);
}

/* What a program leaves that made entries durable before what they lead to, and then died. */
static void an_unclean_image_is_repaired_by_the_next_writer(void **state)
{
	struct world *w = *state;
	uint64_t len;

	assert_int_equal(open_disk(w, NODE_WRITABLE), 0);
	assert_int_equal(write_at(w, 0, 3 * CLUSTER, 0x11), 0);
	assert_int_equal(call(w, close_fn), 0);
	len = sim_len(w->sim);
	put64(w, l2_entry(w, 5), len + 10 * CLUSTER); /* beyond the end */
	put64(w, l2_entry(w, 6), 12345);	      /* no cluster */
	put64(w, L1_OFF + 8, len + 2 * CLUSTER);      /* a table that is not all in the file */
	put64(w, 16, QED_F_NEED_CHECK);
	assert_int_equal(sim_truncate(w->sim, len + 3 * CLUSTER), 0); /* clusters that nobody refers to */
	expect_found(w, 3, 3);

	assert_int_equal(open_disk(w, 0), 0); /* a reader changes nothing */
	assert_int_equal(read_at(w, 0, 3 * CLUSTER, 0x11), 0);
	assert_int_equal(read_at(w, 5 * CLUSTER, 512, 0), -EIO);
	assert_int_equal(call(w, close_fn), 0);
	assert_true(flag_on_disk(w));

	assert_int_equal(open_disk(w, NODE_WRITABLE), 0);
	assert_false(flag_on_disk(w));
	assert_int_equal(sim_len(w->sim), len);
	assert_int_equal(read_at(w, 0, 3 * CLUSTER, 0x11), 0);
	assert_int_equal(read_at(w, 3 * CLUSTER, MiB(5), 0), 0);
	assert_int_equal(write_at(w, 5 * CLUSTER, CLUSTER, 0x55), 0);
	assert_int_equal(call(w, close_fn), 0);
	expect_found(w, 0, 0);
}

static void shared_clusters_are_nobodys_to_give_away(void **state)
{
	struct world *w = *state;

	assert_int_equal(open_disk(w, NODE_WRITABLE), 0);
	assert_int_equal(write_at(w, 0, 2 * CLUSTER, 0x11), 0);
	assert_int_equal(call(w, close_fn), 0);
	put64(w, l2_entry(w, 1), get64(w, l2_entry(w, 0)));
	put64(w, 16, QED_F_NEED_CHECK);
	assert_int_equal(open_disk(w, NODE_WRITABLE), -EIO);
	assert_non_null(strstr(w->err.message, "in use already"));
	assert_true(flag_on_disk(w));
	assert_int_equal(open_disk(w, 0), 0);
	assert_int_equal(call(w, close_fn), 0);
	expect_found(w, 1, 1);
}

/* ---- damage ---- */

static void entries_that_lead_into_metadata_are_refused(void **state)
{
	struct world *w = *state;
	uint64_t places[4];

	assert_int_equal(open_disk(w, NODE_WRITABLE), 0);
	assert_int_equal(write_at(w, 0, CLUSTER, 0x11), 0);
	assert_int_equal(call(w, close_fn), 0);
	places[0] = L1_OFF;
	places[1] = L1_OFF + CLUSTER;
	places[2] = get64(w, L1_OFF);
	places[3] = get64(w, L1_OFF) + CLUSTER;
	for (unsigned i = 0; i < ARRAY_LEN(places); i++) {
		put64(w, l2_entry(w, 7), places[i]);
		assert_int_equal(open_disk(w, NODE_WRITABLE), 0);
		assert_int_equal(write_at(w, 7 * CLUSTER, 512, 0xff), -EIO);
		assert_int_equal(read_at(w, 7 * CLUSTER, 512, 0), -EIO);
		assert_int_equal(read_at(w, 0, CLUSTER, 0x11), 0);
		assert_int_equal(call(w, close_fn), 0);
		expect_found(w, 1, 0);
	}
}

static void tables_that_share_space_are_not_written(void **state)
{
	struct world *w = *state;

	assert_int_equal(open_disk(w, NODE_WRITABLE), 0);
	assert_int_equal(write_at(w, 0, CLUSTER, 0x11), 0);
	assert_int_equal(write_at(w, CLUSTER, 3 * CLUSTER, 0x11), 0);
	assert_int_equal(call(w, close_fn), 0);
	put64(w, L1_OFF + 8, get64(w, L1_OFF) + CLUSTER);
	assert_int_equal(open_disk(w, NODE_WRITABLE), -EIO);
	assert_non_null(strstr(w->err.message, "share space"));
	assert_int_equal(open_disk(w, 0), 0);
	assert_int_equal(read_at(w, 0, 4 * CLUSTER, 0x11), 0);
}

/* A file that was cut reads with an error, not with zeroes. */
static void what_the_file_has_lost_is_an_error(void **state)
{
	struct world *w = *state;

	assert_int_equal(open_disk(w, NODE_WRITABLE), 0);
	assert_int_equal(write_at(w, 0, CLUSTER, 0x11), 0); /* the table comes behind this one */
	assert_int_equal(write_at(w, CLUSTER, 3 * CLUSTER, 0x11), 0);
	assert_int_equal(call(w, close_fn), 0);
	assert_int_equal(sim_truncate(w->sim, get64(w, l2_entry(w, 3))), 0);
	assert_int_equal(open_disk(w, 0), 0);
	assert_int_equal(read_at(w, 0, 3 * CLUSTER, 0x11), 0);
	assert_int_equal(read_at(w, 3 * CLUSTER, 512, 0), -EIO);
	assert_int_equal(call(w, close_fn), 0);
	expect_found(w, 1, 0);
}

/* ---- zeroes, length, options ---- */

static void zeroes_give_space_back_in_place(void **state)
{
	struct world *w = *state;
	uint64_t place;

	assert_int_equal(open_disk(w, NODE_WRITABLE), 0);
	assert_int_equal(write_at(w, 0, 2 * CLUSTER, 0x11), 0);
	assert_int_equal(call(w, flush_fn), 0);
	place = get64(w, l2_entry(w, 0));
	w->off = 0;
	w->len = CLUSTER;
	assert_int_equal(call(w, zero_fn), 0);
	assert_int_equal(read_at(w, 0, CLUSTER, 0), 0);
	assert_int_equal(read_at(w, CLUSTER, CLUSTER, 0x11), 0);
	assert_int_equal(call(w, close_fn), 0);
	assert_int_equal(get64(w, l2_entry(w, 0)), place);
	expect_found(w, 0, 0);
}

static void a_disk_grows_and_does_not_shrink(void **state)
{
	struct world *w = *state;

	assert_int_equal(open_disk(w, NODE_WRITABLE), 0);
	assert_int_equal(write_at(w, MiB(16) - 512, 512, 0x11), 0);
	assert_int_equal(grow_to(w, MiB(16) - 512), -ENOTSUP);
	assert_int_equal(grow_to(w, GiB(5)), -EFBIG); /* 1024 x 1024 x 4 KiB is the most */
	assert_int_equal(grow_to(w, MiB(100) + 1), 0);
	assert_int_equal(node_len(w->disk), MiB(100) + 512);
	assert_int_equal(write_at(w, MiB(100), 512, 0x22), 0);
	assert_int_equal(call(w, close_fn), 0);
	assert_int_equal(open_disk(w, 0), 0);
	assert_int_equal(read_at(w, MiB(16) - 512, 512, 0x11), 0);
	assert_int_equal(read_at(w, MiB(16), 4096, 0), 0);
	assert_int_equal(read_at(w, MiB(100), 512, 0x22), 0);
	assert_int_equal(call(w, close_fn), 0);
	expect_found(w, 0, 0);
}

static void options_of_create_are_checked_before_the_file_is_emptied(void **state)
{
	static const struct { uint64_t len; const char *options, *says; } cases[] = {
		{ MiB(1), "cluster_size=2k", "cluster_size=2k" },
		{ MiB(1), "cluster_size=100000", "power of two" },
		{ MiB(1), "cluster_size=128M", "64M" },
		{ MiB(1), "table_size=3", "table_size=3" },
		{ MiB(1), "table_size=32", "table_size=32" },
		{ MiB(1), "backing_fmt=raw", "needs backing_file" },
		{ MiB(1), "compat=1.1", "compat" },
		{ GiB(2), "cluster_size=4k,table_size=1", "too large" },
	};
	struct world *w = *state;
	uint64_t before = sim_len(w->sim);

	for (unsigned i = 0; i < ARRAY_LEN(cases); i++) {
		assert_true(create(w, cases[i].len, cases[i].options) < 0);
		if (!strstr(w->err.message, cases[i].says))
			fail_msg("case %u: \"%s\" does not say \"%s\"", i, w->err.message, cases[i].says);
		assert_int_equal(sim_len(w->sim), before);
	}
	assert_int_equal(create(w, 1000, "cluster_size=64M,table_size=16"), 0);
	assert_int_equal(open_disk(w, 0), 0);
	assert_int_equal(node_len(w->disk), 1024);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = {
		T(every_field_of_the_header_is_bounded),
		T(a_backing_file_name_lies_in_the_header),
		T(unknown_autoclear_bits_are_cleared_by_a_writer_only),
		T(a_device_cannot_grow_and_is_not_written),
		T(the_flag_stands_from_the_first_flush_until_the_disk_is_idle),
		T(an_unclean_image_is_repaired_by_the_next_writer),
		T(shared_clusters_are_nobodys_to_give_away),
		T(entries_that_lead_into_metadata_are_refused),
		T(tables_that_share_space_are_not_written),
		T(what_the_file_has_lost_is_an_error),
		T(zeroes_give_space_back_in_place),
		T(a_disk_grows_and_does_not_shrink),
		T(options_of_create_are_checked_before_the_file_is_emptied),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
