/* SPDX-License-Identifier: MIT */
/*
 * fuzz/fuzz_ring.c - any bytes as a guest's rings and memory: split and packed, with and without a record of what is in flight
 *
 * Input: choices, then the guest's memory, which holds the ring's three parts first. What is taken is carried out on a disk that
 * touches every byte of the buffers, now or later, while the guest changes bytes of its memory; then the device begins anew on
 * the same ring, as after its death. Held against it: buffers lie in guest memory, are as many and as long as is said, and
 * nothing runs longer than the ring has places.
 */
#include <stdlib.h>
#include <string.h>

#include "export/vhost-user-blk/blk.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define HALF 0x800u
#define NUM_MAX 16
#define AVAIL_AT 0x100
#define USED_AT 0x140
#define TURNS 6
#define SLOT_IOV 64

struct input {
	const uint8_t *p;
	size_t left;
};

static uint8_t low[HALF] __attribute__((aligned(16))), high[HALF];
static uint8_t region[sizeof(struct inflight_packed_region) + NUM_MAX * sizeof(struct inflight_packed_desc)]
	__attribute__((aligned(8)));
static struct gmem mem;
static struct vring ring;
static struct blk_slot slots[NUM_MAX];
static struct node top = { .len = MiB(1) };
static const struct blk_disk disk = { .top = &top, .writable = true, .id = "fuzz" };
static struct blk_ctx ctx;
static struct queue *queue;

/* Requests that the disk has not answered. */
static struct req *held[NUM_MAX];
static unsigned nr_held;
static bool hold;

static void check(bool ok)
{
	if (!ok)
		abort();
}

static uint8_t next_byte(struct input *in)
{
	if (!in->left)
		return 0;
	in->left--;
	return *in->p++;
}

static void fill(struct input *in, uint8_t *to, size_t len)
{
	size_t n = MIN(len, in->left);

	memcpy(to, in->p, n);
	memset(to + n, 0, len - n);
	in->p += n;
	in->left -= n;
}

/* ---- the disk ---- */

static bool in_memory(const uint8_t *p, size_t len)
{
	return (p >= low && p <= low + HALF && len <= (size_t)(low + HALF - p)) ||
	       (p >= high && p <= high + HALF && len <= (size_t)(high + HALF - p));
}

static void answer(struct req *r)
{
	uint8_t sum = 0;

	for (unsigned i = 0; i < r->nr_iov; i++) {
		uint8_t *p = r->iov[i].iov_base;

		check(in_memory(p, r->iov[i].iov_len) && r->iov[i].iov_len > 0);
		for (size_t k = 0; k < r->iov[i].iov_len; k++) {
			if (r->op == REQ_READ)
				p[k] = 0x5a;
			else
				sum ^= p[k];
		}
	}
	r->done(r, sum & 1 ? -EIO : 0);
}

void node_submit(struct node *n, struct req *r)
{
	check(n == &top);
	if (hold && nr_held < NUM_MAX)
		held[nr_held++] = r;
	else
		answer(r);
}

static void answer_held(unsigned i)
{
	struct req *r = held[i];

	held[i] = held[--nr_held];
	answer(r);
}

void blk_finished(struct blk_slot *s, uint32_t written)
{
	check(s->busy);
	s->busy = false;
	vring_push(&ring, s->index, written);
}

/* ---- the device ---- */

static void check_chain(const struct blk_slot *s, const struct vring_chain *c)
{
	uint64_t out = 0, in = 0;

	check(c->nr_out + c->nr_in > 0 && c->nr_out + c->nr_in <= SLOT_IOV);
	for (unsigned i = 0; i < c->nr_out + c->nr_in; i++) {
		check(s->iov[i].iov_len > 0 && in_memory(s->iov[i].iov_base, s->iov[i].iov_len));
		*(i < c->nr_out ? &out : &in) += s->iov[i].iov_len;
	}
	check(out == c->out_len && in == c->in_len);
}

