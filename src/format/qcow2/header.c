/* SPDX-License-Identifier: MIT */
/*
 * qcow2/header.c - the first cluster of an image: header, extensions, backing file name
 *
 * Owns:    the bounds of every field in it; nobody else reads the header from disk.
 * Assumes: nothing about the bytes.
 * Never:   refuses in parse() what is well-formed but cannot be used here: img info shows it. That is
 * usable()'s part.
 */
#include "format/qcow2/qcow2.h"

#include <string.h>

/* docs/spec/qcow2.md, "Header extensions". Data follows, padded to a multiple of 8. */
struct extension_disk {
	be32 type;
	be32 len;
};

/* docs/spec/qcow2.md, "Feature names". */
struct feature_disk {
	uint8_t kind; /* 0 incompatible, 1 compatible, 2 autoclear */
	uint8_t bit;
	char name[QCOW2_FEATURE_NAME_LEN]; /* padded with NUL */
};
static_assert(sizeof(struct feature_disk) == 48, "see the spec");

#define INCOMPAT_KNOWN                                                                                       \
	(QCOW2_INCOMPAT_DIRTY | QCOW2_INCOMPAT_CORRUPT | QCOW2_INCOMPAT_DATA_FILE |                          \
	 QCOW2_INCOMPAT_COMPRESSION | QCOW2_INCOMPAT_EXTENDED_L2)

static unsigned long long ull(uint64_t x)
{
	return x;
}

/* What parse() works on. */
struct reader {
	const uint8_t *buf;
	size_t len;
	uint64_t file_len;
	struct qcow2_header *h;
	struct varve_error *err;
};

/* ---- fixed fields ---- */

static int parse_fields(struct reader *rd)
{
	struct qcow2_header_disk d = { 0 };
	struct qcow2_header *h = rd->h;

	memcpy(&d, rd->buf, MIN(rd->len, sizeof(d)));
	if (rd->len < sizeof(d.magic) || be32_get(d.magic) != QCOW2_MAGIC)
		return varve_error_set(rd->err, -EINVAL,
				       "not a qcow2 image: it does not begin with 'QFI\\xfb'");
	if (rd->len < QCOW2_V2_HEADER_LEN)
		return varve_error_set(rd->err, -EINVAL,
				       "truncated: %zu bytes, a qcow2 header has at least %d", rd->len,
				       QCOW2_V2_HEADER_LEN);
	h->version = be32_get(d.version);
	if (h->version != 2 && h->version != 3)
		return varve_error_set(rd->err, -ENOTSUP,
				       "qcow2 version %u is not supported, only 2 and 3 are", h->version);
	if (h->version == 3 && rd->len < QCOW2_V3_HEADER_LEN_MIN)
		return varve_error_set(rd->err, -EINVAL,
				       "truncated: %zu bytes, a qcow2 version 3 header has at least %d",
				       rd->len, QCOW2_V3_HEADER_LEN_MIN);
	h->cluster_bits = be32_get(d.cluster_bits);
	h->disk_len = be64_get(d.disk_len);
	h->crypt_method = be32_get(d.crypt_method);
	h->l1_entries = be32_get(d.l1_entries);
	h->l1_off = be64_get(d.l1_off);
	h->refcount_table_off = be64_get(d.refcount_table_off);
	h->refcount_table_clusters = be32_get(d.refcount_table_clusters);
	h->nr_snapshots = be32_get(d.nr_snapshots);
	h->snapshots_off = be64_get(d.snapshots_off);
	h->refcount_order = 4;
	h->header_len = QCOW2_V2_HEADER_LEN;
	if (h->version < 3)
		return 0;
	h->incompatible = be64_get(d.incompatible);
	h->compatible = be64_get(d.compatible);
	h->autoclear = be64_get(d.autoclear);
	h->refcount_order = be32_get(d.refcount_order);
	h->header_len = be32_get(d.header_len);
	if (h->header_len > offsetof(struct qcow2_header_disk, compression_type))
		h->compression_type = d.compression_type;
	return 0;
}

