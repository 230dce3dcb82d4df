/* SPDX-License-Identifier: MIT */
/*
 * tools/daemon.c - `varve daemon`: several disks for virtual machines, described as for qemu-storage-daemon
 *
 * The command line is read to its end before anything is opened, so options may come in any order. Then: take over,
 * iothreads and nodes and exports, pidfile, detach; wait for a signal; all that backwards.
 *
 * Never:   exits before what was acknowledged is flushed; says that it is ready before every socket listens.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "complete.h"
#include "daemon.h"
#include "descriptors.h"

enum { BLOCKDEV = 256, EXPORT, OBJECT, PIDFILE, DAEMONIZE, STATE_DIR, TAKEOVER, HAND_OVER, CHARDEV, MONITOR, NBD_SERVER };

static const struct option_row options[] = {
	{ BLOCKDEV, "blockdev", ARG_NODE, "a node, driver=DRIVER,node-name=NAME,...: a file, a format, a filter" },
	{ EXPORT, "export", ARG_EXPORT, "give a node to virtual machines: vhost-user-blk,id=ID,node-name=NAME,addr.type=unix,addr.path=SOCKET,..." },
	{ OBJECT, "object", ARG_OBJECT, "iothread,id=ID: a thread for exports" },
	{ PIDFILE, "pidfile", ARG_FILE, "written when everything is ready, removed at the end" },
	{ DAEMONIZE, "daemonize", NULL, "go to the background when everything is ready" },
	{ STATE_DIR, "state-dir", ARG_DIR, "keep queued metadata there (on a tmpfs; auto: /run/varve), for the next process if this one is killed" },
	{ TAKEOVER, "takeover", NULL, "first let the process that holds the pidfile hand its disks over and end" },
	{ HAND_OVER, "hand-over", NULL, "images are open for writing only while their machine runs (live migration)" },
	{ CHARDEV, "chardev", "CHARDEV", NULL },
	{ MONITOR, "monitor", "MONITOR", NULL },
	{ NBD_SERVER, "nbd-server", "SERVER", NULL },
	{ 'T', "trace", "SPEC", NULL },
	{ 'V', "version", NULL, "show which version this is" },
	OPTION_END,
};

const struct command cmd_daemon = {
	.name = "",
	.what = "gives several disks to virtual machines, node by node",
	.args = "",
	.options = options,
	.notes = "In a node, file= and backing= take the name of another one. Values of --blockdev, --export and --object may be JSON\n"
		 "objects. varve-daemon(1) says what they take. SIGTERM, SIGINT and SIGHUP end it: requests in flight are finished,\n"
		 "everything is flushed. Exit status 1 when that failed.\n",
};

static int parse_option(struct daemon *d, int c, const char *value)
{
	switch (c) {
	case BLOCKDEV:
		return node_add(d, value);
	case EXPORT:
		return export_add(d, value);
	case OBJECT:
		return iothread_add(d, value);
	case PIDFILE:
		d->pidfile = value;
		return 0;
	case DAEMONIZE:
		d->daemonize = true;
		return 0;
	case TAKEOVER:
		d->takeover = true;
		return 0;
	case STATE_DIR:
		d->state_dir = state_directory(value);
		return !d->state_dir;
	case HAND_OVER:
		d->hand_over = true;
		return 0;
	case CHARDEV:
	case MONITOR:
		return complain_missing("the QMP monitor (--chardev, --monitor)");
	case NBD_SERVER:
		return complain_missing("--nbd-server");
	default:
		return complain_missing("-T, --trace");
	}
}

/* 0, 1 (failed, told), -1: done (help, version). */
static int parse(int argc, char **argv, struct daemon *d)
{
	struct parse p;
	int c;

	parse_start(&p, &cmd_daemon, argc, argv);
	while ((c = parse_next(&p)) > 0) {
		if (c == 'V') {
			print_version("varve daemon");
			return -1;
		}
		if (parse_option(d, c, p.value))
			return 1;
	}
	if (c < 0)
		return p.status ? p.status : -1;
	if (p.nr_args)
		return complain_usage("unexpected argument '%s'", p.args[0]);
	if (d->takeover && !d->pidfile)
		return complain_usage("--takeover needs --pidfile, which names the process to take over from");
	return nodes_resolve(d);
}

/* ---- to the background ---- */

