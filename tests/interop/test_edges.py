# SPDX-License-Identifier: MIT
"""test_edges - what is barely right, and barely wrong, side by side with the peer: the exit status is the same, JSON is the same data

Each list is a story: the lines run one after the other, in a folder for each tool. Where varve differs on purpose the line says
both statuses and why.
"""

import shlex

import pytest

from tool import qimg, run, varve_path

LAYOUT = {"actual-size", "children", "compressed", "offset", "image-end-offset"}  # where things are is each tool's own affair

CREATE = """
create -q -f qcow2 a.qcow2 10M
create -f qcow2 x.qcow2
create -f qcow2
create
create -f qcow2 x.qcow2 10M 20M
create -f qcow2 x.qcow2 10X
create -f qcow2 x.qcow2 -1
create -f qcow2 x.qcow2 1.5G
create -f qcow2 x.qcow2 0
create -f qcow2 x.qcow2 10000
info --output=json x.qcow2
create -f qcow2 x.qcow2 8E
create -f qcow2 -o size=1M x.qcow2
create -f qcow2 -o size=1M x.qcow2 2M
create -f qcow2 -o compat=v2 -o cluster_size=4k x.qcow2 1M
info --output=json x.qcow2
create -f qcow2 -o cluster_size=5k x.qcow2 1M
create -f qcow2 -o nosuch=1 x.qcow2 1M
create -f nosuch x.qcow2 1M
create -f qcow2 -b a.qcow2 -F qcow2 o.qcow2
create -f qcow2 -b a.qcow2 o2.qcow2
create -f qcow2 -u -b none.qcow2 -F qcow2 o4.qcow2
create -f qcow2 -u -b none.qcow2 -F qcow2 o4.qcow2 1M
create -f qcow2 -b none.qcow2 -F qcow2 o5.qcow2 1M
create -f qcow2 -o backing_fmt=raw,compat=1.1,lazy_refcounts -b /dev/null l.qcow2
info --output=json l.qcow2
create -f qcow2 -o data_file=dd.raw,data_file_raw=on,preallocation=metadata l.qcow2 1M
info --output=json l.qcow2
create -f raw -o preallocation=full,size=1M f.raw
create -f raw -o preallocation=metadata f.raw 1M
"""

CHANGE = """
create -q -f qcow2 a.qcow2 10M
amend -o compat=0.10 a.qcow2
amend -o compat=v3 a.qcow2
amend -o lazy_refcounts=on a.qcow2 -q -t none
amend -o refcount_bits=8 a.qcow2
amend -o cluster_size=4k a.qcow2
amend -o backing_file=x a.qcow2
amend -o data_file=x a.qcow2
amend --force -o size=30M a.qcow2
amend -o size=20M a.qcow2 = 0 1  what is behind would be lost, and nobody said --shrink
resize -q --shrink a.qcow2 30M
amend a.qcow2
info --output=json a.qcow2
bitmap --add -g 64k a.qcow2 b0
bitmap --add --disable a.qcow2 b1
bitmap --merge b0 a.qcow2 b1
bitmap --clear --enable a.qcow2 b1
bitmap --add --merge b0 a.qcow2 b2
bitmap --remove a.qcow2 b2
bitmap --remove a.qcow2 nonesuch
bitmap a.qcow2 b0
bitmap --add a.qcow2
bitmap --add a.qcow2 b0
bitmap --add --remove a.qcow2 bz
bitmap --merge b0 -b a.qcow2 -F qcow2 a.qcow2 b1
info --output=json a.qcow2
check a.qcow2
check --output json a.qcow2
check -r leaks a.qcow2
check -r all --output json a.qcow2
check -r foo a.qcow2
check -p a.qcow2
check -t none a.qcow2
check -T none a.qcow2
check -U -r all a.qcow2
check none.qcow2
check
check a.qcow2 b.qcow2
resize a.qcow2 40M
resize -q a.qcow2 +1M
resize a.qcow2 -1M
resize a.qcow2 --shrink 15M
resize a.qcow2
resize a.qcow2 abc
resize a.qcow2 -100M --shrink
resize --preallocation=falloc a.qcow2 16M
resize --preallocation=metadata a.qcow2 17M
resize --preallocation=full a.qcow2 18M
resize --preallocation=nosuch a.qcow2 19M
resize --preallocation=full --shrink a.qcow2 2M
resize -f raw none 19M
create -q -f raw r.raw 1M
check r.raw
resize -f raw r.raw 1000
resize -f raw --shrink r.raw 1000
snapshot -c s1 a.qcow2
snapshot -a 1 a.qcow2 = 1 0  its bitmaps note that everything has changed
snapshot -a nosuch a.qcow2
snapshot -d nosuch a.qcow2
snapshot -l -c x a.qcow2
snapshot -c x r.raw
snapshot -U -c x a.qcow2
convert -l s1 -O raw a.qcow2 s1.raw
convert -l snapshot.id=1 -O raw a.qcow2 s2.raw
compare -f raw -F raw s1.raw s2.raw
measure -l s1 -O qcow2 --output=json a.qcow2
snapshot -d s1 a.qcow2
snapshot -c s2 a.qcow2
snapshot -c s2 a.qcow2
snapshot -d s2 a.qcow2
snapshot -d 2 a.qcow2 = 1 0  an id that is no name: how else to name the second of two
snapshot -c "" a.qcow2 = 0 1  a name that was forgotten
"""

