"""Models given away: in the formats of AudioCraft, Transformers, safetensors and ONNX, each with its card."""
