"""The PTX machine keeps a device's rules: each is broken once, in a few lines of PTX."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest

from ptx.arithmetic import compute
from ptx.machine import Machine
from ptx.program import PtxError

HEAD = """
.version 8.0
.target sm_90
.address_size 64
.extern .shared .align 16 .b8 _shared_rawE[];
.visible .entry kernel(.param .u64 out, .param .u32 count)
.maxntid 64, 1, 1
{
    .reg .pred %p<9>;
    .reg .b16 %rs<9>;
    .reg .f32 %f<9>;
    .reg .b32 %r<19>;
    .reg .b64 %rd<9>;
    ld.param.u64 %rd1, [out];
    ld.param.u32 %r1, [count];
    mov.u32 %r2, %tid.x;
    mov.u32 %r3, %ctaid.x;
    mov.u32 %r4, _shared_rawE;
    shl.b32 %r5, %r2, 2;
    add.s32 %r6, %r4, %r5;
    mul.wide.u32 %rd2, %r2, 4;
    add.s64 %rd3, %rd1, %rd2;
"""


def run(body: str, out: Any, count: int = 0, *, threads: int = 64, blocks: int = 1, shared: int = 1024) -> Machine:
    """A kernel with `body`, in which %rd3 is the thread's word of out, %r6 its word of shared memory."""
    machine = Machine()
    machine.load(HEAD + body + "\n ret;\n}\n")
    machine.memory.allow("out", out.ctypes.data, out.nbytes, writable=True)
    pointer, number = ctypes.c_uint64(out.ctypes.data), ctypes.c_uint32(count)
    machine.launch("kernel", blocks, threads, shared, [ctypes.addressof(pointer), ctypes.addressof(number)])
    return machine


def words(count: int = 64) -> Any:
    # On a multiple of 256 bytes, as a device's allocations are.
    block = np.zeros(count + 64, np.uint32)
    first = -block.ctypes.data % 256 // 4
    return block[first : first + count]


def test_threads_part_and_come_together() -> None:
    """A loop that each thread leaves after as many turns as its number says."""
    out = words()
    machine = run(
        """
    mov.u32 %r7, 0;
$again:
    setp.ge.u32 %p1, %r7, %r2;
    @%p1 bra $done;
    add.s32 %r7, %r7, 1;
    bra.uni $again;
$done:
    mul.lo.s32 %r8, %r7, 10;
    @!%p1 mov.u32 %r8, 7;
    st.global.u32 [%rd3], %r8;
    """,
        out,
    )
    np.testing.assert_array_equal(out, np.arange(64) * 10)
    assert machine.reached["kernel"].sum() == machine.reached["kernel"].size


EXCHANGE = """
    st.shared.u32 [%r6], %r2;
    {barrier}
    xor.b32 %r9, %r2, {by};
    shl.b32 %r9, %r9, 2;
    add.s32 %r9, %r9, %r4;
    ld.shared.u32 %r10, [%r9];
    st.global.u32 [%rd3], %r10;
    """


def test_barriers_order_what_threads_exchange() -> None:
    for barrier, by in (("bar.sync 0;", 63), ("bar.sync 0;", 1), ("bar.warp.sync -1;", 31)):
        out = words()
        run(EXCHANGE.format(barrier=barrier, by=by), out)
        np.testing.assert_array_equal(out, np.arange(64) ^ by)


@pytest.mark.parametrize(("barrier", "by"), [("", 1), ("bar.warp.sync -1;", 63)])
def test_a_missing_barrier_is_a_race(barrier: str, by: int) -> None:
    with pytest.raises(PtxError, match=r"race: thread .* read what thread .* wrote in shared memory"):
        run(EXCHANGE.format(barrier=barrier, by=by), words())


def test_what_was_read_is_not_overwritten_without_a_barrier() -> None:
    body = EXCHANGE.format(barrier="bar.sync 0;", by=63) + "{} st.shared.u32 [%r6], %r10;"
    run(body.replace("{}", "bar.sync 0;"), words())
    with pytest.raises(PtxError, match=r"race: thread .* wrote over what thread .* read in shared memory"):
        run(body.replace("{}", ""), words())
    # Many have read one word, one of them writes it.
    everyone = "ld.shared.u32 %r7, [%r4]; setp.ne.u32 %p1, %r2, 0; @%p1 bra $end; st.shared.u32 [%r4], %r7; $end:"
    with pytest.raises(PtxError, match="race: thread 0 wrote over what other threads read"):
        run(everyone, words())


def test_two_writers_of_one_word_are_a_race() -> None:
    with pytest.raises(PtxError, match="race: two threads write one place of shared memory at once"):
        run("st.shared.u32 [%r4], %r2;", words())
    with pytest.raises(PtxError, match="race: two threads write one place of out at once"):
        run("st.global.u32 [%rd1], %r2;", words())


def test_blocks_have_no_barrier_between_them() -> None:
    body = "setp.ne.u32 %p1, %r3, 0; @!%p1 st.global.u32 [%rd3], %r3; bar.sync 0; @%p1 ld.global.u32 %r7, [%rd3];"
    run(body, words())
    with pytest.raises(PtxError, match="race: thread 64 read what thread 0 wrote in out"):
        run(body, words(), blocks=2)


def test_launches_are_ordered() -> None:
    out = words()
    for _ in range(2):
        run("st.global.u32 [%rd3], %r2;", out)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("add.s64 %rd3, %rd3, 4; st.global.u32 [%rd3], %r2;", "writes 4 bytes at .*, which no allocation holds"),
        ("ld.global.nc.u32 %r7, [%rd3+-4];", "reads 4 bytes at .*, which no allocation holds"),
        ("ld.global.v2.u32 {%r7, %r8}, [%rd3];", "misaligned: 8 bytes of global memory"),
        ("ld.shared.v4.f32 {%f1, %f2, %f3, %f4}, [%r6];", "misaligned: 16 bytes of shared memory"),
        ("st.shared.u32 [%r6+896], %r2;", "shared memory of 1024 bytes is touched at 1024"),
        ("ld.shared.u32 %r7, [%r6+-4];", "shared memory of 1024 bytes is touched at -4"),
        ("mov.u32 %r7, %r18;", "%r18 is read before it is written"),
        ("setp.lt.u32 %p1, %r2, 32; @%p1 bra $end; bar.sync 0; $end:", "thread 32 waits for ever at 'bar.sync 0'"),
        (
            "setp.lt.u32 %p1, %r2, 5; @%p1 bra $end; shfl.sync.bfly.b32 %r7|%p2, %r2, 1, 31, -1; $end:",
            "waits for ever at 'shfl.sync",
        ),
        ("div.u32 %r7, %r2, %r1;", "div.u32 by zero"),
        ("popc.b32 %r7, %r2;", "popc.b32 is not known"),
        ("add.rz.f32 %f1, 0f3F800000, 0f3F800000;", "add.rz.f32 is not known"),
        ("bar.sync 1, 32;", "only barrier 0 of all threads"),
    ],
)
def test_what_a_device_does_not_allow_is_an_error(body: str, said: str) -> None:
    with pytest.raises(PtxError, match=said):
        run(body, words())


