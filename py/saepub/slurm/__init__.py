"""Runs a stage's work as tasks of a Slurm array, through submitit, or as processes."""
