/* SPDX-License-Identifier: MIT */
/*
 * proto/file_len.c - how long a file is, where its holes are, making it longer or shorter
 *
 * Assumes: the calls may block (network file systems), so they run on worker threads.
 * Never:   leaves a file at another length when preallocation failed.
 */
#include "proto/file.h"

#include <fcntl.h>
#include <jansson.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/error.h"

int file_fd_len(int fd, bool is_blockdev, uint64_t *ret_len)
{
	struct stat st;
	uint64_t len;

	if (is_blockdev) {
		if (ioctl(fd, BLKGETSIZE64, &len) < 0)
			return -errno;
	} else {
		if (fstat(fd, &st) < 0)
			return -errno;
		len = (uint64_t)st.st_size;
	}
	if (len > VARVE_LEN_MAX)
		return -EFBIG;
	*ret_len = len;
	return 0;
}

/* ---- asking ---- */

struct get_len {
	int fd;
	bool is_blockdev;
	uint64_t len;
};

static int get_len_work(void *arg)
{
	struct get_len *g = arg;

	return file_fd_len(g->fd, g->is_blockdev, &g->len);
}

/*
 * n->len only grows here: a write of another queue may have ended since the kernel answered. Who cuts a file
 * goes through file_truncate().
 */
int64_t file_get_len(struct fiber *f, struct node *n)
{
	struct file *fl = node_state(n);
	struct get_len g = { fl->af.fd, fl->af.is_blockdev, 0 };
	int ret = fiber_work(f, get_len_work, &g);

	if (ret < 0)
		return ret;
	file_grow(n, g.len);
	return (int64_t)g.len;
}

/* ---- holes ---- */

struct status {
	int fd;
	uint64_t off, len;
	bool hole;
	uint64_t hole_len; /* how far the answer holds */
};

static int status_work(void *arg)
{
	struct status *s = arg;
	off_t next = lseek(s->fd, (off_t)s->off, SEEK_DATA);

	s->hole = false;
	s->hole_len = s->len;
	if (next < 0 && errno == ENXIO) { /* nothing but a hole up to the end, or beyond it */
		s->hole = true;
		return 0;
	}
	if (next < 0)
		return 0; /* a file system that does not say: everything may be data */
	if ((uint64_t)next > s->off) {
		s->hole = true;
	} else {
		next = lseek(s->fd, (off_t)s->off, SEEK_HOLE);
		if (next < 0 || (uint64_t)next <= s->off)
			return 0; /* it changes while we look: data, as far as we know */
	}
	s->hole_len = MIN(s->len, (uint64_t)next - s->off);
	return 0;
}

int file_status(struct fiber *f, struct node *n, uint64_t off, uint64_t len, bool *ret_hole,
		uint64_t *ret_len)
{
	struct file *fl = node_state(n);
	struct status s = { fl->af.fd, off, len, false, len };
	int ret = fl->af.is_blockdev ? 0 : fiber_work(f, status_work, &s);

	if (ret < 0)
		return ret;
	*ret_hole = s.hole;
	*ret_len = s.hole_len;
	return 0;
}

static int taken_work(void *arg)
{
	struct status *s = arg;
	struct stat st;

	if (fstat(s->fd, &st) < 0)
		return -errno;
	s->len = (uint64_t)st.st_blocks * 512;
	return 0;
}

int file_taken(struct fiber *f, struct node *n, uint64_t *ret)
{
	struct file *fl = node_state(n);
	struct status s = { .fd = fl->af.fd, .len = UINT64_MAX };
	int error = fl->af.is_blockdev ? 0 : fiber_work(f, taken_work, &s);

	*ret = s.len;
	return error;
}

/* ---- changing ---- */

struct truncate {
	int fd;
	uint64_t old_len, len;
	bool preallocate;
	const struct file_hints *hints; /* for a file that is emptied */
	struct varve_error *err;
};

/* Where the file system has no fallocate(): zeroes, written. buf is aligned for O_DIRECT. */
static int fill_zeroes(int fd, void *buf, size_t buf_len, uint64_t off, uint64_t end)
{
	while (off < end) {
		size_t want = MIN(buf_len - off % buf_len, end - off);
		ssize_t n = pwrite(fd, buf, want, (off_t)off);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n < 0 ? -errno : -EIO;
		off += (uint64_t)n;
	}
	return 0;
}

