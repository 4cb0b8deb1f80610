"""Simplex noise in several octaves: coarse structure to hide a lesion in, which Gaussian noise leaves visible.

Perlin, "Noise hardware", 2001; in the form of OpenSimplex, K. Spencer 2014, as in AnoDDPM (Wyatt et al. 2022).
"""

import torch

REPEAT = 64  # lattice points after which a table of gradients starts anew
GRADIENTS = ((5, 2), (2, 5), (-5, 2), (-2, 5), (5, -2), (2, -5), (-5, -2), (-2, -5))
SCALE = 47.0  # brings the largest value to about 1
SQUISH = (3**0.5 - 1) / 2  # lattice point (i, j) lies at (i, j) + SQUISH * (i + j)
STRETCH = (3**-0.5 - 1) / 2  # and the way back
# Lattice points, counted from that below, that can lie within the reach of sqrt(2).
NEAR = ((0, 0), (1, 0), (0, 1), (1, 1), (1, -1), (-1, 1), (2, 0), (0, 2))
FINEST = 2.0  # pixels; finer octaves are left out


def simplex(table: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Simplex noise of one octave on a grid of places.

    With lattice points v and their gradients g: ``sum_v max(0, 2 - |p - v|^2)^4  g_v . (p - v) / 47`` at place p.

    `table`, int64 ``(B, REPEAT, REPEAT)``, says which of the eight gradients lattice point (i, j) has, both modulo
    REPEAT; `rows` ``(H,)`` and `columns` ``(W,)`` are the places, in the unit of the lattice. The noise is float32
    ``(B, H, W)``, between about -1 and 1, on the table's device.
    """
    device = table.device
    y, x = rows.to(device).double()[:, None], columns.to(device).double()[None, :]
    shift = STRETCH * (x + y)
    i0, j0 = (x + shift).floor(), (y + shift).floor()
    gradients = torch.tensor(GRADIENTS, dtype=torch.float32, device=device)
    along, down = (gradients[:, axis][table.flatten(1)] for axis in (0, 1))
    total = torch.zeros(len(table), rows.numel() * columns.numel(), device=device)
    for a, b in NEAR:
        i, j = i0 + a, j0 + b
        dx, dy = x - i - SQUISH * (i + j), y - j - SQUISH * (i + j)
        weight = (2 - dx**2 - dy**2).clamp_min(0) ** 4 / SCALE
        place = (i.long() % REPEAT * REPEAT + j.long() % REPEAT).flatten()
        across, downwards = ((weight * d).float().flatten() for d in (dx, dy))
        total += across * along[:, place] + downwards * down[:, place]
    return total.reshape(len(table), rows.numel(), columns.numel())


def octaves_of_noise(
    count: int,
    shape: tuple[int, int],
    period: float,
    octaves: int = 6,
    persistence: float = 0.8,
    *,
    generator: torch.Generator | None = None,
    device: torch.device | None = None,
) -> torch.Tensor:
    """So many fields of simplex noise, float32 ``(count, H, W)``, mean about 0, not normalised.

    Parameters
    ----------
    period
        Period of the coarsest octave, in pixels: the "frequency" of AnoDDPM's code.
    octaves
        How many are summed, each half as coarse as the one before; those finer than two pixels are left out.
    persistence
        Amplitude of each octave as a part of the one before; that of the first is 1.
    generator
        Generator of the draw, on the CPU; by default that of torch, as in training.
    device
        Device on which the noise is made of what was drawn, the same on each but for rounding; by default the CPU.
    """
    total, amplitude = torch.zeros(count, *shape, device=device), 1.0
    for _ in range(octaves):
        if period < FINEST:
            break
        table = torch.randint(len(GRADIENTS), (count, REPEAT, REPEAT), generator=generator)
        # A lattice that always began in the first pixel would have its zeros at the same places in each field.
        start = REPEAT * torch.rand(2, generator=generator)
        rows, columns = (first + torch.arange(side) / period for first, side in zip(start, shape, strict=True))
        total += amplitude * simplex(table.to(total.device), rows, columns)
        period, amplitude = period / 2, amplitude * persistence
    return total
