"""Checks that `run_dir` is the same directory on all nodes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tempo_megatron.preflight.findings import Finding, NodeVerdict


@dataclass(frozen=True)
class SharedDirectoryProbe:
    """Files that nodes write for each other in `run_dir`, or in its nearest existing parent. All are removed.

    Each node resolves `run_dir` by its own settings, so that a path which means another place elsewhere is detected.
    """

    run_dir: str
    token: str
    levels: int
    """How many of run_dir's last parts do not exist yet on the first node."""

    @staticmethod
    def on_first_node(run_dir: str, token: str) -> SharedDirectoryProbe:
        """Return the first node's probe, which uses the nearest directory that exists."""
        path = Path(run_dir).absolute()
        levels = next(level for level, directory in enumerate([path, *path.parents]) if directory.is_dir())
        return SharedDirectoryProbe(run_dir, token, levels)

    @property
    def directory(self) -> Path:
        path = Path(self.run_dir).absolute()
        return [path, *path.parents][self.levels]

    def write(self, node: str) -> None:
        """Write this node's file. Raises OSError."""
        self._file(node).write_text(self.token)

    def sees(self, node: str) -> bool:
        """Return whether the file of `node` can be read here."""
        try:
            return self._file(node).read_text() == self.token
        except OSError:
            return False

    def remove(self, node: str) -> None:
        self._file(node).unlink(missing_ok=True)

    def _file(self, node: str) -> Path:
        return self.directory / f".preflight-{self.token}-{node}"


def answer_probe(run_dir: str, node: str, first: str, token: str, levels: int) -> dict[str, Any]:
    """Look for the first node's file and, if it is here, write this node's file. Returns the directory and the result.

    `first` is the name of the first node.
    """
    probe = SharedDirectoryProbe(run_dir, token, levels)
    seen = probe.sees(first)
    if seen and node != first:
        probe.write(node)
    return {"directory": str(probe.directory), "seen": seen}


def check_shared_directory(
    answers: Mapping[str, Mapping[str, Any]], errors: Mapping[str, str], seen_by_first: set[str]
) -> Iterator[Finding]:
    """Yield one finding per node. `answers` are those of `answer_probe` by node, `errors` the nodes' exceptions.

    `seen_by_first` are the nodes whose files the first node sees.
    """
    remedy = "mount the same file system at the same path on all nodes (container: mount it there too), writable"
    for node, error in errors.items():
        yield Finding("shared directory", node, NodeVerdict.bad, f"run_dir: {error}", remedy)
    for node, answer in answers.items():
        directory = answer["directory"]
        if not answer["seen"]:
            message = f"{directory} is not the first node's: a file that it wrote there is not seen"
            yield Finding("shared directory", node, NodeVerdict.bad, message, remedy)
        elif node not in seen_by_first:
            message = f"a file written to {directory} is not seen by the first node"
            yield Finding("shared directory", node, NodeVerdict.bad, message, remedy)
        else:
            yield Finding("shared directory", node, NodeVerdict.good, f"{directory} is the same")
