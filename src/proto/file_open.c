/* SPDX-License-Identifier: MIT */
/*
 * proto/file_open.c - opening and closing a file or block device
 *
 * Owns:    the descriptor, from open() to file_close().
 * Assumes: open(), fstat() and locks may block for long: they run on a worker thread.
 * Never:   opens what is neither a regular file nor a block device: looking at a tape, a watchdog or a
 *          pipe by opening it can change the world or never return.
 */
#include "proto/file.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "base/error.h"
#include "base/log.h"
#include "base/opts.h"
#include "base/words.h"
#include "block/graph.h"
#include "block/wish.h"

struct open_work {
	/* asked */
	const char *filename;
	uint32_t flags; /* NODE_* */
	bool want_device, drop_cache;
	enum file_locking locking;
	struct varve_error *err;

	/* found */
	int fd;
	bool is_blockdev;
	bool is_local, in_memory;
	uint64_t id[2], birth;
	uint64_t len;
	uint32_t align, mem_align, block_len;
};

static const char *type_name(mode_t mode)
{
	return S_ISDIR(mode)	? "a directory"
	       : S_ISCHR(mode)	? "a character device"
	       : S_ISFIFO(mode) ? "a pipe"
	       : S_ISSOCK(mode) ? "a socket"
	       : S_ISREG(mode)	? "a regular file"
				: "of an unknown type";
}

/* A backing file of no length; nothing can be read of it, and nothing waits. */
static bool is_null_device(const struct open_work *w, const struct stat *st)
{
	return S_ISCHR(st->st_mode) && st->st_rdev == makedev(1, 3) && !(w->flags & NODE_WRITABLE) &&
	       !w->want_device;
}

static int check_type(const struct open_work *w, const struct stat *st)
{
	mode_t mode = st->st_mode;

	if (is_null_device(w, st))
		return 0;
	if (w->want_device && !S_ISBLK(mode))
		return varve_error_set(w->err, -ENOTBLK, "is %s; driver host_device takes block devices",
				       type_name(mode));
	if (!S_ISREG(mode) && !S_ISBLK(mode))
		return varve_error_set(w->err, S_ISDIR(mode) ? -EISDIR : -EINVAL,
				       "is %s; only regular files and block devices hold images",
				       type_name(mode));
	return 0;
}

