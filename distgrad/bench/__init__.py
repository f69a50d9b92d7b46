"""The benchmark: distgrad side by side with its peers, in one interleaved run, beside the limits.

    cases.py     who meets whom on what: the tables, their cases, the contestants and the jobs they run in
    jobs.py      start every engine's own launcher; wake one job at a time
    worker.py    what a rank of such a job does: prepare a turn, take it, say how long it took
    engines/     the turns themselves: what is timed
    data.py      what goes in, and what must come out
    models.py    the models
    rounds.py    the protocol: interleaved rounds, and the rows that follow from them
    output.py    Markdown, JSON, a picture

A round lets every contestant take its turn, one after the other, in an order of its own: A B C, C A B. All jobs live
through the whole run, and those whose turn it is not are stopped (SIGSTOP), so that no background thread of theirs
takes time from another. The time of a turn is the slowest rank's.

Where contestants differ by little (`stats`), each of them is built first once, and the rounds are shared out over these
orders of building: whoever is first there is some percent faster.

A ratio is the median over the rounds of the two times of one round, its interval the 95 % one of that median by order
statistics, which assumes nothing about the distribution. distgrad also meets itself: where A against A does not read
1.00 ± 0.03 the machine was not quiet enough, and the case is marked void.
"""
