# SPDX-License-Identifier: MIT
"""test_hand_over - two servers of one image, one after the other: varve serve --hand-over

The move of a running guest, for which that is made, is in test_guest_trouble.py.
"""
import signal
import subprocess
import time

import pytest
from faultfs import Faultfs
from test_control import Control
from test_restart import MIXED, NEW, SECONDS, Load, Process, make_disk, requests, require_sound, varve

WAITS, GOES_ON = "the guest waits until the image can be had", "the guest goes on"


class Server(Process):
    def __init__(self, folder, name, disk, fmt, *more, options=None):
        self.name, self.control = name, folder / f"{name}.control"
        self.socket = folder / f"{name}.sock"
        image = ("--image-opts", options) if options else (disk, "-f", fmt)
        super().__init__(folder, "serve", *image, "--vhost-user", self.socket, "--num-queues", 2, "--hand-over",
                         "--control", self.control, *more, sockets=(f"{name}.sock", f"{name}.control"))
        self.log.close()
        self.log = open(folder / f"{name}.log", "w+")

    def ask(self, command, **args):
        return Control(self.control)(command, **args)

    def wait_held(self, held):
        deadline = time.monotonic() + SECONDS
        while self.ask("disks")[0]["held"] != held:
            assert time.monotonic() < deadline, self.text()
            time.sleep(0.01)


