/* SPDX-License-Identifier: MIT */
/*
 * qcow2/amend.c - options of an image that exists become others: version, lazy refcounts, width of the counts, length
 *
 * Each step is durable before the next begins, and each leaves a sound image: new counts come into use with the sector of the
 * header that names them; a version with less features only when nothing in the image needs them any more.
 *
 * Assumes: a fiber of the home queue; no request is in flight.
 * Never:   changes anything before all options were found possible together.
 */
#include <stdlib.h>
#include <string.h>

#include "format/qcow2/lazy.h"
#include "format/qcow2/qcow2.h"
#include "format/qcow2/snapshot.h"

struct amend {
	struct qcow2 *q;
	uint32_t version;
	unsigned refcount_order;
	bool lazy_refcounts;
	uint64_t disk_len;
	const char *data_file; /* NULL: as it is; "": none is named */
	bool raw_data;
	varve_progress_fn progress;
	void *user_data;
	struct varve_error *err;
};

/* ---- what is asked for ---- */

static int get_version(struct amend *a, struct opts *o)
{
	const char *compat = opts_get(o, "compat");

	if (!compat)
		return 0;
	if (!strcmp(compat, "1.1") || !strcmp(compat, "v3"))
		a->version = 3;
	else if (!strcmp(compat, "0.10") || !strcmp(compat, "v2"))
		a->version = 2;
	else
		return varve_error_set(a->err, -EINVAL, "option compat=%s: must be 0.10 (v2) or 1.1 (v3)", compat);
	return 0;
}

static int get_refcount_order(struct amend *a, struct opts *o)
{
	uint64_t bits = 1ull << a->refcount_order;
	int ret = opts_get_u64(o, "refcount_bits", &bits, a->err);

	if (ret < 0)
		return ret;
	if (!is_pow2(bits) || bits > 64)
		return varve_error_set(a->err, -EINVAL, "option refcount_bits=%s: must be 1, 2, 4, 8, 16, 32 or 64",
				       opts_get(o, "refcount_bits"));
	a->refcount_order = log2_u64(bits);
	return 0;
}

/* Options that an image gets when it is made, and keeps. */
static int refuse_fixed(struct opts *o, struct varve_error *err)
{
	static const char *const fixed[] = { "cluster_size",  "compression_type", "extended_l2", "preallocation",
					     "encryption",    "nocow",		  "extent_size_hint" };

	if (opts_get(o, "backing_file") || opts_get(o, "backing_fmt"))
		return varve_error_set(err, -ENOTSUP, "the backing file is not changed in this way; img rebase does that");
	for (unsigned i = 0; i < ARRAY_LEN(fixed); i++) {
		if (opts_get(o, fixed[i]))
			return varve_error_set(err, -EINVAL, "option %s=%s: is chosen when an image is made, and stays", fixed[i],
					       opts_get(o, fixed[i]));
	}
	return 0;
}

static int get_data_file(struct amend *a, struct opts *o)
{
	int ret = opts_get_bool(o, "data_file_raw", &a->raw_data, a->err);

	a->data_file = opts_get(o, "data_file");
	if (ret < 0)
		return ret;
	if (a->data_file && !a->q->external)
		return varve_error_set(a->err, -EINVAL, "option data_file=%.200s: the image has its data in its own file, and keeps it there; "
							"img convert makes another one", a->data_file);
	if (a->data_file && strlen(a->data_file) > QCOW2_DATA_FILE_NAME_MAX)
		return varve_error_set(a->err, -EINVAL, "option data_file: %zu bytes are too long, at most %d", strlen(a->data_file),
				       QCOW2_DATA_FILE_NAME_MAX);
	if (a->raw_data && !a->q->raw_data)
		return varve_error_set(a->err, -EINVAL, "option data_file_raw=on: can be chosen when an image is made; in one that exists "
							"nobody knows what else the data file holds");
	return 0;
}

