/* SPDX-License-Identifier: MIT */
/*
 * aio/engine.h - several ways to do asynchronous I/O behind one interface
 *
 * An engine has a per-process ops table and a per-queue context, made the first time a file that uses it
 * submits on that queue (or earlier by aio_attach()). An op is embedded in the requester's object; it has
 * exactly one ending: done(), once, on the queue that submitted it, never from inside aio_submit(). A full
 * ring keeps the op and goes on when room appears; the requester never sees EAGAIN.
 */
#ifndef VARVE_AIO_ENGINE_H
#define VARVE_AIO_ENGINE_H

#include "aio/fiber.h"
#include "aio/queue.h"
#include "aio/worker.h"

enum aio_opcode {
	AIO_READ,
	AIO_WRITE,
	AIO_FLUSH,   /* fdatasync */
	AIO_DISCARD, /* punch a hole, or BLKDISCARD; contents undefined after */
	AIO_ZERO,    /* reads as zeroes after; AIO_MAY_UNMAP: space may be given back */
	AIO_OPCODES,
};

#define AIO_FUA (1u << 0) /* write: as if followed by fdatasync of this range (RWF_DSYNC) */
#define AIO_MAY_UNMAP (1u << 1)

struct aio_file;

struct aio_op {
	/* set by the requester */
	struct aio_file *file;
	uint8_t opcode;
	uint32_t flags;
	const struct iovec *iov; /* must live until done() */
	unsigned nr_iov;	 /* at most AIO_IOV_MAX */
	uint64_t off, len;
	/* res: bytes transferred (READ, WRITE; may be short, 0 at end of file), 0 (others), or -errno */
	void (*done)(struct aio_op *op, int64_t res);

	/* the engine's */
	struct queue *q;
	struct aio_op *next;
	int64_t res;
	struct work work;
};

#define AIO_IOV_MAX 1024
#define AIO_LEN_MAX (1u << 30) /* bytes in one op; longer requests are split above */

/* Memory that a queue's I/O goes to, see aio_memory_add(). */
struct aio_memory {
	void *base;
	uint64_t len;
	bool resident; /* to keep it in memory costs nothing: it is there anyway */
	unsigned users;
};

#define AIO_MEMORY_MAX 32 /* regions of one queue; more are not made known */

struct aio_engine {
	const char *name; /* as users write it: io_uring, native, posix, threads; sim */
	/* *ret_ctx: the engine's state on this queue. -ENOSYS, -EPERM ...: not usable here, err says why. */
	int (*attach)(struct queue *q, void **ret_ctx, struct varve_error *err);
	void (*detach)(struct queue *q, void *ctx);
	/* Takes over a file: registers it, finds what the engine can do with it. May be NULL. */
	int (*file_open)(struct aio_file *file, struct varve_error *err);
	/* May wait: queues let go of what they keep of the file. Home queue's fiber; nothing is in flight. */
	void (*file_close)(struct fiber *f, struct aio_file *file);
	void (*submit)(void *ctx, struct aio_op *op);
	/* Called by the loop: hand what was submitted to the kernel / deliver completions (calls done()). */
	void (*flush)(void *ctx);
	unsigned (*reap)(void *ctx);
	/* The queue's memory, as it comes and goes. May be NULL. */
	void (*memory_add)(void *ctx, const struct aio_memory *m);
	void (*memory_del)(void *ctx, const struct aio_memory *m);
};

/* An open file as the engines see it. proto/file owns it. */
struct aio_file {
	const struct aio_engine *engine;
	int fd; /* -1 for sim */
	bool is_blockdev;
	bool direct;	/* opened with O_DIRECT */
	bool at_once;	/* cached writes may be made on the queue's thread (at_once.c) */
	bool in_memory; /* and reads and syncs, too: no disk below */
	void *engine_data;
	const char *name; /* for messages; owned by the node */
};

extern const struct aio_engine aio_engine_uring, aio_engine_uring_sqpoll, aio_engine_uring_pinned,
	aio_engine_uring_sqpoll_pinned, aio_engine_uring_iopoll, aio_engine_uring_iopoll_pinned,
	aio_engine_native, aio_engine_posix, aio_engine_threads, aio_engine_sim;

/*
 * By the user's name; NULL: the best that works on this machine for a file opened so. direct: with O_DIRECT,
 * which some engines need.
 */
#define AIO_ENGINE_WORDS \
	"io_uring|native|posix|threads|io_uring+sqpoll|io_uring+pinned|io_uring+sqpoll+pinned|io_uring+iopoll|io_uring+iopoll+pinned"
const struct aio_engine *aio_engine_choose(const char *name, bool direct, struct varve_error *err);

/* Makes sure that q can do I/O with the engine; on q's thread. Idempotent. */
int aio_attach(struct queue *q, const struct aio_engine *engine, struct varve_error *err);

/*
 * On q's thread, in pairs: operations will go to this memory, and come from it. Engines may register it with
 * the kernel; unless it is resident anyway they do so only if the user asked for it. It works without, too.
 * aio_memory_del() before it is unmapped, with nothing in flight there.
 */
void aio_memory_add(struct queue *q, void *base, uint64_t len, bool resident);
void aio_memory_del(struct queue *q, void *base, uint64_t len);

/* A buffer for one operation, on q's thread: registered where that is possible, if it has at most
 * AIO_BOUNCE_LEN bytes. */
#define AIO_BOUNCE_LEN (64 * 1024)
void *aio_bounce_get(struct queue *q, uint64_t len, uint32_t align);
void aio_bounce_put(struct queue *q, void *p);

/* Never fails and never calls done() itself. The queue must be attached to the file's engine. */
void aio_submit(struct queue *q, struct aio_op *op);

#endif
