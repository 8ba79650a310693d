"""ResNet-18 on a picture, here and with its twenty convolutions computed by a server: how far the two are apart, what
each layer sees of the picture, and what it costs.

    python examples/resnet18.py [--size SIZE] [--seed SEED]

The network is that of He, Zhang, Ren, Sun: "Deep Residual Learning for Image Recognition" (arXiv 1512.03385), with
random weights: its thousand logits mean nothing. Exits with 1 if the two are further apart than float32's roundings
explain. Needs `pip install 'convolver[pictures,server,torch]'`; CONVOLVER_ADDRESS names a server that runs already.
"""

from __future__ import annotations

import argparse
import copy
import math
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from convolver.client import Client
from convolver.client.torch import describe, to_remote

PICTURE = Path(__file__).with_name("astronaut.png")
MEAN = np.array([0.485, 0.456, 0.406], np.float32)  # of ImageNet's red, green and blue
DEVIATION = np.array([0.229, 0.224, 0.225], np.float32)
UNIT_ROUNDOFF = 2.0**-24  # of float32
OTHER_ROUNDINGS = 8  # beside a sum's products: its bias, what a normalisation does to it, the shortcut's addition
DEVIATIONS = 6.0


class Block(nn.Module):
    """Two convolutions and a shortcut around them."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, images: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, outputs, H/stride, W/stride)."""
        hidden = functional.relu(self.bn1(self.conv1(images)))
        return functional.relu(self.bn2(self.conv2(hidden)) + self.shortcut(images))


class ResNet18(nn.Module):
    """(N, 3, H, W) to the logits of a thousand classes; with He's initialisation, ready for inference."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = nn.Sequential(Block(64, 64, 1), Block(64, 64, 1))
        self.layer2 = nn.Sequential(Block(64, 128, 2), Block(128, 128, 1))
        self.layer3 = nn.Sequential(Block(128, 256, 2), Block(256, 256, 1))
        self.layer4 = nn.Sequential(Block(256, 512, 2), Block(512, 512, 1))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(512, 1000)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self.requires_grad_(requires_grad=False).eval()

    def forward(self, images: Tensor) -> Tensor:
        """The logits, (N, 1000)."""
        hidden = self.maxpool(functional.relu(self.bn1(self.conv1(images))))
        hidden = self.layer4(self.layer3(self.layer2(self.layer1(hidden))))
        logits: Tensor = self.fc(self.avgpool(hidden).flatten(1))
        return logits


def picture(size: int) -> Tensor:
    """(1, 3, size, size), normalised as ImageNet's pictures are."""
    with Image.open(PICTURE) as image:
        values = np.asarray(image.convert("RGB").resize((size, size)), np.float32) / 255
    return torch.from_numpy((values - MEAN) / DEVIATION).permute(2, 0, 1)[None]


def main_path(network: ResNet18) -> dict[str, nn.Module]:
    """The convolutions and pooling around which the shortcuts lead, in the order in which they run."""
    layers = {name: module for name, module in network.named_modules() if isinstance(module, nn.Conv2d | nn.MaxPool2d)}
    return {name: layer for name, layer in layers.items() if "shortcut" not in name}


def show(client: Client, network: ResNet18, shape: tuple[int, ...]) -> None:
    """A line for each layer of the main path, and the totals of the whole network."""
    path = main_path(network)
    plan = client.stack(describe(nn.Sequential(*path.values()))).plan(shape)
    print(f"{'main path':14} {'output':>13} {'MMACs':>6}  receptive field: size, jump, start")
    for i, (name, layer, (_, field)) in enumerate(zip(path, plan.layers, plan.receptive_fields, strict=True)):
        output = "x".join(map(str, layer.output.shape[1:]))
        size, jump, start = field.doubles
        print(f"{name:14} {output:>13} {plan.macs_of(i) / 1e6:6.1f} {size:21.0f} {jump:5.0f} {start:6.1f}")
    inputs = {name: layer.input.shape for name, layer in zip(path, plan.layers, strict=True)}
    macs = plan.macs + client.plan((1, 512, 1, 1), (1000, 512, 1, 1)).macs  # fc, which is a 1x1 convolution
    for name, block in network.named_modules():
        if isinstance(block, Block) and block.shortcut:
            shortcut = describe(block.shortcut)  # sees what the block's first convolution sees
            macs += client.stack(shortcut).plan(inputs[f"{name}.conv1"]).macs
    parameters = sum(parameter.numel() for parameter in network.parameters())
    print(f"{parameters:,} parameters, {macs:,} multiply-accumulates with shortcuts and fc")


