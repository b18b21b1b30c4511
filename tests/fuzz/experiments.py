"""Grids of four experiments, of one of which a file is damaged: see `campaign`.

The other three must come out exactly as they were written; of the damaged one each number shown must be one that its
history can hold, and where something of it is lost, its row says in which file.
"""

import contextlib
import io
import json
import math
import os
import random
import re
import socket
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from audiotok.cli import main as command_line
from audiotok.errors import AudiotokError
from audiotok.launchers.table import load_history
from audiotok.report import write_report
from audiotok.results import format_table, load_grid

GRID = "compression.grid"
SIGS = ("00000001", "00000002", "00000003", "00000004")
FILES = ("history.json", "status.json", "job.json", "task.json", "frozen.json", ".argv.json")
SECRET = "zq-not-of-this-experiment"
TEXTS = [
    "</script><script>hacked=1</script><img src=x onerror=hacked=2>'\"&amp;", "%s%n%d{0}{a.b}{{7*7}}",
    "\x1b]0;x\x07\x1b[2J",
    "\udce9\ud83d", "=cmd|'/c calc'!A1", "a\u202eb\u0000c\u2028d", "../../../etc/passwd", "/dev/zero", "${oc.env:HOME}",
    "x" * 100_000, "!!python/object/apply:os.system ['touch EXECUTED']", "&a [*a, *a]", "", "\n" * 50, "NaN",
]  # fmt: skip
BOMB = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12))
YAMLS = (BOMB, "[" * 5000, "a: !!python/object/apply:os.system [touch EXECUTED]", "seed: " + "1" * 400)
NUMBERS = [10**400, -(10**400), 2**70, 1e308, -1e308, 5e-324, math.nan, math.inf, -math.inf, -1, 0, 10**18, True]


def history_of(place: int) -> list[dict[str, dict[str, float]]]:
    """Three epochs of the experiment at a place."""
    losses = [{"loss": place + epoch / 8, "duration": 2.0} for epoch in range(3)]
    return [{"train": loss, "valid": {"msspec": 3.0 - epoch / 4 + place}} for epoch, loss in enumerate(losses)]


def _write(root: Path, place: int) -> Path:
    folder = root / "xps" / SIGS[place]
    (folder / "samples" / "epoch_0003").mkdir(parents=True)
    contents: dict[str, Any] = {
        ".argv.json": [f"seed={place}", "optim.lr=1e-3"],
        "history.json": history_of(place),
        "status.json": {"state": "COMPLETED", "reason": "", "host": f"n{place}", "job_id": "7", "launcher": "slurm"}
        | {"started": 1e9, "updated": 1e9 + 60, "ended": 1e9 + 60, "epoch": 3, "epochs": 3, "gpus": 1},
        "job.json": {"launcher": "slurm", "job_id": "7", "submitted": 1e9 - 5, "log": "7_0_log.out"},
        "task.json": {"job_id": "7", "state": "COMPLETED", "started": 1e9, "updated": 1e9 + 60, "reason": ""},
        "frozen.json": {"cfg": {"seed": place, "optim": {"lr": 1e-3}}, "choices": {"solver": "compression"}},
    }
    for name, content in contents.items():
        (folder / name).write_text(json.dumps(content))
    (root / "grids" / GRID).mkdir(parents=True, exist_ok=True)
    (root / "grids" / GRID / SIGS[place]).symlink_to(f"../../xps/{SIGS[place]}")
    return folder


def _value(dice: random.Random) -> Any:
    """A value that does not belong there."""
    deep: Any = 1
    for _ in range(dice.choice((3, 90, 400))):
        deep = [deep] if dice.random() < 0.5 else {"a": deep}
    many = {f"m{n}": n / 2 for n in range(dice.choice((10, 2000)))}
    plain: tuple[Any, ...] = (None, [], {}, [[]], [None], many, deep)
    return dice.choice((dice.choice(TEXTS), dice.choice(NUMBERS), dice.choice(plain)))


def _mutate(dice: random.Random, content: Any) -> Any:
    """The content with one place in it changed."""
    if isinstance(content, dict) and content and dice.random() < 0.85:
        key = dice.choice(list(content))
        value, others = content[key], {one: content[one] for one in content if one != key}
        kind = dice.choice(("gone", "renamed", *["changed"] * 3))
        name = dice.choice(TEXTS) if kind == "renamed" else key
        return others if kind == "gone" else {**others, name: _mutate(dice, value) if kind == "changed" else value}
    if isinstance(content, list) and content and dice.random() < 0.85:
        place = dice.randrange(len(content))
        added = dice.random() < 0.2
        value = _value(dice) if added else _mutate(dice, content[place])
        return [*content[:place], value, *content[place + (not added) :]]
    return _value(dice)


