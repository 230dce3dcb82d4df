/* SPDX-License-Identifier: MIT */
/*
 * aio/uring_make.c - making and ending rings, and the tables of the engines "io_uring..."
 *
 * What a user adds to the name is a mode of the ring, and a queue has one ring for each name that its files
 * use. The queue waits in the first; the others are descriptors to it, readable when something has completed.
 */
#include "config.h"

#include <errno.h>

#include "aio/fiber_switch.h"
#include "aio/loop.h"
#include "base/error.h"

#ifdef HAVE_LIBURING

#include <stdlib.h>
#include <string.h>

#include "aio/uring.h"

#define RESERVED (4 + 2 * URING_WATCHES) /* of the completion ring: what is no struct aio_op */
#define SQPOLL_IDLE_MS 100 /* then the kernel's thread sleeps until it is woken */

int uring_ring_init(struct io_uring *ring, unsigned flags)
{
	struct io_uring_params p = {
		.flags = flags | IORING_SETUP_CQSIZE,
		.cq_entries = URING_CQ_ENTRIES,
		.sq_thread_idle = flags & IORING_SETUP_SQPOLL ? SQPOLL_IDLE_MS : 0,
	};
	int ret;

	memset(ring, 0, sizeof(*ring));
	ret = io_uring_queue_init_params(URING_SQ_ENTRIES, ring, &p);
	if (ret < 0)
		return ret;
	/* liburing may leave this to its own submit functions, which are not used here. */
	for (unsigned i = 0; ring->sq.array && i < ring->sq.ring_entries; i++)
		ring->sq.array[i] = i;
	return 0;
}

/*
 * True if the calling thread alone will enter the ring. A queue run by its callers may see several threads
 * unless they promised otherwise, and with -Dfiber=thread attaching happens on a fiber's thread.
 */
static bool one_thread(const struct queue *q)
{
#ifdef VARVE_FIBER_THREAD
	(void)q;
	return false;
#else
	return q->own_thread || q->only;
#endif
}

/* The modes from the best to the one every kernel has; an unknown flag is EINVAL. */
static int ring_make(struct uring *u)
{
	static const unsigned own_thread[] = {
		IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG, /* 6.1 */
		IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG, /* 5.19 */
		0,
	};
	/* With the first, completions wake nobody who does not wait in the ring itself. */
	const unsigned *modes = one_thread(u->q) && u->waits ? own_thread : own_thread + 1;
	int ret;

	if (u->mode & URING_SQPOLL)
		return uring_ring_init(&u->ring, IORING_SETUP_SQPOLL);
	do {
		ret = uring_ring_init(&u->ring, *modes);
	} while (ret == -EINVAL && *modes++);
	return ret;
}

int uring_refuse(int ret, struct varve_error *err)
{
	if (ret == -ENOSYS)
		return varve_error_set(err, ret, "the kernel has no io_uring: use aio=threads");
	if (ret == -EPERM || ret == -EACCES)
		return varve_error_set(err, ret,
				       "io_uring is forbidden here (sysctl kernel.io_uring_disabled, or a "
				       "seccomp filter): use aio=threads");
	if (ret == -ENOMEM)
		return varve_error_set(err, ret,
				       "no memory for an io_uring, or none that may be locked: raise RLIMIT_MEMLOCK "
				       "(ulimit -l), or use aio=threads");
	return varve_error_errno(err, ret, "cannot make an io_uring");
}

int uring_check(const struct io_uring *ring, struct varve_error *err)
{
	const unsigned needed = IORING_FEAT_EXT_ARG | IORING_FEAT_NODROP;

	if ((ring->features & needed) != needed)
		return varve_error_set(err, -ENOSYS,
				       "the kernel's io_uring is too old (5.11 is needed): use aio=threads");
	return 0;
}

/* The queue waits in this ring, or hears of it. */
static int ring_wait(struct uring *u, struct varve_error *err)
{
	struct queue *q = u->q;
	int ret;

	if (u->waits) {
		ret = watches_set_wait(q, uring_wait, u, u->ring.ring_fd);
	} else {
		u->watch = (struct watch){ .fd = u->ring.ring_fd, .events = EPOLLIN, .ready = uring_ready };
		ret = watch_add(q, &u->watch);
	}
	return ret < 0 ? varve_error_errno(err, ret, "queue %s: cannot wait in io_uring", q->name) : 0;
}

