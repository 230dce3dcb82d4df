/* SPDX-License-Identifier: MIT */
/*
 * vhost-user-blk/requests.h - what each message does; between session.c and requests.c only
 */
#ifndef VARVE_VUBLK_REQUESTS_H
#define VARVE_VUBLK_REQUESTS_H

#include "export/vhost-user-blk/session.h"

/* The rings that must be stopped, with no request in flight, while a message is applied. */
enum session_scope { SCOPE_NO_RING, SCOPE_RING, SCOPE_ALL_RINGS };

enum session_scope session_scope(const struct umsg *m);

/* The message is answered with what it asks for, not with an acknowledgement. */
bool session_has_answer(const struct umsg *m);

/* Carries out s->msg. A negative errno, with s->err filled, refuses it; nothing is changed then. */
int session_apply(struct session *s);

/* The answer to s->msg is a number. */
void session_answer_u64(struct session *s, uint64_t value);

#endif
