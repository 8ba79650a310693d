"""The layers that stay: weights and what back ends made of them, by their digest, within a budget of bytes."""

from __future__ import annotations

import itertools
import threading
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from convolver.core.digest import checked_digest, digest_of
from convolver.core.errors import LimitExceeded, Overloaded, UnknownLayer
from convolver.core.tensors import to_bytes
from convolver.server import metrics
from convolver.v1 import convolution_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from convolver.core.backends import Array, Prepared

MOST_LAYERS = 65_536
"""Of one store: each costs 1.4 KB of objects, which the budget does not count."""

MOST_FORMS = 16
"""Prepared forms of one layer: a caller whose inputs have ever new sizes must not fill the store with spectra."""


class Form(NamedTuple):
    """What a back end made of a layer, and the bytes that it takes beside the layer's own."""

    prepared: Prepared
    bytes: int


class HeldLayer:
    """A layer. Whoever has it may use it, be it that the store has let go of it meanwhile.

    Attributes:
        digest: "sha256:" and 64 hexadecimal digits.
        definition: the serialised LayerDefinition as it was sent; `header` is the same, parsed.
        weight: read-only, as `bias` is, and in memory of its own.
        bias: None where the definition has none.
        forms: prepared forms, the latest used last; the store's affair.
        bytes: of all of these.
        use: grows from each use of any layer of the store to the next.
        used: when that was, in seconds of time.monotonic.
    """

    def __init__(self, store: LayerStore, digest: str, definition: bytes, weight: Array, bias: Array | None) -> None:
        self.digest, self.definition = digest, definition
        self.header = pb.LayerDefinition.FromString(definition)
        self.weight, self.bias = weight, bias
        self.forms: OrderedDict[Hashable, Form] = OrderedDict()
        self.bytes = _size(definition, weight, bias)
        self.use, self.used = 0, time.monotonic()
        self._store = store

    @property
    def idle_seconds(self) -> float:
        """Seconds since its last use."""
        return time.monotonic() - self.used

    def prepared(self, key: Hashable, make: Callable[[], tuple[Prepared, int]]) -> Prepared:
        """What `make` makes of the layer, kept under `key` where the bytes that it names too fit the store beside the
        layer. Threads that want it at once may each make it; all are given the same one if it is kept.
        """
        return self._store.prepared(self, key, make)


