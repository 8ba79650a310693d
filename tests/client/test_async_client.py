"""AsyncClient: the surface, the results and the errors of Client."""

from __future__ import annotations

import asyncio
import inspect
import math
from itertools import count
from typing import TYPE_CHECKING, Any, assert_type

import grpc
import numpy as np
import pytest
from tests.client.async_calls import CALLS, CALLS_OF_BOTH, REPORTED, ROW, asynchronously, layer_of, stack_of
from tests.client.test_transport_errors import serving
from tests.contract import ANSWER, IMAGE, KERNEL, good_request
from tests.contract import call as raw_call

from convolver.client import (
    Answer,
    AsyncClient,
    AsyncLayer,
    AsyncStack,
    Client,
    HeldLayer,
    Info,
    Layer,
    Plan,
    ServiceUnavailable,
    Stack,
)
from convolver.core.errors import IntegerOverflow, InvalidConvolution, Unsupported

if TYPE_CHECKING:
    from collections.abc import Callable


COLOURS: dict[type, type] = {Client: AsyncClient, Layer: AsyncLayer, Stack: AsyncStack}


def surface(kind: type) -> dict[str, Any]:
    return {name: value for name, value in inspect.getmembers(kind) if not name.startswith("_")}


def written(kind: type, name: str) -> Callable[..., Any]:
    """The function behind a method or a property."""
    member: Any = getattr(kind, name)
    found: Callable[..., Any] = getattr(member, "fget", member)
    return found


def uncoloured(text: object) -> str:
    """A signature or docstring of the asynchronous colour as the other has it."""
    return str(text).replace("Async", "").replace("Frames", "Iterable[AnyArray]")


def test_the_colours_have_the_same_names() -> None:
    assert surface(AsyncClient).keys() == surface(Client).keys() == CALLS.keys() | {"close", "empty"}
    common = CALLS_OF_BOTH.keys() - {"__call__"}
    assert surface(AsyncLayer).keys() == surface(Layer).keys() == common | {"put", "digest", "held"}
    assert surface(AsyncStack).keys() == surface(Stack).keys() == common | {"layers"}


MEMBERS = [(kind, name) for kind in COLOURS for name in [*surface(kind), "__init__", "__call__"] if name in dir(kind)]


@pytest.mark.parametrize(("kind", "name"), MEMBERS, ids=[f"{kind.__name__}.{name}" for kind, name in MEMBERS])
def test_the_colours_have_the_same_signatures_and_docstrings(kind: type, name: str) -> None:
    mine, theirs = written(COLOURS[kind], name), written(kind, name)
    assert uncoloured(inspect.signature(mine)) == str(inspect.signature(theirs))  # names, kinds, defaults, annotations
    my_text, their_text = (str(inspect.getdoc(member)) for member in (mine, theirs))
    if name == "map":  # the end is about how to leave the loop
        my_text, their_text = (text.rpartition("\n\n")[0] for text in (my_text, their_text))
    assert uncoloured(my_text) == their_text != ""
    assert isinstance(inspect.getattr_static(COLOURS[kind], name), type(inspect.getattr_static(kind, name)))


def without_times(result: Any) -> Any:  # noqa: ANN401 - what the method returns
    if isinstance(result, list):
        return list(map(without_times, result))
    return result._replace(idle_seconds=0.0) if isinstance(result, HeldLayer) else result


def assert_same(name: str, mine: Any, theirs: Any) -> None:  # noqa: ANN401 - what the methods return
    if name in REPORTED:
        assert mine[-1].seconds.keys() == theirs[-1].seconds.keys()
        mine, theirs = mine[:-1], theirs[:-1]
    np.testing.assert_equal(without_times(mine), without_times(theirs))


@pytest.mark.parametrize("name", CALLS)
def test_every_call_is_a_coroutine_with_the_other_colours_result(client: Client, name: str) -> None:
    async def awaited(other: AsyncClient) -> Any:  # noqa: ANN401 - what the method returns
        await layer_of(other).put()
        coroutine = CALLS[name](other)
        assert inspect.iscoroutine(coroutine)
        return await coroutine

    mine = asynchronously(client.address, awaited)
    layer_of(client).put()
    assert_same(name, mine, CALLS[name](client))


@pytest.mark.parametrize("name", CALLS_OF_BOTH)
@pytest.mark.parametrize("make", [layer_of, stack_of])
def test_layers_and_stacks_do_the_same_in_both_colours(client: Client, make: Callable[[Any], Any], name: str) -> None:
    async def awaited(other: AsyncClient) -> Any:  # noqa: ANN401 - what the method returns
        result = CALLS_OF_BOTH[name](make(other))
        if name == "map":
            return [output async for output in result]
        assert inspect.iscoroutine(result)
        return await result

    theirs = CALLS_OF_BOTH[name](make(client))
    assert_same(name, asynchronously(client.address, awaited), list(theirs) if name == "map" else theirs)


