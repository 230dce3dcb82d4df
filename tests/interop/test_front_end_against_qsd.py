# SPDX-License-Identifier: MIT
"""test_front_end_against_qsd - our vhost-user front end drives a back end that is not ours

varve's own back end is tested with this front end; a mistake that both made alike would stay
unseen. So the front end is proven against qemu-storage-daemon first, and its verification against
disks that really are damaged.

Owns:    one qemu-storage-daemon for each test, killed when the test ends.
Assumes: VARVE_BUILD names the build folder, with tools/varve in it.
Never:   needs varve itself.

VARVE_SEED=N    repeat a run
"""

import itertools
import json
import os
import random
import shutil
import signal
import subprocess

import pytest

import seeds

QSD = shutil.which("qemu-storage-daemon")
pytestmark = pytest.mark.skipif(QSD is None,
                                reason="qemu-storage-daemon (Debian: qemu-system-common) "
                                       "is not installed")

MIB = 1 << 20
SECTOR = 512
IMAGE_LEN = 64 * MIB


@pytest.fixture(scope="module")
def blkload():
    build = os.environ.get("VARVE_BUILD")
    assert build, "set VARVE_BUILD to the build folder"
    path = os.path.join(build, "tools", "varve")
    assert os.access(path, os.X_OK), f"{path} is not there: build it first"
    return [path, "blkload"]


@pytest.fixture
def seed():
    return seeds.seed()


