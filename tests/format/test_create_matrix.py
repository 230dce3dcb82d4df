# SPDX-License-Identifier: MIT
"""test_create_matrix - new qcow2 images in every combination of options, judged by qemu-img and qemu-io"""

import os
import resource
import subprocess
import sys

import pytest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir, "interop"))

from tool import GIB, MIB, img, ok, qimg, qio, refused, sanitized, varve_path  # noqa: E402

PREALLOCATIONS = ["off", "metadata", "falloc", "full"]
KINDS = [("0.10", 16)] + [("1.1", 1 << i) for i in range(7)]


@pytest.mark.parametrize("bits", range(9, 22))
def test_every_combination_is_what_it_says(tmp_path, bits):
    disk, cluster = tmp_path / "disk.qcow2", 1 << bits
    length = 5 * cluster + 512
    for compat, refcount_bits in KINDS:
        for prealloc in PREALLOCATIONS:
            options = f"compat={compat},cluster_size={cluster},refcount_bits={refcount_bits},preallocation={prealloc}"
            ok(img("create", "-q", "-f", "qcow2", "-o", options, disk, str(length)))
            check = ok(qimg("check", "--output=json", disk)).json
            assert check.get("leaks", 0) == check.get("corruptions", 0) == check["check-errors"] == 0, options
            assert check.get("allocated-clusters", 0) == (0 if prealloc == "off" else 6), options
            info = ok(qimg("info", "--output=json", disk)).json
            data = info["format-specific"]["data"]
            assert info["virtual-size"] == length and info["cluster-size"] == cluster, options
            assert data["compat"] == compat and data["refcount-bits"] == refcount_bits, options
            if prealloc in ("falloc", "full"):
                assert os.stat(disk).st_blocks * 512 >= length, options
            disk.unlink()


@pytest.mark.parametrize("cluster", ["512", "4k", "64k", "2M"])
@pytest.mark.parametrize("prealloc", PREALLOCATIONS)
def test_others_can_use_it(tmp_path, cluster, prealloc):
    disk = tmp_path / "disk.qcow2"
    ok(img("create", "-q", "-f", "qcow2", "-o", f"cluster_size={cluster},preallocation={prealloc}", disk, "7M"))
    ok(qio(disk, "read -P 0 0 7M", "write -P 1 1000k 3M", "write -P 2 0 512", "read -P 1 1000k 3M", "read -P 2 0 512"))
    ok(qimg("check", "-q", disk))
    ok(img("check", "-q", disk))


def limited():
    resource.setrlimit(resource.RLIMIT_AS, (GIB, GIB))
    resource.setrlimit(resource.RLIMIT_CPU, (20, 20))


def test_large_preallocations_need_little_memory(tmp_path):
    if sanitized():
        pytest.skip("a sanitizer's shadow memory is beyond any limit")
    disk = tmp_path / "disk.qcow2"
    for args in (["create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", disk, "512G"],
                 ["check", "-q", disk]):
        p = subprocess.run([varve_path(), "img", *args], preexec_fn=limited, capture_output=True, timeout=240, check=False)
        assert p.returncode == 0 and p.stderr == b"", p
    ok(qimg("check", "-q", disk))


def test_impossible_wishes_leave_no_file(tmp_path):
    disk = tmp_path / "disk.qcow2"
    for options, length, word in [("cluster_size=512", "129G", "cluster_size"),
                                  ("cluster_size=100k", "1M", "cluster_size"),
                                  ("compat=0.10,refcount_bits=8", "1M", "refcount_bits"),
                                  ("compat=0.10,lazy_refcounts=on", "1M", "lazy_refcounts"),
                                  ("extended_l2=on,cluster_size=8k", "1M", "extended_l2"),
                                  ("extended_l2=on,compat=0.10", "1M", "extended_l2"),
                                  ("data_file=x.raw,compat=0.10", "1M", "data_file"),
                                  ("data_file=x.raw,extended_l2=on,cluster_size=8k", "1M", "extended_l2"),
                                  ("encrypt.format=luks", "1M", "encrypt.format"),
                                  ("preallocation=some", "1M", "preallocation"),
                                  ("colour=red", "1M", "colour")]:
        refused(img("create", "-q", "-f", "qcow2", "-o", options, disk, length), word)
        assert not disk.exists()


def test_no_space_left_is_one_line_and_leaves_no_file(tmp_path):
    disk = tmp_path / "disk.qcow2"
    p = subprocess.run([varve_path(), "img", "create", "-q", "-f", "qcow2", "-o", "preallocation=full", disk, "64M"],
                       preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (16 * MIB, 16 * MIB)),
                       capture_output=True, timeout=240, check=False, text=True)
    assert p.returncode == 1
    assert p.stderr.count("\n") == 1 and "disk.qcow2" in p.stderr
    assert not disk.exists()
