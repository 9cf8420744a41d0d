"""Model, augmentation and training for a data set, with the reasons as comments.

Recipes follow the published ones: Deformable DETR (Zhu et al., ICLR 2021), Swin (Liu et al., ICCV 2021). Their training
lengths and rates are starting points, not tuned for the data.
"""

import math
from dataclasses import dataclass
from typing import Any

from attnzoo.errors import plural
from attnzoo.userdata.content import Array
from attnzoo.userdata.start import Start

SCALE, MAX_SIZE = 800, 1333  # evaluation size of the published detectors
FINEST = 8  # stride of the finest feature map
SMALL_PICTURES = 160  # pixels: below, models of tens of layers have no pixels left

Keys = dict[str, tuple[Any, str]]  # key -> value, comment
SMALL_DETECTOR: dict[str, Any] = {
    "dim": 64,
    "heads": 4,
    "ffn": 128,
    "dropout": 0.0,
    "backbone": {
        "name": "resnet18",
        "options": {"layers": [1, 1, 1, 1], "channels": [16, 32, 48, 64]},
        "strides": [8, 16],
        "norm": "trained",
        "freeze": [],
    },
    "neck": {"c6": False},
    "encoder": {"layers": 1},
    "decoder": {"layers": 2},
    "head": {"refine": True, "two_stage": True, "select": "max_class", "anchor_size": 0.26, "class_prior": 0.02},
}


@dataclass(frozen=True)
class Facts:
    """What a recipe depends on. `relative_sides`: shorter side of each box over the shorter side of its image."""

    classes: int
    images: int
    boxes: int
    most_boxes: int  # in one image of either split
    shorter_side: int  # median of the training images, in pixels
    smallest_side: int
    relative_sides: Array


@dataclass(frozen=True)
class Recipe:
    """The task, and the keys of the blocks data, model and train."""

    task: str
    blocks: dict[str, Keys]


def detection_recipe(facts: Facts, start: Start) -> Recipe:
    """Fine-tuning of a detector, or its training from random weights."""
    small = facts.shorter_side < SMALL_PICTURES
    scale = SCALE if facts.shorter_side >= SCALE // 2 else max(32 * math.ceil(facts.shorter_side / 32), 64)
    batch_size = min(12 if small else 2, facts.images)
    model: Keys = {}
    if start.is_random and small:
        model |= {key: (value, "") for key, value in SMALL_DETECTOR.items()}
    elif start.is_random:
        model["preset"] = (
            "deformable_detr_r50_refine",
            "random weights: needs long; `attnzoo new --weights` starts better",
        )
        model["backbone"] = ({"norm": "trained", "freeze": []}, "weights: FILE, an ImageNet ResNet-50, helps much")
    else:
        model |= {key: (value, "") for key, value in start.model.items()}
        model["weights"] = (start.weights, "class heads of other classes start anew")
    smallest = facts.smallest_side if start.run else int(0.6 * scale)
    queries = _queries(facts, 300 if start.is_random else start.queries, smallest)
    model["queries"] = (queries, f"the fullest image has {facts.most_boxes} boxes; fewer queries are faster")
    if not start.is_random and start.run is None:
        backbone = start.model.get("backbone", {})
        if backbone.get("name", "resnet50").startswith("resnet"):
            comment = "conv1 and layer1 are not trained; add layer2, layer3 for very few images"
            model["backbone"] = ({**backbone, "freeze": ["conv1", "layer1"]}, comment)
    data = _detection_data(facts, start, scale, batch_size)
    if (run := start.run) is not None:
        train = _train_of_run(run, facts)
    else:
        rate, clip = (2e-3, 10.0) if start.is_random and small else (2e-4, 0.1) if start.is_random else (1e-4, 0.1)
        multipliers = {} if small else {"backbone": 0.1, "sampling_offsets": 0.1, "reference_points": 0.1}
        if "detr_r" in str(start.model.get("preset")) and not str(start.model["preset"]).startswith("deformable"):
            multipliers = {"backbone": 0.1}
        if start.is_random:
            multipliers = {key: value for key, value in multipliers.items() if key != "backbone"}
        train = _train(facts, batch_size, start, rate, clip, multipliers)
    return Recipe("detection", {"data": data, "model": model, "train": train})


