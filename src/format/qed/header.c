/* SPDX-License-Identifier: MIT */
/*
 * qed/header.c - the header of a QED file
 *
 * Owns:    the bounds of every field in it; nobody else reads the header from disk.
 * Assumes: nothing about the bytes.
 * Never:   refuses in parse() what is well-formed but cannot be used here: img info shows it. That is usable()'s part.
 */
#include "format/qed/qed.h"

#include <string.h>

static unsigned long long ull(uint64_t x)
{
	return x;
}

uint64_t qed_disk_len_max(uint32_t cluster_len, uint32_t table_clusters)
{
	unsigned cluster_bits = log2_u64(cluster_len), table_bits = cluster_bits + log2_u64(table_clusters) - 3;

	/* entries x entries x cluster */
	if (2 * table_bits + cluster_bits >= 63)
		return align_down(VARVE_LEN_MAX, 512);
	return 1ull << (2 * table_bits + cluster_bits);
}

static int parse_geometry(const struct qed_header_disk *d, struct qed_header *h, struct varve_error *err)
{
	h->cluster_len = le32_get(d->cluster_len);
	h->table_clusters = le32_get(d->table_clusters);
	h->header_clusters = le32_get(d->header_clusters);
	if (!is_pow2(h->cluster_len) || h->cluster_len < QED_CLUSTER_LEN_MIN || h->cluster_len > QED_CLUSTER_LEN_MAX)
		return varve_error_set(err, -EINVAL,
				       "header: cluster size %u is not a power of two from 4 KiB to 64 MiB",
				       h->cluster_len);
	if (!is_pow2(h->table_clusters) || h->table_clusters > QED_TABLE_CLUSTERS_MAX)
		return varve_error_set(err, -EINVAL,
				       "header: table size of %u clusters is not a power of two from 1 to %u",
				       h->table_clusters, QED_TABLE_CLUSTERS_MAX);
	if (!h->header_clusters)
		return varve_error_set(err, -EINVAL, "header: header size is 0 clusters, at least 1 is needed");
	return 0;
}

static int parse_places(const struct qed_header_disk *d, struct qed_header *h, struct varve_error *err)
{
	uint64_t header_end = (uint64_t)h->header_clusters * h->cluster_len;
	uint64_t table_len = (uint64_t)h->table_clusters * h->cluster_len;
	uint64_t max = qed_disk_len_max(h->cluster_len, h->table_clusters);

	h->l1_off = le64_get(d->l1_off);
	h->disk_len = le64_get(d->disk_len);
	if (!is_aligned(h->l1_off, h->cluster_len) || h->l1_off < header_end ||
	    h->l1_off > VARVE_LEN_MAX - table_len)
		return varve_error_set(err, -EINVAL,
				       "header: L1 table at 0x%llx is not at a cluster behind the header (0x%llx)",
				       ull(h->l1_off), ull(header_end));
	if (!is_aligned(h->disk_len, 512) || h->disk_len > max)
		return varve_error_set(err, -EINVAL,
				       "header: image size %llu is not a multiple of 512, at most %llu for its tables",
				       ull(h->disk_len), ull(max));
	if (!(h->features & QED_F_BACKING_FILE))
		return 0;
	h->backing_name_off = le32_get(d->backing_name_off);
	h->backing_name_len = le32_get(d->backing_name_len);
	if (!h->backing_name_len || h->backing_name_len > QED_BACKING_NAME_MAX)
		return varve_error_set(err, -EINVAL, "header: backing file name of %u bytes, 1 to %u are possible",
				       h->backing_name_len, QED_BACKING_NAME_MAX);
	if (h->backing_name_off < sizeof(*d) || (uint64_t)h->backing_name_off + h->backing_name_len > header_end)
		return varve_error_set(err, -EINVAL,
				       "header: backing file name at %u, %u bytes, is not inside the header's clusters",
				       h->backing_name_off, h->backing_name_len);
	return 0;
}

int qed_header_parse(const uint8_t *buf, struct qed_header *ret, struct varve_error *err)
{
	struct qed_header_disk d;
	struct qed_header h = { 0 };
	int r;

	memcpy(&d, buf, sizeof(d));
	if (le32_get(d.magic) != QED_MAGIC)
		return varve_error_set(err, -EINVAL, "header: no QED image (it does not begin with \"QED\" and a zero)");
	h.features = le64_get(d.features);
	h.autoclear_features = le64_get(d.autoclear_features);
	r = parse_geometry(&d, &h, err);
	if (r == 0)
		r = parse_places(&d, &h, err);
	if (r == 0)
		*ret = h;
	return r;
}

int qed_header_usable(const struct qed_header *h, struct varve_error *err)
{
	uint64_t unknown = h->features & ~QED_F_KNOWN;

	if (unknown)
		return varve_error_set(err, -ENOTSUP,
				       "header: unknown feature bits 0x%llx; a newer program made this image",
				       ull(unknown));
	return 0;
}

void qed_header_build(const struct qed_header *h, struct qed_header_disk *ret)
{
	*ret = (struct qed_header_disk){
		.magic = le32_put(QED_MAGIC),
		.cluster_len = le32_put(h->cluster_len),
		.table_clusters = le32_put(h->table_clusters),
		.header_clusters = le32_put(h->header_clusters),
		.features = le64_put(h->features),
		.autoclear_features = le64_put(h->autoclear_features),
		.l1_off = le64_put(h->l1_off),
		.disk_len = le64_put(h->disk_len),
		.backing_name_off = le32_put(h->backing_name_off),
		.backing_name_len = le32_put(h->backing_name_len),
	};
}

/* ---- fields that change ---- */

static int put_field(struct fiber *f, struct qed *q, size_t field_off, uint64_t value, order_mark after,
		     order_mark *ret_mark)
{
	le64 disk = le64_put(value);

	return order_put(f, q->order, field_off, &disk, sizeof(disk), after, ret_mark);
}

/* q->h changes first: order_put() may wait, and who looks meanwhile must see what is queued. */
int qed_put_features(struct fiber *f, struct qed *q, uint64_t features, order_mark after, order_mark *ret_mark)
{
	uint64_t before = q->h.features;
	int ret;

	q->h.features = features;
	ret = put_field(f, q, offsetof(struct qed_header_disk, features), features, after, ret_mark);
	if (ret < 0)
		q->h.features = before;
	return ret;
}

int qed_put_disk_len(struct fiber *f, struct qed *q, uint64_t disk_len, order_mark after, order_mark *ret_mark)
{
	int ret = put_field(f, q, offsetof(struct qed_header_disk, disk_len), disk_len, after, ret_mark);

	if (ret == 0)
		q->h.disk_len = disk_len;
	return ret;
}

int qed_put_autoclear(struct fiber *f, struct qed *q, uint64_t bits, order_mark *ret_mark)
{
	int ret = put_field(f, q, offsetof(struct qed_header_disk, autoclear_features), bits, ORDER_NONE, ret_mark);

	if (ret == 0)
		q->h.autoclear_features = bits;
	return ret;
}
