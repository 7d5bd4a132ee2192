"""Several ranks of `tempo doctor`; the environment of each makes it play another node. They are forked from one
process, which imports torch once."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys

from tempo_megatron import cli
from tempo_megatron.preflight import command  # noqa: F401  (imported before the fork)
from tempo_megatron.utils.ports import free_ports


def rank(environment: dict[str, str], arguments: list[str]) -> None:
    os.environ |= environment
    sys.exit(cli.main(["doctor", *arguments]))


def main() -> None:
    """Print the exit code of each rank, as JSON in the last line."""
    environments, *arguments = sys.argv[1:]
    port = str(free_ports()[0])
    ranks = [
        multiprocessing.get_context("fork").Process(
            target=rank, args=({**environment, "MASTER_ADDR": "localhost", "MASTER_PORT": port}, arguments)
        )
        for environment in json.loads(environments)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    print(json.dumps([process.exitcode for process in ranks]))


if __name__ == "__main__":
    main()
