"""Pictures, histograms of offsets and summaries of attention of a model while it trains."""

import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

from attnzoo.attention.deformable import MultiScaleDeformableAttention
from attnzoo.geometry import Role
from attnzoo.inference import figures
from attnzoo.inference.draw import to_png
from attnzoo.inference.examples import Example, iterate_examples, load_examples, read_predictions
from attnzoo.inference.figures import Result
from attnzoo.inference.records import (
    Array,
    AttentionRecord,
    attention_names,
    grid_offsets,
    predicted_offsets,
    record_attentions,
)
from attnzoo.inference.shares import AttentionShares
from attnzoo.rundir.folder import atomic_write

log = logging.getLogger(__name__)

IMAGES = 4  # of the validation set
SHARE_IMAGES = 8  # for the shares of a decoder's attention
ROWS = 2  # images in figures of attentions


class Sink(Protocol):
    """Where pictures and histograms go, such as TensorBoard."""

    def add_image(self, tag: str, png: bytes, step: int) -> None: ...

    def add_histogram(self, tag: str, values: Array, step: int) -> None: ...

    def flush(self) -> None: ...


class TrainingPictures:
    """Looks at a model on the first validation images, at each evaluation of its training.

    At each evaluation: attention entropy and shares of attention, which it returns, and histograms of offsets. At
    evaluations 4, 8, 16, … and the last: pictures, which are also written to `folder` as PNG files, each time anew.
    An error ends both and gives one warning. The model is called in the mode that it is in; random generators are left
    as they were.

    `val`: the validation set of either task. `eval_every`: steps between evaluations, None for one at the end.
    """

    def __init__(
        self,
        val: Any,
        num_classes: int,
        sink: Sink,
        folder: Path,
        device: torch.device,
        eval_every: int | None = None,
    ):
        self._val, self._num_classes, self._device = val, num_classes, device
        self._names: Sequence[str] = getattr(val, "class_names", ())
        self._sink, self._folder, self._eval_every = sink, folder, eval_every
        self._examples: list[Example] | None = None
        self._failed = False

    def __call__(self, model: nn.Module, forward: Callable[..., Any], step: int, last: bool) -> dict[str, float]:
        """Entropy of attentions by `entropy/NAME`; of a detector's decoder also the shares of `AttentionShares`.

        `forward` is `model` as it is called, such as under autocast.
        """
        if self._failed:
            return {}
        try:
            devices = [self._device] if self._device.type == "cuda" else []
            with torch.random.fork_rng(devices), torch.no_grad():
                return self._observe(model, forward, step, last)
        except Exception as error:
            self._failed = True
            log.warning("no pictures of this training from here on: %s: %s", type(error).__name__, error)
            return {}

    def _observe(self, model: nn.Module, forward: Callable[..., Any], step: int, last: bool) -> dict[str, float]:
        if self._examples is None:
            self._examples = load_examples(self._val, IMAGES)
        entropies: dict[str, list[float]] = defaultdict(list)
        shown = last_of_each_slot(attention_names(model).values())
        results: list[Result] = []
        records: list[dict[str, AttentionRecord]] = []

        def receive(record: AttentionRecord) -> None:
            if record.kind is not None:
                entropies[record.name].append(record.entropy())
                if record.name in shown:
                    records[-1][record.name] = record

        with record_attentions(model, receive):
            for example in self._examples:
                records.append({})
                output = forward(example.inputs.to(self._device))
                results.append((example, read_predictions(output, self._num_classes)))
        for tag, values in offset_histograms(records):
            self._sink.add_histogram(tag, values, step)
        if last or self._is_due(step):
            for name, figure in self._figures(model, results, records):
                png = to_png(figure)
                self._sink.add_image(f"pictures/{name}", png, step)
                with atomic_write(self._folder / f"{name}.png", "wb") as file:
                    file.write(png)
        self._sink.flush()
        summary = {f"entropy/{name}": float(np.mean(values)) for name, values in entropies.items()}
        return summary | self._shares(model, forward)

    def _shares(self, model: nn.Module, forward: Callable[..., Any]) -> dict[str, float]:
        """The shares of a decoder's attention on the first SHARE_IMAGES images; {} for a classifier."""
        if not hasattr(self._val, "area_thresholds"):
            return {}
        shares = AttentionShares(self._val.area_thresholds)
        records: dict[str, AttentionRecord] = {}

        def receive(record: AttentionRecord) -> None:
            records[record.name] = record

        with record_attentions(model, receive, roles=[Role.DECODER]):
            for example in iterate_examples(self._val, SHARE_IMAGES):
                records.clear()
                output = forward(example.inputs.to(self._device))
                shares.add(example, read_predictions(output, self._num_classes), records)
        return shares.means()

    def _is_due(self, step: int) -> bool:
        """Whether this is evaluation 4, 8, 16, …: drawing takes about a second, which short trainings afford once."""
        number = step // self._eval_every if self._eval_every else 1
        return number >= 4 and number & (number - 1) == 0

    def _figures(
        self, model: nn.Module, results: Sequence[Result], records: Sequence[Mapping[str, AttentionRecord]]
    ) -> Iterator[tuple[str, Figure]]:
        """The figures by file name."""
        yield "predictions", figures.draw_predictions(results, self._names)
        names = [name for name in records[0] if all(name in of_image for of_image in records)]
        decoder = [name for name in names if records[0][name].role == Role.DECODER]
        encoder = [name for name in names if records[0][name].role == Role.ENCODER]
        stages = [name for name in names if records[0][name].role == Role.STAGE]
        for name in decoder:
            of_decoder = [of_image[name] for of_image in records[:ROWS]]
            yield str(of_decoder[0].kind), figures.draw_decoder(results[:ROWS], of_decoder, self._names)
        for prefix, on_map in (("encoder_", encoder), ("stages_", stages)):
            if on_map:
                rows = ROWS if len(on_map) > 1 else IMAGES
                of_maps = [[of_image[name] for name in on_map] for of_image in records[:rows]]
                figure = figures.draw_tokens(results[:rows], of_maps)
                yield f"{prefix if decoder else ''}{of_maps[0][-1].kind}", figure
        modules = {name: model.get_submodule(key) for key, name in attention_names(model).items()}
        for name in (decoder or encoder or stages)[-1:]:
            module, offsets = modules[name], [predicted_offsets(of_image[name]) for of_image in records]
            if isinstance(module, MultiScaleDeformableAttention):
                by_ring = np.concatenate([_by_ring(of_image) for of_image in offsets if of_image is not None])
                references = records[0][name].references
                boxes = references is not None and references.shape[-1] == 4
                unit = "1 / 2P of the box" if boxes else "pixels"
                yield "offsets", figures.draw_offsets(by_ring, module.initial_offsets()[:, 0].cpu().numpy(), name, unit)


