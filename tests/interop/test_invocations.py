# SPDX-License-Identifier: MIT
"""test_invocations - the command lines that well-known callers of qemu-img use, word for word, under its name

Each list is run by both tools, step by step, in equal folders: exit statuses are equal, JSON is the same data (but for sizes on
disk and times), text has the fields that callers parse, ours says nothing on stderr when it succeeds, and the images hold the
same bytes in the end.

Left out: compare with one name (2 here, so that it cannot be taken for "different"; 1 there).
"""

import json
import pathlib
import re
import shlex

import pytest

from tool import img, ok, qimg, qio, run, varve_path

# What depends on the moment, on how blocks were given out, or came with a later version of either tool.
VOLATILE = {"actual-size", "date-sec", "date-nsec", "image-end-offset", "fragmented-clusters", "children"}

CALLERS = {
    "nova": """
        create -f qcow2 -o backing_file=base.raw,backing_fmt=raw,cluster_size=65536 disk
        info disk --force-share --output=json -f qcow2
        info disk --force-share --output=json
        resize -f qcow2 disk 8388608
        rebase -b base.raw -F raw disk
        info disk --force-share --output=json""",
    "glance": """
        info -f qcow2 --output=json top.qcow2
        info -f raw --output=json base.raw
        info --output=json top.qcow2""",
    "cinder": """
        info -f qcow2 --output=json --force-share top.qcow2
        create -f qcow2 -b base.raw -F raw other.qcow2
        rebase -u -b other.qcow2 top.qcow2 -F qcow2
        info --output=json top.qcow2 --backing-chain
        rebase -u -b base.raw top.qcow2 -F raw
        commit -d top.qcow2""",
    "libvirt": """
        create -f qcow2 -b /dev/null -o backing_fmt=raw,compat=1.1,lazy_refcounts a.qcow2 1048576K
        create -f qcow2 -o preallocation=metadata,compat=0.10 b.qcow2 1048576K
        create -f qcow2 -o preallocation=falloc,compat=0.10 c.qcow2 1024K
        create -f qcow2 -o compat=1.1,cluster_size=131072 d.qcow2 1048576K
        info --output=json b.qcow2
        info --output=json d.qcow2
        snapshot -c one d.qcow2
        snapshot -a one d.qcow2
        snapshot -d one d.qcow2
        check b.qcow2""",
    "vdsm": """
        info --output json -f qcow2 -U top.qcow2
        info --output json -f qcow2 -U --backing-chain top.qcow2
        measure --output json -O qcow2 --force-share top.qcow2
        measure --output json -O qcow2 json:{"file":{"driver":"file","filename":"top.qcow2"},"driver":"qcow2"}
        map --output json top.qcow2
        check --output json -f qcow2 top.qcow2
        create -f qcow2 -o compat=1.1,preallocation=off -u -b base.raw -F raw new.qcow2 4194304
        compare -p -f qcow2 -F qcow2 top.qcow2 top.qcow2
        compare -f qcow2 -F raw -s top.qcow2 base.raw
        commit -p -t none -b base.raw -f qcow2 top.qcow2
        amend -o compat=0.10 -f qcow2 plain.qcow2
        amend -o compat=1.1 plain.qcow2
        resize -f qcow2 plain.qcow2 6291456
        rebase -t none -T none -u -f qcow2 -b base.raw -F raw new.qcow2
        rebase -t none -T none -f qcow2 -b base.raw -F raw new.qcow2""",
    "cdi": """
        create -f raw disk.img 4M
        create -f raw -o preallocation=falloc falloc.img 4M
        resize -f raw disk.img 8M
        resize -f raw --preallocation=falloc disk.img 10M
        resize -f raw --preallocation=full falloc.img 10M
        rebase -p -u -F raw -b base.raw top.qcow2
        commit -p top.qcow2
        info --output=json disk.img""",
    "proxmox": """
        create -o preallocation=metadata -f qcow2 vm.qcow2 4096K
        create -F raw -b base.raw -f qcow2 clone.qcow2
        info --output=json vm.qcow2 -f qcow2 --backing-chain
        measure --output=json --size 1048576K -O qcow2
        measure --output=json --size 1048576K -O qcow2 -o extended_l2=on,cluster_size=128k
        resize --preallocation=metadata -f qcow2 vm.qcow2 8388608
        resize --preallocation=off -f qcow2 vm.qcow2 9437184
        snapshot -c snap vm.qcow2
        snapshot -a snap vm.qcow2
        snapshot -d snap vm.qcow2
        snapshot -d none vm.qcow2
        commit clone.qcow2
        rebase -b base.raw -F raw -f qcow2 clone.qcow2""",
    "incus": """
        info -f qcow2 --output=json top.qcow2
        info -U --backing-chain --output=json top.qcow2
        create -f qcow2 -b base.raw -F raw over.qcow2
        rebase -u -b base.raw -F raw over.qcow2
        rebase -u -f qcow2 -b base.raw -F raw over.qcow2
        commit -f qcow2 over.qcow2
        measure -O qcow2 --output=json top.qcow2""",
    "packer": """
        create -f qcow2 disk 4194304
        create -f qcow2 -b base.raw -F raw with-base
        resize -f qcow2 disk 8388608
        info disk""",
    "mistakes": """
        info none
        create -f qcow2
        create -f qcow2 -b base.raw x.qcow2
        create -f what x 1M
        resize plain.qcow2 1M
        rebase -b none.raw -F raw top.qcow2
        check base.raw
        check none
        compare base.raw none
        commit plain.qcow2
        map none
        measure
        snapshot -a none plain.qcow2
        nonsense""",
}


