"""The layers of a stack as callers write them: convolutions with their weights, or with the shapes of those, and
pooling.
"""

from __future__ import annotations

import difflib
from dataclasses import KW_ONLY, dataclass, fields
from typing import TYPE_CHECKING, Any, cast

from convolver.client._interchange import AnyArray
from convolver.core.errors import InvalidConvolution
from convolver.core.parameters import LayerParameters
from convolver.core.pooling import PoolingKind, PoolingParameters
from convolver.core.values import number, word

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from typing_extensions import Unpack

    from convolver.core.parameters import Sizes


class StackLayer:
    """What a stack is made of: `Conv`, `Pool`, and the layers of a client, whose weights stay. The type of a list of
    them.
    """

    __slots__ = ()


@dataclass(frozen=True, init=False, eq=False, repr=False, slots=True)
class Conv(StackLayer):
    """A convolution of a stack: `weight` (O, C/groups, *K), transposed (C, O/groups, *K), `bias` (O,), as for
    `Client.convolve`, and the parameters of `LayerParameters`. Nothing of them is copied, and no value is read.

    In place of the weight its shape will do, a tuple; `bias` then says whether there is one. Such a layer can be
    planned, not run.

    Raises InvalidConvolution where a weight or bias is neither, or for a parameter that no layer has. All else is
    checked with the whole stack.
    """

    weight: AnyArray
    bias: AnyArray
    _parameters: LayerParameters

    def __init__(
        self,
        weight: AnyArray | tuple[int, ...],
        bias: AnyArray | bool | None = None,  # noqa: FBT001 - the bias itself, or whether there is one
        **parameters: Unpack[LayerParameters],
    ) -> None:
        check_names(parameters, LayerParameters.__annotations__)
        if isinstance(weight, tuple):
            weight, bias = _shape(weight), _presence(bias)
        else:
            weight, bias = _array(weight, "weight"), None if bias is None else _array(bias, "bias")
        for name, value in (("weight", weight), ("bias", bias), ("_parameters", parameters)):
            object.__setattr__(self, name, value)

    @property
    def parameters(self) -> LayerParameters:
        """Those that were given, a copy: to change it changes no layer."""
        return self._parameters.copy()

    @property
    def is_shape(self) -> bool:
        """Whether the weight is a shape alone."""
        return isinstance(self.weight, tuple)

    def __repr__(self) -> str:
        bias = {} if self.bias is None or self.bias is False else {"bias": _brief(self.bias)}
        return _written("Conv", {"weight": _brief(self.weight), **bias}, self.parameters)


@dataclass(frozen=True, repr=False, slots=True)
class Pool(StackLayer):
    """A pooling of a stack, `kind` being "max", "average" or "adaptive_average", as torch's max_pool, avg_pool and
    adaptive_avg_pool. An int stands for the same number in every spatial dimension; `stride` is by default the kernel.

    Raises InvalidConvolution for another kind. All else is checked with the whole stack.
    """

    kind: PoolingKind
    kernel: Sizes | None = None
    _: KW_ONLY
    stride: Sizes | None = None
    padding: Sizes | None = None
    dilation: Sizes | None = None
    output_size: Sizes | None = None

    def __post_init__(self) -> None:
        word({"kind": self.kind}, "kind", PoolingKind, None)

    @property
    def parameters(self) -> PoolingParameters:
        """As `parse_pooling` takes them; those that were not given are left out."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        return cast("PoolingParameters", {name: value for name, value in given.items() if value is not None})

    def __repr__(self) -> str:
        return _written("Pool", {}, self.parameters)


def check_names(given: Iterable[str], known: Collection[str]) -> None:
    """Raises InvalidConvolution for a word that is not known, with the nearest ones."""
    for name in given:
        if name not in known:
            raise InvalidConvolution(f"{name:.80} is not known{near(name, known)}", f"{name:.80}")


def near(name: str, known: Collection[str]) -> str:
    """How a message about an unknown name ends: with the known ones that are like it, or with all."""
    like = difflib.get_close_matches(name[:80], known, n=2, cutoff=0.5)
    return f"; did you mean {' or '.join(like)}?" if like else f"; there are {', '.join(known):.400}"


def _shape(weight: tuple[Any, ...]) -> tuple[int, ...]:
    return tuple(number(size, f"weight.shape[{i}]", low=0) for i, size in enumerate(weight))


def _presence(bias: object) -> bool:
    if bias is not None and not isinstance(bias, bool):
        kind = type(bias).__name__
        raise InvalidConvolution(f"bias is a {kind}; beside a weight's shape it must be True or False", "bias")
    return bool(bias)


def _array(value: AnyArray, field: str) -> AnyArray:
    """The value itself. Lists are no arrays: a shape in brackets would pass for a weight."""
    if not any(hasattr(value, name) for name in ("__array__", "__dlpack__", "__array_interface__")):
        also = ", or a shape, which is a tuple" if field == "weight" else "; True and False go with a weight's shape"
        raise InvalidConvolution(f"{field} is a {type(value).__name__}; it must be an array{also}", field)
    return value


def _brief(value: object) -> str:
    """A shape or flag as it is; of an array its dtype and shape."""
    if isinstance(value, tuple | bool):
        return repr(value)
    dtype, shape = getattr(value, "dtype", None), getattr(value, "shape", None)
    if dtype is None or shape is None:
        return type(value).__name__
    return f"{str(dtype).removeprefix('torch.')} {tuple(shape)}"


def _written(name: str, first: dict[str, str], parameters: Any) -> str:  # noqa: ANN401 - a TypedDict, which no Mapping type takes
    words = [f"{key}={value}" for key, value in first.items()]
    return f"{name}({', '.join(words + [f'{key}={value!r}' for key, value in parameters.items()])})"
