# SPDX-License-Identifier: MIT
"""test_guest - a real Linux guest uses a served disk, and the image it leaves is whole

What happens when one of both is killed, or moves, is in test_guest_trouble.py.

Owns:    the images and the boots of each test, below pytest's tmp_path.
Assumes: VARVE_BUILD names the build folder; apt can fetch the kernel package the first time.
Never:   skips because something is missing: that is a failure with a clear text.

VARVE_SKIP_GUEST=1          skip all of it
VARVE_GUEST_CACHE=DIR       where kernel and initramfs are kept (default: VARVE_BUILD/guest)
VARVE_TEST_BACKEND=varve    what serves the disk: varve, or to judge the test itself
                            qsd (qemu-storage-daemon) or plain (QEMU opens the image)
VARVE_SEED=N                repeat a run
"""

import json
import os

import pytest

from guest import (DATA_LEN, ControlledBackend, CopyOnReadBackend, Guest, GuestError, Job, Kernel, PlainDisk, QsdBackend, StreamBackend,
                   VarveBackend, qemu_check, run, sha256_file, varve_path)
from seeds import seed as seed_of_run
from webserver import Nginx

pytestmark = pytest.mark.skipif(os.environ.get("VARVE_SKIP_GUEST") == "1",
                                reason="VARVE_SKIP_GUEST=1 is set")

KIB, MIB = 1 << 10, 1 << 20
CLUSTER = 64 * KIB
BACKENDS = {"varve": VarveBackend, "qsd": QsdBackend, "plain": PlainDisk}
TOOL = os.environ.get("VARVE_TEST_BACKEND", "varve")

os.environ["PATH"] += ":/usr/sbin:/sbin"  # e2fsprogs, for users other than root


@pytest.fixture(scope="module")
def kernel():
    cache = os.environ.get("VARVE_GUEST_CACHE")
    if not cache and not os.environ.get("VARVE_BUILD"):
        raise GuestError("set VARVE_BUILD (build folder) or VARVE_GUEST_CACHE (for the kernel)")
    return Kernel(cache or os.path.join(os.environ["VARVE_BUILD"], "guest"))


@pytest.fixture
def seed():
    return seed_of_run()


def create(disk, size=None, base=None):
    """A qcow2 image, made by what is under test."""
    tool = [varve_path(), "img"] if TOOL == "varve" else ["qemu-img"]
    backing = ["-b", base, "-F", "raw"] if base else []
    run(*tool, "create", "-f", "qcow2", *backing, disk, *([str(size)] if size else []))


def boot(kernel, job, disk, folder, fmt="qcow2", queues=1, cpus=1, read_only=False, backend=None, packed=False):
    """Serve the disk, boot the guest on it, stop both: all must go well. Returns the facts."""
    if TOOL not in BACKENDS:
        raise GuestError(f"VARVE_TEST_BACKEND={TOOL}: not one of {', '.join(BACKENDS)}")
    with (backend or BACKENDS[TOOL])(disk, fmt, queues, read_only) as served:
        outcome = Guest(kernel, job, served, folder, cpus=cpus, packed=packed).run()
        print(f"{job.name}: {outcome.verdict} in {outcome.seconds:.1f} s, {outcome.facts}")
        status, printed = served.stop()
        print(f"back end: exit status {status}; it printed: {printed or 'nothing'}")
    outcome.require_pass()
    assert (status, printed) == (0, ""), "the back end did not stop in silence"
    return outcome.facts


def require_flushes(facts):
    """The guest takes the disk for what it is, one with a volatile cache, and flushes it."""
    if TOOL == "qsd":  # 7.2 says in its config space that nothing needs a flush
        return
    assert facts["write_cache"] == "write back"
    assert int(facts["flushes"]) > 0


def require_whole(disk, raw):
    """Nobody finds fault with the image, and all agree on what it holds; leaves a copy in raw."""
    assert qemu_check(disk) == {"check-errors": 0, "corruptions": 0, "leaks": 0}
    run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", disk, raw)
    run("qemu-img", "compare", "-f", "qcow2", "-F", "raw", disk, raw)
    if TOOL == "varve":
        run(varve_path(), "img", "check", "-f", "qcow2", disk)
        run(varve_path(), "img", "compare", "-f", "qcow2", "-F", "raw", disk, raw)


def require_files(raw, folder, sums):
    """The host finds the file system sound, and in it exactly the files of sums below data/."""
    run("e2fsck", "-f", "-n", raw)
    os.makedirs(folder)
    run("debugfs", "-R", f"rdump /data {folder}", raw)
    found = {}
    for where, _, names in os.walk(os.path.join(folder, "data")):
        for name in names:
            path = os.path.join(where, name)
            found[os.path.relpath(path, folder)] = sha256_file(path)
    assert found == sums


