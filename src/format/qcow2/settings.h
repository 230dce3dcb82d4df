/* SPDX-License-Identifier: MIT */
/*
 * qcow2/settings.h - the options of an image that is opened
 *
 * One table (settings.c) from which they are parsed, and from which the page of the grammar is made.
 */
#ifndef VARVE_QCOW2_SETTINGS_H
#define VARVE_QCOW2_SETTINGS_H

#include "block/snapshot.h"
#include "format/codec.h"
#include "format/qcow2/qcow2.h"

#define REFCOUNT_CACHE_LEN_DEFAULT MiB(4)

enum toggle { TOGGLE_NONE, TOGGLE_OFF, TOGGLE_ON }; /* NONE: not given */

/* What overlap-check knows of. All but INACTIVE_L2 are guarded always. */
enum {
	OVERLAP_MAIN_HEADER,
	OVERLAP_ACTIVE_L1,
	OVERLAP_ACTIVE_L2,
	OVERLAP_REFCOUNT_TABLE,
	OVERLAP_REFCOUNT_BLOCK,
	OVERLAP_SNAPSHOT_TABLE,
	OVERLAP_INACTIVE_L1,
	OVERLAP_INACTIVE_L2,
	OVERLAP_BITMAP_DIRECTORY,
	OVERLAP_ROLES
};

#define NOT_GIVEN UINT64_MAX

struct settings {
	/* As given. */
	uint64_t cache_len, l2_cache_len, l2_piece_len, refcount_cache_len;
	uint64_t clean_s; /* seconds */
	enum toggle lazy;
	enum toggle map_ahead, keeps_space;
	enum toggle discard_request, discard_snapshot, discard_other;
	const char *level_name, *overlap_name, *overlap_template;
	enum toggle overlap[OVERLAP_ROLES];
	const char *state_dir; /* NULL: what is queued dies with the process; strings are those of the options */
	struct snapshot_pick snapshot; /* of this, not of the disk as it is now */

	/* What follows from it. */
	uint64_t write_out_ns;
	bool guards_inactive;
	uint32_t discards; /* as in struct qcow2 */
	enum codec_level level;
};

/* The rows of the table, for people. */
extern const struct varve_option_info qcow2_open_options[];

/* Takes them from o (NULL: none are given). What needs no header is examined here. */
int settings_get(struct opts *o, struct settings *ret, struct varve_error *err);

/*
 * The lengths of the caches become what is to be had, once the header is known: cache-size is divided as other programs do, so
 * that a number that was calculated for them means the same here.
 */
int settings_fit(const struct qcow2 *q, struct settings *set, struct varve_error *err);

#endif
