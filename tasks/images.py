"""Images: resize, cut, turn, mark, compress and convert pictures that strangers uploaded."""

from __future__ import annotations

import io
import math
import struct
import warnings
import zlib
from typing import Annotated, Any, BinaryIO, Literal

from PIL import Image, ImageColor, ImageDraw, ImageFont, ImageOps, UnidentifiedImageError
from pydantic import AfterValidator, Field, field_validator, model_validator

from capataz.errors import Discard
from capataz.handlers import RunningTask, handler
from capataz.policy import exponential
from tasks.payloads import Payload
from tasks.roots import DATA, EXPORTS, PROCESSED, UPLOADS, Location, contents, locate, path_under, writing

LARGEST_FILE = 64 * 1024 * 1024
LARGEST_IMAGE = 40_000_000  # pixels: 160 MB decoded as RGBA
LONGEST_SIDE = 10_000

# Pillow knows dozens of formats; each decoder that is not offered is one that cannot be attacked.
READABLE = ("JPEG", "PNG", "WEBP", "GIF")
WRITABLE = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP", ".gif": "GIF"}

SOURCES = (UPLOADS, PROCESSED, DATA)
TARGETS = (PROCESSED, EXPORTS)

# What Pillow raises for damaged files. MemoryError is left out: it says something about this machine.
DAMAGE = (
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    EOFError,
    struct.error,
    zlib.error,
)

# EXIF orientation: how the camera was held, and what turns the picture upright again.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
ORIENTATION = 0x0112

Side = Annotated[int, Field(ge=1, le=LONGEST_SIDE)]
Offset = Annotated[int, Field(ge=0, le=LONGEST_SIDE)]
Position = Literal["center", "top-left", "top-right", "bottom-left", "bottom-right"]


def _a_color(name: str) -> str:
    ImageColor.getrgb(name)  # raises a ValueError that says what is wrong
    return name


Color = Annotated[str, Field(max_length=40), AfterValidator(_a_color)]


class Box(Payload):
    """The size to resize to, in pixels.

    ``contain`` (the default) keeps the aspect, fits the picture into the box and never enlarges it; one
    side may be left out. ``cover`` keeps the aspect and cuts off what does not fit; ``stretch`` does
    neither. Both of these give exactly the box.
    """

    width: Side | None = None
    height: Side | None = None
    fit: Literal["contain", "cover", "stretch"] = "contain"

    @model_validator(mode="after")
    def _has_the_sides_it_needs(self) -> Box:
        if self.width is None and self.height is None:
            raise ValueError("give width, height, or both")
        if self.fit != "contain" and (self.width is None or self.height is None):
            raise ValueError(f"fit {self.fit!r} needs width and height")
        if (self.width or 1) * (self.height or 1) > LARGEST_IMAGE:
            raise ValueError(f"the box is larger than {LARGEST_IMAGE:,} pixels")
        return self


class Quality(Payload):
    """How much may be lost: up to 1 a fraction (0.8, and 1 is the best), above it percent (80).

    JPEG and WebP obey it; PNG and GIF lose nothing and are only packed as tightly as possible.
    """

    quality: Annotated[float, Field(ge=0, le=100)] = 0.8

    @property
    def percent(self) -> int:
        """The quality from 1 to 100."""
        return max(1, round(self.quality * 100 if self.quality <= 1 else self.quality))


class Resize(Payload):
    """Make the picture fit a box."""

    type: Literal["resize"]
    params: Box


class Compress(Payload):
    """Choose the quality of the output; of several, the last one counts."""

    type: Literal["compress"]
    params: Quality = Quality()


class Square(Payload):
    """The box that a thumbnail fits into, in pixels."""

    width: Side = 256
    height: Side = 256

    @model_validator(mode="after")
    def _is_small_enough(self) -> Square:
        if self.width * self.height > LARGEST_IMAGE:
            raise ValueError(f"the box is larger than {LARGEST_IMAGE:,} pixels")
        return self


