# SPDX-License-Identifier: MIT
"""test_control_trouble - the control socket, and the end of the server, beside clients that leave and disks that are stuck"""
import contextlib
import fcntl
import json
import os
import pathlib
import resource
import signal
import socket
import subprocess
import time

import pytest
from test_control import Control, Serve, images
from test_takeover import Servers
from test_vublk import SECONDS, VARVE, varve

FIFREEZE, FITHAW = 0xC0045877, 0xC0045878


def until(what, process):
    deadline = time.monotonic() + SECONDS
    while not what():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("lines", [b"x\n", b'{"command":"help"}\n', b'{"command":"stats"}\n', b'{"command":"flush"}\n',
                                   b'{"command":"disks"}\n{"command":"stats"}\nx\n{"command":"flush"}\n{"comm'])
def test_a_client_that_leaves_before_its_answer_is_forgotten(tmp_path, lines):
    (disk,) = images(tmp_path, 1)
    with Serve(tmp_path, (disk, "-f", "qcow2")) as s:
        for _ in range(3):
            s.process.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, s.process.pid, os.WSTOPPED | os.WNOWAIT)
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(s.control))
                client.sendall(lines)
            s.process.send_signal(signal.SIGCONT)
            ask = s.ask()
            assert len(ask("disks")) == 1 and "image" in ask("stats") and ask("flush") == {}


@pytest.mark.parametrize("between", [b"", b'{"command":"disks"}\n' * 5000])
def test_what_a_client_has_said_is_done_when_it_has_left(tmp_path, between):
    """A pause that waits for requests, and whoever asked for it does not; more than is read at once may follow."""
    (disk,) = images(tmp_path, 1)
    with Serve(tmp_path, (disk, "-f", "qcow2")) as s:
        s.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, s.process.pid, os.WSTOPPED | os.WNOWAIT)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(s.control))
            client.sendall(b'{"command":"pause"}\n' + between + b'{"command":"snapshot-create","name":"x"}\n{"command":"resume"}\n')
        s.process.send_signal(signal.SIGCONT)
        ask = s.ask()
        until(lambda: [x["name"] for x in ask("snapshots")] == ["x"] and not ask("disks")[0]["paused"], s.process)
        s.load(0, "--rw", "randwrite", "--ops", "100")


