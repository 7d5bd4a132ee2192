"""`tempo doctor --numerics` compares the same operations of generator and policy."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from tests.parallel.launcher import ROOT, run_ranks
from tests.warm.start import warm_python

WORKER = Path(__file__).with_name("numerics_worker.py")


def test_generator_and_policy_record_the_same_operations_in_the_same_order_of_channels(recipe: Path) -> None:
    """The two name modules differently, and order the channels of a product differently. Each operation's outputs are
    close, for prompts and for sampled tokens, on two tensor-parallel ranks that split activations over tokens."""
    run_ranks(WORKER, 2, recipe, "numerics=exact", "parallel.sequence_parallel=true")


def test_the_command_names_token_layer_and_operation(recipe: Path, warm_torchrun: None) -> None:
    """On CPUs the two differ in last bits, so that the command has something to report."""
    settings = ["parallel.tensor_model_parallel_size=1", "parallel.processes_per_node=1"]
    command = [*warm_python(), "-m", "tempo_megatron.cli", "doctor", "--numerics", str(recipe), *settings]
    completed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert completed.returncode == 1, completed.stderr
    line = completed.stdout.splitlines()[0]
    assert re.match(r"prompt 0 of 3 tokens: token \d+, layer \d+, .+: \d+ of \d+ entries differ; the first is ", line)
