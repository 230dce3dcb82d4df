/* SPDX-License-Identifier: MIT */
/*
 * tools/img_stream.c - `varve img stream`: an image stops needing its backing files
 */
#include "img.h"

#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <string.h>

static const char stream_usage[] =
	"stream [-f FORMAT | --image-opts] [-b BASE] [-r RATE] [-t CACHE] [-p] [-q] FILE\n\n"
	"Copies what FILE reads from its backing files into it, and then removes the link to them.\n"
	"  -f, --format FORMAT   do not guess the format\n"
	"      --image-opts      FILE is driver=...,file.filename=...\n"
	"  -b, --base BASE       the name of the image of the chain that stays the backing file\n"
	"  -r, --rate-limit RATE bytes a second at most\n"
	"  -t, --cache CACHE     writeback (default), none, ...\n"
	"  -p, --progress        show how far it is\n"
	"  -q, --quiet           print nothing\n"
	"SIGINT and SIGTERM end it; what was copied stays, and the next run goes on from there.\n";

struct stream_args {
	struct open_args open;
	struct varve_stream_options options;
	bool progress, quiet;
};

static volatile sig_atomic_t ended;

static void on_end(int sig)
{
	(void)sig;
	ended = 1;
}

static int run_stream(struct varve_image *image, const struct stream_args *a)
{
	struct varve_stream_status st;
	struct varve_stream *stream;
	struct varve_error err;
	char text[32];
	int ret;

	if (varve_stream_start(&stream, image, &a->options, &err) < 0) {
		complain("%s", err.message);
		return 1;
	}
	progress_start(a->progress);
	while ((ret = varve_stream_wait(stream, 100, &err)) == -EAGAIN) {
		varve_stream_status(stream, &st);
		progress_update(NULL, st.done, st.total);
		if (ended)
			varve_stream_cancel(stream);
	}
	varve_stream_status(stream, &st);
	varve_stream_free(stream);
	if (ret < 0) {
		complain("%s", err.message);
		return 1;
	}
	progress_end();
	if (!a->quiet)
		printf("%s copied\n", size_text(text, st.copied));
	return finish_stdout();
}

static int stream(const char *name, const struct stream_args *a)
{
	struct sigaction sa = { .sa_handler = on_end };
	struct varve_image *image;
	int ret;

	sigemptyset(&sa.sa_mask);
	sigaction(SIGINT, &sa, NULL);
	sigaction(SIGTERM, &sa, NULL);
	image = open_image(name, &a->open, VARVE_OPEN_WRITABLE, NULL);
	if (!image)
		return 1;
	ret = run_stream(image, a);
	return close_image(image) || ret;
}

int img_stream(int argc, char **argv)
{
	static const struct option longs[] = {
		{ "help", no_argument, NULL, 'h' },	     { "format", required_argument, NULL, 'f' },
		{ "image-opts", no_argument, NULL, LONG_IMAGE_OPTS }, { "base", required_argument, NULL, 'b' },
		{ "rate-limit", required_argument, NULL, 'r' }, { "cache", required_argument, NULL, 't' },
		{ "progress", no_argument, NULL, 'p' },	     { "quiet", no_argument, NULL, 'q' },
		{ NULL, 0, NULL, 0 },
	};
	struct stream_args a = { 0 };
	int c;

	opterr = 0;
	while ((c = getopt_long(argc, argv, ":hf:b:r:t:pq", longs, NULL)) != -1) {
		switch (c) {
		case 'h':
			return img_help(stream_usage);
		case 'f':
			a.open.format = optarg;
			break;
		case LONG_IMAGE_OPTS:
			a.open.image_opts = true;
			break;
		case 'b':
			a.options.base = optarg;
			break;
		case 'r':
			if (parse_size(optarg, &a.options.speed) < 0 || !a.options.speed)
				return complain_usage("stream: the rate '%s' is no size", optarg);
			break;
		case 't':
			a.open.cache = optarg;
			break;
		case 'p':
			a.progress = true;
			break;
		case 'q':
			a.quiet = true;
			break;
		default:
			return complain_option(c, argv);
		}
	}
	if (argc - optind != 1)
		return complain_usage("stream: one file name is needed");
	return stream(argv[optind], &a);
}
