"""An image as one vector: the moments of its features over the valid cells, mean and standard deviation first.

What the detectors that compare whole images share, and the way back from a distance between such vectors to the cells.
"""

import torch

from anomalib_med.models.pooling import valid_cells

TINY = torch.finfo(torch.float32).tiny  # keeps a division by nothing from being one


def describe(features: torch.Tensor, moments: int = 2) -> torch.Tensor:
    """Moments of features ``(D, cells)``, float32 ``(moments * D,)``.

    Parameters
    ----------
    moments
        2: mean and standard deviation. 4: also the skewness and the logarithm of the kurtosis, which see what fills a
        part of the image.
    """
    values = features.float()
    mean = values.mean(1)
    centred = values - mean[:, None]
    squares = centred.square()
    # torch.std gives the same at ten times the time.
    deviation = squares.mean(1).sqrt()
    if moments == 2:
        return torch.cat([mean, deviation])
    scale = deviation.clamp_min(1e-6)
    skewness = (squares * centred).mean(1) / scale**3
    kurtosis = squares.square().mean(1) / scale**4
    return torch.cat([mean, deviation, skewness, kurtosis.clamp_min(1e-6).log()])


def describe_batch(features: torch.Tensor, valid: torch.Tensor, moments: int = 2) -> torch.Tensor:
    """Descriptions, float32 ``(B, moments * D)``, of features ``(B, D, h, w)`` over the valid cells.

    Parameters
    ----------
    valid
        bool ``(B, H, W)`` of any resolution, see :func:`anomalib_med.models.pooling.valid_cells`.
    """
    cells = valid_cells(valid, (features.shape[2], features.shape[3])).to(features.device)
    # One image at a time: a sum over a batch rounds differently.
    parts = zip(features, cells, strict=True)
    return torch.stack([describe(grid.flatten(1)[:, c.flatten()], moments) for grid, c in parts])


def spread(described: torch.Tensor) -> torch.Tensor:
    """Standard deviation ``(K,)`` of each number among descriptions ``(N, K)``; 1 where it does not vary."""
    if len(described) < 2:
        return torch.ones_like(described[0])
    deviation = described.std(0)
    return torch.where(deviation > 0, deviation, torch.ones_like(deviation))


def nearest(
    own: torch.Tensor, others: torch.Tensor, count: int, apart: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Euclidean distances and rows ``(count,)`` of the descriptions ``(N, K)`` nearest to another ``(K,)``.

    What lies `apart` ``(N,)`` from it in a further dimension is so much farther. Fewer than `count` come back where
    there are fewer.
    """
    # From the differences themselves, in one pass over memory: with ten thousand normals a tenth of the time of
    # subtracting and taking norms.
    distances = torch.cdist(own[None], others, compute_mode="donot_use_mm_for_euclid_dist")[0]
    distances = distances if apart is None else torch.hypot(distances, apart)
    values, rows = distances.topk(min(count, len(distances)), largest=False)
    return values, rows


class Gallery:
    """Normal images, each as its description, and the distances of others to them.

    Parameters
    ----------
    described
        ``(N, K)``.
    neighbours
        Nearest normals whose distances are averaged.
    standardise
        Whether each number is divided by its standard deviation among the normals.
    """

    def __init__(self, described: torch.Tensor, neighbours: int, *, standardise: bool = True) -> None:
        self.described, self.neighbours = described, neighbours
        self.scale = spread(described) if standardise else torch.ones_like(described[0])
        self.scaled = described / self.scale

    def nearest(self, own: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Distances and rows of the normals nearest to a description ``(K,)``."""
        return nearest(own / self.scale, self.scaled, self.neighbours)

    def scores(self, features: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """Mean distances ``(B,)`` of images with these features to the nearest normals, by their valid cells."""
        return torch.stack([self.nearest(own)[0].mean() for own in describe_batch(features, valid)])


def contributions(grid: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
    """What each cell adds to ``direction @ describe(grid)``: the mean over the cells is that number.

    A mean is the average of the cells' values, and a standard deviation s the average of their squared distances from
    the mean, divided by s: both split into cells exactly.

    Parameters
    ----------
    grid
        Features ``(D, h, w)``.
    direction
        ``(2 D,)``: how much each number of a description counts.

    Returns
    -------
    float32 ``(h, w)``.
    """
    values = grid.flatten(1).float()
    mean, deviation = describe(values).chunk(2)
    squares = (values - mean[:, None]).square() / deviation.clamp_min(TINY)[:, None]
    towards_mean, towards_deviation = direction.chunk(2)
    return (towards_mean @ values + towards_deviation @ squares).reshape(grid.shape[1:])
