"""LeNet learns to read digits, its convolutions here or by a server: layer by layer, or all of it as one stack.

    python examples/lenet.py [--by stack|layers|local] [--epochs EPOCHS] [--seed SEED]

The network is that of "Dive into Deep Learning", 7.6 (LeCun, Bottou, Bengio, Haffner: "Gradient-Based Learning Applied
to Document Recognition", 1998), the digits those of scikit-learn, 8x8 and enlarged to the network's 28x28. A quarter of
them is held out. All three ways take the same steps, from the same weights through the same batches: with `layers` each
convolution is two calls a step, with `stack` the whole network is (one for the logits, one for the gradients).

Needs `pip install 'convolver[server,torch]' scikit-learn`; CONVOLVER_ADDRESS names a server that runs already.
"""

from __future__ import annotations

import argparse
import time
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from sklearn.datasets import load_digits  # type: ignore[import-untyped]  # scikit-learn has no hints of its own
from torch import Tensor, nn
from torch.nn import functional

from convolver.client import Client
from convolver.client.torch import describe, to_remote

if TYPE_CHECKING:
    from collections.abc import Iterator

IMAGE_SHAPE = (1, 28, 28)
BATCH_SIZE = 16
LEARNING_RATE, MOMENTUM = 0.05, 0.9
SIGMOID_GAIN = 4.0  # its slope is at most 1/4: with Xavier's weights as they are, the loss stays where it starts


class Digits(NamedTuple):
    """Pictures (N, 1, 28, 28) from -1 to 1, and the digits that they show, (N,)."""

    images: Tensor
    labels: Tensor


def digits() -> tuple[Digits, Digits]:
    """Those to learn from, and a quarter to test with; drawn by torch's generator."""
    given = load_digits()
    small = torch.tensor(given.images[:, None] / 8 - 1, dtype=torch.float32)
    images = functional.interpolate(small, IMAGE_SHAPE[1:], mode="bilinear")
    labels = torch.tensor(given.target)
    tested, learnt = torch.randperm(len(labels)).tensor_split([len(labels) // 4])
    return Digits(images[learnt], labels[learnt]), Digits(images[tested], labels[tested])


def lenet() -> nn.Sequential:
    """(N, 1, 28, 28) to the logits of ten digits, (N, 10)."""
    network = nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2),
        nn.Sigmoid(),
        nn.AvgPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.Sigmoid(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(400, 120),
        nn.Sigmoid(),
        nn.Linear(120, 84),
        nn.Sigmoid(),
        nn.Linear(84, 10),
    )
    for parameter in network.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter, SIGMOID_GAIN)
        else:
            nn.init.zeros_(parameter)
    return network


class Way(Protocol):
    """Who computes the network."""

    def logits(self, images: Tensor) -> Tensor:
        """(N, 1, 28, 28) to (N, 10), with the parameters as they are now."""

    def differentiate(self, batch: Digits) -> float:
        """The mean cross-entropy of a batch; leaves its gradient in the parameters' `grad`."""


class ByAutograd:
    """The network as torch differentiates it; its convolutions may be remote."""

    def __init__(self, network: nn.Sequential) -> None:
        self._network = network

    def logits(self, images: Tensor) -> Tensor:
        """As the network computes them."""
        logits: Tensor = self._network(images)
        return logits

    def differentiate(self, batch: Digits) -> float:
        """By autograd."""
        self._network.zero_grad()
        loss = functional.cross_entropy(self.logits(batch.images), batch.labels)
        torch.autograd.backward(loss)
        return loss.item()


class ByStack:
    """The network as one stack, in which a Linear is a convolution whose kernel spans the map."""

    def __init__(self, network: nn.Sequential, client: Client) -> None:
        self._parameters = list(network.parameters())
        self._stack = client.stack(describe(network, (1, *IMAGE_SHAPE)))  # holds the parameters, no copies

    def logits(self, images: Tensor) -> Tensor:
        """In one call."""
        output: Tensor = self._stack(images)
        return output.flatten(1)

    def differentiate(self, batch: Digits) -> float:
        """In two calls; the loss, and its gradient with respect to the logits, are computed here."""
        logits = self.logits(batch.images).requires_grad_()
        loss = functional.cross_entropy(logits, batch.labels)
        (grad_logits,) = torch.autograd.grad(loss, logits)
        found = self._stack.gradients(batch.images, grad_logits[..., None, None], wrt="weight", bias=True)
        both = chain.from_iterable(zip(found.weights, found.biases, strict=True))
        grads = (grad for grad in both if grad is not None)  # pooling has none
        for parameter, grad in zip(self._parameters, grads, strict=True):
            parameter.grad = grad.reshape(parameter.shape)
        return loss.item()


def way_of(name: str, network: nn.Sequential, client: Client) -> Way:
    """The way of that name."""
    if name == "stack":
        return ByStack(network, client)
    return ByAutograd(to_remote(network, client) if name == "layers" else network)


def steps(way: Way, optimizer: torch.optim.Optimizer, learnt: Digits) -> Iterator[float]:
    """An epoch's losses, a step each, in batches that torch's generator draws."""
    order = torch.randperm(len(learnt.labels))
    for start in range(0, len(order), BATCH_SIZE):
        chosen = order[start : start + BATCH_SIZE]
        yield way.differentiate(Digits(learnt.images[chosen], learnt.labels[chosen]))
        optimizer.step()


def accuracy(way: Way, tested: Digits) -> float:
    """The part of the digits that is read rightly."""
    with torch.no_grad():
        return (way.logits(tested.images).argmax(1) == tested.labels).float().mean().item()


def main() -> None:
    """Learn, and show how loss and accuracy go."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--by", choices=("stack", "layers", "local"), default="stack", help="who computes (stack)")
    parser.add_argument("--epochs", type=int, default=10, help="how long (10)")
    parser.add_argument("--seed", type=int, default=0, help="of the weights, the test and the batches (0)")
    options = parser.parse_args()
    torch.set_num_threads(1)  # layers as small as these gain nothing from more, and lose much on a busy machine
    torch.manual_seed(options.seed)
    learnt, tested = digits()
    network = lenet()
    optimizer = torch.optim.SGD(network.parameters(), LEARNING_RATE, MOMENTUM)
    with Client() as client:
        way = way_of(options.by, network, client)
        for epoch in range(1, options.epochs + 1):
            began = time.perf_counter()
            losses = list(steps(way, optimizer, learnt))
            took, loss = time.perf_counter() - began, sum(losses) / len(losses)
            print(f"epoch {epoch:2}, loss {loss:.4f}, accuracy {accuracy(way, tested):.4f}, {took:.2f} s")


if __name__ == "__main__":
    main()