class Thumbnail(Payload):
    """Make the picture fit a small box; it is never enlarged."""

    type: Literal["thumbnail"]
    params: Square = Square()


class Part(Payload):
    """A part of the picture in pixels, from its top left corner."""

    x: Offset = 0
    y: Offset = 0
    width: Side
    height: Side


class Crop(Payload):
    """Keep one part of the picture, which must lie within it."""

    type: Literal["crop"]
    params: Part


class Turn(Payload):
    """Degrees clockwise. ``expand`` makes the picture as large as it gets; corners are ``background``."""

    angle: Annotated[float, Field(ge=-360, le=360)]
    expand: bool = True
    background: Color = "white"


class Rotate(Payload):
    """Turn the picture."""

    type: Literal["rotate"]
    params: Turn


class Format(Payload):
    """What the output is written as; the output's suffix has to say the same."""

    format: Literal["jpeg", "jpg", "png", "webp", "gif"]


class Convert(Payload):
    """Name the format of the output."""

    type: Literal["convert"]
    params: Format


class Mark(Payload):
    """A text or another picture to draw over this one, in one of five places.

    ``scale`` is its width as a fraction of the picture's, ``opacity`` is 0 to 1. Text is printable ASCII.
    """

    text: Annotated[str, Field(pattern=r"^[ -~]{1,100}$")] | None = None
    image_path: Annotated[str, path_under(*SOURCES)] | None = None
    position: Position = "bottom-right"
    opacity: Annotated[float, Field(ge=0, le=1)] = 0.5
    scale: Annotated[float, Field(gt=0, le=1)] = 0.3
    color: Color = "white"

    @model_validator(mode="after")
    def _is_one_thing(self) -> Mark:
        if (self.text is None) == (self.image_path is None):
            raise ValueError("give text or imagePath, one of them")
        return self


class Watermark(Payload):
    """Draw a mark over the picture."""

    type: Literal["watermark"]
    params: Mark


Operation = Annotated[
    Resize | Thumbnail | Crop | Rotate | Watermark | Compress | Convert, Field(discriminator="type")
]


class ImageJob(Payload):
    """A picture, what to do with it in order, and where to put it; the suffix there is the format.

    Relative paths are under ``/uploads`` for the source and under ``/processed`` for the output. A
    different file at the output is replaced only with ``overwrite``.
    """

    image_path: Annotated[str, path_under(*SOURCES)]
    operations: Annotated[list[Operation], Field(min_length=1, max_length=10)]
    output_path: Annotated[str, path_under(*TARGETS)]
    overwrite: bool = False

    @field_validator("output_path")
    @classmethod
    def _has_a_known_suffix(cls, path: str) -> str:
        if locate(path, *TARGETS).suffix not in WRITABLE:
            raise ValueError(f"the output's suffix must be one of {', '.join(WRITABLE)}")
        return path

    @model_validator(mode="after")
    def _is_named_as_it_is_converted(self) -> ImageJob:
        suffix = locate(self.output_path, *TARGETS).suffix
        for step in self.operations:
            if isinstance(step, Convert) and WRITABLE["." + step.params.format] != WRITABLE[suffix]:
                raise ValueError(f"the output's suffix {suffix} contradicts convert to {step.params.format}")
        return self