class Qsd:
    """A qemu-storage-daemon that exports the block node "top"; gone when the with block ends."""

    def __init__(self, folder, *blockdevs, queues=2, writable=True):
        self.socket = str(folder / "blk.sock")
        # Options are carried out in order, so the monitor's greeting says that the socket is there.
        self.process = subprocess.Popen(
            [QSD, *itertools.chain(*(("--blockdev", b) for b in blockdevs)),
             "--export", "type=vhost-user-blk,id=e,node-name=top,addr.type=unix,"
             f"addr.path={self.socket},writable={'on' if writable else 'off'},num-queues={queues}",
             "--chardev", "stdio,id=mon", "--monitor", "chardev=mon"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        greeting = self.process.stdout.readline()
        if b"QMP" not in greeting:
            self.__exit__()
            pytest.fail(f"qemu-storage-daemon did not start: {greeting}")

    def __enter__(self):
        return self

    def kill(self, how=signal.SIGKILL):
        self.process.send_signal(how)

    def __exit__(self, *_):
        self.kill()
        self.process.communicate()


def image(folder):
    path = folder / "disk.img"
    with open(path, "wb") as f:
        f.truncate(IMAGE_LEN)
    return path


def raw_file(path):
    """A raw file below the name "top", with discard all the way down."""
    return (f"driver=file,node-name=file,filename={path},discard=unmap,locking=off",
            "driver=raw,node-name=top,file=file,discard=unmap")


def run(blkload, socket, *options, status=0):
    """Run blkload; returns its JSON and its stderr."""
    argv = [*blkload, "--socket", str(socket), "--output", "json", "--timeout", "60", *map(str, options)]
    p = subprocess.run(argv, capture_output=True, text=True, timeout=120)
    print(" ".join(argv))
    print(p.stdout, p.stderr)
    assert p.returncode == status
    return (json.loads(p.stdout) if p.stdout else None), p.stderr


def expect_clean(result):
    assert result["errors"] == 0
    assert result["mismatched_sectors"] == 0


# ---- every way to use the ring --------------------------------------------------------------------

RINGS = [[f"--indirect={i}", f"--event-idx={e}", *p]
         for i in ("on", "off", "mixed") for e in ("on", "off") for p in ([], ["--poll"])]


@pytest.mark.parametrize("layout", ["plain", "merged", "random"])
def test_every_ring_option_verifies(tmp_path, blkload, seed, layout):
    """Random reads, writes, flushes, discards and zeroes come back right, however they travel."""
    with Qsd(tmp_path, *raw_file(image(tmp_path))) as qsd:
        for n, ring in enumerate(RINGS):
            result, stderr = run(
                blkload, qsd.socket, *ring, "--layout", layout, "--regions", 1 + n % 8,
                "--queues", 2, "--depth", 16, "--rw", "randrw", "--size", "8M", "--offset", "1M",
                "--ops", 1000, "--flush-every", 50, "--discard-percent", 5,
                "--write-zeroes-percent", 5, "--verify", "--seed", seed + n)
            expect_clean(result)
            assert stderr == ""
            for kind in ("read", "write", "flush", "discard", "write_zeroes"):
                assert result[kind]["requests"] > 0
            assert result["verified_sectors"] > 0


@pytest.mark.parametrize("block, options", [
    ("512", ["--size", "64k", "--depth", 64]),              # as many in flight as there are blocks
    ("64k", ["--segment-size", 1024, "--depth", 8]),        # 64 data segments each
    ("64k", ["--segment-size", 1024, "--depth", 8, "--indirect", "off", "--queue-size", 128]),
    ("1M", ["--depth", 4, "--rw", "write"]),
    ("4k", ["--depth", 1]),
    ("4k", ["--depth", 300, "--indirect", "off", "--queue-size", 256]),     # deeper than the ring
])
def test_block_sizes_and_depths_verify(tmp_path, blkload, seed, block, options):
    with Qsd(tmp_path, *raw_file(image(tmp_path))) as qsd:
        result, _ = run(blkload, qsd.socket, "--queues", 2, "--rw", "randrw", "--ops", 2000,
                        "--block-size", block, "--verify", "--seed", seed, *options)
        expect_clean(result)


def test_what_is_verified_is_on_the_disk(tmp_path, blkload, seed):
    """Every block of a sequential write is in the file, and says where it belongs."""
    path = image(tmp_path)
    with Qsd(tmp_path, *raw_file(path)) as qsd:
        run(blkload, qsd.socket, "--queues", 2, "--rw", "write", "--size", "4M", "--ops", 1024,
            "--verify", "--seed", seed)
    data = path.read_bytes()
    for sector in range(4 * MIB // SECTOR):
        head = data[sector * SECTOR:sector * SECTOR + 24]
        assert head[:8] == b"varveblk"
        assert int.from_bytes(head[8:16], "little") == seed
        assert int.from_bytes(head[16:24], "little") == sector


def test_sequential_modes_walk_the_range(tmp_path, blkload):
    """One pass of N blocks reads N blocks: no error, and exactly that many bytes."""
    with Qsd(tmp_path, *raw_file(image(tmp_path))) as qsd:
        result, _ = run(blkload, qsd.socket, "--rw", "read", "--block-size", "64k", "--ops",
                        IMAGE_LEN // 65536)
        assert result["read"]["bytes"] == IMAGE_LEN
        assert result["capacity_bytes"] == IMAGE_LEN


def test_a_daemon_outlives_its_front_ends(tmp_path, blkload, seed):
    """Connect, work, stop the queues, leave, ten times: each finds the device in order."""
    with Qsd(tmp_path, *raw_file(image(tmp_path))) as qsd:
        for n in range(10):
            result, _ = run(blkload, qsd.socket, "--queues", 1 + n % 2, "--rw", "randrw", "--ops",
                            300, "--verify", "--seed", seed + n)
            expect_clean(result)


def test_a_null_disk_gives_sane_figures(tmp_path, blkload):
    """A disk that does nothing, on four queues: all requests counted, percentiles in order."""
    with Qsd(tmp_path, "driver=null-co,node-name=top,size=1073741824,read-zeroes=on",
             queues=4) as qsd:
        for poll in ([], ["--poll"]):
            result, _ = run(blkload, qsd.socket, "--queues", 4, "--ops", 100000, *poll)
            assert result["errors"] == 0
            assert result["read"]["requests"] == 100000
            lat = result["read"]
            assert (0 < lat["latency_p50_ns"] <= lat["latency_p90_ns"] <= lat["latency_p99_ns"]
                    <= lat["latency_p99_9_ns"] <= lat["latency_max_ns"])


# ---- verification finds what is wrong -------------------------------------------------------------

def test_lost_writes_are_found(tmp_path, blkload, seed):
    """A disk that acknowledges writes and forgets them: every sector is named as zeroes."""
    with Qsd(tmp_path, "driver=null-co,node-name=top,size=1073741824,read-zeroes=on") as qsd:
        result, stderr = run(blkload, qsd.socket, "--rw", "write", "--size", "64k", "--ops", 16,
                             "--verify", "--seed", seed, status=1)
        assert result["mismatched_sectors"] == 128
        assert "sector 0: expected generation 1, found zeroes" in stderr


def test_damage_under_the_daemon_is_found(tmp_path, blkload, seed):
    """One byte that somebody else changes in the file, while the disk is in use, is found."""
    path = image(tmp_path)
    complaints = tmp_path / "stderr"
    bad = random.Random(seed).randrange(2 * MIB // SECTOR)
    with Qsd(tmp_path, *raw_file(path)) as qsd, open(complaints, "wb") as stderr, \
            open(path, "r+b", buffering=0) as disk:
        # Half of the requests write zeroes, the others read.
        p = subprocess.Popen([*blkload, "--socket", qsd.socket, "--rw", "randrw", "--size", "2M",
                              "--read-percent", "100", "--write-zeroes-percent", "50",
                              "--runtime", "100000", "--verify", "--seed", str(seed)],
                             stdout=subprocess.DEVNULL, stderr=stderr)
        try:
            while complaints.stat().st_size == 0:   # again and again: zeroes may cover it
                os.pwrite(disk.fileno(), b"\1", bad * SECTOR + 100)
                assert p.poll() is None
            p.send_signal(signal.SIGINT)
            assert p.wait(timeout=120) == 1
        finally:
            p.kill()
            p.wait()
    assert f"sector {bad}: expected zeroes, found foreign bytes" in complaints.read_text()


def test_io_errors_are_counted_and_named(tmp_path, blkload, seed):
    """Writes that touch sector 800 fail: the request is named, the rest goes on and is right."""
    path = image(tmp_path)
    with Qsd(tmp_path, f"driver=file,node-name=file,filename={path}",
             "driver=blkdebug,node-name=bad,image=file,inject-error.0.event=pwritev,"
             "inject-error.0.iotype=write,inject-error.0.errno=5,inject-error.0.sector=800",
             "driver=raw,node-name=top,file=bad") as qsd:
        result, stderr = run(blkload, qsd.socket, "--rw", "write", "--size", "1M", "--ops", 256,
                             "--verify", "--seed", seed, status=1)
        assert result["errors"] == 1
        assert result["mismatched_sectors"] == 0
        assert "write of 8 sectors at sector 800: the device answered with an I/O error" in stderr


def test_a_back_end_that_dies_ends_the_run(tmp_path, blkload):
    with Qsd(tmp_path, *raw_file(image(tmp_path))) as qsd:
        p = subprocess.Popen([*blkload, "--socket", qsd.socket, "--runtime", "60", "--progress"],
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            p.stderr.read(1)    # the progress line has begun, so requests are in flight
            qsd.kill()
            _, stderr = p.communicate(timeout=120)
        finally:
            p.kill()
            p.wait()
        assert p.returncode == 1
        assert b"the back end closed the connection" in stderr


def test_a_back_end_that_hangs_ends_the_run(tmp_path, blkload):
    with Qsd(tmp_path, *raw_file(image(tmp_path))) as qsd:
        # That long it may take to answer when the two get to know each other, too.
        p = subprocess.Popen([*blkload, "--socket", qsd.socket, "--runtime", "60", "--progress",
                              "--timeout", "6"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            p.stderr.read(1)
            qsd.kill(signal.SIGSTOP)
            _, stderr = p.communicate(timeout=120)
        finally:
            p.kill()
            p.wait()
        assert p.returncode == 1
        assert b"the device completed none of" in stderr
        assert b"the oldest request without an answer" in stderr


def test_an_interrupted_run_says_so_and_reports(tmp_path, blkload):
    with Qsd(tmp_path, *raw_file(image(tmp_path))) as qsd:
        p = subprocess.Popen([*blkload, "--socket", qsd.socket, "--runtime", "60", "--progress",
                              "--output", "json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            p.stderr.read(1)
            p.send_signal(signal.SIGINT)
            stdout, stderr = p.communicate(timeout=120)
        finally:
            p.kill()
            p.wait()
        assert p.returncode == 1
        assert json.loads(stdout)["interrupted"] is True
        assert b"interrupted" in stderr


def test_a_run_that_is_told_to_end_verifies_and_is_well(tmp_path, blkload):
    with Qsd(tmp_path, *raw_file(image(tmp_path))) as qsd:
        p = subprocess.Popen([*blkload, "--socket", qsd.socket, "--runtime", "100000", "--progress", "--verify",
                              "--rw", "randwrite", "--output", "json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            p.stderr.read(1)
            p.send_signal(signal.SIGUSR1)
            stdout, stderr = p.communicate(timeout=120)
        finally:
            p.kill()
            p.wait()
        assert p.returncode == 0, stderr
        told = json.loads(stdout)
        assert told["interrupted"] is False and told["verified_sectors"] > 0 and told["mismatched_sectors"] == 0
# ---- what cannot be done is refused, in one line ---------------------------------------------------

@pytest.mark.parametrize("options, text", [
    (["--queues", "3"], "3 queues asked for, the back end has 2"),
    (["--size", "1G"], "the disk ends at 67108864 bytes"),
    (["--offset", "64M"], "the disk ends at 67108864 bytes"),
    (["--block-size", "1000"], "must be multiples of 512"),
    (["--rw", "randwrong"], "is none of read, write"),
    (["--depth", "0"], "0 is not within 1 .. 4096"),
    (["--depth", "12x"], '"12x" is not a number'),
    (["--discard-percent", "5"], "changes nothing"),
    (["--block-size", "64k", "--segment-size", "512", "--queue-size", "128"],
     "at most 126 data segments, this would need 128"),
])
def test_impossible_wishes_are_refused(tmp_path, blkload, options, text):
    with Qsd(tmp_path, *raw_file(image(tmp_path))) as qsd:
        _, stderr = run(blkload, qsd.socket, "--ops", 1, *options, status=1)
        assert text in stderr
        assert stderr.startswith("varve blkload: ") and stderr.count("\n") == 1


def test_a_read_only_disk_is_not_written(tmp_path, blkload):
    with Qsd(tmp_path, *raw_file(image(tmp_path)), writable=False) as qsd:
        _, stderr = run(blkload, qsd.socket, "--ops", 1, "--rw", "randwrite", status=1)
        assert "the disk is read-only" in stderr
        run(blkload, qsd.socket, "--ops", 100, "--rw", "randread")


def test_no_socket_is_one_clear_line(tmp_path, blkload):
    _, stderr = run(blkload, tmp_path / "nobody.sock", "--ops", 1, status=1)
    assert stderr == f"varve blkload: {tmp_path}/nobody.sock: cannot connect: No such file or directory\n"
