/* SPDX-License-Identifier: MIT */
/*
 * vhost-user-blk/complaints.c - see complaints.h
 *
 * Owns:    see complaints.h.
 * Assumes: the clocks of all queues are one.
 * Never:   see complaints.h.
 */
#include "export/vhost-user-blk/complaints.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>

#include "base/log.h"
#include "base/math.h"

static bool may_say(struct complaints *c, uint64_t now)
{
	uint64_t until = atomic_load(&c->paid_until_ns), from;

	do {
		from = MAX(until, now);
		if (from - now > (COMPLAINTS_AT_ONCE - 1) * COMPLAINTS_NS)
			return false;
	} while (!atomic_compare_exchange_weak(&c->paid_until_ns, &until, from + COMPLAINTS_NS));
	return true;
}

void complain_about(struct complaints *c, const struct queue *q, const char *fmt, ...)
{
	char line[VARVE_ERROR_MAX];
	va_list ap;

	if (!may_say(c, queue_now(q))) {
		atomic_fetch_add(&c->nr_left_out, 1);
		return;
	}
	va_start(ap, fmt);
	vsnprintf(line, sizeof(line), fmt, ap);
	va_end(ap);
	log_warning("%s: %s", c->name, line);
}

static void tell(struct complaints *c)
{
	unsigned nr = atomic_exchange(&c->nr_left_out, 0);

	if (nr)
		log_warning("%s: %u more lines about its front ends were left out: there are %u at once, and one in %llu seconds",
			    c->name, nr, COMPLAINTS_AT_ONCE, COMPLAINTS_NS / 1000000000);
}

void complaints_look(struct complaints *c)
{
	if (c->telling || !atomic_load(&c->nr_left_out))
		return;
	c->telling = true;
	timer_set(c->control, &c->tell, queue_now(c->control) + COMPLAINTS_NS);
}

static void tell_fired(struct timer *t)
{
	struct complaints *c = container_of(t, struct complaints, tell);

	c->telling = false;
	/* Somebody may have taken the line that came free: the next one, then. */
	if (may_say(c, queue_now(c->control)))
		tell(c);
	complaints_look(c);
}

void complaints_init(struct complaints *c, const char *name, struct queue *control)
{
	*c = (struct complaints){ .name = name, .control = control, .tell = { .fire = tell_fired } };
}

void complaints_end(struct complaints *c)
{
	timer_cancel(c->control, &c->tell);
	c->telling = false;
	tell(c);
}
