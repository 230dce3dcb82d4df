# SPDX-License-Identifier: MIT
"""test_restart - servers that are killed, or replaced, under verified load: varve serve and varve daemon

varve blkload writes, reads back and compares, keeps the area of requests in flight, and looks for a server that went away.
Seeds are printed by it when something is wrong.

Never: leaves a process behind.
"""
import json
import os
import pathlib
import random
import select
import signal
import socket
import subprocess
import time

import pytest

from test_control import Control, wait_pidfile
from tool import when_unlocked
from unixsock import listens

BUILD = pathlib.Path(os.environ.get("VARVE_BUILD", "build")).absolute()
VARVE = BUILD / "tools/varve"
SECONDS = 120  # nothing here may take longer
KILLS = 20


def varve(*args, code=0):
    done = subprocess.run([VARVE, *map(str, args)], capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == code, f"varve {' '.join(map(str, args))}: {done.returncode}: {done.stderr}"
    return done


class Process:
    """A server in the folder: started again as often as one likes, dead at the end of the with block."""

    def __init__(self, folder, *argv, sockets=("s.sock",)):
        self.folder, self.sockets = folder, [folder / s for s in sockets]
        self.argv = [str(VARVE), *map(str, argv)]
        self.log = open(folder / "server.log", "w+")
        self.process = None

    def start(self, *more):
        self.process = subprocess.Popen([*self.argv, *more], cwd=self.folder, stdout=self.log, stderr=self.log)
        self.wait_ready()

    def wait_ready(self):
        deadline = time.monotonic() + SECONDS
        while not all(listens(s, self.process.pid) for s in self.sockets):
            assert self.process.poll() is None and time.monotonic() < deadline, self.text()
            time.sleep(0.005)

    def kill(self):
        self.process.kill()
        self.process.wait()

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(SECONDS) == 0, self.text()

    def text(self):
        self.log.flush()
        return pathlib.Path(self.log.name).read_text()

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.kill()
        self.log.close()


class Load:
    """varve blkload in the background, until it is told to end; then it reads back what it wrote."""

    def __init__(self, socket, *options):
        self.process = subprocess.Popen(
            [str(VARVE), "blkload", "--socket", str(socket), "--output", "json", "--verify", "--runtime", "100000",
             "--reconnect", str(SECONDS), "--timeout", "60000", *map(str, options)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()

    def running(self):
        return self.process.poll() is None

    def wait(self, what):
        """Until something is so that this load brings about."""
        deadline = time.monotonic() + SECONDS
        while not what():
            assert self.running() and time.monotonic() < deadline, self.process.communicate()
            time.sleep(0.005)

    def wait_written(self, file):
        """Until something is in the file that was empty."""
        self.wait(lambda: os.stat(file).st_blocks * 512 > EMPTY)

    def end(self):
        """The report. Only for one that has been seen at work: before, it does not know of the signal."""
        self.process.send_signal(signal.SIGUSR1)
        out, err = self.process.communicate(timeout=SECONDS)
        assert self.process.returncode == 0, f"{self.process.returncode}: {err}\n{out}"
        report = json.loads(out)
        assert report["errors"] == 0 and report["verified_sectors"] > 0 and report["mismatched_sectors"] == 0
        return report


MIXED = ["--rw", "randrw", "--read-percent", 30, "--flush-every", 3000, "--discard-percent", 1, "--queues", 2, "--depth", 16]


# A takeover waits for some seconds only until the storage has taken what the guests have written: others may be using it. It has to be
# asked for again, as is said then.
TOO_SLOW = "its storage does not answer; ask again"

EMPTY = 1 << 20  # more than the tables of an empty image take

# More than can be in flight at once: a front end that has had so many requests done has sent some to this very server.
NEW = 2 * 16 + 1


def requests(control):
    """How many of a front end's requests a `varve serve` has done."""
    return sum(q[kind]["requests"] for q in Control(control)("stats")["export"]["queues"] for kind in ("read", "write"))


def make_disk(folder, fmt, size="192M", options=None):
    varve("img", "create", "-q", "-f", fmt, *(["-o", options] if options else []), folder / "disk", size)
    return folder / "disk"


def require_sound(disk, fmt):
    if fmt == "raw":
        return
    # Leaks are allowed: of what was under way when a process died.
    found = subprocess.run([VARVE, "img", "check", "--output=json", "-f", fmt, disk], capture_output=True, text=True,
                           timeout=SECONDS)
    found = json.loads(found.stdout)
    assert not found.get("corruptions") and not found["check-errors"]


@pytest.mark.parametrize("fmt, packed, poll, options", [("qcow2", "off", 0, None), ("raw", "on", 50, None), ("qed", "off", 50, None),
                                                         ("qcow2", "on", 0, "data_file=data"),
                                                         ("qcow2", "off", 0, "data_file=data,extended_l2=on,cluster_size=128k")])
def test_a_server_killed_twenty_times_loses_nothing(tmp_path, fmt, packed, poll, options):
    # So large that there is something to allocate, and to queue, all the time.
    disk, control = make_disk(tmp_path, fmt, "192M" if fmt == "raw" else "1G", options), tmp_path / "control"
    rng = random.Random(fmt)
    kills = KILLS if fmt != "qed" and not options else 5
    with Process(tmp_path, "serve", disk, "-f", fmt, "--vhost-user", tmp_path / "s.sock", "--num-queues", 2, "--poll-us", poll,
                 "--state-dir", tmp_path / "state", "--control", control, sockets=("s.sock", "control")) as server, \
            Load(tmp_path / "s.sock", *MIXED, "--packed", packed) as load:
        for _ in range(kills):
            load.wait(lambda: requests(control) >= NEW)
            time.sleep(rng.random() / 5)  # in the middle of whatever it does then
            server.kill()
            server.start()
        assert load.end()["reconnects"] == kills
        server.stop()
        if fmt != "raw":
            assert "written out from state file" in server.text()
    require_sound(disk, fmt)
    state = tmp_path / "state"
    assert not state.exists() or not list(state.iterdir())


@pytest.mark.parametrize("fmt", ["qcow2", "qed"])
def test_what_was_queued_is_not_written_over_the_changes_of_another_program(tmp_path, fmt):
    """The other one is QEMU's, which knows nothing of journals and clears the mark as the specification tells it to."""
    disk, state = make_disk(tmp_path, fmt), tmp_path / "state"
    options = f"driver={fmt},file.filename={disk},state-dir={state}"
    died = subprocess.run([VARVE, "io", "-t", "writeback", "--image-opts", "-c", "write -P 7 0 1M", "-c", "abort", options], capture_output=True,
                          timeout=SECONDS)
    assert died.returncode == -signal.SIGABRT and list(state.iterdir())
    when_unlocked(disk)  # the other one does not wait for the locks of the dead
    other = subprocess.run(["qemu-io", "-f", fmt, "-c", "write -P 9 8M 1M", disk], capture_output=True, text=True, timeout=SECONDS)
    assert other.returncode == 0, other.stderr
    refused = varve("io", "--image-opts", "-c", "read 0 1M", options, code=1)
    assert "another program has changed the image" in refused.stderr
    for file in state.iterdir():
        file.unlink()
    assert "Pattern" not in varve("io", "--image-opts", "-c", "read -P 9 8M 1M", options).stdout
    require_sound(disk, fmt)


def test_a_new_server_takes_over_under_load(tmp_path):
    disk = make_disk(tmp_path, "qcow2")
    with Process(tmp_path, "serve", disk, "-f", "qcow2", "--vhost-user", tmp_path / "s.sock", "--num-queues", 2, "--pidfile",
                 tmp_path / "pid", "--takeover", "--state-dir", tmp_path / "state") as server, \
            Load(tmp_path / "s.sock", *MIXED) as load:
        load.wait_written(disk)
        for _ in range(3):
            old = server.process
            time.sleep(0.3)  # whatever is under way then
            for _ in range(10):
                told = server.text().count(TOO_SLOW)
                server.process = subprocess.Popen(server.argv, cwd=tmp_path, stdout=server.log, stderr=server.log)
                load.wait(lambda: old.poll() is not None or server.process.poll() is not None)
                if server.text().count(TOO_SLOW) == told:
                    break
            assert old.poll() == 0, f"the old one did not end in order: {server.text()}"
            server.wait_ready()
            wait_pidfile(tmp_path / "pid", server.process)
        report = load.end()
        assert 1 <= report["reconnects"] <= 3
        server.stop()
    require_sound(disk, "qcow2")


@pytest.fixture
def small_tmpfs(tmp_path):
    """Gives a function that mounts one of so many KiB; unmounts them."""
    mounted = []

    def mount(kib):
        folder = tmp_path / f"tmpfs{len(mounted)}"
        folder.mkdir(mode=0o700)
        if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kib}k,mode=700", "tmpfs", folder]).returncode:
            pytest.skip("a tmpfs cannot be mounted here")
        mounted.append(folder)
        return folder

    yield mount
    deadline = time.monotonic() + SECONDS
    for folder in mounted:
        # The kernel closes the files of a process that was killed a moment after it has gone (io_uring).
        while subprocess.run(["umount", folder], capture_output=True, check=False).returncode:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def fill(file):
    with open(file, "wb", buffering=0) as junk, pytest.raises(OSError):
        while junk.write(bytes(4096)):
            pass


def test_a_full_state_directory_loses_nothing_and_ends_nobody(tmp_path, small_tmpfs):
    """Memory that a journal stores into must be there: else a full tmpfs is a SIGBUS in the middle of a write."""
    disk, state = make_disk(tmp_path, "qcow2"), small_tmpfs(1048)  # as much as it takes at first, and no more
    with Process(tmp_path, "serve", disk, "-f", "qcow2", "--vhost-user", tmp_path / "s.sock", "--num-queues", 2,
                 "--state-dir", state) as server, \
            Load(tmp_path / "s.sock", "--rw", "randwrite", "--queues", 2, "--depth", 32) as load:
        load.wait_written(disk)
        for _ in range(3):
            time.sleep(0.4)
            server.kill()
            server.start()
        fill(state / "junk")
        load.end()
        server.stop()
    require_sound(disk, "qcow2")
    # One that is full from the beginning is an error in words.
    fill(state / "more junk")
    refused = varve("serve", disk, "-f", "qcow2", "--vhost-user", tmp_path / "s.sock", "--state-dir", state, code=1)
    assert "No space left" in refused.stderr
    # So is one that is full, and holds a file with holes in the place of a state file.
    for junk in state.iterdir():
        junk.unlink()
    with Process(tmp_path, "serve", disk, "-f", "qcow2", "--vhost-user", tmp_path / "s.sock", "--state-dir", state) as server:
        server.kill()
        left, = state.glob("*.journal")
        length = left.stat().st_size
        with open(left, "rb") as f:
            header = f.read(16384)
        for keep in (0, len(header)):
            left.write_bytes(header[:keep])
            os.truncate(left, length)
            fill(state / "most junk")
            refused = varve("serve", disk, "-f", "qcow2", "--vhost-user", tmp_path / "s.sock", "--state-dir", state, code=1)
            assert "No space left" in refused.stderr and "state file" in refused.stderr
            (state / "most junk").unlink()


def daemon_argv(folder, *more):
    return ["daemon",
            "--blockdev", "driver=file,node-name=f0,filename=disk", "--blockdev", "driver=qcow2,node-name=d0,file=f0,discard=unmap",
            "--blockdev", json.dumps({"driver": "raw", "node-name": "d1", "file": {"driver": "file", "filename": "second"}}),
            "--object", "iothread,id=t0",
            "--export", f"vhost-user-blk,id=e0,node-name=d0,addr.type=unix,addr.path={folder}/e0.sock,writable=on,num-queues=2",
            "--export", json.dumps({"type": "vhost-user-blk", "id": "e1", "node-name": "d1", "writable": True, "iothread": "t0",
                                    "num-queues": 2, "addr": {"type": "unix", "path": f"{folder}/e1.sock"}}),
            "--state-dir", str(folder / "state"), *more]


def test_a_daemon_of_two_disks_is_killed(tmp_path):
    disk = make_disk(tmp_path, "qcow2")
    varve("img", "create", "-q", "-f", "raw", tmp_path / "second", "64M")
    with Process(tmp_path, *daemon_argv(tmp_path), sockets=("e0.sock", "e1.sock")) as server, \
            Load(tmp_path / "e0.sock", *MIXED) as first, Load(tmp_path / "e1.sock", *MIXED) as second:
        first.wait_written(disk)
        second.wait_written(tmp_path / "second")
        for _ in range(4):
            time.sleep(0.3)
            server.kill()
            server.start()
        for load in (first, second):
            assert load.end()["reconnects"] >= 1
        server.stop()
    require_sound(disk, "qcow2")


def test_a_daemon_goes_to_the_background_and_ends_on_a_signal(tmp_path):
    make_disk(tmp_path, "qcow2")
    varve("img", "create", "-q", "-f", "raw", tmp_path / "second", "64M")
    # Relative names mean at the end what they meant on the command line.
    relative = [a.replace(f"{tmp_path}/", "") for a in daemon_argv(tmp_path, "--pidfile", "pid", "--daemonize")]
    link = tmp_path / "qemu-storage-daemon"
    link.symlink_to(VARVE)
    argv = [link, *relative[1:]]
    done = subprocess.run(argv, cwd=tmp_path, timeout=SECONDS, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    pid = int((tmp_path / "pid").read_text())
    watch = os.pidfd_open(pid)
    try:
        loaded = subprocess.run([VARVE, "blkload", "--socket", tmp_path / "e1.sock", "--rw", "randrw", "--verify", "--ops", "500",
                                 "--timeout", str(SECONDS // 2)],
                                capture_output=True, text=True, timeout=SECONDS)
        assert loaded.returncode == 0, loaded.stderr
        # Another one finds the images in use, and says so on the terminal although it wants to go to the background.
        again = subprocess.run(argv, cwd=tmp_path, timeout=SECONDS, capture_output=True, text=True)
        assert again.returncode == 1 and "lock" in again.stderr
        signal.pidfd_send_signal(watch, signal.SIGTERM)
        poll = select.poll()
        poll.register(watch, select.POLLIN)
        assert poll.poll(SECONDS * 1000), "it does not end"
        assert not any((tmp_path / name).exists() for name in ("pid", "e0.sock", "e1.sock"))
    finally:
        try:
            signal.pidfd_send_signal(watch, signal.SIGKILL)
        except ProcessLookupError:
            pass
        os.close(watch)


def test_a_daemon_serves_on_a_socket_that_it_was_given(tmp_path):
    """As a manager of machines starts it: the socket listens before, and its name is the manager's to remove."""
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(tmp_path / "s"))
        made.listen(1)
        p = subprocess.Popen([VARVE, "daemon", "--blockdev", "driver=null-co,node-name=n,size=1M",
                              "--export", f"vhost-user-blk,id=e,node-name=n,addr.type=fd,addr.str={made.fileno()}"],
                             pass_fds=[made.fileno()], stderr=subprocess.PIPE)
        try:
            # It waits in the backlog until the daemon is there.
            loaded = subprocess.run([VARVE, "blkload", "--socket", tmp_path / "s", "--rw", "read", "--ops", "100"], capture_output=True,
                                    timeout=SECONDS)
            assert loaded.returncode == 0, loaded.stderr
            p.terminate()
            assert p.wait(SECONDS) == 0
        finally:
            p.kill()
            p.communicate()
    assert (tmp_path / "s").exists()


@pytest.mark.parametrize("program", ["serve", "daemon"])
def test_one_that_waits_to_take_over_can_be_ended(tmp_path, program):
    """The old one does not end; the new one does when it is told to, and the old one then has what it had."""
    disk = make_disk(tmp_path, "raw", "1M")
    pidfile = tmp_path / "pid"
    argv = {"serve": ["serve", disk, "-f", "raw", "--vhost-user", tmp_path / "s.sock"],
            "daemon": ["daemon", "--blockdev", f"driver=file,node-name=f,filename={disk}",
                       "--export", f"vhost-user-blk,id=e,node-name=f,addr.type=unix,addr.path={tmp_path}/s.sock,writable=on"]}[program]
    with Process(tmp_path, *argv, "--pidfile", pidfile) as old:
        wait_pidfile(pidfile, old.process)
        old.process.send_signal(signal.SIGSTOP)
        # One that is on its way there still takes the next signal along, if it has been waiting for it.
        os.waitid(os.P_PID, old.process.pid, os.WSTOPPED | os.WNOWAIT)
        new = subprocess.Popen([VARVE, *map(str, argv), "--pidfile", pidfile, "--takeover"], stderr=subprocess.PIPE)
        try:
            deadline = time.monotonic() + SECONDS
            while not is_asked(old.process.pid):
                assert new.poll() is None and time.monotonic() < deadline
                time.sleep(0.005)
            new.send_signal(signal.SIGTERM)
            assert new.wait(SECONDS) != 0
        finally:
            new.kill()
            new.communicate()
            old.process.send_signal(signal.SIGCONT)
        # What it was asked is nobody's question any more.
        loaded = subprocess.run([VARVE, "blkload", "--socket", tmp_path / "s.sock", "--ops", "100"], capture_output=True, timeout=SECONDS)
        assert loaded.returncode == 0, loaded.stderr
        assert pidfile.read_text().strip() == str(old.process.pid)
        old.stop()


def is_asked(pid):
    """Whether somebody is connected to the socket at which a process is asked to let another one take over."""
    with open("/proc/net/unix", encoding="utf-8", errors="replace") as f:
        return sum(line.split()[-1] == f"@varve-takeover-{pid}" for line in f) > 1


def test_daemons_follow_one_another_under_load(tmp_path):
    """Upgrades: each command returns when its daemon serves, and the one before has flushed and gone; first a `varve serve` does."""
    disk = make_disk(tmp_path, "qcow2")
    varve("img", "create", "-q", "-f", "raw", tmp_path / "second", "64M")
    pidfile, sockets = tmp_path / "pid", [tmp_path / "e0.sock", tmp_path / "e1.sock"]
    serve = [disk, "-f", "qcow2", "--vhost-user", sockets[0], "--num-queues", 2,
             "--and", tmp_path / "second", "-f", "raw", "--vhost-user", sockets[1], "--num-queues", 2,
             "--state-dir", tmp_path / "state", "--pidfile", pidfile]
    followers = []
    with Process(tmp_path, "serve", *serve, sockets=("e0.sock", "e1.sock")) as first, \
            Load(sockets[0], *MIXED) as load, Load(sockets[1], *MIXED) as second:
        try:
            load.wait_written(disk)
            second.wait_written(tmp_path / "second")
            for _ in range(3):
                time.sleep(0.3)
                for _ in range(10):
                    done = subprocess.run([VARVE, *daemon_argv(tmp_path, "--pidfile", pidfile, "--takeover", "--daemonize")],
                                          cwd=tmp_path, timeout=SECONDS, capture_output=True, text=True)
                    if TOO_SLOW not in done.stderr:
                        break
                assert (done.returncode, done.stderr) == (0, "")
                followers.append(os.pidfd_open(int(pidfile.read_text())))
            assert first.process.wait(SECONDS) == 0, first.text()
            for end in (load, second):
                assert end.end()["reconnects"] >= 1
            signal.pidfd_send_signal(followers[-1], signal.SIGTERM)
            poll = select.poll()
            poll.register(followers[-1], select.POLLIN)
            assert poll.poll(SECONDS * 1000), "it does not end"
        finally:
            for fd in followers:
                try:
                    signal.pidfd_send_signal(fd, signal.SIGKILL)
                except ProcessLookupError:
                    pass
                os.close(fd)
    assert not pidfile.exists()
    require_sound(disk, "qcow2")


@pytest.mark.parametrize("argv, words", [
    (["--monitor", "chardev=c"], "the QMP monitor"),
    (["--chardev", "stdio,id=c"], "the QMP monitor"),
    (["-T", "all"], "--trace is not part"),
    (["--nbd-server", "addr.type=unix"], "--nbd-server is not part"),
    (["--object", "throttle-group,id=a"], "type 'throttle-group' is not part"),
    (["--object", "iothread"], "'id' is missing"),
    (["--export", "nbd,id=a,node-name=b"], "type 'nbd' is not part"),
    (["--export", "vhost-user-blk,id=a,node-name=b,addr.type=inet"], "addr.type=inet"),
    (["--export", "vhost-user-blk,id=a,node-name=b,addr.type=fd,addr.str=name"], "the number of a descriptor"),
    (["--export", "vhost-user-blk,id=a,node-name=b,addr.type=fd,addr.str=1"], "the number of a descriptor"),
    (["--blockdev", "driver=null-co,node-name=a,size=1M", "--export", "vhost-user-blk,id=a,node-name=a,addr.type=fd,addr.str=99"],
     "descriptor 99 is no unix stream socket that listens"),
    (["--export", "vhost-user-blk,id=a,node-name=b,addr.type=unix,addr.path=x"], "there is no node of that name"),
    (["--export", "vhost-user-blk,id=a,node-name=b,addr.type=unix,addr.path=x,num-queues=0"], "'num-queues' must be a number from 1"),
    (["--export", "vhost-user-blk,id=a,node-name=b,addr.type=unix,addr.path=x,logical-block-size=4096"], "only 512"),
    (["--blockdev", "node-name=a"], "'driver' is missing"),
    (["--blockdev", "driver=null-co"], "'node-name' is missing"),
    (["--blockdev", "driver=null-co,node-name=1 2"], "is no name of"),
    (["--blockdev", "driver=null-co,node-name=a", "--blockdev", "driver=null-co,node-name=a"], "there is a node-name=a already"),
    (["--blockdev", "driver=qcow2,node-name=a,file=b"], "file=b: there is no node"),
    (["--blockdev", "driver=qcow2,node-name=a,file=b", "--blockdev", "driver=raw,node-name=b,file=a"], "lead in a circle"),
    (["--blockdev", "driver=qcow2,node-name=a,file=b,file.filename=c"], "given as a name and as a group"),
    (["--blockdev", "{\"driver\": 1"], "not JSON"),
    (["--blockdev", "driver=null-co,node-name=a,size=1M,no-such-option=1"], "no-such-option"),
    (["--blockdev", "driver=throttle,node-name=a,file.driver=null-co"], "'throttle' is not known"),
    (["--takeover"], "--takeover needs --pidfile"),
    (["--state-dir", "/proc/none", "--blockdev", "driver=qcow2,node-name=a,file.driver=file,file.filename={disk}"],
     "state directory /proc/none"),
    (["disk.qcow2"], "unexpected argument"),
])
def test_what_a_daemon_refuses_it_names(tmp_path, argv, words):
    disk = make_disk(tmp_path, "qcow2", "1M")
    done = varve("daemon", *[a.replace("{disk}", str(disk)) if a.startswith("driver") else a for a in argv], code=1)
    assert words in done.stderr, done.stderr
    assert len([line for line in done.stderr.splitlines() if not line.startswith("Help: ")]) == 1
