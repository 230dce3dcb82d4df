/* SPDX-License-Identifier: MIT */
/*
 * format/cache.c - pieces of metadata tables in memory
 *
 * Owns:    the pieces, the rows that lead to them, and the clock that chooses which to drop.
 * Assumes: everything but cache_find() and piece_touch() happens on the home queue.
 * Never:   frees what another queue may be looking at: first unpublish, then a grace period, then free.
 */
#include "format/cache.h"
#include "aio/perturb.h"

#include <stdlib.h>
#include <string.h>

#define EVICT_MAX 32 /* pieces that share one grace period */
#define CLEAN_MAX 512
#define LOOK_MAX 4096 /* pieces that are looked at in one turn */
#define PIECES_MAX (1u << 30) /* more than there are, whatever is asked for */

struct row row_empty;

static struct rows *rows_new(uint32_t nr)
{
	struct rows *rows = calloc(1, sizeof(*rows) + (size_t)nr * sizeof(rows->row[0]));

	if (rows)
		rows->nr = nr;
	return rows;
}

/* ---- rows ---- */

static uint64_t *row_blank(const struct cache *c, struct row *row)
{
	return (uint64_t *)(void *)&row->piece[c->nr_per_row];
}

static size_t blank_len(const struct cache *c)
{
	return div_up(c->nr_per_row, 64) * sizeof(uint64_t);
}

static size_t row_len(const struct cache *c)
{
	return sizeof(struct row) + c->nr_per_row * sizeof(((struct row *)NULL)->piece[0]) + blank_len(c);
}

struct cache *cache_new(struct node *node, void *owner, bool shared, uint32_t nr_tables, uint64_t table_len,
			uint32_t piece_len, uint64_t len,
			int (*load)(struct fiber *f, void *owner, uint32_t table, uint32_t nr, void *words))
{
	struct cache *c = calloc(1, sizeof(*c));
	struct rows *rows = rows_new(nr_tables);

	if (!c || !rows) {
		free(c);
		free(rows);
		return NULL;
	}
	c->node = node;
	c->owner = owner;
	c->shared = shared;
	c->piece_len = (uint32_t)MIN(piece_len, table_len);
	c->nr_per_row = (uint32_t)(table_len / c->piece_len);
	len = MIN(MAX(len, (uint64_t)PIECES_MIN * c->piece_len), (uint64_t)PIECES_MAX * c->piece_len);
	c->max = (unsigned)(len / c->piece_len);
	c->max_rows = (unsigned)MAX(len / 4 / row_len(c), PIECES_MIN);
	c->load = load;
	TAILQ_INIT(&c->clock);
	TAILQ_INIT(&c->loading);
	atomic_init(&c->rows, rows);
	return c;
}

static struct rows *rows_of(struct cache *c)
{
	return atomic_load_explicit(&c->rows, memory_order_relaxed); /* home changes it, nobody else */
}

static struct row *row_of(struct cache *c, uint32_t table)
{
	return atomic_load_explicit(&rows_of(c)->row[table], memory_order_relaxed);
}

static void row_set(struct cache *c, uint32_t table, struct row *row)
{
	/* pairs with the acquire in cache_find() */
	atomic_store_explicit(&rows_of(c)->row[table], row, memory_order_release);
}

void cache_free(struct cache *c)
{
	struct piece *p;

	if (!c)
		return;
	assert(TAILQ_EMPTY(&c->loading));
	while ((p = TAILQ_FIRST(&c->clock))) {
		TAILQ_REMOVE(&c->clock, p, link);
		free(p);
	}
	for (uint32_t i = 0; i < rows_of(c)->nr; i++) {
		if (row_of(c, i) != &row_empty)
			free(row_of(c, i));
	}
	free(rows_of(c));
	free(c);
}

void cache_set_empty(struct cache *c, uint32_t table, bool empty)
{
	assert(!row_of(c, table) || row_of(c, table) == &row_empty);
	row_set(c, table, empty ? &row_empty : NULL);
}

int cache_grow(struct fiber *f, struct cache *c, uint32_t nr_tables, bool empty)
{
	struct rows *old = rows_of(c), *rows;

	if (nr_tables <= old->nr) /* the disk had more once; those that it has no longer are empty */
		return 0;
	rows = rows_new(nr_tables);
	if (!rows)
		return -ENOMEM;
	for (uint32_t i = 0; i < nr_tables; i++)
		atomic_init(&rows->row[i], i < old->nr ? row_of(c, i) : empty ? &row_empty : NULL);
	atomic_store_explicit(&c->rows, rows,
			      memory_order_release); /* pairs with the acquire in cache_find() */
	if (c->shared)
		node_grace(f, c->node);
	free(old);
	return 0;
}

static struct row *row_new(struct cache *c, uint32_t table, bool blank)
{
	struct row *row = calloc(1, row_len(c));

	if (!row)
		return NULL;
	if (blank)
		memset(row_blank(c, row), 0xff, blank_len(c));
	c->nr_rows++;
	row_set(c, table, row);
	return row;
}

