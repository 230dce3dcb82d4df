# SPDX-License-Identifier: MIT
"""test_serve_snapshot - snapshots of a disk while a front end writes to it, and states that come meanwhile"""
import json
import os
import random
import subprocess
import time

from test_control import Serve
from test_vublk import SECONDS, VARVE, varve


def check(disk):
    r = json.loads(varve("img", "check", "--output=json", disk))
    assert not r.get("corruptions") and not r.get("leaks") and not r["check-errors"], r


def wait_state(ask, wanted):
    end = time.monotonic() + SECONDS
    while (r := ask("snapshot-state"))["state"] == "saving":
        assert time.monotonic() < end, r
        time.sleep(.01)
    assert r["state"] == wanted, r
    return r


def test_snapshots_and_a_state_while_the_disk_is_written(tmp_path):
    disk, fifo = tmp_path / "disk", tmp_path / "state"
    data = random.Random(5).randbytes(5_000_001)
    varve("img", "create", "-q", "-f", "qcow2", disk, "64M")
    os.mkfifo(fifo)
    with Serve(tmp_path, (disk,)) as serve:
        ask = serve.ask()
        load = subprocess.Popen([VARVE, "blkload", "--socket", str(serve.sockets[0]), "--rw", "randwrite", "--runtime", "3", "--verify",
                                 "--timeout", str(SECONDS // 2)],
                                stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        assert ask("snapshot-create", name="one")["id"] == "1"
        assert "already" in ask("snapshot-create", name="one")["error"]
        assert ask("snapshot-create", name="two", state=str(fifo))["state"] == "saving"
        assert "on its way" in ask("snapshot-create", name="three", state=str(fifo))["error"]
        assert [s["name"] for s in ask("snapshots")] == ["one"]
        with open(fifo, "wb") as f:
            f.write(data)
        assert wait_state(ask, "done")["bytes"] == len(data)
        assert [(s["name"], s["vm-state-size"]) for s in ask("snapshots")] == [("one", 0), ("two", len(data))]
        assert ask("snapshot-delete", name="one") == {}
        assert "none such" in ask("snapshot-delete", name="one")["error"]
        assert "needed" in ask("snapshot-delete")["error"]
        assert "No such file" in ask("snapshot-create", name="x", state=str(tmp_path / "nothing"))["error"]
        assert load.wait(SECONDS) == 0, load.stderr.read()
    check(disk)
    out = subprocess.run([VARVE, "vmstate", "load", disk, "two"], capture_output=True, timeout=SECONDS, check=True)
    assert out.stdout == data


def test_a_state_that_never_ends_does_not_keep_serve_from_ending(tmp_path):
    disk, fifo = tmp_path / "disk", tmp_path / "state"
    varve("img", "create", "-q", "-f", "qcow2", disk, "64M")
    os.mkfifo(fifo)
    with Serve(tmp_path, (disk,)) as serve:
        ask = serve.ask()
        assert ask("snapshot-state") == {"state": "none"}
        assert ask("snapshot-create", name="never", state=str(fifo))["state"] == "saving"
    check(disk)
    assert "snapshots" not in json.loads(varve("img", "info", "--output=json", disk))
