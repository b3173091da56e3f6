"""Pictures are resized and compressed; what is no picture, or too large a one, is discarded."""

from __future__ import annotations

import io
import struct
import uuid
import zlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw, PngImagePlugin
from pydantic import ValidationError
from pytest_django import Settings

from capataz.errors import Discard
from capataz.handlers import RunningTask
from tasks import images

ORIENTATION = 0x0112


@pytest.fixture(autouse=True)
def uploads(settings: Settings, tmp_path: Path) -> Path:
    settings.UPLOAD_ROOT, settings.PROCESSED_ROOT = tmp_path / "uploads", tmp_path / "processed"
    settings.DATA_ROOT, settings.EXPORT_ROOT = tmp_path / "data", tmp_path / "exports"
    settings.UPLOAD_ROOT.mkdir()
    return tmp_path / "uploads"


@pytest.fixture
def processed(tmp_path: Path) -> Path:
    return tmp_path / "processed"


def resize(width: int | None, height: int | None, **params: Any) -> dict[str, Any]:
    return {"type": "resize", "params": {"width": width, "height": height, **params}}


def run(source: str, *operations: dict[str, Any], to: str = "out.png", **options: Any) -> dict[str, Any]:
    data = {"imagePath": source, "operations": list(operations) or [resize(50, 50)], "outputPath": to}
    task = RunningTask(uuid.uuid4(), "image_processing", attempt=1, starts=1)
    result: dict[str, Any] = images.process.function(
        task, images.process.payload.validate_python(data | options)
    )
    return result


