# SPDX-License-Identifier: MIT
"""test_img_commit - varve img commit: what the top read, the base reads"""

import os
import random
import time

import pytest

from chains import chain, twin
from tool import MIB, img, info, io, ok, qimg, qio, refused
from test_bad_input import held
from test_img_rebase import clean, content, rng  # pylint: disable=unused-import


def test_random_chains(tmp_path, rng):
    for turn in range(int(os.environ.get("VARVE_SEEDS", 8))):
        ours = tmp_path / f"ours{turn}"
        ours.mkdir()
        images = chain(rng, ours, ["base", "a", "b", "top"][-rng.randrange(2, 5):], same_size=rng.random() < 0.5)
        theirs = twin(ours, tmp_path / f"theirs{turn}")
        before = content(ours / "top", "qcow2", tmp_path / "before")
        deep = rng.random() < 0.5
        base, fmt = rng.choice(images[:-1]) if deep else images[-2]
        args = ["commit", *(["-b", base] if deep else rng.choice([[], ["-d"]])), "-f", "qcow2", "top"]
        a, b = img(*args, cwd=ours), qimg(*args, cwd=theirs)
        assert (a.rc, a.out) == (b.rc, b.out), f"{a}\n{b}"
        after = content(ours / base, fmt, tmp_path / "after")
        assert after[:len(before)] == before
        assert info(ours / base, fmt)["virtual-size"] == info(theirs / base, fmt)["virtual-size"]
        if not deep:
            assert content(ours / "top", "qcow2", tmp_path / "after") == before
        emptied = not deep and "-d" not in args
        own = [e for e in ok(img("map", "--output=json", ours / "top")).json if e["depth"] == 0 and e["present"]]
        assert not (emptied and own), own
        for name, f in images:
            if f == "qcow2":
                clean(ours / name)


def test_an_emptied_image_gives_its_space_back(tmp_path):
    ok(qimg("create", "-q", "-f", "raw", tmp_path / "base", "32M"))
    ok(qimg("create", "-q", "-f", "qcow2", "-b", "base", "-F", "raw", tmp_path / "top"))
    ok(io(tmp_path / "top", "write -P 3 0 32M"))
    full = os.stat(tmp_path / "top").st_blocks
    assert ok(img("commit", tmp_path / "top")).out == "Image committed.\n"
    assert os.stat(tmp_path / "top").st_blocks < full // 8
    ok(qio(tmp_path / "top", "read -P 3 0 32M"))
    ok(qio(tmp_path / "base", "read -P 3 0 32M", options=("-f", "raw")))
    ok(qio(tmp_path / "top", "write -P 4 1M 1M"))
    assert ok(img("commit", "-q", "-p", tmp_path / "top")).out == ""
    ok(qio(tmp_path / "base", "read -P 3 0 1M", "read -P 4 1M 1M", options=("-f", "raw")))


def test_snapshots_of_the_top_keep_what_they_have(tmp_path):
    ok(qimg("create", "-q", "-f", "raw", tmp_path / "base", "4M"))
    top = tmp_path / "top"
    ok(qimg("create", "-q", "-f", "qcow2", "-b", "base", "-F", "raw", top))
    ok(qio(top, "write -P 3 0 1M"))
    ok(qimg("snapshot", "-c", "one", top))
    ok(qio(top, "write -P 4 512k 512k"))
    ok(img("commit", "-q", top))
    clean(top)
    ok(qio(top, "read -P 3 0 512k", "read -P 4 512k 512k"))
    ok(qimg("snapshot", "-a", "one", top))
    ok(qio(top, "read -P 3 0 1M"))


def test_what_snapshots_read_from_the_base_is_not_changed_under_them(tmp_path):
    base, top = tmp_path / "base", tmp_path / "top"
    ok(qimg("create", "-q", "-f", "raw", base, "4M"))
    ok(qimg("create", "-q", "-f", "qcow2", "-b", "base", "-F", "raw", top, "5M"))
    ok(qio(top, "write -P 3 0 1M"))
    ok(qimg("snapshot", "-c", "one", top))
    ok(qio(top, "write -P 4 512k 513k"))
    before = base.read_bytes(), top.read_bytes()
    refused(img("commit", top), top, "'one'", MIB, "-d")
    assert (base.read_bytes(), top.read_bytes()) == before
    ok(qio(top, "write -P 0 1M 1M", "write -P 5 4M 64k"))
    refused(img("commit", top), top, "'one'", 4 * MIB)  # where the base ends
    ok(qio(top, "write -z 4M 64k"))
    ok(img("commit", "-q", top))  # what is committed there is what the snapshot read
    ok(qimg("snapshot", "-a", "one", top))
    ok(qio(top, "read -P 3 0 1M", "read -P 0 1M 4M"))
    clean(top)
    ok(qio(top, "write -P 4 2M 1M"))
    ok(img("commit", "-q", "-d", top))
    ok(qio(base, "read -P 4 2M 1M", options=("-f", "raw")))


