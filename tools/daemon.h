/* SPDX-License-Identifier: MIT */
/*
 * tools/daemon.h - what the files of `varve daemon` share
 *
 *   daemon.c         the command line, start and stop
 *   daemon_args.c    one argument, "key=value,..." or JSON, as an object
 *   daemon_nodes.c   --blockdev: nodes, their names, and the disks they make together
 *   daemon_export.c  --export: a disk for a virtual machine
 *   takeover_*.c     --takeover
 *   lend.c           --hand-over: images are held only while machines run
 *   pidfile.c        --pidfile
 */
#ifndef VARVE_TOOLS_DAEMON_H
#define VARVE_TOOLS_DAEMON_H

#include <sys/queue.h>

#include "common.h"
#include "takeover.h"

#define DAEMON_QUEUES_MAX 64 /* of one export */
#define DAEMON_ID_MAX 31     /* bytes of a node-name, as elsewhere */

/* --object iothread */
struct iothread {
	TAILQ_ENTRY(iothread) link;
	char *id;
	struct varve_queue *queue;
};

/* --blockdev */
struct block_node {
	TAILQ_ENTRY(block_node) link;
	char *name;
	json_t *options;	    /* without node-name; references to others as they were given */
	bool is_child;		    /* another node stands on it */
	bool writethrough;	    /* as an export of it wants */
	struct daemon *of;
	struct lend lend;	    /* with its image; none: not opened by itself */
	struct varve_queue *home;   /* of the image */
	struct varve_queue *private_home; /* made for it; NULL: home is a queue of an export or iothread */
};

/* --export */
struct block_export {
	TAILQ_ENTRY(block_export) link;
	char *id, *node_name, *socket, *iothread;
	int socket_fd; /* of one that listens already; 0: there is a name */
	bool writable, writethrough;
	unsigned nr_queues;
	struct block_node *node;
	struct varve_queue *queues[DAEMON_QUEUES_MAX]; /* its own; with an iothread one, which is that's */
	unsigned nr_running;
	struct varve_vhost_user_blk_options options;
	struct lend_export served;
};

struct daemon {
	TAILQ_HEAD(, iothread) iothreads;
	TAILQ_HEAD(, block_node) nodes;
	TAILQ_HEAD(, block_export) exports;
	const char *state_dir; /* NULL: none */
	const char *pidfile;
	bool daemonize, takeover, hand_over;

	/* what was started */
	struct varve_queue *control;
	int wake_fd; /* readable when the main thread is to look at its images; -1: there is none */
	struct pidfile held;
	struct takeover *answers; /* whoever is to follow; NULL: there is no pidfile */
	struct takeover_from from;
	int signal_fd; /* readable when it is to end */
};

/* daemon_args.c: a new object; NULL, after a message. first: the key of a first part without "=" (NULL: none). */
json_t *args_parse(const char *option, const char *text, const char *first);
/* Takes a member out of the object: *ret stays when it is not there. 1 after a message. ret: malloc'd. */
int args_take_string(const char *option, json_t *args, const char *key, char **ret);
int args_take_bool(const char *option, json_t *args, const char *key, bool *ret);
int args_take_unsigned(const char *option, json_t *args, const char *key, unsigned min, unsigned max, unsigned *ret);
/* Complains about what is left. */
int args_done(const char *option, const json_t *args);
/* A name that others refer to. */
int args_check_id(const char *option, const char *what, const char *id);

/* daemon_nodes.c */
int node_add(struct daemon *d, const char *text);
struct block_node *node_by_name(const struct daemon *d, const char *name);
/* Resolves references; before any is opened. */
int nodes_resolve(struct daemon *d);
/* All that comes before opening it; home: its image's. */
int node_prepare(struct daemon *d, struct block_node *n, struct varve_queue *home, bool writethrough);
/* Those that were prepared, in an order; see takeover.h. */
struct lend *nodes_next(void *program, struct lend *l);
/* Takes images that are wanted, gives away those that are not. Milliseconds until it wants to be called again; -1: no need. */
int nodes_settle(struct daemon *d);
/* The same for those that no export uses: they are looked at and locked, as asked. */
int nodes_prepare_rest(struct daemon *d);
int nodes_open(struct daemon *d);
/* served: the start was one, else what a guest has lost is left to the next. 1: data may be lost. */
int nodes_close(struct daemon *d, bool served);

/* daemon_export.c */
int iothread_add(struct daemon *d, const char *text);
int export_add(struct daemon *d, const char *text);
/* Queues, nodes, options; nothing is opened yet. */
int exports_prepare(struct daemon *d);
int exports_start(struct daemon *d);
int exports_stop(struct daemon *d);
void exports_free(struct daemon *d);

#endif
