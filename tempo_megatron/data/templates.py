"""Questions as token ids: the instruction that a grader needs, in the form that a model family has met."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from jinja2 import TemplateError

from tempo_megatron.config import DataConfig, PromptStyle

Message = dict[str, str]
"""`role` (system, user or assistant) and `content`"""

INSTRUCTIONS = {
    "math": "Reason step by step. Write the final answer, and nothing else, inside \\boxed{}.",
    "choice": 'Reason step by step. End with a line "Answer: X", where X is the letter of the option that is right.',
    "free": 'Reason step by step. End with a line "Answer: X", where X is the answer alone, in the form asked for.',
    "zebra": "Reason step by step. End with the filled grid as a JSON object that names every house and column: "
    '{"solution": {"House 1": {"COLUMN": "value", ...}, "House 2": {...}, ...}}',
    "exact": "Reply with the answer alone.",
}
"""By grader. General questions (`judge`) stand as they are, and reasoning-gym tasks say themselves what they want."""

_TURN_START, _TURN_END = "<|im_start|>", "<|im_end|>"
_SPEAKERS = {"system": "", "user": "Question: ", "assistant": "Answer: "}


class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer that prompts need."""

    chat_template: Any
    eos_token_id: Any

    def encode(self, text: str, add_special_tokens: bool = ...) -> list[int]: ...

    def apply_chat_template(self, conversation: Any, **options: Any) -> Any: ...


def template_problems(config: DataConfig, tokenizer: Tokenizer) -> list[str]:
    """What keeps the settings' style from being used with this tokenizer, one a line."""
    style, found = config.prompt_style, []
    if style is not PromptStyle.none and (config.chat_template or config.prompt_template != "{question}"):
        found.append(
            f"data.prompt_style: {style.value} replaces data.prompt_template and data.chat_template; unset them"
        )
    if style is PromptStyle.chat and not tokenizer.chat_template:
        found.append(
            "data.prompt_style: chat, but the tokenizer has no chat template; base models take chatml or completion"
        )
    if style is PromptStyle.chatml and len(tokenizer.encode(_TURN_START, add_special_tokens=False)) != 1:
        found.append(f"data.prompt_style: chatml, but the tokenizer has no token {_TURN_START}; take completion")
    return found


def end_token_ids(config: DataConfig, tokenizer: Tokenizer) -> list[int]:
    """Tokens that end a response: the tokenizer's end of sequence and, where the model was shown turns, their end."""
    ends = [int(tokenizer.eos_token_id)]
    if config.prompt_style is PromptStyle.chatml:
        ends += [end for end in tokenizer.encode(_TURN_END, add_special_tokens=False) if end not in ends]
    return ends


def encode(
    question: str, messages: Sequence[Message] | None, grader: str, config: DataConfig, tokenizer: Tokenizer
) -> list[int]:
    """Token ids of a question, or of a conversation that ends with the user's turn.

    Raises ValueError where a chat template is needed and there is none, or it refuses the conversation.
    """
    if config.prompt_style is PromptStyle.none:
        text = config.prompt_template.replace("{question}", question)
        if messages is None and not config.chat_template:
            return tokenizer.encode(text, add_special_tokens=False)
        return _chat(messages or [{"role": "user", "content": text}], tokenizer)
    turns = _instructed(messages or [{"role": "user", "content": question}], INSTRUCTIONS.get(grader, ""))
    if config.prompt_style is PromptStyle.chat:
        return _chat(turns, tokenizer)
    if config.prompt_style is PromptStyle.chatml:
        said = "".join(f"{_TURN_START}{turn['role']}\n{turn['content']}{_TURN_END}\n" for turn in turns)
        return tokenizer.encode(f"{said}{_TURN_START}assistant\n", add_special_tokens=False)
    said = "\n\n".join(_SPEAKERS[turn["role"]] + turn["content"] for turn in turns)
    # Special tokens, because a family that begins every text with one (Llama) has never met a text without.
    return tokenizer.encode(f"{said}\n\nAnswer:", add_special_tokens=True)


def _instructed(messages: Sequence[Message], instruction: str) -> list[Message]:
    """The conversation with the instruction at the end of its last turn."""
    *before, last = messages
    content = f"{last['content']}\n\n{instruction}" if instruction else last["content"]
    return [*before, {**last, "content": content}]


def _chat(messages: Sequence[Message], tokenizer: Tokenizer) -> list[int]:
    if not tokenizer.chat_template:
        raise ValueError("a list of messages needs a chat template, and the tokenizer has none; set data.prompt_style")
    try:
        ids: list[int] = tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, return_dict=False)
    except TemplateError as error:
        raise ValueError(f"the tokenizer's chat template refuses the messages: {error}") from error
    return ids
