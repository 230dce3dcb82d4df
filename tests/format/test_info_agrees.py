# SPDX-License-Identifier: MIT
"""test_info_agrees - `img info` of what only other programs can make: snapshots, bitmaps, encryption, data files"""

import os
import resource
import struct
import subprocess
import sys

import pytest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir, "interop"))

import cpu
from tool import GIB, childless, img, io, ok, qimg, qio, refused, sanitized, varve_path  # noqa: E402

SECRET = ["--object", "secret,id=s,data=letmein"]


def agree(path):
    ours, theirs = (childless(ok(tool("info", "--output=json", path)).json) for tool in (img, qimg))
    assert ours == theirs
    human, their_human = (ok(tool("info", path)).out for tool in (img, qimg))
    assert human.splitlines()[:4] == their_human.splitlines()[:4]
    return ours


def create(path, options="", *args):
    ok(qimg("create", "-q", "-f", "qcow2", *args, *(["-o", options] if options else []), path, "10M"))


@pytest.mark.parametrize("options", ["", "compat=0.10", "lazy_refcounts=on,refcount_bits=1", "extended_l2=on,cluster_size=128k",
                                     "compression_type=zstd", "cluster_size=512"])
def test_features(tmp_path, options):
    disk = tmp_path / "disk"
    create(disk, options)
    agree(disk)


def test_snapshots_with_names_of_all_kinds(tmp_path):
    disk = tmp_path / "disk"
    create(disk)
    for name in ("plain", "with space", "ümläut", "日本", "x" * 200, 'quote " and \\'):
        ok(qimg("snapshot", "-c", name, disk))
        ok(qio(disk, "write -P 1 0 64k"))
    assert len(agree(disk)["snapshots"]) == 6


def test_bitmaps(tmp_path):
    disk = tmp_path / "disk"
    create(disk)
    ok(qimg("bitmap", "--add", "-g", "512", disk, "fine"))
    ok(qimg("bitmap", "--add", "--disable", "-g", "1M", disk, "coarse"))
    assert len(agree(disk)["format-specific"]["data"]["bitmaps"]) == 2


def test_encryption(tmp_path):
    disk = tmp_path / "disk"
    create(disk, "encrypt.format=aes,encrypt.key-secret=s", *SECRET)
    assert agree(disk)["encrypted"]


def test_luks_header(tmp_path):
    disk = tmp_path / "disk"
    options = ("encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10,encrypt.cipher-alg=aes-128,"
               "encrypt.cipher-mode=cbc,encrypt.ivgen-alg=essiv,encrypt.ivgen-hash-alg=sha256")
    for _ in range(5):
        made = qimg("create", "-q", "-f", "qcow2", *SECRET, "-o", options, disk, "10M")
        if made.rc == 0:
            break
    else:
        # It measures the machine's speed to choose its iterations, and gives up when others keep the machine busy.
        pytest.skip(f"qemu-img cannot make one here: {made.err.strip()}")
    data = agree(disk)["format-specific"]["data"]["encrypt"]
    assert data["format"] == "luks" and data["slots"][0]["active"]


def test_a_data_file_is_shown_and_not_opened(tmp_path):
    disk, data = tmp_path / "disk", tmp_path / "data.raw"
    create(disk, f"data_file={data},data_file_raw=on")
    agree(disk)
    data.unlink()
    shown = ok(img("info", "--output=json", disk)).json["format-specific"]["data"]
    assert shown["data-file"] == str(data) and shown["data-file-raw"]


def test_what_info_shows_reading_still_refuses(tmp_path):
    disk = tmp_path / "disk"
    create(disk, "encrypt.format=aes,encrypt.key-secret=s", *SECRET)
    assert io(disk, "read 0 512").rc == 1


def snapshot_table(entry_len, nr):
    name = entry_len - 40 - 16 - 1
    entry = struct.pack(">QIHHIIQIIQQ", 0x30000, 1, 1, name, 0, 0, 0, 0, 16, 0, 1 << 20) + b"1" + b"n" * name
    return (entry + bytes(-len(entry) % 8)) * nr


@pytest.mark.parametrize("entry_len,nr,good", [(64, 65536, True), (400, 65536, True), (1024, 65536, True), (1100, 65536, False),
                                               (64, 65537, False), (64, 2**32 - 1, False)])
def test_hostile_snapshot_tables_stay_within_limits(tmp_path, entry_len, nr, good):
    """1 GiB of addresses and 2 s of CPU (see cpu.py), as callers allow it; the answer is an answer or one line."""
    if sanitized():
        pytest.skip("a sanitizer's shadow memory is beyond any limit")
    disk = tmp_path / "disk"
    create(disk)
    with open(disk, "r+b") as f:
        f.seek(60)
        f.write(struct.pack(">IQ", nr, 0x100000))
        f.seek(0x100000)
        f.write(snapshot_table(entry_len, min(nr, 65536)))

    cpu_limit = cpu.limit(2)

    def limited():
        resource.setrlimit(resource.RLIMIT_AS, (GIB, GIB))
        cpu_limit()

    p = subprocess.run([varve_path(), "img", "info", "-f", "qcow2", "--output=json", disk], preexec_fn=limited,
                       capture_output=True, timeout=240, check=False, text=True)
    if good:
        assert p.returncode == 0 and p.stderr == "", p.stderr
    else:
        assert p.returncode == 1 and p.stderr.count("\n") == 1 and "snapshot" in p.stderr, (p.returncode, p.stderr)


def test_a_cut_off_snapshot_table_is_one_line(tmp_path):
    disk = tmp_path / "disk"
    create(disk)
    with open(disk, "r+b") as f:
        f.seek(60)
        f.write(struct.pack(">IQ", 5, 0x40000))
    refused(img("info", disk), "snapshot")
