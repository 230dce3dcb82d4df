# SPDX-License-Identifier: MIT
"""test_nothing_changed - a command that is refused leaves every file as it was, byte for byte

Assumes: each command is refused for what it asks, not for what happens while it runs: a disk that gets full in the middle is
         tested elsewhere.
"""

import hashlib
import os
import shlex
import struct
import subprocess

import pytest

from tool import MIB, TIMEOUT, img, io, ok, refused, varve_path

HUGE = "driver=null-co,size=9223372036854774784"

REFUSED = """\
convert -c -O qed s keep | compressed
convert -c -O raw s keep | compressed
convert -c s keep | compressed
convert -c --compress-level ratio -O raw s keep | compressed
convert -n -c -O raw short s | compressed
convert -n -c -O qed short e | compressed
convert -n -c --target-image-opts s driver=raw,file.filename=short | compressed
convert -t bogus -O raw s keep | bogus
convert -t bogus -O qcow2 s keep | bogus
convert -n -t bogus -O qcow2 s q | bogus
convert -O qcow2 -o bogus=1 s keep | bogus
convert -O raw -o bogus=1 s keep | bogus
convert -O raw -o backing_file=s,backing_fmt=raw s keep | backing
convert -O qcow2 -B keep -F raw s keep | chain
convert -O qcow2 -B nosuch -F raw s keep | nosuch
convert -O qcow2 -o compat=0.10 --bitmaps q keep | bitmaps
convert -n --bitmaps -O qcow2 q q2 | 'b0' already
convert -n --bitmaps -O qcow2 q old | old 0.10
convert -n --bitmaps -O qcow2 q large | 2097152 4194304
convert -n --bitmaps --target-image-opts q driver=raw,file.filename=keep2 | raw bitmaps
convert -n -O qcow2 q small | small fit
convert -l nosuch -O raw q2 keep | nosuch
convert --image-opts HUGE keep | keep large
convert --image-opts HUGE HUGE HUGE keep | long
convert -O qcow2 -o size=x s keep | size=x
create -f raw keep 7E | keep large
create -f raw s 7E | s large
create -f qcow2 s 7E | s large
create -f qed s 7E | s large
create -f raw -o nocow=on,bogus=1 keep 1M | bogus
create -f qcow2 -o data_file=s,data_file_raw=bogus keep 1M | bogus
create -f qcow2 -o data_file=s,compat=0.10 keep 1M | compat
dd if=s of=keep -O bogus | bogus
dd if=s of=keep osize=7E | keep large
dd if=s of=keep osize=7E -O qcow2 | keep large
dd if=s isize=2M of=keep | isize
dd -n if=q of=s | fewer
commit -b nosuch top | nosuch
commit -t bogus top | bogus
rebase -b s -F bogus top | bogus
rebase -u -b nosuch -F bogus top | bogus
rebase -t bogus -b s -F raw top | bogus
rebase -b '' -F bogus top | bogus
rebase -b '' -T bogus top | bogus
rebase -u -b '' -F bogus top | bogus
create -f qcow2 -o '' keep 1M | option
convert -O qcow2 -o '' s keep | option
amend -o '' q | option
measure -O qcow2 -o '' s | option
snapshot -c NAME450 q2 | 255
snapshot -a nosuch q2 | nosuch
bitmap --add --merge nosuch q b7 | nosuch
bitmap --clear --merge nosuch q b0 | nosuch
bitmap --clear --merge bm -b small -F qcow2 q b0 | 524288 2097152
bitmap --add --merge nosuch -b small -F qcow2 q b7 | nosuch small
bitmap --merge b0 --merge nosuch q b0 | nosuch
bitmap --add old b | 0.10 amend
bitmap --add --disable old b | 0.10
bitmap --add full b | header fit
bitmap --enable old b | 'b'
snapshot -c s one | refcounts 1
snapshot -a sn two | refcounts 2
snapshot -c sn3 two | refcounts 2
resize q 1M | shrink
resize -f raw s 7E | s large
amend -o size=4M,bogus=1 q | bogus
amend -o refcount_bits=8,size=1M q | shrink
amend -o compat=0.10,size=4M q2 | snapshots
amend -o size=7E,refcount_bits=8 q | L1
amend -o size=7E,lazy_refcounts=on q | L1
amend -o size=7E,compat=1.1 old | L1
amend -o size=3T,refcount_bits=8 fine | 'fine' memory
amend -o compat=1.1,refcount_bits=8 oldfull | header
amend -o lazy_refcounts=off,refcount_bits=8,data_file=NAME450 out | data file name
amend -o compat=1.1,refcount_bits=1 olds | 1 bits
amend -o lazy_refcounts=on,refcount_bits=1 q2 | 1 bits"""

