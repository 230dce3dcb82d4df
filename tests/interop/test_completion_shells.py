# SPDX-License-Identifier: MIT
"""test_completion_shells - bash, zsh and fish complete the commands: each shell itself, told what is typed, asked what stands there then

A shell reads keys from a terminal; a key of ours writes its line to a file, so that no picture of the screen is looked at.
"""

import os
import pathlib
import pty
import random
import re
import select
import shutil
import socket
import subprocess

import pytest

from seeds import seed
from tool import img, ok, run, varve, varve_path

WAIT = 120  # seconds for what hangs
TAB, ASK, CLEAR, BACK = "\t", "\x14", "\x05\x15", "\x02"

BASH = r"""
PS1=; PS2=
bind 'set bell-style none'; bind 'set completion-query-items -1'; bind 'set page-completions off'
source "$SCRIPT"
ask() { printf '%s\n' "$READLINE_LINE" > "$ANSWERS"; }
bind -x '"\C-t": ask'
echo ready > "$ANSWERS"
"""
ZSH = r"""
PS1=; RPS1=; unsetopt beep
fpath=("${SCRIPT:h}" $fpath)
autoload -Uz compinit; compinit -u -D
LISTMAX=10000
ask() { print -r -- "$BUFFER" > "$ANSWERS"; }
zle -N ask; bindkey '^T' ask; bindkey '^I' complete-word; bindkey '^U' kill-whole-line; bindkey '^B' backward-char
unsetopt auto_menu list_ambiguous auto_remove_slash; setopt bash_auto_list
echo ready > "$ANSWERS"
"""


class Terminal:
    """A shell on a terminal of its own, in the folder, with varve found first."""

    def __init__(self, shell, folder):
        tools = pathlib.Path(varve_path()).parent
        self.fifo = folder / f".answers-{shell}"
        os.mkfifo(self.fifo)
        self.answers = os.open(self.fifo, os.O_RDWR | os.O_NONBLOCK)
        rc = folder / f".rc-{shell}"
        rc.write_text({"bash": BASH, "zsh": ZSH}[shell])
        script = {"bash": tools / "varve.bash", "zsh": tools / "_varve"}[shell]
        env = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "SCRIPT": str(script), "ANSWERS": str(self.fifo), "TERM": "dumb",
               "LC_ALL": "C.UTF-8", "HOME": str(folder), "ZDOTDIR": str(folder), "INPUTRC": "/dev/null", "HISTFILE": "/dev/null"}
        argv = {"bash": ["bash", "--noprofile", "--rcfile", rc, "-i"], "zsh": ["zsh", "-f", "-i"]}[shell]
        self.master, slave = pty.openpty()
        self.process = subprocess.Popen(argv, stdin=slave, stdout=slave, stderr=slave, cwd=folder, env=env, start_new_session=True)
        os.close(slave)
        if shell == "zsh":
            os.write(self.master, f"source {rc}\n".encode())
        assert self.answer() == "ready"

    def answer(self):
        """What our key wrote; the screen is thrown away meanwhile."""
        said = b""
        while not said.endswith(b"\n"):
            ready, _, _ = select.select([self.answers, self.master], [], [], WAIT)
            assert ready, "the shell does not answer"
            if self.master in ready:
                os.read(self.master, 65536)
            if self.answers in ready:
                said += os.read(self.answers, 65536)
        return said.decode()[:-1]

    def line_after(self, keys):
        os.write(self.master, (CLEAR + keys + ASK).encode())
        return self.answer()

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self.master)
        os.close(self.answers)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("shells")
    disk = place / "disk.qcow2"
    ok(img("create", "-q", "-f", "qcow2", disk, "1M"))
    for name in ("first one", "it's"):
        ok(img("snapshot", "-c", name, disk))
    ok(img("bitmap", "--add", disk, "nightly"))
    shutil.copy(disk, place / "other disk.qcow2")
    (place / "not an image").write_text("x")
    os.mkfifo(place / "pipe")
    return place


def terminal(shell, folder):
    if not shutil.which(shell):
        pytest.skip(f"{shell} is not installed")
    t = Terminal(shell, folder)
    yield t
    t.close()


@pytest.fixture(scope="module")
def bash(folder):
    yield from terminal("bash", folder)


@pytest.fixture(scope="module")
def zsh(folder):
    yield from terminal("zsh", folder)


