# SPDX-License-Identifier: MIT
"""test_repair - counts and tables damaged at random, repaired, found clean by both implementations, no byte lost"""

import os
import random
import struct

import pytest

from tool import MIB, img, io, ok, qimg, qio


def u64(path, off):
    with open(path, "rb") as f:
        f.seek(off)
        return struct.unpack(">Q", f.read(8))[0]


def poke(path, off, data):
    with open(path, "r+b") as f:
        f.seek(off)
        f.write(data)


def image(tmp_path, rng, options="", snapshot=True):
    path = str(tmp_path / "disk.qcow2")
    ok(qimg("create", "-q", "-f", "qcow2", *(["-o", options] if options else []), path, "16M"))
    ok(qio(path, *(f"write -q -P {rng.randrange(1, 255)} {rng.randrange(14 * MIB)} {rng.randrange(1, MIB)}" for _ in range(6))))
    if snapshot:
        ok(qimg("snapshot", "-c", "s", path))
        ok(qio(path, *(f"write -q -P 9 {rng.randrange(14 * MIB)} 70000" for _ in range(3))))
    ok(qimg("convert", "-O", "raw", path, str(tmp_path / "want.raw")))
    return path


def blocks(path):
    """Host offsets of the refcount blocks, 16-bit counts."""
    table, clusters = u64(path, 48), struct.unpack(">I", open(path, "rb").read(60)[56:60])[0]
    return [b for b in (u64(path, table + 8 * i) for i in range(clusters * 65536 // 8)) if b]


def require_whole(tmp_path, path, fmt="qcow2"):
    ok(img("check", "-q", "-f", fmt, path))
    ok(qimg("check", "-q", "-f", fmt, path))
    ok(qimg("compare", "-q", "-f", fmt, "-F", "raw", path, str(tmp_path / "want.raw")))
    ok(img("compare", "-q", "-f", fmt, "-F", "raw", path, str(tmp_path / "want.raw")))
    ok(io(path, "write -q -P 5 1M 1M", "flush", options=("-f", fmt)))
    ok(qimg("check", "-q", "-f", fmt, path))


@pytest.mark.parametrize("what", ["leaks", "all"])
def test_leaks_are_given_back(tmp_path, what):
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    path = image(tmp_path, rng)
    end = os.path.getsize(path) // 65536
    block = blocks(path)[0]
    for cluster in rng.sample(range(end, end + 500), 7):
        poke(path, block + 2 * cluster, b"\0\1")
    os.truncate(path, (end + 500) * 65536)
    assert img("check", "-q", path).rc == 3
    r = img("check", "-r", what, "--output=json", path)
    assert r.rc == 0 and r.json["leaks-fixed"] == 7 and "leaks" not in r.json, str(r)
    require_whole(tmp_path, path)


def test_counts_that_are_too_low_are_made_right_by_all_only(tmp_path):
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    path = image(tmp_path, rng)
    block, end = blocks(path)[0], os.path.getsize(path) // 65536
    for cluster in rng.sample(range(1, end), 12):
        poke(path, block + 2 * cluster, b"\0\0")
    assert img("check", "-q", path).rc == 2
    before = open(path, "rb").read()
    refused = img("check", "-q", "-r", "leaks", path)
    assert refused.rc == 2 and "-r all" in refused.err
    assert open(path, "rb").read() == before
    r = img("check", "-r", "all", "--output=json", path)
    assert r.rc == 0 and r.json["corruptions-fixed"] >= 12, str(r)
    require_whole(tmp_path, path)


def test_a_lost_refcount_table_is_built_anew(tmp_path):
    path = image(tmp_path, random.Random(3))
    poke(path, u64(path, 48), bytes(65536))
    ok(img("check", "-q", "-r", "all", path))
    require_whole(tmp_path, path)


def test_what_cannot_be_known_is_left_alone(tmp_path):
    path = image(tmp_path, random.Random(4), snapshot=False)
    l1 = u64(path, 40)
    l2 = u64(path, l1) & 0x00fffffffffffe00
    entries = [i for i in range(256) if u64(path, l2 + 8 * i)]
    poke(path, l2 + 8 * entries[0], struct.pack(">Q", u64(path, l2 + 8 * entries[1])))
    before = open(path, "rb").read()
    r = img("check", "-q", "-r", "all", path)
    assert r.rc == 2 and r.err.count("\n") == 1, str(r)
    assert open(path, "rb").read() == before


def test_qed_entries_that_lead_nowhere(tmp_path):
    path = str(tmp_path / "disk.qed")
    ok(qimg("create", "-q", "-f", "qed", path, "16M"))
    ok(io(path, "write -q -P 3 0 3M", options=("-f", "qed")))
    ok(qimg("convert", "-f", "qed", "-O", "raw", path, str(tmp_path / "want.raw")))
    size = os.path.getsize(path)
    with open(path, "rb") as f:
        f.seek(65536)
        l2 = struct.unpack("<Q", f.read(8))[0]
    poke(path, l2 + 8 * 200, struct.pack("<Q", size + 10 * 65536))
    poke(path, l2 + 8 * 201, struct.pack("<Q", 4711))
    os.truncate(path, size + 5 * 65536)
    assert img("check", "-q", "-f", "qed", path).rc == 2
    r = img("check", "-f", "qed", "-r", "all", "--output=json", path)
    assert r.rc == 0 and r.json["corruptions-fixed"] == 2 and r.json["leaks-fixed"] == 5, str(r)
    assert os.path.getsize(path) == size
    require_whole(tmp_path, path, "qed")


def test_bad_words(tmp_path):
    path = image(tmp_path, random.Random(5))
    for args, says in ((["-r", "some"], "'some'"), (["-r", "all", "-U"], "-U")):
        r = img("check", *args, path)
        assert r.rc == 1 and says in r.err
