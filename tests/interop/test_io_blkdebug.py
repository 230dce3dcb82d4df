# SPDX-License-Identifier: MIT
"""test_io_blkdebug - errors at chosen steps and break points: the same rules in varve io and qemu-io, the same to be seen"""

import json
import pathlib
import re

import pytest

from tool import img, io, ok, qimg, qio, refused, timeless, varve

SCRIPT = ["write 1M 64k", "flush", "read 1M 4k", "write 3M 100", "flush"]

# Events that both engines meet at the same place of this script, with what is in the cache when they do.
SAME = ["l1_update", "l2_load", "l2_update", "l2_alloc_write", "read_aio", "write_aio", "cow_read", "cow_write", "refblock_load",
        "refblock_update_part", "refblock_alloc", "cluster_alloc", "cluster_alloc_bytes", "cluster_free", "flush_to_os", "pwritev",
        "pwritev_done", "reftable_load", "none", "read_compressed", "vmstate_load"]
NEVER = ["read_backing_aio", "refblock_update", "reftable_update", "empty_image_prepare", "l1_shrink_write_table",
         "l1_shrink_free_l2_clusters", "cor_write", "cluster_alloc_space"]


MADE = []


def pair(tmp_path):
    """Two images that are the same, with 128 KiB of data; one for each implementation."""
    paths = tmp_path / "ours", tmp_path / "theirs"
    if not MADE:
        ok(qimg("create", "-q", "-f", "qcow2", paths[0], "64M"))
        ok(qio(paths[0], "write -q -P 1 0 128k"))
        MADE.append(paths[0].read_bytes())
    for path in paths:
        path.write_bytes(MADE[0])
    return paths


def told(r):
    """What a caller sees: results without times, how it ended."""
    return [line for line in timeless(r.out).splitlines() if "ops;" not in line], r.rc


def clean(path):
    r = qimg("check", path)
    assert r.rc in (0, 3), str(r)  # 3: leaked clusters only, nothing lost
    assert img("check", path).rc == r.rc, path
    return r.rc


def rules(tmp_path, text):
    path = tmp_path / "rules.conf"
    path.write_text(text)
    return path


@pytest.mark.parametrize("cache", ["writeback", "writethrough"])
@pytest.mark.parametrize("event", SAME)
def test_an_error_is_told_to_the_same_commands(tmp_path, event, cache):
    conf = rules(tmp_path, f'[inject-error]\nevent = "{event}"\nerrno = "28"\nonce = "on"\n')
    ours, theirs = pair(tmp_path)
    results = [tool(f"blkdebug:{conf}:{path}", *SCRIPT, options=("-t", cache)) for tool, path in ((io, ours), (qio, theirs))]
    assert told(results[0]) == told(results[1]), f"{results[0]}\n{results[1]}"
    assert clean(ours) == clean(theirs)
    # What was acknowledged, and flushed, is there.
    ok(io(ours, "read -q -P 1 0 128k"))
    if "wrote 65536/65536 bytes at offset 1048576" in results[0].out:
        ok(io(ours, "read -q -P 0xcd 1M 64k"))


@pytest.mark.parametrize("event", ["l2_update", "write_aio", "flush_to_disk"])
def test_an_error_that_stays(tmp_path, event):
    """Every request fails from there on; the image is whole all the same, and holds what it held."""
    ours, theirs = pair(tmp_path)
    results = []
    for tool, path in ((io, ours), (qio, theirs)):
        spec = f"driver=qcow2,file.driver=blkdebug,file.image.filename={path},file.inject-error.0.event={event}"
        results.append(tool(spec, *SCRIPT, options=("--image-opts", "-t", "writeback")))
    assert told(results[0]) == told(results[1]), f"{results[0]}\n{results[1]}"
    assert "last flush failed" in results[0].err
    clean(ours)
    ok(io(ours, "read -q -P 1 0 128k"))