/* The child goes on and later tells through *ret_tell; the parent waits for that, and is this program for its caller. */
static int detach_begin(int *ret_tell)
{
	int pipes[2];
	char byte;
	pid_t pid;

	if (pipe2(pipes, O_CLOEXEC) < 0 || (pid = fork()) < 0) {
		complain("--daemonize: %s", strerror(errno));
		return 1;
	}
	if (pid) {
		close(pipes[1]);
		/* End of file: it ended, after its message. */
		_exit(read(pipes[0], &byte, 1) == 1 ? 0 : 1);
	}
	close(pipes[0]);
	setsid();
	*ret_tell = pipes[1];
	return 0;
}

static int detach_end(int tell)
{
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);

	/* The directory stays: names of sockets and of the pidfile, which are removed at the end, may be relative to it. */
	if (null < 0 || dup2(null, 0) < 0 || dup2(null, 1) < 0 || dup2(null, 2) < 0 ||
	    write(tell, "", 1) != 1) {
		complain("--daemonize: %s", strerror(errno));
		return 1;
	}
	close(null);
	close(tell);
	return 0;
}

/* ---- start, stop ---- */

static void log_to_stderr(void *user_data, enum varve_log_level level, const char *line)
{
	(void)user_data;
	if (level <= VARVE_LOG_WARNING)
		complain("%s%s", level == VARVE_LOG_ERROR ? "error: " : "warning: ", line);
}

static const struct takeover_ops takeover_ops = { .next = nodes_next };

static int start(struct daemon *d)
{
	struct varve_queue_options qo = { .flags = VARVE_QUEUE_THREAD, .name = "varve-control" };
	struct varve_error err;
	int ret;

	if (varve_queue_new(&d->control, &qo, &err) < 0) {
		complain("%s", err.message);
		return 1;
	}
	d->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (d->wake_fd < 0) {
		complain("eventfd: %s", strerror(errno));
		return 1;
	}
	ret = exports_prepare(d) || nodes_prepare_rest(d);
	if (ret == 0 && d->takeover)
		ret = takeover_ask(&d->from, d->pidfile, &takeover_ops, d, d->signal_fd);
	if (ret == 0)
		ret = nodes_open(d) || exports_start(d) || descriptors_check(&takeover_ops, d);
	if (ret == 0 && d->pidfile)
		ret = !(d->answers = takeover_new(&takeover_ops, d, &d->held)) ||
		      takeover_serving(&d->from, &d->held, d->pidfile, d->signal_fd);
	takeover_end(&d->from, &takeover_ops, d);
	return ret;
}

static int stop(struct daemon *d, bool served)
{
	int failed;

	takeover_free(d->answers);
	for (struct lend *l = nodes_next(d, NULL); l; l = nodes_next(d, l))
		lend_end(l);
	failed = exports_stop(d);

	failed |= nodes_close(d, served);
	exports_free(d);
	varve_queue_free(d->control);
	if (d->wake_fd >= 0)
		close(d->wake_fd);
	if (d->signal_fd >= 0)
		close(d->signal_fd);
	pidfile_remove(&d->held);
	return failed;
}

/* Until the process is told to end, or another one has taken over. */
static void run(struct daemon *d)
{
	struct pollfd p[3] = { { .fd = d->signal_fd, .events = POLLIN }, { .fd = d->wake_fd, .events = POLLIN } };

	for (;;) {
		bool over;
		int timeout = nodes_settle(d);

		timeout = sooner(timeout, takeover_settle(d->answers, d->signal_fd, &over));
		if (over)
			return;
		p[2] = (struct pollfd){ .fd = takeover_fd(d->answers), .events = POLLIN };
		if (poll(p, 3, timeout) < 0) {
			if (errno == EINTR)
				continue;
			complain("poll: %s", strerror(errno));
			return;
		}
		if (p[0].revents)
			return;
		if (p[2].revents)
			takeover_turn(d->answers, d->signal_fd);
	}
}

int daemon_main(int argc, char **argv)
{
	struct daemon d = { .wake_fd = -1, .signal_fd = -1, .from = { .fd = -1, .pidfd = -1, .pid_fd = -1 } };
	int ret, tell = -1;

	TAILQ_INIT(&d.iothreads);
	TAILQ_INIT(&d.nodes);
	TAILQ_INIT(&d.exports);
	ret = parse(argc, argv, &d);
	if (ret == 0 && d.daemonize)
		ret = detach_begin(&tell); /* before there are threads: they would not be in the child */
	if (ret == 0) {
		varve_set_log(log_to_stderr, NULL);
		descriptors_raise();
		ret = (d.signal_fd = takeover_signals()) < 0;
	}
	if (ret == 0) {
		ret = start(&d);
		if (ret == 0 && d.daemonize)
			ret = detach_end(tell);
		if (ret == 0)
			run(&d);
	}
	if (ret < 0)
		ret = finish_stdout();
	return stop(&d, ret == 0) || ret;
}
