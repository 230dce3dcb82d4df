/* SPDX-License-Identifier: MIT */
/*
 * qcow2/header.c - the header: parsed with every field checked, and built
 *
 * Never:   believes a length or an offset before it was compared with the limits of disk.h and with the file.
 */
#include "format/qcow2/qcow2.h"

#include <stdio.h>
#include <string.h>

#define ULL unsigned long long

static const struct { uint8_t type, bit; const char *name; } feature_names[] = {
	{ 0, 0, "dirty bit" },	       { 0, 1, "corrupt bit" },	     { 0, 2, "external data file" },
	{ 0, 3, "compression type" },  { 0, 4, "extended L2 entries" }, { 1, 0, "lazy refcounts" },
	{ 2, 0, "bitmaps" },	       { 2, 1, "raw external data" },
};

struct feature_disk {
	uint8_t type, bit;
	char name[QCOW2_FEATURE_NAME_LEN];
};
static_assert(sizeof(struct feature_disk) == 48, "see the spec");

struct extension_disk {
	be32 type, len;
};

/* A table of len bytes at off: aligned, in the part of the file that offsets can name, and not past its end. */
static int place_check(const struct qcow2_header *h, const char *what, uint64_t off, uint64_t len, uint64_t file_len,
		       struct varve_error *err)
{
	uint64_t end;

	if (!is_aligned(off, 1ull << h->cluster_bits))
		return varve_error_set(err, -EINVAL, "%s at offset %llu is not aligned to the cluster size %llu", what,
				       (ULL)off, 1ull << h->cluster_bits);
	if (u64_add(off, len, &end) || end > QCOW2_HOST_OFF_MAX)
		return varve_error_set(err, -EINVAL, "%s at offset %llu is beyond what the format can address", what,
				       (ULL)off);
	if (end > file_len)
		return varve_error_set(err, -EINVAL,
				       "%s (%llu bytes at offset %llu) lies beyond the end of the file (%llu bytes): the "
				       "file is truncated or damaged",
				       what, (ULL)len, (ULL)off, (ULL)file_len);
	return 0;
}

static int fixed_parse(const struct qcow2_header_disk *d, size_t len, struct qcow2_header *h, struct varve_error *err)
{
	if (len < QCOW2_V2_HEADER_LEN || be32_get(d->magic) != QCOW2_MAGIC)
		return varve_error_set(err, -EINVAL, "not a qcow2 image: the magic number is missing");
	h->version = be32_get(d->version);
	if (h->version != 2 && h->version != 3)
		return varve_error_set(err, -ENOTSUP, "qcow2 version %u is not supported, only 2 and 3 are", h->version);
	h->cluster_bits = be32_get(d->cluster_bits);
	if (h->cluster_bits < QCOW2_CLUSTER_BITS_MIN || h->cluster_bits > QCOW2_CLUSTER_BITS_MAX)
		return varve_error_set(err, -EINVAL, "cluster size 2^%u is not 512 B .. 2 MiB", h->cluster_bits);
	h->disk_len = be64_get(d->disk_len);
	h->l1_off = be64_get(d->l1_off);
	h->l1_entries = be32_get(d->l1_entries);
	h->refcount_table_off = be64_get(d->refcount_table_off);
	h->refcount_table_clusters = be32_get(d->refcount_table_clusters);
	h->nr_snapshots = be32_get(d->nr_snapshots);
	h->snapshots_off = be64_get(d->snapshots_off);
	h->crypt_method = be32_get(d->crypt_method);
	if (h->crypt_method > 2)
		return varve_error_set(err, -ENOTSUP, "encryption method %u is unknown", h->crypt_method);
	h->refcount_order = 4;
	h->header_len = QCOW2_V2_HEADER_LEN;
	if (h->version == 2)
		return 0;
	if (len < QCOW2_V3_HEADER_LEN_MIN)
		return varve_error_set(err, -EINVAL, "the file ends inside the header");
	h->incompatible = be64_get(d->incompatible);
	h->compatible = be64_get(d->compatible);
	h->autoclear = be64_get(d->autoclear);
	h->refcount_order = be32_get(d->refcount_order);
	h->header_len = be32_get(d->header_len);
	if (h->refcount_order > QCOW2_REFCOUNT_ORDER_MAX)
		return varve_error_set(err, -EINVAL, "refcount width 2^%u bits, at most 64 bits are possible",
				       h->refcount_order);
	if (h->header_len < QCOW2_V3_HEADER_LEN_MIN || h->header_len % 8 || h->header_len > 1u << h->cluster_bits ||
	    h->header_len > len)
		return varve_error_set(err, -EINVAL, "header length %u is not a multiple of 8 from 104 to the cluster size",
				       h->header_len);
	if (h->header_len > offsetof(struct qcow2_header_disk, compression_type) && len >= sizeof(*d))
		h->compression_type = d->compression_type;
	return 0;
}

