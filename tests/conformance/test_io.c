/* SPDX-License-Identifier: MIT */
/*
 * conformance/test_io.c - the same behaviour from every engine, in every cache mode, on every ground
 *
 * What a caller of proto/file may rely on, whichever way the I/O is done. Data is verified through a
 * descriptor of the test's own.
 */
#include "rig.h"

#include <fcntl.h>
#include <pthread.h>

/* ---- reading, writing, zeroing, discarding ---- */

/* Any offset, any length, any memory: a shadow in memory says what must be there. */
static void mixed_requests_at_any_offset(const struct setting *s)
{
	const uint64_t len =
		s->ground == ON_LOOP ? RIG_LEN : MiB(1) + 777; /* not whole sectors, where it can be */
	uint8_t *shadow = calloc(1, len), *buf = malloc(MiB(1)), *area = malloc(len + 64);
	uint32_t seed = rig_seed();
	struct rig rig;

	rig_open(&rig, s, len);
	assert_true(node_len(rig.l.n) == len);
	for (unsigned round = 0; round < 120; round++) {
		uint64_t off = (uint32_t)rand_r(&seed) % (MiB(1)), part;
		uint8_t *memory = area + rand_r(&seed) % 64;

		part = 1 + (uint32_t)rand_r(&seed) % (round % 3 ? 20000 : MiB(1));
		part = MIN(part, MiB(1) + 777 - off);
		switch (rand_r(&seed) % 6) {
		case 0:
		case 1:
			fill_random(memory, part, round + 1);
			memcpy(shadow + off, memory, part);
			assert_int_equal(rig_do(&rig, REQ_WRITE, off, memory, part, round % 8 ? 0 : REQ_FUA),
					 0);
			break;
		case 2:
			memset(shadow + off, 0, part);
			assert_int_equal(rig_do(&rig, REQ_ZERO, off, NULL, part,
						round % 2   ? REQ_MAY_UNMAP
						: round % 8 ? 0
							    : REQ_FUA),
					 0);
			break;
		case 3:
			/* What it held is undefined now: written anew, so that it is defined again. */
			assert_int_equal(rig_do(&rig, REQ_DISCARD, off, NULL, part, 0), 0);
			fill_random(shadow + off, part, round + 1);
			memcpy(memory, shadow + off, part);
			assert_int_equal(rig_do(&rig, REQ_WRITE, off, memory, part, 0), 0);
			break;
		case 4:
			if (round % 4 == 0)
				assert_int_equal(rig_do(&rig, REQ_FLUSH, 0, NULL, 0, 0), 0);
			/* fall through */
		default:
			memset(memory, 0xee, part);
			assert_int_equal(rig_do(&rig, REQ_READ, off, memory, part, 0), 0);
			if (memcmp(memory, shadow + off, part))
				fail_msg("round %u: %llu bytes at %llu differ", round,
					 (unsigned long long)part, (unsigned long long)off);
		}
	}
	rig_peek_expect(&rig, 0, shadow, MiB(1) + 777);
	rig_close(&rig);
	free(shadow);
	free(buf);
	free(area);
}

/* nr elements of odd lengths in memory at odd addresses, with an empty one among them. */
static void one_vector(struct rig *rig, unsigned nr, uint64_t off, bool aligned)
{
	struct iovec *iov = calloc(nr, sizeof(*iov));
	uint32_t align = MAX(rig->l.n->mem_align, 512u);
	size_t room = (size_t)nr * MAX(align, 700u) + 8192, pos = aligned ? 0 : 3, total = 0;
	uint8_t *area = rig_memory(room), *flat = rig_memory(room);
	struct call *c = calloc(1, sizeof(*c));

	fill_random(area, room, nr);
	for (unsigned i = 0; i < nr; i++) {
		size_t len = aligned ? (size_t)align : (i * 37) % 600 + (i != 5 && i % 16 == 0);

		iov[i] = (struct iovec){ area + pos, len };
		memcpy(flat + total, area + pos, len);
		total += len;
		pos += aligned ? align : len + 1;
	}
	call_startv(rig, c, REQ_WRITE, off, iov, nr, total, 0);
	calls_finish(rig->l.q, c, 1);
	assert_int_equal(c->ret, 0);
	rig_peek_expect(rig, off, flat, total);
	memset(area, 0xee, room);
	call_startv(rig, c, REQ_READ, off, iov, nr, total, 0);
	calls_finish(rig->l.q, c, 1);
	assert_int_equal(c->ret, 0);
	for (size_t i = 0, at = 0; i < nr; at += iov[i++].iov_len)
		assert_memory_equal(iov[i].iov_base, flat + at, iov[i].iov_len);
	free(iov);
	free(area);
	free(flat);
	free(c);
}

