import json
import pickle
import sys
import threading

import horovod.torch as hvd


class Thing:
    pass


if __name__ == "__main__":
    print(
        json.dumps(
            {
                "name": __name__,
                "file": __file__,
                "argv": sys.argv,
                "path": sys.path[0],
                "spec": __spec__ is None,
                "main": sys.modules["__main__"].__dict__ is globals(),
                "pickled": type(pickle.loads(pickle.dumps(Thing()))) is Thing,  # noqa: S301
                "names": sorted(k for k in globals() if k.startswith("__")),
                "threads": threading.active_count(),
                "size": callable(hvd.size),
            }
        )
    )
    if len(sys.argv) > 1 and sys.argv[1] == "raise":
        raise ValueError("on purpose")
    if len(sys.argv) > 1:
        sys.exit(int(sys.argv[1]))
