/* SPDX-License-Identifier: MIT */
/*
 * tools/serve_options.c - the command line of `varve serve`
 *
 * Each disk has a group of words of its own; groups are parted by --and.
 */
#include <getopt.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "serve.h"

static const char serve_help[] =
	"DISK --vhost-user SOCKET [OPTION]... [--and DISK --vhost-user SOCKET [OPTION]...]...\n\n"
	"      --vhost-user SOCKET  serve over vhost-user-blk on this unix socket, which is made\n"
	"  -f, --format FORMAT      do not guess the format\n"
	"      --image-opts         DISK is driver=...,file.filename=...\n"
	"  -r, --read-only          the disk cannot be written\n"
	"  -C, --copy-on-read       keep in DISK what is read from its backing file\n"
	"      --prefetch           -C, and fetch the rest of the backing file while the guest fetches nothing\n"
	"      --stream[=BASE]      copy everything from the backing files (down to BASE) into DISK while it is served,\n"
	"                           then remove the link to them\n"
	"      --stream-rate RATE   bytes a second that --stream or --prefetch copies at most\n"
	"  -t, --cache CACHE        writeback (default), none, writethrough, directsync, unsafe\n"
	"  -i, --aio AIO            io_uring, native, posix or threads; the best one when not given\n"
	"      --num-queues N       virtqueues, each with a thread of its own (1 .. 64, default 1)\n"
	"      --cpus LIST          processors for the queues' threads: 0-3, or one list for each queue in turn: 2:3:4-5\n"
	"      --poll-us N|auto     a queue's thread looks for work so long before it sleeps; auto: up to 50, where it\n"
	"                           it pays (default, where each queue has two processors, else 0)\n"
	"      --queue-size N       largest ring accepted (power of two, 2 .. 1024, default 1024)\n"
	"      --in-order           offer the guest that requests of a queue end in order (slower; off)\n"
	"      --serial TEXT        what the guest sees as the disk's serial number (at most 20 bytes)\n"
	"      --throttle LIMITS    iops-total=500,bps-read=10M,...: requests and bytes a second at most\n"
	"      --name NAME          what the disk is called on the control socket (default: its number, from 0)\n"
	"      --and DISK ...       one disk more, with its own options; those below are for all\n"
	"      --control SOCKET     answer commands (one JSON object a line) on this unix socket, which is made\n"
	"      --state-dir DIR      keep queued metadata in files of DIR (on a tmpfs; auto: /run/varve), where the next server\n"
	"                           of a disk finds it if this one is killed: acknowledged writes are not lost then\n"
	"      --hand-over          the image is open for writing only while the machine runs: another server of it may have it\n"
	"                           when the machine is stopped, or has moved there (live migration)\n"
	"      --pidfile FILE       written when the socket listens, removed at the end\n"
	"      --takeover           first let the process that holds the pidfile hand its disks over and end\n"
	"      --print-qemu-args    print the arguments that attach the disk to QEMU, then serve\n"
	"  -v, --verbose            also log what is no trouble\n"
	"SIGTERM and SIGINT stop it: requests in flight are finished, everything is flushed. Exit status 1 when the\n"
	"flush failed.\n";

/* The longest time that --poll-us=auto spins: what it costs to sleep and be woken, a few times over. */
#define POLL_AUTO_US 50

enum {
	VHOST_USER = 256,
	IMAGE_OPTS,
	NUM_QUEUES,
	QUEUE_SIZE,
	IN_ORDER,
	SERIAL,
	NAME,
	THROTTLE,
	CPUS,
	POLL_US,
	PIDFILE,
	STATE_DIR,
	CONTROL,
	TAKEOVER,
	PRINT_ARGS,
	STREAM,
	STREAM_RATE,
	PREFETCH,
	HAND_OVER,
};

static int parse_count(const char *option, const char *text, unsigned max, unsigned *ret)
{
	if (parse_unsigned(text, max, ret) < 0 || *ret == 0)
		return complain_usage("%s: '%s' is not a number of 1 .. %u", option, text, max);
	return 0;
}

/* "iops-total=500,bps-read=1M": image options, each behind "throttling.". */
static int add_limits(struct serve_disk *d, const char *text)
{
	char *copy = strdup(text), *rest = copy, *word, *longer;

	while (copy && (word = strsep(&rest, ","))) {
		int n = asprintf(&longer, "%s%sthrottling.%s", d->image_options ? d->image_options : "",
				 d->image_options ? "," : "", word);

		if (n < 0)
			break;
		free(d->image_options);
		d->image_options = longer;
	}
	free(copy);
	if (!d->image_options)
		return complain_usage("--throttle: '%s' is no list of limits", text);
	d->open.options = d->image_options;
	return 0;
}

