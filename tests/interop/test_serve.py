# SPDX-License-Identifier: MIT
"""test_serve - varve serve as a process: what it makes, how it ends, what it refuses

What a virtual machine sees through the socket is the matter of tests/dataplane.
"""

import contextlib
import os
import select
import signal
import socket
import subprocess

import pytest

from tool import TIMEOUT, img, io, ok, qimg, refused, varve, varve_path


@pytest.fixture
def disk(tmp_path):
    path = tmp_path / "disk.qcow2"
    ok(img("create", "-q", "-f", "qcow2", path, "8M"))
    return path


@contextlib.contextmanager
def serving(disk, *args):
    """A running server, listening. It is ended at the latest with the block."""
    p = subprocess.Popen([varve_path(), "serve", str(disk), "--print-qemu-args", *map(str, args)],
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        ready, _, _ = select.select([p.stdout], [], [], TIMEOUT)
        assert ready, "not listening in time"
        p.qemu_args = p.stdout.readline()  # printed when the socket listens
        if not p.qemu_args:
            raise AssertionError(p.stderr.read())
        yield p
    finally:
        if p.poll() is None:
            p.kill()
        p.communicate(timeout=TIMEOUT)


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_starts_and_ends_in_silence_and_leaves_nothing(tmp_path, disk, end):
    sock, pidfile = tmp_path / "sock", tmp_path / "pid"
    with serving(disk, "--vhost-user", sock, "--pidfile", pidfile, "--num-queues", 3, "-f", "qcow2") as p:
        assert int(pidfile.read_text()) == p.pid
        assert f"path={sock}" in p.qemu_args and "num-queues=3" in p.qemu_args
        p.send_signal(end)
        out, err = p.communicate(timeout=TIMEOUT)
        assert (p.returncode, out, err) == (0, "", "")
    assert not sock.exists() and not pidfile.exists()
    ok(img("check", disk))


def test_the_disk_is_locked_while_it_is_served(tmp_path, disk):
    with serving(disk, "--vhost-user", tmp_path / "sock") as p:
        refused(io(disk), disk, "lock")
        assert qimg("check", disk).rc != 0
        ok(img("info", "-U", disk))
        p.terminate()
        assert p.wait(timeout=TIMEOUT) == 0
    ok(io(disk, "write 0 64k"))


def test_a_connection_that_says_nothing_does_not_keep_it(tmp_path, disk):
    with serving(disk, "--vhost-user", tmp_path / "sock") as p, socket.socket(socket.AF_UNIX) as s:
        s.connect(str(tmp_path / "sock"))
        p.terminate()
        assert p.wait(timeout=TIMEOUT) == 0


def test_rubbish_on_the_socket_ends_the_connection_not_the_server(tmp_path, disk):
    with serving(disk, "--vhost-user", tmp_path / "sock") as p:
        for rubbish in (b"GET / HTTP/1.0\r\n\r\n", b"\xff" * 4096, b"\1\0\0\0\1\0\0\0\xff\xff\xff\x7f"):
            with socket.socket(socket.AF_UNIX) as s:
                s.settimeout(TIMEOUT)
                s.connect(str(tmp_path / "sock"))
                s.sendall(rubbish)
                s.shutdown(socket.SHUT_WR)
                with contextlib.suppress(ConnectionResetError):
                    while s.recv(4096):
                        pass
        assert p.poll() is None
        p.terminate()
        assert p.wait(timeout=TIMEOUT) == 0


def test_a_dead_socket_is_replaced(tmp_path, disk):
    sock = tmp_path / "sock"
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(str(sock))
    with serving(disk, "--vhost-user", sock) as p:
        p.terminate()
        assert p.wait(timeout=TIMEOUT) == 0


def test_read_only_shares_the_disk_with_readers(tmp_path, disk):
    before = disk.read_bytes()
    with serving(disk, "--vhost-user", tmp_path / "sock", "--read-only") as p:
        ok(io(disk, "read 0 64k", options=("-r",)))
        p.terminate()
        assert p.wait(timeout=TIMEOUT) == 0
    assert disk.read_bytes() == before


@pytest.mark.parametrize("args, word", [
    ([], "--vhost-user"), (["--num-queues", "0"], "--num-queues"), (["--num-queues", "65"], "--num-queues"),
    (["--queue-size", "100"], "--queue-size"), (["--queue-size", "2048"], "--queue-size"),
    (["--serial", "x" * 21], "--serial"), (["--cache", "quick"], "quick"), (["--aio", "quick"], "quick"),
    (["--frob"], "--frob"), (["-f", "frob"], "frob")])
def test_wrong_options_are_refused_by_name(tmp_path, disk, args, word):
    sock = [] if word == "--vhost-user" else ["--vhost-user", tmp_path / "sock"]
    r = varve("serve", disk, *sock, *args)
    assert r.rc == 1 and word in r.err and r.out == "", str(r)
    assert not (tmp_path / "sock").exists()


def test_qemu_understands_the_printed_arguments(tmp_path, disk):
    import shlex
    sock = tmp_path / "a,b.sock"
    with serving(disk, "--vhost-user", sock) as p:
        q = subprocess.run(["qemu-system-x86_64", *shlex.split(p.qemu_args), "-nodefaults", "-display", "none",
                            "-S", "-monitor", "stdio"], input="info qtree\nquit\n", capture_output=True, text=True,
                           timeout=TIMEOUT, check=False)
        assert q.returncode == 0 and "vhost-user-blk-pci" in q.stdout, q.stderr
        p.terminate()
        assert p.wait(timeout=TIMEOUT) == 0
    assert os.path.exists(disk)