CHAIN = """
create -q -f qcow2 a.qcow2 10M
create -q -f raw r.raw 1M
create -q -f qcow2 -b a.qcow2 -F qcow2 o.qcow2 12M
info --backing-chain --output=json -U o.qcow2
info --output=xml a.qcow2
info none
info
info a.qcow2 b
info -f nosuch a.qcow2
info --image-opts driver=qcow2,file.filename=a.qcow2,nosuch=1
map --output=json o.qcow2
map -s 1M -l 4M --output=json o.qcow2
map -s 20M a.qcow2
map -s -1 a.qcow2
map -l 0 --output=json a.qcow2
compare a.qcow2 o.qcow2
compare -s a.qcow2 o.qcow2
compare a.qcow2 none
compare a.qcow2 = 1 2  1 would say that two images differ
commit -p -t none -f qcow2 o.qcow2
commit -b nosuch o.qcow2
commit -d -b a.qcow2 o.qcow2
commit a.qcow2
commit r.raw
commit -r abc o.qcow2
commit -t nosuch o.qcow2
rebase -u -b o.qcow2 -F qcow2 o.qcow2 = 0 1  no chain begins with itself
rebase -u -b none.raw -F raw o.qcow2
info --output=json -U o.qcow2
rebase -u -b a.qcow2 -F qcow2 o.qcow2
rebase -b "" o.qcow2
rebase -b a.qcow2 o.qcow2
rebase -b a.qcow2 -F qcow2 -p -t none -T none o.qcow2
rebase -b none -F qcow2 o.qcow2
rebase -b none -F nosuch o.qcow2
rebase o.qcow2
rebase -b a.qcow2 -F qcow2 r.raw
rebase -b o.qcow2 -F qcow2 o.qcow2
"""

