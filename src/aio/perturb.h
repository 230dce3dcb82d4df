/* SPDX-License-Identifier: MIT */
/*
 * aio/perturb.h - fibers that let others go first, where they may wait (meson -Dperturb=true, for tests)
 *
 * What a fiber has looked at, counted or reserved before it waits may be another's when it goes on. Nearly always it need not wait, so
 * that what was forgotten shows once in a thousand runs. In a build with this option, and with VARVE_PERTURB=SEED in the environment, every
 * place that may wait does, one time in five, for so long as the seed says.
 *
 * Assumes: called where the caller must expect that others run. In other builds it is nothing.
 */
#ifndef VARVE_AIO_PERTURB_H
#define VARVE_AIO_PERTURB_H

#include "aio/fiber.h"
#include "config.h"

#ifdef VARVE_PERTURB
void perturb(struct fiber *f);
#else
static inline void perturb(struct fiber *f)
{
	(void)f;
}
#endif

#endif
