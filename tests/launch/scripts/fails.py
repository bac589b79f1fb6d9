import sys
import time

if "--drop-in" in sys.argv:
    import lsam_hpc.horovod as hvd
else:
    import horovod.torch as hvd
import torch

hvd.init()
model = torch.nn.Linear(2, 1)
optimizer = hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), model.named_parameters())
for step in range(100):
    optimizer.zero_grad()
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    if step == 5 and hvd.rank() == 1:
        print(f"failing at {time.time()}", flush=True)
        raise RuntimeError("rank 1 on purpose")
    if step == 10:
        hvd.allreduce(torch.zeros(1), name="wait")
