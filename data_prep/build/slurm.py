"""Writes the shards of a build in jobs of a Slurm cluster.

Every job reads the whole stream of rows, which is cheap, and encodes every n-th shard, which is expensive. Jobs share nothing
but the output folder. The waiting process writes the shards of failed jobs itself.
"""

import shutil

from data_prep.build import source
from data_prep.build.process_pool import process_map
from data_prep.build.source import BuildConfig
from data_prep.build.token_counts import TokenizerFile, tokenizer_file
from data_prep.sources import Source
from src.runtime import slurm_jobs
from src.runtime.errors import UserError

DAY = 24 * 60  # minutes


def write_shards(entries: list[Source], config: BuildConfig, tokenizer: TokenizerFile | None, *, cluster: str = "slurm") -> None:
    """Submits `config.jobs` jobs and waits for them; `cluster="debug"` runs them in this process, one after the other."""
    import submitit  # only needed on a cluster

    if cluster == "slurm" and not shutil.which("sbatch"):
        raise UserError("executor=slurm: sbatch is not installed on this machine; use executor=process, or run it on a Slurm cluster")
    for entry in entries:  # before the jobs start, so that only one process removes an older build
        source.prepare_folder(entry, config, tokenizer)
    executor = submitit.AutoExecutor(folder=config.out / "slurm", cluster=cluster)
    executor.update_parameters(name="shards", cpus_per_task=config.workers, timeout_min=DAY)
    slurm_jobs.watch_with_squeue()
    with slurm_jobs.explained_submission("executor=slurm", "see `sinfo`, or use executor=process"), executor.batch():
        jobs = [executor.submit(_run_job, entries, config, part) for part in range(config.jobs)]
    print(f"{config.jobs} jobs submitted, logs in {config.out / 'slurm'}")
    for job in jobs:
        try:
            job.result()
        except submitit.core.utils.UncompletedJobError as error:
            print(f"{slurm_jobs.explain_lost_job(job, error)}; this process writes its shards")


def _run_job(entries: list[Source], config: BuildConfig, part: int) -> None:
    with tokenizer_file(config.tokenizer) as tokenizer, process_map(config.workers) as map_chunks:
        for entry in entries:
            source.write_shards(entry, config, map_chunks, tokenizer, part=part, parts=config.jobs)
