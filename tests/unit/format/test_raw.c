/* SPDX-License-Identifier: MIT */
/*
 * unit/format/test_raw.c - the raw format: windows, odd lengths, creation, the guard of probed images
 */
#include "../proto/leaf.h"

#include "format/raw.h"

/* A memory leaf of len bytes with the pattern, and raw above it. */
static int raw_over_memory(struct leaf *l, uint64_t len, const char *options, uint32_t flags)
{
	uint8_t *buf = malloc(len + 1);
	char size[64];
	struct leaf m;
	int ret;

	snprintf(size, sizeof(size), "size=%llu", (unsigned long long)len);
	leaf_open(&m, &driver_memory, size, NODE_WRITABLE);
	for (uint64_t i = 0; i < len; i++)
		buf[i] = leaf_pattern(i);
	if (len)
		assert_int_equal(leaf_write(&m, 0, buf, len, 0), 0);
	free(buf);
	l->q = m.q;
	ret = leaf_try(l, &driver_raw, m.n, options, flags);
	if (ret < 0)
		leaf_close(&m);
	return ret;
}

static void expect_pattern(struct leaf *l, uint64_t off, uint64_t len, uint64_t first)
{
	uint8_t *buf = malloc(len);

	assert_int_equal(leaf_read(l, off, buf, len), 0);
	for (uint64_t i = 0; i < len; i++)
		assert_int_equal(buf[i], leaf_pattern(first + i));
	free(buf);
}

static void the_file_is_the_disk(void **state)
{
	struct leaf l;

	(void)state;
	assert_int_equal(raw_over_memory(&l, 8192, "", NODE_WRITABLE), 0);
	assert_int_equal(node_len(l.n), 8192);
	expect_pattern(&l, 0, 8192, 0);
	leaf_fill(&l, 100, 50, 0x11);
	leaf_expect(&l, 100, 50, 0x11);
	expect_pattern(&l, 150, 1000, 150);
	assert_int_equal(leaf_zero(&l, 1000, 100, REQ_FUA), 0);
	leaf_expect(&l, 1000, 100, 0);
	assert_int_equal(leaf_discard(&l, 4096, 4096), 0);
	assert_int_equal(leaf_flush(&l), 0);
	assert_int_equal(leaf_close(&l), 0);
}

static void map_says_in_place_everywhere(void **state)
{
	struct extent e;
	struct leaf l;

	(void)state;
	assert_int_equal(raw_over_memory(&l, 8192, "offset=1024", NODE_WRITABLE), 0);
	l.n->drv->map(l.n, 512, 4000, &e);
	assert_int_equal(e.kind, EXTENT_DATA);
	assert_true(e.flags & EXTENT_INPLACE);
	assert_ptr_equal(e.node, l.n->file);
	assert_int_equal(e.host_off, 1536);
	assert_int_equal(e.len, 4000);
	leaf_close(&l);
}

/* The door's own way to the file and what map() answers must not differ. */
static void the_way_through_leads_where_map_says(void **state)
{
	static const char *const windows[] = { "", "offset=1024", "offset=1536,size=4096" };
	uint8_t byte = 0;
	struct leaf l, m;

	(void)state;
	for (unsigned i = 0; i < ARRAY_LEN(windows); i++) {
		struct extent e;

		assert_int_equal(raw_over_memory(&l, 8192, windows[i], NODE_WRITABLE), 0);
		l.n->drv->map(l.n, 700, 1, &e);
		assert_true(l.n->through);
		assert_int_equal(l.n->through_off + 700, e.host_off);
		expect_pattern(&l, 700, 100, e.host_off);
		leaf_fill(&l, 700, 1, 0xd7);
		m = (struct leaf){ .q = l.q, .n = e.node };
		assert_int_equal(leaf_read(&m, e.host_off, &byte, 1), 0);
		assert_int_equal(byte, 0xd7);
		leaf_close(&l);
	}
}

