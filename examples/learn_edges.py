"""Learn the kernel that finds the edges of a picture from the picture and its edges alone, by gradient descent; a
server computes each convolution and its gradients.

    python examples/learn_edges.py [--seed SEED]

The picture is that of "Dive into Deep Learning", 7.2.4: 6x8, white, black in the middle. Its edges are what the kernel
[1, -1] gives. Needs `pip install 'convolver[server,torch]'`; CONVOLVER_ADDRESS names a server that runs already.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

import torch

from convolver.client import Client
from convolver.client.torch import RemoteConv2d

if TYPE_CHECKING:
    from collections.abc import Iterator

EPOCHS = 10
LEARNING_RATE = 3e-2


def picture() -> torch.Tensor:
    """(1, 1, 6, 8): ones, and zeros in the middle four columns."""
    white = torch.ones(1, 1, 6, 8)
    white[..., 2:6] = 0
    return white


def learn(layer: RemoteConv2d, image: torch.Tensor, edges: torch.Tensor) -> Iterator[float]:
    """Descends the gradient of the sum of squared errors: the loss before each step, and after the last."""
    optimizer = torch.optim.SGD(layer.parameters(), lr=LEARNING_RATE)
    for _ in range(EPOCHS):
        loss = (layer(image) - edges).square().sum()
        yield loss.item()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    yield (layer(image) - edges).square().sum().item()


def main() -> None:
    """Learn, and show how the loss falls."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="of the first kernel (0)")
    torch.manual_seed(parser.parse_args().seed)
    with Client() as client:
        image = picture()
        edges = client.conv2d(image, torch.tensor([[[[1.0, -1.0]]]]))
        layer = RemoteConv2d(1, 1, (1, 2), bias=False, client=client)
        print("kernel {:.4f} {:.4f}".format(*layer.weight.flatten().tolist()))
        for epoch, loss in enumerate(learn(layer, image, edges)):
            print(f"epoch {epoch:2}, loss {loss:.4f}")
        print("kernel {:.4f} {:.4f}".format(*layer.weight.flatten().tolist()))


if __name__ == "__main__":
    main()