static int reserve_by_writing(const struct truncate *t)
{
	const size_t buf_len = MiB(1);
	int ret, flags = fcntl(t->fd, F_GETFL), fd = t->fd;
	char path[64];
	void *buf;

	/* The old end may lie anywhere, which O_DIRECT would not take: a second descriptor without it. */
	if (flags < 0)
		return -errno;
	if (flags & O_DIRECT) {
		snprintf(path, sizeof(path), "/proc/self/fd/%d", t->fd);
		fd = open(path, O_WRONLY | O_CLOEXEC);
		if (fd < 0)
			return -errno;
	}
	if (posix_memalign(&buf, 4096, buf_len)) {
		ret = -ENOMEM;
	} else {
		memset(buf, 0, buf_len);
		ret = fill_zeroes(fd, buf, buf_len, t->old_len, t->len);
		free(buf);
	}
	if (fd != t->fd) {
		/* A close of this descriptor does not write back for the other: what we wrote must be in the
		 * file. */
		if (!ret && fdatasync(fd) < 0)
			ret = -errno;
		close(fd);
	}
	return ret;
}

/*
 * Space that is not there is not asked for: a file system gives what it has before it says that there is no more, and everybody
 * else on it has none meanwhile. What the file has beyond its end already counts as there.
 */
static int room_for(int fd, uint64_t len)
{
	struct statvfs fs;
	struct stat st;

	if (fstatvfs(fd, &fs) < 0 || fstat(fd, &st) < 0 || !fs.f_blocks)
		return 0; /* not known: try */
	return (len >> 9) > (uint64_t)st.st_blocks + (uint64_t)fs.f_bfree * (fs.f_frsize >> 9) ? -ENOSPC : 0;
}

static int reserve(const struct truncate *t)
{
	int ret = room_for(t->fd, t->len - t->old_len);

	if (ret < 0)
		return ret;
	do {
		ret = fallocate(t->fd, 0, (off_t)t->old_len, (off_t)(t->len - t->old_len)) < 0 ? -errno : 0;
	} while (ret == -EINTR);
	return ret == -EOPNOTSUPP || ret == -ENOSYS ? reserve_by_writing(t) : ret;
}

static int set_len(int fd, uint64_t len)
{
	while (ftruncate(fd, (off_t)len) < 0) {
		if (errno != EINTR)
			return -errno;
	}
	return 0;
}

static int truncate_work(void *arg)
{
	struct truncate *t = arg;
	int ret = file_fd_len(t->fd, false, &t->old_len);

	if (ret < 0)
		return varve_error_errno(t->err, ret, "cannot read the length");
	if (t->preallocate && t->len > t->old_len) {
		ret = reserve(t);
		if (!ret)
			return 0;
		varve_error_errno(t->err, ret, "cannot reserve %llu bytes",
				  (unsigned long long)(t->len - t->old_len));
		(void)set_len(t->fd, t->old_len); /* the error is told already */
		return ret;
	}
	ret = set_len(t->fd, t->len);
	if (ret < 0)
		return varve_error_errno(t->err, ret, "cannot set the length to %llu bytes",
					 (unsigned long long)t->len);
	return t->len ? 0 : file_apply_hints(t->fd, t->hints, t->err);
}

/* A device has the length it has; whatever fits is fine. */
static int truncate_device(struct fiber *f, struct node *n, uint64_t len, struct varve_error *err)
{
	int64_t have = file_get_len(f, n);

	if (have < 0)
		return varve_error_errno(err, (int)have, "cannot read the length");
	if (len > (uint64_t)have)
		return varve_error_set(err, -ENOSPC, "the device has %lld bytes, %llu are needed",
				       (long long)have, (unsigned long long)len);
	return 0;
}

int file_truncate(struct fiber *f, struct node *n, uint64_t len, enum prealloc prealloc, struct varve_error *err)
{
	struct file *fl = node_state(n);
	struct truncate t = { fl->af.fd, 0, len, prealloc != PREALLOC_OFF, &fl->hints, err };
	int ret;

	if (!fl->writable)
		return varve_error_set(err, -EACCES, "open read-only, the length cannot change");
	if (len > VARVE_LEN_MAX)
		return varve_error_set(err, -EFBIG, "a length of %llu bytes is too large",
				       (unsigned long long)len);
	if (fl->af.is_blockdev)
		return truncate_device(f, n, len, err);
	ret = fiber_work(f, truncate_work, &t);
	if (!ret)
		atomic_store_explicit(&n->len, len, memory_order_relaxed);
	return ret;
}

/* ---- growing under other people's writes ---- */

struct extend {
	int fd;
	uint64_t old_len, len;
	uint32_t block_len;
	bool all;
};

