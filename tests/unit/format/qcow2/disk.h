/* SPDX-License-Identifier: MIT */
/*
 * unit/format/qcow2/disk.h - a qcow2 disk that is open: written, read, unmapped, and judged by the bytes it
 * leaves
 *
 * The file below is the simulated one of image.h; errors can be made to happen there. Calls run the queue
 * until done.
 */
#ifndef VARVE_TEST_QCOW2_DISK_H
#define VARVE_TEST_QCOW2_DISK_H

#include "block/graph.h"
#include "image.h"

struct disk {
	struct image *im;
	struct node *n;		/* NULL: closed */
	struct varve_error err; /* of the last open, close or truncate */
	uint64_t backing_len;	/* 0: none; bytes of backing are 0xba */
	bool device;		/* the file is a block device: its length is what it is */
	const char *options;	/* of every open; NULL: none */
};

/* A new image, opened for writing. */
struct disk *disk_made(uint64_t len, const char *create_options);
/* Opened as flags say; the caller judges. */
int disk_open(struct disk *d, uint32_t flags);
int disk_close(struct disk *d);
/* Closed and opened for writing again; must succeed. */
void disk_reopen(struct disk *d);
/* Closes what is open, and frees all. */
void disk_free(struct disk *d);
/* Must close; check must find nothing at all. */
void disk_free_clean(struct disk *d);

int disk_write(struct disk *d, uint64_t off, uint64_t len, uint8_t byte);
int disk_zero(struct disk *d, uint64_t off, uint64_t len, bool unmap);
int disk_discard(struct disk *d, uint64_t off, uint64_t len);
int disk_flush(struct disk *d);
int disk_truncate(struct disk *d, uint64_t len);
int disk_truncate_prealloc(struct disk *d, uint64_t len, enum prealloc prealloc);
int disk_read(struct disk *d, uint64_t off, uint64_t len, uint8_t *buf);
/* All bytes of the range are this. */
void disk_expect(struct disk *d, uint64_t off, uint64_t len, uint8_t byte);
/* What the top layer alone says, loaded. */
struct extent disk_map(struct disk *d, uint64_t off, uint64_t len);
/* Several requests in flight at once. */
struct disk_op {
	enum req_op op;
	uint32_t flags;
	uint64_t off, len;
	uint8_t byte;
	int ret;
};
void disk_run(struct disk *d, struct disk_op *ops, unsigned nr);

/* ---- power cuts ---- */

/* What is left of the file. */
struct cut {
	uint8_t *bytes;
	uint64_t len;
};

struct cuts {
	struct disk *d;
	struct cut *all;
	unsigned nr;
};

/*
 * From here to cuts_end(), before each operation that reaches the file: the power is lost, with all subsets of what is not stable, or 32 of them,
 * some of which tear what they keep.
 */
void cuts_begin(struct cuts *c, struct disk *d);
void cuts_end(struct cuts *c);
/* One more, now: bit i % 64 of subset keeps the i-th of what is not stable. torn: as of sim_power_cut(). */
void cuts_add(struct cuts *c, uint64_t subset, uint64_t torn);
void cuts_free(struct cuts *c);
/* A disk whose file that is; closed. */
struct disk *disk_of_cut(const struct cut *cut);

/* The driver's state, for tests of single functions on a fiber. */
struct qcow2 *disk_state(struct disk *d);
/* fn on a fiber of the disk's queue. */
int disk_call(struct disk *d, int (*fn)(struct fiber *f, struct disk *d));

#endif