static void vectors_of_1_to_1500_elements(const struct setting *s)
{
	static const unsigned sizes[] = { 1, 2, 3, 17, 127, 128, 129, 1023, 1024, 1025, 1500 };
	struct rig rig;

	rig_open(&rig, s, RIG_LEN);
	for (unsigned i = 0; i < ARRAY_LEN(sizes); i++) {
		one_vector(&rig, sizes[i], i * 4096, true);
		one_vector(&rig, sizes[i], MiB(2) + i * 1003, false);
	}
	rig_close(&rig);
}

/* Longer than any buffer in between, at an odd offset; and all there is in one request. */
static void long_requests(const struct setting *s)
{
	const size_t len = MiB(5) + 13;
	uint8_t *buf = rig_memory(RIG_LEN), *back = rig_memory(RIG_LEN);
	struct rig rig;

	rig_open(&rig, s, RIG_LEN);
	fill_random(buf, RIG_LEN, 3);
	assert_int_equal(rig_do(&rig, REQ_WRITE, 1001, buf, len, 0), 0);
	rig_peek_expect(&rig, 1001, buf, len);
	assert_int_equal(rig_do(&rig, REQ_READ, 1001, back, len, 0), 0);
	assert_memory_equal(back, buf, len);
	assert_int_equal(rig_do(&rig, REQ_WRITE, 0, buf, RIG_LEN, 0), 0);
	assert_int_equal(rig_do(&rig, REQ_READ, 0, back, RIG_LEN, 0), 0);
	assert_memory_equal(back, buf, RIG_LEN);
	assert_int_equal(rig_do(&rig, REQ_ZERO, 0, NULL, RIG_LEN, REQ_MAY_UNMAP), 0);
	memset(back, 0, RIG_LEN);
	rig_peek_expect(&rig, 0, back, RIG_LEN);
	rig_close(&rig);
	free(buf);
	free(back);
}

/* More than one operation may take (AIO_LEN_MAX): 1 GiB and some, nearly all of it a hole. */
static void requests_longer_than_an_operation(const struct setting *s)
{
	enum { PARTS = 1026 };
	const uint64_t len = (uint64_t)PARTS * MiB(1);
	uint8_t *middle = rig_memory(MiB(1)), *first = rig_memory(MiB(1)), *last = rig_memory(MiB(1));
	uint8_t *bytes = rig_memory(MiB(1));
	struct iovec iov[PARTS];
	struct call *c = calloc(1, sizeof(*c));
	struct rig rig;

	rig_open(&rig, s, len);
	for (unsigned i = 0; i < PARTS; i++)
		iov[i] = (struct iovec){ i == 0 ? first : i == PARTS - 1 ? last : middle, MiB(1) };
	fill_random(bytes, MiB(1), 9);
	assert_int_equal(rig_do(&rig, REQ_WRITE, 0, bytes, MiB(1), 0), 0);
	assert_int_equal(rig_do(&rig, REQ_WRITE, len - MiB(1), bytes, MiB(1), 0), 0);
	call_startv(&rig, c, REQ_READ, 0, iov, PARTS, len, 0);
	calls_finish(rig.l.q, c, 1);
	assert_int_equal(c->ret, 0);
	assert_memory_equal(first, bytes, MiB(1));
	assert_memory_equal(last, bytes, MiB(1));
	assert_int_equal(rig_do(&rig, REQ_ZERO, 4096, NULL, len - 8192, REQ_MAY_UNMAP), 0);
	memset(bytes + 4096, 0, MiB(1) - 4096);
	rig_peek_expect(&rig, 0, bytes, MiB(1));
	assert_int_equal(rig_do(&rig, REQ_DISCARD, 0, NULL, len, 0), 0);
	assert_true(rig_peek_len(&rig) == len);
	rig_close(&rig);
	free(first);
	free(middle);
	free(last);
	free(bytes);
	free(c);
}

/* ---- many at once ---- */

