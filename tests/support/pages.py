"""The programs in the project's documents."""

import re
import textwrap

_BLOCK = re.compile(r"^( *)```python\n(.*?)^\1```", re.DOTALL | re.MULTILINE)


def programs(page: str) -> list[str]:
    """Every Python example of a page, in its order."""
    return [textwrap.dedent(body) for _, body in _BLOCK.findall(page)]