def test_inputs_are_not_written_and_launches_are_bounded() -> None:
    machine, out = Machine(), words()
    machine.load(HEAD + "st.global.u32 [%rd3], %r2; ret; }")
    machine.memory.allow("x", out.ctypes.data, out.nbytes)
    pointer, number = ctypes.c_uint64(out.ctypes.data), ctypes.c_uint32(0)
    given = [ctypes.addressof(pointer), ctypes.addressof(number)]
    with pytest.raises(PtxError, match="writes to x, which is an input"):
        machine.launch("kernel", 1, 32, 0, given)
    for threads in (0, 33, 96):
        with pytest.raises(PtxError, match=f"launched with {threads} threads, its bound is 64"):
            machine.launch("kernel", 1, threads, 0, given)


def test_shuffles() -> None:
    out = words()
    run("shfl.sync.bfly.b32 %r7|%p1, %r2, 5, 31, -1; st.global.u32 [%rd3], %r7;", out)
    np.testing.assert_array_equal(out, np.arange(64) ^ 5)


def test_parts_of_registers() -> None:
    out = words()
    body = "{ .reg .b16 low; mov.b32 {low, %rs1}, 0x12345678; mov.b32 %r7, {%rs1, low}; } st.global.u32 [%rd3], %r7;"
    run(body, out)
    assert set(out) == {0x56781234}


