# SPDX-License-Identifier: MIT
"""test_descriptors.py - servers of many disks, and how many file descriptors they may have"""
import contextlib
import pathlib
import re
import subprocess

import pytest
from test_restart import Load, Process
from test_vublk import SECONDS, varve

DISKS, QUEUES = 5, 3


def server(folder, kind):
    names = [f"{i}.qcow2" for i in range(DISKS)]
    sockets = [folder / f"{i}.sock" for i in range(DISKS)]  # as somebody looks whether it listens there
    for name in names:
        varve("img", "create", "-q", "-f", "qcow2", folder / name, "16M")
    argv = []
    for i, (name, sock) in enumerate(zip(names, sockets)):
        if kind == "serve":
            argv += (["--and"] if i else []) + [name, "-f", "qcow2", "--vhost-user", sock, "--num-queues", QUEUES]
        else:
            argv += ["--blockdev", f"driver=qcow2,node-name=d{i},file.driver=file,file.filename={name}",
                     "--export", f"vhost-user-blk,id=e{i},node-name=d{i},addr.type=unix,addr.path={sock},writable=on,num-queues={QUEUES}"]
    return Process(folder, kind, *argv, sockets=sockets)


def limited(process, soft, hard):
    process.argv = ["prlimit", f"--nofile={soft}:{hard}", *process.argv]
    return process


@pytest.mark.parametrize("kind", ["serve", "daemon"])
def test_all_front_ends_are_served_or_none(tmp_path, kind):
    few = limited(server(tmp_path, kind), 90, 90)
    done = subprocess.run(few.argv, cwd=tmp_path, capture_output=True, text=True, timeout=SECONDS)
    told = re.search(r"5 exports and their front ends need (\d+) file descriptors, and this process may have 90: raise its limit", done.stderr)
    assert done.returncode == 1 and told, done.stderr
    assert done.stderr.count("\n") == 1 and not list(tmp_path.glob("*.sock")), done.stderr
    # That many are enough, and the soft limit says nothing.
    need = int(told.group(1))
    with limited(server(tmp_path, kind), 30, need) as s, contextlib.ExitStack() as stack:
        limits = pathlib.Path(f"/proc/{s.process.pid}/limits").read_text()
        assert re.search(rf"^Max open files +{need} +{need} ", limits, re.M), limits
        loads = [stack.enter_context(Load(path, "--rw", "randwrite", "--queues", QUEUES, "--size", "8M")) for path in s.sockets]
        for i, load in enumerate(loads):
            load.wait_written(tmp_path / f"{i}.qcow2")
        for load in loads:
            load.end()
        s.stop()
        assert "accept" not in s.text()


def test_one_less_than_needed_is_refused(tmp_path):
    few = limited(server(tmp_path, "daemon"), 90, 90)
    done = subprocess.run(few.argv, cwd=tmp_path, capture_output=True, text=True, timeout=SECONDS)
    need = int(re.search(r"need (\d+) file", done.stderr).group(1))
    few = limited(server(tmp_path, "daemon"), 30, need - 1)
    done = subprocess.run(few.argv, cwd=tmp_path, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 1 and f"need {need} file descriptors, and this process may have {need - 1}:" in done.stderr
