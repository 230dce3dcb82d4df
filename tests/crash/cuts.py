#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""cuts - varve crashtest over images and workloads of many kinds

As a program: VARVE_BUILD=build tests/crash/cuts.py --minutes 60 [--seed N]; ends at the first failure, with its files kept.
"""
import argparse
import concurrent.futures
import json
import os
import pathlib
import random
import subprocess
import sys
import time

# (what it is, options of crashtest, workload)
CASES = [
    ("small clusters", "-o cluster_size=512 -s 3M", "ops=300,depth=8,flush=8,discard=15"),
    ("small clusters, wide counts: the refcount table moves", "-o cluster_size=512,refcount_bits=64 -s 3M",
     "ops=300,depth=8,flush=8,discard=10"),
    ("counts of one bit", "-o cluster_size=512,refcount_bits=1 -s 2M", "ops=250,depth=4,flush=8,zero=10,discard=10"),
    ("counts of two bits", "-o cluster_size=1k,refcount_bits=2 -s 2M", "ops=250,depth=16,flush=8,zero=10,discard=10"),
    ("counts of 32 bits", "-o cluster_size=1k,refcount_bits=32 -s 3M", "ops=250,depth=2,flush=8,discard=10"),
    ("clusters of 64 KiB", "-o cluster_size=64k -s 4M", "ops=200,depth=8,flush=8,discard=10"),
    ("clusters of 2 MiB", "-o cluster_size=2M -s 8M", "ops=60,depth=4,flush=8,zero=10,discard=10"),
    ("lazy refcounts", "-o cluster_size=4k,lazy_refcounts=on -s 3M", "ops=200,depth=8,flush=8,discard=10"),
    ("lazy refcounts, small clusters", "-o cluster_size=512,lazy_refcounts=on,refcount_bits=64 -s 3M",
     "ops=300,depth=8,flush=8,discard=15"),
    ("version 2", "-o cluster_size=4k,compat=0.10 -s 3M", "ops=200,depth=8,flush=8,zero=10,discard=10"),
    ("writethrough", "-o cluster_size=4k -t writethrough -s 2M", "ops=120,depth=4,flush=8,discard=10"),
    ("writethrough, small clusters", "-o cluster_size=512 -t writethrough -s 2M", "ops=100,depth=8,flush=0"),
    ("flush after each", "-o cluster_size=4k -s 2M", "ops=100,depth=1,flush=1,discard=20"),
    ("flush now and then", "-o cluster_size=4k -s 4M", "ops=300,depth=32,flush=64,discard=10"),
    ("no flush", "-o cluster_size=512 -s 2M", "ops=200,depth=32,flush=0,discard=10"),
    ("FUA", "-o cluster_size=4k -s 2M", "ops=150,depth=8,flush=16,fua=30,discard=10"),
    ("one after the other", "-o cluster_size=4k -s 4M", "ops=200,depth=4,flush=16,seq=100,zero=0,discard=0,maxlen=32k"),
    ("zeroes", "-o cluster_size=4k -s 2M", "ops=200,depth=8,flush=4,zero=45,discard=0"),
    ("discards", "-o cluster_size=4k -s 2M", "ops=200,depth=8,flush=4,zero=0,discard=45"),
    ("sectors", "-o cluster_size=64k -s 2M", "ops=300,depth=16,flush=8,maxlen=2k,unaligned=90"),
    ("compressed clusters", "-o cluster_size=4k -s 3M",
     "ops=200,depth=8,flush=8,discard=10,zero=10,compress=70,unaligned=20,maxlen=32k"),
    ("compressed clusters, counts of two bits", "-o cluster_size=4k,refcount_bits=2,compression_type=zstd -s 2M",
     "ops=200,depth=4,flush=8,discard=15,compress=60,unaligned=10,maxlen=16k"),
    ("subclusters", "-o extended_l2=on,cluster_size=16k -s 3M", "ops=250,depth=8,flush=8,zero=10,discard=15"),
    ("subclusters, sectors", "-o extended_l2=on,cluster_size=64k -s 2M", "ops=300,depth=16,flush=8,maxlen=4k,unaligned=50,zero=15,discard=15"),
    ("subclusters, compressed", "-o extended_l2=on,cluster_size=16k -s 3M",
     "ops=150,depth=8,flush=8,compress=40,maxlen=48k,unaligned=10,discard=10,zero=10"),
    ("QED", "-f qed -o cluster_size=4k -s 3M", "ops=200,depth=8,flush=8,discard=10"),
    ("QED, each flushed", "-f qed -o cluster_size=4k -s 2M", "ops=100,depth=1,flush=1,zero=20"),
    ("raw", "-f raw -s 2M", "ops=200,depth=8,flush=8,discard=10"),
]
# Orders that qcow2 makes between writes (its sites.h), and a case that sees when one is forgotten.
LAZY = next(c for c in CASES if c[0] == "lazy refcounts")
SNAPSHOT = "ops=150,depth=8,flush=8,discard=15,zero=10"
ORDERS = {
    "l2-entry": CASES[0], "stock-entry": CASES[0], "stock-length": CASES[0], "l1-entry": CASES[0],
    "refcount-entry": CASES[0], "refcount-table": CASES[1], "refcount-linked": CASES[0], "free": CASES[0], "flush": CASES[0],
    "dirty-bit": LAZY, "clean-bit": LAZY,
    "table-linked": None,  # an image with a snapshot
}


def command(case, seed, states, *more):
    build = os.environ.get("VARVE_BUILD", "build")
    if "=2M" in case[1]:  # much to copy for each state
        states = max(states // 4, 1)
    return [str(pathlib.Path(build).resolve() / "tools" / "varve"), "crashtest", *case[1].split(), "-n", str(states),
            *more, f"{case[2]},seed={seed}"]


def run(case, seed, states, *more, env=None):
    return subprocess.run(command(case, seed, states, *more), capture_output=True, text=True, timeout=600,
                          env={**os.environ, **(env or {})})


def main():
    parser = argparse.ArgumentParser(description="varve crashtest over all cases, with new seeds, until the time is up")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--states", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    print(f"first seed {args.seed}", flush=True)
    end = time.monotonic() + 60 * args.minutes
    seed, total = args.seed, 0
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        while time.monotonic() < end:
            work = [(case, seed + i) for i, case in enumerate(CASES)]
            seed += len(CASES)
            for (case, s), done in zip(work, pool.map(lambda w: run(*w, args.states, "--output", "json"), work)):
                if done.returncode:
                    print(f"FAILED: {case[0]}, seed {s}: {' '.join(command(case, s, args.states))}\n{done.stdout}{done.stderr}")
                    return 1
                total += json.loads(done.stdout)["states"]
            print(f"{total} states", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
