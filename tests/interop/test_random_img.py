# SPDX-License-Identifier: MIT
"""test_random_img - commands with options chosen by seed, run by both tools on equal images: equal answers, equal contents

A seed makes a chain of images with random options and then runs commands (write, resize, amend, rebase, commit, snapshot,
measure, map) with random options, ours in one folder, theirs in another. After each command both have the same exit status, every
image of both folders is clean for both tools, and holds the same. What ours refused it has not touched.

Where the peer (7.2) is known to fall short, ours is held against what was there before, and both go on with that.

VARVE_SEEDS=N   how many seeds (default 16)
VARVE_SEED=N    only this one
"""

import json
import os
import pathlib
import random
import shutil

from seeds import each_seed
from tool import KIB, MIB, img, io, qimg, qio, run

SECTOR = 512
STEPS = 7


def size(rng, most=3 * MIB):
    return rng.choice([rng.randrange(1, most // SECTOR) * SECTOR, rng.randrange(1, most // (64 * KIB)) * 64 * KIB])


def create_options(rng, fmt, backing):
    """-o of a new image, some of them impossible."""
    if fmt == "raw":
        return rng.choice(["", "", "preallocation=off", "preallocation=falloc", "preallocation=full", "preallocation=metadata"])
    if fmt == "qed":
        return rng.choice(["", f"cluster_size={rng.choice(['4k', '16k', '64k'])}", "table_size=2", "table_size=8", "cluster_size=2k"])
    out = []
    if rng.random() < 0.7:
        out.append(f"cluster_size={rng.choice(['512', '4k', '16k', '64k', '256k', '3k'])}")
    if rng.random() < 0.6:
        out.append(f"compat={rng.choice(['0.10', '1.1', 'v2', 'v3'])}")
    if rng.random() < 0.4:
        out.append(f"refcount_bits={rng.choice([1, 2, 4, 8, 16, 16, 32, 64, 3])}")
    if rng.random() < 0.3:
        out.append(f"lazy_refcounts={rng.choice(['on', 'off'])}")
    if rng.random() < 0.2:
        out.append(f"compression_type={rng.choice(['zlib', 'zstd'])}")
    extended = rng.random() < 0.3
    if extended:
        out.append("extended_l2=on")
    if (extended or not backing) and rng.random() < 0.3:
        out.append(f"preallocation={rng.choice(['off', 'metadata', 'falloc', 'full'])}")
    rng.shuffle(out)
    return ",".join(out)


class Pair:
    """The same folder twice."""

    def __init__(self, rng, folder):
        self.rng, self.said = rng, []
        self.dirs = [os.path.join(folder, name) for name in ("ours", "theirs")]
        self.images = {}  # name: [format, backing name or None]
        for d in self.dirs:
            os.makedirs(d)

    def run(self, *args, shortcomings=()):
        """By both; theirs must answer as ours does. True: it was done."""
        before = self.bytes()
        a = img(*args, cwd=self.dirs[0])
        b = run("timeout", "-s", "KILL", "10", "qemu-img", *args, cwd=self.dirs[1])  # some of its amends never end, and QED with -W aborts
        self.said.append(" ".join(args) + f"  -> {a.rc}")
        if b.rc < 0 or a.rc == 0 and b.rc == 1 and any(s in b.err for s in shortcomings):
            self.adopt()
            b.rc = a.rc
        if a.rc == 1 and ("its snapshot" in a.err or "compat=0.10 does not have" in a.err):
            b.rc = a.rc  # which theirs silently changes, or drops
        assert a.rc == b.rc, f"{a}\n{b}"
        if a.rc == 0:
            assert a.err == "", str(a)
        else:
            assert len(a.err.splitlines()) == 1 and self.bytes() == before, str(a)
            self.adopt()  # theirs may leave something behind
        self.last = a, b
        return a.rc == 0

    def bytes(self):
        return {name: pathlib.Path(self.dirs[0], name).read_bytes() for name in sorted(os.listdir(self.dirs[0]))}

    def adopt(self):
        """Theirs becomes what ours is."""
        shutil.rmtree(self.dirs[1])
        shutil.copytree(self.dirs[0], self.dirs[1])

    def content(self, name):
        out = os.path.join(self.dirs[0], os.pardir, "content")
        assert qimg("convert", "-f", self.images[name][0], "-O", "raw", name, out, cwd=self.dirs[0]).rc == 0
        return pathlib.Path(out).read_bytes()

    def info(self, name):
        return [json.loads(qimg("info", "-f", self.images[name][0], "--output=json", name, cwd=d).out) for d in self.dirs]

    def length(self, name):
        return self.info(name)[0]["virtual-size"]

    def write(self, name):
        fmt, rng = self.images[name][0], self.rng
        length, commands = self.length(name), []
        for _ in range(rng.randrange(1, 5)):
            n = min(length, rng.choice([SECTOR, 5 * SECTOR, 64 * KIB, 300 * KIB]))
            off = rng.randrange((length - n) // SECTOR + 1) * SECTOR
            commands += ["-c", rng.choice([f"write -q -P {rng.randrange(1, 255)} {off} {n}"] * 3 + [f"write -q -z {off} {n}"])]
        for d in self.dirs:
            qio_(d, fmt, name, commands)
        self.said.append(f"write {name} {commands[1::2]}")

    def compare(self):
        """Every image, in both folders, for both tools. A discarded or old part never differs: all commands define what is read."""
        for name, (fmt, _) in self.images.items():
            first, second = (os.path.join(d, name) for d in self.dirs)
            for path in (first, second):
                if fmt != "raw":
                    for tool in (img, qimg):
                        r = tool("check", "-q", "-f", fmt, path)
                        assert r.rc == 0, str(r)
            for tool in (img, qimg):
                r = tool("compare", "-q", "-f", fmt, "-F", fmt, first, second)
                assert r.rc == 0, f"{r}"
            one, two = self.info(name)
            for told in (one, two):
                for key in ("actual-size", "filename", "full-backing-filename", "snapshots"):
                    told.pop(key, None)
            assert one == two


def qio_(folder, fmt, name, commands):
    # Theirs fills a QED cluster of zeroes that is written in part with bytes of the backing file.
    r = (io if fmt == "qed" else qio)(name, options=("-f", fmt, *commands), cwd=folder)
    # Version 2 cannot say "zeroes" over a backing file; theirs says so, in both folders.
    assert r.rc == 0 or "write -q -z" in " ".join(commands), str(r)


# ---- commands ----

def make(p, name, backing):
    rng = p.rng
    fmt = rng.choice(["qcow2", "qcow2", "qcow2", "qed"] if backing else ["qcow2", "qcow2", "raw", "qed"])
    args = ["create", *rng.choice([["-q"], []]), "-f", fmt]
    options = create_options(rng, fmt, backing)
    if options:
        args += ["-o", options]
    if backing:
        args += rng.choice([["-b", backing, "-F", p.images[backing][0]],
                            ["-o", f"backing_file={backing},backing_fmt={p.images[backing][0]}"]])
    args.append(name)
    if not backing or rng.random() < 0.5:
        args.append(str(size(rng)))
    if p.run(*args):
        p.images[name] = [fmt, backing]
        p.write(name)
        return True
    return False


# Version 2 cannot say "zeroes" over a backing file; ours writes them into what a disk has grown by.
NO_ZEROES = ["Failed to zero out new clusters"]


def resize(p, name):
    rng, now = p.rng, p.length(name)
    word = rng.choice([str(size(rng)), f"+{size(rng, MIB)}", f"-{size(rng, MIB)}", "1M", "1.5M", "2097152b"])
    args = ["resize", *rng.choice([["-q"], []]), "-f", p.images[name][0]]
    target = now + int(word) if word[0] in "+-" else {"1M": MIB, "1.5M": 3 * MIB // 2, "2097152b": 2 * MIB}.get(word) or int(word)
    if target < now and rng.random() < 0.9:
        args.append("--shrink")
    if target > now and rng.random() < 0.4:
        args.append(f"--preallocation={rng.choice(['off', 'metadata', 'falloc', 'full'])}")
    p.run(*args, name, word, shortcomings=NO_ZEROES)


def amend(p, name):
    rng = p.rng
    choices = [f"compat={rng.choice(['0.10', '1.1'])}", f"lazy_refcounts={rng.choice(['on', 'off'])}",
               f"refcount_bits={rng.choice([1, 4, 8, 16, 16, 64])}", f"size={p.length(name) + rng.choice([0, 64 * KIB, SECTOR])}"]
    p.run("amend", "-f", p.images[name][0], "-o", ",".join(rng.sample(choices, rng.choice([1, 1, 2]))), name, shortcomings=NO_ZEROES)


def rebase(p, name):
    rng = p.rng
    others = [n for n in p.images if n != name and not above(p, n, name)]
    to = rng.choice([*others, *others, ""])
    args = ["rebase", "-f", p.images[name][0], "-b", to]
    if to:
        args += ["-F", p.images[to][0]]
    before = p.content(name)
    if p.run(*args, name):
        p.images[name][1] = to or None
        assert p.content(name) == before
        # Theirs takes QED's clusters of zeroes for holes, and loses zeroes of version 2.
        if not same(p, name):
            assert p.images[name][0] == "qed" or p.info(name)[0]["format-specific"]["data"]["compat"] == "0.10"
            p.adopt()


def same(p, name):
    fmt = p.images[name][0]
    return qimg("compare", "-q", "-f", fmt, "-F", fmt, *(os.path.join(d, name) for d in p.dirs)).rc == 0


def above(p, one, other):
    """Does `one` read from `other`?"""
    while one:
        if one == other:
            return True
        one = p.images[one][1]
    return False


def commit(p, name):
    users = [n for n in p.images if n != name and p.images[n][1] and above(p, n, p.images[name][1])]
    if users or not p.images[name][1]:
        return  # who else reads from the base reads something else afterwards
    args = ["commit", *p.rng.choice([[], ["-d"], ["-q"]]), "-f", p.images[name][0]]
    if p.images[name][0] == "qed" and "-d" not in args:
        args.append("-d")  # which ours wants to be told of an image that cannot be emptied
    p.run(*args, name)


def snapshot(p, name):
    told = p.info(name)[0].get("snapshots", [])
    if told and p.rng.random() < 0.7:
        p.run("snapshot", "-d", told[0]["name"], name)
    elif not told:
        p.run("snapshot", "-c", f"s{p.rng.randrange(9)}", name)


def measure(p, name):
    rng = p.rng
    fmt = rng.choice(["raw", "qcow2", "qcow2"])
    args = ["measure", "--output=json", "-O", fmt]
    options = create_options(rng, fmt, None).replace("=v2", "=0.10").replace("=v3", "=1.1")
    if options:
        args += ["-o", options]
    # Each measures the same image.
    what = ["--size", str(size(rng, 1 << 36))] if rng.random() < 0.4 else ["-f", p.images[name][0], os.path.join(p.dirs[0], name)]
    a, b = (tool(*args, *what) for tool in (img, qimg))
    p.said.append(" ".join([*args, *what]) + f"  -> {a.rc}")
    if a.rc:
        # Theirs measures some images that it could not make.
        new = os.path.join(p.dirs[0], "new")
        assert img("create", "-q", "-f", fmt, "-o", options, new, "1M").rc == 1 and not os.path.exists(new), str(a)
    else:
        # Theirs finds holes of the file below clusters that were preallocated; ours takes them for data.
        low = b.json["required"] <= a.json["required"] if "preallocat" in " ".join(p.said) else a.json["required"] == b.json["required"]
        assert b.rc == 0 and low and {**a.json, "required": 0} == {**b.json, "required": 0}, f"{a}\n{b}"


def joined(extents):
    out = []
    for e in extents:
        e.pop("compressed", None)
        e["zero"] = e["zero"] and not e["data"]  # theirs looks for holes of the file below preallocated clusters
        if not e["present"]:
            e.pop("offset", None)  # theirs tells where a subcluster would be that has no bytes
        last = out[-1] if out else None
        if last and all(last[k] == e[k] for k in ("depth", "present", "zero", "data")) and \
                (last.get("offset", -1 - last["length"]) + last["length"] == e.get("offset", -1)):
            last["length"] += e["length"]
        else:
            out.append(e)
    return out


def map_it(p, name):
    args = ["map", "--output=json", "-f", p.images[name][0]]
    if p.rng.random() < 0.4:
        args += ["-s", str(p.rng.randrange(p.length(name) // SECTOR) * SECTOR)]
    if p.rng.random() < 0.4:
        args += ["-l", str(size(p.rng))]
    if p.run(*args, os.path.join(p.rng.choice(p.dirs), name)):
        assert joined(p.last[0].json) == joined(p.last[1].json), f"{p.last[0]}\n{p.last[1]}"


COMMANDS = [resize, resize, amend, amend, rebase, rebase, commit, commit, snapshot, measure, map_it]


def one_seed(seed, folder):
    rng = random.Random(seed)
    p = Pair(rng, folder)
    try:
        for name in ("a", "b", "c"):
            make(p, name, rng.choice([None, *p.images]))
        while not p.images:
            make(p, "d", None)
        p.compare()
        for _ in range(STEPS):
            name = rng.choice(list(p.images))
            command = rng.choice(COMMANDS)
            if p.images[name][0] == "raw" and command in (amend, rebase, snapshot):
                command = resize
            command(p, name)
            if rng.random() < 0.3:
                p.write(name)
            p.compare()
    except Exception as e:
        raise AssertionError("\n".join(p.said[-25:]) + f"\n{e}") from e
    shutil.rmtree(folder)


def test_commands_do_the_same_in_both(tmp_path):
    each_seed(one_seed, tmp_path, 16)