def _damage_text(dice: random.Random, path: Path) -> str:
    raw = path.read_bytes()
    place = dice.randrange(len(raw))
    kinds = {"cut": raw[:place], "byte": raw[:place] + bytes([dice.randrange(256)]) + raw[place + 1 :]}
    kinds |= {"twice": raw + raw, "utf-16": raw.decode().encode("utf-16"), "bom": b"\xef\xbb\xbf" + raw}
    kinds |= {"zeros": bytes(len(raw)), "random": dice.randbytes(dice.randrange(200)), "empty": b""}
    kinds["deep"] = dice.choice((b"[", b'{"a":')) * dice.choice((200, 5000, 200_000))
    kinds["digits"] = re.sub(rb"\d+", lambda found: found[0] * dice.choice((1, 5, 400, 5000)), raw)
    kind, data = dice.choice(list(kinds.items()))
    path.write_bytes(data)
    return kind


def _replace(dice: random.Random, path: Path, outside: Path) -> str:
    kind = dice.choice(("pipe", "folder", "gone", "loop", "device", "socket", "nowhere", "outside", "huge"))
    path.unlink()
    links = {"loop": path.name, "device": "/dev/zero", "nowhere": "none", "outside": str(outside)}
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(str(path))
    elif kind == "huge":
        path.touch()
        os.truncate(path, 2**40)
    elif kind in links:
        path.symlink_to(links[kind])
    return kind


def _leftovers(dice: random.Random, folder: Path, outside: Path) -> str:
    """What else may lie in an experiment's folder."""
    (folder / "submitit").mkdir()
    log = folder / "submitit" / "9_0_log.out"
    sample = folder / "samples" / "epoch_0003" / f"{dice.choice(TEXTS[:3])[:60].replace('/', '_')}.wav"
    kind = dice.choice(("log", "log loop", "log outside", "sample", "sample pipe", "sample loop", "cfg_yaml"))
    if kind == "cfg_yaml":
        (folder / "frozen.json").write_text(json.dumps({"cfg_yaml": dice.choice(YAMLS), "choices": {}}))
        (folder / ".argv.json").write_text('["optim.lr=1e-3"]')
    elif kind == "log":
        log.write_text(dice.choice(TEXTS).encode(errors="replace").decode())
    elif "pipe" in kind:
        os.mkfifo(sample)
    else:
        path = log if "log" in kind else sample
        path.symlink_to(path.name if "loop" in kind else outside)
    return kind


def make(dice: random.Random, folder: Path) -> str:
    """A grid with one damaged experiment; its place is in `damaged`."""
    root, victim = folder / "outputs", dice.randrange(len(SIGS))
    folders = [_write(root, place) for place in range(len(SIGS))]
    outside = folder / "outside.wav"
    outside.write_text(SECRET)
    path = folders[victim] / dice.choice(FILES)
    way = dice.random()
    if way < 0.5:
        changed = json.loads(path.read_text())
        for _ in range(dice.choice((1, 1, 3))):
            changed = _mutate(dice, changed)
        with contextlib.suppress(ValueError):  # an int of too many digits for json
            path.write_text(json.dumps(changed, ensure_ascii=True))
        described = f"{path.name}: other values"
    elif way < 0.7:
        described = f"{path.name}: {_damage_text(dice, path)}"
    elif way < 0.85:
        described = f"{path.name}: {_replace(dice, path, outside)}"
    else:
        path, described = folders[victim] / "nothing", _leftovers(dice, folders[victim], outside)
    (folder / "damaged").write_text(f"{victim} {path.name} {int(dice.random() < 0.15)}")
    return f"experiment {victim}, {described}"


class Refused(AudiotokError):
    """The damaged experiment is named, with the reason."""


