# SPDX-License-Identifier: MIT
"""test_perturb - power cuts and verified loads in a build whose fibers let others go first wherever they may wait

Built with -Dperturb=true (src/aio/perturb.h); the stage "perturb" of scripts/run-tests does it. What is forgotten across a wait shows once
in a thousand runs of the plain build, and in one of ten here. One worker at a time (varve crashtest) makes the same of the same seeds.

VARVE_SEEDS=N   how many seeds for each case (default 5)
VARVE_SEED=N    only this one
"""
import json
import os
import pathlib
import subprocess
import sys

import pytest

from seeds import seeds
from serving import Server

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "crash"))
import cuts  # noqa: E402 (of tests/crash)

VARVE = pathlib.Path(os.environ.get("VARVE_BUILD", "build")).resolve() / "tools/varve"
SECONDS = 240  # nothing here may take longer
STATES = 40


def cut(case, seed, perturbed):
    done = cuts.run(case, seed, STATES, "--output", "json", env={"VARVE_PERTURB": str(perturbed)} if perturbed else None)
    assert done.returncode == 0, f"VARVE_PERTURB={perturbed} {' '.join(cuts.command(case, seed, STATES))}\n{done.stdout}{done.stderr}"
    told = json.loads(done.stdout)
    del told["seconds"]
    return told


def test_the_build_is_perturbed_and_repeats_itself():
    case = cuts.CASES[1]
    first = cut(case, 1, 1)
    assert cut(case, 1, 1) == first
    assert len({json.dumps(cut(case, 1, seed)) for seed in (None, 1, 2, 3)}) > 1, "is it built with -Dperturb=true?"


@pytest.mark.parametrize("case", cuts.CASES, ids=lambda case: case[0])
def test_power_cuts(case):
    for seed in seeds(5):
        cut(case, seed, seed)


# (options of create, options of serve)
DISKS = [
    ("qcow2", "cluster_size=512,refcount_bits=64", ()), ("qcow2", "cluster_size=512,refcount_bits=1", ("--cache", "writethrough")),
    ("qcow2", "cluster_size=4k,lazy_refcounts=on", ()), ("qcow2", "cluster_size=64k", ("--cache", "none")),
    ("qcow2", "cluster_size=16k,extended_l2=on", ()), ("qcow2", "cluster_size=1k,compat=0.10", ()),
    ("qcow2", "cluster_size=4k,data_file=data", ()), ("qed", "cluster_size=4k", ()),
]


@pytest.mark.parametrize("fmt, options, how", DISKS, ids=lambda v: "" if isinstance(v, tuple) else v)
@pytest.mark.parametrize("queues", [1, 4])
def test_what_was_written_reads_back_and_checks_clean(tmp_path, fmt, options, how, queues):
    for seed in seeds(2):
        folder = tmp_path / str(seed)
        folder.mkdir()
        disk = folder / "disk"
        subprocess.run([VARVE, "img", "create", "-q", "-f", fmt, "-o", options.replace("data_file=data", f"data_file={folder / 'data'}"), disk, "32M"],
                       check=True, timeout=SECONDS)
        with Server(disk, fmt, folder / "s.sock", folder / "pid", "--num-queues", queues, *how, under=("env", f"VARVE_PERTURB={seed}")) as server:
            status, _, said = server.load("--rw", "randrw", "--verify", "--ops", 1500, "--flush-every", 50, "--discard-percent", 5,
                                          "--write-zeroes-percent", 3, "--queues", queues, "--depth", 16)
            ended, told = server.stop()
        assert status == 0 and ended == 0, f"VARVE_PERTURB={seed}: {said}\n{told}"
        found = subprocess.run([VARVE, "img", "check", "--output=json", "-f", fmt, disk], capture_output=True, text=True, timeout=SECONDS)
        told = json.loads(found.stdout)
        assert found.returncode == 0 and not told.get("leaks") and not told.get("corruptions"), f"VARVE_PERTURB={seed}: {found.stdout}"
