"""From one command to n workers: `distgrad run`, and how the tests and the benchmark start theirs.

    run.py             the options of `distgrad run`, made a job; launched again after a lost worker
    engines.py         the engines by name, and which packages they need
    selection.py       which engine and launcher start a job, and what is missing for them
    hosts.py           the hosts that workers run on, and how many workers each takes
    commands.py        every launcher's command line
    environment.py     the environment variables of launchers and workers
    world.py           rank and size of a worker, as its launcher's variables give them
    tf_config.py       the same from TF_CONFIG
    job.py             one launch: start it, watch it, pass signals on, end it
    outcome.py         how a job ended: one line and one exit status
    job_folder.py      the files through which workers and their launcher keep each other informed
    private_folder.py  folders where every user may write, used and removed only if they are one's own
    output.py          what workers and launchers print, without what nobody needs to read
    worker_wrapper.py  the program around each worker: its output, its end, its cores and its GPU
    cleanup.py         the program that ends what is left of a job after `distgrad run`
    isolated.py        starts the two programs above without site-packages

Launchers differ in what they report: horovodrun turns every status into 1, TensorFlow starts nobody and waits for ever,
MPICH passes no signals on. So each worker runs inside the same wrapper under every launcher, and the job's folder shows
which workers have started, which have joined, and how each one ended.

Nothing here imports an engine or TensorFlow.
"""
