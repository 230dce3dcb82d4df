/* SPDX-License-Identifier: MIT */
/*
 * vhost-user-blk/requests.h - what each message does; between session.c and requests.c only
 */
#ifndef VARVE_VUBLK_REQUESTS_H
#define VARVE_VUBLK_REQUESTS_H

#include "export/vhost-user-blk/session.h"

/* The rings that must be stopped, with no request in flight, while a message is applied. */
enum session_scope { SCOPE_NO_RING, SCOPE_RING, SCOPE_ALL_RINGS };

enum session_scope session_scope(const struct session *s);

/* The message is answered with what it asks for, not with an acknowledgement. */
bool session_has_answer(const struct umsg *m);

/* Carries out s->msg. A negative errno, with s->err filled, refuses it; nothing is changed then. */
int session_apply(struct session *s);

/* As at the beginning of the session, except for what the front end has told of itself and of its memory. */
int session_reset_device(struct session *s);

/* Whether the guest sees a write cache; noted where a back end after us finds it. */
void session_set_writeback(struct session *s, bool writeback);

/* The answer to s->msg. */
void session_answer(struct session *s, const void *payload, uint32_t len);

/* session.c: says in the log what was refused, and why (s->err). */
void session_refused(struct session *s);

/* ---- migrate.c: what helps a virtual machine, or this program, to move or to come back ---- */

int session_set_log_base(struct session *s);
int session_set_log_fd(struct session *s);
int session_get_inflight_fd(struct session *s);
int session_set_inflight_fd(struct session *s);
int session_set_device_state_fd(struct session *s);
int session_check_device_state(struct session *s);
/* The session ends: closes what those have opened. */
void session_forget_transfer(struct session *s);

/* The answer to s->msg is a number. */
void session_answer_u64(struct session *s, uint64_t value);

#endif
