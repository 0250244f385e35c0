from src.cli import compose
from src.config import Plan, typed
from src.plan import plan


def test_a_plan_names_parts_memory_and_devices(words, capsys):
    """For a model of this disk: its own shapes, not those of the 7B."""
    plan(typed(Plan, compose("plan", [*words, "plan.images=1", "plan.text=12", "plan.memory=[1,2]", "plan.reserve=0"])))
    said = capsys.readouterr().out
    assert "37,568" in said
    assert "activations of 272 tokens" in said  # 16 samples of 17
    assert "17 tokens and" in said
    assert "96 samples take" in said
    rows = [line.split() for line in said.splitlines() if line.strip().startswith(("1 GB", "2 GB"))]
    assert len(rows) == 2
    for row in rows:
        none, cheap, full = (int(number.replace(",", "")) for number in row[2:])
        assert 0 < none < cheap < full