static int check_geometry(struct reader *rd)
{
	const struct qcow2_header *h = rd->h;

	if (h->cluster_bits < QCOW2_CLUSTER_BITS_MIN || h->cluster_bits > QCOW2_CLUSTER_BITS_MAX)
		return varve_error_set(rd->err, -EINVAL, "cluster size 2^%u is not 512 bytes .. 2 MiB",
				       h->cluster_bits);
	if ((h->incompatible & QCOW2_INCOMPAT_EXTENDED_L2) && h->cluster_bits < 14)
		return varve_error_set(rd->err, -EINVAL,
				       "cluster size %u is too small for extended L2 entries, which need "
				       "at least 16 KiB",
				       1u << h->cluster_bits);
	if (h->version == 3 && (h->header_len < QCOW2_V3_HEADER_LEN_MIN || h->header_len % 8))
		return varve_error_set(rd->err, -EINVAL, "header length %u is not a multiple of 8 from %d on",
				       h->header_len, QCOW2_V3_HEADER_LEN_MIN);
	if (h->header_len > 1u << h->cluster_bits)
		return varve_error_set(rd->err, -EINVAL, "header length %u is larger than a cluster (%u)",
				       h->header_len, 1u << h->cluster_bits);
	if (h->header_len > rd->len)
		return varve_error_set(rd->err, -EINVAL, "truncated: %zu bytes, the header alone has %u",
				       rd->len, h->header_len);
	if (h->refcount_order > QCOW2_REFCOUNT_ORDER_MAX)
		return varve_error_set(rd->err, -EINVAL, "refcount width 2^%u bits is more than 64",
				       h->refcount_order);
	if (h->crypt_method > 2)
		return varve_error_set(rd->err, -ENOTSUP, "encryption method %u is not known to this version",
				       h->crypt_method);
	return 0;
}

static int check_compression(struct reader *rd)
{
	const struct qcow2_header *h = rd->h;
	bool flag = h->incompatible & QCOW2_INCOMPAT_COMPRESSION;

	if (h->compression_type > 1)
		return varve_error_set(rd->err, -ENOTSUP, "compression type %u is not known to this version",
				       h->compression_type);
	if (flag != !!h->compression_type)
		return varve_error_set(
			rd->err, -EINVAL,
			"compression type %u does not agree with the incompatible feature bit 3, which is %s",
			h->compression_type, flag ? "set" : "clear");
	return 0;
}

/*
 * A table named by the header: at a cluster boundary, behind the first cluster, within the 56 bits of a host
 * offset and inside the file. len > 0.
 */
static int check_place(struct reader *rd, const char *what, uint64_t host_off, uint64_t len)
{
	uint64_t cluster_len = 1ull << rd->h->cluster_bits, end;

	if (!is_aligned(host_off, cluster_len))
		return varve_error_set(rd->err, -EINVAL,
				       "%s at host offset 0x%llx: not a multiple of the cluster size (%llu)",
				       what, ull(host_off), ull(cluster_len));
	if (host_off < cluster_len)
		return varve_error_set(rd->err, -EINVAL, "%s at host offset 0: the header is there", what);
	if (u64_add(host_off, len, &end) || end > QCOW2_HOST_OFF_MAX)
		return varve_error_set(rd->err, -EINVAL,
				       "%s at host offset 0x%llx: beyond what qcow2 can address (2^56)", what,
				       ull(host_off));
	if (end > rd->file_len)
		return varve_error_set(
			rd->err, -EINVAL,
			"%s at host offset 0x%llx, %llu bytes long: reaches beyond the end of the file "
			"(%llu bytes); the file is truncated or damaged",
			what, ull(host_off), ull(len), ull(rd->file_len));
	return 0;
}

