# SPDX-License-Identifier: MIT
"""test_vublk.py - the vhost-user-blk server under load from varve's own front end: verified I/O on several queues over
every kind of disk and ring, front ends that come and go, and front ends that lie
"""
import array
import json
import os
import pathlib
import signal
import socket
import struct
import subprocess
import time

import pytest

from unixsock import listens

BUILD = pathlib.Path(os.environ.get("VARVE_BUILD", "build"))
VARVE = BUILD / "tools/varve"
SECONDS = 240  # nothing here may take longer


def varve(*args):
    done = subprocess.run([VARVE, *map(str, args)], capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0 and done.stderr == "", f"varve {' '.join(map(str, args))}: {done.stderr}"
    return done.stdout


class Server:
    """varve serve, ready; stopped cleanly (or the test fails) at the end of the with block."""

    def __init__(self, directory, disk, *options):
        self.socket = directory / "s.sock"
        self.log = open(directory / "serve.log", "w+")
        self.argv = [VARVE, "serve", disk, "--vhost-user", self.socket, *options]

    def __enter__(self):
        self.process = subprocess.Popen(list(map(str, self.argv)), stdout=self.log, stderr=self.log)
        deadline = time.monotonic() + SECONDS
        while not listens(self.socket, self.process.pid):
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
            assert not self.socket.exists()

    def text(self):
        self.log.flush()
        self.log.seek(0)
        return self.log.read()

    def load(self, *options, ok=True):
        done = subprocess.run([VARVE, "blkload", "--socket", self.socket, "--output", "json", "--timeout", str(SECONDS // 2),
                               *map(str, options)], capture_output=True, text=True, timeout=SECONDS)
        if ok:
            assert done.returncode == 0, f"{done.stderr}\n{done.stdout}\nserver: {self.text()}"
            return json.loads(done.stdout)
        return done

    def fds(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))


MIXED = ["--rw", "randrw", "--verify", "--ops", 4000, "--flush-every", 50, "--discard-percent", 3,
         "--write-zeroes-percent", 3]


def make_disk(directory, kind):
    disk = directory / "disk"
    if kind == "raw":
        varve("img", "create", "-q", "-f", "raw", disk, "64M")
        return disk, "raw"
    if kind == "overlay":
        base = directory / "base"
        varve("img", "create", "-q", "-f", "raw", base, "48M")
        varve("io", "-f", "raw", "-c", "write -P 7 0 48M", base)
        varve("img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", disk, "64M")
        return disk, "qcow2"
    varve("img", "create", "-q", "-f", "qcow2", "-o", kind, disk, "64M")
    return disk, "qcow2"


@pytest.mark.parametrize("kind", ["raw", "overlay", "cluster_size=64k", "cluster_size=512,refcount_bits=64",
                                  "cluster_size=2M,refcount_bits=1", "compat=0.10", "preallocation=metadata"])
@pytest.mark.parametrize("queues", [1, 4])
def test_what_several_queues_wrote_reads_back_and_checks_clean(tmp_path, kind, queues):
    disk, fmt = make_disk(tmp_path, kind)
    with Server(tmp_path, disk, "-f", fmt, "--num-queues", queues) as s:
        result = s.load(*MIXED, "--queues", queues, "--depth", 16)
        assert result["errors"] == 0
    if fmt == "qcow2":
        checked = json.loads(varve("img", "check", "--output=json", "-f", "qcow2", disk))
        assert not checked.get("leaks") and not checked.get("corruptions") and not checked["check-errors"]


@pytest.mark.parametrize("cache", ["none", "writethrough", "directsync", "unsafe"])
def test_every_cache_mode(tmp_path, cache):
    disk, fmt = make_disk(tmp_path, "cluster_size=64k")
    with Server(tmp_path, disk, "-f", fmt, "--num-queues", 2, "--cache", cache) as s:
        s.load("--rw", "randrw", "--verify", "--ops", 1000, "--flush-every", 50, "--queues", 2, "--depth", 8)


SMALL = ["--segment-size", 2048]  # several descriptors for each request


@pytest.mark.parametrize("ring", [["--indirect", "on", "--event-idx", "on", *SMALL], ["--indirect", "off", "--event-idx", "on"],
                                  ["--indirect", "on", "--event-idx", "off", *SMALL],
                                  ["--indirect", "off", "--event-idx", "off"], ["--indirect", "mixed", *SMALL],
                                  ["--indirect", "tail", *SMALL], ["--layout", "merged"], ["--layout", "random"],
                                  ["--regions", 5, *SMALL], ["--queue-size", 32], ["--poll"]])
def test_every_kind_of_ring(tmp_path, ring):
    disk, fmt = make_disk(tmp_path, "cluster_size=64k")
    with Server(tmp_path, disk, "-f", fmt, "--num-queues", 2) as s:
        s.load(*MIXED, "--queues", 2, "--depth", 8, *ring)


def test_a_server_survives_every_lie_of_a_guest(tmp_path):
    """The tool's own view of it, as for any back end; test_rings.c holds each lie against what the log says."""
    disk, fmt = make_disk(tmp_path, "cluster_size=64k")
    with Server(tmp_path, disk, "-f", fmt) as s:
        told = varve("blkload", "--socket", s.socket, "--hostile", "--timeout", SECONDS)
        assert told.count("the queue is broken") == 25 and "0 of which no notice was taken; the back end goes on" in told
        s.load(*MIXED)
    done = subprocess.run([VARVE, "blkload", "--socket", tmp_path / "none", "--hostile"], capture_output=True, text=True)
    assert done.returncode == 1 and "cannot connect" in done.stderr


def test_a_read_only_disk_refuses_writes_and_serves_reads(tmp_path):
    disk, fmt = make_disk(tmp_path, "cluster_size=64k")
    before = disk.read_bytes()
    with Server(tmp_path, disk, "-f", fmt, "--read-only") as s:
        s.load("--rw", "randread", "--ops", 500)
        done = s.load("--rw", "randwrite", "--ops", 10, ok=False)
        assert done.returncode == 1
    assert disk.read_bytes() == before


def test_front_ends_come_and_go_and_leave_nothing_behind(tmp_path):
    disk, fmt = make_disk(tmp_path, "raw")
    with Server(tmp_path, disk, "-f", fmt, "--num-queues", 2) as s:
        s.load("--rw", "randwrite", "--ops", 100, "--queues", 2)
        fds = s.fds()
        for _ in range(50):
            s.load("--rw", "randwrite", "--ops", 20, "--queues", 2)
        wait_for_fds(s, fds)


def wait_for_fds(server, wanted):
    deadline = time.monotonic() + SECONDS
    while server.fds() > wanted and time.monotonic() < deadline:
        time.sleep(0.01)
    assert server.fds() <= wanted, f"{server.fds()} descriptors, {wanted} before"


# ---- front ends that lie ----

GET_FEATURES, SET_FEATURES, SET_OWNER, SET_MEM_TABLE, SET_VRING_NUM, SET_VRING_ADDR = 1, 2, 3, 5, 8, 9
SET_VRING_BASE, GET_VRING_BASE, SET_VRING_KICK, GET_CONFIG = 10, 11, 12, 24


def message(request, payload=b"", size=None, flags=1):
    return struct.pack("<III", request, flags, len(payload) if size is None else size) + payload


def region(gpa, size, uva, off=0):
    return struct.pack("<QQQQ", gpa, size, uva, off)


def mem_table(*regions, count=None):
    return struct.pack("<II", len(regions) if count is None else count, 0) + b"".join(regions)


def memfd(size):
    fd = os.memfd_create("guest")
    os.ftruncate(fd, size)
    return fd


MIB = 1 << 20
LIES = {
    "size larger than any message": message(SET_FEATURES, b"", size=0xFFFFFFFF),
    "size of another message": message(SET_FEATURES, b"1234"),
    "unknown request": message(9999, b"12345678"),
    "request 0": message(0),
    "wrong version": message(GET_FEATURES, flags=2),
    "features never offered": message(SET_FEATURES, struct.pack("<Q", (1 << 64) - 1)),
    "ring of no entries": message(SET_VRING_NUM, struct.pack("<II", 0, 0)),
    "ring of three entries": message(SET_VRING_NUM, struct.pack("<II", 0, 3)),
    "ring of too many entries": message(SET_VRING_NUM, struct.pack("<II", 0, 1 << 31)),
    "ring that does not exist": message(SET_VRING_NUM, struct.pack("<II", 4096, 128)),
    "address without memory": message(SET_VRING_ADDR, struct.pack("<IIQQQQ", 0, 0, 0x1000, 0x2000, 0x3000, 0)),
    "base beyond 16 bits": message(SET_VRING_BASE, struct.pack("<II", 0, 1 << 20)),
    "kick of a ring that does not exist": message(SET_VRING_KICK, struct.pack("<Q", 200)),
    "kick without the descriptor it promises": message(SET_VRING_KICK, struct.pack("<Q", 0)),
    "config far outside": message(GET_CONFIG, struct.pack("<III", 0xFFFFFFF0, 64, 0) + bytes(64)),
    "config larger than it says": message(GET_CONFIG, struct.pack("<III", 0, 4096, 0)),
    "memory table without descriptors": message(SET_MEM_TABLE, mem_table(region(0, MIB, 0))),
    "memory table of too many": message(SET_MEM_TABLE, mem_table(count=1000)),
}
TABLES = {
    "regions that overlap": [region(0, MIB, 0), region(MIB // 2, MIB, 16 * MIB)],
    "a region longer than its file": [region(0, 64 * MIB, 0)],
    "a region that wraps": [region((1 << 64) - 4096, MIB, 0)],
    "an offset that wraps": [region(0, MIB, 0, (1 << 64) - 4096)],
    "a region of nothing": [region(0, 0, 0)],
}


def tell(server, data, fds=()):
    """Sends bytes as a new front end and waits until the server hangs up, answers, or has nothing to say."""
    with socket.socket(socket.AF_UNIX) as s:
        s.settimeout(SECONDS)
        s.connect(str(server.socket))
        anc = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        s.sendmsg([data], anc)
        s.settimeout(0.2)
        try:
            s.recv(4096)
        except (TimeoutError, ConnectionError):
            pass


def test_lies_end_the_connection_and_nothing_else(tmp_path):
    disk, fmt = make_disk(tmp_path, "raw")
    with Server(tmp_path, disk, "-f", fmt, "--num-queues", 2) as s:
        s.load("--rw", "randread", "--ops", 10)
        fds = s.fds()
        for name, data in LIES.items():
            tell(s, data)
            assert s.process.poll() is None, f"{name}: the server died\n{s.text()}"
        for name, regions in TABLES.items():
            own = [memfd(2 * MIB) for _ in regions]
            tell(s, message(SET_OWNER) + message(SET_MEM_TABLE, mem_table(*regions)), own)
            for fd in own:
                os.close(fd)
            assert s.process.poll() is None, f"{name}: the server died\n{s.text()}"
        own = [memfd(4096) for _ in range(8)]
        tell(s, message(GET_FEATURES), own)  # descriptors with a message that takes none
        for fd in own:
            os.close(fd)
        for cut in range(1, 20):  # a message that stops in the middle
            tell(s, message(SET_VRING_NUM, struct.pack("<II", 0, 128))[:cut])
        wait_for_fds(s, fds)
        s.load(*MIXED, "--queues", 2)  # and the next honest front end is served


def test_a_silent_front_end_does_not_stop_the_server_from_ending(tmp_path):
    disk, fmt = make_disk(tmp_path, "raw")
    with socket.socket(socket.AF_UNIX) as silent:
        with Server(tmp_path, disk, "-f", fmt) as s:
            silent.connect(str(s.socket))
            silent.send(b"\1\0")
