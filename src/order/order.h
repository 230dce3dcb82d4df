/* SPDX-License-Identifier: MIT */
/*
 * order/order.h - the block queue: metadata writes with an order, batched between syncs
 *
 * The queue is a row of numbered sections. Writing out goes section by section: write all entries of one, sync the
 * file, go on with the next. A mark is the number of a section. The OPEN section is the first one whose write-out has
 * not begun; write-out closes it, and from then on it takes nothing more. "Mark m is durable" means, on stable storage:
 *
 *   - every entry of section m and of the sections before it, and
 *   - every write to the file that had completed when section m was closed.
 *
 *     put(A), put(B)            both in the open section s; no order between them
 *     m = order_now()           s: the sync that ends s begins later than now, so it covers all data written until now
 *     put(C, after m)           section s + 1: reaches the disk only when A, B and that data are durable
 *     put(D), m' = order_now()  again section s, and m' == m, as long as nobody writes out
 *     put(E, after m')          again section s + 1: shares C's barrier
 *
 * So any number of allocations between two flushes use two sections (data and refcounts, then what points at them),
 * that is, two syncs. The price: order_now() says nothing about C, which waits in a later section. Whoever must come
 * after C uses the mark that put(C) gave, or order_all() for everything that is queued at all.
 *
 * A section that is being written or synced is closed, and order_now() never names it: its sync may have begun before
 * the caller's data reached the file.
 *
 * Writes to the same place: the later put wins, on disk too. A put that overlaps queued bytes of a section later than
 * the one that `after` asks for joins that later section (*ret_mark tells). Within one section they become one write.
 *
 * Reads see the newest queued bytes over the disk's. Nothing is dropped on errors: entries leave the queue only when
 * the sync that covers them has succeeded; a failed write or sync is answered by writing the whole section again at
 * the next flush or wait. (What a failed sync lost of data written around the queue is the leaf's to remember: its
 * node_flush() keeps the account.)
 *
 * Threads: the home queue of the file's graph, except order_clean().
 */
#ifndef VARVE_ORDER_ORDER_H
#define VARVE_ORDER_ORDER_H

#include "block/node.h"

struct order;

typedef uint64_t order_mark;

#define ORDER_NONE ((order_mark)0) /* durable since ever: no dependency */

/*
 * limit: memory of queued data at which a fiber in the background starts to write out (and beyond twice that order_put()
 * waits until there is less); 0: default. Memory is counted in sectors of 512 bytes with their book-keeping.
 */
#define ORDER_LIMIT_DEFAULT MiB(16)

int order_new(struct order **ret, struct node *file, uint64_t limit);
/*
 * Another file, with nothing but data, whose writes marks stand for as they do for those of the queue's own: wherever that one
 * is synced, this one is synced before. Before the first put.
 */
void order_sync_too(struct order *o, struct node *data);
/*
 * Drops what is queued without writing it: after order_flush(), or when the image is abandoned on purpose. Waits for a
 * write-out in the background to end.
 */
void order_free(struct fiber *f, struct order *o);

/*
 * What has been queued for so long is written out in the background, so that a guest that never flushes loses no more
 * than that to a power cut; 0: never.
 */
#define ORDER_AGE_DEFAULT_NS (5ull * 1000000000)

void order_set_age(struct order *o, uint64_t age_ns);

/*
 * Queues a write of len bytes (copied) at off of the file that must not reach the disk before `after` is durable.
 * *ret_mark (may be NULL): the mark that makes this write durable.
 * The bytes are queued before anything waits, so puts take effect in the order of their calls; then it may wait
 * (memory limit). A disk error met by that write-out is not reported here: the next flush or wait meets it again.
 * -ENOMEM leaves everything as it was: no memory, or twice the limit is queued and the disk keeps failing.
 */
int order_put(struct fiber *f, struct order *o, uint64_t off, const void *bytes, size_t len, order_mark after,
	      order_mark *ret_mark);

/*
 * What the next order_put() puts is an event (enum event) of that kind when it is written, for filters that listen below.
 * Returns o: order_put(f, order_as(o, EVENT_L2_UPDATE), ...).
 */
struct order *order_as(struct order *o, unsigned event);

/*
 * The barrier mark for data: covers all data writes that have completed until now, and all puts whose own mark is not
 * newer than it. Cheap to ask for: callers share it until the next write-out.
 */
order_mark order_now(struct order *o);

/*
 * Everything: order_now(), and all puts until now in whatever section. For what must come last (a header), and for
 * freeing a place that was itself written through the queue.
 */
order_mark order_all(struct order *o);

/* Marks are totally ordered: the later is the stronger. */
static inline order_mark order_max(order_mark a, order_mark b)
{
	return a > b ? a : b;
}

/* Reads through the queue: the file's bytes, overlaid by the newest queued ones. Beyond the end of the file: zeroes. */
int order_read(struct fiber *f, struct order *o, uint64_t off, void *buf, size_t len);

/*
 * Waits until mark is durable: writes out and syncs as much as that needs (for order_now() with nothing queued: one
 * sync). The error of the write or sync. One fiber writes at a time; the others wait for it and share its success
 * or its error.
 */
