"""Share of real normals that is flagged, over random splits of normals into calibration and test.

    python benchmarks/false_alarm_rate.py MODEL_DIR NORMALS [--splits 200] [--rate 0.05] [--patient-pattern REGEX]

NORMALS are normal images that MODEL_DIR was not fitted on. They are scored once; each split takes half of the patients
to calibrate and asks how many images of the others are flagged.
"""

import numpy as np
from shared import command_line

from anomalib_med import load
from anomalib_med.calibration import Calibration, is_flagged


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("model")
    parser.add_argument("normals")
    parser.add_argument("--splits", type=int, default=200)
    parser.add_argument("--rate", type=float, default=0.05)
    parser.add_argument("--share", type=float, default=0.5, help="of the patients, to calibrate")
    parser.add_argument("--patient-pattern")
    options = parser.parse_args()
    results = [r for r in load(options.model).score(options.normals, patient_pattern=options.patient_pattern) if r.ok]
    patients = sorted({r.patient for r in results})
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(options.splits):
        chosen = set(rng.permutation(patients)[: round(options.share * len(patients))])
        known = [r for r in results if r.patient in chosen]
        calibration = Calibration.of([r.score for r in known], [r.patient for r in known])
        shares.append(
            np.mean(
                [is_flagged(calibration.p_value(r.score), options.rate) for r in results if r.patient not in chosen]
            )
        )
    print(
        f"{len(results)} normals of {len(patients)} patients, {options.splits} splits: at a false-alarm rate of "
        f"{options.rate:.1%} flagged {np.mean(shares):.2%} on average (sd between splits {np.std(shares):.2%})"
    )


if __name__ == "__main__":
    main()
