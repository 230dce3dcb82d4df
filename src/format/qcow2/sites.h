/* SPDX-License-Identifier: MIT */
/*
 * qcow2/sites.h - the places where one write must come after another, by name
 *
 * Each order that qcow2 makes between writes passes through site_after() (or asks site_off()) with its name. The
 * environment variable VARVE_FORGET_ORDER, for tests only, names sites separated by commas: they forget what has to come
 * first. A power-cut test must then find a damaged image; if it cannot, either the order is not needed or the test is
 * too weak. docs/guide/durability.md says what each removal leads to.
 */
#ifndef VARVE_FORMAT_QCOW2_SITES_H
#define VARVE_FORMAT_QCOW2_SITES_H

#include "format/qcow2/qcow2.h"

enum qcow2_site {
	SITE_L2_ENTRY,	    /* data and count of a cluster, then the entry that leads to it */
	SITE_STOCK_ENTRY,   /* count of a cluster of the stock, and the file's length, then the entry */
	SITE_STOCK_LENGTH,  /* the file's length, then entries that lead into the stock */
	SITE_L1_ENTRY,	    /* content and count of an L2 table, then the L1 entry */
	SITE_REFCOUNT_ENTRY, /* content of a refcount block, then the entry of the table */
	SITE_REFCOUNT_TABLE, /* a new refcount table and its blocks, then the header */
	SITE_REFCOUNT_LINKED, /* the link to a new block, then what relies on counts in it */
	SITE_L1_HEADER,	    /* a longer L1 table, then the header */
	SITE_TABLE_LINKED,  /* the L1 entry of a table, then counts that only the table before it needs */
	SITE_FREE,	    /* the entry is gone, then its cluster's count and space */
	SITE_DIRTY,	    /* the dirty bit (forgotten: not set at all), then counts fall behind */
	SITE_CLEAN,	    /* all counts, then the header without the dirty bit */
	SITE_FLUSH,	    /* everything written, then the guest hears that it is stable */
	SITE_SNAPSHOT_DIRTY, /* the dirty bit, then counts and COPIED flags that do not agree for a while */
	SITE_SNAPSHOT_LINK, /* counts, flags, tables and state of a snapshot, then the header that leads to it */
	SITE_SNAPSHOT_GONE, /* the header no longer leads to a table, then what only that needed */
	SITE_HEADER_CHANGE, /* everything written, then a header with other features, names or bitmaps */
	SITE_DATA_SYNC,	    /* the external data file, too, is synced; then entries that lead there, and the guest's answer */
	SITE_BITMAP_USE,    /* bitmaps say that they are not kept up to date, then the disk is written */
	SITES
};

#define SITE_NAMES                                                                                                      \
	{ "l2-entry", "stock-entry", "stock-length", "l1-entry", "refcount-entry", "refcount-table", "refcount-linked", \
	  "l1-header", "table-linked", "free", "dirty-bit", "clean-bit", "flush", "snapshot-dirty", "snapshot-link", \
	  "snapshot-gone", "header-change", "data-sync", "bitmap-in-use" }

/* Reads the environment; -EINVAL for a name that is none. */
int sites_open(struct qcow2 *q, struct varve_error *err);

static inline bool site_off(const struct qcow2 *q, enum qcow2_site site)
{
	return unlikely(q->sites_off & 1u << site);
}

/* `after`, unless the site is to forget it. */
static inline order_mark site_after(const struct qcow2 *q, enum qcow2_site site, order_mark after)
{
	return site_off(q, site) ? ORDER_NONE : after;
}

#endif
