"""Python commands as forks of one process that has imported torch, Megatron Core and vLLM.

Such a command spends 10 to 15 seconds of CPU time on these imports. `server` pays them once for the whole test run;
`client` takes the place of `python` and asks the server for a fork.
"""
