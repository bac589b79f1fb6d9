"""`lsam train` with mini-batches that take SECONDS more in a job's first attempt: python slow_train.py SECONDS ..."""

import os
import sys
import time

from lsam_hpc import cli, preflight

if __name__ == "__main__":
    preflight.start()
    from lsam_hpc.train.batches import Batches

    seconds, usual = float(sys.argv[1]), Batches.__next__

    def slow(self):
        time.sleep(seconds)
        return usual(self)

    if "SLURM_RESTART_COUNT" not in os.environ:
        Batches.__next__ = slow
    sys.exit(cli.main(["train", *sys.argv[2:]]))
