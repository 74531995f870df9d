r"""Patterns of module names in PEFT's configs, matched in time linear in the name, whatever the pattern.

All patterns of a config are one automaton (Thompson 1968) that is run once over a name, in all its states at the same
time: it never goes back, as Python's own engine does, for which `([\w.]+)+!` takes longer than anybody waits. What is
found out about one name is kept for the next, since names begin alike.

Known: letters, `.`, `\.`, `\d`, `\w`, classes, groups, `|`, `*`, `+`, `?`, `^` and `$`. Trainers write no others.
"""

import string
from collections.abc import Iterable
from dataclasses import dataclass, field

_WORD = frozenset(string.ascii_letters + string.digits + "_")
_CLASSES = {"d": frozenset(string.digits), "w": _WORD}
_DEEPEST = 30
"""Groups within groups."""
_LONGEST = 200_000
"""Letters in all patterns of one config; a pattern with the name of every layer of SDXL has under 100,000."""
_STEPS = 1_000_000
"""States that may be looked at for one config: a few seconds. A pattern for each layer of SDXL takes a fifth of it."""


class PatternRefused(ValueError):
    """A pattern that is none, or not one of those that trainers write."""


@dataclass(frozen=True)
class _Letter:
    """One letter out of some, or any but some."""

    among: frozenset[str]
    negated: bool = False


@dataclass(frozen=True)
class _Edge:
    """The beginning (^) or the end ($) of the name."""

    beginning: bool


@dataclass(frozen=True)
class _Chain:
    """One part after another."""

    parts: tuple["_Node", ...]


@dataclass(frozen=True)
class _Choice:
    """One part or another."""

    parts: tuple["_Node", ...]


@dataclass(frozen=True)
class _Repeat:
    """A part that may be missing, or come again."""

    part: "_Node"
    missing: bool
    again: bool


_Node = _Letter | _Edge | _Chain | _Choice | _Repeat
_REPEATS = {"*": (True, True), "+": (False, True), "?": (True, False)}
_ANY = _Letter(frozenset(), negated=True)
_AT_ANY_DEPTH = _Repeat(_Chain((_Repeat(_ANY, True, True), _Letter(frozenset(".")))), True, False)


@dataclass
class _Parser:
    """A pattern and how far it has been read."""

    text: str
    at: int = 0
    depth: int = 0

    def whole(self) -> _Node:
        """The pattern as a tree.

        Raises:
            PatternRefused: it cannot be read to its end.
        """
        found = self._choice()
        if self.at < len(self.text):
            raise PatternRefused("a ) that closes nothing")
        return found

    def _choice(self) -> _Node:
        parts = [self._chain()]
        while self._take("|"):
            parts.append(self._chain())
        return parts[0] if len(parts) == 1 else _Choice(tuple(parts))

    def _chain(self) -> _Node:
        parts: list[_Node] = []
        while self.at < len(self.text) and self.text[self.at] not in "|)":
            parts.append(self._repeated(self._atom()))
        return _Chain(tuple(parts))

    def _repeated(self, node: _Node) -> _Node:
        sign = self.text[self.at : self.at + 1]
        if sign not in _REPEATS:
            return node
        if isinstance(node, _Edge):
            raise PatternRefused(f"nothing before {sign} that could be repeated")
        self.at += 1
        self._take("?")  # what is taken first, more or less, does not matter where the whole name has to fit
        if self.text[self.at : self.at + 1] in _REPEATS:
            raise PatternRefused(f"{sign} repeated")
        return _Repeat(node, *_REPEATS[sign])

    def _atom(self) -> _Node:
        letter = self._next()
        match letter:
            case "(":
                return self._group()
            case "[":
                return self._class()
            case ".":
                return _ANY
            case "^" | "$":
                return _Edge(letter == "^")
            case "\\":
                return _Letter(self._escaped())
            case "*" | "+" | "?":
                raise PatternRefused(f"nothing before {letter} that could be repeated")
            case "{":
                raise PatternRefused("a counted repetition")
        return _Letter(frozenset(letter))

    def _group(self) -> _Node:
        if self._take("?") and not self._take(":"):
            raise PatternRefused(f"(?{self.text[self.at : self.at + 1]}")
        self.depth += 1
        if self.depth > _DEEPEST:
            raise PatternRefused(f"more than {_DEEPEST} groups within each other")
        found = self._choice()
        self.depth -= 1
        if not self._take(")"):
            raise PatternRefused("a ( without )")
        return found

    def _class(self) -> _Letter:
        negated, among = self._take("^"), set[str]()
        first = True
        while first or not self._take("]"):
            first = False
            letter = self._next()
            some = self._escaped() if letter == "\\" else frozenset(letter)
            after = self.text[self.at + 1 : self.at + 2]
            if len(some) == 1 and self.text[self.at : self.at + 1] == "-" and after not in ("]", ""):
                self.at += 2
                end = min(self._escaped() if after == "\\" else after)
                if not min(some) <= end <= "\x7f":
                    raise PatternRefused(f"a range that ends in {end}")
                some = frozenset(map(chr, range(ord(min(some)), ord(end) + 1)))
            among |= some
        return _Letter(frozenset(among), negated)

    def _escaped(self) -> frozenset[str]:
        letter = self._next()
        if letter.isalnum() and letter not in _CLASSES:
            raise PatternRefused(f"\\{letter}")
        return _CLASSES.get(letter, frozenset(letter))

    def _next(self) -> str:
        if self.at >= len(self.text):
            raise PatternRefused("an end where none should be")
        self.at += 1
        return self.text[self.at - 1]

    def _take(self, letter: str) -> bool:
        found = self.text[self.at : self.at + 1] == letter
        self.at += found
        return found


