"""Stop strings, also where they begin or end inside a token: they are looked for in the bytes of the completion."""

from __future__ import annotations

from collections.abc import Sequence

from gpt3_jax.errors import UserError


class StopStrings:
    """Texts that end a completion. It is cut in front of the one that is complete first; of several that are complete
    with the same byte, in front of the longest."""

    def __init__(self, stop: str | Sequence[str] = ()) -> None:
        """Raises UserError for a stop string that is empty or no text, such as one that holds half a surrogate pair."""
        stop = [stop] if isinstance(stop, str) else list(stop)
        self._stop: list[bytes] = []
        for number, text in enumerate(stop, start=1):
            if not isinstance(text, str):
                raise UserError(f"stop string {number} is of type {type(text).__name__}; expected text")
            if not text:
                raise UserError(f"stop string {number} is empty; expected at least one character")
            try:
                self._stop.append(text.encode())
            except UnicodeEncodeError:
                raise UserError(f"stop string {number} is {text!r}, which is not UTF-8; expected text") from None
        self._longest = max(map(len, self._stop), default=0)

    def cut(self, text: bytes, seen: int) -> int | None:
        """Where the completion ends, or None.

        Args:
            text: the bytes of the completion.
            seen: so many of them held no stop string.
        """
        found = [
            (at + len(stop), at) for stop in self._stop if (at := text.find(stop, max(0, seen - len(stop) + 1))) >= 0
        ]
        return min(found)[1] if found else None

    def held(self, text: bytes) -> int:
        """How many bytes at the end of `text` may be the beginning of a stop string."""
        for size in range(min(self._longest, len(text)), 0, -1):
            end = text[-size:]
            if any(stop.startswith(end) for stop in self._stop):
                return size
        return 0
