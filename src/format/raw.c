/* SPDX-License-Identifier: MIT */
/*
 * format/raw.c - the file is the disk, or a window of it
 *
 * There is no metadata: every range is in place, flushes and FUA writes are the file's own. That a guest does
 * not turn a raw image that was found by probing into another format is seen to in block/ (NODE_PROBED).
 *
 * Owns:    where the window lies.
 */
#include "format/raw.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/opts.h"
#include "base/words.h"

#define RAW_SECTOR 512

struct raw {
	/* set at open */
	uint64_t host_off; /* where the disk begins in the file */
	bool fixed_len;	   /* option size */
};

static int raw_probe(const uint8_t *buf, size_t len)
{
	(void)buf;
	(void)len;
	return 1; /* anything can be raw, if nothing else claims it */
}

/* ---- open ---- */

/* *ret_len: of the disk. A last sector that the file holds only part of counts; its rest reads as zeroes. */
static int raw_window(struct node *n, struct opts *o, uint64_t *ret_len, struct varve_error *err)
{
	struct raw *raw = node_state(n);
	uint64_t file_len = node_len(n->file), size = UINT64_MAX;
	int ret;

	ret = opts_get_size(o, "offset", &raw->host_off, err);
	if (!ret)
		ret = opts_get_size(o, "size", &size, err);
	if (ret < 0)
		return ret;
	if (raw->host_off > file_len)
		return varve_error_set(err, -EINVAL, "offset %llu is beyond the end of the file (%llu bytes)",
				       (unsigned long long)raw->host_off, (unsigned long long)file_len);
	if (size == UINT64_MAX) {
		if (file_len - raw->host_off > VARVE_LEN_MAX - RAW_SECTOR)
			return varve_error_set(err, -EFBIG, "a file of %llu bytes is too large",
					       (unsigned long long)file_len);
		*ret_len = align_up(file_len - raw->host_off, RAW_SECTOR);
		return 0;
	}
	raw->fixed_len = true;
	if (size > file_len - raw->host_off)
		return varve_error_set(
			err, -EINVAL,
			"offset %llu and size %llu reach beyond the end of the file (%llu bytes)",
			(unsigned long long)raw->host_off, (unsigned long long)size,
			(unsigned long long)file_len);
	if (!is_aligned(size, RAW_SECTOR))
		return varve_error_set(err, -EINVAL, "size %llu is not a multiple of %d",
				       (unsigned long long)size, RAW_SECTOR);
	*ret_len = size;
	return 0;
}

static int raw_open(struct fiber *f, struct node *n, struct opts *o, struct varve_error *err)
{
	const struct raw *raw = node_state(n);
	uint64_t len;
	int ret;

	(void)f;
	if (o)
		(void)opts_get(o, "state-dir"); /* nothing is queued here: the kernel has all that was written */
	ret = raw_window(n, o, &len, err);
	if (ret < 0)
		return ret;
	atomic_store_explicit(&n->len, len, memory_order_relaxed);
	n->through = true;
	n->through_off = raw->host_off;
	n->fixed_len = raw->fixed_len;
	return 0;
}

static void raw_describe(struct node *n, void *json_options)
{
	const struct raw *raw = node_state(n);

	if (raw->host_off)
		json_object_set_new(json_options, "offset", json_integer((json_int_t)raw->host_off));
	if (raw->fixed_len)
		json_object_set_new(json_options, "size", json_integer((json_int_t)node_len(n)));
}

static void raw_close(struct fiber *f, struct node *n)
{
	(void)f;
	(void)n;
}

/* ---- requests ---- */

static void raw_map(struct node *n, uint64_t off, uint64_t len, struct extent *ret_extent)
{
	const struct raw *raw = node_state(n);

	*ret_extent = (struct extent){ .kind = EXTENT_DATA,
				       .flags = EXTENT_INPLACE,
				       .node = n->file,
				       .host_off = raw->host_off + off,
				       .len = len };
}

/* Zeroes, written, so that the blocks are there and have been written once. */
static int write_full(struct fiber *f, struct node *file, uint64_t off, uint64_t end, varve_progress_fn progress,
		      void *user_data)
{
	const size_t chunk = MiB(1);
	uint64_t told = queue_now(fiber_queue(f)), begin = off;
	uint8_t *buf = aligned_alloc(4096, chunk);
	int ret = 0;

	if (!buf)
		return -ENOMEM;
	memset(buf, 0, chunk);
	for (; !ret && off < end; off += MIN(chunk, end - off)) {
		ret = node_ending(file) ? -ECANCELED : node_write(f, file, off, buf, (size_t)MIN(chunk, end - off));
		if (progress && queue_now(fiber_queue(f)) - told >= 100000000) {
			told = queue_now(fiber_queue(f));
			progress(user_data, off - begin, end - begin);
		}
	}
	if (!ret && progress)
		progress(user_data, end, end);
	free(buf);
	return ret;
}

