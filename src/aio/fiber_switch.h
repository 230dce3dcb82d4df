/* SPDX-License-Identifier: MIT */
/*
 * aio/fiber_switch.h - a stack to run on, and the switch between it and the loop
 *
 * Two implementations: fiber_switch.c (switches the stack pointer) and fiber_thread.c (-Dfiber=thread: a
 * thread per context, exactly one of which holds the baton). A context is entered from the loop and leaves to
 * the loop.
 */
#ifndef VARVE_AIO_FIBER_SWITCH_H
#define VARVE_AIO_FIBER_SWITCH_H

#include <stdbool.h>

struct fiber_ctx;

/* Are contexts kept for when there is no memory? Not where each is a thread: that build is for the thread sanitizer alone. */
#ifdef VARVE_FIBER_THREAD
#define FIBER_CTX_RESERVE false
#else
#define FIBER_CTX_RESERVE true
#endif

/* False in builds that do not know valgrind. */
bool runs_on_valgrind(void);

/* NULL: no memory (or no thread). */
struct fiber_ctx *fiber_ctx_new(void);

/* Not while entry() runs. */
void fiber_ctx_free(struct fiber_ctx *c);

/* The next fiber_ctx_enter() calls entry(arg). Not while an earlier entry() runs. */
void fiber_ctx_prepare(struct fiber_ctx *c, void (*entry)(void *arg), void *arg);

/* From the loop: runs the context until it leaves, or entry() returns. */
void fiber_ctx_enter(struct fiber_ctx *c);

/* From inside: back to the loop, until the next fiber_ctx_enter(). */
void fiber_ctx_leave(struct fiber_ctx *c);

#endif
