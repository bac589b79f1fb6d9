"""`lsam completion SHELL`: print a script that completes verbs, options and their values."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from lsam_hpc.shell.words import Verb, verbs
from lsam_hpc.util.arguments import Parser


def main(argv: Sequence[str]) -> int:
    """Print the script; return the exit code."""
    parser = Parser(
        prog="lsam completion",
        description="Print a script with which a shell completes verbs, options and their values.",
        epilog="bash: lsam completion bash > ~/.local/share/bash-completion/completions/lsam; "
        "zsh: lsam completion zsh > DIR/_lsam, DIR in $fpath; "
        "fish: lsam completion fish > ~/.config/fish/completions/lsam.fish",
    )
    parser.add_argument("shell", choices=SHELLS, metavar="SHELL", help=f"one of {', '.join(SHELLS)}")
    print(SHELLS[parser.parse_args(argv).shell](verbs()), end="")
    return 0


def bash(known: Sequence[Verb]) -> str:
    """Return the script for bash."""
    values, flags, firsts = [], [], []
    for verb in known:
        for option in verb.options:
            if option.choices:
                cases = "|".join(f"{verb.name}:{flag}" for flag in option.flags)
                values.append(f"    {cases}) words={shlex.quote(' '.join(option.choices))} ;;")
            elif option.takes:
                cases = "|".join(f"{verb.name}:{flag}" for flag in option.flags)
                values.append(f"    {cases}) return ;;")
        flags.append(f"    {verb.name}) words={shlex.quote(' '.join(_flags(verb)))} ;;")
        if verb.choices:
            firsts.append(f"    {verb.name}) words={shlex.quote(' '.join(verb.choices))} ;;")
    names = shlex.quote(" ".join([*(verb.name for verb in known), "--help", "--version"]))
    lines = [
        "# Completion of lsam for bash, made by lsam completion bash. Where no word fits, bash completes files.",
        "_lsam() {",
        '  local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} words="" word',
        "  COMPREPLY=()",
        '  if [[ $cur == "=" ]]; then cur=""; elif [[ $prev == "=" ]]; then prev=${COMP_WORDS[COMP_CWORD-2]}; fi',
        "  if ((COMP_CWORD == 1)); then",
        f'    COMPREPLY=($(compgen -W {names} -- "$cur"))',
        "    return",
        "  fi",
        '  for word in "${COMP_WORDS[@]:2:COMP_CWORD-2}"; do [[ $word == -- ]] && return; done  # another program',
        "  case ${COMP_WORDS[1]}:$prev in",
        *values,
        "  esac",
        "  if [[ -z $words && $cur == -* ]]; then case ${COMP_WORDS[1]} in",
        *flags,
        "  esac; elif [[ -z $words ]]; then case ${COMP_WORDS[1]} in",
        *firsts,
        "  esac; fi",
        '  COMPREPLY=($(compgen -W "$words" -- "$cur"))',
        "}",
        "complete -o bashdefault -o default -F _lsam lsam",
    ]
    return "\n".join(lines) + "\n"


def zsh(known: Sequence[Verb]) -> str:
    """Return the script for zsh."""
    described = " ".join(_described(verb.name, verb.help) for verb in known)
    lines = [
        "#compdef lsam",
        "# Completion of lsam for zsh, made by lsam completion zsh.",
        "_lsam() {",
        "  local -a described",
        "  if (( CURRENT == 2 )); then",
        f"    described=({described})",
        "    _describe verb described",
        "    return",
        "  fi",
        "  if (( ${words[(i)--]} < CURRENT )); then _normal; return; fi",
        "  case $words[2] in",
    ]
    for verb in known:
        lines += [f"  {verb.name})", "    case $words[CURRENT-1] in"]
        for option in verb.options:
            if option.takes:
                action = f"compadd -- {shlex.join(option.choices)}" if option.choices else "_files"
                lines.append(f"    {'|'.join(option.flags)}) {action}; return ;;")
        lines += [
            "    esac",
            "    if [[ $PREFIX == -* ]]; then",
            "      described=("
            + " ".join(_described(flag, option.help) for option in verb.options for flag in option.flags)
            + ")",
            "      _describe option described",
            "      return",
            "    fi",
            *([f"    compadd -- {shlex.join(verb.choices)}"] if verb.choices else []),
            "    ;;",
        ]
    lines += [
        "  esac",
        "  _files",
        "}",
        'if [[ $funcstack[1] == _lsam ]]; then _lsam "$@"; else compdef _lsam lsam; fi',
    ]
    return "\n".join(lines) + "\n"


def fish(known: Sequence[Verb]) -> str:
    """Return the script for fish."""
    lines = ["# Completion of lsam for fish, made by lsam completion fish."]
    for verb in known:
        lines.append(f"complete -c lsam -n __fish_use_subcommand -f -a {verb.name} -d {_quoted(_first(verb.help))}")
    for verb in known:
        only = f"complete -c lsam -n '__fish_seen_subcommand_from {verb.name}'"
        if verb.choices:
            lines.append(f"{only} -f -a {_quoted(' '.join(verb.choices))}")
        for option in verb.options:
            names = " ".join(f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}" for flag in option.flags)
            value = f" -x -a {_quoted(' '.join(option.choices))}" if option.choices else " -r" if option.takes else ""
            lines.append(f"{only} {names}{value} -d {_quoted(_first(option.help))}")
    return "\n".join(lines) + "\n"


SHELLS = {"bash": bash, "zsh": zsh, "fish": fish}


def _flags(verb: Verb) -> list[str]:
    return [flag for option in verb.options for flag in option.flags]


def _first(text: str) -> str:
    return text.partition(";")[0].partition(" (default")[0]


def _described(word: str, text: str) -> str:
    return shlex.quote(f"{word}:{_first(text)}")


def _quoted(text: str) -> str:
    """Return a text in fish's single quotes, in which only the backslash and the quote are special."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
