/* SPDX-License-Identifier: MIT */
/*
 * unit/block/test_map_io.c - the one way in which all formats read and write
 */
#include "fake.h"
#include "format/raw.h"

#define CL KiB(4)

static void map_range(struct image *img, uint64_t from, uint64_t nr, uint64_t host_off)
{
	for (uint64_t i = 0; i < nr; i++)
		fake_set(img->l.n, from + i, EXTENT_DATA, host_off + i * CL, true);
}

static void pattern(uint8_t *buf, size_t len, unsigned salt)
{
	for (size_t i = 0; i < len; i++)
		buf[i] = (uint8_t)(i * 31 + i / 509 + salt);
}

static struct node_slot *slot(struct image *img)
{
	return node_slot(img->l.n, img->l.q);
}

static void mapped_requests_stay_on_the_hot_path(void **state)
{
	uint8_t buf[2 * CL], back[2 * CL];
	struct image img;

	(void)state;
	image_open(&img, NULL, CL, MiB(1), NODE_WRITABLE);
	map_range(&img, 8, 4, CL);
	pattern(buf, sizeof(buf), 1);
	assert_int_equal(io_now(&img, REQ_WRITE, 9 * CL, buf, sizeof(buf), 0), 0);
	assert_int_equal(io_now(&img, REQ_READ, 9 * CL, back, sizeof(back), 0), 0);
	assert_memory_equal(buf, back, sizeof(buf));
	assert_int_equal(
		leaf_read(&(struct leaf){ .q = img.l.q, .n = img.memory }, 2 * CL, back, sizeof(back)), 0);
	assert_memory_equal(buf, back, sizeof(buf));
	assert_int_equal(slot(&img)->nr_hot, 2);
	assert_int_equal(slot(&img)->nr_cold, 0);
	assert_int_equal(slot(&img)->nr_split, 0);
	assert_int_equal(slot(&img)->entered, 0);
	image_close(&img);
}

static void what_is_not_loaded_is_loaded_and_tried_again(void **state)
{
	uint8_t buf[CL], back[CL];
	struct image img;

	(void)state;
	image_open(&img, NULL, CL, MiB(1), NODE_WRITABLE);
	map_range(&img, 0, 4, 0);
	pattern(buf, CL, 2);
	assert_int_equal(io_now(&img, REQ_WRITE, CL, buf, CL, 0), 0);
	fake_forget(img.l.n, 1);
	assert_int_equal(io_now(&img, REQ_READ, CL, back, CL, 0), 0);
	assert_memory_equal(buf, back, CL);
	assert_int_equal(fake_of(img.l.n)->nr_load, 1);
	assert_int_equal(slot(&img)->nr_cold, 1);
	assert_int_equal(slot(&img)->nr_hot, 2); /* the write, and the read when it came back */
	assert_int_equal(io_now(&img, REQ_READ, CL, back, CL, 0), 0);
	assert_int_equal(fake_of(img.l.n)->nr_load, 1);
	image_close(&img);
}

static void a_table_that_cannot_be_loaded_fails_the_request(void **state)
{
	uint8_t buf[CL] = { 0 };
	struct image img;

	(void)state;
	image_open(&img, NULL, CL, MiB(1), NODE_WRITABLE);
	map_range(&img, 0, 4, 0);
	fake_forget(img.l.n, 2);
	fake_of(img.l.n)->load_error = -EILSEQ;
	assert_int_equal(io_now(&img, REQ_READ, CL, (uint8_t[3 * CL]){ 0 }, 3 * CL, 0), -EILSEQ);
	assert_int_equal(io_now(&img, REQ_WRITE, 2 * CL, buf, CL, 0), -EILSEQ);
	assert_int_equal(io_now(&img, REQ_ZERO, 2 * CL, NULL, 512, 0), -EILSEQ);
	assert_int_equal(io_now(&img, REQ_READ, CL, buf, CL, 0), 0);
	image_close(&img);
}

