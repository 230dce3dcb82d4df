/* SPDX-License-Identifier: MIT */
/*
 * format/codec.c - one cluster, packed and unpacked: the libraries that do it
 *
 * deflate is read by libdeflate, which is fast and wants a whole stream, and what it refuses by zlib, which takes
 * streams without an end, too. It is written by ISA-L, whose window can be kept to 4 KiB (others read with such a window), or,
 * for size, by zlib. zstd is read frame by frame: the output is the window, so that a frame cannot ask for memory.
 *
 * Owns:    the coders of each thread.
 */
#include "format/codec.h"

#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>

#include "config.h"

#ifdef HAVE_CODECS

#include <isa-l/igzip_lib.h>
#include <libdeflate.h>
#include <zlib.h>
#include <zstd.h>
#include <zstd_errors.h>

#define WINDOW_BITS 12
#define ZLIB_LEVEL 6
#define ZSTD_FAST_LEVEL 1
#define ZSTD_RATIO_LEVEL 3
#define ISAL_LEVEL 3

struct coders {
	struct libdeflate_decompressor *inflate;
	ZSTD_DCtx *unzstd;
	ZSTD_CCtx *zstd;
	struct isal_zstream *isal;
	uint8_t *isal_level_buf;
	z_stream zlib;
	bool zlib_ready;
};

static pthread_key_t key;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static bool key_made;

static void coders_free(void *arg)
{
	struct coders *c = arg;

	libdeflate_free_decompressor(c->inflate);
	ZSTD_freeDCtx(c->unzstd);
	ZSTD_freeCCtx(c->zstd);
	free(c->isal_level_buf);
	free(c->isal);
	if (c->zlib_ready)
		deflateEnd(&c->zlib);
	free(c);
}

static void make_key(void)
{
	key_made = pthread_key_create(&key, coders_free) == 0;
}

static struct coders *coders_get(void)
{
	struct coders *c;

	pthread_once(&once, make_key);
	if (!key_made)
		return NULL;
	c = pthread_getspecific(key);
	if (c)
		return c;
	c = calloc(1, sizeof(*c));
	if (c && pthread_setspecific(key, c)) {
		free(c);
		return NULL;
	}
	return c;
}

bool codec_available(enum codec codec)
{
	(void)codec;
	return true;
}

/* ---- deflate ---- */

/* Streams that do not end where the cluster does. */
static int inflate_open_end(const void *in, size_t in_len, void *out, size_t out_len)
{
	z_stream z = { .next_in = (void *)in, .avail_in = (uInt)in_len, .next_out = out, .avail_out = (uInt)out_len };
	int ret;

	if (inflateInit2(&z, -MAX_WBITS) != Z_OK)
		return -ENOMEM;
	ret = inflate(&z, Z_FINISH);
	inflateEnd(&z);
	if (ret == Z_MEM_ERROR)
		return -ENOMEM;
	return (ret == Z_STREAM_END || ret == Z_BUF_ERROR) && z.avail_out == 0 ? 0 : -EIO;
}

static int unpack_deflate(struct coders *c, const void *in, size_t in_len, void *out, size_t out_len)
{
	size_t taken, made;

	if (!c->inflate && !(c->inflate = libdeflate_alloc_decompressor()))
		return -ENOMEM;
	if (libdeflate_deflate_decompress_ex(c->inflate, in, in_len, out, out_len, &taken, &made) == LIBDEFLATE_SUCCESS &&
	    made == out_len)
		return 0;
	return inflate_open_end(in, in_len, out, out_len);
}

static int isal_prepare(struct coders *c)
{
	if (!c->isal)
		c->isal = malloc(sizeof(*c->isal));
	if (!c->isal_level_buf)
		c->isal_level_buf = malloc(ISAL_DEF_LVL3_DEFAULT);
	return c->isal && c->isal_level_buf ? 0 : -ENOMEM;
}

static int pack_deflate_fast(struct coders *c, const void *in, size_t in_len, void *out, size_t out_max, size_t *ret_len)
{
	struct isal_zstream *s;
	int ret = isal_prepare(c);

	if (ret < 0)
		return ret;
	s = c->isal;
	isal_deflate_init(s);
	s->level = ISAL_LEVEL;
	s->level_buf = c->isal_level_buf;
	s->level_buf_size = ISAL_DEF_LVL3_DEFAULT;
	s->hist_bits = WINDOW_BITS;
	s->gzip_flag = IGZIP_DEFLATE;
	s->end_of_stream = 1;
	s->flush = NO_FLUSH;
	s->next_in = (void *)in;
	s->avail_in = (uint32_t)in_len;
	s->next_out = out;
	s->avail_out = (uint32_t)out_max;
	ret = isal_deflate(s);
	if (ret != COMP_OK)
		return -EIO;
	if (s->internal_state.state != ZSTATE_END)
		return -ENOSPC;
	*ret_len = out_max - s->avail_out;
	return 0;
}

