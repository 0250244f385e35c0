"""One conversation of a row: LLaVA's `conversations` (`from`, `value`) or the `messages` (`role`, `content`) of LLaMA-Factory, ms-swift,
TRL and OpenAI.

Rules, because the prompts of this project have all images first, and only `prompt.template=chat` has a place for a system text:

- `<image>` is removed from the texts. Images keep the order of their tokens; images without a token follow. A token outside the first
  question, a token inside a sentence, and fewer tokens than images are counted in the manifest (`notes`).
- A system text is stored in `meta["system"]` and counted.
- The turns after it must alternate, starting with the user and ending with the assistant.
"""

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from data_prep.readers.rows import InvalidRow
from src.data.prompt import SYSTEM_NOTE

CONVERSATIONS = ("conversations", "messages")
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
TOKEN = "<image>"
IMAGE_PARTS = ("image", "image_url")
OTHER_MEDIA = ("video", "videos", "audio", "audios")


@dataclass
class Chat:
    """The parsed conversation. `images` are paths, data URIs or bytes as in the row, in the order in which they are shown."""

    turns: list[tuple[str, str]]
    images: list[Any]
    system: str = ""
    notes: list[str] = field(default_factory=list)  # what was changed


def parse_chat(fields: dict, images: list[Any], key: str) -> Chat | InvalidRow:
    """`images` are those that the row lists beside the conversation."""
    name = next(name for name in CONVERSATIONS if fields.get(name) is not None)
    messages = fields[name]
    if isinstance(messages, dict):  # `datasets` stores a sequence of objects as an object of sequences
        messages = [dict(zip(messages, values, strict=True)) for values in zip(*messages.values(), strict=True)]
    if media := [name for name in OTHER_MEDIA if fields.get(name)]:
        return InvalidRow(key, f"media other than images: found key {', '.join(media)}")
    if not isinstance(messages, list) or not messages or not all(isinstance(message, dict) for message in messages):
        return InvalidRow(key, f"{name} is not a list of turns: {str(messages)[:80]}")
    turns: list[_Turn] = []
    for message in messages:
        role = message.get("role") or message.get("from")
        content = message.get("content")
        content = message.get("value") if content is None else content
        if not isinstance(role, str) or content is None:
            present = [k for k, value in message.items() if value is not None]
            return InvalidRow(key, f"turn without role and text: found keys {', '.join(present)[:200]}")
        turn = _parse_content(role, content)
        if isinstance(turn, str):
            return InvalidRow(key, turn)
        turns.append(turn)
    if reason := _order_fault(turns):
        return InvalidRow(key, f"{reason}: roles {', '.join(turn.role for turn in turns)[:200]}")
    system = turns.pop(0) if ROLES[turns[0].role] == "system" else None
    system_text = fields.get("system")  # LLaMA-Factory stores the system text beside the conversation
    if system is None and isinstance(system_text, str) and system_text.strip():
        system = _Turn("system", system_text.strip())
    return _join(turns, system, images, key)


@dataclass
class _Turn:
    role: str  # as in the file
    text: str = ""
    images: list[Any] = field(default_factory=list)  # one entry per image token; None for an image that the row lists
    inside: bool = False  # whether a token was inside a sentence


def _parse_content(role: str, content: Any) -> _Turn | str:
    """The turn, or the reason why there is none. `content` is a text or a list of parts."""
    if isinstance(content, str):
        text, images, inside = _remove_tokens(content)
        return _Turn(role, text, images, inside)
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        return f"content is neither a text nor a list of parts: {str(content)[:80]}"
    turn = _Turn(role)
    for part in content:
        kind = part.get("type")
        if kind == "text" and isinstance(part.get("text"), str):
            text, images, inside = _remove_tokens(part["text"])
            turn.text = f"{turn.text}\n{text}".strip()
            turn.images, turn.inside = turn.images + images, turn.inside or inside
        elif kind in IMAGE_PARTS:
            turn.images.append(next((part[k] for k in (*IMAGE_PARTS, "url", "path") if part.get(k)), None))
        else:
            return f"unknown part of a content: type {kind!r}; allowed: text, image, image_url"
    return turn


def _remove_tokens(text: str) -> tuple[str, list[None], bool]:
    """(text without image tokens, a None per token, whether a token was inside a sentence)."""
    if TOKEN not in text:
        return text.strip(), [], False
    pieces = text.split(TOKEN)
    texts = [piece for piece in pieces if piece.strip()]
    joined = texts[0].strip() if texts else ""
    for before, after in pairwise(texts):
        line_break = before.rstrip(" ").endswith("\n") or after.lstrip(" ").startswith("\n")
        joined += ("\n" if line_break else " ") + after.strip()
    return joined, [None] * (len(pieces) - 1), len(texts) > 1


def _order_fault(turns: list[_Turn]) -> str:
    """The reason why the roles are not (system,) user, assistant, user, assistant, ...; empty if they are."""
    roles = [ROLES.get(turn.role, "") for turn in turns]
    if "" in roles:
        return f"unknown role: {turns[roles.index('')].role[:40]!r}"
    roles = roles[1:] if roles[0] == "system" else roles
    if "system" in roles:
        return "system turn after the first turn"
    if not roles:
        return "no turn beside the system turn"
    if roles[0] == "assistant":
        return "conversation starts with the assistant"
    if repeated := [role for role, following in pairwise(roles) if role == following]:
        return f"two {repeated[0]} turns in a row"
    return "conversation ends with the user" if roles[-1] == "user" else ""


def _join(turns: list[_Turn], system: _Turn | None, listed: list[Any], key: str) -> Chat | InvalidRow:
    """Resolves the image tokens and pairs questions with answers. `turns` alternate."""
    if any(turn.images for turn in turns[1::2]):
        return InvalidRow(key, "image in an assistant turn")
    later = [system, *turns[1:]] if system else turns[1:]
    tokens = [image for turn in ([system, *turns] if system else turns) for image in turn.images]
    if tokens.count(None) > len(listed):
        count = len(listed) + len(tokens) - tokens.count(None)
        return InvalidRow(key, f"more image tokens than images: {len(tokens)} tokens, {count} images")
    rest = iter(listed)
    images = [next(rest) if image is None else image for image in tokens] + list(rest)
    reasons = {
        SYSTEM_NOTE: system is not None,
        "image token outside the first question": any(turn.images for turn in later),
        "image token inside a sentence": any(turn.inside for turn in turns),
        "fewer image tokens than images": 0 < len(tokens) < len(images),
    }
    texts = [turn.text for turn in turns]
    pairs = list(zip(texts[::2], texts[1::2], strict=True))
    return Chat(pairs, images, system.text if system else "", [reason for reason, applies in reasons.items() if applies])
