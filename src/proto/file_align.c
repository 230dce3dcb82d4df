/* SPDX-License-Identifier: MIT */
/*
 * proto/file_align.c - what O_DIRECT asks of offsets and memory on this very file: found, not guessed
 *
 * The kernel is asked (STATX_DIOALIGN since Linux 6.1, BLKSSZGET for devices); where it does not say, reads
 * of growing size show what it takes.
 *
 * Assumes: worker threads; fd is open with O_DIRECT.
 * Never:   writes to the file.
 */
#include "proto/file.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/error.h"

#define FILE_ALIGN_MIN 512
#define FILE_ALIGN_MAX 65536

int file_block_len(int fd, uint32_t *ret_len, struct varve_error *err)
{
	int len = 0;

	if (ioctl(fd, BLKSSZGET, &len) < 0)
		return varve_error_errno(err, -errno, "cannot read the device's block size");
	if (len < 1 || len > FILE_ALIGN_MAX || !is_pow2((uint64_t)len))
		return varve_error_set(err, -EINVAL, "the device's block size of %d bytes is not usable",
				       len);
	*ret_len = (uint32_t)len;
	return 0;
}

/*
 * The kernel's own answer. 0: it does not say. > 0: *ret are set. -EINVAL: it says that this file cannot do
 * direct I/O, although its file system let us open it so (encrypted or compressed files, for example).
 */
static int align_ask(int fd, uint32_t *ret_align, uint32_t *ret_mem_align)
{
#ifdef STATX_DIOALIGN
	struct statx st;

	if (statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &st) < 0 || !(st.stx_mask & STATX_DIOALIGN))
		return 0;
	if (!st.stx_dio_offset_align || !st.stx_dio_mem_align)
		return -EINVAL;
	if (!is_pow2(st.stx_dio_offset_align) || !is_pow2(st.stx_dio_mem_align))
		return 0;
	*ret_align = st.stx_dio_offset_align;
	*ret_mem_align = st.stx_dio_mem_align;
	return 1;
#else
	(void)fd;
	(void)ret_align;
	(void)ret_mem_align;
	return 0;
#endif
}

static bool can_read(int fd, void *buf, size_t len, off_t off)
{
	ssize_t n;

	do {
		n = pread(fd, buf, len, off);
	} while (n < 0 && errno == EINTR);
	return n >= 0;
}

/*
 * The smallest length that can be read at the offset of that length, into memory that is aligned better than
 * any need. At offset 0 alone a file system could not show that it minds odd offsets.
 *
 * An empty file tells nothing: the end of the file may be found before the alignment is looked at.
 */
static uint32_t probe_offset(int fd, uint8_t *buf, const struct stat *st)
{
	for (uint32_t align = FILE_ALIGN_MIN; align <= FILE_ALIGN_MAX; align *= 2) {
		if (can_read(fd, buf, align, 0) && (st->st_size <= align || can_read(fd, buf, align, align)))
			return align;
	}
	return 0;
}

/* The smallest alignment of memory into which align bytes can be read. */
static uint32_t probe_mem(int fd, uint8_t *buf, uint32_t align)
{
	for (uint32_t mem = FILE_ALIGN_MIN; mem < FILE_ALIGN_MAX; mem *= 2) {
		if (can_read(fd, buf + mem, align, 0))
			return mem;
	}
	return FILE_ALIGN_MAX;
}

/* Where nothing can be found out: the block size, of which every file system takes multiples. */
static uint32_t safe_align(const struct stat *st)
{
	if (st->st_blksize >= FILE_ALIGN_MAX || !is_pow2((uint64_t)st->st_blksize))
		return FILE_ALIGN_MAX;
	return MAX((uint32_t)st->st_blksize, FILE_ALIGN_MIN);
}

/* *ret_align != 0: known already (devices). */
static int align_probe(int fd, uint32_t *ret_align, uint32_t *ret_mem_align)
{
	uint32_t align = *ret_align;
	struct stat st;
	void *buf;

	if (fstat(fd, &st) < 0)
		return -errno;
	if (S_ISREG(st.st_mode) && !st.st_size) {
		*ret_align = *ret_mem_align = safe_align(&st);
		return 0;
	}
	if (posix_memalign(&buf, FILE_ALIGN_MAX, 2 * FILE_ALIGN_MAX))
		return -ENOMEM;
	if (!align)
		align = probe_offset(fd, buf, &st);
	if (align) {
		*ret_align = align;
		*ret_mem_align = probe_mem(fd, buf, align);
	}
	free(buf);
	return align ? 0 : -EINVAL;
}

int file_find_align(int fd, bool is_blockdev, bool ask, uint32_t *ret_align, uint32_t *ret_mem_align,
		    struct varve_error *err)
{
	uint32_t align = 0, mem_align = 0;
	int ret = ask ? align_ask(fd, &align, &mem_align) : 0;

	if (ret == -EINVAL)
		return varve_error_set(err, ret,
				       "this file cannot do direct I/O (O_DIRECT); use another cache mode");
	if (ret == 0) {
		if (is_blockdev)
			ret = file_block_len(fd, &align, err);
		if (ret < 0)
			return ret;
		ret = align_probe(fd, &align, &mem_align);
		if (ret < 0)
			return varve_error_errno(
				err, ret, "no alignment up to %d bytes works for direct I/O (O_DIRECT)",
				FILE_ALIGN_MAX);
	}
	if (align > FILE_ALIGN_MAX || mem_align > FILE_ALIGN_MAX)
		return varve_error_set(err, -EINVAL,
				       "direct I/O needs alignment to %u bytes, %d are supported",
				       MAX(align, mem_align), FILE_ALIGN_MAX);
	/* A transfer that stopped half-way goes on at a multiple of align, in memory as well. */
	*ret_align = MAX(align, mem_align);
	/*
	 * Many devices take memory at multiples of 4, but each element of a vector has to be whole sectors
	 * for all of them. n->mem_align is asked of addresses and lengths alike, so it is never less than a
	 * sector.
	 */
	*ret_mem_align = MAX(mem_align, FILE_ALIGN_MIN);
	return 0;
}