static int pack_deflate_small(struct coders *c, const void *in, size_t in_len, void *out, size_t out_max,
			      size_t *ret_len)
{
	z_stream *z = &c->zlib;

	if (!c->zlib_ready) {
		if (deflateInit2(z, ZLIB_LEVEL, Z_DEFLATED, -WINDOW_BITS, 9, Z_DEFAULT_STRATEGY) != Z_OK)
			return -ENOMEM;
		c->zlib_ready = true;
	} else {
		deflateReset(z);
	}
	z->next_in = (void *)in;
	z->avail_in = (uInt)in_len;
	z->next_out = out;
	z->avail_out = (uInt)out_max;
	if (deflate(z, Z_FINISH) != Z_STREAM_END)
		return -ENOSPC;
	*ret_len = out_max - z->avail_out;
	return 0;
}

/* ---- zstd ---- */

static int unpack_zstd(struct coders *c, const void *in, size_t in_len, void *out, size_t out_len)
{
	const uint8_t *from = in;
	uint8_t *to = out;

	if (!c->unzstd && !(c->unzstd = ZSTD_createDCtx()))
		return -ENOMEM;
	/* One frame holds the cluster; several in a row are one cluster, too. */
	while (out_len) {
		size_t frame = ZSTD_findFrameCompressedSize(from, in_len), made;

		if (ZSTD_isError(frame) || frame == 0)
			return -EIO;
		made = ZSTD_decompressDCtx(c->unzstd, to, out_len, from, frame);
		if (ZSTD_isError(made))
			return ZSTD_getErrorCode(made) == ZSTD_error_memory_allocation ? -ENOMEM : -EIO;
		from += frame;
		in_len -= frame;
		to += made;
		out_len -= made;
	}
	return 0;
}

static int pack_zstd(struct coders *c, int level, const void *in, size_t in_len, void *out, size_t out_max,
		     size_t *ret_len)
{
	size_t made;

	if (!c->zstd && !(c->zstd = ZSTD_createCCtx()))
		return -ENOMEM;
	made = ZSTD_compressCCtx(c->zstd, out, out_max, in, in_len, level);
	if (ZSTD_isError(made))
		return ZSTD_getErrorCode(made) == ZSTD_error_memory_allocation ? -ENOMEM : -ENOSPC;
	*ret_len = made;
	return 0;
}

/* ---- entry ---- */

int codec_unpack(enum codec codec, const void *in, size_t in_len, void *out, size_t out_len)
{
	struct coders *c = coders_get();

	if (!c)
		return -ENOMEM;
	return codec == CODEC_ZSTD ? unpack_zstd(c, in, in_len, out, out_len) :
				     unpack_deflate(c, in, in_len, out, out_len);
}

int codec_pack(enum codec codec, enum codec_level level, const void *in, size_t in_len, void *out, size_t out_max,
	       size_t *ret_len)
{
	struct coders *c = coders_get();

	if (!c)
		return -ENOMEM;
	if (codec == CODEC_ZSTD)
		return pack_zstd(c, level == CODEC_FAST ? ZSTD_FAST_LEVEL : ZSTD_RATIO_LEVEL, in, in_len, out, out_max,
				 ret_len);
	return level == CODEC_FAST ? pack_deflate_fast(c, in, in_len, out, out_max, ret_len) :
				     pack_deflate_small(c, in, in_len, out, out_max, ret_len);
}

#else /* !HAVE_CODECS */

bool codec_available(enum codec codec)
{
	(void)codec;
	return false;
}

int codec_unpack(enum codec codec, const void *in, size_t in_len, void *out, size_t out_len)
{
	(void)codec;
	(void)in;
	(void)in_len;
	(void)out;
	(void)out_len;
	return -ENOTSUP;
}

int codec_pack(enum codec codec, enum codec_level level, const void *in, size_t in_len, void *out, size_t out_max,
	       size_t *ret_len)
{
	(void)codec;
	(void)level;
	(void)in;
	(void)in_len;
	(void)out;
	(void)out_max;
	(void)ret_len;
	return -ENOTSUP;
}

#endif
