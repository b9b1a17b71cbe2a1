"""What surrounds `trainer.fit`: callbacks, checkpoints and resume, signals, error hints and the record of a run."""
