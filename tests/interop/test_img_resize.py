# SPDX-License-Identifier: MIT
"""test_img_resize - varve img resize beside qemu-img resize

Both run the same command on equal images; exit status, length, content and qemu-img check must agree.
"""

import os
import random
import shutil

import pytest

import seeds
from test_full_disk import consistent, small_file_system
from tool import KIB, MIB, img, info, io, ok, qimg, qio, refused


def pair(tmp_path, *create, data=()):
    """Two equal images: ours and theirs."""
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    ok(qimg("create", "-q", *create[:-1], ours, create[-1]))
    if data:
        ok(qio(ours, *data, options=("-f", create[create.index("-f") + 1])))
    shutil.copy(ours, theirs)
    return ours, theirs


def same_after(ours, theirs, fmt, *args):
    a, b = img("resize", "-f", fmt, *args[:-1], ours, args[-1]), qimg("resize", "-f", fmt, *args[:-1], theirs, args[-1])
    assert a.rc == b.rc, f"{a}\n{b}"
    assert a.out == b.out, f"{a}\n{b}"
    assert info(ours, fmt)["virtual-size"] == info(theirs, fmt)["virtual-size"]
    ok(qimg("compare", "-q", "-f", fmt, "-F", fmt, ours, theirs))
    if fmt == "qcow2":
        ok(qimg("check", "-q", ours))
        ok(img("check", "-q", ours))
    if a.rc == 0:
        assert a.err == "", str(a)
    return a


@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
def test_sizes_in_every_notation(tmp_path, fmt):
    ours, theirs = pair(tmp_path, "-f", fmt, "1M", data=["write -P 7 0 1M"])
    for size in ("2M", "+512k", "+1", "3M", "0x400000", "4194304b", "1.5G"):
        if size != "+1":  # theirs wants multiples of 512; ours rounds up
            same_after(ours, theirs, fmt, size)


@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
def test_shrinking_must_be_meant(tmp_path, fmt):
    ours, theirs = pair(tmp_path, "-f", fmt, "4M", data=["write -P 7 0 4M"])
    before = ours.read_bytes()
    assert same_after(ours, theirs, fmt, "1M").rc == 1
    assert ours.read_bytes() == before
    refused(img("resize", "-f", fmt, ours, "1M"), "--shrink", "1048576", "4194304")
    for size in ("3M", "-1M", "-65536", "1024"):
        ok(qimg("resize", "-q", "--shrink", "-f", fmt, theirs, size))
        assert ok(img("resize", "--shrink", "-f", fmt, ours, size)).out == "Image resized.\n"
        ok(qimg("compare", "-q", "-f", fmt, "-F", fmt, ours, theirs))
    for size in ("0", "-1024"):
        same_after(ours, theirs, fmt, "--shrink", size)
    ok(img("resize", "-q", "-f", fmt, ours, "4M"))
    ok(qio(ours, "read -P 7 0 1024", "read -P 0 1024 4193280", options=("-f", fmt)))


def test_order_of_options_and_names(tmp_path):
    disk = tmp_path / "d"
    ok(img("create", "-q", "-f", "qcow2", disk, "8M"))
    ok(img("resize", disk, "-f", "qcow2", "-1M", "--shrink"))
    ok(img("resize", "--shrink", disk, "-1M", "-q", "-f", "qcow2"))
    ok(img("resize", "--image-opts", "--shrink", f"driver=qcow2,file.filename={disk}", "--", "-1M"))
    assert info(disk)["virtual-size"] == 5 * MIB


def test_shrinking_gives_space_back(tmp_path):
    disk = tmp_path / "d"
    ok(img("create", "-q", "-f", "qcow2", disk, "64M"))
    ok(io(disk, "write -P 1 0 64M"))
    full = os.stat(disk).st_blocks
    ok(img("resize", "-q", "--shrink", disk, "4M"))
    assert os.stat(disk).st_blocks < full // 8
    ok(qimg("check", "-q", disk))
    ok(qio(disk, "read -P 1 0 4M"))


@pytest.mark.parametrize("fmt,modes", [("raw", ("falloc", "full")), ("qcow2", ("metadata", "falloc", "full"))])
def test_preallocation(tmp_path, fmt, modes):
    for mode in ("off", *modes):
        ours, theirs = pair(tmp_path, "-f", fmt, "1M", data=["write -P 7 0 1M"])
        same_after(ours, theirs, fmt, f"--preallocation={mode}", "9M")
        if mode in ("falloc", "full"):
            assert os.stat(ours).st_blocks * 512 >= 9 * MIB
        extents = [e for e in ok(img("map", "--output=json", "-f", fmt, ours)).json if e["start"] >= MIB]
        assert all("offset" in e for e in extents) == (mode != "off" or fmt == "raw"), extents
        assert same_after(ours, theirs, fmt, f"--preallocation={mode}", "9M").rc == (mode != "off")
        ours.unlink()
    ours, theirs = pair(tmp_path, "-f", fmt, "1M")
    assert same_after(ours, theirs, fmt, "--preallocation=half", "2M").rc == 1


