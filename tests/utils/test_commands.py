"""Commands: what a terminal cannot show does not end them."""

import os
import subprocess
import sys

from utils.config import CONFIG_FILE


def test_a_terminal_of_ascii_gets_the_whole_text_instead_of_a_traceback():
    code = (
        "import sys; from utils.cli import run_command; from utils.errors import RunError\n"
        "def main(argv):\n"
        "    print('one \\u2026'); print('B\\u00fcrstner', file=sys.stderr); raise RunError('\\u00b1')\n"
        "sys.exit(run_command(main))"
    )
    environment = os.environ | {"PYTHONIOENCODING": "ascii:strict"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=CONFIG_FILE.parent, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stdout == "one \\u2026\n"
    assert done.stderr == "B\\xfcrstner\nerror: \\xb1\n"
