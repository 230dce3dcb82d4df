/* SPDX-License-Identifier: MIT */
/*
 * qcow2/header_change.c - another version, other features, another backing file, bitmaps, a length with them, in the header of an image that is in use
 *
 * A power cut must leave the old header or the new one: a backing file with a foreign format, or extensions that are found
 * where others were, would be read as garbage. Everything but the backing file's name is in the first sector of the file, which
 * a device writes whole or not at all; the name is written to a free place first, and then the first sector changes at once.
 *
 * Assumes: a fiber of the home queue, under l1_mutex; the image is writable, and its header was parsed at open.
 * Never:   drops an extension that it does not know; names of features are a courtesy, and stay as far as there is room.
 */
#include <stdlib.h>
#include <string.h>

#include "format/qcow2/qcow2.h"
#include "format/qcow2/sites.h"

#define SECTOR 512u
#define EXTENSION_HEAD 8u

struct new_header {
	uint8_t *cluster; /* as it is on disk */
	uint8_t sector[SECTOR];
	uint32_t end;		    /* of the extensions in sector; behind it comes the end marker, zeroes */
	uint32_t old_at, old_len;   /* place of the present name; 0, 0: none */
	uint32_t name_at, name_len; /* of the new one */
};

static uint32_t get32(const uint8_t *p)
{
	be32 x;

	memcpy(&x, p, sizeof(x));
	return be32_get(x);
}

static void put32(uint8_t *p, uint32_t value)
{
	be32 x = be32_put(value);

	memcpy(p, &x, sizeof(x));
}

/* False: there is no room in the first sector. */
static bool add_extension(struct new_header *n, uint32_t type, const void *data, uint32_t len)
{
	uint32_t all = EXTENSION_HEAD + (uint32_t)align_up(len, 8);

	if (all > SECTOR - EXTENSION_HEAD - n->end) /* the end marker needs its place */
		return false;
	put32(n->sector + n->end, type);
	put32(n->sector + n->end + 4, len);
	memcpy(n->sector + n->end + EXTENSION_HEAD, data, len);
	n->end += all;
	return true;
}

/*
 * All but the backing format, bitmaps and the data file, which change, and feature names, which come last. Well-formed, as at open. Bitmaps
 * that nobody may rely on any more go.
 */
static int keep_extensions(struct new_header *n, const struct qcow2_header *old, uint32_t cluster_len, struct varve_error *err)
{
	uint32_t pos = old->header_len, end = n->old_at ? n->old_at : cluster_len;

	while (pos + EXTENSION_HEAD <= end) {
		uint32_t type = get32(n->cluster + pos), len = get32(n->cluster + pos + 4);

		if (type == QCOW2_EXT_END || len > end - pos - EXTENSION_HEAD)
			break;
		if (type != QCOW2_EXT_BACKING_FORMAT && type != QCOW2_EXT_FEATURE_NAMES && type != QCOW2_EXT_BITMAPS &&
		    type != QCOW2_EXT_DATA_FILE &&
		    !add_extension(n, type, n->cluster + pos + EXTENSION_HEAD, len))
			return varve_error_set(err, -ENOTSUP,
					       "the header's extensions do not fit into its first sector; it cannot be changed "
					       "in a way that survives a power cut");
		pos += EXTENSION_HEAD + (uint32_t)align_up(len, 8);
	}
	return 0;
}