/* More than any ring or context takes: nobody is refused, nobody ends twice. */
static void more_requests_than_a_ring_holds(const struct setting *s)
{
	const bool slow = rig_flags(s) & NODE_WRITETHROUGH; /* each write costs a sync */
	const unsigned nr_writes = slow ? 300 : 4500, nr_reads = 6000;
	struct call *calls = calloc(nr_reads, sizeof(*calls));
	uint8_t *out, *in;
	uint32_t block;
	unsigned nr_blocks;
	struct rig rig;

	rig_open(&rig, s, RIG_LEN);
	block = MAX(rig.l.n->align, 512u);
	nr_blocks = MIN(nr_writes, RIG_LEN / block);
	out = rig_memory((size_t)nr_blocks * block);
	in = rig_memory((size_t)nr_reads * block);
	fill_random(out, (size_t)nr_blocks * block, 4);
	for (unsigned i = 0; i < nr_blocks; i++)
		call_start(&rig, &calls[i], REQ_WRITE, (uint64_t)i * block, out + (size_t)i * block, block,
			   0);
	calls_finish(rig.l.q, calls, nr_blocks);
	for (unsigned i = 0; i < nr_blocks; i++)
		assert_int_equal(calls[i].ret, 0);
	rig_peek_expect(&rig, 0, out, (size_t)nr_blocks * block);
	for (unsigned i = 0; i < nr_reads; i++) {
		unsigned from = i * 7 % nr_blocks;

		call_start(&rig, &calls[i], i % 100 == 50 ? REQ_FLUSH : REQ_READ, (uint64_t)from * block,
			   in + (size_t)i * block, block, 0);
	}
	calls_finish(rig.l.q, calls, nr_reads);
	for (unsigned i = 0; i < nr_reads; i++) {
		assert_int_equal(calls[i].ret, 0);
		if (i % 100 != 50)
			assert_memory_equal(in + (size_t)i * block, out + (size_t)(i * 7 % nr_blocks) * block,
					    block);
	}
	rig_close(&rig);
	free(calls);
	free(out);
	free(in);
}

/* ---- two queues ---- */

struct second {
	struct rig *rig;
	struct queue *q;
	uint64_t from, to; /* blocks of 4 KiB that are ours */
	bool append;
	uint32_t flags;
	int ret;
	pthread_t thread;
};

static int second_attach(struct fiber *f, void *arg)
{
	struct second *u = arg;

	return node_attach(u->rig->l.n, fiber_queue(f), NULL);
}

static int second_detach(struct fiber *f, void *arg)
{
	struct second *u = arg;

	node_detach(f, u->rig->l.n, u->q);
	return 0;
}

static int second_work(struct fiber *f, void *arg)
{
	struct second *u = arg;
	uint8_t *out = rig_memory(4096), *in = rig_memory(4096);
	struct iovec iov = { out, 4096 };
	int ret = 0;

	for (uint64_t i = u->from; ret == 0 && i < u->to; i++) {
		fill_random(out, 4096, (uint32_t)i);
		ret = node_writev(f, u->rig->l.n, i * 4096, &iov, 1, u->flags);
		/* Another queue's block that was there from the start. */
		if (ret == 0)
			ret = node_read(f, u->rig->l.n, i % 16 * 4096, in, 4096);
		fill_random(out, 4096, (uint32_t)(i % 16));
		if (ret == 0 && memcmp(in, out, 4096))
			ret = -EBADMSG;
		if (ret == 0 && i % 32 == 0)
			ret = node_flush(f, u->rig->l.n);
	}
	free(out);
	free(in);
	return ret;
}

static void *second_thread(void *arg)
{
	struct second *u = arg;

	u->ret = fiber_call(u->q, second_work, u);
	return NULL;
}

/* [16, end) blocks of 4 KiB written by two queues with threads of their own; the first 16 are there. */
static void two_queues(struct rig *rig, uint64_t end)
{
	struct second users[2];

	for (unsigned i = 0; i < 2; i++) {
		struct queue_opts opts = { .name = "second", .own_thread = true };

		users[i] = (struct second){ .rig = rig,
					    .from = 16 + i * (end - 16) / 2,
					    .to = 16 + (i + 1) * (end - 16) / 2 };
		assert_int_equal(queue_new(&users[i].q, &opts, NULL), 0);
		assert_int_equal(fiber_call(users[i].q, second_attach, &users[i]), 0);
	}
	for (unsigned i = 0; i < 2; i++)
		assert_int_equal(pthread_create(&users[i].thread, NULL, second_thread, &users[i]), 0);
	for (unsigned i = 0; i < 2; i++) {
		pthread_join(users[i].thread, NULL);
		assert_int_equal(users[i].ret, 0);
	}
	for (unsigned i = 0; i < 2; i++) {
		assert_int_equal(fiber_call(rig->l.q, second_detach, &users[i]), 0);
		queue_free(users[i].q);
	}
}

