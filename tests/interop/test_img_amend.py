# SPDX-License-Identifier: MIT
"""test_img_amend - varve img amend beside qemu-img amend: the same images, with the same bytes in them, clean in both"""

import os
import random
import shutil
import struct

import pytest

from chains import chain, image, twin
from tool import KIB, MIB, img, info, io, ok, qimg, qio, refused
from test_img_rebase import clean, content, rng  # pylint: disable=unused-import


def features(path):
    return ok(qimg("info", "--output=json", path)).json["format-specific"]["data"]


def grown_over_backing(before, ours, theirs):
    """A version 2 image cannot hide what its backing file has behind the old end with zeroes; theirs gives up, ours writes them."""
    return ("backing-filename" in before and before["format-specific"]["data"]["compat"] == "0.10" and ours.rc == 0 and
            theirs.rc == 1 and "zero out new clusters" in theirs.err)


def both(ours, theirs, *args):
    before = info(ours)
    a, b = img("amend", *args, ours), qimg("amend", *args, theirs)
    if grown_over_backing(before, a, b):
        shutil.copy(ours, theirs)
    else:
        assert (a.rc, a.out) == (b.rc, b.out), f"{a}\n{b}"
    if a.rc == 0:
        assert a.err == "", str(a)
    else:
        refused(a)
        shutil.copy(ours, theirs)  # theirs may have done a part of it
    assert features(ours) == features(theirs)
    assert info(ours)["virtual-size"] == info(theirs)["virtual-size"]
    clean(ours)
    return a


def test_random(tmp_path, rng):
    for turn in range(int(os.environ.get("VARVE_SEEDS", 3))):
        folder = tmp_path / f"ours{turn}"
        folder.mkdir()
        name = chain(rng, folder, ["a", "b", "c"][:rng.randrange(1, 4)])[-1]
        if name[1] == "raw":
            continue
        ours, theirs = folder / name[0], twin(folder, tmp_path / f"theirs{turn}") / name[0]
        before = content(ours, "qcow2", tmp_path / "before")
        for _ in range(5):
            options = rng.sample(["compat=1.1", "compat=0.10", "lazy_refcounts=on", "lazy_refcounts=off", "refcount_bits=16",
                                  f"refcount_bits={rng.choice([1, 2, 4, 8, 32, 64])}"], rng.randrange(1, 3))
            if {"compat=0.10", "lazy_refcounts=on"} <= set(options):
                continue  # refused here; theirs does if it was on before
            if rng.random() < 0.3:
                options.append(f"size={info(ours)['virtual-size'] + rng.randrange(100) * 512}")
            before_size = info(ours)["virtual-size"]
            both(ours, theirs, "-f", "qcow2", "-o", ",".join(options))
            after = content(ours, "qcow2", tmp_path / "after")
            assert after[:len(before)] == before and not any(after[before_size:])
            assert content(theirs, "qcow2", tmp_path / "their-after") == after
            before = after
        ok(qio(ours, "write -P 9 0 64k", "write -z 0 4k"))
        clean(ours)


def test_up_and_down(tmp_path):
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for disk in (ours, theirs):
        ok(qimg("create", "-q", "-f", "qcow2", disk, "8M"))
        ok(qio(disk, "write -P 5 0 4M", "write -z 1M 64k", "write -z -u 2M 64k", "write -z 6M 1M"))
    for options in ("compat=0.10", "compat=v3", "lazy_refcounts=on", "compat=v2", "compat=1.1,refcount_bits=64", "refcount_bits=1",
                    "compat=0.10,refcount_bits=16", "size=9M", "compat=1.1,lazy_refcounts=on,size=10M"):
        assert both(ours, theirs, "-o", options).rc == 0
        for disk in (ours, theirs):
            ok(qio(disk, "read -P 5 0 1M", "read -P 0 1M 64k", "read -P 5 1088k 960k", "read -P 0 2M 64k", "read -P 0 6M 2M"))


def test_zeroes_over_a_backing_file_stay_zeroes(tmp_path):
    ok(qimg("create", "-q", "-f", "raw", tmp_path / "base", "4M"))
    ok(qio(tmp_path / "base", "write -P 3 0 4M", options=("-f", "raw")))
    for cluster in ("64k", "512"):
        top = tmp_path / f"top{cluster}"
        ok(qimg("create", "-q", "-f", "qcow2", "-o", f"cluster_size={cluster}", "-b", "base", "-F", "raw", top))
        ok(qio(top, "write -P 4 0 1M", "write -z 512k 256k", "write -z 2M 1M"))
        ok(img("amend", "-o", "compat=0.10", top))
        assert features(top)["compat"] == "0.10"
        clean(top)
        ok(qio(top, "read -P 4 0 512k", "read -P 0 512k 256k", "read -P 4 768k 256k", "read -P 3 1M 1M", "read -P 0 2M 1M",
               "read -P 3 3M 1M"))
        ok(img("amend", "-o", "compat=1.1", top))
        assert info(top)["backing-filename"] == "base" and info(top)["backing-filename-format"] == "raw"
        ok(io(top, "write -z 3M 64k", "read -P 3 3136k 900k"))
        clean(top)


