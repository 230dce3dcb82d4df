/* SPDX-License-Identifier: MIT */
/*
 * block/node.h - a node: one layer of one disk, and the table of calls a driver gives
 *
 * A disk is a graph of nodes: a format node has a child `file` (a protocol node, or a filter above one) and
 * perhaps a child `backing` (the next image of the chain); a filter has `file` only; a leaf has none.
 * All nodes of one graph share the home queue: opening, closing, metadata changes and fibers happen there.
 * Other queues that were attached submit requests and look up published mappings, nothing else.
 */
#ifndef VARVE_BLOCK_NODE_H
#define VARVE_BLOCK_NODE_H

#include <stdatomic.h>

#include "base/error.h"
#include "base/opts.h"
#include "block/range.h"
#include "block/req.h"

/* ---- what a format answers ---- */

enum extent_kind {
	EXTENT_UNLOADED, /* the answer is not in memory: call load() on a fiber, ask again */
	EXTENT_DATA,	 /* at host_off of node */
	EXTENT_ZERO,	 /* reads as zeroes */
	EXTENT_ABSENT,	 /* this layer says nothing: the backing node decides; zeroes without one */
	EXTENT_PACKED,	 /* compressed, within one cluster of node: unpack() reads it; host_off is for that only */
	EXTENT_ERROR,	 /* metadata damaged here: error */
};

#define EXTENT_INPLACE (1u << 0) /* DATA: may be overwritten where it is (not shared with a snapshot) */
#define EXTENT_ALLOCATED (1u << 1) /* ZERO: space is reserved for it all the same */
#define EXTENT_MAPPED (1u << 3)	   /* ZERO, of graph_map(): data by the format's tables, in a hole of the file */
/* of alloc(): */
#define EXTENT_READS_ZERO (1u << 2) /* the fresh space is known to read as zeroes: no need to fill head and tail */

struct extent {
	enum extent_kind kind;
	uint32_t flags;
	int error;	   /* ERROR: negative errno */
	uint32_t before;   /* of alloc(): the extent begins so many bytes in front of the offset that was asked for */
	struct node *node; /* DATA: the node to send I/O to (n->file, or n->data); UNLOADED: whose load() to call */
	uint64_t host_off; /* DATA, or ZERO with ALLOCATED: where in node */
	uint64_t len;	   /* bytes from the asked offset for which all this holds; > 0, <= the asked length */
};

enum unlink_mode {
	UNLINK_ZERO,	     /* must read as zeroes after; space kept when cheaper */
	UNLINK_ZERO_UNMAP,   /* must read as zeroes after; give space back */
	UNLINK_DISCARD,	     /* like the peer: zero when there is a backing image, unallocated otherwise */
	UNLINK_ABSENT,	     /* nothing is here any more: the backing image shows, zeroes without one */
};

/*
 * What becomes of space that is new: nothing; tables that lead to space without blocks behind it; blocks reserved; zeroes
 * written. A leaf knows only "reserve or not".
 */
enum prealloc { PREALLOC_OFF, PREALLOC_METADATA, PREALLOC_FALLOC, PREALLOC_FULL };

/* ---- check ---- */

#define CHECK_REPORT_MAX 10000 /* lines: nobody reads more, and a table of random bytes would give millions */

struct check {
	struct varve_check_result *result;
	varve_report_fn report;
	varve_progress_fn progress;
	void *user_data;
	unsigned nr_reported; /* check_report()'s own */
};

