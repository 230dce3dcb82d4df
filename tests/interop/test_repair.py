# SPDX-License-Identifier: MIT
"""test_repair - counts and tables damaged at random, repaired, found clean by both implementations, no byte lost"""

import os
import random
import struct

import pytest

from seeds import seed
from tool import MIB, img, io, ok, qimg, qio, refused


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
    rng = random.Random(seed())
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
    rng = random.Random(seed())
    path = image(tmp_path, rng)
    block, end = blocks(path)[0], os.path.getsize(path) // 65536
    for cluster in rng.sample(range(1, end), 12):
        poke(path, block + 2 * cluster, b"\0\0")
    assert img("check", "-q", path).rc == 2
    before = open(path, "rb").read()
    r = img("check", "-q", "-r", "leaks", path)
    assert r.rc == 2 and "-r all" in r.err
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


@pytest.mark.parametrize("snapshot", [False, True])
def test_an_l2_table_of_two_places_stays_a_corruption(tmp_path, snapshot):
    """Counts that say so do not make it sound: what check calls clean can be opened for writing."""
    path = str(tmp_path / "disk.qcow2")
    ok(qimg("create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", path, "16M"))
    ok(qio(path, "write -q -P 3 0 100k"))
    if snapshot:
        ok(qimg("snapshot", "-c", "s", path))
    l1 = u64(path, 40)
    poke(path, l1 + 8 * 2, struct.pack(">Q", u64(path, l1)))
    before = open(path, "rb").read()
    assert img("check", "-q", path).rc == 2
    r = img("check", "-q", "-r", "all", path)
    assert r.rc == 2, str(r)
    assert open(path, "rb").read() == before
    assert img("check", "-q", path).rc == 2


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


# ---- every kind of damage that check knows ----

def l2_of(path, guest=0):
    return u64(path, u64(path, 40)) & 0x00fffffffffffe00


def l2_entry(path, nr):
    """Where the nr-th data entry of the first L2 table lies."""
    l2 = l2_of(path)
    return [l2 + 8 * i for i in range(8192) if u64(path, l2 + 8 * i) & 0x00fffffffffffe00][nr]


def put64(path, off, value):
    poke(path, off, struct.pack(">Q", value & (1 << 64) - 1))


def change64(path, off, fn):
    put64(path, off, fn(u64(path, off)))


def count_at(path, cluster):
    return blocks(path)[0] + 2 * cluster


def data_cluster(path, nr=0):
    return (u64(path, l2_entry(path, nr)) & 0x00fffffffffffe00) // 65536


