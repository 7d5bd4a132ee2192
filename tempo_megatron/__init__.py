"""TEMPO (arXiv 2604.19295): test-time training of reasoning models with a calibrated critic, on Megatron Core."""
