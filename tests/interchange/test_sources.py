"""Every place that takes a model takes every kind of it: folders of ours and of others, names of the hub."""

import hashlib
import http.server
import json
import math
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

from audiotok.checkpoint import own_models
from audiotok.cli import main
from audiotok.errors import CheckpointError
from audiotok.interchange import folder as own
from audiotok.interchange import hub as hub_of_ours
from audiotok.interchange import huggingface
from audiotok.models import CompressionModel
from audiotok.models.pretrained import read_pretrained
from audiotok.solvers.lm_data import load_codec


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """The model of the package as a folder of Hugging Face."""
    demo = read_pretrained("demo")
    huggingface.write_folder(demo.cfg, demo.weights, tmp_path / "theirs")
    return tmp_path / "theirs"


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    """The same as a folder of ours."""
    demo = read_pretrained("demo")
    folder = tmp_path / "ours"
    folder.mkdir()
    save_file({name: value.float().clone() for name, value in demo.weights.items()}, folder / "model.safetensors")
    about = {"format": "audiotok", "version": 1, "audiotok": "0", "config": OmegaConf.to_container(demo.cfg)}
    (folder / "audiotok.json").write_text(json.dumps(about))
    return folder


def check_demo(model: CompressionModel) -> None:
    expected, found = CompressionModel.get_pretrained("demo").state_dict(), model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


def test_folders_by_every_name(theirs: Path, ours: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in (theirs, ours):
        for name in (folder, str(folder), f"//pretrained/{folder}", folder / "model.safetensors", folder.name):
            check_demo(CompressionModel.get_pretrained(name))
        check_demo(load_codec(f"//pretrained/{folder}", tmp_path, torch.device("cpu")))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "onnx"}, "is of format 'onnx'"),
        ({"version": 2}, "is of version 2 of the format"),
        ({"config": None}, "lacks config"),
        ({"config": {"compression_model": "dac"}}, "describes no model of this version"),
    ],
)
def test_folders_of_ours_that_cannot_be_read(ours: Path, change: dict[str, Any], message: str) -> None:
    about = json.loads((ours / "audiotok.json").read_text())
    (ours / "audiotok.json").write_text(json.dumps({**about, **change}))
    with pytest.raises(CheckpointError, match=message):
        CompressionModel.get_pretrained(ours)