def test_fresh_disk_takes_a_file_system_and_keeps_it(kernel, seed, tmp_path):
    """mkfs, files, discard and fsck in one boot; a second, read-only boot finds the same files."""
    disk, raw = str(tmp_path / "fresh.qcow2"), str(tmp_path / "fresh.raw")
    job = Job("fs", seed)
    job.add_files(48)
    create(disk, size=1 << 30)

    facts = boot(kernel, job, disk, tmp_path)
    assert facts["bytes"] == str(1 << 30)
    assert facts["read_only"] == "0"
    assert int(facts["write_zeroes_max_bytes"]) > 0
    assert int(facts["discards"]) > 0
    require_flushes(facts)
    # After the deletions nearly all of the disk is free, and fstrim passes all of that on.
    assert int(facts["trimmed"]) > 800 * MIB

    require_whole(disk, raw)
    require_files(raw, str(tmp_path / "found"), job.sums_left())

    before = sha256_file(disk)
    job.name = "boot-ro"
    assert boot(kernel, job, disk, tmp_path, read_only=True)["read_only"] == "1"
    assert sha256_file(disk) == before


def test_overlay_grows_a_file_system_from_its_base(kernel, seed, tmp_path):
    """The guest reads the base's files through the overlay and adds its own; the base stays."""
    base, disk, raw = (str(tmp_path / n) for n in ("base.raw", "overlay.qcow2", "overlay.raw"))
    old = Job("old", seed + 1)
    old.add_files(24, folder="data/old")
    for path in old.files:
        file = tmp_path / "content" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(old.content(path))
    run("mke2fs", "-q", "-t", "ext4", "-d", str(tmp_path / "content"), base, "192M")
    before = sha256_file(base)

    job = Job("grow", seed, old=old.sums())
    job.add_files(24)
    create(disk, base=base)
    facts = boot(kernel, job, disk, tmp_path)
    assert facts["bytes"] == str(192 * MIB)
    require_flushes(facts)

    assert sha256_file(base) == before
    require_whole(disk, raw)
    require_files(raw, str(tmp_path / "found"), {**job.sums_left(), **old.sums()})


@pytest.mark.skipif(TOOL != "varve", reason="what others have is called otherwise")
@pytest.mark.parametrize("fmt, backend", [("qcow2", CopyOnReadBackend), ("qed", StreamBackend)])
def test_overlay_of_a_web_server_fills_itself(kernel, seed, tmp_path, fmt, backend):
    """The guest finds the files of a base that lies on a web server, and adds its own; nothing is fetched twice."""
    base, disk, raw = str(tmp_path / "base.raw"), str(tmp_path / f"overlay.{fmt}"), str(tmp_path / "overlay.raw")
    old = Job("old", seed + 1)
    old.add_files(24, folder="data/old")
    for path in old.files:
        file = tmp_path / "content" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(old.content(path))
    run("mke2fs", "-q", "-t", "ext4", "-d", str(tmp_path / "content"), base, "96M")
    job = Job("grow", seed, old=old.sums())
    job.add_files(24)
    folder = tmp_path / "nginx"
    folder.mkdir()
    with Nginx(str(folder), str(tmp_path)) as web:
        run(varve_path(), "img", "create", "-q", "-f", fmt, "-b", web.url("base.raw"), "-F", "raw", disk)
        require_flushes(boot(kernel, job, disk, tmp_path, fmt=fmt, backend=backend))
        if backend is CopyOnReadBackend:
            run(varve_path(), "img", "stream", "-q", disk)
        info = json.loads(run(varve_path(), "img", "info", "--output=json", disk))
        opens = 4
        assert "backing-filename" not in info
        assert web.sent() <= 96 * MIB + opens, "something was fetched twice"
    # The server is gone.
    run("qemu-img", "check", "-f", fmt, disk)
    run("qemu-img", "convert", "-f", fmt, "-O", "raw", disk, raw)
    run(varve_path(), "img", "compare", "-f", fmt, "-F", "raw", disk, raw)
    require_files(raw, str(tmp_path / "found"), {**job.sums_left(), **old.sums()})


