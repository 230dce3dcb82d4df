# SPDX-License-Identifier: MIT
"""test_hand_over_daemon - varve daemon --hand-over: its images are held only while their machines run"""
import fcntl
import json
import os
import struct
import subprocess
import time

import pytest
from test_hand_over import GOES_ON, WAITS, Server
from test_restart import MIXED, SECONDS, Load, Process, make_disk, require_sound, varve


def held(disk):
    """Whether somebody has the image open for writing, as its locks tell: byte 100 + 1 stands for that."""
    with open(disk, "rb") as f:
        # struct flock: type, whence, start, length, pid
        asked = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 101, 1, 0)
        return struct.unpack("hhqqi4x", fcntl.fcntl(f, fcntl.F_OFD_GETLK, asked))[0] != fcntl.F_UNLCK


def wait_held(disk, value, of):
    deadline = time.monotonic() + SECONDS
    while held(disk) != value:
        assert time.monotonic() < deadline, of.text()
        time.sleep(0.005)


class Daemon(Process):
    """A qcow2 over a base, which two exports share; a raw one; a read-only one that others have as well."""

    def __init__(self, folder, name, *more):
        self.socket = [folder / f"{name}{i}.sock" for i in range(3)]
        super().__init__(folder, "daemon", *self.nodes(folder),
                         *[a for i, (node, writable) in enumerate((("d0", "on"), ("d1", "on"), ("d0", "off"))) for a in (
                             "--export", f"vhost-user-blk,id=e{i},node-name={node},addr.type=unix,addr.path={self.socket[i]},"
                             f"writable={writable},num-queues=2")],
                         "--hand-over", *more, sockets=self.socket)
        self.log.close()
        self.log = open(folder / f"{name}.log", "w+")

    @staticmethod
    def nodes(folder):
        return ["--blockdev", f"driver=file,node-name=f0,filename={folder}/disk",
                "--blockdev", f"driver=raw,node-name=base,read-only=on,file.driver=file,file.filename={folder}/base",
                "--blockdev", "driver=qcow2,node-name=d0,file=f0,backing=base,discard=unmap,copy-on-read=on",
                "--blockdev", json.dumps({"driver": "raw", "node-name": "d1", "file": {"driver": "file", "filename": f"{folder}/second"}})]


def make_disks(folder):
    varve("img", "create", "-q", "-f", "raw", folder / "base", "64M")
    varve("img", "create", "-q", "-f", "raw", folder / "second", "64M")
    return make_disk(folder, "qcow2", "64M", f"backing_file={folder}/base,backing_fmt=raw"), folder / "second"


def test_images_go_from_one_daemon_to_the_other_and_back(tmp_path):
    disks = make_disks(tmp_path)
    with Daemon(tmp_path, "a") as a, Daemon(tmp_path, "b", "--state-dir", tmp_path / "state") as b:
        assert not any(map(held, disks)), "a daemon holds its images although no machine runs"
        for first, second in ((a, b), (b, a)):
            with Load(first.socket[0], *MIXED) as one, Load(first.socket[1], *MIXED) as two:
                for disk in disks:
                    wait_held(disk, True, first)
                went_on = second.text().count(GOES_ON)
                told = {node: second.text().count(f"{node}: {WAITS}") for node in ("d0", "d1")}
                with Load(second.socket[0], *MIXED) as waits, Load(second.socket[1], *MIXED) as waits2:
                    waits.wait(lambda: all(second.text().count(f"{node}: {WAITS}") > told[node] for node in told))
                    # Each image goes by itself.
                    one.end()
                    waits.wait(lambda: second.text().count(GOES_ON) == went_on + 1)
                    assert two.running()
                    two.end()
                    waits2.wait(lambda: second.text().count(GOES_ON) == went_on + 2)
                    waits.end()
                    waits2.end()
            for disk in disks:
                wait_held(disk, False, second)
            require_sound(disks[0], "qcow2")
        a.stop()
        b.stop()


def test_an_image_of_two_exports_is_held_while_one_of_them_wants_it(tmp_path):
    disk, _ = make_disks(tmp_path)
    with Daemon(tmp_path, "a") as a:
        with Load(a.socket[0], *MIXED) as load:
            wait_held(disk, True, a)
            done = subprocess.run([a.argv[0], "blkload", "--socket", a.socket[2], "--rw", "read", "--ops", "200"],
                                  capture_output=True, text=True, timeout=SECONDS)
            assert done.returncode == 0, done.stderr
            assert held(disk), "it was given away with one of its machines running"
            load.end()
        wait_held(disk, False, a)
        a.stop()


def test_an_image_goes_from_a_serve_to_a_daemon_and_back(tmp_path):
    disk, _ = make_disks(tmp_path)
    with Server(tmp_path, "s", disk, "qcow2") as s, Daemon(tmp_path, "d") as d:
        for first, second in ((s.socket, d), (d.socket[0], s)):
            told, went_on = (second.text().count(words) for words in (WAITS, GOES_ON))
            with Load(first, *MIXED) as load:
                wait_held(disk, True, s)
                with Load(second.socket if second is s else second.socket[0], *MIXED) as waits:
                    waits.wait(lambda: second.text().count(WAITS) > told)
                    load.end()
                    waits.wait(lambda: second.text().count(GOES_ON) > went_on)
                    waits.end()
            wait_held(disk, False, d)
        s.stop()
        d.stop()
    require_sound(disk, "qcow2")


@pytest.mark.parametrize("export, words", [([], "no export gives it to a machine")])
def test_what_no_machine_could_want_is_refused(tmp_path, export, words):
    make_disks(tmp_path)
    refused = varve("daemon", *Daemon.nodes(tmp_path), *export, "--hand-over", code=1)
    assert words in refused.stderr and len(refused.stderr.splitlines()) == 1