def on_magnitudes(module: nn.Module) -> nn.Module:
    """A linear layer whose weights, bias and means are their absolute values: given such, it sums instead of cancel."""
    twin = copy.deepcopy(module)
    for parameter in twin.parameters():
        parameter.abs_()
    if isinstance(twin, nn.BatchNorm2d) and twin.running_mean is not None:
        twin.running_mean.abs_().neg_()  # it is subtracted
    return twin


def rounding_deviation(exact: ResNet18, images: Tensor, index: int) -> float:
    """The standard deviation, at most, of what float32's roundings do to one logit; `exact` and `images` are float64.

    Each sum of K products makes K roundings and a few more, none above UNIT_ROUNDOFF times the sum of magnitudes. As
    independent errors without bias they add in squares (Higham and Mary: "A New Approach to Probabilistic Rounding
    Error Analysis", SIAM J. Sci. Comput. 41, 2019), each times the logit's derivative with respect to its sum.
    """
    outputs: list[Tensor] = []
    variances: list[Tensor] = []
    watched = copy.deepcopy(exact)

    def watch(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        weight = getattr(module, "weight", None)
        terms = inputs[0][0, 0].numel() if weight is None else weight[0].numel()
        sums = twins[module](inputs[0].detach().abs())
        outputs.append(output)
        variances.append((terms + OTHER_ROUNDINGS) * (UNIT_ROUNDOFF * sums).square())

    linear = (nn.Conv2d, nn.BatchNorm2d, nn.AdaptiveAvgPool2d, nn.Linear)
    twins: dict[nn.Module, nn.Module] = {
        module: on_magnitudes(module) for module in watched.modules() if isinstance(module, linear)
    }
    for module in twins:
        module.register_forward_hook(watch)
    logit = watched(images.clone().requires_grad_())[0, index]
    derivatives = torch.autograd.grad(logit, outputs)
    return math.sqrt(sum((d.square() * v).sum().item() for d, v in zip(derivatives, variances, strict=True)))


def compare(local: ResNet18, remote: ResNet18, images: Tensor) -> bool:
    """Whether the two networks' logits agree; prints their differences, and how large these may be."""
    exact, wide = copy.deepcopy(local).double(), images.double()
    here, there, truth = local(images), remote(images), exact(wide)
    difference = (here - there).abs().max().item()
    deviation = rounding_deviation(exact, wide, int((here - there).abs().argmax()))
    tolerance = DEVIATIONS * 2**0.5 * deviation  # both have rounded; Hoeffding: one in 3e7 is beyond six deviations
    print(f"logits up to {truth.abs().max():.3f}; the largest error of float32 here {(here - truth).abs().max():.1e},")
    print(f"by the service {(there - truth).abs().max():.1e}, both against float64")
    agrees: bool = difference <= tolerance
    print(f"largest difference {difference:.1e}, tolerance {tolerance:.1e}: {'agrees' if agrees else 'DIFFERS'}")
    return agrees


def main() -> None:
    """Run the network both ways."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=224, help="of the picture, in pixels (224)")
    parser.add_argument("--seed", type=int, default=0, help="of the weights (0)")
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    network, images = ResNet18(), picture(options.size)
    with Client() as client:
        show(client, network, tuple(images.shape))
        agrees = compare(network, to_remote(copy.deepcopy(network), client), images)
    sys.exit(0 if agrees else 1)


if __name__ == "__main__":
    main()
