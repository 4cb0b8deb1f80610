import pytest
import torch

from anomalib_med.errors import ConfigError
from anomalib_med.models.pooling import pool, top_share, valid_cells

MAPS = torch.arange(100.0).reshape(1, 10, 10)
ALL = torch.ones(1, 80, 80, dtype=torch.bool)


@pytest.mark.parametrize(("pooling", "expected"), [("max", 99), ("mean", 49.5), ("top10%", 94.5), ("top1%", 99), ("top0.1%", 99)])
def test_pooling_by_name(pooling: str, expected: float) -> None:
    assert float(pool(MAPS, ALL, pooling)) == expected


def test_invalid_cells_do_not_count() -> None:
    valid = ALL.clone()
    valid[:, 40:] = False  # the lower half holds the larger values
    assert float(pool(MAPS, valid, "max")) == 49
    assert float(pool(MAPS, valid, "mean")) == 24.5


def test_a_cell_counts_from_half_valid() -> None:
    valid = torch.zeros(1, 20, 20, dtype=torch.bool)
    valid[:, :, :11] = True
    cells = valid_cells(valid, (10, 10))[0]
    assert cells[:, :6].all() and not cells[:, 6:].any()


def test_an_image_without_valid_cells_is_pooled_over_all() -> None:
    assert float(pool(MAPS, ~ALL, "max")) == 99


def test_images_of_a_batch_do_not_touch_each_other() -> None:
    maps = torch.cat([MAPS, MAPS * 3])
    valid = torch.cat([ALL, ~ALL])
    assert pool(maps, valid, "top10%").tolist() == [94.5, 283.5]


@pytest.mark.parametrize("pooling", ["median", "top0%", "top101%", "top10", ""])
def test_unknown_pooling_is_refused(pooling: str) -> None:
    with pytest.raises(ConfigError, match="pooling"):
        top_share(pooling)