# What is typed, and what the line is after TAB.
SAME = [
    ("varve vm", "varve vmstate "),
    ("varve img resi", "varve img resize "),
    ("qemu-img cre", "qemu-img create "),
    ("varve img info --outp", "varve img info --output "),
    ("varve img info --output=j", "varve img info --output=json "),
    ("varve img info --output h", "varve img info --output human "),
    ("varve img info --errors=t", "varve img info --errors=text "),
    ("varve img convert -Oqc", "varve img convert -Oqcow2 "),
    ("varve img convert -t writeb", "varve img convert -t writeback "),
    ("varve img check -r l", "varve img check -r leaks "),
    ("varve img bench -i na", "varve img bench -i native "),
    ("varve img resize --preallocation=fa", "varve img resize --preallocation=falloc "),
    ("varve img convert --progress=j", "varve img convert --progress=json "),
    ("varve img create -f qcow2 -o clu", "varve img create -f qcow2 -o cluster_size="),
    ("varve img create -f qcow2 -o cluster_size=64k,prea", "varve img create -f qcow2 -o cluster_size=64k,preallocation="),
    ("varve img create -f qcow2 -o preallocation=met", "varve img create -f qcow2 -o preallocation=metadata"),
    ("varve img convert -O qcow2 -o compression_type=zs", "varve img convert -O qcow2 -o compression_type=zstd"),
    ("qemu-img create -f qcow2 -o extended_l2=on,lazy", "qemu-img create -f qcow2 -o extended_l2=on,lazy_refcounts="),
    ("varve img amend -f qcow2 -o clu", "varve img amend -f qcow2 -o clu"),
    ("varve img info --image-opts driver=qco", "varve img info --image-opts driver=qcow2"),
    ("varve img info --image-opts driver=qcow2,discard=ig", "varve img info --image-opts driver=qcow2,discard=ignore"),
    ("varve img info --image-opts driver=qcow2,detect-zeroes=un", "varve img info --image-opts driver=qcow2,detect-zeroes=unmap"),
    ("varve img info --image-opts driver=qcow2,file.filename=disk", "varve img info --image-opts driver=qcow2,file.filename=disk.qcow2"),
    ("qemu-io --image-opts driver=qcow2,file.driver=host", "qemu-io --image-opts driver=qcow2,file.driver=host_device"),
    ("varve img info --object secret,id=a,form", "varve img info --object secret,id=a,format="),
    ("varve img info --object secret,id=a,format=b", "varve img info --object secret,id=a,format=base64"),
    ("varve daemon --object ioth", "varve daemon --object iothread"),
    ("qemu-storage-daemon --export vhost", "qemu-storage-daemon --export vhost-user-blk"),
    ("varve daemon --blockdev driver=file,node-name=below --blockdev driver=qcow2,file=b", "varve daemon --blockdev driver=file,node-name=below --blockdev driver=qcow2,file=below"),
    ("varve daemon --blockdev driver=file,node-name=n --export vhost-user-blk,node-name=", "varve daemon --blockdev driver=file,node-name=n --export vhost-user-blk,node-name=n"),
    ("varve serve disk.qcow2 --vhost-user s --and disk.qcow2 --num", "varve serve disk.qcow2 --vhost-user s --and disk.qcow2 --num-queues "),
    ("varve io -d ig", "varve io -d ignore "),
    ("varve crashtest --leaks=a", "varve crashtest --leaks=allow "),
    ("varve crashtest -o cluster_size=512,exte", "varve crashtest -o cluster_size=512,exten"),
    ("varve crashtest -o cluster_size=512,extende", "varve crashtest -o cluster_size=512,extended_l2="),
    ("varve vmstate lo", "varve vmstate load "),
    ("varve vmstate load -t uns", "varve vmstate load -t unsafe "),
    ("varve vmstate load disk.qcow2 fi", "varve vmstate load disk.qcow2 first\\ one "),
    ("varve vmstate save disk.qcow2 fi", "varve vmstate save disk.qcow2 fi"),
    ("varve img bitmap --remove disk.qcow2 ni", "varve img bitmap --remove disk.qcow2 nightly "),
    ("varve img bitmap --remove 'other disk.qcow2' ni", "varve img bitmap --remove 'other disk.qcow2' nightly "),
    ("varve img bitmap --remove other\\ disk.qcow2 ni", "varve img bitmap --remove other\\ disk.qcow2 nightly "),
    ("varve img snapshot disk.qcow2 -d fi", "varve img snapshot disk.qcow2 -d first\\ one "),
    ("varve img snapshot --image-opts driver=qcow2,file.filename=disk.qcow2 -d fi",
     "varve img snapshot --image-opts driver=qcow2,file.filename=disk.qcow2 -d first\\ one "),
    ("varve img snapshot disk.qcow2 -d it", "varve img snapshot disk.qcow2 -d it\\'s "),
    ("varve img snapshot -d fi disk.qcow2" + BACK * 11, "varve img snapshot -d first\\ one disk.qcow2"),
    ("varve img info -f q disk.qcow2" + BACK * 11, "varve img info -f q disk.qcow2"),
    ("varve img snapshot pipe -d fi", "varve img snapshot pipe -d fi"),
    ("varve img snapshot 'not an image' -d fi", "varve img snapshot 'not an image' -d fi"),
    ("varve img snapshot none -d fi", "varve img snapshot none -d fi"),
    ("varve img info oth", "varve img info other\\ disk.qcow2 "),
    ("varve img create disk.qcow2 d", "varve img create disk.qcow2 d"),
    ("varve completion mar", "varve completion markdown "),
    ("varve img nonsense --out", "varve img nonsense --out"),
]
BASH_ONLY = [
    ('varve img info --image-opts "driver=qco', 'varve img info --image-opts "driver=qcow2"'),
    ("varve img snapshot disk.qcow2 -d 'fi", "varve img snapshot disk.qcow2 -d 'first one' "),
    ('varve img snapshot disk.qcow2 -d "it', 'varve img snapshot disk.qcow2 -d "it\'s" '),
]


