"""Building blocks of the codec: padded convolutions, the LSTM and the SEANet encoder and decoder."""

from audiotok.modules.conv import (
    NORMS,
    NormConv1d,
    NormConv2d,
    NormConvTranspose1d,
    NormConvTranspose2d,
    StreamableConv1d,
    StreamableConvTranspose1d,
)
from audiotok.modules.lstm import StreamableLSTM
from audiotok.modules.seanet import SEANetDecoder, SEANetEncoder, SEANetResnetBlock

__all__ = [
    "NORMS",
    "NormConv1d",
    "NormConv2d",
    "NormConvTranspose1d",
    "NormConvTranspose2d",
    "SEANetDecoder",
    "SEANetEncoder",
    "SEANetResnetBlock",
    "StreamableConv1d",
    "StreamableConvTranspose1d",
    "StreamableLSTM",
]
