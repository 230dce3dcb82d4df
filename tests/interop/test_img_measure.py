# SPDX-License-Identifier: MIT
"""test_img_measure - varve img measure says what qemu-img measure says, and what images become"""

import os
import random

import pytest

from chains import chain
from tool import GIB, KIB, MIB, img, info, io, ok, qimg, qio, refused
from test_img_rebase import rng  # pylint: disable=unused-import


def same(*args, cwd=None):
    for output in ("json", "human"):
        a, b = img("measure", f"--output={output}", *args, cwd=cwd), qimg("measure", f"--output={output}", *args, cwd=cwd)
        assert a.rc == b.rc, f"{a}\n{b}"
        if a.rc == 0:
            assert (a.json == b.json) if output == "json" else (a.out == b.out), f"{a}\n{b}"
            assert a.err == "", str(a)
        else:
            refused(a)
    return a


@pytest.mark.parametrize("size", ["0", "512", "1000", "1M", "1G", "10G", "1T", "63T", "7E"])
def test_of_a_size(size):
    same("--size", size, "-O", "raw")
    same("--size", size)
    if size == "0":  # ours has an L1 table all the same
        return
    for options in ("cluster_size=64k", "cluster_size=512", "cluster_size=2M", "refcount_bits=1", "refcount_bits=64,cluster_size=4k",
                    "compat=0.10", "preallocation=metadata", "preallocation=full", "preallocation=falloc",
                    "extended_l2=on", "extended_l2=on,cluster_size=128k", "lazy_refcounts=on,cluster_size=1M",
                    "backing_file=x,backing_fmt=raw"):
        same("--size", size, "-O", "qcow2", "-o", options)


def test_of_random_chains(tmp_path, rng):
    for turn in range(int(os.environ.get("VARVE_SEEDS", 6))):
        folder = tmp_path / str(turn)
        folder.mkdir()
        name, fmt = chain(rng, folder, ["a", "b", "c"][:rng.randrange(1, 4)])[-1]
        for _ in range(3):
            args = ["-O", rng.choice(["qcow2", "qcow2", "raw"])]
            if args[1] == "qcow2":
                args += ["-o", rng.choice(["cluster_size=512", "cluster_size=4k", "cluster_size=64k", "cluster_size=1M,compat=0.10",
                                           "refcount_bits=8", "preallocation=full"])]
            if rng.random() < 0.7:
                args += ["-f", fmt]
            if rng.random() < 0.3:
                args += ["-U"]
            same(*args, name, cwd=folder)


def test_json_and_image_options_name_a_source(tmp_path):
    disk = tmp_path / "d,e"
    ok(img("create", "-q", "-f", "qcow2", disk, "64M"))
    ok(io(disk, "write 1M 3M"))
    for source in (["json:" + '{"driver": "qcow2", "file": {"driver": "file", "filename": "%s"}}' % disk],
                   ["--image-opts", "driver=qcow2,file.filename=" + str(disk).replace(",", ",,")]):
        assert same("-O", "qcow2", *source).out.startswith("required size: ")


def test_bitmaps_of_the_source(tmp_path):
    disk = tmp_path / "d"
    ok(qimg("create", "-q", "-f", "qcow2", disk, "1G"))
    for name, granularity in (("one", 65536), ("a much longer name than that", 512), ("three", 1 << 20)):
        ok(qimg("bitmap", "--add", "-g", str(granularity), disk, name))
    for options in ("cluster_size=64k", "cluster_size=4k", "compat=0.10"):
        same("-O", "qcow2", "-o", options, disk)
    same("-O", "raw", disk)


def test_an_image_made_by_convert_is_no_larger(tmp_path):
    disk = tmp_path / "d"
    ok(qimg("create", "-q", "-f", "qcow2", disk, "256M"))
    ok(qio(disk, "write 1M 30M", "write 100M 64k", "write 255M 1M"))
    for options in ("cluster_size=64k", "cluster_size=4k"):
        m = ok(img("measure", "--output=json", "-O", "qcow2", "-o", options, disk)).json
        ok(qimg("convert", "-O", "qcow2", "-o", options, disk, tmp_path / "copy"))
        assert os.stat(tmp_path / "copy").st_size <= m["required"] <= m["fully-allocated"]
    m = ok(img("measure", "--output=json", "-O", "qcow2", "-s", "64M")).json
    ok(img("create", "-q", "-f", "qcow2", "-o", "preallocation=full", tmp_path / "full", "64M"))
    assert os.stat(tmp_path / "full").st_size == m["fully-allocated"]


@pytest.mark.parametrize("target", ["raw", "qcow2"])
def test_the_size_of_the_disk_counts_and_not_the_option(tmp_path, target):
    """-o is taken as for create, where there may be a size in it."""
    with open(tmp_path / "s", "wb") as f:
        f.truncate(MIB)
    same("-O", target, "-o", "size=2M", "-f", "raw", tmp_path / "s")
    same("-O", target, "-o", "size=3M", "--size", "1M")
    same("-O", target, "-o", "size=x", "--size", "1M")


def test_what_is_wrong(tmp_path):
    disk = tmp_path / "d"
    ok(img("create", "-q", "-f", "qcow2", disk, "1M"))
    for args in ([], ["--size", "1G", disk], ["-O", "qed", "--size", "1G"], ["-O", "what", "--size", "1G"], ["--size", "x"],
                 ["--size", "100E"], ["-O", "qcow2", "--size", "1G", "-o", "nonsense=1"], ["-O", "qcow2", "-o", "cluster_size=3", disk],
                 ["-f", "raw", "--size", "1G"], ["-O", "qcow2", "--size", "1P", "-o", "cluster_size=512"], [disk, disk],
                 ["--output=xml", disk], [tmp_path / "none"]):
        a, b = img("measure", *args), qimg("measure", *args)
        refused(a)
        assert b.rc == 1, str(b)
