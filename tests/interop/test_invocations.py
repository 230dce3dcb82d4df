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
import subprocess

import pytest

from tool import img, ok, qimg, qio, refused, run, sanitized, varve_path

# What depends on the moment, on how blocks were given out, or came with a later version of either tool.
VOLATILE = {"actual-size", "date-sec", "date-nsec", "image-end-offset", "fragmented-clusters", "children"}

CALLERS = {
    "nova": """
        create -f qcow2 -o backing_file=base.raw,backing_fmt=raw,cluster_size=65536 disk
        info disk --force-share --output=json -f qcow2
        info disk --force-share --output=json
        resize -f qcow2 disk 8388608
        rebase -b base.raw -F raw disk
        info disk --force-share --output=json
        convert -t none -O raw -f qcow2 top.qcow2 flat.raw
        convert -t writeback -O qcow2 -f qcow2 -c top.qcow2 snap.qcow2
        convert -t none -O raw --object secret,id=sec,file=pw --image-opts driver=qcow2,file.filename=top.qcow2 opts.raw""",
    "glance": """
        info -f qcow2 --output=json top.qcow2
        info -f raw --output=json base.raw
        info --output=json top.qcow2
        convert -f qcow2 -O raw top.qcow2 converted.raw
        convert -f raw -O qcow2 base.raw converted.qcow2""",
    "cinder": """
        info -f qcow2 --output=json --force-share top.qcow2
        create -f qcow2 -b base.raw -F raw other.qcow2
        rebase -u -b other.qcow2 top.qcow2 -F qcow2
        info --output=json top.qcow2 --backing-chain
        rebase -u -b base.raw top.qcow2 -F raw
        convert -O qcow2 -t none -S 0 -f raw base.raw volume.qcow2
        convert -O raw -t none -f qcow2 top.qcow2 volume.raw
        convert -O qcow2 -c top.qcow2 image.qcow2
        resize base.raw 1G
        commit -d top.qcow2""",
    "libvirt": """
        create -f qcow2 -b /dev/null -o backing_fmt=raw,compat=1.1,lazy_refcounts a.qcow2 1048576K
        create -f qcow2 -o preallocation=metadata,compat=0.10 b.qcow2 1048576K
        create -f qcow2 -o preallocation=falloc,compat=0.10 c.qcow2 1024K
        create -f qcow2 -o compat=1.1,cluster_size=131072 d.qcow2 1048576K
        create -f qcow2 -o compat=1.1,nocow=on e.qcow2 1048576K
        create -f raw -o preallocation=falloc,nocow=on f.raw 1024K
        create -f qcow2 -b base.raw -o backing_fmt=raw,compat=0.10 g.qcow2
        convert -f raw -O qcow2 -o compat=1.1,lazy_refcounts base.raw h.qcow2
        create -f qcow2 -o compat=1.1,cluster_size=131072,extended_l2=on i.qcow2 1M
        info --output=json i.qcow2
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
        rebase -t none -T none -f qcow2 -b base.raw -F raw new.qcow2
        convert -p -t none -T none -f qcow2 -O qcow2 -o compat=1.1,preallocation=off plain.qcow2 copy.qcow2
        convert -p -t none -T none -f qcow2 -O raw -o preallocation=falloc plain.qcow2 copy.raw
        convert -p -t none -T none -f qcow2 -O raw -n --target-is-zero -W plain.qcow2 copy.raw
        convert -p -t none -T none -f qcow2 -O raw -n -W plain.qcow2 copy.raw
        convert -p -t none -T none -f qcow2 -O qcow2 -o compat=1.1 -B base.raw -F raw new.qcow2 over.qcow2
        convert -p -t none -T none -f qcow2 -O qcow2 -o compat=1.1,backing_file=base.raw,backing_fmt=raw new.qcow2 over2.qcow2
        convert -p -t none -T none -f qcow2 -O qcow2 -c plain.qcow2 small.qcow2
        measure --output json -O raw plain.qcow2
        check --output json plain.qcow2
        create -f qcow2 marked.qcow2 4M
        bitmap --add --disable -g 65536 marked.qcow2 one
        bitmap --add --disable marked.qcow2 two
        bitmap --add --enable marked.qcow2 three
        bitmap --merge one marked.qcow2 two
        bitmap --remove marked.qcow2 three
        measure --output json -O qcow2 marked.qcow2
        info --output json -f qcow2 marked.qcow2
        convert -p -t none -T none -f qcow2 -O qcow2 -o compat=1.1 --bitmaps marked.qcow2 moved.qcow2
        convert -f qcow2 -O qcow2 --bitmaps --skip-broken-bitmaps marked.qcow2 moved2.qcow2
        info --output json -f qcow2 moved.qcow2""",
    "cdi": """
        create -f raw disk.img 4M
        create -f raw -o preallocation=falloc falloc.img 4M
        resize -f raw disk.img 8M
        resize -f raw --preallocation=falloc disk.img 10M
        resize -f raw --preallocation=full falloc.img 10M
        rebase -p -u -F raw -b base.raw top.qcow2
        commit -p top.qcow2
        info --output=json disk.img
        convert -t none -p -O raw plain.qcow2 out.img
        convert -t writeback -p -O raw plain.qcow2 cached.img
        convert -t none -p -O raw -o preallocation=falloc plain.qcow2 reserved.img
        convert -t none -p -O raw -o preallocation=full plain.qcow2 written.img
        convert -t none -p -O raw -S 0 plain.qcow2 nosparse.img
        resize -f raw out.img 1G""",
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
        create -F raw -b base.raw -f qcow2 thin.qcow2 -o extended_l2=on,cluster_size=128k
        info --output=json thin.qcow2 -f qcow2 --backing-chain
        snapshot -c snap thin.qcow2
        snapshot -a snap thin.qcow2
        snapshot -d snap thin.qcow2
        commit thin.qcow2
        rebase -b base.raw -F raw -f qcow2 thin.qcow2
        rebase -b base.raw -F raw -f qcow2 clone.qcow2
        create -f raw vm.raw 4096K
        create -o preallocation=off -f raw off.raw 4096K
        snapshot -c S plain.qcow2
        convert -p -n -l snapshot.name=S -t none -T none -f qcow2 -O raw plain.qcow2 vm.raw
        convert -p -n -r 102400K -f qcow2 -O raw plain.qcow2 vm.raw
        convert -p -n -T none -f raw -O qcow2 vm.raw vm.qcow2
        convert -p -n -f raw vm.raw --target-image-opts driver=qcow2,file.driver=file,file.filename=vm.qcow2
        snapshot -l plain.qcow2
        dd -f qcow2 -O raw if=plain.qcow2 of=dd.raw bs=1M count=3""",
    "incus": """
        info -f qcow2 --output=json top.qcow2
        info -U --backing-chain --output=json top.qcow2
        create -f qcow2 -b base.raw -F raw over.qcow2
        rebase -u -b base.raw -F raw over.qcow2
        rebase -u -f qcow2 -b base.raw -F raw over.qcow2
        commit -f qcow2 over.qcow2
        measure -O qcow2 --output=json top.qcow2
        convert -p -f qcow2 -O raw -t writeback -T none plain.qcow2 root.img
        convert -p -f qcow2 -O raw -t none -T none -W -n plain.qcow2 root.img
        create -f raw zero.img 4M
        convert -p -f qcow2 -O raw -t writeback -n --target-is-zero plain.qcow2 zero.img
        convert -p -f raw -O qcow2 root.img root.qcow2
        create -f qcow2 -o data_file=block.raw,data_file_raw=on,preallocation=metadata block.qcow2 4194304
        info -f qcow2 --output=json block.qcow2
        convert -p -n -f raw -O qcow2 root.img block.qcow2
        info -U --backing-chain --output=json block.qcow2""",
    "virt-v2v": """
        info --output=json json:{"driver":"raw","offset":1048576,"size":1048576,"file":{"driver":"file","filename":"base.raw"}}
        info json:{"file":{"driver":"file","filename":"top.qcow2"},"driver":"qcow2"}
        create -q -f qcow2 -o compat=1.1,preallocation=off out.qcow2 4194304
        create -f qcow2 -b base.raw -o compat=1.1,backing_fmt=raw overlay.qcow2""",
    "packer": """
        create -f qcow2 disk 4194304
        create -f qcow2 -b base.raw -F raw with-base
        resize -f qcow2 disk 8388608
        convert -O qcow2 base.raw converted
        convert -c -O qcow2 base.raw compacted
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
        convert -n -o size=1M plain.qcow2 x.qcow2
        convert -O qcow2 none x.qcow2
        amend -o backing_file=base.raw plain.qcow2
        amend -o cluster_size=128k plain.qcow2
        amend -o compat=1.1 base.raw
        create -f qcow2 -o size=1M,what=3 x
        resize -f qcow2 plain.qcow2 -- -1G
        map --output=xml plain.qcow2
        check --output=xml plain.qcow2
        commit base.raw
        nonsense""",
}

# What callers may ask for and this version has not: one line that names it, exit status 1, nothing made and nothing changed.
REFUSED = [
    ("nova", "create --object secret,id=sec,file=pw -o encrypt.key-secret=sec -o encrypt.format=luks -f qcow2 new 1M", "encrypt"),
    ("nova", "convert -O raw --object secret,id=sec,file=pw --image-opts driver=luks,file.filename=base.raw,key-secret=sec new", "luks"),
    ("glance", "info -f vmdk --output=json base.raw", "vmdk"), ("glance", "convert -f vpc -O raw base.raw new", "vpc"),
    ("glance", "info -f luks --output=json base.raw", "luks"), ("glance", "convert -f vhdx -O raw base.raw new", "vhdx"),
    ("cinder", "convert -O vmdk -o subformat=streamOptimized base.raw new", "vmdk"),
    ("cinder", "convert -O luks -f raw --object secret,id=luks_sec,format=raw,file=pw -o key-secret=luks_sec -o "
               "cipher-alg=aes-256,cipher-mode=xts,ivgen-alg=plain64 base.raw new", "luks"),
    ("cinder", "create -f luks --object secret,id=sec,format=raw,file=pw -o cipher-alg=aes-256,key-secret=sec new 1M", "luks"),
    ("cinder", "convert -O parallels base.raw new", "parallels"), ("cinder", "convert -O vpc base.raw new", "vpc"),
    ("libvirt", "create -f qcow2 --object secret,id=s,file=pw -o encrypt.format=luks,encrypt.key-secret=s new 1M", "encrypt"),
    ("libvirt", "convert -n --image-opts --target-image-opts driver=raw,file.filename=base.raw "
                "driver=luks,file.filename=plain.qcow2,key-secret=s", "luks"),
    ("cdi", "info --output=json nbd+unix:///?socket=/var/run/nbd.sock", "nbd+unix"),
    ("cdi", "convert -t none -p -O raw nbd+unix:///?socket=/var/run/nbd.sock new", "nbd+unix"),
    ("proxmox", "convert -p -f qcow2 -O raw plain.qcow2 zeroinit:new", "zeroinit"),
    ("proxmox", "create -f raw rbd:pool/new 1M", "rbd"),
    ("packer", "convert -O vmdk base.raw new", "vmdk"), ("packer", "create -f vdi new 1M", "vdi"),
]


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
    (ours / "pw").write_text("secret")
    theirs = tmp_path / "theirs"
    ok(run("cp", "-a", "--sparse=always", ours, theirs))
    link = tmp_path / "qemu-img"
    link.symlink_to(varve_path())
    return link, ours, theirs


def same_output(words, a, b):
    if any(w in ("json", "--output=json") for w in words) and a.rc == 0:
        x, y = json.loads(a.out), json.loads(b.out)
        if words[0] == "map":
            x, y = joined(x), joined(y)
        if "json:{" in words[-1] and words[0] == "info":
            for told in (x, y):  # a description is the same in any order
                if told["filename"].startswith("json:"):
                    told["filename"] = json.loads(told["filename"][5:])
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
        if path.name == "block.qcow2":  # the peer looks for the data file where it stands: there, its own
            ok(img("compare", "-q", path, theirs / path.name))
        else:
            ok(qimg("compare", "-q", "-f", fmt, "-F", fmt, path, theirs / path.name))
        if fmt == "qcow2":
            ok(img("check", "-q", path))
            ok(qimg("check", "-q", path, cwd=ours))


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_what_is_not_here_is_said_in_one_line(folders):
    link, ours, _ = folders
    before = contents(ours)
    for caller, line, word in REFUSED:
        refused(run(link, *line.split(), cwd=ours), word)
        assert contents(ours) == before, (caller, line)


@pytest.mark.parametrize("limits, line", [
    (["--cpu=30", "--as=2147483648"], "info top.qcow2 --force-share --output=json"),            # nova
    (["--cpu=2", "--as=1073741824"], "info -f qcow2 --output=json top.qcow2"),                  # glance, Incus
    (["--cpu=30", "--as=1073741824"], "info --output json -f qcow2 -U --backing-chain top.qcow2"),  # vdsm
])
def test_limits_that_callers_set(folders, limits, line):
    if sanitized():
        pytest.skip("a sanitizer's shadow memory is beyond any limit")
    link, ours, _ = folders
    a, b = ok(run("prlimit", *limits, link, *line.split(), cwd=ours)), ok(qimg(*line.split(), cwd=ours))
    same_output(line.split(), a, b)


def test_to_standard_output_and_with_less_priority(folders):
    link, ours, _ = folders
    words = ["convert", "-f", "qcow2", "-O", "raw", "plain.qcow2", "/dev/stdout"]
    with open(ours / "piped", "wb") as f:
        done = subprocess.run([link, *words], stdout=f, stderr=subprocess.PIPE, cwd=ours, timeout=240, check=False)
    assert done.returncode == 0 and done.stderr == b""
    ok(qimg("compare", "-f", "raw", "-F", "qcow2", ours / "piped", ours / "plain.qcow2"))
    ok(run("nice", "-n19", link, "convert", "-p", "-f", "qcow2", "-O", "raw", "-t", "writeback", "plain.qcow2", "nice.raw", cwd=ours))
    ok(run("env", "LC_ALL=C", "LANG=C", link, "info", "plain.qcow2", "--force-share", "--output=json", cwd=ours))


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
