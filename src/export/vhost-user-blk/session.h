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
 *	   │                 ├── sent ── WRITING ◀── it does not fit the socket ──────┘
 *	   │                 └──────── TURNING: session_pause(), session_resume(), from READING or WRITING, or
 *	   │                           when one of these is reached; back when the rings have stopped, or started
 *	   └─── all rings ── CLOSING ◀── end of file, broken rule, session_close(): from any state, as soon
 *	         stopped                 as no ring owes an answer
 */
#ifndef VARVE_VUBLK_SESSION_H
#define VARVE_VUBLK_SESSION_H

#include "export/vhost-user-blk/dirty_log.h"
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
	SESSION_TURNING,
	SESSION_CLOSING,
};

/* Descriptors that a session keeps: its connection and the back-end channel; and one ring of it: kick, call, error. */
#define SESSION_FDS 2u
#define RING_FDS 3u

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
	void (*turned)(struct session *s); /* after session_pause(), session_resume(): session_is_quiet() may have changed */
	void (*demanded)(struct session *s); /* s->demand has changed; may be NULL */
	dev_t eventfd_dev;		   /* what an eventfd looks like to fstat() */
	ino_t eventfd_ino;

	enum session_state state;
	struct watch watch;
	struct timer look; /* after rings that wait for the front end, while one is connected */
	bool watching;
	bool doomed;	     /* close as soon as the rings have answered */
	bool paused;	     /* no ring runs, whatever the front end says; outlives the conversation */
	bool demand;	     /* the front end wants a ring to run: it would, if we were not paused */
	unsigned nr_waiting; /* answers of rings to come */
	struct complaints complaints;

	uint64_t features, protocol_features;
	bool has_features; /* SET_FEATURES came */
	uint8_t status;	 /* SET_STATUS: as the driver set it */
	bool writeback;	 /* the guest flushes what is to be stable; it may ask for writes that are stable at once */
	int backend_fd;	 /* SET_BACKEND_REQ_FD: where we may speak unasked; -1: nowhere */
	struct gmem mem;
	struct memlog log;
	struct inflight inflight; /* what SET_INFLIGHT_FD brought; changed only while no ring runs */

	/* the message being processed */
	struct umsg msg; /* msg.debt: strange descriptors that are still being closed; nobody is to connect meanwhile */
	bool need_reply;
	int result; /* of the message: 0 or a negative errno, with the reason in err */
	struct varve_error err;

	uint8_t answer[SESSION_ANSWER_MAX];
	size_t answer_len, answer_sent; /* answer_len 0: none */
	int answer_fd;			/* goes with its first byte; -1: none */

	/* the transfer of the device's own state (migrate.c) */
	int state_fd; /* from which it comes; -1: none */
	int state_ret; /* of the last transfer */
};

/* queues: ring i runs on queues[i % nr_queues]. All of disk, name and queues outlive the session. */
int session_init(struct session *s, const char *name, const struct blk_disk *disk, struct queue *control,
		 struct queue *const *queues, unsigned nr_queues, unsigned nr_rings, unsigned num_max,
		 void (*closed)(struct session *s), void (*turned)(struct session *s), struct varve_error *err);

/* The session is closed. */
void session_free(struct session *s);

/* Takes over a connected socket, which is in non-blocking mode. The session is closed. */
void session_open(struct session *s, int fd);

/* The configuration space has changed (the disk's length): the front end is told if it wants to know. */
void session_config_changed(struct session *s);

/*
 * Between the two no ring takes a request, in this conversation and the next ones; messages are answered. Those in flight
 * are done when session_is_quiet(), which s->turned() tells of. Do not nest.
 */
void session_pause(struct session *s);
void session_resume(struct session *s);
bool session_is_quiet(const struct session *s);

/* Ends the conversation; s->closed() follows, at once if nothing is in the way. */
void session_close(struct session *s);

#endif
