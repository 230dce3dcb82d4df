/* SPDX-License-Identifier: MIT */
/*
 * qcow2/stock.h - clusters that are counted as used before anybody wants them
 */
#ifndef VARVE_QCOW2_STOCK_H
#define VARVE_QCOW2_STOCK_H

#include "format/qcow2/qcow2.h"

int stock_open(struct qcow2 *q);
void stock_close(struct qcow2 *q);
/* How many clusters are in stock. */
uint64_t stock_nr(const struct qcow2 *q);
/* And of these, from the frontier on, those whose counts are durable. */
uint64_t stock_nr_durable(const struct qcow2 *q);
/* Up to nr clusters at the frontier, which moves; 0: the stock is empty. They are counted, and lie inside the
 * file. */
uint64_t stock_take(struct qcow2 *q, uint64_t nr, uint64_t *ret_cluster);
/* What entries that lead to these fresh clusters must come after; otherwise: some did not come from the
 * stock. */
order_mark stock_mark(const struct qcow2 *q, uint64_t cluster, uint64_t nr, order_mark otherwise);
/* So many fresh clusters were handed out that were not in stock. */
void stock_note_taken(struct qcow2 *q, uint64_t nr);
/* Time for stock_refill(). */
bool stock_low(const struct qcow2 *q);
/* One more batch, if there is room and a refcount block for it. Failing is no reason to fail an allocation.
 */
int stock_refill(struct fiber *f, struct qcow2 *q);
/* Notes where the stock is for whoever comes after us if we are killed (order_note()). */
void stock_note(const struct qcow2 *q);
/* Takes over that of a process that died (q->left), if all of it is as that one left it. */
void stock_adopt(struct fiber *f, struct qcow2 *q);
/*
 * Somebody goes on to take stock, len bytes at least: the file is made so much longer at once. With O_DIRECT each time that
 * its space grows waits for all that is in flight. What is not used is cut off on closing.
 */
void stock_lengthen(struct fiber *f, struct qcow2 *q, uint64_t len);
/* Gives the stock back: under grow, before the frontier is used for something else. */
void stock_drop(struct fiber *f, struct qcow2 *q);
/* Gives it back for good: the image closes. */
void stock_end(struct fiber *f, struct qcow2 *q);
/* After the last flush: the file ends where the frontier is. */
void stock_trim(struct fiber *f, struct qcow2 *q);

#endif