@dataclass(slots=True)
class _State:
    """One step of the automaton: read a letter, wait for an edge, go several ways, or have matched a pattern."""

    letter: _Letter | None = None
    edge: _Edge | None = None
    then: tuple[int, ...] = ()
    pattern: int | None = None


@dataclass
class Matcher:
    """Finds the first pattern, in the config's order, that a name fits as PEFT fits it: to its end, at any depth.

    Raises:
        PatternRefused: a pattern is damaged or of a kind that trainers do not write, or all together take too long.
    """

    patterns: Iterable[str]
    _states: list[_State] = field(default_factory=list)
    _reached: dict[tuple[int, str], frozenset[int]] = field(default_factory=dict)
    _numbers: dict[frozenset[int], int] = field(default_factory=dict)
    _sets: list[frozenset[int]] = field(default_factory=list)
    _moves: list[dict[str, int]] = field(default_factory=list)
    _found: dict[str, int | None] = field(default_factory=dict)
    _steps: int = 0

    def __post_init__(self) -> None:
        patterns = list(self.patterns)
        if sum(map(len, patterns)) > _LONGEST:
            raise PatternRefused(f"more than {_LONGEST} letters")
        entries = []
        for number, text in enumerate(patterns):
            try:
                node = _Parser(text).whole()
            except PatternRefused as error:
                raise PatternRefused(f"{text[:80]!r} has {error}") from error
            entries.append(self._built(node, self._new(_State(pattern=number))))
        start = self._built(_AT_ANY_DEPTH, self._new(_State(then=tuple(entries))))
        self._start = self._number(self._closure([start], beginning=True))

    def first(self, name: str) -> int | None:
        """The number of the first pattern that fits the name; None if none does."""
        if name not in self._found:
            at = self._start
            for letter in name:
                there = self._moves[at].get(letter)
                at = self._moved(at, letter) if there is None else there
            ends = self._closure(self._sets[at], end=True)
            self._found[name] = min((n for i in ends if (n := self._states[i].pattern) is not None), default=None)
        return self._found[name]

    def _moved(self, at: int, letter: str) -> int:
        """The states after one more letter, worked out once."""
        self._count(len(self._sets[at]))
        reached = frozenset().union(*(self._after(state, letter) for state in self._sets[at]))
        self._moves[at][letter] = found = self._number(reached)
        return found

    def _after(self, state: int, letter: str) -> frozenset[int]:
        """The states that one state leads to by a letter, worked out once."""
        if (state, letter) not in self._reached:
            tests = ((self._states[i].letter, self._states[i].then) for i in self._closure([state]))
            reached = (then[0] for test, then in tests if test and (letter in test.among) != test.negated)
            self._reached[state, letter] = frozenset(reached)
        return self._reached[state, letter]

    def _closure(self, states: Iterable[int], beginning: bool = False, end: bool = False) -> frozenset[int]:
        """All states that are reached without reading a letter, and from which it can go on."""
        todo, seen, found = list(states), set(states), []
        while todo:
            i = todo.pop()
            state = self._states[i]
            if state.letter is None and (state.edge is None or (beginning if state.edge.beginning else end)):
                new = [i for i in state.then if i not in seen]
                seen.update(new)
                todo += new
            if state.letter or state.edge or state.pattern is not None:
                found.append(i)
        self._count(len(seen))
        return frozenset(found)

    def _count(self, steps: int) -> None:
        self._steps += steps
        if self._steps > _STEPS:
            raise PatternRefused("too many ways to fit a name")

    def _number(self, states: frozenset[int]) -> int:
        if states not in self._numbers:
            self._numbers[states] = len(self._sets)
            self._sets.append(states)
            self._moves.append({})
        return self._numbers[states]

    def _new(self, state: _State) -> int:
        self._states.append(state)
        return len(self._states) - 1

    def _built(self, node: _Node, then: int) -> int:
        """The state that a part begins with; after it comes the state `then`."""
        match node:
            case _Letter():
                return self._new(_State(letter=node, then=(then,)))
            case _Edge():
                return self._new(_State(edge=node, then=(then,)))
            case _Chain(parts):
                for part in reversed(parts):
                    then = self._built(part, then)
                return then
            case _Choice(parts):
                return self._new(_State(then=tuple(self._built(part, then) for part in parts)))
            case _Repeat(part, missing, again):
                fork = self._new(_State())
                inside = self._built(part, fork if again else then)
                self._states[fork].then = (inside, then)
                return fork if missing else inside
