"""The shards of a build, written by the jobs of a Slurm cluster.

Each job reads the whole stream of rows, which is cheap, and encodes every n-th shard, which is not. Jobs share nothing but
the folder; what a lost job has left is written by the process that waits for them.
"""

import shutil

from data_prep.build import source
from data_prep.build.process_pool import process_map
from data_prep.build.source import BuildConfig
from data_prep.build.token_counts import TokenizerFile, tokenizer_file
from data_prep.sources import Source
from src.runtime.errors import UserError

DAY = 24 * 60  # minutes


def write_shards(entries: list[Source], config: BuildConfig, counting: TokenizerFile | None, *, cluster: str = "slurm") -> None:
    """Submits `config.jobs` jobs and waits for them; `cluster="debug"` runs them here, one after the other."""
    import submitit  # only a cluster needs it

    if cluster == "slurm" and not shutil.which("sbatch"):
        raise UserError("executor=slurm needs a Slurm cluster, and there is no sbatch here; use executor=process")
    for entry in entries:  # before the jobs, so that no two of them remove an older build
        source.prepare_folder(entry, config, counting)
    executor = submitit.AutoExecutor(folder=config.out / "slurm", cluster=cluster)
    executor.update_parameters(name="shards", cpus_per_task=config.workers, timeout_min=DAY)
    with executor.batch():
        jobs = [executor.submit(_job, entries, config, part) for part in range(config.jobs)]
    print(f"{config.jobs} jobs, logs in {config.out / 'slurm'}")
    for job in jobs:
        try:
            job.result()
        except (submitit.core.utils.UncompletedJobError, submitit.core.utils.FailedJobError) as error:
            print(f"job {job.job_id} failed, its shards are written here ({str(error).strip().splitlines()[0]})")


def _job(entries: list[Source], config: BuildConfig, part: int) -> None:
    with tokenizer_file(config.tokenizer) as counting, process_map(config.workers) as mapped:
        for entry in entries:
            source.write_shards(entry, config, mapped, counting, part=part, parts=config.jobs)
