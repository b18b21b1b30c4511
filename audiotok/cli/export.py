"""`audiotok export`: a trained codec for AudioCraft, Transformers, onnxruntime, or as safetensors."""

import argparse
from pathlib import Path

_FORMATS = ("audiocraft", "huggingface", "safetensors", "onnx")  # `audiotok.export.formats` imports torch


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to the parser of `audiotok`."""
    parser = commands.add_parser("export", help="a trained codec in the format of another program, with its card")
    parser.description = (
        "Write a trained codec into a folder that AudioCraft, Transformers or onnxruntime loads, or as safetensors, "
        "with a card (README.md) made from its run."
    )
    text = "signature, //sig/SIG, a checkpoint, an exported file or folder, or demo"
    parser.add_argument("codec", metavar="SOURCE", help=text)
    parser.add_argument("--format", choices=_FORMATS, required=True)
    text = "folder to write (default: exported/NAME-FORMAT)"
    parser.add_argument("--out", type=Path, metavar="DIR", help=text)
    parser.add_argument("--half", action="store_true", help="weights as float16, in half the size; not for huggingface")
    parser.add_argument("--force", action="store_true", help="replace an earlier export in the folder")
    parser.set_defaults(run=_export)


def _export(args: argparse.Namespace) -> int:
    from audiotok.export.formats import export_model

    out = export_model(args.codec, args.format, args.out, half=args.half, force=args.force)
    files = sorted(path for path in out.iterdir() if path.is_file() and not path.name.startswith("."))
    print(f"{out}: {', '.join(f'{path.name} ({_size(path.stat().st_size)})' for path in files)}")
    return 0


def _size(count: int) -> str:
    return f"{count / 1e6:.3g} MB" if count >= 1e5 else f"{count / 1e3:.3g} kB"
