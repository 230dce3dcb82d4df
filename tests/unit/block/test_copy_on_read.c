/* SPDX-License-Identifier: MIT */
/*
 * unit/block/test_copy_on_read.c - what is read from the backing image is kept, and never lands on a guest's write
 *
 * The filter `hold` under both images decides what happens first. The linker leads range_lock() to here (--wrap), so that a test
 * can take the serialisation away and prove that this would be noticed.
 */
#include "block/copy_on_read.h"
#include "fake.h"

#define CL KiB(64)
#define NR 8
#define ON_A_CLOCK (1u << 31) /* of overlay_open(): real time, for several queues */

static bool forget_locks;

void __real_range_lock(struct fiber *f, struct ranges *rs, struct range *r, uint64_t off, uint64_t len);
void __real_range_unlock(struct ranges *rs, struct range *r);
void __wrap_range_lock(struct fiber *f, struct ranges *rs, struct range *r, uint64_t off, uint64_t len);
void __wrap_range_unlock(struct ranges *rs, struct range *r);

void __wrap_range_lock(struct fiber *f, struct ranges *rs, struct range *r, uint64_t off, uint64_t len)
{
	if (!forget_locks)
		__real_range_lock(f, rs, r, off, len);
}

void __wrap_range_unlock(struct ranges *rs, struct range *r)
{
	if (!forget_locks)
		__real_range_unlock(rs, r);
}

/* ---- disks ---- */

/* An overlay of NR clusters above a base whose byte i is leaf_pattern(i), from base_len on zeroes. */
static void overlay_open(struct image *top, struct image *base, uint64_t base_len, uint32_t flags)
{
	static const struct queue_opts virtual = { .virtual_time = true };
	uint8_t *bytes = malloc(base_len);
	struct queue *q;

	assert_int_equal(queue_new(&q, flags & ON_A_CLOCK ? NULL : &virtual, NULL), 0);
	image_open(base, q, CL, base_len, NODE_WRITABLE);
	for (uint64_t i = 0; i < base_len; i++)
		bytes[i] = leaf_pattern(i);
	assert_int_equal(leaf_write(&base->l, 0, bytes, base_len, 0), 0);
	free(bytes);
	image_open(top, base->l.q, CL, NR * CL, NODE_WRITABLE | (flags & ~ON_A_CLOCK));
	image_chain(top, base);
	assert_int_equal(cor_open(top->l.n, NULL, NULL), 0);
	atomic_store(&hold_of(base->hold)->nr_reads, 0);
}

static uint8_t base_byte(uint64_t base_len, uint64_t i)
{
	return i < base_len ? leaf_pattern(i) : 0;
}

static void expect_base(struct image *top, uint64_t base_len, uint64_t off, uint64_t len)
{
	uint8_t *bytes = malloc(len);

	assert_int_equal(io_now(top, REQ_READ, off, bytes, len, 0), 0);
	for (uint64_t i = 0; i < len; i++) {
		if (bytes[i] != base_byte(base_len, off + i))
			fail_msg("byte %llu is 0x%02x, not the base's 0x%02x", (unsigned long long)(off + i), bytes[i],
				 base_byte(base_len, off + i));
	}
	free(bytes);
}

static struct cor_stats stats_of(struct image *top)
{
	struct cor_stats s;

	cor_get_stats(top->l.n, &s);
	return s;
}

/* ---- the plain case ---- */

static void what_was_read_once_is_not_read_from_the_base_again(void **state)
{
	struct image top, base;

	(void)state;
	for (unsigned cold = 0; cold < 2; cold++) {
		overlay_open(&top, &base, NR * CL, cold ? NODE_FORCE_COLD : 0);
		expect_base(&top, NR * CL, 2 * CL + 100, 50);
		assert_int_equal(hold_of(base.hold)->nr_reads, 1);
		assert_int_equal(fake_kind(top.l.n, 2), EXTENT_DATA);
		assert_int_equal(fake_kind(top.l.n, 1), EXTENT_ABSENT);
		assert_int_equal(fake_kind(top.l.n, 3), EXTENT_ABSENT);
		expect_base(&top, NR * CL, 2 * CL, CL);
		assert_int_equal(hold_of(base.hold)->nr_reads, 1);
		/* A read that crosses what is there and what is not fetches what is not. */
		expect_base(&top, NR * CL, CL + 7, 3 * CL);
		assert_int_equal(hold_of(base.hold)->nr_reads, 3);
		expect_base(&top, NR * CL, 0, NR * CL);
		assert_int_equal(stats_of(&top).copied_bytes, NR * CL);
		assert_int_equal(stats_of(&top).failures, 0);
		image_close(&top);
	}
}

