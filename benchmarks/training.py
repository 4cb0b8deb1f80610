"""What the trainer costs beside a plain PyTorch loop with the same network, data and loss; one JSON line a detector.

    python benchmarks/training.py [-m fae] [-m aeu] [-s widths=16,32] [--size 64] [--batch 8] [--images 64]
        [--steps 12] [--rounds 5]

Trainer and loop take turns in one process, so that a busy machine slows both; the loop goes on with the network that
was just trained, and freed memory is kept as in `anomed fit`: where memory lies makes a tenth. What is compared is the
median of all single steps, by the clock and by the time of the processors, which other programs disturb less. The loop
has all it needs in memory, checks nothing and shows nothing. GFLOPs are of one image, forwards.
"""

import argparse
import statistics
import time
from dataclasses import replace
from itertools import pairwise

import torch
from shared import Images, command_line, show
from torch.utils.flop_counter import FlopCounterMode

from anomalib_med.cli.memory import keep_freed_memory
from anomalib_med.models.registry import detector_class
from anomalib_med.models.training import StepBatch, TrainedDetector, TrainingRun

Seconds = tuple[float, float]  # of the clock, and of all processors


def per_step(marks: list[Seconds]) -> list[Seconds]:
    """Seconds of each step from the times after each one; the first two, which warm up, do not count."""
    return [(after[0] - before[0], after[1] - before[1]) for before, after in pairwise(marks[1:])]


def now() -> Seconds:
    return time.perf_counter(), time.process_time()


def trained(name: str, images: Images, settings: dict[str, object]) -> tuple[TrainedDetector, list[Seconds]]:
    """A detector trained for some steps, and what each took."""
    marks: list[Seconds] = []
    detector = detector_class(name)(**settings)
    assert isinstance(detector, TrainedDetector)
    detector.fit(images, TrainingRun(progress=lambda *_: marks.append(now()), progress_every=0))
    return detector, per_step(marks)


def plain(detector: TrainedDetector, x: torch.Tensor, steps: int) -> list[Seconds]:
    """A loop around the same losses, and what each step took."""
    size = detector.config.batch_size
    valid = torch.ones(size, 1, 1, dtype=torch.bool)
    for module in detector.modules().values():
        module.train()
    optimizers = detector.optimizers()
    marks: list[Seconds] = []
    for step in range(steps):
        batch = StepBatch(x[torch.arange(step * size, (step + 1) * size) % len(x)], valid, "", step, steps)
        for key, optimizer in optimizers.items():
            losses = detector.training_step(replace(batch, optimizer=key))
            if losses:
                for each in optimizers.values():
                    each.zero_grad(set_to_none=True)
                sum(losses.values()).backward(inputs=optimizer.param_groups[0]["params"])
                optimizer.step()
        marks.append(now())
    return per_step(marks)


def measured(name: str, side: int, options: argparse.Namespace) -> dict[str, object]:
    """The line of a detector at one size."""
    settings: dict[str, object] = {"steps": options.steps}
    settings |= {"batch_size": options.batch} if options.batch else {}
    settings |= dict(word.split("=", 1) for word in options.setting)
    images = Images(options.images, side)
    detector, _ = trained(name, images, settings | {"steps": 1})
    x = detector.prepare(images.x).float().clone()
    seconds: list[Seconds] = []
    loops: list[Seconds] = []
    for _ in range(options.rounds):
        detector, own = trained(name, images, settings)
        seconds += own
        loops += plain(detector, x, options.steps)
    for module in detector.modules().values():
        module.eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        detector.anomaly_map(images.x[:1])
    own, own_cpu = (statistics.median(s[i] for s in seconds) for i in (0, 1))
    loop, loop_cpu = (statistics.median(s[i] for s in loops) for i in (0, 1))
    return {
        "model": name,
        "size": side,
        "batch": detector.config.batch_size,
        "trainer_s_per_step": round(own, 4),
        "loop_s_per_step": round(loop, 4),
        "overhead": round(own / loop - 1, 3),
        "overhead_cpu": round(own_cpu / loop_cpu - 1, 3),
        "images_per_s": round(detector.config.batch_size / own, 1),
        "gflops_forward": round(counter.get_total_flops() / 1e9, 3),
        "weights": sum(p.numel() for module in detector.modules().values() for p in module.parameters()),
        "threads": torch.get_num_threads(),
    }


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("-m", "--model", action="append", default=[])
    parser.add_argument("-s", "--setting", action="append", default=[], help="of the detectors, key=value")
    parser.add_argument("--size", type=int, action="append", default=[], help="pixels of a side; by default its own")
    parser.add_argument("--batch", type=int, default=0, help="images of a step; by default its own number")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    keep_freed_memory()
    for name in options.model or ["fae", "aeu"]:
        for side in options.size or [detector_class(name).input_size]:
            show(measured(name, side, options))


if __name__ == "__main__":
    main()
