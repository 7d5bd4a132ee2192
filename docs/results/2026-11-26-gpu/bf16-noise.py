"""How far log-probs in bf16 are from fp32 for SmolLM2-135M-Instruct, whose 4-bit weights are taken as bf16: two of
transformers' attentions, and fp32 with one kind of rounding to bf16 at a time. Logits are in fp32 throughout. On a CPU:

OMP_NUM_THREADS=1 PYTHONPATH=$PWD python docs/results/2026-11-26-gpu/bf16-noise.py DIRECTORY
"""

import copy
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests import smollm2

torch.manual_seed(0)
torch.set_num_threads(1)
directory = Path(sys.argv[1])
if not directory.exists():
    smollm2.write(directory)
tokenizer = AutoTokenizer.from_pretrained(directory)
in_bf16 = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16).eval()
in_fp32 = copy.deepcopy(in_bf16).float()
questions = [f"What is {17 * n % 101} + {29 * n % 97} - {n}? Think step by step." for n in range(1, 33)]
responses = []
for question in questions:
    chat = [{"role": "user", "content": question}]
    tokens = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)[
        "input_ids"
    ]
    sampled = in_fp32.generate(tokens, do_sample=True, top_k=0, max_new_tokens=192, pad_token_id=0)
    responses.append((tokens.shape[1], sampled[0]))


@torch.no_grad()
def log_probs(model, attention="eager"):
    model.set_attn_implementation(attention)
    scores = []
    for begin, tokens in responses:
        hidden = model.model(tokens[None]).last_hidden_state[0].float()
        logits = hidden @ model.lm_head.weight.float().T
        scores.append(logits.log_softmax(-1)[begin - 1 : -1].gather(1, tokens[begin:, None])[:, 0])
    return torch.cat(scores)


def rounded(*kinds):
    """log-probs where modules of these kinds, alone, give out bf16."""
    model = copy.deepcopy(in_fp32)
    for module in model.model.modules():
        if type(module).__name__ in kinds:
            module.register_forward_hook(lambda module, given, out: out.bfloat16().float())
    return log_probs(model)


def difference(one, other):
    return f"{(one - other).abs().exp().mean().item():.4f}"


exact, eager, sdpa = log_probs(in_fp32), log_probs(in_bf16), log_probs(in_bf16, "sdpa")
print(f"{len(exact)} tokens of {len(responses)} responses, mean of -log-prob {-exact.mean().item():.2f} nats")
print("mean of exp|difference|:")
print("bf16 eager / fp32", difference(eager, exact))
print("bf16 sdpa / fp32", difference(sdpa, exact))
print("bf16 eager / bf16 sdpa", difference(eager, sdpa))
print("residual stream (layers' outputs) alone in bf16 / fp32", difference(rounded("LlamaDecoderLayer"), exact))
print("norms' outputs alone in bf16 / fp32", difference(rounded("LlamaRMSNorm"), exact))
print("products' outputs alone in bf16 / fp32", difference(rounded("Linear"), exact))
