/* SPDX-License-Identifier: MIT */
/*
 * served.h - disks served by this process, for tests that play their front ends too
 *
 * Owns:    one control queue, two queues that share the virtqueues of all disks, the disks, their servers,
 *          the log.
 * Assumes: one test at a time, in the process's main thread.
 * Never:   mixes the two sides: the front end (tools/blkload/vu_*) shares nothing with the server but the socket
 *          and guest memory, which each maps for itself.
 *
 * Each disk is 64 MiB of memory behind a valve: while it is shut, requests stay in flight.
 */
#ifndef SERVED_H
#define SERVED_H

#include "../lib/patience.h"
#include "vu_blk.h"
#include "vu_front.h"
#include "vu_raw.h"

#include "export/vhost-user-blk/export.h"

#define SERVED_LEN MiB(64)
#define SERVED_DISKS 2
#define SERVED_MS PATIENCE_MS

struct served {
	struct node *top;
	struct vublk *vublk;
	char path[64];
};

extern struct served served[SERVED_DISKS];
extern struct varve_vhost_user_blk_options served_opts; /* for served_start(); socket_path is set there */
extern struct queue *served_control, *served_queues[2];
extern uint64_t served_poll_ns; /* for served_setup(): how long these two spin (VARVE_POLL_US); 0: not at all */

/* For cmocka: makes queues and disks, starts both servers; stops them and looks for descriptors left open. */
int served_setup(void **state);
/* As served_setup(), but for the control queue time passes only by served_pass(). */
int served_setup_timeless(void **state);
int served_teardown(void **state);

/* Timeless: ns later. Returns when the control queue has done what it had to do before; what is due then it does next. */
void served_pass(uint64_t ns);

int served_start(unsigned i, struct varve_error *err);
void served_stop(unsigned i);

/* The valve of disk i. Opening it lets go what waits. */
void served_shut(unsigned i);
void served_open(unsigned i);
/* Those that wait fail; the valve stays shut for what comes after them. */
void served_fail(unsigned i);
/* Waits until nr requests are held by the valve. */
void served_wait_held(unsigned i, unsigned nr);

/* Lines of the log with this in them, since the test began. */
unsigned served_logged(const char *part);

unsigned served_open_fds(void);

/* Waits until the process has at most nr descriptors open; fails the test after SERVED_MS. */
void served_wait_fds(unsigned nr);

/* A front end connected to disk i with all its queues running; fails the test if it cannot. */
void served_connect(struct vu_front *f, unsigned i, unsigned nr_queues);
/* Are the rings of these front ends packed ones (VARVE_RING=packed)? */
bool served_packed(void);
struct vu_front_opts served_front_opts(unsigned i, unsigned nr_queues);

/* Writes a pattern and reads it back, on queue q. */
void served_io_works(struct vu_front *f, unsigned q);

/* ret is what a vu_front_*() call returned. */
void must(struct vu_front *f, int ret);

/* Sends a message that asks for an answer, without waiting for it. */
void send_only(struct vu_front *f, uint32_t request, const void *payload, uint32_t len);
bool has_answered(struct vu_front *f);

/* ---- writes in flight ---- */

#define LOAD 32

struct load {
	struct vu_blk b;
	uint64_t off; /* one for each queue: ThreadSanitizer cannot see how the guest orders two of them */
	struct vu_io *ios[LOAD];
};

/* Offers LOAD writes of 4 KiB behind one another, each filled with a byte of its own. */
void offer_writes(struct load *l, struct vu_front *f, unsigned q, uint8_t first);

/* Collects what is done already, without waiting: how many. */
unsigned reap_writes(struct load *l);
void wait_writes(struct load *l, unsigned nr);

/* Reads them all back. */
void check_writes(struct load *l, uint8_t first);
void end_load(struct load *l);

#endif