static bool is_blank(struct cache *c, uint32_t table, uint32_t nr)
{
	struct row *row = row_of(c, table);

	return row && row_blank(c, row)[nr / 64] >> (nr % 64) & 1;
}

/* ---- dropping ---- */

/* Nobody finds p any more. *ret_row: its row, if that is empty now and is to be freed as well; else NULL. */
static void unpublish(struct cache *c, struct piece *p, struct row **ret_row)
{
	struct row *row = row_of(c, p->table);

	*ret_row = NULL;
	TAILQ_REMOVE(&c->clock, p, link);
	atomic_store_explicit(&row->piece[p->nr], NULL, memory_order_relaxed);
	if (--row->nr)
		return;
	atomic_store_explicit(&rows_of(c)->row[p->table], NULL, memory_order_relaxed);
	c->nr_rows--;
	*ret_row = row;
}

/* Who uses the piece meanwhile may find his mark gone: then it is dropped early, which costs a read and nothing else. */
static void unmark(struct piece *p, uint8_t flag)
{
	uint8_t used = atomic_load_explicit(&p->used, memory_order_relaxed);

	atomic_store_explicit(&p->used, (uint8_t)(used & ~flag), memory_order_relaxed);
}

/* The next piece that was not used since the hand passed it. NULL: all are pinned. */
static struct piece *clock_next(struct cache *c)
{
	for (unsigned i = 2 * c->nr_pieces; i && !TAILQ_EMPTY(&c->clock); i--) {
		struct piece *p = TAILQ_FIRST(&c->clock);

		if (!p->pins && !(atomic_load_explicit(&p->used, memory_order_relaxed) & USED_CLOCK))
			return p;
		unmark(p, USED_CLOCK);
		TAILQ_REMOVE(&c->clock, p, link);
		TAILQ_INSERT_TAIL(&c->clock, p, link);
	}
	return NULL;
}

/* Drops some pieces, several at a time so that they share the wait. */
static void evict(struct fiber *f, struct cache *c)
{
	void *gone[2 * EVICT_MAX];
	unsigned nr = 0, wanted = c->shared ? MIN(EVICT_MAX, c->max / 8 + 1) : 1;
	struct piece *p;

	for (unsigned i = 0; i < wanted && (p = clock_next(c)); i++) {
		struct row *row;

		unpublish(c, p, &row);
		c->nr_pieces--;
		gone[nr++] = p;
		if (row)
			gone[nr++] = row;
	}
	if (c->shared && nr)
		node_grace(f, c->node);
	while (nr)
		free(gone[--nr]);
}

/* Some of what was not used since the last time; *left: pieces that are yet to be looked at. Returns their bytes. */
static uint64_t clean_some(struct fiber *f, struct cache *c, unsigned *left)
{
	void *gone[2 * CLEAN_MAX];
	unsigned nr = 0, end = *left > LOOK_MAX ? *left - LOOK_MAX : 0;
	uint64_t len = 0;

	for (; *left > end && nr < 2 * CLEAN_MAX - 1 && !TAILQ_EMPTY(&c->clock); --*left) {
		struct piece *p = TAILQ_FIRST(&c->clock);
		struct row *row;

		if (p->pins || (atomic_load_explicit(&p->used, memory_order_relaxed) & USED_RECENT)) {
			unmark(p, USED_RECENT);
			TAILQ_REMOVE(&c->clock, p, link);
			TAILQ_INSERT_TAIL(&c->clock, p, link);
			continue;
		}
		unpublish(c, p, &row);
		c->nr_pieces--;
		gone[nr++] = p;
		if (row)
			gone[nr++] = row;
		len += sizeof(*p) + c->piece_len;
	}
	if (c->shared && nr)
		node_grace(f, c->node);
	while (nr)
		free(gone[--nr]);
	return len;
}

uint64_t cache_clean(struct fiber *f, struct cache *c)
{
	unsigned left = c->nr_pieces;
	uint64_t len = 0;

	for (;;) {
		len += clean_some(f, c, &left);
		if (!left || TAILQ_EMPTY(&c->clock))
			return len;
		fiber_yield(f);
	}
}

/* ---- loading ---- */

static int publish(struct cache *c, struct piece *p)
{
	struct row *row = row_of(c, p->table);

	assert(row != &row_empty);
	if (!row)
		row = row_new(c, p->table, false);
	if (!row)
		return -ENOMEM;
	row->nr++;
	row_blank(c, row)[p->nr / 64] &= ~(1ull << (p->nr % 64));
	atomic_store_explicit(&row->piece[p->nr], p,
			      memory_order_release); /* pairs with the acquire in cache_find() */
	TAILQ_INSERT_TAIL(&c->clock, p, link);
	if (c->cleaner)
		cache_cleaner_note(c->cleaner);
	return 0;
}

static struct piece *find_loading(struct cache *c, uint32_t table, uint32_t nr)
{
	struct piece *p;

	TAILQ_FOREACH(p, &c->loading, link) {
		if (p->table == table && p->nr == nr)
			break;
	}
	return p;
}

