"""Golden scripts: plain-text conversations with what they must give rise to.

A script is a comment on what it proves, then blocks separated by blank lines: commands (several on a line with `;`), a
line of four dashes, and the expected trace. A block without dashes is set-up: its trace is of no interest. Comments may
stand before any block. With KVNODE_GOLDEN_REWRITE=1 the traces are written instead of compared; read the diff as code.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

DASHES = "----"

Interpret = Callable[[str], list[str]]
"""Executes one command and returns its trace."""


@dataclass
class Block:
    comments: list[str] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    expected: list[str] | None = None  # None: set-up
    line: int = 0

    def text(self) -> str:
        trace = [] if self.expected is None else [DASHES, *self.expected]
        return "\n".join([*self.comments, *self.commands, *trace]) + "\n"


def parse(text: str) -> list[Block]:
    """The blocks of a script; the first one must begin with a comment."""
    blocks: list[Block] = []
    lines: list[str] = []
    for number, line in enumerate([*text.splitlines(), ""], 1):
        if line.strip():
            lines.append(line.rstrip())
        elif lines:
            blocks.append(_block(lines, number - len(lines)))
            lines = []
    assert blocks, "an empty script"
    assert blocks[0].comments, "a script begins with a comment on what it proves"
    return blocks


def _block(lines: list[str], number: int) -> Block:
    block = Block(line=number)
    for line in lines:
        if block.expected is not None:
            block.expected.append(line)
        elif line == DASHES:
            block.expected = []
        elif line.startswith("#"):
            assert not block.commands, f"line {number}: a comment stands before its block's commands"
            block.comments.append(line)
        else:
            block.commands.append(line)
    return block


def run_script(path: Path, interpret: Interpret) -> None:
    """Run a script and compare each block's trace, or rewrite them all."""
    blocks = parse(path.read_text(encoding="utf-8"))
    is_rewrite = bool(os.environ.get("KVNODE_GOLDEN_REWRITE"))
    for block in blocks:
        trace = _run(path, block, interpret)
        if block.expected is None:
            continue
        if is_rewrite:
            block.expected = trace
        assert trace == block.expected, f"{path.name}, block at line {block.line}"
    if is_rewrite:
        path.write_text("\n".join(block.text() for block in blocks), encoding="utf-8")


def _run(path: Path, block: Block, interpret: Interpret) -> list[str]:
    trace: list[str] = []
    for line in block.commands:
        for command in line.split(";"):
            try:
                trace += interpret(command.strip())
            except Exception as error:
                error.add_note(f"{path.name}, block at line {block.line}: {command.strip()}")
                raise
    return trace
