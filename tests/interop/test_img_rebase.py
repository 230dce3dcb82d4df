# SPDX-License-Identifier: MIT
"""test_img_rebase - varve img rebase: the image reads what it read before, and names the new backing file"""

import os
import random

import pytest

from chains import chain, image, twin
from seeds import seed
from tool import MIB, img, info, ok, qimg, qio, refused


@pytest.fixture
def rng():
    return random.Random(seed())


def content(path, fmt, to):
    ok(qimg("convert", "-f", fmt, "-O", "raw", path, to))
    return to.read_bytes()


def clean(path):
    ok(qimg("check", "-q", path))
    ok(img("check", "-q", path))


def test_safe(tmp_path, rng):
    for turn in range(int(os.environ.get("VARVE_SEEDS", 8))):
        ours = tmp_path / f"ours{turn}"
        ours.mkdir()
        images = chain(rng, ours, ["a", "b", "top"][rng.randrange(2):])
        other = ("other", image(rng, ours / "other", 4 * MIB + rng.choice([0, -MIB, 4096, -512]), None, ("raw", "qcow2"), 90))
        theirs = twin(ours, tmp_path / f"theirs{turn}")
        before = content(ours / "top", "qcow2", tmp_path / "before")
        to = rng.choice([other, other, images[0], ("", None)])
        args = ["rebase", "-b", to[0], *(["-F", to[1]] if to[1] else []), "-f", "qcow2", "top"]
        assert ok(img(*args, cwd=ours)).out == ok(qimg(*args, cwd=theirs)).out == ""
        assert content(ours / "top", "qcow2", tmp_path / "after") == before
        ours_info, theirs_info = info(ours / "top"), info(theirs / "top")
        for key in ("backing-filename", "backing-filename-format"):
            assert ours_info.get(key) == theirs_info.get(key) == (to[key.endswith("format")] or None)
        clean(ours / "top")
        ok(qimg("check", "-q", ours / "top"))
        # Later writes meet what the new chain has.
        ok(qio(ours / "top", "write -P 77 100000 1000"))
        clean(ours / "top")


@pytest.mark.parametrize("fmt", ["qcow2", "qed"])
def test_an_image_without_a_backing_file_keeps_its_zeroes(tmp_path, fmt):
    ok(qimg("create", "-q", "-f", "raw", tmp_path / "new", "3M"))
    ok(qio(tmp_path / "new", "write -P 5 0 1M", options=("-f", "raw")))
    top = tmp_path / "top"
    ok(qimg("create", "-q", "-f", fmt, top, "2M"))
    ok(qio(top, "write -P 6 64k 64k", options=("-f", fmt)))
    ok(img("rebase", "-f", fmt, "-b", "new", "-F", "raw", top))
    ok(qio(top, "read -P 0 0 64k", "read -P 6 64k 64k", "read -P 0 128k 1920k", options=("-f", fmt)))
    ok(qimg("check", "-q", "-f", fmt, top))


def test_safe_copies_only_what_differs(tmp_path):
    for name in ("old", "new"):
        ok(qimg("create", "-q", "-f", "raw", tmp_path / name, "64M"))
        ok(qio(tmp_path / name, "write -P 5 0 64M", options=("-f", "raw")))
    ok(qio(tmp_path / "new", "write -P 6 10M 64k", options=("-f", "raw")))
    top = tmp_path / "top"
    ok(qimg("create", "-q", "-f", "qcow2", "-b", "old", "-F", "raw", top))
    ok(img("rebase", "-b", "new", "-F", "raw", top))
    assert [(e["start"], e["length"]) for e in ok(img("map", "--output=json", top)).json if e["depth"] == 0] == \
        [(10 * MIB, 65536)]
    ok(qio(top, "read -P 5 0 64M"))


