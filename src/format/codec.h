/* SPDX-License-Identifier: MIT */
/*
 * format/codec.h - one cluster, packed and unpacked
 *
 * Any thread, but not a queue's own: this is work for the pool of workers (fiber_work()). Each thread that was here
 * keeps the memory of its coders until it ends. Stack: a few KiB.
 */
#ifndef VARVE_FORMAT_CODEC_H
#define VARVE_FORMAT_CODEC_H

#include <stdbool.h>
#include <stddef.h>

enum codec {
	CODEC_DEFLATE, /* raw, without header; written with a window of 4 KiB, read with any */
	CODEC_ZSTD,
};

enum codec_level {
	CODEC_FAST,  /* some per cent more bytes, much less time */
	CODEC_RATIO,
};

/* False: built without it. */
bool codec_available(enum codec codec);

/*
 * Unpacks exactly out_len bytes. What follows the packed bytes in `in` is ignored: formats know their length only
 * roughly. -EIO: they end early, or are damaged. Nothing of `in` is trusted; memory used beside `out` is bounded.
 */
int codec_unpack(enum codec codec, const void *in, size_t in_len, void *out, size_t out_len);

/* Packs all of `in`. -ENOSPC: it does not fit into out_max bytes. */
int codec_pack(enum codec codec, enum codec_level level, const void *in, size_t in_len, void *out, size_t out_max,
	       size_t *ret_len);

#endif
