# SPDX-License-Identifier: MIT
"""test_takeover_settings - what was set at the control socket holds for the server that takes over

Never: leaves a process behind.
"""
import signal

import pytest
from test_control import Control
from test_restart import Load, varve
from test_takeover import Servers
from unixsock import listens

LIMITS = {"iops-total": 3000, "iops-total-max": 9000, "iops-total-max-length": 2, "bps-write": 40 << 20, "iops-size": 8192}


class Chain(Servers):
    """Servers of one disk, each of which takes over from the one before."""

    def __init__(self, folder):
        super().__init__(folder)
        self.disk, self.control, self.sockets = folder / "disk", folder / "control", [folder / "s.sock"]
        varve("img", "create", "-q", "-f", "qcow2", self.disk, "64M")
        self.last = None

    def __exit__(self, *exc):
        try:
            if exc[0] is None:
                self.last.send_signal(signal.SIGTERM)
                self.wait_end(self.last, 0)
        finally:
            super().__exit__(*exc)

    def serve(self, *more, disk=None, control=True):
        return ["serve", *(disk or [self.disk, "-f", "qcow2"]), "--vhost-user", self.sockets[0], *more,
                *(["--control", self.control] if control else [])]

    def broken(self, *more):
        """Fails when it has been given everything."""
        return self.serve(*more, "--control", self.folder / "none" / "control", control=False)

    def daemon(self, *more, options=""):
        return ["daemon", "--blockdev", f"driver=qcow2,node-name=d,file.driver=file,file.filename={self.disk}{options}", "--export",
                f"vhost-user-blk,id=e,node-name=d,addr.type=unix,addr.path={self.sockets[0]},writable=on", *more]

    def follow(self, argv):
        """The next one serves, and the one before has ended."""
        self.last = self.take_over(self.last, argv) if self.last else self.start(argv)
        self.wait(lambda: self.last.poll() is not None or self.holder() == self.last.pid)
        assert self.last.poll() is None, self.text()

    def refused(self, argv, words):
        had = self.control.exists()
        new = self.start(argv)
        self.wait_end(new, 1)
        self.wait(lambda: not had or listens(self.control, self.last.pid))  # it had let go of that, too
        assert words in self.text(), self.text()
        assert self.last.poll() is None and self.holder() == self.last.pid

    def ask(self, command, **args):
        return Control(self.control)(command, **args)


def text(limits):
    return ",".join(f"{k}={v}" for k, v in limits.items())


@pytest.mark.parametrize("more", [[], ["--hand-over"]])
def test_limits_go_along_until_a_command_line_names_some(tmp_path, more):
    with Chain(tmp_path) as chain:
        chain.follow(chain.serve("--throttle", "iops-read=77", *more))
        chain.follow(chain.serve(*more))
        assert chain.ask("throttle") == {}, "what only the command line of the one before says went along"
        assert chain.ask("throttle", limits=text(LIMITS)) == LIMITS
        # Through those that have no control socket; and one that would not start leaves them.
        chain.follow(chain.daemon(*more))
        chain.follow(chain.serve(*more, control=False))
        chain.refused(chain.broken(*more), "cannot make the control socket")
        chain.follow(chain.serve(*more))
        assert chain.ask("throttle") == LIMITS
        with Load(chain.sockets[0], "--rw", "randwrite") as load:
            load.wait_written(chain.disk)
            assert chain.ask("throttle") == LIMITS  # with --hand-over, of another image than before
            load.end()
        chain.follow(chain.serve("--throttle", "iops-write=55", *more))
        assert chain.ask("throttle") == {"iops-write": 55}
        # What holds since then is what its command line said; what is set now is the next one's.
        assert chain.ask("throttle", limits="") == {}
        chain.follow(chain.serve(*more))
        assert chain.ask("throttle") == {}


@pytest.mark.parametrize("named", ["--throttle", "image-opts", "json", "daemon"])
def test_a_command_line_can_say_that_there_are_no_limits(tmp_path, named):
    with Chain(tmp_path) as chain:
        chain.follow(chain.serve())
        chain.ask("throttle", limits=text(LIMITS))
        if named == "daemon":
            chain.follow(chain.daemon(options=",throttling.iops-total=0"))
            chain.follow(chain.serve())
        else:
            file = f'"file": {{"driver": "file", "filename": "{chain.disk}"}}'
            chain.follow({"--throttle": chain.serve("--throttle", "iops-total=0"),
                          "image-opts": chain.serve("--image-opts", disk=[f"driver=qcow2,throttling.iops-total=0,file.filename={chain.disk}"]),
                          "json": chain.serve(disk=[f'json:{{"driver": "qcow2", "throttling": {{"iops-total": 0}}, {file}}}'])}[named])
        assert chain.ask("throttle") == {}


def test_a_name_with_such_words_names_no_limits(tmp_path):
    """A comma that is part of a name is written twice."""
    with Chain(tmp_path) as chain:
        chain.disk = chain.disk.rename(tmp_path / "a,throttling.iops-total=0")
        doubled = str(chain.disk).replace(",", ",,")
        chain.follow(chain.serve())
        chain.ask("throttle", limits=text(LIMITS))
        chain.follow(chain.serve("--image-opts", disk=[f"driver=qcow2,file.filename={doubled}"]))
        assert chain.ask("throttle") == LIMITS


@pytest.mark.parametrize("more", [[], ["--hand-over"]])
def test_a_paused_disk_stays_paused_until_somebody_resumes_it(tmp_path, more):
    with Chain(tmp_path) as chain:
        chain.follow(chain.serve(*more))
        with Load(chain.sockets[0], "--rw", "randwrite", "--queues", 1) as load:
            load.wait_written(chain.disk)
            chain.ask("pause")
            # Those would leave a guest that waits for ever.
            chain.refused(chain.daemon(*more), "somebody has paused it; ask again when it has been resumed, or with --control")
            chain.refused(chain.serve(*more, control=False), "somebody has paused it")
            chain.refused(chain.broken(*more), "cannot make the control socket")
            assert chain.ask("disks")[0]["paused"]
            for _ in range(2):
                chain.follow(chain.serve(*more))
                chain.wait(lambda: chain.ask("stats")["export"]["connected"])
                assert chain.ask("disks")[0]["paused"] and chain.ask("stats")["export"]["paused"]
            for _ in range(20):
                assert chain.ask("stats")["export"]["queues"][0]["write"]["requests"] == 0
            chain.ask("resume")
            chain.wait(lambda: chain.ask("stats")["export"]["queues"][0]["write"]["requests"] > 0)
            assert not chain.ask("disks")[0]["paused"]
            chain.follow(chain.daemon(*more))
            assert load.end()["reconnects"] == 3
