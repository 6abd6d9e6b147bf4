"""The image processor: published pixels, every form and color mode of an image, and clear refusals."""

import base64
import io
import struct
import threading
import time
import zlib
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from llava_uhd.model.image_processing_llava_uhd import LlavaUhdImageProcessor, cut_views, decode_image, enlarge
from llava_uhd.model.images import decode_base64
from tests.golden import GOLDENS

PIXELS = np.load(GOLDENS / "pixels.npz")


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def encoded(image: Image.Image, file_format: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def unpack(rows: np.ndarray, shape: tuple[int, int], patch_size: int = 14) -> np.ndarray:
    """The (3, height, width) view of packed patches."""
    view = rows.reshape(*shape, 3, patch_size, patch_size).transpose(2, 0, 3, 1, 4)
    return view.reshape(3, shape[0] * patch_size, shape[1] * patch_size)


# Published pixels


@pytest.mark.parametrize("name", ["120x80", "500x260"])
def test_views_are_the_published_ones(name):
    image = Image.fromarray(PIXELS[f"img_{name}"])
    processor = LlavaUhdImageProcessor()
    *slices, overview = cut_views(image, processor.plan(*image.size))
    np.testing.assert_array_equal(np.asarray(overview), PIXELS[f"source_u8_{name}"])
    published = PIXELS[f"slices_u8_{name}"] if f"slices_u8_{name}" in PIXELS else []
    assert len(slices) == len(published)
    for view, expected in zip(slices, published, strict=True):
        np.testing.assert_array_equal(np.asarray(view), expected)


@pytest.mark.parametrize("name", ["120x80", "500x260"])
def test_normalized_values_are_the_published_ones(name):
    outputs = LlavaUhdImageProcessor()(PIXELS[f"img_{name}"], return_tensors="np")
    shapes = [tuple(shape) for shape in outputs.view_shapes.tolist()]
    ends = np.cumsum([rows * columns for rows, columns in shapes])[:-1]
    *slices, overview = map(unpack, np.split(outputs.pixel_values, ends), shapes)
    np.testing.assert_allclose(overview[:, ::7, ::7], PIXELS[f"source_norm_s7_{name}"], atol=1e-6, rtol=0)
    for index, view in enumerate(slices):
        np.testing.assert_allclose(view[:, ::7, ::7], PIXELS[f"slices_norm_s7_{name}"][index], atol=1e-6, rtol=0)


# Packing


def test_images_are_packed_one_after_another():
    processor = LlavaUhdImageProcessor()
    wide, small = noise(500, 260), noise(120, 80)
    outputs = processor([[wide], [], [small, wide]], return_tensors="pt")
    assert outputs.num_views.tolist() == [3, 1, 3]
    assert outputs.grids.tolist() == [[2, 1], [0, 0], [2, 1]]
    assert outputs.view_shapes.tolist() == [[24, 23], [24, 23], [17, 33], [19, 29], [24, 23], [24, 23], [17, 33]]
    assert outputs.pixel_values.shape == (outputs.view_shapes.prod(1).sum(), 3 * 14 * 14)
    assert {outputs[name].dtype for name in ("num_views", "grids", "view_shapes")} == {torch.int64}
    assert outputs.pixel_values.dtype == torch.float32
    alone = [processor(image, return_tensors="pt").pixel_values for image in (wide, small, wide)]
    torch.testing.assert_close(outputs.pixel_values, torch.cat(alone), rtol=0, atol=0)
    assert list(outputs) == processor.model_input_names


def test_a_patch_is_flattened_like_a_patch_embedding_s_weight():
    view = noise(336, 336)
    outputs = LlavaUhdImageProcessor()(view, return_tensors="pt")
    weight = torch.randn(8, 3, 14, 14, generator=torch.Generator().manual_seed(0))
    pixels = torch.from_numpy(unpack(outputs.pixel_values.numpy(), (24, 24)))
    expected = torch.nn.functional.conv2d(pixels[None], weight, stride=14).flatten(2)[0].T
    torch.testing.assert_close(outputs.pixel_values @ weight.flatten(1).T, expected, rtol=1e-4, atol=1e-4)


def test_no_images_give_no_rows():
    outputs = LlavaUhdImageProcessor()([], return_tensors="pt")
    assert outputs.pixel_values.shape == (0, 588)
    assert outputs.view_shapes.shape == (0, 2)
    assert outputs.num_views.shape == (0,)


def test_options_of_a_call_replace_the_processor_s():
    processor = LlavaUhdImageProcessor(max_slices=3)
    image = noise(400, 300)
    assert processor(image).num_views.tolist() == [3]
    assert processor(image, max_slices=1).num_views.tolist() == [1]
    outputs = processor(image, view_size=112, patch_size=16, max_slices=6)
    assert outputs.num_views.tolist() == [7]
    assert outputs.pixel_values.shape[1] == 3 * 16 * 16
    raw = processor(image, do_normalize=False, do_rescale=False).pixel_values
    assert raw.min() >= 0 and raw.max() > 200 and (raw == raw.round()).all()
    with pytest.raises(ValueError, match="max_slices must be a whole number from 1 to 1024, got 0"):
        processor(image, max_slices=0)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ({"slice_grid": [3, 3]}, "slice_grid"),
        ({"image_std": [0.0, 0.0, 0.0]}, "image_std must be 3 numbers above 0"),
        ({"image_mean": [0.5]}, "image_mean must be 3 numbers"),
        ({"rescale_factor": -1.0}, "rescale_factor must be a positive number"),
        ({"max_slices": 5000}, "max_slices must be a whole number from 1 to 1024"),
        ({"max_view_patches": 1}, "max_view_patches must be"),
    ],
)
def test_options_of_a_call_are_checked_as_those_of_the_processor(option, said):
    with pytest.raises(ValueError, match=said):
        LlavaUhdImageProcessor(**option)
    with pytest.raises(ValueError, match=said):
        LlavaUhdImageProcessor()(noise(300, 200), **option)