def last_of_each_slot(names: Sequence[str] | Any) -> set[str]:
    """Of names such as "decoder.1", those of the last layer of encoder, decoder and each stage."""
    return set({name.rpartition(".")[0]: name for name in names}.values())


def offset_histograms(records: Sequence[Mapping[str, AttentionRecord]]) -> Iterator[tuple[str, Array]]:
    """Tags and lengths of offsets (max-norm) by head and ring of sampling points, or by level and group of a grid."""
    collected: dict[str, list[Array]] = defaultdict(list)
    for of_image in records:
        for name, record in of_image.items():
            if (offsets := predicted_offsets(record)) is not None:
                lengths = np.abs(_by_ring(offsets)).max(-1)
                for head, ring in np.ndindex(lengths.shape[1:]):
                    collected[f"offsets/{name}/head{head}/ring{ring + 1}"].append(lengths[:, head, ring])
            for level, moved in enumerate(grid_offsets(record) or ()):
                for group in range(moved.shape[1]):
                    collected[f"offsets/{name}/level{level}/group{group}"].append(np.abs(moved[:, group]).max(-1))
    for tag, parts in collected.items():
        values = np.concatenate(parts)
        yield tag, values[np.isfinite(values)]


def _by_ring(offsets: Array) -> Array:
    """Offsets (Q, M, L, P, 2) of all queries and levels as (Q · L, M, P, 2)."""
    return offsets.swapaxes(1, 2).reshape(-1, offsets.shape[1], *offsets.shape[3:])
