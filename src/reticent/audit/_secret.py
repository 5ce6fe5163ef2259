"""A secret drawn at random and planted in texts, as "The Secret Sharer" does.

Room: audit. Standard library and `reticent.errors` only.

Sources:
    [1] Carlini, Liu, Erlingsson, Kos and Song 2019, "The Secret Sharer", arXiv:1802.08232
"""

import random
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from reticent.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Secret:
    """A sentence with a random code in it. The repr does not show the code.

    Args:
        prefix: what stands before the code, e.g. "My access code is ".
        code: the symbols of the secret, drawn uniformly.
        alphabet: the symbols that each place may hold, each one character.
        separator: what stands between symbols; a space keeps tokenizers from joining digits.
        suffix: what stands after the code.

    Raises:
        ConfigError[audit-secret]: fewer than two symbols, a repeated one, an empty code, or a code
            that is not of the alphabet.
    """

    prefix: str
    code: str = field(repr=False)
    alphabet: str = "0123456789"
    separator: str = ""
    suffix: str = ""

    def __post_init__(self) -> None:
        if len(set(self.alphabet)) != len(self.alphabet) or len(self.alphabet) < 2:
            raise _bad(f"the alphabet needs at least two different symbols, got {self.alphabet!r}")
        if not self.code or not set(self.code) <= set(self.alphabet):
            raise _bad("the code must be one or more symbols of the alphabet")

    @classmethod
    def draw(
        cls, prefix: str, *, length: int, alphabet: str = "0123456789", separator: str = "", suffix: str = ""
    ) -> "Secret":
        """A secret nobody chose: each symbol uniform, from the operating system's generator."""
        if length < 1:
            raise _bad(f"length must be >= 1, got {length}")
        code = "".join(secrets.choice(alphabet) for _ in range(length))
        return cls(prefix=prefix, code=code, alphabet=alphabet, separator=separator, suffix=suffix)

    @property
    def num_candidates(self) -> int:
        """How many codes there are: |alphabet| to the power of the length."""
        return len(self.alphabet) ** len(self.code)

    def sentence(self, code: str | None = None) -> str:
        """The whole sentence, with the secret's own code or with another."""
        return f"{self.prefix}{self.separator.join(self.code if code is None else code)}{self.suffix}"

    def candidates(self) -> Iterator[str]:
        """Every code there is, in the order of the alphabet."""
        for number in range(self.num_candidates):
            yield self._code(number)

    def others(self, how_many: int, *, seed: int) -> list[str]:
        """Codes drawn uniformly with replacement from all but the secret's own."""
        if how_many < 1:
            raise _bad(f"at least one other code must be drawn, got {how_many}")
        draw, own = random.Random(seed), self._number(self.code)
        numbers = (draw.randrange(self.num_candidates - 1) for _ in range(how_many))
        return [self._code(number + (number >= own)) for number in numbers]

    def _code(self, number: int) -> str:
        symbols = []
        for _ in self.code:
            number, place = divmod(number, len(self.alphabet))
            symbols.append(self.alphabet[place])
        return "".join(reversed(symbols))

    def _number(self, code: str) -> int:
        number = 0
        for symbol in code:
            number = number * len(self.alphabet) + self.alphabet.index(symbol)
        return number


def plant(
    texts: Sequence[str], secret: Secret, *, copies: int, seed: int, separator: str = "\n"
) -> tuple[list[str], tuple[int, ...]]:
    """Put the secret's sentence at the head of `copies` different texts.

    At the head, so that cutting long texts never cuts the secret out. Each text stays one example: with one
    copy, the secret is a part of one privacy unit of the row, and with k copies of k.

    Args:
        texts: the training texts.
        secret: what to plant.
        copies: in how many texts.
        seed: chooses them; kept apart from the keys of noise and sampling.
        separator: between the sentence and the text.

    Returns:
        The texts, changed where planted, and the indices of those.

    Raises:
        ConfigError[audit-secret]: fewer texts than copies, or no copy at all.
    """
    if not 1 <= copies <= len(texts):
        raise _bad(f"copies must be from 1 to the number of texts ({len(texts)}), got {copies}")
    chosen = tuple(sorted(random.Random(seed).sample(range(len(texts)), copies)))
    planted = list(texts)
    for index in chosen:
        planted[index] = f"{secret.sentence()}{separator}{planted[index]}"
    return planted, chosen


def _bad(problem: str) -> ConfigError:
    return ConfigError(f"The planted secret: {problem}.", code="audit-secret")
