# SPDX-License-Identifier: MIT
"""test_serve.py - `varve serve` as operators use it: several disks, and the control socket"""
import concurrent.futures
import contextlib
import json
import os
import signal
import socket
import subprocess
import time

import pytest
from faultfs import Faultfs
from test_vublk import SECONDS, VARVE, varve
from unixsock import listens


class Control:
    """A connection to the control socket."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(SECONDS)
        self.socket.connect(str(path))
        self.lines = self.socket.makefile("rb")

    def raw(self, text):
        self.socket.sendall(text)
        return json.loads(self.lines.readline())

    def __call__(self, command, **args):
        answer = self.raw(json.dumps({"command": command, "id": 42, **args}).encode() + b"\n")
        assert answer.pop("id") == 42 and len(answer) == 1, answer
        return answer["return"] if "return" in answer else answer


class Serve:
    """varve serve with some disks: (file, options...) each; stopped cleanly at the end."""

    def __init__(self, directory, *disks, options=()):
        self.directory, self.control = directory, directory / "control"
        self.sockets = [directory / f"{i}.sock" for i in range(len(disks))]
        self.log = open(directory / "serve.log", "w+")
        self.argv = [VARVE, "serve"]
        for i, (disk, *opts) in enumerate(disks):
            self.argv += (["--and"] if i else []) + [disk, "--vhost-user", self.sockets[i], *opts]
        self.argv += ["--control", self.control, *options]

    def __enter__(self):
        self.process = subprocess.Popen(list(map(str, self.argv)), stdout=self.log, stderr=self.log)
        deadline = time.monotonic() + SECONDS
        while not listens(self.control, self.process.pid):  # it is made after the others
            assert self.process.poll() is None and time.monotonic() < deadline, self.text()
            time.sleep(0.01)
        return self

    def __exit__(self, kind, *_):
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(SECONDS)
        finally:
            self.process.kill()
        text = self.text()
        self.log.close()
        if kind is None:
            assert code == 0, f"varve serve ended with {code}: {text}"
            assert not self.control.exists() and not any(s.exists() for s in self.sockets)

    def text(self):
        self.log.flush()
        self.log.seek(0)
        return self.log.read()

    def ask(self):
        return Control(self.control)

    def load(self, disk, *options):
        done = subprocess.run([VARVE, "blkload", "--socket", self.sockets[disk], "--output", "json", "--timeout", str(SECONDS // 2),
                               *map(str, options)], capture_output=True, text=True, timeout=SECONDS)
        assert done.returncode == 0, f"{done.stderr}\n{done.stdout}\nserver: {self.text()}"
        return json.loads(done.stdout)


@contextlib.contextmanager
def background():
    """submit(): calls what it is given in a thread; result() of what it returns tells what that has returned or raised."""
    with concurrent.futures.ThreadPoolExecutor() as pool:
        yield pool


def wait_pidfile(path, process):
    """Until the process has written its number there: its sockets, the control socket too, are there a moment before."""
    deadline = time.monotonic() + SECONDS
    while not path.exists() or path.read_text() != f"{process.pid}\n":
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)


def images(directory, nr, size="64M"):
    names = [directory / f"{i}.qcow2" for i in range(nr)]
    for name in names:
        varve("img", "create", "-q", "-f", "qcow2", name, size)
    return names


def test_several_disks_in_one_process(tmp_path):
    a, b, c = images(tmp_path, 3)
    with Serve(tmp_path, (a, "-f", "qcow2", "--num-queues", 2, "--name", "system"), (b, "-f", "qcow2", "--serial", "second"),
               (c, "-f", "qcow2", "-r"), options=["--pidfile", tmp_path / "pid"]) as s:
        wait_pidfile(tmp_path / "pid", s.process)
        with background() as pool:
            loads = [pool.submit(s.load, i, "--rw", "randrw", "--verify", "--ops", 2000, "--queues", 2 - i) for i in range(2)]
            disks = s.ask()("disks")
            assert [d["disk"] for d in disks] == ["system", "1", "2"]
            assert [d["read-only"] for d in disks] == [False, False, True]
            assert all(d["length"] == 64 << 20 and d["format"] == "qcow2" for d in disks)
            for load in loads:
                load.result()
        for disk, queues in (("system", 2), ("1", 1)):
            stats = s.ask()("stats", disk=disk)["export"]
            assert len(stats["queues"]) == queues
            assert all(q["write"]["requests"] > 100 and q["write"]["errors"] == 0 for q in stats["queues"])
    for name in (a, b):
        checked = json.loads(varve("img", "check", "--output=json", "-f", "qcow2", name))
        assert not checked.get("leaks") and not checked.get("corruptions") and not checked["check-errors"]


@pytest.mark.parametrize("argv, why", [
    (["a", "--vhost-user", "x", "--and"], "one disk is needed behind each --and"),
    (["a", "--vhost-user", "x", "--and", "b"], "b: --vhost-user SOCKET is needed"),
    (["a", "--vhost-user", "x", "--name", "d", "--and", "b", "--vhost-user", "y", "--name", "d"], "two disks are called 'd'"),
    (["a", "--vhost-user", "x", "--name", "1", "--and", "b", "--vhost-user", "y"], "two disks are called '1'"),
])
def test_groups_of_options_that_cannot_be(tmp_path, argv, why):
    done = subprocess.run([VARVE, "serve", *argv], capture_output=True, text=True, timeout=SECONDS, cwd=tmp_path)
    assert done.returncode == 1 and why in done.stderr


def test_statistics_count_every_request(tmp_path):
    disk, = images(tmp_path, 1)
    with Serve(tmp_path, (disk, "-f", "qcow2")) as s:
        ask = s.ask()
        before = ask("stats")["export"]
        assert before["sessions"] == 0 and not before["connected"] and before["queues"][0]["read"]["requests"] == 0
        s.load(0, "--rw", "randwrite", "--ops", 1000)
        s.load(0, "--rw", "randread", "--ops", 500)
        after = ask("stats")["export"]
        queue = after["queues"][0]
        assert after["sessions"] == 2
        assert queue["write"]["requests"] == 1000 and queue["write"]["bytes"] == 1000 * 4096
        assert queue["read"]["requests"] == 500
        # A kick, a call and a turn may serve many requests. The first request finds the server asleep: it has to be kicked.
        loop = queue["loop"]
        assert 1 <= queue["kicks"] <= 1500 + 16 and 1 <= queue["calls"] <= 1500 + 16
        assert 1 <= loop["sleeps"] <= loop["turns"] and loop["spins-paid"] <= loop["spins"]
        latency = queue["read"]["latency-ns"]
        assert sum(n for _, n in latency["histogram"]) == 500
        assert 0 < latency["p50"] <= latency["p90"] <= latency["p99"] <= latency["p99.9"] <= latency["max"]


def test_pause_and_resume(tmp_path):
    disk, = images(tmp_path, 1)
    with Serve(tmp_path, (disk, "-f", "qcow2")) as s:
        ask = s.ask()
        assert ask("pause") == {} and ask("pause") == {}
        with background() as pool:
            load = pool.submit(s.load, 0, "--rw", "randwrite", "--ops", 100, "--verify")
            wait_until(lambda: ask("stats")["export"]["connected"])
            for _ in range(20):
                stats = ask("stats")["export"]
                assert stats["paused"] and stats["queues"][0]["write"]["requests"] == 0 and not load.done()
            assert ask("flush") == {}
            assert ask("resume") == {} and ask("resume") == {}
            load.result()
        ask("pause")  # and SIGTERM ends it all the same


def test_limits_slow_a_disk_down_and_can_be_changed(tmp_path):
    a, b = images(tmp_path, 2)
    with Serve(tmp_path, (a, "-f", "qcow2", "--num-queues", 2, "--throttle", "iops-total=200"), (b, "-f", "qcow2")) as s:
        ask = s.ask()
        assert ask("throttle", disk="0") == {"iops-total": 200} and ask("throttle", disk="1") == {}
        began = time.monotonic()
        s.load(0, "--rw", "randwrite", "--ops", 200, "--queues", 2)
        took = time.monotonic() - began
        assert took > 0.8, took
        s.load(1, "--rw", "randwrite", "--ops", 2000)
        # What would take half an hour does not, when the limit goes.
        assert ask("throttle", disk="0", limits="iops-total=1") == {"iops-total": 1}
        assert ask("throttle", disk="0", limits="") == {}
        s.load(0, "--rw", "randwrite", "--ops", 2000)
        limits = {"bps-write": 1 << 20, "bps-write-max": 2 << 20, "bps-write-max-length": 3, "iops-size": 4096}
        assert ask("throttle", disk="1", limits=",".join(f"{k}={v}" for k, v in limits.items())) == limits
        for bad, why in (("iops=1", "iops"), ("iops-total-max=1", "beside it"), ("bps-total=x", "x")):
            assert why in ask("throttle", disk="1", limits=bad)["error"]
        assert "must be a string" in ask("throttle", disk="1", limits=7)["error"]
        assert ask("throttle", disk="1") == limits
        # A disk that would need minutes for what waits still ends at once.
        ask("throttle", disk="0", limits="iops-total=1")
        load = subprocess.Popen([VARVE, "blkload", "--socket", s.sockets[0], "--rw", "randwrite", "--ops", "1000"],
                                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + SECONDS
        while not ask("stats", disk="0")["export"]["connected"]:
            assert time.monotonic() < deadline
    # It took less than SECONDS.
    load.wait(SECONDS)


@pytest.mark.parametrize("poll", [["--poll-us", 200], ["--poll-us", "auto"], ["--poll-us", 0]])
@pytest.mark.parametrize("ring", [[], ["--event-idx", "off"], ["--poll"]])
def test_queues_that_spin_lose_no_request(tmp_path, poll, ring):
    disk, = images(tmp_path, 1)
    with Serve(tmp_path, (disk, "-f", "qcow2", "--num-queues", 2, *poll)) as s:
        for depth in (1, 16):
            s.load(0, "--rw", "randrw", "--verify", "--ops", 1000, "--queues", 2, "--depth", depth, *ring)
        s.ask()("pause")
        s.ask()("resume")
        s.load(0, "--rw", "randread", "--ops", 100, *ring)


def test_threads_run_where_they_are_told(tmp_path):
    disk, = images(tmp_path, 1)
    last = max(os.sched_getaffinity(0))
    with Serve(tmp_path, (disk, "-f", "qcow2", "--num-queues", 3, "--cpus", f"{last}:0-{last}")) as s:
        where = {}
        for task in os.listdir(f"/proc/{s.process.pid}/task"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # other threads come and go
                name = open(f"/proc/{s.process.pid}/task/{task}/comm").read().strip()
                where[name] = os.sched_getaffinity(int(task))
        assert where["varve-vq0"] == where["varve-vq2"] == {last}
        assert where["varve-vq1"] == os.sched_getaffinity(0)
        s.load(0, "--rw", "randwrite", "--ops", 100)
    for bad in ("x", "0-", "9999"):
        done = subprocess.run([VARVE, "serve", disk, "--vhost-user", tmp_path / "x", "--cpus", bad], capture_output=True,
                              text=True, timeout=SECONDS)
        assert done.returncode == 1 and "--cpus" in done.stderr
    done = subprocess.run([VARVE, "serve", disk, "--vhost-user", tmp_path / "x", "--poll-us", "often"], capture_output=True,
                          text=True, timeout=SECONDS)
    assert done.returncode == 1 and "'often' is neither" in done.stderr


# Beyond what one system call, one bounce buffer or one cluster takes; cut where no sector ends.
@pytest.mark.parametrize("options", [["--layout", "random"], ["--segment-size", 999 << 10], []])
@pytest.mark.parametrize("kind, cache", [("raw", "none"), ("qcow2", "none"), ("qcow2", "writeback")])
def test_requests_of_many_megabytes(tmp_path, kind, cache, options):
    disk = tmp_path / "disk"
    varve("img", "create", "-q", "-f", kind, disk, "128M")
    with Serve(tmp_path, (disk, "-f", kind, "--cache", cache)) as s:
        s.load(0, "--rw", "randrw", "--block-size", "4M", "--depth", 2, "--ops", 40, "--verify", *options)


def test_what_is_no_command_is_answered_with_an_error(tmp_path):
    a, b = images(tmp_path, 2)
    with Serve(tmp_path, (a, "-f", "qcow2"), (b, "-f", "qcow2")) as s:
        ask = s.ask()
        assert set(ask("help")) >= {"help", "disks", "stats", "pause", "resume"}
        assert "no command" in ask("halt")["error"]
        assert "which disk" in ask("stats")["error"]
        assert "which disk" in ask("stats", disk=1)["error"]
        assert 'no disk "x"' in ask("stats", disk="x")["error"]
        assert 'does not take "disk"' in ask("disks", disk="0")["error"]
        assert 'does not take "force"' in ask("pause", disk="0", force=True)["error"]
        assert "not JSON" in ask.raw(b"{\n")["error"]
        assert "not JSON" in ask.raw(b"\0\xff\n")["error"]
        assert "JSON object" in ask.raw(b"[1]\n")["error"]
        assert "JSON object" in ask.raw(b"{}\n")["error"]
        # Two lines at once, and one in pieces.
        ask.socket.sendall(b'{"command":"disks","id":[1]}\n{"comm')
        assert json.loads(ask.lines.readline())["id"] == [1]
        assert "return" in ask.raw(b'and":"disks"}\n')
        # A line without end, and one who asks without ever reading, are got rid of or waited for by nobody.
        flood = s.ask()
        with pytest.raises(OSError):
            for _ in range(100):
                flood.socket.sendall(b" " * 4096)
        deaf = s.ask()
        deaf.socket.settimeout(1)
        with pytest.raises(OSError):
            while True:
                deaf.socket.sendall(b'{"command":"help"}\n' * 1000)
        assert len(ask("disks")) == 2


def test_the_control_socket_is_its_owners_alone_and_replaces_a_dead_one(tmp_path):
    disk, = images(tmp_path, 1)
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(tmp_path / "control"))
    dead.close()
    server = Serve(tmp_path, (disk, "-f", "qcow2"), options=["--pidfile", tmp_path / "pid"])
    server.__enter__()
    wait_pidfile(tmp_path / "pid", server.process)
    assert os.stat(server.control).st_mode & 0o777 == 0o600
    other = subprocess.run([VARVE, "serve", disk, "-r", "--vhost-user", tmp_path / "y", "--control", server.control],
                           capture_output=True, text=True, timeout=SECONDS)
    assert other.returncode == 1
    server.__exit__(None)
    (tmp_path / "control").write_text("")
    other = subprocess.run([VARVE, "serve", disk, "--vhost-user", tmp_path / "y", "--control", tmp_path / "control"],
                           capture_output=True, text=True, timeout=SECONDS)
    assert other.returncode == 1 and "exists and is not a socket" in other.stderr
    assert not (tmp_path / "y").exists()


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
def test_a_disk_gets_longer_while_it_is_written(tmp_path, kind):
    disk = tmp_path / "disk"
    varve("img", "create", "-q", "-f", kind, disk, "16M")
    with Serve(tmp_path, (disk, "-f", kind)) as s:
        ask = s.ask()
        with background() as pool:
            load = pool.submit(s.load, 0, "--rw", "randrw", "--verify", "--ops", 3000)
            for mib in (17, 20, 64, 64):
                assert ask("resize", size=mib << 20) == {"length": mib << 20}
            load.result()
        assert "shrink" in ask("resize", size="1M")["error"]
        assert "true or false" in ask("resize", size="1M", shrink="yes")["error"]
        assert "must be a number" in ask("resize", size="much")["error"]
        assert "must be a number" in ask("resize")["error"]
        assert ask("resize", size="65M") == {"length": 65 << 20}
        s.load(0, "--rw", "randwrite", "--verify", "--ops", 200, "--offset", "60M")
    assert json.loads(varve("img", "info", "--output=json", "-f", kind, disk))["virtual-size"] == 65 << 20
    if kind == "qcow2":
        varve("img", "check", "-f", "qcow2", disk)


# ---- commands that wait, on a disk that an error has stopped (werror=stop) ----

class Stopped:
    """A disk that is being written, whose file takes nothing any more. pytest's `with`; .serve, .faults.

    All writes that are under way have failed: one that fails later, after somebody has resumed the disk, stops it again.
    """

    DEPTH = 16

    def __init__(self, directory):
        self.directory = directory

    def __enter__(self):
        made = self.directory / "made"
        varve("img", "create", "-q", "-f", "raw", made, "16M")
        with contextlib.ExitStack() as stack:
            self.faults = stack.enter_context(Faultfs(self.directory / "faults"))
            self.faults.put(made)
            self.faults.tell("rule write 100 0 error 28")
            self.serve = stack.enter_context(
                Serve(self.directory, ("--image-opts", f"driver=raw,file.filename={self.faults.disk},werror=stop")))
            self.load = stack.enter_context(subprocess.Popen(
                [VARVE, "blkload", "--socket", self.serve.sockets[0], "--rw", "randwrite", "--verify", "--ops", "500",
                 "--depth", str(self.DEPTH), "--timeout", str(SECONDS // 2)],
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
            stack.callback(self.load.kill)
            ask = self.serve.ask()
            wait_until(lambda: ask("stats")["image"]["errors"]["parked-requests"] == self.DEPTH)
            assert ask("stats")["image"]["errors"]["state"] == "stopped"
            self.stack = stack.pop_all()
        return self

    def __exit__(self, *exc):
        return self.stack.__exit__(*exc)


def wait_until(what):
    deadline = time.monotonic() + SECONDS
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)  # a control socket answers; it does not tell


@pytest.mark.parametrize("command", ["pause", "flush"])
def test_a_command_that_waits_for_a_stopped_disk_leaves_others_their_say(tmp_path, command):
    with Stopped(tmp_path) as at:
        waiting, gone, behind, ask = (at.serve.ask() for _ in range(4))
        waiting.socket.sendall(json.dumps({"command": command, "id": 1}).encode() + b'\n{"command": "disks", "id": 2}\n')
        behind.socket.sendall(b'{"command": "snapshots", "id": 3}\n')
        gone.socket.sendall(b'{"command": "flush"}\n')
        gone.socket.close()
        gone.lines.close()
        assert len(ask("disks")) == 1 and ask("stats")["image"]["errors"]["state"] == "stopped"
        waiting.socket.setblocking(False)
        with pytest.raises(BlockingIOError):
            waiting.socket.recv(1)
        waiting.socket.settimeout(SECONDS)
        # Somebody has made room: resume sends what waits, and all get their answers, each in its order.
        at.faults.tell("clear")
        assert ask("resume") == {}
        assert json.loads(waiting.lines.readline()) == {"return": {}, "id": 1}
        assert json.loads(waiting.lines.readline())["id"] == 2
        assert json.loads(behind.lines.readline())["id"] == 3
        ask("resume")
        assert not ask("disks")[0]["paused"]
        assert at.load.wait(SECONDS) == 0, at.load.stdout.read()


@pytest.mark.parametrize("command", ["pause", "flush"])
def test_a_command_that_waits_does_not_keep_the_server_from_ending(tmp_path, command):
    with Stopped(tmp_path) as at:
        waiting, ask = at.serve.ask(), at.serve.ask()
        waiting.socket.sendall(json.dumps({"command": command}).encode() + b"\n")
        ask("disks")
        at.serve.process.send_signal(signal.SIGTERM)
        assert at.serve.process.wait(SECONDS) == 0, at.serve.text()


def test_errors_are_answered_whatever_words_are_in_them(tmp_path):
    """A word of letters of two bytes each, cut in the middle of one."""
    disk, = images(tmp_path, 1)
    with Serve(tmp_path, (disk, "-f", "qcow2")) as s:
        for word in ("a" + "\u00e9" * 150, "\u00e9" * 150):
            assert "there is no command" in s.ask()(word)["error"]