def is_free(disk, fmt):
    """Whether another program may open the image for writing."""
    done = subprocess.run(["qemu-io", "-f", fmt, "-c", "write 0 512", disk], capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0 or '"write" lock' in done.stderr, done.stderr
    return done.returncode == 0


@pytest.mark.parametrize("fmt", ["qcow2", "raw"])
def test_an_image_goes_from_one_server_to_the_other_and_back(tmp_path, fmt):
    disk = make_disk(tmp_path, fmt, "64M")
    with Server(tmp_path, "a", disk, fmt) as a, Server(tmp_path, "b", disk, fmt, "--state-dir", tmp_path / "state") as b:
        assert is_free(disk, fmt), "a server holds the image although no machine runs"
        for first, second in ((a, b), (b, a), (a, b)):
            with Load(first.socket, *MIXED) as load:
                first.wait_held(True)
                assert not is_free(disk, fmt) and not second.ask("disks")[0]["held"]
                # The second machine starts while the first one runs: it waits, and then finds the image as it was left.
                told, went_on = (second.text().count(words) for words in (WAITS, GOES_ON))
                with Load(second.socket, *MIXED) as waits:
                    waits.wait(lambda: second.text().count(WAITS) > told)
                    load.end()
                    second.wait_held(True)
                    first.wait_held(False)
                    waits.end()
            second.wait_held(False)
            assert is_free(disk, fmt)
            require_sound(disk, fmt)
            assert second.text().count(GOES_ON) == went_on + 1
        a.stop()
        b.stop()


@pytest.mark.parametrize("who", ["front end", "server"])
def test_one_that_dies_waiting_leaves_the_image_alone(tmp_path, who):
    """The move fails: at the target, the machine or its server ends before it had the image. The source goes on, and stops later."""
    disk = make_disk(tmp_path, "qcow2", "64M")
    with Server(tmp_path, "a", disk, "qcow2") as a, Server(tmp_path, "b", disk, "qcow2") as b:
        with Load(a.socket, *MIXED) as load:
            a.wait_held(True)
            with Load(b.socket, *MIXED) as waits:
                waits.wait(lambda: WAITS in b.text())
                if who == "server":
                    b.kill()
                waits.process.kill()
            if who == "server":
                b.start()
            load.wait(lambda: not b.ask("stats")["export"]["connected"])
            assert a.ask("disks")[0]["held"]
            load.end()
        a.wait_held(False)
        assert is_free(disk, "qcow2") and not b.ask("disks")[0]["held"]
        require_sound(disk, "qcow2")
        with Load(b.socket, *MIXED) as load:
            b.wait_held(True)
            load.end()
        a.stop()
        b.stop()
    require_sound(disk, "qcow2")


def test_the_length_and_the_limits_are_those_of_now(tmp_path):
    """Somebody changes the image while nobody has it; and what was set on the control socket holds for the next one, too."""
    disk = make_disk(tmp_path, "qcow2", "64M")
    with Server(tmp_path, "a", disk, "qcow2") as a:
        a.ask("throttle", limits="iops-total=2000")
        varve("img", "resize", "-q", "-f", "qcow2", disk, "128M")
        with Load(a.socket, *MIXED) as load:
            a.wait_held(True)
            assert a.ask("disks")[0]["length"] == 128 << 20
            assert a.ask("throttle")["iops-total"] == 2000
            a.ask("pause")
            a.ask("resume")
            load.end()
        a.wait_held(False)
        assert "error" in a.ask("resize", size="256M"), "an image that it does not have was changed"
        a.stop()


def test_a_killed_server_takes_up_what_it_had_in_flight(tmp_path):
    disk = make_disk(tmp_path, "qcow2", "2G")  # so large that there is something to allocate all the time
    with Server(tmp_path, "a", disk, "qcow2", "--state-dir", tmp_path / "state") as a, Load(a.socket, *MIXED) as load:
        for _ in range(4):
            load.wait(lambda: requests(a.control) >= NEW)
            assert a.ask("disks")[0]["held"]
            time.sleep(0.2)  # whatever is under way then
            a.kill()
            a.start()
        assert load.end()["reconnects"] == 4
        a.wait_held(False)
        a.stop()
        assert "written out from state file" in a.text()
    require_sound(disk, "qcow2")


def test_an_image_that_cannot_be_flushed_is_not_let_go(tmp_path):
    """The next server would miss what the guest was told is there."""
    made = make_disk(tmp_path, "qcow2", "16M")
    with Faultfs(tmp_path / "faults") as faults:
        faults.put(made)
        with Server(tmp_path, "a", faults.disk, "qcow2") as a:
            with Load(a.socket, "--rw", "randwrite", "--queues", 2) as load:
                a.wait_held(True)
                faults.tell("rule fsync 0 0 error 5")
                load.process.send_signal(signal.SIGUSR1)
                load.process.communicate(timeout=SECONDS)  # its flushes fail, too
            deadline = time.monotonic() + SECONDS
            while "the image is not handed over" not in a.text():
                assert time.monotonic() < deadline, a.text()
                time.sleep(0.01)
            assert a.ask("disks")[0]["held"]
            a.kill()


def test_an_image_that_stops_for_errors_says_so_and_does_not_wait(tmp_path):
    """werror=stop is for the guest's requests: the flush before the image is handed over has nobody who would resume it."""
    made = make_disk(tmp_path, "raw", "16M")
    with Faultfs(tmp_path / "faults") as faults:
        faults.put(made)
        options = f"driver=raw,file.filename={faults.disk},werror=stop"
        with Server(tmp_path, "a", "--image-opts", "raw", options=options) as a:
            with Load(a.socket, "--rw", "randwrite", "--queues", 2) as load:
                a.wait_held(True)
                deadline = time.monotonic() + SECONDS
                while not a.ask("stats")["export"]["queues"][0]["write"]["requests"]:
                    assert time.monotonic() < deadline
                faults.tell("rule fsync 0 0 error 5")
                load.process.kill()
            while "the image is not handed over" not in a.text():
                assert time.monotonic() < deadline, a.text()
                time.sleep(0.01)
            assert a.ask("disks")[0]["held"]
            faults.tell("clear")
            a.process.send_signal(signal.SIGTERM)
            assert a.process.wait(SECONDS) == 1, "the kernel has given data up: it has to say so"


@pytest.mark.parametrize("more", [["--read-only"], ["--stream"], ["--prefetch"]])
def test_what_cannot_be_handed_over_is_refused(tmp_path, more):
    disk = make_disk(tmp_path, "qcow2", "64M")
    refused = varve("serve", disk, "--vhost-user", tmp_path / "s", "--hand-over", *more, code=1)
    assert "--hand-over is for disks that are written" in refused.stderr
