# SPDX-License-Identifier: MIT
"""test_change_cut - power cuts while whole commands change what an image is: resize, amend, rebase, commit, repair

Each command runs on an image whose file is behind the filter write-log. From the log the states are made that a power cut could
have left: everything before the last flush, and of what came after it any part, some of it torn. In each of them the image is
clean or has leaks only, reads what it read before or what the command promises, can be written, and is clean then. When the
command has said that it succeeded, nothing of it can be lost.

VARVE_CHANGE_STATES: states for each case (default 12). VARVE_CHANGE_SEED: another choice of them.
"""
import json
import os
import pathlib
import random
import shutil
import struct
import subprocess
import sys

import pytest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir, "interop"))

from faultfs import Faultfs  # noqa: E402
from test_img_amend import forget_lengths  # noqa: E402
from tool import KIB, MIB, img, io, ok, qimg, qio  # noqa: E402

STATES = int(os.environ.get("VARVE_CHANGE_STATES", "12"))
SEED = int(os.environ.get("VARVE_CHANGE_SEED", "1"))
SECTOR = 512
FLUSH, FUA, DISCARD, MARK = 1, 2, 4, 8


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    shutil.rmtree(tmp_path)


# ---- the log (docs/spec/dm-log-writes) ----

def read_log(path):
    """Changes in order: ("flush",), ("write", offset, bytes, fua), ("discard", offset, length), ("length", n, at least)."""
    with open(path, "rb") as f:
        data = f.read()
    magic, version, count, _ = struct.unpack_from("<QQQI", data)
    assert magic == 0x006A736677736872 and version == 1
    out, pos = [], SECTOR
    for _ in range(count):
        sector, sectors, flags, length = struct.unpack_from("<QQQQ", data, pos)
        text = data[pos + 32:pos + 32 + length].decode()
        pos += SECTOR
        if flags & MARK:
            if text.startswith("length "):
                out.append(("length", int(text.split()[-1]), "at least" in text))
        elif flags & FLUSH and not sectors:
            out.append(("flush",))
        elif flags & DISCARD:
            out.append(("discard", sector * SECTOR, sectors * SECTOR))
        elif sectors:
            out.append(("write", sector * SECTOR, data[pos:pos + sectors * SECTOR], bool(flags & FUA)))
            pos += sectors * SECTOR
    return out


logged = read_log  # tests that forget replace it


def apply(disk, entry, rng=None):
    """rng: torn, that is, some of its sectors."""
    if entry[0] == "length":
        _, n, at_least = entry
        if n < len(disk) and not at_least:
            del disk[n:]
        disk.extend(bytes(max(0, n - len(disk))))
        return
    if entry[0] == "flush":
        return
    off = entry[1]
    data = entry[2] if entry[0] == "write" else b"\xdb" * min(entry[2], max(0, len(disk) - off))
    for at in range(0, len(data), SECTOR):
        if rng and rng.random() < 0.5:
            continue
        piece = data[at:at + SECTOR]
        disk.extend(bytes(max(0, off + at + len(piece) - len(disk))))
        disk[off + at:off + at + len(piece)] = piece


def states(before, log, rng, count):
    """(what it is called, content, is everything durable?), the last of them after the command has ended."""
    flushes = [-1] + [i for i, e in enumerate(log) if e[0] == "flush"]
    cuts = [(flushes[-1], len(log))]  # at the end, nothing that was not flushed
    while len(cuts) < count:
        cut = rng.randrange(len(log) + 1)
        cuts.append((max(f for f in flushes if f < cut), cut))
    for nr, (flush, cut) in enumerate(cuts):
        disk = bytearray(before)
        for e in log[:flush + 1]:
            apply(disk, e)
        percent = 0 if nr == 0 else rng.choice([0, 20, 50, 80, 100])
        torn = nr > 0 and rng.random() < 0.5
        kept = []
        for i in range(flush + 1, cut):
            fua = log[i][0] == "write" and log[i][3]
            if fua or rng.randrange(100) < percent:
                apply(disk, log[i], rng if torn and not fua and rng.random() < 0.5 else None)
                kept.append(i)
        yield f"cut before entry {cut} of {len(log)}, flush at {flush}, kept {kept}{' (torn)' if torn else ''}", disk, nr == 0