static void each_kind_of_extent_answers_as_it_should(void **state)
{
	uint8_t buf[CL], zero[CL] = { 0 };
	struct image img;

	(void)state;
	image_open(&img, NULL, CL, MiB(1), NODE_WRITABLE);
	fake_set(img.l.n, 0, EXTENT_ZERO, 0, false);
	fake_set(img.l.n, 1, EXTENT_ABSENT, 0, false);
	fake_set(img.l.n, 2, EXTENT_PACKED, 0, false);
	fake_set(img.l.n, 3, EXTENT_ERROR, 0, false);
	for (unsigned i = 0; i < 2; i++) {
		pattern(buf, CL, i);
		assert_int_equal(io_now(&img, REQ_READ, i * CL, buf, CL, 0), 0);
		assert_memory_equal(buf, zero, CL);
	}
	assert_int_equal(io_now(&img, REQ_READ, 2 * CL, buf, CL, 0), -ENOTSUP);
	assert_int_equal(io_now(&img, REQ_READ, 3 * CL, buf, CL, 0), -EIO);
	assert_int_equal(io_now(&img, REQ_READ, CL, (uint8_t[2 * CL]){ 0 }, 2 * CL, 0), -ENOTSUP);
	/* A part of a packed cluster cannot be written without reading the rest; a whole one can. */
	assert_int_equal(io_now(&img, REQ_WRITE, 2 * CL, buf, 512, 0), -ENOTSUP);
	assert_int_equal(io_now(&img, REQ_WRITE, 2 * CL, buf, CL, 0), 0);
	assert_int_equal(io_now(&img, REQ_WRITE, 3 * CL, buf, CL, 0), -EIO);
	image_close(&img);
}

static void bounds_and_read_only_are_seen_to_at_the_door(void **state)
{
	uint8_t buf[CL] = { 0 };
	struct image img;

	(void)state;
	image_open(&img, NULL, CL, MiB(1), NODE_WRITABLE);
	assert_int_equal(io_now(&img, REQ_READ, MiB(1) - 512, buf, 1024, 0), -EINVAL);
	assert_int_equal(io_now(&img, REQ_READ, UINT64_MAX - 511, buf, 1024, 0), -EINVAL);
	assert_int_equal(io_now(&img, REQ_WRITE, MiB(1), buf, 512, 0), -EINVAL);
	assert_int_equal(io_now(&img, REQ_DISCARD, 512, NULL, UINT64_MAX, 0), -EINVAL);
	assert_int_equal(io_now(&img, REQ_READ, MiB(1), buf, 0, 0), 0);
	image_close(&img);

	image_open(&img, NULL, CL, MiB(1), 0);
	assert_int_equal(io_now(&img, REQ_WRITE, 0, buf, 512, 0), -EROFS);
	assert_int_equal(io_now(&img, REQ_ZERO, 0, NULL, 512, 0), -EROFS);
	assert_int_equal(io_now(&img, REQ_DISCARD, 0, NULL, 512, 0), -EROFS);
	assert_int_equal(io_now(&img, REQ_FLUSH, 0, NULL, 0, 0), 0);
	image_close(&img);
}

static void a_stable_write_is_followed_by_one_flush_of_the_image(void **state)
{
	uint8_t buf[CL] = { 0 };
	struct image img;

	(void)state;
	image_open(&img, NULL, CL, MiB(1), NODE_WRITABLE);
	map_range(&img, 0, 1, 0);
	fake_of(img.l.n)->dirty = true;
	assert_int_equal(io_now(&img, REQ_WRITE, 0, buf, CL, REQ_FUA), 0);
	assert_int_equal(fake_of(img.l.n)->nr_sync, 1);
	hold_of(img.hold)->fail_writes = -EIO;
	assert_int_equal(io_now(&img, REQ_WRITE, 0, buf, CL, REQ_FUA), -EIO);
	assert_int_equal(fake_of(img.l.n)->nr_sync, 1);
	image_close(&img);
}

#define FLUSHERS 32

