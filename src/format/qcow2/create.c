/* SPDX-License-Identifier: MIT */
/*
 * qcow2/create.c - new images: what was asked for, and whether the format can do it
 *
 * Owns:    the options of create.
 * Assumes: the caller found the lengths of backing files, and made the file if it was not there.
 * Never:   writes (or empties the file) before everything that was asked for has been checked. layout.c
 *          writes.
 */
#include <stdlib.h>
#include <string.h>

#include "base/words.h"
#include "format/qcow2/emit.h"
#include "format/qcow2/layout.h"
#include "format/qcow2/measure.h"

#define SECTOR 512u

/* What the options can be; their parsers know the order. */
#define COMPAT_WORDS "0.10|v2|1.1|v3"
#define COMPRESSION_WORDS "zlib|zstd"
#define PREALLOC_WORDS "off|metadata|falloc|full"

const struct varve_option_info qcow2_options[] = {
	{ "backing_file", "file", "what the image does not hold is read from that file", false },
	{ "backing_fmt", "format", "format of the backing file: needed with it, never guessed", false },
	{ "cluster_size", "size", "unit in which space is given out: 512 .. 2M, a power of two (64k)", false },
	{ "compat", COMPAT_WORDS, "version: 0.10 (v2) or 1.1 (v3, the default)", true },
	{ "compression_type", COMPRESSION_WORDS, "of compressed clusters: zlib (default) or zstd", false },
	{ "data_file", "file", "the data of the disk is kept in that file, as it is; the image holds tables only", true },
	{ "data_file_raw", "bool", "and that file alone always reads as the disk does: its tables lead to all of it", true },
	{ "extended_l2", "bool", "clusters are allocated in 32 parts; for those of 16k and more, 128k over a backing file", false },
	{ "lazy_refcounts", "bool", "counts of references are written when the image is closed", true },
	{ "preallocation", PREALLOC_WORDS, "off, metadata (tables), falloc (blocks are reserved), full (zeroes are written)", false },
	{ "refcount_bits", "num", "width of a count of references: 1, 2, 4, 8, 16 (default), 32, 64", true },
	{ "size", "size", "of the disk", true },
	{ NULL, NULL, NULL, false },
};

struct wish {
	uint32_t version;
	unsigned cluster_bits, refcount_order;
	bool lazy_refcounts, extended_l2;
	uint8_t compression_type;
	enum prealloc prealloc;
	const char *backing_file, *backing_format; /* NULL: none */
	const char *data_file;			   /* NULL: none */
	bool data_file_raw;
};

static int get_version(struct wish *w, struct opts *o, struct varve_error *err)
{
	const char *compat = opts_get(o, "compat");
	int i = compat ? words_find(COMPAT_WORDS, compat) : 2;

	if (i < 0)
		return varve_error_set(err, -EINVAL, "option compat=%s: must be 0.10 (v2) or 1.1 (v3)", compat);
	w->version = i < 2 ? 2 : 3;
	return 0;
}

static int get_cluster_bits(struct wish *w, struct opts *o, struct varve_error *err)
{
	uint64_t len = KiB(64);
	int ret = opts_get_size(o, "cluster_size", &len, err);

	if (ret < 0)
		return ret;
	if (!is_pow2(len) || len < 1ull << QCOW2_CLUSTER_BITS_MIN || len > 1ull << QCOW2_CLUSTER_BITS_MAX)
		return varve_error_set(err, -EINVAL,
				       "option cluster_size=%s: must be a power of two, 512 to 2M",
				       opts_get(o, "cluster_size"));
	w->cluster_bits = log2_u64(len);
	return 0;
}

static int get_refcount_order(struct wish *w, struct opts *o, struct varve_error *err)
{
	uint64_t bits = 16;
	int ret = opts_get_u64(o, "refcount_bits", &bits, err);

	if (ret < 0)
		return ret;
	if (!is_pow2(bits) || bits > 64)
		return varve_error_set(err, -EINVAL,
				       "option refcount_bits=%s: must be 1, 2, 4, 8, 16, 32 or 64",
				       opts_get(o, "refcount_bits"));
	w->refcount_order = log2_u64(bits);
	return 0;
}