# ---- judging ----

def content(path, fmt):
    ok(img("convert", "-f", fmt, "-O", "raw", path, "content.raw"))
    with open("content.raw", "rb") as f:
        return f.read()


def is_clean(path, fmt):
    told = ok(img("info", "-f", fmt, "--output=json", path)).json
    if told["dirty-flag"]:
        # Counts may be behind, and the next writer makes them right first.
        ok(io(path, "flush", options=("-f", fmt)))
    r = img("check", "-f", fmt, path)
    assert r.rc in (0, 3), str(r)


def run_case(case, fmt, args, promise, count):
    """The command, logged, on disk.FMT; then all states. promise(told, content, durable) raises when something is wrong."""
    name = f"disk.{fmt}"
    with open(name, "rb") as f:
        before = f.read()
    spec = f"driver={fmt},file.driver=write-log,file.log=log,file.file.filename={name}"
    done = img(*[spec if a == "IMAGE" else a for a in args], "--image-opts")
    assert done.rc == 0 and done.err == "", str(done)
    log = logged("log")
    assert [e for e in log if e[0] == "flush"], "nothing was flushed"
    rng = random.Random(f"{case} {SEED}")
    for what, disk, durable in states(before, log, rng, count):
        with open(name, "wb") as f:
            f.write(disk)
        try:
            told = ok(img("info", "-f", fmt, "--output=json", name)).json
            promise(told, content(name, fmt), durable)
            is_clean(name, fmt)
            size = told["virtual-size"]
            ok(io(name, f"write -q -P 9 {rng.randrange(size // SECTOR) * SECTOR} {SECTOR}", f"write -q -P 9 {size - SECTOR} {SECTOR}",
                  "flush", options=("-f", fmt)))
            r = img("check", "-f", fmt, name)
            assert r.rc in (0, 3), str(r)
        except AssertionError as e:
            raise AssertionError(f"{case}, VARVE_CHANGE_SEED={SEED}: {what}:\n{e}") from e
    # What is left of the last one, with its leaks given back, is clean for the peer, too.
    if fmt == "qcow2":  # a hole in the middle of a QED image is never used again
        ok(img("check", "-q", "-r", "leaks", "-f", fmt, name))
    assert qimg("check", "-q", "-f", fmt, name).rc in ((0,) if fmt == "qcow2" else (0, 3))


def make(fmt, options, size, backing=None, snapshot=False, rng=None):
    """disk.FMT with data, zeroes and holes; its content."""
    rng = rng or random.Random(3)
    name = f"disk.{fmt}"
    if backing:
        ok(qimg("create", "-q", "-f", "raw", "base.raw", str(backing)))
        ok(qio("base.raw", f"write -P 77 0 {backing}", options=("-f", "raw")))
    ok(img("create", "-q", "-f", fmt, *(["-o", options] if options else []), *(["-b", "base.raw", "-F", "raw"] if backing else []),
           name, str(size)))
    writes = [f"write -q -P {1 + i} {rng.randrange(size // SECTOR - 40) * SECTOR} {rng.randrange(1, 40) * SECTOR}" for i in range(10)]
    zeroes = "" if "0.10" in options and backing else f"write -q -z {size // 4 & ~4095} 16k"
    ok(io(name, *writes[:6], *([zeroes] if zeroes else []), options=("-f", fmt)))
    if snapshot:
        ok(qimg("snapshot", "-c", "one", name))
    ok(io(name, *writes[6:], options=("-f", fmt)))
    return content(name, fmt)


# ---- resize ----

GROW = [("cluster_size=512", 256 * KIB, 8 * MIB, []), ("cluster_size=512,compat=0.10", 256 * KIB, 8 * MIB, []),
        ("cluster_size=4k,refcount_bits=64", MIB, 40 * MIB, ["--preallocation=metadata"]),
        ("cluster_size=4k", MIB, 3 * MIB, ["--preallocation=full"]), ("cluster_size=4k", MIB, 3 * MIB, ["--preallocation=falloc"]),
        ("cluster_size=4k,lazy_refcounts=on", MIB, 3 * MIB, []), ("cluster_size=512,refcount_bits=1", 300 * KIB, 6 * MIB, []),
        ("cluster_size=16k,extended_l2=on", MIB, 20 * MIB, ["--preallocation=metadata"])]


