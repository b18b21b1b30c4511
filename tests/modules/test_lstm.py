"""The LSTM against its equations, step by step in double precision."""

import numpy as np
import pytest
import torch
from scipy.special import expit

from audiotok.modules import StreamableLSTM


def lstm_reference(state: dict[str, torch.Tensor], frames: np.ndarray, layers: int) -> np.ndarray:
    for layer in range(layers):
        w_x, w_h, b_x, b_h = (
            state[f"lstm.{name}_l{layer}"].numpy() for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        h = c = np.zeros(frames.shape[1])
        out = []
        for x in frames:
            gate_in, forget, cell, gate_out = np.split(w_x @ x + b_x + w_h @ h + b_h, 4)
            c = expit(forget) * c + expit(gate_in) * np.tanh(cell)
            h = expit(gate_out) * np.tanh(c)
            out.append(h)
        frames = np.stack(out)
    return frames


@pytest.mark.parametrize("skip", [False, True])
def test_lstm_follows_its_equations(skip: bool) -> None:
    torch.manual_seed(0)
    module = StreamableLSTM(4, num_layers=2, skip=skip).double()
    x = torch.randn(3, 4, 9, dtype=torch.float64)
    y = module(x).detach().numpy()
    for clip, out in zip(x.numpy(), y, strict=True):
        expected = lstm_reference(module.state_dict(), clip.T, layers=2).T + (clip if skip else 0)
        np.testing.assert_allclose(out, expected, atol=1e-12)
