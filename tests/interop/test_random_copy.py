# SPDX-License-Identifier: MIT
"""test_random_copy - convert, dd, bitmap, snapshot, compare, check, info, map: options chosen by seed, by both tools on equal images

As test_random_img, whose folders it takes: after each command both tools have the same exit status, what ours refused it has not
touched, and the images of both folders hold the same. What only looks at images is told about the same image by both, in the same words.

VARVE_SEEDS=N   how many seeds (default 12)
VARVE_SEED=N    only this one
"""

import os
import random
import re
import shutil

from seeds import each_seed
from test_random_img import SECTOR, Pair, above, create_options, joined, make, size
from tool import KIB, childless, img, qimg

STEPS, MOST = 9, 7


def options_of(rng, fmt, backing):
    o = create_options(rng, fmt, backing)
    return ["-o", o] if o else []


def pick(p, *formats):
    names = [n for n in p.images if not formats or p.images[n][0] in formats]
    return p.rng.choice(names) if names else None


def source(p, name):
    """An image in one of the ways to name it: options that come before all others, and the name."""
    fmt = p.images[name][0]
    return p.rng.choice([([], name), (["-f", fmt], name), (["-f", fmt], f"./{name}"), (["-f", fmt], f"file:{name}"),
                         (["--image-opts"], f"driver={fmt},file.filename={name}"),
                         ([], 'json:{"driver":"%s","file":{"driver":"file","filename":"%s"}}' % (fmt, name))])


def forget(p):
    """The oldest image that no other reads from."""
    used = {backing for _, backing in p.images.values()}
    name = next(n for n in p.images if n not in used)
    del p.images[name]
    for d in p.dirs:
        os.unlink(os.path.join(d, name))


def target(p):
    """The name of a new image; there is room for it."""
    while len(p.images) >= MOST:
        forget(p)
    p.nr = getattr(p, "nr", 0) + 1
    return f"t{p.nr}"


SHORT = ["Source lacks bitmap support", "does not support bitmaps"]  # version 2, without bitmaps: ours copies none


def convert(p):
    rng, to, name = p.rng, target(p), pick(p)
    said, word = source(p, name)
    fmt = rng.choice(["raw", "qcow2", "qcow2", "qed"])
    args, backing = ["convert", *said, "-O", fmt], p.images[name][1]
    told = p.info(name)[0]
    for option, chance in ((["-q"], .2), (["-W"], .2), (["-m", str(rng.choice([1, 4, 16]))], .2), (["-U"], .1), (["--salvage"], .1),
                           (["-S", rng.choice(["0", "512", "4k", "64k", "100"])], .3), (["-T", rng.choice(["none", "unsafe"])], .1),
                           (["-t", rng.choice(["none", "writeback", "bogus"])], .1), (["-r", "1G"], .1), (["-c"], .25),
                           (["--bitmaps"], .2), (["-o", f"size={size(rng)}"], .1), (["--target-is-zero"], .03)):
        if rng.random() < chance:
            args += option
    snapshot = rng.choice([s["name"] for s in told.get("snapshots", [])] or [None]) if rng.random() < .5 else None
    if snapshot and "--bitmaps" not in args:  # together refused by ours
        args += ["-l", rng.choice([snapshot, f"snapshot.name={snapshot}"])]
    below = backing and fmt != "raw" and not snapshot and rng.random() < .3
    if below:
        args += ["-B", backing, "-F", p.images[backing][0]]
    if rng.random() < .7:
        args += options_of(rng, fmt, below)
    sources = [word]
    if not below and rng.random() < .15 and "--image-opts" not in args:
        sources.append(pick(p))
    old = pick(p, fmt) if rng.random() < .2 else None
    if old and old != name and old not in sources and not [n for n in p.images if p.images[n][1] == old] and "-o" not in args:
        packed = ["Input/output error"] if "-c" in args else []  # theirs packs no cluster that is there already
        p.run(*args, "-n", *sources, old, shortcomings=SHORT + packed)
    elif p.run(*args, *sources, to, shortcomings=SHORT):
        p.images[to] = [fmt, backing if below else None]


def dd(p):
    rng, to, name = p.rng, target(p), pick(p)
    said, word = source(p, name)
    fmt = rng.choice(["raw", "raw", "qcow2"])
    bs = rng.choice([512, 1000, 1024, 4096, 64 * KIB, 1024 * KIB])
    args = ["dd", *said, "-O", fmt, f"bs={bs}"]
    if rng.random() < .5:
        args.append(f"count={rng.choice([0, 1, 3, 17, 1000])}")
    elif rng.random() < .5:  # theirs takes what it skips from the count
        args.append(f"skip={min(rng.choice([0, 1, 5]), max(p.length(name) - 1, 0) // bs)}")  # both warn of more
    if p.run(*args, f"if={word}", f"of={to}"):
        p.images[to] = [fmt, None]


def bitmap(p):
    rng, name = p.rng, pick(p, "qcow2")
    if not name:
        return
    there = [b["name"] for b in p.info(name)[0].get("format-specific", {}).get("data", {}).get("bitmaps", [])]
    args = ["bitmap"]
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        args += rng.choice([["--add"], ["--add"], ["--remove"], ["--clear"], ["--enable"], ["--disable"],
                            ["--merge", rng.choice(there or ["b0"])]])
    if "--add" in args and rng.random() < .5:
        args += ["-g", rng.choice(["512", "4k", "64k", "2M", "100"])]
    args += [name, rng.choice([*there, f"b{rng.randrange(3)}"])]
    a, b = (tool(*args, cwd=d) for tool, d in zip((img, qimg), p.dirs))
    p.said.append(" ".join(args) + f"  -> {a.rc}")
    assert a.rc == b.rc, f"{a}\n{b}"
    if a.rc:  # what comes before the one that fails is done, but ours looks first whether there is what is merged
        p.adopt()


