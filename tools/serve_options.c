/* SPDX-License-Identifier: MIT */
/*
 * tools/serve_options.c - the command line of `varve serve`
 *
 * Each disk has a group of words of its own; groups are parted by --and.
 */
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "complete.h"
#include "serve.h"

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

static const struct option_row options[] = {
	{ VHOST_USER, "vhost-user", ARG_SOCKET, "serve over vhost-user-blk on this unix socket, which is made" },
	{ 'f', "format", ARG_FORMAT, "do not guess the format" },
	{ IMAGE_OPTS, "image-opts", NULL, "DISK is driver=...,file.filename=..." },
	{ 'r', "read-only", NULL, "the disk cannot be written" },
	{ 'C', "copy-on-read", NULL, "keep in DISK what is read from its backing file" },
	{ PREFETCH, "prefetch", NULL, "-C, and fetch the rest of the backing file while the guest fetches nothing" },
	{ STREAM, "stream", "=BASE", "copy everything from the backing files (down to BASE) into DISK, then remove the link to them" },
	{ STREAM_RATE, "stream-rate", "RATE", "bytes a second that --stream or --prefetch copies at most" },
	{ 't', "cache", ARG_CACHE, "writeback (default), none, writethrough, directsync, unsafe" },
	{ 'i', "aio", ARG_ENGINE, "io_uring, native, posix or threads; the best one when not given" },
	{ NUM_QUEUES, "num-queues", "N", "virtqueues, each with a thread of its own (1 .. 64, default 1)" },
	{ CPUS, "cpus", "LIST", "processors for the queues' threads: 0-3, or one list for each queue in turn: 2:3:4-5" },
	{ POLL_US, "poll-us", "TIME", "microseconds, or auto: a thread looks for work so long before it sleeps (0; auto with two processors for each queue)" },
	{ QUEUE_SIZE, "queue-size", "N", "largest ring accepted (power of two, 2 .. 1024, default 1024)" },
	{ IN_ORDER, "in-order", NULL, "offer the guest that requests of a queue end in order (slower; off)" },
	{ SERIAL, "serial", "TEXT", "what the guest sees as the disk's serial number (at most 20 bytes)" },
	{ THROTTLE, "throttle", "LIMITS", "iops-total=500,bps-read=10M,...: requests and bytes a second at most" },
	{ NAME, "name", "NAME", "what the disk is called on the control socket (default: its number, from 0)" },
	{ CONTROL, "control", ARG_SOCKET, "answer commands (one JSON object a line) on this unix socket, which is made" },
	{ STATE_DIR, "state-dir", ARG_DIR, "keep queued metadata there (on a tmpfs; auto: /run/varve), for the next server if this one is killed" },
	{ HAND_OVER, "hand-over", NULL, "the image is open for writing only while the machine runs (live migration)" },
	{ PIDFILE, "pidfile", ARG_FILE, "written when the socket listens, removed at the end" },
	{ TAKEOVER, "takeover", NULL, "first let the process that holds the pidfile hand its disks over and end" },
	{ PRINT_ARGS, "print-qemu-args", NULL, "print the arguments that attach the disk to QEMU, then serve" },
	{ 'v', "verbose", NULL, "also log what is no trouble" },
	{ 'V', "version", NULL, "show which version this is" },
	OPTION_END,
};

