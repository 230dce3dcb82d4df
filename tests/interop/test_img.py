# SPDX-License-Identifier: MIT
"""test_img - create, info, check, map, compare: what they print, what they leave on disk, and what QEMU says to it"""

import os
import re
import resource
import subprocess

import pytest

from tool import KIB, MIB, childless, img, io, ok, qimg, qio, refused, sanitized, varve_path


def info(path, *args):
    return ok(img("info", "--output=json", *args, path)).json


def same_info(path, *args, but=()):
    """Our description and QEMU's are the same, except for the keys in but."""
    ours, theirs = (childless(ok(tool("info", "--output=json", *args, path)).json) for tool in (img, qimg))
    for key in but:
        ours.pop(key, None), theirs.pop(key, None)
    assert ours == theirs
    return ours


# ---- create ----

CREATE_OPTIONS = ["", "compat=0.10", "compat=v2", "compat=1.1", "cluster_size=512", "cluster_size=4k",
                  "cluster_size=2M", "refcount_bits=1", "refcount_bits=2", "refcount_bits=8", "refcount_bits=64",
                  "cluster_size=512,refcount_bits=64", "preallocation=metadata", "preallocation=falloc",
                  "preallocation=full", "preallocation=full,cluster_size=1k,refcount_bits=4"]


@pytest.mark.parametrize("options", CREATE_OPTIONS)
def test_create_qcow2_as_others_would(tmp_path, options):
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    o = ["-o", options] if options else []
    ok(img("create", "-q", "-f", "qcow2", *o, ours, "3M"))
    ok(qimg("create", "-q", "-f", "qcow2", *o, theirs, "3M"))
    same_info(ours)
    a, b = childless(info(ours)), childless(info(theirs))
    for key in ("filename", "actual-size"):
        a.pop(key), b.pop(key)
    assert a == b
    for check in (img, qimg):
        ok(check("check", "-q", ours))
    ok(qimg("compare", ours, theirs))
    ok(qio(ours, "read -P 0 0 3M", "write -P 5 1M 100k"))
    ok(img("check", ours))
    ok(io(ours, "read -P 5 1M 100k"))


def test_create_preallocated_maps_everything_in_place(tmp_path):
    disk = tmp_path / "disk"
    ok(img("create", "-q", "-f", "qcow2", "-o", "preallocation=full", disk, "1M"))
    assert os.stat(disk).st_blocks * 512 >= MIB
    for e in ok(img("map", "--output=json", disk)).json:
        assert "offset" in e
    before = os.stat(disk).st_size
    ok(io(disk, "write 0 1M"))
    assert os.stat(disk).st_size == before


def test_create_raw(tmp_path):
    disk = tmp_path / "disk"
    r = ok(img("create", disk, "1000"))
    assert r.out == f"Formatting '{disk}', fmt=raw size=1024\n"
    assert disk.read_bytes() == bytes(1024)
    for preallocation in ("off", "falloc", "full"):
        ok(img("create", "-q", "-o", f"preallocation={preallocation}", disk, "1M"))
        assert os.stat(disk).st_size == MIB
        assert (os.stat(disk).st_blocks * 512 >= MIB) == (preallocation != "off")


def test_create_says_what_it_made(tmp_path):
    disk = tmp_path / "disk"
    r = ok(img("create", "-f", "qcow2", "-o", "cluster_size=4k", "-o", "refcount_bits=8", disk, "1.5M"))
    assert r.out == f"Formatting '{disk}', fmt=qcow2 size=1572864 cluster_size=4k,refcount_bits=8\n"
    assert ok(img("create", "-q", "-f", "qcow2", disk, "1M")).out == ""