def test_floats_that_are_not_rescaled_have_the_values_of_their_pixels():
    processor, image = LlavaUhdImageProcessor(view_size=56), noise(100, 80)
    expected = processor(image, return_tensors="np")["pixel_values"]
    floats = np.asarray(image) / 255
    for array in (floats, torch.tensor(floats).permute(2, 0, 1), floats.astype(np.float32)):
        values = processor(array, do_rescale=False, return_tensors="np")["pixel_values"]
        assert np.allclose(values, expected, atol=1e-5)
    mixed = processor([floats, image], do_rescale=False, return_tensors="np")["pixel_values"]
    assert np.allclose(mixed[: len(expected)], expected, atol=1e-5) and mixed[len(expected) :].max() > 100


def test_the_order_of_an_array_s_axes_can_be_said():
    processor, strip = LlavaUhdImageProcessor(view_size=56), np.zeros((3, 60, 4), np.uint8)
    expected = processor(strip.transpose(1, 2, 0))["view_shapes"]
    for array in (strip, [strip], strip[None], torch.tensor(strip)):
        assert np.array_equal(processor(array, input_data_format="channels_first")["view_shapes"], expected)
    assert not np.array_equal(processor(strip)["view_shapes"], expected)


def test_a_small_image_is_enlarged_before_slicing_on_demand():
    processor = LlavaUhdImageProcessor()
    small = noise(120, 80)
    enlarged = enlarge(small, 1024)
    assert enlarged.size == (1024, 682)
    expected = processor(enlarged).pixel_values
    np.testing.assert_array_equal(processor(small, max_side=1024).pixel_values, expected)
    assert enlarge(noise(1200, 30), 1024).size == (1200, 30)


@settings(max_examples=40, deadline=None)
@given(
    width=st.integers(1, 900),
    height=st.integers(1, 900),
    max_slices=st.integers(1, 9),
    max_side=st.one_of(st.none(), st.integers(1, 1100)),
)
def test_the_plan_tells_what_is_packed(width, height, max_slices, max_side):
    processor = LlavaUhdImageProcessor(view_size=112)
    options = {"max_slices": max_slices, "max_side": max_side}
    outputs = processor(Image.new("RGB", (width, height)), **options)
    plan = processor.plan(width, height, **options)
    assert outputs.view_shapes.tolist() == [list(shape) for shape in plan.view_shapes]
    assert len(outputs.pixel_values) == plan.num_patches
    assert outputs.grids.tolist() == [list(plan.grid or (0, 0))]


def test_a_saved_processor_loads_the_same(tmp_path):
    LlavaUhdImageProcessor(max_slices=5, view_size=112, max_side=512, max_pixels=9_000).save_pretrained(tmp_path)
    loaded = LlavaUhdImageProcessor.from_pretrained(tmp_path)
    assert (loaded.max_slices, loaded.view_size, loaded.max_side, loaded.max_pixels) == (5, 112, 512, 9_000)


# Forms of an image


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    path.write_bytes(encoded(noise(60, 40)))
    return path