/* As image_open(), with raw on top. */
static void raw_open(struct image *img)
{
	char options[64];

	img->l.q = leaf_queue();
	snprintf(options, sizeof(options), "size=%u", FLUSHERS * (unsigned)CL);
	if (leaf_try(&img->l, &driver_memory, NULL, options, NODE_WRITABLE) < 0)
		fail_msg("%s", img->l.err.message);
	img->memory = img->l.n;
	if (leaf_try(&img->l, &driver_hold, img->memory, "", NODE_WRITABLE) < 0)
		fail_msg("%s", img->l.err.message);
	img->hold = img->l.n;
	if (leaf_try(&img->l, &driver_raw, img->hold, "", NODE_WRITABLE) < 0)
		fail_msg("%s", img->l.err.message);
}

static void start_flushes(struct image *img, struct io *io, unsigned nr)
{
	for (unsigned i = 0; i < nr; i++)
		io_start(&io[i], img->l.n, img->l.q, REQ_FLUSH, 0, NULL, 0, 0);
	turns(img->l.q, 4);
}

/* Those that come while a flush is at the file wait for it to end: it may have begun before their data was
 * written. */
static void flushes_share_a_round_and_never_one_that_has_begun(void **state)
{
	struct io early[FLUSHERS] = { 0 }, late[FLUSHERS] = { 0 };
	struct image img;

	(void)state;
	image_open(&img, NULL, CL, MiB(1), NODE_WRITABLE);
	hold_of(img.hold)->flushes = true;
	start_flushes(&img, early, FLUSHERS);
	assert_int_equal(hold_of(img.hold)->nr_held, 1);
	start_flushes(&img, late, FLUSHERS);
	assert_int_equal(hold_of(img.hold)->nr_held, 1);
	assert_true(hold_release(img.hold));
	turns(img.l.q, 4);
	for (unsigned i = 0; i < FLUSHERS; i++) {
		assert_true(early[i].done && early[i].ret == 0);
		assert_false(late[i].done);
	}
	assert_int_equal(hold_of(img.hold)->nr_held, 1);
	assert_true(hold_release(img.hold));
	for (unsigned i = 0; i < FLUSHERS; i++)
		assert_int_equal(io_wait(&late[i]), 0);
	assert_int_equal(hold_of(img.hold)->nr_flushes, 2);
	hold_of(img.hold)->flushes = false;
	image_close(&img);
}

static void a_round_that_fails_fails_all_it_served_and_no_later_one(void **state)
{
	struct io early[FLUSHERS] = { 0 }, late[FLUSHERS] = { 0 };
	struct image img;

	(void)state;
	image_open(&img, NULL, CL, MiB(1), NODE_WRITABLE);
	hold_of(img.hold)->flushes = true;
	hold_of(img.hold)->fail_flush = -EIO;
	start_flushes(&img, early, FLUSHERS);
	hold_of(img.hold)->fail_flush = 0;
	for (unsigned i = 0; i < FLUSHERS; i++)
		assert_int_equal(io_wait(&early[i]), -EIO);
	start_flushes(&img, late, FLUSHERS);
	assert_true(hold_release(img.hold));
	for (unsigned i = 0; i < FLUSHERS; i++)
		assert_int_equal(io_wait(&late[i]), 0);
	hold_of(img.hold)->flushes = false;
	image_close(&img);
}

static void release_all(struct image *img)
{
	while (hold_release(img->hold))
		;
}

/* Depth 32, each write stable before it is answered, another one at once. */
static void write_stable_at_depth(struct image *img, unsigned total)
{
	static uint8_t buf[CL];
	struct io io[FLUSHERS] = { 0 };
	unsigned nr = 0;

	for (unsigned i = 0; i < FLUSHERS; i++, nr++)
		io_start(&io[i], img->l.n, img->l.q, REQ_WRITE, i * CL, buf, CL, REQ_FUA);
	while (nr < total) {
		release_all(img);
		turns(img->l.q, 1);
		for (unsigned i = 0; i < FLUSHERS && nr < total; i++) {
			if (!io[i].done)
				continue;
			assert_int_equal(io[i].ret, 0);
			io_start(&io[i], img->l.n, img->l.q, REQ_WRITE, i * CL, buf, CL, REQ_FUA);
			nr++;
		}
	}
	hold_of(img->hold)->writes = false;
	release_all(img);
	for (unsigned i = 0; i < FLUSHERS; i++)
		assert_int_equal(io_wait(&io[i]), 0);
	assert_int_equal(hold_of(img->hold)->nr_writes, total);
}