static int get_prealloc(struct wish *w, struct opts *o, struct varve_error *err)
{
	static const enum prealloc values[] = { PREALLOC_OFF, PREALLOC_METADATA, PREALLOC_FALLOC, PREALLOC_FULL };
	const char *name = opts_get(o, "preallocation");
	int i = name ? words_find(PREALLOC_WORDS, name) : 0;

	if (i < 0)
		return varve_error_set(err, -EINVAL, "option preallocation=%s: must be off, metadata, falloc or full",
				       name);
	w->prealloc = values[i];
	return 0;
}

static int get_compression(struct wish *w, struct opts *o, struct varve_error *err)
{
	const char *type = opts_get(o, "compression_type");
	int i = type ? words_find(COMPRESSION_WORDS, type) : 0;

	if (i < 0)
		return varve_error_set(err, -EINVAL, "option compression_type=%s: must be zlib or zstd", type);
	w->compression_type = (uint8_t)i;
	return 0;
}

static int get_backing(struct wish *w, struct opts *o, struct varve_error *err)
{
	const char *file = opts_get(o, "backing_file"), *format = opts_get(o, "backing_fmt");

	w->backing_file = file && *file ? file : NULL;
	w->backing_format = format && *format ? format : NULL;
	if (w->backing_format && !w->backing_file)
		return varve_error_set(err, -EINVAL, "option backing_fmt=%s needs backing_file", format);
	if (w->backing_file && strlen(w->backing_file) > QCOW2_BACKING_NAME_MAX)
		return varve_error_set(err, -EINVAL,
				       "option backing_file: %zu bytes are too long, qcow2 allows %d",
				       strlen(w->backing_file), QCOW2_BACKING_NAME_MAX);
	if (w->backing_format && strlen(w->backing_format) > QCOW2_BACKING_FORMAT_MAX)
		return varve_error_set(err, -EINVAL, "option backing_fmt=%s: must be at most %d bytes",
				       format, QCOW2_BACKING_FORMAT_MAX);
	return 0;
}

static int get_data_file(struct wish *w, struct opts *o, struct varve_error *err)
{
	const char *file = opts_get(o, "data_file");
	int ret = opts_get_bool(o, "data_file_raw", &w->data_file_raw, err);

	w->data_file = file && *file ? file : NULL;
	if (ret < 0)
		return ret;
	if (w->data_file_raw && !w->data_file)
		return varve_error_set(err, -EINVAL, "option data_file_raw=on needs data_file");
	if (w->data_file && strlen(w->data_file) > QCOW2_DATA_FILE_NAME_MAX)
		return varve_error_set(err, -EINVAL, "option data_file: %zu bytes are too long, at most %d", strlen(w->data_file),
				       QCOW2_DATA_FILE_NAME_MAX);
	/* All that is ever in such a file is read by others, too; the tables say so from the beginning. */
	if (w->data_file_raw && w->prealloc == PREALLOC_OFF)
		w->prealloc = PREALLOC_METADATA;
	return 0;
}

/* What qcow2 has and we cannot write. "off" is what we do. */
static int refuse_unsupported(struct opts *o, struct varve_error *err)
{
	static const char *const switches[] = { "encryption" };
	static const char *const encrypt[] = { "format",    "key-secret",     "cipher-alg", "cipher-mode",
					       "ivgen-alg", "ivgen-hash-alg", "hash-alg",   "iter-time" };

	for (unsigned i = 0; i < ARRAY_LEN(switches); i++) {
		bool on = false;
		int ret = opts_get_bool(o, switches[i], &on, err);

		if (ret < 0)
			return ret;
		if (on)
			return varve_error_set(err, -ENOTSUP,
					       "option %s=on: varve cannot write such qcow2 images",
					       switches[i]);
	}
	for (unsigned i = 0; i < ARRAY_LEN(encrypt); i++) {
		char key[32] = "encrypt.";

		strcat(key, encrypt[i]);
		if (opts_get(o, key))
			return varve_error_set(err, -ENOTSUP,
					       "option %s=%s: varve cannot write encrypted images", key,
					       opts_get(o, key));
	}
	return 0;
}

