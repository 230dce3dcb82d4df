/* SPDX-License-Identifier: MIT */
/*
 * qed/backing.c - another backing file, or none, in the header of an image that is in use
 *
 * The header lies in the first sector, which a device writes whole or not at all. So the new name is written to a free place
 * behind the old one first, and then the header changes at once: flag, place and length.
 *
 * Assumes: fibers of the home queue; the image is writable.
 */
#include <string.h>

#include "format/qed/qed.h"

static uint32_t find_room(const struct qed_header *h, uint32_t len)
{
	uint32_t header = sizeof(struct qed_header_disk), behind = h->backing_name_off + h->backing_name_len;

	if (header + len <= h->backing_name_off || !h->backing_name_len)
		return header;
	return (uint64_t)behind + len <= (uint64_t)h->header_clusters * h->cluster_len ? behind : 0;
}

int qed_set_backing(struct fiber *f, struct node *n, const char *name, const char *format, bool snapshots_too,
		    struct varve_error *err)
{
	struct qed *q = node_state(n);
	struct qed_header h = q->h, before;
	struct qed_header_disk disk;
	order_mark written = ORDER_NONE, mark;
	int ret = 0;

	(void)snapshots_too; /* QED has none */
	if (!q->writable)
		return varve_error_set(err, -EACCES, "open read-only, the backing file cannot be changed");
	h.features &= ~(QED_F_BACKING_FILE | QED_F_BACKING_FORMAT_NO_PROBE);
	h.backing_name_off = h.backing_name_len = 0;
	if (name) {
		h.backing_name_len = (uint32_t)strlen(name);
		h.backing_name_off = h.backing_name_len > QED_BACKING_NAME_MAX ? 0 : find_room(&q->h, h.backing_name_len);
		if (!h.backing_name_off)
			return varve_error_set(err, -ENOSPC, "the header has no room for the backing file name '%.200s'",
					       name);
		h.features |= QED_F_BACKING_FILE;
		if (!strcmp(format, "raw"))
			h.features |= QED_F_BACKING_FORMAT_NO_PROBE;
		ret = order_put(f, q->order, h.backing_name_off, name, h.backing_name_len, ORDER_NONE, &written);
	}
	if (ret == 0) {
		/* The flag NEED_CHECK may have changed while we waited. */
		h.features = (h.features & ~QED_F_NEED_CHECK) | (q->h.features & QED_F_NEED_CHECK);
		before = q->h;
		q->h = h;
		qed_header_build(&h, &disk);
		/* All that was copied is durable before the header says that nothing else is needed. */
		ret = order_put(f, q->order, 0, &disk, sizeof(disk), order_max(written, order_all(q->order)), &mark);
		if (ret < 0)
			q->h = before;
	}
	if (ret == 0)
		ret = order_wait(f, q->order, mark);
	return ret < 0 ? varve_error_errno(err, ret, "the header cannot be written") : 0;
}
