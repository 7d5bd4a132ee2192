"""Turns questions into token ids: adds the grader's instruction and the prompt style of the model family."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from jinja2 import TemplateError

from tempo_megatron.config import DataConfig, PromptStyle

Message = dict[str, str]
"""A turn of a conversation: `role` (system, user or assistant) and `content`."""

INSTRUCTIONS = {
    "math": "Reason step by step. Write the final answer, and nothing else, inside \\boxed{}.",
    "choice": 'Reason step by step. End with a line "Answer: X", where X is the letter of the option that is right.',
    "free": 'Reason step by step. End with a line "Answer: X", where X is the answer alone, in the form asked for.',
    "zebra": "Reason step by step. End with the filled grid as a JSON object that names every house and column: "
    '{"solution": {"House 1": {"COLUMN": "value", ...}, "House 2": {...}, ...}}',
    "exact": "Reply with the answer alone.",
}
"""The instruction of each grader. Judged questions need none, and reasoning-gym tasks contain their own."""

_TURN_START, _TURN_END = "<|im_start|>", "<|im_end|>"
_SPEAKERS = {"system": "", "user": "Question: ", "assistant": "Answer: "}


class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer that prompts need."""

    chat_template: Any
    eos_token_id: Any

    def encode(self, text: str, add_special_tokens: bool = ...) -> list[int]: ...

    def apply_chat_template(self, conversation: Any, **options: Any) -> Any: ...


def template_problems(config: DataConfig, tokenizer: Tokenizer) -> list[str]:
    """Return why the prompt style cannot be used with this tokenizer, one reason a line."""
    style, problems = config.prompt_style, []
    if style is not PromptStyle.none and (config.chat_template or config.prompt_template != "{question}"):
        problems.append(
            f"data.prompt_style: {style.value} replaces data.prompt_template and data.chat_template; unset them"
        )
    if style is PromptStyle.chat and not tokenizer.chat_template:
        problems.append(
            "data.prompt_style: chat, but the tokenizer has no chat template; for a base model set "
            "data.prompt_style=completion, or chatml if it knows <|im_start|>"
        )
    if style is PromptStyle.chatml and len(tokenizer.encode(_TURN_START, add_special_tokens=False)) != 1:
        problems.append(
            f"data.prompt_style: chatml, but the tokenizer has no token {_TURN_START}; for a base model without it set "
            "data.prompt_style=completion"
        )
    return problems


def end_token_ids(config: DataConfig, tokenizer: Tokenizer) -> list[int]:
    """Return the tokens that end a response: the end of sequence and, in the style `chatml`, the end of a turn."""
    end_ids = [int(tokenizer.eos_token_id)]
    if config.prompt_style is PromptStyle.chatml:
        turn_end = tokenizer.encode(_TURN_END, add_special_tokens=False)
        end_ids += [token_id for token_id in turn_end if token_id not in end_ids]
    return end_ids


def encode_prompt(
    question: str, messages: Sequence[Message] | None, grader: str, config: DataConfig, tokenizer: Tokenizer
) -> list[int]:
    """Return the token ids of a question, or of a conversation that ends with the user's turn.

    Raises ValueError where a chat template is needed and the tokenizer has none, or where it refuses the conversation.
    """
    if config.prompt_style is PromptStyle.none:
        text = config.prompt_template.replace("{question}", question)
        if messages is None and not config.chat_template:
            return tokenizer.encode(text, add_special_tokens=False)
        return _apply_chat_template(messages or [{"role": "user", "content": text}], tokenizer)
    turns = _with_instruction(messages or [{"role": "user", "content": question}], INSTRUCTIONS.get(grader, ""))
    if config.prompt_style is PromptStyle.chat:
        return _apply_chat_template(turns, tokenizer)
    if config.prompt_style is PromptStyle.chatml:
        text = "".join(f"{_TURN_START}{turn['role']}\n{turn['content']}{_TURN_END}\n" for turn in turns)
        return tokenizer.encode(f"{text}{_TURN_START}assistant\n", add_special_tokens=False)
    text = "\n\n".join(_SPEAKERS[turn["role"]] + turn["content"] for turn in turns)
    # With special tokens: Llama begins every text with one, and was never trained on a text without it.
    return tokenizer.encode(f"{text}\n\nAnswer:", add_special_tokens=True)


def _with_instruction(messages: Sequence[Message], instruction: str) -> list[Message]:
    """Return the conversation with the instruction at the end of its last turn."""
    *earlier, last = messages
    content = f"{last['content']}\n\n{instruction}" if instruction else last["content"]
    return [*earlier, {**last, "content": content}]


def _apply_chat_template(messages: Sequence[Message], tokenizer: Tokenizer) -> list[int]:
    if not tokenizer.chat_template:
        raise ValueError("a list of messages needs a chat template, and the tokenizer has none; set data.prompt_style")
    try:
        ids: list[int] = tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, return_dict=False)
    except TemplateError as error:
        raise ValueError(f"the tokenizer's chat template refuses the messages: {error}") from error
    return ids