static int check_l1(struct reader *rd)
{
	const struct qcow2_header *h = rd->h;
	uint64_t entry_len = h->incompatible & QCOW2_INCOMPAT_EXTENDED_L2 ? 16 : 8;
	uint64_t covers = ((1ull << h->cluster_bits) / entry_len)
			  << h->cluster_bits; /* bytes of disk for one entry */

	if (h->disk_len > VARVE_LEN_MAX)
		return varve_error_set(rd->err, -EFBIG, "virtual size of %llu bytes is larger than 2^63 - 1",
				       ull(h->disk_len));
	if (h->l1_entries > QCOW2_L1_LEN_MAX / 8)
		return varve_error_set(rd->err, -EFBIG, "L1 table of %u entries is larger than %llu MiB",
				       h->l1_entries, ull(QCOW2_L1_LEN_MAX >> 20));
	if (h->l1_entries < div_up(h->disk_len, covers))
		return varve_error_set(rd->err, -EINVAL,
				       "L1 table of %u entries is too small for a virtual size of %llu bytes",
				       h->l1_entries, ull(h->disk_len));
	return h->l1_entries ? check_place(rd, "L1 table", h->l1_off, (uint64_t)h->l1_entries * 8) : 0;
}

static int check_tables(struct reader *rd)
{
	const struct qcow2_header *h = rd->h;
	uint64_t table_len = (uint64_t)h->refcount_table_clusters << h->cluster_bits;
	int ret = check_l1(rd);

	if (ret < 0)
		return ret;
	if (!table_len)
		return varve_error_set(rd->err, -EINVAL, "the refcount table has no clusters");
	if (table_len > QCOW2_REFCOUNT_TABLE_LEN_MAX)
		return varve_error_set(rd->err, -EFBIG,
				       "refcount table of %u clusters is larger than %llu MiB",
				       h->refcount_table_clusters, ull(QCOW2_REFCOUNT_TABLE_LEN_MAX >> 20));
	ret = check_place(rd, "refcount table", h->refcount_table_off, table_len);
	if (ret < 0)
		return ret;
	if (h->nr_snapshots > QCOW2_SNAPSHOTS_MAX)
		return varve_error_set(rd->err, -EFBIG, "%u snapshots are more than the %d that are allowed",
				       h->nr_snapshots, QCOW2_SNAPSHOTS_MAX);
	/* Each entry of the snapshot table has at least 40 bytes. */
	return h->nr_snapshots
		       ? check_place(rd, "snapshot table", h->snapshots_off, (uint64_t)h->nr_snapshots * 40)
		       : 0;
}

/* ---- names ---- */

/*
 * A name of len bytes. NUL bytes at its end are dropped; one in the middle would make it mean one thing here
 * and another to a program that reads all of it.
 */
static int copy_name(struct reader *rd, const char *what, const uint8_t *bytes, size_t len, char *to)
{
	while (len && !bytes[len - 1])
		len--;
	if (len && memchr(bytes, 0, len))
		return varve_error_set(rd->err, -EINVAL, "%s contains a NUL byte", what);
	memcpy(to, bytes, len);
	to[len] = 0;
	return 0;
}

/* *ret_end: where extensions end, the backing file name or the end of the cluster. */
static int parse_backing_name(struct reader *rd, size_t *ret_end)
{
	const struct qcow2_header_disk *d = (const void *)rd->buf;
	uint64_t off = be64_get(d->backing_name_off), cluster_len = 1ull << rd->h->cluster_bits;
	uint32_t len = be32_get(d->backing_name_len);

	*ret_end = (size_t)MIN(cluster_len, (uint64_t)rd->len);
	if (!off)
		return 0;
	if (len > QCOW2_BACKING_NAME_MAX)
		return varve_error_set(rd->err, -EINVAL, "backing file name of %u bytes is longer than %d",
				       len, QCOW2_BACKING_NAME_MAX);
	if (off < rd->h->header_len)
		return varve_error_set(rd->err, -EINVAL,
				       "backing file name at offset %llu lies in the header (%u bytes)",
				       ull(off), rd->h->header_len);
	if (off > cluster_len || len > cluster_len - off)
		return varve_error_set(
			rd->err, -EINVAL,
			"backing file name at offset %llu, %u bytes long, is not inside the first cluster",
			ull(off), len);
	if (off + len > rd->len)
		return varve_error_set(rd->err, -EINVAL,
				       "truncated: %zu bytes, the backing file name ends at %llu", rd->len,
				       ull(off + len));
	*ret_end = (size_t)off;
	return copy_name(rd, "backing file name", rd->buf + off, len, rd->h->backing_name);
}

/* ---- extensions ---- */

