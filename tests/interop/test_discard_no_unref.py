# SPDX-License-Identifier: MIT
"""test_discard_no_unref - clusters that are discarded keep their place in the file, and give its blocks back"""

import os
import random

import pytest

from tool import KIB, MIB, img, info, io, ok, qimg, qio, refused

OPTIONS = "driver=qcow2,discard-no-unref={},file.filename=disk"


def vio(*commands, keep="on"):
    return ok(io(OPTIONS.format(keep), *[f"{c.split()[0]} -q {' '.join(c.split()[1:])}" for c in commands], options=["--image-opts"]))


def places():
    """Guest offset to offset in the file, of all clusters that hold data."""
    return {e["start"]: (e["length"], e["offset"]) for e in ok(img("map", "--output=json", "disk")).json if e["data"]}


@pytest.fixture(params=["alone", "overlay", "small clusters"])
def disk(request, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if request.param == "overlay":
        ok(qimg("create", "-q", "-f", "raw", "base", "8M"))
        ok(qio("base", "write -q -P 200 0 8M", options=("-f", "raw")))
    ok(img("create", "-q", "-f", "qcow2", *(["-b", "base", "-F", "raw"] if request.param == "overlay" else []),
           "-o", "cluster_size=" + ("4k" if request.param == "small clusters" else "64k"), "disk", "8M"))
    vio("write -P 1 0 8M")


def clean():
    ok(qimg("check", "-q", "disk"))
    ok(img("check", "-q", "disk"))


@pytest.mark.parametrize("command", ["discard", "write -z -u"])
def test_space_is_given_back_and_the_place_kept(disk, command):
    before, length, blocks = places(), os.path.getsize("disk"), os.stat("disk").st_blocks * 512
    vio(f"{command} 1M 4M")
    clean()
    assert os.path.getsize("disk") == length
    assert os.stat("disk").st_blocks * 512 <= blocks - 3 * MIB
    ok(qio("disk", "read -q -P 1 0 1M", "read -q -P 0 1M 4M", "read -q -P 1 5M 3M"))
    # A place that is kept is written again; the rest of a cluster is zeroes.
    vio("write -P 2 1M 2M", "write -P 3 3075k 1k", "write -P 2 3328k 1792k")
    clean()
    ok(qio("disk", "read -q -P 2 1M 2M", "read -q -P 3 3075k 1k", "read -q -P 0 3M 3k", "read -q -P 2 3328k 1792k"))
    assert os.path.getsize("disk") == length
    after = places()
    for start, (_, offset) in after.items():
        at = max(s for s in before if s <= start)
        assert offset == before[at][1] + start - at, (before, after)


def test_without_it_places_go(disk):
    vio("discard 0 8M", keep="off")
    clean()
    assert not places() and os.stat("disk").st_blocks * 512 < MIB


def test_clusters_of_others_are_given_up(disk):
    """What a snapshot has, too, and what is compressed, is not ours to keep."""
    ok(img("snapshot", "-c", "one", "disk"))
    vio("discard 0 4M")
    clean()
    ok(qio("disk", "read -q -P 0 0 4M"))
    ok(img("snapshot", "-a", "one", "disk"))
    ok(qio("disk", "read -q -P 1 0 8M"))
    ok(img("convert", "-c", "-O", "qcow2", "disk", "packed"))
    os.replace("packed", "disk")
    vio("discard 1M 2M", "write -P 4 1M 64k")
    clean()
    ok(qio("disk", "read -q -P 4 1M 64k", "read -q -P 0 1088k 960k", "read -q -P 1 3M 5M"))


def test_random(disk):
    rng = random.Random(4)
    want = bytearray(b"\1" * 8 * MIB)
    for turn in range(12):
        commands = []
        for _ in range(12):
            off = rng.randrange(0, 8 * MIB - 512, 512)
            length = min(rng.choice([512, 3 * KIB, 64 * KIB, 700 * KIB]), 8 * MIB - off)
            if rng.random() < 0.5:
                byte = rng.randrange(1, 256)
                commands.append(f"write -P {byte} {off} {length}")
                want[off:off + length] = bytes([byte]) * length
            else:
                commands.append(f"write -z -u {off} {length}")
                want[off:off + length] = bytes(length)
        vio(*commands, keep=rng.choice(["on", "on", "off"]))
        clean()
    ok(qimg("convert", "-O", "raw", "disk", "got"))
    assert open("got", "rb").read() == want


def test_version_2_cannot(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ok(img("create", "-q", "-f", "qcow2", "-o", "compat=0.10", "disk", "1M"))
    r = io(OPTIONS.format("on"), "write 0 1k", options=["--image-opts"])
    assert r.rc == 1 and "discard-no-unref" in r.err and "version 2" in r.err, str(r)
    refused(img("convert", "-n", "--target-image-opts", "disk", OPTIONS.format("x").replace("disk", "out")), "discard-no-unref")


def test_as_proxmox_converts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ok(qimg("create", "-q", "-f", "raw", "src", "3M"))
    ok(qio("src", "write -q -P 7 1M 1M", options=("-f", "raw")))
    ok(qimg("create", "-q", "-f", "qcow2", "disk", "3M"))
    ok(img("convert", "-p", "-n", "-f", "raw", "src", "--target-image-opts", OPTIONS.format("true")))
    ok(qimg("compare", "-q", "-f", "raw", "-F", "qcow2", "src", "disk"))
    assert info("disk")["format"] == "qcow2"
    clean()
