"""Named things with typed options: what a YAML block `{name: …, option: …}` is built from.

A registered constructor names every option it takes, keyword-only and annotated. `*args` and `**kwargs`
are refused when it is registered, because they let misspelt options vanish.
"""

import inspect
import sys
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

from attnzoo.errors import UserError, did_you_mean, unknown

T = TypeVar("T", bound=Callable[..., Any])


class Registry(Generic[T]):
    """A table of constructors of one kind.

    `kind` is the word used in messages, such as "attention". Constructors take what the program knows
    positionally and what the user chooses keyword-only.
    """

    def __init__(self, kind: str):
        self.kind = kind
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that enters a class or function under `name`.

        Raises TypeError for a constructor with `*args`, `**kwargs`, an option without annotation or one called
        `where`, and UserError for a name that is taken.
        """

        def enter(constructor: T) -> T:
            for option in _parameters(constructor):
                if option.kind in (option.VAR_POSITIONAL, option.VAR_KEYWORD):
                    raise TypeError(f"{self.kind} {name!r}: *args and **kwargs hide misspelt options")
                if option.kind is option.KEYWORD_ONLY and option.annotation is option.empty:
                    raise TypeError(f"{self.kind} {name!r}: option {option.name!r} has no type")
                if option.name == "where":
                    raise TypeError(f"{self.kind} {name!r}: no option can be called 'where', build takes it")
            holder = self._entries.setdefault(name, constructor)
            if holder is not constructor:
                raise UserError(f"{self.kind} {name!r} is already registered by {holder.__module__}")
            return constructor

        return enter

    def names(self) -> list[str]:
        """All registered names, sorted."""
        return sorted(self._entries)

    def get(self, name: str, where: str = "") -> T:
        """The constructor called `name`; raises UserError with the nearest name otherwise."""
        if not isinstance(name, str) or name not in self._entries:  # a YAML file can put anything here
            raise unknown(self.kind, str(name), self._entries, where)
        return self._entries[name]

    def options(self, name: str) -> dict[str, inspect.Parameter]:
        """The options (keyword-only parameters) that `name` takes."""
        return {p.name: p for p in _parameters(self.get(name)) if p.kind is p.KEYWORD_ONLY}

    def check(self, name: str, options: Mapping[str, Any], where: str = "") -> None:
        """Raise UserError unless `name` takes each of `options` with a value of its type."""
        constructor = self.get(name, where)
        known = self.options(name)
        hints = typing.get_type_hints(constructor.__init__ if inspect.isclass(constructor) else constructor)
        place = f"{where}: " if where else ""
        for option, value in options.items():
            if option not in known:
                takes = ", ".join(known) or "no options"
                raise UserError(
                    f"{place}{self.kind} {name!r} has no option {option!r}{did_you_mean(option, known)} (it takes: {takes})"
                )
            if not fits(value, hints[option]):
                raise UserError(f"{place}{option} = {value!r}: expected {format_type(hints[option])}")
        for option, parameter in known.items():
            if parameter.default is parameter.empty and option not in options:
                raise UserError(f"{place}{self.kind} {name!r} needs the option {option!r}")

    def complete(self, block: Mapping[str, Any], where: str = "") -> dict[str, Any]:
        """A block `{name: …, option: …}` with the options that it leaves out at their defaults.

        Raises UserError, naming `where`, for an unknown name.
        """
        self.get(block["name"], where)
        known = self.options(block["name"])
        defaults = {name: option.default for name, option in known.items() if option.default is not option.empty}
        return {"name": block["name"], **plain(defaults), **{k: v for k, v in block.items() if k != "name"}}

    def read_block(self, block: Mapping[str, Any], where: str) -> tuple[str, dict[str, Any]]:
        """The name in a block of a file and its options, checked, which `build` can then take as keywords.

        Raises UserError as `check` does.
        """
        options = dict(block)
        name = options.pop("name")
        self.check(name, options, where)
        return name, options

    def build(self, name: str, /, *given: Any, where: str = "", **options: Any) -> Any:
        """Construct `name` from what the program knows (`given`) and the user's `options`.

        Raises UserError for an unknown name, an option it does not take, a value of the wrong type, and what the
        constructor refuses; `where` is named in all of them.
        """
        self.check(name, options, where)
        try:
            return self.get(name)(*given, **options)
        except UserError as error:
            placed = not where or str(error).startswith(f"{where}.")
            raise UserError(str(error) if placed else f"{where}: {error}") from None


def plain(value: Any) -> Any:
    """A copy of a value as YAML would hold it: lists for tuples."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _parameters(constructor: Callable[..., Any]) -> list[inspect.Parameter]:
    return list(inspect.signature(constructor).parameters.values())


def fits(value: Any, hint: Any) -> bool:
    """Whether a YAML value can stand where `hint` is annotated: lists pass for tuples, ints for floats."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, arg) for arg in args)
    if origin is typing.Literal:
        return any(value == arg and type(value) is type(arg) for arg in args)
    if origin in (list, tuple):
        if not isinstance(value, (list, tuple)):
            return False
        if origin is list or args[-1:] == (...,):
            return all(fits(item, args[0]) for item in value)
        return len(value) == len(args) and all(map(fits, value, args))
    if origin is dict:
        return isinstance(value, Mapping) and all(fits(k, args[0]) and fits(v, args[1]) for k, v in value.items())
    if hint is types.NoneType:
        return value is None
    if isinstance(value, bool):
        return hint is bool
    if hint is float:
        return isinstance(value, float) or (isinstance(value, int) and abs(value) <= sys.float_info.max)
    return isinstance(value, hint)


def format_type(hint: Any) -> str:
    """A type as a user reads it: `int`, `'a' | 'b'`, `list of 2 int`."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return " | ".join(map(repr, args))
    if origin in (typing.Union, types.UnionType):
        return " | ".join(map(format_type, args))
    if hint == list[Any]:
        return "list"
    if origin in (list, tuple):
        kinds = list(dict.fromkeys(format_type(a) for a in args if a is not ...))
        count = f"{len(args)} " if origin is tuple and ... not in args else ""
        return f"list of {count}{' and '.join(kinds)}"
    if origin is dict:
        return f"keys ({format_type(args[0])}) and values ({format_type(args[1])})"
    if hint is Any:
        return "anything"
    if hint is types.NoneType:
        return "null"
    return getattr(hint, "__name__", str(hint))
