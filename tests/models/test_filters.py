"""The filters of maps, against numpy and OpenCV."""

import cv2
import numpy as np
import torch

from anomalib_med.models.filters import gaussian_blur, mean_filter, median_filter

MAPS = torch.rand(2, 20, 26, generator=torch.Generator().manual_seed(0))


def test_the_mean_is_cut_at_the_border() -> None:
    filtered = mean_filter(MAPS, 5)
    assert torch.isclose(filtered[0, 0, 0], MAPS[0, :3, :3].mean())
    assert np.allclose(filtered[0, 2:-2, 2:-2], cv2.blur(MAPS[0].numpy(), (5, 5))[2:-2, 2:-2], atol=1e-6)


def test_the_median_takes_away_single_pixels() -> None:
    padded = np.pad(MAPS.numpy(), ((0, 0), (2, 2), (2, 2)), mode="edge")
    assert median_filter(MAPS, 5)[1, 4, 5].item() == np.median(padded[1, 4:9, 5:10])
    spot = torch.zeros(1, 9, 9)
    spot[0, 4, 4] = 1
    assert median_filter(spot, 5).max() == 0


def test_the_gaussian_is_that_of_opencv_inside_and_sums_to_one_at_the_border() -> None:
    blurred = gaussian_blur(MAPS, 7, 3.0)
    assert np.allclose(blurred[0, 3:-3, 3:-3], cv2.GaussianBlur(MAPS[0].numpy(), (7, 7), 3.0)[3:-3, 3:-3], atol=1e-5)
    assert torch.allclose(gaussian_blur(torch.ones(8, 9), 7, 3.0), torch.ones(8, 9))