def classification_recipe(facts: Facts, start: Start) -> Recipe:
    """Fine-tuning of a classifier, or its training from random weights."""
    small = facts.shorter_side < SMALL_PICTURES
    batch_size = min(32, facts.images)
    size = max(32 * math.ceil(facts.shorter_side / 32), 32) if small else 224
    model: Keys = {}
    if start.is_random:
        preset = "swin_pico" if small else "swin_tiny"
        model["preset"] = (preset, "random weights: needs long; `attnzoo new --weights` starts better")
        if small:
            model |= {"image_size": (size, "pixels"), "stage4": ({"depth": 0}, "ends at stride 16")}
    else:
        model |= {key: (value, "") for key, value in start.model.items()}
        model["weights"] = (start.weights, "a head of other classes starts anew")
        preset_size = 384 if str(start.model.get("preset", "")).endswith("_384") else 224
        size = start.model.get("image_size", preset_size)
    model["label_smoothing"] = (0.1, "")
    augment: dict[str, Any] = {"name": "timm", "size": size}
    if not start.is_random or facts.images < 10_000:
        augment["scale"] = [0.3, 1.0]
    data: Keys = {
        "augment": (augment, "random crops of 30 % of the area or more, RandAugment, erasing"),
        "batch_size": (batch_size, ""),
        "workers": (2, "processes that read images"),
    }
    train = _train(facts, batch_size, start, 5e-4 if start.is_random else 5e-5, 5.0, {}, 0.05)
    return Recipe("classification", {"data": data, "model": model, "train": train})


def _queries(facts: Facts, most: int, side: int) -> int:
    """Twice the boxes of the fullest image, in steps of 50; at most those of the model, if they suffice.

    Not more than the tokens of the smallest training images, of `side` pixels, among which two-stage models choose.
    """
    tokens = (side // FINEST) ** 2 + (side // (2 * FINEST)) ** 2
    wanted = max(50 * math.ceil(2 * facts.most_boxes / 50), 50)
    return min(max(min(wanted, most), facts.most_boxes), tokens)


def _detection_data(facts: Facts, start: Start, scale: int, batch_size: int) -> Keys:
    augment: dict[str, Any] = {"name": "detr"}
    comment = f"evaluation at {SCALE} pixels, as published"
    if start.run is not None:
        augment, comment = dict(start.run.data.augment), "that of the run which is fine-tuned"
    elif scale != SCALE:
        fractions = [0.6 + 0.04 * i for i in range(11)]
        augment |= {
            "scales": [round(scale * fraction) for fraction in fractions],
            "eval_scale": scale,
            "max_size": round(scale * MAX_SIZE / SCALE),
            "crop_scales": [round(scale * fraction) for fraction in (0.5, 0.625, 0.75)],
            "crop_size": [round(scale * 0.48), round(scale * 0.75)],
        }
        comment = f"the published augmentation for images of {facts.shorter_side} pixels"
    shown = facts.shorter_side if start.run is not None else scale
    below = float((facts.relative_sides * shown < FINEST).mean()) if facts.boxes else 0.0
    if below >= 0.1:
        comment += (
            f"; {below:.0%} of boxes are under {FINEST} pixels then, a cell of the finest map: larger images help"
        )
    return {
        "augment": (augment, comment),
        "batch_size": (batch_size, ""),
        "workers": (2, "processes that read images"),
    }


def _train(
    facts: Facts,
    batch_size: int,
    start: Start,
    rate: float,
    clip: float,
    multipliers: dict[str, float],
    decay: float = 1e-4,
) -> Keys:
    steps = max(facts.images // batch_size, 1)
    epochs = min(max(round((20_000 if start.is_random else 4_000) / steps), 10), 300)
    optimizer: dict[str, Any] = {"lr": rate, "weight_decay": decay}
    if multipliers:
        optimizer["lr_multipliers"] = multipliers
    why = "" if start.is_random else "lower than in training from random weights"
    return {
        "epochs": (epochs, f"of {plural(steps, 'step')} each; a starting point"),
        "clip": (clip, ""),
        "optimizer": (optimizer, why),
        "schedule": ({"name": "cosine", "warmup": 0.05}, ""),
        "eval_every": (_eval_every(steps, epochs), "steps"),
    }


def _train_of_run(run: Any, facts: Facts) -> Keys:
    """The recipe of the run at half its rate; number of steps as for other weights."""
    old = run.train
    steps = max(facts.images // run.data.batch_size, 1)
    epochs = min(max(round(2_000 / steps), 10), 300)
    optimizer = {
        "lr": old.optimizer.lr / 2,
        "weight_decay": old.optimizer.weight_decay,
        "decay_1d": old.optimizer.decay_1d,
    }
    return {
        "epochs": (epochs, f"of {plural(steps, 'step')} each; a starting point"),
        "clip": (old.clip, ""),
        "channels_last": (old.channels_last, ""),
        "optimizer": (optimizer, "half the rate of the run"),
        "schedule": ({"name": "cosine", "warmup": 0.08}, ""),
        "eval_every": (_eval_every(steps, epochs), "steps"),
    }


def _eval_every(steps: int, epochs: int) -> int:
    """About ten evaluations, each at the end of an epoch."""
    return steps * max(epochs // 10, 1)
