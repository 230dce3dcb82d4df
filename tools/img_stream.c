/* SPDX-License-Identifier: MIT */
/*
 * tools/img_stream.c - `varve img stream`: an image stops needing its backing files
 */
#include "img.h"
#include "stop.h"

#include <errno.h>
#include <string.h>

static const struct option_row options[] = {
	OPT_FORMAT,
	OPT_IMAGE_OPTS,
	{ 'b', "base", ARG_BASE, "the name of the image of the chain that stays the backing file" },
	{ 'r', "rate-limit", "RATE", "bytes a second at most" },
	OPT_CACHE('t'),
	OPT_PROGRESS,
	OPT_OBJECT,
	OPT_QUIET,
	OPTION_END,
};

struct stream_args {
	struct open_args open;
	struct varve_stream_options options;
	bool progress, quiet;
};

static int run_stream(struct varve_image *image, const char *name, const struct stream_args *a)
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
		if (stop_asked())
			varve_stream_cancel(stream);
	}
	varve_stream_status(stream, &st);
	varve_stream_free(stream);
	if (ret == -ECANCELED && stop_asked())
		complain("stream: ended by %s: %s keeps its backing file, and what was copied; the same command does the rest",
			 stop_asked(), name);
	else if (ret < 0)
		complain("%s", err.message);
	if (ret < 0)
		return 1;
	progress_end();
	if (!a->quiet)
		printf("%s copied\n", size_text(text, st.copied));
	end_stdout();
	return 0;
}

static int stream(const char *name, const struct stream_args *a)
{
	struct varve_image *image;
	int ret;

	stop_watch();
	image = open_image(name, &a->open, VARVE_OPEN_WRITABLE, NULL);
	if (!image)
		return 1;
	ret = run_stream(image, name, a);
	return close_image_after(image, ret);
}

static int img_stream(int argc, char **argv)
{
	struct stream_args a = { 0 };
	struct parse p;
	int id, ret = 0;

	parse_start(&p, &cmd_stream, argc, argv);
	while (!ret && (id = parse_next(&p)) > 0) {
		switch (id) {
		case 'b':
			a.options.base = p.value;
			break;
		case 'r':
			if (parse_size(p.value, &a.options.speed) < 0 || !a.options.speed)
				ret = complain_usage("stream: the rate '%s' is no size", p.value);
			break;
		case 'p':
			a.progress = true;
			ret = progress_form(p.value);
			break;
		case 'q':
			a.quiet = true;
			break;
		default:
			ret = open_option(&a.open, id, p.value);
		}
	}
	if (ret || id < 0)
		return ret ? ret : p.status;
	if (p.nr_args != 1)
		return complain_usage("stream: one file name is needed");
	if (a.quiet)
		a.progress = false;
	return stream(p.args[0], &a);
}

const struct command cmd_stream = {
	.name = "stream",
	.run = img_stream,
	.what = "copy what an image reads from its backing files into it",
	.args = "FILE",
	.options = options,
	.notes = "At the end the link to the backing files (above BASE) is removed.\n"
		 "SIGINT, SIGTERM and SIGHUP end it; what was copied stays, and the next run goes on from there.\n",
};
