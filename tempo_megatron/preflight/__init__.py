"""Whether these nodes can train: `tempo doctor`, and the first seconds of `tempo train`.

Every node gathers facts about itself (`gather`, `gpus`), the first rank puts questions to all (`meeting`, `exchange`,
`bandwidth`), and small functions over the facts say what is wrong (`device_checks`, `node_checks`, `room`). A report
names each bad node, the reason and what to do.
"""
