/* SPDX-License-Identifier: MIT */
/*
 * vu_blk.h - block requests over one virtqueue: asynchronous ones, and simple synchronous calls
 *
 * Owns:    a pool of requests, each with its header, status byte and data buffer in guest memory.
 * Assumes: one thread uses a struct vu_blk and, with it, the ring below.
 * Never:   checks a request against the disk's capacity, limits or features: a test may ask for
 *          what is not there.
 *
 * Offsets and lengths are bytes everywhere in this interface, multiples of 512 where the protocol
 * speaks of sectors.
 *
 * Asynchronous:
 *
 *	struct vu_io *io = vu_blk_get(b);		NULL: all are in flight
 *
 *	vu_io_write(io, off, len);			fill io->data[0 .. len)
 *	vu_blk_submit(b, io);				-ENOSPC: the ring is full; reap, try again
 *	vu_blk_kick(b);					once for a whole batch
 *	vu_blk_wait(b, vu_deadline_ns(5000));
 *	n = vu_blk_reap(b, done, max);			done[i]->ret is 0 or -errno
 *	vu_blk_put(b, done[i]);				back into the pool
 */
#ifndef VU_BLK_H
#define VU_BLK_H

#include <linux/virtio_blk.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "vu_front.h"

#define VU_SECTOR	512u
#define VU_IO_MAX_SEGS	160	/* header, data pieces and status of one request */
#define VU_NO_STATUS	0xffu	/* what the status byte holds until the device writes it */

/* How a request is cut into segments when the caller does not do it himself. */
enum vu_layout {
	VU_LAYOUT_PLAIN,	/* header, data (in pieces of blk->seg_len), status */
	VU_LAYOUT_MERGED,	/* the header shares a segment with written data, the status
				 * one with read data: two segments in all */
	VU_LAYOUT_RANDOM,	/* either of these with every part cut at random places, even inside
				 * header and sectors; drawn from blk->layout_seed */
};

/* A range to discard or to zero. */
struct vu_range {
	uint64_t off;
	uint64_t len;
	bool unmap;		/* write zeroes only: the device may free the space */
};

struct vu_io {
	/* Set by vu_blk_open(). */
	struct vu_blk *blk;
	unsigned slot;			/* 0 .. depth-1, for tables beside this one */
	uint8_t *data;			/* blk->buf_len bytes of guest memory, page-aligned */
	uint64_t data_addr;		/* the same as the guest sees it */
	uint8_t *meta;			/* header and status when they stand apart from the data */
	uint64_t meta_addr;

	/* Set by vu_io_*(). A test may change them, and *hdr, before it submits. */
	struct virtio_blk_outhdr *hdr;
	uint8_t *status;
	uint32_t data_len;		/* bytes of data in either direction */
	unsigned nr_segs;
	struct vu_seg segs[VU_IO_MAX_SEGS];

	/* Set when vu_blk_reap() returns the request. */
	int ret;			/* 0; -EIO; -ENOTSUP; -EPROTO: no or an unknown status */
	uint8_t dev_status;		/* the status byte itself */
	uint32_t written;		/* bytes the device says that it wrote, status included */
};

struct vu_blk {
	/* Set by vu_blk_open(). */
	struct vu_front *front;
	struct vu_ring *ring;
	unsigned depth;
	uint32_t buf_len;
	struct vu_io *ios;

	/* May be changed at any time. */
	enum vu_layout layout;
	uint32_t seg_len;		/* longest data segment in bytes; 0: no limit */
	uint64_t layout_seed;
	unsigned timeout_ms;		/* for each request of a synchronous call; 10 s at first */

	struct vu_io **pool;		/* a stack of the requests that are not in use */
	unsigned nr_pool;
	struct vu_err err;
};

/*
 * Prepare queue q of a front end (initialised, not necessarily connected) for up to depth
 * requests in flight, each with a buffer of buf_len bytes (rounded up to 4096).
 */