COPY = """
create -q -f qcow2 a.qcow2 10M
create -q -f qcow2 -b a.qcow2 -F qcow2 b.qcow2
convert -O raw b.qcow2 b.raw
convert -O raw -o size=5M a.qcow2 z.raw
info --output=json -f raw z.raw
convert -O qcow2 -o size=20M a.qcow2 z.qcow2
info --output=json z.qcow2
convert -O qcow2 -o size=x a.qcow2 z.qcow2
convert -O raw a.qcow2
convert
convert -O raw none x
convert -O nosuch a.qcow2 x
convert -t nosuch -O raw a.qcow2 x
convert -T nosuch -O raw a.qcow2 x
convert -O qcow2 -n -o compat=1.1 b.raw b2.qcow2
convert -O raw -S 1k b.raw s1.raw
convert -O raw -S 100 b.raw s1.raw
convert -O raw -m 17 b.raw s1.raw
convert -O raw -m 0 b.raw s1.raw
convert -O raw -m 16 -W b.raw s1.raw
convert -O raw -r 100M b.raw s2.raw
convert -O raw -r abc b.raw s2.raw
convert -O raw -C -S 4k b.raw s2.raw
convert -O raw -C -c b.raw s2.raw
convert -O raw --target-is-zero b.raw s2.raw
convert -n -O raw --target-is-zero b.raw s2.raw
convert -O qcow2 -B a.qcow2 b.qcow2 bb.qcow2
convert -O qcow2 -B a.qcow2 -F qcow2 b.qcow2 bb.qcow2
convert -O raw --bitmaps a.qcow2 bm.raw
convert -O qcow2 --skip-broken-bitmaps a.qcow2 bm.qcow2
convert --salvage -c -O qcow2 a.qcow2 sv.qcow2
convert -l nosnap -O raw a.qcow2 sv.raw
convert --target-image-opts -O raw a.qcow2 driver=raw,file.filename=x
convert -n --target-image-opts -O raw a.qcow2 driver=raw,file.filename=x
convert -n --target-image-opts a.qcow2 driver=raw,file.filename=s2.raw
convert --image-opts -f qcow2 driver=qcow2,file.filename=a.qcow2 -O raw y.raw
measure --output=json -O qcow2 a.qcow2
measure --size 1G -O qcow2 -o cluster_size=4k --output json
measure --size 10K -O raw
measure --size 1G a.qcow2
measure
measure -O nosuch a.qcow2
measure -l snap -O qcow2 a.qcow2
measure --size abc
dd if=a.qcow2 of=d.raw bs=1M count=2
dd if=none of=d2.raw
dd if=a.qcow2 of=x bs=0
dd if=a.qcow2 of=x bs=abc
dd if=a.qcow2 of=x foo=1
bench -c 10 -d 2 a.qcow2
bench -c 0 a.qcow2
bench -c -1 a.qcow2
bench -c 10 -w --pattern 300 a.qcow2
bench -c 10 --flush-interval 2 a.qcow2
bench -c 10 --no-drain a.qcow2
bench -c 10 -i nosuch a.qcow2
nosuch
"""


def data(text):
    """JSON without what is each tool's own."""
    def strip(value):
        if isinstance(value, dict):
            return {k: strip(v) for k, v in value.items() if k not in LAYOUT}
        return [strip(v) for v in value] if isinstance(value, list) else value
    return strip(text)


@pytest.mark.parametrize("story", [CREATE, CHANGE, CHAIN, COPY], ids=["create", "change", "chain", "copy"])
def test_exit_status_and_data(tmp_path, story):
    theirs, ours, link = tmp_path / "theirs", tmp_path / "ours", tmp_path / "qemu-img"
    theirs.mkdir()
    ours.mkdir()
    link.symlink_to(varve_path())
    differ = []
    for line in story.strip().splitlines():
        line, _, agreed = line.partition(" = ")
        words = shlex.split(line)
        t, o = qimg(*words, cwd=theirs), run(link, *words, cwd=ours)
        wanted = agreed.split()[:2] if agreed else [str(t.rc)] * 2
        if [str(t.rc), str(o.rc)] != wanted:
            differ.append(f"{line}: {t.rc}, ours {o.rc}\n    {t.err}    {o.err}")
        elif o.rc == 0 and o.err:
            differ.append(f"{line}: on stderr: {o.err}")
        elif o.rc and not (o.err.startswith("qemu-img: ") or o.rc in (1, 2, 3) and not o.err and o.out):
            differ.append(f"{line}: exit {o.rc}, and no reason: {o.err}")
        elif t.rc == 0 and "json" in line and data(t.json) != data(o.json):
            differ.append(f"{line}:\n    {data(t.json)}\n    {data(o.json)}")
    assert not differ, "\n".join(differ)