@pytest.mark.parametrize("event", ["l2_update", "write_aio", "flush_to_disk"])
def test_a_guest_tries_again_after_an_error(tmp_path, event):
    disk, _ = pair(tmp_path)
    conf = rules(tmp_path, f'# once only\n\n[inject-error "a"]\n  event = "{event}"\n  errno = "5"\n  once = "on"\n')
    r = io(f"blkdebug:{conf}:{disk}", "write -P 5 1M 64k", "write -P 5 1M 64k", "flush", "read -P 5 1M 64k")
    assert r.rc == 1 and r.out.count("failed: Input/output error") == 1, str(r)
    assert "erification" not in r.out and r.err == "", str(r)
    ok(img("check", disk))
    ok(qimg("check", disk))
    ok(qio(disk, "read -q -P 5 1M 64k", "read -q -P 1 0 128k"))


OCCUR = ["l1_update", "l1_grow_alloc_table", "l1_grow_write_table", "l1_grow_activate_table", "l2_load", "l2_update",
         "l2_update_compressed", "l2_alloc_cow_read", "l2_alloc_write", "read_aio", "read_compressed", "write_aio",
         "write_compressed", "vmstate_load", "vmstate_save", "cow_read", "cow_write", "reftable_load", "reftable_grow",
         "refblock_load", "refblock_update_part", "refblock_alloc", "refblock_alloc_hookup", "refblock_alloc_write",
         "refblock_alloc_write_blocks", "refblock_alloc_write_table", "refblock_alloc_switch_table", "cluster_alloc",
         "cluster_alloc_bytes", "cluster_free", "flush_to_os", "flush_to_disk", "pwritev_rmw_head", "pwritev_rmw_after_head",
         "pwritev_rmw_tail", "pwritev_rmw_after_tail", "pwritev", "pwritev_zero", "pwritev_done", "none"]
ALL_OF_IT = ["read 0 512", "write 64k 600", "write -c 128k 512", "read 128k 512", "write -b 0 512", "read -b 0 512", "flush",
             "write 0 512", "truncate 32M", "write 1M 4M", "flush", "discard 1M 4M", "flush", "discard 2M 4M", "write 8M 12M",
             "flush"]


@pytest.fixture(scope="module", name="rich")
def rich_image(tmp_path_factory):
    """Small clusters, so that tables grow soon; a backing file; tables shared with a snapshot; a file of odd length."""
    folder = tmp_path_factory.mktemp("rich")
    (folder / "base").write_bytes(b"\7" * 262144)
    ok(qimg("create", "-q", "-f", "qcow2", "-b", folder / "base", "-F", "raw", "-o", "cluster_size=512", folder / "disk", "1M"))
    ok(qio(folder / "disk", "write -q 0 512"))
    ok(qimg("snapshot", "-c", "before", folder / "disk"))
    ok(qio(folder / "disk", "write -q 512k 512"))
    return folder / "disk"


@pytest.mark.parametrize("event", OCCUR)
def test_every_event_that_may_be_named_occurs(tmp_path, rich, event):
    disk = tmp_path / "disk"
    disk.write_bytes(rich.read_bytes())
    spec = f"file.driver=blkdebug,file.align={4096 if 'rmw' in event else 1},file.image.filename={disk}"
    spec += ",driver=raw" if event == "pwritev_zero" else ",driver=qcow2"  # holes of the file are raw's
    script = ["write -z 0 512", "flush"] if event == "pwritev_zero" else ALL_OF_IT
    if event in ("l1_update", "pwritev_zero"):
        ok(io(spec, *script, options=("--image-opts",)))
        disk.write_bytes(rich.read_bytes())
    r = io(f"{spec},file.inject-error.0.event={event}", *script, options=("--image-opts",))
    assert r.rc == 1 and "Input/output error" in r.out + r.err, str(r)
    clean(disk)  # raw: the failed write has not happened


def test_the_list_of_events_is_whole():
    tree = pathlib.Path(__file__).resolve().parents[2]
    names = re.findall(r'\{ "(\w+)", (true|false) \}', (tree / "src" / "block" / "event.c").read_text())
    assert sorted(n for n, occurs in names if occurs == "true") == sorted(OCCUR)
    assert sorted(n for n, occurs in names if occurs == "false") == sorted(NEVER)
    page = (tree / "docs" / "man" / "varve-io.1.scd").read_text()
    for word, events in (("Events", OCCUR), ("never occur in varve", NEVER)):
        listed = re.search(word + r":\s*(.*?)\.\n", page, re.S).group(1)
        assert sorted(set(re.findall(r"\*(\w+)\*", listed)) - {"align"}) == sorted(events)