FROM_STDIN = ["convert -f raw -O raw - keep", "convert -f raw -O qcow2 - keep", "dd of=keep isize=8"]


def state(folder):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


def fill_header(path, pos):
    """Extensions that nobody knows take all of the first sector but 24 bytes."""
    with open(path, "r+b") as f:
        f.seek(pos)
        f.write(struct.pack(">II", 0x76617276, 512 - pos - 8 - 24) + bytes(512 - pos - 8))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Made once: no command here may change them."""
    here = tmp_path_factory.mktemp("files")

    def create(*args):
        ok(img("create", "-q", *args, cwd=here))

    (here / "keep").write_bytes(b"precious")
    (here / "keep2").write_bytes(bytes(range(256)) * (2 * MIB // 256))
    for name, length in (("s", MIB), ("short", MIB // 2)):
        (here / name).write_bytes(b"\5" * length)
    create("-f", "qcow2", "-b", "s", "-F", "raw", "top")
    for name, size in (("q", "2M"), ("q2", "2M"), ("small", "512k"), ("large", "4M")):
        create("-f", "qcow2", name, size)
    create("-f", "qcow2", "-o", "compat=0.10", "old", "2M")
    create("-f", "qed", "e", "1M")
    create("-f", "qcow2", "full", "2M")
    ok(io("q", "write -P 7 0 64k", cwd=here))
    for name in ("q", "q2"):
        ok(img("bitmap", "--add", name, "b0", cwd=here))
    ok(img("bitmap", "--add", "small", "bm", cwd=here))
    ok(img("snapshot", "-c", "sn", "q2", cwd=here))
    fill_header(here / "full", 112)
    create("-f", "qcow2", "-o", "compat=0.10", "oldfull", "2M")
    fill_header(here / "oldfull", 72)
    create("-f", "qcow2", "-o", "data_file=outside", "out", "2M")
    create("-f", "qcow2", "fine", "2M")
    ok(img("bitmap", "--add", "-g", "512", "fine", "fine", cwd=here))
    create("-f", "qcow2", "-o", "compat=0.10", "olds", "2M")
    ok(io("olds", "write -P 7 0 64k", cwd=here))
    ok(img("snapshot", "-c", "sn", "olds", cwd=here))
    ok(io("q2", "write -P 7 0 64k", cwd=here))
    ok(img("snapshot", "-c", "sn3", "q2", cwd=here))
    for name, bits, snapshots in (("one", 1, []), ("two", 2, ["sn", "sn2"])):
        create("-f", "qcow2", "-o", f"refcount_bits={bits}", name, "2M")
        ok(io(name, "write -P 7 0 64k", cwd=here))
        for snapshot in snapshots:
            ok(img("snapshot", "-c", snapshot, name, cwd=here))
    return here, state(here)


@pytest.mark.parametrize("line", REFUSED.splitlines())
def test_what_is_refused_changes_nothing(files, line):
    here, before = files
    command, words = line.split(" | ")
    refused(img(*shlex.split(command.replace("HUGE", HUGE).replace("NAME450", "n" * 450)), cwd=here), *words.split())
    assert state(here) == before


@pytest.mark.parametrize("command", FROM_STDIN)
@pytest.mark.parametrize("redirection", ["<&-", "</", "<keep", "<./keep", ">/dev/null <&1"])
def test_standard_input_is_looked_at_before_the_target_is_made(files, command, redirection):
    """Closed, a folder, the target itself, or open for writing only: known before anything is written."""
    here, before = files
    p = subprocess.run(["sh", "-c", f"exec {shlex.quote(varve_path())} img {command} {redirection}"], cwd=here, capture_output=True,
                       text=True, timeout=TIMEOUT, check=False, env={**os.environ, "LC_ALL": "C"})
    assert p.returncode == 1 and p.stderr.count("\n") == 1 and "standard input" in p.stderr, p
    assert state(here) == before

# ---- create -u ----

ITSELF = ["s", "./s", "{here}/s", "file:s", "link", "hard", 'json:{{"driver":"raw","file":{{"driver":"file","filename":"s"}}}}',
          'json:{{"driver":"file","filename":"{here}/s"}}', "over", "over2"]


def overlay(here):
    (here / "s").write_bytes(b"\5" * MIB)
    os.symlink("s", here / "link")
    os.link(here / "s", here / "hard")
    ok(img("create", "-q", "-f", "qcow2", "-b", "s", "-F", "raw", "over", cwd=here))
    ok(img("create", "-q", "-f", "qcow2", "-b", "over", "-F", "qcow2", "over2", cwd=here))


@pytest.mark.parametrize("backing", ITSELF)
@pytest.mark.parametrize("how", [["-u", "-b"], ["-u", "-o"]])
def test_an_image_that_would_back_itself_is_refused_without_a_look_at_the_backing_file_too(tmp_path, backing, how):
    overlay(tmp_path)
    name, before = backing.format(here=tmp_path), state(tmp_path)
    args = [*how, name if how[1] == "-b" else "backing_file=" + name.replace(",", ",,"),
            "-F", "qcow2" if "over" in backing else "raw"]
    refused(img("create", "-f", "qcow2", *args, "s", "1M", cwd=tmp_path), "back")
    refused(img("create", "-f", "qcow2", *args, "-o", "data_file=s", "new", "1M", cwd=tmp_path), "data file", "back")
    assert state(tmp_path) == before


@pytest.mark.parametrize("backing", [b for b in ITSELF if "over" not in b])
@pytest.mark.parametrize("image", ["s", "elsewhere/../s", "file:s"])
def test_an_image_is_not_rebased_onto_itself(tmp_path, backing, image):
    ok(img("create", "-q", "-f", "qcow2", tmp_path / "s", "1M"))
    (tmp_path / "elsewhere").mkdir()
    os.symlink("s", tmp_path / "link")
    os.link(tmp_path / "s", tmp_path / "hard")
    before = (tmp_path / "s").read_bytes()
    refused(img("rebase", "-u", "-F", "qcow2", "-b", backing.format(here=tmp_path), image, cwd=tmp_path), "own backing")
    assert (tmp_path / "s").read_bytes() == before
    ok(img("rebase", "-u", "-F", "qcow2", "-b", "other/s", image, cwd=tmp_path))  # one that is still to come


@pytest.mark.parametrize("name", ["new", "./new", "file:new", "{here}/new", "dangling"])
def test_an_image_that_is_new_does_not_back_itself(tmp_path, name):
    """Nothing is there to compare with until it is made; then it is, and what was made is removed."""
    os.symlink("new", tmp_path / "dangling")
    before = set(os.listdir(tmp_path))
    backing = name.format(here=tmp_path)
    refused(img("create", "-u", "-f", "qcow2", "-b", backing, "-F", "raw", "new", "1M", cwd=tmp_path), "own backing")
    refused(img("create", "-u", "-f", "qcow2", "-b", backing, "-F", "raw", "-o", "data_file=new", "top", "1M", cwd=tmp_path),
            "data file", "own backing")
    assert set(os.listdir(tmp_path)) == before


@pytest.mark.parametrize("backing", ["nosuch", "http://127.0.0.1:1/s", "json:{}", "json:{", "json:7", "short"])
def test_what_cannot_be_opened_may_still_be_named(tmp_path, backing):
    """That is what -u is for; also above a file that has bytes, of an image that is no image yet."""
    (tmp_path / "old").write_bytes(b"old")
    (tmp_path / "short").write_bytes(b"no image")
    ok(img("create", "-q", "-u", "-f", "qcow2", "-b", backing, "-F", "qcow2", "old", "1M", cwd=tmp_path))
    assert img("info", "old", cwd=tmp_path).out.count(f"backing file: {backing}") == 1
