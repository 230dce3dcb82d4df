/* SPDX-License-Identifier: MIT */
/*
 * order/journal_todo.c - what is to be done when the queue is durable, kept where it outlives the process
 *
 * A record of the journal goes when its section is durable. What is to be done only then (space given back, whose last reference is gone)
 * has to be known for longer: it has a slot of its own, from the moment on at which it is decided until somebody begins to do it.
 *
 * Owns:    the slots behind the segments.
 * Assumes: one writer, the home queue; a reader only when the writer is dead.
 * Never:   makes room by giving something up: what finds no slot is not kept.
 */
#include <string.h>

#include "order/queue.h"

static struct journal_todo *slot_of(const void *map, size_t i)
{
	return (struct journal_todo *)((uint8_t *)map + JOURNAL_TODO) + i;
}

/* Against damage and a store that was cut short, not against an enemy. */
static uint64_t slot_sum(uint64_t key, size_t i, uint64_t a, uint64_t b)
{
	uint64_t words[] = { i + 1, a, b }, sum = key;

	for (unsigned k = 0; k < ARRAY_LEN(words); k++) {
		sum = (sum ^ words[k]) * 0x9e3779b97f4a7c15ull;
		sum ^= sum >> 29;
	}
	return sum;
}

static void slot_store(struct journal *j, size_t i, uint64_t a, uint64_t b)
{
	struct journal_todo *t = slot_of(j->h, i);

	/* Killed between these stores: no b, and so nothing to do. Never an a with the b of another. */
	atomic_store_explicit(&t->b, 0, memory_order_release);
	atomic_signal_fence(memory_order_seq_cst);
	t->a = a;
	t->sum = slot_sum(j->h->key, i, a, b);
	atomic_store_explicit(&t->b, b, memory_order_release);
}

/* The first word with a free bit. */
static unsigned find_word(const struct journal *j)
{
	unsigned w = j->todo_from;

	while (w < ARRAY_LEN(j->todo_used) && j->todo_used[w] == UINT64_MAX)
		w++;
	return w;
}

unsigned journal_todo_add(struct journal *j, uint64_t a, uint64_t b)
{
	unsigned w = j->todo_from = find_word(j), i;

	assert(b);
	if (w == ARRAY_LEN(j->todo_used))
		return 0;
	i = w * 64 + (unsigned)__builtin_ctzll(~j->todo_used[w]);
	if (i >= j->todo_memory) {
		if (journal_todo_memory(j) < 0)
			return 0;
		j->todo_memory += JOURNAL_TODO_STEP;
	}
	j->todo_used[w] |= 1ull << (i % 64);
	slot_store(j, i, a, b);
	if (i >= atomic_load_explicit(&j->h->nr_todo, memory_order_relaxed))
		atomic_store_explicit(&j->h->nr_todo, i + 1, memory_order_release);
	return i + 1;
}

void journal_todo_change(struct journal *j, unsigned nr, uint64_t a, uint64_t b)
{
	assert(nr && b);
	slot_store(j, nr - 1, a, b);
}

void journal_todo_done(struct journal *j, unsigned nr)
{
	unsigned w = (nr - 1) / 64;

	atomic_store_explicit(&slot_of(j->h, nr - 1)->b, 0, memory_order_release);
	j->todo_used[w] &= ~(1ull << ((nr - 1) % 64));
	j->todo_from = MIN(j->todo_from, w);
}

size_t journal_nr_todo(const void *map)
{
	const struct journal_header *h = map;
	uint64_t nr = atomic_load_explicit(&h->nr_todo, memory_order_acquire);

	return (size_t)MIN(nr, (uint64_t)JOURNAL_TODO_MAX); /* it may be damaged */
}

bool journal_todo_read(const void *map, size_t i, struct order_todo *ret)
{
	const struct journal_header *h = map;
	const struct journal_todo *t = slot_of(map, i);
	uint64_t b = atomic_load_explicit(&t->b, memory_order_acquire);

	if (!b || t->sum != slot_sum(h->key, i, t->a, b))
		return false;
	*ret = (struct order_todo){ t->a, b };
	return true;
}

/* ---- of a queue ---- */

unsigned order_todo(struct order *o, uint64_t a, uint64_t b)
{
	return o->journal ? journal_todo_add(o->journal, a, b) : 0;
}

void order_todo_change(struct order *o, unsigned nr, uint64_t a, uint64_t b)
{
	if (o->journal && nr)
		journal_todo_change(o->journal, nr, a, b);
}

void order_todo_done(struct order *o, unsigned nr)
{
	if (o->journal && nr)
		journal_todo_done(o->journal, nr);
}
