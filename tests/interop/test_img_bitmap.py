# SPDX-License-Identifier: MIT
"""Persistent dirty bitmaps: img bitmap, convert --bitmaps, and what becomes of them when the disk is written

What a bitmap says is read by qemu-nbd. Never: leaves a server running.
"""

import os
import random
import shutil
import socket
import subprocess
import time

import pytest

import seeds
from serving import Server
from tool import KIB, MIB, img, info, io, ok, qimg, qio, refused, run, sanitized, varve_path

LEN = 24 * MIB


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def bitmaps(path):
    """Name: (granularity, flags), as both tools say."""
    def told(i):
        return {b["name"]: (b["granularity"], frozenset(b["flags"])) for b in i["format-specific"]["data"].get("bitmaps", [])}

    ours = told(info(path))
    assert ours == told(ok(qimg("info", "--output=json", path)).json)
    return ours


def listens(path):
    """The name of a socket is there before anybody listens."""
    with socket.socket(socket.AF_UNIX) as s:
        return s.connect_ex(path) == 0


def dirty(path, name):
    """The stretches of the disk that the bitmap says are dirty."""
    sock = os.path.abspath("sock")
    server = subprocess.Popen(["qemu-nbd", "-r", "-t", "-k", sock, "-B", name, "-f", "qcow2", path])
    try:
        end = time.monotonic() + 240
        while not listens(sock):
            assert server.poll() is None and time.monotonic() < end
            time.sleep(0.01)
        lines = ok(qimg("map", "--output=json", "--image-opts", f"driver=nbd,server.type=unix,server.path={sock},"
                        f"x-dirty-bitmap=qemu:dirty-bitmap:{name}")).json
    finally:
        server.kill() # it only reads
        server.wait()
        if os.path.exists(sock):
            os.unlink(sock)
    joined = []
    for e in lines:
        if not e["data"]: # that is how a dirty stretch looks
            if joined and joined[-1][1] == e["start"]:
                joined[-1][1] += e["length"]
            else:
                joined.append([e["start"], e["start"] + e["length"]])
    return joined


def increment_is_enough(path, name):
    """The backup "full", with what is dirty since taken from "now", is the same as that: both are raw."""
    with open("full", "r+b") as full, open("now", "rb") as now:
        for start, end in dirty(path, name):
            now.seek(start)
            full.seek(start)
            full.write(now.read(end - start))
    ok(qimg("compare", "-f", "raw", "-F", "raw", "full", "now"))


def clean(path):
    ok(qimg("check", path)) # a leak is an error, too
    ok(img("check", path))


def test_dirty_is_what_it_seems(here):
    ok(qimg("create", "-q", "-f", "qcow2", "a", str(LEN)))
    ok(qimg("bitmap", "--add", "-g", "64k", "a", "b"))
    ok(qio("a", "write -q 1M 1k"))
    assert dirty("a", "b") == [[MIB, MIB + 64 * KIB]]