/* The file becomes end long, and what is added reads as zeroes. It keeps its length if that cannot be had. */
static int set_file_len(struct fiber *f, struct node *file, uint64_t end, enum prealloc prealloc, struct varve_error *err)
{
	int64_t old = node_file_len(f, file);
	int ret;

	if (old < 0)
		return varve_error_errno(err, (int)old, "cannot read the length");
	if (prealloc != PREALLOC_FULL || end <= (uint64_t)old)
		return node_truncate(f, file, end, prealloc, err);
	ret = write_full(f, file, (uint64_t)old, end, NULL, NULL);
	if (ret == 0)
		return 0;
	varve_error_errno(err, ret, "cannot write %llu bytes of zeroes", (unsigned long long)(end - (uint64_t)old));
	(void)node_truncate(f, file, (uint64_t)old, PREALLOC_OFF, NULL); /* the error is told already */
	return ret;
}

static int raw_truncate(struct fiber *f, struct node *n, uint64_t len, enum prealloc prealloc,
			struct varve_error *err)
{
	struct raw *raw = node_state(n);
	const struct node *leaf;
	uint64_t end;
	int ret;

	if (raw->fixed_len)
		return varve_error_set(err, -ENOTSUP, "opened with option size, its length is fixed");
	if (!(n->flags & NODE_WRITABLE))
		return varve_error_set(err, -EACCES, "open read-only, the length cannot change");
	if (prealloc == PREALLOC_METADATA)
		return varve_error_set(err, -ENOTSUP, "preallocation 'metadata': a raw image has no metadata");
	if (len > VARVE_LEN_MAX - RAW_SECTOR || u64_add(raw->host_off, len, &end) || end > VARVE_LEN_MAX)
		return varve_error_set(err, -EFBIG, "a length of %llu bytes is too large",
				       (unsigned long long)len);
	for (leaf = n->file; leaf->file;)
		leaf = leaf->file;
	if (leaf->fixed_len && end < node_len(leaf)) /* it would have its old length again when it is opened next */
		return varve_error_set(err, -ENOTSUP, "a device of %llu bytes cannot be made shorter", (unsigned long long)node_len(leaf));
	ret = set_file_len(f, n->file, end, prealloc, err);
	if (ret < 0)
		return ret;
	atomic_store_explicit(&n->len, align_up(len, RAW_SECTOR), memory_order_relaxed);
	ret = node_flush(f, n->file);
	return ret < 0 ? varve_error_errno(err, ret, "the new length could not be made durable") : 0;
}

/* ---- create ---- */

#define PREALLOC_WORDS "off|falloc|full"

static int parse_preallocation(struct opts *o, enum prealloc *ret, struct varve_error *err)
{
	static const enum prealloc values[] = { PREALLOC_OFF, PREALLOC_FALLOC, PREALLOC_FULL }; /* of PREALLOC_WORDS */
	const char *text = opts_get(o, "preallocation");
	int i = text ? words_find(PREALLOC_WORDS, text) : 0;

	if (i < 0)
		return varve_error_set(err, -EINVAL,
				       "option 'preallocation': '%.200s' is none of off, falloc, full", text);
	*ret = values[i];
	return 0;
}

static const struct varve_option_info raw_options[] = {
	{ "preallocation", PREALLOC_WORDS, "off (a hole), falloc (blocks are reserved), full (zeroes are written)", false },
	{ "size", "size", "of the disk", false },
	{ NULL, NULL, NULL, false },
};

static int raw_create(struct fiber *f, struct node *file, uint64_t len, struct opts *o,
		      varve_progress_fn progress, void *user_data, struct varve_error *err)
{
	enum prealloc preallocation = PREALLOC_OFF;
	uint64_t size = len;
	int ret;

	ret = parse_preallocation(o, &preallocation, err);
	if (!ret)
		ret = opts_get_size(o, "size", &size, err); /* len was made of it */
	if (!ret)
		ret = opts_done(o, err);
	/* That a length cannot be shows while an old file's bytes are still there. */
	if (!ret && node_len(file) && len > node_len(file))
		ret = node_truncate(f, file, len, PREALLOC_OFF, err);
	/* An old file's bytes go; a device keeps its own, as the length it has. */
	if (!ret)
		ret = node_truncate(f, file, 0, PREALLOC_OFF, err);
	if (!ret)
		ret = node_truncate(f, file, len, preallocation, err);
	if (ret < 0 || preallocation != PREALLOC_FULL)
		return ret;
	ret = write_full(f, file, 0, len, progress, user_data);
	return ret < 0 ? varve_error_errno(err, ret, "cannot write %llu bytes of zeroes",
					   (unsigned long long)len)
		       : 0;
}

static int raw_measure(uint64_t len, struct opts *o, struct measure *ret, struct varve_error *err)
{
	enum prealloc preallocation;
	int r = parse_preallocation(o, &preallocation, err);

	(void)len;
	if (r == 0)
		r = opts_done(o, err);
	*ret = (struct measure){ .unit = RAW_SECTOR, .everything = true };
	return r;
}

static const struct varve_option_info open_options[] = {
	{ "offset", "size", "the disk begins there in its file (0)", false },
	{ "size", "size", "and is that long (to the end of the file)", false },
	{ NULL, NULL, NULL, false },
};

const struct driver driver_raw = {
	.name = "raw",
	.kind = DRIVER_FORMAT,
	.state_len = sizeof(struct raw),
	.probe = raw_probe,
	.open = raw_open,
	.close = raw_close,
	.map = raw_map,
	.truncate = raw_truncate,
	.options = raw_options,
	.open_options = open_options,
	.describe = raw_describe,
	.create = raw_create,
	.emit = &raw_emit,
	.measure = raw_measure,
};
