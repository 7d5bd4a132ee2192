"""Rows become prompts: conversations, prompt styles by grader, weights, and the label firewall."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jinja2 import TemplateError

from tempo_megatron.config import DataConfig, PromptStyle, SourceConfig
from tempo_megatron.data.questions import read_questions
from tempo_megatron.data.reading import DataError
from tempo_megatron.data.sources import Row, read_rows, to_prompts
from tempo_megatron.data.templates import INSTRUCTIONS

TALK = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 2+2?"}]


class Letters:
    """A tokenizer of one token a character and a beginning of text. Template and special tokens are optional."""

    def __init__(self, chat_template: str | None = "template", specials: tuple[str, ...] = ("<|im_start|>",)) -> None:
        self.chat_template = chat_template
        self._specials = specials

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        for number, special in enumerate(self._specials):
            text = text.replace(special, chr(0xE000 + number))
        return [1] * add_special_tokens + list(map(ord, text))

    def apply_chat_template(self, conversation: Any, **options: Any) -> list[int]:
        assert options == {"add_generation_prompt": True, "return_dict": False}
        if conversation[0]["content"] == "refused":
            raise TemplateError("roles must alternate")
        return list(map(ord, "".join(f"[{turn['role']}]{turn['content']}" for turn in conversation) + "[assistant]"))


def shown(ids: tuple[int, ...]) -> str:
    return "".join("<|im_start|>" if i == 0xE000 else "<s>" if i == 1 else chr(i) for i in ids)


def text_of(
    style: PromptStyle, grader: str = "math", messages: list[dict[str, str]] | None = None, **settings: Any
) -> str:
    row = Row("What is 2+2?", None, "r", "s", grader, tuple(messages) if messages else None)
    (prompt,) = to_prompts([row], DataConfig(prompt_style=style, **settings), Letters(), {}).prompts
    return shown(prompt.token_ids)


def source(path: Path, *rows: dict[str, Any], **settings: Any) -> SourceConfig:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return SourceConfig(path=str(path), **settings)


@pytest.mark.parametrize("grader", ["math", "choice", "free", "zebra", "exact", "judge", "reasoning_gym:chain_sum"])
def test_a_style_asks_for_the_form_that_the_row_s_grader_reads(grader: str) -> None:
    """Each grader's instruction follows the question. Judged and reasoning-gym questions get none."""
    instruction = INSTRUCTIONS.get(grader, "")
    question = f"What is 2+2?\n\n{instruction}" if instruction else "What is 2+2?"
    assert text_of(PromptStyle.chat, grader) == f"[user]{question}[assistant]"
    assert text_of(PromptStyle.chatml, grader) == f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    assert text_of(PromptStyle.completion, grader) == f"<s>Question: {question}\n\nAnswer:"
    assert bool(instruction) == (grader in ("math", "choice", "free", "zebra", "exact"))


def test_without_a_style_the_two_settings_rule_alone() -> None:
    """The demo and every earlier recipe have no instruction and no special token."""
    assert text_of(PromptStyle.none) == "What is 2+2?"
    assert text_of(PromptStyle.none, prompt_template="Q: {question}!") == "Q: What is 2+2?!"
    assert text_of(PromptStyle.none, chat_template=True) == "[user]What is 2+2?[assistant]"


def test_a_conversation_keeps_its_turns_in_every_style() -> None:
    """The instruction is at the end of the last turn."""
    boxed = INSTRUCTIONS["math"]
    assert text_of(PromptStyle.none, messages=TALK) == "[system]Be brief.[user]What is 2+2?[assistant]"
    assert text_of(PromptStyle.chat, messages=TALK) == f"[system]Be brief.[user]What is 2+2?\n\n{boxed}[assistant]"
    assert text_of(PromptStyle.chatml, messages=TALK).startswith(
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is 2+2?\n\n"
    )
    prompt = f"<s>Be brief.\n\nQuestion: What is 2+2?\n\n{boxed}\n\nAnswer:"
    assert text_of(PromptStyle.completion, messages=TALK) == prompt


def test_a_conversation_that_cannot_be_rendered_is_named(tmp_path: Path) -> None:
    """The error names source and row: the tokenizer has no chat template, or the template refuses the roles."""
    row = {"id": "q7", "messages": TALK}
    config = DataConfig(unlabeled=[source(tmp_path / "talk.jsonl", row)])
    with pytest.raises(DataError, match=r"data.unlabeled: .*talk.jsonl, line 1: .*the tokenizer has none"):
        read_questions(config, Letters(chat_template=None))
    refused = {"id": "q8", "messages": [{"role": "user", "content": "refused"}]}
    config = DataConfig(unlabeled=[source(tmp_path / "talk.jsonl", refused)])
    with pytest.raises(DataError, match=r"talk.jsonl, line 1: .*refuses the messages: roles must alternate"):
        read_questions(config, Letters())


