"""What of a layer goes with it into a stack, and what is refused rather than left out."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from convolver.client import AsyncClient, Client, Pool
from convolver.core.errors import IntegerOverflow, InvalidConvolution, UnknownLayer

WEIGHT = np.ones((2, 1, 2, 2), np.float32)
X = np.ones((1, 1, 4, 4), np.float32)


@pytest.mark.parametrize(
    "given", [{"output_dtype": "float64"}, {"overflow": "wrap"}, {"backend": "reference"}, {"timeout": 1.0}], ids=str
)
def test_parameters_of_a_layers_calls_are_refused_in_a_stack(client: Client, given: dict[str, Any]) -> None:
    (name,) = given
    with pytest.raises(InvalidConvolution, match=rf"layers\[1\] was made with {name}") as refusal:
        client.stack([Pool("max", 1), client.layer(WEIGHT, **given)])
    assert refusal.value.field == f"layers[1].{name}"

    async def asynchronous() -> None:
        async with AsyncClient(client.address) as other:
            with pytest.raises(InvalidConvolution) as again:
                other.stack([Pool("max", 1), other.layer(WEIGHT, **given)])
            assert again.value.message == refusal.value.message

    asyncio.run(asynchronous())


def test_a_layer_that_may_not_be_sent_is_not_sent_with_its_stack(client: Client) -> None:
    weight = np.full((2, 1, 2, 2), 17, np.float32)
    stack = client.stack([Pool("max", 1), client.layer(weight, resend=False)])
    with pytest.raises(UnknownLayer):
        stack(X)
    np.testing.assert_array_equal(client.stack([Pool("max", 1), client.layer(weight)])(X), np.full((1, 2, 3, 3), 68))
    np.testing.assert_array_equal(stack(X), np.full((1, 2, 3, 3), 68))
    client.delete_layer(client.layer(weight).digest)


def test_an_error_of_map_says_which_frame_it_was(client: Client) -> None:
    layer = client.layer(np.full((1, 1, 1, 1), 100, np.int8))
    frames = [np.full((1, 1, 2, 2), value, np.int8) for value in (0, 1, 2, 3)]
    outputs = layer.map(frames)
    assert [int(next(outputs).max()) for _ in range(2)] == [0, 100]
    with pytest.raises(IntegerOverflow) as error:
        next(outputs)
    assert error.value.__notes__ == ["frame 2"]


@pytest.mark.parametrize("digest", [None, 3, b"sha256:"])
def test_what_is_no_text_is_no_digest(client: Client, digest: Any) -> None:  # noqa: ANN401 - anything
    for ask in (client.held_layer, client.delete_layer):
        with pytest.raises(InvalidConvolution) as refusal:
            ask(digest)
        assert refusal.value.field == "digest"
