"""In the shape of Horovod's pytorch_synthetic_benchmark.py."""

import argparse
import timeit

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - as in Horovod's examples
from horovod.torch import Compression, DistributedOptimizer, broadcast_optimizer_state, broadcast_parameters, init
from horovod.torch import rank as hvd_rank
from horovod.torch import size as hvd_size
from torch import nn, optim

parser = argparse.ArgumentParser()
parser.add_argument("--batch-size", type=int, default=16)
parser.add_argument("--num-warmup-batches", type=int, default=3)
parser.add_argument("--num-batches-per-iter", type=int, default=5)
parser.add_argument("--num-iters", type=int, default=3)
parser.add_argument("--fp16-allreduce", action="store_true")
parser.add_argument("--amp", action="store_true")
args = parser.parse_args()

init()
torch.manual_seed(hvd_rank())
torch.set_num_threads(1)
model = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 15 * 15, 10))
optimizer = optim.SGD(model.parameters(), lr=0.01 * hvd_size())
optimizer = DistributedOptimizer(
    optimizer,
    named_parameters=model.named_parameters(),
    compression=Compression.fp16 if args.fp16_allreduce else Compression.none,
)
broadcast_parameters(model.state_dict(), root_rank=0)
broadcast_optimizer_state(optimizer, root_rank=0)
data, target = torch.randn(args.batch_size, 3, 32, 32), torch.randint(10, (args.batch_size,))
scaler = torch.amp.GradScaler("cpu", enabled=args.amp)


def benchmark_step():
    optimizer.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=args.amp):
        output = model(data)
        loss = F.cross_entropy(output.float(), target)
    scaler.scale(loss).backward()
    optimizer.synchronize()
    scaler.unscale_(optimizer)
    with optimizer.skip_synchronize():
        scaler.step(optimizer)
    scaler.update()
    losses.append(loss.item())


def log(s):
    if hvd_rank() == 0:
        print(s)


losses = []
timeit.timeit(benchmark_step, number=args.num_warmup_batches)
img_secs = []
for x in range(args.num_iters):
    time = timeit.timeit(benchmark_step, number=args.num_batches_per_iter)
    img_secs.append(args.batch_size * args.num_batches_per_iter / time)
    log(f"Iter #{x}: {img_secs[-1]:.1f} img/sec per process")
log(f"Total img/sec on {hvd_size()} processes: {hvd_size() * np.mean(img_secs):.1f}")
log(f"loss went down: {losses[-1] < losses[0]}")
