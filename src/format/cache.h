/* SPDX-License-Identifier: MIT */
/*
 * format/cache.h - pieces of metadata tables in memory
 *
 * A cache holds tables of one kind and length: L2 tables, which every queue looks up without a lock, or
 * refcount blocks, which only home knows. A piece of a table is PIECE_LEN bytes unless the operator wants another unit, or all of a
 * smaller table.
 *
 * Memory: `max` pieces hold as many bytes of tables as was asked for, but at least PIECES_MIN. The rows that lead to them take a
 * quarter of that at most; when small pieces of many large tables would need more, pieces are dropped before their time.
 *
 * Pieces are never dirty: whoever changes one puts the change into the order queue at once, so that any piece
 * can be dropped and read again.
 */
#ifndef VARVE_FORMAT_CACHE_H
#define VARVE_FORMAT_CACHE_H

#include "block/node.h"

#define PIECE_LEN KiB(4)
#define PIECES_MIN 4

#define USED_CLOCK (1u << 0)  /* since the clock hand passed last */
#define USED_RECENT (1u << 1) /* since the cleaner came last */
#define USED_ALL (USED_CLOCK | USED_RECENT)

struct piece {
	/* home queue only */
	TAILQ_ENTRY(piece) link;
	struct waitlist waiting; /* for the loading of it */
	uint32_t table, nr;	 /* which table, which piece of it */
	unsigned pins;
	int error; /* of the loading that failed; such a piece is in no list */
	bool loading;
	bool kept; /* the owner's: it has a pin of its own on it */

	/* any queue, atomically */
	_Atomic uint8_t used;	  /* USED_*; all are set by whoever uses it */
	_Atomic uint64_t words[]; /* in the byte order of the disk */
};

TAILQ_HEAD(piece_list, piece);

/*
 * The pieces of one table that are in memory. Exists as long as there are some. Behind the pointers: a bit for each piece
 * that is known to hold zeroes, because the table was made in this session and nobody has had the piece yet (home only).
 */
struct row {
	unsigned nr; /* home queue only */
	struct piece *_Atomic piece[];
};

/* Stands for a table that does not exist: an empty L1 entry. */
extern struct row row_empty;

struct rows {
	uint32_t nr;
	struct row *_Atomic row[]; /* NULL: nothing of this table is loaded */
};

struct cache_cleaner;

struct cache {
	/* set once */
	struct node *node; /* whose queues look up */
	void *owner;	   /* for load() */
	bool shared;	   /* other queues look up */
	uint32_t piece_len;
	uint32_t nr_per_row; /* pieces of one table */
	unsigned max;	     /* pieces; exceeded while more are pinned or being loaded */
	unsigned max_rows;
	struct cache_cleaner *cleaner; /* NULL: unused pieces stay */
	/* Fills words with that piece of the table. Waits. */
	int (*load)(struct fiber *f, void *owner, uint32_t table, uint32_t nr, void *words);

	/* any queue */
	struct rows *_Atomic rows;

	/* home queue only */
	unsigned nr_pieces, nr_rows;
	struct piece_list clock; /* in the order in which the hand passes */
	struct piece_list loading;
};

/* nr_tables of table_len bytes each, in pieces of piece_len (powers of two); len: bytes of all pieces. NULL: no memory. */
struct cache *cache_new(struct node *node, void *owner, bool shared, uint32_t nr_tables, uint64_t table_len,
			uint32_t piece_len, uint64_t len,
			int (*load)(struct fiber *f, void *owner, uint32_t table, uint32_t nr, void *words));
/* Nothing is pinned, nobody looks up. */
void cache_free(struct cache *c);

/* At least so many tables; those added are empty if `empty`. On failure nothing changed. Waits in a shared cache. */
int cache_grow(struct fiber *f, struct cache *c, uint32_t nr_tables, bool empty);
/* The table does not exist; or it exists now. Nothing of it may be in memory. */
void cache_set_empty(struct cache *c, uint32_t table, bool empty);

/*
 * The piece, pinned: it stays in memory, and what is written into it is seen by all, until cache_unpin().
 * `fresh`: the table was made just now, all of it holds zeroes. Then nothing is read for this piece, nor later for the
 * others, as long as any of it is in memory.
 */
int cache_get(struct fiber *f, struct cache *c, uint32_t table, uint32_t nr, bool fresh, struct piece **ret);
void cache_unpin(struct cache *c, struct piece *p);
/* fn for each piece of a table that is in memory; for those on their way there when they have arrived. */
void cache_each(struct fiber *f, struct cache *c, uint32_t table, void (*fn)(struct piece *p, void *arg), void *arg);
/* Nothing of the tables [first, first + nr) stays in memory. Nobody is at work with them, nobody asks for them. */
void cache_drop(struct fiber *f, struct cache *c, uint32_t first, uint32_t nr);

/* Drops what was not used since the last call. Returns how many bytes that were. */
uint64_t cache_clean(struct fiber *f, struct cache *c);

/* ---- cache_clean.c: the timer for it ---- */

struct cache_cleaner {
	struct node *node; /* NULL: not in use */
	uint64_t interval_ns;
	struct cache *caches[2];
	struct timer timer;
	struct fiber_job job;
	bool busy, ending;
	struct waitlist idle;
};

/* interval_ns 0: never. */
void cache_cleaner_init(struct cache_cleaner *cl, struct node *node, uint64_t interval_ns);
/* Cache number i (0, 1) from now on; NULL: it is about to be freed. A shared one is freed after cache_cleaner_end(). */
void cache_cleaner_watch(struct cache_cleaner *cl, unsigned i, struct cache *c);
/* A piece came: from now on there is something to look for. */
void cache_cleaner_note(struct cache_cleaner *cl);
void cache_cleaner_end(struct fiber *f, struct cache_cleaner *cl);

/* Any queue: *ret_row is row_empty, or says nothing. The piece may be used until the caller waits or returns.
 */
static inline struct piece *cache_find(struct cache *c, uint32_t table, uint32_t nr, struct row **ret_row)
{
	/* The acquires pair with the releases in cache.c: who sees a pointer sees what it points at. */
	struct rows *rows = atomic_load_explicit(&c->rows, memory_order_acquire);
	struct row *row;

	*ret_row = NULL;
	if (table >= rows->nr)
		return NULL; /* a longer table is on its way here */
	row = atomic_load_explicit(&rows->row[table], memory_order_acquire);
	*ret_row = row;
	if (!row || row == &row_empty)
		return NULL;
	return atomic_load_explicit(&row->piece[nr], memory_order_acquire);
}

/* For the clock and the cleaner. Most of the time a look only: the line stays shared between the queues. */
static inline void piece_touch(struct piece *p)
{
	if (unlikely(atomic_load_explicit(&p->used, memory_order_relaxed) != USED_ALL))
		atomic_store_explicit(&p->used, USED_ALL, memory_order_relaxed);
}

#endif
