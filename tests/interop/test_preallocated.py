# SPDX-License-Identifier: MIT
"""test_preallocated - images whose tables were filled beforehand, and whose file is mostly a hole

What was never written is not read: 64 GiB of such an image are converted while a reader would still be at the beginning.
"""

import json
import os

import pytest

from tool import GIB, MIB, img, io, ok, qimg


@pytest.fixture
def disk(tmp_path):
    path = tmp_path / "pre.qcow2"
    ok(qimg("create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", path, "64G"))
    ok(io(path, "write -P 1 0 1M", "write -P 2 %d 100k" % (5 * GIB + 3000), "write -P 3 %d 64k" % (64 * GIB - 65536)))
    return path


def stretches(result):
    """Joined where nothing but the place differs; the peer of today does not say which are compressed."""
    joined = []
    for e in json.loads(ok(result).out):
        if joined and all(joined[-1][key] == e[key] for key in ("depth", "present", "zero", "data")):
            joined[-1]["length"] += e["length"]
        else:
            joined.append({key: e[key] for key in ("start", "length", "depth", "present", "zero", "data")})
    return joined


def test_map_says_what_is_a_hole(disk):
    ours = stretches(img("map", "--output=json", disk))
    assert ours == stretches(qimg("map", "--output=json", disk))
    assert sum(e["length"] for e in ours if not e["zero"]) < 2 * MIB
    assert len(ok(img("map", disk)).out.splitlines()) == len(ok(qimg("map", disk)).out.splitlines())


def test_only_what_was_written_is_copied(disk, tmp_path):
    for fmt in ("qcow2", "raw"):
        out = tmp_path / ("out." + fmt)
        ok(img("convert", "-O", fmt, disk, out))
        assert os.stat(out).st_blocks * 512 < 4 * MIB
        ok(qimg("compare", disk, out))
        ok(img("compare", disk, out))
        out.unlink()


def test_such_space_hides_the_backing_file(disk, tmp_path):
    base, out = tmp_path / "base.raw", tmp_path / "flat.raw"
    base.write_bytes(b"b" * 2 * MIB)
    ok(img("rebase", "-u", "-b", base, "-F", "raw", disk))
    ok(img("resize", "--shrink", disk, "2M"))
    assert stretches(img("map", "--output=json", disk)) == stretches(qimg("map", "--output=json", disk))
    ok(img("convert", "-O", "raw", disk, out))
    assert out.read_bytes() == b"\1" * MIB + bytes(MIB)
