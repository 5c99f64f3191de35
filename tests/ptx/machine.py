"""Launches of PTX kernels: threads by the thousand, each an element of every register's array.

Among the threads that can go on, those at the lowest instruction go first, so that what diverged comes together again.
Barriers are kept: bar.sync waits for every thread of its block, bar.warp.sync and shfl.sync for every thread of the
warp.
"""

from __future__ import annotations

import ctypes
import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ptx.arithmetic import bytes_of, compute, number_type, word_type
from ptx.memory import Clock, Global, Shared, check_alignment
from ptx.program import Function, Instruction, PtxError, parse

Words = npt.NDArray[Any]
_LANES = 1 << 13  # threads that run side by side, in whole blocks
_PARAMETERS = 0x1000  # where parameters lie in their own memory
_ADDRESS = re.compile(r"\[\s*([%$\w]+)\s*(?:\+\s*(-?\d+))?\s*\]")
_FREE, _AT_BARRIER, _AT_WARP, _ENDED = range(4)


@dataclass
class Machine:
    """A device.

    Args:
        memory: what kernels may touch.

    Attributes:
        functions: the kernels that were loaded.
        executed: instructions of threads, so far.
        reached: for each kernel that was launched, which of its instructions were executed.
        conditions: what cudaGraphSetConditional was called with: handle to value.
    """

    memory: Global = field(default_factory=Global)
    functions: dict[str, Function] = field(default_factory=dict)
    executed: int = 0
    reached: dict[str, npt.NDArray[np.bool_]] = field(default_factory=dict)
    conditions: dict[int, int] = field(default_factory=dict)

    def load(self, text: str) -> None:
        """Adds the kernels of a PTX file."""
        self.functions |= parse(text)

    def launch(self, name: str, grid: int, threads: int, shared_bytes: int, arguments: Sequence[int]) -> None:
        """Runs a kernel to its end.

        Args:
            name: as the PTX file has it.
            grid: blocks.
            threads: of a block.
            shared_bytes: dynamic shared memory of a block.
            arguments: where in the host's memory each parameter's value is.

        Raises:
            PtxError: what a device would not allow.
        """
        function = self.functions[name]
        if not 1 <= threads <= function.max_threads or threads % 32:
            raise PtxError(f"{name} is launched with {threads} threads, its bound is {function.max_threads}")
        parameters = np.zeros(sum(p.nbytes for p in function.parameters) + 16, np.uint8)
        for parameter, source in zip(function.parameters, arguments, strict=True):
            value = np.frombuffer(ctypes.string_at(source, parameter.nbytes), np.uint8)
            parameters[parameter.offset : parameter.offset + parameter.nbytes] = value
        self.memory.begin_launch(threads)
        self.reached.setdefault(name, np.zeros(len(function.code), np.bool_))
        together = max(1, _LANES // threads)
        with np.errstate(all="ignore"):
            for first in range(0, grid, together):
                blocks = range(first, min(first + together, grid))
                _Run(self, function, parameters, blocks, threads, shared_bytes, grid).run()


class _Run:
    """Some blocks of a launch, from their first instruction to their last."""

    def __init__(
        self,
        machine: Machine,
        function: Function,
        parameters: npt.NDArray[np.uint8],
        blocks: range,
        threads: int,
        shared_bytes: int,
        grid: int,
    ) -> None:
        self._machine, self._function, self._parameters = machine, function, parameters
        count, self._threads = len(blocks) * threads, threads
        everyone = np.arange(count)
        self._all, self._block = everyone, everyone // threads
        self._warp = everyone // 32
        self._first_block, self._first_lane = blocks.start, blocks.start * threads
        self._shared = Shared(len(blocks), shared_bytes, threads)
        self._block_time, self._warp_time = np.zeros(len(blocks), np.int64), np.zeros(count // 32, np.int64)
        self._pc = np.zeros(count, np.int64)
        self._state = np.full(count, _FREE, np.int8)
        self._registers: dict[str, Words] = {}
        self._call: dict[str, Words] = {}
        self._constants: dict[tuple[str, str], Any] = {}
        special = {
            "%tid.x": everyone % threads, "%ctaid.x": self._block + blocks.start, "%ntid.x": np.full(count, threads),
            "%nctaid.x": np.full(count, grid), "%laneid": everyone % 32,
        }  # fmt: skip
        self._special = {name: values.astype(np.uint32) for name, values in special.items()}

    def run(self) -> None:
        while True:
            free = self._state == _FREE
            if not free.any():
                if np.all(self._state == _ENDED):
                    return
                self._stuck()
            first = int(self._pc[free].min())
            here = free & (self._pc == first)
            others = self._pc[free & ~here]
            try:
                self._together(
                    np.flatnonzero(here), first, int(others.min()) if others.size else len(self._function.code)
                )
            except PtxError as error:
                raise PtxError(f"{self._function.name}: {error}") from None

    def _together(self, lanes: Words, pc: int, until: int) -> None:
        """Runs lanes that are at one instruction until they part, wait, end, or meet others at `until`."""
        code, reached = self._function.code, self._machine.reached[self._function.name]
        while True:
            instruction = code[pc]
            reached[pc] = True
            self._machine.executed += lanes.size
            kind = instruction.name[0]
            if kind == "bra":
                taken = self._guard(instruction, lanes)
                target = self._function.labels[str(instruction.operands[0])]
                if taken is not None and not taken.all():
                    if taken.any():
                        self._pc[lanes[taken]], self._pc[lanes[~taken]] = target, pc + 1
                        return
                    target = pc + 1
                pc = target
            elif kind in ("ret", "exit"):
                if instruction.guard:
                    raise PtxError("a guarded return is not known")
                self._state[lanes] = _ENDED
                return
            elif kind in ("bar", "barrier") or kind == "shfl":
                if not self._meet(instruction, lanes, pc):
                    return
                pc += 1
            else:
                chosen = self._guard(instruction, lanes)
                active = lanes if chosen is None else lanes[chosen]
                if active.size:
                    self._execute(instruction, active)
                pc += 1
            if pc >= until:
                self._pc[lanes] = pc
                return

    def _guard(self, instruction: Instruction, lanes: Words) -> Words | None:
        if not instruction.guard:
            return None
        held = self._read(instruction.guard, "pred", lanes)
        return ~held if instruction.negated else held

    # Waiting for others

    def _meet(self, instruction: Instruction, lanes: Words, pc: int) -> bool:
        """Whether all that must come are here, so that the instruction was carried out; else they wait."""
        if instruction.guard:
            raise PtxError(f"{instruction.text}: under a guard is not known")
        of_warp = instruction.name[0] == "shfl" or instruction.name[1] == "warp"
        self._pc[lanes] = pc
        self._state[lanes] = _AT_WARP if of_warp else _AT_BARRIER
        if of_warp:
            self._check_members(instruction, lanes)
            groups, size, member = np.unique(self._warp[lanes]), 32, self._warp
        else:
            if instruction.operands != ("0",):
                raise PtxError(f"{instruction.text}: only barrier 0 of all threads is known")
            groups, size, member = np.unique(self._block[lanes]), self._threads, self._block
        here = (self._state == (_AT_WARP if of_warp else _AT_BARRIER)) & (self._pc == pc)
        complete = groups[np.bincount(member[here], minlength=groups.max() + 1)[groups] == size]
        released = np.flatnonzero(here & np.isin(member, complete))
        if not released.size:
            return False
        self._state[released] = _FREE
        if instruction.name[0] == "shfl":
            self._shuffle(instruction, released)
        elif of_warp:
            self._warp_time[complete] += 1
        else:
            self._block_time[complete] += 1
        self._pc[released] = pc + 1
        return released.size == lanes.size == int(np.isin(lanes, released).sum())

    def _check_members(self, instruction: Instruction, lanes: Words) -> None:
        members = self._read(str(instruction.operands[-1]), "b32", lanes)
        if np.any(members != np.uint32(0xFFFFFFFF)):
            raise PtxError(f"{instruction.text}: only whole warps are known")

    def _shuffle(self, instruction: Instruction, lanes: Words) -> None:
        target, valid, source, by, clamp = (str(operand) for operand in instruction.operands[:5])
        if instruction.name[2] != "bfly" or np.any(self._read(clamp, "b32", lanes) != 31):
            raise PtxError(f"{instruction.text} is not known")
        values = np.zeros(self._all.size, np.uint32)
        values[lanes] = self._read(source, "b32", lanes)
        partner = lanes ^ self._read(by, "b32", lanes).astype(np.int64)
        self._write(target, values[partner], lanes)
        self._write(valid, np.ones(lanes.size, np.bool_), lanes)

    def _stuck(self) -> None:
        waiting = np.flatnonzero((self._state == _AT_BARRIER) | (self._state == _AT_WARP))
        lane = int(waiting[0])
        text = self._function.code[int(self._pc[lane])].text
        raise PtxError(f"{self._function.name}: thread {lane + self._first_lane} waits for ever at {text!r}")

    # Registers and memory

    def _execute(self, instruction: Instruction, lanes: Words) -> None:
        name, operands = instruction.name, instruction.operands
        if name[0] in ("ld", "st"):
            self._move(instruction, lanes)
        elif name[0] == "mov" and any(isinstance(operand, tuple) for operand in operands):
            self._repack(instruction, lanes)
        elif name[0] == "mov":
            self._write(str(operands[0]), self._read(str(operands[1]), name[-1], lanes).copy(), lanes)
        elif name[0] == "cvta":
            self._write(str(operands[0]), self._read(str(operands[1]), "u64", lanes).copy(), lanes)
        elif name[0] == "call":
            self._call_function(operands, lanes)
        else:
            kinds = _operand_kinds(name, len(operands) - 1)
            values = [self._read(str(o), kind, lanes) for o, kind in zip(operands[1:], kinds, strict=True)]
            self._write(str(operands[0]), compute(name, values), lanes)

    def _repack(self, instruction: Instruction, lanes: Words) -> None:
        """A register's parts to registers of their own, the lowest first, or the other way."""
        kind, (to, source) = instruction.name[-1], instruction.operands
        if isinstance(to, tuple):
            parts = self._read(str(source), kind, lanes).view(word_type(f"b{8 * bytes_of(kind) // len(to)}"))
            for i, register in enumerate(to):
                self._write(register, parts[i :: len(to)].copy(), lanes)
        else:
            narrow = [self._read(part, f"b{8 * bytes_of(kind) // len(source)}", lanes) for part in source]
            self._write(str(to), np.stack(narrow, axis=1).reshape(-1).view(word_type(kind)), lanes)

    def _call_function(self, operands: Sequence[str | tuple[str, ...]], lanes: Words) -> None:
        if operands[0] != "cudaGraphSetConditional":
            raise PtxError(f"a call of {operands[0]} is not known")
        handle, value = (self._call[name] for name in operands[1])
        for lane in lanes:
            self._machine.conditions[int(handle[lane])] = int(value[lane])

    def _read(self, operand: str, kind: str, lanes: Words) -> Words:
        if operand.startswith("%") or operand in self._registers:
            words = self._special.get(operand)
            if words is None:
                words = self._registers.get(operand)
                if words is None:
                    raise PtxError(f"{operand} is read before it is written")
            chosen = words if lanes.size == self._all.size else words[lanes]
            return chosen if chosen.dtype.itemsize == bytes_of(kind) else chosen.astype(word_type(kind))
        constant = self._constants.get((operand, kind))
        if constant is None:
            constant = self._constants[operand, kind] = self._constant(operand, kind)
        return np.full(lanes.size, constant, word_type(kind))

    def _constant(self, operand: str, kind: str) -> Any:
        if operand.startswith(("0f", "0F")):
            return np.uint32(int(operand[2:], 16))
        if operand.startswith(("0d", "0D")):
            return np.uint64(int(operand[2:], 16))
        if re.fullmatch(r"-?(0x[0-9a-fA-F]+|\d+)U?", operand):
            value = int(operand.rstrip("U"), 0)
            return bool(value) if kind == "pred" else word_type(kind)(value & (1 << 8 * bytes_of(kind)) - 1)
        return word_type(kind)(self._symbol(operand))

    def _symbol(self, name: str) -> int:
        for parameter in self._function.parameters:
            if parameter.name == name:
                return _PARAMETERS + parameter.offset
        if name.endswith("shared_rawE"):
            return Shared.FIRST
        raise PtxError(f"{name} is not known")

    def _write(self, register: str, words: Words, lanes: Words) -> None:
        if register == "_":
            return
        size = self._function.registers[register.rstrip("0123456789")]
        if words.dtype.itemsize != size:
            words = words.astype(word_type(f"b{8 * size}"))
        if lanes.size == self._all.size:
            self._registers[register] = words
            return
        kept = self._registers.get(register)
        if kept is None:  # what other lanes would read there, had they not written it, shows as NaN
            kept = np.full(self._all.size, 0 if words.dtype == np.bool_ else np.iinfo(words.dtype).max, words.dtype)
        kept = kept.copy()
        kept[lanes] = words
        self._registers[register] = kept

    def _address(self, operand: str, lanes: Words) -> Words:
        base, offset = _base_and_offset(operand)
        return self._read(base, "u64", lanes).astype(np.int64) + offset

    def _move(self, instruction: Instruction, lanes: Words) -> None:
        name, (first, second) = instruction.name, instruction.operands
        loads = name[0] == "ld"
        registers, where = (first, str(second)) if loads else (second, str(first))
        names = registers if isinstance(registers, tuple) else (registers,)
        kind, space = name[-1], name[1]
        if not loads and space == "param":
            self._call[where.strip("[]").split("+")[0]] = _spread(
                self._read(names[0], kind, lanes), lanes, self._all.size
            )
            return
        address, size, clock = self._address(where, lanes), bytes_of(kind), self._clock(lanes)
        local = self._block[lanes]
        if space == "param":
            check_alignment(address, size * len(names), "parameter")
            at = (address - _PARAMETERS) // size
            words = self._parameters[: self._parameters.size // size * size].view(word_type(kind))
            found = [words[at + i] for i in range(len(names))]
        elif space == "shared" and loads:
            found = self._shared.load(address, local, size, len(names), clock)
        elif space == "global" and loads:
            found = self._machine.memory.load(address, size, len(names), clock)
        elif space == "shared":
            self._shared.store(address, local, [self._read(n, kind, lanes) for n in names], size, clock)
        elif space == "global":
            self._machine.memory.store(address, [self._read(n, kind, lanes) for n in names], size, clock)
        else:
            raise PtxError(f"{instruction.text}: this kind of memory is not known")
        if loads:
            for register, words in zip(names, found, strict=True):
                # A narrow load fills a wider register by its type's rules.
                wide = self._function.registers[register.rstrip("0123456789")]
                if wide != words.dtype.itemsize:
                    words = words.view(number_type(kind)).astype(f"{'i' if kind[0] == 's' else 'u'}{wide}")
                    words = words.view(f"u{wide}")
                self._write(register, words, lanes)

    def _clock(self, lanes: Words) -> Clock:
        block, warp = self._block[lanes], self._warp[lanes]
        return Clock(
            lanes + self._first_lane, block + self._first_block, warp + self._first_lane // 32,
            self._block_time[block], self._warp_time[warp],
        )  # fmt: skip


@functools.cache
def _operand_kinds(name: tuple[str, ...], count: int) -> list[str]:
    """The types of an instruction's sources."""
    kind = name[-1]
    if name[0] == "cvt":
        return [kind]
    if name[0] == "selp":
        return [kind, kind, "pred"]
    if name[0] in ("shl", "shr"):
        return [kind, "u32"]
    if name[0] == "bfi":
        return [kind, kind, "u32", "u32"]
    if name[0] == "mad" and "wide" in name:
        return [kind, kind, f"{kind[0]}{16 * bytes_of(kind)}"]
    return [kind] * count


@functools.cache
def _base_and_offset(operand: str) -> tuple[str, int]:
    match = _ADDRESS.fullmatch(operand)
    if match is None:
        raise PtxError(f"cannot read the address {operand}")
    return match[1], int(match[2] or 0)


def _spread(words: Words, lanes: Words, size: int) -> Words:
    whole = np.zeros(size, words.dtype)
    whole[lanes] = words
    return whole
