/* SPDX-License-Identifier: MIT */
/*
 * tools/descriptors.c - see descriptors.h
 *
 * A disk takes descriptors when it is opened, and as many again when its machine connects: without this, a server of many
 * disks would start, and some of its machines would find nobody who answers.
 */
#include "descriptors.h"

#include <dirent.h>
#include <errno.h>
#include <sys/resource.h>

/* Clients of the control socket, the descriptors of a message on its way, files that are opened for a moment. */
#define SPARE 32u

/* An image that is opened when its machine comes: its file, and one below it. */
#define IMAGE 2u

void descriptors_raise(void)
{
	struct rlimit l;

	if (getrlimit(RLIMIT_NOFILE, &l) == 0 && l.rlim_cur < l.rlim_max) {
		l.rlim_cur = l.rlim_max;
		(void)setrlimit(RLIMIT_NOFILE, &l); /* if that is refused, the old one is what descriptors_check() finds */
	}
}

/* False: nobody tells. */
static bool count_open(const struct rlimit *limit, unsigned *ret_nr)
{
	DIR *d = opendir("/proc/self/fd");
	unsigned nr = 0;

	if (!d && errno == EMFILE)
		nr = (unsigned)limit->rlim_cur;
	else if (!d)
		return false;
	while (d && readdir(d))
		nr++;
	if (d) {
		closedir(d);
		nr -= 3; /* ".", "..", and the directory itself */
	}
	*ret_nr = nr;
	return true;
}

int descriptors_check(const struct takeover_ops *ops, void *program)
{
	unsigned open, to_come = 0, nr_disks = 0;
	struct lend_export *e = NULL;
	struct lend *l = NULL;
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit) < 0 || !count_open(&limit, &open))
		return 0;
	while ((e = takeover_next(ops, program, &l, e))) {
		nr_disks++;
		if (e->exp)
			to_come += varve_export_descriptors_to_come(e->exp);
		if (!l->held)
			to_come += IMAGE;
	}
	if (limit.rlim_cur >= open + to_come + SPARE)
		return 0;
	complain("%u exports and their front ends need %u file descriptors, and this process may have %llu: raise its limit (ulimit -n, LimitNOFILE=)",
		 nr_disks, open + to_come + SPARE, (unsigned long long)limit.rlim_cur);
	return 1;
}
