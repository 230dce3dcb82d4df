/* SPDX-License-Identifier: MIT */
/*
 * patience.h - how long a test waits for what must happen
 *
 * Long enough for the slowest machine when others use it, so that only a hang takes all of it; shorter than the time that a
 * test program has (scripts/run-tests), so that the program can say what did not happen. Never for what must not happen.
 */
#ifndef VARVE_TEST_PATIENCE_H
#define VARVE_TEST_PATIENCE_H

#define PATIENCE_MS 120000

/* For alarm() in programs of which a part could hang: the whole program, a little less than scripts/run-tests gives it. */
#define PROGRAM_S 1100

#endif
