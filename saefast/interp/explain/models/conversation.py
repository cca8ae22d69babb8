"""Conversations and parts of texts as token ids of a tokenizer of Hugging Face."""

from functools import cached_property
from typing import Any

from saefast.activations.tokens import encode
from saefast.errors import InputError, check, line
from saefast.interp.explain.models import Prompt, Turn
from saefast.interp.explain.models.answers import without_thoughts

NEXT = "\nUser:"  # where an answer in the plain form ends


class Conversations:
    """
    In the form of the tokenizer's chat template; a tokenizer without one makes them "System: ... User: ... Assistant:". Special
    tokens that a text spells out are taken apart by a space: no text can end a turn or begin one.

    Attributes:
        begin: ids that every text begins with.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.has_template = bool(getattr(tokenizer, "chat_template", None))
        begin, given = tokenizer.bos_token_id, tokenizer("a", verbose=False).input_ids
        self.begin: list[int] = [begin] if begin is not None and given[:1] == [begin] else []
        first = tokenizer.convert_ids_to_tokens(encode(tokenizer, "a"))[:1]
        self._adds_space = bool(first) and first[0].startswith("\u2581")

    def ids(self, prompt: Prompt) -> list[int]:
        """Up to where the answer begins.

        Raises:
            InputError: no turn, or a conversation that the chat template refuses.
        """
        check(len(prompt) > 0, "prompts: expected at least one turn in each, got none")
        turns = [Turn(role, self._plain(text)) for role, text in prompt]
        goes_on = turns[-1].role == "assistant"
        if goes_on and not turns[-1].text:
            turns, goes_on = turns[:-1], False
        if self.has_template:
            return encode(self.tokenizer, self._templated(turns, goes_on))
        said = [f"{role.capitalize()}: {text}" for role, text in turns]
        return self.begin + encode(self.tokenizer, "\n".join(said if goes_on else [*said, "Assistant:"]))

    def _templated(self, turns: list[Turn], goes_on: bool) -> str:
        options = {"add_generation_prompt": not goes_on, "continue_final_message": goes_on}
        reason = ""
        for some in (turns, _without_system(turns)):  # some templates, as Gemma's, know no system
            messages = [{"role": role, "content": text} for role, text in some]
            try:
                text: str = self.tokenizer.apply_chat_template(messages, tokenize=False, **options)
                return text
            except Exception as error:  # noqa: BLE001 (templates are programs)
                reason = reason or line(error)
        raise InputError(f"model: its chat template refuses the conversation: {reason}")

    def lead(self, prompt: Prompt) -> str:
        """What is between the prompt and an answer: a space after "Assistant:"."""
        return "" if self.has_template or (prompt[-1].role == "assistant" and prompt[-1].text) else " "

    def answer(self, text: str, prompt: Prompt) -> str:
        """What was written after the prompt, as an answer."""
        if not self.has_template:
            text = text.partition(NEXT)[0]
        return without_thoughts(text.removeprefix(self.lead(prompt)))

    def pieces(self, text: str) -> list[int]:
        """Tokens of a part of a text. SentencePiece puts a space before what it takes for the beginning of a text."""
        text = self._plain(text)
        if self._adds_space:
            before, ids = encode(self.tokenizer, "\n"), encode(self.tokenizer, f"\n{text}")
            if ids[: len(before)] == before:
                return ids[len(before) :]
        return encode(self.tokenizer, text)

    @cached_property
    def _special(self) -> list[str]:
        added = getattr(self.tokenizer, "added_tokens_decoder", {}).values()
        names = {*self.tokenizer.all_special_tokens, *(str(token) for token in added if token.special)}
        return sorted(names - {""}, key=lambda name: (-len(name), name))

    def _plain(self, text: str) -> str:
        for token in self._special:
            text = text.replace(token, f"{token[:1]} {token[1:]}")
        return text


def _without_system(turns: list[Turn]) -> list[Turn]:
    system = "\n\n".join(turn.text for turn in turns if turn.role == "system")
    others = [turn for turn in turns if turn.role != "system"]
    if not system or not others or others[0].role != "user":
        return turns
    return [Turn("user", f"{system}\n\n{others[0].text}"), *others[1:]]
