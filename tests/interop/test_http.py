# SPDX-License-Identifier: MIT
"""test_http - images on web servers: honest ones, and ones that lie, fall silent, or go away"""

import json
import os
import random
import socket
import time

import pytest

from seeds import seed
from tool import KIB, MIB, img, io, ok, qimg
from webserver import Liar, Nginx

LEN = 6 * MIB + 512 * 77


@pytest.fixture(name="root", scope="module")
def make_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("www")
    rng = random.Random(5)
    with open(root / "base.raw", "wb") as f:
        f.write(rng.randbytes(2 * MIB) + bytes(MIB) + rng.randbytes(LEN - 3 * MIB))
    (root / "empty.raw").write_bytes(b"")
    os.chmod(root, 0o755)
    return root


@pytest.fixture(name="web")
def make_web(tmp_path, root):
    folder = tmp_path / "nginx"
    folder.mkdir()
    with Nginx(str(folder), str(root)) as web:
        yield web


def overlay(folder, url, fmt="qcow2", options="cluster_size=64k"):
    path = os.path.join(folder, f"overlay.{fmt}")
    ok(img("create", "-q", "-f", fmt, "-o", options, "-u", "-b", url, "-F", "raw", path, str(LEN)))
    return path


# ---- an honest server ----

def test_reads_what_is_there(tmp_path, root, web):
    base = str(root / "base.raw")
    ok(img("compare", "-f", "raw", "-F", "raw", base, web.url("base.raw")))
    ok(img("compare", "-f", "raw", "-F", "raw", base, web.url("moved.raw")))
    ok(img("info", web.url("empty.raw")))
    info = img("info", "--output=json", web.url("base.raw"))
    assert info.rc == 0 and json.loads(info.out)["virtual-size"] == LEN


def test_an_image_format_on_a_server(tmp_path, root, web):
    base = str(root / "base.raw")
    ok(qimg("convert", "-f", "raw", "-O", "qcow2", base, str(root / "image.qcow2")))
    ok(img("compare", "-F", "raw", web.url("image.qcow2"), base))
    ok(img("check", web.url("image.qcow2")))


@pytest.mark.parametrize("fmt, options", [("qcow2", "cluster_size=64k"), ("qcow2", "cluster_size=4k"),
                                          ("qed", "cluster_size=64k")])
def test_every_byte_is_fetched_once(tmp_path, root, web, fmt, options):
    base = str(root / "base.raw")
    path = overlay(tmp_path, web.url("base.raw"), fmt, options)
    rng = random.Random(seed())
    reads = []
    for _ in range(60):
        off = rng.randrange(LEN)
        reads.append(f"read -q {off} {min(rng.randrange(1, 200 * KIB), LEN - off)}")
    ok(io(path, *reads, f"read -q 0 {LEN}", options=("-C",)))
    opens = 1
    assert web.sent() == LEN + opens
    ok(img("compare", "-F", "raw", path, base))
    assert web.sent() == LEN + opens + 1  # the backing file is opened, and nothing of it read


def test_https_with_a_certificate_of_ours_only(tmp_path, root):
    folder = tmp_path / "tls"
    folder.mkdir()
    base = str(root / "base.raw")
    with Nginx(str(folder), str(root), tls=True) as web:
        refused = img("info", web.url("base.raw"))
        assert refused.rc == 1 and "certificate" in refused.err and refused.err.count("\n") == 1
        spec = f"driver=raw,file.driver=https,file.filename={web.url('base.raw')},"
        ok(img("compare", "--image-opts", spec + f"file.ca-file={web.ca}", f"driver=raw,file.filename={base}"))
        ok(img("compare", "--image-opts", spec + "file.sslverify=off", f"driver=raw,file.filename={base}"))


def test_a_password_comes_from_a_file(tmp_path, root, web):
    secret = tmp_path / "secret"
    secret.write_text("guest:secret\n")
    url = web.url("private/base.raw")
    refused = img("info", url)
    assert refused.rc == 1 and "401" in refused.err
    spec = f"driver=raw,file.driver=http,file.filename={url},file.auth-file={secret}"
    ok(img("compare", "--image-opts", spec, f"driver=raw,file.filename={root / 'base.raw'}"))
    in_url = img("info", url.replace("http://", "http://guest:secret@"))
    assert in_url.rc == 1 and "auth-file" in in_url.err


@pytest.mark.parametrize("name, says", [("nothing.raw", "404"), ("circle.raw", "redirects"), ])
def test_what_is_not_there(web, name, says):
    done = img("info", web.url(name))
    assert done.rc == 1 and says in done.err and done.err.count("\n") == 1, str(done)


def test_proxies_of_the_environment_are_used():
    data = random.Random(9).randbytes(256 * KIB)
    paths = []

    def note(h, first, last):
        paths.append(h.path)
        return False

    with Liar(data, note) as proxy:
        env = {"http_proxy": proxy.url("")}
        r = io("http://images.invalid/base.raw", "read -v 4096 16", options=("-r", "-f", "raw"), env=env)
        assert r.rc == 0 and r.err == "", str(r)
        assert data[4096:4104].hex() in r.out.replace(" ", ""), str(r)
        assert paths and set(paths) == {"http://images.invalid/base.raw"}
        asked = proxy.requests
        r = io("http://images.invalid/base.raw", "read 0 512", options=("-r", "-f", "raw"),
               env={**env, "no_proxy": "images.invalid"})
        assert r.rc == 1 and "images.invalid" in r.err, str(r)
        assert proxy.requests == asked


def test_no_server():
    with socket.socket() as s:  # nobody else listens there, and we do not
        s.bind(("127.0.0.1", 0))
        # Who tried again would go on until the test is out of time.
        done = img("info", "--image-opts", f"driver=raw,file.driver=http,file.filename=http://127.0.0.1:{s.getsockname()[1]}/x,file.deadline=3600")
    assert done.rc == 1 and "onnect" in done.err, str(done)


