/* SPDX-License-Identifier: MIT */
/*
 * tools/serve.c - `varve serve`: a disk for virtual machines, over vhost-user-blk
 *
 * The main thread only waits for a signal to stop. A control queue runs the socket; one queue with a thread of its
 * own runs each virtqueue, the first of them is the image's home.
 *
 * Never:   prints on stdout unless asked to; exits before what was acknowledged is flushed.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common.h"

static const char serve_help[] =
	"DISK --vhost-user SOCKET [OPTION]...\n\n"
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
	"      --queue-size N       largest ring accepted (power of two, 2 .. 1024, default 1024)\n"
	"      --serial TEXT        what the guest sees as the disk's serial number (at most 20 bytes)\n"
	"      --pidfile FILE       written when the socket listens, removed at the end\n"
	"      --print-qemu-args    print the arguments that attach the disk to QEMU, then serve\n"
	"  -v, --verbose            also log what is no trouble\n"
	"SIGTERM and SIGINT stop it: requests in flight are finished, everything is flushed. Exit status 1 when the\n"
	"flush failed.\n";

#define NR_QUEUES_MAX 64

struct serve {
	/* options */
	struct open_args open;
	struct varve_vhost_user_blk_options export;
	const char *disk, *pidfile;
	bool read_only, print_args;
	struct varve_stream_options stream_options;
	bool stream_wanted, stream_given, prefetch;

	/* what was started, in this order */
	struct varve_queue *control;
	struct varve_queue *queues[NR_QUEUES_MAX];
	struct varve_image *image;
	struct varve_stream *stream;
	struct varve_export *exp;
	bool has_pidfile;
};

/* Set before any thread of the library exists. */
static bool verbose;

static void log_to_stderr(void *user_data, enum varve_log_level level, const char *line)
{
	static const char *const names[] = { "error: ", "warning: ", "", "" };

	(void)user_data;
	if (level <= VARVE_LOG_WARNING || (verbose && level <= VARVE_LOG_INFO))
		complain("%s%s", names[level], line);
}

/* ---- options ---- */

enum { VHOST_USER = 256, IMAGE_OPTS, NUM_QUEUES, QUEUE_SIZE, SERIAL, PIDFILE, PRINT_ARGS, STREAM, STREAM_RATE, PREFETCH };

static int parse_count(const char *option, const char *text, unsigned max, unsigned *ret)
{
	if (parse_unsigned(text, max, ret) < 0 || *ret == 0)
		return complain_usage("%s: '%s' is not a number of 1 .. %u", option, text, max);
	return 0;
}

static int parse_long(int c, struct serve *s)
{
	switch (c) {
	case VHOST_USER:
		s->export.socket_path = optarg;
		return 0;
	case IMAGE_OPTS:
		s->open.image_opts = true;
		return 0;
	case NUM_QUEUES:
		return parse_count("--num-queues", optarg, NR_QUEUES_MAX, &s->export.nr_queues);
	case QUEUE_SIZE:
		if (parse_count("--queue-size", optarg, 1024, &s->export.queue_size))
			return 1;
		if (s->export.queue_size < 2 || (s->export.queue_size & (s->export.queue_size - 1)))
			return complain_usage("--queue-size: %u is not a power of two of 2 .. 1024",
					      s->export.queue_size);
		return 0;
	case SERIAL:
		if (strlen(optarg) > 20)
			return complain_usage("--serial: '%s' is longer than 20 bytes", optarg);
		s->export.serial = optarg;
		return 0;
	case STREAM:
		s->stream_wanted = s->stream_given = true;
		s->stream_options.base = optarg;
		return 0;
	case STREAM_RATE:
		if (parse_size(optarg, &s->stream_options.speed) < 0 || !s->stream_options.speed)
			return complain_usage("--stream-rate: '%s' is no size", optarg);
		return 0;
	case PREFETCH:
		s->prefetch = s->stream_wanted = s->open.copy_on_read = true;
		s->stream_options.flags = VARVE_STREAM_KEEP_LINK | VARVE_STREAM_IDLE;
		return 0;
	case PIDFILE:
		s->pidfile = optarg;
		return 0;
	default:
		s->print_args = true;
		return 0;
	}
}

