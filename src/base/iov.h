/* SPDX-License-Identifier: MIT */
/*
 * base/iov.h - vectors of guest memory
 *
 * Lengths and offsets are bytes. No function reads or writes past the total length of its vector.
 */
#ifndef VARVE_BASE_IOV_H
#define VARVE_BASE_IOV_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

/* Sum of the lengths. */
size_t iov_len(const struct iovec *iov, unsigned nr_iov);

/*
 * Copies the part [off, off + len) of src's description into dst, at most max_dst elements.
 * Returns the number of elements and sets *ret_len to the bytes they cover (less than len when dst is full).
 */
unsigned iov_slice(struct iovec *dst, unsigned max_dst, const struct iovec *src, unsigned nr_src, size_t off,
		   size_t len, size_t *ret_len);

/* Copy between a vector, from byte off of it, and a plain buffer. Returns the bytes copied. */
size_t iov_to_buf(const struct iovec *iov, unsigned nr_iov, size_t off, void *buf, size_t len);
size_t iov_from_buf(const struct iovec *iov, unsigned nr_iov, size_t off, const void *buf, size_t len);

/* Fills the part [off, off + len) with a byte. Returns the bytes filled. */
size_t iov_fill(const struct iovec *iov, unsigned nr_iov, size_t off, uint8_t byte, size_t len);

/* True if every address and length is a multiple of align (a power of two). */
bool iov_is_aligned(const struct iovec *iov, unsigned nr_iov, size_t align);

/* True if the buffer is all zero bytes; at memory speed. */
bool buf_is_zero(const void *buf, size_t len);

#endif
