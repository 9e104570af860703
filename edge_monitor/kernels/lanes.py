"""Lanes: the vectors of sixteen numbers in which LLVM code sums activations, and how each kind is summed.

``<16 x float>`` is one register with AVX-512, two with AVX, four with NEON, and gives the same order of
additions on all of them; only a multiply and its add are fused where the CPU can. Nothing but LLVM's core
instructions is used, so every target can lower it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils

from edge_monitor.kernels.memory import FLOAT32, INT8, ITEM_SIZES

LANES = 16

SIGNAL, POSITIVE, FULL = range(3)
"""What to sum: |a|; a and a^2 of floats of which none should be negative (sum |a| is NaN if one is);
|a|, a and a^2, floats about a pivot."""

I1, I8, I16, I32, I64 = (ir.IntType(bits) for bits in (1, 8, 16, 32, 64))
FLOAT, DOUBLE = ir.FloatType(), ir.DoubleType()
FLOATS, DOUBLES, BYTES, SHORTS, INTS, LONGS = (
    ir.VectorType(element, LANES) for element in (FLOAT, DOUBLE, I8, I16, I32, I64)
)
STORED = (FLOAT, I16, I8, I8)
"""Type in which an element of each kind is loaded."""

LANE_NUMBERS = ir.Constant(LONGS, list(range(LANES)))

Value = Any
"""A value, type or builder of llvmlite, which has no types for mypy."""


def constant(vector: Value, value: float) -> Value:
    return ir.Constant(vector, [value] * LANES)


def splat(builder: Value, scalar: Value) -> Value:
    """Give all lanes one value."""
    undefined = ir.Constant(ir.VectorType(scalar.type, LANES), ir.Undefined)
    first = builder.insert_element(undefined, scalar, I32(0))
    return builder.shuffle_vector(first, undefined, constant(INTS, 0))


def below(builder: Value, stop: Value) -> Value:
    """Mask of the lanes whose number is below ``stop``."""
    return builder.icmp_signed("<", LANE_NUMBERS, splat(builder, stop))


def halved(builder: Value, add: Callable[[Value, Value], Value], lanes: Value) -> Value:
    """Add the upper half of the lanes to the lower one."""
    half = lanes.type.count // 2
    indices = ir.VectorType(I32, half)
    low = builder.shuffle_vector(lanes, lanes, ir.Constant(indices, list(range(half))))
    high = builder.shuffle_vector(lanes, lanes, ir.Constant(indices, list(range(half, 2 * half))))
    return add(low, high)


def horizontal(builder: Value, add: Callable[[Value, Value], Value], lanes: Value) -> Value:
    """Sum of all lanes, pairwise."""
    while lanes.type.count > 1:
        lanes = halved(builder, add, lanes)
    return builder.extract_element(lanes, I32(0))


class Elements:
    """How elements of one kind are loaded; those behind address ``last`` not sixteen at a time."""

    nothing: Value
    """What counts as zero."""

    def __init__(self, builder: Value, kind: int, last: Value) -> None:
        self.builder, self.kind, self.last = builder, kind, last
        self.element, self.size = STORED[kind], ITEM_SIZES[kind]
        self.vector = ir.VectorType(self.element, LANES)
        with builder.goto_entry_block():
            self.loaded, self.copied = builder.alloca(self.vector), builder.alloca(self.vector)

    def decode(self, stored: Value) -> Value:
        """Lanes in which this kind is summed."""
        raise NotImplementedError

    def load(self, address: Value) -> Value:
        pointer = self.builder.inttoptr(address, self.vector.as_pointer())
        return self.decode(self.builder.load(pointer, align=self.size))

    def load_part(self, address: Value, count: Value) -> Value:
        """Load the first ``count`` lanes; the others hold what counts as zero.

        What lies behind those lanes is read and thrown away, but never behind the tensor's end: there
        elements are copied one by one.
        """
        builder = self.builder
        inside = builder.icmp_unsigned("<=", address, self.last)
        with builder.if_else(inside, likely=True) as (then, otherwise):
            with then:
                pointer = builder.inttoptr(address, self.vector.as_pointer())
                builder.store(builder.load(pointer, align=self.size), self.loaded)
            with otherwise:
                source = builder.inttoptr(address, self.element.as_pointer())
                target = builder.bitcast(self.copied, self.element.as_pointer())
                with cgutils.for_range(builder, count) as loop:
                    element = builder.load(builder.gep(source, [loop.index]), align=self.size)
                    builder.store(element, builder.gep(target, [loop.index]))
                builder.store(builder.load(self.copied), self.loaded)
        decoded = self.decode(builder.load(self.loaded))
        return builder.select(below(builder, count), decoded, self.nothing)


class Floats(Elements):
    """How float32, and float16 widened to it, are summed: in float32."""

    sums = squares = totals = FLOATS
    variants = SIGNAL, POSITIVE, FULL

    def __init__(self, builder: Value, kind: int, last: Value, _: Value) -> None:
        super().__init__(builder, kind, last)
        self.add = builder.fadd
        self.nothing = constant(FLOATS, 0.0)

    def decode(self, stored: Value) -> Value:
        if self.kind == FLOAT32:
            return stored
        # Not fpext: without F16C that is a call of a function that may be missing. Moved by 13 bits, a
        # pattern is the number's times 2^-112, subnormals included; 31 is the exponent of Inf and NaN.
        builder = self.builder
        bits = builder.zext(stored, INTS)
        size = builder.shl(builder.and_(bits, constant(INTS, 0x7FFF)), constant(INTS, 13))
        special = builder.icmp_unsigned(">=", size, constant(INTS, 0x7C00 << 13))
        special = builder.select(special, constant(INTS, 0x7F800000), constant(INTS, 0))
        scaled = builder.fmul(builder.bitcast(size, FLOATS), constant(FLOATS, 2.0**112))
        size = builder.or_(builder.bitcast(scaled, INTS), special)
        sign = builder.shl(builder.and_(bits, constant(INTS, 0x8000)), constant(INTS, 16))
        return builder.bitcast(builder.or_(size, sign), FLOATS)

    def offset(self, a: Value, pivot: Value) -> Value:
        return self.builder.fsub(a, pivot)

    def absolute(self, a: Value) -> Value:
        bits = self.builder.bitcast(a, INTS)
        return self.builder.bitcast(self.builder.and_(bits, constant(INTS, 0x7FFFFFFF)), FLOATS)

    def add_square(self, total: Value, d: Value) -> Value:
        # "contract" alone: fused multiply-add where there is one. It deletes no NaN check.
        return self.builder.fadd(total, self.builder.fmul(d, d, flags=("contract",)), flags=("contract",))

    def join(self, even: Value, odd: Value) -> Value:
        return self.builder.fadd(even, odd)

    def widen(self, total: Value) -> Value:
        return self.builder.fpext(total, DOUBLES if isinstance(total.type, ir.VectorType) else DOUBLE)


class Integers(Elements):
    """How int8 and uint8 are summed: distances from the zero point, exactly.

    Of at most 128 vectors (``taps.strips``) |d| and d fit 16 bits in each of the two accumulators.
    """

    sums, squares, totals = SHORTS, INTS, INTS
    variants = SIGNAL, FULL

    def __init__(self, builder: Value, kind: int, last: Value, zero_point: Value) -> None:
        super().__init__(builder, kind, last)
        self.add = builder.add
        self.nothing = splat(builder, builder.trunc(zero_point, I16))
        self.extend = builder.sext if kind == INT8 else builder.zext

    def decode(self, stored: Value) -> Value:
        return self.extend(stored, SHORTS)

    def offset(self, a: Value, _: Value) -> Value:
        return self.builder.sub(a, self.nothing)

    def absolute(self, a: Value) -> Value:
        d = self.builder.sub(a, self.nothing)
        negative = self.builder.icmp_signed("<", d, constant(SHORTS, 0))
        return self.builder.select(negative, self.builder.neg(d), d)

    def add_square(self, total: Value, d: Value) -> Value:
        root = self.builder.sext(d, INTS)
        return self.builder.add(total, self.builder.mul(root, root))

    def join(self, even: Value, odd: Value) -> Value:
        extended = (x if x.type == INTS else self.builder.sext(x, INTS) for x in (even, odd))
        return self.builder.add(*extended)

    def widen(self, total: Value) -> Value:
        return self.builder.sitofp(total, DOUBLES if isinstance(total.type, ir.VectorType) else DOUBLE)
