# SPDX-License-Identifier: MIT
"""Persistent dirty bitmaps of a disk that gets another length: they stay, as with qemu-img

What a bitmap says is read by qemu-nbd. Never: leaves a server running.
"""

import json
import os
import random
import shutil
import socket

import pytest

import seeds
from serving import Server
from test_img_bitmap import bitmaps, clean, dirty, increment_is_enough, killed, within
from tool import KIB, MIB, TIMEOUT, img, info, io, ok, qimg, qio, refused


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def content(path):
    with open(path, "rb") as f:
        return f.read()


def resized(stretches, size):
    """What a shorter disk keeps of them; a longer one has them as they are."""
    return [(off, min(length, size - off)) for off, length in stretches if off < size]


def test_as_the_peer_does(here):
    """Both give equal images the same lengths; what bitmaps say is equal, whoever made and wrote them."""
    for seed in seeds.seeds(2):
        rng = random.Random(f"resized {seed}")
        options = rng.choice(["cluster_size=512", "cluster_size=4k", "cluster_size=64k", "cluster_size=64k,extended_l2=on",
                              "cluster_size=64k,lazy_refcounts=on", "cluster_size=2M"])
        size = rng.randrange(20, 20000) * 512
        ok(qimg("create", "-q", "-f", "qcow2", "-o", options, "ours", str(size)))
        names = {}
        for i in range(rng.randrange(1, 4)):
            names[f"b{i}"] = 512 << rng.randrange(12)
            ok(rng.choice([img, qimg])("bitmap", "--add", "-g", str(names[f"b{i}"]), "ours", f"b{i}"))
        snapshot = rng.random() < 0.5 and "2M" not in options
        for step in range(3):
            for _ in range(rng.randrange(3)):
                off = rng.randrange(size // 512) * 512
                length = min(rng.randrange(1, 3000) * 512, size - off)
                ok(rng.choice([io, qio])("ours", f"{rng.choice(['write -q', 'write -q -z', 'discard -q'])} {off} {length}"))
            if snapshot and step == 1:
                ok(img("snapshot", "-c", "s", "ours"))
            if rng.random() < 0.3:
                ok(img("bitmap", rng.choice(["--disable", "--enable"]), "ours", "b0"))
            shutil.copy("ours", "theirs")
            size = max(512, rng.choice([size + rng.randrange(-300, 300) * 512, rng.randrange(1, 40000) * 512, size - 512, size + 512]))
            args = ["--shrink"] + (["--preallocation=metadata"] if rng.random() < 0.3 and size > info("ours")["virtual-size"] else [])
            for tool, disk in (img, "ours"), (qimg, "theirs"):
                ok(tool("resize", "-q", *args, disk, str(size)))
            text = f"VARVE_SEED={seed}: {options}, step {step}, to {size}"
            assert bitmaps("ours") == bitmaps("theirs"), text
            for name in names:
                assert dirty("ours", name) == dirty("theirs", name), f"{text}: {name}, granularity {names[name]}"
            clean("ours")
        ok(qimg("compare", "ours", "theirs"))


@pytest.mark.parametrize("options", ["cluster_size=512", "cluster_size=64k", "cluster_size=64k,data_file=data",
                                     "cluster_size=64k,extended_l2=on"])
def test_while_writes_are_noted(here, options):
    """An open disk gets shorter and longer between writes: bits of what was cut off are not there again."""
    size = 3 * MIB + 512
    ok(qimg("create", "-q", "-f", "qcow2", "-o", options, "a", str(size)))
    kinds = {"fine": 512, "middle": 64 * KIB, "coarse": 2 * MIB}
    for name, granularity in kinds.items():
        ok(qimg("bitmap", "--add", "-g", str(granularity), "a", name))
    ok(qimg("bitmap", "--add", "--disable", "-g", "64k", "a", "off"))
    rng, commands = random.Random(options), []
    model = {name: set() for name in kinds}

    def note(off, length):
        for name, granularity in kinds.items():
            model[name] |= set(range(off // granularity, (off + length - 1) // granularity + 1))

    def stretches(name):
        return within([(bit * kinds[name], 1) for bit in model[name]], kinds[name], size)

    note(size - 100 * KIB, 90 * KIB)
    ok(qio("a", f"write -q {size - 100 * KIB} 90k"))
    for new in (9 * MIB + 512, 2 * MIB + 100 * KIB, 12 * MIB, 700 * KIB + 512, 701 * KIB, 40 * MIB):
        commands.append(f"truncate {new}")
        for name, granularity in kinds.items():
            model[name] = {bit for bit in model[name] if bit * granularity < new}
        for _ in range(3):
            off = rng.randrange(new // 512) * 512
            length = min(rng.randrange(1, 600) * 512, new - off)
            commands.append(f"{rng.choice(['write -q', 'write -q -z', 'discard -q'])} {off} {length}")
            note(off, length)
        size = new
    ok(io("a", *commands))
    assert bitmaps("a") == {**{n: (g, {"auto"}) for n, g in kinds.items()}, "off": (64 * KIB, frozenset())}
    clean("a")
    for name in kinds:
        assert dirty("a", name) == stretches(name), name
    assert dirty("a", "off") == []
    ok(qio("a", "write -q 39M 64k"))
    note(39 * MIB, 64 * KIB)
    assert dirty("a", "middle") == stretches("middle")


def test_what_stands_behind_the_last_bit_does_not_come_back(here):
    """A table entry "all ones", and a cluster with bits behind its end, as other programs may leave them."""
    for kind in "ones", "bits":
        ok(qimg("create", "-q", "-f", "qcow2", kind, "10M"))
        ok(qimg("bitmap", "--add", "-g", "64k", kind, "behind"))
        ok(qio(kind, "write -q 0 64k"))
        with open(kind, "r+b") as f:
            data = f.read()
            table = int.from_bytes(data[data.rindex(b"behind") - 24:][:8], "big")
            entry = int.from_bytes(data[table:table + 8], "big")
            assert entry and entry % (64 * KIB) == 0
            f.seek(table if kind == "ones" else entry)
            f.write((1).to_bytes(8, "big") if kind == "ones" else b"\xff" * 64 * KIB)
        assert dirty(kind, "behind") == [[0, 10 * MIB]]
        ok(img("resize", kind, "3G"))
        assert dirty(kind, "behind") == [[0, 10 * MIB]], kind
        ok(img("resize", "--shrink", kind, str(64 * KIB * 11 - 512)))
        ok(img("resize", kind, "5G"))
        assert dirty(kind, "behind") == [[0, 11 * 64 * KIB]], kind
        assert img("check", kind).rc in (0, 3)  # "ones" had a cluster, which nothing leads to any more


def test_incremental_backups_go_on(here):
    """full + what is dirty = now, although the disk has got longer, shorter and longer meanwhile; a backup knows both lengths."""
    ok(img("create", "-q", "-f", "qcow2", "a", "24M"))
    ok(io("a", "write -q -P 1 0 24M"))
    ok(img("bitmap", "--add", "-g", "64k", "a", "since"))
    ok(img("convert", "-O", "raw", "a", "full"))
    lengths = 40 * MIB, 20 * MIB, 33 * MIB + 512
    ok(io("a", "write -q -P 2 1M 200k", "write -q -P 7 23M 1M"))
    for length, tool in zip(lengths, (img, qimg, img)):
        ok(tool("resize", "-q", "--shrink", "a", str(length)))
        ok(qio("a", f"write -q -P 3 {length - 70 * KIB} 1k"))
        ok(io("a", f"write -q -P 4 {length - 200 * KIB} 64k", "write -q -z 3M 64k"))
        os.truncate("full", length)
    ok(qimg("convert", "-O", "raw", "a", "now"))
    increment_is_enough("a", "since")
    # They go along, with both tools.
    for tool in img, qimg:
        ok(tool("convert", "--bitmaps", "-O", "qcow2", "a", "copy"))
        assert dirty("copy", "since") == dirty("a", "since")


def test_other_commands_that_change_the_length(here):
    ok(img("create", "-q", "-f", "qcow2", "a", "10M"))
    ok(img("bitmap", "--add", "-g", "64k", "a", "b"))
    ok(io("a", "write -q 9M 1M"))
    ok(img("amend", "-o", "size=20M,lazy_refcounts=on", "a"))
    assert bitmaps("a") == {"b": (64 * KIB, {"auto"})} and dirty("a", "b") == [[9 * MIB, 10 * MIB]]
    ok(img("create", "-q", "-f", "qcow2", "-b", "a", "-F", "qcow2", "top", "30M"))
    ok(io("top", "write -q 25M 1M"))
    ok(img("commit", "top"))
    assert info("a")["virtual-size"] == 30 * MIB
    assert dirty("a", "b") == [[9 * MIB, 10 * MIB], [25 * MIB, 26 * MIB]]
    clean("a")


@pytest.mark.parametrize("options", ["cluster_size=512", "cluster_size=64k,extended_l2=on,lazy_refcounts=on"])
def test_snapshots_of_other_lengths(here, options):
    """Applied one after the other: enabled bitmaps know that all has changed, others keep what they had as far as the disk reaches."""
    rng, contents, sizes = random.Random(options), {}, {}
    ok(img("create", "-q", "-f", "qcow2", "-o", options, "a", "3M"))
    for name, size in ("s", 3 * MIB), ("m", 700 * KIB + 512), ("l", 20 * MIB), ("t", 5 * MIB + 512):
        if size != 3 * MIB:
            ok(img("resize", "-q", "--shrink", "a", str(size)))
        for i in range(2):
            off = rng.randrange(size // 512) * 512
            ok(io("a", f"write -q -P {rng.randrange(1, 256)} {off} {min(size - off, rng.randrange(1, 600) * 512)}"))
        ok(img("snapshot", "-c", name, "a"))
        ok(qimg("convert", "-O", "raw", "a", f"{name}.raw"))
        contents[name], sizes[name] = content(f"{name}.raw"), size
    for name, granularity in ("fine", 512), ("coarse", 64 * KIB), ("off", 4 * KIB):
        ok(img("bitmap", "--add", "-g", str(granularity), "a", name))
        if name == "off":
            ok(io("a", "write -q 100k 20k", "write -q 5M 512"))
            ok(img("bitmap", "--disable", "a", "off"))
            ok(img("bitmap", "--clear", "a", "fine"))
    off = dirty("a", "off")
    for name in "m", "l", "s":
        ok(img("snapshot", "-a", name, "a"))
        assert info("a")["virtual-size"] == sizes[name]
        ok(qimg("convert", "-O", "raw", "a", "now"))
        assert content("now") == contents[name], name
        assert set(bitmaps("a")) == {"fine", "coarse", "off"}
        assert not any("in-use" in flags for _, flags in bitmaps("a").values())
        for bitmap in "fine", "coarse":
            assert dirty("a", bitmap) == [[0, sizes[name]]], (name, bitmap)
        off = within(resized([(a, b - a) for a, b in off], sizes[name]), 4 * KIB, sizes[name])
        assert dirty("a", "off") == off, name
        clean("a")
        ok(io("a", "write -q -P 1 0 512"))


def test_a_snapshot_for_whose_length_a_bitmap_cannot_be_kept(here):
    ok(img("create", "-q", "-f", "qcow2", "a", "8T"))
    ok(img("snapshot", "-c", "s", "a"))
    ok(img("resize", "-q", "--shrink", "a", "8M"))
    ok(io("a", "write -q -P 3 0 1M"))
    ok(img("bitmap", "--add", "-g", "1M", "a", "fits"))
    ok(img("bitmap", "--add", "-g", "512", "a", "fine"))
    ok(io("a", "write -q -P 3 1M 64k"))
    refused(img("snapshot", "-a", "s", "a"), "'fine'", str(8 << 40))
    assert info("a")["virtual-size"] == 8 * MIB and dirty("a", "fine") == [[MIB, MIB + 64 * KIB]]
    clean("a")
    ok(img("bitmap", "--remove", "a", "fine"))
    ok(img("snapshot", "-a", "s", "a"))
    assert dirty("a", "fits") == [[0, 8 << 40]]
    clean("a")


def test_a_disk_that_is_served(here):
    """Longer and shorter by the control socket, between guests; a bit is set for everything that is not zeroes."""
    ok(img("create", "-q", "-f", "qcow2", "a", "16M"))
    ok(img("bitmap", "--add", "-g", "4k", "a", "b"))
    load = ("--rw", "randwrite", "--ops", "200", "--seed", "5")
    with Server("a", "qcow2", "sock-s", "pid", "--control", "control") as server:
        with socket.socket(socket.AF_UNIX) as control:
            control.settimeout(TIMEOUT)
            control.connect("control")
            answers = control.makefile("r")
            for length in "16M", "48M", "9M", "20M":
                control.sendall(json.dumps({"command": "resize", "size": length, "shrink": True}).encode() + b"\n")
                r = json.loads(answers.readline())
                assert r == {"return": {"length": int(length[:-1]) * MIB}}, r
                rc, report, err = server.load(*load)
                assert rc == 0, f"{report}\n{err}"
        code, err = server.stop()
        assert code == 0 and err == "", err
    assert bitmaps("a") == {"b": (4 * KIB, {"auto"})} and info("a")["virtual-size"] == 20 * MIB
    clean("a")
    noted = dirty("a", "b")
    ok(img("convert", "-O", "raw", "a", "raw"))
    data, holes = content("raw"), [[0, 0], *noted, [20 * MIB, 20 * MIB]]
    assert any(data[9 * MIB:]) and sum(b - a for a, b in noted) < len(data)
    for (_, end), (start, _) in zip(holes, holes[1:]):
        assert not any(data[end:start]), f"written between {end} and {start}, and not noted"


def test_what_cannot_be_kept_is_refused(here):
    """By one line, with the bitmap's name; nothing is changed. The peer refuses the first, and loses the others."""
    ok(qimg("create", "-q", "-f", "qcow2", "a", "16M"))
    ok(qimg("bitmap", "--add", "-g", "64k", "a", "broken"))
    killed("a", "write -q 1M 64k")
    ok(img("create", "-q", "-f", "qcow2", "b", "16M"))
    for name in "fine", "second":  # each of them could be kept
        ok(img("bitmap", "--add", "-g", "512", "b", name))
    ok(img("create", "-q", "-f", "qcow2", "c", "16M"))
    ok(img("bitmap", "--add", "--disable", "-g", "512", "c", "fine"))
    ok(img("create", "-q", "-f", "qcow2", "d", "16M"))
    for name in "known", "other":
        ok(qimg("bitmap", "--add", "d", name))
    with open("d", "r+b") as f:
        at = f.read().rindex(b"other") - 24
        f.seek(at + 16)
        f.write(b"\x02")  # its type
    for disk, args, words in (("a", ["20M"], ["'broken'", "inconsistent", "--remove"]), ("a", ["--shrink", "1M"], ["'broken'", "--remove"]),
                              ("b", ["1536G"], ["'second'", "disable", "granularity", str(512 * MIB)]), ("c", ["3T"], ["'fine'", str(3 << 40), "512"]),
                              ("c", ["40T"], ["'fine'", "granularity 512"]), ("d", ["20M"], ["'other'", "type 2", "--remove"]),
                              ("d", ["--shrink", "1M"], ["'other'", "type 2"])):
        before = content(disk)
        refused(img("resize", disk, *args), *words)
        assert content(disk) == before, (disk, args)
    assert qimg("resize", "a", "20M").rc == 1 == qimg("resize", "--shrink", "a", "1M").rc
    refused(img("amend", "-o", "size=20M", "a"), "'broken'")
    r = io("b", "truncate 0", "truncate 1536G", "write -q 1M 512")
    assert r.rc == 1 and "'fine'" in r.err and "'second'" in r.err and len(r.err.splitlines()) == 2, str(r)
    assert dirty("b", "fine") == [[MIB, MIB + 512]] and info("b")["virtual-size"] == 16 * MIB
    # What was advised helps.
    ok(img("bitmap", "--remove", "a", "broken"))
    ok(img("resize", "a", "20M"))
    ok(img("bitmap", "--disable", "b", "fine"))
    ok(img("resize", "b", "300G"))
    assert dirty("b", "fine") == [[MIB, MIB + 512]]
    clean("a")
    clean("b")


def test_a_disk_that_fails_leaves_what_can_be_trusted(here):
    """Whichever sync fails: a bitmap of the length that the header says, true or marked."""
    ok(qimg("create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", "a", "16M"))
    ok(qimg("bitmap", "--add", "-g", "64k", "a", "b"))
    ok(qio("a", "write -q 3M 1M", "write -q 15M 1M"))
    tree = "driver=qcow2,file.driver=fault,file.file.filename=copy,file.rule.0.event=flush,file.rule.0.after="
    lengths = set()
    for new in 20 * MIB, 2 * MIB:
        for after in range(1, 8):
            shutil.copy("a", "copy")
            r = img("resize", "--shrink", "--image-opts", tree + str(after), str(new))
            size = info("copy")["virtual-size"]
            (_, flags), = bitmaps("copy").values()
            assert size in (16 * MIB, new) and (size == new or r.rc == 1)
            lengths.add((r.rc, size))
            assert "in-use" not in flags or new < size
            if "in-use" not in flags:
                assert dirty("copy", "b") == within(resized([(3 * MIB, MIB), (15 * MIB, MIB)], size), 64 * KIB, size)
                assert size == new or new > size or ok(qimg("compare", "a", "copy"))
            assert img("check", "copy").rc in (0, 3)
    assert {(1, 16 * MIB), (0, 20 * MIB), (0, 2 * MIB)} <= lengths
    # One that fails once, before anything of a disk is given up, costs nothing.
    shutil.copy("a", "copy")
    refused(img("resize", "--shrink", "--image-opts", tree + "1,file.rule.0.once=on", "2M"), "flags")
    assert bitmaps("copy") == bitmaps("a") and dirty("copy", "b") == dirty("a", "b")
    ok(qimg("compare", "a", "copy"))
