"""Image files: found below a folder, opened as upright 8-bit RGB, fitted to a square."""

import errno
import io
import os
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, UnidentifiedImageError, features
from torch import Tensor

from scripts.cli import InputError

ENDINGS = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".avif", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM",  # by content; Pillow would start other programs for some more
           *(["AVIF"] if "avif" in features.get_supported() else []))
OF_THE_FILE = {errno.ENOENT: "no file, or a link to none", errno.ELOOP: "a link to itself",
               errno.EACCES: "a file without read permission"}
LARGEST_BYTES = 2 ** 30  # of an image file
SHORTER_SIDE = {  # in pixels, for the square that is cut out
    "crop": lambda size: size, "centre": lambda size: round(size * 8 / 7), "sevenths": lambda size: max(size, size // 7 * 8)}
TURN = Image.Transpose
TURNS = {2: TURN.FLIP_LEFT_RIGHT, 3: TURN.ROTATE_180, 4: TURN.FLIP_TOP_BOTTOM, 5: TURN.TRANSPOSE, 6: TURN.ROTATE_270,
         7: TURN.TRANSVERSE, 8: TURN.ROTATE_90}     # by EXIF's orientation
ORIENTATION = 274
BITS_PER_SAMPLE, PHOTOMETRIC, WHITE_IS_ZERO = 258, 262, 0  # TIFF 6.0, section 8
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # `check_pixels` refuses instead


class BadImage(InputError):
    """A file that cannot be read as an image, and the `reason`."""

    def __init__(self, path: Path, reason: str):
        super().__init__(f"{path}: expected an image, found {reason}")
        self.reason = reason


def image_files(folder: Path, root: Path, others: Counter | None = None) -> list[Path]:
    """Image files below `folder`, by their endings, in the order of torchvision's ImageFolder.

    Links are followed unless they lead to a folder above, `root` included. Hidden files and folders are skipped. Broken links
    are listed: opening them raises BadImage. `others` counts the files left out, by ending.
    """
    above = frozenset(_identity(path) for path in (root.resolve(), *root.resolve().parents))
    return [Path(parent, name) for parent, name in sorted(_walk(str(folder), above, Counter() if others is None else others))]


def _walk(folder: str, above: frozenset, others: Counter) -> Iterator[tuple[str, str]]:
    here = _identity(folder)
    if here in above:
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            link = entry.is_symlink()
            if entry.is_dir(follow_symlinks=False) or link and os.path.isdir(entry.path):
                yield from _walk(entry.path, above | {here}, others)
            elif entry.name.lower().endswith(ENDINGS) and (link or entry.is_file()):
                yield folder, entry.name
            else:
                others[Path(entry.name).suffix.lower() or "none"] += 1


def _identity(folder) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def open_image(path: Path) -> Image.Image:
    """Open an image as 8-bit RGB: upright by its EXIF tag, on white where transparent, 16-bit grey scaled to 8 bits.

    Of an animation the first frame. Colour profiles and the transparency of 16-bit grey are not applied. Raises BadImage for a
    damaged file, one larger than LARGEST_BYTES or Pillow's limit of pixels, and pixels of unknown range (float and 32-bit).
    """
    try:
        with open(path, "rb") as file:
            content = file.read(LARGEST_BYTES + 1)
    except OSError as error:
        if error.errno in OF_THE_FILE:
            raise BadImage(path, OF_THE_FILE[error.errno]) from None
        raise  # the disk fails, not the file
    if len(content) > LARGEST_BYTES:
        raise BadImage(path, f"a file of more than {LARGEST_BYTES} bytes")
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            check_pixels(image)
            return _rgb(image)
    except MemoryError:
        raise
    except UnidentifiedImageError:
        raise BadImage(path, f"{len(content)} bytes that are none of {', '.join(FORMATS)}") from None
    except Exception as error:  # Pillow's decoders raise errors of any kind on damaged files
        raise BadImage(path, " ".join(f"{error}".split()) or type(error).__name__) from None


def check_pixels(image: Image.Image) -> None:
    """Raise ValueError above Pillow's limit of pixels; Pillow itself does so only above twice that limit."""
    if Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > Image.MAX_IMAGE_PIXELS:
        raise ValueError(f"{image.width} x {image.height} pixels, more than Pillow's limit of {Image.MAX_IMAGE_PIXELS}")


def _rgb(image: Image.Image) -> Image.Image:
    image.load()    # turns a TIFF
    turned = TURNS.get(image.getexif().get(ORIENTATION))    # Pillow's exif_transpose rewrites all tags, and fails at odd ones
    image, was = image if turned is None else image.transpose(turned), image
    if image.mode.startswith("I;16") or image.mode == "I" and was.format == "PPM":
        return _grey_of_16_bits(image, getattr(was, "tag_v2", {})).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode}, whose range is not known")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _grey_of_16_bits(image: Image.Image, tags) -> Image.Image:
    """Scale to 8 bits: the format's largest value becomes 255. `tags` are those of a TIFF."""
    largest = 2 ** tags.get(BITS_PER_SAMPLE, (16,))[0] - 1  # or 12
    grey = (np.asarray(image).astype(np.float64) * (255 / largest)).round().astype(np.uint8)
    return Image.fromarray(255 - grey if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO else grey)


def fit_image(image: Image.Image, size_pixels: int, fit: str) -> Image.Image:
    """Fit to a square of `size_pixels`, bilinear with antialias.

    `fit`: "squash" ignores the aspect ratio, as D4M does; "crop" resizes the shorter side to `size_pixels` and cuts the centre;
    "centre" resizes it to 8/7 of `size_pixels` first, the usual ImageNet test view. An image of that size is not changed,
    except by "sevenths", RDED's test view: "centre" with 8 * (size_pixels // 7), which is 72 at 64 pixels and 32 at 32.
    """
    square = (size_pixels, size_pixels)
    if image.size == square and fit != "sevenths":
        return image
    if fit == "squash":
        return image.resize(square, Image.Resampling.BILINEAR)
    side = min(image.size) * size_pixels / SHORTER_SIDE[fit](size_pixels)
    left, top = ((length - side) / 2 for length in image.size)
    # cut and resize in one call, so that an image far longer than wide is never enlarged in memory
    return image.resize(square, Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))


def resized(images: Tensor, size_pixels: int) -> Tensor:
    """uint8 [N, 3, H, W] at `size_pixels`, bilinear with antialias; the images themselves where they have that size."""
    if images.shape[-1] == size_pixels:
        return images
    return torch.cat([F.interpolate(part.float(), (size_pixels, size_pixels), mode="bilinear", antialias=True).round()
                      .clamp(0, 255).to(torch.uint8) for part in images.split(256)])


def to_uint8(images: Tensor) -> Tensor:
    """Float [B, 3, H, W] in [0, 1] -> uint8 on the CPU, rounded."""
    return (images.float() * 255).round().to(torch.uint8).cpu()


def to_pil(image: Tensor, size_pixels: int | None = None) -> Image.Image:
    """A picture of uint8 [3, H, W], resized to `size_pixels` if given."""
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    if size_pixels and picture.size != (size_pixels, size_pixels):
        picture = picture.resize((size_pixels, size_pixels), Image.BICUBIC)
    return picture