/* 0, 1 (failed, told), -1: done (help, version). */
static int parse(int argc, char **argv, struct serve *s)
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
		{ "serial", required_argument, NULL, SERIAL },
		{ "pidfile", required_argument, NULL, PIDFILE },
		{ "print-qemu-args", no_argument, NULL, PRINT_ARGS },
		{ "copy-on-read", no_argument, NULL, 'C' },
		{ "stream", optional_argument, NULL, STREAM },
		{ "stream-rate", required_argument, NULL, STREAM_RATE },
		{ "prefetch", no_argument, NULL, PREFETCH },
		{ "verbose", no_argument, NULL, 'v' },
		{ NULL, 0, NULL, 0 },
	};
	int c;

	opterr = 0;
	while ((c = getopt_long(argc, argv, ":hVf:rCt:i:v", longs, NULL)) != -1) {
		switch (c) {
		case 'h':
			printf("Usage: %s %s", prog, serve_help);
			return -1;
		case 'V':
			print_version("varve serve");
			return -1;
		case 'f':
			s->open.format = optarg;
			break;
		case 'r':
			s->read_only = true;
			break;
		case 'C':
			s->open.copy_on_read = true;
			break;
		case 't':
			s->open.cache = optarg;
			break;
		case 'i':
			s->open.aio = optarg;
			break;
		case 'v':
			verbose = true;
			break;
		case '?':
		case ':':
			return complain_option(c, argv);
		default:
			if (parse_long(c, s))
				return 1;
			break;
		}
	}
	if (argc - optind != 1)
		return complain_usage("one disk is needed");
	s->disk = argv[optind];
	if (s->prefetch && s->stream_given)
		return complain_usage("--stream and --prefetch exclude each other");
	if (!s->export.socket_path)
		return complain_usage("--vhost-user SOCKET is needed");
	return 0;
}

/* ---- starting and stopping ---- */

static int start_queues(struct serve *s)
{
	struct varve_queue_options qo = { .flags = VARVE_QUEUE_THREAD, .name = "varve-control" };
	struct varve_error err;
	char name[24];

	if (varve_queue_new(&s->control, &qo, &err) < 0) {
		complain("%s", err.message);
		return 1;
	}
	qo.name = name;
	for (unsigned i = 0; i < s->export.nr_queues; i++) {
		snprintf(name, sizeof(name), "varve-vq%u", i);
		if (varve_queue_new(&s->queues[i], &qo, &err) < 0) {
			complain("%s", err.message);
			return 1;
		}
	}
	return 0;
}

static int write_pidfile(struct serve *s)
{
	FILE *f = fopen(s->pidfile, "we");
	int failed;

	if (!f) {
		complain("%s: %s", s->pidfile, strerror(errno));
		return 1;
	}
	s->has_pidfile = true;
	failed = fprintf(f, "%ld\n", (long)getpid()) < 0;
	failed |= fclose(f) != 0;
	if (failed)
		complain("%s: %s", s->pidfile, strerror(errno));
	return failed;
}

/* An argument of QEMU's: commas in values are written twice, and the shell must not touch it. */
static void print_quoted(const char *value)
{
	for (; *value; value++) {
		if (*value == ',')
			fputs(",,", stdout);
		else if (*value == '\'')
			fputs("'\\''", stdout);
		else
			putchar(*value);
	}
}

static int print_qemu_args(const struct serve *s)
{
	printf("-m 1G -object memory-backend-memfd,id=varve-mem,size=1G,share=on -machine memory-backend=varve-mem "
	       "-chardev 'socket,id=varve0,path=");
	print_quoted(s->export.socket_path);
	printf("' -device vhost-user-blk-pci,chardev=varve0,num-queues=%u\n", s->export.nr_queues);
	return finish_stdout();
}

static int start(struct serve *s)
{
	struct varve_error err;

	if (start_queues(s))
		return 1;
	s->image = open_image(s->disk, &s->open, s->read_only ? 0 : VARVE_OPEN_WRITABLE, s->queues[0]);
	if (!s->image)
		return 1;
	s->export.writable = !s->read_only;
	if (varve_export_vhost_user_blk(&s->exp, s->image, &s->export, s->control, s->queues, s->export.nr_queues,
					&err) < 0) {
		complain("%s", err.message);
		return 1;
	}
	if (s->stream_wanted && varve_stream_start(&s->stream, s->image, &s->stream_options, &err) < 0) {
		complain("%s", err.message);
		return 1;
	}
	if (s->pidfile && write_pidfile(s))
		return 1;
	return s->print_args ? print_qemu_args(s) : 0;
}

/* Takes down whatever was started. 1: data that was acknowledged may be lost. */
static int stop(struct serve *s)
{
	struct varve_error err;
	int failed = 0;

	if (varve_export_stop(s->exp, &err) < 0) {
		complain("%s", err.message);
		failed = 1;
	}
	varve_stream_free(s->stream); /* what it has not copied yet, the next one will */
	if (close_image(s->image))
		failed = 1;
	for (unsigned i = 0; i < s->export.nr_queues; i++)
		varve_queue_free(s->queues[i]);
	varve_queue_free(s->control);
	if (s->has_pidfile)
		unlink(s->pidfile);
	return failed;
}

int serve_main(int argc, char **argv)
{
	struct serve s = { .export = { .nr_queues = 1 } };
	sigset_t ends;
	int ret, sig;

	ret = parse(argc, argv, &s);
	if (ret)
		return ret < 0 ? finish_stdout() : ret;
	/* Blocked in every thread that is made from here on; this one waits for them. */
	sigemptyset(&ends);
	sigaddset(&ends, SIGTERM);
	sigaddset(&ends, SIGINT);
	sigaddset(&ends, SIGHUP);
	pthread_sigmask(SIG_BLOCK, &ends, NULL);
	varve_set_log(log_to_stderr, NULL);
	ret = start(&s);
	if (ret == 0)
		sigwait(&ends, &sig);
	return stop(&s) || ret;
}
