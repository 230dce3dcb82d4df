# SPDX-License-Identifier: MIT
"""table - the results for people: one table for each group, peers beside varve"""
import os
import statistics
import sys

COLOUR = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
NAME = 34


def paint(code, text):
    return f"\033[{code}m{text}\033[0m" if COLOUR else text


def summary(samples):
    """Medians over the rounds, and the smallest and largest rate."""
    def median(key):
        values = [getattr(s, key) for s in samples if getattr(s, key) is not None]
        return statistics.median(values) if values else None
    rates = [s.iops for s in samples]
    return {"rounds": len(samples), "iops": median("iops"), "iops_min": min(rates), "iops_max": max(rates),
            "cpu_user_ns_per_op": median("cpu_user_ns"), "cpu_sys_ns_per_op": median("cpu_sys_ns"),
            "cpu_ns_per_op": statistics.median(s.cpu_user_ns + s.cpu_sys_ns for s in samples),
            "latency_p50_ns": median("p50_ns"), "latency_p99_ns": median("p99_ns")}


def ratio(ours, theirs):
    return round(ours / theirs, 3) if ours and theirs else None


def _rate(n):
    return f"{n / 1000:,.1f}k"


def _us(ns):
    return "-" if ns is None else f"{ns / 1000:,.0f}"


def _times(r):
    return "" if r is None else f"{r:.2f}x"


def head(machine):
    print(paint("1", f"varve {machine['varve']}: benchmarks"))
    for key, value in machine.items():
        if key != "varve":
            print(f"  {key:<22}{value}")
    print("\nMedians of interleaved rounds. 'x' columns stand in a peer's row: varve's number divided by the peer's (IOPS: above"
          "\n1 varve is faster; CPU: below 1 varve needs less). CPU is user+system time of the program or server for one"
          "\nrequest, in microseconds; calls are its system calls for one request. docs/guide/benchmarks.md says how to read it.")


def group(g):
    print(f"\n{paint('1;36', g['title'])}")
    if g.get("note"):
        print(paint("2", f"  {g['note']}"))
    print(paint("1", f"  {'':{NAME}} {'IOPS':>9} {'min .. max':>19} {'x':>6} {'CPU us':>7} {'usr':>5} {'sys':>6} {'x':>6}"
                     f" {'calls':>6} {'p50 us':>7} {'p99 us':>7}"))
    for row in g["rows"]:
        if "absent" in row:
            print(f"  {row['name']:{NAME}} {row['absent']}")
            continue
        spread = f"{_rate(row['iops_min'])} .. {_rate(row['iops_max'])}"
        calls = f"{row['syscalls_per_op']:.2f}" if row.get("syscalls_per_op") is not None else "-"
        line = (f"  {row['name']:{NAME}} {_rate(row['iops']):>9} {spread:>19} {_times(row.get('iops_ratio')):>6}"
                f" {row['cpu_ns_per_op'] / 1000:7.2f} {row['cpu_user_ns_per_op'] / 1000:5.2f}"
                f" {row['cpu_sys_ns_per_op'] / 1000:6.2f} {_times(row.get('cpu_ratio')):>6}"
                f" {calls:>6} {_us(row['latency_p50_ns']):>7} {_us(row['latency_p99_ns']):>7}")
        print(paint("32", line) if row["against"] is None else line)
    sys.stdout.flush()


def chains(groups):
    """How the rate falls with the depth: each program beside itself at the smallest depth."""
    chain = [g for g in groups if "chain_depth" in g]
    if not chain:
        return
    depth = chain[0]["chain_depth"]
    print(f"\n{paint('1;36', 'What depth costs')}: divided by the same program's number at depth {depth}")
    print(paint("1", f"  {'':{NAME}} {'':5}" + " ".join(f"{g['chain_depth']:>7}" for g in chain)))
    for i, row in enumerate(chain[0]["rows"]):
        for key, word in (("iops", "IOPS"), ("cpu_ns_per_op", "CPU")):
            cells = [ratio(g["rows"][i].get(key), row.get(key)) for g in chain]
            if None not in cells:
                print(f"  {row['name']:{NAME}} {word:5}" + " ".join(f"{c:7.2f}" for c in cells))