async def check_types(client: AsyncClient) -> None:
    """mypy reads this."""
    assert_type(await client.run(IMAGE, KERNEL), Answer)
    assert_type(await client.plan((1, 1, 3), (1, 1, 2)), Plan)
    assert_type(await client.info(), Info)
    assert_type(await client.address, str)
    task = asyncio.create_task(client.conv2d(IMAGE, KERNEL))
    np.testing.assert_array_equal(await task, ANSWER)
    client.conv2d(IMAGE, KERNEL).close()  # an array has no such method: it is known that this is to be awaited


def test_the_results_have_their_types(client: Client) -> None:
    asynchronously(client.address, check_types)


def test_torch_tensors_come_back_as_torch_tensors(client: Client) -> None:
    torch = pytest.importorskip("torch", reason="torch is what is tested")
    tensors = torch.from_numpy(IMAGE), torch.from_numpy(KERNEL)
    output = asynchronously(client.address, lambda other: other.conv2d(*tensors))
    assert torch.equal(output, torch.from_numpy(ANSWER))


def test_many_calls_at_once_have_each_its_own_answer(client: Client) -> None:
    async def gathered(other: AsyncClient) -> list[Any]:
        return await asyncio.gather(*(other.conv2d(number * IMAGE, KERNEL) for number in range(200)))

    answers = asynchronously(client.address, gathered)
    np.testing.assert_array_equal(answers, [number * ANSWER for number in range(200)])


WRONG: dict[str, tuple[type[Exception], str, Callable[[Any], Any]]] = {
    "rank": (InvalidConvolution, "conv3d takes 5", lambda client: client.conv3d(IMAGE, KERNEL)),
    "transposed": (InvalidConvolution, "conv_transpose1d takes 3", lambda c: c.conv_transpose1d(IMAGE, KERNEL)),
    "shapes": (InvalidConvolution, "input", lambda client: client.run(ROW, KERNEL)),
    "parameter": (InvalidConvolution, "stride", lambda client: client.convolve(IMAGE, KERNEL, stride=0)),
    "plan": (InvalidConvolution, "kernel", lambda client: client.plan((1, 1, 3), (1, 1, 4))),
    "to the server": (Unsupported, "nobody's", lambda client: client.conv2d(IMAGE, KERNEL, backend="nobody's")),
    "in the end": (IntegerOverflow, "10000", lambda client: client.conv1d(*np.full((2, 1, 1, 1), 100, np.int8))),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_is_raised_where_it_is_awaited_as_in_the_other_colour(client: Client, wrong: str) -> None:
    kind, words, call = WRONG[wrong]

    async def gathered(other: AsyncClient) -> tuple[Any, Any]:
        return await asyncio.gather(call(other), other.conv2d(IMAGE, KERNEL), return_exceptions=True)

    mine, answer = asynchronously(client.address, gathered)
    with pytest.raises(kind, match=words) as theirs:
        call(client)
    assert (type(mine), vars(mine)) == (kind, vars(theirs.value))
    np.testing.assert_array_equal(answer, ANSWER)


def test_nobody_at_the_address_is_said_with_the_address() -> None:
    with pytest.raises(ServiceUnavailable, match=r"^unix:/nowhere/socket: "):
        asynchronously("unix:/nowhere/socket", AsyncClient.info)


def test_a_proxy_of_the_environment_is_not_asked(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert asynchronously(client.address, AsyncClient.info).backends


def test_a_call_that_is_unavailable_is_tried_again(client: Client) -> None:
    with grpc.insecure_channel(client.address) as channel:
        answer = raw_call(channel, good_request())
    calls = count(1)

    def behaviour(_request: bytes, context: grpc.ServicerContext) -> bytes:
        if next(calls) < 3:
            context.abort(grpc.StatusCode.UNAVAILABLE, "not yet")
        return answer

    with serving(behaviour) as other:
        output = asynchronously(other.address, lambda mine: mine.conv2d(IMAGE, KERNEL))
    np.testing.assert_array_equal(output, ANSWER)
    assert next(calls) == 4


@pytest.mark.parametrize("timeout", [math.inf, 1e10])
def test_a_timeout_beyond_all_clocks_is_none(client: Client, timeout: float) -> None:
    output = asynchronously(client.address, lambda other: other.conv2d(IMAGE, KERNEL, timeout=timeout))
    np.testing.assert_array_equal(output, client.conv2d(IMAGE, KERNEL, timeout=timeout))
