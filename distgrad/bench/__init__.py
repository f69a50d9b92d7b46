"""The benchmark: distgrad side by side with its peers, in one interleaved run, beside the limits.

    run.py       one run: start the jobs, measure every case, print the tables
    cases.py     the tables, their cases, the contestants, and the jobs that the contestants run in
    jobs.py      starts every engine's own launcher; wakes one job at a time
    worker.py    the program of a rank: prepare a turn, take it, return the time
    engines/     the turns themselves: what is timed
    data.py      the vectors to sum, the examples to train on, and the checks of the results
    models.py    the models
    rounds.py    the interleaved rounds of a case
    compare.py   ratios and their intervals, from the times of the rounds
    output.py    Markdown, JSON, a picture

A round lets every contestant take its turn, one after the other, in an order of its own: A B C, C A B. All jobs live
through the whole run, and those whose turn it is not are stopped (SIGSTOP), so that none of their background threads
takes time from another. The time of a turn is the slowest rank's.

Where contestants differ by little (`stats`), each of them is built first once, and the rounds are divided among these
orders of building: the one that is built first is some percent faster.

A ratio is the median over the rounds of the two times of one round, its interval the 95 % one of that median by order
statistics, which assumes nothing about the distribution. distgrad also meets itself: where A against A does not read
1.00 ± 0.03 the machine was not quiet enough, and the case is marked void.
"""
