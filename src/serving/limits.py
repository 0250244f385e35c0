"""What a visitor of the demo may ask for. Every limit holds on the server, whatever the page allows."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    megapixels: float = 40.0
    megabytes: float = 10.0  # of one upload
    question: int = 500  # characters
    turns: int = 6  # earlier questions that are shown to the model
    max_new_tokens: int = 64
    queue: int = 8  # requests that wait; the next hears that the demo is busy
    keep_seconds: float = 3600.0  # a picture is deleted after this
    body: int = 512 * 1024  # bytes of a request that is no upload
