"""torch's compiler is imported only when it is used."""

import sys

from tests.helpers.mpis import run

PROGRAM = """
import inspect, os, sys
import torch
from lsam_hpc.train.compiler import postpone_compiler

def loaded():
    return sum(name.startswith("torch._dynamo") for name in sys.modules)

postpone_compiler()
model = torch.nn.Linear(2, 2)
opt = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

def step():
    before = model.bias.clone()
    opt.zero_grad()
    model(torch.ones(3, 2)).sum().backward()
    opt.step()
    assert not torch.equal(model.bias, before)

step()
torch.optim.AdamW(model.parameters()).step()
opt.load_state_dict(opt.state_dict())
inspect.getmodule(step)  # looks at every module
assert loaded() == 1, loaded()
other = os.fork()
if other:
    compiled = torch.compile(model, backend="eager")
    torch.testing.assert_close(compiled(torch.ones(3, 2)), model(torch.ones(3, 2)))
else:
    import torch._dynamo.config  # imports the parent module too
assert loaded() > 50
assert torch._dynamo is sys.modules["torch._dynamo"]
assert torch._dynamo.__file__.endswith("_dynamo/__init__.py")
step()
opt.add_param_group({"params": [torch.zeros(2, requires_grad=True)]})
torch.compile(opt.step, backend="eager")()
if other:
    assert os.waitpid(other, 0)[1] == 0
    print("done")
"""


def test_the_compiler_is_imported_after_optimizer_steps():
    done = run([sys.executable, "-c", PROGRAM], timeout=120)
    assert done.stdout == "done\n", done.stderr