class _Elements(HTMLParser):
    """Notices elements and attributes that none of our pages has."""

    hostile = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Called for each opening tag."""
        self.hostile |= any(name.startswith("on") or (name, value) == ("src", "x") for name, value in attrs)


def check(folder: Path) -> None:
    """Tables, history, command and report of the grid."""
    place, name, wants_report = (folder / "damaged").read_text().split()
    victim, root = int(place), folder / "outputs"
    experiments = load_grid(GRID, root)
    rows = experiments.runs.set_index("sig").to_dict("index")
    assert set(rows) == set(SIGS), "an experiment is missing"
    history = experiments.history.astype({"sig": str})
    for index, sig in enumerate(SIGS):
        if index != victim:
            row, own = rows[sig], history[history["sig"] == sig]
            expected = {"seed": index, "optim.lr": 1e-3, "state": "COMPLETED", "epochs": 3, "host": f"n{index}"}
            expected |= {"train.loss": index + 2 / 8, "valid.msspec": 2.5 + index, "best_epoch": 3, "problems": ""}
            assert {key: row[key] for key in expected} == expected, f"{sig}: {row}"
            losses = own[own["stage"] == "train"]["loss"].tolist()
            assert losses == [epoch["train"]["loss"] for epoch in history_of(index)], f"{sig}: {losses}"
    _check_damaged(rows[SIGS[victim]], root / "xps" / SIGS[victim] / name)
    for fmt in ("table", "markdown", "latex"):
        assert "\x1b" not in format_table(experiments.runs, fmt), f"an escape sequence in {fmt}"
    with contextlib.redirect_stdout(io.StringIO()) as stdout, contextlib.redirect_stderr(io.StringIO()):
        assert command_line(["results", GRID, "--root", str(root), "--format", "csv"]) == 0
    assert all(sig in stdout.getvalue() for sig in SIGS)
    with contextlib.suppress(FileNotFoundError, AudiotokError):
        load_history(root / "xps" / SIGS[victim] / "history.json")  # of `dora grid` and `dora info -m`
    if wants_report == "1":
        write_report(experiments, folder / "report")
        for page in (folder / "report").rglob("*.html"):
            elements, text = _Elements(), page.read_text()
            elements.feed(text)
            assert not elements.hostile, f"{page.name} has elements of an experiment"
            assert SECRET not in text, f"{page.name} shows a file of elsewhere"
    assert not Path("EXECUTED").exists() and not list(folder.rglob("EXECUTED"))
    if rows[SIGS[victim]]["problems"]:
        raise Refused(rows[SIGS[victim]]["problems"])


def _check_damaged(row: Mapping[Any, Any], path: Path) -> None:
    """What is whole is shown as it is, and what is not is named."""
    named = path.name in row["problems"]
    if not os.path.lexists(path) or (path.is_symlink() and not path.exists() and str(path.readlink()) == "none"):
        assert named == (path.name == ".argv.json"), f"missing: {row['problems']}"
        return
    content = None
    with contextlib.suppress(OSError, ValueError, RecursionError):
        if path.is_file() and path.stat().st_size < 2**26:
            content = json.loads(path.read_bytes(), parse_int=_int)
    if path.name == "history.json":
        whole = isinstance(content, list) and all(map(_is_epoch, content))
    elif path.name == ".argv.json":
        whole = isinstance(content, list) and all(isinstance(one, str) for one in content)
    else:  # a frozen.json is read only for what is not overridden
        whole = (isinstance(content, dict) and _depth(content) <= 100) or path.name == "frozen.json"
    assert named == (not whole), f"whole: {whole}, row: {row}"
    if path.name == "history.json" and whole and content:
        last = {f"{stage}.{name}": value for each in content for stage in each for name, value in each[stage].items()}
        found = {name: row[name] for name in last if name in row and name.encode(errors="replace").decode() == name}
        assert row["epochs"] == len(content) and len(found) >= len(last) - 3
        numbers = {name: math.nan if last[name] is None else float(last[name]) for name in found}
        wrong = [name for name in found if repr(float(found[name])) != repr(numbers[name])]
        assert not wrong, f"{wrong} of {row}"


def _is_epoch(epoch: Any) -> bool:
    return isinstance(epoch, dict) and all(
        isinstance(metrics, dict) and all(value is None or isinstance(value, int | float) for value in metrics.values())
        for metrics in epoch.values()
    )


def _int(text: str) -> int | tuple[str]:
    return int(text) if len(text) <= 300 else (text,)  # what no number, text or object can be taken for


def _depth(content: Any) -> int:
    inner = content.values() if isinstance(content, dict) else content if isinstance(content, list) else None
    return 0 if inner is None else 1 + max(map(_depth, inner), default=0)
