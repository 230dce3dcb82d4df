/* SPDX-License-Identifier: MIT */
/*
 * vhost-user-blk/strange.h - descriptors that can make whoever touches them wait
 *
 * A front end sends descriptors. Looking at one of a file system in user space (fstat), mapping it, or only closing it asks the
 * program that serves it, which may be the front end's and never answer; a terminal or a network connection may have us wait
 * when it is closed. The control thread, which all disks share, does none of that: such a descriptor is closed by a thread of
 * its own, and as long as that waits the disk that it came for accepts nobody else, so that they cannot pile up.
 *
 * Owns:    the threads that close.
 * Assumes: what no front end has a use for here: memory files, eventfds, pipes and unix sockets are not strange.
 * Never:   waits.
 */
#ifndef VARVE_VUBLK_STRANGE_H
#define VARVE_VUBLK_STRANGE_H

#include <stdbool.h>

/* How many descriptors of one disk are still being closed. */
struct strange_debt;

struct strange_debt *strange_debt_new(void); /* NULL: no memory */
void strange_debt_free(struct strange_debt *d); /* those that still wait keep it alive; takes NULL */
bool strange_debt_is_open(const struct strange_debt *d);

bool fd_is_strange(int fd);
void fd_close_strange(int fd, struct strange_debt *d); /* d may be NULL */

#endif
