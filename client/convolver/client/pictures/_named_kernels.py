"""The kernels that have a name, with the coefficients of the textbooks, written for cross-correlation.

Directions: x grows to the right, y downwards, z with the page; a derivative is positive where brightness grows along.

Sources:
    Box, Sobel, Laplacian, sharpening, unsharp masking: R. C. Gonzalez, R. E. Woods, Digital Image Processing, 4th ed.,
        3.5, 3.6 and 10.2.
    Prewitt: J. M. S. Prewitt, Object enhancement and extraction, 1970.
    Scharr (3, 10, 3): H. Scharr, Optimale Operatoren in der digitalen Bildverarbeitung, Heidelberg 2000.
    Gaussian, its radius and sampling: scipy.ndimage.gaussian_filter.
    Laplacian of Gaussian: D. Marr, E. Hildreth, Theory of edge detection, 1980; sampled and brought to sum 0 as by
        MATLAB's fspecial.
    Emboss: S. E. Umbaugh, Digital Image Processing and Analysis, 2nd ed.: a directional difference, along the diagonal.
"""

from __future__ import annotations

import difflib
from functools import partial, reduce
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from convolver.client.pictures.errors import KernelError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from numpy.typing import NDArray

    from convolver.client.pictures._choices import Range

    Taps = NDArray[np.float64]

AXES = {"x": -1, "y": -2, "z": -3}
LARGEST_VALUE = 1_000_000


class Recipe(NamedTuple):
    """How a named kernel is made.

    Attributes:
        range: The mapping of results to brightness that suits it.
        parameters: Their names and defaults.
        size: From the parameters, the kernel's length along each dimension; refuses values out of their range.
        build: From the number of dimensions and the parameters, taps of shape (filters, *K).
    """

    range: Range
    parameters: Mapping[str, float]
    size: Callable[..., int]
    build: Callable[..., Taps]


def parse(specification: str) -> tuple[Recipe, dict[str, float]]:
    """Split `name:parameter=value,...` into the recipe and the values of all its parameters.

    Raises:
        KernelError: An unknown name or parameter, or a value that is no finite number.
    """
    name, _, assignments = specification.partition(":")
    recipe = RECIPES.get(name.strip().lower())
    if recipe is None:
        raise KernelError(f"no kernel is called {name!r:.60}{_near(name, RECIPES)}")
    values = dict(recipe.parameters)
    for assignment in filter(None, assignments.split(",")):
        key, _, text = assignment.partition("=")
        if key.strip() not in values:
            raise KernelError(f"kernel {name} has no parameter {key.strip()!r:.60}{_near(key, values)}")
        values[key.strip()] = _value(assignment, text)
    return recipe, values


def _near(word: str, known: Iterable[str]) -> str:
    names = list(known)
    near = difflib.get_close_matches(word.lower(), names, cutoff=0.5)
    if near:
        return f"; did you mean {' or '.join(near)}?"
    return f"; there are {', '.join(names)}" if names else "; it takes none"


