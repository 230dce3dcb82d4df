/* SPDX-License-Identifier: MIT */
/*
 * qcow2/qcow2.h - what the files of the qcow2 driver share
 *
 *   disk.h      the structures on disk and the bits of their entries, with their limits
 *   header.c    the header and its extensions: parse (every field checked), build, rewrite
 *   header_change.c  the header of an image in use becomes another one
 *   settings.c  the options of an image that is opened
 *   open.c      open, close, sync, and the driver's table of calls
 *   map.c       from guest offsets to extents, on any queue
 *   l2.c        changing the mapping: alloc, link, unlink
 *   subcluster.c  the same where entries have bitmaps of subclusters
 *   amend.c     other options
 *   resize.c    a longer or shorter virtual disk
 *   refcount.c  the count of each host cluster: get, change
 *   lazy.c      counts that are written when the image closes
 *   rebuild.c   refcounts of an image that was not closed
 *   refcount_grow.c  new refcount blocks, longer refcount tables
 *   ahead.c     mappings ahead of sequential writers
 *   stock.c     clusters counted ahead of use
 *   alloc.c     finding space, giving it back once that is safe
 *   meta.c      which host clusters hold metadata, so that nobody is given one of them for data
 *   backing.c   another backing file, or none
 *   data_file.c images whose data is in another file
 *   create.c    new images and preallocation
 *   emit.c      new images, written forward only
 *   check.c     examination
 *   pack.c      writing compressed clusters
 *   unpack.c    reading them
 *   snapshot.c  the snapshot table: read, built
 *   snapshot.h  making, applying and deleting snapshots, and the state of virtual machines in them
 *   info.c      what `img info` shows
 *   corrupt.c   damage that is met while the disk is in use: told, or the image is marked
 *   reserved.c  was space only reserved?
 *   bitmap_dir.h  persistent dirty bitmaps: read, made, changed
 *   bitmap_note.h  kept up to date while the disk is written
 *
 * All offsets in the file are host_off, all offsets of the virtual disk guest_off; both are bytes.
 */
#ifndef VARVE_QCOW2_H
#define VARVE_QCOW2_H

#include "block/node.h"
#include "format/qcow2/disk.h"
#include "order/order.h"

/* A header after qcow2_header_parse(): host byte order, every field in bounds. */
struct qcow2_header {
	uint32_t version;	 /* 2, 3 */
	uint32_t cluster_bits;	 /* 9 .. 21 */
	uint64_t disk_len;
	uint64_t l1_off;
	uint32_t l1_entries;
	uint64_t refcount_table_off;
	uint32_t refcount_table_clusters;
	uint32_t nr_snapshots;
	uint64_t snapshots_off;
	uint32_t crypt_method;
	uint64_t incompatible, compatible, autoclear;
	uint32_t refcount_order; /* refcounts are 1 << refcount_order bits wide */
	uint32_t header_len;
	uint8_t compression_type;
	char backing_name[QCOW2_BACKING_NAME_MAX + 1]; /* "": none */
	char backing_format[QCOW2_BACKING_FORMAT_MAX + 1];
	char data_file[QCOW2_DATA_FILE_NAME_MAX + 1];
	char unknown_feature[QCOW2_FEATURE_NAME_LEN + 1]; /* name of the first unknown incompatible bit, from the table */
	/* bitmaps extension; nr_bitmaps 0: none */
	uint32_t nr_bitmaps;
	uint64_t bitmap_directory_len, bitmap_directory_off;
};

/* open.c. What bitmaps say of the disk is not worth anything any more, durably; nothing if there are none. */
struct qcow2;
int qcow2_give_up_bitmaps(struct fiber *f, struct qcow2 *q, struct varve_error *err);
/*
 * Before the first change of an image that was opened with NODE_BITMAPS, durably: autoclear bits that we do not know, and the mark of a
 * dead server's journal, are cleared. Does nothing afterwards, nor in any other image: those have it when they are opened.
 */
int qcow2_begin_changes(struct fiber *f, struct qcow2 *q, struct varve_error *err);
/* bitmap_ops.c. Bitmaps are given up, and their space is given back. */
int qcow2_remove_bitmaps(struct fiber *f, struct qcow2 *q, struct varve_error *err);

struct cache;
struct cache_cleaner;
struct meta;
struct noted;
struct packer;
struct unpacker;

