# SPDX-License-Identifier: MIT
"""test_little_memory - with too little memory every command ends, with the whole result or with one line

Owns:    a folder of its own for each test.
Assumes: below some limit the dynamic loader fails, before any code of ours runs; RLIMIT_DATA counts private memory that
         can be written to.
Never:   depends on where exactly a command begins to succeed.
"""

import os
import resource
import subprocess

import pytest

from tool import img, info, ok, sanitized, varve_path

pytestmark = pytest.mark.skipif(sanitized(), reason="sanitizers need memory of their own")

LADDER = list(range(640, 2400, 160)) + list(range(2400, 4600, 220)) + [6000, 9000, 16000]  # KiB
LONG_S = 240  # commands take milliseconds


def limited(kib, *args, cwd):
    """(exit status, stderr); a command that does not end fails the test."""
    def limits():
        resource.setrlimit(resource.RLIMIT_DATA, (kib << 10, kib << 10))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    p = subprocess.run([varve_path(), *args], cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, timeout=LONG_S,
                       preexec_fn=limits, env={**os.environ, "LC_ALL": "C"}, check=False)
    return p.returncode, p.stderr.decode()


def loads(kib, cwd):
    """Does the program come as far as our code?"""
    return limited(kib, "--version", cwd=cwd)[0] == 0


def contents(i):
    return bytes((i * 7 + j // 4096) & 0xff for j in range(4096)) * 256


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "src.raw").write_bytes(b"".join(contents(i) for i in range(3)))
    ok(img("convert", "-O", "qcow2", tmp_path / "src.raw", tmp_path / "src.qcow2"))
    ok(img("create", "-q", "-f", "qcow2", "-b", "src.qcow2", "-F", "qcow2", tmp_path / "over.qcow2"))
    return tmp_path


# A failed one may have made its file, which is then no image; after a success it is whole.
COMMANDS = {
    "convert": (["img", "convert", "-O", "qcow2", "src.raw", "out"], "same"),
    "compress, sixteen at once": (["img", "convert", "-c", "-m", "16", "-W", "-O", "qcow2", "over.qcow2", "out"], "same"),
    "not cached": (["img", "convert", "-t", "none", "-T", "none", "-O", "raw", "over.qcow2", "out"], "same"),
    "create": (["img", "create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", "out", "1G"], "clean"),
    "bench": (["img", "bench", "-w", "-c", "200", "-d", "64", "-s", "5000", "-f", "qcow2", "over.qcow2"], None),
    "check": (["img", "check", "-r", "all", "over.qcow2"], None),
    "compare": (["img", "compare", "src.raw", "over.qcow2"], None),
    "map": (["img", "map", "over.qcow2"], None),
    "io": (["io", "-f", "qcow2", "-c", "aio_write -P 9 1000 70000", "-c", "aio_read 3000 99999", "-c", "aio_flush", "over.qcow2"],
           None),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_it_ends(folder, name):
    args, result = COMMANDS[name]
    failed = succeeded = 0
    for kib in LADDER:
        (folder / "out").unlink(missing_ok=True)
        rc, err = limited(kib, *args, cwd=folder)
        if rc == 127 or (rc < 0 and not loads(kib, folder)):
            continue
        if rc == 0:
            succeeded += 1
            assert err == "", f"{kib} KiB: {err}"
            if result == "same":
                assert ok(img("compare", folder / "src.raw", folder / "out")).rc == 0, f"{kib} KiB"
            elif result == "clean":
                assert info(folder / "out")["virtual-size"] == 1 << 30
                ok(img("check", "-q", folder / "out"))
        else:
            failed += 1
            assert rc == (2 if name == "compare" else 1), f"{kib} KiB: {rc} {err}"
            assert len(err.splitlines()) == 1, f"{kib} KiB: {err!r}"
            assert "memory" in err, f"{kib} KiB: {err!r}"
    assert failed and succeeded
    if name != "compare":
        ok(img("check", "-q", folder / "over.qcow2"))
