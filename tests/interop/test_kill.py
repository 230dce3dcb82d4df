# SPDX-License-Identifier: MIT
"""test_kill - kill -9 at random moments: what a flush acknowledged is there afterwards

The program dies while it writes, several times over the same image. On a file system of the machine the kernel still
has what was written; on faultfs the power goes with the program, and only what was synced is left. After each kill the
image opens, checks (leaks are allowed), and holds all that was promised: each sector has the content of the last
flushed write to it, or of a later one. Seeds are printed; VARVE_SEED repeats one.
"""

import contextlib
import os
import pathlib
import random
import signal
import struct
import subprocess
import time

import pytest

from faultfs import Faultfs
from seeds import seed
from serving import Server
from tool import MIB, TIMEOUT, img, io, ok, qimg, varve_path

KILLS = 4
DISK = 16 * MIB
SECTOR = 512


@pytest.fixture
def rng():
    return random.Random(seed())


class Promises:
    """What each sector may hold: the contents of writes (a round, 0 for zeroes) since its last promised one."""

    def __init__(self):
        self.may_be = {}  # sector -> {round}; not there: {0}
        self.offset = 0
        self.last_round = 0

    def follow(self, log):
        """Takes in what the log has gained; returns how many flushes that was."""
        text = log.read_bytes()[self.offset:]
        text = text[:text.rfind(b"\n") + 1]
        self.offset += len(text)
        by_round, flushes = {}, []
        for line in text.decode().splitlines():
            kind, number, *where = line.split()
            if kind == "f":
                flushes.append(int(number))
            else:
                self.last_round = max(self.last_round, int(number))
                by_round.setdefault(int(number), []).append((kind, int(where[0]), int(where[1])))
        promised = max(flushes, default=-1)
        for number in sorted(by_round):
            # Writes of one round are in flight together: whichever comes last wins.
            now = {}
            for kind, first, count in by_round[number]:
                for sector in range(first, first + count):
                    now.setdefault(sector, set()).add(number if kind == "w" else 0)
            for sector, contents in now.items():
                if number <= promised:
                    self.may_be[sector] = contents
                else:
                    self.may_be[sector] = self.may_be.get(sector, {0}) | contents
        return len(flushes)

    def hold(self, data):
        """Every sector is as promised; from now on it is what was found."""
        for sector in range(len(data) // SECTOR):
            may_be = self.may_be.get(sector, {0})
            words = struct.unpack_from("<64Q", data, sector * SECTOR)
            found = words[0]
            expected = ((found, sector) * 32) if found else ((0, 0) * 32)
            assert found in may_be, f"sector {sector} holds round {found:#x}, promised is one of {sorted(may_be)}"
            assert words == expected, f"sector {sector} is torn or another's: {words[:4]}"
            if sector in self.may_be:
                self.may_be[sector] = {found}


@contextlib.contextmanager
def place(where, tmp_path, image):
    """The image on its ground: (path, what to do when the program is dead)."""
    if where == "file":
        yield image, lambda: None
        return
    with Faultfs(tmp_path / "faultfs") as fs:
        fs.put(image)
        yield fs.disk, lambda: fs.tell("cut")


def make_image(tmp_path, fmt, options):
    image = tmp_path / "image"
    ok(img("create", "-q", "-f", fmt, *(["-o", options] if options else []), image, str(DISK)))
    return image


def raw_bytes(fmt, path, tmp_path):
    if fmt == "raw":
        return path.read_bytes()
    out = tmp_path / "raw"
    ok(qimg("convert", "-f", fmt, "-O", "raw", path, out))
    return out.read_bytes()


def opens_and_checks(fmt, path, *options):
    # The kernel lets go of the locks of a dead process when its last request has ended; opening waits for that.
    ok(io(path, "read 0 4k", options=("-f", fmt, *options)))
    if fmt == "raw":
        return
    r = img("check", "--output=json", "-f", fmt, path)
    assert r.rc in (0, 3) and not r.json.get("corruptions") and not r.json["check-errors"], str(r)
    # Another implementation's opinion.
    r = qimg("check", "-f", fmt, path)
    assert r.rc in (0, 3), str(r)


def kill_when(log, promises, server, rng, front):
    """Kills once some flushes have been logged, a random moment later."""
    enough, deadline = rng.randrange(2, 25), time.monotonic() + TIMEOUT
    while log.read_bytes().count(b"\nf ", promises.offset) < enough:
        assert front.poll() is None and server.process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    time.sleep(rng.random() * 0.02)
    server.kill()


FORMATS = [("raw", ""), ("qcow2", "cluster_size=64k"), ("qcow2", "cluster_size=4k,refcount_bits=64"), ("qed", "")]


@pytest.mark.parametrize("where", ["file", "faultfs"])
@pytest.mark.parametrize("cache", ["none", "writeback"])
@pytest.mark.parametrize("fmt, options", FORMATS)
def test_a_killed_server_has_kept_its_promises(tmp_path, rng, fmt, options, cache, where):
    image = make_image(tmp_path, fmt, options)
    socket, log = tmp_path / "s.sock", tmp_path / "log"
    log.touch()
    promise = pathlib.Path(os.environ["VARVE_BUILD"]).absolute() / "tests/lib/promise"
    promises = Promises()
    with place(where, tmp_path, image) as (disk, cut):
        for kill in range(KILLS):
            # The socket of the server that died is still there: it is not in the way.
            with Server(disk, fmt, socket, tmp_path / f"pid{kill}", "--cache", cache) as server:
                front = subprocess.Popen([promise, socket, log, str(rng.randrange(1 << 60)), str(promises.last_round + 1)])
                try:
                    kill_when(log, promises, server, rng, front)
                    assert front.wait(240) == 0
                finally:
                    front.kill()
                    front.wait()
            cut()
            assert promises.follow(log) >= 2
            opens_and_checks(fmt, disk, "-t", cache)
            promises.hold(raw_bytes(fmt, disk, tmp_path))


BLOCK = 4096


class Commands:
    """varve io with commands on standard input, and what each block may hold: the bytes of the writes to it, in their
    order, since the last one that a flush acknowledged."""

    def __init__(self):
        self.may_be = [[0] for _ in range(DISK // BLOCK)]

    def writes(self, process, rng):
        for _ in range(6):
            byte, first, count = rng.randrange(256), rng.randrange(len(self.may_be) - 4), rng.randrange(1, 5)
            process.stdin.write(f"write -q -P {byte} {first * BLOCK} {count * BLOCK}\n")
            for block in range(first, first + count):
                self.may_be[block].append(byte)

    def flushed(self, process):
        process.stdin.write("flush\nlength\n")
        line = process.stdout.readline()  # of length: what came before it is done, and prints nothing when it went well
        assert line.endswith("16 MiB\n") and "failed" not in line, line
        self.may_be = [contents[-1:] for contents in self.may_be]

    def hold(self, data):
        for block, contents in enumerate(self.may_be):
            for sector in range(0, BLOCK, SECTOR):
                found = data[block * BLOCK + sector:block * BLOCK + sector + SECTOR]
                assert found[0] in contents and found == found[:1] * SECTOR, \
                    f"block {block}, byte {sector}: {found[:4]}, promised is one of {contents}"
            self.may_be[block] = sorted(set(data[block * BLOCK:(block + 1) * BLOCK]))


@pytest.mark.parametrize("cache", ["none", "writeback"])
@pytest.mark.parametrize("fmt, options", FORMATS)
def test_a_killed_varve_io_has_kept_its_promises(tmp_path, rng, fmt, options, cache):
    image = make_image(tmp_path, fmt, options)
    commands = Commands()
    with place("faultfs", tmp_path, image) as (disk, cut):
        for _ in range(KILLS):
            p = subprocess.Popen([varve_path(), "io", "-f", fmt, "-t", cache, disk], stdin=subprocess.PIPE,
                                 stdout=subprocess.PIPE, text=True, bufsize=1)
            try:
                for _ in range(rng.randrange(2, 12)):
                    commands.writes(p, rng)
                    commands.flushed(p)
                commands.writes(p, rng)
                p.stdin.write("flush\n")
                time.sleep(rng.random() * 0.005)
            finally:
                p.kill()
                assert p.wait(240) == -signal.SIGKILL
                p.stdout.close()
                with contextlib.suppress(BrokenPipeError):
                    p.stdin.close()
            cut()
            opens_and_checks(fmt, disk, "-t", cache)
            commands.hold(raw_bytes(fmt, disk, tmp_path))