struct qcow2 {
	/* set at open */
	struct node *node, *file;
	struct node *leaf;	  /* at the bottom below file: the one whose length counts */
	struct node *data, *data_leaf; /* where clusters of data are: `file` and `leaf`, or those of the external data file */
	bool external;		  /* there is one: each cluster is where the guest sees it, and none of them is counted */
	bool raw_data;		  /* and what is there is always what the guest reads */
	struct order *order;	  /* NULL: read-only */
	struct qcow2_header h;	  /* l1_*, refcount_table_*, autoclear change on the home queue */
	unsigned cluster_bits;
	uint32_t cluster_len;
	unsigned l2_entry_len;	  /* 8, or 16 with extended L2 entries */
	uint32_t l2_entries;	  /* in one table */
	unsigned l2_bits;	  /* log2 of that */
	unsigned l2_piece_bits;	  /* log2 of the entries in one piece of the cache */
	bool writable;
	bool begun;		  /* the header's marks are those of somebody who changes it (qcow2_begin_changes()) */
	uint32_t discards;	  /* 1 << enum freed: such clusters are discarded in the file when they become free */
	bool guards_inactive;	  /* meta.c knows the L2 tables of snapshots, too */
	bool keeps_space;	  /* discard-no-unref: what is unmapped keeps its place in the file */
	uint64_t refcount_cache_len;
	uint32_t sites_off;	  /* tests: orders that are to be forgotten (sites.h) */

	/* home queue only */
	uint64_t *l1;		  /* h.l1_entries, host byte order */
	uint64_t *refcount_table; /* host byte order; refcount_table_clusters << (cluster_bits - 3) entries */
	uint32_t refcount_table_entries;
	uint64_t end_cluster;	  /* first cluster that has never been used, as far as we know: allocation's frontier */
	uint64_t zero_from;	  /* host offset from which on the file reads as zeroes (its length at open, regular files) */
	struct refcounts *refcounts;
	struct alloc_state *alloc;
	struct stock *stock;
	struct order_left left;	  /* of a process that died. Notes: its stock, clusters, first and end (0, 0: none); to be done: frees */
	struct lazy *lazy;	   /* NULL: counts on disk do not fall behind */
	struct ahead *ahead;	   /* NULL: no mappings ahead of the guest */
	struct meta *meta;
	struct unpacker *unpacker; /* NULL: nothing is read */
	struct packer *packer;	   /* NULL: read-only */
	struct noted *noted;	   /* bitmaps that note writes (bitmap_note.h); the list, set at open */
	bool packing;		   /* somebody writes compressed clusters: no mappings ahead */
	order_mark l1_linked;	     /* what leads to the tables of now is durable: L1 entries, the place of L1 */
	struct fiber_mutex l1_mutex; /* who changes L1 entries, or moves the table */
	struct fiber_mutex snapshot_mutex; /* who changes the snapshot table; taken before locks of clusters, those before l1_mutex */
	struct fiber_mutex resize_mutex; /* who changes the length of the disk; taken before l1_mutex */
	/*
	 * Who queues fields of the header and has them in h only when that is done, and who queues all of h; taken last. (Bits of the
	 * features do without: they are in h before they are queued.)
	 */
	struct fiber_mutex header_mutex;
	unsigned nr_drafts;	  /* snapshots in the making: what they have, no table leads to */
	unsigned nr_frozen;	  /* of these: that are of a disk of before */
	unsigned nr_told;	  /* lines about damage that went to the log */

	struct cache_cleaner *cleaner; /* NULL: nothing is cached */

	/* any queue: map.c */
	struct cache *l2;
	/*
	 * 0, or what map() answers everything with. -ENOTSUP, since open: opened for info or check of what cannot be read. -EIO: has
	 * been found corrupt (corrupt.c). Set at home; who sees it late has a mapping that was good when it was looked up.
	 */
	_Atomic int unmapped;

	unsigned changing; /* changes of snapshots that have begun, and not ended as they should: the dirty bit stays */
};

/*
 * corrupt.c --------------------------------------------------------------------------------------------
 *
 * Damage found while the disk is in use: one line in the log, with a limit, and -EIO for whoever ran into it. The text
 * says what is wrong where.
 */
