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
#include <getopt.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "daemon.h"

static const char daemon_help[] =
	"[OPTION]...\n\n"
	"      --blockdev driver=DRIVER,node-name=NAME[,...]\n"
	"                           a node: a file, a format, a filter; file= and backing= take the name of another node\n"
	"      --export [type=]vhost-user-blk,id=ID,node-name=NAME,addr.type=unix,addr.path=SOCKET\n"
	"               [,writable=on|off][,num-queues=N][,iothread=ID][,writethrough=on|off]\n"
	"                           give a node to virtual machines\n"
	"      --object iothread,id=ID\n"
	"                           a thread for exports\n"
	"      --pidfile FILE       written when everything is ready, removed at the end\n"
	"      --daemonize          go to the background when everything is ready\n"
	"      --state-dir DIR      keep queued metadata in a file of DIR (on a tmpfs; auto: /run/varve), where the next\n"
	"                           process finds it if this one is killed: acknowledged writes are not lost then\n"
	"      --takeover           first let the process that holds the pidfile hand its disks over and end\n"
	"      --hand-over          images are open for writing only while their machine runs: another server of them may have\n"
	"                           them when it is stopped, or has moved there (live migration)\n"
	"  -h, --help               this text\n"
	"  -V, --version            which version this is\n"
	"Values of --blockdev, --export and --object may be JSON objects. SIGTERM, SIGINT and SIGHUP end it: requests in\n"
	"flight are finished, everything is flushed. Exit status 1 when that failed.\n";

enum { BLOCKDEV = 256, EXPORT, OBJECT, PIDFILE, DAEMONIZE, STATE_DIR, TAKEOVER, HAND_OVER, CHARDEV, MONITOR, NBD_SERVER };

static const struct option longs[] = {
	{ "help", no_argument, NULL, 'h' },
	{ "version", no_argument, NULL, 'V' },
	{ "trace", required_argument, NULL, 'T' },
	{ "blockdev", required_argument, NULL, BLOCKDEV },
	{ "export", required_argument, NULL, EXPORT },
	{ "object", required_argument, NULL, OBJECT },
	{ "pidfile", required_argument, NULL, PIDFILE },
	{ "daemonize", no_argument, NULL, DAEMONIZE },
	{ "state-dir", required_argument, NULL, STATE_DIR },
	{ "takeover", no_argument, NULL, TAKEOVER },
	{ "hand-over", no_argument, NULL, HAND_OVER },
	{ "chardev", required_argument, NULL, CHARDEV },
	{ "monitor", required_argument, NULL, MONITOR },
	{ "nbd-server", required_argument, NULL, NBD_SERVER },
	{ NULL, 0, NULL, 0 },
};

static int parse_long(struct daemon *d, int c)
{
	switch (c) {
	case BLOCKDEV:
		return node_add(d, optarg);
	case EXPORT:
		return export_add(d, optarg);
	case OBJECT:
		return iothread_add(d, optarg);
	case PIDFILE:
		d->pidfile = optarg;
		return 0;
	case DAEMONIZE:
		d->daemonize = true;
		return 0;
	case TAKEOVER:
		d->takeover = true;
		return 0;
	case STATE_DIR:
		d->state_dir = state_directory(optarg);
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
	int c;

	opterr = 0;
	while ((c = getopt_long(argc, argv, ":hVT:", longs, NULL)) != -1) {
		if (c == 'h') {
			printf("Usage: %s %s", prog, daemon_help);
			return -1;
		}
		if (c == 'V') {
			print_version("varve daemon");
			return -1;
		}
		if (c == '?' || c == ':')
			return complain_option(c, argv);
		if (parse_long(d, c))
			return 1;
	}
	if (optind < argc)
		return complain_usage("unexpected argument '%s'", argv[optind]);
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
		ret = nodes_open(d) || exports_start(d);
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
		int timeout = nodes_settle(d);

		p[2] = (struct pollfd){ .fd = takeover_fd(d->answers), .events = POLLIN };
		if (poll(p, 3, timeout) < 0) {
			if (errno == EINTR)
				continue;
			complain("poll: %s", strerror(errno));
			return;
		}
		if (p[0].revents || (p[2].revents && takeover_turn(d->answers, d->signal_fd)))
			return;
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