@pytest.mark.parametrize("event", ["cow_read", "cow_write", "l2_alloc_cow_read", "l1_grow_alloc_table", "l1_grow_write_table"])
def test_copies_and_growth_fail_as_theirs(tmp_path, rich, event):
    results = []
    for tool in (io, qio):
        disk = tmp_path / tool.__name__
        disk.write_bytes(rich.read_bytes())
        spec = f"driver=qcow2,file.driver=blkdebug,file.image.filename={disk},file.inject-error.0.event={event},file.inject-error.0.once=on"
        results.append(tool(spec, "write 64k 100", "write 0 512", "truncate 32M", "write 65k 100", options=("--image-opts",)))
        clean(disk)
    assert told(results[0]) == told(results[1]), f"{results[0]}\n{results[1]}"


def test_states_and_sectors(tmp_path):
    conf = rules(tmp_path, "".join(f'[set-state]\nevent = "read_aio"\nstate = "{n}"\nnew_state = "{n + 1}"\n' for n in (1, 2)) +
                 '[inject-error]\nevent = "read_aio"\nstate = "3"\nerrno = "28"\nonce = "on"\n'
                 '[inject-error]\nevent = "write_aio"\nsector = "20"\niotype = "write"\n')
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    script = ["read 0 512", "read 0 512", "read 0 512", "read 0 512", "write 0 4k", "write 10k 512", "write 10752 512",
              "write 9k 4k", "read 10k 512"]
    results = []
    for tool, path in ((io, ours), (qio, theirs)):
        path.write_bytes(bytes(1 << 20))
        results.append(tool(f"blkdebug:{conf}:{path}", *script, options=("-f", "raw")))
    assert told(results[0]) == told(results[1]), f"{results[0]}\n{results[1]}"
    assert results[0].out.count("No space left") == 1 and results[0].out.count("write failed") == 2
    assert ours.read_bytes() == theirs.read_bytes()


def test_trees_of_options_mean_the_same(tmp_path):
    """A list, JSON, a node above the format instead of below it."""
    ours, theirs = pair(tmp_path)

    def specs(path):
        rule = {"event": "pwritev", "errno": 28, "once": True, "sector": 0, "iotype": "write"}
        below = {"driver": "qcow2", "file": {"driver": "blkdebug", "image": {"driver": "file", "filename": str(path)},
                                             "inject-error": [{"event": "write_aio", "once": True}]}}
        above = {"driver": "blkdebug", "inject-error": [rule],
                 "image": {"driver": "qcow2", "file": {"driver": "file", "filename": str(path)}}}
        return ["json:" + json.dumps(below), "json:" + json.dumps(above)]

    for a, b in zip(specs(ours), specs(theirs)):
        r, s = io(a, "length", "write 0 512", "read 0 512", "write 0 512"), qio(b, "length", "write 0 512", "read 0 512", "write 0 512")
        assert told(r) == told(s), f"{r}\n{s}"
        assert r.out.count("failed") == 1
    for a in (ours, theirs):
        r = (io if a is ours else qio)(f"driver=blkdebug,image.filename={a},align=512", "read -v 0 4", options=("--image-opts",))
        assert "51 46 49 fb" in r.out, str(r)  # no format is looked for below


@pytest.mark.parametrize("layer", ["driver=blkdebug,image.driver=qcow2,image.file.filename=", "driver=fault,file.driver=qcow2,file.file.filename=",
                                   "driver=qcow2,file.driver=blkdebug,file.image.filename="])
def test_a_stable_write_is_stable_below_and_above_the_format(tmp_path, layer):
    """A layer above the format once kept the mapping from being made stable with the bytes."""
    disk, _ = pair(tmp_path)
    r = io(f"{layer}{disk}", "write -q -f -P 5 1M 64k", "sigraise 9", options=("--image-opts", "-t", "writeback"))
    assert r.rc == -9, str(r)
    ok(qio(disk, "read -q -P 5 1M 64k", options=("-r", "-U")))


