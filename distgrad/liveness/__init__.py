"""No job waits for ever: a worker that is gone, stuck or asked to stop is noticed, named and ended.

watchdog.py       the thread that ends a job which cannot go on
peers.py          the other processes of this host: where they are, whether they live
stop_signals.py   signals that ask a training to stop
reaper.py         a program that outlives a worker, to end who should have ended with the job
"""
