/* SPDX-License-Identifier: MIT */
/*
 * block/chain.c - reading through a chain of backing images at the cost of one look-up
 *
 * The images below the top are opened read-only, so where a range is found below the top never changes: the answer
 * is remembered in a table of granules, one look-up whatever the depth. What the top itself says is asked anew
 * each time.
 *
 * Owns:    the table. Any queue reads it and writes it, without locks: each entry has a sequence number that is odd
 *          while somebody writes; a reader who sees it change takes a miss, a writer who finds it odd gives up.
 * Memory:  at most CHAIN_ENTRIES_MAX entries of 64 bytes (16 MiB) for each disk with two or more backing images.
 */
#include "block/block.h"

#include <stdlib.h>

#define CHAIN_ENTRIES_MAX (1u << 18)
#define CHAIN_GRANULE_MAX KiB(64)
#define CHAIN_GRANULE_MIN KiB(4)

struct chain_entry {
	_Atomic uint32_t seq;
	_Atomic uint32_t kind;
	_Atomic uint64_t start, len; /* of the disk; len 0: empty */
	_Atomic uint64_t host_off;
	struct node *_Atomic node;
} __attribute__((aligned(64)));

struct chain_cache {
	uint32_t granule;
	uint32_t mask;
	struct chain_entry *entries; /* inside of mem, at a cache line */
	void *mem;
};

struct chain_cache *chain_cache_new(struct node *n)
{
	uint32_t granule = CHAIN_GRANULE_MAX;
	uint64_t nr = 256;
	struct chain_cache *c;

	for (struct node *b = n->backing; b; b = b->backing)
		if (b->cluster_len && b->cluster_len < granule)
			granule = b->cluster_len;
	if (granule < CHAIN_GRANULE_MIN)
		granule = CHAIN_GRANULE_MIN;
	while (nr < CHAIN_ENTRIES_MAX && nr * granule < node_len(n))
		nr *= 2;
	c = malloc(sizeof(*c));
	/* Fresh pages of the kernel: memory is used for what is looked up only. */
	if (!c || !(c->mem = calloc(nr + 1, sizeof(c->entries[0])))) {
		free(c);
		return NULL;
	}
	c->entries = (struct chain_entry *)align_up((uintptr_t)c->mem, sizeof(c->entries[0]));
	c->granule = granule;
	c->mask = (uint32_t)nr - 1;
	return c;
}

void chain_cache_free(struct chain_cache *c)
{
	if (c)
		free(c->mem);
	free(c);
}

static struct chain_entry *chain_entry(struct chain_cache *c, uint64_t off)
{
	return c->entries + ((off / c->granule) & c->mask);
}

static bool chain_lookup(struct chain_cache *c, uint64_t off, uint64_t len, struct extent *ret)
{
	struct chain_entry *e = chain_entry(c, off);
	uint32_t seq = atomic_load_explicit(&e->seq, memory_order_acquire);
	/* The acquires keep the second look at seq behind these; they pair with the releases in chain_insert(). */
	uint32_t kind = atomic_load_explicit(&e->kind, memory_order_acquire);
	uint64_t start = atomic_load_explicit(&e->start, memory_order_acquire);
	uint64_t elen = atomic_load_explicit(&e->len, memory_order_acquire);
	uint64_t host_off = atomic_load_explicit(&e->host_off, memory_order_acquire);
	struct node *node = atomic_load_explicit(&e->node, memory_order_acquire);

	if ((seq & 1) || atomic_load_explicit(&e->seq, memory_order_relaxed) != seq)
		return false;
	if (off < start || off - start >= elen)
		return false;
	ret->kind = (enum extent_kind)kind;
	ret->flags = 0;
	ret->error = 0;
	ret->node = node;
	ret->host_off = host_off + (off - start);
	ret->len = MIN(len, elen - (off - start));
	return true;
}

static void chain_insert(struct chain_cache *c, uint64_t off, uint64_t start, const struct extent *x)
{
	struct chain_entry *e = chain_entry(c, off);
	uint32_t seq = atomic_load_explicit(&e->seq, memory_order_relaxed);

	if ((seq & 1) || !atomic_compare_exchange_strong(&e->seq, &seq, seq + 1))
		return; /* somebody else is writing this entry: his answer is as good */
	atomic_store_explicit(&e->kind, (uint32_t)x->kind, memory_order_release);
	atomic_store_explicit(&e->start, start, memory_order_release);
	atomic_store_explicit(&e->len, x->len, memory_order_release);
	atomic_store_explicit(&e->host_off, x->host_off, memory_order_release);
	atomic_store_explicit(&e->node, x->node, memory_order_release);
	atomic_store_explicit(&e->seq, seq + 2, memory_order_release);
}

/* The first image from b on that says something about off; zeroes behind the end of a shorter image. */
static void chain_walk(struct node *b, uint64_t off, uint64_t len, struct extent *ret)
{
	for (; b; b = b->backing) {
		uint64_t blen = node_len(b);

		if (off >= blen)
			break;
		len = MIN(len, blen - off);
		b->drv->map(b, off, len, ret);
		if (ret->kind != EXTENT_ABSENT)
			return;
		len = ret->len;
	}
	*ret = (struct extent){ .kind = EXTENT_ZERO, .len = len };
}

/* Below the top n, with the cache: looks up a whole granule so that the next request finds it. */
static void chain_below(struct node *n, uint64_t off, uint64_t len, struct extent *ret)
{
	struct chain_cache *c = n->chain;
	uint64_t pos, end;

	if (!c) {
		chain_walk(n->backing, off, len, ret);
		return;
	}
	if (likely(chain_lookup(c, off, len, ret)))
		return;
	pos = align_down(off, c->granule);
	end = MIN(MAX(pos + c->granule, off + len), MAX(node_len(n), off + len));
	/* A granule has few extents: one, mostly. The one that holds off is remembered whole. */
	for (; pos <= off; pos += ret->len) {
		chain_walk(n->backing, pos, end - pos, ret);
		if (ret->kind != EXTENT_DATA && ret->kind != EXTENT_ZERO)
			break;
		if (ret->len > off - pos) {
			chain_insert(c, off, pos, ret);
			ret->host_off += off - pos;
			ret->len = MIN(len, ret->len - (off - pos));
			return;
		}
	}
	/* Not in memory, or damaged: but that is what stands at pos; the question, and load(), are about off. */
	chain_walk(n->backing, off, end - off, ret);
	if (ret->kind == EXTENT_DATA || ret->kind == EXTENT_ZERO)
		chain_insert(c, off, off, ret);
	ret->len = MIN(len, ret->len);
}

void chain_absent(struct node *n, uint64_t off, struct extent *ret)
{
	if (!n->backing) {
		ret->kind = EXTENT_ZERO;
		ret->flags = 0;
		return;
	}
	chain_below(n, off, ret->len, ret);
}

void chain_map(struct node *n, uint64_t off, uint64_t len, struct extent *ret)
{
	n->drv->map(n, off, len, ret);
	if (unlikely(ret->kind == EXTENT_ABSENT))
		chain_absent(n, off, ret);
}
