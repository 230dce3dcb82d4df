/* SPDX-License-Identifier: MIT */
/*
 * qed/space.c - fresh clusters at the end of the file, and which clusters hold tables
 *
 * The file is made longer ahead of its use, by a part of its length, so that an allocation seldom waits for it; closing
 * the image cuts off what was not needed. A file that was not closed is longer than it need be, by 64 MiB at most: the
 * next writer finds the flag (need_check.c) and cuts it.
 *
 * Owns:    the frontier: behind it the file holds nothing that anybody refers to, and reads as zeroes.
 * Assumes: fibers of the home queue. Nobody else makes the file longer.
 * Never:   hands out a place twice, or below the end that the file had when it was opened: what a crash left there may
 *          be anything.
 */
#include "format/qed/qed.h"

#include <stdlib.h>
#include <string.h>

#define STEP_MIN MiB(1)
#define STEP_MAX MiB(64)
#define USED_MAX 64

struct space {
	uint64_t end;	   /* the frontier, a multiple of the cluster size */
	uint64_t file_end; /* the file is that long: multiple of the cluster size, >= end */
	bool grown;	   /* by us */
	struct fiber_mutex grow_mutex;

	/* Host offsets of the L2 tables, ascending. New ones come at the end, because the frontier only rises. */
	uint64_t *tables;
	uint32_t nr_tables, max_tables;

	uint64_t used[USED_MAX]; /* clusters for whom somebody had no use after all */
	unsigned nr_used;
};

