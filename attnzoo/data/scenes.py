"""`digit_scenes`: handwritten digits on photographs, a detection data set that needs no download."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image

from attnzoo.data.coco import CocoSpec, DetectionDataset
from attnzoo.data.registries import DETECTION_DATASETS, SPLITS, Transform
from attnzoo.data.rendering import CLASSES, Scene
from attnzoo.data.synthetic import SyntheticSpec
from attnzoo.errors import unknown


@DETECTION_DATASETS.register("digit_scenes")
@dataclass(frozen=True, kw_only=True)
class DigitScenes(SyntheticSpec):
    """scikit-learn's 8x8 handwritten digits on crops of its two photographs, written to the cache as a COCO folder.

    Options: those of `SceneOptions`, the number of images of each split, and the seed.

    Objects are small below (0.22 · image_size)² square pixels and large from (0.31 · image_size)²: 14 and 20 pixels at
    64, which parts the default sizes into thirds. COCO's 32 and 96 pixels would call every one of them small.
    """

    name: ClassVar[str] = "digit_scenes"
    version: ClassVar[int] = 1

    def build(self, split: str, transform: Transform) -> DetectionDataset:
        """The split, from the cache; both splits are made if they are not there."""
        if split not in SPLITS:
            raise unknown("split", split, SPLITS)
        return self._files.build(split, transform)

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

    def write(self, folder: Path) -> None:
        """SampleIndex both splits into `folder`: train/, val/ and annotations/."""
        (folder / "annotations").mkdir()
        for split in SPLITS:
            (folder / split).mkdir()
            scenes = []
            for i, scene in enumerate(self.scenes(split)):
                Image.fromarray(scene.pixels).save(folder / split / f"{i:06d}.png", compress_level=0)
                scenes.append(scene)
            (folder / "annotations" / f"{split}.json").write_text(json.dumps(self._annotations(scenes)))

    def _annotations(self, scenes: Iterable[Scene]) -> dict[str, Any]:
        """A COCO instances file that also says what each image and object was made from.

        `photo` and `region` (x0, y0, x1, y1) of an image; `source` of an object, its number in load_digits.
        """
        images: list[dict[str, Any]] = []
        objects: list[dict[str, Any]] = []
        for number, scene in enumerate(scenes):
            side = self.image_size
            images.append(
                {"id": number + 1, "file_name": f"{number:06d}.png", "width": side, "height": side}
                | {"photo": scene.photo, "region": list(scene.region)}
            )
            for digit in scene.digits:
                x, y, w, h = digit.box
                objects.append(
                    {"id": len(objects) + 1, "image_id": number + 1, "category_id": digit.label, "iscrowd": 0}
                    | {"bbox": [x, y, w, h], "area": w * h, "source": digit.source}
                )
        return {
            "info": {
                "description": f"{self.name}, version {self.version}",
                "options": asdict(self),
                "area_thresholds": [(0.22 * self.image_size) ** 2, (0.31 * self.image_size) ** 2],
            },
            "images": images,
            "annotations": objects,
            "categories": [{"id": label, "name": str(label)} for label in range(CLASSES)],
        }
