"""How far log-probs are from fp32 for SmolLM2-135M-Instruct where products alone round their operands to FP8 (E4M3),
everything else being fp32: which scaling, which products, which layers. On a CPU:

OMP_NUM_THREADS=2 PYTHONPATH=$PWD python docs/results/2026-11-27-gpu/fp8-noise.py DIRECTORY
"""

import copy
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests import smollm2

torch.manual_seed(0)
torch.set_num_threads(2)
directory = Path(sys.argv[1])
if not directory.exists():
    smollm2.write(directory)
tokenizer = AutoTokenizer.from_pretrained(directory)
exact_model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16).eval().float()
questions = [f"What is {17 * n % 101} + {29 * n % 97} - {n}? Think step by step." for n in range(1, 17)]
responses = []
for question in questions:
    chat = [{"role": "user", "content": question}]
    tokens = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)[
        "input_ids"
    ]
    sampled = exact_model.generate(tokens, do_sample=True, top_k=0, max_new_tokens=128, pad_token_id=0)
    responses.append((tokens.shape[1], sampled[0]))
MOST = torch.finfo(torch.float8_e4m3fn).max


def to_fp8(tensor, amax):
    scale = MOST / amax.clamp_min(1e-12)
    return (tensor * scale).clamp(-MOST, MOST).to(torch.float8_e4m3fn).float() / scale


def by_tensor(tensor):
    return to_fp8(tensor, tensor.abs().max())


def by_row(tensor):
    return to_fp8(tensor, tensor.abs().amax(-1, keepdim=True))


def by_block(tensor, rows):
    """Scales for blocks of `rows` x 128."""
    flat = tensor.reshape(-1, tensor.shape[-1])
    down, across = -flat.shape[0] % rows, -flat.shape[1] % 128
    padded = torch.nn.functional.pad(flat, (0, across, 0, down))
    blocks = padded.reshape(padded.shape[0] // rows, rows, -1, 128)
    done = to_fp8(blocks, blocks.abs().amax((1, 3), keepdim=True)).reshape(padded.shape)
    return done[: flat.shape[0], : flat.shape[1]].reshape(tensor.shape)


SCALINGS = {
    "tensorwise": (by_tensor, by_tensor),
    "rowwise": (by_row, by_row),
    "blockwise": (lambda x: by_block(x, 1), lambda w: by_block(w, 128)),
}


@torch.no_grad()
def log_probs(model):
    scores = []
    for begin, tokens in responses:
        logits = model(tokens[None]).logits[0]
        scores.append(logits.log_softmax(-1)[begin - 1 : -1].gather(1, tokens[begin:, None])[:, 0])
    return torch.cat(scores)


def rounded(scaling, names=("",), layers=range(1000), inputs=True, weights=True):
    model = copy.deepcopy(exact_model)
    for_input, for_weight = SCALINGS[scaling]
    for number, layer in enumerate(model.model.layers):
        for name, module in layer.named_modules():
            if isinstance(module, torch.nn.Linear) and number in layers and any(part in name for part in names):
                if weights:
                    module.weight.data = for_weight(module.weight.data)
                if inputs:
                    module.register_forward_pre_hook(lambda module, given: (for_input(given[0]),))
    return log_probs(model)


exact = log_probs(exact_model)


def show(what, other):
    print(f"{what}: {(exact - other).abs().exp().mean().item():.3f}", flush=True)


print(f"{len(exact)} tokens of {len(responses)} responses, mean of -log-prob {-exact.mean().item():.2f} nats")
print("mean of exp|difference| from fp32:")
count = len(exact_model.model.layers)
for scaling in SCALINGS:
    show(scaling, rounded(scaling))
show("tensorwise, inputs alone", rounded("tensorwise", weights=False))
show("tensorwise, weights alone", rounded("tensorwise", inputs=False))
for name in ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"):
    show(f"tensorwise, {name} alone", rounded("tensorwise", (name,)))
show("tensorwise, but the first and last layer", rounded("tensorwise", layers=range(1, count - 1)))
show("tensorwise, but the first and last two layers", rounded("tensorwise", layers=range(2, count - 2)))
show("tensorwise, all but down_proj", rounded("tensorwise", ("q_", "k_", "v_", "o_", "gate", "up_")))
