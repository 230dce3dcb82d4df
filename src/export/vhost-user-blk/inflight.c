/* SPDX-License-Identifier: MIT */
/*
 * vhost-user-blk/inflight.c - making and mapping the area of requests in flight
 *
 * Owns:    see inflight.h.
 * Assumes: see inflight.h.
 * Never:   maps a file that may shrink: touching what is gone would be a SIGBUS.
 */
#include "export/vhost-user-blk/inflight.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/magic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "base/math.h"

/* A region begins in a cache line of its own: two threads write two of them. */
#define REGION_ALIGN 64

/* More than any ring that is accepted; bounds what a front end may ask for. */
#define QUEUES_MAX 256
#define QUEUE_SIZE_MAX 32768

static uint64_t region_len(unsigned queue_size)
{
	static_assert(sizeof(struct inflight_packed_desc) >= sizeof(struct inflight_split_desc) &&
			      sizeof(struct inflight_packed_region) >= sizeof(struct inflight_split_region),
		      "what holds a packed ring's requests holds a split ring's too");
	return align_up(sizeof(struct inflight_packed_region) +
				(uint64_t)queue_size * sizeof(struct inflight_packed_desc),
			REGION_ALIGN);
}

static const uint8_t note_magic[8] = "varvenot";

/* Of the regions; the note is behind them. */
static uint64_t regions_len(unsigned nr_queues, unsigned queue_size)
{
	return nr_queues * region_len(queue_size);
}

static int check_shape(unsigned nr_queues, unsigned queue_size, struct varve_error *err)
{
	if (!nr_queues || nr_queues > QUEUES_MAX)
		return varve_error_set(err, -EINVAL, "an in-flight area for %u queues, 1 .. %d are possible",
				       nr_queues, QUEUES_MAX);
	if (!queue_size || queue_size > QUEUE_SIZE_MAX)
		return varve_error_set(err, -EINVAL,
				       "an in-flight area for rings of %u, 1 .. %d are possible", queue_size,
				       QUEUE_SIZE_MAX);
	return 0;
}

int inflight_create(unsigned nr_queues, unsigned queue_size, int *ret_fd, uint64_t *ret_mmap_size,
		    struct varve_error *err)
{
	struct inflight_note note = { .writethrough = 0 };
	uint64_t at, len;
	int fd, ret;

	ret = check_shape(nr_queues, queue_size, err);
	if (ret < 0)
		return ret;
	at = regions_len(nr_queues, queue_size);
	len = at + REGION_ALIGN;
	memcpy(note.magic, note_magic, sizeof(note.magic));
	fd = memfd_create("varve-inflight", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (fd < 0)
		return varve_error_errno(err, -errno, "in-flight area");
	/* Zeroes, but for the note: every region is fresh. Nobody may take away from under us what is there now. */
	if (ftruncate(fd, (off_t)len) < 0 || pwrite(fd, &note, sizeof(note), (off_t)at) != sizeof(note) ||
	    fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0) {
		ret = varve_error_errno(err, -errno, "in-flight area of %" PRIu64 " bytes", len);
		close(fd);
		return ret;
	}
	*ret_fd = fd;
	*ret_mmap_size = len;
	return 0;
}

static int check_file(int fd, uint64_t mmap_size, uint64_t mmap_off, struct varve_error *err)
{
	int seals = fcntl(fd, F_GET_SEALS);
	struct statfs fs;
	struct stat st;
	uint64_t end;

	if (seals < 0 || !(seals & F_SEAL_SHRINK))
		return varve_error_set(
			err, -EINVAL,
			"the in-flight area is not a memfd that is sealed against shrinking, as "
			"GET_INFLIGHT_FD makes them");
	/* Huge pages come from a pool: a seal does not keep one there that was given back, and never was one for each. */
	if (fstatfs(fd, &fs) < 0 || fs.f_type == HUGETLBFS_MAGIC)
		return varve_error_set(err, -EINVAL,
				       "the in-flight area is in huge pages, of which there may be too few when one is touched");
	if (fstat(fd, &st) < 0)
		return varve_error_errno(err, -errno, "in-flight area: fstat");
	if (u64_add(mmap_off, mmap_size, &end) || end > (uint64_t)st.st_size)
		return varve_error_set(err, -EINVAL,
				       "the in-flight area of 0x%" PRIx64 " bytes at offset 0x%" PRIx64
				       " reaches beyond the end of its file (0x%" PRIx64 ")",
				       mmap_size, mmap_off, (uint64_t)st.st_size);
	return 0;
}

int inflight_map(struct inflight *a, int fd, uint64_t mmap_size, uint64_t mmap_off, unsigned nr_queues,
		 unsigned queue_size, struct varve_error *err)
{
	uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE), start, need;
	struct inflight_note *note;
	bool has_note;
	void *map;
	int ret;

	ret = check_shape(nr_queues, queue_size, err);
	if (ret == 0)
		ret = check_file(fd, mmap_size, mmap_off, err);
	if (ret < 0)
		return ret;
	need = regions_len(nr_queues, queue_size);
	has_note = mmap_size >= need + sizeof(*note);
	if (mmap_size < need)
		return varve_error_set(err, -EINVAL,
				       "the in-flight area has %" PRIu64
				       " bytes, %u queues of %u need %" PRIu64,
				       mmap_size, nr_queues, queue_size, need);
	if (mmap_off % sizeof(uint64_t))
		return varve_error_set(err, -EINVAL,
				       "the in-flight area begins at offset 0x%" PRIx64 ", no multiple of 8",
				       mmap_off);
	start = align_down(mmap_off, page);
	need += has_note ? sizeof(*note) : 0;
	map = mmap(NULL, mmap_off - start + need, PROT_READ | PROT_WRITE, MAP_SHARED, fd, (off_t)start);
	if (map == MAP_FAILED)
		return varve_error_errno(err, -errno, "in-flight area: cannot map %" PRIu64 " bytes", need);
	note = (void *)((uint8_t *)map + (mmap_off - start) + regions_len(nr_queues, queue_size));
	inflight_close(a);
	*a = (struct inflight){
		.map = map,
		.note = has_note && !memcmp(note->magic, note_magic, sizeof(note_magic)) ? note : NULL,
		.map_len = mmap_off - start + need,
		.area = (uint8_t *)map + (mmap_off - start),
		.nr_queues = nr_queues,
		.queue_size = queue_size,
	};
	return 0;
}

void inflight_close(struct inflight *a)
{
	if (a->map)
		munmap(a->map, a->map_len);
	*a = (struct inflight){ .map = NULL };
}

void *inflight_region(const struct inflight *a, unsigned queue)
{
	return a->map && queue < a->nr_queues ? a->area + queue * region_len(a->queue_size) : NULL;
}

bool inflight_writethrough(const struct inflight *a)
{
	return a->note && *(volatile uint32_t *)&a->note->writethrough;
}

void inflight_note_writethrough(struct inflight *a, bool writethrough)
{
	if (a->note)
		a->note->writethrough = writethrough;
}

void inflight_forget(struct inflight *a, unsigned queue)
{
	struct inflight_split_region *r = inflight_region(a, queue);

	static_assert(offsetof(struct inflight_split_region, version) ==
			      offsetof(struct inflight_packed_region, version),
		      "what the region is used for does not matter");
	if (r)
		r->version = INFLIGHT_FRESH;
}
