/* SPDX-License-Identifier: MIT */
/*
 * vu_util.c - error texts and the clock of the vhost-user front end
 *
 * Owns:    nothing.
 * Assumes: nothing.
 * Never:   prints or exits.
 */
#include "vu_util.h"

#include <stdarg.h>
#include <stdio.h>
#include <time.h>

int vu_fail(struct vu_err *err, int ret, const char *fmt, ...)
{
	va_list ap;

	if (err) {
		va_start(ap, fmt);
		vsnprintf(err->text, sizeof(err->text), fmt, ap);
		va_end(ap);
	}
	return ret;
}

uint64_t vu_now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

uint64_t vu_deadline_ns(unsigned timeout_ms)
{
	return vu_now_ns() + (uint64_t)timeout_ms * 1000000u;
}

int vu_ms_left(uint64_t deadline_ns)
{
	uint64_t now = vu_now_ns(), ms;

	if (now >= deadline_ns)
		return 0;
	ms = (deadline_ns - now + 999999u) / 1000000u;
	return ms > INT32_MAX ? INT32_MAX : (int)ms;
}
