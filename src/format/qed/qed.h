/* SPDX-License-Identifier: MIT */
/*
 * qed/qed.h - what the files of the QED driver share
 *
 *   disk.h      the structures on disk, with their limits
 *   header.c    the header: every field checked; its fields that change while the image is open
 *   open.c      open, close, sync, and the driver's table of calls
 *   map.c       from guest offsets to extents, on any queue
 *   space.c     fresh clusters at the end of the file; which clusters hold tables
 *   write.c     changing the mapping: alloc, link, unlink
 *   need_check.c  the flag that says "look before you trust this": set, cleared when idle
 *   check.c     examination, and the repair of an image that was not closed
 *   backing.c   another backing file, or none
 *   create.c    new images
 *
 * QED has no counts and no list of free space: a cluster is in use when a table refers to it, and fresh clusters
 * come from behind the end of the file. All offsets in the file are host_off, all of the virtual disk guest_off.
 */
#ifndef VARVE_QED_H
#define VARVE_QED_H

#include "aio/queue.h"
#include "block/node.h"
#include "format/cache.h"
#include "format/qed/disk.h"
#include "order/order.h"

/* A header after qed_header_parse(): host byte order, every field in bounds. */
struct qed_header {
	uint32_t cluster_len, table_clusters, header_clusters;
	uint64_t features, autoclear_features;
	uint64_t l1_off, disk_len;
	uint32_t backing_name_off, backing_name_len; /* 0: none */
};

struct qed {
	/* set at open */
	struct node *node, *file;
	struct node *leaf;	/* at the bottom below file: the one whose length counts */
	struct order *order;	/* NULL: read-only */
	struct qed_header h;	/* features, disk_len change on the home queue */
	unsigned cluster_bits;
	uint32_t cluster_len;
	uint64_t table_len;	/* bytes of an L1 or L2 table */
	unsigned table_bits;	/* log2 of the entries in a table */
	unsigned piece_bits;	/* log2 of the entries in one piece of the cache */
	uint64_t header_end;	/* host offset of the first regular cluster */
	bool writable;
	uint64_t mark; /* writable: what the header says from the first change on: the mark of our journal; 0: we keep none */
	bool unmapped;		/* opened for info or check of what cannot be read: map() answers with an error */

	/* home queue only */
	uint64_t *l1;		/* nr_l1 entries, host byte order: those that the disk's length needs */
	uint32_t nr_l1;
	struct fiber_mutex l1_mutex; /* who changes L1 entries */
	unsigned nr_told;	/* lines about damage that went to the log */
	struct space *space;
	struct need_check *need_check;

	/* any queue: map.c */
	struct cache *l2;
};