static void the_end_of_a_shorter_base_is_no_trouble(void **state)
{
	static const uint64_t lens[] = { 512, CL - 512, CL, CL + 1536, 3 * CL + 512 };
	struct image top, base;

	(void)state;
	for (unsigned i = 0; i < ARRAY_LEN(lens); i++) {
		overlay_open(&top, &base, lens[i], 0);
		expect_base(&top, lens[i], 0, NR * CL);
		expect_base(&top, lens[i], 0, NR * CL);
		assert_int_equal(stats_of(&top).copied_bytes, align_up(lens[i], CL));
		image_close(&top);
	}
}

static void zeroes_are_stored_as_zeroes(void **state)
{
	struct image top, base;

	(void)state;
	overlay_open(&top, &base, NR * CL, 0);
	leaf_fill(&base.l, 2 * CL, 2 * CL, 0);
	leaf_fill(&base.l, 6 * CL, CL - 1, 0);
	leaf_expect(&top.l, 2 * CL, 2 * CL, 0);
	assert_int_equal(fake_kind(top.l.n, 2), EXTENT_ZERO);
	assert_int_equal(fake_kind(top.l.n, 3), EXTENT_ZERO);
	assert_int_equal(stats_of(&top).zero_bytes, 2 * CL);
	leaf_expect(&top.l, 6 * CL, CL - 1, 0);
	assert_int_equal(fake_kind(top.l.n, 6), EXTENT_DATA);
	/* A format that cannot say so stores the bytes. */
	fake_of(top.l.n)->unlink_error = -ENOTSUP;
	leaf_fill(&base.l, 4 * CL, CL, 0);
	leaf_expect(&top.l, 4 * CL, CL, 0);
	assert_int_equal(fake_kind(top.l.n, 4), EXTENT_DATA);
	image_close(&top);
}

static void nothing_is_copied_from_below_the_bottom(void **state)
{
	struct image top, middle, base;
	struct varve_error err;

	(void)state;
	image_open(&base, NULL, CL, NR * CL, NODE_WRITABLE);
	leaf_fill(&base.l, 0, NR * CL, 0xb0);
	image_open(&middle, base.l.q, CL, NR * CL, NODE_WRITABLE);
	image_chain(&middle, &base);
	leaf_fill(&middle.l, 2 * CL, CL, 0x3d);
	image_open(&top, base.l.q, CL, NR * CL, NODE_WRITABLE);
	image_chain(&top, &middle);
	assert_int_equal(cor_open(top.l.n, "no such image", &err), -ENOENT);
	free(middle.l.n->name);
	middle.l.n->name = strdup("middle");
	assert_int_equal(cor_open(top.l.n, "middle", &err), 0);
	leaf_expect(&top.l, 0, 2 * CL, 0xb0);
	leaf_expect(&top.l, 2 * CL, CL, 0x3d);
	leaf_expect(&top.l, 3 * CL, 5 * CL, 0xb0);
	for (unsigned i = 0; i < NR; i++)
		assert_int_equal(fake_kind(top.l.n, i), i == 2 ? EXTENT_DATA : EXTENT_ABSENT);
	image_close(&top);
}

/* ---- together with others ---- */

static void two_readers_of_a_cluster_fetch_it_once(void **state)
{
	static uint8_t buf[4][CL];
	struct image top, base;
	struct io io[4];

	(void)state;
	overlay_open(&top, &base, NR * CL, 0);
	hold_of(base.hold)->reads = true;
	for (unsigned i = 0; i < 4; i++)
		io_start(&io[i], top.l.n, top.l.q, REQ_READ, 3 * CL + i * 512, buf[i], 4096, 0);
	turns(top.l.q, 20);
	assert_int_equal(hold_of(base.hold)->nr_held, 1);
	hold_release(base.hold);
	for (unsigned i = 0; i < 4; i++) {
		assert_int_equal(io_wait(&io[i]), 0);
		assert_int_equal(buf[i][99], leaf_pattern(3 * CL + i * 512 + 99));
	}
	assert_int_equal(hold_of(base.hold)->nr_reads, 1);
	image_close(&top);
}

