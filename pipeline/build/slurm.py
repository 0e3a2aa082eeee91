"""The sbatch script that `pipeline build-shards --sbatch` prints: one array task a slice, all with the same command."""

SCRIPT = """\
#!/bin/bash
#SBATCH --job-name=shards
#SBATCH --array=0-15                # 16 slices; SLURM_ARRAY_TASK_COUNT follows
#SBATCH --cpus-per-task=16
#SBATCH --mem=32G                   # 2 GB a worker
#SBATCH --time=04:00:00
#SBATCH --requeue                   # a requeued task goes on where it stopped
#SBATCH --output=shards-%A_%a.log

# --raw and --out lie on a file system that all nodes share, or --out is s3://bucket/prefix and --work a local disk.
# --stop-after ends between tasks before the time limit does; submit the same script again until it says that it is complete.
# The slice that finishes last completes the directory. Resubmit with other array bounds whenever you like: finished tasks stay.
srun pipeline build-shards --recipe stage1 --raw raw --out shards/stage1 \\
    --workers "$SLURM_CPUS_PER_TASK" --stop-after 3.7 \\
    --slice "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT"
"""