/* Limits among the options of the image, in either of their forms. "driver=raw,throttling.iops-total=9,file.filename=a,,b" */
static bool names_limits(const struct serve_disk *d)
{
	const char *c = d->file;

	if (!strncmp(c, "json:", 5)) {
		json_t *options = json_loads(c + 5, 0, NULL);
		bool named = lend_names_limits(options);

		json_decref(options);
		return named;
	}
	for (; d->open.image_opts && *c; c += *c == ',') {
		if (!strncmp(c, "throttling.", 11))
			return true;
		while (*c && (*c != ',' || c[1] == ','))
			c += *c == ',' ? 2 : 1;
	}
	return false;
}

/* Options of one disk. */
static int parse_disk_option(int c, struct serve_disk *d)
{
	switch (c) {
	case VHOST_USER:
		d->export.socket_path = optarg;
		return 0;
	case IMAGE_OPTS:
		d->open.image_opts = true;
		return 0;
	case NUM_QUEUES:
		return parse_count("--num-queues", optarg, SERVE_QUEUES_MAX, &d->export.nr_queues);
	case QUEUE_SIZE:
		if (parse_count("--queue-size", optarg, 1024, &d->export.queue_size))
			return 1;
		if (d->export.queue_size < 2 || (d->export.queue_size & (d->export.queue_size - 1)))
			return complain_usage("--queue-size: %u is not a power of two of 2 .. 1024",
					      d->export.queue_size);
		return 0;
	case IN_ORDER:
		d->export.in_order = true;
		return 0;
	case SERIAL:
		if (strlen(optarg) > 20)
			return complain_usage("--serial: '%s' is longer than 20 bytes", optarg);
		d->export.serial = optarg;
		return 0;
	case STREAM:
		d->stream_wanted = d->stream_given = true;
		d->stream_options.base = optarg;
		return 0;
	case STREAM_RATE:
		if (parse_size(optarg, &d->stream_options.speed) < 0 || !d->stream_options.speed)
			return complain_usage("--stream-rate: '%s' is no size", optarg);
		return 0;
	case PREFETCH:
		d->prefetch = d->stream_wanted = d->open.copy_on_read = true;
		d->stream_options.flags = VARVE_STREAM_KEEP_LINK | VARVE_STREAM_IDLE;
		return 0;
	case HAND_OVER:
		d->lend.on_demand = true;
		return 0;
	case CPUS:
		d->cpus = optarg;
		return 0;
	case POLL_US:
		d->poll_given = true;
		d->poll_adaptive = !strcmp(optarg, "auto");
		if (d->poll_adaptive)
			d->poll_us = POLL_AUTO_US;
		else if (parse_unsigned(optarg, 1000000, &d->poll_us) < 0)
			return complain_usage("--poll-us: '%s' is neither 'auto' nor microseconds, 0 .. 1000000", optarg);
		return 0;
	case THROTTLE:
		d->lend.own_limits = true;
		return add_limits(d, optarg);
	case NAME:
		free(d->name);
		d->name = strdup(optarg);
		return !d->name;
	case 'f':
		d->open.format = optarg;
		return 0;
	case 'r':
		d->read_only = true;
		return 0;
	case 'C':
		d->open.copy_on_read = true;
		return 0;
	case 't':
		d->open.cache = optarg;
		return 0;
	default:
		d->open.aio = optarg;
		return 0;
	}
}