static int get_wish(struct amend *a, struct opts *o)
{
	bool lazy_given = opts_get(o, "lazy_refcounts");
	int ret;

	if ((ret = refuse_fixed(o, a->err)) < 0 || (ret = get_version(a, o)) < 0 || (ret = get_refcount_order(a, o)) < 0 ||
	    (ret = get_data_file(a, o)) < 0 ||
	    (ret = opts_get_bool(o, "lazy_refcounts", &a->lazy_refcounts, a->err)) < 0 ||
	    (ret = opts_get_size(o, "size", &a->disk_len, a->err)) < 0 || (ret = opts_done(o, a->err)) < 0)
		return ret;
	if (a->version < 3 && !lazy_given)
		a->lazy_refcounts = false;
	return 0;
}

static int check_wish(const struct amend *a)
{
	const struct qcow2 *q = a->q;

	if (a->version < 3 && a->lazy_refcounts)
		return varve_error_set(a->err, -EINVAL, "option lazy_refcounts=on needs compat=1.1");
	if (a->version < 3 && a->refcount_order != 4)
		return varve_error_set(a->err, -EINVAL, "compat=0.10 needs refcount_bits=16; the image has %u", 1u << a->refcount_order);
	if (a->version < 3 && (q->h.incompatible & QCOW2_INCOMPAT_COMPRESSION))
		return varve_error_set(a->err, -ENOTSUP, "the image has compression_type=zstd, which compat=0.10 does not have");
	if (a->version < 3 && q->external)
		return varve_error_set(a->err, -ENOTSUP, "the image has an external data file, which compat=0.10 does not have");
	if (a->version < 3 && (q->h.incompatible & QCOW2_INCOMPAT_EXTENDED_L2))
		return varve_error_set(a->err, -ENOTSUP, "the image has extended_l2=on, which compat=0.10 does not have");
	if (a->version < 3 && (q->h.incompatible & ~QCOW2_INCOMPAT_DIRTY))
		return varve_error_set(a->err, -ENOTSUP, "the image uses features (0x%llx) that compat=0.10 does not have",
				       (unsigned long long)(q->h.incompatible & ~QCOW2_INCOMPAT_DIRTY));
	if (a->version < q->h.version && q->h.nr_snapshots)
		return varve_error_set(a->err, -ENOTSUP,
				       "an image with %u snapshots cannot become one of compat=0.10: each of them would have to, too",
				       q->h.nr_snapshots);
	if (a->disk_len < q->h.disk_len)
		return varve_error_set(a->err, -EINVAL, "option size=%llu is less than the image has (%llu), and data would be lost; "
							"img resize --shrink does that",
				       (unsigned long long)a->disk_len, (unsigned long long)q->h.disk_len);
	return 0;
}

static bool version_differs(const struct amend *a)
{
	const struct qcow2_header *h = &a->q->h;

	return a->version != h->version || a->lazy_refcounts != !!(h->compatible & QCOW2_COMPAT_LAZY_REFCOUNTS);
}

static bool data_file_differs(const struct amend *a)
{
	return a->data_file || a->raw_data != a->q->raw_data;
}

/* The header as it will be. Under snapshot_mutex and l1_mutex. */
static void fill_header(const struct amend *a, uint32_t version, bool lazy, struct qcow2_header *want)
{
	*want = a->q->h;
	if (version != want->version)
		want->header_len = version < 3 ? QCOW2_V2_HEADER_LEN : (uint32_t)sizeof(struct qcow2_header_disk);
	want->version = version;
	want->compatible &= ~QCOW2_COMPAT_LAZY_REFCOUNTS;
	if (version < 3)
		want->compatible = want->incompatible = want->autoclear = want->nr_bitmaps = 0;
	else if (lazy)
		want->compatible |= QCOW2_COMPAT_LAZY_REFCOUNTS;
	if (!a->raw_data)
		want->autoclear &= ~QCOW2_AUTOCLEAR_RAW_DATA;
	if (a->data_file) {
		memset(want->data_file, 0, sizeof(want->data_file));
		memcpy(want->data_file, a->data_file, strlen(a->data_file));
	}
}

/* change: or only asked whether there is room for it. */
static int with_header(struct fiber *f, struct amend *a, uint32_t version, bool lazy, bool change)
{
	struct qcow2_header *want = malloc(sizeof(*want));
	struct qcow2 *q = a->q;
	int ret;

	if (!want)
		return varve_error_errno(a->err, -ENOMEM, "header");
	fiber_lock(f, &q->snapshot_mutex);
	fiber_lock(f, &q->l1_mutex);
	fill_header(a, version, lazy, want);
	ret = change ? qcow2_header_change(f, q, want, a->err) : qcow2_header_fits(f, q, want, a->err);
	fiber_unlock(&q->l1_mutex);
	fiber_unlock(&q->snapshot_mutex);
	free(want);
	return ret;
}