def test_onto_an_image_of_the_same_chain_copies_what_lay_between(tmp_path):
    ok(qimg("create", "-q", "-f", "raw", tmp_path / "base", "16M"))
    ok(qio(tmp_path / "base", "write -P 1 0 16M", options=("-f", "raw")))
    ok(qimg("create", "-q", "-f", "qcow2", "-b", "base", "-F", "raw", tmp_path / "mid"))
    ok(qio(tmp_path / "mid", "write -P 2 1M 1M", "write -z 4M 1M"))
    ok(qimg("create", "-q", "-f", "qcow2", "-b", "mid", "-F", "qcow2", tmp_path / "top"))
    ok(img("rebase", "-p", "-b", "base", "-F", "raw", tmp_path / "top"))
    assert sum(e["length"] for e in ok(img("map", "--output=json", tmp_path / "top")).json if e["depth"] == 0) == 2 * MIB
    ok(qio(tmp_path / "top", "read -P 1 0 1M", "read -P 2 1M 1M", "read -P 0 4M 1M", "read -P 1 5M 11M"))


@pytest.mark.parametrize("create", ["cluster_size=64k", "cluster_size=512", "compat=0.10", "compat=0.10,cluster_size=512",
                                    "lazy_refcounts=on,refcount_bits=1"])
@pytest.mark.parametrize("maker", [img, qimg])
def test_unsafe_changes_the_header_only(tmp_path, create, maker):
    """Names that are longer and shorter, with other formats, and none: again and again on one image."""
    top = tmp_path / "top"
    ok(maker("create", "-q", "-f", "qcow2", "-o", create, top, "4M"))
    ok(qio(top, "write -P 3 0 100k"))
    longest = 300 if "512" in create else 1023
    for name, fmt in (("one", "raw"), ("x" * longest, "qcow2"), ("two", "raw"), ("", None), ("y" * 200, "qed"), ("z", "qcow2"),
                      ("json-like,name=1", "raw"), ("", None)):
        # In clusters of 512 bytes, the header's own sector is all the room there is.
        ok(img("rebase", "-u", "-b", name, *(["-F", fmt] if fmt else []), top))
        d = ok(qimg("info", "-U", "--output=json", top)).json
        assert (d.get("backing-filename"), d.get("backing-filename-format")) == (name or None, fmt)
        ok(img("check", "-q", top))
        assert info(top)["format-specific"] == d["format-specific"]
    ok(qio(top, "read -P 3 0 100k", "write -P 4 1M 100k"))
    clean(top)
    if "512" in create:
        before = top.read_bytes()
        refused(img("rebase", "-u", "-b", "n" * 600, "-F", "raw", top), "no room", "first cluster")
        assert top.read_bytes() == before
    refused(img("rebase", "-u", "-b", "n" * 1024, "-F", "raw", top), "1024", "1023")


def test_unknown_extensions_stay(tmp_path):
    top = tmp_path / "top"
    ok(img("create", "-q", "-f", "qcow2", top, "1M"))
    data = bytearray(top.read_bytes())
    # Behind the extensions that are there: one that nobody knows.
    pos = 112
    while int.from_bytes(data[pos:pos + 4], "big"):
        pos += 8 + (int.from_bytes(data[pos + 4:pos + 8], "big") + 7) // 8 * 8
    data[pos:pos + 24] = b"\x12\x34\x56\x78\0\0\0\x0bhello world\0\0\0\0\0"
    top.write_bytes(data)
    ok(qimg("check", "-q", top))
    for name in ("base", "b" * 600, ""):
        ok(img("rebase", "-u", "-b", name, *(["-F", "raw"] if name else []), top))
        assert b"\x12\x34\x56\x78\0\0\0\x0bhello world" in top.read_bytes()[:512]
        ok(img("check", "-q", top))
    ok(qimg("check", "-q", top))


def test_qed(tmp_path):
    for name, byte in (("old", 5), ("new", 6)):
        ok(qimg("create", "-q", "-f", "raw", tmp_path / name, "4M"))
        ok(qio(tmp_path / name, f"write -P {byte} 0 4M", options=("-f", "raw")))
    top = tmp_path / "top.qed"
    ok(qimg("create", "-q", "-f", "qed", "-b", "old", "-F", "raw", top))
    ok(qio(top, "write -P 7 1M 1M", options=("-f", "qed")))
    ok(img("rebase", "-b", "new", "-F", "raw", top))
    ok(qio(top, "read -P 5 0 1M", "read -P 7 1M 1M", "read -P 5 2M 2M", options=("-f", "qed")))
    clean(top)


