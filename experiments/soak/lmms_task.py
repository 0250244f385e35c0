"""`python -m experiments.soak.lmms_task BENCHMARK SHARDS FOLDER`: the test questions of a benchmark as a local task of lmms-eval.

Writes FOLDER/BENCHMARK.yaml, the questions with their images (test.parquet) and the functions of the task, which score with our exact
match; lmms-eval therefore runs in the root of this repository with PYTHONPATH=. and `--include_path FOLDER`.
"""

import io
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image

from src.data.image_transform import decode_image
from src.data.prompt import options_text
from src.evaluation.benchmark import Benchmark, read_benchmark
from src.runtime.errors import UserError, report_user_errors

FUNCTIONS = '''"""Functions of a task that experiments/soak/lmms_task.py wrote."""

import io

from PIL import Image

from src.metrics.vqa import exact


def images(doc):
    return [Image.open(io.BytesIO(data)).convert("RGB") for data in doc["images"]]


def question(doc, lmms_eval_specific_kwargs=None):
    return doc["question"]


def process_results(doc, results):
    return {"exact_match": exact(results[0], doc["references"])}
'''


def write_task(test: Benchmark, folder: Path, *, max_new_tokens: int = 24, size: int | None = None, exact_decode: bool = False) -> str:
    """Returns the name of the task. Generation is greedy.

    With `size`, the images are the pixels that an encoder of this input size gets in `src.evaluate`, as PNG. Otherwise they are those of
    the shards, whose pixels may differ by a few grey levels: evaluation decodes a large JPEG at a fraction of its size unless the run has
    data.exact_decode=true, and processors of transformers resize with torchvision.
    """
    folder.mkdir(parents=True, exist_ok=True)
    records = [test.shards[row] for row in test.rows]
    columns = {
        "id": [record.key for record in records],
        "question": [record.turns[-1][0] + options_text(record) for record in records],
        "references": [record.references or [record.answer] for record in records],
        "images": [[_png(data, size, exact_decode) if size else data for data in record.images] for record in records],
    }
    pq.write_table(pa.table(columns), folder / "test.parquet")
    name = f"openmedq_{test.name}"
    task = {
        "task": name,
        "dataset_path": "parquet",
        "dataset_kwargs": {"data_files": {"test": str((folder / "test.parquet").absolute())}},
        "test_split": "test",
        "output_type": "generate_until",
        "generation_kwargs": {"max_new_tokens": max_new_tokens, "temperature": 0, "do_sample": False},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        "doc_to_target": "{{references[0]}}",
    }
    functions = {"doc_to_visual": "images", "doc_to_text": "question", "process_results": "process_results"}
    lines = [f"{key}: !function functions.{function}\n" for key, function in functions.items()]  # a tag that only lmms-eval knows
    (folder / f"{test.name}.yaml").write_text(yaml.safe_dump(task, sort_keys=False) + "".join(lines))
    (folder / "functions.py").write_text(FUNCTIONS)
    return name


def _png(data: bytes, size: int, exact_decode: bool) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(decode_image(data, size=size, exact=exact_decode).transpose(1, 2, 0)).save(buffer, "PNG")
    return buffer.getvalue()


@report_user_errors
def main(args: list[str]) -> None:
    if len(args) != 3:
        raise UserError("give a benchmark, the folder of the shards and the folder of the task: slake data/shards tasks/slake")
    benchmark, root, folder = args
    print(write_task(read_benchmark(benchmark, root=root), Path(folder)))


if __name__ == "__main__":
    main(sys.argv[1:])