static int by_value(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

/* Tables that L1 names, sorted. Those in impossible places stay out: nobody can reach them (load_piece()). */
static int collect_tables(struct qed *q, struct space *s, struct varve_error *err)
{
	s->max_tables = q->nr_l1 + 16;
	s->tables = malloc(s->max_tables * sizeof(s->tables[0]));
	if (!s->tables)
		return varve_error_set(err, -ENOMEM, "list of %u L2 tables: out of memory", q->nr_l1);
	for (uint32_t i = 0; i < q->nr_l1; i++) {
		if (q->l1[i] && qed_place_ok(q, q->l1[i], q->table_len, s->end))
			s->tables[s->nr_tables++] = q->l1[i];
	}
	qsort(s->tables, s->nr_tables, sizeof(s->tables[0]), by_value);
	for (uint32_t i = 1; i < s->nr_tables; i++) {
		if (s->tables[i] - s->tables[i - 1] < q->table_len)
			return varve_error_set(
				err, -EIO,
				"the image is damaged: the L2 tables at host offsets 0x%llx and 0x%llx share space; "
				"it can only be read",
				(unsigned long long)s->tables[i - 1], (unsigned long long)s->tables[i]);
	}
	return 0;
}

int space_open(struct qed *q, struct varve_error *err)
{
	struct space *s = calloc(1, sizeof(*s));
	uint64_t file_len = node_len(q->leaf);

	if (!s)
		return varve_error_set(err, -ENOMEM, "out of memory");
	q->space = s;
	if (q->leaf->fixed_len)
		return varve_error_set(err, -ENOTSUP,
				       "QED images grow with their file, which a device cannot; it can only be read");
	if (file_len > VARVE_LEN_MAX - STEP_MAX - QED_CLUSTER_LEN_MAX)
		return varve_error_set(err, -EFBIG, "the file is too long (%llu bytes) to grow",
				       (unsigned long long)file_len);
	s->end = s->file_end = align_up(file_len, q->cluster_len);
	return collect_tables(q, s, err);
}

void space_close(struct fiber *f, struct qed *q, bool trim)
{
	struct space *s = q->space;

	if (!s)
		return;
	/* That the file stays longer than it need be is no reason to fail: check calls it a leak. */
	if (trim && s->grown && s->end < s->file_end)
		(void)node_truncate(f, q->file, s->end, PREALLOC_OFF, NULL);
	free(s->tables);
	free(s);
	q->space = NULL;
}

/* ---- taking ---- */

/* Makes the file at least `need` long, and more if that works. Under grow_mutex. */
static int grow(struct fiber *f, struct qed *q, uint64_t need)
{
	struct space *s = q->space;
	uint64_t step = MAX(MIN(s->end / 8, STEP_MAX), STEP_MIN), ahead;
	int ret;

	if (need > VARVE_LEN_MAX - STEP_MAX - QED_CLUSTER_LEN_MAX)
		return -EFBIG;
	ahead = align_up(need + step, q->cluster_len);
	ret = node_truncate(f, q->file, ahead, PREALLOC_OFF, NULL);
	if (ret < 0) { /* a file system near its limit may allow just what is needed */
		ahead = need;
		ret = node_truncate(f, q->file, ahead, PREALLOC_OFF, NULL);
	}
	if (ret < 0)
		return ret;
	s->grown = true;
	s->file_end = ahead;
	return 0;
}

int space_take(struct fiber *f, struct qed *q, uint64_t nr, uint64_t *ret_host_off)
{
	struct space *s = q->space;
	uint64_t len = nr << q->cluster_bits;
	int ret = 0;

	if (s->file_end - s->end < len) {
		fiber_lock(f, &s->grow_mutex);
		if (s->file_end - s->end < len) /* nobody has done it while we waited */
			ret = grow(f, q, s->end + len);
		fiber_unlock(&s->grow_mutex);
		if (ret < 0)
			return ret;
		if (s->file_end - s->end < len) /* others took it while the lock was handed over */
			return space_take(f, q, nr, ret_host_off);
	}
	*ret_host_off = s->end;
	s->end += len;
	return 0;
}

int space_take_table(struct fiber *f, struct qed *q, uint64_t *ret_host_off)
{
	struct space *s = q->space;
	int ret;

	if (s->nr_tables == s->max_tables) {
		uint32_t max = s->max_tables * 2;
		uint64_t *more = realloc(s->tables, max * sizeof(*more));

		if (!more)
			return -ENOMEM;
		s->tables = more;
		s->max_tables = max;
	}
	/* Under l1_mutex: nobody adds a table while space_take() waits. */
	ret = space_take(f, q, q->h.table_clusters, ret_host_off);
	if (ret == 0)
		s->tables[s->nr_tables++] = *ret_host_off;
	return ret;
}

uint64_t space_take_used(struct qed *q)
{
	struct space *s = q->space;

	return s->nr_used ? s->used[--s->nr_used] : 0;
}

/* More than USED_MAX are leaked until the image is checked: each is the trace of a failed write. */
void space_undo(struct qed *q, uint64_t host_off, uint64_t nr)
{
	struct space *s = q->space;

	for (uint64_t i = 0; i < nr && s->nr_used < USED_MAX; i++)
		s->used[s->nr_used++] = host_off + (i << q->cluster_bits);
}

/* The last one that was taken, still under l1_mutex; nothing was written to it. Others may have taken what is behind it meanwhile. */
void space_undo_table(struct qed *q, uint64_t host_off)
{
	struct space *s = q->space;

	s->nr_tables--;
	if (s->end == host_off + q->table_len)
		s->end = host_off;
	else
		space_undo(q, host_off, q->h.table_clusters);
}

/* ---- asking ---- */

bool space_holds_metadata(const struct qed *q, uint64_t host_off)
{
	const struct space *s = q->space;
	uint32_t low = 0, high = s->nr_tables; /* tables[low - 1] <= host_off < tables[high] */

	if (host_off < q->header_end || (host_off >= q->h.l1_off && host_off - q->h.l1_off < q->table_len))
		return true;
	while (low < high) {
		uint32_t mid = low + (high - low) / 2;

		if (s->tables[mid] <= host_off)
			low = mid + 1;
		else
			high = mid;
	}
	return low && host_off - s->tables[low - 1] < q->table_len;
}

uint64_t space_end(const struct qed *q)
{
	return q->space->end;
}
