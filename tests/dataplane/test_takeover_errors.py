# SPDX-License-Identifier: MIT
"""test_takeover_errors - a request fails on the disk while a server lets go of it, whose guests are not to hear of errors (werror=stop)

Never: leaves a process behind.
"""
import pathlib
import signal

import pytest
from faultfs import Faultfs
from test_control import Control
from test_restart import Load, varve
from test_takeover import Servers

DEPTH = 8


class Failing(Servers):
    """One disk, in a file system that obeys orders."""

    def __init__(self, folder, faults):
        super().__init__(folder)
        self.disk, self.control, self.sockets = faults.disk, folder / "control", [folder / "s.sock"]

    def serve(self):
        return ["serve", "--image-opts", f"driver=raw,file.filename={self.disk},werror=stop", "-t", "none",
                "--vhost-user", self.sockets[0], "--control", self.control]

    def daemon(self):
        return ["daemon", "--blockdev", f"driver=raw,node-name=d,werror=stop,cache=none,file.driver=file,file.filename={self.disk}",
                "--export", f"vhost-user-blk,id=e,node-name=d,addr.type=unix,addr.path={self.sockets[0]},writable=on"]

    def errors(self):
        return Control(self.control)("stats")["image"]["errors"]


@pytest.mark.parametrize("error", [5, 28])
def test_what_fails_while_a_server_lets_go_is_no_error_of_the_guest(tmp_path, error):
    made = tmp_path / "made"
    varve("img", "create", "-q", "-f", "raw", made, "16M")
    with Faultfs(tmp_path / "faults") as faults, Failing(tmp_path, faults) as servers:
        faults.put(made)
        old = servers.start(servers.serve())
        servers.wait(lambda: servers.holder() == old.pid)
        with Load(servers.sockets[0], "--rw", "randrw", "--read-percent", 30, "--depth", DEPTH) as load:
            servers.wait_serving(old)
            for follow in (servers.daemon, servers.serve):
                faults.tell("rule write 0 0 hold 0")
                faults.tell(f"held {DEPTH}")
                faults.tell("clear")
                new = servers.start(follow())
                servers.wait(lambda: new.poll() is not None or not servers.control.exists())
                assert new.poll() is None, servers.text()  # the old one has let go of that, and goes on to its disks
                assert faults.tell(f"fail {error}") == DEPTH
                servers.wait_end(new, 1)
                told = pathlib.Path(new.log.name).read_text().splitlines()
                assert len(told) == 1 and "goes on serving" in told[0] and "an error has stopped it" in told[0], servers.text()
                servers.wait(lambda: servers.errors()["parked-requests"] == DEPTH)
                assert servers.errors()["state"] == "stopped" and servers.errors()["errno"] == error
                # Somebody has seen to the cause, and says so.
                Control(servers.control)("resume")
                servers.wait(lambda: servers.errors()["state"] == "running")
            done = Control(servers.control)("stats")["export"]
            assert done["sessions"] == 1 and sum(q[k]["errors"] for q in done["queues"] for k in ("read", "write", "flush")) == 0
            new = servers.take_over(old, servers.daemon())
            servers.wait_serving(new)
            assert load.end()["reconnects"] == 1
        new.send_signal(signal.SIGTERM)
        servers.wait_end(new, 0)
