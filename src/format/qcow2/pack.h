/* SPDX-License-Identifier: MIT */
/*
 * qcow2/pack.h - compressed clusters: where their bytes lie, reading and writing them
 *
 * An L2 entry with bit 62 holds a byte offset in the file and the number of further sectors of 512 bytes that the bytes
 * reach into (docs/spec/qcow2.md, "Compressed clusters"). The bytes of several clusters share host clusters, each of
 * which counts one reference for every compressed cluster that touches it.
 */
#ifndef VARVE_QCOW2_PACK_H
#define VARVE_QCOW2_PACK_H

#include "format/codec.h"
#include "format/qcow2/qcow2.h"

struct packed_place {
	uint64_t off, len; /* bytes of the file; len may be up to 511 more than was written */
};

static inline struct packed_place packed_place_of(unsigned cluster_bits, uint64_t entry)
{
	unsigned bits = 62 - (cluster_bits - 8);
	uint64_t off = entry & ((1ull << bits) - 1);
	uint64_t sectors = (entry & ~(QCOW2_COPIED | QCOW2_COMPRESSED)) >> bits;

	return (struct packed_place){ .off = off, .len = (sectors + 1) * 512 - (off & 511) };
}

static inline enum codec packed_codec(const struct qcow2 *q)
{
	return q->h.compression_type ? CODEC_ZSTD : CODEC_DEFLATE;
}

/* unpack.c: fibers of the home queue. */
int unpack_open(struct qcow2 *q);
void unpack_close(struct qcow2 *q);
int qcow2_unpack(struct fiber *f, struct node *n, uint64_t off, uint64_t len, uint64_t host_off,
		 const struct iovec *iov, unsigned nr_iov, uint64_t pos);
/* nr host clusters from host_off on lose a reference: what lies there may become something else. */
void unpack_forget(struct qcow2 *q, uint64_t host_off, uint64_t nr);

/* pack.c: fibers of the home queue. */
int pack_open(struct qcow2 *q, enum codec_level level);
void pack_close(struct qcow2 *q);
int qcow2_pack(struct fiber *f, struct node *n, uint64_t off, const void *bytes);
/* nr host clusters from host_off on lose a reference: nothing more is put there. */
void pack_forget(struct qcow2 *q, uint64_t host_off, uint64_t nr);

#endif
