"""`audiotok encode` and `audiotok decode`: audio files to token files of a codec, and back."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from audiotok.cli.progress import clear_line, hours_line
from audiotok.errors import AudiotokError, ConfigError
from audiotok.text import duration_text

if TYPE_CHECKING:
    from audiotok.files_to_files import Report
    from audiotok.models import CompressionModel


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add both commands to the parser of `audiotok`."""
    parser = commands.add_parser("encode", help="audio files to token files of a codec")
    parser.description = (
        "Encode audio files, and those below folders, into token files (NAME.atok) in the same folders below DIR. The "
        "same command goes on with one that was interrupted."
    )
    parser.add_argument("sources", nargs="+", type=Path, metavar="IN", help="audio files and folders")
    _add_shared(parser, out=True)
    count = parser.add_mutually_exclusive_group()
    count.add_argument("--n-q", type=int, metavar="N", help="codebooks (default: all in use)")
    count.add_argument("--bandwidth", type=float, metavar="KBPS", help="as many codebooks as fit into so many kb/s")
    parser.add_argument("--strict", action="store_true", help="resample and mix nothing: refuse such files")
    parser.set_defaults(run=_encode)
    parser = commands.add_parser("decode", help="token files to audio")
    parser.description = (
        "Decode token files, and those below folders, with the codec that made them, into the same folders below DIR."
    )
    parser.add_argument("sources", nargs="+", type=Path, metavar="IN", help="token files and folders")
    _add_shared(parser, out=False)
    parser.add_argument("--format", default="wav", help="wav, flac, ogg, opus or mp3 (default: wav)")
    parser.add_argument("--info", action="store_true", help="list what the files hold, and decode nothing")
    parser.set_defaults(run=_decode, whole_parser=parser)


def _add_shared(parser: argparse.ArgumentParser, *, out: bool) -> None:
    parser.add_argument(
        "--model", required=out, metavar="CODEC", help="//sig/SIG, a checkpoint, an exported file, demo"
    )
    parser.add_argument("--out", type=Path, required=out, metavar="DIR", help="folder of what is made")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="files at once (default: 1)")
    text = "default: cuda if there is one"
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help=text)


def _encode(args: argparse.Namespace) -> int:
    from audiotok.coding import codebooks_within, encode_files

    model = _model(args)
    if args.n_q is not None:
        if not 1 <= args.n_q <= model.total_codebooks:
            raise ConfigError(f"--n-q {args.n_q}: {args.model} has {model.total_codebooks} codebooks; use 1 or more.")
        model.set_num_codebooks(args.n_q)
    if args.bandwidth is not None:
        model.set_num_codebooks(codebooks_within(model, args.bandwidth))

    def work(report: "Report") -> None:
        options = {"strict": args.strict, "jobs": args.jobs, "progress": hours_line(), "report": report}
        encode_files(model, args.sources, args.out, codec=args.model, release=True, **options)

    return _carry_out(work, "encoded")


def _decode(args: argparse.Namespace) -> int:
    from audiotok.coding import decode_files

    if args.info:
        return _list(args.sources)
    if args.model is None or args.out is None:
        args.whole_parser.error("the following arguments are required: --model, --out (or --info)")
    model = _model(args)

    def work(report: "Report") -> None:
        options = {"format": args.format, "jobs": args.jobs, "progress": hours_line(), "report": report}
        decode_files(model, args.sources, args.out, release=True, **options)

    return _carry_out(work, "decoded")


def _model(args: argparse.Namespace) -> "CompressionModel":
    from audiotok.models import CompressionModel
    from audiotok.utils.device import resolve_device

    return CompressionModel.get_pretrained(args.model, resolve_device(args.device))


def _carry_out(work: "Callable[[Report], None]", verb: str) -> int:
    """Work, and print what was done however it ends; the exit code."""
    from audiotok.files_to_files import Report

    report, code = Report(), 0
    try:
        work(report)
    except KeyboardInterrupt:
        clear_line()
        print("interrupted; the same command goes on from there", file=sys.stderr)
        code = 130
    except AudiotokError as error:
        clear_line()
        print(f"error: {error}", file=sys.stderr)
        code = 2
    finally:
        clear_line()
    for _, why in sorted(report.failed):
        print(f"error: {why}", file=sys.stderr)
    if report.done or report.kept or report.failed:
        print(_summary(report, verb))
    return code or (2 if report.failed else 0)


def _summary(report: "Report", verb: str) -> str:
    parts = [f"{len(report.done)} {verb}"]
    if report.audio_s:
        parts[0] += f" ({duration_text(report.audio_s)}, {report.size * 8 / 1000 / report.audio_s:.3g} kb/s)"
    if report.kept:
        parts.append(f"{len(report.kept)} there already")
    if report.failed:
        parts.append(f"{len(report.failed)} failed")
    return ", ".join(parts)


def _list(sources: list[Path]) -> int:
    """A line a token file: what it holds."""
    from audiotok.coding import token_files
    from audiotok.interchange.atok import read_tokens

    code = 0
    for path in token_files(sources):
        try:
            tokens = read_tokens(path)
        except AudiotokError as error:
            print(f"error: {error}", file=sys.stderr)
            code = 2
            continue
        head = tokens.header
        print(
            f"{path}: {head.duration_s:.3f} s, {head.channels} × {head.sample_rate} Hz, {head.n_q} × {head.bins} at "
            f"{head.sample_rate / head.hop:g} Hz, {tokens.kbps:.3g} kb/s, {head.codec} {head.codec_hash[:12]}"
        )
    return code
