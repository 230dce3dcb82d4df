/* SPDX-License-Identifier: MIT */
/*
 * qed/open.c - an image from open to close, and the driver's table of calls
 *
 * Assumes: fibers of the home queue. With NODE_NO_IO (info) and NODE_CHECK (check) only the header is read: those look
 *          at the rest themselves, and expect damage.
 * Never:   changes an image that it then refuses.
 */
#include <jansson.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "format/qed/driver.h"
#include "format/qed/qed.h"

#define L2_CACHE_LEN_DEFAULT MiB(32)
#define L2_CACHE_LEN_MIN KiB(64)
#define L2_CACHE_LEN_MAX GiB(4)
#define TOLD_MAX 16 /* lines about damage for one open image */

int qed_damaged(struct qed *q, const char *fmt, ...)
{
	char text[256];
	va_list args;

	if (q->nr_told++ >= TOLD_MAX)
		return -EIO;
	va_start(args, fmt);
	vsnprintf(text, sizeof(text), fmt, args);
	va_end(args);
	log_error("%s: the image is damaged: %s%s", node_name(q->node), text,
		  q->nr_told == TOLD_MAX ? " (there may be more; no further lines about this image)" : "");
	return -EIO;
}

static int qed_probe(const uint8_t *buf, size_t len)
{
	struct qed_header_disk d;

	if (len < sizeof(d))
		return 0;
	memcpy(&d, buf, sizeof(d));
	return le32_get(d.magic) == QED_MAGIC ? 100 : 0;
}

/* ---- open ---- */

static int read_header(struct fiber *f, struct qed *q, struct varve_error *err)
{
	uint8_t buf[sizeof(struct qed_header_disk)] = { 0 };
	int ret = node_read(f, q->file, 0, buf, MIN(sizeof(buf), node_len(q->leaf)));

	return ret < 0 ? varve_error_errno(err, ret, "cannot read the header") : qed_header_parse(buf, &q->h, err);
}

/* Bytes that a file name cannot have make the header invalid; whether the file exists is somebody else's question. */
static int read_backing_name(struct fiber *f, struct qed *q, struct varve_error *err)
{
	struct node *n = q->node;
	char name[QED_BACKING_NAME_MAX + 1] = { 0 };
	uint64_t file_len = node_len(q->leaf);
	int ret;

	if (!q->h.backing_name_len)
		return 0;
	if ((uint64_t)q->h.backing_name_off + q->h.backing_name_len > file_len)
		return varve_error_set(err, -EINVAL, "header: the backing file name lies beyond the end of the file");
	ret = node_read(f, q->file, q->h.backing_name_off, name, q->h.backing_name_len);
	if (ret < 0)
		return varve_error_errno(err, ret, "cannot read the backing file name");
	if (strlen(name) != q->h.backing_name_len)
		return varve_error_set(err, -EINVAL, "header: the backing file name contains a zero byte");
	n->backing_name = strdup(name);
	if (q->h.features & QED_F_BACKING_FORMAT_NO_PROBE)
		n->backing_format = strdup("raw");
	if (!n->backing_name || ((q->h.features & QED_F_BACKING_FORMAT_NO_PROBE) && !n->backing_format))
		return varve_error_set(err, -ENOMEM, "backing file name: out of memory");
	return 0;
}

static void set_geometry(struct qed *q)
{
	q->cluster_len = q->h.cluster_len;
	q->cluster_bits = log2_u64(q->cluster_len);
	q->table_len = (uint64_t)q->h.table_clusters << q->cluster_bits;
	q->table_bits = log2_u64(q->table_len / sizeof(le64));
	q->header_end = (uint64_t)q->h.header_clusters << q->cluster_bits;
	q->node->cluster_len = q->cluster_len;
	atomic_store_explicit(&q->node->len, q->h.disk_len, memory_order_relaxed);
}

static int read_l1(struct fiber *f, struct qed *q, struct varve_error *err)
{
	int ret;

	q->nr_l1 = qed_nr_l1(q, q->h.disk_len);
	free(q->l1);
	q->l1 = malloc(MAX(q->nr_l1, 1) * sizeof(q->l1[0]));
	if (!q->l1)
		return varve_error_set(err, -ENOMEM, "L1 table of %u entries: out of memory", q->nr_l1);
	if (q->h.l1_off + q->table_len > node_len(q->leaf))
		return varve_error_set(err, -EINVAL, "header: the L1 table at 0x%llx reaches beyond the end of the file",
				       (unsigned long long)q->h.l1_off);
	ret = qed_read_l1(f, q, q->l1, 0, q->nr_l1);
	return ret < 0 ? varve_error_errno(err, ret, "cannot read the L1 table") : 0;
}

