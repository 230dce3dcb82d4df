/* SPDX-License-Identifier: MIT */
/*
 * vhost-user-blk/session.h - the conversation with one front end
 *
 * Owns:    the connection, the memory table, the negotiated features, and the rings' control side.
 * Assumes: everything here runs on the control queue.
 * Never:   waits: a front end that is slow, silent or gone in the middle of a message holds up nobody else.
 *          Processes a message while an earlier one still waits for a ring.
 *
 *	     session_open()          message              stopped             started
 *	 CLOSED ────────▶ READING ───────────▶ QUIESCING ────────▶ RESUMING ──────────┐
 *	   ▲                 ▲           (rings that it   apply()  (rings that should │
 *	   │                 │            concerns)                 run, orders)      │ answer
 *	   │                 ├────────────────────────────────────────────────────────┤
 *	   │                 └── sent ── WRITING ◀── it does not fit the socket ──────┘
 *	   └─── all rings ── CLOSING ◀── end of file, broken rule, session_close(): from any state, as soon
 *	         stopped                 as no ring owes an answer
 */
#ifndef VARVE_VUBLK_SESSION_H
#define VARVE_VUBLK_SESSION_H

#include "export/vhost-user-blk/inflight.h"
#include "export/vhost-user-blk/mem.h"
#include "export/vhost-user-blk/msg.h"
#include "export/vhost-user-blk/ring.h"

enum session_state {
	SESSION_CLOSED,
	SESSION_READING,
	SESSION_QUIESCING,
	SESSION_RESUMING,
	SESSION_WRITING,
	SESSION_CLOSING,
};

/* The longest answer: a header and a configuration space. */
#define SESSION_ANSWER_MAX (sizeof(struct umsg_header) + sizeof(struct umsg_config))

struct session {
	/* set by session_init() */
	const char *name; /* of the export, for the log */
	const struct blk_disk *disk;
	struct queue *control;
	unsigned num_max; /* the largest ring */
	unsigned nr_rings;
	struct ring *rings;
	void (*closed)(struct session *s); /* state CLOSED is reached again */
	dev_t eventfd_dev;		   /* what an eventfd looks like to fstat() */
	ino_t eventfd_ino;

	enum session_state state;
	struct watch watch;
	bool watching;
	bool doomed;	     /* close as soon as the rings have answered */
	unsigned nr_waiting; /* answers of rings to come */
	unsigned nr_refused; /* messages, in this session */

	uint64_t features, protocol_features;
	bool has_features; /* SET_FEATURES came */
	struct gmem mem;
	struct inflight inflight; /* what SET_INFLIGHT_FD brought; changed only while no ring runs */

	/* the message being processed */
	struct umsg msg;
	bool need_reply;
	int result; /* of the message: 0 or a negative errno, with the reason in err */
	struct varve_error err;

	uint8_t answer[SESSION_ANSWER_MAX];
	size_t answer_len, answer_sent; /* answer_len 0: none */
};

/* queues: ring i runs on queues[i % nr_queues]. All of disk, name and queues outlive the session. */
int session_init(struct session *s, const char *name, const struct blk_disk *disk, struct queue *control,
		 struct queue *const *queues, unsigned nr_queues, unsigned nr_rings, unsigned num_max,
		 void (*closed)(struct session *s), struct varve_error *err);

/* The session is closed. */
void session_free(struct session *s);

/* Takes over a connected socket, which is in non-blocking mode. The session is closed. */
void session_open(struct session *s, int fd);

/* Ends the conversation; s->closed() follows, at once if nothing is in the way. */
void session_close(struct session *s);

#endif