@pytest.mark.skipif(TOOL != "varve", reason="the control socket is varve's")
def test_a_disk_grows_under_the_guest_which_switches_its_cache(kernel, seed, tmp_path):
    """Resize is seen by the running guest; discards, zeroes, and the write cache off and on again; all in one boot."""
    disk, raw, length = str(tmp_path / "disk.qcow2"), str(tmp_path / "disk.raw"), 64 * MIB
    job = Job("resize", seed)
    create(disk, size=length)
    grown = []

    class Growing(ControlledBackend):
        def alive(self):  # asked once a second while the guest runs
            if not grown and any(q["discard"]["requests"] for q in self.ask("stats")["export"]["queues"]):
                grown.append(self.ask("resize", size=2 * length)["length"])
            return super().alive()

    facts = boot(kernel, job, disk, tmp_path, backend=Growing)
    assert grown == [2 * length] and facts["bytes"] == str(length) and facts["grown"] == str(2 * length)
    assert facts["write_cache"] == "write back"
    assert (facts["cache_off"], facts["cache_on"]) == ("write through", "write back")
    assert int(facts["discards"]) >= 2
    require_whole(disk, raw)
    with open(raw, "rb") as f:
        for off in (2 * length - 256 * KIB, 4 * MIB, 8 * MIB):
            f.seek(off)
            assert f.read(256 * KIB) == job.data[:256 * KIB]
        f.seek(length)
        assert f.read(256 * KIB) == bytes(256 * KIB)


def writer_ops(rng, who, disk_len, count):
    """What one of two writers does.

    In the lower half of the disk both write into the same clusters, each to the 4 KiB pages of its
    own parity: they race to allocate and to copy. In the upper half each has a quarter of the disk
    to itself, for long requests, zeroes and discards.
    """
    hot = [rng.randrange(disk_len // 2 // CLUSTER) * CLUSTER for _ in range(40)]
    own = disk_len // 2 + who * (disk_len // 4)
    ops = []
    for _ in range(count):
        what = rng.random()
        if what < 0.6:
            sector = rng.randrange(8)
            length = 512 * rng.randrange(1, 9 - sector)
            off = rng.choice(hot) + 8192 * rng.randrange(8) + 4096 * who + 512 * sector
        else:
            length = 512 * rng.randrange(1, 2 * MIB // 512 // 2)
            off = own + 512 * rng.randrange((disk_len // 4 - length) // 512)
        if 0.9 <= what < 0.95:
            ops.append(("z", off, length))
        elif what >= 0.95:
            ops.append(("d", off - off % CLUSTER, CLUSTER * rng.randrange(1, 9)))
            if ops[-1][1] + ops[-1][2] > own + disk_len // 4:
                ops.pop()
        else:
            src = rng.randrange(DATA_LEN - length)
            ops.append(("w", off, length, src))
            if rng.random() < 0.25:
                ops.append(("r", off, length, src))
        if rng.random() < 0.05:
            ops.append(("f",))
    return ops


def apply_ops(model, discarded, ops, data):
    """Do to the model what the guest did to the disk; what a discard leaves there is anything."""
    for op, *place in ops:
        if op not in "wzd":
            continue
        off, length = place[:2]
        discarded[off // 512:(off + length) // 512] = bytes([op == "d"]) * (length // 512)
        if op == "w":
            model[off:off + length] = data[place[2]:place[2] + length]
        elif op == "z":
            model[off:off + length] = bytes(length)


def differing_sectors(model, discarded, raw):
    with open(raw, "rb") as f:
        found = f.read()
    assert len(found) == len(model)
    return [s for s in range(len(model) // 512) if not discarded[s] and
            model[512 * s:512 * s + 512] != found[512 * s:512 * s + 512]]


def test_two_queues_write_shared_clusters_of_an_overlay(kernel, seed, tmp_path):
    """Two processors write through a queue each, packed ones, into the same clusters; no byte is lost."""
    base, disk, raw = (str(tmp_path / n) for n in ("base.raw", "overlay.qcow2", "overlay.raw"))
    disk_len = 64 * MIB
    job = Job("rw", seed)
    model = bytearray(job.rng.randbytes(disk_len // 8) * 8)
    # A hole in the base too: copy-on-write must tell zeroes from data.
    model[:disk_len // 8] = bytes(disk_len // 8)
    with open(base, "wb") as f:
        f.write(model)
    job.ops = tuple(writer_ops(job.rng, who, disk_len, 150) for who in (0, 1))
    discarded = bytearray(disk_len // 512)
    for ops in job.ops:
        apply_ops(model, discarded, ops, job.data)

    create(disk, base=base)
    facts = boot(kernel, job, disk, tmp_path, queues=2, cpus=2, packed=TOOL == "varve")
    assert facts["queues"] == "2"
    if TOOL == "varve":
        assert facts["features"][34] == "1", "the rings are not packed"
    require_flushes(facts)
    assert int(facts["interrupts.0"]) > 0 and int(facts["interrupts.1"]) > 0, "a queue stayed idle"

    require_whole(disk, raw)
    assert differing_sectors(model, discarded, raw) == []
    assert sha256_file(raw) == facts["sha256"], "the guest read something else than the image holds"
