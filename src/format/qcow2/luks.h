/* SPDX-License-Identifier: MIT */
/*
 * qcow2/luks.h - the LUKS header inside an image: where it is, and what it says about itself
 */
#ifndef VARVE_QCOW2_LUKS_H
#define VARVE_QCOW2_LUKS_H

#include <jansson.h>

#include "format/qcow2/qcow2.h"

/* From the header extension. *ret_len 0: the image has none. */
int luks_place(struct fiber *f, struct node *file, const struct qcow2_header *h, uint64_t *ret_off, uint64_t *ret_len,
	       struct varve_error *err);

/* Adds what the LUKS header says, no secrets, to a JSON object. Nothing is added if there is no readable header. */
int luks_info(struct fiber *f, struct node *file, const struct qcow2_header *h, json_t *encrypt, struct varve_error *err);

#endif