static int build_extensions(struct new_header *n, const struct qcow2_header *old, const struct qcow2_header *want,
			    uint32_t cluster_len, struct varve_error *err)
{
	n->end = want->header_len;
	/* Bytes of a header longer than ours are kept, as long as the version stays. */
	if (want->header_len == old->header_len)
		memcpy(n->sector, n->cluster, MIN(old->header_len, SECTOR));
	if (*want->backing_name && *want->backing_format &&
	    !add_extension(n, QCOW2_EXT_BACKING_FORMAT, want->backing_format, (uint32_t)strlen(want->backing_format)))
		return varve_error_set(err, -ENOTSUP, "a header of %u bytes leaves no room for the backing format", want->header_len);
	if (want->nr_bitmaps) {
		struct qcow2_bitmaps_disk d = { .nr_bitmaps = be32_put(want->nr_bitmaps),
						.directory_len = be64_put(want->bitmap_directory_len),
						.directory_off = be64_put(want->bitmap_directory_off) };

		if (!add_extension(n, QCOW2_EXT_BITMAPS, &d, sizeof(d)))
			return varve_error_set(err, -ENOTSUP, "the header leaves no room in its first sector for bitmaps");
	}
	if (*want->data_file &&
	    !add_extension(n, QCOW2_EXT_DATA_FILE, want->data_file, (uint32_t)strlen(want->data_file)))
		return varve_error_set(err, -ENOTSUP, "a data file name of %zu bytes does not fit into the first sector of the header; it cannot "
						      "be changed in a way that survives a power cut",
				       strlen(want->data_file));
	return keep_extensions(n, old, cluster_len, err);
}

/* Behind the first sector, not over the old name; where there is no room, in it, at its end. */
static int place_name(struct new_header *n, const char *name, uint32_t cluster_len, struct varve_error *err)
{
	uint32_t len = (uint32_t)strlen(name), behind = MAX(SECTOR, (uint32_t)align_up(n->old_at + n->old_len, 8));

	n->name_len = len;
	if (!len)
		return 0;
	if (n->old_at > SECTOR && len <= n->old_at - SECTOR)
		n->name_at = SECTOR;
	else if (behind < cluster_len && len <= cluster_len - behind)
		n->name_at = behind;
	else if (len <= SECTOR - EXTENSION_HEAD - n->end)
		n->name_at = SECTOR - len;
	else
		return varve_error_set(err, -ENOSPC, "the first cluster has no room for the backing file name '%.200s'", name);
	return 0;
}

/* As many names of features as there is room for, and the end marker. */
static void finish_extensions(struct new_header *n, const struct qcow2_header *want)
{
	uint32_t room = n->name_at && n->name_at < SECTOR ? n->name_at : SECTOR, len;
	const void *names;

	len = qcow2_feature_names(&names);
	while (want->version >= 3 && len && n->end + 2 * EXTENSION_HEAD + len > room)
		len -= qcow2_feature_name_len();
	if (want->version >= 3 && len)
		(void)add_extension(n, QCOW2_EXT_FEATURE_NAMES, names, len); /* it fits */
	if (n->name_at && n->name_at < SECTOR)
		memcpy(n->sector + n->name_at, want->backing_name, n->name_len);
}

/* The dirty bit comes and goes with what is done meanwhile, and the corrupt bit comes. */
static uint64_t incompatible(const struct qcow2 *q, const struct qcow2_header *want)
{
	const uint64_t dirty = want->version < 3 ? 0 : QCOW2_INCOMPAT_DIRTY | QCOW2_INCOMPAT_CORRUPT;

	return (want->incompatible & ~dirty) | (q->h.incompatible & dirty);
}

/* What may have changed while we waited is taken from q->h: nothing waits between here and order_put(). */
static void fill_fields(struct new_header *n, const struct qcow2 *q, const struct qcow2_header *want)
{
	struct qcow2_header h = q->h;
	struct qcow2_header_disk d;

	h.disk_len = want->disk_len;
	h.l1_off = want->l1_off; /* under l1_mutex: they are those of q->h, or what is to be */
	h.l1_entries = want->l1_entries;
	h.version = want->version;
	h.header_len = want->header_len;
	h.incompatible = incompatible(q, want);
	h.compatible = want->compatible;
	h.autoclear = want->autoclear;
	if (want->refcount_order != h.refcount_order) { /* new counts, in a table of their own */
		h.refcount_order = want->refcount_order;
		h.refcount_table_off = want->refcount_table_off;
		h.refcount_table_clusters = want->refcount_table_clusters;
	}
	d = qcow2_header_to_disk(&h);
	d.backing_name_off = be64_put(n->name_at);
	d.backing_name_len = be32_put(n->name_len);
	memcpy(n->sector, &d, MIN(sizeof(d), h.header_len));
}

