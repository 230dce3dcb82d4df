/* SPDX-License-Identifier: MIT */
/*
 * vhost-user-blk/mem.c - mapping the guest's memory
 *
 * Owns:    see mem.h.
 * Assumes: runs on the control thread, a few times in a session's life.
 * Never:   maps what reaches beyond its file: touching it would be a SIGBUS.
 */
#include "export/vhost-user-blk/mem.h"

#include <inttypes.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#define PAGE_LEN_MAX GiB(1) /* the largest huge page of any machine that we run on */

/*
 * The unit in which a mapping of this file may begin and end. hugetlbfs wants whole huge pages, which it
 * tells as the block size; other files of memory may tell a larger one than they need, which does no harm.
 */
static uint64_t map_unit(const struct stat *st)
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

static int check_overlap(const struct gmem *m, const struct umsg_region *u, unsigned i,
			 struct varve_error *err)
{
	for (unsigned k = 0; k < m->nr_regions; k++) {
		const struct gmem_region *r = &m->region[k];

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

static int map_region(struct gmem *m, const struct umsg_region *u, unsigned i, int fd,
		      struct varve_error *err)
{
	struct gmem_region *r = &m->region[m->nr_regions];
	uint64_t unit, start, end;
	struct stat st;
	void *map;
	int ret;

	if (fstat(fd, &st) < 0)
		return varve_error_errno(err, -errno, "memory region %u: fstat", i);
	ret = check_region(u, i, &st, err);
	if (ret == 0)
		ret = check_overlap(m, u, i, err);
	if (ret < 0)
		return ret;

	/* Inside the file, so below 2^63: rounding cannot overflow. */
	unit = map_unit(&st);
	start = align_down(u->mmap_off, unit);
	end = align_up(u->mmap_off + u->len, unit);
	map = mmap(NULL, end - start, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, (off_t)start);
	if (map == MAP_FAILED)
		return varve_error_errno(err, -errno, "memory region %u: cannot map 0x%" PRIx64 " bytes", i,
					 u->len);
	/* Guest secrets stay out of core dumps; only a kindness, so the result does not matter. */
	(void)madvise(map, end - start, MADV_DONTDUMP);
	*r = (struct gmem_region){
		.guest_addr = u->guest_addr,
		.user_addr = u->user_addr,
		.len = u->len,
		.host = (uint8_t *)map + (u->mmap_off - start),
		.map = map,
		.map_len = end - start,
		.huge = is_huge(fd),
	};
	m->nr_regions++;
	return 0;
}

int gmem_map(struct gmem *m, const struct umsg_region *regions, const int *fds, unsigned nr,
	     struct varve_error *err)
{
	struct gmem fresh = { .nr_regions = 0 };

	assert(nr <= UMSG_REGIONS_MAX);
	for (unsigned i = 0; i < nr; i++) {
		int ret = map_region(&fresh, &regions[i], i, fds[i], err);

		if (ret < 0) {
			gmem_unmap(&fresh);
			return ret;
		}
	}
	*m = fresh;
	return 0;
}

void gmem_unmap(struct gmem *m)
{
	for (unsigned i = 0; i < m->nr_regions; i++)
		munmap(m->region[i].map, m->region[i].map_len);
	m->nr_regions = 0;
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
