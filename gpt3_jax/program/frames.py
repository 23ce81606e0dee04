"""Which line of Python made an instruction: the tables of stack frames at the head of a module's text."""

from __future__ import annotations

import re
from collections.abc import Iterator


class Frames:
    """Files, lines and stack frames of a module.

    Args:
        text: of the whole module.
    """

    def __init__(self, text: str) -> None:
        self._files: dict[int, str] = {}
        self._locations: dict[int, tuple[int, int]] = {}
        self._frames: dict[int, tuple[int, int]] = {}
        section = ""
        for line in text.splitlines():
            if line in ("FileNames", "FunctionNames", "FileLocations", "StackFrames"):
                section = line
            elif line.startswith(("ENTRY", "%")):
                break
            elif section == "FileNames" and (found := re.match(r'(\d+) "(.*)"', line)):
                self._files[int(found[1])] = found[2]
            elif section == "FileLocations" and (
                found := re.match(r"(\d+) \{.*?file_name_id=(\d+).*?line=(\d+)", line)
            ):
                self._locations[int(found[1])] = (int(found[2]), int(found[3]))
            elif section == "StackFrames" and (
                found := re.match(r"(\d+) \{.*?file_location_id=(\d+)(?:.*?parent_frame_id=(\d+))?", line)
            ):
                # A parent is written one higher than the number that it bears; 1 is none.
                self._frames[int(found[1])] = (int(found[2]), int(found[3] or 1) - 1)

    def source(self, frame: int) -> str:
        """File and line of a frame: the innermost that belongs to this project, else the innermost."""
        own = self.own(frame)
        return own[0] if own else next((here for here, _ in self._stack(frame)), "")

    def own(self, frame: int) -> list[str]:
        """Files and lines of this project on the stack of a frame, innermost first."""
        return [here for here, path in self._stack(frame) if "/gpt3_jax/" in path]

    def _stack(self, frame: int) -> Iterator[tuple[str, str]]:
        """File and line as they are shown, and the file's whole path, innermost first."""
        seen: set[int] = set()
        while frame in self._frames and frame not in seen:
            seen.add(frame)
            location, frame = self._frames[frame]
            file, line = self._locations.get(location, (0, 0))
            path = self._files.get(file, "")
            yield f"{relative(path)}:{line}", path


def relative(path: str) -> str:
    """The path of a file, relative to this package or to site-packages."""
    for marker in ("/gpt3_jax/", "/site-packages/"):
        if marker in path:
            _, _, tail = path.rpartition(marker)
            return f"gpt3_jax/{tail}" if marker == "/gpt3_jax/" else tail
    return path.rsplit("/", 1)[-1]
