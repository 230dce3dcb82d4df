/* SPDX-License-Identifier: MIT */
/*
 * proto/file_hint.c - what a new file's space shall be like: nocow, extent_size_hint
 *
 * Both must be said before a file has blocks, so they are kept until it is emptied. A file system that knows nothing of the
 * kind ignores them, as one that knows them could have chosen the same places: they are wishes. What it knows and refuses is
 * an error.
 *
 * Owns:    the two options of create.
 * Assumes: the ioctls may block, so they run on worker threads.
 * Never:   touches a file that holds something.
 */
#include "proto/file.h"

#include <linux/fs.h>
#include <sys/ioctl.h>

#include "base/error.h"

/* What a field of the kernel's interface can say. */
#define EXTENT_SIZE_MAX UINT32_MAX

const struct varve_option_info file_options[] = {
	{ "extent_size_hint", "size", "the file grows by that much at a time, where the file system (XFS) can; 0: as it likes", false },
	{ "nocow", "bool", "blocks of the file are overwritten in place, where the file system (btrfs) can choose", false },
	{ NULL, NULL, NULL, false },
};

int file_hint(struct node *n, struct opts *o, struct varve_error *err)
{
	struct file_hints h = { .nocow = false };
	uint64_t extent = 0;
	int ret = opts_get_bool(o, "nocow", &h.nocow, err);

	if (ret == 0)
		ret = opts_get_size(o, "extent_size_hint", &extent, err);
	if (ret < 0)
		return ret;
	if (extent > EXTENT_SIZE_MAX)
		return varve_error_set(err, -EINVAL, "option extent_size_hint=%s: must be less than 4 GiB", opts_get(o, "extent_size_hint"));
	h.has_extent = opts_get(o, "extent_size_hint");
	h.extent = (uint32_t)extent;
	if (n)
		((struct file *)node_state(n))->hints = h;
	return 0;
}

/* Not known here, or not to this kind of file. */
static bool unknown(int error)
{
	return error == ENOTTY || error == EOPNOTSUPP || error == ENOSYS;
}

static int set_nocow(int fd)
{
	int flags = 0;

	if (ioctl(fd, FS_IOC_GETFLAGS, &flags) < 0)
		return unknown(errno) ? 0 : -errno;
	if (flags & FS_NOCOW_FL)
		return 0;
	flags |= FS_NOCOW_FL;
	if (ioctl(fd, FS_IOC_SETFLAGS, &flags) < 0 && !unknown(errno))
		return -errno;
	return 0;
}

static int set_extent(int fd, uint32_t extent)
{
	struct fsxattr x;

	if (ioctl(fd, FS_IOC_FSGETXATTR, &x) < 0)
		return unknown(errno) ? 0 : -errno;
	if (extent)
		x.fsx_xflags |= FS_XFLAG_EXTSIZE;
	else
		x.fsx_xflags &= ~(uint32_t)FS_XFLAG_EXTSIZE;
	x.fsx_extsize = extent;
	if (ioctl(fd, FS_IOC_FSSETXATTR, &x) < 0 && !unknown(errno))
		return -errno;
	return 0;
}

uint32_t file_extent_hint(int fd)
{
	struct fsxattr x;

	return ioctl(fd, FS_IOC_FSGETXATTR, &x) == 0 && (x.fsx_xflags & FS_XFLAG_EXTSIZE) ? x.fsx_extsize : 0;
}

int file_apply_hints(int fd, const struct file_hints *h, struct varve_error *err)
{
	int ret = h->nocow ? set_nocow(fd) : 0;

	if (ret < 0)
		return varve_error_errno(err, ret, "option nocow=on");
	ret = h->has_extent ? set_extent(fd, h->extent) : 0;
	return ret < 0 ? varve_error_errno(err, ret, "option extent_size_hint=%u: the file system refuses it", h->extent) : 0;
}
