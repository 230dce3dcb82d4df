/* SPDX-License-Identifier: MIT */
/*
 * qed/create.c - new images
 *
 * Layout: the header's cluster, the L1 table, nothing else.
 *
 * Owns:    the options of create.
 * Assumes: the caller found the lengths of backing files, and made the file if it was not there.
 * Never:   empties the file before everything that was asked for has been checked.
 */
#include <stdlib.h>
#include <string.h>

#include "format/qed/qed.h"

const struct varve_option_info qed_options[] = {
	{ "backing_file", "file", "what the image does not hold is read from that file", false },
	{ "backing_fmt", "format", "format of the backing file: needed with it", false },
	{ "cluster_size", "size", "unit in which space is given out: 4k .. 64M, a power of two (64k)", false },
	{ "size", "size", "of the disk", false },
	{ "table_size", "num", "clusters in a table: 1, 2, 4 (default), 8, 16", false },
	{ NULL, NULL, NULL, false },
};

struct wish {
	uint64_t cluster_len, table_clusters;
	const char *backing_file, *backing_format; /* NULL: none */
};

static int get_wish(struct wish *w, struct opts *o, struct varve_error *err)
{
	const char *file = opts_get(o, "backing_file"), *format = opts_get(o, "backing_fmt");
	int ret;

	*w = (struct wish){ .cluster_len = QED_CLUSTER_LEN_DEFAULT, .table_clusters = QED_TABLE_CLUSTERS_DEFAULT };
	ret = opts_get_size(o, "cluster_size", &w->cluster_len, err);
	if (ret == 0)
		ret = opts_get_u64(o, "table_size", &w->table_clusters, err);
	if (ret < 0)
		return ret;
	if (!is_pow2(w->cluster_len) || w->cluster_len < QED_CLUSTER_LEN_MIN || w->cluster_len > QED_CLUSTER_LEN_MAX)
		return varve_error_set(err, -EINVAL, "option cluster_size=%s: must be a power of two, 4k to 64M",
				       opts_get(o, "cluster_size"));
	if (!is_pow2(w->table_clusters) || w->table_clusters > QED_TABLE_CLUSTERS_MAX)
		return varve_error_set(err, -EINVAL, "option table_size=%s: must be 1, 2, 4, 8 or 16 (clusters)",
				       opts_get(o, "table_size"));
	w->backing_file = file && *file ? file : NULL;
	w->backing_format = format && *format ? format : NULL;
	if (w->backing_format && !w->backing_file)
		return varve_error_set(err, -EINVAL, "option backing_fmt=%s needs backing_file", format);
	if (w->backing_file && strlen(w->backing_file) > QED_BACKING_NAME_MAX)
		return varve_error_set(err, -EINVAL, "option backing_file: %zu bytes are too long, QED allows %u",
				       strlen(w->backing_file), QED_BACKING_NAME_MAX);
	return opts_done(o, err);
}

static int make_header(const struct wish *w, uint64_t len, struct qed_header *h, struct varve_error *err)
{
	uint64_t max = qed_disk_len_max((uint32_t)w->cluster_len, (uint32_t)w->table_clusters);

	/* Disks are whole sectors; other lengths are rounded up, as the other tools do. */
	if (len > max)
		return varve_error_set(err, -EFBIG,
				       "a disk of %llu bytes is too large for clusters of %llu bytes and tables of %llu "
				       "clusters, at most %llu; use larger ones",
				       (unsigned long long)len, (unsigned long long)w->cluster_len,
				       (unsigned long long)w->table_clusters, (unsigned long long)max);
	*h = (struct qed_header){
		.cluster_len = (uint32_t)w->cluster_len,
		.table_clusters = (uint32_t)w->table_clusters,
		.header_clusters = 1,
		.l1_off = w->cluster_len,
		.disk_len = align_up(len, 512),
	};
	if (!w->backing_file)
		return 0;
	h->features = QED_F_BACKING_FILE;
	/* The format of any other backing file cannot be written down: readers will look for it. */
	if (w->backing_format && !strcmp(w->backing_format, "raw"))
		h->features |= QED_F_BACKING_FORMAT_NO_PROBE;
	h->backing_name_off = sizeof(struct qed_header_disk);
	h->backing_name_len = (uint32_t)strlen(w->backing_file);
	return 0;
}

#define L1_ALLOCATE_MAX MiB(1) /* a longer one keeps its holes */

int qed_create(struct fiber *f, struct node *file, uint64_t len, struct opts *o, varve_progress_fn progress,
	       void *user_data, struct varve_error *err)
{
	struct qed_header_disk disk;
	struct qed_header h;
	struct wish w;
	uint8_t *cluster;
	int ret = get_wish(&w, o, err);

	(void)progress; /* there is nothing long to tell of */
	(void)user_data;
	if (ret == 0)
		ret = make_header(&w, len, &h, err);
	if (ret < 0)
		return ret;
	cluster = calloc(1, QED_CLUSTER_LEN_MIN);
	if (!cluster)
		return varve_error_set(err, -ENOMEM, "out of memory");
	qed_header_build(&h, &disk);
	memcpy(cluster, &disk, sizeof(disk));
	if (w.backing_file)
		memcpy(cluster + sizeof(disk), w.backing_file, h.backing_name_len);
	ret = node_truncate(f, file, 0, PREALLOC_OFF, err);
	/* What the file is made longer by reads as zeroes: an L1 table without entries. */
	if (ret == 0)
		ret = node_truncate(f, file, h.cluster_len * (1ull + h.table_clusters), PREALLOC_OFF, err);
	if (ret == 0) {
		ret = node_allocate(f, file, h.l1_off, MIN(h.cluster_len * (uint64_t)h.table_clusters, L1_ALLOCATE_MAX));
		if (ret == 0)
			ret = node_write(f, file, 0, cluster, QED_CLUSTER_LEN_MIN);
		if (ret == 0)
			ret = node_flush(f, file);
		if (ret < 0)
			varve_error_errno(err, ret, "cannot write the header");
	}
	free(cluster);
	return ret;
}
