/* SPDX-License-Identifier: MIT */
/*
 * tools/vmstate.c - `varve vmstate`: the state of a virtual machine goes from standard input into a snapshot, or back out
 *
 * The stream is what the machine's monitor makes of itself (a migration stream, for QEMU); here it is bytes.
 */
#include <errno.h>
#include <getopt.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "common.h"

#define CHUNK (1u << 20)

static const char vmstate_usage[] =
	"Usage: %s save [OPTION]... IMAGE NAME < STATE\n"
	"       %s load [OPTION]... IMAGE SNAPSHOT > STATE\n\n"
	"save makes an internal snapshot of IMAGE, called NAME, with what standard input gives as the state of the virtual\n"
	"machine; the snapshot is there when all of it has arrived, or not at all. load writes the state of a snapshot, named\n"
	"by name or id, to standard output.\n"
	"  -f, --format FORMAT  do not guess the format\n"
	"      --image-opts     IMAGE is driver=...,file.filename=...\n"
	"  -t, --cache CACHE    writeback (default), none, ...\n"
	"  -i, --aio ENGINE     native, io_uring, threads, ...\n"
	"  -d, --depth N        buffers of 1 MiB on their way to or from the disk, 2 .. 8; 4 is the default\n"
	"      --now            save: the disk as it is now, not when the stream ends\n"
	"      --expect SIZE    save: a stream of another length is cut off, and makes no snapshot\n"
	"  -p, --progress       show on stderr how far it is\n";

struct args {
	struct open_args open;
	unsigned depth;
	bool now, progress, expects;
	uint64_t expect;
	struct timespec told;
};

enum { LONG_OPTS = 256, LONG_NOW, LONG_EXPECT };

/* At most ten lines a second, over each other. total 0: not known. */
static void tell(struct args *a, uint64_t done, uint64_t total, bool last)
{
	struct timespec now;
	char text[32];

	if (!a->progress)
		return;
	clock_gettime(CLOCK_MONOTONIC, &now);
	if (!last && (now.tv_sec - a->told.tv_sec) * 1000 + (now.tv_nsec - a->told.tv_nsec) / 1000000 < 100)
		return;
	a->told = now;
	if (total)
		fprintf(stderr, "    (%3.2f/100%%)\r", 100.0 * (double)done / (double)total);
	else
		fprintf(stderr, "    %-16s\r", size_text(text, done));
	if (last)
		fputc('\n', stderr);
}

static uint64_t stdin_len(void)
{
	struct stat st;

	return fstat(STDIN_FILENO, &st) == 0 && S_ISREG(st.st_mode) && st.st_size > 0 ? (uint64_t)st.st_size : 0;
}

/* Standard input to its end. */
static int pump_in(struct varve_vmstate_writer *w, struct args *a, uint8_t *buf)
{
	uint64_t total = a->expects ? a->expect : stdin_len();
	struct varve_error err;

	for (;;) {
		ssize_t n = read(STDIN_FILENO, buf, CHUNK);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0) {
			complain("standard input: %s", strerror(errno));
			return 1;
		}
		if (n == 0)
			break;
		if (varve_vmstate_write(w, buf, (size_t)n, &err) < 0) {
			complain("%s", err.message);
			return 1;
		}
		tell(a, varve_vmstate_write_position(w), total, false);
	}
	if (a->expects && varve_vmstate_write_position(w) != a->expect) {
		complain("the stream has %llu bytes, not %llu: cut off? No snapshot is made",
			 (unsigned long long)varve_vmstate_write_position(w), (unsigned long long)a->expect);
		return 1;
	}
	tell(a, varve_vmstate_write_position(w), total, true);
	return 0;
}

static int save(struct varve_image *image, const char *name, struct args *a, uint8_t *buf)
{
	struct varve_snapshot_options so = { .name = name, .flags = a->now ? VARVE_SNAPSHOT_NOW : 0 };
	struct varve_vmstate_writer *w;
	struct varve_error err;

	if (varve_vmstate_write_open(&w, image, &so, a->depth, &err) < 0) {
		complain("%s", err.message);
		return 1;
	}
	if (pump_in(w, a, buf)) {
		varve_vmstate_write_abort(w);
		return 1;
	}
	if (varve_vmstate_write_close(w, NULL, &err) < 0) {
		complain("%s", err.message);
		return 1;
	}
	return 0;
}

static int write_out(const void *bytes, size_t len)
{
	const uint8_t *buf = bytes;

	while (len) {
		ssize_t n = write(STDOUT_FILENO, buf, len);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0) {
			complain("standard output: %s", strerror(errno));
			return 1;
		}
		buf += n;
		len -= (size_t)n;
	}
	return 0;
}

