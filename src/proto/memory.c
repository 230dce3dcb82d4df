/* SPDX-License-Identifier: MIT */
/*
 * proto/memory.c - a disk in memory, gone when it is closed
 *
 * The bytes lie in segments of MEM_SEG_LEN that are mapped when they are first written; the kernel gives
 * pages only for what was touched. Every request is done at once, inside submit, on whatever queue it comes
 * from.
 *
 * contents=FILENAME: the disk begins with what that regular file holds. The file is read when the disk is opened, and
 * never changed: a copy to experiment with.
 *
 * Owns:    the segments, until close. One that is installed stays: readers of other queues need no lock.
 * Assumes: overlapping requests of several queues are their senders' affair, as with any disk.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/error.h"
#include "base/iov.h"
#include "base/opts.h"
#include "proto/proto.h"

#define MEM_SEG_LEN MiB(32)
#define MEM_SEGS 32768
#define MEM_LEN_MAX (MEM_SEG_LEN * MEM_SEGS) /* 1 TiB */

struct memory {
	uint8_t *_Atomic *segs; /* MEM_SEGS of them; NULL: reads as zeroes */
	size_t page_len;
};

static uint8_t *seg_get(struct memory *m, uint64_t off)
{
	/* pairs with the release in seg_make(): the mapping is there before its address is seen */
	return atomic_load_explicit(&m->segs[off / MEM_SEG_LEN], memory_order_acquire);
}

static uint8_t *seg_make(struct memory *m, uint64_t off)
{
	uint8_t *seg = seg_get(m, off), *none = NULL;

	if (seg)
		return seg;
	seg = mmap(NULL, MEM_SEG_LEN, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1,
		   0);
	if (seg == MAP_FAILED)
		return NULL;
	if (atomic_compare_exchange_strong_explicit(&m->segs[off / MEM_SEG_LEN], &none, seg,
						    memory_order_acq_rel, memory_order_acquire))
		return seg;
	munmap(seg, MEM_SEG_LEN); /* another queue was first */
	return none;
}

static void memory_read(struct memory *m, const struct req *r)
{
	for (uint64_t pos = 0; pos < r->len;) {
		uint64_t off = r->off + pos, part = MIN(r->len - pos, MEM_SEG_LEN - off % MEM_SEG_LEN);
		const uint8_t *seg = off < MEM_LEN_MAX ? seg_get(m, off) : NULL;

		if (seg)
			iov_from_buf(r->iov, r->nr_iov, pos, seg + off % MEM_SEG_LEN, part);
		else
			iov_fill(r->iov, r->nr_iov, pos, 0, part);
		pos += part;
	}
}

static int memory_write(struct memory *m, const struct req *r)
{
	for (uint64_t pos = 0; pos < r->len;) {
		uint64_t off = r->off + pos, part = MIN(r->len - pos, MEM_SEG_LEN - off % MEM_SEG_LEN);
		uint8_t *seg = off < MEM_LEN_MAX ? seg_make(m, off) : NULL;

		if (!seg)
			return -ENOSPC;
		iov_to_buf(r->iov, r->nr_iov, pos, seg + off % MEM_SEG_LEN, part);
		pos += part;
	}
	return 0;
}

/* Part of one segment: whole pages go back to the kernel, and are zeroes when they come again. */
static void seg_zero(const struct memory *m, uint8_t *seg, uint64_t from, uint64_t to)
{
	uint64_t page_from = align_up(from, m->page_len), page_to = align_down(to, m->page_len);

	if (page_from < page_to && !madvise(seg + page_from, page_to - page_from, MADV_DONTNEED)) {
		memset(seg + from, 0, page_from - from);
		memset(seg + page_to, 0, to - page_to);
	} else {
		memset(seg + from, 0, to - from);
	}
}

static void memory_zero(struct memory *m, uint64_t off, uint64_t len)
{
	uint64_t end = MIN(off + len, MEM_LEN_MAX);

	while (off < end) {
		uint64_t at = off % MEM_SEG_LEN, part = MIN(end - off, MEM_SEG_LEN - at);
		uint8_t *seg = seg_get(m, off);

		if (seg)
			seg_zero(m, seg, at, at + part);
		off += part;
	}
}

static void memory_grow(struct node *n, uint64_t end)
{
	uint64_t len = node_len(n);

	while (end > len && !atomic_compare_exchange_weak_explicit(&n->len, &len, end, memory_order_relaxed,
								   memory_order_relaxed))
		;
}

static void memory_submit(struct node *n, struct req *r)
{
	struct memory *m = node_state(n);
	int ret = 0;

	switch (r->op) {
	case REQ_READ:
		memory_read(m, r);
		break;
	case REQ_WRITE:
		ret = memory_write(m, r);
		break;
	case REQ_ZERO:
		if (r->off + r->len > MEM_LEN_MAX)
			ret = -ENOSPC;
		else
			memory_zero(m, r->off, r->len);
		break;
	case REQ_DISCARD:
		memory_zero(m, r->off, r->len);
		break;
	case REQ_FLUSH:
		break;
	case REQ_OPS:
		ret = -ENOTSUP;
		break;
	}
	if (!ret && (r->op == REQ_WRITE || r->op == REQ_ZERO))
		memory_grow(n, r->off + r->len);
	req_done(r, ret);
}

static int check_len(uint64_t len, struct varve_error *err)
{
	if (len > MEM_LEN_MAX)
		return varve_error_set(err, -EFBIG, "a size of %llu bytes is too large (at most 1 TiB)",
				       (unsigned long long)len);
	return 0;
}

static void memory_release(struct memory *m)
{
	for (unsigned i = 0; i < MEM_SEGS; i++) {
		if (m->segs[i])
			munmap(m->segs[i], MEM_SEG_LEN);
	}
	free(m->segs);
}

