"""Registries of constructors with typed options, built from YAML blocks `{name: …, option: …}`.

A registered constructor takes its options as annotated, keyword-only arguments. `*args` and `**kwargs` are rejected at
registration, because they would accept misspelt options.
"""

import inspect
import sys
import traceback
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any, Generic, TypeVar

from attnzoo.errors import UserError, as_yaml, did_you_mean, unknown

T = TypeVar("T", bound=Callable[..., Any])
RESERVED = ("name", "where")  # arguments of Registry.build


class Registry(Generic[T]):
    """Constructors of one kind by name; `kind` is the word for it in messages, such as "attention".

    Positional arguments of constructors come from the program, keyword-only ones from the user.
    """

    def __init__(self, kind: str, base: type | None = None):
        self.kind = kind
        self._base = base  # of which all constructors are subclasses
        self._constructors: dict[str, T] = {}
        self._refused: list[tuple[str, Exception]] | None = None  # where and why; None: raise

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that registers a class or function as `name`.

        Raises TypeError for a constructor with `*args`, `**kwargs`, an option without annotation or one named `name` or
        `where`, and for one that is no subclass of `base`; UserError for a name that is taken.
        """

        def decorator(constructor: T) -> T:
            try:
                self._add(name, constructor)
            except (TypeError, UserError) as error:
                if self._refused is None:
                    raise
                caller = traceback.extract_stack(limit=2)[0]
                self._refused.append((f"{caller.filename}:{caller.lineno}", error))
            return constructor

        return decorator

    def _add(self, name: str, constructor: T) -> None:
        if self._base is not None and not (inspect.isclass(constructor) and issubclass(constructor, self._base)):
            kind = "class" if inspect.isclass(constructor) else "function"
            found = getattr(constructor, "__name__", repr(constructor))
            expected = f"expected a subclass of {self._base.__module__.rpartition('.')[0]}.{self._base.__name__}"
            raise TypeError(f"{self.kind} {name!r} is the {kind} {found}: {expected}")
        for option in _parameters(constructor):
            if option.kind in (option.VAR_POSITIONAL, option.VAR_KEYWORD):
                raise TypeError(f"{self.kind} {name!r}: *args and **kwargs would accept misspelt options")
            if option.kind is option.KEYWORD_ONLY and option.annotation is option.empty:
                raise TypeError(f"{self.kind} {name!r}: option {option.name!r} has no type annotation")
            if option.kind is option.KEYWORD_ONLY and option.name in RESERVED:
                raise TypeError(f"{self.kind} {name!r}: the option name {option.name!r} is reserved")
        existing = self._constructors.setdefault(name, constructor)
        if existing is not constructor:
            raise UserError(f"{self.kind} {name!r} is already registered by {existing.__module__}")

    @contextmanager
    def collect_refused(self) -> Iterator[list[tuple[str, Exception]]]:
        """Within it, `register` raises nothing: it leaves out what it refuses and adds its FILE:LINE and error here."""
        self._refused = []
        try:
            yield self._refused
        finally:
            self._refused = None

    def remove(self, name: str) -> None:
        """Forget a registered name."""
        del self._constructors[name]

    def names(self, pattern: str = "*") -> list[str]:
        """The registered names that match a shell pattern, such as "dat*", sorted."""
        return sorted(name for name in self._constructors if fnmatchcase(name, pattern))

    def get(self, name: str, where: str = "") -> T:
        """The constructor registered as `name`; `where` is the config key of the block that names it.

        Raises UserError, with the nearest name, if there is none.
        """
        if not isinstance(name, str) or name not in self._constructors:  # YAML values can have any type
            raise unknown(self.kind, name, self._constructors, f"{where}.name" if where else "")
        return self._constructors[name]

    def options(self, name: str) -> dict[str, inspect.Parameter]:
        """The options (keyword-only parameters) of `name`."""
        return {p.name: p for p in _parameters(self.get(name)) if p.kind is p.KEYWORD_ONLY}

    def types(self, name: str) -> dict[str, Any]:
        """The type of each option of `name`. Raises NameError for an annotation that names nothing."""
        constructor = self.get(name)
        hints = typing.get_type_hints(constructor.__init__ if inspect.isclass(constructor) else constructor)
        return {option: hints[option] for option in self.options(name)}

    def check(self, name: str, options: Mapping[str, Any], where: str = "") -> None:
        """Raise UserError for an unknown name or option, a value of the wrong type and a missing option.

        `where` is the config key of the block.
        """
        self.get(name, where)
        allowed, hints = self.options(name), self.types(name)
        for option, value in options.items():
            key = f"{where}.{option}" if where else option
            if option not in allowed:
                hint = f"{did_you_mean(option, allowed)} (options: {', '.join(allowed) or 'none'})"
                raise UserError(f"{self.kind} {name!r} has no option {option!r}{hint}", key=key).at(where)
            if not matches_type(value, hints[option]):
                raise UserError(f"{key} = {as_yaml(value)}: expected {format_type(hints[option])}", key=key)
        for option, parameter in allowed.items():
            if parameter.default is parameter.empty and option not in options:
                raise UserError(f"{self.kind} {name!r} needs the option {option!r}", key=where or option).at(where)

    def with_defaults(self, block: Mapping[str, Any], where: str = "") -> dict[str, Any]:
        """The block `{name: …, option: …}`, checked, with the defaults of all other options."""
        name, options = _split(block)
        self.check(name, options, where)
        defaults = {p.name: p.default for p in self.options(name).values() if p.default is not p.empty}
        return {"name": name, **to_plain(defaults), **options}

    def build(self, name: str, /, *args: Any, where: str = "", **options: Any) -> Any:
        """Construct `name` from the program's `args` and the user's `options`.

        `where` is the config key of the options' block, which messages name. Raises UserError as `check` does, and for
        a value that the constructor rejects.
        """
        return self._construct(name, options, args, where)

    def build_block(self, block: Mapping[str, Any], /, *args: Any, where: str = "") -> Any:
        """Construct what a block `{name: …, option: …}` describes, as `build` does."""
        return self._construct(*_split(block), args, where)

    def _construct(self, name: str, options: Mapping[str, Any], args: Sequence[Any], where: str) -> Any:
        self.check(name, options, where)
        try:
            return self.get(name)(*args, **options)
        except UserError as error:
            if error.keys or not where:
                raise
            raise UserError(str(error), key=where).at(where) from None


def to_plain(value: Any) -> Any:
    """A copy of a value as YAML would hold it: lists for tuples."""
    if isinstance(value, Mapping):
        return {key: to_plain(item) for key, item in value.items()}
    return [to_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _split(block: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    options = dict(block)
    return options.pop("name"), options


def _parameters(constructor: Callable[..., Any]) -> list[inspect.Parameter]:
    return list(inspect.signature(constructor).parameters.values())


def matches_type(value: Any, hint: Any) -> bool:
    """Whether a YAML value matches a type hint; lists match tuples, ints match floats."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(matches_type(value, arg) for arg in args)
    if origin is typing.Literal:
        return any(value == arg and type(value) is type(arg) for arg in args)
    if origin in (list, tuple):
        if not isinstance(value, (list, tuple)):
            return False
        if origin is list or args[-1:] == (...,):
            return all(matches_type(item, args[0]) for item in value)
        return len(value) == len(args) and all(map(matches_type, value, args))
    if origin is dict:
        return isinstance(value, Mapping) and all(
            matches_type(key, args[0]) and matches_type(item, args[1]) for key, item in value.items()
        )
    if hint is types.NoneType:
        return value is None
    if isinstance(value, bool):
        return hint is bool
    if hint is float:
        return isinstance(value, float) or (isinstance(value, int) and abs(value) <= sys.float_info.max)
    return isinstance(value, hint)


def format_type(hint: Any) -> str:
    """A type hint for messages: `int`, `'a' | 'b'`, `list of 2 int`, `mapping of str to float`."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return " | ".join(map(as_yaml, args))
    if origin in (typing.Union, types.UnionType):
        return " | ".join(map(format_type, args))
    if hint == list[Any]:
        return "list"
    if origin in (list, tuple):
        kinds = list(dict.fromkeys(format_type(a) for a in args if a is not ...))
        count = f"{len(args)} " if origin is tuple and ... not in args else ""
        return f"list of {count}{' and '.join(kinds)}"
    if origin is dict:
        return "a mapping" if args[1] is Any else f"a mapping of {format_type(args[0])} to {format_type(args[1])}"
    if hint is Any:
        return "anything"
    if hint is types.NoneType:
        return "null"
    return getattr(hint, "__name__", str(hint))
