"""Frames: every kind of source gives model input, and what does not fit is named."""

from __future__ import annotations

import io
import itertools
import sys
import zipfile

import numpy as np
import pytest
from PIL import Image

from edge_monitor.config import FrameSettings
from edge_monitor.errors import InputError
from edge_monitor.sources.frames import FrameSource
from edge_monitor.sources.scenes import Road

RNG = np.random.default_rng(0)
PICTURES = RNG.integers(0, 256, (4, 6, 8, 3), np.uint8)
"""Four pictures of 6 rows and 8 columns."""
PLANES = PICTURES.transpose(0, 3, 1, 2).astype(np.float32)


def frames(where, shape=(3, 6, 8), **settings):
    return list(FrameSource(FrameSettings(frames=str(where), **settings), shape))


def arrays(where, shape=(3, 6, 8), **settings):
    return np.concatenate([frame.array for frame in frames(where, shape, **settings)])


def refusal(where, shape=(3, 6, 8), **settings):
    with pytest.raises(InputError) as caught:
        frames(where, shape, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def folder(tmp_path):
    """Folder of two PNG files and two arrays, with a file that is no frame."""
    for i in (0, 1):
        Image.fromarray(PICTURES[i]).save(tmp_path / f"{i}.png")
    np.save(tmp_path / "2.npy", PICTURES[2])
    np.save(tmp_path / "3.npy", PLANES[3])
    (tmp_path / "notes.txt").write_text("not a frame")
    return tmp_path


def test_a_folder_in_the_order_of_names(folder):
    np.testing.assert_array_equal(arrays(folder), PLANES)


@pytest.mark.parametrize("save", [np.save, np.savez, lambda f, a: np.savez(f, images=a, labels=np.zeros(4))])
@pytest.mark.parametrize("content", [PICTURES, PLANES, PLANES.astype(np.float64)])
def test_a_numpy_file(tmp_path, save, content):
    with (tmp_path / "clean.bin").open("wb") as file:
        save(file, content)
    np.testing.assert_array_equal(arrays(tmp_path / "clean.bin"), PLANES)


@pytest.mark.parametrize(("where", "world"), [("demo:5", 0), ("demo-b:5", 1)])
def test_the_demo_road(where, world):
    scenes = list(itertools.islice(Road(5, world), 3))
    road = frames(where, (3, 48, 48), limit=3)
    for frame, scene in zip(road, scenes, strict=True):
        np.testing.assert_array_equal(frame.array[0], scene.image.transpose(2, 0, 1))
        assert frame.context == {"speed_mps": scene.speed_mps, "exposure": scene.exposure}
        assert frame.t_capture_ns == pytest.approx(scene.t_capture_ns, abs=1)


def test_pixels_become_model_input(tmp_path):
    np.save(tmp_path / "p.npy", PICTURES)
    mean, std = (0.1, 0.2, 0.3), (0.5, 1.0, 2.0)
    expected = (PICTURES / 255.0 - mean) / std
    got = arrays(tmp_path / "p.npy", scale=1 / 255, mean=mean, std=std)
    np.testing.assert_allclose(got, expected.transpose(0, 3, 1, 2), rtol=1e-5, atol=1e-6)
    got = arrays(tmp_path / "p.npy", scale=2.0, mean=(4.0,), std=(8.0,))
    np.testing.assert_allclose(got, (PLANES * 2 - 4) / 8, rtol=1e-6)


def test_a_frame_is_what_a_session_takes(folder):
    for index, frame in enumerate(frames(folder, frame_rate_hz=10)):
        assert (frame.array.dtype, frame.array.shape) == (np.float32, (1, 3, 6, 8))
        assert frame.array.flags.c_contiguous
        assert (frame.t_capture_ns, frame.context) == (index * 100_000_000, {})


def test_gray_models_take_gray_and_colour_pictures(tmp_path):
    colour = Image.fromarray(PICTURES[0])
    colour.save(tmp_path / "colour.png")
    colour.convert("L").save(tmp_path / "gray.png")
    np.save(tmp_path / "plain.npy", np.asarray(colour.convert("L")))
    expected = np.asarray(colour.convert("L"), np.float32)
    np.testing.assert_array_equal(arrays(tmp_path, (1, 6, 8)), np.stack([expected[None]] * 3))


def test_colour_models_take_gray_and_transparent_pictures(tmp_path):
    gray = Image.fromarray(PICTURES[0]).convert("L")
    gray.save(tmp_path / "0.png")
    gray.convert("RGBA").save(tmp_path / "1.png")
    np.testing.assert_array_equal(arrays(tmp_path), np.broadcast_to(np.float32(gray), (2, 3, 6, 8)))


def test_dense_models_take_vectors(tmp_path):
    vectors = RNG.normal(size=(5, 7))
    np.save(tmp_path / "v.npy", vectors)
    got = arrays(tmp_path / "v.npy", (7,), mean=(1.0,), std=(2.0,))
    np.testing.assert_allclose(got, (vectors - 1) / 2, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "order"),
    [
        ({}, [0, 1, 2, 3]),
        ({"limit": 2}, [0, 1]),
        ({"limit": 9}, [0, 1, 2, 3]),
        ({"loop": True, "limit": 6}, [0, 1, 2, 3, 0, 1]),
    ],
)
def test_limit_and_loop(folder, settings, order):
    source = FrameSource(FrameSettings(frames=str(folder), frame_rate_hz=100, **settings), (3, 6, 8))
    got = list(source)
    np.testing.assert_array_equal(np.concatenate([f.array for f in got]), PLANES[order])
    assert source.length == len(order)
    assert [f.t_capture_ns for f in got] == [i * 10_000_000 for i in range(len(order))]  # on and on
    assert len(list(source)) == len(order)  # and again from the start