@pytest.mark.parametrize("options, says", [
    ("file.timeout=0", "timeout"), ("file.deadline=100000", "deadline"), ("file.readahead=1k", "readahead"),
    ("file.ca-file=/nonexistent", "/nonexistent"), ("file.auth-file=/nonexistent", "auth-file"), ("file.colour=x", "colour"),
])
def test_bad_options(web, options, says):
    done = img("info", "--image-opts", f"driver=raw,file.driver=http,file.filename={web.url('base.raw')},{options}")
    if options.startswith("file.ca-file"):
        return  # plain http looks at no certificate
    assert done.rc == 1 and says in done.err, str(done)


def test_not_for_writing(web):
    done = io(web.url("base.raw"), "write 0 512", options=("-f", "raw"))
    assert done.rc == 1 and "only be read" in done.err


# ---- servers that lie ----

DATA = random.Random(9).randbytes(512 * KIB)


def shorter(h, first, last):
    """A part of what was asked for: allowed; the rest is asked for again."""
    last = min(last, first + 9999)
    h.answer(206, DATA[first:last + 1], ETag='"one"', Content_Range=f"bytes {first}-{last}/{len(DATA)}")
    return True


def breaks_off(h, first, last):
    """Half of it, and the connection is gone; the second time all of it."""
    h.server.count = getattr(h.server, "count", 0) + 1
    if h.server.count > 2:
        return False
    body = DATA[first:last + 1]
    h.answer(206, body[:len(body) // 2], ETag='"one"', Content_Length=str(len(body)),
             Content_Range=f"bytes {first}-{last}/{len(DATA)}")
    h.close_connection = True
    return True


def busy(h, first, last):
    h.server.count = getattr(h.server, "count", 0) + 1
    if h.server.count > 2:
        return False
    h.answer(503, b"later")
    return True


@pytest.mark.parametrize("how", [shorter, breaks_off, busy])
def test_trouble_that_passes(tmp_path, how):
    want = tmp_path / "want"
    want.write_bytes(DATA)
    with Liar(DATA, how) as web:
        ok(img("compare", "-f", "raw", "-F", "raw", web.url(), str(want)))


def ignores_ranges(h, first, last):
    h.answer(200, DATA, ETag='"one"')
    return True


def other_place(h, first, last):
    h.answer(206, DATA[first:last + 1], ETag='"one"', Content_Range=f"bytes {first + 512}-{last + 512}/{len(DATA)}")
    return True


def no_content_range(h, first, last):
    h.answer(206, DATA[first:last + 1], ETag='"one"')
    return True


def too_much(h, first, last):
    h.answer(206, DATA[first:] + b"more" * 1000, ETag='"one"', Content_Range=f"bytes {first}-{last}/{len(DATA)}")
    return True


def other_tag(h, first, last):
    h.answer(206, DATA[first:last + 1], ETag='"two"', Content_Range=f"bytes {first}-{last}/{len(DATA)}")
    return True


def other_length(h, first, last):
    h.answer(206, DATA[first:last + 1], ETag='"one"', Content_Range=f"bytes {first}-{last}/{len(DATA) + 1}")
    return True


def gone(h, first, last):
    h.answer(404, b"")
    return True


def always_busy(h, first, last):
    h.answer(500, b"x")
    return True


def silent(h, first, last):
    h.connection.settimeout(240)
    h.connection.recv(1)  # until the client hangs up
    h.close_connection = True
    return True


def rubbish(h, first, last):
    h.wfile.write(b"\x00\xff" * 5000)
    h.close_connection = True
    return True


# An answer that counts is waited for as long as it takes. Who hears nothing waits to the end of his patience, and opening, which is
# not tried again, has no more of it.
PATIENT, IMPATIENT = "file.timeout=240,file.deadline=2", "file.timeout=5,file.deadline=2"


@pytest.mark.parametrize("how, says, patience", [
    (ignores_ranges, "ignores ranges", PATIENT), (other_place, "Content-Range", PATIENT), (no_content_range, "Content-Range", PATIENT),
    (too_much, "", PATIENT), (other_tag, "has changed", PATIENT), (other_length, "has changed", PATIENT), (gone, "404", PATIENT),
    (always_busy, "500", PATIENT), (silent, "", IMPATIENT), (rubbish, "", PATIENT),
])
def test_lies_are_errors_and_never_bytes(how, says, patience):
    with Liar(DATA, how) as web:
        spec = f"driver=raw,file.driver=http,file.filename={web.url()},{patience},file.readahead=0"
        done = io(spec, "read -v 1000 100", options=("--image-opts", "-r"))
        assert done.rc == 1, str(done)
        assert "read failed" in done.out + done.err and says in done.out + done.err, str(done)
        assert DATA[1000:1004].hex(" ") not in done.out


def test_reads_go_on_from_what_is_local_when_the_server_goes(tmp_path):
    with Liar(DATA, lambda h, first, last: False) as web:
        path = os.path.join(tmp_path, "overlay.qcow2")
        ok(img("create", "-q", "-f", "qcow2", "-u", "-b", web.url(), "-F", "raw", path, str(len(DATA))))
        ok(io(path, f"read -q 0 {len(DATA)}", options=("-C",)))
        url = web.url()
    want = tmp_path / "want"
    want.write_bytes(DATA)
    gone_away = img("info", "--backing-chain", path)
    assert gone_away.rc == 1 and url in gone_away.err
    ok(qimg("rebase", "-u", "-b", "", "-f", "qcow2", path))
    ok(qimg("compare", "-f", "qcow2", "-F", "raw", path, str(want)))
