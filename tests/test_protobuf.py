"""The wire-format reader and writer against the protobuf library itself."""

from __future__ import annotations

import models
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_monitor.taps.protobuf import bytes_field, encode_field, read_fields, read_varints


def fields(data: bytes) -> list:
    return [(n, bytes(v) if isinstance(v, memoryview) else v) for n, v in read_fields(memoryview(data))]


@given(st.integers(1, 2**29 - 1), st.binary(max_size=300))
def test_what_is_written_is_read(number, payload):
    assert fields(bytes_field(number, payload)) == [(number, payload)]


@given(st.binary(max_size=300), st.integers(0, 2**31 - 1), st.integers(0, 2**63 - 1))
def test_reads_what_protobuf_writes(raw, dtype, dim):
    tensor = onnx.TensorProto(dims=[dim], data_type=dtype, raw_data=raw, name="tensor")
    found = dict(fields(tensor.SerializeToString()))
    assert found[2] == dtype
    assert found[8] == b"tensor"
    assert found[9] == raw
    assert found[1] == dim


@given(st.integers(1, 2**29 - 1), st.integers(0, 2**64 - 1))
def test_varints_are_read_as_written(number, value):
    assert fields(encode_field(number, value)) == [(number, value)]


@given(st.lists(st.integers(0, 2**63 - 1), max_size=9), st.booleans())
def test_repeated_varints_may_be_packed(dims, packed):
    data = onnx.TensorProto(dims=dims).SerializeToString()
    elements = [read_varints(value) for _, value in read_fields(memoryview(data))]
    if packed:
        payload = b"".join(encode_field(1, dim)[1:] for dim in dims)
        elements = [read_varints(value) for _, value in read_fields(memoryview(bytes_field(1, payload)))]
    assert [element for part in elements for element in part] == dims


def test_reads_fixed_width_numbers():
    attribute = onnx.AttributeProto(f=1.5, name="x")
    assert dict(fields(attribute.SerializeToString()))[2] == b"\x00\x00\xc0\x3f"
    double = b"\x09" + bytes(range(8))  # field 1, eight bytes
    assert fields(double) == [(1, bytes(range(8)))]


def test_protobuf_reads_what_is_written():
    value = onnx.ValueInfoProto.FromString(bytes_field(1, "größe".encode()))
    assert value.name == "größe"


def test_values_are_views_of_the_message():
    data = bytes_field(1, b"abc")
    (_, value) = next(read_fields(memoryview(data)))
    assert value.obj is data


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"\x0a\x05abc", "2 bytes beyond the end"),
        (b"\x09\x00", "beyond the end"),
        (b"\x0b", "wire type 3"),
        (b"\x0f", "wire type 7"),
        (b"\x02\x00", "field number 0"),
        (b"\x08", "does not end"),
        (b"\x08" + b"\xff" * 11, "does not end"),
        (b"\xff" * 20, "does not end"),
    ],
)
def test_what_is_no_message_is_refused(data, problem):
    with pytest.raises(ValueError, match=problem):
        fields(data)


def test_every_cut_inside_a_model_is_noticed():
    data = models.dense()
    graph_end = max(
        len(data) - len(bytes_field(7, bytes(v))) for n, v in read_fields(memoryview(data)) if n == 7
    )
    for length in range(graph_end + 12, len(data) - 12, 7):
        with pytest.raises(ValueError, match=r"beyond the end|does not end"):
            fields(data[:length])


@given(st.binary(max_size=200))
def test_noise_is_read_or_refused_but_never_crashes(data):
    try:
        found = fields(data)
    except ValueError:
        return
    assert sum(len(v) for _, v in found if isinstance(v, bytes)) <= len(data)


@given(st.integers(1, 2**29 - 1), st.one_of(st.integers(0, 2**64 - 1), st.binary(max_size=300)))
def test_a_field_that_was_read_is_written_as_it_was(number, value):
    encoded = encode_field(number, value if isinstance(value, int) else memoryview(value))
    assert fields(encoded) == [(number, value)]


def test_a_message_of_numbers_and_bytes_survives():
    data = onnx.ModelProto(ir_version=8, model_version=-1, producer_name="x").SerializeToString()
    assert b"".join(encode_field(*item) for item in read_fields(memoryview(data))) == data
