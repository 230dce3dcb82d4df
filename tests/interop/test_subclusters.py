# SPDX-License-Identifier: MIT
"""test_subclusters - images with extended L2 entries, written by varve and by QEMU in turns

The judges are both tools' check and QEMU's reading; what must be read is a model in memory.

VARVE_SEEDS=N   how many seeds (default 6)
VARVE_SEED=N    only this one
"""

import os
import random
import struct
import subprocess

import pytest

from seeds import seeds
from tool import KIB, MIB, img, io, ok, qimg, qio, refused, varve_path

LEN = 4 * MIB


def clean(path):
    for tool in (img, qimg):
        ok(tool("check", "-q", "-f", "qcow2", path))


def content(path, folder):
    raw = os.path.join(folder, "content.raw")
    ok(qimg("convert", "-f", "qcow2", "-O", "raw", path, raw))
    with open(raw, "rb") as f:
        theirs = f.read()
    ok(img("compare", "-q", "-f", "qcow2", "-F", "raw", path, raw))
    return theirs


def entries(path):
    """(place word, bitmap) of each guest cluster that has an entry."""
    with open(path, "rb") as f:
        b = f.read()
    u64 = lambda off: struct.unpack_from(">Q", b, off)[0]
    cluster, l1_entries, l1 = 1 << struct.unpack_from(">I", b, 20)[0], struct.unpack_from(">I", b, 36)[0], u64(40)
    assert u64(72) & 16, "no extended L2 entries"
    for i in range(l1_entries):
        table = u64(l1 + 8 * i) & 0x00fffffffffffe00
        for k in range(cluster // 16 if table else 0):
            e = u64(table + 16 * k), u64(table + 16 * k + 8)
            if any(e):
                yield i * cluster // 16 + k, *e


# ---- at random ----

class Disk:
    """A disk, what it holds, and what its snapshots hold."""

    def __init__(self, rng, folder):
        self.rng, self.folder, self.path = rng, folder, os.path.join(folder, "d.qcow2")
        self.cluster = rng.choice([16, 16, 16, 64, 128]) * KIB
        self.data, self.snapshots = bytearray(LEN), {}
        args = ["create", "-q", "-f", "qcow2"]
        options = f"extended_l2=on,cluster_size={self.cluster},lazy_refcounts={rng.choice(['on', 'off'])}," \
                  f"preallocation={rng.choice(['off', 'off', 'metadata', 'falloc'])}"
        self.backing = rng.random() < 0.6
        if self.backing:
            base = os.path.join(folder, "base.raw")
            self.data[:] = bytes(1 + i // 512 % 255 for i in range(0, LEN, 512) for _ in range(512))
            with open(base, "wb") as f:
                f.write(self.data)
            args += ["-b", base, "-F", "raw"]
        ok(rng.choice([img, qimg])(*args, "-o", options, self.path, str(LEN)))

    def range(self):
        rng, sub = self.rng, self.cluster // 32
        unit = rng.choice([512, sub, sub, self.cluster])
        length = min(unit * rng.choice([1, 1, 2, 3, 7, 33]), len(self.data))
        return rng.randrange((len(self.data) - length) // unit + 1) * unit, length

    def batch(self, ours):
        rng, commands, defined = self.rng, [], True
        for _ in range(rng.randrange(2, 10)):
            off, length = self.range()
            kind = rng.randrange(10)
            if kind < 5:
                byte = rng.randrange(1, 256)
                commands.append(f"write -q -P {byte} {off} {length}")
                self.data[off:off + length] = bytes([byte]) * length
            elif kind < 8:
                commands.append(f"write -q -z {rng.choice(['', '-u '])}{off} {length}")
                self.data[off:off + length] = bytes(length)
            elif kind < 9:
                commands.append(f"discard -q {off} {length}")
                defined = False
            else:
                off = off // self.cluster * self.cluster
                length = min(self.cluster, len(self.data) - off)
                if length == self.cluster and ours:  # theirs refuses clusters that have space
                    byte = rng.randrange(1, 256)
                    commands.append(f"write -q -c -P {byte} {off} {length}")
                    self.data[off:off + length] = bytes([byte]) * length
        options = ["-f", "qcow2"] + (["-C"] if self.backing and rng.random() < 0.3 else [])
        if "-C" in options:
            commands.append(f"read -q 0 {len(self.data)}")
        ok((io if ours else qio)(self.path, *commands, options=options))
        if not defined:
            self.data[:] = content(self.path, self.folder)

    def snapshot(self, tool):
        name = self.rng.choice("abc")
        if name not in self.snapshots:
            ok(tool("snapshot", "-c", name, self.path))
            self.snapshots[name] = bytes(self.data)
        elif self.rng.random() < 0.5:
            ok(tool("snapshot", "-a", name, self.path))
            self.data = bytearray(self.snapshots[name])
        else:
            ok(tool("snapshot", "-d", name, self.path))
            del self.snapshots[name]

    def resize(self, tool):
        now = len(self.data)
        length = self.rng.randrange(MIB // 512, 5 * MIB // 512) * 512
        more = ["--shrink"] if length < now else \
            [f"--preallocation={self.rng.choice(['off', 'metadata', 'falloc', 'full'])}"] if length > now else []
        ok(tool("resize", "-q", "-f", "qcow2", *more, self.path, str(length)))
        self.data = self.data[:length] + bytes(max(0, length - now))

    def compare(self):
        clean(self.path)
        got = content(self.path, self.folder)
        assert len(got) == len(self.data)
        wrong = [i for i in range(0, len(got), 512) if got[i:i + 512] != self.data[i:i + 512]]
        assert not wrong, f"sector at {wrong[0]} and {len(wrong) - 1} more differ"
        for place, bitmap in ((p, b) for _, p, b in entries(self.path)):
            assert not (place >> 62 & 1 and bitmap), "a compressed cluster with a bitmap"


@pytest.mark.parametrize("seed", seeds(6))
def test_what_both_write_both_read(tmp_path, seed):
    rng = random.Random(seed)
    disk = Disk(rng, str(tmp_path))
    for _ in range(rng.randrange(3, 7)):
        ours = rng.random() < 0.6
        step = rng.randrange(10)
        if step < 6:
            disk.batch(ours)
        elif step < 8:
            disk.snapshot(img if ours else qimg)
        else:
            disk.resize(img if ours else qimg)
        disk.compare()
    for name, data in disk.snapshots.items():
        for tool in (img, qimg):
            ok(tool("convert", "-l", f"snapshot.name={name}", "-f", "qcow2", "-O", "raw", disk.path, tmp_path / "s.raw"))
            got = (tmp_path / "s.raw").read_bytes()
            # Theirs reads a snapshot of another length as if it had the disk's.
            n = len(data) if tool is img else min(len(data), len(disk.data))
            assert len(got) == len(data if tool is img else disk.data) and got[:n] == data[:n], f"{name} {tool} {len(got)} {len(data)}"


# ---- one by one ----

def over(tmp_path, options="extended_l2=on,cluster_size=128k", tool=img):
    base, top = tmp_path / "base.raw", tmp_path / "top.qcow2"
    base.write_bytes(b"\x07" * LEN)
    ok(tool("create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", "-o", options, top))
    return base, top


def test_a_small_write_takes_what_it_needs_of_the_backing_file(tmp_path):
    base, top = over(tmp_path)
    ok(io(top, "write -q -P 1 8k 4k", f"write -q -P 2 {128 * KIB + 1024} 512"))
    assert [b for _, _, b in entries(top)] == [1 << 2, 1]
    clean(top)
    want = bytearray(base.read_bytes())
    want[8192:12288], want[132096:132608] = b"\x01" * 4096, b"\x02" * 512
    assert content(top, tmp_path) == want


def test_the_place_goes_with_the_last_subcluster(tmp_path):
    base, top = over(tmp_path, "extended_l2=on,cluster_size=16k")
    ok(io(top, "write -q -P 1 0 1k", "discard -q 0 512"))
    assert [(p != 0, b) for _, p, b in entries(top)] == [(True, 1 << 32 | 2)]
    ok(io(top, "discard -q 512 512"))
    assert list(entries(top)) == [(0, 0, 3 << 32)]
    clean(top)
    assert content(top, tmp_path) == bytes(1024) + base.read_bytes()[1024:]


def test_parts_of_a_compressed_cluster_are_not_zeroed_by_bits(tmp_path):
    _, top = over(tmp_path)
    ok(io(top, "write -q -c -P 5 0 128k"))
    ok(io(top, "discard -q 0 4k"))
    assert [p >> 62 & 1 for _, p, b in entries(top)] == [1]
    ok(io(top, "write -q -z 4k 4k"))
    assert [(p >> 62 & 1, b & 0xffffffff) for _, p, b in entries(top)] == [(0, 0xffffffff)]
    clean(top)
    assert content(top, tmp_path)[:128 * KIB] == b"\5" * 4096 + bytes(4096) + b"\5" * (120 * KIB)


def test_a_cluster_shared_with_a_snapshot_moves_with_its_data(tmp_path):
    base, top = over(tmp_path)
    ok(io(top, "write -q -P 1 8k 4k", "write -q -P 2 16k 4k"))
    ok(img("snapshot", "-c", "s", top))
    ok(io(top, "write -q -P 3 100k 4k"))
    clean(top)
    got = content(top, tmp_path)
    assert (got[8 * KIB], got[16 * KIB], got[100 * KIB], got[12 * KIB]) == (1, 2, 3, 7)
    ok(qimg("snapshot", "-a", "s", top))
    assert content(top, tmp_path)[100 * KIB] == 7


@pytest.mark.parametrize("mode", ["metadata", "falloc", "full"])
@pytest.mark.parametrize("backing", [False, True])
def test_preallocation(tmp_path, mode, backing):
    options = f"extended_l2=on,cluster_size=64k,preallocation={mode}"
    path = over(tmp_path, options)[1] if backing else tmp_path / "top.qcow2"
    if not backing:
        ok(img("create", "-q", "-f", "qcow2", "-o", options, path, str(LEN)))
    clean(path)
    before = list(entries(path))
    assert len(before) == 64 and all(p & 0xfffffffffffe00 and b == (0 if backing else 0xffffffff) for _, p, b in before)
    length = path.stat().st_size
    ok(io(path, "write -q -P 1 70k 4k"))
    assert [p for _, p, _ in entries(path)] == [p for _, p, _ in before] and path.stat().st_size == length
    clean(path)
    want = bytearray((b"\7" if backing else b"\0") * LEN)
    want[70 * KIB:74 * KIB] = b"\1" * 4096
    assert content(path, tmp_path) == want


@pytest.mark.parametrize("more", [[], ["-c"]])
def test_convert_makes_them(tmp_path, more):
    """Into a file, and through a pipe."""
    source = tmp_path / "s.raw"
    rng = random.Random(5)
    source.write_bytes(b"".join(rng.choice([bytes(4096), bytes([7]) * 4096, rng.randbytes(4096)]) for _ in range(700)))
    file, pipe = tmp_path / "file.qcow2", tmp_path / "pipe.qcow2"
    args = ["convert", *more, "-f", "raw", "-O", "qcow2", "-o", "extended_l2=on,cluster_size=16k", source]
    ok(img(*args, file))
    with open(pipe, "wb") as f:
        p = subprocess.run([varve_path(), "img", *args, "-"], stdout=f, stderr=subprocess.PIPE, timeout=240, check=False)
    assert p.returncode == 0 and p.stderr == b""
    for path in (file, pipe):
        clean(path)
        assert any(entries(path)) and content(path, tmp_path) == source.read_bytes()


def test_commit_rebase_and_amend(tmp_path):
    base, top = over(tmp_path, "extended_l2=on,cluster_size=64k")
    ok(io(top, "write -q -P 1 10k 3k", "write -q -z 1M 40k", "write -q -c -P 9 2M 64k"))
    want = content(top, tmp_path)
    other = tmp_path / "other.qcow2"
    ok(qimg("create", "-q", "-f", "qcow2", "-o", "extended_l2=on", other, "3M"))
    ok(qio(other, "write -q -P 8 0 3M"))
    ok(img("rebase", "-q", "-f", "qcow2", "-b", other, "-F", "qcow2", top))
    clean(top)
    assert content(top, tmp_path) == want
    refused(img("amend", "-f", "qcow2", "-o", "compat=0.10", top), "extended_l2")
    ok(img("amend", "-q", "-f", "qcow2", "-o", "refcount_bits=8,lazy_refcounts=on", top))
    clean(top)
    ok(img("commit", "-q", "-f", "qcow2", top))
    clean(top)
    clean(other)
    assert content(other, tmp_path) == want and not list(entries(top))


def test_what_is_read_is_kept_in_parts(tmp_path):
    base, top = over(tmp_path)
    ok(io(top, "read -q 20k 4k", options=["-C"]))
    assert [b for _, _, b in entries(top)] == [1 << 5]
    clean(top)
    assert content(top, tmp_path) == base.read_bytes()


def test_a_stream_leaves_nothing_to_look_for_below(tmp_path):
    base, top = over(tmp_path, "extended_l2=on,cluster_size=64k")
    ok(io(top, "write -q -P 1 10k 3k", "write -q -z 1M 40k", "write -q -c -P 9 2M 64k", "discard -q 3M 6k"))
    want = content(top, tmp_path)
    ok(img("stream", top))
    base.unlink()
    clean(top)
    assert content(top, tmp_path) == want


def test_states_of_machines(tmp_path):
    """Saved and loaded by ours; written behind the disk by one and read by the other."""
    path, state = tmp_path / "d.qcow2", random.Random(3).randbytes(2 * MIB + 4711)
    ok(img("create", "-q", "-f", "qcow2", "-o", "extended_l2=on,cluster_size=16k", path, str(LEN)))
    ok(io(path, "write -q -P 3 1M 70k"))
    for name, more in (("one", []), ("two", ["--now"])):
        p = subprocess.run([varve_path(), "vmstate", "save", *more, path, name], input=state, capture_output=True, timeout=240, check=False)
        assert p.returncode == 0, p.stderr
        ok(io(path, "write -q -P 4 1M 5k"))
        clean(path)
    ok(qimg("snapshot", "-d", "one", path))
    p = subprocess.run([varve_path(), "vmstate", "load", path, "two"], capture_output=True, timeout=240, check=False)
    assert p.returncode == 0 and p.stdout == state
    ok(qio(path, "write -q -b -P 5 0 100k", "write -q -b -P 6 10240 4k"))
    ok(io(path, "read -q -b -P 5 0 10240", "read -q -b -P 6 10240 4k", "write -q -b -P 7 4k 3k", "write -q -b -P 8 98k 1000k"))
    ok(qio(path, "read -q -b -P 7 4k 3k", "read -q -b -P 5 7k 1k", "read -q -b -P 8 98k 1000k", "read -q -P 4 1M 5k"))
    clean(path)


def test_wrong_counts_are_made_right(tmp_path):
    """A leak and a count that is too low, with subclusters that must not be taken for anything else."""
    base, top = over(tmp_path, "extended_l2=on,cluster_size=16k")
    ok(io(top, *(f"write -q -P {i + 1} {i * 40}k 3k" for i in range(20)), "write -q -c -P 9 2M 16k", "discard -q 40k 1k"))
    want = content(top, tmp_path)
    with open(top, "r+b") as f:
        f.seek(48)
        f.seek(struct.unpack(">Q", f.read(8))[0])
        block = struct.unpack(">Q", f.read(8))[0]
        f.seek(block + 2 * 8)
        f.write(b"\0\0")
        f.seek(block + 2 * 2000)
        f.write(b"\0\1")
    assert img("check", "-q", top).rc == 2
    assert img("check", "-q", "-r", "all", top).rc == 0
    clean(top)
    assert content(top, tmp_path) == want


@pytest.mark.parametrize("options, word", [("extended_l2=on,cluster_size=8k", "16k"), ("extended_l2=on,compat=0.10", "1.1"),
                                           ("preallocation=metadata", "extended_l2")])
def test_what_cannot_be_leaves_no_file(tmp_path, options, word):
    (tmp_path / "base.raw").write_bytes(bytes(MIB))
    refused(img("create", "-q", "-f", "qcow2", "-b", tmp_path / "base.raw", "-F", "raw", "-o", options, tmp_path / "d"), word)
    assert not (tmp_path / "d").exists()
