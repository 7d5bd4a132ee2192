"""How responses are graded."""

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
        "worker processes of each process that grades; 0: its share of this machine's cores, at most 8",
        at_least=0,
    )
    time_limit_seconds: float = setting(
        10.0, "seconds that grading one response may take; past them it is wrong", above=0
    )
    group_time_limit_seconds: float = setting(
        30.0, "seconds that clustering the responses to one prompt may take", above=0
    )
    memory_limit_gib: float = setting(4.0, "GiB of memory that one worker may hold", above=0)
    cluster_by: ClusterBy = setting(ClusterBy.rule, "what says that two answers are equivalent: rule, judge")
    judge_url: str = setting("", "OpenAI-compatible address of the judge model, such as http://host:8000/v1")
    judge_model: str = setting("", "name of the judge model at that address")
    judge_concurrency: int = setting(16, "questions to the judge at a time, from each process that grades", at_least=1)
    judge_time_limit_seconds: float = setting(120.0, "seconds to wait for one verdict before asking again", above=0)
    judge_retries: int = setting(
        5, "times that a question to the judge is asked again, after growing pauses", at_least=0
    )
