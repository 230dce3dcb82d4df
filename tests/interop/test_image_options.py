# SPDX-License-Identifier: MIT
"""Options of images: what the peer takes is taken, what it refuses is refused in one line, and what they ask for happens."""

import json
import os
import re
import select
import shutil
import signal
import subprocess

import pytest

from tool import KIB, MIB, TIMEOUT, img, io, ok, qimg, qio, run, varve_path

IMAGE = "driver=qcow2,file.driver=file,file.filename=disk,"

TAKEN = """
lazy-refcounts=on
pass-discard-request=on
pass-discard-request=off
pass-discard-snapshot=off
pass-discard-other=on
cache-size=1M
cache-size=0
cache-size=1
cache-size=8G
cache-size=1M,l2-cache-size=512k
cache-size=1M,refcount-cache-size=512k
l2-cache-size=0
l2-cache-size=4k
l2-cache-size=8G
l2-cache-size=200T
refcount-cache-size=1
refcount-cache-size=8G
l2-cache-entry-size=512
l2-cache-entry-size=4k
l2-cache-entry-size=64k
cache-clean-interval=0
cache-clean-interval=1
cache-clean-interval=4294967295
discard-no-unref=off
node-name=abc
node-name=a.b-c_d,file.node-name=prot
file.node-name=foo
auto-read-only=on
auto-read-only=off
file.auto-read-only=on
file.drop-cache=on
file.drop-cache=off
file.x-check-cache-dropped=off
file.aio-max-batch=0
file.aio=threads
file.aio=io_uring
file.aio=native,cache.direct=on
file.locking=on
file.locking=off
file.locking=auto
file.discard=unmap
file.detect-zeroes=off
detect-zeroes=on
detect-zeroes=unmap,discard=unmap
read-only=off
force-share=off
cache.direct=on,cache.no-flush=on
backing=
overlap-check=none
overlap-check=constant
overlap-check=cached
overlap-check=all
overlap-check.template=all
overlap-check=all,overlap-check.template=all
overlap-check.template=none,overlap-check.main-header=on
overlap-check.active-l1=off,overlap-check.active-l2=on,overlap-check.refcount-table=on,overlap-check.refcount-block=on
overlap-check.snapshot-table=on,overlap-check.inactive-l1=on,overlap-check.inactive-l2=on,overlap-check.bitmap-directory=on
""".split()

NEWER = ["discard-no-unref=off"]  # than the peer may be

REFUSED = """
lazy-refcounts=maybe
pass-discard-request=x
pass-discard-snapshot=x
pass-discard-other=x
cache-size=100000000T
cache-size=abc
cache-size=-1
cache-size=1M,l2-cache-size=2M
cache-size=1M,refcount-cache-size=2M
cache-size=1M,l2-cache-size=512k,refcount-cache-size=512k
refcount-cache-size=1000T
l2-cache-entry-size=256
l2-cache-entry-size=3000
l2-cache-entry-size=128k
l2-cache-entry-size=0
cache-clean-interval=4294967296
cache-clean-interval=-1
cache-clean-interval=x
auto-read-only=x
node-name=1bc
node-name=
node-name=abcdefghijklmnopqrstuvwxyzabcdefghijk
node-name=#abc
node-name=a,file.node-name=a
force-share=on
read-only=x
discard=x
detect-zeroes=x
file.aio=x
file.aio=native
file.locking=x
file.pr-manager=foo
file.drop-cache=x
file.aio-max-batch=x
data-file=foo
data-file.filename=other
backing=foo
overlap-check=some
overlap-check=
overlap-check.template=bad
overlap-check.main-header=maybe
overlap-check.foo=on
overlap-check=all,overlap-check.template=none
""".split()


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    path = tmp_path_factory.mktemp("image") / "disk"
    make(path)
    return path


