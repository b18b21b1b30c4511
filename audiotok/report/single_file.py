"""A report as one file, for mailing: its page with everything that it shows and plays inside it.

The pages of the runs stay out, and links to them become text. Nothing in the file refers to another one, and its policy
allows none.
"""

import base64
import hashlib
import html
import re
import tempfile
from pathlib import Path

from audiotok.errors import ResultsError
from audiotok.files import replacing
from audiotok.report.folder import INDEX
from audiotok.report.listening import Listening
from audiotok.report.page import ReportOptions, write_report
from audiotok.results.experiments import Experiments

LIMIT_MB = 20.0  # many mail servers refuse more than 25 MB, and a mail holds a file as text a third longer
_MARK = "<!-- a report of audiotok as one file -->"
_TYPES = {".png": "image/png", ".svg": "image/svg+xml"}
_STYLES = re.compile(r'<link rel="stylesheet" href="([^"]+)">')
_RUN_LINK = re.compile(r'<a href="runs/[^"]+"[^>]*>(.*?)</a>', re.DOTALL)
_OF_FOLDER = re.compile(r"<span data-folder>.*?</span>", re.DOTALL)  # what holds of a folder of pages alone
_FILES = re.compile(r'\b(src|srcset|href)="(assets/[^"]+)"')
_RECORDINGS = re.compile(r'"(audio/[0-9a-f]+\.(?:html|png))"')
_AUDIO = re.compile(rb'src="data:audio/flac;base64,([^"]+)"')
_POLICY = re.compile(r'(<meta http-equiv="Content-Security-Policy" content=")([^"]*)(">)')


def write_single_file(
    experiments: Experiments, output: Path, options: ReportOptions | None = None, *, limit_mb: float = LIMIT_MB
) -> tuple[Listening, int]:
    """Write a grid as one page that opens from disk.

    Args:
        experiments: the grid.
        output: file to write; an earlier report in it is replaced.
        options: what to show.
        limit_mb: size above which nothing is written.

    Returns:
        What there is to listen to, and the size of the file in bytes.

    Raises:
        ResultsError: if an option names what the grid does not have, the file is too large, is something else than a
            report, or cannot be written.
    """
    _refuse_foreign(output)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "report"
        listening = write_report(experiments, folder, options)
        page = _in_one(folder).encode()
    if not len(page) <= limit_mb * 1e6:
        model = options.model if options else None
        inside = f" and the model {model.model_mb + model.runtime_mb:.1f}" if model else ""
        raise ResultsError(
            f"{output} would have {len(page) / 1e6:.1f} MB, more than {limit_mb:g}, of which audio and spectrograms "
            f"are {listening.size / 1e6:.1f}{inside}: give fewer clips (--clips), less audio (--audio-mb)"
            f"{', no --with-model' if model else ''} or a higher --max-mb."
        )
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with replacing(output) as part:
            part.write_bytes(page)
    except OSError as error:
        raise ResultsError(f"cannot write the report {output}: {error.strerror or error}.") from error
    return listening, len(page)


def _refuse_foreign(output: Path) -> None:
    if output.is_dir():
        raise ResultsError(f"{output} is a folder; give a file with --output.")
    try:
        with output.open("rb") as file:
            if _MARK.encode() not in file.read(200):
                raise ResultsError(f"{output} is no report of one file; move it, or give another --output.")
    except FileNotFoundError:
        return
    except OSError as error:
        raise ResultsError(f"cannot read {output}: {error.strerror or error}.") from error


def _in_one(folder: Path) -> str:
    """The page of a report with the files that it refers to."""
    page = (folder / INDEX).read_text(encoding="utf-8")
    page = page.replace("<!doctype html>", f"<!doctype html>\n{_MARK}", 1)
    styles = list[str]()

    def style(link: re.Match[str]) -> str:
        text = (folder / link[1]).read_text(encoding="utf-8")
        styles.append(f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'")
        return f"<style>{text}</style>"

    page = _STYLES.sub(style, page)
    head, data, tail = page.partition('<script type="application/json" id="report-data">')
    head = _OF_FOLDER.sub("", _RUN_LINK.sub(r"\1", head))
    head = _FILES.sub(lambda found: f'{found[1]}="{_as_text(folder / html.unescape(found[2]))}"', head)
    head = _POLICY.sub(lambda found: found[1] + _closed(found[2], styles) + found[3], head, count=1)
    files = {name: _bytes_of(folder / name) for name in dict.fromkeys(_RECORDINGS.findall(tail))}
    embedded = ", ".join(f'"{name}": "{content}"' for name, content in files.items())
    inside = f'<script type="application/json" id="report-files">{{{embedded}}}</script>\n'
    return f"{head}{inside if data else ''}{data}{tail}"


def _closed(policy: str, styles: list[str]) -> str:
    """A policy that allows what is inside the page and no other file."""
    kept = [rule.strip() for rule in html.unescape(policy).split(";")]
    kept = [rule for rule in kept if rule and not rule.startswith(("style-src", "img-src", "frame-src", "media-src"))]
    return html.escape("; ".join([*kept, f"style-src {' '.join(styles)}", "img-src data:"]), quote=False)


def _as_text(path: Path) -> str:
    """A file as the address that holds it."""
    kind = _TYPES.get(path.suffix, "application/octet-stream")
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def _bytes_of(path: Path) -> str:
    """Bytes of a spectrogram, or of the audio in the page of a recording, in base64."""
    content = path.read_bytes()
    audio = _AUDIO.search(content) if path.suffix == ".html" else None
    return (audio[1] if audio else base64.b64encode(content)).decode()
