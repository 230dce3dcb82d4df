/* SPDX-License-Identifier: MIT */
/*
 * vu_raw.c - misbehaving on purpose
 *
 * Owns:    nothing.
 * Assumes: see vu_raw.h.
 * Never:   believes that what it does is allowed.
 */
#include "vu_raw.h"

#include <endian.h>
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

void vu_raw_table_desc(struct vring_desc *table, unsigned i, uint64_t guest_addr, uint32_t len,
		       uint16_t flags, uint16_t next)
{
	table[i].addr = htole64(guest_addr);
	table[i].len = htole32(len);
	table[i].flags = htole16(flags);
	table[i].next = htole16(next);
}

void vu_raw_desc(struct vu_ring *r, unsigned i, uint64_t guest_addr, uint32_t len, uint16_t flags,
		 uint16_t next)
{
	vu_raw_table_desc(r->desc, i, guest_addr, len, flags, next);
}

void vu_raw_packed_desc(struct vu_ring *r, unsigned at, uint64_t guest_addr, uint32_t len,
			uint16_t id, uint16_t flags)
{
	struct vring_packed_desc *d = (struct vring_packed_desc *)r->desc + at;

	d->addr = htole64(guest_addr);
	d->len = htole32(len);
	d->id = htole16(id);
	__atomic_store_n(&d->flags, htole16(flags), __ATOMIC_RELEASE);
}

uint16_t vu_raw_packed_lap(const struct vu_ring *r)
{
	return r->avail_wrap ? 1u << VRING_PACKED_DESC_F_AVAIL : 1u << VRING_PACKED_DESC_F_USED;
}

uint16_t vu_raw_packed_flags(const struct vu_ring *r, unsigned at)
{
	struct vring_packed_desc *d = (struct vring_packed_desc *)r->desc + at;

	return le16toh(__atomic_load_n(&d->flags, __ATOMIC_ACQUIRE));
}

void vu_raw_avail_entry(struct vu_ring *r, unsigned at, uint16_t head)
{
	r->avail->ring[at] = htole16(head);
}

void vu_raw_avail_idx(struct vu_ring *r, uint16_t idx)
{
	__atomic_store_n(&r->avail->idx, htole16(idx), __ATOMIC_RELEASE);
}

void vu_raw_offer(struct vu_ring *r, uint16_t head)
{
	uint16_t idx = le16toh(__atomic_load_n(&r->avail->idx, __ATOMIC_RELAXED));

	vu_raw_avail_entry(r, idx & (r->len - 1), head);
	vu_raw_avail_idx(r, (uint16_t)(idx + 1));
}

void vu_raw_avail_flags(struct vu_ring *r, uint16_t flags)
{
	__atomic_store_n(&r->avail->flags, htole16(flags), __ATOMIC_SEQ_CST);
}

void vu_raw_used_event(struct vu_ring *r, uint16_t idx)
{
	__atomic_store_n(&r->avail->ring[r->len], htole16(idx), __ATOMIC_SEQ_CST);
}

int vu_raw_kick(struct vu_ring *r)
{
	uint64_t one = 1;

	return write(r->kick_fd, &one, sizeof(one)) == sizeof(one) || errno == EAGAIN ? 0 : -errno;
}

uint16_t vu_raw_used_idx(const struct vu_ring *r)
{
	return le16toh(__atomic_load_n(&r->used->idx, __ATOMIC_ACQUIRE));
}

uint16_t vu_raw_used_flags(const struct vu_ring *r)
{
	return le16toh(__atomic_load_n(&r->used->flags, __ATOMIC_ACQUIRE));
}

struct vring_used_elem vu_raw_used_elem(const struct vu_ring *r, unsigned at)
{
	struct vring_used_elem e = {
		.id = le32toh(r->used->ring[at].id),
		.len = le32toh(r->used->ring[at].len),
	};

	return e;
}

int vu_raw_wait_used(struct vu_ring *r, uint16_t idx, unsigned timeout_ms)
{
	uint64_t deadline = vu_deadline_ns(timeout_ms), count;

	for (;;) {
		struct pollfd fds[2] = {
			{ .fd = r->call_fd, .events = POLLIN },
			{ .fd = r->peer_fd },
		};
		int n;

		vu_raw_avail_flags(r, 0);
		vu_raw_used_event(r, (uint16_t)(idx - 1));
		__atomic_thread_fence(__ATOMIC_SEQ_CST);
		if (vu_raw_used_idx(r) == idx)
			return 0;
		n = poll(fds, 2, vu_ms_left(deadline));
		if (n < 0)
			return vu_fail(&r->err, -errno, "poll: %s", strerror(errno));
		if (n == 0)
			return vu_fail(&r->err, -ETIMEDOUT,
				       "queue %u: the used index is %u, not %u in time",
				       r->index, vu_raw_used_idx(r), idx);
		if (fds[1].revents)
			return vu_fail(&r->err, -ECONNRESET,
				       "queue %u: connection closed, used index %u, %u expected",
				       r->index, vu_raw_used_idx(r), idx);
		if (read(r->call_fd, &count, sizeof(count)) < 0 && errno != EAGAIN)
			return vu_fail(&r->err, -errno, "call eventfd: %s", strerror(errno));
	}
}

bool vu_raw_take_err(struct vu_ring *r)
{
	uint64_t count;

	return read(r->err_fd, &count, sizeof(count)) == sizeof(count);
}

enum vu_raw_end vu_raw_wait_broken(struct vu_front *f, unsigned q, unsigned timeout_ms)
{
	uint64_t deadline = vu_deadline_ns(timeout_ms);
	struct pollfd fds[2] = {
		{ .fd = f->ring[q].err_fd, .events = POLLIN },
		{ .fd = f->sock },
	};

	for (;;) {
		int n = poll(fds, 2, vu_ms_left(deadline));

		if (n == 0)
			return VU_RAW_NOTHING;
		if (n > 0 && vu_raw_take_err(&f->ring[q]))
			return VU_RAW_ERR_SIGNALLED;
		if (n > 0 && fds[1].revents)
			return VU_RAW_CLOSED;
	}
}

int vu_raw_wait_closed(struct vu_front *f, unsigned timeout_ms)
{
	uint64_t deadline = vu_deadline_ns(timeout_ms);
	char waste[512];

	for (;;) {
		struct pollfd p = { .fd = f->sock, .events = POLLIN };
		int n = poll(&p, 1, vu_ms_left(deadline));
		ssize_t got;

		if (n == 0)
			return vu_fail(&f->err, -ETIMEDOUT,
				       "the back end did not close the connection in %u ms",
				       timeout_ms);
		if (n < 0)
			continue;
		got = recv(f->sock, waste, sizeof(waste), MSG_DONTWAIT);
		if (got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR))
			return 0;
	}
}

int vu_raw_shrink_memory(struct vu_front *f, uint64_t len)
{
	if (ftruncate(f->mem.fd, (off_t)len) < 0)
		return vu_fail(&f->err, -errno, "cannot shrink guest memory to %llu bytes: %s",
			       (unsigned long long)len, strerror(errno));
	return 0;
}
