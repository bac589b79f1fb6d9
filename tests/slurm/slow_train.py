"""`lsam train` that is slow in a job's first attempt: python slow_train.py AFTER SECONDS ...

A rank's mini-batches after the first AFTER take SECONDS more.
"""

import itertools
import os
import sys
import time

from lsam_hpc import cli, preflight

if __name__ == "__main__":
    preflight.start()
    from lsam_hpc.train.batches import Batches

    after, seconds, usual = int(sys.argv[1]), float(sys.argv[2]), Batches.__next__
    taken = itertools.count()

    def slow(self):
        if next(taken) >= after:
            time.sleep(seconds)
        return usual(self)

    if "SLURM_RESTART_COUNT" not in os.environ:
        Batches.__next__ = slow
    sys.exit(cli.main(["train", *sys.argv[3:]]))
