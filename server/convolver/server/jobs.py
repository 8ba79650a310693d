"""What a request's header says about its tensors: where their bytes will be found, and which layers are the store's."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING

from convolver.core import codec
from convolver.core.digest import checked_digest
from convolver.core.errors import InvalidConvolution, shown
from convolver.core.plan import Plan
from convolver.core.tensors import Sourced
from convolver.core.wire import split
from convolver.server.messages import read, refuse_unknown
from convolver.v1 import convolution_pb2 as pb
from convolver.v1 import tensor_pb2

if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Sequence

    from convolver.core.stack_plan import StackPlan

_IN_ORDER = tensor_pb2.TensorSource()
"""Of all tensors whose place in the order says where they are."""

_LAYERS, _DEFINITION = 1, 1
"""The fields' numbers, in Convolution and in Layer."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where a convolution's weights come from: the store, by `digest`; or the request's tensors `weight` and `bias`
    (empty where there is none), which the store is given with `kept`, the definition as it was sent, unless that is
    empty.
    """

    digest: str = ""
    weight: str = ""
    bias: str = ""
    kept: bytes = b""


@dataclass(frozen=True, slots=True)
class Job:
    """One accepted request: what will run, where its tensors' bytes will be found, for each of its layers the source of
    its weights, None for pooling, and where in shared memory its outputs go, if they do.
    """

    plan: Plan | StackPlan
    tensors: dict[str, Sourced]
    sources: tuple[Source | None, ...]
    output_regions: tuple[tensor_pb2.SharedRegion, ...] = ()

    @property
    def uses_regions(self) -> bool:
        """Whether a tensor is in shared memory."""
        return bool(self.output_regions) or any(source.HasField("region") for _, source in self.tensors.values())

    @property
    def unneeded(self) -> Container[str]:
        """Tensors whose values make no difference, be it to what is kept."""
        if not isinstance(self.plan, Plan) or self.plan.wanted is None:
            return ()
        wanted = self.plan.wanted
        needed = {"weight": wanted.input, "input": wanted.weight, "bias": False}
        kept = {name for source in self.sources if source and source.kept for name in (source.weight, source.bias)}
        return {name for name, is_needed in needed.items() if not is_needed} - kept


def layer_count(raw: bytes) -> int:
    """How many layers a serialised Convolution has. Raises as `split`."""
    _, layers = split(raw, _LAYERS)
    return len(layers)


def read_convolution(raw: bytes) -> pb.Convolution:
    """The message, with nothing in it that is unknown. Raises InvalidConvolution or Unsupported."""
    convolution = read(pb.Convolution, raw)
    refuse_unknown(convolution, "convolution")
    return convolution


def sources_of(convolution: pb.Convolution, raw: bytes) -> tuple[Source | None, ...]:
    """For each layer the source of its weights. Raises InvalidConvolution for what is no digest, and for `keep` where
    it has no meaning.
    """
    sent: Sequence[memoryview] = ()
    if any(layer.keep for layer in convolution.layers):
        _, sent = split(raw, _LAYERS)
    alone = len(convolution.layers) == 1
    return tuple(_source(i, layer, sent, alone=alone) for i, layer in enumerate(convolution.layers))


def _source(i: int, layer: pb.Layer, sent: Sequence[memoryview], *, alone: bool) -> Source | None:
    kind = layer.WhichOneof("kind")
    if layer.keep and kind in ("pooling", "digest"):
        raise InvalidConvolution(
            f"layers[{i}] asks to keep a {kind}, but definitions alone are kept", f"layers[{i}].keep"
        )
    if kind != "definition":
        _refuse_sources(i, layer)
    if kind in ("pooling", None):  # what is of no kind is refused with its plan
        return None
    if kind == "digest":
        return Source(checked_digest(layer.digest, f"layers[{i}].digest"))
    prefix = "" if alone else f"layers[{i}]."
    bias = f"{prefix}bias" if layer.definition.HasField("bias") else ""
    return Source("", f"{prefix}weight", bias, _as_sent(i, sent[i]) if layer.keep else b"")


def _refuse_sources(i: int, layer: pb.Layer) -> None:
    """Raises InvalidConvolution for sources of weights that a layer does not bring."""
    for name in ("weight_source", "bias_source"):
        if layer.HasField(name):
            field = f"layers[{i}].{name}"
            raise InvalidConvolution(f"{field} is given, but the layer has no definition", field)


def _as_sent(i: int, layer: memoryview) -> bytes:
    """The one definition of a layer, whose digest is of the bytes that came."""
    _, definitions = split(layer, _DEFINITION)
    if len(definitions) != 1:
        text = f"layers[{i}].definition is sent {len(definitions)} times, and only a single one is kept"
        raise InvalidConvolution(text, f"layers[{i}].definition")
    return bytes(definitions[0])


def tensors_of(convolution: pb.Convolution, sources: Sequence[Source | None]) -> dict[str, Sourced]:
    """The tensors of a request by their names, in the order of tensors."""
    return {
        name: Sourced(codec.tensor_from_proto(header, name), _alone(source))
        for name, header, source in _each(convolution, sources)
    }


def _alone(source: tensor_pb2.TensorSource) -> tensor_pb2.TensorSource:
    """The source without the request around it, all of whose memory a part of it keeps: jobs are remembered."""
    return _IN_ORDER if source.WhichOneof("source") is None else deepcopy(source)


def _each(
    convolution: pb.Convolution, sources: Sequence[Source | None]
) -> Iterator[tuple[str, tensor_pb2.Tensor, tensor_pb2.TensorSource]]:
    for layer, source in zip(convolution.layers, sources, strict=True):
        if source and source.weight:
            yield source.weight, layer.definition.weight, layer.weight_source
        if source and source.bias:
            yield source.bias, layer.definition.bias, layer.bias_source
    yield "input", convolution.input, convolution.input_source
    if convolution.HasField("gradients"):
        yield "grad_output", convolution.gradients.grad_output, convolution.gradients.grad_output_source


def output_regions_of(
    convolution: pb.Convolution, outputs: Sequence[str], tensors: dict[str, Sourced]
) -> tuple[tensor_pb2.SharedRegion, ...]:
    """Where the outputs go. Raises InvalidConvolution unless there is a region for each or none at all, and where one
    would be written over what is read, or over another.
    """
    regions = convolution.output_regions
    if regions and len(regions) != len(outputs):
        text = f"output_regions has {len(regions)} entries, but the answer has {len(outputs)} tensors"
        raise InvalidConvolution(text, "output_regions")
    if regions:
        read_ = {name: given.source.region for name, given in tensors.items() if given.source.HasField("region")}
        _refuse_overlaps(read_, {f"output_regions[{i}]": region for i, region in enumerate(regions)})
    return tuple(map(deepcopy, regions))  # as in _alone


def _refuse_overlaps(read_: dict[str, tensor_pb2.SharedRegion], written: dict[str, tensor_pb2.SharedRegion]) -> None:
    parts = sorted({**read_, **written}.items(), key=lambda part: (part[1].id, part[1].offset))
    furthest: dict[bool, tuple[str, tensor_pb2.SharedRegion]] = {}  # of what is written, and of what is read
    for name, region in parts:
        is_written = name in written
        for is_other_written, (other, before) in furthest.items():
            overlap = before.id == region.id and _end(before) > region.offset
            if overlap and region.length and (is_written or is_other_written):
                field = name if is_written else other
                raise InvalidConvolution(f"{name} overlaps {other} in the region {shown(region.id)}", field)
        known = furthest.get(is_written)
        if known is None or known[1].id != region.id or _end(region) > _end(known[1]):
            furthest[is_written] = name, region


def _end(region: tensor_pb2.SharedRegion) -> int:
    return region.offset + region.length