static int change_header(struct fiber *f, struct amend *a, uint32_t version, bool lazy)
{
	return with_header(f, a, version, lazy, true);
}

/* Snapshots are made and deleted by threads that do not wait for us, and count with the counts of now. */
static int change_counts(struct fiber *f, struct amend *a, bool judge)
{
	int ret;

	fiber_lock(f, &a->q->snapshot_mutex);
	if (a->q->nr_drafts)
		ret = varve_error_set(a->err, -EBUSY, "a snapshot is being made: no option changes meanwhile");
	else
		ret = qcow2_change_refcount_order(f, a->q, a->refcount_order, judge, a->err);
	fiber_unlock(&a->q->snapshot_mutex);
	return ret;
}

/*
 * What only the image can say. Steps come one after the other and each is durable: what would be refused by a later one is refused
 * before the first. (A lack of space is met when it comes.) Narrower counts are judged by the step itself where nothing comes
 * before it: judging takes a look at everything that is counted.
 */
static int check_image(struct fiber *f, struct amend *a)
{
	const struct qcow2 *q = a->q;
	int ret = 0;

	if (a->disk_len != q->h.disk_len)
		ret = qcow2_truncate_fits(f, q->node, MAX(a->version, q->h.version), a->disk_len, a->err);
	if (ret == 0 && (version_differs(a) || data_file_differs(a)))
		ret = with_header(f, a, a->version, a->lazy_refcounts, false);
	if (ret == 0 && a->version > q->h.version && a->refcount_order < q->h.refcount_order)
		ret = change_counts(f, a, true);
	return ret;
}

/* ---- steps ---- */

/* Clusters that say "zeroes" over a backing image get zeroes of their own. */
static int fill_zeroes(struct fiber *f, struct qcow2 *q, uint64_t off, uint64_t len)
{
	struct extent x;
	int ret = 0;

	for (uint64_t end = off + len; ret == 0 && off < end; off += x.len) {
		ret = l2_alloc(f, q->node, off, end - off, &x);
		if (ret < 0)
			return ret;
		ret = node_zero(f, x.node, x.host_off, x.len, 0);
		if (ret == 0)
			ret = l2_link(f, q->node, off, &x);
		if (ret < 0)
			l2_unalloc(f, q->node, &x);
	}
	return ret;
}

/* Version 2 has no way to say that a cluster reads as zeroes. */
static int remove_zero_entries(struct fiber *f, struct amend *a)
{
	struct qcow2 *q = a->q;
	uint64_t end = (uint64_t)q->h.l1_entries * q->l2_entries << q->cluster_bits, told = queue_now(fiber_queue(f));
	struct extent e;
	int ret = 0;

	for (uint64_t off = 0; ret == 0 && off < end; off += e.len) {
		struct range range;

		if (node_ending(q->node)) {
			ret = -ECANCELED;
			break;
		}
		l2_map(q->node, off, end - off, &e);
		if (e.kind == EXTENT_UNLOADED) {
			ret = l2_load(f, q->node, off);
			e.len = 0;
		} else if (e.kind == EXTENT_ZERO) {
			range_lock(f, &q->node->ranges, &range, off, e.len);
			ret = q->node->backing_name ? fill_zeroes(f, q, off, e.len) :
						      l2_unlink(f, q->node, off, e.len, UNLINK_ABSENT);
			range_unlock(&q->node->ranges, &range);
		} else if (e.kind == EXTENT_ERROR) {
			ret = e.error;
		}
		if (a->progress && queue_now(fiber_queue(f)) - told >= 100000000) {
			told = queue_now(fiber_queue(f));
			a->progress(a->user_data, off, end);
		}
	}
	return ret < 0 ? varve_error_errno(a->err, ret, "clusters of zeroes cannot be written as such") : 0;
}