def snapshot_content(path, name, to):
    ok(qimg("convert", "-l", f"snapshot.name={name}", "-O", "raw", path, to))
    return to.read_bytes()


def test_snapshots_keep_what_they_read(tmp_path):
    """It is done when they do; otherwise it is refused and nothing is changed."""
    ok(qimg("create", "-q", "-f", "raw", tmp_path / "base", "4M"))
    ok(qio(tmp_path / "base", "write -P 5 0 2M", options=("-f", "raw")))
    ok(qimg("create", "-q", "-f", "qcow2", "-b", "base", "-F", "raw", tmp_path / "mid"))
    ok(qio(tmp_path / "mid", "write -P 6 1M 1M"))
    top = tmp_path / "top"
    ok(qimg("create", "-q", "-f", "qcow2", "-b", "mid", "-F", "qcow2", top))
    ok(qio(top, "write -P 7 0 64k"))
    ok(qimg("snapshot", "-c", "first", top))
    ok(qio(top, "write -P 8 1M 1M"))  # the disk has all that mid has, the snapshot has not
    before, was = top.read_bytes(), snapshot_content(top, "first", tmp_path / "was")
    for to in (["-b", "base", "-F", "raw"], ["-b", ""]):
        refused(img("rebase", *to, top), top, "first", "65536" if not to[1] else str(MIB), "-u")
        assert top.read_bytes() == before
    ok(qimg("create", "-q", "-f", "qcow2", "-b", "mid", "-F", "qcow2", tmp_path / "same"))
    ok(qimg("convert", "-O", "raw", tmp_path / "mid", tmp_path / "copy"))
    for to in (["-b", "same", "-F", "qcow2"], ["-b", "copy", "-F", "raw"], ["-b", "mid", "-F", "qcow2"]):
        ok(img("rebase", *to, top))
        assert snapshot_content(top, "first", tmp_path / "is") == was
        clean(top)
    # The snapshot holds all of it: nothing is read from below.
    ok(qio(tmp_path / "mid", "write -P 9 3M 1M"))
    ok(qimg("snapshot", "-d", "first", top))
    ok(qio(top, "write -P 1 0 4M"))
    ok(qimg("snapshot", "-c", "all", top))
    ok(qio(top, "write -P 2 1M 1M"))
    was = snapshot_content(top, "all", tmp_path / "was")
    ok(img("rebase", "-b", "base", "-F", "raw", top))
    ok(img("rebase", "-b", "", top))
    assert snapshot_content(top, "all", tmp_path / "is") == was and "backing-filename" not in info(top)
    ok(img("rebase", "-u", "-b", "mid", "-F", "qcow2", top))
    ok(qio(top, "read -P 1 0 1M", "read -P 2 1M 1M"))
    clean(top)


def test_unsafe_asks_no_snapshot(tmp_path):
    ok(qimg("create", "-q", "-f", "raw", tmp_path / "base", "4M"))
    ok(qio(tmp_path / "base", "write -P 5 0 2M", options=("-f", "raw")))
    ok(qimg("create", "-q", "-f", "qcow2", "-b", "base", "-F", "raw", tmp_path / "top"))
    ok(qimg("snapshot", "-c", "first", tmp_path / "top"))
    for tool in (img, qimg):
        ok(tool("rebase", "-u", "-b", "", tmp_path / "top"))
        assert "backing-filename" not in info(tmp_path / "top")
        ok(tool("rebase", "-u", "-b", "base", "-F", "raw", tmp_path / "top"))


