/* SPDX-License-Identifier: MIT */
/*
 * tools/lend.h - an image that a server lets go of, and takes again, while its exports stay
 *
 * For `varve serve` and `varve daemon`: --hand-over, where the image is held only while the machine runs, and the old side of
 * --takeover, where it is held until another process has it.
 */
#ifndef VARVE_TOOLS_LEND_H
#define VARVE_TOOLS_LEND_H

#include <limits.h>
#include <stdatomic.h>

#include "common.h"

/* Of two times to wait, in milliseconds; -1: for ever. */
static inline int sooner(int a, int b)
{
	return a < 0 || b < 0 ? MAX(a, b) : MIN(a, b);
}

struct lend_ops {
	/*
	 * The image as it is served; or a stand-in for it: what its header says, read without a lock. NULL, with the reason in *err
	 * (no words: it was told).
	 */
	struct varve_image *(*open)(void *disk, bool stand_in, struct varve_error *err);
	/* Something is done to the disk that must end first; patient: for seconds that is waited for. NULL: there is no such thing. */
	bool (*busy)(void *disk, bool patient);
	/* Ours uses the image no longer, before another process gets it; a job's thread. NULL: nothing to do. */
	void (*leave)(void *disk);
	/* It has another image than before: a stand-in, if not held; a job's thread. NULL: nobody wants to know. */
	void (*changed)(void *disk, bool held);
};

struct lend;

struct lend_export {
	struct lend_export *next;
	struct lend *of;
	struct varve_vhost_user_blk_options *options;
	struct varve_export *exp; /* NULL: not started */
	_Atomic bool wanted; /* its front end wants its queues to run; of use with on_demand */
};

struct lend {
	/* set by the owner */
	const struct lend_ops *ops;
	void *disk;	   /* for ops */
	const char *name;  /* in messages */
	bool on_demand;	   /* --hand-over */
	int wake_fd;	   /* an eventfd, written when lend_settle() wants to be called */
	bool own_limits;   /* the options of the image name some */

	_Atomic bool stopped; /* its requests wait by somebody's order (pause), and go on by his. The owner's, when its exports run */
	char *limits;	      /* set since the options were given, freed by the owner; NULL: those of the options hold */

	struct varve_image *image;
	struct lend_export *exports;
	char file[PATH_MAX], id[PATH_MAX]; /* the name of the file with the data of image, and the same text for the same file */
	_Atomic bool held;  /* image is the real one, else it is a stand-in */
	bool paused;	    /* its exports are, by us */
	_Atomic bool given; /* to another process: nobody here may take it */
	char trouble[VARVE_ERROR_MAX]; /* what is in the way, as it was told; empty: nothing */

	/* what the last job for another process came to: lend_result() */
	bool failed;
	char why[VARVE_ERROR_MAX];

	int64_t retry_at_ms; /* before that, nothing is tried again, unless something else is wanted; 0: at once */
	bool retry_want;     /* what was wanted then */

	struct lend_job *job; /* NULL: none. It alone uses trouble, and if lend_moves(), image and paused */
};

/*
 * Opens a stand-in as l->image, for who wants to know what would be served, and closes it again. 0, or 1 after a message.
 */
int lend_peek(struct lend *l);
void lend_unpeek(struct lend *l);
/* Opens l->image: a stand-in, if on_demand. 0, or 1 after a message. */
int lend_open(struct lend *l);
/* One more export of the image, with options that stay; what is needed goes into them. Before it is started. */
void lend_add(struct lend *l, struct lend_export *e, struct varve_vhost_user_blk_options *o);
/*
 * Has the image taken if it is wanted, given away if it is not. Milliseconds until it wants to be called again; -1: when it is woken.
 */
int lend_settle(struct lend *l);
/* Reads the eventfd back to zero. */
void lend_woken(int wake_fd);
/* The image is on its way: nobody else may use it until lend_settle() has seen the end. */
bool lend_moves(const struct lend *l);
/* Of the image that is open now, also while it is on its way. */
void lend_tell(struct lend *l, const char **ret_format, uint64_t *ret_length);
/* Waits for what is under way, when no other thread uses the disk. Any thread. */
void lend_end(struct lend *l);

/* ---- for another process ---- */

/*
 * Does the disk answer, is it running, can it be flushed? The guest goes on meanwhile. False: one such question is not answered yet,
 * or there is no thread (which was told).
 */
bool lend_probe(struct lend *l);
/* Afterwards the image is free, and stays so until l->given is false and lend_settle() is called. False: as above. */
bool lend_give(struct lend *l);
enum lend_result { LEND_UNDER_WAY, LEND_DONE, LEND_FAILED };
/* What of these has come to. *ret_why: a line about what failed, until lend_settle() is called. */
enum lend_result lend_result(const struct lend *l, const char **ret_why);

/* ---- what is set at run time: lend_limits.c ---- */

/* From now on, also for the image when it is opened anew. 0, or a negative errno. */
int lend_set_limits(struct lend *l, const char *limits, struct varve_error *err);
/* For an image that was just opened. */
int lend_apply_limits(struct lend *l, struct varve_error *err);
/* Options of an image, as an object: is one of them a limit? */
bool lend_names_limits(const json_t *options);
/* For the process that follows: {"paused": ..., "limits": ...}; a new reference. */
json_t *lend_settings(const struct lend *l);
/* Those of the process before; before anything is opened or started. 1: they cannot be understood. */
int lend_inherit(struct lend *l, const json_t *settings);

#endif
