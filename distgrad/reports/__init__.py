"""What a step tells, and where that goes. Its public names are in `distgrad.seeing`.

report.py              `StepReport`: the line, the JSON, the table
statistics.py          what was asked for beyond the line
graph_statistics.py    how it is measured, inside the graph
worker_table.py        what each worker tells of its own share
groups.py              groups of variables
updates.py             how far a step moves the weights
noise.py               the gradient noise scale
outputs.py             the listeners that a step was asked for
listeners.py           the protocol of listeners; lines.py, live.py, log_file.py, tensorboard.py, alarms.py are some
history.py             a log file read back, however long it is
html_report.py         the page that `distgrad report` makes of it; show.py is the command
"""
