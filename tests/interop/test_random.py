# SPDX-License-Identifier: MIT
"""test_random - images written by varve and by QEMU read the same in both

A seed chooses a chain of images (formats, cluster sizes, widths of reference counts, versions, lengths) and, for each
image, batches of writes, zeroes and discards, each batch done by one of the two implementations. Afterwards both find
every image clean, both read the same, and what they read is what a model in memory says.

VARVE_SEEDS=N   how many seeds (default 200)
VARVE_SEED=N    only this one
"""

import os
import random
import shutil

from seeds import each_seed
from tool import KIB, MIB, img, io, ok, qimg, qio

SECTOR = 512


class Model:
    """What a disk holds. After a discard it may be the old bytes or zeroes, sector by sector: unknown until read."""

    def __init__(self, length, below=None):
        self.data = bytearray(length)
        self.unknown = set()  # sectors
        if below:
            n = min(length, len(below.data))
            self.data[:n] = below.data[:n]
            self.unknown = {s for s in below.unknown if s * SECTOR < n}

    def write(self, off, data):
        if len(data):
            # A sector written in part keeps what is unknown about the rest.
            for s in range(-(-off // SECTOR), (off + len(data)) // SECTOR):
                self.unknown.discard(s)
            self.data[off:off + len(data)] = data

    def discard(self, off, length):
        if length:
            self.unknown.update(range(off // SECTOR, (off + length - 1) // SECTOR + 1))

    def settle(self, real):
        """Compares with what was read; the unknown becomes known. Returns what is wrong, or None."""
        if len(real) != len(self.data):
            return f"{len(real)} bytes read, {len(self.data)} expected"
        if real == self.data:
            self.unknown.clear()
            return None
        for s in range(len(real) // SECTOR):
            a, b = self.data[s * SECTOR:(s + 1) * SECTOR], real[s * SECTOR:(s + 1) * SECTOR]
            if a == b:
                continue
            if s not in self.unknown:
                return f"sector {s}: {b[:8].hex()}... read, {a[:8].hex()}... expected"
            if any(y not in (x, 0) for x, y in zip(a, b)):
                return f"sector {s}: neither old nor zeroes after discard: {b[:8].hex()}..."
        self.data[:] = real
        self.unknown.clear()
        return None


def choose_qed_options(rng):
    bits = rng.choice([12, 12, 13, 14, 16, 16, 18])
    # QEMU makes images with tables of one cluster and then refuses to open them.
    return bits, f"cluster_size={1 << bits},table_size={rng.choice([2, 2, 4, 16])}"


def choose_options(rng):
    bits = rng.choice([9, 9, 10, 11, 12, 13, 14, 16, 16, 16, 18, 21])
    if rng.random() < 0.4:
        bits = rng.choice([14, 14, 14, 15, 16, 17, 21])
        return bits, f"extended_l2=on,cluster_size={1 << bits},refcount_bits={rng.choice([1, 8, 16, 16, 64])}"
    version = rng.choice(["0.10", "1.1", "1.1"])
    refcount_bits = rng.choice([1, 2, 4, 8, 16, 32, 64]) if version == "1.1" else 16
    return bits, f"compat={version},cluster_size={1 << bits},refcount_bits={refcount_bits}"


def choose_length(rng, bits):
    """A few tables' worth, ending anywhere."""
    longest = min(max(200 << bits, 64 * KIB), 4 * MIB)
    return rng.randrange(1, longest // SECTOR + 1) * SECTOR


def choose_range(rng, length, bits):
    cluster = 1 << bits
    size = rng.choice([rng.randrange(1, 4096), rng.randrange(1, 3 * cluster + 1), cluster, SECTOR,
                       rng.randrange(1, length // 2 + 2)])
    off = rng.randrange(length)
    kind = rng.random()
    if kind < 0.4:
        off = off // cluster * cluster
    elif kind < 0.7:
        off = off // SECTOR * SECTOR
    return off, max(1, min(size, length - off, MIB))


def batch(rng, model, bits, zeroes=True):
    """Commands for io, done to the model as well."""
    commands = []
    for _ in range(rng.randrange(3, 14)):
        off, length = choose_range(rng, len(model.data), bits)
        kind = rng.random()
        if kind < 0.65 or (not zeroes and kind < 0.95):
            pattern = rng.randrange(256)
            commands.append(f"write -q -P {pattern} {off} {length}")
            model.write(off, bytes([pattern]) * length)
        elif kind < 0.85:
            commands.append(f"write -q -z {rng.choice(['', '-u '])}{off} {length}")
            model.write(off, bytes(length))
        elif kind < 0.95:
            commands.append(f"discard -q {off} {length}")
            model.discard(off, length)
        else:
            commands.append("flush")
    return commands


def create(rng, path, fmt, options, length, backing):
    tool = rng.choice([img, qimg])
    args = ["create", "-q", "-f", fmt]
    if options:
        args += ["-o", options]
    if backing:
        args += ["-b", os.path.basename(backing[0]), "-F", backing[1]]
    ok(tool(*args, path, str(length)))


def read_by_both(folder, path, fmt, model):
    """Both implementations' view of the image; the model must agree."""
    raw = os.path.join(folder, "raw")
    ok(qimg("convert", "-f", fmt, "-O", "raw", path, raw))
    with open(raw, "rb") as f:
        wrong = model.settle(f.read())
    assert wrong is None, f"{path}, read by QEMU: {wrong}"
    ok(img("compare", "-f", fmt, "-F", "raw", path, raw))
    os.unlink(raw)


def one_seed(seed, folder):
    rng = random.Random(seed)
    os.makedirs(folder)
    chain, model = [], None
    for depth in range(rng.choice([1, 1, 2, 2, 3, 5])):
        fmt = "raw" if depth == 0 and rng.random() < 0.3 else rng.choice(["qcow2", "qcow2", "qcow2", "qed"])
        bits, options = choose_qed_options(rng) if fmt == "qed" else choose_options(rng)
        length = choose_length(rng, bits)
        path = os.path.join(folder, f"{depth}.{fmt}")
        create(rng, path, fmt, options if fmt != "raw" else "", length, chain[-1] if chain else None)
        model, zeroed = Model(length, model), False
        for _ in range(rng.choice([1, 2, 3])):
            tool, zeroes = rng.choice([io, qio]), True
            if fmt == "qed" and chain and tool is qio:
                # QEMU 7.2 fills a cluster of zeroes that is written in part with bytes of the backing file. It may
                # write such images as long as nothing in them is zero.
                tool, zeroes = (io, True) if zeroed else (qio, False)
            zeroed = zeroed or zeroes
            # QEMU does not write with O_DIRECT to a raw file that ends anywhere.
            direct = ["none"] if fmt != "raw" or length % 4096 == 0 else []
            cache = rng.choice(["writeback", "writeback", "writethrough", "unsafe", *direct])
            ok(tool(path, *batch(rng, model, bits, zeroes), options=("-f", fmt, "-t", cache)))
        if fmt != "raw":
            ok(img("check", "-q", "-f", fmt, path))
            ok(qimg("check", "-q", "-f", fmt, path))
        read_by_both(folder, path, fmt, model)
        chain.append((path, fmt))
    shutil.rmtree(folder)


def test_images_read_the_same_in_both(tmp_path):
    each_seed(one_seed, tmp_path, 200)
