/* SPDX-License-Identifier: MIT */
/* qed/driver.h - the one name of the QED driver that the driver list needs */
#ifndef VARVE_QED_DRIVER_H
#define VARVE_QED_DRIVER_H

#include "block/node.h"

extern const struct driver driver_qed;

#endif
