/* SPDX-License-Identifier: MIT */
/*
 * test_track.c - requests recorded in shared memory: what a process that is killed leaves is found again
 *
 * A child plays the device over a ring and an area in shared memory, taking requests and giving them back in
 * random order; we are the driver, and let the child go on instruction by instruction, until it is killed at
 * one of them. Then the driver has seen each request used once, or it is found in flight; never both, never
 * neither.
 */
#include <endian.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <cmocka.h>

#include "base/sanitizer.h"
#include "export/vhost-user-blk/vring.h"
#include "../../lib/seed.h"

#define NUM 16
#define MEM 0x10000u
#define USER_ADDR UINT64_C(0x7f0000000000)
#define AVAIL_AT 0x1000
#define USED_AT 0x2000
#define DATA_AT 0x8000

#define ROUNDS 120 /* VARVE_KILLS: another number */
#define STEPS_MAX 900

static uint8_t *mem; /* shared with the child */
static struct gmem gmem;
static struct inflight area;
static const struct vring_addr addr = { USER_ADDR, USER_ADDR + AVAIL_AT, USER_ADDR + USED_AT };
static uint64_t seed;

static uint32_t draw(uint32_t limit)
{
	seed = seed * 6364136223846793005u + 1442695040888963407u;
	return (uint32_t)((seed >> 33) % limit);
}

