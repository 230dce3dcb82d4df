/* SPDX-License-Identifier: MIT */
/*
 * qcow2/measure.h - how large a new image will be
 */
#ifndef VARVE_QCOW2_MEASURE_H
#define VARVE_QCOW2_MEASURE_H

#include "format/qcow2/qcow2.h"

/* Bytes of header and tables of an image whose every cluster is in use. */
int qcow2_measure_tables(uint64_t disk_len, unsigned cluster_bits, unsigned refcount_order, bool extended_l2,
			 uint64_t *ret_bytes, struct varve_error *err);
/* The driver's measure(): create.c, which knows the options. */
int qcow2_measure(uint64_t len, struct opts *o, struct measure *ret, struct varve_error *err);

#endif