def test_every_form_of_an_image_gives_the_same_pixels(photo):
    content = photo.read_bytes()
    array = np.array(Image.open(photo))
    forms = {
        "path": photo,
        "string": str(photo),
        "bytes": content,
        "bytearray": bytearray(content),
        "file": io.BytesIO(content),
        "data URL": "data:image/png;base64," + base64.b64encode(content).decode(),
        "base64": base64.b64encode(content).decode(),
        "PIL": Image.open(photo),
        "array": array,
        "channels first": np.moveaxis(array, -1, 0),
        "int64": array.astype(np.int64),
        "16 bits": array.astype(np.uint16) * 257,
        "float": array / 255,
        "tensor": torch.from_numpy(array).permute(2, 0, 1),
        "float tensor": torch.from_numpy(array).permute(2, 0, 1) / 255,
    }
    for name, form in forms.items():
        np.testing.assert_array_equal(np.asarray(decode_image(form)), array, err_msg=name)
    with photo.open("rb") as file:
        np.testing.assert_array_equal(np.asarray(decode_image(file)), array)


def test_a_url_is_fetched(photo):
    handler = partial(SimpleHTTPRequestHandler, directory=photo.parent)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/"
        assert decode_image(url + "photo.png").size == (60, 40)
        with pytest.raises(ValueError, match=r"missing.png cannot be fetched: .*404"):
            decode_image(url + "missing.png")
        server.shutdown()


def test_a_batch_of_arrays_is_a_list_of_images():
    batch = torch.zeros(2, 3, 20, 30, dtype=torch.uint8)
    assert [image.size for image in LlavaUhdImageProcessor().fetch_images(batch)] == [(30, 20), (30, 20)]


@pytest.mark.parametrize(
    "mode, value, expected",
    [
        ("1", 1, (255, 255, 255)),
        ("L", 77, (77, 77, 77)),
        ("RGB", (1, 2, 3), (1, 2, 3)),
        ("RGBA", (200, 100, 0, 255), (200, 100, 0)),
        ("RGBA", (200, 100, 0, 0), (255, 255, 255)),
        ("RGBA", (0, 0, 0, 51), (204, 204, 204)),
        ("LA", (0, 51), (204, 204, 204)),
        ("I;16", 0x4D4D, (77, 77, 77)),
        ("I", 0x4D4D, (77, 77, 77)),
        ("I", 77, (77, 77, 77)),
        ("F", 77 / 255, (77, 77, 77)),
        ("F", 77.0, (77, 77, 77)),
        ("CMYK", (0, 255, 255, 0), (255, 0, 0)),
        ("YCbCr", (128, 128, 128), (128, 128, 128)),
        ("HSV", (0, 0, 77), (77, 77, 77)),
    ],
)
def test_every_color_mode_becomes_rgb(mode, value, expected):
    image = decode_image(Image.new(mode, (3, 2), value))
    assert image.mode == "RGB"
    assert image.size == (3, 2)
    assert image.getpixel((1, 1)) == expected


def test_palettes_with_and_without_transparency():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    assert decode_image(encoded(image)).getpixel((1, 0)) == (40, 50, 60)
    transparent = decode_image(encoded(image, transparency=1))
    assert [transparent.getpixel((x, 0)) for x in (0, 1)] == [(10, 20, 30), (255, 255, 255)]


def test_files_of_deep_gray_and_of_print_colors():
    deep = Image.fromarray(np.array([[0, 0x4D4D, 65535]], np.uint16))
    assert [decode_image(encoded(deep)).getpixel((x, 0))[0] for x in range(3)] == [0, 77, 255]
    print_colors = encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=100)
    red, green, blue = decode_image(print_colors).getpixel((8, 8))
    assert red > 250 and green < 5 and blue < 5


def test_one_channel_two_channels_and_booleans():
    assert decode_image(np.full((2, 3), True)).getpixel((0, 0)) == (255, 255, 255)
    assert decode_image(np.full((2, 3, 1), 9, np.uint8)).getpixel((0, 0)) == (9, 9, 9)
    assert decode_image(np.array([[[0, 51]]], np.uint8)).getpixel((0, 0)) == (204, 204, 204)
    assert decode_image(torch.full((1, 2, 3), 9, dtype=torch.uint8)).size == (3, 2)
    # Both orders fit: an array's last axis is channels, a tensor's first.
    assert decode_image(np.zeros((3, 5, 3), np.uint8)).size == (5, 3)
    assert decode_image(torch.zeros(3, 5, 3, dtype=torch.uint8)).size == (3, 5)


