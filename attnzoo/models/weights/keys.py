"""Names of parameters with numbers in them, `encoder.layers.{i}.fc1.`, matched and filled in both directions."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

_FIELD = re.compile(r"\{(?:(?P<factor>\d+)\*)?(?P<name>[a-z]+|\*|=[a-z]+)(?:\+(?P<add>\d+))?\}")
_PART = re.compile(r"\[(?P<index>\d+)/(?P<count>\d+)\]\Z")


@dataclass(frozen=True)
class Template:
    """A name or, where it ends in a dot or an underscore or is empty, the start of names.

    - `{i}`, `{i+1}`, `{2*i}`, `{2*i+1}`: a number, from which i is computed
    - `{=n}`: the known number n
    - `{*}`: any number, for parameters that several layers share
    - `[0/3]` at the end: the first of three parts, of equal size, along the first dimension
    """

    text: str

    @cached_property
    def part(self) -> tuple[int, int] | None:
        """Index and number of parts, or None for the whole tensor."""
        match = _PART.search(self.text)
        return match and (int(match["index"]), int(match["count"]))

    @property
    def shared(self) -> bool:
        return "{*}" in self.text

    @cached_property
    def _name(self) -> str:
        return _PART.sub("", self.text)

    @cached_property
    def _fields(self) -> list[tuple[str, int, int]]:
        """Name, factor and summand of each field."""
        return [
            (field["name"], int(field["factor"] or 1), int(field["add"] or 0)) for field in _FIELD.finditer(self._name)
        ]

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        literals = _FIELD.split(self._name)[:: _FIELD.groups + 1]
        is_start = not self._name or self._name[-1] in "._"
        return re.compile(
            r"(\d+)".join(map(re.escape, literals)) + ("(?P<rest>.*)" if is_start else "(?P<rest>)") + r"\Z"
        )

    def match(self, key: str, known: Mapping[str, int]) -> tuple[dict[str, int], str] | None:
        """The numbers in `key` and the rest of the name, or None if it does not match."""
        match = self._pattern.match(key)
        if match is None:
            return None
        values: dict[str, int] = {}
        for (name, factor, add), digits in zip(self._fields, match.groups(), strict=False):
            value, remainder = divmod(int(digits) - add, factor)
            expected = known.get(name[1:]) if name.startswith("=") else values.get(name, value)
            if remainder or value < 0 or value != expected:
                return None
            values[name] = value
        return values, match["rest"]

    def fill(self, values: Mapping[str, int], rest: str, known: Mapping[str, int]) -> str:
        """The name with its numbers and `rest` filled in."""

        def number(field: re.Match[str]) -> str:
            name = field["name"]
            value = known[name[1:]] if name.startswith("=") else values[name]
            return str(int(field["factor"] or 1) * value + int(field["add"] or 0))

        return _FIELD.sub(number, self._name) + rest

    def fill_zeros(self) -> str:
        """A name that matches, for messages."""
        return _FIELD.sub(lambda field: field["add"] or "0", self._name)
