# SPDX-License-Identifier: MIT
"""test_img_dd - varve img dd beside qemu-img dd, and what Proxmox VE's scripts ask of it besides"""

import os
import random
import subprocess

import pytest

from tool import KIB, MIB, img, info, io, ok, qimg, qio, refused, varve_path


@pytest.fixture
def disk(tmp_path):
    path = tmp_path / "disk.qcow2"
    ok(qimg("create", "-q", "-f", "qcow2", path, "3M"))
    ok(qio(path, "write -P 5 0 100k", "write -P 6 1M 300k", "write -P 7 2900k 172k"))
    return path


def raw(path, fmt, to):
    ok(qimg("convert", "-f", fmt, "-O", "raw", path, to))
    return to.read_bytes()


def test_beside_qemu_img(tmp_path, disk):
    rng = random.Random(5)
    for turn in range(12):
        fmt = rng.choice(["raw", "qcow2"])
        operands = [f"bs={rng.choice(['512', '4k', '1M', '65536', '1000'])}"] if rng.random() < 0.8 else []
        if rng.random() < 0.7:
            operands.append(f"count={rng.randrange(1, 200)}")
        elif rng.random() < 0.7:  # theirs takes what it skips from count=
            operands.append(f"skip={rng.randrange(0, 3)}")
        ours, theirs = tmp_path / f"ours{turn}", tmp_path / f"theirs{turn}"
        if rng.random() < 0.3 and fmt == "raw":  # an old file is replaced
            ours.write_bytes(b"x" * 5 * MIB)
        options = ["-f", "qcow2", "-O", fmt]
        a = img("dd", *options, f"if={disk}", f"of={ours}", *operands)
        b = qimg("dd", *options, *operands, f"if={disk}", f"of={theirs}")
        assert a.rc == b.rc, f"{a}\n{b}"
        if b.rc == 0:
            ok(a)
            assert raw(ours, fmt, tmp_path / "a") == raw(theirs, fmt, tmp_path / "b"), operands


def test_streams(tmp_path, disk):
    want = raw(disk, "qcow2", tmp_path / "want")
    p = subprocess.run([varve_path(), "img", "dd", "-f", "qcow2", f"if={disk}", "bs=64k"], capture_output=True, check=True, timeout=240)
    assert p.stdout == want and p.stderr == b""
    for fmt in ("raw", "qcow2"):
        for size in ([f"isize={len(want)}"], [f"osize={len(want)}"], [f"isize={len(want)}", "osize=5M"]):
            out = tmp_path / "out"
            p = subprocess.run([varve_path(), "img", "dd", "-O", fmt, f"of={out}", "bs=64k", *size], input=want,
                               capture_output=True, check=True, timeout=240)
            assert p.stdout == p.stderr == b""
            length = 5 * MIB if "osize=5M" in size else len(want)
            assert raw(out, fmt, tmp_path / "a") == want.ljust(length, b"\0")
            out.unlink()
    p = subprocess.run([varve_path(), "img", "dd", "bs=1k", "skip=3", "count=7"], input=want, capture_output=True, check=True, timeout=240)
    assert p.stdout == want[3 * KIB:10 * KIB]
    # Streams are raw, which may be said.
    p = subprocess.run([varve_path(), "img", "dd", "-f", "raw", "-O", "raw", "bs=1k", "count=3"], input=want,
                       capture_output=True, check=True, timeout=240)
    assert p.stdout == want[:3 * KIB]
    refused(img("dd", "-f", "qcow2", input="x"), "-f")


def test_into_what_exists(tmp_path, disk):
    want = raw(disk, "qcow2", tmp_path / "want")
    out = tmp_path / "out"
    ok(qimg("create", "-q", "-f", "qcow2", out, "4M"))
    ok(qio(out, "write -P 9 0 4M"))
    ok(img("dd", "-n", "-f", "qcow2", "-O", "qcow2", f"if={disk}", f"of={out}", "bs=1M"))
    assert raw(out, "qcow2", tmp_path / "a") == want + b"\x09" * MIB
    ok(qimg("check", "-q", out))
    small = tmp_path / "small"
    small.write_bytes(b"x" * MIB)
    refused(img("dd", "-n", "-f", "qcow2", f"if={disk}", f"of={small}"), "small", "1048576")
    assert small.read_bytes() == b"x" * MIB