static void expect_blocks(struct rig *rig, uint64_t end)
{
	uint8_t *want = rig_memory(end * 4096);

	for (uint64_t i = 0; i < end; i++)
		fill_random(want + i * 4096, 4096, (uint32_t)i);
	rig_peek_expect(rig, 0, want, end * 4096);
	free(want);
}

static void first_blocks(struct rig *rig)
{
	uint8_t *buf = rig_memory(4096);

	for (uint64_t i = 0; i < 16; i++) {
		fill_random(buf, 4096, (uint32_t)i);
		assert_int_equal(rig_do(rig, REQ_WRITE, i * 4096, buf, 4096, 0), 0);
	}
	free(buf);
}

static void two_queues_share_a_file(const struct setting *s)
{
	struct rig rig;

	rig_open(&rig, s, RIG_LEN);
	first_blocks(&rig);
	two_queues(&rig, 144);
	expect_blocks(&rig, 144);
	rig_close(&rig);
}

/* A device cannot grow, so this is for files: each of the queues writes beyond the end, the other reads
 * meanwhile. */
static void a_file_grows_while_others_read(const struct setting *s)
{
	struct rig rig;

	if (s->ground == ON_LOOP) {
		rig_open(&rig, s, RIG_LEN);
		assert_true(rig.l.n->fixed_len);
		assert_int_equal(rig_do(&rig, REQ_WRITE, RIG_LEN, (char[1]){ 0 }, 1, 0), -EINVAL);
		rig_close(&rig);
		return;
	}
	rig_open(&rig, s, 16 * 4096);
	first_blocks(&rig);
	two_queues(&rig, 144);
	assert_true(node_len(rig.l.n) == 144 * 4096);
	assert_true(rig_peek_len(&rig) == 144 * 4096);
	expect_blocks(&rig, 144);
	rig_close(&rig);
}

/* ---- the end of the file ---- */

/* Reads that reach beyond the end of a file that somebody made shorter: zeroes, not an error, not for ever.
 */
static void what_is_beyond_the_end_reads_as_zeroes(const struct setting *s)
{
	uint8_t *buf = rig_memory(65536), *want = rig_memory(65536);
	struct rig rig;

	rig_open(&rig, s, s->ground == ON_LOOP ? RIG_LEN : 65536);
	fill_random(buf, 65536, 6);
	memcpy(want, buf, 65536);
	assert_int_equal(rig_do(&rig, REQ_WRITE, 0, buf, 65536, 0), 0);
	if (s->ground == ON_LOOP) {
		assert_int_equal(rig_do(&rig, REQ_READ, RIG_LEN - 512, buf, 513, 0), -EINVAL);
		assert_int_equal(rig_do(&rig, REQ_READ, RIG_LEN, buf, 1, 0), -EINVAL);
	} else {
		assert_int_equal(ftruncate(rig.fd, 20001), 0);
		memset(want + 20001, 0, 65536 - 20001);
		memset(buf, 0xee, 65536);
		assert_int_equal(rig_do(&rig, REQ_READ, 0, buf, 65536, 0), 0);
		assert_memory_equal(buf, want, 65536);
		memset(buf, 0xee, 65536);
		assert_int_equal(rig_do(&rig, REQ_READ, 20000, buf, 3000, 0), 0);
		assert_memory_equal(buf, want + 20000, 3000);
		assert_int_equal(rig_do(&rig, REQ_READ, 40000, buf, 3001, 0), 0);
		assert_memory_equal(buf, want + 40000, 3001);
	}
	rig_close(&rig);
	free(buf);
	free(want);
}

