"""The client in its blocking colour."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self, TypeVar, cast

from convolver.client import _answers as answers
from convolver.client import _client_shared as shared
from convolver.client import _composition as composition
from convolver.client import _gradients
from convolver.client import _held_layers as held_layers
from convolver.client import _layers_sync as layers
from convolver.client._calls_sync import BlockingCalls
from convolver.client._composition import Composition, HeldWeights, may_resend, stacked
from convolver.client._convolutions import Convolutions
from convolver.client._interchange import AnyArray
from convolver.client._layers_sync import Layer, Stack, Wire

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Unpack

    from convolver.client._gradients import Gradients
    from convolver.client._held_layers import HeldLayer
    from convolver.client._stack_layers import StackLayer
    from convolver.core.parameters import Parameters, StackParameters
    from convolver.core.plan import Plan

T = TypeVar("T")


class Client(BlockingCalls, Convolutions[AnyArray]):
    """Calls one Convolver service; may be used from several threads.

    Arrays are NumPy's, torch's, or any that speaks `__array__` or DLPack; a torch tensor as input gives a torch tensor
    back, detached and on the same device. Every method raises convolver.core.errors for what is wrong with a request,
    and convolver.client.errors for what happened on the way; RuntimeError once the client is closed.

    Args:
        address: `host:port`, `unix:/path` or `dns:///host:port`; or several `host:port` with commas between, which take
            turns (names are looked up once). None: CONVOLVER_ADDRESS, and without that a server of
            this process's own (the real one, in a child process on a private unix socket; needs `convolver[server]`).
        timeout: seconds, above 0, that a call may take, unless it says otherwise; None is for ever.
        hedge: whether a second copy of a small call is sent, to another server where there are several, when the answer
            takes longer than 95 of 100 such calls did; the first good answer counts (docs/sdk.md).
    """

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes it."""
        self.close()

    def run(
        self,
        input: AnyArray,
        weight: AnyArray,
        bias: AnyArray = None,
        *,
        out: AnyArray = None,
        **parameters: Unpack[Parameters],
    ) -> answers.Answer:
        """The convolution of `input` (N, C, *S) or (C, *S) with `weight` (O, C/groups, *K), with its plan and report.

        Transposed, the weight is (C, O/groups, *K); `bias` is (O,). All of one dtype. docs/parameters.md explains each
        parameter. The output is written to `out` where that is given: a row-major, writable array of its shape and
        dtype, or a torch tensor on the CPU, apart from the others' memory.
        """
        request = shared.convolve_request(input, weight, bias, parameters, out)
        return answers.convolve_answer(request, self._exchange(request, parameters))

    def convolve(
        self,
        input: AnyArray,
        weight: AnyArray,
        bias: AnyArray = None,
        *,
        out: AnyArray = None,
        **parameters: Unpack[Parameters],
    ) -> AnyArray:
        """The output of `run`."""
        return self.run(input, weight, bias, out=out, **parameters).output

    def gradients(
        self,
        input: AnyArray,
        weight: AnyArray,
        grad_output: AnyArray,
        *,
        wrt: Sequence[str] = ("input", "weight"),
        bias: bool = False,
        **parameters: Unpack[Parameters],
    ) -> Gradients:
        """The gradients of a scalar with respect to `input`, `weight` and bias, given its gradient with respect to the
        output: `grad_output`, of the output's shape and dtype. `wrt` names what is wanted of "input" and "weight",
        `bias` asks for the bias's, whether there is one or not; the others are None.

        Floats and complex numbers (by torch's convention); an activation is refused, and so is `algorithm="fft"`.
        """
        wanted = _gradients.wanted(wrt, bias=bias)
        request = _gradients.request(input, weight, grad_output, wanted, parameters)
        return answers.gradients_answer(request, self._exchange(request, parameters), wanted)

    def plan(
        self,
        input_shape: Sequence[int],
        weight_shape: Sequence[int],
        dtype: str = "float32",
        *,
        bias: bool = False,
        **parameters: Unpack[Parameters],
    ) -> Plan:
        """What `run` would do with tensors of these shapes, and its cost; `bias` says whether there is one."""
        request = shared.plan_request(input_shape, weight_shape, dtype, parameters, bias=bias)
        return answers.plan_answer(self._call("Plan", request, parameters))

    def layer(
        self, weight: AnyArray, bias: AnyArray = None, *, resend: bool = True, **parameters: Unpack[Parameters]
    ) -> Layer:
        """A convolution whose weights stay on the servers, prepared: they travel once to each. `weight`, `bias` and the
        parameters are those of `convolve`; the weights are copied now, and nothing is sent yet.

        A server that does not know the layer gets it with the call that needs it; with `resend=False` that raises
        UnknownLayer instead, as where somebody else is to decide what a server holds.
        """
        own, of_call = composition.parted(parameters)
        held = HeldWeights(weight, bias, own, of_call, resend=resend)
        return Layer(self._wire, held, Composition([held], of_call), resend=resend)

    def stack(
        self, layers: Sequence[StackLayer], *, resend: bool = True, **parameters: Unpack[StackParameters]
    ) -> Stack:
        """Layers one after the other, that run in one call: `Conv`, whose weights travel with each call, so that they
        may change between two; layers made by `layer`, whose weights stay; and `Pool`. `resend` is that of `layer`,
        and False where it is for one of the layers, whose own call parameters are refused.
        """
        items = [layer.held if isinstance(layer, Layer) else layer for layer in layers]
        made = stacked(items, cast("Parameters", parameters))
        return Stack(self._wire, made, resend=resend and may_resend(items))

    def layers(self) -> list[HeldLayer]:
        """The layers that the server holds, the latest used first; of several servers, that whose turn it is."""
        return self._of_one(layers.listed, {})

    def held_layer(self, digest: str) -> HeldLayer:
        """The layer of that digest. Raises UnknownLayer where the server does not hold it."""
        return held_layers.get_answer(self._call("GetLayer", held_layers.get_request(digest), {}))

    def delete_layer(self, digest: str) -> None:
        """Lets every server forget a layer; calls that use it finish. Raises UnknownLayer where none holds it."""
        layers.delete(self._servers(), digest)

    def info(self) -> shared.Info:
        """What the server is and may."""
        return shared.info_answer(self._call("GetInfo", shared.info_request(), {}))

    def _of_rank(
        self,
        ndim: int,
        input: AnyArray,
        weight: AnyArray,
        bias: AnyArray,
        out: AnyArray,
        **parameters: Unpack[Parameters],
    ) -> AnyArray:
        shared.check_rank(weight, ndim, parameters)
        return self.convolve(input, weight, bias, out=out, **parameters)

    @property
    def _wire(self) -> Wire:
        return Wire(self._call, self._exchange, self._of_one, self._open_stream, self._put)
