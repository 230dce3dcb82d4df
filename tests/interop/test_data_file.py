# SPDX-License-Identifier: MIT
"""test_data_file - qcow2 images whose data is in another file

What is made and written by one of the two implementations is read, checked and written on by the other; a raw data file alone reads
as the disk after every step. Names in the header are names of files, and nothing is made or changed where something is refused.
"""

import json
import os
import random
import shutil
import struct
import subprocess

import pytest

from seeds import seeds
from serving import Server
from test_random import Model
from tool import KIB, MIB, img, info, io, ok, qimg, qio

SECTOR = 512
BOTH = {"varve": (img, io), "peer": (qimg, qio)}


@pytest.fixture
def folder(tmp_path):
    old = os.getcwd()
    os.chdir(tmp_path)
    yield tmp_path
    os.chdir(old)


def data_of(path="disk.qcow2"):
    return ok(img("info", "--output=json", path)).json["format-specific"]["data"]


def content(tool, path="disk.qcow2"):
    ok(tool("convert", "-O", "raw", path, "content.raw"))
    with open("content.raw", "rb") as f:
        return f.read()


def clean(path="disk.qcow2"):
    for tool in img, qimg:
        r = tool("check", path)
        assert r.rc == 0, str(r)


def make(raw=False, size="1M", more="", tool=img, name="disk.qcow2"):
    ok(tool("create", "-q", "-f", "qcow2", "-o", f"data_file=data.raw{',data_file_raw=on' if raw else ''}{more}", name, size))


def patch_name(path, name):
    """Another name, as long as the one that stands there."""
    with open(path, "r+b") as f:
        head = f.read(64 * KIB)
        at = head.index(struct.pack(">I", 0x44415441), 104)
        length = struct.unpack_from(">I", head, at + 4)[0]
        assert len(name) <= length, f"make a longer name than {length} bytes first"
        f.seek(at + 8)
        f.write(name + bytes(length - len(name)))


# ---- both ways ----

