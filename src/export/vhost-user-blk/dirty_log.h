/* SPDX-License-Identifier: MIT */
/*
 * vhost-user-blk/dirty_log.h - the front end's record of which pages of the guest we have written
 *
 * While a virtual machine moves to another host, its memory is copied as it runs; a page written after it was
 * copied must be copied again. The front end shares a bitmap, one bit for a page of 4 KiB, and we set bits
 * after we have written.
 *
 * Owns:    the mapping of the bitmap.
 * Assumes: opened and closed while no ring runs; any ring's thread marks.
 * Never:   sets a bit before what it speaks of is written, or outside the bitmap.
 *
 * docs/spec/vhost-user.md, "Migration".
 */
#ifndef VARVE_VUBLK_DIRTY_LOG_H
#define VARVE_VUBLK_DIRTY_LOG_H

#include "export/vhost-user-blk/mem.h"

#define MEMLOG_PAGE_BITS 12

struct memlog {
	uint8_t *bits; /* NULL: there is none */
	uint64_t len;  /* bytes of bitmap */
	void *map;
	size_t map_len;
	int guard;
};

/* Replaces the bitmap that *l has, if any; on failure it is kept. *lost: see memguard.h. The descriptor stays
 * the caller's. */
int memlog_open(struct memlog *l, int fd, uint64_t len, uint64_t off, _Atomic bool *lost,
		struct varve_error *err);
void memlog_close(struct memlog *l);

/* Has the bitmap a bit for each of these bytes? */
bool memlog_covers(const struct memlog *l, uint64_t guest_addr, uint64_t len);
/* ... and for all memory of the guest? 0, or -EINVAL in words. */
int memlog_covers_all(const struct memlog *l, const struct gmem *mem, struct varve_error *err);

/* len bytes at guest_addr have been written. Bytes that the bitmap does not cover are left out. */
void memlog_mark(const struct memlog *l, uint64_t guest_addr, uint64_t len);

/* The same by our own address, which is inside one of the guest's regions. */
void memlog_mark_host(const struct memlog *l, const struct gmem *mem, const void *p, uint64_t len);

#endif
