/* SPDX-License-Identifier: MIT */
/* qcow2/driver.h - the one name of the qcow2 driver that the driver list needs */
#ifndef VARVE_QCOW2_DRIVER_H
#define VARVE_QCOW2_DRIVER_H

#include "block/node.h"

extern const struct driver driver_qcow2;

#endif
