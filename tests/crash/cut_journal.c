/* SPDX-License-Identifier: MIT */
/*
 * crash/cut_journal.c - the lock of a dead process's journal
 *
 * The kernel gives it up for a process that dies. Here the dead and the next live in the same one. In a file of its own
 * because cut.c has a struct sector, too.
 */
#include <string.h>
#include <sys/file.h>

#include "cut.h"
#include "format/qcow2/qcow2.h"
#include "format/qed/qed.h"
#include "order/queue.h"

void cut_give_up_journal(struct node *disk, const char *format)
{
	const struct order *o = strcmp(format, "qcow2") ? ((struct qed *)node_state(disk))->order
							: ((struct qcow2 *)node_state(disk))->order;

	flock(o->journal->fd, LOCK_UN);
}
