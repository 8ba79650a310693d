"""The store of layers: digests, the order of use, the budget."""

from __future__ import annotations

import hashlib
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.server.layer_stores import DEFINITION, ROOM, definition, filled, form, gauge, held, weight

from convolver.core.digest import checked_digest, digest_of
from convolver.core.errors import InvalidConvolution, LimitExceeded, Overloaded, UnknownLayer
from convolver.server.layers import LayerStore
from convolver.server.settings import Bytes, Settings

ABSENT = f"sha256:{'0' * 64}"


@given(st.binary(max_size=300), st.binary(max_size=100), st.none() | st.binary(max_size=100))
def test_the_digest_is_what_the_contract_says(header: bytes, weight: bytes, bias: bytes | None) -> None:
    length = bytes([len(header) % 256, len(header) // 256, 0, 0, 0, 0, 0, 0])
    expected = hashlib.sha256(length + header + weight + (bias or b"")).hexdigest()
    assert digest_of(header, weight, bias) == f"sha256:{expected}"


def test_a_layer_of_known_bytes_has_the_digest_that_other_tools_compute() -> None:
    """printf '\\1\\0\\0\\0\\0\\0\\0\\0dwb' | sha256sum."""
    expected = "4023ed18d7f2a14263e33be3fed0cf4e62b2a16efacebb0328910c94293681f9"
    assert digest_of(b"d", b"w", b"b") == f"sha256:{expected}"


@pytest.mark.parametrize("shape", [(1, 1, 250), (2, 1, 5, 25)])
def test_a_layer_that_was_put_has_its_digest_and_its_arrays(shape: tuple[int, ...]) -> None:
    store, header = LayerStore(10**6), definition(*shape, bias=shape[0])
    w, b = np.arange(250, dtype=np.float32).reshape(shape), np.ones(shape[0], np.float32)
    layer = store.put(header, w, b)
    length = len(header).to_bytes(8, "little")
    assert layer.digest == f"sha256:{hashlib.sha256(length + header + w.tobytes() + b.tobytes()).hexdigest()}"
    assert (layer.definition, layer.header.SerializeToString()) == (header, header)
    np.testing.assert_array_equal(layer.weight, w)
    assert layer.bias is not None
    np.testing.assert_array_equal(layer.bias, b)
    assert layer.bytes == store.bytes == len(header) + w.nbytes + b.nbytes
    assert store.get(layer.digest) is layer


def test_the_arrays_are_read_only_and_own_their_memory() -> None:
    message = bytearray(weight(7).tobytes() + np.ones(1, np.float32).tobytes())
    w, b = np.frombuffer(message, np.float32, 250).reshape(1, 1, 250), np.frombuffer(message, np.float32, 1, 1000)
    layer = LayerStore(10**6).put(definition(1, 1, 250, bias=1), w, b)
    message[:] = bytes(len(message))
    assert layer.bias is not None
    assert (layer.weight.flat[0], layer.bias[0]) == (7, 1)
    for array in (layer.weight, layer.bias):
        assert (array.flags.owndata, array.flags.writeable, array.flags.c_contiguous) == (True, False, True)


def test_a_strided_weight_is_hashed_and_held_in_the_contracts_order() -> None:
    store, strided = LayerStore(10**6), np.arange(250, dtype=np.float32)[::-1].reshape(1, 1, 250)
    assert store.put(DEFINITION, strided, None) is store.put(DEFINITION, strided.copy(), None)


@pytest.mark.parametrize(
    "digest",
    [
        "",
        "sha256:",
        "0" * 64,
        ABSENT[:-1],
        f"{ABSENT}0",
        f"{ABSENT}\n",
        ABSENT.replace("256", "512"),
        ABSENT.replace("0", "g"),
        ABSENT.replace("0", "\N{FULLWIDTH DIGIT ZERO}"),
        "x" * 10_000,
    ],
    ids=lambda digest: repr(digest[:20]),
)
def test_what_is_no_digest_is_refused_by_its_field(digest: str) -> None:
    store = LayerStore(1000)
    for call in (store.get, store.find, store.delete):
        with pytest.raises(InvalidConvolution, match="64 hexadecimal digits") as caught:
            call(digest)
        assert caught.value.field == "digest"
        assert len(caught.value.message) < 200


def test_a_digest_may_be_written_in_capitals() -> None:
    store = LayerStore(10**6)
    (layer,) = filled(store, 1)
    assert store.get(f"sha256:{layer.digest[7:].upper()}") is layer
    assert checked_digest(f"sha256:{'A' * 64}") == f"sha256:{'a' * 64}"


def test_a_digest_that_is_not_held_is_unknown() -> None:
    store = LayerStore(1000)
    for call in (store.get, store.find, store.delete):
        with pytest.raises(UnknownLayer, match=ABSENT) as caught:
            call(ABSENT)
        assert caught.value.digest == ABSENT


def test_layers_are_listed_by_their_last_use() -> None:
    store = LayerStore(10**6)
    layers = filled(store, 1, 2, 3)
    assert held(store) == [3, 2, 1]
    store.get(layers[0].digest)
    assert held(store) == [1, 3, 2]
    filled(store, 2)
    assert held(store) == [2, 1, 3]
    store.find(layers[2].digest)
    store.layers()
    assert held(store) == [2, 1, 3]


def test_the_same_layer_put_twice_is_one() -> None:
    store = LayerStore(10**6)
    first, second = filled(store, 1, 1)
    assert first is second
    assert (store.count, store.bytes) == (1, ROOM)


def test_what_does_not_fit_evicts_the_least_recently_used() -> None:
    store = LayerStore(3 * ROOM)
    layers = filled(store, 1, 2, 3)
    store.get(layers[0].digest)
    filled(store, 4)
    assert (held(store), store.bytes) == ([4, 1, 3], 3 * ROOM)
    with pytest.raises(UnknownLayer):
        store.get(layers[1].digest)


def test_a_large_layer_evicts_as_many_as_it_needs_and_no_more() -> None:
    store = LayerStore(4 * ROOM)
    filled(store, 1, 2, 3, 4)
    store.put(definition(1, 1, 500), weight(5, 500), None)
    assert held(store) == [5, 4, 3]


def test_a_layer_larger_than_the_store_is_refused_and_evicts_nothing() -> None:
    store = LayerStore(2 * ROOM)
    filled(store, 1, 2)
    with pytest.raises(LimitExceeded, match="--layer-budget") as caught:
        store.put(definition(1, 1, 600), weight(3, 600), None)
    error, size = caught.value, 2400 + len(definition(1, 1, 600))
    assert (error.subject, error.limit, error.value) == ("bytes of the layer", 2 * ROOM, size)
    assert error.setting == "--layer-budget"
    assert held(store) == [2, 1]


def test_the_size_alone_can_be_checked_to_the_byte() -> None:
    store = LayerStore(1000)
    store.check(1000)
    with pytest.raises(LimitExceeded):
        store.check(1001)


def test_there_is_a_largest_number_of_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convolver.server.layers.MOST_LAYERS", 3)
    store = LayerStore(10**6)
    filled(store, 1, 2, 3, 4)
    assert held(store) == [4, 3, 2]


def test_a_deleted_layer_is_gone_but_works_for_whoever_has_it() -> None:
    store = LayerStore(10**6)
    (layer,) = filled(store, 1)
    layer.prepared("a", form(1, 10))
    store.delete(layer.digest)
    assert (store.count, store.bytes, store.layers()) == (0, 0, [])
    assert layer.prepared("a", form(2, 10)).weight == 1
    assert layer.prepared("b", form(3, 10)).weight == 3
    assert layer.weight.flat[0] == 1
    assert store.bytes == 0
    with pytest.raises(UnknownLayer):
        store.delete(layer.digest)


def test_a_layer_that_comes_again_owes_nothing_to_the_one_that_was_deleted() -> None:
    store = LayerStore(10**6)
    (old,) = filled(store, 1)
    store.delete(old.digest)
    (new,) = filled(store, 1)
    assert new is not old
    old.prepared("a", form(1, 10))
    assert (new.bytes, store.bytes) == (ROOM, ROOM)
    assert new.prepared("a", form(2, 0)).weight == 2


def test_idle_seconds_count_from_the_last_use(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 11.0, 15.5, 20.0, 22.0])
    monkeypatch.setattr("convolver.server.layers.time.monotonic", lambda: next(clock))
    store = LayerStore(10**6)
    (layer,) = filled(store, 1)  # made at 10, used at 11
    assert layer.idle_seconds == 4.5
    store.get(layer.digest)
    assert layer.idle_seconds == 2.0


def test_the_metrics_follow_the_store() -> None:
    store, evicted = LayerStore(2 * ROOM), gauge("convolver_layers_evicted_total") or 0
    layers = filled(store, 1, 2, 3)
    assert (gauge("convolver_layers"), gauge("convolver_layer_bytes")) == (2, 2 * ROOM)
    assert gauge("convolver_layers_evicted_total") == evicted + 1
    store.delete(layers[1].digest)
    assert (gauge("convolver_layers"), gauge("convolver_layer_bytes")) == (1, ROOM)
    layers[2].prepared("a", form(1, 10))
    assert (gauge("convolver_layers"), gauge("convolver_layer_bytes")) == (1, ROOM + 10)
    assert gauge("convolver_layers_evicted_total") == evicted + 1


def test_the_text_of_a_refusal_names_both_numbers() -> None:
    with pytest.raises(LimitExceeded, match=re.escape("the layer takes 1001 bytes, above this server's limit of 1000")):
        LayerStore(1000).check(1001)


@pytest.mark.parametrize(("budget", "quarter"), [(2**30, 2**28), (1000, 250), (1, 1)])
def test_the_store_gets_a_quarter_of_the_memory_budget_unless_told_otherwise(budget: int, quarter: int) -> None:
    assert Settings(memory_budget=Bytes(budget)).layer_budget == quarter
    assert Settings(memory_budget=Bytes(budget), layer_budget=Bytes(77)).layer_budget == 77


def test_layers_that_are_being_received_are_counted_until_they_are_released() -> None:
    store = LayerStore(1000)
    store.reserve(600)
    with pytest.raises(Overloaded, match=r"600 bytes are being received, and one of 500 ") as refusal:
        store.reserve(500)
    assert refusal.value.retry_after > 0
    store.reserve(400)
    store.release(600)
    store.reserve(500)
    with pytest.raises(LimitExceeded, match="--layer-budget"):
        store.reserve(1001)
