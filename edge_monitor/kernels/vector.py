"""Vector code of LLVM that walks a tap's program (``strips``).

Numba's own vectoriser makes little of the short strided rows of an activation, and strict arithmetic forbids
it to reorder a sum.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from edge_monitor.kernels.lanes import (
    BYTES,
    DOUBLE,
    DOUBLES,
    FLOATS,
    FULL,
    I1,
    I8,
    I64,
    INTS,
    LANES,
    LONGS,
    POSITIVE,
    SIGNAL,
    Floats,
    Integers,
    Value,
    below,
    constant,
    halved,
    horizontal,
    splat,
)
from edge_monitor.kernels.memory import FLOAT16, FLOAT32, KINDS

# The integers of a strip in a program, and of each fold that follows it.
(
    START, N_OUTER, OUTER_STRIDE, N_INNER, INNER_STRIDE, FILLED, TAIL, PERIOD, CHANNEL, LANES_ARE_CHANNELS,
    N_FOLDS,
) = range(11)  # fmt: skip
STRIP = 11
VOXEL, FIRST, STOP = range(3)
FOLD = 3

PLACES = ir.Constant(
    ir.ArrayType(BYTES, LANES + 1),
    [ir.Constant(BYTES, [lane % max(period, 1) for lane in range(LANES)]) for period in range(LANES + 1)],
)
"""Per period and lane: the lane's place in its row."""


