"""docs/semantics.md shows what the service and the other libraries really do."""

from __future__ import annotations

import doctest
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator
from scipy import ndimage, signal  # type: ignore[import-untyped]  # SciPy has no types of its own

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from tests.conftest import RunningServer

    from convolver.client import Client
    from convolver.core.parameters import Activation, PaddingMode, PaddingWord

    Array = NDArray[Any]

DOCUMENT = Path(__file__).parent.parent / "docs" / "semantics.md"
TEXT = DOCUMENT.read_text()
BLOCKS = re.findall(r"^```(text|python)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
MODES = "mode here"
WORDS = "padding here"


def sessions(text: str) -> str:
    """The lines of the Python blocks, at their places; all others are empty."""
    kept: list[str] = []
    inside = False
    for line in text.splitlines():
        inside = inside and line != "```"
        kept.append(line if inside else "")
        inside = inside or line == "```python"
    return "\n".join(kept)


def table(title: str) -> Iterator[dict[str, list[str]]]:
    """The rows of the table whose first column has this title: the names (in backticks) by the column's title."""
    lines = TEXT[TEXT.index(f"| {title} |") :].partition("\n\n")[0].splitlines()
    titles, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    for row in rows:
        yield {name: re.findall(r"`([^`]+)`", cell) for name, cell in zip(titles, row, strict=True)}


def pairs(title: str, column: str) -> list[tuple[str, str]]:
    """(our name, theirs), each with each, of the rows in which that column names something."""
    return [
        (ours, theirs)
        for row in table(title)
        for ours in row[title]
        for theirs in next(names for name, names in row.items() if column in name)
    ]


def test_the_sessions_print_what_they_show(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVOLVER_ADDRESS", server.address)
    session = doctest.DocTestParser().get_doctest(sessions(TEXT), {}, DOCUMENT.name, str(DOCUMENT), 0)
    wrong: list[str] = []
    result = doctest.DocTestRunner(verbose=False).run(session, out=wrong.append)
    assert result.attempted > 50
    assert not result.failed, "".join(wrong)


def test_every_python_block_is_a_session() -> None:
    assert {source.split(maxsplit=1)[0] for kind, source in BLOCKS if kind == "python"} == {">>>"}


def drawings() -> Iterator[tuple[str, str]]:
    """Each drawing of numbers, and the session that follows it."""
    for i, (kind, block) in enumerate(BLOCKS):
        if kind == "text":
            session = next(source for other, source in BLOCKS[i:] if other == "python")
            yield from ((drawing, session) for drawing in block.split("\n\n") if drawing.startswith("input"))


def drawn(label: str, drawing: str) -> list[int]:
    """The numbers of the first line with that label; what stands far from them is a remark."""
    [line] = re.findall(rf"\A(?:.*\n)*?{label}((?: {{1,12}}(?:-?\d+|\.))+)", drawing)
    return [int(word) for word in line.split() if word != "."]


@pytest.mark.parametrize("drawn_and_run", list(drawings()))
def test_a_drawing_shows_what_the_next_session_computes(drawn_and_run: tuple[str, str]) -> None:
    drawing, session = drawn_and_run
    row, kernel, output = (drawn(label, drawing) for label in ("input", "kernel(?: x 1)?", "output"))
    computed = re.findall(r"^>>> row\((\[.*?\]), (\[.*?\]).*\n(.+)$", session, re.MULTILINE)
    assert (str(row), str(kernel), str(output)) in computed


def by_numpy(row: Array, mode: str) -> Array:
    return np.pad(row, 2, mode)  # type: ignore[call-overload,no-any-return]  # the modes are the document's


def by_torch(row: Array, mode: str) -> Array:
    torch = pytest.importorskip("torch")
    padded: Array = torch.nn.functional.pad(torch.from_numpy(row)[np.newaxis], (2, 2), mode)[0].numpy()
    return padded


def by_ndimage(row: Array, mode: str) -> Array:
    first, own, last = (ndimage.correlate1d(row, np.eye(5)[i], mode=mode) for i in (0, 2, 4))
    return np.concatenate([first[:2], own, last[-2:]])


def by_convolve2d(row: Array, boundary: str) -> Array:
    padded: Array = signal.convolve2d(row[np.newaxis], np.eye(5)[2:3], "full", boundary)[0]
    return padded


def by_onnx(row: Array, mode: str) -> Array:
    return in_onnx("Pad", row, np.array([2, 2]), mode=mode)


def in_onnx(operator: str, *inputs: Array, **attributes: Any) -> Array:  # noqa: ANN401 - ints, lists and strings
    """The output of one ONNX node, by ONNX's reference implementation."""
    names = [f"input{i}" for i in range(len(inputs))]
    headers = [
        onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in zip(names, inputs, strict=True)
    ]
    node = onnx.helper.make_node(operator, names, ["output"], **attributes)
    anything = onnx.helper.make_tensor_value_info("output", headers[0].type.tensor_type.elem_type, None)
    model = onnx.helper.make_model(onnx.helper.make_graph([node], operator, headers, [anything]))
    [output] = list(ReferenceEvaluator(model).run(None, dict(zip(names, inputs, strict=True))))
    return np.asarray(output)


LIBRARIES = {
    "NumPy": by_numpy,
    "torch": by_torch,
    "ndimage": by_ndimage,
    "convolve2d": by_convolve2d,
    "ONNX": by_onnx,
}


@pytest.mark.parametrize(
    ("library", "ours", "theirs"), [(library, *names) for library in LIBRARIES for names in pairs(MODES, library)]
)
def test_a_padding_mode_has_the_names_of_the_table(
    client: Client, library: str, ours: PaddingMode, theirs: str
) -> None:
    row = np.array([1.0, 2.0, 3.0])
    output = client.conv1d(row[np.newaxis], [[[1.0]]], padding=2, padding_mode=ours)
    np.testing.assert_array_equal(output[0], LIBRARIES[library](row, theirs))


@pytest.mark.skipif(np.lib.NumpyVersion(np.__version__) < "2.0.0", reason="NumPy 1.26 pads wrongly beyond the input")
@pytest.mark.parametrize(("ours", "numpys"), [pair for pair in pairs(MODES, "NumPy") if pair[0] != "constant"])
def test_the_rows_that_show_the_modes_are_numpys(ours: str, numpys: str) -> None:
    [shown] = re.findall(rf"^{ours} +([\d ]+)$", TEXT, re.MULTILINE)
    assert [int(number) for number in shown.split()] == np.pad([1, 2, 3], 5, numpys).tolist()  # type: ignore[call-overload]  # the modes are the document's


@pytest.fixture
def compare(client: Client) -> Callable[..., None]:
    """Compares with the service, for kernels of 1 to 5 elements, `theirs` of (row, kernel)."""

    def compared(theirs: Callable[[Array, Array], Any], **parameters: Any) -> None:  # noqa: ANN401 - an array of any library
        row = np.arange(1.0, 7.0)
        for size in range(1, 6):
            kernel = np.arange(1.0, size + 1)
            output = client.convolve(row[np.newaxis], kernel[np.newaxis, np.newaxis], **parameters)
            np.testing.assert_array_equal(output[0], np.asarray(theirs(row, kernel)).reshape(-1))

    return compared


@pytest.mark.parametrize(("ours", "torchs"), pairs(WORDS, "torch"))
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_a_padding_word_is_torchs(compare: Callable[..., None], ours: str, torchs: str) -> None:
    torch = pytest.importorskip("torch")
    compare(
        lambda *arrays: torch.conv1d(*(torch.from_numpy(a)[None, None] for a in arrays), padding=torchs), padding=ours
    )


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize(("ours", "auto_pad"), pairs(WORDS, "ONNX"))
def test_a_padding_word_is_onnxs(compare: Callable[..., None], ours: str, auto_pad: str, stride: int) -> None:
    options = {"auto_pad": auto_pad, "strides": [stride]}
    compare(lambda *arrays: in_onnx("Conv", *(a[None, None] for a in arrays), **options), padding=ours, stride=stride)


def test_scipys_and_numpys_words_are_those_of_the_table(compare: Callable[..., None]) -> None:
    compare(lambda row, kernel: signal.correlate(row, kernel, "same"), padding="same_lower")
    compare(lambda row, kernel: ndimage.correlate(row, kernel, mode="constant"), padding="same_lower")
    compare(lambda row, kernel: ndimage.convolve(row, kernel, mode="constant"), padding="same", flip=True)
    compare(signal.convolve, padding="full", flip=True)
    compare(np.convolve, padding="full", flip=True)
    compare(lambda row, kernel: np.correlate(row, kernel, "valid"), padding="valid")


def test_upfirdn_has_input_dilation_and_stride(compare: Callable[..., None]) -> None:
    def upsampled(row: Array, kernel: Array) -> Array:
        filtered: Array = signal.upfirdn(kernel, row, up=3, down=2)
        return filtered

    compare(upsampled, padding="full", flip=True, input_dilation=3, stride=2)


def test_same_is_of_the_larger_one_in_numpy_and_of_the_first_in_scipy() -> None:
    assert np.convolve([1, 2], [1, 2, 3, 4, 5], "same").size == 5
    assert signal.convolve([1, 2], [1, 2, 3, 4, 5], "same").size == 2


def test_correlate_conjugates_in_scipy_and_numpy_and_not_here(client: Client) -> None:
    for correlate in (signal.correlate, ndimage.correlate, np.correlate):
        assert correlate(np.array([1j]), np.array([1j])) == 1
    assert client.conv1d([[1j]], [[[1j]]]) == -1


def test_scipy_and_numpy_wrap_integers() -> None:
    large, ones = np.array([100, 100], np.int8), np.ones(2, np.int8)
    for result in (signal.convolve(large, ones)[1], ndimage.correlate(large, ones)[0], np.convolve(large, ones)[1]):
        assert result == -56


def test_nan_comes_through_a_zero_of_the_kernel_here_and_not_in_ndimage(client: Client) -> None:
    row, kernel = np.array([1.0, np.nan, 3.0]), np.array([1.0, 0.0, 1.0])
    assert np.isnan(client.conv1d([row], [[kernel]])).all()
    assert ndimage.correlate(row, kernel)[1] == 4


def test_torch_has_the_limits_that_the_document_says() -> None:
    torch = pytest.importorskip("torch")
    row, pad = torch.ones(1, 1, 3), torch.nn.functional.pad
    with pytest.raises(RuntimeError, match="not supported for strided"):
        torch.conv1d(row, torch.ones(1, 1, 2), stride=2, padding="same")
    with pytest.raises(RuntimeError, match="can't be greater than actual input size"):
        torch.conv1d(row, torch.ones(1, 1, 4))
    for mode, most in (("reflect", 2), ("circular", 3)):
        assert pad(row, (most, most), mode).shape[-1] == 3 + 2 * most
        with pytest.raises(RuntimeError, match="Padding"):
            pad(row, (most + 1, 0), mode)


def test_torch_wraps_integers_takes_unbatched_input_and_lets_cudnn_use_tf32() -> None:
    torch = pytest.importorskip("torch")
    large = torch.full((1, 2), 100, dtype=torch.int8)
    assert torch.conv1d(large, torch.ones(1, 1, 2, dtype=torch.int8)).tolist() == [[-56]]
    assert torch.backends.cudnn.allow_tf32


def test_torchs_output_size_is_an_argument_of_the_modules_call() -> None:
    torch: Any = pytest.importorskip("torch")
    layer = torch.nn.ConvTranspose1d(1, 1, 3, stride=2, padding=1)
    assert [layer(torch.ones(1, 1, 3), output_size=[size]).shape[-1] for size in (5, 6)] == [5, 6]


@pytest.mark.parametrize(("ours", "auto_pad"), [("same", "SAME_UPPER"), ("same_lower", "SAME_LOWER")])
@pytest.mark.parametrize("stride", [1, 2, 3, 4])
def test_a_padding_word_is_onnxs_when_transposed(client: Client, ours: PaddingWord, auto_pad: str, stride: int) -> None:
    row, kernel = np.array([[[1.0, 10.0, 100.0]]]), np.array([[[1.0, 2.0, 3.0, 4.0]]])
    output = client.conv_transpose1d(row, kernel, stride=stride, padding=ours)
    np.testing.assert_array_equal(output, in_onnx("ConvTranspose", row, kernel, strides=[stride], auto_pad=auto_pad))


@pytest.mark.parametrize(("ours", "value"), [("gelu", 1.0), ("leaky_relu", -1.0)])
def test_an_activation_is_torchs(client: Client, ours: Activation, value: float) -> None:
    torch = pytest.importorskip("torch")
    theirs = getattr(torch.nn.functional, ours)(torch.tensor(value, dtype=torch.float64))
    output = client.conv1d([[value]], [[[1.0]]], activation=ours)
    assert output.item() == pytest.approx(theirs.item(), rel=1e-14)


def test_onnxs_activations_have_the_defaults_of_the_document() -> None:
    assert onnx.defs.get_schema("LeakyRelu").attributes["alpha"].default_value.f == pytest.approx(0.01)
    assert onnx.defs.get_schema("Gelu").attributes["approximate"].default_value.s == b"none"


def test_torchs_softplus_is_x_above_20_and_ours_is_not(client: Client) -> None:
    torch = pytest.importorskip("torch")
    assert torch.nn.functional.softplus(torch.tensor(21.0, dtype=torch.float64)) == 21
    assert client.conv1d([[21.0]], [[[1.0]]], activation="softplus").item() > 21