/* The words between argv[0] and the end, or `--and`: one disk. 0, 1 (failed, told), -1: done (help, version). */
static int parse_group(int argc, char **argv, struct serve *s, struct serve_disk *d)
{
	static const struct option longs[] = {
		{ "help", no_argument, NULL, 'h' },
		{ "version", no_argument, NULL, 'V' },
		{ "vhost-user", required_argument, NULL, VHOST_USER },
		{ "format", required_argument, NULL, 'f' },
		{ "image-opts", no_argument, NULL, IMAGE_OPTS },
		{ "read-only", no_argument, NULL, 'r' },
		{ "cache", required_argument, NULL, 't' },
		{ "aio", required_argument, NULL, 'i' },
		{ "num-queues", required_argument, NULL, NUM_QUEUES },
		{ "queue-size", required_argument, NULL, QUEUE_SIZE },
		{ "in-order", no_argument, NULL, IN_ORDER },
		{ "serial", required_argument, NULL, SERIAL },
		{ "name", required_argument, NULL, NAME },
		{ "cpus", required_argument, NULL, CPUS },
		{ "poll-us", required_argument, NULL, POLL_US },
		{ "throttle", required_argument, NULL, THROTTLE },
		{ "pidfile", required_argument, NULL, PIDFILE },
		{ "state-dir", required_argument, NULL, STATE_DIR },
		{ "control", required_argument, NULL, CONTROL },
		{ "takeover", no_argument, NULL, TAKEOVER },
		{ "print-qemu-args", no_argument, NULL, PRINT_ARGS },
		{ "copy-on-read", no_argument, NULL, 'C' },
		{ "stream", optional_argument, NULL, STREAM },
		{ "stream-rate", required_argument, NULL, STREAM_RATE },
		{ "prefetch", no_argument, NULL, PREFETCH },
		{ "hand-over", no_argument, NULL, HAND_OVER },
		{ "verbose", no_argument, NULL, 'v' },
		{ NULL, 0, NULL, 0 },
	};
	int c;

	opterr = 0;
	optind = 0; /* from the start: there may have been a group before */
	while ((c = getopt_long(argc, argv, ":hVf:rCt:i:v", longs, NULL)) != -1) {
		switch (c) {
		case 'h':
			printf("Usage: %s %s", prog, serve_help);
			return -1;
		case 'V':
			print_version("varve serve");
			return -1;
		case 'v':
			s->verbose = true;
			break;
		case PIDFILE:
			s->pidfile = optarg;
			break;
		case STATE_DIR:
			s->state_dir = state_directory(optarg);
			if (!s->state_dir)
				return 1;
			break;
		case CONTROL:
			s->control_path = optarg;
			break;
		case TAKEOVER:
			s->takeover = true;
			break;
		case PRINT_ARGS:
			s->print_args = true;
			break;
		case '?':
		case ':':
			return complain_option(c, argv);
		default:
			if (parse_disk_option(c, d))
				return 1;
			break;
		}
	}
	if (argc - optind != 1)
		return complain_usage(s->nr_disks ? "one disk is needed behind each --and" : "one disk is needed");
	d->file = argv[optind];
	d->lend.own_limits |= names_limits(d);
	if (d->prefetch && d->stream_given)
		return complain_usage("--stream and --prefetch exclude each other");
	if (d->lend.on_demand && (d->read_only || d->stream_wanted))
		return complain_usage("--hand-over is for disks that are written, without --stream and --prefetch");
	if (!d->export.socket_path)
		return complain_usage("%s: --vhost-user SOCKET is needed", d->file);
	return 0;
}

/* Gives the disk its number as a name, if it has none, and sees to it that no other has the same. */
static int name_disk(struct serve *s, struct serve_disk *d)
{
	if (!d->name && asprintf(&d->name, "%u", s->nr_disks) < 0) {
		d->name = NULL;
		complain("out of memory");
		return 1;
	}
	for (unsigned i = 0; i < s->nr_disks; i++) {
		if (!strcmp(s->disk[i].name, d->name))
			return complain_usage("--name: two disks are called '%s'", d->name);
	}
	return 0;
}

/*
 * What is not said about spinning. A queue that spins takes a processor from nobody only if there is one for whoever sends it
 * requests as well: with fewer, the guest would wait for the processor that looks for its requests.
 */
static void default_polling(struct serve *s)
{
	unsigned queues = 0, cpus = 1;
	cpu_set_t set;

	for (unsigned i = 0; i < s->nr_disks; i++)
		queues += s->disk[i].export.nr_queues;
	if (sched_getaffinity(0, sizeof(set), &set) == 0)
		cpus = (unsigned)CPU_COUNT(&set);
	for (unsigned i = 0; i < s->nr_disks && queues * 2 <= cpus; i++) {
		if (s->disk[i].poll_given)
			continue;
		s->disk[i].poll_adaptive = true;
		s->disk[i].poll_us = POLL_AUTO_US;
	}
}

int serve_parse(int argc, char **argv, struct serve *s)
{
	int start = 0;

	for (int i = 1; i <= argc; i++) {
		struct serve_disk *d = &s->disk[s->nr_disks];
		char *word = argv[start];
		int ret;

		if (i < argc && strcmp(argv[i], "--and") != 0)
			continue;
		if (s->nr_disks == SERVE_DISKS_MAX)
			return complain_usage("more than %d disks", SERVE_DISKS_MAX);
		d->export.nr_queues = 1;
		argv[start] = argv[0]; /* in place of --and: where getopt looks for the program's name */
		ret = parse_group(i - start, argv + start, s, d);
		argv[start] = word;
		if (ret == 0)
			ret = name_disk(s, d);
		if (ret)
			return ret;
		s->nr_disks++;
		start = i;
	}
	default_polling(s);
	if (s->takeover && !s->pidfile)
		return complain_usage("--takeover needs --pidfile, which names the process to take over from");
	return 0;
}