void cache_unpin(struct cache *c, struct piece *p)
{
	assert(p->pins);
	if (--p->pins || !p->error)
		return;
	c->nr_pieces--;
	free(p);
}

/* In memory, or on its way because of another fiber: pinned, or NULL. */
static struct piece *pin_present(struct fiber *f, struct cache *c, uint32_t table, uint32_t nr)
{
	struct row *row;
	struct piece *p = cache_find(c, table, nr, &row);

	if (!p)
		p = find_loading(c, table, nr);
	if (!p)
		return NULL;
	p->pins++;
	while (p->loading)
		waitlist_wait(f, &p->waiting);
	piece_touch(p);
	return p;
}

static struct piece *pin_new(struct cache *c, uint32_t table, uint32_t nr)
{
	struct piece *p = malloc(sizeof(*p) + c->piece_len);

	if (!p)
		return NULL;
	memset(p, 0, sizeof(*p));
	p->table = table;
	p->nr = nr;
	p->pins = 1;
	p->loading = true;
	atomic_init(&p->used, USED_ALL);
	c->nr_pieces++;
	TAILQ_INSERT_TAIL(&c->loading, p, link);
	return p;
}

static void fill(struct fiber *f, struct cache *c, struct piece *p)
{
	if (is_blank(c, p->table, p->nr))
		memset((void *)p->words, 0, c->piece_len);
	else
		p->error = c->load(f, c->owner, p->table, p->nr, (void *)p->words);
	TAILQ_REMOVE(&c->loading, p, link);
	p->loading = false;
	if (!p->error)
		p->error = publish(c, p);
	waitlist_wake_all(&p->waiting);
}

/* A row without pieces is not found by those who drop pieces: it must not know anything. */
static int row_forget(struct cache *c, uint32_t table)
{
	struct row *row = row_of(c, table);

	if (row && row != &row_empty && !row->nr)
		memset(row_blank(c, row), 0, blank_len(c));
	return -ENOMEM;
}

/* One more piece of that table is too much. */
static bool is_full(struct cache *c, uint32_t table)
{
	return c->nr_pieces >= c->max || c->nr_rows + !row_of(c, table) > c->max_rows;
}

int cache_get(struct fiber *f, struct cache *c, uint32_t table, uint32_t nr, bool fresh, struct piece **ret)
{
	struct piece *p = pin_present(f, c, table, nr);
	int err;

	if (!p && fresh && !row_of(c, table))
		(void)row_new(c, table, true); /* no memory: it is read, and found to be zeroes */
	if (!p && is_full(c, table)) {
		evict(f, c);
		p = pin_present(f, c, table, nr); /* we may have waited: another fiber may have made it */
	}
	if (!p) {
		p = pin_new(c, table, nr);
		if (!p)
			return row_forget(c, table);
		fill(f, c, p);
	}
	err = p->error;
	if (err < 0) {
		cache_unpin(c, p);
		return err;
	}
	*ret = p;
	perturb(f);
	return 0;
}

/* ---- all of a table ---- */

void cache_each(struct fiber *f, struct cache *c, uint32_t table, void (*fn)(struct piece *p, void *arg), void *arg)
{
	for (uint32_t nr = 0; nr < c->nr_per_row; nr++) {
		struct piece *p = pin_present(f, c, table, nr);

		if (!p)
			continue;
		if (!p->error)
			fn(p, arg);
		cache_unpin(c, p);
	}
}

static bool in_tables(const struct piece *p, uint32_t first, uint32_t nr)
{
	return p->table >= first && p->table - first < nr;
}

/* A piece of these tables that somebody still waits for. */
static struct piece *find_busy(struct cache *c, uint32_t first, uint32_t nr)
{
	struct piece *p;

	TAILQ_FOREACH(p, &c->loading, link) {
		if (in_tables(p, first, nr))
			return p;
	}
	TAILQ_FOREACH(p, &c->clock, link) {
		if (p->pins && in_tables(p, first, nr))
			return p;
	}
	return NULL;
}

void cache_drop(struct fiber *f, struct cache *c, uint32_t first, uint32_t nr)
{
	void *gone[2 * EVICT_MAX];
	struct piece *p, *next;
	unsigned nr_gone;

	while ((p = find_busy(c, first, nr))) {
		if (p->loading) {
			p->pins++;
			waitlist_wait(f, &p->waiting);
			cache_unpin(c, p);
		}
		fiber_yield(f);
	}
	do {
		nr_gone = 0;
		for (p = TAILQ_FIRST(&c->clock); p && nr_gone < 2 * EVICT_MAX - 1; p = next) {
			struct row *row;

			next = TAILQ_NEXT(p, link);
			if (!in_tables(p, first, nr))
				continue;
			unpublish(c, p, &row);
			c->nr_pieces--;
			gone[nr_gone++] = p;
			if (row)
				gone[nr_gone++] = row;
		}
		if (c->shared && nr_gone)
			node_grace(f, c->node);
		for (unsigned i = 0; i < nr_gone; i++)
			free(gone[i]);
	} while (nr_gone);
}
