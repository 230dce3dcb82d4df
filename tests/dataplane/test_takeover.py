# SPDX-License-Identifier: MIT
"""test_takeover - --takeover of varve serve and varve daemon: the old one lets go of nothing before the new one has it

Two disks under verified load all the time. Kills are at system calls of the main thread, which carries the conversation, and of those that
let go of the disks: what has been done by then is known, and no clock has a say.

Never: leaves a process behind.
"""
import json
import os
import pathlib
import resource
import signal
import socket
import subprocess
import time

import pytest
from test_restart import MIXED, SECONDS, TOO_SLOW, Load, make_disk, require_sound, varve, VARVE
from unixsock import connections


def serve(folder, *more, disk="disk", fmt="qcow2", queues=2, state="state", second=True):
    return ["serve", folder / disk, "-f", fmt, "--vhost-user", folder / "e0.sock", "--num-queues", queues, *more,
            *(["--and", folder / "second", "-f", "raw", "--vhost-user", folder / "e1.sock", "--num-queues", 2] if second else []),
            "--state-dir", folder / state]


def daemon(folder, *more, disk="disk", fmt="qcow2", queues=2, state="state", second=True, writable="on"):
    return ["daemon", "--blockdev", f"driver=file,node-name=f0,filename={folder}/{disk}",
            "--blockdev", f"driver={fmt},node-name=d0,file=f0,discard=unmap",
            "--blockdev", json.dumps({"driver": "raw", "node-name": "d1", "file": {"driver": "file", "filename": f"{folder}/second"}}),
            "--object", "iothread,id=t0",
            "--export", f"vhost-user-blk,id=e0,node-name=d0,addr.type=unix,addr.path={folder}/e0.sock,writable={writable},num-queues={queues}",
            *(["--export", f"vhost-user-blk,id=e1,node-name=d1,addr.type=unix,addr.path={folder}/e1.sock,writable=on,num-queues=2,"
               "iothread=t0"] if second else []), "--state-dir", folder / state, *more]


class Servers:
    """Processes that follow one another at one pidfile; all are dead at the end."""

    def __init__(self, folder):
        self.folder, self.pidfile, self.started = folder, folder / "pid", []
        self.sockets = [folder / "e0.sock", folder / "e1.sock"]

    def start(self, argv, *before, **how):
        log = open(self.folder / f"{len(self.started)}.log", "w+")
        p = subprocess.Popen([*map(str, before), str(VARVE), *map(str, argv), "--pidfile", str(self.pidfile), "--takeover"], cwd=self.folder,
                             stdout=log, stderr=log, **how)
        p.log = log
        self.started.append(p)
        return p

    def text(self):
        for p in self.started:
            p.log.flush()
        return "".join(f"-- {p.pid}:\n{pathlib.Path(p.log.name).read_text()}" for p in self.started)

    def wait(self, what):
        deadline = time.monotonic() + SECONDS
        while not what():
            assert time.monotonic() < deadline, self.text()
            time.sleep(0.002)

    def holder(self):
        try:
            return int(self.pidfile.read_text() or 0)
        except FileNotFoundError:
            return 0

    def serves(self, p):
        """It is the one at the pidfile, and both front ends are connected to it."""
        return self.holder() == p.pid and all(connections(s, p.pid) == 1 for s in self.sockets)

    def wait_serving(self, p):
        self.wait(lambda: p.poll() is not None or self.serves(p))
        assert p.poll() is None, self.text()

    def wait_end(self, p, status):
        assert p.wait(SECONDS) == status, self.text()

    def too_slow(self, p):
        """It was refused for that reason alone: it has to be started again, as it says."""
        return p.poll() == 1 and TOO_SLOW in pathlib.Path(p.log.name).read_text()

    def take_over(self, old, argv):
        """Another one takes over; the old one has ended then."""
        for _ in range(10):
            new = self.start(argv)
            self.wait(lambda p=new: old.poll() is not None or p.poll() is not None)
            if not self.too_slow(new):
                break
        assert old.poll() is not None, self.text()
        self.wait_end(old, 0)
        return new

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for p in self.started:
            if p.poll() is None:
                p.kill()
            p.wait()
            p.log.close()


def make_disks(folder):
    varve("img", "create", "-q", "-f", "raw", folder / "second", "64M")
    # So large that there is something to allocate all the time.
    return make_disk(folder, "qcow2", "1G")


class Loads:
    def __init__(self, servers):
        self.all = [Load(s, *MIXED) for s in servers.sockets]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for load in self.all:
            load.__exit__()

    def wait_work(self, folder):
        """Until both have come so far that a server which goes away is one that went away: something of theirs is in the disks."""
        for load, name in zip(self.all, ("disk", "second")):
            load.wait_written(folder / name)

    def end(self):
        return [load.end() for load in self.all]


