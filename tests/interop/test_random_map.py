# SPDX-License-Identifier: MIT
"""test_random_map - map of random chains, by both tools, of the same files: JSON is the same data, the list for people the same lines

All kinds of clusters: nothing, plain zeroes, zeroes with a place, preallocated, compressed, subclusters; above shorter and longer
backing files; data files; raw files with holes. Both tools make and write the images.

VARVE_SEEDS=N   how many seeds (default 24)
VARVE_SEED=N    only this one
"""

import os
import random
import shutil

from seeds import each_seed
from test_random_img import SECTOR, joined
from tool import KIB, MIB, img, io, ok, qimg, qio

CLUSTERS = {"512": 512, "4k": 4 * KIB, "16k": 16 * KIB, "64k": 64 * KIB, "256k": 256 * KIB}


class Layer:
    """One image of the chain."""

    def __init__(self, rng, folder, name, below):
        self.rng, self.name, self.len = rng, os.path.join(folder, name), rng.randrange(1, 4 * MIB // SECTOR) * SECTOR
        self.fmt = rng.choice(["qcow2", "qcow2", "qcow2", "qed"] if below else ["qcow2", "qcow2", "raw", "qed"])
        self.cluster, self.packs, options = 0, False, []
        if self.fmt == "qcow2":
            options = self.qcow2(below)
        elif self.fmt == "raw" and rng.random() < .3:
            options = [f"preallocation={rng.choice(['falloc', 'full'])}"]
        self.args = ["create", "-q", "-f", self.fmt, *(["-o", ",".join(options)] if options else []),
                     *(["-b", below.name, "-F", below.fmt] if below else []), self.name, str(self.len)]
        ok(rng.choice([img, qimg])(*self.args))

    def qcow2(self, below):
        rng, extended = self.rng, self.rng.random() < .3
        word = rng.choice(["16k", "64k"] if extended else ["512", "4k", "64k", "64k", "256k"])
        version2 = not extended and rng.random() < .2
        external = not below and not version2 and rng.random() < .25
        self.cluster, self.packs = CLUSTERS[word], not external and word != "512"
        out = [f"cluster_size={word}"] + ["compat=0.10"] * version2 + ["extended_l2=on"] * extended
        if external:
            out += [f"data_file={self.name}.data"] + ["data_file_raw=on"] * (rng.random() < .4)
        if (extended or not below) and rng.random() < .3:
            out.append(f"preallocation={rng.choice(['metadata', 'falloc', 'full'])}")
        return out

    def one_write(self):
        rng = self.rng
        n = min(self.len, rng.choice([SECTOR, 5 * SECTOR, 4 * KIB, 64 * KIB, 300 * KIB, MIB]))
        off = rng.randrange((self.len - n) // SECTOR + 1) * SECTOR
        if self.packs and rng.random() < .2 and off // self.cluster * self.cluster + self.cluster <= self.len:
            return f"write -q -c -P 5 {off // self.cluster * self.cluster} {self.cluster}"
        return f"{rng.choice(['write -q -P 7'] * 3 + ['write -q -z', 'write -q -z -u', 'discard -q'])} {off} {n}"

    def write(self):
        commands = [self.one_write() for _ in range(self.rng.randrange(9))]
        # Some fail: theirs packs no cluster that is there already, and version 2 has no zeroes over a backing file.
        self.rng.choice([io, qio])(self.name, *commands, options=("-d", "unmap", "-f", self.fmt))
        self.args.append(commands)


def one_seed(seed, folder):
    os.makedirs(folder)
    rng, layers = random.Random(seed), []
    for name in "abc"[:rng.randint(1, 3)]:
        layers.append(Layer(rng, folder, name, layers[-1] if layers else None))
        layers[-1].write()
    told = "\n".join(str(layer.args) for layer in layers)
    a, b = (ok(tool("map", "--output=json", "-f", layers[-1].fmt, layers[-1].name)) for tool in (img, qimg))
    assert joined(a.json) == joined(b.json), f"{told}\n{a}\n{b}"
    # Of zeroes in data files both tell as far as they look; compressed clusters have no lines.
    if "data_file" not in told and "-c -P" not in told:
        a, b = (ok(tool("map", "-f", layers[-1].fmt, layers[-1].name)) for tool in (img, qimg))
        assert a.out == b.out, f"{told}\n{a}\n{b}"
    shutil.rmtree(folder)


def test_maps_are_the_same(tmp_path):
    each_seed(one_seed, tmp_path, 24)