@pytest.mark.parametrize("args", [["-b", "", "-F", "raw"], ["-u", "-b", "", "-F", "qcow2"], ["-u"], ["-u", "-F", "raw"]])
def test_no_backing_file_in_other_words(tmp_path, args):
    """Scripts give a format whether or not there is a file; -u alone takes the name away, with both tools."""
    ok(qimg("create", "-q", "-f", "raw", tmp_path / "base", "1M"))
    for name, tool in (("ours", img), ("theirs", qimg)):
        ok(qimg("create", "-q", "-f", "qcow2", "-b", "base", "-F", "raw", tmp_path / name))
        ok(tool("rebase", *args, tmp_path / name))
        told = info(tmp_path / name)
        assert "backing-filename" not in told and "backing-filename-format" not in told


def test_what_is_copied_can_be_compressed(tmp_path):
    ok(qimg("create", "-q", "-f", "raw", tmp_path / "base", str(4 * MIB + 512)))
    ok(qio(tmp_path / "base", "write -P 5 0 3M", "write -P 6 4M 512", options=("-f", "raw")))
    top = tmp_path / "top"
    ok(qimg("create", "-q", "-f", "qcow2", "-b", "base", "-F", "raw", top))
    before = content(top, "qcow2", tmp_path / "before")
    ok(img("rebase", "-c", "-b", "", top))
    assert content(top, "qcow2", tmp_path / "after") == before
    own = [e for e in ok(img("map", "--output=json", top)).json if e["data"]]
    assert own and all(e["compressed"] for e in own if e["length"] >= 65536), own
    assert os.path.getsize(top) < MIB
    clean(top)
    raw = tmp_path / "qed"
    ok(qimg("create", "-q", "-f", "qed", "-b", "base", "-F", "raw", raw))
    refused(img("rebase", "-c", "-b", "", raw))


def test_progress(tmp_path):
    ok(qimg("create", "-q", "-f", "raw", tmp_path / "base", "4M"))
    ok(qimg("create", "-q", "-f", "qcow2", "-b", "base", "-F", "raw", tmp_path / "top"))
    out = ok(img("rebase", "-p", "-b", "", tmp_path / "top")).out
    assert out.endswith("(100.00/100%)\r\n") or out.endswith("(100.00/100%)\r    (100.00/100%)\r\n"), repr(out)
    ok(qimg("rebase", "-u", "-b", "base", "-F", "raw", tmp_path / "top"))
    out = ok(img("rebase", "--progress=json", "-b", "", tmp_path / "top")).out
    assert out.splitlines()[-1] == '{"progress": 100.00}', out


def test_what_is_wrong_changes_nothing(tmp_path):
    ok(qimg("create", "-q", "-f", "raw", tmp_path / "base", "1M"))
    top = tmp_path / "top"
    ok(qimg("create", "-q", "-f", "qcow2", "-b", "base", "-F", "raw", top))
    ok(qimg("create", "-q", "-f", "qcow2", "-b", "top", "-F", "qcow2", tmp_path / "over"))
    before = top.read_bytes()
    for words, args in ((["-b"], []), (["-F"], ["-b", "base"]), (["what"], ["-b", "base", "-F", "what"]),
                        (["what"], ["-u", "-b", "base", "-F", "what"]), (["none"], ["-b", "none", "-F", "raw"]),
                        (["reads from it"], ["-b", "top", "-F", "qcow2"]), (["over", "reads from it"], ["-b", "over", "-F", "qcow2"]),
                        (["over", "reads from it"], ["-U", "-b", "over", "-F", "qcow2"]), (["-c", "-u"], ["-c", "-u", "-b", "base", "-F", "raw"]),
                        (["cache"], ["-t", "fast", "-b", "base", "-F", "raw"])):
        refused(img("rebase", *args, top), *words)
        assert top.read_bytes() == before
    refused(img("rebase", "-u", "-b", "top", "-F", "qcow2", "-f", "raw", tmp_path / "base"), "raw")
    refused(img("rebase", "-b", "base", "-F", "raw", top, top), "one file name")
    (tmp_path / "base").unlink()
    refused(img("rebase", "-b", "", top), "base")
    ok(img("rebase", "-u", "-b", "", top))
