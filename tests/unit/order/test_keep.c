/* SPDX-License-Identifier: MIT */
/*
 * tests/unit/order/test_keep.c - a queue that keeps a journal: what is in it, and when it leaves it
 */
#include <sys/mman.h>

#include "bench.h"
#include "order/queue.h"

static struct bench *keeping_bench(struct journal *j, uint64_t limit)
{
	static const struct journal_owner owner;
	struct bench *b = bench_new(false, limit);
	void *map = mmap(NULL, JOURNAL_LEN, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	assert_true(map != MAP_FAILED);
	journal_format(j, map, 7, &owner);
	b->o->journal = j;
	return b;
}

static void keeping_end(struct bench *b)
{
	void *map = b->o->journal->h;

	b->o->journal = NULL;
	bench_free(b);
	munmap(map, JOURNAL_LEN);
}

struct found {
	unsigned nr;
	uint64_t section[8], off[8];
	char bytes[8][9];
};

static int note(void *arg, uint64_t section, uint64_t off, const void *bytes, size_t len)
{
	struct found *f = arg;

	assert_in_range(len, 1, 8);
	assert_in_range(f->nr, 0, 7);
	f->section[f->nr] = section;
	f->off[f->nr] = off;
	memcpy(f->bytes[f->nr], bytes, len);
	f->nr++;
	return 0;
}

static struct found look(const struct bench *b)
{
	struct found f = { 0 };
	const char *fault;

	assert_int_equal(journal_replay(b->o->journal->h, note, &f, &fault), 0);
	return f;
}

static void puts_stay_until_their_section_is_durable(void **state)
{
	struct journal j;
	struct bench *b = keeping_bench(&j, 0);
	order_mark first = bench_put(b, 0, "first", 5, ORDER_NONE), second;
	struct found f;

	second = bench_put(b, 600, "second", 6, first);
	f = look(b);
	assert_int_equal(f.nr, 2);
	assert_string_equal(f.bytes[0], "first");
	assert_string_equal(f.bytes[1], "second");
	assert_int_equal(f.off[1], 600);
	assert_true(f.section[0] == first && f.section[1] == second && first < second);
	assert_int_equal(bench_wait(b, first), 0);
	f = look(b);
	assert_int_equal(f.nr, 1);
	assert_string_equal(f.bytes[0], "second");
	assert_int_equal(bench_flush(b), 0);
	assert_int_equal(look(b).nr, 0);
	assert_int_equal(journal_used(&j), 0);
	keeping_end(b);
}

static void what_a_failing_disk_did_not_take_stays(void **state)
{
	struct journal j;
	struct bench *b = keeping_bench(&j, 0);

	bench_put(b, 0, "entry", 5, ORDER_NONE);
	b->fail_all = true;
	assert_int_equal(bench_flush(b), -EIO);
	assert_int_equal(look(b).nr, 1);
	b->fail_all = false;
	assert_int_equal(bench_flush(b), 0);
	assert_int_equal(look(b).nr, 0);
	keeping_end(b);
}

static int job_put_often(struct fiber *f, struct bench *b, void *arg)
{
	(void)arg;
	for (unsigned i = 0; i < 60000; i++) {
		int err = order_put(f, b->o, 8 * (i % 2), "again and", 8, ORDER_NONE, NULL);

		if (err < 0)
			return err;
	}
	return 0;
}

/* One sector in the queue, but a record for each put: the journal has a limit of its own. */
static void a_place_that_is_written_again_and_again_does_not_fill_it(void **state)
{
	struct journal j;
	struct bench *b = keeping_bench(&j, KiB(256));

	assert_int_equal(bench_run(b, job_put_often, NULL), 0);
	assert_in_range(journal_used(&j), 0, MiB(2));
	assert_int_equal(bench_flush(b), 0);
	keeping_end(b);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(puts_stay_until_their_section_is_durable),
		cmocka_unit_test(what_a_failing_disk_did_not_take_stays),
		cmocka_unit_test(a_place_that_is_written_again_and_again_does_not_fill_it),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
