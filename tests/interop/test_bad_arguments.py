# SPDX-License-Identifier: MIT
"""test_bad_arguments - every command with every wrong option, number, name and combination: one line, no file made or changed

Exit status 1; of compare 2, which no caller takes for "different". Words are what the line must say.
"""

import hashlib
import os

import pytest

from tool import img, ok, qimg, qio

# Wrong for every command that has the option at all.
SIZES = ["", "x", "1x", "1kk", "-1", "1e3", "0x", "99999999999999999999", "1.5", "k"]

BAD = {
    "amend": [
        ("-o compat=1.1", "file name"), ("q.qcow2", "-o"), ("-o compat=7 q.qcow2", "compat=7"), ("-o frob=1 q.qcow2", "frob"),
        ("-o lazy_refcounts=maybe q.qcow2", "maybe"), ("-o compat=0.10,lazy_refcounts=on q.qcow2", "compat=1.1"),
        ("-o refcount_bits=3 q.qcow2", "refcount_bits=3"), ("-o refcount_bits=128 q.qcow2", "128"), ("-o refcount_bits= q.qcow2", "refcount_bits"),
        ("-o compat=0.10,refcount_bits=8 q.qcow2", "refcount_bits=16"), ("-o size=1 q.qcow2", "--shrink"), ("-o size=x q.qcow2", "size"),
        ("-o size=9E q.qcow2", ""), ("-o backing_file=r.raw q.qcow2", "rebase"), ("-o cluster_size=4k q.qcow2", "cluster_size"),
        ("-o preallocation=full q.qcow2", "preallocation"), ("-o nocow=on q.qcow2", "nocow"), ("-o data_file=x q.qcow2", "data_file"),
        ("-o compat=1.1 r.raw", "raw"), ("-o compat=1.1 e.qed", "qed"), ("-o compat=1.1 none", "none"), ("-o compat=1.1 q.qcow2 r.raw", "one file"),
        ("-t fast -o compat=1.1 q.qcow2", "fast"), ("-f frob -o compat=1.1 q.qcow2", "frob"), ("-o compat=0.10 snap.qcow2", "snapshots"),
        ("-o compat=0.10 zstd.qcow2", "compression_type=zstd"),
        ("-o encrypt.key-secret=x q.qcow2", "encrypt"),
    ],
    "bench": [
        ("", "file name"), ("none", "none"), ("-c -1 q.qcow2", "-1"), ("-c x q.qcow2", "x"), ("-d 0 q.qcow2", ""), ("-d 5000 q.qcow2", "5000"),
        ("-s 0 q.qcow2", ""), ("-s 3G q.qcow2", ""), ("-S x q.qcow2", "x"), ("-o 99G q.qcow2", ""), ("--pattern 256 -w q.qcow2", "256"),
        ("--flush-interval 1 -d 64 -w q.qcow2", ""), ("-i frob q.qcow2", "frob"), ("-t x q.qcow2", "x"),
        ("-w -U q.qcow2", "-U"), ("--duration 0 q.qcow2", ""),
    ],
    "bitmap": [
        ("--add q.qcow2", "bitmap"), ("q.qcow2 b", "nothing to do"), ("--add -g 3 q.qcow2 b", "-g"), ("--remove -g 64k q.qcow2 b", "--add"),
        ("--merge a -F raw q.qcow2 b", "-b"), ("--add -b r.raw q.qcow2 b", "--merge"), ("--merge", "value"), ("--add q.qcow2 b c", "needed"),
        ("--remove q.qcow2 b", "b"), ("--clear q.qcow2 b", "b"), ("--merge a q.qcow2 b", ""), ("--add r.raw b", ""), ("--add e.qed b", ""), ("--add none b", "none"),
        ("--enable q.qcow2 b", "b"), ("--add -g 4G q.qcow2 b", "-g"),
    ],
    "check": [
        ("", "file name"), ("none", "none"), ("q.qcow2 r.raw", "one file"), ("-r some q.qcow2", "some"), ("-r", "value"), ("--dry-run q.qcow2", "-r"),
        ("-r all -U q.qcow2", "-U"), ("-f frob q.qcow2", "frob"), ("-f qcow2 r.raw", "r.raw"), ("-T x q.qcow2", "x"), ("--output xml q.qcow2", "xml"),
        ("-p q.qcow2", "-p"), ("--image-opts q.qcow2", ""), ("--image-opts driver=qcow2 x", ""),
    ],
    "commit": [
        ("", "file name"), ("none", "none"), ("q.qcow2", "no backing file"), ("r.raw", "no backing file"), ("-b other over.qcow2", "other"),
        ("-r fast over.qcow2", "rate"), ("-r x over.qcow2", "rate"), ("-t x over.qcow2", "x"), ("-f raw over.qcow2", "no backing file"),
        ("over.qcow2 q.qcow2", "one file"), ("-f qed over.qcow2", "over.qcow2"), ("lost.qcow2", "gone.raw"),
    ],
    "compare": [
        ("", "two"), ("q.qcow2", "two"), ("q.qcow2 none", "none"), ("none q.qcow2", "none"), ("q.qcow2 q.qcow2 q.qcow2", "two"),
        ("-f frob q.qcow2 q.qcow2", "frob"), ("-F frob q.qcow2 q.qcow2", "frob"), ("-T x q.qcow2 q.qcow2", "x"), ("--bad q.qcow2 q.qcow2", "--bad"),
    ],
    "convert": [
        ("", "source"), ("q.qcow2", "target"), ("none new", "none"), ("-O frob q.qcow2 new", "frob"), ("-f frob q.qcow2 new", "frob"),
        ("-O qcow2 -o frob=1 q.qcow2 new", "frob"), ("-O qcow2 -o cluster_size=3k q.qcow2 new", "cluster_size"), ("-S 3 q.qcow2 new", "-S"),
        ("-S x q.qcow2 new", "-S"), ("-m 0 q.qcow2 new", "-m"), ("-m 17 q.qcow2 new", "-m"), ("-r fast q.qcow2 new", "rate"),
        ("-c -O raw q.qcow2 new", ""), ("-n -O raw q.qcow2 new", "new"), ("-n -o size=1M q.qcow2 r.raw", "-n"),
        ("--target-is-zero q.qcow2 new", "-n"), ("-t x q.qcow2 new", "x"), ("-T x q.qcow2 new", "x"), ("-l none -O raw q.qcow2 new", "none"),
        ("-B r.raw -O qcow2 q.qcow2 new", "format"), ("-F raw -O qcow2 q.qcow2 new", "-F"), ("-C -S 4k q.qcow2 new", "-C"),
        ("-B r.raw -F raw -O raw over.qcow2 new", ""), ("-O qcow2 -o preallocation=metadata -c q.qcow2 new", "preallocation"),
        ("--target-image-opts q.qcow2 driver=raw,file.filename=new", "-n"), ("--compress-level fast q.qcow2 new", "-c"),
        ("-O raw q.qcow2 no/such/new", "no/such/new"), ("-O raw q.qcow2 .", ""), ("--canonical -W q.qcow2 new", "-W"),
    ],
    "create": [
        ("", "file name"), ("new", "size"), ("-f qcow2 new", "size"), ("new 1M extra", "extra"), ("-f frob new 1M", "frob"), ("-o frob=1 new 1M", "frob"),
        ("-o preallocation=metadata new 1M", "metadata"), ("-f qcow2 -o size=x new", "size"), ("-b r.raw -f qcow2 new", "format"),
        ("-F raw -f qcow2 new 1M", "backing"), ("-b none -F raw -f qcow2 new", "none"), ("-b r.raw -F frob -f qcow2 new", "frob"),
        ("-b r.raw -F qcow2 -f qcow2 new", "r.raw"), ("-b r.raw -F raw new 1M", "backing"), ("-u -b r.raw -F raw -f qcow2 new", "size"),
        ("-f qcow2 -o cluster_size=0 new 1M", "cluster_size"), ("-f qcow2 -o compat=0.10,compression_type=zstd new 1M", "zstd"),
        ("-f qed -o table_size=3 new 1M", "table_size"), ("-f qcow2 -o encryption=on new 1M", "encryption"), ("no/such/new 1M", "no/such"), ("q.qcow2/x 1M", ""),
        ("-f qcow2 -o preallocation=full,backing_file=r.raw,backing_fmt=raw new", "preallocation"), ("-f qcow2 -o x new 1M", "x"),
        ("-f qcow2 -o =1 new 1M", ""), ("-f qcow2 -o nocow=2 new 1M", "nocow"), ("-o extent_size_hint=8G new 1M", "extent_size_hint"), ("rbd:pool/new 1M", "rbd"),
    ],
    "dd": [
        ("if=none of=new", "none"), ("frob=1 if=r.raw of=new", "frob"), ("if=r.raw of=new bs=0", "bs"), ("if=r.raw of=new bs=x", "bs"), ("if=r.raw of=new count=x", "count"),
        ("if=r.raw of=new skip=-1", "skip"), ("-f frob if=r.raw of=new", "frob"), ("-O frob if=r.raw of=new", "frob"), ("-n if=r.raw of=new", "new"),
        ("if=r.raw of=no/such/new", "no/such"), ("x if=r.raw of=new", "x"), ("if=q.qcow2 of=new osize=x", "osize"), ("-l none -f qcow2 if=q.qcow2 of=new", "none"),
    ],
    "info": [
        ("", "file name"), ("none", "none"), ("q.qcow2 r.raw", "one file"), ("-f frob q.qcow2", "frob"), ("-f qcow2 r.raw", "r.raw"), ("--output xml q.qcow2", "xml"),
        ("-t x q.qcow2", "x"), ("--image-opts q.qcow2", ""), ("json:{", ""), ("json:{\"driver\":\"frob\"}", "frob"), ("-z q.qcow2", "-z"), ("--frob q.qcow2", "frob"),
        ("--o", "ambiguous"), ("--limits=1 q.qcow2", "no value"), ("--backing-chain lost.qcow2", "gone.raw"), ("--object frob,id=x q.qcow2", "frob"),
        ("--object secret,id=x q.qcow2", "data= or file="), ("--object secret,id=x,file=none q.qcow2", "none"), ("--object secret q.qcow2", "id"),
    ],
    "map": [
        ("", "file name"), ("none", "none"), ("-s 9E q.qcow2", "-s"), ("-s x q.qcow2", "-s"), ("-l x q.qcow2", "-l"), ("--output xml q.qcow2", "xml"),
        ("-f frob q.qcow2", "frob"), ("lost.qcow2", "gone.raw"), ("q.qcow2 r.raw", "one file"),
    ],
    "measure": [
        ("", "--size"), ("--size 1G q.qcow2", "exclude"), ("none", "none"), ("-O frob --size 1G", "frob"), ("-O qed --size 1G", "qed"), ("-O qcow2 -o frob=1 --size 1G", "frob"),
        ("-O qcow2 -o cluster_size=3k --size 1G", "cluster_size"), ("--size x", "--size"), ("--size 9E", ""), ("-f raw --size 1G", "-f"), ("-U --size 1G", "-U"),
        ("-l none q.qcow2", "none"), ("--output xml q.qcow2", "xml"), ("q.qcow2 r.raw", "too many"), ("-o nocow=2 --size 1G", "nocow"),
    ],
    "rebase": [
        ("-b r.raw -F raw", "file name"), ("q.qcow2", "-b"), ("-b none -F raw q.qcow2", "none"), ("-b r.raw q.qcow2", "format"), ("-b r.raw -F frob q.qcow2", "frob"),
        ("-u -b r.raw -F frob q.qcow2", "frob"), ("-c -u -b r.raw -F raw q.qcow2", "-u"), ("-b r.raw -F raw r.raw", ""),
        ("-t x -b r.raw -F raw q.qcow2", "x"), ("-T x -b r.raw -F raw q.qcow2", "x"), ("-b q.qcow2 -F qcow2 q.qcow2", ""), ("-b r.raw -F raw none", "none"),
        ("-b r.raw -F raw lost.qcow2", "gone.raw"), ("-u -b r.raw -F raw r.raw", "raw"), ("-c -b new.raw -F raw e.qed", ""),
    ],
    "resize": [
        ("q.qcow2", "size"), ("1M", "size"), ("none 1M", "none"), ("q.qcow2 1M 2M", "size"), ("q.qcow2 1M", "--shrink"), ("q.qcow2 -99G", "less"), ("q.qcow2 0", "no bytes"),
        ("--shrink q.qcow2 0", "no bytes"), ("--preallocation=some q.qcow2 9M", "some"), ("--preallocation=metadata -f raw r.raw 9M", "metadata"),
        ("--preallocation=full --shrink q.qcow2 1M", ""), ("-f frob q.qcow2 9M", "frob"), ("-f qcow2 r.raw 9M", "r.raw"), ("--shrink e.qed 1M", ""),
        ("q.qcow2 +9E", ""), ("q.qcow2 8E", ""), ("--preallocation=full q.qcow2 4M", "longer"),
    ],
    "snapshot": [
        ("", "file name"), ("none", "none"), ("-c", "value"), ("-a none q.qcow2", "none"), ("-d none q.qcow2", "none"), ("-c a -d b q.qcow2", ""),
        ("-c x r.raw", "raw"), ("-c x e.qed", "qed"), ("--graph=frob q.qcow2", "frob"), ("-c " + "n" * 300 + " q.qcow2", ""), ("-U -c x q.qcow2", ""),
    ],
    "stream": [
        ("", "file name"), ("none", "none"), ("r.raw", "raw"), ("-b other over.qcow2", "other"), ("-r x over.qcow2", "rate"), ("-t x over.qcow2", "x"), ("lost.qcow2", "gone.raw"),
    ],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("bad")
    old = os.getcwd()
    os.chdir(path)
    ok(qimg("create", "-q", "-f", "raw", "r.raw", "4M"))
    ok(qio("r.raw", "write -P 5 0 1M", options=("-f", "raw")))
    ok(qimg("create", "-q", "-f", "qcow2", "q.qcow2", "4M"))
    ok(qio("q.qcow2", "write -P 6 1M 1M"))
    ok(qimg("create", "-q", "-f", "qed", "e.qed", "4M"))
    ok(qimg("create", "-q", "-f", "qcow2", "-b", "r.raw", "-F", "raw", "over.qcow2"))
    ok(qimg("create", "-q", "-u", "-f", "qcow2", "-b", "gone.raw", "-F", "raw", "lost.qcow2", "4M"))
    ok(qimg("create", "-q", "-f", "qcow2", "snap.qcow2", "4M"))
    ok(qimg("snapshot", "-c", "one", "snap.qcow2"))
    ok(qimg("create", "-q", "-f", "qcow2", "-o", "compression_type=zstd", "zstd.qcow2", "4M"))
    yield path
    os.chdir(old)


def state():
    return {name: hashlib.sha256(open(name, "rb").read()).hexdigest() for name in sorted(os.listdir("."))}


def words(line):
    # Two blanks hold an empty argument.
    return [] if not line else line.split(" ")


def complaints(command, lines):
    before, wrong = state(), []
    for line, word in lines:
        r = img(command, *words(line))
        good = r.rc == (2 if command == "compare" else 1) and len(r.err.splitlines()) == 1 and word in r.err and r.out == ""
        if not good:
            wrong.append(f"must say {word!r}:\n{r}")
        if state() != before:
            wrong.append(f"something was made or changed:\n{r}")
            break
    return wrong


@pytest.mark.parametrize("command", BAD)
def test_one_line_and_nothing_is_changed(folder, command):
    wrong = complaints(command, BAD[command])
    assert not wrong, "\n".join(wrong)


def test_every_command_is_here():
    listed = {line.split()[0] for line in ok(img("--help")).out.split("\n\n")[1].splitlines()}
    assert listed == set(BAD)


@pytest.mark.parametrize("command", BAD)
def test_no_such_option(folder, command):
    wrong = complaints(command, [("-%", "-%"), ("--no-such-option", "no-such-option"), ("--no-such=1", "no-such"), ("--errors=xml", "xml"),
                                 ("--errors", "value"), ("--object", "value")])
    assert not wrong, "\n".join(wrong)


def test_what_is_no_size(folder):
    for line in ("create -f qcow2 new {}", "resize q.qcow2 {}", "measure --size={}", "map -s={} q.qcow2", "map --max-length={} q.qcow2",
                 "convert -r{} q.qcow2 new", "dd if=r.raw of=new bs={}", "bench -s{} q.qcow2", "create -o extent_size_hint={} new 1M"):
        command, *rest = line.split(" ")
        wrong = complaints(command, [(" ".join(rest).format(s), "") for s in SIZES if s != "-1" or command != "resize"])
        assert not wrong, "\n".join(wrong)
