/* SPDX-License-Identifier: MIT */
/*
 * tools/serve.h - `varve serve`: disks for virtual machines
 *
 *   serve.c          starting, waiting for the end, stopping
 *   serve_options.c  the command line
 *   serve_control.c  the control socket: connections, lines
 *   serve_command.c  what can be asked there
 *   serve_job.c      what of it may wait
 *   serve_state.c    the state of a machine on its way into a snapshot
 *   takeover_*.c     one server follows another (--takeover)
 *   lend.c           the image is held only while the machine runs (--hand-over); lend_limits.c: what was set at run time
 */
#ifndef VARVE_TOOLS_SERVE_H
#define VARVE_TOOLS_SERVE_H

#include <stdatomic.h>

#include "common.h"
#include "takeover.h"

#define SERVE_QUEUES_MAX 64 /* of one disk */
#define SERVE_DISKS_MAX 64

struct serve_disk {
	/* options */
	struct open_args open;
	struct varve_vhost_user_blk_options export;
	const char *file;
	char *name; /* on the control socket */
	bool read_only;
	const char *cpus; /* a list for each queue, parted by ':' */
	unsigned poll_us;
	bool poll_adaptive, poll_given;
	char *image_options; /* what open.options points to */
	struct varve_stream_options stream_options;
	bool stream_wanted, stream_given, prefetch;

	/* what was started, in this order */
	struct varve_queue *queues[SERVE_QUEUES_MAX];
	struct lend lend; /* with its image */
	struct varve_stream *stream;
	struct lend_export served;
	struct serve_state *state; /* on its way, or the last one; NULL: none yet */
	struct serve_job *job;  /* a command that may wait; NULL: none. Nothing else changes the disk meanwhile */
	struct serve_job *look; /* one that does not wait for requests; NULL: none */
};

struct serve {
	/* options */
	const char *pidfile, *control_path, *state_dir;
	bool print_args, verbose, takeover;
	unsigned nr_disks;
	struct serve_disk disk[SERVE_DISKS_MAX];

	/* what was started */
	struct varve_queue *control;
	struct serve_control *asked;
	struct pidfile held;
	struct takeover *answers; /* whoever is to follow; NULL: there is no pidfile */
	struct takeover_from from;
	int signal_fd; /* readable when it is to end */
	int wake_fd; /* readable when the main thread is to look at its disks */
	int job_fd;  /* readable when a job has ended; -1: there is no control socket */
};

/* 0; 1: failed, told; -1: done (help, version). */
int serve_parse(int argc, char **argv, struct serve *s);

/* Takes images that are wanted, gives away those that are not. Milliseconds until it wants to be called again; -1: no need. */
int serve_settle(struct serve *s);

/* ---- the state of a machine ---- */

/*
 * Begins a snapshot of the disk as it is now, whose state is what can be read from path (a FIFO, a file) until its end. What
 * it has come to is asked for with serve_state_tell(). -EBUSY: one is on its way.
 */
int serve_state_start(struct serve_disk *d, const char *name, const char *path, struct varve_error *err);
/* {"state": "saving" | "done" | "failed", "name": ..., "bytes": ..., "error": ...}; none yet: {"state": "none"} */
json_t *serve_state_tell(struct serve_disk *d);
bool serve_state_busy(const struct serve_disk *d);
/* No snapshot if it has not ended. */
void serve_state_stop(struct serve_disk *d);

/* ---- the control socket ---- */

struct serve_control;

/* Listens on s->control_path. NULL, after a message. */
struct serve_control *serve_control_new(struct serve *s);
/*
 * Answers whoever asks (nobody, if there is no s->asked) and sees to the images, until the process is told to end or another one
 * has taken over.
 */
void serve_control_run(struct serve *s);
/* Removes the socket. Takes NULL. */
void serve_control_free(struct serve_control *c);

/* Carries out one line; the answer, without a newline, is malloc'd. NULL: no memory. */
char *serve_command(struct serve *s, const char *line, size_t len);

enum serve_kind { SERVE_AT_ONCE, SERVE_LOOK, SERVE_JOB, SERVE_RESUME };

/*
 * What a line asks for: something that is done at once; or by the thread of a disk (*ret_disk); or may wait for requests of that disk;
 * or ends such a wait.
 */
enum serve_kind serve_command_kind(struct serve *s, const char *line, size_t len, struct serve_disk **ret_disk);

/* ---- commands that may wait; the main thread ---- */

/* Of a disk: &d->job or &d->look, which is NULL. 0, or a negative errno. */
int serve_job_start(struct serve *s, struct serve_job **ret, const char *line, size_t len);
/* True: it is over, and this is its answer as of serve_command(). */
bool serve_job_take(struct serve_job **job, char **ret_answer);
/* Until it is over; its answer can be taken then. False: it is not, after seconds. Takes NULL. */
bool serve_job_wait(struct serve_job *j);
/* Ends those of a disk: what they wait for fails if it has to. Any thread, when no other uses the disk. */
void serve_jobs_end(struct serve_disk *d);

#endif