@pytest.mark.parametrize("cache", ["writeback", "none"])
@pytest.mark.parametrize("align", [512, 4096])
def test_limits_keep_the_bytes(tmp_path, cache, align):
    path = tmp_path / "disk"
    path.write_bytes(bytes(1 << 20))
    spec = f"driver=raw,cache={cache},file.driver=blkdebug,file.image.filename={path}"
    ok(io(f"{spec},file.align={align},file.max-transfer={3 * align},file.opt-write-zero=8k,file.max-write-zero=16k,file.opt-discard=4k,"
          "file.max-discard=64k", "write -q -P 1 100 300k", "write -q -z 5000 100000", "discard -q 200k 60k", "flush",
          "read -q -P 1 100 4900", "read -q -P 0 5000 100000", "read -q -P 1 105000 90k", options=("--image-opts",)))
    data = path.read_bytes()
    assert data[:100] == bytes(100) and data[100:5000] == b"\1" * 4900 and data[5000:105000] == bytes(100000)


# ---- break points ----

def test_break_points_speak_as_theirs(tmp_path):
    ours, theirs = pair(tmp_path)
    for script in (["break write_aio A", "aio_write 1M 64k", "wait_break A", "read 0 512", "resume A", "aio_flush", "aio_write 2M 64k",
                    "aio_flush"],
                   ["break write_aio A", "break read_aio B", "remove_break B", "aio_read 0 512", "aio_flush", "aio_write 3M 64k",
                    "wait_break A", "resume A", "aio_flush"],
                   ["break flush_to_os A", "aio_write -f 4M 64k", "wait_break A", "resume A", "aio_flush"]):
        r, s = io(f"blkdebug::{ours}", *script), qio(f"blkdebug::{theirs}", *script)
        assert told(r) == told(s) and r.rc == 0 and r.err == "", f"{r}\n{s}"
    ok(img("compare", ours, theirs))
    ok(img("check", ours))


@pytest.mark.parametrize("event", ["cluster_alloc", "l2_load", "write_aio", "pwritev", "pwritev_done", "l2_update",
                                   "refblock_update_part", "flush_to_os", "flush_to_disk"])
def test_a_request_waits_where_it_was_stopped(tmp_path, event):
    disk, _ = pair(tmp_path)
    r = ok(io(f"blkdebug::{disk}", f"break {event} A", "aio_write -f -P 7 1M 100", "wait_break A", "resume A", "aio_flush",
              "read -q -P 7 1M 100", "read -q -P 0 1048676 1000"))
    assert [line for line in r.out.splitlines() if "A" in line] == ["blkdebug: Suspended request 'A'", "blkdebug: Resuming request 'A'"]
    ok(qimg("check", disk))
    ok(qio(disk, "read -q -P 7 1M 100", "read -q -P 0 1048676 60k"))


def test_two_writes_of_one_cluster_meet(tmp_path):
    """The second finds the first one on its way to a new cluster, and neither is lost."""
    disk, _ = pair(tmp_path)
    ok(io(f"blkdebug::{disk}", "break write_aio A", "aio_write -q -P 7 1M 4k", "wait_break A", "aio_write -q -P 8 1028k 4k",
          "resume A", "aio_flush", "read -q -P 7 1M 4k", "read -q -P 8 1028k 4k"))
    ok(qimg("check", disk))
    ok(qio(disk, "read -q -P 7 1M 4k", "read -q -P 8 1028k 4k"))


def test_what_is_held_goes_on_at_the_end(tmp_path):
    disk, _ = pair(tmp_path)
    for event in ("write_aio", "cluster_alloc", "pwritev_done"):
        r = ok(io(f"blkdebug::{disk}", f"break {event} A", "aio_write -P 7 1M 64k", "wait_break A"))
        assert "Resuming request 'A'" in r.out and "wrote 65536/65536" in r.out, str(r)
        ok(io(disk, "read -q -P 7 1M 64k", "discard -q 1M 64k"))
    # Held in the flush that closing makes.
    ok(io(f"blkdebug::{disk}", "write -q 1M 64k", "break flush_to_disk A", options=("-t", "writeback")))
    ok(qimg("check", disk))


