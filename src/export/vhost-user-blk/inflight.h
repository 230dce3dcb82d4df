/* SPDX-License-Identifier: MIT */
/*
 * vhost-user-blk/inflight.h - the area in which requests in flight outlive this process
 *
 * Owns:    the mapping of the area. The memory itself belongs to the front end, which keeps its descriptor.
 * Assumes: everything here runs on the control thread; the rings use a region while they run (track.h).
 * Never:   believes a number of the front end, or maps memory that somebody could still make shorter.
 *
 * The area has a region for each queue, all of one length: room for the larger of the two layouts, because
 * the front end may ask for the area before it is settled which kind of ring there will be.
 *
 * docs/spec/vhost-user.md, "Requests in flight".
 */
#ifndef VARVE_VUBLK_INFLIGHT_H
#define VARVE_VUBLK_INFLIGHT_H

#include <assert.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

/* inflight_*_region.version: no request was ever recorded; recorded in this layout. */
#define INFLIGHT_FRESH 0
#define INFLIGHT_VERSION 1

/* ---- what is in the area, in native byte order ---- */

/* Beside a descriptor of a split ring. All but "next" count only where it is the head of a request. */
struct inflight_split_desc {
	uint8_t inflight; /* 1: the request was taken, and not shown as used */
	uint8_t padding[5];
	uint16_t next;	  /* the head that was used before this one in the last batch */
	uint64_t counter; /* the order in which requests were taken */
};

struct inflight_split_region {
	uint64_t features; /* none are defined */
	uint16_t version;
	uint16_t desc_num; /* the size of the ring */
	uint16_t last_batch_head;
	uint16_t used_idx; /* of the used ring, when the last batch was done with */
	struct inflight_split_desc desc[];
};

/* A copy of a descriptor of a packed ring, in whose place others may stand by now. */
struct inflight_packed_desc {
	uint8_t inflight; /* these counted on the head of a request only: inflight, last, num, counter */
	uint8_t padding;
	uint16_t next; /* the next of this request, or the next free one */
	uint16_t last; /* of this request */
	uint16_t num;  /* descriptors of this request */
	uint64_t counter;
	uint16_t id, flags;
	uint32_t len;
	uint64_t addr;
};

struct inflight_packed_region {
	uint64_t features;
	uint16_t version;
	uint16_t desc_num;
	uint16_t free_head, old_free_head;
	uint16_t used_idx, old_used_idx; /* "old": before the batch that is being shown as used */
	uint8_t used_wrap_counter, old_used_wrap_counter;
	uint8_t padding[7];
	struct inflight_packed_desc desc[];
};

static_assert(sizeof(struct inflight_split_desc) == 16, "see the spec");
static_assert(offsetof(struct inflight_split_desc, next) == 6, "see the spec");
static_assert(offsetof(struct inflight_split_region, desc) == 16, "see the spec");
static_assert(sizeof(struct inflight_packed_desc) == 32, "see the spec");
static_assert(offsetof(struct inflight_packed_region, used_wrap_counter) == 20, "see the spec");
static_assert(offsetof(struct inflight_packed_region, desc) == 32, "see the spec");

/*
 * Ours alone, behind the last region of an area that we made: what the guest has chosen and only a back end knows. Others never
 * look at it. In the area, because that is what comes back from a front end when a back end has died.
 */
struct inflight_note {
	uint8_t magic[8];      /* "varvenot" */
	uint32_t writethrough; /* 1: the guest has switched the write cache off */
	uint32_t unused;
};

/* ---- the area ---- */

struct inflight {
	uint8_t *map; /* whole pages; NULL: none, no ring records anything */
	struct inflight_note *note; /* in the map; NULL: the area is of somebody who has none */
	size_t map_len;
	uint8_t *area; /* region 0 */
	unsigned nr_queues, queue_size;
};

/*
 * Makes an area for nr_queues rings of up to queue_size descriptors, with nothing in it, for the front end
 * (GET_INFLIGHT_FD). *ret_fd is the caller's, to send and to close; the area begins at offset 0 of it and has
 * *ret_mmap_size bytes.
 */
int inflight_create(unsigned nr_queues, unsigned queue_size, int *ret_fd, uint64_t *ret_mmap_size,
		    struct varve_error *err);

/*
 * Maps the area that the front end brings (SET_INFLIGHT_FD), made by us or by one that was here before us. No
 * ring runs. On failure *a is untouched, else what it had is unmapped. fd stays the caller's.
 */
int inflight_map(struct inflight *a, int fd, uint64_t mmap_size, uint64_t mmap_off, unsigned nr_queues,
		 unsigned queue_size, struct varve_error *err);

/* No ring runs. Does nothing if there is no area. */
void inflight_close(struct inflight *a);

/* The region of a queue; NULL if there is no area, or none for this queue. */
void *inflight_region(const struct inflight *a, unsigned queue);

/* What the note says: false where there is none. And to write it, where there is one. */
bool inflight_writethrough(const struct inflight *a);
void inflight_note_writethrough(struct inflight *a, bool writethrough);

/* The queue is off, with nothing in flight, and its front end decides where it goes on. */
void inflight_forget(struct inflight *a, unsigned queue);

#endif
