/* SPDX-License-Identifier: MIT */
/*
 * unit/format/qcow2/image.h - a qcow2 image in a simulated file: made, damaged byte by byte, examined
 */
#ifndef VARVE_TEST_QCOW2_IMAGE_H
#define VARVE_TEST_QCOW2_IMAGE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include <jansson.h>

#include "format/qcow2/check.h"
#include "format/qcow2/layout.h"
#include "proto/proto.h"

struct image {
	struct queue *q;
	struct sim_file *sim;
	struct aio_file af;
	struct sim_file *data; /* the external data file; NULL: the image was made without one */
	struct aio_file data_af;
	struct varve_error err;		 /* of the last call */
	struct varve_check_result found; /* by image_check() */
	char *lines;			 /* its report */
	size_t lines_len;
	unsigned progress_calls;
	unsigned nr_writes; /* and zeroes and discards, submitted */
	unsigned nr_reads;
	uint64_t fail_nr; /* from this operation on everything fails with -EIO; UINT64_MAX: never */
};

struct image *image_new(void);
void image_free(struct image *im);
/* As image_new(), holding these bytes. */
struct image *image_of(const uint8_t *bytes, uint64_t len);
struct image *image_copy(const struct image *im);

int image_create(struct image *im, uint64_t len, const char *options);
/* As image_create() on a device: the file keeps its length and what is in it. No options but these. */
int image_create_on_device(struct image *im, uint64_t len, unsigned cluster_bits, enum prealloc prealloc);
/* max_pages 0: as the driver does it. */
int image_check(struct image *im, size_t max_pages);
/* *ret: to be json_decref()'d. */
int image_info(struct image *im, json_t **ret);
int image_snapshots(struct image *im, const struct qcow2_header *h, struct qcow2_snapshot **ret, uint64_t *ret_len);

/* The data file, if there is one, below the image's file. */
int image_add_data(struct fiber *f, struct image *im, struct node *leaf, struct varve_error *err);

/* A new image that must be fine. data_file=... among the options: that file is im->data, whatever it is called. */
struct image *image_made(uint64_t len, const char *options);

/* Bytes of the file, big endian. */
uint64_t image_get(struct image *im, uint64_t off, unsigned bytes);
void image_put(struct image *im, uint64_t off, unsigned bytes, uint64_t value);
/* Clusters of the file: n behind its end; returns the host offset of the first. Counted as used with `refcount`. */
uint64_t image_grow(struct image *im, unsigned n, uint64_t refcount);

uint32_t image_cluster_len(struct image *im);
uint64_t image_l1(struct image *im);
/* Where L2 entry `cluster` (of the first table) lies. */
uint64_t image_l2_entry(struct image *im, unsigned cluster);
uint64_t image_refcount(struct image *im, uint64_t host_off);
void image_set_refcount(struct image *im, uint64_t host_off, uint64_t value);

/* The check finds exactly this, however many windows it takes. */
void expect_found(struct image *im, uint64_t corruptions, uint64_t leaks, uint64_t errors);
/* A line of the last report has this in it. */
void expect_line(struct image *im, const char *part);

#endif
