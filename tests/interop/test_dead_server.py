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
    ("img", "amend", "-f", "qcow2", "-o", "refcount_bits=32", "DISK"),
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


REFUSED = [
    ("img", "snapshot", "-c", "", "DISK"), ("img", "snapshot", "-a", "nope", "DISK"), ("img", "snapshot", "-d", "nope", "DISK"),
    ("img", "resize", "DISK", "1M"), ("img", "resize", "DISK", "1E"), ("img", "resize", "--shrink", "DISK", "-64M"),
    ("img", "bitmap", "--clear", "DISK", "nope"), ("img", "bitmap", "--add", "-g", "512", "DISK", "x" * 1024),
    ("img", "bitmap", "--add", "--merge", "nope", "DISK", "b"), ("img", "amend", "-o", "refcount_bits=3", "DISK"),
    ("img", "amend", "-o", "nope=1", "DISK"), ("img", "amend", "-o", "compat=0.9", "DISK"), ("img", "amend", "-o", "data_file=x", "DISK"),
    ("img", "rebase", "-u", "-f", "qcow2", "-F", "raw", "-b", "x" * 1024, "DISK"), ("img", "rebase", "-b", "nope", "-F", "raw", "DISK"),
    ("img", "commit", "-b", "nope", "DISK"), ("img", "convert", "-n", "-O", "qcow2", "OTHER", "DISK"),
]


@pytest.mark.parametrize("args", REFUSED, ids=lambda args: " ".join(args[:4]))
def test_who_is_refused_changes_nothing_and_gives_nothing_up(tmp_path, args):
    disk, state = killed(tmp_path)
    before = disk.read_bytes()
    img("create", "-q", "-f", "raw", tmp_path / "other.raw", "65M", check=True)
    names = {"DISK": disk, "OTHER": tmp_path / "other.raw"}
    did = varve(*[names.get(a, a) for a in args])
    assert did.rc == 1 and len(did.err.splitlines()) == 1 and TOLD not in did.err, did
    assert disk.read_bytes() == before, did
    found = varve("io", "--image-opts", "-c", "read -P 7 0 1M", f"driver=qcow2,file.filename={disk},state-dir={state}")
    assert found.rc == 0 and "Pattern" not in found.out and TOLD not in found.err, found


def test_who_is_refused_leaves_the_bits_of_others(tmp_path):
    """Autoclear bits that nobody here knows go with the first change, not before."""
    disk = tmp_path / "disk.qcow2"
    img("create", "-q", "-f", "qcow2", disk, "4M", check=True)
    with open(disk, "r+b") as f:
        f.seek(MARK["qcow2"][0])
        f.write((1 << 20).to_bytes(8, "big"))
    before = disk.read_bytes()
    for args in REFUSED:
        if "convert" not in args and "commit" not in args:
            did = varve(*[disk if a == "DISK" else a for a in args])
            assert did.rc == 1 and disk.read_bytes() == before, did
    img("bitmap", "--add", disk, "b", check=True)
    assert disk.read_bytes()[88:96] == (1).to_bytes(8, "big")


@pytest.mark.parametrize("args", [
    ("bitmap", "--add", "DISK", "c"), ("bitmap", "--remove", "DISK", "b"), ("bitmap", "--clear", "DISK", "b"),
    ("bitmap", "--disable", "DISK", "b"), ("bitmap", "--merge", "b", "DISK", "a"), ("snapshot", "-c", "t", "DISK"),
    ("snapshot", "-d", "s", "DISK"), ("snapshot", "-a", "s", "DISK"), ("resize", "DISK", "8M"), ("resize", "--shrink", "DISK", "2M"),
    ("rebase", "-u", "-b", "", "DISK"), ("rebase", "-u", "-b", "x", "-F", "raw", "DISK"), ("amend", "-o", "lazy_refcounts=on", "DISK"),
    ("amend", "-o", "refcount_bits=64", "DISK")], ids=" ".join)
def test_who_changes_anything_clears_the_bits_of_others(tmp_path, args):
    disk = tmp_path / "disk.qcow2"
    img("create", "-q", "-f", "qcow2", disk, "4M", check=True)
    io(disk, "write -P 1 0 1M", check=True)
    img("snapshot", "-c", "s", disk, check=True)
    for name in "ab":
        img("bitmap", "--add", disk, name, check=True)
    io(disk, "write -P 2 512k 1M", check=True)
    if args[0] == "rebase":
        img("snapshot", "-d", "s", disk, check=True)
    with open(disk, "r+b") as f:
        f.seek(MARK["qcow2"][0])
        f.write((1 << 20 | 1).to_bytes(8, "big"))
    img(*[disk if a == "DISK" else a for a in args], check=True)
    assert disk.read_bytes()[88:96] == (1).to_bytes(8, "big")
    img("rebase", "-u", "-b", "", disk, check=True)
    img("check", "-q", disk, check=True)
    assert len(img("info", "--output=json", disk).json["format-specific"]["data"]["bitmaps"]) == 2 + ("c" in args) - ("--remove" in args)


@pytest.mark.parametrize("what", ["leaks", "all"])
def test_who_repairs_clears_the_bits_of_others(tmp_path, what):
    """What they stand for is not counted by a repair."""
    disk = tmp_path / "disk.qcow2"
    img("create", "-q", "-f", "qcow2", "-o", "cluster_size=512", disk, "1M", check=True)
    io(disk, "write -P 1 0 64k", check=True)
    with open(disk, "r+b") as f:
        f.seek(MARK["qcow2"][0])
        f.write((1 << 20).to_bytes(8, "big"))
        f.seek(0, os.SEEK_END)
        end = f.tell() // 512
        f.seek(48)
        table = int.from_bytes(f.read(8), "big")
        f.seek(table + end // 256 * 8)
        block = int.from_bytes(f.read(8), "big")
        f.seek(block + end % 256 * 2)
        f.write((1).to_bytes(2, "big"))  # a cluster that nobody has
        f.truncate((end + 1) * 512)
    assert img("check", disk).rc == 3
    did = img("check", "-r", what, disk)
    assert did.rc == 0, did
    assert disk.read_bytes()[88:96] == bytes(8)


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
