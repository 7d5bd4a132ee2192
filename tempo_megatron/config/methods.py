"""Settings that one method alone reads. Their defaults are those of its paper."""

from __future__ import annotations

from dataclasses import dataclass

from tempo_megatron.config.fields import setting


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