/* When the guest's write comes: before the copy's read of the base ends, while it is being stored, or before it begins. */
enum when { WHILE_FETCHED, WHILE_STORED, BEFORE };

static void write_meets_copy(enum when when, uint64_t off, uint64_t len)
{
	uint8_t *got = malloc(CL), *bytes = malloc(NR * CL), *written = malloc(len);
	struct image top, base;
	struct io reader, writer;

	memset(written, 0xd7, len);
	overlay_open(&top, &base, NR * CL, 0);
	if (when == BEFORE) {
		hold_of(top.hold)->writes = true;
		io_start(&writer, top.l.n, top.l.q, REQ_WRITE, off, written, len, 0);
		turns(top.l.q, 20);
	}
	hold_of(base.hold)->reads = true;
	io_start(&reader, top.l.n, top.l.q, REQ_READ, 2 * CL, got, CL, 0);
	turns(top.l.q, 20);
	if (when == WHILE_STORED) {
		hold_of(top.hold)->writes = true;
		hold_release(base.hold);
		turns(top.l.q, 20);
		assert_int_equal(hold_of(top.hold)->nr_held, 1);
	}
	if (when != BEFORE)
		io_start(&writer, top.l.n, top.l.q, REQ_WRITE, off, written, len, 0);
	turns(top.l.q, 20);
	hold_of(base.hold)->reads = hold_of(top.hold)->writes = false;
	for (unsigned i = 0; i < 100; i++) {
		turns(top.l.q, 3);
		hold_release(i & 1 ? top.hold : base.hold);
	}
	assert_int_equal(io_wait(&reader), 0);
	assert_int_equal(io_wait(&writer), 0);
	assert_int_equal(io_now(&top, REQ_READ, 0, bytes, NR * CL, 0), 0);
	for (uint64_t i = 0; i < NR * CL; i++) {
		uint8_t want = i >= off && i < off + len ? 0xd7 : leaf_pattern(i);

		if (bytes[i] != want)
			fail_msg("case %d, write of %llu at %llu: byte %llu is 0x%02x, not 0x%02x", when,
				 (unsigned long long)len, (unsigned long long)off, (unsigned long long)i, bytes[i], want);
	}
	image_close(&top);
	free(written);
	free(bytes);
	free(got);
}

static void a_copy_never_lands_on_a_guests_write(void **state)
{
	static const struct { uint64_t off, len; } writes[] = {
		{ 2 * CL, CL },		{ 2 * CL, 512 },     { 2 * CL + 512, 512 }, { 3 * CL - 512, 512 },
		{ 3 * CL - 512, 1024 }, { 2 * CL - 100, 200 }, { CL, 3 * CL },	    { 2 * CL + 1000, 3 },
	};

	(void)state;
	for (unsigned i = 0; i < ARRAY_LEN(writes); i++) {
		write_meets_copy(WHILE_FETCHED, writes[i].off, writes[i].len);
		write_meets_copy(WHILE_STORED, writes[i].off, writes[i].len);
		write_meets_copy(BEFORE, writes[i].off, writes[i].len);
	}
}

/* ---- trouble ---- */

static void a_copy_that_cannot_be_kept_does_not_fail_the_read(void **state)
{
	struct image top, base;

	(void)state;
	overlay_open(&top, &base, NR * CL, 0);
	fake_of(top.l.n)->alloc_error = -ENOSPC;
	expect_base(&top, NR * CL, CL, 3 * CL);
	assert_int_equal(stats_of(&top).failures, 1);
	assert_int_equal(fake_kind(top.l.n, 1), EXTENT_ABSENT);
	/* For a while it is not tried again. */
	fake_of(top.l.n)->alloc_error = 0;
	expect_base(&top, NR * CL, CL, CL);
	assert_int_equal(stats_of(&top).failures, 1);
	assert_int_equal(fake_kind(top.l.n, 1), EXTENT_ABSENT);
	queue_advance(top.l.q, 2000000000);
	turns(top.l.q, 1);
	expect_base(&top, NR * CL, CL, CL);
	assert_int_equal(fake_kind(top.l.n, 1), EXTENT_DATA);
	hold_of(top.hold)->fail_writes = -EIO;
	expect_base(&top, NR * CL, 4 * CL + 1, 10);
	assert_int_equal(stats_of(&top).failures, 2);
	hold_of(top.hold)->fail_writes = 0;
	image_close(&top);
}

