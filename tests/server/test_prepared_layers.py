"""What back ends make of layers stays with them, and the store's books stay in order among many threads."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
from tests.server.layer_stores import ROOM, filled, form, gauge, held

from convolver.core.backends import Prepared
from convolver.core.errors import UnknownLayer
from convolver.server.layers import MOST_FORMS, LayerStore

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def test_a_prepared_form_is_made_once_and_counted() -> None:
    store = LayerStore(10**6)
    (layer,) = filled(store, 1)
    assert layer.prepared(("torch", 3), form(1, 500)).weight == 1
    assert layer.prepared(("torch", 3), form(2, 500)).weight == 1
    assert layer.prepared(("torch", 4), form(3, 70)).weight == 3
    assert layer.bytes == store.bytes == ROOM + 570


def test_a_prepared_form_makes_room_among_others_but_never_its_own_layer() -> None:
    store = LayerStore(3 * ROOM)
    oldest, *_ = filled(store, 1, 2, 3)
    oldest.prepared("a", form(1, ROOM))
    assert (held(store), store.bytes) == ([3, 1], 3 * ROOM)
    oldest.prepared("b", form(1, 1))
    assert (held(store), store.bytes) == ([1], 2 * ROOM + 1)


def test_a_prepared_form_that_does_not_fit_beside_its_layer_is_made_each_time() -> None:
    store = LayerStore(2 * ROOM)
    layer, _ = filled(store, 1, 2)
    assert [layer.prepared("a", form(number, ROOM + 1)).weight for number in (1, 2)] == [1, 2]
    assert (held(store), store.bytes) == ([2, 1], 2 * ROOM)
    layer.prepared("b", form(3, ROOM))
    assert (held(store), store.bytes) == ([1], 2 * ROOM)


def test_what_a_layer_had_prepared_leaves_with_it() -> None:
    store = LayerStore(3 * ROOM)
    layer, _ = filled(store, 1, 2)
    layer.prepared("a", form(1, ROOM))
    filled(store, 3)
    assert (held(store), store.bytes) == ([3, 2], 2 * ROOM)


def test_a_layer_keeps_the_forms_used_last() -> None:
    store = LayerStore(10**6)
    (layer,) = filled(store, 1)
    for key in range(MOST_FORMS):
        layer.prepared(key, form(key, 100))
    layer.prepared(0, form(-1, 100))
    layer.prepared("one more", form(-1, 100))
    assert layer.bytes == store.bytes == ROOM + 100 * MOST_FORMS
    assert layer.prepared(0, form(-1, 100)).weight == 0
    assert layer.prepared(1, form(-2, 100)).weight == -2


def test_a_form_that_cannot_be_made_leaves_nothing() -> None:
    def failing() -> tuple[Prepared, int]:
        raise MemoryError

    store = LayerStore(10**6)
    (layer,) = filled(store, 1)
    with pytest.raises(MemoryError):
        layer.prepared("a", failing)
    assert store.bytes == ROOM
    assert layer.prepared("a", form(1, 0)).weight == 1


def test_two_threads_may_make_a_form_at_once_and_both_get_the_first() -> None:
    store, both = LayerStore(10**6), threading.Barrier(2)
    (layer,) = filled(store, 1)

    def prepare(number: int) -> object:
        def make() -> tuple[Prepared, int]:
            both.wait(30)
            return Prepared(number, None), 100

        return layer.prepared("a", make).weight

    with ThreadPoolExecutor(2) as threads:
        first, second = threads.map(prepare, (1, 2))
    assert first == second
    assert layer.bytes == store.bytes == ROOM + 100


def test_two_threads_may_put_a_layer_at_once_and_both_get_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    store, both = LayerStore(10**6), threading.Barrier(2)

    def copied(array: NDArray[np.float32]) -> NDArray[np.float32]:
        both.wait(30)  # neither has found the other's
        return array.copy()

    monkeypatch.setattr("convolver.server.layers._owned", copied)
    with ThreadPoolExecutor(2) as threads:
        first, second = threads.map(lambda _: filled(store, 1)[0], range(2))
    assert first is second
    assert (store.count, store.bytes) == (1, ROOM)


def hammer(store: LayerStore, seed: int) -> None:
    """Everything that a store can do, in an order of its own."""
    random = Random(seed)
    for _ in range(400):
        number = random.randrange(12)
        (layer,) = filled(store, number)
        assert layer.weight.flat[0] == number
        size = random.randrange(3 * ROOM)
        assert layer.prepared(random.randrange(30), form(number, size)).weight == number
        try:
            random.choice([store.get, store.delete, store.find])(random.choice(store.layers() or [layer]).digest)
        except UnknownLayer:  # another thread was faster
            continue


def test_many_threads_leave_the_books_in_order() -> None:
    store = LayerStore(6 * ROOM)
    with ThreadPoolExecutor(8) as threads:
        for done in [threads.submit(hammer, store, seed) for seed in range(8)]:
            done.result(60)
    layers = store.layers()
    assert store.bytes == sum(layer.bytes for layer in layers) <= 6 * ROOM
    assert all(layer.bytes == ROOM + sum(form.bytes for form in layer.forms.values()) for layer in layers)
    assert [layer.use for layer in layers] == sorted((layer.use for layer in layers), reverse=True)
    assert (gauge("convolver_layers"), gauge("convolver_layer_bytes")) == (len(layers), store.bytes)


def test_nothing_waits_for_a_layer_that_is_being_prepared() -> None:
    store, inside, finish = LayerStore(10**6), threading.Event(), threading.Event()
    (layer,) = filled(store, 1)

    def slow() -> tuple[Prepared, int]:
        inside.set()
        assert finish.wait(30)
        return Prepared(None, None), 0

    with ThreadPoolExecutor(1) as thread:
        prepared: Any = thread.submit(layer.prepared, "a", slow)
        assert inside.wait(30)
        assert store.get(layer.digest) is layer
        filled(store, 2)
        store.delete(layer.digest)
        assert not prepared.done()
        finish.set()
        prepared.result(30)