@handler(
    "image_processing",
    payload=ImageJob,
    queue="images",
    retry=exponential(base=2, cap=60, attempts=3),
    soft_time_limit=110,
    time_limit=120,
)
def process(task: RunningTask, job: ImageJob) -> dict[str, Any]:
    """Apply the operations and write the picture upright and without EXIF, ICC or comments.

    Of an animation, the first frame is taken. A file that is not a whole image is discarded; one that
    is missing is tried again, since it may still be on its way.
    """
    source, target = locate(job.image_path, *SOURCES), locate(job.output_path, *TARGETS)
    data = contents(source, limit=LARGEST_FILE)
    task.progress(10, "read")
    image = _decode(data, source, _first_box(job))
    task.progress(50, "decoded")
    for number, operation in enumerate(job.operations, 1):
        image = _apply(image, operation)
        task.progress(50 + 25 * number // len(job.operations), operation.type)
    with writing(target, overwrite=job.overwrite) as file:
        _encode(image, file, WRITABLE[target.suffix], _quality(job))
        size = file.seek(0, io.SEEK_END)
    task.progress(100, "written")
    return {
        "outputPath": str(target),
        "width": image.width,
        "height": image.height,
        "bytes": size,
        "format": WRITABLE[target.suffix],
    }


def _first_box(job: ImageJob) -> Box | None:
    first = job.operations[0]
    return first.params if isinstance(first, Resize) else None


def _quality(job: ImageJob) -> int:
    qualities = [step.params for step in job.operations if isinstance(step, Compress)]
    return (qualities[-1] if qualities else Quality()).percent


def _decode(data: bytes, source: Location, box: Box | None) -> Image.Image:
    # The bytes are all here: whatever goes wrong now is the fault of the file, not of a disk.
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=READABLE)
            _check_size(image, source)
            _shrink_while_decoding(image, box)
            return _plain(_upright(image))
    except UnidentifiedImageError as error:
        raise Discard(f"{source} is not an image in one of the formats {', '.join(READABLE)}") from error
    except DAMAGE as error:
        raise Discard(f"{source} is not an image that can be read: {error}") from error


def _check_size(image: Image.Image, source: Location) -> None:
    if image.width * image.height > LARGEST_IMAGE:
        size = f"{image.width} x {image.height}"
        raise Discard(f"{source} has {size} pixels, more than {LARGEST_IMAGE:,} in all")


def _shrink_while_decoding(image: Image.Image, box: Box | None) -> None:
    """Let the JPEG decoder skip detail that a following resize would throw away."""
    if image.format == "JPEG" and box is not None and box.width and box.height:
        # A square, because the orientation is not known yet; doubled, to leave the resize its detail.
        side = 2 * max(box.width, box.height)
        image.draft(None, (side, side))


def _upright(image: Image.Image) -> Image.Image:
    turn = UPRIGHT.get(image.getexif().get(ORIENTATION, 1))
    image.load()
    return image if turn is None else image.transpose(turn)


def _plain(image: Image.Image) -> Image.Image:
    """The pixels alone, as L, LA, RGB or RGBA: no palette, no profile, nothing that was attached."""
    if image.mode.startswith("I"):  # 16 bits a pixel: Pillow would cut off instead of scaling
        image = image.convert("I").point(lambda value: value / 256).convert("L")
    elif image.has_transparency_data:
        image = _in_mode("LA" if image.mode == "LA" else "RGBA", image)
    else:
        image = _in_mode("L" if image.mode in ("1", "L") else "RGB", image)
    image.info = {}
    return image


def _in_mode(mode: str, image: Image.Image) -> Image.Image:
    # Converting to the same mode would copy what may be 160 MB.
    return image if image.mode == mode else image.convert(mode)


def _apply(image: Image.Image, step: Operation) -> Image.Image:
    if isinstance(step, Resize):
        return _resize(image, step.params)
    if isinstance(step, Thumbnail):
        return _resize(image, Box(width=step.params.width, height=step.params.height))
    if isinstance(step, Crop):
        return _crop(image, step.params)
    if isinstance(step, Rotate):
        return _rotate(image, step.params)
    if isinstance(step, Watermark):
        return _marked(image, step.params)
    return image


def _crop(image: Image.Image, part: Part) -> Image.Image:
    right, bottom = part.x + part.width, part.y + part.height
    if right > image.width or bottom > image.height:
        where = f"{part.x},{part.y} to {right},{bottom}"
        raise Discard(f"crop: {where} is not within the picture of {image.width} x {image.height} pixels")
    return image.crop((part.x, part.y, right, bottom))