@pytest.mark.parametrize("asked", ["control", "takeover"])
def test_without_descriptors_it_does_not_spin_and_recovers(tmp_path, asked):
    def ticks():
        fields = pathlib.Path(f"/proc/{s.process.pid}/task/{s.process.pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    (disk,) = images(tmp_path, 1)
    with Serve(tmp_path, (disk, "-f", "qcow2"), options=["--pidfile", tmp_path / "pid"]) as s:
        until((tmp_path / "pid").exists, s.process)
        # Not so few that poll() itself is refused; and none below the limit is free.
        others = [s.ask() for _ in range(8)]
        assert all(len(other("disks")) == 1 for other in others)
        used = {int(name) for name in os.listdir(f"/proc/{s.process.pid}/fd")}
        lowest = min(set(range(len(used) + 1)) - used)
        before = resource.prlimit(s.process.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(s.process.pid, resource.RLIMIT_NOFILE, (lowest, before[1]))
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM if asked == "control" else socket.SOCK_SEQPACKET)
        with client:
            client.connect(str(s.control) if asked == "control" else f"\0varve-takeover-{s.process.pid}")
            client.sendall(b'{"command":"disks"}\n')
            until(lambda: "(ulimit -n)" in s.text(), s.process)
            spent = ticks()
            client.settimeout(2)
            with pytest.raises(TimeoutError):
                client.recv(1)  # so long it may not be busy
            assert ticks() - spent < os.sysconf("SC_CLK_TCK") / 2 and s.text().count("(ulimit -n)") == 1
            resource.prlimit(s.process.pid, resource.RLIMIT_NOFILE, before)
            client.settimeout(SECONDS)
            assert b"{" in client.recv(1000)


def test_clients_that_say_nothing_keep_nobody_out(tmp_path):
    (disk,) = images(tmp_path, 1)
    with Serve(tmp_path, (disk, "-f", "qcow2")) as s:
        silent = [s.ask() for _ in range(40)]
        talks = s.ask()
        for i in range(40):
            assert len(talks("disks")) == 1, "who talks stays"
            silent.append(s.ask())
            if i % 2:
                assert len(silent[-1]("disks")) == 1
        # They were told by the end of the connection.
        assert silent[0].socket.recv(1) == b""


@contextlib.contextmanager
def small_file_system(tmp_path):
    """A folder on a file system of its own, and a function that freezes it until the end."""
    back, where = tmp_path / "back", tmp_path / "fs"
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    where.mkdir()
    back.write_bytes(b"")
    os.truncate(back, 128 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", back], check=True)
    done = subprocess.run(["mount", "-o", "loop", back, where], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"ext4 cannot be mounted here: {done.stderr.strip()}")
    fd = os.open(where, os.O_RDONLY)
    try:
        yield where, lambda: fcntl.ioctl(fd, FIFREEZE, 0), lambda: fcntl.ioctl(fd, FITHAW, 0)
    finally:
        with contextlib.suppress(OSError):
            fcntl.ioctl(fd, FITHAW, 0)
        os.close(fd)
        deadline = time.monotonic() + SECONDS
        # The kernel closes the files of a process that was killed a moment after it has gone (io_uring).
        while subprocess.run(["umount", where], capture_output=True, check=False).returncode:
            assert time.monotonic() < deadline
            time.sleep(0.01)


@contextlib.contextmanager
def thawed_on_failure(process, thaw):
    """A test that fails meanwhile does not wait for a process that waits for the file system."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            thaw()
        process.kill()
        raise


def stuck(process):
    """Does a thread of it wait in the kernel for a file system that is frozen?"""
    states = []
    for task in os.listdir(f"/proc/{process.pid}/task"):
        with contextlib.suppress(OSError), open(f"/proc/{process.pid}/task/{task}/stat", encoding="utf-8") as f:
            states.append(f.read().rpartition(")")[2].split()[0])
    return "D" in states


def test_a_disk_that_is_stuck_keeps_nobody_from_the_others(tmp_path):
    with small_file_system(tmp_path) as (where, freeze, thaw):
        other = tmp_path / "other.qcow2"
        for disk in (where / "stuck.qcow2", other):
            varve("img", "create", "-q", "-f", "qcow2", disk, "64M")
        with Serve(tmp_path, (where / "stuck.qcow2", "-f", "qcow2"), (other, "-f", "qcow2")) as s:
            load = ["--rw", "randwrite", "--ops", "2000", "--verify"]
            s.load(0, *load)
            freeze()
            with subprocess.Popen([VARVE, "blkload", "--socket", s.sockets[0], "--rw", "randwrite", "--ops", "64", "--timeout", "100000"],
                                  stdout=subprocess.DEVNULL) as writer, thawed_on_failure(writer, thaw):
                until(lambda: stuck(s.process), writer)
                waiting = [s.ask() for _ in range(3)]
                for client, command in zip(waiting, ("stats", "flush", "throttle")):
                    client.socket.sendall(json.dumps({"command": command, "disk": "0"}).encode() + b"\n")
                ask = s.ask()
                assert len(ask("disks")) == 2 and "image" in ask("stats", disk="1") and ask("flush", disk="1") == {}
                assert ask("throttle", disk="1", limits="iops-total=50000") == {"iops-total": 50000}
                assert ask("snapshot-create", disk="1", name="x") == {"id": "1"}
                s.load(1, *load)
                # Told to end, it closes the other one, and waits for the one that is stuck.
                s.process.send_signal(signal.SIGTERM)
                until(lambda: subprocess.run([VARVE, "io", "-f", "qcow2", "-c", "flush", other], capture_output=True,
                                             timeout=SECONDS, check=False).returncode == 0, s.process)
                assert s.process.poll() is None and writer.poll() is None
                thaw()
                writer.wait(SECONDS)
            assert s.process.wait(SECONDS) == 0, s.text()
        for disk in (where / "stuck.qcow2", other):
            varve("img", "check", "-q", disk)


def test_a_question_that_is_not_answered_makes_a_disk_busy_and_no_longer_than_that(tmp_path):
    """Another server asks for the disk, which is not given away under a question about it; nor is whoever asks kept waiting."""
    with small_file_system(tmp_path) as (where, freeze, thaw), Servers(tmp_path) as servers:
        disk, sock, control = where / "disk.qcow2", tmp_path / "s.sock", tmp_path / "control"
        varve("img", "create", "-q", "-f", "qcow2", disk, "64M")
        argv = ["serve", disk, "-f", "qcow2", "--vhost-user", sock, "--control", control]
        old = servers.start(argv)
        servers.wait(lambda: servers.holder() == old.pid)
        freeze()
        with subprocess.Popen([VARVE, "blkload", "--socket", sock, "--rw", "randwrite", "--ops", "64", "--timeout", "100000"],
                              stdout=subprocess.DEVNULL) as writer, thawed_on_failure(writer, thaw):
            until(lambda: stuck(old), writer)
            asked = Control(control)
            asked.socket.sendall(b'{"command":"stats"}\n')
            assert len(Control(control)("disks")) == 1, "by now the question is asked"
            new = servers.start(argv)
            servers.wait_end(new, 1)
            assert "a command is being carried out; ask again when it is done" in pathlib.Path(new.log.name).read_text(), servers.text()
            assert old.poll() is None and servers.holder() == old.pid and len(Control(control)("disks")) == 1
            thaw()
            assert "image" in json.loads(asked.lines.readline())["return"]
            assert writer.wait(SECONDS) == 0
        assert "image" in Control(control)("stats") and Control(control)("flush") == {}
        new = servers.start(argv)
        servers.wait_end(old, 0)
        servers.wait(lambda: servers.holder() == new.pid)
        assert "image" in Control(control)("stats")
        new.send_signal(signal.SIGTERM)
        servers.wait_end(new, 0)
        varve("img", "check", "-q", disk)
