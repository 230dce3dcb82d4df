/* SPDX-License-Identifier: MIT */
/*
 * base/iov.c - walking, slicing and copying of I/O vectors
 */
#include "base/iov.h"

#include <string.h>

size_t iov_len(const struct iovec *iov, unsigned nr_iov)
{
	size_t sum = 0;

	for (unsigned i = 0; i < nr_iov; i++)
		sum += iov[i].iov_len;
	return sum;
}

unsigned iov_slice(struct iovec *dst, unsigned max_dst, const struct iovec *src, unsigned nr_src, size_t off,
		   size_t len, size_t *ret_len)
{
	unsigned n = 0;
	size_t done = 0;

	for (unsigned i = 0; i < nr_src && done < len && n < max_dst; i++) {
		size_t part;

		if (off >= src[i].iov_len) {
			off -= src[i].iov_len;
			continue;
		}
		part = src[i].iov_len - off;
		if (part > len - done)
			part = len - done;
		dst[n].iov_base = (char *)src[i].iov_base + off;
		dst[n++].iov_len = part;
		done += part;
		off = 0;
	}
	*ret_len = done;
	return n;
}

/* A place in a vector: element i, and off bytes into it. */
struct iov_pos {
	const struct iovec *iov;
	unsigned nr_iov, i;
	size_t off;
};

/* The next contiguous piece of at most max bytes: sets *ret_piece, returns its length, 0 at the end. */
static size_t iov_next(struct iov_pos *pos, size_t max, char **ret_piece)
{
	while (pos->i < pos->nr_iov && pos->off >= pos->iov[pos->i].iov_len)
		pos->off -= pos->iov[pos->i++].iov_len;
	if (pos->i == pos->nr_iov || !max)
		return 0;
	size_t part = pos->iov[pos->i].iov_len - pos->off;

	part = part < max ? part : max;
	*ret_piece = (char *)pos->iov[pos->i].iov_base + pos->off;
	pos->off += part;
	return part;
}

size_t iov_to_buf(const struct iovec *iov, unsigned nr_iov, size_t off, void *buf, size_t len)
{
	struct iov_pos pos = { iov, nr_iov, 0, off };
	size_t done = 0, part;
	char *piece;

	for (; (part = iov_next(&pos, len - done, &piece)); done += part)
		memcpy((char *)buf + done, piece, part);
	return done;
}

size_t iov_from_buf(const struct iovec *iov, unsigned nr_iov, size_t off, const void *buf, size_t len)
{
	struct iov_pos pos = { iov, nr_iov, 0, off };
	size_t done = 0, part;
	char *piece;

	for (; (part = iov_next(&pos, len - done, &piece)); done += part)
		memcpy(piece, (const char *)buf + done, part);
	return done;
}

size_t iov_fill(const struct iovec *iov, unsigned nr_iov, size_t off, uint8_t byte, size_t len)
{
	struct iov_pos pos = { iov, nr_iov, 0, off };
	size_t done = 0, part;
	char *piece;

	for (; (part = iov_next(&pos, len - done, &piece)); done += part)
		memset(piece, byte, part);
	return done;
}

bool iov_is_aligned(const struct iovec *iov, unsigned nr_iov, size_t align)
{
	uintptr_t bits = 0;

	for (unsigned i = 0; i < nr_iov; i++)
		bits |= (uintptr_t)iov[i].iov_base | iov[i].iov_len;
	return !(bits & (align - 1));
}

bool buf_is_zero(const void *buf, size_t len)
{
	const unsigned char *p = buf;

	/* The first 16 bytes by hand, then the buffer against itself shifted: memcmp runs at memory speed. */
	for (size_t i = 0; i < 16; i++) {
		if (i == len)
			return true;
		if (p[i])
			return false;
	}
	return !memcmp(p, p + 16, len - 16);
}
