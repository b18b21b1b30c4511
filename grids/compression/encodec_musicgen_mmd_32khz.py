"""The EnCodec-MMD of the paper, as released, beside the EnCodec of MusicGen it is compared to."""

from dora import Launcher

from audiotok.explorers import CompressionExplorer


@CompressionExplorer
def explorer(launcher: Launcher) -> None:
    """With and without the MMD, at full size."""
    with launcher.job_array():
        launcher(solver="compression/encodec_musicgen_mmd_32khz")
        launcher(solver="compression/encodec_musicgen_32khz")