@pytest.mark.parametrize("cluster", [512, 64 * KIB])
def test_every_action(here, cluster):
    ok(img("create", "-q", "-f", "qcow2", "-o", f"cluster_size={cluster}", "a", str(LEN)))
    ok(img("bitmap", "--add", "-g", "16k", "a", "one"))
    ok(img("bitmap", "--add", "--disable", "a", "two"))
    default = min(max(cluster, 4 * KIB), 64 * KIB)
    assert bitmaps("a") == {"one": (16 * KIB, {"auto"}), "two": (default, frozenset())}
    clean("a")
    ok(qio("a", "write -q 1M 70k", "write -q 9M 3M"))
    assert dirty("a", "one") == [[MIB, MIB + 80 * KIB], [9 * MIB, 12 * MIB]]
    assert dirty("a", "two") == []
    ok(img("bitmap", "--merge", "one", "--enable", "a", "two"))
    ok(img("bitmap", "--add", "--merge", "two", "-g", "1M", "a", "three"))
    clean("a")
    step = max(default, 16 * KIB)
    assert dirty("a", "two") == [[MIB, MIB + (70 * KIB + step - 1) // step * step], [9 * MIB, 12 * MIB]]
    assert dirty("a", "three") == [[MIB, 2 * MIB], [9 * MIB, 12 * MIB]]
    assert bitmaps("a")["two"] == (default, {"auto"})
    ok(qio("a", "write -q 20M 1k"))
    assert dirty("a", "two")[2][0] == 20 * MIB
    ok(img("bitmap", "--clear", "a", "one"))
    assert dirty("a", "one") == []
    clean("a")
    for name in ("two", "one", "three"):
        ok(img("bitmap", "--remove", "a", name))
        clean("a")
    assert bitmaps("a") == {}


def test_merge_from_another_file(here):
    ok(qimg("create", "-q", "-f", "qcow2", "base", "16M"))
    ok(qimg("bitmap", "--add", "-g", "64k", "base", "b"))
    ok(qio("base", "write -q 3M 1M"))
    ok(qimg("create", "-q", "-f", "qcow2", "-b", "base", "-F", "qcow2", "top"))
    ok(qimg("bitmap", "--add", "-g", "4k", "top", "b"))
    ok(qio("top", "write -q 5M 4k"))
    ok(img("bitmap", "--merge", "b", "-b", "base", "-F", "qcow2", "-f", "qcow2", "top", "b"))
    assert dirty("top", "b") == [[3 * MIB, 4 * MIB], [5 * MIB, 5 * MIB + 4 * KIB]]
    clean("top")
    ok(qimg("create", "-q", "-f", "qcow2", "long", "32M"))
    ok(img("bitmap", "--add", "long", "b"))
    refused(img("bitmap", "--merge", "b", "-b", "base", "long", "b"), "16777216", "33554432")


def test_what_cannot_be_is_said(here):
    ok(qimg("create", "-q", "-f", "qcow2", "a", "16M"))
    ok(qimg("create", "-q", "-f", "qcow2", "-o", "compat=0.10", "old", "16M"))
    ok(qimg("create", "-q", "-f", "raw", "raw", "16M"))
    ok(img("bitmap", "--add", "a", "b"))
    before = open("a", "rb").read()
    for args, words in ((["--add", "a", "b"], ["b", "already"]), (["--remove", "a", "c"], ["c", "none"]),
                        (["--merge", "c", "a", "b"], ["c"]), (["--add", "old", "b"], ["compat"]),
                        (["--add", "-f", "raw", "raw", "b"], ["raw"]), (["--add", "a", "n" * 1024], ["1023"]),
                        (["--add", "a", ""], ["name"]), (["--add", "none", "b"], ["none"]),
                        (["--merge", "b", "-b", "none", "a", "b"], ["none"])):
        refused(img("bitmap", *args), *words)
    assert open("a", "rb").read() == before


def test_wrong_words_are_refused_as_by_the_peer(here):
    ok(qimg("create", "-q", "-f", "qcow2", "a", "16M"))
    for args in (["a", "n"], ["--add", "a"], ["--add", "-g", "3", "a", "n"], ["--remove", "-g", "64k", "a", "n"],
                 ["--add", "-b", "x", "a", "n"], ["--merge", "a", "n"], ["--add", "-F", "raw", "a", "n"]):
        refused(img("bitmap", *args))
        assert qimg("bitmap", *args).rc == 1
    assert bitmaps("a") == {}


# ---- what becomes of them when the disk is written ----

def killed(path, *commands):
    """A process that dies with the image open; what it wrote is there."""
    r = io(path, *commands, "flush", "abort")
    assert r.rc == -6, str(r)
    io(path, options=("-r",)) # waits for its locks to go


def test_a_writer_that_dies_leaves_the_mark(here):
    ok(qimg("create", "-q", "-f", "qcow2", "a", "16M"))
    for name in ("on", "off"):
        ok(qimg("bitmap", "--add", "-g", "64k", "a", name))
    ok(qio("a", "write -q 3M 1M"))
    ok(qimg("bitmap", "--disable", "a", "off"))
    killed("a", "write -q 1M 64k")
    # An enabled one has not been told of that. A disabled one speaks of a time that is over.
    assert bitmaps("a") == {"on": (64 * KIB, {"auto", "in-use"}), "off": (64 * KIB, frozenset())}
    assert dirty("a", "off") == [[3 * MIB, 4 * MIB]]
    clean("a")
    for action in ("--clear", "--enable", "--disable"):
        refused(img("bitmap", action, "a", "on"), "inconsistent")
    refused(img("bitmap", "--merge", "on", "a", "off"), "inconsistent")
    refused(img("convert", "--bitmaps", "-O", "qcow2", "a", "b"), "'on'", "--skip-broken-bitmaps")
    assert not os.path.exists("b")
    r = img("convert", "--bitmaps", "--skip-broken-bitmaps", "-O", "qcow2", "a", "b")
    assert r.rc == 0 and "'on'" in r.err and len(r.err.splitlines()) == 1, str(r)
    assert bitmaps("b") == {"off": (64 * KIB, frozenset())} and dirty("b", "off") == [[3 * MIB, 4 * MIB]]
    ok(img("bitmap", "--remove", "a", "on"))
    clean("a")
    assert list(bitmaps("a")) == ["off"]


def test_what_leaves_the_disk_as_it_is_leaves_bitmaps_too(here):
    ok(qimg("create", "-q", "-f", "qcow2", "a", "16M"))
    ok(qimg("create", "-q", "-f", "qcow2", "base", "16M"))
    ok(qimg("bitmap", "--add", "-g", "64k", "a", "on"))
    ok(qio("a", "write -q 3M 1M"))
    ok(img("amend", "-o", "lazy_refcounts=on,refcount_bits=32", "a"))
    ok(img("snapshot", "-c", "s", "a"))
    ok(img("snapshot", "-d", "s", "a"))
    ok(img("rebase", "-u", "-b", "base", "-F", "qcow2", "a"))
    with open("a", "r+b") as f: # the count of a cluster that nothing refers to: a leak
        f.seek(0, os.SEEK_END)
        end = (f.tell() + 65535) // 65536
        f.truncate((end + 1) * 65536)
    r = img("check", "-r", "all", "a")
    assert r.rc == 0, str(r)
    assert bitmaps("a") == {"on": (64 * KIB, {"auto"})} and dirty("a", "on") == [[3 * MIB, 4 * MIB]]
    clean("a")


def test_other_changes_keep_what_they_can(here):
    ok(qimg("create", "-q", "-f", "qcow2", "a", "16M"))
    ok(qimg("bitmap", "--add", "--disable", "-g", "64k", "a", "off"))
    ok(qimg("create", "-q", "-f", "qcow2", "base", "16M"))
    ok(img("amend", "-o", "lazy_refcounts=on,refcount_bits=32", "a"))
    ok(img("snapshot", "-c", "s", "a"))
    ok(img("rebase", "-u", "-b", "base", "-F", "qcow2", "a"))
    ok(img("snapshot", "-a", "s", "a"))
    ok(img("snapshot", "-d", "s", "a"))
    assert bitmaps("a") == {"off": (64 * KIB, frozenset())}
    clean("a")
    ok(img("rebase", "-u", "-b", "", "a"))
    ok(img("amend", "-o", "refcount_bits=16", "a"))
    ok(img("amend", "-o", "compat=0.10", "a"))
    assert bitmaps("a") == {}
    clean("a")


# ---- writes are noted ----

def within(stretches, granularity, size):
    """Stretches of written bytes as a bitmap of that granularity has them."""
    bits = sorted({i for off, length in stretches for i in range(off // granularity, (off + length - 1) // granularity + 1)})
    out = []
    for i in bits:
        if out and out[-1][1] == i * granularity:
            out[-1][1] = min((i + 1) * granularity, size)
        else:
            out.append([i * granularity, min((i + 1) * granularity, size)])
    return out


def test_every_kind_of_write_is_noted(here):
    ok(qimg("create", "-q", "-f", "qcow2", "a", str(LEN)))
    for name, granularity in ("fine", 512), ("coarse", MIB):
        ok(qimg("bitmap", "--add", "-g", str(granularity), "a", name))
    ok(qimg("bitmap", "--add", "--disable", "a", "off"))
    steps = [("write -q 1000k 1k", 1000 * KIB, KIB), ("write -q -z 2M 100k", 2 * MIB, 100 * KIB), ("discard -q 5M 512", 5 * MIB, 512),
             ("write -q -z -u 7M 1M", 7 * MIB, MIB), ("write -q -c 10M 64k", 10 * MIB, 64 * KIB), ("aio_write -q 12M 4k", 12 * MIB, 4 * KIB),
             (f"write -q {LEN - 512} 512", LEN - 512, 512), ("writev -q 15M 512 512", 15 * MIB, KIB)]
    for command, off, length in steps:
        ok(io("a", command, "read -q 16M 1M"))
        assert dirty("a", "fine") == within([(off, length)], 512, LEN), command
        ok(img("bitmap", "--clear", "a", "fine"))
    clean("a")
    everything = [(off, length) for _, off, length in steps]
    assert dirty("a", "coarse") == within(everything, MIB, LEN)
    # Written in place, one by one on fibers, with other ways to the disk.
    for cold, cache in ("0", "writethrough"), ("1", "writeback"), ("0", "none"):
        for name in "fine", "coarse":
            ok(img("bitmap", "--clear", "a", name))
        ok(io("a", *(c for c, _, _ in steps if "aio" not in c), "aio_write -q 12M 4k", "aio_flush", options=("-t", cache),
              env={"VARVE_FORCE_COLD": "1"} if cold == "1" else {}))
        assert dirty("a", "fine") == within(everything, 512, LEN)
        assert dirty("a", "coarse") == within(everything, MIB, LEN)
    assert dirty("a", "off") == []
    clean("a")
    assert bitmaps("a") == {"fine": (512, {"auto"}), "coarse": (MIB, {"auto"}), "off": (64 * KIB, frozenset())}


def test_writes_of_both_add_up(here):
    """One after the other writes to the image; what the bitmap says is what both have written. Nothing leaks."""
    for seed in seeds.seeds(4):
        rng = random.Random(f"noted {seed}")
        size, granularity = rng.randrange(20, 40000) * 512, 512 << rng.randrange(9)
        options = rng.choice(["cluster_size=512", "cluster_size=4k", "cluster_size=64k", "cluster_size=64k,extended_l2=on",
                              "cluster_size=64k,data_file=data", "cluster_size=2M", "cluster_size=64k,lazy_refcounts=on"])
        ok(qimg("create", "-q", "-f", "qcow2", "-o", options, "a", str(size)))
        ok(qimg("bitmap", "--add", "-g", str(granularity), "a", "b"))
        written = []
        for _ in range(6):
            tool, commands = rng.choice([io, io, qio]), []
            for _ in range(rng.randrange(4)):
                off = rng.randrange(size // 512) * 512
                length = min(rng.randrange(1, 400) * 512, size - off)
                commands.append(f"{rng.choice(['write -q', 'write -q -z', 'discard -q'])} {off} {length}")
                written.append((off, length))
            ok(tool("a", *commands, "read -q 0 512"))
            if rng.random() < 0.3 and "data" not in options:
                ok(img("snapshot", "-c", "s", "a"))
                ok(img("snapshot", "-d", "s", "a"))
            assert bitmaps("a") == {"b": (granularity, {"auto"})}
            clean("a")
        assert dirty("a", "b") == within(written, granularity, size), f"VARVE_SEED={seed}: {options}, {size} bytes"


def test_incremental_backups_go_on(here):
    """What a backup needs that begins where the one before ended: all that differs is dirty, whoever wrote it."""
    ok(img("create", "-q", "-f", "qcow2", "a", str(LEN)))
    ok(io("a", "write -q -P 1 0 10M"))
    ok(img("bitmap", "--add", "-g", "64k", "a", "since"))
    ok(img("convert", "-O", "raw", "a", "full"))
    ok(io("a", "write -q -P 2 1M 200k", "write -q -z 3M 64k"))
    ok(qio("a", "write -q -P 3 5M 1k"))
    ok(img("snapshot", "-c", "s", "a"))
    ok(io("a", "write -q -P 4 20M 1k", "discard -q 6M 128k"))
    ok(img("convert", "-O", "raw", "a", "now"))
    increment_is_enough("a", "since")
    # The disk of a snapshot may differ anywhere.
    ok(img("snapshot", "-a", "s", "a"))
    assert dirty("a", "since") == [[0, LEN]] and bitmaps("a") == {"since": (64 * KIB, {"auto"})}
    clean("a")


def test_converted_and_committed_bytes_are_noted(here):
    ok(img("create", "-q", "-f", "qcow2", "base", str(LEN)))
    ok(img("bitmap", "--add", "-g", "64k", "base", "b"))
    ok(img("create", "-q", "-f", "qcow2", "-b", "base", "-F", "qcow2", "top"))
    ok(img("bitmap", "--add", "-g", "64k", "top", "t"))
    ok(io("top", "write -q 4M 64k"))
    ok(img("commit", "top"))
    assert dirty("base", "b") == [[4 * MIB, 4 * MIB + 64 * KIB]] == dirty("top", "t")
    ok(img("bitmap", "--clear", "base", "b"))
    with open("raw", "wb") as f:
        f.truncate(LEN)
        f.seek(9 * MIB)
        f.write(b"x" * 100000)
    ok(img("convert", "-n", "-f", "raw", "-O", "qcow2", "raw", "base"))
    assert any(a <= 9 * MIB and b >= 9 * MIB + 100000 for a, b in dirty("base", "b"))
    clean("base")
    clean("top")


def test_what_guests_write_on_several_queues_is_noted(here):
    """The disk was zeroes: whatever is not, the bitmap knows of. Of a server that is killed it knows nothing, also with a state directory."""
    ok(img("create", "-q", "-f", "qcow2", "a", "64M"))
    ok(img("bitmap", "--add", "-g", "4k", "a", "b"))
    load = ("--queues", "2", "--rw", "randrw", "--ops", "600", "--verify", "--seed", "5", "--discard-percent", "5", "--write-zeroes-percent", "5")
    with Server("a", "qcow2", "sock-s", "pid", "--num-queues", "2") as server:
        rc, report, err = server.load(*load)
        assert rc == 0, f"{report}\n{err}"
        assert ok(img("info", "-U", "--output=json", "a")).json["format-specific"]["data"]["bitmaps"][0]["flags"] == ["in-use", "auto"]
        code, err = server.stop()
        assert code == 0 and err == "", err
    clean("a")
    noted = dirty("a", "b")
    ok(img("convert", "-O", "raw", "a", "raw"))
    with open("raw", "rb") as f:
        content = f.read()
    holes = [[0, 0], *noted, [len(content), len(content)]]
    assert any(content) and sum(b - a for a, b in noted) < len(content)
    for (_, end), (start, _) in zip(holes, holes[1:]):
        assert not any(content[end:start]), f"written between {end} and {start}, and not noted"
    with Server("a", "qcow2", "sock-s", "pid", "--num-queues", "2", "--state-dir", "state") as server:
        rc, report, err = server.load(*load)
        assert rc == 0, f"{report}\n{err}"
        server.kill()
    with Server("a", "qcow2", "sock-s", "pid of the next", "--num-queues", "2", "--state-dir", "state") as server:
        assert server.stop()[0] == 0
    assert os.listdir("state") == []
    assert bitmaps("a") == {"b": (4 * KIB, {"auto", "in-use"})}


def test_one_that_cannot_be_kept_up_to_date_says_so(here):
    """Of a kind that nobody knows: it is left marked, the others are kept."""
    ok(qimg("create", "-q", "-f", "qcow2", "a", "16M"))
    for name in "known", "other":
        ok(qimg("bitmap", "--add", "-g", "64k", "a", name))
    with open("a", "r+b") as f:
        content = f.read()
        at = content.rindex(b"other") - 24
        f.seek(at + 16)
        f.write(b"\x02") # its type
    r = io("a", "write -q 1M 512")
    assert r.rc == 0 and r.err.count("\n") <= 1, str(r)
    with open("a", "rb") as f:
        content = f.read()
    flags = {name: content[content.rindex(name) - 24 + 15] & 3 for name in (b"known", b"other")}
    assert flags == {b"known": 2, b"other": 3}


@pytest.mark.parametrize("over", ["entry", "table"])
def test_a_bitmap_that_lies_over_tables_frees_nothing(here, over):
    """What has changed gives its old place back; not when that is the L1 table's, or an L2 table's."""
    ok(qimg("create", "-q", "-f", "qcow2", "a", "16M"))
    ok(qio("a", "write -q -P 1 0 16M"))
    ok(qimg("bitmap", "--add", "-g", "64k", "a", "known"))
    ok(qio("a", "write -q -P 1 0 64k"))
    with open("a", "r+b") as f:
        content = f.read()
        at = content.rindex(b"known") - 24
        l1 = int.from_bytes(content[40:48], "big")
        l2 = int.from_bytes(content[l1:l1 + 8], "big") & 0x00fffffffffffe00
        table = int.from_bytes(content[at:at + 8], "big")
        f.seek(table if over == "entry" else at)
        f.write((l2 if over == "entry" else l1).to_bytes(8, "big"))
    r = io("a", "write -q -P 2 1M 64k", "write -q -P 3 2M 64k")
    assert r.rc == 0, str(r)
    ok(io("a", "read -q -P 2 1M 64k", "read -q -P 3 2M 64k", "read -q -P 1 3M 13M", "write -q -P 4 4M 8M"))
    r = qio("a", "read -P 2 1M 64k", "read -P 4 4M 8M", "read -P 1 12M 4M", options=("-r",))
    assert r.rc == 0 and "failed" not in r.out, str(r)
    with open("a", "rb") as f:
        content = f.read()
    assert content[content.rindex(b"known") - 24 + 15] & 3 == 3


def test_a_disk_that_fails_at_the_end_leaves_the_mark(here):
    ok(qimg("create", "-q", "-f", "qcow2", "a", "16M"))
    ok(qimg("bitmap", "--add", "-g", "64k", "a", "b"))
    tree = "driver=qcow2,file.driver=fault,file.file.filename=a,file.rule.0.event=flush,file.rule.0.after="
    marked = 0
    for after in range(1, 8):
        shutil.copy("a", "copy")
        r = io(tree.replace("=a,", "=copy,") + str(after), "write -q 1M 512", options=("--image-opts",))
        (granularity, flags), = bitmaps("copy").values()
        assert img("check", "copy").rc in (0, 3) # what was written in vain is leaked
        if flags == {"auto"}: # then it has been told
            assert dirty("copy", "b") in ([[MIB, MIB + granularity]], []) and (r.rc == 0 or dirty("copy", "b") == [])
        else:
            marked += 1
            assert flags == {"auto", "in-use"}
    assert marked


# ---- convert ----

@pytest.mark.parametrize("options", [[], ["-o", "cluster_size=4k"], ["-c", "-o", "cluster_size=512"]])
def test_bitmaps_are_converted(here, options):
    ok(qimg("create", "-q", "-f", "qcow2", "a", str(LEN)))
    for name, granularity in (("fine", "512"), ("middle", "64k"), ("coarse", "4M")):
        ok(qimg("bitmap", "--add", "-g", granularity, "a", name))
    ok(qio("a", "write -q 1M 70k", "write -q 9M 11M"))
    ok(qimg("bitmap", "--disable", "a", "middle"))
    ok(img("convert", "--bitmaps", "-O", "qcow2", *options, "a", "b"))
    ok(qimg("compare", "a", "b"))
    clean("b")
    assert bitmaps("b") == bitmaps("a") and len(bitmaps("a")) == 3
    for name in bitmaps("a"):
        assert dirty("b", name) == dirty("a", name)
    ok(qimg("create", "-q", "-f", "qcow2", "c", str(LEN)))
    ok(img("convert", "-n", "--target-is-zero", "--bitmaps", "-O", "qcow2", "a", "c"))
    assert bitmaps("c") == bitmaps("a")
    clean("c")


@pytest.mark.parametrize("args,words", [
    (["-O", "raw", "a", "b"], ["raw"]), (["-f", "raw", "-O", "qcow2", "raw", "b"], ["raw"]),
    (["-O", "qcow2", "-o", "compat=0.10", "a", "b"], ["compat"]), (["-O", "qcow2", "a", "a", "b"], ["one source"]),
    (["-O", "qcow2", "-l", "x", "a", "b"], ["-l"]), (["-O", "qcow2", "a", "-"], ["pipe"]),
])
def test_what_cannot_be_converted(here, args, words):
    ok(qimg("create", "-q", "-f", "qcow2", "a", "1M"))
    ok(qimg("bitmap", "--add", "a", "x"))
    ok(qimg("create", "-q", "-f", "raw", "raw", "1M"))
    r = img("convert", "--bitmaps", *args)
    assert r.rc == 1 and len(r.err.splitlines()) == 1 and all(w in r.err for w in words), str(r)
    assert not os.path.exists("b")
    r = img("convert", "--skip-broken-bitmaps", "-O", "qcow2", "a", "b")
    assert r.rc == 1 and "--bitmaps" in r.err


# ---- at random ----

def test_the_same_as_the_peer_by_seed(here):
    """The same commands on two images, by both: the same bitmaps with the same bits."""
    seed = seeds.seed()
    rng = random.Random(seed)
    cluster = rng.choice(["512", "4k", "64k", "1M"])
    ok(qimg("create", "-q", "-f", "qcow2", "-o", f"cluster_size={cluster}", "a", "40M"))
    shutil.copy("a", "b")
    names = ["x", "y", "z"]
    for _ in range(int(os.environ.get("VARVE_SEEDS", 25))):
        if rng.random() < 0.4:
            write = f"write -q -P {rng.randrange(256)} {rng.randrange(80) * 512 * KIB} {rng.randrange(1, 300)}k"
            ok(qio("a", write))
            ok(qio("b", write))
            continue
        action = rng.choice(["--add", "--add", "--remove", "--clear", "--enable", "--disable", "--merge", "--merge"])
        args = [action]
        if action == "--add":
            args += ["-g", str(512 << rng.randrange(12))]
        if action == "--merge":
            args.append(rng.choice(names))
        name = rng.choice(names)
        if action == "--merge" and args[1] == name:
            continue
        print("bitmap", *args, name)
        ours, theirs = img("bitmap", *args, "a", name), qimg("bitmap", *args, "b", name)
        assert ours.rc == theirs.rc, f"{ours}\n{theirs}"
        assert bitmaps("a") == bitmaps("b")
    for name in bitmaps("a"):
        assert dirty("a", name) == dirty("b", name)
    ok(qimg("compare", "a", "b"))
    clean("a")


def peak(path, *commands):
    """What varve io prints, and the most memory that it had, in bytes."""
    program = ("import os, resource, subprocess, sys\n"
               "r = subprocess.run(sys.argv[1:], capture_output=True, text=True)\n"
               "print(r.returncode, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024, r.stderr, end='')\n")
    r = ok(run("/usr/bin/python3", "-c", program, varve_path(), "io", path, *[a for c in commands for a in ("-c", c)]))
    rc, size, err = r.out.split(" ", 2)
    assert rc == "0", r.out
    return err, int(size)


@pytest.mark.skipif(sanitized(), reason="a sanitizer needs memory of its own")
def test_memory_is_for_bits_that_are_set(here):
    """256 MiB of bits each: two of them are all that is taken, and cost what is set of them."""
    ok(qimg("create", "-q", "-f", "qcow2", "a", "1T"))
    ok(qimg("bitmap", "--add", "-g", "512", "a", "one"))
    ok(qimg("bitmap", "--add", "-g", "512", "a", "two"))
    for _ in range(2):  # nothing to be read; the bits of the first time
        err, size = peak("a", "write -q 1M 64k", "write -q 900G 64k")
        assert err == "" and size < 64 * MIB, (err, size)
    assert bitmaps("a") == {"one": (512, {"auto"}), "two": (512, {"auto"})}
    ok(img("bitmap", "--add", "-g", "64k", "a", "three"))
    err, size = peak("a", "write -q 2M 64k")
    assert err.count("\n") == 1 and "becomes inconsistent, because writes are not noted there" in err and size < 64 * MIB, (err, size)
    assert sorted(name for name, (_, flags) in bitmaps("a").items() if "in-use" in flags) in (["one"], ["two"], ["three"])


def test_a_hundred_bitmaps(here):
    ok(qimg("create", "-q", "-f", "qcow2", "a", "16M"))
    for i in range(100):
        ok(img("bitmap", "--add", "-g", "64k", "a", f"b{i}"))
    ok(io("a", "write -q 1M 64k"))
    assert bitmaps("a") == {f"b{i}": (64 * KIB, {"auto"}) for i in range(100)}
    assert dirty("a", "b99") == dirty("a", "b0") == [[MIB, MIB + 64 * KIB]]
    clean("a")