def snapshot(p):
    rng, name = p.rng, pick(p, "qcow2")
    if not name:
        return
    names = [s["name"] for s in p.info(name)[0].get("snapshots", [])]
    ids = [s["id"] for s in p.info(name)[0].get("snapshots", [])]
    kind = rng.choice("ccad")
    # Theirs applies none while a bitmap is enabled, or of another length.
    p.run("snapshot", f"-{kind}", f"{rng.choice(['1', '2', 'x', 'y'])}" if kind == "c" else rng.choice([*names, "x"] if kind == "d" else [*names, *ids, "x"]),
          name, shortcomings=["active dirty bitmaps", "snapshot with different size"])


def rebase_unsafe(p):
    rng, name = p.rng, pick(p, "qcow2", "qed")
    if not name or not p.images[name][1]:
        return
    backing = p.images[name][1]
    p.run("rebase", "-u", "-b", rng.choice([backing, f"./{backing}", f"{p.dirs[0]}/../{os.path.basename(p.dirs[0])}/{backing}"][:2]),
          "-F", p.images[backing][0], name)


def commit(p):
    """Into the base itself, if nobody else reads from what is changed."""
    rng, name = p.rng, pick(p, "qcow2", "qed")
    chain = []
    n = name and p.images[name][1]
    while n:
        chain.append(n)
        n = p.images[n][1]
    if not chain:
        return
    base = rng.choice(chain)
    below = chain[chain.index(base):]
    if [n for n in p.images if n != name and n not in chain and any(above(p, n, b) for b in below)]:
        return
    if base != chain[0] and (p.images[base][0] == "raw" or len(chain) > 1):
        return  # what lies between reads something else afterwards
    p.run("commit", "-f", p.images[name][0], "-d", "-b", base, name)


def create(p):
    rng, to, backing = p.rng, target(p), pick(p)
    fmt = rng.choice(["qcow2", "qcow2", "qed"])
    args = ["create", "-q", "-f", fmt, *options_of(rng, fmt, backing), "-F", p.images[backing][0], "-b", rng.choice([backing, f"./{backing}"]),
            *rng.choice([[], ["-u"]]), to, *rng.choice([[], ["1M"], ["0"], ["1.5M"], ["10000"], ["1000k"], ["3x"], ["-1"]])]
    if p.run(*args):
        p.images[to] = [fmt, backing]


def lines(text):
    """In any order: that of the members of an object is everyone's own."""
    return sorted(text.splitlines())


def look(p):
    """Both tools at the same image."""
    rng, name, d = p.rng, pick(p), p.rng.choice(p.dirs)
    said, word = source(p, name)
    command = rng.choice(["info", "info", "check", "map", "compare", "snapshot", "measure"])
    args = {"info": [["--output=json"], [], ["--backing-chain", "--output=json"]],
            "check": [["--output=json"], []], "map": [["--output=json"], ["--output=json", "-s", "64k"]],
            "snapshot": [["-l"]], "compare": [[], ["-s"]], "measure": [["-O", "qcow2", "--output=json"], ["-O", "raw"]]}[command]
    if command == "snapshot" and "-f" in said:  # it has none in 7.2
        said = []
    args = [command, *rng.choice(args), *said, word]
    if command == "compare":
        if "-f" in said:
            args += ["-F", p.images[name][0]]
        args.append(pick(p) if not said else word)
        if not said and p.images[args[-1]][0] == "raw":
            return
    if command == "measure" and "preallocat" in " ".join(p.said):
        return
    a, b = (tool(*args, cwd=d) for tool in (img, qimg))
    if "-s" in args and a.rc == 0 and "block status" in b.out:
        return  # for theirs the last stretch of an image differs from one that others follow
    assert a.rc == b.rc, f"{a}\n{b}"
    if command == "check" and p.images[name][0] == "qed":  # where a QED image ends is told by ours only
        a.out = re.sub(r' *"image-end-offset": \d+,\n|Image end offset: \d+\n', "", a.out)
    if a.rc in (0, 3) and "--output=json" in args:
        x, y = (joined(r.json) if command == "map" else r.json for r in (a, b))
        assert strip(childless(x)) == strip(y), f"{a}\n{b}"
    elif a.rc == 0 and command in ("info", "check", "snapshot", "measure", "compare"):
        assert lines(childless(a.out)) == lines(b.out), f"{a}\n{b}"


def strip(value):
    if isinstance(value, dict):
        return {k: strip(v) for k, v in value.items() if k not in ("limits", "children", "compressed")}
    return [strip(v) for v in value] if isinstance(value, list) else value


COMMANDS = [convert, convert, convert, dd, bitmap, bitmap, snapshot, snapshot, rebase_unsafe, commit, create, look, look, look]


def one_seed(seed, folder):
    rng = random.Random(seed)
    p = Pair(rng, folder)
    try:
        for name in ("a", "b", "c"):
            make(p, name, rng.choice([None, *p.images]))
        while not p.images:
            make(p, "d", None)
        for _ in range(STEPS):
            rng.choice(COMMANDS)(p)
            if rng.random() < .3:
                name = pick(p)
                if p.length(name) and not [n for n in p.images if p.images[n][1] == name]:
                    p.write(name)
            p.compare()
    except Exception as e:
        raise AssertionError("\n".join(p.said[-25:]) + f"\n{e}") from e
    shutil.rmtree(folder)


def test_copies_are_the_same_in_both(tmp_path):
    each_seed(one_seed, tmp_path, 12)
