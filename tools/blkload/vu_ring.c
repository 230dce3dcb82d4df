/* SPDX-License-Identifier: MIT */
/*
 * vu_ring.c - the driver's side of a virtqueue: the split ring, and what both kinds share
 *
 * Owns:    what vu_ring.h says. Guest memory itself belongs to struct vu_mem.
 * Assumes: the layout of the virtio 1.x split ring, little-endian.
 * Never:   allocates, locks or makes a system call for a request, except the kick of a batch.
 */
#include "vu_ring.h"
#include "vu_ring_packed.h"

#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define SPINS_PER_LOOK	1024	/* polls of the used ring between two looks at clock and peer */

static uint64_t desc_len(uint16_t len)
{
	return (uint64_t)len * sizeof(struct vring_desc);
}

static uint64_t avail_len(uint16_t len)
{
	return sizeof(struct vring_avail) + ((uint64_t)len + 1) * sizeof(uint16_t);
}

static uint64_t used_len(uint16_t len)
{
	return sizeof(struct vring_used) + (uint64_t)len * sizeof(struct vring_used_elem) +
	       sizeof(uint16_t);
}

/* The two event indices live behind the last element of the rings. */
static uint16_t *used_event(struct vu_ring *r)
{
	return &r->avail->ring[r->len];
}

static uint16_t *avail_event(struct vu_ring *r)
{
	return (uint16_t *)&r->used->ring[r->len];
}

uint64_t vu_ring_mem_len(uint16_t len, uint16_t table_len)
{
	return desc_len(len) + avail_len(len) + used_len(len) +
	       (uint64_t)len * table_len * sizeof(struct vring_desc) + 4 * 64;
}

int vu_ring_init(struct vu_ring *r, struct vu_mem *mem, unsigned index, uint16_t len,
		 uint16_t table_len)
{
	assert(len > 0 && len <= 32768 && (len & (len - 1)) == 0);
	memset(r, 0, sizeof(*r));
	r->index = index;
	r->len = len;
	r->table_len = table_len;
	r->peer_fd = -1;
	r->kick_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	r->call_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	r->err_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (r->kick_fd < 0 || r->call_fd < 0 || r->err_fd < 0)
		return vu_fail(&r->err, -errno, "cannot make an eventfd: %s", strerror(errno));

	/* Own cache lines for each part: the two sides write different ones. */
	r->desc = vu_mem_alloc(mem, desc_len(len), 64, NULL);
	r->avail = vu_mem_alloc(mem, avail_len(len), 64, NULL);
	r->used = vu_mem_alloc(mem, used_len(len), 64, NULL);
	if (table_len > 0)
		r->tables = vu_mem_alloc(mem, desc_len(len) * table_len, 64, &r->tables_guest_addr);
	if (!r->desc || !r->avail || !r->used || (table_len > 0 && !r->tables))
		return vu_fail(&r->err, -ENOMEM,
			       "guest memory is too small for a ring of %u descriptors", len);

	r->slot = calloc(len, sizeof(*r->slot));
	if (!r->slot)
		return vu_fail(&r->err, -ENOMEM, "no memory for %u ring slots", len);
	vu_ring_reset(r, 0);
	return 0;
}

void vu_ring_free(struct vu_ring *r)
{
	if (r->len == 0)
		return;
	free(r->slot);
	if (r->kick_fd >= 0)
		close(r->kick_fd);
	if (r->call_fd >= 0)
		close(r->call_fd);
	if (r->err_fd >= 0)
		close(r->err_fd);
	memset(r, 0, sizeof(*r));
}

void vu_ring_reset(struct vu_ring *r, uint16_t base)
{
	unsigned i;

	memset(r->desc, 0, desc_len(r->len));
	memset(r->avail, 0, avail_len(r->len));
	memset(r->used, 0, used_len(r->len));
	for (i = 0; i < r->len; i++)
		r->slot[i] = (struct vu_slot){ .next = (uint16_t)(i + 1) };
	r->free_head = 0;
	r->nr_free = r->len;
	r->nr_chains = 0;
	r->nr_added = r->nr_done = 0;
	if (r->packed) {
		vu_packed_reset(r, base);
		return;
	}
	r->next_avail = r->published = r->last_used = base;
	r->avail->idx = htole16(base);
	r->used->idx = htole16(base);
	*avail_event(r) = htole16(base);
	/* Nobody waits yet: an event is due only once the index has gone all the way round. */
	*used_event(r) = htole16((uint16_t)(base - 1));
	r->avail->flags = htole16(VRING_AVAIL_F_NO_INTERRUPT);
}

