"""In the shape of Horovod's pytorch_synthetic_benchmark_elastic.py: a state that is committed and restored."""

import horovod.torch as hvd
import torch
import torch.nn.functional as F  # noqa: N812 - as in Horovod's examples
from torch import nn

hvd.init()
torch.manual_seed(hvd.rank())
torch.set_num_threads(1)
model = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 5))
lr = 0.05
optimizer = torch.optim.SGD(model.parameters(), lr=lr * hvd.size())
optimizer = hvd.DistributedOptimizer(optimizer, named_parameters=model.named_parameters())
data = torch.randn(64, 20)
target = data[:, :5].argmax(1)


@hvd.elastic.run
def train(state):
    while state.batch < 60:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(data), target)
        loss.backward()
        optimizer.step()
        if state.batch == 30 and not state.failed:
            state.failed = True
            state.commit()
            for p in model.parameters():
                p.data.fill_(1000.0)
            state.restore()
            state.sync()
        state.batch += 1
        if state.batch % 10 == 0:
            state.commit()
    return loss.item()


def on_state_reset():
    for param_group in optimizer.param_groups:
        param_group["lr"] = lr * hvd.size()


state = hvd.elastic.TorchState(model, optimizer, batch=0, failed=False)
state.register_reset_callbacks([on_state_reset])
loss = hvd.allreduce(torch.tensor(train(state)), name="loss").item()
if hvd.rank() == 0:
    print(f"steps {state.batch}, loss {loss:.4f}")
hvd.shutdown()