static int fields_check(const struct qcow2_header *h, uint64_t file_len, struct varve_error *err)
{
	uint64_t cluster_len = 1ull << h->cluster_bits;
	unsigned entry_len = h->incompatible & QCOW2_INCOMPAT_EXTENDED_L2 ? 16 : 8;
	uint64_t span = (cluster_len / entry_len) << h->cluster_bits;
	int r;

	if (!!h->compression_type != !!(h->incompatible & QCOW2_INCOMPAT_COMPRESSION))
		return varve_error_set(err, -EINVAL, "compression type %u does not agree with the compression type feature bit",
				       h->compression_type);
	if (h->compression_type > 1)
		return varve_error_set(err, -ENOTSUP, "compression type %u is unknown", h->compression_type);
	if (entry_len == 16 && h->cluster_bits < 14)
		return varve_error_set(err, -EINVAL, "extended L2 entries need clusters of at least 16 KiB");
	if (h->disk_len > VARVE_LEN_MAX - cluster_len)
		return varve_error_set(err, -EFBIG, "virtual size %llu is too large", (ULL)h->disk_len);
	if (h->l1_entries > QCOW2_L1_LEN_MAX / 8)
		return varve_error_set(err, -EFBIG, "L1 table of %u entries is too large (at most %llu)", h->l1_entries,
				       (ULL)(QCOW2_L1_LEN_MAX / 8));
	if (h->l1_entries < div_up(h->disk_len, span))
		return varve_error_set(err, -EINVAL, "L1 table of %u entries is too small for a virtual size of %llu bytes",
				       h->l1_entries, (ULL)h->disk_len);
	r = place_check(h, "L1 table", h->l1_off, h->l1_entries * 8ull, h->l1_entries ? file_len : UINT64_MAX, err);
	if (r < 0)
		return r;
	if (!h->refcount_table_clusters)
		return varve_error_set(err, -EINVAL, "the image has no refcount table");
	if (h->refcount_table_clusters > QCOW2_REFCOUNT_TABLE_LEN_MAX >> h->cluster_bits)
		return varve_error_set(err, -EFBIG, "refcount table of %u clusters is too large (at most %llu)",
				       h->refcount_table_clusters, (ULL)(QCOW2_REFCOUNT_TABLE_LEN_MAX >> h->cluster_bits));
	r = place_check(h, "refcount table", h->refcount_table_off, (uint64_t)h->refcount_table_clusters << h->cluster_bits,
			file_len, err);
	if (r < 0)
		return r;
	if (!h->refcount_table_off)
		return varve_error_set(err, -EINVAL, "the refcount table is at offset 0, where the header is");
	if (h->nr_snapshots > QCOW2_SNAPSHOTS_MAX)
		return varve_error_set(err, -EFBIG, "%u snapshots are too many (at most %u)", h->nr_snapshots,
				       QCOW2_SNAPSHOTS_MAX);
	return h->nr_snapshots ? place_check(h, "snapshot table", h->snapshots_off, 40ull * h->nr_snapshots, file_len, err) :
				 0;
}

static int backing_parse(const struct qcow2_header_disk *d, const uint8_t *buf, size_t len, struct qcow2_header *h,
			 struct varve_error *err)
{
	uint64_t off = be64_get(d->backing_name_off), end;
	uint32_t n = be32_get(d->backing_name_len);

	if (!off)
		return 0;
	if (n > QCOW2_BACKING_NAME_MAX)
		return varve_error_set(err, -EINVAL, "backing file name of %u bytes is too long (at most %u)", n,
				       QCOW2_BACKING_NAME_MAX);
	if (off < h->header_len || u64_add(off, n, &end) || end > 1ull << h->cluster_bits || end > len)
		return varve_error_set(err, -EINVAL, "backing file name (%u bytes at offset %llu) is not inside the first "
						     "cluster behind the header", n, (ULL)off);
	if (memchr(buf + off, 0, n))
		return varve_error_set(err, -EINVAL, "backing file name contains a NUL byte");
	memcpy(h->backing_name, buf + off, n);
	return 0;
}

