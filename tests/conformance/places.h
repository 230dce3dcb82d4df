/* SPDX-License-Identifier: MIT */
/*
 * conformance/places.h - where disks of the tests are: a real file system, a device, memory, faultfs
 */
#ifndef VARVE_TEST_PLACES_H
#define VARVE_TEST_PLACES_H

#include "faultfs.h"

#define RIG_LEN (8u << 20) /* of devices, and the usual length of a file */

enum ground {
	ON_FILE,	 /* in the build folder */
	ON_LOOP,	 /* a loop device over such a file */
	ON_TMPFS,	 /* with space enough */
	ON_SMALL_TMPFS,	 /* with 1 MiB */
	ON_STARVED_LOOP, /* a loop device over a sparse file on a tmpfs of 1 MiB */
	ON_FAULTFS,	 /* the modes of faultfs_start() */
	ON_FAULTFS_SYNC,
	ON_FAULTFS_CACHED,
	GROUNDS
};

/* Setup and teardown of a group of tests; before there are threads. */
int places_make(void **state);
int places_away(void **state);

const char *place_name(enum ground ground);
const char *place_missing(enum ground ground);	   /* why there is no such place here; NULL: it is there */
struct faultfs *place_faultfs(enum ground ground); /* NULL: another kind of place */

/* The path of a disk that is all zeroes, has no space of its own yet, and is len bytes long (devices:
 * RIG_LEN). */
const char *place_disk(enum ground ground, uint64_t len);

#endif
