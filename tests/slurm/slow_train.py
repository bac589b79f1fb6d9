"""`lsam train`, slowed down in a job's first attempt: python slow_train.py AFTER SECONDS ...

Each mini-batch of a rank after the first AFTER takes SECONDS longer.
"""

import itertools
import os
import sys
import time

from lsam_hpc import cli
from lsam_hpc.util import preflight

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
