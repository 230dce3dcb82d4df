/* SPDX-License-Identifier: MIT */
/*
 * vu_front.h - a vhost-user front end: plays the virtual machine monitor before a back end
 *
 * Owns:    the connection, the guest memory and the rings of one device.
 * Assumes: one thread at a time calls the functions here; the rings may be in use by other
 *          threads meanwhile, except the one being started or stopped.
 * Never:   knows about block requests (vu_blk.h), prints, exits, or includes anything of varve.
 *
 * The whole way in one call:
 *
 *	struct vu_front f;
 *	struct vu_front_opts o = vu_front_defaults(path);
 *
 *	o.nr_queues = 2;
 *	if (vu_front_open(&f, &o) < 0)
 *		fail_msg("%s", f.err.text);
 *	... f.ring[0], f.ring[1]; usually through vu_blk_open() ...
 *	vu_front_close(&f);
 *
 * or step by step, for tests that stop half-way or do a step wrongly: vu_front_init(), _connect(),
 * _negotiate(), _share_memory(), _start_queue() for each, in this order. Every function returns 0
 * or -errno with the reason in f->err.text. vu_front_close() is right after any of them, failed
 * or not, and closes the connection without a word; _stop_queue() is the polite way before it.
 */
#ifndef VU_FRONT_H
#define VU_FRONT_H

#include <stdbool.h>
#include <stdint.h>

#include "vu_mem.h"
#include "vu_msg.h"
#include "vu_ring.h"
#include "vu_util.h"

#define VU_MAX_QUEUES	256
#define VU_BLK_CONFIG	60u	/* bytes of configuration fetched: all up to write zeroes */

struct vu_front_opts {
	const char *path;		/* the back end's unix socket */
	unsigned nr_queues;		/* 1 .. VU_MAX_QUEUES */
	uint16_t queue_len;		/* descriptors of each ring, a power of two */
	uint16_t table_len;		/* descriptors of each indirect table; 0: no tables */
	uint64_t mem_len;		/* bytes of guest memory beside the rings */
	unsigned nr_regions;		/* 1 .. VU_MAX_REGIONS pieces of guest memory */
	uint64_t features;		/* virtio features to take when offered */
	uint64_t protocol_features;	/* vhost-user features to take when offered */
	unsigned timeout_ms;		/* for every message's answer */
	enum vu_indirect indirect;	/* used only if VIRTIO_RING_F_INDIRECT_DESC is negotiated */
	bool spin;			/* poll for completions instead of waiting for a call */
};

struct vu_front {
	struct vu_front_opts opts;
	int sock;			/* -1: not connected */
	int inflight_fd;		/* where the back end keeps what it has in flight; -1: nowhere */
	struct vu_inflight_msg inflight;
	struct vu_mem mem;
	struct vu_ring *ring;		/* opts.nr_queues of them */
	uint64_t dev_features;		/* what the back end offered ... */
	uint64_t features;		/* ... and what was taken */
	uint64_t dev_protocol_features;
	uint64_t protocol_features;
	uint64_t dev_queues;		/* queues the back end has; 1 without PROTOCOL_F_MQ */
	uint8_t config[VU_BLK_CONFIG];	/* the device's configuration when it was negotiated */
	struct vu_err err;
};

/* One queue of 128, 16 MiB in one region, all block features, no time-out shorter than 10 s. */
struct vu_front_opts vu_front_defaults(const char *path);

static inline bool vu_has(uint64_t features, unsigned bit)
{
	return features >> bit & 1;
}

/* All the steps below, ending with every queue started. */
int vu_front_open(struct vu_front *f, const struct vu_front_opts *opts);
void vu_front_close(struct vu_front *f);

/* Make guest memory and rings. No connection yet. */
int vu_front_init(struct vu_front *f, const struct vu_front_opts *opts);

/*
 * Connect to opts.path. After vu_front_disconnect() this can be done again, with the steps after
 * it: memory and rings are as they were. With an area for requests in flight the back end knows which
 * ones it still owes; without, a queue goes on behind the last request reaped. So requests that had
 * no answer yet are offered again, which is right only if the device had finished none out of order;
 * vu_ring_reset() forgets them instead.
 */
int vu_front_connect(struct vu_front *f);
void vu_front_disconnect(struct vu_front *f);

/* Features, protocol features, number of queues, owner, device configuration. */
int vu_front_negotiate(struct vu_front *f);

/* SET_MEM_TABLE with all regions of f->mem. */
int vu_front_share_memory(struct vu_front *f);

/*
 * With PROTOCOL_F_INFLIGHT_SHMFD: let the back end make an area for its requests in flight, the first time;
 * give it back to whichever back end is connected, each time. vu_front_open() does both.
 */
int vu_front_share_inflight(struct vu_front *f);

/* Give queue q to the back end: size, base, addresses, eventfds, enable. */
int vu_front_start_queue(struct vu_front *f, unsigned q);

/*
 * Take queue q back (GET_VRING_BASE): the back end answers when it touches the ring no more.
 * *ret_base (may be NULL): where it stopped, as vu_ring_end().
 */
int vu_front_stop_queue(struct vu_front *f, unsigned q, uint32_t *ret_base);

/* Enable or disable a started queue. */
int vu_front_enable_queue(struct vu_front *f, unsigned q, bool enable);

/* Read or write len bytes (at most VU_CONFIG_LEN) of device configuration at off. */
int vu_front_get_config(struct vu_front *f, uint32_t off, void *buf, uint32_t len);
int vu_front_set_config(struct vu_front *f, uint32_t off, const void *buf, uint32_t len,
			uint32_t flags);

/* A region more, or less, while the session goes on (CONFIGURE_MEM_SLOTS). */
int vu_front_add_region(struct vu_front *f, const struct vu_region_msg *region, int fd);
int vu_front_remove_region(struct vu_front *f, const struct vu_region_msg *region);

/* A query whose answer is a number. fd: sent along, -1 for none. */
int vu_front_query_u64(struct vu_front *f, uint32_t request, const void *payload, uint32_t len, int fd,
		       uint64_t *ret_value);

/*
 * Send any message that has no answer of its own; with REPLY_ACK negotiated its acknowledgement
 * is asked for and awaited, and -EREMOTEIO says that the back end refused.
 */
int vu_front_request(struct vu_front *f, uint32_t request, const void *payload, uint32_t len,
		     const int *fds, unsigned nr_fds);

/* Send any message that is answered, and receive the answer; its head is checked. */
int vu_front_query(struct vu_front *f, uint32_t request, const void *payload, uint32_t len,
		   struct vu_msg *reply);

#endif
