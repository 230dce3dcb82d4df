# SPDX-License-Identifier: MIT
"""test_hostile - info and check of any bytes: an answer or one line, within 1 GiB of addresses and 2 s of processor time

The corpus of the image fuzzer, images of all kinds with bytes changed by seed, and tables as large and as wrong as the format allows.
"""

import concurrent.futures
import os
import pathlib
import random
import resource
import struct
import subprocess

import pytest

import cpu
from seeds import seeds
from tool import GIB, MIB, TIMEOUT, io, img, ok, qimg, qio, sanitized, varve_path

CORPUS = pathlib.Path(__file__).resolve().parents[1] / "fuzz" / "corpus" / "image"

pytestmark = pytest.mark.skipif(sanitized(), reason="a sanitizer's shadow memory is beyond any limit")


cpu_limit = cpu.limit(2)


def limits():
    resource.setrlimit(resource.RLIMIT_AS, (GIB, GIB))
    cpu_limit()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def limited(*args):
    return subprocess.run([varve_path(), "img", *map(os.fspath, args)], preexec_fn=limits, capture_output=True, timeout=TIMEOUT, check=False)


def survives(path, fmt):
    """Both commands, with and without a repair that is not made; the file is not touched."""
    before = (os.stat(path).st_size, os.stat(path).st_mtime_ns)
    for args in (["info", "--output=json", "--limits"], ["info"], ["check"], ["check", "--output=json", "-r", "all", "--dry-run"]):
        p = limited(*args, "-f", fmt, path)
        said = p.stderr.decode(errors="replace")
        assert p.returncode in ((0, 1) if args[0] == "info" else (0, 1, 2, 3, 63)), f"{args} {path}: exit {p.returncode}\n{said[:2000]}"
        if args[0] == "info":
            assert (p.returncode == 0) == (said == "") and said.count("\n") <= 1, f"{args} {path}: {said}"
        assert len(said) < 4 * MIB
    assert (os.stat(path).st_size, os.stat(path).st_mtime_ns) == before


def in_parallel(fn, items):
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        list(pool.map(fn, items))


def test_the_corpus_of_the_fuzzer(tmp_path):
    inputs = sorted(CORPUS.iterdir())
    assert inputs

    def one(entry):
        path = tmp_path / entry.name
        path.write_bytes(entry.read_bytes()[1:])  # the first byte chooses what the fuzzer does
        for fmt in ("qcow2", "qed", "raw"):
            survives(path, fmt)

    in_parallel(one, inputs)


def originals(folder):
    """Images with everything in them that tables can say."""
    made = []
    for name, options in (("v2", "compat=0.10,cluster_size=512"), ("v3", "cluster_size=4k,lazy_refcounts=on,refcount_bits=1"),
                          ("xl2", "extended_l2=on,cluster_size=16k"), ("zstd", "compression_type=zstd,cluster_size=64k")):
        path = folder / name
        ok(qimg("create", "-q", "-f", "qcow2", "-o", options, path, "2M"))
        ok(qio(path, "write -P 3 0 300k", "write -z 1M 64k", *(["write -c 512k 64k"] if name == "zstd" else [])))
        if name != "v3":
            ok(qimg("snapshot", "-c", "one", path))
            ok(qio(path, "write -P 4 100k 100k"))
        if name == "zstd":
            ok(qimg("bitmap", "--add", "-g", "64k", path, "b"))
        made.append((path.read_bytes(), "qcow2"))
    path = folder / "qed"
    ok(img("create", "-q", "-f", "qed", "-o", "cluster_size=4k,table_size=1", path, "2M"))
    ok(io(path, "write -P 3 0 300k", options=("-f", "qed")))
    made.append((path.read_bytes(), "qed"))
    return made


def harm(rng, data):
    """Most changes where they matter: in the header, and in words that look like places."""
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 4, 20])):
        kind = rng.random()
        at = rng.randrange(min(len(data), 120)) if kind < 0.4 else rng.randrange(len(data))
        if kind < 0.7:
            data[at] = rng.choice([0, 1, 0x7f, 0x80, 0xff, rng.randrange(256)])
        elif kind < 0.9:
            at &= ~7
            word = rng.choice([0, 1, 1 << 62, (1 << 64) - 1, 0x8000000000000000 | rng.randrange(len(data)) & ~511, rng.getrandbits(64)])
            data[at:at + 8] = struct.pack(">Q", word)[:len(data) - at]
        else:
            del data[rng.randrange(len(data)):]
            data = data or bytearray(1)
    return bytes(data)


def test_changed_by_seed(tmp_path):
    made = originals(tmp_path)

    def one(seed):
        rng = random.Random(seed)
        data, fmt = rng.choice(made)
        path = tmp_path / str(seed)
        path.write_bytes(harm(rng, data))
        try:
            survives(path, fmt)
        except BaseException as e:
            raise AssertionError(f"VARVE_SEED={seed}") from e
        path.unlink()

    in_parallel(one, seeds(80))


L1_MAX = 4 << 20  # entries


def large_l1(f, table):
    f.seek(24)
    f.write(struct.pack(">Q", 1 << 51))
    f.seek(36)
    f.write(struct.pack(">IQ", L1_MAX, 0x100000))
    f.seek(0x100000)
    f.write(table)


def same_l2(f):
    large_l1(f, struct.pack(">Q", 0x50000 | 1 << 63) * L1_MAX)
    f.seek(0x50000)
    f.write(struct.pack(">Q", 0x60000 | 1 << 63) * 8192 + b"x" * 65536)


def random_l1(f):
    large_l1(f, random.Random(1).randbytes(8 * L1_MAX))


def refcount_table(f):
    f.seek(48)
    f.write(struct.pack(">QI", 0x100000, 128))
    f.seek(0x100000)
    f.write(struct.pack(">Q", 0x20000) * (128 * 8192))


def snapshots(f):
    name = 1024 - 57
    entry = struct.pack(">QIHHIIQIIQQ", 0x30000, 1, 1, name, 0, 0, 0, 0, 16, 0, 1 << 20) + b"1" + b"n" * name
    f.seek(60)
    f.write(struct.pack(">IQ", 65536, 0x100000))
    f.seek(0x100000)
    f.write(entry * 65536)


def bitmaps(f):
    head = bytearray(f.read(512))
    at = 112
    while int.from_bytes(head[at:at + 4], "big"):
        at += 8 + (int.from_bytes(head[at + 4:at + 8], "big") + 7) // 8 * 8
    name = 1000
    entries = b"".join(struct.pack(">QIIBBHI", 0x50000, 1, 0, 1, 16, name, 0) + b"%06d" % i + b"n" * (name - 6) for i in range(65535))
    head[at:at + 40] = struct.pack(">IIIIQQ8x", 0x23852875, 24, 65535, 0, len(entries), 0x100000)
    head[88:96] = struct.pack(">Q", 1)
    f.seek(0)
    f.write(head)
    f.seek(0x100000)
    f.write(entries)


@pytest.mark.parametrize("make", [same_l2, random_l1, refcount_table, snapshots, bitmaps])
def test_tables_as_large_as_they_may_be(tmp_path, make):
    path = tmp_path / "disk"
    ok(qimg("create", "-q", "-f", "qcow2", path, "10M"))
    with open(path, "r+b") as f:
        make(f)
    survives(path, "qcow2")
