from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
import pytest

from convolver.client.pictures import Kernel, KernelError, parse_kernel, read_kernel
from convolver.client.pictures._named_kernels import RECIPES

if TYPE_CHECKING:
    from pathlib import Path

    from convolver.client.pictures._choices import Range, SpatialDimensions


def npy(array: object) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(array))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("identity", [[1]]),
        ("sobel-x", [[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]]),
        ("sobel-y", [[-1, -2, -1], [0, 0, 0], [1, 2, 1]]),
        ("scharr-x", [[-3, 0, 3], [-10, 0, 10], [-3, 0, 3]]),
        ("scharr-y", [[-3, -10, -3], [0, 0, 0], [3, 10, 3]]),
        ("prewitt-x", [[-1, 0, 1], [-1, 0, 1], [-1, 0, 1]]),
        ("prewitt-y", [[-1, -1, -1], [0, 0, 0], [1, 1, 1]]),
        ("laplacian", [[0, 1, 0], [1, -4, 1], [0, 1, 0]]),
        ("sharpen", [[0, -1, 0], [-1, 5, -1], [0, -1, 0]]),
        ("emboss", [[-1, 0, 0], [0, 0, 0], [0, 0, 1]]),
    ],
)
def test_a_named_kernel_has_the_coefficients_of_the_textbooks(name: str, rows: list[list[int]]) -> None:
    assert Kernel.named(name).taps.tolist() == [rows]


def test_a_box_is_the_mean_of_its_samples() -> None:
    assert Kernel.named("box:size=4").taps.tolist() == [[[1 / 16] * 4] * 4]


@pytest.mark.parametrize(
    ("specification", "side"),
    [("gaussian", 9), ("gaussian:sigma=0.7", 7), ("gaussian:sigma=2", 17), ("log:sigma=1,truncate=3", 7)],
)
def test_the_size_of_a_gaussian_follows_from_sigma_as_in_scipy(specification: str, side: int) -> None:
    assert Kernel.named(specification).shape == (side, side)


def test_a_gaussian_has_scipys_weights() -> None:
    # scipy.ndimage.gaussian_filter1d of a unit impulse, sigma 1: its centre and its neighbours
    row = Kernel.named("gaussian:sigma=1").taps[0].sum(axis=0)
    assert row[4:].tolist() == pytest.approx([0.39894347, 0.24197145, 0.05399113, 0.00443186, 0.00013383], abs=5e-9)


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize(
    "specification", ["gaussian:sigma=0.7", "gaussian:sigma=3", "box:size=5", "sharpen", "unsharp"]
)
def test_smoothing_and_sharpening_keep_the_brightness(specification: str, ndim: SpatialDimensions) -> None:
    assert Kernel.named(specification, ndim).taps.sum() == pytest.approx(1, abs=1e-14)


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("specification", ["log", "log:sigma=3", "laplacian", "sobel-x", "scharr", "prewitt"])
def test_derivatives_sum_to_zero(specification: str, ndim: SpatialDimensions) -> None:
    assert abs(Kernel.named(specification, ndim).taps.sum()) < 1e-15


def test_the_laplacian_of_gaussian_measures_curvature() -> None:
    # of x^2 / 2 the second derivative is 1 everywhere, and a smoothed parabola keeps it
    taps = Kernel.named("log:sigma=2,truncate=6").taps[0]
    offsets = np.arange(len(taps)) - len(taps) // 2
    assert (taps * (offsets**2 / 2)).sum() == pytest.approx(1, rel=1e-3)


def test_unsharp_adds_what_the_gaussian_takes_away() -> None:
    blur = Kernel.named("gaussian:sigma=1.5").taps[0]
    sharp = Kernel.named("unsharp:sigma=1.5,amount=0.8").taps[0]
    impulse = np.zeros_like(blur)
    impulse[6, 6] = 1
    assert sharp == pytest.approx(impulse + 0.8 * (impulse - blur), abs=1e-15)


def test_a_gradient_has_a_filter_for_each_axis() -> None:
    assert Kernel.named("sobel").taps.shape == (2, 3, 3)
    assert Kernel.named("sobel", 3).taps.shape == (3, 3, 3, 3)


def test_a_derivative_in_a_volume_smooths_along_the_other_axes() -> None:
    taps = Kernel.named("sobel-z", 3).taps[0]
    assert taps[0].tolist() == [[-1, -2, -1], [-2, -4, -2], [-1, -2, -1]]
    assert not taps[1].any()
    assert taps[2].tolist() == (-taps[0]).tolist()


@pytest.mark.parametrize("name", ["sobel-z", "prewitt-z"])
def test_a_derivative_along_pages_needs_a_volume(name: str) -> None:
    with pytest.raises(KernelError, match="needs a 3-D kernel"):
        Kernel.named(name)


@pytest.mark.parametrize(
    ("name", "fitting"),
    [
        ("gaussian", "clip"),
        ("sharpen", "clip"),
        ("sobel", "absolute"),
        ("laplacian", "absolute"),
        ("emboss", "offset"),
        ("log", "stretch"),
    ],
)
def test_each_named_kernel_has_its_fitting_range(name: str, fitting: Range) -> None:
    assert Kernel.named(name).range == fitting