/* Damage found while the disk is in use: one line in the log, with a limit, and -EIO for whoever ran into it. */
int qed_damaged(struct qed *q, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* header.c --------------------------------------------------------------------------------------------- */

/* buf: the first sizeof(struct qed_header_disk) bytes of a file. Unknown features are qed_header_usable()'s part. */
int qed_header_parse(const uint8_t *buf, struct qed_header *ret, struct varve_error *err);
int qed_header_usable(const struct qed_header *h, struct varve_error *err);
void qed_header_build(const struct qed_header *h, struct qed_header_disk *ret);
/* The largest disk that tables of this geometry can describe, at most VARVE_LEN_MAX in whole sectors. */
uint64_t qed_disk_len_max(uint32_t cluster_len, uint32_t table_clusters);
/* Queues the field's new value behind `after`; changes q->h. *ret_mark: as order_put(). */
int qed_put_features(struct fiber *f, struct qed *q, uint64_t features, order_mark after, order_mark *ret_mark);
int qed_put_disk_len(struct fiber *f, struct qed *q, uint64_t disk_len, order_mark after, order_mark *ret_mark);
int qed_put_autoclear(struct fiber *f, struct qed *q, uint64_t bits, order_mark *ret_mark);

/* map.c ------------------------------------------------------------------------------------------------ */

/* L1 entries that a disk of this length uses. */
uint32_t qed_nr_l1(const struct qed *q, uint64_t disk_len);
/* Reads entries [from, to) of the L1 table into l1, host byte order. The table lies in the file. */
int qed_read_l1(struct fiber *f, struct qed *q, uint64_t *l1, uint32_t from, uint32_t to);
int qed_map_open(struct qed *q, uint64_t cache_len);
void qed_map_close(struct qed *q);
void qed_map(struct node *n, uint64_t off, uint64_t len, struct extent *ret);
int qed_load(struct fiber *f, struct node *n, uint64_t off);

/* May [host_off, +len) be what an entry leads to: aligned, behind the header and the L1 table's place, in the file? */
bool qed_place_ok(const struct qed *q, uint64_t host_off, uint64_t len, uint64_t file_len);

static inline uint64_t qed_entry_get(const struct piece *p, unsigned i)
{
	/* pairs with the release in qed_entry_set(): the data was written, and the file has its length, before */
	uint64_t word = atomic_load_explicit(&p->words[i], memory_order_acquire);
	le64 disk;

	__builtin_memcpy(&disk, &word, sizeof(disk));
	return le64_get(disk);
}

static inline void qed_entry_set(struct piece *p, unsigned i, uint64_t entry)
{
	le64 disk = le64_put(entry);
	uint64_t word;

	__builtin_memcpy(&word, &disk, sizeof(word));
	/* pairs with the acquire in qed_entry_get() */
	atomic_store_explicit(&p->words[i], word, memory_order_release);
}

/* space.c ---------------------------------------------------------------------------------------------- */

/* Reads nothing: the L1 table is in memory. Refuses an image where two tables overlap. */
int space_open(struct qed *q, struct varve_error *err);
/* Gives the file its exact length back, when `trim`. */
void space_close(struct fiber *f, struct qed *q, bool trim);
/* nr contiguous fresh clusters, which read as zeroes and lie in the file. Waits. */
int space_take(struct fiber *f, struct qed *q, uint64_t nr, uint64_t *ret_host_off);
/* The same for a table; nothing else may ever be given a part of it. */
int space_take_table(struct fiber *f, struct qed *q, uint64_t *ret_host_off);
/* A cluster that was given before, and that nothing refers to; its bytes are not known. 0: there is none. */
uint64_t space_take_used(struct qed *q);
/* nr clusters that nothing refers to after all. */
void space_undo(struct qed *q, uint64_t host_off, uint64_t nr);
void space_undo_table(struct qed *q, uint64_t host_off);
/* Does a table, or the header, lie in the cluster at host_off? */
bool space_holds_metadata(const struct qed *q, uint64_t host_off);
/* First host offset that was never given to anybody. */
uint64_t space_end(const struct qed *q);

/* need_check.c ----------------------------------------------------------------------------------------- */

int need_check_open(struct qed *q);
/* No timer fires and no fiber of it runs after this. Flag and file stay as they are. */
void need_check_close(struct fiber *f, struct qed *q);
/* Around each allocation, from finding space to linking it: the flag is set, and stays. */
int need_check_begin(struct fiber *f, struct qed *q);
void need_check_end(struct qed *q);
/* Between the two: durable when the flag is. */
order_mark need_check_mark(const struct qed *q);
/* Everything is durable and nothing is under way: clears the flag, durably. */
int need_check_clear(struct fiber *f, struct qed *q);

/* write.c ---------------------------------------------------------------------------------------------- */

int qed_alloc(struct fiber *f, struct node *n, uint64_t off, uint64_t len, struct extent *ret);
int qed_link(struct fiber *f, struct node *n, uint64_t off, const struct extent *extent);
void qed_unalloc(struct fiber *f, struct node *n, const struct extent *extent);
int qed_unlink(struct fiber *f, struct node *n, uint64_t off, uint64_t len, enum unlink_mode mode);
int qed_truncate(struct fiber *f, struct node *n, uint64_t len, enum prealloc prealloc, struct varve_error *err);

/* check.c, create.c ------------------------------------------------------------------------------------ */

int qed_check(struct fiber *f, struct node *n, struct check *c, struct varve_error *err);
/* Before the first change of any kind: the header has q->mark. Any number of times. */
int qed_begin_changes(struct fiber *f, struct qed *q, struct varve_error *err);

/*
 * An image whose flag is set, before it is written: entries that lead nowhere are removed, what lies behind the last
 * cluster in use is cut off. -EIO: damage of another kind, which no crash explains; nothing was changed then.
 */
int qed_repair_unclean(struct fiber *f, struct qed *q, struct varve_error *err);
int qed_set_backing(struct fiber *f, struct node *n, const char *name, const char *format, bool snapshots_too,
		    struct varve_error *err);
extern const struct varve_option_info qed_options[];
int qed_create(struct fiber *f, struct node *file, uint64_t len, struct opts *o, varve_progress_fn progress,
	       void *user_data, struct varve_error *err);

#endif
