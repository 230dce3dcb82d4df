# SPDX-License-Identifier: MIT
"""test_qcow2_growth - images that grow, on a real file: what is left when they are closed, and when the writer is killed"""
import os
import signal

from tool import KIB, MIB, img, io, ok, qimg, qio, when_unlocked


def new(path, *options):
    ok(img("create", "-q", "-f", "qcow2", *options, path, "256M"))
    return path


def mapped(path):
    """Bytes that the image has clusters for."""
    return sum(e["length"] for e in ok(qimg("map", "--output=json", path)).json if "offset" in e)


def write_run(path, length):
    return io(path, *(f"write -q -P 0x5a {off} 64k" for off in range(0, length, 64 * KIB)))


def test_what_was_mapped_ahead_is_taken_back_on_closing(tmp_path):
    disk = new(tmp_path / "disk")
    ok(write_run(disk, 8 * MIB))
    assert mapped(disk) == 8 * MIB
    assert os.stat(disk).st_size <= 8 * MIB + 16 * 64 * KIB
    for check in (img, qimg):
        ok(check("check", disk))
    ok(qio(disk, f"read -P 0x5a 0 {8 * MIB}", f"read -P 0 {8 * MIB} 16M"))


def test_a_killed_writer_leaves_leaks_only(tmp_path):
    disk = new(tmp_path / "disk")
    commands = [f"write -q -P 0x5a {off} 64k" for off in range(0, 4 * MIB, 64 * KIB)] + ["flush"]
    assert io(disk, *commands, "sigraise 9").rc == -signal.SIGKILL
    found = qimg("check", "--output=json", when_unlocked(disk)).json
    assert found.get("corruptions", 0) == 0 and found["check-errors"] == 0
    assert found.get("leaks", 0) <= 3 * 4 * MIB // (64 * KIB) + 24
    ok(qio(disk, f"read -P 0x5a 0 {4 * MIB}", f"read -P 0 {4 * MIB} 32M"))
    ok(io(disk, "write -P 0x33 20M 1M", f"read -P 0x5a 0 {4 * MIB}"))


def test_counts_that_a_killed_lazy_writer_left_behind_are_made_anew(tmp_path):
    disk = new(tmp_path / "disk", "-o", "lazy_refcounts=on")
    commands = ["write -P 0x77 0 1M", "write -P 0x78 100M 3M", "flush"]
    assert qio(disk, *commands, "sigraise 9").rc == -signal.SIGKILL
    assert ok(img("info", "--output=json", disk)).json["dirty-flag"]
    ok(io(disk, "write -P 0x79 200M 1M", "read -P 0x77 0 1M", "read -P 0x78 100M 3M", "read -P 0x79 200M 1M"))
    assert not ok(img("info", "--output=json", disk)).json["dirty-flag"]
    for check in (img, qimg):
        ok(check("check", disk))
    ok(qio(disk, "read -P 0x77 0 1M", "read -P 0x78 100M 3M", "read -P 0x79 200M 1M", "read -P 0 1M 99M"))
