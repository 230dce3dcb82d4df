/* SPDX-License-Identifier: MIT */
/*
 * qcow2/ahead.h - mappings made ahead of a guest that writes on and on
 */
#ifndef VARVE_QCOW2_AHEAD_H
#define VARVE_QCOW2_AHEAD_H

#include "format/qcow2/qcow2.h"

int ahead_open(struct qcow2 *q);
void ahead_close(struct qcow2 *q);
/* Guest clusters that were empty get space: does that go on with the run? */
void ahead_note_alloc(struct qcow2 *q, uint64_t guest_off, uint64_t len);
/* After a link: the next window, if the run is long enough. */
void ahead_make(struct fiber *f, struct qcow2 *q);
/* The image closes, nothing is in flight: what nobody has written becomes empty again. */
void ahead_take_back(struct fiber *f, struct qcow2 *q);
/* After that has been written and settled: the frontier moves back over it. */
void ahead_trim(struct fiber *f, struct qcow2 *q);

#endif