/* Two syncs for each 32 writes, at most. */
static void stable_writes_at_depth_share_their_syncs(void **state)
{
	const unsigned total = 32 * FLUSHERS;
	struct image img;

	(void)state;
	image_open(&img, NULL, CL, FLUSHERS * CL, NODE_WRITABLE);
	map_range(&img, 0, FLUSHERS, 0);
	write_stable_at_depth(&img, total);
	assert_in_range(hold_of(img.hold)->nr_flushes, 1, total / 10);
	image_close(&img);
}

/* On raw, which has no metadata, over a leaf whose stable writes wait for one another (a cached file), or do
 * not. */
static void stable_writes_of_raw_share_their_syncs_if_the_leaf_does_better_so(void **state)
{
	const unsigned total = 32 * FLUSHERS;
	uint8_t buf[CL] = { 0 };
	struct image img;

	(void)state;
	for (int waits = 0; waits < 2; waits++) {
		raw_open(&img);
		img.memory->fua_waits = waits;
		hold_of(img.hold)->writes = true; /* so that they are under way together */
		write_stable_at_depth(&img, total);
		if (waits)
			assert_in_range(hold_of(img.hold)->nr_flushes, 1, total / 10);
		else
			assert_int_equal(hold_of(img.hold)->nr_flushes, 0);
		hold_of(img.hold)->nr_flushes = 0;
		assert_int_equal(io_now(&img, REQ_WRITE, 0, buf, CL, REQ_FUA),
				 0); /* alone: stable in one go */
		assert_int_equal(hold_of(img.hold)->nr_flushes, 0);
		image_close(&img);
	}
}

/* A shared flush that fails fails the writes that it was for; the next ones are not mistaken for many. */
static void a_shared_flush_that_fails_fails_its_writes(void **state)
{
	static uint8_t buf[CL];
	struct io io[3] = { 0 };
	struct image img;

	(void)state;
	raw_open(&img);
	img.memory->fua_waits = true;
	hold_of(img.hold)->fail_flush = -EIO;
	hold_of(img.hold)->writes = true;
	for (unsigned i = 0; i < 3; i++)
		io_start(&io[i], img.l.n, img.l.q, REQ_WRITE, i * CL, buf, CL, REQ_FUA);
	hold_of(img.hold)->writes = false;
	release_all(&img);
	assert_int_equal(io_wait(&io[0]), 0); /* the first was alone */
	assert_int_equal(io_wait(&io[1]), -EIO);
	assert_int_equal(io_wait(&io[2]), -EIO);
	hold_of(img.hold)->fail_writes = -EIO;
	assert_int_equal(io_now(&img, REQ_WRITE, 0, buf, CL, REQ_FUA), -EIO);
	hold_of(img.hold)->fail_writes = 0;
	assert_int_equal(io_now(&img, REQ_WRITE, 0, buf, CL, REQ_FUA),
			 0); /* alone: no flush that could fail */
	hold_of(img.hold)->fail_flush = 0;
	image_close(&img);
}

#define BIG_NR 8
#define BIG_CLUSTERS 200 /* 8 * 200 pieces, many more than the pool has */
#define BIG_LEN (BIG_CLUSTERS * CL)