class Program:
    """Emits the loop over the strips of one tap, of elements of one kind; ``at`` holds the arguments."""

    def __init__(self, builder: Value, kind: int, at: SimpleNamespace) -> None:
        self.builder, self.at = builder, at
        arithmetic = Floats if kind in (FLOAT32, FLOAT16) else Integers
        self.arithmetic = arithmetic(builder, kind, at.last, at.zero_point)
        with builder.goto_entry_block():
            self.cursor, self.lanes = builder.alloca(I64), builder.alloca(DOUBLES)
            # Two of each: no addition waits for the one just before it.
            self.sizes, self.sums = (
                [builder.alloca(self.arithmetic.sums) for _ in range(2)] for _ in range(2)
            )
            self.squares = [builder.alloca(self.arithmetic.squares) for _ in range(2)]
            self.total, self.signs = builder.alloca(self.arithmetic.totals), builder.alloca(INTS)
        self.places = cgutils.global_constant(builder, "lane_places", PLACES)  # type: ignore[no-untyped-call]

    def emit(self, variant: int) -> None:
        """Add all strips to channels and, unless for the signal alone, to voxels."""
        builder, widen = self.builder, self.arithmetic.widen
        builder.store(self.at.begin, self.cursor)
        with cgutils.for_range(builder, self.at.n_strips):
            strip = self.take(STRIP)
            pivot = self.sum_strip(strip, variant)
            sizes = widen(builder.load(self.total))
            with builder.if_then(builder.trunc(strip[LANES_ARE_CHANNELS], I1)):
                self.add_to_channels(strip, sizes)
            if variant != SIGNAL:
                sums = sizes if variant == POSITIVE else widen(self.joined(self.sums))
                squares = widen(self.joined(self.squares))
                if pivot:
                    sums, squares = self.about_zero(strip, pivot, sums, squares)
                with cgutils.for_range(builder, strip[N_FOLDS]):
                    self.fold(strip[PERIOD], sizes, sums, squares)

    def take(self, number: int) -> list[Value]:
        """Read the program's next integers."""
        builder = self.builder
        cursor = builder.load(self.cursor)
        builder.store(builder.add(cursor, I64(number)), self.cursor)
        places = (builder.gep(self.at.program, [builder.add(cursor, I64(i))]) for i in range(number))
        return [builder.load(place) for place in places]

    def clear(self, *places: Value) -> None:
        for place in places:
            self.builder.store(ir.Constant(place.type.pointee, None), place)

    def put(self, place: Value, function: Callable[[Value, Value], Value], term: Value) -> None:
        self.builder.store(function(self.builder.load(place), term), place)

    def joined(self, pair: list[Value]) -> Value:
        return self.arithmetic.join(*map(self.builder.load, pair))

    def moved(self, address: Value, index: Value, elements: Value) -> Value:
        items = self.builder.mul(index, elements)
        return self.builder.add(address, self.builder.mul(items, I64(self.arithmetic.size)))

    def sum_strip(self, strip: list[Value], variant: int) -> Value:
        """Sum a strip into the accumulators and, when lanes are columns, into channels; return its pivot."""
        builder, arithmetic = self.builder, self.arithmetic
        self.clear(*self.sizes, *self.sums, *self.squares, self.total, self.signs)
        start = self.moved(self.at.address, strip[START], I64(1))
        pivot = tail_pivot = None
        if variant == FULL and arithmetic.sums == FLOATS:
            some = builder.icmp_signed(">", strip[N_INNER], I64(0))
            pivot = arithmetic.load_part(start, builder.select(some, strip[FILLED], strip[TAIL]))
            tail_pivot = builder.select(below(builder, strip[TAIL]), pivot, arithmetic.nothing)

        def step(which: int, a: Value, pivot: Value) -> None:
            if variant == POSITIVE:
                self.put(self.signs, builder.or_, builder.bitcast(a, INTS))
                self.put(self.sizes[which], arithmetic.add, a)
                self.put(self.squares[which], arithmetic.add_square, a)
                return
            self.put(self.sizes[which], arithmetic.add, arithmetic.absolute(a))
            if variant == FULL:
                d = arithmetic.offset(a, pivot)
                self.put(self.sums[which], arithmetic.add, d)
                self.put(self.squares[which], arithmetic.add_square, d)

        def inner(load: Callable[[Value], Value], address: Value) -> None:
            with cgutils.for_range(builder, builder.ashr(strip[N_INNER], I64(1))) as pair:
                for which in range(2):
                    index = builder.or_(builder.shl(pair.index, I64(1)), I64(which))
                    step(which, load(self.moved(address, index, strip[INNER_STRIDE])), pivot)
            with builder.if_then(builder.trunc(strip[N_INNER], I1)):
                index = builder.sub(strip[N_INNER], I64(1))
                step(0, load(self.moved(address, index, strip[INNER_STRIDE])), pivot)

        whole = builder.icmp_signed("==", strip[FILLED], I64(LANES))
        with cgutils.for_range(builder, strip[N_OUTER]) as outer:
            address = self.moved(start, outer.index, strip[OUTER_STRIDE])
            with builder.if_else(whole) as (then, otherwise):
                with then:
                    inner(arithmetic.load, address)
                with otherwise:
                    inner(lambda place: arithmetic.load_part(place, strip[FILLED]), address)
            with builder.if_then(builder.icmp_signed(">", strip[TAIL], I64(0))):
                place = self.moved(address, strip[N_INNER], strip[INNER_STRIDE])
                step(1, arithmetic.load_part(place, strip[TAIL]), tail_pivot)
            sizes = self.joined(self.sizes)
            if variant == POSITIVE:
                # All ones, a NaN, in every lane that has seen a sign.
                negative = builder.ashr(builder.load(self.signs), constant(INTS, 31))
                sizes = builder.bitcast(builder.or_(builder.bitcast(sizes, INTS), negative), FLOATS)
            total_add = builder.fadd if arithmetic.totals == FLOATS else builder.add
            self.put(self.total, total_add, sizes)
            self.clear(*self.sizes)
            with builder.if_then(builder.not_(builder.trunc(strip[LANES_ARE_CHANNELS], I1))):
                channel = builder.gep(self.at.channels, [builder.add(strip[CHANNEL], outer.index)])
                self.put(channel, builder.fadd, arithmetic.widen(horizontal(builder, total_add, sizes)))
        return pivot

    def about_zero(
        self, strip: list[Value], pivot: Value, sums: Value, squares: Value
    ) -> tuple[Value, Value]:
        """Sum a = sum d + n p and sum a^2 = sum d^2 + p (2 sum d + n p), lane by lane."""
        builder = self.builder
        outer = splat(builder, strip[N_OUTER])
        tails = builder.select(below(builder, strip[TAIL]), outer, constant(LONGS, 0))
        n = builder.add(splat(builder, builder.mul(strip[N_OUTER], strip[N_INNER])), tails)
        p = builder.fpext(pivot, DOUBLES)
        shift = builder.fmul(builder.sitofp(n, DOUBLES), p)
        twice = builder.fadd(builder.fadd(sums, sums), shift)
        return builder.fadd(sums, shift), builder.fadd(squares, builder.fmul(p, twice))

    def add_to_channels(self, strip: list[Value], sizes: Value) -> None:
        """Add lanes to their channels."""
        builder = self.builder
        first = builder.gep(self.at.channels, [strip[CHANNEL]])
        pairs = builder.icmp_signed("==", strip[PERIOD], I64(LANES // 2))
        whole = builder.icmp_signed("==", strip[PERIOD], I64(LANES))
        with builder.if_else(builder.or_(pairs, whole)) as (then, otherwise):
            with then, builder.if_else(whole) as (sixteen, eight):
                with sixteen:
                    self.add_vector(sizes, first)
                with eight:
                    self.add_vector(halved(builder, builder.fadd, sizes), first)
            with otherwise:
                builder.store(sizes, self.lanes)
                lanes = builder.bitcast(self.lanes, DOUBLE.as_pointer())
                places = builder.gep(self.places, [I64(0), strip[PERIOD]])
                places = builder.bitcast(places, I8.as_pointer())
                for lane in range(LANES):  # those that hold nothing add zero
                    place = builder.zext(builder.load(builder.gep(places, [I64(lane)])), I64)
                    size = builder.load(builder.gep(lanes, [I64(lane)]))
                    self.put(builder.gep(first, [place]), builder.fadd, size)

    def add_vector(self, lanes: Value, place: Value) -> None:
        vector = self.builder.bitcast(place, lanes.type.as_pointer())
        added = self.builder.fadd(self.builder.load(vector, align=8), lanes)
        self.builder.store(added, vector, align=8)

    def fold(self, period: Value, *rows: Value) -> None:
        """Add lanes of |a|, a and a^2 to the voxel that the program names next."""
        builder = self.builder
        fold = self.take(FOLD)
        places = builder.load(builder.gep(self.places, [I64(0), period]))
        first, stop = (splat(builder, builder.trunc(fold[x], I8)) for x in (FIRST, STOP))
        inside = builder.and_(
            builder.icmp_signed(">=", places, first), builder.icmp_signed("<", places, stop)
        )
        for i, lanes in enumerate(rows):
            chosen = builder.select(inside, lanes, constant(DOUBLES, 0.0))
            index = builder.add(builder.mul(fold[VOXEL], I64(len(rows))), I64(i))
            place = builder.gep(self.at.voxels, [index])
            self.put(place, builder.fadd, horizontal(builder, builder.fadd, chosen))


SCALARS = ("kind", "address", "last", "zero_point", "variant", "begin", "n_strips")
ARRAYS = ("program", "voxels", "channels")


def _run_vector_code(
    _: Value, scalars: Value, program: Value, voxels: Value, channels: Value
) -> tuple[Value, Callable[..., Value]]:
    """Generate ``strips.run_strips``; ``scalars``: tuple in the order of ``SCALARS``."""

    def generate(context: Value, builder: Value, signature: Value, values: Value) -> Value:
        at = SimpleNamespace()
        for i, name in enumerate(SCALARS):
            setattr(at, name, builder.extract_value(values[0], i))
        for name, array_type, array in zip(ARRAYS, signature.args[1:], values[1:], strict=True):
            setattr(at, name, context.make_array(array_type)(context, builder, array).data)
        for kind in KINDS:
            with builder.if_then(builder.icmp_signed("==", at.kind, I64(kind))):
                emitter = Program(builder, kind, at)
                for variant in emitter.arithmetic.variants:
                    with builder.if_then(builder.icmp_signed("==", at.variant, I64(variant))):
                        emitter.emit(variant)
        return context.get_dummy_value()

    return types.void(scalars, program, voxels, channels), generate


run_vector_code: Callable[..., None] = intrinsic(_run_vector_code)
