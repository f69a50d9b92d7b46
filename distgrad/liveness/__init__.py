"""No job waits for ever: a worker that is gone, stuck or asked to stop is noticed, named and ended.

liveness.py       a communicator's `liveness`: starting the watchdog, explaining errors, leaving the job
engine_hooks.py   functions that an engine hands in, since only it knows how its jobs end
watchdog.py       the thread that notices that a job cannot go on
calls.py          what all workers must have called
wait.py           how long it has waited, and who is at work
peers.py          the other processes of the job on this host
status_page.py    shared memory in which a process tells them how far it is
processes.py      what the kernel tells of processes
forks.py          processes that are forked from a worker, and are none
stop_signals.py   signals that ask a training to stop
reaper.py         a program that outlives a worker, to end processes that should have ended with the job
"""
