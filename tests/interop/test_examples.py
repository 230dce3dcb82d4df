# SPDX-License-Identifier: MIT
"""test_examples - the programs of examples/ do what their first line says"""

import os
import select
import subprocess

from tool import MIB, TIMEOUT, img, io, ok, qimg, run


def example(name):
    return os.path.join(os.path.abspath(os.environ["VARVE_BUILD"]), "examples", "example-" + name)


def test_create_and_write(tmp_path):
    disk = tmp_path / "disk.qcow2"
    assert ok(run(example("create-and-write"), disk)).out == "hello, disk\n"
    ok(qimg("check", disk))
    r = run(example("create-and-write"), tmp_path / "no" / "disk.qcow2")
    assert r.rc == 1 and "disk.qcow2" in r.err


def test_async_read(tmp_path):
    disk = tmp_path / "disk.qcow2"
    ok(img("create", "-q", "-f", "qcow2", disk, "3M"))
    ok(io(disk, "write -P 3 100k 1000", "write -P 1 2M 1M"))
    assert ok(run(example("async-read"), disk)).out == f"{3 * MIB} bytes, sum {3000 + MIB}\n"
    ok(img("create", "-q", "-f", "raw", disk, "0"))
    assert ok(run(example("async-read"), disk)).out == "0 bytes, sum 0\n"


def test_serve_disk(tmp_path):
    disk, sock = tmp_path / "disk.qcow2", tmp_path / "sock"
    ok(img("create", "-q", "-f", "qcow2", disk, "3M"))
    p = subprocess.Popen([example("serve-disk"), str(disk), str(sock)], stdout=subprocess.PIPE, text=True)
    try:
        assert select.select([p.stdout], [], [], TIMEOUT)[0]
        assert p.stdout.readline() == "listening\n"
        assert sock.is_socket()
        p.terminate()
        assert p.wait(timeout=TIMEOUT) == 0
        assert not sock.exists()
    finally:
        if p.poll() is None:
            p.kill()
        p.communicate(timeout=TIMEOUT)