static int pump_out(struct varve_vmstate_reader *r, uint64_t total, struct args *a)
{
	struct varve_error err;
	const void *buf;
	int64_t n;

	for (uint64_t pos = 0; pos < total; pos += (uint64_t)n) {
		n = varve_vmstate_read_ref(r, pos, &buf, &err);
		if (n < 0) {
			complain("%s", err.message);
			return 1;
		}
		if (write_out(buf, (size_t)n))
			return 1;
		tell(a, pos + (uint64_t)n, total, false);
	}
	tell(a, total, total, true);
	return 0;
}

/* By name, or else by id. */
static int load(struct varve_image *image, const char *what, struct args *a)
{
	struct varve_vmstate_reader *r;
	struct varve_error err, by_id;
	uint64_t total;
	int ret = varve_vmstate_read_open(&r, image, NULL, what, a->depth, &total, &err);

	if (ret == -ENOENT)
		ret = varve_vmstate_read_open(&r, image, what, NULL, a->depth, &total, &by_id);
	if (ret < 0) {
		complain("%s", ret == -ENOENT ? err.message : ret == err.code ? err.message : by_id.message);
		return 1;
	}
	ret = pump_out(r, total, a);
	varve_vmstate_read_close(r);
	return ret;
}

static int run(bool saves, const char *file, const char *name, struct args *a)
{
	uint8_t *buf = aligned_alloc(4096, CHUNK);
	struct varve_image *image = NULL;
	int ret = 1;

	if (buf)
		image = open_image(file, &a->open, saves ? VARVE_OPEN_WRITABLE : VARVE_OPEN_NO_BACKING, NULL);
	else
		complain("out of memory");
	if (image) {
		ret = saves ? save(image, name, a, buf) : load(image, name, a);
		ret = close_image_after(image, ret);
	}
	free(buf);
	return ret;
}

static int parse_options(int argc, char **argv, struct args *a, bool saves)
{
	static const struct option longs[] = {
		{ "help", no_argument, NULL, 'h' },	   { "format", required_argument, NULL, 'f' },
		{ "image-opts", no_argument, NULL, LONG_OPTS }, { "cache", required_argument, NULL, 't' },
		{ "aio", required_argument, NULL, 'i' },   { "depth", required_argument, NULL, 'd' },
		{ "now", no_argument, NULL, LONG_NOW },	   { "expect", required_argument, NULL, LONG_EXPECT },
		{ "progress", no_argument, NULL, 'p' },	   { NULL, 0, NULL, 0 },
	};
	int c;

	opterr = 0;
	while ((c = getopt_long(argc, argv, ":hf:t:i:d:p", longs, NULL)) != -1) {
		switch (c) {
		case 'h':
			printf(vmstate_usage, prog, prog);
			return -1;
		case 'f':
			a->open.format = optarg;
			break;
		case LONG_OPTS:
			a->open.image_opts = true;
			break;
		case 't':
			a->open.cache = optarg;
			break;
		case 'i':
			a->open.aio = optarg;
			break;
		case 'd':
			if (parse_unsigned(optarg, VARVE_VMSTATE_DEPTH_MAX, &a->depth) < 0 || a->depth < 2)
				return complain_usage("--depth: '%s' is not 2 .. %d", optarg, VARVE_VMSTATE_DEPTH_MAX);
			break;
		case LONG_NOW:
		case LONG_EXPECT:
			if (!saves)
				return complain_usage("load: --now and --expect are for save");
			if (c == LONG_NOW)
				a->now = true;
			else if (parse_size(optarg, &a->expect) < 0)
				return complain_usage("--expect: '%s' is no size", optarg);
			a->expects |= c == LONG_EXPECT;
			break;
		case 'p':
			a->progress = true;
			break;
		default:
			return complain_option(c, argv);
		}
	}
	return 0;
}

int vmstate_main(int argc, char **argv)
{
	struct args a = { 0 };
	bool saves;
	int ret;

	if (argc >= 2 && (strcmp(argv[1], "-h") == 0 || strcmp(argv[1], "--help") == 0)) {
		printf(vmstate_usage, prog, prog);
		return finish_stdout();
	}
	if (argc < 2 || (strcmp(argv[1], "save") != 0 && strcmp(argv[1], "load") != 0))
		return complain_usage("say save or load");
	saves = strcmp(argv[1], "save") == 0;
	ret = parse_options(argc - 1, argv + 1, &a, saves);
	if (ret)
		return ret < 0 ? finish_stdout() : ret;
	if (argc - 1 - optind != 2)
		return complain_usage("%s: an image and the name of a snapshot are needed", saves ? "save" : "load");
	return run(saves, argv[optind + 1], argv[optind + 2], &a);
}
