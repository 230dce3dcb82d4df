# SPDX-License-Identifier: MIT
"""test_convert_random - convert with random sources, ways and targets, beside what qemu-img makes of the same sources

Contents are judged by qemu-img, so is consistency. VARVE_SEED repeats a run, VARVE_SEEDS says how many lines are tried.
"""

import hashlib
import os
import random
import shutil
import subprocess

import pytest

from chains import chain
from seeds import seed
from test_full_disk import FULL, fill as fill_file_system, small_file_system
from tool import KIB, MIB, TIMEOUT, img, ok, qimg, qio, run, varve_path

ROUNDS = int(os.environ.get("VARVE_SEEDS", 10))
SALVAGED = 512


@pytest.fixture
def rng(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return random.Random(seed())


def bytes_of(path):
    with open(path, "rb") as f:
        return f.read()


def raw_file(rng, name):
    """Odd lengths; holes, zeroes, what packs and what does not."""
    with open(name, "wb") as f:
        for _ in range(rng.randrange(12)):
            n = rng.choice([512, 4 * KIB, 61 * KIB, 64 * KIB, 400 * KIB]) * rng.randrange(1, 4)
            kind = rng.randrange(4)
            if kind:
                f.write((bytes(n), (b"%d pieces " % rng.randrange(99) * n)[:n], rng.randbytes(n))[kind - 1])
            else:
                f.seek(n, os.SEEK_CUR)
        f.truncate(f.tell() + rng.choice([0, 512, 300 * KIB + 1024]))
    return name, "raw"


def source(rng, folder, i):
    """(name, format) of an image, perhaps with a backing chain."""
    kind = rng.choice(["raw", "qcow2", "packed", "chain", "chain"])
    if kind == "chain":
        return chain(rng, folder, [f"c{i}-{k}" for k in range(rng.randrange(2, 4))], 3 * MIB)[-1]
    name, fmt = raw_file(rng, f"s{i}")
    if kind == "raw":
        return name, fmt
    args = ["-c"] if kind == "packed" else []
    ok(qimg("convert", "-f", fmt, "-O", "qcow2", *args, "-o", "cluster_size=" + rng.choice(["512", "4k", "64k", "2M"]), name, name + "q"))
    return name + "q", "qcow2"


def target_options(rng, compress):
    options = ["cluster_size=" + rng.choice(["512", "4k", "64k", "64k", "2M"])]
    if rng.random() < 0.2:
        options.append("compat=0.10")
    elif rng.random() < 0.4:
        options += rng.choice([["refcount_bits=" + rng.choice(["1", "8", "64"])], ["lazy_refcounts=on"], ["compression_type=zstd"]])
    elif rng.random() < 0.2 and not compress:
        options.append("preallocation=metadata")
    return ",".join(options)


def ways(rng):
    args = []
    if rng.random() < 0.5:
        args += ["-m", str(rng.randrange(1, 17))]
    if rng.random() < 0.3:
        args += ["-S", rng.choice(["0", "512", "4k", "64k", "1M"])]
    if rng.random() < 0.3:
        args += ["-r", rng.choice(["200M", "1G"])]
    if rng.random() < 0.3:
        args += ["-T", rng.choice(["none", "writeback"])]
    return args


def into_file(rng, sources, args, expected):
    """A new file, or one that exists. Returns its format."""
    fmt = rng.choice(["raw", "qcow2", "qcow2", "qcow2", "qed"])
    length = os.stat(expected).st_size
    compress = fmt == "qcow2" and rng.random() < 0.4
    if compress:
        args.append("-c")
    elif rng.random() < 0.2 and "-S" not in args:
        args.append("-C")
    if rng.random() < 0.3:
        args.append(rng.choice(["-W", "--canonical"]))
    if rng.random() < 0.3:
        args += ["-t", rng.choice(["none", "writeback", "directsync", "unsafe"])]
    if rng.random() < 0.25:
        ok(qimg("create", "-q", "-f", fmt, "out", str(length)))
        args.append("-n")
        if rng.random() < 0.5:
            args.append("--target-is-zero")
        elif length:
            ok(qio("out", f"write -q -P 77 0 {min(length, MIB)}", options=("-f", fmt)))
        if rng.random() < 0.5:
            ok(img("convert", *args, *sources, "--target-image-opts", f"driver={fmt},file.filename=out"))
            return fmt
    elif fmt == "qcow2":
        args += ["-o", target_options(rng, compress)]
    ok(img("convert", *args, "-O", fmt, *sources, "out"))
    return fmt


def into_pipe(rng, sources, args):
    fmt = rng.choice(["raw", "qcow2", "qcow2"])
    if fmt == "qcow2":
        compress = rng.random() < 0.5
        args += (["-c"] if compress else []) + ["-o", target_options(rng, True)]
    with open("out", "wb") as f:
        p = subprocess.Popen([varve_path(), "img", "convert", *args, "-O", fmt, *sources, "-"], stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE)
        shutil.copyfileobj(p.stdout, f)
        err = p.communicate(timeout=TIMEOUT)[1]
    assert p.returncode == 0 and err == b"", err
    return fmt


def same(expected, out, fmt):
    ok(qimg("compare", "-f", "raw", "-F", fmt, expected, out))
    if fmt == "qcow2":
        ok(qimg("check", out)) # leaks are an error, too
        ok(img("check", out))


def test_every_way_beside_the_peer(rng, tmp_path):
    for i in range(ROUNDS):
        sources = [source(rng, tmp_path, f"{i}.{k}") for k in range(rng.choice([1, 1, 1, 2, 3]))]
        if len(sources) > 1: # one -f for all of them
            sources = [s for s in sources if s[1] == sources[0][1]]
        names, args = [s[0] for s in sources], ways(rng)
        ok(qimg("convert", "-f", sources[0][1], "-O", "raw", *names, "expected"))
        args += ["-f", sources[0][1]]
        print("convert", *args, *names)
        fmt = into_pipe(rng, names, args) if rng.random() < 0.3 else into_file(rng, names, args, "expected")
        same("expected", "out", fmt)
        os.unlink("out")


def test_over_a_backing_file_beside_the_peer(rng, tmp_path):
    """What stands above a base, above the same base in another image: flattened or not, it reads the same."""
    for i in range(ROUNDS // 3):
        made = chain(rng, tmp_path, [f"b{i}-{k}" for k in range(3)], 3 * MIB, same_size=True)
        (base, base_fmt), (top, _) = made[0], made[-1]
        # -B leaves out what the first image does not hold itself: it stands on a copy of all that is below it.
        below = f"below{i}"
        ok(qimg("convert", "-O", "qcow2", made[1][0], below))
        args = ways(rng) + (["-c"] if rng.random() < 0.5 else []) + ["-o", "cluster_size=" + rng.choice(["4k", "64k", "256k"])]
        if "-S" in args and args[args.index("-S") + 1] == "0":
            args[args.index("-S") + 1] = "4k"
        print("convert", *args, "-B", below, top, base, base_fmt)
        for name in ("out", "-"):
            if name == "out":
                ok(img("convert", *args, "-O", "qcow2", "-B", below, "-F", "qcow2", top, name))
            else:
                with open("out", "wb") as f:
                    subprocess.run([varve_path(), "img", "convert", *args, "-O", "qcow2", "-B", below, "-F", "qcow2", top, name],
                                   stdout=f, check=True, timeout=TIMEOUT)
            ok(qimg("compare", top, "out"))
            ok(qimg("check", "out"))
            ok(img("check", "out"))


def test_a_snapshot_beside_the_peer(rng, tmp_path):
    for i in range(ROUNDS // 4):
        name = f"n{i}"
        ok(qimg("create", "-q", "-f", "qcow2", "-o", "cluster_size=" + rng.choice(["4k", "64k"]), name, "3M"))
        for k in range(3):
            ok(qio(name, f"write -q -P {k + 1} {rng.randrange(2048) * 1024} {rng.randrange(1, 1000) * 512}"))
            ok(qimg("snapshot", "-c", f"snap{k}", name))
        k = rng.randrange(3)
        ok(qimg("convert", "-l", f"snap{k}", "-O", "raw", name, "expected"))
        args = ways(rng) + (["-c"] if rng.random() < 0.5 else [])
        ok(img("convert", *args, "-l", rng.choice([f"snap{k}", str(k + 1), f"snapshot.name=snap{k}"]), "-O", "qcow2", name, "out"))
        same("expected", "out", "qcow2")


def test_the_same_bytes_whenever_and_however(rng, tmp_path):
    for i in range(max(ROUNDS // 5, 1)):
        name, fmt = source(rng, tmp_path, i)
        args = (["-c"] if rng.random() < 0.6 else []) + ["-o", target_options(rng, True)]
        print("convert", *args, name)
        files = set()
        for m in rng.sample(["1", "2", "5", "8", "16"], 3):
            ok(img("convert", "--canonical", "-m", m, "-f", fmt, "-O", "qcow2", *args, name, "out"))
            files.add(hashlib.sha256(bytes_of("out")).digest())
            os.unlink("out")
        assert len(files) == 1
        # -t and -T decide how, not what.
        ok(img("convert", "--canonical", "-T", "none", "-t", "writeback", "-f", fmt, "-O", "qcow2", *args, name, "out"))
        assert hashlib.sha256(bytes_of("out")).digest() in files


def test_what_can_be_read_is_salvaged(rng):
    with open("whole", "wb") as f:
        f.write(rng.randbytes(2 * MIB + 5 * 512))
    whole = bytes_of("whole")
    spec, lost = "driver=raw,file.driver=fault,file.file.filename=whole", set()
    for i in range(3):
        off, length = rng.randrange(4096) * 512, rng.choice([512, 4 * KIB, 70 * KIB])
        spec += f",file.rule.{i}.event=read,file.rule.{i}.offset={off},file.rule.{i}.length={length}"
        lost |= set(range(off // SALVAGED, (off + length - 1) // SALVAGED + 1))
    print(spec)
    want = b"".join(bytes(SALVAGED) if i in lost else whole[i * SALVAGED:(i + 1) * SALVAGED]
                    for i in range(len(whole) // SALVAGED + 1))[:len(whole)]
    r = img("convert", "--image-opts", "-O", "qcow2", spec, "out")
    assert r.rc == 1 and len(r.err.splitlines()) == 1 and not os.path.exists("out"), str(r)
    for target in ("out", "/dev/stdout"):
        for args in ([], ["-c"], ["-m", "1"]):
            r = run("sh", "-c", 'exec "$@" | cat > out', "sh", varve_path(), "img", "convert", "--salvage", *args, "--image-opts", "-O", "qcow2",
                    spec, target) if target != "out" else img("convert", "--salvage", *args, "--image-opts", "-O", "qcow2", spec, target)
            assert r.rc == 0 and "zeroes instead" in r.err, str(r)
            assert len(r.err.splitlines()) >= len({i * SALVAGED // (4 * KIB) for i in lost if i * SALVAGED < len(whole)}), str(r)
            ok(qimg("convert", "-O", "raw", "out", "back"))
            assert bytes_of("back") == want
            ok(qimg("check", "out"))


# ---- half done ----

@pytest.mark.parametrize("args", [["-O", "raw", "-S", "0"], ["-O", "qcow2", "-S", "0"], ["-O", "qcow2", "-c"], ["-O", "qed", "-S", "0"],
                                  ["-O", "qcow2", "-t", "none", "-W"]])
@pytest.mark.parametrize("source", ["file", "pipe"])
def test_a_full_disk_leaves_nothing_half_done(tmp_path, monkeypatch, args, source):
    monkeypatch.chdir(tmp_path)
    with open("src.raw", "wb") as f:
        f.write(random.Random(1).randbytes(6 * MIB))
    with small_file_system("tmpfs", tmp_path, 4 * MIB) as where:
        if source == "file":
            r = img("convert", "-f", "raw", *args, "src.raw", where / "out")
        else:
            with open("src.raw", "rb") as f:
                p = subprocess.run([varve_path(), "img", "convert", "-f", "raw", *args, *(["-o", "size=8M"] if "qed" in args else []), "-",
                                    where / "out"], stdin=f, capture_output=True, text=True, timeout=TIMEOUT, check=False)
                r = type("Result", (), {"rc": p.returncode, "err": p.stderr})
        assert r.rc == 1 and FULL in r.err and len(r.err.splitlines()) == 1, r.err
        assert not os.path.exists(where / "out")
        # A target that was there before is emptied, not removed; -n leaves what it is to its owner.
        with open(where / "old", "wb") as f:
            f.write(b"old")
        r = img("convert", "-f", "raw", *args, "src.raw", where / "old")
        assert r.rc == 1 and os.stat(where / "old").st_size == 0
        fill_file_system(where, 64 * KIB)
        r = img("convert", "-f", "raw", *args, "src.raw", where / "new")
        assert r.rc == 1 and not os.path.exists(where / "new")
