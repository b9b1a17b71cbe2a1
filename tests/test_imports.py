"""Imports run one way, nothing heavy is imported early, and no folder grows beyond what a person can hold."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from utils.machine import PROJECT

# Each room may import those below it.
FLOORS = (
    ("deployment", "reproduction", "searching", "measurements"),
    ("assembly",),
    ("training",),
    ("datamodules", "models", "losses"),
    ("utils.tracking",),
    ("utils.runs",),
    ("utils.config",),
    ("utils",),
)
FLOOR_OF = {room: number for number, floor in enumerate(FLOORS) for room in floor}
# Rooms on one floor that may import each other, in this direction.
BESIDE = {
    ("models", "losses"),
    ("reproduction", "deployment"),
    ("searching", "deployment"),
    ("searching", "reproduction"),
    ("measurements", "deployment"),
    ("measurements", "reproduction"),
}
ENTRY_SCRIPTS = {path.stem for path in PROJECT.glob("*.py")}
MAX_FILES = 10  # of Python in a room


def room_of(module: str) -> str | None:
    """Returns the room of a dotted module name, None for another project's."""
    parts = module.split(".")
    return next((name for name in (".".join(parts[:2]), parts[0]) if name in FLOOR_OF), None)


def imported_modules(path: Path) -> set[str]:
    modules = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: a relative import"
            modules |= {f"{node.module}.{alias.name}" for alias in node.names}
    return modules


def source_files() -> list[Path]:
    rooms = {room.partition(".")[0] for room in FLOOR_OF}
    return [path for room in sorted(rooms) for path in (PROJECT / room).rglob("*.py")]


@pytest.mark.parametrize("path", source_files(), ids=lambda path: str(path.relative_to(PROJECT)))
def test_imports_run_one_way(path: Path) -> None:
    own = room_of(".".join(path.relative_to(PROJECT).with_suffix("").parts))
    for module in imported_modules(path):
        assert module.partition(".")[0] != "tests", f"imports {module}"
        other = room_of(module)
        if other is None or other == own or (own, other) in BESIDE:
            # Measurements and reproductions run commands as a user does.
            assert module.partition(".")[0] not in ENTRY_SCRIPTS or own == "measurements", f"imports {module}"
            continue
        assert FLOOR_OF[other] > FLOOR_OF[own], f"{own} imports {module}"


def test_the_walk_sees_imports(tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text("import train\ndef f():\n    from utils.runs import lock\n")
    assert imported_modules(tmp_path / "module.py") == {"train", "utils.runs.lock"}
    assert room_of("utils.runs.lock") == "utils.runs"
    assert room_of("utils.files") == "utils"
    assert room_of("torch.utils") is None


@pytest.mark.parametrize("room", ["utils.config", "utils.runs"])
def test_configuration_and_runs_need_no_torch(room: str) -> None:
    modules = [f"{room}.{path.stem}" for path in (PROJECT / room.replace(".", "/")).glob("*.py") if path.stem[0] != "_"]
    code = f"import sys, {', '.join(modules)}\nassert not {{'torch', 'pytorch_lightning'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=True)


def test_no_room_is_crowded() -> None:
    counts = {path.parent: 0 for path in source_files()}
    for path in source_files():
        counts[path.parent] += path.stem != "__init__"
    assert not {str(room.relative_to(PROJECT)): count for room, count in counts.items() if count > MAX_FILES}


def test_every_room_says_what_it_is() -> None:
    for room in {path.parent for path in source_files()}:
        assert ast.get_docstring(ast.parse((room / "__init__.py").read_text(encoding="utf-8"))), room
