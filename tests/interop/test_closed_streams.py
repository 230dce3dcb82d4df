# SPDX-License-Identifier: MIT
"""test_closed_streams - who starts a tool with standard streams closed must not find their text in an image

Never:   closes streams of the process that runs the tests.
"""

import itertools
import os
import shlex
import subprocess

import pytest

from tool import TIMEOUT, img, info, io, ok, varve_path


def closed(fds, *args, cwd):
    """Runs varve with these streams closed, the others into pipes."""
    def close():
        for fd in fds:
            os.close(fd)

    p = subprocess.run([varve_path(), *args], cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, timeout=TIMEOUT,
                       preexec_fn=close, check=False)
    return p.returncode, p.stdout, p.stderr


SOME = [fds for n in (1, 2, 3) for fds in itertools.combinations((0, 1, 2), n)]


@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
@pytest.mark.parametrize("fds", SOME)
def test_nothing_is_said_into_an_image(tmp_path, fds, fmt):
    disk = tmp_path / "disk"
    ok(img("create", "-q", "-f", fmt, disk, "1M"))
    rc, _, err = closed(fds, "io", "-f", fmt, "-c", "write -P 5 0 64k", "-c", "write -P 6 2M 1", "-c", "bogus", "-c", "read 0 1k",
                        "disk", cwd=tmp_path)
    assert rc == 1 and (1 not in fds or 2 in fds or b"standard output: Bad file descriptor" in err)
    ok(io(disk, "read -q -P 5 0 64k", "read -q -P 0 64k 960k", options=("-f", fmt)))
    assert info(disk, fmt)["virtual-size"] == 1 << 20
    if fmt == "qcow2":
        ok(img("check", "-q", disk))
    for args in (["img", "map", "-f", fmt, "disk"], ["img", "info", "disk"], ["img", "map", "nothing"]):
        rc, _, err = closed(fds, *args, cwd=tmp_path)
        assert rc == (1 if 1 in fds or "nothing" in args else 0)
        assert 2 in fds or rc == 0 or b"Bad file descriptor" in err or b"nothing" in err
    ok(io(disk, "read -q -P 5 0 64k", "read -q -P 0 64k 960k", options=("-f", fmt)))


def test_a_closed_input_is_an_error_at_once(tmp_path):
    rc, _, err = closed((0,), "img", "convert", "-f", "raw", "-O", "qcow2", "-", "disk", cwd=tmp_path)
    assert rc == 1 and b"Bad file descriptor" in err and len(err.splitlines()) == 1
    assert not (tmp_path / "disk").exists()


def test_a_closed_output_takes_no_image(tmp_path):
    (tmp_path / "disk").write_bytes(b"x" * 4096)
    for fmt in "raw", "qcow2":
        rc, _, err = closed((1,), "img", "convert", "-f", "raw", "-O", fmt, "disk", "-", cwd=tmp_path)
        assert rc == 1 and b"Bad file descriptor" in err and len(err.splitlines()) == 1


@pytest.mark.parametrize("line", ["create -f qcow2 new 1M", "resize disk +1M", "amend -p -o lazy_refcounts=on disk", "convert -p -O qcow2 disk new",
                                  "rebase -p -b '' disk", "commit -p over"])
def test_what_is_done_is_done_though_nobody_hears_of_it(tmp_path, line):
    """Who takes the status for a failure tries again, and the disk is longer by twice as much."""
    ok(img("create", "-q", "-f", "qcow2", tmp_path / "disk", "1M"))
    ok(img("create", "-q", "-f", "qcow2", "-b", "disk", "-F", "qcow2", tmp_path / "over"))
    with open("/dev/full", "w", encoding="ascii") as full:
        p = subprocess.run([varve_path(), "img", *shlex.split(line)], cwd=tmp_path, stdin=subprocess.DEVNULL, stdout=full, stderr=subprocess.PIPE,
                           timeout=TIMEOUT, check=False)
    assert p.returncode == 0 and p.stderr.count(b"\n") <= 1 and b"Traceback" not in p.stderr, p.stderr
    if line.startswith("resize"):
        assert b"warning: standard output: No space left on device" in p.stderr, p.stderr
        assert info(tmp_path / "disk", "qcow2")["virtual-size"] == 2 << 20
    rc, _, err = closed((1,), "img", *shlex.split(line), cwd=tmp_path)
    assert rc == 0, err
