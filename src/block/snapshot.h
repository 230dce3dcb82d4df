/* SPDX-License-Identifier: MIT */
/*
 * block/snapshot.h - internal snapshots of an image, as the rooms above see them
 *
 * A snapshot is made in two steps: a draft, which may be given the state of a virtual machine, and its commit. Until the
 * commit nobody sees it, and what a cut leaves of it is a leak. The driver's calls are in block/node.h; all run on fibers
 * of the home queue.
 */
#ifndef VARVE_BLOCK_SNAPSHOT_H
#define VARVE_BLOCK_SNAPSHOT_H

#include <stdlib.h>

#include "block/node.h"

#define SNAPSHOT_NAME_MAX 255 /* bytes, of a name or id that we write */

struct snapshot_info {
	char *id, *name;
	uint32_t date_s, date_ns; /* when it was made, UTC */
	uint64_t vm_clock_ns;
	uint64_t vm_state_len, disk_len;
	uint64_t icount; /* UINT64_MAX: none */
};

static inline void snapshot_infos_free(struct snapshot_info *list, uint32_t nr)
{
	for (uint32_t i = 0; i < nr; i++) {
		free(list[i].id);
		free(list[i].name);
	}
	free(list);
}

/* What a new one is to be. */
struct snapshot_want {
	const char *name;
	const char *id; /* NULL: the next number */
	uint32_t date_s, date_ns;
	uint64_t vm_clock_ns, icount;
	struct node *door; /* where requests for the disk come in: drained for a moment */
	bool now;	   /* the disk of the moment when the draft is made, not of the commit */
	bool repeat;	   /* the name may be another one's, too */
};

/* Which one is meant: the fields that are not NULL must match. */
struct snapshot_pick {
	const char *id, *name;
	bool first; /* of several the first; else they are refused */
};

/* What a snapshot takes; the last of a list is the disk as it is now. */
struct snapshot_usage {
	char *id, *name; /* NULL: the disk as it is now */
	int64_t parent;	 /* index of the one that it grew out of, as far as that can be seen; -1: none */
	uint32_t date_s;
	uint64_t vm_state_len;
	uint64_t alone, shared; /* bytes of the file that nobody else needs, and that others need too */
};

static inline void snapshot_usage_free(struct snapshot_usage *list, uint32_t nr)
{
	for (uint32_t i = 0; i < nr; i++) {
		free(list[i].id);
		free(list[i].name);
	}
	free(list);
}

struct snapshot_draft;
struct snapshot_state;

static inline bool snapshot_matches(const struct snapshot_pick *pick, const char *id, const char *name)
{
	return (!pick->id || __builtin_strcmp(pick->id, id) == 0) &&
	       (!pick->name || __builtin_strcmp(pick->name, name) == 0);
}

#endif
