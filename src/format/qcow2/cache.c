/* SPDX-License-Identifier: MIT */
/*
 * qcow2/cache.c - L2 tables in memory
 *
 * Owns:    the slices, at most l2-cache-size bytes of them, and the rows that lead to them.
 * Assumes: loading and evicting happen on the home queue. A slice is never dirty: changes go to the order queue at once.
 * Never:   reuses a slice's memory before a grace period: another queue may be looking into it.
 */
#include "format/qcow2/l2_cache.h"

#include <stdlib.h>

static uint64_t table_span(const struct qcow2 *q)
{
	return (uint64_t)q->l2_entries << q->cluster_bits;
}

static uint32_t entry_index(const struct qcow2 *q, uint64_t guest_off)
{
	return (uint32_t)(guest_off >> q->cluster_bits) & (q->l2_entries - 1);
}

struct l2_slice *l2_cache_find(const struct qcow2 *q, uint64_t guest_off)
{
	const struct l2_cache *c = q->l2;
	uint64_t i = guest_off / table_span(q);
	/* pair with the releases in row_get() and l2_load() */
	struct l2_row *row = atomic_load_explicit(&c->rows[i], memory_order_acquire);

	if (!row)
		return NULL;
	return atomic_load_explicit(&row->slice[entry_index(q, guest_off) / c->slice_entries], memory_order_acquire);
}

static unsigned word_index(const struct qcow2 *q, uint64_t guest_off)
{
	return entry_index(q, guest_off) % q->l2->slice_entries * (q->l2_entry_len / 8);
}

static uint64_t word_get(const struct l2_slice *s, unsigned i)
{
	/* Acquire: the data behind an entry was written before the entry was (pairs with l2_slice_set()). */
	uint64_t w = atomic_load_explicit(&s->words[i], memory_order_acquire);

	return be64_get(*(be64 *)&w);
}

uint64_t l2_slice_entry(const struct qcow2 *q, const struct l2_slice *s, uint64_t guest_off)
{
	return word_get(s, word_index(q, guest_off));
}

uint64_t l2_slice_bitmap(const struct qcow2 *q, const struct l2_slice *s, uint64_t guest_off)
{
	return word_get(s, word_index(q, guest_off) + 1);
}

void l2_slice_set(const struct qcow2 *q, struct l2_slice *s, uint64_t guest_off, uint64_t value)
{
	be64 disk = be64_put(value);
	uint64_t w;

	__builtin_memcpy(&w, &disk, sizeof(w));
	atomic_store_explicit(&s->words[word_index(q, guest_off)], w, memory_order_release);
}

/* ---- loading and evicting ---- */

static struct l2_row *row_get(struct qcow2 *q, uint64_t i)
{
	struct l2_cache *c = q->l2;
	struct l2_row *row = atomic_load_explicit(&c->rows[i], memory_order_relaxed);

	if (!row) {
		row = calloc(c->slices_per_table, sizeof(row->slice[0]));
		if (row)
			atomic_store_explicit(&c->rows[i], row, memory_order_release);
	}
	return row;
}

static void unpublish(struct qcow2 *q, struct l2_slice *s)
{
	struct l2_row *row = atomic_load_explicit(&q->l2->rows[s->l1_index], memory_order_relaxed);

	atomic_store_explicit(&row->slice[s->slice_index], NULL, memory_order_release);
	s->l1_index = UINT64_MAX;
}

/* A slice to fill: a new one, or the next one that the clock hand finds. Under load_mutex. */
static struct l2_slice *slice_take(struct fiber *f, struct qcow2 *q)
{
	struct l2_cache *c = q->l2;
	struct l2_slice *s = NULL;

