"""`digit_scenes`: handwritten digits on photographs, a detection data set that needs no download."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image

from attnzoo.data.coco import CocoSpec, DetectionDataset
from attnzoo.data.images import decoded_images
from attnzoo.data.registries import DETECTION_DATASETS, SPLITS, Transform
from attnzoo.data.rendering import Scene, check_dataset_option
from attnzoo.data.synthetic import SyntheticSpec


@DETECTION_DATASETS.register("digit_scenes")
@dataclass(frozen=True, kw_only=True)
class DigitScenes(SyntheticSpec):
    """scikit-learn's 8x8 handwritten digits on crops of its two photographs, cached as a COCO folder.

    Options: those of `SceneOptions`, the number of images per split, the seed, and `size_thresholds`: sides in pixels
    of squares; objects with less than the area of the first are small, from that of the second large. By default 0.22
    and 0.31 of the image's side, 14 and 20 pixels at 64, so that the default sizes split into thirds; with COCO's all
    objects would be small.
    """

    name: ClassVar[str] = "digit_scenes"
    version: ClassVar[int] = 1

    size_thresholds: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        small, large = self._size_thresholds
        check_dataset_option("size_thresholds", [small, large], 0 < small <= large, "two ascending numbers above 0")

    def build(self, split: str, transform: Transform) -> DetectionDataset:
        """The split from the cache; both splits are generated on first use."""
        dataset = self._files.build(split, transform)
        files = [dataset.path(index) for index in range(len(dataset))]
        dataset.decoded = decoded_images(self.folder() / f"{split}.npy", files, self.image_size)
        return dataset

    @property
    def _size_thresholds(self) -> tuple[float, float]:
        return self.size_thresholds or (0.22 * self.image_size, 0.31 * self.image_size)

    @cached_property
    def _files(self) -> CocoSpec:
        return CocoSpec(
            root=str(self.folder()),
            train_annotations="annotations/train.json",
            val_annotations="annotations/val.json",
            train_images="train",
            val_images="val",
            labels="contiguous",
        )

    def generate(self, folder: Path) -> None:
        """Write both splits: train/, val/ and annotations/."""
        (folder / "annotations").mkdir()
        for split in SPLITS:
            (folder / split).mkdir()
            scenes = []
            for i, scene in enumerate(self.scenes(split)):
                Image.fromarray(scene.pixels).save(folder / split / f"{i:06d}.png", compress_level=0)
                scenes.append(scene)
            (folder / "annotations" / f"{split}.json").write_text(
                json.dumps(self._annotations(scenes)), encoding="utf-8"
            )

    def _annotations(self, scenes: Iterable[Scene]) -> dict[str, Any]:
        """A COCO instances file with the origin of each image and object.

        Images have `photo` and `region`, the crop box (x0, y0, x1, y1) in it; objects have `source`, an index into
        load_digits.
        """
        images: list[dict[str, Any]] = []
        objects: list[dict[str, Any]] = []
        for i, scene in enumerate(scenes):
            images.append(
                {"id": i + 1, "file_name": f"{i:06d}.png", "width": self.image_size, "height": self.image_size}
                | {"photo": scene.photo, "region": list(scene.crop_box)}
            )
            for shown in scene.objects:
                x, y, w, h = shown.box
                (source,) = shown.sources if len(shown.sources) == 1 else (list(shown.sources),)
                objects.append(
                    {"id": len(objects) + 1, "image_id": i + 1, "category_id": shown.label, "iscrowd": 0}
                    | {"bbox": [x, y, w, h], "area": w * h, "source": source}
                )
        return {
            "info": {
                "description": f"{self.name}, version {self.version}",
                "options": asdict(self),
                "area_thresholds": [side**2 for side in self._size_thresholds],
            },
            "images": images,
            "annotations": objects,
            "categories": [{"id": label, "name": name} for label, name in enumerate(self.class_names)],
        }