def test_a_folder_reads_no_environment(ours: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FILTERS", "12")
    about = json.loads((ours / "audiotok.json").read_text())
    about["config"]["seanet"]["n_filters"] = "${oc.decode:${oc.env:FILTERS}}"
    (ours / "audiotok.json").write_text(json.dumps(about))
    with pytest.raises(CheckpointError, match=r"n_filters='\$\{oc\."):
        CompressionModel.get_pretrained(ours)


def test_a_folder_with_nothing_readable(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("none")
    with pytest.raises(CheckpointError, match=r"no checkpoint at \S+checkpoint\.th; give"):
        CompressionModel.get_pretrained(tmp_path)


# --- The hub: the package huggingface_hub, with a hub on the loopback ---


class Hub(http.server.BaseHTTPRequestHandler):
    """Gives the files below `folder` as the hub does; `requests` are repository and file of those it got."""

    folder = Path()
    requests: ClassVar[list[tuple[str, str]]] = []

    def do_HEAD(self) -> None:
        """What the hub says of a file."""
        self.answer()

    def do_GET(self) -> None:
        """Give a file."""
        content = self.answer()
        self.wfile.write(content)

    def answer(self) -> bytes:
        if self.path.count("/") != 5:  # about another thing than a file of a model
            self.send_error(404)
            return b""
        _, owner, repo, _, _, file = self.path.split("/")
        self.requests.append((f"{owner}/{repo}", file))
        path = self.folder / owner / repo / file
        found, code, error = path.is_file(), 404, "EntryNotFound" if path.parent.is_dir() else "RepoNotFound"
        content = path.read_bytes() if found else b""
        if owner == "down":
            found, code, error = False, 503, ""
        self.send_response(200 if found else code)
        names = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": "0" * 40} if found else {}
        for name, value in {**names, "X-Error-Code": error, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        return content

    def log_message(self, *args: object) -> None:
        """Be silent."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[tuple[str, str]]]:
    """A hub whose models are those of the folder `hub`; what is requested of it."""
    constants = pytest.importorskip("huggingface_hub.constants")
    folder = tmp_path / "hub"
    folder.mkdir()
    monkeypatch.setattr(Hub, "folder", folder)
    monkeypatch.setattr(Hub, "requests", [])
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "kept"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.chdir(tmp_path)
    yield Hub.requests
    server.shutdown()
    server.server_close()


def test_a_name_of_the_hub_is_fetched(
    hub: list[tuple[str, str]], theirs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    (tmp_path / "hub/owner").mkdir(parents=True)
    theirs.rename(tmp_path / "hub/owner/codec")
    for name in ("owner/codec", "//pretrained/owner/codec"):
        check_demo(CompressionModel.get_pretrained(name))
    assert set(hub) == {("owner/codec", "config.json"), ("owner/codec", "model.safetensors")}
    assert {record.name.partition(".")[0] for record in caplog.records} == {"audiotok"}, "no line a request"
    hub.clear()
    (tmp_path / "hub/owner").rename(tmp_path / "hub/down")
    (tmp_path / "kept/models--owner--codec").rename(tmp_path / "kept/models--down--codec")
    check_demo(CompressionModel.get_pretrained("down/codec"))
    assert hub == [("down/codec", "config.json")], "what was fetched before is used where the hub does not answer"


def test_the_codec_of_a_musicgen_is_fetched(hub: list[tuple[str, str]], tmp_path: Path) -> None:
    folder = tmp_path / "hub/owner/musicgen"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "musicgen"}')
    (folder / "compression_state_dict.bin").write_bytes(own_models()["demo"].read_bytes())
    check_demo(CompressionModel.get_pretrained("owner/musicgen"))
    assert set(hub) == {("owner/musicgen", "config.json"), ("owner/musicgen", "compression_state_dict.bin")}
    (folder / "config.json").unlink()
    check_demo(CompressionModel.get_pretrained("owner/musicgen"))


def test_a_folder_here_wins_and_nothing_else_is_fetched(
    hub: list[tuple[str, str]], theirs: Path, tmp_path: Path
) -> None:
    (tmp_path / "owner").mkdir()
    theirs.rename(tmp_path / "owner/codec")
    check_demo(CompressionModel.get_pretrained("owner/codec"))
    for name in ("owner/other", Path("other/codec"), "outputs/model.th", "./a/b", "a/b/c", "demo2"):
        with pytest.raises(CheckpointError, match="no checkpoint at"):
            CompressionModel.get_pretrained(name)
    torch.save({"pretrained": "other/codec"}, tmp_path / "pointer.bin")
    with pytest.raises(CheckpointError, match="points to other/codec and holds no weights"):
        CompressionModel.get_pretrained("pointer.bin")
    assert not hub


def test_what_cannot_be_fetched_is_one_line(
    hub: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "hub/owner/none").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="no codec owner/none on the hub: neither"):
        CompressionModel.get_pretrained("owner/none")
    with pytest.raises(CheckpointError, match="the hub has no model of this name that it gives without a login"):
        CompressionModel.get_pretrained("owner/secret")
    hub.clear()
    with pytest.raises(CheckpointError, match=r"no file or folder down/codec here, .* cannot be reached \(.*503"):
        CompressionModel.get_pretrained("down/codec")
    assert len(hub) == 1, "no retries, which take half a minute"
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError, match=r"no file or folder owner/codec here, .* pip install huggingface_hub"):
        CompressionModel.get_pretrained("owner/codec")


def test_a_hub_that_does_not_answer_is_not_waited_for(
    hub: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where packets to each of its addresses are lost, which no timeout of a connection bounds."""
    released = threading.Event()
    monkeypatch.delenv("HF_HUB_ETAG_TIMEOUT", raising=False)
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", lambda *args, **options: released.wait(60))
    monkeypatch.setattr(hub_of_ours, "_PATIENCE_S", 0.2)
    with pytest.raises(
        CheckpointError, match=r"cannot be reached \(no answer within 0.2 s; HF_HUB_ETAG_TIMEOUT=30 .*; give"
    ):
        CompressionModel.get_pretrained("owner/codec")
    monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_ETAG_TIMEOUT", 1)
    with pytest.raises(CheckpointError, match=r"no answer within 1 s"):
        CompressionModel.get_pretrained("owner/codec")
    assert not released.is_set() and not hub, "without a request of a download"
    released.set()


def test_a_pointer_is_followed_once(hub: list[tuple[str, str]], theirs: Path, tmp_path: Path) -> None:
    names = {"one/self": "one/self", "one/there": "one/back", "one/back": "one/there", "one/two": "one/good"}
    for folder, target in {**names, "one/good": "owner/codec"}.items():
        (tmp_path / folder).mkdir(parents=True)
        torch.save({"pretrained": target}, tmp_path / folder / "compression_state_dict.bin")
    (tmp_path / "owner").mkdir()
    theirs.rename(tmp_path / "owner/codec")
    check_demo(CompressionModel.get_pretrained("one/good"))
    for folder in names:
        with pytest.raises(CheckpointError, match="which only points to another; give the path of a model"):
            CompressionModel.get_pretrained(folder)


@pytest.mark.parametrize("kind", ["eight bits", "beyond float32", "no names"])
def test_weights_that_are_no_weights_here(theirs: Path, kind: str) -> None:
    weights: dict[Any, torch.Tensor] = {**load_file(theirs / "model.safetensors")}
    name = "quantizer.layers.0.codebook.embed"
    if kind == "eight bits":
        weights[name], message = weights[name].to(torch.float8_e4m3fn), "of torch.float8_e4m3fn; weights of 16"
    elif kind == "beyond float32":
        weights[name], message = weights[name].double() + 1e300, "not finite"
    else:
        weights[1], message = torch.zeros(1), "weights without names"
    (theirs / "model.safetensors").unlink()
    torch.save(weights, theirs / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=message):
        CompressionModel.get_pretrained(theirs)


def header(content: Any) -> bytes:
    """The head of a safetensors file."""
    text = json.dumps(content).encode()
    return len(text).to_bytes(8, "little") + text


CLAIMED = {"a": {"dtype": "F32", "shape": [2**36], "data_offsets": [0, 2**38]}}  # 256 GiB
HOSTILE: dict[str, bytes | str] = {  # the content of a file, or what it links to
    "longer than memory": (2**62).to_bytes(8, "little") + b"{}",
    "more than there is": header(CLAIMED) + b"0000",
    "overflowing": header({"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 4]}}) + b"0000",
    "no tensors": header({"a": 7}),
    "nested": (200_000).to_bytes(8, "little") + b"[" * 200_000,
    "empty": b"",
    "endless": "/dev/zero",
    "of links": "model.safetensors",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_weights_of_hostile_files_are_one_line(
    theirs: Path, ours: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in (theirs, ours):
        file = folder / "model.safetensors"
        file.unlink()
        content = HOSTILE[kind]
        if isinstance(content, bytes):
            file.write_bytes(content)
        else:
            file.symlink_to(content)
        assert main(["export", str(folder), "--format", "onnx", "--out", str(folder / "out")]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and str(folder) in error and not (folder / "out").exists()


def test_a_pipe_is_no_file_and_memory_may_be_too_small(ours: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(file: Path) -> None:
        raise RuntimeError("unable to mmap 274877906944 bytes: Cannot allocate memory (12)")

    with monkeypatch.context() as patch, pytest.raises(CheckpointError, match="unable to mmap"):
        patch.setattr(own, "load_file", fail)
        CompressionModel.get_pretrained(ours)
    (ours / "model.safetensors").unlink()
    os.mkfifo(ours / "model.safetensors")
    with pytest.raises(CheckpointError, match="safetensors is missing or no file"):
        CompressionModel.get_pretrained(ours)


def test_weights_of_a_checkpoint_have_names(tmp_path: Path) -> None:
    torch.save({"best_state": {1: torch.tensor(math.nan)}, "xp.cfg": "a: 1"}, tmp_path / "odd.bin")
    with pytest.raises(CheckpointError, match="does not hold the weights as a dict of tensors"):
        CompressionModel.get_pretrained(tmp_path / "odd.bin")
