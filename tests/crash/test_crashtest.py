# SPDX-License-Identifier: MIT
"""test_crashtest - power cuts of whole images, and the machine that makes them proven by removing what it looks for

VARVE_CUT_STATES: states for each case (default 1000; 23 cases). cuts.py runs them with new seeds for as long as wanted.
"""
import json
import os
import shutil
import subprocess

import pytest

import cuts

STATES = int(os.environ.get("VARVE_CUT_STATES", "1000"))
SEED = int(os.environ.get("VARVE_CUT_SEED", "1"))


def kept_directory(out):
    line = next((l for l in out.splitlines() if l.startswith("files:")), None)
    return line.split()[1] if line else None


@pytest.mark.parametrize("case", cuts.CASES, ids=[c[0] for c in cuts.CASES])
def test_every_state_is_as_promised(case):
    done = cuts.run(case, SEED, STATES, "--output", "json")
    assert done.returncode == 0, f"{' '.join(cuts.command(case, SEED, STATES))}\n{done.stdout}{done.stderr}"
    report = json.loads(done.stdout)
    assert report["states"] >= STATES // 4 and not report["failed"] and report["entries"] > 50


def snapshot_case(tmp_path, options):
    """An image with a snapshot: clusters and tables are shared."""
    if not shutil.which("qemu-img"):
        pytest.skip("qemu-img is not installed")
    image = tmp_path / "snap.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", options, image, "2M"], check=True)
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -P 7 0 1500k", image], check=True, capture_output=True)
    subprocess.run(["qemu-img", "snapshot", "-c", "one", image], check=True)
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -P 8 100k 300k", image], check=True, capture_output=True)
    return ("", f"--image {image}", cuts.SNAPSHOT)


@pytest.mark.parametrize("order", cuts.ORDERS)
def test_a_forgotten_order_is_found(order, tmp_path):
    """Each order is needed, and the machine is strong enough to say so. Some seeds: one workload may not come by the place."""
    case = cuts.ORDERS[order] or snapshot_case(tmp_path, "cluster_size=512")
    tried = []
    for seed in range(SEED, SEED + 4):
        files = tmp_path / f"files-{seed}"
        files.mkdir()
        done = cuts.run(case, seed, 4000, "--dir", files, env={"VARVE_FORGET_ORDER": order})
        tried.append(done.stdout)
        if done.returncode == 1 and "FAILED:" in done.stdout:
            return
        assert done.returncode == 0, done.stderr
    pytest.fail(f"order {order} was forgotten, and nothing was found:\n" + "".join(tried))


def test_an_unknown_order_is_named():
    done = cuts.run(cuts.CASES[0], 1, 10, env={"VARVE_FORGET_ORDER": "l2-entry,nonsense"})
    assert done.returncode == 1 and "VARVE_FORGET_ORDER" in done.stderr and "nonsense" in done.stderr


def test_a_failure_is_made_small_and_can_be_had_again():
    case = ("", "-o cluster_size=512 -s 1M", "ops=100,depth=4,flush=8")
    env = {"VARVE_FORGET_ORDER": "l1-entry"}
    done = cuts.run(case, 1, 1000, env=env)
    directory = kept_directory(done.stdout)
    assert done.returncode == 1 and directory, done.stdout + done.stderr
    try:
        again = next(l for l in done.stdout.splitlines() if l.startswith("again:")).split()[2:]
        ops = next(w for w in again if w.startswith("ops=")).split(",")[0]
        assert int(ops[4:]) < 100, done.stdout
        assert done.stdout.count("  kept ") < 20, done.stdout
        assert {"base", "log", "failed"} <= set(os.listdir(directory))
        repeat = subprocess.run([cuts.command(case, 1, 1)[0], *again], capture_output=True, text=True, timeout=240,
                                env={**os.environ, **env})
        assert repeat.returncode == 1 and "FAILED:" in repeat.stdout, repeat.stdout
        shutil.rmtree(kept_directory(repeat.stdout))
    finally:
        shutil.rmtree(directory)


def test_files_are_where_tmpdir_says(tmp_path):
    case = ("", "-o cluster_size=512 -s 1M", "ops=40,depth=1,flush=8")
    good = cuts.run(case, 1, 20, env={"TMPDIR": str(tmp_path)})
    assert good.returncode == 0 and not os.listdir(tmp_path), good.stdout + good.stderr
    bad = cuts.run(case, 1, 20, env={"TMPDIR": str(tmp_path / "none")})
    assert bad.returncode == 1 and str(tmp_path / "none") in bad.stderr and len(bad.stderr.splitlines()) == 1, bad.stderr


@pytest.mark.parametrize("options", ["cluster_size=512", "cluster_size=4k,refcount_bits=64", "cluster_size=64k",
                                     "extended_l2=on,cluster_size=16k"])
def test_counts_above_one(tmp_path, options):
    """Clusters and tables that a snapshot shares are copied before they are written."""
    done = cuts.run(snapshot_case(tmp_path, options), SEED, STATES)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("bad", ["ops=0", "depth=65", "nonsense=1", "zero=60,discard=60", "maxlen=1", "ops"])
def test_bad_workloads_are_named(bad):
    done = subprocess.run([cuts.command(cuts.CASES[0], 1, 1)[0], "crashtest", bad], capture_output=True, text=True, timeout=240)
    assert done.returncode == 1 and bad.split("=")[0].split(",")[0] in done.stderr and done.stdout == ""


@pytest.mark.parametrize("case", [cuts.CASES[0], cuts.CASES[20], cuts.CASES[25]], ids=lambda c: c[0])
def test_a_seed_makes_the_same_log_in_every_run(case, tmp_path):
    """Requests overlap, workers pack clusters, one run has a single processor to itself: every change is made in the same order."""
    logs = []
    for nr, cpus in enumerate((os.sched_getaffinity(0), {min(os.sched_getaffinity(0))}, os.sched_getaffinity(0))):
        files = tmp_path / str(nr)
        files.mkdir()
        argv = cuts.command(case, SEED, 4, "--dir", files)
        subprocess.run(argv, check=True, timeout=240, capture_output=True, preexec_fn=lambda: os.sched_setaffinity(0, cpus))
        logs.append((files / "log").read_bytes())
    assert len(logs[0]) > 100000 and logs[0] == logs[1] == logs[2]