def test_orientation_tags_are_obeyed():
    upright = Image.new("RGB", (40, 20), "white")
    upright.paste("red", (0, 0, 40, 10))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    turned = encoded(upright.transpose(Image.Transpose.ROTATE_90), "PNG", exif=exif)
    for form in (turned, Image.open(io.BytesIO(turned))):
        image = decode_image(form)
        assert image.size == (40, 20)
        assert image.getpixel((20, 2)) == (255, 0, 0)
        assert decode_image(image).size == (40, 20)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"])
def test_every_orientation_is_pillow_s_own(kind):
    image = noise(24, 16)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        content = encoded(image, kind, exif=exif)
        with Image.open(io.BytesIO(content)) as opened:
            expected = ImageOps.exif_transpose(opened).convert("RGB")
        assert decode_image(content).tobytes() == expected.tobytes(), orientation


# Refusals


def tags_of_the_same_bytes(number: int, size: int) -> bytes:
    """A TIFF directory whose tags all point to the same bytes."""
    place = 8 + 2 + 12 * number + 4
    tags = b"".join(struct.pack("<HHII", (0x8000 + index) % 2**16, 7, size, place) for index in range(number))
    return b"II*\0" + struct.pack("<IH", 8, number) + tags + bytes(4) + b"x" * size


def with_tags(kind: str, tags: bytes) -> bytes:
    """A tiny image that holds a directory of tags."""
    image = Image.new("RGB", (8, 8))
    if kind == "WEBP":
        return encoded(image, kind, exif=b"Exif\0\0" + tags)
    if kind == "AVIF":  # its encoder reads the tags: an empty directory is replaced
        empty = tags[:8] + bytes(2) + tags[10:]
        return encoded(image, kind, exif=b"Exif\0\0" + empty).replace(empty, tags)
    if kind == "PNG":
        chunk = b"eXIf" + tags
        content = encoded(image)
        return (
            content[:33] + struct.pack(">I", len(tags)) + chunk + struct.pack(">I", zlib.crc32(chunk)) + content[33:]
        )
    if kind == "JPEG":
        content, segments = encoded(image, kind), b""
        for start in range(0, len(tags), 65_000):
            segment = b"Exif\0\0" + tags[start : start + 65_000]
            segments += b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment
        # Before them what a reader may take for the end: a marker without a length, and an end of image.
        return content[:2] + b"\xff\xf0\xff\xff\xff\xd9\xff\0" + segments + content[2:]
    return tags


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"])
def test_tags_of_the_same_bytes_take_no_memory(kind, tmp_path, monkeypatch):
    """Pillow copies the bytes of every tag: 4,000 tags of a file of 250 KB are 800 MB."""
    file, read, load = tmp_path / "image", [], ImageFileDirectory_v2.load
    few, many = (with_tags(kind, tags_of_the_same_bytes(number, 200_000)) for number in (4_000, 60_000))
    monkeypatch.setattr(ImageFileDirectory_v2, "load", lambda self, file: (read.append(1), load(self, file)))
    for content, said in ((few, "800000000 bytes in 2480"), (many, "60000 EXIF or TIFF tags; at most 5000")):
        file.write_bytes(content)
        for source in (content, file):
            if kind == "AVIF":  # orientation is that of the container: EXIF data are not read
                assert decode_image(source).size == (8, 8)
                continue
            with pytest.raises(ValueError, match=said) as raised:
                decode_image(source)
            assert len(str(raised.value)) < 200
    assert not read


def test_base64_in_percent_encoding_and_with_spaces():
    content = encoded(noise(200, 100))
    text = base64.b64encode(content).decode()
    for written in (
        text.replace("+", "%2B").replace("/", "%2f").replace("=", "%3D"),
        "".join(f"%{ord(character):02X}" for character in text),
        " ".join(text[start : start + 2] for start in range(0, len(text), 2)),
        text.replace("+", "-").replace("/", "_").rstrip("="),
    ):
        assert decode_base64(f"data:image/png;base64,{written}") == content
    started = time.thread_time()
    with pytest.raises(ValueError, match="is not valid base64"):
        decode_base64("data:image/png;base64," + "%" * 1_000_000)
    assert time.thread_time() - started < 2  # seconds of this thread


