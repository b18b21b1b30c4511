"""LSTM over the frames of a convolutional latent (EnCodec, Défossez et al., TMLR 2023, section 3.1)."""

from torch import Tensor, nn


class StreamableLSTM(nn.Module):
    """Stacked one-directional LSTM that keeps the layout of the convolutions, starting from a zero state.

    Args:
        dimension: channels of the input, of the state and of the output.
        num_layers: stacked layers.
        skip: whether the input is added to the output.

    Shape:
        [B, dimension, T] -> [B, dimension, T].
    """

    def __init__(self, dimension: int, num_layers: int = 2, skip: bool = True) -> None:
        super().__init__()
        self.skip = skip
        self.lstm = nn.LSTM(dimension, dimension, num_layers)

    def forward(self, x: Tensor) -> Tensor:
        """Run over the frames of x [B, D, T]."""
        frames = x.permute(2, 0, 1)
        y: Tensor = self.lstm(frames)[0]
        if self.skip:
            y = y + frames
        return y.permute(1, 2, 0)
