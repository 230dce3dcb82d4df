/* SPDX-License-Identifier: MIT */
/*
 * qcow2/entry.h - L2 entries in a piece of the cache
 */
#ifndef VARVE_QCOW2_ENTRY_H
#define VARVE_QCOW2_ENTRY_H

#include "format/cache.h"
#include "format/qcow2/qcow2.h"

static inline uint64_t entry_get(const struct piece *p, unsigned i)
{
	/* pairs with the release in entry_set(): the data was written, and the file has its length, before
	 * the entry */
	uint64_t word = atomic_load_explicit(&p->words[i], memory_order_acquire);
	be64 disk;

	__builtin_memcpy(&disk, &word, sizeof(disk));
	return be64_get(disk);
}

static inline void entry_set(struct piece *p, unsigned i, uint64_t entry)
{
	be64 disk = be64_put(entry);
	uint64_t word;

	__builtin_memcpy(&word, &disk, sizeof(word));
	/* pairs with the acquire in entry_get() */
	atomic_store_explicit(&p->words[i], word, memory_order_release);
}

#endif
