"""Writes the table of all options: `python -m lsam_hpc.options.page > docs/reference/options.md`."""

from __future__ import annotations

import typing

from lsam_hpc.options.ascent import AscentOptions
from lsam_hpc.options.communication import CommunicationOptions
from lsam_hpc.options.coupling import CouplingOptions, StartOptions, StepOptions
from lsam_hpc.options.logging import LoggingOptions
from lsam_hpc.options.option import choices, fields
from lsam_hpc.options.recipes import RECIPES
from lsam_hpc.options.training import TrainingOptions

HEAD = """\
# Options

Every option has one owner, a dataclass in `lsam_hpc/options/`, and the same name, default and meaning everywhere: as a
keyword of `LSAM` (`period=8`), a flag (`--period 8`), a key of a TOML or YAML file (`period = 8`), and in Horovod
scripts as a keyword of `DistributedOptimizer` or a variable (`LSAM_PERIOD=8`). `lsam train` takes all of them but
`synchronous_steps`; `LSAM` those of the ascent, the coupling, the communication, the count of steps and the start;
Horovod scripts all but those of training, of the count of steps and of the start.

Made by `python -m lsam_hpc.options.page > docs/reference/options.md`.
"""
CONCERNS = (
    AscentOptions,
    CouplingOptions,
    StepOptions,
    StartOptions,
    CommunicationOptions,
    LoggingOptions,
    TrainingOptions,
)


def page() -> str:
    """Return the page in Markdown."""
    text = HEAD + "\nRecipes set several options of `lsam train` at once; a file and flags override them:\n\n"
    for name, options in RECIPES.items():
        text += f"* `--recipe {name}`: {', '.join(f'{key} {value}' for key, value in options.items())}\n"
    for concern in CONCERNS:
        hints = typing.get_type_hints(concern)
        title = (concern.__doc__ or "").splitlines()[0].rstrip(".")
        text += f"\n## {title}\n| option | default | values | meaning |\n|---|---|---|---|\n"
        for item in fields(concern):
            values = ", ".join(map(str, choices(hints[item.name]))) or str(item.metadata["range"] or "")
            default = "" if item.default is None else f"`{item.default}`"
            text += f"| `{item.name}` | {default} | {values} | {item.metadata['help'].replace('|', chr(92) + '|')} |\n"
    return text


if __name__ == "__main__":
    print(page(), end="")
