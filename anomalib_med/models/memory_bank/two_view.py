"""TwoView: an image is looked at as a whole and patch by patch, and each view counts by how rare it is among normals.

A method of this package. The whole: nearest neighbours of pooled features (Bergman et al., 2020,
https://arxiv.org/abs/2002.10445) on four moments. The patches: PatchCore (Roth et al., CVPR 2022,
https://arxiv.org/abs/2106.08265) with the cosine distance of AnomalyDINO (Damm et al., WACV 2025,
https://arxiv.org/abs/2405.14529) between whitened features.
"""

import math
from collections.abc import Mapping
from itertools import chain
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from pydantic import Field, JsonValue

from anomalib_med.errors import FitError
from anomalib_med.models.base import BankConfig, Detector
from anomalib_med.models.memory_bank.coreset import k_center
from anomalib_med.models.memory_bank.description import describe_batch, distances_to, spread
from anomalib_med.models.memory_bank.neighbours import Engine, NearestNeighbours
from anomalib_med.models.memory_bank.patch_pool import PatchPool
from anomalib_med.models.memory_bank.whitening import Moments, RunningMoments, joined
from anomalib_med.models.pooling import pool, valid_cells
from anomalib_med.preprocessing import Frames

MOMENTS = 4
HELD_OUT = 5  # every fifth patient is kept out of the bank
MOST_JUDGED = 200  # images that the views are standardised on
ROWS = 65536  # patches that are whitened at once


