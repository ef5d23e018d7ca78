"""Programs that tests put in the place of real ones."""

from pathlib import Path


def write_program(path: Path, script: str) -> Path:
    """Writes an executable file; returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(script)
    path.chmod(0o755)
    return path
