"""What is checked of a checkpoint beside torch's reading: the file's checksums before it, the values after it.

A checkpoint is a zip whose records are stored as they are, each with a CRC-32, which torch writes and does not check.
Of the values nothing is believed: not their kinds and sizes, nor that they end.
"""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from audiotok.errors import first_line

_ZIP = b"PK\x03\x04"
_MAX_DEPTH = 60  # of containers within each other
_MAX_GROWTH = 10  # bytes and values that references within a file may make of each of its bytes
_SCALARS = (str, int, float, bool, type(None), torch.dtype, torch.device)


def damage(path: Path) -> str:
    """What is wrong with the records of a file, "" if nothing is or if it is no zip (torch's format before 1.6)."""
    with path.open("rb") as file:
        if file.read(len(_ZIP)) != _ZIP:
            return ""
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
            names = [record.filename.casefold() for record in records]  # torch finds them whatever their case
            if len(set(names)) < len(names):
                return "it has two records of one name"
            if any(record.compress_type != zipfile.ZIP_STORED for record in records):
                return "its records are compressed, which torch never does"
            if sum(record.file_size for record in records) > path.stat().st_size:
                return "its records claim more than its size"
            bad = archive.testzip()
            return f"the checksum of its record {bad!r} is wrong" if bad else ""
    except Exception as error:  # zipfile raises many kinds, all of them about the file
        return first_line(error)


def oddity(state: Any, size: int) -> str:
    """What of the values of a file of so many bytes is not plain data, "" if all is.

    Plain are tensors that lie in memory as their shape says, numbers of 64 bits, text, and dicts, lists and tuples of
    these, which neither contain themselves nor unfold to far more than the file.
    """
    sizes: dict[int, int] = {}  # of containers by id: one that is referred to often is walked once, and counts often

    def measure(value: Any, depth: int) -> int:
        if id(value) in sizes:
            if not sizes[id(value)]:
                raise ValueError("a container that contains itself")
            return sizes[id(value)]
        if isinstance(value, Tensor):
            return _bytes_of(value)
        if isinstance(value, int) and value.bit_length() > 64:
            raise ValueError(f"a number of {value.bit_length()} bits")
        if isinstance(value, dict):
            if not all(isinstance(key, str | int) for key in value):
                raise ValueError("a dict whose keys are neither text nor whole numbers")
            items = [*value.values()]
        elif isinstance(value, list | tuple):
            items = [*value]
        elif isinstance(value, _SCALARS):
            return 1
        else:
            raise ValueError(f"a {type(value).__name__}")
        sizes[id(value)] = 0  # until it is known
        if depth == _MAX_DEPTH:
            raise ValueError(f"containers nested more than {_MAX_DEPTH} deep")
        total = 1 + sum(measure(item, depth + 1) for item in items)
        sizes[id(value)] = total
        if total > _MAX_GROWTH * size:
            raise ValueError("values that unfold to far more than its size")
        return total

    try:
        measure(state, 0)
    except ValueError as error:
        return str(error)
    return ""


def misfit(found: Any, own: Any, name: str = "", *, exact: bool = True) -> str:
    """First way in which a saved state is not of the form of `own`; "" if it is.

    Args:
        found: the saved state.
        own: a state of the right form; an empty dict or list, and None, stand for any content.
        name: of the state, for the message.
        exact: also refuse keys of dicts that only one of them has.
    """
    if isinstance(own, Tensor):
        if not isinstance(found, Tensor):
            return f"{name} is a {type(found).__name__}, expected a tensor"
        if found.shape != own.shape:
            return f"{name} is {list(found.shape)}, expected {list(own.shape)}"
        kinds = [(one.is_floating_point(), one.is_complex(), one.dtype == torch.bool) for one in (found, own)]
        return "" if kinds[0] == kinds[1] else f"{name} is of {found.dtype}, expected {own.dtype}"
    if isinstance(own, dict | list | tuple):
        kind = Mapping if isinstance(own, dict) else list | tuple
        if not isinstance(found, kind):
            return f"{name} is a {type(found).__name__}, expected a {type(own).__name__}"
        if not own:
            return ""
        saved, ours = ({**one} if isinstance(one, Mapping) else dict(enumerate(one)) for one in (found, own))
        dotted = {key: f"{name}.{key}" if name else str(key) for key in [*saved, *ours]}
        missing, more = [key for key in ours if key not in saved], [key for key in saved if key not in ours]
        if (exact or kind is not Mapping) and (missing or more):
            text = f"{dotted[missing[0]]} is missing" if missing else f"{dotted[more[0]]} is not expected"
            others = len(missing) + len(more) - 1
            return f"{text}, nor do {others} more agree" if others else text
        both = [key for key in ours if key in saved]
        faults = [text for key in both if (text := misfit(saved[key], ours[key], dotted[key], exact=exact))]
        return "" if not faults else faults[0] + (f", and {len(faults) - 1} more do not fit" if faults[1:] else "")
    if own is None:
        return ""
    number = isinstance(own, int | float)
    fits = isinstance(found, int | float) if number else isinstance(found, type(own))
    expected = "number" if number else type(own).__name__
    return "" if fits else f"{name} is a {type(found).__name__}, expected a {expected}"


def misfit_of_moments(optimizer: torch.optim.Optimizer) -> str:
    """First setting of an optimiser (Adam or AdamW), or state of a parameter, that does not fit; "" if all do."""
    for group in optimizer.param_groups:
        if missing := [name for name in optimizer.defaults if name not in group]:
            return f"the optimizer lacks {', '.join(missing)}"
        try:  # its constructor checks their ranges
            torch.optim.Adam([torch.zeros(1)], **{name: group[name] for name in ("lr", "betas", "eps", "weight_decay")})
        except (TypeError, ValueError) as error:
            return f"of the optimizer, {first_line(error)}"
    owned = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    names: set[str] = set()  # of a parameter's moments, the same for all of them
    for parameter, moments in optimizer.state.items():
        if id(parameter) not in owned or not isinstance(moments, dict):
            return "the optimizer has the state of a parameter that is not there"
        names = names or {*moments}
        if moments and {*moments} != names:
            return f"the optimizer has {sorted(names)} of one parameter, {sorted(moments)} of another"
        for name, value in moments.items():
            right = torch.Size() if name == "step" else parameter.shape
            if not isinstance(value, Tensor) or value.shape != right:
                shape = list(value.shape) if isinstance(value, Tensor) else f"a {type(value).__name__}"
                return f"{name} of the optimizer is {shape}, expected {list(right)}"
            if name == "step" and not value >= 0:
                return f"the optimizer is at step {value}"
    return ""


def not_finite(weights: Mapping[str, Any]) -> str:
    """Names of the weights that hold NaN or infinity as float32, at most three; "" if none does."""
    tensors = {name: value for name, value in weights.items() if isinstance(value, Tensor)}
    bad = [
        name
        for name, value in tensors.items()
        if not torch.isfinite(value.float() if value.is_floating_point() else value).all()
    ]
    more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
    return ", ".join(bad[:3]) + more


def _bytes_of(tensor: Tensor) -> int:
    plain = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_nested
    if not plain or tensor.is_quantized or tensor.is_complex():  # torch would drop imaginary parts
        raise ValueError("a tensor of a special kind")
    size = tensor.numel() * tensor.element_size()
    if size > tensor.untyped_storage().nbytes():
        raise ValueError(f"a tensor {list(tensor.shape)} of fewer values than its shape")
    return size + 1