/* Every cluster lies alone, so each request needs a piece for each; what the pool has not must wait. */
static void many_big_requests_share_the_pool_of_pieces(void **state)
{
	uint8_t *buf = malloc(BIG_NR * BIG_LEN), *back = malloc(BIG_NR * BIG_LEN);
	struct io io[BIG_NR];
	struct image img;
	unsigned most = 0;

	(void)state;
	image_open(&img, NULL, CL, BIG_NR * BIG_LEN, NODE_WRITABLE);
	for (uint64_t i = 0; i < BIG_NR * BIG_CLUSTERS; i++)
		fake_set(img.l.n, i, EXTENT_DATA, 2 * i * CL, true);
	pattern(buf, BIG_NR * BIG_LEN, 3);
	memset(back, 0, BIG_NR * BIG_LEN);
	hold_of(img.hold)->reads = hold_of(img.hold)->writes = true;
	for (enum req_op op = REQ_WRITE;; op = REQ_READ) {
		for (unsigned i = 0; i < BIG_NR; i++)
			io_start(&io[i], img.l.n, img.l.q, op, i * BIG_LEN,
				 (op == REQ_WRITE ? buf : back) + i * BIG_LEN, BIG_LEN, 0);
		for (unsigned round = 0; round < 100000 && hold_of(img.hold)->nr_held; round++) {
			most = MAX(most, hold_of(img.hold)->nr_held);
			hold_release(img.hold);
			if (round % 5 == 0)
				queue_turn(img.l.q, 0);
			if (!hold_of(img.hold)->nr_held)
				turns(img.l.q, 2);
		}
		for (unsigned i = 0; i < BIG_NR; i++)
			assert_int_equal(io_wait(&io[i]), 0);
		if (op == REQ_READ)
			break;
	}
	assert_int_equal(most, 256); /* all pieces were in flight, and never more */
	assert_memory_equal(buf, back, BIG_NR * BIG_LEN);
	assert_int_equal(slot(&img)->nr_cold, 0);
	image_close(&img);
	free(buf);
	free(back);
}

#define SEGS 200

static void a_piece_takes_as_many_memory_segments_as_it_can_hold(void **state)
{
	static uint8_t buf[SEGS * 512 + 16], back[sizeof(buf)];
	struct iovec iov[SEGS];
	struct image img;

	(void)state;
	image_open(&img, NULL, 65536, MiB(1), NODE_WRITABLE);
	fake_set(img.l.n, 0, EXTENT_DATA, 0, true);
	fake_set(img.l.n, 1, EXTENT_DATA, 65536 * 2, true);
	pattern(buf, sizeof(buf), 5);
	for (unsigned i = 0; i < SEGS; i++)
		iov[i] = (struct iovec){ buf + i * 512 + (i > 7 ? 3 : 0), 512 };
	assert_int_equal(leaf_iov(&img.l, REQ_WRITE, 512, SEGS * 512, iov, SEGS, 0), 0);
	for (unsigned i = 0; i < SEGS; i++)
		iov[i].iov_base = back + i * 512;
	assert_int_equal(leaf_iov(&img.l, REQ_READ, 512, SEGS * 512, iov, SEGS, 0), 0);
	for (unsigned i = 0; i < SEGS; i++)
		assert_memory_equal(back + i * 512, buf + i * 512 + (i > 7 ? 3 : 0), 512);
	assert_int_equal(slot(&img)->nr_split, 2);
	image_close(&img);
}

static void one_failing_piece_fails_the_request_once(void **state)
{
	static uint8_t buf[64 * CL];
	struct image img;
	struct io io;

	(void)state;
	image_open(&img, NULL, CL, MiB(1), NODE_WRITABLE);
	for (uint64_t i = 0; i < 64; i++)
		fake_set(img.l.n, i, EXTENT_DATA, 2 * i * CL, true);
	fake_set(img.l.n, 40, EXTENT_ERROR, 0, false);
	hold_of(img.hold)->reads = true;
	io_start(&io, img.l.n, img.l.q, REQ_READ, 0, buf, sizeof(buf), 0);
	while (hold_release(img.hold))
		assert_true(!io.done || !hold_of(img.hold)->nr_held);
	assert_int_equal(io_wait(&io), -EIO);
	assert_int_equal(slot(&img)->entered, 0);
	image_close(&img);
}