/* From here on counts are exact, so that no step needs the dirty bit, which version 2 does not have. */
static int end_lazy(struct fiber *f, struct amend *a)
{
	int ret = a->q->lazy ? order_flush(f, a->q->order) : 0;

	if (ret == 0 && a->q->lazy)
		ret = lazy_end(f, a->q);
	if (ret < 0)
		return varve_error_errno(a->err, ret, "counts that are behind cannot be written");
	lazy_close(a->q);
	return 0;
}

/*
 * Each snapshot says in version 3 how long its disk is. Those that do not are written anew before the header says so, in an order of
 * their own: version 2 may have these fields.
 */
static int complete_snapshots(struct fiber *f, struct amend *a)
{
	struct qcow2 *q = a->q;
	struct snapshots all;
	order_mark mark;
	bool whole = true;
	int ret;

	if (!q->h.nr_snapshots)
		return 0;
	fiber_lock(f, &q->snapshot_mutex);
	ret = snapshots_open(f, q, &all, a->err);
	if (ret == 0) {
		for (uint32_t i = 0; i < all.nr; i++)
			whole &= all.list[i].extra_len >= QCOW2_SNAPSHOT_EXTRA_MIN_V3;
		if (!whole)
			ret = snapshots_write(f, q, &all, UINT32_MAX, false, &mark, a->err);
		if (!whole && ret == 0 && (ret = order_wait(f, q->order, mark)) < 0)
			varve_error_errno(a->err, ret, "cannot write the snapshot table");
		snapshots_close(&all);
	}
	fiber_unlock(&q->snapshot_mutex);
	return ret;
}

static int change_version(struct fiber *f, struct amend *a)
{
	int ret = a->version < a->q->h.version ? remove_zero_entries(f, a) : complete_snapshots(f, a);

	if (ret == 0 && a->version < 3 && a->q->h.nr_bitmaps)
		ret = qcow2_remove_bitmaps(f, a->q, a->err); /* version 2 has none */
	/* The header comes after everything that was queued, which is durable with it. */
	return ret < 0 ? ret : change_header(f, a, a->version, a->lazy_refcounts);
}

int qcow2_amend(struct fiber *f, struct node *n, struct opts *o, varve_progress_fn progress, void *user_data,
		struct varve_error *err)
{
	struct qcow2 *q = node_state(n);
	struct amend a = { .q = q,
			   .version = q->h.version,
			   .refcount_order = q->h.refcount_order,
			   .lazy_refcounts = q->h.compatible & QCOW2_COMPAT_LAZY_REFCOUNTS,
			   .disk_len = q->h.disk_len,
			   .raw_data = q->raw_data,
			   .progress = progress,
			   .user_data = user_data,
			   .err = err };
	int ret = qcow2_whole(q, err);

	if (ret == 0)
		ret = q->writable ? get_wish(&a, o) : varve_error_set(err, -EACCES, "open read-only, its options cannot change");

	if (ret == 0 && q->nr_drafts)
		ret = varve_error_set(err, -EBUSY, "a snapshot is being made: no option changes meanwhile");
	if (ret == 0 && q->begun && (q->h.autoclear & QCOW2_AUTOCLEAR_JOURNAL))
		ret = varve_error_set(err, -EBUSY, "in use with a state directory, whose journal knows the image as it is");
	if (ret == 0)
		ret = check_wish(&a);
	if (ret == 0)
		ret = check_image(f, &a);
	if (ret == 0)
		ret = qcow2_begin_changes(f, q, err);
	if (ret == 0)
		ret = end_lazy(f, &a);
	if (ret == 0 && a.version > q->h.version)
		ret = change_version(f, &a);
	if (ret == 0 && a.refcount_order != q->h.refcount_order)
		ret = change_counts(f, &a, false);
	if (ret == 0 && a.disk_len != q->h.disk_len)
		ret = qcow2_truncate(f, n, a.disk_len, PREALLOC_OFF, err);
	if (ret == 0 && version_differs(&a))
		ret = change_version(f, &a);
	if (ret == 0 && data_file_differs(&a)) {
		ret = change_header(f, &a, q->h.version, a.lazy_refcounts);
		q->raw_data = ret == 0 ? a.raw_data : q->raw_data;
	}
	if (ret == 0 && progress)
		progress(user_data, 1, 1);
	return ret;
}
