/* SPDX-License-Identifier: MIT */
/*
 * order/queue.h - what the files of the block queue share
 *
 *   order.c     what is queued: put, read, marks
 *   writeout.c  how it reaches the disk: wait, flush
 *   background.c what is written out without a flush: limits of size and age
 *   sector.c    the queued bytes
 *   journal_todo.c  what is to be done when the queue is durable outlives the process, too
 *   recover.c   what is queued outlives the process (journal.h)
 */
#ifndef VARVE_ORDER_QUEUE_H
#define VARVE_ORDER_QUEUE_H

#include "order/journal.h"
#include "order/order.h"
#include "order/sector.h"

/* What one wave of writes may have: requests in flight together, and elements of their vectors. */
#define ORDER_WRITES 32
#define ORDER_IOV 512

/* Exists as long as it has entries. */
struct section {
	uint64_t nr;
	struct sector *list;
	TAILQ_ENTRY(section) link;
};

/*
 * durable < open at all times. Sections up to durable are gone; those in between are closed: they are being written
 * out, or that failed and will be tried again; from open on puts are taken.
 */
struct order {
	/* set once */
	struct node *file;
	struct node *data; /* synced with it; NULL: there is only the one */
	uint64_t limit;
	uint64_t age_ns; /* 0: no limit */

	/* home queue only */
	TAILQ_HEAD(section_list, section) sections; /* ascending */
	struct sector_table table;
	uint64_t durable, open;
	bool writing;		 /* one fiber writes out; the others wait in waiting */
	bool failed;		 /* the last write-out did */
	int error;		 /* of the last one that did */
	struct waitlist waiting; /* woken when durable advances and when a write-out ends */
	bool background_busy;	 /* its fiber has been started, and has not ended */
	bool ending;		 /* order_free() waits for it */
	unsigned next_event;	 /* of the next put */
	enum order_cause background_cause;
	struct fiber_job background;
	struct timer age_timer;
	uint64_t dirty_since_ns; /* not later than the first put of what is queued, not counting what failed */
	struct order_stats stats;
	struct journal *journal; /* NULL: none is kept */
	struct node *noted[2];	 /* leaves whose length goes there; NULL: none */
	struct node_write writes[ORDER_WRITES]; /* the writing fiber's */
	struct iovec iov[ORDER_IOV];		/* and this */

	/* any queue, atomically */
	_Atomic bool clean;
};

static inline uint64_t order_queued(const struct order *o)
{
	return o->table.nr * SECTOR_COST;
}

/* order_put() into that very section, without a journal; for recover.c, in the order of the puts. */
int order_restore(struct order *o, uint64_t section, uint64_t off, const void *bytes, size_t len);

/* After the queue became empty or not, or a write-out failed or succeeded. */
void order_update_clean(struct order *o);

/* writeout.c: brings everything up to target to the disk; the calling fiber becomes the one that writes. */
int order_write_out(struct fiber *f, struct order *o, uint64_t target, enum order_cause cause);

/* background.c */
void order_background_init(struct order *o);
void order_background_end(struct fiber *f, struct order *o);
/* After bytes were queued. */
void order_grew(struct order *o, bool was_empty);
/* After a put: keeps the queue within its limit. May wait. */
void order_relieve(struct fiber *f, struct order *o);

#endif
