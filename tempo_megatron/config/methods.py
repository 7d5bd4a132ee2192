"""Settings that one method alone reads. Their defaults are those of its paper."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from tempo_megatron.config.fields import setting


class Comparison(StrEnum):
    centered = "centered"
    mean = "mean"


@dataclass
class ScrlConfig:
    positive_share: float = setting(
        0.375, "smallest share of the votes with which the most frequent answer is a positive label", above=0, at_most=1
    )
    margin: float = setting(
        0.125, "this answer's lead over the next one, as a share of the votes, must be larger", at_least=0, below=1
    )
    negative_share: float = setting(
        0.125,
        "an answer with a smaller share of the votes is a negative label if its responses are uncertain; 0: no "
        "negative labels",
        at_least=0,
        at_most=1,
    )
    entropy_penalty: float = setting(
        0.1, "reward that an answer loses for each nat of entropy above the prompt's mean", at_least=0
    )


@dataclass
class TrapoConfig:
    warm_up_passes: int = setting(
        8, "pass rates that an unlabeled question and all reliable ones must have before they are compared", at_least=1
    )
    top_share: float = setting(
        0.1, "share of a batch's unlabeled questions, the most similar ones, that train; 0: none", at_least=0, at_most=1
    )
    similarity: float = setting(
        0.4, "unlabeled questions that are at least so similar to reliable ones train too", at_least=-1
    )
    comparison: Comparison = setting(
        Comparison.centered,
        "similarity of pass rates: centered (mean correlation with each reliable question, as in the authors' code), "
        "mean (cosine with the mean of the reliable ones, as in the paper)",
    )
