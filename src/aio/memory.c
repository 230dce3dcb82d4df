/* SPDX-License-Identifier: MIT */
/*
 * aio/memory.c - memory that a queue's I/O goes to and comes from, made known to the engines; bounce buffers
 *
 * An engine may register such memory with the kernel, which then need not look up and hold its pages for
 * every request. That holds all of it in memory for as long as it is known.
 *
 * Owns:    the list of a queue; its bounce buffers.
 * Assumes: the queue's thread. Nothing is in flight in memory that is taken away.
 * Never:   fails: what does not fit into the list, or is not registered, works as other memory does.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "aio/loop.h"

static void tell(struct queue *q, const struct aio_memory *m, bool add)
{
	for (unsigned i = 0; i < q->nr_engines; i++) {
		const struct aio_engine *e = q->engines[i].engine;

		if (add && e->memory_add)
			e->memory_add(q->engines[i].ctx, m);
		else if (!add && e->memory_del)
			e->memory_del(q->engines[i].ctx, m);
	}
}

static struct aio_memory *find(struct queue *q, const void *base, uint64_t len)
{
	for (unsigned i = 0; i < q->nr_memory; i++) {
		if (q->memory[i].base == base && q->memory[i].len == len)
			return &q->memory[i];
	}
	return NULL;
}

void aio_memory_add(struct queue *q, void *base, uint64_t len, bool resident)
{
	struct aio_memory *m = find(q, base, len);

	assert(queue_is_mine(q) && len);
	if (m) {
		m->users++;
		return;
	}
	if (q->nr_memory == AIO_MEMORY_MAX)
		return;
	m = &q->memory[q->nr_memory++];
	*m = (struct aio_memory){ .base = base, .len = len, .resident = resident, .users = 1 };
	tell(q, m, true);
}

void aio_memory_del(struct queue *q, void *base, uint64_t len)
{
	struct aio_memory *m = find(q, base, len);

	assert(queue_is_mine(q));
	if (!m || --m->users)
		return;
	tell(q, m, false);
	*m = q->memory[--q->nr_memory];
}

/* ---- bounce buffers ---- */

/* All or nothing: without them a buffer is allocated when one is needed. */
static void bounce_make(struct queue *q)
{
	struct bounce *b = &q->bounce;
	void *p = mmap(NULL, BOUNCE_NR * AIO_BOUNCE_LEN, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
		       -1, 0);

	b->tried = true;
	if (p == MAP_FAILED)
		return;
	b->base = p;
	b->free = (1u << BOUNCE_NR) - 1;
	aio_memory_add(q, b->base, BOUNCE_NR * AIO_BOUNCE_LEN, true);
}

void *aio_bounce_get(struct queue *q, uint64_t len, uint32_t align)
{
	struct bounce *b = &q->bounce;
	void *p;
	int i;

	assert(queue_is_mine(q));
	if (len <= AIO_BOUNCE_LEN && align <= AIO_BOUNCE_LEN) {
		if (!b->tried)
			bounce_make(q);
		if (b->free) {
			i = __builtin_ctz(b->free);
			b->free &= b->free - 1;
			return b->base + (size_t)i * AIO_BOUNCE_LEN;
		}
	}
	return posix_memalign(&p, MAX(align, 4096u), align_up(len, MAX(align, 4096u))) ? NULL : p;
}

void aio_bounce_put(struct queue *q, void *p)
{
	struct bounce *b = &q->bounce;
	const uint64_t off = (uintptr_t)p - (uintptr_t)b->base;

	assert(queue_is_mine(q));
	if (b->base && off < BOUNCE_NR * AIO_BOUNCE_LEN)
		b->free |= 1u << (off / AIO_BOUNCE_LEN);
	else
		free(p);
}

void memory_free(struct queue *q)
{
	if (!q->bounce.base)
		return;
	assert(q->bounce.free == (1u << BOUNCE_NR) - 1 && "queue freed with a bounce buffer in use");
	munmap(q->bounce.base, BOUNCE_NR * AIO_BOUNCE_LEN);
}
