/* SPDX-License-Identifier: MIT */
/*
 * vhost-user-blk/mem.c - mapping the guest's memory
 *
 * Owns:    see mem.h.
 * Assumes: runs on the control thread, a few times in a session's life.
 * Never:   maps what reaches beyond its file: touching it would be a SIGBUS. (A file that is made shorter later: memguard.h.)
 */
#include "export/vhost-user-blk/mem.h"

#include <inttypes.h>
#include <linux/magic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "export/vhost-user-blk/memguard.h"

#define PAGE_LEN_MAX GiB(1) /* the largest huge page of any machine that we run on */

/*
 * hugetlbfs wants whole huge pages, which it tells as the block size; other files of memory may tell a larger one than
 * they need, which does no harm.
 */
uint64_t gmem_map_unit(const struct stat *st)
{
	uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE), unit = (uint64_t)st->st_blksize;

	return is_pow2(unit) && unit > page && unit <= PAGE_LEN_MAX ? unit : page;
}

static bool is_huge(int fd)
{
	struct statfs fs;

	return fstatfs(fd, &fs) == 0 && fs.f_type == HUGETLBFS_MAGIC;
}

static int check_region(const struct umsg_region *u, unsigned i, const struct stat *st,
			struct varve_error *err)
{
	uint64_t end;

	if (!u->len)
		return varve_error_set(err, -EINVAL, "memory region %u is empty", i);
	if (u64_add(u->guest_addr, u->len, &end) || u64_add(u->user_addr, u->len, &end))
		return varve_error_set(err, -EINVAL,
				       "memory region %u: 0x%" PRIx64 " bytes wrap around the end of the"
				       " address space",
				       i, u->len);
	if (!S_ISREG(st->st_mode))
		return varve_error_set(err, -EINVAL,
				       "memory region %u: its descriptor is not a file of memory"
				       " (memfd, tmpfs, hugetlbfs)",
				       i);
	if (u64_add(u->mmap_off, u->len, &end) || end > (uint64_t)st->st_size)
		return varve_error_set(err, -EINVAL,
				       "memory region %u: 0x%" PRIx64 " bytes at offset 0x%" PRIx64
				       " reach beyond the end of the file (0x%" PRIx64 ")",
				       i, u->len, u->mmap_off, (uint64_t)st->st_size);
	return 0;
}

static bool overlap(uint64_t a, uint64_t a_len, uint64_t b, uint64_t b_len)
{
	return a < b + b_len && b < a + a_len;
}

static int check_overlap(const struct gmem_region *others, unsigned nr, const struct umsg_region *u, unsigned i,
			 struct varve_error *err)
{
	for (unsigned k = 0; k < nr; k++) {
		const struct gmem_region *r = &others[k];

		if (overlap(r->guest_addr, r->len, u->guest_addr, u->len))
			return varve_error_set(err, -EINVAL,
					       "memory regions %u and %u overlap at guest address 0x%" PRIx64,
					       k, i, MAX(r->guest_addr, u->guest_addr));
		if (overlap(r->user_addr, r->len, u->user_addr, u->len))
			return varve_error_set(
				err, -EINVAL,
				"memory regions %u and %u overlap at front-end address 0x%" PRIx64, k, i,
				MAX(r->user_addr, u->user_addr));
	}
	return 0;
}

/* Maps region number i of a table into r, if it goes together with the nr others. */
static int map_region(struct gmem_region *r, _Atomic bool *lost, const struct gmem_region *others, unsigned nr,
		      const struct umsg_region *u, unsigned i, int fd, struct varve_error *err)
{
	uint64_t unit, start, end;
	struct stat st;
	void *map;
	int ret;

	if (fstat(fd, &st) < 0)
		return varve_error_errno(err, -errno, "memory region %u: fstat", i);
	ret = check_region(u, i, &st, err);
	if (ret == 0)
		ret = check_overlap(others, nr, u, i, err);
	if (ret < 0)
		return ret;

	/* Inside the file, so below 2^63: rounding cannot overflow. */
	unit = gmem_map_unit(&st);
	start = align_down(u->mmap_off, unit);
	end = align_up(u->mmap_off + u->len, unit);
	map = mmap(NULL, end - start, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, (off_t)start);
	if (map == MAP_FAILED)
		return varve_error_errno(err, -errno, "memory region %u: cannot map 0x%" PRIx64 " bytes", i,
					 u->len);
	/* Guest secrets stay out of core dumps; only a kindness, so the result does not matter. */
	(void)madvise(map, end - start, MADV_DONTDUMP);
	ret = memguard_add(map, end - start, unit, lost, err);
	if (ret < 0) {
		munmap(map, end - start);
		return ret;
	}
	*r = (struct gmem_region){
		.guest_addr = u->guest_addr,
		.user_addr = u->user_addr,
		.len = u->len,
		.host = (uint8_t *)map + (u->mmap_off - start),
		.map = map,
		.map_len = end - start,
		.unit = unit,
		.guard = ret,
		.huge = is_huge(fd),
	};
	return 0;
}