/* Does not wait as pipes and some devices do on open(): the file may have been exchanged since stat(). */
static int open_quickly(const struct open_work *w, int direct)
{
	int how = w->flags & NODE_WRITABLE ? O_RDWR : O_RDONLY, fd;

	do {
		fd = open(w->filename, how | direct | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
	} while (fd < 0 && errno == EINTR);
	return fd < 0 ? -errno : fd;
}

static int open_fd(struct open_work *w)
{
	bool direct = w->flags & NODE_DIRECT;
	int fd = open_quickly(w, direct ? O_DIRECT : 0);

	if (fd == -EINVAL && direct) {
		/* EINVAL has other causes too; the same open without O_DIRECT shows which it was. */
		fd = open_quickly(w, 0);
		if (fd >= 0) {
			close(fd);
			return varve_error_set(
				w->err, -EINVAL,
				"the file system has no direct I/O (O_DIRECT); use another cache mode");
		}
	}
	if (fd < 0)
		return varve_error_errno(w->err, fd, "cannot open%s",
					 w->flags & NODE_WRITABLE ? " for writing" : "");
	w->fd = fd;
	return 0;
}

/* What looks like regular files there are switches, and memory of processes. A name that leads there stands
 * in a crafted image. */
static int check_file_system(const struct open_work *w)
{
	struct statfs st;

	if (fstatfs(w->fd, &st) == 0 &&
	    ((uint32_t)st.f_type == PROC_SUPER_MAGIC || (uint32_t)st.f_type == SYSFS_MAGIC))
		return varve_error_set(w->err, -EINVAL,
				       "is a file of the kernel's (%s), which holds no image",
				       (uint32_t)st.f_type == SYSFS_MAGIC ? "sysfs" : "procfs");
	return 0;
}

/* A write into the page cache asks nobody outside of this kernel. Unknown file systems: no. */
static void look_for_disk(struct open_work *w)
{
	struct statfs st;

	if (fstatfs(w->fd, &st) < 0)
		return;
	switch ((uint32_t)st.f_type) {
	case TMPFS_MAGIC:
	case RAMFS_MAGIC:
		w->in_memory = true;
		/* fall through */
	case EXT4_SUPER_MAGIC: /* ext2 and ext3, too */
	case XFS_SUPER_MAGIC:
	case BTRFS_SUPER_MAGIC:
	case F2FS_SUPER_MAGIC:
		w->is_local = true;
		break;
	default:
		break;
	}
}

/* An inode's number is used again when the file is gone. */
static uint64_t birth_of(int fd)
{
	struct statx sx;

	if (statx(fd, "", AT_EMPTY_PATH, STATX_BTIME, &sx) < 0 || !(sx.stx_mask & STATX_BTIME))
		return 0;
	return (uint64_t)sx.stx_btime.tv_sec * 1000000000u + sx.stx_btime.tv_nsec;
}

/* What was opened, and that it is what we looked at before. */
static int look_at_fd(struct open_work *w)
{
	struct stat st;
	int ret, how;

	if (fstat(w->fd, &st) < 0)
		return varve_error_errno(w->err, -errno, "cannot look at the open file");
	ret = check_type(w, &st);
	if (ret == 0)
		ret = check_file_system(w);
	if (ret < 0)
		return ret;
	/* O_NONBLOCK has done its duty; io_uring would answer EAGAIN with it, not wait for the disk. */
	how = fcntl(w->fd, F_GETFL);
	if (how < 0 || fcntl(w->fd, F_SETFL, how & ~O_NONBLOCK) < 0)
		return varve_error_errno(w->err, -errno, "cannot set the mode of the open file");
	w->is_blockdev = S_ISBLK(st.st_mode);
	if (S_ISREG(st.st_mode))
		look_for_disk(w);
	/* A device may have several names and inodes; no file system has the device number of all ones. */
	w->id[0] = w->is_blockdev ? UINT64_MAX : st.st_dev;
	w->id[1] = w->is_blockdev ? st.st_rdev : st.st_ino;
	w->birth = w->is_blockdev ? 0 : birth_of(w->fd);
	return 0;
}

/* Under the lock: whoever had the file until now, and was waited for, may have made it longer. */
static int find_limits(struct open_work *w)
{
	int ret = file_fd_len(w->fd, w->is_blockdev, &w->len);

	if (ret < 0)
		return varve_error_errno(w->err, ret, "cannot read the length");
	w->align = w->mem_align = w->block_len = 1;
	if (w->is_blockdev)
		ret = file_block_len(w->fd, &w->block_len, w->err);
	if (!ret && (w->flags & NODE_DIRECT))
		ret = file_find_align(w->fd, w->is_blockdev, true, &w->align, &w->mem_align, w->err);
	return ret;
}

static int open_work(void *arg)
{
	struct open_work *w = arg;
	struct stat st;
	int ret;

	if (stat(w->filename, &st) < 0)
		return varve_error_errno(w->err, -errno, "cannot open");
	ret = check_type(w, &st);
	if (!ret)
		ret = open_fd(w);
	if (ret < 0)
		return ret;
	ret = look_at_fd(w);
	if (!ret && !(w->flags & NODE_FORCE_SHARE))
		ret = file_lock(w->fd, w->filename, w->flags & NODE_WRITABLE, w->locking, w->err);
	if (!ret)
		ret = find_limits(w);
	/* Under the lock, for a file that another machine may have written meanwhile: advice, as everything about the page cache. */
	if (!ret && w->drop_cache)
		(void)posix_fadvise(w->fd, 0, 0, POSIX_FADV_DONTNEED);
	if (ret < 0)
		close(w->fd);
	return ret;
}

static int close_work(void *arg)
{
	/* The kernel may keep the file for a moment longer, for a ring that has it. */
	file_unlock(*(int *)arg);
	/* Everything acknowledged was synced before; Linux gives the descriptor back whatever close() says.
	 */
	close(*(int *)arg);
	return 0;
}

const struct varve_option_info file_open_options[] = {
	{ "filename", "file", "the file, or the block device", false },
	{ "locking", LOCKING_WORDS, "locks that other programs see (auto: where the file system has them)", false },
	{ "drop-cache", "bool", "what the page cache holds of it is dropped when it is opened (off)", false },
	{ "aio-max-batch", "num", "0: all that one turn of the event loop brings is submitted at once", false },
	{ "x-check-cache-dropped", "bool", "off: nobody looks", false },
	{ NULL, NULL, NULL, false },
};

static int parse_locking(struct opts *o, enum file_locking *ret, struct varve_error *err)
{
	/* in the order of LOCKING_WORDS */
	static const enum file_locking values[] = { FILE_LOCKING_AUTO, FILE_LOCKING_ON, FILE_LOCKING_OFF };
	const char *text = opts_get(o, "locking");
	int i = text ? words_find(LOCKING_WORDS, text) : 0;

	if (i < 0)
		return varve_error_set(err, -EINVAL, "option 'locking': '%.200s' is none of on, off, auto",
				       text);
	*ret = values[i];
	return 0;
}

/* Options of QEMU's file driver: what they ask for is had, or refused by name. */
static int parse_others(struct opts *o, bool *ret_drop_cache, struct varve_error *err)
{
	uint64_t batch = 0;
	bool check = false;
	int ret = opts_get_bool(o, "drop-cache", ret_drop_cache, err);

	if (ret == 0)
		ret = opts_get_bool(o, "x-check-cache-dropped", &check, err);
	if (ret == 0)
		ret = opts_get_u64(o, "aio-max-batch", &batch, err);
	if (ret < 0)
		return ret;
	if (check)
		return varve_error_set(err, -EINVAL, "option 'x-check-cache-dropped': whether pages have left the page cache is not looked at here; "
						     "leave it out");
	if (batch)
		return varve_error_set(err, -EINVAL, "option 'aio-max-batch': %llu cannot be had: all that one turn of the event loop brings is "
						     "submitted at once (0)", (unsigned long long)batch);
	if (opts_get(o, "pr-manager"))
		return varve_error_set(err, -EINVAL, "option 'pr-manager': persistent reservations are not part of this version; leave it out");
	return 0;
}

static int open_common(struct fiber *f, struct node *n, struct opts *o, bool want_device,
		       struct varve_error *err)
{
	struct open_work w = { .flags = n->flags, .want_device = want_device, .err = err, .fd = -1 };
	struct file *fl = node_state(n);
	const struct aio_engine *engine;
	bool keep_space;
	int ret;

	w.filename = opts_get(o, "filename");
	if (!w.filename && opts_get(o, "filename.0"))
		return varve_error_set(err, -EINVAL, "driver %s: option 'filename' is no list", n->drv->name);
	if (!w.filename || !*w.filename)
		return varve_error_set(err, -EINVAL, "driver %s: option 'filename' is missing", n->drv->name);
	ret = parse_locking(o, &w.locking, err);
	if (ret == 0)
		ret = parse_others(o, &w.drop_cache, err);
	if (ret == 0)
		ret = wish_discard(o, &keep_space, err);
	if (ret < 0)
		return ret;
	engine = aio_engine_choose(opts_get(o, "aio"), n->flags & NODE_DIRECT, err);
	if (!engine)
		return -EINVAL;
	ret = fiber_work(f, open_work, &w);
	if (ret < 0)
		return ret;

	fl->af = (struct aio_file){ .engine = engine,
				    .fd = w.fd,
				    .is_blockdev = w.is_blockdev,
				    .direct = n->flags & NODE_DIRECT,
				    .at_once = w.is_local && !(n->flags & NODE_DIRECT),
				    .in_memory = w.in_memory,
				    .name = node_name(n) };
	fl->block_len = w.block_len;
	fl->writable = n->flags & NODE_WRITABLE;
	fl->no_flush = n->flags & NODE_NO_FLUSH;
	fl->sync = n->flags & NODE_SYNC;
	atomic_init(&fl->no_discard, keep_space);
	atomic_init(&fl->no_zero[1], keep_space); /* zeroes with leave to unmap are made without it */
	ret = engine->file_open ? engine->file_open(&fl->af, err) : 0;
	if (!ret && fl->writable && !fl->no_flush && !(fl->doubt = doubt_new(node_name(n)))) {
		ret = varve_error_errno(err, -ENOMEM, "opening");
		if (engine->file_close)
			engine->file_close(f, &fl->af);
	}
	if (ret < 0) {
		fiber_work(f, close_work, &w.fd);
		return ret;
	}
	n->file_id[0] = w.id[0];
	n->file_id[1] = w.id[1];
	n->file_birth = w.birth;
	n->align = w.align;
	n->mem_align = w.mem_align;
	n->fixed_len = w.is_blockdev;
	n->fua_waits = !(n->flags & NODE_DIRECT); /* the page cache has one writer of a file at a time */
	atomic_store_explicit(&n->len, w.len, memory_order_relaxed);
	log_info("%s: opened for %s, aio=%s, cache=%s%s", node_name(n), fl->writable ? "writing" : "reading",
		 engine->name, cache_mode_name(n->flags), fl->sync ? ", sync=on" : "");
	return 0;
}

int file_open(struct fiber *f, struct node *n, struct opts *o, struct varve_error *err)
{
	return open_common(f, n, o, false, err);
}

int file_open_device(struct fiber *f, struct node *n, struct opts *o, struct varve_error *err)
{
	return open_common(f, n, o, true, err);
}

void file_close(struct fiber *f, struct node *n)
{
	struct file *fl = node_state(n);

	if (fl->af.engine->file_close)
		fl->af.engine->file_close(f, &fl->af);
	fiber_work(f, close_work, &fl->af.fd);
	doubt_free(fl->doubt);
}
