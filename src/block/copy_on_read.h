/* SPDX-License-Identifier: MIT */
/*
 * block/copy_on_read.h - clusters of backing images become the disk's own
 */
#ifndef VARVE_BLOCK_COPY_ON_READ_H
#define VARVE_BLOCK_COPY_ON_READ_H

#include "block/node.h"

#define COR_BOTTOM_ALL UINT32_MAX

struct cor_stats {
	uint64_t copies;       /* runs of clusters that were fetched */
	uint64_t copied_bytes; /* stored as data */
	uint64_t zero_bytes;   /* stored as zeroes */
	uint64_t failures;     /* requests that could not be kept */
	uint64_t ahead_bytes;  /* of both: before a reader asked */
};

/* copy-on-read=on|off, copy-on-read-bottom=NAME. *ret_bottom: malloc'd, or NULL. */
int cor_options(struct opts *o, bool *ret_on, char **ret_bottom, struct varve_error *err);
/*
 * Switches it on for a format node with its chain; before requests come. bottom: name of the last image of the chain that
 * clusters are copied from; NULL: all. Refused for images that are read-only or of a format without allocation.
 */
int cor_open(struct node *n, const char *bottom, struct varve_error *err);
/* Fetching ahead ends; waits for what is under way. Before the image is closed, or its chain changes. */
void cor_stop(struct fiber *f, struct node *n);
void cor_resume(struct node *n);
/* queue_now() when a request last met something to copy; 0: never. Home queue. */
uint64_t cor_last_read(const struct node *n);
/* Tells the leaves of the `bottom` images below n that what is read of them is kept: they need not read ahead. */
void cor_keep(struct node *n, unsigned bottom);
/* How many images below n there are down to `name`, that one included. -ENOENT: it is not in the chain. */
int cor_depth_of(const struct node *n, const char *name, struct varve_error *err);
void cor_free(struct node *n);

/* Any queue: does this read meet something to copy? */
bool cor_wants(struct node *n, const struct req *r);

/* A cold_fn: does the read, and keeps what it fetched. */
int cor_read(struct fiber *f, struct node *n, struct req *r);

/*
 * For jobs: whatever [off, off + len) finds in the `bottom` images below n becomes n's own. keep_zeroes: also what
 * they say is zero. Adds to stats. The first error, of reading or storing, ends it. n need not have the option.
 */
int cor_populate(struct fiber *f, struct node *n, uint64_t off, uint64_t len, unsigned bottom, bool keep_zeroes,
		 struct cor_stats *stats);

/* Home queue. */
void cor_get_stats(const struct node *n, struct cor_stats *ret);

#endif
