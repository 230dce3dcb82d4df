/* SPDX-License-Identifier: MIT */
/*
 * job/vmstate.h - states of virtual machines: streams into and out of snapshots
 *
 *   vmstate_io.c     pieces: requests that are in flight while the fiber that sent them has gone on
 *   vmstate_write.c  gathers small records in large buffers, several of which are on their way to the disk
 *   vmstate_read.c   reads ahead of who reads on and on
 *
 * Two threads at most: the caller's, which fills or empties the buffer that is at hand, and home, which has all others. A
 * buffer changes hands inside calls that take a fiber, while the caller waits for them.
 */
#ifndef VARVE_JOB_VMSTATE_H
#define VARVE_JOB_VMSTATE_H

#include "block/node.h"
#include "block/snapshot.h"

#define VMSTATE_BUF_LEN MiB(1)
#define VMSTATE_DEPTH_MAX 8
#define VMSTATE_PIECES 64 /* in flight for one stream */
#define VMSTATE_IOV 1000  /* elements of one buffer, below what the kernel takes at once */

/* ---- pieces ---- */

struct vmstate_buf;

struct vmstate_piece {
	struct req r;
	struct vmstate_buf *buf;
	struct iovec *iov; /* malloc'd if the buffer's own cannot be used */
	struct vmstate_piece *next;
};

/* A pool of them, and who waits for one, or for the end of a buffer. */
struct vmstate_io {
	struct node *file;
	struct vmstate_piece *pieces, *free;
	struct waitlist waiting;
};

struct vmstate_buf {
	struct vmstate_io *io;
	uint8_t *mem; /* VMSTATE_BUF_LEN, aligned for any file */
	struct iovec *iov;
	unsigned nr_iov;
	unsigned in_flight; /* pieces */
	int error;	    /* of the first that failed */
};

int vmstate_io_init(struct vmstate_io *io, struct node *file);
void vmstate_io_end(struct vmstate_io *io);
int vmstate_buf_init(struct vmstate_buf *b, struct vmstate_io *io);
void vmstate_buf_end(struct vmstate_buf *b);
/* Sends [pos, pos + len) of the buffer's vector to or from off of the file. Waits for a piece, not for its end. */
int vmstate_send(struct fiber *f, struct vmstate_buf *b, enum req_op op, uint64_t pos, uint64_t len, uint64_t off);
/* Nothing of the buffer is in flight any more. */
void vmstate_wait(struct fiber *f, struct vmstate_buf *b);

/* ---- writing ---- */

struct vmstate_writer;

/* Home. n: the format's node. */
int vmstate_write_open(struct fiber *f, struct node *n, const struct snapshot_want *want, unsigned depth,
		       struct vmstate_writer **ret, struct varve_error *err);
/* The caller's thread: takes as much as fits into the buffer at hand, and says how much. ref: without a copy if it can be. */
size_t vmstate_take(struct vmstate_writer *w, void *buf, size_t len, bool ref, bool give_back);
bool vmstate_full(const struct vmstate_writer *w);
uint64_t vmstate_position(const struct vmstate_writer *w);
/* The caller's thread, between calls that take a fiber: memory of refs that is its own again is told. */
void vmstate_release(struct vmstate_writer *w, void (*released)(void *user_data, void *buf, size_t len), void *user_data);
/* Home: the buffer at hand is sent, another takes its place. The error of any buffer until now. */
int vmstate_write_next(struct fiber *f, struct vmstate_writer *w, struct varve_error *err);
/* Home: the rest is written and the snapshot made; on failure all is given back. vmstate_write_free() comes after it. */
int vmstate_write_close(struct fiber *f, struct vmstate_writer *w, char **ret_id, struct varve_error *err);
void vmstate_write_abort(struct fiber *f, struct vmstate_writer *w);
/* After close or abort, and after the last vmstate_release(). */
void vmstate_write_free(struct vmstate_writer *w);

/* ---- reading ---- */

struct vmstate_reader;

/* Home. */
int vmstate_read_open(struct fiber *f, struct node *n, const struct snapshot_pick *pick, unsigned depth,
		      struct vmstate_reader **ret, uint64_t *ret_len, struct varve_error *err);
/* The caller's thread: so many bytes of the buffer at hand; 0: off is not in it, vmstate_read_seek() is needed. */
size_t vmstate_peek(struct vmstate_reader *r, uint64_t off, const void **ret);
/* Home: the buffer at hand becomes the one with off in it, and what may be wanted next is sent for. */
int vmstate_read_seek(struct fiber *f, struct vmstate_reader *r, uint64_t off, struct varve_error *err);
void vmstate_read_close(struct fiber *f, struct vmstate_reader *r);

#endif
