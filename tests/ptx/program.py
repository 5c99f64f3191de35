"""PTX text to instructions."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_REGISTER_BYTES = {"pred": 1, "b16": 2, "b32": 4, "f32": 4, "b64": 8, "f64": 8}
_INSTRUCTION = re.compile(r"(?:@(!?)(%\w+)\s+)?([a-z][\w.]*)\s*(.*)")
_FUNCTION = re.compile(r"\.entry\s+(\w+)\s*\((.*?)\)(.*?)\{", re.DOTALL)
_PARAMETER = re.compile(r"\.param\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+(\w+)(?:\[(\d+)\])?")
_REGISTERS = re.compile(r"\.reg\s+\.(\w+)\s+([%\w]+?)(?:<\d+>)?\s*;")


class PtxError(Exception):
    """The program does what a device would not allow, or what this interpreter does not know."""


@dataclass(frozen=True)
class Parameter:
    name: str
    offset: int
    nbytes: int


@dataclass(frozen=True)
class Instruction:
    """`name` is split at its dots; operands are texts, those in braces as tuples."""

    name: tuple[str, ...]
    operands: tuple[str | tuple[str, ...], ...]
    guard: str = ""
    negated: bool = False
    text: str = ""


@dataclass
class Function:
    name: str
    parameters: list[Parameter]
    max_threads: int
    registers: dict[str, int] = field(default_factory=dict)  # name without its number, such as "%rd", to bytes each
    code: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)


def parse(text: str) -> dict[str, Function]:
    """The kernels of a PTX file, by name."""
    text = re.sub(r"//[^\n]*", "", text)
    found = {}
    for match in _FUNCTION.finditer(text):
        function = Function(match[1], _parameters(match[2]), _max_threads(match[3]))
        _read_body(function, text[match.end() : _end_of_body(text, match.end())])
        found[function.name] = function
    return found


def _parameters(text: str) -> list[Parameter]:
    found: list[Parameter] = []
    offset = 0
    for align, kind, name, count in _PARAMETER.findall(text):
        each = int(re.sub(r"\D", "", kind)) // 8
        step = int(align or each)
        offset = -(-offset // step) * step
        found.append(Parameter(name, offset, each * int(count or 1)))
        offset += found[-1].nbytes
    return found


def _max_threads(directives: str) -> int:
    limit = re.search(r"\.maxntid\s+(\d+)", directives)
    return int(limit[1]) if limit else 1024


def _end_of_body(text: str, start: int) -> int:
    depth = 1
    for match in re.finditer(r"[{}]", text[start:]):
        depth += 1 if match[0] == "{" else -1
        if depth == 0:
            return start + match.start()
    raise PtxError("a function has no end")


def _read_body(function: Function, body: str) -> None:
    for kind, name in _REGISTERS.findall(body):
        function.registers[name] = _REGISTER_BYTES[kind]
    # Inline assembly and call sequences come in braces of their own, which hold no declarations that matter here.
    for label, statement in re.findall(r"(?:^|\s)(\$\w+):|([^;{}]*(?:\{[^{};]*\}[^;{}]*)*);", body):
        if label:
            function.labels[label] = len(function.code)
            continue
        _read_statement(function, " ".join(statement.split()))


def _read_statement(function: Function, statement: str) -> None:
    while match := re.match(r"(\$\w+):\s*", statement):
        function.labels[match[1]] = len(function.code)
        statement = statement[match.end() :]
    if not statement or statement.startswith("."):
        return
    match = _INSTRUCTION.fullmatch(statement)
    if match is None:
        raise PtxError(f"cannot read {statement!r}")
    negated, guard, name, rest = match.groups()
    function.code.append(
        Instruction(tuple(name.split(".")), tuple(_operands(rest)), guard or "", bool(negated), statement)
    )


def _operands(text: str) -> list[str | tuple[str, ...]]:
    found: list[str | tuple[str, ...]] = []
    for braces, plain in re.findall(r"[{(]([^})]*)[})]|([^,{}()\s][^,{}()]*)", text):
        if braces:
            found.append(tuple(part.strip() for part in braces.split(",")))
        else:
            found.extend(part.strip() for part in plain.split("|"))
    return found