static int uring_attach_mode(struct queue *q, unsigned mode, void **ret_ctx, struct varve_error *err)
{
	struct uring *u;
	int ret;

	/* It does not see what the kernel writes later, and stops all threads while one waits in the ring. */
	if (runs_on_valgrind())
		return varve_error_set(err, -ENOSYS,
				       "io_uring does not work under valgrind: use aio=threads");
	u = calloc(1, sizeof(*u));
	if (!u)
		return varve_error_set(err, -ENOMEM, "out of memory for the aio engine 'io_uring'");
	u->q = q;
	u->mode = mode;
	u->waits = q->wait != uring_wait;
	ret = ring_make(u);
	if (ret < 0) {
		free(u);
		return uring_refuse(ret, err);
	}
	ret = uring_check(&u->ring, err);
	if (ret < 0)
		goto fail;
	u->nr_ring_max = u->ring.cq.ring_entries - RESERVED;
	u->issuer_only = u->ring.flags & IORING_SETUP_SINGLE_ISSUER;
	u->enter_fd = u->ring.ring_fd;
	/* Saves the look-up of the descriptor; the registration belongs to the thread. */
	if (one_thread(q) && io_uring_register_ring_fd(&u->ring) == 1) {
		u->enter_fd = u->ring.enter_ring_fd;
		u->enter_flags = IORING_ENTER_REGISTERED_RING;
	}
	ret = ring_wait(u, err);
	if (ret < 0)
		goto fail;
	uring_files_init(u);
	uring_watches_init(u);
	*ret_ctx = u;
	return 0;

fail:
	io_uring_queue_exit(&u->ring);
	free(u);
	return ret;
}

static void uring_detach(struct queue *q, void *ctx)
{
	struct uring *u = ctx;

	assert(!u->parked);
	uring_files_exit(u);
	uring_watches_exit(u);
	uring_disarm(u);
	if (u->waits)
		watches_set_wait(q, NULL, NULL, -1);
	else
		watch_del(q, &u->watch);
	io_uring_queue_exit(&u->ring);
	free(u);
}

static int works; /* 0, or a negative errno */

static void works_ask(void)
{
	struct io_uring ring;

	works = runs_on_valgrind() ? -ENOSYS : uring_ring_init(&ring, 0);
	if (works < 0)
		return;
	works = uring_check(&ring, NULL);
	io_uring_queue_exit(&ring);
}

int uring_works(void)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;

	pthread_once(&once, works_ask);
	return works;
}

#else /* !HAVE_LIBURING */

int uring_works(void)
{
	return -ENOSYS;
}

#endif

/* ---- the engines, by what is added to the name ---- */

#ifdef HAVE_LIBURING

#define ENGINE(id, text, bits)                                                                               \
	static int attach##id(struct queue *q, void **ret_ctx, struct varve_error *err)                      \
	{                                                                                                    \
		return uring_attach_mode(q, bits, ret_ctx, err);                                             \
	}                                                                                                    \
	const struct aio_engine aio_engine_uring##id = {                                                     \
		.name = text,                                                                                \
		.attach = attach##id,                                                                        \
		.detach = uring_detach,                                                                      \
		.file_open = uring_file_open,                                                                \
		.file_close = uring_file_close,                                                              \
		.submit = uring_submit,                                                                      \
		.flush = uring_flush,                                                                        \
		.reap = uring_reap,                                                                          \
		.memory_add = uring_memory_add,                                                              \
		.memory_del = uring_memory_del,                                                              \
	}

#define POLLED_ENGINE(id, text, bits)                                                                        \
	static int attach##id(struct queue *q, void **ret_ctx, struct varve_error *err)                      \
	{                                                                                                    \
		return iopoll_attach(q, bits, ret_ctx, err);                                                 \
	}                                                                                                    \
	const struct aio_engine aio_engine_uring##id = {                                                     \
		.name = text,                                                                                \
		.attach = attach##id,                                                                        \
		.detach = iopoll_detach,                                                                     \
		.file_open = iopoll_file_open,                                                               \
		.file_close = uring_file_close,                                                              \
		.submit = iopoll_submit,                                                                     \
		.flush = iopoll_flush,                                                                       \
		.reap = uring_reap,                                                                          \
		.memory_add = uring_memory_add,                                                              \
		.memory_del = uring_memory_del,                                                              \
	}

#else

static int attach_nothing(struct queue *q, void **ret_ctx, struct varve_error *err)
{
	(void)q;
	(void)ret_ctx;
	return varve_error_set(err, -ENOSYS,
			       "this build has no io_uring (liburing was missing): use aio=threads");
}

#define ENGINE(id, text, bits)                                                                               \
	const struct aio_engine aio_engine_uring##id = {                                                     \
		.name = text,                                                                                \
		.attach = attach_nothing,                                                                    \
	}
#define POLLED_ENGINE ENGINE

#endif

ENGINE(, "io_uring", 0);
ENGINE(_sqpoll, "io_uring+sqpoll", URING_SQPOLL);
ENGINE(_pinned, "io_uring+pinned", URING_PINNED);
ENGINE(_sqpoll_pinned, "io_uring+sqpoll+pinned", URING_SQPOLL | URING_PINNED);
POLLED_ENGINE(_iopoll, "io_uring+iopoll", URING_IOPOLL);
POLLED_ENGINE(_iopoll_pinned, "io_uring+iopoll+pinned", URING_IOPOLL | URING_PINNED);