static int setup(void **state)
{
	struct varve_error err;
	uint64_t len;
	int fd;

	(void)state;
	mem = mmap(NULL, MEM, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	assert_ptr_not_equal(mem, MAP_FAILED);
	memset(&gmem, 0, sizeof(gmem));
	gmem.nr_regions = 1;
	gmem.region[0] = (struct gmem_region){ .user_addr = USER_ADDR, .len = MEM, .host = mem };
	assert_int_equal(inflight_create(1, NUM, &fd, &len, &err), 0);
	assert_int_equal(inflight_map(&area, fd, len, 0, 1, NUM, &err), 0);
	close(fd);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	inflight_close(&area);
	munmap(mem, MEM);
	return 0;
}

static void open_ring(struct vring *v, bool packed)
{
	const struct vring_opts o = { .num = NUM,
				      .base = packed ? 0x8000 : 0,
				      .packed = packed,
				      .event_idx = true,
				      .inflight = inflight_region(&area, 0) };
	struct varve_error err;

	if (vring_open(v, &gmem, &addr, &o, &err) < 0)
		fail_msg("%s", err.message);
}

static void expect_no_open(bool packed, unsigned num, const char *why)
{
	const struct vring_opts o = { .num = num, .packed = packed, .inflight = inflight_region(&area, 0) };
	static struct vring v;
	struct varve_error err;

	assert_true(vring_open(&v, &gmem, &addr, &o, &err) < 0);
	if (!strstr(err.message, why))
		fail_msg("\"%s\" does not say \"%s\"", err.message, why);
}

/* ---- the driver: requests of one descriptor, each known by the length of its buffer ---- */

struct driver_desc {
	uint64_t addr;
	uint32_t len;
	uint16_t a, b;
};

struct driver {
	bool packed;
	uint64_t nr_seen;
	uint32_t next_mark; /* 1 .. of the next request */
	uint32_t mark[NUM]; /* by descriptor or id; 0: free */
	uint16_t next, used;
	bool wrap, used_wrap;
};

static struct driver drv;

static struct driver_desc *descs(void)
{
	return (struct driver_desc *)mem;
}

static void add_split(unsigned i)
{
	uint16_t *avail = (uint16_t *)(mem + AVAIL_AT);

	descs()[i] = (struct driver_desc){ htole64(DATA_AT), htole32(drv.mark[i]), 0, 0 };
	avail[2 + drv.next % NUM] = htole16((uint16_t)i);
	drv.next++;
	__atomic_store_n(&avail[1], htole16(drv.next), __ATOMIC_RELEASE);
}

static void add_packed(unsigned i)
{
	struct driver_desc *d = &descs()[drv.next];

	d->addr = htole64(DATA_AT);
	d->len = htole32(drv.mark[i]);
	d->a = htole16((uint16_t)i);
	__atomic_store_n(&d->b, htole16(drv.wrap ? 0x80 : 0x8000), __ATOMIC_RELEASE);
	if (++drv.next == NUM) {
		drv.next = 0;
		drv.wrap = !drv.wrap;
	}
}

static void drive_add(void)
{
	unsigned busy = 0, i;

	for (i = 0; i < NUM; i++)
		busy += drv.mark[i] != 0;
	if (busy == NUM)
		return;
	for (i = draw(NUM); drv.mark[i]; i = (i + 1) % NUM)
		;
	drv.mark[i] = drv.next_mark++;
	if (drv.packed)
		add_packed(i);
	else
		add_split(i);
}

/* The request of descriptor or id i was used. */
static void seen(uint32_t i)
{
	assert_true(i < NUM);
	if (!drv.mark[i])
		fail_msg("request %u was used twice", i);
	drv.mark[i] = 0;
	drv.nr_seen++;
}

static void drive_reap(void)
{
	uint16_t *used = (uint16_t *)(mem + USED_AT);

	if (!drv.packed) {
		while (drv.used != le16toh(__atomic_load_n(&used[1], __ATOMIC_ACQUIRE))) {
			seen(le32toh(((uint32_t *)(used + 2))[2 * (drv.used % NUM)]));
			drv.used++;
		}
		return;
	}
	for (;;) {
		struct driver_desc *d = &descs()[drv.used];
		uint16_t flags = le16toh(__atomic_load_n(&d->b, __ATOMIC_ACQUIRE)) & 0x8080;

		if (flags != (drv.used_wrap ? 0x8080 : 0))
			return;
		seen(le16toh(d->a));
		if (++drv.used == NUM) {
			drv.used = 0;
			drv.used_wrap = !drv.used_wrap;
		}
	}
}

/* ---- the device, in the child ---- */

struct held {
	uint16_t slot[NUM];
	unsigned nr;
};

static void device_turn(struct vring *v, struct held *h)
{
	struct iovec iov[4];
	struct vring_chain chain;
	uint16_t slot;

	while (draw(3) && vring_next(v, &slot) == 1) {
		if (vring_chain(v, slot, iov, 4, &chain) < 0)
			abort();
		h->slot[h->nr++] = slot;
	}
	while (h->nr && draw(4)) {
		unsigned i = draw(h->nr);

		vring_push(v, h->slot[i], 0);
		h->slot[i] = h->slot[--h->nr];
	}
	vring_publish(v);
}

static void __attribute__((noreturn)) device_main(bool packed, unsigned round)
{
	static struct vring v;
	struct held h = { .nr = 0 };
	struct vring_opts o = { .num = NUM, .packed = packed, .inflight = inflight_region(&area, 0) };

	if (vring_open(&v, &gmem, &addr, &o, NULL) < 0)
		_exit(1);
	for (unsigned i = 0; i < v.track.nr_redo; i++)
		h.slot[h.nr++] = v.track.redo[i];
	seed += round;
	(void)ptrace(PTRACE_TRACEME, 0, NULL, NULL); /* that it may not shows when we try to step */
	raise(SIGSTOP);
	for (;;)
		device_turn(&v, &h);
}

/* Everything that the driver waits for is in flight or still available; nothing else is. */
static void check_books(void)
{
	static struct vring v;
	bool found[NUM] = { false };
	struct vring_chain chain;
	struct iovec iov[4];
	uint32_t last = 0;
	uint16_t slot;

	open_ring(&v, drv.packed);
	for (unsigned i = 0; i < v.track.nr_redo; i++) {
		unsigned k;

		assert_int_equal(vring_redo(&v, v.track.redo[i], iov, 4, &chain), 0);
		/* The descriptors are those that the driver had written then, in the order of taking. */
		for (k = 0; k < NUM && drv.mark[k] != chain.out_len; k++)
			;
		if (k == NUM)
			fail_msg("request %u is said to be in flight, but it was used", chain.out_len);
		assert_true(chain.out_len > last);
		last = chain.out_len;
		assert_false(found[k]);
		found[k] = true;
	}
	while (vring_next(&v, &slot) == 1) {
		unsigned k;

		assert_int_equal(vring_chain(&v, slot, iov, 4, &chain), 0);
		for (k = 0; k < NUM && drv.mark[k] != chain.out_len; k++)
			;
		if (k == NUM || found[k])
			fail_msg("request %u is available, and was taken before", chain.out_len);
		found[k] = true;
	}
	for (unsigned k = 0; k < NUM; k++)
		if (drv.mark[k] && !found[k])
			fail_msg("request %u was lost", drv.mark[k]);
}

/* Is the child stopped, and by the signal that is expected? */
static bool stopped(pid_t child)
{
	int status;

	assert_int_equal(waitpid(child, &status, 0), child);
	if (!WIFSTOPPED(status))
		fail_msg("the device ended by itself, status 0x%x", (unsigned)status);
	return WSTOPSIG(status) == SIGSTOP || WSTOPSIG(status) == SIGTRAP;
}

/* False: this process may not trace another. */
static bool step_and_kill(pid_t child)
{
	unsigned steps = draw(STEPS_MAX);
	bool may = true;

	assert_true(stopped(child));
	for (unsigned i = 0; may && i < steps; i++) {
		if (i % 50 == 0) {
			drive_reap();
			drive_add();
		}
		may = ptrace(PTRACE_SINGLESTEP, child, NULL, NULL) == 0;
		if (may)
			assert_true(stopped(child));
	}
	kill(child, SIGKILL);
	assert_int_equal(waitpid(child, NULL, 0), child);
	return may;
}

/* With sanitizers an instruction of the device is a hundred: what is drawn here would not end its first turn.
 */
#define SANITIZED (WITH_TSAN || WITH_ASAN)

static void kill_and_look(bool packed)
{
	const char *kills = getenv("VARVE_KILLS");
	unsigned rounds = kills ? (unsigned)strtoul(kills, NULL, 0) : ROUNDS;

	if (SANITIZED)
		skip();
	seed = seed_of_run();
	drv = (struct driver){ .packed = packed, .next_mark = 1, .wrap = true, .used_wrap = true };
	memset(mem, 0, MEM);
	/* The area begins its life here, at the driver's first places. */
	static struct vring first;

	open_ring(&first, packed);
	for (unsigned round = 0; round < rounds; round++) {
		pid_t child = fork();

		if (child == 0)
			device_main(packed, round);
		assert_true(child > 0);
		if (!step_and_kill(child))
			skip();
		drive_reap();
		check_books();
	}
	assert_true(drv.nr_seen > rounds / 2);
}

static void no_kill_loses_or_doubles_a_request_of_a_split_ring(void **state)
{
	(void)state;
	kill_and_look(false);
}

static void no_kill_loses_or_doubles_a_request_of_a_packed_ring(void **state)
{
	(void)state;
	kill_and_look(true);
}

/* ---- what was left is damaged ---- */

static void use_once(bool packed)
{
	static struct vring v;

	memset(mem, 0, MEM);
	memset(inflight_region(&area, 0), 0, sizeof(struct inflight_packed_region));
	open_ring(&v, packed);
}

static void a_damaged_split_region_is_refused(void **state)
{
	struct inflight_split_region *r = inflight_region(&area, 0);

	(void)state;
	use_once(false);
	expect_no_open(false, 8, "was used with a ring of 16, this one has 8");
	r->version = 2;
	expect_no_open(false, NUM, "version 2");
	r->version = INFLIGHT_VERSION;
	/* More used since than the ring has places; a list that leads outside. */
	((uint16_t *)(mem + USED_AT))[1] = htole16(NUM + 1);
	expect_no_open(false, NUM, "last batch would have 17");
	((uint16_t *)(mem + USED_AT))[1] = htole16(2);
	r->last_batch_head = 5;
	r->desc[5].next = NUM;
	expect_no_open(false, NUM, "names descriptor 16");
}

static void a_damaged_packed_region_is_refused(void **state)
{
	struct inflight_packed_region *r = inflight_region(&area, 0);

	(void)state;
	use_once(true);
	expect_no_open(true, 8, "was used with a ring of 16, this one has 8");
	r->used_idx = NUM;
	expect_no_open(true, NUM, "used position is 16");
	use_once(true);
	/* In flight, and not in the free list: of no descriptors, of too many, going on outside, in a circle.
	 */
	r->free_head = r->old_free_head = 1;
	r->desc[0].inflight = 1;
	expect_no_open(true, NUM, "number of descriptors of 0");
	r->desc[0].num = NUM + 1;
	expect_no_open(true, NUM, "number of descriptors of 17");
	r->desc[0].num = 2;
	r->desc[0].next = NUM;
	expect_no_open(true, NUM, "goes on at place 16");
	r->desc[0].next = 0;
	expect_no_open(true, NUM, "goes on at place 0");
	r->desc[0].next = 1;
	expect_no_open(true, NUM, "goes on at place 1");
	/* A free list in a circle ends no process. */
	use_once(true);
	r->desc[3].next = 0;
	static struct vring v;

	open_ring(&v, true);
	assert_int_equal(v.track.nr_redo, 0);
}

/* Whatever bytes are there: an answer, and no place outside the ring. */
static void garbage_is_survived(void **state)
{
	static struct vring v;

	(void)state;
	seed = 4711;
	for (unsigned round = 0; round < 20000; round++) {
		bool packed = round & 1;
		uint8_t *bytes = inflight_region(&area, 0);
		const struct vring_opts o = { .num = NUM, .packed = packed, .inflight = bytes };
		struct varve_error err;

		use_once(packed);
		for (unsigned i = draw(12); i; i--)
			bytes[10 + draw(32 + NUM * (packed ? 32 : 16) - 10)] =
				(uint8_t)draw(draw(2) ? 256 : NUM);
		mem[USED_AT + 2] = (uint8_t)draw(4);
		if (vring_open(&v, &gmem, &addr, &o, &err) < 0)
			continue;
		assert_in_range(v.track.nr_redo, 0, NUM);
		for (unsigned i = 0; i < v.track.nr_redo; i++)
			assert_in_range(v.track.redo[i], 0, NUM - 1);
		assert_true(!packed || v.next_avail < NUM);
	}
}

/*
 * A guest may offer a descriptor anew before it was shown as used, as often as it has time to while the ring is emptied:
 * more requests end before the next batch is shown than a ring has places. The record must stay inside its bounds.
 */
static void more_requests_in_a_batch_than_places_stay_inside_the_record(void **state)
{
	const unsigned far = 20000, nr = 3 * VRING_NUM_MAX; /* far: a place that no ring has, inside the area */
	struct vring_opts o = { .num = NUM };
	struct inflight_split_region *r;
	struct inflight large = { .map = NULL };
	struct varve_error err;
	static struct vring v;
	uint64_t len;
	int fd;

	(void)state;
	assert_int_equal(inflight_create(1, 32768, &fd, &len, &err), 0);
	assert_int_equal(inflight_map(&large, fd, len, 0, 1, 32768, &err), 0);
	close(fd);
	r = inflight_region(&large, 0);
	o.inflight = r;
	assert_int_equal(vring_open(&v, &gmem, &addr, &o, &err), 0);
	r->desc[far].inflight = 1;
	for (unsigned i = 0; i < VRING_NUM_MAX; i++)
		v.track.redo[i] = (uint16_t)far; /* what lies behind the list of the batch */
	for (unsigned i = 0; i < nr; i++) {
		uint16_t *avail = (uint16_t *)(mem + AVAIL_AT), slot;

		avail[2 + i % NUM] = htole16((uint16_t)(i % 4));
		__atomic_store_n(&avail[1], htole16((uint16_t)(i + 1)), __ATOMIC_RELEASE);
		assert_int_equal(vring_next(&v, &slot), 1);
		vring_push(&v, slot, 0);
	}
	vring_publish(&v);
	assert_int_equal(r->desc[far].inflight, 1);
	for (unsigned i = 0; i < NUM; i++)
		assert_int_equal(r->desc[i].inflight, 0);
	inflight_close(&large);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(no_kill_loses_or_doubles_a_request_of_a_split_ring),
		TEST(no_kill_loses_or_doubles_a_request_of_a_packed_ring),
		TEST(a_damaged_split_region_is_refused),
		TEST(a_damaged_packed_region_is_refused),
		TEST(garbage_is_survived),
		TEST(more_requests_in_a_batch_than_places_stay_inside_the_record),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
