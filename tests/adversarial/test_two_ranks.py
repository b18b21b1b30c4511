"""Two real processes (gloo): the adversary and the balancer must agree over ranks."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed, nn

from audiotok.adversarial import AdversarialLoss, get_adv_criterion, get_fake_criterion, get_real_criterion
from audiotok.adversarial.discriminators import DiscriminatorOutput
from audiotok.losses import Balancer
from audiotok.solvers.updates import Updates


class Judge(nn.Module):
    """One convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 2, 5)

    def forward(self, wav: torch.Tensor) -> DiscriminatorOutput:
        out = self.conv(wav)
        return [out], [[out]]


def batch(rank: int) -> torch.Tensor:
    """Fake and real signals of one rank, [2, 2, 1, 50]."""
    return torch.randn(2, 2, 1, 50, generator=torch.Generator().manual_seed(rank))


def train(seed: int, pair: torch.Tensor) -> dict[str, Any]:
    torch.manual_seed(seed)
    judge = Judge()
    loss = AdversarialLoss(
        judge,
        torch.optim.SGD(judge.parameters(), lr=0.5),
        loss=get_adv_criterion("mse"),
        loss_real=get_real_criterion("mse"),
        loss_fake=get_fake_criterion("mse"),
    )
    loss.adversary_loss(fake=pair[0], real=pair[1]).backward()
    Updates(loss.optimizer, list(judge.parameters())).step()
    return judge.state_dict()


def balance(outputs: torch.Tensor) -> float:
    outputs = outputs.clone().requires_grad_()
    balancer = Balancer({"a": 1.0}, monitor=True)
    return balancer.backward({"a": outputs.square().sum() / 2}, outputs).item()


def work(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    pair = batch(rank)
    torch.save((train(rank, pair), balance(pair[0])), folder / f"{rank}.th")
    distributed.destroy_process_group()


@pytest.mark.slow
def test_ranks_agree_with_one_process_on_the_whole_batch(tmp_path: Path) -> None:
    command = [sys.executable, __file__, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(Path.cwd()), *sys.path]))}
    ranks = [subprocess.Popen([*command, str(rank)], env=environment) for rank in range(2)]
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
    (first, loss_0), (second, loss_1) = (torch.load(tmp_path / f"{rank}.th") for rank in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    whole = torch.cat([batch(0), batch(1)], dim=1)
    torch.testing.assert_close(first, train(0, whole))
    # With loss |y|^2 / 2 the gradient is y: both ranks must divide by the mean norm over the two of them.
    norm = whole[0].flatten(1).norm(dim=1).mean()
    for rank, loss in enumerate((loss_0, loss_1)):
        wanted = batch(rank)[0].square().sum() / 2 / norm
        torch.testing.assert_close(torch.tensor(loss), wanted)


if __name__ == "__main__":
    work(int(sys.argv[2]), Path(sys.argv[1]))