def test_counts_that_do_not_fit(tmp_path):
    disk = tmp_path / "d"
    ok(qimg("create", "-q", "-f", "qcow2", disk, "8M"))
    ok(qio(disk, "write 0 1M"))
    for i in range(4):
        ok(qimg("snapshot", "-c", str(i), disk))
    before = disk.read_bytes()
    for bits in (1, 2):
        refused(img("amend", "-o", f"refcount_bits={bits}", disk), f"{bits} bits", "5 times")
        assert disk.read_bytes() == before
        assert qimg("amend", "-o", f"refcount_bits={bits}", disk).rc == 1
    clean(disk)
    ok(img("amend", "-o", "refcount_bits=4", disk))
    clean(disk)
    ok(qimg("snapshot", "-a", "0", disk))
    refused(img("amend", "-o", "compat=0.10,refcount_bits=16", disk), "snapshots")


def forget_lengths(path):
    """Entries of the snapshot table without extra data, as programs before 2010 wrote them: how long each disk was is not said."""
    data = bytearray(path.read_bytes())
    count, at = struct.unpack_from(">IQ", data, 60)
    old = new = at
    for _ in range(count):
        id_len, name_len = struct.unpack_from(">HH", data, old + 12)
        extra, = struct.unpack_from(">I", data, old + 36)
        names = bytes(data[old + 40 + extra:old + 40 + extra + id_len + name_len])
        entry = (bytes(data[old:old + 36]) + bytes(4) + names)
        old += (40 + extra + len(names) + 7) // 8 * 8
        data[new:new + len(entry)] = entry
        new += (len(entry) + 7) // 8 * 8
    data[new:old] = bytes(old - new)
    path.write_bytes(data)


@pytest.mark.parametrize("forgetful", [False, True])
def test_an_old_image_with_snapshots_becomes_a_new_one(tmp_path, forgetful):
    """Management programs bring disks of old machines up to date that way."""
    ours, theirs, raw = tmp_path / "ours", tmp_path / "theirs", tmp_path / "raw"
    ok(qimg("create", "-q", "-f", "qcow2", "-o", "compat=0.10,cluster_size=4k", ours, "8M"))
    held = []
    for i in range(3):
        ok(qio(ours, f"write -q -P {i + 1} {i}M 2M"))
        ok(qimg("snapshot", "-c", f"number {i}", ours))
        held.append(content(ours, "qcow2", raw))
    ok(qio(ours, "write -q -P 9 1M 64k"))
    now = content(ours, "qcow2", raw)
    if forgetful:
        forget_lengths(ours)
    shutil.copy(ours, theirs)
    both(ours, theirs, "-o", "compat=1.1")
    assert features(ours)["compat"] == "1.1" and content(ours, "qcow2", raw) == now
    told = [ok(qimg("info", "--output=json", p)).json["snapshots"] for p in (ours, theirs)]
    assert told[0] == told[1] and [s["name"] for s in told[0]] == ["number 0", "number 1", "number 2"]
    for i, was in enumerate(held):
        ok((img, qimg)[i % 2]("snapshot", "-a", f"number {i}", ours))
        assert content(ours, "qcow2", raw) == was
        clean(ours)
    ok(img("amend", "-o", "lazy_refcounts=on", ours))
    clean(ours)


def test_progress(tmp_path):
    disk = tmp_path / "d"
    ok(qimg("create", "-q", "-f", "qcow2", disk, "8M"))
    out = ok(img("amend", "-p", "-o", "compat=0.10", disk)).out
    assert out.endswith("(100.00/100%)\r\n"), repr(out)
    assert ok(img("amend", "-p", "-q", "-o", "compat=1.1", disk)).out == ""


def test_what_is_wrong_changes_nothing(tmp_path):
    disk, raw = tmp_path / "d", tmp_path / "raw"
    ok(qimg("create", "-q", "-f", "qcow2", disk, "8M"))
    ok(qimg("create", "-q", "-f", "raw", raw, "8M"))
    before = disk.read_bytes()
    for words, options in ((["nonsense"], "nonsense=1"), (["cluster_size"], "cluster_size=64k"), (["rebase"], "backing_file=x"),
                           (["compat"], "compat=3"), (["lazy_refcounts", "1.1"], "lazy_refcounts=on,compat=0.10"),
                           (["16"], "refcount_bits=8,compat=0.10"), (["refcount_bits"], "refcount_bits=3"), (["size"], "size=x"),
                           (["compression_type"], "compression_type=zstd,compat=0.10"), (["--shrink"], "size=1M,compat=0.10"),
                           (["preallocation"], "size=9M,preallocation=full")):
        refused(img("amend", "-o", options, disk), *words)
        assert disk.read_bytes() == before
        if "shrink" not in words[0]:
            assert qimg("amend", "-o", options, disk).rc == 1
    refused(img("amend", disk), "-o")
    refused(img("amend", "-o", "compat=1.1"), "file name")
    refused(img("amend", "-f", "raw", "-o", "size=9M", raw), "raw")