static int allocate(int fd, uint64_t off, uint64_t len)
{
	int ret;

	do {
		ret = fallocate(fd, 0, (off_t)off, (off_t)len) < 0 ? -errno : 0;
	} while (ret == -EINTR);
	return ret == -EOPNOTSUPP || ret == -ENOSYS ? -ENOTSUP : ret;
}

/*
 * Allocating makes the file as long, never shorter, and leaves what stands there alone. With O_DIRECT all of it: a write
 * into a hole has the file system look for space while the guest waits, and io_uring hand it to a worker for that; space
 * that is there is found at once. In the page cache the hole costs nothing, because the space is chosen when the pages
 * are written, and for many of them together; there, or where there is no room for all, one block at the new end.
 */
static int extend_work(void *arg)
{
	struct extend *e = arg;
	uint64_t end_len = MIN(e->len, (uint64_t)e->block_len);

	if (e->all && allocate(e->fd, e->old_len, e->len - e->old_len) == 0)
		return 0;
	return allocate(e->fd, e->len - end_len, end_len);
}

int file_extend(struct fiber *f, struct node *n, uint64_t len)
{
	struct file *fl = node_state(n);
	uint64_t old_len = node_len(n);
	struct extend e = { fl->af.fd, old_len, len, MAX(n->align, 4096), fl->af.direct };
	int ret;

	if (!fl->writable || fl->af.is_blockdev)
		return -ENOTSUP;
	if (len > VARVE_LEN_MAX)
		return -EFBIG;
	ret = len > old_len ? fiber_work(f, extend_work, &e) : 0;
	if (ret == 0)
		file_grow(n, len);
	return ret;
}

struct space {
	int fd;
	uint64_t off, len;
};

static int space_work(void *arg)
{
	struct space *s = arg;
	int ret = allocate(s->fd, s->off, s->len);

	/* What else a file system may find wrong with it, the write itself will be told. */
	return ret == -ENOSPC || ret == -EDQUOT ? ret : 0;
}

int file_allocate(struct fiber *f, struct node *n, uint64_t off, uint64_t len)
{
	struct file *fl = node_state(n);
	struct space s = { fl->af.fd, off, len };
	struct get_len g = { fl->af.fd, false, 0 };
	int ret;

	if (!fl->writable || fl->af.is_blockdev || !len)
		return 0;
	ret = fiber_work(f, space_work, &s);
	if (ret == 0 && off + len > node_len(n)) {
		ret = fiber_work(f, get_len_work, &g);
		if (ret == 0)
			file_grow(n, g.len);
	}
	return ret;
}

/* ---- info ---- */

struct usage {
	int fd;
	uint64_t bytes;
	uint32_t extent_hint;
};

static int usage_work(void *arg)
{
	struct usage *u = arg;
	struct stat st;

	if (fstat(u->fd, &st) < 0)
		return -errno;
	u->bytes = (uint64_t)st.st_blocks * 512;
	u->extent_hint = S_ISREG(st.st_mode) ? file_extent_hint(u->fd) : 0;
	return 0;
}

/* The file as a child of an image's; the image itself has what its format says. */
static int own_info(struct node *n, const struct usage *u, json_t *o)
{
	json_t *data;

	if (json_object_get(o, "format-specific") || !json_string_value(json_object_get(o, "format")) ||
	    strcmp(json_string_value(json_object_get(o, "format")), n->drv->name) != 0)
		return 0;
	data = json_object();
	if (u->extent_hint && json_object_set_new(data, "extent-size-hint", json_integer(u->extent_hint)) < 0) {
		json_decref(data);
		return -ENOMEM;
	}
	return json_object_set_new(o, "format-specific", json_pack("{s:s, s:o}", "type", n->drv->name, "data", data));
}

int file_info(struct fiber *f, struct node *n, void *json_image_info, struct varve_error *err)
{
	struct file *fl = node_state(n);
	struct usage u = { fl->af.fd, 0, 0 };
	int ret = fiber_work(f, usage_work, &u);

	if (ret < 0)
		return varve_error_errno(err, ret, "%s: cannot read the disk usage", node_name(n));
	if (json_object_set_new(json_image_info, "actual-size", json_integer((json_int_t)u.bytes)) < 0 ||
	    json_object_set_new(json_image_info, "aio", json_string(fl->af.engine->name)) < 0 ||
	    own_info(n, &u, json_image_info) < 0)
		return varve_error_set(err, -ENOMEM, "%s: out of memory", node_name(n));
	return 0;
}
