import pytest
import torch
import torch.nn.functional as F

from anomalib_med.features.grid import to_grid

MAPS = torch.rand(2, 3, 5, 4, generator=torch.Generator().manual_seed(0))


def test_maps_that_have_the_grid_stay_as_they_are() -> None:
    assert to_grid(MAPS, (5, 4)) is MAPS


@pytest.mark.parametrize("kind", [torch.float32, torch.float16])
def test_maps_are_interpolated_in_float32_and_keep_their_type(kind: torch.dtype) -> None:
    maps = MAPS.to(kind)
    found = to_grid(maps, torch.Size((10, 7)))
    assert torch.equal(found, F.interpolate(maps.float(), size=(10, 7), mode="bilinear", align_corners=False).to(kind))
