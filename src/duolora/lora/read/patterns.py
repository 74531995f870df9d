r"""Patterns of module names in PEFT's configs, matched in time linear in the name, whatever the pattern.

All patterns of a config are one automaton (Thompson 1968) that is run once over a name, in all its states at the same
time: it never goes back, as Python's own engine does, for which `([\w.]+)+!` takes longer than anybody waits. What is
found out about one name is kept for the next, since names begin alike.

Known: letters, `.`, `\.`, `\d`, `\w`, classes, groups, `|`, `*`, `+`, `?`, `^` and `$`. Trainers write no others.
"""

import string
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import reduce

_CLASSES = {"d": frozenset(string.digits), "w": frozenset(string.ascii_letters + string.digits + "_")}
_DEEPEST = 30
"""Groups within groups."""
_LONGEST = 200_000
"""Letters in all patterns of one config; a pattern with the name of every layer of SDXL has under 100,000."""
_STEPS = 1_000_000
"""States that may be looked at for one config: a few seconds. A pattern for each layer of SDXL takes a fifth of it."""
_REPEATS = {"*": (True, True), "+": (False, True), "?": (True, False)}
"""Whether the part before may be missing, and whether it may come again."""


class PatternRefused(ValueError):
    """A pattern that is none, or not one of those that trainers write."""


@dataclass(slots=True)
class _State:
    """One step of the automaton: read a letter, wait for an edge of the name, go several ways, or have matched."""

    among: frozenset[str] | None = None
    """Which letters, or any but these."""
    negated: bool = False
    edge: str = ""
    """^ or $."""
    then: tuple[int, ...] = ()
    pattern: int | None = None


_Part = Callable[[int], int]
"""Puts the states of a part in front of a state; returns the one that it begins with."""


class _Parser:
    """A pattern, how far it has been read, and the states that are made of it."""

    def __init__(self, text: str, states: list[_State]) -> None:
        self.text, self.states, self.at, self.depth = text, states, 0, 0

    def whole(self, then: int) -> int:
        """The state that the pattern begins with; after it comes the state `then`.

        Raises:
            PatternRefused: it cannot be read to its end.
        """
        found = self._choice()
        if self.at < len(self.text):
            raise PatternRefused("a ) that closes nothing")
        return found(then)

    def _new(self, state: _State) -> int:
        self.states.append(state)
        return len(self.states) - 1

    def _choice(self) -> _Part:
        parts = [self._chain()]
        while self._take("|"):
            parts.append(self._chain())
        return lambda then: self._new(_State(then=tuple(part(then) for part in parts)))

    def _chain(self) -> _Part:
        parts: list[_Part] = []
        while self.at < len(self.text) and self.text[self.at] not in "|)":
            parts.append(self._repeated())
        return lambda then: reduce(lambda after, part: part(after), reversed(parts), then)

    def _repeated(self) -> _Part:
        edge, part = self.text[self.at] in "^$", self._atom()
        sign = self.text[self.at : self.at + 1]
        if sign not in _REPEATS:
            return part
        if edge:
            raise PatternRefused(f"nothing before {sign} that could be repeated")
        self.at += 1
        self._take("?")  # what is taken first, more or less, does not matter where the whole name has to fit
        if self.text[self.at : self.at + 1] in _REPEATS:
            raise PatternRefused(f"{sign} repeated")
        missing, again = _REPEATS[sign]

        def built(then: int) -> int:
            """A fork: into the part, or past it."""
            fork = self._new(_State())
            inside = part(fork if again else then)
            self.states[fork].then = (inside, then)
            return fork if missing else inside

        return built

    def _atom(self) -> _Part:
        letter = self._next()
        match letter:
            case "(":
                return self._group()
            case "[":
                return self._class()
            case "^" | "$":
                return lambda then: self._new(_State(edge=letter, then=(then,)))
            case "*" | "+" | "?":
                raise PatternRefused(f"nothing before {letter} that could be repeated")
            case "{":
                raise PatternRefused("a counted repetition")
        if letter == ".":
            return self._letter(frozenset(), True)
        return self._letter(self._escaped() if letter == "\\" else frozenset(letter))

    def _letter(self, among: frozenset[str], negated: bool = False) -> _Part:
        return lambda then: self._new(_State(among, negated, then=(then,)))

    def _group(self) -> _Part:
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

    def _class(self) -> _Part:
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
        return self._letter(frozenset(among), negated)

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


class Matcher:
    """Finds the first pattern, in the config's order, that a name fits as PEFT fits it: to its end, at any depth."""

    def __init__(self, patterns: Iterable[str]) -> None:
        """Make the automaton.

        Raises:
            PatternRefused: a pattern is damaged or of a kind that trainers do not write, or they are too long together.
        """
        patterns = list(patterns)
        if sum(map(len, patterns)) > _LONGEST:
            raise PatternRefused(f"more than {_LONGEST} letters")
        self._states = [_State(pattern=number) for number in range(len(patterns))]
        self._reached: dict[tuple[int, str], frozenset[int]] = {}
        self._moves: dict[frozenset[int], dict[str, frozenset[int]]] = {}
        self._found: dict[str, int | None] = {}
        self._steps = 0
        entries = []
        for number, text in enumerate(patterns):
            try:
                entries.append(_Parser(text, self._states).whole(number))
            except PatternRefused as error:
                raise PatternRefused(f"{text[:80]!r} has {error}") from error
        self._states.append(_State(then=tuple(entries)))
        start = _Parser(r"(.*\.)?", self._states).whole(len(self._states) - 1)
        self._start = self._closure([start], beginning=True)

    def first(self, name: str) -> int | None:
        """The number of the first pattern that fits the name; None if none does.

        Raises:
            PatternRefused: all names together take longer than any patterns that trainers write.
        """
        if name not in self._found:
            at = self._start
            for letter in name:
                moves = self._moves.setdefault(at, {})
                if letter not in moves:  # the states after one more letter, worked out once
                    self._count(len(at))
                    moves[letter] = frozenset().union(*(self._after(state, letter) for state in at))
                at = moves[letter]
            ends = self._closure(at, end=True)
            self._found[name] = min((n for i in ends if (n := self._states[i].pattern) is not None), default=None)
        return self._found[name]

    def _after(self, state: int, letter: str) -> frozenset[int]:
        """The states that one state leads to by a letter, worked out once."""
        if (state, letter) not in self._reached:
            here = (self._states[i] for i in self._closure([state]))
            reached = (s.then[0] for s in here if s.among is not None and (letter in s.among) != s.negated)
            self._reached[state, letter] = frozenset(reached)
        return self._reached[state, letter]

    def _closure(self, states: Iterable[int], beginning: bool = False, end: bool = False) -> frozenset[int]:
        """All states that are reached without reading a letter, and from which it can go on."""
        todo, seen, found = list(states), set(states), []
        while todo:
            i = todo.pop()
            state = self._states[i]
            if state.among is None and (not state.edge or (beginning if state.edge == "^" else end)):
                new = [i for i in state.then if i not in seen]
                seen.update(new)
                todo += new
            if state.among is not None or state.edge or state.pattern is not None:
                found.append(i)
        self._count(len(seen))
        return frozenset(found)

    def _count(self, steps: int) -> None:
        self._steps += steps
        if self._steps > _STEPS:
            raise PatternRefused("too many ways to fit a name")
