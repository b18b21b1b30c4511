"""ViSQOL as the evaluate stage computes it beside the values its authors publish: `python -m benchmarks.visqol CLONE`.

CLONE is a clone of github.com/google/visqol, which holds the recordings (TCDAudio14) and, in
`src/include/conformance.h`, the values of its own programme. Files are compared as they are, then as clips of one
length, as the evaluate stage has them: a coded file is longer by its codec's delay.
"""

import re
import sys
import time
from pathlib import Path

from audiotok.data.audio import read_audio
from audiotok.metrics.perceptual import ViSQOL

RATE = 48000
SUBSET = "testdata/conformance_testdata_subset"
CASES = {  # name of the value in conformance.h: reference, degraded
    "StraussLp35": ("strauss48_stereo", "strauss48_stereo_lp35"),
    "SteelyLp7": ("steely48_stereo", "steely48_stereo_lp7"),
    "Sopr256aac": ("sopr48_stereo", "sopr48_stereo_256kbps_aac"),
    "Ravel128opus": ("ravel48_stereo", "ravel48_stereo_128kbps_opus"),
    "Moonlight128aac": ("moonlight48_stereo", "moonlight48_stereo_128kbps_aac"),
    "Harpsichord96mp3": ("harpsichord48_stereo", "harpsichord48_stereo_96kbps_mp3"),
    "Guitar64aac": ("guitar48_stereo", "guitar48_stereo_64kbps_aac"),
    "Glock48aac": ("glock48_stereo", "glock48_stereo_48kbps_aac"),
    "Contrabassoon24aac": ("contrabassoon48_stereo", "contrabassoon48_stereo_24kbps_aac"),
    "CastanetsIdentity": ("castanets48_stereo", "castanets48_stereo"),
}


def published(clone: Path) -> dict[str, float]:
    """Values by name, from the header of the programme."""
    text = (clone / "src/include/conformance.h").read_text()
    return {name: float(value) for name, value in re.findall(r"#define kConformance(\w+) \(([\d.]+)\)", text)}


def main(clone: Path) -> None:
    """Print a row a case."""
    wanted = published(clone)
    print("| files | published | as they are | difference | s of CPU | of one length |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, names in CASES.items():
        reference, degraded = (read_audio(clone / SUBSET / f"{file}.wav")[0] for file in names)
        start = time.process_time()
        found = ViSQOL(RATE).score(reference.double().mean(0).numpy(), degraded.double().mean(0).numpy())
        seconds = time.process_time() - start
        length = min(reference.shape[-1], degraded.shape[-1])
        cut = ViSQOL(RATE)(estimate=degraded[:, :length], reference=reference[:, :length])
        row = f"{wanted[name]:.6f} | {found:.6f} | {found - wanted[name]:+.6f} | {seconds:.1f} | {cut:.4f}"
        print(f"| {name} | {row} |", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
