/* SPDX-License-Identifier: MIT */
/*
 * aio/uring.h - inside of the engines "io_uring...", for their files only
 *
 *   engine_uring.c   operations into the ring, completions out of it, the wait
 *   uring_make.c     making and ending a ring; the engines' tables
 *   uring_files.c    files that a ring has registered
 *   uring_memory.c   memory that a ring has registered
 *   uring_iopoll.c   rings whose completions are polled for
 *   uring_watch.c    descriptors that a ring watches, past epoll
 */
#ifndef VARVE_AIO_URING_H
#define VARVE_AIO_URING_H

#include <liburing.h>

#include "aio/loop.h"

#define URING_SQ_ENTRIES 256
#define URING_CQ_ENTRIES 4096
#define URING_FILES 256 /* slots of a ring's table of files */
#define URING_REGIONS AIO_MEMORY_MAX
#define URING_WATCHES 16 /* descriptors that a ring watches; more are left to epoll */

/* user_data of what is no struct aio_op. */
#define TAG_EVENT 1
#define TAG_EPOLL 2
#define TAG_CANCEL 3
#define TAG_WATCH 16 /* and the URING_WATCHES - 1 behind it */

/* What the user added to the name of the engine. */
#define URING_SQPOLL (1u << 0) /* a thread of the kernel takes the requests */
#define URING_PINNED                                                                                         \
	(1u << 1)	       /* all memory that is made known is registered, not only what costs nothing   \
				*/
#define URING_IOPOLL (1u << 2) /* no interrupts: the device is asked */

struct uring_region {
	uint8_t *base;
	uint64_t len;
	unsigned first; /* of its buffers in the ring's table */
};

struct uring_watch {
	struct watch *w; /* NULL: nobody's any more */
	bool armed, cancelled;
};

struct uring {
	struct io_uring ring;
	struct queue *q;
	unsigned mode; /* URING_* */
	int enter_fd;
	unsigned enter_flags;
	bool waits;	    /* the queue waits in this ring, not in epoll or in another one */
	bool issuer_only;   /* the kernel lets only the queue's thread register anything */
	struct watch watch; /* !waits */
	struct aio_op *parked, **parked_tail; /* for want of room, in order of arrival */
	unsigned nr_ring;		      /* requests in the ring or in the kernel, to be completed */
	unsigned nr_ring_max;		      /* with operations; the reserve is for the rest */
	bool event_armed, epoll_armed;
	uint64_t event_count; /* where the kernel puts what it reads from the event fd */

	/* uring_watch.c */
	bool watches_changed; /* some are to be armed or cancelled */
	struct uring_watch watches[URING_WATCHES];

	/* uring_memory.c */
	unsigned nr_regions;
	bool has_buffers; /* there is a table */
	struct uring_region regions[URING_REGIONS];

	/* uring_files.c; see there who may touch them */
	bool has_files;
	_Atomic bool file_set[URING_FILES];
	_Atomic unsigned nr_drops; /* files that this ring's thread is to let go of */
	LIST_ENTRY(uring) link;
};

/* ---- engine_uring.c ---- */

void uring_submit(void *ctx, struct aio_op *op);
void uring_flush(void *ctx);
void uring_wait(void *ctx, int64_t timeout_ns);
unsigned uring_reap(void *ctx);
/* Ends what is armed; nothing else is in flight. */
void uring_disarm(struct uring *u);
void uring_ready(struct watch *w, uint32_t events);
/* Hands over, and asks the device for completions without waiting. */
void uring_poll(struct uring *u);

/* NULL: the submission ring is full. */
struct io_uring_sqe *uring_sqe(struct uring *u);

/* ---- uring_watch.c ---- */

void uring_watches_init(struct uring *u);
/* What is still watched goes to epoll. */
void uring_watches_exit(struct uring *u);
/* Arms and cancels what is to be. False: no room now. */
bool uring_watches_arm(struct uring *u);
/* The completion of watch number i. True: another will follow. */
bool uring_watch_done(struct uring *u, unsigned i, int res, unsigned flags);

/* ---- uring_make.c ---- */

int uring_ring_init(struct io_uring *ring, unsigned flags);
/* What every ring has; 0, or a negative errno and err. */
int uring_check(const struct io_uring *ring, struct varve_error *err);
int uring_refuse(int ret, struct varve_error *err);

/* ---- uring_files.c ---- */

void uring_files_init(struct uring *u);
void uring_files_exit(struct uring *u);
int uring_file_open(struct aio_file *file, struct varve_error *err);
void uring_file_close(struct fiber *f, struct aio_file *file);
/* Lets go of the files that others close. */
void uring_files_drop(struct uring *u);
bool uring_file_set(struct uring *u, const struct aio_file *file, unsigned slot);

/* The ring's slot of the file, or -1. Takes one when the file is met first. */
static inline int uring_file_slot(struct uring *u, const struct aio_file *file)
{
	const unsigned slot = (unsigned)(uintptr_t)file->engine_data; /* from 1; 0: none */

	if (!slot || unlikely(!u->has_files))
		return -1;
	if (likely(atomic_load_explicit(&u->file_set[slot - 1], memory_order_relaxed)) ||
	    uring_file_set(u, file, slot - 1))
		return (int)slot - 1;
	return -1;
}

/* ---- uring_memory.c ---- */

void uring_memory_add(void *ctx, const struct aio_memory *m);
void uring_memory_del(void *ctx, const struct aio_memory *m);

/* The registered buffer that holds all of the bytes, or -1. */
static inline int uring_buffer(const struct uring *u, const void *p, uint64_t len)
{
	for (unsigned i = 0; i < u->nr_regions; i++) {
		const struct uring_region *r = &u->regions[i];
		const uint64_t off = (uintptr_t)p - (uintptr_t)r->base;

		if (off < r->len && len <= r->len - off && off >> 30 == (off + len - 1) >> 30)
			return (int)(r->first + (unsigned)(off >> 30));
	}
	return -1;
}

/* ---- uring_iopoll.c ---- */

int iopoll_attach(struct queue *q, unsigned mode, void **ret_ctx, struct varve_error *err);
void iopoll_detach(struct queue *q, void *ctx);
int iopoll_file_open(struct aio_file *file, struct varve_error *err);
void iopoll_submit(void *ctx, struct aio_op *op);
void iopoll_flush(void *ctx);

#endif