/* A piece whose mapping went away meanwhile takes the cold path; also when it falls apart further. */
static void pieces_of_unloaded_ranges_are_loaded(void **state)
{
	static uint8_t buf[64 * CL], back[64 * CL];
	struct image img;

	(void)state;
	image_open(&img, NULL, CL, MiB(1), NODE_WRITABLE);
	for (uint64_t i = 0; i < 64; i++)
		fake_set(img.l.n, i, EXTENT_DATA, 2 * i * CL, true);
	pattern(buf, sizeof(buf), 6);
	assert_int_equal(io_now(&img, REQ_WRITE, 0, buf, sizeof(buf), 0), 0);
	for (uint64_t i = 20; i < 50; i += 3)
		fake_forget(img.l.n, i);
	fake_of(img.l.n)->load_yields = true;
	assert_int_equal(io_now(&img, REQ_READ, 0, back, sizeof(back), 0), 0);
	assert_memory_equal(buf, back, sizeof(buf));
	for (uint64_t i = 20; i < 50; i += 3)
		fake_forget(img.l.n, i);
	pattern(buf, sizeof(buf), 7);
	assert_int_equal(io_now(&img, REQ_WRITE, 0, buf, sizeof(buf), 0), 0);
	assert_int_equal(io_now(&img, REQ_READ, 0, back, sizeof(back), 0), 0);
	assert_memory_equal(buf, back, sizeof(buf));
	image_close(&img);
}

/* ---- against a model ---- */

#define MODEL_LEN (KiB(128) + 1536) /* the last cluster is not whole */

struct model {
	struct rnd rnd;
	struct image img;
	uint64_t cluster;
	uint8_t bytes[MODEL_LEN];
	uint8_t buf[MODEL_LEN];
};

static void model_fail(struct model *m, const char *what, uint64_t off, uint64_t len)
{
	fail_msg("seed %llu, cluster %llu: %s of %llu bytes at %llu", (unsigned long long)m->rnd.seed,
		 (unsigned long long)m->cluster, what, (unsigned long long)len, (unsigned long long)off);
}

/* The buffer in a random number of segments. */
static int model_io(struct model *m, enum req_op op, uint64_t off, uint64_t len, uint32_t flags)
{
	struct iovec iov[80];
	unsigned nr = 0;

	for (uint64_t pos = 0; pos < len;) {
		uint64_t part = nr == 79 ? len - pos : 1 + rnd_below(&m->rnd, len - pos);
		uint64_t small = 1 + rnd_below(&m->rnd, 700);

		if (rnd_below(&m->rnd, 4) && nr < 79)
			part = MIN(part, small);
		iov[nr++] = (struct iovec){ m->buf + pos, part };
		pos += part;
	}
	return leaf_iov(&m->img.l, op, off, len, op <= REQ_WRITE ? iov : NULL, op <= REQ_WRITE ? nr : 0,
			flags);
}

static void model_step(struct model *m)
{
	uint64_t grain = rnd_below(&m->rnd, 3) ? 512 : 1;
	uint64_t off = rnd_below(&m->rnd, MODEL_LEN / grain) * grain;
	uint64_t len = (1 + rnd_below(&m->rnd, (MODEL_LEN - off + grain - 1) / grain)) * grain;
	uint64_t few = grain * (1 + rnd_below(&m->rnd, 16)); /* not inside of MIN(), which asks twice */
	uint64_t what = rnd_below(&m->rnd, 10), i = rnd_below(&m->rnd, fake_of(m->img.l.n)->nr_clusters);

	len = MIN(len, MODEL_LEN - off);
	if (rnd_below(&m->rnd, 2))
		len = MIN(len, few);
	if (rnd_below(&m->rnd, 3) == 0)
		fake_forget(m->img.l.n, i);
	if (what < 4) {
		for (uint64_t k = 0; k < len; k++)
			m->buf[k] = (uint8_t)rnd_below(&m->rnd, 256);
		memcpy(m->bytes + off, m->buf, len);
		if (model_io(m, REQ_WRITE, off, len, 0) != 0)
			model_fail(m, "failed write", off, len);
	} else if (what < 8) {
		memset(m->buf, 0x5c, len);
		if (model_io(m, REQ_READ, off, len, 0) != 0)
			model_fail(m, "failed read", off, len);
		if (memcmp(m->buf, m->bytes + off, len))
			model_fail(m, "wrong bytes in a read", off, len);
	} else if (what == 8) {
		memset(m->bytes + off, 0, len);
		if (model_io(m, REQ_ZERO, off, len, rnd_below(&m->rnd, 2) ? REQ_MAY_UNMAP : 0) != 0)
			model_fail(m, "failed zeroing", off, len);
	} else if (fake_kind(m->img.l.n, i) == EXTENT_DATA) {
		/* As after a snapshot: the cluster must be copied before it is written. */
		atomic_fetch_and(&fake_of(m->img.l.n)->entries[i], ~(uint64_t)FAKE_INPLACE);
	}
}

