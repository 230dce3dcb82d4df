/* SPDX-License-Identifier: MIT */
/*
 * tools/serve.h - `varve serve`: disks for virtual machines
 *
 *   serve.c          starting, waiting for the end, stopping
 *   serve_options.c  the command line
 *   serve_control.c  the control socket: connections, lines
 *   serve_command.c  what can be asked there
 *   serve_state.c    the state of a machine on its way into a snapshot
 */
#ifndef VARVE_TOOLS_SERVE_H
#define VARVE_TOOLS_SERVE_H

#include "common.h"
#include "pidfile.h"

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
	struct varve_image *image;
	struct varve_stream *stream;
	struct varve_export *exp;
	struct serve_state *state; /* on its way, or the last one; NULL: none yet */
	bool paused;
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
};

/* 0; 1: failed, told; -1: done (help, version). */
int serve_parse(int argc, char **argv, struct serve *s);

/* ---- the state of a machine ---- */

/*
 * Begins a snapshot of the disk as it is now, whose state is what can be read from path (a FIFO, a file) until its end. What
 * it has come to is asked for with serve_state_tell(). -EBUSY: one is on its way.
 */
int serve_state_start(struct serve_disk *d, const char *name, const char *path, struct varve_error *err);
/* {"state": "saving" | "done" | "failed", "name": ..., "bytes": ..., "error": ...}; none yet: {"state": "none"} */
json_t *serve_state_tell(struct serve_disk *d);
/* No snapshot if it has not ended. */
void serve_state_stop(struct serve_disk *d);

/* ---- the control socket ---- */

struct serve_control;

/* Listens on s->control_path. NULL, after a message. */
struct serve_control *serve_control_new(struct serve *s);
/* Answers whoever asks, until signal_fd is readable. */
void serve_control_run(struct serve_control *c, int signal_fd);
/* Removes the socket. Takes NULL. */
void serve_control_free(struct serve_control *c);

/* Carries out one line; the answer, without a newline, is malloc'd. NULL: no memory. */
char *serve_command(struct serve *s, const char *line, size_t len);

#endif
