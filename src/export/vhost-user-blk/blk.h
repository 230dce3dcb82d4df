/* SPDX-License-Identifier: MIT */
/*
 * vhost-user-blk/blk.h - virtio-blk: a chain of buffers becomes requests to the disk, and a status byte
 *
 * Owns:    the slot of a request while it is being worked on.
 * Assumes: the chain is sound (vring.h) and the slot's iov describes it; everything on the ring's queue.
 * Never:   reads a byte of the guest twice; writes outside the buffers that the guest made writable.
 *
 * docs/spec/virtio-blk.md, "Requests".
 */
#ifndef VARVE_VUBLK_BLK_H
#define VARVE_VUBLK_BLK_H

#include "base/bytes.h"
#include "block/node.h"
#include "export/vhost-user-blk/dirty_log.h"
#include "export/vhost-user-blk/stats.h"
#include "export/vhost-user-blk/vring.h"

/* Features of the device that we know, by bit. */
#define BLK_F_SEG_MAX 2
#define BLK_F_RO 5
#define BLK_F_BLK_SIZE 6
#define BLK_F_FLUSH 9
#define BLK_F_TOPOLOGY 10
#define BLK_F_CONFIG_WCE 11
#define BLK_F_MQ 12
#define BLK_F_DISCARD 13
#define BLK_F_WRITE_ZEROES 14
#define BLK_F_INDIRECT_DESC 28
#define BLK_F_EVENT_IDX 29
#define BLK_F_VERSION_1 32
#define BLK_F_RING_PACKED 34
#define BLK_F_IN_ORDER 35

#define BLK_ID_LEN 20
#define BLK_SECTOR_LEN 512u
#define BLK_SECTOR_BITS 9

/*
 * Buffers of one request, header and status included. More than SEG_MAX tells the driver, because nothing but
 * good sense keeps it from cutting a header into pieces.
 */
#define BLK_IOV_MAX 256

/* Limits of discard and write zeroes, which the configuration tells the driver and blk.c enforces. */
#define BLK_RANGES_MAX 256
#define BLK_RANGE_SECTORS_MAX (1u << 21) /* 1 GiB */

enum blk_status { BLK_OK = 0, BLK_IOERR = 1, BLK_UNSUPP = 2 };

/* A part of the disk to discard or to zero, as the guest writes it. */
struct blk_range {
	le64 sector;
	le32 nr_sectors;
	le32 flags;
};

/* What is being served, the same for all rings and sessions. */
struct blk_disk {
	struct node *top;
	bool writable;
	bool in_order; /* VIRTIO_F_IN_ORDER is offered */
	bool fixed_cache; /* CONFIG_WCE is not */
	uint8_t id[BLK_ID_LEN]; /* NUL-padded */
};

/* What the requests of one ring have in common; fixed while the ring runs. */
struct blk_ctx {
	const struct blk_disk *disk;
	struct queue *q;
	uint64_t features;	  /* negotiated */
	bool writethrough;	  /* the driver asked for it: what completes is stable */
	uint32_t write_flags;	  /* of every write: REQ_FUA when it must be stable at once */
	const struct memlog *log; /* what we write of the guest's memory is marked there; NULL: nowhere */
	const struct gmem *mem;
	struct blk_stats stats; /* since the export was started */
};

/* A request of the guest, from vring_chain() to blk_finished(). */
struct blk_slot {
	struct req req;
	struct blk_ctx *ctx;
	volatile uint8_t *status;
	uint32_t written; /* when it succeeds: bytes written, without a gap, from the first writable one on */
	uint32_t in_len;  /* writable bytes, with the status */
	uint16_t index; /* in the ring's slots */
	uint16_t in_first, nr_in; /* where these are in iov, as long as it is not used for ranges */
	bool busy;
	bool finished; /* with IN_ORDER: waits for those taken before it */
	struct blk_count *count; /* of its class, in ctx->stats */
	uint64_t start_ns; /* of the turn that took it */
	uint64_t bytes;	   /* that it is about */

	/* discard, write zeroes: ranges done one after the other */
	enum req_op range_op;
	bool submitting, answered;
	uint16_t nr_ranges, next_range;
	int ret;

	union {
		struct iovec iov[BLK_IOV_MAX];
		struct blk_range range[BLK_RANGES_MAX]; /* instead of the buffers that they came in */
	};
};

static_assert(sizeof(struct blk_range) == 16, "see the spec");

/*
 * A driver that cannot flush, or that asked for it, takes what is acknowledged for durable. Without FUA a power cut would
 * take back writes that a file system has built upon, with nobody to notice.
 */
static inline uint32_t blk_write_flags(const struct blk_ctx *ctx)
{
	return ctx->features >> BLK_F_FLUSH & 1 && !ctx->writethrough ? 0 : REQ_FUA;
}

/*
 * Begins the request in s->iov. It ends in blk_finished(), perhaps before this returns. Returns NULL, or what
 * is wrong with a chain that cannot be answered at all.
 */
const char *blk_begin_parts(struct blk_slot *s, unsigned nr_out, unsigned nr_in, uint32_t out_len, uint32_t in_len);

static inline const char *blk_begin(struct blk_slot *s, const struct vring_chain *chain)
{
	return blk_begin_parts(s, chain->nr_out, chain->nr_in, chain->out_len, chain->in_len);
}

/* Given by the ring: the status byte is written; written bytes of the chain may be told to the driver. */
void blk_finished(struct blk_slot *s, uint32_t written);

/* ---- config.c: the device's features and its configuration space ---- */

uint64_t blk_features(const struct blk_disk *disk);

/* Fills the whole configuration space that a message can carry; zero where no field is. */
void blk_config(const struct blk_disk *disk, unsigned nr_rings, unsigned num_max, bool writeback,
		uint8_t space[UMSG_CONFIG_MAX]);

/* The one field of it that the driver may write, a byte. */
#define BLK_CONFIG_WRITEBACK 32u

#endif