def test_the_middle_of_a_chain_takes_it_and_the_bottom_stays(tmp_path):
    ok(qimg("create", "-q", "-f", "raw", tmp_path / "bottom", "4M"))
    ok(qio(tmp_path / "bottom", "write -P 1 0 4M", options=("-f", "raw")))
    for name, below, fmt in (("mid", "bottom", "raw"), ("high", "mid", "qcow2"), ("top", "high", "qcow2")):
        ok(qimg("create", "-q", "-f", "qcow2", "-b", below, "-F", fmt, tmp_path / name))
    ok(qio(tmp_path / "high", "write -P 2 1M 1M"))
    ok(qio(tmp_path / "top", "write -P 3 1536k 1M", "write -z 3M 64k"))
    before = (tmp_path / "bottom").read_bytes()
    ok(img("commit", "-b", tmp_path / "mid", tmp_path / "top"))
    assert (tmp_path / "bottom").read_bytes() == before
    for name in ("mid", "top"):
        ok(qio(tmp_path / name, "read -P 1 0 1M", "read -P 2 1M 512k", "read -P 3 1536k 1M", "read -P 1 2560k 512k",
               "read -P 0 3M 64k"))
        clean(tmp_path / name)


def test_rate_limit_and_progress(tmp_path):
    ok(qimg("create", "-q", "-f", "raw", tmp_path / "base", "32M"))
    ok(qimg("create", "-q", "-f", "qcow2", "-b", "base", "-F", "raw", tmp_path / "top"))
    ok(qio(tmp_path / "top", "write -P 3 0 32M"))
    begin = time.monotonic()
    out = ok(img("commit", "-d", "-p", "-r", "64M", tmp_path / "top")).out
    assert time.monotonic() - begin >= 0.35
    assert "(100.00/100%)\r\nImage committed.\n" in out


def test_what_is_wrong_changes_nothing(tmp_path):
    ok(qimg("create", "-q", "-f", "raw", tmp_path / "base", "1M"))
    top = tmp_path / "top"
    ok(qimg("create", "-q", "-f", "qcow2", "-b", "base", "-F", "raw", top))
    ok(qio(top, "write -P 3 0 1M"))
    alone = tmp_path / "alone"
    ok(qimg("create", "-q", "-f", "qcow2", alone, "1M"))
    before = top.read_bytes(), (tmp_path / "base").read_bytes()
    for words, args in ((["other"], ["-b", "other", top]), (["top"], ["-b", top, top]), (["rate"], ["-r", "fast", top]),
                        (["no backing file"], [alone]), (["one file name"], []), (["one file name"], [top, alone]),
                        (["cache"], ["-t", "x", top]), (["unknown option"], ["-z", top])):
        refused(img("commit", *args), *words)
        assert (top.read_bytes(), (tmp_path / "base").read_bytes()) == before
    qed = tmp_path / "qed"
    ok(qimg("create", "-q", "-f", "qed", "-b", "base", "-F", "raw", qed))
    ok(qio(qed, "write -P 4 0 64k", options=("-f", "qed")))
    refused(img("commit", qed), "QED", "-d")
    assert (tmp_path / "base").read_bytes() == before[1]
    ok(img("commit", "-d", qed))
    ok(qio(tmp_path / "base", "read -P 4 0 64k", options=("-f", "raw")))


def test_a_base_in_use_is_refused(tmp_path):
    ok(qimg("create", "-q", "-f", "raw", tmp_path / "base", "1M"))
    ok(qimg("create", "-q", "-f", "qcow2", "-b", "base", "-F", "raw", tmp_path / "top"))
    with held("qemu-io", "-f", "qcow2", tmp_path / "top"):
        refused(img("commit", tmp_path / "top"), "lock")


def test_what_no_layer_has_is_passed_over_at_once(tmp_path):
    """Looked at in the pieces that are copied, nothing of this length would take minutes."""
    base, top = tmp_path / "base.qcow2", tmp_path / "top.qcow2"
    ok(img("create", "-q", "-f", "qcow2", "-o", "cluster_size=2M", base, "4P"))
    ok(img("create", "-q", "-f", "qcow2", "-o", "cluster_size=2M", "-b", base, "-F", "qcow2", top))
    ok(io(top, "write -q -P 7 3P 64k", "write -q -P 8 20M 64k"))
    ok(img("commit", "-q", top))
    ok(io(base, "read -q -P 7 3P 64k", "read -q -P 8 20M 64k"))
    assert len(ok(img("map", "--output=json", base)).json) == 5
