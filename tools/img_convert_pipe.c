/* SPDX-License-Identifier: MIT */
/*
 * tools/img_convert_pipe.c - `varve img convert -O raw SOURCE... -`: into a pipe
 *
 * A raw image is its bytes, so it can be written forward only, once, without a file.
 *
 * Owns:    the buffer. Never: seeks.
 */
#include "img_convert.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define PIECE_LEN (1u << 20)

bool convert_is_pipe(const char *name)
{
	struct stat st;

	if (strcmp(name, "-") == 0)
		return true;
	return stat(name, &st) == 0 && (S_ISFIFO(st.st_mode) || S_ISCHR(st.st_mode) || S_ISSOCK(st.st_mode));
}

int convert_pipe_check(const struct convert_args *a)
{
	const char *name = a->names[a->nr_sources];

	if (strcmp(a->target.format, "raw") != 0)
		return complain_usage("convert: %s: a %s image cannot be written into a pipe by this version; -O raw can", name,
				      a->target.format);
	if (a->no_create || a->options || a->has_backing || a->target.options || a->progress ||
	    (a->convert.flags & ~(VARVE_CONVERT_ALL_DATA | VARVE_CONVERT_OUT_OF_ORDER | VARVE_CONVERT_CANONICAL)) || a->convert.rate)
		return complain_usage("convert: %s: into a pipe goes nothing but bytes: -n, -o, -b, -c, -C, -p, -r and --salvage "
				      "do not go with it", name);
	return 0;
}

static int write_all(int fd, const char *name, const char *buf, size_t len)
{
	while (len) {
		ssize_t n = write(fd, buf, len);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0) {
			complain("convert: %s: %s", name, strerror(errno));
			return 1;
		}
		buf += n;
		len -= (size_t)n;
	}
	return 0;
}

static int send_source(struct varve_image *source, int fd, const char *name, char *buf)
{
	uint64_t len = varve_image_length(source);
	struct varve_error err;

	for (uint64_t off = 0; off < len;) {
		size_t n = (size_t)MIN(PIECE_LEN, len - off);

		if (varve_image_read(source, off, buf, n, &err) < 0) {
			complain("convert: %s", err.message);
			return 1;
		}
		if (write_all(fd, name, buf, n))
			return 1;
		off += n;
	}
	return 0;
}

int convert_pipe(struct varve_image *const *sources, unsigned nr_sources, const char *name)
{
	bool own = strcmp(name, "-") != 0;
	int fd = own ? open(name, O_WRONLY | O_CLOEXEC) : STDOUT_FILENO, ret = 0;
	char *buf = aligned_alloc(4096, PIECE_LEN);

	if (fd < 0 || !buf) {
		complain("convert: %s: %s", name, strerror(fd < 0 ? errno : ENOMEM));
		ret = 1;
	}
	for (unsigned i = 0; !ret && i < nr_sources; i++)
		ret = send_source(sources[i], fd, name, buf);
	if (own && fd >= 0 && close(fd) < 0 && !ret) {
		complain("convert: %s: %s", name, strerror(errno));
		ret = 1;
	}
	free(buf);
	return ret;
}
