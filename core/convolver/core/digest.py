"""The name of a layer, which follows from what it is: the same on every server, known before the layer is sent."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING

from convolver.core.errors import InvalidConvolution, shown

if TYPE_CHECKING:
    from typing_extensions import Buffer


def digest_of(definition: bytes, weight: Buffer, bias: Buffer | None) -> str:
    """The digest of a layer, "sha256:" and 64 hexadecimal digits, as the contract's HeldLayer.digest says.

    `definition` is the serialised LayerDefinition as it is sent; `weight` and `bias` are its tensors' bytes in one
    dimension, as `tensors.to_bytes` gives them.
    """
    hashed = hashlib.sha256(len(definition).to_bytes(8, "little"))
    for part in (definition, weight) if bias is None else (definition, weight, bias):
        hashed.update(part)
    return f"sha256:{hashed.hexdigest()}"


def checked_digest(digest: str, field: str = "digest") -> str:
    """The digest in lower case. Raises InvalidConvolution where it is not "sha256:" and 64 hexadecimal digits."""
    if not re.fullmatch("sha256:[0-9A-Fa-f]{64}", digest):
        raise InvalidConvolution(f"{field} is {shown(digest)}; it must be 'sha256:' and 64 hexadecimal digits", field)
    return digest.lower()
