# SPDX-License-Identifier: MIT
"""test_completion - what is made of the option tables: help, completions, the page of the grammar; and the installed links"""

import json
import os
import pathlib
import re
import shutil

from tool import img, ok, qimg, refused, run, varve, varve_path

TREE = pathlib.Path(__file__).resolve().parents[2]
COMMANDS = ok(varve("completion", "markdown")).out
COMPLETIONS = {shell: ok(varve("completion", shell)).out for shell in ("bash", "zsh", "fish")}


def image_options():
    """(driver or "Every disk", key, value) of each."""
    found, driver = [], None
    for line in COMMANDS[COMMANDS.index("## Options of images"):].splitlines():
        if line.startswith("### "):
            driver = line[4:].removeprefix("driver=")
        row = re.match(r"\| `([\w.-]+)` \| (.*?) \| ", line)
        if row:
            found.append((driver, row[1], row[2].replace("\\", "")))
    return found


def commands():
    return re.findall(r"^## (\w+)$", COMMANDS, re.M)


def test_the_manual_says_what_every_option_means():
    """With the command, or among those that all have in common."""
    page = (TREE / "docs" / "man" / "varve-img.1.scd").read_text()
    common = page[page.index("# COMMON OPTIONS"):page.index("# SIGNALS")]
    sections = dict(s.split("\n", 1) for s in re.split(r"^## ", page, flags=re.M)[1:])
    missing, seen = [], 0
    for section in re.split(r"^## ", COMMANDS, flags=re.M)[1:]:
        name, rows = section.split("\n", 1)
        if name not in sections:
            assert name.startswith(("varve io", "Commands of", "Options of images")), name
            continue
        for letter, long in re.findall(r"^\| (?:`-(.)`)? ?\| (?:`--([a-z-]+)`)?", rows, flags=re.M):
            words = ([rf"\*-{re.escape(letter)}\*"] if letter else []) + ([rf"\*--{long}\*"] if long else [])
            seen += bool(words)
            if words and not any(re.search(w, sections[name] + common) for w in words):
                missing.append((name, letter, long))
    assert not missing and seen > 150, (seen, missing)


def test_the_manual_says_what_every_option_of_an_image_means():
    """Groups by the names of their parts; throttling's bursts by the rate whose they are."""
    page = "".join((TREE / "docs" / "man" / f"{p}.1.scd").read_text() for p in ("varve", "varve-io", "varve-serve"))
    keys = [k for _, k, _ in image_options()]
    words = {k: re.sub(r"^(overlap-check|throttling|[a-z-]+\.0)\.", "", k) for k in keys}
    words.update({k: re.sub("-max(-length)?$", "", w) for k, w in words.items() if k.startswith("throttling.")})
    missing = [k for k, w in words.items() if not re.search(rf"(?<![\w-]){re.escape(w)}(?![\w-])", page)]
    assert not missing and len(keys) > 90, (keys, missing)


def test_options_of_images_in_the_table_are_read_and_their_words_are_taken(tmp_path):
    """One by one: whatever is wrong with the value, nobody says that the option is not known; and no word of a list is wrong."""
    disks = {f: tmp_path / f for f in ("raw", "qcow2", "qed")}
    for f, path in disks.items():
        ok(img("create", "-q", "-f", f, path, "1M"))
    specs = {"Every disk": f"driver=qcow2,file.filename={disks['qcow2']},", "null-co": "driver=null-co,", "memory": "driver=memory,size=1M,",
             "file": f"driver=raw,file.driver=file,file.filename={disks['raw']},file.", "host_device": "driver=host_device,filename=/none,",
             "http": "driver=raw,file.driver=http,file.filename=http://127.0.0.1:9/,file.",
             "https": "driver=raw,file.driver=https,file.filename=https://127.0.0.1:9/,file.",
             **{f: f"driver={f},file.filename={path}," for f, path in disks.items()},
             **{d: f"driver=raw,file.driver={d},file.file.filename={disks['raw']},file." for d in ("blkdebug", "fault", "write-log", "lockstep")}}
    words = 0
    for driver, key, value in image_options():
        if value == "node" or driver in ("https", "host_device"):  # those of http, file
            continue
        r = img("info", "-U", "--image-opts", f"{specs[driver]}{key}=?")
        assert "not known here" not in r.err, str(r)
        for word in value.split("|") if "|" in value else ["off"] if value == "bool" else []:
            r = img("info", "-U", "--image-opts", f"{specs[driver]}{key}={word}")
            assert "none of" not in r.err and "is not" not in r.err and "must be" not in r.err and "unknown" not in r.err, str(r)
            words += 1
    assert words > 60


def test_every_option_that_is_read_when_a_disk_is_opened_is_in_a_table():
    tables = {k for _, k, _ in image_options()}
    known = {part for k in tables for part in (k, k.rsplit(".", 1)[-1])}
    for format in ("raw", "qcow2", "qed"):
        known |= set(re.findall(r"^  (\w+)=<", ok(img("create", "-f", format, "-o", "help", "none")).out, re.M))
    # "data-file" and "backing" are names of nodes; persistent reservations, and a list of file names, are refused by name.
    known |= {"data-file", "pr-manager", "file.driver", "file.filename", "filename.0"}
    read = {}
    for path in TREE.glob("src/**/*.c"):
        for key in re.findall(r'opts_get(?:_bool|_size|_u64)?\(\w+(?:->\w+)?, "([^"]+)"', path.read_text()):
            read[key] = path.name
    assert len(read) > 50 and not set(read) - known, {k: f for k, f in read.items() if k not in known}