@pytest.mark.parametrize(("text", "fitting"), [("1 0 -1", "absolute"), ("1 1 1", "clip"), ("0.1 0.2 -0.3", "absolute")])
def test_numbers_that_sum_to_zero_are_shown_without_their_sign(text: str, fitting: Range) -> None:
    assert parse_kernel(text).range == fitting


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("1 0 -1; 2 0 -2; 1 0 -1", [[1, 0, -1], [2, 0, -2], [1, 0, -1]]),
        ("-1, 0.5, 1e1", [[-1, 0.5, 10]]),
        ("1 2\n3 4\n", [[1, 2], [3, 4]]),
        (" [[1, 0], [0, -1.5]] ", [[1, 0], [0, -1.5]]),
        ("[[[1, 2]], [[3, 4]]]", [[[1, 2]], [[3, 4]]]),
    ],
)
def test_numbers_are_read_as_rows_and_as_json(text: str, rows: list[object]) -> None:
    assert parse_kernel(text).taps.tolist() == [rows]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "empty"),
        ("1 2; 3", r"ragged: row 0 has shape \(2,\), row 1 has \(1,\)"),
        ("[[1, 2], [3]]", "ragged"),
        ("[[[1, 2], [3, 4]], [[1], [2]]]", "ragged"),
        ("[[1, [2]]]", "ragged"),
        ("1 two", "'two', which is no number"),
        ('[[1, "2"]]', "'2', which is no number"),
        ("[[true]]", "True, which is no number"),
        ("[[null]]", "None, which is no number"),
        ("[[1, 2]", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("1 nan", r"nan at \[0, 1\]; a kernel needs finite numbers"),
        ("[[NaN]]", "NaN; a kernel needs finite numbers"),
        ("[[1, -1e400]]", r"-inf at \[0, 1\]"),
        (f"[[{'9' * 400}]]", "beyond float64"),
        ("[1, 0, -1]", r"is 1-D; a kernel is 2-D or 3-D; write a single row as \[\[1, 0, -1\]\]"),
        ("[[[[1]]]]", "is 4-D"),
        ("[[]]", "has 0 numbers"),
    ],
)
def test_text_that_is_no_kernel_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(KernelError, match=complaint):
        parse_kernel(text)


@pytest.mark.parametrize(
    ("specification", "complaint"),
    [
        ("sobell", "'sobell'; did you mean sobel"),
        ("Gauss", "did you mean gaussian?"),
        ("xyzzy", "there are identity, box, gaussian"),
        ("gaussian:sgma=2", "no parameter 'sgma'; did you mean sigma?"),
        ("sobel:size=5", "no parameter 'size'; it takes none"),
        ("gaussian:sigma", "'sigma' gives no number"),
        ("gaussian:sigma=two", "'sigma=two' gives no number"),
        ("gaussian:sigma=nan", "gives no number"),
        ("gaussian:sigma=0", "must be at least 0.5"),
        ("log:sigma=-1", "must be at least 0.5"),
        ("log:sigma=0.01", "must be at least 0.5"),
        ("gaussian:sigma=1000", r"64016001 numbers, shape \(8001, 8001\)"),
        ("box:size=2.5", "size=2.5 is no whole number"),
        ("box:size=0", "size=0 is no whole number"),
    ],
)
def test_a_name_or_parameter_that_does_not_exist_is_refused(specification: str, complaint: str) -> None:
    with pytest.raises(KernelError, match=complaint):
        parse_kernel(specification)


def test_emboss_has_no_third_dimension() -> None:
    with pytest.raises(KernelError, match="2-D kernel, not 3-D"):
        Kernel.named("emboss", 3)


@pytest.mark.parametrize("name", RECIPES)
def test_names_know_no_case(name: str) -> None:
    ndim: SpatialDimensions = 3 if name.endswith("-z") else 2
    assert Kernel.named(name.upper(), ndim).taps.tolist() == Kernel.named(name, ndim).taps.tolist()


@pytest.mark.parametrize("dtype", ["int8", "uint16", ">f4", "float64"])
def test_a_kernel_is_read_from_npy(tmp_path: Path, dtype: str) -> None:
    path = tmp_path / "k.npy"
    path.write_bytes(npy(np.array([[1, 2], [3, 4]], dtype)))
    assert read_kernel(path).taps.tolist() == [[[1, 2], [3, 4]]]


def test_a_kernel_is_read_from_json(tmp_path: Path) -> None:
    path = tmp_path / "k.JSON"
    path.write_text("[[1, 0, -1]]")
    assert read_kernel(path).taps.tolist() == [[[1, 0, -1]]]


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("k.npy", npy(np.ones((3, 3)))[:-8], "no .npy file of numbers"),
        ("k.npy", b"", "no .npy file of numbers"),
        ("k.npy", npy(np.ones(3)), "is 1-D"),
        ("k.npy", npy(np.ones((1, 1, 1, 1))), "is 4-D"),
        ("k.npy", npy(np.ones((0, 3))), "has 0 numbers"),
        ("k.npy", npy([[1, np.nan]]), "finite"),
        ("k.npy", npy([[1j]]), "dtype complex128"),
        ("k.npy", npy([["a"]]), "dtype <U1"),
        ("k.json", b"\xff", "not JSON"),
        ("k.json", b"{}", "no number"),
        ("k.json", b"3", "is 0-D"),
        ("k.json", b"[[1], [2, 3]]", "ragged"),
    ],
)
def test_a_file_that_holds_no_kernel_is_refused_by_its_name(
    tmp_path: Path, name: str, content: bytes, complaint: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(KernelError, match=complaint) as refused:
        read_kernel(path)
    assert str(path) in refused.value.message


@pytest.mark.parametrize("name", ["missing.npy", "missing.json"])
def test_a_missing_kernel_file_is_said_to_be_missing(tmp_path: Path, name: str) -> None:
    with pytest.raises(KernelError, match="No such file"):
        read_kernel(tmp_path / name)