def test_a_longer_backing_file_does_not_show(tmp_path):
    base = tmp_path / "base"
    ok(qimg("create", "-q", "-f", "raw", base, "8M"))
    ok(qio(base, "write -P 3 0 8M", options=("-f", "raw")))
    for options in ("cluster_size=64k", "cluster_size=2M", "compat=0.10"):
        ours, theirs = pair(tmp_path, "-f", "qcow2", "-o", options, "-b", base, "-F", "raw", str(MIB + 512))
        if "0.10" in options:  # theirs cannot
            ok(img("resize", "-q", ours, "5M"))
        else:
            same_after(ours, theirs, "qcow2", "5M")
        ok(qimg("check", "-q", ours))
        ok(qio(ours, f"read -P 3 0 {MIB + 512}", f"read -P 0 {MIB + 512} {4 * MIB - 512}"))
        ours.unlink()


def test_snapshots_keep_their_size(tmp_path):
    ours, theirs = pair(tmp_path, "-f", "qcow2", "4M", data=["write -P 7 0 4M"])
    for disk in (ours, theirs):
        ok(qimg("snapshot", "-c", "one", disk))
    same_after(ours, theirs, "qcow2", "--shrink", "1M")
    same_after(ours, theirs, "qcow2", "6M")
    for disk in (ours, theirs):
        ok(qimg("snapshot", "-a", "one", disk))
    ok(qimg("compare", ours, theirs))
    ok(qio(ours, "read -P 7 0 4M"))
    old = tmp_path / "old"
    ok(qimg("create", "-q", "-f", "qcow2", "-o", "compat=0.10", old, "1M"))
    ok(qimg("snapshot", "-c", "one", old))
    refused(img("resize", old, "2M"), "version 2", "snapshots")


def test_what_is_wrong_changes_nothing(tmp_path):
    disk = tmp_path / "d"
    ok(img("create", "-q", "-f", "qcow2", disk, "1M"))
    before = disk.read_bytes()
    for args in (["x"], ["12q"], [""], ["-2M", "--shrink"], ["9E"], ["--preallocation=falloc", "1M"], ["1M", "2M"], [],
                 ["--nothing", "2M"], ["--preallocation"], ["-f", "raw2", "2M"], ["2M", "--object", "secret,id=a"]):
        refused(img("resize", *args[:1], *args[1:], disk) if args and args[0].startswith("--") else img("resize", disk, *args))
        assert disk.read_bytes() == before
    refused(img("resize", tmp_path / "none", "1M"), "none")


@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
def test_a_full_disk_keeps_the_length(tmp_path, kind):
    """A file system that is too small for the new part: the error says so, the image stays as long as it was."""
    with small_file_system(kind, tmp_path, 16 * MIB) as where:
        disk = where / "d"
        for fmt in ("raw", "qcow2"):
            for mode in ("falloc", "full"):
                ok(img("create", "-q", "-f", fmt, disk, "1M"))
                ok(io(disk, "write -P 6 0 1M", options=("-f", fmt)))
                refused(img("resize", "-f", fmt, f"--preallocation={mode}", disk, "64M"), "No space left")
                assert info(disk, fmt)["virtual-size"] == MIB
                consistent(fmt, disk)
                ok(img("resize", "-q", "-f", fmt, disk, "2M"))
                ok(qio(disk, "read -P 6 0 1M", "read -P 0 1M 1M", options=("-f", fmt)))
                disk.unlink()


def test_random(tmp_path):
    """Beside qemu-img for exit status and length; beside a model for the bytes (theirs may show what was cut off once)."""
    seed = seeds.seed()
    rng = random.Random(seed)
    model = tmp_path / "model"
    for _ in range(int(os.environ.get("VARVE_SEEDS", 6))):
        fmt = rng.choice(["qcow2", "qcow2", "raw"])
        options = ["-o", f"cluster_size={rng.choice(['512', '4k', '64k', '1M'])},compat={rng.choice(['1.1', '0.10'])}"]
        ours, theirs = pair(tmp_path, *(options if fmt == "qcow2" else []), "-f", fmt, str(rng.randrange(1, 8192) * 512))
        model.write_bytes(bytes(info(ours, fmt)["virtual-size"]))
        for step in range(6):
            size = info(ours, fmt)["virtual-size"]
            if size >= 8 * KIB:
                off = rng.randrange(size - 4 * KIB) // 512 * 512
                length = min(rng.randrange(1, 1024) * 512, size - off)
                ok(io(ours, f"write -P {step + 1} {off} {length}", options=("-f", fmt)))
                with open(model, "r+b") as m:
                    m.seek(off)
                    m.write(bytes([step + 1]) * length)
            args = ["--shrink"] if rng.random() < 0.7 else []
            mode = rng.choice(["off", "off", "metadata", "falloc", "full"])
            if mode != "off":
                args.append(f"--preallocation={mode}")
            new = rng.randrange(8192) * 512
            a = img("resize", "-f", fmt, *args, ours, str(new))
            b = qimg("resize", "-f", fmt, *args, theirs, str(new))
            assert (a.rc, a.out) == (b.rc, b.out), f"{a}\n{b}"
            if a.rc == 0:
                os.truncate(model, new)
            assert info(ours, fmt)["virtual-size"] == info(theirs, fmt)["virtual-size"]
            ok(qimg("compare", "-q", "-f", fmt, "-F", "raw", ours, model))
            if fmt == "qcow2":
                ok(qimg("check", "-q", ours))
                ok(img("check", "-q", ours))
