# SPDX-License-Identifier: MIT
"""test_corrupt_serve - a disk that is found corrupt while it is served: its guest gets errors, its operator one line, the rest lives"""

import json
import shutil
import socket

from serving import Server
from test_corrupt import Image, damage, fixture_sound, marked  # noqa: F401
from tool import img, io, ok


def ask(control, **command):
    with socket.socket(socket.AF_UNIX) as s:
        s.connect(control)
        s.sendall((json.dumps(command) + "\n").encode())
        with s.makefile() as answer:
            return json.loads(answer.readline())


def test_the_guest_gets_errors_and_the_server_lives(tmp_path, sound, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(sound, "disk.qcow2")
    damage("disk.qcow2", "unaligned")
    ok(img("create", "-q", "-f", "qcow2", "other.qcow2", "16M"))
    with Server("disk.qcow2", "qcow2", "sock", "pid", "--control", "control", "--num-queues", "2", "--state-dir", str(tmp_path),
                "--and", "other.qcow2", "--vhost-user", "other", "-f", "qcow2") as server:
        # Beside the damage all is well; a flush makes it durable.
        rc, told, err = server.load("--rw", "write", "--offset", "1M", "--size", "1M", "--ops", "200", "--verify", "--seed", "3")
        assert rc == 0, err
        assert ask("control", command="stats", disk="0")["return"]["image"]["corrupt"] is False
        rc, told, err = server.load("--rw", "randwrite", "--size", "64k", "--ops", "100", "--queues", "2", "--seed", "3")
        assert rc == 1, (told, err)
        assert ask("control", command="stats", disk="0")["return"]["image"]["corrupt"] is True
        rc, told, err = server.load("--rw", "randread", "--offset", "1M", "--size", "1M", "--ops", "10", "--seed", "3")
        assert rc == 1, (told, err)
        answer = ask("control", command="resize", disk="0", size=32 << 20)
        assert "damaged while in use" in answer.get("error", ""), answer
        assert Image("disk.qcow2").get(72) == 2 and list(tmp_path.glob("*.journal"))  # who asks with a tool meets the lock
        server.socket = "other"
        rc, told, err = server.load("--rw", "randwrite", "--ops", "100", "--verify", "--seed", "3")
        assert rc == 0, err
        rc, err = server.stop()
        lines = err.splitlines()
        assert rc == 0 and len(lines) == 1 and "disk.qcow2" in lines[0] and "marked corrupt" in lines[0], err
    assert marked("disk.qcow2")
    assert not list(tmp_path.glob("*.journal")), "a journal of a queue that is empty"
    ok(io("disk.qcow2", "read -q -P 1 64k 192k", options=("-r",)))