def f32(*values: float) -> Any:
    return np.array(values, np.float32).view(np.uint32)


@pytest.mark.parametrize(
    ("name", "operands", "expected"),
    [
        ("add.s32", [[0x7FFFFFFF], [1]], [0x80000000]),
        ("div.s32", [[0xFFFFFFF9, 7], [2, 0xFFFFFFFE]], [0xFFFFFFFD, 0xFFFFFFFD]),
        ("shr.s32", [[0x80000000, 8], [40, 1]], [0xFFFFFFFF, 4]),
        ("shr.u32", [[0x80000000, 8], [40, 1]], [0, 4]),
        ("shl.b32", [[1, 1], [31, 32]], [0x80000000, 0]),
        ("bfi.b32", [[0xFF, 3], [0, 0xFFFFFFFF], [27, 0], [5, 1]], [0xF8000000, 0xFFFFFFFF]),
        ("mul.lo.s32", [[0xFFFFFFFF], [5]], [0xFFFFFFFB]),
        ("min.s32", [[0xFFFFFFFF], [5]], [0xFFFFFFFF]),
        ("max.f32", [f32(np.nan, -1), f32(2, -2)], f32(2, -1)),
        ("ex2.approx.ftz.f32", [f32(0, 1, -126, -127, -1e30, np.inf)], f32(1, 2, 2.0**-126, 0, 0, np.inf)),
        ("fma.rn.f32", [f32(1 + 2**-23), f32(1 + 2**-23), f32(-1)], f32(2.0**-22 + 2.0**-46)),
        ("fma.rm.f32", [f32(1), f32(1), f32(-(2.0**-30))], f32(1 - 2.0**-24)),
        ("cvt.sat.f32.f32", [f32(-1, 0.5, 2, np.nan)], f32(0, 0.5, 1, 0)),
        ("cvt.rn.bf16.f32", [f32(1 + 2**-8, 1 + 3 * 2.0**-8, np.nan)], [0x3F80, 0x3F82, 0x7FFF]),
        ("cvt.rn.f16.f32", [f32(1e6, 1 + 2.0**-11)], [0x7C00, 0x3C00]),
        ("cvt.s64.s32", [[0xFFFFFFFF]], [0xFFFFFFFFFFFFFFFF]),
        ("cvt.rzi.s32.f32", [f32(-1.7, 1e20, np.nan)], [0xFFFFFFFF, 0x7FFFFFFF, 0]),
        ("setp.ne.f32", [f32(np.nan, 1), f32(1, 2)], [False, True]),
        ("setp.neu.f32", [f32(np.nan, 1), f32(1, 1)], [True, False]),
        ("selp.b32", [[1, 2], [3, 4], [True, False]], [1, 4]),
    ],
)
def test_arithmetic(name: str, operands: list[Any], expected: Any) -> None:
    """By the PTX manual, at the edges."""
    parts = tuple(name.split("."))
    dtypes = {"cvt.s64.s32": np.uint32}
    given = [np.asarray(o, np.bool_ if isinstance(o[0], bool) else dtypes.get(name, np.uint32)) for o in operands]
    with np.errstate(all="ignore"):
        got = compute(parts, given)
    np.testing.assert_array_equal(got, np.asarray(expected).astype(got.dtype))
