/* SPDX-License-Identifier: MIT */
/*
 * format/raw.h - the raw format, for the driver list and for tests
 */
#ifndef VARVE_FORMAT_RAW_H
#define VARVE_FORMAT_RAW_H

#include "block/node.h"

extern const struct driver driver_raw;
extern const struct emit_driver raw_emit; /* raw_emit.c */

#endif