def strip(value):
    if isinstance(value, dict):
        return {k: strip(v) for k, v in value.items() if k not in VOLATILE}
    if isinstance(value, list):
        return [strip(v) for v in value]
    return value


def joined(extents):
    """A map, whose neighbours that differ in nothing may have been told as one or as several; without what 7.2 does not tell."""
    out = []
    for e in extents:
        e = {k: v for k, v in e.items() if k != "compressed"}
        out.append(e)
    return out


def fields(text):
    return dict(re.findall(r"^(image|file format|virtual size|backing file|cluster_size): ([^\n(]*)", text, re.M))


@pytest.fixture
def folders(tmp_path):
    ours = tmp_path / "ours"
    ours.mkdir()
    ok(qimg("create", "-q", "-f", "raw", ours / "base.raw", "4M"))
    ok(qio(ours / "base.raw", "write -P 1 0 2M", options=("-f", "raw")))
    ok(qimg("create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", ours / "top.qcow2"))
    ok(qio(ours / "top.qcow2", "write -P 2 1M 2M"))
    ok(qimg("create", "-q", "-f", "qcow2", ours / "plain.qcow2", "4M"))
    ok(qio(ours / "plain.qcow2", "write -P 3 1M 1M"))
    theirs = tmp_path / "theirs"
    ok(run("cp", "-a", "--sparse=always", ours, theirs))
    link = tmp_path / "qemu-img"
    link.symlink_to(varve_path())
    return link, ours, theirs


def same_output(words, a, b):
    if any(w.startswith("json") or w.endswith("=json") for w in words[1:]) and a.rc == 0:
        x, y = json.loads(a.out), json.loads(b.out)
        if words[0] == "map":
            x, y = joined(x), joined(y)
        assert strip(x) == strip(y), f"{a}\n{b}"
    elif words[0] == "info" and a.rc == 0:
        assert fields(a.out) == fields(b.out), f"{a}\n{b}"
    elif words[0] in ("compare", "commit", "resize") and a.rc == 0:
        last = [[t for t in re.split(r"[\r\n]", r.out) if t.strip()][-1:] for r in (a, b)]
        assert last[0] == last[1], f"{a}\n{b}"


@pytest.mark.parametrize("caller", CALLERS)
def test_caller(folders, caller):
    link, ours, theirs = folders
    for line in CALLERS[caller].strip().splitlines():
        words = line.split() if "json:{" in line else shlex.split(line)
        a, b = run(link, *words, cwd=ours), qimg(*words, cwd=theirs)
        assert a.rc == b.rc, f"{a}\n{b}"
        if a.rc == 0:
            assert a.err == "", str(a)
        same_output(words, a, b)
    assert sorted(p.name for p in ours.iterdir()) == sorted(p.name for p in theirs.iterdir())
    for path in sorted(ours.iterdir()):
        fmt = "qcow2" if path.read_bytes()[:4] == b"QFI\xfb" else "raw"
        ok(qimg("compare", "-q", "-f", fmt, "-F", fmt, path, theirs / path.name))
        if fmt == "qcow2":
            ok(img("check", "-q", path))
            ok(qimg("check", "-q", path))


def test_what_callers_parse(folders):
    """Regular expressions of callers, on what they are applied to."""
    link, ours, _ = folders
    assert re.search(r"qemu-img version ([0-9\.]*)", ok(run(link, "--version")).out).group(1)  # cinder
    out = ok(run(link, "rebase", "-p", "-b", "", "top.qcow2", cwd=ours)).out
    assert re.findall(r"\((\d?\d\.\d\d)\/100%\)", out.split("\r")[0])  # CDI
    assert re.match(r"\s*\(([\d.]+)/100%\)\s*", out.split("\r")[-2])  # vdsm
    assert re.search(r"\((\S+)/100%\)", out)  # Proxmox VE
    text = ok(run(link, "info", "top.qcow2", cwd=ours)).out  # awk scripts
    assert re.search(r"^virtual size: 4 MiB \(4194304 bytes\)$", text, re.M) and pathlib.Path(ours, "top.qcow2").exists()
