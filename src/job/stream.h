/* SPDX-License-Identifier: MIT */
/*
 * job/stream.h - pulls a disk's backing chain into the disk while it is in use
 *
 *            ┌──pause──▶ PAUSED ──resume──┐
 *   RUNNING ─┤◀────────────────────────────┘
 *            └──all copied──▶ FINISHING ──the link is gone──▶ ENDED (0)
 *            └──error, cancel───────────────────────────────▶ ENDED (error, -ECANCELED)
 *
 * What was copied before an error or a cancellation stays: the job can be started again, and goes on where it was.
 *
 * Everything here: the home queue of the disk. Fibers where `f` says so.
 */
#ifndef VARVE_JOB_STREAM_H
#define VARVE_JOB_STREAM_H

#include "block/copy_on_read.h"

struct stream_job;

enum stream_state { STREAM_RUNNING, STREAM_PAUSED, STREAM_FINISHING, STREAM_ENDED };

struct stream_options {
	const char *base;  /* name of the image that stays the backing image; NULL: none stays */
	uint64_t speed;	   /* bytes a second, as an average; 0: no limit */
	unsigned parallel; /* pieces fetched at once; 0: 8 */
	bool keep_link;	   /* only copy: the image goes on naming its backing file (prefetch) */
	bool idle;	   /* stands back while requests of the guest fetch from the backing image */
};

struct stream_status {
	enum stream_state state;
	uint64_t done, total; /* bytes of the disk that were looked at, and its length */
	uint64_t copied;      /* bytes, zeroes included */
	int error;	      /* ENDED: negative errno, or 0 */
	const char *message;  /* of the error; "" */
};

int stream_start(struct fiber *f, struct node *top, const struct stream_options *o, struct stream_job **ret,
		 struct varve_error *err);
void stream_pause(struct stream_job *j);
void stream_resume(struct stream_job *j);
void stream_cancel(struct stream_job *j);
void stream_set_speed(struct stream_job *j, uint64_t speed);
void stream_get_status(const struct stream_job *j, struct stream_status *ret);
/* Until it has ended, or until queue_now() is past until_ns (0: without limit). */
void stream_wait(struct fiber *f, struct stream_job *j, uint64_t until_ns);
/* Cancels it if it has not ended, waits, frees. */
void stream_free(struct fiber *f, struct stream_job *j);

#endif
