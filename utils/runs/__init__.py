"""The folder of a run: what lies in it, how it is found, compared and drawn. Imports neither torch nor Lightning."""