@pytest.mark.parametrize(
    "content, complaint",
    [
        (b"", "is empty"),
        (b"certainly no image", "is not an image"),
        (encoded(noise(80, 80), "JPEG")[:900], "is damaged or cut short"),
        (encoded(noise(80, 80))[:900], "is damaged or cut short"),
        (encoded(noise(80, 80), "GIF")[:40], "(is not an image|is damaged|cannot be read)"),
    ],
)
def test_bad_files_are_named(tmp_path, content, complaint):
    path = tmp_path / "bad.png"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"^{path} {complaint}"):
        decode_image(path)
    with pytest.raises(ValueError, match=f"^image 2 {complaint}"):
        LlavaUhdImageProcessor()([[noise(9, 9)], [content]])


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(ValueError, match="there is no file nowhere.png"):
        decode_image("nowhere.png")
    with pytest.raises(ValueError, match=f"{tmp_path} is not a file"):
        decode_image(tmp_path)


@pytest.mark.parametrize(
    "array, complaint",
    [
        (np.zeros((0, 4, 3), np.uint8), "4 x 0 pixels; at least 1 x 1"),
        (np.zeros((5, 5, 7), np.uint8), r"got shape \(5, 5, 7\)"),
        (np.zeros(4, np.uint8), r"got shape \(4,\)"),
        (np.full((4, 4), 300), "from 0 to 255, got 300 to 300"),
        (np.full((4, 4), -1.0), "from 0 to 1.0, got -1.0 to -1.0"),
        (np.full((4, 4), np.nan), "got nan to nan"),
        (np.full((4, 4), 99.0), "from 0 to 1.0, got 99.0"),
    ],
)
def test_bad_arrays_are_refused_with_their_numbers(array, complaint):
    with pytest.raises(ValueError, match=complaint):
        decode_image(array)


def test_an_image_of_no_area_is_refused():
    with pytest.raises(ValueError, match="0 x 5 pixels; at least 1 x 1"):
        decode_image(Image.new("RGB", (0, 5)))


def test_too_many_pixels_are_refused_before_decoding(tmp_path, monkeypatch):
    path = tmp_path / "bomb.png"
    path.write_bytes(encoded(Image.new("1", (4000, 1000)))[:200])  # the pixels themselves are missing
    with pytest.raises(ValueError, match=f"^{path} has 4000 x 1000 pixels; at most 3999999 are allowed"):
        LlavaUhdImageProcessor(max_pixels=3_999_999)(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000_000)
    with pytest.raises(ValueError, match=f"^{path} has too many pixels"):
        decode_image(path)


def test_other_objects_are_refused():
    with pytest.raises(TypeError, match="image 1 must be a PIL image, .* got int"):
        LlavaUhdImageProcessor()(7)
    with pytest.raises(ValueError, match="image is not valid base64"):
        decode_image("data:image/png;base64,!!")


@pytest.mark.parametrize("size", [(1, 1), (1, 2000), (2000, 1), (2304, 1), (1, 2304)])
def test_extreme_shapes_are_resized_all_the_same(size):
    outputs = LlavaUhdImageProcessor()(Image.new("L", size, 128))
    assert outputs.pixel_values.shape[0] == np.prod(outputs.view_shapes, 1).sum() <= 1152
    assert np.ptp(outputs.pixel_values.reshape(-1, 3, 196), axis=(0, 2)).max() == 0


def test_images_too_narrow_are_refused_with_their_patches_and_the_limit(tmp_path):
    with pytest.raises(ValueError, match="1 x 13360 pixels is too narrow.* 2774 patches; at most 1152 "):
        LlavaUhdImageProcessor()(Image.new("L", (1, 13_360)))
    processor = LlavaUhdImageProcessor(max_view_patches=2774)
    processor.save_pretrained(tmp_path)
    for loaded in (processor, LlavaUhdImageProcessor.from_pretrained(tmp_path)):
        assert loaded(Image.new("L", (1, 13_360))).pixel_values.shape[0] == 2774
    with pytest.raises(ValueError, match="at most 600 "):
        LlavaUhdImageProcessor()(Image.new("L", (1, 2000)), max_view_patches=600)
    with pytest.raises(ValueError, match="max_view_patches must be a whole number from 576"):
        LlavaUhdImageProcessor(max_view_patches=575)


def test_a_call_of_fewer_slices_than_the_fixed_grid_shows_the_overview_alone():
    processor = LlavaUhdImageProcessor(view_size=56, patch_size=14, max_slices=6, slice_grid=[2, 2])
    image = Image.new("RGB", (200, 150))
    assert processor(image, max_slices=1)["num_views"].tolist() == [1]
    assert processor(image)["num_views"].tolist() == [5]
    with pytest.raises(ValueError, match="slice_grid must be"):
        processor(image, slice_grid=[3, 3])
