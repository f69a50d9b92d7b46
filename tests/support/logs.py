"""Log files of reports, line by line."""

import json
from pathlib import Path
from typing import Any


def line(step: int, **fields: Any) -> str:
    plain = {"loss": 1 / step, "gradient_sum": -1.0, "gradient_norm": 2.0, "seconds": 0.5, "applied": True}
    return json.dumps({"step": step, **plain, **fields})


def written(path: Path, lines: list[str]) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path