def _rotate(image: Image.Image, turn: Turn) -> Image.Image:
    angle = math.radians(turn.angle)
    across, along = abs(math.cos(angle)), abs(math.sin(angle))
    width, height = image.width * across + image.height * along, image.height * across + image.width * along
    if turn.expand and width * height > LARGEST_IMAGE + 2 * (width + height):
        raise Discard(f"rotate: the turned picture would have more than {LARGEST_IMAGE:,} pixels")
    mode = {"L": "RGB", "LA": "RGBA"}.get(image.mode, image.mode)
    # Pillow turns the other way round, and needs the colour in the picture's own mode.
    return _in_mode(mode, image).rotate(
        -turn.angle,
        Image.Resampling.BICUBIC,
        expand=turn.expand,
        fillcolor=ImageColor.getcolor(turn.background, mode),
    )


def _marked(image: Image.Image, mark: Mark) -> Image.Image:
    width = max(1, round(image.width * mark.scale))
    stamp = _lettering(mark, width) if mark.image_path is None else _stamp(mark.image_path)
    # Never larger than the picture, in either direction.
    scale = min(width / stamp.width, image.height / stamp.height)
    size = max(1, round(stamp.width * scale)), max(1, round(stamp.height * scale))
    stamp = stamp.resize(size, Image.Resampling.LANCZOS)
    stamp.putalpha(stamp.getchannel("A").point(lambda value: round(value * mark.opacity)))
    whole = image.convert("RGBA")
    whole.alpha_composite(stamp, _corner(mark.position, whole, stamp))
    return whole if image.has_transparency_data else whole.convert("RGB")


def _lettering(mark: Mark, width: int) -> Image.Image:
    font = ImageFont.load_default(min(200, max(10, width // 4)))
    left, top, right, bottom = font.getbbox(mark.text or "")
    size = max(1, math.ceil(right - left)), max(1, math.ceil(bottom - top))
    red, green, blue = ImageColor.getrgb(mark.color)[:3]
    stamp = Image.new("RGBA", size, (red, green, blue, 0))
    ImageDraw.Draw(stamp).text((-left, -top), mark.text or "", font=font, fill=(red, green, blue, 255))
    return stamp


def _stamp(path: str) -> Image.Image:
    location = locate(path, *SOURCES)
    return _decode(contents(location, limit=LARGEST_FILE), location, None).convert("RGBA")


def _corner(position: Position, image: Image.Image, stamp: Image.Image) -> tuple[int, int]:
    """Where the stamp's top left corner goes: two percent of the shorter side away from the edges."""
    right, bottom = image.width - stamp.width, image.height - stamp.height
    if position == "center":
        return right // 2, bottom // 2
    margin = min(image.size) // 50
    x = min(margin, right) if position.endswith("left") else max(0, right - margin)
    y = min(margin, bottom) if position.startswith("top") else max(0, bottom - margin)
    return x, y


def _resize(image: Image.Image, box: Box) -> Image.Image:
    if box.fit == "contain":
        limits = (box.width or image.width, box.height or image.height)
        image.thumbnail(limits, Image.Resampling.LANCZOS)
        return image
    size = (box.width or 1, box.height or 1)
    if box.fit == "cover":
        return ImageOps.fit(image, size, Image.Resampling.LANCZOS)
    return image.resize(size, Image.Resampling.LANCZOS)


def _encode(image: Image.Image, file: BinaryIO, file_format: str, quality: int) -> None:
    if file_format == "JPEG":
        _flat(image).save(file, "JPEG", quality=quality, optimize=True, progressive=True)
    elif file_format == "WEBP":
        image.save(file, "WEBP", quality=quality)
    else:
        image.save(file, file_format, optimize=True)


def _flat(image: Image.Image) -> Image.Image:
    """The picture on white, for a format without transparency."""
    if image.mode not in ("LA", "RGBA"):
        return image
    image = image.convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=image.getchannel("A"))
    return white
