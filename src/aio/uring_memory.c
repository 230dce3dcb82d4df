/* SPDX-License-Identifier: MIT */
/*
 * aio/uring_memory.c - memory that a ring has registered
 *
 * The kernel takes at most 1 GiB as one buffer, so a region is a run of buffers of 1 GiB each.
 *
 * Owns:    a ring's table of buffers.
 * Assumes: the ring's thread.
 * Never:   leaves a region half registered.
 */
#include "config.h"

#ifdef HAVE_LIBURING

#include <errno.h>
#include <string.h>

#include "aio/uring.h"
#include "base/log.h"

#define BUFFERS 1024 /* slots of the table: 1 TiB */
#define CHUNK GiB(1)

static unsigned nr_chunks(uint64_t len)
{
	return (unsigned)MIN(align_up(len, CHUNK) / CHUNK, BUFFERS + 1);
}

/* The lowest run of nr free slots, or -1. */
static int run_find(const struct uring *u, unsigned nr)
{
	unsigned at = 0;
	bool moved = true;

	while (moved) {
		moved = false;
		for (unsigned i = 0; i < u->nr_regions; i++) {
			const struct uring_region *r = &u->regions[i];

			if (r->first < at + nr && at < r->first + nr_chunks(r->len)) {
				at = r->first + nr_chunks(r->len);
				moved = true;
			}
		}
	}
	return at + nr <= BUFFERS ? (int)at : -1;
}

static int table_make(struct uring *u)
{
	int ret;

	if (u->has_buffers)
		return 0;
	u->q->stats.syscalls++;
	ret = io_uring_register_buffers_sparse(&u->ring, BUFFERS);
	u->has_buffers = ret == 0;
	return ret;
}

static int chunk_set(struct uring *u, unsigned slot, uint8_t *base, uint64_t len)
{
	struct iovec iov = { base, len };
	__u64 tag = 0;
	int ret;

	u->q->stats.syscalls++;
	ret = io_uring_register_buffers_update_tag(&u->ring, slot, &iov, &tag, 1);
	return ret < 0 ? ret : 0;
}

static int chunks_set(struct uring *u, const struct uring_region *r)
{
	int ret = 0;

	for (unsigned i = 0; ret == 0 && i < nr_chunks(r->len); i++) {
		ret = chunk_set(u, r->first + i, r->base + i * CHUNK, MIN(CHUNK, r->len - i * CHUNK));
		while (ret < 0 && i--)
			chunk_set(u, r->first + i, NULL, 0);
		if (ret < 0)
			break;
	}
	return ret;
}

void uring_memory_add(void *ctx, const struct aio_memory *m)
{
	struct uring *u = ctx;
	struct uring_region r = { .base = m->base, .len = m->len };
	int ret, first;

	if (!m->resident && !(u->mode & URING_PINNED))
		return;
	first = run_find(u, nr_chunks(m->len));
	ret = first < 0 ? -ENOSPC : table_make(u);
	if (ret == 0) {
		r.first = (unsigned)first;
		ret = chunks_set(u, &r);
	}
	if (ret == 0)
		u->regions[u->nr_regions++] = r;
	else
		log_info("queue %s: %llu KiB of memory are not registered with io_uring (%s%s); requests go "
			 "on without",
			 u->q->name, (unsigned long long)(m->len >> 10), strerror(-ret),
			 ret == -ENOMEM ? ": raise RLIMIT_MEMLOCK (ulimit -l)" : "");
}

void uring_memory_del(void *ctx, const struct aio_memory *m)
{
	struct uring *u = ctx;

	for (unsigned i = 0; i < u->nr_regions; i++) {
		const struct uring_region r = u->regions[i];

		if (r.base != m->base || r.len != m->len)
			continue;
		for (unsigned k = 0; k < nr_chunks(r.len); k++)
			chunk_set(u, r.first + k, NULL, 0);
		u->regions[i] = u->regions[--u->nr_regions];
		return;
	}
}

#endif