/* Options that do not go together. */
static int check_wish(const struct wish *w, struct varve_error *err)
{
	if (w->version < 3 && w->refcount_order != 4)
		return varve_error_set(err, -EINVAL, "option refcount_bits=%u needs compat=1.1",
				       1u << w->refcount_order);
	if (w->version < 3 && w->lazy_refcounts)
		return varve_error_set(err, -EINVAL, "option lazy_refcounts=on needs compat=1.1");
	if (w->version < 3 && w->compression_type)
		return varve_error_set(err, -EINVAL, "option compression_type=zstd needs compat=1.1");
	if (w->version < 3 && w->data_file)
		return varve_error_set(err, -EINVAL, "option data_file needs compat=1.1");
	if (w->data_file_raw && w->backing_file)
		return varve_error_set(err, -EINVAL, "options data_file_raw=on and backing_file exclude each other: the data file alone "
						     "could not read as the disk does");
	if (w->version < 3 && w->extended_l2)
		return varve_error_set(err, -EINVAL, "option extended_l2=on needs compat=1.1");
	if (w->cluster_bits < QCOW2_EXTENDED_CLUSTER_BITS_MIN && w->extended_l2)
		return varve_error_set(err, -EINVAL, "option extended_l2=on needs cluster_size=16k or more, not %u",
				       1u << w->cluster_bits);
	if (w->prealloc != PREALLOC_OFF && w->backing_file && !w->extended_l2)
		return varve_error_set(err, -EINVAL,
				       "options preallocation and backing_file exclude each other: "
				       "preallocated clusters would hide the backing file, unless extended_l2=on");
	return 0;
}

static int get_wish(struct wish *w, struct opts *o, struct varve_error *err)
{
	int ret;

	if ((ret = get_version(w, o, err)) < 0 || (ret = get_cluster_bits(w, o, err)) < 0 ||
	    (ret = get_refcount_order(w, o, err)) < 0 || (ret = get_prealloc(w, o, err)) < 0 ||
	    (ret = get_compression(w, o, err)) < 0 || (ret = get_backing(w, o, err)) < 0 ||
	    (ret = get_data_file(w, o, err)) < 0 ||
	    (ret = opts_get_bool(o, "lazy_refcounts", &w->lazy_refcounts, err)) < 0 ||
	    (ret = opts_get_bool(o, "extended_l2", &w->extended_l2, err)) < 0 ||
	    (ret = refuse_unsupported(o, err)) < 0 || (ret = check_wish(w, err)) < 0)
		return ret;
	return opts_done(o, err);
}

/* len: of the disk, rounded up. */
static int plan(struct layout *ret, const struct wish *w, uint64_t len, enum prealloc prealloc, struct varve_error *err)
{
	*ret = (struct layout){
		.disk_len = len,
		.cluster_bits = w->cluster_bits,
		.refcount_order = w->refcount_order,
		.entry_words = w->extended_l2 ? 2 : 1,
		.over_backing = w->backing_file,
		.external = w->data_file,
	};
	return layout_plan(ret, prealloc, err);
}

static void fill_header(struct qcow2_header *h, const struct wish *w, const struct layout *l)
{
	memset(h, 0, sizeof(*h));
	h->version = w->version;
	h->cluster_bits = w->cluster_bits;
	h->disk_len = l->disk_len;
	h->l1_off = layout_l1_off(l);
	h->l1_entries = (uint32_t)l->l1_entries;
	h->refcount_table_off = layout_table_off(l);
	h->refcount_table_clusters = (uint32_t)l->table;
	h->refcount_order = w->refcount_order;
	h->header_len = w->version < 3 ? QCOW2_V2_HEADER_LEN : (uint32_t)sizeof(struct qcow2_header_disk);
	h->compression_type = w->compression_type;
	if (w->compression_type)
		h->incompatible |= QCOW2_INCOMPAT_COMPRESSION;
	if (w->extended_l2)
		h->incompatible |= QCOW2_INCOMPAT_EXTENDED_L2;
	if (w->lazy_refcounts)
		h->compatible |= QCOW2_COMPAT_LAZY_REFCOUNTS;
	if (w->data_file) {
		h->incompatible |= QCOW2_INCOMPAT_DATA_FILE;
		memcpy(h->data_file, w->data_file, strlen(w->data_file));
	}
	if (w->data_file_raw)
		h->autoclear |= QCOW2_AUTOCLEAR_RAW_DATA;
	if (w->backing_file)
		memcpy(h->backing_name, w->backing_file, strlen(w->backing_file));
	if (w->backing_format)
		memcpy(h->backing_format, w->backing_format, strlen(w->backing_format));
}

