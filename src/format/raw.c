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

#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/opts.h"

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
	uint64_t len;
	int ret;

	(void)f;
	if (o)
		(void)opts_get(o, "state-dir"); /* nothing is queued here: the kernel has all that was written */
	ret = raw_window(n, o, &len, err);
	if (!ret)
		atomic_store_explicit(&n->len, len, memory_order_relaxed);
	return ret;
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

static int raw_truncate(struct fiber *f, struct node *n, uint64_t len, bool preallocate,
			struct varve_error *err)
{
	struct raw *raw = node_state(n);
	uint64_t end;
	int ret;

	if (raw->fixed_len)
		return varve_error_set(err, -ENOTSUP, "opened with option size, its length is fixed");
	if (len > VARVE_LEN_MAX - RAW_SECTOR || u64_add(raw->host_off, len, &end) || end > VARVE_LEN_MAX)
		return varve_error_set(err, -EFBIG, "a length of %llu bytes is too large",
				       (unsigned long long)len);
	ret = node_truncate(f, n->file, end, preallocate, err);
	if (!ret)
		atomic_store_explicit(&n->len, align_up(len, RAW_SECTOR), memory_order_relaxed);
	return ret;
}

/* ---- create ---- */

enum raw_preallocation { RAW_OFF, RAW_FALLOC, RAW_FULL };

static int parse_preallocation(struct opts *o, enum raw_preallocation *ret, struct varve_error *err)
{
	const char *text = opts_get(o, "preallocation");

	if (!text || !strcmp(text, "off"))
		*ret = RAW_OFF;
	else if (!strcmp(text, "falloc"))
		*ret = RAW_FALLOC;
	else if (!strcmp(text, "full"))
		*ret = RAW_FULL;
	else
		return varve_error_set(err, -EINVAL,
				       "option 'preallocation': '%.200s' is none of off, falloc, full", text);
	return 0;
}

static int write_full(struct fiber *f, struct node *file, uint64_t len, varve_progress_fn progress,
		      void *user_data)
{
	const size_t chunk = MiB(1);
	uint64_t told = queue_now(fiber_queue(f));
	uint8_t *buf = aligned_alloc(4096, chunk);
	int ret = 0;

	if (!buf)
		return -ENOMEM;
	memset(buf, 0, chunk);
	for (uint64_t off = 0; !ret && off < len; off += chunk) {
		ret = node_write(f, file, off, buf, (size_t)MIN(chunk, len - off));
		if (progress && queue_now(fiber_queue(f)) - told >= 100000000) {
			told = queue_now(fiber_queue(f));
			progress(user_data, off, len);
		}
	}
	if (!ret && progress)
		progress(user_data, len, len);
	free(buf);
	return ret;
}

static int raw_create(struct fiber *f, struct node *file, uint64_t len, struct opts *o,
		      varve_progress_fn progress, void *user_data, struct varve_error *err)
{
	enum raw_preallocation preallocation = RAW_OFF;
	uint64_t size = len;
	int ret;

	ret = parse_preallocation(o, &preallocation, err);
	if (!ret)
		ret = opts_get_size(o, "size", &size, err); /* len was made of it */
	if (!ret)
		ret = opts_done(o, err);
	/* An old file's bytes go; a device keeps its own, as the length it has. */
	if (!ret)
		ret = node_truncate(f, file, 0, false, err);
	if (!ret)
		ret = node_truncate(f, file, len, preallocation != RAW_OFF, err);
	if (ret < 0 || preallocation != RAW_FULL)
		return ret;
	ret = write_full(f, file, len, progress, user_data);
	return ret < 0 ? varve_error_errno(err, ret, "cannot write %llu bytes of zeroes",
					   (unsigned long long)len)
		       : 0;
}

const struct driver driver_raw = {
	.name = "raw",
	.kind = DRIVER_FORMAT,
	.state_len = sizeof(struct raw),
	.probe = raw_probe,
	.open = raw_open,
	.close = raw_close,
	.map = raw_map,
	.truncate = raw_truncate,
	.create = raw_create,
};
