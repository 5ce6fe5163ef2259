"""Readers of Persona-Chat dialogs: the numbered text lines, and the JSON of its conversational release.

Room: recipes.text. Standard library and `reticent.errors` only.

A row is one reply, given what its speaker knows of itself and what was said before. Several rows come from
one dialog, so the privacy unit that a reader of the guarantee will think of is the dialog: `unit` names it.

Sources:
    [1] Zhang et al. 2018, "Personalizing Dialogue Agents", arXiv:1801.07243 (data and text format)
    [2] Wolf et al. 2019, "TransferTransfo", arXiv:1901.08149 (JSON format)
"""

from collections.abc import Sequence
from pathlib import Path

from ._pairs import SourceTargets, bad_format, filled, json_of, read_text

_KIND = "Persona-Chat"
_OWN, _OTHER = "your persona:", "partner's persona:"


def read_personachat(
    path: str | Path, *, split: str = "train", max_history: int | None = None
) -> list[SourceTargets]:
    """Read Persona-Chat from its text file (`.txt`) or its JSON file.

    Args:
        path: e.g. `train_self_original.txt` or `personachat_self_original.json`.
        split: which part of a JSON file; a text file is one part.
        max_history: how many earlier utterances are kept; None: all of them.

    Returns:
        One entry for each reply: the persona's sentences and the earlier utterances, one a line, then the
        reply as the only target. Wrong candidates are left out. `unit` numbers the dialog.

    Raises:
        DataError[text-format]: the file is in neither format, or has no such split.
    """
    path, text = read_text(path, _KIND)
    examples = _from_json(text, path, split) if text.lstrip()[:1] in ("{", "[") else _from_lines(text, path)
    rows = [_row(persona, history, reply, unit, max_history) for persona, history, reply, unit in examples]
    if not rows:
        raise bad_format(path, _KIND, "it holds no reply")
    return rows


def _row(
    persona: Sequence[str], history: Sequence[str], reply: str, unit: int, max_history: int | None
) -> SourceTargets:
    kept = history if max_history is None else history[len(history) - max_history :] if max_history else ()
    lines = [f"persona: {sentence}" for sentence in persona] + list(kept)
    return SourceTargets(source="\n".join(lines), targets=(reply,), unit=str(unit))


_Reply = tuple[list[str], list[str], str, int]


def _from_lines(text: str, path: Path) -> list[_Reply]:
    """`1 your persona: ...`, then `4 said<TAB>reply<TAB><TAB>candidates`; number 1 begins a dialog."""
    found: list[_Reply] = []
    persona: list[str] = []
    history: list[str] = []
    dialog, last = 0, 0
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        count, _, rest = line.partition(" ")
        if not count.isdecimal() or not rest.strip():
            raise bad_format(path, _KIND, f"line {number} does not begin with its number in the dialog")
        if int(count) == 1:
            persona, history, dialog = [], [], dialog + 1
        elif int(count) != last + 1 or dialog == 0:
            raise bad_format(path, _KIND, f"line {number} does not follow the one before it")
        last = int(count)
        if rest.startswith(_OWN):
            persona.append(rest.removeprefix(_OWN).strip())
        elif not rest.startswith(_OTHER):  # what only the partner knows is not given to the speaker
            said, tab, after = rest.partition("\t")
            reply = after.split("\t")[0]
            if not tab or not filled((said, reply)):
                raise bad_format(path, _KIND, f"line {number} has no reply after a tab")
            history = [*history, said.strip()]
            found.append((persona, history, reply.strip(), dialog))
            history = [*history, reply.strip()]
    return found


def _from_json(text: str, path: Path, split: str) -> list[_Reply]:
    """`{"train": [{"personality": [...], "utterances": [{"history": [...], "candidates": [..., r]}]}]}`."""
    parts = json_of(text, path, _KIND)
    dialogs = parts.get(split) if isinstance(parts, dict) else None
    if not isinstance(dialogs, list):
        raise bad_format(path, _KIND, f"it has no list of dialogs named '{split}'")
    found: list[_Reply] = []
    for number, dialog in enumerate(dialogs, start=1):
        persona = dialog.get("personality") if isinstance(dialog, dict) else None
        utterances = dialog.get("utterances") if isinstance(dialog, dict) else None
        if not isinstance(persona, list) or not filled(persona) or not isinstance(utterances, list):
            raise bad_format(path, _KIND, f"dialog {number} lacks a personality or utterances")
        for turn in utterances:
            history = turn.get("history") if isinstance(turn, dict) else None
            candidates = turn.get("candidates") if isinstance(turn, dict) else None
            if (
                not isinstance(history, list)
                or not isinstance(candidates, list)
                or not candidates
                or not filled([*history, candidates[-1]])
            ):
                raise bad_format(path, _KIND, f"dialog {number} has a turn without history or candidates")
            found.append((persona, history, candidates[-1].strip(), number))  # the right one stands last
    return found
