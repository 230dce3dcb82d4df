# SPDX-License-Identifier: MIT
"""machine - where a measurement was made: programs, processor, file system

Never:   fails for want of a program: it says that it is not installed.
"""
import os
import platform
import shutil
import subprocess


def first_line(*argv):
    if not shutil.which(argv[0]):
        return "not installed"
    out = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    return (out.stdout + out.stderr).strip().splitlines()[0]


def file_system(path):
    """Type and device of the mount that path is on: the longest mount point that is a prefix of it."""
    best = ("", "unknown", "")
    with open("/proc/self/mounts") as f:
        for line in f:
            device, point, kind = line.split()[:3]
            inside = path == point or path.startswith(point.rstrip("/") + "/")
            if inside and len(point) >= len(best[0]):
                best = (point, kind, device)
    return f"{best[1]} on {best[2]}"


def processor():
    with open("/proc/cpuinfo") as f:
        name = next((line.split(":", 1)[1].strip() for line in f if line.startswith("model name")), platform.machine())
    return f"{name}, {len(os.sched_getaffinity(0))} cores"
