"""Lines as tasks of an array, through submitit."""