static int text_extension(char *dst, size_t room, const char *what, const uint8_t *data, uint32_t len,
			  struct varve_error *err)
{
	if (len >= room)
		return varve_error_set(err, -EINVAL, "%s of %u bytes is too long (at most %zu)", what, len, room - 1);
	memcpy(dst, data, len);
	dst[len] = '\0';
	return 0;
}

/* The name of the lowest incompatible bit that we do not know, if the image gives it. */
static void feature_name_find(struct qcow2_header *h, const uint8_t *data, uint32_t len)
{
	uint64_t unknown = h->incompatible & ~(uint64_t)31;

	for (uint32_t i = 0; unknown && i + 48 <= len; i += 48) {
		const struct feature_disk *fd = (const void *)(data + i);

		if (fd->type == 0 && fd->bit == __builtin_ctzll(unknown))
			snprintf(h->unknown_feature, sizeof(h->unknown_feature), "%.*s", (int)sizeof(fd->name), fd->name);
	}
	for (char *c = h->unknown_feature; *c; c++)
		if (*c < ' ' || *c > '~')
			*c = '?';
}

static int bitmaps_extension(struct qcow2_header *h, const uint8_t *data, uint32_t len, struct varve_error *err)
{
	const struct { be32 nr, reserved; be64 dir_len, dir_off; } *b = (const void *)data;

	if (len != 24)
		return varve_error_set(err, -EINVAL, "bitmaps extension of %u bytes, it must have 24", len);
	h->nr_bitmaps = be32_get(b->nr);
	h->bitmap_directory_len = be64_get(b->dir_len);
	h->bitmap_directory_off = be64_get(b->dir_off);
	if (!h->nr_bitmaps || h->nr_bitmaps > QCOW2_BITMAPS_MAX || h->bitmap_directory_len > QCOW2_BITMAP_DIRECTORY_LEN_MAX)
		return varve_error_set(err, -EINVAL, "bitmaps extension: %u bitmaps in a directory of %llu bytes are not "
						     "possible", h->nr_bitmaps, (ULL)h->bitmap_directory_len);
	return 0;
}

static int extensions_parse(const uint8_t *buf, size_t len, uint64_t backing_off, struct qcow2_header *h,
			    struct varve_error *err)
{
	uint64_t end = MIN(len, 1ull << h->cluster_bits), pos = h->header_len;
	int r = 0;

	/* Version 2 files made before extensions existed have the name right behind the header. */
	if (backing_off && backing_off < end)
		end = backing_off;
	while (r == 0 && pos + 8 <= end) {
		const struct extension_disk *x = (const void *)(buf + pos);
		uint32_t type = be32_get(x->type), n = be32_get(x->len);
		const uint8_t *data = buf + pos + 8;

		if (type == QCOW2_EXT_END)
			return 0;
		if (n > end - pos - 8)
			return varve_error_set(err, -EINVAL, "header extension 0x%08x of %u bytes is longer than the header area",
					       type, n);
		if (type == QCOW2_EXT_BACKING_FORMAT)
			r = text_extension(h->backing_format, sizeof(h->backing_format), "backing format name", data, n, err);
		else if (type == QCOW2_EXT_DATA_FILE)
			r = text_extension(h->data_file, sizeof(h->data_file), "data file name", data, n, err);
		else if (type == QCOW2_EXT_FEATURE_NAMES)
			feature_name_find(h, data, n);
		else if (type == QCOW2_EXT_BITMAPS)
			r = bitmaps_extension(h, data, n, err);
		pos += 8 + align_up(n, 8);
	}
	return r;
}

int qcow2_header_parse(const uint8_t *buf, size_t len, uint64_t file_len, struct qcow2_header *ret,
		       struct varve_error *err)
{
	const struct qcow2_header_disk *d = (const void *)buf;
	int r;

	memset(ret, 0, sizeof(*ret));
	r = fixed_parse(d, len, ret, err);
	if (r == 0 && !(ret->incompatible & ~(uint64_t)31))
		r = fields_check(ret, file_len, err);
	if (r == 0)
		r = backing_parse(d, buf, len, ret, err);
	if (r == 0)
		r = extensions_parse(buf, len, be64_get(d->backing_name_off), ret, err);
	return r;
}

