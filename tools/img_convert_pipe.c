/* SPDX-License-Identifier: MIT */
/*
 * tools/img_convert_pipe.c - `varve img convert SOURCE... -`: into a pipe
 *
 * Owns:    the pipe's descriptor, when it has a name.
 * Never:   seeks, or writes a byte before everything that can be known to be wrong is known not to be.
 */
#include "img_convert.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define PIPE_LEN (1 << 20)

bool convert_is_pipe(const char *name)
{
	struct stat st;

	if (strcmp(name, "-") == 0)
		return true;
	return stat(name, &st) == 0 && (S_ISFIFO(st.st_mode) || S_ISCHR(st.st_mode) || S_ISSOCK(st.st_mode));
}

/* Is it where progress would go? */
static bool is_stdout(const char *name)
{
	struct stat st, out;

	return strcmp(name, "-") == 0 || (stat(name, &st) == 0 && fstat(STDOUT_FILENO, &out) == 0 && st.st_dev == out.st_dev &&
					  st.st_ino == out.st_ino);
}

int convert_pipe_check(const struct convert_args *a)
{
	const char *name = a->names[a->nr_sources];

	if (a->no_create)
		return complain_usage("convert: %s: -n is about an image that exists, not a pipe", name);
	if (a->convert.flags & VARVE_CONVERT_OFFLOAD)
		return complain_usage("convert: %s: -C copies between files, not into a pipe", name);
	if (a->progress && is_stdout(name))
		return complain_usage("convert: %s: -p writes to standard output, where the image goes; SIGUSR1 tells on standard error",
				      name);
	return 0;
}

struct sink {
	int fd;
	const char *name;
	int error;
};

static int wait_writable(int fd)
{
	struct pollfd p = { .fd = fd, .events = POLLOUT };

	return poll(&p, 1, -1) < 0 && errno != EINTR ? -errno : 0;
}

static int write_all(void *arg, const void *data, size_t len)
{
	struct sink *s = arg;
	const char *buf = data;

	while (len && !s->error) {
		ssize_t n = write(s->fd, buf, len);

		if (n >= 0) {
			buf += n;
			len -= (size_t)n;
		} else if (errno == EAGAIN) { /* whoever shares the pipe with us wanted it so */
			s->error = wait_writable(s->fd);
		} else if (errno != EINTR) {
			s->error = -errno;
		}
	}
	return s->error;
}

static void progress(void *user_data, uint64_t done, uint64_t total)
{
	(void)user_data;
	progress_update(NULL, done, total);
}

static int send_image(const struct convert_args *a, struct varve_image *const *sources, struct sink *s)
{
	struct varve_convert_options o = a->convert;
	struct varve_error err;
	char *options = a->options;
	int ret;

	if (a->has_backing)
		o.flags |= VARVE_CONVERT_OVER_BACKING;
	o.report = convert_report;
	if (a->target.options) { /* for files they are of the open image */
		options = options_append(options ? strdup(options) : NULL, "", a->target.options, false);
		if (!options) {
			complain("convert: out of memory");
			return 1;
		}
	}
	progress_start(a->progress && !a->quiet);
	ret = varve_convert_forward(a->target.format, options, sources, a->nr_sources, &o, write_all, s, progress,
				    (void *)(uintptr_t)a, &err);
	if (ret < 0 && s->error)
		complain("convert: %s: %s", s->name, strerror(-s->error));
	else if (ret < 0)
		complain("convert: %s", err.message);
	if (options != a->options)
		free(options);
	return ret < 0;
}

int convert_pipe(const struct convert_args *a, struct varve_image *const *sources)
{
	const char *name = a->names[a->nr_sources];
	bool own = strcmp(name, "-") != 0;
	struct sink s = { .fd = own ? open(name, O_WRONLY | O_CLOEXEC) : STDOUT_FILENO, .name = name };
	int ret;

	if (s.fd < 0) {
		complain("convert: %s: %s", name, strerror(errno));
		return 1;
	}
	(void)fcntl(s.fd, F_SETPIPE_SZ, PIPE_LEN); /* fewer changes between the two sides; as it is, it works too */
	ret = send_image(a, sources, &s);
	if (own && close(s.fd) < 0 && !ret) {
		complain("convert: %s: %s", name, strerror(errno));
		ret = 1;
	}
	return ret;
}
