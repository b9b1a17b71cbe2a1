"""Trackers: where runs are logged besides their folders."""