	for (unsigned i = 0; i < c->nr && !s; i++)
		if (c->slices[i]->l1_index == UINT64_MAX && c->nr == c->room)
			s = c->slices[i];
	if (s)
		return s;
	if (c->nr < c->room && (s = aligned_alloc(64, align_up(sizeof(*s), 64)))) {
		s->l1_index = UINT64_MAX;
		c->slices[c->nr++] = s;
		return s;
	}
	if (!c->nr)
		return NULL;
	c->hand = (c->hand + 1) % c->nr;
	s = c->slices[c->hand];
	if (s->l1_index != UINT64_MAX)
		unpublish(q, s);
	node_grace(f, q->node);
	return s;
}

int l2_load(struct fiber *f, struct node *n, uint64_t off)
{
	struct qcow2 *q = node_state(n);
	struct l2_cache *c = q->l2;
	uint64_t i = off / table_span(q), table;
	uint32_t slice_index = entry_index(q, off) / c->slice_entries;
	struct l2_row *row;
	struct l2_slice *s = NULL;
	int r = 0;

	fiber_lock(f, &c->load_mutex);
	row = row_get(q, i);
	if (!row)
		r = -ENOMEM;
	/* Loaded by somebody else while we waited? */
	if (r == 0 && !atomic_load_explicit(&row->slice[slice_index], memory_order_relaxed)) {
		s = slice_take(f, q);
		table = q->l1[i] & QCOW2_OFF_MASK;
		if (!s)
			r = -ENOMEM;
		else if (!table)
			s = NULL; /* no table: map() answers without one */
		else if (!is_aligned(table, q->cluster_len))
			r = -EIO;
		else
			r = order_read(f, q->order, table + (uint64_t)slice_index * c->slice_len, s->words, c->slice_len);
		if (r == 0 && s && (q->l1[i] & QCOW2_OFF_MASK) == table) {
			s->l1_index = i;
			s->slice_index = slice_index;
			atomic_store_explicit(&row->slice[slice_index], s, memory_order_release);
		}
	}
	fiber_unlock(&c->load_mutex);
	return r;
}

void l2_cache_drop_table(struct fiber *f, struct qcow2 *q, uint64_t l1_index)
{
	struct l2_cache *c = q->l2;
	bool any = false;

	fiber_lock(f, &c->load_mutex);
	for (unsigned i = 0; i < c->nr; i++)
		if (c->slices[i]->l1_index == l1_index) {
			unpublish(q, c->slices[i]);
			any = true;
		}
	if (any)
		node_grace(f, q->node);
	fiber_unlock(&c->load_mutex);
}

int l2_open(struct qcow2 *q)
{
	struct l2_cache *c = calloc(1, sizeof(*c));

	if (!c)
		return -ENOMEM;
	q->l2 = c;
	c->slice_len = MIN(L2_SLICE_LEN, q->cluster_len);
	c->slices_per_table = q->cluster_len / c->slice_len;
	c->slice_entries = c->slice_len / q->l2_entry_len;
	c->room = (unsigned)MAX(16, q->l2_cache_len / c->slice_len);
	c->rows = calloc(MAX(q->h.l1_entries, 1u), sizeof(c->rows[0]));
	c->slices = calloc(c->room, sizeof(c->slices[0]));
	return c->rows && c->slices ? 0 : -ENOMEM;
}

int l2_grow(struct qcow2 *q, uint32_t l1_entries)
{
	struct l2_cache *c = q->l2;
	struct l2_row *_Atomic *rows = calloc(l1_entries, sizeof(rows[0]));

	if (!rows)
		return -ENOMEM;
	for (uint32_t i = 0; i < q->h.l1_entries; i++)
		atomic_store_explicit(&rows[i], atomic_load_explicit(&c->rows[i], memory_order_relaxed),
				      memory_order_relaxed);
	free(c->rows);
	c->rows = rows;
	return 0;
}

void l2_close(struct qcow2 *q)
{
	struct l2_cache *c = q->l2;

	if (!c)
		return;
	for (uint32_t i = 0; c->rows && i < q->h.l1_entries; i++)
		free(c->rows[i]);
	for (unsigned i = 0; i < c->nr; i++)
		free(c->slices[i]);
	free(c->slices);
	free(c->rows);
	free(c);
}
