"""saepub: publish sparse autoencoders, one small stage at a time.

stages/, one a program in bin/; none imports another:
    extract_ids fetch_metrics (classify is jq) select preflight stage render summary
    plan push verify collect, and besides the pipe
    demo remeasure report docs doctor rehearse dotenv
What they share:
    cli (arguments, errors), lines (JSON Lines), settings, catalog, staged (what a stage
    holds), templating, release (its record), frontier (the rule), advice (warnings), plot, executor*
    (Slurm), machine
What is known of the world outside, each in its own modules:
    hub* (the Hub), loopback_hub (one of our own), wandb_*, run_facts, nmse (W&B),
    checkpoint*, sae, preflight_check, saev_loader, shards (saev's files)
"""

__version__ = "1.0.0"
