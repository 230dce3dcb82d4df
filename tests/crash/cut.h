/* SPDX-License-Identifier: MIT */
/*
 * crash/cut.h - a disk over a simulated file, a workload, and what may be read after a power cut
 */
#ifndef VARVE_TEST_CUT_H
#define VARVE_TEST_CUT_H

#include <stdbool.h>
#include <stdint.h>

struct cut_config {
	const char *format; /* qcow2, qed */
	uint64_t seed;
	uint64_t cluster, len; /* of clusters, of the disk; bytes */
	unsigned depth;	       /* requests in flight */
	unsigned steps;	       /* requests in all */
	unsigned cuts;	       /* power cuts to look at, about */
	bool backing;	       /* above a base full of bytes */
	bool version2; /* qcow2 */
	bool data_file, data_file_raw; /* qcow2: the data is in another file; which always reads as the disk */
	bool subclusters; /* qcow2: extended L2 entries */
	bool keeps_space; /* qcow2: discard-no-unref */
	bool discards_other; /* qcow2: pass-discard-other: all that becomes free is punched, tables too */
	bool run;	   /* most requests begin where the one before ended */
	bool copy_on_read; /* with backing: one request in three reads, and what it reads is kept */
	/*
	 * The process is killed about so many times, and the next one takes over from the journal in state_dir; power cuts
	 * come in between, too. After each takeover everything that was acknowledged must be there.
	 */
	unsigned kills;
	const char *state_dir;
};

struct cut_result {
	unsigned nr_cuts, nr_flushes, nr_unstable; /* cuts, completed flushes, writes in doubt at all cuts */
	unsigned nr_kills, nr_cuts_in_takeover;
	uint64_t leaks;
	char broken[600]; /* what the first cut that was not survived left behind; "": all were */
};

/* Makes the disk, runs the workload, cuts the power in between. Stops at the first cut that was not survived. */
void cut_run(const struct cut_config *config, struct cut_result *ret);

/* cut_journal.c: the lock is free, as if the process were gone. */
struct node;
void cut_give_up_journal(struct node *disk, const char *format);

#endif
