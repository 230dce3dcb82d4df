# SPDX-License-Identifier: MIT
"""test_dead_server - what is said of an image whose server died with metadata queued, when its journal is not used

The mark that a journal belongs to the image is cleared by whoever writes, and with it goes what the guest was told is done. After a
power cut that is as it must be, so it is a warning, and every program that opens the image says it.
"""

import json
import os
import signal

import pytest
from serving import Server
from tool import img, io, run, varve, varve_path, when_unlocked

TOLD = ": its server ended without closing it, and kept a journal that "
MARK = {"qcow2": (88, "big"), "qed": (32, "little")}  # the autoclear bits: where, and in which order of bytes


def marked(disk):
    at, order = MARK[str(disk).rsplit(".", maxsplit=1)[-1]]
    with open(disk, "rb") as f:
        f.seek(at)
        return int.from_bytes(f.read(8), order) >> 63 == 1


def killed(tmp_path, fmt="qcow2"):
    """An image with a backing file, whose first MiB is written, acknowledged, and queued in the journal of a dead process."""
    disk, state = tmp_path / f"disk.{fmt}", tmp_path / "state"
    if fmt == "qcow2":
        img("create", "-q", "-f", "raw", tmp_path / "base.raw", "64M", check=True)
        img("create", "-q", "-f", fmt, "-b", tmp_path / "base.raw", "-F", "raw", disk, check=True)
    else:
        img("create", "-q", "-f", fmt, disk, "64M", check=True)
    died = run(varve_path(), "io", "-t", "writeback", "--image-opts", "-c", "write -P 7 0 1M", "-c", "abort",
               f"driver={fmt},file.filename={disk},state-dir={state},metadata-write-out=0")
    assert died.rc == -signal.SIGABRT and list(state.iterdir()), died
    when_unlocked(disk)
    assert marked(disk)
    return disk, state


def told(text, disk):
    lines = [line for line in text.splitlines() if TOLD in line]
    return len(lines) == 1 and str(disk) in lines[0] and "state directory" in lines[0] and "power cut" in lines[0]


CHANGES = [
    ("img", "snapshot", "-c", "x", "DISK"), ("img", "resize", "DISK", "128M"), ("img", "bitmap", "--add", "DISK", "b"),
    ("img", "rebase", "-u", "-f", "qcow2", "-b", "", "DISK"), ("img", "rebase", "-f", "qcow2", "-b", "", "DISK"),
    ("img", "amend", "-f", "qcow2", "-o", "lazy_refcounts=on", "DISK"), 
    ("img", "commit", "-q", "-f", "qcow2", "DISK"), ("img", "stream", "DISK"),
    ("img", "convert", "-n", "-O", "qcow2", "OTHER", "DISK"), ("img", "bench", "-w", "-c", "1", "DISK"),
    ("io", "-c", "write 8M 4k", "DISK"), ("io", "-c", "discard 0 64k", "DISK"),
]


@pytest.mark.parametrize("args", CHANGES, ids=lambda args: " ".join(args[:3]))
def test_who_gives_the_journal_up_says_so(tmp_path, args):
    disk, _ = killed(tmp_path)
    img("create", "-q", "-f", "raw", tmp_path / "other.raw", "64M", check=True)
    names = {"DISK": disk, "OTHER": tmp_path / "other.raw"}
    did = varve(*[names.get(a, a) for a in args])
    assert did.rc == 0 and told(did.err, disk), did
    # Nobody has more to say.
    assert not marked(disk), did
    again = io(disk, "write 16M 4k")
    assert again.rc == 0 and again.err == "", again


@pytest.mark.parametrize("args, warns", [
    (("img", "convert", "-O", "raw", "DISK", "OUT"), True), (("img", "compare", "DISK", "DISK"), True), (("img", "check", "DISK"), True),
    (("img", "check", "-r", "all", "DISK"), True),
    (("img", "map", "DISK"), True), (("io", "-r", "-c", "read 0 4k", "DISK"), True), (("img", "info", "DISK"), False),
    (("img", "snapshot", "-l", "DISK"), False), (("img", "map", "-U", "DISK"), False)], ids=lambda v: " ".join(v[:2]) if v is not True and v else str(v))
def test_who_reads_says_that_something_is_missing(tmp_path, args, warns):
    disk, _ = killed(tmp_path)
    names = {"DISK": disk, "OUT": tmp_path / "out.raw"}
    did = varve(*[names.get(a, a) for a in args])
    assert did.rc == 0, did
    assert told(did.err, disk) if warns else did.err == "", did
    assert marked(disk) and img("info", "--output=json", disk).json["format-specific"]["data"]["journal"] is True
    # So nothing is lost yet.
    found = varve("io", "--image-opts", "-c", "read -P 7 0 1M", f"driver=qcow2,file.filename={disk},state-dir={tmp_path / 'state'}")
    assert found.rc == 0 and "Pattern" not in found.out and TOLD not in found.err, found


def test_qed_says_it_too(tmp_path):
    disk, _ = killed(tmp_path, "qed")
    read = img("convert", "-f", "qed", "-O", "raw", disk, tmp_path / "out.raw")
    assert read.rc == 0 and told(read.err, disk), read
    wrote = io(disk, "write 8M 4k", options=("-f", "qed"))
    assert wrote.rc == 0 and told(wrote.err, disk) and not marked(disk), wrote


def test_errors_as_json_have_it(tmp_path):
    disk, _ = killed(tmp_path)
    did = varve("img", "snapshot", "--errors=json", "-c", "x", disk)
    assert did.rc == 0, did
    line, = [json.loads(text) for text in did.err.splitlines()]
    assert TOLD in line["error"] and line["error"].startswith("warning: ")


@pytest.mark.parametrize("how", ["no directory", "another directory", "no journal"])
def test_a_server_that_finds_no_journal_says_so(tmp_path, how):
    disk, state = killed(tmp_path)
    if how == "no journal":
        for file in state.iterdir():
            file.unlink()
    where = {"no directory": [], "another directory": ["--state-dir", tmp_path / "other"], "no journal": ["--state-dir", state]}[how]
    with Server(disk, "qcow2", tmp_path / "sock", tmp_path / "pid", *where) as server:
        status, text = server.stop()
    assert status == 0, text
    assert told(text, disk), text
    assert (str(where[1]) in text) if where else "no state directory" in text, text


def test_a_server_that_finds_its_journal_does_not(tmp_path):
    disk, state = killed(tmp_path)
    with Server(disk, "qcow2", tmp_path / "sock", tmp_path / "pid", "--state-dir", state) as server:
        status, text = server.stop()
    assert status == 0 and TOLD not in text and "written out from state file" in text, text
    # Nor does anybody who opens an image that was closed in order.
    assert io(disk, "read -P 7 0 1M", "write 0 4k", check=True) and not os.listdir(state)