int order_wait(struct fiber *f, struct order *o, order_mark mark);

/* Everything queued and every completed data write becomes durable. Concurrent callers share the work. */
int order_flush(struct fiber *f, struct order *o);

/* Any queue: nothing is queued and no write-out has failed; a flush may go straight to the file. */
bool order_clean(const struct order *o);

/*
 * The newest mark that is durable now. Freed space may be handed out again only when the mark of the write that
 * removed the last reference to it is not newer than this. Was the space itself written through the queue (a table),
 * then a write to it may wait in a section later than that: free it with order_all(), asked for at the removal.
 */
order_mark order_durable(const struct order *o);

/*
 * What is queued outlives the process in a journal (order/journal.h), a file in the state directory dir.
 *
 * order_recover(): before anything of the image in `file` is believed: what a dead process had queued for it is written
 *   out, durably. header_bits: the autoclear features of the image's header; they say which journal is the image's, if any. 1: the
 *   image has changed, 0: there was nothing. -ESTALE, -EUCLEAN ...: there is something, and it must not be used. data: the
 *   file that the dead process gave to order_sync_too(), NULL if none; it must be the same one.
 * order_new_mark(): the mark of a journal that is going to be made, which is not the one in header_bits.
 * order_keep(): from now on every put is copied there. The mark must be durable in the header before. Flushes first.
 *   What syncs of the two files fail with is kept there, too; what those of the dead process failed with is inherited from here on.
 * order_keep_end(): no longer; the file stays if entries are left, or an error that nobody was told of (struct node, accounted).
 *   order_free() does this, too.
 * order_tell_lost(): the image n has the mark, and no journal will be written out before it is used: says so in the log, once for
 *   each opening. dir: where it was looked for; NULL: nowhere. Not for those who read what another process is serving.
 * order_note(): a few numbers that the format wants to find again, as notes of *ret (0 if there was nothing).
 */
#define ORDER_NOTES 4

/*
 * The mark, in the autoclear features of a format: "there is a journal", and 15 bits that say which one. Every other program removes
 * them before it writes, and whoever makes a journal puts others there: so a journal is the image's only if nobody wrote since, not even
 * a process of ours that keeps its journal in another directory. Random, so that nothing needs to be counted across directories.
 */
#define ORDER_MARKED (1ull << 63)
#define ORDER_MARK_BITS (0xffffull << 48)

/* What a format still has to do, in its own words; b is not 0. */
struct order_todo {
	uint64_t a, b;
};

/* What a dead process left besides its queue; nothing of it where the image has no mark. */
struct order_left {
	uint64_t notes[ORDER_NOTES];
	struct order_todo *todo; /* the caller's to free() */
	size_t nr_todo;
};

int order_recover(struct fiber *f, struct node *file, struct node *data, const char *dir, uint64_t header_bits,
		  struct order_left *ret, struct varve_error *err);
int order_new_mark(uint64_t header_bits, uint64_t *ret_mark, struct varve_error *err);
void order_tell_lost(const struct node *n, const char *dir, bool writable);
void order_note(struct order *o, unsigned i, uint64_t value);
/*
 * Something that is to be done when what has been put until now is durable, and that the next process does if this one dies first: it
 * finds it when all of that is written out. Returns a number for it, 0: it is not kept (no journal, no room). Whoever does it, or gives
 * it up, calls order_todo_done() *before* the first put of doing it: killed in between, it is never done; it is never done twice.
 */
unsigned order_todo(struct order *o, uint64_t a, uint64_t b);
void order_todo_change(struct order *o, unsigned nr, uint64_t a, uint64_t b);
void order_todo_done(struct order *o, unsigned nr);
int order_keep(struct fiber *f, struct order *o, const char *dir, uint64_t mark, struct varve_error *err);
void order_keep_end(struct fiber *f, struct order *o);

/* Why entries were written out. */
enum order_cause { ORDER_FLUSH, ORDER_SIZE, ORDER_AGE, ORDER_CAUSES };

struct order_stats {
	uint64_t puts;		 /* calls of order_put() that succeeded */
	uint64_t merges;	 /* of these: that met a sector queued in the same section */
	uint64_t barriers_asked; /* of these: whose `after` was not durable yet */
	uint64_t sections;	 /* sections with entries that became durable */
	uint64_t syncs;		 /* node_flush() that succeeded */
	uint64_t writes, bytes;	 /* node_writev() that succeeded */
	uint64_t errors;	 /* writes and syncs that failed */
	uint64_t write_outs[ORDER_CAUSES]; /* begun, those that failed included */
	uint64_t shared;	 /* waits and flushes that another one's write-out served */
	uint64_t queued_bytes_max;
	uint64_t queued_bytes;	 /* now, as the limit counts them */
	uint64_t queued_sections;
};

void order_stats(const struct order *o, struct order_stats *ret);

/* For drivers: option metadata-write-out (seconds; *ret stays if it is not given), and the object "order" of the statistics. */
int order_get_age(struct opts *opts, uint64_t *ret_age_ns, struct varve_error *err);
void order_json_stats(const struct order *o, void *json_stats);

#endif
