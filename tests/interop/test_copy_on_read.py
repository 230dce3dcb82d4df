# SPDX-License-Identifier: MIT
"""test_copy_on_read - what is read through varve is in the image afterwards, also for QEMU"""

import os
import random

import pytest

from seeds import seed
from tool import KIB, MIB, img, io, ok, qimg, qio


def base(folder, rng, length):
    path = os.path.join(folder, "base.raw")
    ok(qimg("create", "-q", "-f", "raw", path, str(length)))
    writes = []
    for _ in range(8):
        off = rng.randrange(length // 512) * 512
        writes.append(f"write -q -P {rng.randrange(256)} {off} {min(rng.randrange(1, 600) * 512, length - off)}")
    ok(qio(path, *writes, options=("-f", "raw")))
    return path


@pytest.mark.parametrize("fmt, options", [
    ("qcow2", "cluster_size=64k"), ("qcow2", "cluster_size=512"), ("qcow2", "compat=0.10,cluster_size=4k"),
    ("qed", "cluster_size=4k,table_size=2"), ("qed", "cluster_size=64k"),
])
def test_random_reads_fill_the_image(tmp_path, fmt, options):
    rng = random.Random(seed())
    length = 3 * MIB + 512 * rng.randrange(1000)
    below = base(tmp_path, rng, length)
    path = os.path.join(tmp_path, "overlay")
    ok(qimg("create", "-q", "-f", fmt, "-o", options, "-b", below, "-F", "raw", path))
    reads = [f"read -q {rng.randrange(length)} 1" for _ in range(20)]
    for _ in range(20):
        off = rng.randrange(length)
        reads.append(f"read -q {off} {min(rng.randrange(1, 300 * KIB), length - off)}")
    rng.shuffle(reads)
    ok(io(path, *reads, options=("-C", "-f", fmt)))
    ok(qimg("check", "-q", "-f", fmt, path))
    ok(img("check", "-q", "-f", fmt, path))
    ok(qimg("compare", "-f", fmt, "-F", "raw", path, below))
    # Now all of it: the base is needed no more.
    ok(io(path, f"read -q 0 {length}", options=("-C", "-f", fmt)))
    ok(qimg("check", "-q", "-f", fmt, path))
    os.rename(below, below + ".away")
    ok(qimg("create", "-q", "-f", "raw", below, str(length)))
    ok(qimg("compare", "-f", fmt, "-F", "raw", path, below + ".away"))


def test_without_the_option_nothing_is_kept(tmp_path):
    below = base(tmp_path, random.Random(1), MIB)
    path = os.path.join(tmp_path, "overlay.qcow2")
    ok(qimg("create", "-q", "-f", "qcow2", "-b", below, "-F", "raw", path))
    before = os.path.getsize(path)
    ok(io(path, "read -q 0 1M"))
    assert os.path.getsize(path) == before


@pytest.mark.parametrize("options, file, says", [
    (("-C", "-r", "-f", "qcow2"), "overlay.qcow2", "open for writing"),
    (("-C", "-f", "raw"), "base.raw", "format raw has no backing images"),
    (("--image-opts",), "driver=qcow2,file.filename=overlay.qcow2,copy-on-read-bottom=base.raw", "needs copy-on-read=on"),
    (("--image-opts",), "driver=qcow2,file.filename=overlay.qcow2,copy-on-read=on,copy-on-read-bottom=x",
     "'x' is not the name of an image in its backing chain"),
])
def test_refusals(tmp_path, monkeypatch, options, file, says):
    monkeypatch.chdir(tmp_path)
    base(tmp_path, random.Random(1), MIB)
    ok(qimg("create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", "overlay.qcow2"))
    done = io(file, "read 0 1", options=options)
    assert done.rc == 1
    assert says in done.err and done.err.count("\n") == 1


def test_a_full_disk_does_not_fail_reads(tmp_path):
    """Reads go on from the base; that metadata could not be written either is told at the end."""
    below = base(tmp_path, random.Random(2), 4 * MIB)
    path = os.path.join(tmp_path, "overlay.qcow2")
    ok(qimg("create", "-q", "-f", "qcow2", "-b", below, "-F", "raw", path))
    spec = (f"driver=qcow2,copy-on-read=on,file.driver=fault,file.file.filename={path},"
            "file.rule.0.event=write,file.rule.0.errno=ENOSPC")
    done = io(spec, "read -q 0 4M", "read -q 0 4M", options=("--image-opts",))
    assert done.out == "" and "No space left" in done.err and done.err.count("\n") == 1, str(done)
    ok(qimg("compare", path, below))