def test_a_loop_without_limit_has_no_end(folder):
    source = FrameSource(FrameSettings(frames=str(folder), loop=True), (3, 6, 8))
    assert source.length is None
    assert len(list(itertools.islice(source, 50))) == 50


def test_frames_are_copies(folder):
    first, second = (frames(folder, loop=True, limit=5)[i].array for i in (0, 4))
    first += 1
    np.testing.assert_array_equal(second[0], PLANES[0])


# What does not fit.


@pytest.mark.parametrize(
    ("shape", "content"),
    [
        ((3, 6, 9), PICTURES),
        ((3, 8, 6), PICTURES),
        ((1, 6, 8), PICTURES),
        ((3, 6, 8), PICTURES[..., 0]),
        ((144,), PICTURES),
        ((7,), np.zeros((2, 8))),
    ],
)
def test_a_frame_of_another_size_is_named(tmp_path, shape, content):
    np.save(tmp_path / "p.npy", content)
    message = refusal(tmp_path / "p.npy", shape)
    assert message.startswith(f"{tmp_path / 'p.npy'}, frame 0: has shape {content.shape[1:]}")
    assert message.endswith(f"the model takes {shape}")


def test_a_picture_of_another_size_in_the_middle_is_named(folder):
    Image.fromarray(PICTURES[0, :5]).save(folder / "1.png")
    assert refusal(folder).startswith(f"{folder}, frame 1: has shape (5, 8, 3)")


def test_the_road_has_its_size():
    assert refusal("demo:1", (3, 32, 32)).startswith("demo:1: has shape (48, 48, 3)")


@pytest.mark.parametrize("where", ["demo:", "demo:x", "demo:-1", "demo:1.5", "demo-b:", "demo-b:x"])
def test_a_seed_is_a_number(where):
    assert refusal(where).startswith(f"{where}: the seed must be a number")


def test_a_source_that_does_not_exist(tmp_path):
    assert refusal("demo-c:1") == "demo-c:1: no such file or directory"
    assert refusal(tmp_path / "gone") == f"{tmp_path / 'gone'}: no such file or directory"


