"""What is wrong on this drone at present, by topic, from all who know: for the status, the page and the ground."""

from collections.abc import Callable, Mapping

MAX_LINE = 200
"""Characters of the line for the ground, where it crosses a thin link."""


class Health:
    """Topics and those who know about them; each says a sentence, or "" while all is well. For any thread."""

    def __init__(self, found: Mapping[str, str] | None = None) -> None:
        self._tell: dict[str, Callable[[], str]] = {}
        for topic, problem in (found or {}).items():
            self.watch(topic, lambda problem=problem: problem)  # type: ignore[misc]  # a default binds it here

    def watch(self, topic: str, tell: Callable[[], str]) -> None:
        """Ask this one about a topic from now on; what was found at the start under the same topic stays before it."""
        before = self._tell.get(topic)
        self._tell[topic] = (lambda: "; ".join(filter(None, (before(), tell())))) if before else tell

    def problems(self) -> dict[str, str]:
        """Topic -> sentence, for what is wrong now."""
        return {topic: text for topic, tell in list(self._tell.items()) if (text := tell())}

    def line(self) -> str:
        """All of it in a line of at most MAX_LINE characters, "" while all is well."""
        text = "; ".join(f"{topic}: {text}" for topic, text in self.problems().items())
        return text if len(text) <= MAX_LINE else text[: MAX_LINE - 3] + "..."
