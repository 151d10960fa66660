"""Lengths in tokens, drawn from a distribution that is written `512`, `uniform:100:900` or `normal:512:100`."""

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from remuda.clients.load.values import parse_count

Shape = Literal["fixed", "uniform", "normal", "lognormal"]
MAX_LENGTH: Final = 10_000_000
_SHAPES: Final[dict[str, Shape]] = {"uniform": "uniform", "normal": "normal", "lognormal": "lognormal"}
_FORMS: Final = "512, uniform:LEAST:MOST, normal:MEAN:DEVIATION or lognormal:MEAN:DEVIATION"


@dataclass(frozen=True)
class Lengths:
    """uniform: from a to b, both among them. normal, lognormal: mean a, standard deviation b, never below 1."""

    shape: Shape
    a: int
    b: int

    def draw(self, random: np.random.Generator) -> int:
        """One length, from 1 to MAX_LENGTH."""
        if self.shape == "fixed":
            return self.a
        if self.shape == "uniform":
            return int(random.integers(self.a, self.b + 1))
        if self.shape == "normal":
            drawn = random.normal(self.a, self.b)
        else:
            # Of the logarithm, so that the length itself has mean a and deviation b.
            variance = float(np.log1p((self.b / self.a) ** 2))
            drawn = random.lognormal(np.log(self.a) - variance / 2, variance**0.5)
        return min(max(round(float(drawn)), 1), MAX_LENGTH)


def parse_lengths(text: str) -> Lengths:
    """Raises ValueError for another form, or numbers out of range."""
    name, *numbers = text.strip().split(":")
    try:
        if not numbers:
            found = Lengths("fixed", *[parse_count(name)] * 2)
        elif name in _SHAPES and len(numbers) == 2:
            found = Lengths(_SHAPES[name], *map(parse_count, numbers))
        else:
            raise ValueError(f"there is no form of {len(numbers) + 1} parts called {name!r}")
    except ValueError as error:
        raise ValueError(f"{text[:60]!r} is not {_FORMS}: {error}") from error
    if max(found.a, found.b) > MAX_LENGTH or (found.shape == "uniform" and found.a > found.b):
        raise ValueError(f"{text[:60]!r}: LEAST is above MOST, or a length above {MAX_LENGTH}")
    return found