@pytest.mark.parametrize(
    "messages",
    [[], "hello", [{"role": "user"}], [{"role": "robot", "content": "a"}], [{"role": "assistant", "content": "a"}]],
)
def test_malformed_messages_are_named_with_file_and_line(messages: object, tmp_path: Path) -> None:
    """The messages are empty, no list, without content, of an unknown role, or end on the assistant's turn."""
    with pytest.raises(DataError, match=r"talk.jsonl, line 2: a row needs `prompt`, a text, or `messages`"):
        read_rows([source(tmp_path / "talk.jsonl", {"prompt": "fine"}, {"messages": messages})], labeled=False)


def test_a_style_that_the_tokenizer_cannot_do_is_refused_at_once() -> None:
    """The error names the style to use instead, and lists the problems of data files too."""
    bare = Letters(chat_template=None, specials=())
    for config, message in (
        (DataConfig(prompt_style=PromptStyle.chat), "chat, but the tokenizer has no chat template"),
        (DataConfig(prompt_style=PromptStyle.chatml), "without it set data.prompt_style=completion"),
        (DataConfig(prompt_style=PromptStyle.completion, chat_template=True), "replaces data.prompt_template"),
        (DataConfig(prompt_style=PromptStyle.completion, prompt_template="Q {question}"), "replaces data.prompt_templ"),
    ):
        with pytest.raises(DataError) as raised:
            read_questions(config, bare)
        assert message in str(raised.value)
    config = DataConfig(prompt_style=PromptStyle.chat, unlabeled=[SourceConfig(path="nowhere.jsonl")])
    with pytest.raises(DataError, match=r"no chat template(.|\n)*data.unlabeled: nowhere.jsonl"):
        read_questions(config, bare)


def test_an_evaluated_question_is_withheld_whatever_form_it_has(tmp_path: Path) -> None:
    """Prompt or conversation, case and spacing make no difference; other punctuation makes another question."""
    config = DataConfig(
        labeled=[
            source(
                tmp_path / "known.jsonl",
                {"prompt": "What  is\n2+2?", "answer": "4"},
                {"messages": [{"role": "user", "content": "WHAT IS 3+3?"}], "answer": "6"},
                {"prompt": "What is 2+2 ?", "answer": "4"},
                {"prompt": "what is 2+2 ?", "answer": "4"},
            )
        ],
        held_out=[source(tmp_path / "later.jsonl", {"messages": TALK}, {"prompt": "What is 3+3?"})],
    )
    prompt_set = read_questions(config, Letters()).sets["labeled"]
    assert [shown(prompt.token_ids) for prompt in prompt_set.prompts] == ["What is 2+2 ?"]
    assert (prompt_set.withheld, prompt_set.repeated) == (2, 1)


def test_answers_of_conversations_are_split_off_and_leave_no_trace(tmp_path: Path) -> None:
    """The label firewall: ids, texts, order and weights are the same whatever the answers are."""

    def read(*answers: str) -> tuple[object, object]:
        rows = [{"messages": [{"role": "user", "content": f"q{n}"}], "answer": a} for n, a in enumerate(answers)]
        questions = read_questions(DataConfig(unlabeled=[source(tmp_path / "new.jsonl", *rows)]), Letters())
        prompt_set = questions.sets["unlabeled"]
        assert [prompt.answer for prompt in prompt_set.prompts] == [None, None]
        return (prompt_set.prompts, prompt_set.weights), questions.answers

    (prompts, answers), (same_prompts, permuted_answers) = read("1", "2"), read("2", "1")
    assert prompts == same_prompts and answers != permuted_answers


def test_weights_and_sources_stay_with_their_prompts(tmp_path: Path) -> None:
    """Weights stay parallel to the prompts when some are dropped. A row's own source replaces the file's name."""
    first = source(tmp_path / "a.jsonl", {"prompt": "a"}, {"prompt": "A"}, {"prompt": "b" * 20}, weight=0.5)
    second = source(tmp_path / "b.jsonl", {"prompt": "a"}, {"prompt": "c", "source": "AIME-2025"}, weight=2)
    config = DataConfig(unlabeled=[first, second], max_prompt_tokens=10)
    prompt_set = read_questions(config, Letters()).sets["unlabeled"]
    assert [shown(prompt.token_ids) for prompt in prompt_set.prompts] == ["a", "c"]
    assert prompt_set.weights == [0.5, 2]
    assert [prompt.source for prompt in prompt_set.prompts] == ["a.jsonl", "AIME-2025"]


@pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf")])
def test_a_weight_that_takes_nothing_is_refused(weight: float, tmp_path: Path) -> None:
    """A source that no pass takes is an error."""
    with pytest.raises(DataError, match=r"a.jsonl: weight is a number above 0, got"):
        read_rows([source(tmp_path / "a.jsonl", {"prompt": "a"}, weight=weight)], labeled=False)


def test_texts_with_unicode_line_ends_stay_one_row(tmp_path: Path) -> None:
    """Files contain their characters unescaped, and U+2028 ends no row of JSONL."""
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"prompt": "one\u2028two\x85three"}, ensure_ascii=False) + "\n", encoding="utf-8")
    (row,) = read_rows([SourceConfig(path=str(path))], labeled=False)
    assert row.question == "one\u2028two\x85three"