def test_part_of_an_image(tmp_path, disk):
    """isize= and osize= with an image as the input, as Proxmox VE clones the small disks of UEFI variables."""
    want = raw(disk, "qcow2", tmp_path / "want")
    out = tmp_path / "out"
    out.write_bytes(b"x" * 2 * MIB)
    ok(qimg("snapshot", "-c", "before", disk))
    ok(qio(disk, "write -P 1 0 3M"))
    ok(img("dd", "-n", "-O", "raw", "-l", "before", f"bs={MIB}", "osize=131072", f"if={disk}", f"of={out}"))
    assert out.read_bytes() == want[:131072] + b"x" * (2 * MIB - 131072)
    ok(img("dd", "-n", "-O", "raw", "-l", "before", f"if={disk}", f"of={out}", "isize=1536", "skip=1"))
    assert out.read_bytes()[:KIB] == want[512:1536] and out.read_bytes()[KIB:2 * KIB] == want[KIB:2 * KIB]
    ok(img("dd", "-O", "raw", "-l", "before", f"if={disk}", f"of={out}", "osize=1000448"))
    assert out.read_bytes() == want[:1000448]
    refused(img("dd", f"if={disk}", f"of={tmp_path / 'none'}", "isize=4M"), "3145728", "isize")
    assert not (tmp_path / "none").exists()
    # A stream that does not end there was not meant.
    refused(img("dd", "-n", f"of={out}", "osize=3", input="longer"), "is full", "3 bytes")


EDGES = ["", "0", "1", "602", "603", "604", "605", "1M", "8E", "9223372036854775807", "9223372036854775808", "18446744073709551615", "-1",
         "x", "1k", "0x10", "1.5k"]


def edges():
    for bs in ("", "512", "1000", "2147483647"):
        for key in ("count", "skip"):
            for number in EDGES:
                yield [f"bs={bs}"] * bool(bs) + [f"{key}={number}"]
    for bs in ("0", "-1", "x", "2147483648", "2G", "1.5k"):
        yield [f"bs={bs}"]


def test_edges_beside_qemu_img(tmp_path):
    """Exit codes, contents and lengths; what leads beyond the end is a warning, and an empty image."""
    source, warned = tmp_path / "in", 0
    source.write_bytes(random.Random(3).randbytes(603 * 512))
    for operands in edges():
        results = []
        for tool in (img, qimg):
            out = tmp_path / "out"
            out.unlink(missing_ok=True)
            r = tool("dd", "-f", "raw", f"if={source}", f"of={out}", *operands)
            results.append((r.rc, out.read_bytes() if out.exists() else None))
            if tool is img:
                said = r.err
        ours, theirs = results
        assert ours == theirs, f"{operands}: {[(r[0], r[1] is not None and len(r[1])) for r in results]}"
        assert said.count("\n") == (1 if ours[0] or "warning" in said else 0), said
        warned += "is beyond the end of" in said
    assert warned > 10
    for fmt in ("raw", "qcow2"):
        ok(qimg("convert", "-f", "raw", "-O", fmt, source, tmp_path / "source"))
        out = tmp_path / "out"
        r = img("dd", "-f", fmt, "-O", "qcow2", f"if={tmp_path / 'source'}", f"of={out}", "skip=604", "count=3")
        assert r.rc == 0 and "warning" in r.err and info(out)["virtual-size"] == 0
    r = img("dd", f"of={out}", "isize=1024", "skip=3", input="x" * 1024)
    assert r.rc == 0 and "warning" in r.err and out.read_bytes() == b""


def test_count_begins_behind_skip(tmp_path, disk):
    want = raw(disk, "qcow2", tmp_path / "want")
    ok(img("dd", f"if={disk}", f"of={tmp_path / 'out'}", "bs=4k", "skip=20", "count=40"))
    assert (tmp_path / "out").read_bytes() == want[80 * KIB:240 * KIB]


def test_of_a_snapshot(tmp_path, disk):
    want = raw(disk, "qcow2", tmp_path / "want")
    ok(qimg("snapshot", "-c", "before", disk))
    ok(qio(disk, "write -P 1 0 3M"))
    for name in ("before", "1", "snapshot.name=before", "snapshot.id=1"):
        ok(img("dd", "-l", name, f"if={disk}", f"of={tmp_path / 'out'}"))
        assert (tmp_path / "out").read_bytes() == want
    refused(img("dd", "-l", "nobody", f"if={disk}", f"of={tmp_path / 'none'}"), "nobody")
    assert not (tmp_path / "none").exists()
    assert ok(img("measure", "-l", "before", "-O", "qcow2", disk)).out == ok(qimg("measure", "-l", "before", "-O", "qcow2", disk)).out


def test_what_is_wrong_leaves_nothing(tmp_path, disk):
    out = tmp_path / "out"
    for words, args in ((["what"], ["what=1"]), (["bs"], ["bs=0"]), (["bs"], ["bs=3G"]), (["count"], ["count=x"]), (["skip"], ["skip=-1"]),
                        (["isize"], ["isize=5M"]), (["fmt"], ["-O", "fmt"]), (["none"], [f"if={tmp_path / 'none'}"])):
        refused(img("dd", f"if={disk}", f"of={out}", *args), *words)
        assert not out.exists()
    refused(img("dd", f"of={out}", input=""), "isize")
    refused(img("dd", f"of={out}", "isize=1M", input="short"), "ended after 5 bytes")
    assert not out.exists()
    before = disk.read_bytes()
    refused(img("dd", f"if={disk}", f"of={disk}"), "read from")
    assert disk.read_bytes() == before
