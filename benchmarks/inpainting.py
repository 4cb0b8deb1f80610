"""In-painting on normals held out: the family's networks against the mean around a hole and OpenCV's Telea.

    python benchmarks/inpainting.py [NORMALS HELD_OUT] [-m 'riad steps=300' ...] [--size 64] [--pictures FOLDER]
                                    [--image FILE]

NORMALS and HELD_OUT are folders of other patients; by default both are phantoms, 160 and 40. Each detector learns from
the normals and fills the same seeded holes of the others: cells of 8 pixels, a third of the image at a time, and unions
of circles, squares and ellipses. PSNR (of the mean squared error) and SSIM are taken inside the holes and averaged over
images; one Markdown row for each way to fill. Detectors that do not fill holes as a whole (squid, anoddpm, pddpm) have
none. With --pictures every detector also draws image, lesion, hole, what was in-painted and its map into
FOLDER/NAME/inpainting.png: of a phantom, for which it must have learnt from phantoms, or of the image of --image.
"""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from shared import command_line

from anomalib_med import (
    AnoDDPM,
    AutoPaint,
    Detector,
    FittedModel,
    MaskedAutoencoder,
    PatchedDiffusion,
    Preprocessing,
    Riad,
    Squid,
    fit,
)
from anomalib_med.bench.plan import methods_of
from anomalib_med.datasets.folder import discover
from anomalib_med.models.inpainting.holes import block_holes, cell_holes, seeded, shape_holes
from anomalib_med.models.losses import ssim
from anomalib_med.models.registry import detector_class
from anomalib_med.phantoms import add_lesion, chest_phantom
from anomalib_med.preprocessing import Frames

Fill = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

METHODS = (
    "riad width=16 learning_rate=1e-3 batch_size=4 steps=600",
    "autopaint width=16 learning_rate=1e-3 steps=600",
    "mae patch=8 parts=2 learning_rate=1e-3 batch_size=16 steps=1500",
    "squid width=8 learning_rate=5e-4 steps=600",
    "anoddpm widths=16,32,32,64 learning_rate=1e-3 longest=250 steps=600",
    "pddpm widths=16,32,32 learning_rate=1e-3 batch_size=16 steps=600",
)