/* Stands for data that only holds while every writer keeps it up to date, and that we know nothing of. */
static int set_autoclear(struct fiber *f, struct qed *q, uint64_t bits, struct varve_error *err)
{
	order_mark mark;
	int ret;

	if (q->h.autoclear_features == bits)
		return 0;
	ret = qed_put_autoclear(f, q, bits, &mark);
	if (ret == 0)
		ret = order_wait(f, q->order, mark); /* durable first, before any other write */
	return ret < 0 ? varve_error_errno(err, ret, "cannot change the autoclear feature bits in the header") : 0;
}

int qed_begin_changes(struct fiber *f, struct qed *q, struct varve_error *err)
{
	if (!q->mark && (q->h.autoclear_features & QED_AUTOCLEAR_JOURNAL))
		order_tell_lost(q->node, NULL, true);
	return set_autoclear(f, q, q->mark, err);
}

/* Durable first: the mark that a journal belongs to the image. Only then: records in it (see qcow2/open.c). */
static int begin_journal(struct fiber *f, struct qed *q, const char *state_dir, struct varve_error *err)
{
	int ret = qed_begin_changes(f, q, err);

	return ret < 0 || !state_dir ? ret : order_keep(f, q->order, state_dir, q->mark, err);
}

/* The queue is empty, so the journal goes; then the mark, which alone says nothing. */
static void end_journal(struct fiber *f, struct qed *q)
{
	order_keep_end(f, q->order);
	if (q->h.autoclear_features & QED_AUTOCLEAR_JOURNAL)
		(void)set_autoclear(f, q, 0, NULL);
}

/* The options of an image that is opened; they are examined even when only its header will be looked at. */
struct settings {
	uint64_t cache_len, age_ns;
	const char *state_dir; /* NULL: none */
};

static int open_writable(struct fiber *f, struct qed *q, const struct settings *set, struct varve_error *err)
{
	int ret = order_new(&q->order, q->file, 0);

	if (ret < 0)
		return varve_error_errno(err, ret, "queue for metadata");
	order_set_age(q->order, set->age_ns);
	q->mark = 0;
	if (set->state_dir)
		ret = order_new_mark(q->h.autoclear_features, &q->mark, err);
	if (ret < 0)
		return ret;
	if ((q->h.features & QED_F_NEED_CHECK) || (q->node->flags & NODE_REPAIR)) {
		ret = qed_repair_unclean(f, q, err);
		if (ret == 0)
			ret = read_l1(f, q, err);
	}
	if (ret == 0)
		ret = space_open(q, err);
	if (ret == 0 && need_check_open(q) < 0)
		ret = varve_error_set(err, -ENOMEM, "out of memory");
	return ret;
}

static int get_settings(struct opts *o, struct settings *set, struct varve_error *err)
{
	int ret;

	*set = (struct settings){ .cache_len = L2_CACHE_LEN_DEFAULT, .age_ns = ORDER_AGE_DEFAULT_NS };
	if (!o)
		return 0;
	set->state_dir = opts_get(o, "state-dir");
	ret = opts_get_size(o, "l2-cache-size", &set->cache_len, err);
	if (ret < 0)
		return ret;
	if (set->cache_len < L2_CACHE_LEN_MIN || set->cache_len > L2_CACHE_LEN_MAX)
		return varve_error_set(err, -EINVAL, "option 'l2-cache-size': %llu is not from 64 KiB to 4 GiB",
				       (unsigned long long)set->cache_len);
	return order_get_age(o, &set->age_ns, err);
}

static int open_tables(struct fiber *f, struct qed *q, const struct settings *set, struct varve_error *err)
{
	int ret = read_l1(f, q, err);

	if (ret == 0 && q->writable)
		ret = open_writable(f, q, set, err);
	if (ret < 0)
		return ret;
	ret = qed_map_open(q, set->cache_len);
	if (ret < 0)
		return varve_error_errno(err, ret, "L2 cache");
	return q->writable ? begin_journal(f, q, set->state_dir, err) : 0;
}

static void free_all(struct fiber *f, struct qed *q, bool trim)
{
	qed_map_close(q);
	need_check_close(f, q);
	space_close(f, q, trim);
	if (q->order)
		order_free(f, q->order);
	free(q->l1);
	q->l1 = NULL;
	q->order = NULL;
}