int vu_blk_open(struct vu_blk *b, struct vu_front *f, unsigned q, unsigned depth,
		uint32_t buf_len);

/* Drop the pool. Guest memory stays taken until the front end is closed. Takes a zeroed b. */
void vu_blk_free(struct vu_blk *b);

/* Bytes of guest memory that vu_blk_open() takes at most: for vu_front_opts.mem_len. */
uint64_t vu_blk_mem_len(unsigned depth, uint32_t buf_len);

/* ---- asynchronous requests ------------------------------------------------------------------- */

struct vu_io *vu_blk_get(struct vu_blk *b);
void vu_blk_put(struct vu_blk *b, struct vu_io *io);

/* Make io a request of this kind. len is at most blk->buf_len, nr at most buf_len / 16. */
void vu_io_read(struct vu_io *io, uint64_t off, uint32_t len);
void vu_io_write(struct vu_io *io, uint64_t off, uint32_t len);
void vu_io_flush(struct vu_io *io);
void vu_io_get_id(struct vu_io *io);
void vu_io_discard(struct vu_io *io, const struct vu_range *ranges, unsigned nr);
void vu_io_write_zeroes(struct vu_io *io, const struct vu_range *ranges, unsigned nr);

/*
 * Any request type with any data: data_len bytes of io->data are read or written by the device.
 * The segments follow blk->layout; io->segs and io->nr_segs may be rewritten afterwards.
 */
void vu_io_any(struct vu_io *io, uint32_t type, uint64_t sector, uint32_t data_len,
	       bool dev_writes);

int vu_blk_submit(struct vu_blk *b, struct vu_io *io);
int vu_blk_kick(struct vu_blk *b);

/* As vu_ring_wait(), vu_ring_reap(). */
int vu_blk_wait(struct vu_blk *b, uint64_t deadline_ns);
int vu_blk_reap(struct vu_blk *b, struct vu_io **done, unsigned max);

/* ---- synchronous calls; -EBUSY while asynchronous requests are in flight --------------------- */

/* Any length; cut into requests of at most blk->buf_len bytes, one after the other. */
int vu_blk_read(struct vu_blk *b, uint64_t off, void *buf, size_t len);
int vu_blk_write(struct vu_blk *b, uint64_t off, const void *buf, size_t len);
int vu_blk_flush(struct vu_blk *b);
/* id gets VIRTIO_BLK_ID_BYTES bytes, padded with NULs, and one NUL more. */
int vu_blk_get_id(struct vu_blk *b, char id[VIRTIO_BLK_ID_BYTES + 1]);
/* One request with one range each. */
int vu_blk_discard(struct vu_blk *b, uint64_t off, uint64_t len);
int vu_blk_write_zeroes(struct vu_blk *b, uint64_t off, uint64_t len, bool unmap);
/* Submit what vu_io_*() prepared, wait for it, and return its result; io stays the caller's. */
int vu_blk_run(struct vu_blk *b, struct vu_io *io);

/* ---- what the device says of itself ---------------------------------------------------------- */

struct vu_blk_limits {
	uint64_t capacity;		/* bytes */
	uint32_t block_len;		/* bytes; 512 without VIRTIO_BLK_F_BLK_SIZE */
	uint32_t max_seg_len;		/* bytes of one data segment; UINT32_MAX: no limit */
	uint32_t max_segs;		/* data segments of one request; UINT32_MAX: no limit */
	uint32_t nr_queues;
	bool read_only, has_flush, has_discard, has_write_zeroes, may_unmap;
	uint64_t max_discard_len;	/* bytes of one range */
	uint32_t max_discard_ranges;
	uint64_t discard_align;		/* bytes */
	uint64_t max_zeroes_len;
	uint32_t max_zeroes_ranges;
};

/* From the features and the configuration found by vu_front_negotiate(). */
void vu_blk_limits(const struct vu_front *f, struct vu_blk_limits *ret_limits);

#endif
