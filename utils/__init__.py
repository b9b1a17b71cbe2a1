"""The ground that every other room stands on: errors, files, logs, machine, processes, progress, seeds."""