def test_sizes_are_powers_of_1024(tmp_path):
    for text, size in (("512", 512), ("1k", KIB), ("1K", KIB), ("2M", 2 * MIB), ("1G", 1 << 30), ("1T", 1 << 40),
                       ("1.5M", 3 * MIB // 2), ("512b", 512)):
        ok(img("create", "-q", "-f", "qcow2", tmp_path / "d", text))
        assert info(tmp_path / "d")["virtual-size"] == size
    ok(img("create", "-q", "-f", "qcow2", "-o", "size=7M", tmp_path / "d"))
    assert info(tmp_path / "d")["virtual-size"] == 7 * MIB


def test_create_over_a_backing_file_takes_its_size(tmp_path):
    ok(img("create", "-q", tmp_path / "base.raw", "3M"))
    for letter in ("-F", "-B"):
        ok(img("create", "-q", "-f", "qcow2", "-b", "base.raw", letter, "raw", tmp_path / "top.qcow2"))
        d = same_info(tmp_path / "top.qcow2")
        assert d["virtual-size"] == 3 * MIB
        assert d["backing-filename"] == "base.raw"
        assert d["full-backing-filename"] == str(tmp_path / "base.raw")
        assert d["backing-filename-format"] == "raw"
    ok(img("create", "-q", "-f", "qcow2", "-o", "backing_file=base.raw,backing_fmt=raw", tmp_path / "b", "5M"))
    assert same_info(tmp_path / "b")["virtual-size"] == 5 * MIB


@pytest.mark.parametrize("fmt", ["qcow2", "qed"])
@pytest.mark.parametrize("unsafe", [(), ("-u",)])
def test_create_needs_the_format_of_a_backing_file(tmp_path, fmt, unsafe):
    base, disk = tmp_path / "base", tmp_path / "disk"
    ok(img("create", "-q", "-f", "qcow2", base, "1M"))
    r = img("create", "-q", "-f", fmt, *unsafe, "-b", base, disk, "1M")
    assert r.rc == 1 and "format" in r.err and "-F" in r.err and r.err.count("\n") == 1, str(r)
    assert not disk.exists()


@pytest.mark.parametrize("args", [["-b", "", "-F", "raw"], ["-o", "backing_file=,backing_fmt=raw"], ["-b", ""], ["-u", "-b", "", "-F", "raw"]])
def test_create_says_that_a_backing_file_without_a_name_is_none(tmp_path, args):
    for tool in (img, qimg):
        r = tool("create", "-f", "qcow2", *args, tmp_path / "new", "1M")
        assert r.rc == 1 and r.err.count("\n") == 1 and not (tmp_path / "new").exists(), str(r)


def test_create_unsafe_does_not_look_at_the_backing_file(tmp_path):
    ok(img("create", "-q", "-u", "-f", "qcow2", "-b", "later.qcow2", "-F", "qcow2", tmp_path / "top", "1M"))
    assert info(tmp_path / "top")["backing-filename"] == "later.qcow2"


def test_create_makes_what_a_link_names(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "a").symlink_to("sub/b")
    (tmp_path / "sub" / "b").symlink_to("../target")
    refused(img("create", "-f", "qcow2", "-o", "cluster_size=3", tmp_path / "a", "1M"), "cluster_size")
    assert not (tmp_path / "target").exists()
    ok(img("create", "-f", "qcow2", tmp_path / "a", "1M"))
    assert (tmp_path / "a").is_symlink() and (tmp_path / "sub" / "b").is_symlink()
    assert (tmp_path / "target").read_bytes()[:4] == b"QFI\xfb"
    (tmp_path / "nowhere").symlink_to("missing/x")
    refused(img("create", "-f", "raw", tmp_path / "nowhere", "1M"), "cannot be created")


def test_create_over_an_existing_file_replaces_what_it_held(tmp_path):
    disk = tmp_path / "disk"
    disk.write_bytes(b"x" * 5 * MIB)
    inode = os.stat(disk).st_ino
    ok(img("create", "-q", "-f", "qcow2", disk, "1M"))
    assert os.stat(disk).st_ino == inode and os.stat(disk).st_size < MIB
    ok(qimg("check", "-q", disk))
    ok(io(disk, "read -P 0 0 1M"))
    disk.write_bytes(b"x" * 5 * MIB)
    ok(img("create", "-q", disk, "1M"))
    assert disk.read_bytes() == bytes(MIB)


# ---- info ----

def test_info_is_what_qemu_img_says(tmp_path):
    disk = tmp_path / "disk"
    for make in (["create", "-f", "raw", disk, "3M"], ["create", "-f", "qcow2", disk, "3M"],
                 ["create", "-f", "qcow2", "-o", "lazy_refcounts=on", disk, "3M"],
                 ["create", "-f", "qcow2", "-o", "compat=0.10", disk, "3M"]):
        ok(qimg(*make))
        same_info(disk)
        assert childless(ok(img("info", disk)).out) == childless(ok(qimg("info", disk)).out)


def test_info_describes_what_cannot_be_opened_for_io(tmp_path):
    disk = tmp_path / "disk"
    data = tmp_path / "data"
    for options in ("extended_l2=on", "compression_type=zstd", f"data_file={data}",
                    f"data_file={data},data_file_raw=on"):
        ok(qimg("create", "-q", "-f", "qcow2", "-o", options, disk, "3M"))
        same_info(disk)
        disk.unlink()


def test_info_lists_snapshots(tmp_path):
    disk = tmp_path / "disk"
    ok(img("create", "-q", "-f", "qcow2", disk, "3M"))
    ok(qimg("snapshot", "-c", "first", disk))
    ok(qimg("snapshot", "-c", "a name with blanks", disk))
    assert [s["name"] for s in same_info(disk)["snapshots"]] == ["first", "a name with blanks"]
    assert childless(ok(img("info", disk)).out) == childless(ok(qimg("info", disk)).out)


def test_info_of_a_chain(tmp_path):
    ok(img("create", "-q", tmp_path / "base.raw", "3M"))
    ok(img("create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", tmp_path / "mid"))
    ok(img("create", "-q", "-f", "qcow2", "-b", "mid", "-F", "qcow2", tmp_path / "top"))
    ours = same_info(tmp_path / "top", "--backing-chain")
    assert [os.path.basename(i["filename"]) for i in ours] == ["top", "mid", "base.raw"]
    assert childless(ok(img("info", "--backing-chain", tmp_path / "top")).out) == \
        childless(ok(qimg("info", "--backing-chain", tmp_path / "top")).out)
    assert childless(ok(img("info", "--backing-chain", "top", cwd=tmp_path)).out) == \
        childless(ok(qimg("info", "--backing-chain", "top", cwd=tmp_path)).out)


def test_info_opens_nothing_but_the_file(tmp_path):
    ok(img("create", "-q", "-u", "-f", "qcow2", "-b", "missing", "-F", "raw", tmp_path / "top", "1M"))
    assert info(tmp_path / "top")["backing-filename"] == "missing"
    r = img("info", "--backing-chain", tmp_path / "top")
    assert r.rc == 1 and "missing" in r.err


def test_info_takes_little_memory_and_time(tmp_path):
    disk = tmp_path / "disk"
    ok(img("create", "-q", "-f", "qcow2", disk, "64T"))

    def limits():
        resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
        resource.setrlimit(resource.RLIMIT_CPU, (2, 2))

    if sanitized():
        pytest.skip("the sanitizers' shadow memory is larger than the limit")
    p = subprocess.run([varve_path(), "img", "info", "-f", "qcow2", "--output=json", str(disk)],
                       preexec_fn=limits, capture_output=True, timeout=240, check=False)
    assert (p.returncode, p.stderr) == (0, b"")


def test_names_that_are_no_text_do_not_break_the_output(tmp_path):
    name = os.fsencode(tmp_path) + b"/\xff\xfe\x1b[31m.qcow2"
    ok(img("create", "-q", "-f", "qcow2", os.fsdecode(name), "1M"))
    assert "\ufffd\ufffd" in info(os.fsdecode(name))["filename"]
    assert "\x1b" not in ok(img("info", os.fsdecode(name))).out


# ---- check ----

def corrupt(disk, offset, data):
    with open(disk, "r+b") as f:
        f.seek(offset)
        f.write(data)


@pytest.fixture
def disk(tmp_path):
    path = tmp_path / "disk.qcow2"
    ok(img("create", "-q", "-f", "qcow2", path, "8M"))
    ok(io(path, "write 0 1M", "write 3M 64k"))
    return path


def test_check_of_a_clean_image(disk):
    r = ok(img("check", disk))
    assert r.out == ok(qimg("check", disk)).out
    assert ok(img("check", "--output=json", disk)).json == ok(qimg("check", "--output=json", disk)).json
    assert ok(img("check", "-q", disk)).out == ""


def test_check_finds_leaks(disk):
    cluster = os.stat(disk).st_size // 65536
    os.truncate(disk, (cluster + 1) * 65536)
    corrupt(disk, 2 * 65536 + 2 * cluster, b"\0\1")
    ours, theirs = img("check", disk), qimg("check", disk)
    assert (ours.rc, theirs.rc) == (3, 3)
    assert "1 leaked clusters" in ours.out and hex(cluster * 65536) in ours.err
    assert img("check", "--output=json", disk).json["leaks"] == 1


def test_check_dry_run_lists_and_changes_nothing(disk):
    cluster = os.stat(disk).st_size // 65536
    os.truncate(disk, (cluster + 1) * 65536)
    corrupt(disk, 2 * 65536 + 2 * cluster, b"\0\1")
    before = disk.read_bytes()
    r = img("check", "-r", "all", "--dry-run", disk)
    assert r.rc == 3 and "To be repaired:\n\n    1 leaked clusters\n    0 corruptions" in r.out, str(r)
    assert hex(cluster * 65536) in r.err
    assert img("check", "-r", "leaks", "--dry-run", "--output=json", disk).json["leaks"] == 1
    assert disk.read_bytes() == before
    corrupt(disk, 2 * 65536 + 2 * 5, b"\0\0")
    r = img("check", "-r", "leaks", "--dry-run", disk)
    assert r.rc == 2 and "-r leaks would repair nothing" in r.out, str(r)
    refused(img("check", "--dry-run", disk), "-r")


def test_check_finds_corruptions(disk):
    corrupt(disk, 2 * 65536 + 2 * 5, b"\0\0")
    ours, theirs = img("check", disk), qimg("check", disk)
    assert (ours.rc, theirs.rc) == (2, 2)
    j = img("check", "--output=json", disk).json
    assert j["corruptions"] == qimg("check", "--output=json", disk).json["corruptions"] > 0


def test_check_of_raw_is_unsupported(tmp_path):
    ok(img("create", "-q", tmp_path / "r", "1M"))
    for args in ([], ["--output=json"]):
        r = img("check", "-f", "raw", *args, tmp_path / "r")
        assert r.rc == qimg("check", "-f", "raw", *args, tmp_path / "r").rc == 63


def test_check_changes_nothing(disk):
    before = disk.read_bytes()
    img("check", disk)
    assert disk.read_bytes() == before


# ---- map ----

def extents(tool, path, *args):
    """Without the keys that the peer's version lacks."""
    keys = ("start", "length", "depth", "present", "zero", "data", "offset")
    return [{k: e[k] for k in keys if k in e} for e in ok(tool("map", "--output=json", *args, path)).json]


def test_map_is_what_qemu_img_says(disk):
    ok(io(disk, "write -z 5M 128k", "write -P 1 5M 64k", "discard 64k 64k"))
    assert extents(img, disk) == extents(qimg, disk)
    assert extents(img, disk, "-s", "100k", "-l", "4M") == extents(qimg, disk, "-s", "100k", "-l", "4M")
    assert ok(img("map", disk)).out == ok(qimg("map", disk)).out


def test_map_of_a_chain_says_how_deep(tmp_path):
    paths = [tmp_path / n for n in ("a", "b", "c")]
    ok(img("create", "-q", "-f", "qcow2", paths[0], "1M"))
    ok(img("create", "-q", "-f", "qcow2", "-b", "a", "-F", "qcow2", paths[1], "2M"))
    ok(img("create", "-q", "-f", "qcow2", "-b", "b", "-F", "qcow2", paths[2], "3M"))
    for n, p in enumerate(paths):
        ok(io(p, f"write {n * 128}k 64k", f"write -z {n * 128 + 512}k 64k"))
    assert extents(img, paths[2]) == extents(qimg, paths[2])
    assert ok(img("map", paths[2])).out == ok(qimg("map", paths[2])).out
    assert {e["depth"] for e in extents(img, paths[2]) if e["data"]} == {0, 1, 2}


def test_map_covers_the_image_without_gaps(disk):
    at = 0
    for e in extents(img, disk):
        assert e["start"] == at and e["length"] > 0
        at += e["length"]
    assert at == 8 * MIB


@pytest.mark.parametrize("output", ["json", "human"])
def test_map_at_the_edges(disk, output):
    """What is behind the end, or nothing, is one stretch of no length; numbers beyond 8E are refused."""
    numbers = [None, "0", "1", "100k", "8388607", "8M", "8388609", "1T", "9223372036854775807", "9223372036854775808", "16E", "-1", "x"]
    for start in numbers:
        for length in ("0", "8388609", "9223372036854775808") if start else numbers:
            args = [a for pair in (("-s", start), ("-l", length)) if pair[1] for a in pair]
            ours, theirs = (tool("map", f"--output={output}", *args, disk) for tool in (img, qimg))
            assert ours.rc == theirs.rc, f"{ours}\n{theirs}"
            assert ours.out.replace(', "compressed": false', "") == theirs.out, f"{ours}\n{theirs}"
            assert ours.err.count("\n") == ours.rc, str(ours)


def test_map_of_nothing(tmp_path):
    for fmt in ("raw", "qcow2"):
        ok(img("create", "-q", "-f", fmt, tmp_path / fmt, "0"))
        assert extents(img, tmp_path / fmt) == extents(qimg, tmp_path / fmt) == [
            {"start": 0, "length": 0, "depth": 0, "present": False, "zero": False, "data": False}]


# ---- compare ----

def test_compare(tmp_path, disk):
    other = tmp_path / "other.raw"
    ok(qimg("convert", "-O", "raw", disk, other))
    assert ok(img("compare", disk, other)).out == "Images are identical.\n"
    ok(qio(other, "write -P 1 2000k 1", options=("-f", "raw")))
    for args in ([], ["-f", "qcow2", "-F", "raw"]):
        r = img("compare", *args, disk, other)
        assert (r.rc, r.out) == (1, qimg("compare", *args, disk, other).out)
        assert r.out == "Content mismatch at offset 2048000!\n"
    assert img("compare", "-q", disk, other).out == ""


def test_compare_of_different_sizes(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    ok(img("create", "-q", "-f", "qcow2", a, "1M"))
    ok(img("create", "-q", "-f", "qcow2", b, "2M"))
    r = ok(img("compare", a, b))
    assert "Image size mismatch" in r.out and "identical" in r.out
    assert img("compare", "-s", a, b).rc == qimg("compare", "-s", a, b).rc == 1
    ok(io(b, "write -P 1 1536k 512"))
    r = img("compare", a, b)
    assert (r.rc, r.out.splitlines()[-1]) == (1, "Content mismatch at offset 1572864!")
    assert img("compare", b, a).rc == 1
    for names in ((a, b), (b, a)):
        assert img("compare", *names).out == qimg("compare", *names).out
    ok(io(b, "write -P 1 64k 512"))  # found before the end of the shorter one is reached: that is all that is said
    assert img("compare", a, b).out == qimg("compare", a, b).out == "Content mismatch at offset 65536!\n"


@pytest.mark.parametrize("args", [["create", "-f", "raw", "new", " 1M"], ["create", "-f", "raw", "new", "+1M"],
                                  ["resize", "-f", "raw", "f", " 3M"], ["resize", "-f", "raw", "f", "++1M"], ["map", "-f", "raw", "-s", "+1M", "f"],
                                  ["map", "-f", "raw", "-s", " 64k", "-l", "\t1M", "f"], ["convert", "-m", " 2", "-S", " +4k", "f", "new"],
                                  ["dd", "bs= 512", "count=+3", "if=f", "of=new"], ["measure", "--size", " 1M", "-O", "raw"]])
def test_numbers_have_spaces_and_a_plus_before_them(tmp_path, args):
    """As callers write them that put a list of words together."""
    lengths = []
    for tool in (img, qimg):
        with open(tmp_path / "f", "wb") as f:
            f.truncate(2 * MIB)
        r = tool(*args, cwd=tmp_path)
        assert r.rc == 0 and "no size" not in r.err, str(r)
        lengths.append({p.name: p.stat().st_size for p in tmp_path.iterdir()})
    assert lengths[0] == lengths[1]


@pytest.mark.parametrize("size", [" +1M", " -1M", "+-1M", "1M ", "+", " ", "1 M"])
def test_what_may_mean_another_length_is_none(tmp_path, size):
    (tmp_path / "f").write_bytes(b"\1" * 2 * MIB)
    refused(img("resize", "-f", "raw", "--shrink", "f", size, cwd=tmp_path), "no size")
    assert (tmp_path / "f").read_bytes() == b"\1" * 2 * MIB


def test_compare_strictly_looks_at_allocation(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    for path in (a, b):
        ok(img("create", "-q", "-f", "qcow2", path, "1M"))
    ok(io(a, "write -P 0 0 64k"))
    assert img("compare", a, b).rc == 0
    assert img("compare", "-s", a, b).rc == qimg("compare", "-s", a, b).rc == 1


def test_compare_exit_status_2_when_not_opened(tmp_path, disk):
    r = img("compare", disk, tmp_path / "none")
    assert r.rc == 2 and "none" in r.err


def test_compare_shows_progress(disk):
    out = ok(img("compare", "-p", disk, disk)).out
    assert re.match(r"    \(\d+\.\d\d/100%\)\r", out) and "(100.00/100%)" in out, repr(out)


def test_strict_compare_tells_kinds_apart(tmp_path):
    """Nothing, a zero cluster, zeroes as data, packed, preallocated, and what is read from below: the same exit status for all pairs."""
    kinds = {"nothing": [], "zero": ["write -q -z 0 64k"], "data": ["write -q -P 0 0 64k"], "packed": ["write -q -c -P 0 0 64k"],
             "bytes": ["write -q -P 1 0 64k"], "two": ["write -q -P 0 0 64k", "write -q -P 0 64k 64k"]}
    for name, commands in kinds.items():
        ok(qimg("create", "-q", "-f", "qcow2", tmp_path / name, "192k"))
        ok(qio(tmp_path / name, *commands))
    ok(qimg("create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", tmp_path / "reserved", "192k"))
    ok(qimg("create", "-q", "-f", "qcow2", "-b", "data", "-F", "qcow2", tmp_path / "over"))
    names, results = [*kinds, "reserved", "over"], []
    for one in names:
        for other in names:
            a, b = (tool("compare", "-s", one, other, cwd=tmp_path) for tool in (img, qimg))
            assert a.rc == b.rc and a.err == b.err == "", f"{a}\n{b}"
            results.append(a.rc)
    assert results.count(0) == len(names) + 2  # with itself, and what an overlay shows
