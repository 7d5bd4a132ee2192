"""docs/metrics.md names the metrics that the code writes, and no others."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import Any

import torch

from tempo_megatron.algorithms.rollout_correction import correction_metrics, rollout_correction
from tempo_megatron.config import Config
from tempo_megatron.data.types import Prompt, Rollout
from tempo_megatron.megatron.expert_load import AUX_LOSS, shares_of_tokens
from tempo_megatron.metrics.alarms import arithmetic_alarms
from tempo_megatron.metrics.evidence import evidence_terms
from tempo_megatron.metrics.question_metrics import Samples, mean_over_questions, question_metrics
from tempo_megatron.training.phases.critic_metrics import value_metrics
from tempo_megatron.training.phases.evaluate import evaluation_metrics
from tempo_megatron.training.phases.select_checkpoint import Selection
from tempo_megatron.training.residency import DeviceResidency
from tests.conftest import ROOT
from tests.metrics_page import PAGE, documented_keys, literal_parts, undocumented

PACKAGE = ROOT / "tempo_megatron"
SOURCES = "\n".join(path.read_text() for path in PACKAGE.rglob("*.py") if PACKAGE / "report" not in path.parents)
"""The code that writes metrics. The report reads them, and would keep a name that nothing writes any more."""
GROUPS = "critic|policy|data|grading|generation|rollouts|evidence|warm_start|selection|memory|seconds"


def keys_of_parts() -> set[str]:
    """Return the keys of metrics whose names are put together from parts."""
    prompt = Prompt("p", (1,), "s", "exact", None)
    rollouts = [Rollout(prompt, number, (1, 2), (0.0, 0.0), "stop") for number in range(2)]
    critic = value_metrics(torch.rand(2, 3), torch.tensor([[False, True, True]] * 2), rollouts, [0.0, 1.0])
    samples = Samples([0.0, 1.0], [0, 1], ["a b c d e"] * 2, [3, 3], [False, False])
    figures = mean_over_questions([question_metrics(samples, average_at=2, k=[2], ngrams=[4])])
    keys = set(evaluation_metrics({"unlabeled": figures, "held_out/a source": figures}))
    for group in ("critic", "calibration/before", "calibration/after"):
        keys |= {f"{group}/{name}" for name in critic}
    keys |= {f"evidence/{name}" for name in evidence_terms([[0.5]])}
    keys |= {f"selection/{name}" for name in asdict(Selection())}
    log_probs, mask = torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool)
    for kind in ("token", "sequence", "geometric_mean"):
        correction = rollout_correction(log_probs, log_probs, mask, weight=kind, reject="any_token")
        keys |= {f"policy/{name}" for name in correction_metrics(correction, mask)}
    load = {AUX_LOSS, *shares_of_tokens(torch.ones(1, 2), 1)}
    keys |= {f"{model}/{name}" for model in ("critic", "policy") for name in load}
    residency = DeviceResidency(torch.device("cpu"))
    with residency.phase("grade"):
        pass
    keys |= set(residency.take_usage())
    causes = {"generation/exp_log_prob_difference_mean": 1.0, "policy/first_ratio_deviation": 0.0}
    return keys | set(causes) | set(arithmetic_alarms(causes, Config())[0])


def test_every_metric_of_the_code_is_on_the_page() -> None:
    """End-to-end tests compare the page with whole runs of every method, too."""
    literals = set(re.findall(rf'"((?:{GROUPS})/[a-z_]+)"', SOURCES))
    assert len(literals) > 25
    keys = keys_of_parts()
    assert len(keys) > 50
    assert undocumented(literals | keys) == []


def test_every_metric_on_the_page_is_in_the_code() -> None:
    """A metric that is renamed or removed leaves the page as well."""
    names = "\n".join([SOURCES, *keys_of_parts()])
    missing = [key for key in documented_keys() if not all(part in names for part in literal_parts(key))]
    written = keys_of_parts() | set(re.findall(rf'"((?:{GROUPS})/[a-z_]+)"', SOURCES))
    grouped = [key for key in documented_keys() if re.match(r"(critic|policy|data|grading|evidence)/[a-z_]+$", key)]
    assert missing == [] and len(grouped) > 30
    assert sorted(set(grouped) - written) == []


def test_the_page_lists_the_phases() -> None:
    (sentence,) = re.findall(r"The phases are (.*?)\. ", PAGE.read_text(), re.DOTALL)
    used: set[Any] = set(re.findall(r'phase\("(\w+)"\)', SOURCES))
    assert set(re.findall(r"`(\w+)`", sentence)) == used
