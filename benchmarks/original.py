"""`make bench-original` (GPU): the whole preset `original` through Ray Tune: 11 distinct trials x 5,000 steps, evaluations, texts, report.

    python -m benchmarks.original [--rehearse] [--set --data.path tinystories.txt]

Wall seconds against three minutes on one H200, with where they went; figures go to results/original.csv. Texts are downloaded or, with
--data.path, read from a file; preparing them before the clock starts is part of this benchmark.
"""

import argparse
import sys
from pathlib import Path

import torch

from benchmarks.machine import describe, write_csv
from benchmarks.study import run_ours
from study import command
from study.data import corpus as data

BAR_S = 180
REHEARSAL = ["smoke", "--device", "cpu", "--seeds", "1", "--train.n-steps", "40", "--train.eval-interval", "20"]


def main() -> None:
    """Run, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rehearse", action="store_true", help="a short `smoke` on the CPU: shows that the code runs, measures nothing")
    parser.add_argument("--side-by-side", type=int, default=0, help="bundles that train at once on this machine; default: all of them")
    parser.add_argument("--set", nargs=argparse.REMAINDER, default=[], help="flags of study.run, last")
    args = parser.parse_args()
    if not args.rehearse and not torch.cuda.is_available():
        parser.error("there is no GPU on this machine; add --rehearse to run a short study on the CPU")
    argv = [*(REHEARSAL if args.rehearse else ["original"]), *args.set]
    data.prepare(command.parse(argv).study.data)
    wall = run_ours(argv, args.side_by_side or sys.maxsize)
    print(describe())
    print("  ".join(f"{key}={value:.4g}" for key, value in vars(wall).items()))
    if args.rehearse:
        print("rehearsed on a CPU: the code runs, the figures mean nothing and are not kept")
        return
    row = {"study": " ".join(argv), "gpu": torch.cuda.get_device_name(), **vars(wall), "bar_s": BAR_S, "passed": wall.wall_s <= BAR_S}
    write_csv(Path(__file__).parent / "results" / "original.csv", [row])


if __name__ == "__main__":
    main()