/*
 * Durable first: the new name, and everything written until now, which the new header may rely on. Only then: the first
 * sector. Power lost in between leaves the old header, and bytes that nothing refers to.
 */
static int write_out(struct fiber *f, struct qcow2 *q, struct new_header *n, const struct qcow2_header *want,
		     order_mark *ret_mark)
{
	order_mark written = ORDER_NONE;
	int ret = 0;

	if (n->name_at >= SECTOR)
		ret = order_put(f, q->order, n->name_at, want->backing_name, n->name_len, ORDER_NONE, &written);
	if (ret < 0)
		return ret;
	fiber_lock(f, &q->header_mutex);
	fill_fields(n, q, want);
	ret = order_put(f, q->order, 0, n->sector, SECTOR,
			site_after(q, SITE_HEADER_CHANGE, order_max(written, order_all(q->order))), ret_mark);
	fiber_unlock(&q->header_mutex);
	return ret;
}

static void adopt(struct qcow2 *q, const struct qcow2_header *want)
{
	q->h.incompatible = incompatible(q, want);
	q->h.disk_len = want->disk_len;
	q->h.version = want->version;
	q->h.header_len = want->header_len;
	q->h.compatible = want->compatible;
	q->h.autoclear = want->autoclear;
	q->h.nr_bitmaps = want->nr_bitmaps;
	q->h.bitmap_directory_len = want->bitmap_directory_len;
	q->h.bitmap_directory_off = want->bitmap_directory_off;
	memcpy(q->h.backing_name, want->backing_name, sizeof(q->h.backing_name));
	memcpy(q->h.backing_format, want->backing_format, sizeof(q->h.backing_format));
	memcpy(q->h.data_file, want->data_file, sizeof(q->h.data_file));
}

/* What can be known without writing anything: is there room? */
static int build(struct fiber *f, struct qcow2 *q, struct new_header *n, const struct qcow2_header *want, struct varve_error *err)
{
	int ret;

	n->cluster = malloc(q->cluster_len);
	if (!n->cluster)
		return varve_error_errno(err, -ENOMEM, "header");
	ret = order_read(f, q->order, 0, n->cluster, q->cluster_len);
	if (ret < 0)
		return varve_error_errno(err, ret, "the header cannot be read");
	n->old_at = get32(n->cluster + offsetof(struct qcow2_header_disk, backing_name_off) + 4);
	n->old_len = get32(n->cluster + offsetof(struct qcow2_header_disk, backing_name_len));
	ret = build_extensions(n, &q->h, want, q->cluster_len, err);
	return ret < 0 ? ret : place_name(n, want->backing_name, q->cluster_len, err);
}

int qcow2_header_fits(struct fiber *f, struct qcow2 *q, const struct qcow2_header *want, struct varve_error *err)
{
	struct new_header n = { 0 };
	int ret = build(f, q, &n, want, err);

	free(n.cluster);
	return ret;
}

int qcow2_header_change(struct fiber *f, struct qcow2 *q, const struct qcow2_header *want, struct varve_error *err)
{
	struct new_header n = { 0 };
	order_mark mark = ORDER_NONE;
	int ret = build(f, q, &n, want, err);

	if (ret < 0) {
		free(n.cluster);
		return ret;
	}
	finish_extensions(&n, want);
	ret = write_out(f, q, &n, want, &mark);
	if (ret == 0) {
		adopt(q, want);
		ret = order_wait(f, q->order, mark);
	}
	free(n.cluster);
	return ret < 0 ? varve_error_errno(err, ret, "the header cannot be written") : 0;
}
