"""`python -m src.plan +experiment=NAME`: estimates what a training run costs, before anything is downloaded or started."""

from src.config.plan import PlanConfig, check_plan_config
from src.runtime.cli import command


@command("plan", PlanConfig, validate=check_plan_config)
def main(config: PlanConfig) -> None:
    from src.commands.plan import plan  # imports torch, which takes seconds: mistakes are reported before

    plan(config)


if __name__ == "__main__":
    main()
