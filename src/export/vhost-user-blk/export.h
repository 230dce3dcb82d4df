/* SPDX-License-Identifier: MIT */
/*
 * vhost-user-blk/export.h - what the rest of varve calls: start and stop one served disk
 */
#ifndef VARVE_VUBLK_EXPORT_H
#define VARVE_VUBLK_EXPORT_H

#include "aio/queue.h"
#include "block/node.h"
#include "export/vhost-user-blk/stats.h"

struct vublk;

/*
 * Serves node top on a unix socket. Called by a thread that runs none of the queues; returns when the socket
 * listens. The export attaches the queues to the node itself. control and the queues have threads of their
 * own.
 */
int vublk_start(struct vublk **ret, struct node *top, const struct varve_vhost_user_blk_options *opts,
		struct queue *control, struct queue *const *queues, unsigned nr_queues,
		struct varve_error *err);

/*
 * No request is taken from any queue until vublk_resume(), whoever is or will be connected; returns when those in flight are
 * done. Any thread that runs none of the queues, one at a time. Stopping ends it too.
 */
void vublk_pause(struct vublk *v);
void vublk_resume(struct vublk *v);
/* The same, unless an error has stopped the disk, or does before all is done: then nothing has changed. 0, or that negative errno. */
int vublk_pause_unless_stopped(struct vublk *v);

struct vublk_queue_stats {
	bool running, broken;
	unsigned nr_breaks; /* in this session */
	uint64_t nr_kicks, nr_calls;
	struct queue_turns loop; /* of the queue that runs it */
	struct blk_stats done;
};

struct vublk_stats {
	const char *socket_path;
	bool connected, paused, writeback, memory_lost;
	uint64_t nr_sessions, features, protocol_features;
	unsigned nr_regions, nr_queues;
	struct vublk_queue_stats queue[]; /* nr_queues */
};

/* Any thread that runs none of the queues. The caller frees it; NULL: no memory. */
struct vublk_stats *vublk_get_stats(struct vublk *v);

/*
 * Another image takes the place of the one that is served; the export is paused. What the front end sees of the disk is the new
 * one's, of which it is told if the length is another. On failure the old one stays. As vublk_pause().
 */
int vublk_set_node(struct vublk *v, struct node *top, struct varve_error *err);

/* Those of a session that has still to come; 0: there is one. As vublk_get_stats(). */
unsigned vublk_descriptors_to_come(struct vublk *v);

/* A duplicate of the listening socket, or a negative errno. */
int vublk_socket(const struct vublk *v);
/* Its name stays when the export is stopped. */
void vublk_leave_socket(struct vublk *v);

/* No new requests; waits for those in flight; removes the socket; detaches the queues. Does not flush. */
void vublk_stop(struct vublk *v);

#endif
