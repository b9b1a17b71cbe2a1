"""What surrounds `trainer.fit`.

- Callbacks, in the order in which they run; the last two are checkpoint callbacks, which Lightning runs after the module's own
  hooks, when the metrics of an epoch are complete:
  1. `progress.TrainingProgress`: the progress bar.
  2. `early_stopping.EarlyStopping`: stops after some epochs without a lower validation loss.
  3. `recorder.Recorder`: metrics.csv, the trackers and the log, once an epoch.
  4. `checkpoint_callback.Checkpoints`: last.ckpt and best.ckpt; ends the training after a signal.
- `checkpoints`: checkpoint files, and the guard of a resumed run.
- `run_record`: run.json, and how a run ended.
- `signals`: finishes a step and writes a checkpoint before a signal ends the process.
- `branching`: the checkpoint from which a branch of a run begins.
- `failures/`: what to change after a known failure.
"""
