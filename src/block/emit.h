/* SPDX-License-Identifier: MIT */
/*
 * block/emit.h - images that are written forward only, each byte once: what a format must be able to do for that
 *
 * The job (job/emit.h) says what the disk holds, in its order; the format's emitter lays it out. A format whose header
 * depends on what comes later is told everything twice: the bytes of the first pass go nowhere.
 */
#ifndef VARVE_BLOCK_EMIT_H
#define VARVE_BLOCK_EMIT_H

#include "aio/fiber.h"
#include "base/error.h"
#include "base/opts.h"

struct emitter;

/* The image's next bytes. The buffer is free again when it returns. */
typedef int emit_write(struct fiber *f, void *arg, const void *buf, size_t len);

/*
 * One fiber at a time, in this order: open, (begin, (zero | data | packed)..., end) once or twice, close. Offsets of the disk
 * only grow, and are multiples of unit(); lengths are, too, the last one as well: what is behind the end is zeroes. What is
 * passed over is not in the image: zeroes, or what the backing image has there.
 */
struct emit_driver {
	bool measures; /* a first pass is needed */
	bool dense;    /* there are no holes in such an image: zeroes may come as data */
	/* Takes and checks all options of create, and compress-level. On failure nothing is left to close. */
	int (*open)(uint64_t disk_len, struct opts *o, struct emitter **ret, struct varve_error *err);
	void (*close)(struct emitter *e);
	uint32_t (*unit)(const struct emitter *e); /* a power of two */
	/* NULL: no compression. A worker's thread: one unit, into less than one. -ENOSPC: it does not get smaller. */
	int (*pack)(const struct emitter *e, const void *in, void *out, size_t *ret_len);
	/* The first begin() of two is that of the measuring pass. */
	int (*begin)(struct fiber *f, struct emitter *e, emit_write *write, void *arg);
	int (*zero)(struct fiber *f, struct emitter *e, uint64_t off, uint64_t len); /* although a backing image has something there */
	int (*data)(struct fiber *f, struct emitter *e, uint64_t off, const void *buf, uint64_t len);
	int (*packed)(struct fiber *f, struct emitter *e, uint64_t off, const void *buf, size_t len); /* what pack() made of one unit */
	/* -ESTALE: the second pass was told something else than the first. */
	int (*end)(struct fiber *f, struct emitter *e);
};

#endif
