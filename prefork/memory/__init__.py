"""The memory of a run: how much there is and who gets it.

`governor` decides with the limit of the user (`--memory-limit`) and of the machine (`platform_matrix.memory`): what may
start, how many workers stay, what must end; the arithmetic is in `admission`. `probe` and `observation` measure,
`forecast` and `prediction` say what a task will take, `memlog` records what happened and `figures` evaluates it.
`monitor` logs the memory of the stages inside one process.
"""
