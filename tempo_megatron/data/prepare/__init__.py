"""Public sources as normalized JSONL, and how much of the evaluation the labeled ones have already seen."""
