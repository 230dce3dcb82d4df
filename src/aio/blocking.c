/* SPDX-License-Identifier: MIT */
/*
 * aio/blocking.c - one I/O operation by ordinary system calls
 *
 * Assumes: a worker thread: everything here may block.
 * Never:   touches the queue of the operation.
 *
 * What the file system cannot do is -ENOTSUP, and the layer above writes zeroes instead or does nothing.
 * EINTR is never an answer. EAGAIN, from a descriptor that blocks, says that something below has run out of
 * something for the moment: asked again for a while before it is an error.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "aio/loop.h"

#define AGAIN_MAX 10
#define AGAIN_NS 2000000

/* After a call that failed: is it to be made again? Waits, if that helps. */
static bool again(unsigned *nr_again)
{
	if (errno == EINTR)
		return true;
	if (errno != EAGAIN || ++*nr_again > AGAIN_MAX)
		return false;
	nanosleep(&(struct timespec){ .tv_nsec = AGAIN_NS }, NULL);
	return true;
}

static int64_t do_write(const struct aio_op *op)
{
	const int fd = op->file->fd;
	unsigned nr_again = 0;
	ssize_t n;

	do {
		n = pwritev2(fd, op->iov, (int)op->nr_iov, (off_t)op->off,
			     op->flags & AIO_FUA ? RWF_DSYNC : 0);
	} while (n < 0 && again(&nr_again));
	if (n >= 0 || !(op->flags & AIO_FUA) || (errno != EOPNOTSUPP && errno != ENOSYS))
		return n < 0 ? -errno : n;
	/* A file system without RWF_DSYNC. */
	do {
		n = pwritev(fd, op->iov, (int)op->nr_iov, (off_t)op->off);
	} while (n < 0 && again(&nr_again));
	return n < 0 || fdatasync(fd) < 0 ? -errno : n;
}

static int64_t do_read(const struct aio_op *op)
{
	unsigned nr_again = 0;
	ssize_t n;

	do {
		n = preadv(op->file->fd, op->iov, (int)op->nr_iov, (off_t)op->off);
	} while (n < 0 && again(&nr_again));
	return n < 0 ? -errno : n;
}

static int64_t do_fallocate(const struct aio_op *op, int mode)
{
	unsigned nr_again = 0;
	int ret;

	do {
		ret = fallocate(op->file->fd, mode, (off_t)op->off, (off_t)op->len);
	} while (ret < 0 && again(&nr_again));
	if (ret == 0)
		return 0;
	return errno == ENOSYS || errno == EOPNOTSUPP ? -ENOTSUP : -errno;
}

static int64_t do_ioctl_range(const struct aio_op *op, unsigned long request)
{
	uint64_t range[2] = { op->off, op->len };
	unsigned nr_again = 0;
	int ret;

	do {
		ret = ioctl(op->file->fd, request, range);
	} while (ret < 0 && again(&nr_again));
	if (ret == 0)
		return 0;
	return errno == ENOTTY || errno == EOPNOTSUPP ? -ENOTSUP : -errno;
}

static int64_t do_zero_blockdev(const struct aio_op *op)
{
	/* On a block device a hole is a promise of zeroes, given only if the device keeps it cheaply. */
	if (op->flags & AIO_MAY_UNMAP) {
		int64_t ret = do_fallocate(op, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE);

		if (ret != -ENOTSUP)
			return ret;
	}
	return do_ioctl_range(op, BLKZEROOUT);
}

int aio_zero_mode(const struct aio_op *op)
{
	struct stat st;

	/*
	 * A hole cannot make the file longer, and a range that ends beyond the end must: there it is
	 * ZERO_RANGE. If a write that makes the file longer is in flight, the length seen here is the old
	 * one, and ZERO_RANGE right too.
	 */
	if (op->flags & AIO_MAY_UNMAP && fstat(op->file->fd, &st) == 0 && st.st_size >= 0 &&
	    op->off + op->len <= (uint64_t)st.st_size)
		return FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
	return FALLOC_FL_ZERO_RANGE;
}

int64_t aio_op_blocking(const struct aio_op *op)
{
	unsigned nr_again = 0;
	int ret;

	switch ((enum aio_opcode)op->opcode) {
	case AIO_READ:
		return do_read(op);
	case AIO_WRITE:
		return do_write(op);
	case AIO_FLUSH:
		do {
			ret = fdatasync(op->file->fd);
		} while (ret < 0 && again(&nr_again));
		return ret < 0 ? -errno : 0;
	case AIO_DISCARD:
		if (op->file->is_blockdev)
			return do_ioctl_range(op, BLKDISCARD);
		return do_fallocate(op, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE);
	case AIO_ZERO:
		if (op->file->is_blockdev)
			return do_zero_blockdev(op);
		return do_fallocate(op, aio_zero_mode(op));
	case AIO_OPCODES:
		break;
	}
	assert(!"unknown aio opcode");
	return -EINVAL;
}