void vu_ring_set_packed(struct vu_ring *r, bool packed)
{
	r->packed = packed;
	vu_ring_reset(r, packed ? 1u << VRING_PACKED_EVENT_F_WRAP_CTR : 0);
}

static uint32_t packed_base(uint32_t place, bool wrap)
{
	place |= wrap ? 1u << VRING_PACKED_EVENT_F_WRAP_CTR : 0;
	return place | place << 16;	/* the available and the used position: they are equal */
}

uint32_t vu_ring_base(const struct vu_ring *r)
{
	return r->packed ? packed_base(r->last_used, r->used_wrap) : r->last_used;
}

uint32_t vu_ring_end(const struct vu_ring *r)
{
	return r->packed ? packed_base(r->next_avail, r->avail_wrap) : r->next_avail;
}

int vu_ring_check_done(struct vu_ring *r, uint16_t id, uint32_t written)
{
	if (written > r->slot[id].writable)
		return vu_fail(&r->err, -EPROTO,
			       "queue %u: the device says that it wrote %u bytes"
			       " into a request with room for %u",
			       r->index, written, r->slot[id].writable);
	if (r->in_order && r->slot[id].seq != r->nr_done)
		return vu_fail(&r->err, -EPROTO,
			       "queue %u: request %llu is done before request %llu, but IN_ORDER was negotiated",
			       r->index, (unsigned long long)r->slot[id].seq, (unsigned long long)r->nr_done);
	r->nr_done++;
	return 0;
}

static void put_desc(struct vring_desc *d, const struct vu_seg *s, uint16_t more, uint16_t next)
{
	d->addr = htole64(s->guest_addr);
	d->len = htole32(s->len);
	d->flags = htole16((uint16_t)(more | (s->dev_writes ? VRING_DESC_F_WRITE : 0)));
	d->next = htole16(next);
}

/* Fill the table that belongs to descriptor head, and let descriptor at point to it. */
static void put_table(struct vu_ring *r, uint16_t head, uint16_t at, const struct vu_seg *segs,
		      unsigned nr)
{
	size_t first = (size_t)head * r->table_len;
	struct vring_desc *t = r->tables + first, *d = &r->desc[at];
	unsigned i;

	for (i = 0; i + 1 < nr; i++)
		put_desc(&t[i], &segs[i], VRING_DESC_F_NEXT, (uint16_t)(i + 1));
	put_desc(&t[i], &segs[i], 0, 0);

	d->addr = htole64(r->tables_guest_addr + first * sizeof(*t));
	d->len = htole32((uint32_t)(nr * sizeof(*t)));
	d->flags = htole16(VRING_DESC_F_INDIRECT);
	d->next = 0;
}

/* Put nr segments into descriptors of the ring, beginning at head, chained to the next if more. */
static uint16_t put_chain(struct vu_ring *r, uint16_t head, const struct vu_seg *segs, unsigned nr,
			  bool more)
{
	uint16_t at = head;
	unsigned i;

	for (i = 0; i < nr; i++) {
		uint16_t next = r->slot[at].next;
		bool chained = more || i + 1 < nr;

		put_desc(&r->desc[at], &segs[i], chained ? VRING_DESC_F_NEXT : 0,
			 chained ? next : 0);
		at = next;
	}
	return at;	/* the first that was not used */
}