def test_servers_and_daemons_follow_one_another_and_the_sockets_stay(tmp_path):
    disk = make_disks(tmp_path)
    with Servers(tmp_path) as servers:
        old = servers.start(serve(tmp_path))
        servers.wait(lambda: servers.holder() == old.pid)
        names = [os.stat(s).st_ino for s in servers.sockets]
        with Loads(servers) as loads:
            servers.wait_serving(old)
            loads.wait_work(tmp_path)
            for kind in (daemon, daemon, serve, serve, daemon):
                new = servers.take_over(old, kind(tmp_path))
                servers.wait_serving(new)
                assert [os.stat(s).st_ino for s in servers.sockets] == names
                old = new
            # Who is on his way to one server when it is followed by the next has come once.
            assert all(1 <= r["reconnects"] <= 5 for r in loads.end())
        old.send_signal(signal.SIGTERM)
        servers.wait_end(old, 0)
        assert not any(s.exists() for s in (*servers.sockets, servers.pidfile))
        # Not one of them had anything to say.
        assert [line for line in servers.text().splitlines() if not line.startswith("-- ") and TOO_SLOW not in line] == []
    require_sound(disk, "qcow2")


MISFITS = [
    (serve, {"second": False}, "nothing is to be served at"),
    (daemon, {"second": False}, "nothing is to be served at"),
    (serve, {"disk": "other"}, "has another image"),
    (daemon, {"disk": "other"}, "has another image"),
    (serve, {"fmt": "raw"}, "has format raw, now qcow2"),
    (daemon, {"queues": 1}, "has 1 queues, now 2"),
    (serve, {"queues": 3}, "has 3 queues, now 2"),
    (daemon, {"writable": "off"}, "is writable now"),
    # Which is found out before anybody is asked.
    (daemon, {"fmt": "qed"}, "no QED image"),
    (serve, {"disk": "none"}, "No such file"),
    # And these when the old one has let go of its images, and takes them back.
    (serve, {"state": "second/none"}, "state directory"),
    (daemon, {"state": "second/none"}, "state directory"),
]


@pytest.mark.parametrize("first", [serve, daemon])
def test_one_that_does_not_fit_or_cannot_open_leaves_the_old_one_serving(tmp_path, first):
    disk = make_disks(tmp_path)
    varve("img", "create", "-q", "-f", "qcow2", tmp_path / "other", "1G")
    with Servers(tmp_path) as servers:
        old = servers.start(first(tmp_path))
        servers.wait(lambda: servers.holder() == old.pid)
        with Loads(servers) as loads:
            servers.wait_serving(old)
            loads.wait_work(tmp_path)
            for new, change, words in MISFITS:
                for _ in range(10):
                    other = servers.start(new(tmp_path, **change))
                    servers.wait_end(other, 1)
                    if not servers.too_slow(other):
                        break
                told = pathlib.Path(other.log.name).read_text().splitlines()
                assert len(told) == 1 and words in told[0], servers.text()
                servers.wait_serving(old)
            assert [r["reconnects"] for r in loads.end()] == [0, 0], "the front ends noticed"
        old.send_signal(signal.SIGTERM)
        servers.wait_end(old, 0)
        assert not any(s.exists() for s in (*servers.sockets, servers.pidfile))
    require_sound(disk, "qcow2")


def name_taken(listens):
    """For preexec_fn: somebody else, of another user, was faster than the process at the name where it is to be asked. (It is itself,
    for a moment: nobody else knows its number.)"""
    def take():
        held = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        held.bind(f"\0varve-takeover-{os.getpid()}")
        if listens:
            os.seteuid(65534)
            held.listen()
            os.seteuid(0)
        os.set_inheritable(held.detach(), True)
    return take


@pytest.mark.parametrize("listens", [False, True])
@pytest.mark.parametrize("kind", [serve, daemon])
def test_one_that_cannot_be_asked_serves_and_is_followed_all_the_same(tmp_path, kind, listens):
    """It is told to end, then; and whoever waits for that can be told to end, too."""
    disk = make_disks(tmp_path)
    with Servers(tmp_path) as servers:
        old = servers.start(kind(tmp_path), preexec_fn=name_taken(listens), close_fds=False)
        servers.wait(lambda: servers.holder() == old.pid)
        with Loads(servers) as loads:
            servers.wait_serving(old)
            loads.wait_work(tmp_path)
            assert f"warning: --pidfile: cannot make the socket @varve-takeover-{old.pid}" in servers.text()
            old.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, old.pid, os.WSTOPPED | os.WNOWAIT)
            impatient = servers.start(kind(tmp_path))
            servers.wait(lambda: pending(old.pid, signal.SIGTERM))
            impatient.send_signal(signal.SIGTERM)
            servers.wait_end(impatient, 1)
            new = servers.start(kind(tmp_path))
            old.send_signal(signal.SIGCONT)
            servers.wait_end(old, 0)
            servers.wait_serving(new)
            assert [r["reconnects"] for r in loads.end()] == [1, 1]
        new.send_signal(signal.SIGTERM)
        servers.wait_end(new, 0)
    require_sound(disk, "qcow2")


def pending(pid, number):
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return any(int(line.split()[1], 16) >> (number - 1) & 1 for line in status.splitlines() if line.startswith("ShdPnd"))