def test_the_page_of_the_grammar_is_what_the_parser_reads():
    page = TREE / "docs" / "guide" / "grammar.md"
    text = page.read_text()
    if "\n### driver=http\n" not in COMMANDS:  # built without libcurl
        text = re.sub(r"\n### driver=https?\n[^#]*", "\n", text)
    assert text == COMMANDS, f"run: varve completion markdown > {page}"


def test_the_commands_of_qemu_img_are_there():
    theirs = set(re.findall(r"^  (\w+) ", ok(qimg("--help")).out.split("Command syntax:")[1].split("Command parameters")[0], re.M))
    assert theirs <= set(commands())


def test_help_and_parser_agree():
    for command in commands():
        text = ok(img(command, "--help")).out
        section = COMMANDS.split(f"\n## {command}\n")[1].split("\n## ")[0]
        for letter, name, what in re.findall(r"^\| (?:`-(.)`)? ?\| (?:`--([\w-]+)`)? \|[^|]*\| (.*) \|$", section, re.M):
            # Without a word for people, help does not show it.
            assert not what or (not letter or re.search(rf"^  -{letter}", text, re.M)) and (not name or f"--{name}" in text), (command, letter, name)
            if name:
                r = img(command, f"--{name}", "--no-such-option")
                assert f"--{name}'" not in r.err or "unknown" not in r.err, str(r)


def test_names_may_be_shortened_and_must_be_clear(tmp_path):
    ok(img("create", "-q", tmp_path / "d", "1M"))
    assert ok(img("info", "--out=json", "--form", "raw", tmp_path / "d")).json["format"] == "raw"
    refused(img("create", "--backing", tmp_path / "d", tmp_path / "e"), "format")
    refused(img("create", "--back", "x", tmp_path / "e"), "ambiguous", "--back")
    refused(img("info", "--output"), "--output", "value")
    refused(img("info", "--backing-chain=3", tmp_path / "d"), "--backing-chain", "no value")


def test_errors_and_progress_as_json(tmp_path):
    r = img("info", "--errors=json", tmp_path / "none")
    assert r.rc == 1 and r.out == ""

    assert json.loads(r.err)["program"] == "varve img" and "none" in json.loads(r.err)["error"]
    refused(img("info", "--errors=xml", tmp_path / "none"), "xml")
    refused(img("commit", "--progress=xml", "a"), "xml")


def test_objects_are_checked(tmp_path):
    disk, secret = tmp_path / "d", tmp_path / "secret"
    ok(img("create", "-q", disk, "1M"))
    secret.write_text("abc")
    for text in (f"secret,id=a,file={secret}", "secret,id=a,data=x,,y,format=raw", '{"qom-type": "secret", "id": "a", "data": "eA==", "format": "base64"}'):
        ok(img("info", "--object", text, disk))
    for words, text in ((["id"], "secret,data=x"), (["data=", "file="], "secret,id=a"), (["none"], f"secret,id=a,file={tmp_path / 'none'}"),
                        (["colour"], "secret,id=a,data=x,colour=red"), (["iothread"], "iothread,id=a"), (["format"], "secret,id=a,data=x,format=z")):
        refused(img("info", "--object", text, disk), *words)
    refused(img("info", "--object", "secret,id=a,data=x", "--object", "secret,id=a,data=y", disk), "already")


def test_installed_with_the_links(tmp_path):
    build = pathlib.Path(os.environ["VARVE_BUILD"]).resolve()
    env = {"DESTDIR": str(tmp_path)}
    assert run("meson", "install", "-C", build, "--no-rebuild", "--quiet", env=env).rc == 0
    bindir = next(tmp_path.rglob("bin/varve")).parent
    ok(run(TREE / "scripts" / "install-compat", build, env=env))
    ok(run(TREE / "scripts" / "install-compat", build, env=env))  # again
    libdir = next(tmp_path.rglob("libvarve.so.0")).parent
    for name in ("qemu-img", "qemu-io"):
        assert (bindir / name).is_symlink()
        assert ok(run(bindir / name, "--version", env={"LD_LIBRARY_PATH": str(libdir)})).out.startswith(f"{name} version ")
        for shell in ("bash", "fish"):
            links = [p for p in tmp_path.rglob(f"{name}.{shell}") if os.readlink(p) == f"varve.{shell}" and p.read_text() == COMPLETIONS[shell]]
            assert len(links) == 1, (name, shell)
    (bindir / "qemu-img").unlink()
    shutil.copy("/bin/true", bindir / "qemu-img")
    r = run(TREE / "scripts" / "install-compat", build, env=env)
    assert r.rc == 1 and "qemu-img" in r.err and "no link to varve" in r.err, str(r)
    assert not (bindir / "qemu-img").is_symlink()
    assert {p.name for p in tmp_path.rglob("*varve*") if p.is_file()} >= {"varve", "_varve", "varve.fish", "varve.bash"}