def steps(rng, model, raw, bits):
    """A few commands that write, and what the model says of them."""
    size, out = len(model.data), []
    for _ in range(rng.randrange(1, 8)):
        what = rng.choice(["write", "write", "write", "zero", "unmap", "discard"])
        off = rng.randrange(size // SECTOR) * SECTOR
        length = min(rng.choice([SECTOR, 3 * SECTOR, 1 << bits, 3 << bits, rng.randrange(1, 200) * SECTOR]), size - off)
        if rng.random() < 0.3:
            off &= -1 << bits
            length = min(max(1 << bits, length & -1 << bits), size - off)
        if what == "write":
            pattern = rng.randrange(1, 256)
            out.append(f"write -q -P {pattern} {off} {length}")
            model.write(off, bytes([pattern]) * length)
        elif what == "discard":
            out.append(f"discard -q {off} {length}")
            model.discard(off, length)
        else:
            out.append(f"write -q -z {'-u ' if what == 'unmap' else ''}{off} {length}")
            model.write(off, bytes(length))
        if rng.random() < 0.2:
            out.append("flush")
    return out


@pytest.mark.parametrize("extended", ["off", "on"])
def test_random_writes_by_both(folder, extended):
    for seed in seeds(12 if extended == "off" else 6):
        rng = random.Random(f"data file {seed}")
        raw, bits = rng.random() < 0.5, rng.choice([9, 12, 16, 16, 18] if extended == "off" else [14, 16, 18])
        size = rng.randrange(1, 40 << min(bits, 13) - 9) * SECTOR
        backing = not raw and rng.random() < 0.4
        create = rng.choice([img, qimg])
        options = f"data_file=data.raw,data_file_raw={'on' if raw else 'off'},cluster_size={1 << bits},extended_l2={extended}"
        base = Model(size)
        if backing:
            ok(qimg("create", "-q", "-f", "qcow2", "base.qcow2", str(size)))
            ok(qio("base.qcow2", f"write -q -P 200 0 {max(SECTOR, size // 2 // SECTOR * SECTOR)}"))
            base.write(0, b"\xc8" * max(SECTOR, size // 2 // SECTOR * SECTOR))
        elif rng.random() < 0.3 and not raw:
            options += ",preallocation=" + rng.choice(["metadata", "falloc", "full"])
        ok(create("create", "-q", "-f", "qcow2", "-o", options, *(["-b", "base.qcow2", "-F", "qcow2"] if backing else []), "disk.qcow2",
                  str(size)))
        model = Model(size, base if backing else None)
        told = f"VARVE_SEED={seed}: {options}, {size} bytes"
        for _ in range(rng.randrange(2, 6)):
            who = rng.choice(list(BOTH))
            commands = steps(rng, model, raw, bits)
            told += f"\n{who}: {'; '.join(commands)}"
            env = {"VARVE_FORCE_COLD": "1"} if rng.random() < 0.3 else {}
            r = BOTH[who][1]("disk.qcow2", *commands, env=env)
            assert r.rc == 0 and r.err == "", f"{told}\n{r}"
            ours = content(img)
            wrong = model.settle(ours)
            assert not wrong, f"{told}\n{wrong}"
            assert content(qimg) == ours, told
            if raw:
                with open("data.raw", "rb") as f:
                    assert f.read(size) == ours, told + "\nthe data file does not read as the disk"
            if rng.random() < 0.3 and not backing:
                new = rng.randrange(1, 40 << min(bits, 13) - 9) * SECTOR
                who = rng.choice(list(BOTH))
                told += f"\n{who}: resize {new}"
                ok(BOTH[who][0]("resize", "-q", "--shrink", "disk.qcow2", str(new)))
                model.data = (model.data + bytes(max(0, new - size)))[:new]
                size = new
                assert content(img) == content(qimg) == bytes(model.data), told
                assert os.path.getsize("data.raw") >= new, told  # the peer fills the last cluster
        clean()
        assert data_of()["data-file-raw"] is raw, told


def mapped(tool, path="disk.qcow2"):
    """What `map` says. The peer names a place also for subclusters that have nothing there; not so we, and not so this."""
    out = []
    for e in ok(tool("map", "--output=json", path)).json:
        e = {k: v for k, v in e.items() if k != "compressed" and (k != "offset" or e["present"])}
        if out and not e["present"] and {**e, "start": 0, "length": 0} == {**out[-1], "start": 0, "length": 0}:
            out[-1]["length"] += e["length"]
        else:
            out.append(e)
    return out


@pytest.mark.parametrize("raw, extended", [(False, "off"), (True, "off"), (False, "on"), (True, "on")])
def test_the_same_commands_answer_the_same(folder, raw, extended):
    """create, map, measure, compare, convert from and to, info: as the peer does."""
    extended = f"extended_l2={extended}"
    make(raw, more="," + extended)
    ok(io("disk.qcow2", "write -P 3 0 100k", "write -P 4 500k 20k", "write -z 64k 4k", "discard 512k 64k"))
    ok(img("compare", "disk.qcow2", "disk.qcow2"))
    assert mapped(img) == mapped(qimg)
    assert ok(img("map", "disk.qcow2")).out == ok(qimg("map", "disk.qcow2")).out
    assert ok(img("measure", "--size", "1G", "-O", "qcow2", "-o", f"data_file=x,data_file_raw=on,{extended}")).out == \
        ok(qimg("measure", "--size", "1G", "-O", "qcow2", "-o", f"data_file=x,data_file_raw=on,{extended}")).out
    for tool, other in (img, qimg), (qimg, img):
        ok(tool("convert", "-O", "qcow2", "-o", f"data_file=copy.raw,data_file_raw={'on' if raw else 'off'},{extended}", "disk.qcow2", "copy.qcow2"))
        assert content(other, "copy.qcow2") == content(other)
        clean("copy.qcow2")
        assert data_of("copy.qcow2")["data-file"] == "copy.raw"


@pytest.mark.parametrize("extended", ["off", "on"])
def test_every_preallocation(folder, extended):
    for mode in "off", "metadata", "falloc", "full":
        size = 1000 * KIB + SECTOR  # ends in the middle of a cluster
        make(more=f",preallocation={mode},extended_l2={extended}", size=str(size))
        st = os.stat("data.raw")
        assert st.st_size == size and (st.st_blocks * 512 >= size) == (mode in ("falloc", "full")), mode
        assert ok(qimg("map", "--output=json", "disk.qcow2")).json[0]["present"] == (mode != "off")
        assert not any(content(qimg)) and not any(content(img))
        ok(io("disk.qcow2", f"write -P 7 {size - SECTOR} {SECTOR}"))
        assert os.stat("data.raw").st_size == size
        ok(img("resize", "-q", *([f"--preallocation={mode}"] if mode != "off" else []), "disk.qcow2", "3M"))
        st = os.stat("data.raw")
        assert st.st_size == 3 * MIB and (st.st_blocks * 512 >= 3 * MIB) == (mode in ("falloc", "full")), mode
        assert content(qimg) == content(img) == bytes(size - SECTOR) + b"\x07" * SECTOR + bytes(3 * MIB - size)
        clean()


def test_an_old_data_file_is_emptied_as_an_old_image_is(folder):
    with open("data.raw", "wb") as f:
        f.write(b"old" * MIB)
    make(raw=True)
    assert os.path.getsize("data.raw") == MIB and not any(content(img))


def test_what_was_behind_a_shorter_disk_does_not_come_back(folder):
    for raw, extended in (False, "off"), (True, "off"), (False, "on"), (True, "on"):
        make(raw, size="2M", more=f",extended_l2={extended}")
        ok(io("disk.qcow2", "write -P 1 0 2M"))
        ok(img("resize", "-q", "--shrink", "disk.qcow2", "700k"))
        assert os.path.getsize("data.raw") == 700 * KIB
        with open("data.raw", "ab") as f:
            f.write(b"stale" * 100000)  # somebody else's doing
        ok(img("resize", "-q", "disk.qcow2", "3M"))
        assert content(img) == content(qimg) == b"\x01" * (700 * KIB) + bytes(3 * MIB - 700 * KIB)
        if raw:
            with open("data.raw", "rb") as f:
                assert f.read() == content(img)
        clean()


@pytest.mark.parametrize("raw, cache", [(False, "writeback"), (True, "none")])
def test_guests_on_several_queues(folder, raw, cache):
    """What a front end wrote and flushed is there, read back by it and by both tools."""
    make(raw, size="16M", more=",cluster_size=4k")
    with Server("disk.qcow2", "qcow2", "sock", "pid", "--num-queues", "2", "--cache", cache) as server:
        rc, report, err = server.load("--queues", "2", "--rw", "randrw", "--ops", "1500", "--verify", "--seed", "7", "--flush-every", "50",
                                      "--discard-percent", "5", "--write-zeroes-percent", "5")
        assert rc == 0, f"{report}\n{err}"
        code, err = server.stop()
        assert code == 0 and err == "", err
    clean()
    ours = content(img)
    assert ours == content(qimg) and any(ours)
    if raw:
        with open("data.raw", "rb") as f:
            assert f.read() == ours


def test_copy_on_read_into_a_data_file(folder):
    ok(qimg("create", "-q", "-f", "raw", "base.raw", "1M"))
    ok(qio("base.raw", "write -P 6 0 1M", options=("-f", "raw")))
    make(more=",backing_file=base.raw,backing_fmt=raw")
    ok(io("disk.qcow2", "read -P 6 100k 200k", options=("-C",)))
    ok(img("rebase", "-u", "-b", "", "disk.qcow2"))
    got = content(qimg)
    assert got == content(img) and got[100 * KIB:300 * KIB] == b"\x06" * (200 * KIB)
    clean()


def test_a_raw_data_file_whose_tables_do_not_lead_to_all_of_it(folder):
    """Older programs made such images: what no entry leads to reads as zeroes, and so does the data file, whatever is done."""
    make(size="2M", more=",cluster_size=4k")
    with open("disk.qcow2", "r+b") as f:
        f.seek(88)
        f.write(struct.pack(">Q", 2))
    rng, model = random.Random(11), Model(2 * MIB)
    for i in range(8):
        who = "peer" if i % 4 == 3 else "varve"
        commands = steps(rng, model, True, 12)
        r = BOTH[who][1]("disk.qcow2", *commands)
        assert r.rc == 0 and r.err == "", str(r)
        ours = content(img)
        assert not model.settle(ours), f"{who}: {commands}"
        with open("data.raw", "rb") as f:
            assert f.read() == ours, f"{who}: {commands}"
    assert data_of()["data-file-raw"]
    clean()


def test_discards_that_keep_their_place(folder):
    make()
    ok(io("driver=qcow2,file.filename=disk.qcow2,discard-no-unref=on", "write -P 1 0 512k", "discard 0 128k", "write -z -u 192k 64k", "flush",
          "write -P 2 64k 4k", options=("--image-opts",)))
    whole = bytearray(b"\x01" * (512 * KIB) + bytes(512 * KIB))
    whole[:128 * KIB] = bytes(128 * KIB)
    whole[192 * KIB:256 * KIB] = bytes(64 * KIB)
    whole[64 * KIB:68 * KIB] = b"\x02" * (4 * KIB)
    assert content(img) == content(qimg) == whole
    clean()
    assert os.stat("data.raw").st_blocks * 512 < 512 * KIB - 64 * KIB


# ---- chains ----

def test_commit_rebase_and_a_chain_of_data_files(folder):
    ok(img("create", "-q", "-f", "qcow2", "-o", "data_file=low.raw", "low.qcow2", "1M"))
    ok(io("low.qcow2", "write -P 1 0 512k"))
    make(more=",backing_file=low.qcow2,backing_fmt=qcow2")
    ok(io("disk.qcow2", "write -P 2 100k 100k", "write -z 300k 50k"))
    whole = b"\x01" * (512 * KIB) + bytes(512 * KIB)
    whole = whole[:100 * KIB] + b"\x02" * (100 * KIB) + whole[200 * KIB:300 * KIB] + bytes(50 * KIB) + whole[350 * KIB:]
    assert content(img) == content(qimg) == whole
    shutil.copytree(".", "kept", ignore=shutil.ignore_patterns("kept"))
    ok(img("commit", "-q", "disk.qcow2"))
    assert content(img) == content(qimg) == content(qimg, "low.qcow2") == whole
    clean()
    clean("low.qcow2")
    os.chdir("kept")
    ok(img("rebase", "-b", "", "disk.qcow2"))
    assert content(img) == content(qimg) == whole
    clean()


def test_a_raw_data_file_has_no_backing_file(folder):
    make(raw=True)
    ok(img("create", "-q", "-f", "qcow2", "base.qcow2", "1M"))
    with open("disk.qcow2", "rb") as f:
        before = f.read()
    r = img("rebase", "-u", "-b", "base.qcow2", "-F", "qcow2", "disk.qcow2")
    assert r.rc == 1 and "data_file_raw" in r.err, str(r)
    with open("disk.qcow2", "rb") as f:
        assert f.read() == before


# ---- options that say otherwise ----

def test_options_name_another_data_file(folder):
    make()
    ok(io("disk.qcow2", "write -P 5 0 1M"))
    os.rename("data.raw", "moved.raw")
    tree = "driver=qcow2,file.filename=disk.qcow2,data-file.filename=moved.raw"
    for options in tree, tree + ",data-file.driver=file", tree + ",cache=none", tree + ",aio=threads":
        r = io(options, "read -P 5 0 1M", options=("-r", "--image-opts"))
        assert r.rc == 0 and "failed" not in r.out, str(r)
    spec = {"driver": "qcow2", "file": {"driver": "file", "filename": "disk.qcow2"},
            "data-file": {"driver": "file", "filename": "moved.raw"}}
    assert content(img, "json:" + json.dumps(spec)) == b"\x05" * MIB
    r = io("driver=qcow2,file.filename=disk.qcow2,data-file=node0", "read 0 512", options=("--image-opts",))
    assert r.rc == 1 and "node0" in r.err, str(r)
    r = io("driver=qcow2,file.filename=disk.qcow2,data-file.filename=moved.raw,data-file.driver=qcow2", "read 0 512",
           options=("--image-opts",))
    assert r.rc == 1, str(r)
    ok(img("create", "-q", "-f", "qcow2", "plain.qcow2", "1M"))
    r = io("driver=qcow2,file.filename=plain.qcow2,data-file.filename=moved.raw", "read 0 512", options=("--image-opts",))
    assert r.rc == 1 and "data-file" in r.err, str(r)


def test_amend(folder):
    make(raw=True)
    ok(io("disk.qcow2", "write -P 5 0 1M"))
    r = img("amend", "-o", "compat=0.10", "disk.qcow2")
    assert r.rc == 1 and "data file" in r.err, str(r)
    shutil.copy("data.raw", "other.raw")
    ok(img("amend", "-o", "data_file=other.raw", "disk.qcow2"))
    assert data_of()["data-file"] == "other.raw" and data_of()["data-file-raw"]
    os.unlink("data.raw")
    assert content(img) == content(qimg) == b"\x05" * MIB
    ok(img("amend", "-o", "data_file_raw=off", "disk.qcow2"))
    assert not data_of()["data-file-raw"]
    for options in "data_file_raw=on", "data_file=" + "n" * 1000:
        assert img("amend", "-o", options, "disk.qcow2").rc == 1
    ok(img("create", "-q", "-f", "qcow2", "plain.qcow2", "1M"))
    assert img("amend", "-o", "data_file=x", "plain.qcow2").rc == 1
    clean()
    assert data_of()["data-file"] == "other.raw"


# ---- nothing is opened that need not be ----

def test_metadata_is_looked_at_without_the_data_file(folder):
    make(raw=True)
    os.unlink("data.raw")
    os.mkfifo("data.raw")  # opening it for reading would wait for ever
    assert ok(img("info", "disk.qcow2")).out
    ok(img("check", "disk.qcow2"))
    ok(img("measure", "-O", "qcow2", "disk.qcow2"))
    ok(img("bitmap", "--add", "disk.qcow2", "b0"))
    ok(img("check", "-r", "all", "disk.qcow2"))
    assert data_of()["bitmaps"][0]["name"] == "b0"
    os.unlink("data.raw")
    strace = shutil.which("strace")
    if strace:
        for command in (["info"], ["check"], ["measure", "-O", "raw"]):
            with open("data.raw", "wb") as f:
                f.truncate(MIB)
            p = subprocess.run([strace, "-f", "-e", "trace=%file", *img(*command, "disk.qcow2").args], capture_output=True, text=True,
                               timeout=240, check=False)
            assert p.returncode == 0 and "data.raw" not in p.stderr, p.stderr


@pytest.mark.parametrize("raw", [False, True])
def test_discarded_subclusters_give_their_space_back(folder, raw):
    """And only theirs: what is beside them in the same cluster stays."""
    make(raw, more=",extended_l2=on,cluster_size=2M", size="8M")
    ok(io("disk.qcow2", "write -P 1 0 8M", "flush"))
    full = os.stat("data.raw").st_blocks
    ok(io("disk.qcow2", "discard 64k 128k", "write -z -u 1M 2M", "write -z 6M 64k"))
    whole = bytearray(b"\x01" * (8 * MIB))
    for off, length in (64 * KIB, 128 * KIB), (MIB, 2 * MIB), (6 * MIB, 64 * KIB):
        whole[off:off + length] = bytes(length)
    assert content(img) == content(qimg) == whole
    with open("data.raw", "rb") as f:
        assert raw == (f.read() == whole)
    assert full - os.stat("data.raw").st_blocks >= (2 * MIB + 64 * KIB) // 512  # a little may go into the extents of the file
    clean()


def test_subclusters_of_both_before_and_after(folder):
    """One program fills, zeroes and discards parts of the clusters that the other has filled in part."""
    for first, second in BOTH.values(), list(BOTH.values())[::-1]:
        for first_io, second_io in (first[1], second[1]), (second[1], first[1]):
            ok(qimg("create", "-q", "-f", "raw", "base.raw", "1M"))
            ok(qio("base.raw", "write -P 9 0 1M", options=("-f", "raw")))
            ok(first[0]("create", "-q", "-f", "qcow2", "-o", "data_file=data.raw,extended_l2=on,cluster_size=64k", "-b", "base.raw",
                        "-F", "raw", "disk.qcow2"))
            model = Model(MIB, Model(MIB))
            model.write(0, b"\x09" * MIB)
            for tool, patterns in (first_io, (1, 2)), (second_io, (3, 4)):
                for pattern, off, length in ((patterns[0], 0 if tool is first_io else 2 * KIB, 3 * KIB),
                                             (patterns[1], 70 * KIB if tool is first_io else 80 * KIB, 100 * KIB)):
                    ok(tool("disk.qcow2", f"write -P {pattern} {off} {length}"))
                    model.write(off, bytes([pattern]) * length)
                off = 90 * KIB if tool is first_io else 96 * KIB
                ok(tool("disk.qcow2", f"write -z {off} 10k", f"write -z -u {off + 64 * KIB} 6k"))
                model.write(off, bytes(10 * KIB))
                model.write(off + 64 * KIB, bytes(6 * KIB))
                assert content(img) == content(qimg) == bytes(model.data)
                clean()
            assert mapped(img) == mapped(qimg)


# ---- hostile names ----

@pytest.mark.parametrize("name", ["json:{\"driver\":\"null-co\",\"size\":1048576}", "nbd:localhost:10809", "blkdebug::data.raw", "null-co://",
                                  "file:data.raw", "/dev/tty", "/dev/zero", "/proc/self/mem", "missing", "fifo", "folder",
                                  "disk.qcow2", "linked.qcow2"])
def test_names_are_names_of_files(folder, name):
    make(more="", name="disk.qcow2")
    ok(img("amend", "-o", "data_file=" + "x" * 64, "disk.qcow2"))
    patch_name("disk.qcow2", name.encode())
    os.mkfifo("fifo")
    os.mkdir("folder")
    os.symlink("disk.qcow2", "linked.qcow2")
    assert data_of()["data-file"] == name
    with open("disk.qcow2", "rb") as f:
        before = f.read()
    for r in (io("disk.qcow2", "read 0 512", options=("-r",)), img("convert", "-O", "raw", "disk.qcow2", "o"), io("disk.qcow2", "write 0 512")):
        assert r.rc == 1 and r.err.count("\n") == 1 and "data file" in r.err, str(r)
        assert "image itself" in r.err or not name.endswith(".qcow2"), str(r)
    with open("disk.qcow2", "rb") as f:
        assert f.read() == before
    assert sorted(os.listdir(".")) == ["data.raw", "disk.qcow2", "fifo", "folder", "linked.qcow2"]


def test_a_name_that_is_a_path_of_odd_looks_is_that_path(folder):
    """What looks like a protocol is a file of that name beside the image, if there is one."""
    os.mkdir("sub")
    for name in "json:x", "nbd:x:1":
        ok(img("create", "-q", "-f", "qcow2", "-o", f"data_file={name}", "sub/disk.qcow2", "1M"))
        ok(io("sub/disk.qcow2", "write -P 8 0 1M"))
        with open(f"sub/{name}", "rb") as f:
            assert f.read() == b"\x08" * MIB


def test_a_nul_in_the_name_and_a_name_too_long(folder):
    make()
    ok(img("amend", "-o", "data_file=" + "x" * 16, "disk.qcow2"))
    patch_name("disk.qcow2", b"data.raw\0etc")
    r = img("info", "disk.qcow2")
    assert r.rc == 1 and "NUL" in r.err, str(r)
    r = img("create", "-f", "qcow2", "-o", "data_file=" + "y" * 4096, "new.qcow2", "1M")
    assert r.rc == 1 and not os.path.exists("new.qcow2"), str(r)
    r = img("create", "-f", "qcow2", "-o", f"cluster_size=512,data_file={'y' * 600}", "new.qcow2", "1M")
    assert r.rc == 1 and sorted(os.listdir(".")) == ["data.raw", "disk.qcow2"], str(r)


def test_one_data_file_for_two_images_of_a_chain(folder):
    make(name="low.qcow2")
    r = img("create", "-f", "qcow2", "-o", "data_file=data.raw", "-b", "low.qcow2", "-F", "qcow2", "disk.qcow2")
    assert r.rc == 1 and not os.path.exists("disk.qcow2") and os.path.getsize("data.raw") == MIB, str(r)
    ok(img("create", "-q", "-f", "qcow2", "-o", "data_file=other", "-b", "low.qcow2", "-F", "qcow2", "disk.qcow2"))
    ok(img("amend", "-o", "data_file=data.raw", "disk.qcow2"))
    for r in io("disk.qcow2", "read 0 512", options=("-r",)), img("convert", "-O", "raw", "disk.qcow2", "o"):
        assert r.rc == 1 and "chain" in r.err, str(r)
    # A raw data file that is the backing file of the image whose data it has.
    ok(img("create", "-q", "-f", "qcow2", "-o", "data_file=mine", "-b", "data.raw", "-F", "raw", "disk.qcow2"))
    ok(img("amend", "-o", "data_file=data.raw", "disk.qcow2"))
    assert io("disk.qcow2", "read 0 512", options=("-r",)).rc == 1


# ---- refused, with nothing left behind ----

@pytest.mark.parametrize("options", ["data_file=new.raw,compat=0.10", "data_file_raw=on", "data_file=no/folder/x", "data_file=.",
                                     "data_file=new.qcow2", "data_file=./new.qcow2", "data_file=new.raw,cluster_size=1",
                                     "data_file=new.raw,data_file_raw=on,backing_file=base.qcow2,backing_fmt=qcow2",
                                     "data_file=new.raw,data_file_raw=perhaps"])
def test_create_refuses_and_leaves_nothing(folder, options):
    ok(img("create", "-q", "-f", "qcow2", "base.qcow2", "1M"))
    r = img("create", "-f", "qcow2", "-o", options, "new.qcow2", "1M")
    assert r.rc == 1 and r.err.count("\n") == 1 and os.listdir(".") == ["base.qcow2"], str(r)


def test_a_conversion_that_fails_leaves_nothing(folder):
    with open("source.raw", "wb") as f:
        f.write(b"s" * MIB)
    source = "driver=raw,file.driver=fault,file.file.filename=source.raw,file.rule.0.event=read"
    for more in [], ["-m", "1"]:
        r = img("convert", "--image-opts", *more, "-O", "qcow2", "-o", "data_file=n,,w.raw,cluster_size=4k", source, "new.qcow2")
        assert r.rc == 1 and os.listdir(".") == ["source.raw"], str(r)
    r = img("convert", "-f", "raw", "-O", "qcow2", "-o", "data_file=source.raw", "source.raw", "new.qcow2")
    assert r.rc == 1 and "destroy" in r.err and os.listdir(".") == ["source.raw"], str(r)
    with open("source.raw", "rb") as f:
        assert f.read() == b"s" * MIB


def test_what_the_format_does_not_have(folder):
    make()
    ok(io("disk.qcow2", "write -P 1 0 64k"))
    with open("disk.qcow2", "rb") as f:
        before = f.read()
    for r in (img("snapshot", "-c", "one", "disk.qcow2"), io("disk.qcow2", "write -c 0 64k"), io("disk.qcow2", "write -b 0 64k"),
              img("convert", "-c", "-O", "qcow2", "-o", "data_file=n.raw", "disk.qcow2", "n.qcow2"),
              img("convert", "-O", "qcow2", "-o", "data_file=n.raw", "disk.qcow2", "-"),
              img("convert", "-n", "-c", "-O", "qcow2", "disk.qcow2", "disk.qcow2")):
        assert r.rc != 0 or "failed" in r.out, str(r)
    with open("disk.qcow2", "rb") as f:
        assert f.read() == before
    assert sorted(os.listdir(".")) == ["data.raw", "disk.qcow2"]


# ---- damage ----

def l2_entry(path, value=None, word=0):
    """A word of the first entry of the first L2 table, or another one in its place."""
    with open(path, "r+b") as f:
        f.seek(40)
        l1 = struct.unpack(">Q", f.read(8))[0]
        f.seek(l1)
        l2 = (struct.unpack(">Q", f.read(8))[0] & 0x00fffffffffffe00) + 8 * word
        f.seek(l2)
        old = struct.unpack(">Q", f.read(8))[0]
        if value is not None:
            f.seek(l2)
            f.write(struct.pack(">Q", value))
    return old


@pytest.mark.parametrize("extended", ["off", "on"])
@pytest.mark.parametrize("entry", [1 << 63 | 0x10000, 0x30000, 1 << 62 | 0x50000, 1 << 63 | 0x200])
def test_an_entry_that_leads_elsewhere_is_damage(folder, entry, extended):
    make(more=f",extended_l2={extended}")
    ok(io("disk.qcow2", "write -P 1 0 128k"))
    assert l2_entry("disk.qcow2", entry) == 1 << 63
    r = img("check", "disk.qcow2")
    assert r.rc == 2 and "0x0" in r.out + r.err, str(r)
    assert img("check", "-r", "all", "disk.qcow2").rc in (1, 2)
    r = io("disk.qcow2", "read 0 64k", "read -P 1 64k 64k", options=("-r",))
    assert "read failed" in r.out + r.err and "read 65536/65536" in r.out, str(r)
    r = io("disk.qcow2", "read -P 1 64k 64k", "write 0 64k", "read -P 1 64k 64k")
    packed = entry == 1 << 62 | 0x50000
    assert "write failed" in r.out + r.err and r.out.count("read 65536/65536") == 1 + packed, str(r)
    assert l2_entry("disk.qcow2") == entry
    assert info("disk.qcow2")["format-specific"]["data"]["corrupt"] is not packed


@pytest.mark.parametrize("place, bitmap", [(0, 1), (1 << 63, 1 << 32 | 1), (1 << 63 | 1, 1), (0, 1 << 5 | 1 << 32)])
def test_a_bitmap_that_cannot_be_is_damage(folder, place, bitmap):
    """Data without a place (at 0 a place is there when COPIED is set), both data and zeroes, a reserved bit. Nothing is written there."""
    make(more=",extended_l2=on")
    ok(io("disk.qcow2", "write -P 1 0 128k"))
    assert l2_entry("disk.qcow2", place) == 1 << 63 and l2_entry("disk.qcow2", bitmap, word=1) == (1 << 32) - 1
    with open("data.raw", "rb") as f:
        before = f.read()
    r = img("check", "disk.qcow2")
    assert r.rc == 2 and "0x0" in r.out + r.err, str(r)
    at = "10k" if bitmap & 1 << 5 else "0"
    r = io("disk.qcow2", f"read {at} 512", "read -P 1 64k 64k", options=("-r",))
    assert "read failed" in r.out + r.err and "read 65536/65536" in r.out, str(r)
    for command in "write 0 512", "write 2k 512", "write -z 0 4k", "write 0 64k":
        r = io("disk.qcow2", command)
        assert "failed" in r.out + r.err, str(r)
        with open("disk.qcow2", "r+b") as f:  # each meets an image without the mark
            f.seek(72)
            features = struct.unpack(">Q", f.read(8))[0]
            f.seek(72)
            f.write(struct.pack(">Q", features & ~2))
    with open("data.raw", "rb") as f:
        assert f.read() == before
    assert (l2_entry("disk.qcow2"), l2_entry("disk.qcow2", word=1)) == (place, bitmap)


def test_a_data_file_that_was_cut(folder):
    """As the peer does: zeroes behind its end; but somebody is told."""
    make()
    ok(io("disk.qcow2", "write -P 1 0 1M"))
    os.truncate("data.raw", 100 * KIB)
    short = b"\x01" * (100 * KIB) + bytes(924 * KIB)
    assert content(qimg) == short
    for r in (img("convert", "-O", "raw", "disk.qcow2", "ours.raw"), io("disk.qcow2", "read -P 1 0 100k", options=("-r",)),
              io("disk.qcow2", "read -P 0 100k 100k")):
        assert r.rc == 0 and "cut off" in r.err and r.err.count("\n") == 1 and "data.raw" in r.err, str(r)
    with open("ours.raw", "rb") as f:
        assert f.read() == short
    ok(img("info", "disk.qcow2"))


# ---- the process dies ----

KEPT = "driver=qcow2,file.filename=disk.qcow2,state-dir=state"


def die(*commands, tree=KEPT):
    r = io(tree, *commands, "abort", options=("-t", "writeback", "--image-opts"))
    assert r.rc == -6, str(r)
    assert os.listdir("state"), "nothing was left behind"


@pytest.mark.parametrize("raw, extended", [(False, "off"), (True, "off"), (False, "on"), (True, "on")])
def test_what_a_dead_process_had_acknowledged_is_there(folder, raw, extended):
    make(raw, size="8M", more=f",extended_l2={extended}")
    die("write -P 1 0 3M", "write -P 2 5000k 100k", "write -z -u 1M 300k")
    whole = bytearray(b"\x01" * (3 * MIB) + bytes(5 * MIB))
    whole[5000 * KIB:5100 * KIB] = b"\x02" * (100 * KIB)
    whole[MIB:MIB + 300 * KIB] = bytes(300 * KIB)
    assert "Pattern" not in ok(io(KEPT, "read -P 1 0 1M", options=("--image-opts",))).out
    assert os.listdir("state") == [] and content(img) == content(qimg) == whole
    if raw:
        with open("data.raw", "rb") as f:
            assert f.read() == whole
    clean()


def test_what_was_queued_over_one_data_file_is_not_written_over_another(folder):
    make(size="8M")
    die("write -P 1 0 3M")
    os.rename("data.raw", "moved.raw")
    with open("data.raw", "wb") as f:
        f.write(b"\x07" * (8 * MIB))
    with open("disk.qcow2", "rb") as f:
        before = f.read()
    for tree in KEPT, KEPT + ",data-file.driver=memory,data-file.size=8M":
        r = io(tree, "read 0 512", options=("--image-opts",))
        assert r.rc == 1 and "data" in r.err and r.err.count("\n") == 1, str(r)
    r = io(KEPT, "read 0 512", options=("--image-opts",))
    assert "moved.raw" not in r.err and "data.raw" in r.err and "data-file.filename" in r.err, str(r)
    with open("disk.qcow2", "rb") as f:
        assert f.read() == before
    assert len(os.listdir("state")) == 1
    ok(io(KEPT + ",data-file.filename=moved.raw", "read -P 1 0 3M", options=("--image-opts",)))
    os.replace("moved.raw", "data.raw")
    assert content(img) == content(qimg) == b"\x01" * (3 * MIB) + bytes(5 * MIB)
    clean()


# ---- failing disks ----

@pytest.mark.parametrize("event", ["write", "flush"])
def test_a_failure_of_the_data_file_is_the_guests_to_know(folder, event):
    make()
    tree = f"driver=qcow2,file.filename=disk.qcow2,data-file.driver=fault,data-file.file.filename=data.raw,data-file.rule.0.event={event}"
    r = io(tree, "write -P 1 0 64k", "flush", options=("--image-opts",))
    assert (f"{event} failed" if event == "write" else "flush") in (r.out + r.err).lower() and "Input/output error" in r.out + r.err, str(r)
    assert not any(content(img)) or event == "flush"
    assert img("check", "disk.qcow2").rc in (0, 3)


def test_entries_wait_for_a_data_file_that_cannot_be_synced(folder):
    """The sync of the data file fails: nothing leads to what may not be there."""
    make()
    tree = "driver=qcow2,file.filename=disk.qcow2,data-file.driver=fault,data-file.file.filename=data.raw,data-file.rule.0.event=flush"
    r = io(tree, "write -P 1 0 64k", "flush", options=("--image-opts",))
    assert r.rc == 1, str(r)
    assert not any(content(qimg)) and not ok(img("map", "--output=json", "disk.qcow2")).json[0]["present"]


def test_a_longer_disk_waits_for_its_data_file(folder):
    """Its length and zeroes are stable before the header says that the disk is longer."""
    make(raw=True)
    ok(io("disk.qcow2", "write -P 4 0 1M"))
    tree = "driver=qcow2,file.filename=disk.qcow2,data-file.driver=fault,data-file.file.filename=data.raw,data-file.rule.0.event=flush"
    r = img("resize", "--image-opts", tree, "2M")
    assert r.rc == 1 and "Input/output error" in r.err, str(r)
    assert content(qimg) == content(img) == b"\x04" * MIB
    ok(img("resize", "-q", "disk.qcow2", "2M"))
    assert content(qimg) == content(img) == b"\x04" * MIB + bytes(MIB)


def test_a_data_file_is_cut_when_the_shorter_disk_is_stable(folder):
    make()
    ok(io("disk.qcow2", "write -P 4 0 1M"))
    tree = "driver=qcow2,file.driver=fault,file.file.filename=disk.qcow2,file.rule.0.event=flush,data-file.filename=data.raw"
    r = img("resize", "--shrink", "--image-opts", tree, "700k")
    assert r.rc == 1 and "Input/output error" in r.err, str(r)
    assert os.path.getsize("data.raw") == MIB
    now = content(qimg)
    assert len(now) == MIB and now[:700 * KIB] == b"\x04" * (700 * KIB)


@pytest.mark.skipif(os.geteuid() != 0, reason="loop devices need root")
def test_a_device_as_data_file(folder):
    """A raw one keeps what it holds; none is written beyond the end of the disk, and none is longer than it is."""
    held = random.Random(5).randbytes(2 * MIB)
    with open("back", "wb") as f:
        f.write(held)
    made = subprocess.run(["losetup", "-f", "--show", "back"], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"no loop device: {made.stderr}")
    device = made.stdout.strip()
    try:
        ok(img("create", "-q", "-f", "qcow2", "-o", f"data_file={device},data_file_raw=on", "disk.qcow2", "2M"))
        assert content(img) == content(qimg) == held
        for r in img("resize", "disk.qcow2", "3M"), img("create", "-f", "qcow2", "-o", f"data_file={device}", "new.qcow2", "3M"):
            assert r.rc == 1 and "device" in r.err and not os.path.exists("new.qcow2"), str(r)
        ok(img("create", "-q", "-f", "qcow2", "-o", f"data_file={device},cluster_size=2M", "disk.qcow2", str(2 * MIB - SECTOR)))
        ok(io("disk.qcow2", f"write -P 3 {2 * MIB - 2 * SECTOR} {SECTOR}"))
        assert content(img) == content(qimg) == bytes(2 * MIB - 2 * SECTOR) + b"\x03" * SECTOR
        with open(device, "rb") as f:
            f.seek(2 * MIB - SECTOR)
            assert f.read() == held[-SECTOR:]
        ok(img("create", "-q", "-f", "qcow2", "-o", f"data_file={device},preallocation=metadata", "disk.qcow2", "1M"))
        assert not any(content(img))
        clean()
    finally:
        subprocess.run(["losetup", "-d", device], check=True)


# ---- which folder a name begins in ----

def test_a_relative_name_begins_in_the_folder_of_the_image(folder):
    """Whatever folder the command runs in; for the peer it is that one. Nothing is looked for in two places."""
    os.mkdir("sub")
    make(name="sub/disk.qcow2")
    assert os.path.exists("sub/data.raw") and not os.path.exists("data.raw")
    ok(io("sub/disk.qcow2", "write -q -P 5 0 64k"))
    os.chdir("sub")
    ok(io("disk.qcow2", "read -q -P 5 0 64k"))
    assert "verification failed" not in ok(qio("disk.qcow2", "read -P 5 0 64k")).out
    os.chdir(folder)
    r = img("create", "-f", "qcow2", "-o", "data_file=sub/data2.raw", "sub/disk2.qcow2", "1M")
    assert r.rc == 1 and "sub/sub/data2.raw" in r.err and "the image's" in r.err and len(r.err.splitlines()) == 1
    assert sorted(os.listdir("sub")) == ["data.raw", "disk.qcow2"]


def test_the_peers_data_file_in_the_current_folder_is_pointed_to(folder):
    os.mkdir("sub")
    make(name="sub/disk.qcow2", tool=qimg)
    assert os.path.exists("data.raw")
    ok(qio("sub/disk.qcow2", "write -q -P 6 0 64k"))
    for r in (io("sub/disk.qcow2", "read 0 64k"), img("convert", "-O", "raw", "sub/disk.qcow2", "out.raw")):
        assert r.rc == 1 and "sub/data.raw is not there" in r.err and "data-file.filename" in r.err and len(r.err.splitlines()) == 1
    assert not os.path.exists("out.raw")
    ok(io("driver=qcow2,file.filename=sub/disk.qcow2,data-file.filename=data.raw", "read -q -P 6 0 64k", options=("--image-opts",)))
    os.rename("data.raw", "sub/data.raw")
    ok(io("sub/disk.qcow2", "read -q -P 6 0 64k"))
    os.remove("sub/data.raw")
    r = io("sub/disk.qcow2", "read 0 64k")
    assert r.rc == 1 and "No such file" in r.err and "current folder" not in r.err
