/* SPDX-License-Identifier: MIT */
/*
 * vhost-user-blk/memguard.h - when a front end takes back memory that it has shared: SIGBUS, and going on
 * after it
 *
 * A file of memory can be made shorter by whoever else holds it. Touching a page that is gone raises SIGBUS
 * in the thread that touches it. A guarded range survives that: the page is replaced by an empty one of our
 * own, a flag says that the range is not the guest's memory any more, and the thread goes on. It finds
 * zeroes, as it could have found anything in a guest's memory; whoever serves the range looks at the flag and
 * gives up the device.
 *
 * Owns:    the table of guarded ranges of the process, and the handler of SIGBUS while there are any.
 * Assumes: a range is guarded before it is touched and forgotten when no thread uses it any more. Threads
 * that touch it do not block SIGBUS (the kernel would end the process). Never:   keeps a fault that is not
 * ours: it goes to the handler that was there before.
 */
#ifndef VARVE_VUBLK_MEMGUARD_H
#define VARVE_VUBLK_MEMGUARD_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>

#include "base/error.h"

/* Guarded ranges of a process at once: eight devices with the most memory slots that we offer. */
#define MEMGUARD_MAX 4096

/*
 * [start, start + len) was mapped in units (page size of the mapping) of `unit` bytes, a power of two. *lost
 * becomes true when a unit had to be replaced. The slot's number, or -ENOSPC with err filled. Any thread.
 */
int memguard_add(void *start, size_t len, size_t unit, _Atomic bool *lost, struct varve_error *err);
void memguard_del(int slot);

/*
 * The embedding program has a SIGBUS handler of its own, and calls this from it: ours is not installed from
 * now on. True: the fault at addr was in a guarded range and is repaired; return from the handler.
 */
bool memguard_fault(void *addr);
void memguard_keep_out(bool keep_out);

#endif
