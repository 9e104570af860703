"""The region map: what is written is read again, and nothing damaged or foreign gets in."""

from __future__ import annotations

import io
import json
import pickle
import time
import zipfile

import models
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from maps import minimal_map

from edge_monitor.errors import EdgeMonitorError, MapError
from edge_monitor.map_file import from_bytes, load_region_map, save_region_map, to_bytes
from edge_monitor.region_map import CrossmodalNull, FaultHead, Impact, RegionMap, Runtime
from edge_monitor.types import TapSpec

MAP = minimal_map(models.cnn())
DATA = to_bytes(MAP)


def with_field(key, value):
    """Return the same map with one field, ``section.field``, replaced."""
    section, field = key.split(".")
    part = msgspec.structs.replace(getattr(MAP, section), **{field: value})
    return msgspec.structs.replace(MAP, **{section: part})


def with_value(key, value, place=0):
    """Return the same map with one number of an array replaced."""
    section, field = key.split(".")
    array = np.array(getattr(getattr(MAP, section), field))
    array.flat[place] = value
    return with_field(key, array)


N = MAP.fmri.median.size


def scored(**changes):
    """Return the same map with impact scores."""
    impact = Impact(
        theta=np.ones(N),
        stderr=np.zeros(N),
        image_stderr=np.full(N, np.nan),
        f_all=np.ones(len(MAP.taps) - 1),
        f_none=np.zeros(len(MAP.taps) - 1),
        pairs=np.full(len(MAP.taps) - 1, 128.0),
        history_pairs=np.array([128.0]),
        history_theta=np.ones((1, N)),
        payoff="decision probability",
        images=1,
        evaluations=7,
        seed=0,
    )
    return msgspec.structs.replace(MAP, impact=msgspec.structs.replace(impact, **changes))


def headed(**changes):
    """Return the same map with a fault head."""
    head = FaultHead(
        names=("blur", "snow"),
        mean=np.linspace(-1, 1, 7),
        scale=np.linspace(1, 2, 7),
        hidden=np.random.default_rng(3).normal(size=(8, 4)),
        output=np.random.default_rng(4).normal(size=(5, 3)),
        accuracy=0.75,
    )
    return msgspec.structs.replace(MAP, faults=msgspec.structs.replace(head, **changes))


def archive(**changes):
    """Bytes of the map's archive with members replaced; None leaves one out, bytes go in as they are."""
    with np.load(io.BytesIO(DATA)) as loaded:
        members = {key: loaded[key] for key in loaded.files} | changes
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=True, **{k: v for k, v in members.items() if isinstance(v, np.ndarray)})
    with zipfile.ZipFile(buffer, "a") as file:
        for key, value in members.items():
            if isinstance(value, bytes):
                file.writestr(f"{key}.npy", value)
    return buffer.getvalue()


def meta(**changes):
    """Meta data of the map with keys replaced, ``section__field`` within a section; ... leaves one out."""
    with np.load(io.BytesIO(DATA)) as loaded:
        plain = json.loads(loaded["meta"].tobytes())
    for key, value in changes.items():
        section, _, field = key.partition("__")
        where, name = (plain[section], field) if field else (plain, section)
        if value is ...:
            del where[name]
        else:
            where[name] = value
    return np.frombuffer(json.dumps(plain).encode(), np.uint8)


def refusal(data):
    with pytest.raises(MapError) as caught:
        from_bytes(data, "car.npz")
    message = str(caught.value)
    assert message.startswith("car.npz: ")
    assert "\n" not in message
    return message


def assert_same(a, b):
    for field in msgspec.structs.fields(type(a)):
        left, right = getattr(a, field.name), getattr(b, field.name)
        if isinstance(left, np.ndarray):
            assert (left.dtype, left.shape, left.tobytes()) == (right.dtype, right.shape, right.tobytes())
        elif isinstance(left, msgspec.Struct):
            assert_same(left, right)
        else:
            assert left == right


def test_round_trip_is_exact_to_the_bit(tmp_path):
    numbers = np.random.default_rng(0).normal(size=MAP.eeg.mean.shape) * 1e-300
    region_map = with_field("eeg.mean", numbers)
    region_map = msgspec.structs.replace(
        region_map,
        crossmodal=CrossmodalNull(
            coherence_bias=0.1 + 0.2, temporal_error=np.inf, spatial_error=1e-17, least_agreement=-np.inf
        ),
        provenance=msgspec.structs.replace(MAP.provenance, warnings=("short", "θ unknown")),
    )
    save_region_map(region_map, tmp_path / "map.npz")
    assert_same(load_region_map(tmp_path / "map.npz"), region_map)


