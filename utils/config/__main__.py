"""Prints the JSON schema of configuration files: python -m utils.config > config.schema.json."""

from utils.config.schema import json_schema

if __name__ == "__main__":
    print(json_schema(), end="")
