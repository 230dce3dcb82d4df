/* SPDX-License-Identifier: MIT */
/*
 * api_test.h - what the tests of the public interface share: files in a folder of their own, images in them
 */
#ifndef VARVE_API_TEST_H
#define VARVE_API_TEST_H

#include <errno.h>
#include <limits.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>
#include <varve/varve.h>

#include "../../lib/patience.h"

#define MIB (1ull << 20)

static char test_dir[64];

/* A path in the test's folder; good until the next but three. */
static inline const char *path_of(const char *name)
{
	static char paths[4][PATH_MAX];
	static unsigned turn;
	char *p = paths[turn++ % 4];

	snprintf(p, PATH_MAX, "%s/%s", test_dir, name);
	return p;
}

static inline int dir_make(void **state)
{
	(void)state;
	snprintf(test_dir, sizeof(test_dir), "/tmp/varve-api-XXXXXX");
	return mkdtemp(test_dir) ? 0 : -1;
}

static inline int dir_remove(void **state)
{
	char command[128];

	(void)state;
	snprintf(command, sizeof(command), "rm -rf '%s'", test_dir);
	return system(command);
}

#define expect_ok(call) expect_ok_at((call), &err, #call, __LINE__)

static inline void expect_ok_at(int ret, const struct varve_error *err, const char *what, int line)
{
	if (ret < 0)
		fail_msg("line %d: %s: %d: %s", line, what, ret, err->message);
}

static inline void make_image(const char *name, const char *format, uint64_t len, const char *options)
{
	struct varve_error err;

	expect_ok(varve_image_create(path_of(name), format, len, options, 0, NULL, NULL, &err));
}

static inline struct varve_image *open_image(const char *name, unsigned flags, struct varve_queue *home)
{
	struct varve_open_options oo = { .flags = flags, .home = home };
	struct varve_image *image;
	struct varve_error err;

	expect_ok(varve_image_open(&image, path_of(name), &oo, &err));
	return image;
}

/* For what this machine cannot do. Not cmocka's skip(), whose output the test runner takes for a failure. */
#define leave_out(reason)                                       \
	do {                                                    \
		print_message("# left out: %s\n", (reason)); \
		return;                                         \
	} while (0)

#endif