def test_a_certificate_that_knows_little_survives():
    first, *others = MAP.neutrality.taps
    unknown = msgspec.structs.replace(first, dtype="", max_difference=None, reason="keeps state")
    far = msgspec.structs.replace(MAP.neutrality, max_difference=np.inf, taps=(unknown, *others))
    assert from_bytes(to_bytes(msgspec.structs.replace(MAP, neutrality=far))).neutrality == far


def test_impact_survives_and_is_uniform_without():
    theta = np.r_[np.full(MAP.taps[0].n_voxels, np.nan), np.linspace(-1, 1, N - MAP.taps[0].n_voxels)]
    assert_same(from_bytes(to_bytes(scored(theta=theta))), scored(theta=theta))
    np.testing.assert_array_equal(scored(theta=theta).theta, theta)
    assert from_bytes(DATA).impact is None
    np.testing.assert_array_equal(MAP.theta, np.ones(N))


def test_a_fault_head_survives_and_may_be_missing():
    assert_same(from_bytes(to_bytes(headed())), headed())
    assert from_bytes(to_bytes(headed(accuracy=None))).faults.accuracy is None
    assert from_bytes(DATA).faults is None


def test_missing_baselines_survive():
    region_map = with_value("fmri.scale", np.nan, 5)
    assert np.flatnonzero(np.isnan(from_bytes(to_bytes(region_map)).fmri.scale)).tolist() == [5]


def test_equal_maps_give_equal_bytes(monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 2e9)
    monkeypatch.setattr(time, "localtime", lambda *_: time.struct_time((2030, 1, 1, 0, 0, 0, 0, 1, 0)))
    assert to_bytes(MAP) == DATA
    assert to_bytes(from_bytes(DATA)) == DATA
    columnwise = with_field("eeg.mean", np.asfortranarray(MAP.eeg.mean))
    assert to_bytes(columnwise) == DATA


def test_a_loaded_map_is_fit_for_kernels():
    loaded = from_bytes(DATA)
    sections = (getattr(loaded, name) for name in loaded.__struct_fields__)
    for section in (part for part in sections if isinstance(part, msgspec.Struct)):
        arrays = [getattr(section, name) for name in section.__struct_fields__]
        assert all(a.flags.c_contiguous and a.flags.writeable for a in arrays if isinstance(a, np.ndarray))


def test_the_models_input_shape_is_that_of_the_golden_frames():
    assert MAP.input_shape == (3, 16, 16)


def test_this_runtime_names_its_versions():
    here = Runtime.here()
    assert here.numpy == np.__version__
    assert here.runtime.startswith("onnxruntime ")


# Values that a map must not hold, refused at saving and at loading alike.