/* A file of odd length: its tail can be read and written, to the byte. */
static void the_tail_of_a_file_of_odd_length(const struct setting *s)
{
	const uint64_t len = s->ground == ON_LOOP ? RIG_LEN : 1000003;
	uint8_t *buf = rig_memory(8192), *back = rig_memory(8192);
	struct rig rig;

	rig_open(&rig, s, len);
	fill_random(buf, 8192, 7);
	assert_int_equal(rig_do(&rig, REQ_WRITE, len - 5001, buf, 5001, 0), 0);
	assert_int_equal(rig_do(&rig, REQ_READ, len - 5001, back, 5001, 0), 0);
	assert_memory_equal(back, buf, 5001);
	rig_peek_expect(&rig, len - 5001, buf, 5001);
	assert_int_equal(rig_do(&rig, REQ_READ, len - 1, back, 1, 0), 0);
	assert_int_equal(back[0], buf[5000]);
	assert_int_equal(rig_do(&rig, REQ_WRITE, len - 1, buf, 1, REQ_FUA), 0);
	rig_peek_expect(&rig, len - 1, buf, 1);
	rig_close(&rig);
	free(buf);
	free(back);
}

/* ---- stable storage ---- */

/* Which writes and flushes reach the medium before they end; only faultfs knows, elsewhere they just succeed.
 */
static void writes_are_stable_when_they_must_be(const struct setting *s)
{
	const bool through = rig_flags(s) & NODE_WRITETHROUGH, unsafe = rig_flags(s) & NODE_NO_FLUSH;
	const bool known = s->ground == ON_FAULTFS || s->ground == ON_FAULTFS_SYNC;
	uint8_t *buf = rig_memory(8192), *seen = rig_memory(8192), *none = calloc(1, 8192);
	struct rig rig;
	int stable;

	rig_open(&rig, s, RIG_LEN);
	stable = known ? open(rig.fs->stable, O_RDONLY | O_CLOEXEC) : -1;
	fill_random(buf, 8192, 8);

	assert_int_equal(rig_do(&rig, REQ_WRITE, 0, buf, 8192, 0), 0);
	if (known) {
		assert_int_equal(pread(stable, seen, 8192, 0), 8192);
		assert_memory_equal(seen, through ? buf : none, 8192);
		if (!through)
			assert_int_equal(faultfs_tell(rig.fs, "count fsync"), 0);
	}
	assert_int_equal(rig_do(&rig, REQ_WRITE, 16384, buf, 8192, REQ_FUA), 0);
	if (known) {
		assert_int_equal(pread(stable, seen, 8192, 16384), 8192);
		assert_memory_equal(seen, unsafe ? none : buf, 8192);
	}
	/* Unaligned: read, change, write back, all of it stable. */
	assert_int_equal(rig_do(&rig, REQ_WRITE, 32769, buf, 5000, REQ_FUA), 0);
	if (known) {
		assert_int_equal(pread(stable, seen, 5000, 32769), 5000);
		assert_memory_equal(seen, unsafe ? none : buf, 5000);
	}
	assert_int_equal(rig_do(&rig, REQ_ZERO, 16384, NULL, 8192, REQ_FUA), 0);
	if (known) {
		assert_int_equal(pread(stable, seen, 8192, 16384), 8192);
		assert_memory_equal(seen, none, 8192);
	}
	assert_int_equal(rig_do(&rig, REQ_FLUSH, 0, NULL, 0, 0), 0);
	if (known) {
		assert_int_equal(pread(stable, seen, 8192, 0), 8192);
		assert_memory_equal(seen, unsafe ? none : buf, 8192);
		if (unsafe)
			assert_int_equal(faultfs_tell(rig.fs, "count fsync"), 0);
		close(stable);
	}
	rig_close(&rig);
	free(buf);
	free(seen);
	free(none);
}

/* ---- closing ---- */

static void can_be_locked(struct rig *rig)
{
	struct flock lock = { .l_type = F_WRLCK, .l_whence = SEEK_SET };

	if (fcntl(rig->fd, F_OFD_SETLK, &lock) < 0)
		fail_msg("closed, but still locked: %s", strerror(errno));
	lock.l_type = F_UNLCK;
	assert_int_equal(fcntl(rig->fd, F_OFD_SETLK, &lock), 0);
}

static void nothing_holds_the_file(struct rig *rig)
{
	char path[64], target[512];
	unsigned found = 0;

	for (int fd = 3; fd < 1024; fd++) {
		ssize_t n;

		snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
		n = readlink(path, target, sizeof(target) - 1);
		if (n > 0) {
			target[n] = 0;
			found += !strcmp(target, rig->path);
		}
	}
	/* Ours for peeking; a loop device stays configured by another one. */
	assert_int_equal(found, rig->s->ground == ON_LOOP ? 2 : 1);
}

