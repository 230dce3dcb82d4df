/* SPDX-License-Identifier: MIT */
/*
 * proto/file.h - what the parts of the file driver share
 */
#ifndef VARVE_PROTO_FILE_H
#define VARVE_PROTO_FILE_H

#include "block/node.h"
#include "proto/file_doubt.h"

/* Of a file that is being made (file_hint.c). */
struct file_hints {
	bool nocow, has_extent;
	uint32_t extent; /* has_extent: bytes; 0: none */
};

struct file {
	/* set at open */
	struct aio_file af;
	uint32_t block_len; /* discard and zero take multiples of it: a device's logical block; files: 1 */
	bool writable;
	bool no_flush;
	bool sync;	     /* every write and zeroing is FUA */
	struct doubt *doubt; /* NULL: nothing to sync (read-only, or no_flush) */
	struct file_hints hints; /* home queue, between hint() and the emptying of the file */

	/* any queue, atomically */
	_Atomic bool no_discard; /* the file system said that it cannot, or the options that it shall not */
	_Atomic bool no_clone;	 /* blocks are not shared with other files here */
	_Atomic bool no_zero[2]; /* same; [1]: with AIO_MAY_UNMAP */
};

/* The answer promises that the write is stable. */
static inline bool file_is_fua(const struct file *fl, const struct req *r)
{
	return ((r->flags & REQ_FUA) || fl->sync) && !fl->no_flush;
}

enum file_locking { FILE_LOCKING_AUTO, FILE_LOCKING_ON, FILE_LOCKING_OFF };

/* file.c: the hot path */
void file_submit(struct node *n, struct req *r);
int file_attach(struct node *n, struct queue *q, struct varve_error *err);
int file_wrote(struct file *fl, struct req *r, bool fua); /* it succeeded; returns what it is answered with */
bool file_is_unsupported(int64_t error);
void file_grow(struct node *n, uint64_t end);

/* file_slow.c: what the hot path could not do in one operation; takes the request over */
void file_slow(struct node *n, struct req *r);			  /* all of it */
void file_slow_rest(struct node *n, struct req *r, uint64_t pos); /* read, write: from byte pos of it */
void file_slow_fua(struct node *n, struct req *r, int error);	  /* write: its FUA form failed */

int file_sync_now(struct fiber *f, struct file *fl); /* fl->doubt is there */

/* file_copy.c */
int file_copy_range(struct fiber *f, struct node *src, uint64_t src_off, struct node *dst, uint64_t dst_off,
		    uint64_t len, uint64_t *ret_len);

/* file_open.c */
#define LOCKING_WORDS "auto|on|off"
extern const struct varve_option_info file_open_options[];
int file_open(struct fiber *f, struct node *n, struct opts *o, struct varve_error *err);
int file_open_device(struct fiber *f, struct node *n, struct opts *o, struct varve_error *err);
void file_close(struct fiber *f, struct node *n);

/*
 * file_align.c: worker threads. What O_DIRECT asks of offsets and lengths, and of memory. ask: the kernel,
 * first; tests do without, as on kernels that do not say.
 */
int file_find_align(int fd, bool is_blockdev, bool ask, uint32_t *ret_align, uint32_t *ret_mem_align,
		    struct varve_error *err);
/* Logical block of a block device. */
int file_block_len(int fd, uint32_t *ret_len, struct varve_error *err);

/* file_lock.c: worker threads. Tells other processes what we do with the image, and learns what they do. */
int file_lock(int fd, const char *name, bool writable, enum file_locking locking, struct varve_error *err);
void file_unlock(int fd);

/* file_holder.c: worker threads. "process 12 (name)" of somebody else who has the byte locked; false: not
 * found. fd has a lock itself. */
bool file_find_holder(int fd, uint64_t byte, char *buf, size_t size);

/* file_hint.c */
extern const struct varve_option_info file_options[];
int file_hint(struct node *n, struct opts *o, struct varve_error *err);
int file_apply_hints(int fd, const struct file_hints *h, struct varve_error *err); /* worker threads; the file is empty */
uint32_t file_extent_hint(int fd);						   /* worker threads; 0: none, or not known */

/* file_len.c */
int file_fd_len(int fd, bool is_blockdev, uint64_t *ret_len); /* worker threads */
int64_t file_get_len(struct fiber *f, struct node *n);
int file_taken(struct fiber *f, struct node *n, uint64_t *ret);
int file_status(struct fiber *f, struct node *n, uint64_t off, uint64_t len, bool *ret_hole,
		uint64_t *ret_len);
int file_extend(struct fiber *f, struct node *n, uint64_t len);
int file_allocate(struct fiber *f, struct node *n, uint64_t off, uint64_t len);
int file_truncate(struct fiber *f, struct node *n, uint64_t len, enum prealloc prealloc, struct varve_error *err);
int file_acknowledge(struct node *n, uint64_t *bytes);
void file_inherit_error(struct node *n, int error);
void file_publish_error(struct node *n, _Atomic uint64_t *where);
void file_stats(struct node *n, void *json_stats);
int file_info(struct fiber *f, struct node *n, void *json_image_info, struct varve_error *err);

#endif