/* The last sector is whole for the guest; what the file has not is zeroes, and can be written. */
static void an_odd_length_is_rounded_up(void **state)
{
	struct leaf l;

	(void)state;
	assert_int_equal(raw_over_memory(&l, 1000, "", NODE_WRITABLE), 0);
	assert_int_equal(node_len(l.n), 1024);
	expect_pattern(&l, 512, 488, 512);
	leaf_expect(&l, 1000, 24, 0);
	leaf_fill(&l, 512, 512, 0x22);
	leaf_expect(&l, 512, 512, 0x22);
	leaf_close(&l);
	assert_int_equal(raw_over_memory(&l, 0, "", NODE_WRITABLE), 0);
	assert_int_equal(node_len(l.n), 0);
	leaf_close(&l);
}

static void a_window_shows_its_part_only(void **state)
{
	struct leaf l;

	(void)state;
	assert_int_equal(raw_over_memory(&l, 10000, "offset=1k,size=2k", NODE_WRITABLE), 0);
	assert_int_equal(node_len(l.n), 2048);
	expect_pattern(&l, 0, 2048, 1024);
	assert_int_equal(leaf_truncate(&l, 4096, false), -ENOTSUP);
	leaf_close(&l);
	assert_int_equal(raw_over_memory(&l, 10000, "offset=777", NODE_WRITABLE), 0);
	assert_int_equal(node_len(l.n), 9728);
	expect_pattern(&l, 0, 9000, 777);
	leaf_close(&l);
	assert_int_equal(raw_over_memory(&l, 1000, "offset=1000,size=0", 0), 0);
	assert_int_equal(node_len(l.n), 0);
	leaf_close(&l);
}

static void windows_outside_of_the_file_are_refused(void **state)
{
	static const char *const bad[] = { "offset=1001", "size=1024", "offset=512,size=512", "size=8E", "size=100",
					   "offset=15E,size=1E", "offset=x", "size=-1", "offset=18446744073709551615,size=512" };
	struct leaf l;

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
		if (raw_over_memory(&l, 1000, bad[i], 0) >= 0)
			fail_msg("'%s' was not refused", bad[i]);
		assert_true(strlen(l.err.message) > 0);
	}
}

static void the_length_follows_a_resize(void **state)
{
	struct leaf l;

	(void)state;
	assert_int_equal(raw_over_memory(&l, 4096, "offset=1k", NODE_WRITABLE), 0);
	assert_int_equal(leaf_truncate(&l, 8192, false), 0);
	assert_int_equal(node_len(l.n), 8192);
	assert_int_equal(node_len(l.n->file), 8192 + 1024);
	expect_pattern(&l, 0, 3072, 1024);
	leaf_expect(&l, 3072, 5120, 0);
	assert_int_equal(leaf_truncate(&l, UINT64_MAX, false), -EFBIG);
	assert_int_equal(leaf_truncate(&l, VARVE_LEN_MAX - 600, false), -EFBIG);
	leaf_close(&l);
}

/* ---- create ---- */

struct create_call {
	const char *options;
	uint64_t len;
	struct varve_error err;
	uint64_t told;
};

static void note_progress(void *user_data, uint64_t done, uint64_t total)
{
	struct create_call *c = user_data;

	assert_true(done >= c->told && done <= total);
	c->told = done;
}

static int create_fiber(struct fiber *f, void *arg)
{
	struct create_call *c = arg;
	struct opts *o = opts_new();
	struct node *leaf;
	int ret;

	assert_int_equal(opts_parse(o, c->options, NULL), 0);
	ret = graph_open_file(f, leaf_path("new.raw"), NODE_WRITABLE, &leaf, &c->err);
	if (!ret) {
		ret = driver_raw.create(f, leaf, c->len, o, note_progress, c, &c->err);
		graph_close(f, leaf, NULL);
	}
	opts_free(o);
	return ret;
}

static int create(struct create_call *c, const char *options, uint64_t len)
{
	struct queue *q = leaf_queue();
	int ret;

	*c = (struct create_call){ .options = options, .len = len };
	ret = fiber_call(q, create_fiber, c);
	queue_free(q);
	return ret;
}