/* The file is closed when close returns, and all that ended before is in it; with the queue still there. */
static void a_closed_file_is_closed(const struct setting *s)
{
	uint8_t *buf = rig_memory(64 * 4096);
	struct call *calls = calloc(64, sizeof(*calls));
	struct rig rig;

	rig_open(&rig, s, RIG_LEN);
	for (unsigned round = 0; round < 4; round++) {
		fill_random(buf, 64 * 4096, round);
		for (unsigned i = 0; i < 64; i++)
			call_start(&rig, &calls[i], REQ_WRITE, i * 4096, buf + i * 4096, 4096, 0);
		calls_finish(rig.l.q, calls, 64);
		/* The queue lives on in half of the rounds. */
		if (round % 2)
			rig_close_node(&rig, 0);
		else
			assert_int_equal(leaf_close_node(&rig.l), 0);
		can_be_locked(&rig);
		nothing_holds_the_file(&rig);
		rig_peek_expect(&rig, 0, buf, 64 * 4096);
		if (round % 2)
			rig_reopen(&rig);
		else if (leaf_try(&rig.l, &driver_file, NULL, rig_options(&rig), rig_flags(s)) < 0)
			fail_msg("opening again: %s", rig.l.err.message);
	}
	rig_close_node(&rig, 0);
	can_be_locked(&rig);
	close(rig.fd);
	free(buf);
	free(calls);
}

/* Who would write zeroes himself if he had to gets them without a write, also where the file system needs two
 * steps (tmpfs). */
static void zeroes_without_a_write(const struct setting *s)
{
	const size_t block = 8192;
	uint8_t *bytes = rig_memory(4 * block);
	struct rig rig;

	rig_open(&rig, s, 4 * block);
	memset(bytes, 0x5a, 4 * block);
	assert_int_equal(rig_do(&rig, REQ_WRITE, 0, bytes, 4 * block, 0), 0);
	for (unsigned round = 0; round < 2; round++)
		assert_int_equal(rig_do(&rig, REQ_ZERO, block, NULL, block, REQ_NO_FALLBACK), 0);
	memset(bytes + block, 0, block);
	assert_int_equal(rig_do(&rig, REQ_ZERO, 3 * block, NULL, block, REQ_NO_FALLBACK), 0);
	memset(bytes + 3 * block, 0, block);
	rig_peek_expect(&rig, 0, bytes, 4 * block);
	assert_int_equal(rig_peek_len(&rig), 4 * block);
	rig_close(&rig);
	free(bytes);
}

#define IO_GROUNDS (REAL_GROUNDS | 1u << ON_FAULTFS)

int main(void)
{
	static const struct rig_case cases[] = {
		{ "mixed requests at any offset read back", mixed_requests_at_any_offset, ALL_CACHES,
		  IO_GROUNDS, NULL },
		{ "vectors of 1 to 1500 elements", vectors_of_1_to_1500_elements, ALL_CACHES, IO_GROUNDS,
		  NULL },
		{ "long requests", long_requests, ALL_CACHES, IO_GROUNDS, NULL },
		{ "requests longer than an operation", requests_longer_than_an_operation, BOTH_CACHES,
		  1u << ON_TMPFS, NULL },
		{ "more requests than a ring holds", more_requests_than_a_ring_holds, ALL_CACHES, IO_GROUNDS,
		  NULL },
		{ "two queues share a file", two_queues_share_a_file, ALL_CACHES, IO_GROUNDS, NULL },
		{ "a file grows while others read", a_file_grows_while_others_read, ALL_CACHES, IO_GROUNDS,
		  NULL },
		{ "what is beyond the end reads as zeroes", what_is_beyond_the_end_reads_as_zeroes,
		  ALL_CACHES, IO_GROUNDS, NULL },
		{ "the tail of a file of odd length", the_tail_of_a_file_of_odd_length, ALL_CACHES,
		  IO_GROUNDS, NULL },
		{ "writes are stable when they must be", writes_are_stable_when_they_must_be, ALL_CACHES,
		  IO_GROUNDS, NULL },
		{ "zeroes without a write", zeroes_without_a_write, BOTH_CACHES,
		  1u << ON_FILE | 1u << ON_TMPFS, NULL },
		{ "a closed file is closed", a_closed_file_is_closed, ALL_CACHES, IO_GROUNDS, NULL },
	};

	return rig_run("io", cases, ARRAY_LEN(cases));
}