static int parse_backing_format(struct reader *rd, const uint8_t *data, uint32_t len)
{
	if (len > QCOW2_BACKING_FORMAT_MAX)
		return varve_error_set(rd->err, -EINVAL, "backing format name of %u bytes is longer than %d",
				       len, QCOW2_BACKING_FORMAT_MAX);
	return copy_name(rd, "backing format name", data, len, rd->h->backing_format);
}

static int parse_data_file(struct reader *rd, const uint8_t *data, uint32_t len)
{
	if (len > QCOW2_DATA_FILE_NAME_MAX)
		return varve_error_set(rd->err, -EINVAL, "data file name of %u bytes is longer than %d", len,
				       QCOW2_DATA_FILE_NAME_MAX);
	return copy_name(rd, "data file name", data, len, rd->h->data_file);
}

/* The name of the first incompatible bit that we do not know. */
static void parse_feature_names(struct reader *rd, const uint8_t *data, uint32_t len)
{
	uint64_t unknown = rd->h->incompatible & ~INCOMPAT_KNOWN;

	for (; unknown && len >= sizeof(struct feature_disk); len -= sizeof(struct feature_disk)) {
		struct feature_disk feature;

		memcpy(&feature, data, sizeof(feature));
		data += sizeof(feature);
		if (feature.kind == 0 && feature.bit == (unsigned)__builtin_ctzll(unknown)) {
			memcpy(rd->h->unknown_feature, feature.name, sizeof(feature.name));
			break;
		}
	}
	for (char *c = rd->h->unknown_feature; *c; c++) {
		if ((unsigned char)*c < 0x20 || *c == 0x7f)
			*c = '?'; /* it will be shown on a terminal */
	}
}

static int parse_bitmaps(struct reader *rd, const uint8_t *data, uint32_t len)
{
	struct qcow2_header *h = rd->h;
	struct qcow2_bitmaps_disk d;

	/* Whoever changed the image without knowing bitmaps cleared the bit: what stands here means nothing
	 * then. */
	if (!(h->autoclear & QCOW2_AUTOCLEAR_BITMAPS))
		return 0;
	if (len != sizeof(d))
		return varve_error_set(rd->err, -EINVAL, "bitmaps extension of %u bytes, it must have %zu",
				       len, sizeof(d));
	memcpy(&d, data, sizeof(d));
	h->nr_bitmaps = be32_get(d.nr_bitmaps);
	h->bitmap_directory_len = be64_get(d.directory_len);
	h->bitmap_directory_off = be64_get(d.directory_off);
	if (!h->nr_bitmaps || h->nr_bitmaps > QCOW2_BITMAPS_MAX)
		return varve_error_set(rd->err, -EINVAL, "bitmaps extension: %u bitmaps are not 1 .. %d",
				       h->nr_bitmaps, QCOW2_BITMAPS_MAX);
	if (!h->bitmap_directory_len || h->bitmap_directory_len > QCOW2_BITMAP_DIRECTORY_LEN_MAX)
		return varve_error_set(rd->err, -EINVAL, "bitmap directory of %llu bytes is not 1 .. %llu",
				       ull(h->bitmap_directory_len), ull(QCOW2_BITMAP_DIRECTORY_LEN_MAX));
	return check_place(rd, "bitmap directory", h->bitmap_directory_off, h->bitmap_directory_len);
}

static int parse_extension(struct reader *rd, uint32_t type, const uint8_t *data, uint32_t len,
			   uint32_t *seen)
{
	static const uint32_t known[] = { QCOW2_EXT_BACKING_FORMAT, QCOW2_EXT_FEATURE_NAMES,
					  QCOW2_EXT_BITMAPS, QCOW2_EXT_LUKS, QCOW2_EXT_DATA_FILE };

	for (unsigned i = 0; i < ARRAY_LEN(known); i++) {
		if (type != known[i])
			continue;
		if (*seen & 1u << i)
			return varve_error_set(rd->err, -EINVAL, "header extension 0x%08x stands there twice",
					       type);
		*seen |= 1u << i;
	}
	switch (type) {
	case QCOW2_EXT_BACKING_FORMAT:
		return parse_backing_format(rd, data, len);
	case QCOW2_EXT_DATA_FILE:
		return parse_data_file(rd, data, len);
	case QCOW2_EXT_BITMAPS:
		return parse_bitmaps(rd, data, len);
	case QCOW2_EXT_FEATURE_NAMES:
		parse_feature_names(rd, data, len);
		return 0;
	default:
		return 0; /* LUKS: luks.c reads its own; unknown ones may be ignored, and stay where they are
			   */
	}
}