static void model_run(uint64_t seed, uint64_t cluster, uint32_t flags)
{
	struct model *m = calloc(1, sizeof(*m));

	m->cluster = cluster;
	rnd_start(&m->rnd, seed);
	image_open(&m->img, NULL, cluster, MODEL_LEN, NODE_WRITABLE | flags);
	fake_of(m->img.l.n)->alloc_gaps = seed & 1;
	fake_of(m->img.l.n)->alloc_run = seed % 3 ? seed % 3 : UINT64_MAX;
	fake_of(m->img.l.n)->fresh_zero = seed & 2;
	fake_of(m->img.l.n)->load_yields = seed & 4;
	fake_of(m->img.l.n)->unlink_error = seed % 5 ? 0 : -ENOTSUP;
	for (unsigned i = 0; i < 150; i++)
		model_step(m);
	if (leaf_read(&m->img.l, 0, m->buf, MODEL_LEN) != 0 || memcmp(m->buf, m->bytes, MODEL_LEN))
		model_fail(m, "wrong bytes at the end: read", 0, MODEL_LEN);
	if (flags & NODE_FORCE_COLD)
		assert_true(node_slot(m->img.l.n, m->img.l.q)->nr_cold >= 100);
	image_close(&m->img);
	free(m);
}

static void random_requests_agree_with_a_model(void **state)
{
	(void)state;
	for (uint64_t seed = 1; seed <= 40; seed++)
		model_run(seed, 512ull << seed % 8, 0);
}

static void the_cold_path_alone_gives_the_same_bytes(void **state)
{
	(void)state;
	for (uint64_t seed = 1; seed <= 40; seed++)
		model_run(seed, 512ull << seed % 8, NODE_FORCE_COLD);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(mapped_requests_stay_on_the_hot_path),
		cmocka_unit_test(what_is_not_loaded_is_loaded_and_tried_again),
		cmocka_unit_test(a_table_that_cannot_be_loaded_fails_the_request),
		cmocka_unit_test(each_kind_of_extent_answers_as_it_should),
		cmocka_unit_test(bounds_and_read_only_are_seen_to_at_the_door),
		cmocka_unit_test(a_stable_write_is_followed_by_one_flush_of_the_image),
		cmocka_unit_test(flushes_share_a_round_and_never_one_that_has_begun),
		cmocka_unit_test(a_round_that_fails_fails_all_it_served_and_no_later_one),
		cmocka_unit_test(stable_writes_at_depth_share_their_syncs),
		cmocka_unit_test(stable_writes_of_raw_share_their_syncs_if_the_leaf_does_better_so),
		cmocka_unit_test(a_shared_flush_that_fails_fails_its_writes),
		cmocka_unit_test(many_big_requests_share_the_pool_of_pieces),
		cmocka_unit_test(a_piece_takes_as_many_memory_segments_as_it_can_hold),
		cmocka_unit_test(one_failing_piece_fails_the_request_once),
		cmocka_unit_test(pieces_of_unloaded_ranges_are_loaded),
		cmocka_unit_test(random_requests_agree_with_a_model),
		cmocka_unit_test(the_cold_path_alone_gives_the_same_bytes),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
