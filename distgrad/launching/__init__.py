"""From one command to n workers: `distgrad run`, and what the tests and the benchmark launch with.

    run.py          what a person asked for, made a job; again after a lost worker
    choice.py       which engine and which launcher, and what is missing for it
    hosts.py        where workers may run, and how many
    commands.py     every launcher's command line
    environment.py  what workers find in their environment, and what they must not
    job.py          start it, watch it, pass signals on, end it
    verdict.py      how it ended: one line and one exit status
    keeper.py       the program around each worker: its output, its end, its cores and its GPU
    session.py      the folder in which workers and their launcher leave word for each other
    warden.py       however `distgrad run` ends, nothing of its job outlives it

No launcher tells all that a person must know: horovodrun turns every status into 1, TensorFlow starts nobody and waits
for ever, MPICH passes no signals on. So each worker has a keeper, the same under every launcher, and the folder says
who has started, who has joined, and how each one ended.

Nothing here imports an engine or TensorFlow.
"""
