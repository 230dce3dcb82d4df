# SPDX-License-Identifier: MIT
"""test_guest_trouble - a real Linux guest at work on a served disk, while one of both is killed, or the guest moves

Assumes: what test_guest.py assumes; its variables of the environment hold here, too, and

VARVE_KILLS=N               how often the back end is killed (default: 4, and only over qcow2)
"""

import os
import random

import pytest

from guest import (BOOT_TIMEOUT, FollowedBackend, Job, KilledBackend, KilledGuest, LentBackend, MigratedGuest, PulledGuest, SlowBackend,
                   SlowLentBackend, qemu_check, run, sha256_file, varve_path)
from test_guest import BACKENDS, MIB, TOOL, apply_ops, create, differing_sectors, kernel, pytestmark, require_whole, seed, writer_ops

__all__ = ["kernel", "pytestmark", "seed"]  # fixtures and marks, which pytest finds by their names


@pytest.mark.skipif(TOOL != "varve", reason="others lose what they had queued")
@pytest.mark.parametrize("fmt", ["qcow2", "raw"])
def test_a_back_end_that_is_killed_loses_nothing(kernel, seed, tmp_path, fmt):
    """kill -9 in the middle of verified writes of two queues; started again, the guest has noticed nothing."""
    kills = int(os.environ.get("VARVE_KILLS", 4))
    if fmt == "raw" and "VARVE_KILLS" not in os.environ:
        pytest.skip("the kernel keeps what a raw disk was given; VARVE_KILLS=20 tries it")
    disk, raw = str(tmp_path / "disk"), str(tmp_path / "disk.raw")
    disk_len = 64 * MIB
    job = Job("rw", seed)
    model, discarded = bytearray(disk_len), bytearray(disk_len // 512)
    job.ops = tuple(writer_ops(job.rng, who, disk_len, 60 + 60 * kills) for who in (0, 1))
    for ops in job.ops:
        apply_ops(model, discarded, ops, job.data)
    run(varve_path(), "img", "create", "-q", "-f", fmt, disk, str(disk_len))

    with KilledBackend(disk, fmt, 2) as served:
        guest = KilledGuest(kernel, job, served, tmp_path, cpus=2, first="guest: two writers", last="guest: flush",
                            kills=kills, rng=random.Random(seed))
        outcome = guest.run(BOOT_TIMEOUT + 10 * kills)
        print(f"{outcome.verdict} in {outcome.seconds:.1f} s, killed {guest.killed} times, {outcome.facts}")
        status, printed = served.stop()
        print(f"back end: exit status {status}; it printed: {printed or 'nothing'}")
    outcome.require_pass()
    assert status == 0
    assert guest.killed >= max(1, kills // 2)
    if fmt == "qcow2":
        assert "written out from state file" in printed, "nothing was ever queued: the kills were harmless"
        found = qemu_check(disk)
        assert found["corruptions"] == 0 and found["check-errors"] == 0
    run("qemu-img", "convert", "-f", fmt, "-O", "raw", disk, raw)
    assert differing_sectors(model, discarded, raw) == []
    assert sha256_file(raw) == outcome.facts["sha256"]


@pytest.mark.skipif(TOOL != "varve", reason="others do not take over from one another")
def test_back_ends_follow_one_another_and_the_guest_notices_nothing(kernel, seed, tmp_path):
    """An upgrade, and back, in the middle of verified writes of two queues: serve, daemon, serve, on an image that grows all the time."""
    disk, raw = str(tmp_path / "disk"), str(tmp_path / "disk.raw")
    disk_len = 64 * MIB
    job = Job("rw", seed)
    model, discarded = bytearray(disk_len), bytearray(disk_len // 512)
    job.ops = tuple(writer_ops(job.rng, who, disk_len, 150) for who in (0, 1))
    for ops in job.ops:
        apply_ops(model, discarded, ops, job.data)
    create(disk, size=disk_len)
    with FollowedBackend(disk, "qcow2", 2) as served:
        guest = KilledGuest(kernel, job, served, tmp_path, cpus=2, first="guest: two writers", last="guest: flush", kills=2,
                            rng=random.Random(seed))
        outcome = guest.run()
        print(f"{outcome.verdict} in {outcome.seconds:.1f} s, followed {guest.killed} times, {outcome.facts}")
        status, printed = served.stop()
    outcome.require_pass()
    assert guest.killed == 2 and served.statuses == [0, 0], printed
    assert (status, printed) == (0, ""), printed
    require_whole(disk, raw)
    assert differing_sectors(model, discarded, raw) == []
    assert sha256_file(raw) == outcome.facts["sha256"]


def done_by(ops, data, found, model):
    """How many of a writer's operations the disk shows: after k of them, and perhaps a part of the next one. None: no such k.

    found: the disk; model: the disk before. Writers share no sector.
    """
    touched = set()
    for op, *place in ops:
        if op in "wzd":
            touched.update(range(place[0] // 512, (place[0] + place[1]) // 512))
    state, discarded = bytearray(model), bytearray(len(model) // 512)

    def differs(s):
        return not discarded[s] and state[512 * s:512 * s + 512] != found[512 * s:512 * s + 512]

    wrong = {s for s in touched if differs(s)}
    for k in range(len(ops) + 1):
        op, *place = ops[k] if k < len(ops) else ("f",)
        part = set(range(place[0] // 512, (place[0] + place[1]) // 512)) if op in "wzd" else set()
        if wrong <= part:
            return k
        if part:
            apply_ops(state, discarded, [ops[k]], data)
            wrong = (wrong - part) | {s for s in part if differs(s)}
    return None


def test_a_guest_that_is_killed_leaves_a_whole_image(kernel, seed, tmp_path):
    """The plug of the guest is pulled while it writes: what was done for it is there, up to some moment, and nothing else."""
    disk, raw = str(tmp_path / "disk"), str(tmp_path / "disk.raw")
    disk_len = 64 * MIB
    job = Job("rw", seed)
    job.ops = tuple(writer_ops(job.rng, who, disk_len, 400) for who in (0, 1))
    create(disk, size=disk_len)
    backend = SlowBackend if TOOL == "varve" else BACKENDS[TOOL]
    with backend(disk, "qcow2", 2, False) as served:
        guest = PulledGuest(kernel, job, served, tmp_path, cpus=2, first="guest: two writers", writes=job.rng.randrange(50, 200),
                            seconds=1 + job.rng.random() * 2)
        outcome = guest.run()
        status, printed = served.stop()
    assert outcome.verdict == "none" and outcome.status == -9, outcome.console
    assert (status, printed) == (0, "") or TOOL != "varve", printed
    require_whole(disk, raw)
    with open(raw, "rb") as f:
        found = f.read()
    done = [done_by(ops, job.data, found, bytes(disk_len)) for ops in job.ops]
    print(f"{outcome.seconds:.1f} s; operations done: {done} of {[len(o) for o in job.ops]}")
    assert None not in done, "a write is there without one that ended before it"
    assert all(done), "the guest had not begun"


@pytest.mark.skipif(TOOL != "varve", reason="others do not hand the image over")
def test_a_guest_moves_to_another_machine_while_it_writes(kernel, seed, tmp_path):
    """Live migration between two QEMUs, each with a server of its own for the one image, in the middle of verified writes."""
    disk, raw = str(tmp_path / "disk"), str(tmp_path / "disk.raw")
    disk_len = 64 * MIB
    job = Job("rw", seed)
    model, discarded = bytearray(disk_len), bytearray(disk_len // 512)
    job.ops = tuple(writer_ops(job.rng, who, disk_len, 120) for who in (0, 1))
    for ops in job.ops:
        apply_ops(model, discarded, ops, job.data)
    create(disk, size=disk_len)
    with SlowLentBackend(disk, "qcow2", 2) as source, LentBackend(disk, "qcow2", 2) as target:
        guest = MigratedGuest(kernel, job, source, tmp_path, cpus=2, packed=os.environ.get("VARVE_RING") == "packed", to=target,
                              first="guest: two writers")
        outcome = guest.run()
        print(f"{outcome.verdict} in {outcome.seconds:.1f} s, downtime {guest.facts.get('downtime')} ms, "
              f"{guest.facts.get('ram', {}).get('dirty-sync-count')} rounds, {outcome.facts}")
        done = [b.ask("stats")["export"]["queues"] for b in (source, target)]
        ended = [b.stop() for b in (source, target)]
    outcome.require_pass()
    writes = [sum(q["write"]["requests"] for q in queues) for queues in done]
    assert all(writes), f"the guest has moved before, or after, it wrote: {writes}"
    assert sum(q[kind]["errors"] for queues in done for q in queues for kind in ("read", "write", "flush")) == 0
    for status, printed in ended:
        assert status == 0 and "guest" not in printed.replace("the guest waits", "").replace("the guest goes on", ""), printed
    require_whole(disk, raw)
    assert differing_sectors(model, discarded, raw) == []
    assert sha256_file(raw) == outcome.facts["sha256"], "the guest read something else than the image holds"
