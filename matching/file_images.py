"""Images too many to lie decoded on the device: read from their files for every batch and cropped by Pillow, in threads."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import hflip, pil_to_tensor, resized_crop

from matching.augmentation import Drawn, mixed_one_by_one
from scripts.networks import normalise

AHEAD = 1  # batches read before they are asked for


@dataclass(frozen=True)
class FileImages:
    """A set as `image_set.ImageSet`, with `read(row)` (RGB, `source` = height and width in pixels) in place of the pixels.

    Its digest is that of the decoded set, and its views differ from that set's by rounding alone, so soft labels fit both.
    """

    name: str
    classes: list[dict]
    read: Callable[[int], Image.Image]
    source: tuple[int, int]
    labels: Tensor
    weights: Tensor
    digest: str
    workers: int

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def device(self) -> torch.device:
        """Where views come out."""
        return self.labels.device

    def to(self, device) -> "FileImages":
        """The same set with its views on `device`."""
        return replace(self, labels=self.labels.to(device), weights=self.weights.to(device))

    def views(self, drawn: Drawn, rows: Tensor, size: int) -> Tensor:
        """The normalised, mixed views [B, 3, size, size] of images `rows` [B] as `drawn` says."""
        return next(self.in_turn(drawn, [rows], size))

    def in_turn(self, drawn: Drawn, parts: Iterable[Tensor], size: int) -> Iterator[Tensor]:
        """The views of each of `parts`, one after the other; the next part is read meanwhile."""
        host = drawn.to("cpu")
        waiting: deque[tuple[Tensor, dict[int, Future]]] = deque()
        with ThreadPoolExecutor(self.workers) as pool:
            for part in parts:
                rows = part.cpu()
                needed = torch.cat([rows, host.partner[rows]]).unique().tolist()
                waiting.append((rows, {row: pool.submit(self._crop, host, row, size) for row in needed}))
                if len(waiting) > AHEAD:
                    yield self._mixed(host, *waiting.popleft())
            while waiting:
                yield self._mixed(host, *waiting.popleft())

    def _crop(self, drawn: Drawn, row: int, size: int) -> Tensor:
        return pil_crop(self.read(row), drawn.crop[row].tolist(), drawn.flip[row].item(), size)

    def _mixed(self, drawn: Drawn, rows: Tensor, crops: dict[int, Future]) -> Tensor:
        mixed = torch.stack(list(mixed_one_by_one(lambda row: crops[row].result(), drawn, rows)))
        return normalise(mixed.to(self.device) / 255)


def pil_crop(image: Image.Image, crop: list[int], flip: bool, size: int) -> Tensor:
    """`crop_one` by torchvision's functions for Pillow: uint8 [3, S, S]."""
    view = resized_crop(image, *crop, [size, size], InterpolationMode.BILINEAR)
    return pil_to_tensor(hflip(view) if flip else view)