def test_a_wait_for_nothing_ends(tmp_path):
    disk, _ = pair(tmp_path)
    refused(io(f"blkdebug::{disk}", "wait_break A"), "no request is under way")
    refused(io(f"blkdebug::{disk}", "break l2_update A", "aio_read -q 0 512", "wait_break A"), "no request is under way")


# ---- bad input ----

@pytest.mark.parametrize("event", NEVER)
def test_events_that_never_occur_are_refused(tmp_path, event):
    """A rule that cannot match would make a test pass that tests nothing."""
    disk, _ = pair(tmp_path)
    conf = rules(tmp_path, f'[inject-error]\nevent = "{event}"\n')
    refused(io(f"blkdebug:{conf}:{disk}", "read 0 512"), "rules.conf", "line 1", event, "never occurs")
    refused(io(f"blkdebug::{disk}", f"break {event} A"), event, "never occurs")


@pytest.mark.parametrize("text,words", [
    ("[foo]\n", ["line 1", "[foo]"]), ("x = \"1\"\n", ["line 1", "first section"]),
    ('[inject-error]\nevent = "none"\nfoo = "1"\n', ["line 1", "foo"]), ('[inject-error]\nevent = read_aio\n', ["line 2", "read_aio"]),
    ('\n[inject-error]\nevent = "read_aio"\nerrno = "EIO"\n', ["line 2", "errno", "EIO"]),
    ('[inject-error]\nstate = "1"\n', ["line 1", "event", "missing"]), ('[set-state]\nevent = "read_aio"\n', ["new_state"]),
    ('[inject-error]\nevent = "zzz"\n', ["zzz"]), ('[inject-error]\nevent = "read_aio"\nsector = "x"\n', ["sector"]),
    ('[inject-error]\nevent = "read_aio" more\n', ["line 2"]), ('[inject-error\n', ["line 1"]),
    ('[inject-error]\nevent = "read_aio"\niotype = "block-status"\n', ["block-status"]),
    ('[inject-error]\nevent = "a\0b"\n', ["line 2"]), ("#" * 70000, ["line 1", "65536"]),
    ('[inject-error]\nevent = "read_aio"\n' * 300, ["more than 256 rules"]),
])
def test_bad_rule_files(tmp_path, text, words):
    disk, _ = pair(tmp_path)
    before = disk.read_bytes()
    refused(io(f"blkdebug:{rules(tmp_path, text)}:{disk}", "write 0 512"), "rules.conf", *words)
    assert disk.read_bytes() == before


def test_bad_names(tmp_path):
    disk, _ = pair(tmp_path)
    refused(io(f"blkdebug:{disk}", "read 0 512"), "blkdebug:RULES:FILE")
    refused(io(f"blkdebug:{tmp_path}/none:{disk}", "read 0 512"), "none")
    refused(io(f"blkdebug::{tmp_path}/none", "read 0 512"), "none")
    refused(io(disk, "break write_aio A"), "blkdebug")
    refused(io(f"blkdebug::{disk}", "break zzz A"), "zzz")
    refused(io(f"blkdebug::{disk}", "resume A"), "'A'")
    refused(io(f"blkdebug::{disk}", "remove_break A"), "'A'")
    refused(io(f"driver=qcow2,file.driver=blkdebug,file.filename={disk},file.color=red", "read 0 512", options=("--image-opts",)), "color")


def test_a_name_in_an_image_leads_to_no_rule_file(tmp_path):
    ok(qimg("create", "-q", "-f", "raw", tmp_path / "base", "1M"))
    ok(img("create", "-q", "-f", "qcow2", "-u", "-b", f"blkdebug:{tmp_path}/conf:{tmp_path}/base", "-F", "raw", tmp_path / "top", "1M"))
    refused(io(tmp_path / "top", "read 0 512"), "blkdebug:", "not followed")


def test_zones_are_refused(tmp_path):
    disk, _ = pair(tmp_path)
    for command in ("zone_report 0 1", "zone_open 0 64k", "zone_close 0 64k", "zone_finish 0 64k", "zone_reset 0 64k",
                    "zone_append 0 64k"):
        refused(io(disk, command), command.split()[0], "no zones")
    assert varve("io", "-c", "zone_report 0 1").rc == 1