static uint64_t room_of(const char *name, uint64_t expect_len)
{
	struct stat st;

	assert_int_equal(stat(leaf_path(name), &st), 0);
	assert_int_equal(st.st_size, expect_len);
	return (uint64_t)st.st_blocks * 512;
}

static void a_new_image_is_zeroes_whatever_was_there(void **state)
{
	static const char *const options[] = { "", "preallocation=off", "preallocation=falloc", "preallocation=full" };
	struct create_call c;
	struct leaf l;

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(options); i++) {
		leaf_make_file("new.raw", 100000, true);
		if (create(&c, options[i], MiB(3) + 512) < 0)
			fail_msg("'%s': %s", options[i], c.err.message);
		assert_in_range(room_of("new.raw", MiB(3) + 512), i < 2 ? 0 : MiB(3), i < 2 ? 65536 : MiB(4));
		if (i == 3)
			assert_int_equal(c.told, MiB(3) + 512);
		leaf_open(&l, &driver_file, leaf_file_opts("new.raw", ""), 0);
		leaf_expect(&l, 0, MiB(3) + 512, 0);
		leaf_close(&l);
	}
}

static void bad_create_options_leave_the_file_alone(void **state)
{
	struct create_call c;

	(void)state;
	leaf_make_file("new.raw", 1000, true);
	assert_int_equal(create(&c, "preallocation=metadata", 4096), -EINVAL);
	assert_non_null(strstr(c.err.message, "'metadata' is none of off, falloc, full"));
	assert_int_equal(create(&c, "cluster_size=64k", 4096), -EINVAL);
	assert_non_null(strstr(c.err.message, "cluster_size"));
	(void)room_of("new.raw", 1000);
}

/* ---- the guard: raw by probing ---- */

static void a_probed_image_cannot_be_made_another_format(void **state)
{
	uint8_t head[4096] = { 'Q', 'F', 'I', 0xfb, 0, 0, 0, 3 };
	struct leaf l = { .q = leaf_queue() };

	(void)state;
	leaf_make_file("p.raw", 65536, false);
	for (int probed = 1; probed >= 0; probed--) {
		char text[600];

		snprintf(text, sizeof(text), "%s%s", leaf_file_opts("p.raw", ""), probed ? "" : ",format=raw");
		if (leaf_try(&l, NULL, NULL, text, NODE_WRITABLE) < 0)
			fail_msg("%s", l.err.message);
		assert_ptr_equal(l.n->drv, &driver_raw);
		assert_int_equal(leaf_write(&l, 0, head, sizeof(head), 0), probed ? -EPERM : 0);
		if (probed) {
			/* in small steps neither */
			assert_int_equal(leaf_write(&l, 4, head + 4, 4, 0), 0);
			assert_int_equal(leaf_write(&l, 0, "QF", 2, 0), 0);
			assert_int_equal(leaf_write(&l, 2, "I\xfb", 2, 0), -EPERM);
			assert_int_equal(leaf_write(&l, 512, head, 512, 0), 0);
			assert_int_equal(leaf_write(&l, 0, "hello", 5, REQ_FUA), 0);
			leaf_expect(&l, 0, 1, 'h');
		}
		leaf_close_node(&l);
	}
	queue_free(l.q);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_file_is_the_disk),
		cmocka_unit_test(map_says_in_place_everywhere),
		cmocka_unit_test(the_way_through_leads_where_map_says),
		cmocka_unit_test(an_odd_length_is_rounded_up),
		cmocka_unit_test(a_window_shows_its_part_only),
		cmocka_unit_test(windows_outside_of_the_file_are_refused),
		cmocka_unit_test(the_length_follows_a_resize),
		cmocka_unit_test(a_new_image_is_zeroes_whatever_was_there),
		cmocka_unit_test(bad_create_options_leave_the_file_alone),
		cmocka_unit_test(a_probed_image_cannot_be_made_another_format),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, leaf_remove_dir);
}
