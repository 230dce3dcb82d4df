# SPDX-License-Identifier: MIT
"""test_corrupt - damage that is met while an image is in use: which of it marks the image, beside the peer"""

import shutil
import struct

import pytest

from tool import img, info, io, ok, qimg, qio, refused

COPIED, ZERO, PACKED = 1 << 63, 1, 1 << 62
OFF = 0x00fffffffffffe00
READ, WRITE, DISCARD, ZEROES, NEW = "read 0 64k", "write -P 2 4k 4k", "discard 0 64k", "write -z 0 64k", "write -P 2 8M 64k"


class Image:
    def __init__(self, path):
        self.path = path

    def get(self, off):
        with open(self.path, "rb") as f:
            f.seek(off)
            return struct.unpack(">Q", f.read(8))[0]

    def put(self, off, fmt, *values):
        with open(self.path, "r+b") as f:
            f.seek(off)
            f.write(struct.pack(fmt, *values))

    l1 = property(lambda self: self.get(40))
    l2 = property(lambda self: self.get(self.l1) & OFF)
    counts = property(lambda self: self.get(self.get(48)))

    def entry(self, value, index=0):
        self.put(self.l2 + 8 * index, ">Q", value)

    def uncount(self, host_off):
        self.put(self.counts + 2 * (host_off >> 16), ">H", 0)


def damage(path, what):
    image = Image(path)
    data = image.get(image.l2) & OFF
    {"unaligned": lambda: image.entry(COPIED | data + 512),
     "unaligned zeroes": lambda: image.entry(COPIED | data + 512 | ZERO),
     "in L2": lambda: image.entry(COPIED | image.l2),
     "in L1": lambda: image.entry(COPIED | image.l1),
     "in counts": lambda: image.entry(COPIED | image.counts),
     "packed in L2": lambda: image.entry(PACKED | image.l2),
     "behind the end": lambda: image.entry(COPIED | 1 << 30),
     "reserved bits": lambda: image.entry(COPIED | data | 1 << 61),
     "L2 not counted": lambda: image.uncount(image.l2),
     "L1 not counted": lambda: image.uncount(image.l1),
     "data not counted": lambda: image.uncount(data)}[what]()


@pytest.fixture(name="sound", scope="module")
def fixture_sound(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("corrupt") / "sound.qcow2")
    ok(qimg("create", "-q", "-f", "qcow2", path, "16M"))
    ok(qio(path, "write -q -P 1 0 256k"))
    return path


def marked(path):
    return info(path)["format-specific"]["data"]["corrupt"]


def tried(tool, sound, path, what, command):
    """(the command failed, the image is marked, its neighbours are lost to whoever has it open)"""
    shutil.copy(sound, path)
    damage(path, what)
    r = tool(path, command, "read -P 1 192k 64k")
    assert r.rc >= 0, str(r)
    return f"{command.split()[0]} failed" in r.out + r.err, marked(path), "read 65536/65536 bytes at offset 196608" not in r.out


def after(tool):
    return {io: "marked corrupt", qio: "Marking image as corrupt"}[tool]


# What marks an image: the same in both.
@pytest.mark.parametrize("what, command", [
    ("unaligned", READ), ("unaligned", WRITE), ("unaligned zeroes", READ), ("unaligned zeroes", WRITE), ("in L2", WRITE),
    ("in L1", WRITE), ("in counts", WRITE), ("L2 not counted", NEW), ("L1 not counted", NEW)])
def test_what_marks_an_image_as_it_does_there(tmp_path, sound, what, command):
    path = str(tmp_path / "disk.qcow2")
    assert tried(io, sound, path, what, command) == tried(qio, sound, path, what, command) == (True, True, True)


# What does not: a failed request, or none, and the disk goes on.
@pytest.mark.parametrize("what, command, fails", [
    ("unaligned", DISCARD, False), ("unaligned zeroes", DISCARD, False), ("data not counted", DISCARD, False),
    ("data not counted", WRITE, False), ("packed in L2", READ, True), ("unaligned", NEW, False), ("in L2", NEW, False)])
def test_what_does_not_mark_it_either(tmp_path, sound, what, command, fails):
    path = str(tmp_path / "disk.qcow2")
    assert tried(io, sound, path, what, command) == tried(qio, sound, path, what, command) == (fails, False, False)


# Where ours is stricter: bytes of metadata are not given to a guest, and what cannot be is not made something else by zeroes.
@pytest.mark.parametrize("what, command, marks", [
    ("in L2", READ, False), ("behind the end", READ, False), ("behind the end", WRITE, False), ("reserved bits", READ, False),
    ("reserved bits", WRITE, False), ("unaligned", ZEROES, True), ("in L2", ZEROES, True), ("packed in L2", WRITE, True)])
def test_where_ours_is_stricter(tmp_path, sound, what, command, marks):
    path = str(tmp_path / "disk.qcow2")
    assert tried(io, sound, path, what, command) == (True, marks, marks)


@pytest.mark.parametrize("tool", [io, qio])
def test_nothing_of_it_is_used_after_that(tmp_path, sound, tool):
    path = str(tmp_path / "disk.qcow2")
    shutil.copy(sound, path)
    damage(path, "unaligned")
    r = tool(path, "write -P 7 8M 64k", READ, "read 64k 4k", "write 64k 4k", "discard 64k 64k", "write -z 64k 64k", "truncate 32M")
    assert r.rc == 1 and r.out.count("wrote") == 1 and " ops;" in r.out, str(r)
    assert (r.out + r.err).count(after(tool)) == 1, str(r)
    r = tool(path, "read -P 1 64k 4k")
    assert r.rc == 1 and "corrupt" in r.err, str(r)
    # What was acknowledged before is there; it can be read.
    r = tool(path, "read -P 7 8M 64k", "read -P 1 64k 64k", options=("-r",))
    assert r.rc == 0 and "verification" not in r.out, str(r)