int vu_ring_add(struct vu_ring *r, const struct vu_seg *segs, unsigned nr_segs, void *cookie)
{
	enum vu_indirect how = r->indirect;
	uint16_t head = r->free_head, rest, need;
	uint32_t writable = 0;
	unsigned i;

	if (r->packed)
		return vu_packed_add(r, segs, nr_segs, cookie);
	assert(nr_segs > 0);
	if (how == VU_INDIRECT_MIXED)
		how = r->next_avail & 1 ? VU_INDIRECT : VU_DIRECT;
	if (nr_segs == 1)
		how = VU_DIRECT;
	if (nr_segs > r->len ||
	    (how != VU_DIRECT && nr_segs - (how == VU_INDIRECT_TAIL) > r->table_len))
		return vu_fail(&r->err, -E2BIG,
			       "a request of %u segments: the ring has %u descriptors, a table %u",
			       nr_segs, r->len, r->table_len);
	need = how == VU_DIRECT ? (uint16_t)nr_segs : how == VU_INDIRECT ? 1 : 2;
	if (need > r->nr_free)
		return vu_fail(&r->err, -ENOSPC, "queue %u has %u descriptors free, %u needed",
			       r->index, r->nr_free, need);

	switch (how) {
	case VU_INDIRECT:
		put_table(r, head, head, segs, nr_segs);
		rest = r->slot[head].next;
		break;
	case VU_INDIRECT_TAIL:
		rest = put_chain(r, head, segs, 1, true);
		put_table(r, head, rest, segs + 1, nr_segs - 1);
		rest = r->slot[rest].next;
		break;
	default:
		rest = put_chain(r, head, segs, nr_segs, false);
		break;
	}
	for (i = 0; i < nr_segs; i++)
		writable += segs[i].dev_writes ? segs[i].len : 0;

	r->slot[head].nr = need;
	r->slot[head].writable = writable;
	r->slot[head].cookie = cookie;
	r->slot[head].seq = r->nr_added++;
	r->free_head = rest;
	r->nr_free = (uint16_t)(r->nr_free - need);
	r->nr_chains++;
	r->avail->ring[r->next_avail & (r->len - 1)] = htole16(head);
	r->next_avail++;
	return 0;
}

/* Show the split ring's batch. Returns whether the device wants a kick. */
static bool split_show(struct vu_ring *r)
{
	uint16_t old = r->published;

	/* Release: descriptors and ring entries are visible before the index that covers them. */
	__atomic_store_n(&r->avail->idx, htole16(r->next_avail), __ATOMIC_RELEASE);
	r->published = r->next_avail;

	/*
	 * The device first writes "kick me" and then looks at the index once more; we first write
	 * the index and then look whether it wants a kick. The full barrier between makes sure
	 * that at least one of the two sees the other.
	 */
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	if (r->event_idx)
		return vring_need_event(le16toh(__atomic_load_n(avail_event(r), __ATOMIC_RELAXED)),
					r->next_avail, old);
	return !(le16toh(__atomic_load_n(&r->used->flags, __ATOMIC_RELAXED)) &
		 VRING_USED_F_NO_NOTIFY);
}

int vu_ring_kick(struct vu_ring *r)
{
	uint64_t one = 1;

	if (r->packed ? !r->first : r->next_avail == r->published)
		return 0;
	if (!(r->packed ? vu_packed_show(r) : split_show(r))) {
		r->nr_kicks_spared++;
		return 0;
	}
	r->nr_kicks++;
	/* EAGAIN: the counter is full of kicks that nobody has read; one more says nothing new. */
	if (write(r->kick_fd, &one, sizeof(one)) < 0 && errno != EAGAIN)
		return vu_fail(&r->err, -errno, "cannot kick queue %u: %s", r->index,
			       strerror(errno));
	return 0;
}

/* Acquire: what the device wrote before it moved the index is visible afterwards. */
static uint16_t device_used_idx(struct vu_ring *r)
{
	return le16toh(__atomic_load_n(&r->used->idx, __ATOMIC_ACQUIRE));
}

static bool has_used(struct vu_ring *r)
{
	return r->packed ? vu_packed_has_used(r) : device_used_idx(r) != r->last_used;
}

/* Give the descriptors of the chain at head back to the free list. */
static void free_chain(struct vu_ring *r, uint16_t head)
{
	uint16_t tail = head, i;

	for (i = 1; i < r->slot[head].nr; i++)
		tail = r->slot[tail].next;
	r->slot[tail].next = r->free_head;
	r->free_head = head;
	r->nr_free = (uint16_t)(r->nr_free + r->slot[head].nr);
	r->slot[head].nr = 0;
	r->nr_chains--;
}

int vu_ring_reap(struct vu_ring *r, struct vu_done *done, unsigned max)
{
	uint16_t idx, ready;
	unsigned n;

	if (r->packed)
		return vu_packed_reap(r, done, max);
	idx = device_used_idx(r);
	ready = (uint16_t)(idx - r->last_used);
	if (ready > r->nr_chains)
		return vu_fail(&r->err, -EPROTO,
			       "queue %u: used index went from %u to %u with %u requests in flight",
			       r->index, r->last_used, idx, r->nr_chains);
	for (n = 0; n < ready && n < max; n++) {
		const struct vring_used_elem *e = &r->used->ring[r->last_used & (r->len - 1)];
		uint32_t id = le32toh(e->id), len = le32toh(e->len);
		int ret;

		if (id >= r->len || r->slot[id].nr == 0)
			return vu_fail(&r->err, -EPROTO,
				       "queue %u: used element %u names descriptor %u,"
				       " which heads no request in flight",
				       r->index, r->last_used, id);
		ret = vu_ring_check_done(r, (uint16_t)id, len);
		if (ret < 0)
			return ret;
		done[n].cookie = r->slot[id].cookie;
		done[n].written = len;
		free_chain(r, (uint16_t)id);
		r->last_used++;
	}
	return (int)n;
}