def test_a_name_that_the_system_refuses():
    assert refusal("x" * 300) == f"{'x' * 300}: File name too long"


def test_a_folder_without_frames(tmp_path):
    (tmp_path / "notes.txt").write_text("none")
    assert "holds no frames" in refusal(tmp_path)


def zipped(name, content):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr(name, content)
    return buffer.getvalue()


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


WHOLE = zipped("images.npy", npy(PICTURES))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not a NumPy file"),
        (b"hello", "not a NumPy file"),
        (npy(PICTURES)[:-9], "not a NumPy file"),
        (npy(np.array([{}, {}])), "not a NumPy file"),
        (zipped("images.npy", npy(np.array([[{}]]))), "not a NumPy file"),
        (WHOLE[: len(WHOLE) // 2], "not a NumPy file"),
        (WHOLE.replace(PICTURES[1].tobytes(), bytes(144)), "not a NumPy file"),
        (zipped("other.npy", npy(PICTURES)), "has none of the arrays images, frames, arr_0"),
        (zipped("images.npy", b"text"), "has none of the arrays"),
        (npy(np.zeros(5)), "has shape (5,)"),
        (npy(PICTURES[:0]), "holds no frames"),
        (npy(PICTURES.astype("S3")), "holds |S3, not numbers"),
        (npy(PICTURES.astype(complex)), "holds complex128, not numbers"),
    ],
)
def test_a_file_that_is_no_stack_of_frames(tmp_path, content, words):
    path = tmp_path / "frames.npz"
    path.write_bytes(content)
    message = refusal(path)
    assert message.startswith(str(path))
    assert words in message


def image(kind):
    buffer = io.BytesIO()
    Image.fromarray(PICTURES[0]).save(buffer, kind)
    return buffer.getvalue()


PNG, BMP = image("PNG"), image("BMP")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("0.png", b"", "not a readable image"),
        ("0.jpg", b"text", "not a readable image"),
        ("0.png", PNG[:80], "not a readable image"),
        ("0.png", PNG.replace(b"IDAT", b"IDA\0"), "not a readable image"),
        (
            "0.bmp",
            BMP[:20] + b"\1\0" + BMP[22:24] + b"\1\0" + BMP[26:],
            "not a readable image",
        ),  # 65544 x 65542
        ("0.npy", b"text", "not a NumPy array"),
        ("0.npy", npy(np.array({})), "not a NumPy array"),
        ("0.npy", npy(PICTURES).replace(b"'shape'", b"'shape("), "not a NumPy array"),
        ("0.npy", WHOLE[:99], "not a NumPy array"),
    ],
)
def test_an_unreadable_file_of_a_folder_is_named(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    message = refusal(tmp_path)
    assert message.startswith(f"{tmp_path / name}: ")
    assert words in message


@pytest.mark.parametrize("key", ["mean", "std"])
def test_as_many_means_as_channels(folder, key):
    assert refusal(folder, **{key: (1.0, 2.0)}).startswith(f"{key}: has 2 values, the model's input has 3")


def test_without_pillow_pictures_are_refused_and_arrays_are_not(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert "pip install '.[offline]'" in refusal(folder)
    for name in ("0.png", "1.png"):
        (folder / name).unlink()
    np.testing.assert_array_equal(arrays(folder), PLANES[2:])


def test_files_are_read_by_number_and_hidden_ones_left_alone(tmp_path):
    for i in (10, 9, 1, 100):
        np.save(tmp_path / f"frame{i}.npy", np.full((3, 4, 4), float(i)))
    (tmp_path / "._frame1.png").write_bytes(b"a file manager's note")
    (tmp_path / "sub.png").mkdir()
    frames = FrameSource(FrameSettings(frames=str(tmp_path)), (3, 4, 4))
    assert [frame.array[0, 0, 0, 0] for frame in frames] == [1.0, 9.0, 10.0, 100.0]