@pytest.mark.parametrize("kind", ["alone", "backing", "snapshot"])
@pytest.mark.parametrize("options, old, new, more", GROW)
def test_grow(folder, options, old, new, more, kind):
    if kind == "snapshot" and ("refcount_bits=1" in options or "0.10" in options):
        pytest.skip("counts of one bit cannot share; version 2 has no dirty bit for snapshots")
    before = make("qcow2", options, old, 2 * old if kind == "backing" else None, kind == "snapshot")

    def promise(told, now, durable):
        assert told["virtual-size"] == len(now) and len(now) in ((new,) if durable else (old, new))
        assert now[:old] == before and not any(now[old:])

    run_case(f"grow {options} {more} {kind}", "qcow2", ["resize", *more, "IMAGE", str(new)], promise, STATES // 2)


@pytest.mark.parametrize("kind", ["alone", "backing"])
@pytest.mark.parametrize("options", ["cluster_size=512", "cluster_size=4k,compat=0.10", "cluster_size=4k,lazy_refcounts=on",
                                     "cluster_size=16k,extended_l2=on"])
def test_shrink(folder, options, kind):
    old, new = 2 * MIB, 700 * KIB + SECTOR
    before = make("qcow2", options, old, old if kind == "backing" else None)

    def promise(told, now, durable):
        assert told["virtual-size"] == len(now) and len(now) in ((new,) if durable else (old, new))
        assert now[:new] == before[:new]

    run_case(f"shrink {options} {kind}", "qcow2", ["resize", "--shrink", "IMAGE", str(new)], promise, STATES)


def noted(path):
    """Of each bitmap that is not marked: granularity and which bits are set."""
    with open(path, "rb") as f:
        data = f.read()
    cluster, pos, out = 1 << struct.unpack_from(">I", data, 20)[0], struct.unpack_from(">I", data, 100)[0], {}
    while True:
        kind, length = struct.unpack_from(">II", data, pos)
        if kind == 0x23852875:
            break
        assert kind, "no bitmaps extension"
        pos += 8 + (length + 7) // 8 * 8
    count, _, _, at = struct.unpack_from(">IIQQ", data, pos + 8)
    for _ in range(count):
        table, entries, flags, _, bits, name_len, extra = struct.unpack_from(">QIIBBHI", data, at)
        name = data[at + 24 + extra:at + 24 + extra + name_len].decode()
        places = struct.unpack_from(f">{entries}Q", data, table)
        raw = b"".join(data[p & ~511:(p & ~511) + cluster].ljust(cluster, b"\0") if p & ~511 else bytes([255 * (p & 1)]) * cluster for p in places)
        if not flags & 1:
            out[name] = 1 << bits, {i for i in range(len(raw) * 8) if raw[i // 8] >> i % 8 & 1}
        at += (24 + extra + name_len + 7) // 8 * 8
    return out


LENGTHS = [("cluster_size=512", 5 * MIB), ("cluster_size=512", 300 * KIB + SECTOR), ("cluster_size=4k,lazy_refcounts=on", 700 * KIB),
           ("cluster_size=64k", 3 * MIB), ("cluster_size=16k,extended_l2=on", 20 * MIB)]


@pytest.mark.parametrize("options, new", LENGTHS)
def test_bitmaps_get_the_length_with_the_disk(folder, options, new):
    """The length, and bitmaps for it, or the old ones; a disk that lost bytes has none that could be trusted and does not know."""
    old = 2 * MIB
    before = make("qcow2", options, old)
    kinds = {"fine": 512, "coarse": 64 * KIB, "off": 4096}
    for i, (name, granularity) in enumerate(kinds.items()):
        ok((img, qimg)[i % 2]("bitmap", "--add", "-g", str(granularity), "disk.qcow2", name))
    ok(qio("disk.qcow2", f"write -q -P 7 {old - 200 * KIB} 100k", "write -q -P 7 100k 512"))
    ok(qimg("bitmap", "--disable", "disk.qcow2", "off"))
    bits, before = noted("disk.qcow2"), content("disk.qcow2", "qcow2")
    assert len(bits) == 3 and all(b for _, b in bits.values())

    def promise(told, now, durable):
        size, valid = told["virtual-size"], noted("disk.qcow2")
        assert size == len(now) and size in ((new,) if durable else (old, new))
        assert now[:min(new, old)] == before[:min(new, old)] and not any(now[old:])
        told = ok(qimg("info", "--output=json", "disk.qcow2")).json["format-specific"]["data"]["bitmaps"]
        assert {b["name"] for b in told} == set(kinds)
        for name, granularity in kinds.items():
            if name in valid:
                assert valid[name] == (granularity, {i for i in bits[name][1] if i * granularity < size}), name
                assert name == "off" or now[:size] == before[:size] + bytes(max(0, size - old)), f"{name} does not know"
            else:
                assert new < old and size == old and name != "off", f"{name} is marked"

    run_case(f"bitmaps {options} {new}", "qcow2", ["resize", "--shrink", "IMAGE", str(new)], promise, STATES // 2)


OTHERS = [("cluster_size=512", MIB, 2 * MIB), ("cluster_size=512", 2 * MIB, 300 * KIB + SECTOR), ("cluster_size=4k,lazy_refcounts=on", MIB, 700 * KIB),
          ("cluster_size=64k", MIB, 3 * MIB), ("cluster_size=16k,extended_l2=on", 3 * MIB, MIB)]


@pytest.mark.parametrize("options, then, now_size", OTHERS)
def test_a_snapshot_brings_another_length_and_bitmaps_for_it(folder, options, then, now_size):
    """The disk of the snapshot, or the one before; a bitmap that is not marked says of no byte that it has not changed if it has."""
    of_then = make("qcow2", options, then)
    ok(img("snapshot", "-c", "then", "disk.qcow2"))
    ok(img("resize", "-q", "--shrink", "disk.qcow2", str(now_size)))
    kinds = {"fine": 512, "coarse": 64 * KIB, "off": 4096}
    for name, granularity in kinds.items():
        ok(img("bitmap", "--add", "-g", str(granularity), "disk.qcow2", name))
    ok(io("disk.qcow2", "write -q -P 7 100k 512", "write -q -P 8 200k 50k"))
    ok(img("bitmap", "--disable", "disk.qcow2", "off"))
    bits, before = noted("disk.qcow2"), content("disk.qcow2", "qcow2")
    assert len(bits) == 3 and all(b for _, b in bits.values())

    def promise(told, now, durable):
        size, valid = told["virtual-size"], noted("disk.qcow2")
        assert size == len(now) and now == (of_then if size == then else before) and (size == then or not durable)
        assert valid["off"] == (4096, {i for i in bits["off"][1] if i * 4096 < size})
        assert set(valid) == set(kinds) or not durable
        for name in valid.keys() - {"off"}:
            granularity = kinds[name]
            assert valid[name] == ((granularity, set(range(-(-size // granularity)))) if size == then else bits[name]), name

    run_case(f"apply {options} {then} {now_size}", "qcow2", ["snapshot", "-a", "then", "IMAGE"], promise, STATES // 2)


# ---- amend ----

AMEND = [("cluster_size=4k", "compat=0.10", lambda d: d["compat"] == "0.10"),
         ("cluster_size=512,compat=0.10", "compat=1.1", lambda d: d["compat"] == "1.1"),
         ("cluster_size=4k,compat=0.10", "compat=1.1,lazy_refcounts=on", lambda d: d.get("lazy-refcounts")),
         ("cluster_size=4k,lazy_refcounts=on", "lazy_refcounts=off", lambda d: not d["lazy-refcounts"]),
         ("cluster_size=4k,lazy_refcounts=on", "compat=0.10", lambda d: d["compat"] == "0.10"),
         ("cluster_size=16k,extended_l2=on", "refcount_bits=64", lambda d: d["refcount-bits"] == 64 and d["extended-l2"]),
         ("cluster_size=512", "refcount_bits=64", lambda d: d["refcount-bits"] == 64),
         ("cluster_size=4k,refcount_bits=8", "refcount_bits=1", lambda d: d["refcount-bits"] == 1),
         ("cluster_size=4k,refcount_bits=1", "refcount_bits=16,compat=0.10", lambda d: d["compat"] == "0.10" and d["refcount-bits"] == 16)]


@pytest.mark.parametrize("kind", ["alone", "backing"])
@pytest.mark.parametrize("options, change, is_new", AMEND)
def test_amend(folder, options, change, is_new, kind):
    before = make("qcow2", options, MIB, MIB if kind == "backing" else None)

    def promise(told, now, durable):
        assert now == before
        assert is_new(told["format-specific"]["data"]) or not durable

    run_case(f"amend {options} {change} {kind}", "qcow2", ["amend", "-o", change, "IMAGE"], promise, STATES // 2)


def test_amend_with_snapshots_that_are_completed(folder):
    """The snapshot table is written anew before the header says version 3; each cut leaves one that both tools read."""
    before = make("qcow2", "cluster_size=4k,compat=0.10", MIB, snapshot=True)
    forget_lengths(pathlib.Path("disk.qcow2"))
    ok(qimg("convert", "-l", "one", "-O", "raw", "disk.qcow2", "kept.raw"))
    with open("kept.raw", "rb") as f:
        kept = f.read()

    def promise(told, now, durable):
        assert now == before
        assert told["format-specific"]["data"]["compat"] == "1.1" or not durable
        ok(img("convert", "-l", "one", "-O", "raw", "disk.qcow2", "kept.raw"))
        with open("kept.raw", "rb") as f:
            assert f.read() == kept
        assert [s["name"] for s in ok(qimg("info", "--output=json", "disk.qcow2")).json["snapshots"]] == ["one"]

    run_case("amend with snapshots", "qcow2", ["amend", "-o", "compat=1.1", "IMAGE"], promise, STATES)


# ---- rebase, commit ----

@pytest.mark.parametrize("to", ["other.raw", ""])
@pytest.mark.parametrize("fmt, options", [("qcow2", "cluster_size=512"), ("qcow2", "cluster_size=4k,compat=0.10"),
                                          ("qcow2", "cluster_size=4k,lazy_refcounts=on"),
                                          ("qcow2", "cluster_size=16k,extended_l2=on"), ("qed", "cluster_size=4k,table_size=2")])
def test_rebase(folder, fmt, options, to):
    before = make(fmt, options, MIB, MIB)
    shutil.copy("base.raw", "other.raw")
    ok(qio("other.raw", "write -P 5 100k 300k", options=("-f", "raw")))

    def promise(told, now, durable):
        assert now == before
        assert told.get("backing-filename", "") in ((to,) if durable else (to, "base.raw"))

    run_case(f"rebase {fmt} {options} {to}", fmt, ["rebase", "-b", to, *(["-F", "raw"] if to else []), "IMAGE"], promise, STATES // 2)


@pytest.mark.parametrize("options", ["cluster_size=512", "cluster_size=4k,compat=0.10", "cluster_size=4k,lazy_refcounts=on,refcount_bits=2",
                                     "cluster_size=16k,extended_l2=on"])
def test_commit_and_the_image_that_is_emptied(folder, options):
    """The base has all of it before the first entry goes, so it is the base that the command left."""
    before = make("qcow2", options, 2 * MIB, MIB)

    def promise(told, now, durable):
        assert now == before
        own = [e for e in ok(img("map", "--output=json", "disk.qcow2")).json if e["present"] and e["depth"] == 0]
        assert not (durable and own), own

    run_case(f"commit {options}", "qcow2", ["commit", "IMAGE"], promise, STATES)


def test_commit_empties_nothing_before_the_base_is_durable(tmp_path):
    """The base's sync fails: the command fails, and the image still has what it had."""
    with Faultfs(tmp_path / "fs") as fs:
        back = tmp_path / "back"
        ok(qimg("create", "-q", "-f", "raw", back, "2M"))
        fs.put(back)
        top = tmp_path / "top"
        ok(img("create", "-q", "-f", "qcow2", "-b", fs.disk, "-F", "raw", top))
        ok(io(top, "write -q -P 3 0 1M"))
        before = top.read_bytes()
        fs.tell("rule fsync 0 0 error 5")
        r = img("commit", top)
        assert r.rc == 1 and r.err.count("\n") >= 1, str(r)
        assert top.read_bytes() == before


# ---- orders that are forgotten are seen ----

FORGOTTEN = [
    ("l1-header", test_grow, ("cluster_size=512", 256 * KIB, 8 * MIB, [], "alone")),
    ("header-change", test_bitmaps_get_the_length_with_the_disk, LENGTHS[3]),
    ("bitmap-in-use", test_bitmaps_get_the_length_with_the_disk, LENGTHS[1]),
    ("bitmap-in-use", test_a_snapshot_brings_another_length_and_bitmaps_for_it, OTHERS[0]),
    ("header-change", test_a_snapshot_brings_another_length_and_bitmaps_for_it, OTHERS[3]),
    ("l2-entry", test_rebase, ("qcow2", "cluster_size=4k", "")),
    # "syncs": all but the last that the command made, whatever they were for.
    ("syncs", test_grow, ("cluster_size=4k", MIB, 3 * MIB, ["--preallocation=full"], "backing")),
    ("syncs", test_shrink, ("cluster_size=4k,compat=0.10", "alone")),
    ("syncs", test_amend, (*AMEND[0], "backing")), ("syncs", test_amend, (*AMEND[6], "alone")),
    ("syncs", test_rebase, ("qcow2", "cluster_size=512", "other.raw")),
    ("syncs", test_rebase, ("qed", "cluster_size=4k,table_size=2", "")),
    ("syncs", test_commit_and_the_image_that_is_emptied, ("cluster_size=512",)),
]


@pytest.mark.parametrize("order, test, args", FORGOTTEN)
def test_without_its_order_some_state_is_wrong(folder, monkeypatch, order, test, args):
    here = sys.modules[__name__]
    if order == "syncs":
        def without(path):
            log = read_log(path)
            last = max(i for i, e in enumerate(log) if e[0] == "flush")
            return [e for i, e in enumerate(log) if e[0] != "flush" or i == last]
        monkeypatch.setattr(here, "logged", without)
    else:
        monkeypatch.setenv("VARVE_FORGET_ORDER", order)
    monkeypatch.setattr(here, "STATES", 200)
    with pytest.raises(AssertionError, match="VARVE_CHANGE_SEED"):
        test(folder, *args)


# ---- repair ----

def test_repair(folder):
    """What was damaged may still be, and is repaired the second time; what is read is never another."""
    before = make("qcow2", "cluster_size=4k", MIB)
    with open("disk.qcow2", "r+b") as f:
        f.seek(48)
        table = struct.unpack(">Q", f.read(8))[0]
        f.seek(table)
        block = struct.unpack(">Q", f.read(8))[0]
        f.seek(block + 2 * 3)
        f.write(bytes(60))
    assert img("check", "-q", "disk.qcow2").rc == 2
    with open("disk.qcow2", "rb") as f:
        damaged = f.read()
    assert img("check", "-q", "-r", "all", "--image-opts",
               "driver=qcow2,file.driver=write-log,file.log=log,file.file.filename=disk.qcow2").rc == 0
    for what, disk, durable in states(damaged, read_log("log"), random.Random(SEED), STATES):
        with open("disk.qcow2", "wb") as f:
            f.write(disk)
        assert content("disk.qcow2", "qcow2") == before, what
        assert not durable or img("check", "-q", "disk.qcow2").rc in (0, 3), what
        r = img("check", "-q", "-r", "all", "disk.qcow2")
        assert r.rc == 0, f"{what}\n{r}"
        assert content("disk.qcow2", "qcow2") == before, what
        ok(qimg("check", "-q", "disk.qcow2"))
