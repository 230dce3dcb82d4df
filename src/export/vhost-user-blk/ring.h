/* SPDX-License-Identifier: MIT */
/*
 * vhost-user-blk/ring.h - one virtqueue at work on its queue
 *
 * Owns:    the ring's slots, and its kick, call and error descriptors.
 * Assumes: the memory table outlives the ring's run. Descriptors are eventfds; notify.h says what happens when a
 *          front end makes them wait.
 * Never:   touched by two threads at a time: it is handed over by messages, and back.
 *
 *	     ring_start()              started
 *	 OFF ───────────▶ (START sent) ───────▶ ON         ON: the ring's queue has it, else control
 *	  ▲                                     │
 *	  └────────────── (STOP sent) ◀─────────┘          the answer to ring_stop() comes when no request
 *	      stopped                 ring_stop()          is in flight any more, or: it is ON again (ring_go_on())
 *
 * While it is ON it may turn out to be broken: it then takes no further request, says so in the log and on
 * its error descriptor, and waits for STOP.
 */
#ifndef VARVE_VUBLK_RING_H
#define VARVE_VUBLK_RING_H

#include "export/vhost-user-blk/blk.h"
#include "export/vhost-user-blk/complaints.h"
#include "export/vhost-user-blk/notify.h"

enum ring_order { RING_START, RING_STOP, RING_CALL, RING_ERR };

struct ring {
	/* set by ring_init() */
	unsigned index;
	struct complaints *complaints; /* of the export */
	struct queue *q, *control;
	void (*answered)(struct ring *r); /* control thread: an order was carried out, its result is r->ret */
	void *owner;

	/* control thread only */
	bool on;      /* START was sent and STOP not yet answered */
	bool enabled; /* SET_VRING_ENABLE */
	bool has_addr;
	bool has_base; /* else the ring begins at its beginning */
	bool polled;   /* SET_VRING_KICK without a descriptor: we look for requests by ourselves */
	unsigned num;  /* 0: not set */
	struct vring_addr addr;
	bool log_used;	   /* writes to the used ring are logged, if any are ... */
	uint64_t log_addr; /* ... as if it were at this guest address */

	/* control thread while the ring is off, its queue while it is on */
	uint32_t base; /* where the ring goes on, when off: vring_opts.base */
	bool broken;
	unsigned nr_breaks;	      /* in this session */
	uint64_t nr_kicks, nr_calls;  /* met, and made: since the export was started; any thread reads them */
	int kick_fd, call_fd, err_fd; /* -1: none */
	struct notifier notifier;     /* of the last two */
	struct vring vr;
	struct blk_ctx ctx;
	struct blk_slot *slots; /* nr_slots, by vring's number */
	unsigned nr_slots;
	bool in_order;

	/* its queue only */
	unsigned nr_busy;
	uint16_t fifo[VRING_NUM_MAX]; /* with IN_ORDER: the nr_busy slots as they were taken, a ring */
	unsigned fifo_head;
	bool stopping, dirty; /* dirty: there are used elements to publish */
	bool eager;	      /* they are published in the middle of a turn, too, ... */
	unsigned show_at;     /* ... when there are so many */
	unsigned nr_done;     /* requests given back and not yet told to the queue */
	bool more_posted;     /* a turn was not enough to empty the ring */
	bool watching;
	struct watch kick;
	struct timer poll;
	uint64_t poll_ns; /* until the next look, while there is nothing */
	bool held;	  /* nothing is taken: the disk's limits have to make up for the last stop */
	struct timer hold;
	struct hook hook;
	struct poller poller; /* of a queue that spins before it sleeps */
	bool resting;	      /* it will sleep: kicks are wanted */
	bool announced;	      /* that kicks are wanted, to the driver, since it was last looked at */
	struct msg more;

	/* an order on its way, and back */
	enum ring_order order;
	int new_fd, old_fd;
	int ret;
	struct msg order_msg, answer_msg, go_on_msg;
	_Atomic bool go_on_sent; /* the last is on its way */
};

void ring_init(struct ring *r, unsigned index, struct complaints *complaints, struct queue *q, struct queue *control,
	       const struct blk_disk *disk, void (*answered)(struct ring *r), void *owner);

/* The ring is off. Forgets everything that a front end has set. */
void ring_reset(struct ring *r);

/* ---- control thread; r->answered() follows each of these if it returns 0 ---- */

/*
 * The ring is off, and num, addr, and kick_fd or polled, are set. Requests that inflight records are taken
 * first.
 */
int ring_start(struct ring *r, const struct gmem *mem, uint64_t features, const struct inflight *inflight,
	       struct varve_error *err);

/* The ring is on. */
void ring_stop(struct ring *r);
/* Those in flight take too long: if STOP has not come to its end it is answered now, and the ring is on. Answers nothing by itself. */
void ring_go_on(struct ring *r);

/* ---- control thread: replace a descriptor (-1: none). True: the ring is on, r->answered() follows ---- */

bool ring_set_call(struct ring *r, int fd);
bool ring_set_err(struct ring *r, int fd);
/* The ring is off. polled: without a descriptor it is to run all the same. */
void ring_set_kick(struct ring *r, int fd, bool polled);

#endif
