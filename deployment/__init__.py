"""Uses a trained model, from its checkpoint alone: evaluation, prediction, export and profiling."""
