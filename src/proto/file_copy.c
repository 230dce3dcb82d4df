/* SPDX-License-Identifier: MIT */
/*
 * proto/file_copy.c - copying from file to file inside of the kernel: shared blocks, or at least no bounce
 * buffers
 *
 * Assumes: the calls block for as long as the copy takes: they run on worker threads.
 * Never:   says that bytes are copied which are not; whoever asks continues behind what was done, or copies
 * by itself.
 */
#include "proto/file.h"

#include <linux/fs.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define COPY_STEP MiB(64) /* one call; the worker is busy for so long */
#define CLONE_ALIGN                                                                                          \
	4096u /* smaller blocks than file systems that share them have; they say if it is not enough */

struct copy {
	int src_fd, dst_fd;
	uint64_t src_off, dst_off, len;
	bool may_clone;

	bool cannot_clone; /* found out now */
	uint64_t done;
};

/* These two files, this kernel, this range: not possible. Reading and writing may be. */
static bool is_no_way(int error)
{
	return error == EXDEV || error == EOPNOTSUPP || error == ENOSYS || error == EINVAL ||
	       error == EPERM || error == ETXTBSY || error == ENOTTY || error == EBADF;
}

static int clone_range(const struct copy *c)
{
	struct file_clone_range range = {
		.src_fd = c->src_fd, .src_offset = c->src_off, .src_length = c->len, .dest_offset = c->dst_off
	};
	int ret;

	do {
		ret = ioctl(c->dst_fd, FICLONERANGE, &range) < 0 ? -errno : 0;
	} while (ret == -EINTR);
	return ret;
}

static int copy_work(void *arg)
{
	struct copy *c = arg;
	off_t src_off = (off_t)c->src_off, dst_off = (off_t)c->dst_off;

	if (c->may_clone && is_aligned(c->src_off | c->dst_off | c->len, CLONE_ALIGN)) {
		int ret = clone_range(c);

		if (ret == 0)
			c->done = c->len;
		if (ret == 0 || !is_no_way(-ret))
			return ret;
		c->cannot_clone = true;
	}
	while (c->done < c->len) {
		ssize_t n = copy_file_range(c->src_fd, &src_off, c->dst_fd, &dst_off, c->len - c->done, 0);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && c->done) /* the next call meets it again, if it lasts */
			return 0;
		if (n < 0)
			return is_no_way(errno) ? -ENOTSUP : -errno;
		if (n == 0) /* the source ends here */
			return c->done ? 0 : -ENOTSUP;
		c->done += (uint64_t)n;
	}
	return 0;
}

int file_copy_range(struct fiber *f, struct node *src, uint64_t src_off, struct node *dst, uint64_t dst_off,
		    uint64_t len, uint64_t *ret_len)
{
	struct file *from = node_state(src), *to = node_state(dst);
	uint64_t src_len = node_len(src), gen = to->doubt ? doubt_gen(to->doubt) : 0;
	struct copy c = { from->af.fd, to->af.fd, src_off, dst_off, MIN(len, COPY_STEP), .done = 0 };
	int ret;

	if (!to->writable)
		return -EBADF;
	if (from->af.is_blockdev || to->af.is_blockdev || src_off >= src_len)
		return -ENOTSUP;
	c.len = MIN(c.len, src_len - src_off);
	if (dst_off > VARVE_LEN_MAX - c.len)
		return -EFBIG;
	/* Who writes part of a block with O_DIRECT reads the rest of it before; the kernel's copy would come
	 * between. */
	c.len = dst->align > 1 ? align_down(c.len, dst->align) : c.len;
	if (!c.len || !is_aligned(dst_off, dst->align))
		return -ENOTSUP;
	c.may_clone = !atomic_load_explicit(&to->no_clone, memory_order_relaxed);
	ret = fiber_work(f, copy_work, &c);
	if (c.cannot_clone)
		atomic_store_explicit(&to->no_clone, true, memory_order_relaxed);
	if (ret < 0)
		return ret;
	file_grow(dst, dst_off + c.done);
	if (to->doubt)
		doubt_note(to->doubt, fiber_queue(f), dst_off, c.done, gen);
	*ret_len = c.done;
	return to->sync ? file_sync_now(f, to) : 0;
}