static void a_base_that_cannot_be_read_fails_the_read(void **state)
{
	uint8_t buf[512];
	struct image top, base;

	(void)state;
	overlay_open(&top, &base, NR * CL, 0);
	fake_set(base.l.n, 3, EXTENT_ERROR, 0, false);
	assert_int_equal(io_now(&top, REQ_READ, 3 * CL, buf, sizeof(buf), 0), -EIO);
	assert_int_equal(fake_kind(top.l.n, 3), EXTENT_ABSENT);
	queue_advance(top.l.q, 2000000000);
	turns(top.l.q, 1);
	expect_base(&top, NR * CL, 2 * CL, CL);
	assert_int_equal(fake_kind(top.l.n, 2), EXTENT_DATA);
	image_close(&top);
}

static void it_is_refused_where_it_cannot_work(void **state)
{
	struct varve_error err;
	struct image img;

	(void)state;
	image_open(&img, NULL, CL, NR * CL, 0);
	assert_int_equal(cor_open(img.l.n, NULL, &err), -EINVAL);
	assert_non_null(strstr(err.message, "open for writing"));
	image_close(&img);
}

/* ---- at random ---- */

#define OPS 16

/* Reads, writes, zeroes and discards of random ranges in flight, ended in random order; against a model. NULL: all was right. */
static const char *random_run(uint64_t seed, char *why, size_t why_len)
{
	static uint8_t model[NR * CL], buf[OPS][2 * CL], final[NR * CL];
	struct image top, base;
	struct { struct io io; bool used, write; uint64_t off, len; } op[OPS] = { 0 };
	struct rnd rnd;

	rnd_start(&rnd, seed);
	*why = 0;
	overlay_open(&top, &base, NR * CL, 0);
	for (uint64_t i = 0; i < NR * CL; i++)
		model[i] = leaf_pattern(i);
	hold_of(base.hold)->reads = hold_of(top.hold)->writes = hold_of(top.hold)->reads = true;
	for (unsigned step = 0; step < 600 && !*why; step++) {
		unsigned k = (unsigned)rnd_below(&rnd, OPS);
		bool busy = false;

		if (op[k].used && op[k].io.done) {
			op[k].used = false;
			for (uint64_t i = 0; !op[k].write && i < op[k].len && !*why; i++) {
				if (buf[k][i] != model[op[k].off + i])
					snprintf(why, why_len, "seed %llu, step %u: byte %llu read as 0x%02x, not 0x%02x",
						 (unsigned long long)seed, step, (unsigned long long)(op[k].off + i),
						 buf[k][i], model[op[k].off + i]);
			}
		} else if (!op[k].used && step < 400) {
			op[k].len = (1 + rnd_below(&rnd, 2 * CL / 512 - 1)) * 512;
			op[k].off = rnd_below(&rnd, (NR * CL - op[k].len) / 512 + 1) * 512;
			op[k].write = rnd_below(&rnd, 2);
			/* What is in flight does not overlap a write: as with any sane guest. */
			for (unsigned j = 0; j < OPS; j++)
				busy |= op[j].used && (op[j].write || op[k].write) &&
					op[j].off < op[k].off + op[k].len && op[k].off < op[j].off + op[j].len;
			if (busy)
				continue;
			op[k].used = true;
			if (op[k].write) {
				memset(buf[k], (int)(1 + rnd_below(&rnd, 255)), op[k].len);
				memcpy(model + op[k].off, buf[k], op[k].len);
			}
			io_start(&op[k].io, top.l.n, top.l.q, op[k].write ? REQ_WRITE : REQ_READ, op[k].off, buf[k],
				 op[k].len, 0);
		}
		queue_turn(top.l.q, 0);
		if (rnd_below(&rnd, 2))
			hold_release(rnd_below(&rnd, 2) ? top.hold : base.hold);
	}
	hold_of(base.hold)->reads = hold_of(top.hold)->writes = hold_of(top.hold)->reads = false;
	for (unsigned i = 0; i < 4 * OPS; i++) {
		turns(top.l.q, 4);
		hold_release(top.hold);
		hold_release(base.hold);
	}
	for (unsigned k = 0; k < OPS; k++) {
		if (op[k].used)
			assert_int_equal(io_wait(&op[k].io), 0);
	}
	assert_int_equal(io_now(&top, REQ_READ, 0, final, NR * CL, 0), 0);
	if (!*why && memcmp(final, model, NR * CL))
		snprintf(why, why_len, "seed %llu: the disk is not what was written", (unsigned long long)seed);
	image_close(&top);
	return *why ? why : NULL;
}

