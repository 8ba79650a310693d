from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests.client.local_convolver import LocalConvolver
from tests.client.picture_files import noise

from convolver.client.pictures import (
    Filter,
    FilterError,
    Kernel,
    Page,
    Picture,
    Recorder,
    _pieces,
    filter_array,
    filter_picture,
    parse_kernel,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from convolver.client import Client
    from convolver.client.pictures._choices import PaddingMode, PicturePadding

MODES: tuple[PaddingMode, ...] = ("zeros", "constant", "reflect", "symmetric", "replicate", "circular")
PADDINGS: tuple[PicturePadding, ...] = ("same", "valid", "full")


def filtered(array: NDArray[Any], kernel: str, **how: Any) -> NDArray[Any]:  # noqa: ANN401  # the fields of Filter
    return filter_array(LocalConvolver(), array, Filter(parse_kernel(kernel, how.pop("ndim", 2)), **how))


def only(picture: Picture, kernel: str, **how: Any) -> Page:  # noqa: ANN401  # as above
    (page,) = filter_picture(LocalConvolver(), picture, Filter(parse_kernel(kernel), **how)).pages
    return page


@pytest.mark.parametrize(("kernel", "axis"), [("sobel-x", -1), ("scharr-x", -1), ("prewitt-x", -1), ("sobel-y", -2)])
def test_a_derivative_is_positive_where_brightness_grows_along_its_axis(kernel: str, axis: int) -> None:
    ramp = np.moveaxis(np.tile(np.arange(6.0), (6, 1)), -1, axis)
    assert (filtered(ramp, kernel, padding="valid") > 0).all()
    assert (filtered(ramp, kernel, padding="valid", flip=True) < 0).all()


def test_a_derivative_along_pages_is_positive_where_brightness_grows_with_the_page() -> None:
    ramp = np.arange(5.0).reshape(5, 1, 1) * np.ones((5, 4, 4))
    assert (filtered(ramp, "sobel-z", ndim=3, padding="valid") == 32).all()


def test_emboss_is_lit_from_the_upper_left_on_middle_grey() -> None:
    rows, columns = np.indices((9, 9))
    mound = np.full((1, 9, 9), 100, np.uint8)
    mound[0, 3:6, 3:6] = 160
    relief = only(Picture((Page(mound),)), "emboss").samples[0]
    assert (relief[rows + columns <= 2] == 128).all()
    assert relief[2, 2] > 128
    assert relief[6, 6] < 128


def test_flip_turns_the_kernel_by_180_degrees() -> None:
    impulse = np.zeros((3, 3))
    impulse[1, 1] = 1
    taps = "1 2 3; 4 5 6; 7 8 9"
    assert filtered(impulse, taps, padding_mode="zeros", flip=True).tolist() == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    assert filtered(impulse, taps, padding_mode="zeros").tolist() == [[9, 8, 7], [6, 5, 4], [3, 2, 1]]


def test_a_gradient_is_the_length_of_its_parts() -> None:
    array = noise((7, 9), "float64")
    x, y = filtered(array, "sobel-x"), filtered(array, "sobel-y")
    assert filtered(array, "sobel") == pytest.approx(np.hypot(x, y), abs=1e-12)


def test_every_channel_is_filtered_on_its_own() -> None:
    samples = noise((3, 6, 7))
    page = only(Picture((Page(samples),)), "gaussian")
    for channel in range(3):
        alone = only(Picture((Page(samples[channel : channel + 1]),)), "gaussian")
        assert page.samples[channel].tolist() == alone.samples[0].tolist()


@pytest.mark.parametrize("kernel", ["gaussian:sigma=2", "box:size=5", "sharpen", "unsharp"])
@pytest.mark.parametrize("mode", ["reflect", "symmetric", "replicate", "circular"])
def test_a_flat_picture_stays_flat_to_its_edge(kernel: str, mode: PaddingMode) -> None:
    flat = np.full((3, 8, 9), 77, np.uint8)
    assert (only(Picture((Page(flat),)), kernel, padding_mode=mode).samples == 77).all()


@pytest.mark.parametrize("kernel", ["sobel", "laplacian", "scharr-x", "1 0 -1"])
def test_a_flat_picture_has_no_edges_not_even_a_frame(kernel: str) -> None:
    flat = np.full((1, 8, 9), 200, np.uint8)
    assert not only(Picture((Page(flat),)), kernel).samples.any()


def test_alpha_is_kept_and_not_filtered() -> None:
    alpha = noise((6, 7))
    page = only(Picture((Page(noise((3, 6, 7)), alpha),)), "gaussian")
    assert page.alpha is not None
    assert page.alpha.tolist() == alpha.tolist()


@pytest.mark.parametrize("kernel", ["identity", "box:size=3", "box:size=4", "1 2 3 4 5"])
def test_valid_cuts_alpha_as_it_does_the_samples(kernel: str) -> None:
    alpha = noise((8, 9))
    page = only(Picture((Page(noise((1, 8, 9)), alpha),)), kernel, padding="valid")
    rows, columns = parse_kernel(kernel).shape
    top, left = (rows - 1) // 2, (columns - 1) // 2
    assert page.alpha is not None
    assert page.alpha.tolist() == alpha[top : top + 9 - rows, left : left + 10 - columns].tolist()
    assert page.alpha.shape == page.samples.shape[1:]


def test_full_extends_alpha_by_its_edge() -> None:
    alpha = noise((4, 5))
    page = only(Picture((Page(noise((1, 4, 5)), alpha),)), "box:size=3", padding="full")
    assert page.alpha is not None
    assert page.alpha.tolist() == np.pad(alpha, 1, mode="edge").tolist()


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int8", "int16", "uint32", "int32", "int64", "uint64"])
def test_integers_keep_their_type_and_every_bit(dtype: str) -> None:
    array = noise((5, 6), dtype) if np.dtype(dtype).itemsize < 8 else noise((5, 6), "uint32").astype(dtype)
    result = filtered(array, "identity")
    assert result.tolist() == array.tolist()
    assert result.dtype == dtype


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_floats_stay_as_computed_unless_a_range_is_asked_for(dtype: str) -> None:
    array = np.array([[0, 0.5, 4]], dtype)
    assert filtered(array, "-2").tolist() == [[0, -1, -8]]
    assert filtered(array, "-2", range="absolute").tolist() == [[0, 1, 1]]
    assert filtered(array, "-2", range="clip").dtype == dtype


def test_a_range_that_is_asked_for_wins_over_the_kernels() -> None:
    array = np.array([[10, 20, 30]], np.uint8)
    assert filtered(array, "1 0 -1", padding="valid").tolist() == [[20]]
    assert filtered(array, "1 0 -1", padding="valid", range="offset").tolist() == [[108]]
    assert filtered(array, "1 0 -1", padding="valid", range="clip").tolist() == [[0]]


def test_axes_before_the_last_are_left_alone() -> None:
    array = noise((2, 3, 6, 7), "float64")
    result = filtered(array, "sobel-x")
    assert result[1, 2].tolist() == filtered(array[1, 2], "sobel-x").tolist()


def test_a_2d_kernel_goes_page_by_page() -> None:
    pages = (Page(noise((1, 5, 6))), Page(noise((3, 4, 9))))
    result = filter_picture(LocalConvolver(), Picture(pages), Filter(Kernel.named("box")))
    for page, alone in zip(result.pages, pages, strict=True):
        assert page.samples.tolist() == only(Picture((alone,)), "box").samples.tolist()


def test_a_3d_kernel_goes_over_the_volume_of_all_pages() -> None:
    pages = tuple(Page(noise((3, 5, 6)) // (1 + page), noise((5, 6)) // (1 + page)) for page in range(4))
    result = filter_picture(LocalConvolver(), Picture(pages), Filter(Kernel.named("box", 3)))
    volume = np.stack([page.samples for page in pages], axis=1)
    expected = filter_array(LocalConvolver(), volume, Filter(Kernel.named("box", 3)))
    assert [page.samples.tolist() for page in result.pages] == [expected[:, page].tolist() for page in range(4)]
    for page, alone in zip(result.pages, pages, strict=True):
        assert page.alpha is not None
        assert alone.alpha is not None
        assert page.alpha.tolist() == alone.alpha.tolist()


def test_valid_leaves_out_the_pages_at_both_ends_of_a_volume() -> None:
    picture = Picture(tuple(Page(np.full((1, 5, 6), page, np.uint8)) for page in range(5)))
    result = filter_picture(LocalConvolver(), picture, Filter(Kernel.named("identity", 3), padding="valid"))
    assert len(result.pages) == 5
    result = filter_picture(LocalConvolver(), picture, Filter(Kernel.named("box", 3), padding="valid"))
    assert [page.samples.tolist() for page in result.pages] == [[[[page] * 4] * 3] for page in (1, 2, 3)]


@pytest.mark.parametrize("pages", [[(1, 5, 6)], [(1, 5, 6), (1, 5, 7)], [(1, 5, 6), (3, 5, 6)]])
def test_a_3d_kernel_needs_pages_of_one_size(pages: list[tuple[int, ...]]) -> None:
    picture = Picture(tuple(Page(noise(shape)) for shape in pages))
    with pytest.raises(FilterError, match="3-D kernel needs"):
        filter_picture(LocalConvolver(), picture, Filter(Kernel.named("box", 3)))


def test_stretch_is_the_same_for_all_pages_and_channels() -> None:
    pages = (Page(np.array([[[0, 10]], [[20, 30]]], np.uint8)[[0, 1, 1]]), Page(np.full((3, 1, 2), 60, np.uint8)))
    result = filter_picture(LocalConvolver(), Picture(pages), Filter(Kernel.named("identity"), range="stretch"))
    assert result.pages[0].samples[:, 0].tolist() == [[0, 42], [85, 128], [85, 128]]
    assert (result.pages[1].samples == 255).all()


def test_the_rest_of_a_picture_goes_along() -> None:
    picture = Picture((Page(noise((1, 4, 5))),), b"profile", premultiplied=True)
    result = filter_picture(LocalConvolver(), picture, Filter(Kernel.named("box")))
    assert (result.profile, result.premultiplied) == (b"profile", True)


@pytest.mark.parametrize(
    ("array", "kernel", "complaint"),
    [
        (np.zeros(5), "box", r"shape \(5,\) has too few axes for a kernel of shape \(3, 3\)"),
        (np.zeros((5, 5)), "[[[1, 2]]]", "too few axes"),
        (np.zeros((0, 5, 5)), "box", "nothing to filter"),
        (np.zeros((5, 5), bool), "box", "array of bool is not filtered"),
        (np.zeros((5, 5), complex), "box", "array of complex128 is not filtered"),
        (np.zeros((5, 5), "U3"), "box", "array of <U3 is not filtered"),
        (np.array([[2**53 + 1]]), "box", r"numbers beyond 2\^53"),
        (np.array([[-(2**60)]]), "box", r"numbers beyond 2\^53"),
        (np.zeros((5, 5), np.uint8), "1e39 1", "1e[+]39, which is beyond float32"),
        (np.array([[200, 200]], np.uint8), "1e38 1e38", "not finite"),
    ],
)
def test_what_cannot_be_filtered_is_refused(array: NDArray[Any], kernel: str, complaint: str) -> None:
    with np.errstate(over="ignore"), pytest.raises(FilterError, match=complaint):
        filtered(array, kernel)


def test_the_value_beyond_the_edge_is_handed_on() -> None:
    array = np.zeros((1, 3))
    assert filtered(array, "1 1 1", padding_mode="constant", padding_value=2.5).tolist() == [[2.5, 0, 2.5]]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("kernel", ["1 2 3; 4 5 6; 7 8 10", "1;2;3;5", "1 2 4 8", "1;2;4;8;16;32;64"])
def test_bands_make_the_same_picture_as_the_whole(
    monkeypatch: pytest.MonkeyPatch, kernel: str, padding: PicturePadding, mode: PaddingMode
) -> None:
    array = noise((2, 61, 9), "float64")
    whole = filtered(array, kernel, padding=padding, padding_mode=mode, padding_value=1.0)
    monkeypatch.setattr(_pieces, "PIECE_BYTES", 9 * 16 * 8)
    convolver = LocalConvolver()
    how = Filter(parse_kernel(kernel), padding=padding, padding_mode=mode, padding_value=1.0)
    assert filter_array(convolver, array, how).tolist() == whole.tolist()
    assert len(convolver.shapes) >= 2 * 3


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("padding", PADDINGS)
def test_bands_make_the_same_volume_as_the_whole(
    monkeypatch: pytest.MonkeyPatch, padding: PicturePadding, mode: PaddingMode
) -> None:
    array = noise((25, 4, 5), "float64")
    whole = filtered(array, "sobel", ndim=3, padding=padding, padding_mode=mode)
    monkeypatch.setattr(_pieces, "PIECE_BYTES", 5 * 20 * 8)
    assert filtered(array, "sobel", ndim=3, padding=padding, padding_mode=mode).tolist() == whole.tolist()


def test_a_call_has_no_more_than_a_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_pieces, "PIECE_BYTES", 4 * 100)
    convolver = LocalConvolver()
    filter_array(convolver, noise((7, 5, 10)), Filter(Kernel.named("box")))
    assert convolver.shapes == [(2, 1, 5, 10)] * 3 + [(1, 1, 5, 10)]


def test_a_kernel_as_large_as_the_picture_is_not_cut_into_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_pieces, "PIECE_BYTES", 1)
    convolver = LocalConvolver()
    filter_array(convolver, noise((20, 20)), Filter(Kernel.named("box:size=15")))
    assert convolver.shapes == [(1, 1, 20, 20)]


def test_a_recorder_adds_up_what_was_done() -> None:
    recorder = Recorder(LocalConvolver())
    filter_picture(recorder, Picture((Page(noise((3, 4, 5))),) * 2), Filter(Kernel.named("box")))
    assert [plan.macs for plan in recorder.plans] == [3 * 20 * 9] * 2
    assert len(recorder.seconds) == 2
    assert str(recorder).startswith("local direct, 0.0 million MACs")


@pytest.mark.parametrize("kernel", ["sobel", "gaussian:sigma=2", "log", "emboss", "1 2; 3 4"])
@pytest.mark.parametrize("mode", ["zeros", "reflect", "symmetric", "replicate", "circular"])
@pytest.mark.parametrize("padding", PADDINGS)
def test_the_service_agrees(client: Client, kernel: str, padding: PicturePadding, mode: PaddingMode) -> None:
    array = noise((2, 20, 21), "float64")
    how = Filter(parse_kernel(kernel), padding=padding, padding_mode=mode)
    assert filter_array(client, array, how) == pytest.approx(filter_array(LocalConvolver(), array, how), abs=1e-12)


def test_the_service_agrees_on_volumes_and_flipped_kernels(client: Client) -> None:
    array = noise((6, 7, 8), "float32")
    how = Filter(parse_kernel("[[[1, 2], [3, 4]], [[5, 6], [7, 9]]]"), flip=True)
    assert filter_array(client, array, how) == pytest.approx(filter_array(LocalConvolver(), array, how), rel=1e-5)


def test_bands_of_the_service_make_no_seam(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    array = noise((3, 200, 30), "uint16")
    how = Filter(Kernel.named("gaussian:sigma=2"))
    whole = filter_array(client, array, how)
    monkeypatch.setattr(_pieces, "PIECE_BYTES", 50 * 30 * 4)
    recorder = Recorder(client)
    assert np.abs(filter_array(recorder, array, how).astype(int) - whole).max() <= 1
    assert len(recorder.plans) == 3 * 4
