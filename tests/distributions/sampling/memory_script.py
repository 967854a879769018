"""Prints by how many bytes for each element the peak grows, planning and sampling a sequence."""

import torch
from torch import nn

from ppl_gen.distributions import Elements
from ppl_gen.models.networks import WaveNet

SHORT, LONG = 1_000, 160_000


class Copying(WaveNet):
    """A sequence whose numbers are moved by operators that copy them."""

    def __init__(self, length: int) -> None:
        super().__init__(length, 8, 8, 3, 3, Elements())
        self.wide, self.narrow = nn.Conv1d(1, 64, 1), nn.Linear(64, 1)

    def numbers(self, x: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        features = self.wide(super().numbers(x, context).movedim(-1, 1))
        halves = features.unflatten(1, (2, 32)).transpose(1, 2).reshape(features.shape).flip(1)
        numbers: torch.Tensor = self.narrow(halves.movedim(1, -1).contiguous().tanh())
        return numbers


def peak() -> int:
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


def main() -> None:
    torch.set_num_threads(1)
    Copying(SHORT)().sample()
    before = peak()
    Copying(LONG)().sample()
    print((peak() - before) / (LONG - SHORT))


if __name__ == "__main__":
    main()