def encoded(image: Image.Image, file_format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def picture(width: int = 120, height: int = 80) -> Image.Image:
    """White with a red corner at the top left."""
    image = Image.new("RGB", (width, height), "white")
    ImageDraw.Draw(image).rectangle((0, 0, width // 4, height // 4), fill="red")
    return image


def is_red(color: Any) -> bool:
    return bool(color[0] > 200 and color[1] < 80 and color[2] < 80)


def png(width: int, height: int, data: bytes = b"", *, depth: int = 8, color: int = 2) -> bytes:
    """A PNG with this header, whatever its data say."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def test_the_seed_sample_gives_a_thumbnail(uploads: Path, processed: Path) -> None:
    (uploads / "image.jpg").write_bytes(encoded(picture(800, 600), "JPEG"))
    compress = {"type": "compress", "params": {"quality": 0.8}}
    result = run("/uploads/image.jpg", resize(300, 300), compress, to="/processed/image-thumb.jpg")
    size = (processed / "image-thumb.jpg").stat().st_size
    assert result == {
        "outputPath": "/processed/image-thumb.jpg",
        "width": 300,
        "height": 225,
        "bytes": size,
        "format": "JPEG",
    }
    with Image.open(processed / "image-thumb.jpg") as thumbnail:
        assert (thumbnail.format, thumbnail.size) == ("JPEG", (300, 225))


@pytest.mark.parametrize(
    ("operation", "size"),
    [
        (resize(60, 60), (60, 40)),
        (resize(60, None), (60, 40)),
        (resize(None, 40), (60, 40)),
        (resize(500, 500), (120, 80)),
        (resize(60, 60, fit="cover"), (60, 60)),
        (resize(240, 240, fit="cover"), (240, 240)),
        (resize(30, 70, fit="stretch"), (30, 70)),
    ],
)
def test_fit_decides_about_aspect_and_size(
    uploads: Path, operation: dict[str, Any], size: tuple[int, int]
) -> None:
    for file_format in ("PNG", "JPEG"):
        (uploads / "a").write_bytes(encoded(picture(), file_format))
        result = run("a", operation, to=f"{file_format}.png")
        assert (result["width"], result["height"]) == size


def test_a_lower_quality_makes_a_smaller_file_and_percent_mean_the_same(uploads: Path) -> None:
    (uploads / "a.png").write_bytes(encoded(Image.effect_noise((200, 200), 60)))
    sizes = [
        run("a.png", {"type": "compress", "params": {"quality": quality}}, to=f"{quality}.jpg")["bytes"]
        for quality in (0.2, 20, 0.9, 90, 1, 0)
    ]
    assert sizes[0] == sizes[1] < sizes[2] == sizes[3] < sizes[4]
    assert sizes[5] < sizes[0]


@pytest.mark.parametrize("source", ["PNG", "JPEG", "WEBP", "GIF"])
@pytest.mark.parametrize("suffix", ["jpg", "jpeg", "PNG", "webp", "gif"])
def test_every_format_becomes_every_format(uploads: Path, processed: Path, source: str, suffix: str) -> None:
    (uploads / "a").write_bytes(encoded(picture(), source))
    result = run("a", to=f"a.{suffix}")
    with Image.open(processed / f"a.{suffix}") as image:
        assert image.format == result["format"]
        assert is_red(image.convert("RGB").getpixel((2, 2)))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "CMYK"])
def test_every_pixel_mode_can_be_written_everywhere(uploads: Path, mode: str) -> None:
    image = Image.linear_gradient("L").convert("I").point(lambda value: value * 256).convert("I;16")
    if mode != "I;16":
        image = picture().convert(mode)
    (uploads / "a").write_bytes(encoded(image, "JPEG" if mode == "CMYK" else "PNG"))
    for suffix in ("jpg", "png", "webp", "gif"):
        assert run("a", to=f"{suffix}/a.{suffix}")["bytes"] > 0


def test_sixteen_bits_are_scaled_not_cut_off(uploads: Path, processed: Path) -> None:
    (uploads / "a.png").write_bytes(encoded(Image.new("I;16", (10, 10), 32768)))
    run("a.png")
    with Image.open(processed / "out.png") as image:
        assert image.getpixel((5, 5)) in (127, 128)


def test_transparency_is_kept_where_it_can_be_and_white_elsewhere(uploads: Path, processed: Path) -> None:
    (uploads / "a.png").write_bytes(encoded(Image.new("RGBA", (40, 40), (0, 0, 0, 0))))
    run("a.png", to="a.webp")
    run("a.png", to="a.jpg")
    with Image.open(processed / "a.webp") as webp, Image.open(processed / "a.jpg") as jpeg:
        assert webp.convert("RGBA").getchannel("A").getextrema() == (0, 0)
        assert jpeg.getpixel((20, 20)) == (255, 255, 255)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_picture_is_turned_upright(uploads: Path, processed: Path, orientation: int) -> None:
    # What the camera would have stored, held in this way.
    undo = {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    turn = undo.get(orientation, images.UPRIGHT.get(orientation))
    stored = picture() if turn is None else picture().transpose(turn)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    (uploads / "a.jpg").write_bytes(encoded(stored, "JPEG", exif=exif))
    result = run("a.jpg", resize(60, 60))
    assert (result["width"], result["height"]) == (60, 40)
    with Image.open(processed / "out.png") as image:
        assert is_red(image.getpixel((3, 3)))


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif"])
def test_nothing_that_was_attached_survives(uploads: Path, processed: Path, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x010F] = "CANARY-camera"
    exif[ORIENTATION] = 6
    note = PngImagePlugin.PngInfo()
    note.add_text("comment", "CANARY-text")
    image = encoded(picture(), "PNG", exif=exif, pnginfo=note, icc_profile=b"CANARY-profile" * 20)
    (uploads / "a.png").write_bytes(image)
    (uploads / "a.jpg").write_bytes(
        encoded(picture(), "JPEG", exif=exif, comment=b"CANARY-comment", icc_profile=b"CANARY-p" * 20)
        + b"PK\x03\x04CANARY-zip<?php CANARY ?>"
    )
    for source in ("a.png", "a.jpg"):
        run(source, to=f"{source}/a.{suffix}")
        data = (processed / source / f"a.{suffix}").read_bytes()
        assert b"CANARY" not in data
        with Image.open(io.BytesIO(data)) as written:
            assert not written.getexif() and "icc_profile" not in written.info


def test_of_an_animation_the_first_frame_is_taken_however_long_it_is(uploads: Path, processed: Path) -> None:
    frames = [Image.new("P", (8, 8), number % 2) for number in range(1, 3_000)]
    red = Image.new("RGB", (8, 8), "red")
    (uploads / "a.gif").write_bytes(encoded(red, "GIF", save_all=True, append_images=frames))
    run("a.gif")
    with Image.open(processed / "out.png") as image:
        assert is_red(image.getpixel((4, 4)))
        assert getattr(image, "n_frames", 1) == 1


def damaged() -> dict[str, bytes]:
    whole = {kind: encoded(picture(600, 400), kind) for kind in ("PNG", "JPEG", "WEBP", "GIF")}
    truncated = {f"truncated {kind}": data[: len(data) * 2 // 3] for kind, data in whole.items()}
    headers = {f"header of {kind}": data[:20] for kind, data in whole.items()}
    return {
        **truncated,
        **headers,
        "nothing": b"",
        "text": b"this is not an image",
        "html": b"<html><script>alert(1)</script></html>",
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(x) run\n",
        "PDF": b"%PDF-1.4\n",
        "BMP": encoded(picture(), "BMP"),
        "TIFF": encoded(picture(), "TIFF"),
        "PSD": b"8BPS\x00\x01" + b"\0" * 6 + struct.pack(">HIIHH", 3, 10, 10, 8, 3) + b"\0" * 100,
        "FITS": b"SIMPLE  =                    T".ljust(2880),
        "wrong checksum": whole["PNG"].replace(b"IDAT", b"IDAX", 1),
        "no pixels": png(0, 0),
        "empty data": png(10, 10),
        "garbage data": png(10, 10, b"not deflate at all"),
    }


@pytest.mark.parametrize("name", list(damaged()))
def test_what_is_not_a_whole_picture_is_discarded(uploads: Path, processed: Path, name: str) -> None:
    (uploads / "a.jpg").write_bytes(damaged()[name])
    with pytest.raises(Discard, match=r"/uploads/a\.jpg"):
        run("a.jpg")
    assert not processed.exists() or list(processed.iterdir()) == []


def bombs() -> dict[str, bytes]:
    side = 30_000
    zeros = zlib.compressobj(9)
    line = b"\0" * (side // 8 + 1)
    packed = b"".join(zeros.compress(line) for _ in range(side)) + zeros.flush()
    webp = b"VP8X" + struct.pack("<I", 10) + b"\x10\0\0\0" + b"\xfe\x3f\0" * 2  # canvas of 16383 squared
    gif = b"GIF89a" + struct.pack("<HH", 65535, 65535) + b"\x80\0\0" + b"\0" * 6
    gif += b"," + struct.pack("<HHHH", 0, 0, 65535, 65535) + b"\0\x02\x02\x4c\x01\0;"
    jpeg = encoded(picture(), "JPEG")
    at = jpeg.index(b"\xff\xc0") + 5
    return {
        "PNG of a few kB": png(side, side, packed, depth=1, color=0),
        "PNG header of 65535 squared": png(65535, 65535),
        "PNG of the largest sides": png(2**31 - 1, 2**31 - 1),
        "JPEG header of 65535 squared": jpeg[:at] + b"\xff\xff\xff\xff" + jpeg[at + 4 :],
        "WEBP canvas": b"RIFF" + struct.pack("<I", 4 + len(webp)) + b"WEBP" + webp,
        "GIF screen": gif,
        "PNG just over": png(8000, 5001),
        "PNG that Pillow would only warn of": png(10_000, 10_000),
        "PNG text of 100 MB": png_with_huge_text(),
    }


def png_with_huge_text() -> bytes:
    note = PngImagePlugin.PngInfo()
    note.add_text("comment", "x" * 100_000_000, zip=True)
    return encoded(picture(), "PNG", pnginfo=note)


@pytest.mark.parametrize("name", list(bombs()))
def test_a_bomb_is_discarded_before_it_takes_memory(uploads: Path, name: str) -> None:
    (uploads / "a.png").write_bytes(bombs()[name])
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of making the bomb
    before = memory("VmHWM")
    with pytest.raises(Discard, match=r"/uploads/a\.png .*(pixels|too large)"):
        run("a.png")
    assert memory("VmHWM") - before < 20_000


def memory(name: str) -> int:
    """A figure of this process from the kernel, in kB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


def test_a_missing_picture_is_tried_again_since_it_may_be_on_its_way() -> None:
    with pytest.raises(FileNotFoundError, match=r"/uploads/later\.jpg"):
        run("later.jpg")


@pytest.mark.parametrize(
    "change",
    [
        {"imagePath": "../../etc/passwd"},
        {"imagePath": "/etc/passwd"},
        {"outputPath": "/uploads/a.png"},
        {"outputPath": "/processed/../a.png"},
        {"outputPath": "a.svg"},
        {"outputPath": "a"},
        {"operations": []},
        {"operations": [{"type": "rotate", "params": {}}]},
        {"operations": [{"type": "resize", "params": {}}]},
        {"operations": [{"type": "resize", "params": {"width": 0, "height": 1}}]},
        {"operations": [{"type": "resize", "params": {"width": 10_001, "height": 1}}]},
        {"operations": [{"type": "resize", "params": {"width": 10_000, "height": 10_000}}]},
        {"operations": [{"type": "resize", "params": {"width": 10, "fit": "cover"}}]},
        {"operations": [{"type": "compress", "params": {"quality": -1}}]},
        {"operations": [{"type": "compress", "params": {"quality": 101}}]},
        {"operations": [resize(5, 5)] * 11},
        {"extra": 1},
    ],
)
def test_a_job_that_makes_no_sense_is_refused_at_submission(change: dict[str, Any]) -> None:
    good = {"imagePath": "a.png", "operations": [resize(5, 5)], "outputPath": "b.png"}
    images.process.payload.validate_python(good)
    with pytest.raises(ValidationError):
        images.process.payload.validate_python(good | change)


def test_progress_goes_up_to_a_hundred(uploads: Path) -> None:
    seen: list[int] = []
    (uploads / "a.png").write_bytes(encoded(picture()))
    task = RunningTask(uuid.uuid4(), "image_processing", 1, 1, lambda percent, message: seen.append(percent))
    data = {"imagePath": "a.png", "operations": [resize(5, 5)], "outputPath": "b.png"}
    images.process.function(task, images.process.payload.validate_python(data))
    assert seen == sorted(seen) and seen[-1] == 100


def step(type: str, **params: Any) -> dict[str, Any]:
    return {"type": type, "params": params}


def written(processed: Path, name: str = "out.png") -> Image.Image:
    with Image.open(processed / name) as image:
        return image.convert("RGB")


def test_a_part_is_cut_out(uploads: Path, processed: Path) -> None:
    (uploads / "a.png").write_bytes(encoded(picture()))
    run("a.png", step("crop", x=20, y=10, width=40, height=30))
    image = written(processed)
    assert image.size == (40, 30)
    assert is_red(image.getpixel((10, 10))) and not is_red(image.getpixel((11, 11)))


@pytest.mark.parametrize("part", [{"x": 81, "width": 40, "height": 1}, {"y": 80, "width": 1, "height": 1}])
def test_a_part_outside_of_the_picture_is_discarded(uploads: Path, part: dict[str, int]) -> None:
    (uploads / "a.png").write_bytes(encoded(picture()))
    with pytest.raises(Discard, match="not within the picture of 120 x 80"):
        run("a.png", step("crop", **part))


@pytest.mark.parametrize(
    ("turn", "size", "red"),
    [
        ({"angle": 90}, (80, 120), (77, 3)),
        ({"angle": -90}, (80, 120), (3, 117)),
        ({"angle": 180}, (120, 80), (117, 77)),
        ({"angle": 360}, (120, 80), (3, 3)),
        ({"angle": 45}, (142, 142), (60, 8)),
        ({"angle": 90, "expand": False}, (120, 80), None),
    ],
)
def test_degrees_are_clockwise(
    uploads: Path, processed: Path, turn: dict[str, Any], size: tuple[int, int], red: tuple[int, int] | None
) -> None:
    (uploads / "a.png").write_bytes(encoded(picture()))
    run("a.png", step("rotate", **turn))
    image = written(processed)
    assert image.size == size
    assert red is None or is_red(image.getpixel(red))


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGB", "RGBA"])
def test_the_corners_of_a_turned_picture_have_the_colour_that_was_asked_for(
    uploads: Path, processed: Path, mode: str
) -> None:
    (uploads / "a.png").write_bytes(encoded(picture().convert(mode)))
    run("a.png", step("rotate", angle=45, background="#0000ff"))
    assert written(processed).getpixel((0, 0)) == (0, 0, 255)


def test_a_turn_that_makes_the_picture_too_large_is_discarded(uploads: Path) -> None:
    (uploads / "a.png").write_bytes(encoded(Image.new("1", (6_000, 6_000))))
    with pytest.raises(Discard, match="more than 40,000,000 pixels"):
        run("a.png", step("rotate", angle=45))


def test_a_thumbnail_keeps_the_aspect_and_never_enlarges(uploads: Path) -> None:
    (uploads / "a.png").write_bytes(encoded(picture()))
    small = run("a.png", step("thumbnail", width=60, height=60), to="small.png")
    same = run("a.png", step("thumbnail"), to="same.png")
    assert (small["width"], small["height"]) == (60, 40)
    assert (same["width"], same["height"]) == (120, 80)


def test_convert_names_the_format_and_must_agree_with_the_suffix(uploads: Path, processed: Path) -> None:
    (uploads / "a.png").write_bytes(encoded(picture()))
    assert run("a.png", step("convert", format="jpg"), to="a.jpeg")["format"] == "JPEG"
    with pytest.raises(ValidationError, match="contradicts"):
        run("a.png", step("convert", format="webp"), to="a.png")


@pytest.mark.parametrize(
    ("position", "corner"),
    [("top-left", (4, 4)), ("top-right", (195, 4)), ("bottom-left", (4, 195)), ("bottom-right", (195, 195))],
)
def test_a_picture_is_a_mark_where_it_is_asked_for(
    uploads: Path, processed: Path, position: str, corner: tuple[int, int]
) -> None:
    (uploads / "a.png").write_bytes(encoded(Image.new("RGB", (200, 200), "white")))
    (uploads / "mark.png").write_bytes(encoded(Image.new("RGB", (50, 50), "red")))
    run("a.png", step("watermark", imagePath="mark.png", position=position, opacity=1, scale=0.1))
    image = written(processed)
    assert is_red(image.getpixel(corner))
    assert image.getpixel((100, 100)) == (255, 255, 255)


@pytest.mark.parametrize(("opacity", "darkest"), [(0, 255), (0.5, 127), (1, 0)])
def test_a_text_is_as_opaque_as_it_is_asked_for(
    uploads: Path, processed: Path, opacity: float, darkest: int
) -> None:
    (uploads / "a.png").write_bytes(encoded(Image.new("RGB", (200, 200), "white")))
    run(
        "a.png",
        step("watermark", text="(c) Ana", position="center", opacity=opacity, scale=0.9, color="black"),
    )
    low, high = written(processed).convert("L").getextrema()
    assert low == pytest.approx(darkest, abs=2) and high == 255


def test_a_mark_that_is_a_bomb_is_discarded(uploads: Path) -> None:
    (uploads / "a.png").write_bytes(encoded(picture()))
    (uploads / "mark.png").write_bytes(png(65535, 65535))
    with pytest.raises(Discard, match=r"/uploads/mark\.png .*pixels"):
        run("a.png", step("watermark", imagePath="mark.png"))


def test_steps_are_taken_in_their_order(uploads: Path) -> None:
    (uploads / "a.png").write_bytes(encoded(picture()))
    steps = [step("crop", width=100, height=50), step("rotate", angle=90)]
    first = run("a.png", *steps, to="first.png")
    assert (first["width"], first["height"]) == (50, 100)
    with pytest.raises(Discard, match="crop"):
        run("a.png", *reversed(steps), to="second.png")


@pytest.mark.parametrize(
    "operation",
    [
        step("crop", x=-1, width=1, height=1),
        step("crop", width=1),
        step("rotate", angle=361),
        step("rotate", angle=1, background="no colour"),
        step("watermark"),
        step("watermark", text="a", imagePath="a.png"),
        step("watermark", text="a\nb"),
        step("watermark", imagePath="../a.png"),
        step("watermark", text="a", opacity=1.1),
        step("watermark", text="a", position="elsewhere"),
        step("convert", format="svg"),
        step("thumbnail", width=10_000, height=10_000),
        step("emboss"),
    ],
)
def test_a_step_that_makes_no_sense_is_refused_at_submission(operation: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        run("a.png", operation)
