"""Options: what their fields say is what the command line, the help and the checks do."""

from dataclasses import dataclass, fields, replace

import pytest
import torch

from duolora.errors import InputError
from duolora.merging.options import METHODS, WEIGHTS, MergeOptions
from duolora.options import Range, check, choices, kind, option, parsed, told
from duolora.paper.choices import Norm
from duolora.training.options import TrainOptions


@dataclass(frozen=True)
class Few:
    size: int = option(3, "How big.", section="Sec. 4", least=1)
    share: float = option(0.5, "How much.", above=0, most=1)
    chance: float = option(0.0, "How often.", least=0, below=1)
    norm: Norm = option("diag", "Which norm.")
    on: bool = option(True, "Whether.")


@pytest.mark.parametrize(
    ("name", "words", "good", "bad"),
    [
        ("size", "a whole number, 1 or more", "1", "0"),
        ("share", "a number above 0 and at most 1", "1", "0"),
        ("chance", "a number from 0 to below 1", "0", "1"),
        ("share", "a number above 0 and at most 1", "0.1", "nan"),
        ("norm", "one of diag, vector", "vector", "banana"),
    ],
)
def test_a_field_says_what_is_parsed_and_checked(name, words, good, bad):
    assert kind(Few, name) == words
    check(replace(Few(), **{name: parsed(Few(), name, good)}))
    with pytest.raises(InputError, match=f"{name}: expected {words.replace('a number', 'a finite number')}, got"):
        check(replace(Few(), **{name: parsed(Few(), name, bad)}))


@pytest.mark.parametrize(("name", "text"), [("size", "1.5"), ("on", "perhaps"), ("share", "much")])
def test_values_of_another_type_are_refused(name, text):
    with pytest.raises(InputError, match=f"{name}={text}: expected {kind(Few, name)}"):
        parsed(Few(), name, text)


def test_help_names_the_section():
    assert told(Few, "size") == "How big (Sec. 4)."
    assert told(Few, "on") == "Whether."


def test_a_range_holds_its_ends_as_it_says():
    assert Range(least=1).holds(1) and not Range(above=1).holds(1)
    assert Range(most=1).holds(1) and not Range(below=1).holds(1)
    assert str(Range()) == ""


def test_all_options_have_help_and_all_methods_are_sound():
    for options in (MergeOptions, TrainOptions):
        for field in fields(options):
            assert len(told(options, field.name)) > 15
    for method in METHODS.values():
        check(method)
    check(TrainOptions())
    assert choices(MergeOptions, "init") == ("ones", "values", "all-ones", "split", "oneshot")


@pytest.mark.parametrize("preset", WEIGHTS)
def test_presets_weigh_the_cycle_only_and_average_layers(preset):
    options = replace(METHODS["duolora"], **WEIGHTS[preset])
    check(options)
    assert (options.multiplies, options.reduction) == ("cycle", "mean")


def test_rows_of_zero_weights_are_ziprank_in_what_they_minimise():
    """Table 9's row 0/0 has a loss: the reconstruction, which is ZipRank's."""
    from duolora.paper.constyle import ConstyleTerms, overall

    one, two, three = (torch.tensor(float(k)) for k in (1, 2, 3))
    terms = ConstyleTerms(one, two, three)
    zero = replace(METHODS["duolora"], lambda_layer_prior=0.0, lambda_cycle=0.0)
    loss = overall(terms, torch.tensor(7.0), 0.0, zero.lambda_cycle, zero.multiplies, zero.cycles)
    assert loss == terms.reconstruction