def end(path):
    return -(-os.path.getsize(path) // 65536)


def leak(path):
    os.truncate(path, (end(path) + 2) * 65536)
    poke(path, count_at(path, end(path) - 1), b"\0\1")


def duplicate_block(path):
    put64(path, u64(path, 48) + 8, u64(path, u64(path, 48)))


def bitmap_table(path):
    at = 112
    with open(path, "rb") as f:
        head = f.read(4096)
    while int.from_bytes(head[at:at + 4], "big") != 0x23852875:
        at += 8 + (int.from_bytes(head[at + 4:at + 8], "big") + 7) // 8 * 8
    return u64(path, int.from_bytes(head[at + 24:at + 32], "big"))


def snapshot_l1(path):
    return u64(path, 64)


# What was done; what check says; what it is ("leak": -r leaks mends it, "counts": -r all does, "unknown": nobody can without
# guessing, and it is left alone; "closed": the image is not opened); options of the image.
DAMAGE = {
    "a leaked cluster": (leak, "leak", "leak", ""),
    "a count too high": (lambda p: poke(p, count_at(p, data_cluster(p)), b"\0\3"), "COPIED", "counts", ""),
    "a count too low": (lambda p: poke(p, count_at(p, data_cluster(p)), b"\0\0"), "1 references", "counts", ""),
    "a count of the header too low": (lambda p: poke(p, count_at(p, 0), b"\0\0"), "1 references", "counts", ""),
    "COPIED is missing": (lambda p: change64(p, l2_entry(p, 0), lambda e: e & ~(1 << 63)), "not marked COPIED", "counts", ""),
    "COPIED of a table is missing": (lambda p: change64(p, u64(p, 40), lambda e: e & ~(1 << 63)), "not marked COPIED", "counts", ""),
    "COPIED on what a snapshot shares": (lambda p: change64(p, shared(p), lambda e: e | 1 << 63), "marked COPIED", "unknown", "snapshot"),
    "no refcount block": (lambda p: put64(p, u64(p, 48), 0), "references", "counts", ""),
    "a refcount block between clusters": (lambda p: change64(p, u64(p, 48), lambda e: e + 512), "multiple of the cluster", "counts", ""),
    "a refcount block beyond the end": (lambda p: put64(p, u64(p, 48), 1 << 40), "beyond the end", "counts", ""),
    "a refcount block with reserved bits": (lambda p: change64(p, u64(p, 48), lambda e: e | 1), "reserved bits", "counts", ""),
    "a refcount block twice": (duplicate_block, "another entry", "counts", ""),
    "a refcount table outside": (lambda p: put64(p, 48, 1 << 40), "beyond the end", "closed", ""),
    "reserved bits in an entry": (lambda p: change64(p, l2_entry(p, 0), lambda e: e | 2), "reserved bits", "unknown", ""),
    "an entry between clusters": (lambda p: change64(p, l2_entry(p, 0), lambda e: e + 512), "multiple of the cluster", "unknown", ""),
    "an entry beyond the end": (lambda p: put64(p, l2_entry(p, 0), 1 << 63 | 1 << 40), "beyond the end", "unknown", ""),
    "two entries for one cluster": (lambda p: put64(p, l2_entry(p, 0), u64(p, l2_entry(p, 1))), "2 references", "unknown", ""),
    "an entry that leads to a table": (lambda p: put64(p, l2_entry(p, 0), 1 << 63 | l2_of(p)), "2 references", "unknown", ""),
    "an L1 entry with reserved bits": (lambda p: change64(p, u64(p, 40), lambda e: e | 1), "reserved bits", "unknown", ""),
    "an L1 entry between clusters": (lambda p: change64(p, u64(p, 40), lambda e: e + 512), "multiple", "unknown", ""),
    "an L1 entry beyond the end": (lambda p: put64(p, u64(p, 40), 1 << 63 | 1 << 40), "beyond the", "unknown", ""),
    "a zero cluster in version 2": (lambda p: change64(p, l2_entry(p, 0), lambda e: e | 1), "version 2", "unknown", "compat=0.10"),
    "compressed, and marked COPIED": (lambda p: change64(p, compressed(p), lambda e: e | 1 << 63), "marked COPIED", "unknown", "compressed"),
    "compressed beyond the end": (lambda p: change64(p, compressed(p), lambda e: e | 1 << 45), "beyond the end", "unknown", "compressed"),
    "subclusters both ways": (lambda p: put64(p, extended(p) + 8, (1 << 64) - 1), "allocated and zero", "unknown", "extended_l2=on"),
    "subclusters without a cluster": (lambda p: put64(p, extended(p), 0), "without a host cluster", "unknown", "extended_l2=on"),
    "a bitmap's entry with reserved bits": (lambda p: put64(p, bitmap_table(p), 6), "reserved bits", "unknown", "bitmap"),
    "a bitmap's entry beyond the end": (lambda p: put64(p, bitmap_table(p), 1 << 40), "not a cluster", "unknown", "bitmap"),
    "a snapshot's L1 table outside": (lambda p: put64(p, snapshot_l1(p), 1 << 40), "not inside the file", "unknown", "snapshot"),
    "an L1 table that is too short": (lambda p: put64(p, 24, 1 << 40), "too small", "closed", ""),
    "the end of the file is gone": (lambda p: os.truncate(p, (data_cluster(p) + 0) * 65536), "beyond the end", "unknown", ""),
}


def shared(path):
    l2 = l2_of(path)
    return [l2 + 8 * i for i in range(8192) if 0 < u64(path, l2 + 8 * i) < 1 << 62][0]


def compressed(path):
    l2 = l2_of(path)
    return [l2 + 8 * i for i in range(8192) if u64(path, l2 + 8 * i) >> 62 == 1][0]


def extended(path):
    l2 = l2_of(path)
    return [l2 + 16 * i for i in range(4096) if u64(path, l2 + 16 * i)][0]


def damaged(tmp_path, options):
    special = options in ("snapshot", "compressed", "bitmap")
    path = image(tmp_path, random.Random(11), "" if special else options, snapshot=options == "snapshot")
    if options == "compressed":
        ok(qio(path, "write -q -c -P 7 15M 64k"))
        ok(qimg("convert", "-O", "raw", path, str(tmp_path / "want.raw")))
    if options == "bitmap":
        ok(qimg("bitmap", "--add", "-g", "64k", path, "b"))
    return path


@pytest.mark.parametrize("what", DAMAGE)
def test_each_kind(tmp_path, what):
    harm, says, kind, options = DAMAGE[what]
    path = damaged(tmp_path, options)
    ok(img("check", "-q", path))
    harm(path)
    before = open(path, "rb").read()

    def unchanged():
        return open(path, "rb").read() == before

    found = img("check", path)
    if kind == "closed":
        for args in ([], ["-r", "leaks"], ["-r", "all"], ["-r", "all", "--dry-run"]):
            assert says in refused(img("check", *args, path), path) and unchanged()
        return
    # 1: something could not be examined because of it
    assert found.rc in ((3,) if kind == "leak" else (1, 2)) and says in found.err + found.out, str(found)
    for repair in ("leaks", "all"):
        dry = img("check", "-r", repair, "--dry-run", path)
        assert dry.rc == found.rc and dry.err == found.err and unchanged(), str(dry)
        assert ("To be repaired" if kind == "leak" or repair == "all" else "would repair nothing") in dry.out, str(dry)
    if kind != "leak":
        r = img("check", "-q", "-r", "leaks", path)
        assert r.rc == 2 and r.err.count("\n") == 1 and unchanged(), str(r)
    r = img("check", "-q", "-r", "leaks" if kind == "leak" else "all", path)
    if kind == "unknown":
        assert r.rc != 0 and r.err.count("\n") == 1 and "-r all" not in r.err and unchanged(), str(r)
    else:
        assert r.rc == 0 and r.err == "", str(r)
        require_whole(tmp_path, path)


# ---- QED ----

def le64(path, off):
    with open(path, "rb") as f:
        f.seek(off)
        return struct.unpack("<Q", f.read(8))[0]


QED_L1 = 4096  # in clusters of 4 KiB; a table has two of them, and maps 4 MiB
QED_DAMAGE = {
    "an entry beyond the end": (lambda p, l2: poke(p, l2 + 8, struct.pack("<Q", 1 << 40)), "no cluster of the file", True),
    "an entry between clusters": (lambda p, l2: poke(p, l2 + 8, struct.pack("<Q", 4711)), "no cluster of the file", True),
    "two entries for one cluster": (lambda p, l2: poke(p, l2 + 8, struct.pack("<Q", le64(p, l2))), "in use already", False),
    "an entry that leads to a table": (lambda p, l2: poke(p, l2 + 8, struct.pack("<Q", l2)), "in use already", False),
    "a table beyond the end": (lambda p, l2: poke(p, QED_L1 + 8, struct.pack("<Q", 1 << 40)), "no place for an L2 table", True),
    "two tables that share space": (lambda p, l2: poke(p, QED_L1 + 8, struct.pack("<Q", l2)), "share space", False),
    "a table behind the end of the disk": (lambda p, l2: poke(p, QED_L1 + 8 * 1000, struct.pack("<Q", l2)), "entry 1000 is behind the end", True),
    "nonsense behind the end of the disk": (lambda p, l2: poke(p, QED_L1 + 8 * 4, struct.pack("<Q", 1 << 40)), "entry 4 is behind the end", True),
    "an L1 table beyond the end": (lambda p, l2: poke(p, 40, struct.pack("<Q", 1 << 40)), "", None),
}


@pytest.mark.parametrize("what", QED_DAMAGE)
def test_each_kind_of_qed(tmp_path, what):
    harm, says, mended = QED_DAMAGE[what]
    path = str(tmp_path / "disk.qed")
    ok(qimg("create", "-q", "-f", "qed", "-o", "cluster_size=4k,table_size=2", path, "16M"))
    ok(io(path, "write -q -P 3 0 4k", "write -q -P 4 128k 1M", options=("-f", "qed")))
    ok(qimg("convert", "-f", "qed", "-O", "raw", path, str(tmp_path / "want.raw")))
    ok(img("check", "-q", "-f", "qed", path))
    harm(path, le64(path, QED_L1))
    before = open(path, "rb").read()
    found = img("check", "-f", "qed", path)
    assert found.rc in ((1, 2) if mended is None else (2,)) and says in found.err, str(found)
    for args in (["--dry-run", "-r", "leaks"], ["--dry-run", "-r", "all"], ["-q", "-r", "leaks"]):
        r = img("check", *args, "-f", "qed", path)
        assert r.rc == found.rc and open(path, "rb").read() == before, str(r)
    r = img("check", "-q", "-r", "all", "-f", "qed", path)
    if mended:
        assert r.rc == 0, str(r)
        require_whole(tmp_path, path, "qed")
    else:
        assert r.rc != 0 and r.err.count("\n") == 1 and open(path, "rb").read() == before, str(r)
