# SPDX-License-Identifier: MIT
"""test_bench_smoke - bench/run and bench/order run to their ends and write results that a program can read

Never:   looks at how fast anything is.
"""
import json
import os
import pathlib
import subprocess

from tool import TIMEOUT

BENCH = pathlib.Path(__file__).resolve().parents[2] / "bench"
COR = pathlib.Path(__file__).resolve().parents[2] / "bench" / "cor"
RUN = pathlib.Path(__file__).resolve().parents[2] / "bench" / "run"


def bench(tmp_path, **env):
    target = tmp_path / "out.json"
    p = subprocess.run([RUN, "--quick", "--smoke", "--dir", tmp_path, "--json", target], capture_output=True, text=True,
                       timeout=2 * TIMEOUT, check=False, env={**os.environ, **env})
    assert p.returncode == 0, p.stdout + p.stderr
    assert [f.name for f in tmp_path.iterdir()] == ["out.json"]
    return json.loads(target.read_text()), p.stdout


def test_results_are_complete_json(tmp_path):
    r, text = bench(tmp_path)
    assert {"when", "mode", "machine", "groups", "warnings"} <= r.keys()
    assert {"varve", "processor", "kernel", "file system", "fio", "qemu-img"} <= r["machine"].keys()
    assert len(r["groups"]) == 6 + 2 + 2
    for group in r["groups"]:
        assert group["title"] in text
        assert any(row.get("against") is None and "iops" in row for row in group["rows"]), group
        for row in group["rows"]:
            assert row["name"] in text
            if "absent" in row:
                continue
            assert row["iops"] > 0 and row["cpu_ns_per_op"] >= 0 and len(row["samples"]) == row["rounds"], row
            if row["against"]:
                assert row["iops_ratio"] > 0 and row["against"] in [other["name"] for other in group["rows"]], row


def test_missing_peers_are_named_and_nothing_fails(tmp_path):
    empty = tmp_path / "bin"
    empty.mkdir()
    work = tmp_path / "work"
    work.mkdir()
    r, text = bench(work, PATH=str(empty))
    absent = [row for group in r["groups"] for row in group["rows"] if row.get("absent") == "not installed"]
    assert len(absent) > 8 and "not installed" in text
    assert r["machine"]["fio"] == "not installed" and r["warnings"] == []


def test_order_measures_both_sides(tmp_path):
    target = tmp_path / "out.json"
    p = subprocess.run([BENCH / "order", "--smoke", "--dir", tmp_path, "--json", target, "--only", "flush every 8, depth 8"],
                       capture_output=True, text=True, timeout=2 * TIMEOUT, check=False)
    assert p.returncode == 0, p.stdout + p.stderr
    assert [f.name for f in tmp_path.iterdir()] == ["out.json"]
    rows = json.loads(target.read_text())["rows"]
    assert len(rows) == 2 * 2 * 2
    for row in rows:
        assert row["name"] in p.stdout
        assert all(side["iops"] > 0 and side["rounds"] for side in row["sides"].values()), row
        assert row["sides"]["varve"]["rounds"][0]["stats"]["order"]["puts"] > 0, row


def test_copy_on_read_from_a_slow_server(tmp_path):
    target = tmp_path / "out.json"
    p = subprocess.run([COR, "--smoke", "--dir", tmp_path, "--json", target], capture_output=True, text=True,
                       timeout=2 * TIMEOUT, check=False)
    assert p.returncode == 0, p.stdout + p.stderr
    groups = json.loads(target.read_text())["groups"]
    assert [g["latency_ms"] for g in groups] == [0, 20]
    for g in groups:
        assert len(g["rows"]) == 4 and all(r["seconds"]["varve"] > 0 for r in g["rows"])
        assert 1 <= g["fetched"]["varve"] < 1.01


def test_engines_beside_fio(tmp_path):
    target = tmp_path / "out.json"
    p = subprocess.run([COR.with_name("aio"), "--smoke", "--only", "16k random", "--dir", tmp_path, "--json", target],
                       capture_output=True, text=True, timeout=2 * TIMEOUT, check=False)
    assert p.returncode == 0, p.stdout + p.stderr
    rows = json.loads(target.read_text())["rows"]
    assert [r["engine"] for r in rows] == ["io_uring", "native", "threads", "posix"]
    for r in rows:
        assert r["sides"][f"varve {r['engine']}"]["iops"] > 0
        assert len(r["sides"]) >= 2 and all(s["iops"] > 0 for s in r["sides"].values())


def test_convert_measures_both_sides(tmp_path):
    target = tmp_path / "out.json"
    p = subprocess.run([BENCH / "convert", "--smoke", "--rounds", "1", "--dir", tmp_path, "--json", target], capture_output=True,
                       text=True, timeout=2 * TIMEOUT, check=False)
    assert p.returncode == 0, p.stdout + p.stderr
    assert [f.name for f in tmp_path.iterdir()] == ["out.json"]
    for case in json.loads(target.read_text())["cases"]:
        assert case["name"] in p.stdout
        assert case["varve"]["bytes"] > 0 and case["qemu-img"]["bytes"] > 0 and case["varve"]["kib"] > 0


def test_data_plane_beside_the_peers_daemon(tmp_path):
    target = tmp_path / "out.json"
    p = subprocess.run([BENCH / "dataplane", "--smoke", "--only", "(null|qcow2) 32 2", "--dir", tmp_path, "--json", target],
                       capture_output=True, text=True, timeout=2 * TIMEOUT, check=False)
    assert p.returncode == 0, p.stdout + p.stderr
    rows = json.loads(target.read_text())["rows"]
    assert [r["disk"] for r in rows] == ["null", "qcow2"]
    for r in rows:
        assert "varve" in r["sides"] and all(s["iops"] > 0 and s["p99_9_us"] > 0 for s in r["sides"].values())
