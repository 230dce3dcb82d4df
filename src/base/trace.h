/* SPDX-License-Identifier: MIT */
/*
 * base/trace.h - trace points: places that bpftrace, perf or gdb can watch in a running program
 *
 * Each is one no-operation instruction and a note in the library file ("readelf -n"), provider "varve"; without <sys/sdt.h> at
 * build time it is nothing. Arguments are evaluated, so they are cheap ones.
 *
 *     bpftrace -e 'usdt:/usr/lib/libvarve.so.0:varve:order_sync { @[arg1] = count(); }'
 */
#ifndef VARVE_BASE_TRACE_H
#define VARVE_BASE_TRACE_H

#include "config.h"

#ifdef HAVE_SDT
#include <sys/sdt.h>
#define TRACE1(name, a) DTRACE_PROBE1(varve, name, a)
#define TRACE2(name, a, b) DTRACE_PROBE2(varve, name, a, b)
#define TRACE3(name, a, b, c) DTRACE_PROBE3(varve, name, a, b, c)
#else
#define TRACE1(name, a) ((void)(a))
#define TRACE2(name, a, b) ((void)(a), (void)(b))
#define TRACE3(name, a, b, c) ((void)(a), (void)(b), (void)(c))
#endif

#endif