static int qed_open(struct fiber *f, struct node *n, struct opts *o, struct varve_error *err)
{
	struct order_left left = { 0 };
	struct qed *q = node_state(n);
	struct settings set;
	int ret = get_settings(o, &set, err);

	if (ret < 0)
		return ret;

	q->node = n;
	q->file = q->leaf = n->file;
	while (q->leaf->file)
		q->leaf = q->leaf->file;
	ret = read_header(f, q, err);
	q->unmapped = n->flags & (NODE_NO_IO | NODE_CHECK);
	q->writable = (n->flags & NODE_WRITABLE) && !q->unmapped;
	if (ret == 0 && q->writable && set.state_dir) {
		/* What a process that died had queued, before anything but the header is looked at. */
		ret = order_recover(f, q->file, NULL, set.state_dir, q->h.autoclear_features, &left, err);
		free(left.todo); /* neither notes nor things to be done are made */
		if (ret > 0)
			ret = read_header(f, q, err);
	}
	if (ret < 0)
		return ret;
	set_geometry(q);
	if (!(n->flags & NODE_NO_IO))
		ret = qed_header_usable(&q->h, err);
	if (ret == 0)
		ret = read_backing_name(f, q, err);
	if (ret == 0 && !q->unmapped)
		ret = open_tables(f, q, &set, err);
	if (ret < 0)
		free_all(f, q, false);
	else if (!q->writable && !(n->flags & (NODE_NO_IO | NODE_FORCE_SHARE)) && (q->h.autoclear_features & QED_AUTOCLEAR_JOURNAL))
		order_tell_lost(n, NULL, false); /* who shares it may be reading what is being served */
	return ret;
}

/* ---- sync, close, info ---- */

static int qed_sync(struct fiber *f, struct node *n)
{
	struct qed *q = node_state(n);

	return q->order ? order_flush(f, q->order) : 0;
}

static bool qed_clean(struct node *n)
{
	struct qed *q = node_state(n);

	return !q->order || order_clean(q->order);
}

/*
 * What the guest was promised was synced before. The file loses the end that nobody used, and then the header its flag:
 * power lost in between leaves a flag too many.
 */
static void qed_close(struct fiber *f, struct node *n)
{
	struct qed *q = node_state(n);
	bool whole = q->order && order_flush(f, q->order) == 0;

	if (q->order) {
		space_close(f, q, whole);
		if (whole)
			(void)need_check_clear(f, q); /* on failure the flag stays, which is safe */
		if (whole && order_clean(q->order))
			end_journal(f, q);
	}
	free_all(f, q, false);
}

static void qed_stats(struct node *n, void *json_stats)
{
	struct qed *q = node_state(n);

	if (q->order)
		order_json_stats(q->order, json_stats);
}

static int qed_info(struct fiber *f, struct node *n, void *json_image_info, struct varve_error *err)
{
	struct qed *q = node_state(n);

	(void)f;
	if (json_object_set_new(json_image_info, "cluster-size", json_integer(q->cluster_len)) < 0 ||
	    json_object_set_new(json_image_info, "dirty-flag", json_boolean(q->h.features & QED_F_NEED_CHECK)) < 0)
		return varve_error_set(err, -ENOMEM, "%s: out of memory", node_name(n));
	return 0;
}

static const struct varve_option_info open_options[] = {
	{ "l2-cache-size", "size", "memory for L2 tables (32M)", false },
	{ "metadata-write-out", "num", "seconds after which queued metadata is written without a flush (5; 0: never)", false },
	{ "state-dir", "file", "directory in which queued metadata outlives the process", false },
	{ NULL, NULL, NULL, false },
};

const struct driver driver_qed = {
	.name = "qed",
	.kind = DRIVER_FORMAT,
	.state_len = sizeof(struct qed),
	.probe = qed_probe,
	.open = qed_open,
	.close = qed_close,
	.truncate = qed_truncate,
	.map = qed_map,
	.load = qed_load,
	.alloc = qed_alloc,
	.link = qed_link,
	.unalloc = qed_unalloc,
	.unlink = qed_unlink,
	.sync = qed_sync,
	.clean = qed_clean,
	.options = qed_options,
	.open_options = open_options,
	.create = qed_create,
	.check = qed_check,
	.set_backing = qed_set_backing,
	.info = qed_info,
	.stats = qed_stats,
};
