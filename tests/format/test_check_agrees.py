# SPDX-License-Identifier: MIT
"""test_check_agrees - our examination of an image against qemu-img's: whole images, and damaged ones

Images are made by qemu-img and qemu-io: snapshots that share clusters, zeroed and discarded clusters, compressed ones,
bitmaps, every refcount width. Damage is drawn from a seed, which a failure names; VARVE_SEEDS says how many.
"""

import os
import random
import shutil
import struct
import sys

import pytest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir, "interop"))

from tool import KIB, MIB, img, ok, qimg, qio  # noqa: E402

SEEDS = int(os.environ.get("VARVE_SEEDS", "200"))
LEN = 8 * MIB
COUNTS = ["corruptions", "leaks", "check-errors", "image-end-offset", "total-clusters", "allocated-clusters",
          "fragmented-clusters", "compressed-clusters"]
# cluster size, refcount bits, version
KINDS = [(65536, 16, 3), (4096, 16, 3), (4096, 64, 3), (512, 8, 3), (512, 1, 3), (65536, 2, 3), (4096, 16, 2), (2 * MIB, 32, 3)]


def some_io(rnd, version, nr):
    for _ in range(nr):
        off = rnd.randrange(LEN) & ~511
        length = min(rnd.choice([512, 4096, 65536, 200000]), LEN - off) & ~511
        kind = rnd.random()
        if kind < 0.6:
            yield f"write -P {rnd.randrange(1, 255)} {off} {length}"
        elif kind < 0.75 and version == 3:
            yield f"write -z {'-u ' if rnd.random() < 0.5 else ''}{off} {length}"
        elif kind < 0.9:
            yield f"discard {off} {length}"
        else:
            off &= ~(65536 - 1)
            yield f"write -c -P 7 {off} {64 * KIB}"


def work(path, rnd, version, nr):
    """Some of it cannot be done to some images (compressed clusters of another size, say): that is no matter here."""
    qio(path, *some_io(rnd, version, nr))


def make(path, kind):
    cluster, bits, version = kind
    rnd = random.Random(repr(kind))
    options = f"cluster_size={cluster}," + ("compat=0.10" if version == 2 else f"refcount_bits={bits}")
    ok(qimg("create", "-q", "-f", "qcow2", "-o", options, path, str(LEN)))
    work(path, rnd, version, 30)
    if bits >= 8:
        for name in ("one", "two"):
            ok(qimg("snapshot", "-c", name, path))
            work(path, rnd, version, 15)
        ok(qimg("snapshot", "-d", "one", path))
    if version == 3:
        ok(qimg("bitmap", "--add", path, "bm1"))
        ok(qimg("bitmap", "--add", path, "bm2"))
    ok(qimg("check", "-q", path))
    return path


@pytest.fixture(scope="module", params=KINDS, ids=lambda k: f"{k[0]}-{k[1]}bit-v{k[2]}")
def image(request, tmp_path_factory):
    return make(tmp_path_factory.mktemp("check") / "image.qcow2", request.param)


def examined(check, path):
    r = check("check", "-f", "qcow2", "--output=json", path)
    assert r.rc in (0, 1, 2, 3), str(r)
    return r, {k: r.json.get(k, 0) for k in COUNTS}


def test_whole_images_agree_in_every_count(image):
    (ours, a), (theirs, b) = examined(img, image), examined(qimg, image)
    assert a == b, f"{ours}\n{theirs}"
    assert ours.rc == theirs.rc == 0
    assert a["corruptions"] == a["leaks"] == 0


