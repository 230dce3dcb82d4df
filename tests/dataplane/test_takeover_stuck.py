# SPDX-License-Identifier: MIT
"""test_takeover_stuck - a server is to let go of its disks, and one of them does not come back from the kernel

Two disks under verified load; the first is the one that gets stuck, at each place where a server waits for it.

Never: leaves a process or a mount behind.
"""
import pathlib
import signal
import subprocess

import pytest
from faultfs import Faultfs
from test_control import Control
from test_control_trouble import small_file_system, stuck
from test_hand_over import Server
from test_restart import Load, make_disk, varve
from test_takeover import Servers
from tool import varve_path

# No flushes: one that is held would keep the load's own waiting, before anybody asks for the disk.
WRITES = ["--rw", "randwrite", "--depth", 4, "--block-size", "4k"]


class Two(Servers):
    def __init__(self, folder, first):
        super().__init__(folder)
        self.first, self.control = first, folder / "control"
        varve("img", "create", "-q", "-f", "qcow2", folder / "second", "64M")

    def serve(self):
        return ["serve", self.first, "-f", "raw", "--vhost-user", self.sockets[0], "--and", self.folder / "second", "-f", "qcow2",
                "--vhost-user", self.sockets[1], "--control", self.control]

    def ask(self, command, disk, **args):
        return Control(self.control)(command, disk=str(disk), **args)

    def requests(self, disk):
        return sum(q["write"]["requests"] for q in self.ask("stats", disk)["export"]["queues"])

    def wait_requests(self, disk):
        """The machine goes on: more of its requests are done than now."""
        done = self.requests(disk)
        self.wait(lambda: self.requests(disk) > done)

    def wait_refused(self, new, words):
        self.wait_end(new, 1)
        told = pathlib.Path(new.log.name).read_text().splitlines()
        assert len(told) == 1 and "goes on serving" in told[0] and words in told[0] and str(self.first) in told[0], self.text()


def end(servers, old, loads):
    """All is well again: another server takes over, and what was written is there."""
    new = servers.take_over(old, servers.serve())
    servers.wait_serving(new)
    for load in loads:
        assert load.end()["reconnects"] == 1
    new.send_signal(signal.SIGTERM)
    servers.wait_end(new, 0)


# What is held, and whether it is found before the machines have to wait.
@pytest.mark.parametrize("held, probed, words", [("fsync 0 0", True, "its storage does not answer"),
                                                 ("fsync 1 0", False, "its storage does not answer"),
                                                 ("write 0 0", False, "requests in flight")])
def test_a_disk_that_is_stuck_refuses_a_takeover_and_keeps_nobody_from_the_others(tmp_path, held, probed, words):
    made = make_disk(tmp_path, "raw", "16M")
    with Faultfs(tmp_path / "faults") as faults, Two(tmp_path, faults.disk) as servers:
        faults.put(made)
        old = servers.start(servers.serve())
        servers.wait(lambda: servers.holder() == old.pid)
        with Load(servers.sockets[0], *WRITES) as first, Load(servers.sockets[1], *WRITES) as second:
            servers.wait_serving(old)
            servers.wait_requests(0)
            servers.wait_requests(1)
            faults.tell(f"rule {held} hold 0")
            new = servers.start(servers.serve())
            faults.tell("held 1")
            if probed:
                # The other machine and the control socket go on. (So would the first one, but that FUSE keeps its writes waiting, too.)
                servers.wait_requests(1)
                assert servers.ask("flush", 1) == {} and new.poll() is None
            servers.wait_refused(new, words)
            servers.wait(servers.control.exists)
            servers.wait_requests(1)
            assert servers.ask("flush", 1) == {}
            faults.tell("clear")
            faults.tell("release")
            servers.wait_requests(0)
            end(servers, old, (first, second))


def test_a_thread_that_is_stuck_in_the_kernel_refuses_a_takeover(tmp_path):
    with small_file_system(tmp_path) as (where, freeze, thaw):
        disk = where / "disk"
        varve("img", "create", "-q", "-f", "raw", disk, "16M")
        with Two(tmp_path, disk) as servers:
            old = servers.start(servers.serve())
            servers.wait(lambda: servers.holder() == old.pid)
            with Load(servers.sockets[0], *WRITES) as first, Load(servers.sockets[1], *WRITES) as second:
                servers.wait_serving(old)
                servers.wait_requests(0)
                freeze()
                servers.wait(lambda: stuck(old))
                new = servers.start(servers.serve())
                servers.wait_refused(new, "its storage does not answer")
                servers.wait_requests(1)
                thaw()
                servers.wait_requests(0)
                end(servers, old, (first, second))


def test_a_disk_that_is_stuck_when_its_machine_ends_keeps_nobody_waiting(tmp_path):
    """--hand-over: it is let go of when it is back; until then the control socket answers."""
    made = make_disk(tmp_path, "raw", "16M")
    with Faultfs(tmp_path / "faults") as faults:
        faults.put(made)
        with Server(tmp_path, "a", faults.disk, "raw") as a:
            with Load(a.socket, *WRITES) as load:
                a.wait_held(True)
                load.wait(lambda: sum(q["write"]["requests"] for q in a.ask("stats")["export"]["queues"]))
                faults.tell("rule fsync 0 0 hold 0")
                load.process.kill()
                faults.tell("held 1")
                assert a.ask("disks")[0]["held"]
            faults.tell("clear")
            faults.tell("release")
            a.wait_held(False)
            a.stop()


def test_a_disk_that_waits_for_its_image_keeps_nobody_from_a_takeover(tmp_path):
    """--hand-over, and somebody else has the image: nothing is to be given away of it, whatever its own attempts come to."""
    disk = tmp_path / "first"
    varve("img", "create", "-q", "-f", "raw", disk, "16M")
    with subprocess.Popen([varve_path(), "io", "-f", "raw", disk], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        try:
            holder.stdin.write("length\n")
            holder.stdin.flush()
            assert holder.stdout.readline()
            with Waiting(tmp_path, disk) as servers:
                old = servers.start(servers.serve())
                servers.wait(lambda: servers.holder() == old.pid)
                with Load(servers.sockets[0], *WRITES) as first, Load(servers.sockets[1], *WRITES) as second:
                    servers.wait_requests(1)
                    servers.wait(lambda: "the guest waits until the image can be had" in servers.text())
                    new = servers.start(servers.serve())
                    servers.wait_end(old, 0)
                    servers.wait_requests(1)
                    assert servers.requests(0) == 0
                    holder.communicate()
                    servers.wait_requests(0)
                    assert first.end()["reconnects"] == 1 and second.end()["reconnects"] == 1
                    new.send_signal(signal.SIGTERM)
                    servers.wait_end(new, 0)
        finally:
            holder.kill()


class Waiting(Two):
    def serve(self):
        args = super().serve()
        return [*args[:6], "--hand-over", *args[6:]]