int qcow2_header_usable(const struct qcow2_header *h, bool writable, struct varve_error *err)
{
	uint64_t unknown = h->incompatible & ~(uint64_t)31;

	if (unknown)
		return varve_error_set(err, -ENOTSUP, "the image uses an unknown feature: %s (incompatible bit %d)",
				       *h->unknown_feature ? h->unknown_feature : "unnamed", __builtin_ctzll(unknown));
	if (h->crypt_method)
		return varve_error_set(err, -ENOTSUP, "the image is encrypted (%s), which this version cannot read",
				       h->crypt_method == 1 ? "AES" : "LUKS");
	if (h->incompatible & QCOW2_INCOMPAT_DATA_FILE)
		return varve_error_set(err, -ENOTSUP, "the image keeps its data in an external data file, which this version "
						      "cannot use");
	if (!writable)
		return 0;
	if (h->incompatible & QCOW2_INCOMPAT_CORRUPT)
		return varve_error_set(err, -EACCES, "the image is marked corrupt and can only be opened read-only");
	if (h->incompatible & QCOW2_INCOMPAT_DIRTY)
		return varve_error_set(err, -EACCES, "the image was not closed cleanly and its refcounts may be stale (dirty bit); "
						     "repair it first (qemu-img check -r all), or open it read-only");
	if (h->incompatible & QCOW2_INCOMPAT_EXTENDED_L2)
		return varve_error_set(err, -ENOTSUP, "the image has extended L2 entries, which this version can read but not "
						      "write");
	return 0;
}

static uint8_t *extension_put(uint8_t *p, const uint8_t *end, uint32_t type, const void *data, uint32_t len)
{
	struct extension_disk x = { be32_put(type), be32_put(len) };

	if (!p || align_up(len, 8) + sizeof(x) > (size_t)(end - p))
		return NULL;
	memcpy(p, &x, sizeof(x));
	if (len)
		memcpy(p + sizeof(x), data, len);
	return p + sizeof(x) + align_up(len, 8);
}

int qcow2_header_build(const struct qcow2_header *h, uint8_t *cluster, struct varve_error *err)
{
	struct qcow2_header_disk *d = (void *)cluster;
	uint32_t name_len = (uint32_t)strlen(h->backing_name);
	struct feature_disk names[ARRAY_LEN(feature_names)] = { 0 };
	uint8_t *end = cluster + (1ull << h->cluster_bits), *p, *q;

	memset(cluster, 0, 1ull << h->cluster_bits);
	d->magic = be32_put(QCOW2_MAGIC);
	d->version = be32_put(h->version);
	d->cluster_bits = be32_put(h->cluster_bits);
	d->disk_len = be64_put(h->disk_len);
	d->crypt_method = be32_put(h->crypt_method);
	d->l1_entries = be32_put(h->l1_entries);
	d->l1_off = be64_put(h->l1_off);
	d->refcount_table_off = be64_put(h->refcount_table_off);
	d->refcount_table_clusters = be32_put(h->refcount_table_clusters);
	d->nr_snapshots = be32_put(h->nr_snapshots);
	d->snapshots_off = be64_put(h->snapshots_off);
	p = cluster + QCOW2_V2_HEADER_LEN;
	if (h->version >= 3) {
		d->incompatible = be64_put(h->incompatible);
		d->compatible = be64_put(h->compatible);
		d->autoclear = be64_put(h->autoclear);
		d->refcount_order = be32_put(h->refcount_order);
		d->header_len = be32_put(sizeof(*d));
		d->compression_type = h->compression_type;
		p = cluster + sizeof(*d);
	}
	if (*h->backing_format)
		p = extension_put(p, end, QCOW2_EXT_BACKING_FORMAT, h->backing_format, (uint32_t)strlen(h->backing_format));
	for (size_t i = 0; i < ARRAY_LEN(feature_names); i++) {
		names[i].type = feature_names[i].type;
		names[i].bit = feature_names[i].bit;
		memcpy(names[i].name, feature_names[i].name, strlen(feature_names[i].name));
	}
	/* The names are a courtesy: small clusters may have no room for them beside a long backing file name. */
	q = h->version >= 3 ? extension_put(p, end, QCOW2_EXT_FEATURE_NAMES, names, sizeof(names)) : NULL;
	if (q && (size_t)(end - q) >= 8 + name_len)
		p = q;
	else if (q)
		memset(p, 0, (size_t)(q - p));
	p = extension_put(p, end, QCOW2_EXT_END, NULL, 0);
	if (!p || (size_t)(end - p) < name_len)
		return varve_error_set(err, -EINVAL, "a backing file name of %u bytes has no room in a header cluster of %llu bytes",
				       name_len, 1ull << h->cluster_bits);
	if (name_len) {
		d->backing_name_off = be64_put((uint64_t)(p - cluster));
		d->backing_name_len = be32_put(name_len);
		memcpy(p, h->backing_name, name_len);
	}
	return 0;
}