static int parse_extensions(struct reader *rd, size_t end)
{
	size_t pos = rd->h->header_len;
	uint32_t seen = 0;

	/* Old images without extensions have the backing file name right behind the header. */
	while (pos < end) {
		struct extension_disk ext;
		uint32_t type, len;
		int ret;

		if (end - pos < sizeof(ext))
			return varve_error_set(rd->err, -EINVAL,
					       "header extension at offset %zu is cut off at %zu", pos, end);
		memcpy(&ext, rd->buf + pos, sizeof(ext));
		type = be32_get(ext.type);
		len = be32_get(ext.len);
		pos += sizeof(ext);
		if (type == QCOW2_EXT_END)
			return 0;
		if (len > end - pos)
			return varve_error_set(rd->err, -EINVAL,
					       "header extension 0x%08x of %u bytes reaches beyond the "
					       "extension area (%zu left)",
					       type, len, end - pos);
		ret = parse_extension(rd, type, rd->buf + pos, len, &seen);
		if (ret < 0)
			return ret;
		pos += align_up(len, 8);
	}
	return 0;
}

int qcow2_header_parse(const uint8_t *buf, size_t len, uint64_t file_len, struct qcow2_header *ret,
		       struct varve_error *err)
{
	struct qcow2_header h = { 0 };
	struct reader rd = { .buf = buf, .len = len, .file_len = file_len, .h = &h, .err = err };
	size_t end;
	int r;

	if ((r = parse_fields(&rd)) < 0 || (r = check_geometry(&rd)) < 0 ||
	    (r = check_compression(&rd)) < 0 || (r = check_tables(&rd)) < 0 ||
	    (r = parse_backing_name(&rd, &end)) < 0 || (r = parse_extensions(&rd, end)) < 0)
		return r;
	*ret = h;
	return 0;
}

/* ---- what this version can do ---- */

int qcow2_header_usable(const struct qcow2_header *h, bool writable, bool repair, struct varve_error *err)
{
	uint64_t unknown = h->incompatible & ~INCOMPAT_KNOWN;

	if (unknown && *h->unknown_feature)
		return varve_error_set(err, -ENOTSUP,
				       "feature '%s' (incompatible bit %d) is not known to this version",
				       h->unknown_feature, __builtin_ctzll(unknown));
	if (unknown)
		return varve_error_set(
			err, -ENOTSUP,
			"an unnamed feature (incompatible bit %d) is not known to this version",
			__builtin_ctzll(unknown));
	if ((h->incompatible & QCOW2_INCOMPAT_DATA_FILE) && h->nr_snapshots)
		return varve_error_set(err, -EINVAL, "the header says both that there are %u internal snapshots and that the data is in an "
						     "external data file; the format does not have that", h->nr_snapshots);
	if ((h->incompatible & QCOW2_INCOMPAT_DATA_FILE) && (h->autoclear & QCOW2_AUTOCLEAR_RAW_DATA) && *h->backing_name)
		return varve_error_set(err, -EINVAL, "the header says both that the external data file is a raw image of the disk "
						     "(data_file_raw) and that there is a backing file; the format does not have that");
	if (h->crypt_method)
		return varve_error_set(err, -ENOTSUP, "%s encryption is not supported",
				       h->crypt_method == 1 ? "AES" : "LUKS");
	if (!writable)
		return 0;
	if ((h->incompatible & QCOW2_INCOMPAT_CORRUPT) && !repair)
		return varve_error_set(err, -EIO,
				       "the image is marked corrupt and can be opened read-only; repair it "
				       "(qemu-img check -r all) before writing");
	return 0;
}

/* ---- building ---- */