const struct command cmd_serve = {
	.name = "",
	.what = "gives disks to virtual machines",
	.args = "DISK [" SERVE_NEXT_DISK " DISK...]",
	.options = options,
	.notes = SERVE_NEXT_DISK " begins another disk, with its own options. Those from --control on, but --hand-over, are for all of them.\n"
		 "SIGTERM and SIGINT stop it: requests in flight are finished, everything is flushed. Exit status 1 when the\n"
		 "flush failed.\n",
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
		json_t *given = json_loads(c + 5, 0, NULL);
		bool named = lend_names_limits(given);

		json_decref(given);
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
static int parse_disk_option(int c, const char *value, struct serve_disk *d)
{
	switch (c) {
	case VHOST_USER:
		d->export.socket_path = value;
		return 0;
	case IMAGE_OPTS:
		d->open.image_opts = true;
		return 0;
	case NUM_QUEUES:
		return parse_count("--num-queues", value, SERVE_QUEUES_MAX, &d->export.nr_queues);
	case QUEUE_SIZE:
		if (parse_count("--queue-size", value, 1024, &d->export.queue_size))
			return 1;
		if (d->export.queue_size < 2 || (d->export.queue_size & (d->export.queue_size - 1)))
			return complain_usage("--queue-size: %u is not a power of two of 2 .. 1024",
					      d->export.queue_size);
		return 0;
	case IN_ORDER:
		d->export.in_order = true;
		return 0;
	case SERIAL:
		if (strlen(value) > 20)
			return complain_usage("--serial: '%s' is longer than 20 bytes", value);
		d->export.serial = value;
		return 0;
	case STREAM:
		d->stream_wanted = d->stream_given = true;
		d->stream_options.base = value;
		return 0;
	case STREAM_RATE:
		if (parse_size(value, &d->stream_options.speed) < 0 || !d->stream_options.speed)
			return complain_usage("--stream-rate: '%s' is no size", value);
		return 0;
	case PREFETCH:
		d->prefetch = d->stream_wanted = d->open.copy_on_read = true;
		d->stream_options.flags = VARVE_STREAM_KEEP_LINK | VARVE_STREAM_IDLE;
		return 0;
	case HAND_OVER:
		d->lend.on_demand = true;
		return 0;
	case CPUS:
		d->cpus = value;
		return 0;
	case POLL_US:
		d->poll_given = true;
		d->poll_adaptive = !strcmp(value, "auto");
		if (d->poll_adaptive)
			d->poll_us = POLL_AUTO_US;
		else if (parse_unsigned(value, 1000000, &d->poll_us) < 0)
			return complain_usage("--poll-us: '%s' is neither 'auto' nor microseconds, 0 .. 1000000", value);
		return 0;
	case THROTTLE:
		d->lend.own_limits = true;
		return add_limits(d, value);
	case NAME:
		free(d->name);
		d->name = strdup(value);
		return !d->name;
	case 'f':
		d->open.format = value;
		return 0;
	case 'r':
		d->read_only = true;
		return 0;
	case 'C':
		d->open.copy_on_read = true;
		return 0;
	case 't':
		d->open.cache = value;
		return 0;
	default:
		d->open.aio = value;
		return 0;
	}
}

/* The words between argv[0] and the end, or `--and`: one disk. 0, 1 (failed, told), -1: done (help, version). */
static int parse_group(int argc, char **argv, struct serve *s, struct serve_disk *d)
{
	struct parse p;
	int c;

	parse_start(&p, &cmd_serve, argc, argv);
	while ((c = parse_next(&p)) > 0) {
		switch (c) {
		case 'V':
			print_version("varve serve");
			return -1;
		case 'v':
			s->verbose = true;
			break;
		case PIDFILE:
			s->pidfile = p.value;
			break;
		case STATE_DIR:
			s->state_dir = state_directory(p.value);
			if (!s->state_dir)
				return 1;
			break;
		case CONTROL:
			s->control_path = p.value;
			break;
		case TAKEOVER:
			s->takeover = true;
			break;
		case PRINT_ARGS:
			s->print_args = true;
			break;
		default:
			if (parse_disk_option(c, p.value, d))
				return 1;
			break;
		}
	}
	if (c < 0)
		return p.status ? p.status : -1;
	if (p.nr_args != 1)
		return complain_usage(s->nr_disks ? "one disk is needed behind each --and" : "one disk is needed");
	d->file = p.args[0];
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

		if (i < argc && strcmp(argv[i], SERVE_NEXT_DISK) != 0)
			continue;
		if (s->nr_disks == SERVE_DISKS_MAX)
			return complain_usage("more than %d disks", SERVE_DISKS_MAX);
		d->export.nr_queues = 1;
		argv[start] = argv[0]; /* in place of --and: where the parser expects the program's name */
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
