# SPDX-License-Identifier: MIT
"""chains - random backing chains, for the tests of commands that change them

Made by qemu-io, so that varve is asked about images that it did not write.
"""

import shutil

from tool import KIB, MIB, ok, qimg, qio

SECTOR = 512


def writes(rng, size, count, first=1):
    """Commands of qemu-io that write random stretches of a disk: bytes and zeroes."""
    commands = []
    for i in range(count):
        length = min(size, rng.choice([1, 3, 8, 64, 128, 300, 2048]) * SECTOR)
        off = rng.randrange((size - length) // SECTOR + 1) * SECTOR
        kind = rng.choice(["write -P %d" % (first + i), "write -P %d" % (first + i), "write -z", "write -P 0"])
        commands.append(f"{kind} {off} {length}")
    return commands


def image(rng, path, size, backing=None, formats=("qcow2",), first=1, options=None):
    """One image with something in it; backing: (name as it is written, format). Returns its format."""
    fmt = rng.choice(formats) if not backing else "qcow2"
    create = ["create", "-q", "-f", fmt]
    if fmt == "qcow2":
        # Writing zeroes over a backing file is beyond version 2; theirs says so.
        compat = "1.1" if backing else rng.choice(["0.10", "1.1"])
        create += ["-o", options or f"cluster_size={rng.choice(['4k', '64k', '512'])},compat={compat}"]
    if backing:
        create += ["-b", backing[0], "-F", backing[1]]
    ok(qimg(*create, path, str(size)))
    ok(qio(path, *writes(rng, size, rng.randrange(1, 8), first), options=("-f", fmt)))
    return fmt


def chain(rng, folder, names, size=4 * MIB, same_size=False):
    """Images of these names, the first is the bottom, in folder. Returns [(name, format)]."""
    made = []
    for i, name in enumerate(names):
        length = size if same_size else max(64 * KIB, size + rng.choice([0, 0, -MIB, MIB, 512, -1024]))
        fmt = image(rng, folder / name, length, made[-1] if made else None, ("raw", "qcow2"), first=1 + 20 * i)
        made.append((name, fmt))
    return made


def twin(folder, other):
    """The same files a second time."""
    shutil.copytree(folder, other)
    return other