DAMAGED = {
    "NaN where it is forbidden": (with_value("eeg.floor", np.nan, 7), "eeg.floor[1, 2] is nan"),
    "infinity in theta": (scored(theta=np.r_[np.nan, np.inf, np.ones(N - 2)]), "impact.theta[1] is inf"),
    "theta of a hidden voxel missing": (scored(theta=np.full(N, np.nan)), "impact.theta is nan for a voxel"),
    "theta of another grid": (scored(theta=np.ones(3)), f"impact.theta is float64(3,), not float64({N},)"),
    "history of another length": (scored(history_pairs=np.ones(2)), "impact.history_theta is float64(1,"),
    "tracts of another grid": (with_field("tracts.strength", np.ones(3)), "tracts.strength is float64(3,)"),
    "tract without scale": (with_value("tracts.scale", 0.0), "tracts.scale must be positive"),
    "a transition without its line": (with_field("tracts.problems", ("",)), "tracts.problems has 1 lines"),
    "weights of other taps": (with_field("residual.weights", np.ones(7)), "residual.weights is float64(7,)"),
    "shift of other taps": (with_field("residual.shift", np.ones(7)), "residual.shift is float64(7,)"),
    "shift beyond single precision": (with_value("residual.shift", 1e39), "residual.shift has 1e+39"),
    "lines of other taps": (with_field("eeg.line", np.ones((2, 3))), "eeg.line is float64(2, 3)"),
    "levels of other taps": (with_field("eeg.line_level", np.ones((2, 9))), "line_level is float64(2, 9)"),
    "bright regions of another grid": (with_field("fmri.bright", np.ones(3)), "fmri.bright is float64(3,)"),
    "fewer dead rows than none": (with_field("fmri.dead_rows", -1), "fmri.dead_rows is -1"),
    "one threshold a channel": (
        with_field("evidence.threshold", MAP.evidence.threshold[:, 0]), "evidence.threshold is float64(11,)"
    ),
    "NaN for an agreement": (with_field("crossmodal.least_agreement", np.nan), "least_agreement is nan"),
    "a fault without output": (headed(names=("a", "b", "c")), "faults.output is float64(5, 3), not"),
    "a head that knows no fault": (headed(names=(), output=np.ones((5, 1))), "faults.names is empty"),
    "a head of two sizes": (headed(mean=np.ones(3)), "faults.scale is float64(7,), not float64(3,)"),
    "a head without scale": (headed(scale=np.zeros(7)), "faults.scale must be positive, has 0.0"),
    "NaN in the head": (headed(hidden=np.full((8, 4), np.nan)), "faults.hidden[0, 0] is nan"),
    "a head beyond single precision": (headed(output=np.full((5, 3), 1e39)), "faults.output has 1e+39"),
    "NaN in the whitening": (with_value("residual.whitening", np.nan), "residual.whitening[0] is nan"),
    "weight beyond single precision": (with_value("residual.weights", -1e39), "residual.weights has 1e+39"),
    "bounds the wrong way round": (with_value("residual.low", 9.0), "residual.low lies above residual.high"),
    "no limit": (with_value("residual.limit", 0.0, 2), "residual.limit must be positive, has 0.0"),
    "infinity where NaN is allowed": (with_value("eeg.mean", -np.inf), "eeg.mean[0, 0] is -inf"),
    "negative scale": (with_value("fmri.scale", -2.0), "fmri.scale must be positive, has -2.0"),
    "zero scale": (with_value("eeg.scale", 0.0), "eeg.scale must be positive, has 0.0"),
    "zero floor": (with_value("eeg.floor", 0.0), "eeg.floor must be positive, has 0.0"),
    "negative floor": (with_value("fmri.floor", -1.0), "fmri.floor must be positive, has -1.0"),
    "zero threshold": (with_value("evidence.threshold", 0.0), "evidence.threshold must be positive"),
    "wrong shape": (with_field("eeg.mean", MAP.eeg.mean[:-1]), "float64(3, 5), not float64(4, 5)"),
    "wrong dtype": (with_field("fmri.median", MAP.fmri.median.astype(np.float32)), "fmri.median is float32"),
    "foreign byte order": (with_field("fmri.median", MAP.fmri.median.astype(">f8")), "fmri.median is >f8"),
    "tail that rises": (with_field("evidence.tail", np.array([1.0, 0.01, 0.1])), "evidence.tail must fall"),
    "tail down to 0": (with_field("evidence.tail", np.array([1.0, 0.1, 0.0])), "evidence.tail must fall"),
    "quantiles that fall": (with_value("evidence.quantiles", 9.0), "evidence.quantiles must rise"),
    "NaN in crossmodal": (with_field("crossmodal.coherence_bias", np.nan), "coherence_bias is nan"),
    "bias beyond 1": (with_field("crossmodal.coherence_bias", 1.0), "crossmodal.coherence_bias is 1.0"),
    "NaN for an error": (with_field("crossmodal.spatial_error", np.nan), "crossmodal.spatial_error is nan"),
    "no frame rate": (with_field("provenance.frame_rate_hz", 0.0), "frame_rate_hz is 0.0"),
    "infinite frame rate": (with_field("provenance.frame_rate_hz", np.inf), "frame_rate_hz is inf"),
    "negative tolerance": (with_field("golden.tolerance", -1.0), "golden.tolerance is -1.0"),
    "NaN in a golden frame": (with_value("golden.frames", np.nan), "golden.frames must hold finite numbers"),
    "letters for frames": (with_field("golden.frames", np.array(["a", "b", "c"])), "golden.frames must hold"),
    "one golden answer short": (with_field("golden.outputs", MAP.golden.outputs[1:]), "golden.outputs is"),
    "flat golden answers": (with_field("golden.outputs", MAP.golden.outputs[:, 0]), "golden.outputs is"),
    "no golden frames": (with_field("golden.frames", MAP.golden.frames[:0]), "golden.outputs is"),
    "golden frames without axes": (with_field("golden.frames", np.array(1, np.float32)), "golden.outputs is"),
    "certificate of fewer taps": (
        with_field("neutrality.taps", MAP.neutrality.taps[1:]),
        "neutrality.taps are clip2, relu3, not the map's",
    ),
    "certificate of none": (with_field("neutrality.taps", ()), "neutrality.taps are none"),
    "only the input": (msgspec.structs.replace(MAP, taps=MAP.taps[:1]), "at least one tap, has 1 in all"),
    "grid finer than the tensor": (
        msgspec.structs.replace(MAP, taps=(TapSpec("a", (1, 1, 1), (2, 1, 1)), *MAP.taps[1:])),
        "a has grid (2, 1, 1) over shape (1, 1, 1)",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("region_map", "words"), DAMAGED.values(), ids=DAMAGED)
def test_an_unusable_map_is_neither_saved_nor_loaded(region_map, words, tmp_path):
    with pytest.raises(MapError) as caught:
        save_region_map(region_map, tmp_path / "map.npz")
    assert words in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    assert words in refusal(to_bytes(region_map))


@pytest.mark.parametrize("n_points", [0, 1])
def test_a_null_needs_quantiles(n_points):
    null = MAP.evidence
    null = msgspec.structs.replace(null, tail=null.tail[:n_points], quantiles=null.quantiles[:, :n_points])
    assert "evidence.tail" in refusal(to_bytes(msgspec.structs.replace(MAP, evidence=null)))


# Files that are no map.


class Bomb:
    def __reduce__(self):
        return pytest.fail, ("unpickled",)


def saved(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


FOREIGN = {
    "empty": (b"", "not a region map"),
    "text": (b"frames: demo:1\n", "not a region map"),
    "pickle": (pickle.dumps(Bomb()), "not a region map"),
    "single array": (saved(np.ones(3)), "not a region map"),
    "zip of something else": (archive(meta=None), "not a region map (it has no 'meta')"),
    "pickle inside": (archive(**{"eeg.mean": np.array([Bomb()], object)}), "not a region map"),
    "no array inside": (archive(**{"eeg.mean": b"hello"}), "not a region map"),
    "meta that is no JSON": (archive(meta=np.zeros(9, np.uint8)), "not a region map"),
    "meta that is a list": (archive(meta=np.frombuffer(b"[1]", np.uint8)), "not a region map"),
    "format to come": (archive(meta=meta(format=6)), "format is 6, this version reads 5"),
    "format of old": (archive(meta=meta(format=4)), "format is 4, this version reads 5: calibrate again"),
    "no format": (archive(meta=meta(format=...)), "format is None"),
    "missing array": (archive(**{"fmri.scale": None}), "fmri.scale is missing"),
    "missing section": (archive(meta=meta(taps=...)), "taps is missing"),
    "missing certificate": (archive(meta=meta(neutrality=...)), "neutrality is missing"),
    "missing runtime": (archive(meta=meta(neutrality__runtime=...)), "missing required field `runtime`"),
    "missing number": (archive(meta=meta(golden__tolerance=...)), "tolerance is missing"),
    "missing provenance": (archive(meta=meta(provenance__model=...)), "missing required field `model`"),
    "text for a number": (archive(meta=meta(evidence__held_out_alarms="none")), "Expected `int`, got `str`"),
    "section that is a list": (archive(meta=meta(eeg=[])), "missing or has the wrong type"),
}


@pytest.mark.parametrize(("data", "words"), FOREIGN.values(), ids=FOREIGN)
def test_what_is_no_map_is_refused(data, words):
    assert words in refusal(data)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(share):
    assert "not a region map" in refusal(DATA[: int(len(DATA) * share)])


@settings(max_examples=400, deadline=None)
@given(at=st.integers(0, len(DATA) - 1), bit=st.integers(0, 7))
def test_a_flipped_bit_is_refused_or_harmless(at, bit):
    data = bytearray(DATA)
    data[at] ^= 1 << bit
    try:
        loaded = from_bytes(bytes(data))
    except MapError:
        return
    assert_same(loaded, MAP)  # the flip hit a time stamp or the like, no content


# Files and folders.


@pytest.mark.parametrize("name", ["absent.npz", "", "file/map.npz"])
def test_a_map_that_cannot_be_read_is_one_clear_line(tmp_path, name):
    (tmp_path / "file").write_text("")
    path = tmp_path / name
    with pytest.raises(EdgeMonitorError) as caught:
        load_region_map(path)
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize("name", ["absent/map.npz", "file/map.npz", "folder"])
def test_an_unwritable_place_is_refused_and_left_clean(tmp_path, name):
    (tmp_path / "file").write_text("here first")
    (tmp_path / "folder").mkdir()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(MapError, match="cannot be written"):
        save_region_map(MAP, tmp_path / name)
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "file").read_text() == "here first"


def test_a_full_disk_leaves_the_old_map_whole(tmp_path):
    path = tmp_path / "map.npz"
    save_region_map(MAP, path)
    limited = with_field("provenance.seed", 7)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pathlib.Path.write_bytes", _write_half)
        with pytest.raises(MapError, match="No space left"):
            save_region_map(limited, path)
    assert path.read_bytes() == DATA
    assert [p.name for p in tmp_path.iterdir()] == ["map.npz"]
    save_region_map(limited, path)
    assert load_region_map(path).provenance.seed == 7


def _write_half(path, data):
    with path.open("wb") as file:
        file.write(data[: len(data) // 2])
    raise OSError(28, "No space left on device")


def test_every_section_is_written():
    with np.load(io.BytesIO(DATA)) as loaded:
        keys = {key.partition(".")[0] for key in loaded.files} | set(json.loads(loaded["meta"].tobytes()))
    assert set(RegionMap.__struct_fields__) <= keys
