/* SPDX-License-Identifier: MIT */
/*
 * vu_mem.c - guest memory in a memfd
 *
 * Owns:    the memfd and its mapping.
 * Assumes: callers are our own tests: wrong arguments are our own mistakes and are asserted.
 * Never:   seals the memfd: a test may shrink it under the back end.
 */
#include "vu_mem.h"

#include <assert.h>
#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE		4096u
#define REGION_STEP	(UINT64_C(0x100000000) + UINT64_C(0x200000))

int vu_mem_create(struct vu_mem *m, uint64_t len, unsigned nr_regions, struct vu_err *err)
{
	struct vu_region layout[VU_MAX_REGIONS];
	uint64_t each;
	unsigned i;

	if (nr_regions < 1 || nr_regions > VU_MAX_REGIONS)
		return vu_fail(err, -EINVAL, "%u memory regions asked for, 1 to %u can be had",
			       nr_regions, VU_MAX_REGIONS);
	if (len > UINT64_C(1) << 40)
		return vu_fail(err, -EINVAL, "%llu bytes of guest memory are more than 1 TiB",
			       (unsigned long long)len);
	each = (len / nr_regions + PAGE) & ~(uint64_t)(PAGE - 1);
	memset(layout, 0, sizeof(layout));
	for (i = 0; i < nr_regions; i++) {
		/* A region may be longer than a step; then the steps grow with it. */
		uint64_t step = REGION_STEP > 2 * each ? REGION_STEP : 2 * each;

		layout[i].guest_addr = i * step;
		layout[i].len = each;
	}
	return vu_mem_create_at(m, layout, nr_regions, err);
}

int vu_mem_create_at(struct vu_mem *m, const struct vu_region *regions, unsigned nr_regions,
		     struct vu_err *err)
{
	void *base;
	unsigned i;
	int ret;

	assert(nr_regions >= 1 && nr_regions <= VU_MAX_REGIONS);
	memset(m, 0, sizeof(*m));
	m->fd = -1;
	for (i = 0; i < nr_regions; i++) {
		assert(regions[i].len > 0 && regions[i].len % PAGE == 0);
		m->region[i] = (struct vu_region){ .guest_addr = regions[i].guest_addr,
						   .len = regions[i].len, .file_off = m->len };
		m->len += regions[i].len;
	}
	m->nr_regions = nr_regions;

	m->fd = memfd_create("vu-guest-memory", MFD_CLOEXEC);
	if (m->fd < 0)
		return vu_fail(err, -errno, "cannot make a memfd: %s", strerror(errno));
	if (ftruncate(m->fd, (off_t)m->len) < 0) {
		ret = vu_fail(err, -errno, "cannot give the memfd %llu bytes: %s",
			      (unsigned long long)m->len, strerror(errno));
		goto fail;
	}
	base = mmap(NULL, m->len, PROT_READ | PROT_WRITE, MAP_SHARED, m->fd, 0);
	if (base == MAP_FAILED) {
		ret = vu_fail(err, -errno, "cannot map %llu bytes of guest memory: %s",
			      (unsigned long long)m->len, strerror(errno));
		goto fail;
	}
	m->base = base;
	return 0;
fail:
	close(m->fd);
	m->fd = -1;
	return ret;
}

void vu_mem_free(struct vu_mem *m)
{
	if (!m->base)
		return;
	munmap(m->base, m->len);
	close(m->fd);
	m->base = NULL;
	m->fd = -1;
}

void *vu_mem_alloc(struct vu_mem *m, uint64_t len, uint64_t align, uint64_t *ret_guest_addr)
{
	unsigned tries;

	assert(align >= 1 && align <= PAGE && (align & (align - 1)) == 0);
	for (tries = 0; tries < m->nr_regions; tries++) {
		struct vu_region *r = &m->region[m->turn];
		uint64_t start = (r->taken + align - 1) & ~(align - 1);

		m->turn = (m->turn + 1) % m->nr_regions;
		if (start > r->len || len > r->len - start)
			continue;
		r->taken = start + len;
		if (ret_guest_addr)
			*ret_guest_addr = r->guest_addr + start;
		return m->base + r->file_off + start;
	}
	return NULL;
}

/* True when region k begins, for the guest, where the one before it ends. */
static bool touches(const struct vu_mem *m, unsigned k)
{
	return m->region[k].guest_addr == m->region[k - 1].guest_addr + m->region[k - 1].len;
}

void *vu_mem_host(const struct vu_mem *m, uint64_t guest_addr, uint64_t len)
{
	unsigned i;

	for (i = 0; i < m->nr_regions; i++) {
		const struct vu_region *r = &m->region[i];
		uint64_t in = guest_addr - r->guest_addr;
		uint64_t room = r->len - in;
		unsigned k;

		if (guest_addr < r->guest_addr || in >= r->len)
			continue;
		/* Regions follow each other in our mapping; do they for the guest? */
		for (k = i + 1; k < m->nr_regions && room < len && touches(m, k); k++)
			room += m->region[k].len;
		return room >= len ? m->base + r->file_off + in : NULL;
	}
	return NULL;
}

uint64_t vu_mem_guest(const struct vu_mem *m, const void *p)
{
	uint64_t off = (uint64_t)((const uint8_t *)p - m->base);
	unsigned i;

	for (i = 0; i < m->nr_regions; i++) {
		const struct vu_region *r = &m->region[i];

		if (off >= r->file_off && off - r->file_off < r->len)
			return r->guest_addr + (off - r->file_off);
	}
	assert(!"a pointer outside guest memory");
	return 0;
}
