"""Loading other people's models: plain weights only, in silence, and hashed."""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import pickle
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gmv_qdrant.errors import ModelError, first_line

if TYPE_CHECKING:
    import torch

LOAD_ERRORS = (
    RuntimeError,
    ValueError,
    LookupError,
    OSError,
    AttributeError,
    EOFError,
    pickle.UnpicklingError,
)
"""What loaders raise for a file that is no weights, or those of something else."""


def load_state(path: Path) -> dict[str, torch.Tensor]:
    """A state dict from a file, weights only: a pickle that would run code is refused with `ModelError`."""
    import torch

    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except LOAD_ERRORS as error:
        raise ModelError(f"{path} is not a file of plain weights: {first_line(error)}") from error
    for key in ("state_dict", "params", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ModelError(f"{path} holds no state dict")
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def state_hash(state: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over names, shapes, dtypes and bytes of the tensors, in the order of their names."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@contextlib.contextmanager
def swapped(owner: Any, name: str, value: Any) -> Iterator[None]:
    """``owner.name`` is ``value`` inside: for packages whose loaders leave no other way in."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextlib.contextmanager
def quiet() -> Iterator[list[warnings.WarningMessage]]:
    """No prints or logs of third-party loaders: stdout belongs to ``--json``. Gives the warnings."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    sink = io.StringIO()
    try:
        with (
            warnings.catch_warnings(record=True) as said,
            contextlib.redirect_stdout(sink),
            contextlib.redirect_stderr(sink),
        ):
            warnings.simplefilter("always")
            yield said
    finally:
        logging.disable(level)
