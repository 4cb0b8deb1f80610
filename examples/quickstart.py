"""Generated chest phantoms, a detector, scores and a report.

python examples/quickstart.py [FOLDER]
"""

import argparse
from pathlib import Path

from anomalib_med import TwoView, fit, load, score_to_folder
from anomalib_med.phantoms import write_chest_dataset


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("demo/quickstart"), help="for all that is written")
    options = parser.parse_args()
    data, saved = options.folder / "data", options.folder / "model"

    # 60 healthy phantoms to learn from, 5 healthy and 8 with a planted lesion to score.
    write_chest_dataset(data, train=60, normal=5, abnormal=8)

    # 20 of the 60 are held out to calibrate: a false-alarm rate of 5 % needs at least 19.
    model = fit(TwoView(), data / "train" / "normal", calibration=1 / 3)
    model.save(saved, overwrite=True)

    images = f"{data}/test/*normal/*.png"
    scores = load(saved).score(images, false_alarm_rate=0.05)
    for result in sorted(scores, key=lambda result: -result.score):
        flag = "flagged" if result.flagged else ""
        print(f"{result.id:<20} score {result.score:6.3f}   p {result.p_value:.3f}   {flag}".rstrip())

    first = scores.maps[0]
    print(f"map of {scores.ids[0]}: {first.shape[0]} x {first.shape[1]}, {first.min():.2f} to {first.max():.2f}")
    print("table: ", scores.to_csv(options.folder / "scores.csv"))
    summary = score_to_folder(model, images, options.folder / "results", report=True, overwrite=True)
    print("report:", summary.report)


if __name__ == "__main__":
    main()