class Damage:
    """Places of metadata in the image, found from its header, and what may be written over them."""

    def __init__(self, path):
        self.path = path
        self.data = path.read_bytes()
        self.cluster = 1 << self.u(20, 4)
        self.l1 = self.u(40, 8)
        self.block = self.u(self.u(48, 8), 8)
        nr = self.u(36, 4)
        self.l2 = [off for off in (self.u(self.l1 + 8 * i, 8) & 0xfffffffffffe00 for i in range(nr)) if off][:4]
        self.places = [(self.block, self.cluster // 8), (self.l1, min(nr, 8))]
        self.places += [(off, min(self.cluster // 8, 64)) for off in self.l2]

    def u(self, off, length):
        return int.from_bytes(self.data[off:off + length], "big")

    def write(self, copy, off, value):
        with open(copy, "r+b") as f:
            f.seek(off)
            f.write(struct.pack(">Q", value))

    def at_random(self, copy, rnd):
        base, nr = rnd.choice(self.places)
        off = base + 8 * rnd.randrange(nr)
        old = self.u(off, 8)
        value = rnd.choice([
            old ^ 1 << rnd.randrange(64),
            0,
            self.u(rnd.choice(self.places)[0] + 8 * rnd.randrange(2), 8),
            1 << 63 | rnd.randrange(len(self.data) // self.cluster + 3) * self.cluster,
            rnd.getrandbits(64),
        ])
        self.write(copy, off, value)
        return f"{off:#x}: {old:#x} -> {value:#x}"


def verdict(counts):
    return counts["corruptions"] > 0, counts["leaks"] > 0


def test_damaged_images_get_the_same_verdict(image, tmp_path):
    damage, copy = Damage(image), tmp_path / "copy.qcow2"
    for seed in range(SEEDS // len(KINDS)):
        rnd = random.Random(seed)
        shutil.copy(image, copy)
        done = [damage.at_random(copy, rnd) for _ in range(rnd.choice([1, 1, 2, 3]))]
        before = copy.read_bytes()
        (ours, a), (theirs, b) = examined(img, copy), examined(qimg, copy)
        assert verdict(a) == verdict(b), f"seed {seed}: {done}\n{ours}\n{theirs}"
        assert ours.rc == theirs.rc, f"seed {seed}: {done}\n{ours}\n{theirs}"
        assert copy.read_bytes() == before, f"seed {seed}: check changed the image"


def fresh(path, **options):
    text = ",".join(f"{k}={v}" for k, v in {"preallocation": "metadata", "cluster_size": 4096, **options}.items())
    ok(img("create", "-q", "-f", "qcow2", "-o", text, path, "64k"))
    return Damage(path)


def test_simple_damage_agrees_in_every_count(tmp_path):
    path = tmp_path / "image.qcow2"
    d = fresh(path)
    (l2,), data = d.l2, 5 * 4096
    copied = 1 << 63
    wrongs = {
        "a leak": (d.block + 2 * 20, 0x0001000100000000),
        "a refcount of 0": (d.block + 2 * 8, 0x0000000100010001),
        "a refcount of 2": (d.block + 2 * 8, 0x0002000100010001),
        "not COPIED": (l2, data),
        "beyond the end": (l2, 4096 * 4096),
        "not aligned": (l2, copied | data + 512),
        "reserved bit": (l2, copied | data | 1 << 60),
        "used twice": (l2 + 8, copied | data),
        "nothing mapped": (l2, 0),
        "L2 beyond the end": (d.l1, 4096 * 4096),
        "no L2": (d.l1, 0),
    }
    for what, (off, value) in wrongs.items():
        fresh(path)
        if what == "a leak":
            os.truncate(path, len(d.data) + 4096)
        d.write(path, off, value)
        (ours, a), (theirs, b) = examined(img, path), examined(qimg, path)
        assert a == b, f"{what}\n{ours}\n{theirs}"
        assert ours.rc == theirs.rc != 0, f"{what}\n{ours}\n{theirs}"


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16, 32, 64])
def test_every_refcount_width_agrees(tmp_path, bits):
    path = tmp_path / "image.qcow2"
    d = fresh(path, refcount_bits=bits)
    rnd = random.Random(bits)
    for _ in range(10):
        fresh(path, refcount_bits=bits)
        for _ in range(3):
            off = d.block + rnd.randrange(max(1, 21 * bits // 64)) * 8
            d.write(path, off, rnd.getrandbits(64))
        (ours, a), (theirs, b) = examined(img, path), examined(qimg, path)
        assert a == b, f"{ours}\n{theirs}"


def test_what_a_person_reads_names_the_places(tmp_path):
    path = tmp_path / "image.qcow2"
    d = fresh(path)
    d.write(path, d.l2[0] + 8, 1 << 63 | 5 * 4096)
    r = img("check", path)
    assert r.rc == 2
    assert "host offset 0x5000" in r.out + r.err
    assert "guest offset 0x1000" in r.out + r.err