static bool begin(uint16_t slot, bool redo)
{
	struct blk_slot *s = &slots[slot];
	struct vring_chain c;
	int ret;

	check(slot < NUM_MAX);
	if (s->busy)
		return false; /* ring.c breaks the ring here */
	ret = redo ? vring_redo(&ring, slot, s->iov, SLOT_IOV, &c) : vring_chain(&ring, slot, s->iov, SLOT_IOV, &c);
	if (ret < 0)
		return false;
	check_chain(s, &c);
	s->busy = true;
	if (blk_begin(s, &c)) {
		s->busy = false;
		return false;
	}
	return true;
}

/* False: the ring is broken. */
static bool take_all(void)
{
	uint16_t slot;

	vring_kick_off(&ring);
	for (unsigned i = 0; i < ring.num; i++) {
		int ret = vring_next(&ring, &slot);

		if (ret < 0 || (ret == 0 && !vring_kick_on(&ring)))
			return ret == 0;
		if (ret > 0 && !begin(slot, false))
			return false;
	}
	return true;
}

/* A guest that offers what it was not shown as used, as often as the loop empties its ring before it shows anything. */
static bool take_again_and_again(void)
{
	uint16_t *idx = (uint16_t *)(low + AVAIL_AT + 2);

	for (unsigned i = 0; i < VRING_NUM_MAX / NUM_MAX + 2; i++) {
		if (!take_all())
			return false;
		*idx = (uint16_t)(*idx + ring.num);
	}
	return true;
}

static bool open_ring(uint8_t flags, unsigned num, uint32_t base)
{
	static const struct vring_addr addr = { 0x10000, 0x10000 + AVAIL_AT, 0x10000 + USED_AT };
	const struct vring_opts o = {
		.num = num,
		.base = base,
		.packed = flags & 1,
		.event_idx = flags & 2,
		.indirect = flags & 4,
		.inflight = flags & 8 ? region : NULL,
	};

	if (vring_open(&ring, &mem, &addr, &o, NULL) < 0)
		return false;
	for (unsigned i = 0; i < ring.track.nr_redo; i++) {
		if (!begin(ring.track.redo[i], true))
			return false;
	}
	return true;
}

/* One life of the device on the ring that is there. */
static void live(struct input *in, uint8_t flags, unsigned num, uint32_t base)
{
	memset(slots, 0, sizeof(slots));
	for (unsigned i = 0; i < NUM_MAX; i++) {
		slots[i].ctx = &ctx;
		slots[i].index = (uint16_t)i;
	}
	nr_held = 0;
	if (!open_ring(flags, num, base))
		return;
	for (unsigned turn = 0; turn < TURNS; turn++) {
		uint8_t act = next_byte(in);
		bool ok;

		hold = act & 1;
		ok = (act & 0xfc) == 0xfc ? take_again_and_again() : take_all();
		while (nr_held && act & 2)
			answer_held(act % nr_held);
		vring_publish(&ring);
		if (!ok)
			return;
		for (unsigned i = act >> 4; i; i--)
			low[(next_byte(in) | next_byte(in) << 8) % HALF] = next_byte(in);
	}
}

static void begin_process(void)
{
	struct queue_opts o = { .name = "fuzz", .virtual_time = true };

	if (queue)
		return;
	check(queue_new(&queue, &o, NULL) == 0);
	mem.nr_regions = 2;
	mem.region[0] = (struct gmem_region){ .guest_addr = 0, .user_addr = 0x10000, .len = HALF, .host = low };
	mem.region[1] = (struct gmem_region){ .guest_addr = HALF, .user_addr = 0x20000, .len = HALF, .host = high };
	ctx = (struct blk_ctx){ .disk = &disk, .q = queue, .features = blk_features(&disk), .mem = &mem };
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input in = { data, size };
	uint8_t flags = next_byte(&in), n = next_byte(&in);
	unsigned num = flags & 1 ? 1 + n % NUM_MAX : 1u << n % 5;
	uint32_t base = next_byte(&in) | (uint32_t)next_byte(&in) << 8;

	begin_process();
	memset(region, 0, sizeof(region));
	fill(&in, low, HALF);
	if (flags & 0x10)
		fill(&in, region, sizeof(region));
	fill(&in, high, 64);
	live(&in, flags, num, base);
	live(&in, flags, num, base);
	return 0;
}