def _value(assignment: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = np.nan
    if not abs(value) <= LARGEST_VALUE:  # NaN too
        raise KernelError(f"{assignment!r:.60} gives no number up to {LARGEST_VALUE}; write sigma=2")
    return value


def _outer(factors: Iterable[Taps]) -> Taps:
    product: Taps = reduce(np.multiply.outer, factors)
    return product


def identity(ndim: int, /, **_: float) -> Taps:
    """A single 1: what comes in goes out."""
    return np.ones((1,) * (ndim + 1))


def box(ndim: int, /, *, size: float) -> Taps:
    """The mean of `size` samples in each dimension."""
    return np.full((1,) + (int(size),) * ndim, size**-ndim)


def gaussian(ndim: int, /, *, sigma: float, truncate: float) -> Taps:
    """exp(-|x|^2 / (2 sigma^2)), sampled up to int(truncate * sigma + 0.5) from the centre, sum 1."""
    offsets = np.arange(_gaussian_size(sigma=sigma, truncate=truncate)) - int(truncate * sigma + 0.5)
    weights: Taps = np.exp(-0.5 * (offsets / sigma) ** 2)
    return _outer([weights / weights.sum()] * ndim)[np.newaxis]


def laplacian_of_gaussian(ndim: int, /, *, sigma: float, truncate: float) -> Taps:
    """(|x|^2 / sigma^4 - ndim / sigma^2) G(x) less its mean, so that it sums to 0; a bright spot gives a dark one."""
    taps: Taps = gaussian(ndim, sigma=sigma, truncate=truncate)[0]
    offsets = np.arange(len(taps)) - len(taps) // 2
    squares: Taps = reduce(np.add.outer, [np.square(offsets, dtype=np.float64)] * ndim)
    taps *= squares / sigma**4 - ndim / sigma**2
    taps -= taps.mean()
    return taps[np.newaxis]


def laplacian(ndim: int, /, **_: float) -> Taps:
    """The second differences [1, -2, 1] along each dimension, added: [[0, 1, 0], [1, -4, 1], [0, 1, 0]]."""
    second = np.array([1.0, -2.0, 1.0])
    middle = np.array([0.0, 1.0, 0.0])
    terms = [_outer([second if axis == along else middle for axis in range(ndim)]) for along in range(ndim)]
    taps: Taps = np.sum(terms, axis=0, keepdims=True)
    return taps


def sharpen(ndim: int, /, **_: float) -> Taps:
    """The picture less its Laplacian: [[0, -1, 0], [-1, 5, -1], [0, -1, 0]]."""
    return _centred_one((3,) * ndim) - laplacian(ndim)


def unsharp(ndim: int, /, *, sigma: float, amount: float, truncate: float) -> Taps:
    """The picture f sharpened, f + amount (f - gaussian(f)), as one kernel."""
    blur = gaussian(ndim, sigma=sigma, truncate=truncate)
    return (1 + amount) * _centred_one(blur.shape[1:]) - amount * blur


def emboss(ndim: int, /, **_: float) -> Taps:
    """[[-1, 0, 0], [0, 0, 0], [0, 0, 1]]: brightness taken as height, under a light from the upper left."""
    if ndim != 2:
        raise KernelError(f"emboss is a 2-D kernel, not {ndim}-D")
    return np.array([[[-1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 1.0]]])


def derivative(ndim: int, /, *, axes: str, smoothing: tuple[float, ...]) -> Taps:
    """[-1, 0, 1] along an axis and `smoothing` along the others; a filter for each of `axes` that the kernel has."""
    difference = np.array([-1.0, 0.0, 1.0])
    along = [AXES[axis] for axis in axes if -AXES[axis] <= ndim]
    if not along:
        raise KernelError(f"a derivative along {axes} needs a 3-D kernel, not {ndim}-D")
    factors = [[difference if axis == one else np.array(smoothing) for axis in range(-ndim, 0)] for one in along]
    return np.stack([_outer(filters) for filters in factors])


def _centred_one(shape: tuple[int, ...]) -> Taps:
    taps = np.zeros((1, *shape))
    taps[(0, *(length // 2 for length in shape))] = 1
    return taps


def _fixed_size(length: int, **_: float) -> int:
    return length


def _box_size(*, size: float) -> int:
    if size < 1 or size != int(size):
        raise KernelError(f"size={size:g} is no whole number of at least 1")
    return int(size)


def _gaussian_size(*, sigma: float, truncate: float, **_: float) -> int:
    if sigma <= 0 or truncate * sigma < 0.5:
        raise KernelError(f"sigma={sigma:g} and truncate={truncate:g}: their product must be at least 0.5")
    return 2 * int(truncate * sigma + 0.5) + 1


def _derivatives(family: str, smoothing: tuple[float, ...]) -> dict[str, Recipe]:
    """A family's derivative along each axis, and the gradient's magnitude under its plain name."""
    names = {family: "xyz"} | {f"{family}-{axis}": axis for axis in AXES}
    return {
        name: Recipe("absolute", {}, partial(_fixed_size, 3), partial(derivative, axes=axes, smoothing=smoothing))
        for name, axes in names.items()
    }


RECIPES: dict[str, Recipe] = {
    "identity": Recipe("clip", {}, partial(_fixed_size, 1), identity),
    "box": Recipe("clip", {"size": 3}, _box_size, box),
    "gaussian": Recipe("clip", {"sigma": 1, "truncate": 4}, _gaussian_size, gaussian),
    "sharpen": Recipe("clip", {}, partial(_fixed_size, 3), sharpen),
    "unsharp": Recipe("clip", {"sigma": 2, "amount": 1, "truncate": 4}, _gaussian_size, unsharp),
    "emboss": Recipe("offset", {}, partial(_fixed_size, 3), emboss),
    "laplacian": Recipe("absolute", {}, partial(_fixed_size, 3), laplacian),
    "log": Recipe("stretch", {"sigma": 1.4, "truncate": 4}, _gaussian_size, laplacian_of_gaussian),
    **_derivatives("sobel", (1, 2, 1)),
    **_derivatives("scharr", (3, 10, 3)),
    **_derivatives("prewitt", (1, 1, 1)),
}
