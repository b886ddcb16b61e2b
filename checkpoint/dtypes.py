"""Element types by their safetensors names."""

from __future__ import annotations

from tlaunch.checkpoint.errors import Unusable

BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "F8_E8M0": 1, "F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1,
    "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4,
    "I64": 8, "U64": 8, "F64": 8, "C64": 8,
}  # fmt: skip
"""Bytes of one element."""

_TORCH = {
    "bool": "BOOL", "uint8": "U8", "int8": "I8", "float8_e5m2": "F8_E5M2", "float8_e4m3fn": "F8_E4M3",
    "float8_e8m0fnu": "F8_E8M0", "float8_e4m3fnuz": "F8_E4M3FNUZ", "float8_e5m2fnuz": "F8_E5M2FNUZ",
    "int16": "I16", "uint16": "U16", "float16": "F16", "bfloat16": "BF16",
    "int32": "I32", "uint32": "U32", "float32": "F32",
    "int64": "I64", "uint64": "U64", "float64": "F64", "complex64": "C64",
}  # fmt: skip
_BACK = {name: torch_name for torch_name, name in _TORCH.items()}


def name_of(torch_name: str, path: str) -> str:
    """Return the safetensors name of a torch dtype given as ``str(dtype)``; ``path`` names the tensor in the error.

    Raises:
        Unusable: safetensors has no such type.
    """
    name = _TORCH.get(torch_name.removeprefix("torch."))
    if name is None:
        raise Unusable(f"{path}: {torch_name} has no type in safetensors; expected one of {', '.join(sorted(_TORCH))}")
    return name


_OTHERS = ("complex32", "complex128", "quint8", "qint8", "qint32", "float4_e2m1fn_x2")


def is_torch_name(name: str) -> bool:
    """Whether an attribute of ``torch`` of this name is an element type, be it one that can be saved or not."""
    return name in _TORCH or name in _OTHERS


def torch_name(name: str) -> str:
    """Return the attribute of ``torch`` for a safetensors name."""
    return _BACK[name]
