"""TwoView: an image is looked at as a whole and patch by patch, and each view counts by how rare it is among normals.

A method of this package. The whole: nearest neighbours of pooled features (Bergman et al., 2020,
https://arxiv.org/abs/2002.10445) on four moments. The patches: PatchCore (Roth et al., CVPR 2022,
https://arxiv.org/abs/2106.08265) with the cosine distance of AnomalyDINO (Damm et al., WACV 2025,
https://arxiv.org/abs/2405.14529) between whitened features.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import count
from typing import ClassVar, NamedTuple, cast

import torch
from pydantic import Field, JsonValue

from anomalib_med.models.base import Detector
from anomalib_med.models.memory_bank.coreset import k_center
from anomalib_med.models.memory_bank.description import describe_batch, nearest, spread
from anomalib_med.models.memory_bank.heights import HeightConfig, HeightDetector, HeightSearch, add_height, with_heights
from anomalib_med.models.memory_bank.patch_pool import PatchPool, capacity
from anomalib_med.models.memory_bank.whitening import Moments, RunningMoments, Whitening, joined
from anomalib_med.models.pooling import pool, valid_cells
from anomalib_med.preprocessing import Frames
from anomalib_med.records import Progress, silent

MOMENTS = 4
JOINED = ("described", "bank", "heights")  # what merging puts one after the other
HELD_OUT = 5  # every fifth patient is kept out of the bank


class TwoView(HeightDetector):
    """Adds what is unusual of the image as a whole to what is unusual in its patches.

    Disease that changes the whole image shows in its description, a lesion in the patches. Each view gives a distance
    to the normals, standardised by its mean and deviation on every fifth patient, who joins the bank only afterwards.
    The score is the sum of both views. The anomaly map is the cosine distance of each patch to the nearest of the bank,
    both centred and whitened by the normals' patches.
    """

    name = "twoview"
    title = "TwoView (whole image and patches, this package)"

    class Config(HeightConfig):
        """Settings of TwoView. `pooling` is that of the view on patches."""

        neighbours: int = Field(5, ge=1)
        """Normal images whose distances are averaged in the view of the whole image; the default is as in spade."""
        bank_size: int = Field(2000, ge=1)
        """Patches in the bank, as in patchcore here."""

    config: Config
    judged: ClassVar[int] = 200  # images at most that the views are standardised on
    _scale: torch.Tensor  # of each number of a description, (4 D,)
    _scaled: torch.Tensor  # descriptions of the normals, (N, 4 D)
    _heights: torch.Tensor | None  # (N,), of each normal
    _whitening: Whitening

    def fit(self, frames: Frames) -> None:
        """Describe the normals, choose the bank and standardise both views."""
        channels, progress = self.extractor.channels, frames.progress
        with_height, batches = with_heights(self.normals(frames))
        moments = RunningMoments(channels)
        kept = PatchPool(
            capacity(self.config.max_bank_mb, channels),
            channels + with_height,
            lambda patches: self._reduced(patches, moments.moments().whitening(), progress),
        )
        described: list[torch.Tensor] = []
        heights: list[float] = []
        patients: list[str] = []
        numbers: dict[str, int] = {}  # of the patients, in the order of their first image
        period = max(HELD_OUT, math.ceil(len(frames) / self.judged))
        held_out: list[_Judged] = []
        first: list[_Judged] = []  # in their place, where there is one patient only
        for batch in batches:
            features, own_heights = self.features(batch.x), batch.heights.tolist()
            described += describe_batch(features, batch.valid, MOMENTS)
            images = list(map(_Judged, count(len(patients)), features.cpu(), batch.valid, own_heights))
            patients += batch.patients
            heights += own_heights
            for image in images:
                patient = patients[image.row]
                number = numbers.setdefault(patient, len(numbers))
                if number % period == 1:
                    held_out += [image] if len(held_out) < self.judged else []
                    continue
                patches = image.valid_patches(with_height=with_height)
                moments.add(patches[:, :channels], patient)
                kept.add(patches)
                first += [image] if not number and len(first) < HELD_OUT else []
        learnt = {"described": torch.stack(described), "normal": torch.zeros(2, 2, dtype=torch.float64)}
        learnt |= {"heights": torch.tensor(heights)} if with_height else {}
        self._keep(moments.moments(), kept.patches, progress, **learnt)
        learnt["normal"] = self._standard(held_out or first, patients)
        late = [image.valid_patches(with_height=with_height) for image in held_out]
        self._keep(moments.moments(), torch.cat([self.learnt("bank").cpu(), *late]), progress, **learnt)

    def merge(self, other: Detector) -> None:
        """Keep the descriptions of both, choose the bank anew, and average what the views are standardised by."""
        assert isinstance(other, TwoView)
        (ours, extra), (theirs, other_extra) = self.state(), other.state()
        weights = len(ours["described"]), len(theirs["described"])
        patients = (int(cast(int, e["patients"])) for e in (extra, other_extra))
        parts = [Moments(t["mean"], t["covariance"], n) for t, n in zip((ours, theirs), patients, strict=True)]
        both = {key: torch.cat([own, theirs[key]]) for key, own in ours.items() if key in JOINED}
        both["normal"] = (weights[0] * ours["normal"] + weights[1] * theirs["normal"]) / sum(weights)
        self._keep(joined(parts, weights), both.pop("bank"), silent, **both)

    def _score(self, x: torch.Tensor, maps: torch.Tensor, valid: torch.Tensor, heights: list[float]) -> torch.Tensor:
        """Both views in standard deviations above the normals' mean, added."""
        described = describe_batch(self.features(x), valid, MOMENTS) / self._scale
        whole = torch.stack([self._distance(*each) for each in zip(described, heights, strict=True)])
        views = torch.stack([whole, pool(maps, valid, self.config.pooling)], 1).double()
        mean, deviation = self.learnt("normal")
        return torch.sum((views - mean) / deviation, 1)

    def load_state(self, tensors: Mapping[str, torch.Tensor], extra: Mapping[str, JsonValue]) -> None:
        """Take descriptions float32 ``(N, 4 D)``, bank float16 ``(M, D)``, mean and deviation of both views ``(2, 2)``.

        Also mean ``(D,)`` and covariance ``(D, D)`` of patches, what whitens them, ``(D,)`` and ``(D, K)``, and the
        normals' heights ``(N,)`` where they are known: then the bank has them in a last column.
        """
        super().load_state(tensors, extra)
        self._scale = spread(self.learnt("described"))
        self._scaled = self.learnt("described") / self._scale
        self._heights = self._learnt.get("heights")
        self._whitening = Whitening(self.learnt("centre"), self.learnt("whitening"))
        bank = self._whitening.unit(self.learnt("bank"), self.config.height)
        self._search = HeightSearch(bank, self.config.engine, with_height=self._heights is not None)

    def _keep(self, moments: Moments, patches: torch.Tensor, progress: Progress, **others: torch.Tensor) -> None:
        whitening = moments.whitening()
        bank = self._reduced(patches, whitening, progress)
        others |= {"mean": moments.mean, "covariance": moments.covariance, "bank": bank}
        others |= {"centre": whitening.centre, "whitening": whitening.matrix}
        self.load_state(others, {"patients": moments.patients})

    def _standard(self, judged: list["_Judged"], patients: list[str]) -> torch.Tensor:
        """Mean and deviation of both views on images whose patients are not compared with themselves."""
        views = []
        for row, grid, valid, height in judged:
            others = [i for i, patient in enumerate(patients) if patient != patients[row]]
            others = others or [i for i in range(len(patients)) if i != row] or [row]
            whole = self._distance(self._scaled[row], height, others)
            patch = pool(self._map(grid.to(self.device), height)[None], valid[None], self.config.pooling)[0]
            views.append(torch.stack([whole, patch]).double().cpu())
        mean, deviation = torch.stack(views).mean(0), torch.stack(views).std(0, correction=0)
        # A deviation of few images, or of equal ones, is no measure: then a tenth of the mean stands for it.
        return torch.stack([mean, deviation.clamp_min(0.1 * mean).clamp_min(1e-6)])

    def _map(self, grid: torch.Tensor, height: float) -> torch.Tensor:
        patches = grid.flatten(1).T if self._heights is None else add_height(grid.flatten(1).T, height)
        queries = self._whitening.unit(patches, self.config.height)
        # Of unit vectors, half the squared distance is one less the cosine.
        return self._search.search(queries)[0][:, 0].square().reshape(grid.shape[1:]) / 2

    def _distance(self, own: torch.Tensor, height: float, rows: Sequence[int] | None = None) -> torch.Tensor:
        """Mean distance of a scaled description ``(4 D,)`` to the nearest of the normals, or of these rows of them."""
        some = slice(None) if rows is None else list(rows)
        apart = None
        if self._heights is not None and not math.isnan(height):
            # Each number of a description has a deviation of 1, all together that of the root of their count.
            apart = self.config.height * len(own) ** 0.5 * (self._heights[some] - height)
        return nearest(own, self._scaled[some], self.config.neighbours, apart)[0].mean()

    def _reduced(self, patches: torch.Tensor, whitening: Whitening, progress: Progress) -> torch.Tensor:
        """The coreset of patches ``(P, D)``: `bank_size` of them, and no more than a quarter of what can be held."""
        c = self.config
        size = min(c.bank_size, capacity(c.max_bank_mb, self.extractor.channels) // 4)
        unit = whitening.unit(patches.to(self.device), c.height)
        return patches[k_center(unit, size, seed=c.seed, progress=progress)]


class _Judged(NamedTuple):
    """A normal that the views may be standardised on: its row, features, valid area and height."""

    row: int
    features: torch.Tensor
    valid: torch.Tensor
    height: float

    def valid_patches(self, *, with_height: bool) -> torch.Tensor:
        """Patches that lie in the valid area, with the height where it counts."""
        patches = self.features.flatten(1).T[valid_cells(self.valid[None], self.features.shape[1:])[0].flatten()]
        return add_height(patches, self.height) if with_height else patches