int qcow2_damaged(struct qcow2 *q, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/*
 * Damage with which nothing may go on: the image is marked corrupt, durably, if it is open for writing; from then on every request
 * and every change is refused. -EIO. What is queued is on disk when this returns, if the disk does not fail.
 */
int qcow2_corrupt(struct fiber *f, struct qcow2 *q, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
/* -EIO if that has happened. */
int qcow2_whole(const struct qcow2 *q, struct varve_error *err);
/* A request met damage at [off, off + len): its entries are looked at, and told of, or the image is marked. -EIO or another error. */
int qcow2_met(struct fiber *f, struct qcow2 *q, uint64_t off, uint64_t len, bool write);
/* The driver's damage(). */
int qcow2_damage(struct fiber *f, struct node *n, uint64_t off, uint64_t len, bool write);
/* Does an entry that leads to compressed bytes lead into metadata? Of a writable image. */
bool packed_in_metadata(const struct qcow2 *q, uint64_t entry);

/*
 * data_file.c ------------------------------------------------------------------------------------------
 *
 * The image's data file is opened, as q->data; its own file where it has none. Before anything is changed. Again when the header has
 * been read again: it stays open.
 */
int data_open(struct fiber *f, struct qcow2 *q, struct opts *o, struct varve_error *err);
/* When the header is what it is going to be: one that is too short is told of, in the log. */
void data_tell(const struct qcow2 *q);
/* One piece of an L2 table as it was read: entries that cannot be those of such an image become damage in memory. */
void data_guard_entries(struct qcow2 *q, uint32_t table, uint32_t nr, be64 *words);
/* What is wrong with an entry for that place, in words; NULL: nothing. */
const char *data_entry_fault(uint64_t entry, uint64_t guest_off);
/* Guest clusters of which entries no longer say that they are there: what the file system can have back. Advice. */
void data_punch(struct fiber *f, struct qcow2 *q, uint64_t off, uint64_t len);
/* With raw_data: the mode is not UNLINK_ABSENT. The data file itself reads as the disk shall; no entry changes. */
int data_unlink_raw(struct fiber *f, struct qcow2 *q, uint64_t off, uint64_t len, enum unlink_mode mode);
/* The data file is as long as the disk is going to be; or no longer than it has become. */
/* Can it hold a disk of that length? */
int data_fits(const struct qcow2 *q, uint64_t len, struct varve_error *err);
int data_grow(struct fiber *f, struct qcow2 *q, uint64_t len, enum prealloc prealloc, struct varve_error *err);
int data_shrink(struct fiber *f, struct qcow2 *q, uint64_t len, struct varve_error *err);
/* The file of a new image gets its length and nothing else: it reads as zeroes, as long as it is not a device that stays `raw`. */
int data_create(struct fiber *f, struct node *data, uint64_t len, bool raw, enum prealloc prealloc, struct varve_error *err);
/* Does that entry lead to a cluster at 0? Only in a data file there is one. */
static inline bool at_zero(const struct qcow2 *q, uint64_t entry)
{
	return unlikely(q->external) && (entry & QCOW2_COPIED) && !(entry & QCOW2_OFF_MASK);
}

/* header.c --------------------------------------------------------------------------------------------- */

/*
 * Parses the first `len` bytes of a file (a full first cluster if the file has it). file_len bounds table places.
 * Unknown incompatible features, encryption and the like are NOT refused here (info shows them):
 * qcow2_header_usable() does, naming the feature.
 */
int qcow2_header_parse(const uint8_t *buf, size_t len, uint64_t file_len, struct qcow2_header *ret,
		       struct varve_error *err);
/* writable, repair: it is to be opened so. */
int qcow2_header_usable(const struct qcow2_header *h, bool writable, bool repair, struct varve_error *err);
/* Builds a complete first cluster: header, extensions (backing format, feature names), backing name. */
int qcow2_header_build(const struct qcow2_header *h, uint8_t *cluster, struct varve_error *err);

/* The fields of a header without a backing file's name. */
struct qcow2_header_disk qcow2_header_to_disk(const struct qcow2_header *h);
/* The names of all features that we know, as in their extension: bytes, and bytes of one. */
uint32_t qcow2_feature_names(const void **ret);
uint32_t qcow2_feature_name_len(void);

/*
 * header_change.c. Under l1_mutex. The header becomes, durably and at once, what *want says of version, header length,
 * features, backing file, bitmaps, length of the disk and place of L1, and, with another width of the counts, of their table. q->h too,
 * the fields of both tables excepted.
 */
int qcow2_header_change(struct fiber *f, struct qcow2 *q, const struct qcow2_header *want, struct varve_error *err);
/* Nothing is changed: would there be room for that header? */
int qcow2_header_fits(struct fiber *f, struct qcow2 *q, const struct qcow2_header *want, struct varve_error *err);

/* refcount.c, refcount_grow.c --------------------------------------------------------------------------- */

int refcount_open(struct fiber *f, struct qcow2 *q, uint64_t cache_len, struct varve_error *err);
void refcount_close(struct qcow2 *q);
/* Count of one host cluster. Clusters that no refcount block covers have 0. */
int refcount_get(struct fiber *f, struct qcow2 *q, uint64_t cluster, uint64_t *ret);
/*
 * Adds delta (+1, -1, ...) to nr clusters from `cluster` on. The change reaches the disk after `after`; *ret_mark is
 * durable when it is. All or nothing in memory. -ERANGE when a count would leave its width, -EIO for damaged
 * structures, and when no refcount block covers a cluster.
 */
int refcount_add(struct fiber *f, struct qcow2 *q, uint64_t cluster, uint64_t nr, int delta, order_mark after,
		 order_mark *ret_mark);
/*
 * A run of free clusters, counted 1 at once: nothing waits between the look and the count. Looks at one piece of one refcount block only, from
 * cluster on as far as *ret_next; *ret_nr: 0 (none there) .. nr. -EIO: the counts say that metadata is free space. The cluster is covered.
 */
enum take {
	TAKE_FREED, /* below the frontier */
	TAKE_FRESH, /* from the frontier on, which is `cluster` and moves */
	TAKE_TABLE, /* the same, and they are known as metadata (meta_reserve() was called) before the frontier is behind them */
};

int refcount_take(struct fiber *f, struct qcow2 *q, uint64_t cluster, uint64_t nr, enum take how, uint64_t *ret_cluster,
		  uint64_t *ret_nr, uint64_t *ret_next, order_mark *ret_mark);
/*
 * Counts up to nr clusters from first on, at or behind the frontier and covered, as far as they are free and in one
 * piece. *ret_nr 0: the first is counted already.
 */
int refcount_stock(struct fiber *f, struct qcow2 *q, uint64_t first, uint64_t nr, uint64_t *ret_nr, order_mark *ret_mark);
/*
 * nr contiguous clusters at the frontier, counted 1 and known as metadata, with all blocks and the longer refcount table that they
 * need.
 */
int refcount_extend(struct fiber *f, struct qcow2 *q, uint64_t nr, uint64_t *ret_cluster, order_mark *ret_mark);
/* Makes a refcount block for the cluster at the frontier if it has none; the frontier moves then. */
int refcount_cover(struct fiber *f, struct qcow2 *q);
/* Does a refcount block count this cluster? Those of the others are 0. */
bool refcount_covered(const struct qcow2 *q, uint64_t cluster);
/* Plain functions on the bytes of a refcount block, for every width; used by check and create too. */
uint64_t refcount_read(const uint8_t *block, unsigned order, uint64_t index);
void refcount_write(uint8_t *block, unsigned order, uint64_t index, uint64_t value);

/* rebuild.c -------------------------------------------------------------------------------------------- */

/* The dirty bit is set: counts anew what is referred to, and clears it. Before the tables are opened. */
int qcow2_rebuild_refcounts(struct fiber *f, struct qcow2 *q, struct varve_error *err);

/*
 * Counts anew, in counts of another width. Nothing of the image is in memory that speaks of counts: open.c sees to that.
 * judge: only whether they can say what is there; nothing changes.
 */
int qcow2_recount(struct fiber *f, struct qcow2 *q, unsigned refcount_order, bool judge, struct varve_error *err);
/* open.c: the same for an image in use. Nothing is in flight. On failure the image may only be closed. */
int qcow2_change_refcount_order(struct fiber *f, struct qcow2 *q, unsigned refcount_order, bool judge, struct varve_error *err);

/* alloc.c ---------------------------------------------------------------------------------------------- */

int alloc_open(struct fiber *f, struct qcow2 *q, struct varve_error *err);
void alloc_close(struct qcow2 *q);
/*
 * For data: nr contiguous free clusters, refcount 1 each (*ret_mark durable when the refcounts are). May give fewer:
 * *ret_nr >= 1. *ret_fresh: the space has never been used, the file reads as zeroes there.
 */
int alloc_clusters(struct fiber *f, struct qcow2 *q, uint64_t nr, uint64_t *ret_host_off, uint64_t *ret_nr,
		   bool *ret_fresh, order_mark *ret_mark);
/* For metadata: exactly nr, never used before, known to meta.c afterwards. *ret_zero: the file reads as zeroes there. */
int alloc_metadata(struct fiber *f, struct qcow2 *q, uint64_t nr, uint64_t *ret_host_off, bool *ret_zero,
		   order_mark *ret_mark);
/*
 * One more reference to a cluster in use, for compressed bytes in it; durable with alloc_counted(). -ERANGE: its count can
 * go no higher.
 */
int alloc_share(struct fiber *f, struct qcow2 *q, uint64_t host_off);
/* The mark after which all counts are durable that alloc_clusters() and alloc_metadata() have set until now. */
order_mark alloc_counted(const struct qcow2 *q);
/*
 * How many clusters, up to nr, fit behind the frontier: > 0, or -ENOSPC (a device is full), -EFBIG (nothing beyond can be
 * addressed).
 */
int alloc_room(const struct qcow2 *q, uint64_t nr, uint64_t *ret_nr);
/* Why clusters become free: options pass-discard-* say of which the file system gets the space. */
enum freed {
	FREED_REQUEST,	/* the guest discards them, or zeroes them with leave to unmap */
	FREED_SNAPSHOT, /* a snapshot was deleted or applied */
	FREED_CUT,	/* the disk is shorter now, or empty: always */
	FREED_OTHER,	/* written elsewhere; tables */
};

/*
 * Give clusters back (refcount - 1) once `gone`, the mark of the write that removed the reference, is durable.
 * No memory: logged, the clusters are leaked.
 */
void alloc_free(struct qcow2 *q, uint64_t host_off, uint64_t nr, order_mark gone, enum freed why);
/* The same for clusters that alloc_metadata() gave, or that hold such metadata from before. */
void alloc_free_metadata(struct qcow2 *q, uint64_t host_off, uint64_t nr, order_mark gone);
/* Does the frees whose mark is durable by now. Called by sync and close. */
int alloc_settle(struct fiber *f, struct qcow2 *q);
/* The same; and what others have begun to give back is given back, too: for who looks at the counts next. */
int alloc_settle_all(struct fiber *f, struct qcow2 *q);
/*
 * Some are being given back just now: the counts of metadata may be 0 already, and its places still known as metadata, because writing the
 * lower counts waits. That is no damage.
 */
bool alloc_giving(const struct qcow2 *q);
/* What a process that died had still to free, is waiting to be freed here. After order_keep(), whose journal has it from then on. */
void alloc_adopt(struct fiber *f, struct qcow2 *q);
/* Nothing waits to be freed. */
bool alloc_idle(const struct qcow2 *q);
/* Takes back what alloc_clusters() gave: nothing refers to it. */
void alloc_undo(struct fiber *f, struct qcow2 *q, uint64_t host_off, uint64_t nr);

/* meta.c ----------------------------------------------------------------------------------------------- */

/* Reads L1 and the refcount table of q; refuses an image where two of its metadata clusters are one. */
int meta_open(struct fiber *f, struct qcow2 *q, struct varve_error *err);
void meta_close(struct qcow2 *q);
bool meta_holds(const struct qcow2 *q, uint64_t cluster);
/* Room for nr more, that nobody else uses: meta_add() takes it, one each time, and cannot fail. What is not needed is given back. */
int meta_reserve(struct qcow2 *q, uint64_t nr);
void meta_unreserve(struct qcow2 *q, uint64_t nr);
void meta_add(struct qcow2 *q, uint64_t cluster);
/* It is free. */
void meta_remove(struct qcow2 *q, uint64_t cluster);
/* It does not become metadata after all: the room for it is reserved again. */
void meta_undo(struct qcow2 *q, uint64_t cluster);
/* It is no table of the disk any more; a snapshot may have it: then it goes from here when it is free. */
void meta_leave(struct qcow2 *q, uint64_t cluster);
struct qcow2_snapshot;
/*
 * The places of the snapshot table and of what it names, but for the entry `without`; in two steps, of which the second
 * cannot fail. NULL: no memory.
 */
struct meta_ranges *meta_ranges_new(const struct qcow2 *q, const struct qcow2_snapshot *list, uint32_t nr,
				    uint32_t without, uint64_t table_off, uint64_t table_len);
void meta_ranges_set(struct qcow2 *q, struct meta_ranges *ranges);

/* map.c, l2.c, resize.c -------------------------------------------------------------------------------- */

int l2_open(struct qcow2 *q, uint64_t cache_len, uint32_t piece_len);
void l2_close(struct qcow2 *q);
void l2_map(struct node *n, uint64_t off, uint64_t len, struct extent *ret);
int l2_load(struct fiber *f, struct node *n, uint64_t off);
int l2_alloc(struct fiber *f, struct node *n, uint64_t off, uint64_t len, struct extent *ret);
int l2_link(struct fiber *f, struct node *n, uint64_t off, const struct extent *extent);
/*
 * Empty guest clusters get stock without having been written: zeroes. *len: whole clusters, locked by the caller; returns
 * for how many bytes from off on it was done, 0: an entry is not empty, or the stock is.
 */
int l2_link_zeroes(struct fiber *f, struct qcow2 *q, uint64_t off, uint64_t *len);
/* The cluster at off becomes the compressed one that the entry says; its bytes are written, its references counted. */
int l2_link_packed(struct fiber *f, struct qcow2 *q, uint64_t off, uint64_t entry);
void l2_unalloc(struct fiber *f, struct node *n, const struct extent *extent);
int l2_unlink(struct fiber *f, struct node *n, uint64_t off, uint64_t len, enum unlink_mode mode);
int qcow2_truncate(struct fiber *f, struct node *n, uint64_t len, enum prealloc prealloc, struct varve_error *err);
/* Could an image of that version have that length, as far as it can be said before anything is done? */
int qcow2_truncate_fits(struct fiber *f, struct node *n, unsigned version, uint64_t len, struct varve_error *err);
int l1_write(struct fiber *f, struct qcow2 *q, uint64_t host_off, const uint64_t *l1, uint64_t nr, order_mark *ret_mark);
/* The header's disk_len .. l1_off lie in one sector and are written as one: no cut leaves a disk longer than its L1. */
int l1_put_header(struct fiber *f, struct qcow2 *q, uint64_t disk_len, uint64_t l1_off, uint32_t l1_entries,
		  order_mark after, order_mark *ret_mark);
/* Under l1_mutex: an L1 table of nr entries, more than now; those added are empty. */
int l1_grow(struct fiber *f, struct qcow2 *q, uint32_t nr);

/* snapshot.c ------------------------------------------------------------------------------------------- */

struct qcow2_snapshot {
	uint64_t l1_off;
	uint32_t l1_entries;
	char *id, *name;
	uint32_t date_s, date_ns;
	uint64_t vm_clock_ns, vm_state_len, disk_len;
	uint64_t icount; /* UINT64_MAX: none */
	uint8_t *extra;	 /* as it was read, for the fields that we do not know; NULL: none */
	uint32_t extra_len;
};

/* Reads and checks the whole table. *ret_list has h.nr_snapshots elements; free with snapshots_free(). */
int snapshots_read(struct fiber *f, struct node *file, const struct qcow2_header *h, struct qcow2_snapshot **ret_list,
		   uint64_t *ret_table_len, struct varve_error *err);
void snapshots_free(struct qcow2_snapshot *list, uint32_t nr);
/* The table as it is to lie on disk, but for the entry `without` (nr: all). *ret: malloc'd. */
int snapshots_build(const struct qcow2_snapshot *list, uint32_t nr, uint32_t without, uint8_t **ret, size_t *ret_len,
		    struct varve_error *err);

/* create.c, check.c, info.c ---------------------------------------------------------------------------- */

extern const struct varve_option_info qcow2_options[];
int qcow2_create(struct fiber *f, struct node *file, uint64_t len, struct opts *o, varve_progress_fn progress,
		 void *user_data, struct varve_error *err);
int qcow2_check(struct fiber *f, struct node *n, struct check *c, struct varve_error *err);
int qcow2_amend(struct fiber *f, struct node *n, struct opts *o, varve_progress_fn progress, void *user_data,
		struct varve_error *err);
int qcow2_set_backing(struct fiber *f, struct node *n, const char *name, const char *format, bool snapshots_too,
		      struct varve_error *err);
int qcow2_info(struct fiber *f, struct node *n, void *json_image_info, struct varve_error *err);
/* reserved.c: the driver's reserved(). */
int qcow2_reserved(struct fiber *f, struct node *n, uint64_t taken, bool *ret);

#endif