static void random_readers_and_writers_agree_with_a_model(void **state)
{
	char why[200];

	(void)state;
	for (uint64_t seed = 1; seed <= 60; seed++) {
		if (random_run(seed, why, sizeof(why)))
			fail_msg("%s", why);
	}
}

/* Without the lock some run goes wrong: the test above would see it. */
static void without_serialisation_it_is_noticed(void **state)
{
	char why[200] = "";
	uint64_t seed = 0;

	(void)state;
	forget_locks = true;
	while (seed < 60 && !random_run(++seed, why, sizeof(why)))
		;
	forget_locks = false;
	print_message("# noticed: %s\n", why);
	assert_true(*why);
}

/* ---- several queues ---- */

#define ROUNDS 300

/* Each worker writes and reads its own sector of each cluster, and reads the part that nobody writes. */
static int reader_and_writer(struct worker *w)
{
	const uint64_t shared = 4 * 4096;
	uint8_t *buf = malloc(CL), mine[512];
	bool written[NR] = { false };
	struct rnd rnd;
	int ret = 0;

	memset(mine, 0xc0 + (int)w->nr, sizeof(mine));
	rnd_start(&rnd, 77 + w->nr);
	for (unsigned i = 0; i < ROUNDS && ret == 0; i++) {
		uint64_t c = rnd_below(&rnd, NR), off = c * CL + w->nr * 4096, len = sizeof(mine);
		bool own = i % 3 == 1;
		struct io io;

		if (i % 3 == 0) {
			io_start(&io, w->n, w->q, REQ_WRITE, off, mine, len, 0);
			ret = io_wait(&io);
			written[c] = true;
			continue;
		}
		if (!own) {
			off = c * CL + shared;
			len = CL - shared;
		}
		io_start(&io, w->n, w->q, REQ_READ, off, buf, len, 0);
		ret = io_wait(&io);
		for (uint64_t k = 0; k < len && ret == 0; k++) {
			uint8_t want = own && written[c] ? mine[0] : leaf_pattern(off + k);

			if (buf[k] != want) {
				snprintf(w->why, sizeof(w->why), "byte %llu is 0x%02x, not 0x%02x",
					 (unsigned long long)(off + k), buf[k], want);
				ret = -EIO;
			}
		}
	}
	free(buf);
	return ret;
}

static void queues_read_and_write_while_clusters_are_copied(void **state)
{
	struct worker w[3] = { 0 };
	struct image top, base;

	(void)state;
	for (unsigned round = 0; round < 5; round++) {
		overlay_open(&top, &base, NR * CL, ON_A_CLOCK);
		for (unsigned i = 0; i < 3; i++)
			w[i] = (struct worker){ .n = top.l.n, .fn = reader_and_writer, .nr = i };
		workers_run(&top.l, w, 3, NULL, NULL);
		for (unsigned i = 0; i < 3; i++) {
			if (w[i].ret < 0)
				fail_msg("worker %u: %d %s", i, w[i].ret, w[i].why);
		}
		image_close(&top);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_was_read_once_is_not_read_from_the_base_again),
		cmocka_unit_test(the_end_of_a_shorter_base_is_no_trouble),
		cmocka_unit_test(zeroes_are_stored_as_zeroes),
		cmocka_unit_test(nothing_is_copied_from_below_the_bottom),
		cmocka_unit_test(two_readers_of_a_cluster_fetch_it_once),
		cmocka_unit_test(a_copy_never_lands_on_a_guests_write),
		cmocka_unit_test(a_copy_that_cannot_be_kept_does_not_fail_the_read),
		cmocka_unit_test(a_base_that_cannot_be_read_fails_the_read),
		cmocka_unit_test(it_is_refused_where_it_cannot_work),
		cmocka_unit_test(random_readers_and_writers_agree_with_a_model),
		cmocka_unit_test(without_serialisation_it_is_noticed),
		cmocka_unit_test(queues_read_and_write_while_clusters_are_copied),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