class LayerStore:
    """Layers by their digest, within `budget` bytes. What does not fit evicts the least recently used.

    For any thread: the lock is held for bookkeeping alone, so that the event loop never waits for a copy or a hash.

    Attributes:
        bytes: of all layers, prepared forms included.
    """

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._lock = threading.Lock()
        self._held: OrderedDict[str, HeldLayer] = OrderedDict()  # the latest used last
        self._uses = itertools.count(1)
        self.bytes = self._coming = 0
        self._show()

    @property
    def count(self) -> int:
        """Layers held."""
        return len(self._held)

    def layers(self) -> list[HeldLayer]:
        """All of them, the latest used first."""
        return [layer for _, layer in self.by_use()]

    def by_use(self) -> list[tuple[int, HeldLayer]]:
        """All of them with their `use` at one moment, the latest used first."""
        with self._lock:
            return [(layer.use, layer) for layer in reversed(self._held.values())]

    def get(self, digest: str) -> HeldLayer:
        """The layer, which is thereby used. Raises UnknownLayer, and InvalidConvolution for what is no digest."""
        with self._lock:
            return self._use(self._found(digest))

    def find(self, digest: str) -> HeldLayer:
        """The layer, as `get`, but not used."""
        with self._lock:
            return self._found(digest)

    def check(self, size: int, what: str = "the layer") -> None:
        """Raises LimitExceeded where a layer of so many bytes, definition included, is larger than the store."""
        if size > self._budget:
            setting = "--layer-budget"
            text = f"{what} takes {size} bytes, above this server's limit of {self._budget} ({setting})"
            raise LimitExceeded(text, "bytes of the layer", self._budget, size, setting)

    def reserve(self, size: int) -> None:
        """Counts the bytes of a layer that is to come, until `release`. Raises as `check`, and Overloaded where such
        layers would take more than the budget once more.
        """
        self.check(size)
        with self._lock:
            if self._coming + size > self._budget:
                text = f"layers of {self._coming} bytes are being received, and one of {size} does not fit beside them"
                raise Overloaded(text, retry_after=1.0)
            self._coming += size

    def release(self, size: int) -> None:
        """Takes back what `reserve` counted."""
        with self._lock:
            self._coming -= size

    def put(self, definition: bytes, weight: Array, bias: Array | None, *, is_private: bool = False) -> HeldLayer:
        """Hashes, copies and holds a layer, or uses the one that is held already.

        `definition` is a serialised LayerDefinition, `weight` and `bias` its tensors, which are not copied where they
        are `is_private`. Raises LimitExceeded, as `check`.
        """
        self.check(_size(definition, weight, bias))
        digest = digest_of(definition, to_bytes(weight), None if bias is None else to_bytes(bias))
        with self._lock:
            if digest in self._held:
                return self._use(self._held[digest])
        if not is_private:
            weight, bias = _owned(weight), None if bias is None else _owned(bias)
        layer = HeldLayer(self, digest, definition, weight, bias)
        with self._lock:
            if digest in self._held:  # another thread was faster
                return self._use(self._held[digest])
            self._held[digest] = layer
            self._grow(layer, layer.bytes)
            return self._use(layer)

    def delete(self, digest: str) -> None:
        """Lets go of the layer. Raises UnknownLayer, and InvalidConvolution for what is no digest."""
        with self._lock:
            self._drop(self._found(digest))
            self._show()

    def prepared(self, layer: HeldLayer, key: Hashable, make: Callable[[], tuple[Prepared, int]]) -> Prepared:
        """What HeldLayer.prepared gives."""
        kept = self._form(layer, key)
        if kept is not None:
            return kept
        form = Form(*make())
        with self._lock:
            if key in layer.forms:  # another thread was faster
                return layer.forms[key].prepared
            if self._held.get(layer.digest) is layer and layer.bytes + form.bytes <= self._budget:
                self._keep(layer, key, form)
        return form.prepared

    def _form(self, layer: HeldLayer, key: Hashable) -> Prepared | None:
        with self._lock:
            if key not in layer.forms:
                return None
            layer.forms.move_to_end(key)
            return layer.forms[key].prepared

    def _keep(self, layer: HeldLayer, key: Hashable, form: Form) -> None:
        oldest = layer.forms.popitem(last=False)[1].bytes if len(layer.forms) == MOST_FORMS else 0
        layer.forms[key] = form
        layer.bytes += form.bytes - oldest
        self._grow(layer, form.bytes - oldest)

    def _found(self, digest: str) -> HeldLayer:
        layer = self._held.get(checked_digest(digest))
        if layer is None:
            raise UnknownLayer(f"{digest} names no layer that this server holds", digest)
        return layer

    def _use(self, layer: HeldLayer) -> HeldLayer:
        self._held.move_to_end(layer.digest)
        layer.use, layer.used = next(self._uses), time.monotonic()
        return layer

    def _grow(self, layer: HeldLayer, size: int) -> None:
        """Counts bytes of a layer that is held, and evicts others until all that stay fit."""
        self.bytes += size
        while self.bytes > self._budget or len(self._held) > MOST_LAYERS:
            self._drop(next(other for other in self._held.values() if other is not layer))
            metrics.LAYERS_EVICTED.inc()
        self._show()

    def _drop(self, layer: HeldLayer) -> None:
        del self._held[layer.digest]
        self.bytes -= layer.bytes

    def _show(self) -> None:
        metrics.LAYERS.set(len(self._held))
        metrics.LAYER_BYTES.set(self.bytes)


def _owned(array: Array) -> Array:
    """A read-only copy: a view would keep the whole message alive that brought it."""
    copy = np.array(array, order="C")
    copy.flags.writeable = False
    return copy


def _size(definition: bytes, weight: Array, bias: Array | None) -> int:
    return len(definition) + weight.nbytes + (0 if bias is None else bias.nbytes)
