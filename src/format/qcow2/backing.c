/* SPDX-License-Identifier: MIT */
/*
 * qcow2/backing.c - another backing file, or none, in the header of an image that is in use
 *
 * Assumes: fibers of the home queue.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "format/qcow2/qcow2.h"

static int check_names(const struct qcow2 *q, const char *name, const char *format, struct varve_error *err)
{
	if (!q->writable)
		return varve_error_set(err, -EACCES, "open read-only, the backing file cannot be changed");
	if (name && strlen(name) > QCOW2_BACKING_NAME_MAX)
		return varve_error_set(err, -EINVAL, "a backing file name of %zu bytes is too long, qcow2 allows %d", strlen(name),
				       QCOW2_BACKING_NAME_MAX);
	if (name && *name && q->raw_data)
		return varve_error_set(err, -EINVAL, "the data file of the image is a raw image of the disk (data_file_raw), which has no "
						     "backing file; img amend -o data_file_raw=off gives that up");
	if (format && strlen(format) > QCOW2_BACKING_FORMAT_MAX)
		return varve_error_set(err, -EINVAL, "backing format '%.200s': qcow2 allows at most %d bytes", format,
				       QCOW2_BACKING_FORMAT_MAX);
	return 0;
}

/* Everything that was copied so that the old backing file is not needed any more is durable before the header. */
int qcow2_set_backing(struct fiber *f, struct node *n, const char *name, const char *format, bool snapshots_too,
		      struct varve_error *err)
{
	struct qcow2 *q = node_state(n);
	struct qcow2_header *want;
	bool other;
	int ret = qcow2_whole(q, err);

	if (ret == 0)
		ret = check_names(q, name, format, err);
	if (ret < 0)
		return ret;
	want = malloc(sizeof(*want));
	if (!want)
		return varve_error_errno(err, -ENOMEM, "header");
	/* Who changes the header's other fields holds one of these, too. */
	fiber_lock(f, &q->snapshot_mutex);
	fiber_lock(f, &q->l1_mutex);
	other = strcmp(name ? name : "", q->h.backing_name) != 0;
	if (!snapshots_too && other && q->h.nr_snapshots)
		ret = varve_error_set(err, -ENOTSUP,
				      "the image has %u internal snapshots, which read from the backing file too: it stays "
				      "until they are deleted",
				      q->h.nr_snapshots);
	else if (!snapshots_too && other && q->nr_frozen)
		ret = varve_error_set(err, -ENOTSUP, "a snapshot is being made, which reads from the backing file too: it stays until that "
						     "is deleted");
	else
		ret = qcow2_begin_changes(f, q, err);
	if (ret == 0) {
		*want = q->h;
		snprintf(want->backing_name, sizeof(want->backing_name), "%s", name ? name : "");
		snprintf(want->backing_format, sizeof(want->backing_format), "%s", name && format ? format : "");
		ret = qcow2_header_change(f, q, want, err);
	}
	fiber_unlock(&q->l1_mutex);
	fiber_unlock(&q->snapshot_mutex);
	free(want);
	return ret;
}