static void unmap_region(struct gmem_region *r)
{
	memguard_del(r->guard);
	munmap(r->map, r->map_len);
}

static int by_guest_addr(const void *a, const void *b)
{
	const struct gmem_region *x = a, *y = b;

	return (x->guest_addr > y->guest_addr) - (x->guest_addr < y->guest_addr);
}

int gmem_map(struct gmem *m, const struct umsg_region *regions, const int *fds, unsigned nr,
	     struct varve_error *err)
{
	struct gmem_region fresh[UMSG_REGIONS_MAX];

	assert(nr <= UMSG_REGIONS_MAX);
	for (unsigned i = 0; i < nr; i++) {
		int ret = map_region(&fresh[i], &m->lost, fresh, i, &regions[i], i, fds[i], err);

		if (ret < 0) {
			while (i--)
				unmap_region(&fresh[i]);
			return ret;
		}
	}
	gmem_unmap(m);
	qsort(fresh, nr, sizeof(fresh[0]), by_guest_addr);
	if (nr)
		memcpy(m->region, fresh, nr * sizeof(fresh[0]));
	m->nr_regions = nr;
	return 0;
}

int gmem_add(struct gmem *m, const struct umsg_region *region, int fd, struct varve_error *err)
{
	int ret;

	if (m->nr_regions == GMEM_REGIONS_MAX)
		return varve_error_set(err, -ENOSPC, "there are %d memory regions already, no more are possible",
				       GMEM_REGIONS_MAX);
	ret = map_region(&m->region[m->nr_regions], &m->lost, m->region, m->nr_regions, region, m->nr_regions, fd,
			 err);
	if (ret < 0)
		return ret;
	m->nr_regions++;
	qsort(m->region, m->nr_regions, sizeof(m->region[0]), by_guest_addr);
	return 0;
}

int gmem_remove(struct gmem *m, const struct umsg_region *region, struct varve_error *err)
{
	for (unsigned i = 0; i < m->nr_regions; i++) {
		struct gmem_region *r = &m->region[i];

		if (r->guest_addr != region->guest_addr || r->user_addr != region->user_addr || r->len != region->len)
			continue;
		unmap_region(r);
		m->nr_regions--;
		memmove(r, r + 1, (m->nr_regions - i) * sizeof(*r));
		if (!m->nr_regions)
			atomic_store(&m->lost, false); /* whatever comes now is new */
		return 0;
	}
	return varve_error_set(err, -ENOENT,
			       "no memory region has guest address 0x%" PRIx64 ", front-end address 0x%" PRIx64
			       " and 0x%" PRIx64 " bytes",
			       region->guest_addr, region->user_addr, region->len);
}

void gmem_unmap(struct gmem *m)
{
	for (unsigned i = 0; i < m->nr_regions; i++)
		unmap_region(&m->region[i]);
	m->nr_regions = 0;
	atomic_store(&m->lost, false);
}

bool gmem_to_guest(const struct gmem *m, const void *p, uint64_t *ret_guest_addr)
{
	for (unsigned i = 0; i < m->nr_regions; i++) {
		const struct gmem_region *r = &m->region[i];
		uintptr_t off = (uintptr_t)p - (uintptr_t)r->host;

		if (off < r->len) {
			*ret_guest_addr = r->guest_addr + off;
			return true;
		}
	}
	return false;
}

void gmem_announce(const struct gmem *m, struct queue *q)
{
	for (unsigned i = 0; i < m->nr_regions; i++)
		aio_memory_add(q, m->region[i].map, m->region[i].map_len, m->region[i].huge);
}

void gmem_forget(const struct gmem *m, struct queue *q)
{
	for (unsigned i = 0; i < m->nr_regions; i++)
		aio_memory_del(q, m->region[i].map, m->region[i].map_len);
}

void *gmem_by_user(const struct gmem *m, uint64_t user_addr, uint64_t len)
{
	for (unsigned i = 0; i < m->nr_regions; i++) {
		const struct gmem_region *r = &m->region[i];
		uint64_t off = user_addr - r->user_addr;

		if (off < r->len)
			return len && len <= r->len - off ? r->host + off : NULL;
	}
	return NULL;
}
