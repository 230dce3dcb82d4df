/* SPDX-License-Identifier: MIT */
/*
 * api/api.h - the objects behind the public interface, shared by the files of api/
 *
 *   queue.c    queues, asynchronous requests and their completions
 *   image.c    opening and closing, attaching queues, what an image says of itself
 *   io.c       synchronous requests
 *   map.c      map and check
 *   info.c     ImageInfo and statistics as JSON
 *   bitmap.c   persistent dirty bitmaps
 *   convert.c  contents of images into another one
 *   create.c   new images
 *   change.c   another length, another backing file, other options, no contents
 *   debug.c    break points
 *   stream.c   pulling in a backing chain
 *   snapshot.c internal snapshots
 *   vmstate.c  states of virtual machines in them
 *   measure.c  how large a new image will be
 *   export.c   serving an image
 *
 * Assumes: callers keep the thread rules of varve.h; what can be checked cheaply is checked, and refused in words.
 * Never:   does I/O itself; everything goes through block/.
 */
#ifndef VARVE_API_API_H
#define VARVE_API_API_H

#include <pthread.h>
#include <stdatomic.h>
#include <sys/queue.h>

#include "aio/fiber.h"
#include "aio/queue.h"
#include "base/error.h"
#include "block/graph.h"
#include "block/node.h"
#include "block/req.h"

#define API_DEPTH_DEFAULT 128
#define API_DEPTH_MAX 4096
#define API_POLL_NS_MAX UINT64_C(1000000000)
#define API_IOV_MAX 1024 /* elements in one request's vector, as IOV_MAX of the kernel */

/* One asynchronous request: free, in flight, or done and waiting to be reaped. */
struct api_slot {
	struct req req;
	struct varve_queue *queue;
	struct varve_image *image; /* valid while in flight only */
	void *user_data;
	int result;
	STAILQ_ENTRY(api_slot) link; /* in free or done */
};

STAILQ_HEAD(api_slots, api_slot);

struct varve_queue {
	/* set when made */
	struct queue *q;
	bool has_thread, one_thread;
	unsigned depth;		/* 0: no asynchronous requests (a thread of its own, or private to an image) */
	struct api_slot *slots; /* depth of them */

	/* the thread that runs the queue */
	struct api_slots free, done;

	/* any thread, atomically */
	_Atomic unsigned users; /* images and exports that use the queue */
};

struct varve_image {
	/* set at open */
	struct node *top;
	struct varve_queue *home;
	bool private_home; /* made by the image; the callers of synchronous calls run it, one after the other */

	pthread_mutex_t turn;	/* private_home: whose turn it is to run it */
	_Atomic unsigned users; /* further queues attached, and exports */
	_Atomic bool streaming;
	bool reports; /* whatever werror= says: varve_image_set_waiting() */
};

/* A queue without thread for one image or one call; it has no slots. */
int api_private_queue(struct varve_queue **ret, struct varve_error *err);

/* Runs fn on a fiber of the image's home queue and waits for its result. */
int api_call(struct varve_image *image, int (*fn)(struct fiber *f, void *arg), void *arg);

/*
 * After api_call() with a function that left I/O under way: what it has queued goes to the kernel now, and not when the queue
 * is run next.
 */
void api_send(struct varve_image *image);

/* Makes the descriptor of a queue readable if there are completions to reap. */
void api_announce(struct varve_queue *queue);

/* Can its format compress? */
static inline bool api_packs(const struct varve_image *image)
{
	const struct node *n = image->top;

	while (n->drv->kind == DRIVER_FILTER)
		n = n->file;
	return n->drv->pack && !n->data;
}

/* Waits until none of the asynchronous requests in flight on the queue belongs to the image. */
void api_finish(struct varve_queue *queue, struct varve_image *image);

/* 0, or -EINVAL / -EACCES in words: does a request fit the image? */
int api_check_request(const struct varve_image *image, enum req_op op, uint64_t off, uint64_t len,
		      struct varve_error *err);

/* The image's format, below filters that stand on it. */
struct node *api_format_node(struct varve_image *image);
/* Is what the image would find under that name the local file in which it is itself? Not opened, only looked at. */
bool api_is_own_backing(const struct node *disk, const char *backing);
int api_no_snapshots(struct varve_image *image, struct varve_error *err);
struct snapshot_want;
/* Checks and translates; the strings stay the caller's. */
int api_snapshot_want(struct varve_image *image, const struct varve_snapshot_options *so, struct snapshot_want *ret,
		      struct varve_error *err);

#endif
