import pytest
import torch

from anomalib_med.errors import ConfigError
from anomalib_med.models.pooling import pool, valid_cells

MAPS = torch.arange(100.0).reshape(1, 10, 10)
ALL = torch.ones(1, 80, 80, dtype=torch.bool)


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [("max", 99), ("mean", 49.5), ("top10%", 94.5), ("top1%", 99), ("top0.1%", 99), ("power1", 49.5)],
)
def test_pooling_by_name(pooling: str, expected: float) -> None:
    assert float(pool(MAPS, ALL, pooling)) == expected


def test_power_mean_is_its_formula_and_lies_between_mean_and_maximum() -> None:
    values = torch.rand(1, 6, 6, generator=torch.Generator().manual_seed(0)) * 1e-6
    found = [float(pool(values, ALL, f"power{p}")) for p in (1, 2, 8, 40)]
    expected = [float((values.double() ** p).mean() ** (1 / p)) for p in (1, 2, 8, 40)]
    assert found == pytest.approx(expected, rel=1e-5)
    assert float(values.mean()) < found[1] < found[2] < found[3] < float(values.max())


def test_power_mean_takes_huge_and_empty_maps() -> None:
    assert float(pool(torch.full((1, 4, 4), 1e30), ALL, "power8")) == pytest.approx(1e30, rel=1e-5)
    assert float(pool(torch.zeros(1, 4, 4), ALL, "power8")) == 0
    assert float(pool(torch.full((1, 4, 4), -2.0), ALL, "power8")) == 0


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


@pytest.mark.parametrize("pooling", ["median", "top0%", "top101%", "top10", "power0.5", "power", ""])
def test_unknown_pooling_is_refused(pooling: str) -> None:
    with pytest.raises(ConfigError, match="pooling"):
        pool(MAPS, ALL, pooling)