void check_report(struct check *c, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

struct bitmap_bits;
struct bitmap_change;
struct bitmap_info;
struct emit_driver;
struct snapshot_info;
struct snapshot_want;
struct snapshot_pick;
struct snapshot_usage;
struct snapshot_draft;
struct snapshot_state;

/* ---- measure ---- */

struct measure {
	uint64_t tables;    /* bytes of header and tables, when all of the disk has space */
	uint64_t unit;	    /* in which data gets space; a power of two */
	bool everything;    /* all of the disk has space from the beginning */
	bool over_backing;  /* it will have a backing file: what that holds of a source is not known */
	bool holds_bitmaps; /* the format can keep dirty bitmaps */
};

/* ---- drivers ---- */

/* What every disk takes, and every layer of one. */
extern const struct varve_option_info disk_options[];

enum driver_kind { DRIVER_LEAF, DRIVER_FILTER, DRIVER_FORMAT };

struct driver {
	const char *name; /* as users write it: driver=NAME */
	enum driver_kind kind;
	size_t state_len; /* zeroed memory at node_state() */
	bool has_engine; /* leaf: does its I/O through an engine of aio/, and takes option aio */
	const char *prefix; /* leaf: name before the colon in file names ("file:", "null-co:"), or NULL */

	/*
	 * Options of create() and amend(), for people; of a leaf: of a new file besides. The last has no name; NULL: none. hint():
	 * leaf: takes them from o, for when the file is emptied; n NULL: only examines them.
	 */
	const struct varve_option_info *options;
	const struct varve_option_info *open_options; /* those of open(), the same way */
	int (*hint)(struct node *n, struct opts *o, struct varve_error *err);

	/* Format: how sure, 0 (not mine) .. 100, from the file's first bytes. raw answers 1. */
	int (*probe)(const uint8_t *buf, size_t len);

	/* Leaf: puts what a file name after the prefix says into options ("filename", "host", ...). */
	int (*parse_name)(const char *name, struct opts *o, struct varve_error *err);

	/*
	 * On a home queue's fiber. Formats and filters find n->file open. Sets n->len, n->align (leaf), backing_name and
	 * backing_format (format). Takes its options from o. On failure the driver undoes its own work; close() is not
	 * called then.
	 */
	int (*open)(struct fiber *f, struct node *n, struct opts *o, struct varve_error *err);
	/* No request is in flight. Metadata has been synced by node_close() before. */
	void (*close)(struct fiber *f, struct node *n);

	/* Leaf, filter: handle a request; in bounds, and aligned to n->align. Never waits, never recurses into itself. */
	void (*submit)(struct node *n, struct req *r);
	/* Leaf, optional: prepare queue q for requests (engine contexts); on q's thread. */
	int (*attach)(struct node *n, struct queue *q, struct varve_error *err);
	/* Leaf: file length now, or negative errno; used on the home queue by formats that grow. */
	int64_t (*get_len)(struct fiber *f, struct node *n);
	/* Leaf, optional: is there a hole at off, and for how many bytes (1 .. len) does the answer hold? Never claims a
	 * hole that is not certain. */
	int (*status)(struct fiber *f, struct node *n, uint64_t off, uint64_t len, bool *ret_hole, uint64_t *ret_len);
	/* Leaf, optional: bytes of the device that it takes; UINT64_MAX: not known. */
	int (*taken)(struct fiber *f, struct node *n, uint64_t *ret);
	/* Format, optional: is clearly more of its file in use than the file takes? Looking for holes behind its tables pays then. */
	int (*reserved)(struct fiber *f, struct node *n, uint64_t taken, bool *ret);
	/*
	 * Leaf: set the length; format: resize of the virtual disk, durable when it returns. What is cut off is gone; what
	 * is added reads as zeroes. A length that cannot be had leaves the one that was.
	 */
	int (*truncate)(struct fiber *f, struct node *n, uint64_t len, enum prealloc prealloc, struct varve_error *err);
	/*
	 * Leaf, optional: at least len long, with zeroes where nothing was; never shorter than it is, whoever writes behind
	 * its end meanwhile (setting the length could cut that off). May allocate the space, if that makes writes cheaper.
	 */
	int (*extend)(struct fiber *f, struct node *n, uint64_t len);
	/*
	 * Leaf, optional: space for [off, off + len), which stays what it is; the file is at least as long afterwards, as with
	 * extend(). So that a later write there does not fail for want of space. 0 also where that cannot be asked for.
	 */
	int (*allocate)(struct fiber *f, struct node *n, uint64_t off, uint64_t len);
	/*
	 * Filter, optional: the format above is about to do that (enum event); may wait. Break points. Both on the home queue,
	 * see block/event.h. child_key: what the options call the node below, beside "file".
	 */
	void (*event)(struct fiber *f, struct node *n, unsigned event);
	int (*debug)(struct node *n, unsigned op, const char *event, const char *tag, struct varve_error *err);
	const char *child_key;
	/* Filter, optional: the length of the file below has been set to len, or (at_least) made len if it was less. */
	int (*length_set)(struct node *n, uint64_t len, bool at_least);

	/*
	 * Format. map(): any attached queue, no waiting, no side effects: what is at [off, off + len)? The rest: fibers of
	 * the home queue, called by block/ with the clusters concerned locked against each other (block/range.h).
	 *
	 * load():   bring what map() needs for off into memory. -EIO and the like if it cannot be read.
	 * alloc():  find space for [off, off + len) (multiples of map_unit(), len is the wish; ret_extent->len may be
	 *           shorter but is > 0), counted as used, not yet reachable. Only for parts where map() did not answer
	 *           DATA with INPLACE. *ret_extent: DATA, host_off contiguous. A format that maps parts of clusters may
	 *           answer with more than was asked for, up to the ends of the clusters concerned: the extent is that of
	 *           [off - before, off - before + len), all of which the caller fills with what the guest sees there. (A
	 *           cluster that leaves a place shared with a snapshot moves with all of its parts that have data.)
	 * link():   make it reachable: published in memory at once, on disk after the data that the caller wrote. off: the
	 *           extent's own, that is, the one given to alloc() less `before`.
	 * unalloc():the data could not be written: give the space of alloc() back.
	 * unlink(): multiples of map_unit() read as zeroes / nothing afterwards; frees what they held (uses node_grace()).
	 *           -ENOTSUP: cannot be said of this (of a part of a compressed cluster, say); nothing was changed, if all
	 *           of it lies in one cluster.
	 * Two who want different parts of one cluster wait for each other like two who want the same: locked are whole
	 * clusters, filled and linked are parts. So a cluster gets its space from the first, and the second finds it.
	 * sync():   everything acknowledged becomes stable, metadata and data: the guest's flush.
	 * clean():  any queue: true if no metadata waits, so that a flush may go straight to the file.
	 */
	void (*map)(struct node *n, uint64_t off, uint64_t len, struct extent *ret_extent);
	int (*load)(struct fiber *f, struct node *n, uint64_t off);
	int (*alloc)(struct fiber *f, struct node *n, uint64_t off, uint64_t len, struct extent *ret_extent);
	int (*link)(struct fiber *f, struct node *n, uint64_t off, const struct extent *extent);
	void (*unalloc)(struct fiber *f, struct node *n, const struct extent *extent);
	int (*unlink)(struct fiber *f, struct node *n, uint64_t off, uint64_t len, enum unlink_mode mode);
	/*
	 * Optional. unpack(): reads [off, off + len), for which map() said PACKED with this host_off, into iov from its byte pos
	 * on. pack(): bytes of the whole cluster at off, for which map() does not say DATA with INPLACE, are compressed, written
	 * and linked. 1: they do not get smaller, nothing was done.
	 */
	int (*unpack)(struct fiber *f, struct node *n, uint64_t off, uint64_t len, uint64_t host_off,
		      const struct iovec *iov, unsigned nr_iov, uint64_t pos);
	int (*pack)(struct fiber *f, struct node *n, uint64_t off, const void *bytes);
	int (*sync)(struct fiber *f, struct node *n);
	bool (*clean)(struct node *n);
	/*
	 * Optional. Home queue. A request that reads or writes [off, off + len) met ERROR there, in the map of this image or of one
	 * below it. What the request fails with; 0: as the map said.
	 */
	int (*damage)(struct fiber *f, struct node *n, uint64_t off, uint64_t len, bool write);

	/*
	 * Format: makes an image in `file` (open, writable; what it holds is to go). len: of the virtual disk. Takes its options
	 * from o and checks all of them before it empties the file. Sizes of backing images were settled by the caller.
	 */
	int (*create)(struct fiber *f, struct node *file, uint64_t len, struct opts *o, varve_progress_fn progress,
		      void *user_data, struct varve_error *err);
	const struct emit_driver *emit; /* optional: images written forward only (block/emit.h) */
	/* Optional. How large an image made with these options would be, for a disk of len bytes. */
	int (*measure)(uint64_t len, struct opts *o, struct measure *ret, struct varve_error *err);
	int (*check)(struct fiber *f, struct node *n, struct check *c, struct varve_error *err);
	/*
	 * Optional. The header names another backing file, of that format; NULL, NULL: none. Durable when it returns, and so
	 * is everything that was linked before. The node's own names and its chain are the caller's to change. snapshots_too: those
	 * of the image are to read from the new file as well; otherwise -ENOTSUP if there are some.
	 */
	int (*set_backing)(struct fiber *f, struct node *n, const char *name, const char *format, bool snapshots_too,
			   struct varve_error *err);
	/*
	 * Optional. Options of an image that exists become others (those of o; the rest stays), durably. All are examined
	 * before any is changed.
	 */
	int (*amend)(struct fiber *f, struct node *n, struct opts *o, varve_progress_fn progress, void *user_data,
		     struct varve_error *err);
	/* Adds to the ImageInfo object (a json_t of jansson) what the format knows, "format-specific" included. */
	int (*info)(struct fiber *f, struct node *n, void *json_image_info, struct varve_error *err);
	/* Format, optional: adds to a json_t the options without which its file would be another disk. */
	void (*describe)(struct node *n, void *json_options);
	/*
	 * Leaf, optional, home queue: copies from the other leaf, which has the same copy_range(), without moving the bytes
	 * through this process. *ret_len: so many from the start, 1 .. len. -ENOTSUP: not these two, or not this range.
	 */
	int (*copy_range)(struct fiber *f, struct node *src, uint64_t src_off, struct node *dst, uint64_t dst_off,
			  uint64_t len, uint64_t *ret_len);
	/*
	 * Optional. Home queue: adds the node's own counters to an object of varve_image_stats() (a json_t); a leaf has
	 * an object of its own there.
	 */
	void (*stats)(struct node *n, void *json_stats);
	/*
	 * Leaf, optional, home queue: the operator knows that a flush failed, and takes over what was lost: flushes succeed
	 * again. Returns the error that is forgotten, 0 if there was none; adds to *bytes what was in doubt.
	 */
	int (*acknowledge)(struct node *n, uint64_t *bytes);
	/*
	 * Leaf, optional, home queue, before the node is used: a process that used the file before us died while its syncs
	 * failed with that error. Flushes fail with it until somebody acknowledges it. 0: what they fail with now is noted elsewhere, and
	 * will be inherited again before the node is used; until then they tell what becomes of what is written from now on.
	 */
	void (*inherit_error)(struct node *n, int error);
	/*
	 * Leaf, optional, home queue: *where becomes what flushes fail with, a positive errno, whenever that changes, so that
	 * another process finds it when this one is dead; as long as nothing has failed it is left as it is. NULL: no more.
	 */
	void (*publish_error)(struct node *n, _Atomic uint64_t *where);

	/* Format, optional: internal snapshots (block/snapshot.h). Home queue. */
	/* *ret_list: malloc'd, and so are the ids and names in it. */
	int (*snapshot_list)(struct fiber *f, struct node *n, struct snapshot_info **ret_list, uint32_t *ret_nr,
			     struct varve_error *err);
	int (*snapshot_create)(struct fiber *f, struct node *n, const struct snapshot_want *want,
			       struct snapshot_draft **ret, struct varve_error *err);
	/* Space for the next len bytes of the machine's state; ret_extent->len may be less, but is whole clusters. */
	int (*snapshot_space)(struct fiber *f, struct node *n, struct snapshot_draft *d, uint64_t len,
			      struct extent *ret_extent);
	/* The state has been written, state_len bytes. Durable when it returns. The draft is gone, also on failure. */
	int (*snapshot_commit)(struct fiber *f, struct node *n, struct snapshot_draft *d, uint64_t state_len,
			       char **ret_id, struct varve_error *err);
	/* All of its space is given back. */
	void (*snapshot_abort)(struct fiber *f, struct node *n, struct snapshot_draft *d);
	int (*snapshot_delete)(struct fiber *f, struct node *n, const struct snapshot_pick *pick,
			       struct varve_error *err);
	/* The disk becomes what it was then, its length too. Nobody else uses it. */
	int (*snapshot_apply)(struct fiber *f, struct node *n, const struct snapshot_pick *pick, struct varve_error *err);
	/* The state of a snapshot, to be read: where is [off, off + len) of it? DATA, ZERO or ERROR. */
	int (*snapshot_state_open)(struct fiber *f, struct node *n, const struct snapshot_pick *pick,
				   struct snapshot_state **ret, uint64_t *ret_len, struct varve_error *err);
	void (*snapshot_state_map)(struct fiber *f, struct node *n, struct snapshot_state *st, uint64_t off, uint64_t len,
				   struct extent *ret_extent);
	void (*snapshot_state_close)(struct snapshot_state *st);
	/* *ret_list: malloc'd, as snapshot_usage_free() takes it. */
	int (*snapshot_graph)(struct fiber *f, struct node *n, struct snapshot_usage **ret_list, uint32_t *ret_nr,
			      struct varve_error *err);
	/* The area behind the end of the disk where a machine's state stands before it belongs to a snapshot. */
	int (*state_area_read)(struct fiber *f, struct node *n, uint64_t off, void *buf, size_t len);
	int (*state_area_write)(struct fiber *f, struct node *n, uint64_t off, const void *buf, size_t len);

	/* With NODE_NOTES. Any queue: [off, off + len) is about to be written, or to become something else. Waits for nothing. */
	void (*note_write)(struct node *n, uint64_t off, uint64_t len);

	/* Format, optional: persistent dirty bitmaps (block/bitmap.h). Home queue. */
	/* *ret_list: malloc'd, and so are the names in it. */
	int (*bitmap_list)(struct fiber *f, struct node *n, struct bitmap_info **ret_list, uint32_t *ret_nr,
			   struct varve_error *err);
	/* With NODE_BITMAPS. Durable when it returns. */
	int (*bitmap_change)(struct fiber *f, struct node *n, const struct bitmap_change *c, struct varve_error *err);
	/* One to be read; not one that is inconsistent. Behind its end there are zeroes. */
	int (*bitmap_open)(struct fiber *f, struct node *n, const char *name, struct bitmap_bits **ret, struct varve_error *err);
	int (*bitmap_read)(struct fiber *f, struct node *n, struct bitmap_bits *bits, uint64_t off, void *buf, size_t len);
	void (*bitmap_close)(struct node *n, struct bitmap_bits *bits);
};

#define DRIVER_FORMATS_MAX 128
/* All of them, from 0 on; NULL: there are no more. */
const struct driver *driver_at(unsigned i);
/* "qcow2, qed, raw", for messages. Returns buf. */
const char *driver_formats(char buf[DRIVER_FORMATS_MAX]);
/* The one list of drivers (block/drivers.c). NULL if unknown. */
const struct driver *driver_find(const char *name);
const struct driver *driver_by_prefix(const char *filename, const char **ret_rest);
/* "nbd+unix:///...", and no driver of that name: most likely no file is meant. *ret_len: of the name before the colon. */
bool driver_names_unknown(const char *filename, size_t *ret_len);
const struct driver *driver_probe(const uint8_t *buf, size_t len);
/*
 * For what driver_probe() calls raw: the name of the format it is in, if it is one that no driver reads, or NULL. Its bytes,
 * taken for those of a disk, would be a wrong answer that looks like a right one.
 */
const char *driver_probe_foreign(const uint8_t *buf, size_t len);

/* ---- nodes ---- */

#define NODE_WRITABLE (1u << 0)
#define NODE_NO_BACKING (1u << 1)
#define NODE_FORCE_SHARE (1u << 2)
#define NODE_NO_IO (1u << 3)
#define NODE_CHECK (1u << 4)
#define NODE_NO_FLUSH (1u << 5)	    /* cache=unsafe: flushes are answered without doing anything */
#define NODE_WRITETHROUGH (1u << 6) /* every write of the guest is FUA */
#define NODE_DIRECT (1u << 7)	    /* O_DIRECT */
#define NODE_PROBED (1u << 8)	    /* raw found by probing: sector 0 is guarded */
#define NODE_FORCE_COLD (1u << 9)   /* tests: every request takes the cold path first */
#define NODE_SYNC (1u << 10)	    /* leaf: every write and zeroing is FUA, those of metadata too */
#define NODE_REPAIR (1u << 11)	    /* format: counts and tables are examined, and made right, before it is written */
#define NODE_EVENTS (1u << 12)	    /* it, or a filter below it, wants to know of events (block/event.h) */
#define NODE_BITMAPS (1u << 13)	    /* format: opened to change bitmaps, nothing else: they stay as they are */
#define NODE_NO_DATA (1u << 14)   /* no data file is opened: where data is can be asked, not what it is */
#define NODE_NOTES (1u << 15)	  /* format: of every write, note_write() is told first; set in open() */
#define NODE_AUTO_READ_ONLY (1u << 16) /* what cannot be opened for writing is opened for reading */
#define NODE_UNMAPS (1u << 17)	  /* format: was asked to give back what is zeroed with leave to, whatever discard= says; set in open() */
#define NODE_CACHE_FLAGS (NODE_NO_FLUSH | NODE_WRITETHROUGH | NODE_DIRECT)

#define NODE_NAME_MAX 4096 /* bytes of a file name, as PATH_MAX */

/* Flushes of one node that share a sync (block/flush.c). */
struct flush_rounds {
	struct node *node;
	struct req_list waiting; /* for the next round */
	struct req_list served;	 /* by the round under way, besides the request that it travels with */
	struct msg begin;
	bool busy;		 /* a round is under way, or about to begin */
	uint64_t nr_flushes, nr_rounds;
};

/* What one queue knows of one node; touched by that queue's thread only. */
struct node_slot {
	struct node *node;
	struct queue *q;
	_Atomic unsigned users;	 /* node_attach() less node_detach() of this very node */
	uint64_t entered;	 /* requests that came in at this node and are not done: drain */
	unsigned nr_stable;	 /* of these: writes of data that must be stable, as far as this node counts them */
	bool quiesced;		 /* drained: new requests wait in parked */
	unsigned phase;		 /* which of hot[] new requests count in */
	uint64_t hot[2];	 /* hot-path I/O in flight under a mapping: grace */
	struct msg *grace_reply; /* home waits until hot[!phase] is 0 */
	struct msg *drain_reply; /* home waits until entered is 0 */
	struct msg drain_end;	 /* home says: go on */
	struct req_list parked;
	struct req_list stopped;	 /* wait for block/policy.c */
	struct req_list throttled[2];	 /* reads, others: wait for block/throttle.c */
	struct timer throttle_timer;
	unsigned throttle_generation;
	unsigned throttle_hurry;	 /* throttle_hurry_begin() less _end() */
	struct msg restart;		 /* any thread says: send them again */
	_Atomic bool restart_sent;
	_Atomic unsigned refs;		 /* being attached, and messages of restart and the end of drains under way */
	struct flush_rounds flushes;
	uint64_t nr_hot, nr_cold, nr_split; /* requests by path, for the statistics */
} __attribute__((aligned(64)));

struct chain_cache;
struct cor;
struct policy;
struct throttle;

/* Somebody who wants to know when a node has been given another length. */
struct len_watch {
	TAILQ_ENTRY(len_watch) link;
	void (*changed)(struct len_watch *w); /* home queue; must not wait, nor end a watch */
};

struct node {
	/* set at open */
	const struct driver *drv;
	void (*submit)(struct node *n, struct req *r); /* where requests for this node enter: the driver's, or block/'s */
	void *state;
	char *name; /* file name or description, for messages */
	char *id;   /* node-name; NULL: not given */
	uint32_t flags;
	struct node *file, *backing;
	/*
	 * Format: a second file, with the guest's data and nothing else (block/data_file.c); NULL: that is in `file`, too. Of a file
	 * that create() makes an image in: where the data of that image is to go.
	 */
	struct node *data;
	struct queue *home;
	unsigned level;		  /* fibers of block/ for it run at this level: 1 leaf (0: its driver's own), above: 1 + level of file */
	uint32_t align;		  /* leaf, filter: requests must be multiples of it (power of two, 1: any) */
	uint32_t mem_align;	  /* leaf: and memory addresses of this */
	bool kept_above;	  /* leaf: what is read is kept by copy-on-read, which reads ahead itself */
	bool fua_waits;		  /* leaf: stable writes wait for one another; a flush that several share serves them sooner */
	bool fixed_len;		  /* a write beyond the end does not make it longer: a block device, a part of a file (raw, size=) */
	uint32_t cluster_len;	  /* format: unit of allocation; 0: none (raw) */
	uint32_t part_len;	  /* format: clusters are mapped in parts of so many bytes; 0: as wholes */
	/*
	 * Format without a mapping that could change (raw): all of the disk is in place in `file`, from through_off on; map()
	 * says the same. Reads and writes go straight there.
	 */
	bool through;
	uint64_t through_off;
	const char *aio;	  /* the engine that was asked for, for what a format opens itself; NULL: the best; while it is opened */
	char *backing_name;	  /* format: as written in the image, NULL: none */
	char *backing_format;	  /* format: as written in the image, NULL: not said */
	uint64_t file_id[2];	  /* leaf: device and inode, to notice chains that loop; 0, 0: has none */
	uint64_t file_birth;	  /* leaf: ns, when that inode was made; 0: not known */
	enum { HOLES_UNKNOWN, HOLES_FEW, HOLES_MANY } holes; /* format: of its file, as graph_map() found it first */
	uint32_t wish;		  /* the disk's top: discard=, detect-zeroes= (block/wish.h) */
	struct policy *policy;	   /* werror= (block/policy.h); NULL: report */
	struct cor *cor;	   /* copy-on-read (block/copy_on_read.h); NULL: off */
	struct chain_cache *chain; /* looked-up ranges of the layers below (block/chain.c) */

	/* any queue, atomically */
	_Atomic uint64_t len;	      /* bytes, as the layer above sees it */
	_Atomic unsigned serialising; /* leaf: > 0: writes go through the range lock (read-modify-write is going on) */
	struct throttle *_Atomic throttle; /* limits (block/throttle.h); NULL: none */
	_Atomic bool ending;	      /* long operations on it end at their next safe point, see node_ending() */
	_Atomic unsigned drained;     /* > 0: nothing enters; home changes it, queues that attach read it */
	struct node_slot *_Atomic slots[QUEUE_MAX];

	/* home queue only */
	bool unserved;	/* of a top: who closes it has not used it, see varve_image_leave_flush_error() */
	bool accounted; /* whoever closes it has been told what became of what was written (the last flush) */
	TAILQ_HEAD(, len_watch) len_watches;
	_Atomic uint64_t *noted_len; /* leaf: where it is noted how long it was at least, see node_note_len(); NULL: nobody wants to know */
	unsigned truncating;	     /* leaf: node_truncate() is on its way */
	struct ranges ranges;
	struct fiber_mutex grace_mutex;
	struct fiber_mutex serial_mutex;
	struct fiber_mutex drain_mutex;
	struct fiber_mutex change_mutex; /* of a top: see node_change_begin(); taken before all others */
	struct fiber_mutex chain_mutex;	 /* of a top: see node_chain_hold(); taken with nothing that a drain waits for */
};

static inline void *node_state(struct node *n)
{
	return n->state;
}

static inline const char *node_name(const struct node *n)
{
	return n->name;
}

/* The unit in which the format's alloc(), link() and unlink() work; map() answers for no less. 0: there is no mapping. */
static inline uint32_t map_unit(const struct node *n)
{
	return n->part_len ? n->part_len : n->cluster_len;
}

static inline uint64_t node_len(const struct node *n)
{
	return atomic_load_explicit(&n->len, memory_order_relaxed);
}

/* ---- I/O on a node for code on a fiber (home queue or any attached queue): waits, returns 0 or negative errno ---- */

/* Without a vector: of metadata (REQ_META). With one: a guest's bytes, unless the flags say other. */
int node_read(struct fiber *f, struct node *n, uint64_t off, void *buf, size_t len);
int node_write(struct fiber *f, struct node *n, uint64_t off, const void *buf, size_t len);
int node_readv(struct fiber *f, struct node *n, uint64_t off, const struct iovec *iov, unsigned nr_iov);
int node_writev(struct fiber *f, struct node *n, uint64_t off, const struct iovec *iov, unsigned nr_iov, uint32_t flags);
int node_flush(struct fiber *f, struct node *n);

/* Several writes, in flight together in no order: waits for all of them. The first error. nr > 0 */
struct node_write {
	uint64_t off, len;
	const struct iovec *iov; /* exactly len bytes */
	unsigned nr_iov;
	uint32_t flags; /* of the request */
	struct req r; /* node_write_all()'s */
};

int node_write_all(struct fiber *f, struct node *n, struct node_write *writes, unsigned nr);
int node_discard(struct fiber *f, struct node *n, uint64_t off, uint64_t len);
int node_zero(struct fiber *f, struct node *n, uint64_t off, uint64_t len, uint32_t flags);
int64_t node_file_len(struct fiber *f, struct node *n); /* leaf below, asked anew */
/* -ENOTSUP: the leaf cannot. See struct driver. */
int node_extend(struct fiber *f, struct node *n, uint64_t len);
/*
 * For metadata, before anything is answered that needs it: who queues a write to space that is there cannot be told later, by a flush or when
 * everything is closed, that the disk is full. -ENOSPC and the like; 0 where the leaf cannot promise anything.
 */
int node_allocate(struct fiber *f, struct node *n, uint64_t off, uint64_t len);
/*
 * Notes the length that a leaf has now. What is noted is never more than the file has, whenever the process dies: writes count when they
 * have completed, and node_truncate() lowers it before the file becomes shorter.
 */
static inline void node_note_len(struct node *leaf)
{
	if (leaf->noted_len && !leaf->truncating)
		atomic_store_explicit(leaf->noted_len, node_len(leaf), memory_order_release);
}

/* Home queue. node_truncate() of this very node tells. */
void node_watch_len(struct node *n, struct len_watch *w);
void node_unwatch_len(struct node *n, struct len_watch *w);

int node_truncate(struct fiber *f, struct node *n, uint64_t len, enum prealloc prealloc, struct varve_error *err);

/*
 * Somebody asked for an end of what takes long (varve_image_cancel()): what loops over a disk answers -ECANCELED, at a point from
 * which closing leaves nothing behind.
 */
static inline bool node_ending(const struct node *n)
{
	return atomic_load_explicit(&n->ending, memory_order_relaxed);
}

/* The request r, which was initialised by the caller, on node n; waits for it on fiber f (r->done is used). */
int node_submit_wait(struct fiber *f, struct node *n, struct req *r);

/*
 * An export's or API's request enters the disk: bounds, drain and statistics are seen to here. Completion through
 * r->done, never before node_submit() returns for leaves with an engine, possibly before for others (null, zeroes).
 */
void node_submit(struct node *n, struct req *r);

/*
 * For a format's unlink() and eviction: after it returns, no queue uses a mapping that was published before the call,
 * and no hot-path I/O that relied on one is in flight. Home queue.
 */
void node_grace(struct fiber *f, struct node *n);

/* No request is in flight at n, none enters, until node_drain_end(). Home queue. Nests. */
void node_drain_begin(struct fiber *f, struct node *n);
void node_drain_end(struct node *n);
/*
 * The same for who changes what the top of a disk is (its length, its backing chain, its options): one at a time, because one may be reading
 * from an image of the chain that another one closes. Does not nest.
 */
void node_change_begin(struct fiber *f, struct node *top);
void node_change_end(struct node *top);
/*
 * Who looks along the chain of a top, and does not come in by the door: it stays what it is from one to the other. chain_mutex alone, which a
 * change takes when all queues have answered its drain: the thread that waits for this may be one that had to answer. For fiber_call().
 */
int node_chain_hold(struct fiber *f, void *top);
int node_chain_let_go(struct fiber *f, void *top);

/*
 * Queue q may submit to n (and everything below) from now on: on q's thread. Detaching: a fiber of the home queue,
 * with nothing of q in flight at n and q still alive. What was attached several times is detached by the last call;
 * calls for the same queue come one at a time. The home queue itself stays attached until the graph closes. Who attaches sees to it that the
 * chain stays what it is (node_chain_hold()); detaching does that itself.
 */
int node_attach(struct node *n, struct queue *q, struct varve_error *err);
void node_detach(struct fiber *f, struct node *n, struct queue *q);

#endif