static size_t put_extension(uint8_t *to, uint32_t type, const void *data, size_t len)
{
	struct extension_disk ext = { be32_put(type), be32_put((uint32_t)len) };

	memcpy(to, &ext, sizeof(ext));
	memcpy(to + sizeof(ext), data, len);
	return sizeof(ext) + align_up(len, 8);
}

static const struct feature_disk feature_names[] = {
	{ 0, 0, "dirty bit" },	      { 0, 1, "corrupt bit" },	       { 0, 2, "external data file" },
	{ 0, 3, "compression type" }, { 0, 4, "extended L2 entries" }, { 1, 0, "lazy refcounts" },
	{ 2, 0, "bitmaps" },	      { 2, 1, "raw external data" },
};

uint32_t qcow2_feature_names(const void **ret)
{
	*ret = feature_names;
	return sizeof(feature_names);
}

uint32_t qcow2_feature_name_len(void)
{
	return sizeof(feature_names[0]);
}

struct qcow2_header_disk qcow2_header_to_disk(const struct qcow2_header *h)
{
	return (struct qcow2_header_disk){
		.magic = be32_put(QCOW2_MAGIC),
		.version = be32_put(h->version),
		.cluster_bits = be32_put(h->cluster_bits),
		.disk_len = be64_put(h->disk_len),
		.crypt_method = be32_put(h->crypt_method),
		.l1_entries = be32_put(h->l1_entries),
		.l1_off = be64_put(h->l1_off),
		.refcount_table_off = be64_put(h->refcount_table_off),
		.refcount_table_clusters = be32_put(h->refcount_table_clusters),
		.nr_snapshots = be32_put(h->nr_snapshots),
		.snapshots_off = be64_put(h->snapshots_off),
		.incompatible = be64_put(h->incompatible),
		.compatible = be64_put(h->compatible),
		.autoclear = be64_put(h->autoclear),
		.refcount_order = be32_put(h->refcount_order),
		.header_len = be32_put(h->header_len),
		.compression_type = h->compression_type,
	};
}

int qcow2_header_build(const struct qcow2_header *h, uint8_t *cluster, struct varve_error *err)
{
	size_t cluster_len = (size_t)1 << h->cluster_bits, name_len = strlen(h->backing_name),
	       pos = h->header_len;
	size_t format_len = strlen(h->backing_format), data_len = strlen(h->data_file), need;
	struct qcow2_header_disk d = qcow2_header_to_disk(h);

	assert(h->version == 3 ? h->header_len == sizeof(d) : h->header_len == QCOW2_V2_HEADER_LEN);
	need = pos + (format_len ? sizeof(struct extension_disk) + align_up(format_len, 8) : 0) +
	       (data_len ? sizeof(struct extension_disk) + align_up(data_len, 8) : 0) +
	       sizeof(struct extension_disk) + name_len;
	if (need > cluster_len)
		return varve_error_set(
			err, -EINVAL,
			"a name of %zu bytes (backing file and data file) does not fit into the first cluster (%zu "
			"bytes); use larger clusters or a shorter name",
			name_len + data_len, cluster_len);
	memset(cluster, 0, cluster_len);
	if (name_len)
		d.backing_name_len = be32_put((uint32_t)name_len);
	if (format_len)
		pos += put_extension(cluster + pos, QCOW2_EXT_BACKING_FORMAT, h->backing_format, format_len);
	if (data_len)
		pos += put_extension(cluster + pos, QCOW2_EXT_DATA_FILE, h->data_file, data_len);
	/* Names are a courtesy to versions that know less; in the smallest clusters there is no room for
	 * them. */
	if (h->version == 3 && need + sizeof(struct extension_disk) + sizeof(feature_names) <= cluster_len)
		pos += put_extension(cluster + pos, QCOW2_EXT_FEATURE_NAMES, feature_names,
				     sizeof(feature_names));
	pos += sizeof(struct extension_disk); /* the end: zeroes */
	if (name_len) {
		d.backing_name_off = be64_put(pos);
		memcpy(cluster + pos, h->backing_name, name_len);
	}
	memcpy(cluster, &d, h->header_len);
	return 0;
}