class TwoView(Detector):
    """Adds what is unusual of the image as a whole to what is unusual in its patches.

    Disease that changes the whole image shows in its description, a lesion in the patches, and neither sees both. Each
    view gives a distance to the normals. Every fifth patient is at first kept out of the bank, and each view is
    standardised with its mean and standard deviation on those patients, so that both speak in one unit; then they join
    the bank. The score is the sum of both views. The anomaly map is the cosine distance of each patch to the nearest of
    the bank, both centred and whitened by the normals' patches.
    """

    name = "twoview"
    title = "TwoView (whole image and patches, this package)"
    uses_height = True

    class Config(BankConfig):
        """Settings of TwoView. `pooling` is that of the view on patches.

        Parameters
        ----------
        neighbours
            Normal images whose distances are averaged in the view of the whole.
        bank_size
            Patches in the bank.
        max_bank_mb
            Memory for the patches that the bank is chosen from, in MiB of float16 features; when it is full, what it
            holds is replaced by its coreset.
        height
            How much the height of a slice in its volume or lungs counts in both views, where ``Preprocessing.height``
            asks for it: from 0 to 1 it is worth that many standard deviations of the normals. A slice whose height is
            not known is compared with those of all heights.
        engine
            Neighbour search, see :class:`anomalib_med.models.memory_bank.neighbours.NearestNeighbours`.
        """

        neighbours: int = Field(5, ge=1)
        bank_size: int = Field(2000, ge=1)
        max_bank_mb: float = Field(256.0, gt=0)
        height: float = Field(2.0, gt=0)
        engine: Engine = "auto"

    config: Config

    def __init__(self, **settings: object) -> None:
        super().__init__(**settings)
        self._described = torch.empty(0)  # (N, 4 D), the moments of each normal
        self._heights = torch.empty(0)  # (N,), of each normal; empty where heights are not asked for
        self._bank = torch.empty(0)  # (M, D), features as they are; with heights they are one column more
        self._with_height = False
        self._moments = Moments(torch.empty(0), torch.empty(0, 0), 0)  # of the normals' patches
        self._whitening = torch.empty(0), torch.empty(0, 0)  # centre (D,) and matrix (D, K)
        self._normal = torch.zeros(2, 2, dtype=torch.float64)  # mean and deviation of the whole, and of the patches
        self._search: NearestNeighbours | None = None
        self._of_all_heights: NearestNeighbours | None = None

    def fit(self, frames: Frames) -> None:
        """Describe the normals, choose the bank and standardise both views.

        Raises
        ------
        FitError
            Where no image could be read.
        """
        extractor = self.extractor
        batches = iter(frames.batches(extractor.batch_size))
        begin = next(batches, None)
        if begin is None:
            raise FitError("no normal image could be read: see the failures listed, or check the folder")
        self._with_height = bool(torch.isfinite(begin.heights).all())
        moments = RunningMoments(extractor.channels)

        def thinned(patches: torch.Tensor) -> torch.Tensor:
            self._whiten_by(moments.moments())
            return self._reduced(patches)

        kept = PatchPool(self._capacity(), extractor.channels + self._with_height, thinned)
        described: list[torch.Tensor] = []
        heights: list[float] = []
        patients: list[str] = []
        numbers: dict[str, int] = {}  # of the patients, in the order of their first image
        period = max(HELD_OUT, math.ceil(len(frames) / MOST_JUDGED))
        held_out: list[_Judged] = []
        first: list[_Judged] = []  # in their place, where there is one patient only
        for batch in chain([begin], batches):
            if self._with_height != bool(torch.isfinite(batch.heights).all()):
                raise FitError("the height of some normals is known and of others not: fit them apart")
            features = self.features(batch.x)
            described += list(describe_batch(features, batch.valid, MOMENTS))
            each = zip(features.cpu(), batch.valid, batch.patients, batch.heights.tolist(), strict=True)
            for grid, valid, patient, height in each:
                number = numbers.setdefault(patient, len(numbers))
                judged = _Judged(len(patients), grid, valid, height)
                if number % period == 1:
                    if len(held_out) < MOST_JUDGED:
                        held_out.append(judged)
                else:
                    patches = self._valid_patches(judged)
                    moments.add(patches[:, : extractor.channels], patient)
                    kept.add(patches)
                    if not number and len(first) < HELD_OUT:
                        first.append(judged)
                patients.append(patient)
                heights.append(height)
        self._heights = torch.tensor(heights if self._with_height else [])
        self._whiten_by(moments.moments())
        self._set(torch.stack(described), self._reduced(kept.patches), self._normal)
        self._standardise(held_out or first, patients)
        late = [self._valid_patches(judged) for judged in held_out]
        self._set(self._described, self._reduced(torch.cat([self._bank.cpu(), *late])), self._normal)

    def anomaly_map(self, x: torch.Tensor) -> torch.Tensor:
        """Cosine distances ``(B, h, w)`` from 0 to 2 to the nearest patches, on the grid of the finest layer."""
        return self.map_at(x, torch.full((len(x),), torch.nan))

    def map_at(self, x: torch.Tensor, heights: torch.Tensor) -> torch.Tensor:
        """Cosine distances ``(B, h, w)``, with what the slices' heights add."""
        each = zip(self.features(x), heights.tolist(), strict=True)
        return torch.stack([self._map(grid, height) for grid, height in each])

    def image_score(self, x: torch.Tensor, maps: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """Scores ``(B,)``: both views in standard deviations above the normals' mean, added."""
        return self.score_at(x, maps, valid, torch.full((len(x),), torch.nan))

    def score_at(self, x: torch.Tensor, maps: torch.Tensor, valid: torch.Tensor, heights: torch.Tensor) -> torch.Tensor:
        """Scores ``(B,)`` of slices of these heights."""
        described = describe_batch(self.features(x), valid, MOMENTS) / self._scale
        each = zip(described, heights.tolist(), strict=True)
        whole = torch.stack([self._distance(own, self._scaled, height, self._heights) for own, height in each])
        views = torch.stack([whole, pool(maps, valid, self.config.pooling)], 1).double()
        mean, deviation = self._normal.to(views.device)
        score: torch.Tensor = ((views - mean) / deviation).sum(1)
        return score

    def merge(self, other: Detector) -> None:
        """Keep the descriptions of both, choose the bank anew from both, average what the views are standardised by."""
        assert isinstance(other, TwoView)
        ours, theirs = len(self._described), len(other._described)
        self._whiten_by(joined((self._moments, other._moments), (ours, theirs)))
        normal = (ours * self._normal + theirs * other._normal) / (ours + theirs)
        described = torch.cat([self._described.cpu(), other._described.cpu()])
        self._heights = torch.cat([self._heights, other._heights])
        self._set(described, self._reduced(torch.cat([self._bank.cpu(), other._bank.cpu()])), normal)

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, JsonValue]]:
        """Descriptions float32 ``(N, 4 D)``, bank float16 ``(M, D)``; mean and deviation of both views ``(2, 2)``.

        Also the mean ``(D,)`` and the covariance ``(D, D)`` of patches and what whitens them, ``(D,)`` and ``(D, K)``;
        where heights are asked for those of the normals ``(N,)``: then the bank has them in a last column.
        """
        tensors = {"described": self._described.cpu(), "bank": self._bank.cpu(), "normal": self._normal}
        tensors |= {"mean": self._moments.mean, "covariance": self._moments.covariance}
        tensors |= {"centre": self._whitening[0].cpu(), "whitening": self._whitening[1].cpu()}
        if self._with_height:
            tensors["heights"] = self._heights
        return tensors, {"patients": self._moments.patients}

    def load_state(self, tensors: Mapping[str, torch.Tensor], extra: Mapping[str, JsonValue]) -> None:
        """Take what :meth:`state` gave."""
        self._with_height = "heights" in tensors
        self._heights = tensors.get("heights", torch.empty(0))
        patients = int(cast(int, extra["patients"]))
        self._moments = Moments(tensors["mean"], tensors["covariance"], patients)
        self._whitening = tensors["centre"], tensors["whitening"]
        self._set(tensors["described"], tensors["bank"], tensors["normal"])

    def to(self, device: torch.device) -> "TwoView":
        """Move the extractor and what was learnt."""
        super().to(device)
        if len(self._bank):
            self._set(self._described, self._bank, self._normal)
        return self

    def _whiten_by(self, moments: Moments) -> None:
        self._moments, self._whitening = moments, moments.whitening()

    def _set(self, described: torch.Tensor, bank: torch.Tensor, normal: torch.Tensor) -> None:
        self._described, self._bank = described.to(self.device), bank.to(self.device).contiguous()
        self._normal = normal
        self._scale = spread(self._described)
        self._scaled = self._described / self._scale
        centre, matrix = self._whitening
        self._whitening = centre.to(self.device), matrix.to(self.device)
        self._search = NearestNeighbours(self._unit(self._bank), self.config.engine)
        self._of_all_heights = None

    def _standardise(self, judged: list["_Judged"], patients: list[str]) -> None:
        """Mean and deviation of both views on images whose patients are not compared with themselves."""
        views = []
        for row, grid, valid, height in judged:
            others = [i for i, patient in enumerate(patients) if patient != patients[row]]
            others = others or [i for i in range(len(patients)) if i != row] or [row]
            heights = self._heights[others] if self._with_height else self._heights
            whole = self._distance(self._scaled[row], self._scaled[others], height, heights)
            patch = pool(self._map(grid.to(self.device), height)[None], valid[None], self.config.pooling)[0]
            views.append(torch.stack([whole, patch]).double().cpu())
        mean, deviation = torch.stack(views).mean(0), torch.stack(views).std(0, correction=0)
        # A deviation of few images, or of equal ones, is no measure: then a tenth of the mean stands for it.
        self._normal = torch.stack([mean, deviation.clamp_min(0.1 * mean).clamp_min(1e-6)])

    def _map(self, grid: torch.Tensor, height: float) -> torch.Tensor:
        """Cosine distances ``(h, w)`` of features ``(D, h, w)`` of a slice of this height."""
        if self._search is None:
            raise FitError("TwoView is not fitted: call fit, or load a saved model")
        search, patches = self._search, grid.flatten(1).T
        queries = self._unit(_with_height(patches, height) if self._with_height else patches)
        if self._with_height and math.isnan(height):
            if self._of_all_heights is None:
                bank = self._unit(self._bank)[:, :-1].contiguous()
                self._of_all_heights = NearestNeighbours(bank, self.config.engine)
            search, queries = self._of_all_heights, queries[:, :-1]
        # Of unit vectors, half the squared distance is one less the cosine.
        return search.search(queries)[0][:, 0].square().reshape(grid.shape[1:]) / 2

    def _distance(self, own: torch.Tensor, normals: torch.Tensor, height: float, heights: torch.Tensor) -> torch.Tensor:
        """Mean distance of a scaled description ``(4 D,)`` to the nearest of ``(N, 4 D)``, both with their heights."""
        distances = distances_to(own, normals)
        if self._with_height and not math.isnan(height):
            # Each number of a description has a deviation of 1, all together that of the root of their count.
            apart = self.config.height * len(own) ** 0.5 * (heights.to(distances.device) - height)
            distances = torch.hypot(distances, apart)
        return distances.topk(min(self.config.neighbours, len(distances)), largest=False).values.mean()

    def _unit(self, patches: torch.Tensor) -> torch.Tensor:
        """Patches ``(P, D)`` centred, whitened and of unit length, float16 ``(P, K)``, with what their height adds."""
        device = patches.device
        centre, whitening = (part.to(device) for part in self._whitening)
        size = whitening.shape[1]
        unit = torch.empty(len(patches), size + self._with_height, dtype=torch.float16, device=device)
        for part, given in zip(torch.split(unit, ROWS), torch.split(patches, ROWS), strict=True):
            part[:, :size] = F.normalize((given[:, : len(centre)].float() - centre) @ whitening, dim=1)
        if self._with_height:
            # Vectors of unit length, centred, have a standard deviation of 1.
            unit[:, size] = self.config.height * patches[:, -1]
        return unit

    def _valid_patches(self, judged: "_Judged") -> torch.Tensor:
        """Those patches of an image that lie in its valid area, with their height where it counts."""
        grid = judged.features
        patches = grid.flatten(1).T[valid_cells(judged.valid[None], (grid.shape[1], grid.shape[2]))[0].flatten()]
        return _with_height(patches, judged.height) if self._with_height else patches

    def _capacity(self) -> int:
        extractor = self.extractor
        return max(4, int(self.config.max_bank_mb * 2**20 / (2 * extractor.channels)))

    def _reduced(self, patches: torch.Tensor) -> torch.Tensor:
        """The coreset of patches ``(P, D)``: `bank_size` of them, and no more than a quarter of what can be held."""
        count = min(len(patches), self.config.bank_size, max(1, self._capacity() // 4))
        if count == len(patches):
            return patches.clone()
        picks = k_center(
            self._unit(patches.to(self.device)),
            count,
            seed=self.config.seed,
            progress=lambda done, total: self.progress("choosing the bank", done, total),
        )
        return patches[picks.cpu()]


def _with_height(patches: torch.Tensor, height: float) -> torch.Tensor:
    return torch.cat([patches, torch.full_like(patches[:, :1], height)], 1)


class _Judged(NamedTuple):
    """A normal that the views may be standardised on: its row, features, valid area and height."""

    row: int
    features: torch.Tensor
    valid: torch.Tensor
    height: float
