/* SPDX-License-Identifier: MIT */
/*
 * faultfs.h - a file system with one file, which fails, falls short and waits as it is told
 *
 * The program faultfs serves it (faultfs.c): "disk" is the file, in memory; "stable" shows what of it the
 * medium would hold after a loss of power: what was synced, and what was written with O_DSYNC. This is the
 * side of the tests: it starts the program, mounts, and gives orders. Orders are answered before the call
 * returns.
 *
 * Needs root and the kernel's FUSE. Call faultfs_own_mounts() once, before there are threads: from then on no
 * mount outlives the process.
 */
#ifndef VARVE_TEST_FAULTFS_H
#define VARVE_TEST_FAULTFS_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#define FAULTFS_LEN_MAX (64u << 20) /* bytes that the file can have */

struct faultfs {
	char dir[256], disk[300], stable[300];
	int orders; /* a socket */
	pid_t pid;
};

/* The process and its children see and make mounts of their own from now on. False: not allowed. */
bool faultfs_own_mounts(void);

/*
 * Mounts on dir, which exists. False: this machine cannot (and *ret_why says so). mode:
 *   "async"   each read and write is passed on as it comes; with asynchronous I/O many are under way at once.
 * The kernel makes EIO of a short asynchronous write, therefore there is "sync"    the same, but the kernel
 * waits for each within the system call, and returns how far it came "cached"  reads and writes go through
 * the page cache, and reach the file system when the kernel writes back
 */
bool faultfs_start(struct faultfs *fs, const char *dir, const char *mode, const char **ret_why);
void faultfs_stop(struct faultfs *fs);

/*
 * One order; a negative answer aborts. Orders (OP: read, write, fsync, fallocate):
 *   rule OP SKIP TIMES ACTION ARG [OFF LEN]   after SKIP of them, the next TIMES (0: all) that touch the
 * range: error ERRNO      fails short BYTES      transfers so many bytes at most hold 0           is not
 * answered until "release" lose ERRNO       (fsync) fails, and what was not stable is gone from the file
 *   clear           no rule any more
 *   release         what is held is done and answered; the answer is how many
 *   fail ERRNO      the same, but it is not done, and fails
 *   held N          answered as soon as N are held
 *   count OP        how many there have been
 *   cut             loss of power: the file becomes what is stable
 *   resize LEN      the file is as long, all zeroes, all stable; the counts begin anew, no rules
 */
long faultfs_tell(struct faultfs *fs, const char *order, ...) __attribute__((format(printf, 2, 3)));

#endif