@pytest.mark.parametrize("typed,line", SAME + BASH_ONLY)
def test_bash(bash, typed, line):
    assert bash.line_after(typed + TAB) == line


@pytest.mark.parametrize("typed,line", SAME)
def test_zsh(zsh, typed, line):
    assert zsh.line_after(typed + TAB).replace("  ", " ") == line  # the blank behind a word may come on top of one


def test_fish(folder):
    """Asked without a terminal: what it offers, of which it inserts what the others do."""
    if not shutil.which("fish"):
        pytest.skip("fish is not installed")
    script = pathlib.Path(varve_path()).parent / "varve.fish"
    lines = [(t, l) for t, l in SAME if BACK not in t and l != t and "oth" not in t and not l.endswith("exten")]
    asked = "".join(f"complete -C {quoted(t)}\necho =\n" for t, _ in lines)
    out = ok(run("fish", "--no-config", "-c", f"source {script}\n{asked}", cwd=folder,
                 env={"PATH": f"{script.parent}:{os.environ['PATH']}", "HOME": str(folder), "XDG_CONFIG_HOME": str(folder)})).out
    answers = out.split("\n=\n") if not out.startswith("=") else ["", *out[2:].split("\n=\n")]
    assert len(answers) == len(lines) + 1, out
    for (typed, line), answer in zip(lines, answers):
        word = line.removeprefix(typed[:typed.rindex(" ") + 1]).rstrip().replace("\\", "")
        offered = [a.split("\t")[0] for a in answer.splitlines()]
        assert word in offered, (typed, line, offered)


def quoted(text):
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def test_the_words_that_are_offered_are_understood():
    """All options of all commands, as many as the parser's own page lists."""
    commands = re.findall(r"^## (\w+)$", ok(varve("completion", "markdown")).out, re.M)
    for command in commands:
        offered = [l[1:].split("\t")[0] for l in ok(varve("completion", "words", "4", "varve", "img", command, "--")).out.splitlines()]
        assert {"--help", "--errors"} < set(offered) and all(o.startswith("--") for o in offered), offered
        for option in offered:
            r = varve("img", command, option, "--no-such-option")
            assert f"'{option}'" not in r.err or "unknown" not in r.err, str(r)


IMAGES_OF_SERVERS = ["http://PLACE", "-f qcow2 http://PLACE", *("--image-opts " + o for o in (
    "driver=qcow2,file.filename=http://PLACE", "driver=qcow2,file.driver=http,file.filename=http://PLACE",
    "file.driver=https,driver=qcow2,file.filename=https://PLACE"))]


@pytest.mark.parametrize("typed", ["varve img snapshot IMAGE -d fi", "varve img bitmap --remove IMAGE ni", "varve vmstate load IMAGE fi"])
@pytest.mark.parametrize("image", IMAGES_OF_SERVERS)
def test_no_web_server_is_asked(typed, image):
    """A key that is pressed sends nothing to anybody: names of what is in an image come out of local files."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        place = f"127.0.0.1:{listener.getsockname()[1]}/disk.qcow2"
        ok(varve("completion", "line", typed.replace("IMAGE", image.replace("PLACE", place)), "", " \t\n\"'><=;|&(:"))
        with pytest.raises(BlockingIOError):  # who connects finds a place, though nobody answers
            listener.accept()


def test_no_line_is_too_strange():
    """Whatever stands there: an answer, or none, but neither a crash nor a word on stderr."""
    draw = random.Random(seed())
    pieces = ["varve", "qemu-img", "qemu-io", "qemu-storage-daemon", " ", " ", " ", " ", "img", "io", "daemon", "serve", "--and", "create", "convert",
              "snapshot", "bitmap", "resize", "dd", "-o", "-O", "-f", "-d", "--", "-", "--image-opts", "--blockdev", "--export", "--object", "--output",
              "=", ",", ",,", ".", "file", "driver", "backing", "qcow2", "'", '"', "\\", "{", "[", "\t", "$", "~/", "/", "\xe4", "if=", "a" * 300, "file." * 60]
    for _ in range(150):
        line = "varve " * draw.randrange(2) + "".join(draw.choice(pieces) for _ in range(draw.randrange(1, 14)))
        cut = draw.randrange(len(line) + 1)
        r = varve("completion", "line", line[:cut], line[cut:], " \t\n\"'><=;|&(:")
        assert r.rc == 0 and not r.err, (line, cut, str(r))
