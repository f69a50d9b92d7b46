"""Reports: the numbers of a step, and the listeners that print, log or draw them. Public as `distgrad.seeing`.

report.py              `StepReport`: the line, the JSON, the table
statistics.py          statistics beyond the line, as far as they were asked for
packing.py             named numbers as one vector, which a compiled step hands out
graph_clock.py         timestamps inside the graph
worker_table.py        a row of numbers from each worker
groups.py              groups of variables
updates.py             how far a step moves the weights
noise.py               the gradient noise scale
listeners.py           the protocol of listeners: lines.py, live.py, log_file.py, tensorboard.py, alarms.py
outputs.py             the listeners that a step's arguments ask for
history.py             a log file read back, however long it is
html_report.py         the HTML page that `distgrad report` makes of it; show.py is the command
"""
