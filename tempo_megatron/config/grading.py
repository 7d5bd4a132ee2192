"""Settings of grading."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from tempo_megatron.config.fields import setting


class ClusterBy(StrEnum):
    rule = "rule"
    judge = "judge"


@dataclass
class GradingConfig:
    workers: int = setting(
        0,
        "worker processes of each rank that grades; 0: the rank's share of this machine's cores, at most 8",
        at_least=0,
    )
    time_limit_seconds: float = setting(
        10.0, "seconds that grading one response may take; a response that takes longer is wrong", above=0
    )
    group_time_limit_seconds: float = setting(
        30.0, "seconds that clustering the responses to one prompt may take", above=0
    )
    memory_limit_gib: float = setting(4.0, "GiB of memory that one worker may use", above=0)
    cluster_by: ClusterBy = setting(ClusterBy.rule, "what decides whether two answers are equivalent: rule or judge")
    judge_url: str = setting("", "OpenAI-compatible address of the judge model, such as http://host:8000/v1")
    judge_model: str = setting("", "name of the judge model at that address")
    judge_concurrency: int = setting(16, "concurrent questions to the judge from each rank that grades", at_least=1)
    judge_time_limit_seconds: float = setting(
        120.0, "seconds to wait for a verdict of the judge before asking again", above=0
    )
    judge_retries: int = setting(
        5, "how often a failed question to the judge is asked again, after growing pauses", at_least=0
    )
