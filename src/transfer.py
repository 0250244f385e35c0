"""`python -m src.transfer encoder=NAME benchmark=NAME`: evaluates image encoders on classification sets.

The same command again, or another encoder under the same name=, computes only the missing results.
"""

import json
from pathlib import Path

from src.classification.names import check_encoder_name, dataset_folder
from src.config.transfer import TransferConfig, check_transfer_config, to_list
from src.runtime.cli import command


def transfer(config: TransferConfig) -> Path:
    """Computes the missing results and returns the run folder. All names are checked before the first fit."""
    check_transfer_config(config)
    for name in to_list(config.encoder):
        check_encoder_name(name, outputs=config.outputs)
    for name in config.benchmark_names:
        dataset_folder(name, config.raw, lists=config.benchmark_lists)
    from src.commands import transfer as implementation  # imports torch, which takes seconds: mistakes are reported before

    return implementation.transfer(config)


@command("transfer", TransferConfig)
def main(config: TransferConfig) -> None:
    folder = transfer(config)
    tables = json.loads((folder / "transfer.json").read_text())["transfer"]
    for row in tables["cells"]:
        print_result(row["benchmark"], row["encoder"], row["protocol"], row["macro_f1"])
    for row in tables["means"]:
        print_result(f"mean of {len(row['benchmarks'])}", row["encoder"], row["protocol"], row)
    for row in tables["differences"]:
        print_result(row["benchmark"], f"{row['ours']} - {row['other']}", row["protocol"], row)
    print(f"macro-F1 with 95% intervals; more in {folder}/transfer.json")


def print_result(benchmark: str, encoder: str, protocol: str, score: dict) -> None:
    if "shot" not in protocol:
        print(
            f"{benchmark:18} {encoder:28} {protocol:10} {score['value']:6.3f}  [{score['low']:.3f}, {score['high']:.3f}]  n={score['n']:,}"
        )


if __name__ == "__main__":
    main()
