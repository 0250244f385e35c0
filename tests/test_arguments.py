"""The command line of data_prep and experiments: Hydra's grammar, lists with and without brackets, and mistakes."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from src.runtime.arguments import parse_arguments
from src.runtime.errors import UserError


@dataclass
class Config:
    """Help text."""

    sources: list[str]
    raw: Path = Path("raw")
    out: Path | None = None
    workers: int = 2
    share: float = 0.5
    small: bool = False
    question: str = ""
    options: dict[str, dict[str, str]] = field(default_factory=dict)


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("sources=a", ["a"]),
        ("sources=a,b", ["a", "b"]),
        ("sources=[a, b]", ["a", "b"]),
        ("sources='a, b',c", ["a, b", "c"]),
        ('sources=["seed=0",runs/x]', ["seed=0", "runs/x"]),
        ("sources=1,true", ["1", "True"]),
        ("sources=", []),
        ("raw=/a b/seed=0, (1)", Path("/a b/seed=0, (1)")),
        ("raw='a b'", Path("a b")),
        ("out=x", Path("x")),
        ("out=null", None),
        ("workers=3", 3),
        ("share=1e-3", 1e-3),
        ("small=true", True),
        ('question=[which] tumour, if any? ${x} "y"', '[which] tumour, if any? ${x} "y"'),
        ("question=007", "007"),
        ("options.brain.question=which tumour, if any?", {"brain": {"question": "which tumour, if any?"}}),
        ("options={a: {section: both, images: all}}", {"a": {"section": "both", "images": "all"}}),
    ],
)
def test_value_is_read_by_the_type_of_its_field(argument, expected):
    config = parse_arguments(Config, ["sources=x", argument])
    assert getattr(config, argument.partition("=")[0].partition(".")[0]) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sorces=a"], "unknown key 'sorces'; did you mean 'sources'?"),
        (["sources=a", "raw.x=a"], "unknown key 'raw.x'; did you mean 'raw'?"),
        (["raw=r"], "sources= is missing; give sources=..."),
        (["sources=a", "workers=two"], "workers='two' is not a whole number"),
        (["sources=a", "workers=1,2"], "workers='1,2' is not a whole number"),
        (["sources=a", "share=[1]"], "share='[1]' is not a number"),
        (["sources=a", "small=maybe"], "small='maybe' is not true or false"),
        (["own"], "'own' is not of the form key=value"),
    ],
)
def test_invalid_arguments_are_rejected(arguments, message):
    with pytest.raises(UserError) as error:
        parse_arguments(Config, arguments)
    assert str(error.value) == message


@pytest.mark.parametrize("argument", ["sources=[a", "options=a.section=both", "options.a=5", "options.a.b.c=1"])
def test_value_that_cannot_be_parsed_names_its_key(argument):
    with pytest.raises(UserError, match=r"^(sources|options\S*)='.*' cannot be parsed: "):
        parse_arguments(Config, ["sources=x", argument])


def test_help_prints_the_docstring_of_the_configuration(capsys):
    with pytest.raises(SystemExit) as exit_info:
        parse_arguments(Config, ["--help"])
    assert exit_info.value.code == 0
    assert "Help text." in capsys.readouterr().out
