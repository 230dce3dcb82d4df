/* SPDX-License-Identifier: MIT */
/*
 * vhost-user-blk/dirty_log.c - see dirty_log.h
 */
#include "export/vhost-user-blk/dirty_log.h"

#include <inttypes.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "export/vhost-user-blk/memguard.h"

int memlog_open(struct memlog *l, int fd, uint64_t len, uint64_t off, _Atomic bool *lost,
		struct varve_error *err)
{
	struct memlog fresh = { .len = len };
	uint64_t unit, start, end;
	struct stat st;

	if (fstat(fd, &st) < 0)
		return varve_error_errno(err, -errno, "dirty log: fstat");
	if (!S_ISREG(st.st_mode))
		return varve_error_set(err, -EINVAL, "dirty log: its descriptor is not a file of memory");
	if (!len || u64_add(off, len, &end) || end > (uint64_t)st.st_size)
		return varve_error_set(err, -EINVAL,
				       "dirty log: 0x%" PRIx64 " bytes at offset 0x%" PRIx64
				       " are not inside the file (0x%" PRIx64 ")",
				       len, off, (uint64_t)st.st_size);
	unit = gmem_map_unit(&st);
	start = align_down(off, unit);
	fresh.map_len = align_up(end, unit) - start;
	fresh.map = mmap(NULL, fresh.map_len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, (off_t)start);
	if (fresh.map == MAP_FAILED)
		return varve_error_errno(err, -errno, "dirty log: cannot map 0x%" PRIx64 " bytes", len);
	fresh.guard = memguard_add(fresh.map, fresh.map_len, unit, lost, err);
	if (fresh.guard < 0) {
		munmap(fresh.map, fresh.map_len);
		return fresh.guard;
	}
	fresh.bits = (uint8_t *)fresh.map + (off - start);
	memlog_close(l);
	*l = fresh;
	return 0;
}

void memlog_close(struct memlog *l)
{
	if (!l->bits)
		return;
	memguard_del(l->guard);
	munmap(l->map, l->map_len);
	*l = (struct memlog){ .bits = NULL };
}

bool memlog_covers(const struct memlog *l, uint64_t guest_addr, uint64_t len)
{
	uint64_t end;

	return !len || (!u64_add(guest_addr, len - 1, &end) && end >> (MEMLOG_PAGE_BITS + 3) < l->len);
}

int memlog_covers_all(const struct memlog *l, const struct gmem *mem, struct varve_error *err)
{
	for (unsigned i = 0; l->bits && i < mem->nr_regions; i++) {
		const struct gmem_region *r = &mem->region[i];

		if (!memlog_covers(l, r->guest_addr, r->len))
			return varve_error_set(err, -EINVAL,
					       "a dirty log of 0x%" PRIx64
					       " bytes has no bits for memory up to 0x%" PRIx64,
					       l->len, r->guest_addr + r->len);
	}
	return 0;
}

/*
 * The bit is set even if it is set already: only that orders what was written before against the front end,
 * which clears the bit and then copies the page. Pairs with its atomic exchange.
 */
void memlog_mark(const struct memlog *l, uint64_t guest_addr, uint64_t len)
{
	uint64_t page = guest_addr >> MEMLOG_PAGE_BITS, last;

	if (!len || !memlog_covers(l, guest_addr, len))
		return;
	last = (guest_addr + len - 1) >> MEMLOG_PAGE_BITS;
	while (page <= last) {
		uint64_t upto = MIN(last, page | 7); /* the pages of one byte */
		unsigned mask = (0xffu << (page & 7)) & (0xffu >> (7 - (upto & 7)));

		__atomic_fetch_or(&l->bits[page >> 3], (uint8_t)mask, __ATOMIC_SEQ_CST);
		page = upto + 1;
	}
}

void memlog_mark_host(const struct memlog *l, const struct gmem *mem, const void *p, uint64_t len)
{
	uint64_t guest_addr;

	if (gmem_to_guest(mem, p, &guest_addr))
		memlog_mark(l, guest_addr, len);
}
