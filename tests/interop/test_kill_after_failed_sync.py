# SPDX-License-Identifier: MIT
"""test_kill_after_failed_sync - a sync fails and loses data, then the process is killed: what the next one finds

It writes out what was queued, also where that leads to data which is gone. The image must be sound, what had been flushed must be
there, and every flush must fail until somebody takes the loss over.
"""
import json
import signal
import subprocess

import pytest
from faultfs import Faultfs
from tool import TIMEOUT, img, io, ok, varve_path

KINDS = [("qcow2", None), ("qcow2", "lazy_refcounts=on"), ("qcow2", "cluster_size=4k"), ("qcow2", "extended_l2=on"), ("qed", None)]


def run(disk, state, fmt, *commands):
    options = f"driver={fmt},file.filename={disk},state-dir={state},metadata-write-out=0"
    return subprocess.run([varve_path(), "io", "-t", "writeback", "--image-opts", *[a for c in commands for a in ("-c", c)], options],
                          capture_output=True, text=True, timeout=TIMEOUT)


# ask_first: the guest flushes before it reads, and again afterwards.
@pytest.mark.parametrize("fmt, create, ask_first", [(*kind, True) for kind in KINDS] + [("qcow2", None, False), ("qed", None, False)])
def test_the_image_is_sound_and_flushes_fail(tmp_path, fmt, create, ask_first):
    made, state = tmp_path / "made", tmp_path / "state"
    ok(img("create", "-q", "-f", fmt, *(["-o", create] if create else []), made, "32M"))
    with Faultfs(tmp_path / "faults") as faults:
        faults.put(made)
        flushed = ["write -P 1 0 1M", "write -P 1 8M 64k", "flush"]
        assert run(faults.disk, state, fmt, *flushed, "abort").returncode == -signal.SIGABRT
        syncs = faults.tell("count fsync")
        # The same once more, and then the next sync fails and loses what it was to make stable.
        for file in state.iterdir():
            file.unlink()
        faults.put(made)
        faults.tell(f"rule fsync {syncs} 1 lose 5")
        died = run(faults.disk, state, fmt, *flushed, "write -P 2 2M 1M", "write -P 3 512k 4k", "discard 8M 64k", "write -P 4 16M 4k",
                   *(["write -c -P 5 20M 64k"] if fmt == "qcow2" else []), "flush", "abort")
        assert died.returncode == -signal.SIGABRT and "flush: Input/output error" in died.stdout + died.stderr, died
        faults.tell("clear")
        # Whoever comes next is killed, too, and then another one.
        for _ in range(2):
            next_one = run(faults.disk, state, fmt, *(["flush"] if ask_first else []), "read -P 1 0 512k", "read -P 1 516k 508k", "flush", "abort")
            assert next_one.returncode == -signal.SIGABRT, next_one
            said = next_one.stdout + next_one.stderr
            assert "Pattern" not in said and "read failed" not in said and said.count("flush: Input/output error") == 1 + ask_first, said
        # One that ends in order says so for the last time; whoever opens the image then takes it as it is.
        assert run(faults.disk, state, fmt, "read 0 4k").returncode == 1
        taken = run(faults.disk, state, fmt, "read -P 1 0 512k", "read -P 1 516k 508k", "flush")
        assert taken.returncode == 0 and "Pattern" not in taken.stdout, taken
        assert not list(state.iterdir())
        found = json.loads(img("check", "--output=json", "-f", fmt, faults.disk).out)
        assert not found.get("corruptions") and not found["check-errors"], found
        # What was lost is the data of before the flush that failed: each cluster has the new bytes, the old ones, or nothing.
        for place, old, new in (("2M 1M", 0, 2), ("512k 4k", 1, 3), ("8M 64k", 1, 0), ("16M 4k", 0, 4)):
            tries = [run(faults.disk, state, fmt, f"read -P {p} {place}") for p in (old, new)]
            assert any(t.returncode == 0 and "Pattern" not in t.stdout for t in tries), (place, tries)


# Nothing was queued when it died: only the guest's bytes, in places that it had before, are not stable yet. The image is examined when
# it is opened, and the syncs of that must not be the only ones that hear of the loss.
@pytest.mark.parametrize("fmt, create", [("qcow2", None), ("qcow2", "lazy_refcounts=on"), ("qed", None)])
def test_a_loss_found_without_anything_queued_is_told(tmp_path, fmt, create):
    made, state = tmp_path / "made", tmp_path / "state"
    ok(img("create", "-q", "-f", fmt, *(["-o", create] if create else []), made, "32M"))
    with Faultfs(tmp_path / "faults") as faults:
        faults.put(made)
        died = run(faults.disk, state, fmt, "write -P 1 0 1M", "flush", "write -P 2 0 64k", "abort")
        assert died.returncode == -signal.SIGABRT, died
        faults.tell("rule fsync 0 1 lose 5")
        first = run(faults.disk, state, fmt, "flush", "abort")
        said = first.stdout + first.stderr
        # The one whose sync it was may be refused the image; it hears of the loss in either case.
        assert first.returncode in (1, -signal.SIGABRT) and "Input/output error" in said, first
        faults.tell("clear")
        for _ in range(2):
            next_one = run(faults.disk, state, fmt, "read -P 1 64k 960k", "flush", "abort")
            said = next_one.stdout + next_one.stderr
            assert next_one.returncode == -signal.SIGABRT and "Pattern" not in said, next_one
            assert said.count("flush: Input/output error") == 1, said


# A supervisor starts a server again that could not start: nobody has been told by then what the dead one had lost.
@pytest.mark.parametrize("program", ["serve", "daemon"])
def test_a_start_that_fails_leaves_the_error_to_the_next(tmp_path, program):
    made, state = tmp_path / "made", tmp_path / "state"
    ok(img("create", "-q", "-f", "qcow2", made, "32M"))
    with Faultfs(tmp_path / "faults") as faults:
        faults.put(made)
        disk = f"driver=qcow2,file.filename={faults.disk},state-dir={state},metadata-write-out=0"
        died = run(faults.disk, state, "qcow2", "write -P 1 0 1M", "flush", "write -P 2 0 64k", "abort")
        assert died.returncode == -signal.SIGABRT, died
        faults.tell("rule fsync 0 1 lose 5")
        assert run(faults.disk, state, "qcow2", "flush", "abort").returncode == -signal.SIGABRT
        faults.tell("clear")
        nowhere = tmp_path / "nowhere" / "disk.sock"
        argv = {"serve": ["serve", "--image-opts", disk, "--vhost-user", nowhere],
                "daemon": ["daemon", "--blockdev", f"node-name=d,{disk.replace('file.filename', 'file.driver=file,file.filename')}", "--export",
                           f"type=vhost-user-blk,id=e,node-name=d,addr.type=unix,addr.path={nowhere},writable=on"]}[program]
        failed = subprocess.run([varve_path(), *argv], capture_output=True, text=True, timeout=TIMEOUT)
        assert failed.returncode == 1 and "nowhere" in failed.stderr and "a flush failed" in failed.stderr, failed
        missing = run(faults.disk, f"{state},backing.driver=raw,backing.file.filename={nowhere}", "qcow2", "read 0 4k")
        assert missing.returncode == 1 and "nowhere" in missing.stderr, missing
        said = run(faults.disk, state, "qcow2", "flush", "abort")
        assert said.returncode == -signal.SIGABRT and "flush: Input/output error" in said.stdout + said.stderr, said
        # One that was served, and ends in order, says it for the last time.
        assert run(faults.disk, state, "qcow2", "read 0 4k").returncode == 1
        assert run(faults.disk, state, "qcow2", "flush").returncode == 0