/* Reads [from, to) of the file, which holds data there; the rest of the disk stays without memory. */
static int load_data(struct memory *m, int fd, uint64_t from, uint64_t to)
{
	while (from < to) {
		uint64_t at = from % MEM_SEG_LEN;
		uint8_t *seg = seg_make(m, from);
		ssize_t n;

		if (!seg)
			return -ENOMEM;
		/* It will be filled, mostly: one fault for each huge page instead of 512. Advice. */
		(void)madvise(seg, MEM_SEG_LEN, MADV_HUGEPAGE);
		n = pread(fd, seg + at, MIN(to - from, MEM_SEG_LEN - at), (off_t)from);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (!n) /* somebody made it shorter: zeroes */
			break;
		from += (uint64_t)n;
	}
	return 0;
}

static int load_fd(struct memory *m, int fd, const char *name, uint64_t *ret_len, struct varve_error *err)
{
	uint64_t len, pos = 0;
	struct stat st;
	int ret = 0;

	if (fstat(fd, &st) < 0)
		return varve_error_errno(err, -errno, "contents: %s", name);
	if (!S_ISREG(st.st_mode))
		return varve_error_set(err, -EINVAL, "contents: %s is not a regular file", name);
	len = (uint64_t)st.st_size;
	ret = check_len(len, err);
	if (ret < 0)
		return varve_error_prefix(err, ret, "contents: %s: ", name);
	while (ret == 0 && pos < len) {
		off_t data = lseek(fd, (off_t)pos, SEEK_DATA), hole;

		if (data < 0 && errno == ENXIO)
			break; /* a hole up to the end */
		hole = data < 0 ? -1 : lseek(fd, data, SEEK_HOLE);
		ret = load_data(m, fd, data < 0 ? pos : (uint64_t)data, hole < 0 ? len : MIN((uint64_t)hole, len));
		pos = hole < 0 ? len : (uint64_t)hole;
	}
	if (ret < 0)
		return varve_error_errno(err, ret, "contents: %s", name);
	*ret_len = len;
	return 0;
}

static int load_contents(struct memory *m, const char *name, uint64_t *ret_len, struct varve_error *err)
{
	int fd = open(name, O_RDONLY | O_CLOEXEC | O_NONBLOCK), ret;

	if (fd < 0)
		return varve_error_errno(err, -errno, "contents: %s", name);
	ret = load_fd(m, fd, name, ret_len, err);
	close(fd);
	return ret;
}

static int memory_open(struct fiber *f, struct node *n, struct opts *o, struct varve_error *err)
{
	const char *contents = opts_get(o, "contents");
	struct memory *m = node_state(n);
	uint64_t len = 0;
	int ret;

	(void)f;
	if (contents && opts_get(o, "size"))
		return varve_error_set(err, -EINVAL, "options 'size' and 'contents' exclude each other");
	ret = opts_get_size(o, "size", &len, err);
	if (!ret)
		ret = check_len(len, err);
	if (ret < 0)
		return ret;
	m->page_len = (size_t)sysconf(_SC_PAGESIZE);
	m->segs = calloc(MEM_SEGS, sizeof(*m->segs));
	if (!m->segs)
		return varve_error_set(err, -ENOMEM, "out of memory");
	ret = contents ? load_contents(m, contents, &len, err) : 0;
	if (ret < 0) {
		memory_release(m);
		return ret;
	}
	n->align = n->mem_align = 1;
	atomic_store_explicit(&n->len, len, memory_order_relaxed);
	return 0;
}

static void memory_close(struct fiber *f, struct node *n)
{
	(void)f;
	memory_release(node_state(n));
}

static int64_t memory_get_len(struct fiber *f, struct node *n)
{
	(void)f;
	return (int64_t)node_len(n);
}

static int memory_status(struct fiber *f, struct node *n, uint64_t off, uint64_t len, bool *ret_hole,
			 uint64_t *ret_len)
{
	struct memory *m = node_state(n);

	(void)f;
	*ret_hole = off >= MEM_LEN_MAX || !seg_get(m, off);
	*ret_len = MIN(len, MEM_SEG_LEN - off % MEM_SEG_LEN);
	return 0;
}

static int memory_extend(struct fiber *f, struct node *n, uint64_t len)
{
	uint64_t old = node_len(n);

	(void)f;
	if (check_len(len, NULL) < 0)
		return -EFBIG;
	while (old < len && !atomic_compare_exchange_weak_explicit(&n->len, &old, len, memory_order_relaxed,
								   memory_order_relaxed))
		;
	return 0;
}

static int memory_truncate(struct fiber *f, struct node *n, uint64_t len, enum prealloc prealloc,
			   struct varve_error *err)
{
	struct memory *m = node_state(n);
	uint64_t old = node_len(n);
	int ret = check_len(len, err);

	(void)f;
	(void)prealloc; /* memory cannot be promised: the kernel gives it when it is touched */
	if (ret < 0)
		return ret;
	atomic_store_explicit(&n->len, len, memory_order_relaxed);
	if (len < old)
		memory_zero(m, len, old - len); /* what is cut off must not come back when it grows again */
	return 0;
}

static const struct varve_option_info open_options[] = {
	{ "size", "size", "of the disk, which begins with zeroes", false },
	{ "contents", "file", "it begins with what the file holds", false },
	{ NULL, NULL, NULL, false },
};

const struct driver driver_memory = {
	.name = "memory",
	.kind = DRIVER_LEAF,
	.state_len = sizeof(struct memory),
	.open_options = open_options,
	.open = memory_open,
	.close = memory_close,
	.submit = memory_submit,
	.get_len = memory_get_len,
	.status = memory_status,
	.truncate = memory_truncate,
	.extend = memory_extend,
};
