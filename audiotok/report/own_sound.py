"""A codec inside the page, which encodes and decodes a sound of the reader's own in the browser.

The page holds the model as two ONNX files, ONNX Runtime Web to run them (assets/vendor), and a worker that does, all
packed as text. Nothing is fetched: the page's policy allows the WebAssembly and the worker, and still no connection.
"""

import base64
import json
import lzma
import re
import zlib
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from audiotok.errors import ResultsError
from audiotok.files import UnreadableError, load_json
from audiotok.text import clean_text

LONGEST_S = 30  # of a sound
RATES = (8000, 96000)  # Hz, which every browser decodes to and plays
LARGEST_MB = 200.0  # of a model: about what a browser unpacks from one page
_ASSETS = Path(__file__).parent / "assets"
_RUNTIME = "vendor/ort.wasm.bundle.min.mjs"  # as published, with what it runs beside it
_WASM = "vendor/ort-wasm-simd-threaded.wasm.xz"
_EXPORTS = re.compile(r"export\{([^{}]*)\};\s*(//# sourceMappingURL=.*\s*)?\Z")
_VERSION = re.compile(r"ONNX Runtime Web v([\d.]+)")


@dataclass(frozen=True)
class PageModel:
    """A codec as `audiotok.export.onnx.write_onnx` leaves it."""

    name: str  # signature, or name of the source
    reason: str  # why it is this one
    about: dict[str, Any]  # sample_rate and frame_rate in Hz, channels, n_q, bins, one_pass
    encoder: bytes
    decoder: bytes

    @classmethod
    def read(cls, folder: Path, name: str, reason: str) -> "PageModel":
        """Read `encoder.onnx`, `decoder.onnx` and `audiotok.json` of a folder.

        Raises:
            ResultsError: if one of them is missing or cannot be read, they are too large for a page, or of a rate that
                browsers do not play.
        """
        try:
            found = load_json(folder / "audiotok.json")
            encoder, decoder = ((folder / f"{part}.onnx").read_bytes() for part in ("encoder", "decoder"))
            about = {key: found[key] for key in ("sample_rate", "frame_rate", "channels", "n_q", "bins")}
        except (OSError, UnreadableError, LookupError, TypeError) as error:
            raise ResultsError(f"{folder} holds no model as ONNX files: {error}.") from error
        if (size := (len(encoder) + len(decoder)) / 1e6) > LARGEST_MB:
            raise ResultsError(
                f"the model {name} has {size:.0f} MB as ONNX files; a page takes up to {LARGEST_MB:g}. Name a smaller "
                "one with --with-model, or leave it out."
            )
        if not RATES[0] <= about["sample_rate"] <= RATES[1]:
            raise ResultsError(
                f"the model {name} has {about['sample_rate']} Hz; browsers play {RATES[0]} to {RATES[1]}. Name another "
                "with --with-model, or leave it out."
            )
        about["one_pass"] = bool(found.get("one_pass"))
        return cls(clean_text(name), clean_text(reason), about, encoder, decoder)

    @cached_property
    def inlined(self) -> list[tuple[str, str]]:
        """What the page holds, by name, each gzipped and in base64."""
        parts = {"encoder": self.encoder, "decoder": self.decoder}
        return [("runtime", _packed_wasm()), *((name, _packed(content)) for name, content in parts.items())]

    @property
    def model_mb(self) -> float:
        """Megabytes of the model in the page."""
        return sum(len(text) for name, text in self.inlined if name != "runtime") / 1e6

    @property
    def runtime_mb(self) -> float:
        """Megabytes of the runtime in the page."""
        return (sum(len(text) for name, text in self.inlined if name == "runtime") + len(worker_source())) / 1e6

    @property
    def runtime_version(self) -> str:
        """Version of ONNX Runtime Web."""
        found = _VERSION.search(_runtime())
        return found[1] if found else "of unknown version"

    @property
    def shape(self) -> str:
        """Rate, channels and codes as text."""
        about = self.about
        channels = {1: "mono", 2: "stereo"}.get(about["channels"], f"{about['channels']} channels")
        codes = f"{about['n_q']} codebook{'s' if about['n_q'] != 1 else ''} of {about['bins']} codes"
        return f"{about['sample_rate']} Hz {channels}, {codes}, {about['frame_rate']:g} frames a second"

    def data(self) -> dict[str, Any]:
        """What the script of the page needs to know."""
        return {**self.about, "name": re.sub(r"[^\w.-]+", "_", self.name).strip("._"), "limit_s": LONGEST_S}


def script() -> str:
    """Part of the page's script: the worker as text, and what gives it sounds."""
    own = (_ASSETS / "own_sound.js").read_text(encoding="utf-8")
    return f"const OWN_SOUND_WORKER = {_literal(worker_source())};\n{own}"


def worker_source() -> str:
    """The worker as a classic script: the runtime, its exports as the object `ort`, then the worker's own part.

    A page that is opened as a file may not start modules as workers; in a script there is no `import.meta`.
    """
    runtime = _runtime().replace("import.meta.url", '"blob:audiotok"')
    exports = _EXPORTS.search(runtime)
    assert exports is not None, f"{_RUNTIME} ends in no list of exports"
    pairs = (item.split(" as ") for item in exports[1].split(","))
    ort = ", ".join(f"{json.dumps(given.strip())}: {own.strip()}" for own, given in pairs)
    own = (_ASSETS / "own_sound_worker.js").read_text(encoding="utf-8")
    return f"{runtime[: exports.start()]}\nconst ort = {{{ort}}};\n{own}"


def _runtime() -> str:
    return (_ASSETS / _RUNTIME).read_text(encoding="utf-8")


@cache
def _packed_wasm() -> str:
    return _packed(lzma.decompress((_ASSETS / _WASM).read_bytes()))


def _literal(text: str) -> str:
    """A string of JavaScript that ends no script element."""
    return json.dumps(text).replace("</", "<\\/").replace("<!--", "<\\!--")


def _packed(content: bytes) -> str:
    pack = zlib.compressobj(9, wbits=31)  # gzip, without a time
    return base64.b64encode(pack.compress(content) + pack.flush()).decode()
