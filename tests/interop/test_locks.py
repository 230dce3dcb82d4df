# SPDX-License-Identifier: MIT
"""test_locks - varve and the QEMU tools each refuse the image that the other has open, and name who has it"""

import contextlib
import os
import re
import subprocess

import pytest

from tool import TIMEOUT, img, io, ok, qimg, qio, run, varve_path

TOOLS = {"qemu": ["qemu-io"], "varve": [varve_path(), "io"]}
IO = {"qemu": qio, "varve": io}
IMG = {"qemu": qimg, "varve": img}


@pytest.fixture(params=["qcow2", "raw"])
def disk(request, tmp_path):
    path = tmp_path / "disk"
    ok(img("create", "-q", "-f", request.param, path, "1M"))
    return request.param, path


@contextlib.contextmanager
def held(tool, fmt, path, *options):
    """A process of the tool that has the image open until the block ends."""
    p = subprocess.Popen([*TOOLS[tool], *options, "-f", fmt, os.fspath(path)], stdin=subprocess.PIPE,
                         stdout=subprocess.PIPE, text=True)
    try:
        p.stdin.write("length\n")
        p.stdin.flush()
        assert p.stdout.readline(), "did not open"
        yield p
    finally:
        p.stdin.close()
        p.wait(timeout=TIMEOUT)
        p.stdout.close()


def refused(r, lock):
    assert r.rc == 1, str(r)
    assert f'Failed to get {lock} lock' in r.err, str(r)
    assert "Is another process using the image" in r.err, str(r)


def is_lenient(tool, fmt):
    """QEMU bears that others write to a raw image, for there are no tables to be confused by it; varve does not."""
    return tool == "qemu" and fmt == "raw"


BOTH_WAYS = pytest.mark.parametrize("holder, asker", [("qemu", "varve"), ("varve", "qemu"), ("varve", "varve")])


@BOTH_WAYS
def test_a_writer_keeps_writers_and_readers_out(disk, holder, asker):
    fmt, path = disk
    with held(holder, fmt, path):
        lock = 'shared "write"' if is_lenient(holder, fmt) else '"write"'
        refused(IO[asker](path, "write 0 512", options=("-f", fmt)), lock)
        if not is_lenient(asker, fmt):
            refused(IO[asker](path, "read 0 512", options=("-r", "-f", fmt)), 'shared "write"')
            refused(IMG[asker]("info", "-f", fmt, path), 'shared "write"')
        # --force-share reads all the same, and writing is not to be had by it
        ok(IMG[asker]("info", "-U", "-f", fmt, path))
        ok(IO[asker](path, "read 0 512", options=("-r", "-U", "-f", fmt)))
        assert IO[asker](path, "write 0 512", options=("-U", "-f", fmt)).rc == 1
    ok(IO[asker](path, "write 0 512", options=("-f", fmt)))


@BOTH_WAYS
def test_an_overlay_is_made_of_what_somebody_writes_to(disk, tmp_path, holder, asker):
    """As a snapshot of a running machine begins. It has a writer, but is only looked at."""
    fmt, path = disk
    with held(holder, fmt, path):
        ok(IMG[asker]("create", "-q", "-f", "qcow2", "-b", path, "-F", fmt, tmp_path / "over"))


@BOTH_WAYS
def test_readers_share_and_keep_writers_out(disk, holder, asker):
    fmt, path = disk
    with held(holder, fmt, path, "-r"):
        ok(IO[asker](path, "read 0 512", options=("-r", "-f", fmt)))
        ok(IMG[asker]("info", "-f", fmt, path))
        if not is_lenient(holder, fmt):
            refused(IO[asker](path, "write 0 512", options=("-f", fmt)), '"write"')
    ok(IO[asker](path, "write 0 512", options=("-f", fmt)))


@BOTH_WAYS
def test_who_shares_by_force_keeps_nobody_out(disk, holder, asker):
    fmt, path = disk
    with held(holder, fmt, path, "-r", "-U"):
        ok(IO[asker](path, "write 0 512", options=("-f", fmt)))


@pytest.mark.parametrize("holder, name", [("qemu", "qemu-io"), ("varve", "varve")])
def test_the_message_names_the_holder(disk, holder, name):
    fmt, path = disk
    with held(holder, fmt, path) as p:
        r = io(path, options=("-f", fmt))
        assert r.err.strip().endswith(f"It is held by process {p.pid} ({name})."), str(r)


OVERLAY = r"""
mkdir low up all && mount -t tmpfs low low && mount -t tmpfs up up && mkdir up/new up/work && truncate -s 1M low/disk &&
    mount -t overlay -o lowerdir=low,upperdir=up/new,workdir=up/work overlay all || exit 77
coproc holder { exec "$0" io -f raw all/disk; }
pid=$holder_PID
echo length >&${holder[1]}
read -r _ <&${holder[0]}
echo "$pid"
"$0" io -f raw all/disk </dev/null
"""


def test_the_holder_is_found_where_stat_gives_a_file_another_device(tmp_path):
    """As on btrfs: what /proc calls the file by is known to the kernel alone."""
    r = run("unshare", "-m", "--propagation", "private", "bash", "-c", OVERLAY, varve_path(), cwd=tmp_path)
    if r.rc == 77 or "unshare failed" in r.err:
        pytest.skip(f"no overlay of two file systems can be mounted here: {r.err.strip()}")
    assert r.rc == 1 and r.err.strip().endswith(f"It is held by process {r.out.strip()} (varve)."), str(r)


def test_a_holder_whose_name_is_no_text_is_still_one_line(disk, tmp_path):
    fmt, path = disk
    odd = tmp_path / "x\ny\x1b[31m"
    os.symlink(varve_path(), odd)
    p = subprocess.Popen([odd, "io", "-f", fmt, os.fspath(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        p.stdin.write(b"length\n")
        p.stdin.flush()
        assert p.stdout.readline(), "did not open"
        r = io(path, options=("-f", fmt))
        assert re.fullmatch(r"[ -~]*It is held by process \d+ \([ -~]*\)\.\n", r.err), repr(r.err)
    finally:
        p.stdin.close()
        p.wait(timeout=TIMEOUT)
        p.stdout.close()
