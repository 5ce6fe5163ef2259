"""What a run made, noted while it runs."""

from typing import Any

import pytest

from reticent.clip import ClipEngine


def clip_methods(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """The `method` of every `ClipEngine` that is made from now on; None: the default."""
    methods: list[str | None] = []
    begun = ClipEngine.__init__

    def noted(self: ClipEngine, *args: Any, **how: Any) -> None:
        methods.append(how.get("method"))
        begun(self, *args, **how)

    monkeypatch.setattr(ClipEngine, "__init__", noted)
    return methods