int qcow2_create(struct fiber *f, struct node *file, uint64_t len, struct opts *o, varve_progress_fn progress,
		 void *user_data, struct varve_error *err)
{
	struct wish w = { 0 };
	struct qcow2_header *h = NULL;
	uint8_t *cluster = NULL;
	struct layout l;
	int ret = get_wish(&w, o, err);

	if (ret < 0)
		return ret;
	/* Disks are whole sectors; other lengths are rounded up, as the other tools do. */
	ret = plan(&l, &w, len <= VARVE_LEN_MAX - SECTOR ? align_up(len, SECTOR) : len, w.prealloc, err);
	if (ret == 0 && w.data_file && !file->data)
		ret = varve_error_set(err, -EINVAL, "option data_file=%.200s: nobody has opened that file", w.data_file);
	if (ret < 0)
		return ret;
	h = calloc(1, sizeof(*h));
	cluster = aligned_alloc(4096, (size_t)MAX(1ull << w.cluster_bits, 4096));
	if (!h || !cluster) {
		ret = varve_error_set(err, -ENOMEM, "out of memory");
		goto out;
	}
	fill_header(h, &w, &l);
	ret = qcow2_header_build(h, cluster, err);
	/*
	 * Nothing that was asked for is wrong: an old file's bytes may go. A device keeps its own, and its
	 * length.
	 */
	if (ret == 0)
		ret = node_truncate(f, file, 0, PREALLOC_OFF, err);
	if (ret == 0 && w.data_file)
		ret = data_create(f, file->data, l.disk_len, w.data_file_raw, w.prealloc, err);
	if (w.data_file && w.prealloc != PREALLOC_OFF)
		w.prealloc = PREALLOC_METADATA; /* as far as this file is concerned */
	if (ret == 0)
		ret = layout_write(f, file, &l, w.prealloc, cluster, progress, user_data, err);
out:
	free(cluster);
	free(h);
	return ret;
}

int qcow2_emit_header(uint64_t disk_len, struct opts *o, struct qcow2_header *ret, struct varve_error *err)
{
	struct wish w = { 0 };
	struct layout l;
	int r = get_wish(&w, o, err);

	if (r == 0 && w.data_file)
		r = varve_error_set(err, -ENOTSUP, "option data_file=%.200s: an image in a pipe has its data in the pipe", w.data_file);
	if (r == 0 && w.prealloc != PREALLOC_OFF)
		r = varve_error_set(err, -ENOTSUP, "option preallocation=%s: an image in a pipe has no space to reserve",
				    opts_get(o, "preallocation"));
	if (r == 0)
		r = plan(&l, &w, align_up(disk_len, SECTOR), PREALLOC_OFF, err);
	if (r == 0)
		fill_header(ret, &w, &l);
	return r;
}

int qcow2_measure(uint64_t len, struct opts *o, struct measure *ret, struct varve_error *err)
{
	struct wish w = { 0 };
	int r = get_wish(&w, o, err);

	if (r == 0)
		r = qcow2_measure_tables(align_up(len, SECTOR), w.cluster_bits, w.refcount_order, w.extended_l2, &ret->tables, err);
	if (r < 0)
		return r;
	ret->unit = 1ull << w.cluster_bits;
	ret->everything = w.prealloc == PREALLOC_FALLOC || w.prealloc == PREALLOC_FULL;
	ret->over_backing = w.backing_file;
	ret->holds_bitmaps = w.version >= 3;
	return 0;
}