/* What a poll() over call, error and connection found; 0 when none of them ends the wait. */
static int look_at_fds(struct vu_ring *r, const struct pollfd *p)
{
	uint64_t count;

	if (p[1].revents & POLLIN)
		return vu_fail(&r->err, -EIO, "the device signalled an error on queue %u",
			       r->index);
	if (p[2].revents & (POLLHUP | POLLERR | POLLNVAL))
		return vu_fail(&r->err, -ECONNRESET,
			       "the back end closed the connection with %u requests in flight"
			       " on queue %u", r->nr_chains, r->index);
	if ((p[0].revents & POLLIN) && read(r->call_fd, &count, sizeof(count)) < 0 &&
	    errno != EAGAIN)
		return vu_fail(&r->err, -errno, "cannot read the call eventfd of queue %u: %s",
			       r->index, strerror(errno));
	return 0;
}

static int timed_out(struct vu_ring *r)
{
	return vu_fail(&r->err, -ETIMEDOUT,
		       "queue %u: the device completed none of %u requests in time", r->index,
		       r->nr_chains);
}

static int wait_spinning(struct vu_ring *r, struct pollfd *fds, uint64_t deadline_ns)
{
	for (;;) {
		unsigned i;
		int ret;

		for (i = 0; i < SPINS_PER_LOOK; i++) {
			if (has_used(r))
				return 0;
#if defined(__x86_64__) || defined(__i386__)
			__builtin_ia32_pause();
#endif
		}
		ret = poll(fds, 3, 0);
		if (ret < 0)
			return vu_fail(&r->err, -errno, "poll: %s", strerror(errno));
		ret = look_at_fds(r, fds);
		if (ret < 0)
			return ret;
		if (vu_now_ns() >= deadline_ns)
			return timed_out(r);
		sched_yield();	/* with fewer cores than threads, the device needs this one */
	}
}

static void call_on(struct vu_ring *r)
{
	if (r->packed)
		vu_packed_call_on(r);
	else if (r->event_idx)
		__atomic_store_n(used_event(r), htole16(r->last_used), __ATOMIC_RELAXED);
	else
		__atomic_store_n(&r->avail->flags, 0, __ATOMIC_RELAXED);
}

static void call_off(struct vu_ring *r)
{
	if (r->packed)
		vu_packed_call_off(r);
	else if (!r->event_idx)
		__atomic_store_n(&r->avail->flags, htole16(VRING_AVAIL_F_NO_INTERRUPT),
				 __ATOMIC_RELAXED);
}

int vu_ring_wait(struct vu_ring *r, uint64_t deadline_ns)
{
	struct pollfd fds[3] = {
		{ .fd = r->call_fd, .events = POLLIN },
		{ .fd = r->err_fd, .events = POLLIN },
		{ .fd = r->peer_fd },
	};
	int ret = 0;

	if (has_used(r))
		return 0;
	if (r->spin)
		return wait_spinning(r, fds, deadline_ns);

	for (;;) {
		/* Ask for a call at the next completion ... */
		call_on(r);
		/* ... and look again: the device may have finished before it could see that. The
		 * barrier is the partner of the device's between its index and its look at ours. */
		__atomic_thread_fence(__ATOMIC_SEQ_CST);
		if (has_used(r))
			break;

		r->nr_sleeps++;
		ret = poll(fds, 3, vu_ms_left(deadline_ns));
		if (ret < 0)
			ret = vu_fail(&r->err, -errno, "poll: %s", strerror(errno));
		else if (ret == 0)
			ret = timed_out(r);
		else
			ret = look_at_fds(r, fds);
		if (ret < 0 || has_used(r))
			break;
	}
	call_off(r);
	/* What was finished before the end came can still be reaped. */
	return has_used(r) ? 0 : ret;
}