def test_one_line_says_it_all(tmp_path, sound):
    path = str(tmp_path / "disk.qcow2")
    shutil.copy(sound, path)
    damage(path, "in L2")
    r = io(path, WRITE, "write 64k 4k", "read 64k 4k", "flush")
    lines = [line for line in r.err.splitlines() if "damaged" in line]
    assert len(lines) == 1, str(r)
    for word in path, "guest offset 0x0", f"{COPIED | Image(path).l2:#x}", "marked corrupt", "check -r all":
        assert word in lines[0], str(r)
    refused(img("resize", path, "32M"), "marked corrupt", "check -r all")
    refused(img("snapshot", "-c", "s", path), "marked corrupt")


@pytest.mark.parametrize("what", ["leaks", "all"])
@pytest.mark.parametrize("left", ["nothing", "leak", "low count"])
def test_a_repair_takes_the_mark_away(tmp_path, sound, what, left):
    found = {}
    for tool in img, qimg:
        path = str(tmp_path / "disk.qcow2")
        shutil.copy(sound, path)
        image = Image(path)
        image.put(72, ">Q", 2)
        if left == "leak":
            image.put(image.counts + 2 * 5000, ">H", 1)
        elif left == "low count":
            image.uncount(image.get(image.l2 + 8) & OFF)
        r = tool("check", "-q", "-r", what, path)
        found[tool] = r.rc == 0, marked(path)
        if r.rc == 0:
            ok(img("check", "-q", path))
            ok(qimg("check", "-q", path))
            ok(io(path, "read -q -P 1 0 256k", "write -q 8M 64k"))
            ok(qimg("check", "-q", path))
    assert found[img] == found[qimg] == ((False, True) if (what, left) == ("leaks", "low count") else (True, False))


def test_what_check_says_of_the_mark(tmp_path, sound):
    path = str(tmp_path / "disk.qcow2")
    shutil.copy(sound, path)
    Image(path).put(72, ">Q", 2)
    r = img("check", path)
    assert r.rc == 0 and "marked corrupt" in r.out, str(r)
    before = open(path, "rb").read()
    r = img("check", "-r", "leaks", "--dry-run", path)
    assert r.rc == 0 and "the mark" in r.out and open(path, "rb").read() == before, str(r)
    r = img("check", "-r", "leaks", path)
    assert r.rc == 0 and "marked" not in r.out and not marked(path), str(r)


def test_a_damage_that_stays_keeps_the_mark(tmp_path, sound):
    path = str(tmp_path / "disk.qcow2")
    shutil.copy(sound, path)
    damage(path, "unaligned")
    io(path, READ)
    assert marked(path)
    for what in "leaks", "all":
        assert img("check", "-q", "-r", what, path).rc == 2
        assert marked(path)


@pytest.mark.parametrize("command", [READ, WRITE])
def test_version_2_is_refused_without_a_mark(tmp_path, sound, command):
    path = str(tmp_path / "disk.qcow2")
    for tool in io, qio:
        ok(qimg("convert", "-q", "-O", "qcow2", "-o", "compat=0.10", sound, path))
        damage(path, "unaligned")
        before = open(path, "rb").read()
        r = tool(path, command, "read 64k 4k")
        assert r.rc == 1 and " ops;" not in r.out and open(path, "rb").read() == before, str(r)


def test_what_is_read_only_is_not_marked(tmp_path, sound):
    path = str(tmp_path / "disk.qcow2")
    for tool in io, qio:
        shutil.copy(sound, path)
        damage(path, "unaligned")
        before = open(path, "rb").read()
        r = tool(path, READ, READ, "read -P 1 64k 64k", options=("-r",))
        assert r.rc == 1 and r.out.count("ops;") == 1 and open(path, "rb").read() == before, str(r)
    overlay = str(tmp_path / "overlay.qcow2")
    ok(img("create", "-q", "-f", "qcow2", "-b", path, "-F", "qcow2", overlay))
    r = io(overlay, READ, "read -P 1 64k 64k", "write -P 3 0 64k", "read -P 3 0 64k")
    assert r.rc == 1 and r.out.count("ops;") == 3 and not marked(overlay) and open(path, "rb").read() == before, str(r)


def test_commands_that_write_say_why_they_fail(tmp_path, sound):
    path, source, overlay = (str(tmp_path / name) for name in ("disk.qcow2", "source", "overlay.qcow2"))
    ok(qimg("create", "-q", "-f", "raw", source, "16M"))
    ok(qio(source, "write -q -P 9 0 256k", options=("-f", "raw")))
    for command in ("convert", "-n", "-f", "raw", "-O", "qcow2", source, path), ("commit", overlay):
        shutil.copy(sound, path)
        damage(path, "in L1")
        ok(img("create", "-q", "-f", "qcow2", "-b", path, "-F", "qcow2", overlay))
        ok(io(overlay, "write -q -P 8 0 64k"))
        r = img(*command)
        assert r.rc == 1 and marked(path), str(r)
        assert [line for line in r.err.splitlines() if path in line and "marked corrupt" in line and "check -r all" in line], str(r)
        r = io(overlay, "read -q -P 8 0 64k", options=("-r",))
        assert r.rc == 0 and r.out == "", str(r)