def test_with_few_descriptors_one_of_them_serves(tmp_path):
    """Whatever cannot be opened, accepted or passed on for want of them: nobody waits for the other for ever."""
    make_disks(tmp_path)
    ends = []
    with Servers(tmp_path) as servers:
        old = servers.start(serve(tmp_path))
        servers.wait(lambda: servers.holder() == old.pid)
        for most in range(8, 90):
            new = servers.start(serve(tmp_path), preexec_fn=lambda n=most: resource.setrlimit(resource.RLIMIT_NOFILE, (n, n)))
            servers.wait(lambda: new.poll() is not None or servers.holder() == new.pid)
            if servers.holder() == new.pid:
                servers.wait_end(old, 0)
                old = new
            else:
                servers.wait_end(new, 1)
                assert old.poll() is None and servers.holder() == old.pid, servers.text()
            ends.append(old is new)
        assert not ends[0] and any(ends), servers.text()
        for path in servers.sockets:
            loaded = subprocess.run([VARVE, "blkload", "--socket", path, "--ops", "100"], capture_output=True, timeout=SECONDS)
            assert loaded.returncode == 0, loaded.stderr
        old.send_signal(signal.SIGTERM)
        servers.wait_end(old, 0)


# What the main thread does on its way, in order; of calls that it makes often, the one of that number.
NEW_DOES = [("connect", 1), ("getsockopt", 1), ("sendmsg", 1), ("poll", 1), ("recvmsg", 1), ("futex", 20), ("futex", 30), ("futex", 40),
            ("futex", 50), ("bind", 1), ("listen", 1), ("pwrite64", 1), ("ftruncate", 1), ("sendmsg", 2)]
# It probes and closes each of two disks on a thread of its own.
OLD_DOES = [("accept4", 1), ("recvmsg", 1), ("clone3", 1), ("clone3", 2), ("clone3", 3), ("clone3", 4), ("sendmsg", 1), ("recvmsg", 2)]
# Any thread, whoever is the first to come to it: the images are let go of.
OLD_THREADS_DO = [("futex", 2), ("futex", 4), ("futex", 8), ("openat", 1), ("openat", 2), ("close", 1)]


def strace(call, number, *more):
    return ["strace", "-I2", "-o", "/dev/null", "-e", f"trace={call}", "-e", f"inject={call}:signal=SIGKILL:when={number}", *more]


def leave_alone(pid):
    """The tracer of a process goes, if there is one: a call that it did not come to ends nobody later."""
    def tracer():
        try:
            status = pathlib.Path(f"/proc/{pid}/status").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return 0
        return int(status.split("TracerPid:")[1].split()[0])

    deadline = time.monotonic() + SECONDS
    while found := tracer():
        try:
            os.kill(found, signal.SIGTERM)
        except ProcessLookupError:
            pass
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_either_side_is_killed_at_any_step_and_the_other_goes_on(tmp_path):
    disk = make_disks(tmp_path)
    with Servers(tmp_path) as servers:
        old = servers.start(serve(tmp_path))
        servers.wait(lambda: servers.holder() == old.pid)
        kinds, ends = [daemon, serve], []
        with Loads(servers) as loads:
            servers.wait_serving(old)
            loads.wait_work(tmp_path)
            for side, step in [("new", n) for n in NEW_DOES] + [("old", o) for o in OLD_DOES] + [("old -f", o) for o in OLD_THREADS_DO]:
                watcher = None
                if side != "new":
                    watcher = subprocess.Popen(strace(*step, *side.split()[1:], "-p", str(old.pid)), stderr=subprocess.PIPE, text=True)
                    assert "attached" in watcher.stderr.readline()
                for _ in range(10):
                    # -D: the process that was started is the server, and strace its grandchild.
                    new = servers.start(kinds[0](tmp_path), *(strace(*step, "-D") if side == "new" else ()))
                    # One of them ends; the other serves, or (if it was to be killed at a call that it made only then) has ended, too.
                    servers.wait(lambda: old.poll() is not None or new.poll() is not None)
                    lives = new if old.poll() is not None else old
                    servers.wait(lambda: lives.poll() is not None or servers.serves(lives))
                    leave_alone(new.pid)
                    if not servers.too_slow(new):
                        break
                if watcher:
                    watcher.communicate(timeout=SECONDS)
                ends.append((side, step, old.poll(), new.poll()))
                if lives is new:
                    old, kinds = new, kinds[::-1]
                if lives.poll() is not None:
                    assert lives is new and lives.returncode == -signal.SIGKILL, (ends[-1], servers.text())
                    old = servers.start(kinds[1](tmp_path))
                servers.wait_serving(old)
            loads.end()
        # Whoever ended did so because he was killed, or had handed everything over; and most steps were come to.
        for side, step, old_end, new_end in ends:
            assert old_end in (None, 0, -signal.SIGKILL) and new_end in (None, -signal.SIGKILL), f"{side} {step}: {ends}\n{servers.text()}"
        assert sum(-signal.SIGKILL in e for e in ends) >= len(ends) - 8, ends
        old.send_signal(signal.SIGTERM)
        servers.wait_end(old, 0)
        assert not any(s.exists() for s in (*servers.sockets, servers.pidfile))
    require_sound(disk, "qcow2")
