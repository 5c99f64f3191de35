"""What PTX's arithmetic instructions compute, on arrays of register words.

Registers are unsigned words; a function views them as the type in the instruction's name. fma is made in float64 and
rounded again, which can be off by one rounding where float64 rounds to the middle of two float32 numbers; ex2.approx
and div.approx are correctly rounded here, the device's are off by up to two units in the last place. NumPy's warnings
about overflow and the like are the caller's to silence.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from ptx.program import PtxError

Words = npt.NDArray[Any]
_WORD = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
_NUMERIC = {"mul", "mad", "div", "rem", "fma", "ex2", "rcp", "add", "sub", "min", "max", "neg", "abs"}
_MODIFIERS = {"rn", "rm", "approx", "full", "ftz"}
_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
}  # fmt: skip


@functools.cache
def bytes_of(kind: str) -> int:
    """Of a type such as "f32"; "pred" is one byte."""
    return 1 if kind == "pred" else max(1, int(re.sub(r"\D", "", kind)) // 8)


@functools.cache
def word_type(kind: str) -> Any:
    return np.bool_ if kind == "pred" else _WORD[bytes_of(kind)]


@functools.cache
def number_type(kind: str) -> Any:
    """The numpy type that words of this kind are read as."""
    if kind == "pred":
        return np.bool_
    letter, size = kind[0], bytes_of(kind)
    if letter == "f":
        return {2: np.float16, 4: np.float32, 8: np.float64}[size]
    return np.dtype(f"i{size}").type if letter == "s" else _WORD[size]


def compute(name: tuple[str, ...], operands: list[Words]) -> Words:
    """The result's words. `operands` are words of the types that the instruction takes.

    Raises:
        PtxError: an instruction that is not known here.
    """
    op = name[0]
    if op == "setp":
        return _compare(name[1], name[-1], *operands)
    if op == "cvt":
        return _convert(name, operands[0])
    if op == "selp":
        return np.where(operands[2], operands[0], operands[1])
    if op in _NUMERIC:
        return _arithmetic(name, operands)
    if op in _BITS:
        return _BITS[op](name[-1], *operands)
    raise PtxError(f"{'.'.join(name)} is not known")


def _compare(relation: str, kind: str, a: Words, b: Words) -> Words:
    x, y = a.view(number_type(kind)), b.view(number_type(kind))
    if kind[0] == "f":
        unordered = np.isnan(x) | np.isnan(y)
        if relation == "nan":
            return unordered
        if relation == "num":
            return ~unordered
        if relation in ("equ", "neu", "ltu", "leu", "gtu", "geu"):
            return unordered | _COMPARE[relation[:-1]](x, y)
        return ~unordered & _COMPARE[relation](x, y)
    return _COMPARE[relation](x, y)


def _arithmetic(name: tuple[str, ...], operands: list[Words]) -> Words:
    op, kind = name[0], name[-1]
    values = [words.view(number_type(kind)) for words in operands[:2]]
    if kind[0] == "f":
        if not _MODIFIERS.issuperset(name[1:-1]) or ("ftz" in name and op != "ex2"):
            raise PtxError(f"{'.'.join(name)} is not known")
        if op == "fma":
            return _fused(values[0], values[1], operands[2].view(number_type(kind)), down="rm" in name)
        return _float(op, kind, *values)
    if op in ("mul", "mad"):
        return _product(name, operands)
    wide = {"add": np.add, "sub": np.subtract, "min": np.minimum, "max": np.maximum, "neg": np.negative, "abs": np.abs}
    if op in wide:
        result = wide[op](*values)
    elif not np.all(values[1]):
        raise PtxError(f"{'.'.join(name)} by zero")
    elif op == "div":
        quotient = np.abs(values[0]) // np.abs(values[1])
        result = np.where(np.signbit(values[0] * 1.0) != np.signbit(values[1] * 1.0), -quotient, quotient)
    else:
        result = np.fmod(values[0], values[1])
    return result.astype(number_type(kind)).view(word_type(kind))


def _float(op: str, kind: str, a: Any, b: Any = None) -> Words:
    if op == "ex2":  # ftz: denormals become zeros, before and after
        tiny = np.finfo(np.float32).tiny
        result = np.exp2(np.where(np.abs(a) < tiny, 0, a).astype(np.float64)).astype(np.float32)
        result = np.where(result < tiny, np.float32(0), result)
    elif op in ("min", "max"):  # the number, where the other is none
        result = (np.fmin if op == "min" else np.fmax)(a, b)
    else:
        exact = {
            "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "neg": np.negative, "abs": np.abs,
            "rcp": lambda x: x.dtype.type(1) / x,
        }  # fmt: skip
        result = exact[op](a) if b is None else exact[op](a, b)
    return np.ascontiguousarray(result).view(word_type(kind))


def _fused(a: Any, b: Any, c: Any, *, down: bool) -> Words:
    exact = a.astype(np.float64) * b.astype(np.float64) + c.astype(np.float64)
    result = exact.astype(np.float32)
    if down:
        above = result.astype(np.float64) > exact
        result = np.where(above, np.nextafter(result, np.float32(-np.inf)), result)
    return result.view(np.uint32)


def _product(name: tuple[str, ...], operands: list[Words]) -> Words:
    kind = name[-1]
    a, b = (words.view(number_type(kind)) for words in operands[:2])
    if "wide" in name:
        double = np.dtype(f"{'i' if kind[0] == 's' else 'u'}{2 * bytes_of(kind)}").type
        result = (a.astype(double) * b.astype(double)).view(_WORD[2 * bytes_of(kind)])
    elif "lo" in name:
        result = (a * b).view(word_type(kind))
    else:
        raise PtxError(f"{'.'.join(name)} is not known")
    return result + operands[2] if name[0] == "mad" else result


def _convert(name: tuple[str, ...], words: Words) -> Words:
    to, source = name[-2:]
    if source == "bf16":
        raise PtxError(f"{'.'.join(name)} is not known")
    value = words.view(number_type(source))
    if name[1:] == ("rn", "bf16", "f32"):
        return _to_bfloat16(words)
    if name[1] == "sat":
        return np.clip(np.where(np.isnan(value), 0, value), 0, 1).astype(np.float32).view(np.uint32)
    both_float = to[0] == source[0] == "f"
    if both_float and (bytes_of(to) > bytes_of(source) or name[1] == "rn"):
        return value.astype(number_type(to)).view(word_type(to))
    if to[0] != "f" and source[0] != "f" and len(name) == 3:
        return value.astype(number_type(to)).view(word_type(to))
    if to[0] == "f" and source[0] != "f" and name[1] == "rn":
        return value.astype(number_type(to)).view(word_type(to))
    if to[0] != "f" and source == "f32" and name[1] in ("rzi", "rni"):
        limits = np.iinfo(number_type(to))
        whole = np.trunc(value.astype(np.float64)) if name[1] == "rzi" else np.rint(value.astype(np.float64))
        whole = np.clip(np.where(np.isnan(whole), 0, whole), limits.min, limits.max)
        return whole.astype(number_type(to)).view(word_type(to))
    raise PtxError(f"{'.'.join(name)} is not known")


def _to_bfloat16(words: Words) -> Words:
    wide = words.astype(np.uint64)
    rounded = ((wide + 0x7FFF + (wide >> np.uint64(16) & np.uint64(1))) >> np.uint64(16)).astype(np.uint16)
    return np.where(np.isnan(words.view(np.float32)), np.uint16(0x7FFF), rounded)


def _shift(left: bool) -> Callable[..., Words]:
    def shift(kind: str, a: Words, count: Words) -> Words:
        value, width = a.view(number_type(kind)), 8 * bytes_of(kind)
        # Counts beyond the width give what is shifted in, not what C leaves undefined.
        arithmetic = not left and kind[0] == "s"
        most = width - 1 if arithmetic else width
        bounded = np.minimum(count, np.uint32(most)).astype(value.dtype)
        inside = np.minimum(bounded, width - 1)
        result = value << inside if left else value >> inside
        if not arithmetic:
            result = np.where(bounded >= width, 0, result)
        return result.astype(value.dtype).view(word_type(kind))

    return shift


def _insert(kind: str, a: Words, b: Words, position: Words, length: Words) -> Words:
    width = 8 * bytes_of(kind)
    start, count = position.astype(np.uint64) & np.uint64(255), length.astype(np.uint64) & np.uint64(255)
    count = np.minimum(count, np.uint64(width) - np.minimum(start, np.uint64(width)))
    mask = ((np.uint64(1) << count) - np.uint64(1)) << start
    return ((b.astype(np.uint64) & ~mask) | ((a.astype(np.uint64) << start) & mask)).astype(word_type(kind))


def _invert(kind: str, a: Words) -> Words:
    return ~a


_BITS: dict[str, Callable[..., Words]] = {
    "and": lambda kind, a, b: a & b,
    "or": lambda kind, a, b: a | b,
    "xor": lambda kind, a, b: a ^ b,
    "not": _invert,
    "shl": _shift(left=True),
    "shr": _shift(left=False),
    "bfi": _insert,
}
