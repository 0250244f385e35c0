"""Limits on the requests of demo visitors. The server enforces every limit, independently of the page."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    megapixels: float = 40.0
    megabytes: float = 10.0  # of one upload
    question: int = 500  # characters
    turns: int = 6  # earlier questions and answers in the prompt
    max_new_tokens: int = 64
    queue: int = 8  # waiting requests; further ones get the message that the demo is busy
    keep_seconds: float = 3600.0  # uploaded images are deleted after this time
    body: int = 512 * 1024  # bytes of a request that is not an upload
