"""Audio in and out: files, manifests of tracks, datasets of segments, loaders, preparation, demo music."""

from audiotok.data.audio import AudioInfo, audio_info, convert_audio, read_audio, read_segment, write_audio
from audiotok.data.dataset import AudioDataset, AudioLoader, SegmentInfo, get_loader
from audiotok.data.manifest import AudioMeta, read_manifest, write_manifest

__all__ = [
    "AudioDataset",
    "AudioInfo",
    "AudioLoader",
    "AudioMeta",
    "SegmentInfo",
    "audio_info",
    "convert_audio",
    "get_loader",
    "read_audio",
    "read_manifest",
    "read_segment",
    "write_audio",
    "write_manifest",
]