def local_mean(x: torch.Tensor, holes: torch.Tensor) -> torch.Tensor:
    """Each hidden pixel as the mean of what is known in the smallest window of which a quarter is known."""
    known = (~holes[:, None]).float()
    filled, missing = x * known, holes[:, None].clone()
    for window in range(3, 2 * max(x.shape[2:]), 2):
        if not missing.any():
            break
        share = F.avg_pool2d(known, window, 1, window // 2)
        mean = F.avg_pool2d(x * known, window, 1, window // 2) / share.clamp_min(1e-6)
        found = missing & (share >= 0.25 if window < min(x.shape[2:]) else share > 0)
        filled, missing = torch.where(found, mean, filled), missing & ~found
    return filled


def telea(x: torch.Tensor, holes: torch.Tensor) -> torch.Tensor:
    """OpenCV's fast marching, 8 bits, radius 3."""
    images = [
        cv2.inpaint((image[0] * 255).round().byte().numpy(), hole.byte().numpy(), 3, cv2.INPAINT_TELEA)
        for image, hole in zip(x, holes, strict=True)
    ]
    return torch.from_numpy(np.stack(images)).float()[:, None] / 255


def quality(fill: Fill, x: torch.Tensor, holes: torch.Tensor) -> tuple[float, float]:
    """PSNR in dB and SSIM inside the holes."""
    with torch.inference_mode():
        y = fill(torch.where(holes[:, None], 0.0, x), holes).clamp(0, 1)
    psnr, alike = [], []
    for truth, filled, hole in zip(x, y, holes, strict=True):
        if hole.any():
            psnr.append(-10 * np.log10(float(((truth - filled)[0][hole] ** 2).mean()) + 1e-12))
            alike.append(float(ssim(truth[None], filled[None])[0, 0][hole].mean()))
    return float(np.mean(psnr)), float(np.mean(alike))


def holes_of(kind: str, count: int, shape: tuple[int, int]) -> torch.Tensor:
    if kind == "shapes":
        return shape_holes(count, shape, seeded(1))
    cells = cell_holes(shape, 8, 3, seeded(1))
    return cells[torch.arange(count) % 3]


def draw(model: FittedModel, path: Path, image: Path | None) -> None:
    """An image, where its lesion is, a hole, what was in-painted, and the anomaly map."""
    if image is None:
        phantom = chest_phantom(7, 256)
        pixels, lesion = add_lesion(phantom.pixels, phantom.lungs, "foreign", np.random.default_rng(7))
        (frame,) = Frames(discover(pixels[None]), model.preprocessing)
    else:
        (frame,) = Frames(discover(image), model.preprocessing)
        lesion = np.zeros(frame.pixels.shape[1:])
    x = torch.from_numpy(frame.pixels)[None]
    with torch.inference_mode():
        residual = model.detector.anomaly_map(x)[0].numpy()
        hole, drawn = hole_and_inpainted(model.detector, x)
    residual = (residual - residual.min()) / (residual.max() - residual.min())
    panels = [x[0, 0].numpy(), lesion.astype(float), hole, drawn[0, 0].numpy(), residual]
    edge = np.full((256, 4), 255, np.uint8)
    row = []
    for panel in panels:
        eight = (np.clip(panel, 0, 1) * 255).round().astype(np.uint8)
        row += [cv2.resize(eight, (256, 256), interpolation=cv2.INTER_LINEAR), edge]
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.concatenate(row[:-1], axis=1), [cv2.IMWRITE_PNG_COMPRESSION, 9])


def hole_and_inpainted(detector: Detector, x: torch.Tensor) -> tuple[np.ndarray, torch.Tensor]:
    """One of the holes, 1 where hidden (of AnoDDPM the noised image), and the in-painted image."""
    side = x.shape[2]
    if isinstance(detector, AutoPaint):
        drawn, marked = detector.inpainted(x)
        return marked[0].float().numpy(), drawn
    if isinstance(detector, Riad):
        cell = detector.config.cells[-1]
        hole = cell_holes((side, side), cell, detector.config.parts, seeded(0))[0]
        return hole.float().numpy(), detector.inpainted(x)[-1]
    if isinstance(detector, MaskedAutoencoder):
        patch, grid = detector.config.patch, side // detector.config.patch
        seen = cell_holes((grid, grid), 1, detector.config.parts, seeded(0))[0].float().numpy()
        return np.kron(1 - seen, np.ones((patch, patch))), detector.inpainted(x)
    if isinstance(detector, PatchedDiffusion):
        return block_holes((side, side), detector.config.patches)[0].float().numpy(), detector.inpainted(x)
    if isinstance(detector, AnoDDPM):
        return (detector.noised(x)[0, 0].numpy() + 1) / 2, detector.reconstruct(x)
    if isinstance(detector, Squid):
        return np.ones((side, side)), detector.inpainted(x)
    raise SystemExit(f"{detector.name} does not in-paint")


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("folders", nargs="*", type=Path, metavar="FOLDER")
    parser.add_argument("-m", "--model", action="append", default=[])
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--most", type=int, default=100, help="images held out that are filled")
    parser.add_argument("--pictures", type=Path, metavar="FOLDER")
    parser.add_argument("--image", type=Path, metavar="FILE", help="to be drawn in place of a phantom")
    options = parser.parse_args()
    normals: object = np.stack([chest_phantom(seed, 128).pixels for seed in range(160)])
    held_out: object = np.stack([chest_phantom(seed, 128).pixels for seed in range(5000, 5040)])
    if options.folders:
        normals, held_out = options.folders
    models = {}
    for method in methods_of(options.model or METHODS, {}):
        detector = detector_class(method.detector)(**method.settings)
        preprocessing = Preprocessing(size=options.size, aspect="stretch")
        models[method.label] = fit(detector, normals, calibration=0, preprocessing=preprocessing, device="cpu")
    first = next(iter(models.values()))
    frames = Frames(discover(held_out)[: options.most], first.preprocessing)
    x = torch.from_numpy(np.stack([frame.pixels for frame in frames]))
    fills: dict[str, Fill] = {"mean around the hole": local_mean, "Telea (OpenCV)": telea}
    fills |= {name: m.detector.inpaint for name, m in models.items() if hasattr(m.detector, "inpaint")}
    print("| filled by | cells: PSNR | SSIM | shapes: PSNR | SSIM |\n|---|---|---|---|---|")
    for name, fill in fills.items():
        cells = [quality(fill, x, holes_of(kind, len(x), tuple(x.shape[2:]))) for kind in ("cells", "shapes")]
        print(f"| {name} | " + " | ".join(f"{psnr:.2f} | {alike:.3f}" for psnr, alike in cells) + " |", flush=True)
    if options.pictures:
        for model in models.values():
            draw(model, options.pictures / model.detector.name / "inpainting.png", options.image)


if __name__ == "__main__":
    main()
