/* SPDX-License-Identifier: MIT */
/*
 * qcow2/alloc.c - finding space in the file, and giving it back once that is safe
 *
 * Owns:    the frontier, the hint where freed clusters may be, the list of frees that wait for their mark.
 * Assumes: home queue.
 * Never:   hands out a cluster whose last reference is not durably gone, or that holds the header or a table.
 */
#include "format/qcow2/qcow2.h"

#include <stdlib.h>

#include "base/log.h"

#define SCAN_MAX 512 /* counts looked at for one allocation before it goes to the frontier */

struct pending_free {
	uint64_t host_off, nr;
	order_mark gone;
};

struct alloc_state {
	struct fiber_mutex mutex;
	uint64_t hint; /* no cluster below is known to be free */
	struct pending_free *frees;
	size_t nr_frees, room;
};

int alloc_open(struct qcow2 *q)
{
	q->alloc = calloc(1, sizeof(*q->alloc));
	return q->alloc ? 0 : -ENOMEM;
}

void alloc_close(struct qcow2 *q)
{
	if (q->alloc)
		free(q->alloc->frees);
	free(q->alloc);
}

static bool overlaps(const struct qcow2 *q, uint64_t cluster, uint64_t off, uint64_t len)
{
	uint64_t first = off >> q->cluster_bits, end = (off + len + q->cluster_len - 1) >> q->cluster_bits;

	return len && cluster >= first && cluster < end;
}

/* Does a cluster whose count is 0 hold what the image cannot live without? Then the counts are damaged. */
static bool holds_metadata(const struct qcow2 *q, uint64_t cluster)
{
	uint64_t off = cluster << q->cluster_bits;

	if (cluster == 0 || overlaps(q, cluster, q->h.l1_off, q->h.l1_entries * 8ull) ||
	    overlaps(q, cluster, q->h.refcount_table_off, (uint64_t)q->h.refcount_table_clusters << q->cluster_bits))
		return true;
	for (uint32_t i = 0; i < q->refcount_table_entries; i++)
		if (q->refcount_table[i] == off)
			return true;
	return false;
}

/* A run of free clusters behind the hint; *ret_nr 0: none found in reach. */
static int find_freed(struct fiber *f, struct qcow2 *q, uint64_t nr, uint64_t *ret_cluster, uint64_t *ret_nr)
{
	struct alloc_state *a = q->alloc;
	uint64_t run = 0, count;

	*ret_nr = 0;
	for (unsigned i = 0; i < SCAN_MAX && a->hint + run < q->end_cluster && run < nr; i++) {
		int r = refcount_get(f, q, a->hint + run, &count);

		if (r < 0)
			return r;
		if (!count) {
			if (holds_metadata(q, a->hint + run)) {
				log_error("%s: cluster at offset %llu holds metadata but its refcount is 0: the image is "
					  "damaged, run a check", node_name(q->node),
					  (unsigned long long)((a->hint + run) << q->cluster_bits));
				return -EIO;
			}
			run++;
			continue;
		}
		if (run)
			break;
		a->hint++;
	}
	*ret_cluster = a->hint;
	*ret_nr = run;
	a->hint += run;
	return 0;
}

/* Clusters at the frontier: their counts may be stale in a damaged image; those are stepped over. */
static int find_fresh(struct fiber *f, struct qcow2 *q, uint64_t nr, uint64_t *ret_cluster)
{
	uint64_t count;

	for (uint64_t i = 0; i < nr; i++) {
		int r = refcount_get(f, q, q->end_cluster + i, &count);

		if (r < 0)
			return r;
		if (count) {
			q->end_cluster += i + 1;
			i = UINT64_MAX; /* begin again behind it */
		}
	}
	if (q->end_cluster + nr > QCOW2_HOST_OFF_MAX >> q->cluster_bits)
		return -EFBIG;
	*ret_cluster = q->end_cluster;
	q->end_cluster += nr;
	return 0;
}

int alloc_clusters(struct fiber *f, struct qcow2 *q, uint64_t nr, uint64_t *ret_host_off, uint64_t *ret_nr,
		   bool *ret_fresh, order_mark *ret_mark)
{
	struct alloc_state *a = q->alloc;
	uint64_t cluster = a->hint, got;
	bool never_used = false;
	int r;

	fiber_lock(f, &a->mutex);
	r = find_freed(f, q, nr, &cluster, &got);
	if (r == 0 && !got) {
		got = nr;
		never_used = true;
		r = find_fresh(f, q, nr, &cluster);
	}
	if (r == 0)
		r = refcount_add(f, q, cluster, got, 1, ORDER_NONE, ret_mark);
	if (r < 0 && r != -EIO)
		a->hint = MIN(a->hint, cluster);
	fiber_unlock(&a->mutex);
	if (r < 0)
		return r;
	*ret_host_off = cluster << q->cluster_bits;
	*ret_nr = got;
	/* Behind the end of the file as it was at open, and not handed out since. */
	*ret_fresh = never_used && *ret_host_off >= q->zero_from;
	return 0;
}

int alloc_free(struct fiber *f, struct qcow2 *q, uint64_t host_off, uint64_t nr, order_mark gone)
{
	struct alloc_state *a = q->alloc;

	if (a->nr_frees == a->room) {
		size_t room = a->room ? a->room * 2 : 64;
		struct pending_free *frees = realloc(a->frees, room * sizeof(*frees));

		if (!frees)
			return 0; /* a leak, which check finds; nothing is damaged */
		a->frees = frees;
		a->room = room;
	}
	a->frees[a->nr_frees++] = (struct pending_free){ host_off, nr, gone };
	return 0;
}

int alloc_settle(struct fiber *f, struct qcow2 *q)
{
	struct alloc_state *a = q->alloc;
	size_t nr = a->nr_frees, kept = 0;
	int ret = 0;

	if (!nr)
		return 0;
	fiber_lock(f, &a->mutex);
	/* I/O that began under the mappings that are gone must have ended before the space is used again. */
	node_grace(f, q->node);
	nr = MIN(nr, a->nr_frees);
	for (size_t i = 0; i < nr; i++) {
		struct pending_free p = a->frees[i];
		order_mark mark;
		int r;

		if (p.gone > order_durable(q->order)) {
			a->frees[kept++] = p;
			continue;
		}
		r = refcount_add(f, q, p.host_off >> q->cluster_bits, p.nr, -1, ORDER_NONE, &mark);
		if (r < 0) {
			log_error("%s: clusters at offset %llu could not be freed: their refcounts are damaged or "
				  "unreadable", node_name(q->node), (unsigned long long)p.host_off);
			ret = ret ? ret : r;
			continue;
		}
		a->hint = MIN(a->hint, p.host_off >> q->cluster_bits);
	}
	for (size_t i = nr; i < a->nr_frees; i++)
		a->frees[kept++] = a->frees[i];
	a->nr_frees = kept;
	fiber_unlock(&a->mutex);
	return ret;
}
