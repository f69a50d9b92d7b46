"""The lines that people grep, as patterns."""

import re

ERROR = re.compile(r"^distgrad: error\[DG\d{3}\] rank=(?:\d+|-) step=(?:\d+|-): [^\n]+; [^\n]+$", re.MULTILINE)
STEP = re.compile(
    r"step (\d+) \| loss (-?\d+\.\d{5}|nan|inf) \| gradient sum (-?\d\.\d{4}e[+-]\d\d|nan)"
    r" \| gradient norm (\d\.\d{4}e[+-]\d\d|nan) \| examples (\d+) \| workers (\d+) \| (\d+\.\d) ms"
)
