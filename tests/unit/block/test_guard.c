/* SPDX-License-Identifier: MIT */
/*
 * unit/block/test_guard.c - a raw disk that was found by probing cannot be turned into another format from inside
 */
#include "fake.h"

static const uint8_t qcow2_head[8] = { 'Q', 'F', 'I', 0xfb, 0, 0, 0, 3 };

static void disk_open(struct leaf *l, const char *name, const char *more)
{
	leaf_make_file(name, 65536, false);
	l->q = leaf_queue();
	if (leaf_try(l, NULL, NULL, leaf_file_opts(name, more), NODE_WRITABLE) < 0)
		fail_msg("%s", l->err.message);
	assert_string_equal(l->n->drv->name, "raw");
}

static int write_head(struct leaf *l, uint64_t off, const void *bytes, size_t len)
{
	struct io io;

	io_start(&io, l->n, l->q, REQ_WRITE, off, (void *)bytes, len, 0);
	return io_wait(&io);
}

static void a_header_of_another_format_is_refused(void **state)
{
	static uint8_t sector[4096];
	struct leaf l;

	(void)state;
	disk_open(&l, "a", "");
	memcpy(sector, qcow2_head, sizeof(qcow2_head));
	assert_int_equal(write_head(&l, 0, sector, 4096), -EPERM);
	assert_int_equal(write_head(&l, 0, sector, 512), -EPERM);
	leaf_expect(&l, 0, 4096, 0);
	memset(sector, 0x11, sizeof(sector));
	assert_int_equal(write_head(&l, 0, sector, 4096), 0);
	leaf_expect(&l, 0, 4096, 0x11);
	leaf_close(&l);
}

/* Piece by piece, each of which looks harmless. */
static void nor_does_it_get_there_in_pieces(void **state)
{
	struct leaf l;
	int refused = 0;

	(void)state;
	disk_open(&l, "b", "");
	for (size_t i = sizeof(qcow2_head); i-- > 0;)
		refused += write_head(&l, i, qcow2_head + i, 1) == -EPERM;
	assert_true(refused > 0);
	leaf_close(&l);
}

static void zeroes_are_looked_at_as_well(void **state)
{
	static const uint8_t head[8] = { 'Q', 'F', 'I', 0xfb, 9, 9, 9, 3 };
	struct leaf l;
	struct io io;
	int a, b;

	(void)state;
	disk_open(&l, "c", "");
	a = write_head(&l, 0, head, 8);
	io_start(&io, l.n, l.q, REQ_ZERO, 4, NULL, 3, 0);
	b = io_wait(&io);
	assert_true(a == -EPERM || b == -EPERM);
	io_start(&io, l.n, l.q, REQ_ZERO, 0, NULL, 8192, 0);
	assert_int_equal(io_wait(&io), 0);
	leaf_expect(&l, 0, 8192, 0);
	leaf_close(&l);
}

static void a_discard_leaves_the_first_sector_alone(void **state)
{
	static uint8_t sector[512];
	struct leaf l;
	struct io io;

	(void)state;
	disk_open(&l, "d", "");
	memset(sector, 0x11, sizeof(sector));
	assert_int_equal(write_head(&l, 0, sector, 512), 0);
	io_start(&io, l.n, l.q, REQ_DISCARD, 0, NULL, 65536, 0);
	assert_int_equal(io_wait(&io), 0);
	leaf_expect(&l, 0, 512, 0x11);
	leaf_close(&l);
}

static void whoever_says_raw_may_write_anything(void **state)
{
	struct leaf l;

	(void)state;
	disk_open(&l, "e", ",driver=raw");
	assert_int_equal(write_head(&l, 0, qcow2_head, 8), 0);
	leaf_close(&l);
}

static void behind_the_start_nothing_is_guarded(void **state)
{
	struct leaf l;

	(void)state;
	disk_open(&l, "f", "");
	assert_int_equal(write_head(&l, PROBE_LEN, qcow2_head, 8), 0);
	assert_int_equal(node_slot(l.n, l.q)->nr_cold, 0);
	leaf_close(&l);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_header_of_another_format_is_refused),
		cmocka_unit_test(nor_does_it_get_there_in_pieces),
		cmocka_unit_test(zeroes_are_looked_at_as_well),
		cmocka_unit_test(a_discard_leaves_the_first_sector_alone),
		cmocka_unit_test(whoever_says_raw_may_write_anything),
		cmocka_unit_test(behind_the_start_nothing_is_guarded),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, leaf_remove_dir);
}
