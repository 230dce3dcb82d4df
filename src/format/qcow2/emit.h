/* SPDX-License-Identifier: MIT */
/*
 * qcow2/emit.h - a qcow2 image written forward only
 */
#ifndef VARVE_QCOW2_EMIT_H
#define VARVE_QCOW2_EMIT_H

#include "block/emit.h"
#include "format/qcow2/qcow2.h"

extern const struct emit_driver qcow2_emit;

/* create.c: the header that options ask for; the places of its tables are to be filled in. */
int qcow2_emit_header(uint64_t disk_len, struct opts *o, struct qcow2_header *ret, struct varve_error *err);

#endif