@pytest.fixture(autouse=True)
def disk(empty, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(empty, "disk")


def make(name, size="64M", *options):
    run("qemu-img", "create", "-q", "-f", "qcow2", *options, name, size, check=True)


def both(options, command="read 0 4k"):
    """Exit status of the peer, and what we did."""
    peer = run("qemu-io", "--image-opts", "-c", command, IMAGE + options)
    return peer.rc, io(IMAGE + options, command, options=["--image-opts"])


@pytest.mark.parametrize("options", TAKEN)
def test_what_the_peer_takes_is_taken(options):
    peer, ours = both(options)
    assert peer == 0 or options in NEWER
    assert (ours.rc, ours.err) == (0, ""), str(ours)


@pytest.mark.parametrize("options", REFUSED)
def test_what_the_peer_refuses_is_refused_by_name(options):
    before = open("disk", "rb").read()
    peer, ours = both(options)
    assert peer == 1 and ours.rc == 1, str(ours)
    assert ours.err.count("\n") == 1, str(ours)
    assert any(pair.split("=")[0].removeprefix("file.").split(".")[0] in ours.err for pair in options.split(",")), str(ours)
    assert open("disk", "rb").read() == before


def as_json(options):
    tree = {"driver": "qcow2", "file": {"driver": "file", "filename": "disk"}}
    return "json:" + json.dumps({**tree, **options})


@pytest.mark.parametrize("options", [
    {"cache-size": 1048576, "cache-clean-interval": 5},
    {"pass-discard-request": True, "pass-discard-snapshot": False, "pass-discard-other": True},
    {"overlap-check": {"template": "all", "main-header": False}},
    {"overlap-check": "cached"},
    {"backing": None, "l2-cache-entry-size": 4096, "discard": "unmap"},
])
def test_the_same_as_json(options):
    assert run("qemu-io", "-c", "read 0 4k", as_json(options)).rc == 0
    r = io(as_json(options), "read 0 4k")
    assert (r.rc, r.err) == (0, ""), str(r)


# ---- discards in the file below

def blocks():
    return os.stat("disk").st_blocks * 512


def given_back(command):
    """Megabytes that the file has lost to it, by program."""
    result = []
    for program in ("peer", "ours"):
        os.unlink("disk")
        make("disk")
        run("qemu-io", "-c", "write -q -P 1 0 8M", "disk", check=True)
        before = blocks()
        before = command(program) or before
        run("qemu-img", "check", "-q", "disk", check=True)
        result.append(round((before - blocks()) / MIB))
    return result


@pytest.mark.parametrize("what", ["discard 0 4M", "write -z -u 0 4M"])
@pytest.mark.parametrize("options, lost", [("discard=unmap", 4), ("discard=unmap,pass-discard-request=on", 4),
                                           ("discard=unmap,pass-discard-request=off", 0),
                                           ("discard=unmap,pass-discard-request=off,pass-discard-other=on", 0),
                                           ("discard=ignore", 0), ("discard=ignore,pass-discard-request=off", 0)])
def test_discards_of_the_guest(what, options, lost):
    def command(program):
        args = ("--image-opts", "-c", what, IMAGE + options)
        run("qemu-io", *args, check=True) if program == "peer" else check(io(IMAGE + options, what, options=["--image-opts"]))
    assert given_back(command) == [lost, lost]


@pytest.mark.parametrize("what, lost", [("discard 0 4M", 0), ("write -z 0 4M", 0), ("write -z -u 0 4M", 4)])
def test_zeroing_that_may_unmap_is_no_discard(what, lost):
    """discard=ignore is of discards; what becomes of unmapped clusters says pass-discard-request."""
    def command(program):
        options = IMAGE + "discard=ignore,pass-discard-request=on"
        run("qemu-io", "--image-opts", "-c", what, options, check=True) if program == "peer" else check(io(options, what, options=["--image-opts"]))
    assert given_back(command) == [lost, lost]


def check(r):
    assert (r.rc, r.err) == (0, ""), str(r)


@pytest.mark.parametrize("how", ["-d", "-a"])
@pytest.mark.parametrize("options, lost", [("", 8), ("pass-discard-snapshot=off,", 0), ("pass-discard-snapshot=on,discard=ignore,", 8),
                                           ("pass-discard-other=on,pass-discard-snapshot=off,", 0)])
def test_discards_of_snapshots(how, options, lost):
    def command(program):
        run("qemu-img", "snapshot", "-c", "one", "disk", check=True)
        run("qemu-io", "-c", "write -q -P 2 0 8M", "disk", check=True)
        before = blocks()
        args = ("snapshot", how, "one", "--image-opts", (IMAGE + options).rstrip(","))
        run("qemu-img", *args, check=True) if program == "peer" else check(img(*args))
        return before
    assert given_back(command) == [lost, lost]


def test_a_shorter_disk_always_gives_back():
    def command(program):
        args = ("resize", "-q", "--shrink", "--image-opts", IMAGE + "pass-discard-request=off,pass-discard-snapshot=off", "4M")
        run("qemu-img", *args, check=True) if program == "peer" else check(img(*args))
    assert given_back(command) == [4, 4]


def test_other_discards():
    """Compressed clusters that are written anew, and tables that moved, are neither asked for by the guest nor by a snapshot."""
    lost = {}
    for value in ("off", "on"):
        with open("text", "wb") as f:
            f.write(bytes(range(256)) * 16 * 256)
        for i in range(0, MIB, 4 * KIB):
            with open("text", "r+b") as f:
                f.seek(i)
                f.write(os.urandom(2 * KIB))
        check(img("convert", "-c", "-f", "raw", "-O", "qcow2", "text", "disk"))
        before = blocks()
        opts = IMAGE + f"pass-discard-other={value}"
        check(io(opts, "write -P 3 0 1M", options=["--image-opts"]))
        run("qemu-img", "check", "-q", "disk", check=True)
        lost[value] = before + MIB - blocks()
    assert lost["on"] - lost["off"] >= 384 * KIB, lost


# ---- metadata is not written over

def number(data, off, length):
    return int.from_bytes(data[off:off + length], "big")


def extension(data, magic):
    at = number(data, 100, 4)
    while number(data, at, 4):
        if number(data, at, 4) == magic:
            return at + 8
        at += 8 + (number(data, at + 4, 4) + 7) // 8 * 8
    raise KeyError(magic)


@pytest.mark.parametrize("check", ["none", "cached"])
def test_a_bitmap_directory_counted_as_free_is_not_handed_out(check):
    run("qemu-img", "bitmap", "--add", "disk", "one", check=True)
    data = open("disk", "rb").read()
    directory = number(data, extension(data, 0x23852875) + 16, 8)
    block = number(data, number(data, 48, 8), 8)
    with open("disk", "r+b") as f:
        f.seek(block + 2 * (directory >> 16))
        f.write(bytes(2))
    r = io(IMAGE + f"overlap-check={check}", *[f"write -P 0x5e {i * 64}k 64k" for i in range(8)], options=["--image-opts"])
    assert "holds metadata" in r.err, str(r)
    assert open("disk", "rb").read()[directory:directory + 64 * KIB].count(0x5e) < 16


# ---- layers

CANNOT = [("file.aio-max-batch=64", "aio-max-batch"), ("file.x-check-cache-dropped=on", "x-check-cache-dropped"),
          ("file.detect-zeroes=on", "detect-zeroes"), ("file.pr-manager=x", "persistent reservations")]


@pytest.mark.parametrize("options, words", CANNOT)
def test_what_cannot_be_had_is_named(options, words):
    r = io(IMAGE + options, "read 0 4k", options=["--image-opts"])
    assert r.rc == 1 and r.err.count("\n") == 1 and words in r.err and "not known" not in r.err, str(r)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a file that even its owner cannot write")
@pytest.mark.parametrize("where", ["", "file."])
def test_auto_read_only(where):
    subprocess.run(["chattr", "+i", "disk"], check=True)
    try:
        r = io(IMAGE.rstrip(","), "read 0 4k", options=["--image-opts"])
        assert r.rc == 1, str(r)
        r = io(IMAGE + where + "auto-read-only=on", "read 0 4k", options=["--image-opts"])
        check(r)
        r = io(IMAGE + where + "auto-read-only=on", "write 0 4k", options=["--image-opts"])
        assert r.rc == 1, str(r)
    finally:
        subprocess.run(["chattr", "-i", "disk"], check=True)


def test_a_node_name_is_a_name():
    """The last image that copy-on-read takes from may be called by it."""
    make("base")
    run("qemu-io", "-c", "write -q -P 7 0 64k", "base", check=True)
    os.unlink("disk")
    make("disk", "64M", "-b", "base", "-F", "qcow2")
    tail = "backing.driver=qcow2,backing.file.filename=base,backing.node-name=below,copy-on-read=on,copy-on-read-bottom="
    check(io(IMAGE + tail + "below", "read -P 7 0 64k", options=["--image-opts"]))
    assert [e for e in img("map", "--output=json", "disk").json if e["depth"] == 0 and e["data"]]
    r = io(IMAGE + tail + "beside", "read 0 64k", options=["--image-opts"])
    assert r.rc == 1 and "beside" in r.err, str(r)
    twice = IMAGE + "node-name=one," + tail.replace("=below", "=one") + "one"
    r = io(twice, "read 0 64k", options=["--image-opts"])
    assert r.rc == 1 and "node-name" in r.err, str(r)


@pytest.mark.parametrize("program", ["peer", "ours"])
def test_a_daemon_as_libvirt_describes_it(program):
    storage = {"driver": "file", "filename": "disk", "node-name": "libvirt-1-storage", "auto-read-only": True, "discard": "unmap",
               "cache": {"direct": True, "no-flush": False}, "aio": "native"}
    form = {"node-name": "libvirt-1-format", "read-only": False, "discard": "unmap", "detect-zeroes": "unmap", "driver": "qcow2",
            "cache": {"direct": True, "no-flush": False}, "cache-size": 4 * MIB, "pass-discard-snapshot": True,
            "overlap-check": {"template": "all"}, "file": "libvirt-1-storage", "backing": None}
    start = ["qemu-storage-daemon"] if program == "peer" else [varve_path(), "daemon"]
    run(*start, "--blockdev", json.dumps(storage), "--blockdev", json.dumps(form), "--daemonize", "--pidfile", "pid", check=True)
    pid = int(open("pid").read())
    gone = os.pidfd_open(pid)
    os.kill(pid, signal.SIGTERM)
    assert select.select([gone], [], [], TIMEOUT)[0]
    os.close(gone)


# ---- the page of the grammar

def test_the_grammar_lists_what_the_parser_knows():
    page = run(os.path.join(os.environ["VARVE_BUILD"], "tools", "varve"), "completion", "markdown", check=True).out
    known = re.findall(r"^\| `([a-z0-9.-]+)` \|", page.split("\n### driver=qcow2\n")[1].split("\n### ")[0], re.M)
    assert len(known) > 20
    for key in known:
        if not key.startswith(("snapshot.", "state-dir")):
            r = io(IMAGE + f"{key}=?", "read 0 4k", options=["--image-opts"])
            assert r.rc == 1 and key in r.err and "not known" not in r.err, str(r)


def test_an_image_in_a_part_of_a_file_does_not_write_behind_its_part(tmp_path):
    """With a size, somebody else has what is behind it; with an offset alone it may become longer, and its tables get their space where they are."""
    inner, disk = tmp_path / "inner", tmp_path / "disk"
    ok(img("create", "-q", "-f", "qcow2", inner, "16M"))
    before = b"a" * MIB + inner.read_bytes()
    disk.write_bytes(before + b"z" * MIB)
    part = f"driver=qcow2,file.driver=raw,file.offset={MIB},file.size={inner.stat().st_size},file.file.filename={disk}"
    r = io(part, "write 0 64k", options=("--image-opts",))
    assert r.rc == 1 and "cannot grow" in r.err and r.err.count("\n") == 1, str(r)
    assert disk.read_bytes() == before + b"z" * MIB
    ok(io(part, "read -P 0 0 64k", options=("-r", "--image-opts")))
    disk.write_bytes(before)
    ok(io(f"driver=qcow2,file.driver=raw,file.offset={MIB},file.file.filename={disk}", *[f"write -q -P {i} {i}M 700k" for i in range(1, 9)],
          options=("--image-opts",)))
    after = disk.read_bytes()
    assert after[:MIB] == b"a" * MIB
    inner.write_bytes(after[MIB:])
    ok(qimg("check", "-q", inner))
    ok(qio(inner, *[f"read -q -P {i} {i}M 700k" for i in range(1, 9)], options=("-f", "qcow2")))
